//! Bugs that other programs had with these formats, each as a test. The numbers name the stories wherever the project
//! speaks of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::Arc;

use vhdkit::disk::{Layer, open_image};
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::{ErrorKind, VirtualDisk};
use vhdkit_testkit::crash::{CrashStorage, Fate, Op};
use vhdkit_testkit::fault::{Call, FaultStorage};
use vhdkit_testkit::guest::{GuestOp, pattern};
use vhdkit_testkit::history::{CrashOptions, assert_clean, run_crash_history};
use vhdkit_testkit::model::{assert_reads, blank, content_of, first_difference, is_zero};
use vhdkit_testkit::patch::{self, vhdx};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant, new_image};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn parameters(
    format: Format,
    disk_type: DiskType,
    virtual_size: u64,
    block_size: Option<u64>,
) -> CreateParameters {
    CreateParameters {
        format,
        disk_type,
        virtual_size,
        block_size,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        parent: None,
        identifiers: IdentifierSource::seeded(1),
        created: 1_700_000_000,
    }
}

fn dynamic_vhdx(virtual_size: u64, block_size: u64) -> Arc<MemoryStorage> {
    new_image(&parameters(
        Format::Vhdx,
        DiskType::Dynamic,
        virtual_size,
        Some(block_size),
    ))
    .unwrap()
}

fn open(storage: Arc<dyn Storage>, format: Format, writable: bool) -> vhdkit::Result<VirtualDisk> {
    let image = open_image(storage, format, writable)?;
    VirtualDisk::from_layers(vec![Layer::new(image, "disk")], writable)
}

fn read(disk: &VirtualDisk, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    disk.read_at(offset, &mut bytes)
        .unwrap_or_else(|e| panic!("{e}"));
    bytes
}

fn variants(format: Format, disk_type: DiskType) -> Vec<Variant> {
    Variant::small()
        .into_iter()
        .filter(|v| v.format == format && v.disk_type == disk_type)
        .collect()
}

/// The log record of a page of the BAT must carry every entry of it, whichever was changed last.
#[test]
fn t1_every_bat_slot_of_a_page_survives_a_crash_after_the_log_was_written() {
    // 600 blocks of 1 MiB fill one page of the BAT and a part of the next. Half of them are there already.
    for parity in [0, 1] {
        let base = dynamic_vhdx(600 * MIB, MIB);
        let disk = open(base.clone(), Format::Vhdx, true).unwrap();
        let there = |block: u64| block % 2 == parity;
        for block in (0..600).filter(|&b| there(b)) {
            disk.write_at(block * MIB, &pattern(2, block * MIB, 512))
                .unwrap();
        }
        disk.close().unwrap();
        for slot in (0..512).filter(|&s| !there(s)) {
            let storage = CrashStorage::new(&base);
            let disk = open(storage.clone(), Format::Vhdx, true).unwrap();
            disk.write_at(slot * MIB, &pattern(3, slot * MIB, 512))
                .unwrap();
            disk.flush().unwrap();
            // Everything that is durable now and nothing more.
            let epoch = storage.recording().epochs().pop().unwrap();
            let image = epoch.image(&vec![Fate::Lost; epoch.pending.len()]);
            let replayed = open(Arc::new(image), Format::Vhdx, false).unwrap();
            for block in 0..600 {
                let expected = match block {
                    _ if block == slot => pattern(3, block * MIB, 512),
                    _ if there(block) => pattern(2, block * MIB, 512),
                    _ => vec![0; 512],
                };
                assert!(
                    read(&replayed, block * MIB, 512) == expected,
                    "block {block} after a crash with slot {slot} in the log"
                );
            }
        }
    }
}

#[test]
fn t2_a_fixed_file_never_changes_its_length() {
    for variant in Variant::small()
        .iter()
        .filter(|v| v.disk_type == DiskType::Fixed)
    {
        let disk = variant.make(1);
        let length = disk.layers[0].len().unwrap();
        let open = disk.open(true).unwrap();
        let shape = variant.shape();
        for op in shape.random_ops(60, &mut Rng::new(2)) {
            op.run(&open).unwrap();
            assert_eq!(disk.layers[0].len().unwrap(), length, "{op:?}");
        }
        let last = shape.virtual_size - 1;
        open.write_at(last, &[1]).unwrap();
        open.close().unwrap();
        assert_eq!(disk.layers[0].len().unwrap(), length, "{}", variant.name());
    }
}

