//! The protocol without a network: for fuzzing and for tests of the state machine.

use std::sync::Arc;

use crate::export::Catalog;
use crate::handshake::{Handshake, Step, TlsState};
use crate::request::{Command, Decoded, Rules, decode};

/// What a client's bytes came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct Replayed {
    /// What the handshake answered.
    pub answers: Vec<u8>,
    /// True if it came to the second half.
    pub transmitted: bool,
    /// Requests that make sense, in words.
    pub commands: Vec<String>,
    /// Requests that were refused.
    pub refused: usize,
    /// True if the server hung up.
    pub closed: bool,
    /// Bytes that were understood.
    pub consumed: usize,
}

/// Runs the state machine on what a client says, arriving in pieces of `piece` bytes. TLS, where it is agreed on,
/// leaves the bytes as they are.
pub fn replay(catalog: &Arc<Catalog>, tls: bool, input: &[u8], piece: usize) -> Replayed {
    let mut result = Replayed::default();
    let state = if tls {
        TlsState::Required
    } else {
        TlsState::Unavailable
    };
    let mut handshake = Handshake::new(catalog.clone(), state, &mut result.answers);
    let mut here = piece.min(input.len());
    let mut rules = None;
    loop {
        let rest = &input[result.consumed..here];
        let more = match &rules {
            None => {
                let (length, step) = handshake.advance(rest, &mut result.answers);
                assert!(length <= rest.len(), "more was taken than was there");
                result.consumed += length;
                match step {
                    Step::Again => {
                        assert!(length > 0, "no progress");
                        false
                    }
                    Step::More => true,
                    Step::StartTls => {
                        handshake.tls_began();
                        false
                    }
                    Step::Transmit(session) => {
                        result.transmitted = true;
                        let export = &catalog.entries()[session.export].export;
                        rules = Some((Rules::new(&session, &**export), session.dialect));
                        false
                    }
                    Step::Close => {
                        result.closed = true;
                        return result;
                    }
                }
            }
            Some((rules, dialect)) => match decode(*dialect, rest) {
                Decoded::More => true,
                Decoded::Broken => {
                    result.closed = true;
                    return result;
                }
                Decoded::Request(request, head) => {
                    let payload = usize::try_from(request.payload(*dialect)).unwrap_or(usize::MAX);
                    match rules.check(&request) {
                        Ok(Command::Disconnect) => {
                            result.consumed += head;
                            result.closed = true;
                            return result;
                        }
                        Ok(command) => result.commands.push(format!("{command:?}")),
                        Err(_) => result.refused += 1,
                    }
                    result.consumed = input
                        .len()
                        .min((result.consumed + head).saturating_add(payload));
                    here = here.max(result.consumed);
                    false
                }
            },
        };
        if more {
            if here == input.len() {
                return result;
            }
            here = here.saturating_add(piece.max(1)).min(input.len());
        }
    }
}
