//! The key gates the mount (D3), with key directories: K renamed is the key pulled.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::looker::Looker;
use crate::world::marker::{self, BACK, GONE, Times, Ways};
use crate::world::{
    Daemon, Paired, Side, World, eventually, is_mounted, need_mount, need_root, programs,
};

const MARKER: &str = "the marker that nobody may find when the key is away, 64 bytes..";
/// A program that writes when it is told to, and then waits for the disk.
const LATE: &str = r#"
import errno, os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
sys.stdin.readline()
os.write(file, b"before, ")
os.fsync(file)
print("written", flush=True)
sys.stdin.readline()
os.write(file, sys.argv[2].encode())
print("accepted", flush=True)
try:
    os.fsync(file)
    print("on the disk", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"#;

struct Home {
    world: World,
    key: Paired,
    disk: std::path::PathBuf,
    mountpoint: std::path::PathBuf,
    _server: Daemon,
    host: Option<Daemon>,
}

fn home(options: &str) -> Home {
    let world = World::on_loopback();
    let server = world.server("127.0.0.1:0");
    let disk = world.directory("disk");
    fs::write(disk.join("file"), MARKER).unwrap();
    let host = world.host(&server.ready, &[format!("docs={}", disk.display())]);
    let key = world.pair("K", &["--authorise"]);
    let mountpoint = world.directory("mnt");
    world.mount(&key.source("docs"), &mountpoint, options).ok();
    Home { world, key, disk, mountpoint, _server: server, host: Some(host) }
}

impl Home {
    fn reads(&self) -> bool {
        fs::read_to_string(self.mountpoint.join("file")).is_ok_and(|text| text == MARKER)
    }

    fn ways(&self) -> Ways {
        Ways::to(&self.mountpoint.join("file"), MARKER, std::slice::from_ref(&self.mountpoint))
    }

    fn start_host(&mut self) {
        self.host = Some(self.world.start(Side::Host, &["serve"]));
        eventually("the host at the server", Duration::from_secs(20), || {
            self.world.status(Side::Server)["hosts"] == 1
        });
    }
}

/// A process that runs [`LATE`]. Not this one: what it starts closes its copies of open files
/// first, and waits for that.
fn late(path: &Path) -> Looker {
    let mut command = Command::new("python3");
    command.args(["-c", LATE]).arg(path).arg(MARKER);
    Looker::start(command)
}

/// D3: neither through a descriptor, a mapping, a working directory, another mount namespace nor
/// the page cache, and the process that stays has nothing of it in its memory or in files.
#[test]
fn a_pulled_key_leaves_nothing_to_read() {
    need_mount!();
    need_root!();
    if let Some(missing) = programs::missing(&["python3", "unshare"]) {
        return crate::world::skip(&missing);
    }
    let home = home("allow_other");
    let mut ways = home.ways();
    fs::write(home.mountpoint.join("last"), MARKER).unwrap();
    let pulled = home.key.pull();
    let mut times = ways.closed(pulled);
    assert_eq!(fs::read_to_string(home.disk.join("last")).unwrap(), MARKER);
    marker::is_locked_up(&home.world, MARKER, pulled, &mut times);
    let back = home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(10), || home.reads());
    times.add_within(BACK, "plugged in: mounted again", back.elapsed());
    assert!(ways.old_are_closed(), "old descriptors stay dead");
    times.print("key pulled");
    home.world.unmount(&home.mountpoint);
}

/// D3: sticks have loose contacts.
#[test]
fn a_short_removal_only_makes_requests_wait() {
    need_mount!();
    let home = home("rw");
    assert!(home.reads());
    let before = home.world.mount_status()["connection_id"].clone();
    let open = fs::File::open(home.mountpoint.join("file")).unwrap();
    home.key.pull();
    home.key.plug_in();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
    assert_eq!(text, MARKER);
    assert!(home.reads());
    assert_eq!(home.world.mount_status()["connection_id"], before);
    home.world.unmount(&home.mountpoint);
}

