//! What a session has open, as bytes that outlive the host's process: a header, and a line for
//! each open and close.
//!
//! ```text
//!  0     header, 80 bytes    its sum | "p2pfsopn" | version | session | disk | root
//!  80    lines of 40 bytes   their sum | kind | handle | node
//! ```
//!
//! Numbers are little-endian. A line that was being written when the host was killed has another
//! sum, and counts as not written.

use std::collections::BTreeMap;

use crate::id::{HandleId, NodeId, SessionId};
use crate::proto::redo::record::{RecordError, sum_of, take, whole};
use crate::wire::call::Access;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 80;
/// Bytes of a line.
pub const LINE_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"p2pfsopn";
const VERSION: u32 = 1;
const CLOSED: u64 = 0;
const READ: u64 = 1;
const WRITE: u64 = 2;
const READ_WRITE: u64 = 3;
const LOCKS: u64 = 4;
const NO_LOCKS: u64 = 5;

/// Whose record it is, and of which directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// The session.
    pub session: SessionId,
    /// The file system's id.
    pub fsid: u64,
    /// The share's inode number.
    pub inode: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Line {
    /// A node was opened; rights were checked.
    Opened {
        /// As the client calls it.
        handle: HandleId,
        /// What was opened.
        node: NodeId,
        /// Which directions.
        access: Access,
    },
    /// A handle was closed.
    Closed(HandleId),
    /// Whether the session has locks.
    Locks(bool),
}

/// What a session has open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Recovered {
    /// As written.
    pub header: Header,
    /// The handles.
    pub opens: BTreeMap<HandleId, (NodeId, Access)>,
    /// Whether the session has locks.
    pub locks: bool,
}

/// The header's bytes.
pub fn encode_header(header: &Header) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(header.session.0);
    bytes.extend(header.fsid.to_le_bytes());
    bytes.extend(header.inode.to_le_bytes());
    summed(bytes, HEADER_BYTES)
}

/// A line's bytes.
pub fn encode_line(line: &Line) -> Vec<u8> {
    let nothing = NodeId { ino: 0, generation: 0 };
    let (kind, handle, node) = match *line {
        Line::Opened { handle, node, access } => (number(access), handle, node),
        Line::Closed(handle) => (CLOSED, handle, nothing),
        Line::Locks(any) => (if any { LOCKS } else { NO_LOCKS }, HandleId(0), nothing),
    };
    let parts = [kind, handle.0, node.ino, node.generation];
    summed(parts.into_iter().flat_map(u64::to_le_bytes).collect(), LINE_BYTES)
}

/// Reads a whole record.
///
/// # Errors
///
/// [`RecordError`] if the header is not one.
pub fn recover(bytes: &[u8]) -> Result<Recovered, RecordError> {
    let (head, lines) = bytes.split_at_checked(HEADER_BYTES).ok_or(RecordError::Malformed)?;
    let header = decode_header(whole(head).ok_or(RecordError::Malformed)?)?;
    let mut recovered = Recovered { header, opens: BTreeMap::new(), locks: false };
    for line in lines.chunks_exact(LINE_BYTES).filter_map(decode_line) {
        match line {
            Line::Opened { handle, node, access } => {
                recovered.opens.insert(handle, (node, access));
            }
            Line::Closed(handle) => {
                recovered.opens.remove(&handle);
            }
            Line::Locks(any) => recovered.locks = any,
        }
    }
    Ok(recovered)
}

fn decode_header(bytes: &[u8]) -> Result<Header, RecordError> {
    let (magic, bytes) = take::<8>(bytes)?;
    let (version, bytes) = take::<4>(bytes)?;
    if magic != MAGIC {
        return Err(RecordError::Malformed);
    }
    if u32::from_le_bytes(version) != VERSION {
        return Err(RecordError::Version);
    }
    let (session, bytes) = take::<16>(bytes)?;
    let (fsid, bytes) = take::<8>(bytes)?;
    let (inode, _) = take::<8>(bytes)?;
    Ok(Header {
        session: SessionId(session),
        fsid: u64::from_le_bytes(fsid),
        inode: u64::from_le_bytes(inode),
    })
}

fn decode_line(bytes: &[u8]) -> Option<Line> {
    let mut parts = whole(bytes)?.chunks_exact(8).filter_map(|part| part.try_into().ok());
    let mut next = || parts.next().map(u64::from_le_bytes);
    let (kind, handle) = (next()?, HandleId(next()?));
    let node = NodeId { ino: next()?, generation: next()? };
    let access = match kind {
        CLOSED => return Some(Line::Closed(handle)),
        LOCKS | NO_LOCKS => return Some(Line::Locks(kind == LOCKS)),
        READ => Access::Read,
        WRITE => Access::Write,
        READ_WRITE => Access::ReadWrite,
        _ => return None,
    };
    Some(Line::Opened { handle, node, access })
}

fn number(access: Access) -> u64 {
    match access {
        Access::Read => READ,
        Access::Write => WRITE,
        Access::ReadWrite => READ_WRITE,
    }
}

/// The bytes behind their sum, as many as there are to be.
fn summed(mut rest: Vec<u8>, bytes: usize) -> Vec<u8> {
    rest.resize(bytes - 8, 0);
    let mut whole = sum_of(&rest).to_le_bytes().to_vec();
    whole.extend(rest);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { session: SessionId([7; 16]), fsid: 3, inode: 9 };

    fn opened(handle: u64, access: Access) -> Line {
        let node = NodeId { ino: handle + 10, generation: 5 };
        Line::Opened { handle: HandleId(handle), node, access }
    }

    #[test]
    fn what_is_open_is_read_again() {
        let mut bytes = encode_header(&HEADER);
        for line in [
            opened(1, Access::Read),
            opened(2, Access::ReadWrite),
            Line::Locks(true),
            Line::Closed(HandleId(1)),
            opened(3, Access::Write),
        ] {
            bytes.extend(encode_line(&line));
        }
        let recovered = recover(&bytes).unwrap();
        assert_eq!(recovered.header, HEADER);
        assert!(recovered.locks);
        let handles: Vec<_> = recovered.opens.iter().map(|(id, open)| (id.0, open.1)).collect();
        assert_eq!(handles, [(2, Access::ReadWrite), (3, Access::Write)]);
    }

    #[test]
    fn a_line_that_was_cut_short_counts_as_not_written() {
        let mut bytes = encode_header(&HEADER);
        bytes.extend(encode_line(&opened(1, Access::Read)));
        bytes.extend(encode_line(&opened(2, Access::Read)));
        for len in HEADER_BYTES + LINE_BYTES..bytes.len() {
            assert_eq!(recover(&bytes[..len]).unwrap().opens.len(), 1);
        }
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(recover(&bytes).unwrap().opens.len(), 1);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let bytes = encode_header(&HEADER);
        assert_eq!(recover(&bytes[1..]), Err(RecordError::Malformed));
        assert_eq!(recover(&[0; HEADER_BYTES]), Err(RecordError::Malformed));
        assert_eq!(recover(b""), Err(RecordError::Malformed));
    }
}
