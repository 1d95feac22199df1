//! A client of our own that says exactly what it is told to, for what no other client can be made to say.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhdkit::ErrorKind;
use vhdkit_nbd::Limits;

use crate::support::{MIB, Memory, Served, byte_at};

pub(crate) struct Raw(pub(crate) UnixStream);

pub(crate) const EXTENDED: u32 = 11;
pub(crate) const STRUCTURED: u32 = 8;
pub(crate) const GO: u32 = 7;

/// A chunk of a reply with extended headers.
#[derive(Debug, PartialEq)]
struct Chunk {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    payload: Vec<u8>,
}

impl Raw {
    /// Past the greeting.
    pub(crate) fn connect(served: &Served) -> Self {
        let stream = UnixStream::connect(served.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_mins(5)))
            .unwrap();
        let mut raw = Self(stream);
        let greeting = raw.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        raw.say(&3_u32.to_be_bytes());
        raw
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// True if the server has hung up.
    pub(crate) fn is_over(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0)) || self.0.write_all(&[0; 8]).is_err()
    }

    pub(crate) fn option(&mut self, number: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        let head = [
            &b"IHAVEOPT"[..],
            &number.to_be_bytes(),
            &length.to_be_bytes(),
        ]
        .concat();
        self.say(&[&head, data].concat());
    }

    /// The kind of a reply to an option, and its data.
    pub(crate) fn answer(&mut self) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], 0x0003_E889_0455_65A9_u64.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let data = self.take(number(16) as usize);
        (number(12), data)
    }

    pub(crate) fn ask(&mut self, number: u32, data: &[u8]) -> u32 {
        self.option(number, data);
        loop {
            let (kind, _) = self.answer();
            if kind == 1 || kind >= 1 << 31 {
                return kind;
            }
        }
    }

    pub(crate) fn go(&mut self, name: &str) {
        assert_eq!(self.ask(GO, &go(name)), 1);
    }

    pub(crate) fn extended(served: &Served, contexts: &[&str]) -> Self {
        let mut raw = Self::connect(served);
        assert_eq!(raw.ask(EXTENDED, &[]), 1);
        if !contexts.is_empty() {
            let mut data = [&4_u32.to_be_bytes()[..], b"test"].concat();
            data.extend(u32::try_from(contexts.len()).unwrap().to_be_bytes());
            for context in contexts {
                data.extend(u32::try_from(context.len()).unwrap().to_be_bytes());
                data.extend(context.as_bytes());
            }
            assert_eq!(raw.ask(10, &data), 1);
        }
        raw.go("test");
        raw
    }

    pub(crate) fn simple(served: &Served) -> Self {
        let mut raw = Self::connect(served);
        raw.go("test");
        raw
    }

    pub(crate) fn request(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        self.say(&bytes);
    }

    pub(crate) fn extended_request(
        &mut self,
        kind: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u64,
    ) {
        let mut bytes = 0x21E4_1C71_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        self.say(&bytes);
    }

    /// The error and the cookie of a simple reply.
    pub(crate) fn simple_reply(&mut self) -> (u32, u64) {
        let head = self.take(16);
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(head[8..].try_into().unwrap()))
    }

    fn chunk(&mut self) -> Chunk {
        let head = self.take(32);
        assert_eq!(head[..4], 0x6E8A_278C_u32.to_be_bytes());
        let short = |at: usize| u16::from_be_bytes(head[at..at + 2].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap());
        Chunk {
            flags: short(4),
            kind: short(6),
            cookie: long(8),
            offset: long(16),
            payload: self.take(usize::try_from(long(24)).unwrap()),
        }
    }

    /// The error of the next reply, which has only that.
    fn error(&mut self) -> u32 {
        let chunk = self.chunk();
        assert_eq!((chunk.kind, chunk.flags), (0x8001, 1), "{chunk:?}");
        u32::from_be_bytes(chunk.payload[..4].try_into().unwrap())
    }
}

