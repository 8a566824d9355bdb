//! What a hostile host says, what a user does meanwhile, and what may come of that.

use p2pfs::id::{HostRun, LeaseId, NodeId, RequestId, Seq};
use p2pfs::wire::call::{Attr, Call, DirEntry, DirPage, ReadVersion, Reply, StatFs, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::Notice;
use p2pfs::wire::log::LogAck;
use p2pfs::wire::name::Target;
use p2pfs::wire::session::StreamKind;

use super::host::{self, DIR, FILE, LINK, Lie, Script, Unasked, answer, entry, truth, twisted};
use super::peer::{frame, framed, lengths};

/// What must come of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Must {
    /// The command fails in time.
    Fail,
    /// It ends in time, whatever it says.
    End,
    /// It ends well and says this.
    Say(&'static str),
    /// It waits, for a host may be slow, and can be ended.
    Wait,
}

/// A lie, and what a user does in the mount.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) script: Script,
    pub(super) does: &'static str,
    pub(super) must: Must,
}

/// A user who ends what does not end.
const WAITING: &str = "timeout 1 cat file; test $? = 124";
/// Entries of one endless page.
const PAGE: u64 = 1000;

fn lie(
    name: &'static str,
    does: &'static str,
    must: Must,
    lie: fn(RequestId, &Call) -> Option<Vec<u8>>,
) -> Case {
    Case { name, script: Script { lie: Lie(lie), ..Script::default() }, does, must }
}

fn unasked(name: &'static str, says: fn(StreamKind) -> Vec<u8>) -> Case {
    let script = Script { unasked: Unasked(says), ..Script::default() };
    Case { name, script, does: "cat file", must: Must::End }
}

pub(super) fn cases() -> Vec<Case> {
    [names(), listings(), reads(), attributes(), answers(), notices()]
        .into_iter()
        .flatten()
        .collect()
}

fn names() -> Vec<Case> {
    let ls = "ls -a1";
    vec![
        lie("the truth", "cat file; ls; readlink link; ls dir", Must::Say("hello"), |_, _| None),
        lie("a name with /", ls, Must::Fail, |id, call| renamed(id, call, b"a-b", b"a/b")),
        lie("a name with NUL", ls, Must::Fail, |id, call| renamed(id, call, b"a-b", b"a\0b")),
        lie("the name ..", ls, Must::Fail, |id, call| relabelled(id, call, b"..")),
        lie("the name .", ls, Must::Fail, |id, call| relabelled(id, call, b".")),
        lie("an empty name", ls, Must::Fail, |id, call| relabelled(id, call, b"")),
        lie("a name of 5000 bytes", ls, Must::Fail, |id, call| relabelled(id, call, &[b'x'; 5000])),
        lie("a target of 5000 bytes", "readlink link", Must::Fail, |id, call| {
            retargeted(id, call, &[b'x'; 5000])
        }),
        lie("a target with NUL", "readlink link", Must::Fail, |id, call| {
            retargeted(id, call, b"fi\0le")
        }),
        lie("an empty target", "readlink link", Must::Fail, |id, call| retargeted(id, call, b"")),
    ]
}

fn listings() -> Vec<Case> {
    vec![
        lie("10^9 entries declared", "ls", Must::Fail, |id, call| {
            let from = [&1_u64.to_le_bytes()[..], &3_u64.to_le_bytes(), b"a-b"].concat();
            let mut to = from.clone();
            to[..8].copy_from_slice(&1_000_000_000_u64.to_le_bytes());
            renamed(id, call, &from, &to)
        }),
        lie("a listing without end", "timeout 3 find . | wc -l", Must::End, |id, call| {
            let from = match call {
                Call::OpenDir { .. } => 0,
                Call::ReadDir { cookie, .. } => *cookie,
                _ => return None,
            };
            let one = |cookie: u64| {
                let node = NodeId { ino: 1000 + cookie, generation: 1 };
                entry(&format!("n{cookie}"), node, host::attr(FILE), cookie)
            };
            listed(id, call, (from + 1..=from + PAGE).map(one).collect(), false)
        }),
        lie("a listing in a circle", "ls -f1 >/dev/null", Must::Fail, |id, call| {
            listed(id, call, vec![entry("a", FILE, host::attr(FILE), 7)], false)
        }),
        lie("pages without entries", "ls", Must::End, |id, call| listed(id, call, vec![], false)),
        lie("one name a thousand times", "ls", Must::End, |id, call| {
            let one = |cookie| entry("a", FILE, host::attr(FILE), cookie);
            listed(id, call, (1..=1000).map(one).collect(), true)
        }),
        lie("more entries than asked", "ls", Must::Fail, |id, call| {
            let one = |cookie| entry("a", FILE, host::attr(FILE), cookie);
            listed(id, call, (1..=1300).map(one).collect(), true)
        }),
    ]
}

