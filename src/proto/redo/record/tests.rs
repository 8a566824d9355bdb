//! What a killed host reads.

use super::*;
use crate::id::NodeId;
use crate::wire::call::{Attr, Entry, Time};
use crate::wire::errno::Errno;
use crate::wire::log::Reason;

const EPOCH: Epoch = Epoch([7; 16]);
const NODE: NodeId = NodeId { ino: u64::MAX, generation: u64::MAX };

fn header(stable: u64) -> Header {
    let (session, first, stable) = (SessionId([5; 16]), Seq(1), Seq(stable));
    Header { session, epoch: EPOCH, first, stable, fsid: 0x0102, inode: 2 }
}

fn seen() -> Seen {
    Seen { name: Some(NODE), new_name: Some(NODE), made: Some(NODE), size: Some(u64::MAX) }
}

fn attr() -> Attr {
    let time = Time { seconds: i64::MIN, nanos: u32::MAX };
    Attr {
        size: u64::MAX,
        blocks: u64::MAX,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        mode: u32::MAX,
        nlink: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        rdev: u64::MAX,
        blksize: u32::MAX,
    }
}

fn done(result: Result<Outcome, Refused>) -> Slot {
    Slot::Done { result, poisons: true }
}

/// A record as the system keeps it.
struct File(Vec<u8>);

impl File {
    fn new(header: &Header) -> Self {
        Self(encode_header(header).to_vec())
    }

    fn put(&mut self, seq: u64, slot: &Slot) {
        self.write(&encode_slot(EPOCH, Seq(seq), slot));
    }

    fn write(&mut self, piece: &Piece) {
        let begin = usize::try_from(piece.offset).unwrap();
        let end = begin + piece.bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[begin..end].copy_from_slice(&piece.bytes);
    }

    fn recover(&self) -> Recovered {
        recover(&self.0).unwrap()
    }
}

fn every_result() -> Vec<Result<Outcome, Refused>> {
    let refused = |reason| Err(Refused { errno: Errno::EEXIST, reason });
    vec![
        Ok(Outcome::Done),
        Ok(Outcome::Entry(Entry { node: NODE, attr: attr() })),
        Ok(Outcome::Attr(attr())),
        Ok(Outcome::Removed { node: NODE, linked: true }),
        Ok(Outcome::Renamed { node: NODE, replaced: Some(NODE) }),
        Ok(Outcome::Appended { offset: u64::MAX, attr: attr() }),
        Ok(Outcome::Copied { len: u64::MAX, attr: attr() }),
        refused(Reason::System),
        refused(Reason::Conflict),
        refused(Reason::SetAside { because: Seq(u64::MAX) }),
        refused(Reason::Unknown),
    ]
}

#[test]
fn every_result_and_the_largest_intent_come_back() {
    let mut file = File::new(&header(0));
    let results = every_result();
    for (seq, result) in (1..).zip(&results) {
        file.put(seq, &done(*result));
    }
    file.put(100, &Slot::Intent(seen()));
    let recovered = file.recover();
    assert_eq!(recovered.header, header(0));
    let expected = (1..).zip(results).map(|(seq, result)| (Seq(seq), (result, true)));
    assert_eq!(recovered.done, expected.collect());
    assert_eq!(recovered.intents, BTreeMap::from([(Seq(100), seen())]));
}

#[test]
fn pieces_stay_inside_their_part_of_the_slot() {
    for seq in [1, 2, 16_383, 16_384, u64::MAX] {
        let begin = slot_offset(Seq(seq));
        let intent = encode_slot(EPOCH, Seq(seq), &Slot::Intent(seen()));
        assert_eq!((intent.offset, intent.bytes.len()), (begin, RESULT));
        for result in every_result() {
            let piece = encode_slot(EPOCH, Seq(seq), &done(result));
            assert_eq!(piece.offset, begin + RESULT as u64);
            assert_eq!(piece.bytes.len(), SLOT_BYTES - RESULT);
        }
        assert!(begin + SLOT_BYTES as u64 <= (HEADER_BYTES + SLOTS * SLOT_BYTES) as u64);
    }
}

