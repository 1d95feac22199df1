//! `vhdkit check`: what is wrong with a file, or with each file of a chain.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vhdkit::disk::{OpenOptions, Parents, detect_format, find_parents};
use vhdkit::image::{Finding, Severity};
use vhdkit::storage::{Access, FileStorage};
use vhdkit::verbs::check::{broken_chain, check_file, check_links};
use vhdkit::{Error, VirtualDisk};

use super::{Session, text};
use crate::args::CheckArgs;
use crate::failure::{DONE, Description, FAILED, FINDINGS, Failure};
use crate::formats;
use crate::output::Output;
use crate::size::plural;

pub(crate) fn run(args: &CheckArgs, session: &mut Session) -> Result<u8, Failure> {
    let mut report = Report {
        files: vec![File::check(&args.path)?],
        chain_error: None,
        worst: None,
    };
    if (args.chain || args.parents.names_parents())
        && let Err(error) = report.check_parents(args)
    {
        report.add_broken_chain(&error);
    }
    let worst = report.worst_severity();
    report.worst = worst.map(Severity::name);
    if args.output.json {
        session.out.json(&report)?;
    } else {
        report.print(&mut session.out)?;
    }
    Ok(match worst {
        Some(severity) if severity > Severity::Info => FINDINGS,
        _ if report.chain_error.is_some() => FAILED,
        _ => DONE,
    })
}

/// The fields of the JSON output.
#[derive(Serialize)]
struct Report {
    files: Vec<File>,
    chain_error: Option<Description>,
    worst: Option<&'static str>,
}

#[derive(Serialize)]
struct File {
    path: String,
    format: &'static str,
    findings: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    code: &'static str,
    severity: &'static str,
    offset: Option<u64>,
    message: String,
    #[serde(skip)]
    rank: Severity,
}

impl From<Finding> for Found {
    fn from(finding: Finding) -> Self {
        Self {
            code: finding.code,
            severity: finding.severity.name(),
            offset: finding.offset,
            message: finding.message,
            rank: finding.severity,
        }
    }
}

impl File {
    fn check(path: &Path) -> Result<Self, Error> {
        let doing = |e: Error| e.with_path(path).while_doing("cannot check");
        let format = FileStorage::open(path, Access::ReadOnly)
            .and_then(|storage| detect_format(&storage))
            .map_err(doing)?;
        let mut findings: Vec<Found> = check_file(path)
            .map_err(doing)?
            .into_iter()
            .map(Found::from)
            .collect();
        if let Some(promised) = formats::missing_signature(path) {
            findings.push(Found::from(Finding {
                code: "file-signature-missing",
                severity: Severity::Error,
                offset: None,
                message: format!(
                    "the name is that of a {0} file, but no {0} signature was found; the file reads as a raw disk",
                    promised.name()
                ),
            }));
        }
        Ok(Self {
            path: text(path),
            format: format.name(),
            findings,
        })
    }
}

impl Report {
    /// Checks what is behind the leaf; an error is about the chain as a whole.
    fn check_parents(&mut self, args: &CheckArgs) -> Result<(), Error> {
        let open = match args.parents.open_options() {
            Ok(open) => open,
            Err(Failure::Disk(error)) => return Err(error),
            Err(_) => OpenOptions::new(),
        };
        let whole = open.open(&args.path);
        let parents = match &whole {
            Ok(disk) => disk
                .layers()
                .iter()
                .skip(1)
                .map(|layer| layer.path.clone())
                .collect(),
            Err(_) => reachable_parents(args),
        };
        for parent in parents {
            self.files.push(File::check(&parent)?);
        }
        let whole = whole?;
        for (number, finding) in check_links(&whole) {
            if let Some(child) = self.files.get_mut(number) {
                child.findings.push(Found::from(finding));
            }
        }
        Ok(())
    }

    /// The chain cannot be opened: a finding about the child where it breaks, if it could be looked at.
    fn add_broken_chain(&mut self, error: &Error) {
        self.chain_error = Some(Description::of(error));
        let child = error.path().map(text);
        let place = self
            .files
            .iter()
            .position(|file| Some(&file.path) == child.as_ref());
        if let Some(finding) = broken_chain(error)
            && let Some(file) = self.files.get_mut(place.unwrap_or(0))
        {
            file.findings.push(Found::from(finding));
        }
    }

    fn worst_severity(&self) -> Option<Severity> {
        let findings = self.files.iter().flat_map(|f| &f.findings);
        findings.map(|f| f.rank).max()
    }

    fn print(&self, out: &mut Output) -> Result<(), Failure> {
        for file in &self.files {
            out.line(match file.findings.len() {
                0 => format!("{}: nothing found", file.path),
                n => format!("{}: {}", file.path, plural(n as u64, "finding")),
            })?;
            for found in &file.findings {
                let place = match found.offset {
                    Some(offset) => format!(" at {offset}"),
                    None => String::new(),
                };
                out.line(format!(
                    "  {:<8} {}{place}: {}",
                    found.severity, found.code, found.message
                ))?;
            }
        }
        if let Some(error) = &self.chain_error {
            out.line(format!("chain: {}", error.message))?;
            if let Some(hint) = &error.hint {
                out.line(format!("hint: {hint}"))?;
            }
        }
        Ok(())
    }
}

/// The parents of a chain that does not open, as far as one leads to the next.
fn reachable_parents(args: &CheckArgs) -> Vec<PathBuf> {
    let Ok(map) = args.parents.map() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut seen = HashSet::from([std::path::absolute(&args.path).unwrap_or_default()]);
    let mut child = args.path.clone();
    loop {
        let alone = OpenOptions::new().parents(Parents::Ignored).open(&child);
        let Some(reference) = alone
            .ok()
            .as_ref()
            .and_then(|d: &VirtualDisk| d.info().parent)
        else {
            return found;
        };
        let parent = match args.parents.parent.get(found.len()) {
            Some(given) => Some(given.clone()),
            None => find_parents(&child, &reference, &map)
                .ok()
                .map(|mut found| found.swap_remove(0)),
        };
        match parent {
            // What does not exist is what the chain's own error tells of.
            Some(parent)
                if parent.exists()
                    && seen.insert(std::path::absolute(&parent).unwrap_or_default()) =>
            {
                found.push(parent.clone());
                child = parent;
            }
            _ => return found,
        }
    }
}
