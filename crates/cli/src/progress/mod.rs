//! Running an operation while showing how far it is, here and to `vhdkit progress`. The operation is sampled ten times a
//! second, whatever its speed.

mod bar;

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vhdkit::operation::{Observer, Operation, Progress, Status, Subject, Unit};
use vhdkit::{Error, Result};

use bar::Bar;

use crate::args::ProgressChoice;
use crate::signals::Interrupt;
use crate::size;

/// Time between two looks at the operation.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// How progress is shown, all things considered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Show {
    Nothing,
    Bar,
    Text,
    Json,
}

impl Show {
    fn decide(choice: ProgressChoice) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = std::io::stderr().is_terminal() && !dumb;
        match (choice, terminal) {
            (ProgressChoice::None, _) | (ProgressChoice::Auto, false) => Show::Nothing,
            (ProgressChoice::Json, _) => Show::Json,
            (ProgressChoice::Auto | ProgressChoice::Bar, true) => Show::Bar,
            (ProgressChoice::Bar, false) => Show::Text,
        }
    }
}

/// Waits for an operation and shows its progress. Until it is over, the first signal cancels it; without `interrupt` a
/// signal ends the program as ever. Other processes see it as being about `subject`, and may cancel it too.
///
/// # Errors
/// What the operation ends with.
pub(crate) fn follow<T: Send + 'static>(
    operation: Operation<T>,
    subject: &Subject,
    choice: ProgressChoice,
    interrupt: Option<&Interrupt>,
) -> Result<T> {
    if let Some(interrupt) = interrupt {
        interrupt.cancels(operation.observer());
    }
    // Without a place for it nobody else sees it; the work goes on.
    let published = operation.observer().publish(subject);
    let (running, over) = mpsc::channel::<()>();
    let show = Show::decide(choice);
    let shower = (show != Show::Nothing).then(|| {
        let observer = operation.observer();
        let unit = subject.unit();
        // Without a thread for it there is no progress to see; the work goes on.
        thread::Builder::new()
            .name("progress".into())
            .spawn(move || watch(show, unit, &observer, &over))
    });
    let result = operation.wait();
    if let Some(interrupt) = interrupt {
        interrupt.lets_finish();
    }
    drop(published);
    drop(running);
    if let Some(Ok(shower)) = shower {
        let _ = shower.join();
    }
    result
}

fn watch(show: Show, unit: Unit, observer: &Observer, over: &Receiver<()>) {
    let mut view: Box<dyn View> = match show {
        Show::Bar => Box::new(Bar::new(unit)),
        Show::Text => Box::new(Text { unit, shown: 0 }),
        Show::Json | Show::Nothing => Box::new(Json { unit, begun: false }),
    };
    loop {
        let progress = observer.progress();
        if progress.status == Status::Pending {
            view.pending(observer.name(), progress, observer.is_cancelled());
        }
        // Woken at once by the end, so that a short operation does not take as long as a sample.
        match over.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => break,
        }
    }
    view.over(observer.name(), observer.progress());
}

/// A way of showing progress.
trait View {
    fn pending(&mut self, name: &str, progress: Progress, stopping: bool);
    fn over(&mut self, name: &str, progress: Progress);
}

/// A line for every tenth, for logs; where nobody knows the whole, whenever it has doubled.
struct Text {
    unit: Unit,
    shown: u64,
}

/// The least that is worth a line where nobody knows the whole, in bytes.
const WORTH_A_LINE: u64 = 64 << 20;

impl View for Text {
    fn pending(&mut self, name: &str, progress: Progress, _stopping: bool) {
        if self.unit == Unit::BytesSoFar {
            if progress.current >= WORTH_A_LINE.max(self.shown.saturating_mul(2)) {
                self.shown = progress.current;
                say(&format!("{name}: {}", size::short(progress.current)));
            }
            return;
        }
        let tenths = u128::from(progress.current) * 10 / u128::from(progress.completion.max(1));
        let tenths = u64::try_from(tenths).unwrap_or(10);
        if tenths > self.shown {
            self.shown = tenths;
            say(&format!("{name}: {}%", tenths * 10));
        }
    }

    fn over(&mut self, name: &str, progress: Progress) {
        let known = self.unit != Unit::BytesSoFar;
        if progress.status == Status::Succeeded && (self.shown < 10 || !known) {
            say(&format!("{name}: 100%"));
        }
    }
}

/// One object on a line for every look at the operation.
struct Json {
    unit: Unit,
    begun: bool,
}

/// The fields of a line; stable.
#[derive(Serialize)]
struct JsonLine<'a> {
    operation: &'a str,
    status: u32,
    #[serde(flatten)]
    numbers: Numbers,
}

/// How far it is, as programs are told.
#[derive(Serialize)]
pub(crate) struct Numbers {
    current: u64,
    completion: Option<u64>,
    percent: Option<f64>,
}

impl Numbers {
    /// The numbers of a finished operation mean nothing; what succeeded is shown as complete.
    pub(crate) fn of(mut progress: Progress, unit: Unit) -> Self {
        let succeeded = progress.status == Status::Succeeded;
        match unit {
            Unit::BytesSoFar if succeeded => progress.completion = progress.current,
            Unit::BytesSoFar => {
                return Self {
                    current: progress.current,
                    completion: None,
                    percent: None,
                };
            }
            _ if succeeded => progress.current = progress.completion,
            _ => {}
        }
        let percent = match progress.completion {
            // Nothing came at all.
            0 => 100.0,
            // Two decimals are enough.
            _ => (progress.percent() * 100.0).round() / 100.0,
        };
        Self {
            current: progress.current,
            completion: Some(progress.completion),
            percent: Some(percent),
        }
    }
}

impl JsonLine<'_> {
    fn say(name: &str, progress: Progress, unit: Unit) {
        let line = JsonLine {
            operation: name,
            status: progress.status.win32_code(),
            numbers: Numbers::of(progress, unit),
        };
        if let Ok(line) = serde_json::to_string(&line) {
            say(&line);
        }
    }
}

impl View for Json {
    fn pending(&mut self, name: &str, progress: Progress, _stopping: bool) {
        self.begun = true;
        JsonLine::say(name, progress, self.unit);
    }

    fn over(&mut self, name: &str, progress: Progress) {
        // Readers may count on a pending line, however short the work was.
        if !self.begun {
            let mut begin = progress;
            (begin.status, begin.current) = (Status::Pending, 0);
            JsonLine::say(name, begin, self.unit);
        }
        JsonLine::say(name, progress, self.unit);
    }
}

/// One write per line, so that lines of others do not end up inside.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The sentence for an operation that was stopped on request.
pub(crate) fn stopped(error: Error, outcome: &str) -> Error {
    if error.kind() == vhdkit::ErrorKind::Aborted {
        Error::new(vhdkit::ErrorKind::Aborted, format!("cancelled; {outcome}"))
    } else {
        error
    }
}
