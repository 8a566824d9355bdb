//! Connections: sets of reliable ordered lanes that die as a whole.
//!
//! Frames of one lane arrive in order, those of different lanes in any. A cut loses any suffix of
//! each lane; what is left may still arrive at the host for less than the grace.

use std::collections::{BTreeMap, VecDeque};

use p2pfs::id::{HandleId, NodeId, Seq};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::{LeaseRequest, Notice};
use p2pfs::wire::log::{Cursor, LogAck, LogEntry};

use super::dice::Dice;
use super::posix::{Body, Node};

/// What a client sends.
#[expect(clippy::large_enum_variant, reason = "a simulation moves few of them")]
#[derive(Clone, Debug)]
pub(crate) enum Up {
    /// The first on every connection.
    Identify {
        held: Seq,
        unanswered: Seq,
    },
    Entry {
        entry: LogEntry,
        body: Body,
    },
    Call {
        request: u64,
        call: Call,
    },
    Lease(LeaseRequest),
}

/// What a host sends.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    /// The first on every connection.
    Cursor(Cursor),
    Ack(LogAck),
    Reply {
        request: u64,
        reply: Result<Reply, Errno>,
    },
    Notice(Notice),
}

/// What changes nothing. `upto`: the entries that come before it.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// All of a node; opens it, if a handle is given.
    Fetch {
        node: NodeId,
        handle: Option<HandleId>,
        upto: Seq,
    },
    Sync {
        node: NodeId,
        upto: Seq,
    },
    Release {
        handle: HandleId,
        upto: Seq,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Done,
    /// The node, and what a directory names.
    Node {
        node: Node,
        children: Vec<(NodeId, Node)>,
    },
}

/// Where a frame travels; the first two carry entries, and the third what is asked.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Lane {
    Entries(u8),
    Calls,
    Leases,
    Acks,
    Replies,
    Notices,
}

impl Lane {
    /// Whether the host sends there.
    pub(crate) fn is_down(self) -> bool {
        matches!(self, Self::Acks | Self::Replies | Self::Notices)
    }
}

#[expect(clippy::large_enum_variant, reason = "a simulation moves few of them")]
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Up(Up),
    Down(Down),
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<(u64, Frame)>,
    last: u64,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: usize,
    /// The run of the host that has it.
    pub(crate) run: u64,
    lanes: BTreeMap<Lane, Queue>,
    /// Frames sent from now on are lost.
    pub(crate) cut: bool,
    /// Its longest delay.
    latency: u64,
}

impl Connection {
    pub(crate) fn new(client: usize, run: u64, latency: u64) -> Self {
        Self { client, run, lanes: BTreeMap::new(), cut: false, latency }
    }

    /// Sends a frame; tells when it arrives.
    pub(crate) fn send(
        &mut self,
        lane: Lane,
        frame: Frame,
        now: u64,
        dice: &mut Dice,
    ) -> Option<u64> {
        if self.cut {
            return None;
        }
        let queue = self.lanes.entry(lane).or_default();
        let at = queue.last.max(now + dice.range(1, self.latency));
        queue.last = at;
        queue.frames.push_back((at, frame));
        Some(at)
    }

    /// Takes the next frame of a lane, if it has arrived.
    pub(crate) fn receive(&mut self, lane: Lane, now: u64) -> Option<Frame> {
        let queue = self.lanes.get_mut(&lane)?;
        if queue.frames.front()?.0 > now {
            return None;
        }
        Some(queue.frames.pop_front()?.1)
    }

    /// The connection dies: of each lane some suffix is lost, the rest is on its way to the host.
    pub(crate) fn cut(&mut self, dice: &mut Dice) {
        self.cut = true;
        for queue in self.lanes.values_mut() {
            let left = dice.below(queue.frames.len() as u64 + 1) as usize;
            queue.frames.truncate(left);
        }
    }
}
