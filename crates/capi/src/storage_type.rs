//! `VIRTUAL_STORAGE_TYPE`: given, or decided by the extension of the file's name (contract, 2.0.4).

use std::path::Path;

use vhdkit::image::Format;

use crate::codes::{ERROR_NOT_SUPPORTED, ERROR_VIRTDISK_PROVIDER_NOT_FOUND};
use crate::constants::*;
use crate::guard::{Answer, Code};
use crate::types::{GUID, VIRTUAL_STORAGE_TYPE};

const NO_PROVIDER: Code = Code(ERROR_VIRTDISK_PROVIDER_NOT_FOUND);

/// Microsoft's vendor.
pub(crate) const MICROSOFT: GUID = GUID {
    Data1: 0xEC98_4AEC,
    Data2: 0xA0F9,
    Data3: 0x47E9,
    Data4: [0x90, 0x1F, 0x71, 0x41, 0x5A, 0x66, 0x34, 0x5B],
};

/// The format that a type and a file's name mean.
///
/// ERROR_VIRTDISK_PROVIDER_NOT_FOUND for other vendors, device numbers and extensions, ERROR_NOT_SUPPORTED for VHD Sets.
pub(crate) fn format(given: VIRTUAL_STORAGE_TYPE, path: &Path) -> Answer<Format> {
    let vendor = given.VendorId.uuid();
    if !vendor.is_nil() && vendor != MICROSOFT.uuid() {
        return Err(NO_PROVIDER);
    }
    match given.DeviceId {
        VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN => by_extension(path),
        VIRTUAL_STORAGE_TYPE_DEVICE_ISO => Ok(Format::Iso),
        VIRTUAL_STORAGE_TYPE_DEVICE_VHD => Ok(Format::Vhd),
        VIRTUAL_STORAGE_TYPE_DEVICE_VHDX => Ok(Format::Vhdx),
        VIRTUAL_STORAGE_TYPE_DEVICE_VHDSET => Err(Code(ERROR_NOT_SUPPORTED)),
        _ => Err(NO_PROVIDER),
    }
}

/// The format that a file's name means.
pub(crate) fn by_extension(path: &Path) -> Answer<Format> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    match extension.to_ascii_lowercase().as_str() {
        "vhd" | "avhd" => Ok(Format::Vhd),
        "vhdx" | "avhdx" => Ok(Format::Vhdx),
        "iso" => Ok(Format::Iso),
        "vhds" => Err(Code(ERROR_NOT_SUPPORTED)),
        _ => Err(NO_PROVIDER),
    }
}

/// What a disk of a format says of itself.
pub(crate) fn of(format: Format) -> VIRTUAL_STORAGE_TYPE {
    let device = match format {
        Format::Vhd => VIRTUAL_STORAGE_TYPE_DEVICE_VHD,
        Format::Vhdx => VIRTUAL_STORAGE_TYPE_DEVICE_VHDX,
        Format::Iso => VIRTUAL_STORAGE_TYPE_DEVICE_ISO,
        _ => VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN,
    };
    VIRTUAL_STORAGE_TYPE {
        DeviceId: device,
        VendorId: MICROSOFT,
    }
}

/// What programs that do not define INITGUID find in the library.
#[unsafe(no_mangle)]
pub static VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT: GUID = MICROSOFT;
/// See [`VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT`].
#[unsafe(no_mangle)]
pub static VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN: GUID = GUID::ZERO;
