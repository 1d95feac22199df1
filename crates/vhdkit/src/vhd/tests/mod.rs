//! Tests of the whole format; each module one kind of proof.

mod concurrency;
mod copying;
mod crash;
mod creating;
mod hostile;
mod identity;
mod model;
mod opening;
mod restructuring;
mod storage;
mod structure;
mod wrap;

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Footer, Header};
use super::{VhdBuilder, VhdImage, check};
use crate::error::Result;
use crate::image::{
    Backing, CreateParameters, DiskType, Finding, Format, IdentifierSource, Image, ImageBuilder,
    ParentLink, Severity,
};
use crate::num::{MIB, to_usize};
use crate::storage::{MemoryStorage, Storage};

/// 2026-11-22.
const NOW: i64 = 1_795_305_600;

fn parameters(disk_type: DiskType, size: u64) -> CreateParameters {
    CreateParameters {
        format: Format::Vhd,
        disk_type,
        virtual_size: size,
        block_size: None,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        parent: (disk_type == DiskType::Differencing).then(|| ParentLink {
            identifier: Uuid::from_u128(7),
            relative_path: r".\parent.vhd".into(),
            absolute_path: "/disks/parent.vhd".into(),
            modified: NOW - 100,
            disk_identifier: None,
        }),
        identifiers: IdentifierSource::seeded(1),
        created: NOW,
    }
}

/// A new, empty disk in memory.
fn create(parameters: &CreateParameters) -> MemoryStorage {
    let storage = Arc::new(MemoryStorage::new());
    VhdBuilder::new(storage.clone(), parameters, &mut |_, _| Ok(()))
        .unwrap()
        .finish()
        .unwrap();
    (*storage).clone()
}

/// As [`create`], with blocks of any power of two: smaller ones than the builder makes.
fn create_small(disk_type: DiskType, size: u64, block_size: u64) -> MemoryStorage {
    let storage = create(&parameters(disk_type, size));
    if disk_type == DiskType::Fixed {
        return storage;
    }
    // A disk of at most 512 KiB has one entry, and a sector of the table has room for 128.
    let blocks = size.div_ceil(block_size);
    assert!(blocks <= 128);
    let mut header = header(&storage);
    header.block_size = u32::try_from(block_size).unwrap().into();
    header.max_table_entries = u32::try_from(blocks).unwrap().into();
    put_header(&storage, header);
    storage
}

fn footer_at(storage: &MemoryStorage, offset: u64) -> Footer {
    let mut bytes = [0; 512];
    storage.read_at(offset, &mut bytes).unwrap();
    Footer::read_from_bytes(&bytes).unwrap()
}

fn header(storage: &MemoryStorage) -> Header {
    let mut bytes = [0; 1024];
    storage.read_at(512, &mut bytes).unwrap();
    Header::read_from_bytes(&bytes).unwrap()
}

fn put_header(storage: &MemoryStorage, mut header: Header) {
    header.sign();
    storage.write_at(512, header.as_bytes()).unwrap();
}

/// Changes both footers of a dynamic disk, or the one of a fixed disk.
fn change_footers(storage: &MemoryStorage, change: impl Fn(&mut Footer)) {
    let end = storage.len().unwrap() - 512;
    let mut footer = footer_at(storage, end);
    let dynamic = footer.disk_type.get() != 2;
    change(&mut footer);
    footer.sign();
    storage.write_at(end, footer.as_bytes()).unwrap();
    if dynamic {
        storage.write_at(0, footer.as_bytes()).unwrap();
    }
}

fn open(storage: &MemoryStorage, writable: bool) -> Result<VhdImage> {
    VhdImage::open(Arc::new(storage.clone()), writable)
}

fn findings(storage: &MemoryStorage) -> Vec<Finding> {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    check(&storage).unwrap()
}

fn codes(storage: &MemoryStorage) -> Vec<&'static str> {
    findings(storage).iter().map(|f| f.code).collect()
}

fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|f| f.severity).max()
}

/// A parent whose every byte is known; past its end it is zero.
struct Pattern {
    bytes: Vec<u8>,
}

impl Backing for Pattern {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        for (i, byte) in (to_usize(offset)..).zip(buf) {
            *byte = self.bytes.get(i).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        let range = to_usize(offset)..to_usize(offset + length).min(self.bytes.len());
        Ok(self
            .bytes
            .get(range)
            .is_none_or(|b| b.iter().all(|&b| b == 0)))
    }
}

/// What the disk shows, with the parent's bytes where the image has none.
fn read_all(image: &dyn Image, backing: &dyn Backing) -> Vec<u8> {
    read_range(image, backing, 0..image.virtual_size())
}

fn read_range(image: &dyn Image, backing: &dyn Backing, range: Range<u64>) -> Vec<u8> {
    try_read(image, backing, range).unwrap()
}

fn try_read(image: &dyn Image, backing: &dyn Backing, range: Range<u64>) -> Result<Vec<u8>> {
    // What nobody fills stays visible.
    let mut bytes = vec![0xEE; to_usize(range.end - range.start)];
    let mut absent = Vec::new();
    image.read_at(range.start, &mut bytes, &mut absent)?;
    let mut last = range.start;
    for Range { start, end } in absent {
        assert!(
            start >= last && start < end && end <= range.end,
            "ascending ranges"
        );
        last = end;
        let part = &mut bytes[to_usize(start - range.start)..to_usize(end - range.start)];
        assert!(
            part.iter().all(|&b| b == 0xEE),
            "absent parts stay untouched"
        );
        backing.read_at(start, part)?;
    }
    Ok(bytes)
}

#[test]
fn a_new_disk_has_no_findings() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        let storage = create(&parameters(disk_type, 3 * MIB + 512));
        assert_eq!(codes(&storage), [""; 0], "{disk_type:?}");
    }
}
