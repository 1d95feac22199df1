//! Rows about what changes a disk in place, or copies it while it is in use: C9, K3, K4, O1 to O3.

use super::{Bench, MIB, QEMU_DIRECT, absolute, against, command, has_qemu, qemu_name, remove};
use crate::Result;
use crate::images::Kind;
use crate::process::{Argv, run};
use crate::rounds::{Reading, Regime, Row, Side};
use crate::scratch::Xfs;

const CP: &str = "cp && sync of the same bytes";
const OURS_TO_NEW: &str = "vhdkit convert";
const CONVERT: &str = "convert, nobody writes";
const PACKED: &str = "limit, the same bytes without tables";
const REPLACED: &str = "the same, and mv over the old file";

/// A copy of a file that is on the disk when it is there, sharing blocks where that is possible, and in the page cache.
fn copy_of(from: &str, to: &str) -> Argv {
    copy_with("auto", from, to)
}

/// As such. With `never`, zeros that were written are written again: `cp` leaves them out of a file that has any hole.
fn copy_with(sparse: &str, from: &str, to: &str) -> Argv {
    let script = format!(
        "cp --reflink=auto --sparse={sparse} {from} {to} && sync {to} && cat {to} > /dev/null"
    );
    Argv::new(&["sh", "-c", &script])
}

