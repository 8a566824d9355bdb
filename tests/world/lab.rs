//! Network namespaces: a WAN with a server, and two sides, each attached to it in its own way.
//!
//! ```text
//!                          wan 203.0.113.0/24, 2001:db8::/64
//!      host .2 --- .1 [NAT] .10 ---+--- .20 [NAT] .1 --- .2 client
//!         10.1.0.0/24              |              10.2.0.0/24
//!                            server .5, .6
//! ```
//!
//! Carriers have a second router in front of the home's; a `Kind::None` machine is on the WAN
//! itself; `Kind::Fw` has public addresses (198.51.100.0/24) behind its router. IPv6 is there only
//! where a kind has it: any other side has one way only.

mod cable;
mod kind;
mod rules;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Side, programs};

use self::cable::Cable;
pub(crate) use self::kind::{Filtering, Kind, Mapping, Tcp};

/// The server's addresses: two, so that a NAT's behaviour can be told.
pub(crate) const SERVER: [&str; 2] = ["203.0.113.5", "203.0.113.6"];
/// Frames that wait for a cable's program: with the kernel's 1000 a busy machine loses some.
const FRAMES_QUEUED: u32 = 16_384;
/// The server's address where there is no IPv4.
pub(crate) const SERVER_V6: &str = "2001:db8::5";

/// What is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) host: Kind,
    pub(crate) client: Kind,
    /// What a packet takes between the host's side and the WAN.
    pub(crate) host_delay: Duration,
    /// What a packet takes between the client's side and the WAN.
    pub(crate) client_delay: Duration,
    /// Seconds after which NATs forget UDP: what was not answered, and what was.
    pub(crate) forget_udp: (u32, u32),
}

/// The namespaces; removed on drop.
pub(crate) struct Lab {
    name: String,
    plan: Plan,
    spaces: Vec<String>,
    cables: Vec<Cable>,
    /// Who is cut off, and what undoes it.
    cuts: Mutex<Vec<(&'static str, Child)>>,
}

impl Plan {
    pub(crate) fn new(host: Kind, client: Kind) -> Self {
        let delay = Duration::ZERO;
        // the kernel's own
        Self { host, client, host_delay: delay, client_delay: delay, forget_udp: (30, 120) }
    }
}

/// Nothing passes, but to the machine itself.
const CUT: &str = r#"
table inet cut {
  chain inpt { type filter hook input priority -200; policy drop; iifname "lo" accept; }
  chain outp { type filter hook output priority -200; policy drop; oifname "lo" accept; }
}
"#;

impl Lab {
    /// Why there can be no lab here.
    pub(crate) fn obstacle() -> Option<String> {
        if !programs::is_root() {
            return Some("not root".to_owned());
        }
        if let Some(missing) = programs::missing(&["ip", "nft", "nsenter"]) {
            return Some(missing);
        }
        static PROBES: AtomicU32 = AtomicU32::new(0);
        let number = PROBES.fetch_add(1, Ordering::Relaxed);
        let probe = format!("p2pfs-{}-probe{number}", std::process::id());
        let add = Command::new("ip").args(["netns", "add", &probe]).output();
        let add = add.ok()?;
        if !add.status.success() {
            let why = String::from_utf8_lossy(&add.stderr).trim().to_owned();
            return Some(format!("no network namespaces: {why}"));
        }
        run(Command::new("ip").args(["netns", "del", &probe]), None);
        None
    }

    /// Builds one without delay.
    pub(crate) fn new(host: Kind, client: Kind) -> Self {
        Self::build(Plan::new(host, client))
    }

    /// Builds it.
    pub(crate) fn build(plan: Plan) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("p2pfs-{}-{number}", std::process::id());
        let (spaces, cables, cuts) = (Vec::new(), Vec::new(), Mutex::default());
        let mut lab = Self { name, plan, spaces, cables, cuts };
        lab.space("wan", false);
        lab.ip("wan", "link add br0 type bridge\nlink set br0 up");
        lab.space("server", true);
        lab.join_wan("server", "eth0", Duration::ZERO);
        lab.ip("server", "addr add 203.0.113.5/24 dev eth0\naddr add 203.0.113.6/24 dev eth0");
        lab.ip("server", "-6 addr add 2001:db8::5/64 dev eth0 nodad");
        lab.routes("server", "eth0", 0, true);
        lab.side("host", plan.host, 1, plan.host_delay);
        lab.side("client", plan.client, 2, plan.client_delay);
        lab
    }

