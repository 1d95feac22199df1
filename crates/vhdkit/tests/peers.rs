//! What we write reads the same to QEMU, 7-Zip and libvhdi, each where it can be believed; what they write, to us.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhdkit::disk::OpenOptions;
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
use vhdkit::storage::{Access, FileStorage, Storage};
use vhdkit::verbs::convert::{ConvertOptions, convert};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::{ErrorKind, VirtualDisk};
use vhdkit_testkit::corpus::{Corpus, copy_sparse};
use vhdkit_testkit::guest::{GuestOp, Shape};
use vhdkit_testkit::hash::{Content, content_of_disk};
use vhdkit_testkit::history::assert_clean;
use vhdkit_testkit::patch::vhdx;
use vhdkit_testkit::peers::{
    has_libvhdi, has_qemu, has_seven_zip, qemu_format, qemu_io, read_with_libvhdi, read_with_qemu,
    read_with_seven_zip, run,
};
use vhdkit_testkit::require::{require, skip_optional};
use vhdkit_testkit::rng::Rng;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn make(
    path: &Path,
    format: Format,
    disk_type: DiskType,
    size: u64,
    block_size: Option<u64>,
    sector_size: Option<u32>,
    parent: Option<&Path>,
) {
    create(CreateOptions {
        path: path.to_path_buf(),
        parameters: CreateParameters {
            format,
            disk_type,
            virtual_size: size,
            block_size,
            logical_sector_size: sector_size,
            physical_sector_size: None,
            identifier: None,
            parent: None,
            identifiers: IdentifierSource::random(),
            created: 1_700_000_000,
        },
        parent_path: parent.map(Path::to_path_buf),
        profile: None,
        open_parent: OpenOptions::new(),
        overwrite: false,
    })
    .wait()
    .unwrap_or_else(|e| panic!("{e}"));
}

