//! Real images, not made by this project, and what independent readers say of their contents.
//!
//! A large collection may lie beside the repository (`../shared/corpus`, or `$VHDKIT_SHARED/corpus`); a part of it,
//! under free licences, is shipped in `fixtures/` and is used where the large one is not there.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::TempDir;
use vhdkit::storage::{Access, FileStorage, Storage};

/// What is to be expected of opening an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "as the manifest names them")]
pub enum Expect {
    Open,
    OpenWithParent,
    OpenAfterLogReplay,
    ParentMissing,
    Reject,
    OpenOrReject,
}

/// One image of the manifest. Sizes are in bytes.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs, reason = "as the manifest names them")]
pub struct CorpusImage {
    pub name: String,
    pub file: String,
    pub image_sha256: String,
    pub format: String,
    pub variant: String,
    #[serde(default)]
    pub parent: Option<String>,
    #[serde(default)]
    pub virtual_size: Option<u64>,
    #[serde(default)]
    pub block_size: Option<u64>,
    #[serde(default)]
    pub logical_sector: Option<u32>,
    #[serde(default)]
    pub physical_sector: Option<u32>,
    #[serde(default)]
    pub features: Vec<String>,
    pub expect: Expect,
    #[serde(default)]
    pub content_size: Option<u64>,
    #[serde(default)]
    pub content_sha256: Option<String>,
    #[serde(default)]
    pub content_nz_sha256: Option<String>,
}

impl CorpusImage {
    /// The file's own name.
    pub fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

#[derive(Deserialize)]
struct Manifest {
    image: Vec<CorpusImage>,
}

/// The images, unpacked on demand into a folder that goes away with this value.
pub struct Corpus {
    folder: PathBuf,
    images: Vec<CorpusImage>,
    unpacked: TempDir,
}

impl Corpus {
    /// The large collection if it is there, else the shipped one.
    pub fn open() -> Self {
        Self::beside().unwrap_or_else(Self::shipped)
    }

    /// The images shipped with the project.
    pub fn shipped() -> Self {
        Self::in_folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"))
    }

    /// The large collection, if it is there.
    pub fn beside() -> Option<Self> {
        let shared = match std::env::var_os("VHDKIT_SHARED") {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        };
        let folder = shared.join("corpus");
        folder
            .join("MANIFEST.toml")
            .exists()
            .then(|| Self::in_folder(folder))
    }

    fn in_folder(folder: PathBuf) -> Self {
        let text = std::fs::read_to_string(folder.join("MANIFEST.toml")).expect("the manifest");
        let manifest: Manifest = toml::from_str(&text).expect("a manifest as described in it");
        Self {
            folder,
            images: manifest.image,
            unpacked: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// What is there.
    pub fn images(&self) -> &[CorpusImage] {
        &self.images
    }

    /// The image of this name, if this collection has it.
    pub fn find(&self, name: &str) -> Option<&CorpusImage> {
        self.images.iter().find(|image| image.name == name)
    }

    /// Unpacks an image and its parents beside one another under their own names; verifies what was unpacked.
    pub fn unpack(&self, image: &CorpusImage) -> PathBuf {
        if let Some(parent) = image.parent.as_deref().and_then(|name| self.find(name)) {
            self.unpack(parent);
        }
        let path = self.unpacked.path().join(&image.name);
        if path.exists() {
            return path;
        }
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let packed = File::open(self.folder.join(&image.file)).expect("the packed image");
        let source: Box<dyn Read> = if Path::new(&image.file)
            .extension()
            .is_some_and(|e| e == "zst")
        {
            Box::new(zstd::Decoder::new(packed).expect("zstd"))
        } else {
            Box::new(packed)
        };
        write_sparse(source, &path);
        assert_eq!(
            sha256_of_file(&path),
            image.image_sha256,
            "{}: not the image that the manifest describes",
            image.name
        );
        path
    }

    /// A copy of an image (and of its parents, beside it) that a test may change, in a new folder.
    pub fn copy(&self, image: &CorpusImage) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = self.unpack(image);
        let copy = folder.path().join(image.file_name());
        copy_sparse(&path, &copy);
        let mut next = image.parent.clone();
        while let Some(parent) = next.as_deref().and_then(|name| self.find(name)) {
            copy_sparse(
                &self.unpack(parent),
                &folder.path().join(parent.file_name()),
            );
            next.clone_from(&parent.parent);
        }
        (folder, copy)
    }
}

/// Writes a stream into a new file, leaving out what is zero.
fn write_sparse(mut source: impl Read, path: &Path) {
    let mut file = File::create(path).expect("a new file");
    let mut buf = vec![0; 1 << 20];
    let mut length: u64 = 0;
    loop {
        let mut filled = 0;
        while filled < buf.len() {
            match source.read(&mut buf[filled..]).expect("the packed image") {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        let part = &buf[..filled];
        if !crate::model::is_zero(part) {
            use std::os::unix::fs::FileExt;
            file.write_all_at(part, length).expect("write");
        }
        length += filled as u64;
    }
    file.set_len(length).expect("set the length");
    file.flush().expect("flush");
}

/// Copies a file, holes as holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    write_sparse(File::open(from).expect("the file"), to);
}

/// SHA-256 of a whole file.
pub fn sha256_of_file(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    let storage = FileStorage::open(path, Access::ReadOnly).expect("the file");
    let length = storage.len().expect("its length");
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let n = (length - at).min(buf.len() as u64) as usize;
        storage.read_at(at, &mut buf[..n]).expect("read");
        hash.update(&buf[..n]);
        at += n as u64;
    }
    crate::hash::hex(hash.finalize())
}
