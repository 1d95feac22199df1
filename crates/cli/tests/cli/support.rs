//! A folder to work in, and ways to run the command there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use vhdkit_testkit::hash::sha256;
use vhdkit_testkit::require::require;

/// A folder of its own for a test, gone afterwards.
pub(crate) struct Folder(tempfile::TempDir);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// What is mounted in a folder, until this is dropped.
struct Mounts<'a>(&'a Folder);

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        let script =
            r#"tac /proc/self/mountinfo | cut -d " " -f 5 | grep -F "$PWD/" | xargs -r umount -l"#;
        self.0.bash(&["bash"], script);
    }
}

impl Folder {
    pub(crate) fn new() -> Self {
        // On the disk of the build, not in a memory file system: unnamed files, holes and locks are then the usual ones.
        Self::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    pub(crate) fn new_in(place: &Path) -> Self {
        Self(tempfile::tempdir_in(place).unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of everything in it, hidden or not.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The command in this folder, its arguments separated by spaces.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhdkit"));
        command
            .args(words.split(' ').filter(|w| !w.is_empty()))
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &str) -> Ran {
        Ran::of(&self.command(words).output().unwrap())
    }

    /// Runs it and expects success; the result is what it wrote.
    pub(crate) fn ok(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, Some(0), "{words}: {ran:?}");
        ran.out
    }

    /// Runs it with a file as standard input.
    pub(crate) fn run_with_input(&self, words: &str, input: &str) -> Ran {
        let file = std::fs::File::open(self.path(input)).unwrap();
        Ran::of(&self.command(words).stdin(file).output().unwrap())
    }

    /// Runs it and parses what it wrote.
    pub(crate) fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap_or_else(|e| panic!("{words}: {e}"))
    }

    /// Runs a shell script in this folder; `$V` is the command.
    pub(crate) fn shell(&self, script: &str) -> Ran {
        Ran::of(&self.bash(&["bash"], script))
    }

    /// As [`Folder::shell`], but it is not waited for; what it writes can be read.
    pub(crate) fn shell_child(&self, script: &str) -> Child {
        Command::new("bash")
            .arg("-c")
            .arg(script)
            .current_dir(self.0.path())
            .env("V", env!("CARGO_BIN_EXE_vhdkit"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// As [`Folder::shell`], where the script may mount file systems in the folder, which are taken away at its end. `None`
    /// if the system does not let us, which is an error where all tests must run.
    ///
    /// Only who isn't root has a mount namespace for it: a namespace has copies of all mounts, and they keep busy what
    /// other tests unmount.
    pub(crate) fn shell_with_mounts(&self, script: &str) -> Option<Ran> {
        for start in [&["bash"][..], &["unshare", "-r", "-m", "bash"]] {
            let _mounts = Mounts(self);
            if self
                .bash(start, "mkdir -p probe; mount -t tmpfs none probe")
                .status
                .success()
            {
                return Some(Ran::of(&self.bash(start, script)));
            }
        }
        require(
            false,
            "needs root or user namespaces to mount a file system",
        );
        None
    }

    fn bash(&self, start: &[&str], script: &str) -> Output {
        Command::new(start[0])
            .args(&start[1..])
            .arg("-c")
            .arg(script)
            .current_dir(self.0.path())
            .env("V", env!("CARGO_BIN_EXE_vhdkit"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a disk reads, as a hash.
    pub(crate) fn content(&self, disk: &str) -> String {
        let output = self.command(&format!("read {disk}")).output().unwrap();
        assert!(output.status.success(), "{disk}: {:?}", Ran::of(&output));
        sha256(&output.stdout)
    }

    /// All files with the hashes of their bytes.
    pub(crate) fn files(&self) -> Vec<(String, String)> {
        let hash = |name: &String| sha256(&std::fs::read(self.path(name)).unwrap());
        self.names()
            .into_iter()
            .map(|name| (name.clone(), hash(&name)))
            .collect()
    }

    /// Writes a file's bytes to a disk.
    pub(crate) fn put(&self, disk: &str, offset: &str, input: &str) {
        let ran = self.run_with_input(&format!("write {disk} --offset {offset}"), input);
        assert_eq!(ran.code, Some(0), "{disk}: {ran:?}");
    }

    /// Expects that nothing is wrong with a disk and its parents.
    pub(crate) fn sound(&self, disk: &str) {
        self.ok(&format!("check --chain {disk}"));
    }

    /// Makes a file of bytes that are never zero and that no two blocks have in common.
    pub(crate) fn fill(&self, name: &str, length: usize) {
        let mut state = 1_u64;
        let mut bytes = vec![0; length];
        for word in bytes.chunks_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            for (byte, random) in word
                .iter_mut()
                .zip((state | 0x0101_0101_0101_0101).to_be_bytes())
            {
                *byte = random;
            }
        }
        std::fs::write(self.path(name), bytes).unwrap();
    }
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Expects a failure told in two lines, with these words in the first one. What a command waits for, where a busy
    /// machine lets it wait, it may have told before.
    pub(crate) fn failed(&self, code: i32, words: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let waits = |line: &&str| line.starts_with("vhdkit: waiting for its server ");
        let lines: Vec<&str> = self.err.lines().skip_while(waits).collect();
        assert_eq!(lines.len(), 2, "a sentence and a hint: {self:?}");
        assert!(lines[0].starts_with("vhdkit: "), "{self:?}");
        assert!(lines[0].contains(words), "{words}: {self:?}");
        assert!(lines[1].starts_with("hint: "), "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
    }
}

/// A real disk, made by Windows 10: a dynamic VHD of 4 MiB with NTFS.
pub(crate) fn real_disk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/ntfs-dynamic.vhd")
}
