//! The one operating-system call that has no safe wrapper: cloning a range of a file.

#[cfg(target_os = "linux")]
pub(super) fn clone_range(
    target: &std::fs::File,
    source: &std::fs::File,
    source_offset: u64,
    offset: u64,
    length: u64,
) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;

    /// `struct file_clone_range` of linux/fs.h.
    #[repr(C)]
    struct FileCloneRange {
        source: i64,
        source_offset: u64,
        length: u64,
        offset: u64,
    }
    const FICLONERANGE: rustix::ioctl::Opcode =
        rustix::ioctl::opcode::write::<FileCloneRange>(0x94, 13);

    let range = FileCloneRange {
        source: source.as_raw_fd().into(),
        source_offset,
        length,
        offset,
    };
    #[expect(
        unsafe_code,
        reason = "FICLONERANGE has no safe wrapper; see docs/decisions"
    )]
    // SAFETY: the opcode is FICLONERANGE, whose argument is a pointer to exactly this structure, only read by the
    // kernel; both descriptors are open files borrowed for the duration of the call.
    unsafe {
        rustix::ioctl::ioctl(
            target,
            rustix::ioctl::Setter::<FICLONERANGE, FileCloneRange>::new(range),
        )
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn clone_range(
    _target: &std::fs::File,
    _source: &std::fs::File,
    _source_offset: u64,
    _offset: u64,
    _length: u64,
) -> rustix::io::Result<()> {
    Err(rustix::io::Errno::OPNOTSUPP)
}
