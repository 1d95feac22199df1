//! Compacting and growing: what they do, power cuts and failing calls in the middle of them, and guests in between.

use std::sync::atomic::Ordering;

use super::model::{backing_of, payload};
use super::storage::{Change, Recorder, apply_torn};
use super::*;
use crate::error::{Error, ErrorKind};
use crate::image::{AllocatedBlock, NoBacking, ParentPath, ZeroMode};
use crate::num::GIB;
use crate::vhd::geometry;

pub(super) const SIZE: u64 = 64 * 1024;
pub(super) const BLOCK: u64 = 4096;

/// Everything about a disk that a change makes different, or does not.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct View {
    content: Vec<u8>,
    identifier: Option<Uuid>,
    parent: Option<(Vec<Uuid>, Vec<ParentPath>, Option<i64>)>,
    geometry: Option<(u16, u8, u8)>,
}

fn view(image: &VhdImage, backing: &dyn Backing) -> View {
    let info = image.info();
    View {
        content: read_all(image, backing),
        identifier: info.identifier,
        parent: info.parent.map(|p| (p.identifiers, p.paths, p.modified)),
        geometry: info.geometry,
    }
}

pub(super) fn is_clean(storage: &MemoryStorage) {
    let found = findings(storage);
    assert!(worst(&found) <= Some(Severity::Info), "{found:?}");
}

/// A crash left this: it opens, nothing worth a warning is found, and it is one of the states, before a first change and
/// after it.
fn stands(crashed: &MemoryStorage, states: &[View], backing: &dyn Backing) {
    is_clean(crashed);
    let seen = view(&open(crashed, false).expect("opens"), backing);
    assert!(states.contains(&seen), "neither before nor after");
    let shared = Arc::new(crashed.clone());
    let image = VhdImage::open(shared.clone(), true).expect("opens for writing");
    let (mut expected, at) = (seen, BLOCK * 5 + 512);
    image.write_at(at, &[0xAB; 512], backing).unwrap();
    expected.content[to_usize(at)..][..512].fill(0xAB);
    assert!(view(&image, backing) == expected, "usable");
    image.close().unwrap();
    is_clean(&shared);
    assert!(view(&open(&shared, false).unwrap(), backing) == expected);
}

fn each_crash(media: &MemoryStorage, changes: &[Change], mut look: impl FnMut(&MemoryStorage)) {
    let mut seed = 0x9E37_79B9_97F4_A7C1 ^ changes.len() as u64;
    let mut toss = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    if changes.len() <= 5 {
        for subset in 0..1_u32 << changes.len() {
            let crashed = media.clone();
            for (i, change) in changes.iter().enumerate() {
                apply_torn(&crashed, change, || subset >> i & 1 == 1);
            }
            look(&crashed);
        }
    }
    for round in 0..16 {
        let crashed = media.clone();
        for change in changes {
            let whole = toss().is_multiple_of(2);
            apply_torn(&crashed, change, || {
                if round % 2 == 0 {
                    whole
                } else {
                    toss().is_multiple_of(2)
                }
            });
        }
        look(&crashed);
    }
}

/// A parent for the hook too.
pub(super) type Shared = Arc<dyn Backing + Send + Sync>;

type Step<'a> = &'a dyn Fn(&mut VhdImage) -> Result<()>;

