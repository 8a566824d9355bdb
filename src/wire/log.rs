//! Redo-log entries and their acknowledgements. Settled since version 1 of the protocol.
//!
//! An entry names the objects that it changes by identity, and says whom it expects at each name,
//! so that it can be carried out again after a crash of either side without moving or deleting what
//! somebody else has put there since. See [`crate::proto::redo`] for the rules.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, HandleId, LeaseId, NodeId, Seq};
use crate::wire::call::{Access, Attr, Entry, Time, XattrName};
use crate::wire::errno::Errno;
use crate::wire::name::{Name, Target};

/// One numbered change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogEntry {
    /// Its number; each is one more than the one before.
    pub seq: Seq,
    /// Entries that must be applied before this one; at most 8.
    pub after: Vec<Seq>,
    /// Who counts on it.
    pub promise: Promise,
    /// Whether a host may have seen it before.
    pub sent: Sent,
    /// What to change.
    pub change: Change,
}

/// A change and its circumstances.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Change {
    /// What it is.
    pub mutation: Mutation,
    /// The exclusive lease under which an application was told that it is done.
    pub lease: Option<LeaseId>,
    /// When it was done, on the host's clock as the client knows it: the times that it leaves.
    pub at: Option<Time>,
    /// Who did it, where the share asks for that.
    pub caller: Option<Caller>,
}

impl Change {
    /// A change without a lease, of this moment, by the key's owner.
    pub fn new(mutation: Mutation) -> Self {
        Self { mutation, lease: None, at: None, caller: None }
    }
}

/// Who made a change or asks, by the numbers of the client's machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Other groups; at most 64.
    pub groups: Vec<u32>,
}

/// Who counts on an entry. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Promise {
    /// Somebody waits for the result, and is told if it does not come.
    Awaited,
    /// An application was told that it is done. If it fails, what comes after it is set aside.
    Accepted,
}

/// Whether a host may have seen an entry before. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Sent {
    /// No host has, or the one that has remembers it.
    First,
    /// A host that cannot remember may have carried it out.
    Again {
        /// What it answered, if that arrived.
        told: Option<Outcome>,
    },
    /// The same, and later entries of the session take its nodes or names further: if neither the
    /// state before it nor the one after it is there, it was carried out, and so were those.
    Passed {
        /// What it answered, if that arrived.
        told: Option<Outcome>,
    },
}

/// An object. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum NodeRef {
    /// By its identity.
    Node(NodeId),
    /// The one that this entry of the session made, opened or linked.
    MadeBy(Seq),
}

impl From<NodeId> for NodeRef {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

/// Whom an entry expects at a name. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Occupant {
    /// Whoever is there: only for entries that somebody waits for.
    Any,
    /// The name is free.
    Nobody,
    /// This one.
    Node(NodeRef),
}

/// The handle that an entry opens.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Opening {
    /// What the handle will be called.
    pub handle: HandleId,
    /// Its directions.
    pub access: Access,
}

