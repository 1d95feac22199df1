//! Sizes as people write and read them: powers of two, everywhere.
//!
//! `40G`, `40GiB` and `42949672960` are the same size. `40GB` is refused, because half of the world means 10^9 by it
//! and virtual disks are made in powers of two.

use crate::failure::Failure;

/// The letters after bytes, each 1024 times the one before.
const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// Reads a size in bytes: decimal digits, optionally a fraction, optionally a unit (`K`, `KiB`, `M` ...), of any case;
/// or a hexadecimal number of bytes after `0x`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).map_err(|_| how_to_write());
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = power_of(unit.trim_start()).map_err(|problem| match problem {
        UnitProblem::Decimal(power) => in_other_words(number, power),
        UnitProblem::Unknown => how_to_write(),
    })?;
    scale(number, 1024_u128.pow(power))
}

/// As [`parse`], but zero is refused.
pub(crate) fn parse_positive(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("the size must be larger than zero".into()),
        size => Ok(size),
    }
}

/// A new size, or how much is added to the present one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    To(u64),
    By(u64),
}

/// As [`parse_positive`]; a size after `+` is added.
pub(crate) fn parse_change(text: &str) -> Result<Change, String> {
    match text.trim().strip_prefix('+') {
        Some(more) => parse_positive(more).map(Change::By),
        None => parse_positive(text).map(Change::To),
    }
}

/// As [`parse_positive`], for sizes of sectors.
pub(crate) fn parse_sector(text: &str) -> Result<u32, String> {
    u32::try_from(parse_positive(text)?).map_err(|_| "a sector has 512 or 4096 bytes".into())
}

/// A size for people: the largest unit that is not above it, with the exact number beside it.
pub(crate) fn describe(bytes: u64) -> String {
    if bytes < 1024 {
        return plural(bytes, "byte");
    }
    format!("{} ({bytes} bytes)", short(bytes))
}

/// A size for people, at most two decimals: `1.5 GiB`.
pub(crate) fn short(bytes: u64) -> String {
    let mut power = 0;
    while power < UNITS.len() && bytes >> (10 * (power + 1)) > 0 {
        power += 1;
    }
    if power == 0 {
        return plural(bytes, "byte");
    }
    let unit = 1_u128 << (10 * power);
    // Never rounded up to a unit that is not there: 1023.999 MiB stays below 1 GiB.
    let hundredths = u128::from(bytes) * 100 / unit;
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    let number = match rest {
        0 => whole.to_string(),
        r if r % 10 == 0 => format!("{whole}.{}", r / 10),
        r => format!("{whole}.{r:02}"),
    };
    format!("{number} {}iB", UNITS[power - 1])
}

/// A disk has whole sectors of `unit` bytes: fails with what to write instead if `bytes` are not.
pub(crate) fn whole_sectors(bytes: u64, unit: u64) -> Result<u64, Failure> {
    let rest = bytes % unit.max(1);
    if rest == 0 {
        return Ok(bytes);
    }
    let (below, above) = (bytes - rest, (bytes - rest).saturating_add(unit));
    let hint = match below {
        0 => format!("the smallest size is {above}"),
        _ => format!("the next sizes are {below} and {above}"),
    };
    Err(Failure::usage(format!(
        "{bytes} bytes are not a whole number of sectors of {unit}"
    ))
    .hint(hint))
}

/// `1 byte`, `2 bytes`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

enum UnitProblem {
    /// A unit of the SI: 1000 to this power.
    Decimal(u32),
    Unknown,
}

fn power_of(unit: &str) -> Result<u32, UnitProblem> {
    let unit = unit.to_ascii_uppercase();
    let mut letters = unit.chars();
    let Some(first) = letters.next() else {
        return Ok(0);
    };
    if unit == "B" {
        return Ok(0);
    }
    let power = UNITS
        .iter()
        .zip(1..)
        .find(|&(&letter, _)| letter == first)
        .map(|(_, power)| power)
        .ok_or(UnitProblem::Unknown)?;
    match letters.as_str() {
        "" | "IB" => Ok(power),
        "B" => Err(UnitProblem::Decimal(power)),
        _ => Err(UnitProblem::Unknown),
    }
}

/// `number` (with an optional fraction) times `unit`, exactly.
fn scale(number: &str, unit: u128) -> Result<u64, String> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || (number.contains('.') && !digits(fraction)) || fraction.len() > 15 {
        return Err(how_to_write());
    }
    let too_large = || "the size is too large".to_string();
    let parts: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| too_large())?;
    let scaled = parts.checked_mul(unit).ok_or_else(too_large)?;
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    if !scaled.is_multiple_of(divisor) {
        return Err("the size is not a whole number of bytes".into());
    }
    u64::try_from(scaled / divisor).map_err(|_| too_large())
}

fn how_to_write() -> String {
    "write a size as 40G, 512MiB or a number of bytes".into()
}

/// The two readings of a size in SI units.
fn in_other_words(number: &str, power: u32) -> String {
    let letter = UNITS.get(power as usize - 1).copied().unwrap_or('?');
    match scale(number, 1000_u128.pow(power)) {
        Ok(bytes) => format!(
            "sizes are powers of two here: write {number}{letter} or {number}{letter}iB; if 1000s are meant, write {bytes}"
        ),
        Err(_) => {
            format!("sizes are powers of two here: write {number}{letter} or {number}{letter}iB")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("1k", 1024),
            ("4KiB", 4096),
            ("512MiB", 512 << 20),
            ("512mib", 512 << 20),
            ("40G", 40 << 30),
            ("40 GiB", 40 << 30),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("64T", 64 << 40),
            ("2P", 2 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
            ("0x1000", 4096),
            ("0XfF", 255),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn si_forms_are_refused_and_both_readings_are_named() {
        for text in ["40GB", "40gb", "40 GB"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("40GiB"), "{error}");
            assert!(error.contains("40000000000"), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1.2.3",
            ".5G",
            "5.G",
            "1X",
            "1GiBs",
            "1iB",
            "1e3",
            "0x",
            "0xg",
            "0.1K",
            "16E",
            "18446744073709551616",
            "1,5G",
            "1_000",
            "٣",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_positive("0").is_err());
        assert!(parse_sector("8G").is_err());
        assert_eq!(parse_sector("4K"), Ok(4096));
    }

    #[test]
    fn what_is_shown_is_exact_or_rounded_down() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1 KiB (1024 bytes)"),
            (40 << 30, "40 GiB (42949672960 bytes)"),
            (3 << 29, "1.5 GiB (1610612736 bytes)"),
            ((1 << 30) - 1, "1023.99 MiB (1073741823 bytes)"),
            (u64::MAX, "15.99 EiB (18446744073709551615 bytes)"),
        ] {
            assert_eq!(describe(bytes), shown);
        }
    }
}
