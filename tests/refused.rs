//! Each way to be refused: its code, a next step, and nothing left behind (R7, R9, R12, R14).

use std::fs;
use std::path::Path;

use crate::world::outcome::tool;
use crate::world::{Home, Outcome, Side, World, need_mount};

#[test]
fn an_unauthorised_key_is_refused() {
    need_mount!();
    let home = Home::on_loopback();
    let key = home.world.pair("guest", &[]);

    refused(&home, &key.source("disk"), "key-unauthorised");
}

#[test]
fn a_revoked_key_is_refused() {
    need_mount!();
    let home = Home::on_loopback();

    home.world.hostd(&["keys", "revoke", &home.key.id]).ok();
    refused(&home, &home.key.source("disk"), "key-revoked");
}

#[test]
fn a_removed_key_finds_no_host() {
    need_mount!();
    let home = Home::on_loopback();

    // the server tells nobody more than that there is no match
    home.world.hostd(&["keys", "remove", &home.key.id]).ok();
    refused(&home, &home.key.source("disk"), "host-offline");
}

#[test]
fn a_key_of_another_host_finds_no_host() {
    need_mount!();
    let home = Home::on_loopback();
    let state = home.world.path("state").join("other");
    let dir = home.world.directory("stranger");

    let args =
        ["pair", "--key", dir.to_str().unwrap(), "--authorise", "--server", &home.server.ready];
    let pair = home.world.program_in(Side::Host, &state, &args);
    Outcome::of(pair, std::time::Duration::from_secs(20)).ok();
    refused(&home, &format!("{}:disk", dir.display()), "host-offline");
}

#[test]
fn a_server_with_another_key_is_refused() {
    need_mount!();
    let home = Home::on_loopback();
    let port = port_of(&home.server.ready).to_owned();
    let Home { world, server, host: _host, key, mountpoint, .. } = home;
    server.stop();

    let state = world.path("state").join("impostor");
    let listen = format!("127.0.0.1:{port}");
    let args = ["run", "--listen", &listen, "--stun", "127.0.0.1:0"];
    let _impostor = world.start_in(Side::Server, &state, &args);
    refused_in(&world, &mountpoint, &key.source("disk"), "server-changed");
}

#[test]
fn no_server_no_mount() {
    need_mount!();
    let home = Home::on_loopback();
    let Home { world, server, host: _host, key, mountpoint, .. } = home;
    server.stop();

    refused_in(&world, &mountpoint, &key.source("disk"), "server-unreachable");
}

#[test]
fn no_host_no_mount() {
    need_mount!();
    let home = Home::on_loopback();
    let Home { world, server: _server, host, key, mountpoint, .. } = home;
    host.stop();

    refused_in(&world, &mountpoint, &key.source("disk"), "host-offline");
}

#[test]
fn no_key_no_mount() {
    need_mount!();
    let home = Home::on_loopback();

    // R14, as a pulled key: it was there, and is not any more
    let pulled = home.world.path("pulled");
    fs::rename(&home.key.dir, &pulled).unwrap();
    refused(&home, &home.key.source("disk"), "key-missing");
    fs::rename(&pulled, &home.key.dir).unwrap();
    home.mount("timeout=20");
    home.unmount();
}

#[test]
fn a_directory_that_is_no_key_is_refused() {
    need_mount!();
    let home = Home::on_loopback();

    let empty = home.world.directory("empty");
    refused(&home, &format!("{}:disk", empty.display()), "key-missing");
}

