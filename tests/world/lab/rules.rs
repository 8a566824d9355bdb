//! What makes a router one kind of NAT: rules for nftables.
//!
//! A port that a rule computes comes out of a map: a bare number is taken with its bytes swapped.

use std::fmt::Write;

use super::Kind;

/// Where ports that are not kept begin, and how many there are.
const PORTS: (u32, u32) = (40_000, 4096);
/// What distinguishes one hash of addresses from another.
const SEED: u32 = 0x1234_abcd;

/// What a kind needs beyond a filter that lets answers in.
#[derive(Debug, Default)]
struct Parts {
    declarations: &'static str,
    /// Before routing, from the WAN.
    pre: &'static str,
    /// After routing, into the WAN.
    post: String,
    /// Forwarding.
    forward: &'static str,
}

/// The rules of a router between `lan` and `wan`. A carrier's kinds are built from these.
pub(super) fn rules(kind: Kind) -> String {
    let Parts { declarations, pre, post, forward } = parts(kind);
    format!(
        r#"
table ip nat {{
  {declarations}
  chain pre {{ type nat hook prerouting priority dstnat; policy accept;
    {pre}
  }}
  chain post {{ type nat hook postrouting priority srcnat; policy accept;
    {post}
  }}
  chain forw {{ type filter hook forward priority -5; policy accept;
    {forward}
    iifname "wan" ct status dnat accept
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }}
  chain inpt {{ type filter hook input priority 0; policy accept;
    iifname "wan" meta l4proto {{ tcp, udp }} ct state new drop
  }}
}}
table ip6 wall {{
  chain forw {{ type filter hook forward priority 0; policy accept;
    iifname "wan" icmpv6 type != {{ echo-request }} accept
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }}
}}
"#
    )
}

fn parts(kind: Kind) -> Parts {
    let plain = "oifname \"wan\" masquerade";
    match kind {
        Kind::Fw => Parts::default(),
        // the map is refreshed by every packet that leaves; a chain of type nat sees the first only
        Kind::Full => Parts {
            declarations: CONES,
            pre: "iifname \"wan\" meta l4proto udp dnat ip to udp dport map @inside",
            post: plain.to_owned(),
            forward: OPENS,
        },
        Kind::Addr => Parts {
            declarations: CONES,
            pre: "iifname \"wan\" meta l4proto udp udp dport . ip saddr @spoken dnat ip to udp \
                  dport map @inside",
            post: plain.to_owned(),
            forward: OPENS,
        },
        Kind::Portr => computed("jhash ip saddr . udp sport", true, plain),
        Kind::Adm => computed("jhash ip saddr . udp sport . ip daddr", true, plain),
        Kind::Sym | Kind::CgnSym => Parts {
            post: format!(
                "oifname \"wan\" meta l4proto {{ tcp, udp }} masquerade random,fully-random\n    \
                 {plain}"
            ),
            ..Parts::default()
        },
        Kind::SymSeq => {
            computed("numgen inc", false, "oifname \"wan\" masquerade random,fully-random")
        }
        Kind::UdpBlock => Parts {
            post: plain.to_owned(),
            forward: "iifname \"lan\" meta l4proto udp drop",
            ..Parts::default()
        },
        Kind::Tcp443 => Parts {
            post: plain.to_owned(),
            forward: "iifname \"lan\" tcp dport 443 accept\n    iifname \"lan\" drop",
            ..Parts::default()
        },
        Kind::None | Kind::Port | Kind::Cgn | Kind::V6Only | Kind::SameNat => {
            Parts { post: plain.to_owned(), ..Parts::default() }
        }
    }
}

const CONES: &str = "map inside { type inet_service : ipv4_addr . inet_service; \
                     flags dynamic,timeout; timeout 300s; size 65536; }\n  \
                     set spoken { type inet_service . ipv4_addr; \
                     flags dynamic,timeout; timeout 300s; size 65536; }";
const OPENS: &str = "iifname \"lan\" oifname \"wan\" meta l4proto udp \
                     update @inside { udp sport timeout 300s : ip saddr . udp sport } \
                     update @spoken { udp sport . ip daddr timeout 300s }";

/// UDP's port is computed; the rest goes by `others`.
fn computed(from: &str, seeded: bool, others: &str) -> Parts {
    let (first, count) = PORTS;
    let mut map = String::new();
    for port in 0..count {
        let comma = if port == 0 { "" } else { ", " };
        let _ = write!(map, "{comma}{port} : {}", first + port);
    }
    let seed = if seeded { format!(" seed {SEED}") } else { String::new() };
    Parts {
        post: format!(
            "oifname \"wan\" meta l4proto udp masquerade to :{from} mod {count}{seed} map {{ \
             {map} }}\n    {others}"
        ),
        ..Parts::default()
    }
}
