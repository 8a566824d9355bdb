//! Calls and replies: reading, and what changes nothing on the host's disk.
//!
//! Every call may be sent twice without harm (opens carry the handle's number, chosen by the
//! client), so a call that was under way when a connection died is sent again on the next one.

use serde::{Deserialize, Serialize};

use crate::id::{HandleId, NodeId, RequestId, Seq, SessionId};
use crate::identity::wrapping::ForHost;
use crate::limits::LABEL_BYTES_MAX;
use crate::wire::errno::Errno;
use crate::wire::log::Caller;
use crate::wire::name::{Name, Target};

/// What a client asks. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Call {
    /// The entry `name` of `parent`. -> [`Reply::Entry`]
    Lookup {
        /// The directory.
        parent: NodeId,
        /// The name in it.
        name: Name,
    },
    /// A node's attributes. -> [`Reply::Attr`]
    GetAttr {
        /// The node.
        node: NodeId,
        /// An open handle of it, which also reaches an unlinked file.
        handle: Option<HandleId>,
    },
    /// A symlink's target. -> [`Reply::Target`]
    ReadLink {
        /// The symlink.
        node: NodeId,
    },
    /// A page of a directory, with attributes. -> [`Reply::Dir`]
    ReadDir {
        /// The directory.
        node: NodeId,
        /// Its handle, from [`Call::Open`].
        handle: HandleId,
        /// Where to go on: 0, or [`DirEntry::cookie`] of the last entry read.
        cookie: u64,
        /// At most this many entries.
        entries_max: u32,
    },
    /// Opens a file or directory. -> [`Reply::Attr`], fresh: this is the close-to-open check.
    Open {
        /// What to open.
        node: NodeId,
        /// What the handle will be called.
        handle: HandleId,
        /// Which directions.
        access: Access,
    },
    /// File data. -> [`Reply::Data`], with the data as body; shorter only at the end of the file.
    Read {
        /// The open file.
        handle: HandleId,
        /// From this byte.
        offset: u64,
        /// At most this many bytes; at most 1 MiB.
        len: u32,
    },
    /// Space and limits of the share. -> [`Reply::StatFs`]
    StatFs,
    /// Waits until the entries up to `upto` are applied, then makes the file (or directory) stable.
    /// -> [`Reply::Done`]
    Sync {
        /// The open file.
        handle: HandleId,
        /// `fdatasync`: without times.
        data_only: bool,
        /// The last entry that must be in it.
        upto: Seq,
    },
    /// Waits until the entries up to `upto` are applied, then makes the whole share stable.
    /// -> [`Reply::Done`]
    SyncAll {
        /// The last entry that must be in it.
        upto: Seq,
    },
    /// Closes a handle, after the entries up to `upto`. -> [`Reply::Done`]
    Release {
        /// The open file.
        handle: HandleId,
        /// The last entry that used it.
        upto: Seq,
    },
    /// The client's kernel no longer knows these nodes. -> [`Reply::Done`]
    Forget {
        /// At most 4096 of them.
        nodes: Vec<NodeId>,
    },
    /// An extended attribute's value, or with `name` empty the list of names (each followed by
    /// NUL).
    /// -> [`Reply::Data`], the bytes as body.
    GetXattr {
        /// The node.
        node: NodeId,
        /// The attribute's name with its namespace, or empty.
        name: XattrName,
    },
    /// Where the next data or the next hole begins. -> [`Reply::Offset`]
    Seek {
        /// The open file.
        handle: HandleId,
        /// From this byte on.
        offset: u64,
        /// What is looked for.
        what: Seek,
    },
    /// As [`Call::Read`]. -> [`Reply::Version`], with the data as body.
    ReadVersion {
        /// The open file.
        handle: HandleId,
        /// From this byte.
        offset: u64,
        /// At most this many bytes; at most 1 MiB.
        len: u32,
    },
    /// A call whose answer depends on who asks, where the session says so
    /// ([`crate::wire::session::Verdict::ApprovedIdentity`]).
    As {
        /// Who asks.
        caller: Caller,
        /// What.
        asked: Asked,
    },
    /// Opens a file for reading and reads its start. -> [`Reply::Attr`], as [`Call::Open`], with
    /// the data as body: shorter than `len` only at the end of the file, or empty where the start
    /// could not be read.
    OpenRead {
        /// The file.
        node: NodeId,
        /// What the handle will be called.
        handle: HandleId,
        /// At most this many bytes; at most 1 MiB.
        len: u32,
    },
    /// Opens a directory and lists its first page. -> [`Reply::OpenDir`]
    OpenDir {
        /// The directory.
        node: NodeId,
        /// What the handle will be called.
        handle: HandleId,
        /// At most this many entries.
        entries_max: u32,
    },
    /// Unwraps the key of a file with what another key's session has accepted and its client could
    /// not deliver; this key may go on with that session. -> [`Reply::Data`], as body the key and
    /// whose changes they are ([`crate::identity::wrapping::parse`]). EACCES: one of the keys could
    /// not make the changes; EBUSY: the session's client is connected; EINVAL: that key has not
    /// wrapped this for this host.
    Unwrap(ForHost),
    /// Which other clients are away, and may have changes that have not arrived.
    /// -> [`Reply::Absent`]
    Absent,
    /// The client ends; it keeps what it could not deliver. -> [`Reply::Done`]
    Leave(Backlog),
    /// Sessions of clients that are gone have nothing left; at most [`crate::limits::ABSENT_MAX`].
    /// Those that this key could not go on with are passed over. -> [`Reply::Done`]
    Over(Vec<SessionId>),
}

