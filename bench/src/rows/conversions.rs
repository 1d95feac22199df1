//! Rows C: conversions by the command.

use super::{
    Bench, LIMIT, MIB, QEMU_DIRECT, absolute, against, command, forget, has_qemu, qemu_name,
};
use crate::Result;
use crate::images::Kind;
use crate::process::{Argv, find, is_root, run};
use crate::rounds::{Against, Regime, Row, Side, Target};
use crate::scratch::Xfs;

impl Bench<'_> {
    pub(super) fn in_memory(
        &mut self,
        id: &'static str,
        kind: Kind,
        from: &str,
        to: &str,
    ) -> Result<()> {
        let raw = self.image(kind)?;
        let source = self.source(kind, from)?;
        let ballast = self.data(kind) + 64 * MIB;
        let output = self.scratch.in_memory(&format!("out.{to}"));
        let (ours, other) = self.ours(&["convert", &source, &output], Some(&output), ballast);
        let side = |name, parts: &[&str]| command(name, parts, Some(&output), ballast);
        let mut sides = vec![
            ours,
            Side {
                argv: crate::worker(&["copy", &raw, &output])?,
                ..side("limit, 2 threads", &[])
            },
            side("cp", &["cp", "--reflink=never", &raw, &output]),
        ];
        let mut notes = Vec::new();
        if has_qemu() {
            let convert = [
                "qemu-img",
                "convert",
                "-f",
                qemu_name(from),
                "-O",
                qemu_name(to),
            ];
            let with = |more: &[&'static str]| [&convert[..], more, &[&*source, &*output]].concat();
            sides.push(side("qemu-img", &with(&[])));
            sides.push(side("qemu-img -m 16 -W", &with(&["-m", "16", "-W"])));
        } else {
            notes.push("peer missing: qemu-img".into());
        }
        sides.extend(other);
        let row = Row {
            id,
            what: format!("{from} to {to}, {}", kind.name()),
            regime: Regime::M,
            sides,
            targets: vec![Target {
                against: Against::Side("cp"),
                goal: 1.0 / 0.85,
                moonshot: 1.0 / 0.75,
            }],
            same_as: Some(raw.clone()),
            notes,
        };
        let result = self.finish(row);
        forget(&raw, &source);
        result
    }

    pub(super) fn durable(
        &mut self,
        id: &'static str,
        kind: Kind,
        from: &str,
        to: &str,
        options: &[&str],
        targets: Vec<Target>,
    ) -> Result<()> {
        let raw = self.image(kind)?;
        let source = self.source(kind, from)?;
        let output = self.scratch.on_disk(&format!("out.{to}"));
        let arguments = [&["convert", &source, &output], options].concat();
        let (ours, other) = self.ours(&arguments, Some(&output), 0);
        let mut sides = vec![
            ours,
            Side {
                argv: crate::worker(&["copy-direct", &raw, &output])?,
                ..command(LIMIT, &[], Some(&output), 0)
            },
            command(
                "cp && sync",
                &[
                    "sh",
                    "-c",
                    &format!("cp --reflink=never {raw} {output} && sync {output}"),
                ],
                Some(&output),
                self.data(kind),
            ),
        ];
        let mut notes = Vec::new();
        if has_qemu() {
            let mut parts = vec![
                "qemu-img",
                "convert",
                "-f",
                qemu_name(from),
                "-O",
                qemu_name(to),
            ];
            match options {
                ["--block-size", "1M"] => parts.extend(["-o", "block_size=1M"]),
                ["--type", "fixed"] => parts.extend(["-o", "subformat=fixed"]),
                _ => {}
            }
            parts.extend(["-m", "16", "-W", "-t", "none", &source, &output]);
            sides.push(command(QEMU_DIRECT, &parts, Some(&output), 0));
            if id == "C3" && kind == Kind::Fs {
                let script = format!(
                    "qemu-img convert -O {} {source} {output} && sync {output}",
                    qemu_name(to)
                );
                let parts = ["sh", "-c", &script];
                sides.push(command(
                    "qemu-img && sync",
                    &parts,
                    Some(&output),
                    self.data(kind),
                ));
            }
        } else {
            notes.push("peer missing: qemu-img".into());
        }
        sides.extend(other);
        let what = match options {
            [] => format!("{from} to {to}, {}", kind.name()),
            _ => format!("{from} to {to} {}, {}", options.join(" "), kind.name()),
        };
        let row = Row {
            id,
            what,
            regime: Regime::D,
            sides,
            targets,
            same_as: Some(raw.clone()),
            notes,
        };
        let result = self.finish(row);
        forget(&raw, &source);
        result
    }

    pub(super) fn shared_blocks(&mut self) -> Result<()> {
        if let Some(reason) = Xfs::missing() {
            eprintln!("C8 left out: {reason}");
            return Ok(());
        }
        let raw = self.image(Kind::Fs)?;
        let xfs = Xfs::mount(self.scratch, 2 * self.size + 1024 * MIB)?;
        let on_xfs = xfs.path("source.raw");
        // With the holes that the image has, and no others.
        run(&Argv::new(&[
            "cp",
            "--sparse=auto",
            "--reflink=never",
            &raw,
            &on_xfs,
        ]))?;
        let vhdx = xfs.path("source.vhdx");
        run(&Argv::new(&[&self.vhdkit, "convert", &on_xfs, &vhdx]))?;
        run(&Argv::new(&["sync", &vhdx]))?;
        let cases = [
            ("raw", "vhdx"),
            ("vhdx", "vhdx"),
            ("vhdx", "raw"),
            ("raw", "vhd"),
        ];
        for (from, to) in cases {
            let source = if from == "raw" { &on_xfs } else { &vhdx };
            let output = xfs.path(&format!("out.{to}"));
            let (ours, other) = self.ours(&["convert", source, &output], Some(&output), 0);
            let clone = format!("cp --reflink=always {source} {output} && sync {output}");
            let mut sides = vec![
                ours,
                command(
                    "limit, cp --reflink && sync",
                    &["sh", "-c", &clone],
                    Some(&output),
                    0,
                ),
            ];
            if has_qemu() {
                let parts = ["qemu-img", "convert", "-O", qemu_name(to), source, &output];
                sides.push(command(
                    "qemu-img",
                    &parts,
                    Some(&output),
                    self.data(Kind::Fs),
                ));
            }
            sides.extend(other);
            self.finish(Row {
                id: "C8",
                what: format!("{from} to {to}, fs, blocks shared"),
                regime: Regime::R,
                sides,
                targets: vec![absolute(0.040, 0.012), against("qemu-img", 60.0, 200.0)],
                same_as: Some(on_xfs.clone()),
                notes: Vec::new(),
            })?;
        }
        Ok(())
    }

    pub(super) fn extraction(&mut self) -> Result<()> {
        let raw = self.image(Kind::Fs)?;
        for format in ["vhdx", "vhd"] {
            let source = self.source(Kind::Fs, format)?;
            let output = self.scratch.in_memory("out.raw");
            let folder = self.scratch.in_memory("extracted");
            let ballast = self.size;
            let (ours, _) = self.ours(&["convert", &source, &output], Some(&output), ballast);
            let mut sides = vec![
                ours,
                command(
                    "cp",
                    &["cp", "--reflink=never", &raw, &output],
                    Some(&output),
                    ballast,
                ),
            ];
            let mut notes = Vec::new();
            if let Some(program) = find("7zz").or_else(|| find("7z")) {
                let to = format!("-o{folder}");
                let parts = [&program.to_string_lossy(), "x", "-y", &source, &to];
                sides.push(command("7-Zip", &parts, Some(&folder), ballast));
            } else {
                notes.push("peer missing: 7zz".into());
            }
            if format == "vhd" && find("vhdimount").is_some() && is_root() {
                let mount = self.scratch.in_memory("vhdimount");
                std::fs::create_dir_all(&mount)?;
                // As much as it does in the time that is there; the mount goes away whatever happens.
                let script = format!(
                    "vhdimount {source} {mount} >&2 && \
                     {{ dd if={mount}/vhdi1 of={output} bs=1M status=none; code=$?; \
                     umount {mount}; exit $code; }}"
                );
                sides.push(command(
                    "vhdimount + dd",
                    &["sh", "-c", &script],
                    Some(&output),
                    ballast,
                ));
            } else if format == "vhd" {
                notes.push("peer missing: vhdimount as root".into());
            }
            let result = self.finish(Row {
                id: "C10",
                what: format!("{format} to raw, fs"),
                regime: Regime::M,
                sides,
                targets: vec![
                    against("7-Zip", 2.5, 3.0),
                    against("vhdimount + dd", 40.0, 50.0),
                ],
                same_as: Some(raw.clone()),
                notes,
            });
            forget(&raw, &source);
            result?;
        }
        Ok(())
    }
}
