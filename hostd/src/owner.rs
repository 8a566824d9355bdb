//! What the owner asks of a host, whether its daemon runs or not.
//!
//! The daemon and the commands hold `DIR/lock` while they own the files; a command that finds it
//! taken asks the daemon through its socket instead.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::identity::{MacAddress, PairKey, PeerId, SecretKey};
use p2pfs::net::rendezvous::RecordedKey;
use p2pfs::net::{admin, daemon};
use p2pfs::wire::session::DeviceId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::expires::{self, Lifetime};
use crate::keys::{Access, Keys, Map, Record, State};
use crate::machine;

/// How long another command may hold the files.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// A request of the owner.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Who the host is: a [`HostFacts`].
    Host,
    /// Records a key, or what has changed of one; answers with the key.
    Record(Box<NewKey>),
    /// All keys.
    List,
    /// Lets a key in.
    Authorise {
        /// Its id, or the beginning of it.
        id: String,
        /// For how long, if that is to change.
        #[serde(default)]
        lifetime: Option<Lifetime>,
    },
    /// Keeps a key out.
    Revoke {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Forgets a key.
    Remove {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// What goes on.
    Status,
}

/// Who a host is, as a key records it.
#[derive(Debug, Deserialize, Serialize)]
pub struct HostFacts {
    /// Its public key.
    #[serde(with = "crate::keys::text::peer")]
    pub peer: PeerId,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its name.
    pub name: String,
    /// Where clients ask for it.
    pub servers: Vec<ServerAddress>,
}

/// A key that is being paired.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Its public key.
    #[serde(with = "crate::keys::text::peer")]
    pub peer: PeerId,
    /// What it and the host share.
    #[serde(with = "crate::keys::text::pair_key")]
    pub pair_key: PairKey,
    /// What its device says of itself.
    pub device: DeviceId,
    /// For people.
    pub name: String,
    /// Whether it is let in at once.
    pub authorise: bool,
    /// Whether it may change files.
    pub access: Access,
    /// The shares that it may use; empty: all.
    pub shares: Vec<String>,
    /// As whom its changes are made.
    pub map: Map,
    /// Whether clients may keep the identity.
    pub portable: bool,
    /// What tells its client from others beside the key.
    pub kind: Kind,
    /// Until when it may come in, in seconds since 1970.
    pub expires: Option<u64>,
    /// How the proof is known again that a recovered key shows, if it is new.
    pub recovery: Option<String>,
    /// The key's servers; the host takes them over if it has none.
    pub servers: Vec<ServerAddress>,
}

/// The host's own files: who it is and whom it knows. There is one for each state directory at a
/// time.
#[derive(Debug)]
pub struct Owner {
    dir: PathBuf,
    secret: SecretKey,
    mac: MacAddress,
    name: String,
    keys: Mutex<Keys>,
    recorded: watch::Sender<Vec<RecordedKey>>,
    _lock: Lock,
}

/// The files of a state directory are ours while this lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Asks the daemon of `dir`, or does it on the files where none runs.
///
/// # Errors
///
/// The request is refused, or the files cannot be read or written.
pub fn ask(dir: &Path, request: &Request) -> Result<Value, Failure> {
    let encoded = serde_json::to_value(request).map_err(|error| not_understood(&error))?;
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        if let Some(answer) = admin::request(dir, &encoded)? {
            return Ok(answer);
        }
        if let Some(lock) = Lock::try_take(dir)? {
            return Owner::open(dir, lock)?.answer(request);
        }
        // A daemon that starts or ends, or another command
        if Instant::now() > end {
            return Err(Failure::new(
                Code::Internal,
                format!("somebody holds {} and does not answer", dir.display()),
                "wait until the other p2pfs-hostd has ended, and try again",
            ));
        }
        thread::sleep(LOCK_RETRY);
    }
}

/// Reads a request that came through the socket.
///
/// # Errors
///
/// It is none.
pub fn parse(request: Value) -> Result<Request, Failure> {
    serde_json::from_value(request).map_err(|error| not_understood(&error))
}

