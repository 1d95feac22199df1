//! Findings of a check, gathered without letting a damaged file fill the memory.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Finding, Severity};

/// So many findings of one code are listed; the rest is counted.
const LISTED: u64 = 100;

/// The findings so far.
#[derive(Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    counts: HashMap<&'static str, (Severity, u64)>,
}

impl Findings {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn add(
        &mut self,
        code: &'static str,
        severity: Severity,
        offset: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) {
        let (_, count) = self.counts.entry(code).or_insert((severity, 0));
        *count += 1;
        if *count <= LISTED {
            let (offset, message) = (offset.into(), message.into());
            self.list.push(Finding {
                code,
                severity,
                offset,
                message,
            });
        }
    }

    /// Takes an error of an opening step as a fatal finding, unless the file could not be read at all.
    pub(crate) fn fatal(&mut self, code: &'static str, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::ReadFault
            | ErrorKind::Io
            | ErrorKind::AccessDenied
            | ErrorKind::OutOfMemory => Err(error),
            _ => {
                self.add(code, Severity::Fatal, None, error.reason());
                Ok(())
            }
        }
    }

    /// All of them, with a line for what was only counted.
    pub(crate) fn into_vec(mut self) -> Vec<Finding> {
        let mut more: Vec<_> = self
            .counts
            .into_iter()
            .filter(|&(_, (_, count))| count > LISTED)
            .collect();
        more.sort_unstable_by_key(|&(code, _)| code);
        for (code, (severity, count)) in more {
            let message = format!("and {} more like this", count - LISTED);
            self.list.push(Finding {
                code,
                severity,
                offset: None,
                message,
            });
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_findings_of_one_code_are_counted_not_listed() {
        let mut findings = Findings::new();
        for i in 0..250 {
            findings.add("a", Severity::Error, i, "x");
        }
        findings.add("b", Severity::Info, None, "y");
        let list = findings.into_vec();
        assert_eq!(list.len(), 102);
        assert_eq!(list[101].message, "and 150 more like this");
    }
}
