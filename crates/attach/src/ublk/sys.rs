//! The `unsafe` of ublk: handing commands to a ring, and the memory in which the kernel describes requests.
//!
//! See `docs/decisions` for why it is here. Two rules keep it sound:
//!
//! 1. A command about a request holds no address ([`IoCommand`] has none): data moves by reading and writing a file.
//! 2. A control command holds the address of one buffer, which is not used or freed before the command is done.

#![expect(unsafe_code, reason = "rings and shared memory have no safe wrapper")]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::mm::{MapFlags, ProtFlags};
use zerocopy::IntoBytes;

use super::wire::{ControlCommand, IoCommand, IoDescriptor, descriptors_offset};

/// A ring for commands of 80 bytes.
pub(super) struct Ring(IoUring<squeue::Entry128>);

/// What came of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// What it was sent with.
    pub(super) token: u64,
    pub(super) result: i32,
}

impl Ring {
    /// A ring that any thread may use.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(IoUring::builder().build(2)?))
    }

    /// A ring for the calling thread only, for so many commands at once. The kernel works for it only while the thread
    /// waits for it.
    pub(super) fn of_thread(commands: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        Ok(Self(builder.build(commands)?))
    }

    /// Runs one command of `/dev/ublk-control`, with a buffer that it reads or fills. The ring has no others.
    pub(super) fn control(
        &mut self,
        file: &File,
        operation: u32,
        mut command: ControlCommand,
        buffer: &mut [u8],
    ) -> io::Result<i32> {
        // A copy that can be given up if it never becomes known whether the kernel is done with it.
        let mut copy = ManuallyDrop::new(buffer.to_vec());
        if !copy.is_empty() {
            command.address = copy.as_mut_ptr().expose_provenance() as u64;
            command.length = u16::try_from(copy.len())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        }
        let mut bytes = [0; 80];
        bytes[..size_of::<ControlCommand>()].copy_from_slice(command.as_bytes());
        let entry = opcode::UringCmd80::new(types::Fd(file.as_raw_fd()), operation)
            .cmd(bytes)
            .build();
        // SAFETY: the only address in it is that of `copy`, as long as it says. `copy` is neither freed nor looked at
        // before the completion has been seen, and is leaked if it is not.
        unsafe { self.push(&entry) }?;
        let result = loop {
            self.wait()?;
            if let Some(completion) = self.0.completion().next() {
                break completion.result();
            }
        };
        let copy = ManuallyDrop::into_inner(copy);
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        buffer.copy_from_slice(&copy);
        Ok(result)
    }

    /// Adds a command about a request, to be sent with the next [`Ring::submit`] or [`Ring::wait`].
    pub(super) fn io(
        &mut self,
        file: &File,
        operation: u32,
        command: IoCommand,
        token: u64,
    ) -> io::Result<()> {
        let mut bytes = [0; 80];
        bytes[..size_of::<IoCommand>()].copy_from_slice(command.as_bytes());
        let entry = opcode::UringCmd80::new(types::Fd(file.as_raw_fd()), operation)
            .cmd(bytes)
            .build()
            .user_data(token);
        // SAFETY: an `IoCommand` has no address in it.
        unsafe { self.push(&entry) }
    }

    /// Completes with `token` when the descriptor becomes readable; once.
    pub(super) fn watch(&mut self, event: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(event.as_raw_fd()), POLLIN)
            .build()
            .user_data(token);
        // SAFETY: waiting for a descriptor involves no memory.
        unsafe { self.push(&entry.into()) }
    }

    /// # Safety
    /// What the entry refers to stays valid until it completes.
    unsafe fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: as the caller promises.
        if unsafe { self.0.submission().push(entry) }.is_err() {
            self.submit()?;
            // SAFETY: as the caller promises.
            unsafe { self.0.submission().push(entry) }
                .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        }
        Ok(())
    }

    /// Sends what was added.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while let Err(error) = self.0.submit() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends what was added and waits until a command is done.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        while let Err(error) = self.0.submit_and_wait(1) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes what is done.
    pub(super) fn take(&mut self, into: &mut Vec<Completion>) {
        into.extend(self.0.completion().map(|entry| Completion {
            token: entry.user_data(),
            result: entry.result(),
        }));
    }
}

const POLLIN: u32 = 1;

/// The requests of one queue, in memory that the kernel writes.
pub(super) struct Descriptors {
    start: NonNull<IoDescriptor>,
    depth: u16,
}

impl Descriptors {
    /// Maps those of a queue of `/dev/ublkcN`.
    pub(super) fn map(device: &File, queue: u16, depth: u16) -> io::Result<Self> {
        let page = rustix::param::page_size() as u64;
        // SAFETY: the kernel chooses the place, so nothing else is there. `Drop` undoes it, and no reference into it
        // is ever made.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                Self::length(depth),
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                device,
                descriptors_offset(queue, page),
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, depth })
    }

    fn length(depth: u16) -> usize {
        (usize::from(depth) * size_of::<IoDescriptor>())
            .next_multiple_of(rustix::param::page_size())
    }

    /// The request under a tag that has just come in.
    pub(super) fn get(&self, tag: u16) -> Option<IoDescriptor> {
        if tag >= self.depth {
            return None;
        }
        // SAFETY: within the mapping, aligned, and any bytes are a descriptor. The kernel wrote it before it completed
        // the command and writes it again only after the request has been committed; volatile, since the compiler
        // knows nothing of that.
        Some(unsafe { self.start.add(usize::from(tag)).read_volatile() })
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nothing refers to it.
        let unmapped =
            unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), Self::length(self.depth)) };
        debug_assert!(unmapped.is_ok(), "it was mapped");
    }
}