impl Lock {
    /// Takes the files of `dir`, unless somebody has them.
    ///
    /// # Errors
    ///
    /// The lock file cannot be made.
    pub fn try_take(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join("lock");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let unusable = |error: std::io::Error| {
            Failure::new(
                Code::Internal,
                format!("cannot lock {}: {error}", path.display()),
                "run this as the user whose state directory it is, or choose another with --state",
            )
        };
        let file = file.map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(unusable(error.into())),
        }
    }

    /// Takes the files of `dir` for a daemon: waits for commands, but not for another daemon.
    ///
    /// # Errors
    ///
    /// Another daemon runs there.
    pub fn take(dir: &Path) -> Result<Self, Failure> {
        let end = Instant::now() + LOCK_TIMEOUT;
        loop {
            if let Some(lock) = Self::try_take(dir)? {
                return Ok(lock);
            }
            let encoded = json!({ "request": "host" });
            if Instant::now() > end || admin::request(dir, &encoded)?.is_some() {
                return Err(Failure::new(
                    Code::Internal,
                    format!("another p2pfs-hostd serves from {}", dir.display()),
                    "stop it first, or choose another directory with --state DIR",
                ));
            }
            thread::sleep(LOCK_RETRY);
        }
    }
}

impl Owner {
    /// Opens the files of `dir`; makes the host's own key at the first time.
    ///
    /// # Errors
    ///
    /// They cannot be read or written, or are damaged.
    pub fn open(dir: &Path, lock: Lock) -> Result<Self, Failure> {
        let keys = Keys::load(dir)?;
        if !keys.records().is_empty() && !daemon::has_secret(dir) {
            // a restore that was cut short, or a disk that has lost it
            return Err(Failure::new(
                Code::KeyCorrupt,
                format!("{} knows keys, but not which host it is", dir.display()),
                "p2pfs-hostd restore FILE --replace brings the host back; to begin as another one \
                 remove keys.toml",
            ));
        }
        Ok(Self {
            dir: dir.to_owned(),
            secret: daemon::load_or_create_secret(dir)?,
            mac: machine::mac(dir)?,
            name: machine::name(),
            recorded: watch::Sender::new(keys.recorded()),
            keys: Mutex::new(keys),
            _lock: lock,
        })
    }

    /// The host's own key.
    pub fn secret(&self) -> &SecretKey {
        &self.secret
    }

    /// The host's MAC address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The recorded keys, now and after every change.
    pub fn recorded(&self) -> watch::Receiver<Vec<RecordedKey>> {
        self.recorded.subscribe()
    }

    /// The keys; held for a moment only.
    pub fn keys(&self) -> MutexGuard<'_, Keys> {
        // Every change of the keys is whole before anything can panic
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the owner asks.
    ///
    /// # Errors
    ///
    /// There is no such key, or the files cannot be written.
    pub fn answer(&self, request: &Request) -> Result<Value, Failure> {
        let answer = match request {
            Request::Host => self.facts()?,
            Request::Record(key) => self.record(key)?,
            Request::List => self.keys().records().iter().map(Record::to_json).collect(),
            Request::Authorise { id, lifetime } => {
                self.keys().authorise(id, *lifetime, expires::now())?.to_json()
            }
            Request::Revoke { id } => self.keys().set_state(id, State::Revoked)?.to_json(),
            Request::Remove { id } => {
                let record = self.keys().remove(id)?;
                self.publish();
                record.to_json()
            }
            Request::Status => self.status()?,
        };
        Ok(answer)
    }

    fn facts(&self) -> Result<Value, Failure> {
        let facts = HostFacts {
            peer: self.secret.peer_id(),
            mac: self.mac,
            name: self.name.clone(),
            servers: Config::load(&self.dir)?.servers,
        };
        serde_json::to_value(facts).map_err(|error| not_understood(&error))
    }

    fn record(&self, key: &NewKey) -> Result<Value, Failure> {
        let mut config = Config::load(&self.dir)?;
        if config.servers.is_empty() && !key.servers.is_empty() {
            config.servers.clone_from(&key.servers);
            config.save(&self.dir)?;
        }
        let mut keys = self.keys();
        let before = keys.of(key.peer).cloned();
        let state = match &before {
            _ if key.authorise => State::Authorised,
            Some(before) => before.state,
            None => State::Unauthorised,
        };
        let record = Record {
            peer: key.peer,
            pair_key: key.pair_key.clone(),
            name: key.name.clone(),
            state,
            access: key.access,
            shares: key.shares.clone(),
            map: key.map,
            portable: key.portable,
            kind: key.kind,
            expires: key.expires,
            recovery: key
                .recovery
                .clone()
                .or_else(|| before.as_ref().and_then(|before| before.recovery.clone())),
            // Paired again, it is on its own device again
            recovered: false,
            last_seen: before.as_ref().and_then(|before| before.last_seen),
            last_from: before.and_then(|before| before.last_from),
            device: key.device.clone(),
        };
        let shown = record.to_json();
        keys.put(record)?;
        drop(keys);
        self.publish();
        Ok(shown)
    }

