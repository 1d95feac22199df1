//! Data that is sent without being copied: whatever happens to the disk before the client reads it, it reads what the
//! range held or was given since, and nothing else. And data that is received so: however it comes and whatever fails.

use std::collections::BTreeSet;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vhdkit::image::{CreateParameters, DiskType, Format, ZeroMode};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::{OpenOptions, Result, VirtualDisk};
use vhdkit_nbd::{Address, Catalog, DiskExport, Export, Limits, Listener, Server, Status};

use crate::raw::Raw;
use crate::support::{MIB, Memory, Served, byte_at, folder};

/// An export that counts what it lends or takes from a pipe.
struct Watched<E> {
    export: E,
    lent: Arc<AtomicU64>,
    /// Most that it lends or takes at once.
    most: u64,
}

impl Export for Watched<DiskExport> {
    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> u64 {
        let lent = self.export.lend(offset, length.min(self.most), pipe);
        self.lent.fetch_add(lent, Ordering::SeqCst);
        lent
    }
    fn size(&self) -> u64 {
        self.export.size()
    }
    fn is_read_only(&self) -> bool {
        self.export.is_read_only()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.export.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.export.write_at(offset, data)
    }
    fn zero(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        self.export.zero(offset, length, may_unmap)
    }
    fn zeroes_fast(&self, offset: u64, length: u64, may_unmap: bool) -> bool {
        self.export.zeroes_fast(offset, length, may_unmap)
    }
    fn trim(&self, offset: u64, length: u64) -> Result<()> {
        self.export.trim(offset, length)
    }
    fn flush(&self) -> Result<()> {
        self.export.flush()
    }
    fn status(&self, context: usize, offset: u64, length: u64) -> Result<Status> {
        self.export.status(context, offset, length)
    }
}

