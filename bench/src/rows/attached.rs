//! Rows F: disks attached to Linux. Images in memory; fio, mkfs and tar as those who use them.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Bench, against, command, fio, has_qemu, remove};
use crate::Result;
use crate::images::Kind;
use crate::process::{Argv, find, is_root, run};
use crate::rounds::{Reading, Regime, Row, Side};

const QSD: &str = "qemu-storage-daemon FUSE";
const LOOP: &str = "loop on raw";
const OTHER: &str = "vhdkit, other build";

const DIRECT: [&str; 2] = ["--ioengine=io_uring", "--direct=1"];

/// A disk that can be seen; taken away with the value.
pub(crate) enum Shown {
    /// By `vhdkit attach`: the command, the disk, and what shows it.
    Attached(String, String, String),
    /// A loop device.
    Loop(String),
    /// A file that qemu-storage-daemon serves.
    Exported(Child, String),
}

impl Shown {
    /// Attaches a disk as a device, or as a file in a folder that is made for it.
    pub(crate) fn attach(vhdkit: &str, disk: &str, folder: Option<&str>) -> Result<Self> {
        let mut argv = Argv::new(&[vhdkit, "attach", disk]);
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)?;
            argv.0.extend(["--file".into(), folder.into()]);
        }
        let said = run(&argv)?.output;
        // "DEVICE  and more", or the same with the file.
        let place = match folder {
            Some(folder) => format!("{folder}/disk.img"),
            None => said.split_whitespace().next().unwrap_or("").to_owned(),
        };
        Ok(Self::Attached(vhdkit.to_owned(), disk.to_owned(), place))
    }

    fn loop_on(raw: &str) -> Result<Self> {
        let argv = Argv::new(&["losetup", "--find", "--show", "--direct-io=on", raw]);
        Ok(Self::Loop(run(&argv)?.output.trim().to_owned()))
    }

    fn export(image: &str, driver: &str, file: &str) -> Result<Self> {
        std::fs::write(file, "")?;
        let argv = Argv::new(&[
            "qemu-storage-daemon",
            "--blockdev",
            &format!("driver=file,filename={image},node-name=f,aio=io_uring"),
            "--blockdev",
            &format!("driver={driver},node-name=v,file=f"),
            "--export",
            &format!("type=fuse,id=e,node-name=v,mountpoint={file},writable=on"),
        ]);
        let mut child = argv.command();
        let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut shown = Self::Exported(child, file.to_owned());
        let begun = Instant::now();
        while std::fs::metadata(file)?.len() == 0 {
            let ended = match &mut shown {
                Self::Exported(child, _) => child.try_wait()?.is_some(),
                _ => false,
            };
            if ended || begun.elapsed() > Duration::from_secs(20) {
                return Err(format!("{} does not serve", argv.line()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(shown)
    }

    /// The device or file.
    pub(crate) fn place(&self) -> &str {
        match self {
            Self::Attached(_, _, place) | Self::Loop(place) | Self::Exported(_, place) => place,
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let ended = match self {
            Self::Attached(vhdkit, disk, _) => run(&Argv::new(&[vhdkit, "detach", disk])),
            Self::Loop(device) => run(&Argv::new(&["losetup", "--detach", device])),
            Self::Exported(child, file) => {
                let ended = run(&Argv::new(&["kill", &child.id().to_string()]));
                let _ = child.wait();
                remove(file);
                ended
            }
        };
        if let Err(e) = ended {
            eprintln!("{e}");
        }
    }
}

/// True if this system lets us attach disks.
pub(crate) fn can_attach() -> bool {
    let there = |path: &str| std::path::Path::new(path).exists();
    is_root() && there("/dev/fuse") && there("/dev/loop-control") && find("losetup").is_some()
}

impl Bench<'_> {
    /// F1: a file in a FUSE file system, without a device.
    pub(super) fn fuse_files(&mut self) -> Result<()> {
        let Some(raw) = self.source_to_attach("F1")? else {
            return Ok(());
        };
        let mut notes = Vec::new();
        let mut shown = Vec::new();
        for (name, program) in self.builds() {
            let disk = self.copy_to_attach(&raw, name, "vhdx")?;
            let folder = self.scratch.in_memory(&format!("{}-folder", word(name)));
            shown.push((name, Shown::attach(&program, &disk, Some(&folder))?));
        }
        if has_qemu() && find("qemu-storage-daemon").is_some() {
            let disk = self.copy_to_attach(&raw, QSD, "vhdx")?;
            let file = self.scratch.in_memory("exported.img");
            shown.push((QSD, Shown::export(&disk, "vhdx", &file)?));
        } else {
            notes.push("peer missing: qemu-storage-daemon".into());
        }
        for operation in ["read", "write"] {
            let what = format!("FUSE file 4k rand{operation}, depth 16, O_DIRECT, vhdx");
            let sides = self.random_sides(&shown, operation);
            let targets = vec![against(QSD, 3.0, 5.0)];
            self.fio_row("F1", what, sides, targets, notes.clone())?;
            if operation == "read" {
                verify(&raw, &shown)?;
            }
        }
        Ok(())
    }

    /// F2: a device.
    pub(super) fn devices(&mut self) -> Result<()> {
        let Some(raw) = self.source_to_attach("F2")? else {
            return Ok(());
        };
        let mut shown = Vec::new();
        for (name, program) in self.builds() {
            let disk = self.copy_to_attach(&raw, name, "vhdx")?;
            shown.push((name, Shown::attach(&program, &disk, None)?));
        }
        let copy = self.copy_to_attach(&raw, LOOP, "raw")?;
        shown.push((LOOP, Shown::loop_on(&copy)?));
        let seconds = self.seconds.to_string();
        for operation in ["read", "write"] {
            let what = format!("attached 4k rand{operation}, depth 16, O_DIRECT, vhdx");
            let sides = self.random_sides(&shown, operation);
            self.fio_row("F2", what, sides, vec![against(LOOP, 0.5, 0.7)], vec![])?;
            let sides = shown.iter().map(|(name, shown)| {
                let mut argv = fio(shown.place(), operation, &DIRECT, "8", &seconds);
                for part in &mut argv.0 {
                    if part.starts_with("--rw=") {
                        *part = format!("--rw={operation}");
                    } else if part == "--bs=4k" {
                        "--bs=128k".clone_into(part);
                    }
                }
                side(name, argv)
            });
            let sides = sides.collect();
            let what = format!("attached 128k {operation}, depth 8, O_DIRECT, vhdx");
            self.fio_row("F2", what, sides, vec![against(LOOP, 0.5, 0.7)], vec![])?;
            if operation == "read" {
                verify(&raw, &shown)?;
                // What others lose when many writes of all sizes are underway.
                for (name, shown) in shown.iter().filter(|(name, _)| *name != LOOP) {
                    let mut argv = Argv::new(&["fio", "--name=verify", "--rw=randwrite"]);
                    argv.0.push(format!("--filename={}", shown.place()));
                    argv.0.extend(DIRECT.map(str::to_owned));
                    for part in ["--bssplit=4k/40:128k/30:1m/30", "--bs_unaligned=0"] {
                        argv.0.push(part.into());
                    }
                    for part in [
                        "--iodepth=16",
                        "--size=128m",
                        "--verify=crc32c",
                        "--verify_state_save=0",
                    ] {
                        argv.0.push(part.into());
                    }
                    run(&argv).map_err(|e| format!("{name} lost data: {e}"))?;
                }
            }
        }
        Ok(())
    }

    /// F3: a file system is made and filled, in an empty dynamic disk.
    pub(super) fn file_systems(&mut self) -> Result<()> {
        const LIMIT_MIB: u64 = 300;
        let Some(raw) = self.source_to_attach("F3")? else {
            return Ok(());
        };
        // Files of 150 KiB of random bytes in a folder for each hundred.
        let tree = self.scratch.in_memory("tree");
        let tar = self.scratch.in_memory("tree.tar");
        let size = LIMIT_MIB.min(self.size >> 20);
        let script = format!(
            "mkdir -p {tree} && cd {tree} && head -c {size}M {raw} | split -b 150k -a 4 - f && \
             for f in f????; do d=${{f%??}}; mkdir -p d$d && mv $f d$d/; done && tar -cf {tar} . && rm -rf {tree}"
        );
        run(&Argv::new(&["sh", "-c", &script]))?;
        let mount = self.scratch.in_memory("mounted");
        std::fs::create_dir_all(&mount)?;
        let mut sides = Vec::new();
        let mut ends = Vec::new();
        let mut add = |name: &'static str, disk: &str, end: String, begin: String| {
            let device = format!("{disk}.device");
            let fresh = format!("if [ -e {device} ]; then {end}; fi; {begin} > {device}");
            let work = format!(
                "D=$(cut -d' ' -f1 {device} | head -1); mkfs.ext4 -q -F $D && mount $D {mount} && \
                 tar -xf {tar} -C {mount} && sync -f {mount} && umount {mount}"
            );
            sides.push(Side {
                before: vec![Argv::new(&["sh", "-c", &fresh])],
                ..command(name, &["sh", "-c", &work], None, 0)
            });
            ends.push(Argv::new(&[
                "sh",
                "-c",
                &format!("umount -q {mount}; [ ! -e {device} ] || {{ {end}; rm {device}; }}"),
            ]));
        };
        for (name, program) in self.builds() {
            let disk = self
                .scratch
                .in_memory(&format!("{}-fresh.vhdx", word(name)));
            let begin =
                format!("{program} create {disk} 4G --force >/dev/null && {program} attach {disk}");
            add(
                name,
                &disk,
                format!("{program} detach {disk} >/dev/null"),
                begin,
            );
        }
        let disk = self.scratch.in_memory("loop-fresh.raw");
        add(
            LOOP,
            &disk,
            format!("losetup -d $(cat {disk}.device)"),
            format!(
                "rm -f {disk}; truncate -s 4G {disk} && losetup --find --show --direct-io=on {disk}"
            ),
        );
        let done = self.finish(Row {
            id: "F3",
            what: format!("mkfs.ext4, untar {size} MiB, sync, empty vhdx"),
            regime: Regime::M,
            sides,
            targets: vec![against(LOOP, 1.0 / 1.3, 1.0 / 1.1)],
            same_as: None,
            notes: vec![],
        });
        for end in ends {
            run(&end)?;
        }
        remove(&tar);
        done
    }

    /// The raw image behind the rows; nothing, with a word, where they cannot run.
    fn source_to_attach(&mut self, id: &str) -> Result<Option<String>> {
        if find("fio").is_none() || !can_attach() {
            eprintln!("{id} skipped: it needs root, /dev/fuse, loop devices and fio");
            return Ok(None);
        }
        self.image(Kind::Rand).map(Some)
    }

    /// Ours and, if asked for, another build of ours.
    fn builds(&self) -> Vec<(&'static str, String)> {
        let mut builds = vec![("vhdkit", self.vhdkit.clone())];
        builds.extend(self.baseline.clone().map(|program| (OTHER, program)));
        builds
    }

    /// A disk with the content of the image, for one side alone.
    fn copy_to_attach(&self, raw: &str, side: &str, format: &str) -> Result<String> {
        let path = self
            .scratch
            .in_memory(&format!("{}-attached.{format}", word(side)));
        run(&Argv::new(&[
            &self.vhdkit,
            "convert",
            raw,
            &path,
            "--force",
        ]))?;
        Ok(path)
    }

    fn random_sides(&self, shown: &[(&'static str, Shown)], operation: &str) -> Vec<Side> {
        let seconds = self.seconds.to_string();
        let argv = |shown: &Shown| fio(shown.place(), operation, &DIRECT, "16", &seconds);
        shown
            .iter()
            .map(|(name, shown)| side(name, argv(shown)))
            .collect()
    }

    fn fio_row(
        &mut self,
        id: &'static str,
        what: String,
        sides: Vec<Side>,
        targets: Vec<crate::rounds::Target>,
        notes: Vec<String>,
    ) -> Result<()> {
        self.finish(Row {
            id,
            what,
            regime: Regime::M,
            sides,
            targets,
            same_as: None,
            notes,
        })
    }
}

fn side(name: &'static str, argv: Argv) -> Side {
    Side {
        argv,
        reading: Reading::Fio,
        ..command(name, &[], None, 0)
    }
}

/// The name of a side as part of a file name.
fn word(name: &str) -> String {
    name.replace([' ', ','], "-")
}

/// Fails unless all that is shown reads like the image.
fn verify(raw: &str, shown: &[(&'static str, Shown)]) -> Result<()> {
    for (name, shown) in shown {
        run(&Argv::new(&["cmp", raw, shown.place()])).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}