/// What to change. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Mutation {
    /// Takes the place of an entry that was struck: its number is used, nothing is done.
    /// -> [`Outcome::Done`]
    Nothing,
    /// `open(O_CREAT)`: makes a regular file, and opens it. -> [`Outcome::Entry`]
    Create {
        /// The directory.
        parent: NodeRef,
        /// The new name.
        name: Name,
        /// Permission bits, and the umask that the host applies ([`NewMode`]).
        mode: u32,
        /// Fails with EEXIST if the name is there; otherwise opens what is there.
        exclusive: bool,
        /// The node that the host made in advance for this.
        premade: Option<NodeId>,
        /// How to open it.
        open: Option<Opening>,
    },
    /// `mkdir`. -> [`Outcome::Entry`]
    Mkdir {
        /// The directory.
        parent: NodeRef,
        /// The new name.
        name: Name,
        /// Permission bits, and the umask that the host applies ([`NewMode`]).
        mode: u32,
        /// The node that the host made in advance for this.
        premade: Option<NodeId>,
    },
    /// `mknod`: a regular file, FIFO, socket or device. -> [`Outcome::Entry`]
    Mknod {
        /// The directory.
        parent: NodeRef,
        /// The new name.
        name: Name,
        /// Type and permission bits, and the umask that the host applies ([`NewMode`]).
        mode: u32,
        /// For devices.
        rdev: u64,
    },
    /// `symlink`. -> [`Outcome::Entry`]
    Symlink {
        /// The directory.
        parent: NodeRef,
        /// The new name.
        name: Name,
        /// What it says.
        target: Target,
    },
    /// `link`. -> [`Outcome::Entry`]
    Link {
        /// The existing node.
        node: NodeRef,
        /// The directory.
        parent: NodeRef,
        /// The new name.
        name: Name,
    },
    /// `unlink`. -> [`Outcome::Removed`]
    Unlink {
        /// The directory.
        parent: NodeRef,
        /// The name.
        name: Name,
        /// Who has it.
        occupant: Occupant,
    },
    /// `rmdir`. -> [`Outcome::Removed`]
    Rmdir {
        /// The directory.
        parent: NodeRef,
        /// The name.
        name: Name,
        /// Who has it.
        occupant: Occupant,
    },
    /// `renameat2`. -> [`Outcome::Renamed`]
    Rename {
        /// The directory it leaves.
        parent: NodeRef,
        /// The name there.
        name: Name,
        /// Who has that name; never [`Occupant::Nobody`].
        occupant: Occupant,
        /// The directory it enters.
        new_parent: NodeRef,
        /// The name there.
        new_name: Name,
        /// Who has that name.
        new_occupant: Occupant,
        /// What becomes of them.
        mode: RenameMode,
    },
    /// `chmod`, `chown`, `truncate`, `utimensat` together. -> [`Outcome::Attr`]
    SetAttr {
        /// The node.
        node: NodeRef,
        /// An open handle of it, which also reaches an unlinked file.
        handle: Option<HandleId>,
        /// What to change.
        change: AttrChange,
    },
    /// `pwrite`: the data is the frame's body. -> [`Outcome::Attr`]
    Write {
        /// The file.
        node: NodeRef,
        /// The handle through which it is written.
        handle: Option<HandleId>,
        /// From this byte.
        offset: u64,
    },
    /// `write` behind the end, wherever that is: the data is the frame's body.
    /// -> [`Outcome::Appended`]
    Append {
        /// The file.
        node: NodeRef,
        /// The handle through which it is written.
        handle: Option<HandleId>,
        /// Where the client believes the end to be: the search for data that may have been appended
        /// before begins here.
        size: u64,
    },
    /// `setxattr`: the value is the frame's body. -> [`Outcome::Done`]
    SetXattr {
        /// The node.
        node: NodeRef,
        /// With its namespace.
        name: XattrName,
        /// `XATTR_CREATE` (1) or `XATTR_REPLACE` (2) or 0; not heeded when sent again.
        flags: u8,
    },
    /// `removexattr`. -> [`Outcome::Done`]
    RemoveXattr {
        /// The node.
        node: NodeRef,
        /// With its namespace.
        name: XattrName,
    },
    /// `fallocate`. -> [`Outcome::Attr`]. What moves data is stable before it is acknowledged.
    Fallocate {
        /// The file.
        node: NodeRef,
        /// The handle through which it is changed.
        handle: Option<HandleId>,
        /// From this byte.
        offset: u64,
        /// So many bytes.
        len: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// `copy_file_range` on the host. -> [`Outcome::Copied`], stable before it is acknowledged.
    CopyRange {
        /// The file that is read.
        source: NodeRef,
        /// The handle through which it is read.
        source_handle: Option<HandleId>,
        /// From this byte.
        source_offset: u64,
        /// The file that is written.
        node: NodeRef,
        /// The handle through which it is written.
        handle: Option<HandleId>,
        /// From this byte.
        offset: u64,
        /// At most so many bytes.
        len: u64,
    },
}