impl Export for Watched<Memory> {
    fn lend(&self, offset: u64, length: u64, mut pipe: &PipeWriter) -> u64 {
        let length = length.min(self.most);
        let start = usize::try_from(offset).unwrap();
        let end = start + usize::try_from(length).unwrap();
        pipe.write_all(&self.export.bytes.lock().unwrap()[start..end])
            .unwrap();
        self.lent.fetch_add(length, Ordering::SeqCst);
        length
    }
    fn write_pipe(&self, offset: u64, length: u64, mut pipe: &PipeReader) -> u64 {
        let damaged = self.export.damaged.and_then(|at| at.checked_sub(offset));
        let sound = damaged.unwrap_or(u64::MAX);
        let count = length.min(self.most).min(sound);
        let mut data = vec![0; usize::try_from(count).unwrap()];
        pipe.read_exact(&mut data).unwrap();
        self.export.write_at(offset, &data).unwrap();
        self.lent.fetch_add(count, Ordering::SeqCst);
        count
    }
    fn size(&self) -> u64 {
        self.export.size()
    }
    fn is_read_only(&self) -> bool {
        self.export.is_read_only()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.export.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.export.write_at(offset, data)
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> Result<()> {
        Ok(())
    }
    fn zeroes_fast(&self, _: u64, _: u64, _: bool) -> bool {
        false
    }
    fn trim(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, context: usize, offset: u64, length: u64) -> Result<Status> {
        self.export.status(context, offset, length)
    }
}

const BLOCK: u64 = 4 * MIB;
const BLOCKS: u64 = 8;
const PIECE: u64 = 256 << 10;

/// Neither zero nor like any other block's.
fn content(round: u64, block: u64) -> Vec<u8> {
    let first = u8::try_from(1 + round * 100 + block).unwrap();
    vec![first; usize::try_from(BLOCK).unwrap()]
}

fn make(path: &Path) -> VirtualDisk {
    let parameters = CreateParameters {
        block_size: Some(BLOCK),
        // The table then takes 2 MiB, and blocks begin at odd MiB: folios of 2 MiB lie over their borders.
        ..CreateParameters::new(Format::Vhdx, DiskType::Dynamic, 600 << 30)
    };
    create(CreateOptions::new(path, parameters)).wait().unwrap();
    OpenOptions::new().writable(true).open(path).unwrap()
}

/// Puts a file into the cache anew, in folios as large as the file system makes them.
fn write_at_once(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
}

fn places(disk: &VirtualDisk, blocks: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    let place = |block| disk.map(block * BLOCK, BLOCK).unwrap().data.unwrap();
    blocks.map(|block| place(block).storage_offset).collect()
}

trait Stream: Read + Write + AsFd {}
impl<S: Read + Write + AsFd> Stream for S {}

/// The shortest way to the default export, with simple replies.
fn enter(stream: &mut dyn Stream) {
    stream
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
        .unwrap();
    stream.read_exact(&mut [0; 18 + 10]).unwrap();
}

fn ask(stream: &mut dyn Stream, offset: u64, length: u64) {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(offset.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    stream.write_all(&bytes).unwrap();
}

/// Clients that ask and do not read; meanwhile every place they were answered from is used for something else.
fn places_change_hands_before_the_client_reads(folder: &Path) {
    let path = folder.join("disk.vhdx");
    let disk = make(&path);
    for block in 0..BLOCKS {
        disk.write_at(block * BLOCK, &content(0, block)).unwrap();
    }
    disk.close().unwrap();
    write_at_once(&path);
    let disk = OpenOptions::new().writable(true).open(&path).unwrap();
    let disk = Arc::new(disk);
    let lent = Arc::new(AtomicU64::new(0));
    let mut catalog = Catalog::new();
    let export = Watched {
        export: DiskExport::new(disk.clone(), false),
        lent: lent.clone(),
        most: u64::MAX,
    };
    catalog.add("disk", Arc::new(export)).unwrap();
    let socket = folder.join("s");
    let port = Listener::tcp("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let Address::Tcp(address) = port.address() else {
        panic!("a port was asked for");
    };
    let listeners = vec![Listener::unix(&socket).unwrap(), port];
    let server = Server::start(catalog, None, Limits::default(), listeners).unwrap();
    let mut clients: Vec<(Box<dyn Stream>, u64)> = Vec::new();
    for block in 0..BLOCKS {
        // Also the first and the last of a block, which share folios with its neighbours.
        for within in [0, BLOCK / 2 + block * 4096, BLOCK - PIECE] {
            let mut stream: Box<dyn Stream> = if (block + within).is_multiple_of(2) {
                Box::new(UnixStream::connect(&socket).unwrap())
            } else {
                Box::new(TcpStream::connect(address).unwrap())
            };
            enter(&mut *stream);
            let offset = block * BLOCK + within;
            ask(&mut *stream, offset, PIECE);
            clients.push((stream, offset));
        }
    }
    // What is not read waits in the socket.
    for (stream, _) in &clients {
        let begun = Instant::now();
        while rustix::io::ioctl_fionread(stream).unwrap() < 32 << 10 {
            assert!(begun.elapsed() < Duration::from_mins(5), "no reply");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(
        lent.load(Ordering::SeqCst) >= BLOCKS * PIECE,
        "the middle of each block is lent"
    );
    let kept = |block: u64| block % 2 == 1;
    let before = places(&disk, (0..BLOCKS).step_by(2));
    assert!(before.iter().all(|place| place % (2 * MIB) == MIB));
    // Meanwhile the neighbours are written to, so that the folios they share are not clean when a part is punched.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                for block in (0..BLOCKS).filter(|&block| kept(block)) {
                    let page = &content(0, block)[..4096];
                    disk.write_at(block * BLOCK, page).unwrap();
                    disk.write_at((block + 1) * BLOCK - 4096, page).unwrap();
                }
            }
        });
        for block in (0..BLOCKS).step_by(4) {
            disk.discard(block * BLOCK, BLOCK).unwrap();
            disk.flush().unwrap();
            let next = (block + 2) * BLOCK;
            disk.zero(next, BLOCK, ZeroMode::MayUnmap).unwrap();
            disk.flush().unwrap();
        }
        disk.flush().unwrap();
        over.store(true, Ordering::SeqCst);
    });
    for block in 0..BLOCKS / 2 {
        let offset = (BLOCKS + block) * BLOCK;
        disk.write_at(offset, &content(1, block)).unwrap();
    }
    disk.flush().unwrap();
    assert_eq!(
        places(&disk, BLOCKS..BLOCKS + BLOCKS / 2),
        before,
        "other blocks have the places now"
    );
    for (mut stream, offset) in clients {
        let mut reply = vec![0; 16 + usize::try_from(PIECE).unwrap()];
        stream.read_exact(&mut reply).unwrap();
        let own = content(0, offset / BLOCK)[0];
        let zero = if kept(offset / BLOCK) { own } else { 0 };
        let strange = reply[16..]
            .iter()
            .find(|&&byte| byte != own && byte != zero);
        assert_eq!(strange, None, "at {offset}, where {own} was");
    }
    server.close(Duration::from_mins(1));
}

