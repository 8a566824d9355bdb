//! Paths: found, chosen, lost and moved under an open file (R8, R10, R18-R21, N4).

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use serde_json::Value;

use crate::world::lab::{Kind, Lab, need_lab};
use crate::world::outcome::tool;
use crate::world::{Home, Outcome, Side, eventually, need_mount, programs, skip};

const SOON: Duration = Duration::from_secs(10);
/// How long a copy may pause whose path dies.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a reader may wait while the machine goes from one network to another: half of the
/// grace. Mostly it is a fraction of a second.
const MOVE: Duration = Duration::from_secs(15);

/// A home whose host is at the server, with a file of `megabytes`, and what is in it.
fn home(host: Kind, client: Kind, megabytes: usize) -> (Home, Vec<u8>) {
    let home = Home::in_lab(Lab::new(host, client));
    let content: Vec<u8> =
        (0..megabytes * 1_000_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(home.disk.join("film"), &content).unwrap();
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    (home, content)
}

fn path(home: &Home) -> Value {
    home.world.mount_status()["path"].clone()
}

/// Waits until both ends send over it.
fn wait_for(home: &Home, rung: &str) {
    eventually(rung, SOON, || {
        let own = path(home);
        let host = home.world.status(Side::Host);
        own["rung"] == rung && host["sessions"][0]["path"]["kind"] == own["kind"]
    });
}

fn relayed(home: &Home) -> u64 {
    home.world.status(Side::Server)["relay"]["bytes"].as_u64().unwrap()
}

/// Makes the client's router drop what fits `rule`.
fn cut(home: &Home, rule: &str) {
    let lab = home.world.lab();
    let script = format!(
        "nft 'add table inet cut; add chain inet cut drops {{ type filter hook forward priority -9; \
         }}; add rule inet cut drops {rule} drop'"
    );
    let mut shell = lab.command_at(lab.router_of(Side::Client), "sh");
    shell.args(["-c", &script]);
    Outcome::of(shell, SOON).ok();
}

/// Undoes what [`cut`] did.
fn heal(home: &Home) {
    let lab = home.world.lab();
    let mut shell = lab.command_at(lab.router_of(Side::Client), "sh");
    shell.args(["-c", "nft delete table inet cut"]);
    Outcome::of(shell, SOON).ok();
}

const DIRECT_UDP: &str = "meta l4proto udp ip saddr != 203.0.113.5 ip daddr != 203.0.113.5";
const DIRECT_TCP: &str = "meta l4proto tcp ip saddr != 203.0.113.5 ip daddr != 203.0.113.5";

#[test]
fn a_path_that_dies_under_an_open_file_is_left_and_the_reader_notices_nothing() {
    need_mount!();
    need_lab!();
    let (home, content) = home(Kind::Port, Kind::Port, 60);
    home.mount("timeout=10,cache=1M");
    wait_for(&home, "udp-public");
    let connection = home.world.mount_status()["connection_id"].clone();
    let still = relayed(&home);

    let mut film = File::open(home.mountpoint.join("film")).unwrap();
    let mut read = vec![0; 2_000_000];
    film.read_exact(&mut read).unwrap();
    assert_eq!(relayed(&home), still, "the relay rests");
    cut(&home, DIRECT_UDP);
    let start = Instant::now();
    film.read_to_end(&mut read).unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(read == content);

    let mount = home.world.mount_status();
    assert_eq!(mount["connection_id"], connection, "{mount:#}");
    wait_for(&home, "tcp-public");
    home.unmount();
}

/// What `dd` met.
struct Copied {
    /// How long nothing arrived at most.
    pause: Duration,
    /// From the last byte to its end.
    rest: Duration,
    took: Duration,
}

/// Runs `dd`, which must work, and looks at the file that grows; when a quarter is there, it does
/// something `midway`.
fn copied(from: &Path, to: &Path, grows: &Path, conv: &[&str], midway: impl FnOnce()) -> Copied {
    let size = fs::metadata(from).unwrap().len();
    let mut dd = Command::new("dd");
    dd.args([format!("if={}", from.display()), format!("of={}", to.display())]);
    let mut dd = dd.arg("bs=64k").args(conv).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let (mut there, mut since, mut pause) = (0, start, Duration::ZERO);
    let (mut midway, mut status) = (Some(midway), None);
    eventually("dd to end", Duration::from_secs(60), || {
        status = dd.try_wait().unwrap();
        let now = fs::metadata(grows).map_or(0, |file| file.len());
        if now > there {
            pause = pause.max(since.elapsed());
            (there, since) = (now, Instant::now());
        }
        if there > size / 4
            && let Some(midway) = midway.take()
        {
            assert!(status.is_none() && there < size, "it was too quick: nothing was shown");
            midway();
        }
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
    assert_eq!(there, size);
    Copied { pause, rest: since.elapsed(), took: start.elapsed() }
}

/// Makes the client's router drop what goes over that path, both ways, and nothing else: each side
/// has one port for all its paths.
fn cut_path(home: &Home, path: &Value) {
    let (kind, address) = (path["kind"].as_str().unwrap(), path["address"].as_str().unwrap());
    let (ip, port) = address.rsplit_once(':').unwrap();
    cut(home, &format!("ip daddr {ip} {kind} dport {port}"));
    cut(home, &format!("ip saddr {ip} {kind} sport {port}"));
}

/// Kind, rung and address.
fn which(path: &Value) -> [&Value; 3] {
    [&path["kind"], &path["rung"], &path["address"]]
}

#[test]
fn a_copy_that_loses_its_one_path_pauses_and_goes_on_over_another() {
    need_mount!();
    need_lab!();
    if let Some(missing) = programs::missing(&["dd", "cmp"]) {
        return skip(&missing);
    }
    let (home, _) = home(Kind::Port, Kind::Port, 256);
    let [film, copy] = ["film", "copy"].map(|name| home.disk.join(name));
    let [mounted, put] = ["film", "copy"].map(|name| home.mountpoint.join(name));
    let got = home.world.path("got");
    println!("dd     path lost  longest pause  after the last byte     all (ms)  then");
    let mut pauses = Vec::new();
    for (reads, loses) in [(true, false), (true, true), (false, false), (false, true)] {
        home.mount("timeout=10,cache=1M");
        wait_for(&home, "udp-public");
        let before = home.world.mount_status();
        let midway = || {
            if loses {
                cut_path(&home, &path(&home));
            }
        };
        let copied = if reads {
            copied(&mounted, &got, &got, &[], midway)
        } else {
            copied(&film, &put, &copy, &["conv=fsync"], midway)
        };
        let after = home.world.mount_status();
        let [pause, rest, took] =
            [copied.pause, copied.rest, copied.took].map(|took| took.as_millis());
        let (what, then) = (if reads { "reads" } else { "writes" }, &after["path"]["rung"]);
        println!("{what:<6} {loses:<9} {pause:>14} {rest:>20} {took:>12}  {then}");
        pauses.push(copied.pause);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        for other in if reads { vec![&got] } else { vec![&copy, &put] } {
            tool("cmp", &[&text(&film), &text(other)]);
        }
        assert_eq!(after["connection_id"], before["connection_id"], "{after:#}");
        if loses {
            assert_ne!(which(&after["path"]), which(&before["path"]), "{after:#}");
            heal(&home);
        }
        home.unmount();
        for made in [&got, &copy] {
            let _ = fs::remove_file(made);
        }
    }
    assert!(pauses.iter().all(|pause| *pause < PAUSE), "{pauses:?}");
}

/// Reads one open file from its beginning to its end, again and again, and compares.
struct Reader {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
    thread: JoinHandle<Duration>,
}

impl Reader {
    fn start(home: &Home, content: Vec<u8>) -> Self {
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let film = File::open(home.mountpoint.join("film")).unwrap();
        let (stopped, counted) = (stop.clone(), read.clone());
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut buffer = vec![0; 64 << 10];
            for (chunk, at) in content.chunks(64 << 10).zip((0..).step_by(64 << 10)).cycle() {
                let start = Instant::now();
                film.read_exact_at(&mut buffer[..chunk.len()], at).unwrap();
                longest = longest.max(start.elapsed());
                assert!(buffer[..chunk.len()] == *chunk, "at {at}");
                counted.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                // the next time around it comes from the host again
                fadvise(&film, 0, None, Advice::DontNeed).unwrap();
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
            longest
        });
        Self { stop, read, thread }
    }

    /// Waits until so much more has been read.
    fn reads(&self, more: u64) {
        let before = self.read.load(Ordering::Relaxed);
        eventually("more to be read", Duration::from_secs(30), || {
            self.thread.is_finished() || self.read.load(Ordering::Relaxed) > before + more
        });
        assert!(!self.thread.is_finished(), "the reader has failed");
    }

    /// How long a read took at most.
    fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// N4: from the relay to a direct path.
#[test]
fn a_session_leaves_the_relay_under_a_reader() {
    need_mount!();
    need_lab!();
    let (home, content) = home(Kind::Port, Kind::Port, 30);
    cut(&home, DIRECT_UDP);
    cut(&home, DIRECT_TCP);
    home.mount("timeout=10,cache=1M");
    wait_for(&home, "relay");
    let before = home.world.mount_status();
    let reader = Reader::start(&home, content);
    reader.reads(5_000_000);
    heal(&home);
    let healed = Instant::now();
    eventually("a direct path", Duration::from_secs(30), || path(&home)["rung"] != "relay");
    let took = healed.elapsed().as_millis();
    wait_for(&home, "udp-public");
    let still = relayed(&home);
    reader.reads(40_000_000);
    let longest = reader.stop().as_millis();
    println!("direct {took} ms after it was possible; the longest read took {longest} ms");
    assert!(relayed(&home) < still + 1_000_000, "the relay rests");
    let after = home.world.mount_status();
    assert_eq!(after["connection_id"], before["connection_id"], "{after:#}");
    assert!(longest < PAUSE.as_millis(), "{longest} ms");
    home.unmount();
}

/// N4: another address, and then another interface, from Wi-Fi to cable.
#[test]
fn a_session_stands_when_the_client_is_elsewhere_under_a_reader() {
    need_mount!();
    need_lab!();
    println!("path        move         longest read (ms)   then, on the same connection");
    let mut wrong = Vec::new();
    for rung in ["udp-public", "tcp-public", "relay"] {
        let (home, content) = home(Kind::Port, Kind::Port, 30);
        if rung != "udp-public" {
            cut(&home, DIRECT_UDP);
        }
        if rung == "relay" {
            cut(&home, DIRECT_TCP);
        }
        home.mount("timeout=10,cache=1M");
        wait_for(&home, rung);
        let before = home.world.mount_status()["connection_id"].clone();
        for (step, move_it) in
            [("address", Lab::readdress as fn(&Lab)), ("interface", Lab::plug_over)]
        {
            let reader = Reader::start(&home, content.clone());
            reader.reads(5_000_000);
            move_it(home.lab());
            reader.reads(40_000_000);
            let longest = reader.stop();
            let mount = home.world.mount_status();
            let (is_same, then) = (mount["connection_id"] == before, &mount["path"]["rung"]);
            println!("{rung:<11} {step:<11} {:>17}   {then} {is_same}", longest.as_millis());
            if !is_same || longest >= MOVE {
                wrong.push((rung, step, is_same, longest));
            }
        }
        home.unmount();
    }
    assert!(wrong.is_empty(), "another connection, or a long pause: {wrong:?}");
}

#[test]
fn without_a_direct_path_the_relay_carries_by_udp_and_without_udp_over_tls() {
    need_mount!();
    need_lab!();
    for udp in [true, false] {
        let (home, content) = home(Kind::Port, Kind::Port, 8);
        cut(&home, if udp { DIRECT_UDP } else { "meta l4proto udp" });
        cut(&home, DIRECT_TCP);
        home.mount("timeout=10");
        assert!(fs::read(home.mountpoint.join("film")).unwrap() == content);
        let found = path(&home);
        assert_eq!((&found["kind"], &found["rung"]), (&"relay".into(), &"relay".into()));
        assert!(relayed(&home) > 8_000_000);
        let host = home.world.status(Side::Host);
        assert_eq!(host["sessions"][0]["path"]["rung"], "relay", "{host:#}");
        home.unmount();
    }
}

/// R10: where no path was to be found for minutes, one is found when there is one again.
#[test]
#[ignore = "takes three minutes"]
fn who_reaches_only_the_server_for_minutes_finds_the_host_afterwards() {
    need_mount!();
    need_lab!();
    let (home, content) = home(Kind::Port, Kind::Port, 1);
    home.mount("timeout=10,grace=inf,relay=never");
    wait_for(&home, "udp-public");
    let (start, length) = (Instant::now(), Duration::from_secs(150));
    cut(&home, DIRECT_UDP);
    cut(&home, DIRECT_TCP);
    eventually("minutes to be over", length + SOON, || start.elapsed() > length);
    heal(&home);
    let healed = Instant::now();
    assert!(fs::read(home.mountpoint.join("film")).unwrap() == content);
    println!("read again after {} ms", healed.elapsed().as_millis());
    home.unmount();
}

/// N4: a NAT that maps anew is noticed also where only the relay carries.
#[test]
fn a_relayed_session_stands_when_a_nat_maps_anew() {
    need_mount!();
    need_lab!();
    let (home, content) = home(Kind::Port, Kind::Port, 3);
    cut(&home, DIRECT_UDP);
    cut(&home, DIRECT_TCP);
    home.mount("timeout=10,cache=1M");
    wait_for(&home, "relay");
    let connection = home.world.mount_status()["connection_id"].clone();
    let mut film = File::open(home.mountpoint.join("film")).unwrap();
    for side in [Side::Client, Side::Host] {
        home.world.lab().rebind(side);
        let start = Instant::now();
        let mut read = vec![0; 1_000_000];
        film.read_exact(&mut read).unwrap();
        println!("{side:?}: read again after {} ms", start.elapsed().as_millis());
    }
    assert_eq!(home.world.mount_status()["connection_id"], connection);
    assert!(fs::read(home.mountpoint.join("film")).unwrap() == content);
    home.unmount();
}

#[test]
fn where_udp_is_blocked_a_tcp_path_is_opened_from_both_sides() {
    need_mount!();
    need_lab!();
    for roles in [Kind::Port, Kind::None] {
        let (home, content) = home(Kind::UdpBlock, roles, 8);
        home.mount("timeout=10");
        wait_for(&home, "tcp-public");
        let still = relayed(&home);
        assert!(fs::read(home.mountpoint.join("film")).unwrap() == content);
        assert_eq!(relayed(&home), still, "the relay rests");
        home.unmount();
    }
}

#[test]
fn rung_by_rung_each_has_its_two_seconds() {
    need_mount!();
    need_lab!();
    let (home, _) = home(Kind::Port, Kind::Port, 1);
    cut(&home, DIRECT_UDP);
    home.mount("timeout=20,paths=udp-first");
    let found = path(&home);
    assert_eq!(found["rung"], "tcp-public", "{found:#}");
    let tried = found["tried"].as_array().unwrap();
    for (line, rung) in tried.iter().zip(["udp-public", "tcp-private"]) {
        let after = line["after_ms"].as_u64().unwrap();
        assert_eq!((&line["rung"], &line["result"]), (&rung.into(), &"timeout".into()));
        assert!((1800..=2200).contains(&after), "{found:#}");
    }
    assert!(relayed(&home) < 1000, "not before its turn, but for the host's question");

    // the winner dies, and the first rung would work by now
    heal(&home);
    cut(&home, DIRECT_TCP);
    wait_for(&home, "udp-public");
    let found = path(&home);
    let first = &found["tried"][0];
    assert_eq!((&first["rung"], &first["result"]), (&"udp-public".into(), &"up".into()));
    home.unmount();
}

#[test]
fn the_host_asks_who_is_there_at_once_or_when_nobody_has_said() {
    need_mount!();
    let mut home = Home::on_loopback();
    let auth = |home: &Home, options: &str| {
        home.mount(options);
        let client = home.world.mount_status()["auth"].clone();
        let host = home.world.status(Side::Host)["sessions"][0]["auth"].clone();
        home.unmount();
        assert_eq!((&client["over"], &client["to"]), (&host["over"], &host["to"]));
        (client, host)
    };
    let (client, host) = auth(&home, "timeout=10");
    assert_eq!((&client["process"], &host["process"]), (&120.into(), &120.into()));
    home.host.kill_now();
    let args = ["serve", "--server", &home.server.ready, "--auth-wait", "0"];
    home.host = home.world.start(Side::Host, &args);
    // by the relay it would be there as soon as the host's question
    let (client, host) = auth(&home, "timeout=10,relay=last");
    assert_eq!((&client["process"], &host["process"]), (&140.into(), &140.into()));
}

/// R18: either side listens while the other connects; two that both listen never meet over TCP.
#[test]
fn either_side_listens_while_the_other_connects() {
    need_mount!();
    let mut home = Home::on_loopback();
    fs::write(home.disk.join("film"), "moves").unwrap();
    for (host, client) in [("listen", "connect"), ("connect", "listen")] {
        start_as(&mut home, host);
        home.mount(&format!("timeout=20,paths=tcp-first,relay=never,role={client}"));
        let found = path(&home);
        assert_eq!(found["rung"], "tcp-private", "{host} {client}: {found:#}");
        assert_eq!(fs::read_to_string(home.mountpoint.join("film")).unwrap(), "moves");
        home.unmount();
    }
    start_as(&mut home, "listen");
    home.mount("timeout=20,paths=tcp-first,relay=never,role=listen");
    let found = path(&home);
    assert_eq!(found["kind"], "udp", "{found:#}");
    let tried = found["tried"].as_array().unwrap();
    let tcp = tried.iter().filter(|line| line["rung"].as_str().unwrap().starts_with("tcp"));
    assert!(tcp.clone().count() > 0 && tcp.clone().all(|line| line["result"] != "up"), "{found:#}");
    home.unmount();
}

/// R18: the side with a public address listens while the one behind a NAT connects, and the other
/// way round.
#[test]
fn the_side_that_can_be_reached_listens() {
    need_mount!();
    need_lab!();
    let listens = (Kind::Port, Kind::None, "connect", "listen");
    for (host, client, host_role, role) in [(Kind::None, Kind::Port, "listen", "connect"), listens]
    {
        let (mut home, _) = home(host, client, 1);
        start_as(&mut home, host_role);
        home.mount(&format!("timeout=20,paths=tcp-first,relay=never,role={role}"));
        let found = path(&home);
        assert_eq!(found["kind"], "tcp", "{host_role} {role}: {found:#}");
        home.unmount();
    }
}

/// Starts the host again, in that role.
fn start_as(home: &mut Home, role: &str) {
    home.host.kill_now();
    let args = ["serve", "--server", &home.server.ready, "--role", role];
    home.host = home.world.start(Side::Host, &args);
}

#[test]
fn request_21_goes_to_the_address_that_was_chosen() {
    need_mount!();
    need_lab!();
    let (home, _) = home(Kind::Port, Kind::Port, 1);
    for to in ["udp-public", "tcp-public"] {
        home.mount(&format!("timeout=10,auth-to={to}"));
        let mount = home.world.mount_status();
        assert_eq!(mount["auth"]["to"], to, "{mount:#}");
        assert_eq!(mount["auth"]["process"], 120, "{mount:#}");
        assert_eq!(home.world.status(Side::Host)["sessions"][0]["auth"], mount["auth"]);
        home.unmount();
    }
    // the host's private address cannot be reached from here: it asks where it can
    home.mount("timeout=10,auth-to=private");
    let mount = home.world.mount_status();
    assert_eq!(mount["auth"]["process"], 140, "{mount:#}");
    home.unmount();
}
