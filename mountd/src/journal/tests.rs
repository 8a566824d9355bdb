use p2pfs::id::{NodeId, Seq};
use p2pfs::proto::redo::log::{Log, Output};
use p2pfs::wire::log::{Change, Mutation};

use super::*;
use crate::envelope::is_damage;

const SESSION: SessionId = SessionId([5; 16]);
/// More than a piece, and not a multiple of it.
const BYTES: usize = 3 * PIECE_BYTES + 7;

fn secret() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn host() -> PeerId {
    SecretKey::from_seed([9; 32]).peer_id()
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
        let dir = JournalDir { dir: folder(state), key: key(), secret: secret(), host: host() };
        let (mut journal, mut log) = (dir.open(SESSION), Log::new());
        log.begin_notes();
        assert!(journal.granted("disk", false));
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

fn unwrap(wraps: &Wraps) -> Result<FileKey, NotWrapped> {
    wraps.open(&secret())
}

fn first_bytes(away: &PutAway) -> Vec<u8> {
    assert!(away.entries.iter().all(|(_, body)| body.len() == BYTES));
    away.entries.iter().map(|(_, body)| body[0]).collect()
}

#[test]
fn what_was_noted_is_read_as_far_as_it_is_whole() {
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    let path = folder(state.path()).join(format!("{}-{}", key(), SESSION.digits()));
    let ends = [1, 2, 3].map(|byte| {
        noting.write(byte);
        fs::metadata(&path).unwrap().len() as usize
    });
    let file = fs::read(&path).unwrap();
    let (_, head, away) = read(&*file, unwrap).unwrap();
    assert_eq!(head, Head { session: SESSION, host: host(), share: "disk".to_owned() });
    assert_eq!((first_bytes(&away), away.kept.last), (vec![1, 2, 3], Seq(3)));
    assert!(!file.windows(64).any(|window| window == [1; 64]), "in clear text");
    for (cut, whole) in [(ends[1], 2), (ends[2] - 1, 2), (ends[1] + 1, 2), (ends[0], 1)] {
        let (.., away) = read(&file[..cut], unwrap).unwrap();
        assert_eq!(away.entries.len(), whole, "cut at {cut}");
    }
    let mut flipped = file.clone();
    flipped[ends[0] + 100] ^= 1;
    assert_eq!(read(&*flipped, unwrap).unwrap().2.entries.len(), 1);
    let other = SecretKey::from_seed([2; 32]);
    assert!(is_damage(&read(&*file, |wraps| wraps.open(&other)).unwrap_err()));
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
    let path = folder(state.path()).join(format!("{}-{}", key(), SESSION.digits()));
    let (.., away) = read(&*fs::read(&path).unwrap(), unwrap).unwrap();
    assert_eq!(first_bytes(&away), (1..=10).collect::<Vec<_>>());
    noting.journal.begin(Log::new().notes_anew()).unwrap();
    let (.., away) = read(&*fs::read(&path).unwrap(), unwrap).unwrap();
    assert_eq!(away.entries.len(), 0);
}

#[test]
fn only_a_journal_whose_process_is_gone_is_taken() {
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    noting.write(1);
    noting.journal.begin(noting.log.notes_anew()).unwrap();
    let paths = all(state.path());
    assert_eq!(paths.len(), 1);
    assert!(take(&paths[0], unwrap).unwrap().is_none(), "it is in use");
    drop(noting);
    let other = SecretKey::from_seed([2; 32]);
    assert!(is_damage(&take(&paths[0], |wraps| wraps.open(&other)).err().unwrap()));
    let left = take(&paths[0], unwrap).unwrap().unwrap();
    assert!(!left.is_empty());
    drop(left);
    let mut again = Noting::begin(state.path());
    again.journal.forget();
    assert_eq!(fs::read_dir(folder(state.path())).unwrap().count(), 0);
    assert!(take(&paths[0], unwrap).unwrap().is_none(), "somebody was faster");
}

/// What the disk does not tell now it may tell later.
#[test]
fn a_journal_that_the_disk_does_not_tell_is_not_taken_for_damaged() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(rustix::io::Errno::IO.into()),
                some => Ok(some),
            }
        }
    }
    let state = tempfile::tempdir().unwrap();
    let mut noting = Noting::begin(state.path());
    noting.write(1);
    let file = fs::read(&all(state.path())[0]).unwrap();
    for cut in [10, 200, file.len() - BYTES / 2, file.len()] {
        let error = read(Failing(&file[..cut]), unwrap).unwrap_err();
        assert!(!is_damage(&error), "cut at {cut}: {error}");
    }
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
