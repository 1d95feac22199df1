//! Cylinders, heads and sectors per track from a size (specification, appendix "CHS calculation").

/// Cylinders, heads, sectors per track.
pub(super) type Geometry = (u16, u8, u8);

/// Most sectors that a geometry can express: about 127.5 GiB.
pub(super) const MAX_SECTORS: u64 = 65_535 * 16 * 255;

/// The geometry for a size in bytes. The product of its parts is at most the size; past about 127.5 GiB it is
/// saturated at 65535 cylinders, 16 heads and 255 sectors per track.
pub(super) fn of_size(size: u64) -> Geometry {
    let sectors = (size / 512).min(MAX_SECTORS);
    let (mut per_track, mut heads);
    let mut tracks;
    if sectors >= 65_535 * 16 * 63 {
        per_track = 255;
        heads = 16;
        tracks = sectors / per_track;
    } else {
        per_track = 17;
        tracks = sectors / per_track;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            per_track = 31;
            heads = 16;
            tracks = sectors / per_track;
        }
        if tracks >= heads * 1024 {
            per_track = 63;
            heads = 16;
            tracks = sectors / per_track;
        }
    }
    let cylinders = u16::try_from(tracks / heads).unwrap_or(u16::MAX);
    (
        cylinders,
        heads.to_le_bytes()[0],
        per_track.to_le_bytes()[0],
    )
}

/// The size in bytes that a geometry describes.
pub(super) fn size_of((cylinders, heads, per_track): Geometry) -> u64 {
    u64::from(cylinders) * u64::from(heads) * u64::from(per_track) * 512
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{GIB, MIB};

    #[test]
    fn vectors_of_the_specification() {
        for (size, expected) in [
            (MIB, (30, 4, 17)),
            (10 * MIB, (301, 4, 17)),
            (100 * MIB, (1003, 12, 17)),
            (528_482_304, (1024, 16, 63)),
            (GIB, (2080, 16, 63)),
            (8 * GIB, (16_644, 16, 63)),
            (32 * GIB, (16_448, 16, 255)),
            (127 * GIB, (65_278, 16, 255)),
            (128 * GIB, (65_535, 16, 255)),
            (u64::MAX, (65_535, 16, 255)),
            (0, (0, 4, 17)),
            (65_535 * 16 * 63 * 512, (16_191, 16, 255)),
        ] {
            assert_eq!(of_size(size), expected, "{size}");
        }
    }

    #[test]
    fn a_geometry_is_never_larger_than_the_disk() {
        for mib in 1..=4096 {
            let size = mib * MIB;
            let described = size_of(of_size(size));
            assert!(described <= size && described + 2 * MIB > size, "{mib} MiB");
        }
    }
}
