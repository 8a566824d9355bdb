//! Whose sessions these are: a file for each that may make changes, beside its record, so that
//! others can be told of a client that is away with more, and other keys go on with it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use p2pfs::id::SessionId;
use p2pfs::identity::PeerId;
use p2pfs::limits::LABEL_BYTES_MAX;
use p2pfs::net::serve::AbsentClient;
use p2pfs::wire::call::Backlog;
use serde::{Deserialize, Serialize};

use super::{Record, Records, UNNAMED, ends, lock, opens};

pub(super) const EXTENSION: &str = "client";
/// The longest file, bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// What a file says.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// All 32 digits of it.
    session: String,
    key: String,
    client: String,
    share: String,
    identity: bool,
    changed: bool,
    /// Seconds since 1970.
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

impl Records {
    /// Those that are noted, whether they are connected or not. One whose file cannot be read is
    /// left out.
    pub fn clients(&self) -> Vec<AbsentClient> {
        let files = self.files().unwrap_or_default();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).ok()?;
            parse(&text)
        };
        files
            .into_iter()
            .filter(|(_, path)| ends(path, EXTENSION))
            .filter_map(|(_, path)| read(path))
            .collect()
    }

    /// The one of a session, if it is noted.
    pub fn client(&self, session: SessionId) -> Option<AbsentClient> {
        let path = self.dir.join(session.digits()).with_extension(EXTENSION);
        parse(&fs::read_to_string(path).ok()?)
    }

    /// A session is over that nobody serves: nothing of it is needed any more.
    pub fn forget(&self, session: SessionId) {
        // held until they are gone: nobody begins to serve it meanwhile
        let live = lock(&self.live);
        if live.of(&session) == 0 {
            let path = self.dir.join(session.digits());
            for extension in [super::EXTENSION, opens::EXTENSION, EXTENSION] {
                let _ = fs::remove_file(path.with_extension(extension));
            }
        }
    }
}

impl Record {
    /// Notes whose session it is, until it ends.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn note_client(&self, client: &AbsentClient) -> io::Result<()> {
        let ended = lock(&self.ended);
        if *ended {
            return Ok(());
        }
        let path = self.path().with_extension(EXTENSION);
        if !path.exists() {
            self.records.make_room(EXTENSION)?;
        }
        let line = Line {
            session: client.session.digits(),
            key: client.peer.to_text(),
            client: client.client.clone(),
            share: client.share.clone(),
            identity: client.identity,
            changed: client.has_changed,
            since: client.since,
            entries: client.keeps.map(|keeps| keeps.entries),
            bytes: client.keeps.map(|keeps| keeps.bytes),
        };
        let text = toml::to_string(&line).map_err(io::Error::other)?;
        // as for records: it is there for a process that is killed
        let unnamed = path.with_extension(format!("{EXTENSION}.{UNNAMED}"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&unnamed)?.write_all(text.as_bytes())?;
        fs::rename(&unnamed, &path)
    }
}

/// Reads what a file says.
pub fn parse(text: &str) -> Option<AbsentClient> {
    let Line { session, key, client, share, identity, changed, since, entries, bytes } =
        toml::from_str(text).ok().filter(|_| text.len() as u64 <= FILE_BYTES_MAX)?;
    let is_bounded = [&client, &share].iter().all(|text| text.len() <= LABEL_BYTES_MAX);
    is_bounded.then_some(AbsentClient {
        session: SessionId::from_digits(&session)?,
        peer: PeerId::from_text(&key)?,
        client,
        share,
        identity,
        has_changed: changed,
        since,
        keeps: entries.zip(bytes).map(|(entries, bytes)| Backlog { entries, bytes }),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DISK, SESSION};
    use super::*;

    #[test]
    fn whose_session_it_is_is_known_until_it_ends() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let mut client = AbsentClient {
            session: SESSION,
            peer: PeerId([7; 32]),
            client: "laptop \"one\"".into(),
            share: "disk".into(),
            identity: false,
            has_changed: true,
            since: 1_700_000_000,
            keeps: None,
        };
        let record = records.of(SESSION, DISK);
        record.note_client(&client).unwrap();
        assert_eq!(records.clients(), [client.clone()]);
        client.keeps = Some(Backlog { entries: 3, bytes: 1 << 20 });
        record.note_client(&client).unwrap();
        assert_eq!(Records::open(state.path()).unwrap().clients(), [client.clone()]);
        record.end();
        assert_eq!(records.clients(), []);
        record.note_client(&client).unwrap();
        assert_eq!(records.clients(), [], "it came late");
    }

    #[test]
    fn what_nobody_serves_is_forgotten_when_its_client_says_so() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let client = AbsentClient {
            session: SESSION,
            peer: PeerId([7; 32]),
            client: "laptop".into(),
            share: "disk".into(),
            identity: true,
            has_changed: false,
            since: 5,
            keeps: None,
        };
        records.of(SESSION, DISK).note_client(&client).unwrap();
        records.attach(SESSION);
        records.forget(SESSION);
        assert_eq!(records.clients().len(), 1);
        records.detach(SESSION);
        records.forget(SESSION);
        assert_eq!(records.clients(), []);
    }
}
