//! The parent locator item: which parent, and where it may be (format sheet 5.1).

use std::collections::HashSet;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::header::corrupt;
use super::layout::{LOCATOR_TYPE_VHDX, ParentLocatorEntry, ParentLocatorHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{ParentLink, ParentPath, ParentPathKind, ParentReference};
use crate::num::to_usize;

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
/// The path keys in the order to try them.
const PATHS: [(&str, ParentPathKind); 3] = [
    ("relative_path", ParentPathKind::Relative),
    ("volume_path", ParentPathKind::Volume),
    ("absolute_win32_path", ParentPathKind::Absolute),
];

/// Reads the item's keys and values.
pub(super) fn parse(item: &[u8]) -> Result<ParentReference> {
    let (header, rest) = ParentLocatorHeader::ref_from_prefix(item)
        .map_err(|_| corrupt("the parent locator is too short"))?;
    if header.locator_type != LOCATOR_TYPE_VHDX {
        return Err(Error::new(
            ErrorKind::UnsupportedVersion,
            format!(
                "parent locators of type {:?} are not known",
                header.locator_type
            ),
        ));
    }
    let count = to_usize(header.key_value_count.get().into());
    let (entries, _) =
        <[ParentLocatorEntry]>::ref_from_prefix_with_elems(rest, count).map_err(|_| {
            corrupt(format!(
                "a parent locator of {} bytes cannot hold {count} entries",
                item.len()
            ))
        })?;
    let mut pairs = Vec::new();
    let mut keys = HashSet::new();
    for entry in entries {
        let key = text(item, entry.key_offset.get(), entry.key_length.get())?;
        let value = text(item, entry.value_offset.get(), entry.value_length.get())?;
        if !keys.insert(key.clone()) {
            return Err(corrupt(format!(
                "the parent locator has the key {key} twice"
            )));
        }
        pairs.push((key, value));
    }
    let value = |key: &str| {
        pairs
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    };
    let linkage =
        value(LINKAGE).ok_or_else(|| corrupt("the parent locator has no parent_linkage"))?;
    let mut identifiers = vec![guid(linkage)?];
    if let Some(second) = value(LINKAGE2) {
        let second = guid(second)?;
        // Windows writes zeros where it has no second value.
        if !second.is_nil() && !identifiers.contains(&second) {
            identifiers.push(second);
        }
    }
    let paths: Vec<ParentPath> = PATHS
        .iter()
        .filter_map(|&(key, kind)| {
            Some(ParentPath {
                kind,
                path: value(key)?.to_owned(),
            })
        })
        .collect();
    if paths.is_empty() {
        return Err(corrupt("the parent locator has no path"));
    }
    Ok(ParentReference {
        identifiers,
        paths,
        modified: None,
    })
}

fn text(item: &[u8], offset: u32, length: u16) -> Result<String> {
    let start = to_usize(offset.into());
    let end = start + usize::from(length);
    let bytes = (offset > 0 && length > 0 && length.is_multiple_of(2))
        .then(|| item.get(start..end))
        .flatten()
        .ok_or_else(|| {
            corrupt(format!(
                "a string of {length} bytes at {offset} lies outside the parent locator"
            ))
        })?;
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    Ok(char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect())
}

fn guid(value: &str) -> Result<Uuid> {
    Uuid::try_parse(value.trim_matches(['{', '}']))
        .map_err(|_| corrupt(format!("'{value}' in the parent locator is not a GUID")))
}

/// A new item for a child of `parent`. Off Windows only the relative path means anything; an absolute one is stored
/// if it is a Windows path.
pub(super) fn encode(parent: &ParentLink) -> Result<Vec<u8>> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut pairs: Vec<Pair> = vec![
        (utf16(LINKAGE), utf16(&braced(parent.identifier))),
        (utf16("relative_path"), utf16(&parent.relative_path)),
    ];
    if let Some(path) = extended_windows_path(&parent.absolute_path) {
        pairs.push((utf16("absolute_win32_path"), utf16(&path)));
    }
    encode_pairs(&pairs)
}

