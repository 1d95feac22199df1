//! Blocks that are taken over from another file: which are shared with the bitmaps between them, and what they read.

use std::sync::Mutex;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::image::{ExtentKind, SourceRun};
use crate::num::KIB;

/// A file on a file system that shares blocks of 4096 bytes, and says which it was asked to share: where they lie in the
/// source and here, and how many bytes.
#[derive(Default)]
struct Sharing {
    now: MemoryStorage,
    shared: Mutex<Vec<(u64, u64, u64)>>,
    flushes: Mutex<u64>,
    fails: bool,
}

impl Storage for Sharing {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.now.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.now.write_at(offset, data)
    }

    fn flush(&self) -> Result<()> {
        *self.flushes.lock().unwrap() += 1;
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        self.now.len()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.now.set_len(length)
    }

    fn can_clone_from(&self, _source: &dyn Storage) -> bool {
        true
    }

    fn clone_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        length: u64,
    ) -> Result<bool> {
        if self.fails {
            return Err(Error::new(ErrorKind::DiskFull, "as told"));
        }
        if !(source_offset | offset | length).is_multiple_of(4096) {
            return Ok(false);
        }
        let mut bytes = vec![0; to_usize(length)];
        source.read_at(source_offset, &mut bytes)?;
        self.now.write_at(offset, &bytes)?;
        let mut shared = self.shared.lock().unwrap();
        shared.push((source_offset, offset, length));
        Ok(true)
    }
}

const BLOCK: u64 = 512 * KIB;
/// From one block's data to that of the next.
const STRIDE: u64 = BLOCK + 4096;

/// A disk with blocks of 512 KiB that ends in the middle of the last one, written in these ranges, in this order. Each
/// byte says where it is and in which file.
fn written(disk_type: DiskType, blocks: u64, ranges: &[Range<u64>], file: u64) -> MemoryStorage {
    let mut parameters = parameters(disk_type, blocks * BLOCK - BLOCK / 2);
    if disk_type != DiskType::Fixed {
        parameters.block_size = Some(BLOCK);
    }
    let storage = Arc::new(create(&parameters));
    let image = VhdImage::open(storage.clone(), true).unwrap();
    for range in ranges {
        let bytes: Vec<u8> = (range.start..range.end)
            .map(|at| content(at, file))
            .collect();
        image.write_at(range.start, &bytes, &NONE).unwrap();
    }
    image.close().unwrap();
    drop(image);
    (*storage).clone()
}

fn content(at: u64, file: u64) -> u8 {
    u8::try_from((at / 512 * 7 + at % 512 + file * 91) % 255 + 1).unwrap()
}

const NONE: Pattern = Pattern { bytes: Vec::new() };

fn whole(blocks: impl IntoIterator<Item = u64>, end: u64) -> Vec<Range<u64>> {
    blocks
        .into_iter()
        .map(|block| block * BLOCK..((block + 1) * BLOCK).min(end))
        .collect()
}

/// Everything of the child that is data, in runs that stay within a block.
fn runs_of(child: &VhdImage) -> Vec<SourceRun> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < child.virtual_size() {
        let n = (child.virtual_size() - at).min(BLOCK - at % BLOCK);
        let extent = child.map(at, n).unwrap();
        if let ExtentKind::Data { storage_offset } = extent.kind {
            runs.push(SourceRun {
                offset: at,
                storage_offset,
                length: extent.length,
            });
        }
        at += extent.length;
    }
    runs
}

/// Takes all of a child over into a target, and compares what the target reads then. Returns what was shared, in blocks
/// of the file: where in the source, how many bytes; the runs that were not taken; and the target.
fn merged(
    child: &MemoryStorage,
    target: &MemoryStorage,
) -> (Vec<(u64, u64, u64)>, Vec<SourceRun>, MemoryStorage) {
    let sharing = Arc::new(Sharing {
        now: target.clone(),
        ..Sharing::default()
    });
    let child = open(child, false).unwrap();
    let before = open(target, false).unwrap();
    let old = read_all(&before, &NONE);
    let expected = read_all(&child, &Pattern { bytes: old });
    let image = VhdImage::open(sharing.clone(), true).unwrap();
    let copied = std::sync::atomic::AtomicU64::new(0);
    let told = |bytes| {
        copied.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    let runs = runs_of(&child);
    let rest = image.copy_from(&**child.storage(), runs, &told).unwrap();
    for run in &rest {
        let mut bytes = vec![0; to_usize(run.length)];
        child
            .storage()
            .read_at(run.storage_offset, &mut bytes)
            .unwrap();
        image.write_at(run.offset, &bytes, &NONE).unwrap();
    }
    assert_eq!(read_all(&image, &NONE), expected);
    image.close().unwrap();
    drop(image);
    assert_eq!(codes(&sharing.now), [""; 0]);
    let image = open(&sharing.now, false).unwrap();
    assert_eq!(read_all(&image, &NONE), expected, "opened again");
    let shared = sharing.shared.lock().unwrap().clone();
    (shared, rest, sharing.now.clone())
}

fn lengths(shared: &[(u64, u64, u64)]) -> Vec<u64> {
    shared.iter().map(|&(.., length)| length).collect()
}

/// The length of so many neighbours.
fn together(blocks: u64) -> u64 {
    (blocks - 1) * STRIDE + BLOCK
}

#[test]
fn full_neighbours_are_shared_together_with_the_bitmaps_between_them() {
    let size = 9 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 9, &whole(0..9, size), 1);
    let target = written(DiskType::Dynamic, 9, &[], 2);
    let (shared, rest, _) = merged(&child, &target);
    // The last block ends with the disk: its bitmap is its own.
    assert_eq!(lengths(&shared), [together(8), BLOCK / 2]);
    assert!(rest.is_empty());
    let target = written(DiskType::Differencing, 9, &[], 2);
    let (shared, rest, _) = merged(&child, &target);
    assert_eq!(lengths(&shared), [together(8), BLOCK / 2]);
    assert!(rest.is_empty());
}

