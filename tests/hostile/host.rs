//! A hostile host: it lets everybody in, has a small tree, and lies about it.

use std::sync::{Arc, Mutex};

use p2pfs::id::{Epoch, HostRun, NodeId, RequestId, Seq};
use p2pfs::identity::SecretKey;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::net::rendezvous::RecordedKey;
use p2pfs::wire::call::{
    Answer, Ask, Attr, Call, DirEntry, DirPage, Entry, ReadVersion, Reply, StatFs, Time,
};
use p2pfs::wire::codec::{decode, encode};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::Cursor;
use p2pfs::wire::name::{Name, Target};
use p2pfs::wire::session::{Grant, StreamKind, Verdict};
use quinn::{Connection, RecvStream, SendStream};

use super::peer::{self, Peer, framed};

/// Of the key that it was paired with.
const SEED: [u8; 32] = [0x66; 32];
/// What is in the file.
pub(super) const CONTENTS: &[u8] = b"hello";

pub(super) const FILE: NodeId = NodeId { ino: 2, generation: 1 };
pub(super) const LINK: NodeId = NodeId { ino: 3, generation: 1 };
pub(super) const DIR: NodeId = NodeId { ino: 4, generation: 1 };

/// What a lie says: bytes for the lane, or nothing if the truth is to be told.
pub(super) struct Lie(pub(super) fn(RequestId, &Call) -> Option<Vec<u8>>);

/// What is said unasked, on the streams of the log, the leases and the lanes.
pub(super) struct Unasked(pub(super) fn(StreamKind) -> Vec<u8>);

/// What it does at the moment.
pub(super) struct Script {
    pub(super) lie: Lie,
    pub(super) unasked: Unasked,
}

/// A running host.
pub(super) struct HostileHost {
    pub(super) key: KeyContents,
    script: Arc<Mutex<Script>>,
    runtime: tokio::runtime::Runtime,
}

impl Default for Script {
    fn default() -> Self {
        Self { lie: Lie(|_, _| None), unasked: Unasked(|_| Vec::new()) }
    }
}

impl HostileHost {
    /// Registers with a real server.
    pub(super) fn start(server: &str) -> Self {
        Self::start_as(server, &SecretKey::from_seed(SEED))
    }

    /// The same, but it proves this key to its clients.
    pub(super) fn start_as(server: &str, shown: &SecretKey) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (secret, shown) = (SecretKey::from_seed(SEED), shown.clone());
        let server = server.parse().unwrap();
        let key = peer::a_key(secret.peer_id(), &server);
        let recorded = RecordedKey { peer: key.secret.peer_id(), pair_key: key.pair_key.clone() };
        let script = Arc::new(Mutex::new(Script::default()));
        let told = Arc::clone(&script);
        runtime.spawn(async move {
            let mut peer = Peer::host(&secret, &shown, &server, recorded);
            let quic = peer.quic();
            tokio::spawn(async move {
                while let Some(incoming) = quic.accept().await {
                    let script = Arc::clone(&told);
                    tokio::spawn(async move {
                        if let Ok(connection) = incoming.await {
                            serve(connection, script).await;
                        }
                    });
                }
            });
            loop {
                peer.meet().await;
            }
        });
        Self { key, script, runtime }
    }

    /// From now on it does this.
    pub(super) fn set(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    /// Ends it.
    pub(super) fn stop(self) {
        self.runtime.shutdown_background();
    }
}

async fn serve(connection: Connection, script: Arc<Mutex<Script>>) -> Option<()> {
    let (mut send, mut receive) = connection.accept_bi().await.ok()?;
    receive.read_exact(&mut [0]).await.ok()?;
    peer::read_frame(&mut receive).await?;
    let cursor = Cursor { epoch: Epoch([1; 16]), ..Cursor::default() };
    let grant = Grant {
        share: "disk".into(),
        read_only: false,
        run: HostRun(1),
        cursor,
        host_name: "hostile".into(),
        host_mac: peer::MAC.0,
    };
    send.write_all(&peer::frame(&Verdict::Approved(grant), &[])).await.ok()?;
    let _ = send.finish();
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(stream(send, receive, Arc::clone(&script)));
    }
    Some(())
}

