//! `vhdkit progress`: how far the operations of all processes are.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use console::Term;
use serde::Serialize;
use vhdkit::operation::{PublishedOperation, Standing, Status, Unit, pending, pending_on};

use super::{Session, text};
use crate::args::PendingArgs;
use crate::failure::{DONE, Failure};
use crate::output::{self, Output};
use crate::progress::{INTERVAL, Numbers};
use crate::size;

/// ERROR_PROCESS_ABORTED: the status of an operation whose process ended without a word.
const LOST: u32 = 1067;

pub(crate) fn run(args: &PendingArgs, session: &mut Session) -> Result<u8, Failure> {
    let path = args.path.as_deref();
    let found = find(path)?;
    let out = &mut session.out;
    match (args.watch, args.output.json) {
        (false, true) => {
            let rows: Vec<Row<'_>> = found
                .iter()
                .map(|o| Row::of(o, Standing::Running))
                .collect();
            out.json(&rows)?;
        }
        (true, true) => watch(path, found, &mut Lines, out)?,
        (_, false) if found.is_empty() => out.line(nothing(path))?,
        (false, false) => {
            for operation in &found {
                out.line(line(operation, usize::MAX))?;
            }
        }
        (true, false) if output::is_terminal() => {
            watch(path, found, &mut Screen { drawn: 0 }, out)?;
        }
        (true, false) => watch(path, found, &mut Log::default(), out)?,
    }
    Ok(DONE)
}

fn find(path: Option<&Path>) -> vhdkit::Result<Vec<PublishedOperation>> {
    match path {
        Some(path) => pending_on(path),
        None => pending(),
    }
}

fn nothing(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("nothing is running on {}", text(path)),
        None => "nothing is running".into(),
    }
}

/// One operation; the fields are those of the JSON output.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    operation: &'a str,
    path: String,
    other: Option<String>,
    pid: u32,
    started: String,
    status: u32,
    #[serde(flatten)]
    numbers: Numbers,
}

impl<'a> Row<'a> {
    pub(super) fn of(operation: &'a PublishedOperation, standing: Standing) -> Self {
        let progress = operation.progress();
        Self {
            operation: operation.name(),
            path: text(operation.path()),
            other: operation.other().map(text),
            pid: operation.pid(),
            started: humantime::format_rfc3339_seconds(operation.started()).to_string(),
            status: match standing {
                Standing::Lost => LOST,
                _ => progress.status.win32_code(),
            },
            numbers: Numbers::of(progress, operation.unit()),
        }
    }
}

/// `convert   42% [====>     ]  1.2 GiB of 2.86 GiB  12s  pid 4711  /disks/new.vhdx`
///
/// At most so many characters: of a path that does not fit the end is shown, and before that becomes too short other
/// things are left out.
fn line(operation: &PublishedOperation, most: usize) -> String {
    const WIDTH: u64 = 10;
    let progress = operation.progress();
    let known = operation.unit() != Unit::BytesSoFar;
    let of = |whole: u64| {
        let part = u128::from(progress.current) * u128::from(whole);
        u64::try_from(part / u128::from(progress.completion.max(1))).unwrap_or(whole)
    };
    let bar: String = (0..WIDTH)
        .map(|i| match i.cmp(&of(WIDTH)) {
            _ if !known => ' ',
            std::cmp::Ordering::Less => '=',
            std::cmp::Ordering::Equal => '>',
            std::cmp::Ordering::Greater => ' ',
        })
        .collect();
    let percent = if known {
        format!("{:>3}%", of(100))
    } else {
        "   ?".into()
    };
    let current = size::short(progress.current);
    let amount = match operation.unit() {
        Unit::Bytes => format!("{current} of {}", size::short(progress.completion)),
        Unit::BytesSoFar => format!("{current} so far"),
        _ => String::new(),
    };
    let elapsed = SystemTime::now().duration_since(operation.started());
    let elapsed = Duration::from_secs(elapsed.map_or(0, |d| d.as_secs()));
    let stopping = if operation.is_cancel_requested() {
        "(stopping)"
    } else {
        ""
    };
    fitted(
        &format!("{:<8} {percent}", operation.name()),
        [
            &format!("[{bar}]"),
            &amount,
            &humantime::format_duration(elapsed).to_string(),
            &format!("pid {}", operation.pid()),
            stopping,
        ],
        // Where nobody knows how much there is, the bar says less than the amount.
        if known { [3, 2, 1, 0] } else { [3, 2, 0, 1] },
        &text(operation.path()),
        most,
    )
}

