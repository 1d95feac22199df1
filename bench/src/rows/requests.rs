//! Rows A and W: requests of a guest, through the library.

use super::{
    Bench, PREAD, RAW_LIBRARY, SPARSE, against, command, fio, has_qemu, qemu_name, remove,
};
use crate::Result;
use crate::images::Kind;
use crate::process::{Argv, find, run};
use crate::rounds::{Reading, Regime, Row, Side};

impl Bench<'_> {
    pub(super) fn first_touch(
        &mut self,
        id: &'static str,
        format: &'static str,
        depth: u32,
    ) -> Result<()> {
        const COUNT: u32 = 1000;
        let flush = if id == "A2" { "each" } else { "end" };
        // Fewer for the one that waits for each.
        let count = if id == "A2" { COUNT / 5 } else { COUNT };
        let (count, depth) = (count.to_string(), depth.to_string());
        let step = crate::worker::FIRST_TOUCH_STEP.to_string();
        let image = self.scratch.on_disk(&format!("first.{format}"));
        let raw = self.scratch.on_disk("first.raw");
        let ours = |path: &str, format: &str| {
            crate::worker(&["first-touch", path, format, &count, &depth, "direct", flush])
        };
        let mut sides = vec![
            Side {
                argv: ours(&image, format)?,
                before: vec![Argv::new(&[&self.vhdkit, "create", &image, "64G"])],
                reading: Reading::WorkerSeconds,
                ..command("vhdkit", &[], Some(&image), 0)
            },
            Side {
                argv: ours(&raw, "raw")?,
                before: vec![Argv::new(&["truncate", "-s", "64G", &raw])],
                reading: Reading::WorkerSeconds,
                ..command(SPARSE, &[], Some(&raw), 0)
            },
        ];
        let mut notes = Vec::new();
        if has_qemu() {
            let format = qemu_name(format);
            let mut parts = vec![
                "qemu-img", "bench", "-w", "-f", format, "-c", &count, "-d", &depth, "-s", "4096",
                "-S", &step, "-t", "none", "-i", "native",
            ];
            if id == "A2" {
                parts.extend(["--flush-interval=1"]);
            }
            parts.push(&image);
            sides.push(Side {
                before: vec![Argv::new(&[
                    "qemu-img", "create", "-f", format, &image, "64G",
                ])],
                reading: Reading::QemuSeconds,
                ..command("qemu-img bench", &parts, Some(&image), 0)
            });
        } else {
            notes.push("peer missing: qemu-img".into());
        }
        let targets = match id {
            "A1" => vec![
                against(SPARSE, 1.0 / 3.0, 1.0 / 1.5),
                against("qemu-img bench", 25.0, 50.0),
            ],
            "A2" => vec![against("qemu-img bench", 4.8, 6.5)],
            _ => vec![against(SPARSE, 1.0 / 3.0, 1.0 / 1.5)],
        };
        let what = match id {
            "A2" => format!("{count} first writes to {format} blocks, a flush after each"),
            _ => format!("{count} first writes to {format} blocks at depth {depth}, then a flush"),
        };
        self.finish(Row {
            id,
            what,
            regime: Regime::D,
            sides,
            targets,
            same_as: None,
            notes,
        })
    }

    pub(super) fn random(
        &mut self,
        id: &'static str,
        formats: &[&'static str],
        operation: &'static str,
    ) -> Result<()> {
        let source = self.image(Kind::Rand)?;
        let raw = self.scratch.on_disk("random.raw");
        run(&Argv::new(&[
            "sh",
            "-c",
            &format!("cp {source} {raw} && sync {raw}"),
        ]))?;
        for format in formats {
            let image = self.scratch.on_disk(&format!("random.{format}"));
            let theirs = self.scratch.on_disk(&format!("random-qemu.{format}"));
            run(&Argv::new(&[&self.vhdkit, "convert", &source, &image]))?;
            if has_qemu() {
                let mut parts = vec!["qemu-img", "convert", "-O", qemu_name(format)];
                if *format == "vhd" {
                    // Else it rounds the size up, and then fails at the odd end.
                    parts.extend(["-o", "force_size=on"]);
                }
                parts.extend(["-t", "none", "-m", "16", "-W", &source, &theirs]);
                run(&Argv::new(&parts))?;
            }
            let mut result = Ok(());
            for depth in ["16", "64"] {
                let row = self.random_row(id, format, operation, depth, &raw, &image, &theirs)?;
                result = self.finish(row);
                if result.is_err() {
                    break;
                }
            }
            remove(&image);
            remove(&theirs);
            result?;
        }
        remove(&raw);
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, which has nothing else to say"
    )]
    fn random_row(
        &self,
        id: &'static str,
        format: &str,
        operation: &'static str,
        depth: &'static str,
        raw: &str,
        image: &str,
        theirs: &str,
    ) -> Result<Row> {
        let seconds = self.seconds.to_string();
        let ours = |path: &str, format: &str| {
            crate::worker(&["random", path, format, operation, depth, &seconds, "direct"])
        };
        let side = |name, argv, reading| Side {
            argv,
            reading,
            ..command(name, &[], None, 0)
        };
        let mut sides = vec![
            side("vhdkit", ours(image, format)?, Reading::WorkerRate),
            side(RAW_LIBRARY, ours(raw, "raw")?, Reading::WorkerRate),
        ];
        let mut notes = Vec::new();
        if find("fio").is_some() {
            let argv = fio(
                raw,
                operation,
                &["--direct=1", "--ioengine=io_uring"],
                depth,
                &seconds,
            );
            sides.push(side("limit, fio on raw", argv, Reading::Fio));
        } else {
            notes.push("peer missing: fio".into());
        }
        if has_qemu() {
            // It needs milliseconds for each write to a VHD.
            let slow = format == "vhd" && operation == "write";
            let count: u32 = if slow || self.seconds < 1.0 {
                2_000
            } else {
                20_000
            };
            let number = count.to_string();
            let mut parts = vec![
                "qemu-img",
                "bench",
                "-f",
                qemu_name(format),
                "-c",
                &number,
                "-d",
                depth,
                "-s",
                "4096",
                "-S",
                "69246976",
                "-t",
                "none",
                "-i",
                "native",
            ];
            if operation == "write" {
                parts.push("-w");
            }
            parts.push(theirs);
            sides.push(side(
                "qemu-img bench",
                Argv::new(&parts),
                Reading::QemuRate(count),
            ));
        } else {
            notes.push("peer missing: qemu-img".into());
        }
        let goal = if operation == "write" { 0.9 } else { 0.95 };
        Ok(Row {
            id,
            what: format!("4 KiB random {operation}, allocated {format}, depth {depth}"),
            regime: Regime::D,
            sides,
            targets: vec![
                against("limit, fio on raw", goal, 1.0),
                against(RAW_LIBRARY, goal, 1.0),
            ],
            same_as: None,
            notes,
        })
    }

    pub(super) fn cache_hits(&mut self) -> Result<()> {
        let raw = self.image(Kind::Rand)?;
        let image = self.scratch.in_memory("hits.vhdx");
        run(&Argv::new(&[&self.vhdkit, "convert", &raw, &image]))?;
        let seconds = self.seconds.to_string();
        let ours = |threads| {
            crate::worker(&[
                "random", &image, "vhdx", "read", threads, &seconds, "cached",
            ])
        };
        let side = |name, argv, reading| Side {
            argv,
            reading,
            ..command(name, &[], None, 0)
        };
        let mut sides = vec![
            side("vhdkit", ours("1")?, Reading::WorkerRate),
            side(
                PREAD,
                crate::worker(&["pread", &raw, &seconds])?,
                Reading::WorkerRate,
            ),
            side("vhdkit, 2 threads", ours("2")?, Reading::WorkerRate),
        ];
        let mut notes = Vec::new();
        if find("fio").is_some() {
            let argv = fio(&raw, "read", &["--ioengine=psync"], "1", &seconds);
            sides.push(side("fio psync", argv, Reading::Fio));
        } else {
            notes.push("peer missing: fio".into());
        }
        if has_qemu() {
            let parts = [
                "qemu-img",
                "bench",
                "-f",
                "vhdx",
                "-c",
                "100000",
                "-d",
                "1",
                "-s",
                "4096",
                "-S",
                "69246976",
                "-t",
                "writeback",
                "-i",
                "io_uring",
                &image,
            ];
            sides.push(side(
                "qemu-img bench",
                Argv::new(&parts),
                Reading::QemuRate(100_000),
            ));
        } else {
            notes.push("peer missing: qemu-img".into());
        }
        let result = self.finish(Row {
            id: "W4",
            what: "4 KiB random read of cached VHDX, depth 1".into(),
            regime: Regime::M,
            sides,
            targets: vec![
                against(PREAD, 0.8, 0.95),
                against("qemu-img bench", 3.0, 3.0),
            ],
            same_as: None,
            notes,
        });
        remove(&image);
        result
    }
}