async fn stream(
    mut send: SendStream,
    mut receive: RecvStream,
    script: Arc<Mutex<Script>>,
) -> Option<()> {
    let mut kind = [0];
    receive.read_exact(&mut kind).await.ok()?;
    let kind = StreamKind::from_byte(kind[0])?;
    let unasked = (script.lock().unwrap().unasked.0)(kind);
    send.write_all(&unasked).await.ok()?;
    while let Some(header) = peer::read_frame(&mut receive).await {
        let answer = match kind {
            StreamKind::Calls => {
                let Ask { id, call } = decode(&header).ok()?;
                let lie = (script.lock().unwrap().lie.0)(id, &call);
                lie.unwrap_or_else(|| truth(id, &call))
            }
            StreamKind::Call => {
                let call: Call = decode(&header).ok()?;
                let (reply, body) = honest(&call);
                peer::frame(&reply, &body)
            }
            _ => continue,
        };
        send.write_all(&answer).await.ok()?;
    }
    Some(())
}

/// The truth, as an answer on a lane.
pub(super) fn truth(id: RequestId, call: &Call) -> Vec<u8> {
    let (reply, body) = honest(call);
    answer(id, reply, &body)
}

/// An answer on a lane.
pub(super) fn answer(id: RequestId, reply: Result<Reply, Errno>, body: &[u8]) -> Vec<u8> {
    peer::frame(&Answer { id, reply }, body)
}

/// An answer of which some bytes become others, wherever they are.
pub(super) fn twisted(id: RequestId, reply: Reply, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut header = encode(&Answer { id, reply: Ok(reply) }).unwrap();
    let mut at = 0;
    while let Some(found) = header[at..].windows(from.len()).position(|window| window == from) {
        header.splice(at + found..at + found + from.len(), to.iter().copied());
        at += found + to.len();
    }
    framed(&header, &[])
}

/// What an honest host would say.
pub(super) fn honest(call: &Call) -> (Result<Reply, Errno>, Vec<u8>) {
    let none = Vec::new();
    let reply = match call {
        Call::Lookup { name, .. } => match tree().iter().find(|entry| entry.name == *name) {
            Some(found) => Reply::Entry(found.entry),
            None => return (Err(Errno::ENOENT), none),
        },
        Call::GetAttr { node, .. } | Call::Open { node, .. } => Reply::Attr(attr(*node)),
        Call::OpenDir { node, .. } => Reply::OpenDir(attr(*node), page(*node, 0)),
        Call::ReadDir { node, cookie, .. } => Reply::Dir(page(*node, *cookie)),
        Call::OpenRead { node, .. } => return (Ok(Reply::Attr(attr(*node))), CONTENTS.to_vec()),
        Call::ReadVersion { offset, .. } => {
            let from = CONTENTS.len().min(*offset as usize);
            return (Ok(Reply::Version(version())), CONTENTS[from..].to_vec());
        }
        Call::ReadLink { .. } => Reply::Target(Target::new(*b"file").unwrap()),
        Call::StatFs => Reply::StatFs(STAT_FS),
        Call::GetXattr { .. } => return (Err(Errno::ENODATA), none),
        Call::Seek { .. } => return (Err(Errno::from_number(6)), none),
        _ => Reply::Done,
    };
    (Ok(reply), none)
}

pub(super) const STAT_FS: StatFs = StatFs {
    blocks: 1000,
    bfree: 900,
    bavail: 900,
    files: 100,
    ffree: 90,
    bsize: 4096,
    frsize: 4096,
    namelen: 255,
};

pub(super) fn version() -> ReadVersion {
    ReadVersion { version: attr(FILE).data_version(), recent: false }
}

/// A page of a directory: everything is in the root.
pub(super) fn page(node: NodeId, cookie: u64) -> DirPage {
    let entries = if node == NodeId::ROOT && cookie == 0 { tree() } else { Vec::new() };
    DirPage { entries, end: true }
}

pub(super) fn tree() -> Vec<DirEntry> {
    [("file", FILE), ("link", LINK), ("dir", DIR)]
        .iter()
        .zip(1..)
        .map(|((name, node), cookie)| entry(name, *node, attr(*node), cookie))
        .collect()
}

pub(super) fn entry(name: &str, node: NodeId, attr: Attr, cookie: u64) -> DirEntry {
    DirEntry { name: Name::new(name).unwrap(), cookie, entry: Entry { node, attr } }
}

pub(super) fn attr(node: NodeId) -> Attr {
    let (mode, size) = match node {
        FILE => (0o100_644, CONTENTS.len() as u64),
        LINK => (0o120_777, 4),
        _ => (0o040_755, 4096),
    };
    let time = Time { seconds: 1_700_000_000, nanos: 0 };
    Attr {
        size,
        blocks: 8,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    }
}

/// All entries up to `upto` are on the disk, says the host.
pub(super) fn stable(upto: u64) -> Vec<u8> {
    peer::frame(&p2pfs::wire::log::LogAck::Stable { upto: Seq(upto) }, &[])
}
