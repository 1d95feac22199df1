//! `kill -9` and power cuts at any moment: the disks are whole, nothing is left lying about, and the command can be run
//! again.
//!
//! `VHDKIT_KILLS` and `VHDKIT_POWER_CUTS` are the numbers of runs, `VHDKIT_SEED` is where their moments come from.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use vhdkit_testkit::hash::sha256;
use vhdkit_testkit::power::Volume;
use vhdkit_testkit::rng::Rng;

use crate::published::Place;
use crate::support::{Folder, Ran};

const ITEM: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

/// What is read of a disk that may be a thousand times larger.
const SHOWN: &str = "--length 40M";

/// Runs that were over when they should have been ended are tried again with less time.
const TRIES: u32 = 4;

/// A command and what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    Compact,
    Grow,
    Shrink,
    Merge,
    MergeAndDelete,
    Mirror,
    Convert,
    SetParent,
    Metadata,
}

use Job::*;

const CASES: [(Job, &str); 16] = [
    (Compact, "vhd"),
    (Compact, "vhdx"),
    (Grow, "vhd"),
    (Grow, "vhdx"),
    (Shrink, "vhdx"),
    (Merge, "vhd"),
    (Merge, "vhdx"),
    (MergeAndDelete, "vhd"),
    (MergeAndDelete, "vhdx"),
    (Mirror, "vhd"),
    (Mirror, "vhdx"),
    (Convert, "vhd"),
    (Convert, "vhdx"),
    (SetParent, "vhd"),
    (SetParent, "vhdx"),
    (Metadata, "vhdx"),
];

/// One command on one set of files, which it finds anew for every run.
struct Case {
    job: Job,
    extension: &'static str,
    place: Place,
    /// The files, kept as they are.
    files: tempfile::TempDir,
    words: String,
    /// The leaf of the chain, and how it is opened.
    leaf: String,
    opened: String,
    /// What the leaf reads.
    content: String,
    /// How long an undisturbed run takes.
    length: Duration,
}

impl Case {
    fn new(job: Job, extension: &'static str, place: Place) -> Self {
        let folder = &place.folder;
        let [base, child, leaf] =
            ["base", "child", "leaf"].map(|name| format!("{name}.{extension}"));
        let small = if extension == "vhdx" {
            "--block-size 1M"
        } else {
            ""
        };
        folder.fill("data", 4 << 20);
        std::fs::write(folder.path("zeros"), vec![0; 2 << 20]).unwrap();
        folder.ok(&format!("create {base} 48M {small}"));
        for at in ["1M", "13M", "31M"] {
            folder.put(&base, at, "data");
        }
        let alone = match job {
            Compact => {
                folder.put(&base, "2M", "zeros");
                folder.put(&base, "14M", "zeros");
                true
            }
            Grow | Shrink => true,
            _ => {
                folder.ok(&format!("create {child} --parent {base} {small}"));
                folder.put(&child, "10M", "data");
                folder.put(&child, "33M", "zeros");
                folder.ok(&format!("create {leaf} --parent {child} {small}"));
                folder.put(&leaf, "20M", "data");
                folder.put(&leaf, "12M", "zeros");
                false
            }
        };
        for name in ["data", "zeros"] {
            std::fs::remove_file(folder.path(name)).unwrap();
        }
        let leaf = if alone { base.clone() } else { leaf };
        let content = shown(&place, &leaf, "");
        let (mut leaf, mut opened) = (leaf, String::new());
        let words = match job {
            Compact => format!("compact {leaf}"),
            Grow if extension == "vhd" => format!("expand {leaf} 200G"),
            Grow => format!("expand {leaf} 400G"),
            Shrink => format!("resize {leaf} 40M"),
            Merge => format!("merge {leaf} --all"),
            MergeAndDelete => format!("merge {leaf} --all --delete-merged"),
            Mirror => format!("mirror {leaf} new.{extension}"),
            Convert => format!("convert {leaf} new.{extension}"),
            SetParent => {
                std::fs::rename(folder.path(&base), folder.path("moved")).unwrap();
                opened = "--parent moved".into();
                leaf = child;
                format!("set-parent {leaf} moved")
            }
            Metadata => {
                folder.fill("item", 300_000);
                let ran = folder.run_with_input(&format!("metadata set {leaf} {ITEM}"), "item");
                assert_eq!(ran.code, Some(0), "{ran:?}");
                folder.fill("item", 500_000);
                format!("metadata set {leaf} {ITEM}")
            }
        };
        let content = if job == SetParent {
            std::fs::remove_file(folder.path(&format!("leaf.{extension}"))).unwrap();
            shown(&place, &leaf, &opened)
        } else {
            content
        };
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        copy_files(&folder.path("."), files.path());
        let mut case = Self {
            job,
            extension,
            place,
            files,
            words,
            leaf,
            opened,
            content,
            length: Duration::ZERO,
        };
        let started = Instant::now();
        assert!(case.start().wait().unwrap().success(), "{}", case.words);
        case.length = started.elapsed();
        case.is_done();
        case
    }

