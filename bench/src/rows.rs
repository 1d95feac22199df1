//! The rows of the table: who runs what against whom, and what ours has to reach.

use std::collections::HashMap;

use crate::Result;
use crate::images::{self, Kind};
use crate::process::{Argv, find, is_root, run};
use crate::rounds::{Against, Reading, Regime, Row, RowResult, Side, Target, measure};
use crate::scratch::{Scratch, Xfs};

/// All rows, in the order in which they run.
pub(crate) const ALL: [&str; 17] = [
    "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C10", "A1", "A2", "A3", "W1", "W2", "W3",
    "W4", "K",
];

/// What rows are made with.
pub(crate) struct Bench<'a> {
    pub(crate) scratch: &'a Scratch,
    /// The `vhdkit` command.
    pub(crate) vhdkit: String,
    /// Another build of it, as a further side.
    pub(crate) baseline: Option<String>,
    /// Size of the images in bytes.
    pub(crate) size: u64,
    pub(crate) rounds: usize,
    /// Seconds of each run at a fixed depth.
    pub(crate) seconds: f64,
    /// The images that are there, and the bytes of data in each.
    pub(crate) images: HashMap<Kind, u64>,
    pub(crate) report: &'a mut dyn FnMut(RowResult) -> Result<()>,
}

const MIB: u64 = 1 << 20;

