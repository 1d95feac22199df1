//! VHD, version 1 (`.vhd`, `.avhd`): fixed, dynamic and differencing disks.
//!
//! ```text
//! fixed                    data | footer
//! dynamic, differencing    copy of the footer | dynamic header | BAT | locators | blocks ... | footer
//! block                    sector bitmap | data
//! ```
//!
//! `layout` has the bytes. `footer`, `header`, `locator` and `bat` read and check them; `bitmap` keeps the sector
//! bitmaps; `sparse` reads and writes blocks; `journal` decides what reaches the file in which order. [`VhdImage`]
//! puts them together; `space` and `compact`, `resize` and `identity` change what it is made of. [`VhdBuilder`] makes new files, [`check`] looks at every structure.

mod bat;
mod bitmap;
mod check;
mod compact;
mod create;
mod footer;
mod geometry;
mod header;
mod identity;
mod image;
mod journal;
mod layout;
mod locator;
mod resize;
mod space;
mod sparse;
#[cfg(test)]
mod tests;
mod wrap;

pub use check::check;
pub(crate) use create::MAX_SIZE;
pub use create::VhdBuilder;
pub use image::VhdImage;
pub use wrap::{append_footer, strip_footer};

use crate::error::Result;
use crate::storage::Storage;

/// True if the file is a VHD, or was meant to be one: a footer at its end or, of dynamic and differencing disks, at
/// its start. Where the checksum is wrong, a cookie alone is not enough, for a guest may have written it: the
/// structures that the footer speaks of must be there too. Opening such a file says what is wrong with it.
///
/// # Errors
/// [`crate::ErrorKind::ReadFault`] and what else reading can fail with.
pub fn detect(storage: &dyn Storage) -> Result<bool> {
    footer::Places::read(storage)?.looks_like_vhd(storage)
}

/// True if the file ends in a valid footer of a fixed disk whose size is exactly the rest of the file. Then its first
/// bytes are the guest's, whatever they look like.
///
/// # Errors
/// As [`detect`].
pub fn is_exact_fixed(storage: &dyn Storage) -> Result<bool> {
    Ok(footer::Places::read(storage)?.is_exact_fixed())
}
