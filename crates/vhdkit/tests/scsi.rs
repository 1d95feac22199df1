//! A disk as a SCSI logical unit: every command, good and bad; random commands against a model; failing storage.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::Arc;

use uuid::Uuid;
use vhdkit::VirtualDisk;
use vhdkit::disk::{Layer, open_image};
use vhdkit::image::{DiskType, Format};
use vhdkit::iso::IsoImage;
use vhdkit::scsi::{Command, Data, Direction, Response, ScsiTarget, Sense, SenseKey, Status};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, resize};
use vhdkit_testkit::fault::{Call, Fault, FaultStorage};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::Variant;

const MIB: u64 = 1 << 20;

fn variant(disk_type: DiskType, virtual_size: u64, sector_size: u32) -> Variant {
    Variant {
        format: Format::Vhdx,
        disk_type,
        virtual_size,
        block_size: Some(MIB),
        sector_size,
        depth: 1,
    }
}

fn target_of(disk: VirtualDisk) -> ScsiTarget {
    ScsiTarget::new(Arc::new(disk))
}

fn thin(sector_size: u32) -> ScsiTarget {
    let disk = variant(DiskType::Dynamic, 4 * MIB, sector_size).make(1);
    target_of(disk.open(true).unwrap())
}

fn read_only() -> ScsiTarget {
    let disk = variant(DiskType::Dynamic, 4 * MIB, 512).make(1);
    target_of(disk.open(false).unwrap())
}

fn raw(bytes: u64) -> ScsiTarget {
    let storage = MemoryStorage::new();
    storage.set_len(bytes).unwrap();
    let image = open_image(Arc::new(storage), Format::Raw, true).unwrap();
    target_of(VirtualDisk::from_layers(vec![Layer::new(image, "raw")], true).unwrap())
}

fn optical() -> ScsiTarget {
    let storage = MemoryStorage::new();
    storage.write_at(32768, b"\x01CD001\x01").unwrap();
    storage.set_len(100 * 2048).unwrap();
    let image = IsoImage::open(Arc::new(storage)).unwrap();
    let layer = Layer::new(Box::new(image), "iso");
    target_of(VirtualDisk::from_layers(vec![layer], false).unwrap())
}

/// A command that answers: what came of it, and the answer.
fn ask_of(target: &ScsiTarget, cdb: &[u8], room: usize) -> (Response, Vec<u8>) {
    let mut buffer = vec![0xEE; room];
    let response = target.execute(Command::new(cdb, Data::In(&mut buffer)));
    assert!(response.transferred <= room);
    assert!(
        buffer[response.transferred..].iter().all(|&b| b == 0xEE)
            || response.status != Status::Good,
        "bytes behind the answer are not touched"
    );
    buffer.truncate(response.transferred);
    (response, buffer)
}

fn ask(target: &ScsiTarget, cdb: &[u8]) -> Vec<u8> {
    let (response, answer) = ask_of(target, cdb, 4096);
    assert_eq!(response.status, Status::Good, "{cdb:02x?}: {response:?}");
    answer
}

fn send(target: &ScsiTarget, cdb: &[u8], data: &[u8]) -> Response {
    target.execute(Command::new(cdb, Data::Out(data)))
}

fn good(response: &Response) {
    assert_eq!(response.status, Status::Good, "{response:?}");
    assert_eq!(response.sense, None);
}

/// Key, code and qualifier of a failure.
fn sense_of(response: &Response) -> (u8, u8, u8) {
    assert_eq!(response.status, Status::CheckCondition, "{response:?}");
    let sense = response.sense.unwrap();
    (sense.key as u8, sense.code, sense.qualifier)
}

/// Runs a CDB with a buffer as its direction asks for.
fn run(target: &ScsiTarget, cdb: &[u8]) -> Response {
    match Direction::of(cdb) {
        Direction::None => target.execute(Command::without_data(cdb)),
        Direction::In => ask_of(target, cdb, 1 << 20).0,
        Direction::Out => send(target, cdb, &vec![0; 1 << 20]),
    }
}

