//! What the fuzz targets do with the bytes that the fuzzer makes up. Also run on the committed inputs by an ordinary
//! test, so that they keep working without a fuzzer.
//!
//! A VHDX has at least four mebibytes and a checksum on everything: the bytes are taken as changes to a small valid
//! file, and the checksums are put right afterwards, so that the fuzzer gets past them.

use std::sync::{Arc, OnceLock};

use vhdkit::disk::detect_format;
use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::iso::IsoImage;
use vhdkit::scsi::{Command, Data, Direction, ScsiTarget, Status};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit_nbd::{Catalog, DiskExport, replay};

use crate::guest::{GuestOp, follow_discard};
use crate::history::assert_clean;
use crate::model::assert_reads;
use crate::partitions::{PartitionedDisk, probe_partitions};
use crate::patch::{self, vhd, vhdx};
use crate::probe::probe;
use crate::variant::{TestDisk, Variant};

/// A fuzz target: its name and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("vhd_open", vhd_open),
    ("vhdx_open", vhdx_open),
    ("vhdx_log", vhdx_log),
    ("parent_locator", parent_locator),
    ("iso_detect", iso_detect),
    ("partitions", partitions),
    ("operations", operations),
    ("scsi", scsi),
    ("nbd", nbd),
];

const MIB: u64 = 1 << 20;

fn variant(format: Format, disk_type: DiskType) -> Variant {
    Variant {
        format,
        disk_type,
        virtual_size: 4 * MIB,
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
    }
}

/// A small disk with data in two blocks, made once.
fn template(format: Format, disk_type: DiskType) -> MemoryStorage {
    static MADE: OnceLock<Vec<(Format, DiskType, MemoryStorage)>> = OnceLock::new();
    let all = MADE.get_or_init(|| {
        let mut all = Vec::new();
        for format in [Format::Vhd, Format::Vhdx] {
            for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
                let mut disk = variant(format, disk_type).make(1);
                let ops = [GuestOp::write(0, 512, 2), GuestOp::write(3 * MIB, 512, 3)];
                disk.fill(&ops).expect("can be written");
                let file = MemoryStorage::clone(&disk.layers[0]);
                all.push((format, disk_type, file));
            }
        }
        all
    });
    all.iter()
        .find(|(f, t, _)| *f == format && *t == disk_type)
        .map(|(_, _, file)| file.clone())
        .expect("made above")
}

/// Reads numbers off the fuzzer's bytes; zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take(&mut self, n: usize) -> Vec<u8> {
        let n = n.min(self.0.len());
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head.to_vec()
    }

    fn number(&mut self, n: usize) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.take(n);
        bytes[..taken.len()].copy_from_slice(&taken);
        u64::from_le_bytes(bytes)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn disk_type(&mut self) -> DiskType {
        match self.number(1) % 3 {
            0 => DiskType::Dynamic,
            1 => DiskType::Differencing,
            _ => DiskType::Fixed,
        }
    }
}

/// A VHD: changes anywhere in the footers, the header, the table and the bitmaps.
pub fn vhd_open(data: &[u8]) {
    let mut input = Input(data);
    let file = template(Format::Vhd, input.disk_type());
    let end = file.len().expect("memory");
    let sealed = input.number(1) % 8 != 0;
    while !input.is_empty() {
        let kind = input.number(1);
        let at = input.number(2);
        let length = 1 + input.number(1) as usize % 16;
        let bytes = input.take(length);
        match kind % 4 {
            0 => patch::put(&file, end - 512 + at % 512, &bytes[..bytes.len().min(1)]),
            1 => patch::put(&file, at % 512, &bytes),
            2 => patch::put(&file, 512 + at % 3072, &bytes),
            _ => file.set_len(end - at.min(end)).expect("memory"),
        }
    }
    if sealed {
        let end = file.len().expect("memory");
        for at in [0, end.saturating_sub(512)] {
            if at + 512 <= end && patch::get(&file, at, 8) == b"conectix" {
                let mut footer = patch::get(&file, at, 512);
                vhd::seal_footer(&mut footer);
                patch::put(&file, at, &footer);
            }
        }
        if end >= 1536 && patch::get(&file, 512, 8) == b"cxsparse" {
            let mut header = patch::get(&file, 512, 1024);
            vhd::seal_header(&mut header);
            patch::put(&file, 512, &header);
        }
    }
    probe(&file);
}

