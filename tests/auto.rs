//! `auto`: keys that appear are mounted, pulled ones gated (D3, D7), with key directories.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::world::looker::Looker;
use crate::world::marker::{self, BACK, Ways};
use crate::world::{
    Daemon, Paired, Side, World, eventually, is_mounted, need_mount, need_root, programs,
};

const MARKER: &str = "the marker that nobody may find when the key is away, 64 bytes..";

struct Homes {
    world: World,
    places: PathBuf,
    under: PathBuf,
    _server: Daemon,
    host: Daemon,
}

/// A host with the shares `docs` and `pictures`, and a place where keys appear.
fn homes() -> Homes {
    let world = World::on_loopback();
    let server = world.server("127.0.0.1:0");
    let shares = ["docs", "pictures"].map(|share| {
        let disk = world.directory(share);
        fs::write(disk.join("file"), format!("{MARKER} {share}")).unwrap();
        format!("{share}={}", disk.display())
    });
    let host = world.host(&server.ready, &shares);
    let (places, under) = (world.directory("places"), world.path("under"));
    Homes { world, places, under, _server: server, host }
}

impl Homes {
    /// Returns when something is mounted.
    fn watch(&self) -> Daemon {
        let [places, under] = [&self.places, &self.under].map(|path| path.to_str().unwrap());
        let args = ["auto", places, "--under", under, "-o", "drain=1,grace=60"];
        self.world.start(Side::Client, &args)
    }

    fn plug_in(&self, key: &Paired) -> Instant {
        fs::rename(&key.dir, self.places.join("stick")).unwrap();
        Instant::now()
    }

    fn pull(&self, key: &Paired) -> Instant {
        fs::rename(self.places.join("stick"), &key.dir).unwrap();
        Instant::now()
    }

    fn start_host(&mut self) {
        self.host = self.world.start(Side::Host, &["serve"]);
        eventually("the host at the server", Duration::from_secs(20), || {
            self.world.status(Side::Server)["hosts"] == 1
        });
    }

    fn folder(&self, share: &str) -> PathBuf {
        let mut hosts = fs::read_dir(&self.under).unwrap();
        hosts.next().unwrap().unwrap().path().join(share)
    }

    fn reads(&self, share: &str) -> bool {
        let read = fs::read_to_string(self.folder(share).join("file"));
        read.is_ok_and(|text| text == format!("{MARKER} {share}"))
    }
}

/// Also what the host could not be given any more is neither lost nor left in clear text.
#[test]
fn a_key_that_appears_is_mounted_and_a_pulled_one_is_not() {
    need_mount!();
    need_root!();
    if let Some(missing) = programs::missing(&["python3", "unshare"]) {
        return crate::world::skip(&missing);
    }
    let mut homes = homes();
    let key = homes.world.pair("K", &["--authorise"]);
    homes.plug_in(&key);
    let watcher = homes.watch();
    eventually("both shares", Duration::from_secs(10), || {
        homes.reads("docs") && homes.reads("pictures")
    });
    let folders = ["docs", "pictures"].map(|share| homes.folder(share));
    let mut ways = Ways::to(&folders[0].join("file"), MARKER, &folders);
    let late = folders[1].join("late");
    let mut writer = Looker::writer(&late, MARKER);
    homes.host.kill_now();
    assert_eq!(writer.look(), "accepted");

    let pulled = homes.pull(&key);
    let mut times = ways.closed(pulled);
    eventually("both to wait for the key", Duration::from_secs(5), || {
        let status = homes.world.status(Side::Client);
        let mounts = status["mounts"].as_array().unwrap().clone();
        mounts.len() == 2 && mounts.iter().all(|mount| mount["state"] == "locked")
    });
    times.add("drain=1: both locked", pulled.elapsed());
    marker::is_nowhere(&homes.world, MARKER);
    assert_eq!(homes.world.sealed_files().len(), 1);

    homes.start_host();
    let back = homes.plug_in(&key);
    eventually("both to be back", Duration::from_secs(10), || {
        homes.reads("docs") && homes.reads("pictures")
    });
    times.add_within(BACK, "plugged in: both mounted again", back.elapsed());
    assert!(ways.old_are_closed(), "old descriptors stay dead");
    assert_eq!(fs::read_to_string(&late).unwrap(), MARKER);
    assert_eq!(homes.world.sealed_files(), Vec::<PathBuf>::new());
    times.print("auto: key pulled, host away, a write accepted");
    drop((ways, writer));
    watcher.stop();
    for folder in folders {
        homes.world.assert_nothing_left(&folder);
        assert!(!folder.exists(), "what it made is gone");
    }
}

/// N1: who asks twice does not want to wait for the host; nothing is mounted any more, and nothing
/// lost.
#[test]
fn what_is_pending_when_it_ends_is_sealed() {
    need_mount!();
    if let Some(missing) = programs::missing(&["python3"]) {
        return crate::world::skip(&missing);
    }
    let mut homes = homes();
    let key = homes.world.pair("K", &["--authorise", "--shares", "docs"]);
    homes.plug_in(&key);
    let watcher = homes.watch();
    let folder = homes.folder("docs");
    let mut writer = Looker::writer(&folder.join("late"), MARKER);
    homes.host.kill_now();
    assert_eq!(writer.look(), "accepted");
    kill_process(watcher.pid(), Signal::TERM).unwrap();
    eventually("the mount to deliver", Duration::from_secs(5), || {
        homes.world.status(Side::Client)["mounts"][0]["state"] == "draining"
    });
    kill_process(watcher.pid(), Signal::TERM).unwrap();
    homes.world.assert_nothing_left(&folder);
    assert_eq!(homes.world.sealed_files().len(), 1);
    assert_eq!(marker::in_files(&homes.world, MARKER), Vec::<PathBuf>::new());
}

#[test]
fn a_key_is_mounted_when_it_is_authorised_and_left_alone_when_it_is_unmounted() {
    need_mount!();
    let homes = homes();
    let key = homes.world.pair("K", &["--shares", "docs"]);
    homes.plug_in(&key);
    // returns only when it is mounted
    let watcher = std::thread::scope(|scope| {
        let watching = scope.spawn(|| homes.watch());
        eventually("the host to have seen the key", Duration::from_secs(20), || {
            let keys = homes.world.hostd(&["keys", "list", "--json"]).ok().json();
            !keys[0]["last_seen"].is_null()
        });
        homes.world.hostd(&["keys", "authorise", &key.id]).ok();
        watching.join().unwrap()
    });
    assert!(homes.reads("docs"));
    let folder = homes.folder("docs");
    homes.world.mountd(&["unmount", folder.to_str().unwrap()]).ok();
    eventually("it to be unmounted", Duration::from_secs(5), || !is_mounted(&folder));
    homes.pull(&key);
    homes.plug_in(&key);
    eventually("it to be mounted again", Duration::from_secs(10), || {
        folder.exists() && homes.reads("docs")
    });
    watcher.stop();
    homes.world.assert_nothing_left(&folder);
}
