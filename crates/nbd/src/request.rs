//! The second half of a connection, from the client: bytes in, commands out; no I/O.
//!
//! [`decode`] only finds where a request ends; [`Rules::check`] says what it means, or which error it is answered with.

use crate::errno::Errno;
use crate::export::Export;
use crate::handshake::{Dialect, Session};
use crate::wire::{
    EXTENDED_REQUEST_LENGTH, EXTENDED_REQUEST_MAGIC, Fields, REQUEST_LENGTH, REQUEST_MAGIC,
    command, command_flag as flag,
};

/// What is at the front of the input.
#[derive(Debug, PartialEq)]
pub(crate) enum Decoded {
    /// Not yet a whole header.
    More,
    /// A header of so many bytes.
    Request(Request, usize),
    /// Not the protocol.
    Broken,
}

/// A request as it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What a reply has to repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReplyTo {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

/// A request that makes sense. Ranges lie within the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Read {
        offset: u64,
        length: u32,
        whole: bool,
    },
    Write {
        offset: u64,
        length: u32,
        durable: bool,
    },
    Zero {
        offset: u64,
        length: u64,
        durable: bool,
        may_unmap: bool,
        fast: bool,
    },
    Trim {
        offset: u64,
        length: u64,
        durable: bool,
    },
    Flush,
    Cache {
        offset: u64,
        length: u64,
    },
    Status {
        offset: u64,
        length: u64,
        one: bool,
    },
    Disconnect,
}

/// Why a request is refused.
pub(crate) type Refusal = (Errno, &'static str);

/// Length of a request without payload.
pub(crate) fn head_length(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Extended => EXTENDED_REQUEST_LENGTH,
        _ => REQUEST_LENGTH,
    }
}

pub(crate) fn decode(dialect: Dialect, input: &[u8]) -> Decoded {
    let mut fields = Fields(input);
    let extended = dialect == Dialect::Extended;
    let magic = if extended {
        EXTENDED_REQUEST_MAGIC
    } else {
        REQUEST_MAGIC
    };
    let header = head_length(dialect);
    // Wrong words are found as soon as they are there.
    match fields.u32() {
        Some(found) if found != magic => return Decoded::Broken,
        _ => {}
    }
    let mut request = || {
        Some(Request {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: if extended {
                fields.u64()?
            } else {
                fields.u32()?.into()
            },
        })
    };
    match request() {
        Some(request) if input.len() >= header => Decoded::Request(request, header),
        _ => Decoded::More,
    }
}

impl Request {
    /// Bytes that follow the header. A write always has them, whatever its flags say.
    pub(crate) fn payload(&self, dialect: Dialect) -> u64 {
        let announced = dialect == Dialect::Extended && self.flags & flag::PAYLOAD_LEN != 0;
        if announced || self.kind == command::WRITE {
            self.length
        } else {
            0
        }
    }

    pub(crate) fn reply_to(&self) -> ReplyTo {
        ReplyTo {
            cookie: self.cookie,
            offset: self.offset,
        }
    }
}

/// What requests of a session are held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    size: u64,
    read_only: bool,
    /// What ranges have to be made of.
    unit: u32,
    maximum: u32,
    dialect: Dialect,
    has_contexts: bool,
}

impl Rules {
    pub(crate) fn new(session: &Session, export: &dyn Export) -> Self {
        let blocks = export.block_sizes();
        Self {
            size: export.size(),
            read_only: export.is_read_only(),
            unit: if session.knows_blocks {
                blocks.minimum
            } else {
                1
            },
            maximum: blocks.maximum,
            dialect: session.dialect,
            has_contexts: !session.contexts.is_empty(),
        }
    }

    /// What a request asks for.
    pub(crate) fn check(&self, request: &Request) -> Result<Command, Refusal> {
        let &Request {
            kind,
            offset,
            length,
            ..
        } = request;
        if kind == command::DISCONNECT {
            // Whatever it says besides, it has no answer.
            return Ok(Command::Disconnect);
        }
        self.flags(request)?;
        let has = |bit: u16| request.flags & bit != 0;
        let durable = has(flag::FUA);
        match kind {
            command::FLUSH if (offset, length) == (0, 0) => return Ok(Command::Flush),
            command::FLUSH => {
                return Err((Errno::Invalid, "a flush has neither offset nor length"));
            }
            _ => {}
        }
        let changes = matches!(kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && self.read_only {
            return Err((Errno::NotPermitted, "the export is read-only"));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let errno = if matches!(kind, command::WRITE | command::WRITE_ZEROES) {
                Errno::NoSpace
            } else {
                Errno::Invalid
            };
            return Err((errno, "the range reaches past the end of the export"));
        }
        if length == 0 {
            return Err((Errno::Invalid, "the range is empty"));
        }
        let unit = u64::from(self.unit);
        if !offset.is_multiple_of(unit) || !length.is_multiple_of(unit) {
            return Err((Errno::Invalid, "the range is not made of whole blocks"));
        }
        match kind {
            command::READ => {
                let whole = has(flag::DF);
                let errno = if whole {
                    Errno::Overflow
                } else {
                    Errno::Invalid
                };
                let length = self.limited(length, errno)?;
                Ok(Command::Read {
                    offset,
                    length,
                    whole,
                })
            }
            command::WRITE => {
                let length = self.limited(length, Errno::Invalid)?;
                Ok(Command::Write {
                    offset,
                    length,
                    durable,
                })
            }
            command::TRIM => Ok(Command::Trim {
                offset,
                length,
                durable,
            }),
            command::CACHE => Ok(Command::Cache { offset, length }),
            command::WRITE_ZEROES => Ok(Command::Zero {
                offset,
                length,
                durable,
                may_unmap: !has(flag::NO_HOLE),
                fast: has(flag::FAST_ZERO),
            }),
            command::BLOCK_STATUS if self.has_contexts => Ok(Command::Status {
                offset,
                length,
                one: has(flag::REQ_ONE),
            }),
            _ => Err((Errno::Invalid, "no context was chosen")),
        }
    }

    fn flags(&self, request: &Request) -> Result<(), Refusal> {
        let own = match request.kind {
            command::READ if self.dialect != Dialect::Simple => flag::DF,
            command::WRITE if self.dialect == Dialect::Extended => flag::PAYLOAD_LEN,
            command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS => flag::REQ_ONE,
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
            _ => return Err((Errno::Invalid, "the command is not known here")),
        };
        // Clients may set FUA everywhere.
        if request.flags & !(own | flag::FUA) != 0 {
            return Err((Errno::Invalid, "a flag does not belong to the command"));
        }
        Ok(())
    }

    fn limited(&self, length: u64, errno: Errno) -> Result<u32, Refusal> {
        u32::try_from(length)
            .ok()
            .filter(|&length| length <= self.maximum)
            .ok_or((errno, "the range is longer than the largest request"))
    }
}
