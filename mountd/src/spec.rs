//! What is mounted: `K[:SHARE]`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use p2pfs::failure::{Code, Failure};
use p2pfs::limits::SHOWN_BYTES_MAX;

use crate::store;

/// A key directory and a share.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spec {
    /// As it was given, for `findmnt`.
    pub given: OsString,
    /// The key directory, absolute.
    pub key: PathBuf,
    /// The share; without it the only one.
    pub share: Option<String>,
}

impl Spec {
    /// As it was given, or with an absolute path if that was relative. The id of a key that is kept
    /// here is no path.
    pub(crate) fn absolute(&self) -> OsString {
        let is_kept = self.name().is_some_and(store::is_id) && !self.key.exists();
        if is_kept || self.given.as_bytes().starts_with(b"/") {
            return self.given.clone();
        }
        let mut absolute = self.key.clone().into_os_string();
        if let Some(share) = &self.share {
            absolute.push(":");
            absolute.push(share);
        }
        absolute
    }

    /// What may be the id of a key that is kept here: the key as it was given, without a `/`.
    pub(crate) fn name(&self) -> Option<&str> {
        let given = self.given.to_str()?;
        let key = given.split_once(':').map_or(given, |(key, _)| key);
        (!key.contains('/')).then_some(key)
    }

    /// The share follows the last `:` if it holds no `/`.
    ///
    /// # Errors
    ///
    /// There is no key, or no share behind the `:`, or that is not text.
    pub fn parse(given: &OsStr) -> Result<Self, Failure> {
        let bytes = given.as_bytes();
        let colon = bytes.iter().rposition(|byte| *byte == b':');
        let split = colon.filter(|colon| !bytes[*colon..].contains(&b'/'));
        let (key, share) = match split {
            Some(colon) => (&bytes[..colon], Some(&bytes[colon + 1..])),
            None => (bytes, None),
        };
        let wrong = |what: String| {
            Failure::new(Code::Usage, what, "name the key's directory and a share: KEY:SHARE")
        };
        if key.is_empty() || share.is_some_and(<[u8]>::is_empty) {
            return Err(wrong(format!("{} is not KEY:SHARE", given.display())));
        }
        let share = share.map(|share| String::from_utf8(share.to_vec())).transpose();
        let share = share.map_err(|_| wrong("the share's name is not UTF-8".to_owned()))?;
        if share.as_ref().is_some_and(|share| share.len() > SHOWN_BYTES_MAX) {
            return Err(wrong(format!("no share's name is longer than {SHOWN_BYTES_MAX} bytes")));
        }
        let absolute = |error: io::Error| wrong(format!("{}: {error}", given.display()));
        let key = std::path::absolute(Path::new(OsStr::from_bytes(key))).map_err(absolute)?;
        Ok(Self { given: given.to_owned(), key, share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<String>) {
        let spec = Spec::parse(OsStr::new(text)).unwrap();
        (spec.key.to_str().unwrap().to_owned(), spec.share)
    }

    #[test]
    fn the_share_follows_the_last_colon_without_a_slash() {
        let share = |name: &str| Some(name.to_owned());
        assert_eq!(parsed("/key"), ("/key".to_owned(), None));
        assert_eq!(parsed("/key:docs"), ("/key".to_owned(), share("docs")));
        assert_eq!(parsed("/a:b/key"), ("/a:b/key".to_owned(), None));
        assert_eq!(parsed("/a:b/key:docs"), ("/a:b/key".to_owned(), share("docs")));
    }

    #[test]
    fn an_empty_part_is_refused() {
        for bad in ["", ":docs", "/key:"] {
            assert_eq!(Spec::parse(OsStr::new(bad)).unwrap_err().code, Code::Usage);
        }
    }

    #[test]
    fn a_name_that_no_share_can_have_is_refused() {
        let long = format!("/key:{}", "x".repeat(SHOWN_BYTES_MAX + 1));
        assert_eq!(Spec::parse(OsStr::new(&long)).unwrap_err().code, Code::Usage);
        assert!(Spec::parse(OsStr::new(&long[..long.len() - 1])).is_ok());
    }
}