/// A child shows its parent's data wherever its own bitmaps say so, for every pattern of a byte of the bitmap.
#[test]
fn t3_a_child_follows_its_bitmap_in_every_pattern() {
    for format in [Format::Vhd, Format::Vhdx] {
        let variant = Variant {
            format,
            disk_type: DiskType::Differencing,
            virtual_size: 2 * MIB,
            block_size: Some(if format == Format::Vhd { 2 * MIB } else { MIB }),
            sector_size: 512,
            depth: 1,
        };
        let base = variant.parameters(DiskType::Dynamic, None);
        let mut disk = TestDisk {
            variant: variant.clone(),
            layers: vec![new_image(&base).unwrap()],
            content: blank(variant.virtual_size),
        };
        disk.fill(&[GuestOp::write(0, 2 * MIB, 2)]).unwrap();
        disk.add_child().unwrap();
        let mut writes = Vec::new();
        for pattern in 0..256_u64 {
            for bit in (0..8).filter(|bit| pattern >> bit & 1 == 1) {
                writes.push(GuestOp::write((pattern * 8 + bit) * 512, 512, 3));
            }
        }
        disk.fill(&writes).unwrap();
        assert_reads(&disk.open(false).unwrap(), &disk.content, format.name());
    }
}

/// Nothing moves at the ends of a chunk, whatever the sizes of blocks and sectors.
#[test]
fn t4_both_sides_of_every_chunk_boundary_are_where_they_belong() {
    for sector_size in [512_u32, 4096] {
        for shift in 0..=8 {
            let block = MIB << shift;
            let chunk = (1 << 23) * u64::from(sector_size);
            for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
                let variant = Variant {
                    format: Format::Vhdx,
                    disk_type,
                    virtual_size: 3 * chunk + block,
                    block_size: Some(block),
                    sector_size,
                    depth: if disk_type == DiskType::Dynamic { 1 } else { 2 },
                };
                let mut disk = variant.make(4);
                let sector = u64::from(sector_size);
                let mut ops = Vec::new();
                for (i, edge) in [chunk, 2 * chunk, 3 * chunk].into_iter().enumerate() {
                    ops.push(GuestOp::write(edge - sector, sector, 20 + i as u32));
                    ops.push(GuestOp::write(edge, sector, 30 + i as u32));
                    ops.push(GuestOp::write(edge - 2 * block, sector, 40 + i as u32));
                }
                disk.fill(&ops)
                    .unwrap_or_else(|e| panic!("{}: {e}", variant.name()));
                assert_reads(&disk.open(false).unwrap(), &disk.content, &variant.name());
            }
        }
    }
}

/// The second time the sector is here already, and the bit after it is another chunk's.
#[test]
fn t4_a_part_of_the_last_sector_of_a_chunk_is_written_twice() {
    let variant = Variant {
        format: Format::Vhdx,
        disk_type: DiskType::Differencing,
        virtual_size: 5 * GIB,
        block_size: Some(2 * MIB),
        sector_size: 512,
        depth: 2,
    };
    let mut disk = variant.make(4);
    disk.fill(&[
        GuestOp::write(4 * GIB - 200, 100, 2),
        GuestOp::write(4 * GIB - 100, 100, 3),
    ])
    .unwrap();
    assert_reads(&disk.open(false).unwrap(), &disk.content, "leaf");
}

#[test]
fn t5_the_first_write_to_a_block_lands_at_its_offset() {
    for variant in Variant::small() {
        let disk = variant.make(3);
        let shape = variant.shape();
        let (block, sector) = (shape.block_size, shape.sector_size);
        let sectors = block / sector;
        for k in (0..9)
            .map(|i| i * 13)
            .chain([sectors / 2, sectors - 2, sectors - 1])
        {
            let mut fork = disk.fork();
            let op = GuestOp::write(block + k % sectors * sector, sector, 9);
            fork.fill(&[op.within(shape.virtual_size)]).unwrap();
            assert_reads(&fork.open(false).unwrap(), &fork.content, &variant.name());
        }
    }
}

/// At every moment of a session one valid header is on the medium.
#[test]
fn t6_one_valid_header_remains_after_a_crash_at_any_header_write() {
    let base = dynamic_vhdx(8 * MIB, MIB);
    let storage = CrashStorage::new(&base);
    let disk = open(storage.clone(), Format::Vhdx, true).unwrap();
    disk.write_at(0, &[1; 4096]).unwrap();
    disk.flush().unwrap();
    disk.write_at(MIB, &[1; 4096]).unwrap();
    disk.close().unwrap();
    let mut headers = 0;
    for epoch in storage.recording().epochs() {
        let of_header = |op: &Op| matches!(op, Op::Write { offset, .. } if *offset < 0x3_0000);
        let here = epoch.pending.iter().filter(|op| of_header(op)).count();
        assert!(here <= 1, "two headers in one epoch can both be torn");
        headers += here;
        for sectors in 0..8 {
            let fates: Vec<Fate> = epoch
                .pending
                .iter()
                .map(|op| {
                    if of_header(op) {
                        Fate::Before(sectors)
                    } else {
                        Fate::Whole
                    }
                })
                .collect();
            let image = epoch.image(&fates);
            open(Arc::new(image), Format::Vhdx, false).unwrap_or_else(|e| panic!("{e}"));
        }
    }
    assert!(headers >= 2, "a session that writes changes its headers");
    assert!(
        storage.recording().ops().iter().all(
            |op| !matches!(op, Op::Write { offset, .. } | Op::Zero { offset, .. } if *offset < 0x1_0000)
        ),
        "the identifier is never written again"
    );
}