/// The change at every moment of which the power is cut, and every call of which fails once.
pub(super) fn proves(start: &MemoryStorage, backing: &Shared, change: Step<'_>) {
    let before = view(&open(start, false).unwrap(), &**backing);
    let done = Arc::new(start.clone());
    let mut image = VhdImage::open(done.clone(), true).unwrap();
    change(&mut image).unwrap();
    let after = view(&image, &**backing);
    image.close().unwrap();
    is_clean(&done);
    assert!(view(&open(&done, false).unwrap(), &**backing) == after);
    let states = [before, after];

    let recorder = Recorder::new(start);
    let (hook_states, hook_backing) = (states.clone(), backing.clone());
    *recorder.on_flush.lock().unwrap() = Some(Box::new(move |media, changes| {
        each_crash(media, changes, |crashed| {
            stands(crashed, &hook_states, &*hook_backing);
        });
    }));
    let mut image = VhdImage::open(recorder.clone(), true).unwrap();
    change(&mut image).unwrap();
    let media = recorder.media.lock().unwrap();
    assert!(
        media.1.is_empty(),
        "what was changed is durable: {:?}",
        media.1.len()
    );
    drop(media);
    drop(image);

    for call in 1.. {
        let recorder = Recorder::new(start);
        let mut image = VhdImage::open(recorder.clone(), true).unwrap();
        recorder.calls.store(0, Ordering::SeqCst);
        recorder.fail_at.store(call, Ordering::SeqCst);
        let result = change(&mut image);
        recorder.fail_at.store(0, Ordering::SeqCst);
        if result.is_ok() && recorder.calls.load(Ordering::SeqCst) < call {
            break;
        }
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::DiskFull, "call {call}: {error}");
            let seen = view(&image, &**backing);
            assert!(states.contains(&seen), "reads go on after call {call}");
        }
        drop(image);
        stands(&recorder.now, &states, &**backing);
        let mut image = VhdImage::open(recorder.clone(), true).unwrap();
        change(&mut image).unwrap();
        assert!(view(&image, &**backing) == states[1], "after call {call}");
        image.close().unwrap();
        is_clean(&recorder.now);
    }
}

pub(super) fn pack_all(image: &mut VhdImage, budget: u64) -> Result<u64> {
    let mut moved = 0;
    loop {
        let step = image.pack(budget)?;
        moved += step.moved;
        if step.left == 0 {
            return Ok(moved);
        }
        assert!(step.moved > 0);
    }
}

/// Blocks in a wild order, some of them zeros.
fn filled(disk_type: DiskType) -> MemoryStorage {
    let storage = Arc::new(create_small(disk_type, SIZE, BLOCK));
    let backing = backing_of(disk_type, SIZE);
    let image = VhdImage::open(storage.clone(), true).unwrap();
    for block in [9, 3, 12, 7, 5, 15, 0, 11, 2] {
        let offset = block * BLOCK;
        if block % 4 == 3 && disk_type == DiskType::Dynamic {
            image.write_at(offset, &[0; 512], &*backing).unwrap();
        } else {
            let data = payload(offset, BLOCK - 512, 3);
            image.write_at(offset + 512, &data, &*backing).unwrap();
        }
    }
    image.close().unwrap();
    (*storage).clone()
}

fn shared_backing(disk_type: DiskType) -> Shared {
    Arc::from(backing_of(disk_type, SIZE))
}

/// Releases all blocks that read as zeros.
pub(super) fn release_zeros(image: &mut VhdImage, backing: &dyn Backing) -> Result<u64> {
    let (mut at, mut count) = (0, 0);
    while let Some(block) = image.next_allocated(at)? {
        at = block.range.end;
        let bytes = try_read(image, backing, block.range.clone())?;
        if crate::zeros::is_zero(&bytes) && image.release(&block, backing)? {
            count += 1;
        }
    }
    Ok(count)
}

#[test]
fn compacting_survives_every_crash_and_every_failing_call() {
    for (disk_type, budget) in [
        (DiskType::Dynamic, u64::MAX),
        (DiskType::Dynamic, 1),
        (DiskType::Differencing, 3 * BLOCK),
    ] {
        let start = filled(disk_type);
        let backing = shared_backing(disk_type);
        proves(&start, &backing, &|image| {
            release_zeros(image, &*backing)?;
            pack_all(image, budget)?;
            image.flush()
        });
    }
}

#[test]
fn a_released_place_is_not_used_before_the_media_know_that_it_is_free() {
    let start = filled(DiskType::Dynamic);
    proves(&start, &shared_backing(DiskType::Dynamic), &|image| {
        release_zeros(image, &NoBacking)?;
        // Would go into a released place if that were free already.
        image.zero(BLOCK, BLOCK, ZeroMode::KeepAllocated, &NoBacking)?;
        image.flush()?;
        image.zero(14 * BLOCK, BLOCK, ZeroMode::KeepAllocated, &NoBacking)?;
        image.flush()
    });
}

