//! `vhdkit completions` and `vhdkit man`: made from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;
use vhdkit::Error;

use super::{Session, text};
use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::failure::{DONE, Failure};

pub(crate) fn completions(args: &CompletionsArgs, session: &mut Session) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vhdkit", &mut script);
    session.out.bytes(&script)?;
    Ok(DONE)
}

pub(crate) fn man(args: &ManArgs, session: &mut Session) -> Result<u8, Failure> {
    let failed = |action: &str, path: &Path, e| Error::io(action, e).with_path(path);
    fs::create_dir_all(&args.folder).map_err(|e| failed("create", &args.folder, e))?;
    let mut root = Cli::command().disable_help_subcommand(true);
    // Gives the pages of the commands their full names.
    root.build();
    let commands = root.get_subcommands().cloned().collect::<Vec<_>>();
    for command in std::iter::once(root).chain(commands) {
        let page = Man::new(command).manual("vhdkit");
        let path = args.folder.join(page.get_filename());
        let mut content = Vec::new();
        page.render(&mut content)
            .and_then(|()| fs::write(&path, &content))
            .map_err(|e| failed("write", &path, e))?;
        session.out.line(text(&path))?;
    }
    Ok(DONE)
}
