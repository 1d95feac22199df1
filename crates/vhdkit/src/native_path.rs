//! Absolute paths of this system in the notation of Windows: `/srv/base.vhdx` as `\\?\srv\base.vhdx`.
//!
//! The formats have a place for absolute paths of Windows only. To Windows such a path leads nowhere, like that of any
//! disk that was moved; what it follows is the relative path, which comes first.

use std::path::{Path, PathBuf};

const PREFIX: &str = r"\\?\";

/// The notation; `None` for what is not absolute, and for what it cannot express: names with a backslash, and folders that
/// are called like something of Windows.
pub(crate) fn to_windows(path: &str) -> Option<String> {
    let names = path.strip_prefix('/')?;
    let notation = format!("{PREFIX}{}", names.replace('/', "\\"));
    let is_read_back = from_windows(&notation).is_some_and(|read| read == Path::new(path));
    is_read_back.then_some(notation)
}

/// The path of this system; `None` for what means something on Windows: drives, shares, volumes, devices.
pub(crate) fn from_windows(path: &str) -> Option<PathBuf> {
    let names = path.strip_prefix(PREFIX)?;
    let first = names.split('\\').next()?;
    let of_windows = first.contains([':', '{', '/'])
        || first.is_empty()
        || first.eq_ignore_ascii_case("UNC")
        || first.eq_ignore_ascii_case("GLOBALROOT");
    (!of_windows).then(|| PathBuf::from(format!("/{}", names.replace('\\', "/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_the_notation() {
        for path in ["/srv/a b/Größe.vhdx", "/x"] {
            let windows = to_windows(path).unwrap();
            assert!(windows.starts_with(r"\\?\") && !windows.contains('/'));
            assert_eq!(from_windows(&windows), Some(PathBuf::from(path)));
        }
        for path in ["x.vhdx", "", "/", r"/srv/a\b.vhdx", "/c:/x", "/unc/x"] {
            assert_eq!(to_windows(path), None, "{path}");
        }
    }

    #[test]
    fn paths_of_windows_are_none_of_this_system() {
        for path in [
            r"\\?\C:\x.vhdx",
            r"\\?\UNC\server\share\x.vhdx",
            r"\\?\unc\server\share\x.vhdx",
            r"\\?\Volume{9cdf8dfa-0000-0000-0000-501f00000000}\x.vhdx",
            r"\\?\GLOBALROOT\Device\HarddiskVolume1\x.vhdx",
            r"\\server\share\x.vhdx",
            r"C:\x.vhdx",
            r"\\?\",
            "",
        ] {
            assert_eq!(from_windows(path), None, "{path}");
        }
    }
}
