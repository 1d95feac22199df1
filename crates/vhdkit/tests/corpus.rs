//! Every real image reads as independent readers say, or fails as it should; looking at an image never changes it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::path::Path;
use std::sync::Arc;

use vhdkit::disk::{OpenOptions, Parents};
use vhdkit::image::{DiskType, Format, IdentifierSource, Severity};
use vhdkit::storage::{Access, FileStorage, Storage};
use vhdkit::verbs::check::check_file;
use vhdkit::verbs::compact::{CompactOptions, compact};
use vhdkit::verbs::compare::compare;
use vhdkit::verbs::convert::{ConvertOptions, convert};
use vhdkit::verbs::merge::{MergeOptions, merge};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, resize};
use vhdkit::{Error, ErrorKind, VirtualDisk};
use vhdkit_testkit::corpus::{Corpus, CorpusImage, Expect, sha256_of_file};
use vhdkit_testkit::hash::{content_of_disk, content_of_storage, full_sha256};
use vhdkit_testkit::peers;
use vhdkit_testkit::require::skip_optional;

/// Hashing every byte of larger disks takes too long; their data is hashed by the extents.
const FULLY_HASHED: u64 = 300 << 20;

fn readable(corpus: &Corpus) -> impl Iterator<Item = &CorpusImage> {
    corpus.images().iter().filter(|i| {
        matches!(
            i.expect,
            Expect::Open | Expect::OpenWithParent | Expect::OpenAfterLogReplay
        )
    })
}

