//! What a session's record holds, as bytes: a header, and a slot for each entry under way.
//!
//! A slot is written before the system call (the intent) and after it (the result). A killed
//! process leaves every write that it made; a crashed machine may leave anything, so another epoch
//! believes only what is on the disk by now: entries up to *stable*, as far as their results are
//! there too.
//!
//! ```text
//!  0      header, 2,048 bytes    its sum | "p2pfsrec" | version | session | epoch | first | stable
//!                                | file system | root
//!  2048   the same again
//!  4096   slots of 256 bytes      96 for the intent, 160 for the result, each:
//!                                 its sum | entry | epoch | length | value
//! ```
//!
//! A kill in the middle of a write must not lose what was there: the header is there twice, and a
//! result does not touch the intent before it. The ring's next entry for a slot comes 16,384
//! entries later, when nobody asks for this one. Numbers are little-endian; a sum is FNV-1a of 64
//! bits over what follows it: it tells what is whole, not who wrote it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::id::{Epoch, Seq, SessionId};
use crate::proto::redo::execute::Seen;
use crate::wire::codec;
use crate::wire::log::{Outcome, Refused};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 256;
/// Slots: every entry that is not stable has one, and as many before it.
pub const SLOTS: usize = 2 * crate::limits::LOG_ENTRIES_UNSTABLE_MAX;

/// Where in a slot its result begins.
pub const RESULT: usize = 96;
const HEADER_COPY_BYTES: usize = HEADER_BYTES / 2;
const MAGIC: [u8; 8] = *b"p2pfsrec";
const VERSION: u32 = 1;

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
    /// The id of the file system that they are on.
    pub fsid: u64,
    /// The inode number of the share's root.
    pub inode: u64,
}

/// How far a session is that is recorded from now on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Begun {
    /// The epoch.
    pub epoch: Epoch,
    /// The first entry that is recorded.
    pub first: Seq,
    /// All entries up to here are on the disk.
    pub stable: Seq,
    /// Whether another crash must not take that away.
    pub outlives: bool,
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

/// Bytes, and where in the record they go. They are written at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Piece {
    /// From this byte of the record.
    pub offset: u64,
    /// So they are.
    pub bytes: Vec<u8>,
}

/// The header's bytes, for the record's beginning.
pub fn encode_header(header: &Header) -> [u8; HEADER_BYTES] {
    let mut copy = MAGIC.to_vec();
    copy.extend(VERSION.to_le_bytes());
    copy.extend(header.session.0);
    copy.extend(header.epoch.0);
    copy.extend(header.first.0.to_le_bytes());
    copy.extend(header.stable.0.to_le_bytes());
    copy.extend(header.fsid.to_le_bytes());
    copy.extend(header.inode.to_le_bytes());
    copy.resize(HEADER_COPY_BYTES - 8, 0);
    let mut bytes = [0; HEADER_BYTES];
    for half in bytes.chunks_exact_mut(HEADER_COPY_BYTES) {
        let (sum, rest) = half.split_at_mut(8);
        sum.copy_from_slice(&sum_of(&copy).to_le_bytes());
        rest.copy_from_slice(&copy);
    }
    bytes
}

/// Where in the record an entry's slot is.
pub fn slot_offset(seq: Seq) -> u64 {
    let slot = seq.0 % SLOTS as u64;
    HEADER_BYTES as u64 + slot * SLOT_BYTES as u64
}

/// What to write of an entry's slot, and where.
pub fn encode_slot(epoch: Epoch, seq: Seq, slot: &Slot) -> Piece {
    match slot {
        Slot::Intent(seen) => {
            Piece { offset: slot_offset(seq), bytes: encode_part(epoch, seq, RESULT, seen) }
        }
        Slot::Done { result, poisons } => {
            let value = (*result, *poisons);
            let bytes = encode_part(epoch, seq, SLOT_BYTES - RESULT, &value);
            Piece { offset: slot_offset(seq) + RESULT as u64, bytes }
        }
    }
}

