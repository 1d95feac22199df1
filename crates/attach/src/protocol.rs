//! What processes say to each other: one line of JSON a time, over Unix sockets.
//!
//! Only programs of one version and one user talk this way, so it is no interface: anything unexpected is an error.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vhdkit::disk::{OpenOptions, ParentMap, Parents};
use vhdkit::image::Format;
use vhdkit::{Error, ErrorKind, Result};

use crate::paths;
use crate::record::Record;

/// A line is never longer.
const LONGEST: u64 = 1 << 20;

/// What a new server is asked for.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Request {
    /// The disk, absolute.
    #[serde(with = "paths::one")]
    pub(crate) path: PathBuf,
    pub(crate) id: String,
    pub(crate) read_only: bool,
    /// Serves on when the caller has gone.
    pub(crate) permanent: bool,
    /// Show it as a file in this folder instead of as a device.
    #[serde(with = "paths::option")]
    pub(crate) folder: Option<PathBuf>,
    /// The name of a format.
    pub(crate) format: Option<String>,
    #[serde(with = "paths::many")]
    pub(crate) parents: Vec<PathBuf>,
    /// Pairs of folders, there and here.
    pub(crate) parent_map: Vec<String>,
}

impl Request {
    /// How to open the disk.
    pub(crate) fn open_options(&self) -> Result<OpenOptions> {
        let mut map = ParentMap::new();
        for pair in &self.parent_map {
            map.add_pair(pair)?;
        }
        let parents = if self.parents.is_empty() {
            Parents::Recorded
        } else {
            Parents::Given(self.parents.clone())
        };
        let mut options = OpenOptions::new()
            .parents(parents)
            .parent_map(map)
            .writable(!self.read_only);
        if let Some(name) = &self.format {
            options = options.format(format_named(name)?);
        }
        Ok(options)
    }
}

const FORMATS: [(Format, &str); 4] = [
    (Format::Vhd, "vhd"),
    (Format::Vhdx, "vhdx"),
    (Format::Raw, "raw"),
    (Format::Iso, "iso"),
];

/// A format's name in a request.
pub(crate) fn format_name(format: Format) -> Option<String> {
    let found = FORMATS.iter().find(|(known, _)| *known == format);
    found.map(|(_, name)| (*name).to_owned())
}

fn format_named(name: &str) -> Result<Format> {
    let found = FORMATS.iter().find(|(_, known)| *known == name);
    found.map(|(format, _)| *format).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidParameter,
            format!("there is no format {name}"),
        )
    })
}

/// What a server is asked for once it serves.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Command {
    /// Let go of the device. With `lazy` whoever uses it may go on, and the answer comes at once; else it comes when
    /// the disk is closed.
    Detach { lazy: bool },
    /// Give the disk this size.
    Resize { size: u64 },
}

/// What a server answers.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Answer {
    /// What it serves now.
    Serving(Box<Record>),
    /// It was done.
    Done,
    Failed(Failure),
}

impl Answer {
    pub(crate) fn failed(error: &Error) -> Self {
        Answer::Failed(Failure::of(error))
    }
}

/// An error of the library, as it travels.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Failure {
    code: u32,
    action: Option<String>,
    #[serde(with = "paths::option")]
    path: Option<PathBuf>,
    reason: String,
    hint: Option<String>,
}

impl Failure {
    fn of(error: &Error) -> Self {
        // The action is what the sentence has besides: "cannot open PATH: REASON".
        let sentence = error.to_string();
        let place = sentence
            .strip_suffix(error.reason())
            .and_then(|start| start.strip_suffix(": "))
            .unwrap_or_default();
        let action = match error.path() {
            Some(path) => place
                .strip_suffix(&path.display().to_string())
                .unwrap_or_default()
                .trim_end(),
            None => place,
        };
        Self {
            code: error.kind().win32_code(),
            action: (!action.is_empty()).then(|| action.to_owned()),
            path: error.path().map(Into::into),
            reason: error.reason().to_owned(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl Failure {
    /// Speaks of a file by the name that its user has for it.
    pub(crate) fn named(mut self, absolute: &Path, name: &Path) -> Self {
        if self.path.as_deref() == Some(absolute) {
            self.path = Some(name.to_owned());
        }
        self
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = ErrorKind::ALL
            .iter()
            .find(|kind| kind.win32_code() == failure.code)
            .copied()
            .unwrap_or(ErrorKind::Io);
        let mut error = Error::new(kind, failure.reason);
        if let Some(path) = failure.path {
            error = error.with_path(path);
        }
        if let Some(action) = failure.action {
            error = error.while_doing(action);
        }
        if let Some(hint) = failure.hint {
            error = error.with_hint(hint);
        }
        error
    }
}

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Line {
    stream: BufReader<UnixStream>,
}

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// To wait for the other side. It may have been heard already.
    pub(crate) fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    /// Says something.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(message)?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text)
    }

    /// What the other side says next; `None` if it has gone.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let mut line = Vec::new();
        let limited = &mut self.stream.by_ref().take(LONGEST);
        limited.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_arrive_as_they_were() {
        let bare = Error::new(ErrorKind::DiskFull, "no space");
        let whole = Error::new(ErrorKind::SharingViolation, "the file is in use")
            .with_path("/a: b/c.vhdx")
            .while_doing("cannot open")
            .with_hint("close it");
        let half = Error::new(ErrorKind::NotSupported, "no: never").while_doing("cannot attach");
        let placed = Error::new(ErrorKind::NotFound, "gone").with_path("x");
        for error in [bare, whole, half, placed] {
            let text = serde_json::to_string(&Failure::of(&error)).unwrap();
            let back = Error::from(serde_json::from_str::<Failure>(&text).unwrap());
            assert_eq!(back.to_string(), error.to_string());
            assert_eq!(back.kind(), error.kind());
            assert_eq!(back.hint(), error.hint());
            assert_eq!(back.path(), error.path());
        }
    }

    #[test]
    fn whoever_has_gone_says_nothing() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Line::new(a), Line::new(b));
        a.send(&Command::Detach { lazy: true }).unwrap();
        a.stream.get_mut().write_all(b"{\"Resize\":").unwrap();
        drop(a);
        assert!(matches!(
            b.receive::<Command>().unwrap(),
            Some(Command::Detach { lazy: true })
        ));
        assert!(b.receive::<Command>().unwrap().is_none());
    }
}
