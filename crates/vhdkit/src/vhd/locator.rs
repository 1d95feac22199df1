//! Parent locators: paths of the parent, each in the notation of one platform.
//!
//! The notations differ in more than their letters: `W2ru` and `W2ku` are UTF-16 little-endian, the name in the
//! header is UTF-16 big-endian, `Wi2r` and `Wi2k` have 8-bit characters, `MacX` is a URL in UTF-8.

use std::ops::Range;

use zerocopy::big_endian::U16;

use super::layout::{Header, Locator, SECTOR};
use crate::image::{ParentLink, ParentPath, ParentPathKind};
use crate::native_path;
use crate::num::to_usize;
use crate::storage::Storage;

/// UTF-16 little-endian, relative to the child's folder.
pub(super) const W2RU: [u8; 4] = *b"W2ru";
/// UTF-16 little-endian, absolute.
pub(super) const W2KU: [u8; 4] = *b"W2ku";
/// 8-bit, relative; deprecated.
pub(super) const WI2R: [u8; 4] = *b"Wi2r";
/// 8-bit, absolute; deprecated.
pub(super) const WI2K: [u8; 4] = *b"Wi2k";
/// An alias of Mac OS before X, which leads nowhere on another machine.
pub(super) const MAC: [u8; 4] = *b"Mac ";
/// A file URL in UTF-8.
pub(super) const MACX: [u8; 4] = *b"MacX";
/// An unused slot.
pub(super) const NONE: [u8; 4] = [0; 4];

/// The order in which paths are to be tried, the most likely first.
const ORDER: [[u8; 4]; 5] = [W2RU, W2KU, MACX, WI2R, WI2K];

/// Longest path that is read: 32,767 UTF-16 units are the limit of Windows.
const MAX_LENGTH: u64 = 64 * 1024;

impl Locator {
    /// Room for the path in bytes: values below 512 count sectors, as the specification's text has it, larger ones
    /// bytes, as all files of Microsoft's products have it.
    pub(super) fn space(&self) -> u64 {
        let space = u64::from(self.platform_data_space.get());
        if space < SECTOR {
            space * SECTOR
        } else {
            space
        }
    }

