//! Files that are damaged or made to harm: every field of every structure at its edges, checksums put right. Opening,
//! reading, writing and checking them ends in bounded time and memory, in data or in an error that says what is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peak_alloc::PeakAlloc;
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource, ParentLink, Severity};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit_testkit::guest::GuestOp;
use vhdkit_testkit::patch::{self, vhd, vhdx};
use vhdkit_testkit::probe::{Probe, probe};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant, new_image};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;
/// Memory is counted for the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const MIB: u64 = 1 << 20;
/// Above the megabytes that writing to a disk in memory takes anyway.
const MEMORY_LIMIT: usize = 96 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A field: its name, where it is, how many bytes.
type Field = (&'static str, usize, usize);

/// Values that break arithmetic, for a field of so many bytes that holds `old`.
fn edges(old: u64, width: usize) -> Vec<u64> {
    let max = u64::MAX >> (64 - 8 * width);
    let sign = 1 << (8 * width - 1);
    let mut values = vec![0, 1, 2, 3, 7, max, max - 1, sign, sign - 1, sign + 1];
    for near in [1, 2, 511, 512, 4095, 4096, MIB - 1, MIB, 1 << 30] {
        values.push(old.wrapping_add(near) & max);
        values.push(old.wrapping_sub(near) & max);
    }
    values.extend([
        old << 1 & max,
        old >> 1,
        max.saturating_sub(511),
        max.saturating_sub(4095),
        (max >> 20) << 20,
    ]);
    values.extend((0..8 * width).step_by(5).map(|bit| old ^ 1 << bit));
    values.retain(|&v| v != old);
    values.sort_unstable();
    values.dedup();
    values
}

/// How long this thread has been at work. What else the machine does is no fault of the file.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

/// Probes a damaged file, and complains if it panics, takes long or much memory.
fn survive(storage: &MemoryStorage, what: &str) -> Probe {
    MEMORY.reset_peak_usage();
    let (before, begun) = (MEMORY.current_usage(), busy());
    let result = catch_unwind(AssertUnwindSafe(|| probe(storage)))
        .unwrap_or_else(|_| panic!("panicked on {what}"));
    let took = busy().saturating_sub(begun);
    let memory = MEMORY.peak_usage().saturating_sub(before);
    assert!(took < TIME_LIMIT, "{what} took {took:?}");
    assert!(memory < MEMORY_LIMIT, "{what} took {} MiB", memory >> 20);
    result
}

struct Tally {
    tried: usize,
    refused: usize,
}

/// Sets each field to each of its edges. `change` puts the bytes into the file and the checksums right.
fn sweep(
    base: &MemoryStorage,
    structure: &str,
    fields: &[Field],
    read: impl Fn(&MemoryStorage, usize, usize) -> u64,
    change: impl Fn(&MemoryStorage, usize, usize, u64),
) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tally = Tally {
        tried: 0,
        refused: 0,
    };
    for &(name, at, width) in fields {
        let old = read(base, at, width);
        for value in edges(old, width) {
            let damaged = base.clone();
            change(&damaged, at, width, value);
            let found = survive(
                &damaged,
                &format!("{structure}: {name} = {value:#x} (was {old:#x})"),
            );
            tally.tried += 1;
            tally.refused += usize::from(found.read.is_err());
            // What cannot be opened is at least an error to the check.
            if let (Err(e), Ok(findings)) = (&found.read, &found.findings) {
                let worst = findings.iter().map(|f| f.severity).max();
                assert!(
                    worst >= Some(Severity::Error),
                    "{structure}: {name} = {value:#x} does not open ({e}), but check finds {findings:?}"
                );
            }
        }
    }
    println!(
        "{structure}: {} values, {} refused",
        tally.tried, tally.refused
    );
    assert!(
        tally.refused > 0,
        "{structure}: nothing was checked at all?"
    );
}

fn little(storage: &MemoryStorage, at: u64, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&patch::get(storage, at, width));
    u64::from_le_bytes(bytes)
}

fn big(storage: &MemoryStorage, at: u64, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[8 - width..].copy_from_slice(&patch::get(storage, at, width));
    u64::from_be_bytes(bytes)
}