/// Reads a whole record. A slot that was being written when the host was killed counts as what it
/// was before.
///
/// # Errors
///
/// [`RecordError`] if the header is not one.
pub fn recover(bytes: &[u8]) -> Result<Recovered, RecordError> {
    let (head, slots) = bytes.split_at_checked(HEADER_BYTES).ok_or(RecordError::Malformed)?;
    let mut copies = head.chunks_exact(HEADER_COPY_BYTES).filter_map(whole);
    let header = decode_header(copies.next().ok_or(RecordError::Malformed)?)?;
    let mut recovered = Recovered { header, done: BTreeMap::new(), intents: BTreeMap::new() };
    for (slot, bytes) in (0..SLOTS as u64).zip(slots.chunks(SLOT_BYTES)) {
        let belongs = |seq: &Seq| {
            seq.0 % SLOTS as u64 == slot
                && *seq >= header.first
                && seq.0 <= header.stable.0.saturating_add(SLOTS as u64)
        };
        let (intent, done) = bytes.split_at(RESULT.min(bytes.len()));
        if let Some((seq, seen)) = decode_part(header.epoch, intent)
            && belongs(&seq)
            && seq > header.stable
        {
            recovered.intents.insert(seq, seen);
        }
        if let Some((seq, result)) = decode_part(header.epoch, done)
            && belongs(&seq)
        {
            recovered.done.insert(seq, result);
        }
    }
    recovered.intents.retain(|seq, _| !recovered.done.contains_key(seq));
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
    let (epoch, bytes) = take::<16>(bytes)?;
    let (first, bytes) = take::<8>(bytes)?;
    let (stable, bytes) = take::<8>(bytes)?;
    let (fsid, bytes) = take::<8>(bytes)?;
    let (inode, _) = take::<8>(bytes)?;
    Ok(Header {
        session: SessionId(session),
        epoch: Epoch(epoch),
        first: Seq(u64::from_le_bytes(first)),
        stable: Seq(u64::from_le_bytes(stable)),
        fsid: u64::from_le_bytes(fsid),
        inode: u64::from_le_bytes(inode),
    })
}

/// A slot's intent or result in `space` bytes.
fn encode_part<T: Serialize>(epoch: Epoch, seq: Seq, space: usize, value: &T) -> Vec<u8> {
    // every value fits: the types hold no names and no data
    let value = codec::encode(value).unwrap_or_default();
    let mut rest = seq.0.to_le_bytes().to_vec();
    rest.extend(epoch.0);
    rest.extend(u8::try_from(value.len()).map_or([0], |len| [len]));
    rest.extend(value);
    rest.resize(space - 8, 0);
    let mut bytes = sum_of(&rest).to_le_bytes().to_vec();
    bytes.extend(rest);
    bytes
}

fn decode_part<T: DeserializeOwned>(epoch: Epoch, bytes: &[u8]) -> Option<(Seq, T)> {
    let bytes = whole(bytes)?;
    let (seq, bytes) = take::<8>(bytes).ok()?;
    let (of, bytes) = take::<16>(bytes).ok()?;
    let ([len], bytes) = take::<1>(bytes).ok()?;
    let value = codec::decode(bytes.get(..usize::from(len))?).ok()?;
    (Epoch(of) == epoch).then_some((Seq(u64::from_le_bytes(seq)), value))
}

/// What follows a sum, if it fits.
pub(super) fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, rest) = take::<8>(bytes).ok()?;
    (u64::from_le_bytes(sum) == sum_of(rest)).then_some(rest)
}

pub(super) fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), RecordError> {
    let (taken, rest) = bytes.split_first_chunk::<N>().ok_or(RecordError::Malformed)?;
    Ok((*taken, rest))
}

/// FNV-1a, 64 bits.
pub(super) fn sum_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