#[test]
fn t8_disks_with_sectors_of_4096_bytes_take_any_range() {
    for variant in Variant::small().iter().filter(|v| v.sector_size == 4096) {
        let mut disk = variant.make(3);
        let ops: Vec<GuestOp> = (0..64)
            .map(|i| GuestOp::write(i * 8192 + i * 77, 512 + i * 13, 2 + i as u32))
            .collect();
        disk.fill(&ops).unwrap();
        assert_reads(&disk.open(false).unwrap(), &disk.content, &variant.name());
    }
}

/// A flush reaches the storage, and costs one barrier once everything is allocated; allocations are committed in
/// groups.
#[test]
fn t9_a_flush_is_a_barrier_and_a_thousand_first_writes_need_only_a_few() {
    // A VHD has no log: each of its groups takes three barriers (footer, blocks, table).
    for (format, limit) in [(Format::Vhdx, 8), (Format::Vhd, 24), (Format::Raw, 1)] {
        let storage = new_image(&parameters(format, DiskType::Dynamic, 3 * GIB, None)).unwrap();
        let counted = FaultStorage::new(storage);
        let disk = open(counted.clone(), format, true).unwrap();
        let before = counted.counts();
        for block in 0..1000 {
            disk.write_at(block * 2 * MIB, &[7; 4096]).unwrap();
        }
        disk.flush().unwrap();
        let flushes = counted.counts().since(&before).of(Call::Flush);
        assert!(
            (1..=limit).contains(&flushes),
            "{}: 1000 allocating writes and a flush made {flushes} barriers",
            format.name()
        );
        for block in 0..10 {
            let before = counted.counts();
            disk.write_at(block * 2 * MIB, &[8; 4096]).unwrap();
            disk.flush().unwrap();
            let made = counted.counts().since(&before);
            assert_eq!(made.of(Call::Flush), 1, "{}: steady state", format.name());
            assert_eq!(made.of(Call::Write), 1, "{}: steady state", format.name());
        }
        disk.close().unwrap();
    }
}

#[test]
fn t10_a_header_whose_sequence_number_cannot_grow_is_not_wrapped() {
    let storage = dynamic_vhdx(8 * MIB, MIB);
    for (i, at) in vhdx::HEADERS.into_iter().enumerate() {
        vhdx::edit(&*storage, at, vhdx::HEADER_LENGTH, |header| {
            header[8..16].copy_from_slice(&(u64::MAX - 1 + i as u64).to_le_bytes());
        });
    }
    open(storage.clone(), Format::Vhdx, false).unwrap();
    let result = open(storage.clone(), Format::Vhdx, true)
        .and_then(|disk| disk.write_at(0, &[1; 512]).and_then(|()| disk.close()));
    // Refusing is right; if it worked, what was written must be the current content.
    let bytes = read(&open(storage, Format::Vhdx, false).unwrap(), 0, 512);
    assert!(result.is_err() && is_zero(&bytes) || result.is_ok() && bytes == [1; 512]);
}

fn with_log(entries: &[(u64, vhdx::LogEntry)]) -> Arc<MemoryStorage> {
    let storage = dynamic_vhdx(8 * MIB, MIB);
    let disk = open(storage.clone(), Format::Vhdx, true).unwrap();
    disk.write_at(0, &pattern(2, 0, MIB)).unwrap();
    disk.close().unwrap();
    for (position, entry) in entries {
        vhdx::put_in_log(&*storage, *position, &entry.to_bytes());
    }
    vhdx::set_log_guid(&*storage, GUID);
    storage
}

const GUID: [u8; 16] = *b"a log identifier";

/// A log entry that makes block 1 of the disk point to a block at 64 MiB.
fn entry_for_block_1(storage_length: u64, last: u64) -> vhdx::LogEntry {
    let sample = dynamic_vhdx(8 * MIB, MIB);
    let disk = open(sample.clone(), Format::Vhdx, true).unwrap();
    disk.write_at(0, &pattern(2, 0, MIB)).unwrap();
    disk.close().unwrap();
    let page_at = vhdx::bat_entry_offset(&*sample, 0);
    let mut page = patch::get(&*sample, page_at, 4096);
    page[8..16].copy_from_slice(&((64 * MIB) | 6).to_le_bytes());
    vhdx::LogEntry {
        guid: GUID,
        sequence: 7,
        tail: 0,
        flushed_file_offset: storage_length,
        last_file_offset: last,
        changes: vec![vhdx::LogChange::Page(page_at, page)],
    }
}

