//! The network from here: each server over TLS and over UDP, the NAT, the rungs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::UdpSocket;

use crate::address::ServerAddress;
use crate::net::daemon::random;
use crate::net::interfaces;
use crate::net::nat::behaviour_json;
use crate::net::rendezvous::{Inquiry, RendezvousError, inquire};
use crate::proto::stun::{StunClient, StunOutput};
use crate::wire::nat::NatBehaviour;

use super::rungs::{self, Facts, Works};
use super::{Check, second};

/// Time for the NAT's behaviour to be found: a filter that lets nothing in takes two seconds.
const DISCOVERY: Duration = Duration::from_secs(8);
/// Without any answer by then, UDP does not pass.
const FIRST_ANSWER: Duration = Duration::from_secs(4);
/// A datagram, bytes.
const DATAGRAM_BYTES_MAX: usize = 1500;
/// Servers that are asked; somebody with more of them sees enough.
const SERVERS_MAX: usize = 4;

/// What was found of the network.
#[derive(Clone, Debug)]
pub struct Network {
    pub(super) checks: Vec<Check>,
    pub(super) facts: Value,
}

/// What STUN told.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    mapped: Option<SocketAddr>,
    nat: Option<NatBehaviour>,
}

/// Looks at the network from here. `program` is named in hints.
pub(super) async fn examine(servers: &[ServerAddress], program: &str) -> Network {
    let mut checks = Vec::new();
    let own = interfaces::addresses();
    if own.is_empty() {
        checks.push(Check::missing(
            "network",
            "this machine has no network address",
            "connect it to a network",
        ));
    }
    let mut told = Vec::new();
    let mut inquiries = Vec::new();
    for server in servers.iter().take(SERVERS_MAX) {
        let asked = inquire(server).await;
        checks.push(server_check(server, &asked));
        told.push(server_json(server, &asked));
        inquiries.extend(asked);
    }
    if servers.is_empty() {
        checks.push(Check::note(
            "server",
            "no server is known here, so the way through the NAT was not looked at",
            format!("name one: {program} doctor --server ADDRESS (p2pfs-server prints ADDRESS)"),
        ));
    }
    let stun = inquiries.iter().find_map(|inquiry| inquiry.stun.first().copied());
    let mut facts = Facts {
        own,
        server: (!told.is_empty()).then_some(!inquiries.is_empty()),
        tcp: inquiries.first().map(|inquiry| (inquiry.local, inquiry.observed)),
        ..Facts::default()
    };
    let mut opinion = Value::Null;
    if let Some(stun) = stun {
        let (seen, second) = tokio::join!(discover(stun, &facts), second::ask(stun));
        (facts.udp_public, facts.nat, opinion) = (seen.mapped, seen.nat, second);
        checks.push(udp_check(&facts, stun));
        checks.extend(nat_check(&facts));
        checks.push(second_check(&opinion));
    }
    let verdicts = rungs::verdicts(&facts);
    checks.extend(verdicts.iter().map(|verdict| {
        let what = format!("{}: {}, {}", verdict.rung, verdict.works.as_str(), verdict.why);
        match verdict.works {
            Works::Yes => Check::works("rung", what),
            Works::Some | Works::No | Works::Unknown => Check::note("rung", what, ""),
        }
    }));
    let facts = json!({
        "servers": told,
        "udp": { "reachable": facts.udp_public.is_some(), "mapped": facts.udp_public },
        "nat": facts.nat.map(behaviour_json),
        "stun_client": opinion,
        "rungs": verdicts.iter().map(rungs::Verdict::to_json).collect::<Vec<_>>(),
    });
    Network { checks, facts }
}

fn server_check(server: &ServerAddress, asked: &Result<Inquiry, RendezvousError>) -> Check {
    let at = server.authority();
    match asked {
        Ok(inquiry) => Check::works(
            "server",
            format!("server {at}: answers over TLS in {} ms", inquiry.took.as_millis()),
        ),
        Err(RendezvousError::ServerChanged) => Check::missing(
            "server",
            format!("server {at}: somebody answers with another key than the one that was pinned"),
            "if it was set up anew, pair the key again; else do not trust this network",
        ),
        Err(RendezvousError::Unreachable(why)) => Check::missing(
            "server",
            format!("server {at}: not reachable over TLS ({why})"),
            format!("see that it runs, and that TCP port {} is let through to it", server.port),
        ),
    }
}

