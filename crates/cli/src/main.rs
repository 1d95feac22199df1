//! The `vhdkit` command: arguments in; words, bars and JSON out. What it does is in the library.

mod args;
mod commands;
mod failure;
mod formats;
mod output;
mod progress;
mod signals;
mod size;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use args::{Cli, Command};
use commands::Session;
use failure::{FAILED, Failure, USAGE};
use output::Output;
use signals::Interrupt;

fn main() -> ExitCode {
    allow_many_files();
    // Attached disks are served by processes of this program.
    if let Some(code) = vhdkit_attach::serve_if_asked() {
        return code;
    }
    let command = Cli::parse().command;
    let json = command.json();
    // `compare` says 1 for "they differ", so its failures are 2.
    let failed = match command {
        Command::Compare(_) => USAGE,
        _ => FAILED,
    };
    match run(command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report(json);
            ExitCode::from(match failure.exit_code() {
                FAILED => failed,
                code => code,
            })
        }
    }
}

/// Each disk of a chain is an open file, and the usual limit is that of programs from the days of `select`.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // If not, what does not open says so.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

fn run(command: Command) -> Result<u8, Failure> {
    let interrupt = Interrupt::listen().map_err(|e| vhdkit::Error::io("listen for signals", e))?;
    let mut session = Session {
        out: Output::new(),
        interrupt,
    };
    let result = commands::run(command, &mut session);
    // What was written before a failure is still shown.
    let flushed = session.out.flush();
    let code = result?;
    flushed?;
    Ok(code)
}
