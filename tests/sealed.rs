//! What was accepted and could not be delivered when the key was pulled (D3, N1).

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::world::outcome::tool;
use crate::world::{Home, Side, eventually, is_mounted, need_mount, need_root};

const BYTES: usize = 8 << 20;

/// A mount whose host was killed before it could get `late`, and whose key was pulled then.
fn pulled(mut home: Home) -> Home {
    home.mount("drain=0,grace=60,timeout=20");
    let mut late = fs::File::create(home.mountpoint.join("late")).unwrap();
    late.sync_all().unwrap();
    home.host.kill_now();
    late.write_all(&vec![b'x'; BYTES]).unwrap();
    home.key.pull();
    eventually("the mount to be gone", Duration::from_secs(10), || !is_mounted(&home.mountpoint));
    home
}

impl Home {
    fn wait_until_locked(&self) {
        eventually("the mount to be locked", Duration::from_secs(20), || self.world.is_locked());
    }

    fn start_host(&mut self) {
        self.host = self.world.start(Side::Host, &["serve"]);
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
    let mut home = pulled(Home::on_loopback());
    home.wait_until_locked();
    fs::remove_file(home.disk.join("late")).unwrap();
    home.start_host();
    home.key.plug_in();
    home.is_back();
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
    let mut home = pulled(Home::on_loopback());
    home.wait_until_locked();
    home.start_host();
    let other = home.world.directory("other");
    home.key.plug_in();
    home.world.mount(&home.key.source("disk"), &other, "timeout=20").ok();
    home.has_arrived();
    home.is_back();
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
    let mut home = pulled(home);
    assert_eq!(home.world.status(Side::Client)["mounts"][0]["state"], "draining");
    tool("mount", &["-o", "remount,size=64m", small]);
    home.wait_until_locked();
    assert_eq!(home.world.sealed_files().len(), 1);
    home.start_host();
    home.key.plug_in();
    home.is_back();
    home.has_arrived();
    home.unmount();
}
