//! VHDX: virtual hard disk, version 2.
//!
//! | module | what |
//! |---|---|
//! | `layout` | the bytes on disk, nothing else |
//! | `header`, `region`, `metadata`, `locator` | one structure each: parsed, checked, written |
//! | `log` | log entries: built, validated, replayed |
//! | `bat` | what BAT entries mean; block and chunk arithmetic |
//! | `pages` | BAT and sector bitmaps in memory, loaded page by page |
//! | `space` | free space of the file |
//! | `plan` | what moves where when a file is packed |
//! | `journal` | the order of everything that is written |
//! | `image` | reading, writing, mapping |
//! | `create` | a new file |
//! | `check` | what is wrong with a file |

mod bat;
mod check;
mod create;
mod header;
mod image;
mod journal;
mod layout;
mod locator;
mod log;
mod metadata;
mod pages;
mod plan;
mod region;
mod space;

pub use check::check;
pub use create::VhdxBuilder;
pub use image::VhdxImage;
pub(crate) use layout::MAX_VIRTUAL_SIZE;

use crate::error::Result;
use crate::storage::Storage;

/// See [`crate::verbs::set::is_system_item`].
pub(crate) fn is_system_item(item: uuid::Uuid) -> bool {
    [
        layout::ITEM_FILE_PARAMETERS,
        layout::ITEM_VIRTUAL_DISK_SIZE,
        layout::ITEM_VIRTUAL_DISK_ID,
        layout::ITEM_LOGICAL_SECTOR_SIZE,
        layout::ITEM_PHYSICAL_SECTOR_SIZE,
        layout::ITEM_PARENT_LOCATOR,
        layout::ITEM_INCOMPLETE_FILE,
        layout::ITEM_CHS_PARAMETERS,
        layout::ITEM_PMEM_LABELS,
    ]
    .contains(&item.into())
}

/// True if the file starts with the VHDX signature.
pub fn detect(storage: &dyn Storage) -> Result<bool> {
    let mut signature = [0; 8];
    if storage.len()? < signature.len() as u64 {
        return Ok(false);
    }
    storage.read_at(0, &mut signature)?;
    Ok(&signature == layout::SIGNATURE)
}