pub(crate) fn go(name: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap();
    [&length.to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat()
}

#[test]
fn extended_headers_carry_64_bits_both_ways() {
    let served = Served::export(Memory::new(8 * MIB));
    let mut raw = Raw::extended(&served, &["base:allocation", "vhdkit:changed"]);
    raw.extended_request(1, 1 << 5, 7, 4096, 5);
    raw.say(b"hello");
    let done = raw.chunk();
    assert_eq!(
        (done.kind, done.flags, done.cookie, done.offset),
        (0, 1, 7, 4096)
    );
    raw.extended_request(0, 0, 8, 4096, 5);
    let data = raw.chunk();
    assert_eq!((data.kind, data.flags, data.cookie), (1, 1, 8));
    assert_eq!(
        data.payload,
        [&4096_u64.to_be_bytes()[..], b"hello"].concat()
    );
    // Both contexts in one reply; a run of 64 bits each.
    raw.extended_request(7, 0, 9, 0, 8 * MIB);
    let (first, second) = (raw.chunk(), raw.chunk());
    assert_eq!(
        (first.kind, first.flags, second.kind, second.flags),
        (6, 0, 6, 1)
    );
    let mut expected = [1_u32, 1].map(u32::to_be_bytes).concat();
    expected.extend([8 * MIB, 0].map(u64::to_be_bytes).concat());
    assert_eq!(first.payload, expected);
    let mut expected = [2_u32, 8].map(u32::to_be_bytes).concat();
    for i in 0..8 {
        expected.extend([MIB, i % 2].map(u64::to_be_bytes).concat());
    }
    assert_eq!(second.payload, expected);
    // Lengths that no compact request could have.
    raw.extended_request(6, 0, 10, 0, 1 << 40);
    assert_eq!(raw.error(), 28);
    raw.extended_request(0, 0, 11, 0, 1 << 40);
    assert_eq!(raw.error(), 22);
    raw.extended_request(7, 1 << 5, 12, 0, 24);
    raw.say(&[0; 24]);
    assert_eq!(
        raw.error(),
        22,
        "a payload that was not agreed on is read and refused"
    );
    // Requests of the other kind are the end.
    raw.request(0, 0, 13, 0, 512);
    assert!(raw.is_over());
}

#[test]
fn errors_of_the_disk_have_their_names_on_the_wire() {
    for (kind, errno) in [
        (ErrorKind::DiskFull, 28),
        (ErrorKind::WriteFault, 5),
        (ErrorKind::WriteProtected, 1),
        (ErrorKind::OutOfMemory, 12),
        (ErrorKind::InvalidState, 5),
    ] {
        let mut memory = Memory::new(MIB);
        memory.fails_with = Some(kind);
        let served = Served::export(memory);
        let mut raw = Raw::simple(&served);
        for command in [1_u16, 3, 4, 6] {
            let length = if command == 3 { 0 } else { 512 };
            raw.request(command, 0, 1, 0, length);
            if command == 1 {
                raw.say(&[0; 512]);
            }
            assert_eq!(raw.simple_reply(), (errno, 1), "{kind:?} {command}");
        }
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let mut memory = Memory::new(MIB);
    memory.read_only = true;
    let served = Served::export(memory);
    let mut raw = Raw::simple(&served);
    for command in [1_u16, 4, 6] {
        raw.request(command, 0, 1, 0, 512);
        if command == 1 {
            raw.say(&[0; 512]);
        }
        assert_eq!(raw.simple_reply(), (1, 1), "{command}");
    }
    raw.request(3, 0, 2, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 2));
}

#[test]
fn zeroing_that_would_not_be_fast_is_refused_if_it_has_to_be() {
    let served = Served::export(Memory::new(MIB));
    let mut raw = Raw::simple(&served);
    raw.request(6, 1 << 4 | 1 << 1, 1, 0, 512);
    assert_eq!(raw.simple_reply(), (95, 1));
    raw.request(6, 1 << 4, 2, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 2));
}

