//! Client and host in this process, over a real server and real sockets on loopback: R4, R7, R10.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use p2pfs::address::ServerAddress;
use p2pfs::failure::Code;
use p2pfs::id::{Epoch, HandleId, NodeId, Seq, SessionId};
use p2pfs::identity::{MacAddress, PairKey, PeerId, SecretKey};
use p2pfs::limits::{SESSIONS_PER_KEY_MAX, SHARES_MAX};
use p2pfs::net::host::{Host, HostConfig};
use p2pfs::net::remote::Remote;
use p2pfs::net::rendezvous::RecordedKey;
use p2pfs::net::serve::{Authorised, Export, Notices, Policy, Review, Rights};
use p2pfs::net::session::{ClientConfig, ClientSession, PutAway};
use p2pfs::proto::PeerMisbehaved;
use p2pfs::proto::path::{Side, Wanted};
use p2pfs::proto::redo::execute::How;
use p2pfs::proto::redo::log::Log;
use p2pfs::proto::redo::record::{Begun, Header, Recovered, Slot};
use p2pfs::wire::call::{Call, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::LeaseRequest;
use p2pfs::wire::log::{Change, Mutation, NodeRef, Outcome, Refused};
use p2pfs::wire::name::Name;
use p2pfs::wire::session::{CloseReason, Denial, DeviceId, Identify};
use p2pfs_server::Server;
use p2pfs_server::cli::RunOptions;
use tokio::sync::watch;

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);

/// A share of one file in memory.
#[derive(Default)]
struct Memory {
    data: Mutex<Vec<u8>>,
    /// As of the last sync.
    synced: Mutex<Vec<u8>>,
    writes: Mutex<BTreeMap<u64, u32>>,
    epoch: Mutex<Epoch>,
    /// The next sync fails, and what is not on the disk is lost.
    failing: AtomicBool,
    /// How long a record takes to begin, ms.
    beginning: AtomicU64,
    /// The record of the one session.
    recorded: Mutex<Option<Recovered>>,
}

impl Memory {
    /// The machine forgets what is not on its disk.
    fn reboot(&self) {
        self.data.lock().unwrap().clear();
        self.epoch.lock().unwrap().0[0] += 1;
        *self.recorded.lock().unwrap() = None;
    }

    fn write(&self, change: &Change, body: &[u8]) -> Result<Outcome, Refused> {
        let Mutation::Write { offset, .. } = change.mutation else {
            return Err(Refused::by_system(Errno::ENOSYS));
        };
        *self.writes.lock().unwrap().entry(offset).or_default() += 1;
        let start = usize::try_from(offset).unwrap();
        let mut data = self.data.lock().unwrap();
        let end = start + body.len();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[start..end].copy_from_slice(body);
        Ok(Outcome::Done)
    }
}

