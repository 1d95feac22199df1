//! Rows K: what should take no time.

use super::{Bench, absolute, against, command, has_qemu, qemu_name, remove};
use crate::Result;
use crate::images::Kind;
use crate::process::{Argv, run};
use crate::rounds::{Against, Regime, Row, Target};

impl Bench<'_> {
    pub(super) fn small_things(&mut self) -> Result<()> {
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
        let (ours, other) = self.ours(&arguments, Some(&output), 0);
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
        let (ours, other) = self.ours(&["convert", &source, &output], Some(&output), 0);
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
        let (ours, other) = self.ours(&["info", &image], None, 0);
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
        let (ours, other) = self.ours(&["compare", &raw, &image], None, 0);
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