#[test]
fn requests_are_made_of_whole_blocks_where_the_export_wants_it() {
    let mut memory = Memory::new(MIB);
    memory.minimum = 4096;
    let served = Served::export(memory);
    // A client that has not asked cannot know.
    let mut raw = Raw::simple(&served);
    raw.request(0, 0, 1, 512, 512);
    assert_eq!(raw.simple_reply(), (0, 1));
    let mut raw = Raw::connect(&served);
    let asking = [&4_u32.to_be_bytes()[..], b"test", &[0, 1, 0, 3]].concat();
    assert_eq!(raw.ask(GO, &asking), 1);
    raw.request(0, 0, 1, 512, 4096);
    assert_eq!(raw.simple_reply(), (22, 1));
    raw.request(0, 0, 2, 4096, 512);
    assert_eq!(raw.simple_reply(), (22, 2));
    raw.request(0, 0, 3, 4096, 4096);
    assert_eq!(raw.simple_reply(), (0, 3));
}

/// A reply in one chunk promises data before all of it has been read, if it is large.
#[test]
fn damage_is_told_however_large_the_read_is() {
    let mut memory = Memory::new(16 * MIB);
    memory.damaged = Some(5 * MIB);
    let served = Served::export(memory);
    // Simple replies: an error if nothing was promised, else the end.
    let mut raw = Raw::simple(&served);
    for (offset, length) in [
        (5 * MIB, 4096_u32),
        (4 * MIB, 2 << 20),
        (5 * MIB - 4096, 8 << 20),
    ] {
        raw.request(0, 0, 1, offset, length);
        assert_eq!(raw.simple_reply(), (5, 1), "{length}");
    }
    raw.request(0, 0, 2, 0, 8 << 20);
    assert_eq!(raw.simple_reply(), (0, 2));
    let mut rest = Vec::new();
    raw.0.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 8 << 20, "the rest must not look like data");
    // Extended ones: the chunk is filled up, and then the error comes.
    let mut raw = Raw::extended(&served, &[]);
    raw.extended_request(0, 1 << 2, 3, 0, 8 << 20);
    let (data, error) = (raw.chunk(), raw.chunk());
    assert_eq!(
        (data.kind, data.flags, data.payload.len()),
        (1, 0, (8 << 20) + 8)
    );
    assert_eq!((error.kind, error.flags, error.cookie), (0x8001, 1, 3));
    let words = String::from_utf8_lossy(&error.payload[6..]);
    assert!(words.contains("damaged"), "{words}");
    // In pieces what was read before is there.
    raw.extended_request(0, 0, 4, 0, 8 << 20);
    let mut chunks = 0;
    loop {
        let chunk = raw.chunk();
        if chunk.kind == 0x8001 {
            break;
        }
        assert_eq!((chunk.kind, chunk.flags), (1, 0));
        chunks += 1;
    }
    assert_eq!(chunks, 5 * 4);
}

#[test]
fn requests_of_one_connection_run_at_the_same_time() {
    let mut memory = Memory::new(16 * MIB);
    memory.delay = Duration::from_millis(100);
    let (most, together) = (memory.most_reading.clone(), memory.together.clone());
    let served = Served::export(memory);
    let mut raw = Raw::simple(&served);
    // The pace is learned from the first ones.
    for i in 0..8 {
        raw.request(0, 0, i, i * MIB, 4096);
    }
    for _ in 0..8 {
        assert_eq!(raw.simple_reply().0, 0);
        raw.take(4096);
    }
    together.store(4, Ordering::SeqCst);
    for i in 0..16 {
        raw.request(0, 0, i, i * MIB, 4096);
    }
    let mut seen = Vec::new();
    for _ in 0..16 {
        let (error, cookie) = raw.simple_reply();
        assert_eq!(error, 0);
        let data = raw.take(4096);
        let at = usize::try_from(cookie * MIB).unwrap();
        let right = |(i, &b): (usize, &u8)| b == byte_at(at + i);
        assert!(
            data.iter().enumerate().all(right),
            "the data of another request"
        );
        seen.push(cookie);
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..16));
    assert!(most.load(Ordering::SeqCst) >= 4, "{most:?}");
}