    fn start(&self) -> Child {
        let mut command = self.place.command(&self.words);
        if self.job == Metadata {
            let input = std::fs::File::open(self.place.folder.path("item")).unwrap();
            command.stdin(input);
        }
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Ends the command after a while. True if it was still at work.
    fn run(&self, delay: Duration, end: &End<'_>) -> bool {
        for name in self.place.folder.names() {
            std::fs::remove_file(self.place.folder.path(&name)).unwrap();
        }
        copy_files(self.files.path(), &self.place.folder.path("."));
        if let End::PowerCut(volume) = end {
            volume.sync();
        }
        let mut child = self.start();
        std::thread::sleep(delay);
        let (was_at_work, succeeded) = end.bring(&mut child);
        self.is_whole();
        if succeeded {
            self.is_done();
        }
        assert_eq!(self.place.json("progress --json"), json!([]));
        assert_eq!(self.place.entries(), 0);
        // A copy that is complete is in the way of another one.
        let _ = std::fs::remove_file(self.place.folder.path(&self.target()));
        if self.job != MergeAndDelete || self.place.folder.path(&self.leaf).exists() {
            assert!(self.start().wait().unwrap().success(), "once more");
        }
        self.is_done();
        was_at_work
    }

    fn target(&self) -> String {
        format!("new.{}", self.extension)
    }

    /// After a kill: as before, or as afterwards.
    fn is_whole(&self) {
        let folder = &self.place.folder;
        let before = names(self.files.path());
        let (leaf, opened) = (&self.leaf, &self.opened);
        let mut found = folder.names();
        if matches!(self.job, Mirror | Convert) && found.contains(&self.target()) {
            folder.ok(&format!("compare {leaf} {}", self.target()));
            folder.sound(&self.target());
            found.retain(|name| *name != self.target());
        }
        if self.job == MergeAndDelete {
            if found.contains(leaf) {
                // What is to be deleted, for the next run.
                found.retain(|name| *name != format!("{leaf}.vhdkit-merged"));
            }
            assert!(found.iter().all(|name| before.contains(name)), "{found:?}");
            if !found.contains(leaf) {
                return self.is_done();
            }
        } else {
            assert_eq!(found, before);
        }
        folder.ok(&format!("check --chain {leaf} {opened}"));
        assert_eq!(shown(&self.place, leaf, opened), self.content);
        let size = folder.json(&format!("info {leaf} {opened} --json"))["virtual_size"].clone();
        match self.job {
            Grow => assert!(size == 48 << 20 || size == self.grown(), "{size}"),
            Shrink => assert!(size == 48 << 20 || size == 40 << 20, "{size}"),
            Metadata => {
                let ran = folder.json(&format!("metadata list {leaf} --json"));
                let length = &ran[0]["length"];
                assert!(*length == 300_000 || *length == 500_000, "{ran}");
                let words = format!("metadata get {leaf} {ITEM}");
                let value = folder.command(&words).output().unwrap().stdout;
                let new = std::fs::read(folder.path("item")).unwrap();
                assert_eq!(value, new[..value.len()]);
            }
            _ => assert_eq!(size, 48 << 20),
        }
    }

    fn grown(&self) -> u64 {
        let size = if self.extension == "vhd" { 200 } else { 400 };
        size << 30
    }

    /// After a run that was not disturbed.
    fn is_done(&self) {
        let folder = &self.place.folder;
        let mut expected = names(self.files.path());
        let mut leaf = self.leaf.clone();
        match self.job {
            Mirror | Convert => {
                expected.push(self.target());
                expected.sort();
                folder.ok(&format!("compare {leaf} {}", self.target()));
                folder.sound(&self.target());
            }
            Merge | MergeAndDelete => {
                let base = format!("base.{}", self.extension);
                assert_eq!(shown(&self.place, &base, ""), self.content);
                if self.job == MergeAndDelete {
                    expected = vec![base.clone()];
                    leaf = base;
                }
            }
            _ => {}
        }
        assert_eq!(folder.names(), expected);
        folder.sound(&leaf);
        assert_eq!(shown(&self.place, &leaf, ""), self.content);
        let size = &folder.json(&format!("info {leaf} --json"))["virtual_size"];
        match self.job {
            Grow => assert_eq!(*size, self.grown()),
            Shrink => assert_eq!(*size, 40 << 20),
            Metadata => {
                let words = format!("metadata get {leaf} {ITEM}");
                let value = folder.command(&words).output().unwrap().stdout;
                assert!(value == std::fs::read(folder.path("item")).unwrap());
            }
            _ => {}
        }
    }
}

fn shown(place: &Place, disk: &str, opened: &str) -> String {
    let words = format!("read {disk} {SHOWN} {opened}");
    let output = place.folder.command(&words).output().unwrap();
    assert!(output.status.success(), "{disk}: {:?}", Ran::of(&output));
    sha256(&output.stdout)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// With their times: a child of a VHD may look at its parent's.
fn copy_files(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status()
        .unwrap();
    assert!(done.success());
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// How a command ends.
enum End<'a> {
    Kill,
    /// The file system goes away under it.
    PowerCut(&'a Volume),
}

impl End<'_> {
    /// Whether the command was still at work, and whether it said that all went well.
    fn bring(&self, child: &mut Child) -> (bool, bool) {
        match self {
            End::Kill => {
                child.kill().unwrap();
                let code = child.wait().unwrap().code();
                (code.is_none(), code == Some(0))
            }
            End::PowerCut(volume) => {
                let ended = child.try_wait().unwrap();
                volume.cut();
                // It ends by itself. What it says then, nobody would have heard.
                let code = child.wait().unwrap().code();
                assert!(matches!(code, Some(0 | 1)), "{code:?}");
                volume.restore();
                (
                    ended.is_none(),
                    ended.is_some_and(|status| status.success()),
                )
            }
        }
    }
}

/// Ends each kind of command at random moments.
fn run_all(runs: u64, place: impl Fn() -> Place, end: &End<'_>) {
    let seed = number("VHDKIT_SEED", 1);
    let mut rng = Rng::new(seed);
    let mut at_work = 0;
    for (i, (job, extension)) in (0..).zip(CASES) {
        let of_this = (0..runs).filter(|run| run % 16 == i).count();
        if of_this == 0 {
            continue;
        }
        let case = Case::new(job, extension, place());
        let length = u64::try_from(case.length.as_micros()).unwrap();
        let mut ended = 0;
        for _ in 0..of_this {
            let mut delay = Duration::from_micros(rng.below(length + length / 10));
            let was_at_work = (0..TRIES).any(|_| {
                println!("{job:?} {extension}: seed {seed}, ended after {delay:?} of {length} us");
                let was_at_work = case.run(delay, end);
                // If not, it took less time than the first one.
                delay /= 2;
                was_at_work
            });
            ended += u32::from(was_at_work);
        }
        println!("{job:?} {extension}: {ended} of {of_this} were at work");
        at_work += ended;
    }
    println!("{at_work} of {runs} were at work");
    assert!(
        u64::from(at_work) > runs / 4,
        "most were always done before"
    );
}

#[test]
fn a_killed_command_leaves_whole_disks() {
    run_all(number("VHDKIT_KILLS", 32), Place::new, &End::Kill);
}

#[test]
fn a_power_cut_leaves_whole_disks() {
    let runs = number("VHDKIT_POWER_CUTS", 32);
    for kind in ["xfs", "ext4"] {
        let Some(volume) = Volume::new(kind, 1024, Path::new(env!("CARGO_TARGET_TMPDIR"))) else {
            return;
        };
        println!("{kind}");
        let place = || Place::with(Folder::new_in(&volume.root()));
        run_all(runs / 2, place, &End::PowerCut(&volume));
    }
}