impl Export for Memory {
    fn call(&self, call: Call) -> Result<(Reply, Bytes), Errno> {
        match call {
            Call::Read { offset, len, .. } => {
                let data = self.data.lock().unwrap();
                let start = usize::try_from(offset).unwrap().min(data.len());
                let end = (start + len as usize).min(data.len());
                Ok((Reply::Data, Bytes::copy_from_slice(&data[start..end])))
            }
            Call::SyncAll { .. } => self.sync_all().map(|()| (Reply::Done, Bytes::new())),
            Call::Release { .. } => Ok((Reply::Done, Bytes::new())),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn apply(
        &self,
        _: Epoch,
        seq: Seq,
        change: &Change,
        body: &Bytes,
        _: &How,
        poisons: bool,
    ) -> Result<Outcome, Refused> {
        let result = self.write(change, body);
        if let Some(recorded) = &mut *self.recorded.lock().unwrap() {
            recorded.done.insert(seq, (result, poisons));
        }
        result
    }

    fn sync_all(&self) -> Result<(), Errno> {
        // one at a time, as on a disk
        let mut epoch = self.epoch.lock().unwrap();
        let mut data = self.data.lock().unwrap();
        let mut synced = self.synced.lock().unwrap();
        if self.failing.swap(false, Ordering::SeqCst) {
            data.clone_from(&synced);
            epoch.0[0] += 1;
            return Err(Errno::EIO);
        }
        synced.clone_from(&data);
        Ok(())
    }

    fn root(&self) -> Option<(u64, u64)> {
        Some((1, 1))
    }

    fn epoch(&self) -> Epoch {
        *self.epoch.lock().unwrap()
    }

    fn recover(&self) -> Option<Recovered> {
        self.recorded.lock().unwrap().clone()
    }

    fn begin(&self, begun: Begun, done: &[(Seq, Slot)]) -> Result<(), Errno> {
        std::thread::sleep(Duration::from_millis(self.beginning.load(Ordering::SeqCst)));
        let Begun { epoch, first, stable, .. } = begun;
        let session = SessionId([0; 16]);
        let header = Header { session, epoch, first, stable, fsid: 1, inode: 2 };
        let done = done.iter().filter_map(|(seq, slot)| match slot {
            Slot::Done { result, poisons } => Some((*seq, (*result, *poisons))),
            Slot::Intent(_) => None,
        });
        let (done, intents) = (done.collect(), BTreeMap::new());
        *self.recorded.lock().unwrap() = Some(Recovered { header, done, intents });
        Ok(())
    }

    fn attend_locks(&self, _: Notices) {}

    fn ask_lock(&self, _: LeaseRequest) -> Result<(), PeerMisbehaved> {
        Ok(())
    }

    fn leave(&self) {}

    fn end(&self) {}

    fn note_stable(&self, upto: Seq) {
        if let Some(recorded) = &mut *self.recorded.lock().unwrap() {
            recorded.header.stable = upto;
        }
    }
}

struct Owner {
    memory: Arc<Memory>,
    /// May only read.
    guest: PeerId,
    decision: Mutex<Option<Denial>>,
}

impl Policy for Owner {
    fn may_change(&self, peer: PeerId, _: &str, _: bool) -> bool {
        peer != self.guest
    }

    fn authorise(
        &self,
        _: PeerId,
        _: SocketAddr,
        request: &Identify,
    ) -> Result<Authorised, Denial> {
        if let Some(denial) = self.decision.lock().unwrap().clone() {
            return Err(denial);
        }
        assert_eq!(request.device.serial, "KEY-0001");
        let export = Arc::clone(&self.memory) as Arc<dyn Export>;
        let known_by = request.device.clone();
        let rights =
            Rights { share: "files".to_owned(), read_only: false, identity: false, known_by };
        Ok(Authorised { rights, export })
    }

    fn review(&self, _: PeerId, _: &Rights) -> Review {
        match *self.decision.lock().unwrap() {
            Some(_) => Review::Over(CloseReason::Revoked),
            None => Review::Stands,
        }
    }
}

/// Server, host and what a client needs to know.
struct Home {
    _server: Server,
    config: HostParts,
    host: Host,
    owner: Arc<Owner>,
    client: ClientConfig,
    /// Other keys: one that may do the same, and a guest.
    others: [ClientConfig; 2],
}

async fn home(state: &Path) -> Home {
    p2pfs::net::log::init();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let options =
        RunOptions { listen: any, stun: any, stun_alt: None, public: None, no_relay: true };
    let server = Server::start(&options, state).await.unwrap();
    let [secret, host_secret, other, guest] =
        [1, 2, 4, 5].map(|seed| SecretKey::from_seed([seed; 32]));
    let pair_keys = [3, 6, 7].map(|byte| PairKey::from_bytes([byte; 32]));
    let peers = [&secret, &other, &guest].map(SecretKey::peer_id);
    let recorded = std::iter::zip(peers, pair_keys.clone());
    let recorded = recorded.map(|(peer, pair_key)| RecordedKey { peer, pair_key }).collect();
    let [pair_key, other_pair_key, guest_pair_key] = pair_keys;
    let memory = Arc::new(Memory::default());
    let owner = Owner { memory, guest: guest.peer_id(), decision: Mutex::new(None) };
    let owner = Arc::new(owner);
    let client = ClientConfig {
        secret,
        device: DeviceId {
            serial: "KEY-0001".to_owned(),
            vendor: "0951".to_owned(),
            product: "1666".to_owned(),
        },
        pair_key,
        host: host_secret.peer_id(),
        host_mac: MAC,
        servers: vec![server.address().clone()],
        share: None,
        client_name: "laptop".to_owned(),
        timeout: Duration::from_secs(10),
        grace: Some(Duration::from_secs(5)),
        wait: false,
        wanted: Wanted::default(),
        loans: None,
        resume: None,
        journal: None,
    };
    let others = [(other, other_pair_key), (guest, guest_pair_key)];
    let others =
        others.map(|(secret, pair_key)| ClientConfig { secret, pair_key, ..client.clone() });
    let config = HostParts { secret: host_secret, recorded, server: server.address().clone() };
    let host = config.start(&owner);
    Home { _server: server, config, host, owner, client, others }
}

/// What a host that is started again has kept.
struct HostParts {
    secret: SecretKey,
    recorded: Vec<RecordedKey>,
    server: ServerAddress,
}

impl HostParts {
    fn start(&self, owner: &Arc<Owner>) -> Host {
        Host::start(HostConfig {
            secret: self.secret.clone(),
            mac: MAC,
            name: "home".to_owned(),
            listen: None,
            role: Side::Both,
            auth_wait: Duration::from_secs(2),
            servers: vec![self.server.clone()],
            keys: watch::channel(self.recorded.clone()).1,
            policy: Arc::clone(owner) as Arc<dyn Policy>,
            reserve: false,
        })
        .unwrap()
    }
}

const FILE: NodeRef = NodeRef::Node(NodeId { ino: 2, generation: 1 });

fn write_at(offset: u64) -> Change {
    Change::new(Mutation::Write { node: FILE, handle: Some(HandleId(1)), offset })
}

async fn read_all(session: &ClientSession) -> Vec<u8> {
    let call = Call::Read { handle: HandleId(1), offset: 0, len: 1 << 20 };
    session.call(call).await.unwrap().1.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_meets_its_host_and_what_it_writes_it_reads() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let session = ClientSession::establish(home.client.clone()).await.unwrap();
    assert_eq!(session.grant().share, "files");
    let mut last = Seq::ZERO;
    for chunk in 0..200_u64 {
        session.room(50_000).await.unwrap();
        let body = Bytes::from(vec![chunk as u8; 50_000]);
        last = session.submit(write_at(chunk * 5_000), body).seq;
    }
    session.call(Call::SyncAll { upto: last }).await.unwrap();
    let data = read_all(&session).await;
    assert_eq!(data.len(), 199 * 5_000 + 50_000);
    assert!((0..199_usize).all(|chunk| data[chunk * 5_000] == chunk as u8));
    let status = session.status();
    assert_eq!(status["state"], "connected");
    assert_eq!(status["path"]["kind"], "udp");
    assert!(home.host.status()["sessions"][0]["path"].is_object());
    session.close().await;
    assert_eq!(session.call(Call::StatFs).await, Err(Errno::ENOTCONN));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_started_again_is_found_again_under_the_same_session() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let patient = ClientConfig { grace: Some(Duration::from_secs(60)), ..home.client.clone() };
    let session = ClientSession::establish(patient).await.unwrap();
    session.submit(write_at(0), Bytes::from_static(b"kept")).wait().await.unwrap();
    let before = session.status()["connection_id"].clone();
    home.host.shutdown().await;
    drop(home.host);
    let _host = home.config.start(&home.owner);
    assert_eq!(read_all(&session).await, b"kept");
    assert_ne!(session.status()["connection_id"], before);
    assert_eq!(home.owner.memory.writes.lock().unwrap()[&0], 1);
    // the log goes on where it was
    let more = session.submit(write_at(4), Bytes::from_static(b", and more"));
    let upto = more.seq;
    more.wait().await.unwrap();
    session.call(Call::SyncAll { upto }).await.unwrap();
    assert_eq!(read_all(&session).await, b"kept, and more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_machine_forgot_gets_again_what_was_not_on_its_disk() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let patient = ClientConfig { grace: Some(Duration::from_secs(60)), ..home.client.clone() };
    let session = ClientSession::establish(patient).await.unwrap();
    session.submit(write_at(0), Bytes::from_static(b"kept")).wait().await.unwrap();
    // without an end in order, at which nothing is left to be forgotten
    drop(home.host);
    home.owner.memory.reboot();
    let _host = home.config.start(&home.owner);
    let more = session.submit(write_at(4), Bytes::from_static(b", and more"));
    more.wait().await.unwrap();
    assert_eq!(read_all(&session).await, b"kept, and more");
    assert_eq!(home.owner.memory.writes.lock().unwrap()[&0], 2);
}

/// Two sessions sync at once on a disk that fails: whoever is told that it is done has it on the
/// disk, and what is lost under the other's sync comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_takes_nothing_from_any_session_of_the_share() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let one = ClientSession::establish(home.client.clone()).await.unwrap();
    let other = ClientSession::establish(home.client.clone()).await.unwrap();
    for round in 0..50_u8 {
        let values = [[round, 1], [round, 2]];
        for (at, (session, value)) in [&one, &other].into_iter().zip(values).enumerate() {
            let body = Bytes::copy_from_slice(&value);
            session.submit(write_at(2 * at as u64), body).wait().await.unwrap();
        }
        home.owner.memory.failing.store(true, Ordering::SeqCst);
        // Whose it is to hear of it gets an error, and asks again
        let synced = async |session: &ClientSession, at: usize| {
            let upto = session.last_entry();
            while session.call(Call::SyncAll { upto }).await.is_err() {}
            home.owner.memory.synced.lock().unwrap()[2 * at..][..2].to_vec()
        };
        let both = async { tokio::join!(synced(&one, 0), synced(&other, 1)) };
        let (first, second) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!((first, second), (values[0].to_vec(), values[1].to_vec()), "round {round}");
    }
    assert_eq!(read_all(&one).await, [49, 1, 49, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_when_the_disk_fails_is_not_refused() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let session = ClientSession::establish(home.client.clone()).await.unwrap();
    home.owner.memory.beginning.store(30, Ordering::SeqCst);
    for round in 0..5 {
        session.submit(write_at(0), Bytes::from_static(&[0])).wait().await.unwrap();
        home.owner.memory.failing.store(true, Ordering::SeqCst);
        let writes = async {
            let mut writes = Vec::new();
            for offset in 1..=200 {
                let data = vec![u8::try_from(offset).unwrap(); 1];
                writes.push(session.submit(write_at(offset), data.into()));
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            for (at, write) in writes.into_iter().enumerate() {
                write.wait().await.unwrap_or_else(|error| panic!("{round}: {at}: {error:?}"));
            }
        };
        let synced = async {
            let upto = session.last_entry();
            while session.call(Call::SyncAll { upto }).await.is_err() {}
        };
        let both = async { tokio::join!(writes, synced) };
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        let all: Vec<u8> = (0..=200).collect();
        assert_eq!(read_all(&session).await, all, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stays_away_fails_what_waits_after_the_grace() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let grace = Some(Duration::from_millis(500));
    let impatient = ClientConfig { grace, ..home.client.clone() };
    let session = ClientSession::establish(impatient).await.unwrap();
    home.host.shutdown().await;
    drop(home.host);
    assert_eq!(session.given_up().await, Errno::ETIMEDOUT);
    assert_eq!(session.call(Call::StatFs).await, Err(Errno::ETIMEDOUT));
    assert_eq!(session.room(1).await, Err(Errno::ETIMEDOUT));
    let mkdir = Change::new(Mutation::Mkdir {
        parent: NodeId::ROOT.into(),
        name: Name::new("a").unwrap(),
        mode: 0o755,
        premade: None,
    });
    let refused = session.submit(mkdir, Bytes::new()).wait().await;
    assert_eq!(refused, Err(Errno::ETIMEDOUT));
    assert_eq!(session.status()["state"], "offline");
    // what was accepted is kept and delivered when the host is back
    let kept = session.submit(write_at(0), Bytes::from_static(b"kept"));
    let _host = home.config.start(&home.owner);
    kept.wait().await.unwrap();
    assert_eq!(read_all(&session).await, b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_gets_so_many_sessions_and_one_more_when_one_is_over() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS_PER_KEY_MAX {
        sessions.push(ClientSession::establish(home.client.clone()).await.unwrap());
    }
    let refused = ClientSession::establish(home.client.clone()).await.unwrap_err();
    assert_eq!(refused.code, Code::HostOffline);
    assert!(refused.to_string().contains("as many sessions as it can hold"), "{refused}");
    let over = sessions.pop().unwrap();
    // one that had no connection just then could not say that it is over
    let _ = over.call(Call::StatFs).await;
    over.close().await;
    // the host may hear of it a moment later
    let patient = ClientConfig { wait: true, ..home.client.clone() };
    let one_more = ClientSession::establish(patient);
    tokio::time::timeout(Duration::from_secs(20), one_more).await.unwrap().unwrap();
}

/// What one key could not deliver another one does, and gives the session back; nothing of it is
/// done twice, and nobody takes it from a client that may still be there.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_from_key_to_key_with_what_it_has_left() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let [other, guest] = home.others.clone();
    let go_on = |config: &ClientConfig, away: &PutAway| {
        let resume = Some(Box::new(away.clone()));
        ClientSession::begin(ClientConfig { resume, ..config.clone() }).unwrap()
    };
    let (kept, entries) = Log::new().keep();
    let empty = PutAway { session: SessionId([9; 16]), kept, entries };
    let first = go_on(&home.client, &empty);
    first.established().await.unwrap();
    // nobody takes it from a process that runs
    let thief = go_on(&other, &empty);
    let waits = tokio::time::timeout(Duration::from_secs(2), thief.established()).await;
    assert!(waits.is_err(), "{waits:?}");
    assert_eq!(home.host.status()["sessions"].as_array().unwrap().len(), 1);
    thief.part().await;

    let seq = first.submit(write_at(0), Bytes::from_static(b"one")).seq;
    first.call(Call::SyncAll { upto: seq }).await.unwrap();
    first.submit(write_at(3), Bytes::from_static(b"two")).applied.await.unwrap().unwrap();
    let away = first.put_away();
    assert_eq!(away.entries.len(), 1);
    first.part().await;
    let second = go_on(&other, &away);
    second.established().await.unwrap();
    second.submit(write_at(6), Bytes::from_static(b"three")).applied.await.unwrap().unwrap();
    let away = second.put_away();
    assert_eq!(away.entries.len(), 2);
    second.part().await;

    let refused = go_on(&guest, &away).established().await.unwrap_err();
    assert_eq!(refused.code, Code::HostOffline);
    let third = go_on(&home.client, &away);
    third.established().await.unwrap();
    third.delivered().await.unwrap();
    assert_eq!(read_all(&third).await, b"onetwothree");
    let once = [(0, 1), (3, 1), (6, 1)];
    assert_eq!(*home.owner.memory.writes.lock().unwrap(), BTreeMap::from(once));
    third.close().await;
    while !home.host.status()["sessions"].as_array().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_ends_a_running_session_within_a_second() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let session = ClientSession::establish(home.client.clone()).await.unwrap();
    *home.owner.decision.lock().unwrap() = Some(Denial::Revoked);
    home.host.review();
    let ended = tokio::time::timeout(Duration::from_secs(1), session.ended()).await.unwrap();
    assert_eq!(ended.code, Code::KeyRevoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_decides_and_says_why() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let unknown = Denial::ShareUnknown(vec!["files".to_owned(), "photos".to_owned()]);
    let denials = [
        (Denial::Unauthorised, Code::KeyUnauthorised),
        (Denial::Revoked, Code::KeyRevoked),
        (Denial::DeviceMismatch, Code::KeyCopied),
        (unknown, Code::ShareUnknown),
        (Denial::ShareDenied, Code::ShareDenied),
    ];
    for (denial, code) in denials {
        *home.owner.decision.lock().unwrap() = Some(denial);
        let failure = ClientSession::establish(home.client.clone()).await.unwrap_err();
        assert_eq!(failure.code, code);
        assert!(!failure.hint.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_names_no_end_of_shares_is_not_believed() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let timeout = Duration::from_secs(3);
    let many = (0..20_000).map(|number| format!("share {number}")).collect();
    for shares in [many, vec!["a".repeat(65)], vec!["\u{1b}[2J".to_owned()]] {
        *home.owner.decision.lock().unwrap() = Some(Denial::ShareUnknown(shares));
        let client = ClientConfig { timeout, ..home.client.clone() };
        let failure = ClientSession::shares(client).await.unwrap_err();
        assert_eq!(failure.code, Code::HostOffline);
    }
    let most: Vec<String> = (0..SHARES_MAX).map(|number| format!("{number:064}")).collect();
    *home.owner.decision.lock().unwrap() = Some(Denial::ShareUnknown(most.clone()));
    assert_eq!(ClientSession::shares(home.client.clone()).await.unwrap(), most);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_is_let_in_when_the_owner_authorises() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    *home.owner.decision.lock().unwrap() = Some(Denial::Unauthorised);
    let waiting = ClientConfig { wait: true, ..home.client.clone() };
    let session = tokio::spawn(ClientSession::establish(waiting));
    let first = ClientSession::establish(home.client.clone()).await.unwrap_err();
    assert_eq!(first.code, Code::KeyUnauthorised);
    *home.owner.decision.lock().unwrap() = None;
    session.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_registered_with_another_key_than_the_pinned_one_is_not_met() {
    let state = tempfile::tempdir().unwrap();
    let home = home(state.path()).await;
    let expects = SecretKey::from_seed([9; 32]).peer_id();
    let timeout = Duration::from_secs(3);
    let client = ClientConfig { host: expects, timeout, ..home.client.clone() };
    let failure = ClientSession::establish(client).await.unwrap_err();
    assert_eq!(failure.code, Code::HostOffline);
}
