//! How soon, and how fast: printed for people, run by `tests/nats --times` and `--rates`.

use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::capture::{Capture, first_quic, tcp_data};
use super::pair::at_the_server;
use super::say;
use crate::world::lab::{Kind, Lab, Plan, need_lab};
use crate::world::outcome::tool;
use crate::world::{Home, Outcome, Side, eventually, need_mount, programs, skip};

/// Mounts of which the median is told.
const ROUNDS: usize = 10;
/// The server, as the sides see it.
const SERVER: [u8; 4] = [203, 0, 113, 5];
/// What is read for a rate, bytes.
const FILE_BYTES: usize = 100 << 20;
/// Seconds that iperf3 runs.
const IPERF_S: &str = "5";

/// Both behind port-restricted NATs; the client 25 ms from the WAN, the host 10 ms.
#[test]
#[ignore = "measures, on a machine that does nothing else: tests/nats --times"]
fn times_to_the_first_byte_and_to_the_direct_path() {
    need_mount!();
    need_lab!();
    let mut plan = Plan::new(Kind::Port, Kind::Port);
    plan.client_delay = Duration::from_millis(25);
    plan.host_delay = Duration::from_millis(10);
    let home = at_home(plan);
    let (mut firsts, mut directs) = (Vec::new(), Vec::new());
    let (mut mounts, mut registereds) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let capture = Capture::start(home.world.lab(), "client-nat");
        let start = Instant::now();
        home.mount("timeout=20");
        mounts.push(start.elapsed());
        fs::File::open(home.mountpoint.join("hello")).unwrap().read_exact(&mut [0]).unwrap();
        let first = start.elapsed();
        firsts.push(first);
        eventually("a direct path", Duration::from_secs(15), || {
            home.world.mount_status()["path"]["kind"] == "udp"
        });
        home.unmount();
        // for both sides: their status can be asked for only when the mount is there
        let frames = capture.stop();
        let (host, client) = ([203, 0, 113, 10], [203, 0, 113, 20]);
        // TLS's first word, then its last one with the request to be introduced
        let said = tcp_data(&frames, client, SERVER);
        registereds.push(start + first - *said.get(1).expect("a registration"));
        let out = first_quic(&frames, client, host).expect("a direct path");
        directs.push(out.max(first_quic(&frames, host, client).expect("a direct path")) - start);
    }
    let mut seconds = beside_a_mount(&home);
    for (what, times) in [
        ("cold mount, ready line", &mut mounts),
        ("cold mount and cat, first byte", &mut firsts),
        ("the same, from when TLS to the server stood", &mut registereds),
        ("cold mount, direct path", &mut directs),
        ("registered: mount beside another one and cat, first byte", &mut seconds),
    ] {
        let median = median(times);
        say(&format!("{what}: median of {ROUNDS} {median:?}, all {times:?}"));
    }
}

/// Where one mount of the key stands, whose registration another one uses: from the start of
/// `mount` to the first byte.
fn beside_a_mount(home: &Home) -> Vec<Duration> {
    home.mount("timeout=20");
    eventually("a direct path", Duration::from_secs(15), || {
        home.world.mount_status()["path"]["kind"] == "udp"
    });
    let again = home.world.directory("again");
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        home.world.mount(&home.key.source("disk"), &again, "timeout=20").ok();
        fs::File::open(again.join("hello")).unwrap().read_exact(&mut [0]).unwrap();
        let first = start.elapsed();
        let status = home.world.status(Side::Client);
        let mounts = status["mounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["rendezvous"]["borrowed"] == true), "{status:#}");
        home.world.mountd(&["unmount", again.to_str().unwrap()]).ok();
        first
    });
    let seconds = rounds.collect();
    home.unmount();
    seconds
}

/// Direct UDP, direct TCP and the relay, and iperf3 on the same links.
#[test]
#[ignore = "measures, on a machine that does nothing else: tests/nats --rates"]
fn rates_side_by_side() {
    need_mount!();
    need_lab!();
    if let Some(missing) = programs::missing(&["iperf3"]) {
        return skip(&missing);
    }
    for round_trip in [0, 40] {
        let delayed = |host, client| {
            let mut plan = Plan::new(host, client);
            plan.host_delay = Duration::from_millis(round_trip / 4);
            plan.client_delay = Duration::from_millis(round_trip / 4);
            plan
        };
        say(&format!("round trip {round_trip} ms"));
        let iperf = iperf(&Lab::build(delayed(Kind::None, Kind::Port)));
        say(&format!("  iperf3, TCP    {iperf:>8.1} Mbit/s"));
        for (name, host, client, rung) in [
            ("direct UDP", Kind::Port, Kind::Port, "udp"),
            ("direct TCP", Kind::UdpBlock, Kind::Port, "tcp"),
            ("relay", Kind::Sym, Kind::Sym, "relay"),
        ] {
            let rate = rate(delayed(host, client), rung);
            say(&format!("  {name:13}  {rate:>8.1} Mbit/s"));
        }
    }
}

fn at_home(plan: Plan) -> Home {
    let home = Home::in_lab(Lab::build(plan));
    at_the_server(&home);
    home
}

/// Mbit/s of reading a file over a path of this kind.
fn rate(plan: Plan, kind: &str) -> f64 {
    let home = at_home(plan);
    let content: Vec<u8> =
        (0..FILE_BYTES).map(|n| ((n as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(home.disk.join("film"), &content).unwrap();
    home.mount("timeout=20");
    eventually("the path", Duration::from_secs(15), || {
        home.world.mount_status()["path"]["kind"] == kind
    });
    let start = Instant::now();
    let film = home.mountpoint.join("film");
    tool("dd", &[&format!("if={}", film.display()), "of=/dev/null", "bs=1M"]);
    let took = start.elapsed();
    assert_eq!(home.world.mount_status()["path"]["kind"], kind);
    home.unmount();
    FILE_BYTES as f64 * 8.0 / 1e6 / took.as_secs_f64()
}

/// Mbit/s of one TCP connection, from the host to the client as a read goes.
fn iperf(lab: &Lab) -> f64 {
    let mut server = lab.command(Side::Host, "iperf3");
    server.args(["-s", "-1"]).stdout(Stdio::null());
    let mut serving = Killed(server.spawn().unwrap());
    let mut rate = None;
    eventually("iperf3", Duration::from_secs(30), || {
        let mut client = lab.command(Side::Client, "iperf3");
        client.args(["-c", "203.0.113.10", "-R", "-J", "-t", IPERF_S]);
        let outcome = Outcome::of(client, Duration::from_secs(25));
        if outcome.code == Some(0) {
            rate = outcome.json()["end"]["sum_received"]["bits_per_second"].as_f64();
        }
        rate.is_some()
    });
    let _ = serving.0.wait();
    rate.unwrap() / 1e6
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
