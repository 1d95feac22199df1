//! Disks attached as devices of the system, by `vhdkit_attach`.
//!
//! A device has a server of its own, which has the file to itself as long as it lasts. So an attached disk of this library
//! lets go of its file and keeps a look at it (read-only, without a lock): enough to answer questions, and nothing that
//! changes the disk is possible. When the device is gone, by whoever's hand, the disk is opened again as it was.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vhdkit::ErrorKind;
use vhdkit_attach::{AttachOptions, Attached, BackendKind, Lifetime};

use crate::codes::{ERROR_NOT_SUPPORTED, ERROR_PRIVILEGE_NOT_HELD};
use crate::disk::Opened;
use crate::guard::{Answer, Code};

/// A device that shows a disk.
pub(crate) enum Device {
    /// Attached here; it goes with this value, unless it is permanent.
    Ours(Attached),
    /// Attached by somebody else, or by a handle that was closed.
    Others(vhdkit_attach::Attachment),
}

impl Device {
    /// Makes a device of a disk whose file was closed.
    ///
    /// ERROR_PRIVILEGE_NOT_HELD without root, ERROR_NOT_SUPPORTED if there is no program that serves devices.
    pub(crate) fn attach(opened: &Opened, read_only: bool, permanent: bool) -> Answer<Self> {
        let layers = opened.disk.layers();
        // Exactly the chain that the handle has.
        let parents = layers.iter().skip(1).map(|layer| layer.path.clone());
        let options = AttachOptions::new()
            .read_only(read_only)
            .format(opened.disk.info().format)
            .parents(parents.collect())
            .lifetime(if permanent {
                Lifetime::Permanent
            } else {
                Lifetime::Caller
            });
        options
            .attach(opened.disk.path())
            .map(Self::Ours)
            .map_err(|error| match error.kind() {
                ErrorKind::AccessDenied if !is_root() => Code(ERROR_PRIVILEGE_NOT_HELD),
                ErrorKind::NotFound => Code(ERROR_NOT_SUPPORTED),
                _ => error.into(),
            })
    }

    /// The device that shows a file, whoever attached it.
    pub(crate) fn find(path: &Path) -> Option<Self> {
        let found = vhdkit_attach::find(path).ok()?;
        (found.backend != BackendKind::File && found.alive && !found.leaving)
            .then_some(Self::Others(found))
    }

    fn attachment(&self) -> &vhdkit_attach::Attachment {
        match self {
            Self::Ours(attached) => attached.attachment(),
            Self::Others(attachment) => attachment,
        }
    }

    /// `/dev/loop0`, `/dev/ublkb0`.
    pub(crate) fn node(&self) -> &Path {
        &self.attachment().device
    }

    pub(crate) fn read_only(&self) -> bool {
        self.attachment().read_only
    }

    pub(crate) fn permanent(&self) -> bool {
        self.attachment().permanent
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.attachment().is_alive()
    }

    /// Takes the device away. ERROR_BUSY if it is in use.
    pub(crate) fn detach(&self) -> Answer {
        Ok(self.attachment().detach(false)?)
    }
}

/// All devices of all processes.
pub(crate) fn all() -> Answer<Vec<PathBuf>> {
    let mut found = vhdkit_attach::list()?;
    found.retain(|attachment| attachment.alive && attachment.backend != BackendKind::File);
    Ok(found.into_iter().map(|found| found.device).collect())
}

/// The owner of this process, by the folder that says what is known of it.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
