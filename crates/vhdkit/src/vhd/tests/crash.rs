//! Power cuts and failing calls at every moment.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::model::{Request, backing_of, payload, request, settle_discard};
use super::storage::{Change, Recorder, apply_torn};
use super::*;
use crate::error::ErrorKind;
use crate::image::{NoBacking, ZeroMode};
use crate::vhd::footer::Places;

const SIZE: u64 = 64 * 1024;

/// What the disk may show: the state of the last flush, and every state since.
type History = Arc<Mutex<Vec<Vec<u8>>>>;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Cuts the power: some of the changes since the last barrier are on the media, torn at sectors.
fn cut(media: &MemoryStorage, changes: &[Change], random: &mut Random) -> MemoryStorage {
    let after = media.clone();
    // None, all, or each with some probability; whole or by sector.
    let odds = random.next() % 5;
    let by_sector = random.next().is_multiple_of(2);
    for change in changes {
        let whole = random.next() % 4 < odds;
        apply_torn(&after, change, || {
            if by_sector && odds != 0 && odds != 4 {
                random.next() % 4 < odds
            } else {
                whole
            }
        });
    }
    after
}

/// The promise: it opens, nothing above "info" is found, each unit shows one of its states, and it can be used.
fn verify(crashed: &MemoryStorage, states: &[Vec<u8>], backing: &dyn Backing, unit: usize) {
    let image = open(crashed, false).expect("opens after a crash");
    let found = findings(crashed);
    assert!(worst(&found) <= Some(Severity::Info), "{found:?}");
    let mut last = [0; 512];
    crashed
        .read_at(crashed.len().unwrap() - 512, &mut last)
        .unwrap();
    assert!(
        last.starts_with(b"conectix") || last == [0; 512],
        "bytes of the guest must never be where a footer is looked for"
    );
    let seen = read_all(&image, backing);
    for (at, part) in (0..).step_by(unit).zip(seen.chunks(unit)) {
        assert!(
            states
                .iter()
                .any(|state| &state[at..at + part.len()] == part),
            "bytes from {at} show none of the {} states",
            states.len()
        );
    }
    let shared = Arc::new(crashed.clone());
    let image = VhdImage::open(shared.clone(), true).unwrap();
    let mut expected = seen;
    for block in [3, 15, 7] {
        let (start, data) = (block * 4096 + 512, [0xAB; 1024]);
        image.write_at(start, &data, backing).unwrap();
        expected[to_usize(start)..][..1024].copy_from_slice(&data);
    }
    image.close().unwrap();
    let image = VhdImage::open(shared, false).unwrap();
    assert!(
        read_all(&image, backing) == expected,
        "usable after a crash"
    );
}

/// One request; the model is brought forward first, so that a crash within the request knows both states.
fn perform(
    image: &VhdImage,
    request: &Request,
    history: &History,
    backing: &dyn Backing,
) -> Result<()> {
    let push = |change: &dyn Fn(&mut [u8])| {
        let mut history = history.lock().unwrap();
        let mut state = history.last().unwrap().clone();
        change(&mut state);
        history.push(state);
    };
    match *request {
        Request::Write(offset, length, byte) => {
            let data = payload(offset, length, byte);
            let range = to_usize(offset)..to_usize(offset + length);
            push(&|state| state[range.clone()].copy_from_slice(&data));
            image.write_at(offset, &data, backing)
        }
        Request::Zero(offset, length, keep) => {
            push(&|state| state[to_usize(offset)..to_usize(offset + length)].fill(0));
            let mode = if keep {
                ZeroMode::KeepAllocated
            } else {
                ZeroMode::MayUnmap
            };
            image.zero(offset, length, mode, backing)
        }
        Request::Discard(offset, length) => {
            image.discard(offset, length, backing)?;
            let seen = try_read(image, backing, 0..SIZE)?;
            push(&|state| settle_discard(state, &seen, offset, length));
            Ok(())
        }
        Request::Flush | Request::Abandon => {
            image.flush()?;
            let mut history = history.lock().unwrap();
            let last = history.pop().unwrap();
            *history = vec![last];
            Ok(())
        }
        Request::Reopen => {
            image.close()?;
            let mut history = history.lock().unwrap();
            let last = history.pop().unwrap();
            *history = vec![last];
            Ok(())
        }
    }
}