/// A VHDX: changes to headers, region tables, metadata and the BAT.
pub fn vhdx_open(data: &[u8]) {
    let mut input = Input(data);
    let file = template(Format::Vhdx, input.disk_type());
    let (metadata, _) = vhdx::region(&file, vhdx::METADATA);
    let (bat, _) = vhdx::region(&file, vhdx::BAT);
    while !input.is_empty() {
        let kind = input.number(1);
        let at = input.number(2);
        let length = 1 + input.number(1) as usize % 16;
        let bytes = input.take(length);
        match kind % 8 {
            0 => patch::put(&file, vhdx::HEADERS[0] + at % 128, &bytes),
            1 => patch::put(&file, vhdx::HEADERS[1] + at % 128, &bytes),
            2 => patch::put(&file, vhdx::REGION_TABLES[0] + at % 256, &bytes),
            3 => patch::put(&file, vhdx::REGION_TABLES[1] + at % 256, &bytes),
            4 => patch::put(&file, metadata + at % 512, &bytes),
            5 => patch::put(&file, metadata + 65536 + at % 1024, &bytes),
            6 => patch::put(&file, bat + at * 8 % 32784, &bytes),
            _ => {
                let end = file.len().expect("memory");
                file.set_len(end.saturating_sub(at * 512)).expect("memory");
            }
        }
    }
    if file.len().expect("memory") >= 5 << 16 {
        vhdx::edit_headers(&file, |_| {});
        vhdx::edit_region_tables(&file, |_| {});
    }
    probe(&file);
}

/// A log: entries of any shape at any place of the ring, their checksums right.
pub fn vhdx_log(data: &[u8]) {
    const GUID: [u8; 16] = [9; 16];
    let mut input = Input(data);
    let file = template(Format::Vhdx, DiskType::Dynamic);
    let (bat, _) = vhdx::region(&file, vhdx::BAT);
    let length = file.len().expect("memory");
    let mut position = 0;
    let mut sequence = 1 + input.number(1);
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let shape = input.number(1);
        let mut changes = Vec::new();
        for _ in 0..shape % 4 {
            let at = match input.number(1) % 4 {
                0 => bat,
                1 => bat + input.number(1) * 4096,
                2 => input.number(4) * 4096,
                _ => input.number(8),
            };
            changes.push(if input.number(1) % 3 == 0 {
                vhdx::LogChange::Zeros(at, input.number(3) * 512)
            } else {
                let mut page = vec![0; 4096];
                let bytes = input.take(16);
                page[..bytes.len()].copy_from_slice(&bytes);
                vhdx::LogChange::Page(at, page)
            });
        }
        let entry = vhdx::LogEntry {
            guid: GUID,
            sequence,
            tail: if shape & 16 == 0 {
                position as u32
            } else {
                input.number(4) as u32
            },
            flushed_file_offset: if shape & 32 == 0 {
                length
            } else {
                input.number(8)
            },
            last_file_offset: if shape & 64 == 0 {
                length
            } else {
                input.number(8)
            },
            changes,
        };
        let mut bytes = entry.to_bytes();
        if shape & 128 != 0 {
            let at = input.number(2) as usize % bytes.len();
            bytes[at] = input.number(1) as u8;
            vhdx::seal(&mut bytes);
        }
        vhdx::put_in_log(&file, position, &bytes);
        position = (position + bytes.len() as u64) % MIB;
        sequence = sequence.wrapping_add(1 + input.number(1) % 16 / 15);
    }
    vhdx::set_log_guid(&file, GUID);
    probe(&file);
}

