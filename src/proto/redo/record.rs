//! What a session's record holds, as bytes: a header, and a slot for each entry under way.
//!
//! A slot is written before the system call (the intent) and after it (the result). A killed process
//! leaves every write that it made; a crashed machine may leave anything, so another epoch does not
//! read it.

use std::collections::BTreeMap;

use crate::id::{Epoch, Seq, SessionId};
use crate::proto::redo::execute::Seen;
use crate::wire::log::{Outcome, Refused};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 256;
/// Slots: every entry that is not stable has one, and as many before it.
pub const SLOTS: usize = 2 * crate::limits::LOG_ENTRIES_UNSTABLE_MAX;

/// Whose record it is, and how far it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// The session.
    pub session: SessionId,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// The first entry of the session that this host has seen.
    pub first: Seq,
    /// All entries up to here are on the disk.
    pub stable: Seq,
}

/// What a slot says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Slot {
    /// The entry was about to be carried out.
    Intent(Seen),
    /// It was carried out or refused.
    Done {
        /// The result.
        result: Result<Outcome, Refused>,
        /// Whether its failure sets aside what comes after it.
        poisons: bool,
    },
}

/// What a killed host knows of a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Recovered {
    /// As written.
    pub header: Header,
    /// Entries carried out or refused.
    pub done: BTreeMap<Seq, (Result<Outcome, Refused>, bool)>,
    /// Entries of which only the intent is known.
    pub intents: BTreeMap<Seq, Seen>,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// Cut short, or not a record.
    #[error("not a session record")]
    Malformed,
    /// Of a version that this program does not know.
    #[error("a session record of another version")]
    Version,
}

/// The header's bytes.
pub fn encode_header(header: &Header) -> [u8; HEADER_BYTES] {
    let _ = header;
    unimplemented!()
}

/// Where in the record an entry's slot is.
pub fn slot_offset(seq: Seq) -> u64 {
    let _ = seq;
    unimplemented!()
}

/// A slot's bytes.
pub fn encode_slot(seq: Seq, slot: &Slot) -> [u8; SLOT_BYTES] {
    let _ = (seq, slot);
    unimplemented!()
}

/// Reads a whole record. A slot that was being written when the host was killed counts as what it
/// was before.
///
/// # Errors
///
/// [`RecordError`] if the header is not one.
pub fn recover(bytes: &[u8]) -> Result<Recovered, RecordError> {
    let _ = bytes;
    unimplemented!()
}