#[test]
fn t11_a_log_built_by_hand_reads_the_same_read_only_and_replayed() {
    let storage = with_log(&[(0, entry_for_block_1(4 * MIB, 65 * MIB))]);
    let watched = FaultStorage::new(storage.clone());
    let disk = open(watched.clone(), Format::Vhdx, false).unwrap_or_else(|e| panic!("{e}"));
    assert!(disk.info().log_replayed);
    let before = content_of(&disk).unwrap();
    assert_eq!(
        read(&disk, MIB, 512),
        vec![0; 512],
        "a block past the file's old end"
    );
    assert_eq!(read(&disk, 0, MIB), pattern(2, 0, MIB));
    assert_eq!(watched.counts().total(Call::CHANGING), 0);
    let disk = open(storage.clone(), Format::Vhdx, true).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(first_difference(&before, &content_of(&disk).unwrap()), None);
    disk.close().unwrap();
    assert_eq!(
        vhdx::bat_entry(&*storage, 1),
        (64 * MIB) | 6,
        "the change is in place"
    );
    let disk = open(storage, Format::Vhdx, false).unwrap();
    assert!(!disk.info().log_replayed);
    assert_eq!(first_difference(&before, &content_of(&disk).unwrap()), None);
}

/// A block that is not present has no place in the file, whatever its entry's offset says.
#[test]
fn t12_blocks_that_are_not_present_read_as_zeros_whatever_their_offset_says() {
    for state in 0..=3_u64 {
        for place in [0, MIB, 5 * MIB] {
            let storage = dynamic_vhdx(8 * MIB, MIB);
            let disk = open(storage.clone(), Format::Vhdx, true).unwrap();
            disk.write_at(0, &pattern(2, 0, 2 * MIB)).unwrap();
            disk.close().unwrap();
            vhdx::set_bat_entry(&*storage, 1, place | state);
            let opened = open(storage.clone(), Format::Vhdx, false).and_then(|disk| {
                let mut bytes = vec![1; 4096];
                disk.read_at(MIB, &mut bytes)?;
                Ok(bytes)
            });
            match opened {
                Ok(bytes) => assert!(is_zero(&bytes), "state {state}, offset {place:#x}"),
                // A soft anchor outside of where blocks can be may be called damage.
                Err(e) => assert!(
                    state % 2 == 1
                        && place != 0
                        && e.kind() == ErrorKind::BlockAllocationTableCorrupt,
                    "state {state}, offset {place:#x}: {e}"
                ),
            }
        }
    }
}

#[test]
fn t13_the_lengths_in_a_log_entry_are_heeded() {
    // Shorter than what was flushed: somebody cut the file.
    let cut = with_log(&[(0, entry_for_block_1(100 * MIB, 100 * MIB))]);
    for writable in [false, true] {
        let error = open(cut.clone(), Format::Vhdx, writable)
            .err()
            .expect("refused");
        assert!(
            matches!(
                error.kind(),
                ErrorKind::FileCorrupt | ErrorKind::InvalidFileSize
            ),
            "{error}"
        );
    }
    // Shorter than what was allocated: made longer.
    let short = with_log(&[(0, entry_for_block_1(4 * MIB, 65 * MIB))]);
    open(short.clone(), Format::Vhdx, true)
        .unwrap()
        .close()
        .unwrap();
    assert!(short.len().unwrap() >= 65 * MIB);
}

#[test]
fn t13_of_the_entries_in_a_log_only_the_newest_complete_sequence_counts() {
    let entry = entry_for_block_1(4 * MIB, 65 * MIB);
    let length = entry.to_bytes().len() as u64;
    let foreign = vhdx::LogEntry {
        guid: [9; 16],
        sequence: 99,
        ..entry.clone()
    };
    let mut stale = entry.clone();
    stale.sequence = 3;
    stale.tail = 0x8_0000;
    if let vhdx::LogChange::Page(_, page) = &mut stale.changes[0] {
        page[8..16].fill(0xff); // nonsense, were it replayed
    }
    let mut torn = entry.clone();
    torn.sequence = 8;
    let torn_at = MIB - 4096 + length;
    // The entry wraps around the end of the ring; the one after it is torn; others are old or foreign.
    let wrapped = vhdx::LogEntry {
        tail: u32::try_from(MIB - 4096).unwrap(),
        ..entry
    };
    let storage = with_log(&[
        (MIB - 4096, wrapped),
        (0x4_0000, foreign),
        (0x8_0000, stale),
        (torn_at, torn),
    ]);
    let (log, _) = vhdx::log(&*storage);
    patch::put(&*storage, log + torn_at % MIB + 4096 + 100, &[0xee; 8]);
    let disk = open(storage.clone(), Format::Vhdx, false).unwrap_or_else(|e| panic!("{e}"));
    assert!(disk.info().log_replayed);
    assert_eq!(read(&disk, 0, MIB), pattern(2, 0, MIB));
    assert!(is_zero(&read(&disk, MIB, MIB)));
    open(storage.clone(), Format::Vhdx, true)
        .unwrap()
        .close()
        .unwrap();
    assert_eq!(vhdx::bat_entry(&*storage, 1), (64 * MIB) | 6);
}

