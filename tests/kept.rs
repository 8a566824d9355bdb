//! What is open stays open when the host is killed or its machine restarted (N1): on real mounts.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{Dir, RawDir};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Home, eventually, need_mount, need_root};

/// Files that are open, each with something that its name or mode no longer says.
struct Open {
    plain: File,
    unlinked: File,
    replaced: File,
    made_unwritable: File,
    mode_taken: File,
}

impl Open {
    fn all(home: &Home) -> Self {
        let at = |name: &str| home.mountpoint.join(name);
        for name in ["plain", "unlinked", "replaced", "mode-taken"] {
            fs::write(at(name), format!("this is {name}\n")).unwrap();
        }
        let open = |name: &str| OpenOptions::new().read(true).write(true).open(at(name)).unwrap();
        let made_unwritable =
            OpenOptions::new().write(true).create_new(true).mode(0o444).open(at("unwritable"));
        let all = Self {
            plain: open("plain"),
            unlinked: open("unlinked"),
            replaced: open("replaced"),
            made_unwritable: made_unwritable.unwrap(),
            mode_taken: open("mode-taken"),
        };
        fs::remove_file(at("unlinked")).unwrap();
        fs::write(at("other"), "somebody else\n").unwrap();
        fs::rename(at("other"), at("replaced")).unwrap();
        fs::set_permissions(at("mode-taken"), Permissions::from_mode(0o0)).unwrap();
        assert_eq!(all.unlinked.metadata().unwrap().nlink(), 0);
        assert_eq!(all.replaced.metadata().unwrap().nlink(), 0);
        assert_eq!(held(home).len(), 2);
        all
    }

    /// Reads what was there before, and writes on.
    fn goes_on(&self, home: &Home) {
        for (file, name) in [
            (&self.plain, "plain"),
            (&self.unlinked, "unlinked"),
            (&self.replaced, "replaced"),
            (&self.mode_taken, "mode-taken"),
        ] {
            let said = format!("this is {name}\n");
            assert_eq!(content(file), said);
            file.write_all_at(b"and more\n", said.len() as u64).unwrap();
            file.sync_all().unwrap();
            assert_eq!(content(file), said + "and more\n");
        }
        assert_eq!(self.unlinked.metadata().unwrap().nlink(), 0);
        self.made_unwritable.write_all_at(b"written\n", 0).unwrap();
        self.made_unwritable.sync_all().unwrap();
        assert_eq!(fs::read(home.disk.join("unwritable")).unwrap(), b"written\n");
        assert_eq!(fs::read(home.disk.join("replaced")).unwrap(), b"somebody else\n");
        assert!(!home.disk.join("unlinked").exists());
    }
}

#[test]
fn what_is_open_goes_on_when_the_host_is_killed() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let open = Open::all(&home);
    nothing_hidden_shows(&home);

    home.restart_host();
    open.goes_on(&home);
    assert_eq!(held(&home).len(), 2);
    home.restart_host();
    nothing_hidden_shows(&home);
    drop(open);
    eventually("what nobody has open to go", Duration::from_secs(10), || held(&home).is_empty());
    home.unmount();
    assert_eq!(records(&home), 0, "of sessions that are over");
}

#[test]
fn what_is_open_goes_on_after_another_boot() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let open = Open::all(&home);

    home.reboot_host();
    open.goes_on(&home);
    drop(open);
    eventually("what nobody has open to go", Duration::from_secs(10), || held(&home).is_empty());
    home.unmount();
}

/// As on a disk that is full by then.
#[test]
fn what_is_refused_after_another_boot_is_told_by_fsync() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let at = |name: &str| home.mountpoint.join(name);
    let stable = File::create(at("stable")).unwrap();
    stable.sync_all().unwrap();
    home.sync();
    let before = File::options().write(true).open(at("hello")).unwrap();
    before.write_all_at(b"at home\n", 0).unwrap();
    // also to whoever closed it: it is applied
    fs::write(at("new"), "new\n").unwrap();
    let after = File::open(at("new")).unwrap();

    home.reboot_host_with(&["--read-only", "disk"]);
    for (file, name) in [(&before, "hello"), (&after, "new")] {
        assert!(file.sync_all().is_err(), "{name}: fsync says that refused data is on the disk");
    }
    stable.sync_all().unwrap();
    for file in [&before, &after] {
        file.sync_all().unwrap();
    }
    drop((stable, before, after));
    home.unmount();
}

