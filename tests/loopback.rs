//! Three programs, three state directories, one machine, a kernel mount (R1-R5, R7, R22, D1, D4).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use crate::world::outcome::{tool, wait};
use crate::world::{Home, Outcome, Side, World, eventually, is_mounted, need_mount, need_root};

#[test]
fn a_file_crosses_in_both_directions() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");

    assert_eq!(fs::read(home.mountpoint.join("hello")).unwrap(), b"from home\n");
    fs::write(home.mountpoint.join("answer"), "from away\n").unwrap();
    home.sync();
    assert_eq!(fs::read(home.disk.join("answer")).unwrap(), b"from away\n");
    assert_eq!(inode(&home.mountpoint.join("answer")), inode(&home.disk.join("answer")));

    home.unmount();
    assert_eq!(fs::read(home.disk.join("answer")).unwrap(), b"from away\n");
    home.host.stop();
    home.server.stop();
}

#[test]
fn findmnt_shows_type_and_source() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");

    let mountpoint = home.mountpoint.to_str().unwrap();
    let found = tool("findmnt", &["-n", "-r", "-o", "FSTYPE,SOURCE", mountpoint]);
    let expected = format!("fuse.p2pfs {}", home.key.source("disk"));
    assert_eq!(found.stdout.trim(), expected);

    home.unmount();
}

#[test]
fn the_only_share_needs_no_name() {
    need_mount!();
    let home = Home::on_loopback();

    home.world.mount(home.key.dir.to_str().unwrap(), &home.mountpoint, "timeout=20").ok();
    assert!(home.mountpoint.join("hello").exists());

    home.unmount();
}

#[test]
fn a_mount_of_the_only_share_stays_with_it_when_there_are_more() {
    need_mount!();
    let mut home = Home::on_loopback();
    home.world.mount(home.key.dir.to_str().unwrap(), &home.mountpoint, "timeout=20").ok();

    let more = home.world.directory("more");
    home.restart_host_with_more(&[format!("more={}", more.display())]);
    fs::write(home.disk.join("later"), "still at home\n").unwrap();
    let later = fs::read_to_string(home.mountpoint.join("later")).unwrap();
    assert_eq!(later, "still at home\n");

    // also when the key was away
    let reads = || fs::read_to_string(home.mountpoint.join("later")).ok();
    home.key.pull();
    eventually("the mount to be gone", Duration::from_secs(5), || reads().is_none());
    home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(10), || {
        reads().is_some_and(|read| read == later)
    });
    assert_eq!(home.world.mount_status()["share"], "disk");
    home.unmount();

    let without = home.world.mount(home.key.dir.to_str().unwrap(), &home.mountpoint, "timeout=20");
    without.refused(1, "share-unknown");
}

#[test]
fn the_status_of_all_three_tells_the_same_story() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    fs::read(home.mountpoint.join("hello")).unwrap();

    // the first registration and the first STUN answer may come after the match
    eventually("the own public addresses", Duration::from_secs(10), || {
        let mount = home.world.mount_status();
        mount["rendezvous"]["age_s"].is_number()
            && mount["routing"]["own"]["udp_public"].is_string()
    });
    // both move to the direct path, one after the other
    eventually("the direct path on both ends", Duration::from_secs(10), || {
        let host = home.world.status(Side::Host);
        home.world.mount_status()["path"]["kind"] == "udp"
            && host["sessions"][0]["path"]["kind"] == "udp"
    });
    let mount = home.world.mount_status();
    assert_eq!(mount["mountpoint"], home.mountpoint.to_str().unwrap());
    assert_eq!(mount["share"], "disk");
    assert_eq!(mount["state"], "connected");
    assert_eq!(mount["host"]["id"], home.host.ready);
    // R22: the client knows the host's MAC, the one that pairing printed
    assert_eq!(mount["host"]["mac"], home.key.mac);
    assert_eq!(mount["path"]["kind"], "udp");
    assert!(mount["path"]["rtt_ms"].is_number(), "{mount:#}");
    assert!(mount["path"]["tried"].is_array(), "{mount:#}");
    assert_eq!(mount["auth"]["process"], 120);
    assert!(mount["connection_id"].is_number() || mount["connection_id"].is_string());
    let age = mount["rendezvous"]["age_s"].as_f64();
    assert!(age.is_some_and(|age| age < 30.0), "{mount:#}");
    assert_eq!(mount["cache"]["budget"], 512 << 20);
    // R5: both ends know both ends' routing information
    assert_routing(&mount["routing"]["own"]);
    assert_routing(&mount["routing"]["peer"]);
    let host = home.world.status(Side::Host);
    assert!(host.to_string().contains(&home.key.id), "{host:#}");

    // R2, R3, R4: what the server was asked
    let server = home.world.status(Side::Server);
    assert_eq!(server["hosts"], 1);
    assert_eq!(server["clients"], 1);
    assert!(server["matches"].as_u64().unwrap() >= 1, "{server:#}");
    assert!(server["stun_requests"].as_u64().unwrap() >= 2, "{server:#}");
    // R10, R19: what is direct does not cross the server
    let relayed = || home.world.status(Side::Server)["relay"]["bytes"].as_u64().unwrap();
    let before = relayed();
    fs::write(home.disk.join("large"), vec![7; 1 << 20]).unwrap();
    assert_eq!(fs::read(home.mountpoint.join("large")).unwrap().len(), 1 << 20);
    let more = relayed() - before;
    assert!(more < 2000, "{more} bytes were relayed");

    home.unmount();
}

