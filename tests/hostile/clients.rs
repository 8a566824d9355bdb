//! Hostile clients: a key that nobody has authorised, and one that wants more than its share.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId, RequestId, Seq};
use p2pfs::net::remote::Remote;
use p2pfs::net::session::{ClientConfig, ClientSession};
use p2pfs::proto::path::Wanted;
use p2pfs::usb::{self, OpenedKey};
use p2pfs::wire::call::{Access, Ask, Call, Reply, XattrName};
use p2pfs::wire::codec::{decode, encode};
use p2pfs::wire::lease::{LeaseRequest, Lock, LockFamily, LockKind};
use p2pfs::wire::log::{
    AttrChange, Change, LogEntry, Mutation, NodeRef, Occupant, Opening, Promise, RenameMode, Sent,
    SetTime,
};
use p2pfs::wire::name::{Name, Target};
use p2pfs::wire::session::{Denial, StreamKind, Verdict};
use quinn::Connection;

use crate::world::Home;

use super::memory::Memory;
use super::peer::{self, Peer, frame, framed, lengths};

/// In the share, and in no answer.
const MARKER: &[u8] = b"what nobody but the owner may read";
const NAME: &str = "a name that nobody may know";
/// How long answers may take to come.
const ANSWERS: Duration = Duration::from_millis(700);
/// What a host may grow by, KiB, whatever an unauthorised key does.
const HOST_KIB_MAX: u64 = 48 << 10;
/// What a host with room for it would take of who does not listen, bytes: twice a stream's window.
const UNHEARD_BYTES: usize = 40 << 20;
/// Nothing more is taken.
const STALL: Duration = Duration::from_secs(2);
/// Connections that a client tries at once.
const CONNECTIONS: usize = 40;

#[test]
fn a_key_that_nobody_has_authorised_gets_no_byte_however_it_asks() {
    let home = Home::on_loopback_with(&[], |disk| fs::write(disk.join(NAME), MARKER).unwrap());
    let key = usb::open_key(&home.key.dir, None).unwrap();
    let host = home.host.pid();
    let before = Memory::of(host);
    let heard = runtime().block_on(async {
        let mut peer = Peer::client(&key.contents);
        let at = tokio::time::timeout(Duration::from_secs(20), peer.meet()).await.unwrap();
        let mut heard = Vec::new();

        let denied = peer.dial(&key.contents, at).await;
        let verdict = ask(&denied, &[&[0], &*request(&key)].concat()).await;
        assert_eq!(decode::<Verdict>(&verdict[8..]), Ok(Verdict::Denied(Denial::Unauthorised)));
        heard.extend(everything(&denied).await);
        denied.close(0_u32.into(), b"");

        // nothing said of who it is
        let silent = peer.dial(&key.contents, at).await;
        heard.extend(everything(&silent).await);
        silent.close(0_u32.into(), b"");
        before.grown(host, "a client without authorisation", HOST_KIB_MAX);

        // what is no request
        for wrong in [lengths(u32::MAX, u32::MAX), framed(&[0xff; 99], &[]), vec![0xff; 5000]] {
            let one = peer.dial(&key.contents, at).await;
            heard.extend(ask(&one, &[&[0], &*wrong].concat()).await);
            one.close(0_u32.into(), b"");
        }
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            if let Some(connection) = peer.try_dial(&key.contents, at) {
                all.spawn(async move { pour(connection.await.ok()?).await });
            }
        }
        let poured: u64 = all.join_all().await.into_iter().flatten().sum();
        println!("{poured} bytes went into {CONNECTIONS} connections");
        before.grown(host, "connections and streams without end", HOST_KIB_MAX);
        heard
    });
    assert!(heard.is_empty(), "{} bytes came: {:?}", heard.len(), String::from_utf8_lossy(&heard));
    home.world.hostd(&["keys", "authorise", &home.key.id]).ok();
    assert_eq!(home.world.status(crate::world::Side::Host)["sessions"], serde_json::json!([]));
}

