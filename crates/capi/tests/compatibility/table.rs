//! The table: what becomes of everything in the header, and a call that shows it.

use virtdisk::codes::*;

use crate::lab::{Code, Lab};

/// What becomes of something, and the code that its row's call returns.
#[derive(Clone, Copy)]
pub enum Here {
    /// As on Windows.
    Same(Code),
    /// It works, with a difference.
    Differs,
    /// Not here.
    Refused(Code),
}

pub struct Row {
    pub name: &'static str,
    pub here: Here,
    pub remark: &'static str,
    /// Tries it; fails if the effect is not there.
    pub run: fn(&Lab) -> Code,
}

pub struct Group {
    pub title: &'static str,
    pub about: &'static str,
    pub rows: Vec<Row>,
}

pub const SAME: Here = Here::Same(ERROR_SUCCESS);
pub const INVALID: Here = Here::Same(ERROR_INVALID_PARAMETER);
pub const REFUSED: Here = Here::Refused(ERROR_NOT_SUPPORTED);

/// `NAME: HERE, REMARK => |lab| CALLS;`
macro_rules! rows {
    ($($name:literal: $here:expr, $remark:literal => |$lab:ident| $body:expr;)*) => {
        vec![$(Row {
            name: $name,
            here: $here,
            remark: $remark,
            run: |$lab: &Lab| -> Code { $body },
        }),*]
    };
}

mod attaching;
mod changing;
mod later;
mod opening;

pub fn groups() -> Vec<Group> {
    [
        opening::groups(),
        attaching::groups(),
        changing::groups(),
        later::groups(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
