//! Owners, permissions, ACLs, extended attributes, special files, errors: on the mount as on the
//! disk (D1).

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Dir, Mode, OFlags};

use crate::world::outcome::tool;
use crate::world::{Home, Outcome, World, eventually, need_mount, need_root, programs, skip};

const IDENTITY: [&str; 3] = ["--authorise", "--map", "identity"];
/// What the owner's user has as its number.
const ALICE: u32 = 4711;

#[test]
fn a_session_in_a_shell_says_the_same_on_the_mount_and_on_the_disk() {
    need_mount!();
    need_root!();
    let tools = ["setfacl", "setfattr", "setcap", "setpriv", "python3"];
    if let Some(reason) = programs::missing(&tools) {
        return skip(&reason);
    }
    let home = Home::on_loopback_with(&IDENTITY, |_| {});
    home.mount("allow_other,timeout=20");

    let disk = session(&home.world.directory("disk/direct"));
    let mount = session(&home.mountpoint.join("there"));
    for (disk, mount) in disk.lines().zip(mount.lines()) {
        assert_eq!(mount, disk, "the mount says the first, the disk the second");
    }
    assert_eq!(mount.lines().count(), disk.lines().count());
    assert!(disk.lines().count() > 150, "{disk}");

    home.unmount();
}

#[test]
fn the_hosts_errors_are_told_as_they_are() {
    need_mount!();
    need_root!();
    let world = World::on_loopback();
    let (disk, small) = (world.directory("disk"), world.directory("small"));
    let inner = world.directory("disk/inner");
    let small_text = small.to_str().unwrap();
    tool("mount", &["-t", "tmpfs", "-o", "size=1M", "tmpfs", small_text]);
    tool("mount", &["-t", "tmpfs", "tmpfs", inner.to_str().unwrap()]);
    let server = world.server("127.0.0.1:0");
    let shares = [format!("disk={}", disk.display()), format!("small={small_text}")];
    let _host = world.host(&server.ready, &shares);
    let key = world.pair("key", &IDENTITY);
    let here = world.directory("home");

    world.mount(&key.source("disk"), &here, "allow_other,timeout=20").ok();
    // another file system in the share is not part of it
    assert_eq!(number(fs::metadata(here.join("inner"))), libc_errno::EXDEV);
    assert_eq!(number(fs::write(here.join("inner/file"), "x")), libc_errno::EXDEV);
    fs::write(disk.join("fixed"), "x").unwrap();
    tool("chattr", &["+i", disk.join("fixed").to_str().unwrap()]);
    let fixed = here.join("fixed");
    let refused = [
        number(fs::write(&fixed, "y")),
        number(fs::remove_file(&fixed)),
        number(fs::rename(&fixed, here.join("moved"))),
        number(fs::hard_link(&fixed, here.join("moved"))),
        number(fs::set_permissions(&fixed, Permissions::from_mode(0o600))),
    ];
    tool("chattr", &["-i", disk.join("fixed").to_str().unwrap()]);
    assert_eq!(refused, [libc_errno::EPERM; 5]);
    // the mount's own root
    assert_eq!(number(fs::remove_dir(&here)), libc_errno::EBUSY);
    assert_eq!(number(fs::rename(&here, world.path("elsewhere"))), libc_errno::EBUSY);
    tool("umount", &[inner.to_str().unwrap()]);
    world.unmount(&here);

    world.mount(&key.source("small"), &here, "allow_other,timeout=20").ok();
    assert_eq!(number(fill(&here.join("large"))), libc_errno::ENOSPC);
    fs::remove_file(here.join("large")).unwrap();
    fs::write(here.join("kept"), "x").unwrap();
    // the host closes files in its own time
    eventually("the disk to become read-only", Duration::from_secs(10), || {
        let remount = Command::new("mount").args(["-o", "remount,ro", small_text]).output();
        remount.unwrap().status.success()
    });
    assert_eq!(number(fs::write(here.join("new"), "x")), libc_errno::EROFS);
    assert_eq!(number(fs::remove_file(here.join("kept"))), libc_errno::EROFS);
    assert_eq!(fs::read(here.join("kept")).unwrap(), b"x");
    world.unmount(&here);
}