#[test]
fn who_reads_no_answer_is_not_listened_to_any_more() {
    let home = Home::on_loopback();
    let key = usb::open_key(&home.key.dir, None).unwrap();
    let host = home.host.pid();
    let change = Change::new(Mutation::Unlink {
        parent: NodeId::ROOT.into(),
        name: Name::new("nothing").unwrap(),
        occupant: Occupant::Any,
    });
    let (promise, sent) = (Promise::Awaited, Sent::First);
    let entry = LogEntry { seq: Seq(1), after: Vec::new(), promise, sent, change };
    let lock = Lock {
        node: NodeId::ROOT,
        handle: HandleId(7),
        family: LockFamily::Range,
        owner: 1,
        kind: LockKind::Shared,
        start: 0,
        end: 9,
    };
    let test = LeaseRequest::TestLock { request: RequestId(1), lock };
    for (what, kind, said) in [
        ("entries", StreamKind::Log, frame(&entry, &[])),
        ("locks", StreamKind::Lease, frame(&test, &[])),
    ] {
        let memory = Memory::of(host);
        let poured = runtime().block_on(async {
            let mut peer = Peer::client(&key.contents);
            let at = tokio::time::timeout(Duration::from_secs(20), peer.meet()).await.unwrap();
            let deaf = peer.dial_deaf(&key.contents, at).await;
            let verdict = ask(&deaf, &[&[0], &*request(&key)].concat()).await;
            assert!(matches!(decode::<Verdict>(&verdict[8..]), Ok(Verdict::Approved(_))));
            let (mut send, _receive) = deaf.open_bi().await.unwrap();
            send.write_all(&[kind.to_byte()]).await.unwrap();
            let many = said.repeat(1000);
            let mut poured = 0;
            while poured < UNHEARD_BYTES
                && let Ok(written) = tokio::time::timeout(STALL, send.write_all(&many)).await
            {
                written.unwrap();
                poured += many.len();
            }
            deaf.close(0_u32.into(), b"");
            poured
        });
        println!("{poured} bytes of {what} were taken");
        assert!(poured < UNHEARD_BYTES);
        memory.grown(host, what, 2 * HOST_KIB_MAX);
    }
}

#[test]
fn nothing_that_a_client_sends_leads_out_of_the_share() {
    let home = Home::on_loopback();
    let outside = home.world.directory("outside");
    fs::write(outside.join("victim"), MARKER).unwrap();
    symlink(&outside, home.disk.join("out")).unwrap();
    symlink(outside.join("victim"), home.disk.join("file")).unwrap();
    symlink(outside.join("new"), home.disk.join("dangling")).unwrap();
    fs::create_dir(home.disk.join("inner")).unwrap();
    symlink("../..", home.disk.join("inner/up")).unwrap();
    let before = picture(&outside);
    let key = usb::open_key(&home.key.dir, None).unwrap();
    let host = home.host.pid();
    let memory = Memory::of(host);
    runtime().block_on(async {
        let session = ClientSession::establish(config(&key)).await.unwrap();
        for path in [&["out"][..], &["file"], &["dangling"], &["inner", "up"]] {
            let link = find(&session, path).await;
            assert_eq!(link.1, 0o120_000, "{path:?} is a symlink, and stays one");
            into(&session, link.0).await;
        }
        invented(&session).await;
        session.close().await;
    });
    runtime().block_on(unruly(&key));
    memory.grown(host, "a client within its share", 2 * HOST_KIB_MAX);
    assert_eq!(picture(&outside), before);
    let kinds = ["out", "file", "dangling", "inner/up"]
        .map(|name| fs::symlink_metadata(home.disk.join(name)).unwrap().file_type().is_symlink());
    assert_eq!(kinds, [true; 4]);
    assert_eq!(fs::read(home.disk.join("hello")).unwrap(), b"from home\n");
}

/// Everything that takes a node, with a symlink in its place.
async fn into(session: &ClientSession, link: NodeId) {
    let victim = || Name::new("victim").unwrap();
    let handle = HandleId(77);
    let lookup = Call::Lookup { parent: link, name: victim() };
    assert!(session.call(lookup).await.is_err());
    for access in [Access::Read, Access::Write, Access::ReadWrite] {
        let open = Call::Open { node: link, handle, access };
        assert!(session.call(open).await.is_err(), "{access:?}");
    }
    let open = Call::OpenRead { node: link, handle, len: 4096 };
    assert!(session.call(open).await.is_err());
    assert!(session.call(Call::OpenDir { node: link, handle, entries_max: 9 }).await.is_err());
    let node = NodeRef::Node(link);
    let opening = Some(Opening { handle, access: Access::ReadWrite });
    let into = [
        Mutation::Create {
            parent: node,
            name: Name::new("new").unwrap(),
            mode: 0o666,
            exclusive: false,
            open: opening,
            premade: None,
        },
        Mutation::Mkdir {
            parent: node,
            name: Name::new("dir").unwrap(),
            mode: 0o777,
            premade: None,
        },
        Mutation::Symlink {
            parent: node,
            name: Name::new("sym").unwrap(),
            target: Target::new("x").unwrap(),
        },
        Mutation::Unlink { parent: node, name: victim(), occupant: Occupant::Any },
        Mutation::Rename {
            parent: NodeId::ROOT.into(),
            name: Name::new("hello").unwrap(),
            occupant: Occupant::Any,
            new_parent: node,
            new_name: Name::new("stolen").unwrap(),
            new_occupant: Occupant::Any,
            mode: RenameMode::Replace,
        },
    ];
    for mutation in into {
        let shown = format!("{mutation:?}");
        let done = session.submit(Change::new(mutation), Bytes::new()).wait().await;
        assert!(done.is_err(), "{shown}");
    }
    // these act on the symlink itself, or on nothing
    let times = AttrChange {
        mode: Some(0o777),
        uid: Some(12_345),
        gid: Some(12_345),
        size: Some(0),
        mtime: Some(SetTime::Now),
        ..AttrChange::default()
    };
    let on = [
        Mutation::SetAttr { node, handle: None, change: times },
        Mutation::SetXattr { node, name: XattrName(b"user.mark".to_vec()), flags: 0 },
        Mutation::RemoveXattr { node, name: XattrName(b"user.mark".to_vec()) },
        Mutation::Write { node, handle: None, offset: 0 },
    ];
    for mutation in on {
        let body = Bytes::from_static(b"overwritten");
        let _ = session.submit(Change::new(mutation), body).wait().await;
    }
}

