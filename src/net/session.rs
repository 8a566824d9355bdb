//! The client's session: what a mount talks to.
//!
//! One task, the supervisor, runs [`crate::proto::session`]: it registers, looks for a path, makes
//! connections over it and replaces them. Calls and log entries go into their machines under one
//! lock, which is never held across a wait.

mod core;
pub mod journal;
mod lanes;
mod link;
mod loans;
mod locks;
mod others;
mod supervisor;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::address::ServerAddress;
use crate::failure::{Code, Failure};
use crate::id::{HandleId, NodeId, Seq, SessionId};
use crate::identity::{MacAddress, PairKey, PeerId, SecretKey};
use crate::net::remote::{BoxFuture, Remote, Submitted};
use crate::proto::path::Wanted;
use crate::proto::redo::log::{Kept, KeptEntry};
use crate::proto::session::End;
use crate::wire::call::{Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::lease::{Blocker, Lock};
use crate::wire::log::Change;
use crate::wire::session::{Denial, DeviceId, Grant};

use self::core::Core;
use self::journal::Journals;
use self::supervisor::Supervisor;

/// What a session needs to know: mostly what the key says.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The key's own secret.
    pub secret: SecretKey,
    /// What the attached device says of itself.
    pub device: DeviceId,
    /// What host and key share.
    pub pair_key: PairKey,
    /// The host's key.
    pub host: PeerId,
    /// The host's MAC address.
    pub host_mac: MacAddress,
    /// Where the host may be asked for.
    pub servers: Vec<ServerAddress>,
    /// The share; without it the only one.
    pub share: Option<String>,
    /// This machine's name, for the owner's list of keys.
    pub client_name: String,
    /// How long [`ClientSession::established`] waits.
    pub timeout: Duration,
    /// How long calls wait for a silent host; `None` for ever.
    pub grace: Option<Duration>,
    /// Whether to ask again after a denial (507).
    pub wait: bool,
    /// What the owner wants of the paths.
    pub wanted: Wanted,
    /// Where sessions of this user with the same key lend each other their registrations.
    pub loans: Option<PathBuf>,
    /// A session of an earlier run, to deliver what it has left.
    pub resume: Option<Box<PutAway>>,
    /// Where what is accepted outlives this process; without it, it does not.
    pub journal: Option<Arc<dyn Journals>>,
}

/// What is left of a session: changes that were accepted and are not on the host's disk.
#[derive(Clone, Debug)]
pub struct PutAway {
    /// Which one.
    pub session: SessionId,
    /// The log.
    pub kept: Kept,
    /// Its entries, each with its data.
    pub entries: Vec<(KeptEntry, Bytes)>,
}

/// A session with a host. It ends when it is dropped.
#[derive(Debug)]
pub struct ClientSession {
    core: Arc<Core>,
    phase: watch::Receiver<Phase>,
    supervisor: JoinHandle<()>,
    timeout: Duration,
    wait: bool,
}

/// What establishing has come to; decides what a person is told when time runs out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    pub(crate) server_connected: bool,
    pub(crate) server_changed: bool,
    pub(crate) introduced: bool,
    pub(crate) path: bool,
    pub(crate) wrong_host: bool,
    pub(crate) denied: Option<Denial>,
    pub(crate) up: bool,
    pub(crate) end: Option<End>,
}

impl ClientSession {
    /// Meets the host and opens the session; returns when the share can be used.
    ///
    /// # Errors
    ///
    /// What a person can act on: the host refuses the key, or something was not reachable within
    /// the time-out.
    pub async fn establish(config: ClientConfig) -> Result<Arc<Self>, Failure> {
        let session = Self::begin(config)?;
        session.established().await?;
        Ok(session)
    }

    /// Begins to look for the host. What is asked before [`Self::established`] returns goes along
    /// with the session's opening, and is answered as soon as the host has approved.
    ///
    /// # Errors
    ///
    /// The key names no server, or there can be no socket.
    pub fn begin(config: ClientConfig) -> Result<Arc<Self>, Failure> {
        let (timeout, wait) = (config.timeout, config.wait);
        let (core, supervisor, phase) = Supervisor::new(config)?;
        let supervisor = tokio::spawn(supervisor.run());
        Ok(Arc::new(Self { core, phase, supervisor, timeout, wait }))
    }

    /// Returns when the share can be used.
    ///
    /// # Errors
    ///
    /// As [`Self::establish`].
    pub async fn established(&self) -> Result<(), Failure> {
        let mut phase = self.phase.clone();
        let settled =
            tokio::time::timeout(self.timeout, phase.wait_for(Phase::is_settled)).await.is_ok();
        // 507: whoever waits for the owner has found the host, so time no longer counts
        if !settled && self.wait && self.phase.borrow().denied.is_some() {
            let _ = phase.wait_for(Phase::is_settled).await;
        }
        let phase = self.phase.borrow().clone();
        if phase.up { Ok(()) } else { Err(phase.failure(self.timeout)) }
    }

