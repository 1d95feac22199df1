//! The system calls on loop devices and partitions that have no safe wrapper: ioctls of linux/loop.h and linux/blkpg.h.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Result;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Setter};

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const BLKPG: Opcode = 0x1269;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

const BLKPG_ADD_PARTITION: i32 = 1;
const BLKPG_DEL_PARTITION: i32 = 2;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: i32,
    flags: i32,
    length: i32,
    data: *mut BlkpgPartition,
}

/// LOOP_CTL_GET_FREE, whose answer is the result of the call.
struct GetFree;

#[expect(
    unsafe_code,
    reason = "an ioctl without a safe wrapper; see docs/decisions"
)]
// SAFETY: the opcode takes no argument and touches no memory of ours; its result is a number.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    // SAFETY: nothing is read through the pointer.
    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut std::ffi::c_void) -> Result<u32> {
        // Errors have been told apart before.
        Ok(u32::try_from(output).unwrap_or_default())
    }
}

/// The number of a loop device that nobody uses, made if need be; `control` is /dev/loop-control.
pub(crate) fn free_loop(control: &File) -> Result<u32> {
    #[expect(
        unsafe_code,
        reason = "an ioctl without a safe wrapper; see docs/decisions"
    )]
    // SAFETY: see GetFree; on a file that is not /dev/loop-control the number means nothing that takes an argument.
    unsafe {
        rustix::ioctl::ioctl(control, GetFree)
    }
}

/// How a loop device shows its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoopSettings<'a> {
    /// Size of logical sectors in bytes.
    pub(crate) sector_size: u32,
    /// Bytes of the file that are shown; 0 for all.
    pub(crate) size_limit: u64,
    pub(crate) read_only: bool,
    /// The device lets go of the file when nobody has it open any more.
    pub(crate) auto_clear: bool,
    /// A name for people; what does not fit into 63 bytes is cut off.
    pub(crate) name: &'a [u8],
}

/// Puts a file under a loop device that has none.
pub(crate) fn configure_loop(
    device: &File,
    file: BorrowedFd<'_>,
    settings: LoopSettings<'_>,
) -> Result<()> {
    let mut flags = LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO;
    if settings.read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    if settings.auto_clear {
        flags |= LO_FLAGS_AUTOCLEAR;
    }
    let mut file_name = [0; 64];
    let length = settings.name.len().min(63);
    file_name[..length].copy_from_slice(&settings.name[..length]);
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: settings.sector_size,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: settings.size_limit,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    #[expect(
        unsafe_code,
        reason = "an ioctl without a safe wrapper; see docs/decisions"
    )]
    // SAFETY: the opcode is LOOP_CONFIGURE, whose argument is a pointer to exactly this structure, only read by the
    // kernel; both descriptors are open files borrowed for the duration of the call.
    unsafe {
        rustix::ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config))
    }
}

/// The device looks at the size of its file again.
pub(crate) fn refresh_loop_size(device: &File) -> Result<()> {
    without_argument::<LOOP_SET_CAPACITY>(device)
}

/// The device lets go of its file as soon as nobody has it open.
pub(crate) fn clear_loop(device: &File) -> Result<()> {
    without_argument::<LOOP_CLR_FD>(device)
}

fn without_argument<const OPCODE: Opcode>(device: &File) -> Result<()> {
    #[expect(
        unsafe_code,
        reason = "an ioctl without a safe wrapper; see docs/decisions"
    )]
    // SAFETY: the two opcodes this is called with take no argument.
    unsafe {
        rustix::ioctl::ioctl(device, NoArg::<OPCODE>::new())
    }
}

/// Makes the node of a partition; `start` and `length` are in bytes.
pub(crate) fn add_partition(device: &File, number: i32, start: i64, length: i64) -> Result<()> {
    partition(device, BLKPG_ADD_PARTITION, number, start, length)
}

/// Takes the node of a partition away, unless somebody uses it.
pub(crate) fn remove_partition(device: &File, number: i32) -> Result<()> {
    partition(device, BLKPG_DEL_PARTITION, number, 0, 0)
}

fn partition(device: &File, operation: i32, number: i32, start: i64, length: i64) -> Result<()> {
    let mut data = BlkpgPartition {
        start,
        length,
        number,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation,
        flags: 0,
        length: i32::try_from(size_of::<BlkpgPartition>()).unwrap_or_default(),
        data: &raw mut data,
    };
    #[expect(
        unsafe_code,
        reason = "an ioctl without a safe wrapper; see docs/decisions"
    )]
    // SAFETY: the opcode is BLKPG, whose argument is a pointer to exactly this structure; what that points to is a
    // structure of the length it says, alive until the call is over, and not kept by the kernel.
    unsafe {
        rustix::ioctl::ioctl(
            device.as_fd(),
            Setter::<BLKPG, BlkpgArgument>::new(argument),
        )
    }
}

/// What this process has inherited, but for its standard streams, is not passed on to programs that it starts.
pub(crate) fn keep_inherited() {
    // There is no safe wrapper of close_range, which could do it at once.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in numbers {
        #[expect(
            unsafe_code,
            reason = "descriptors that nobody here owns; see docs/decisions"
        )]
        // SAFETY: the number is used for one call that changes a flag; if it is open no more (that of the folder just
        // read), that call says so.
        let inherited = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC);
    }
}
