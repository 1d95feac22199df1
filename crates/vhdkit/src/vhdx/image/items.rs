//! Changing metadata items (format sheet 5): small ones in place, through the log; others are written where nothing
//! is, and the log switches the table to them. If the region has no room, a larger one takes its place.

use uuid::Uuid;

use super::VhdxImage;
use crate::error::{Error, ErrorKind, Result};
use crate::num::{MIB, round_down, round_up, to_usize};
use crate::vhdx::header::corrupt;
use crate::vhdx::journal::PlacedPage;
use crate::vhdx::layout::{
    Guid, MAX_METADATA_ENTRIES, MAX_METADATA_ITEM, MAX_METADATA_REGION, MAX_USER_ITEMS,
    MAX_USER_METADATA, METADATA_IS_USER, METADATA_TABLE_LENGTH, REGION_METADATA,
};
use crate::vhdx::metadata::{self, Item};
use crate::vhdx::pages::PAGE;
use crate::vhdx::region;
use crate::vhdx::space::Span;

/// Items start at multiples of this where this library places them.
const ITEM_ALIGNMENT: u64 = 8;

impl VhdxImage {
    fn items(&self) -> Result<Vec<Item>> {
        metadata::read_table(&*self.storage, &self.regions.metadata)
    }

    /// See [`crate::image::Image::user_metadata`].
    pub(super) fn user_items(&self) -> Result<Vec<(Uuid, u32)>> {
        let items = self.items()?;
        let user = items.iter().filter(|item| item.is_user());
        Ok(user.map(|item| (item.id.into(), item.length)).collect())
    }

    /// See [`crate::image::Image::read_user_metadata`].
    pub(super) fn read_user_item(&self, id: Uuid) -> Result<Vec<u8>> {
        check_identifier(id)?;
        let items = self.items()?;
        let item = items
            .iter()
            .find(|item| item.is_user() && Uuid::from(item.id) == id)
            .ok_or_else(|| not_found(id))?;
        self.read_item(item)
    }

    /// See [`crate::image::Image::write_user_metadata`].
    pub(super) fn write_user_item(&mut self, id: Uuid, value: Option<&[u8]>) -> Result<()> {
        self.check_writable()?;
        check_identifier(id)?;
        self.put_item(id.into(), METADATA_IS_USER, value)
    }

