//! The paths between the kinds of NAT (R1, R10, R18, R19, R21): real daemons and a real mount for
//! each pair; the table goes to standard error.
//!
//! `tests/nats --full` runs every pair, `tests/nats` those that together touch every kind.

mod capture;
mod oracle;
mod pair;
mod relay;
mod times;

use std::io::Write;
use std::sync::Mutex;
use std::thread;

use crate::world::lab::{Kind, need_lab};
use crate::world::need_mount;

use self::oracle::Expected;
use self::pair::Row;

/// Pairs that together touch every kind, and every way to carry the data.
const SOME: [(Kind, Kind); 12] = [
    (Kind::Port, Kind::Port),
    (Kind::None, Kind::Sym),
    (Kind::CgnSym, Kind::Full),
    (Kind::Addr, Kind::SymSeq),
    (Kind::Portr, Kind::Cgn),
    (Kind::V6Only, Kind::V6Only),
    (Kind::Port, Kind::SameNat),
    (Kind::Fw, Kind::Adm),
    (Kind::UdpBlock, Kind::Port),
    (Kind::Sym, Kind::Sym),
    (Kind::Port, Kind::Tcp443),
    (Kind::Port, Kind::V6Only),
];

#[test]
fn pairs_that_touch_every_kind_meet_as_the_oracle_says() {
    need_mount!();
    need_lab!();
    for kind in Kind::ALL.into_iter().chain([Kind::SameNat]) {
        assert!(SOME.iter().any(|(one, other)| [*one, *other].contains(&kind)), "{kind:?}");
    }
    judge(&SOME, 2);
}

#[test]
#[ignore = "minutes: tests/nats --full"]
fn every_pair_meets_as_the_oracle_says() {
    need_mount!();
    need_lab!();
    let mut all: Vec<(Kind, Kind)> =
        Kind::ALL.iter().flat_map(|one| Kind::ALL.map(|other| (*one, other))).collect();
    all.push((Kind::Port, Kind::SameNat));
    judge(&all, 1);
}

/// Runs the pairs, some at once, and prints the table.
fn judge(pairs: &[(Kind, Kind)], at_once: usize) {
    let next = Mutex::new(pairs.iter());
    let rows = Mutex::new(Vec::new());
    say(Row::HEAD);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some((host, client)) = next.lock().unwrap().next() else {
                        return;
                    };
                    let row = pair::run(*host, *client);
                    say(&row.text());
                    rows.lock().unwrap().push(row);
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap();
    let direct = rows.iter().filter(|row| row.direct.is_some()).count();
    let expected = rows.iter().filter(|row| row.expected == Expected::Direct).count();
    say(&format!("{} pairs, {direct} direct, {expected} were expected to be", rows.len()));
    let bad: Vec<String> = rows.iter().filter(|row| !row.is_good()).map(Row::text).collect();
    assert!(bad.is_empty(), "\n{}\n{}", Row::HEAD, bad.join("\n"));
}

/// Past the capture of the test harness, which hides what a passing test prints.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