impl Bench<'_> {
    /// Runs the rows of one group.
    pub(crate) fn run(&mut self, id: &str) -> Result<()> {
        match id {
            "C1" => {
                for kind in [Kind::Rand, Kind::Fs] {
                    self.in_memory("C1", kind, "raw", "vhdx")?;
                }
                Ok(())
            }
            "C2" => {
                for (from, to) in [("vhdx", "raw"), ("vhd", "raw"), ("vhdx", "vhdx")] {
                    self.in_memory("C2", Kind::Fs, from, to)?;
                }
                Ok(())
            }
            "C3" => {
                for (kind, goal, moonshot) in [
                    (Kind::Sp25, 2.3, 2.7),
                    (Kind::Fs, 1.8, 2.2),
                    (Kind::Rand, 1.6, 1.9),
                ] {
                    self.durable(
                        "C3",
                        kind,
                        "raw",
                        "vhdx",
                        &[],
                        limit(&[qemu(goal, moonshot)]),
                    )?;
                }
                Ok(())
            }
            "C4" => {
                for (kind, moonshot) in [(Kind::Sp25, 6.0), (Kind::Rand, 7.0)] {
                    let targets = limit(&[qemu(5.0, moonshot)]);
                    self.durable("C4", kind, "raw", "vhdx", &["--block-size", "1M"], targets)?;
                }
                Ok(())
            }
            "C5" => {
                for (kind, moonshot) in [(Kind::Sp25, 2.2), (Kind::Fs, 3.2), (Kind::Rand, 2.5)] {
                    self.durable("C5", kind, "raw", "vhd", &[], vec![qemu(1.9, moonshot)])?;
                }
                Ok(())
            }
            "C6" => {
                let targets = || {
                    let cpu = Target {
                        against: Against::Cpu(QEMU_DIRECT),
                        goal: 1.0 / 0.7,
                        moonshot: 2.0,
                    };
                    vec![qemu(1.0, 1.0), cpu]
                };
                for from in ["vhdx", "vhd"] {
                    self.durable("C6", Kind::Sp25, from, "raw", &[], targets())?;
                }
                self.durable(
                    "C6",
                    Kind::Sp25,
                    "raw",
                    "vhd",
                    &["--type", "fixed"],
                    targets(),
                )
            }
            "C7" => self.durable("C7", Kind::Sp25, "vhdx", "vhdx", &[], vec![qemu(2.2, 2.6)]),
            "C8" => self.shared_blocks(),
            "C10" => self.extraction(),
            "A1" => self.first_touch("A1", "vhdx", 16),
            "A2" => self.first_touch("A2", "vhdx", 1),
            "A3" => self.first_touch("A3", "vhd", 16),
            "W1" => self.random("W1", &["vhd"], "write"),
            "W2" => self.random("W2", &["vhdx"], "write"),
            "W3" => self.random("W3", &["vhd", "vhdx"], "read"),
            "W4" => self.cache_hits(),
            "K" => self.small_things(),
            _ => Err(format!("there is no row {id}; there are {}", ALL.join(", ")).into()),
        }
    }

    // --- sources ---

    /// The raw image of a kind, on tmpfs.
    pub(crate) fn image(&mut self, kind: Kind) -> Result<String> {
        let path = self.scratch.in_memory(&format!("{}.raw", kind.name()));
        if !self.images.contains_key(&kind) {
            let data = images::make(&path, kind, self.size)?;
            self.images.insert(kind, data);
        }
        Ok(path)
    }

    /// The same in another format, made by somebody else where there is somebody. For one row: removed by the caller.
    pub(crate) fn source(&mut self, kind: Kind, format: &str) -> Result<String> {
        let raw = self.image(kind)?;
        if format == "raw" {
            return Ok(raw);
        }
        let path = self.scratch.in_memory(&format!("{}.{format}", kind.name()));
        remove(&path);
        if has_qemu() {
            run(&Argv::new(&[
                "qemu-img",
                "convert",
                "-O",
                qemu_name(format),
                &raw,
                &path,
            ]))?;
        } else {
            run(&Argv::new(&[&self.vhdkit, "convert", &raw, &path]))?;
        }
        Ok(path)
    }

    pub(crate) fn data(&self, kind: Kind) -> u64 {
        self.images.get(&kind).copied().unwrap_or(self.size)
    }

    fn finish(&mut self, row: Row) -> Result<()> {
        eprintln!("{} {}", row.id, row.what);
        let result = measure(row, self.rounds)?;
        (self.report)(result)
    }

    /// Ours and, if asked for, another build of ours, which comes last.
    fn ours(&self, arguments: &[&str], output: &str, ballast: u64) -> (Side, Option<Side>) {
        let side = |name, program: &str| {
            let mut argv = Argv::new(&[program]);
            argv.0.extend(arguments.iter().map(|&part| part.to_owned()));
            Side {
                name,
                argv,
                reading: Reading::Wall,
                output: Some(output.to_owned()),
                before: Vec::new(),
                ballast,
            }
        };
        let other = self
            .baseline
            .as_ref()
            .map(|path| side("vhdkit, other build", path));
        (side("vhdkit", &self.vhdkit), other)
    }

    // --- C: conversions ---

    fn in_memory(&mut self, id: &'static str, kind: Kind, from: &str, to: &str) -> Result<()> {
        let raw = self.image(kind)?;
        let source = self.source(kind, from)?;
        let ballast = self.data(kind) + 64 * MIB;
        let output = self.scratch.in_memory(&format!("out.{to}"));
        let (ours, other) = self.ours(&["convert", &source, &output], &output, ballast);
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
        self.forget(&raw, &source);
        result
    }

    fn forget(&self, raw: &str, source: &str) {
        if source != raw {
            remove(source);
        }
    }

    fn durable(
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
        let (ours, other) = self.ours(&arguments, &output, 0);
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
        self.forget(&raw, &source);
        result
    }

    fn shared_blocks(&mut self) -> Result<()> {
        if let Some(reason) = Xfs::missing() {
            eprintln!("C8 left out: {reason}");
            return Ok(());
        }
        let raw = self.image(Kind::Fs)?;
        let xfs = Xfs::mount(self.scratch, 2 * self.size + 1024 * MIB)?;
        let on_xfs = xfs.path("source.raw");
        // With the holes that the image has, and no others.
        run(&Argv::new(&["cp", "--sparse=auto", "--reflink=never", &raw, &on_xfs]))?;
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
            let (ours, other) = self.ours(&["convert", source, &output], &output, 0);
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

    fn extraction(&mut self) -> Result<()> {
        let raw = self.image(Kind::Fs)?;
        for format in ["vhdx", "vhd"] {
            let source = self.source(Kind::Fs, format)?;
            let output = self.scratch.in_memory("out.raw");
            let folder = self.scratch.in_memory("extracted");
            let ballast = self.size;
            let (ours, _) = self.ours(&["convert", &source, &output], &output, ballast);
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
            self.forget(&raw, &source);
            result?;
        }
        Ok(())
    }

    // --- A: first writes to blocks ---

    fn first_touch(&mut self, id: &'static str, format: &'static str, depth: u32) -> Result<()> {
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

    // --- W: allocated blocks ---

    fn random(
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
            let count: u32 = if self.seconds < 1.0 { 5_000 } else { 20_000 };
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

    fn cache_hits(&mut self) -> Result<()> {
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

    // --- K: small things ---

    fn small_things(&mut self) -> Result<()> {
        self.create(
            "K1",
            "vhdx",
            "64T",
            &["--block-size", "1M"],
            Some("block_size=1M"),
        )?;
        self.create("K1", "vhd", "2040G", &[], Some("force_size=on"))?;
        self.empty()?;
        self.info()?;
        self.comparison()
    }

    fn create(
        &mut self,
        id: &'static str,
        format: &str,
        size: &str,
        options: &[&str],
        qemu_options: Option<&str>,
    ) -> Result<()> {
        let output = self.scratch.on_disk(&format!("new.{format}"));
        let arguments = [&["create", &output, size], options].concat();
        let (ours, other) = self.ours(&arguments, &output, 0);
        let mut sides = vec![ours];
        if has_qemu() {
            let mut parts = vec!["qemu-img", "create", "-f", qemu_name(format)];
            if let Some(options) = qemu_options {
                parts.extend(["-o", options]);
            }
            parts.extend([&*output, size]);
            sides.push(command("qemu-img", &parts, Some(&output), 0));
        }
        sides.extend(other);
        let factor = if format == "vhdx" { 200.0 } else { 40.0 };
        let moonshot = if format == "vhdx" { 0.003 } else { 0.005 };
        self.finish(Row {
            id,
            what: format!("create {format} of {size} {}", options.join(" "))
                .trim_end()
                .into(),
            regime: Regime::D,
            sides,
            targets: vec![
                absolute(0.010, moonshot),
                against("qemu-img", factor, factor),
            ],
            same_as: None,
            notes: vec!["ours is durable when it ends, the peer's is not".into()],
        })
    }

    fn empty(&mut self) -> Result<()> {
        let source = self.scratch.on_disk("empty.vhdx");
        let output = self.scratch.on_disk("empty.raw");
        run(&Argv::new(&[&self.vhdkit, "create", &source, "1T"]))?;
        let (ours, other) = self.ours(&["convert", &source, &output], &output, 0);
        let mut sides = vec![ours];
        sides.extend(other);
        self.finish(Row {
            id: "K1",
            what: "empty vhdx of 1T to raw".into(),
            regime: Regime::D,
            sides,
            targets: vec![absolute(0.050, 0.050)],
            same_as: None,
            notes: vec!["qemu-img takes so long that it is left out".into()],
        })
    }

    fn info(&mut self) -> Result<()> {
        let image = self.scratch.on_disk("large.vhdx");
        run(&Argv::new(&[
            &self.vhdkit,
            "create",
            &image,
            "64T",
            "--block-size",
            "1M",
        ]))?;
        let (mut ours, mut other) = self.ours(&["info", &image], &image, 0);
        ours.output = None;
        other.iter_mut().for_each(|side| side.output = None);
        let mut sides = vec![ours];
        if has_qemu() {
            sides.push(command("qemu-img", &["qemu-img", "info", &image], None, 0));
        }
        sides.extend(other);
        let result = self.finish(Row {
            id: "K2",
            what: "info of a vhdx of 64T with blocks of 1M".into(),
            regime: Regime::D,
            sides,
            targets: vec![
                absolute(0.008, 0.003),
                Target {
                    against: Against::Memory,
                    goal: 16.0,
                    moonshot: 4.0,
                },
            ],
            same_as: None,
            notes: Vec::new(),
        });
        remove(&image);
        result
    }

    fn comparison(&mut self) -> Result<()> {
        let raw = self.image(Kind::Fs)?;
        let image = self.source(Kind::Fs, "vhdx")?;
        let (mut ours, mut other) = self.ours(&["compare", &raw, &image], &image, 0);
        ours.output = None;
        other.iter_mut().for_each(|side| side.output = None);
        let mut sides = vec![ours];
        if has_qemu() {
            let parts = ["qemu-img", "compare", &raw, &image];
            sides.push(command("qemu-img", &parts, None, 0));
        }
        sides.extend(other);
        let result = self.finish(Row {
            id: "K5",
            what: "compare raw with vhdx, fs".into(),
            regime: Regime::M,
            sides,
            targets: vec![against("qemu-img", 2.5, 4.0)],
            same_as: None,
            notes: Vec::new(),
        });
        remove(&image);
        result
    }
}

const LIMIT: &str = "limit, 2 direct writers";
const QEMU_DIRECT: &str = "qemu-img -m 16 -W -t none";
const SPARSE: &str = "sparse raw, same threads";
const RAW_LIBRARY: &str = "raw, same threads";
const PREAD: &str = "limit, pread";

fn command(name: &'static str, parts: &[&str], output: Option<&str>, ballast: u64) -> Side {
    Side {
        name,
        argv: Argv::new(parts),
        reading: Reading::Wall,
        output: output.map(str::to_owned),
        before: Vec::new(),
        ballast,
    }
}

fn against(side: &'static str, goal: f64, moonshot: f64) -> Target {
    Target {
        against: Against::Side(side),
        goal,
        moonshot,
    }
}

fn qemu(goal: f64, moonshot: f64) -> Target {
    against(QEMU_DIRECT, goal, moonshot)
}

/// At most 1.15 times the limit, and more.
fn limit(more: &[Target]) -> Vec<Target> {
    let mut targets = vec![against(LIMIT, 1.0 / 1.15, 1.0)];
    targets.extend_from_slice(more);
    targets
}

fn absolute(goal: f64, moonshot: f64) -> Target {
    Target {
        against: Against::Absolute,
        goal,
        moonshot,
    }
}

fn fio(path: &str, operation: &str, engine: &[&str], depth: &str, seconds: &str) -> Argv {
    let mut argv = Argv::new(&[
        "fio",
        "--name=pages",
        &format!("--filename={path}"),
        &format!("--rw=rand{operation}"),
        "--bs=4k",
        &format!("--iodepth={depth}"),
        "--time_based",
        &format!("--runtime={seconds}"),
        "--norandommap",
        "--randrepeat=0",
        "--output-format=json",
    ]);
    argv.0.extend(engine.iter().map(|&part| part.to_owned()));
    argv
}

fn has_qemu() -> bool {
    find("qemu-img").is_some()
}

pub(crate) fn qemu_name(format: &str) -> &str {
    match format {
        "vhd" => "vpc",
        other => other,
    }
}

fn remove(path: &str) {
    let _ = std::fs::remove_file(path);
}
