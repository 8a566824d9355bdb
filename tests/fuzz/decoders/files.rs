use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use p2pfs::id::SessionId;
use p2pfs::identity::SecretKey;
use p2pfs::identity::wrapping::{FileKey, NotWrapped, Subject, Wraps};
use p2pfs::limits::{KEYS_MAX, LABEL_BYTES_MAX, SHARES_MAX};
use p2pfs::proto::redo::{opens, record};
use p2pfs_hostd::backup::{Contents, Sealed};
use p2pfs_hostd::config::Config;
use p2pfs_hostd::keys::Keys;
use p2pfs_hostd::record::clients;
use p2pfs_hostd::{expires, owner};
use p2pfs_mountd::envelope::Envelope;
use p2pfs_mountd::known_hosts::KnownHosts;
use p2pfs_mountd::options::MountOptions;
use p2pfs_mountd::spec::Spec;

/// The file, and what it holds when it is opened.
pub(super) fn backup(bytes: &[u8]) {
    Sealed::parse(bytes);
    Contents::parse(&String::from_utf8_lossy(bytes));
}

pub(super) fn config(bytes: &[u8]) {
    if let Ok(config) = Config::parse(&String::from_utf8_lossy(bytes)) {
        assert!(config.shares.len() <= SHARES_MAX);
        assert!(config.shares.values().all(|share| share.path.is_absolute()));
    }
}

pub(super) fn keys(bytes: &[u8]) {
    if let Ok(records) = Keys::parse(&String::from_utf8_lossy(bytes)) {
        assert!(records.len() <= KEYS_MAX);
    }
}

/// What comes through the owner's socket, and how long a key counts.
pub(super) fn request(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice(bytes) {
        let _ = owner::parse(request);
    }
    if let Ok(expires::Lifetime::Until(at)) = String::from_utf8_lossy(bytes).parse() {
        expires::to_text(at);
    }
}

/// The file, and one in which every sum is right.
pub(super) fn record(bytes: &[u8]) {
    let _ = record::recover(bytes);
    // half a header, its copy, and slots with an intent and a result each
    let copy = record::HEADER_BYTES / 2;
    let mut file = bytes.to_vec();
    file.resize(file.len().max(record::HEADER_BYTES), 0);
    let (head, slots) = file.split_at_mut(record::HEADER_BYTES);
    head.chunks_exact_mut(copy).for_each(sign);
    for slot in slots.chunks_mut(record::SLOT_BYTES) {
        let (intent, result) = slot.split_at_mut(record::RESULT.min(slot.len()));
        sign(intent);
        sign(result);
    }
    if let Ok(recovered) = record::recover(&file) {
        assert!(recovered.done.len() + recovered.intents.len() <= 2 * record::SLOTS);
        let header = record::encode_header(&recovered.header);
        let again = record::recover(&header).expect("our own header");
        assert_eq!(again.header, recovered.header);
    }
}

pub(super) fn clients(bytes: &[u8]) {
    if let Some(client) = clients::parse(&String::from_utf8_lossy(bytes)) {
        assert!(client.client.len() <= LABEL_BYTES_MAX && client.share.len() <= LABEL_BYTES_MAX);
    }
}

/// The file, and one in which every sum is right.
pub(super) fn opens(bytes: &[u8]) {
    let _ = opens::record::recover(bytes);
    let mut file = bytes.to_vec();
    file.resize(file.len().max(opens::record::HEADER_BYTES), 0);
    let (head, lines) = file.split_at_mut(opens::record::HEADER_BYTES);
    sign(head);
    lines.chunks_mut(opens::record::LINE_BYTES).for_each(sign);
    if let Ok(recovered) = opens::record::recover(&file) {
        assert!(recovered.opens.len() <= file.len() / opens::record::LINE_BYTES);
    }
}

/// The file, and chunks (a byte says how long each is) that are sealed with the right key.
pub(super) fn sealed(bytes: &[u8]) {
    let _ = p2pfs_mountd::sealed::parse(bytes, unwrap);
    let file = p2pfs_mountd::sealed::of_chunks(envelope(), &chunks(bytes));
    if let Ok(opened) = p2pfs_mountd::sealed::parse(&file, unwrap) {
        assert!(opened.away.entries.len() < bytes.len());
    }
}

/// The file, and chunks that are sealed with the right key: a head, and those that the bytes hold.
pub(super) fn journal(bytes: &[u8]) {
    let _ = p2pfs_mountd::journal::read(bytes, unwrap);
    let chunks = [vec![&[0; 49][..]], chunks(bytes)].concat();
    let file = p2pfs_mountd::journal::of_chunks(envelope(), chunks);
    if let Ok((.., away)) = p2pfs_mountd::journal::read(&*file, unwrap) {
        assert!(away.entries.len() <= bytes.len());
    }
}

/// A byte says how long each is.
fn chunks(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut chunks, mut rest) = (Vec::new(), bytes);
    while let Some((length, behind)) = rest.split_first() {
        let (chunk, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        chunks.push(chunk);
        rest = behind;
    }
    chunks
}

fn secret() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn envelope() -> &'static Envelope {
    static ENVELOPE: OnceLock<Envelope> = OnceLock::new();
    ENVELOPE.get_or_init(|| {
        let (session, share) = (SessionId([3; 16]), "disk".to_owned());
        let subject = Subject { session, share, identity: false };
        Envelope::new(&secret(), secret().peer_id(), &subject).expect("a good key")
    })
}

fn unwrap(wraps: &Wraps) -> Result<FileKey, NotWrapped> {
    wraps.open(&secret())
}

/// The client's files and its command line.
pub(super) fn client(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = KnownHosts::parse(&text);
    let _ = MountOptions::parse(&text, false);
    let _ = MountOptions::parse(&text, true);
    let _ = Spec::parse(OsStr::from_bytes(bytes));
}

/// Puts the sum that the records have in front: FNV-1a.
fn sign(part: &mut [u8]) {
    if let Some((sum, rest)) = part.split_first_chunk_mut::<8>() {
        let value = rest.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        *sum = value.to_le_bytes();
    }
}