#[test]
fn blocks_that_are_here_in_part_end_a_run_and_are_copied() {
    let size = 9 * BLOCK - BLOCK / 2;
    let mut ranges = whole(0..9, size);
    ranges[3].end -= 512;
    ranges[4].start += 1024;
    let child = written(DiskType::Differencing, 9, &ranges, 1);
    let (shared, rest, _) = merged(&child, &written(DiskType::Dynamic, 9, &[], 2));
    // In a dynamic target what is missing is zero.
    assert_eq!(lengths(&shared)[0], together(3));
    assert!(lengths(&shared).contains(&together(3)));
    assert!(rest.is_empty());
    let (shared, rest, _) = merged(&child, &written(DiskType::Differencing, 9, &[], 2));
    assert_eq!(lengths(&shared), [together(3), together(3), BLOCK / 2]);
    assert_eq!(rest.len(), 2);
}

#[test]
fn blocks_in_the_order_of_their_writing_are_shared_one_by_one() {
    let size = 9 * BLOCK - BLOCK / 2;
    let child = written(
        DiskType::Differencing,
        9,
        &whole([7, 3, 4, 5, 1, 0], size),
        1,
    );
    let (shared, rest, target) = merged(&child, &written(DiskType::Dynamic, 9, &[], 2));
    let mut lengths = lengths(&shared);
    lengths.sort_unstable();
    assert_eq!(lengths, [BLOCK, BLOCK, BLOCK, together(3)]);
    assert!(rest.is_empty());
    // The target has them in the order of the disk.
    let image = open(&target, false).unwrap();
    assert_eq!(image.usage().unwrap().displaced_blocks, 0);
}

#[test]
fn blocks_that_the_target_has_stay_in_their_places() {
    let size = 9 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 9, &whole(0..9, size), 1);
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let target = written(disk_type, 9, &whole([5, 6, 2], size), 2);
        let (shared, rest, after) = merged(&child, &target);
        let mut lengths = lengths(&shared);
        lengths.sort_unstable();
        // 0 and 1; 2; 3 and 4; 5 and 6; 7; the last one.
        let two = together(2);
        assert_eq!(lengths, [BLOCK / 2, BLOCK, BLOCK, two, two, two]);
        assert!(rest.is_empty());
        let (before, after) = (open(&target, false).unwrap(), open(&after, false).unwrap());
        for block in [2, 5, 6] {
            let place = |image: &VhdImage| image.map(block * BLOCK, BLOCK).unwrap().kind;
            assert_eq!(place(&before), place(&after));
        }
    }
    // Here in part: only the image can complete it.
    let partial = 2 * BLOCK + 512..2 * BLOCK + 1024;
    let target = written(DiskType::Differencing, 9, std::slice::from_ref(&partial), 2);
    let (_, rest, _) = merged(&child, &target);
    assert_eq!(rest.len(), 1);
}

#[test]
fn a_bitmap_that_is_not_that_of_a_full_block_is_not_taken() {
    let size = 4 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 4, &whole(0..4, size), 1);
    let image = open(&child, false).unwrap();
    let runs = runs_of(&image);
    drop(image);
    // A source may be of any format: what lies before the data decides.
    let bitmap = runs[1].storage_offset - 512;
    child.write_at(bitmap + 100, &[0xFE]).unwrap();
    let sharing = Arc::new(Sharing {
        now: written(DiskType::Differencing, 4, &[], 2),
        ..Sharing::default()
    });
    let image = VhdImage::open(sharing.clone(), true).unwrap();
    image.copy_from(&child, runs, &|_| ()).unwrap();
    image.close().unwrap();
    let shared = sharing.shared.lock().unwrap().clone();
    assert_eq!(lengths(&shared), [BLOCK, together(2), BLOCK / 2]);
    let image = open(&sharing.now, false).unwrap();
    let extent = image.map(BLOCK, BLOCK).unwrap();
    assert_eq!(extent.length, BLOCK, "all of it is here");
}

