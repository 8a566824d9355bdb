//! mountd is killed: nothing of the share is left, and the mount comes back by itself (D3, N1).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::looker::Looker;
use crate::world::marker::{self, BACK, GONE, Times, Ways};
use crate::world::{Home, Side, eventually, need_mount, need_root, programs};

const MARKER: &str = "the marker that nobody may find when mountd is dead, 64 bytes...";
/// A program that fills the file with another text each time that it is told to.
const REWRITER: &str = r#"
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for text in sys.argv[2:]:
    sys.stdin.readline()
    os.pwrite(file, text.encode(), 0)
    print("accepted", flush=True)
sys.stdin.readline()
"#;

fn home() -> Home {
    let home = Home::on_loopback_with(&["--authorise"], |disk| {
        fs::write(disk.join("file"), MARKER).unwrap();
    });
    home.mount("grace=60");
    home
}

impl Home {
    fn reads(&self) -> bool {
        fs::read_to_string(self.mountpoint.join("file")).is_ok_and(|text| text == MARKER)
    }

    fn ways(&self) -> Ways {
        let mountpoint = std::slice::from_ref(&self.mountpoint);
        Ways::to(&self.mountpoint.join("file"), MARKER, mountpoint)
    }

    fn mountd(&self) -> Pid {
        self.world.processes_of(b"p2pfs-mountd")[0]
    }

    pub(crate) fn kill_mountd(&self) -> Instant {
        let mountd = self.mountd();
        kill_process(mountd, Signal::KILL).unwrap();
        let killed = Instant::now();
        eventually("it to be dead", Duration::from_secs(5), || {
            !self.world.processes_of(b"p2pfs-mountd").contains(&mountd)
        });
        killed
    }
}

/// D3: killed, and then the key is pulled: the same as when the key is pulled.
#[test]
fn a_killed_mountd_leaves_nothing_to_read_when_the_key_is_pulled() {
    need_mount!();
    need_root!();
    if let Some(missing) = programs::missing(&["python3", "unshare"]) {
        return crate::world::skip(&missing);
    }
    let home = home();
    let mut ways = home.ways();
    home.kill_mountd();
    let pulled = home.key.pull();
    let mut times = ways.closed(pulled);
    marker::is_locked_up(&home.world, MARKER, pulled, &mut times);

    let back = home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    times.add_within(BACK, "plugged in: mounted again", back.elapsed());
    assert!(ways.old_are_closed(), "old descriptors stay dead");
    times.print("mountd killed, then the key pulled");
    home.world.unmount(&home.mountpoint);
}

/// How the host is away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Away {
    Killed,
    /// What was sent to it arrives when mountd is dead.
    Stopped,
}

/// D3, N1: mountd is killed while an accepted write waits for the host, and then the key is pulled:
/// nothing can be read, and when the key is back what was accepted arrives.
#[test]
fn a_killed_mountd_with_a_write_pending_leaves_nothing_to_read_and_loses_nothing() {
    need_mount!();
    need_root!();
    if let Some(missing) = programs::missing(&["python3", "unshare"]) {
        return crate::world::skip(&missing);
    }
    for away in [Away::Killed, Away::Stopped] {
        is_killed_with_a_write_pending(away);
    }
}

fn is_killed_with_a_write_pending(away: Away) {
    let mut home = home();
    let new = MARKER.repeat(1000);
    let old = "x".repeat(new.len());
    let (late, on_disk) = (home.mountpoint.join("late"), home.disk.join("late"));
    let mut writer = Command::new("python3");
    writer.args(["-c", REWRITER]).arg(&late).args([&old, &new]);
    let (mut ways, mut writer) = (home.ways(), Looker::start(writer));
    assert_eq!(writer.look(), "accepted");
    home.sync();
    assert_eq!(fs::read_to_string(&on_disk).unwrap(), old);
    match away {
        Away::Killed => home.host.kill_now(),
        Away::Stopped => kill_process(home.host.pid(), Signal::STOP).unwrap(),
    }
    assert_eq!(writer.look(), "accepted");
    let pending = home.world.mount_status()["pending"]["unapplied"].clone();
    assert!(pending.as_u64() > Some(0), "{pending}");

    home.kill_mountd();
    let pulled = home.key.pull();
    let mut times = ways.closed(pulled);
    marker::is_locked_up(&home.world, MARKER, pulled, &mut times);

    match away {
        Away::Killed => home.host = home.world.start(Side::Host, &["serve"]),
        Away::Stopped => kill_process(home.host.pid(), Signal::CONT).unwrap(),
    }
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    let back = home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    times.add_within(BACK, "plugged in: mounted again", back.elapsed());
    assert!(ways.old_are_closed(), "old descriptors stay dead");
    assert!(fs::read_to_string(&late).unwrap() == new, "what was accepted is lost");
    assert!(fs::read_to_string(&on_disk).unwrap() == new, "what was accepted did not arrive");
    fs::write(home.mountpoint.join("next"), "it works").unwrap();
    home.sync();
    assert_eq!(fs::read_to_string(home.disk.join("next")).unwrap(), "it works");
    times.print(&format!("host {away:?}, write accepted, mountd killed"));
    home.world.unmount(&home.mountpoint);
}

