//! GetStorageDependencyInformation, for virtual disk handles (contract, 2.7 and 3.9).

use std::path::Path;

use vhdkit::disk::LayerInfo;
use vhdkit::image::DiskType;
use vhdkit::storage::FileStorage;

use crate::codes::{ERROR_INSUFFICIENT_BUFFER, ERROR_VIRTDISK_NOT_VIRTUAL_DISK};
use crate::constants::*;
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_flags, write};
use crate::handles;
use crate::storage_type;
use crate::strings::{length, wide, wide_path};
use crate::types::{
    HANDLE, PWSTR, STORAGE_DEPENDENCY_INFO, STORAGE_DEPENDENCY_INFO_TYPE_1,
    STORAGE_DEPENDENCY_INFO_TYPE_2,
};

/// `Version` and `NumberEntries`.
const HEADER: usize = 8;

/// Which files are behind an attached disk, the leaf first (`HOST_VOLUMES`), or what depends on it: nothing that this
/// library knows of. The object is a virtual disk handle, with or without DISK_HANDLE; there are no handles of volumes.
///
/// In entries of version 2 the host volume is the folder's root, the path that of the file; the device is empty if the
/// disk was attached without a local host, the dependent volume always. Strings lie in the buffer, behind the entries.
///
/// ERROR_INSUFFICIENT_BUFFER with the size needed in `size_used`; ERROR_VIRTDISK_NOT_VIRTUAL_DISK if the disk is not
/// attached.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `info` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetStorageDependencyInformation(
    object: HANDLE,
    flags: GET_STORAGE_DEPENDENCY_FLAG,
    size: u32,
    info: *mut STORAGE_DEPENDENCY_INFO,
    size_used: *mut u32,
) -> u32 {
    guard(|| {
        require_flags(
            flags,
            GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES | GET_STORAGE_DEPENDENCY_FLAG_DISK_HANDLE,
        )?;
        require(!info.is_null())?;
        let room = size as usize;
        if room < HEADER {
            // SAFETY: NULL, or the caller's to be written.
            unsafe { write(size_used, length(HEADER)?) };
            return Err(Code(ERROR_INSUFFICIENT_BUFFER));
        }
        // SAFETY: `info` has at least 8 bytes.
        let version = unsafe { read(&raw const (*info).Version) }.ok_or(INVALID)?;
        require(matches!(
            version,
            STORAGE_DEPENDENCY_INFO_VERSION_1 | STORAGE_DEPENDENCY_INFO_VERSION_2
        ))?;
        let handle = handles::disk(object)?;
        let disk = handle.disk()?;
        let attachment = disk
            .attachment()
            .ok_or(Code(ERROR_VIRTDISK_NOT_VIRTUAL_DISK))?;
        let layers = if flags & GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES != 0 {
            disk.disk().layers()
        } else {
            Vec::new()
        };
        let device = attachment.device.as_ref().map(|device| device.node());
        let entries = entries(&layers, attachment.dependent_flags, device)?;
        let list = List {
            version,
            entries,
            start: info.cast(),
        };
        let needed = list.needed();
        // SAFETY: NULL, or the caller's to be written.
        unsafe { write(size_used, length(needed)?) };
        if needed > room {
            return Err(Code(ERROR_INSUFFICIENT_BUFFER));
        }
        // SAFETY: there is room for all of it.
        unsafe { list.write() }
    })
}

struct Entry {
    kind: STORAGE_DEPENDENCY_INFO_TYPE_1,
    level: u32,
    device: Vec<u16>,
    volume: Vec<u16>,
    path: Vec<u16>,
}

fn entries(layers: &[LayerInfo], attached: u32, device: Option<&Path>) -> Answer<Vec<Entry>> {
    let mut entries = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let mut flags = attached;
        let mut add = |fits: bool, flag: u32| flags |= if fits { flag } else { 0 };
        add(layers.len() > 1, DEPENDENT_DISK_FLAG_MULT_BACKING_FILES);
        add(
            layer.info.disk_type == DiskType::Fixed,
            DEPENDENT_DISK_FLAG_FULLY_ALLOCATED,
        );
        add(i > 0, DEPENDENT_DISK_FLAG_PARENT);
        let host = layer.storage.as_file().map(FileStorage::host_disk);
        add(
            host.transpose()?.is_some_and(|host| host.is_remote),
            DEPENDENT_DISK_FLAG_REMOTE,
        );
        let path = std::path::absolute(&layer.path).unwrap_or_else(|_| layer.path.clone());
        entries.push(Entry {
            kind: STORAGE_DEPENDENCY_INFO_TYPE_1 {
                DependencyTypeFlags: flags,
                ProviderSpecificFlags: 0,
                VirtualStorageType: storage_type::of(layer.info.format),
            },
            level: length(i + 1)?,
            device: wide_path(device.unwrap_or(Path::new(""))),
            volume: wide("/"),
            path: wide_path(&path),
        });
    }
    Ok(entries)
}

/// What goes into the caller's buffer.
struct List {
    version: u32,
    entries: Vec<Entry>,
    start: *mut u8,
}

impl List {
    fn entry_size(&self) -> usize {
        if self.version == STORAGE_DEPENDENCY_INFO_VERSION_1 {
            size_of::<STORAGE_DEPENDENCY_INFO_TYPE_1>()
        } else {
            size_of::<STORAGE_DEPENDENCY_INFO_TYPE_2>()
        }
    }

    fn needed(&self) -> usize {
        let strings: usize = if self.version == STORAGE_DEPENDENCY_INFO_VERSION_1 {
            0
        } else {
            // An empty string stands for the dependent volume.
            let units =
                |entry: &Entry| entry.device.len() + entry.volume.len() + entry.path.len() + 1;
            self.entries.iter().map(units).sum()
        };
        HEADER + self.entries.len() * self.entry_size() + strings * 2
    }

    /// # Safety
    /// There is room for `needed` bytes at `start`.
    unsafe fn write(&self) -> Answer {
        // Every write below is inside of what `needed` counts.
        let mut strings = HEADER + self.entries.len() * self.entry_size();
        let mut text = |units: &[u16]| -> PWSTR {
            // SAFETY: inside.
            let at = unsafe { self.start.add(strings) };
            for (i, byte) in units.iter().flat_map(|unit| unit.to_ne_bytes()).enumerate() {
                // SAFETY: inside.
                unsafe { write(at.add(i), byte) };
            }
            strings += units.len() * 2;
            at.cast()
        };
        for (i, entry) in self.entries.iter().enumerate() {
            // SAFETY: inside.
            let at = unsafe { self.start.add(HEADER + i * self.entry_size()) };
            if self.version == STORAGE_DEPENDENCY_INFO_VERSION_1 {
                // SAFETY: inside.
                unsafe { write(at.cast(), entry.kind) };
                continue;
            }
            let entry = STORAGE_DEPENDENCY_INFO_TYPE_2 {
                DependencyTypeFlags: entry.kind.DependencyTypeFlags,
                ProviderSpecificFlags: 0,
                VirtualStorageType: entry.kind.VirtualStorageType,
                AncestorLevel: entry.level,
                DependencyDeviceName: text(&entry.device),
                HostVolumeName: text(&entry.volume),
                DependentVolumeName: text(&[0]),
                DependentVolumeRelativePath: text(&entry.path),
            };
            // SAFETY: inside.
            unsafe { write(at.cast(), entry) };
        }
        let count = length(self.entries.len())?;
        // SAFETY: inside: the header's second number.
        unsafe { write(self.start.add(4).cast(), count) };
        Ok(())
    }
}
