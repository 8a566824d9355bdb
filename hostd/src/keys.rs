//! The keys that this host has recorded (R12, R23): `keys.toml` in the state directory.

pub(crate) mod login;
pub(crate) mod text;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::identity::sealed::{self, DEVICE_TEXT_BYTES_MAX, KeyId};
use p2pfs::identity::{PairKey, PeerId};
use p2pfs::limits::{KEYS_MAX, LABEL_BYTES_MAX, SHARES_MAX};
use p2pfs::net::daemon;
use p2pfs::net::rendezvous::RecordedKey;
use p2pfs::wire::session::DeviceId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::expires::{self, Lifetime};
use crate::owner::{self, Request};

const FILE: &str = "keys.toml";
/// [`KEYS_MAX`] records with all the shares that they may name.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// A shorter piece of an id is too easily another key's.
const ID_PREFIX_MIN: usize = 4;

/// All recorded keys.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    records: Vec<Record>,
    /// Whether something is not on the disk yet: only when keys were last seen may wait.
    unsaved: bool,
}

/// A recorded key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The client's public key.
    #[serde(with = "text::peer")]
    pub peer: PeerId,
    /// What the key and this host share.
    #[serde(with = "text::pair_key")]
    pub pair_key: PairKey,
    /// For people.
    pub name: String,
    /// Whether it may come in.
    pub state: State,
    /// Whether it may change files.
    pub access: Access,
    /// The shares that it may use; empty: all.
    #[serde(default)]
    pub shares: Vec<String>,
    /// As whom its changes are made.
    #[serde(default)]
    pub map: Map,
    /// Whether clients may keep the identity without the stick.
    #[serde(default)]
    pub portable: bool,
    /// When it was last approved or denied, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<u64>,
    /// From where, at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_from: Option<String>,
    /// What tells its client from others beside the key.
    #[serde(default)]
    pub kind: Kind,
    /// Until when it may come in, in seconds since 1970; without it for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// How the proof is known again that a recovered key shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// Whether it was recovered from paper: then nothing else counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
    /// What the device said of itself at pairing, or the identifier that was typed in; of a
    /// password only what Argon2id made of it.
    pub device: DeviceId,
}

/// Whether a key may come in.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Recorded, and nobody has said yes yet.
    Unauthorised,
    /// It may.
    Authorised,
    /// It might once.
    Revoked,
}

/// Whether a key may change files.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Access {
    /// It may only read.
    #[serde(rename = "ro")]
    ReadOnly,
    /// It may change files where the share allows it.
    #[serde(rename = "rw")]
    ReadWrite,
}

/// As whom a key's calls and changes are carried out.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Map {
    /// As the share's owner, whoever asks on the client.
    #[default]
    Squash,
    /// As who asks on the client, by user, group and groups; this host must be root for it.
    Identity,
}

