//! What a host's owner decides, and what the host remembers (R7, R12, R23).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::outcome::wait;
use crate::world::{Home, Outcome, Side, World, eventually, is_mounted, need_mount};

#[test]
fn a_key_is_recorded_first_and_authorised_later() {
    let home = Home::on_loopback();

    let key = home.world.pair("guest", &[]);
    assert_eq!(key.state, "unauthorised");
    assert_eq!(recorded(&home.world, &key.id)["state"], "unauthorised");
    home.world.hostd(&["keys", "authorise", &key.id]).ok();
    assert_eq!(recorded(&home.world, &key.id)["state"], "authorised");
    home.world.hostd(&["keys", "revoke", &key.id]).ok();
    assert_eq!(recorded(&home.world, &key.id)["state"], "revoked");
    home.world.hostd(&["keys", "authorise", &key.id]).ok();
    assert_eq!(recorded(&home.world, &key.id)["state"], "authorised");
    home.world.hostd(&["keys", "remove", &key.id]).ok();
    assert!(keys(&home.world).iter().all(|known| known["id"] != *key.id));
    assert_eq!(home.key.state, "authorised");
}

#[test]
fn pairing_works_before_the_first_serve() {
    need_mount!();
    let world = World::on_loopback();
    let server = world.server("127.0.0.1:0");
    let disk = world.directory("disk");
    fs::write(disk.join("file"), "content").unwrap();

    let key = world.pair("key", &["--authorise", "--server", &server.ready]);
    assert_eq!(key.state, "authorised");
    let _host = world.host(&server.ready, &[format!("disk={}", disk.display())]);
    let mountpoint = world.directory("home");
    world.mount(&key.source("disk"), &mountpoint, "timeout=20").ok();
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"content");

    world.unmount(&mountpoint);
}

#[test]
fn keys_and_shares_outlive_a_restart() {
    need_mount!();
    let home = Home::on_loopback();
    let before = keys(&home.world);
    let id = home.host.ready.clone();
    home.host.stop();

    // without a daemon the commands work on the files
    assert_eq!(keys(&home.world).len(), before.len());
    let again = home.world.start(Side::Host, &["serve"]);
    assert_eq!(again.ready, id);
    let source = home.key.source("disk");
    home.world.mount(&source, &home.mountpoint, "timeout=20").ok();
    assert!(home.mountpoint.join("hello").exists());

    home.world.unmount(&home.mountpoint);
    again.kill();
    let after_crash = home.world.start(Side::Host, &["serve"]);
    assert_eq!(after_crash.ready, id);
    assert_eq!(keys(&home.world).len(), before.len());
}

#[test]
fn what_the_host_remembers_is_for_its_owner_only() {
    let home = Home::on_loopback();

    let state = home.world.state(Side::Host);
    let mut todo = vec![state.clone()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let open = meta.permissions().mode() & 0o077;
        assert!(open == 0 || path != state && meta.is_dir(), "{}: {open:o}", path.display());
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn the_key_shows_whose_it_is() {
    let home = Home::on_loopback();

    let dir = home.key.dir.to_str().unwrap();
    let shown = home.world.mountd(&["key", "show", dir, "--json"]).ok().json();
    assert_eq!(shown["id"], *home.key.id);
    let text = shown.to_string();
    assert!(text.contains(&home.key.mac), "{shown:#}");
    assert!(text.contains(&home.host.ready), "{shown:#}");
    assert!(text.contains(&home.server.ready), "{shown:#}");
    assert_eq!(shown["portable"], false);
}

#[test]
fn a_client_may_wait_until_it_is_authorised() {
    need_mount!();
    let home = Home::on_loopback();
    let key = home.world.pair("guest", &[]);

    // step 507: denied, it asks again
    let source = key.source("disk");
    let options = "wait,timeout=40";
    let args = ["mount", &source, home.mountpoint.to_str().unwrap(), "-o", options];
    let mut mount = home.world.program(Side::Client, &args).spawn().unwrap();
    eventually("the host to see the key", Duration::from_secs(20), || {
        !recorded(&home.world, &key.id)["last_seen"].is_null()
    });
    assert!(!is_mounted(&home.mountpoint));
    home.world.hostd(&["keys", "authorise", &key.id]).ok();
    assert_eq!(wait(&mut mount, Duration::from_secs(40)), Some(0));

    home.unmount();
}

#[test]
fn revoking_ends_a_running_session_within_a_second() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    assert!(home.mountpoint.join("hello").exists());

    home.world.hostd(&["keys", "revoke", &home.key.id]).ok();
    let revoked = Instant::now();
    eventually("the mount to fail or to be gone", Duration::from_secs(1), || {
        let mut listing = Command::new("ls");
        listing.arg(home.mountpoint.join("hello"));
        !Outcome::of(listing, Duration::from_secs(10)).stdout.contains("hello")
    });
    assert!(revoked.elapsed() < Duration::from_secs(2));
    assert!(home.try_mount("timeout=5").code != Some(0));

    // taken back: the same key works again
    home.world.hostd(&["keys", "authorise", &home.key.id]).ok();
    eventually("the old mount to be gone", Duration::from_secs(10), || {
        !is_mounted(&home.mountpoint)
    });
    home.mount("timeout=20");
    home.unmount();
}

#[test]
fn two_hosts_on_one_machine_never_meet() {
    let home = Home::on_loopback();
    let state = home.world.path("state").join("other");
    let share = format!("other={}", home.disk.display());
    let args = ["serve", "--server", &home.server.ready, "--share", &share];
    let other = home.world.start_in(Side::Host, &state, &args);
    assert_ne!(other.ready, home.host.ready);

    let list = home.world.program_in(Side::Host, &state, &["keys", "list", "--json"]);
    let list = Outcome::of(list, Duration::from_secs(10)).ok().json();
    assert_eq!(list.as_array().map(Vec::len), Some(0));
    // a second daemon with the same state is refused
    let second = home.world.program(Side::Host, &["serve"]);
    Outcome::of(second, Duration::from_secs(10)).refused(1, "internal");
}

fn keys(world: &World) -> Vec<Value> {
    let list = world.hostd(&["keys", "list", "--json"]).ok().json();
    list.as_array().unwrap().clone()
}

#[track_caller]
fn recorded(world: &World, id: &str) -> Value {
    let keys = keys(world);
    let key = keys.iter().find(|key| key["id"] == *id);
    key.unwrap_or_else(|| panic!("{id} is not in {keys:#?}")).clone()
}
