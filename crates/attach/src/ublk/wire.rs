//! The structures and numbers of ublk, as `linux/ublk_cmd.h` has them: bytes only, in the machine's order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Commands to `/dev/ublk-control`, encoded as ioctl numbers are.
pub(super) mod control {
    use super::{READ, WRITE, encode};

    const fn command(direction: u32, number: u32) -> u32 {
        encode(direction, number, size_of::<super::ControlCommand>())
    }
    pub(in super::super) const INFO: u32 = command(READ, 0x02);
    pub(in super::super) const ADD: u32 = command(READ | WRITE, 0x04);
    pub(in super::super) const DELETE: u32 = command(READ | WRITE, 0x05);
    pub(in super::super) const START: u32 = command(READ | WRITE, 0x06);
    pub(in super::super) const STOP: u32 = command(READ | WRITE, 0x07);
    pub(in super::super) const SET_PARAMETERS: u32 = command(READ | WRITE, 0x08);
    pub(in super::super) const FEATURES: u32 = command(READ, 0x13);
    pub(in super::super) const DELETE_ASYNC: u32 = command(READ, 0x14);
    pub(in super::super) const UPDATE_SIZE: u32 = command(READ | WRITE, 0x15);
}

/// Commands to `/dev/ublkcN`.
pub(super) mod io {
    use super::{READ, WRITE, encode};

    const fn command(number: u32) -> u32 {
        encode(READ | WRITE, number, size_of::<super::IoCommand>())
    }
    pub(in super::super) const FETCH: u32 = command(0x20);
    pub(in super::super) const COMMIT_AND_FETCH: u32 = command(0x21);
    /// What a command comes back with if there is a request.
    pub(in super::super) const OK: i32 = 0;
    /// What it comes back with when the device is stopped: ENODEV.
    pub(in super::super) const STOPPED: i32 = -19;
}

/// The direction bits of ioctl numbers.
const WRITE: u32 = 1;
const READ: u32 = 2;

#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of structures of 16 and 32 bytes"
)]
const fn encode(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

/// The driver takes commands under the numbers above (Linux 6.4).
pub(super) const F_IOCTL_ENCODE: u64 = 1 << 6;
/// The data of requests is read and written through `/dev/ublkcN` (Linux 6.5).
pub(super) const F_USER_COPY: u64 = 1 << 7;

/// A device can get another size while it is used (Linux 6.16).
pub(super) const F_UPDATE_SIZE: u64 = 1 << 10;

/// `struct ublksrv_ctrl_cmd`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ControlCommand {
    pub(super) device: u32,
    /// 0xFFFF if it is about no queue.
    pub(super) queue: u16,
    pub(super) length: u16,
    pub(super) address: u64,
    pub(super) data: u64,
    pub(super) path_length: u16,
    pub(super) pad: u16,
    pub(super) reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) queues: u16,
    pub(super) queue_depth: u16,
    pub(super) state: u16,
    pub(super) pad0: u16,
    pub(super) max_io_bytes: u32,
    /// `u32::MAX` asks for any.
    pub(super) device: u32,
    pub(super) server_pid: i32,
    pub(super) pad1: u32,
    pub(super) flags: u64,
    /// These two are ours: the kernel only keeps them.
    pub(super) tag: u32,
    pub(super) mark: u32,
    pub(super) owner_uid: u32,
    pub(super) owner_gid: u32,
    pub(super) reserved: [u64; 2],
}

impl DeviceInfo {
    /// The state of a device that is served.
    pub(super) const LIVE: u16 = 1;
}

/// `struct ublk_params`, up to the part about discarding.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Parameters {
    /// [`Parameters::LENGTH`].
    pub(super) length: u32,
    /// Which parts there are: [`Parameters::BASIC`] and so on.
    pub(super) types: u32,
    pub(super) basic: Basic,
    pub(super) discard: Discard,
    /// Where the next part would begin.
    pub(super) end: u32,
}

impl Parameters {
    pub(super) const LENGTH: u32 = 60;
    pub(super) const BASIC: u32 = 1 << 0;
    pub(super) const DISCARD: u32 = 1 << 1;
}