/// A disk with some data in it.
fn sample(format: Format, disk_type: DiskType) -> MemoryStorage {
    let variant = Variant {
        format,
        disk_type,
        virtual_size: 6 * MIB + 512,
        block_size: Some(if format == Format::Vhd {
            512 * 1024
        } else {
            MIB
        }),
        sector_size: 512,
        depth: if disk_type == DiskType::Differencing {
            2
        } else {
            1
        },
    };
    let mut disk: TestDisk = variant.make(3);
    disk.fill(&[
        GuestOp::write(0, 4096, 2),
        GuestOp::write(2 * MIB - 512, 1024, 3),
        GuestOp::write(6 * MIB, 512, 4),
        GuestOp::write(4 * MIB, MIB, 5),
    ])
    .unwrap();
    MemoryStorage::clone(&disk.layers[0])
}

const VHDX_HEADER: &[Field] = &[
    ("signature", 0, 4),
    ("sequence number", 8, 8),
    ("log GUID", 48, 8),
    ("log version", 64, 2),
    ("version", 66, 2),
    ("log length", 68, 4),
    ("log offset", 72, 8),
    ("reserved", 80, 8),
];

#[test]
fn vhdx_headers() {
    let base = sample(Format::Vhdx, DiskType::Dynamic);
    sweep(
        &base,
        "both headers",
        VHDX_HEADER,
        |s, at, width| little(s, vhdx::HEADERS[0] + at as u64, width),
        |s, at, width, value| {
            vhdx::edit_headers(s, |h| {
                h[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            });
        },
    );
    sweep(
        &base,
        "the current header, log GUID set",
        VHDX_HEADER,
        |s, at, width| little(s, vhdx::current_header(s) + at as u64, width),
        |s, at, width, value| {
            vhdx::edit(s, vhdx::current_header(s), vhdx::HEADER_LENGTH, |h| {
                h[48..64].fill(7);
                h[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            });
        },
    );
}

#[test]
fn vhdx_region_tables() {
    let base = sample(Format::Vhdx, DiskType::Dynamic);
    sweep(
        &base,
        "region tables",
        &[
            ("signature", 0, 4),
            ("entry count", 8, 4),
            ("reserved", 12, 4),
            ("first GUID", 16, 8),
            ("first offset", 32, 8),
            ("first length", 40, 4),
            ("first required", 44, 4),
            ("second GUID", 48, 8),
            ("second offset", 64, 8),
            ("second length", 72, 4),
            ("second required", 76, 4),
        ],
        |s, at, width| little(s, vhdx::REGION_TABLES[0] + at as u64, width),
        |s, at, width, value| {
            vhdx::edit_region_tables(s, |t| {
                t[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            });
        },
    );
}

#[test]
fn vhdx_metadata_table_and_items() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let base = sample(Format::Vhdx, disk_type);
        let (table, _) = vhdx::region(&base, vhdx::METADATA);
        let mut fields: Vec<Field> = vec![
            ("signature", 0, 8),
            ("reserved", 8, 2),
            ("entry count", 10, 2),
        ];
        for entry in 0..6 {
            let at = 32 + 32 * entry;
            fields.extend([
                ("item GUID", at, 8),
                ("item offset", at + 16, 4),
                ("item length", at + 20, 4),
                ("item flags", at + 24, 4),
                ("item reserved", at + 28, 4),
            ]);
        }
        sweep(
            &base,
            "metadata table",
            &fields,
            |s, at, width| little(s, table + at as u64, width),
            |s, at, width, value| patch::put(s, table + at as u64, &value.to_le_bytes()[..width]),
        );
        let items = [
            ("block size", vhdx::FILE_PARAMETERS, 0, 4),
            ("file parameters' flags", vhdx::FILE_PARAMETERS, 4, 4),
            ("virtual disk size", vhdx::DISK_SIZE, 0, 8),
            ("logical sector size", vhdx::LOGICAL_SECTOR, 0, 4),
            ("physical sector size", vhdx::PHYSICAL_SECTOR, 0, 4),
        ];
        let fields: Vec<Field> = items
            .iter()
            .map(|&(name, id, offset, width)| {
                let (at, _) = vhdx::metadata_item(&base, id);
                (name, usize::try_from(at - table).unwrap() + offset, width)
            })
            .collect();
        sweep(
            &base,
            "metadata items",
            &fields,
            |s, at, width| little(s, table + at as u64, width),
            |s, at, width, value| patch::put(s, table + at as u64, &value.to_le_bytes()[..width]),
        );
    }
}

/// What the checklist (9.5) says of the table itself; a value that has no meaning yet could change how the rest is read.
#[test]
fn vhdx_metadata_with_unknown_bits_is_refused() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let base = sample(Format::Vhdx, DiskType::Dynamic);
    let (table, _) = vhdx::region(&base, vhdx::METADATA);
    let open = |storage: MemoryStorage| {
        vhdkit::disk::open_image(Arc::new(storage), Format::Vhdx, false).map(drop)
    };
    open(base.clone()).unwrap();
    let entry = |number: u64, field: u64| table + 32 + 32 * number + field;
    for (what, at, value, named) in [
        ("the table's reserved bits", table + 8, 1, "reserved"),
        ("its reserved bytes", table + 31, 1, "reserved"),
        ("an entry's reserved bytes", entry(2, 28), 1, "reserved"),
        ("an entry's unknown flags", entry(2, 24), 6 | 8, "flags"),
        ("file parameters of the disk", entry(0, 24), 4 | 2, "flags"),
        ("a size of the file", entry(1, 24), 4, "flags"),
        ("a required item of a user", entry(5, 24), 4 | 1, "flags"),
    ] {
        let storage = base.clone();
        if at == entry(5, 24) {
            // One more item, without content.
            patch::put(&storage, table + 10, &[6]);
            patch::put(&storage, entry(5, 0), &[9; 16]);
        }
        patch::put(&storage, at, &[value]);
        let error = open(storage).unwrap_err();
        assert_eq!(error.kind(), vhdkit::ErrorKind::FileCorrupt, "{what}");
        assert!(error.to_string().contains(named), "{what}: {error}");
    }
}

