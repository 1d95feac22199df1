//! `vhdkit compare`: do two disks read the same?

use serde::Serialize;
use vhdkit::operation::{Subject, Unit};
use vhdkit::verbs::compare::compare;

use super::{Session, text};
use crate::args::{CompareArgs, open_options};
use crate::failure::{DIFFERENT, DONE, Failure};
use crate::formats;
use crate::progress::{follow, stopped};

/// The fields of the JSON output.
#[derive(Serialize)]
struct Verdict {
    a: String,
    b: String,
    same: bool,
    first_difference: Option<u64>,
    size_a: u64,
    size_b: u64,
}

pub(crate) fn run(args: &CompareArgs, session: &mut Session) -> Result<u8, Failure> {
    let open_a = args.parents.open_options()?;
    let open_b = if args.parent_b.is_empty() {
        open_a.clone()
    } else {
        open_options(&args.parent_b, &args.parents.parent_map)?
    };
    formats::warn_if_unlike_its_name(&args.a);
    formats::warn_if_unlike_its_name(&args.b);
    let (a, b) = (open_a.open(&args.a)?, open_b.open(&args.b)?);
    let (size_a, size_b) = (a.virtual_size(), b.virtual_size());
    let found = follow(
        compare(a, b),
        &Subject::disk(&args.a).and(&args.b).counted_in(Unit::Bytes),
        args.progress.progress,
        Some(&session.interrupt),
    )
    .map_err(|e| stopped(e, "the comparison was not finished"))?;
    let verdict = Verdict {
        a: text(&args.a),
        b: text(&args.b),
        same: found.first_difference.is_none(),
        first_difference: found.first_difference,
        size_a,
        size_b,
    };
    if args.output.json {
        session.out.json(&verdict)?;
    } else {
        session.out.line(verdict.sentence())?;
    }
    Ok(if verdict.same { DONE } else { DIFFERENT })
}

impl Verdict {
    fn sentence(&self) -> String {
        match self.first_difference {
            Some(offset) => format!(
                "different: {} and {} differ first at offset {offset}",
                self.a, self.b
            ),
            None if self.size_a != self.size_b => format!(
                "same: {} ({} bytes) and {} ({} bytes); what the longer one has more is zeros",
                self.a, self.size_a, self.b, self.size_b
            ),
            None => format!("same: {} and {}", self.a, self.b),
        }
    }
}
