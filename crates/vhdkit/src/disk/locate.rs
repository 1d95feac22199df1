//! Finding a parent by the paths that its child recorded, mostly on another system.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::image::{ParentPath, ParentPathKind, ParentReference};
use crate::native_path;

/// Where folders of the system that made a disk are on this one: `C:\Disks` → `/mnt/disks`.
#[derive(Clone, Debug, Default)]
pub struct ParentMap(Vec<(Vec<String>, PathBuf)>);

impl ParentMap {
    /// Nothing is mapped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder. Case does not matter in `windows`, nor a leading `\\?\`; of several that fit, the longest counts.
    pub fn add(&mut self, windows: &str, local: impl Into<PathBuf>) {
        self.0
            .push((components(strip_extended(windows)), local.into()));
        self.0
            .sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    }

    /// Adds `WINDOWS=LOCAL`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidParameter`] if there is no `=` or one side is empty.
    pub fn add_pair(&mut self, pair: &str) -> Result<()> {
        match pair.split_once('=') {
            Some((windows, local)) if !windows.is_empty() && !local.is_empty() => {
                self.add(windows, local);
                Ok(())
            }
            _ => Err(Error::new(
                ErrorKind::InvalidParameter,
                format!("'{pair}' is not of the form WINDOWS=LOCAL"),
            )
            .with_hint(r"for instance C:\Disks=/mnt/disks")),
        }
    }

    /// The path that `local` has on the system that made the disks, if one of the folders holds it.
    pub(crate) fn windows_path(&self, local: &Path) -> Option<String> {
        let local = std::path::absolute(local).ok()?;
        self.0.iter().find_map(|(windows, folder)| {
            let rest = local.strip_prefix(std::path::absolute(folder).ok()?).ok()?;
            let names = rest.iter().map(|name| name.to_string_lossy().into_owned());
            let path: Vec<String> = windows.iter().cloned().chain(names).collect();
            // Of `\\server\share` only the names are kept; drives and volumes say what they are.
            let drive = windows.first()?.ends_with(':');
            let volume = windows.first()?.to_lowercase().starts_with("volume{");
            let prefix = if drive || volume { "" } else { r"\\" };
            Some(format!("{prefix}{}", path.join("\\")))
        })
    }

    fn apply(&self, windows: &str) -> Option<PathBuf> {
        let path = components(strip_extended(windows));
        let (from, to) = self.0.iter().find(|(from, _)| {
            from.len() <= path.len()
                && from
                    .iter()
                    .zip(&path)
                    .all(|(a, b)| a.to_lowercase() == b.to_lowercase())
        })?;
        Some(descend(to, &path[from.len()..]))
    }
}

/// The files that recorded paths lead to, the likeliest first; at least one. Which of them is the parent, its identifier
/// tells.
///
/// # Errors
/// [`ErrorKind::ParentNotFound`], with the paths that were recorded and those that were tried.
pub fn find_parents(
    child: &Path,
    reference: &ParentReference,
    map: &ParentMap,
) -> Result<Vec<PathBuf>> {
    // Empty for a child named without a folder, so that its parent is named without one, too.
    let folder = child.parent().unwrap_or(Path::new(""));
    let beside = reference
        .paths
        .iter()
        .filter_map(|p| components(&p.path).pop())
        .filter(|name| name != "." && name != "..")
        .map(|name| descend(folder, &[name]));
    let recorded = reference
        .paths
        .iter()
        .filter_map(|p| resolve(folder, p, map));
    files(reference, recorded.chain(beside))
}

/// As [`find_parents`], by absolute paths alone.
pub(super) fn find_absolute_parents(
    child: &Path,
    reference: &ParentReference,
    map: &ParentMap,
) -> Result<Vec<PathBuf>> {
    let folder = child.parent().unwrap_or(Path::new(""));
    let absolute = reference
        .paths
        .iter()
        .filter(|p| match p.kind {
            ParentPathKind::Relative | ParentPathKind::Name => false,
            ParentPathKind::Url => !p.path.starts_with("file://./"),
            ParentPathKind::Absolute | ParentPathKind::Volume => true,
        })
        .filter_map(|p| resolve(folder, p, map));
    files(reference, absolute)
}

