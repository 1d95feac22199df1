//! Checked conversions and rounding.

/// A `u64` that indexes memory.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the library needs a 64-bit address space, asserted below"
)]
pub(crate) const fn to_usize(value: u64) -> usize {
    const { assert!(size_of::<usize>() == 8, "vhdkit needs a 64-bit target") };
    value as usize
}

/// Rounds up to a multiple of `unit`; saturates at the largest multiple.
pub(crate) const fn round_up(value: u64, unit: u64) -> u64 {
    match value.checked_next_multiple_of(unit) {
        Some(rounded) => rounded,
        None => u64::MAX - u64::MAX % unit,
    }
}

/// Rounds down to a multiple of `unit`.
pub(crate) const fn round_down(value: u64, unit: u64) -> u64 {
    value - value % unit
}

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;
pub(crate) const GIB: u64 = 1024 * MIB;
pub(crate) const TIB: u64 = 1024 * GIB;
