//! Disks to try things with, and the functions with most of their arguments filled in.

use std::cell::RefCell;
use std::mem::zeroed;
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use virtdisk::codes::*;
use virtdisk::constants::*;
use virtdisk::types::*;
use virtdisk::*;

/// What a function returns.
pub type Code = u32;

pub const MIB: u64 = 1 << 20;

/// A structure of zeros with a version (or kind).
#[macro_export]
macro_rules! versioned {
    ($type:ident, $version:expr) => {{
        // SAFETY: numbers and pointers, for which zeros are valid.
        let mut value: $type = unsafe { std::mem::zeroed() };
        value.Version = $version;
        value
    }};
}

/// A folder, and handles that are closed with it.
pub struct Lab {
    folder: tempfile::TempDir,
    handles: RefCell<Vec<HANDLE>>,
    /// Strings that structures point to.
    texts: RefCell<Vec<Vec<u16>>>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for handle in self.handles.take() {
            // Rows may have closed it themselves.
            let _ = CloseHandle(handle);
        }
    }
}

/// By the extension of the name.
pub fn any() -> VIRTUAL_STORAGE_TYPE {
    // SAFETY: numbers, for which zeros are valid.
    unsafe { zeroed() }
}

pub fn guid(n: u32) -> GUID {
    GUID {
        Data1: n,
        Data2: 0,
        Data3: 0,
        Data4: [0; 8],
    }
}

pub fn same(a: GUID, b: GUID) -> bool {
    (a.Data1, a.Data2, a.Data3, a.Data4) == (b.Data1, b.Data2, b.Data3, b.Data4)
}

impl Lab {
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            folder: folder.unwrap(),
            handles: RefCell::default(),
            texts: RefCell::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in UTF-16 that lives as long as the lab.
    pub fn wide(&self, name: &str) -> PCWSTR {
        self.text(self.path(name).to_str().unwrap())
    }

    pub fn text(&self, text: &str) -> PCWSTR {
        let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
        let at = units.as_ptr();
        self.texts.borrow_mut().push(units);
        at
    }

    fn keep(&self, (code, handle): (Code, HANDLE)) -> (Code, HANDLE) {
        if code == 0 {
            self.handles.borrow_mut().push(handle);
        }
        (code, handle)
    }

    pub fn close(&self, handle: HANDLE) {
        assert_eq!(CloseHandle(handle), 1);
    }

    /// Creates a disk of 8 MiB with version 2, as changed.
    pub fn create(
        &self,
        name: &str,
        mask: u32,
        flags: u32,
        change: impl FnOnce(&mut CREATE_VIRTUAL_DISK_PARAMETERS),
    ) -> (Code, HANDLE) {
        let mut p = versioned!(
            CREATE_VIRTUAL_DISK_PARAMETERS,
            CREATE_VIRTUAL_DISK_VERSION_2
        );
        p.Anonymous.Version2 = CREATE_VIRTUAL_DISK_PARAMETERS_0_1 {
            MaximumSize: 8 * MIB,
            // SAFETY: as above.
            ..unsafe { zeroed() }
        };
        change(&mut p);
        let mut handle = null_mut();
        // SAFETY: pointers live as long as the call.
        let code = unsafe {
            let path = self.wide(name);
            CreateVirtualDisk(
                &any(),
                path,
                mask,
                null_mut(),
                flags,
                0,
                &p,
                null_mut(),
                &mut handle,
            )
        };
        self.keep((code, handle))
    }

    /// A new dynamic disk of 8 MiB.
    pub fn dynamic(&self, name: &str) -> HANDLE {
        let (code, handle) = self.create(name, 0, 0, |_| ());
        assert_eq!(code, 0);
        handle
    }

    /// A new child.
    pub fn child(&self, name: &str, parent: &str) -> HANDLE {
        let (code, handle) = self.create(name, 0, 0, |p| self.parent(p, parent));
        assert_eq!(code, 0);
        handle
    }

    pub fn parent(&self, p: &mut CREATE_VIRTUAL_DISK_PARAMETERS, parent: &str) {
        p.Anonymous.Version2.ParentPath = self.wide(parent);
        p.Anonymous.Version2.MaximumSize = 0;
    }

    /// base.vhdx, closed, and child.vhdx.
    pub fn chain(&self) -> HANDLE {
        self.close(self.dynamic("base.vhdx"));
        self.child("child.vhdx", "base.vhdx")
    }

    /// Opens a disk with version 2, as changed.
    pub fn open_with(
        &self,
        name: &str,
        mask: u32,
        flags: u32,
        change: impl FnOnce(&mut OPEN_VIRTUAL_DISK_PARAMETERS),
    ) -> (Code, HANDLE) {
        let mut p = versioned!(OPEN_VIRTUAL_DISK_PARAMETERS, OPEN_VIRTUAL_DISK_VERSION_2);
        change(&mut p);
        let mut handle = null_mut();
        // SAFETY: pointers live as long as the call.
        let code =
            unsafe { OpenVirtualDisk(&any(), self.wide(name), mask, flags, &p, &mut handle) };
        self.keep((code, handle))
    }