fn align(request: &Request) -> Request {
    let sectors = |offset: u64, length: u64| {
        let offset = offset / 512 * 512;
        (offset, length.next_multiple_of(512).min(SIZE - offset))
    };
    match *request {
        Request::Write(offset, length, byte) => {
            let (offset, length) = sectors(offset, length);
            Request::Write(offset, length, byte)
        }
        Request::Zero(offset, length, keep) => {
            let (offset, length) = sectors(offset, length);
            Request::Zero(offset, length, keep)
        }
        ref other => other.clone(),
    }
}

fn crash_history(disk_type: DiskType, aligned: bool, seed: u64, requests: &[Request]) {
    let unit = if aligned { 512 } else { 1 };
    let start = create_small(disk_type, SIZE, 4096);
    let recorder = Recorder::new(&start);
    let mut image = VhdImage::open(recorder.clone(), true).unwrap();
    let history: History = Arc::new(Mutex::new(vec![read_all(
        &image,
        &*backing_of(disk_type, SIZE),
    )]));
    let hook_history = history.clone();
    let hook_backing = backing_of(disk_type, SIZE);
    let mut hook_random = Random(seed | 1);
    *recorder.on_flush.lock().unwrap() = Some(Box::new(move |media, changes| {
        let states = hook_history.lock().unwrap();
        for _ in 0..3 {
            let crashed = cut(media, changes, &mut hook_random);
            verify(&crashed, &states, &*hook_backing, unit);
        }
    }));
    let backing = backing_of(disk_type, SIZE);
    let mut random = Random(seed | 2);
    for request in requests {
        let request = if aligned {
            align(request)
        } else {
            request.clone()
        };
        perform(&image, &request, &history, &*backing).unwrap();
        if matches!(request, Request::Abandon | Request::Reopen) {
            image = VhdImage::open(recorder.clone(), true).unwrap();
        }
        let media = recorder.media.lock().unwrap();
        let states = history.lock().unwrap();
        assert!(
            read_all(&image, &*backing) == *states.last().unwrap(),
            "{request:?}"
        );
        for _ in 0..2 {
            verify(
                &cut(&media.0, &media.1, &mut random),
                &states,
                &*backing,
                unit,
            );
        }
    }
    image.close().unwrap();
}