/// A call that the host answers by the rights of who asks: each is the [`Call`] of its name.
/// **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Asked {
    /// [`Call::Lookup`]
    Lookup {
        /// The directory.
        parent: NodeId,
        /// The name in it.
        name: Name,
    },
    /// [`Call::Open`]
    Open {
        /// What to open.
        node: NodeId,
        /// What the handle will be called.
        handle: HandleId,
        /// Which directions.
        access: Access,
    },
    /// [`Call::GetXattr`]
    GetXattr {
        /// The node.
        node: NodeId,
        /// The attribute's name with its namespace, or empty.
        name: XattrName,
    },
    /// [`Call::OpenRead`]
    OpenRead {
        /// The file.
        node: NodeId,
        /// What the handle will be called.
        handle: HandleId,
        /// At most this many bytes; at most 1 MiB.
        len: u32,
    },
    /// [`Call::OpenDir`]
    OpenDir {
        /// The directory.
        node: NodeId,
        /// What the handle will be called.
        handle: HandleId,
        /// At most this many entries.
        entries_max: u32,
    },
}

impl From<Asked> for Call {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Lookup { parent, name } => Self::Lookup { parent, name },
            Asked::Open { node, handle, access } => Self::Open { node, handle, access },
            Asked::GetXattr { node, name } => Self::GetXattr { node, name },
            Asked::OpenRead { node, handle, len } => Self::OpenRead { node, handle, len },
            Asked::OpenDir { node, handle, entries_max } => {
                Self::OpenDir { node, handle, entries_max }
            }
        }
    }
}

/// A call on a lane. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ask {
    /// Which call its answer will name.
    pub id: RequestId,
    /// The call.
    pub call: Call,
}

/// The answer to an [`Ask`]; answers come in any order. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Answer {
    /// Which call it answers.
    pub id: RequestId,
    /// As a call on a stream of its own is answered.
    pub reply: Result<Reply, Errno>,
}

/// What a host answers. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Reply {
    /// Done; nothing to tell.
    Done,
    /// A node and its attributes.
    Entry(Entry),
    /// Attributes.
    Attr(Attr),
    /// A symlink's target.
    Target(Target),
    /// A page of a directory.
    Dir(DirPage),
    /// The frame's body is the answer.
    Data,
    /// Space and limits.
    StatFs(StatFs),
    /// A place in a file, bytes from its start.
    Offset(u64),
    /// The frame's body is the data; the version is from after it was read.
    Version(ReadVersion),
    /// A directory that was opened, and its first page.
    OpenDir(Attr, DirPage),
    /// At most [`crate::limits::ABSENT_MAX`] clients, those that went last.
    Absent(Vec<Absent>),
}

