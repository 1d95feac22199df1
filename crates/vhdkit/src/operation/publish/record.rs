//! What is in the file of a published operation: bytes only.
//!
//! One [`Entry`] of fixed length. The identity is written once. The state is written again and again while others read,
//! into two slots in turn: each carries a number that rises and a checksum, so a reader takes the newest slot that is
//! whole, and a slot that is just being written never hides the one before it. The last part is written by others.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Subject, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::operation::{Progress, Status};

const SIGNATURE: [u8; 8] = *b"vhdkitop";
/// Entries of another version are not read.
const VERSION: u32 = 1;
/// Room for paths: two of the longest that Linux takes.
const PATHS: usize = 8192;
const VERB: usize = 64;

/// The year 10000, which has no written form, in milliseconds since 1970.
const END_OF_TIME: u64 = 253_402_300_800_000;

const COUNTS_BYTES: u32 = 1;
/// With the one before: how many there will be is not known.
const OPEN_ENDED: u32 = 2;

/// Length of the file.
pub(super) const ENTRY_LENGTH: usize = size_of::<Entry>();
/// Where somebody else writes a byte that is not zero to ask the operation to stop.
pub(super) const REQUEST_OFFSET: u64 = std::mem::offset_of!(Entry, request) as u64;
const STATES_OFFSET: u64 = std::mem::offset_of!(Entry, states) as u64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    identity: Identity,
    states: [State; 2],
    request: u8,
    reserved: [u8; 7],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct Identity {
    signature: [u8; 8],
    version: U32,
    /// CRC-32C of this structure, with zero here.
    checksum: U32,
    pid: U32,
    flags: U32,
    /// Milliseconds since 1970.
    started: U64,
    verb_length: U16,
    path_length: U16,
    /// Zero: there is no other disk.
    other_length: U16,
    reserved: U16,
    verb: [u8; VERB],
    /// One after the other.
    paths: [u8; PATHS],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct State {
    sequence: U64,
    current: U64,
    completion: U64,
    /// A Win32 code.
    status: U32,
    /// CRC-32C of this structure, with zero here.
    checksum: U32,
}

const _: () = {
    assert!(size_of::<State>() == 32);
    assert!(size_of::<Identity>() == 40 + VERB + PATHS);
    assert!(size_of::<Entry>() == size_of::<Identity>() + 2 * 32 + 8);
};

/// What an entry says of itself; the same for its whole life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    pub(super) verb: String,
    pub(super) subject: Subject,
    pub(super) pid: u32,
    pub(super) started: SystemTime,
}

/// A whole new file, with the first state.
pub(super) fn encode(origin: &Origin, progress: Progress) -> Result<Vec<u8>> {
    let mut entry = Entry::new_zeroed();
    let identity = &mut entry.identity;
    identity.signature = SIGNATURE;
    identity.version = VERSION.into();
    identity.pid = origin.pid.into();
    let flags = match origin.subject.unit {
        Unit::Bytes => COUNTS_BYTES,
        Unit::BytesSoFar => COUNTS_BYTES | OPEN_ENDED,
        Unit::Steps => 0,
    };
    identity.flags = flags.into();
    let since = origin.started.duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
    identity.started = millis.into();

    let verb = origin.verb.as_bytes();
    let path = origin.subject.path.as_os_str().as_bytes();
    let other = origin.subject.other.as_deref().map(Path::as_os_str);
    let other = other.map_or(&[][..], OsStrExt::as_bytes);
    identity.verb_length = put(&mut identity.verb, verb)?;
    identity.path_length = put(&mut identity.paths, path)?;
    identity.other_length = put(&mut identity.paths[path.len()..], other)?;
    identity.checksum = identity.computed_checksum().into();
    entry.states[0] = State::new(0, progress);
    Ok(entry.as_bytes().to_vec())
}

fn put(room: &mut [u8], text: &[u8]) -> Result<U16> {
    let length = u16::try_from(text.len()).ok();
    match (length, room.get_mut(..text.len())) {
        (Some(length), Some(place)) => {
            place.copy_from_slice(text);
            Ok(length.into())
        }
        _ => Err(Error::new(
            ErrorKind::NotSupported,
            "the path or the name is too long to be published",
        )),
    }
}

/// The bytes of the state with this number, and where they belong.
pub(super) fn encode_state(sequence: u64, progress: Progress) -> (u64, [u8; size_of::<State>()]) {
    let slot = (sequence % 2) * size_of::<State>() as u64;
    (
        STATES_OFFSET + slot,
        zerocopy::transmute!(State::new(sequence, progress)),
    )
}

/// What an entry's bytes say; `None` if they are not a whole entry of this version (yet).
pub(super) fn decode(bytes: &[u8]) -> Option<(Origin, Progress)> {
    let entry = Entry::ref_from_bytes(bytes).ok()?;
    Some((entry.identity.origin()?, entry.newest()?))
}

impl Entry {
    fn newest(&self) -> Option<Progress> {
        let whole = self.states.iter().filter(|s| s.is_whole());
        let newest = whole.max_by_key(|s| s.sequence.get())?;
        Some(Progress {
            status: Status::from_code(newest.status.get()),
            current: newest.current.get(),
            completion: newest.completion.get(),
        })
    }
}

impl Identity {
    fn computed_checksum(&self) -> u32 {
        let mut blank = self.clone();
        blank.checksum = 0.into();
        crc32c::crc32c(blank.as_bytes())
    }

