//! The bytes of every settled message, for each protocol version.
//!
//! A changed file under `tests/golden/v1` is another protocol: a settled message never changes, it
//! gets a new version. `P2PFS_BLESS=1 cargo test wire_golden` writes the files of new messages.

mod lease;
mod log;
mod pairing;

use std::fmt::{Debug, Write};
use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use p2pfs::id::{Epoch, HandleId, HostRun, NodeId, RequestId, Seq, SessionId};
use p2pfs::identity::wrapping::ForHost;
use p2pfs::identity::{BlindedMac, MacAddress, PairKey, PeerId};
use p2pfs::wire::branch::Branch;
use p2pfs::wire::call::{
    Absent, Access, Answer, Ask, Asked, Attr, Backlog, Call, DirEntry, DirPage, Entry, ReadVersion,
    Reply, Seek, StatFs, Time, XattrName,
};
use p2pfs::wire::codec::{DecodeError, decode, encode};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Caller, Cursor};
use p2pfs::wire::name::{Name, Target};
use p2pfs::wire::nat::{Filtering, Mapping, NatBehaviour};
use p2pfs::wire::relay::{RelayGrant, RelayId, RelayToken};
use p2pfs::wire::rendezvous::{
    FirstFlight, FromServer, MatchId, Public, Relayed, Role, Routing, Seal, Sealed, StunAddress,
    ToServer,
};
use p2pfs::wire::session::{Denial, DeviceId, Grant, Identify, StreamKind, Verdict};

const NODE: NodeId = NodeId { ino: 0x0102_0304, generation: 0x1112_1314_1516_1718 };
const HANDLE: HandleId = HandleId(7);
const UPTO: Seq = Seq(9);
const ATTR: Attr = Attr {
    size: 1_000_000,
    blocks: 1_960,
    atime: Time { seconds: 1_700_000_000, nanos: 1 },
    mtime: Time { seconds: -1, nanos: 999_999_999 },
    ctime: Time { seconds: 1_700_000_002, nanos: 3 },
    btime: Time { seconds: 0, nanos: 0 },
    mode: 0o100_644,
    nlink: 2,
    uid: 1000,
    gid: 100,
    rdev: 0,
    blksize: 4096,
};

#[test]
fn calls_about_nodes_have_their_bytes() {
    let node = NODE;
    let parent = NodeId::ROOT;
    let name = Name::new(b"caf\xc3\xa9 \xff".to_vec()).unwrap();
    golden("call_lookup", &Call::Lookup { parent, name });
    let handle = None;
    golden("call_get_attr", &Call::GetAttr { node, handle });
    let handle = Some(HANDLE);
    golden("call_get_attr_open", &Call::GetAttr { node, handle });
    golden("call_read_link", &Call::ReadLink { node });
    golden("call_stat_fs", &Call::StatFs);
    let nodes = vec![NODE, NodeId::ROOT];
    golden("call_forget", &Call::Forget { nodes });
    let name = XattrName(b"user.note".to_vec());
    golden("call_get_xattr", &Call::GetXattr { node, name });
    let name = XattrName::default();
    golden("call_list_xattr", &Call::GetXattr { node, name: name.clone() });
    let caller = Caller { uid: 1000, gid: 100, groups: vec![4, 24] };
    let parts = [
        ("lookup", Asked::Lookup { parent, name: Name::new(*b"a").unwrap() }),
        ("open", Asked::Open { node, handle: HANDLE, access: Access::Read }),
        ("xattr", Asked::GetXattr { node, name }),
    ];
    for (text, asked) in parts {
        golden(&format!("call_as_{text}"), &Call::As { caller: caller.clone(), asked });
    }
}

#[test]
fn what_sessions_say_for_others_has_its_bytes() {
    let keeps = Backlog { entries: 3, bytes: 1 << 20 };
    golden(
        "call_unwrap",
        &Call::Unwrap(ForHost { writer: PeerId([7; 32]), sealed: vec![1, 2, 3] }),
    );
    golden("call_absent", &Call::Absent);
    golden("call_leave", &Call::Leave(keeps));
    golden("call_over", &Call::Over(vec![SessionId([5; 16])]));
    let (client, share) = ("laptop".to_owned(), "disk".to_owned());
    let keeps = [Some(keeps), None];
    let absent = keeps.map(|keeps| Absent {
        client: client.clone(),
        share: share.clone(),
        away_s: 300,
        keeps,
    });
    golden("reply_absent", &Reply::Absent(absent.to_vec()));
}

