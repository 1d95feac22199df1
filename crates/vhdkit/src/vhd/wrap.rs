//! Raw to fixed VHD and back in place: the two differ only by the footer.

use zerocopy::IntoBytes;

use super::create::{check_parameters, new_footer};
use super::footer::{self, Places};
use super::layout::{FOOTER_SIZE, SECTOR};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format};
use crate::storage::Storage;

/// Turns a raw file into a fixed VHD by a footer behind its bytes, durably. `parameters` are those of a fixed disk of
/// exactly the file's length. A crash leaves the raw file or the VHD: the footer is one sector.
///
/// # Errors
/// [`ErrorKind::InvalidType`] if the parameters are not those of a fixed VHD, or the file is a VHD already (its bytes
/// would be taken for structures, or were); [`ErrorKind::InvalidSize`] if the file is empty, not whole sectors, too
/// large or not of the size that the parameters say; [`ErrorKind::HostLimitation`] on a block device; and what writing
/// can fail with.
pub fn append_footer(storage: &dyn Storage, parameters: &CreateParameters) -> Result<()> {
    if parameters.format != Format::Vhd || parameters.disk_type != DiskType::Fixed {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "only a fixed VHD holds the bytes of a raw disk as they are",
        ));
    }
    let length = storage.len()?;
    if length != parameters.virtual_size || !length.is_multiple_of(SECTOR) {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!(
                "the file of {length} bytes is not a raw disk of {} bytes in whole sectors",
                parameters.virtual_size
            ),
        )
        .with_hint("make the file a multiple of 512 bytes long first"));
    }
    check_parameters(parameters)?;
    if !storage.grows_with_zeros() {
        return Err(Error::new(
            ErrorKind::HostLimitation,
            "a VHD file cannot be made on a block device",
        )
        .with_hint("choose a file"));
    }
    if Places::read(storage)?.looks_like_vhd(storage)? {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "the file is a VHD already, not a raw disk",
        )
        .with_hint("convert it into a new file if its bytes are really those of a disk"));
    }
    // The bytes before it first: a VHD that opens is whole.
    storage.flush()?;
    let written = storage.write_at(length, new_footer(parameters).as_bytes());
    if let Err(error) = written {
        storage.set_len(length)?;
        return Err(error);
    }
    storage.flush()
}

/// Turns a fixed VHD into the raw disk in it by cutting off its footer, durably.
///
/// # Errors
/// [`ErrorKind::InvalidType`] if it is not a fixed VHD, or the disk in it looks like a VHD file itself, which the raw
/// file would then be taken for; those of opening a VHD; [`ErrorKind::HostLimitation`] on a block device; and what
/// writing can fail with.
pub fn strip_footer(storage: &dyn Storage) -> Result<()> {
    let places = Places::read(storage)?;
    let (found, place) = places.choose()?;
    if footer::validate(found)? != DiskType::Fixed {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "only a fixed VHD can be turned into a raw disk in place",
        )
        .with_hint("convert it into a new raw file"));
    }
    let (size, limit) = (found.current_size.get(), places.limit(place));
    if size > limit {
        return Err(Error::new(
            ErrorKind::InvalidFileSize,
            format!("the disk has {size} bytes, the file holds only {limit}"),
        ));
    }
    if !storage.grows_with_zeros() {
        return Err(Error::new(
            ErrorKind::HostLimitation,
            "a block device cannot be cut off",
        ));
    }
    debug_assert!(size + FOOTER_SIZE <= limit + FOOTER_SIZE);
    if Places::read_as_of(storage, size)?.looks_like_vhd(storage)? {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "the disk's own content is a VHD file: without its footer, that is what it would be taken for",
        )
        .with_hint("convert it into a new raw file"));
    }
    if let Some(stale) = found.grow_mark() {
        storage.zero_range(stale.start, stale.end - stale.start)?;
        storage.flush()?;
    }
    storage.set_len(size)?;
    storage.flush()
}