/// The size of a VHD is its footer's current size, whatever the geometry and the creator say.
#[test]
fn t14_the_current_size_counts_whoever_made_the_disk() {
    for (creator, geometry) in [
        (*b"vpc ", [0, 1, 4, 17]),
        (*b"qemu", [0, 1, 4, 17]),
        (*b"win ", [0xff, 0xff, 16, 255]),
        (*b"d2v\0", [0xff, 0xff, 16, 255]),
        (*b"tap\0", [0, 0, 0, 0]),
        ([0; 4], [0, 0, 0, 0]),
    ] {
        for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
            let storage =
                new_image(&parameters(Format::Vhd, disk_type, 5 * MIB + 512, None)).unwrap();
            patch::vhd::edit_footers(&*storage, |footer| {
                footer[28..32].copy_from_slice(&creator);
                footer[56..60].copy_from_slice(&geometry);
                footer[40..48].copy_from_slice(&MIB.to_be_bytes());
            });
            let disk = open(storage, Format::Vhd, false).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(disk.virtual_size(), 5 * MIB + 512, "{creator:?}");
        }
    }
}

#[test]
fn t14_every_size_in_mib_is_kept_exactly() {
    for format in [Format::Vhd, Format::Vhdx] {
        for mib in (1..64).chain((64..4096).step_by(61)).chain([4096]) {
            let storage =
                new_image(&parameters(format, DiskType::Dynamic, mib * MIB, None)).unwrap();
            assert_eq!(
                open(storage, format, false).unwrap().virtual_size(),
                mib * MIB,
                "{}",
                format.name()
            );
        }
    }
}

/// Zeros written to a child hide the parent's data, in every shape of chain, also after a crash.
#[test]
fn t15_zeros_written_to_a_child_hide_the_parent() {
    for format in [Format::Vhd, Format::Vhdx] {
        for variant in variants(format, DiskType::Differencing) {
            let disk = variant.make(9);
            let block = variant.shape().block_size;
            let half = block / 2 / 4096 * 4096;
            for op in [
                GuestOp::zero(0, block),
                GuestOp::zero(half, block),
                GuestOp::write(half, block, 0),
                GuestOp::Zero {
                    offset: half,
                    length: 5000,
                    keep: true,
                },
                GuestOp::zero(3, 1000),
            ] {
                let mut fork = disk.fork();
                fork.fill(&[op]).unwrap();
                assert_reads(&fork.open(false).unwrap(), &fork.content, &variant.name());
            }
            run_crash_history(
                &disk,
                &[GuestOp::zero(half, block), GuestOp::Flush],
                &CrashOptions::default(),
            );
        }
    }
}

#[test]
fn t16_a_discard_never_brings_a_parents_data_back() {
    for format in [Format::Vhd, Format::Vhdx] {
        for variant in variants(format, DiskType::Differencing) {
            let disk = variant.make(10);
            let block = variant.shape().block_size;
            let mut fork = disk.fork();
            // Overwritten in the child, then discarded: zeros or the child's data, which `fill` verifies.
            fork.fill(&[
                GuestOp::write(0, 2 * block, 5),
                GuestOp::Flush,
                GuestOp::discard(0, block),
                GuestOp::discard(block + 4096, 8192),
                GuestOp::Reopen,
            ])
            .unwrap();
            assert_reads(&fork.open(false).unwrap(), &fork.content, &variant.name());
        }
    }
}

#[test]
fn t17_nothing_stops_at_two_or_four_gibibytes_nor_at_a_tebibyte() {
    for (format, size) in [
        (Format::Vhdx, 2 * TIB),
        (Format::Vhd, 2040 * GIB),
        (Format::Raw, 2 * TIB),
    ] {
        let storage = new_image(&parameters(format, DiskType::Dynamic, size, None)).unwrap();
        let disk = open(storage.clone(), format, true).unwrap();
        let places = [1 << 31, 1 << 32, 1 << 33, TIB, size - MIB];
        for (i, &edge) in places.iter().enumerate() {
            let at = edge - 3000;
            disk.write_at(at, &pattern(50 + i as u32, at, 6000))
                .unwrap();
        }
        disk.close().unwrap();
        let disk = open(storage, format, false).unwrap();
        for (i, &edge) in places.iter().enumerate() {
            let at = edge - 3000;
            assert_eq!(read(&disk, at, 6000), pattern(50 + i as u32, at, 6000));
        }
        assert_eq!(
            disk.read_at(size - 1, &mut [0; 2]).unwrap_err().kind(),
            ErrorKind::BeyondEnd
        );
    }
}

/// One damaged copy of a structure that has two is no reason to refuse the file.
#[test]
fn t26_one_damaged_copy_of_a_structure_is_not_missed() {
    let base = dynamic_vhdx(8 * MIB, MIB);
    let disk = open(base.clone(), Format::Vhdx, true).unwrap();
    disk.write_at(0, &pattern(2, 0, 2 * MIB)).unwrap();
    disk.close().unwrap();
    let copies = vhdx::HEADERS
        .iter()
        .map(|&at| (at, vhdx::HEADER_LENGTH as u64))
        .chain(
            vhdx::REGION_TABLES
                .iter()
                .map(|&at| (at, vhdx::REGION_TABLE_LENGTH as u64)),
        );
    for (at, length) in copies {
        for byte in (0..length).filter(|b| *b < 96 || b % 997 == 0 || *b == length - 1) {
            let damaged = Arc::new(MemoryStorage::clone(&base));
            let old = patch::get(&*damaged, at + byte, 1)[0];
            patch::put(&*damaged, at + byte, &[old ^ 0x40]);
            for writable in [false, true] {
                let disk = open(damaged.clone(), Format::Vhdx, writable)
                    .unwrap_or_else(|e| panic!("byte {byte} of the structure at {at:#x}: {e}"));
                assert_eq!(read(&disk, 0, 4096), pattern(2, 0, 4096));
                disk.close().unwrap();
            }
        }
    }
}

