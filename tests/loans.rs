//! Mounts of one key on one machine share a registration: the second is there sooner, and does not
//! notice when the first ends.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use p2pfs::net::admin;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::world::lab::{Kind, Lab, need_lab};
use crate::world::{Home, Outcome, Side, eventually, need_mount};

const SOON: Duration = Duration::from_secs(10);
/// What is in the file that stays open, bytes.
const FILM_BYTES: usize = 20_000_000;

/// Two mounts of one key.
struct Two {
    home: Home,
    /// The second's.
    mountpoint: PathBuf,
    film: Vec<u8>,
}

impl Two {
    fn new(home: Home) -> Self {
        let film: Vec<u8> =
            (0..FILM_BYTES).map(|n| ((n as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(home.disk.join("film"), &film).unwrap();
        eventually("the host at the server", Duration::from_secs(20), || {
            home.world.status(Side::Server)["hosts"] == 1
        });
        let mountpoint = home.world.directory("again");
        Self { home, mountpoint, film }
    }

    fn mount_first(&self) {
        self.home.mount("timeout=20,cache=1M");
        self.lends(&self.home.mountpoint.clone());
    }

    /// Waits until a mount's registration can be borrowed.
    fn lends(&self, mountpoint: &Path) {
        eventually("a direct path", SOON, || self.status(mountpoint)["path"]["kind"] == "udp");
        let loans = self.home.world.state(Side::Client).join("loans");
        eventually("somebody who lends", SOON, || {
            fs::read_dir(&loans).into_iter().flatten().flatten().any(|entry| {
                let path = entry.path();
                let is_socket = path.extension().is_some_and(|extension| extension == "sock");
                is_socket && UnixStream::connect(path).is_ok()
            })
        });
    }

    fn mount_second(&self) {
        let source = self.home.key.source("disk");
        self.home.world.mount(&source, &self.mountpoint, "timeout=20,cache=1M").ok();
    }

    #[track_caller]
    fn status(&self, mountpoint: &Path) -> Value {
        let status = self.home.world.status(Side::Client);
        let all = status["mounts"].as_array().unwrap();
        let text = mountpoint.to_str().unwrap();
        let found = all.iter().find(|mount| mount["mountpoint"] == text);
        found.cloned().unwrap_or_default()
    }

    /// Its connections to the server on a client's side, also those that are over.
    fn connections(&self) -> usize {
        let authority = self.home.server.ready.rsplit_once('#').unwrap().0;
        let port: u16 = authority.rsplit_once(':').unwrap().1.parse().unwrap();
        let mut show = self.home.world.command(Side::Client, "cat");
        show.arg("/proc/net/tcp");
        let table = Outcome::of(show, SOON).ok().stdout;
        let remote = format!(":{port:04X}");
        let is_to_server = |line: &&str| {
            line.split_whitespace().nth(2).is_some_and(|address| address.ends_with(&remote))
        };
        table.lines().filter(is_to_server).count()
    }

    /// The directory of a mount's control socket.
    fn socket_of(&self, mountpoint: &Path) -> PathBuf {
        let mounts = fs::read_dir(self.home.world.state(Side::Client).join("mounts")).unwrap();
        let is_its = |dir: &PathBuf| {
            let asked = admin::request(dir, &json!({"command": "status"}));
            asked.is_ok_and(|status| {
                status.is_some_and(|status| status["mountpoint"] == mountpoint.to_str().unwrap())
            })
        };
        mounts.flatten().map(|entry| entry.path()).find(is_its).unwrap()
    }

    /// The process that looks after a mount.
    fn process(&self, mountpoint: &Path) -> Pid {
        let text = mountpoint.as_os_str().as_encoded_bytes();
        let all = self.home.world.processes_of(b"p2pfs-mountd");
        let is_its = |pid: &&Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap();
            line.split(|byte| *byte == 0).any(|word| word == text)
        };
        *all.iter().find(is_its).unwrap()
    }
}

/// A mount goes on with a file that is open, a registration of its own, and the same connection.
fn goes_on_alone(two: &Two, mountpoint: &Path, before: &Value, film: &mut File) {
    eventually("a registration of its own", SOON, || {
        let now = two.status(mountpoint);
        let age = now["rendezvous"]["age_s"].as_f64().unwrap();
        assert!(age < 25.0, "{now:#}");
        now["rendezvous"]["borrowed"] == false && now["routing"]["own"]["tcp_public"].is_string()
    });
    let mut rest = Vec::new();
    film.read_to_end(&mut rest).unwrap();
    assert!(two.film.ends_with(&rest) && rest.len() == FILM_BYTES - 100, "{}", rest.len());
    assert_eq!(two.status(mountpoint)["connection_id"], before["connection_id"]);
}

#[test]
fn a_second_mount_uses_the_registration_of_the_first_and_outlives_it() {
    need_mount!();
    let two = Two::new(Home::on_loopback());
    let (first, second) = (two.home.mountpoint.clone(), two.mountpoint.clone());
    two.mount_first();
    assert_eq!(two.status(&first)["rendezvous"]["borrowed"], false);
    let before = two.connections();
    two.mount_second();
    let status = two.status(&second);
    assert_eq!(status["rendezvous"]["borrowed"], true, "{status:#}");
    assert_eq!(two.home.world.status(Side::Server)["clients"], 2);
    let mut film = File::open(second.join("film")).unwrap();
    film.read_exact(&mut [0; 100]).unwrap();
    eventually("a direct path", SOON, || two.status(&second)["path"]["kind"] == "udp");
    let status = two.status(&second);
    assert_eq!(two.connections(), before, "a connection was made to the server");

    // unmounted
    two.home.world.mountd(&["unmount", first.to_str().unwrap()]).ok();
    goes_on_alone(&two, &second, &status, &mut film);

    // and the other way round: killed
    two.lends(&second);
    let before = two.connections();
    two.home.mount("timeout=20,cache=1M");
    let status = two.status(&first);
    assert_eq!(status["rendezvous"]["borrowed"], true, "{status:#}");
    assert_eq!(two.connections(), before, "a connection was made to the server");
    let mut film = File::open(first.join("film")).unwrap();
    film.read_exact(&mut [0; 100]).unwrap();
    kill_process(two.process(&second), Signal::KILL).unwrap();
    goes_on_alone(&two, &first, &status, &mut film);
    for mountpoint in [&second, &first] {
        two.home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    }
    two.home.world.assert_nothing_left(&first);
}

#[test]
fn a_lender_that_does_not_answer_is_done_without() {
    need_mount!();
    let two = Two::new(Home::on_loopback());
    two.mount_first();
    let lender = two.process(&two.home.mountpoint.clone());
    kill_process(lender, Signal::STOP).unwrap();
    let start = Instant::now();
    let source = two.home.key.source("disk");
    let mounted = two.home.world.mount(&source, &two.mountpoint, "timeout=20");
    let read = fs::read(two.mountpoint.join("hello"));
    let took = start.elapsed();
    kill_process(lender, Signal::CONT).unwrap();
    mounted.ok();
    assert_eq!(read.unwrap(), b"from home\n");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(two.status(&two.mountpoint)["rendezvous"]["borrowed"], false);

    // and one that stops with the loan under way
    let third = two.home.world.directory("third");
    two.home.world.mount(&source, &third, "timeout=20").ok();
    assert_eq!(two.status(&third)["rendezvous"]["borrowed"], true);
    let socket = two.socket_of(&third);
    kill_process(lender, Signal::STOP).unwrap();
    eventually("a registration of its own", Duration::from_secs(25), || {
        // not by `status`, which asks the one that is stopped as well
        let asked = admin::request(&socket, &json!({"command": "status"}));
        asked.unwrap().unwrap()["rendezvous"]["borrowed"] == false
    });
    assert_eq!(fs::read(third.join("hello")).unwrap(), b"from home\n");
    kill_process(lender, Signal::CONT).unwrap();
    for mountpoint in [&third, &two.mountpoint, &two.home.mountpoint] {
        two.home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    }
}

#[test]
fn the_key_that_is_pulled_ends_both_and_back_it_opens_both() {
    need_mount!();
    let two = Two::new(Home::on_loopback());
    two.mount_first();
    two.mount_second();
    assert_eq!(two.status(&two.mountpoint)["rendezvous"]["borrowed"], true);
    let films = [&two.home.mountpoint, &two.mountpoint]
        .map(|mountpoint| File::open(mountpoint.join("film")).unwrap());
    two.home.key.pull();
    eventually("nothing to be readable", Duration::from_secs(3), || {
        films.iter().all(|film| film.read_exact_at(&mut [0; 100], 9_000_000).is_err())
    });
    two.home.key.plug_in();
    for mountpoint in [&two.home.mountpoint, &two.mountpoint] {
        eventually("the mount to be back", SOON, || {
            fs::read(mountpoint.join("hello")).is_ok_and(|read| read == b"from home\n")
        });
        two.home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    }
}

/// Where UDP was open when the registration was borrowed, and is blocked now.
#[test]
fn a_borrower_that_needs_tcp_registers_itself() {
    need_mount!();
    need_lab!();
    let two = Two::new(Home::in_lab(Lab::new(Kind::Port, Kind::Port)));
    two.mount_first();
    two.mount_second();
    assert_eq!(two.status(&two.mountpoint)["rendezvous"]["borrowed"], true);
    eventually("a direct path", SOON, || two.status(&two.mountpoint)["path"]["kind"] == "udp");
    let mut film = File::open(two.mountpoint.join("film")).unwrap();
    film.read_exact(&mut [0; 100]).unwrap();
    let lab = two.home.world.lab();
    let script = "nft 'add table inet cut; add chain inet cut drops { type filter hook forward \
                  priority -9; }; add rule inet cut drops meta l4proto udp ip saddr != 203.0.113.5 \
                  ip daddr != 203.0.113.5 drop'";
    let mut shell = lab.command_at(lab.router_of(Side::Client), "sh");
    shell.args(["-c", script]);
    Outcome::of(shell, SOON).ok();
    let mut rest = Vec::new();
    film.read_to_end(&mut rest).unwrap();
    assert!(two.film.ends_with(&rest) && rest.len() == FILM_BYTES - 100);
    for mountpoint in [&two.home.mountpoint, &two.mountpoint] {
        eventually("a path by TCP", Duration::from_secs(30), || {
            // used, so that the path that is dead is noticed
            let _ = fs::metadata(mountpoint.join("none"));
            two.status(mountpoint)["path"]["kind"] == "tcp"
        });
        two.home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    }
}
