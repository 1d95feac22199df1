//! Floor 1: what is on a disk, as far as the disk system has to know it: the partition table.
//!
//! Read-only, and it knows nothing but a way to read bytes ([`Medium`]). Both tables are read: MBR with its chain of
//! logical partitions, and GPT with both copies. Everything read is taken as hostile: bounded memory, bounded reads, no
//! panic, no loop.
//!
//! What the table is needed for: how small a disk may become ([`PartitionTable::smallest_safe_size`]), and where the
//! second copy of a GPT has to go when the disk has another size ([`PartitionTable::backup_gpt`]).

mod gpt;
mod mbr;
mod moves;

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::num::round_up;

pub use gpt::Gpt;
pub use moves::{GptMove, Step};

/// A disk whose content can be read.
#[derive(Clone, Copy)]
pub struct Medium<'a> {
    size: u64,
    sector_size: u32,
    read: &'a dyn Fn(u64, &mut [u8]) -> Result<()>,
}

impl<'a> Medium<'a> {
    /// A disk of `size` bytes with logical sectors of `sector_size` bytes; `read` fills a buffer from an offset, and is
    /// only asked for ranges inside the disk.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedSectorSize`] if the sectors have neither 512 nor 4096 bytes.
    pub fn new(
        size: u64,
        sector_size: u32,
        read: &'a dyn Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        if sector_size != 512 && sector_size != 4096 {
            return Err(Error::new(
                ErrorKind::UnsupportedSectorSize,
                format!("partition tables have sectors of 512 or 4096 bytes, not {sector_size}"),
            ));
        }
        Ok(Self {
            size,
            sector_size,
            read,
        })
    }

    fn sector_bytes(&self) -> u64 {
        self.sector_size.into()
    }

    /// Whole sectors of the disk.
    fn sectors(&self) -> u64 {
        self.size / self.sector_bytes()
    }

    /// `length` bytes from the start of a sector; `None` if they are not all inside the disk.
    fn read_sectors(&self, lba: u64, length: usize) -> Result<Option<Vec<u8>>> {
        let range = lba
            .checked_mul(self.sector_bytes())
            .and_then(|start| Some((start, start.checked_add(length as u64)?)));
        match range {
            Some((start, end)) if end <= self.size => {
                let mut bytes = vec![0; length];
                (self.read)(start, &mut bytes)?;
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    /// One whole sector.
    fn read_sector(&self, lba: u64) -> Result<Option<Vec<u8>>> {
        self.read_sectors(lba, self.sector_size as usize)
    }
}

/// What a partition is for, as its table says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there are these two tables")]
pub enum PartitionType {
    /// The type byte of an MBR: 0x07, 0x83...
    Mbr(u8),
    /// The type GUID of a GPT.
    Gpt(Uuid),
}

/// One partition.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Partition {
    /// Its place in the table, from 1; logical partitions of an MBR count from 5.
    pub number: u32,
    /// Where it starts, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What it is for.
    pub kind: PartitionType,
}

impl Partition {
    fn new(number: u32, (lba, sectors): (u64, u64), sector: u64, kind: PartitionType) -> Self {
        Self {
            number,
            start: lba.saturating_mul(sector),
            length: sectors.saturating_mul(sector),
            kind,
        }
    }

    /// The first byte after it; may lie after the end of the disk.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// Which table it is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there are these two")]
pub enum Scheme {
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt(Gpt),
}

/// The partitions of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PartitionTable {
    /// Which table it is.
    pub scheme: Scheme,
    /// Size of the logical sectors in bytes, in which the table counts.
    pub sector_size: u32,
    /// The partitions in the order of the table. In an MBR the extended partition is one of them, its logical
    /// partitions follow after the fourth.
    pub partitions: Vec<Partition>,
    /// Beside a GPT: partitions that the MBR has besides the protective one (a "hybrid" MBR). They normally repeat some
    /// of the GPT's.
    pub hybrid: Vec<Partition>,
    /// False if the chain of logical partitions leads in a circle, out of the extended partition, or to bytes that are
    /// no table.
    pub complete: bool,
}

/// The partition table of a disk; `None` if there is none that can be read: an empty disk, a file system without a
/// table, a damaged table.
///
/// # Errors
/// What reading fails with; whatever the bytes are is no error.
pub fn partitions(medium: &Medium<'_>) -> Result<Option<PartitionTable>> {
    let Some(first) = medium.read_sector(0)? else {
        return Ok(None);
    };
    let mbr = mbr::parse(&first);
    let protective = mbr.as_ref().is_some_and(mbr::Mbr::is_protective);
    let claims_all = mbr.as_ref().is_some_and(|m| !m.is_empty()) && !protective;
    // Where an MBR has partitions of its own, what looks like a GPT is left over from an earlier life of the disk.
    if !claims_all && let Some(gpt) = Gpt::read(medium, first)? {
        let sector = medium.sector_bytes();
        let hybrid = match &mbr {
            Some(mbr) => mbr
                .primaries(sector)
                .filter(mbr::is_not_protective)
                .collect(),
            None => Vec::new(),
        };
        return Ok(Some(PartitionTable {
            partitions: gpt.partitions(sector),
            scheme: Scheme::Gpt(gpt),
            sector_size: medium.sector_size,
            hybrid,
            complete: true,
        }));
    }
    match mbr {
        // Protective of a GPT that is not there: nobody knows where the partitions are.
        Some(mbr) if !protective => {
            let (partitions, complete) = mbr.partitions(medium)?;
            Ok(Some(PartitionTable {
                scheme: Scheme::Mbr,
                sector_size: medium.sector_size,
                partitions,
                hybrid: Vec::new(),
                complete,
            }))
        }
        _ => Ok(None),
    }
}

impl PartitionTable {
    /// The least size in bytes that a disk may be given without cutting off a partition (virtdisk-api section 7, row
    /// 17): the end of the last partition, with a GPT also room for its second copy (33 sectors of 512 bytes for the
    /// usual 128 entries), rounded up to whole sectors. It may be more than the disk has now.
    ///
    /// `None` if the table does not tell: an MBR without partitions may as well be a file system without a table, of a
    /// broken chain of logical partitions not all are known, and a dynamic disk (0x42) has its database behind its
    /// partitions. Callers then fail with [`ErrorKind::NoSmallestSize`].
    pub fn smallest_safe_size(&self) -> Option<u64> {
        let sector = u64::from(self.sector_size);
        let backup = match &self.scheme {
            Scheme::Mbr => 0,
            Scheme::Gpt(gpt) => gpt.backup_sectors(sector).checked_mul(sector)?,
        };
        let size = self.occupied()?.checked_add(backup)?;
        (size <= u64::MAX - sector).then(|| round_up(size, sector))
    }

    /// True for a dynamic disk of Windows: its database is behind the partitions, in the last MiB.
    fn is_dynamic(&self) -> bool {
        const LOGICAL_DISK_MANAGER: PartitionType = PartitionType::Mbr(0x42);
        self.partitions
            .iter()
            .any(|p| p.kind == LOGICAL_DISK_MANAGER)
    }

    /// The end of everything that must not be cut off, in bytes, but for the second copy of a GPT.
    fn occupied(&self) -> Option<u64> {
        let all = self.partitions.iter().chain(&self.hybrid);
        let end = all.map(Partition::end).max();
        match &self.scheme {
            Scheme::Mbr => end.filter(|_| self.complete && !self.is_dynamic()),
            Scheme::Gpt(gpt) => {
                let sector = u64::from(self.sector_size);
                let first = gpt.first_free(sector)?.checked_mul(sector)?;
                Some(end.unwrap_or(0).max(first))
            }
        }
    }

    /// What has to be written so that the second copy of the GPT is at the end of a disk of `new_size` bytes and
    /// everything else agrees with that. `None` if there is no GPT, if `new_size` is not a multiple of the sector size,
    /// or if it is less than [`PartitionTable::smallest_safe_size`].
    ///
    /// The table is the one read before the disk was given its new size. When the disk becomes smaller the steps come
    /// before its end is cut off, when it becomes larger after.
    pub fn backup_gpt(&self, new_size: u64) -> Option<GptMove> {
        let sector = u64::from(self.sector_size);
        let Scheme::Gpt(gpt) = &self.scheme else {
            return None;
        };
        if !new_size.is_multiple_of(sector) || new_size < self.smallest_safe_size()? {
            return None;
        }
        let occupied = self.occupied()?.div_ceil(sector);
        let purely_gpt = self.hybrid.is_empty();
        moves::plan(gpt, purely_gpt, sector, (new_size / sector, occupied))
    }
}