fn open(path: &Path) -> VirtualDisk {
    VirtualDisk::open(path).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_image_reads_to_the_recorded_hash_and_is_not_touched() {
    let corpus = Corpus::open();
    for image in readable(&corpus) {
        let (_folder, path) = corpus.copy(image);
        let disk = open(&path);
        let info = disk.info();
        assert_eq!(info.format.name(), image.format, "{}", image.name);
        assert_eq!(
            Some(disk.virtual_size()),
            image.content_size,
            "{}",
            image.name
        );
        if image.format != "iso" {
            assert_eq!(info.disk_type.name(), image.variant, "{}", image.name);
        }
        assert_eq!(
            Some(info.logical_sector_size),
            image.logical_sector,
            "{}",
            image.name
        );
        assert_eq!(
            Some(info.physical_sector_size),
            image.physical_sector,
            "{}",
            image.name
        );
        if let Some(block_size) = image.block_size {
            assert_eq!(info.block_size, Some(block_size), "{}", image.name);
        }
        if let Some(expected) = &image.content_nz_sha256 {
            let content = content_of_disk(&disk).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(
                &content.nz_sha256, expected,
                "{}: by its extents",
                image.name
            );
        }
        if disk.virtual_size() <= FULLY_HASHED {
            let hash = full_sha256(&disk).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(Some(&hash), image.content_sha256.as_ref(), "{}", image.name);
        }
        let replayed = image.expect == Expect::OpenAfterLogReplay;
        assert_eq!(disk.info().log_replayed, replayed, "{}", image.name);
        drop(disk);
        check_file(&path).unwrap();
        assert_eq!(
            sha256_of_file(&path),
            image.image_sha256,
            "{}: looking at it changed it",
            image.name
        );
    }
}

#[test]
fn every_image_converts_to_the_recorded_bytes() {
    let corpus = Corpus::open();
    for image in readable(&corpus) {
        let (folder, path) = corpus.copy(image);
        let target = folder.path().join("out.raw");
        let options = ConvertOptions {
            source: path,
            open: OpenOptions::new(),
            target: target.clone(),
            format: Format::Raw,
            disk_type: DiskType::Dynamic,
            virtual_size: None,
            profile: None,
            block_size: None,
            logical_sector_size: None,
            physical_sector_size: None,
            identifier: None,
            identifiers: IdentifierSource::random(),
            created: 0,
            overwrite: false,
        };
        convert(options)
            .wait()
            .unwrap_or_else(|e| panic!("{}: {e}", image.name));
        let raw = FileStorage::open(&target, Access::ReadOnly).unwrap();
        assert_eq!(
            Some(raw.len().unwrap()),
            image.content_size,
            "{}",
            image.name
        );
        if let Some(expected) = &image.content_nz_sha256 {
            assert_eq!(
                &content_of_storage(&raw).unwrap().nz_sha256,
                expected,
                "{}",
                image.name
            );
        }
        if raw.len().unwrap() <= FULLY_HASHED {
            assert_eq!(
                Some(sha256_of_file(&target)),
                image.content_sha256,
                "{}",
                image.name
            );
        }
    }
}

#[test]
fn damaged_images_are_refused_in_words_and_left_alone() {
    let corpus = Corpus::open();
    for image in corpus.images() {
        if image.expect != Expect::Reject {
            continue;
        }
        let (_folder, path) = corpus.copy(image);
        for writable in [false, true] {
            let error = OpenOptions::new()
                .writable(writable)
                .open(&path)
                .err()
                .unwrap_or_else(|| panic!("{} opens", image.name));
            says_what(&error, &path);
        }
        let worst = check_file(&path).unwrap().iter().map(|f| f.severity).max();
        assert!(worst >= Some(Severity::Error), "{}: {worst:?}", image.name);
        assert_eq!(sha256_of_file(&path), image.image_sha256, "{}", image.name);
    }
}

/// An error names the file and a kind that is about files, and has a reason.
fn says_what(error: &Error, path: &Path) {
    assert_eq!(error.path(), Some(path), "{error:?}");
    assert!(error.reason().len() > 10, "{error:?}");
    assert!(
        !matches!(
            error.kind(),
            ErrorKind::Io | ErrorKind::ReadFault | ErrorKind::OutOfMemory
        ),
        "{error:?}"
    );
}

#[test]
fn a_child_without_its_parent_can_be_looked_at_but_not_read() {
    let corpus = Corpus::open();
    let missing: Vec<_> = corpus
        .images()
        .iter()
        .filter(|i| i.expect == Expect::ParentMissing)
        .collect();
    if missing.is_empty() {
        skip_optional("no image whose parent is missing in the shipped collection");
        return;
    }
    for image in missing {
        let (_folder, path) = corpus.copy(image);
        let error = VirtualDisk::open(&path).err().expect("no parent, no disk");
        assert_eq!(error.kind(), ErrorKind::ParentNotFound, "{error}");
        assert!(error.hint().is_some());
        let alone = OpenOptions::new()
            .parents(Parents::Ignored)
            .open(&path)
            .unwrap_or_else(|e| panic!("{e}"));
        let info = alone.info();
        assert_eq!(info.disk_type, DiskType::Differencing);
        let parent = info.parent.expect("it says who its parent is");
        assert!(!parent.paths.is_empty() && !parent.identifiers.is_empty());
        content_of_disk(&alone).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(sha256_of_file(&path), image.image_sha256, "{}", image.name);
    }
}

#[test]
fn an_iso_that_ends_within_a_sector_is_rounded_up_with_zeros() {
    let corpus = Corpus::open();
    let Some(image) = corpus.find("iso/malformed.iso") else {
        skip_optional("iso/malformed.iso is not in the shipped collection");
        return;
    };
    let (_folder, path) = corpus.copy(image);
    // Its descriptor has no valid version, so that by its content it is not an ISO: the user says so.
    open(&path);
    let disk = OpenOptions::new()
        .format(Format::Iso)
        .open(&path)
        .unwrap_or_else(|e| panic!("{e}"));
    let length = image.content_size.unwrap();
    assert_eq!(disk.virtual_size(), length.next_multiple_of(2048));
    let mut bytes = vec![1; usize::try_from(disk.virtual_size()).unwrap()];
    disk.read_at(0, &mut bytes).unwrap();
    let (inside, past) = bytes.split_at(usize::try_from(length).unwrap());
    assert_eq!(
        vhdkit_testkit::hash::sha256(inside),
        *image.content_sha256.as_ref().unwrap()
    );
    assert!(past.iter().all(|&b| b == 0));
}

#[test]
fn t11_a_dirty_log_reads_the_same_read_only_and_replayed() {
    let corpus = Corpus::open();
    let dirty: Vec<_> = corpus
        .images()
        .iter()
        .filter(|i| i.expect == Expect::OpenAfterLogReplay)
        .collect();
    if dirty.is_empty() {
        skip_optional("no dirty log in the shipped collection");
        return;
    }
    for image in dirty {
        let (_folder, path) = corpus.copy(image);
        let before = content_of_disk(&open(&path)).unwrap();
        assert_eq!(Some(&before.nz_sha256), image.content_nz_sha256.as_ref());
        assert_eq!(
            sha256_of_file(&path),
            image.image_sha256,
            "read-only wrote to it"
        );
        OpenOptions::new()
            .writable(true)
            .open(&path)
            .and_then(VirtualDisk::close)
            .unwrap_or_else(|e| panic!("{e}"));
        let clean = open(&path);
        assert!(
            !clean.info().log_replayed,
            "the log was emptied by the writable open"
        );
        assert_eq!(content_of_disk(&clean).unwrap(), before);
        drop(clean);
        let file: Arc<dyn Storage> = Arc::new(FileStorage::open(&path, Access::ReadOnly).unwrap());
        vhdkit_testkit::history::assert_clean(&file, &image.name);
    }
}

/// Writing to a real image changes what was written and nothing else.
#[test]
fn writing_to_a_real_image_moves_nothing_else() {
    let corpus = Corpus::open();
    for image in readable(&corpus).filter(|i| i.format != "iso") {
        let (_folder, path) = corpus.copy(image);
        let disk = OpenOptions::new()
            .writable(true)
            .open(&path)
            .unwrap_or_else(|e| panic!("{e}"));
        let size = disk.virtual_size();
        let mut places = vec![0, size / 2 / 512 * 512, size - 512];
        places.dedup();
        let mut before = Vec::new();
        for &at in &places {
            let mut sector = vec![0; 512];
            disk.read_at(at, &mut sector).unwrap();
            before.push(sector);
            disk.write_at(at, &[0xc3; 512])
                .unwrap_or_else(|e| panic!("{}: {e}", image.name));
        }
        disk.close()
            .unwrap_or_else(|e| panic!("{}: {e}", image.name));
        let changed = open(&path);
        for &at in &places {
            let mut sector = vec![0; 512];
            changed.read_at(at, &mut sector).unwrap();
            assert_eq!(sector, [0xc3; 512], "{}", image.name);
        }
        drop(changed);
        let disk = OpenOptions::new()
            .writable(true)
            .open(&path)
            .unwrap_or_else(|e| panic!("{e}"));
        for (&at, sector) in places.iter().zip(&before) {
            disk.write_at(at, sector)
                .unwrap_or_else(|e| panic!("{}: {e}", image.name));
        }
        disk.close()
            .unwrap_or_else(|e| panic!("{}: {e}", image.name));
        if let Some(expected) = &image.content_nz_sha256 {
            assert_eq!(
                &content_of_disk(&open(&path)).unwrap().nz_sha256,
                expected,
                "{}",
                image.name
            );
        }
    }
}

/// Compacting, growing and shrinking back leaves what a real image reads, and what others read of it; a merge makes
/// its parent read like it.
#[test]
fn real_images_go_through_every_operation_and_read_the_same() {
    let corpus = Corpus::open();
    for image in readable(&corpus).filter(|i| i.format != "iso") {
        let Some(expected) = &image.content_nz_sha256 else {
            continue;
        };
        let (_folder, path) = corpus.copy(image);
        let name = &image.name;
        let worst_finding = || check_file(&path).unwrap().iter().map(|f| f.severity).max();
        // What another program left is no reason to add to it.
        let before = worst_finding().max(Some(Severity::Info));
        let same = |when: &str| {
            let hash = content_of_disk(&open(&path)).unwrap().nz_sha256;
            assert_eq!(&hash, expected, "{name} {when}");
            let worst = worst_finding();
            assert!(worst <= before, "{name} {when}: {worst:?}");
        };
        let with = |work: &dyn Fn(&Arc<VirtualDisk>) -> vhdkit::Result<()>| {
            let disk = Arc::new(
                OpenOptions::new()
                    .writable(true)
                    .open(&path)
                    .unwrap_or_else(|e| panic!("{e}")),
            );
            let result = work(&disk);
            Arc::into_inner(disk)
                .unwrap()
                .close()
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            result
        };
        let info = open(&path).info();
        let id = info.link_identifier;
        let compacted = with(&|disk| {
            let before = disk.info().file_size;
            let report = compact(disk.clone(), CompactOptions::default()).wait()?;
            assert!(report.size_after <= before, "{name}: compaction grew it");
            Ok(())
        });
        match compacted {
            Ok(()) => {
                same("compacted");
                assert_eq!(open(&path).info().link_identifier, id, "{name}: identity");
                if info.format == Format::Vhd {
                    // Growing it would change what there is to read.
                    in_the_eyes_of_others(&path, image, expected);
                }
            }
            Err(e) => assert_eq!(e.kind(), ErrorKind::InvalidType, "{name}: {e}"),
        }
        let resizing = |size: u64| {
            with(&|disk| {
                let options = ResizeOptions {
                    size: NewSize::Bytes(size),
                    allow_unsafe: true,
                    fix_gpt: false,
                    expand_only: false,
                    dry_run: false,
                };
                resize(disk.clone(), options).wait().map(drop)
            })
        };
        let size = info.virtual_size;
        match resizing(size + (9 << 20)) {
            Ok(()) => {
                assert_eq!(open(&path).virtual_size(), size + (9 << 20));
                match resizing(size) {
                    Ok(()) => {
                        same("grown and shrunk");
                        in_the_eyes_of_others(&path, image, expected);
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::InvalidType, "{name}: {e}");
                        // A VHD stays larger: what it has more is zeros.
                        let (_folder, original) = corpus.copy(image);
                        let same = compare(open(&original), open(&path)).wait().unwrap();
                        assert_eq!(same.first_difference, None, "{name}");
                    }
                }
            }
            Err(e) => assert!(
                matches!(e.kind(), ErrorKind::InvalidType | ErrorKind::InvalidSize),
                "{name}: {e}"
            ),
        }
        if info.disk_type == DiskType::Differencing {
            let disk = Arc::new(OpenOptions::new().write_depth(2).open(&path).unwrap());
            let parent = disk.layers()[1].path.clone();
            let options = MergeOptions {
                source_depth: 1,
                target_depth: 2,
                delete_merged: true,
                open: OpenOptions::new(),
                dry_run: false,
            };
            let report = merge(disk, options)
                .wait()
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(
                report.deleted.as_slice(),
                std::slice::from_ref(&path),
                "{name}"
            );
            let merged = open(&parent);
            let hash = content_of_disk(&merged).unwrap().nz_sha256;
            assert_eq!(&hash, expected, "{name}: merged into its parent");
        }
    }
}

/// Others read it too, each where it can be trusted.
fn in_the_eyes_of_others(path: &Path, image: &CorpusImage, expected: &str) {
    let size = image.content_size.unwrap_or(0);
    if image.variant == "differencing" || image.logical_sector != Some(512) || size > FULLY_HASHED {
        return;
    }
    let format = if image.format == "vhd" {
        Format::Vhd
    } else {
        Format::Vhdx
    };
    let folder = tempfile::tempdir().unwrap();
    let copy = || {
        let copy = folder.path().join("copy");
        std::fs::copy(path, &copy).unwrap();
        copy
    };
    let mut read = Vec::new();
    if peers::has_qemu() {
        read.push(("QEMU", peers::read_with_qemu(&copy(), format)));
    }
    if peers::has_seven_zip() && image.variant == "dynamic" {
        read.push(("7-Zip", peers::read_with_seven_zip(&copy(), format)));
    }
    if peers::has_libvhdi() {
        read.push(("libvhdi", peers::read_with_libvhdi(&[copy()])));
    }
    for (who, content) in read {
        match content {
            Ok(content) => assert_eq!(&content.nz_sha256, expected, "{} read by {who}", image.name),
            Err(e) => panic!("{}: {who}: {e}", image.name),
        }
    }
}
