//! Moving the second copy of a GPT to the end of a disk that has another size.
//!
//! The order keeps one whole copy on the disk at every moment, whatever is lost in a crash: with a whole first copy the
//! second is replaced before the first is touched; otherwise the first is made from the second before that is
//! overwritten. The protective MBR only tells old programs how far the GPT reaches, so it comes after; the old second
//! copy goes last.

use zerocopy::FromBytes;

use super::gpt::{Gpt, Header, PRIMARY};
use super::mbr;
use crate::num::to_usize;

/// Steps to be done in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GptMove {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step of a [`GptMove`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a writer has to know all of them")]
pub enum Step {
    /// Write these bytes: whole sectors.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// What was written so far has to be on stable media before anything else is written.
    Flush,
}

/// The steps for a disk of `sectors` sectors, of which the first `occupied` hold the first copy and partitions; it is
/// known to have room. `None` if the first copy would have to be made anew and there is no room for it.
pub(super) fn plan(
    gpt: &Gpt,
    purely_gpt: bool,
    sector: u64,
    (sectors, occupied): (u64, u64),
) -> Option<GptMove> {
    let array = gpt.array_sectors(sector);
    let last = sectors.checked_sub(1)?;
    let entries_lba = last.checked_sub(array)?;
    let last_usable = entries_lba.checked_sub(1)?;
    let mut entries = gpt.table.entries.clone();
    entries.resize(to_usize(array * sector), 0);

    let write = |lba: u64, bytes: Vec<u8>| Step::Write {
        offset: lba * sector,
        bytes,
    };
    let backup_header = gpt.table.header_sector(sector, |header: &mut Header| {
        header.own_lba = last.into();
        header.alternate_lba = PRIMARY.into();
        header.last_usable = last_usable.into();
        header.entries_lba = entries_lba.into();
    });
    let backup = [
        write(entries_lba, entries.clone()),
        write(last, backup_header),
        Step::Flush,
    ];
    let primary_entries_lba = if gpt.primary_is_whole {
        gpt.table.header.entries_lba.get()
    } else {
        PRIMARY + 1
    };
    let primary_header = gpt.table.header_sector(sector, |header: &mut Header| {
        header.own_lba = PRIMARY.into();
        header.alternate_lba = last.into();
        header.last_usable = last_usable.into();
        header.entries_lba = primary_entries_lba.into();
    });

    let mut steps = Vec::new();
    if gpt.primary_is_whole {
        steps.extend(backup);
        steps.push(write(PRIMARY, primary_header));
    } else {
        if primary_entries_lba + array > gpt.first_usable() {
            return None;
        }
        steps.push(write(primary_entries_lba, entries));
        steps.push(write(PRIMARY, primary_header));
        steps.push(Step::Flush);
        steps.extend(backup);
    }
    if purely_gpt && let Some(bytes) = protective_mbr(&gpt.first_sector, last) {
        steps.push(write(0, bytes));
    }
    steps.push(Step::Flush);
    if let Some((lba, length)) = old_backup(gpt, array, occupied, entries_lba) {
        steps.push(write(lba, vec![0; to_usize(length * sector)]));
        steps.push(Step::Flush);
    }
    Some(GptMove { steps })
}

/// The first sector with the protective entry reaching to sector `last`, or as far as it can; `None` if there is no such
/// entry, or nothing changes.
fn protective_mbr(first_sector: &[u8], last: u64) -> Option<Vec<u8>> {
    let entries = mbr::entries(first_sector)?;
    let index = entries.iter().position(mbr::Entry::is_protective)?;
    let mut bytes = first_sector.to_vec();
    let at = mbr::ENTRIES_OFFSET + index * mbr::ENTRY_LENGTH;
    let entry = mbr::Entry::mut_from_bytes(bytes.get_mut(at..at + mbr::ENTRY_LENGTH)?).ok()?;
    entry.sectors = u32::try_from(last).unwrap_or(u32::MAX).into();
    (bytes != first_sector).then_some(bytes)
}

/// Sectors of the old second copy that the new one, which starts at `new`, does not cover: first and number. `None` if
/// it lies after the new end, or anywhere but behind all partitions.
fn old_backup(gpt: &Gpt, array: u64, occupied: u64, new: u64) -> Option<(u64, u64)> {
    let old = gpt.backup?;
    let usual = old.entries.checked_add(array) == Some(old.header) && old.entries >= occupied;
    let length = (old.header + 1).min(new).checked_sub(old.entries)?;
    (usual && length > 0).then_some((old.entries, length))
}
