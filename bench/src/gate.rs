//! Gates: counts that do not depend on how busy the machine is.

use crate::Result;
use crate::images::{self, Kind};
use crate::process::{Argv, find, run};
use crate::rows::attached::can_attach;
use crate::rows::serving::{hold, read_in_batches};
use crate::scratch::Scratch;
use crate::trace::{Trace, trace, trace_only};

const MIB: u64 = 1 << 20;

/// What was counted against what is allowed.
struct Gate {
    what: String,
    measured: f64,
    allowed: f64,
}

/// Checks all gates; false if one does not hold.
pub(crate) fn run_all(scratch: &Scratch, vhdkit: &str) -> Result<bool> {
    if find("strace").is_none() {
        skip("the gates count with strace, which is not installed")?;
        return Ok(true);
    }
    let mut gates = Vec::new();
    // Some hundred MiB of data each, so that starting the program is a small part; in the second one something begins or
    // ends every few MiB.
    for (kind, size) in [(Kind::Sp25, 1024 * MIB), (Kind::Fs, 512 * MIB)] {
        conversions(scratch, vhdkit, (kind, size), &mut gates)?;
    }
    flushes(scratch, vhdkit, &mut gates)?;
    first_touch(scratch, vhdkit, &mut gates)?;
    information(scratch, vhdkit, &mut gates)?;
    in_place(scratch, vhdkit, &mut gates)?;
    writing(scratch, vhdkit, &mut gates)?;
    for format in ["vhdx", "vhd"] {
        compaction(scratch, vhdkit, format, &mut gates)?;
        merge(scratch, vhdkit, format, &mut gates)?;
    }
    serving(scratch, vhdkit, &mut gates)?;
    attaching(scratch, vhdkit, &mut gates)?;
    let mut held = true;
    for gate in &gates {
        let holds = gate.measured <= gate.allowed;
        held &= holds;
        println!(
            "{:4} {:60} {:10.3} (at most {})",
            if holds { "ok" } else { "FAIL" },
            gate.what,
            gate.measured,
            gate.allowed
        );
    }
    Ok(held)
}

fn conversions(
    scratch: &Scratch,
    vhdkit: &str,
    (kind, size): (Kind, u64),
    gates: &mut Vec<Gate>,
) -> Result<()> {
    let raw = scratch.in_memory(&format!("gate-{}.raw", kind.name()));
    let payload = images::make(&raw, kind, size)?;
    let unseen = unseen(scratch)?;
    // Each target is the next one's source.
    let mut source = raw.clone();
    for to in ["vhdx", "vhd", "raw"] {
        for folder in [&scratch.disk, &scratch.memory] {
            let regime = if folder == &scratch.disk { "D" } else { "M" };
            let output = folder
                .join(format!("gate-out.{to}"))
                .to_string_lossy()
                .into_owned();
            let convert = Argv::new(&[
                "env", &unseen, vhdkit, "convert", &source, &output, "--force",
            ]);
            let memory = run(&convert)?.memory;
            let traced = trace(&convert)?;
            crate::verify::same(&raw, &output)?;
            let name = |what: &str| format!("{what}, {} to {to} ({regime})", kind.name());
            // One for the file and one for its name.
            let barriers = traced.count("fdatasync") + traced.count("fsync");
            gates.push(gate(name("barriers"), barriers, 2.0));
            gates.push(Gate {
                what: name("bytes written / payload"),
                measured: ratio(traced.bytes_written, payload),
                allowed: 1.01,
            });
            gates.push(Gate {
                what: name("system calls per MiB"),
                measured: ratio(traced.total() * MIB, payload),
                allowed: 12.0,
            });
            gates.push(Gate {
                what: name("memory in MiB"),
                measured: ratio(memory, MIB),
                allowed: 64.0,
            });
            if regime == "M" {
                source = output;
            }
        }
    }
    Ok(())
}

/// The steady state: what fifty more flushes cost.
fn flushes(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    // Between two growths of a VHD file, which cost one more each.
    const FEW: u64 = 35;
    const MANY: u64 = 60;
    for format in ["vhdx", "vhd"] {
        let image = scratch.on_disk(&format!("gate-flush.{format}"));
        let count = |commits: u64| -> Result<Trace> {
            run(&Argv::new(&[vhdkit, "create", &image, "8G", "--force"]))?;
            trace(&crate::worker(&["commits", &image, &commits.to_string()])?)
        };
        let (few, many) = (count(FEW)?, count(MANY)?);
        let per_flush =
            |of: fn(&Trace) -> u64| ratio(of(&many) - of(&few).min(of(&many)), MANY - FEW);
        gates.push(Gate {
            what: format!("fdatasync per flush with an allocation, {format}"),
            measured: per_flush(|traced| traced.count("fdatasync")),
            allowed: 2.0,
        });
        if format == "vhdx" {
            gates.push(Gate {
                what: "log entries per flush with an allocation, vhdx".into(),
                measured: per_flush(|traced| traced.log_entries),
                allowed: 1.0,
            });
        }
    }
    Ok(())
}