fn cdb10(opcode: u8, flags: u8, lba: u32, count: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[..2].copy_from_slice(&[opcode, flags]);
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn cdb12(opcode: u8, flags: u8, lba: u32, count: u32) -> [u8; 12] {
    let mut cdb = [0; 12];
    cdb[..2].copy_from_slice(&[opcode, flags]);
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[6..10].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn cdb16(opcode: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[opcode, flags]);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let length = ranges.len() as u16 * 16;
    let mut list = (length + 6).to_be_bytes().to_vec();
    list.extend(length.to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(target: &ScsiTarget, ranges: &[(u64, u32)]) -> Response {
    let list = unmap_list(ranges);
    send(target, &cdb10(0x42, 0, 0, list.len() as u16), &list)
}

fn random(length: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..length).map(|_| rng.next() as u8).collect()
}

fn content(target: &ScsiTarget) -> Vec<u8> {
    let mut all = vec![0; target.disk().virtual_size() as usize];
    target.disk().read_at(0, &mut all).unwrap();
    all
}

// ---- who it is ----

#[test]
fn inquiry_says_what_windows_says() {
    let answer = ask(&thin(512), &[0x12, 0, 0, 1, 0, 0]);
    assert_eq!(answer[..4], [0, 0, 6, 2]);
    assert_eq!(usize::from(answer[4]) + 5, answer.len());
    assert_eq!(&answer[8..36], b"Msft    Virtual Disk    1.0 ");
    let answer = ask(&optical(), &[0x12, 0, 0, 0, 36, 0]);
    assert_eq!(answer[..2], [5, 0x80]);
    assert_eq!(&answer[8..36], b"Msft    Virtual DVD-ROM 1.0 ");
}

#[test]
fn an_answer_is_cut_off_at_the_allocation_length_and_at_the_buffer() {
    let target = thin(512);
    let whole = ask(&target, &[0x12, 0, 0, 0, 255, 0]);
    for allocation in 0..=255_u8 {
        let cdb = [0x12, 0, 0, 0, allocation, 0];
        let n = whole.len().min(usize::from(allocation));
        assert_eq!(ask(&target, &cdb), whole[..n]);
        for room in [0, 1, 5, 36] {
            let (response, answer) = ask_of(&target, &cdb, room);
            good(&response);
            assert_eq!(answer, whole[..n.min(room)]);
            assert_eq!(response.expected, n as u64, "what is missing is known");
        }
    }
}

#[test]
fn the_designators_are_the_identifier_as_a_guest_of_hyper_v_sees_it() {
    let id = Uuid::from_bytes_le([
        0x07, 0x92, 0xC2, 0xF5, 0xCC, 0x7E, 0xF1, 0x4B, 0x8A, 0x73, 0x55, 0xCB, 0x3C, 0xEF, 0x01,
        0x07,
    ]);
    let target = thin(512).with_identifier(id);
    let page = ask(&target, &[0x12, 1, 0x83, 0, 255, 0]);
    let mut wanted = vec![0, 0x83, 0, 48, 1, 1, 0, 24];
    wanted.extend(b"MSFT    ");
    wanted.extend(id.to_bytes_le());
    wanted.extend([1, 3, 0, 16, 0x60, 0x02, 0x24, 0x80]);
    wanted.extend([
        0x07, 0x92, 0xC2, 0xF5, 0xCC, 0x7E, 0x55, 0xCB, 0x3C, 0xEF, 0x01, 0x07,
    ]);
    assert_eq!(page, wanted);
    let serial = ask(&target, &[0x12, 1, 0x80, 0, 255, 0]);
    assert_eq!(&serial[4..], b"0792c2f5cc7ef14b8a7355cb3cef0107");
}

#[test]
fn the_name_is_that_of_the_disk_and_two_disks_without_one_differ() {
    let disk = variant(DiskType::Dynamic, MIB, 512).make(1);
    let name = |target: &ScsiTarget| ask(target, &[0x12, 1, 0x83, 0, 255, 0]);
    let [a, b] = [(); 2].map(|()| target_of(disk.open(false).unwrap()));
    assert_eq!(name(&a), name(&b));
    assert_ne!(name(&raw(512)), name(&raw(512)));
}

#[test]
fn every_page_of_product_data_that_is_listed_is_there() {
    for target in [thin(512), raw(MIB), optical()] {
        let list = ask(&target, &[0x12, 1, 0, 0, 255, 0]);
        for page in 0..=255_u8 {
            let (response, answer) = ask_of(&target, &[0x12, 1, page, 1, 0, 0], 4096);
            if list[4..].contains(&page) {
                good(&response);
                assert_eq!(answer[1], page);
                assert_eq!(answer[0], list[0]);
                let length = u16::from_be_bytes([answer[2], answer[3]]);
                assert_eq!(usize::from(length) + 4, answer.len());
            } else {
                assert_eq!(sense_of(&response), (5, 0x24, 0));
            }
        }
    }
}

#[test]
fn the_limits_follow_the_disk() {
    let limits = |target: &ScsiTarget| ask(target, &[0x12, 1, 0xB0, 0, 255, 0]);
    let number = |page: &[u8], at: usize| u32::from_be_bytes(page[at..at + 4].try_into().unwrap());
    let page = limits(&thin(512));
    assert_eq!(page.len(), 64);
    assert_eq!(page[4] & 1, 0, "WSNZ");
    assert_eq!(number(&page, 8), 524_288);
    assert_eq!((number(&page, 20), number(&page, 24)), (u32::MAX, 256));
    assert_eq!((number(&page, 28), number(&page, 32)), (2048, 0x8000_0000));
    let page = limits(&thin(4096));
    assert_eq!((number(&page, 8), number(&page, 28)), (65_536, 256));
    let page = limits(&raw(MIB));
    assert_eq!((number(&page, 20), number(&page, 28)), (0, 0));
    assert_eq!(
        ask(&thin(512), &[0x12, 1, 0xB1, 0, 6, 0])[4..],
        [0, 1],
        "it does not rotate"
    );
    assert_eq!(
        ask(&thin(512), &[0x12, 1, 0xB2, 0, 8, 0])[4..],
        [0, 0xE4, 2, 0]
    );
    assert_eq!(ask(&raw(MIB), &[0x12, 1, 0xB2, 0, 8, 0])[4..], [0, 0, 0, 0]);
}

#[test]
fn capacity_is_told_in_blocks_and_saturates_in_the_short_form() {
    let (short, long) = ([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], cdb16(0x9E, 0x10, 0, 32));
    assert_eq!(ask(&thin(512), &short), [0, 0, 0x1F, 0xFF, 0, 0, 2, 0]);
    let answer = ask(&thin(512), &long);
    assert_eq!(
        answer[..16],
        [0, 0, 0, 0, 0, 0, 0x1F, 0xFF, 0, 0, 2, 0, 0, 3, 0xC0, 0]
    );
    let answer = ask(&thin(4096), &long);
    assert_eq!(answer[4..16], [0, 0, 3, 0xFF, 0, 0, 16, 0, 0, 0, 0xC0, 0]);
    assert_eq!(ask(&raw(MIB), &long)[13..15], [0, 0], "all space is there");
    assert_eq!(ask(&optical(), &short), [0, 0, 0, 99, 0, 0, 8, 0]);
    let huge = Variant {
        block_size: None,
        ..variant(DiskType::Dynamic, 64 << 40, 512)
    };
    let huge = huge.make(1);
    let huge = target_of(huge.open(false).unwrap());
    assert_eq!(ask(&huge, &short), [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 2, 0]);
    assert_eq!(
        ask(&huge, &long)[..8],
        ((64_u64 << 40) / 512 - 1).to_be_bytes()
    );
    let empty = raw(0);
    assert_eq!(sense_of(&run(&empty, &short)), (2, 0x3A, 0));
    assert_eq!(sense_of(&run(&empty, &[0; 6])), (2, 0x3A, 0));
}

#[test]
fn there_is_one_logical_unit() {
    let target = thin(512);
    assert_eq!(
        ask(&target, &cdb12(0xA0, 0, 0, 16)),
        [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(ask(&target, &cdb12(0xA0, 0, 0x0100_0000, 16)), [0; 8]);
    let other = |cdb: &[u8], buffer: &mut [u8]| {
        target.execute(Command::new(cdb, Data::In(buffer)).to_lun(1 << 48))
    };
    let mut buffer = [0; 36];
    good(&other(&[0x12, 0, 0, 0, 36, 0], &mut buffer));
    assert_eq!(buffer[0], 0x7F);
    good(&other(&[0x03, 0, 0, 0, 18, 0], &mut buffer));
    assert_eq!((buffer[2], buffer[12]), (5, 0x25));
    good(&other(&cdb12(0xA0, 0, 0, 16), &mut buffer));
    for cdb in [&[0_u8; 6][..], &cdb10(0x28, 0, 0, 1), &[0xFF], &[]] {
        assert_eq!(sense_of(&other(cdb, &mut buffer)), (5, 0x25, 0));
    }
}

#[test]
fn the_commands_that_are_reported_are_the_commands_that_are_there() {
    for target in [thin(512), raw(MIB), optical()] {
        let all = ask(&target, &cdb12(0xA3, 0x0C, 0, 4096));
        let length = u32::from_be_bytes(all[..4].try_into().unwrap()) as usize;
        assert_eq!(length + 4, all.len());
        let listed: Vec<&[u8]> = all[4..].chunks(8).collect();
        for opcode in 0..=255_u8 {
            let entry = listed.iter().find(|entry| entry[0] == opcode);
            let refused = run(&target, &[opcode; 16])
                .sense
                .is_some_and(|sense| (sense.code, sense.qualifier) == (0x20, 0));
            assert_eq!(entry.is_none(), refused, "{opcode:#04x}");
            let action = entry.map_or(0, |entry| entry[3]);
            let mut cdb = cdb12(0xA3, 0x0C, 0, 4096);
            cdb[2..6].copy_from_slice(&[0x83, opcode, 0, action]);
            let one = ask(&target, &cdb);
            match entry {
                None => assert_eq!(one, [0, 1, 0, 0]),
                Some(entry) => {
                    assert_eq!(one[1], 0x83, "supported, with times");
                    assert_eq!(one[2..4], entry[6..8], "length of the CDB");
                    let n = usize::from(one[3]);
                    assert_eq!((one[4], one.len()), (opcode, 4 + n + 12));
                }
            }
        }
        let timed = ask(&target, &{
            let mut cdb = cdb12(0xA3, 0x0C, 0, 4096);
            cdb[2] = 0x80;
            cdb
        });
        assert_eq!(timed.len() - 4, listed.len() * 20);
        let mut cdb = cdb12(0xA3, 0x0C, 0, 4096);
        for (option, opcode) in [(1, 0xA3), (2, 0x00), (4, 0)] {
            cdb[2..4].copy_from_slice(&[option, opcode]);
            assert_eq!(sense_of(&run(&target, &cdb)), (5, 0x24, 0));
        }
    }
}

// ---- sense data ----

#[test]
fn sense_data_is_kept_for_one_request() {
    let target = thin(512);
    let request = [0x03, 0, 0, 0, 252, 0];
    assert_eq!(ask(&target, &request)[2], 0);
    assert_eq!(sense_of(&run(&target, &[0xFF])), (5, 0x20, 0));
    good(&run(&target, &[0x12, 0, 0, 0, 36, 0]));
    let sense = ask(&target, &request);
    assert_eq!(sense.len(), 18);
    assert_eq!((sense[0], sense[2], sense[12]), (0x70, 5, 0x20));
    assert_eq!(ask(&target, &request)[2], 0, "told once");
    run(&target, &[0xFF]);
    good(&run(&target, &[0; 6]));
    assert_eq!(ask(&target, &request)[2], 0, "the next command went well");
    run(&target, &[0xFF]);
    let sense = ask(&target, &[0x03, 1, 0, 0, 252, 0]);
    assert_eq!(sense, [0x72, 5, 0x20, 0, 0, 0, 0, 0]);
}

#[test]
fn d_sense_is_set_by_mode_select_and_changes_the_format() {
    let target = thin(512);
    let control = |flags: u8| {
        let mut list = vec![0; 4];
        list.extend([0x0A, 10, flags, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]);
        list
    };
    let response = send(&target, &[0x15, 0x10, 0, 0, 16, 0], &control(4));
    good(&response);
    assert_eq!(response.transferred, 16);
    let response = run(&target, &cdb16(0x88, 0, u64::MAX, 1));
    assert_eq!(response.sense_bytes(), [0x72, 5, 0x21, 0, 0, 0, 0, 0]);
    assert_eq!(ask(&target, &[0x1A, 8, 0x0A, 0, 255, 0])[6], 4);
    assert_eq!(ask(&target, &[0x1A, 8, 0x8A, 0, 255, 0])[6], 0, "default");
    assert_eq!(
        send(&target, &[0x15, 0x10, 0, 0, 16, 0], &control(0)).status,
        Status::Good
    );
    assert_eq!(run(&target, &[0xFF]).sense_bytes().len(), 18);
}

#[test]
fn a_new_size_is_told_once() {
    let disk = variant(DiskType::Dynamic, 4 * MIB, 512).make(1);
    let target = target_of(disk.open(true).unwrap());
    let grow = |size| {
        let options = ResizeOptions {
            size: NewSize::Bytes(size),
            allow_unsafe: false,
            fix_gpt: false,
            expand_only: false,
            dry_run: false,
        };
        resize(target.disk().clone(), options).wait().unwrap();
    };
    grow(6 * MIB);
    good(&run(&target, &[0x12, 0, 0, 0, 36, 0]));
    assert_eq!(sense_of(&run(&target, &[0; 6])), (6, 0x2A, 9));
    good(&run(&target, &[0; 6]));
    good(&run(&target, &cdb10(0x28, 0, 12 * 1024 - 1, 1)));
    grow(8 * MIB);
    let sense = ask(&target, &[0x03, 0, 0, 0, 18, 0]);
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x2A, 9));
    good(&run(&target, &[0; 6]));
}

// ---- modes ----

#[test]
fn mode_pages_say_that_writes_are_cached_and_whether_they_are_allowed() {
    let target = thin(512);
    let six = ask(&target, &[0x1A, 0, 0x3F, 0, 255, 0]);
    assert_eq!(usize::from(six[0]) + 1, six.len());
    assert_eq!(six[1..4], [0, 0x10, 8]);
    assert_eq!(six[4..12], [0, 0, 0x20, 0, 0, 0, 2, 0]);
    assert_eq!(six[12..15], [0x08, 18, 0x04]);
    assert_eq!(six[32..34], [0x0A, 10]);
    let ten = ask(&target, &[0x5A, 0x10, 0x3F, 0xFF, 0, 0, 0, 1, 0, 0]);
    assert_eq!(
        usize::from(u16::from_be_bytes([ten[0], ten[1]])) + 2,
        ten.len()
    );
    assert_eq!(ten[3..8], [0x10, 1, 0, 0, 16]);
    assert_eq!(
        ten[8..24],
        [0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 2, 0]
    );
    assert_eq!(ten[24..], six[12..]);
    let bare = ask(&target, &[0x5A, 8, 0x08, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!((bare.len(), bare[7]), (8 + 20, 0));
    assert_eq!(ask(&read_only(), &[0x1A, 8, 0x08, 0, 255, 0])[2], 0x90);
    let changeable = ask(&target, &[0x1A, 8, 0x7F, 0, 255, 0]);
    let mut wanted = vec![0; 32];
    wanted[..2].copy_from_slice(&[0x08, 18]);
    wanted[20..23].copy_from_slice(&[0x0A, 10, 4]);
    assert_eq!(changeable[4..], wanted);
    for (cdb, code) in [
        ([0x1A, 0, 0xFF, 0, 255, 0], 0x39),
        ([0x1A, 0, 0x01, 0, 255, 0], 0x24),
        ([0x1A, 0, 0x08, 1, 255, 0], 0x24),
        ([0x1A, 0, 0x3F, 1, 255, 0], 0x24),
    ] {
        assert_eq!(sense_of(&run(&target, &cdb)), (5, code, 0));
    }
}

#[test]
fn mode_select_takes_back_what_mode_sense_gave_and_nothing_else() {
    for target in [thin(512), thin(4096), read_only(), optical()] {
        let mut six = ask(&target, &[0x1A, 0, 0x3F, 0, 255, 0]);
        let mut ten = ask(&target, &[0x5A, 0x10, 0x3F, 0, 0, 0, 0, 1, 0, 0]);
        (six[0], ten[1]) = (0, 0);
        let select6 = |list: &[u8]| send(&target, &[0x15, 0x10, 0, 0, list.len() as u8, 0], list);
        let select10 = |list: &[u8]| send(&target, &cdb10(0x55, 0x10, 0, list.len() as u16), list);
        good(&select6(&six));
        good(&select10(&ten));
        good(&select6(&[]));
        for n in 1..six.len() {
            let response = select6(&six[..n]);
            let pages = usize::from(six[3]) + 4;
            if n == pages || n == pages + 20 {
                good(&response);
            } else {
                assert_eq!(sense_of(&response), (5, 0x1A, 0), "{n}");
            }
        }
        for at in usize::from(six[3]) + 4..six.len() {
            let mut wrong = six.clone();
            wrong[at] ^= 0x40;
            let response = select6(&wrong);
            assert_eq!(sense_of(&response), (5, 0x26, 0), "{at}");
            let field = response.sense.unwrap().field.unwrap();
            assert_eq!((field.in_cdb, usize::from(field.byte)), (false, at));
        }
        let cdb = [0x15, 0x11, 0, 0, six.len() as u8, 0];
        assert_eq!(sense_of(&send(&target, &cdb, &six)), (5, 0x24, 0));
        let cdb = [0x15, 0x00, 0, 0, six.len() as u8, 0];
        assert_eq!(sense_of(&send(&target, &cdb, &six)), (5, 0x24, 0));
        let cdb = [0x15, 0x10, 0, 0, 200, 0];
        assert_eq!(sense_of(&send(&target, &cdb, &six)), (5, 0x1A, 0));
    }
}

// ---- bytes ----

#[test]
fn every_form_of_read_and_write_moves_the_bytes_of_the_disk() {
    for sector in [512_u32, 4096] {
        let target = thin(sector);
        let size = sector as usize;
        let (lba, count) = (17, 3);
        let at = u64::from(lba * sector);
        let writes: [&[u8]; 4] = [
            &[0x0A, 0, 0, 17, 3, 0],
            &cdb10(0x2A, 0, lba, 3),
            &cdb12(0xAA, 0x10, lba, 3),
            &cdb16(0x8A, 0x08, u64::from(lba), 3),
        ];
        let reads: [&[u8]; 4] = [
            &[0x08, 0, 0, 17, 3, 0],
            &cdb10(0x28, 0, lba, 3),
            &cdb12(0xA8, 0x10, lba, 3),
            &cdb16(0x88, 0x08, u64::from(lba), 3),
        ];
        for (i, write) in writes.into_iter().enumerate() {
            let mut data = random(count * size + 100, i as u64);
            let response = send(&target, write, &data);
            good(&response);
            assert_eq!(response.transferred, count * size);
            assert_eq!(response.expected, (count * size) as u64);
            data.truncate(count * size);
            let mut found = vec![0; count * size];
            target.disk().read_at(at, &mut found).unwrap();
            assert!(found == data);
            for read in reads {
                let (response, answer) = ask_of(&target, read, 1 << 20);
                good(&response);
                assert!(answer == data);
                let (response, answer) = ask_of(&target, read, 1000);
                good(&response);
                assert!(answer == data[..1000]);
                assert_eq!(response.expected, (count * size) as u64);
            }
            let before = content(&target);
            let short = send(&target, write, &data[..count * size - 1]);
            assert_eq!(sense_of(&short), (5, 0x24, 0));
            assert!(content(&target) == before, "nothing is written");
            let wrong_way = ask_of(&target, write, 1 << 20).0;
            assert_eq!(sense_of(&wrong_way), (5, 0x24, 0));
        }
    }
}

#[test]
fn no_blocks_means_256_in_the_short_forms_and_none_in_the_others() {
    let target = thin(512);
    assert_eq!(
        ask_of(&target, &[0x08, 0, 0, 0, 0, 0], 1 << 20).1.len(),
        131_072
    );
    let data = random(131_072, 3);
    assert_eq!(
        send(&target, &[0x0A, 0, 0, 0, 0, 0], &data).transferred,
        131_072
    );
    assert!(content(&target)[..131_072] == data);
    let last = 8192;
    for cdb in [
        &cdb10(0x28, 0, last, 0)[..],
        &cdb12(0xA8, 0, last, 0),
        &cdb16(0x88, 0, last.into(), 0),
        &cdb10(0x2A, 8, last, 0),
        &cdb12(0xAA, 0, last, 0),
        &cdb16(0x8A, 0, last.into(), 0),
        &cdb10(0x2F, 2, last, 0),
    ] {
        let response = run(&target, cdb);
        good(&response);
        assert_eq!((response.transferred, response.expected), (0, 0));
    }
}

/// Commands that fail whatever their data is, and how.
#[test]
fn wrong_cdbs_are_refused_with_the_right_sense() {
    let cases: Vec<(Vec<u8>, (u8, u8, u8))> = {
        let field = (5, 0x24, 0);
        let range = (5, 0x21, 0);
        let command = (5, 0x20, 0);
        vec![
            (vec![], command),
            (vec![0xFF; 260], command),
            (vec![0x7F; 32], command),
            (vec![0x5E; 10], command),
            (vec![0x00], field),
            (vec![0x28, 0, 0, 0], field),
            (vec![0x9E], field),
            (cdb16(0x9E, 0x1F, 0, 0).to_vec(), field),
            (cdb12(0xA3, 0x0A, 0, 0).to_vec(), field),
            // NACA.
            (vec![0, 0, 0, 0, 0, 4], field),
            ({
                let mut cdb = cdb10(0x28, 0, 0, 1).to_vec();
                cdb[9] = 4;
                (cdb, field)
            }),
            // Protection information.
            (cdb10(0x28, 0x20, 0, 1).to_vec(), field),
            (cdb10(0x2A, 0x80, 0, 1).to_vec(), field),
            (cdb16(0x8F, 0x20, 0, 1).to_vec(), field),
            (cdb16(0x93, 0x20, 0, 1).to_vec(), field),
            // BYTCHK 2.
            (cdb10(0x2F, 0x04, 0, 1).to_vec(), field),
            // ANCHOR, PBDATA, LBDATA, NDOB in the form of ten bytes.
            (cdb16(0x93, 0x10, 0, 1).to_vec(), field),
            (cdb16(0x93, 0x04, 0, 1).to_vec(), field),
            (cdb10(0x41, 0x02, 0, 1).to_vec(), field),
            (cdb10(0x41, 0x01, 0, 1).to_vec(), field),
            (cdb10(0x42, 0x01, 0, 0).to_vec(), field),
            // Longer than the longest transfer.
            (cdb12(0xA8, 0, 0, u32::MAX).to_vec(), field),
            (cdb16(0x88, 0, 0, 524_289).to_vec(), field),
            (cdb16(0x8A, 0, u64::MAX, u32::MAX).to_vec(), field),
            (cdb16(0x8F, 0, 0, u32::MAX).to_vec(), field),
            // Behind the end.
            (vec![0x08, 0x1F, 0xFF, 0xFF, 1, 0], range),
            (cdb10(0x28, 0, 8191, 2).to_vec(), range),
            (cdb10(0x28, 0, 8193, 0).to_vec(), range),
            (cdb10(0x2A, 0, u32::MAX, 1).to_vec(), range),
            (cdb12(0xA8, 0, 8192, 1).to_vec(), range),
            (cdb16(0x88, 0, u64::MAX, 1).to_vec(), range),
            (cdb16(0x88, 0, u64::MAX, 0).to_vec(), range),
            (cdb16(0x8A, 0, 1 << 55, 1).to_vec(), range),
            (cdb16(0x8F, 0, u64::MAX - 1, 2).to_vec(), range),
            (cdb10(0x35, 0, 8192, 1).to_vec(), range),
            (cdb16(0x91, 0, u64::MAX, 0).to_vec(), range),
            (cdb16(0x93, 0, 8192, 0).to_vec(), range),
            (cdb16(0x93, 0, 1, 8192).to_vec(), range),
            (cdb16(0x93, 1, u64::MAX, u32::MAX).to_vec(), range),
            (cdb16(0x9E, 0x12, 8192, 24).to_vec(), range),
            // Obsolete bits.
            (vec![0x12, 2, 0, 0, 36, 0], field),
            (vec![0x12, 0, 0x80, 0, 36, 0], field),
            (vec![0x25, 0, 0, 0, 0, 0, 0, 0, 1, 0], field),
            (vec![0x25, 0, 0, 0, 0, 9, 0, 0, 0, 0], field),
            (cdb16(0x9E, 0x10, 1, 32).to_vec(), field),
            (cdb12(0xA0, 0, 0x0300_0000, 16).to_vec(), field),
            // Ejecting; a disk's medium cannot be removed.
            (vec![0x1B, 0, 0, 0, 2, 0], field),
            (vec![0x1E, 0, 0, 0, 1, 0], command),
            // Not there: reservations, COMPARE AND WRITE, FORMAT UNIT.
            (vec![0x16, 0, 0, 0, 0, 0], command),
            (vec![0x5F; 10], command),
            (vec![0x89; 16], command),
            (vec![0x04, 0, 0, 0, 0, 0], command),
        ]
    };
    let target = thin(512);
    let before = content(&target);
    for (cdb, sense) in cases {
        let response = run(&target, &cdb);
        assert_eq!(sense_of(&response), sense, "{cdb:02x?}");
        assert_eq!(response.transferred, 0, "{cdb:02x?}");
    }
    assert!(content(&target) == before);
}

#[test]
fn a_wrong_field_is_pointed_at() {
    let target = thin(512);
    let field = |cdb: &[u8]| {
        let field = run(&target, cdb).sense.unwrap().field.unwrap();
        assert!(field.in_cdb);
        (field.byte, field.bit)
    };
    assert_eq!(field(&cdb10(0x28, 0x20, 0, 1)), (1, Some(7)));
    assert_eq!(field(&cdb16(0x88, 0, 0, u32::MAX)), (10, None));
    assert_eq!(field(&[0, 0, 0, 0, 0, 4]), (5, Some(2)));
    assert_eq!(field(&[0x12, 1, 0x42, 0, 0, 0]), (2, None));
    assert_eq!(field(&cdb16(0x9E, 3, 0, 0)), (1, Some(4)));
}

#[test]
fn verify_reads_compares_and_says_where_bytes_differ() {
    let target = thin(512);
    let data = random(5 * 512, 9);
    target.disk().write_at(10 * 512, &data).unwrap();
    for (opcode, form) in [(0x2F, 10), (0xAF, 12), (0x8F, 16)] {
        let cdb = |flags: u8, count: u32| match form {
            10 => cdb10(opcode, flags, 10, count as u16).to_vec(),
            12 => cdb12(opcode, flags, 10, count).to_vec(),
            _ => cdb16(opcode, flags, 10, count).to_vec(),
        };
        good(&target.execute(Command::without_data(&cdb(0, 5))));
        good(&target.execute(Command::without_data(&cdb(0, 8182))));
        let response = send(&target, &cdb(2, 5), &data);
        good(&response);
        assert_eq!(response.transferred, data.len());
        let mut wrong = data.clone();
        wrong[1025] ^= 1;
        let response = send(&target, &cdb(2, 5), &wrong);
        assert_eq!(sense_of(&response), (0xE, 0x1D, 0));
        assert_eq!(response.sense.unwrap().information, Some(1025));
        assert_eq!(
            sense_of(&send(&target, &cdb(2, 5), &data[..100])),
            (5, 0x24, 0)
        );
        // One block, against each.
        let response = send(&target, &cdb(6, 1), &data[..512]);
        good(&response);
        assert_eq!(response.transferred, 512);
        let response = send(&target, &cdb(6, 3), &data[..512]);
        assert_eq!(sense_of(&response), (0xE, 0x1D, 0));
        let at = response.sense.unwrap().information.unwrap();
        assert_eq!(
            Some(at as usize - 512),
            (0..512).find(|&i| data[i] != data[512 + i])
        );
    }
    // Across the pieces in which it works.
    let zeros = vec![0; 3 * MIB as usize];
    good(&send(&target, &cdb12(0xAF, 2, 2048, 6144), &zeros));
    good(&send(&target, &cdb12(0xAF, 6, 2048, 6144), &zeros[..512]));
    target.disk().write_at(4 * MIB - 1, &[1]).unwrap();
    for flags in [2, 6] {
        let response = send(&target, &cdb12(0xAF, flags, 2048, 6144), &zeros);
        assert_eq!(response.sense.unwrap().information, Some(3 * MIB - 1));
    }
}

#[test]
fn forced_writes_and_synchronizing_flush_the_file() {
    let disk = variant(DiskType::Dynamic, 4 * MIB, 512).make(1);
    let storage = FaultStorage::new(disk.layers[0].clone());
    let target = target_of(disk.open_leaf(storage.clone(), true).unwrap());
    let flushes = || storage.counts().of(Call::Flush);
    good(&send(&target, &cdb10(0x2A, 0, 0, 1), &[1; 512]));
    let mut seen = flushes();
    let flushing: [&[u8]; 6] = [
        &cdb10(0x2A, 0x08, 0, 1),
        &cdb16(0x8A, 0x18, 0, 1),
        &cdb10(0x28, 0x08, 0, 1),
        &cdb10(0x35, 0, 0, 0),
        &cdb16(0x91, 2, 0, 8192),
        &[0x1B, 0, 0, 0, 0, 0],
    ];
    for cdb in flushing {
        good(&send(&target, &cdb10(0x2A, 0x10, 1, 1), &[2; 512]));
        good(&run(&target, cdb));
        assert!(flushes() > seen, "{cdb:02x?}");
        seen = flushes();
    }
    for cdb in [
        &[0x1B, 0, 0, 0, 1, 0],
        &[0x1B, 0, 0, 0, 4, 0],
        &[0x1B, 0, 0, 0, 0x30, 0],
    ] {
        good(&run(&target, cdb));
        assert_eq!(flushes(), seen);
    }
}

// ---- zeros and space ----

#[test]
fn write_same_repeats_a_block_and_zeros_take_no_data() {
    for target in [thin(512), thin(4096), raw(4 * MIB)] {
        let sector = target.disk().info().logical_sector_size as usize;
        let blocks = 4 * MIB as usize / sector;
        let mut model = content(&target);
        let block = random(sector, 4);
        let mut check = |cdb: &[u8], data: &[u8], lba: usize, count: usize| {
            let response = send(&target, cdb, data);
            good(&response);
            assert_eq!(response.transferred, data.len());
            for piece in model[lba * sector..(lba + count) * sector].chunks_mut(sector) {
                if data.is_empty() {
                    piece.fill(0);
                } else {
                    piece.copy_from_slice(data);
                }
            }
            assert!(content(&target) == model, "{cdb:02x?}");
        };
        check(&cdb10(0x41, 0, 3, 5), &block, 3, 5);
        // No blocks: to the end.
        check(&cdb16(0x93, 0, 7, 0), &block, 7, blocks - 7);
        check(&cdb10(0x41, 0, 5, 0), &block, 5, blocks - 5);
        check(&cdb16(0x93, 0, 9, 2), &vec![0; sector], 9, 2);
        check(&cdb16(0x93, 1, 11, 3), &[], 11, 3);
        assert_eq!(
            sense_of(&send(&target, &cdb16(0x93, 0, 0, 1), &block[1..])),
            (5, 0x24, 0)
        );
    }
}

#[test]
fn write_same_gives_space_back_only_if_asked_to() {
    let target = thin(512);
    let status = || ask(&target, &cdb16(0x9E, 0x12, 0, 24))[20];
    let fill = || good(&send(&target, &cdb16(0x93, 0, 0, 2048), &[5; 512]));
    fill();
    assert_eq!(status(), 0);
    good(&send(&target, &cdb16(0x93, 0, 0, 2048), &[0; 512]));
    assert_eq!(content(&target)[..MIB as usize], vec![0; MIB as usize]);
    fill();
    good(&send(&target, &cdb16(0x93, 8, 0, 2048), &[0; 512]));
    assert_eq!(status(), 1);
    fill();
    good(&target.execute(Command::without_data(&cdb16(0x93, 9, 0, 2048))));
    assert_eq!(status(), 1);
    good(&send(&target, &cdb16(0x93, 8, 0, 2048), &[6; 512]));
    assert_eq!(status(), 0, "what is not zero is written");
    assert!(content(&target)[..MIB as usize].iter().all(|&b| b == 6));
    let full = raw(MIB);
    let refused = send(&full, &cdb16(0x93, 8, 0, 1), &[0; 512]);
    assert_eq!(sense_of(&refused), (5, 0x24, 0));
    assert_eq!(sense_of(&unmap(&full, &[(0, 1)])), (5, 0x20, 0));
}

#[test]
fn unmap_gives_blocks_back_and_they_read_as_zeros() {
    let target = thin(512);
    good(&send(&target, &cdb16(0x93, 0, 0, 0), &[7; 512]));
    good(&unmap(
        &target,
        &[(2048, 2048), (6144, 2048), (1, 0), (8192, 0)],
    ));
    let answer = ask(&target, &cdb16(0x9E, 0x12, 100, 4096));
    let runs: Vec<(u64, u32, u8)> = answer[8..]
        .chunks(16)
        .map(|run| {
            let lba = u64::from_be_bytes(run[..8].try_into().unwrap());
            let count = u32::from_be_bytes(run[8..12].try_into().unwrap());
            (lba, count, run[12])
        })
        .collect();
    assert_eq!(
        runs,
        [
            (100, 1948, 0),
            (2048, 2048, 1),
            (4096, 2048, 0),
            (6144, 2048, 1)
        ]
    );
    assert_eq!(answer[..4], [0, 0, 0, 68]);
    for (i, byte) in [7, 0, 7, 0].into_iter().enumerate() {
        let at = i * MIB as usize;
        assert!(
            content(&target)[at..at + MIB as usize]
                .iter()
                .all(|&b| b == byte)
        );
    }
    // As much as there is room for, one at least.
    assert_eq!(ask(&target, &cdb16(0x9E, 0x12, 0, 40)).len(), 40);
    assert_eq!(ask(&target, &cdb16(0x9E, 0x12, 0, 10)).len(), 10);
}

#[test]
fn wrong_lists_unmap_nothing() {
    let target = thin(512);
    good(&send(&target, &cdb16(0x93, 0, 0, 0), &[7; 512]));
    let list = unmap_list(&[(0, 2048), (2048, 2048)]);
    let with_length = |length: u16, list: &[u8]| send(&target, &cdb10(0x42, 0, 0, length), list);
    good(&with_length(0, &list));
    let length = (5, 0x1A, 0);
    for short in [1, 4, 7, 39] {
        assert_eq!(sense_of(&with_length(short, &list)), length, "{short}");
    }
    assert_eq!(sense_of(&with_length(40, &list[..39])), length);
    let mut wrong = list.clone();
    wrong[1] = 39;
    assert_eq!(sense_of(&with_length(40, &wrong)), length);
    let mut wrong = list.clone();
    wrong[3] = 33;
    assert_eq!(sense_of(&with_length(40, &wrong)), length);
    for range in [(8191, 2), (8193, 0), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
        let response = unmap(&target, &[(0, 2048), range]);
        assert_eq!(sense_of(&response), (5, 0x21, 0), "{range:?}");
    }
    assert_eq!(
        sense_of(&unmap(&target, &[(0, 1); 257])),
        (5, 0x26, 0),
        "more than the limits say"
    );
    assert!(content(&target).iter().all(|&b| b == 7));
    // The incomplete last one does not count.
    let mut incomplete = list;
    incomplete[3] = 31;
    good(&with_length(40, &incomplete));
    assert!(content(&target)[2 * MIB as usize..].iter().all(|&b| b == 7));
    assert!(content(&target)[..MIB as usize].iter().all(|&b| b == 0));
    good(&unmap(&target, &[(0, 1); 256]));
}

// ---- what may not be written ----

#[test]
fn a_read_only_disk_reads_and_refuses_the_rest() {
    for target in [read_only(), optical()] {
        let optical = target.disk().info().format == Format::Iso;
        let mut writing: Vec<Vec<u8>> = vec![
            vec![0x0A, 0, 0, 0, 1, 0],
            cdb10(0x2A, 0, 0, 1).to_vec(),
            cdb12(0xAA, 0, 0, 1).to_vec(),
            cdb16(0x8A, 0, 0, 1).to_vec(),
        ];
        if !optical {
            writing.push(cdb10(0x41, 0, 0, 1).to_vec());
            writing.push(cdb16(0x93, 1, 0, 1).to_vec());
            writing.push(cdb10(0x42, 0, 0, 24).to_vec());
        }
        for cdb in writing {
            assert_eq!(sense_of(&run(&target, &cdb)), (7, 0x27, 0), "{cdb:02x?}");
        }
        for cdb in [
            &[0; 6][..],
            &cdb10(0x28, 8, 0, 4),
            &cdb10(0x2F, 0, 0, 4),
            &cdb10(0x35, 0, 0, 0),
            &[0x1B, 0, 0, 0, 1, 0],
        ] {
            good(&run(&target, cdb));
        }
    }
}

#[test]
fn an_optical_disc_has_sectors_of_2048_bytes_and_no_way_to_change_them() {
    let target = optical();
    let answer = ask_of(&target, &cdb10(0x28, 0, 16, 1), 4096).1;
    assert_eq!((answer.len(), &answer[..7]), (2048, &b"\x01CD001\x01"[..]));
    good(&run(&target, &[0x1E, 0, 0, 0, 1, 0]));
    assert_eq!(ask(&target, &[0x1A, 0, 0x3F, 0, 255, 0])[1..4], [0, 0, 0]);
    for cdb in [
        &cdb10(0x42, 0, 0, 0)[..],
        &cdb10(0x41, 0, 0, 1),
        &cdb16(0x93, 0, 0, 1),
    ] {
        assert_eq!(sense_of(&run(&target, cdb)), (5, 0x20, 0));
    }
    assert_eq!(
        sense_of(&run(&target, &cdb10(0x28, 0, 100, 1))),
        (5, 0x21, 0)
    );
    assert_eq!(
        sense_of(&run(&target, &[0x12, 1, 0xB0, 0, 255, 0])),
        (5, 0x24, 0)
    );
}

// ---- failing storage ----

/// Fails to read some bytes of the file.
struct BadSpot {
    below: Arc<MemoryStorage>,
    bad: std::ops::Range<u64>,
}

impl Storage for BadSpot {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> vhdkit::Result<()> {
        if offset < self.bad.end && offset + buf.len() as u64 > self.bad.start {
            let error = std::io::Error::from_raw_os_error(5);
            return Err(vhdkit::Error::io("read", error));
        }
        self.below.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> vhdkit::Result<()> {
        self.below.write_at(offset, data)
    }
    fn flush(&self) -> vhdkit::Result<()> {
        self.below.flush()
    }
    fn len(&self) -> vhdkit::Result<u64> {
        self.below.len()
    }
    fn set_len(&self, length: u64) -> vhdkit::Result<()> {
        self.below.set_len(length)
    }
    fn allocate(&self, offset: u64, length: u64) -> vhdkit::Result<()> {
        self.below.allocate(offset, length)
    }
    fn punch_hole(&self, offset: u64, length: u64) -> vhdkit::Result<()> {
        self.below.punch_hole(offset, length)
    }
    fn zero_range(&self, offset: u64, length: u64) -> vhdkit::Result<()> {
        self.below.zero_range(offset, length)
    }
    fn next_data(
        &self,
        range: std::ops::Range<u64>,
    ) -> vhdkit::Result<Option<std::ops::Range<u64>>> {
        self.below.next_data(range)
    }
}

#[test]
fn a_read_error_names_the_first_bad_block_and_hands_over_what_is_before() {
    let bytes = random(256 * 512, 5);
    for bad in [
        0..1,
        511..513,
        100 * 512 + 5..140 * 512,
        255 * 512..256 * 512,
    ] {
        let storage = BadSpot {
            below: Arc::new(MemoryStorage::from_bytes(&bytes)),
            bad: bad.clone(),
        };
        let image = open_image(Arc::new(storage), Format::Raw, true).unwrap();
        let target =
            target_of(VirtualDisk::from_layers(vec![Layer::new(image, "raw")], true).unwrap());
        for (lba, count) in [
            (0_u64, 256_u64),
            (0, 101),
            (3, 253),
            (90, 60),
            (255, 1),
            (0, 1),
        ] {
            let first = bad.start / 512;
            let last = (bad.end - 1) / 512;
            let hit = lba <= last && lba + count > first;
            let (response, answer) =
                ask_of(&target, &cdb10(0x28, 0, lba as u32, count as u16), 1 << 20);
            let wanted = if hit {
                let block = first.max(lba);
                assert_eq!(sense_of(&response), (3, 0x11, 0));
                assert_eq!(response.sense.unwrap().information, Some(block));
                ((block - lba) * 512) as usize
            } else {
                good(&response);
                (count * 512) as usize
            };
            assert_eq!(answer.len(), wanted, "{bad:?} {lba} {count}");
            assert!(answer == bytes[lba as usize * 512..][..wanted]);
            let cdb = cdb10(0x2F, 0, lba as u32, count as u16);
            let verified = run(&target, &cdb);
            assert_eq!(verified.sense, response.sense);
            assert_eq!(verified.transferred, 0);
            let cdb = cdb10(0x2F, 2, lba as u32, count as u16);
            let data = &bytes[lba as usize * 512..];
            assert_eq!(send(&target, &cdb, data).sense, response.sense);
        }
    }
}

#[test]
fn an_error_that_goes_away_is_none() {
    let bytes = random(64 * 512, 6);
    let storage = FaultStorage::new(Arc::new(MemoryStorage::from_bytes(&bytes)));
    let image = open_image(storage.clone(), Format::Raw, false).unwrap();
    let disk = VirtualDisk::from_layers(vec![Layer::new(image, "raw")], false).unwrap();
    let target = target_of(disk);
    storage.fail_once(&[Call::Read], 0, Fault::InputOutput);
    let (response, answer) = ask_of(&target, &cdb10(0x28, 0, 0, 64), 1 << 20);
    good(&response);
    assert!(answer == bytes && storage.injected() == 1);
}

#[test]
fn failing_writes_and_a_full_host_are_told_apart() {
    let writing: [&[u8]; 4] = [
        &cdb10(0x2A, 0, 0, 8),
        &cdb16(0x8A, 0x08, 2048, 8),
        &cdb10(0x41, 0, 0, 8),
        &cdb16(0x93, 0, 4096, 4096),
    ];
    for (fault, wanted) in [
        (Fault::InputOutput, (3, 0x0C, 0)),
        (Fault::NoSpace, (7, 0x27, 7)),
    ] {
        for cdb in writing {
            let disk = variant(DiskType::Dynamic, 4 * MIB, 512).make(1);
            let storage = FaultStorage::new(disk.layers[0].clone());
            let target = target_of(disk.open_leaf(storage.clone(), true).unwrap());
            storage.fail_from(Call::CHANGING, 0, fault);
            let response = send(&target, cdb, &[1; 8 * 512]);
            assert_eq!(sense_of(&response), wanted, "{cdb:02x?}");
            assert!(storage.injected() > 0);
            storage.heal();
        }
    }
}

#[test]
fn a_failing_flush_fails_every_command_that_promises_one() {
    let flushing: [&[u8]; 5] = [
        &cdb10(0x2A, 0x08, 0, 1),
        &cdb10(0x28, 0x08, 0, 1),
        &cdb10(0x35, 0, 0, 0),
        &cdb16(0x91, 0, 0, 0),
        &[0x1B, 0, 0, 0, 0, 0],
    ];
    for cdb in flushing {
        let disk = variant(DiskType::Dynamic, 4 * MIB, 512).make(1);
        let storage = FaultStorage::new(disk.layers[0].clone());
        let target = target_of(disk.open_leaf(storage.clone(), true).unwrap());
        good(&send(&target, &cdb10(0x2A, 0, 0, 1), &[1; 512]));
        storage.fail_from(&[Call::Flush], 0, Fault::InputOutput);
        assert_eq!(sense_of(&run(&target, cdb)), (3, 0x0C, 0), "{cdb:02x?}");
        storage.heal();
    }
}

// ---- anything ----

#[test]
fn random_commands_leave_what_the_model_says() {
    for (seed, variant) in Variant::small().into_iter().enumerate() {
        let disk = variant.make(seed as u64);
        let target = target_of(disk.open(true).unwrap());
        let info = target.disk().info();
        let sector = u64::from(info.logical_sector_size);
        let blocks = info.virtual_size / sector;
        let mut model = content(&target);
        let mut rng = Rng::new(seed as u64 + 77);
        for _ in 0..150 {
            let lba = rng.below(blocks);
            let longest = if rng.one_in(4) { 4000 } else { 40 };
            let count = (1 + rng.below(longest)).min(blocks - lba);
            let range = (lba * sector) as usize..((lba + count) * sector) as usize;
            let data = random(range.len(), rng.next());
            match rng.below(8) {
                0 | 1 => {
                    let flags = if rng.one_in(4) { 8 } else { 0 };
                    good(&send(
                        &target,
                        &cdb16(0x8A, flags, lba, count as u32),
                        &data,
                    ));
                    model[range].copy_from_slice(&data);
                }
                2 => {
                    let block = &data[..sector as usize];
                    good(&send(&target, &cdb16(0x93, 0, lba, count as u32), block));
                    for piece in model[range].chunks_mut(sector as usize) {
                        piece.copy_from_slice(block);
                    }
                }
                3 => {
                    let thin = info.disk_type != DiskType::Fixed;
                    let flags = 1 | if thin && rng.one_in(2) { 8 } else { 0 };
                    good(&run(&target, &cdb16(0x93, flags, lba, count as u32)));
                    model[range].fill(0);
                }
                4 if info.disk_type != DiskType::Fixed => {
                    good(&unmap(&target, &[(lba, count as u32)]));
                    let now = content(&target);
                    let pieces = now[range.clone()].chunks(sector as usize);
                    for (new, old) in pieces.zip(model[range.clone()].chunks_mut(sector as usize)) {
                        assert!(
                            new == old || new.iter().all(|&b| b == 0),
                            "{}",
                            variant.name()
                        );
                        old.copy_from_slice(new);
                    }
                }
                5 => {
                    let response = send(
                        &target,
                        &cdb16(0x8F, 2, lba, count as u32),
                        &model[range.clone()],
                    );
                    good(&response);
                }
                _ => {
                    let cdb = cdb16(0x88, 0, lba, count as u32);
                    let (response, answer) = ask_of(&target, &cdb, range.len());
                    good(&response);
                    assert!(answer == model[range], "{}", variant.name());
                }
            }
        }
        assert!(content(&target) == model, "{}", variant.name());
    }
}

#[test]
fn any_cdb_with_any_buffer_is_answered() {
    let mut rng = Rng::new(4711);
    let opcodes = [
        0x00, 0x03, 0x08, 0x0A, 0x12, 0x15, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2A, 0x2F, 0x35, 0x41,
        0x42, 0x55, 0x5A, 0x88, 0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA3, 0xA8, 0xAA, 0xAF,
    ];
    for target in [
        thin(512),
        thin(4096),
        read_only(),
        raw(64 * 512),
        raw(0),
        optical(),
    ] {
        for round in 0..8000 {
            let length = if rng.one_in(3) { rng.below(261) } else { 16 };
            let mut cdb = random(length as usize, rng.next());
            // Small numbers get further.
            let mask = [0xFF, 0x0F, 0x01, 0x00][rng.below(4) as usize];
            for byte in cdb.iter_mut().skip(2) {
                *byte &= if rng.one_in(8) { 0xFF } else { mask };
            }
            if let Some(opcode) = cdb.first_mut()
                && !rng.one_in(10)
            {
                *opcode = opcodes[rng.below(opcodes.len() as u64) as usize];
            }
            let room = if rng.one_in(2) {
                rng.below(600)
            } else {
                rng.below(40_000)
            } as usize;
            let mut buffer = random(room, round);
            for byte in &mut buffer {
                *byte &= mask;
            }
            let data = match rng.below(4) {
                0 => Data::None,
                1 => Data::In(&mut buffer),
                _ => match Direction::of(&cdb) {
                    Direction::None => Data::None,
                    Direction::In => Data::In(&mut buffer),
                    Direction::Out => Data::Out(&buffer),
                },
            };
            let lun = if rng.one_in(20) { rng.next() } else { 0 };
            let response = target.execute(Command::new(&cdb, data).to_lun(lun));
            assert!(response.transferred <= room);
            assert!(response.transferred as u64 <= response.expected);
            assert_eq!(
                response.sense.is_some(),
                response.status == Status::CheckCondition
            );
            assert!(response.sense_bytes().len() <= 28);
            let key = response.sense.map_or(SenseKey::NoSense, |sense| sense.key);
            assert!(
                matches!(
                    key,
                    SenseKey::NoSense
                        | SenseKey::NotReady
                        | SenseKey::IllegalRequest
                        | SenseKey::DataProtect
                        | SenseKey::Miscompare
                ),
                "{cdb:02x?}: {response:?}"
            );
            assert_ne!(response.sense, Some(Sense::NONE));
        }
    }
}

#[test]
fn several_threads_may_use_one_target() {
    let target = thin(512);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let target = &target;
            scope.spawn(move || {
                for round in 0..50_u8 {
                    let lba = u32::from(thread) * 2048 + u32::from(round);
                    let data = [thread ^ round; 512];
                    good(&send(target, &cdb10(0x2A, 0, lba, 1), &data));
                    let answer = ask_of(target, &cdb10(0x28, 0, lba, 1), 512).1;
                    assert_eq!(answer, data);
                    assert_eq!(sense_of(&run(target, &[0xFF])), (5, 0x20, 0));
                }
            });
        }
    });
}