    pub fn open(&self, name: &str, flags: u32) -> (Code, HANDLE) {
        self.open_with(name, 0, flags, |_| ())
    }

    pub fn read_only(&self, name: &str, flags: u32) -> (Code, HANDLE) {
        self.open_with(name, 0, flags, |p| p.Anonymous.Version2.ReadOnly = 1)
    }

    pub fn asks(&self, name: &str) -> HANDLE {
        let (code, handle) = self.open_with(name, 0, 0, |p| p.Anonymous.Version2.GetInfoOnly = 1);
        assert_eq!(code, 0);
        handle
    }

    /// Opens with version 1.
    pub fn v1(&self, name: &str, mask: u32, depth: u32) -> (Code, HANDLE) {
        self.open_with(name, mask, 0, |p| {
            p.Version = OPEN_VIRTUAL_DISK_VERSION_1;
            p.Anonymous.Version1.RWDepth = depth;
        })
    }

    /// A dynamic disk that is opened again with a mask.
    pub fn masked(&self, mask: u32) -> HANDLE {
        self.close(self.dynamic("masked.vhdx"));
        let (code, handle) = self.v1("masked.vhdx", mask, 1);
        assert_eq!(code, 0);
        handle
    }

    pub fn attach(&self, handle: HANDLE, flags: u32) -> Code {
        // SAFETY: NULL is allowed.
        unsafe { AttachVirtualDisk(handle, null_mut(), flags, 0, null(), null_mut()) }
    }

    pub fn attach_with(
        &self,
        handle: HANDLE,
        flags: u32,
        p: &ATTACH_VIRTUAL_DISK_PARAMETERS,
    ) -> Code {
        // SAFETY: pointers live as long as the call.
        unsafe { AttachVirtualDisk(handle, null_mut(), flags, 0, p, null_mut()) }
    }

    /// Attached for reading and writing by its handle.
    pub fn attached(&self, name: &str) -> HANDLE {
        let handle = self.dynamic(name);
        assert_eq!(
            self.attach(handle, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST),
            0
        );
        handle
    }

    pub fn detach(&self, handle: HANDLE) -> Code {
        DetachVirtualDisk(handle, DETACH_VIRTUAL_DISK_FLAG_NONE, 0)
    }

    /// Fills a sector.
    pub fn put(&self, handle: HANDLE, offset: u32, byte: u8) -> Code {
        self.move_sector(handle, offset, &mut [byte; 512], true)
    }

    /// The first byte of a sector.
    pub fn get(&self, handle: HANDLE, offset: u32) -> Result<u8, Code> {
        let mut sector = [0; 512];
        match self.move_sector(handle, offset, &mut sector, false) {
            0 => Ok(sector[0]),
            code => Err(code),
        }
    }

    fn move_sector(
        &self,
        handle: HANDLE,
        offset: u32,
        sector: &mut [u8; 512],
        write: bool,
    ) -> Code {
        // SAFETY: an all-zero structure is valid; pointers live as long as the call.
        let done = unsafe {
            let mut o: OVERLAPPED = zeroed();
            o.Anonymous.Anonymous.Offset = offset;
            let mut n = 0;
            if write {
                WriteFile(handle, sector.as_ptr().cast(), 512, &mut n, &mut o)
            } else {
                ReadFile(handle, sector.as_mut_ptr().cast(), 512, &mut n, &mut o)
            }
        };
        if done == 1 { 0 } else { GetLastError() }
    }

    pub fn info(&self, handle: HANDLE, kind: u32) -> (Code, GET_VIRTUAL_DISK_INFO) {
        let mut info = versioned!(GET_VIRTUAL_DISK_INFO, kind);
        let mut size = 32;
        // SAFETY: pointers live as long as the call.
        let code = unsafe { GetVirtualDiskInformation(handle, &mut size, &mut info, null_mut()) };
        (code, info)
    }

    /// An answer of variable length: the code, the flag in front, and the strings.
    pub fn long_info(&self, handle: HANDLE, kind: u32) -> (Code, u32, Vec<String>) {
        let mut room = vec![0_u64; 1024];
        room[0] = kind.into();
        let mut size = 8192;
        // SAFETY: as long as `size` says, and aligned.
        let code = unsafe {
            GetVirtualDiskInformation(handle, &mut size, room.as_mut_ptr().cast(), null_mut())
        };
        let words: Vec<u16> = room
            .iter()
            .flat_map(|n| {
                [
                    *n as u16,
                    (n >> 16) as u16,
                    (n >> 32) as u16,
                    (n >> 48) as u16,
                ]
            })
            .collect();
        let strings = words[6..]
            .split(|&unit| unit == 0)
            .take_while(|text| !text.is_empty())
            .map(String::from_utf16_lossy)
            .collect();
        (code, u32::from(words[4]), strings)
    }