/// So many characters of a path tell which it is.
const LEAST_OF_PATH: usize = 24;

/// The parts of a line in their order, as far as they fit beside enough of the path; `left_out` are those that may go.
fn fitted(
    name: &str,
    mut parts: [&str; 5],
    left_out: [usize; 4],
    path: &str,
    most: usize,
) -> String {
    let wanted = path.chars().count().min(LEAST_OF_PATH);
    let joined = |parts: &[&str]| {
        let mut line = name.to_owned();
        for (i, part) in parts
            .iter()
            .enumerate()
            .filter(|(_, part)| !part.is_empty())
        {
            line.push_str(if i == 0 { " " } else { "  " });
            line.push_str(part);
        }
        line + "  "
    };
    let mut line = joined(&parts);
    for part in left_out {
        if line.chars().count().saturating_add(wanted) <= most {
            break;
        }
        parts[part] = "";
        line = joined(&parts);
    }
    let room = most.saturating_sub(line.chars().count());
    let surplus = path.chars().count().saturating_sub(room);
    if surplus == 0 {
        line.push_str(path);
    } else {
        line.push_str("...");
        line.extend(path.chars().skip(surplus + 3));
    }
    line.chars().take(most).collect()
}

/// How an operation ended, in words.
pub(super) fn ending(operation: &PublishedOperation, standing: Standing) -> String {
    let what = format!("{} of {}", operation.name(), text(operation.path()));
    match (standing, operation.progress().status) {
        (Standing::Lost, _) => format!(
            "{what}: its process, {}, ended without a word",
            operation.pid()
        ),
        (_, Status::Succeeded) => format!("{what}: done"),
        (_, Status::Failed(vhdkit::ErrorKind::Aborted)) => format!("{what}: cancelled"),
        (_, Status::Failed(kind)) => {
            format!("{what}: failed, with code {}", kind.win32_code())
        }
        (_, Status::Pending) => format!("{what}: running"),
    }
}

/// A way of showing operations again and again.
trait View {
    fn show(&mut self, running: &[PublishedOperation], out: &mut Output) -> Result<(), Failure>;
    fn over(
        &mut self,
        operation: &PublishedOperation,
        standing: Standing,
        out: &mut Output,
    ) -> Result<(), Failure>;
}

/// Shows what runs until nothing does; what starts meanwhile is shown too.
fn watch(
    path: Option<&Path>,
    mut running: Vec<PublishedOperation>,
    view: &mut dyn View,
    out: &mut Output,
) -> Result<(), Failure> {
    loop {
        view.show(&running, out)?;
        out.flush()?;
        if running.is_empty() || out.is_closed() {
            return Ok(());
        }
        sleep(INTERVAL);
        let mut still = Vec::new();
        for mut operation in running {
            match operation.refresh() {
                Standing::Running => still.push(operation),
                standing => view.over(&operation, standing, out)?,
            }
        }
        running = still;
        for new in find(path)? {
            if !running.iter().any(|known| known.id() == new.id()) {
                running.push(new);
            }
        }
    }
}

/// JSON, one object on a line for every operation and look.
struct Lines;

impl Lines {
    fn say(row: &Row<'_>, out: &mut Output) -> Result<(), Failure> {
        let line = serde_json::to_string(row);
        out.line(line.map_err(|e| Failure::Output(e.into()))?)
    }
}

impl View for Lines {
    fn show(&mut self, running: &[PublishedOperation], out: &mut Output) -> Result<(), Failure> {
        running
            .iter()
            .try_for_each(|o| Self::say(&Row::of(o, Standing::Running), out))
    }

