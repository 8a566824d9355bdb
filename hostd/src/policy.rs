//! Who may come in, and to what.

mod identifier;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use p2pfs::failure::{Code, Failure};
use p2pfs::id::SessionId;
use p2pfs::identity::PeerId;
use p2pfs::identity::kind::{self, Kind};
use p2pfs::identity::wrapping::Subject;
use p2pfs::net::serve::{AbsentClient, Authorised, Policy, Review, Rights};
use p2pfs::wire::session::{CloseReason, Denial, DeviceId, Identify};
use serde_json::{Value, json};

use crate::config::{Config, ShareConfig};
use crate::expires;
use crate::export::{Share, acting};
use crate::keys::{Access, Map, Record, State};
use crate::owner::Owner;
use crate::record::Records;

use self::identifier::{Same, Tries};

/// The shares that are served; one whose disk is missing is offline until the disk is back.
#[derive(Debug)]
pub struct Shares {
    shares: Mutex<BTreeMap<String, Served>>,
}

#[derive(Debug)]
struct Served {
    config: ShareConfig,
    /// `None`: offline.
    share: Option<Arc<Share>>,
}

/// The owner's list of keys, applied to the shares.
#[derive(Debug)]
pub struct House {
    owner: Arc<Owner>,
    shares: Arc<Shares>,
    records: Arc<Records>,
    tries: Tries,
}

impl Shares {
    /// Opens all shares of `config`. One that is served for the first time is bound to its disk
    /// there.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] if a share that was never served has no directory. One that was served
    /// before and has lost its disk is offline, with a line on stderr.
    pub fn open(config: &mut Config) -> Result<Self, Failure> {
        let mut shares = BTreeMap::new();
        for (name, config) in &mut config.shares {
            let share = match open(name, config) {
                Ok(share) => {
                    config.root = Some(share.root_identity());
                    Some(share)
                }
                Err(failure) if config.root.is_some() => {
                    eprintln!("{}", failure.report());
                    None
                }
                Err(failure) => {
                    return Err(Failure { code: Code::Usage, ..failure });
                }
            };
            let config = config.clone();
            shares.insert(name.clone(), Served { config, share });
        }
        Ok(Self { shares: Mutex::new(shares) })
    }

    /// Takes over what sessions had open when the run before was ended.
    fn recover(&self, records: &Records) {
        for (name, served) in &*self.lock() {
            let Some(share) = &served.share else { continue };
            share.recover_opens(records);
            if !share.finds_by_identity() {
                tracing::warn!(
                    share = name,
                    "what clients have open fails with ESTALE when hostd is restarted: keeping it \
                     needs root (CAP_DAC_READ_SEARCH), and ext4, f2fs, xfs, btrfs or tmpfs"
                );
            }
        }
    }

    /// As `status --json` shows them.
    pub fn status(&self) -> Value {
        let shares = self.lock();
        let shown = shares.iter().map(|(name, served)| {
            json!({
                "name": name,
                "path": served.config.path,
                "read_only": served.config.read_only,
                "online": served.share.is_some(),
            })
        });
        shown.collect()
    }

    /// Whether nobody may change it; also where there is none.
    fn is_read_only(&self, name: &str) -> bool {
        self.lock().get(name).is_none_or(|served| served.config.read_only)
    }

    fn names(&self, key: &Record) -> Vec<String> {
        let shares = self.lock();
        shares.keys().filter(|name| key.may_use(name)).cloned().collect()
    }