fn first_touch(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    let image = scratch.on_disk("gate-first.vhdx");
    run(&Argv::new(&[vhdkit, "create", &image, "64G"]))?;
    let work = ["first-touch", &image, "vhdx", "1000", "16", "direct", "end"];
    let traced = trace(&crate::worker(&work)?)?;
    let what = "fdatasync of 1000 first writes to vhdx blocks, flush and close".to_owned();
    gates.push(gate(what, traced.count("fdatasync"), 6.0));
    Ok(())
}

fn information(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    let image = scratch.on_disk("gate-large.vhdx");
    run(&Argv::new(&[
        vhdkit,
        "create",
        &image,
        "64T",
        "--block-size",
        "1M",
    ]))?;
    let info = Argv::new(&[vhdkit, "info", &image]);
    let traced = trace(&info)?;
    gates.push(Gate {
        what: "memory of info of a vhdx of 64T/1M in MiB".into(),
        measured: ratio(run(&info)?.memory, MIB),
        allowed: 16.0,
    });
    gates.push(Gate {
        what: "MiB read by info of it, whose BAT has 513".into(),
        measured: ratio(traced.bytes_read, MIB),
        allowed: 4.0,
    });
    Ok(())
}

/// A footer appended, and cut off again.
fn in_place(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    let image = scratch.on_disk("gate-place.raw");
    let original = scratch.in_memory("gate-place.raw");
    let payload = images::make(&original, Kind::Sp25, 64 * MIB)?;
    run(&Argv::new(&["cp", &original, &image]))?;
    let unseen = unseen(scratch)?;
    for to in ["vhd", "raw"] {
        let traced = trace(&Argv::new(&[
            "env",
            &unseen,
            vhdkit,
            "convert",
            &image,
            "--in-place",
            "--format",
            to,
        ]))?;
        gates.push(gate(
            format!("bytes written in place, {payload} bytes to {to}"),
            traced.bytes_written + traced.bytes_copied,
            4096.0,
        ));
        gates.push(gate(
            format!("fdatasync of the same, to {to}"),
            traced.count("fdatasync"),
            2.0,
        ));
    }
    crate::verify::same(&original, &image)
}

/// What `write` leaves to the last barrier, which nobody sees move.
fn writing(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    const SIZE: u64 = 768 * MIB;
    let raw = scratch.in_memory("gate-write.raw");
    let image = scratch.on_disk("gate-write.vhdx");
    images::make(&raw, Kind::Rand, SIZE)?;
    run(&Argv::new(&[vhdkit, "create", &image, "768M"]))?;
    let shell = format!("exec '{vhdkit}' write '{image}' --offset 0 < '{raw}'");
    let traced = trace_only("fdatasync", &Argv::new(&["sh", "-c", &shell]))?;
    crate::verify::same(&raw, &image)?;
    gates.push(Gate {
        what: "MiB per fdatasync of write".into(),
        measured: ratio(SIZE / MIB, traced.count("fdatasync")),
        allowed: 64.0,
    });
    for path in [raw, image] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// What requests that come together cost a server: one read of the file each, and few calls for all replies.
fn serving(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    const ROUNDS: u64 = 500;
    let image = scratch.in_memory("gate-served.raw");
    let socket = scratch.in_memory("gate.sock");
    images::make(&image, Kind::Rand, 64 * MIB)?;
    let serve = Argv::new(&[
        vhdkit,
        "serve",
        &image,
        "--format",
        "raw",
        "--socket",
        &socket,
        "--exit-when-idle",
    ]);
    let (traced, client) = std::thread::scope(|scope| {
        let traced = scope.spawn(|| trace_only("sendto", &serve));
        let client = hold(&socket).and_then(|stream| read_in_batches(stream, ROUNDS));
        (traced.join(), client)
    });
    client?;
    let traced = traced.map_err(|_| "the thread of the server failed")??;
    gates.push(Gate {
        what: "calls that send, per NBD read of 4 KiB, 16 at a time".into(),
        measured: ratio(traced.count("sendto"), ROUNDS * 16),
        allowed: 0.2,
    });
    std::fs::remove_file(image)?;
    Ok(())
}

/// Says what is missing; where everything must be counted that is an error.
fn skip(why: &str) -> Result<()> {
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        return Err(why.into());
    }
    println!("skipped: {why}");
    Ok(())
}