#[test]
fn blocks_that_other_programs_do_not_align_are_copied() {
    let size = 6 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 6, &whole(0..6, size), 1);
    let target = written(DiskType::Dynamic, 6, &whole(0..2, size), 2);
    for (child, target) in [
        (&moved_together(&child), &target),
        (&child, &moved_together(&target)),
    ] {
        let (_, rest, _) = merged(child, target);
        assert!(rest.is_empty());
    }
    let (shared, ..) = merged(&moved_together(&child), &target);
    // One in eight happens to be aligned.
    assert!(shared.iter().all(|&(.., length)| length <= BLOCK));
}

/// The same disk with each block directly behind the one before, as other programs write it.
fn moved_together(storage: &MemoryStorage) -> MemoryStorage {
    let image = open(storage, false).unwrap();
    let sparse = image.sparse.as_ref().unwrap();
    let total = sparse.tables.bat.shape.total();
    let mut places: Vec<(u64, u64)> = sparse.tables.bat.placed().collect();
    places.sort_unstable_by_key(|&(_, at)| at);
    let copy = storage.clone();
    let mut to = super::super::image::end_of_structures(&sparse.structures);
    for (block, at) in places {
        let mut bytes = vec![0; to_usize(total)];
        storage.read_at(at, &mut bytes).unwrap();
        copy.write_at(to, &bytes).unwrap();
        let entry = u32::try_from(to / 512).unwrap().to_be_bytes();
        copy.write_at(sparse.tables.bat.offset + block * 4, &entry)
            .unwrap();
        to += total;
    }
    copy.write_at(to, footer_at(storage, 0).as_bytes()).unwrap();
    copy.set_len(to + 512).unwrap();
    copy
}

#[test]
fn a_fixed_target_takes_each_block_to_its_place() {
    let size = 4 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 4, &whole(0..4, size), 1);
    let (shared, rest, _) = merged(&child, &written(DiskType::Fixed, 4, &[], 2));
    assert_eq!(lengths(&shared), [BLOCK, BLOCK, BLOCK, BLOCK / 2]);
    assert!(rest.is_empty());
}

#[test]
fn blocks_that_could_not_be_copied_are_not_shown() {
    let size = 4 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 4, &whole(0..4, size), 1);
    let target = written(DiskType::Differencing, 4, &whole([2], size), 2);
    let old = read_all(&open(&target, false).unwrap(), &NONE);
    let sharing = Arc::new(Sharing {
        now: target.clone(),
        fails: true,
        ..Sharing::default()
    });
    let image = VhdImage::open(sharing.clone(), true).unwrap();
    let child = open(&child, false).unwrap();
    let runs = runs_of(&child);
    image
        .copy_from(&**child.storage(), runs, &|_| ())
        .unwrap_err();
    assert_eq!(read_all(&image, &NONE), old);
    // The places are used by whoever comes next, and hold nothing of what was tried.
    image.write_at(512, &[9; 512], &NONE).unwrap();
    image.close().unwrap();
    assert_eq!(codes(&sharing.now), [""; 0]);
    let mut expected = old;
    expected[512..1024].fill(9);
    assert_eq!(
        read_all(&open(&sharing.now, false).unwrap(), &NONE),
        expected
    );
}

#[test]
fn a_file_grows_once_for_all_blocks_that_are_expected() {
    let size = 9 * BLOCK - BLOCK / 2;
    let child = written(DiskType::Differencing, 9, &whole(0..6, size), 1);
    let child = open(&child, false).unwrap();
    let flushes = |expected| {
        let sharing = Arc::new(Sharing {
            now: written(DiskType::Dynamic, 9, &[], 2),
            ..Sharing::default()
        });
        let image = VhdImage::open(sharing.clone(), true).unwrap();
        image.expect_blocks(expected);
        let runs = runs_of(&child);
        image.copy_from(&**child.storage(), runs, &|_| ()).unwrap();
        image.close().unwrap();
        let length = sharing.now.len().unwrap();
        let flushes = *sharing.flushes.lock().unwrap();
        (flushes, length)
    };
    // What was found made durable; the footer at the new end; the blocks; the table.
    let (all_at_once, length) = flushes(6);
    assert_eq!(all_at_once, 4);
    // Too many are cut off again, too few are no harm.
    for other in [0, 2, 9] {
        let (others, same) = flushes(other);
        assert!(others > all_at_once, "{other}: {others}");
        assert_eq!(same, length, "{other}");
    }
}
