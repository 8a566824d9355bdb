//! The habits of programs that ask much of a disk, on the mount: git, SQLite, a compiler (D1).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::world::outcome::tool;
use crate::world::{Home, need_mount, need_root, programs, skip};

/// Source files of the program that is built, and commits of the history that is cloned.
const MANY: usize = 40;

#[test]
fn git_clones_checks_out_and_finds_nothing_wrong() {
    need_mount!();
    if let Some(reason) = programs::missing(&["git"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback();
    let origin = home.world.directory("origin");
    make_history(&origin);
    home.mount("timeout=20");

    let (clone, away) = (home.mountpoint.join("clone"), home.world.path("away"));
    tool("git", &["clone", "-q", "--no-hardlinks", text(&origin), text(&clone)]);
    assert_eq!(git(&clone, &["fsck", "--full", "--strict"]), "");
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
    assert_eq!(git(&clone, &["log", "--format=%H"]), git(&origin, &["log", "--format=%H"]));
    // loose objects, a commit, a branch, an old tree and back, a packed repository
    fs::write(clone.join("mine"), "mine\n").unwrap();
    git(&clone, &["add", "mine"]);
    git(&clone, &["commit", "-q", "-m", "mine"]);
    git(&clone, &["checkout", "-q", "-b", "old", "HEAD~20"]);
    assert!(!clone.join("mine").exists());
    git(&clone, &["checkout", "-q", "-"]);
    git(&clone, &["gc", "-q", "--prune=now"]);
    assert_eq!(git(&clone, &["fsck", "--full", "--strict"]), "");
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");

    // the host's disk holds the same, and so does a clone of the mount
    home.sync();
    let on_disk = home.disk.join("clone");
    assert_eq!(git(&on_disk, &["fsck", "--full", "--strict"]), "");
    assert_eq!(git(&on_disk, &["status", "--porcelain"]), "");
    tool("git", &["clone", "-q", "--no-hardlinks", text(&clone), text(&away)]);
    assert_eq!(git(&away, &["log", "--format=%H"]), git(&on_disk, &["log", "--format=%H"]));

    home.unmount();
}

/// `sqlite3` with a write-ahead log, which two processes map at once.
#[test]
fn a_database_with_a_write_ahead_log_has_two_writers() {
    need_mount!();
    if let Some(reason) = programs::missing(&["sqlite3"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let sqlite = |dir: &Path, statements: &str| {
        let database = dir.join("db");
        tool("sqlite3", &["-cmd", ".timeout 60000", text(&database), statements]).stdout
    };
    let made = sqlite(&home.mountpoint, "PRAGMA journal_mode=WAL; CREATE TABLE t (w, n);");
    assert_eq!(made, "wal\n");
    thread::scope(|scope| {
        for writer in [0, 1] {
            let (sqlite, dir) = (&sqlite, &home.mountpoint);
            scope.spawn(move || {
                for some in 0..5 {
                    // each statement is a transaction of its own
                    let insert = |n| format!("INSERT INTO t VALUES ({writer}, {some}{n});");
                    sqlite(dir, &(0..10).map(insert).collect::<String>());
                }
            });
        }
    });
    let check = "PRAGMA integrity_check; SELECT count(*), count(DISTINCT w || '-' || n) FROM t;";
    assert_eq!(sqlite(&home.mountpoint, check), "ok\n100|100\n");
    home.sync();
    assert_eq!(sqlite(&home.disk, check), "ok\n100|100\n");
    home.unmount();
}

#[test]
fn a_program_is_compiled_archived_linked_and_run() {
    need_mount!();
    if let Some(reason) = programs::missing(&["cc", "ar"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let dir = home.mountpoint.join("program");
    fs::create_dir(&dir).unwrap();
    for part in 0..MANY {
        let source = format!("int part_{part}(void) {{ return {part}; }}\n");
        fs::write(dir.join(format!("part-{part}.c")), source).unwrap();
    }
    let declared = |part| format!("int part_{part}(void);\n");
    let added = |part| format!(" + part_{part}()");
    let (head, sum): (String, String) =
        ((0..MANY).map(declared).collect(), (0..MANY).map(added).collect());
    let main = format!("#include <stdio.h>\n{head}int main(void) {{ printf(\"%d\\n\", 0{sum}); }}");
    fs::write(dir.join("main.c"), main).unwrap();

    // as `make -j 4` does
    thread::scope(|scope| {
        for first in 0..4 {
            let dir = &dir;
            scope.spawn(move || {
                for part in (first..MANY).step_by(4) {
                    let object = format!("part-{part}.o");
                    within(dir, "cc", &["-c", &format!("part-{part}.c"), "-o", &object]);
                }
            });
        }
    });
    let objects: Vec<String> = (0..MANY).map(|part| format!("part-{part}.o")).collect();
    let mut archive = vec!["rcs", "libparts.a"];
    archive.extend(objects.iter().map(String::as_str));
    within(&dir, "ar", &archive);
    within(&dir, "cc", &["main.c", "-L.", "-lparts", "-o", "program"]);
    let sum = format!("{}\n", (0..MANY).sum::<usize>());
    assert_eq!(within(&dir, "./program", &[]), sum);
    home.sync();
    assert_eq!(within(&home.disk.join("program"), "./program", &[]), sum);
    home.unmount();
}

/// What the host's quota refuses is told as that, and what it took is there.
#[test]
fn a_quota_is_told_as_a_quota() {
    need_mount!();
    need_root!();
    if let Some(reason) = programs::missing(&["mkfs.btrfs", "btrfs"]) {
        return skip(&reason);
    }
    let mut mounted = None;
    let home = Home::on_loopback_with(&["--authorise"], |disk| {
        let (image, whole) = (disk.with_extension("image"), disk.with_extension("whole"));
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        fs::create_dir(&whole).unwrap();
        tool("mkfs.btrfs", &["-q", text(&image)]);
        tool("mount", &["-o", "loop", text(&image), text(&whole)]);
        tool("btrfs", &["quota", "enable", text(&whole)]);
        let volume = whole.join("volume");
        tool("btrfs", &["subvolume", "create", text(&volume)]);
        tool("btrfs", &["qgroup", "limit", "4M", text(&volume)]);
        tool("mount", &["-o", "loop,subvol=volume", text(&image), text(disk)]);
        mounted = Some(whole);
    });
    home.mount("timeout=20");
    let small = home.mountpoint.join("small");
    fs::write(&small, "before\n").unwrap();
    home.sync();
    // at a write, at fsync or at close: before dd is done
    let mut dd = Command::new("dd");
    let to = format!("of={}", home.mountpoint.join("large").display());
    dd.args(["if=/dev/zero", &to, "bs=64k", "count=128", "conv=fsync"]).env("LC_ALL", "C");
    let said = dd.output().unwrap();
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && error.contains("quota exceeded"), "{error}");
    assert_eq!(fs::read_to_string(&small).unwrap(), "before\n");
    // there is room again
    fs::remove_file(home.mountpoint.join("large")).unwrap();
    home.sync();
    tool("btrfs", &["filesystem", "sync", text(&home.disk)]);
    fs::write(&small, "after\n").unwrap();
    home.sync();
    assert_eq!(fs::read_to_string(home.disk.join("small")).unwrap(), "after\n");
    home.unmount();
}

/// A history whose trees differ.
fn make_history(dir: &Path) {
    git(dir, &["init", "-q", "-b", "main"]);
    for number in 0..MANY {
        let part = dir.join(format!("part-{}", number % 5));
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join(format!("file-{number}")), format!("{number}\n").repeat(number * 50))
            .unwrap();
        if number % 7 == 3 {
            fs::remove_file(dir.join(format!("part-{}/file-{}", (number - 1) % 5, number - 1)))
                .unwrap();
        }
        git(dir, &["add", "-A"]);
        git(dir, &["commit", "-q", "-m", &format!("commit {number}")]);
    }
}

#[track_caller]
fn git(dir: &Path, args: &[&str]) -> String {
    let who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost"];
    let quiet = ["-c", "gc.auto=0", "-c", "safe.directory=*", "-C", text(dir)];
    tool("git", &[&who[..], &quiet[..], args].concat()).stdout
}

/// Runs a program with `dir` as its working directory; what it printed.
#[track_caller]
fn within(dir: &Path, program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
