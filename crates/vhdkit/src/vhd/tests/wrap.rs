//! Raw to fixed and back, in place.

use std::sync::atomic::Ordering;

use super::storage::{Recorder, apply_torn};
use super::*;
use crate::error::ErrorKind;
use crate::vhd::{append_footer, is_exact_fixed, strip_footer};

const SIZE: u64 = 10 * 512;

fn raw() -> MemoryStorage {
    MemoryStorage::from_bytes(&[0x5A; 5120])
}

#[test]
fn a_footer_makes_a_raw_file_a_fixed_disk_and_without_it_it_is_raw_again() {
    let storage = raw();
    append_footer(&storage, &parameters(DiskType::Fixed, SIZE)).unwrap();
    assert!(is_exact_fixed(&storage).unwrap());
    assert_eq!(codes(&storage), [""; 0]);
    let image = open(&storage, false).unwrap();
    assert_eq!(read_all(&image, &crate::image::NoBacking), raw().to_vec());
    strip_footer(&storage).unwrap();
    assert_eq!(storage.to_vec(), raw().to_vec());
}

#[test]
fn a_crash_or_a_failing_call_leaves_the_one_or_the_other() {
    let vhd = raw();
    append_footer(&vhd, &parameters(DiskType::Fixed, SIZE)).unwrap();
    let states = [raw().to_vec(), vhd.to_vec()];
    for (start, append) in [(raw(), true), (vhd, false)] {
        let run = |storage: &Recorder| {
            if append {
                append_footer(storage, &parameters(DiskType::Fixed, SIZE))
            } else {
                strip_footer(storage)
            }
        };
        let recorder = Recorder::new(&start);
        let expected = states.clone();
        *recorder.on_flush.lock().unwrap() = Some(Box::new(move |media, changes| {
            for subset in 0..1_u32 << changes.len() {
                let crashed = media.clone();
                for (i, change) in changes.iter().enumerate() {
                    apply_torn(&crashed, change, || subset >> i & 1 == 1);
                }
                assert!(expected.contains(&crashed.to_vec()));
            }
        }));
        run(&recorder).unwrap();
        assert!(recorder.media.lock().unwrap().1.is_empty(), "durable");
        for call in 1.. {
            let recorder = Recorder::new(&start);
            recorder.fail_at.store(call, Ordering::SeqCst);
            let result = run(&recorder);
            if result.is_ok() {
                break;
            }
            assert!(states.contains(&recorder.now.to_vec()), "call {call}");
        }
    }
}

#[test]
fn what_would_be_mistaken_is_refused_and_stays() {
    let refused = |storage: &MemoryStorage, size: u64, disk_type: DiskType| {
        let before = storage.to_vec();
        let error = append_footer(storage, &parameters(disk_type, size)).unwrap_err();
        assert_eq!(storage.to_vec(), before);
        error.kind()
    };
    let odd = MemoryStorage::from_bytes(&[1; 700]);
    assert_eq!(refused(&odd, 700, DiskType::Fixed), ErrorKind::InvalidSize);
    assert_eq!(
        refused(&raw(), SIZE + 512, DiskType::Fixed),
        ErrorKind::InvalidSize
    );
    assert_eq!(
        refused(&raw(), SIZE, DiskType::Dynamic),
        ErrorKind::InvalidType
    );
    assert_eq!(
        refused(&MemoryStorage::new(), 0, DiskType::Fixed),
        ErrorKind::InvalidSize
    );
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let vhd = create(&parameters(disk_type, 64 * 1024));
        let length = vhd.len().unwrap();
        assert_eq!(
            refused(&vhd, length, DiskType::Fixed),
            ErrorKind::InvalidType
        );
    }
    // A disk whose content is a VHD file would open as that.
    let nested = raw();
    append_footer(&nested, &parameters(DiskType::Fixed, SIZE)).unwrap();
    let footer = footer_at(&nested, SIZE);
    let outer = create(&parameters(DiskType::Fixed, SIZE + 512));
    outer.write_at(SIZE, footer.as_bytes()).unwrap();
    assert_eq!(
        strip_footer(&outer).unwrap_err().kind(),
        ErrorKind::InvalidType
    );
    let dynamic = create(&parameters(DiskType::Dynamic, 64 * 1024));
    assert_eq!(
        strip_footer(&dynamic).unwrap_err().kind(),
        ErrorKind::InvalidType
    );
    assert_eq!(
        strip_footer(&raw()).unwrap_err().kind(),
        ErrorKind::FooterMissing
    );
}