/// D3, D4: who does not want to wait for the key ends it.
#[test]
fn a_locked_mount_can_be_unmounted() {
    need_mount!();
    let home = home("rw");
    let pulled = home.key.pull();
    let mut times = Times::default();
    eventually("the mount to be gone", Duration::from_secs(5), || !is_mounted(&home.mountpoint));
    times.add_within(GONE, "mount closed", pulled.elapsed());
    eventually("the mount to be locked", Duration::from_secs(5), || home.world.is_locked());
    let start = Instant::now();
    home.world.unmount(&home.mountpoint);
    times.add("locked: unmounted after", start.elapsed());
    times.print("key pulled, nothing open");
}

/// D3, D4: mounting by hand takes the place of what waits for the key.
#[test]
fn a_mount_by_hand_takes_the_place_of_a_locked_one() {
    need_mount!();
    let home = home("timeout=10");
    home.key.pull();
    eventually("the mount to be locked", Duration::from_secs(5), || home.world.is_locked());
    let other = home.world.directory("other");
    fs::rename(home.key.away(), other.join("K")).unwrap();
    let source = format!("{}:docs", other.join("K").display());
    home.world.mount(&source, &home.mountpoint, "timeout=10").ok();
    assert!(home.reads());
    home.world.unmount(&home.mountpoint);
}

/// D3, N1: what was accepted while the host was away is sealed when the key is pulled, and nobody
/// reads it there; with key and host back it arrives before anything else is looked at. That the
/// host is away makes nobody wait for the first, and `drain=` is as long as the second may take.
#[test]
fn what_cannot_be_delivered_is_sealed_until_the_key_is_back() {
    const DRAIN: Duration = Duration::from_secs(1);

    need_mount!();
    need_root!();
    if let Some(missing) = programs::missing(&["python3", "unshare"]) {
        return crate::world::skip(&missing);
    }
    let mut home = home("drain=1,grace=60,allow_other");
    let path = home.mountpoint.join("late");
    let (mut ways, mut late) = (home.ways(), late(&path));
    assert_eq!(late.look(), "written");
    home.host.take().unwrap().kill();
    assert_eq!(late.look(), "accepted");
    let pulled = home.key.pull();
    let mut times = ways.closed(pulled);
    eventually("the rest to be sealed", Duration::from_secs(10), || {
        let sealed = home.world.sealed_files();
        sealed.iter().any(|path| path.extension().is_none_or(|extension| extension != "new"))
    });
    let sealed = pulled.elapsed();
    assert!(sealed >= DRAIN, "the host has had {sealed:?} only");
    // and as long again for the machine's disk
    times.add_within(GONE + DRAIN + Duration::from_secs(1), "drain=1: the rest sealed", sealed);
    marker::is_locked_up(&home.world, MARKER, pulled, &mut times);
    assert_ne!(late.answer(), "on the disk");
    let pending = home.world.mount_status()["pending"].clone();
    assert!(pending["entries"].as_u64() > Some(0), "{pending}");
    home.world.mountd(&["sync", home.mountpoint.to_str().unwrap()]).refused(1, "key-missing");
    let sealed = home.world.sealed_files();
    assert_eq!(sealed.len(), 1);
    let bytes = fs::read(&sealed[0]).unwrap();
    assert!(!bytes.windows(32).any(|window| window == &MARKER.as_bytes()[..32]), "in clear text");
    assert!(!bytes.windows(4).any(|window| window == b"late"), "a name in clear text");
    home.start_host();
    let back = home.key.plug_in();
    eventually("the mount to be back", Duration::from_secs(30), || home.reads());
    times.add_within(BACK, "plugged in: mounted again", back.elapsed());
    let wanted = format!("before, {MARKER}");
    assert_eq!(fs::read_to_string(&path).unwrap(), wanted);
    assert_eq!(fs::read_to_string(home.disk.join("late")).unwrap(), wanted);
    assert_eq!(home.world.sealed_files(), Vec::<std::path::PathBuf>::new());
    times.print("key pulled, host away, a write accepted");
    home.world.unmount(&home.mountpoint);
}