/// N1: with the key there, the mount is back at once, as often as it takes; what `fsync` confirmed
/// is there.
#[test]
fn a_killed_mountd_is_back_by_itself() {
    need_mount!();
    let home = home();
    let mut times = Times::default();
    for round in 0..3 {
        let name = format!("round {round}");
        let file = File::create(home.mountpoint.join(&name)).unwrap();
        file.write_all_at(name.as_bytes(), 0).unwrap();
        file.sync_all().unwrap();
        let before = home.mountd();
        let killed = home.kill_mountd();
        eventually("the mount to be back", Duration::from_secs(10), || {
            fs::read_to_string(home.mountpoint.join(&name)).is_ok_and(|text| text == name)
        });
        times.add(&format!("{name}: mounted again"), killed.elapsed());
        assert_ne!(home.mountd(), before);
        assert!(file.read_at(&mut [0; 8], 0).is_err(), "descriptors from before are dead");
    }
    times.print("mountd killed, the key there");
    home.world.unmount(&home.mountpoint);
}

/// N1: whoever goes on writing to the mount point meanwhile gets an error, and leaves nothing in
/// the directory beneath.
#[test]
fn nothing_is_written_beneath_the_mount_while_it_comes_back() {
    need_mount!();
    need_root!();
    let home = home();
    let killed = AtomicU32::new(0);
    let refused = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut refused = 0;
            let mut number = 0;
            while killed.load(Relaxed) < 5 {
                let dir = home.mountpoint.join(format!("{number}"));
                refused += u32::from(fs::create_dir(&dir).is_err());
                number += 1;
            }
            refused
        });
        for round in 0..5 {
            home.kill_mountd();
            eventually("the mount to be back", Duration::from_secs(10), || home.reads());
            killed.store(round + 1, Relaxed);
        }
        writer.join().unwrap()
    });
    home.world.unmount(&home.mountpoint);
    assert_eq!(fs::read_dir(&home.mountpoint).unwrap().count(), 0, "beneath the mount");
    println!("{refused} refused meanwhile");
    assert!(refused > 0);
}

/// D3: a mount of the only share comes back as that, though there are more by now.
#[test]
fn after_a_kill_the_share_is_the_same() {
    need_mount!();
    let mut home = Home::on_loopback();
    fs::write(home.disk.join("file"), MARKER).unwrap();
    home.world.mount(home.key.dir.to_str().unwrap(), &home.mountpoint, "grace=60").ok();
    let more = home.world.directory("more");
    home.restart_host_with_more(&[format!("more={}", more.display())]);
    home.kill_mountd();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    home.world.unmount(&home.mountpoint);
}

/// D4: whoever mounts or unmounts by hand after a kill gets what he asks for.
#[test]
fn after_a_kill_the_hand_has_precedence() {
    need_mount!();
    let home = home();
    home.kill_mountd();
    home.mount("ro");
    assert!(home.reads());
    assert!(fs::write(home.mountpoint.join("new"), "").is_err(), "mounted as asked");
    home.kill_mountd();
    home.world.unmount(&home.mountpoint);
}

/// N6, D3: who waits for the host when mountd is killed waits no longer, and keeps nothing.
#[test]
fn who_waits_for_a_killed_mountd_is_let_go() {
    need_mount!();
    if let Some(missing) = programs::missing(&["cat"]) {
        return crate::world::skip(&missing);
    }
    let home = home();
    assert!(home.reads());
    fs::write(home.disk.join("large"), vec![b'x'; 8 << 20]).unwrap();
    let open = File::open(home.mountpoint.join("large")).unwrap();
    kill_process(home.host.pid(), Signal::STOP).unwrap();
    let mut cat = Command::new("cat");
    let waits = cat.stdin(Stdio::from(open)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waits = waits.spawn().unwrap();
    eventually("it to wait", Duration::from_secs(5), || {
        let status = fs::read_to_string(format!("/proc/{}/status", waits.id())).unwrap();
        status.lines().any(|line| line.starts_with("State:\tD") || line.starts_with("State:\tS"))
    });
    let killed = home.kill_mountd();
    let ended = waits.wait().unwrap();
    let mut times = Times::default();
    times.add_within(GONE, "who waits is let go", killed.elapsed());
    assert!(!ended.success());
    kill_process(home.host.pid(), Signal::CONT).unwrap();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    times.print("mountd killed, the host stopped");
    home.world.unmount(&home.mountpoint);
}