#[test]
fn vhdx_parent_locator() {
    let base = sample(Format::Vhdx, DiskType::Differencing);
    let (item, _) = vhdx::metadata_item(&base, vhdx::PARENT_LOCATOR);
    let mut fields: Vec<Field> = vec![("type", 0, 8), ("reserved", 16, 2), ("count", 18, 2)];
    for entry in 0..2 {
        let at = 20 + 12 * entry;
        fields.extend([
            ("key offset", at, 4),
            ("value offset", at + 4, 4),
            ("key length", at + 8, 2),
            ("value length", at + 10, 2),
        ]);
    }
    fields.push(("text", 60, 8));
    sweep(
        &base,
        "parent locator",
        &fields,
        |s, at, width| little(s, item + at as u64, width),
        |s, at, width, value| patch::put(s, item + at as u64, &value.to_le_bytes()[..width]),
    );
}

#[test]
fn vhdx_bat_entries() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        let base = sample(Format::Vhdx, disk_type);
        let bat = vhdx::bat_entry_offset(&base, 0);
        // The first blocks, the last one, and the chunk's bitmap (4096 blocks of 1 MiB to a chunk).
        let fields: Vec<Field> = [0, 1, 2, 6, 4096].map(|i| ("entry", i * 8, 8)).to_vec();
        sweep(
            &base,
            "BAT",
            &fields,
            |s, at, width| little(s, bat + at as u64, width),
            |s, at, width, value| patch::put(s, bat + at as u64, &value.to_le_bytes()[..width]),
        );
        // Every state, at no place, at its own, at another's, in the log, past the end.
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let end = base.len().unwrap();
        for state in 0..8 {
            for place in [
                0,
                MIB,
                2 * MIB,
                3 * MIB,
                vhdx::bat_entry(&base, 0) >> 20 << 20,
                end,
                end - MIB,
                1 << 62,
            ] {
                for index in [1, 4096] {
                    let damaged = base.clone();
                    vhdx::set_bat_entry(&damaged, index, place | state);
                    survive(
                        &damaged,
                        &format!("BAT entry {index} = {:#x}", place | state),
                    );
                }
            }
        }
    }
}

