//! The real program, as its users, its daemons and strangers meet it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use p2pfs::address::ServerAddress;
use p2pfs::identity::{MacAddress, PairKey, SecretKey};
use p2pfs::net::rendezvous::{
    Introduction, RecordedKey, Registration, RegistrationConfig, RendezvousError, RendezvousEvent,
    Side,
};
use p2pfs::wire::rendezvous::Routing;
use p2pfs::wire::stun::{self, Transaction};
use p2pfs_server::Server;
use p2pfs_server::cli::RunOptions;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `p2pfs-server`; killed when dropped.
struct Process {
    child: Child,
    address: ServerAddress,
}

impl Process {
    fn start(state: &Path, listen: &str) -> Self {
        let mut child = program(state)
            .args(["run", "--listen", listen, "--stun", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("its stdout is a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("it says something");
        let address =
            line.trim_end().strip_prefix("ready server ").and_then(|address| address.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("not a ready line: {line:?}")) }
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends").code()
    }

    fn tcp(&self) -> SocketAddr {
        self.address.authority().parse().expect("an address")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs-server"));
    command.arg("--state").arg(state);
    command
}

fn output(state: &Path, arguments: &[&str]) -> Output {
    program(state).args(arguments).output().expect("the program starts")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// One side of a pairing, registered.
struct Peer {
    registration: Registration,
    events: mpsc::Receiver<RendezvousEvent>,
    _keys: watch::Sender<Vec<RecordedKey>>,
    _routing: watch::Sender<Routing>,
}

impl Peer {
    fn new(seed: u8, server: &ServerAddress, side: impl FnOnce(Keys) -> Side) -> Self {
        let (keys, seen_keys) = watch::channel(vec![RecordedKey {
            peer: SecretKey::from_seed([CLIENT; 32]).peer_id(),
            pair_key: PairKey::from_bytes([9; 32]),
        }]);
        let (routing, seen_routing) = watch::channel(Routing {
            udp_private: vec![([192, 168, 1, seed], 4000).into()],
            udp_public: Some(([203, 0, 113, seed], 4000).into()),
            ..Routing::default()
        });
        let config = RegistrationConfig {
            secret: SecretKey::from_seed([seed; 32]),
            server: server.clone(),
            side: side(seen_keys),
            routing: seen_routing,
            relayed: None,
        };
        let (sender, events) = mpsc::channel(16);
        Self {
            registration: Registration::start(config, sender),
            events,
            _keys: keys,
            _routing: routing,
        }
    }

    fn host(server: &ServerAddress) -> Self {
        Self::new(HOST, server, |keys| Side::Host { mac: MAC, keys })
    }

    fn client(server: &ServerAddress) -> Self {
        Self::new(CLIENT, server, |_| Side::Client {
            first: None,
            loans: None,
            pair_key: PairKey::from_bytes([9; 32]),
            mac: MAC,
            host: SecretKey::from_seed([HOST; 32]).peer_id(),
        })
    }

    /// The first event that is wanted.
    async fn wait<T>(&mut self, wanted: impl Fn(&RendezvousEvent) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let event = self.events.recv().await.expect("a registration goes on");
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it happens in time")
    }

    async fn introduced(&mut self) -> Introduction {
        self.wait(|event| match event {
            RendezvousEvent::Introduced(introduction, _) => Some(introduction.clone()),
            _ => None,
        })
        .await
    }

    async fn connected(&mut self) -> Vec<SocketAddr> {
        self.wait(|event| match event {
            RendezvousEvent::Connected { stun, .. } => Some(stun.clone()),
            _ => None,
        })
        .await
    }
}

type Keys = watch::Receiver<Vec<RecordedKey>>;

const HOST: u8 = 1;
const CLIENT: u8 = 2;

#[tokio::test]
async fn host_and_client_are_introduced_and_found_again_after_a_restart() {
    let state = directory();
    let mut server = Process::start(state.path(), "127.0.0.1:0");
    let mut client = Peer::client(&server.address);
    client.wait(|event| matches!(event, RendezvousEvent::NoMatch).then_some(())).await;
    let mut host = Peer::host(&server.address);
    let (at_host, at_client) = (host.introduced().await, client.introduced().await);
    assert_eq!(at_host.match_id, at_client.match_id);
    assert_eq!(at_host.probe_key, at_client.probe_key);
    assert_eq!(at_client.routing.udp_private, ["192.168.1.1:4000".parse().unwrap()]);
    let status = host.registration.status();
    assert!(status.connected);
    assert_eq!(at_client.routing.tcp_public, status.tcp_public);
    assert_eq!(at_client.routing.tcp_private, status.tcp_private.into_iter().collect::<Vec<_>>());

    let status = output(state.path(), &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        status,
        serde_json::json!({"hosts": 1, "clients": 1, "matches": 1, "stun_requests": 0,
            "relay": {"sessions": 0, "bytes": 0}})
    );

    assert_eq!(server.terminate(), Some(0));
    let again = Process::start(state.path(), &server.tcp().to_string());
    assert_eq!(again.address, server.address);
    host.connected().await;
    client.connected().await;
    client.registration.seek_again();
    assert_eq!(host.introduced().await.match_id, client.introduced().await.match_id);
}

#[tokio::test]
async fn a_server_with_another_key_is_told_apart_from_none() {
    let state = directory();
    let server = Process::start(state.path(), "127.0.0.1:0");
    let mut changed = server.address.clone();
    changed.fingerprint = [7; 32];
    let mut nowhere = server.address.clone();
    nowhere.port = 1;
    for (address, is_changed) in [(changed, true), (nowhere, false)] {
        let mut client = Peer::client(&address);
        let error = client
            .wait(|event| match event {
                RendezvousEvent::Lost { error } => Some(error.clone()),
                _ => None,
            })
            .await;
        assert_eq!(error == RendezvousError::ServerChanged, is_changed);
    }
}

#[tokio::test]
async fn a_stun_client_that_is_not_ours_gets_its_mapped_address() {
    let state = directory();
    let server = Process::start(state.path(), "127.0.0.1:0");
    let stun = Peer::host(&server.address).connected().await[0];
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut client = stun_client::Client::new(port, None).await.unwrap();
    let answer = client.binding_request(stun, None).await.unwrap();
    assert_eq!(answer.get_class(), stun_client::Class::SuccessResponse);
    assert_eq!(stun_client::Attribute::get_xor_mapped_address(&answer), Some(port));
}

#[tokio::test]
async fn two_addresses_tell_how_a_nat_behaves() {
    let state = directory();
    let options = RunOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        stun: "127.0.0.1:0".parse().unwrap(),
        stun_alt: Some("127.0.0.2:0".parse().unwrap()),
        public: None,
        no_relay: true,
    };
    let server = Server::start(&options, state.path()).await.unwrap();
    let [one, two] = server.stun() else {
        panic!("two addresses");
    };
    assert_eq!(two.ip(), std::net::Ipv4Addr::new(127, 0, 0, 2));
    let mut client = stun_client::Client::new("127.0.0.1:0", None).await.unwrap();
    // without a NAT in between everything gets through
    let filtering =
        stun_client::nat_behavior_discovery::check_nat_filtering_behavior(&mut client, one)
            .await
            .unwrap();
    assert_eq!(
        filtering.filtering_type,
        stun_client::nat_behavior_discovery::NATFilteringType::EndpointIndependent
    );
    let answer = client.binding_request(one, None).await.unwrap();
    let other = stun_client::Attribute::get_other_address(&answer);
    assert_eq!(other, Some(*two));
}

#[tokio::test]
async fn garbage_neither_kills_the_server_nor_gets_more_than_it_brought() {
    let state = directory();
    let mut server = Process::start(state.path(), "127.0.0.1:0");
    let stun = Peer::host(&server.address).connected().await[0];
    let garbage: Vec<Vec<u8>> =
        (0..200_usize).map(|n| (0..n * 7).map(|m| (n * 31 + m * m) as u8).collect()).collect();

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in &garbage {
        udp.send_to(datagram, stun).unwrap();
    }
    // the server takes datagrams in order: what comes back first is the answer to this
    let request = stun::binding_request(Transaction([5; 12]));
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    udp.send_to(&request, stun).unwrap();
    let mut answer = [0; 2000];
    let length = udp.recv(&mut answer).unwrap();
    assert!(length <= request.len());
    let answered = stun::binding_response(&answer[..length]).unwrap();
    assert_eq!(answered.transaction, Transaction([5; 12]));
    assert_eq!(answered.mapped, Some(udp.local_addr().unwrap()));

    for bytes in garbage.iter().rev().step_by(10) {
        let mut tcp = TcpStream::connect(server.tcp()).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        // the server may have hung up before all was written
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer);
        assert!(answer.len() <= bytes.len().max(7), "an alert at most");
    }
    assert_eq!(server.child.try_wait().unwrap(), None);
    let host = Peer::host(&server.address).connected().await;
    assert_eq!(host, [stun]);
}

fn failed(output: &Output, code: i32, starts: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let lines: Vec<_> = stderr.lines().collect();
    assert!(
        matches!(
            lines[..],
            [error, hint] if error.starts_with(starts) && hint.starts_with("hint: ")
        ),
        "{stderr}"
    );
}

#[test]
fn the_address_is_kept_and_told() {
    let state = directory();
    let mut server = Process::start(state.path(), "127.0.0.1:0");
    let written = std::fs::read_to_string(state.path().join("address")).unwrap();
    assert_eq!(written.trim_end(), server.address.to_string());
    assert_eq!(server.terminate(), Some(0));
    let again = Process::start(state.path(), "127.0.0.1:0");
    assert_eq!(again.address.fingerprint, server.address.fingerprint);
}

#[test]
fn what_cannot_work_is_told_with_a_next_step() {
    let state = directory();
    let run =
        |listen: &str| output(state.path(), &["run", "--listen", listen, "--stun", "127.0.0.1:0"]);
    failed(&output(state.path(), &["status"]), 1, "error[internal]: no server is running");
    let server = Process::start(state.path(), "127.0.0.1:0");
    failed(&run("127.0.0.1:0"), 1, "error[internal]: another daemon is running");
    let other = directory();
    let in_use = program(other.path())
        .args(["run", "--listen", &server.tcp().to_string()])
        .args(["--stun", "127.0.0.1:0"])
        .output()
        .unwrap();
    failed(&in_use, 1, "error[internal]: cannot use TCP");
    failed(&run("192.0.2.1:0"), 1, "error[internal]: cannot use TCP");
    failed(&run("nonsense"), 2, "error[usage]: ");
    failed(&output(state.path(), &["fly"]), 2, "error[usage]: ");
    failed(&output(state.path(), &[]), 2, "error[usage]: ");
    let help = output(state.path(), &["run", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--no-relay"));
}