fn server_json(server: &ServerAddress, asked: &Result<Inquiry, RendezvousError>) -> Value {
    let mut value = json!({ "address": server.to_string(), "tls": asked.is_ok() });
    match asked {
        Ok(inquiry) => {
            value["tls_ms"] = json!(inquiry.took.as_secs_f64() * 1000.0);
            value["tcp_private"] = json!(inquiry.local);
            value["tcp_public"] = json!(inquiry.observed);
            value["stun"] = json!(inquiry.stun);
        }
        Err(error) => value["error"] = json!(error.to_string()),
    }
    value
}

fn udp_check(facts: &Facts, stun: SocketAddr) -> Check {
    match facts.udp_public {
        Some(mapped) => {
            Check::works("udp", format!("UDP: reaches {stun} and comes back; seen at {mapped}"))
        }
        None => Check::note(
            "udp",
            format!("UDP: nothing comes back from {stun}"),
            "have UDP let out, for speed; TCP and the relay do without",
        ),
    }
}

fn nat_check(facts: &Facts) -> Option<Check> {
    let nat = facts.nat?;
    let keeps = match nat.keeps_port {
        Some(true) => ", which keeps ports",
        Some(false) => ", which changes ports",
        None => "",
    };
    Some(Check::works("nat", format!("NAT: {}{keeps}", rungs::name(nat))))
}

fn second_check(opinion: &Value) -> Check {
    let word = |field: &str| opinion[field].as_str().unwrap_or("cannot tell").to_owned();
    match opinion["error"].as_str() {
        Some(error) => {
            Check::note("stun-client", format!("stun-client, by itself: failed, {error}"), "")
        }
        None => Check::works(
            "stun-client",
            format!(
                "stun-client, by itself: mapping {}, filtering {}",
                word("mapping"),
                word("filtering"),
            ),
        ),
    }
}

/// Runs the STUN client on a socket of its own until it has found out everything.
async fn discover(server: SocketAddr, facts: &Facts) -> Seen {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let Ok(socket) = UdpSocket::bind(any).await else {
        return Seen::default();
    };
    let port = socket.local_addr().map_or(0, |local| local.port());
    let own: Vec<SocketAddr> = facts.own.iter().map(|ip| (*ip, port).into()).collect();
    let start = now();
    let mut client = StunClient::new(random(), DISCOVERY);
    client.set_own(&own);
    client.set_servers(&[server], start);
    let mut seen = Seen::default();
    let mut datagram = [0; DATAGRAM_BYTES_MAX];
    loop {
        while let Some(output) = client.poll_output() {
            match output {
                StunOutput::Transmit { to, bytes } => {
                    // one that cannot be sent is as good as lost
                    let _ = socket.send_to(&bytes, to).await;
                }
                StunOutput::Mapped(mapped) => seen.mapped = Some(mapped),
                StunOutput::Behaves(nat) => {
                    seen.nat = Some(nat);
                    return seen;
                }
            }
        }
        let limit = if seen.mapped.is_some() { DISCOVERY } else { FIRST_ANSWER };
        let end = start + limit;
        if now() >= end {
            return seen;
        }
        let wake = client.poll_timeout().map_or(end, |wake| wake.min(end));
        tokio::select! {
            received = socket.recv_from(&mut datagram) => match received {
                Ok((length, from)) => {
                    client.handle_datagram(&datagram[..length], from, now());
                }
                // an ICMP error of an earlier request
                Err(_) => tokio::task::yield_now().await,
            },
            () = tokio::time::sleep_until(wake.into()) => client.handle_timeout(now()),
        }
    }
}

fn now() -> Instant {
    Instant::now()
}