#[test]
fn files_made_with_a_key_belong_to_the_owner_of_the_share() {
    need_mount!();
    need_root!();
    let home = Home::on_loopback_with(&["--authorise"], |disk| {
        chown(disk, Some(ALICE), Some(ALICE)).unwrap();
    });
    fs::write(home.disk.join("secret"), "root's").unwrap();
    fs::set_permissions(home.disk.join("secret"), Permissions::from_mode(0o600)).unwrap();
    home.mount("timeout=20");

    fs::write(home.mountpoint.join("file"), "alice's").unwrap();
    fs::create_dir(home.mountpoint.join("dir")).unwrap();
    for name in ["file", "dir"] {
        let made = fs::metadata(home.disk.join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (ALICE, ALICE), "{name}");
    }
    // the key may do what its owner may, and no more
    assert_eq!(number(fs::read(home.mountpoint.join("secret"))), libc_errno::EACCES);
    let given = chown(home.mountpoint.join("file"), Some(1), None);
    assert_eq!(number(given), libc_errno::EPERM);
    home.unmount();
}

#[test]
fn the_map_is_chosen_at_pairing_and_shown() {
    let world = World::on_loopback();
    let (disk, server) = (world.directory("disk"), world.server("127.0.0.1:0"));
    let _host = world.host(&server.ready, &[format!("disk={}", disk.display())]);
    world.pair("plain", &["--authorise"]);
    let identity = ["pair", "--key", "", "--map", "identity"];
    let key = world.directory("other");
    let args = identity.map(|arg| if arg.is_empty() { key.to_str().unwrap() } else { arg });
    if programs::is_root() {
        world.hostd(&args).ok();
        let keys = world.hostd(&["keys", "list", "--json"]).ok().json();
        let maps: Vec<_> = keys.as_array().unwrap().iter().map(|key| &key["map"]).collect();
        assert_eq!(maps, ["squash", "identity"]);
        assert!(world.hostd(&["keys", "list"]).ok().stdout.contains("map=identity"));
    } else {
        world.hostd(&args).refused(2, "usage");
    }
    let wrong = ["pair", "--key", key.to_str().unwrap(), "--map", "both"];
    world.hostd(&wrong).refused(2, "usage");
}

#[test]
fn a_directory_of_100_000_entries_is_listed_and_stays_in_its_place() {
    need_mount!();
    let home = Home::on_loopback();
    let dir = home.world.directory("disk/large");
    for number in 0..100_000 {
        rustix::fs::mknodat(
            CWD,
            dir.join(format!("entry-{number:06}")),
            rustix::fs::FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
    }
    home.mount("timeout=20");
    let start = Instant::now();
    let listed = fs::read_dir(home.mountpoint.join("large")).unwrap().count();
    let took = start.elapsed();
    assert_eq!(listed, 100_000);
    assert!(took < Duration::from_secs(60), "{took:?}");
    eprintln!("100,000 entries listed in {took:?}");

    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let opened = rustix::fs::open(home.mountpoint.join("large"), flags, Mode::empty()).unwrap();
    let mut stream = Dir::new(opened).unwrap();
    let mut names = Vec::new();
    let mut place = 0;
    while let Some(entry) = stream.read() {
        let entry = entry.unwrap();
        names.push(entry.file_name().to_owned());
        if names.len() == 50_000 {
            place = entry.offset();
        }
    }
    // entries before the place go, and the place stays
    for name in names.iter().skip(2).take(1_000) {
        fs::remove_file(dir.join(name.to_str().unwrap())).unwrap();
    }
    stream.seek(place).unwrap();
    for name in &names[50_000..52_000] {
        assert_eq!(stream.read().unwrap().unwrap().file_name(), name.as_c_str());
    }
    home.unmount();
}

/// Runs the session in a new directory; what it says.
#[track_caller]
fn session(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attributes/session.sh");
    let mut command = Command::new("bash");
    command.arg(script).current_dir(dir).env("LC_ALL", "C");
    Outcome::of(command, Duration::from_secs(60)).stdout
}

/// Writes 4 MiB, until they are on the disk.
fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..64 {
        file.write_all(&[7; 65_536])?;
    }
    file.sync_all()
}

/// The error's number; 0 if there is none.
fn number<T>(result: std::io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

/// Linux's numbers, as a test reads them.
mod libc_errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const EXDEV: i32 = 18;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
}
