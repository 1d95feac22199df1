//! Changes of a VHDX file's structure: what they leave alone, what a crash or a failing disk leaves of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a failure is a failed test"
)]

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;
use vhdkit::disk::{Layer, open_image};
use vhdkit::image::{
    Backing, DiskType, Format, Image, NoBacking, ParentLink, Severity, Usage, ZeroMode,
};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::check::check_storage;
use vhdkit::{ErrorKind, Result, VirtualDisk};
use vhdkit_testkit::crash::{CrashStorage, Sampling};
use vhdkit_testkit::fault::{Call, Fault, FaultStorage};
use vhdkit_testkit::guest::GuestOp;
use vhdkit_testkit::model::{CrashModel, content_of, first_difference, is_zero};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant};

const MIB: u64 = 1 << 20;

/// The parents of a disk, as its leaf needs them.
struct Parents(Option<VirtualDisk>);

impl Parents {
    fn of(disk: &TestDisk) -> Self {
        if disk.layers.len() == 1 {
            return Self(None);
        }
        let layers = disk.layers[1..]
            .iter()
            .map(|file| {
                Layer::new(
                    open_image(file.clone(), Format::Vhdx, false).unwrap(),
                    "parent",
                )
            })
            .collect();
        Self(Some(VirtualDisk::from_layers(layers, false).unwrap()))
    }
}