fn reads() -> Vec<Case> {
    let cat = "cat file >/dev/null";
    vec![
        lie("longer than asked", cat, Must::Fail, |id, call| match call {
            Call::OpenRead { node, .. } => {
                Some(answer(id, Ok(Reply::Attr(host::attr(*node))), &[b'x'; 1 << 20]))
            }
            Call::ReadVersion { .. } => {
                Some(answer(id, Ok(Reply::Version(host::version())), &[b'x'; 1 << 20]))
            }
            _ => None,
        }),
        lie("shorter than the file", cat, Must::End, |id, call| match call {
            Call::OpenRead { node, .. } => {
                Some(answer(id, Ok(Reply::Attr(host::attr(*node))), b"he"))
            }
            Call::ReadVersion { .. } => Some(answer(id, Ok(Reply::Version(host::version())), b"")),
            _ => None,
        }),
        lie("another version in every answer", cat, Must::End, |id, call| match call {
            Call::OpenRead { node, .. } => {
                Some(answer(id, Ok(Reply::Attr(host::attr(*node))), b""))
            }
            Call::ReadVersion { .. } => {
                let mut version = host::version().version;
                version.mtime.nanos = id.0 as u32 % 1_000_000_000;
                let found = ReadVersion { version, recent: true };
                Some(answer(id, Ok(Reply::Version(found)), b"hello"))
            }
            _ => None,
        }),
        lie("data without a reply", cat, Must::Fail, |id, call| {
            let reads = matches!(call, Call::OpenRead { .. } | Call::ReadVersion { .. });
            reads.then(|| answer(id, Ok(Reply::Done), b"hello"))
        }),
        lie("a body that does not come", WAITING, Must::Wait, |id, call| {
            matches!(call, Call::OpenRead { .. } | Call::ReadVersion { .. }).then(|| {
                let whole = answer(id, Ok(Reply::Version(host::version())), &[0; 1 << 20]);
                whole[..whole.len() - (1 << 20)].to_vec()
            })
        }),
    ]
}