    /// The shares that the host has for the key, of which `config` names none.
    ///
    /// # Errors
    ///
    /// As for [`Self::establish`].
    pub async fn shares(config: ClientConfig) -> Result<Vec<String>, Failure> {
        let session = Self::begin(ClientConfig { share: None, wait: false, ..config })?;
        let Err(failure) = session.established().await else {
            let only = session.grant().share;
            session.close().await;
            return Ok(vec![only]);
        };
        match &session.phase.borrow().end {
            Some(End::Denied(Denial::ShareUnknown(shares))) => Ok(shares.clone()),
            _ => Err(failure),
        }
    }

    /// What the host granted, last time.
    pub fn grant(&self) -> Grant {
        self.core.grant()
    }

    /// Whether the host acts as whoever asks (`map=identity`), and so wants to know.
    pub fn is_identity(&self) -> bool {
        self.core.is_identity()
    }

    /// The newest log entry.
    pub fn last_entry(&self) -> Seq {
        self.core.last_entry()
    }

    /// Whether the host is there now.
    pub fn is_connected(&self) -> bool {
        self.core.is_connected()
    }

    /// Whether every entry is on the host's disk, as far as the host has said.
    pub fn is_delivered(&self) -> bool {
        self.core.is_delivered()
    }

    /// The mount's object in `status --json`, without what only the mount knows.
    pub fn status(&self) -> serde_json::Value {
        self.core.status()
    }

    /// Waits until everything is on the host's disk.
    ///
    /// # Errors
    ///
    /// As [`Remote::call`].
    pub async fn delivered(&self) -> Result<(), Errno> {
        while !self.is_delivered() {
            self.call(Call::SyncAll { upto: self.last_entry() }).await?;
        }
        Ok(())
    }

    /// How many changes the host refused after they were accepted.
    pub fn refused(&self) -> u64 {
        self.core.refused()
    }

    /// Takes away what is not delivered, for another run of the client. The session is of no use
    /// afterwards; the host waits for that run.
    pub fn put_away(&self) -> PutAway {
        self.core.put_away()
    }

    /// What was accepted has arrived, or is kept elsewhere: the session's journal is not needed.
    pub fn forget_journal(&self) {
        self.core.forget_journal();
    }

    /// Refuses with `errno` what is asked of the host from now on, and what is being asked; changes
    /// that were accepted are still delivered.
    pub fn shut(&self, errno: Errno) {
        self.core.shut(errno);
    }

    /// Ends the session; whatever still waits fails with ENOTCONN. The host is told, as far as that
    /// takes no longer than half a second.
    pub async fn close(&self) {
        self.core.close();
        let mut phase = self.phase.clone();
        // the supervisor says farewell last
        while phase.changed().await.is_ok() {}
    }

    /// Resolves when the session is over for good, for another reason than [`Self::close`].
    pub async fn ended(&self) -> Failure {
        let mut phase = self.phase.clone();
        let settled = phase.wait_for(|phase| phase.end.is_some()).await;
        match settled {
            Ok(phase) => phase.failure(Duration::ZERO),
            Err(_) => Phase::default().failure(Duration::ZERO),
        }
    }
}

impl Drop for ClientSession {
    fn drop(&mut self) {
        self.core.close();
        self.supervisor.abort();
    }
}

impl Remote for ClientSession {
    fn call(&self, call: Call) -> BoxFuture<Result<(Reply, Bytes), Errno>> {
        Box::pin(Core::call(Arc::clone(&self.core), call))
    }

    fn submit(&self, change: Change, body: Bytes) -> Submitted {
        self.core.submit(change, body)
    }

    fn strike(&self, seq: Seq) {
        self.core.strike(seq);
    }

    fn room(&self, bytes: usize) -> BoxFuture<Result<(), Errno>> {
        Box::pin(Core::room(Arc::clone(&self.core), bytes))
    }

    fn is_kept(&self) -> bool {
        self.core.is_kept()
    }

    fn given_up(&self) -> BoxFuture<Errno> {
        Box::pin(Core::given_up(Arc::clone(&self.core)))
    }

    fn is_given_up(&self) -> bool {
        self.core.is_given_up()
    }

    fn round_trip(&self) -> Duration {
        self.core.round_trip()
    }

    fn undone(&self) -> Vec<(NodeId, Errno)> {
        self.core.undone()
    }