    pub fn set(
        &self,
        handle: HANDLE,
        kind: u32,
        change: impl FnOnce(&mut SET_VIRTUAL_DISK_INFO),
    ) -> Code {
        let mut info = versioned!(SET_VIRTUAL_DISK_INFO, kind);
        change(&mut info);
        // SAFETY: pointers live as long as the lab.
        unsafe { SetVirtualDiskInformation(handle, &info) }
    }

    pub fn compact(&self, handle: HANDLE, flags: u32) -> Code {
        // SAFETY: NULL is allowed.
        unsafe { CompactVirtualDisk(handle, flags, null(), null_mut()) }
    }

    pub fn merge(&self, handle: HANDLE, p: &MERGE_VIRTUAL_DISK_PARAMETERS) -> Code {
        // SAFETY: pointers live as long as the call.
        unsafe { MergeVirtualDisk(handle, MERGE_VIRTUAL_DISK_FLAG_NONE, p, null_mut()) }
    }

    pub fn resize(&self, handle: HANDLE, flags: u32, size: u64) -> Code {
        let mut p = versioned!(
            RESIZE_VIRTUAL_DISK_PARAMETERS,
            RESIZE_VIRTUAL_DISK_VERSION_1
        );
        p.Anonymous.Version1.NewSize = size;
        // SAFETY: pointers live as long as the call.
        unsafe { ResizeVirtualDisk(handle, flags, &p, null_mut()) }
    }

    pub fn expand(&self, handle: HANDLE, flags: u32, version: u32) -> Code {
        let mut p = versioned!(EXPAND_VIRTUAL_DISK_PARAMETERS, version);
        p.Anonymous.Version1.NewSize = 16 * MIB;
        // SAFETY: pointers live as long as the call.
        unsafe { ExpandVirtualDisk(handle, flags, &p, null_mut()) }
    }

    /// Mirrors until both are the same, and breaks. The code of what fails first.
    pub fn mirror(&self, handle: HANDLE, flags: u32, version: u32, target: &str) -> Code {
        let mut p = versioned!(MIRROR_VIRTUAL_DISK_PARAMETERS, version);
        p.Anonymous.Version1.MirrorVirtualDiskPath = self.wide(target);
        // SAFETY: an all-zero structure is valid; all of it lives until the operation is over.
        unsafe {
            let mut o: OVERLAPPED = zeroed();
            let mut progress: VIRTUAL_DISK_PROGRESS = zeroed();
            let code = MirrorVirtualDisk(handle, flags, &p, &mut o);
            if code != ERROR_IO_PENDING {
                return code;
            }
            loop {
                assert_eq!(
                    GetVirtualDiskOperationProgress(handle, &o, &mut progress),
                    0
                );
                if progress.OperationStatus != ERROR_IO_PENDING {
                    return progress.OperationStatus;
                }
                if progress.CurrentValue == progress.CompletionValue {
                    break;
                }
                std::thread::yield_now();
            }
            let code = BreakMirrorVirtualDisk(handle);
            if code != 0 {
                CancelIoEx(handle, &o);
            }
            let mut n = 0;
            let ended = GetOverlappedResult(handle, &mut o, &mut n, 1);
            assert_eq!(ended, i32::from(code == 0));
            code
        }
    }

    /// Entries of GetStorageDependencyInformation: their flags.
    pub fn depends(&self, handle: HANDLE, flags: u32, version: u32) -> (Code, Vec<u32>) {
        let mut room = vec![0_u64; 1024];
        room[0] = version.into();
        // SAFETY: as long as it says, and aligned.
        let code = unsafe {
            GetStorageDependencyInformation(
                handle,
                flags,
                8192,
                room.as_mut_ptr().cast(),
                null_mut(),
            )
        };
        let bytes: Vec<u8> = room.iter().flat_map(|n| n.to_le_bytes()).collect();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let size = if version == STORAGE_DEPENDENCY_INFO_VERSION_1 {
            28
        } else {
            64
        };
        let count = if code == 0 { word(4) as usize } else { 0 };
        (code, (0..count).map(|i| word(8 + i * size)).collect())
    }

    /// The flags of all entries of an attached disk together.
    pub fn dependent_flags(&self, handle: HANDLE) -> u32 {
        let hosts = GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES;
        let (code, entries) = self.depends(handle, hosts, STORAGE_DEPENDENCY_INFO_VERSION_2);
        assert_eq!(code, 0);
        entries.into_iter().fold(0, |all, flags| all | flags)
    }
}