#[test]
fn calls_about_open_files_have_their_bytes() {
    let node = NODE;
    let handle = HANDLE;
    let upto = UPTO;
    for (name, access) in [
        ("call_open", Access::Read),
        ("call_open_write", Access::Write),
        ("call_open_both", Access::ReadWrite),
    ] {
        let open = Call::Open { node, handle, access };
        golden(name, &open);
    }
    let read_dir = Call::ReadDir { node, handle, cookie: 3, entries_max: 1024 };
    golden("call_read_dir", &read_dir);
    let read = Call::Read { handle, offset: 1 << 40, len: 1 << 20 };
    golden("call_read", &read);
    let seek = Call::Seek { handle, offset: 1 << 40, what: Seek::Data };
    golden("call_seek_data", &seek);
    let seek = Call::Seek { handle, offset: 3, what: Seek::Hole };
    golden("call_seek_hole", &seek);
    let read = Call::ReadVersion { handle, offset: 1 << 40, len: 1 << 20 };
    golden("call_read_version", &read);
    let sync = Call::Sync { handle, data_only: true, upto };
    golden("call_sync", &sync);
    golden("call_sync_all", &Call::SyncAll { upto });
    golden("call_release", &Call::Release { handle, upto });
    let open_read = Call::OpenRead { node, handle, len: 1 << 16 };
    golden("call_open_read", &open_read);
    golden("call_open_dir", &Call::OpenDir { node, handle, entries_max: 1024 });
}

#[test]
fn replies_have_their_bytes() {
    let entry = Entry { node: NODE, attr: ATTR };
    let page = DirPage {
        entries: vec![DirEntry { name: Name::new(*b"a").unwrap(), cookie: 5, entry }],
        end: true,
    };
    let stat_fs = StatFs {
        blocks: 1_000,
        bfree: 900,
        bavail: 800,
        files: 700,
        ffree: 600,
        bsize: 4096,
        frsize: 4096,
        namelen: 255,
    };
    let replies = [
        ("done", Reply::Done),
        ("entry", Reply::Entry(entry)),
        ("attr", Reply::Attr(ATTR)),
        ("target", Reply::Target(Target::new(*b"../there").unwrap())),
        ("dir", Reply::Dir(page.clone())),
        ("data", Reply::Data),
        ("stat_fs", Reply::StatFs(stat_fs)),
        ("offset", Reply::Offset(1 << 40)),
        ("version", Reply::Version(ReadVersion { version: ATTR.data_version(), recent: true })),
        ("open_dir", Reply::OpenDir(ATTR, page)),
    ];
    for (name, reply) in replies {
        golden(&format!("reply_{name}"), &reply);
    }
    golden("errno", &Errno::ENOENT);
}

#[test]
fn calls_on_lanes_have_their_bytes() {
    let id = RequestId(0x0102_0304_0506_0708);
    golden("ask", &Ask { id, call: Call::StatFs });
    golden("answer", &Answer { id, reply: Ok(Reply::Attr(ATTR)) });
    golden("answer_refused", &Answer { id, reply: Err(Errno::ENOENT) });
    assert_eq!(StreamKind::Calls.to_byte(), 4);
    assert_eq!(StreamKind::IdentifyAsked.to_byte(), 5);
}

