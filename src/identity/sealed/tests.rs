use super::*;

#[test]
fn a_sealed_key_opens_beside_its_device() {
    let opened = open(&file(), &device("KEY-0001"), None).unwrap();
    assert_eq!(opened.secret.seed(), &[1; 32]);
    assert_eq!(opened.pair_key.bytes(), &[2; 32]);
    assert_eq!(opened.host_name, "caf\u{e9} \"home\" \n");
    assert_eq!(opened.id, KeyId::of(opened.secret.peer_id()));
    assert_eq!(read_public(&file()).unwrap().servers, opened.servers);
}

#[test]
fn beside_another_device_it_is_a_copy() {
    let mut other = device("KEY-0001");
    other.product = "0002".into();
    for device in [device("KEY-0002"), other] {
        assert_eq!(open(&file(), &device, None).unwrap_err(), OpenError::Copied);
    }
}

#[test]
fn any_flipped_bit_is_damage_and_not_a_copy() {
    let file = file();
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 1 << (at % 8);
        let error = open(&bad, &device("KEY-0001"), None).unwrap_err();
        assert_eq!(error, OpenError::Corrupt, "byte {at}");
    }
    for len in 0..file.len() {
        let error = open(&file[..len], &device("KEY-0001"), None).unwrap_err();
        assert_eq!(error, OpenError::Corrupt);
    }
}

#[test]
fn a_file_never_shows_its_secrets() {
    let text = String::from_utf8(file()).unwrap();
    assert!(!text.contains(&URL_SAFE_NO_PAD.encode([1; 32])));
    assert!(text.len() < 1024);
}

#[test]
fn weak_serial_numbers_are_told() {
    for weak in ["", " ", "1234", "000000000000", "0123456789", "1234567890AB", "654321"] {
        assert!(serial_weakness(weak).is_some(), "{weak}");
    }
    for strong in ["KEY-0001", "0330622110004158", "AA00000000000489"] {
        assert_eq!(serial_weakness(strong), None);
    }
}

fn device(serial: &str) -> DeviceId {
    DeviceId { serial: serial.into(), vendor: "46f4".into(), product: "0001".into() }
}

fn file() -> Vec<u8> {
    seal(&contents(), &device("KEY-0001"), [9; 32], None)
}

fn contents() -> KeyContents {
    KeyContents { host_name: "caf\u{e9} \"home\" \n".into(), ..KeyContents::example() }
}

#[test]
fn a_passphrase_is_wanted_and_told_from_the_device() {
    let right = Passphrase::from_text("correct horse").unwrap();
    let wrong = Passphrase::from_text("correct house").unwrap();
    let file = seal(&contents(), &device("KEY-0001"), [9; 32], Some(&right));
    let open = |serial: &str, passphrase| open(&file, &device(serial), passphrase);
    assert_eq!(open("KEY-0001", Some(&right)).unwrap().secret.seed(), &[1; 32]);
    assert_eq!(open("KEY-0001", None).unwrap_err(), OpenError::PassphraseMissing);
    assert_eq!(open("KEY-0001", Some(&wrong)).unwrap_err(), OpenError::PassphraseWrong);
    assert_eq!(open("KEY-0002", Some(&right)).unwrap_err(), OpenError::Copied);
    assert!(read_public(&file).unwrap().passphrase.is_some());
}

#[test]
fn what_a_key_shows_is_kept_under_the_seal() {
    let mut contents = contents();
    contents.kind = Kind::Mac;
    contents.shows = Some(device("ANOTHER-ONE"));
    let file = seal(&contents, &device("KEY-0001"), [9; 32], None);
    let opened = open(&file, &device("KEY-0001"), None).unwrap();
    assert_eq!((opened.kind, opened.shows), (Kind::Mac, contents.shows));
    assert!(!String::from_utf8(file).unwrap().contains("ANOTHER-ONE"));
}
