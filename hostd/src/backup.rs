//! `backup` and `restore`: who the host is and whom it knows, in one file that only its passphrase
//! opens. A new disk or a new machine goes on with it, and no key has to be paired again.
//!
//! ```text
//! p2pfs host backup 1
//! $argon2id$v=19$...          how the passphrase is stretched
//! salt (32), one chunk        files as TOML, sealed
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::passphrase::{Passphrase, Stretch};
use p2pfs::identity::sealing::Sealing;
use p2pfs::net::{ask, daemon};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::config::Config;
use crate::keys::Keys;
use crate::owner::{self, Lock, Request};

const MAGIC: &str = "p2pfs host backup 1\n";
/// What makes the host what it is, in its state directory.
const FILES: [&str; 4] = ["secret.key", "mac", "hostd.toml", "keys.toml"];
/// The file that says which host it is: where it is, there is something to lose.
const SECRET: &str = "secret.key";
/// As many keys as a host may record, and room.
const BYTES_MAX: u64 = 16 << 20;

/// What a backup holds.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    files: BTreeMap<String, String>,
}

impl Contents {
    /// Reads what was sealed.
    pub fn parse(text: &str) -> Option<Self> {
        toml::from_str(text).ok()
    }
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Contents(..)")
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.files.values_mut().for_each(Zeroize::zeroize);
    }
}

/// `backup FILE`.
///
/// # Errors
///
/// There is no host in `dir` yet, no passphrase, or the file cannot be written.
pub fn backup(dir: &Path, file: &Path, passphrase: Option<&Path>) -> Result<(), Failure> {
    if !dir.join(SECRET).exists() {
        let what = format!("there is no host in {} yet", dir.display());
        return Err(Failure::new(Code::Usage, what, "start p2pfs-hostd serve first"));
    }
    // Whatever makes it a host is in its files when this is answered
    owner::ask(dir, &Request::Host)?;
    let passphrase = ask::passphrase(passphrase, "Passphrase of the backup: ", true)?;
    let mut contents = Contents { files: BTreeMap::new() };
    for name in FILES {
        match fs::read_to_string(dir.join(name)) {
            Ok(text) => {
                contents.files.insert(name.to_owned(), text);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable("read", &dir.join(name), &error)),
        }
    }
    let sealed = seal(&contents, &passphrase).map_err(|error| unusable("write", file, &error))?;
    daemon::write_private(file, &sealed).map_err(|error| unusable("write", file, &error))?;
    println!("saved {}", file.display());
    eprintln!("hint: keep the file and its passphrase apart from this machine");
    Ok(())
}

/// `restore FILE`. Nothing is changed unless all of it can be.
///
/// # Errors
///
/// The file is none or the passphrase another, a daemon runs, or there is a host in `dir` that is
/// not to be replaced.
pub fn restore(
    dir: &Path,
    file: &Path,
    passphrase: Option<&Path>,
    replace: bool,
) -> Result<(), Failure> {
    let Some(_lock) = Lock::try_take(dir)? else {
        return Err(Failure::new(
            Code::Internal,
            format!("a p2pfs-hostd runs with {}", dir.display()),
            "stop it first, or choose another directory with --state DIR",
        ));
    };
    let there = FILES.iter().map(|name| dir.join(name)).find(|path| path.exists());
    if let Some(there) = there
        && !replace
    {
        return Err(Failure::new(
            Code::Usage,
            format!("there is a host already: {}", there.display()),
            "choose another directory with --state DIR, or say --replace to lose that one",
        ));
    }
    let bytes = read(file).map_err(|error| unusable("read", file, &error))?;
    let sealed = Sealed::parse(&bytes).ok_or_else(|| {
        let what = format!("{} is no backup of a p2pfs host", file.display());
        Failure::new(Code::KeyCorrupt, what, "name the file that p2pfs-hostd backup wrote")
    })?;
    let passphrase = ask::passphrase(passphrase, "Passphrase of the backup: ", false)?;
    let contents = sealed.open(&passphrase).ok_or_else(|| {
        let what = format!("{} does not open: the passphrase is wrong", file.display());
        Failure::new(Code::Passphrase, what, "type it again; if it is right the file is damaged")
    })?;
    put(dir, &contents)?;
    println!("restored {}", file.display());
    eprintln!("hint: p2pfs-hostd serve goes on with the same shares, servers and keys");
    eprintln!("hint: keys that were revoked since are as they were: p2pfs-hostd keys list");
    Ok(())
}