/// Nodes, handles and places that nobody has told it.
async fn invented(session: &ClientSession) {
    let handle = HandleId(99);
    for node in [
        NodeId { ino: 2, generation: 0 },
        NodeId { ino: 1, generation: u64::MAX },
        NodeId { ino: u64::MAX, generation: 1 },
        NodeId { ino: 0, generation: 0 },
    ] {
        let open = Call::Open { node, handle, access: Access::Read };
        assert!(session.call(open).await.is_err(), "{node:?}");
        let _ = session.call(Call::GetXattr { node, name: XattrName(vec![0xff; 60_000]) }).await;
    }
    let _ = session.call(Call::Forget { nodes: vec![NodeId::ROOT; 4096] }).await;
    let read = Call::Read { handle, offset: u64::MAX, len: u32::MAX };
    assert!(session.call(read).await.is_err());
    let open = Call::OpenDir { node: NodeId::ROOT, handle, entries_max: u32::MAX };
    let listed = session.call(open).await.unwrap().0;
    assert!(matches!(listed, Reply::OpenDir(..)), "{listed:?}");
    for cookie in [u64::MAX, 1 << 63, 12_345] {
        let entries_max = u32::MAX;
        let page = Call::ReadDir { node: NodeId::ROOT, handle, cookie, entries_max };
        let _ = session.call(page).await;
    }
    let stat = session.call(Call::StatFs).await;
    assert!(stat.is_ok(), "the session goes on: {stat:?}");
}

/// Connections of an authorised key that break the protocol: each is closed, and no more.
async fn unruly(key: &OpenedKey) {
    let mut peer = Peer::client(&key.contents);
    let at = tokio::time::timeout(Duration::from_secs(20), peer.meet()).await.unwrap();
    for wrong in wrongs() {
        let connection = peer.dial(&key.contents, at).await;
        let verdict = ask(&connection, &[&[0], &*request(key)].concat()).await;
        let verdict = decode::<Verdict>(&verdict[8..]);
        assert!(matches!(verdict, Ok(Verdict::Approved(_))), "{verdict:?}");
        let answer = ask(&connection, &wrong).await;
        let shown: Vec<u8> = wrong.iter().copied().take(40).collect();
        assert!(!answer.windows(MARKER.len()).any(|window| window == MARKER), "{shown:?}");
        connection.close(5_u32.into(), b"");
    }
}

/// The first byte says which stream, the rest is wrong on it.
fn wrongs() -> Vec<Vec<u8>> {
    let entry = |name: &str, to: &[u8]| {
        let mutation = Mutation::Unlink {
            parent: NodeId::ROOT.into(),
            name: Name::new(name).unwrap(),
            occupant: Occupant::Any,
        };
        let change = Change::new(mutation);
        let (promise, sent) = (Promise::Awaited, Sent::First);
        let entry = LogEntry { seq: Seq(1), after: Vec::new(), promise, sent, change };
        replaced(encode(&entry).unwrap(), name.as_bytes(), to)
    };
    let call = |to: &[u8]| {
        let name = Name::new("a-victim").unwrap();
        let call = Call::Lookup { parent: NodeId::ROOT, name };
        let ask = Ask { id: RequestId(1), call };
        replaced(encode(&ask).unwrap(), b"a-victim", to)
    };
    let (log, lease, calls) = (StreamKind::Log, StreamKind::Lease, StreamKind::Calls);
    let cases = [
        (calls, framed(&call(b"../../ab"), &[])),
        (calls, framed(&call(b"out/abcd"), &[])),
        (calls, framed(&call(b"a\0victim"), &[])),
        (calls, framed(&[0xff; 300], &[])),
        (calls, lengths(u32::MAX, u32::MAX)),
        (log, framed(&entry("abcde", b"../ab"), &[])),
        (log, framed(&entry("abcde", b"/etcx"), &[])),
        (log, framed(&[0xff; 300], &[0; 1 << 20])),
        (lease, framed(&[0xff; 300], &[])),
        (lease, frame(&LeaseRequest::Renew { number: u64::MAX }, &[])),
        (StreamKind::Identify, framed(&[0; 300], &[])),
    ];
    let mut all: Vec<Vec<u8>> =
        cases.into_iter().map(|(kind, bytes)| [&[kind.to_byte()], &*bytes].concat()).collect();
    all.push(vec![0xee; 4000]);
    all
}

fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

/// A node of the share and its kind.
async fn find(session: &ClientSession, path: &[&str]) -> (NodeId, u32) {
    let mut found = (NodeId::ROOT, 0);
    for name in path {
        let call = Call::Lookup { parent: found.0, name: Name::new(*name).unwrap() };
        let Ok((Reply::Entry(entry), _)) = session.call(call).await else {
            panic!("no {name}");
        };
        found = (entry.node, entry.attr.kind());
    }
    found
}

fn config(key: &OpenedKey) -> ClientConfig {
    let contents = key.contents.clone();
    ClientConfig {
        secret: contents.secret,
        device: key.device.clone(),
        pair_key: contents.pair_key,
        host: contents.host,
        host_mac: contents.host_mac,
        servers: contents.servers,
        share: Some("disk".into()),
        client_name: "guest".into(),
        timeout: Duration::from_secs(20),
        grace: Some(Duration::from_secs(5)),
        wait: false,
        wanted: Wanted::default(),
        loans: None,
        resume: None,
        journal: None,
    }
}

pub(super) fn request(key: &OpenedKey) -> Vec<u8> {
    frame(&peer::identify(&key.device, 0x77), &[])
}

/// Says something on a new stream; what comes back.
pub(super) async fn ask(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let Ok(Ok((mut send, mut receive))) = tokio::time::timeout(ANSWERS, connection.open_bi()).await
    else {
        return Vec::new();
    };
    let _ = tokio::time::timeout(ANSWERS, send.write_all(bytes)).await;
    let _ = send.finish();
    peer::drain(&mut receive, ANSWERS).await
}

/// Says everything that an approved client may say; what comes back on any stream.
async fn everything(connection: &Connection) -> Vec<u8> {
    let call = Call::Lookup { parent: NodeId::ROOT, name: Name::new(NAME).unwrap() };
    let list = Call::OpenDir { node: NodeId::ROOT, handle: HandleId(1), entries_max: 100 };
    let asks = [call.clone(), list, Call::StatFs]
        .map(|call| frame(&Ask { id: RequestId(1), call }, &[]))
        .concat();
    let (lane, log, lease) = (StreamKind::Calls, StreamKind::Log, StreamKind::Lease);
    let said =
        [(lane, asks), (StreamKind::Call, frame(&call, &[])), (log, vec![]), (lease, vec![])];
    let mut heard = Vec::new();
    for (kind, bytes) in said {
        heard.extend(ask(connection, &[&[kind.to_byte()], &*bytes].concat()).await);
    }
    heard
}

/// Writes to as many streams as it can, as much as it can; how much that was.
async fn pour(connection: Connection) -> Option<u64> {
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let connection = connection.clone();
        all.spawn(async move {
            let mut poured = 0;
            let pouring = async {
                let (mut send, _receive) = connection.open_bi().await.ok()?;
                let kind = [StreamKind::Calls.to_byte()];
                send.write_all(&[&kind[..], &lengths(256 << 10, 1 << 20)].concat()).await.ok()?;
                while let Ok(written) = send.write(&[0x5a; 16 << 10]).await {
                    poured += written as u64;
                }
                Some(())
            };
            let _ = tokio::time::timeout(Duration::from_secs(3), pouring).await;
            poured
        });
    }
    Some(all.join_all().await.into_iter().sum())
}

/// Names, contents, modes, owners and times of a directory.
fn picture(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([dir.to_owned()])
        .map(|path| {
            let facts = fs::symlink_metadata(&path).unwrap();
            let (mode, owner) = (facts.mode(), (facts.uid(), facts.gid()));
            let times = (facts.mtime(), facts.mtime_nsec(), facts.ctime(), facts.ctime_nsec());
            let text = fs::read(&path).unwrap_or_default();
            format!("{} {mode:o} {owner:?} {times:?} {text:?}", path.display())
        })
        .collect();
    all.sort();
    all
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}
