//! What was accepted and could not be delivered when the key was pulled (D3, N1).

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::world::marker::{self, BACK, GONE, Times};
use crate::world::outcome::tool;
use crate::world::{Home, Side, eventually, is_mounted, need_mount, need_root};

const BYTES: usize = 8 << 20;
const MARKER: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// A mount whose host was killed before it could get `late`, and whose key was pulled then.
fn pulled(mut home: Home) -> (Home, Instant, Times) {
    home.mount("drain=0,grace=60,timeout=20");
    let mut late = fs::File::create(home.mountpoint.join("late")).unwrap();
    late.sync_all().unwrap();
    home.host.kill_now();
    late.write_all(&vec![b'x'; BYTES]).unwrap();
    let pulled = home.key.pull();
    eventually("the mount to be gone", Duration::from_secs(10), || !is_mounted(&home.mountpoint));
    let mut times = Times::default();
    times.add_within(GONE, "drain=0: mount closed", pulled.elapsed());
    (home, pulled, times)
}

impl Home {
    fn wait_until_locked(&self) {
        eventually("the mount to be locked", Duration::from_secs(20), || self.world.is_locked());
        assert_eq!(marker::in_files(&self.world, MARKER), Vec::<PathBuf>::new());
    }

    fn start_host(&mut self) {
        self.host = self.world.start(Side::Host, &["serve"]);
        eventually("the host at the server", Duration::from_secs(20), || {
            self.world.status(Side::Server)["hosts"] == 1
        });
    }

    fn is_back(&self) {
        eventually("the mount to be back", Duration::from_secs(30), || {
            self.mountpoint.join("hello").exists()
        });
    }

    fn has_arrived(&self) {
        let arrived = fs::read(self.disk.join("late")).unwrap();
        assert!(arrived.len() == BYTES && arrived.iter().all(|byte| *byte == b'x'));
        assert_eq!(self.world.sealed_files(), Vec::<PathBuf>::new());
    }
}

/// Its file was removed meanwhile: nothing else has the data.
#[test]
fn what_the_host_refuses_of_what_was_sealed_is_kept() {
    need_mount!();
    let (mut home, pulled, mut times) = pulled(Home::on_loopback());
    home.wait_until_locked();
    times.add("locked", pulled.elapsed());
    fs::remove_file(home.disk.join("late")).unwrap();
    home.start_host();
    let back = home.key.plug_in();
    home.is_back();
    times.add_within(BACK, "plugged in: mounted again", back.elapsed());
    times.print("8 MiB sealed, refused later");
    let kept = home.world.sealed_files();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].extension().is_some_and(|extension| extension == "refused"), "{kept:?}");
    assert!(fs::metadata(&kept[0]).unwrap().len() > BYTES as u64);
    assert!(!home.disk.join("late").exists());
    home.unmount();
}

/// Two mounts of the key begin when it is back: one delivers, and the other waits for it.
#[test]
fn what_was_sealed_is_delivered_once() {
    need_mount!();
    let (mut home, pulled, mut times) = pulled(Home::on_loopback());
    home.wait_until_locked();
    times.add("locked", pulled.elapsed());
    home.start_host();
    let other = home.world.directory("other");
    let back = home.key.plug_in();
    home.world.mount(&home.key.source("disk"), &other, "timeout=20").ok();
    times.add("plugged in: mounted by hand", back.elapsed());
    home.has_arrived();
    home.is_back();
    times.add_within(BACK, "plugged in: both mounted", back.elapsed());
    times.print("8 MiB sealed, delivered once");
    home.world.mountd(&["unmount", other.to_str().unwrap()]).ok();
    home.unmount();
}

/// It waits for room, and then for the key.
#[test]
fn what_there_is_no_room_to_seal_is_not_lost() {
    need_mount!();
    need_root!();
    let home = Home::on_loopback();
    let folder = home.world.state(Side::Client).join("sealed");
    fs::create_dir_all(&folder).unwrap();
    let small = folder.to_str().unwrap();
    tool("mount", &["-t", "tmpfs", "-o", "size=64k,mode=0700", "none", small]);
    let (mut home, _, mut times) = pulled(home);
    assert_eq!(home.world.status(Side::Client)["mounts"][0]["state"], "draining");
    tool("mount", &["-o", "remount,size=64m", small]);
    let room = Instant::now();
    home.wait_until_locked();
    times.add("there is room: locked", room.elapsed());
    assert_eq!(home.world.sealed_files().len(), 1);
    home.start_host();
    let back = home.key.plug_in();
    home.is_back();
    times.add_within(BACK, "plugged in: mounted again", back.elapsed());
    times.print("8 MiB, no room to seal at first");
    home.has_arrived();
    home.unmount();
}
