"""Creates a disk, writes a text to its first sector and reads it back, with nothing but ctypes.

    python3 note.py DISK TEXT
"""
import ctypes
import os
import sys
import time
from ctypes import POINTER, Structure, Union, byref, c_char_p, c_int32, c_uint32, c_uint64, c_uint8, c_void_p

virtdisk = ctypes.CDLL("libvirtdisk.so.0")

ERROR_SUCCESS, ERROR_IO_PENDING = 0, 997
CREATE_VIRTUAL_DISK_VERSION_2 = 2
GET_VIRTUAL_DISK_INFO_SIZE = 1
ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST = 8
HANDLE = c_void_p
# c_wchar is not 16 bits wide here, so a PCWSTR is the bytes of its UTF-16.
PCWSTR = c_char_p


def wide(text):
    return (text + "\0").encode("utf-16-le")


class GUID(Structure):
    _fields_ = [("Data1", c_uint32), ("Data2", ctypes.c_uint16), ("Data3", ctypes.c_uint16), ("Data4", c_uint8 * 8)]


class VIRTUAL_STORAGE_TYPE(Structure):
    _fields_ = [("DeviceId", c_uint32), ("VendorId", GUID)]


class CREATE_VERSION_2(Structure):
    _fields_ = [
        ("UniqueId", GUID),
        ("MaximumSize", c_uint64),
        ("BlockSizeInBytes", c_uint32),
        ("SectorSizeInBytes", c_uint32),
        ("PhysicalSectorSizeInBytes", c_uint32),
        ("ParentPath", PCWSTR),
        ("SourcePath", PCWSTR),
        ("OpenFlags", c_uint32),
        ("ParentVirtualStorageType", VIRTUAL_STORAGE_TYPE),
        ("SourceVirtualStorageType", VIRTUAL_STORAGE_TYPE),
        ("ResiliencyGuid", GUID),
    ]


class CREATE_VIRTUAL_DISK_PARAMETERS(Structure):
    _fields_ = [("Version", c_uint32), ("Version2", CREATE_VERSION_2)]


class SIZE(Structure):
    _fields_ = [("VirtualSize", c_uint64), ("PhysicalSize", c_uint64), ("BlockSize", c_uint32), ("SectorSize", c_uint32)]


class INFO_UNION(Union):
    _fields_ = [("Size", SIZE), ("Identifier", GUID)]


class GET_VIRTUAL_DISK_INFO(Structure):
    _fields_ = [("Version", c_uint32), ("u", INFO_UNION)]


class OVERLAPPED(Structure):
    _fields_ = [
        ("Internal", c_void_p),
        ("InternalHigh", c_void_p),
        ("Offset", c_uint32),
        ("OffsetHigh", c_uint32),
        ("hEvent", HANDLE),
    ]


class VIRTUAL_DISK_PROGRESS(Structure):
    _fields_ = [("OperationStatus", c_uint32), ("CurrentValue", c_uint64), ("CompletionValue", c_uint64)]


def declare(name, *arguments, result=c_uint32):
    function = getattr(virtdisk, name)
    function.argtypes, function.restype = arguments, result
    return function


CreateVirtualDisk = declare(
    "CreateVirtualDisk", POINTER(VIRTUAL_STORAGE_TYPE), PCWSTR, c_uint32, c_void_p, c_uint32, c_uint32,
    POINTER(CREATE_VIRTUAL_DISK_PARAMETERS), POINTER(OVERLAPPED), POINTER(HANDLE))
GetVirtualDiskOperationProgress = declare(
    "GetVirtualDiskOperationProgress", HANDLE, POINTER(OVERLAPPED), POINTER(VIRTUAL_DISK_PROGRESS))
GetVirtualDiskInformation = declare(
    "GetVirtualDiskInformation", HANDLE, POINTER(c_uint32), POINTER(GET_VIRTUAL_DISK_INFO), POINTER(c_uint32))
AttachVirtualDisk = declare("AttachVirtualDisk", HANDLE, c_void_p, c_uint32, c_uint32, c_void_p, POINTER(OVERLAPPED))
WriteFile = declare("WriteFile", HANDLE, c_void_p, c_uint32, POINTER(c_uint32), POINTER(OVERLAPPED), result=c_int32)
ReadFile = declare("ReadFile", HANDLE, c_void_p, c_uint32, POINTER(c_uint32), POINTER(OVERLAPPED), result=c_int32)
CloseHandle = declare("CloseHandle", HANDLE, result=c_int32)
GetLastError = declare("GetLastError")


def check(code):
    if code != ERROR_SUCCESS:
        sys.exit(f"error {code} (0x{code:X})")


def create(path, size):
    """The handle of a new dynamic disk."""
    parameters = CREATE_VIRTUAL_DISK_PARAMETERS(Version=CREATE_VIRTUAL_DISK_VERSION_2)
    parameters.Version2.MaximumSize = size
    disk, overlapped = HANDLE(), OVERLAPPED()
    code = CreateVirtualDisk(byref(VIRTUAL_STORAGE_TYPE()), wide(path), 0, None, 0, 0, byref(parameters),
                             byref(overlapped), byref(disk))
    if code not in (ERROR_SUCCESS, ERROR_IO_PENDING):
        check(code)
    progress = VIRTUAL_DISK_PROGRESS(OperationStatus=ERROR_IO_PENDING)
    while progress.OperationStatus == ERROR_IO_PENDING:
        check(GetVirtualDiskOperationProgress(disk, byref(overlapped), byref(progress)))
        time.sleep(0.001)
    check(progress.OperationStatus)
    return disk


def main(path, text):
    disk = create(os.path.abspath(path), 64 << 20)

    info, room = GET_VIRTUAL_DISK_INFO(Version=GET_VIRTUAL_DISK_INFO_SIZE), c_uint32(ctypes.sizeof(GET_VIRTUAL_DISK_INFO))
    check(GetVirtualDiskInformation(disk, byref(room), byref(info), None))
    size = info.u.Size
    print(f"created: {size.VirtualSize >> 20} MB in sectors of {size.SectorSize} bytes")

    check(AttachVirtualDisk(disk, None, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST, 0, None, None))
    sector = ctypes.create_string_buffer(text.encode(), size.SectorSize)
    moved = c_uint32()
    if not WriteFile(disk, sector, size.SectorSize, byref(moved), byref(OVERLAPPED(Offset=0))):
        check(GetLastError())
    back = ctypes.create_string_buffer(size.SectorSize)
    if not ReadFile(disk, back, size.SectorSize, byref(moved), byref(OVERLAPPED(Offset=0))):
        check(GetLastError())
    print(f"read back: {back.value.decode()}")
    CloseHandle(disk)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
