//! The commands that make, start, stop and remove devices.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::sys::Ring;
use super::wire::{ControlCommand, DeviceInfo, Parameters, control};

/// Where the driver takes them.
pub(super) const PATH: &str = "/dev/ublk-control";

/// ENOTSUPP, which kernels give for commands that they do not know, beside EOPNOTSUPP. It is nowhere in their headers.
const ENOTSUPP: i32 = 524;

pub(super) struct Control {
    file: File,
    ring: Mutex<Ring>,
}

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::options().read(true).write(true).open(PATH)?,
            ring: Mutex::new(Ring::new()?),
        })
    }

    /// What the driver can do.
    pub(super) fn features(&self) -> io::Result<u64> {
        let mut features = 0_u64;
        self.run(control::FEATURES, u32::MAX, 0, features.as_mut_bytes())?;
        Ok(features)
    }

    /// What there is to know of `/dev/ublkcN`.
    pub(super) fn info(&self, device: u32) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::default();
        self.run(control::INFO, device, 0, info.as_mut_bytes())?;
        Ok(info)
    }

    /// Makes `/dev/ublkcN`. The driver may change what it is asked for.
    pub(super) fn add(&self, info: &mut DeviceInfo) -> io::Result<()> {
        self.run(control::ADD, info.device, 0, info.as_mut_bytes())
    }

    pub(super) fn set_parameters(&self, device: u32, parameters: &Parameters) -> io::Result<()> {
        let mut bytes = [0; size_of::<Parameters>()];
        bytes.copy_from_slice(parameters.as_bytes());
        self.run(control::SET_PARAMETERS, device, 0, &mut bytes)
    }

    /// Makes `/dev/ublkbN`, after all queues wait for requests. Reads the partition table.
    pub(super) fn start(&self, device: u32) -> io::Result<()> {
        self.run(control::START, device, std::process::id().into(), &mut [])
    }

    /// Gives a device another size, in units of 512 bytes; see [`F_UPDATE_SIZE`](super::wire::F_UPDATE_SIZE).
    pub(super) fn update_size(&self, device: u32, sectors: u64) -> io::Result<()> {
        self.run(control::UPDATE_SIZE, device, sectors, &mut [])
    }

    /// Removes `/dev/ublkbN`, after all that is underway is done; the queues end.
    pub(super) fn stop(&self, device: u32) -> io::Result<()> {
        self.run(control::STOP, device, 0, &mut [])
    }

    /// Removes the rest of a device, stopping it first if need be. Does not wait for those who have it open, where the
    /// kernel can do that (Linux 6.9).
    pub(super) fn delete(&self, device: u32) -> io::Result<()> {
        match self.run(control::DELETE_ASYNC, device, 0, &mut []) {
            Err(e)
                if [ENOTSUPP, Errno::OPNOTSUPP.raw_os_error()]
                    .contains(&e.raw_os_error().unwrap_or(0)) =>
            {
                self.run(control::DELETE, device, 0, &mut [])
            }
            other => other,
        }
    }

    fn run(&self, operation: u32, device: u32, data: u64, buffer: &mut [u8]) -> io::Result<()> {
        let command = ControlCommand {
            device,
            queue: u16::MAX,
            length: 0,
            address: 0,
            data,
            path_length: 0,
            pad: 0,
            reserved: 0,
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.control(&self.file, operation, command, buffer)?;
        Ok(())
    }
}
