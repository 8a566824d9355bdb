//! What was accepted outlives mountd, also where the host is away (N1).

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::world::{Home, Side, eventually, need_mount};

impl Home {
    /// What mounts keep for the case that they are killed.
    fn journals(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.world.state(Side::Client).join("journals"));
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }
}

#[test]
fn what_was_accepted_while_the_host_was_away_outlives_a_killed_mountd() {
    need_mount!();
    for (pulls, boots) in [(false, false), (true, false), (false, true)] {
        let mut home = Home::on_loopback_with(&["--authorise"], |_| {});
        home.mount("grace=60,drain=1");
        let path = home.mountpoint.join("open");
        let mut open = File::create(&path).unwrap();
        open.write_all(b"told before").unwrap();
        open.sync_all().unwrap();
        home.host.kill_now();
        let mut wanted = b"told before".to_vec();
        for round in 0..100_u8 {
            let piece = [round; 10_000];
            open.write_all(&piece).unwrap();
            wanted.extend(piece);
        }
        home.kill_mountd();
        if pulls {
            home.key.pull();
            eventually("the mount to be locked", Duration::from_secs(5), || home.world.is_locked());
        }
        match boots {
            true => home.boot_host(&[]),
            false => home.start_killed_host(),
        }
        if pulls {
            home.key.plug_in();
        }
        let is_back = || fs::read(&path).is_ok_and(|is| is == wanted);
        eventually("what was accepted to be there", Duration::from_secs(30), is_back);
        assert!(fs::read(home.disk.join("open")).unwrap() == wanted);
        assert_eq!(home.world.sealed_files(), Vec::<PathBuf>::new());
        assert_eq!(home.journals().len(), 1, "the one of the mount that runs");
        home.world.unmount(&home.mountpoint);
        assert_eq!(home.journals(), Vec::<PathBuf>::new());
    }
}

/// What has arrived does not come again: not over what the host's own programs wrote since.
#[test]
fn what_has_arrived_does_not_come_again_after_a_kill() {
    need_mount!();
    let home = Home::on_loopback_with(&["--authorise"], |_| {});
    home.mount("grace=60");
    let path = home.mountpoint.join("file");
    let mut open = File::create(&path).unwrap();
    open.write_all(&[1; 3_000_000]).unwrap();
    open.sync_all().unwrap();
    fs::write(home.disk.join("file"), "newer").unwrap();
    home.kill_mountd();
    eventually("the mount to be back", Duration::from_secs(30), || {
        fs::read(&path).is_ok_and(|is| is == b"newer")
    });
    assert_eq!(fs::read(home.disk.join("file")).unwrap(), b"newer");
    home.world.unmount(&home.mountpoint);
    assert_eq!(home.journals(), Vec::<PathBuf>::new());
}