#[test]
fn the_beginning_of_a_session_has_its_bytes() {
    let device = DeviceId {
        serial: "0123456789".to_owned(),
        vendor: "0951".to_owned(),
        product: "1666".to_owned(),
    };
    let identify = Identify {
        session: SessionId([0xab; 16]),
        device,
        share: Some("disk".to_owned()),
        client_name: "laptop".to_owned(),
        held: Seq(1),
        unanswered: Seq(4),
    };
    let grant = Grant {
        share: "disk".to_owned(),
        read_only: false,
        run: HostRun(3),
        cursor: Cursor {
            epoch: Epoch([0xe0; 16]),
            known: true,
            applied: UPTO,
            ahead: vec![Seq(11), Seq(12)],
            stable: Seq(8),
        },
        host_name: "home".to_owned(),
        host_mac: [0x02, 0, 0, 0, 0, 1],
    };
    let verdicts = [
        ("approved", Verdict::Approved(grant.clone())),
        ("approved_identity", Verdict::ApprovedIdentity(grant)),
        ("unauthorised", Verdict::Denied(Denial::Unauthorised)),
        ("revoked", Verdict::Denied(Denial::Revoked)),
        ("device_mismatch", Verdict::Denied(Denial::DeviceMismatch)),
        (
            "share_unknown",
            Verdict::Denied(Denial::ShareUnknown(vec!["music".to_owned(), "disk".to_owned()])),
        ),
        ("share_denied", Verdict::Denied(Denial::ShareDenied)),
        ("busy", Verdict::Denied(Denial::Busy)),
        ("expired", Verdict::Denied(Denial::Expired)),
        ("other_identifier", Verdict::Denied(Denial::OtherIdentifier)),
        ("too_many_tries", Verdict::Denied(Denial::TooManyTries)),
    ];
    golden("identify", &identify);
    for (name, verdict) in verdicts {
        golden(&format!("verdict_{name}"), &verdict);
    }
}

#[test]
fn what_is_not_a_message_is_refused() {
    let good = encode(&Call::StatFs).unwrap();
    let more = [&good[..], &[0]].concat();
    assert_eq!(decode::<Call>(&more), Err(DecodeError::Trailing));
    assert_eq!(decode::<Call>(&good[..3]), Err(DecodeError::Malformed));
    assert_eq!(decode::<Call>(&[0xff; 4]), Err(DecodeError::Malformed));
    // a length that nobody has memory for
    let mut forget = encode(&Call::Forget { nodes: Vec::new() }).unwrap();
    let end = forget.len();
    forget[end - 8..].fill(0xff);
    assert_eq!(decode::<Call>(&forget), Err(DecodeError::Malformed));
}

/// `value` must encode to the file's bytes, and these decode to `value`.
#[track_caller]
#[test]
fn messages_to_the_server_have_their_bytes() {
    golden("to_server_hello", &ToServer::Hello { role: Role::Client });
    let udp_public = Some("[2001:db8::7]:4000".parse().unwrap());
    golden("to_server_refresh", &ToServer::Refresh { number: 7, udp_public });
    let indices = vec![BlindedMac([1; 16]), BlindedMac([2; 16])];
    golden("to_server_register", &ToServer::Register { indices: indices.clone() });
    golden("to_server_withdraw", &ToServer::Withdraw { indices });
    let index = BlindedMac([1; 16]);
    golden("to_server_seek", &ToServer::Seek { index, sealed: sealed() });
    let match_id = MatchId([3; 16]);
    golden("to_server_accept", &ToServer::Accept { match_id, sealed: sealed() });
    golden("to_server_decline", &ToServer::Decline { match_id });
    golden("to_server_relayed", &ToServer::Relayed(relayed()));
    let branch = Branch::wrap(9, &ToServer::Refresh { number: 7, udp_public: None }).unwrap();
    golden("to_server_branch", &ToServer::Branch(branch));
    golden("to_server_end_branch", &ToServer::EndBranch { branch: 9 });
}

