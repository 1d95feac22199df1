//! Which program becomes the server of an attachment.

use std::path::{Path, PathBuf};

use vhdkit::{Error, ErrorKind, Result};

/// Names another program than the usual one.
const VARIABLE: &str = "VHDKIT_SERVER";

/// The program that is to serve: what the caller says, then `$VHDKIT_SERVER`, then `vhdkit` beside the running program
/// or in its `libexec`, then `vhdkit` in `$PATH`, then in the usual folders.
pub(crate) fn server(told: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = told {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        if is_program(&path) {
            return Ok(path);
        }
        return Err(Error::new(ErrorKind::NotFound, "there is no such program")
            .with_path(path)
            .with_hint(format!(
                "{VARIABLE} names it; it has to be the vhdkit command"
            )));
    }
    candidates().find(|path| is_program(path)).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "the vhdkit command was not found, which serves attached disks",
        )
        .with_hint(format!("install it, or name it with {VARIABLE}"))
    })
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    const NAME: &str = "vhdkit";
    let own = std::env::current_exe().ok();
    let beside = own
        .as_deref()
        .and_then(Path::parent)
        .map(|folder| [folder.join(NAME), folder.join("../libexec").join(NAME)]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(NAME))
        .collect();
    let usual = ["/usr/local/bin", "/usr/bin"].map(|folder| Path::new(folder).join(NAME));
    beside.into_iter().flatten().chain(in_path).chain(usual)
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}