#[test]
fn a_reply_that_waits_in_memory_never_shows_another_blocks_content() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    places_change_hands_before_the_client_reads(folder.path());
}

#[test]
fn a_reply_that_waits_on_a_disk_never_shows_another_blocks_content() {
    places_change_hands_before_the_client_reads(folder().path());
}

#[test]
fn a_reply_that_waits_shows_the_old_or_the_new_content_of_its_own_range() {
    let folder = folder();
    let disk = Arc::new(make(&folder.path().join("disk.vhdx")));
    disk.write_at(0, &content(0, 0)).unwrap();
    let mut catalog = Catalog::new();
    let export = DiskExport::new(disk.clone(), false);
    catalog.add("disk", Arc::new(export)).unwrap();
    let socket = folder.path().join("s");
    let listener = Listener::unix(&socket).unwrap();
    let server = Server::start(catalog, None, Limits::default(), vec![listener]).unwrap();
    let mut stream = UnixStream::connect(&socket).unwrap();
    enter(&mut stream);
    ask(&mut stream, BLOCK / 2, PIECE);
    while rustix::io::ioctl_fionread(&stream).unwrap() < 16 + PIECE {
        std::thread::sleep(Duration::from_millis(2));
    }
    disk.write_at(0, &content(1, 0)).unwrap();
    let mut reply = vec![0; 16 + usize::try_from(PIECE).unwrap()];
    stream.read_exact(&mut reply).unwrap();
    let (old, new) = (content(0, 0)[0], content(1, 0)[0]);
    assert!(reply[16..].iter().all(|&byte| byte == old || byte == new));
    // What is asked for after the write was answered is new.
    ask(&mut stream, BLOCK / 2, PIECE);
    stream.read_exact(&mut reply).unwrap();
    assert!(reply[16..].iter().all(|&byte| byte == new));
    server.close(Duration::from_mins(1));
}

#[test]
fn data_that_is_lent_in_part_arrives_whole() {
    let lent = Arc::new(AtomicU64::new(0));
    let served = Served::export(Watched {
        export: Memory::new(4 * MIB),
        lent: lent.clone(),
        most: 100_000,
    });
    let mut raw = Raw::simple(&served);
    for (cookie, offset, length) in [(1, 0, 512), (2, 4096, 262_144), (3, 777, 65_536)] {
        raw.request(0, 0, cookie, offset, length);
    }
    for (cookie, offset, length) in [(1, 0, 512), (2, 4096, 262_144), (3, 777, 65_536)] {
        assert_eq!(raw.simple_reply(), (0, cookie));
        let expected: Vec<u8> = (offset..offset + length).map(byte_at).collect();
        assert!(raw.take(length) == expected, "request {cookie}");
    }
    assert_eq!(lent.load(Ordering::SeqCst), 100_000 + 65_536);
}

#[test]
fn an_error_behind_what_was_lent_is_told_and_nothing_of_it_is_sent() {
    let mut memory = Memory::new(4 * MIB);
    memory.damaged = Some(200_000);
    let served = Served::export(Watched {
        export: memory,
        lent: Arc::default(),
        most: 100_000,
    });
    let mut raw = Raw::simple(&served);
    // All with one call: the first reply still waits when the second request fails.
    let mut requests = Vec::new();
    for (cookie, offset, length) in [(1_u64, 0_u64, 512_u32), (2, 0, 262_144), (3, 0, 131_072)] {
        requests.extend(0x2560_9513_u32.to_be_bytes());
        requests.extend([0; 4]);
        requests.extend(cookie.to_be_bytes());
        requests.extend(offset.to_be_bytes());
        requests.extend(length.to_be_bytes());
    }
    raw.say(&requests);
    assert_eq!(raw.simple_reply(), (0, 1));
    raw.take(512);
    assert_eq!(raw.simple_reply(), (5, 2), "EIO");
    assert_eq!(raw.simple_reply(), (0, 3));
    let expected: Vec<u8> = (0..131_072).map(byte_at).collect();
    assert!(raw.take(131_072) == expected);
}

/// Head and payload with one call each, as clients do. A large write that follows another is received without being
/// copied.
fn write(raw: &mut Raw, cookie: u64, offset: u64, data: &[u8]) {
    raw.request(1, 0, cookie, offset, u32::try_from(data.len()).unwrap());
    raw.say(data);
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|i| byte_at(i * 3 + 1) ^ 0x5a).collect()
}