/// `struct ublk_param_basic`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Basic {
    pub(super) attributes: u32,
    /// Sizes of sectors and of good requests, as powers of two.
    pub(super) logical_shift: u8,
    pub(super) physical_shift: u8,
    pub(super) optimal_shift: u8,
    pub(super) minimal_shift: u8,
    /// In units of 512 bytes, as all sectors here.
    pub(super) max_sectors: u32,
    pub(super) chunk_sectors: u32,
    pub(super) sectors: u64,
    pub(super) virtual_boundary_mask: u64,
}

impl Basic {
    pub(super) const READ_ONLY: u32 = 1 << 0;
    pub(super) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(super) const FUA: u32 = 1 << 3;
}

/// `struct ublk_param_discard`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Discard {
    pub(super) alignment: u32,
    /// In bytes.
    pub(super) granularity: u32,
    pub(super) max_discard_sectors: u32,
    pub(super) max_zero_sectors: u32,
    pub(super) max_segments: u16,
    pub(super) reserved: u16,
}

/// `struct ublksrv_io_cmd`. Its address stays zero: the kernel copies nothing by itself.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoCommand {
    queue: u16,
    tag: u16,
    result: i32,
    address: u64,
}

impl IoCommand {
    /// `result` is the bytes moved, or a negative error number.
    pub(super) fn new(queue: u16, tag: u16, result: i32) -> Self {
        Self {
            queue,
            tag,
            result,
            address: 0,
        }
    }
}

/// `struct ublksrv_io_desc`: one request.
#[derive(Clone, Copy, Default, Debug, FromBytes, KnownLayout)]
#[repr(C)]
pub(super) struct IoDescriptor {
    /// The operation in the lowest byte, flags above.
    pub(super) op_flags: u32,
    pub(super) sectors: u32,
    pub(super) start_sector: u64,
    pub(super) address: u64,
}

impl IoDescriptor {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const FLUSH: u32 = 2;
    pub(super) const DISCARD: u32 = 3;
    pub(super) const WRITE_ZEROES: u32 = 5;

    pub(super) const FUA: u32 = 1 << 13;
    pub(super) const NO_UNMAP: u32 = 1 << 15;

    pub(super) fn operation(&self) -> u32 {
        self.op_flags & 0xFF
    }
}

/// Units of all sectors above.
pub(super) const SECTOR: u32 = 512;

/// Most requests of a queue that the kernel can know of; it spaces the queues' descriptors so.
const MAX_DEPTH: u64 = 4096;

/// Where the descriptors of a queue are in `/dev/ublkcN`, to be mapped.
pub(super) fn descriptors_offset(queue: u16, page: u64) -> u64 {
    u64::from(queue) * (MAX_DEPTH * size_of::<IoDescriptor>() as u64).next_multiple_of(page)
}

/// Where the data of a request are in `/dev/ublkcN`, to be read and written.
pub(super) fn data_offset(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + (u64::from(queue) << 41) + (u64::from(tag) << 25)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<ControlCommand>(), 32);
        assert_eq!(size_of::<DeviceInfo>(), 64);
        assert_eq!(size_of::<Basic>(), 32);
        assert_eq!(size_of::<Discard>(), 20);
        assert_eq!(
            std::mem::offset_of!(Parameters, end),
            Parameters::LENGTH as usize
        );
        assert_eq!(size_of::<IoCommand>(), 16);
        assert_eq!(size_of::<IoDescriptor>(), 24);
    }

    #[test]
    fn commands_have_the_numbers_that_the_header_gives_them() {
        // _IOWR('u', 0x04, struct ublksrv_ctrl_cmd) and so on, as a C compiler prints them.
        assert_eq!(control::ADD, 0xC020_7504);
        assert_eq!(control::FEATURES, 0x8020_7513);
        assert_eq!(control::DELETE_ASYNC, 0x8020_7514);
        assert_eq!(io::FETCH, 0xC010_7520);
        assert_eq!(io::COMMIT_AND_FETCH, 0xC010_7521);
    }

    #[test]
    fn queues_and_tags_have_places_of_their_own() {
        assert_eq!(descriptors_offset(2, 4096), 2 * 98304);
        assert_eq!(data_offset(0, 0), 1 << 31);
        assert_eq!(data_offset(1, 3), (1 << 31) + (1 << 41) + (3 << 25));
    }
}
