//! What is wrong with a file: the catalogue of section 10 of the format sheet, without changing a byte.

use std::sync::Arc;

use uuid::Uuid;

use super::bat::{self, Geometry, Slot};
use super::header::{self, Headers};
use super::layout::{
    ALIGNMENT, BITMAP_BLOCK, HEADER_AREA, HEADER_OFFSETS, ITEM_PARENT_LOCATOR, MAX_FILE_SIZE,
    METADATA_IS_REQUIRED, REGION_BAT, REGION_METADATA, REGION_TABLE_OFFSETS,
};
use super::log;
use super::metadata::{self, MANDATORY_ITEMS, Metadata};
use super::pages::{PagedTable, Peek};
use super::region::{self, Regions};
use super::space::UsedMap;
use crate::error::Result;
use crate::findings::Findings;
use crate::image::{Finding, Severity};
use crate::storage::Storage;

/// Findings of a check of one file, in the order of the checklist. Codes are stable.
///
/// # Errors
/// Only if the file cannot be read.
pub fn check(storage: &Arc<dyn Storage>) -> Result<Vec<Finding>> {
    let mut findings = Findings::new();
    check_file(storage, &mut findings)?;
    Ok(findings.into_vec())
}

fn check_file(storage: &Arc<dyn Storage>, findings: &mut Findings) -> Result<()> {
    let length = storage.len()?;
    if length < HEADER_AREA {
        findings.add(
            "vhdx-file-too-short",
            Severity::Fatal,
            length,
            format!("the file has {length} bytes, its header area alone takes {HEADER_AREA}"),
        );
        return Ok(());
    }
    let Some(headers) = check_headers(&**storage, length, findings)? else {
        return Ok(());
    };
    let Some(view) = check_log(storage, &headers, findings)? else {
        return Ok(());
    };
    let length = view.len()?;
    if length > MAX_FILE_SIZE {
        findings.add(
            "vhdx-file-too-long",
            Severity::Warning,
            length,
            "the file is longer than 256 TiB and will not be opened for writing",
        );
        return Ok(());
    }
    if !length.is_multiple_of(ALIGNMENT) {
        findings.add(
            "vhdx-length-unaligned",
            Severity::Info,
            length,
            format!("the file's length of {length} bytes is not a multiple of 1 MiB"),
        );
    }
    let Some(regions) = check_regions(&*view, &headers, length, findings)? else {
        return Ok(());
    };
    let metadata = match Metadata::read(&*view, &regions.metadata) {
        Ok(metadata) => metadata,
        Err(e) => return findings.fatal("vhdx-metadata-invalid", e),
    };
    check_items(&*view, &regions, &metadata, findings)?;
    BatCheck::new(&*view, &headers, &regions, &metadata, length, findings).run()
}

fn check_headers(
    storage: &dyn Storage,
    length: u64,
    findings: &mut Findings,
) -> Result<Option<Headers>> {
    let slots = [
        header::read_slot(storage, 0)?,
        header::read_slot(storage, 1)?,
    ];
    if let [Some(a), Some(b)] = &slots
        && a.sequence_number == b.sequence_number
    {
        findings.add(
            "vhdx-headers-equal",
            Severity::Info,
            HEADER_OFFSETS[0],
            format!("both headers have sequence number {}", a.sequence_number),
        );
    }
    if slots.iter().any(Option::is_some) {
        for (slot, offset) in slots.iter().zip(HEADER_OFFSETS) {
            if slot.is_none() {
                findings.add(
                    "vhdx-header-invalid",
                    Severity::Warning,
                    offset,
                    "this header's signature or checksum is wrong; the other one is used",
                );
            }
        }
    }
    match Headers::read(storage, length) {
        Ok(headers) => {
            if headers.sequence_number == u64::MAX {
                findings.add(
                    "vhdx-sequence-exhausted",
                    Severity::Error,
                    HEADER_OFFSETS[headers.current],
                    "the sequence number cannot grow any more: the file can be read but not written",
                );
            }
            Ok(Some(headers))
        }
        Err(e) => findings.fatal("vhdx-headers-invalid", e).map(|()| None),
    }
}

/// The file as it is with its log applied.
fn check_log(
    storage: &Arc<dyn Storage>,
    headers: &Headers,
    findings: &mut Findings,
) -> Result<Option<Arc<dyn Storage>>> {
    if headers.log_length == 0 {
        findings.add(
            "vhdx-log-missing",
            Severity::Info,
            None,
            "the file has no log; the first writer makes one",
        );
    }
    if headers.log_guid.is_nil() {
        return Ok(Some(storage.clone()));
    }
    match log::replay_in_memory(storage, headers) {
        Ok(view) => {
            findings.add(
                "vhdx-log-not-empty",
                Severity::Info,
                headers.log_offset,
                "the log holds changes that are not in place yet; the next opening for writing replays it",
            );
            Ok(Some(view))
        }
        Err(e) => findings.fatal("vhdx-log-unreplayable", e).map(|()| None),
    }
}