#[test]
fn t26_either_footer_of_a_dynamic_vhd_is_enough() {
    let base = new_image(&parameters(Format::Vhd, DiskType::Dynamic, 5 * MIB, None)).unwrap();
    let disk = open(base.clone(), Format::Vhd, true).unwrap();
    disk.write_at(0, &pattern(2, 0, 4096)).unwrap();
    disk.close().unwrap();
    for at in patch::vhd::footers(&*base) {
        for byte in 0..512 {
            let damaged = Arc::new(MemoryStorage::clone(&base));
            let old = patch::get(&*damaged, at + byte, 1)[0];
            patch::put(&*damaged, at + byte, &[old ^ 0x40]);
            for writable in [false, true] {
                let disk = open(damaged.clone(), Format::Vhd, writable)
                    .unwrap_or_else(|e| panic!("byte {byte} of the footer at {at:#x}: {e}"));
                assert_eq!(read(&disk, 0, 4096), pattern(2, 0, 4096));
                if writable {
                    disk.write_at(0, &pattern(2, 0, 4096)).unwrap();
                }
                disk.close().unwrap();
            }
            let file: Arc<dyn Storage> = damaged;
            assert_clean(&file, "after a session that wrote");
        }
    }
}

#[test]
fn t28_scattered_data_does_not_inflate_the_file() {
    for format in [Format::Vhdx, Format::Vhd] {
        let storage = new_image(&parameters(format, DiskType::Dynamic, 256 * MIB, None)).unwrap();
        let disk = open(storage.clone(), format, true).unwrap();
        for i in 0..16 {
            disk.write_at(i * 16 * MIB, &vec![1; 1 << 20]).unwrap();
        }
        disk.close().unwrap();
        let length = storage.len().unwrap();
        assert!(
            length <= 40 * MIB,
            "{}: 16 MiB of data became a file of {} MiB",
            format.name(),
            length / MIB
        );
    }
}

#[test]
fn t29_zeros_and_discards_do_not_make_the_file_longer() {
    for variant in Variant::small()
        .into_iter()
        .filter(|v| v.disk_type == DiskType::Dynamic)
    {
        let disk = variant.make(1);
        let block = variant.shape().block_size;
        let size = variant.virtual_size;
        // An empty disk stays empty.
        let open = disk.open(true).unwrap();
        let empty = disk.layers[0].len().unwrap();
        open.zero(0, size, vhdkit::image::ZeroMode::MayUnmap)
            .unwrap();
        open.zero(100, 5000, vhdkit::image::ZeroMode::MayUnmap)
            .unwrap();
        open.discard(0, size).unwrap();
        open.close().unwrap();
        assert!(disk.layers[0].len().unwrap() <= empty, "{}", variant.name());
        // Data that was discarded makes room for other data.
        let open = disk.open(true).unwrap();
        open.write_at(0, &pattern(2, 0, block)).unwrap();
        open.flush().unwrap();
        let one = disk.layers[0].len().unwrap();
        for round in 0..8 {
            open.discard(0, block).unwrap();
            open.flush().unwrap();
            open.write_at(0, &pattern(3 + round, 0, block)).unwrap();
            open.flush().unwrap();
        }
        open.close().unwrap();
        assert!(
            disk.layers[0].len().unwrap() <= one + block + MIB,
            "{}: {} bytes after one block was written and discarded in turns, {one} after the first",
            variant.name(),
            disk.layers[0].len().unwrap()
        );
    }
}

/// An empty disk of the largest size costs nothing to make, open, map or read the maps of.
#[test]
fn t30_an_empty_disk_of_64_tib_is_small_and_fast() {
    let begun = std::time::Instant::now();
    for block_size in [None, Some(MIB)] {
        let storage = new_image(&parameters(
            Format::Vhdx,
            DiskType::Dynamic,
            64 * TIB,
            block_size,
        ))
        .unwrap();
        assert!(storage.resident() < 4 * MIB);
        let disk = open(storage.clone(), Format::Vhdx, true).unwrap();
        let extents: Vec<_> = disk.extents(0..64 * TIB).map(Result::unwrap).collect();
        assert_eq!(extents.len(), 1);
        assert!(extents[0].1.data.is_none());
        disk.write_at(64 * TIB - 512, &[1; 512]).unwrap();
        disk.close().unwrap();
    }
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}

