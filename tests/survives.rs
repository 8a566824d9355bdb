//! A mount outlives its server and its host's process (N1, R10): both are killed while it is used.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{Home, Side, eventually, need_mount, need_root, programs, skip};

/// Writes records to two files until its input ends, and says how many.
const WRITER: &str = r#"
import os, select, sys
flags = os.O_CREAT | os.O_WRONLY
appended = os.open(sys.argv[1] + "/appended", flags | os.O_APPEND)
written = os.open(sys.argv[1] + "/written", flags)
number = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    record = b"record %08d\n" % number
    assert os.write(appended, record) == len(record)
    assert os.pwrite(written, record, number * len(record)) == len(record)
    number += 1
    if number % 64 == 0:
        os.fsync(written)
os.fsync(appended)
os.fsync(written)
print(number)
"#;

#[test]
fn a_running_session_notices_nothing_of_a_server_that_is_killed() {
    need_mount!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=2");
    let before = home.world.mount_status()["connection_id"].clone();
    let file = home.mountpoint.join("file");
    let writes = |name: &str| {
        let start = Instant::now();
        fs::write(&file, name).unwrap();
        fs::File::open(&file).unwrap().sync_all().unwrap();
        assert_eq!(fs::read_to_string(home.disk.join("file")).unwrap(), name);
        start.elapsed()
    };
    let with = writes("with the server");
    home.server.kill_now();
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0.. {
        slowest = slowest.max(writes(&format!("without the server, {number}")));
        if start.elapsed() > Duration::from_secs(12) {
            break;
        }
    }
    println!("a write and its fsync: {with:?} with the server, at most {slowest:?} without it");
    let status = home.world.mount_status();
    assert_eq!((&status["connection_id"], &status["state"]), (&before, &"connected".into()));

    let back = Instant::now();
    home.start_server();
    eventually("the host to be registered again", Duration::from_secs(10), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    println!("the host is registered again {:?} after the server's start", back.elapsed());
    let second = home.second_mount("timeout=20");
    assert!(second.mountpoint.join("file").exists());
    second.unmount(&home);
    assert_eq!(home.world.mount_status()["connection_id"], before);
    home.unmount();
}

#[test]
fn a_host_that_was_killed_is_found_again_at_once() {
    need_mount!();
    let mut home = Home::on_loopback();
    fs::write(home.disk.join("seen"), "before").unwrap();
    fs::write(home.disk.join("unseen"), "after").unwrap();
    home.mount("timeout=20");
    let before = home.world.mount_status()["connection_id"].clone();
    assert_eq!(fs::read_to_string(home.mountpoint.join("seen")).unwrap(), "before");
    let used = Instant::now();
    eventually("the mount to have been idle", Duration::from_secs(10), || {
        used.elapsed() >= Duration::from_secs(3)
    });
    home.restart_host();
    let start = Instant::now();
    assert_eq!(fs::read_to_string(home.mountpoint.join("unseen")).unwrap(), "after");
    let took = start.elapsed();
    println!("a read that began when the host was back took {took:?}");
    // all its paths were asked at once; one after the other they took ten seconds
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_ne!(home.world.mount_status()["connection_id"], before);
    home.unmount();
}

/// Records are appended and written while the host is killed again and again: each is there once.
#[test]
fn nothing_is_lost_or_done_twice_when_the_host_is_killed_under_writes() {
    need_mount!();
    need_root!();
    if let Some(reason) = programs::missing(&["python3"]) {
        return skip(&reason);
    }
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let before = home.world.mount_status()["connection_id"].clone();
    // Not this process: what it starts closes its copies of open files first, and waits for that
    let mut writer = Command::new("python3");
    writer.args(["-c", WRITER]).arg(&home.mountpoint);
    let mut writer = writer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..4 {
        let written = home.disk.join("written");
        let size = || fs::metadata(&written).map_or(0, |written| written.len());
        let before = size();
        eventually("more records", Duration::from_secs(30), || size() > before + 20_000);
        home.restart_host();
    }
    drop(writer.stdin.take());
    let mut count = String::new();
    writer.stdout.take().unwrap().read_to_string(&mut count).unwrap();
    assert!(writer.wait().unwrap().success());
    let count: u64 = count.trim().parse().unwrap();
    let record = |number: u64| format!("record {number:08}\n");
    let wanted: String = (0..count).map(record).collect();
    println!("{count} records, each once");
    assert!(fs::read_to_string(home.disk.join("appended")).unwrap() == wanted, "appended");
    assert!(fs::read_to_string(home.disk.join("written")).unwrap() == wanted, "written");
    assert_ne!(home.world.mount_status()["connection_id"], before);
    home.unmount();
}