/// What a client keeps that it could not deliver. **Append only.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Backlog {
    /// Changes.
    pub entries: u64,
    /// Their data, bytes.
    pub bytes: u64,
}

/// A client that is away and may have changes that have not arrived. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Absent {
    /// The client machine's name; at most [`LABEL_BYTES_MAX`] bytes.
    pub client: String,
    /// The share; at most [`LABEL_BYTES_MAX`] bytes.
    pub share: String,
    /// For how long, seconds.
    pub away_s: u64,
    /// What it said that it keeps; `None`: it went without a word.
    pub keeps: Option<Backlog>,
}

impl Absent {
    /// Whether every text keeps its bound, and moves no terminal's cursor.
    pub fn is_bounded(&self) -> bool {
        let is_label =
            |text: &str| text.len() <= LABEL_BYTES_MAX && !text.contains(char::is_control);
        is_label(&self.client) && is_label(&self.share)
    }
}

/// What is looked for in a file. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Seek {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// Which version of a file a read has found.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReadVersion {
    /// The version of the file when it had been read.
    pub version: DataVersion,
    /// It is so new that a change may have been under way while the file was read: what was read
    /// may be older, or in parts.
    pub recent: bool,
}

impl ReadVersion {
    /// Whether all that was read is surely of the version that these attributes have.
    pub fn is(&self, attr: &Attr) -> bool {
        !self.recent && self.version == attr.data_version()
    }
}

/// The directions of an open file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Access {
    /// `O_RDONLY`
    Read,
    /// `O_WRONLY`
    Write,
    /// `O_RDWR`
    ReadWrite,
}

/// An extended attribute's name, as bytes: at most 255, no NUL; empty where a list is asked.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct XattrName(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A node as a directory shows it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// Its name for calls.
    pub node: NodeId,
    /// What `stat` shows.
    pub attr: Attr,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attr {
    /// Bytes; for a symlink the length of its target.
    pub size: u64,
    /// 512-byte blocks on the host's disk.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the node.
    pub ctime: Time,
    /// Birth, where the host's file system keeps it.
    pub btime: Time,
    /// Type and permission bits (`st_mode`); above these 16 bits only [`Attr::NO_XATTRS`].
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// The owner's number on the host.
    pub uid: u32,
    /// The group's number on the host.
    pub gid: u32,
    /// Device of a device node (`st_rdev`, Linux's `makedev` encoding).
    pub rdev: u64,
    /// The preferred block size.
    pub blksize: u32,
}

impl Attr {
    /// In `mode`: the host has looked, and there are neither extended attributes nor ACLs. Not set:
    /// nobody has looked, or there are some.
    pub const NO_XATTRS: u32 = 1 << 16;

    /// Whether it is known to have no extended attributes.
    pub fn lacks_xattrs(&self) -> bool {
        self.mode & Self::NO_XATTRS != 0
    }

    /// `S_IFMT` of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & 0o170_000
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == 0o100_000
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == 0o040_000
    }

    /// Which version of the data this is: equal versions, equal data (close-to-open).
    pub fn data_version(&self) -> DataVersion {
        DataVersion { mtime: self.mtime, ctime: self.ctime, size: self.size }
    }
}

/// A version of a file's data, as far as times and size can tell.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct DataVersion {
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the node.
    pub ctime: Time,
    /// Bytes.
    pub size: u64,
}

/// A point in time as `struct timespec` has it; before 1970 `seconds` is negative.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Time {
    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999, added to `seconds`.
    pub nanos: u32,
}

/// A page of a directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DirPage {
    /// The entries, `.` and `..` left out.
    pub entries: Vec<DirEntry>,
    /// Whether the directory ends here.
    pub end: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Where the listing goes on behind it; never 0.
    pub cookie: u64,
    /// The node.
    pub entry: Entry,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StatFs {
    /// Blocks in all, of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred transfer size.
    pub bsize: u32,
    /// The unit of the counts of blocks.
    pub frsize: u32,
    /// Longest name.
    pub namelen: u32,
}
