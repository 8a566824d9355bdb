use p2pfs::identity::SecretKey;

use super::*;

#[test]
fn keys_survive_a_restart_privately() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let mut keys = Keys::load(dir.path()).unwrap();
    keys.put(record(1)).unwrap();
    keys.put(record(2)).unwrap();
    keys.seen(record(2).peer, 77, "192.0.2.1:9".into());
    keys.flush().unwrap();
    let again = Keys::load(dir.path()).unwrap();
    assert_eq!(again.records().len(), 2);
    let (one, two) = (&again.records()[0], &again.records()[1]);
    assert_eq!(one.pair_key.bytes(), record(1).pair_key.bytes());
    assert_eq!((one.last_seen, two.last_seen), (None, Some(77)));
    assert_eq!(one.device, record(1).device);
    let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_key_is_found_by_the_beginning_of_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut keys = Keys::load(dir.path()).unwrap();
    keys.put(record(1)).unwrap();
    keys.put(record(2)).unwrap();
    let id = record(2).id();
    for part in [id.as_str(), &id.as_str()[..4]] {
        let record = keys.set_state(part, State::Revoked).unwrap();
        assert_eq!(record.state, State::Revoked);
    }
    assert_eq!(keys.of(record(1).peer).unwrap().state, State::Unauthorised);
    for bad in ["", &id.as_str()[..3], "nobody", "zzzz"] {
        let failure = keys.set_state(bad, State::Revoked).unwrap_err();
        assert_eq!(failure.code, Code::KeyMissing);
    }
    keys.remove(id.as_str()).unwrap();
    assert!(keys.of(record(2).peer).is_none());
}

#[test]
fn a_damaged_file_is_reported_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    for bad in ["[[keys]]\npeer = 1", "colour = 1", "\0"] {
        fs::write(dir.path().join(FILE), bad).unwrap();
        assert!(Keys::load(dir.path()).is_err());
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), bad);
    }
}

#[test]
fn a_change_that_cannot_be_written_has_not_happened() {
    let dir = tempfile::tempdir().unwrap();
    let mut keys = Keys::load(dir.path()).unwrap();
    keys.put(record(1)).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    let id = record(1).id();
    keys.set_state(id.as_str(), State::Authorised).unwrap_err();
    assert_eq!(keys.records()[0].state, State::Unauthorised);
}

/// An unauthorised key.
pub(crate) fn record(seed: u8) -> Record {
    Record {
        peer: SecretKey::from_seed([seed; 32]).peer_id(),
        pair_key: PairKey::from_bytes([seed; 32]),
        name: format!("key {seed}"),
        state: State::Unauthorised,
        access: Access::ReadWrite,
        shares: Vec::new(),
        map: Map::Squash,
        portable: false,
        last_seen: None,
        last_from: None,
        kind: Kind::Stick,
        expires: None,
        recovery: None,
        recovered: false,
        device: DeviceId {
            serial: format!("KEY-000{seed}"),
            vendor: "46f4".into(),
            product: "0001".into(),
        },
    }
}