#[test]
fn packing_reaches_what_usage_says_and_moves_nothing_twice() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let storage = Arc::new(filled(disk_type));
        let backing = backing_of(disk_type, SIZE);
        let mut image = VhdImage::open(storage.clone(), true).unwrap();
        let before = image.usage().unwrap();
        assert_eq!(before.allocated_blocks, 9);
        assert_eq!(before.displaced_blocks, 8);
        assert_eq!(before.payload, 9 * BLOCK);
        assert_eq!(before.packed_size, before.file_size, "no hole yet");
        assert_eq!(
            before.payload + before.structures + before.free,
            before.file_size
        );
        let content = read_all(&image, &*backing);
        let released = release_zeros(&mut image, &*backing).unwrap();
        let usage = image.usage().unwrap();
        assert_eq!(usage.allocated_blocks, 9 - released);
        assert_eq!(usage.packed_size, before.file_size - released * 2 * BLOCK);
        let moved = pack_all(&mut image, 1).unwrap();
        assert_eq!(storage.len().unwrap(), usage.packed_size);
        assert!(
            moved <= released * (BLOCK + 512),
            "only what was behind a hole"
        );
        assert_eq!(pack_all(&mut image, 1).unwrap(), 0);
        assert!(read_all(&image, &*backing) == content);
        // The session goes on.
        image.write_at(14 * BLOCK, &[6; 100], &*backing).unwrap();
        image.close().unwrap();
        assert_eq!(codes(&storage), [""; 0]);
        for (_, at) in image.sparse.as_ref().unwrap().tables.bat.placed() {
            assert!((at + 512).is_multiple_of(4096), "data stays aligned");
        }
    }
}

#[test]
fn a_child_keeps_a_block_that_hides_its_parent() {
    let storage = Arc::new(create_small(DiskType::Differencing, SIZE, BLOCK));
    let backing = backing_of(DiskType::Differencing, SIZE);
    let mut image = VhdImage::open(storage, true).unwrap();
    // The parent has data from 9000 on, and zeros before.
    for block in [0, 3] {
        image
            .write_at(block * BLOCK, &[0; 4096], &*backing)
            .unwrap();
    }
    let before = read_all(&image, &*backing);
    assert_eq!(release_zeros(&mut image, &*backing).unwrap(), 1);
    assert!(read_all(&image, &*backing) == before);
    let block = image.next_allocated(0).unwrap().unwrap();
    assert_eq!(
        block,
        AllocatedBlock {
            range: 3 * BLOCK..4 * BLOCK,
            space: BLOCK + 4096,
            structures: 512,
            has_content: true
        }
    );
    assert_eq!(image.next_allocated(block.range.end).unwrap(), None);
}

#[test]
fn growing_survives_every_crash_and_every_failing_call() {
    // Within the last block, within the table's sector, into the gap behind the table, to a new table.
    for size in [SIZE + 512, 100 * BLOCK, 300 * BLOCK, 600 * BLOCK] {
        proves(
            &filled(DiskType::Dynamic),
            &shared_backing(DiskType::Dynamic),
            &|image| image.resize(size, &NoBacking, &mut |_, _| Ok(())),
        );
    }
    let storage = create(&parameters(DiskType::Fixed, SIZE));
    storage.write_at(0, &payload(0, SIZE, 9)).unwrap();
    for size in [SIZE + 512, SIZE + 1024, 3 * SIZE] {
        proves(&storage, &shared_backing(DiskType::Fixed), &|image| {
            image.resize(size, &NoBacking, &mut |_, _| Ok(()))
        });
    }
    // Foreign bytes behind the disk do not become its content.
    let footer = footer_at(&storage, SIZE);
    storage.write_at(SIZE, &[0x77; 8192]).unwrap();
    storage.write_at(SIZE + 8192, footer.as_bytes()).unwrap();
    for size in [SIZE + 4096, SIZE + 8192, SIZE + 16_384] {
        let grown = Arc::new(storage.clone());
        let mut image = VhdImage::open(grown.clone(), true).unwrap();
        image.resize(size, &NoBacking, &mut |_, _| Ok(())).unwrap();
        let added = read_range(&image, &NoBacking, SIZE..size);
        assert!(crate::zeros::is_zero(&added));
        image.close().unwrap();
        assert_eq!(grown.len().unwrap(), size + 512);
        assert_eq!(codes(&grown), [""; 0]);
    }
}

