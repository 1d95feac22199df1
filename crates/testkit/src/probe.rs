//! Does to any bytes what a program would do to a disk: opens, reads a little, maps, checks, writes a little.

use std::sync::Arc;

use vhdkit::disk::{Layer, detect_format, open_image};
use vhdkit::image::Finding;
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::check::check_storage;
use vhdkit::{Error, ErrorKind, Result, VirtualDisk};

use crate::fault::{Call, FaultStorage};

/// What came of it.
#[derive(Debug)]
pub struct Probe {
    /// Whether it opened for reading, and what using it said then.
    pub read: Result<()>,
    /// Whether it opened for writing, and what using it said then.
    pub write: Result<()>,
    /// What a check said.
    pub findings: Result<Vec<Finding>>,
}

/// Probes bytes of any origin; the storage given is not changed. Panics if a read-only open changes the file, or if an
/// error says nothing.
pub fn probe(bytes: &MemoryStorage) -> Probe {
    let watched = FaultStorage::new(Arc::new(bytes.clone()));
    let read = use_for_reading(watched.clone());
    let as_is: Arc<dyn Storage> = watched.clone();
    let findings = check_storage(&as_is);
    assert_eq!(
        watched.counts().total(Call::CHANGING),
        0,
        "looking at a file changed it"
    );
    let write = use_for_writing(Arc::new(bytes.clone()));
    for error in [read.as_ref().err(), write.as_ref().err()]
        .into_iter()
        .flatten()
    {
        says_something(error);
    }
    Probe {
        read,
        write,
        findings,
    }
}

/// An error of damage is of a kind that says so and has a reason in words.
fn says_something(error: &Error) {
    assert!(error.reason().len() > 8, "{error:?}");
    assert!(
        !matches!(
            error.kind(),
            ErrorKind::Io | ErrorKind::OutOfMemory | ErrorKind::ReadFault | ErrorKind::WriteFault
        ),
        "damage of the file was reported as a failure of the system: {error:?}"
    );
}

fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<VirtualDisk> {
    let format = detect_format(&*storage)?;
    let image = open_image(storage, format, writable)?;
    VirtualDisk::from_layers(vec![Layer::new(image, "probe")], writable)
}

/// The beginning, the end, and around a place in the middle.
fn places(size: u64) -> Vec<(u64, usize)> {
    let length = size.min(4096);
    let middle = size / 2 - size / 2 % 512;
    let mut places = vec![(0, length), (size - length, length)];
    for at in [middle, 1 << 20, (1 << 21) - 512, 1 << 32] {
        if at < size {
            places.push((at, (size - at).min(1024)));
        }
    }
    places
        .into_iter()
        .map(|(at, length)| (at, length as usize))
        .collect()
}

fn use_for_reading(storage: Arc<dyn Storage>) -> Result<()> {
    let disk = open(storage, false)?;
    let info = disk.info();
    let size = disk.virtual_size();
    assert_eq!(info.virtual_size, size);
    for (at, length) in places(size) {
        let mut buf = vec![0xEE; length];
        disk.read_at(at, &mut buf)?;
    }
    let mut at = 0;
    // A huge disk may have any number of extents; some are enough.
    for extent in disk.extents(0..size).take(2000) {
        let (start, extent) = extent?;
        assert!(start == at && extent.length > 0 && start + extent.length <= size);
        at += extent.length;
    }
    Ok(())
}

fn use_for_writing(storage: Arc<dyn Storage>) -> Result<()> {
    let disk = open(storage, true)?;
    let size = disk.virtual_size();
    for (i, (at, length)) in places(size).into_iter().enumerate() {
        let length = length.min(1024);
        disk.write_at(at, &vec![i as u8 + 1; length])?;
        let mut buf = vec![0; length];
        disk.read_at(at, &mut buf)?;
        assert!(buf.iter().all(|&b| b == i as u8 + 1), "reads what it wrote");
    }
    disk.flush()?;
    disk.discard(0, size.min(4 << 20))?;
    disk.close()
}
