//! pjdfstest, what POSIX asks of a file system: on the mount the same as on the ext4 behind it.
//!
//! The tool is a program of its own: `tests/setup.sh` says how it is had.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::world::outcome::tool;
use crate::world::{Home, Outcome, need_mount, need_root, programs, skip};

const EXCEPTIONS: &str = include_str!("pjdfstest.exceptions");
const EXCEPTIONS_MAX: usize = 5;
/// So many tests there are at least; fewer, and something was not run.
const TESTS_MIN: usize = 390;
/// `f_type` of ext4.
const EXT4: i64 = 0xef53;

/// Two users that every Debian has, and all that the suite knows of Linux.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[test]
fn posix_holds_on_the_mount_as_on_ext4() {
    need_mount!();
    need_root!();
    let Some(pjdfstest) = program() else {
        return skip("pjdfstest is not installed; CI=true tests/run installs it");
    };
    let home = match mounted_ext4() {
        Ok(home) => home,
        Err(reason) => return skip(&reason),
    };
    let second = home.world.directory("second");
    tool("mount", &["-t", "tmpfs", "tmpfs", second.to_str().unwrap()]);
    let configuration = home.world.path("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).unwrap();
    let results = |dir: PathBuf| {
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(&pjdfstest);
        command.arg("-c").arg(&configuration).arg("-p").arg(dir).arg("-s").arg(&second);
        read(&Outcome::of(command, Duration::from_secs(300)).stdout)
    };
    let (disk, mount) = thread::scope(|scope| {
        let disk = scope.spawn(|| results(home.disk.join("direct")));
        let mount = results(home.mountpoint.join("mounted"));
        (disk.join().unwrap(), mount)
    });
    compare(&disk, &mount);
    home.unmount();
}

/// The older suite, in shell and C: whatever passes on the disk passes on the mount.
#[test]
#[ignore = "the long run: P2PFS_PJDFSTEST_C is a checkout of pjd/pjdfstest in which it was built"]
fn posix_holds_for_the_suite_in_c_too() {
    need_mount!();
    need_root!();
    if let Some(missing) = programs::missing(&["prove"]) {
        return skip(&missing);
    }
    let Some(suite) = env::var_os("P2PFS_PJDFSTEST_C").map(PathBuf::from) else {
        return skip("P2PFS_PJDFSTEST_C is not set");
    };
    let home = match mounted_ext4() {
        Ok(home) => home,
        Err(reason) => return skip(&reason),
    };
    let failed = |dir: PathBuf| {
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("prove");
        command.arg("-r").arg(suite.join("tests")).current_dir(&dir);
        let said = Outcome::of(command, Duration::from_secs(1800)).stdout;
        println!("{}: {}", dir.display(), said.lines().rev().take(2).collect::<Vec<_>>().join(" "));
        let any = |line: &str| line.starts_with("Result: ") && !line.ends_with("NOTESTS");
        assert!(said.lines().any(any), "{said}");
        let is_failure = |line: &&str| line.contains("Failed test");
        said.lines().filter(is_failure).map(str::to_owned).collect::<Vec<_>>()
    };
    let disk = failed(home.disk.join("direct"));
    assert_eq!(failed(home.mountpoint.join("mounted")), disk);
    home.unmount();
}

/// A mount backed by ext4, for many users; or why not.
fn mounted_ext4() -> Result<Home, String> {
    let mut obstacle = None;
    let home = Home::on_loopback_with(&["--authorise", "--map", "identity"], |disk| {
        obstacle = make_ext4(disk);
    });
    obstacle.map_or(Ok(()), Err)?;
    home.mount("allow_other,timeout=20");
    Ok(home)
}

/// The results differ where the list of exceptions says so, and nowhere else.
#[track_caller]
fn compare(disk: &BTreeMap<String, String>, mount: &BTreeMap<String, String>) {
    assert!(disk.len() >= TESTS_MIN, "{} tests on the disk", disk.len());
    let exceptions: BTreeMap<&str, &str> = EXCEPTIONS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect();
    assert!(exceptions.len() <= EXCEPTIONS_MAX);
    let count = |result: &str| mount.values().filter(|other| *other == result).count();
    eprintln!(
        "pjdfstest on the mount: {} ok, {} skipped, {} failed",
        count("ok"),
        count("skipped"),
        count("FAILED")
    );
    let mut wrong = Vec::new();
    for (name, result) in disk {
        let here = mount.get(name).map_or("missing", String::as_str);
        let expected = exceptions.get(name.as_str()).copied().unwrap_or(result);
        if here != expected {
            wrong.push(format!("{name}: {here}, and on the disk {result}"));
        } else if here == result && exceptions.contains_key(name.as_str()) {
            wrong.push(format!("{name}: no exception any more"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `NAME   RESULT`, a line for each test.
fn read(output: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, result) = line.trim_end().rsplit_once(' ')?;
        let known = ["ok", "skipped", "FAILED"].contains(&result) && name.contains("::");
        known.then(|| (name.trim_end().to_owned(), result.to_owned()))
    };
    output.lines().filter_map(line).collect()
}

/// The tool: beside the other things that are built, or where the machine has it.
fn program() -> Option<PathBuf> {
    let test = env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let built = target.join("tools/bin/pjdfstest");
    if built.exists() {
        return Some(built);
    }
    programs::missing(&["pjdfstest"]).is_none().then(|| "pjdfstest".into())
}

/// Makes sure that `disk` is on ext4, if need be in an image; tells why not.
fn make_ext4(disk: &Path) -> Option<String> {
    if rustix::fs::statfs(disk).unwrap().f_type == EXT4 {
        return None;
    }
    if let Some(reason) = programs::missing(&["mkfs.ext4"]) {
        return Some(reason);
    }
    let image = disk.with_extension("img");
    fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let image = image.to_str().unwrap();
    tool("mkfs.ext4", &["-q", image]);
    let mounted = Command::new("mount").args(["-o", "loop", image]).arg(disk).output().unwrap();
    let said = String::from_utf8_lossy(&mounted.stderr);
    (!mounted.status.success()).then(|| format!("ext4 in an image: {said}"))
}
