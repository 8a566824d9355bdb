//! Network namespaces: a WAN with a server, and two sides, each straight on it or behind a NAT.
//!
//! ```text
//!                       wan 203.0.113.0/24
//!      host .2 --- .1 [NAT] .10 ---+--- .20 [NAT] .1 --- .2 client
//!            10.1.0.0/24           |          10.2.0.0/24
//!                              server .5
//! ```
//!
//! The NAT is a port-restricted cone that keeps ports: nftables' masquerade, and from outside
//! nothing but what answers.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Outcome, Side, programs};

/// How one side is attached to the WAN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Attached {
    /// With a public address.
    Straight,
    /// Behind a port-restricted NAT.
    BehindNat,
}

/// The namespaces; removed on drop.
pub(crate) struct Lab {
    name: String,
    spaces: Vec<String>,
}

const RULES: &str = r#"
table ip nat {
  chain post { type nat hook postrouting priority srcnat; policy accept;
    oifname "wan" masquerade
  }
  chain forw { type filter hook forward priority 0; policy accept;
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }
  chain inpt { type filter hook input priority 0; policy accept;
    iifname "wan" meta l4proto { tcp, udp } ct state new drop
  }
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
        run(Command::new("ip").args(["netns", "del", &probe]));
        None
    }

    /// Builds it.
    pub(crate) fn new(host: Attached, client: Attached) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let mut lab =
            Self { name: format!("p2pfs-{}-{number}", std::process::id()), spaces: Vec::new() };
        lab.space("wan");
        lab.ip("wan", "link add br0 type bridge");
        lab.ip("wan", "link set br0 up");
        lab.space("server");
        lab.join_wan("server", "eth0", "203.0.113.5/24");
        lab.side("host", host, 1);
        lab.side("client", client, 2);
        lab
    }

    /// A command on one of the machines.
    ///
    /// Only the network is another one: `ip netns exec` would hide mounts in their own namespace.
    pub(crate) fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        let node = match side {
            Side::Server => "server",
            Side::Host => "host",
            Side::Client => "client",
        };
        let mut command = Command::new("nsenter");
        command.arg(self.net_option(node)).arg("--").arg(program);
        command
    }

    fn side(&mut self, node: &str, attached: Attached, number: u8) {
        self.space(node);
        let public = format!("203.0.113.{number}0/24");
        if attached == Attached::Straight {
            self.join_wan(node, "eth0", &public);
            self.ip(node, "route add default via 203.0.113.5");
            return;
        }
        let router = format!("{node}-nat");
        self.space(&router);
        self.join_wan(&router, "wan", &public);
        self.ip(&router, "route add default via 203.0.113.5");
        self.link(node, "eth0", &router, "lan");
        self.ip(node, &format!("addr add 10.{number}.0.2/24 dev eth0"));
        self.ip(&router, &format!("addr add 10.{number}.0.1/24 dev lan"));
        self.ip(node, &format!("route add default via 10.{number}.0.1"));
        self.set(&router, "net/ipv4/ip_forward", "1");
        let mut nft = self.inside(&router, "nft");
        nft.args(["-f", "-"]);
        feed(nft, RULES);
    }

    /// A namespace without IPv6: the lab has one way only.
    fn space(&mut self, node: &str) {
        let name = format!("{}-{node}", self.name);
        run(Command::new("ip").args(["netns", "add", &name]));
        self.spaces.push(name);
        self.set(node, "net/ipv6/conf/all/disable_ipv6", "1");
        self.set(node, "net/ipv6/conf/default/disable_ipv6", "1");
        self.ip(node, "link set lo up");
    }

    fn join_wan(&self, node: &str, interface: &str, address: &str) {
        let port = format!("p-{}", &node[..node.len().min(12)]);
        self.link(node, interface, "wan", &port);
        self.ip("wan", &format!("link set {port} master br0"));
        self.ip(node, &format!("addr add {address} dev {interface}"));
    }

    fn link(&self, node: &str, interface: &str, peer: &str, peer_interface: &str) {
        let peer_space = format!("{}-{peer}", self.name);
        self.ip(
            node,
            &format!(
                "link add {interface} type veth peer name {peer_interface} netns {peer_space}"
            ),
        );
        self.ip(node, &format!("link set {interface} up"));
        self.ip(peer, &format!("link set {peer_interface} up"));
    }

    fn ip(&self, node: &str, args: &str) {
        let space = format!("{}-{node}", self.name);
        run(Command::new("ip").args(["-n", &space]).args(args.split(' ')));
    }

    /// Writes a network setting of a namespace; one that the kernel does not have stays.
    fn set(&self, node: &str, setting: &str, value: &str) {
        let mut shell = self.inside(node, "sh");
        let line = format!("[ ! -e /proc/sys/{setting} ] || echo {value} > /proc/sys/{setting}");
        run(shell.args(["-c", &line]));
    }

    fn inside(&self, node: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.net_option(node)).arg("--").arg(program);
        command
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

#[track_caller]
fn run(command: &mut Command) {
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    Outcome::of(owned, Duration::from_secs(20)).ok();
}

fn feed(mut command: Command, text: &str) {
    use std::io::Write;

    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refuses the rules");
}
