//! The NAT stays closed (R11): nobody but the peer gets a byte out of it, no port is forwarded, and
//! nothing is asked of the router.

mod stranger;

use std::process::Command;
use std::time::Duration;

use crate::world::lab::{Kind, Lab, need_lab};
use crate::world::{Home, Side, eventually, need_mount};

/// Counts what a machine hears from an address, below every firewall.
const HEARD: &str = "
table ip heard { chain first { type filter hook prerouting priority -400;
  ip saddr 203.0.113.10 counter;
  }
}";

/// Counts what is said to the router itself or to whoever listens: NAT-PMP, PCP, SSDP, UPnP.
const ASKED: &str = "
table ip asked { chain first { type filter hook prerouting priority -400;
  iifname \"lan\" ip daddr { 10.0.0.0/8, 224.0.0.0/4, 255.255.255.255 } counter;
  }
}";

/// Counts what a stranger brings into the LAN.
const ENTERED: &str = "
table ip entered { chain last { type filter hook postrouting priority 400;
  oifname \"lan\" ip saddr 203.0.113.99 counter;
  }
}";

#[test]
fn a_stranger_gets_no_byte_through_the_nat() {
    need_mount!();
    need_lab!();
    // the second lets anybody in: then it is hostd that is silent
    std::thread::scope(|scope| {
        for kind in [Kind::Port, Kind::Full] {
            scope.spawn(move || silent(kind));
        }
    });
}

fn silent(kind: Kind) {
    let mut home = Home::in_lab(Lab::new(kind, Kind::Port));
    let stranger = home.world.lab_mut().stranger();
    home.world.lab().nft(stranger, HEARD);
    home.world.lab().nft("host-nat", ASKED);
    home.world.lab().nft("host-nat", ENTERED);
    home.world.lab().nft("client-nat", ASKED);
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    home.mount("timeout=20");
    let before = home.world.status(Side::Host);
    let own = &before["routing"]["own"];
    let port = |address: &str| {
        let text = own[address].as_str().unwrap_or_else(|| panic!("no {address}: {own:#}"));
        text.rsplit_once(':').unwrap().1.parse::<u16>().unwrap()
    };
    let (udp, tcp) = (port("udp_public"), port("tcp_public"));

    let answered = stranger::knock(home.world.lab(), stranger, [203, 0, 113, 10].into(), udp, tcp);

    assert_eq!(answered, 0, "datagrams or connections came back");
    assert_eq!(packets(home.world.lab(), stranger, "heard"), 0, "a packet came back");
    for router in ["host-nat", "client-nat"] {
        assert_eq!(packets(home.world.lab(), router, "asked"), 0, "{router} was asked");
    }
    let entered = packets(home.world.lab(), "host-nat", "entered");
    assert_eq!(entered > 0, kind == Kind::Full, "{entered} packets came in");
    let after = home.world.status(Side::Host);
    assert_eq!(after["sessions"].as_array().unwrap().len(), 1, "{after:#}");
    assert_eq!(after["routing"]["own"]["udp_public"], own["udp_public"]);
    assert_eq!(std::fs::read(home.mountpoint.join("hello")).unwrap(), b"from home\n");
    if kind == Kind::Port {
        let mut list = home.world.lab().command_at("host-nat", "nft");
        let rules = list.args(["list", "ruleset"]).output().unwrap();
        let rules = String::from_utf8_lossy(&rules.stdout);
        assert!(!rules.contains("dnat to") && !rules.contains("dnat ip"), "{rules}");
    }
    home.unmount();
}

/// What the only counter of a table has counted.
fn packets(lab: &Lab, node: &str, table: &str) -> u64 {
    let mut list: Command = lab.command_at(node, "nft");
    let listed = list.args(["list", "table", "ip", table]).output().unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let (_, counted) = text.split_once("counter packets ").unwrap_or_else(|| panic!("{text}"));
    counted.split(' ').next().unwrap().parse().unwrap()
}