/// What reading one page through FUSE costs the server: a request taken, the page read, an answer. The difference of two
/// runs, so that all else goes away, and without the two calls of dd.
fn attaching(scratch: &Scratch, vhdkit: &str, gates: &mut Vec<Gate>) -> Result<()> {
    const FEW: u64 = 1000;
    const MANY: u64 = 3000;
    if !can_attach() {
        return skip("a gate on attached disks takes root, /dev/fuse and loop devices");
    }
    let raw = scratch.in_memory("gate-attached.raw");
    let image = scratch.in_memory("gate-attached.vhdx");
    let folder = scratch.in_memory("gate-attached");
    std::fs::create_dir_all(&folder)?;
    images::make(&raw, Kind::Rand, 16 * MIB)?;
    run(&Argv::new(&[vhdkit, "convert", &raw, &image]))?;
    let count = |pages: u64| -> Result<u64> {
        let script = format!(
            "{vhdkit} attach {image} --read-only --file {folder} && \
             dd if={folder}/disk.img of=/dev/null bs=4k count={pages} iflag=direct && \
             umount {folder}"
        );
        // The server ends by itself: whoever waits for that asks as often as it takes long.
        Ok(trace(&Argv::new(&["sh", "-c", &script]))?.total())
    };
    let (few, many) = (count(FEW)?, count(MANY)?);
    gates.push(Gate {
        what: "system calls of the FUSE server per page read".into(),
        measured: ratio(many - few.min(many), MANY - FEW) - 2.0,
        allowed: 3.1,
    });
    for path in [raw, image] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Of 512 MiB every second piece is dead: a quarter has to move.
fn compaction(scratch: &Scratch, vhdkit: &str, format: &str, gates: &mut Vec<Gate>) -> Result<()> {
    const SIZE: u64 = 512 * MIB;
    let raw = scratch.in_memory("gate-alive.raw");
    let image = scratch.on_disk(&format!("gate-compact.{format}"));
    let again = scratch.on_disk(&format!("gate-again.{format}"));
    images::make(&raw, Kind::Rand, SIZE)?;
    run(&Argv::new(&[vhdkit, "convert", &raw, &image]))?;
    run(&crate::worker(&["deaden", &image, "alternate"])?)?;
    run(&Argv::new(&["cp", "--reflink=never", &image, &again]))?;
    run(&Argv::new(&[vhdkit, "convert", &image, &raw, "--force"]))?;
    let traced = trace(&Argv::new(&[vhdkit, "compact", &image]))?;
    crate::verify::same(&raw, &image)?;
    let moved = run(&crate::worker(&["compacted", &again])?)?.output;
    let moved: Vec<u64> = moved
        .split_whitespace()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let [reported, changed, needed] = moved[..] else {
        return Err("compacted said something else".into());
    };
    let name = |what: &str| format!("{what} by compact, {format}");
    gates.push(Gate {
        what: name("bytes with another place / that had none"),
        measured: ratio(changed, needed.max(1)),
        allowed: 1.0,
    });
    gates.push(Gate {
        what: name("bytes said to be moved / really moved"),
        measured: ratio(reported, changed.max(1)),
        allowed: 1.01,
    });
    gates.push(Gate {
        what: name("bytes written / that had to move"),
        measured: ratio(traced.bytes_written + traced.bytes_copied, needed.max(1)),
        allowed: 1.02,
    });
    // Opening and closing the log, or putting footers right; one commit for the blocks that are given back, one for all
    // that move; cutting off.
    gates.push(Gate {
        what: name("fdatasync"),
        measured: ratio(traced.count("fdatasync"), 1),
        allowed: if format == "vhdx" { 10.0 } else { 7.0 },
    });
    for path in [raw, image, again] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// A full child into a parent of which a quarter is there.
fn merge(scratch: &Scratch, vhdkit: &str, format: &str, gates: &mut Vec<Gate>) -> Result<()> {
    const SIZE: u64 = 256 * MIB;
    let (raw, base) = (
        scratch.in_memory("gate-child.raw"),
        scratch.in_memory("gate-parent.raw"),
    );
    let parent = scratch.on_disk(&format!("gate-parent.{format}"));
    let child = scratch.on_disk(&format!("gate-child.{format}"));
    images::make(&raw, Kind::Rand, SIZE)?;
    images::make(&base, Kind::Sp25, SIZE)?;
    run(&Argv::new(&[vhdkit, "convert", &base, &parent]))?;
    run(&Argv::new(&[vhdkit, "create", &child, "--parent", &parent]))?;
    run(&crate::worker(&["fill", &child, &raw])?)?;
    let traced = trace(&Argv::new(&[vhdkit, "merge", &child]))?;
    crate::verify::same(&raw, &parent)?;
    gates.push(Gate {
        what: format!("bytes written by merge / payload, {format}"),
        measured: ratio(traced.bytes_written + traced.bytes_copied, SIZE),
        allowed: 1.01,
    });
    gates.push(gate(
        format!("fdatasync of merge, {format}"),
        traced.count("fdatasync"),
        if format == "vhdx" { 16.0 } else { 6.0 },
    ));
    for path in [raw, base, parent, child] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// A variable of the environment with which operations are not shown to other processes: that costs something every 50 ms,
/// so its share would depend on how busy the machine is.
fn unseen(scratch: &Scratch) -> Result<String> {
    let folder = scratch.in_memory("gate-unseen");
    std::fs::create_dir_all(&folder)?;
    // In the way of the folder for what is running.
    std::fs::write(format!("{folder}/vhdkit"), "")?;
    Ok(format!("XDG_RUNTIME_DIR={folder}"))
}

fn gate(what: String, count: u64, allowed: f64) -> Gate {
    Gate {
        what,
        measured: ratio(count, 1),
        allowed,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of this size are exact")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}