#[test]
fn mount_returns_although_its_output_is_a_pipe() {
    need_mount!();
    let home = Home::on_loopback();

    let source = home.key.source("disk");
    let args = ["mount", &source, home.mountpoint.to_str().unwrap()];
    let mut command = home.world.program(Side::Client, &args);
    // `output` reads to the end of both pipes: a daemon that kept them open would hold it for ever
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(command.output()));
    let output = ended.recv_timeout(Duration::from_secs(40)).unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");

    home.unmount();
}

#[test]
fn mount_and_umount_of_the_machine_work() {
    need_mount!();
    need_root!();
    let home = Home::on_loopback();
    let installed = Installed::new(&home.world);

    let options = format!("timeout=20,cache=16M,nofail,_netdev,x-test=1,{}", home.state_option());
    let source = home.key.source("disk");
    let mountpoint = home.mountpoint.to_str().unwrap();
    tool("mount", &["-t", "p2pfs", &source, mountpoint, "-o", &options]);
    assert!(home.mountpoint.join("hello").exists());
    assert_eq!(home.world.mount_status()["cache"]["budget"], 16 << 20);

    tool("umount", &[mountpoint]);
    home.world.assert_nothing_left(&home.mountpoint);
    drop(installed);
}

#[test]
fn a_line_of_fstab_is_enough() {
    need_mount!();
    need_root!();
    let home = Home::on_loopback();
    let installed = Installed::new(&home.world);

    let mountpoint = home.mountpoint.to_str().unwrap();
    let source = home.key.source("disk");
    let options = format!("noauto,user,timeout=20,ro,{}", home.state_option());
    let fstab = home.world.path("fstab");
    fs::write(&fstab, format!("{source} {mountpoint} p2pfs {options} 0 0\n")).unwrap();
    tool("mount", &["--fstab", fstab.to_str().unwrap(), mountpoint]);
    assert!(home.mountpoint.join("hello").exists());
    let refused = fs::write(home.mountpoint.join("new"), "x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);

    home.unmount();
    drop(installed);
}

#[test]
fn mount_of_the_machine_tells_why_it_failed() {
    need_mount!();
    need_root!();
    let home = Home::on_loopback();
    let installed = Installed::new(&home.world);

    let mountpoint = home.mountpoint.to_str().unwrap();
    let mount = |source: &str, options: &str| {
        let mut command = Command::new("mount");
        let options = format!("{},{options}", home.state_option());
        command.args(["-t", "p2pfs", source, mountpoint, "-o", &options]);
        Outcome::of(command, Duration::from_secs(40))
    };
    mount("/nonexistent:disk", "timeout=5").refused(32, "key-missing");
    mount(&home.key.source("disk"), "timeout=5,frobnicate").refused(1, "usage");
    mount(&home.key.source("nope"), "timeout=5").refused(32, "share-unknown");
    home.world.assert_nothing_left(&home.mountpoint);
    drop(installed);
}

#[test]
fn a_mount_in_the_foreground_ends_in_order() {
    need_mount!();
    let home = Home::on_loopback();

    let source = home.key.source("disk");
    let mountpoint = home.mountpoint.to_str().unwrap();
    let daemon = home.world.start(Side::Client, &["mount", &source, mountpoint, "--foreground"]);
    assert_eq!(daemon.ready, mountpoint);
    fs::write(home.mountpoint.join("last"), "words").unwrap();
    daemon.stop();

    home.world.assert_nothing_left(&home.mountpoint);
    assert_eq!(fs::read(home.disk.join("last")).unwrap(), b"words");
}

#[test]
fn a_share_for_reading_takes_no_change() {
    need_mount!();
    let world = World::on_loopback();
    let disk = world.directory("disk");
    fs::write(disk.join("file"), "content").unwrap();
    let server = world.server("127.0.0.1:0");
    let share = format!("disk={}", disk.display());
    let args = ["serve", "--server", &server.ready, "--share", &share];
    let _host = world.start(Side::Host, &[&args[..], &["--read-only", "disk"]].concat());
    let key = world.pair("key", &["--authorise"]);
    let mountpoint = world.directory("home");
    world.mount(&key.source("disk"), &mountpoint, "timeout=20").ok();

    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"content");
    for refused in [
        fs::write(mountpoint.join("new"), "x"),
        fs::remove_file(mountpoint.join("file")),
        fs::create_dir(mountpoint.join("dir")),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }

    world.unmount(&mountpoint);
}