#[test]
fn a_key_beside_another_device_is_refused() {
    need_mount!();
    let home = Home::on_loopback();

    // another stick, made by pairing it; then the first stick's folder is copied onto it
    let other = home.world.pair("other", &["--authorise"]);
    fs::remove_dir_all(other.dir.join("p2pfs")).unwrap();
    let folder = home.key.dir.join("p2pfs");
    tool("cp", &["-a", folder.to_str().unwrap(), other.dir.to_str().unwrap()]);
    refused(&home, &other.source("disk"), "key-copied");
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    need_mount!();
    let home = Home::on_loopback();
    let file = largest_file(&home.key.dir.join("p2pfs"));
    let good = fs::read(&file).unwrap();

    for position in [good.len() / 3, good.len() / 2, good.len() - 2] {
        let mut bad = good.clone();
        bad[position] ^= 0x04;
        fs::write(&file, &bad).unwrap();
        refused(&home, &home.key.source("disk"), "key-corrupt");
    }
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    refused(&home, &home.key.source("disk"), "key-corrupt");
}

#[test]
fn an_unknown_share_is_refused_with_the_list() {
    need_mount!();
    let world = World::on_loopback();
    let server = world.server("127.0.0.1:0");
    let shares = ["music", "photos"].map(|name| {
        let dir = world.directory(name);
        format!("{name}={}", dir.display())
    });
    let _host = world.host(&server.ready, &shares);
    let key = world.pair("key", &["--authorise"]);
    let mountpoint = world.directory("home");

    let dir = key.dir.to_str().unwrap().to_owned();
    for source in [key.source("films"), dir] {
        let outcome = refused_in(&world, &mountpoint, &source, "share-unknown");
        for name in ["music", "photos"] {
            assert!(outcome.stderr.contains(name), "{outcome:#?}");
        }
    }

    let guest = world.pair("guest", &["--authorise", "--shares", "music"]);
    refused_in(&world, &mountpoint, &guest.source("photos"), "share-denied");
}

#[test]
fn an_unknown_option_is_named() {
    let home = Home::on_loopback();

    let outcome = home.try_mount("timeout=5,frobnicate=7").refused(2, "usage");
    assert!(outcome.stderr.contains("frobnicate"), "{outcome:#?}");
    home.try_mount("cache=lots").refused(2, "usage");
    home.world.assert_nothing_left(&home.mountpoint);
}

#[test]
fn a_mount_point_that_cannot_be_one_is_refused() {
    need_mount!();
    let home = Home::on_loopback();

    let missing = home.world.path("missing");
    let source = home.key.source("disk");
    home.world.mount(&source, &missing, "timeout=5").refused(1, "mountpoint");
    assert!(!missing.exists());
    let file = home.world.path("file");
    fs::write(&file, "x").unwrap();
    home.world.mount(&source, &file, "timeout=5").refused(1, "mountpoint");
}

/// Mounting must fail with this code, within its time, and leave nothing.
#[track_caller]
fn refused(home: &Home, source: &str, code: &str) {
    refused_in(&home.world, &home.mountpoint, source, code);
}

#[track_caller]
fn refused_in(world: &World, mountpoint: &Path, source: &str, code: &str) -> Outcome {
    let before = files_outside_state(world);
    let outcome = world.mount(source, mountpoint, "timeout=5").refused(1, code);
    assert!(outcome.took.as_secs() < 10, "{outcome:#?}");
    world.assert_nothing_left(mountpoint);
    assert_eq!(files_outside_state(world), before, "a file was left");
    outcome
}

/// Every file of the test's directory but those of the daemons.
fn files_outside_state(world: &World) -> Vec<String> {
    let listing = tool("find", &[world.path("").to_str().unwrap()]);
    let state = world.path("state");
    let mut files: Vec<String> = listing
        .stdout
        .lines()
        .filter(|line| !Path::new(line).starts_with(&state))
        .map(str::to_owned)
        .collect();
    files.sort();
    files
}

fn largest_file(dir: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let file = files.max_by_key(|entry| entry.metadata().unwrap().len());
    file.unwrap().path()
}

/// The port in `p2pfs://HOST:PORT#FINGERPRINT`.
fn port_of(address: &str) -> &str {
    let authority = address.split('#').next().unwrap();
    authority.rsplit(':').next().unwrap()
}
