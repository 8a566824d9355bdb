//! One pair of NATs: real daemons, a mount, a file both ways; what carried it, and how soon.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::oracle::{Expected, expected};
use crate::world::lab::{Kind, Lab, Plan};
use crate::world::{Home, Side, eventually};

/// What is copied each way, bytes.
const FILE_BYTES: usize = 2_000_000;
/// What the relay may carry while that happens, bytes: it is kept warm, no more.
const WARM_BYTES: u64 = 10_000;
/// How long a direct path may take to be found.
const DIRECT: Duration = Duration::from_secs(15);
/// Between two looks at the path.
const LOOK: Duration = Duration::from_millis(5);

/// A line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) host: Kind,
    pub(crate) client: Kind,
    pub(crate) expected: Expected,
    /// What carried the file.
    pub(crate) rung: String,
    /// From the start of `mount` to the first byte of a `cat`.
    pub(crate) first_byte: Option<Duration>,
    /// From the start of `mount` to a direct path for both sides.
    pub(crate) direct: Option<Duration>,
    /// What the relay carried while the file was copied, bytes.
    pub(crate) relayed: u64,
    /// What went wrong.
    pub(crate) failure: Option<String>,
}

impl Row {
    fn new(host: Kind, client: Kind) -> Self {
        Self {
            host,
            client,
            expected: expected(host, client),
            rung: "-".to_owned(),
            first_byte: None,
            direct: None,
            relayed: 0,
            failure: None,
        }
    }

    /// Whether the file arrived, over what was expected or better.
    pub(crate) fn is_good(&self) -> bool {
        let direct = self.direct.is_some() && self.relayed <= WARM_BYTES;
        self.failure.is_none() && (direct || self.expected == Expected::Relay)
    }

    pub(crate) const HEAD: &str =
        "host      client    expected  rung          first byte     direct    relayed  ";

    pub(crate) fn text(&self) -> String {
        let ms = |time: Option<Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()))
        };
        format!(
            "{:9} {:9} {:9} {:12} {:>11} {:>10} {:>10}  {}",
            self.host.name(),
            self.client.name(),
            self.expected.name(),
            self.rung,
            ms(self.first_byte),
            ms(self.direct),
            self.relayed,
            match &self.failure {
                Some(failure) => failure,
                None if self.is_good() => "ok",
                None => "NOT DIRECT",
            },
        )
    }
}

/// Runs one pair; a panic in it is its failure.
pub(crate) fn run(host: Kind, client: Kind) -> Row {
    let mut row = Row::new(host, client);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| measure(&mut row)));
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        row.failure = Some(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    row
}

fn measure(row: &mut Row) {
    let home = Home::in_lab(Lab::build(Plan::new(row.host, row.client)));
    let content: Vec<u8> = (0..u32::try_from(FILE_BYTES).unwrap())
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(home.disk.join("film"), &content).unwrap();
    at_the_server(&home);
    let watch = Watch::start(&home);
    let mounted = home.try_mount("timeout=20");
    if mounted.code != Some(0) {
        row.failure = Some(mounted.stderr.split_whitespace().collect::<Vec<_>>().join(" "));
        return;
    }
    assert_eq!(fs::read(home.mountpoint.join("hello")).unwrap(), b"from home\n");
    row.first_byte = Some(watch.start.elapsed());
    let patience = if row.expected == Expected::Direct { DIRECT } else { Duration::ZERO };
    row.direct = watch.direct(patience);

    let before = relayed(&home);
    assert!(fs::read(home.mountpoint.join("film")).unwrap() == content, "another file came");
    fs::write(home.mountpoint.join("copy"), &content).unwrap();
    home.sync();
    assert!(fs::read(home.disk.join("copy")).unwrap() == content, "another file arrived");
    row.relayed = relayed(&home) - before;
    let mount = home.world.mount_status();
    mount["path"]["rung"].as_str().unwrap_or("none").clone_into(&mut row.rung);
    row.direct = row.direct.filter(|_| row.rung != "relay");
    home.unmount();
}

/// Waits until the host can be found: it is registered, and where it is seen is known, or it has
/// waited for that in vain.
pub(crate) fn at_the_server(home: &Home) {
    let start = Instant::now();
    eventually("the host at the server", Duration::from_secs(20), || {
        let host = home.world.status(Side::Host);
        host["servers"][0]["connected"] == true
            && home.world.status(Side::Server)["hosts"] == 1
            && (host["routing"]["own"]["udp_public"].is_string()
                || start.elapsed() > Duration::from_secs(1))
    });
}

/// Bytes that the server has carried.
pub(crate) fn relayed(home: &Home) -> u64 {
    home.world.status(Side::Server)["relay"]["bytes"].as_u64().unwrap()
}

/// Looks at the path from the start of `mount` on.
pub(crate) struct Watch {
    pub(crate) start: Instant,
    looking: thread::JoinHandle<Option<Duration>>,
    enough: std::sync::Arc<AtomicBool>,
}

impl Watch {
    /// Now `mount` is to begin.
    pub(crate) fn start(home: &Home) -> Self {
        let mounts = home.world.state(Side::Client).join("mounts");
        let host = home.world.state(Side::Host);
        let enough = std::sync::Arc::new(AtomicBool::new(false));
        let over = enough.clone();
        let start = Instant::now();
        let looking = thread::spawn(move || {
            loop {
                let last = over.load(Ordering::Relaxed);
                let kinds = [client_path(&mounts), host_path(&host)];
                if kinds.iter().all(|kind| kind.as_ref().is_some_and(|kind| kind != "relay")) {
                    return Some(start.elapsed());
                }
                if last {
                    return None;
                }
                thread::sleep(LOOK);
            }
        });
        Self { start, looking, enough }
    }

    /// When the path was direct first, for both sides; waits for it.
    pub(crate) fn direct(self, patience: Duration) -> Option<Duration> {
        let end = Instant::now() + patience;
        while !self.looking.is_finished() && Instant::now() < end {
            thread::sleep(LOOK);
        }
        self.enough.store(true, Ordering::Relaxed);
        self.looking.join().unwrap()
    }
}

/// What carries what the only session's host sends, as the host says.
fn host_path(state: &Path) -> Option<String> {
    let request = serde_json::to_value(p2pfs_hostd::owner::Request::Status).unwrap();
    let status: Value = p2pfs::net::admin::request(state, &request).ok().flatten()?;
    let [session] = status["sessions"].as_array()?.as_slice() else { return None };
    session["path"]["kind"].as_str().map(str::to_owned)
}

/// What carries what the only mount sends, by its control socket: a command would take longer to
/// start.
fn client_path(mounts: &Path) -> Option<String> {
    let dirs: Vec<PathBuf> =
        fs::read_dir(mounts).ok()?.flatten().map(|entry| entry.path()).collect();
    let [dir] = dirs.as_slice() else { return None };
    let status: Value =
        p2pfs::net::admin::request(dir, &json!({"command": "status"})).ok().flatten()?;
    status["path"]["kind"].as_str().map(str::to_owned)
}