fn open(path: &Path, writable: bool) -> VirtualDisk {
    OpenOptions::new()
        .writable(writable)
        .open(path)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn ours(path: &Path) -> Content {
    content_of_disk(&open(path, false)).unwrap_or_else(|e| panic!("{e}"))
}

fn fill(path: &Path, ops: &[GuestOp]) {
    let disk = open(path, true);
    for op in ops {
        op.run(&disk).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    }
    disk.close().unwrap_or_else(|e| panic!("{e}"));
}

/// A copy of a chain for a peer that may write to what it reads: the leaf's path first.
fn copies(chain: &[PathBuf]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let copies = chain
        .iter()
        .map(|path| {
            let copy = folder.path().join(path.file_name().unwrap());
            copy_sparse(path, &copy);
            copy
        })
        .collect();
    (folder, copies)
}

/// Asks everybody who can be believed about this kind of disk. `chain` is leaf first.
fn everybody_reads_the_same(chain: &[PathBuf], format: Format, what: &str) {
    let expected = ours(&chain[0]);
    let single = chain.len() == 1;
    // QEMU shows zeros for what is in the parent of a VHD, and refuses a differencing VHDX.
    if single && require(has_qemu(), "qemu-img is not installed") {
        let (_folder, copy) = copies(chain);
        let theirs = read_with_qemu(&copy[0], format).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(theirs, expected, "{what}: QEMU");
        if format == Format::Vhdx {
            let file = copy[0].to_str().unwrap();
            run("qemu-img", ["check", "-f", "vhdx", file])
                .unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
    if require(has_seven_zip(), "7-Zip is not installed") && expected.size <= 12 * GIB {
        let (_folder, copy) = copies(chain);
        let theirs =
            read_with_seven_zip(&copy[0], format).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(theirs, expected, "{what}: 7-Zip");
    }
    // libvhdi misreads bitmaps of VHD in which bits change inside a byte; where a chunk of a VHDX has no sector bitmap
    // it takes the beginning of the file for it.
    if (single || format == Format::Vhdx && every_chunk_has_a_bitmap(&chain[0]))
        && require(has_libvhdi(), "libvhdi (python3-libvhdi) is not installed")
        && expected.size <= GIB
    {
        let (_folder, copy) = copies(chain);
        let theirs = read_with_libvhdi(&copy).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(theirs, expected, "{what}: libvhdi");
    }
}

fn every_chunk_has_a_bitmap(path: &Path) -> bool {
    let file = FileStorage::open(path, Access::ReadOnly).unwrap();
    let block = open(path, false).info().block_size.unwrap();
    let size = open(path, false).virtual_size();
    let ratio = (1 << 32) / block;
    (0..size.div_ceil(1 << 32)).all(|chunk| {
        let entry = vhdx::bat_entry(&file, (chunk + 1) * ratio + chunk);
        entry & 7 == 6
    })
}

struct Kind {
    format: Format,
    disk_type: DiskType,
    size: u64,
    block: Option<u64>,
    sector: Option<u32>,
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut add = |format, disk_type, size, block, sector| {
        kinds.push(Kind {
            format,
            disk_type,
            size,
            block,
            sector,
        });
    };
    use DiskType::{Differencing, Dynamic, Fixed};
    use Format::{Vhd, Vhdx};
    for size in [3 * MIB, 20 * MIB + 512] {
        add(Vhd, Fixed, size, None, None);
        add(Vhd, Dynamic, size, None, None);
        add(Vhd, Dynamic, size, Some(512 * 1024), None);
        add(Vhd, Differencing, size, None, None);
        add(Vhd, Differencing, size, Some(512 * 1024), None);
        // 7-Zip refuses VHDX disks, also QEMU's, with an odd number of sectors.
        let size = size.next_multiple_of(1024);
        add(Vhdx, Fixed, size, Some(MIB), None);
        add(Vhdx, Differencing, size, Some(2 * MIB), None);
        for shift in [0, 1, 3, 5, 8] {
            add(Vhdx, Dynamic, size, Some(MIB << shift), None);
        }
    }
    // QEMU has no sectors of 4096 bytes in VHDX.
    add(Vhdx, Dynamic, 9 * GIB, Some(MIB), None);
    add(Vhd, Dynamic, 5 * GIB, None, None);
    add(Vhdx, Differencing, 5 * GIB, Some(MIB), None);
    kinds
}

#[test]
fn everybody_reads_what_we_write() {
    for (i, kind) in kinds().iter().enumerate() {
        let what = format!(
            "{} {} of {} bytes, blocks {:?}, sectors {:?}",
            kind.format.name(),
            kind.disk_type.name(),
            kind.size,
            kind.block,
            kind.sector
        );
        let folder = tempfile::tempdir().unwrap();
        let extension = kind.format.name();
        let shape = Shape {
            virtual_size: kind.size,
            block_size: kind.block.unwrap_or(2 * MIB),
            sector_size: u64::from(kind.sector.unwrap_or(512)),
            longest: 2 * MIB,
        };
        let mut rng = Rng::new(i as u64);
        let mut chain = Vec::new();
        let mut parent: Option<PathBuf> = None;
        if kind.disk_type == DiskType::Differencing {
            let base = folder.path().join(format!("base.{extension}"));
            make(
                &base,
                kind.format,
                DiskType::Dynamic,
                kind.size,
                kind.block,
                kind.sector,
                None,
            );
            fill(&base, &shape.random_ops(20, &mut rng));
            chain.push(base.clone());
            parent = Some(base);
        }
        let leaf = folder.path().join(format!("leaf.{extension}"));
        make(
            &leaf,
            kind.format,
            kind.disk_type,
            kind.size,
            kind.block,
            kind.sector,
            parent.as_deref(),
        );
        chain.insert(0, leaf.clone());
        everybody_reads_the_same(&chain, kind.format, &format!("empty {what}"));
        fill(&leaf, &shape.random_ops(30, &mut rng));
        everybody_reads_the_same(&chain, kind.format, &format!("sparse {what}"));
        if kind.size < 64 * MIB {
            fill(&leaf, &[GuestOp::write(0, kind.size, 77)]);
            everybody_reads_the_same(&chain, kind.format, &format!("dense {what}"));
        }
    }
}

fn convert_to(source: &Path, target: &Path, format: Format, disk_type: DiskType) {
    convert(ConvertOptions {
        source: source.to_path_buf(),
        open: OpenOptions::new(),
        target: target.to_path_buf(),
        format,
        disk_type,
        virtual_size: None,
        profile: None,
        block_size: None,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        identifiers: IdentifierSource::random(),
        created: 1_700_000_000,
        overwrite: true,
    })
    .wait()
    .unwrap_or_else(|e| panic!("{e}"));
}

/// What a conversion writes is read back by everybody (QEMU's tests 159 and 170 in other words).
#[test]
fn everybody_reads_what_we_convert() {
    let corpus = Corpus::open();
    for name in [
        "dfvfs/ntfs-dynamic.vhd",
        "dfvfs/ntfs-differential.vhdx",
        "discutils/lvm2.vhdx",
    ] {
        let image = corpus.find(name).expect("a shipped image");
        let (folder, path) = corpus.copy(image);
        for (format, disk_type) in [
            (Format::Vhd, DiskType::Dynamic),
            (Format::Vhdx, DiskType::Dynamic),
            (Format::Vhd, DiskType::Fixed),
            (Format::Vhdx, DiskType::Fixed),
        ] {
            if disk_type == DiskType::Fixed && image.content_size > Some(GIB) {
                continue;
            }
            let target = folder.path().join(format!("converted.{}", format.name()));
            convert_to(&path, &target, format, disk_type);
            assert_eq!(
                Some(&ours(&target).nz_sha256),
                image.content_nz_sha256.as_ref(),
                "{name}"
            );
            everybody_reads_the_same(&[target], format, name);
        }
    }
}

/// QEMU's tests 001 to 003, 008 to 012, 032: patterns at many offsets, written by QEMU and read by us and the other
/// way round.
#[test]
fn we_read_what_qemu_writes_and_qemu_what_we_wrote_after_it() {
    if !require(has_qemu(), "qemu-img is not installed") {
        return;
    }
    for (format, options) in [
        (Format::Vhd, "subformat=dynamic,force_size=on"),
        (Format::Vhd, "subformat=fixed,force_size=on"),
        (Format::Vhdx, "subformat=dynamic"),
        (Format::Vhdx, "subformat=dynamic,block_size=1048576"),
        (Format::Vhdx, "subformat=fixed"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qemu.disk");
        let file = path.to_str().unwrap();
        let create = [
            "create",
            "-q",
            "-f",
            qemu_format(format),
            "-o",
            options,
            file,
            "64M",
        ];
        run("qemu-img", create).unwrap_or_else(|e| panic!("{e}"));
        let mut commands = Vec::new();
        for i in 0..24_u64 {
            let at = (i * 2_777_777) / 512 * 512;
            commands.push(format!("write -P {} {at} {}", 1 + i, 512 * (1 + i * 7)));
        }
        commands.push("aio_write -P 0x77 33554432 4096".into());
        commands.push("aio_write -P 0x78 33558528 4096".into());
        commands.push("aio_flush".into());
        commands.push("write -z 5242880 1M".into());
        qemu_io(&path, format, &commands).unwrap_or_else(|e| panic!("{e}"));
        let (_folder, copy) = copies(std::slice::from_ref(&path));
        let theirs = read_with_qemu(&copy[0], format).unwrap();
        assert_eq!(ours(&path), theirs, "{options}");
        let disk = open(&path, false);
        assert_eq!(disk.virtual_size(), 64 * MIB, "{options}");
        drop(disk);

        fill(
            &path,
            &[
                GuestOp::write(1000, 10_000, 5),
                GuestOp::write(60 * MIB - 3, 3 * MIB, 6),
                GuestOp::zero(20 * MIB, 3 * MIB),
                GuestOp::discard(8 * MIB, 8 * MIB),
            ],
        );
        let (_folder, copy) = copies(std::slice::from_ref(&path));
        assert_eq!(
            read_with_qemu(&copy[0], format).unwrap(),
            ours(&path),
            "{options}"
        );
        qemu_io(&path, format, &["write -P 0x99 62914560 512".into()])
            .unwrap_or_else(|e| panic!("{e}"));
        let mut bytes = [0; 512];
        open(&path, false).read_at(62_914_560, &mut bytes).unwrap();
        assert_eq!(bytes, [0x99; 512], "{options}");
    }
}

/// QEMU's test 033: zeros and discards of every alignment, then patterns around them.
#[test]
fn zeros_of_every_alignment_read_the_same_to_qemu() {
    for format in [Format::Vhd, Format::Vhdx] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("zeros.{}", format.name()));
        make(
            &path,
            format,
            DiskType::Dynamic,
            128 * MIB,
            None,
            None,
            None,
        );
        let mut ops = vec![GuestOp::write(0, 8 * MIB, 10)];
        for (i, start) in [0, 1, 511, 512, 4095, 65_536, 2 * MIB - 700]
            .into_iter()
            .enumerate()
        {
            for (j, length) in [1, 512, 700, 4096, 131_072].into_iter().enumerate() {
                let at = (i as u64 * 5 + j as u64) * 200_000 + start % 200_000;
                ops.push(GuestOp::zero(at, length));
            }
        }
        ops.push(GuestOp::zero(100 * MIB, 3000));
        fill(&path, &ops);
        everybody_reads_the_same(&[path], format, "zeros");
    }
}

/// QEMU's test 064: a real image of Hyper-V, written to by us, read by QEMU.
#[test]
fn qemu_reads_a_hyper_v_image_that_we_wrote_to() {
    let corpus = Corpus::open();
    let Some(image) = corpus.find("qemu/iotest-dynamic-1G.vhdx") else {
        skip_optional("qemu/iotest-dynamic-1G.vhdx is not in the shipped collection");
        return;
    };
    if !require(has_qemu(), "qemu-io is not installed") {
        return;
    }
    let (_folder, path) = corpus.copy(image);
    let disk = open(&path, true);
    disk.write_at(99 * MIB, &vec![0xc3; usize::try_from(58 * MIB).unwrap()])
        .unwrap();
    disk.close().unwrap();
    let reads = [
        "read -P 0xa5 0 33M",
        "read -P 0x96 33M 33M",
        "read -P 0x00 66M 33M",
        "read -P 0xc3 99M 58M",
        "read -P 0x00 157M 867M",
    ];
    qemu_io(&path, Format::Vhdx, &reads.map(str::to_owned)).unwrap_or_else(|e| panic!("{e}"));
    run("qemu-img", ["check", "-f", "vhdx", path.to_str().unwrap()])
        .unwrap_or_else(|e| panic!("{e}"));
}

/// QEMU's tests 070 and regression-vhdx-log: its logs are replayed as it would do it itself.
#[test]
fn a_log_left_by_qemu_is_replayed_as_qemu_does() {
    let corpus = Corpus::open();
    let Some(image) = corpus.find("qemu/iotest-dirtylog-10G-4M.vhdx") else {
        skip_optional("qemu/iotest-dirtylog-10G-4M.vhdx is not in the shipped collection");
        return;
    };
    if !require(has_qemu(), "qemu-img is not installed") {
        return;
    }
    let (_ours, mine) = corpus.copy(image);
    let (_theirs, theirs) = corpus.copy(image);
    run(
        "qemu-img",
        [
            "check",
            "-q",
            "-r",
            "all",
            "-f",
            "vhdx",
            theirs.to_str().unwrap(),
        ],
    )
    .unwrap();
    let before = ours(&mine);
    open(&mine, true).close().unwrap();
    assert_eq!(ours(&mine), before);
    assert_eq!(ours(&theirs), before);
    qemu_io(&mine, Format::Vhdx, &["read -P 0xa5 0 18M".into()]).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn the_first_entry_of_the_bat_changes_nothing_behind_it() {
    if !require(has_qemu(), "qemu-io is not installed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first.vhdx");
    make(
        &path,
        Format::Vhdx,
        DiskType::Dynamic,
        64 * MIB,
        Some(8 * MIB),
        None,
        None,
    );
    fill(&path, &[GuestOp::write(32 * MIB, 4096, 1)]);
    fill(&path, &[GuestOp::write(0, 4096, 1)]);
    let commands = ["read -P 0xff 32M 4k", "read -P 0xff 0 4k"].map(str::to_owned);
    qemu_io(&path, Format::Vhdx, &commands).unwrap_or_else(|e| panic!("{e}"));
    run("qemu-img", ["check", "-f", "vhdx", path.to_str().unwrap()]).unwrap();
}

/// QEMU's test 072: an image inside an image is data. Only the outer one is opened, also when the inner one begins at
/// the first byte of a fixed disk.
#[test]
fn an_image_inside_an_image_is_data() {
    let folder = tempfile::tempdir().unwrap();
    for inner_format in [Format::Vhd, Format::Vhdx] {
        let inner = folder.path().join(format!("inner.{}", inner_format.name()));
        make(
            &inner,
            inner_format,
            DiskType::Dynamic,
            8 * MIB,
            None,
            None,
            None,
        );
        fill(&inner, &[GuestOp::write(0, 4096, 9)]);
        let bytes = std::fs::read(&inner).unwrap();
        for (format, disk_type) in [
            (Format::Vhd, DiskType::Fixed),
            (Format::Vhd, DiskType::Dynamic),
            (Format::Vhdx, DiskType::Dynamic),
        ] {
            let outer = folder.path().join(format!(
                "{}-in-{}-{}",
                inner_format.name(),
                format.name(),
                disk_type.name()
            ));
            make(&outer, format, disk_type, 16 * MIB, None, None, None);
            let disk = open(&outer, true);
            disk.write_at(0, &bytes).unwrap();
            disk.close().unwrap();
            let disk = open(&outer, false);
            assert_eq!(disk.info().format, format);
            assert_eq!(disk.virtual_size(), 16 * MIB);
            let mut seen = vec![0; bytes.len()];
            disk.read_at(0, &mut seen).unwrap();
            assert!(seen == bytes);
        }
    }
}

/// QEMU's tests 104, 226: odd sizes are refused in words; folders, pipes and empty files are not disks.
#[test]
fn what_is_not_a_disk_file_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let error = VirtualDisk::open(folder.path()).err().expect("a folder");
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    let pipe = folder.path().join("pipe");
    run("mkfifo", [&pipe]).unwrap();
    let error = VirtualDisk::open(&pipe).err().expect("a pipe");
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    let error = VirtualDisk::open(Path::new("/dev/null"))
        .err()
        .expect("a character device");
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    let error = VirtualDisk::open(folder.path().join("nothing"))
        .err()
        .expect("no file");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// QEMU's test 105: a disk of 16 TiB in a sparse file.
#[test]
fn qemu_reads_our_disk_of_16_tib() {
    const TIB: u64 = 1 << 40;
    if !require(has_qemu(), "qemu-io is not installed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhdx");
    make(
        &path,
        Format::Vhdx,
        DiskType::Dynamic,
        16 * TIB,
        None,
        None,
        None,
    );
    fill(
        &path,
        &[
            GuestOp::write(0, 4096, 1),
            GuestOp::write(14 * TIB + 512, 4096, 1),
            GuestOp::write(16 * TIB - 512, 512, 1),
        ],
    );
    let commands = [
        format!("read -P 0xff {} 4096", 14 * TIB + 512),
        format!("read -P 0xff {} 512", 16 * TIB - 512),
        "read -P 0xff 0 4096".into(),
        format!("read -P 0 {} 512", 14 * TIB),
    ];
    qemu_io(&path, Format::Vhdx, &commands).unwrap_or_else(|e| panic!("{e}"));
}

/// QEMU's test 146 the other way round: QEMU gives our VHD its exact size, whatever the geometry can say.
#[test]
fn qemu_gives_our_vhd_its_exact_size() {
    if !require(has_qemu(), "qemu-img is not installed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (i, size) in [
        3 * MIB,
        5 * MIB + 512,
        100 * MIB,
        127 * GIB + 512,
        2040 * GIB,
    ]
    .into_iter()
    .enumerate()
    {
        for disk_type in [DiskType::Dynamic, DiskType::Fixed] {
            if disk_type == DiskType::Fixed && size > GIB {
                continue;
            }
            let path = folder.path().join(format!("{i}-{}.vhd", disk_type.name()));
            make(&path, Format::Vhd, disk_type, size, None, None, None);
            let info = run(
                "qemu-img",
                ["info", "-f", "vpc", "--output=json", path.to_str().unwrap()],
            )
            .unwrap();
            assert!(
                info.contains(&format!("\"virtual-size\": {size}")),
                "{size} {disk_type:?}: {info}"
            );
            let file: Arc<dyn Storage> =
                Arc::new(FileStorage::open(&path, Access::ReadOnly).unwrap());
            assert_clean(&file, "new");
        }
    }
}

/// QEMU's tests 213 and 266: what QEMU makes with unusual parameters opens here.
#[test]
fn we_open_what_qemu_makes_with_unusual_parameters() {
    if !require(has_qemu(), "qemu-img is not installed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made");
    for (format, options, size, expected) in [
        (
            Format::Vhdx,
            "log_size=8M,block_size=256M",
            "100M",
            Some(100 * MIB),
        ),
        (
            Format::Vhdx,
            "log_size=2M,block_size=1M,subformat=fixed",
            "10M",
            Some(10 * MIB),
        ),
        (Format::Vhdx, "block_state_zero=off", "64T", Some(64 << 40)),
        (Format::Vhdx, "block_size=8M", "1234", None),
        (Format::Vhd, "subformat=dynamic", "1234", None),
        (
            Format::Vhd,
            "subformat=dynamic,force_size=on",
            "2040G",
            Some(2040 * GIB),
        ),
        (Format::Vhd, "subformat=fixed", "10M", None),
    ] {
        let file = path.to_str().unwrap();
        run(
            "qemu-img",
            [
                "create",
                "-q",
                "-f",
                qemu_format(format),
                "-o",
                options,
                file,
                size,
            ],
        )
        .unwrap_or_else(|e| panic!("{e}"));
        let disk = open(&path, true);
        if let Some(expected) = expected {
            assert_eq!(disk.virtual_size(), expected, "{options}");
        }
        let last = disk.virtual_size() - 512;
        disk.write_at(last, &[0xff; 512]).unwrap();
        disk.close().unwrap();
        let read = format!("read -P 0xff {last} 512");
        qemu_io(&path, format, &[read]).unwrap_or_else(|e| panic!("{options}: {e}"));
        std::fs::remove_file(&path).unwrap();
    }
}