impl Backing for Parents {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        let Some(parent) = &self.0 else { return Ok(()) };
        let n = parent
            .virtual_size()
            .saturating_sub(offset)
            .min(buf.len() as u64);
        if n == 0 {
            return Ok(());
        }
        parent.read_at(offset, &mut buf[..n as usize])
    }

    fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        let Some(parent) = &self.0 else {
            return Ok(true);
        };
        let end = (offset + length).min(parent.virtual_size());
        for extent in parent.extents(offset.min(end)..end) {
            if extent?.1.data.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What is done to an image.
#[derive(Clone, Debug)]
enum Op {
    /// Bytes of this value, then a flush.
    Write(u64, u64, u8),
    Zero(u64, u64),
    /// Releases every block that reads as zeros, then flushes.
    Release,
    /// Packs to the end, so many bytes at a time.
    Pack(u64),
    /// One step of it.
    PackStep(u64),
    Resize(u64),
    Item(u128, Option<usize>),
    Identifier(u128),
    PhysicalSectorSize(u32),
    Parent(u128),
    ParentIdentifiers(Vec<u128>),
    LinkIdentifier(u128),
}

fn read(image: &dyn Image, backing: &dyn Backing, range: Range<u64>) -> Vec<u8> {
    try_read(image, backing, range).unwrap()
}

fn try_read(image: &dyn Image, backing: &dyn Backing, range: Range<u64>) -> Result<Vec<u8>> {
    let mut buf = vec![0; (range.end - range.start) as usize];
    let mut absent = Vec::new();
    image.read_at(range.start, &mut buf, &mut absent)?;
    for gap in absent {
        let part = (gap.start - range.start) as usize..(gap.end - range.start) as usize;
        backing.read_at(gap.start, &mut buf[part])?;
    }
    Ok(buf)
}

fn apply(op: &Op, image: &mut dyn Image, backing: &dyn Backing) -> Result<()> {
    match op {
        Op::Write(at, length, value) => {
            image.write_at(*at, &vec![*value; *length as usize], backing)?;
            image.flush()
        }
        Op::Zero(at, length) => {
            image.zero(*at, *length, ZeroMode::MayUnmap, backing)?;
            image.flush()
        }
        Op::Release => {
            let mut at = 0;
            while let Some(block) = image.next_allocated(at)? {
                at = block.range.end;
                if !block.has_content || is_zero(&try_read(image, backing, block.range.clone())?) {
                    assert!(image.release(&block, backing)?);
                }
            }
            image.flush()
        }
        Op::Pack(budget) => {
            let wanted = image.usage()?.packed_size;
            loop {
                let packed = image.pack(*budget)?;
                if packed.left == 0 {
                    break;
                }
                assert!(packed.moved > 0);
            }
            assert_eq!(image.storage().len()?, wanted, "as long as announced");
            let usage = image.usage()?;
            assert_eq!(usage.packed_size, usage.file_size);
            Ok(())
        }
        Op::PackStep(budget) => image.pack(*budget).map(drop),
        Op::Resize(size) => image.resize(*size, backing, &mut |_, _| Ok(())),
        Op::Item(id, length) => {
            let value = length.map(|n| vec![(*id as u8).wrapping_add(n as u8); n]);
            match image.write_user_metadata(Uuid::from_u128(*id), value.as_deref()) {
                Err(e) if length.is_none() && e.kind() == ErrorKind::ItemNotFound => Ok(()),
                other => other,
            }
        }
        Op::Identifier(id) => image.set_identifier(Uuid::from_u128(*id)),
        Op::PhysicalSectorSize(size) => image.set_physical_sector_size(*size),
        Op::Parent(id) => image.set_parent(&ParentLink {
            identifier: Uuid::from_u128(*id),
            relative_path: format!(r".\moved-{id}\parent.vhdx"),
            absolute_path: "/x".into(),
            modified: 0,
            disk_identifier: None,
        }),
        Op::ParentIdentifiers(ids) => {
            let ids: Vec<Uuid> = ids.iter().map(|&id| Uuid::from_u128(id)).collect();
            image.set_parent_identifiers(&ids)
        }
        Op::LinkIdentifier(id) => image.set_link_identifier(Uuid::from_u128(*id)),
    }
}

/// Does to the model what the operation does to the content.
fn follow(op: &Op, content: &MemoryStorage) {
    match *op {
        Op::Write(at, length, value) => {
            content.write_at(at, &vec![value; length as usize]).unwrap();
        }
        Op::Zero(at, length) => content.zero_range(at, length).unwrap(),
        Op::Resize(size) => content.set_len(size).unwrap(),
        _ => {}
    }
}

/// Everything but the content and the identity of the data.
fn described(image: &dyn Image) -> String {
    let info = image.info();
    let items: Vec<_> = image
        .user_metadata()
        .unwrap()
        .into_iter()
        .map(|(id, length)| {
            let value = image.read_user_metadata(id).unwrap();
            assert_eq!(value.len(), length as usize);
            assert!(
                value
                    .iter()
                    .all(|&b| b == (id.as_u128() as u8).wrapping_add(length as u8))
            );
            (id, length)
        })
        .collect();
    format!(
        "{} {:?} {} {:?} {items:?}",
        info.virtual_size, info.identifier, info.physical_sector_size, info.parent
    )
}

fn open(file: Arc<dyn Storage>, writable: bool) -> Box<dyn Image> {
    open_image(file, Format::Vhdx, writable).unwrap()
}

fn worst(file: &Arc<dyn Storage>) -> Option<String> {
    let findings = check_storage(file).unwrap();
    let bad: Vec<_> = findings
        .iter()
        .filter(|f| f.severity > Severity::Info)
        .collect();
    (!bad.is_empty()).then(|| format!("{bad:?}"))
}

#[derive(Clone)]
struct State {
    begun: usize,
    ended: usize,
    content: MemoryStorage,
    described: String,
    link: Option<Uuid>,
}

/// Runs the operations, then looks at what a crash could leave at every barrier.
fn crash(disk: &TestDisk, ops: &[Op]) -> usize {
    crash_without(disk, ops, None).0
}

/// As [`crash`], on a disk that lies about one flush. Returns the numbers of crash images and of flushes.
fn crash_without(disk: &TestDisk, ops: &[Op], lost: Option<usize>) -> (usize, usize) {
    let storage = CrashStorage::losing_a_flush(&disk.layers[0], lost);
    let parents = Parents::of(disk);
    let mut image = open(storage.clone(), true);
    let content = disk.content.clone();
    let state = |image: &dyn Image, begun, ended, content: &MemoryStorage| State {
        begun,
        ended,
        content: content.clone(),
        described: described(image),
        link: image.info().link_identifier,
    };
    let mut states = vec![state(&*image, 0, 0, &content)];
    for op in ops {
        let begun = storage.position();
        apply(op, &mut *image, &parents).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        follow(op, &content);
        states.push(state(&*image, begun, storage.position(), &content));
    }
    image.close().unwrap();
    let end = storage.position();
    states.push(state(&*image, end, end, &content));
    let few = Sampling {
        exhaustive: 3,
        random: 3,
        torn: 4,
    };
    let mut rng = Rng::new(3);
    let mut images = 0;
    for epoch in storage.recording().epochs() {
        let first = states
            .iter()
            .rposition(|s| s.ended <= epoch.position)
            .unwrap();
        let last = states
            .iter()
            .rposition(|s| s.begun <= epoch.position)
            .unwrap();
        let allowed = &states[first..=last.max(first)];
        for fates in epoch.fates(&few, &mut rng) {
            images += 1;
            if let Some(wrong) = violation(disk, epoch.image(&fates), allowed) {
                panic!(
                    "{}: {wrong}\n{}\n{ops:?}",
                    disk.variant.name(),
                    epoch.describe(&fates)
                );
            }
        }
    }
    (images, storage.flushes())
}

fn violation(disk: &TestDisk, file: MemoryStorage, allowed: &[State]) -> Option<String> {
    let file: Arc<dyn Storage> = Arc::new(file);
    if let Some(bad) = worst(&file) {
        return Some(bad);
    }
    for writable in [false, true] {
        let image = open(file.clone(), false);
        let now = described(&*image);
        let link = image.info().link_identifier;
        if !allowed.iter().any(|s| s.described == now) {
            return Some(format!("is described as {now}"));
        }
        // Between two known values, the identity may have been a third one only when a session chose two.
        if allowed.len() == 1 && allowed[0].link != link {
            return Some("another identity of the data".into());
        }
        if allowed.iter().all(|s| s.link == allowed[0].link) && allowed[0].link != link {
            return Some("the identity of the data changed".into());
        }
        drop(image);
        let opened = disk.open_leaf(file.clone(), writable).unwrap();
        let content = content_of(&opened).unwrap();
        let size = content.len().unwrap();
        let mut fitting = allowed.iter().filter(|s| s.content.len().unwrap() == size);
        let mut model = CrashModel::new(&fitting.next()?.content);
        for later in fitting {
            model.changed(&later.content);
        }
        if let Some(wrong) = model.violation(&content) {
            return Some(wrong);
        }
        opened.close().unwrap();
    }
    worst(&file)
}

fn variant(disk_type: DiskType, size: u64, block: u64, sector: u32) -> Variant {
    Variant {
        format: Format::Vhdx,
        disk_type,
        virtual_size: size,
        block_size: Some(block),
        sector_size: sector,
        depth: if disk_type == DiskType::Differencing {
            2
        } else {
            1
        },
    }
}

/// A disk with holes in its file: written backwards, partly zeroed.
fn holey(variant: &Variant) -> TestDisk {
    let mut disk = variant.make(9);
    let (size, block) = (variant.virtual_size, variant.block_size.unwrap());
    let blocks = size / block;
    let mut ops: Vec<GuestOp> = (0..blocks)
        .rev()
        .map(|b| GuestOp::write(b * block + 512, 3 * 4096, b as u32))
        .collect();
    ops.push(GuestOp::Flush);
    ops.push(GuestOp::zero((blocks - 1) * block, block));
    ops.push(GuestOp::zero((blocks / 2) * block, block));
    ops.push(GuestOp::Flush);
    disk.fill(&ops).unwrap();
    disk
}

fn disks() -> Vec<TestDisk> {
    [
        variant(DiskType::Dynamic, 5 * MIB + 512, MIB, 512),
        variant(DiskType::Dynamic, 8 * MIB, 2 * MIB, 4096),
        variant(DiskType::Differencing, 5 * MIB + 512, MIB, 512),
        variant(DiskType::Differencing, 8 * MIB, 2 * MIB, 4096),
    ]
    .iter()
    .map(holey)
    .collect()
}

#[test]
fn a_crash_while_packing_and_releasing_changes_nothing_the_guest_sees() {
    for disk in disks() {
        let block = disk.variant.block_size.unwrap();
        let images = crash(
            &disk,
            &[
                Op::Pack(1),
                Op::Zero(0, block - 4096),
                Op::Release,
                Op::Pack(100 * MIB),
                Op::Write(block, 4096, 9),
                Op::Pack(1),
            ],
        );
        println!("{}: {images} images", disk.variant.name());
    }
}

/// Steps of packing share the barriers of one flush, whoever asks for it: blocks that were moved are written, given
/// back and moved again before the file knows of it.
#[test]
fn a_crash_between_steps_of_packing_shows_every_block_at_one_of_its_places() {
    for disk in disks() {
        let block = disk.variant.block_size.unwrap();
        let last = disk.variant.virtual_size / block - 1;
        crash(
            &disk,
            &[
                Op::Write(last * block, block, 5),
                Op::Zero(0, 2 * block),
                Op::Release,
                Op::PackStep(1),
                Op::PackStep(1),
                Op::Write(last * block, 4096, 6),
                Op::PackStep(1),
                Op::Zero(last * block, block),
                Op::Write(0, block, 7),
                Op::PackStep(1),
                Op::Pack(1),
            ],
        );
    }
}

#[test]
fn packing_takes_the_barriers_of_one_step_for_all_of_them() {
    let disk = variant(DiskType::Dynamic, 64 * MIB, MIB, 512).make(1);
    let image = open(disk.layers[0].clone(), true);
    image
        .write_at(0, &vec![3; 64 * MIB as usize], &NoBacking)
        .unwrap();
    image
        .zero(0, 24 * MIB, ZeroMode::MayUnmap, &NoBacking)
        .unwrap();
    image.close().unwrap();
    let mut barriers = Vec::new();
    for budget in [u64::MAX, 1] {
        let copy = Arc::new(MemoryStorage::from_bytes(&disk.layers[0].to_vec()));
        let counting = FaultStorage::new(copy);
        let mut image = open(counting.clone(), true);
        while image.pack(budget).unwrap().left > 0 {}
        image.close().unwrap();
        barriers.push(counting.counts().of(Call::Flush));
    }
    assert_eq!(barriers[0], barriers[1], "24 steps as one");
}

#[test]
fn packing_that_ends_early_gives_back_what_it_has_emptied() {
    for ends in [true, false] {
        let disk = variant(DiskType::Dynamic, 32 * MIB, MIB, 512).make(1);
        let image = open(disk.layers[0].clone(), true);
        let data = vec![3; 32 * MIB as usize];
        image.write_at(0, &data, &NoBacking).unwrap();
        image
            .zero(0, 12 * MIB, ZeroMode::MayUnmap, &NoBacking)
            .unwrap();
        image.close().unwrap();
        let before = disk.layers[0].len().unwrap();
        let mut image = open(disk.layers[0].clone(), true);
        assert_eq!(image.pack(4 * MIB).unwrap().left, 8 * MIB);
        if ends {
            image.end_packing();
        }
        image.close().unwrap();
        assert_eq!(disk.layers[0].len().unwrap(), before - 4 * MIB);
        let image = open(disk.layers[0].clone(), false);
        let content = read(&*image, &NoBacking, 0..32 * MIB);
        let (zeros, rest) = content.split_at(12 * MIB as usize);
        assert!(is_zero(zeros) && rest == &data[..rest.len()]);
    }
}

#[test]
fn a_crash_while_resizing_leaves_the_old_size_or_the_new_one() {
    for disk in disks() {
        let size = disk.variant.virtual_size;
        crash(
            &disk,
            &[
                Op::Resize(size + 3 * MIB + 4096),
                Op::Resize(2 * MIB + 8192),
                Op::Resize(4 * MIB),
                Op::Write(3 * MIB, MIB, 7),
                Op::Resize(3 * MIB - 4096),
                Op::Resize(6 * MIB),
            ],
        );
    }
}

/// The power fails after a process was killed anywhere and another one has changed the disk: what the first one wrote and
/// nobody flushed must not be what the second one's order of writing relies on.
#[test]
fn what_a_killed_process_left_unflushed_is_not_built_upon() {
    let disk = variant(DiskType::Dynamic, 8 * MIB, MIB, 512).make(1);
    let parents = Parents::of(&disk);
    let content = disk.content.clone();
    let state = |image: &dyn Image, content: &MemoryStorage| State {
        begun: 0,
        ended: 0,
        content: content.clone(),
        described: described(image),
        link: image.info().link_identifier,
    };
    let storage = CrashStorage::new(&disk.layers[0]);
    let mut image = open(storage.clone(), true);
    let mut states = vec![state(&*image, &content)];
    for op in [Op::Resize(200 << 30), Op::Item(1, Some(9000))] {
        apply(&op, &mut *image, &parents).unwrap();
        follow(&op, &content);
        states.push(state(&*image, &content));
    }
    image.close().unwrap();
    let recording = storage.recording();
    let few = Sampling {
        exhaustive: 2,
        random: 2,
        torn: 3,
    };
    let mut rng = Rng::new(4);
    for killed in 0..=recording.ops().len() {
        let storage = recording.killed_at(killed);
        let mut image = open(storage.clone(), true);
        let mut states = states.clone();
        let op = Op::Resize(9 * MIB);
        apply(&op, &mut *image, &parents).unwrap();
        follow(&op, &content);
        states.push(state(&*image, &content));
        image.close().unwrap();
        for epoch in storage.recording().epochs() {
            for fates in epoch.fates(&few, &mut rng) {
                if let Some(wrong) = violation(&disk, epoch.image(&fates), &states) {
                    panic!(
                        "killed after {killed} operations, then: {wrong}\n{}",
                        epoch.describe(&fates)
                    );
                }
            }
        }
    }
}

#[test]
fn a_session_of_changes_that_go_through_the_log_takes_four_barriers() {
    let sizes: [u64; 3] = [9 * MIB, 200 << 30, 3 * MIB];
    for (size, barriers) in sizes.into_iter().zip([4, 4, 9]) {
        let disk = variant(DiskType::Dynamic, 8 * MIB, MIB, 512).make(1);
        let storage = CrashStorage::new(&disk.layers[0]);
        let mut image = open(storage.clone(), true);
        image
            .resize(size, &Parents::of(&disk), &mut |_, _| Ok(()))
            .unwrap();
        image.close().unwrap();
        let taken = storage.flushes();
        assert!(taken <= barriers, "{taken} barriers for {size} bytes");
    }
}

/// The test of the test: were a barrier forgotten, some crash image would show it.
#[test]
fn a_forgotten_barrier_of_a_structural_change_would_be_noticed() {
    let block = |n: u64| Op::Write(n * MIB, MIB, n as u8 + 1);
    let disk = variant(DiskType::Dynamic, 8 * MIB, MIB, 512).make(1);
    for (ops, least) in [
        (
            vec![block(0), block(1), block(2), Op::Zero(0, MIB), Op::Pack(1)],
            4,
        ),
        (
            vec![block(0), Op::Resize(200 << 30), block(9), Op::Resize(MIB)],
            3,
        ),
        (vec![Op::Item(1, Some(9000)), Op::Item(1, Some(990_000))], 2),
    ] {
        let (_, flushes) = crash_without(&disk, &ops, None);
        let noticed = (0..flushes)
            .filter(|&lost| {
                std::panic::catch_unwind(|| crash_without(&disk, &ops, Some(lost))).is_err()
            })
            // Enough is enough: each takes a whole crash history.
            .take(least)
            .count();
        assert!(noticed >= least, "{ops:?}: only {noticed} of {flushes}");
    }
}

#[test]
fn space_that_had_logged_pages_is_not_overwritten_by_a_replay() {
    let disk = variant(DiskType::Dynamic, 4 * MIB, MIB, 512).make(1);
    let block = |n: u64| Op::Write(n * MIB, MIB, n as u8 + 1);
    // The BAT moves, and its old place gets data.
    let mut ops = vec![block(0), block(1), Op::Resize(200 << 30)];
    ops.extend((2..6).map(block));
    ops.extend([
        Op::Resize(5 * MIB),
        block(1),
        Op::Zero(0, 2 * MIB),
        Op::PackStep(1),
        Op::Pack(1),
    ]);
    crash(&disk, &ops);
    // A sector bitmap does.
    let disk = variant(DiskType::Differencing, 9 << 30, MIB, 512).make(1);
    let part = |n: u64| Op::Write(n * MIB + 512, 4096, n as u8 + 1);
    let mut ops: Vec<Op> = [0, 1, 2, 3, 5 * 1024].map(part).to_vec();
    ops.extend([0, 1, 5 * 1024].map(|n| Op::Zero(n * MIB, MIB)));
    ops.push(Op::PackStep(1));
    ops.extend([6, 7, 8].map(block));
    ops.push(Op::Pack(1));
    crash(&disk, &ops);
    // The metadata region does.
    let disk = variant(DiskType::Dynamic, 8 * MIB, MIB, 512).make(1);
    let mut ops = vec![block(0), Op::Identifier(4), Op::Item(1, Some(1_000_000))];
    ops.extend((1..4).map(block));
    ops.extend([
        Op::Zero(0, 3 * MIB),
        Op::PackStep(1),
        block(5),
        block(6),
        Op::Pack(1),
    ]);
    crash(&disk, &ops);
}

#[test]
fn nothing_is_written_once_close_has_returned_whatever_threads_do() {
    for disk in disks() {
        let parents = Parents::of(&disk);
        let storage = FaultStorage::new(disk.layers[0].clone());
        let image = open(storage.clone(), true);
        let size = disk.variant.virtual_size;
        std::thread::scope(|scope| {
            for thread in 0..3_u8 {
                let (image, parents) = (&image, &parents);
                scope.spawn(move || {
                    let mut rng = Rng::new(u64::from(thread));
                    let error = loop {
                        let at = rng.below(size - 4096);
                        let done = match rng.below(3) {
                            0 => image.zero(at, 4096, ZeroMode::MayUnmap, parents),
                            1 => image.discard(at, 4096, parents),
                            _ => image.write_at(at, &[thread; 4096], parents),
                        };
                        if let Err(e) = done {
                            break e;
                        }
                    };
                    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            image.close().unwrap();
            let before = storage.counts().total(Call::CHANGING);
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(storage.counts().total(Call::CHANGING), before);
        });
        let file: Arc<dyn Storage> = disk.layers[0].clone();
        assert_eq!(worst(&file), None);
    }
}

#[test]
fn a_crash_while_a_fixed_disk_is_resized_leaves_the_old_size_or_the_new_one() {
    let disk = variant(DiskType::Fixed, 3 * MIB + 512, MIB, 512).make(1);
    crash(
        &disk,
        &[
            Op::Write(3 * MIB, 512, 5),
            Op::Resize(6 * MIB),
            Op::Write(5 * MIB, MIB, 6),
            Op::Resize(2 * MIB + 512),
            Op::Resize(4 * MIB),
        ],
    );
}

#[test]
fn a_crash_while_metadata_changes_leaves_the_old_value_or_the_new_one() {
    for disk in disks() {
        let mut ops = vec![
            Op::Item(1, Some(100)),
            Op::Identifier(77),
            Op::Item(2, Some(0)),
            Op::Item(1, Some(5000)),
            Op::PhysicalSectorSize(4096),
            Op::Item(3, Some(900_000)),
            Op::Item(1, Some(90_000)),
            Op::Item(1, None),
            Op::Write(4096, 4096, 3),
            Op::Item(4, Some(4096)),
            Op::LinkIdentifier(5),
            Op::Pack(1),
        ];
        if disk.variant.disk_type == DiskType::Differencing {
            ops.push(Op::ParentIdentifiers(vec![6, 7]));
            ops.push(Op::ParentIdentifiers(vec![7]));
            ops.push(Op::Parent(8));
        }
        crash(&disk, &ops);
    }
}

fn fault_sweep(disk: &TestDisk, ops: &[Op], fault: Fault) {
    let calls: &'static [Call] = match fault {
        Fault::InputOutput => Call::FALLIBLE,
        Fault::NoSpace => &[Call::Write, Call::SetLen, Call::Allocate, Call::ZeroRange],
    };
    for k in 0.. {
        let fork = disk.fork();
        let storage = FaultStorage::new(fork.layers[0].clone());
        let parents = Parents::of(disk);
        let content = disk.content.clone();
        storage.fail_once(calls, k, fault);
        let mut image = match open_image(storage.clone(), Format::Vhdx, true) {
            Ok(image) => image,
            Err(_) => open(storage.clone(), true),
        };
        for op in ops {
            let before = storage.injected();
            if let Err(e) = apply(op, &mut *image, &parents) {
                let what = format!("call {k}, {op:?}: {e}");
                assert_eq!(storage.injected(), before + 1, "{what}");
                let old = content.clone();
                follow(op, &content);
                if let Err(e) = apply(op, &mut *image, &parents) {
                    assert_eq!(e.kind(), ErrorKind::InvalidState, "{what}, then {e}");
                    drop(image);
                    let reopened: Arc<dyn Storage> =
                        Arc::new(MemoryStorage::clone(&fork.layers[0]));
                    assert_eq!(worst(&reopened), None, "{what}");
                    let now = content_of(&disk.open_leaf(reopened, false).unwrap()).unwrap();
                    let fits = [&old, &content].iter().any(|c| {
                        c.len().unwrap() == now.len().unwrap()
                            && (matches!(op, Op::Write(..) | Op::Zero(..))
                                || first_difference(&now, c).is_none())
                    });
                    assert!(fits, "{what}: neither the state before nor after");
                    image = open(storage.clone(), true);
                    apply(op, &mut *image, &parents)
                        .unwrap_or_else(|e| panic!("{what}, again: {e}"));
                }
            } else {
                follow(op, &content);
            }
        }
        let hit = storage.injected() > 0;
        if image.close().is_err() {
            drop(image);
            open(storage.clone(), true).close().unwrap();
        }
        storage.heal();
        let file: Arc<dyn Storage> = fork.layers[0].clone();
        assert_eq!(worst(&file), None, "call {k}");
        let now = content_of(&disk.open_leaf(file, false).unwrap()).unwrap();
        assert_eq!(first_difference(&now, &content), None, "call {k}");
        if !hit {
            break;
        }
    }
}

#[test]
fn every_storage_call_may_fail_once_and_the_change_can_be_repeated() {
    let disks = disks();
    for disk in [&disks[0], &disks[2]] {
        let mut ops = vec![
            Op::Pack(1),
            Op::Resize(9 * MIB + 512),
            Op::Resize(2 * MIB + 512),
            Op::Item(1, Some(990_000)),
            Op::Identifier(5),
            Op::Item(1, Some(20)),
            Op::Release,
            Op::LinkIdentifier(5),
        ];
        if disk.variant.disk_type == DiskType::Differencing {
            ops.push(Op::ParentIdentifiers(vec![6, 7]));
        }
        for fault in [Fault::InputOutput, Fault::NoSpace] {
            fault_sweep(disk, &ops, fault);
        }
    }
    let fixed = variant(DiskType::Fixed, 3 * MIB + 512, MIB, 512).make(1);
    for fault in [Fault::InputOutput, Fault::NoSpace] {
        fault_sweep(&fixed, &[Op::Resize(6 * MIB), Op::Resize(2 * MIB)], fault);
    }
}

#[test]
fn any_mixture_of_guest_and_structure_reads_like_the_model() {
    for (seed, disk) in (0..4).zip(disks()) {
        let mut rng = Rng::new(seed);
        let parents = Parents::of(&disk);
        let content = disk.content.clone();
        let file: Arc<dyn Storage> = disk.layers[0].clone();
        let mut image = open(file.clone(), true);
        for step in 0..60 {
            let size = image.virtual_size();
            let at = rng.below(size / 512) * 512;
            let length = (1 + rng.below(3 * MIB / 512)) * 512;
            let length = length.min(size - at);
            let op = match rng.below(10) {
                0..3 => Op::Write(at, length, rng.next() as u8),
                3 => Op::Zero(at, length),
                4 => Op::Release,
                5 | 6 => Op::Pack(1 + rng.below(4) * MIB),
                7 => Op::Resize((1 + rng.below(12 * MIB / 4096)) * 4096),
                8 => Op::Item(
                    1 + u128::from(rng.below(4)),
                    (!rng.one_in(3)).then(|| rng.below(400_000) as usize),
                ),
                _ => Op::Identifier(1 + u128::from(rng.below(9))),
            };
            apply(&op, &mut *image, &parents).unwrap_or_else(|e| panic!("{op:?}: {e}"));
            follow(&op, &content);
            if rng.one_in(5) {
                image.close().unwrap();
                assert_eq!(worst(&file), None, "step {step}, {op:?}");
                let now = content_of(&disk.open(false).unwrap()).unwrap();
                assert_eq!(
                    first_difference(&now, &content),
                    None,
                    "step {step}, {op:?}"
                );
                image = open(file.clone(), true);
            } else {
                let now = read(&*image, &parents, 0..image.virtual_size());
                assert!(now == content.to_vec(), "step {step}, {op:?}");
            }
            described(&*image);
        }
    }
}

fn link(file: &Arc<MemoryStorage>) -> Option<Uuid> {
    open(file.clone(), false).info().link_identifier
}

#[test]
fn only_changes_of_what_the_guest_reads_change_the_identity_of_the_data() {
    let disk = &disks()[0];
    for (op, keeps) in [
        (Op::Pack(1), true),
        (Op::Release, true),
        (Op::Item(1, Some(9)), true),
        (Op::Identifier(9), true),
        (Op::PhysicalSectorSize(512), true),
        (Op::Resize(MIB), false),
        (Op::Resize(9 * MIB), false),
        (Op::Write(0, 512, 1), false),
    ] {
        let fork = disk.fork();
        let before = link(&fork.layers[0]);
        let mut image = open(fork.layers[0].clone(), true);
        apply(&op, &mut *image, &NoBacking).unwrap();
        image.close().unwrap();
        assert_eq!(link(&fork.layers[0]) == before, keeps, "{op:?}");
    }
    let fork = disk.fork();
    let mut image = open(fork.layers[0].clone(), true);
    image.pack(MIB).unwrap();
    image.set_link_identifier(Uuid::from_u128(1)).unwrap();
    assert_eq!(link(&fork.layers[0]), Some(Uuid::from_u128(1)));
    image.write_at(0, &[1], &NoBacking).unwrap();
    image.set_link_identifier(Uuid::from_u128(2)).unwrap();
    image.write_at(MIB, &[1], &NoBacking).unwrap();
    image.close().unwrap();
    assert_eq!(link(&fork.layers[0]), Some(Uuid::from_u128(2)));
}

#[test]
fn packing_moves_no_byte_that_need_not_move_and_keeps_holes() {
    let disk = variant(DiskType::Dynamic, 64 * MIB, 2 * MIB, 512).make(1);
    let image = open(disk.layers[0].clone(), true);
    for block in 0..16 {
        image
            .write_at(block * 2 * MIB, &[1; 4096], &NoBacking)
            .unwrap();
    }
    image
        .zero(0, 6 * MIB, ZeroMode::MayUnmap, &NoBacking)
        .unwrap();
    image.close().unwrap();
    let counting = FaultStorage::new(disk.layers[0].clone());
    let mut image = open(counting.clone(), true);
    let usage = image.usage().unwrap();
    assert_eq!(usage.allocated_blocks, 13);
    assert_eq!(usage.payload, 26 * MIB);
    assert_eq!(usage.structures, 4 * MIB);
    assert_eq!(usage.free, 6 * MIB);
    assert_eq!(usage.packed_size, 30 * MIB);
    let packed = image.pack(u64::MAX).unwrap();
    assert_eq!((packed.moved, packed.left), (6 * MIB, 0));
    assert_eq!(image.storage().len().unwrap(), 30 * MIB);
    let written = counting.counts().bytes_written;
    assert!(
        written < 200_000,
        "{written} bytes for three blocks of 4096"
    );
    let usage = image.usage().unwrap();
    // What was moved is in the order of the file, so only its first block is out of place.
    assert_eq!((usage.free, usage.displaced_blocks), (0, 1));
    image.write_at(0, &[2; 9], &NoBacking).unwrap();
    image.close().unwrap();
    let mut image = open(disk.layers[0].clone(), true);
    let bytes = disk.layers[0].to_vec();
    assert_eq!(image.pack(1).unwrap(), vhdkit::image::Packed::default());
    image.close().unwrap();
    assert!(
        disk.layers[0].to_vec() == bytes,
        "a packed file is left alone"
    );
}

#[test]
fn a_regrown_disk_shows_zeros_neither_old_data_nor_the_parents() {
    for disk in disks() {
        let parents = Parents::of(&disk);
        let size = disk.variant.virtual_size;
        let mut image = open(disk.layers[0].clone(), true);
        image
            .write_at(0, &vec![0xEE; size as usize], &parents)
            .unwrap();
        image
            .resize(MIB + 4096, &parents, &mut |_, _| Ok(()))
            .unwrap();
        image.close().unwrap();
        let mut image = open(disk.layers[0].clone(), true);
        image.resize(size, &parents, &mut |_, _| Ok(())).unwrap();
        let now = read(&*image, &parents, 0..size);
        assert!(now[..(MIB + 4096) as usize].iter().all(|&b| b == 0xEE));
        assert!(is_zero(&now[(MIB + 4096) as usize..]));
        image.close().unwrap();
    }
}

#[test]
fn what_is_added_hides_a_longer_parent() {
    for cut in [512 + 4096, MIB, 2 * MIB + 4096] {
        for (block, sector) in [(MIB, 512), (2 * MIB, 4096)] {
            let cut = cut / u64::from(sector) * u64::from(sector);
            let size = 8 * MIB;
            let mut disk = variant(DiskType::Differencing, size, block, sector);
            disk.depth = 1;
            disk.disk_type = DiskType::Dynamic;
            let mut disk = disk.make(1);
            disk.fill(&[
                GuestOp::write(0, 3 * MIB, 1),
                GuestOp::write(5 * MIB, MIB, 2),
            ])
            .unwrap();
            disk.variant.disk_type = DiskType::Differencing;
            disk.add_child().unwrap();
            let parents = Parents::of(&disk);
            disk.content.set_len(cut).unwrap();
            disk.content.set_len(size).unwrap();
            let mut image = open(disk.layers[0].clone(), true);
            for size in [cut, cut + 4096, size] {
                image.resize(size, &parents, &mut |_, _| Ok(())).unwrap();
            }
            image.close().unwrap();
            let now = content_of(&disk.open(false).unwrap()).unwrap();
            assert_eq!(
                first_difference(&now, &disk.content),
                None,
                "{cut}, {block}"
            );
            let file: Arc<dyn Storage> = disk.layers[0].clone();
            assert_eq!(worst(&file), None);
        }
    }
}

#[test]
fn a_disk_of_64_tib_is_made_out_of_a_small_one_and_back_in_no_time() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let disk = holey(&variant(disk_type, 4 * MIB, MIB, 512));
        let parents = Parents::of(&disk);
        let before = disk.layers[0].resident();
        let mut image = open(disk.layers[0].clone(), true);
        image
            .resize(64 << 40, &parents, &mut |_, _| Ok(()))
            .unwrap();
        assert!(disk.layers[0].resident() < before + 2 * MIB);
        let last = (64 << 40) - 512;
        image.write_at(last, &[9; 512], &parents).unwrap();
        image.flush().unwrap();
        let found = image.next_allocated(4 * MIB).unwrap().unwrap();
        assert_eq!(found.range, (64 << 40) - MIB..64 << 40);
        assert!(found.has_content);
        assert_eq!(image.next_allocated(found.range.end).unwrap(), None);
        while image.pack(MIB).unwrap().left > 0 {}
        let usage: Usage = image.usage().unwrap();
        assert_eq!(
            usage.free,
            usage.file_size - usage.payload - usage.structures
        );
        assert_eq!(read(&*image, &parents, last..last + 512), [9; 512]);
        image.resize(4 * MIB, &parents, &mut |_, _| Ok(())).unwrap();
        while image.pack(MIB).unwrap().left > 0 {}
        image.close().unwrap();
        let file: Arc<dyn Storage> = disk.layers[0].clone();
        assert_eq!(worst(&file), None);
        let now = content_of(&disk.open(false).unwrap()).unwrap();
        assert_eq!(first_difference(&now, &disk.content), None);
    }
}

#[test]
fn limits_and_wrong_requests_are_refused_and_change_nothing() {
    let disk = disks().remove(0);
    let bytes = disk.layers[0].to_vec();
    let mut image = open(disk.layers[0].clone(), true);
    let id = Uuid::from_u128(1);
    let kind = |r: Result<()>| r.unwrap_err().kind();
    let mut pace = |_, _| Ok(());
    assert_eq!(
        kind(image.resize(0, &NoBacking, &mut pace)),
        ErrorKind::InvalidSize
    );
    assert_eq!(
        kind(image.resize(513, &NoBacking, &mut pace)),
        ErrorKind::InvalidSize
    );
    assert_eq!(
        kind(image.resize((64 << 40) + 512, &NoBacking, &mut pace)),
        ErrorKind::InvalidSize
    );
    image
        .resize(disk.variant.virtual_size, &NoBacking, &mut pace)
        .unwrap();
    assert_eq!(
        kind(image.set_identifier(Uuid::nil())),
        ErrorKind::InvalidParameter
    );
    assert_eq!(
        kind(image.set_physical_sector_size(1024)),
        ErrorKind::InvalidParameter
    );
    assert_eq!(
        kind(image.set_parent_identifiers(&[id])),
        ErrorKind::InvalidType
    );
    assert_eq!(
        kind(image.write_user_metadata(Uuid::nil(), Some(b"x"))),
        ErrorKind::InvalidParameter
    );
    assert_eq!(
        kind(image.write_user_metadata(id, None)),
        ErrorKind::ItemNotFound
    );
    assert_eq!(
        image.read_user_metadata(id).unwrap_err().kind(),
        ErrorKind::ItemNotFound
    );
    let large = vec![0; MIB as usize + 1];
    assert_eq!(
        kind(image.write_user_metadata(id, Some(&large))),
        ErrorKind::MetadataFull
    );
    image.close().unwrap();
    assert!(disk.layers[0].to_vec() == bytes);
    let mut image = open(disk.layers[0].clone(), true);
    for i in 0..40 {
        image
            .write_user_metadata(Uuid::from_u128(i + 1), Some(&large[1..]))
            .unwrap();
    }
    assert_eq!(
        kind(image.write_user_metadata(Uuid::from_u128(99), Some(b"x"))),
        ErrorKind::MetadataFull
    );
    for i in 0..40 {
        image
            .write_user_metadata(Uuid::from_u128(i + 1), None)
            .unwrap();
    }
    for i in 0..1024 {
        image
            .write_user_metadata(Uuid::from_u128(i + 1), Some(b""))
            .unwrap();
    }
    assert_eq!(
        kind(image.write_user_metadata(Uuid::from_u128(9999), Some(b""))),
        ErrorKind::MetadataFull
    );
    assert_eq!(image.user_metadata().unwrap().len(), 1024);
    image.close().unwrap();
    let file: Arc<dyn Storage> = disk.layers[0].clone();
    assert_eq!(worst(&file), None);
}

#[test]
fn a_stopped_resize_of_a_fixed_disk_leaves_its_size_and_its_length() {
    let disk = variant(DiskType::Fixed, 3 * MIB, MIB, 512).make(1);
    let length = disk.layers[0].len().unwrap();
    let mut image = open(disk.layers[0].clone(), true);
    let error = image
        .resize(5000 * MIB, &NoBacking, &mut |done, _| {
            if done > 0 {
                Err(vhdkit::Error::new(ErrorKind::Aborted, "stop"))
            } else {
                Ok(())
            }
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert_eq!(image.virtual_size(), 3 * MIB);
    assert_eq!(disk.layers[0].len().unwrap(), length);
    image
        .resize(5 * MIB, &NoBacking, &mut |_, _| Ok(()))
        .unwrap();
    image.close().unwrap();
    assert_eq!(disk.layers[0].len().unwrap(), length + 2 * MIB);
}

/// The two kinds of items have a name space each.
#[test]
fn an_item_of_the_user_may_be_called_like_one_of_the_disks_own() {
    let file = Arc::new(MemoryStorage::new());
    let parameters =
        vhdkit::image::CreateParameters::new(Format::Vhdx, DiskType::Dynamic, 64 * MIB);
    vhdkit::verbs::new_builder(file.clone(), &parameters)
        .unwrap()
        .finish()
        .unwrap();
    // Virtual disk size, and the locator of a parent that the disk does not have.
    let items = [
        Uuid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8),
        Uuid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C),
    ];
    assert!(!vhdkit::verbs::set::is_system_item(Uuid::from_u128(7)));
    for item in items {
        assert!(vhdkit::verbs::set::is_system_item(item));
        let mut image = open_image(file.clone(), Format::Vhdx, true).unwrap();
        let before = image.info();
        image
            .write_user_metadata(item, Some(b"the user's"))
            .unwrap();
        image.set_physical_sector_size(512).unwrap();
        image.close().unwrap();
        let mut image = open_image(file.clone(), Format::Vhdx, true).unwrap();
        assert_eq!(image.virtual_size(), 64 * MIB);
        assert_eq!(image.info().disk_type, before.disk_type);
        assert_eq!(image.read_user_metadata(item).unwrap(), b"the user's");
        assert_eq!(image.user_metadata().unwrap(), [(item, 10)]);
        image.write_user_metadata(item, None).unwrap();
        image.close().unwrap();
        let image = open_image(file.clone(), Format::Vhdx, false).unwrap();
        assert_eq!(image.virtual_size(), 64 * MIB);
        assert!(image.user_metadata().unwrap().is_empty());
        drop(image);
        let shared: Arc<dyn Storage> = file.clone();
        vhdkit_testkit::history::assert_clean(&shared, "after all");
    }
}

#[test]
fn qemu_reads_what_was_packed_resized_and_given_metadata() {
    if !vhdkit_testkit::peers::has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = disks().remove(0);
    let mut image = open(disk.layers[0].clone(), true);
    for op in [
        Op::Pack(1),
        Op::Item(1, Some(990_000)),
        Op::Resize(200 << 30),
        Op::Write(150 << 30, MIB, 3),
        Op::Resize(9 * MIB),
        Op::Pack(MIB),
        Op::Identifier(4),
    ] {
        apply(&op, &mut *image, &NoBacking).unwrap();
        follow(&op, &disk.content);
    }
    image.close().unwrap();
    let (file, raw) = (
        folder.path().join("disk.vhdx"),
        folder.path().join("disk.raw"),
    );
    std::fs::write(&file, disk.layers[0].to_vec()).unwrap();
    std::fs::write(&raw, disk.content.to_vec()).unwrap();
    let qemu = |arguments: &[&str]| {
        let output = std::process::Command::new("qemu-img")
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
    };
    let (file, raw) = (file.to_str().unwrap(), raw.to_str().unwrap());
    qemu(&["check", "-f", "vhdx", file]);
    qemu(&["compare", "-f", "raw", "-F", "vhdx", raw, file]);
}
