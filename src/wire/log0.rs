//! Redo-log entries and their acknowledgements. **Not settled yet:** the protocol's version says
//! so.

use serde::{Deserialize, Serialize};

use crate::id::{HandleId, NodeId, Seq};
use crate::wire::call::{Access, Attr, Entry, Time, XattrName};
use crate::wire::errno::Errno;
use crate::wire::name::{Name, Target};

/// One numbered change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogEntry {
    /// Its number; each is one more than the one before.
    pub seq: Seq,
    /// Entries that must be applied before this one; at most 4.
    pub after: Vec<Seq>,
    /// The change.
    pub mutation: Mutation,
}

/// A change. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Mutation {
    /// `open(O_CREAT)`: makes a regular file and opens it. -> [`Outcome::Entry`]
    Create {
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Name,
        /// Permission bits, umask applied.
        mode: u32,
        /// Fails with EEXIST if the name is there; otherwise opens what is there.
        exclusive: bool,
        /// What the handle will be called.
        handle: HandleId,
        /// Its directions.
        access: Access,
    },
    /// `mkdir`. -> [`Outcome::Entry`]
    Mkdir {
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Name,
        /// Permission bits, umask applied.
        mode: u32,
    },
    /// `mknod`: a regular file, FIFO, socket or device. -> [`Outcome::Entry`]
    Mknod {
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Name,
        /// Type and permission bits, umask applied.
        mode: u32,
        /// For devices.
        rdev: u64,
    },
    /// `symlink`. -> [`Outcome::Entry`]
    Symlink {
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Name,
        /// What it says.
        target: Target,
    },
    /// `link`. -> [`Outcome::Entry`]
    Link {
        /// The existing node.
        node: NodeId,
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Name,
    },
    /// `unlink`. -> [`Outcome::Done`]
    Unlink {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Name,
    },
    /// `rmdir`. -> [`Outcome::Done`]
    Rmdir {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Name,
    },
    /// `renameat2`. -> [`Outcome::Done`]
    Rename {
        /// The directory it leaves.
        parent: NodeId,
        /// The name there.
        name: Name,
        /// The directory it enters.
        new_parent: NodeId,
        /// The name there.
        new_name: Name,
        /// What becomes of an entry that has the new name.
        mode: RenameMode,
    },
    /// `chmod`, `chown`, `truncate`, `utimensat` together. -> [`Outcome::Attr`]
    SetAttr {
        /// The node.
        node: NodeId,
        /// An open handle of it, which also reaches an unlinked file.
        handle: Option<HandleId>,
        /// What to change.
        change: AttrChange,
    },
    /// `pwrite`: the data is the frame's body. -> [`Outcome::Attr`]
    Write {
        /// The open file.
        handle: HandleId,
        /// From this byte.
        offset: u64,
    },
    /// `setxattr`: the value is the frame's body. -> [`Outcome::Done`]
    SetXattr {
        /// The node.
        node: NodeId,
        /// With its namespace.
        name: XattrName,
        /// `XATTR_CREATE` (1) or `XATTR_REPLACE` (2) or 0.
        flags: u8,
    },
    /// `removexattr`. -> [`Outcome::Done`]
    RemoveXattr {
        /// The node.
        node: NodeId,
        /// With its namespace.
        name: XattrName,
    },
    /// `fallocate`. -> [`Outcome::Attr`]
    Fallocate {
        /// The open file.
        handle: HandleId,
        /// From this byte.
        offset: u64,
        /// So many bytes.
        len: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// Takes the place of an entry that was struck: its number is used, nothing is done.
    /// -> [`Outcome::Done`]
    Nothing,
}

/// What becomes of an entry that already has the new name. **Append only.**
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

/// A time to set. **Append only.**
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
    /// The node that the entry made or opened.
    Entry(Entry),
    /// The node's attributes afterwards.
    Attr(Attr),
}

/// What a host says of entries. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum LogAck {
    /// The entry was carried out, or refused.
    Applied {
        /// Which.
        seq: Seq,
        /// With what result.
        result: Result<Outcome, Errno>,
    },
    /// All entries up to `upto` are on the host's disk.
    Stable {
        /// The last of them.
        upto: Seq,
    },
}
