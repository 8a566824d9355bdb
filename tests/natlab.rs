//! The lab itself: each kind of NAT does what its name says. Plain sockets, nothing of ours.

mod probe;

use std::sync::Mutex;
use std::thread;

use crate::world::lab::{Kind, Lab, need_lab};

use self::probe::{Echo, Seen};

/// Labs at once: most of the time they wait for answers that do not come.
const AT_ONCE: usize = 4;

#[test]
fn each_kind_of_nat_does_what_its_name_says() {
    need_lab!();
    let kinds = Mutex::new(Kind::ALL.into_iter());
    let next = || kinds.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(kind) = next() {
                    check(kind);
                }
            });
        }
    });
}

/// Two machines behind one NAT share a LAN, and an address outside.
#[test]
fn a_client_behind_the_hosts_own_nat_is_in_its_lan() {
    need_lab!();
    let lab = Lab::new(Kind::Port, Kind::SameNat);
    let echo = Echo::start(&lab, false);
    let host = probe::look(&lab, "host", &echo);
    let client = probe::look(&lab, "client", &echo);
    assert_eq!(host, client);
    assert_eq!(host, Seen::expected(Kind::SameNat));
    assert!(probe::hears(&lab, "host", "client", "10.1.0.3".parse().unwrap()));
}

/// What goes through a NAT that forgets is mapped anew; a NAT that has another address maps anew.
#[test]
fn a_nat_forgets_and_can_be_rebound() {
    need_lab!();
    let mut plan = crate::world::lab::Plan::new(Kind::Sym, Kind::None);
    plan.forget_udp = (2, 2);
    let lab = Lab::build(plan);
    let echo = Echo::start(&lab, false);
    let flow = probe::Flow::new(&lab, "host", &echo);
    let first = flow.seen_at().unwrap();
    assert_eq!(flow.seen_at(), Some(first));
    crate::world::eventually("the NAT to forget", std::time::Duration::from_secs(30), || {
        // longer than it remembers, by the arrival of nothing
        flow.hears_nothing_for(std::time::Duration::from_secs(3));
        flow.seen_at() != Some(first)
    });
    lab.rebind(crate::world::Side::Host);
    crate::world::eventually("the other address", std::time::Duration::from_secs(10), || {
        flow.seen_at().is_some_and(|seen| seen.ip().to_string() == "203.0.113.15")
    });
}

fn check(kind: Kind) {
    let lab = Lab::new(kind, Kind::None);
    let echo = Echo::start(&lab, !kind.has_v4());
    let seen = probe::look(&lab, "host", &echo);
    assert_eq!(seen, Seen::expected(kind), "{}", kind.name());
}
