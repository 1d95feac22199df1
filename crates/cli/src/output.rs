//! Standard output that does not mind when the reader goes away, and the JSON that is written to it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

use serde::Serialize;

use crate::failure::Failure;

/// Standard output. When the reader has gone (`vhdkit map x | head`), what is written is dropped without a word, and
/// [`Output::is_closed`] says so: a command whose only purpose is its output then stops, one with a verdict goes on to
/// its exit code.
pub(crate) struct Output {
    // Many short rows are few system calls, and a large piece is written as it is: the standard library's own handle
    // would look through it for line ends. `None` if standard output is not open.
    writer: Option<io::BufWriter<File>>,
    closed: bool,
}

impl Output {
    pub(crate) fn new() -> Self {
        let file = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        Self {
            writer: file
                .ok()
                .map(|file| io::BufWriter::with_capacity(64 * 1024, file)),
            closed: false,
        }
    }

    /// True if nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.with(|writer| writer.write_all(bytes))
    }

    /// Writes one line for people.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        self.bytes(shown(text.as_ref()).as_bytes())?;
        self.bytes(b"\n")
    }

    /// Writes a value as indented JSON and a line end.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::from);
        self.bytes(text.map_err(Failure::Output)?.as_bytes())?;
        self.bytes(b"\n")
    }

    /// Everything written so far reaches the reader.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.with(Write::flush)
    }

    fn with(
        &mut self,
        act: impl FnOnce(&mut io::BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let Some(writer) = self.writer.as_mut().filter(|_| !self.closed) else {
            return Ok(());
        };
        match act(writer) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.map_err(Failure::Output),
        }
    }
}

/// Text in one line that a terminal only shows. File names and what disks say of themselves may hold anything, also what
/// would command a terminal.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        if letter.is_control() {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    Cow::Owned(out)
}

/// Says something on standard error that is no failure.
pub(crate) fn warn(text: &str) {
    note(&format!("warning: {text}"));
}

/// Says on standard error what goes on.
pub(crate) fn note(text: &str) {
    let line = format!("vhdkit: {}\n", shown(text));
    // With standard error gone there is nobody left to hear it.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// True if people see standard output as it is written.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_command_a_terminal_is_shown_instead() {
        assert_eq!(shown("Größe 😀.vhdx"), "Größe 😀.vhdx");
        assert_eq!(shown("a\x1b[2J\x07\nb\u{9b}"), r"a\u{1b}[2J\u{7}\nb\u{9b}");
    }
}