    /// What can be said without a network; the daemon adds the rest.
    fn status(&self) -> Result<Value, Failure> {
        let shares: Value = Config::load(&self.dir)?
            .shares
            .iter()
            .map(|(name, share)| {
                json!({ "name": name, "path": share.path, "read_only": share.read_only })
            })
            .collect();
        Ok(json!({
            "id": self.secret.peer_id().to_text(),
            "name": self.name,
            "mac": self.mac.to_string(),
            "running": false,
            "keys": self.keys().records().len(),
            "shares": shares,
        }))
    }

    fn publish(&self) {
        self.recorded.send_replace(self.keys().recorded());
    }
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::new(
        Code::Usage,
        format!("the request is not understood: {error}"),
        "use the p2pfs-hostd of the same version as the daemon",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tests::record;

    #[test]
    fn a_key_is_recorded_authorised_revoked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let owner = open(dir.path());
        let recorded = owner.recorded();
        let shown = owner.answer(&Request::Record(Box::new(new_key()))).unwrap();
        assert_eq!(shown["state"], "unauthorised");
        assert_eq!(recorded.borrow().len(), 1);
        let id = shown["id"].as_str().unwrap().to_owned();
        let authorise = Request::Authorise { id: id.clone(), lifetime: None };
        let answer = owner.answer(&authorise).unwrap();
        assert_eq!(answer["state"], "authorised");
        // Paired again it keeps its state
        let again = owner.answer(&Request::Record(Box::new(new_key()))).unwrap();
        assert_eq!(again["state"], "authorised");
        owner.answer(&Request::Revoke { id: id.clone() }).unwrap();
        let again = owner.answer(&Request::Record(Box::new(new_key()))).unwrap();
        assert_eq!(again["state"], "revoked");
        owner.answer(&Request::Remove { id }).unwrap();
        assert_eq!(recorded.borrow().len(), 0);
        assert_eq!(owner.answer(&Request::List).unwrap(), json!([]));
    }

    #[test]
    fn a_host_that_has_lost_its_secret_does_not_become_another() {
        let dir = tempfile::tempdir().unwrap();
        ask(dir.path(), &Request::Record(Box::new(new_key()))).unwrap();
        std::fs::remove_file(dir.path().join("secret.key")).unwrap();
        let refused = ask(dir.path(), &Request::Host).unwrap_err();
        assert!(refused.hint.contains("restore"), "{refused}");
    }

    #[test]
    fn requests_survive_the_socket() {
        for request in [
            Request::Host,
            Request::Record(Box::new(new_key())),
            Request::List,
            Request::Revoke { id: "abcd".into() },
        ] {
            let encoded = serde_json::to_value(&request).unwrap();
            assert_eq!(format!("{:?}", parse(encoded).unwrap()), format!("{request:?}"));
        }
        assert!(parse(json!({ "request": "frobnicate" })).is_err());
    }

    #[test]
    fn commands_work_on_the_files_and_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let facts = ask(dir.path(), &Request::Host).unwrap();
        let facts: HostFacts = serde_json::from_value(facts).unwrap();
        let lock = Lock::try_take(dir.path()).unwrap().unwrap();
        assert!(Lock::try_take(dir.path()).unwrap().is_none());
        drop(lock);
        ask(dir.path(), &Request::Record(Box::new(new_key()))).unwrap();
        let keys = ask(dir.path(), &Request::List).unwrap();
        assert_eq!(keys[0]["name"], "stick");
        assert_eq!(open(dir.path()).secret().peer_id(), facts.peer);
    }

    fn open(dir: &Path) -> Owner {
        let lock = Lock::try_take(dir).unwrap().unwrap();
        Owner::open(dir, lock).unwrap()
    }

    fn new_key() -> NewKey {
        let record = record(1);
        NewKey {
            peer: record.peer,
            pair_key: record.pair_key,
            device: record.device,
            name: "stick".into(),
            authorise: false,
            access: Access::ReadWrite,
            shares: vec!["photos".into()],
            map: Map::Squash,
            portable: false,
            kind: record.kind,
            expires: None,
            recovery: None,
            servers: Vec::new(),
        }
    }
}
