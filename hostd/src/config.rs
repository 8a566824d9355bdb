//! `hostd.toml` in the state directory: shares and servers, remembered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KEY_SERVERS_MAX;
use p2pfs::limits::{LABEL_BYTES_MAX, SHARES_MAX};
use p2pfs::net::daemon;
use serde::{Deserialize, Serialize};

use crate::cli::ServeArgs;
use crate::export::RootIdentity;

const FILE: &str = "hostd.toml";

/// What `serve` remembers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients ask for this host.
    #[serde(default)]
    pub servers: Vec<ServerAddress>,
    /// What is served, by name.
    #[serde(default)]
    pub shares: BTreeMap<String, ShareConfig>,
}

/// One share.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The directory, absolute.
    pub path: PathBuf,
    /// Whether nobody may change it.
    #[serde(default)]
    pub read_only: bool,
    /// What the directory was when it was first served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootIdentity>,
}

impl Config {
    /// Reads the file in `dir`; without one nothing is remembered.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or says what is not known.
    pub fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(bad_file(&path, &error.to_string())),
        };
        Self::parse(&text).map_err(|what| bad_file(&path, &what))
    }

    /// Reads what the file says.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        config.check()?;
        Ok(config)
    }

    /// Writes the file in `dir`.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(FILE);
        let write = || {
            let text = toml::to_string(self).map_err(io::Error::other)?;
            daemon::write_private(&path, text.as_bytes())
        };
        write().map_err(|error| {
            Failure::new(
                Code::Internal,
                format!("cannot write {}: {error}", path.display()),
                "check the owner of the state directory and the space on its disk",
            )
        })
    }

    /// Takes over what the command line says. Shares or servers that are named replace all that
    /// were remembered; a share that keeps its directory stays bound to its disk.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] for what cannot be served.
    pub fn update(&mut self, args: &ServeArgs) -> Result<(), Failure> {
        let usage = |what: String| {
            let hint = "name each share once, as --share NAME=DIR, with a directory that exists";
            Failure::new(Code::Usage, what, hint)
        };
        if !args.servers.is_empty() {
            self.servers.clone_from(&args.servers);
        }
        if !args.shares.is_empty() {
            let mut before = std::mem::take(&mut self.shares);
            for (name, dir) in &args.shares {
                let path = std::path::absolute(dir)
                    .map_err(|error| usage(format!("share {name}: {error}")))?;
                let root = before
                    .remove(name)
                    .filter(|share| share.path == path)
                    .and_then(|share| share.root);
                let share = ShareConfig { path, read_only: false, root };
                if self.shares.insert(name.clone(), share).is_some() {
                    return Err(usage(format!("share {name} is named twice")));
                }
            }
        }
        for name in &args.read_only {
            let share = self.shares.get_mut(name);
            share
                .ok_or_else(|| usage(format!("--read-only {name}: there is no such share")))?
                .read_only = true;
        }
        self.check().map_err(usage)?;
        if self.shares.is_empty() {
            return Err(usage("there is nothing to serve".into()));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.shares.len() > SHARES_MAX {
            return Err(format!("more than {SHARES_MAX} shares"));
        }
        if self.servers.len() > KEY_SERVERS_MAX {
            return Err(format!("more than {KEY_SERVERS_MAX} servers"));
        }
        self.shares.iter().try_for_each(|(name, share)| {
            if !share.path.is_absolute() {
                return Err(format!("share {name}: the path is not absolute"));
            }
            check_share_name(name)
        })
    }
}

/// What a share may be called: it stands behind a `:` on the client and in lists.
pub(crate) fn check_share_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > LABEL_BYTES_MAX {
        return Err(format!("a share's name has 1 to {LABEL_BYTES_MAX} bytes"));
    }
    if name.contains(|c: char| c.is_control() || ":/,=".contains(c)) {
        return Err("a share's name has none of : / , = in it".into());
    }
    Ok(())
}

fn bad_file(path: &Path, what: &str) -> Failure {
    Failure::new(
        Code::Internal,
        format!("{}: {what}", path.display()),
        "correct the file, or remove it and name shares and servers again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(dir.path()).unwrap();
        let mut args = args(&[("a", "/one"), ("b", "/two")]);
        args.read_only = vec!["b".into()];
        config.update(&args).unwrap();
        let root = RootIdentity { fsid: u64::MAX, inode: 2 };
        config.shares.get_mut("a").unwrap().root = Some(root);
        config.save(dir.path()).unwrap();
        let mut again = Config::load(dir.path()).unwrap();
        assert_eq!(again, config);
        again.update(&self::args(&[])).unwrap();
        assert_eq!(again, config);
        again.update(&self::args(&[("a", "/one")])).unwrap();
        assert_eq!(again.shares["a"].root, Some(root));
        assert_eq!(again.shares.len(), 1);
        again.update(&self::args(&[("a", "/two")])).unwrap();
        assert_eq!(again.shares["a"].root, None);
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let refused = |args: &ServeArgs| Config::default().update(args).unwrap_err();
        assert_eq!(refused(&args(&[])).code, Code::Usage);
        assert_eq!(refused(&args(&[("a", "/"), ("a", "/")])).code, Code::Usage);
        let mut args = args(&[("a", "/")]);
        args.read_only = vec!["b".into()];
        assert_eq!(refused(&args).code, Code::Usage);
    }

    #[test]
    fn a_key_in_the_file_that_is_not_known_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            "colour = \"red\"",
            "[shares.a]\npath = \"/a\"\nreadonly = true",
            "[shares.a]\npath = \"relative\"",
            "servers = [\"nowhere\"]",
        ] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(Config::load(dir.path()).is_err(), "{bad}");
        }
    }

    fn args(shares: &[(&str, &str)]) -> ServeArgs {
        ServeArgs {
            shares: shares.iter().map(|(name, dir)| ((*name).into(), (*dir).into())).collect(),
            read_only: Vec::new(),
            servers: Vec::new(),
            listen: None,
            auth_wait: 2,
            role: p2pfs::proto::path::Side::Both,
        }
    }
}