    fn any_undone(&self) -> BoxFuture<bool> {
        Box::pin(Core::any_undone(Arc::clone(&self.core)))
    }

    fn lock(&self, lock: Lock, wait: bool) -> BoxFuture<Result<(), Errno>> {
        Box::pin(Core::lock_file(Arc::clone(&self.core), lock, wait))
    }

    fn test_lock(&self, lock: Lock) -> BoxFuture<Result<Option<Blocker>, Errno>> {
        Box::pin(Core::test_lock(Arc::clone(&self.core), lock))
    }

    fn unlock(&self, lock: Lock) {
        self.core.unlock_file(lock);
    }

    fn close_locks(&self, handle: HandleId) {
        self.core.close_locks(handle);
    }

    fn has_lost_lock(&self, handle: HandleId) -> bool {
        self.core.has_lost_lock(handle)
    }
}

impl Phase {
    fn is_settled(&self) -> bool {
        self.up || self.end.is_some() || self.wrong_host
    }

    /// What a person is told, going from the most certain to the least.
    fn failure(&self, waited: Duration) -> Failure {
        if let Some(End::Denied(denial)) = &self.end {
            return denied(denial);
        }
        if self.end == Some(End::Revoked) {
            return revoked();
        }
        if self.end == Some(End::Remapped) {
            return Failure::new(
                Code::KeyUnauthorised,
                "the host's owner has changed as whom this key acts (map)",
                "mount it again",
            );
        }
        if self.wrong_host {
            return Failure::new(
                Code::HostMismatch,
                "the machine that answered is not the host that this key was paired with",
                "if the host was reinstalled, pair the key again; else somebody is in its place",
            );
        }
        if let Some(denial) = &self.denied {
            return denied(denial);
        }
        let seconds = waited.as_secs();
        if self.server_connected || self.introduced {
            let what = if self.introduced && !self.path {
                format!("the host answered, but no path to it was found in {seconds} s")
            } else {
                format!("the host did not answer within {seconds} s")
            };
            let hint = "see that p2pfs-hostd runs on the host and reaches the same server; a key \
                        that was removed there looks the same";
            return Failure::new(Code::HostOffline, what, hint);
        }
        if self.server_changed {
            return Failure::new(
                Code::ServerChanged,
                "the server that answered has another key than the one this key was paired with",
                "if the server was set up anew, pair the key again; else do not trust this network",
            );
        }
        Failure::new(
            Code::ServerUnreachable,
            format!("no rendezvous server answered within {seconds} s"),
            "check the network and that the server runs (p2pfs-mountd key show K names it)",
        )
    }
}

fn denied(denial: &Denial) -> Failure {
    match denial {
        Denial::Unauthorised => Failure::new(
            Code::KeyUnauthorised,
            "the host has recorded this key, but it is not authorised",
            "on the host: p2pfs-hostd keys authorise ID (p2pfs-hostd keys list shows the ID)",
        ),
        Denial::Revoked => revoked(),
        Denial::DeviceMismatch => Failure::new(
            Code::KeyCopied,
            "the host knows this key on another device",
            "use the stick that was paired, or pair this one: p2pfs-hostd pair --key ...",
        ),
        Denial::ShareUnknown(shares) => Failure::new(
            Code::ShareUnknown,
            "the host has no such share, or several and none was named",
            format!("name one of: {} (as in KEY:SHARE)", shares.join(", ")),
        ),
        Denial::ShareDenied => Failure::new(
            Code::ShareDenied,
            "the share is not for this key",
            "ask the host's owner, or name another share (as in KEY:SHARE)",
        ),
        Denial::Busy => Failure::new(
            Code::HostOffline,
            "the host has as many sessions as it can hold",
            "try again when another client has unmounted",
        ),
        Denial::Expired => Failure::new(
            Code::KeyUnauthorised,
            "the time for which the host's owner authorised this key is over",
            "on the host: p2pfs-hostd keys authorise ID --expires DATE gives it more",
        ),
        Denial::OtherIdentifier => Failure::new(
            Code::KeyUnauthorised,
            "the host expects another code, serial number, MAC address, user or password",
            "compare p2pfs-mountd identity with what was typed in on the host, or type the \
             password again",
        ),
        Denial::TooManyTries => Failure::new(
            Code::KeyUnauthorised,
            "too many wrong passwords or identifiers were tried with this key",
            "try again in a minute",
        ),
    }
}

fn revoked() -> Failure {
    Failure::new(
        Code::KeyRevoked,
        "the host's owner revoked this key",
        "on the host: p2pfs-hostd keys authorise ID gives it back",
    )
}
