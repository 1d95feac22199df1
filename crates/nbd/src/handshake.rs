//! The first half of a connection: client and server agree on an export and on a dialect. Bytes in, bytes and a
//! [`Step`] out; no I/O.
//!
//! 1. Nothing that a client says before TLS is remembered after it.
//! 2. Where TLS is required, nothing is said before it but that it is.
//! 3. An option has at most [`MAX_OPTION`] bytes of data; more is skipped, much more ends the connection.

use std::sync::Arc;

use crate::export::{BlockSizes, Catalog, Entry, MAX_NAME};
use crate::wire::{
    Fields, GREETING, OPTION_LENGTH, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info,
    option, option_reply, transmission_flag as flag,
};

/// Most data of an option that is looked at.
pub(crate) const MAX_OPTION: usize = 64 << 10;
/// Most data of an option that is skipped; a client that announces more is not one.
const MAX_SKIPPED: usize = 1 << 20;

/// What to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Call again at once, with the rest of the input.
    Again,
    /// Call again when there is more input.
    More,
    /// Send the output, then begin TLS; what is left of the input is part of it.
    StartTls,
    /// Send the output; the second half begins, as agreed.
    Transmit(Session),
    /// Send the output and hang up.
    Close,
}

/// How requests and replies look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended headers both ways.
    Extended,
}

/// What was agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    /// Place of the export in the catalog.
    pub(crate) export: usize,
    pub(crate) dialect: Dialect,
    /// Contexts that BLOCK_STATUS answers for, by their place in the export's list.
    pub(crate) contexts: Vec<usize>,
    /// The client has asked how large requests are, and so keeps to it.
    pub(crate) knows_blocks: bool,
}

/// Whether there is TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TlsState {
    /// The server has none.
    Unavailable,
    /// Nothing goes before it.
    Required,
    /// It has begun.
    Active,
}

/// The state of a handshake.
pub(crate) struct Handshake {
    catalog: Arc<Catalog>,
    tls: TlsState,
    /// The client's flags have come.
    begun: bool,
    no_zeroes: bool,
    dialect: Dialect,
    /// The export for which contexts were chosen, and which.
    contexts: Option<(usize, Vec<usize>)>,
    /// Bytes of an option's data that are still to be skipped.
    skip: usize,
    /// No further client can be served.
    full: bool,
    /// The client was told about exports since this was last asked.
    told: bool,
}

impl Handshake {
    /// A new one; the greeting is appended to `out`.
    pub(crate) fn new(catalog: Arc<Catalog>, tls: TlsState, out: &mut Vec<u8>) -> Self {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        out.extend(GREETING.to_be_bytes());
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(flags.to_be_bytes());
        Self {
            catalog,
            tls,
            begun: false,
            no_zeroes: false,
            dialect: Dialect::Simple,
            contexts: None,
            skip: 0,
            full: false,
            told: false,
        }
    }

    /// Says whether another client can be served at the moment.
    pub(crate) fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// True once each time the client was told about exports.
    pub(crate) fn takes_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// TLS has begun: everything before is forgotten.
    pub(crate) fn tls_began(&mut self) {
        self.tls = TlsState::Active;
        self.dialect = Dialect::Simple;
        self.contexts = None;
    }

