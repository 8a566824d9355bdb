//! mountd is killed: nothing of the share is left, and the mount comes back by itself (D3, N1).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::looker::Looker;
use crate::world::{Home, eventually, is_mounted, need_mount, need_root, programs};

const MARKER: &str = "the marker that nobody may find when mountd is dead, 64 bytes...";

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

    fn mountd(&self) -> Pid {
        self.world.processes_of(b"p2pfs-mountd")[0]
    }

    fn kill_mountd(&self) -> Instant {
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
    let file = home.mountpoint.join("file");
    let mut holder = Looker::holder(&file, MARKER);
    let mut elsewhere = Looker::elsewhere(&file);
    assert_eq!(holder.look(), Looker::EVERY_WAY);
    assert_eq!(elsewhere.look(), MARKER);

    home.kill_mountd();
    let pulled = home.key.pull();
    eventually("nothing to be left to read", Duration::from_secs(5), || {
        holder.look().is_empty() && elsewhere.look().is_empty() && !is_mounted(&home.mountpoint)
    });
    println!("nothing left to read after {} ms", pulled.elapsed().as_millis());
    assert!(pulled.elapsed() < Duration::from_secs(1), "{:?}", pulled.elapsed());

    let back = home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    println!("mounted again after {} ms", back.elapsed().as_millis());
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    assert_eq!(holder.look(), "", "old descriptors stay dead");
    home.world.unmount(&home.mountpoint);
}

/// N1: with the key there, the mount is back at once, as often as it takes; what `fsync` confirmed
/// is there.
#[test]
fn a_killed_mountd_is_back_by_itself() {
    need_mount!();
    let home = home();
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
        println!("back after {} ms", killed.elapsed().as_millis());
        assert_ne!(home.mountd(), before);
        assert!(file.read_at(&mut [0; 8], 0).is_err(), "descriptors from before are dead");
    }
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
    println!("let go after {} ms", killed.elapsed().as_millis());
    assert!(!ended.success());
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    kill_process(home.host.pid(), Signal::CONT).unwrap();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    home.world.unmount(&home.mountpoint);
}