impl Keys {
    /// Reads the file in `dir`; without one there are no keys.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is not in order. It is never overwritten then.
    pub fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let bad = |what: &str| {
            Failure::new(
                Code::Internal,
                format!("{}: {what}", path.display()),
                "restore the file from a backup, or remove it and pair all keys again",
            )
        };
        let records = match read(&path) {
            Ok(text) => Self::parse(&text).map_err(|what| bad(&what))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(bad(&error.to_string())),
        };
        Ok(Self { path, records, unsaved: false })
    }

    /// Reads what the file says.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people; never anything that stands in it.
    pub fn parse(text: &str) -> Result<Vec<Record>, String> {
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if file.keys.len() > KEYS_MAX {
            return Err("too many keys".into());
        }
        Ok(file.keys)
    }

    /// All of them, in the order of pairing.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The key with this public key.
    pub fn of(&self, peer: PeerId) -> Option<&Record> {
        self.records.iter().find(|record| record.peer == peer)
    }

    /// What the registration with a server needs of them.
    pub fn recorded(&self) -> Vec<RecordedKey> {
        let recorded =
            |record: &Record| RecordedKey { peer: record.peer, pair_key: record.pair_key.clone() };
        self.records.iter().map(recorded).collect()
    }

    /// Adds a key, or replaces the one with the same public key; on the disk when this returns.
    ///
    /// # Errors
    ///
    /// There are too many keys, or the record is longer than it may be, or the disk refuses.
    pub fn put(&mut self, record: Record) -> Result<(), Failure> {
        record.check()?;
        let before = self.records.clone();
        match self.position(record.peer) {
            Some(at) => self.records[at] = record,
            None if self.records.len() >= KEYS_MAX => {
                return Err(Failure::new(
                    Code::Internal,
                    format!("there are {KEYS_MAX} keys already"),
                    "remove one that is not used: p2pfs-hostd keys list, keys remove ID",
                ));
            }
            None => self.records.push(record),
        }
        self.save_or(before)
    }

    /// Sets whether a key may come in; `id`: its id or the beginning of it.
    ///
    /// # Errors
    ///
    /// There is no such key, or more than one, or the disk refuses.
    pub fn set_state(&mut self, id: &str, state: State) -> Result<&Record, Failure> {
        let at = self.find(id)?;
        let before = self.records.clone();
        self.records[at].state = state;
        self.save_or(before)?;
        Ok(&self.records[at])
    }

    /// Lets a key in, for as long as `lifetime` says, or as it was before.
    ///
    /// # Errors
    ///
    /// As [`Self::set_state`], and [`Code::Usage`] for one whose time is over and stays so.
    pub fn authorise(
        &mut self,
        id: &str,
        lifetime: Option<Lifetime>,
        now: u64,
    ) -> Result<&Record, Failure> {
        let at = self.find(id)?;
        let until = match lifetime {
            Some(lifetime) => lifetime.until(),
            None => self.records[at].expires,
        };
        if lifetime.is_none() && self.records[at].is_expired(now) {
            let over = until.map(expires::to_text).unwrap_or_default();
            return Err(Failure::new(
                Code::Usage,
                format!("the time of this key was over on {over}"),
                "say until when: keys authorise ID --expires DATE, or --expires never",
            ));
        }
        let before = self.records.clone();
        self.records[at].state = State::Authorised;
        self.records[at].expires = until;
        self.save_or(before)?;
        Ok(&self.records[at])
    }

    /// A key came with the proof from its paper: from now on only that counts.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn set_recovered(&mut self, peer: PeerId) -> Result<(), Failure> {
        let Some(at) = self.position(peer) else { return Ok(()) };
        let before = self.records.clone();
        self.records[at].recovered = true;
        self.save_or(before)
    }

    /// Forgets a key.
    ///
    /// # Errors
    ///
    /// As [`Self::set_state`].
    pub fn remove(&mut self, id: &str) -> Result<Record, Failure> {
        let at = self.find(id)?;
        let before = self.records.clone();
        let removed = self.records.remove(at);
        self.save_or(before)?;
        Ok(removed)
    }

    /// Notes when and from where a key came; written with the next [`Self::flush`].
    pub fn seen(&mut self, peer: PeerId, now: u64, from: String) {
        if let Some(at) = self.position(peer) {
            self.records[at].last_seen = Some(now);
            self.records[at].last_from = Some(from);
            self.unsaved = true;
        }
    }

    /// Writes what is not on the disk yet.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn flush(&mut self) -> Result<(), Failure> {
        if !self.unsaved {
            return Ok(());
        }
        let write = || {
            let text =
                toml::to_string(&FileRef { keys: &self.records }).map_err(io::Error::other)?;
            daemon::write_private(&self.path, text.as_bytes())
        };
        write().map_err(|error| {
            Failure::new(
                Code::Internal,
                format!("cannot write {}: {error}", self.path.display()),
                "check the owner of the state directory and the space on its disk",
            )
        })?;
        self.unsaved = false;
        Ok(())
    }

    /// A change that is not on the disk has not happened.
    fn save_or(&mut self, before: Vec<Record>) -> Result<(), Failure> {
        self.unsaved = true;
        self.flush().inspect_err(|_| self.records = before)
    }

    fn position(&self, peer: PeerId) -> Option<usize> {
        self.records.iter().position(|record| record.peer == peer)
    }

    fn find(&self, id: &str) -> Result<usize, Failure> {
        let id = &id.to_ascii_lowercase();
        let missing = |what: String| {
            let hint = "p2pfs-hostd keys list shows the keys and their ids";
            Failure::new(Code::KeyMissing, what, hint)
        };
        let ids = self.records.iter().map(Record::id).enumerate();
        let mut matching = ids.filter(|(_, known)| {
            known.as_str() == *id
                || (id.len() >= ID_PREFIX_MIN && known.as_str().starts_with(id.as_str()))
        });
        match (matching.next(), matching.next()) {
            (Some((at, _)), None) => Ok(at),
            (Some(_), Some(_)) => Err(missing(format!("more than one key's id begins with {id}"))),
            (None, _) => Err(missing(format!("there is no key {id}"))),
        }
    }
}