    fn origin(&self) -> Option<Origin> {
        if self.signature != SIGNATURE
            || self.version.get() != VERSION
            || self.started.get() >= END_OF_TIME
            || self.checksum.get() != self.computed_checksum()
        {
            return None;
        }
        let verb = self.verb.get(..self.verb_length.get().into())?;
        let (path, rest) = self.paths.split_at_checked(self.path_length.get().into())?;
        let other = rest.get(..self.other_length.get().into())?;
        let path_of = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        Some(Origin {
            verb: std::str::from_utf8(verb).ok()?.to_owned(),
            subject: Subject {
                path: path_of(path),
                other: (!other.is_empty()).then(|| path_of(other)),
                unit: match self.flags.get() {
                    flags if flags & COUNTS_BYTES == 0 => Unit::Steps,
                    flags if flags & OPEN_ENDED == 0 => Unit::Bytes,
                    _ => Unit::BytesSoFar,
                },
            },
            pid: self.pid.get(),
            started: UNIX_EPOCH.checked_add(Duration::from_millis(self.started.get()))?,
        })
    }
}

impl State {
    fn new(sequence: u64, progress: Progress) -> Self {
        let mut state = Self {
            sequence: sequence.into(),
            current: progress.current.into(),
            completion: progress.completion.into(),
            status: progress.status.win32_code().into(),
            checksum: 0.into(),
        };
        state.checksum = state.computed_checksum().into();
        state
    }

    fn computed_checksum(&self) -> u32 {
        let mut blank = self.clone();
        blank.checksum = 0.into();
        crc32c::crc32c(blank.as_bytes())
    }

    /// False for a slot that was never used: the checksum of zeros is not zero.
    fn is_whole(&self) -> bool {
        self.checksum.get() == self.computed_checksum()
            && self.completion.get() > 0
            && self.current.get() <= self.completion.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            verb: "convert".into(),
            subject: Subject {
                path: PathBuf::from(OsStr::from_bytes(b"/disks/\xFF\xFE name.vhdx")),
                other: Some("/disks/source.vhd".into()),
                unit: Unit::Bytes,
            },
            pid: 4711,
            started: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        }
    }

    fn at(current: u64) -> Progress {
        Progress {
            status: Status::Pending,
            current,
            completion: 100,
        }
    }

    fn change(bytes: &mut [u8], (offset, state): (u64, [u8; 32])) {
        let offset = usize::try_from(offset).unwrap();
        bytes[offset..offset + 32].copy_from_slice(&state);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = encode(&origin(), at(1)).unwrap();
        assert_eq!(bytes.len(), ENTRY_LENGTH);
        assert_eq!(decode(&bytes), Some((origin(), at(1))));
        let mut alone = origin();
        alone.subject.other = None;
        alone.subject.unit = Unit::Steps;
        assert_eq!(
            decode(&encode(&alone, at(1)).unwrap()),
            Some((alone, at(1)))
        );
        for n in 1..20 {
            change(&mut bytes, encode_state(n, at(n)));
            assert_eq!(decode(&bytes).unwrap().1, at(n));
        }
        let over = Progress {
            status: Status::Failed(ErrorKind::Aborted),
            ..at(20)
        };
        change(&mut bytes, encode_state(20, over));
        assert_eq!(decode(&bytes).unwrap().1, over);
    }

    #[test]
    fn a_state_that_is_half_written_gives_the_one_before() {
        let mut before = encode(&origin(), at(1)).unwrap();
        change(&mut before, encode_state(1, at(2)));
        let mut after = before.clone();
        change(&mut after, encode_state(2, at(99)));
        let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        let mut seen = [0, 0];
        for torn in 0..=changed {
            // The first so many of the changed bytes.
            let mut left = torn;
            let bytes: Vec<u8> = before
                .iter()
                .zip(&after)
                .map(|(old, new)| {
                    if old == new || left == 0 {
                        *old
                    } else {
                        left -= 1;
                        *new
                    }
                })
                .collect();
            let (_, progress) = decode(&bytes).unwrap();
            assert!(progress == at(2) || progress == at(99), "{progress:?}");
            seen[usize::from(progress == at(99))] += 1;
        }
        assert_eq!(seen, [changed, 1]);
    }

    #[test]
    fn garbage_and_truncated_entries_are_not_read() {
        let bytes = encode(&origin(), at(1)).unwrap();
        for length in [0, 1, 8, 4096, ENTRY_LENGTH - 1] {
            assert_eq!(decode(&bytes[..length]), None, "{length}");
        }
        assert_eq!(decode(&[bytes.clone(), vec![0]].concat()), None);
        assert_eq!(decode(&vec![0; ENTRY_LENGTH]), None);
        assert_eq!(decode(&vec![0xFF; ENTRY_LENGTH]), None);
        // Any byte of the identity that is not what it was.
        for at in (0..size_of::<Identity>()).step_by(7) {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x20;
            assert_eq!(decode(&wrong), None, "{at}");
        }
        // Lengths that lead out of the structure, the checksum right.
        for (verb, path, other) in [(65, 1, 0), (1, 8193, 0), (1, 8192, 1), (1, 65535, 65535)] {
            let mut entry = Entry::read_from_bytes(&bytes).unwrap();
            entry.identity.verb_length = verb.into();
            entry.identity.path_length = path.into();
            entry.identity.other_length = other.into();
            entry.identity.checksum = entry.identity.computed_checksum().into();
            assert_eq!(decode(entry.as_bytes()), None);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut long = origin();
        long.subject.path = PathBuf::from("/".repeat(PATHS));
        assert!(encode(&long, at(1)).is_err());
        long.subject.other = None;
        assert!(encode(&long, at(1)).is_ok());
        long.subject.path = PathBuf::from("/".repeat(70_000));
        let error = encode(&long, at(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
    }
}
