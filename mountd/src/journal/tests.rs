use p2pfs::id::{NodeId, Seq};
use p2pfs::proto::redo::log::{Log, Output};
use p2pfs::wire::log::{Change, Mutation};

use super::*;

const HOST: PeerId = PeerId([9; 32]);
const SESSION: SessionId = SessionId([5; 16]);
/// More than a piece, and not a multiple of it.
const BYTES: usize = 3 * PIECE_BYTES + 7;

fn secret() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn key() -> KeyId {
    KeyId::of(secret().peer_id())
}

/// A journal in a state directory, and the log that it is of.
struct Noting {
    journal: Box<dyn Journal>,
    log: Log<Bytes>,
}

impl Noting {
    fn begin(state: &Path) -> Self {
        fs::create_dir_all(folder(state)).unwrap();
        let dir = JournalDir { dir: folder(state), key: key(), secret: secret(), host: HOST };
        let (mut journal, mut log) = (dir.open(SESSION), Log::new());
        log.begin_notes();
        assert!(journal.granted("disk"));
        journal.begin(log.notes_anew()).unwrap();
        Self { journal, log }
    }

    fn write(&mut self, byte: u8) {
        let (node, body) = (NodeId::ROOT.into(), Bytes::from(vec![byte; BYTES]));
        let change = Change::new(Mutation::Write { node, handle: None, offset: 0 });
        self.log.append(change, body, BYTES, Promise::Accepted);
        while let Some(output) = self.log.poll_output() {
            if let Output::Note { note, body } = output {
                self.journal.note(&note, &body).unwrap();
            }
        }
        self.journal.flush().unwrap();
    }
}

fn first_bytes(away: &PutAway) -> Vec<u8> {
    assert!(away.entries.iter().all(|(_, body)| body.len() == BYTES));
    away.entries.iter().map(|(_, body)| body[0]).collect()
}

#[test]
fn what_was_noted_is_read_as_far_as_it_is_whole() {
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    let path = folder(state.path()).join(format!("{}-{SESSION}", key()));
    let ends = [1, 2, 3].map(|byte| {
        noting.write(byte);
        fs::metadata(&path).unwrap().len() as usize
    });
    let file = fs::read(&path).unwrap();
    let (head, away) = read(&*file, &secret()).unwrap();
    assert_eq!(head, Head { session: SESSION, host: HOST, share: Some("disk".to_owned()) });
    assert_eq!((first_bytes(&away), away.kept.last), (vec![1, 2, 3], Seq(3)));
    assert!(!file.windows(64).any(|window| window == [1; 64]), "in clear text");
    for (cut, whole) in [(ends[1], 2), (ends[2] - 1, 2), (ends[1] + 1, 2), (ends[0], 1)] {
        let (_, away) = read(&file[..cut], &secret()).unwrap();
        assert_eq!(away.entries.len(), whole, "cut at {cut}");
    }
    let mut flipped = file.clone();
    flipped[ends[0] + 100] ^= 1;
    assert_eq!(read(&*flipped, &secret()).unwrap().1.entries.len(), 1);
    read(&*file, &SecretKey::from_seed([2; 32])).unwrap_err();
}

#[test]
fn a_journal_that_begins_anew_holds_what_is_needed_and_nothing_else() {
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    for byte in 1..=9 {
        noting.write(byte);
        if byte % 3 == 0 {
            noting.journal.begin(noting.log.notes_anew()).unwrap();
        }
    }
    noting.write(10);
    let path = folder(state.path()).join(format!("{}-{SESSION}", key()));
    let (_, away) = read(&*fs::read(&path).unwrap(), &secret()).unwrap();
    assert_eq!(first_bytes(&away), (1..=10).collect::<Vec<_>>());
    noting.journal.begin(Log::new().notes_anew()).unwrap();
    let (_, away) = read(&*fs::read(&path).unwrap(), &secret()).unwrap();
    assert_eq!(away.entries.len(), 0);
}

#[test]
fn only_a_journal_whose_process_is_gone_is_taken() {
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    noting.write(1);
    noting.journal.begin(noting.log.notes_anew()).unwrap();
    assert_eq!(left(state.path(), &key(), &secret()).count(), 0, "it is in use");
    drop(noting);
    let other = SecretKey::from_seed([2; 32]);
    assert_eq!(left(state.path(), &KeyId::of(other.peer_id()), &other).count(), 0);
    let left: Vec<Left> = left(state.path(), &key(), &secret()).collect();
    assert_eq!((left.len(), left[0].is_empty()), (1, false));
    let mut again = Noting::begin(state.path());
    again.journal.forget();
    assert_eq!(fs::read_dir(folder(state.path())).unwrap().count(), 0);
}

#[test]
fn a_journal_begins_anew_the_earlier_the_less_of_it_is_needed() {
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    assert!(!noting.journal.is_long((0, 0)));
    for byte in 0..=(EMPTY_BYTES_MAX as usize / BYTES) as u8 {
        noting.write(byte);
    }
    assert!(noting.journal.is_long((0, 0)) && noting.journal.is_long((1, 0)));
    assert!(!noting.journal.is_long((1, BYTES)));
    noting.journal.begin(noting.log.notes_anew()).unwrap();
    assert!(!noting.journal.is_long((1, 0)), "all of it is needed, whatever it counts as");
    assert!(noting.journal.is_long((0, 0)));
}