/// The mode of something new: type and permission bits in the lower 16 bits; above them the umask
/// of who makes it. The host applies the umask unless the directory has a default ACL, as POSIX.1e
/// has it. 0 above: it is applied already, or there is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NewMode(pub u32);

impl NewMode {
    const UMASK_SHIFT: u32 = 16;

    /// `mode` as open(2) and mkdir(2) have it, and the umask.
    pub fn new(mode: u32, umask: u32) -> Self {
        Self(mode & 0xffff | (umask & 0o777) << Self::UMASK_SHIFT)
    }

    /// Permission bits with setuid, setgid and sticky; the umask is not applied.
    pub fn permissions(self) -> u32 {
        self.0 & 0o7777
    }

    /// The umask, 0 to 0o777.
    pub fn umask(self) -> u32 {
        self.0 >> Self::UMASK_SHIFT & 0o777
    }
}

/// What becomes of an entry that already has the new name.
/// **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// The rename fails with EEXIST.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// Attributes to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length, bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
}

/// A time to set. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SetTime {
    /// The host's clock, when it applies the entry.
    Now,
    /// This time.
    At(Time),
}

/// What came of an entry. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// The node that the entry made, opened or linked.
    Entry(Entry),
    /// The node's attributes afterwards.
    Attr(Attr),
    /// The node that lost its name.
    Removed {
        /// Which.
        node: NodeId,
        /// Whether it has other names left.
        linked: bool,
    },
    /// Who moved.
    Renamed {
        /// The node that has the new name now.
        node: NodeId,
        /// The one that had it before.
        replaced: Option<NodeId>,
    },
    /// Data was put behind the end.
    Appended {
        /// Where it begins.
        offset: u64,
        /// The file's attributes afterwards.
        attr: Attr,
    },
    /// Data was copied.
    Copied {
        /// How much, bytes.
        len: u64,
        /// The attributes of the file that was written.
        attr: Attr,
    },
}

/// Why an entry was not carried out.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refused {
    /// What an application is told.
    pub errno: Errno,
    /// What the client makes of it.
    pub reason: Reason,
}

impl Refused {
    /// By the host's system.
    pub fn by_system(errno: Errno) -> Self {
        Self { errno, reason: Reason::System }
    }

    /// Because the names or the data are no longer what the entry expects.
    pub fn conflict(errno: Errno) -> Self {
        Self { errno, reason: Reason::Conflict }
    }
}

/// Why an entry was not carried out. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Reason {
    /// The host's system said so.
    System,
    /// Somebody else has changed what the entry expects; nothing was overwritten.
    Conflict,
    /// An accepted entry before it failed.
    SetAside {
        /// That entry.
        because: Seq,
    },
    /// Whether it was carried out before cannot be told.
    Unknown,
}

/// What a host says of entries. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum LogAck {
    /// The entry was carried out, or refused.
    Applied {
        /// Which.
        seq: Seq,
        /// With what result.
        result: Result<Outcome, Refused>,
    },
    /// All entries up to `upto` are on the host's disk.
    Stable {
        /// The last of them.
        upto: Seq,
    },
    /// What was applied after `stable` may be lost (the disk failed to take it): it must be sent
    /// again.
    Lost {
        /// The epoch that begins.
        epoch: Epoch,
        /// The last entry that is on the disk with all before it.
        stable: Seq,
    },
}

/// How far a session's entries are, as a host tells a client that comes back.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cursor {
    /// The host's epoch.
    pub epoch: Epoch,
    /// Whether it knows the session, in this epoch. If not, it knows of no entry.
    pub known: bool,
    /// All entries up to here are carried out or refused.
    pub applied: Seq,
    /// And these; at most 1,024.
    pub ahead: Vec<Seq>,
    /// All entries up to here are on the disk.
    pub stable: Seq,
}