/// The item with other accepted identifiers of the parent; every other key and value stays byte for byte.
pub(super) fn with_identifiers(item: &[u8], first: Uuid, second: Option<&Uuid>) -> Result<Vec<u8>> {
    // Checks everything.
    parse(item)?;
    let (header, rest) = ParentLocatorHeader::ref_from_prefix(item)
        .map_err(|_| corrupt("the parent locator is too short"))?;
    let count = to_usize(header.key_value_count.get().into());
    let (entries, _) = <[ParentLocatorEntry]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| corrupt("the parent locator is too short"))?;
    let utf16 =
        |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let bytes = |offset: u32, length: u16| -> Vec<u8> {
        let start = to_usize(offset.into());
        item.get(start..start + usize::from(length))
            .unwrap_or_default()
            .to_vec()
    };
    let mut pairs: Vec<Pair> = Vec::with_capacity(count + 1);
    for entry in entries {
        let key = bytes(entry.key_offset.get(), entry.key_length.get());
        if key == utf16(LINKAGE) {
            pairs.push((key, utf16(&braced(first))));
            if let Some(second) = second {
                pairs.push((utf16(LINKAGE2), utf16(&braced(*second))));
            }
        } else if key != utf16(LINKAGE2) {
            let value = bytes(entry.value_offset.get(), entry.value_length.get());
            pairs.push((key, value));
        }
    }
    encode_pairs(&pairs)
}

/// A key and its value as they are stored.
type Pair = (Vec<u8>, Vec<u8>);

fn braced(identifier: Uuid) -> String {
    format!("{{{}}}", identifier.hyphenated())
}

fn encode_pairs(pairs: &[Pair]) -> Result<Vec<u8>> {
    let mut offset =
        size_of::<ParentLocatorHeader>() + pairs.len() * size_of::<ParentLocatorEntry>();
    let mut item = ParentLocatorHeader {
        locator_type: LOCATOR_TYPE_VHDX,
        reserved: 0.into(),
        key_value_count: u16::try_from(pairs.len()).unwrap_or(u16::MAX).into(),
    }
    .as_bytes()
    .to_vec();
    let mut strings: Vec<u8> = Vec::new();
    let mut place = |bytes: &[u8]| -> Result<(u32, u16)> {
        let too_long = || {
            Error::new(
                ErrorKind::InvalidParameter,
                "the path of the parent is too long to be stored",
            )
        };
        let length = u16::try_from(bytes.len()).map_err(|_| too_long())?;
        let at = u32::try_from(offset).map_err(|_| too_long())?;
        offset += bytes.len();
        strings.extend_from_slice(bytes);
        Ok((at, length))
    };
    for (key, value) in pairs {
        let (key_offset, key_length) = place(key)?;
        let (value_offset, value_length) = place(value)?;
        let entry = ParentLocatorEntry {
            key_offset: key_offset.into(),
            value_offset: value_offset.into(),
            key_length: key_length.into(),
            value_length: value_length.into(),
        };
        item.extend_from_slice(entry.as_bytes());
    }
    item.extend_from_slice(&strings);
    Ok(item)
}

/// `C:\x` as `\\?\C:\x`, `\\server\share` as `\\?\UNC\server\share`; `None` if it is not a Windows path.
fn extended_windows_path(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    if path.starts_with(r"\\?\") {
        Some(path.to_owned())
    } else if let Some(share) = path.strip_prefix(r"\\") {
        Some(format!(r"\\?\UNC\{share}"))
    } else if bytes.len() > 2 && bytes[0].is_ascii_alphabetic() && &bytes[1..3] == br":\" {
        Some(format!(r"\\?\{path}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(absolute: &str) -> ParentLink {
        ParentLink {
            identifier: Uuid::from_u128(0xABCD),
            relative_path: r"..\dir\Größe😀.vhdx".into(),
            absolute_path: absolute.into(),
            modified: 0,
            disk_identifier: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let reference = parse(&encode(&link("/unix/path")).unwrap()).unwrap();
        assert_eq!(reference.identifiers, [Uuid::from_u128(0xABCD)]);
        assert_eq!(
            reference.paths.len(),
            1,
            "a Unix path is not written as a Windows one"
        );
        assert_eq!(reference.paths[0].path, r"..\dir\Größe😀.vhdx");
        for (given, stored) in [
            (r"D:\x\p.vhdx", r"\\?\D:\x\p.vhdx"),
            (r"\\s\p.vhdx", r"\\?\UNC\s\p.vhdx"),
        ] {
            let reference = parse(&encode(&link(given)).unwrap()).unwrap();
            assert_eq!(reference.paths[1].path, stored);
            assert_eq!(reference.paths[1].kind, ParentPathKind::Absolute);
        }
    }

    #[test]
    fn a_guid_is_read_with_and_without_braces_in_any_case() {
        let id = Uuid::from_u128(0x7584f8fb_36d3_4091_afb5_b1afe587bfa8);
        for text in [
            "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}",
            "7584F8FB-36D3-4091-AFB5-B1AFE587BFA8",
        ] {
            assert_eq!(guid(text).unwrap(), id);
        }
        assert!(guid("{nonsense}").is_err());
    }

    #[test]
    fn no_cut_off_item_panics() {
        let item = encode(&link(r"C:\a\b.vhdx")).unwrap();
        for length in 0..item.len() {
            assert!(parse(&item[..length]).is_err());
        }
    }
}