/// The parent locators of both formats: the bytes are the locator.
pub fn parent_locator(data: &[u8]) {
    let mut input = Input(data);
    if input.number(1) % 2 == 0 {
        let file = template(Format::Vhdx, DiskType::Differencing);
        let (item, _) = vhdx::metadata_item(&file, vhdx::PARENT_LOCATOR);
        let entry = vhdx::metadata_entry(&file, vhdx::PARENT_LOCATOR).expect("a child has one");
        let count = input.number(1) as u8;
        let rest = input.take(8192);
        patch::put(&file, item + 18, &[count, 0]);
        patch::put(&file, item + 20, &rest);
        patch::put(&file, entry + 20, &(20 + rest.len() as u32).to_le_bytes());
        probe(&file);
    } else {
        let file = template(Format::Vhd, DiskType::Differencing);
        let entries = input.take(72);
        vhd::edit_header(&file, |header| {
            header[576..576 + entries.len()].copy_from_slice(&entries);
        });
        patch::put(&file, 2048, &input.take(1024));
        probe(&file);
    }
}

/// What is an ISO: the bytes are the descriptors.
pub fn iso_detect(data: &[u8]) {
    let file = MemoryStorage::new();
    for (i, part) in data.chunks(7).enumerate() {
        file.write_at(32768 + i as u64 * 2048, part)
            .expect("memory");
    }
    if IsoImage::detect(&file).unwrap_or_else(|e| panic!("memory does not fail: {e}")) {
        assert_eq!(detect_format(&file).expect("memory"), Format::Iso);
        let image = IsoImage::open(Arc::new(file)).expect("an ISO opens");
        let size = vhdkit::image::Image::virtual_size(&image);
        assert!(size.is_multiple_of(2048));
    }
}

/// SCSI commands to a small disk, each with a buffer of its own length, in the direction of the command or not.
pub fn scsi(data: &[u8]) {
    let mut input = Input(data);
    let disk_type = input.disk_type();
    let writable = input.number(1) % 4 != 0;
    let disk = variant(Format::Vhdx, disk_type).make(1);
    let disk = disk.open(writable).expect("a new disk opens");
    let target = ScsiTarget::new(Arc::new(disk));
    while !input.is_empty() {
        let kind = input.number(1);
        let length = input.number(1) % 33;
        let cdb = input.take(length as usize);
        let room = input.number(2) as usize;
        let mut buffer = input.take(room % 64);
        buffer.resize(room, 0);
        let data = match (kind % 8, Direction::of(&cdb)) {
            (0, _) | (3.., Direction::None) => Data::None,
            (1, _) | (3.., Direction::In) => Data::In(&mut buffer),
            _ => Data::Out(&buffer),
        };
        let response = target.execute(Command::new(&cdb, data).to_lun(kind / 128));
        assert!(response.transferred <= room);
        assert_eq!(
            response.status == Status::CheckCondition,
            response.sense.is_some()
        );
        // A disk in memory does not fail.
        let key = response.sense.map_or(0, |sense| sense.key as u8);
        assert!(
            matches!(key, 0x0 | 0x5 | 0x7 | 0xE),
            "{cdb:02x?}: {response:?}"
        );
    }
}

/// A conversation of an NBD client, from its flags on, with and without TLS; in one piece and in several it has to come
/// to the same.
pub fn nbd(data: &[u8]) {
    static CATALOG: OnceLock<Arc<Catalog>> = OnceLock::new();
    let catalog = CATALOG.get_or_init(|| {
        let mut catalog = Catalog::new();
        for (name, disk_type) in [("a", DiskType::Dynamic), ("b", DiskType::Differencing)] {
            let disk = variant(Format::Vhdx, disk_type).make(1).open(true);
            let disk = Arc::new(disk.expect("a new disk opens"));
            let export = DiskExport::new(disk, name == "b");
            catalog.add(name, Arc::new(export)).expect("another name");
        }
        Arc::new(catalog)
    });
    let mut input = Input(data);
    let kind = input.number(1);
    let piece = 1 + input.number(1) as usize;
    let whole = replay(catalog, kind % 2 == 1, input.0, usize::MAX);
    assert_eq!(whole, replay(catalog, kind % 2 == 1, input.0, piece));
    assert!(whole.consumed <= input.0.len());
    // Of a few bytes a little more can be made, of none nothing: a client cannot have a flood for a drop.
    assert!(whole.answers.len() <= 64 + 32 * input.0.len());
}

