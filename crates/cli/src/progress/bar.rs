//! The progress bar of a terminal: `convert  42% [=====>      ] 1.2 GiB/s, 12s left`.

use std::io;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use vhdkit::operation::{Progress, Unit};

use super::View;

/// What is over sooner than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(250);

/// Columns of a terminal in which a bar makes no sense.
const NARROW: u16 = 56;

/// The bar. It counts from the start, so that its first rate is right, but is only drawn once it is worth it.
pub(super) struct Bar {
    unit: Unit,
    since: Instant,
    /// Nothing moves any more, so there is no rate and nobody knows how long it takes.
    still: bool,
    drawn: ProgressBar,
}

fn style(unit: Unit, still: bool) -> ProgressStyle {
    let narrow = Term::stderr().size().1 < NARROW;
    let template = match unit {
        Unit::BytesSoFar if narrow => "{msg} {binary_bytes}",
        _ if narrow => "{msg} {percent:>3}%",
        Unit::Bytes if !still => {
            "{msg} {percent:>3}% [{wide_bar}] {binary_bytes_per_sec}, {eta} left"
        }
        Unit::BytesSoFar => "{msg} {binary_bytes}, {binary_bytes_per_sec}",
        _ => "{msg} {percent:>3}% [{wide_bar}]",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Bar {
    pub(super) fn new(unit: Unit) -> Self {
        let bar = ProgressBar::hidden();
        bar.set_style(style(unit, false));
        Self {
            unit,
            since: Instant::now(),
            still: false,
            drawn: bar,
        }
    }
}

impl View for Bar {
    fn pending(&mut self, name: &str, progress: Progress, stopping: bool) {
        if self.drawn.is_hidden() && self.since.elapsed() >= PATIENCE {
            let screen = Box::new(Screen(Term::stderr()));
            let target = ProgressDrawTarget::term_like_with_hz(screen, 10);
            self.drawn.set_draw_target(target);
        }
        let all = progress.current >= progress.completion && self.unit != Unit::BytesSoFar;
        if all != self.still {
            self.still = all;
            self.drawn.set_style(style(self.unit, all));
        }
        let note = match (stopping, all) {
            (true, _) => " (stopping)",
            // What is left, mostly writing out what the system still holds in memory, has no numbers.
            (false, true) if name != "mirror" => " (finishing)",
            (false, true) => " (in step)",
            _ => "",
        };
        let message = format!("{name}{note}");
        if self.drawn.message() != message {
            self.drawn.set_message(message);
        }
        // Drawn once for both.
        self.drawn.update(|state| {
            state.set_len(progress.completion);
            state.set_pos(progress.current);
        });
    }

    fn over(&mut self, _name: &str, _progress: Progress) {
        self.drawn.finish_and_clear();
    }
}

/// The terminal without its last columns: there it shows "^C" when somebody presses it. At the very end of the line it
/// would begin a new one, and the bar could not be cleared any more.
#[derive(Debug)]
struct Screen(Term);

const MARGIN: u16 = 4;

impl TermLike for Screen {
    fn width(&self) -> u16 {
        self.0.size().1.saturating_sub(MARGIN)
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.0.write_line(s)
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.0.write_str(s)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}