    pub(super) fn read_item(&self, item: &Item) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(item.length.into())];
        if !bytes.is_empty() {
            self.storage
                .read_at(self.regions.metadata.offset + item.offset, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// The pages that change when an item of fixed length gets this value.
    pub(super) fn patched_pages(&self, id: Guid, value: &[u8]) -> Result<Vec<PlacedPage>> {
        let items = self.items()?;
        let item = metadata::find(&items, id)
            .filter(|item| item.length as usize == value.len())
            .ok_or_else(|| corrupt(format!("the metadata item {id:?} is missing")))?;
        let start = self.regions.metadata.offset + item.offset;
        let end = start + u64::from(item.length);
        let first = round_down(start, PAGE);
        let mut bytes = vec![0; to_usize(round_up(end, PAGE) - first)];
        self.storage.read_at(first, &mut bytes)?;
        bytes[to_usize(start - first)..to_usize(end - first)].copy_from_slice(value);
        Ok(bytes
            .chunks(to_usize(PAGE))
            .zip((first..).step_by(to_usize(PAGE)))
            .map(|(page, at)| (at, page.into()))
            .collect())
    }

    /// Reserves the places of pages, so that a full host cannot stop them once they are logged.
    pub(super) fn reserve_pages(&self, pages: &[PlacedPage]) -> Result<()> {
        pages
            .iter()
            .try_for_each(|&(at, _)| self.storage.allocate(at, PAGE))
    }

    /// Commits pages in one log entry and gives back what they no longer refer to; `freed_logged` had logged pages, and
    /// stays taken until the log is sealed or closed.
    pub(super) fn commit_pages(
        &self,
        pages: Vec<PlacedPage>,
        freed: &[Span],
        freed_logged: &[Span],
    ) -> Result<()> {
        self.reserve_pages(&pages)?;
        self.journal
            .transact(&*self.storage, &|page| self.take_page(page), pages, freed)?;
        for &span in freed_logged {
            self.journal.free_logged(span);
        }
        Ok(())
    }

    /// Writes, replaces or deletes an item; `flags` are those of a new one.
    pub(super) fn put_item(&mut self, id: Guid, flags: u32, value: Option<&[u8]>) -> Result<()> {
        let items = self.items()?;
        let user = flags & METADATA_IS_USER != 0;
        let known = items
            .iter()
            .position(|item| item.id == id && item.is_user() == user);
        let mut wanted = items.clone();
        let Some(value) = value else {
            let position = known.ok_or_else(|| not_found(id.into()))?;
            wanted.remove(position);
            self.begin_structure()?;
            return self.switch_table(&wanted);
        };
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let mut item = Item {
            id,
            offset: 0,
            length,
            flags,
        };
        let position = known.unwrap_or(items.len());
        if let Some(before) = wanted.get_mut(position) {
            item.flags = before.flags;
            *before = item;
        } else {
            wanted.push(item);
        }
        check_limits(&wanted)?;
        self.begin_structure()?;
        if value.is_empty() {
            return self.switch_table(&wanted);
        }
        let region = self.regions.metadata;
        let Some(gap) = find_gap(&items, region.length, value.len() as u64) else {
            return self.relocate_metadata(wanted, position, value);
        };
        wanted[position].offset = gap;
        // A page of the region that is still in the log would be put back over the item (J9).
        self.journal.seal_log(&*self.storage)?;
        self.storage.write_at(region.offset + gap, value)?;
        self.switch_table(&wanted)
    }

    fn switch_table(&self, items: &[Item]) -> Result<()> {
        let table = metadata::encode_table(items);
        let at = self.regions.metadata.offset;
        let mut present = vec![0; METADATA_TABLE_LENGTH];
        self.storage.read_at(at, &mut present)?;
        let size = to_usize(PAGE);
        let pages = table
            .chunks(size)
            .zip(present.chunks(size))
            .zip((at..).step_by(size))
            .filter(|((new, old), _)| new != old)
            .map(|((new, _), at)| (at, new.into()))
            .collect();
        self.commit_pages(pages, &[], &[])
    }

    /// A new region with all items, one of them with a new value.
    fn relocate_metadata(
        &mut self,
        mut wanted: Vec<Item>,
        position: usize,
        value: &[u8],
    ) -> Result<()> {
        let mut end = METADATA_TABLE_LENGTH as u64;
        let mut sources = Vec::new();
        for (i, item) in wanted.iter_mut().enumerate() {
            let source = *item;
            if item.length > 0 {
                item.offset = end;
                end = round_up(end + u64::from(item.length), ITEM_ALIGNMENT);
            }
            sources.push((i != position).then_some(source));
        }
        if end > MAX_METADATA_REGION {
            return Err(full(format!(
                "items of {end} bytes in all do not fit a metadata region"
            )));
        }
        // With room for others to come.
        let length = round_up(end + end / 2, MIB).min(MAX_METADATA_REGION);
        let at = self.journal.take_space(&*self.storage, length)?;
        let write = || -> Result<_> {
            self.storage.allocate(at, length)?;
            self.storage
                .write_at(at, &metadata::encode_table(&wanted))?;
            for (item, source) in wanted.iter().zip(&sources) {
                match source {
                    _ if item.length == 0 => {}
                    Some(source) => self
                        .storage
                        .write_at(at + item.offset, &self.read_item(source)?)?,
                    None => self.storage.write_at(at + item.offset, value)?,
                }
            }
            let regions = self.with_region(REGION_METADATA, at, length);
            let pages = region::changed_pages(&*self.storage, &regions)?;
            self.reserve_pages(&pages)?;
            Ok((regions, pages))
        };
        let (regions, pages) = match write() {
            Ok(written) => written,
            Err(e) => {
                self.journal.abandon_space(&*self.storage, (at, length));
                return Err(e);
            }
        };
        let before = self.regions.metadata;
        self.commit_pages(pages, &[], &[(before.offset, before.length)])?;
        self.adopt_regions(regions);
        Ok(())
    }
}

fn check_identifier(id: Uuid) -> Result<()> {
    if id.is_nil() {
        return Err(Error::new(
            ErrorKind::InvalidParameter,
            "a metadata item cannot have the identifier that is all zeros",
        )
        .with_hint("choose any other GUID"));
    }
    Ok(())
}

fn check_limits(items: &[Item]) -> Result<()> {
    let user: Vec<&Item> = items.iter().filter(|item| item.is_user()).collect();
    if user.len() > MAX_USER_ITEMS || items.len() > MAX_METADATA_ENTRIES.into() {
        return Err(full(format!(
            "a disk holds at most {MAX_USER_ITEMS} items of metadata"
        )));
    }
    if let Some(item) = items.iter().find(|item| item.length > MAX_METADATA_ITEM) {
        return Err(Error::new(
            ErrorKind::MetadataFull,
            format!(
                "an item of metadata has at most 1 MiB, not {} bytes",
                item.length
            ),
        )
        .with_hint("keep what is larger in a file of its own"));
    }
    let total: u64 = user.iter().map(|item| u64::from(item.length)).sum();
    if total > MAX_USER_METADATA {
        return Err(full(format!(
            "the items of a disk's metadata have at most 40 MiB in all, not {total} bytes"
        )));
    }
    Ok(())
}

fn full(reason: String) -> Error {
    Error::new(ErrorKind::MetadataFull, reason).with_hint("delete items that are not needed")
}

fn not_found(id: Uuid) -> Error {
    Error::new(
        ErrorKind::ItemNotFound,
        format!("the disk has no metadata item {id}"),
    )
    .with_hint("'vhdkit metadata list' shows what there is")
}

/// The lowest place in the region where nothing is.
fn find_gap(items: &[Item], region_length: u64, length: u64) -> Option<u64> {
    let mut taken: Vec<(u64, u64)> = items
        .iter()
        .filter(|item| item.length > 0)
        .map(|item| (item.offset, item.offset + u64::from(item.length)))
        .collect();
    taken.sort_unstable();
    let mut free_from = METADATA_TABLE_LENGTH as u64;
    for (start, end) in taken {
        if free_from + length <= start {
            break;
        }
        free_from = round_up(free_from.max(end), ITEM_ALIGNMENT);
    }
    (free_from + length <= region_length).then_some(free_from)
}
