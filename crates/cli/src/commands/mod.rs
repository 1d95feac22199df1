//! One module per command: what was typed becomes a typed request, the library does it, the result becomes words or
//! JSON.

mod attach;
mod cancel;
mod check;
mod compact;
mod compare;
mod convert;
mod create;
mod generate;
mod info;
mod map;
mod merge;
mod mirror;
mod progress;
mod read;
mod resize;
mod serve;
mod set;
mod write;

use crate::args::Command;
use crate::failure::Failure;
use crate::output::Output;
use crate::signals::Interrupt;

/// What every command has at hand.
pub(crate) struct Session {
    /// Standard output.
    pub(crate) out: Output,
    /// Ctrl-C.
    pub(crate) interrupt: Interrupt,
}

/// Runs a command; the result is the exit code.
pub(crate) fn run(command: Command, session: &mut Session) -> Result<u8, Failure> {
    match command {
        Command::Create(args) => create::run(args, session),
        Command::Info(args) => info::run(&args, session),
        Command::Map(args) => map::run(&args, session),
        Command::Convert(args) => convert::run(args, session),
        Command::Compare(args) => compare::run(&args, session),
        Command::Check(args) => check::run(&args, session),
        Command::Compact(args) => compact::run(&args, session),
        Command::Expand(args) => resize::expand(&args, session),
        Command::Resize(args) => resize::run(&args, session),
        Command::Merge(args) => merge::run(&args, session),
        Command::Mirror(args) => mirror::run(&args, session),
        Command::SetParent(args) => set::parent(&args, session),
        Command::Set(args) => set::run(&args, session),
        Command::Metadata(args) => set::metadata(&args, session),
        Command::Read(args) => read::run(&args, session),
        Command::Write(args) => write::run(&args, session),
        Command::Serve(args) => serve::run(&args, session),
        Command::Attach(args) => attach::run(&args, session),
        Command::Detach(args) => attach::detach(&args, session),
        Command::List(args) => attach::list(&args, session),
        Command::Mount(args) => attach::mount(&args, session),
        Command::Unmount(args) => attach::unmount(&args, session),
        Command::Progress(args) => progress::run(&args, session),
        Command::Cancel(args) => cancel::run(&args, session),
        Command::Completions(args) => generate::completions(&args, session),
        Command::Man(args) => generate::man(&args, session),
    }
}

/// Closes a disk that an operation had: nobody else has it any more.
fn close(disk: std::sync::Arc<vhdkit::VirtualDisk>) -> Result<(), Failure> {
    match std::sync::Arc::into_inner(disk) {
        Some(disk) => Ok(disk.close()?),
        None => Ok(()),
    }
}

/// A path as text for JSON and tables.
fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}