#[test]
fn vhdx_log_entries() {
    let base = sample(Format::Vhdx, DiskType::Dynamic);
    let page_at = vhdx::bat_entry_offset(&base, 0);
    let entry = vhdx::LogEntry {
        guid: [7; 16],
        sequence: 5,
        tail: 0,
        flushed_file_offset: base.len().unwrap(),
        last_file_offset: base.len().unwrap(),
        changes: vec![
            vhdx::LogChange::Page(page_at, patch::get(&base, page_at, 4096)),
            vhdx::LogChange::Zeros(page_at + 8192, 4096),
        ],
    };
    vhdx::put_in_log(&base, 0, &entry.to_bytes());
    vhdx::set_log_guid(&base, [7; 16]);
    let (log, _) = vhdx::log(&base);
    let length = entry.to_bytes().len();
    sweep(
        &base,
        "log entry",
        &[
            ("signature", 0, 4),
            ("entry length", 8, 4),
            ("tail", 12, 4),
            ("sequence number", 16, 8),
            ("descriptor count", 24, 4),
            ("reserved", 28, 4),
            ("flushed file offset", 48, 8),
            ("last file offset", 56, 8),
            ("data: signature", 64, 4),
            ("data: trailing bytes", 68, 4),
            ("data: leading bytes", 72, 8),
            ("data: file offset", 80, 8),
            ("data: sequence number", 88, 8),
            ("zero: signature", 96, 4),
            ("zero: length", 104, 8),
            ("zero: file offset", 112, 8),
            ("sector: signature", 4096, 4),
            ("sector: sequence high", 4100, 4),
            ("sector: sequence low", 8188, 4),
        ],
        |s, at, width| little(s, log + at as u64, width),
        |s, at, width, value| {
            vhdx::edit(s, log, length, |e| {
                e[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            });
        },
    );
}

const VHD_FOOTER: &[Field] = &[
    ("cookie", 0, 8),
    ("features", 8, 4),
    ("version", 12, 4),
    ("data offset", 16, 8),
    ("original size", 40, 8),
    ("current size", 48, 8),
    ("geometry", 56, 4),
    ("disk type", 60, 4),
    ("unique id", 68, 8),
    ("saved state", 84, 1),
    ("reserved", 85, 8),
];

#[test]
fn vhd_footers() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        let base = sample(Format::Vhd, disk_type);
        let footer = base.len().unwrap() - 512;
        let change = |footers: Vec<u64>, s: &MemoryStorage, at: usize, width: usize, value: u64| {
            for place in footers {
                let mut bytes = patch::get(s, place, 512);
                bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
                vhd::seal_footer(&mut bytes);
                patch::put(s, place, &bytes);
            }
        };
        // A fixed disk without a valid footer is a raw one, so that nothing need be refused there.
        let fields = if disk_type == DiskType::Fixed {
            &VHD_FOOTER[1..]
        } else {
            VHD_FOOTER
        };
        sweep(
            &base,
            "footers",
            fields,
            |s, at, width| big(s, footer + at as u64, width),
            |s, at, width, value| change(vhd::footers(s), s, at, width, value),
        );
    }
}

#[test]
fn vhd_dynamic_header_and_locators() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let base = sample(Format::Vhd, disk_type);
        let header = vhd::header_offset(&base);
        let mut fields: Vec<Field> = vec![
            ("cookie", 0, 8),
            ("data offset", 8, 8),
            ("table offset", 16, 8),
            ("version", 24, 4),
            ("max table entries", 28, 4),
            ("block size", 32, 4),
            ("parent id", 40, 8),
            ("parent time", 56, 4),
            ("parent name", 64, 8),
        ];
        for slot in 0..3 {
            let at = 576 + 24 * slot;
            fields.extend([
                ("locator code", at, 4),
                ("locator space", at + 4, 4),
                ("locator length", at + 8, 4),
                ("locator offset", at + 16, 8),
            ]);
        }
        sweep(
            &base,
            "dynamic header",
            &fields,
            |s, at, width| big(s, header + at as u64, width),
            |s, at, width, value| {
                vhd::edit_header(s, |h| {
                    h[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
                });
            },
        );
        // QEMU's test 088: block sizes that make no sense.
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for block_size in [0_u32, 0x80, 0x1234_5678] {
            let damaged = base.clone();
            vhd::edit_header(&damaged, |h| {
                h[32..36].copy_from_slice(&block_size.to_be_bytes());
            });
            let found = survive(&damaged, "block size");
            assert!(
                found.read.is_err() && found.write.is_err(),
                "block size {block_size:#x}"
            );
        }
    }
}