fn check_regions(
    storage: &dyn Storage,
    headers: &Headers,
    length: u64,
    findings: &mut Findings,
) -> Result<Option<Regions>> {
    let copies = [
        region::read_copy(storage, 0)?,
        region::read_copy(storage, 1)?,
    ];
    match &copies {
        [Some(a), Some(b)] if a != b => findings.add(
            "vhdx-region-tables-differ",
            Severity::Warning,
            REGION_TABLE_OFFSETS[1],
            "the two region tables differ; the first one is used",
        ),
        [Some(_), Some(_)] | [None, None] => {}
        _ => {
            let bad = usize::from(copies[0].is_some());
            findings.add(
                "vhdx-region-table-invalid",
                Severity::Warning,
                REGION_TABLE_OFFSETS[bad],
                "this region table's signature or checksum is wrong; the other one is used",
            );
        }
    }
    let regions = match Regions::read(storage, headers, length) {
        Ok(regions) => regions,
        Err(e) => return findings.fatal("vhdx-regions-invalid", e).map(|()| None),
    };
    for region in &regions.all {
        let known = [REGION_BAT, REGION_METADATA].contains(&region.guid);
        if known && !region.required {
            findings.add(
                "vhdx-region-not-required",
                Severity::Info,
                region.offset,
                format!(
                    "region {} is not marked as required",
                    Uuid::from(region.guid)
                ),
            );
        }
        if !known {
            findings.add(
                "vhdx-region-unknown",
                Severity::Info,
                region.offset,
                format!(
                    "region {} is not known and left alone",
                    Uuid::from(region.guid)
                ),
            );
        }
    }
    Ok(Some(regions))
}

/// What of the metadata is odd but can be understood.
fn check_items(
    storage: &dyn Storage,
    regions: &Regions,
    metadata: &Metadata,
    findings: &mut Findings,
) -> Result<()> {
    let at = regions.metadata.offset;
    for item in metadata::read_table(storage, &regions.metadata)? {
        let system = !item.is_user();
        if system && item.id == ITEM_PARENT_LOCATOR && !metadata.has_parent {
            findings.add(
                "vhdx-parent-locator-unused",
                Severity::Warning,
                at + item.offset,
                "there is a parent locator, but the disk says that it has no parent: it is not used",
            );
        }
        if system && MANDATORY_ITEMS.contains(&item.id) && item.flags & METADATA_IS_REQUIRED == 0 {
            findings.add(
                "vhdx-item-not-required",
                Severity::Info,
                at + item.offset,
                format!(
                    "metadata item {} is not marked as required",
                    Uuid::from(item.id)
                ),
            );
        }
    }
    Ok(())
}

/// The walk over the BAT.
struct BatCheck<'a> {
    storage: &'a dyn Storage,
    regions: &'a Regions,
    metadata: &'a Metadata,
    geometry: Geometry,
    length: u64,
    findings: &'a mut Findings,
    used: UsedMap,
    /// Chunks with partially present blocks that wait for their bitmap entry, which comes after them.
    needs_bitmap: Option<u64>,
    anchors: u64,
}

impl<'a> BatCheck<'a> {
    fn new(
        storage: &'a dyn Storage,
        headers: &Headers,
        regions: &'a Regions,
        metadata: &'a Metadata,
        length: u64,
        findings: &'a mut Findings,
    ) -> Self {
        let mut used = UsedMap::default();
        used.mark(0, HEADER_AREA);
        used.mark(headers.log_offset, headers.log_length);
        for region in &regions.all {
            used.mark(region.offset, region.length);
        }
        let geometry = Geometry::new(
            metadata.block_size,
            metadata.logical_sector_size,
            metadata.virtual_size,
        );
        Self {
            storage,
            regions,
            metadata,
            geometry,
            length,
            findings,
            used,
            needs_bitmap: None,
            anchors: 0,
        }
    }

    fn run(mut self) -> Result<()> {
        let available = self.regions.bat.length / 8;
        let entries = self.geometry.entries_used(self.metadata.has_parent);
        if available < entries {
            self.findings.add(
                "vhdx-bat-too-short",
                Severity::Fatal,
                self.regions.bat.offset,
                format!("the BAT region holds {available} entries, the disk needs {entries}"),
            );
            return Ok(());
        }
        let table = PagedTable::new(self.regions.bat.offset, available);
        let mut index = 0;
        while index < available {
            match table.peek(self.storage, index)? {
                Peek::Zeros(count) => {
                    self.skip_zeros(index, count);
                    index += count;
                }
                Peek::Words(words) => {
                    for entry in words {
                        self.entry(index, entry);
                        index += 1;
                    }
                }
            }
        }
        self.finish();
        Ok(())
    }

    /// A run of zero entries: a bitmap entry among them is missing if a block before it needs it.
    fn skip_zeros(&mut self, index: u64, count: u64) {
        if let Some(chunk) = self.needs_bitmap
            && (index..index + count).contains(&self.geometry.bitmap_index(chunk))
        {
            self.bitmap_entry(self.geometry.bitmap_index(chunk), chunk, 0);
        }
    }

    fn place(&self, index: u64) -> u64 {
        self.regions.bat.offset + index * 8
    }

