//! How a command ends when it does not do what it was asked for, and how people and programs are told.

use std::io;

use serde::Serialize;
use vhdkit::{Error, ErrorKind};

use crate::output::shown;

/// Why a command ends without having done its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request makes no sense; exit code 2.
    Usage {
        /// What is wrong with it.
        message: String,
        /// What to write instead.
        hint: Option<String>,
    },
    /// The library says no; exit code 1, or 130 if it was told to stop.
    Disk(Error),
    /// Standard output cannot be written; exit code 1.
    Output(io::Error),
    /// Standard input cannot be read; exit code 1.
    Input(io::Error),
}

/// The command did its work.
pub(crate) const DONE: u8 = 0;
/// The command failed.
pub(crate) const FAILED: u8 = 1;
/// The disks differ (`compare`).
pub(crate) const DIFFERENT: u8 = 1;
/// The arguments make no sense; also any failure of `compare`.
pub(crate) const USAGE: u8 = 2;
/// Something was found (`check`).
pub(crate) const FINDINGS: u8 = 3;
/// Stopped by a signal.
pub(crate) const INTERRUPTED: u8 = 130;

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure::Usage {
            message: message.into(),
            hint: None,
        }
    }

    /// Says what to write instead.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Failure::Usage { message, .. } => Failure::Usage {
                message,
                hint: Some(hint.into()),
            },
            Failure::Disk(e) => Failure::Disk(e.with_hint(hint)),
            other => other,
        }
    }

    /// The exit code, if the command has no code of its own for failures.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage { .. } => USAGE,
            Failure::Disk(e) if e.kind() == ErrorKind::Aborted => INTERRUPTED,
            _ => FAILED,
        }
    }

    /// Tells about it on standard error: two lines for people, or one of JSON.
    pub(crate) fn report(&self, json: bool) {
        let text = if json {
            let body = Report {
                error: self.describe(),
            };
            serde_json::to_string(&body).unwrap_or_default()
        } else {
            let told = self.describe();
            let message = shown(&told.message);
            match told.hint {
                Some(hint) => format!("vhdkit: {message}\nhint: {}", shown(&hint)),
                None => format!("vhdkit: {message}"),
            }
        };
        // With standard error gone there is nobody left to tell.
        let _ = io::Write::write_all(&mut io::stderr(), format!("{text}\n").as_bytes());
    }

    /// The same, as fields.
    pub(crate) fn describe(&self) -> Description {
        match self {
            Failure::Usage { message, hint } => Description {
                kind: "usage".into(),
                win32_code: ErrorKind::InvalidParameter.win32_code(),
                message: message.clone(),
                path: None,
                reason: message.clone(),
                hint: hint.clone(),
            },
            Failure::Disk(error) => Description::of(error),
            Failure::Output(e) => Description::of(&stream("write to standard output", e)),
            Failure::Input(e) => Description::of(&stream("read from standard input", e)),
        }
    }
}

fn stream(action: &str, error: &io::Error) -> Error {
    // The error is told once more from its number, since it cannot be copied.
    let copy = match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    };
    Error::io(action, copy)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Disk(error)
    }
}

/// The JSON line of a failure.
#[derive(Serialize)]
struct Report {
    error: Description,
}

/// An error as the JSON output has it.
#[derive(Serialize, Debug)]
pub(crate) struct Description {
    /// The kind, such as `not_found`.
    pub(crate) kind: String,
    /// The Win32 error code that stands for the kind.
    pub(crate) win32_code: u32,
    /// The sentence that people are shown.
    pub(crate) message: String,
    /// The file it is about.
    pub(crate) path: Option<String>,
    /// Why, without the file.
    pub(crate) reason: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Description {
    pub(crate) fn of(error: &Error) -> Self {
        Self {
            kind: snake_case(&format!("{:?}", error.kind())),
            win32_code: error.kind().win32_code(),
            message: error.to_string(),
            path: error.path().map(|p| p.display().to_string()),
            reason: error.reason().into(),
            hint: error
                .hint()
                .or_else(|| usual_hint(error.kind()))
                .map(str::to_owned),
        }
    }
}

/// What mostly helps, where the library knows of nothing better.
fn usual_hint(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::FileCorrupt
        | ErrorKind::FooterMissing
        | ErrorKind::FooterChecksumMismatch
        | ErrorKind::FooterCorrupt
        | ErrorKind::SparseHeaderChecksumMismatch
        | ErrorKind::SparseHeaderUnsupportedVersion
        | ErrorKind::SparseHeaderCorrupt
        | ErrorKind::BlockAllocationTableCorrupt
        | ErrorKind::BitmapMismatch
        | ErrorKind::InvalidFileSize
        | ErrorKind::ErrorInParent => {
            "the file is damaged: 'vhdkit check' lists what is wrong; copy it again from its source"
        }
        ErrorKind::FormatUnknown | ErrorKind::UnsupportedVersion => {
            "vhdkit reads VHD, VHDX, raw and ISO files"
        }
        ErrorKind::InvalidSize
        | ErrorKind::InvalidBlockSize
        | ErrorKind::UnsupportedSectorSize
        | ErrorKind::BlockAllocationFailure => "'vhdkit help create' says which sizes there are",
        ErrorKind::FileTooLarge => "use a file system that holds larger files",
        ErrorKind::ReadFault | ErrorKind::WriteFault | ErrorKind::Io => {
            "the log of the system (dmesg) may say more"
        }
        ErrorKind::InvalidParameter
        | ErrorKind::InvalidType
        | ErrorKind::NotSupported
        | ErrorKind::BeyondEnd => "'vhdkit help' and the command say what is possible",
        ErrorKind::NotFound | ErrorKind::PathNotFound => "check the spelling of the path",
        ErrorKind::AlreadyExists => "choose another name",
        ErrorKind::InvalidState => "'vhdkit check' says more about the file",
        ErrorKind::OutOfMemory => "end other programs, or use a machine with more memory",
        _ => return None,
    })
}

/// `ParentNotFound` as `parent_not_found`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (i, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_for_programs() {
        let missing = Failure::Disk(Error::new(ErrorKind::ParentNotFound, "gone"));
        assert_eq!(missing.describe().kind, "parent_not_found");
        assert_eq!(missing.exit_code(), FAILED);
        let stopped = Failure::Disk(Error::new(ErrorKind::Aborted, "cancelled"));
        assert_eq!(stopped.exit_code(), INTERRUPTED);
        assert_eq!(Failure::usage("no").exit_code(), USAGE);
    }
}
