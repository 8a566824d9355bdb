//! A mount outlives its server and its host's process (N1, R10): both are killed while it is used.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::world::{Home, Side, eventually, need_mount, need_root};

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

    let address = home.server.ready.strip_prefix("p2pfs://").unwrap();
    let (listen, _) = address.split_once('#').unwrap();
    let args = ["run", "--listen", listen, "--stun", "127.0.0.1:0"];
    let back = Instant::now();
    home.server = home.world.start(Side::Server, &args);
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

/// Records are appended and written while the host is killed again and again: each is there once.
#[test]
fn nothing_is_lost_or_done_twice_when_the_host_is_killed_under_writes() {
    need_mount!();
    need_root!();
    let mut home = Home::on_loopback();
    home.mount("timeout=20,grace=60");
    let before = home.world.mount_status()["connection_id"].clone();
    let open = |name: &str, append: bool| {
        let path = home.mountpoint.join(name);
        OpenOptions::new().create(true).write(true).append(append).open(path).unwrap()
    };
    let (mut appended, written) = (open("appended", true), open("written", false));
    let done = AtomicBool::new(false);
    let record = |number: u64| format!("record {number:08}\n");
    let count = std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                let record = record(number);
                appended.write_all(record.as_bytes()).unwrap();
                written.write_all_at(record.as_bytes(), number * record.len() as u64).unwrap();
                number += 1;
                if number.is_multiple_of(64) {
                    written.sync_all().unwrap();
                }
            }
            appended.sync_all().unwrap();
            written.sync_all().unwrap();
            number
        });
        for _ in 0..4 {
            let size = fs::metadata(home.disk.join("written")).unwrap().len();
            eventually("more records", Duration::from_secs(30), || {
                fs::metadata(home.disk.join("written")).unwrap().len() > size + 20_000
            });
            home.restart_host();
        }
        done.store(true, Ordering::Relaxed);
        writes.join().unwrap()
    });
    let wanted: String = (0..count).map(record).collect();
    println!("{count} records, each once");
    assert!(fs::read_to_string(home.disk.join("appended")).unwrap() == wanted, "appended");
    assert!(fs::read_to_string(home.disk.join("written")).unwrap() == wanted, "written");
    assert_ne!(home.world.mount_status()["connection_id"], before);
    drop((appended, written));
    home.unmount();
}