    /// Takes one message from the front of `input`; the first number is its length.
    pub(crate) fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        if !self.begun {
            return self.client_flags(input);
        }
        if self.skip > 0 {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            let step = if self.skip > 0 {
                Step::More
            } else {
                Step::Again
            };
            return (skipped, step);
        }
        let mut fields = Fields(input);
        let (Some(magic), Some(number), Some(length)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            return (0, Step::More);
        };
        let length = length as usize;
        if magic != OPTION_MAGIC || length > MAX_SKIPPED {
            return (0, Step::Close);
        }
        if length > MAX_OPTION {
            self.skip = length;
            // The only option that cannot be answered with an error.
            if number == option::EXPORT_NAME {
                return (0, Step::Close);
            }
            let words = format!("an option has at most {MAX_OPTION} bytes");
            reply(out, number, option_reply::TOO_BIG, words.as_bytes());
            return (OPTION_LENGTH, Step::Again);
        }
        let Some(data) = fields.bytes(length) else {
            return (0, Step::More);
        };
        let step = match self.option(number, data, out) {
            Ok(step) => step,
            Err((kind, words)) => {
                reply(out, number, kind, words.as_bytes());
                Step::Again
            }
        };
        (OPTION_LENGTH + length, step)
    }

    fn client_flags(&mut self, input: &[u8]) -> (usize, Step) {
        let Some(flags) = Fields(input).u32() else {
            return (0, Step::More);
        };
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return (0, Step::Close);
        }
        self.begun = true;
        self.no_zeroes = flags & no_zeroes != 0;
        (4, Step::Again)
    }

    fn option(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Step, Refusal> {
        if self.tls == TlsState::Required {
            match number {
                option::STARTTLS | option::ABORT => {}
                option::EXPORT_NAME => return Ok(Step::Close),
                _ => {
                    let words = "this server talks to clients with TLS only: use nbds://";
                    return Err((option_reply::TLS_REQUIRED, words.into()));
                }
            }
        }
        match number {
            option::EXPORT_NAME => return Ok(self.export_name(data, out)),
            option::ABORT => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::Close);
            }
            option::LIST => {
                no_data(data)?;
                self.list(out);
                self.told = true;
            }
            option::STARTTLS => {
                no_data(data)?;
                match self.tls {
                    TlsState::Required => {
                        reply(out, number, option_reply::ACK, &[]);
                        return Ok(Step::StartTls);
                    }
                    TlsState::Active => return Err(invalid("TLS has begun already")),
                    TlsState::Unavailable => {
                        let words = "this server has no TLS: use nbd://";
                        return Err((option_reply::POLICY, words.into()));
                    }
                }
            }
            option::INFO | option::GO => return self.info(number, data, out),
            option::STRUCTURED_REPLY => {
                no_data(data)?;
                match self.dialect {
                    Dialect::Simple => self.dialect = Dialect::Structured,
                    Dialect::Structured => return Err(invalid("structured replies are agreed on")),
                    Dialect::Extended => {
                        let words = "extended headers are agreed on";
                        return Err((option_reply::EXTENDED_HEADERS_REQUIRED, words.into()));
                    }
                }
            }
            option::EXTENDED_HEADERS => {
                no_data(data)?;
                if self.dialect == Dialect::Extended {
                    return Err(invalid("extended headers are agreed on"));
                }
                self.dialect = Dialect::Extended;
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number, data, out)?;
            }
            _ => {
                let words = format!("option {number} is not known here");
                return Err((option_reply::UNSUPPORTED, words));
            }
        }
        reply(out, number, option_reply::ACK, &[]);
        Ok(Step::Again)
    }

    /// The old way in, which has no way to say no.
    fn export_name(&mut self, name: &[u8], out: &mut Vec<u8>) -> Step {
        let found = std::str::from_utf8(name)
            .ok()
            .and_then(|name| self.catalog.find(name));
        // Who speaks of extended headers has a way in that can say no; the document forbids this one then.
        let may_enter = !self.full && self.dialect != Dialect::Extended;
        let Some(export) = found.filter(|_| may_enter) else {
            return Step::Close;
        };
        let entry = &self.catalog.entries()[export];
        out.extend(entry.export.size().to_be_bytes());
        out.extend(self.flags(entry).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Step::Transmit(self.session(export, false))
    }

    fn list(&self, out: &mut Vec<u8>) {
        for entry in self.catalog.entries() {
            let mut data = Vec::new();
            data.extend(length_of(&entry.name).to_be_bytes());
            data.extend(entry.name.as_bytes());
            data.extend(entry.export.description().as_bytes());
            reply(out, option::LIST, option_reply::SERVER, &data);
        }
    }

    fn info(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Step, Refusal> {
        let (name, wanted) = info_request(data)
            .ok_or_else(|| invalid("a name and a list of 16-bit numbers are expected"))?;
        let export = self.find(name)?;
        if number == option::GO && self.full {
            let words = "too many clients are connected; try again when one has gone";
            return Err((option_reply::POLICY, words.into()));
        }
        let entry = &self.catalog.entries()[export];
        let mut part = |kind: u16, data: &[u8]| {
            let data = [&kind.to_be_bytes(), data].concat();
            reply(out, number, option_reply::INFO, &data);
        };
        part(
            info::EXPORT,
            &[
                &entry.export.size().to_be_bytes()[..],
                &self.flags(entry).to_be_bytes(),
            ]
            .concat(),
        );
        // Told without being asked too: it costs nothing, and a client that looks is served better.
        let BlockSizes {
            minimum,
            preferred,
            maximum,
        } = entry.export.block_sizes();
        part(
            info::BLOCK_SIZE,
            &[minimum, preferred, maximum].map(u32::to_be_bytes).concat(),
        );
        if wanted.contains(&info::NAME) {
            part(info::NAME, entry.name.as_bytes());
        }
        let description = entry.export.description();
        if wanted.contains(&info::DESCRIPTION) && !description.is_empty() {
            part(info::DESCRIPTION, description.as_bytes());
        }
        reply(out, number, option_reply::ACK, &[]);
        self.told = true;
        Ok(match number {
            option::GO => {
                let knows_blocks = wanted.contains(&info::BLOCK_SIZE);
                Step::Transmit(self.session(export, knows_blocks))
            }
            _ => Step::Again,
        })
    }

    fn meta_context(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let set = number == option::SET_META_CONTEXT;
        if set {
            // Whatever comes of this one, the last one no longer holds.
            self.contexts = None;
        }
        if self.dialect == Dialect::Simple {
            return Err(invalid("structured replies have to be agreed on first"));
        }
        let (name, queries) = meta_request(data)
            .ok_or_else(|| invalid("a name and a list of queries are expected"))?;
        let export = self.find(name)?;
        let known = self.catalog.entries()[export].export.contexts();
        let mut chosen = Vec::new();
        for (place, context) in known.iter().enumerate() {
            let matches = |query: &&str| {
                // A namespace alone stands for all in it, for listing.
                context == query || (!set && query.ends_with(':') && context.starts_with(*query))
            };
            if queries.iter().any(matches) || (!set && queries.is_empty()) {
                let id = if set { context_id(place) } else { 0 };
                let data = [&id.to_be_bytes()[..], context.as_bytes()].concat();
                reply(out, number, option_reply::META_CONTEXT, &data);
                chosen.push(place);
            }
        }
        if set {
            self.contexts = Some((export, chosen));
        }
        self.told = true;
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize, Refusal> {
        self.catalog.find(name).ok_or_else(|| {
            let words = match (name, self.catalog.entries().len()) {
                ("", _) => "there is no default export here; choose one of the list".into(),
                _ => format!("there is no export called {name:?} here"),
            };
            (option_reply::UNKNOWN, words)
        })
    }

    fn flags(&self, entry: &Entry) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE;
        if entry.export.is_read_only() {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        if self.dialect != Dialect::Simple {
            flags |= flag::SEND_DF;
        }
        flags
    }

    fn session(&mut self, export: usize, knows_blocks: bool) -> Session {
        let contexts = match self.contexts.take() {
            Some((of, chosen)) if of == export => chosen,
            _ => Vec::new(),
        };
        Session {
            export,
            dialect: self.dialect,
            contexts,
            knows_blocks,
        }
    }
}

/// The number under which a context appears in replies.
pub(crate) fn context_id(place: usize) -> u32 {
    u32::try_from(place + 1).unwrap_or(u32::MAX)
}

/// A kind of reply that says no, and why.
type Refusal = (u32, String);

fn invalid(words: &str) -> Refusal {
    (option_reply::INVALID, words.into())
}

fn no_data(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() {
        Ok(())
    } else {
        Err(invalid("this option has no data"))
    }
}

fn length_of(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

fn reply(out: &mut Vec<u8>, number: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(number.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(data);
}

/// The data of INFO and GO.
fn info_request(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.text().filter(|name| name.len() <= MAX_NAME)?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
fn meta_request(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.text().filter(|name| name.len() <= MAX_NAME)?;
    let count = fields.u32()?;
    // Each has four bytes at least, so a count of billions ends with the data.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.text()?);
    }
    fields.0.is_empty().then_some((name, queries))
}