impl Bench<'_> {
    fn vhdkit(&self, arguments: &[&str]) -> Result<()> {
        let mut argv = Argv::new(&[&self.vhdkit]);
        argv.0.extend(arguments.iter().map(|&part| part.to_owned()));
        run(&argv)?;
        Ok(())
    }

    /// C9: a footer appended or cut off.
    pub(super) fn footers(&mut self) -> Result<()> {
        let raw = self.image(Kind::Sp25)?;
        for (from, to) in [("raw", "vhd"), ("vhd", "raw")] {
            let source = self.scratch.on_disk(&format!("source.{from}"));
            let output = self.scratch.on_disk(&format!("out.{to}"));
            let arguments: &[&str] = if from == "vhd" {
                &["--type", "fixed"]
            } else {
                &[]
            };
            self.vhdkit(&[&["convert", &raw, &source], arguments].concat())?;
            let (mut ours, other) = self.ours(
                &["convert", &output, "--in-place", "--format", to],
                Some(&output),
                0,
            );
            ours.before = vec![copy_of(&source, &output)];
            let before = ours.before.clone();
            let what = if to == "vhd" { "append" } else { "cut" };
            let mut sides = vec![
                ours,
                Side {
                    argv: crate::worker(&["footer", &output, what])?,
                    before: before.clone(),
                    ..command("limit, 512 bytes and a barrier", &[], Some(&output), 0)
                },
            ];
            if has_qemu() {
                let mut parts = vec!["qemu-img", "convert", "-f", qemu_name(from), "-O"];
                parts.push(qemu_name(to));
                if to == "vhd" {
                    parts.extend(["-o", "subformat=fixed,force_size=on"]);
                }
                parts.extend(["-m", "16", "-W", "-t", "none", &source, &output]);
                sides.push(command(QEMU_DIRECT, &parts, Some(&output), 0));
            }
            sides.extend(other.map(|side| Side { before, ..side }));
            let result = self.finish(Row {
                id: "C9",
                what: format!("{from} to fixed {to} in place, sp25").replace("fixed raw", "raw"),
                regime: Regime::D,
                sides,
                targets: vec![absolute(0.010, 0.003)],
                same_as: Some(raw.clone()),
                notes: Vec::new(),
            });
            remove(&source);
            result?;
        }
        Ok(())
    }

    /// K3 on a disk, and where blocks are shared.
    pub(super) fn compactions(&mut self) -> Result<()> {
        let folder = self.scratch.on_disk("");
        self.compactions_in(&folder, Regime::D)?;
        if let Some(reason) = Xfs::missing() {
            eprintln!("K3 with shared blocks left out: {reason}");
            return Ok(());
        }
        let xfs = Xfs::mount(self.scratch, 6 * self.size + 1024 * MIB)?;
        self.compactions_in(&xfs.path(""), Regime::R)
    }

    fn compactions_in(&mut self, folder: &str, regime: Regime) -> Result<()> {
        let raw = self.image(Kind::Rand)?;
        for (shape, sparse, what) in [
            ("alternate", "never", "every second 8 MiB zeros"),
            (
                "freed",
                "auto",
                "three quarters discarded, the last one alive",
            ),
        ] {
            for format in ["vhdx", "vhd"] {
                let stash = format!("{folder}/stash.{format}");
                let output = format!("{folder}/out.{format}");
                let alive = self.scratch.in_memory("alive.raw");
                self.vhdkit(&["convert", &raw, &stash])?;
                run(&crate::worker(&["deaden", &stash, shape])?)?;
                run(&Argv::new(&["sync", &stash]))?;
                self.vhdkit(&["convert", &stash, &alive])?;
                let (mut ours, mut other) = self.ours(&["compact", &output], Some(&output), 0);
                ours.before = vec![copy_with(sparse, &stash, &output)];
                if let Some(other) = &mut other {
                    other.before.clone_from(&ours.before);
                }
                let mut sides = vec![command(
                    OURS_TO_NEW,
                    &[&self.vhdkit, "convert", &stash, &output],
                    Some(&output),
                    0,
                )];
                if has_qemu() {
                    let to = qemu_name(format);
                    let mut parts = vec!["qemu-img", "convert", "-f", to, "-O", to];
                    parts.extend(["-m", "16", "-W", "-t", "none", &stash, &output]);
                    sides.push(command(QEMU_DIRECT, &parts, Some(&output), 0));
                    let new = format!("{folder}/new.{format}");
                    parts.splice(
                        parts.len() - 2..,
                        [&*output, &*new, "&&", "mv", &new, &output],
                    );
                    sides.push(Side {
                        before: ours.before.clone(),
                        ..command(REPLACED, &["sh", "-c", &parts.join(" ")], Some(&output), 0)
                    });
                }
                sides.push(Side {
                    argv: crate::worker(&["packed", &output, &stash, shape])?,
                    reading: Reading::WorkerSeconds,
                    before: ours.before.clone(),
                    ..command(PACKED, &[], Some(&output), 0)
                });
                sides.insert(0, ours);
                sides.extend(other);
                let target = if regime == Regime::R {
                    against(QEMU_DIRECT, 40.0, 200.0)
                } else {
                    against(QEMU_DIRECT, 4.0, 8.0)
                };
                let result = self.finish(Row {
                    id: "K3",
                    what: format!("compact {format}, {what}"),
                    regime,
                    sides,
                    targets: vec![target],
                    same_as: Some(alive.clone()),
                    notes: Vec::new(),
                });
                remove(&stash);
                remove(&alive);
                result?;
            }
        }
        Ok(())
    }

    /// K4: the BAT grows, and what is in its way has to go first.
    pub(super) fn expansions(&mut self) -> Result<()> {
        for (format, blocks, size, what) in [
            ("vhdx", "0", "2T", "the BAT has room"),
            ("vhdx", "20", "60T", "the BAT moves"),
            ("vhd", "0", "2040G", "empty"),
            ("vhd", "20", "2040G", "blocks make room for the BAT"),
        ] {
            let stash = self.scratch.on_disk(&format!("stash.{format}"));
            let output = self.scratch.on_disk(&format!("out.{format}"));
            self.vhdkit(&["create", &stash, "1T"])?;
            run(&crate::worker(&["commits", &stash, blocks])?)?;
            let (mut ours, mut other) = self.ours(&["expand", &output, size], Some(&output), 0);
            ours.before = vec![copy_of(&stash, &output)];
            if let Some(other) = &mut other {
                other.before.clone_from(&ours.before);
            }
            let mut sides = vec![ours];
            sides.extend(other);
            let result = self.finish(Row {
                id: "K4",
                what: format!("expand {format} of 1T to {size}, {what}"),
                regime: Regime::D,
                sides,
                targets: vec![absolute(0.010, 0.003)],
                same_as: Some(stash.clone()),
                notes: vec!["the peer cannot".into()],
            });
            remove(&stash);
            result?;
        }
        Ok(())
    }

    /// O1: a full child into a parent of which a quarter is there.
    pub(super) fn merges(&mut self) -> Result<()> {
        let folder = self.scratch.on_disk("");
        self.merges_in(&folder, Regime::D)?;
        if let Some(reason) = Xfs::missing() {
            eprintln!("O1 with shared blocks left out: {reason}");
            return Ok(());
        }
        let xfs = Xfs::mount(self.scratch, 6 * self.size + 1024 * MIB)?;
        self.merges_in(&xfs.path(""), Regime::R)
    }

    fn merges_in(&mut self, folder: &str, regime: Regime) -> Result<()> {
        let raw = self.image(Kind::Rand)?;
        let base = self.image(Kind::Sp25)?;
        for format in ["vhdx", "vhd"] {
            let path = |name: &str| format!("{folder}/{name}.{format}");
            let (parent, child) = (path("parent"), path("child"));
            let (old_parent, old_child) = (path("old-parent"), path("old-child"));
            self.vhdkit(&["convert", &base, &parent])?;
            self.vhdkit(&["create", &child, "--parent", &parent])?;
            run(&crate::worker(&["fill", &child, &raw])?)?;
            for (name, old) in [(&parent, &old_parent), (&child, &old_child)] {
                run(&copy_of(name, old))?;
            }
            let (mut ours, mut other) = self.ours(&["merge", &child], Some(&parent), 0);
            ours.before = vec![copy_of(&old_parent, &parent), copy_of(&old_child, &child)];
            if let Some(other) = &mut other {
                other.before.clone_from(&ours.before);
            }
            let mut sides = vec![ours];
            let copy = path("copy");
            let reflink = if regime == Regime::R {
                "always"
            } else {
                "never"
            };
            let script = format!("cp --reflink={reflink} {old_child} {copy} && sync {copy}");
            let ballast = if regime == Regime::R { 0 } else { self.size };
            sides.push(command(CP, &["sh", "-c", &script], Some(&copy), ballast));
            sides.extend(other);
            let result = self.finish(Row {
                id: "O1",
                what: format!("merge a full {format} child into its parent"),
                regime,
                sides,
                targets: if regime == Regime::R {
                    vec![absolute(0.050, 0.012)]
                } else {
                    vec![against(CP, 1.0 / 1.2, 1.0)]
                },
                same_as: Some(raw.clone()),
                notes: Vec::new(),
            });
            for path in [parent, child, old_parent, old_child] {
                remove(&path);
            }
            result?;
        }
        Ok(())
    }

    /// O2: a copy of a disk that is being written to, against a copy of one at rest.
    pub(super) fn mirrors(&mut self) -> Result<()> {
        let raw = self.image(Kind::Rand)?;
        let source = self.scratch.on_disk("source.vhdx");
        self.vhdkit(&["convert", &raw, &source])?;
        for format in ["vhdx", "vhd"] {
            let output = self.scratch.on_disk(&format!("out.{format}"));
            let side = |name, parts: &[&str]| -> Result<Side> {
                Ok(Side {
                    argv: crate::worker(parts)?,
                    reading: Reading::WorkerSeconds,
                    ..command(name, &[], Some(&output), 0)
                })
            };
            self.finish(Row {
                id: "O2",
                what: format!("mirror vhdx to {format}, 1000 random pages written per second"),
                regime: Regime::D,
                sides: vec![
                    side("vhdkit", &["mirrored", &source, &output, "1000"])?,
                    side(
                        "mirror, nobody writes",
                        &["mirrored", &source, &output, "0"],
                    )?,
                    side(CONVERT, &["converted", &source, &output])?,
                ],
                targets: vec![against(CONVERT, 1.0 / 1.3, 1.0)],
                same_as: Some(source.clone()),
                notes: Vec::new(),
            })?;
        }
        remove(&source);
        Ok(())
    }

    /// O3: what it costs to be watched.
    pub(super) fn watched(&mut self) -> Result<()> {
        let raw = self.image(Kind::Fs)?;
        let output = self.scratch.in_memory("out.vhdx");
        let ballast = self.data(Kind::Fs);
        let side = |name, how| -> Result<Side> {
            Ok(Side {
                argv: crate::worker(&["observed", &raw, &output, "8", how])?,
                reading: Reading::WorkerSeconds,
                ..command(name, &[], Some(&output), ballast)
            })
        };
        for (what, how, name, without) in [
            (
                "asked without a pause",
                "polled",
                "asks another one",
                "spinning",
            ),
            ("published", "published", "not published", "alone"),
        ] {
            let sides = vec![side("vhdkit", how)?, side(name, without)?];
            self.finish(Row {
                id: "O3",
                what: format!("processor time of 8 conversions of fs whose progress is {what}"),
                regime: Regime::M,
                sides,
                targets: vec![against(name, 0.99, 1.0)],
                same_as: None,
                notes: Vec::new(),
            })?;
        }
        Ok(())
    }
}