fn attributes() -> Vec<Case> {
    let look = "stat file; ls -l; cat file | head -c 100 >/dev/null; tail -c 1 file; true";
    vec![
        lie("a file of 2^64-1 bytes", look, Must::End, |id, call| {
            with_attr(id, call, |attr| attr.size = u64::MAX)
        }),
        lie("a file of 2^63-1 bytes", look, Must::End, |id, call| {
            with_attr(id, call, |attr| attr.size = i64::MAX as u64)
        }),
        lie("times before and after everything", look, Must::End, |id, call| {
            with_attr(id, call, |attr| {
                attr.mtime = Time { seconds: i64::MIN, nanos: u32::MAX };
                attr.atime = Time { seconds: i64::MAX, nanos: u32::MAX };
                attr.ctime = Time { seconds: -1, nanos: u32::MAX };
                attr.btime = attr.mtime;
            })
        }),
        lie("no kind, no links, no blocks", look, Must::End, |id, call| {
            with_attr(id, call, |attr| {
                (attr.mode, attr.nlink, attr.blksize) = (0, 0, 0);
                (attr.blocks, attr.rdev) = (u64::MAX, u64::MAX);
            })
        }),
        lie("every bit of the mode", look, Must::End, |id, call| {
            with_attr(id, call, |attr| {
                (attr.mode, attr.nlink, attr.blksize) = (u32::MAX, u32::MAX, u32::MAX);
                (attr.uid, attr.gid) = (u32::MAX, u32::MAX);
            })
        }),
        lie(
            "one number for file and directory",
            "ls -lR; cat file; ls dir",
            Must::End,
            |id, call| {
                let same = |node: NodeId| NodeId { ino: 2, generation: node.ino };
                numbered(id, call, same)
            },
        ),
        lie("the root's number for all", "ls -lR; cat file; ls dir", Must::End, |id, call| {
            numbered(id, call, |_| NodeId::ROOT)
        }),
        lie("the numbers 0 and 2^64-1", "ls -lR; cat file; ls dir", Must::End, |id, call| {
            let odd = |node: NodeId| NodeId {
                ino: if node == FILE { 0 } else { u64::MAX - node.ino },
                generation: u64::MAX,
            };
            numbered(id, call, odd)
        }),
        lie("a disk of 2^64 blocks of 0 bytes", "df .; stat -f .", Must::End, |id, call| {
            let (most, none) = (u64::MAX, 0);
            let space = StatFs {
                blocks: most,
                bfree: most,
                bavail: most,
                files: none,
                ffree: most,
                bsize: 0,
                frsize: 0,
                namelen: 0,
            };
            matches!(call, Call::StatFs).then(|| answer(id, Ok(Reply::StatFs(space)), &[]))
        }),
    ]
}

fn answers() -> Vec<Case> {
    let cat = "cat file";
    vec![
        lie("answers that nobody asked for", cat, Must::Say("hello"), |id, call| {
            let other = RequestId(id.0.wrapping_add(1 << 40));
            Some([truth(other, call), truth(id, call), truth(id, call)].concat())
        }),
        lie("another kind of answer to all", "ls; cat file", Must::Fail, |id, _| {
            Some(answer(id, Ok(Reply::Offset(u64::MAX)), &[]))
        }),
        lie("errors that are none", "ls; cat file; true", Must::End, |id, _| {
            Some(answer(id, Err(Errno::from_number(0)), &[]))
        }),
        lie("frames of 8 GiB", cat, Must::Fail, |_, _| Some(lengths(u32::MAX, u32::MAX))),
        lie("garbage", cat, Must::Fail, |_, _| Some(framed(&[0xff; 4096], &[0xff; 4096]))),
        lie("a frame that does not end", WAITING, Must::Wait, |_, _| {
            Some(lengths(256 << 10, 1 << 20))
        }),
        lie("silence", WAITING, Must::Wait, |_, _| Some(Vec::new())),
    ]
}

fn notices() -> Vec<Case> {
    vec![
        unasked("garbage about leases", |kind| {
            on(kind, StreamKind::Lease, framed(&[0xff; 99], &[]))
        }),
        unasked("leases that nobody asked for", |kind| {
            let (lease, node) = (LeaseId(7), FILE);
            let told = [
                Notice::Run { run: HostRun(1), term_ms: u32::MAX, standing: true },
                Notice::Renewed { number: u64::MAX },
                Notice::Recall { lease, keep: None },
                Notice::Changed { lease, node },
                Notice::Void { upto: LeaseId(u64::MAX) },
                Notice::Reclaimed { lease, held: true },
                Notice::Refused { request: RequestId(u64::MAX) },
            ];
            on(kind, StreamKind::Lease, told.iter().flat_map(|notice| frame(notice, &[])).collect())
        }),
        unasked("ten thousand changes", |kind| {
            let run = Notice::Run { run: HostRun(1), term_ms: 30_000, standing: false };
            let one = |n| frame(&Notice::Changed { lease: LeaseId(n), node: DIR }, &[]);
            let all = [frame(&run, &[])].into_iter().chain((0..10_000).map(one));
            on(kind, StreamKind::Lease, all.flatten().collect())
        }),
        unasked("ten thousand nodes for names", |kind| {
            let run = Notice::Run { run: HostRun(1), term_ms: 30_000, standing: false };
            let files = (0..5_000).map(|ino| NodeId { ino, generation: 1 }).collect();
            let premade = frame(&Notice::Premade { files, directories: Vec::new() }, &[]);
            let all = [frame(&run, &[]), premade.clone(), premade].concat();
            on(kind, StreamKind::Lease, all)
        }),
        unasked("acknowledgements of nothing", |kind| {
            on(kind, StreamKind::Log, host::stable(u64::MAX))
        }),
        unasked("a disk that failed", |kind| {
            let epoch = p2pfs::id::Epoch([9; 16]);
            let lost = LogAck::Lost { epoch, stable: Seq(u64::MAX) };
            on(kind, StreamKind::Log, frame(&lost, &[]))
        }),
        unasked("frames of 8 GiB everywhere", |_| lengths(u32::MAX, u32::MAX)),
    ]
}