#[test]
fn a_power_cut_at_any_moment_keeps_the_promise() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing, DiskType::Fixed] {
        let mut runner = TestRunner::new(Config {
            cases: 40,
            failure_persistence: None,
            ..Config::default()
        });
        let input = (
            any::<bool>(),
            any::<u64>(),
            prop::collection::vec(request(SIZE), 1..20),
        );
        runner
            .run(&input, |(aligned, seed, requests)| {
                crash_history(disk_type, aligned, seed, &requests);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn a_crash_while_both_footers_are_put_right_loses_neither() {
    // Every subset of the changes at each barrier, for each way in which a file can be found.
    for (end, copy, tail) in [
        (true, false, 0),
        (false, true, 0),
        (true, true, 5000),
        (false, true, 700),
    ] {
        let start = create_small(DiskType::Dynamic, SIZE, 4096);
        let length = start.len().unwrap();
        let footer = footer_at(&start, 0);
        start.write_at(length - 512, &[0x11; 512]).unwrap();
        start.set_len(length + tail).unwrap();
        if end {
            start.write_at(length + tail, footer.as_bytes()).unwrap();
        }
        if !copy {
            start.write_at(0, &[0x22; 512]).unwrap();
        }
        let recorder = Recorder::new(&start);
        *recorder.on_flush.lock().unwrap() = Some(Box::new(move |media, changes| {
            // Growing, which follows, may leave the end without a footer.
            let grows = |c: &Change| matches!(c, Change::Length(l) if *l > media.len().unwrap());
            let end_was_damaged = !end || changes.iter().any(grows);
            for subset in 0..1_u32 << changes.len().min(10) {
                let crashed = media.clone();
                for (i, change) in changes.iter().enumerate() {
                    apply_torn(&crashed, change, || subset >> i & 1 == 1);
                }
                let image = open(&crashed, false).expect("one footer is always there");
                assert_eq!(image.virtual_size(), SIZE);
                let places = Places::read(&crashed).unwrap();
                assert!(
                    end_was_damaged || places.end.signed().is_some(),
                    "a good footer at the end stays until there is another"
                );
            }
        }));
        let image = VhdImage::open(recorder.clone(), true).unwrap();
        image.write_at(4096, &[1; 4096], &NoBacking).unwrap();
        image.close().unwrap();
        assert_eq!(codes(&recorder.now), [""; 0]);
    }
}

#[test]
fn any_failing_call_is_reported_and_costs_nothing_that_was_flushed() {
    let requests = [
        Request::Write(0, 4096, 1),
        Request::Write(5000, 700, 2),
        Request::Flush,
        Request::Write(20_000, 9000, 3),
        Request::Zero(9000, 3000, false),
        Request::Zero(12_000, 5000, true),
        Request::Discard(0, 8192),
        Request::Flush,
        Request::Write(30_000, 30_000, 4),
        Request::Write(5001, 100, 5),
        Request::Reopen,
    ];
    for disk_type in [DiskType::Dynamic, DiskType::Differencing, DiskType::Fixed] {
        let backing = backing_of(disk_type, SIZE);
        for call in 1.. {
            let recorder = Recorder::new(&create_small(disk_type, SIZE, 4096));
            let image = VhdImage::open(recorder.clone(), true).unwrap();
            let history: History = Arc::new(Mutex::new(vec![read_all(&image, &*backing)]));
            recorder.calls.store(0, Ordering::SeqCst);
            recorder.fail_at.store(call, Ordering::SeqCst);
            let mut failed = false;
            for request in &requests {
                let Err(error) = perform(&image, request, &history, &*backing) else {
                    continue;
                };
                assert_eq!(error.kind(), ErrorKind::DiskFull, "the cause is reported");
                failed = true;
                // Either the request can simply be made again, or the image says that it has failed.
                match perform(&image, request, &history, &*backing) {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
                        assert!(error.reason().contains("as told"), "{error}");
                        let flush = image.flush().unwrap_err();
                        assert_eq!(flush.kind(), ErrorKind::InvalidState);
                        break;
                    }
                }
            }
            recorder.fail_at.store(0, Ordering::SeqCst);
            let states = history.lock().unwrap();
            let seen = read_all(&image, &*backing);
            let last = states.last().unwrap();
            assert!(&seen == last || failed, "reads go on");
            drop(image);
            verify(&recorder.now, &states, &*backing, 1);
            if !failed {
                assert!(call > 8, "the sweep ends after all calls");
                break;
            }
        }
    }
}

#[test]
fn a_place_that_a_failed_write_left_is_zeroed_for_the_next_block() {
    for call in 1..12 {
        let recorder = Recorder::new(&create_small(DiskType::Dynamic, SIZE, 4096));
        let image = VhdImage::open(recorder.clone(), true).unwrap();
        image.write_at(0, &[1; 512], &NoBacking).unwrap();
        image.flush().unwrap();
        recorder.calls.store(0, Ordering::SeqCst);
        recorder.fail_at.store(call, Ordering::SeqCst);
        let failed = image.write_at(8192, &[0x77; 4096], &NoBacking).is_err();
        recorder.fail_at.store(0, Ordering::SeqCst);
        let retry = image.write_at(40_960, &[2; 512], &NoBacking);
        assert!(retry.is_ok() || failed);
        if retry.is_ok() {
            assert_eq!(read_range(&image, &NoBacking, 41_472..45_056), [0; 3584]);
            let expected = if failed { 0 } else { 0x77 };
            assert_eq!(
                read_range(&image, &NoBacking, 8192..12_288),
                [expected; 4096]
            );
            image.close().unwrap();
            assert!(worst(&findings(&recorder.now)) <= Some(Severity::Info));
        }
    }
}
