//! What a disk is called, and what it says of its parent.

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::create::{LOCATOR_ROOM, timestamp};
use super::header::SparseHeader;
use super::image::VhdImage;
use super::layout::{EPOCH, Locator, SECTOR};
use super::locator;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{ParentLink, ParentReference};
use crate::num::{round_up, to_usize};

impl VhdImage {
    /// Replaces identifier, time stamp, name and paths of the parent. The header has two sectors and no copy, and all of
    /// this is in both: it goes to free space first, see [`super::journal`].
    pub(super) fn relink(&mut self, link: &ParentLink) -> Result<()> {
        let header = self.child_header("has no parent to be changed")?;
        self.journal.begin()?;
        // Places that were released can be used only when the file knows it.
        self.journal.settle()?;
        let mut raw = header.raw.clone();
        raw.parent_unique_id = link.identifier.into_bytes();
        raw.parent_timestamp = timestamp(link.modified).into();
        raw.parent_unicode_name = locator::encode_name(link);
        raw.parent_locators = [Locator::new_zeroed(); 8];
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        for (slot, (code, mut bytes)) in raw.parent_locators.iter_mut().zip(locator::encode(link)) {
            let length = bytes.len() as u64;
            let room = round_up(length, LOCATOR_ROOM);
            let taken: Vec<_> = parts
                .iter()
                .map(|(at, bytes)| *at..at + bytes.len() as u64)
                .collect();
            let at = self.free_place(&taken, room)?;
            slot.platform_code = code;
            slot.platform_data_space = u32::try_from(room).unwrap_or(u32::MAX).into();
            slot.platform_data_length = u32::try_from(length).unwrap_or(u32::MAX).into();
            slot.platform_data_offset = at.into();
            bytes.resize(to_usize(room), 0);
            parts.push((at, bytes));
        }
        raw.sign();
        let modified = EPOCH + i64::from(raw.parent_timestamp.get());
        self.put_header(SparseHeader { raw, ..header }, &parts)?;
        self.info.parent = Some(ParentReference {
            identifiers: vec![link.identifier],
            paths: locator::paths_of(link),
            modified: (modified != EPOCH).then_some(modified),
        });
        Ok(())
    }

    /// Changes the parent's identifier, which is in the sector of the checksum: one write.
    pub(super) fn accept_parent(&mut self, identifiers: &[Uuid]) -> Result<()> {
        let header = self.child_header("has no parent to be changed")?;
        let [identifier] = identifiers else {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                format!(
                    "a VHD records one identifier of its parent, not {}",
                    identifiers.len()
                ),
            ));
        };
        self.journal.begin()?;
        let mut raw = header.raw.clone();
        raw.parent_unique_id = identifier.into_bytes();
        raw.sign();
        let sector = &raw.as_bytes()[..to_usize(SECTOR)];
        self.journal.change_header_sector(header.offset, sector)?;
        self.adopt_header(SparseHeader { raw, ..header })?;
        if let Some(parent) = &mut self.info.parent {
            parent.identifiers = vec![*identifier];
        }
        Ok(())
    }

    /// Changes UniqueId. Children have it recorded: they lose their parent.
    pub(super) fn rename(&mut self, identifier: Uuid) -> Result<()> {
        let mut footer = (*self.footer).clone();
        footer.unique_id = identifier.into_bytes();
        footer.sign();
        self.journal.change_footer(&footer)?;
        *self.footer = footer;
        self.info.identifier = Some(identifier);
        self.info.link_identifier = Some(identifier);
        Ok(())
    }

    fn child_header(&self, lack: &str) -> Result<SparseHeader> {
        match &self.sparse {
            Some(sparse) if sparse.differencing => Ok(sparse.header.clone()),
            _ => Err(Error::new(
                ErrorKind::InvalidType,
                format!("a {} disk {lack}", self.info.disk_type.name()),
            )
            .with_hint("only a differencing disk has a parent")),
        }
    }
}