#[test]
fn t19_after_growing_new_entries_are_unallocated_and_the_footer_is_at_the_end() {
    for (size, in_place) in [(300 * BLOCK, true), (600 * BLOCK, false)] {
        let storage = Arc::new(filled(DiskType::Dynamic));
        // What another program left behind the end of the disk must not become a part of it.
        storage.write_at(1536 + 16 * 4, &[0; 8]).unwrap();
        let mut image = VhdImage::open(storage.clone(), true).unwrap();
        image.resize(size, &NoBacking, &mut |_, _| Ok(())).unwrap();
        let blocks = size / BLOCK;
        let found = header(&storage);
        assert_eq!(found.table_offset.get() == 1536, in_place);
        assert_eq!(u64::from(found.max_table_entries.get()), blocks);
        let mut table = vec![0; to_usize(blocks * 4).next_multiple_of(512)];
        storage
            .read_at(found.table_offset.get(), &mut table)
            .unwrap();
        assert!(table[64..].iter().all(|&b| b == 0xFF));
        assert!(
            read_range(&image, &NoBacking, SIZE..size)
                .iter()
                .all(|&b| b == 0)
        );
        image.write_at(size - 1, &[1], &NoBacking).unwrap();
        image.close().unwrap();
        let end = footer_at(&storage, storage.len().unwrap() - 512);
        assert!(end == footer_at(&storage, 0) && end.is_signed());
        assert_eq!(
            (end.current_size.get(), end.original_size.get()),
            (size, SIZE)
        );
        let shape = (end.cylinders.get(), end.heads, end.sectors_per_track);
        assert_eq!(shape, geometry::of_size(size));
        assert_eq!(codes(&storage), [""; 0]);
    }
}

#[test]
fn a_table_that_was_moved_does_not_keep_the_file_long() {
    let storage = Arc::new(filled(DiskType::Dynamic));
    let mut image = VhdImage::open(storage.clone(), true).unwrap();
    image
        .resize(2000 * BLOCK, &NoBacking, &mut |_, _| Ok(()))
        .unwrap();
    let block = image.next_allocated(0).unwrap().unwrap();
    image
        .zero(block.range.start, BLOCK, ZeroMode::MayUnmap, &NoBacking)
        .unwrap();
    let content = read_all(&image, &NoBacking);
    release_zeros(&mut image, &NoBacking).unwrap();
    let usage = image.usage().unwrap();
    pack_all(&mut image, 2 * BLOCK).unwrap();
    assert_eq!(storage.len().unwrap(), usage.packed_size);
    assert!(usage.packed_size < usage.file_size - 8192);
    assert!(read_all(&image, &NoBacking) == content);
    image.close().unwrap();
    assert!(read_all(&open(&storage, false).unwrap(), &NoBacking) == content);
    assert_eq!(codes(&storage), [""; 0]);
}

#[test]
fn bytes_behind_the_old_end_do_not_appear() {
    let storage = Arc::new(create_small(DiskType::Dynamic, SIZE - 512, BLOCK));
    let image = VhdImage::open(storage.clone(), true).unwrap();
    image.write_at(SIZE - 1024, &[1; 512], &NoBacking).unwrap();
    image.close().unwrap();
    let length = storage.len().unwrap();
    storage.write_at(length - 1024, &[0x55; 512]).unwrap();
    let mut image = VhdImage::open(storage, true).unwrap();
    image.resize(SIZE, &NoBacking, &mut |_, _| Ok(())).unwrap();
    assert_eq!(
        read_range(&image, &NoBacking, SIZE - 1024..SIZE)[512..],
        [0; 512]
    );
}

