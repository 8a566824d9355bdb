//! How a mount ends: the key gates it to the last, and nothing of it is left to read (D3, D4).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::world::looker::Looker;
use crate::world::{Home, Outcome, Side, eventually, is_mounted, need_mount, need_root, programs};

const MARKER: &str = "the marker that nobody may find when the mount is gone, 64 bytes";

fn home(options: &str) -> Home {
    let home = Home::on_loopback_with(&["--authorise"], |disk| {
        fs::write(disk.join("file"), MARKER).unwrap();
    });
    home.mount(options);
    home
}

/// The host is killed before it gets `late`, which somebody has open.
fn home_with_something_pending(options: &str) -> (Home, Looker) {
    let mut home = home(options);
    let mut writer = Looker::writer(&home.mountpoint.join("late"), "late");
    home.host.kill_now();
    assert_eq!(writer.look(), "accepted");
    (home, writer)
}

macro_rules! need_python {
    () => {
        if let Some(missing) = programs::missing(&["python3"]) {
            return crate::world::skip(&missing);
        }
    };
}

impl Home {
    fn mountds(&self) -> Vec<Pid> {
        self.world.processes_of(b"p2pfs-mountd")
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.mountds()[0], signal).unwrap();
    }

    fn is_draining(&self) {
        eventually("it to deliver", Duration::from_secs(5), || {
            self.world.status(Side::Client)["mounts"][0]["state"] == "draining"
        });
    }

    fn has_file(&self) -> bool {
        fs::read_to_string(self.mountpoint.join("file")).is_ok_and(|text| text == MARKER)
    }
}

/// D3: whoever holds a file, or its pages, has nothing of them when the mount is gone.
#[test]
fn an_unmount_leaves_nothing_to_read() {
    need_mount!();
    need_python!();
    let home = home("rw");
    let mut holder = Looker::holder(&home.mountpoint.join("file"), MARKER);
    assert_eq!(holder.look(), Looker::EVERY_WAY);
    let unmounted = home.world.mountd(&["unmount", home.mountpoint.to_str().unwrap()]).ok();
    println!("unmounted after {} ms", unmounted.took.as_millis());
    assert_eq!(holder.look(), "");
    home.world.assert_nothing_left(&home.mountpoint);
}

/// D3: a mount that is asked to end, and waits for its host, is still gated.
#[test]
fn a_key_that_is_pulled_while_the_mount_ends_leaves_nothing_to_read() {
    need_mount!();
    need_python!();
    let mut home = home("grace=8,drain=0");
    let mut holder = Looker::holder(&home.mountpoint.join("file"), MARKER);
    assert_eq!(holder.look(), Looker::EVERY_WAY);
    let mut writer = Looker::writer(&home.mountpoint.join("late"), "late");
    home.host.kill_now();
    assert_eq!(writer.look(), "accepted");
    home.signal(Signal::TERM);
    home.is_draining();
    let pulled = home.key.pull();
    eventually("nothing to be left to read", Duration::from_secs(5), || holder.look().is_empty());
    println!("nothing left to read after {} ms", pulled.elapsed().as_millis());
    assert!(pulled.elapsed() < Duration::from_secs(1), "{:?}", pulled.elapsed());
    // nobody waits for the key: an end was asked for
    home.world.assert_nothing_left(&home.mountpoint);
    assert_eq!(home.world.sealed_files().len(), 1);
}

/// N1: who asks twice does not want to wait for the host; nothing is lost.
#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    need_mount!();
    need_python!();
    let (mut home, _late) = home_with_something_pending("grace=inf");
    home.signal(Signal::TERM);
    home.is_draining();
    home.signal(Signal::TERM);
    home.world.assert_nothing_left(&home.mountpoint);
    assert_eq!(home.world.sealed_files().len(), 1);
    home.host = home.world.start(Side::Host, &["serve"]);
    home.mount("rw");
    assert_eq!(fs::read(home.disk.join("late")).unwrap(), b"late");
    home.unmount();
}

/// D4: who asks for an end and then makes sure of it does not get the mount back.
#[test]
fn a_mount_that_is_killed_while_it_ends_is_not_mounted_again() {
    need_mount!();
    need_python!();
    let (home, _late) = home_with_something_pending("grace=inf");
    home.signal(Signal::TERM);
    home.is_draining();
    home.signal(Signal::KILL);
    home.world.assert_nothing_left(&home.mountpoint);
}

/// D3: killed while it delivers after the key was pulled; the mount was gone by then.
#[test]
fn a_mount_that_is_killed_after_the_key_was_pulled_waits_for_the_key() {
    need_mount!();
    need_python!();
    let (mut home, _late) = home_with_something_pending("grace=60,drain=60");
    home.key.pull();
    eventually("the mount to be gone", Duration::from_secs(5), || !is_mounted(&home.mountpoint));
    home.signal(Signal::KILL);
    home.host = home.world.start(Side::Host, &["serve"]);
    home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(20), || home.has_file());
    home.unmount();
}

/// D3, N1: after an upgrade the program's file is another one, or none.
#[test]
fn a_mount_comes_back_when_its_program_was_removed() {
    need_mount!();
    need_root!();
    let home = Home::on_loopback_with(&["--authorise"], |disk| {
        fs::write(disk.join("file"), MARKER).unwrap();
    });
    let program: PathBuf = home.world.directory("bin").join("p2pfs-mountd");
    fs::copy(programs::path("p2pfs-mountd"), &program).unwrap();
    let mut mount = Command::new(&program);
    mount.args(["mount", &home.key.source("disk"), home.mountpoint.to_str().unwrap()]);
    mount.arg("--state").arg(home.world.state(Side::Client));
    Outcome::of(mount, Duration::from_secs(40)).ok();
    fs::remove_file(&program).unwrap();

    home.signal(Signal::KILL);
    eventually("the mount to be back", Duration::from_secs(10), || home.has_file());
    home.key.pull();
    eventually("the mount to be locked", Duration::from_secs(10), || home.world.is_locked());
    home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(10), || home.has_file());
    let name = fs::read_to_string(format!("/proc/{}/comm", home.mountds()[0].as_raw_nonzero()));
    assert_eq!(name.unwrap(), "p2pfs-mountd\n");
    home.unmount();
}

/// D3: a crash must not write keys, and what was read, to the disk.
#[test]
fn a_mount_leaves_no_core_dump() {
    need_mount!();
    let home = home("rw");
    let limits = format!("/proc/{}/limits", home.mountds()[0].as_raw_nonzero());
    let limits = fs::read_to_string(limits).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let numbers: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(numbers, ["0", "0"], "{core}");
    home.unmount();
}
