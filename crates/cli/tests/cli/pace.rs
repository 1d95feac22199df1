//! The first sample of every verb is there at once, and samples move as long as the work does: by the clock, so with slack
//! for a machine that does other things, by as much as it is slower at this moment, and best of some tries. How the work
//! is told is tested without a clock in the library (`honest.rs`).

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::published::Place;

/// What the contract says, and what is allowed besides for starting a process and for whatever else runs here.
const FIRST: Duration = Duration::from_millis(50 + 150);
const MOVES: Duration = Duration::from_millis(200 + 200);
const TRIES: usize = 20;
/// On a machine that is so slow that even a command without work takes long, the first sample takes no more than so many
/// of these; where that takes milliseconds, as it should, this is no slack.
const STARTS: u32 = 5;
/// A pause is no longer than this part of the whole run either, however slow that is.
const PART: u32 = 4;

/// Enough that the work takes a while, in bytes.
const DATA: usize = 192 << 20;

/// When what was seen, since the command was started.
struct Seen {
    /// By whoever reads its progress lines.
    first_line: Duration,
    /// By other processes.
    published: Option<Duration>,
    longest_pause: Duration,
    whole: Duration,
}

impl Seen {
    /// `start` is how long a command without work takes now.
    fn is_good(&self, start: Duration) -> bool {
        let first = FIRST.max(start * STARTS);
        // What is over at once may have been missed.
        self.first_line < first
            && self.published.is_none_or(|at| at < first)
            && self.longest_pause < MOVES.max(self.whole / PART)
    }
}

/// How long a command takes that has nothing to do.
fn start_takes(place: &Place) -> Duration {
    let started = Instant::now();
    assert_eq!(place.run("--version").code, Some(0));
    started.elapsed()
}

fn watch(place: &Place, words: &str, input: Option<&str>) -> Seen {
    let mut command = place.command(&format!("{words} --progress json"));
    if let Some(input) = input {
        command.stdin(std::fs::File::open(place.folder.path(input)).unwrap());
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    let err = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut lines: Vec<(Duration, Value)> = Vec::new();
        let mut err = err.take(1 << 20);
        let mut line = String::new();
        while err.read_line(&mut line).unwrap() > 0 {
            let at = started.elapsed();
            let line = std::mem::take(&mut line);
            lines.push((
                at,
                serde_json::from_str(&line).unwrap_or(Value::String(line)),
            ));
        }
        lines
    });
    let mut published = None;
    while child.try_wait().unwrap().is_none() {
        if published.is_none() && place.entries() > 0 {
            published = Some(started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let lines = reader.join().unwrap();
    let (last, pending) = lines.split_last().unwrap();
    assert_eq!(last.1["status"], 0, "{words}: {lines:?}");
    let mut longest_pause = Duration::ZERO;
    let mut moved = Duration::ZERO;
    let mut shown = &Value::Null;
    for (at, line) in pending {
        assert_eq!(line["status"], 997, "{words}: {line}");
        // All that can be told of what is left at the end is that it is left.
        if &line["percent"] != shown && line["percent"] != 100.0 {
            longest_pause = longest_pause.max(at.saturating_sub(moved));
            (moved, shown) = (*at, &line["percent"]);
        }
    }
    let end = pending.last().unwrap();
    if end.1["percent"] != 100.0 {
        longest_pause = longest_pause.max(last.0.saturating_sub(moved));
    }
    Seen {
        first_line: pending[0].0,
        published,
        longest_pause,
        whole: last.0,
    }
}

#[test]
fn samples_of_every_verb_are_there_at_once_and_move() {
    let place = Place::new();
    let folder = &place.folder;
    folder.fill("a.img", DATA);
    folder.ok("convert a.img a.vhdx --block-size 1M");
    let zeros = "head -c 96M /dev/zero | $V write";
    for (words, input, before) in [
        ("create n.vhd 4G --type fixed --force", None, ""),
        ("convert a.img n.vhdx --force", None, ""),
        ("compare a.img a.vhdx", None, ""),
        ("read a.vhdx", None, ""),
        (
            "write w.vhdx --offset 0",
            Some("a.img"),
            "$V create w.vhdx 192M --force",
        ),
        (
            "compact c.vhdx",
            None,
            &*format!("cp a.vhdx c.vhdx; {zeros} c.vhdx --offset 0"),
        ),
        ("resize r.vhdx 1T", None, "cp a.vhdx r.vhdx"),
        (
            "merge m.vhdx",
            None,
            "$V create base.vhdx 192M --force; $V create m.vhdx --parent base.vhdx --force
            $V write m.vhdx --offset 0 < a.img",
        ),
        (
            "mirror a.vhdx e.vhdx --existing",
            None,
            "$V create e.vhdx 192M --force",
        ),
        ("mirror a.vhdx f.vhdx", None, "rm -f f.vhdx"),
    ] {
        let good = (0..TRIES).any(|_| {
            let ran = folder.shell(&format!("set -e; {before}"));
            assert_eq!(ran.code, Some(0), "{words}: {ran:?}");
            let before = start_takes(&place);
            let seen = watch(&place, words, input);
            let start = before.max(start_takes(&place));
            println!(
                "{words}: first line {:?}, published {:?}, longest pause {:?} of {:?}; a start takes {start:?}",
                seen.first_line, seen.published, seen.longest_pause, seen.whole
            );
            seen.is_good(start)
        });
        assert!(good, "{words}: too late in all of {TRIES} tries");
    }
}
