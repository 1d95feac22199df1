//! Paths in JSON: as text where they are text, and else as a list of bytes. For fields with `serde(with)`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Said {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for Said {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Said::Text(text.to_owned()),
            None => Said::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<Said> for PathBuf {
    fn from(said: Said) -> Self {
        match said {
            Said::Text(text) => text.into(),
            Said::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// A path.
pub(crate) mod one {
    use super::{Path, PathBuf, Said};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        Said::from(path).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Said::deserialize(from).map(PathBuf::from)
    }
}

/// A list of paths.
pub(crate) mod many {
    use super::{PathBuf, Said};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| Said::from(path.as_path())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        let said = Vec::<Said>::deserialize(from)?;
        Ok(said.into_iter().map(PathBuf::from).collect())
    }
}

/// A path that may be missing.
pub(crate) mod option {
    use super::{PathBuf, Said};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "so serde calls it")]
    pub(crate) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Said::from).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Said>::deserialize(from)?.map(PathBuf::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Message {
        #[serde(with = "one")]
        one: PathBuf,
        #[serde(with = "option")]
        some: Option<PathBuf>,
        #[serde(with = "option")]
        none: Option<PathBuf>,
        #[serde(with = "many")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn names_that_are_no_text_travel_as_they_are() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xFF\n/\xC3".to_vec()));
        let message = Message {
            one: odd.clone(),
            some: Some(odd.clone()),
            none: None,
            many: vec!["/plain".into(), odd],
        };
        let text = serde_json::to_string(&message).unwrap();
        assert!(text.contains("\"/plain\""), "{text}");
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
    }
}
