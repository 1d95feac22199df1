//! What the file says of itself and of its parent (format sheet 2.2, 5.1).

use uuid::Uuid;

use super::VhdxImage;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ParentLink;
use crate::vhdx::header::corrupt;
use crate::vhdx::layout::{
    ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR_SIZE, ITEM_VIRTUAL_DISK_ID, METADATA_IS_REQUIRED,
};
use crate::vhdx::{locator, metadata};

impl VhdxImage {
    /// See [`crate::image::Image::set_parent`].
    pub(super) fn replace_parent(&mut self, link: &ParentLink) -> Result<()> {
        self.check_differencing()?;
        check_not_nil(link.identifier, "a parent's identifier")?;
        if link.relative_path.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                "a parent needs a path relative to its child",
            ));
        }
        self.put_locator(&locator::encode(link)?)
    }

    /// See [`crate::image::Image::set_parent_identifiers`].
    pub(super) fn replace_parent_identifiers(&mut self, identifiers: &[Uuid]) -> Result<()> {
        self.check_differencing()?;
        let [first, others @ ..] = identifiers else {
            return Err(bad_count(0));
        };
        if others.len() > 1 {
            return Err(bad_count(identifiers.len()));
        }
        for &identifier in identifiers {
            check_not_nil(identifier, "a parent's identifier")?;
        }
        let items = metadata::read_table(&*self.storage, &self.regions.metadata)?;
        let item = metadata::find(&items, ITEM_PARENT_LOCATOR).ok_or_else(|| {
            corrupt("the disk has a parent but the metadata has no parent locator")
        })?;
        let present = self.read_item(item)?;
        let changed =
            locator::with_identifiers(&present, *first, others.iter().find(|&o| o != first))?;
        if changed == present {
            return Ok(());
        }
        self.put_locator(&changed)
    }

    fn put_locator(&mut self, item: &[u8]) -> Result<()> {
        let parent = locator::parse(item)?;
        self.put_item(ITEM_PARENT_LOCATOR, METADATA_IS_REQUIRED, Some(item))?;
        self.metadata.parent = Some(parent);
        Ok(())
    }

    fn check_differencing(&self) -> Result<()> {
        self.check_writable()?;
        if self.metadata.has_parent {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidType,
            "only a differencing disk has a parent",
        ))
    }

    /// See [`crate::image::Image::set_link_identifier`].
    pub(super) fn choose_link_identifier(&mut self, identifier: Uuid) -> Result<()> {
        self.check_writable()?;
        check_not_nil(identifier, "the identifier for children")?;
        self.begin_structure()?;
        self.journal.set_data_write_guid(&*self.storage, identifier)
    }

    /// See [`crate::image::Image::set_identifier`].
    pub(super) fn replace_identifier(&mut self, identifier: Uuid) -> Result<()> {
        self.check_writable()?;
        check_not_nil(identifier, "a disk's identifier")?;
        if identifier == self.metadata.virtual_disk_id {
            return Ok(());
        }
        self.begin_structure()?;
        let pages = self.patched_pages(ITEM_VIRTUAL_DISK_ID, &identifier.to_bytes_le())?;
        self.commit_pages(pages, &[], &[])?;
        self.metadata.virtual_disk_id = identifier;
        Ok(())
    }

    /// See [`crate::image::Image::set_physical_sector_size`].
    pub(super) fn replace_physical_sector_size(&mut self, size: u32) -> Result<()> {
        self.check_writable()?;
        if !matches!(size, 512 | 4096) || size < self.metadata.logical_sector_size {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                format!("a physical sector of {size} bytes is not possible"),
            )
            .with_hint("it has 512 or 4096 bytes, and not less than a logical sector"));
        }
        if size == self.metadata.physical_sector_size {
            return Ok(());
        }
        self.begin_structure()?;
        let pages = self.patched_pages(ITEM_PHYSICAL_SECTOR_SIZE, &size.to_le_bytes())?;
        self.commit_pages(pages, &[], &[])?;
        self.metadata.physical_sector_size = size;
        Ok(())
    }
}

fn check_not_nil(identifier: Uuid, what: &str) -> Result<()> {
    if identifier.is_nil() {
        return Err(Error::new(
            ErrorKind::InvalidParameter,
            format!("{what} cannot be all zeros"),
        ));
    }
    Ok(())
}

fn bad_count(count: usize) -> Error {
    Error::new(
        ErrorKind::InvalidParameter,
        format!("a VHDX child accepts one or two identifiers of its parent, not {count}"),
    )
}