#[test]
fn vhd_bat_entries() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let base = sample(Format::Vhd, disk_type);
        let bat = vhd::bat_entry_offset(&base, 0);
        let fields: Vec<Field> = [0, 1, 3, 12].map(|i| ("entry", i * 4, 4)).to_vec();
        sweep(
            &base,
            "BAT",
            &fields,
            |s, at, width| big(s, bat + at as u64, width),
            |s, at, width, value| patch::put(s, bat + at as u64, &value.to_be_bytes()[8 - width..]),
        );
    }
}

/// A VHD that says it is differencing but has no parent, and other contradictions (T20).
#[test]
fn t20_contradictory_types_are_refused_or_read() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        for other in 0..8_u32 {
            let storage = sample(Format::Vhd, disk_type);
            vhd::edit_footers(&storage, |f| {
                f[60..64].copy_from_slice(&other.to_be_bytes());
            });
            survive(&storage, &format!("{} called {other}", disk_type.name()));
        }
    }
    for flags in 0..4_u32 {
        for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
            let storage = sample(Format::Vhdx, disk_type);
            let (at, _) = vhdx::metadata_item(&storage, vhdx::FILE_PARAMETERS);
            patch::put(&storage, at + 4, &flags.to_le_bytes());
            survive(
                &storage,
                &format!("{} with flags {flags}", disk_type.name()),
            );
        }
    }
}

/// Logical damage behind right checksums is found by the check (T27).
#[test]
fn t27_the_check_finds_shared_and_misplaced_blocks() {
    let base = sample(Format::Vhdx, DiskType::Dynamic);
    let first = vhdx::bat_entry(&base, 0);
    let end = base.len().unwrap();
    let (log, _) = vhdx::log(&base);
    let (bat, _) = vhdx::region(&base, vhdx::BAT);
    let (metadata, _) = vhdx::region(&base, vhdx::METADATA);
    for (what, entry) in [
        ("two blocks at one place", first),
        ("a block in the log", log | 6),
        ("a block in the BAT", bat | 6),
        ("a block in the metadata", metadata | 6),
        ("a block in the headers", 6),
        ("a block past the end", (end + 16 * MIB) >> 20 << 20 | 6),
        ("a partly present block without a parent", first & !7 | 7),
        ("a reserved state", 4),
        ("reserved bits", first | 8),
    ] {
        let damaged = base.clone();
        vhdx::set_bat_entry(&damaged, 1, entry);
        let file: Arc<dyn Storage> = Arc::new(damaged);
        let findings = vhdkit::verbs::check::check_storage(&file).unwrap();
        let worst = findings.iter().map(|f| f.severity).max();
        assert!(worst >= Some(Severity::Error), "{what}: {findings:?}");
    }
    // Those that lead into structures are never shown as content.
    for (what, entry) in [
        ("the log", log),
        ("the BAT", bat),
        ("the metadata", metadata),
    ] {
        let damaged = base.clone();
        vhdx::set_bat_entry(&damaged, 1, entry | 6);
        let image =
            vhdkit::disk::open_image(Arc::new(damaged), Format::Vhdx, false).expect("it opens");
        let layers = vec![vhdkit::disk::Layer::new(image, "x.vhdx")];
        let disk = vhdkit::VirtualDisk::from_layers(layers, false).unwrap();
        let block = disk.info().block_size.unwrap();
        let error = disk.read_at(block, &mut [0; 512]).unwrap_err();
        assert_eq!(
            error.kind(),
            vhdkit::ErrorKind::BlockAllocationTableCorrupt,
            "{what}"
        );
    }
    let base = sample(Format::Vhd, DiskType::Dynamic);
    let first = vhd::bat_entry(&base, 0);
    for (what, entry) in [
        ("two blocks at one place", first),
        ("overlapping blocks", first + 1),
        ("a block in the header", 1),
        ("a block past the end", 0x7fff_ffff),
    ] {
        let damaged = base.clone();
        vhd::set_bat_entry(&damaged, 1, entry);
        let file: Arc<dyn Storage> = Arc::new(damaged);
        let findings = vhdkit::verbs::check::check_storage(&file).unwrap();
        let worst = findings.iter().map(|f| f.severity).max();
        assert!(worst >= Some(Severity::Error), "{what}: {findings:?}");
    }
}