fn watched(memory: Memory, most: u64) -> (Served, Arc<AtomicU64>) {
    let lent = Arc::new(AtomicU64::new(0));
    let served = Served::export(Watched {
        export: memory,
        lent: lent.clone(),
        most,
    });
    (served, lent)
}

#[test]
fn what_is_received_without_being_copied_arrives_whole() {
    let (served, received) = watched(Memory::new(8 * MIB), 70_000);
    let mut raw = Raw::simple(&served);
    let noise = noise(5 << 20);
    let writes = [(777, 65_536), (4096, 262_144), (100, 5 << 20), (5, 100_000)];
    for (cookie, (offset, length)) in (0..).zip(writes) {
        write(&mut raw, cookie, offset, &noise[..length]);
        assert_eq!(raw.simple_reply(), (0, cookie));
        // Something small in between stays in step.
        raw.request(0, 0, 77, offset, u32::try_from(length).unwrap());
        assert_eq!(raw.simple_reply(), (0, 77));
        assert!(raw.take(length) == noise[..length], "{offset}");
        write(&mut raw, 78, 6 << 20, b"small");
        assert_eq!(raw.simple_reply(), (0, 78));
        write(&mut raw, 79, 6 << 20, &noise[..65_536]);
        assert_eq!(raw.simple_reply(), (0, 79));
    }
    assert!(received.load(Ordering::SeqCst) > 5 << 20);
}

#[test]
fn a_client_that_sends_in_the_smallest_parts_is_served() {
    let (served, received) = watched(Memory::new(MIB), u64::MAX);
    let mut raw = Raw::simple(&served);
    let noise = noise(65_536);
    write(&mut raw, 1, 0, &noise);
    assert_eq!(raw.simple_reply(), (0, 1));
    let before = received.load(Ordering::SeqCst);
    // Each is a page of a pipe for itself.
    raw.request(1, 0, 2, 4096, 65_536);
    for part in noise.chunks(7) {
        raw.say(part);
    }
    assert_eq!(raw.simple_reply(), (0, 2));
    assert_eq!(received.load(Ordering::SeqCst) - before, 65_536);
    raw.request(0, 0, 3, 4096, 65_536);
    assert_eq!(raw.simple_reply(), (0, 3));
    assert!(raw.take(65_536) == noise);
}

#[test]
fn a_write_that_fails_midway_is_told_and_the_rest_is_in_step() {
    for length in [131_072, 262_144, 4 << 20] {
        let mut memory = Memory::new(8 * MIB);
        memory.damaged = Some(100_000);
        let (served, received) = watched(memory, u64::MAX);
        let mut raw = Raw::simple(&served);
        let noise = noise(length);
        for cookie in 0..4 {
            // All at once: the server has the next before it has found out.
            write(&mut raw, cookie, 0, &noise);
            assert_eq!(raw.simple_reply(), (5, cookie), "EIO");
            write(&mut raw, 9, 2 << 20, &noise);
            assert_eq!(raw.simple_reply(), (0, 9));
        }
        raw.request(0, 0, 10, 2 << 20, 131_072);
        assert_eq!(raw.simple_reply(), (0, 10));
        assert!(raw.take(131_072) == noise[..131_072]);
        assert!(received.load(Ordering::SeqCst) > 0);
    }
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_a_write_has_written_no_more_than_it_sent() {
    let (served, received) = watched(Memory::new(MIB), u64::MAX);
    let noise = noise(100_000);
    let mut raw = Raw::simple(&served);
    write(&mut raw, 1, 0, &noise);
    assert_eq!(raw.simple_reply(), (0, 1));
    raw.request(1, 0, 2, 131_072, 262_144);
    raw.say(&noise);
    let before = received.load(Ordering::SeqCst);
    let begun = Instant::now();
    while received.load(Ordering::SeqCst) == before {
        assert!(begun.elapsed() < Duration::from_mins(5), "nothing written");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(raw);
    let mut raw = Raw::simple(&served);
    raw.request(0, 0, 3, 131_072, 262_144);
    assert_eq!(raw.simple_reply(), (0, 3));
    let after = raw.take(262_144);
    let sent = after.iter().zip(&noise).take_while(|(a, b)| a == b);
    let sent = sent.count();
    assert!(sent >= 65_536, "{sent}");
    assert!((sent.max(100_000)..262_144).all(|i| after[i] == byte_at(131_072 + i)));
}
