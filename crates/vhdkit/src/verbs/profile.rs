//! What the places where disks are used ask of them.

use crate::error::{Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format};
use crate::num::{MIB, round_up};
use crate::storage::Storage;
use crate::vhd;

/// A place where a disk is to be used.
///
/// | | format | type | blocks | sectors | size |
/// |---|---|---|---|---|---|
/// | Azure | VHD | fixed | | 512 | whole MiB, from 20 MiB |
/// | Hyper-V | VHDX | dynamic, or fixed if asked for | 32 MiB | 512, physical 4096 | |
/// | WSL | VHDX | dynamic | 1 MiB, so that little is kept of what is freed | 512, physical 4096 | |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Profile {
    /// A page blob or managed disk of Azure.
    Azure,
    /// A virtual machine of Hyper-V.
    HyperV,
    /// A distribution of the Windows Subsystem for Linux.
    Wsl,
}

/// The least that Azure takes: 20 MiB and the footer.
const AZURE_MIN: u64 = 20 * MIB;

impl Profile {
    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Azure => "azure",
            Profile::HyperV => "hyperv",
            Profile::Wsl => "wsl",
        }
    }

    /// The format that the place takes.
    pub fn format(self) -> Format {
        match self {
            Profile::Azure => Format::Vhd,
            Profile::HyperV | Profile::Wsl => Format::Vhdx,
        }
    }

    /// The type of disk that the place takes, if the caller has no wish.
    pub fn disk_type(self) -> DiskType {
        match self {
            Profile::Azure => DiskType::Fixed,
            Profile::HyperV | Profile::Wsl => DiskType::Dynamic,
        }
    }

    /// Fills in what is not said, rounds the size up, and refuses what the place would refuse.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidType`], [`ErrorKind::InvalidBlockSize`], [`ErrorKind::UnsupportedSectorSize`] for what
    /// contradicts the profile.
    pub fn apply(self, parameters: &mut CreateParameters) -> Result<()> {
        let refuse = |kind: ErrorKind, what: &str| {
            Err(
                Error::new(kind, format!("the profile {} demands {what}", self.name()))
                    .with_hint("leave the contradicting option out, or the profile"),
            )
        };
        if parameters.format != self.format() {
            return refuse(ErrorKind::InvalidType, self.format().name());
        }
        if parameters.disk_type != self.disk_type()
            && (self, parameters.disk_type) != (Profile::HyperV, DiskType::Fixed)
        {
            return refuse(ErrorKind::InvalidType, self.disk_type().name());
        }
        if self == Profile::Azure {
            if parameters.block_size.is_some() {
                return refuse(ErrorKind::InvalidBlockSize, "a disk without blocks");
            }
            parameters.virtual_size = round_up(parameters.virtual_size, MIB).max(AZURE_MIN);
            return Ok(());
        }
        if parameters
            .logical_sector_size
            .is_some_and(|size| size != 512)
        {
            return refuse(ErrorKind::UnsupportedSectorSize, "sectors of 512 bytes");
        }
        parameters.logical_sector_size = Some(512);
        parameters.physical_sector_size.get_or_insert(4096);
        if parameters.disk_type == DiskType::Dynamic {
            parameters.block_size.get_or_insert(match self {
                Profile::Wsl => MIB,
                _ => 32 * MIB,
            });
        }
        Ok(())
    }

    /// Looks at a finished file with the eyes of the place.
    ///
    /// # Errors
    /// [`ErrorKind::FooterCorrupt`] if Azure would not take it.
    pub fn verify(self, storage: &dyn Storage, virtual_size: u64) -> Result<()> {
        if self != Profile::Azure {
            return Ok(());
        }
        let file_size = storage.len()?;
        if vhd::is_exact_fixed(storage)?
            && virtual_size.is_multiple_of(MIB)
            && file_size == virtual_size + 512
        {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::FooterCorrupt,
            format!(
                "Azure would not take it: {file_size} bytes for a disk of {virtual_size}, or a footer that says otherwise"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn azure_gets_a_fixed_vhd_of_whole_mebibytes_with_a_right_footer() {
        for (size, expected) in [
            (20 * MIB + 512, 21 * MIB),
            (64 * MIB, 64 * MIB),
            (MIB, 20 * MIB),
        ] {
            let mut wanted = CreateParameters::new(Format::Vhd, DiskType::Fixed, size);
            Profile::Azure.apply(&mut wanted).unwrap();
            assert_eq!(wanted.virtual_size, expected);
            let file = Arc::new(MemoryStorage::new());
            crate::verbs::new_builder(file.clone(), &wanted)
                .unwrap()
                .finish()
                .unwrap();
            assert_eq!(file.len().unwrap(), expected + 512);
            Profile::Azure.verify(&*file, expected).unwrap();
            file.write_at(expected + 48, &[9]).unwrap();
            assert!(Profile::Azure.verify(&*file, expected).is_err());
        }
    }

    #[test]
    fn what_contradicts_a_profile_is_refused() {
        for (profile, format, disk_type) in [
            (Profile::Azure, Format::Vhdx, DiskType::Fixed),
            (Profile::Azure, Format::Vhd, DiskType::Dynamic),
            (Profile::HyperV, Format::Vhd, DiskType::Dynamic),
            (Profile::Wsl, Format::Vhdx, DiskType::Fixed),
        ] {
            let mut wanted = CreateParameters::new(format, disk_type, 64 * MIB);
            assert!(profile.apply(&mut wanted).is_err(), "{profile:?}");
        }
        let mut wanted = CreateParameters::new(Format::Vhdx, DiskType::Fixed, 64 * MIB);
        Profile::HyperV.apply(&mut wanted).unwrap();
        assert_eq!(wanted.block_size, None);
    }
}