    /// Whether one of the sides has no IPv4.
    pub(crate) fn needs_v6(&self) -> bool {
        !self.plan.host.has_v4() || !self.plan.client.has_v4()
    }

    /// The server's address, as a side reaches it.
    pub(crate) fn server_for(&self, side: Side) -> IpAddr {
        let has_v4 = match side {
            Side::Server => true,
            Side::Host => self.plan.host.has_v4(),
            Side::Client => self.plan.client.has_v4(),
        };
        (if has_v4 { SERVER[0] } else { SERVER_V6 }).parse().unwrap()
    }

    /// The outermost router of a side.
    pub(crate) fn router_of(&self, side: Side) -> &'static str {
        let (kind, home, carrier) = match side {
            Side::Client if self.plan.client != Kind::SameNat => {
                (self.plan.client, "client-nat", "client-isp")
            }
            Side::Server | Side::Host | Side::Client => (self.plan.host, "host-nat", "host-isp"),
        };
        if matches!(kind, Kind::Cgn | Kind::CgnSym) { carrier } else { home }
    }

    /// Cuts a machine off, until [`Self::heal`].
    ///
    /// What undoes it is there before: a process that this one starts closes its copies of open
    /// files first, and that waits for whoever is cut off.
    pub(crate) fn cut(&self, side: Side) {
        let node = node_of(side);
        let mut command = self.command_at(node, "sh");
        let script = format!("nft '{CUT}' && echo cut && read end && nft delete table inet cut");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "cut\n");
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push((node, child));
    }

    /// Undoes a cut.
    pub(crate) fn heal(&self, side: Side) {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cuts.iter().position(|(node, _)| *node == node_of(side));
        let (_, mut child) = cuts.remove(at.expect("it is cut off"));
        child.stdin.take().unwrap().write_all(b"end\n").unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A command on one of the machines.
    ///
    /// Only the network is another one: `ip netns exec` would hide mounts in their own namespace.
    pub(crate) fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        self.command_at(node_of(side), program)
    }

    /// The same, on any node.
    pub(crate) fn command_at(&self, node: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.net_option(node)).arg("--").arg(program);
        command
    }

    /// Runs `work` on a node: the sockets that it opens are there, and stay there.
    pub(crate) fn inside<T: Send>(&self, node: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}-{node}", self.name)).unwrap();
        thread::scope(|scope| {
            let there = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(space.as_fd(), kind).unwrap();
                work()
            });
            there.join().unwrap()
        })
    }

    /// A machine on the WAN that nobody knows.
    pub(crate) fn stranger(&mut self) -> &'static str {
        self.space("stranger", false);
        self.join_wan("stranger", "eth0", Duration::ZERO);
        self.ip("stranger", "addr add 203.0.113.99/24 dev eth0");
        "stranger"
    }

    /// Adds rules to a node's firewall.
    pub(crate) fn nft(&self, node: &str, rules: &str) {
        run(self.command_at(node, "nft").args(["-f", "-"]), Some(rules));
    }

    /// Gives a side's NAT another public address: what went through it is gone.
    pub(crate) fn rebind(&self, side: Side) {
        let number = if side == Side::Client { 2 } else { 1 };
        // masquerading forgets all flows of an address that is removed
        self.ip(
            self.router_of(side),
            &format!(
                "addr del 203.0.113.{number}0/24 dev wan\naddr add 203.0.113.{number}5/24 dev \
                 wan\nroute replace default via 203.0.113.5"
            ),
        );
    }

    /// Gives a client behind a NAT another address in its LAN.
    pub(crate) fn readdress(&self) {
        self.ip(
            "client",
            "addr del 10.2.0.2/24 dev eth0\naddr add 10.2.0.77/24 dev eth0\nroute replace default \
             via 10.2.0.1",
        );
    }

    /// Takes a client behind a NAT from one network interface to another.
    pub(crate) fn plug_over(&self) {
        self.link("client", "eth1", "client-nat", "lan-other");
        self.ip("client-nat", "link set lan-other master lan");
        self.ip(
            "client",
            "link set eth0 down\naddr flush dev eth0\naddr add 10.2.0.78/24 dev eth1\nroute replace \
             default via 10.2.0.1",
        );
    }

    fn side(&mut self, node: &'static str, kind: Kind, number: u8, delay: Duration) {
        self.space(node, kind.has_v6());
        match kind {
            Kind::None => {
                self.join_wan(node, "eth0", delay);
                self.public(node, "eth0", number, true);
                return;
            }
            Kind::SameNat => {
                self.link(node, "eth0", "host-nat", "lan-client");
                self.ip("host-nat", "link set lan-client master lan");
                self.ip(node, "addr add 10.1.0.3/24 dev eth0\nroute add default via 10.1.0.1");
                return;
            }
            _ => {}
        }
        let router = format!("{node}-nat");
        self.space(&router, kind.has_v6());
        self.ip(&router, "link add lan type bridge\nlink set lan up");
        self.link(node, "eth0", &router, &format!("lan-{node}"));
        self.ip(&router, &format!("link set lan-{node} master lan"));
        match kind {
            Kind::V6Only => {
                let net = format!("2001:db8:{number}");
                self.ip(&router, &format!("-6 addr add {net}::1/64 dev lan nodad"));
                self.ip(node, &format!("-6 addr add {net}::2/64 dev eth0 nodad"));
                self.ip(node, &format!("-6 route add default via {net}::1"));
            }
            Kind::Fw => {
                let first = u32::from(number) * 16 + 1;
                self.lan(node, &router, &format!("198.51.100.{first}"), first + 1, 29);
            }
            _ => self.lan(node, &router, &format!("10.{number}.0.1"), 2, 24),
        }
        if matches!(kind, Kind::Cgn | Kind::CgnSym) {
            let carrier = format!("{node}-isp");
            self.space(&carrier, false);
            self.link(&router, "wan", &carrier, "lan");
            let net = format!("100.64.{number}");
            self.ip(&router, &format!("addr add {net}.2/24 dev wan"));
            self.ip(&router, &format!("route add default via {net}.1"));
            self.ip(&carrier, &format!("addr add {net}.1/24 dev lan"));
            self.join_wan(&carrier, "wan", delay);
            self.public(&carrier, "wan", number, false);
            self.route_packets(&carrier, kind);
            self.route_packets(&router, Kind::Port);
        } else {
            self.join_wan(&router, "wan", delay);
            self.public(&router, "wan", number, kind.has_v6());
            self.route_packets(&router, kind);
        }
    }

    fn lan(&self, node: &str, router: &str, gateway: &str, own: u32, bits: u8) {
        let (net, _) = gateway.rsplit_once('.').unwrap();
        self.ip(router, &format!("addr add {gateway}/{bits} dev lan"));
        self.ip(
            node,
            &format!("addr add {net}.{own}/{bits} dev eth0\nroute add default via {gateway}"),
        );
    }

    /// A side's addresses on the WAN, and the way to everybody there.
    fn public(&self, node: &str, interface: &str, number: u8, v6: bool) {
        self.ip(
            node,
            &format!(
                "addr add 203.0.113.{number}0/24 dev {interface}\nroute add default via 203.0.113.5"
            ),
        );
        if v6 {
            self.ip(node, &format!("-6 addr add 2001:db8::{number}0/64 dev {interface} nodad"));
        }
        self.routes(node, interface, number, v6);
    }

    /// The ways to public addresses that are behind a router: not by the server, which would see
    /// what it has no part in.
    fn routes(&self, node: &str, interface: &str, number: u8, v6: bool) {
        for other in (1..=2).filter(|other| *other != number) {
            let net = u32::from(other) * 16;
            self.ip(
                node,
                &format!("route add 198.51.100.{net}/29 via 203.0.113.{other}0 dev {interface}"),
            );
            if v6 {
                let via = format!("2001:db8::{other}0");
                self.ip(node, &format!("-6 route add 2001:db8:{other}::/64 via {via}"));
            }
        }
    }

    fn route_packets(&self, router: &str, kind: Kind) {
        let (new, old) = self.plan.forget_udp;
        self.set(
            router,
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/netfilter/nf_conntrack_udp_timeout", &new.to_string()),
                ("net/netfilter/nf_conntrack_udp_timeout_stream", &old.to_string()),
            ],
        );
        self.nft(router, &rules::rules(kind));
        // the first rules load the module that has these settings
        self.set(
            router,
            &[
                ("net/netfilter/nf_conntrack_udp_timeout", &new.to_string()),
                ("net/netfilter/nf_conntrack_udp_timeout_stream", &old.to_string()),
            ],
        );
    }

    fn space(&mut self, node: &str, v6: bool) {
        let name = format!("{}-{node}", self.name);
        run(Command::new("ip").args(["netns", "add", &name]), None);
        self.spaces.push(name);
        let off = if v6 { "0" } else { "1" };
        self.set(
            node,
            &[
                ("net/ipv6/conf/all/disable_ipv6", off),
                ("net/ipv6/conf/default/disable_ipv6", off),
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                // packets on a bridge are none of the firewall's business
                ("net/bridge/bridge-nf-call-iptables", "0"),
                ("net/bridge/bridge-nf-call-ip6tables", "0"),
            ],
        );
        self.ip(node, "link set lo up");
    }

    fn join_wan(&mut self, node: &str, interface: &str, delay: Duration) {
        let port = format!("p-{node}");
        if delay.is_zero() {
            self.link(node, interface, "wan", &port);
        } else {
            let cable = Cable::new(delay);
            for (end, node, interface) in
                [(&cable.ends[0], node, interface), (&cable.ends[1], "wan", &port)]
            {
                let space = format!("{}-{node}", self.name);
                let move_in = ["link", "set", end, "netns", &space, "name", interface];
                run(Command::new("ip").args(move_in), None);
                self.ip(node, &format!("link set {interface} txqueuelen {FRAMES_QUEUED} up"));
            }
            self.cables.push(cable);
        }
        self.ip("wan", &format!("link set {port} master br0"));
    }

    fn link(&self, node: &str, interface: &str, peer: &str, peer_interface: &str) {
        let peer_space = format!("{}-{peer}", self.name);
        self.ip(
            node,
            &format!(
                "link add {interface} type veth peer name {peer_interface} netns \
                 {peer_space}\nlink set {interface} up"
            ),
        );
        self.ip(peer, &format!("link set {peer_interface} up"));
    }

    /// Commands of ip(8), one a line.
    fn ip(&self, node: &str, commands: &str) {
        let space = format!("{}-{node}", self.name);
        for command in commands.lines() {
            run(Command::new("ip").args(["-n", &space]).args(command.split(' ')), None);
        }
    }

    /// Writes network settings of a namespace; those that the kernel does not have stay.
    fn set(&self, node: &str, settings: &[(&str, &str)]) {
        let mut lines = String::new();
        for (setting, value) in settings {
            let file = format!("/proc/sys/{setting}");
            lines.push_str(&format!("[ ! -e {file} ] || echo {value} > {file}\n"));
        }
        run(self.command_at(node, "sh").args(["-c", &lines]), None);
    }

    fn net_option(&self, node: &str) -> String {
        format!("--net=/run/netns/{}-{node}", self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for space in self.spaces.iter().rev() {
            let _ = Command::new("ip").args(["netns", "del", space]).output();
        }
    }
}

fn node_of(side: Side) -> &'static str {
    match side {
        Side::Server => "server",
        Side::Host => "host",
        Side::Client => "client",
    }
}

/// Runs a command that must succeed, with `input`.
#[track_caller]
fn run(command: &mut Command, input: Option<&str>) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // one that fails before it has read everything says why
    let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {why}");
}

/// Leaves the test, saying why, unless there can be network namespaces.
macro_rules! need_lab {
    () => {
        if let Some(reason) = crate::world::lab::Lab::obstacle() {
            return crate::world::skip(&reason);
        }
    };
}
pub(crate) use need_lab;