/// N1: what a killed host was told, and what it is told meanwhile, is carried out once.
#[test]
fn a_host_that_is_killed_goes_on_where_it_was() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let open = File::create(home.mountpoint.join("open")).unwrap();
    let mountpoint = home.mountpoint.clone();
    let (saved, saves) = std::sync::mpsc::channel();
    let editor = std::thread::spawn(move || {
        for round in 0..300_u64 {
            let [draft, name] = ["draft", "document"].map(|name| mountpoint.join(name));
            fs::write(&draft, format!("round {round}\n").repeat(500)).unwrap();
            fs::rename(&draft, &name).unwrap();
            open.write_all_at(&round.to_le_bytes(), round * 8).unwrap();
            fs::create_dir(mountpoint.join(format!("round-{round}"))).unwrap();
            let _ = saved.send(round);
        }
    });
    saves.iter().find(|round| *round == 20).unwrap();
    home.host.kill();
    let shares = [format!("disk={}", home.disk.display())];
    let _host = home.world.host(&home.server.ready, &shares);
    editor.join().unwrap();
    home.world.sync(&home.mountpoint);
    let document = fs::read_to_string(home.disk.join("document")).unwrap();
    assert_eq!(document, "round 299\n".repeat(500));
    assert!(!home.disk.join("draft").exists());
    assert!((0..300).all(|round| home.disk.join(format!("round-{round}")).is_dir()));
    let counted: Vec<u8> = (0..300_u64).flat_map(u64::to_le_bytes).collect();
    assert_eq!(fs::read(home.disk.join("open")).unwrap(), counted);
    home.world.unmount(&home.mountpoint);
}

#[test]
fn two_clients_see_each_others_files() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let second = home.world.pair("second", &["--authorise"]);
    let elsewhere = home.world.directory("elsewhere");
    let state = home.world.path("state").join("second");
    let source = second.source("disk");
    let args = ["mount", &source, elsewhere.to_str().unwrap(), "-o", "timeout=20"];
    let mount = home.world.program_in(Side::Client, &state, &args);
    Outcome::of(mount, Duration::from_secs(40)).ok();

    fs::write(home.mountpoint.join("note"), "for you").unwrap();
    home.sync();
    assert_eq!(fs::read(elsewhere.join("note")).unwrap(), b"for you");

    let args = ["unmount", elsewhere.to_str().unwrap()];
    let unmount = home.world.program_in(Side::Client, &state, &args);
    Outcome::of(unmount, Duration::from_secs(40)).ok();
    assert!(is_mounted(&home.mountpoint));
    home.unmount();
}

#[test]
fn whoever_comes_first_waits_for_the_other() {
    need_mount!();
    let home = Home::on_loopback();
    home.host.stop();

    // R4: the client seeks before the host registers
    let source = home.key.source("disk");
    let args = ["mount", &source, home.mountpoint.to_str().unwrap(), "-o", "timeout=40"];
    let mut mount = home.world.program(Side::Client, &args).spawn().unwrap();
    eventually("the client at the server", Duration::from_secs(10), || {
        home.world.status(Side::Server)["clients"] == 1
    });
    let _host = home.world.start(Side::Host, &["serve"]);
    assert_eq!(wait(&mut mount, Duration::from_secs(40)), Some(0));
    assert!(home.mountpoint.join("hello").exists());

    home.world.unmount(&home.mountpoint);
}

/// `mount.p2pfs` where mount(8) looks; what was there before comes back on drop.
struct Installed {
    before: Option<PathBuf>,
    /// One test at a time: there is one `/sbin`.
    _turn: std::sync::MutexGuard<'static, ()>,
}

static SBIN: Mutex<()> = Mutex::new(());
const HELPER: &str = "/sbin/mount.p2pfs";

impl Installed {
    fn new(world: &World) -> Self {
        let turn = SBIN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = fs::symlink_metadata(HELPER).is_ok().then(|| {
            let kept = PathBuf::from(format!("{HELPER}.before-test"));
            fs::rename(HELPER, &kept).unwrap();
            kept
        });
        world.mountd(&["install"]).ok();
        assert!(Path::new(HELPER).exists());
        Self { before, _turn: turn }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_file(HELPER);
        if let Some(before) = &self.before {
            let _ = fs::rename(before, HELPER);
        }
    }
}

/// Routing information: somewhere in it is a private address of this machine and a UDP address.
#[track_caller]
fn assert_routing(routing: &Value) {
    let mut addresses = Vec::new();
    collect_addresses(routing, &mut addresses);
    assert!(!addresses.is_empty(), "no address in {routing:#}");
    assert!(routing.get("mac").is_some(), "no MAC in {routing:#}");
}

fn collect_addresses(value: &Value, found: &mut Vec<SocketAddr>) {
    match value {
        Value::String(text) => found.extend(text.parse::<SocketAddr>().ok()),
        Value::Array(values) => values.iter().for_each(|value| collect_addresses(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| collect_addresses(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;

    fs::symlink_metadata(path).unwrap().ino()
}
