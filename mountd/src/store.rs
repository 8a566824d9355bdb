//! Keys that are kept here without a stick: `STATE/keys/ID`, key folders that are tied to this
//! machine (R15).
//!
//! They were imported, or they are copies of keys whose owner allows that (`portable`); a copy's
//! `from` says where the stick was, so that it is found when the stick is not there.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::identity::passphrase::Passphrase;
use p2pfs::identity::sealed::{KeyContents, KeyId};
use p2pfs::net::daemon;
use p2pfs::usb::{ensure_machine, open_key, read_public, write_key};
use p2pfs::wire::session::DeviceId;

use crate::spec::Spec;

const FROM: &str = "from";
/// Keys that are looked through; there are as many as people import.
const KEYS_MAX: usize = 1024;

/// Where the key is: what `spec` says, if a key is there or none is kept; else the kept one of
/// that id, or the copy of what was there.
pub(crate) fn locate(state: &Path, spec: &Spec) -> PathBuf {
    if spec.key.join("p2pfs/key").exists() {
        return spec.key.clone();
    }
    let id = spec.name().filter(|name| is_id(name)).map(str::to_ascii_lowercase);
    let by_id = id.map(|id| folder(state).join(id));
    let kept = by_id.filter(|dir| dir.is_dir()).or_else(|| {
        let mut copies = kept(state);
        copies.find(|dir| fs::read(dir.join(FROM)).is_ok_and(|from| from == bytes(&spec.key)))
    });
    kept.unwrap_or_else(|| spec.key.clone())
}

/// Whether `dir` is one of ours.
pub(crate) fn is_kept(state: &Path, dir: &Path) -> bool {
    dir.parent() == Some(&folder(state))
}

/// Keeps an imported key; its folder.
pub(crate) fn keep(
    state: &Path,
    contents: &KeyContents,
    passphrase: Option<&Passphrase>,
) -> Result<PathBuf, Failure> {
    let dir = folder(state).join(contents.id.as_str());
    daemon::state_dir(Some(dir.clone()), "mountd")?;
    let device = ensure_machine(&dir)?;
    write_key(&dir, &device, contents, passphrase)?;
    Ok(dir)
}

/// A key was used from a stick: keeps a copy if its owner allows that, else takes an old one away.
pub(crate) fn follow(
    state: &Path,
    stick: &Path,
    device: &DeviceId,
    contents: &KeyContents,
    passphrase: Option<&Passphrase>,
) -> Result<(), Failure> {
    let dir = folder(state).join(contents.id.as_str());
    if !contents.portable {
        return match dir.join(FROM).exists() {
            true => remove(&dir),
            false => Ok(()),
        };
    }
    let is_same = || {
        let (copy, mut public) = (read_public(&dir).ok()?, read_public(stick).ok()?);
        // the salt of a passphrase is each file's own
        if public.passphrase.is_some() && copy.passphrase.is_some() {
            public.passphrase.clone_from(&copy.passphrase);
        }
        let is_from = fs::read(dir.join(FROM)).ok()? == bytes(stick);
        Some(is_from && public == copy && open_key(&dir, passphrase).is_ok())
    };
    if is_same() == Some(true) {
        return Ok(());
    }
    let mut copy = contents.clone();
    if matches!(copy.kind, Kind::Stick | Kind::Serial) && copy.shows.is_none() {
        copy.shows = Some(device.clone());
    }
    keep(state, &copy, passphrase)?;
    daemon::write_private(&dir.join(FROM), bytes(stick)).map_err(|error| unwritable(&dir, &error))
}

/// `forget ID`.
pub(crate) fn forget(state: &Path, id: &str) -> Result<(), Failure> {
    let dir = folder(state).join(id.to_ascii_lowercase());
    if !is_id(id) || !dir.is_dir() {
        return Err(Failure::new(
            Code::KeyMissing,
            format!("no key {id} is kept here"),
            format!("ls {} shows the ids of those that are", folder(state).display()),
        ));
    }
    remove(&dir)?;
    println!("forgotten {id}");
    Ok(())
}

fn remove(dir: &Path) -> Result<(), Failure> {
    fs::remove_dir_all(dir).map_err(|error| unwritable(dir, &error))
}

fn unwritable(dir: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("cannot change {}: {error}", dir.display()),
        "check the owner of the state directory and the space on its disk",
    )
}

fn folder(state: &Path) -> PathBuf {
    state.join("keys")
}

fn kept(state: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder(state)).into_iter().flatten().flatten();
    entries.take(KEYS_MAX).map(|entry| entry.path())
}

/// No path can be smuggled in as one.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == KeyId::DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn bytes(path: &Path) -> &[u8] {
    OsStr::as_bytes(path.as_os_str())
}
