//! `doctor`: what works from here, what does not, and what to do about it (R2, R18).

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::lab::{Filtering, Kind, Lab, Mapping, need_lab};
use crate::world::{Home, Outcome, Side, World, eventually, need_mount};

/// The behaviour that a kind is to be found with; the words are those of RFC 4787.
fn expected(kind: Kind) -> Value {
    let Some(udp) = kind.udp() else {
        return Value::Null;
    };
    let mapping = match udp.mapping {
        Mapping::Unmapped => "none",
        Mapping::Endpoint => "endpoint-independent",
        Mapping::Address => "address-dependent",
        Mapping::AddressAndPort => "address-and-port-dependent",
    };
    let filtering = match udp.filtering {
        Filtering::Endpoint => "endpoint-independent",
        Filtering::Address => "address-dependent",
        Filtering::AddressAndPort => "address-and-port-dependent",
    };
    serde_json::json!({
        "mapping": mapping,
        "filtering": filtering,
        "keeps_port": udp.keeps_port,
    })
}

/// Both sides' doctors name their NATs, and so does the running host for itself.
fn names(host: Kind, client: Kind) {
    let home = Home::in_lab(Lab::new(host, client));
    let key = home.key.dir.to_str().unwrap();
    for (side, kind, args) in [
        (Side::Host, host, &["doctor", "--json"][..]),
        (Side::Client, client, &["doctor", key, "--json"]),
    ] {
        let report = Outcome::of(home.world.program(side, args), Duration::from_secs(40));
        let report = report.ok().json();
        let network = &report["network"];
        assert_eq!(report["ok"], true, "{report:#}");
        assert_eq!(network["nat"], expected(kind), "{}: {report:#}", kind.name());
        assert_eq!(network["udp"]["reachable"], kind.udp().is_some(), "{report:#}");
        assert_eq!(network["servers"][0]["tls"], true, "{report:#}");
        assert_eq!(works(network, "relay"), "yes", "{report:#}");
        let udp = match kind.udp() {
            None => "no",
            Some(udp) if matches!(udp.mapping, Mapping::Address | Mapping::AddressAndPort) => {
                "some"
            }
            Some(_) => "yes",
        };
        assert_eq!(works(network, "udp-public"), udp, "{}: {report:#}", kind.name());
        second_opinion(&network["stun_client"], kind);
    }
    eventually("the host to know its NAT", Duration::from_secs(20), || {
        let status = home.world.status(Side::Host);
        status["routing"]["own"]["nat"] == expected(host)
    });
}

fn works<'a>(network: &'a Value, rung: &str) -> &'a str {
    let rungs = network["rungs"].as_array().unwrap();
    let found = rungs.iter().find(|verdict| verdict["rung"] == rung);
    found.unwrap()["works"].as_str().unwrap()
}

/// `stun-client` agrees, as far as it can tell.
fn second_opinion(opinion: &Value, kind: Kind) {
    let Some(udp) = kind.udp() else {
        assert!(opinion["mapping"]["error"].is_string(), "{opinion:#}");
        return;
    };
    let mapping = match udp.mapping {
        Mapping::Unmapped => "NoNAT",
        Mapping::Endpoint => "EndpointIndependent",
        // its second question changes both address and port
        Mapping::Address | Mapping::AddressAndPort => "AddressAndPortDependent",
    };
    assert_eq!(opinion["mapping"], mapping, "{}: {opinion:#}", kind.name());
    let filtering = match udp.filtering {
        Filtering::Endpoint => "EndpointIndependent",
        Filtering::Address => "AddressDependent",
        Filtering::AddressAndPort => "AddressAndPortDependent",
    };
    assert_eq!(opinion["filtering"], filtering, "{}: {opinion:#}", kind.name());
}

#[test]
fn nats_are_named_as_they_are() {
    need_mount!();
    need_lab!();
    let pairs = [
        (Kind::None, Kind::Port),
        (Kind::Full, Kind::Sym),
        (Kind::Addr, Kind::Adm),
        (Kind::Fw, Kind::Cgn),
        (Kind::Portr, Kind::CgnSym),
        (Kind::SymSeq, Kind::UdpBlock),
        (Kind::Tcp443, Kind::None),
    ];
    std::thread::scope(|scope| {
        for pair in pairs {
            scope.spawn(move || names(pair.0, pair.1));
        }
    });
}

#[test]
fn a_server_that_is_not_there_is_missing_and_named() {
    let world = World::on_loopback();
    // a server's address at a port where nobody listens
    let gone = {
        let server = world.server("127.0.0.1:0");
        let address = server.ready.clone();
        server.stop();
        address
    };
    let outcome = world.hostd(&["doctor", "--server", &gone]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("not reachable over TLS"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("-> see that it runs"), "{}", outcome.stdout);

    // nothing is known, so nothing is missing but what the machine lacks
    let outcome = world.hostd(&["doctor", "--json"]);
    let report = outcome.json();
    let states: Vec<_> =
        report["checks"].as_array().unwrap().iter().map(|check| check["state"].clone()).collect();
    assert_eq!(outcome.code == Some(0), !states.contains(&"missing".into()), "{report:#}");
}

#[test]
fn an_answer_that_is_malformed_ends_the_second_opinion_only() {
    let world = World::on_loopback();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap().to_string();
    // ends with the second opinion's last request
    let answering = std::thread::spawn(move || {
        let mut request = [0; 1500];
        server.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
        while let Ok((_, from)) = server.recv_from(&mut request) {
            // a success, with an address of no bytes
            let mut answer = request[..20].to_vec();
            answer[..4].copy_from_slice(&[1, 1, 0, 4]);
            answer.extend([0, 0x20, 0, 0]);
            let _ = server.send_to(&answer, from);
        }
    });
    let start = Instant::now();
    let outcome =
        Outcome::of(world.program(Side::Client, &["second-opinion", &at]), Duration::from_secs(20));
    assert_ne!(outcome.code, Some(0), "{}", outcome.stdout);
    assert!(start.elapsed() < Duration::from_secs(10));
    answering.join().unwrap();
}