/// N1: unmounting while the host is away loses nothing either, and says what it did.
#[test]
fn what_cannot_be_delivered_at_unmount_arrives_with_the_next_mount() {
    need_mount!();
    let mut home = home("grace=1");
    let path = home.mountpoint.join("late");
    let mut late = fs::File::create(&path).unwrap();
    home.host.take().unwrap().kill();
    late.write_all(MARKER.as_bytes()).unwrap();
    let unmounted = home.world.mountd(&["unmount", home.mountpoint.to_str().unwrap()]);
    unmounted.refused(1, "host-offline");
    assert!(is_mounted(&home.mountpoint), "an unmount that fails changes nothing");
    drop(late);
    let mountd = home.world.processes_of(b"p2pfs-mountd");
    rustix::process::kill_process(mountd[0], rustix::process::Signal::TERM).unwrap();
    home.world.assert_nothing_left(&home.mountpoint);
    assert_eq!(home.world.sealed_files().len(), 1);
    home.host = Some(home.world.start(Side::Host, &["serve"]));
    home.world.mount(&home.key.source("docs"), &home.mountpoint, "rw").ok();
    assert_eq!(fs::read_to_string(&path).unwrap(), MARKER);
    home.world.unmount(&home.mountpoint);
}

/// N1, R12: what was accepted is kept when the host's owner takes the key back, and arrives when he
/// gives it again; whoever waits for the host is told.
#[test]
fn what_a_revoked_key_has_left_arrives_when_it_is_authorised_again() {
    need_mount!();
    if let Some(missing) = programs::missing(&["python3"]) {
        return crate::world::skip(&missing);
    }
    let mut home = home("grace=600");
    let path = home.mountpoint.join("late");
    let mut late = late(&path);
    assert_eq!(late.look(), "written");
    home.host.take().unwrap().kill();
    assert_eq!(late.look(), "accepted");
    home.world.hostd(&["keys", "revoke", &home.key.id]).ok();
    home.host = Some(home.world.start(Side::Host, &["serve"]));
    // by the revocation, long before the grace is over
    assert_eq!(late.answer(), "ENOTCONN");
    home.world.assert_nothing_left(&home.mountpoint);
    let sealed = home.world.sealed_files();
    assert_eq!(sealed.len(), 1);
    let bytes = fs::read(&sealed[0]).unwrap();
    assert!(!bytes.windows(32).any(|window| window == &MARKER.as_bytes()[..32]), "in clear text");
    assert_eq!(fs::read(home.disk.join("late")).unwrap(), b"before, ");

    home.world.mount(&home.key.source("docs"), &home.mountpoint, "rw").refused(1, "key-revoked");
    assert_eq!(home.world.sealed_files().len(), 1);
    home.world.hostd(&["keys", "authorise", &home.key.id]).ok();
    home.world.mount(&home.key.source("docs"), &home.mountpoint, "rw").ok();
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("before, {MARKER}"));
    assert_eq!(home.world.sealed_files(), Vec::<std::path::PathBuf>::new());
    home.world.unmount(&home.mountpoint);
}

/// That looking for the marker finds it where it is.
#[test]
fn what_a_mount_has_read_is_in_its_memory() {
    need_mount!();
    need_root!();
    let home = home("rw");
    // what was changed just now is not kept
    eventually("what is read to be kept", Duration::from_secs(10), || {
        home.reads() && !marker::in_memory(&home.world, MARKER).is_empty()
    });
    home.world.unmount(&home.mountpoint);
    assert!(!Path::new(&home.mountpoint).join("file").exists());
    let folder = home.world.state(Side::Client).join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), format!("before, {MARKER}")).unwrap();
    assert_eq!(marker::in_files(&home.world, MARKER), [folder.join("file")]);
}