impl Record {
    /// What people call the key.
    pub fn id(&self) -> KeyId {
        KeyId::of(self.peer)
    }

    /// Whether it may use the share of that name.
    pub fn may_use(&self, share: &str) -> bool {
        self.shares.is_empty() || self.shares.iter().any(|name| name == share)
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|until| until <= now)
    }

    /// As `keys list --json` shows it.
    pub fn to_json(&self) -> Value {
        let is_weak = matches!(self.kind, Kind::Stick | Kind::Serial)
            && sealed::serial_weakness(&self.device.serial).is_some();
        json!({
            "id": self.id().as_str(),
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "access": self.access,
            "shares": self.shares,
            "map": self.map,
            "portable": self.portable,
            "expires": self.expires.map(expires::to_text),
            "recovered": self.recovered,
            "weak_serial": is_weak,
            "last_seen": self.last_seen,
            "last_from": self.last_from,
        })
    }

    fn check(&self) -> Result<(), Failure> {
        let device = [&self.device.serial, &self.device.vendor, &self.device.product];
        let names_are_long = self.name.len() > LABEL_BYTES_MAX
            || self.shares.len() > SHARES_MAX
            || self.shares.iter().any(|name| name.len() > LABEL_BYTES_MAX);
        if names_are_long || device.iter().any(|text| text.len() > DEVICE_TEXT_BYTES_MAX) {
            return Err(Failure::new(
                Code::Usage,
                "a name of the key, its device or its shares is too long",
                format!("names have at most {LABEL_BYTES_MAX} bytes"),
            ));
        }
        Ok(())
    }
}

impl State {
    /// As printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorised => "unauthorised",
            Self::Authorised => "authorised",
            Self::Revoked => "revoked",
        }
    }
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ro" => Ok(Self::ReadOnly),
            "rw" => Ok(Self::ReadWrite),
            _ => Err("it is ro or rw".into()),
        }
    }
}

impl FromStr for Map {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "squash" => Ok(Self::Squash),
            "identity" => Ok(Self::Identity),
            _ => Err("it is squash or identity".into()),
        }
    }
}

/// `keys list`.
///
/// # Errors
///
/// The keys cannot be read.
pub fn list(dir: &Path, json: bool) -> Result<(), Failure> {
    let keys = owner::ask(dir, &Request::List)?;
    if json {
        println!("{keys:#}");
        return Ok(());
    }
    let keys = keys.as_array().map(Vec::as_slice).unwrap_or_default();
    if keys.is_empty() {
        println!("no keys yet; p2pfs-hostd pair --key K makes one");
    }
    for key in keys {
        println!("{}", text::line(key));
    }
    Ok(())
}

/// `keys authorise`, `revoke` and `remove`.
///
/// # Errors
///
/// There is no such key, or the disk refuses.
pub fn change(dir: &Path, request: &Request) -> Result<(), Failure> {
    let key = owner::ask(dir, request)?;
    println!("{}", text::line(&key));
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: Vec<Record>,
}

#[derive(Serialize)]
struct FileRef<'a> {
    keys: &'a [Record],
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read;

    let mut text = String::new();
    let file = fs::File::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests;