#[test]
fn a_result_that_is_cut_short_leaves_the_intent() {
    let mut before = File::new(&header(0));
    before.put(3, &Slot::Intent(seen()));
    let piece = encode_slot(EPOCH, Seq(3), &done(every_result()[1]));
    for len in 0..piece.bytes.len() {
        let mut file = File(before.0.clone());
        // as long as the whole, with zeros where nothing was written yet
        file.write(&Piece { offset: piece.offset, bytes: vec![0; piece.bytes.len()] });
        file.write(&Piece { offset: piece.offset, bytes: piece.bytes[..len].to_vec() });
        let recovered = file.recover();
        let whole = piece.bytes[len..].iter().all(|byte| *byte == 0);
        assert_eq!(recovered.intents.is_empty(), whole, "{len}");
        assert_eq!(recovered.done.is_empty(), !whole, "{len}");
    }
}

#[test]
fn an_intent_that_is_cut_short_leaves_the_result_of_the_ring_s_last_round() {
    let mut before = File::new(&header(SLOTS as u64));
    before.put(3, &done(Ok(Outcome::Done)));
    let piece = encode_slot(EPOCH, Seq(3 + SLOTS as u64), &Slot::Intent(seen()));
    for len in 0..64 {
        let mut file = File(before.0.clone());
        file.write(&Piece { offset: piece.offset, bytes: piece.bytes[..len].to_vec() });
        let recovered = file.recover();
        assert_eq!(recovered.done.len(), 1);
        assert!(recovered.intents.is_empty(), "{len}");
    }
}

#[test]
fn the_number_tells_which_round_of_the_ring_a_slot_is_of() {
    let round = SLOTS as u64;
    let mut file = File::new(&header(0));
    file.put(3, &done(Ok(Outcome::Done)));
    file.write(&Piece { offset: 0, bytes: encode_header(&header(round)).to_vec() });
    file.put(round + 3, &Slot::Intent(seen()));
    let recovered = file.recover();
    assert_eq!(recovered.done.keys().collect::<Vec<_>>(), [&Seq(3)]);
    assert_eq!(recovered.intents.keys().collect::<Vec<_>>(), [&Seq(round + 3)]);
    file.put(round + 3, &done(Ok(Outcome::Done)));
    let recovered = file.recover();
    assert_eq!(recovered.done.keys().collect::<Vec<_>>(), [&Seq(round + 3)]);
    assert!(recovered.intents.is_empty());
}

#[test]
fn slots_of_another_epoch_or_out_of_their_place_do_not_count() {
    let mut file = File::new(&header(10));
    file.write(&encode_slot(Epoch([8; 16]), Seq(11), &Slot::Intent(seen())));
    file.write(&encode_slot(Epoch([8; 16]), Seq(12), &done(Ok(Outcome::Done))));
    let elsewhere = encode_slot(EPOCH, Seq(13), &done(Ok(Outcome::Done))).bytes;
    file.write(&Piece { offset: slot_offset(Seq(14)) + RESULT as u64, bytes: elsewhere });
    file.put(11 + 2 * SLOTS as u64, &done(Ok(Outcome::Done)));
    let recovered = file.recover();
    assert!(recovered.done.is_empty());
    assert!(recovered.intents.is_empty());
}

#[test]
fn a_header_that_is_cut_short_is_the_old_one_or_the_new_one() {
    let (old, new) = (encode_header(&header(1)), encode_header(&header(0x0201)));
    for len in 0..=HEADER_BYTES {
        let torn = [&new[..len], &old[len..]].concat();
        let read = recover(&torn).unwrap().header;
        assert!(read == header(1) || read == header(0x0201), "{len}");
    }
}

#[test]
fn what_is_no_record_is_refused() {
    let bytes = encode_header(&header(0));
    assert_eq!(recover(&[]), Err(RecordError::Malformed));
    assert_eq!(recover(&bytes[..HEADER_BYTES - 1]), Err(RecordError::Malformed));
    assert_eq!(recover(&[0; HEADER_BYTES]), Err(RecordError::Malformed));
    let mut other = bytes;
    for half in other.chunks_exact_mut(HEADER_COPY_BYTES) {
        half[16] = 9;
        let sum = sum_of(&half[8..]).to_le_bytes();
        half[..8].copy_from_slice(&sum);
    }
    assert_eq!(recover(&other), Err(RecordError::Version));
}

#[test]
fn any_bytes_behind_a_header_are_read_without_harm() {
    let mut bytes = encode_header(&header(0)).to_vec();
    let mut state = 1_u64;
    for _ in 0..3 * SLOTS * SLOT_BYTES / 2 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.push((state >> 56) as u8);
    }
    let recovered = recover(&bytes).unwrap();
    assert!(recovered.done.is_empty() && recovered.intents.is_empty());
}