#[test]
fn what_cannot_be_resized_says_why_and_stays() {
    use DiskType::{Differencing, Dynamic, Fixed};
    for (disk_type, size, kind) in [
        (Dynamic, SIZE - 512, ErrorKind::InvalidType),
        (Fixed, SIZE - 512, ErrorKind::InvalidType),
        (Differencing, SIZE * 2, ErrorKind::InvalidType),
        (Dynamic, SIZE + 100, ErrorKind::InvalidSize),
        (Dynamic, 0, ErrorKind::InvalidSize),
        (Fixed, 2040 * GIB + 512, ErrorKind::InvalidSize),
        (Dynamic, 2040 * GIB, ErrorKind::InvalidSize),
    ] {
        let storage = Arc::new(create_small(disk_type, SIZE, BLOCK));
        let bytes = storage.to_vec();
        let mut image = VhdImage::open(storage.clone(), true).unwrap();
        let error = image
            .resize(size, &NoBacking, &mut |_, _| Ok(()))
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{disk_type:?} {size}: {error}");
        image.resize(SIZE, &NoBacking, &mut |_, _| Ok(())).unwrap();
        // A request to stop leaves everything as it was.
        let stop = &mut |_, _| Err(Error::new(ErrorKind::Aborted, "stop"));
        if disk_type != Differencing {
            let error = image.resize(SIZE * 2, &NoBacking, stop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Aborted);
        }
        image.close().unwrap();
        assert!(storage.to_vec() == bytes);
    }
    let storage = create_small(Dynamic, SIZE, BLOCK);
    change_footers(&storage, |f| f.saved_state = 1);
    let mut image = open(&storage, true).unwrap();
    let error = image
        .resize(SIZE * 2, &NoBacking, &mut |_, _| Ok(()))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert_eq!(image.pack(1).unwrap_err().kind(), ErrorKind::InvalidState);
    let mut read_only = open(&storage, false).unwrap();
    assert_eq!(
        read_only.pack(1).unwrap_err().kind(),
        ErrorKind::WriteProtected
    );
}

#[test]
fn the_largest_dynamic_disk_is_reached_by_growing() {
    let storage = Arc::new(create(&parameters(DiskType::Dynamic, GIB)));
    let mut image = VhdImage::open(storage.clone(), true).unwrap();
    image.write_at(0, &[1; 512], &NoBacking).unwrap();
    image
        .resize(2040 * GIB, &NoBacking, &mut |_, _| Ok(()))
        .unwrap();
    image
        .write_at(2040 * GIB - 512, &[2; 512], &NoBacking)
        .unwrap();
    image.close().unwrap();
    assert_eq!(codes(&storage), [""; 0]);
    let image = open(&storage, false).unwrap();
    assert_eq!(
        read_range(&image, &NoBacking, 2040 * GIB - 512..2040 * GIB),
        [2; 512]
    );
}

#[test]
fn packing_takes_one_pair_of_barriers_for_all_calls() {
    let storage = filled(DiskType::Dynamic);
    let recorder = Recorder::new(&storage);
    let mut image = VhdImage::open(recorder.clone(), true).unwrap();
    release_zeros(&mut image, &NoBacking).unwrap();
    image.flush().unwrap();
    let before = recorder.flushes.load(Ordering::SeqCst);
    let barriers = || recorder.flushes.load(Ordering::SeqCst) - before;
    let first = image.pack(BLOCK + 512).unwrap();
    assert_eq!(first.moved, BLOCK + 512);
    assert!(first.left > 0);
    assert_eq!(barriers(), 0);
    pack_all(&mut image, BLOCK + 512).unwrap();
    // What was given back is cut off in three pieces here, each behind its footer.
    assert_eq!(barriers(), 2 + 3 + 1, "for the moves and for cutting off");
}