/// A machine that is switched off in order forgets nothing: what others do meanwhile stays.
#[test]
fn what_was_done_before_an_orderly_end_is_not_done_again() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    fs::write(home.mountpoint.join("hello"), "by the client\n").unwrap();
    let disk = home.disk.join("hello");
    home.reboot_ended_host_after(|| fs::write(&disk, "by another since\n").unwrap());
    // it goes on: what is to come again has come before
    fs::write(home.mountpoint.join("other"), "goes on\n").unwrap();
    home.sync();
    assert_eq!(fs::read_to_string(home.disk.join("hello")).unwrap(), "by another since\n");
    home.unmount();
}

/// As by a power cut that came before the disk had it.
#[test]
fn nobody_sees_the_disk_before_what_it_forgot_is_there_again() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    home.sync();
    let names: Vec<String> = (0..100).map(|number| format!("file-{number}")).collect();
    for name in &names {
        fs::write(home.mountpoint.join(name), "x".repeat(100_000)).unwrap();
    }
    let last = home.mountpoint.join(names.last().unwrap());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks = 0;
            while !is_over.load(Ordering::SeqCst) {
                let size = fs::metadata(&last).map(|found| found.len());
                assert!(matches!(size, Ok(100_000)), "after {looks} looks: {size:?}");
                let read = fs::read(&last).map(|data| data.len());
                assert!(matches!(read, Ok(100_000)), "after {looks} looks: {read:?}");
                looks += 1;
            }
        });
        let disk = home.disk.clone();
        home.reboot_host_after(|| {
            names.iter().for_each(|name| fs::write(disk.join(name), "").unwrap());
        });
        home.sync();
        is_over.store(true, Ordering::SeqCst);
        looks.join().unwrap();
    });
    for name in &names {
        assert_eq!(fs::metadata(home.disk.join(name)).unwrap().len(), 100_000);
    }
    home.unmount();
}

#[test]
fn a_listing_goes_on_when_the_host_is_killed() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    let dir = home.disk.join("many");
    fs::create_dir(&dir).unwrap();
    let names: Vec<String> =
        (0..5000).map(|number| format!("a-name-of-number-{number:05}")).collect();
    for name in &names {
        File::create(dir.join(name)).unwrap();
    }
    home.mount("timeout=20,grace=60");
    let listed = File::open(home.mountpoint.join("many")).unwrap();
    let mut buffer = Vec::with_capacity(4096);
    let mut raw = RawDir::new(&listed, buffer.spare_capacity_mut());
    let mut seen = Vec::new();
    for _ in 0..100 {
        seen.push(raw.next().unwrap().unwrap().file_name().to_str().unwrap().to_owned());
    }
    home.restart_host();
    while let Some(entry) = raw.next() {
        seen.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
    }
    seen.retain(|name| !name.starts_with('.'));
    seen.sort();
    assert_eq!(seen, names);
    drop(listed);
    home.unmount();
}

#[test]
fn what_a_process_of_the_host_removes_is_read_on() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let [removed, renamed] = ["removed", "renamed"].map(|name| {
        fs::write(home.disk.join(name), "still here").unwrap();
        File::open(home.mountpoint.join(name)).unwrap()
    });
    fs::remove_file(home.disk.join("removed")).unwrap();
    fs::rename(home.disk.join("renamed"), home.disk.join("elsewhere")).unwrap();
    assert_eq!(content(&removed), "still here");
    assert_eq!(content(&renamed), "still here");
    drop((removed, renamed));
    home.unmount();
}

