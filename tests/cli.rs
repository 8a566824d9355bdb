//! The command line without any daemon: `--help`, wrong usage, exit codes.

use std::process::Command;
use std::time::Duration;

use crate::world::programs::path;
use crate::world::{Outcome, Side, World};

#[test]
fn every_program_explains_itself() {
    for (program, commands) in [
        ("p2pfs-server", &["run", "status"][..]),
        ("p2pfs-hostd", &["serve", "pair", "keys", "status"]),
        ("p2pfs-mountd", &["mount", "unmount", "sync", "status", "install"]),
    ] {
        let help = run(program, &["--help"]).ok();
        for command in commands {
            assert!(help.stdout.contains(command), "{program} --help hides {command}");
            run(program, &[command, "--help"]).ok();
        }
        let version = run(program, &["--version"]).ok();
        assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:#?}");
    }
}

#[test]
fn wrong_usage_is_2_and_says_what_to_do() {
    for (program, args) in [
        ("p2pfs-server", &["frobnicate"][..]),
        ("p2pfs-server", &["run", "--listen", "nowhere"]),
        ("p2pfs-hostd", &["serve", "--frobnicate"]),
        ("p2pfs-hostd", &["pair"]),
        ("p2pfs-hostd", &["keys", "authorise"]),
        ("p2pfs-mountd", &["mount", "/key"]),
        ("p2pfs-mountd", &["frobnicate"]),
    ] {
        run(program, args).refused(2, "usage");
    }
}

#[test]
fn the_mount_helper_follows_mount_8() {
    let helper = path("mount.p2pfs");
    let no_arguments = Outcome::of(Command::new(&helper), Duration::from_secs(10));
    no_arguments.refused(1, "usage");

    let world = World::on_loopback();
    let mountpoint = world.directory("home");
    let mut command = Command::new(&helper);
    let state = format!("timeout=5,state={}", world.path("state").display());
    command.arg("/nonexistent:disk").arg(&mountpoint);
    command.args(["-o", &state]);
    Outcome::of(command, Duration::from_secs(20)).refused(32, "key-missing");
}

#[test]
fn a_daemon_that_does_not_run_is_an_error() {
    let world = World::on_loopback();
    world.server_command(&["status", "--json"]).refused(1, "internal");
    let nowhere = world.path("nowhere");
    world.mountd(&["sync", nowhere.to_str().unwrap()]).refused(1, "mountpoint");
    world.hostd(&["keys", "authorise", "nobody"]).refused(1, "key-missing");
}

#[test]
fn nothing_is_mounted_where_nothing_runs() {
    let world = World::on_loopback();
    let status = world.status(Side::Client);
    assert_eq!(status["mounts"].as_array().map(Vec::len), Some(0));
}

fn run(program: &str, args: &[&str]) -> Outcome {
    let mut command = Command::new(path(program));
    command.args(args);
    Outcome::of(command, Duration::from_secs(10))
}