fn on(kind: StreamKind, wanted: StreamKind, bytes: Vec<u8>) -> Vec<u8> {
    if kind == wanted { bytes } else { Vec::new() }
}

/// A listing of one entry `a-b`, of which some bytes become others.
fn renamed(id: RequestId, call: &Call, from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let page = DirPage { entries: vec![entry("a-b", FILE, host::attr(FILE), 1)], end: true };
    listing(call, page).map(|reply| twisted(id, reply, from, to))
}

/// The same, with another name.
fn relabelled(id: RequestId, call: &Call, name: &[u8]) -> Option<Vec<u8>> {
    let from = [&3_u64.to_le_bytes()[..], b"a-b"].concat();
    renamed(id, call, &from, &[&(name.len() as u64).to_le_bytes()[..], name].concat())
}

fn retargeted(id: RequestId, call: &Call, target: &[u8]) -> Option<Vec<u8>> {
    let from = [&4_u64.to_le_bytes()[..], b"file"].concat();
    let to = [&(target.len() as u64).to_le_bytes()[..], target].concat();
    let reply = Reply::Target(Target::new(*b"file").unwrap());
    matches!(call, Call::ReadLink { .. }).then(|| twisted(id, reply, &from, &to))
}

fn listed(id: RequestId, call: &Call, entries: Vec<DirEntry>, end: bool) -> Option<Vec<u8>> {
    listing(call, DirPage { entries, end }).map(|reply| answer(id, Ok(reply), &[]))
}

/// The answer to whoever lists the root.
fn listing(call: &Call, page: DirPage) -> Option<Reply> {
    match call {
        Call::OpenDir { node, .. } if *node == NodeId::ROOT => {
            Some(Reply::OpenDir(host::attr(*node), page))
        }
        Call::ReadDir { node, .. } if *node == NodeId::ROOT => Some(Reply::Dir(page)),
        _ => None,
    }
}

/// The truth, with other attributes of everything but the root.
fn with_attr(id: RequestId, call: &Call, change: fn(&mut Attr)) -> Option<Vec<u8>> {
    let (reply, body) = host::honest(call);
    let mut reply = reply.ok()?;
    match (&mut reply, call) {
        (Reply::Entry(entry), _) => change(&mut entry.attr),
        (Reply::Attr(attr), Call::GetAttr { node, .. } | Call::OpenRead { node, .. })
            if *node != NodeId::ROOT =>
        {
            change(attr);
        }
        (Reply::Dir(page) | Reply::OpenDir(_, page), _) => {
            page.entries.iter_mut().for_each(|entry| change(&mut entry.entry.attr));
        }
        _ => return None,
    }
    Some(answer(id, Ok(reply), &body))
}

/// The truth, with other numbers of everything but the root.
fn numbered(id: RequestId, call: &Call, number: fn(NodeId) -> NodeId) -> Option<Vec<u8>> {
    let (reply, body) = host::honest(call);
    let mut reply = reply.ok()?;
    match &mut reply {
        Reply::Entry(entry) => entry.node = number(entry.node),
        Reply::Dir(page) | Reply::OpenDir(_, page) => {
            page.entries.iter_mut().for_each(|entry| entry.entry.node = number(entry.entry.node));
        }
        Reply::Target(_) if call == &(Call::ReadLink { node: LINK }) => return None,
        _ => return None,
    }
    Some(answer(id, Ok(reply), &body))
}