#[test]
fn t31_unknown_items_and_regions_are_ignored_unless_they_are_required() {
    const UNKNOWN: [u8; 16] = *b"nobody knows me!";
    for (flags, opens) in [(0, true), (1, true), (2, true), (4, false), (6, false)] {
        let storage = dynamic_vhdx(8 * MIB, MIB);
        vhdx::add_metadata_item(&*storage, UNKNOWN, flags, b"something");
        let result = open(storage, Format::Vhdx, false);
        match result {
            Ok(_) => assert!(opens, "an item with flags {flags} was ignored"),
            Err(e) => assert!(
                !opens && e.kind() == ErrorKind::UnsupportedVersion,
                "item with flags {flags}: {e}"
            ),
        }
    }
    for (required, opens) in [(0_u32, true), (1, false)] {
        let storage = dynamic_vhdx(8 * MIB, MIB);
        let end = storage.len().unwrap().next_multiple_of(MIB);
        storage.set_len(end + MIB).unwrap();
        patch::put(&*storage, end, &pattern(9, end, MIB));
        vhdx::edit_region_tables(&*storage, |table| {
            let count = u32::from_le_bytes(table[8..12].try_into().unwrap());
            let at = 16 + 32 * count as usize;
            table[at..at + 16].copy_from_slice(&UNKNOWN);
            table[at + 16..at + 24].copy_from_slice(&end.to_le_bytes());
            table[at + 24..at + 28].copy_from_slice(&(1_u32 << 20).to_le_bytes());
            table[at + 28..at + 32].copy_from_slice(&required.to_le_bytes());
            table[8..12].copy_from_slice(&(count + 1).to_le_bytes());
        });
        match open(storage.clone(), Format::Vhdx, true) {
            Ok(disk) => {
                assert!(opens);
                for block in 0..8 {
                    disk.write_at(block * MIB, &[1; 4096]).unwrap();
                }
                disk.close().unwrap();
                assert_eq!(
                    patch::get(&*storage, end, 1 << 20),
                    pattern(9, end, MIB),
                    "an unknown region is left alone"
                );
            }
            Err(e) => assert!(!opens && e.kind() == ErrorKind::UnsupportedVersion, "{e}"),
        }
    }
}

/// Entries that Windows would refuse are never written: reserved bits are zero, blocks without a place have none, and
/// no two blocks share one.
#[test]
fn t34_every_written_bat_entry_obeys_the_rules_of_its_state() {
    for variant in Variant::small().iter().filter(|v| v.format == Format::Vhdx) {
        let mut disk = variant.make(12);
        for seed in 0..6 {
            let ops = variant.shape().random_ops(30, &mut Rng::new(seed));
            disk.fill(&ops).unwrap();
            for layer in &disk.layers {
                entries_obey(layer, &variant.name());
            }
        }
    }
}

fn entries_obey(storage: &Arc<MemoryStorage>, name: &str) {
    let item = |id| {
        let (at, _) = vhdx::metadata_item(&**storage, id);
        u64::from_le_bytes(patch::get(&**storage, at, 8).try_into().unwrap())
    };
    let parameters = item(vhdx::FILE_PARAMETERS);
    let (block, has_parent) = (parameters & 0xffff_ffff, parameters >> 33 & 1 == 1);
    let (at, _) = vhdx::metadata_item(&**storage, vhdx::LOGICAL_SECTOR);
    let sector = u32::from_le_bytes(patch::get(&**storage, at, 4).try_into().unwrap());
    let ratio = (1 << 23) * u64::from(sector) / block;
    let blocks = item(vhdx::DISK_SIZE).div_ceil(block);
    let (_, region_length) = vhdx::region(&**storage, vhdx::BAT);
    let end = storage.len().unwrap();
    let mut used = std::collections::BTreeMap::new();
    let table: Vec<u64> = patch::get(
        &**storage,
        vhdx::bat_entry_offset(&**storage, 0),
        usize::try_from(region_length).unwrap(),
    )
    .chunks_exact(8)
    .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
    .collect();
    for (index, &entry) in (0_u64..).zip(&table) {
        let (state, reserved, place) = (entry & 7, entry >> 3 & 0x1_ffff, entry >> 20 << 20);
        assert_eq!(reserved, 0, "{name}: entry {index}: {entry:#x}");
        let bitmap = index % (ratio + 1) == ratio;
        let number = index - index / (ratio + 1);
        if bitmap {
            assert!(
                state == 0 && place == 0 || state == 6 && has_parent,
                "{name}: {index}"
            );
        } else if number >= blocks {
            assert_eq!(entry, 0, "{name}: padding entry {index}");
        } else {
            match state {
                0 | 2 => assert_eq!(place, 0, "{name}: entry {index}: {entry:#x}"),
                1 | 3 => {}
                6 => assert_ne!(place, 0),
                7 => {
                    assert!(has_parent && place != 0);
                    let of_chunk = (number / ratio + 1) * ratio + number / ratio;
                    assert_eq!(table[usize::try_from(of_chunk).unwrap()] & 7, 6, "{name}");
                }
                _ => panic!("{name}: entry {index} has state {state}"),
            }
        }
        if place != 0 {
            let length = if bitmap { MIB } else { block };
            assert!(
                place >= MIB && place + length <= end,
                "{name}: {index}: {entry:#x}"
            );
            assert_eq!(
                used.insert(place, length),
                None,
                "{name}: two blocks at {place:#x}"
            );
        }
    }
    let mut last = 0;
    for (place, length) in used {
        assert!(place >= last, "{name}: blocks overlap at {place:#x}");
        last = place + length;
    }
}