#[test]
fn messages_from_the_server_have_their_bytes() {
    let observed = "203.0.113.7:50000".parse().unwrap();
    let stun = vec![
        StunAddress { ip: None, port: 3478 },
        StunAddress { ip: Some("203.0.113.6".parse().unwrap()), port: 3479 },
    ];
    golden("from_server_welcome", &FromServer::Welcome { observed, stun });
    golden("from_server_confirmed", &FromServer::Confirmed { number: 7 });
    let indices = vec![BlindedMac([1; 16])];
    golden("from_server_taken", &FromServer::Taken { indices });
    let (match_id, index) = (MatchId([3; 16]), BlindedMac([1; 16]));
    let public = Public { tcp: Some(observed), udp: None };
    let client = PeerId([4; 32]);
    let sought = FromServer::Sought { match_id, index, client, public, sealed: sealed() };
    golden("from_server_sought", &sought);
    let host = PeerId([5; 32]);
    let introduced = FromServer::Introduced { match_id, host, public, sealed: sealed() };
    golden("from_server_introduced", &introduced);
    golden("from_server_no_match", &FromServer::NoMatch);
    let udp = Some(StunAddress { ip: None, port: 3478 });
    let grant = RelayGrant { id: RelayId([9; 8]), token: RelayToken([10; 32]), udp };
    golden("from_server_relay", &FromServer::Relay { match_id, grant });
    golden("from_server_relayed", &FromServer::Relayed(relayed()));
    golden("from_server_moved", &FromServer::Moved { match_id, public });
    let branch = Branch::wrap(9, &FromServer::NoMatch).unwrap();
    golden("from_server_branch", &FromServer::Branch(branch));
    golden("from_server_end_branch", &FromServer::EndBranch { branch: 9 });
    golden("from_server_full", &FromServer::Full { indices: vec![index] });
    golden("from_server_full_for_all", &FromServer::Full { indices: Vec::new() });
}

#[test]
fn routing_has_its_bytes_under_the_seal() {
    let routing = Routing {
        mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
        tcp_private: vec!["192.168.1.2:50000".parse().unwrap()],
        tcp_public: Some("203.0.113.7:50000".parse().unwrap()),
        udp_private: vec!["[fd00::2]:4000".parse().unwrap()],
        udp_public: None,
        nat: None,
    };
    golden("routing", &routing);
    let seal = Seal::Host(MatchId([3; 16]), &[6; 24]);
    let sealed = seal.seal(&PairKey::from_bytes([7; 32]), [8; 24], &routing).unwrap();
    golden("routing_sealed", &sealed);
}

#[test]
fn a_nats_behaviour_has_its_bytes_and_follows_the_routing() {
    let nat = NatBehaviour {
        mapping: Some(Mapping::AddressAndPortDependent),
        filtering: Some(Filtering::AddressDependent),
        keeps_port: Some(true),
    };
    golden("nat_behaviour", &nat);
    golden("nat_behaviour_unknown", &NatBehaviour::default());
    let routing = Routing { nat: Some(nat), ..Routing::default() };
    let seal = Seal::Host(MatchId([3; 16]), &[6; 24]);
    let sealed = seal.seal(&PairKey::from_bytes([7; 32]), [8; 24], &routing).unwrap();
    golden("routing_sealed_nat", &sealed);
}

#[test]
fn a_first_flight_has_its_bytes_behind_the_routing() {
    let first = FirstFlight(vec![0xc7; 40]);
    golden("first_flight", &first);
    let (routing, pair_key) = (Routing::default(), PairKey::from_bytes([7; 32]));
    let seal = Seal::Client(PeerId([4; 32]));
    let sealed = seal.seal_with(&pair_key, [8; 24], &routing, Some(&first)).unwrap();
    golden("routing_sealed_first_flight", &sealed);
}

fn relayed() -> Relayed {
    Relayed { relay: RelayId([9; 8]), segment: 1200, bytes: b"datagrams".to_vec() }
}

fn sealed() -> Sealed {
    Sealed { nonce: [8; 24], bytes: b"ciphertext".to_vec() }
}

fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let bytes = encode(value).unwrap();
    assert_eq!(&decode::<T>(&bytes).unwrap(), value, "{name} does not survive");
    golden_bytes(name, &bytes);
}

/// The bytes must be the file's.
#[track_caller]
fn golden_bytes(name: &str, bytes: &[u8]) {
    let file = format!("{}/tests/golden/v1/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let file = PathBuf::from(file);
    let hex = hex(bytes);
    if !file.exists() && std::env::var_os("P2PFS_BLESS").is_some() {
        fs::write(&file, &hex).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(known, hex, "the bytes of {name} changed: {}", file.display());
}

/// 32 bytes a line.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}
