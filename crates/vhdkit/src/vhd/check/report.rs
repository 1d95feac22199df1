//! Findings as they are collected: codes, and a limit for each.

use crate::error::{Error, ErrorKind};
use crate::image::{Finding, Severity};

/// Findings of one code beyond this many are only counted.
const MAX_PER_CODE: u64 = 100;

#[derive(Default)]
pub(super) struct Report {
    findings: Vec<Finding>,
    /// How often each code was met.
    counts: Vec<(&'static str, Severity, u64)>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        offset: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) {
        let known = self.counts.iter().position(|(c, _, _)| *c == code);
        let index = known.unwrap_or(self.counts.len());
        if known.is_none() {
            self.counts.push((code, severity, 0));
        }
        let (_, worst, count) = &mut self.counts[index];
        *worst = severity.max(*worst);
        *count += 1;
        if *count <= MAX_PER_CODE {
            self.findings.push(Finding {
                code,
                severity,
                offset: offset.into(),
                message: message.into(),
            });
        }
    }

    /// The reason why the file does not open.
    pub(super) fn fatal(&mut self, error: &Error, offset: Option<u64>) {
        let code = match error.kind() {
            ErrorKind::FooterMissing => "vhd-footer-lost",
            ErrorKind::FooterChecksumMismatch => "vhd-footer-checksum",
            ErrorKind::UnsupportedVersion => "vhd-footer-version",
            ErrorKind::InvalidType => "vhd-type-invalid",
            ErrorKind::InvalidSize => "vhd-size-invalid",
            ErrorKind::InvalidFileSize => "vhd-file-too-short",
            ErrorKind::SparseHeaderChecksumMismatch => "vhd-header-checksum",
            ErrorKind::SparseHeaderUnsupportedVersion => "vhd-header-version",
            ErrorKind::InvalidBlockSize => "vhd-block-size-invalid",
            _ => "vhd-header-corrupt",
        };
        self.add(Severity::Fatal, code, offset, error.reason());
    }

    pub(super) fn finish(mut self) -> Vec<Finding> {
        for (code, severity, count) in self.counts {
            if count > MAX_PER_CODE {
                self.findings.push(Finding {
                    code,
                    severity,
                    offset: None,
                    message: format!("{} more of the same kind", count - MAX_PER_CODE),
                });
            }
        }
        self.findings
    }
}
