//! What the server sees of what it carries (R10, R19).

use std::time::{Duration, Instant};
use std::{env, fs};

use super::capture::{Capture, bytes, holds};
use super::pair::{at_the_server, relayed};
use crate::world::lab::{Kind, Lab, need_lab};
use crate::world::{Home, eventually, need_mount};

/// What is relayed where nobody says otherwise (`P2PFS_RELAYED_MB`), millions of bytes.
const FILE_MB: usize = 4;
const NAME: &str = "a-name-that-nobody-else-would-choose";
const CONTENT: &[u8] = b"what the server must not be able to read, again and again. ";
/// What a path that is kept warm may cost, bytes a second.
const WARM_BYTES_PER_S: f64 = 200.0;

/// A capture at the server while data is relayed holds neither a known name nor known content.
#[test]
fn the_server_reads_nothing_of_what_it_relays() {
    need_mount!();
    need_lab!();
    let home = Home::in_lab(Lab::new(Kind::Sym, Kind::Sym));
    let wanted = env::var("P2PFS_RELAYED_MB").ok().map(|text| text.parse().unwrap());
    let file_bytes = wanted.unwrap_or(FILE_MB) * 1_000_000;
    let content: Vec<u8> = CONTENT.iter().copied().cycle().take(file_bytes).collect();
    fs::write(home.disk.join(NAME), &content).unwrap();
    at_the_server(&home);
    let capture = Capture::start(home.world.lab(), "server");
    home.mount("timeout=20,relay=first");
    let before = relayed(&home);
    assert!(fs::read(home.mountpoint.join(NAME)).unwrap() == content, "another file came");
    let carried = relayed(&home) - before;
    let frames = capture.stop();
    assert!(carried >= file_bytes as u64, "only {carried} bytes were relayed");
    let seen = bytes(&frames);
    assert!(seen >= file_bytes, "only {seen} bytes were captured");
    // the capture sees what is not hidden
    assert!(holds(&frames, &[0x21, 0x12, 0xa4, 0x42]), "not even STUN in {} frames", frames.len());
    assert!(!holds(&frames, NAME.as_bytes()), "the server saw the name");
    assert!(!holds(&frames, &CONTENT[..20]), "the server saw the content");
    super::say(&format!("{carried} bytes relayed, {seen} captured: no name, no content"));
    home.unmount();
}

/// After the move to the direct path the relay is kept warm, no more.
#[test]
fn a_relay_that_is_not_used_costs_next_to_nothing() {
    need_mount!();
    need_lab!();
    let home = Home::in_lab(Lab::new(Kind::Port, Kind::Port));
    home.mount("timeout=20");
    eventually("the direct path", Duration::from_secs(15), || {
        home.world.mount_status()["path"]["kind"] == "udp"
    });
    let (before, start) = (relayed(&home), Instant::now());
    while start.elapsed() < Duration::from_secs(10) {
        fs::write(home.mountpoint.join("written"), vec![7; 1 << 20]).unwrap();
    }
    home.sync();
    let rate = (relayed(&home) - before) as f64 / start.elapsed().as_secs_f64();
    super::say(&format!("relayed beside the direct path: {rate:.0} bytes a second"));
    assert!(rate <= WARM_BYTES_PER_S, "{rate} bytes a second are relayed");
    home.unmount();
}