    /// The share and whether it is read-only. One that is offline is tried again.
    fn find(&self, name: &str) -> Option<Result<(Arc<Share>, bool), Failure>> {
        let mut shares = self.lock();
        let served = shares.get_mut(name)?;
        let share = match &served.share {
            Some(share) => Ok(Arc::clone(share)),
            None => open(name, &served.config),
        };
        if let Ok(share) = &share {
            served.share = Some(Arc::clone(share));
        }
        Some(share.map(|share| (share, served.config.read_only)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        // A share is put in whole
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl House {
    /// The rules of this owner for these shares, whose sessions are remembered in `records`.
    pub fn new(owner: Arc<Owner>, shares: Arc<Shares>, records: Arc<Records>) -> Self {
        shares.recover(&records);
        Self { owner, shares, records, tries: Tries::default() }
    }

    /// Compares what the client says of its device with what was recorded (R9); what it was found
    /// to be the same as.
    fn identify(&self, key: &Record, request: &Identify) -> Result<DeviceId, Denial> {
        let now = Instant::now();
        if !self.tries.may_try(key.peer, now) {
            return Err(Denial::TooManyTries);
        }
        let compared = identifier::compare(key, &request.device);
        if key.kind != Kind::Stick {
            self.tries.tried(key.peer, compared.is_ok(), now);
        }
        match compared {
            Ok(Same::Recorded) => Ok(key.device.clone()),
            Ok(Same::Recovered) => {
                if !key.recovered {
                    tracing::warn!(key = %key.id(), "a key was recovered from paper");
                    self.owner.keys().set_recovered(key.peer).map_err(|failure| {
                        tracing::error!("{failure}");
                        Denial::Busy
                    })?;
                }
                Ok(of_paper(key))
            }
            Err(denial) => {
                tracing::warn!(key = %key.id(), ?denial, "a key came with another identifier");
                Err(denial)
            }
        }
    }

    /// Nobody goes on with a session of another key's that it could not have had.
    fn is_session_of(
        &self,
        session: SessionId,
        peer: PeerId,
        rights: &Rights,
    ) -> Result<(), Denial> {
        let noted = self.records.client(session).filter(|noted| noted.peer != peer);
        let Some(noted) = noted else { return Ok(()) };
        let Rights { share, identity, .. } = rights;
        let is_same = noted.share == *share && noted.identity == *identity;
        let may = is_same && self.may_change(peer, share, *identity);
        may.then_some(()).ok_or(Denial::Busy)
    }

    fn choose(&self, key: &Record, wanted: Option<&str>) -> Result<String, Denial> {
        let mut names = self.shares.names(key);
        match wanted {
            Some(wanted) if names.iter().any(|name| name == wanted) => Ok(wanted.to_owned()),
            Some(wanted) if !key.may_use(wanted) && self.shares.lock().contains_key(wanted) => {
                Err(Denial::ShareDenied)
            }
            None if names.len() == 1 => Ok(names.remove(0)),
            _ => Err(Denial::ShareUnknown(names)),
        }
    }
}

impl Policy for House {
    fn may_change(&self, peer: PeerId, share: &str, identity: bool) -> bool {
        let may = self.owner.keys().of(peer).is_some_and(|key| {
            let comes_in = key.state == State::Authorised && !key.is_expired(expires::now());
            let is_same = identity == (key.map == Map::Identity);
            comes_in && is_same && key.access == Access::ReadWrite && key.may_use(share)
        });
        may && !self.shares.is_read_only(share)
    }

    fn could_change(&self, writer: PeerId, subject: &Subject) -> bool {
        let Subject { session, share, identity } = subject;
        let noted = self.records.client(*session).is_some_and(|noted| {
            (noted.peer, &noted.share, noted.identity) == (writer, share, *identity)
        });
        noted || self.may_change(writer, share, *identity)
    }

    fn absent(&self) -> Vec<AbsentClient> {
        let mut all = self.records.clients();
        let keys = self.owner.keys();
        // what a key may have kept that was taken off the list is no news
        let is_listed = |peer| keys.of(peer).is_some_and(|key| key.state == State::Authorised);
        all.retain(|one| one.keeps.is_some() || is_listed(one.peer));
        all
    }

    fn client(&self, session: SessionId) -> Option<AbsentClient> {
        self.records.client(session)
    }

    fn forget(&self, session: SessionId) {
        self.records.forget(session);
    }

    fn sweep(&self) {
        if let Err(error) = self.records.sweep() {
            tracing::warn!(%error, "old records of sessions cannot be removed");
        }
        let opened = |served: &Served| served.share.clone();
        let shares: Vec<Arc<Share>> = self.shares.lock().values().filter_map(opened).collect();
        for share in shares {
            share.forget_unrecorded(&self.records);
        }
    }

    fn authorise(
        &self,
        peer: PeerId,
        from: SocketAddr,
        request: &Identify,
    ) -> Result<Authorised, Denial> {
        let key = {
            let mut keys = self.owner.keys();
            keys.seen(peer, expires::now(), from.to_string());
            keys.of(peer).cloned().ok_or(Denial::Unauthorised)?
        };
        match key.state {
            State::Unauthorised => return Err(Denial::Unauthorised),
            State::Revoked => return Err(Denial::Revoked),
            State::Authorised if key.is_expired(expires::now()) => return Err(Denial::Expired),
            State::Authorised => {}
        }
        let known_by = self.identify(&key, request)?;
        if key.map == Map::Identity && !acting::possible() {
            eprintln!(
                "warning: key {} has map=identity, for which p2pfs-hostd must run as root",
                key.id()
            );
            eprintln!("hint: run p2pfs-hostd serve as root, or pair the key again without --map");
            return Err(Denial::ShareDenied);
        }
        let share = self.choose(&key, request.share.as_deref())?;
        let unknown = || Denial::ShareUnknown(self.shares.names(&key));
        let (opened, read_only) =
            self.shares.find(&share).ok_or_else(unknown)?.map_err(|failure| {
                eprintln!("{}", failure.report());
                let mut others = self.shares.names(&key);
                others.retain(|name| *name != share);
                Denial::ShareUnknown(others)
            })?;
        let rights = Rights {
            share,
            read_only: read_only || key.access == Access::ReadOnly,
            identity: key.map == Map::Identity,
            known_by,
        };
        self.is_session_of(request.session, peer, &rights)?;
        let export = opened.view_for(request.session, &self.records, key.map);
        Ok(Authorised { rights, export })
    }

    fn review(&self, peer: PeerId, rights: &Rights) -> Review {
        let Some(key) = self.owner.keys().of(peer).cloned() else {
            return Review::Over(CloseReason::Revoked);
        };
        let now_known_by = if key.recovered { of_paper(&key) } else { key.device.clone() };
        match key.state {
            State::Unauthorised | State::Revoked => Review::Over(CloseReason::Revoked),
            _ if key.is_expired(expires::now()) => Review::Over(CloseReason::Expired),
            // by the lost stick
            _ if key.recovered && rights.known_by != now_known_by => {
                Review::Over(CloseReason::Revoked)
            }
            _ if rights.known_by != now_known_by
                || !key.may_use(&rights.share)
                || rights.identity != (key.map == Map::Identity) =>
            {
                Review::Over(CloseReason::Denied)
            }
            _ if key.access == Access::ReadOnly && !rights.read_only => Review::ReadOnly,
            State::Authorised => Review::Stands,
        }
    }
}

/// What a key is known by that was recovered from paper.
fn of_paper(key: &Record) -> DeviceId {
    kind::recovered(key.recovery.as_deref().unwrap_or_default())
}

/// Opens a share's directory, if it is the one that it was.
fn open(name: &str, config: &ShareConfig) -> Result<Arc<Share>, Failure> {
    let dir: &Path = &config.path;
    let share = Share::open(dir).map_err(|error| {
        let error = std::io::Error::from(error);
        Failure::new(
            Code::Internal,
            format!("share {name} is offline: cannot open {}: {error}", dir.display()),
            "check that its disk is mounted and that this user may read it",
        )
    })?;
    if config.root.is_some_and(|root| root != share.root_identity()) {
        return Err(Failure::new(
            Code::Internal,
            format!("share {name} is offline: {} is another directory than it was", dir.display()),
            format!(
                "mount the disk that belongs there; if it is meant to be another one, remove \
                 `root` of shares.{name} from hostd.toml in the state directory"
            ),
        ));
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use p2pfs::identity::recovery;
    use tempfile::TempDir;

    use super::*;
    use crate::keys::tests::record;
    use crate::owner::Lock;

    #[test]
    fn only_an_authorised_key_with_its_own_device_comes_in() {
        let (_dir, house) = house(&["disk"]);
        let key = record(1);
        let ask = || house.authorise(key.peer, from(), &identify(&key, None));
        assert_eq!(ask().unwrap_err(), Denial::Unauthorised);
        house.owner.keys().put(key.clone()).unwrap();
        assert_eq!(ask().unwrap_err(), Denial::Unauthorised);
        set(&house, &key, State::Authorised);
        assert_eq!(ask().unwrap().rights.share, "disk");
        let mut other = identify(&key, None);
        other.device.serial.push('0');
        let refused = house.authorise(key.peer, from(), &other).unwrap_err();
        assert_eq!(refused, Denial::DeviceMismatch);
        let mut short = key.clone();
        (short.state, short.expires) = (State::Authorised, Some(expires::now()));
        house.owner.keys().put(short).unwrap();
        assert_eq!(ask().unwrap_err(), Denial::Expired);
        set(&house, &key, State::Revoked);
        assert_eq!(ask().unwrap_err(), Denial::Revoked);
        let seen = house.owner.keys().of(key.peer).cloned().unwrap();
        assert_eq!(seen.last_from.as_deref(), Some("192.0.2.1:7"));
        assert!(seen.last_seen.is_some());
    }

    #[test]
    fn a_key_gets_the_shares_that_it_may_use() {
        let (_dir, house) = house(&["music", "photos", "private"]);
        let mut key = record(1);
        key.state = State::Authorised;
        key.access = Access::ReadOnly;
        key.shares = vec!["music".into(), "photos".into()];
        house.owner.keys().put(key.clone()).unwrap();
        let ask = |share| house.authorise(key.peer, from(), &identify(&key, share));
        assert!(ask(Some("music")).unwrap().rights.read_only);
        assert_eq!(ask(Some("private")).unwrap_err(), Denial::ShareDenied);
        let list = Denial::ShareUnknown(vec!["music".into(), "photos".into()]);
        assert_eq!(ask(Some("films")).unwrap_err(), list);
        assert_eq!(ask(None).unwrap_err(), list);
    }

    #[test]
    fn who_could_make_a_keys_changes_may_go_on_with_its_session() {
        let (_dir, house) = house(&["music", "photos"]);
        let [owner, other, guest, mapped] = [1, 2, 3, 4].map(|number| {
            let mut key = record(number);
            key.state = State::Authorised;
            key
        });
        let guest = Record { shares: vec!["photos".into()], ..guest };
        let mapped = Record { map: Map::Identity, ..mapped };
        for key in [&owner, &other, &guest, &mapped] {
            house.owner.keys().put(key.clone()).unwrap();
        }
        let session = identify(&owner, None).session;
        let subject = Subject { session, share: "music".into(), identity: false };
        let may = |key: &Record| house.may_change(key.peer, "music", false);
        assert_eq!([&owner, &other, &guest, &mapped].map(may), [true, true, false, false]);
        assert!(house.may_change(mapped.peer, "music", true));
        let could = |key: &Record| house.could_change(key.peer, &subject);
        assert_eq!([&owner, &guest].map(could), [true, false]);

        // the session is noted, and its key taken off the list
        let noted = AbsentClient {
            session,
            peer: owner.peer,
            client: "laptop".into(),
            share: "music".into(),
            identity: false,
            has_changed: true,
            since: expires::now(),
            keeps: None,
        };
        let ask = |key: &Record| {
            house.authorise(key.peer, from(), &identify(key, Some("music"))).map(drop)
        };
        ask(&owner).unwrap();
        let granted = house.authorise(owner.peer, from(), &identify(&owner, Some("music")));
        granted.unwrap().export.note_client(&noted);
        let revoked = Record { state: State::Revoked, ..owner.clone() };
        house.owner.keys().put(revoked).unwrap();
        assert!(could(&owner) && !may(&owner));
        assert_eq!(house.absent(), [], "it is no news what a revoked key may have");
        house.owner.keys().remove(owner.id().as_str()).unwrap();
        assert!(could(&owner) && !could(&guest));
        let unknown = Subject { session: SessionId([9; 16]), ..subject.clone() };
        assert!(!house.could_change(owner.peer, &unknown));
        ask(&other).unwrap();
        assert_eq!(ask(&mapped).unwrap_err(), Denial::Busy);
        let reader = Record { access: Access::ReadOnly, ..other.clone() };
        house.owner.keys().put(reader).unwrap();
        assert_eq!(ask(&other).unwrap_err(), Denial::Busy);
    }

    #[test]
    fn what_was_approved_is_looked_at_again() {
        let (_dir, house) = house(&["music", "photos"]);
        let mut key = record(1);
        key.state = State::Authorised;
        key.recovery = Some(recovery::verifier("PROOF"));
        house.owner.keys().put(key.clone()).unwrap();
        let request = identify(&key, Some("music"));
        let rights = house.authorise(key.peer, from(), &request).unwrap().rights;
        let review = |changed: &Record| {
            house.owner.keys().put(changed.clone()).unwrap();
            house.review(key.peer, &rights)
        };
        assert_eq!(review(&key), Review::Stands);
        let changed = |change: &dyn Fn(&mut Record)| {
            let mut changed = key.clone();
            change(&mut changed);
            changed
        };
        let over = Review::Over;
        for (change, expected) in [
            (changed(&|key| key.access = Access::ReadOnly), Review::ReadOnly),
            (changed(&|key| key.shares = vec!["photos".into()]), over(CloseReason::Denied)),
            (changed(&|key| key.map = Map::Identity), over(CloseReason::Denied)),
            (changed(&|key| key.device.serial.push('0')), over(CloseReason::Denied)),
            (changed(&|key| key.expires = Some(expires::now())), over(CloseReason::Expired)),
            (changed(&|key| key.state = State::Unauthorised), over(CloseReason::Revoked)),
            (changed(&|key| key.state = State::Revoked), over(CloseReason::Revoked)),
        ] {
            assert_eq!(review(&change), expected, "{change:?}");
        }
        // the stick was lost, and its paper is used
        house.owner.keys().put(key.clone()).unwrap();
        let mut paper = request;
        paper.device = kind::recovered("PROOF");
        let recovered = house.authorise(key.peer, from(), &paper).unwrap().rights;
        assert_eq!(house.review(key.peer, &rights), over(CloseReason::Revoked));
        assert_eq!(house.review(key.peer, &recovered), Review::Stands);
        house.owner.keys().remove(key.id().as_str()).unwrap();
        assert_eq!(house.review(key.peer, &recovered), over(CloseReason::Revoked));
    }

    #[test]
    fn a_share_without_its_disk_is_offline_until_it_is_back() {
        let (dir, house) = house(&["disk"]);
        let mut config = Config::load(dir.path()).unwrap();
        let (disk, away) = (dir.path().join("disk"), dir.path().join("away"));
        fs::rename(&disk, &away).unwrap();
        let missing = Shares::open(&mut config).unwrap();
        assert_eq!(missing.status()[0]["online"], false);
        fs::create_dir(&disk).unwrap();
        let replaced = Shares::open(&mut config).unwrap();
        let house =
            House::new(Arc::clone(&house.owner), Arc::new(replaced), Arc::clone(&house.records));
        let mut key = record(1);
        key.state = State::Authorised;
        house.owner.keys().put(key.clone()).unwrap();
        let ask = || house.authorise(key.peer, from(), &identify(&key, Some("disk")));
        assert_eq!(ask().unwrap_err(), Denial::ShareUnknown(Vec::new()));
        fs::remove_dir(&disk).unwrap();
        fs::rename(&away, &disk).unwrap();
        assert_eq!(ask().unwrap().rights.share, "disk");
        assert_eq!(house.shares.status()[0]["online"], true);
    }

    #[test]
    fn a_share_that_never_was_is_wrong_usage() {
        let mut config = Config::default();
        let share = ShareConfig { path: "/nonexistent".into(), read_only: false, root: None };
        config.shares.insert("disk".into(), share);
        assert_eq!(Shares::open(&mut config).unwrap_err().code, Code::Usage);
    }

    fn house(names: &[&str]) -> (TempDir, House) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            let share = ShareConfig { path, read_only: false, root: None };
            config.shares.insert((*name).into(), share);
        }
        let shares = Arc::new(Shares::open(&mut config).unwrap());
        config.save(dir.path()).unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        let owner = Arc::new(Owner::open(dir.path(), lock).unwrap());
        let records = Records::open(dir.path()).unwrap();
        (dir, House::new(owner, shares, records))
    }

    fn set(house: &House, key: &Record, state: State) {
        house.owner.keys().set_state(key.id().as_str(), state).unwrap();
    }

    fn from() -> SocketAddr {
        "192.0.2.1:7".parse().unwrap()
    }

    fn identify(key: &Record, share: Option<&str>) -> Identify {
        Identify {
            session: SessionId([1; 16]),
            device: key.device.clone(),
            share: share.map(str::to_owned),
            client_name: "laptop".into(),
            held: p2pfs::id::Seq(1),
            unanswered: p2pfs::id::Seq(1),
        }
    }
}