/// Another client's open file stays as well, and its last name is what counts.
#[test]
fn what_another_client_has_open_stays() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let second = home.second_mount("timeout=20,grace=60");
    fs::write(home.mountpoint.join("shared"), "for both").unwrap();
    fs::hard_link(home.mountpoint.join("shared"), home.mountpoint.join("twice")).unwrap();
    let open = File::open(second.mountpoint.join("shared")).unwrap();
    fs::remove_file(home.mountpoint.join("shared")).unwrap();
    assert_eq!(held(&home).len(), 0, "it has a name yet");
    fs::remove_file(home.mountpoint.join("twice")).unwrap();
    assert_eq!(held(&home).len(), 1);
    home.restart_host();
    assert_eq!(content(&open), "for both");
    drop(open);
    eventually("what nobody has open to go", Duration::from_secs(10), || held(&home).is_empty());
    second.unmount(&home);
    home.unmount();
}

/// A power cut right after one client's `fsync`. Another one, whose older write of the same file
/// was not on the disk before, is the first to come back.
#[test]
fn what_fsync_confirmed_is_not_overwritten_by_what_another_client_does_again() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let first = home.world.processes_of(b"p2pfs-mountd");
    let second_mount = home.second_mount("timeout=20,grace=60");
    let mut second = home.world.processes_of(b"p2pfs-mountd");
    second.retain(|pid| !first.contains(pid));
    let tell = |pids: &[Pid], signal| {
        pids.iter().for_each(|pid| kill_process(*pid, signal).unwrap());
    };
    let on_disk = home.disk.join("shared");
    for (older, newer) in [("an older one\n", "a newer one\n"), ("the first\n", "the last\n")] {
        fs::write(home.mountpoint.join("shared"), older).unwrap();
        eventually("the host to have it", Duration::from_secs(4), || {
            fs::read_to_string(&on_disk).is_ok_and(|content| content == older)
        });
        tell(&first, Signal::STOP);
        let by_second = second_mount.mountpoint.join("shared");
        let newest = File::options().write(true).truncate(true).open(&by_second).unwrap();
        newest.write_all_at(newer.as_bytes(), 0).unwrap();
        newest.sync_all().unwrap();
        // closing it asks who is stopped by then
        drop(newest);
        home.reboot_host_after(|| {
            tell(&second, Signal::STOP);
            tell(&first, Signal::CONT);
        });
        // it goes on: what is to come again has come before
        fs::write(home.mountpoint.join("other"), "goes on\n").unwrap();
        home.sync();
        assert_eq!(fs::read_to_string(&on_disk).unwrap(), newer);
        tell(&second, Signal::CONT);
        assert_eq!(fs::read_to_string(&by_second).unwrap(), newer);
    }
    second_mount.unmount(&home);
    home.unmount();
}

fn content(mut file: &File) -> String {
    use std::io::Seek;

    file.rewind().unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    content
}

fn held(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.disk.join(".p2pfs/held")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Files in which the host remembers what sessions have open.
fn records(home: &Home) -> usize {
    let state = home.world.state(crate::world::Side::Host).join("sessions");
    let entries = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|is| is == "opens")).count()
}

/// No client sees what is kept, nor gets at it.
fn nothing_hidden_shows(home: &Home) {
    let ours = home.mountpoint.join(".p2pfs");
    assert!(!ours.exists());
    let held = held(home);
    let name = held.first().and_then(|path| path.file_name()).unwrap_or_default();
    assert!(!ours.join("held").join(name).exists());
    assert!(fs::create_dir(&ours).is_err());
    assert!(fs::rename(home.mountpoint.join("hello"), &ours).is_err());
    for dir in [Path::new(""), Path::new("..")] {
        let listed = Dir::read_from(File::open(home.mountpoint.join(dir)).unwrap()).unwrap();
        let hidden = listed.flatten().any(|entry| {
            entry.file_name().to_bytes().starts_with(b".fuse_hidden")
                || (dir == Path::new("") && entry.file_name().to_bytes() == b".p2pfs")
        });
        assert!(!hidden);
    }
}
