//! What errors are called on the wire: decided here and nowhere else.

use vhdkit::ErrorKind;

/// An error value of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Errno {
    /// EPERM: the export is read-only.
    NotPermitted = 1,
    /// EIO.
    Io = 5,
    /// ENOMEM.
    NoMemory = 12,
    /// EINVAL: the request makes no sense.
    Invalid = 22,
    /// ENOSPC: no space, or past the end of the export.
    NoSpace = 28,
    /// EOVERFLOW: too much for one piece.
    Overflow = 75,
    /// ENOTSUP: zeroing would not be fast.
    NotSupported = 95,
    /// ESHUTDOWN: the server is going away.
    Shutdown = 108,
}

impl Errno {
    /// What an error of the disk is called.
    pub(crate) fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::WriteProtected | ErrorKind::AccessDenied => Errno::NotPermitted,
            ErrorKind::DiskFull
            | ErrorKind::FileTooLarge
            | ErrorKind::BlockAllocationFailure
            | ErrorKind::HostLimitation => Errno::NoSpace,
            ErrorKind::OutOfMemory => Errno::NoMemory,
            ErrorKind::BeyondEnd | ErrorKind::InvalidParameter => Errno::Invalid,
            ErrorKind::NotSupported => Errno::NotSupported,
            _ => Errno::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_a_name_that_clients_know() {
        for &kind in ErrorKind::ALL {
            assert!(
                [1, 5, 12, 22, 28, 95].contains(&(Errno::of(kind) as u32)),
                "{kind:?}"
            );
        }
        assert_eq!(Errno::of(ErrorKind::DiskFull), Errno::NoSpace);
        assert_eq!(Errno::of(ErrorKind::WriteProtected), Errno::NotPermitted);
        assert_eq!(Errno::of(ErrorKind::FileCorrupt), Errno::Io);
    }
}