#[test]
fn durable_changes_are_flushed_before_they_are_answered() {
    let memory = Memory::new(16 * MIB);
    let flushes = memory.flushes.clone();
    let served = Served::export(memory);
    let mut raw = Raw::simple(&served);
    let mut expected = 0;
    for (command, length) in [
        (1_u16, 4096_u32),
        (1, 1 << 20),
        (4, 4096),
        (6, 4096),
        (3, 0),
    ] {
        raw.request(command, 1, 1, 0, length);
        if command == 1 {
            raw.say(&vec![1; length as usize]);
        }
        assert_eq!(raw.simple_reply(), (0, 1));
        expected += 1;
        assert_eq!(flushes.load(Ordering::SeqCst), expected, "{command}");
    }
}

#[test]
fn the_old_way_in_works_and_ends_with_unknown_names() {
    let served = Served::export_with(Memory::new(MIB), Limits::default());
    for (flags, zeroes) in [(3_u32, 0), (1, 124), (0, 124)] {
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&flags.to_be_bytes()).unwrap();
        let mut raw = Raw(stream);
        raw.option(1, b"");
        let head = raw.take(10 + zeroes);
        assert_eq!(head[..8], MIB.to_be_bytes());
        raw.request(0, 0, 5, 0, 512);
        assert_eq!(raw.simple_reply(), (0, 5));
    }
    let mut raw = Raw::connect(&served);
    raw.option(1, b"nobody");
    assert!(raw.is_over());
    // With extended headers it is forbidden.
    let mut raw = Raw::connect(&served);
    assert_eq!(raw.ask(EXTENDED, &[]), 1);
    raw.option(1, b"test");
    assert!(raw.is_over());
}

#[test]
fn a_farewell_has_no_answer_whatever_it_says_besides() {
    let served = Served::export(Memory::new(MIB));
    for flags in [0, 1, 1 << 9] {
        let mut raw = Raw::simple(&served);
        raw.request(0, 0, 1, 0, 512);
        raw.request(2, flags, 2, 7, 7);
        assert_eq!(raw.simple_reply(), (0, 1));
        raw.take(512);
        let mut rest = Vec::new();
        raw.0.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [], "{flags}");
    }
}

/// What was asked before the client closed its half is still answered, also what others are at.
#[test]
fn a_client_that_has_said_all_still_hears_the_answers() {
    let served = Served::export(Memory::new(16 * MIB));
    let mut raw = Raw::simple(&served);
    raw.request(6, 1, 1, 0, 8 << 20);
    raw.request(0, 0, 2, 0, 4 << 20);
    raw.request(3, 0, 3, 0, 0);
    raw.0.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answered = Vec::new();
    for _ in 0..3 {
        let (error, cookie) = raw.simple_reply();
        assert_eq!(error, 0);
        if cookie == 2 {
            raw.take(4 << 20);
        }
        answered.push(cookie);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3]);
    assert!(raw.is_over());
}

/// Everything at once, without waiting for any answer.
#[test]
fn options_and_requests_may_come_in_one_breath() {
    let served = Served::export(Memory::new(MIB));
    let mut raw = Raw::connect(&served);
    raw.option(3, &[]);
    raw.option(99, b"what");
    raw.option(GO, &[0, 0, 0, 9, 1]);
    raw.option(GO, &[&go("test")[..], &[7]].concat());
    raw.option(GO, &go("nobody"));
    raw.option(GO, &go("test"));
    raw.request(0, 0, 5, 0, 512);
    let kinds: Vec<u32> = std::iter::repeat_with(|| raw.answer().0).take(9).collect();
    let error = |n: u32| (1 << 31) + n;
    // The list, three that make no sense, and one that is not there; then what GO says.
    assert_eq!(
        kinds,
        [2, 1, error(1), error(3), error(3), error(6), 3, 3, 1]
    );
    assert_eq!(raw.simple_reply(), (0, 5));
}