    fn over(
        &mut self,
        operation: &PublishedOperation,
        standing: Standing,
        out: &mut Output,
    ) -> Result<(), Failure> {
        Self::say(&Row::of(operation, standing), out)
    }
}

/// A terminal: the lines of what runs are drawn over the ones before, endings stay above them.
struct Screen {
    drawn: usize,
}

impl Screen {
    fn clear(&mut self, out: &mut Output) -> Result<(), Failure> {
        out.flush()?;
        let cleared = Term::stdout().clear_last_lines(std::mem::take(&mut self.drawn));
        cleared.map_err(Failure::Output)
    }
}

impl View for Screen {
    fn show(&mut self, running: &[PublishedOperation], out: &mut Output) -> Result<(), Failure> {
        self.clear(out)?;
        let (height, width) = Term::stdout().size();
        // A line that wraps, or scrolls away, could not be cleared any more.
        for operation in running.iter().take(usize::from(height).saturating_sub(2)) {
            let most = usize::from(width).saturating_sub(1);
            out.line(line(operation, most))?;
            self.drawn += 1;
        }
        Ok(())
    }

    fn over(
        &mut self,
        operation: &PublishedOperation,
        standing: Standing,
        out: &mut Output,
    ) -> Result<(), Failure> {
        self.clear(out)?;
        out.line(ending(operation, standing))
    }
}

/// A file or a pipe: a line for every tenth of every operation.
#[derive(Default)]
struct Log {
    shown: Vec<(String, u64)>,
}

impl View for Log {
    fn show(&mut self, running: &[PublishedOperation], out: &mut Output) -> Result<(), Failure> {
        for operation in running {
            let progress = operation.progress();
            let tenths = u128::from(progress.current) * 10 / u128::from(progress.completion.max(1));
            let tenths = match operation.unit() {
                // Nobody knows the whole.
                Unit::BytesSoFar => 0,
                _ => u64::try_from(tenths).unwrap_or(10),
            };
            let last = self.shown.iter_mut().find(|(id, _)| id == operation.id());
            match last {
                Some((_, last)) if *last >= tenths => continue,
                Some((_, last)) => *last = tenths,
                None => self.shown.push((operation.id().to_owned(), tenths)),
            }
            out.line(line(operation, usize::MAX))?;
        }
        Ok(())
    }

    fn over(
        &mut self,
        operation: &PublishedOperation,
        standing: Standing,
        out: &mut Output,
    ) -> Result<(), Failure> {
        self.shown.retain(|(id, _)| id != operation.id());
        out.line(ending(operation, standing))
    }
}

#[cfg(test)]
mod tests {
    use super::fitted;

    #[test]
    fn of_a_line_that_is_too_long_the_name_and_the_end_of_the_path_stay() {
        let parts = ["[====>     ]", "1.2 GiB of 2.86 GiB", "12s", "pid 4711", ""];
        let path = "/srv/disks/of/many/guests/new.vhdx";
        let shown = |most| fitted("convert   42%", parts, [3, 2, 1, 0], path, most);
        assert_eq!(
            shown(usize::MAX),
            "convert   42% [====>     ]  1.2 GiB of 2.86 GiB  12s  pid 4711  /srv/disks/of/many/guests/new.vhdx"
        );
        assert_eq!(
            shown(90),
            "convert   42% [====>     ]  1.2 GiB of 2.86 GiB  12s  pid 4711  ...of/many/guests/new.vhdx"
        );
        assert_eq!(
            shown(79),
            "convert   42% [====>     ]  1.2 GiB of 2.86 GiB  12s  ...f/many/guests/new.vhdx"
        );
        assert_eq!(
            shown(59),
            "convert   42% [====>     ]  ...isks/of/many/guests/new.vhdx"
        );
        assert_eq!(shown(40), "convert   42%  ...f/many/guests/new.vhdx");
        assert_eq!(shown(20), "convert   42%  ...dx");
        assert_eq!(
            fitted("write       ?", parts, [3, 2, 0, 1], path, 60),
            "write       ?  1.2 GiB of 2.86 GiB  .../many/guests/new.vhdx"
        );
        assert!((0..100).all(|most| shown(most).chars().count() <= most));
    }
}
