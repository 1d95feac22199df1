//! `set` and `metadata`: what a disk says about itself, changed in place. Each change is durable when it returns and
//! leaves the content, and (but where it says so) the children, alone.

use uuid::Uuid;

use crate::disk::VirtualDisk;
use crate::error::{Context, Result};
use crate::image::Image;
use crate::vhdx;

/// Gives the leaf another identifier. In a VHD that is what its children have recorded: they lose their parent. In a
/// VHDX it is the virtual disk ID (SCSI page 83), which children do not record.
///
/// # Errors
/// [`ErrorKind::InvalidParameter`](crate::ErrorKind) for the identifier of zeros,
/// [`ErrorKind::InvalidType`](crate::ErrorKind) for formats without one,
/// [`ErrorKind::WriteProtected`](crate::ErrorKind), [`ErrorKind::Busy`](crate::ErrorKind), and what writing can fail
/// with.
pub fn set_identifier(disk: &VirtualDisk, identifier: Uuid) -> Result<()> {
    change(disk, "cannot set the identifier of", |image| {
        image.set_identifier(identifier)
    })
}

/// Changes the size in bytes of the sectors that the disk claims to write in: 512 or 4096 (VHDX only).
///
/// # Errors
/// As [`set_identifier`].
pub fn set_physical_sector_size(disk: &VirtualDisk, size: u32) -> Result<()> {
    change(disk, "cannot set the physical sector size of", |image| {
        image.set_physical_sector_size(size)
    })
}

/// Identifiers and lengths in bytes of the user's metadata items (VHDX only).
///
/// # Errors
/// [`ErrorKind::InvalidType`](crate::ErrorKind) for other formats; what reading can fail with.
pub fn user_metadata(disk: &VirtualDisk) -> Result<Vec<(Uuid, u32)>> {
    look(disk, |image| image.user_metadata())
}

/// One of the user's metadata items.
///
/// # Errors
/// [`ErrorKind::ItemNotFound`](crate::ErrorKind); otherwise as [`user_metadata`].
pub fn read_user_metadata(disk: &VirtualDisk, item: Uuid) -> Result<Vec<u8>> {
    look(disk, |image| image.read_user_metadata(item))
}

/// True for the identifiers of what a VHDX says about itself in the same table. A user's item may have one of them: the
/// format tells the two apart, and so does Windows. Other programs do not: QEMU, libvhdi and 7-Zip cannot open such a disk.
pub fn is_system_item(item: Uuid) -> bool {
    vhdx::is_system_item(item)
}

/// Writes, replaces or (`None`) deletes one of the user's metadata items: at most 1024 of at most 1 MiB each. Any identifier
/// but the one of zeros will do; [`is_system_item`] says which are better not taken.
///
/// # Errors
/// [`ErrorKind::MetadataFull`](crate::ErrorKind) beyond these limits; otherwise as [`read_user_metadata`] and
/// [`set_identifier`].
pub fn write_user_metadata(disk: &VirtualDisk, item: Uuid, value: Option<&[u8]>) -> Result<()> {
    change(disk, "cannot change the metadata of", |image| {
        image.write_user_metadata(item, value)
    })
}

fn look<R>(disk: &VirtualDisk, look: impl FnOnce(&dyn Image) -> Result<R>) -> Result<R> {
    disk.with_chain(|chain| {
        let leaf = chain.leaf();
        look(leaf.image()).at_path(leaf.path())
    })
    .while_doing("cannot read the metadata of")
}

fn change<R>(
    disk: &VirtualDisk,
    action: &str,
    change: impl FnOnce(&mut dyn Image) -> Result<R>,
) -> Result<R> {
    let reserved = disk.reserve();
    let result = reserved.and_then(|_reserved| {
        disk.change_chain(|chain| {
            chain.check_writable(0)?;
            let leaf = chain.split(0).0;
            let path = leaf.path().to_path_buf();
            change(leaf.image_mut()).at_path(&path)
        })
    });
    result.while_doing(action)
}