/// Checks everything in a place of its own first.
fn put(dir: &Path, contents: &Contents) -> Result<(), Failure> {
    let aside = dir.join("restored.new");
    let clean = |path: &PathBuf| match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    clean(&aside).map_err(|error| unusable("write", &aside, &error))?;
    daemon::state_dir(Some(aside.clone()), "hostd")?;
    let checked = (|| {
        for (name, text) in contents.files.iter().filter(|(name, _)| is_ours(name)) {
            let path = aside.join(name);
            let written = daemon::write_private(&path, text.as_bytes());
            written.map_err(|error| unusable("write", &path, &error))?;
        }
        if !aside.join(SECRET).exists() {
            let what = "the backup does not say which host it is";
            return Err(Failure::new(Code::KeyCorrupt, what, "use another backup"));
        }
        daemon::load_or_create_secret(&aside)?;
        Keys::load(&aside)?;
        // The directories may be on another disk now: they are taken as they are found
        let mut config = Config::load(&aside)?;
        config.shares.values_mut().for_each(|share| share.root = None);
        config.save(&aside)?;
        // Nothing of another host stays. The secret goes first and comes last: a restore that was
        // cut short is none
        for path in FILES.map(|name| dir.join(name)) {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(unusable("write", &path, &error));
            }
        }
        let mut names = FILES;
        names.reverse();
        for name in names.iter().filter(|name| aside.join(name).exists()) {
            let path = dir.join(name);
            fs::rename(aside.join(name), &path)
                .map_err(|error| unusable("write", &path, &error))?;
        }
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| unusable("write", dir, &error))
    })();
    let cleaned = clean(&aside).map_err(|error| unusable("write", &aside, &error));
    checked.and(cleaned)
}

fn is_ours(name: &str) -> bool {
    FILES.contains(&name)
}

fn seal(contents: &Contents, passphrase: &Passphrase) -> io::Result<Vec<u8>> {
    let text = Zeroizing::new(toml::to_string(contents).map_err(io::Error::other)?);
    let stretch = Stretch::new(daemon::random());
    let salt: [u8; 32] = daemon::random();
    let chunk = sealing(&stretch, passphrase, &salt).seal(text.as_bytes(), true);
    let head = format!("{MAGIC}{stretch}\n");
    Ok([head.as_bytes(), &salt, &chunk].concat())
}

/// A backup's file, not opened yet.
#[derive(Debug)]
pub struct Sealed<'a> {
    stretch: Stretch,
    salt: &'a [u8; 32],
    chunk: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Reads the file; `None` if it is no backup.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC.as_bytes())?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let stretch = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        let (salt, chunk) = rest[end + 1..].split_first_chunk::<32>()?;
        Some(Self { stretch, salt, chunk })
    }

    fn open(&self, passphrase: &Passphrase) -> Option<Contents> {
        let mut rest = self.chunk;
        let mut sealing = sealing(&self.stretch, passphrase, self.salt);
        let (text, is_last) = sealing.open(&mut rest).ok()?;
        let text = std::str::from_utf8(&text).ok().filter(|_| is_last)?;
        Contents::parse(text)
    }
}

fn sealing(stretch: &Stretch, passphrase: &Passphrase, salt: &[u8; 32]) -> Sealing {
    let key = stretch.derive(passphrase);
    Sealing::new(&key.0, salt)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unusable(verb: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("cannot {verb} {}: {error}", path.display()),
        "check its owner, its mode, and the space on its disk",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_after_a_restore() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (state(dir.path(), "old"), state(dir.path(), "new"));
        let (file, secret) = (dir.path().join("backup"), dir.path().join("secret"));
        fs::write(&secret, "correct horse\n").unwrap();
        let host = owner::ask(&old, &Request::Host).unwrap();
        backup(&old, &file, Some(&secret)).unwrap();
        assert!(!fs::read(&file).unwrap().windows(8).any(|part| part == b"[[keys]]"));
        restore(&new, &file, Some(&secret), false).unwrap();
        assert_eq!(owner::ask(&new, &Request::Host).unwrap(), host);
        // It loses nothing without being told to
        let refused = restore(&new, &file, Some(&secret), false).unwrap_err();
        assert_eq!(refused.code, Code::Usage);
        fs::write(new.join("keys.toml"), "# somebody else's keys\n").unwrap();
        restore(&new, &file, Some(&secret), true).unwrap();
        assert!(!new.join("restored.new").exists());
        assert!(!new.join("keys.toml").exists(), "a host that never paired knows no keys");
    }

    #[test]
    fn what_does_not_open_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (state(dir.path(), "old"), state(dir.path(), "new"));
        let (file, secret) = (dir.path().join("backup"), dir.path().join("secret"));
        fs::write(&secret, "correct horse\n").unwrap();
        owner::ask(&old, &Request::Host).unwrap();
        backup(&old, &file, Some(&secret)).unwrap();
        let good = fs::read(&file).unwrap();
        let try_restore = |passphrase: &str, bytes: &[u8]| {
            fs::write(&secret, passphrase).unwrap();
            fs::write(&file, bytes).unwrap();
            restore(&new, &file, Some(&secret), false).unwrap_err().code
        };
        assert_eq!(try_restore("wrong", &good), Code::Passphrase);
        assert_eq!(try_restore("correct horse", b"nonsense"), Code::KeyCorrupt);
        let mut flipped = good;
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        assert_eq!(try_restore("correct horse", &flipped), Code::Passphrase);
        assert!(!new.join(SECRET).exists());
    }

    fn state(dir: &Path, name: &str) -> PathBuf {
        let state = dir.join(name);
        fs::create_dir(&state).unwrap();
        state
    }
}