/// T21: a limit of the format is met by an error, when a disk is made and when it is made larger.
#[test]
fn t21_no_disk_is_larger_than_its_format_allows() {
    const VHD: u64 = 2040 * GIB;
    const VHDX: u64 = 64 * TIB;
    for (format, disk_type, limit) in [
        (Format::Vhd, DiskType::Dynamic, VHD),
        (Format::Vhdx, DiskType::Dynamic, VHDX),
    ] {
        let storage = new_image(&parameters(format, disk_type, limit, None)).unwrap();
        assert_eq!(open(storage, format, false).unwrap().virtual_size(), limit);
        let error = new_image(&parameters(format, disk_type, limit + 512, None))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidSize, "{error}");

        let storage = new_image(&parameters(format, disk_type, 40 * MIB, None)).unwrap();
        let before = MemoryStorage::clone(&storage);
        let disk = Arc::new(open(storage.clone(), format, true).unwrap());
        let resizing = |size| {
            vhdkit::verbs::resize::resize(
                disk.clone(),
                vhdkit::verbs::resize::ResizeOptions {
                    size: vhdkit::verbs::resize::NewSize::Bytes(size),
                    allow_unsafe: false,
                    fix_gpt: false,
                    expand_only: true,
                    dry_run: false,
                },
            )
            .wait()
        };
        let error = resizing(limit + 512).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSize, "{error}");
        assert!(storage.to_vec() == before.to_vec(), "nothing was written");
        resizing(limit).unwrap();
        assert_eq!(disk.virtual_size(), limit);
    }
    let error = new_image(&parameters(Format::Vhd, DiskType::Fixed, VHD + MIB, None))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidSize, "{error}");
}

/// T23: the host is full from some call on. Compacting then ends with that error, or not at all; the file has not
/// become longer, and it reads as before.
#[test]
fn t23_compacting_on_a_full_host_takes_nothing_and_loses_nothing() {
    for variant in Variant::small() {
        if variant.disk_type == DiskType::Fixed || variant.format == Format::Raw {
            continue;
        }
        let mut disk = variant.make(23);
        let shape = variant.shape();
        disk.fill(&[
            GuestOp::write(0, shape.virtual_size, 2),
            GuestOp::zero(0, 2 * shape.block_size).within(shape.virtual_size),
            GuestOp::Flush,
        ])
        .unwrap();
        for k in 0..60 {
            let below = Arc::new(MemoryStorage::clone(&disk.layers[0]));
            let length = below.len().unwrap();
            let storage = FaultStorage::new(below.clone());
            let open = Arc::new(disk.open_leaf(storage.clone(), true).unwrap());
            // All that takes space of the host.
            storage.fail_from(
                &[Call::SetLen, Call::Allocate],
                k,
                vhdkit_testkit::fault::Fault::NoSpace,
            );
            let result = vhdkit::verbs::compact::compact(
                open.clone(),
                vhdkit::verbs::compact::CompactOptions::default(),
            )
            .wait();
            if let Err(e) = result {
                assert_eq!(e.kind(), ErrorKind::DiskFull, "{}: {e}", variant.name());
            }
            storage.heal();
            drop(open);
            assert!(below.len().unwrap() <= length, "{}", variant.name());
            let file: Arc<dyn Storage> = below;
            assert_clean(&file, &variant.name());
            let open = disk.open_leaf(file, false).unwrap();
            assert_reads(&open, &disk.content, &variant.name());
            if storage.injected() == 0 {
                break;
            }
        }
    }
}

/// T25: what a process holds ends with it: a disk that was left open by a handle that is gone can be opened again, and
/// an operation whose handle is gone has stopped.
#[test]
fn t25_a_lock_and_an_operation_live_as_long_as_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    std::fs::write(
        &path,
        new_image(&parameters(Format::Vhdx, DiskType::Dynamic, 40 * MIB, None))
            .unwrap()
            .to_vec(),
    )
    .unwrap();
    let writable = || vhdkit::OpenOptions::new().writable(true).open(&path);
    let first = Arc::new(writable().unwrap());
    assert_eq!(
        writable().err().unwrap().kind(),
        ErrorKind::SharingViolation
    );
    let operation = vhdkit::verbs::compact::compact(
        first.clone(),
        vhdkit::verbs::compact::CompactOptions::default(),
    );
    let observer = operation.observer();
    drop(operation);
    assert_ne!(observer.progress().status, vhdkit::Status::Pending);
    drop(first);
    writable().unwrap();
}