#[test]
fn files_cut_anywhere_are_survived() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for format in [Format::Vhd, Format::Vhdx] {
        for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
            let base = sample(format, disk_type);
            let length = base.len().unwrap();
            let cuts = [0, 1, 511, 512, 1023, 1024, 1536, 2047, 4096]
                .into_iter()
                .chain((1..40).map(|i| i * length / 40))
                .chain([
                    length - 1,
                    length - 511,
                    length - 512,
                    length - 513,
                    length - MIB,
                ]);
            for cut in cuts.filter(|&c| c <= length) {
                let damaged = base.clone();
                damaged.set_len(cut).unwrap();
                survive(
                    &damaged,
                    &format!("{} {} cut to {cut}", format.name(), disk_type.name()),
                );
            }
        }
    }
}

#[test]
fn random_damage_is_survived() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rng = Rng::new(20);
    for format in [Format::Vhd, Format::Vhdx] {
        for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
            let base = sample(format, disk_type);
            for round in 0..150 {
                let damaged = base.clone();
                for _ in 0..=rng.below(6) {
                    let (at, width) = match (format, rng.below(4)) {
                        (Format::Vhd, 0) => (vhd::bat_entry_offset(&base, rng.below(13)), 4),
                        (Format::Vhd, _) => (rng.below(1536), 1 + rng.below(8)),
                        (_, 0) => (vhdx::bat_entry_offset(&base, rng.below(4100)), 8),
                        (_, 1) => (vhdx::region(&base, vhdx::METADATA).0 + rng.below(256), 4),
                        (_, 2) => (vhdx::HEADERS[rng.below(2) as usize] + rng.below(96), 4),
                        _ => (
                            vhdx::REGION_TABLES[rng.below(2) as usize] + rng.below(96),
                            4,
                        ),
                    };
                    let bytes = rng.next().to_le_bytes();
                    patch::put(&damaged, at, &bytes[..width as usize]);
                }
                if format == Format::Vhdx {
                    vhdx::edit_headers(&damaged, |_| {});
                    vhdx::edit_region_tables(&damaged, |_| {});
                } else {
                    let mut header = patch::get(&damaged, 512, 1024);
                    vhd::seal_header(&mut header);
                    patch::put(&damaged, 512, &header);
                }
                survive(&damaged, &format!("{} round {round}", format.name()));
            }
        }
    }
}

/// Requests that no format can fulfil are refused before anything is written.
#[test]
fn impossible_requests_are_refused() {
    let parameters = |format, disk_type, virtual_size, block_size| CreateParameters {
        format,
        disk_type,
        virtual_size,
        block_size,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        parent: None::<ParentLink>,
        identifiers: IdentifierSource::random(),
        created: 0,
    };
    const TIB: u64 = 1 << 40;
    for size in [
        64 * TIB + 512,
        64 * TIB + 1,
        (1 << 63) - 512,
        1 << 63,
        u64::MAX - 511,
        u64::MAX,
        1234,
        0,
    ] {
        let refused = new_image(&parameters(Format::Vhdx, DiskType::Dynamic, size, None));
        assert!(refused.is_err(), "vhdx of {size} bytes");
    }
    for size in [2041 << 30, 64 * TIB, 1 << 63, u64::MAX - 511, 1234, 0] {
        let refused = new_image(&parameters(Format::Vhd, DiskType::Dynamic, size, None));
        assert!(refused.is_err(), "vhd of {size} bytes");
    }
    for block_size in [
        0,
        128,
        1_234_567,
        3 * MIB,
        512 * MIB,
        MIB / 2,
        1 << 40,
        u64::MAX,
    ] {
        let refused = new_image(&parameters(
            Format::Vhdx,
            DiskType::Dynamic,
            MIB,
            Some(block_size),
        ));
        assert!(refused.is_err(), "vhdx with blocks of {block_size}");
    }
    for block_size in [0, 128, 1_234_567, 3 * MIB, 1 << 31, 1 << 40, u64::MAX] {
        let refused = new_image(&parameters(
            Format::Vhd,
            DiskType::Dynamic,
            MIB,
            Some(block_size),
        ));
        assert!(refused.is_err(), "vhd with blocks of {block_size}");
    }
    for sector in [0, 1, 511, 1024, 2048, 8192] {
        let mut wrong = parameters(Format::Vhdx, DiskType::Dynamic, 8 * MIB, None);
        wrong.logical_sector_size = Some(sector);
        assert!(new_image(&wrong).is_err(), "sectors of {sector}");
    }
}