    fn entry(&mut self, index: u64, entry: u64) {
        match self.geometry.slot(index) {
            Slot::Payload(block) if block < self.geometry.block_count => {
                self.payload_entry(index, block, entry);
            }
            Slot::Bitmap(chunk) if chunk < self.geometry.chunk_count => {
                self.bitmap_entry(index, chunk, entry);
            }
            _ if entry != 0 => self.findings.add(
                "vhdx-bat-padding",
                Severity::Warning,
                self.place(index),
                format!("BAT entry {index} lies beyond the disk but is {entry:#x}"),
            ),
            _ => {}
        }
    }

    fn payload_entry(&mut self, index: u64, block: u64, entry: u64) {
        let (state, offset, at) = (bat::state(entry), bat::offset(entry), self.place(index));
        if bat::has_reserved_bits(entry) {
            self.findings.add(
                "vhdx-bat-reserved-bits",
                Severity::Error,
                at,
                format!("the entry of block {block} ({entry:#x}) has reserved bits set"),
            );
        }
        match state {
            bat::NOT_PRESENT | bat::ZERO if offset != 0 => self.findings.add(
                "vhdx-bat-offset-unused",
                Severity::Warning,
                at,
                format!("block {block} is not present but its entry ({entry:#x}) has an offset"),
            ),
            bat::NOT_PRESENT | bat::ZERO => {}
            bat::UNDEFINED | bat::UNMAPPED => {
                if offset != 0 {
                    self.anchors += 1;
                    self.mark_block(at, block, offset);
                }
            }
            bat::UNMAPPED_DRAFT => self.findings.add(
                "vhdx-bat-state-draft",
                Severity::Error,
                at,
                format!("block {block} has state 5 of a draft of the format, read as zeros"),
            ),
            bat::PRESENT => self.mark_block(at, block, offset),
            bat::PARTIAL if self.metadata.has_parent => {
                self.needs_bitmap = Some(block / self.geometry.chunk_ratio);
                self.mark_block(at, block, offset);
            }
            bat::PARTIAL => {
                self.findings.add(
                    "vhdx-bat-partial-without-parent",
                    Severity::Error,
                    at,
                    format!("block {block} is partially present, but the disk has no parent"),
                );
                self.mark_block(at, block, offset);
            }
            _ => self.findings.add(
                "vhdx-bat-state-invalid",
                Severity::Error,
                at,
                format!("block {block} has the reserved state {state}"),
            ),
        }
    }

    fn mark_block(&mut self, at: u64, block: u64, offset: u64) {
        let size = self.geometry.block_size;
        if offset < HEADER_AREA || offset >= self.length {
            self.findings.add(
                "vhdx-block-outside",
                Severity::Error,
                at,
                format!(
                    "block {block} is at {offset}, outside the file of {} bytes",
                    self.length
                ),
            );
            return;
        }
        if offset + size > self.length {
            self.findings.add(
                "vhdx-block-cut-short",
                Severity::Warning,
                at,
                format!("block {block} at {offset} reaches past the end of the file; the rest reads as zeros"),
            );
        }
        if !self.used.mark(offset, size) {
            self.findings.add(
                "vhdx-block-overlap",
                Severity::Error,
                at,
                format!("block {block} at {offset} shares space with something else"),
            );
        }
    }

    fn bitmap_entry(&mut self, index: u64, chunk: u64, entry: u64) {
        let at = self.place(index);
        let needed = self
            .needs_bitmap
            .take_if(|needed| *needed == chunk)
            .is_some();
        if !self.metadata.has_parent {
            if entry != 0 {
                self.findings.add(
                    "vhdx-bitmap-unexpected",
                    Severity::Warning,
                    at,
                    format!(
                        "chunk {chunk} has a sector bitmap ({entry:#x}), but the disk has no parent"
                    ),
                );
            }
            return;
        }
        match bat::bitmap(chunk, entry, self.length) {
            Ok(None) if needed => self.findings.add(
                "vhdx-bitmap-missing",
                Severity::Error,
                at,
                format!("chunk {chunk} has partially present blocks but no sector bitmap"),
            ),
            Ok(None) => {}
            Ok(Some(offset)) => {
                if !self.used.mark(offset, BITMAP_BLOCK) {
                    self.findings.add(
                        "vhdx-bitmap-overlap",
                        Severity::Error,
                        at,
                        format!("the sector bitmap of chunk {chunk} at {offset} shares space with something else"),
                    );
                }
            }
            Err(e) => self
                .findings
                .add("vhdx-bitmap-invalid", Severity::Error, at, e.reason()),
        }
    }

    fn finish(self) {
        if self.anchors > 0 {
            self.findings.add(
                "vhdx-soft-anchors",
                Severity::Info,
                None,
                format!(
                    "{} blocks without content keep their old space",
                    self.anchors
                ),
            );
        }
        let holes = self.used.free();
        let tail = self.length.saturating_sub(self.used.end());
        if holes + tail > 0 {
            self.findings.add(
                "vhdx-space-unused",
                Severity::Info,
                None,
                format!("{} bytes of the file belong to nothing", holes + tail),
            );
        }
    }
}