    /// The range of the file that its path takes.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        self.range_of(u64::from(self.platform_data_length.get()))
    }

    /// The range of the file that is kept for its path.
    pub(super) fn room(&self) -> Option<Range<u64>> {
        self.range_of(self.space())
    }

    fn range_of(&self, length: u64) -> Option<Range<u64>> {
        let start = self.platform_data_offset.get();
        let end = start.checked_add(length)?;
        (self.platform_code != NONE && length > 0).then_some(start..end)
    }

    /// Its bytes, if they are inside the file and of sane length.
    pub(super) fn read(&self, storage: &dyn Storage, limit: u64) -> Option<Vec<u8>> {
        let length = u64::from(self.platform_data_length.get());
        let start = self.platform_data_offset.get();
        if length == 0 || length > MAX_LENGTH || start.checked_add(length)? > limit {
            return None;
        }
        let mut bytes = vec![0; to_usize(length)];
        storage.read_at(start, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// All paths that the header and its locators name, in the order to try. Locators that cannot be read are left out.
pub(super) fn parent_paths(header: &Header, storage: &dyn Storage, limit: u64) -> Vec<ParentPath> {
    let mut paths = Vec::new();
    for code in ORDER {
        for locator in &header.parent_locators {
            if locator.platform_code == code
                && let Some(bytes) = locator.read(storage, limit)
                && let Some(path) = decode(code, &bytes)
            {
                paths.push(path);
            }
        }
    }
    let name = decode_name(&header.parent_unicode_name);
    if !name.is_empty() {
        paths.push(ParentPath {
            kind: ParentPathKind::Name,
            path: name,
        });
    }
    paths
}

/// All paths that [`encode`] and [`encode_name`] store, in the order to try.
pub(super) fn paths_of(link: &ParentLink) -> Vec<ParentPath> {
    let mut paths: Vec<ParentPath> = encode(link)
        .iter()
        .filter_map(|(code, bytes)| decode(*code, bytes))
        .collect();
    paths.push(ParentPath {
        kind: ParentPathKind::Name,
        path: decode_name(&encode_name(link)),
    });
    paths.retain(|path| !path.path.is_empty());
    paths
}

/// One path; `None` if it is empty or its notation is unknown.
pub(super) fn decode(code: [u8; 4], bytes: &[u8]) -> Option<ParentPath> {
    let (mut kind, path) = match code {
        W2RU => (ParentPathKind::Relative, utf16_le(bytes)),
        W2KU => (ParentPathKind::Absolute, utf16_le(bytes)),
        WI2R => (ParentPathKind::Relative, latin(bytes)),
        WI2K => (ParentPathKind::Absolute, latin(bytes)),
        MACX => (
            ParentPathKind::Url,
            String::from_utf8_lossy(bytes).into_owned(),
        ),
        _ => return None,
    };
    // Some writers count the terminator in.
    let path = path.trim_end_matches('\0').to_owned();
    if path.starts_with(r"\\?\Volume{") {
        kind = ParentPathKind::Volume;
    }
    (!path.is_empty()).then_some(ParentPath { kind, path })
}

/// The name in the header: UTF-16 big-endian up to the first NUL.
pub(super) fn decode_name(units: &[U16]) -> String {
    let units: Vec<u16> = units
        .iter()
        .map(|unit| unit.get())
        .take_while(|&unit| unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

fn utf16_le(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    String::from_utf16_lossy(&units)
}

/// The code page is not recorded; Latin-1 is right for ASCII, which is nearly all there is.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

fn to_utf16_le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// What a new child stores of its parent: each platform code with its bytes.
///
/// The absolute path is stored if it is one of Windows, or in its notation ([`native_path`]); off Windows a relative URL
/// is stored as well.
pub(super) fn encode(link: &ParentLink) -> Vec<([u8; 4], Vec<u8>)> {
    let mut locators = vec![(W2RU, to_utf16_le(&link.relative_path))];
    let on_windows = is_windows_path(&link.absolute_path);
    if on_windows {
        locators.push((W2KU, to_utf16_le(&link.absolute_path)));
    }
    // Nothing of this system is known on Windows, and the other way round.
    if !on_windows || native_path::from_windows(&link.absolute_path).is_some() {
        locators.push((MACX, relative_url(&link.relative_path).into_bytes()));
    }
    locators.retain(|(_, bytes)| !bytes.is_empty());
    locators
}

/// The name that the header stores: the last part of the path, cut to what the field holds with its terminator.
pub(super) fn encode_name(link: &ParentLink) -> [U16; 256] {
    let name = link
        .relative_path
        .rsplit(['\\', '/'])
        .next()
        .unwrap_or_default();
    let mut units = [U16::ZERO; 256];
    for (unit, value) in units.iter_mut().take(255).zip(name.encode_utf16()) {
        *unit = value.into();
    }
    units
}

fn is_windows_path(path: &str) -> bool {
    let bytes = path.as_bytes();
    path.starts_with(r"\\")
        || (bytes.len() >= 3
            && bytes[0].is_ascii_alphabetic()
            && bytes[1] == b':'
            && matches!(bytes[2], b'\\' | b'/'))
}

/// `.\folder\parent.vhd` as `file://./folder/parent.vhd`, the form that XenServer's tools write and resolve against
/// the child's folder.
fn relative_url(relative: &str) -> String {
    let path = relative.replace('\\', "/");
    let mut url = String::from("file://");
    if !path.starts_with("./") {
        url.push_str("./");
    }
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=:@".contains(&byte) {
            url.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            url.push('%');
            url.push(char::from(HEX[usize::from(byte >> 4)]));
            url.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn link(relative: &str, absolute: &str) -> ParentLink {
        ParentLink {
            identifier: Uuid::nil(),
            relative_path: relative.into(),
            absolute_path: absolute.into(),
            modified: 0,
            disk_identifier: None,
        }
    }

    #[test]
    fn every_platform_code_is_read_in_its_own_notation() {
        use ParentPathKind::{Absolute, Relative, Url, Volume};
        let volume = r"\\?\Volume{9cdf8dfa-0000-0000-0000-501f00000000}\p.vhd";
        for (code, bytes, expected) in [
            (
                W2RU,
                to_utf16_le(r".\größe😀.vhd"),
                Some((Relative, r".\größe😀.vhd")),
            ),
            (
                W2KU,
                to_utf16_le("C:\\p.vhd\0"),
                Some((Absolute, r"C:\p.vhd")),
            ),
            (W2KU, to_utf16_le(volume), Some((Volume, volume))),
            (WI2R, b".\\p.vhd".to_vec(), Some((Relative, r".\p.vhd"))),
            (
                WI2K,
                b"C:\\p\xE9.vhd".to_vec(),
                Some((Absolute, r"C:\pé.vhd")),
            ),
            (
                MACX,
                b"file://./p%20q.vhd".to_vec(),
                Some((Url, "file://./p%20q.vhd")),
            ),
            (MAC, b"alias".to_vec(), None),
            (*b"????", b"x".to_vec(), None),
            (W2RU, vec![0xD8], None),
            (W2RU, vec![0x00, 0xD8], Some((Relative, "\u{FFFD}"))),
        ] {
            let expected = expected.map(|(kind, path)| ParentPath {
                kind,
                path: path.to_owned(),
            });
            assert_eq!(decode(code, &bytes), expected, "{code:?}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let unix = link(r"..\Ünter lage\p.vhd", "/d/p.vhd");
        let written = encode(&unix);
        assert_eq!(written.len(), 2);
        assert_eq!(
            decode(written[0].0, &written[0].1).unwrap().path,
            unix.relative_path
        );
        assert_eq!(
            decode(written[1].0, &written[1].1).unwrap().path,
            "file://./../%C3%9Cnter%20lage/p.vhd"
        );
        let windows = link(r".\p.vhd", r"C:\d\p.vhd");
        let written = encode(&windows);
        assert_eq!(written[1].0, W2KU);
        assert_eq!(decode(W2KU, &written[1].1).unwrap().path, r"C:\d\p.vhd");
        let native = link(r".\p.vhd", r"\\?\srv\p.vhd");
        let codes: Vec<_> = encode(&native).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [W2RU, W2KU, MACX]);
        assert_eq!(decode_name(&encode_name(&unix)), "p.vhd");
        let long = link(&"é".repeat(300), "");
        assert_eq!(decode_name(&encode_name(&long)), "é".repeat(255));
    }

    #[test]
    fn small_space_counts_sectors_and_large_space_bytes() {
        let space = |value: u32| {
            Locator {
                platform_data_space: value.into(),
                ..Locator::default()
            }
            .space()
        };
        assert_eq!((space(1), space(511)), (512, 511 * 512));
        assert_eq!((space(512), space(65_536)), (512, 65_536));
    }
}