/// Partition tables: changes to an MBR with logical partitions, or to a GPT, its checksums right or not.
pub fn partitions(data: &[u8]) {
    const SECTORS: usize = 256;
    let mut input = Input(data);
    let sector = if input.number(1) % 2 == 0 { 512 } else { 4096 };
    let shape = input.number(1);
    let mut disk = if shape % 2 == 0 {
        PartitionedDisk::gpt(sector, SECTORS, &[(40, 99), (120, 200)])
    } else {
        let mut disk = PartitionedDisk::blank(sector, SECTORS);
        disk.put_boot_record(0, &[(0x07, 8, 50), (0x0F, 64, 160)]);
        disk.put_boot_record(64, &[(0x83, 8, 20), (0x05, 40, 60)]);
        disk.put_boot_record(104, &[(0x83, 8, 20)]);
        disk
    };
    while !input.is_empty() {
        let kind = input.number(1);
        let at = input.number(2) as usize;
        let length = 1 + input.number(1) as usize % 16;
        let bytes = input.take(length);
        let lba = match kind % 8 {
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            4 => SECTORS - 1,
            5 => 64,
            6 => 104,
            _ => at % SECTORS,
        };
        // Where the numbers are: the entries of a boot record, the header, the first entries of an array.
        let within = match kind % 8 {
            2 | 4 => at % 92,
            3 => at % 256,
            _ => 446 + at % 66,
        };
        disk.put(lba * sector + within, &bytes);
    }
    for (bit, lba) in [(2, 1), (4, SECTORS - 1)] {
        if shape & bit == 0 && shape % 2 == 0 {
            disk.seal_gpt(lba);
        }
    }
    probe_partitions(&disk);
}

/// A guest: any sequence of operations reads as an array of bytes would, and leaves a clean file.
pub fn operations(data: &[u8]) {
    let mut input = Input(data);
    let format = if input.number(1) % 2 == 0 {
        Format::Vhd
    } else {
        Format::Vhdx
    };
    let disk_type = input.disk_type();
    let variant = variant(format, disk_type);
    let base: CreateParameters = variant.parameters(
        if disk_type == DiskType::Differencing {
            DiskType::Dynamic
        } else {
            disk_type
        },
        None,
    );
    let file = crate::variant::new_image(&base).expect("can be made");
    let size = variant.virtual_size;
    let mut disk = TestDisk {
        variant,
        layers: vec![file],
        content: crate::model::blank(size),
    };
    if disk_type == DiskType::Differencing {
        disk.fill(&[GuestOp::write(MIB / 2, 2 * MIB, 2)])
            .expect("can be written");
        disk.add_child().expect("can have a child");
    }
    let mut open = disk.open(true).expect("opens");
    for seed in 3..67 {
        if input.is_empty() {
            break;
        }
        let kind = input.number(1);
        let offset = input.number(3) % size;
        let length = (1 + input.number(3) % MIB).min(size - offset);
        let op = match kind % 8 {
            0..=2 => GuestOp::write(offset, length, seed),
            3 => GuestOp::write(offset, length, 0),
            4 => GuestOp::zero(offset, length),
            5 => GuestOp::discard(offset, length),
            6 => GuestOp::Flush,
            _ => GuestOp::Reopen,
        };
        op.run(&open).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        op.run_on_model(&disk.content);
        match op {
            GuestOp::Discard { offset, length } => {
                let wrong = follow_discard(&open, &disk.content, offset, length).expect("reads");
                assert_eq!(wrong, None, "{op:?}");
            }
            GuestOp::Reopen => {
                open.close().unwrap_or_else(|e| panic!("{e}"));
                open = disk.open(true).expect("opens again");
            }
            _ => {}
        }
    }
    assert_reads(&open, &disk.content, "open");
    open.close().unwrap_or_else(|e| panic!("{e}"));
    assert_reads(
        &disk.open(false).expect("opens at the end"),
        &disk.content,
        "closed",
    );
    let file: Arc<dyn Storage> = disk.layers[0].clone();
    assert_clean(&file, "closed");
}