/// Those of some places where there is a file.
fn files(
    reference: &ParentReference,
    candidates: impl Iterator<Item = PathBuf>,
) -> Result<Vec<PathBuf>> {
    let (mut found, mut tried): (Vec<PathBuf>, Vec<PathBuf>) = Default::default();
    for candidate in candidates {
        let list = if candidate.exists() {
            &mut found
        } else {
            &mut tried
        };
        if !list.contains(&candidate) {
            list.push(candidate);
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let recorded: Vec<_> = reference.paths.iter().map(|p| p.path.as_str()).collect();
    let tried: Vec<_> = tried.iter().map(|p| p.display().to_string()).collect();
    Err(Error::new(
        ErrorKind::ParentNotFound,
        format!(
            "its parent was not found: recorded as {}; tried {}",
            if recorded.is_empty() {
                "nothing".into()
            } else {
                recorded.join(", ")
            },
            if tried.is_empty() {
                "nothing".into()
            } else {
                tried.join(", ")
            }
        ),
    )
    .with_hint("name the parent with --parent FILE, or its folder with --parent-map WINDOWS=LOCAL"))
}

fn resolve(folder: &Path, stored: &ParentPath, map: &ParentMap) -> Option<PathBuf> {
    match stored.kind {
        ParentPathKind::Relative | ParentPathKind::Name => {
            // An absolute path in a place for relative ones is met in the wild.
            if stored.path.contains(':') || stored.path.starts_with(['\\', '/']) {
                return absolute(&stored.path, map);
            }
            Some(descend(folder, &components(&stored.path)))
        }
        ParentPathKind::Absolute => absolute(&stored.path, map),
        ParentPathKind::Volume => map.apply(&stored.path),
        ParentPathKind::Url => {
            let rest = stored.path.strip_prefix("file://")?;
            let rest = rest.strip_prefix("localhost").unwrap_or(rest);
            let path = percent_decode(rest)?;
            match path.strip_prefix("./") {
                Some(relative) => Some(folder.join(relative)),
                None => Some(PathBuf::from(path)),
            }
        }
    }
}

fn absolute(path: &str, map: &ParentMap) -> Option<PathBuf> {
    if let Some(mapped) = map.apply(path) {
        return Some(mapped);
    }
    if path.starts_with('/') {
        return Some(PathBuf::from(path));
    }
    native_path::from_windows(path)
}

fn strip_extended(path: &str) -> &str {
    path.strip_prefix(r"\\?\").unwrap_or(path)
}

fn components(path: &str) -> Vec<String> {
    path.split(['\\', '/'])
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Follows Windows path components from a folder; where a name does not exist as written, one that differs only in
/// case is taken.
fn descend(folder: &Path, parts: &[String]) -> PathBuf {
    let mut path = folder.to_path_buf();
    for part in parts {
        match part.as_str() {
            "." => {}
            ".." => path.push(".."),
            name => {
                let exact = path.join(name);
                path = if exact.exists() {
                    exact
                } else {
                    other_case(&path, name).unwrap_or(exact)
                };
            }
        }
    }
    path
}

fn other_case(folder: &Path, name: &str) -> Option<PathBuf> {
    let wanted = name.to_lowercase();
    let listed = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(listed)
        .ok()?
        .filter_map(|entry| Some(folder.join(entry.ok()?.file_name())))
        .filter(|path| {
            path.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.to_lowercase() == wanted)
        })
        .collect();
    // Of several, always the same one.
    found.sort();
    found.into_iter().next()
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let hex = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

/// The path of `target` as seen from the folder of `from`, with Windows separators and a leading `.\` or `..\`.
/// Both are made absolute first; symbolic links are not resolved.
///
/// # Errors
/// [`ErrorKind::InvalidParameter`] if a name that is to be recorded is no valid Unicode; [`ErrorKind::Io`] if the current
/// folder is gone.
pub fn relative_windows_path(from: &Path, target: &Path) -> Result<String> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| Error::io("resolve", e).with_path(path))
    };
    let (from, target) = (absolute(from)?, absolute(target)?);
    let names = |path: &Path| -> Vec<OsString> {
        let mut names = Vec::new();
        for part in path.components() {
            match part {
                std::path::Component::Normal(name) => {
                    names.push(name.to_owned());
                }
                std::path::Component::ParentDir => {
                    names.pop();
                }
                _ => {}
            }
        }
        names
    };
    let (mut from, names) = (names(&from), names(&target));
    from.pop();
    let common = from.iter().zip(&names).take_while(|(a, b)| a == b).count();
    let up = from.len() - common;
    let mut parts = vec![if up == 0 { "." } else { ".." }];
    parts.extend(std::iter::repeat_n("..", up.saturating_sub(1)));
    for name in &names[common..] {
        parts.push(name.to_str().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidParameter,
                "its name is no valid Unicode, which is what a child records of its parent",
            )
            .with_path(&target)
            .with_hint("give it and its folders other names")
        })?);
    }
    Ok(parts.join("\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(paths: &[(ParentPathKind, &str)]) -> ParentReference {
        ParentReference {
            paths: paths
                .iter()
                .map(|&(kind, p)| ParentPath {
                    kind,
                    path: p.into(),
                })
                .collect(),
            ..ParentReference::default()
        }
    }

    #[test]
    fn relative_paths_have_windows_separators() {
        for (from, to, expected) in [
            ("/a/child.vhdx", "/a/parent.vhdx", r".\parent.vhdx"),
            ("/a/b/child.vhdx", "/a/parent.vhdx", r"..\parent.vhdx"),
            (
                "/a/b/child.vhdx",
                "/c/d/parent.vhdx",
                r"..\..\c\d\parent.vhdx",
            ),
            ("/a/child.vhdx", "/a/b/../c/parent.vhdx", r".\c\parent.vhdx"),
        ] {
            assert_eq!(
                relative_windows_path(Path::new(from), Path::new(to)).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn t33_every_form_of_parent_path_is_followed() {
        use ParentPathKind::*;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("Disks/Sub Folder")).unwrap();
        for name in [
            "Disks/base.vhdx",
            "Disks/Sub Folder/Größe😀.vhdx",
            "Disks/beside.vhdx",
        ] {
            std::fs::write(root.join(name), "").unwrap();
        }
        let child = root.join("Disks/child.vhdx");
        let mut map = ParentMap::new();
        map.add(r"D:\vm", root.join("Disks"));
        map.add(r"\\server\share", root.join("Disks"));
        map.add(
            r"\\?\Volume{9cdf8dfa-0000-0000-0000-501f00000000}",
            root.join("Disks"),
        );
        let url = format!("file://localhost{}", root.join("Disks/base.vhdx").display());
        let unix = root.join("Disks/base.vhdx").display().to_string();
        let native = native_path::to_windows(&unix).unwrap();
        for (kind, path, expected) in [
            (Relative, r".\base.vhdx", "Disks/base.vhdx"),
            (Relative, r".\BASE.VHDX", "Disks/base.vhdx"),
            (
                Relative,
                r"sub folder\größe😀.vhdx",
                "Disks/Sub Folder/Größe😀.vhdx",
            ),
            (Relative, r"..\disks\base.vhdx", "Disks/../Disks/base.vhdx"),
            (Absolute, r"\\?\d:\VM\base.vhdx", "Disks/base.vhdx"),
            (
                Absolute,
                r"D:\vm\Sub Folder\Größe😀.vhdx",
                "Disks/Sub Folder/Größe😀.vhdx",
            ),
            (Absolute, r"\\server\share\base.vhdx", "Disks/base.vhdx"),
            (Absolute, r"E:\elsewhere\beside.vhdx", "Disks/beside.vhdx"),
            (Absolute, &unix, "Disks/base.vhdx"),
            (Absolute, &native, "Disks/base.vhdx"),
            (
                Volume,
                r"\\?\Volume{9cdf8dfa-0000-0000-0000-501f00000000}\base.vhdx",
                "Disks/base.vhdx",
            ),
            (Url, &url, "Disks/base.vhdx"),
            (Url, "file://./base.vhdx", "Disks/base.vhdx"),
            (Name, "beside.vhdx", "Disks/beside.vhdx"),
        ] {
            let found = find_parents(&child, &reference(&[(kind, path)]), &map)
                .unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(found[0], root.join(expected), "{path}");
        }
        let missing = find_parents(&child, &reference(&[(Relative, r".\gone.vhdx")]), &map);
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::ParentNotFound);
    }

    #[test]
    fn a_map_also_tells_what_a_local_file_is_called_on_windows() {
        let mut map = ParentMap::new();
        map.add(r"C:\Disks", "/mnt/disks");
        map.add(r"\\server\share", "/mnt/share");
        for (local, windows) in [
            ("/mnt/disks/sub/p.vhdx", Some(r"C:\Disks\sub\p.vhdx")),
            ("/mnt/share/p.vhdx", Some(r"\\server\share\p.vhdx")),
            ("/elsewhere/p.vhdx", None),
        ] {
            assert_eq!(map.windows_path(Path::new(local)).as_deref(), windows);
        }
    }

    #[test]
    fn a_map_needs_two_sides() {
        assert!(ParentMap::new().add_pair(r"C:\x=/y").is_ok());
        assert!(ParentMap::new().add_pair("nothing").is_err());
        assert!(ParentMap::new().add_pair("=x").is_err());
    }
}
