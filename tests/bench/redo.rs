//! How many entries one core takes through both halves of the redo log and the codec between them,
//! and how long they are on the wire: `cargo bench -p p2pfs --bench redo --no-default-features`.

use std::collections::VecDeque;
use std::time::Instant;

use p2pfs::id::{ConnectionId, Epoch, NodeId, Seq};
use p2pfs::proto::redo::applier::{self, Applier};
use p2pfs::proto::redo::log::{self, Log};
use p2pfs::wire::call::{Attr, Entry, Time};
use p2pfs::wire::codec;
use p2pfs::wire::frame::HEAD_BYTES;
use p2pfs::wire::log::{
    AttrChange, Change, LogAck, LogEntry, Mutation, Occupant, Outcome, Promise, RenameMode, SetTime,
};
use p2pfs::wire::name::Name;

const ENTRIES: u64 = 200_000;
/// Files that are changed in turn.
const FILES: u64 = 64;
/// So many are appended before the host sees the first.
const BATCH: u64 = 256;
const BLOCK: usize = 4096;

fn main() {
    println!("{:>12} {:>12} {:>12} {:>12}", "", "entries/s", "bytes there", "bytes back");
    run("create", 0, |seq| Mutation::Create {
        parent: NodeId::ROOT.into(),
        name: name("file", seq),
        mode: 0o644,
        exclusive: true,
        premade: Some(node(seq)),
        open: None,
    });
    run("write 4 KiB", BLOCK, |seq| Mutation::Write {
        node: node(seq % FILES).into(),
        handle: None,
        offset: seq * BLOCK as u64,
    });
    run("setattr", 0, |seq| Mutation::SetAttr {
        node: node(seq % FILES).into(),
        handle: None,
        change: AttrChange { mtime: Some(SetTime::At(Time::default())), ..AttrChange::default() },
    });
    run("rename", 0, |seq| Mutation::Rename {
        parent: NodeId::ROOT.into(),
        name: name("from", seq),
        occupant: Occupant::Node(node(seq).into()),
        new_parent: NodeId::ROOT.into(),
        new_name: name("to", seq % FILES),
        new_occupant: Occupant::Any,
        mode: RenameMode::Replace,
    });
}

fn name(text: &str, number: u64) -> Name {
    Name::new(format!("{text}{number:08}")).expect("a name")
}

fn node(number: u64) -> NodeId {
    NodeId { ino: 1000 + number, generation: 0x0123_4567_89ab_cdef }
}

/// Both halves, and what was counted on the way.
struct Pair {
    log: Log<&'static [u8]>,
    applier: Applier<&'static [u8], ()>,
    there: usize,
    back: usize,
}

fn run(what: &str, bytes: usize, mutation: impl Fn(u64) -> Mutation) {
    static BODY: [u8; BLOCK] = [7; BLOCK];
    let epoch = Epoch([1; 16]);
    let mut pair =
        Pair { log: Log::new(), applier: Applier::new(epoch, Seq(1)), there: 0, back: 0 };
    let cursor = pair.applier.resume(pair.log.unanswered());
    pair.log.handle_connected(ConnectionId(1), &cursor).expect("an empty cursor");
    let begin = Instant::now();
    for seq in 1..=ENTRIES {
        let body = BODY.get(..bytes).unwrap_or_default();
        pair.log.append(Change::new(mutation(seq)), body, bytes, Promise::Accepted);
        if seq % BATCH == 0 || seq == ENTRIES {
            pair.exchange(begin);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(pair.log.unapplied(), (0, 0), "everything was answered");
    assert_eq!(pair.log.aside().count(), 0, "nothing failed");
    let each = |bytes: usize| bytes as f64 / ENTRIES as f64;
    println!(
        "{what:>12} {:>12.0} {:>12.1} {:>12.1}",
        ENTRIES as f64 / seconds,
        each(pair.there) - bytes as f64,
        each(pair.back),
    );
}

impl Pair {
    fn exchange(&mut self, now: Instant) {
        let mut acks = VecDeque::new();
        loop {
            while let Some(output) = self.log.poll_output() {
                if let log::Output::Ship { entry, body, .. } = output {
                    let frame = codec::encode(&entry).expect("a short entry");
                    self.there += HEAD_BYTES + frame.len() + body.len();
                    let entry: LogEntry = codec::decode(&frame).expect("what was encoded");
                    let taken = self.applier.handle_entry(entry, body, body.len(), now);
                    taken.expect("an honest client");
                }
            }
            while let Some(output) = self.applier.poll_output() {
                match output {
                    applier::Output::Apply { seq, change, .. } => {
                        let outcome = done(seq, &change.mutation);
                        self.applier.handle_result(seq, Ok(outcome), now);
                    }
                    applier::Output::Ack(ack) => {
                        let frame = codec::encode(&ack).expect("a short acknowledgement");
                        self.back += HEAD_BYTES + frame.len();
                        acks.push_back(frame);
                    }
                    applier::Output::Sync { upto } => self.applier.handle_synced(upto, now),
                    applier::Output::Reached(()) => {}
                }
            }
            if acks.is_empty() {
                return;
            }
            for frame in acks.drain(..) {
                let ack: LogAck = codec::decode(&frame).expect("what was encoded");
                self.log.handle_ack(ack).expect("an honest host");
            }
        }
    }
}

fn done(seq: Seq, mutation: &Mutation) -> Outcome {
    let time = Time::default();
    let attr = Attr {
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        mode: 0o100_644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    };
    match mutation {
        Mutation::Create { .. } => Outcome::Entry(Entry { node: node(seq.0), attr }),
        Mutation::Rename { .. } => Outcome::Renamed { node: node(seq.0), replaced: None },
        _ => Outcome::Attr(attr),
    }
}
