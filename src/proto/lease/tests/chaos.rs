//! Thousands of worlds.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{Chaos, World};

const CALM: Chaos = Chaos {
    losses: false,
    restarts: false,
    freezes: false,
    processes: false,
    stuck_flushes: false,
};
const SEEDS: u64 = 100;

/// One world: some minutes of trouble, then peace, in which everything comes to an end.
fn run(seed: u64, chaos: Chaos) -> BTreeMap<&'static str, usize> {
    let mut world = World::new(seed, 2 + usize::try_from(seed % 3).unwrap(), chaos);
    world.run_until(Duration::from_secs(240));
    world.chaos = CALM;
    world.run_until(Duration::from_secs(560));
    world.quiet = true;
    world.run_until(Duration::from_secs(700));
    assert!(world.host.is_idle(), "something still waits");
    for client in 0..world.clients.len() {
        assert!(world.clients[client].entries.is_empty(), "entries without an answer");
        let local = world.local(client);
        world.clients[client].holder.handle_suspend(local);
    }
    world.drain();
    world.run_until(Duration::from_secs(800));
    assert!(world.host.grantor.is_empty(), "leases that nobody has");
    assert_eq!(world.host.grantor.objects(), [], "objects that nobody uses");
    for client in &world.clients {
        assert!(client.holder.is_clean(), "{:?}", client.holder);
    }
    world.seen
}

/// Runs many; everything named must have been seen.
fn run_many(first: u64, chaos: Chaos, named: &[&str]) {
    let mut seen: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in first..first + SEEDS {
        let world = std::panic::catch_unwind(|| run(seed, chaos));
        for (what, count) in world.unwrap_or_else(|_| panic!("seed {seed}: {chaos:?}")) {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:?}");
    for what in named {
        assert!(seen.contains_key(what), "{what} never happened: {seen:?}");
    }
}

#[test]
fn nobody_believes_in_what_another_was_given_when_all_is_well() {
    run_many(0, CALM, &["accepted", "cached", "flush", "granted", "offered", "recall"]);
}

#[test]
fn nobody_believes_in_what_another_was_given_when_connections_are_lost() {
    let chaos = Chaos { losses: true, ..CALM };
    run_many(10_000, chaos, &["accepted", "cached", "lost", "recall", "void"]);
}

#[test]
fn nobody_believes_in_what_another_was_given_when_clients_stop_and_kernels_do_not_flush() {
    let chaos = Chaos { losses: true, freezes: true, stuck_flushes: true, ..CALM };
    run_many(20_000, chaos, &["accepted", "cached", "lost", "overtaken", "void"]);
}

#[test]
fn nobody_believes_in_what_another_was_given_when_processes_interfere() {
    let chaos = Chaos { losses: true, processes: true, ..CALM };
    run_many(30_000, chaos, &["changed", "lost", "overflow", "overtaken"]);
}

#[test]
fn nobody_believes_in_what_another_was_given_when_the_host_restarts() {
    let chaos = Chaos { losses: true, restarts: true, ..CALM };
    run_many(40_000, chaos, &["reclaim", "reclaimed", "restart"]);
}

#[test]
fn nobody_believes_in_what_another_was_given_whatever_happens() {
    let chaos =
        Chaos { losses: true, restarts: true, freezes: true, processes: true, stuck_flushes: true };
    run_many(50_000, chaos, &["not reclaimed", "overtaken", "reclaimed", "restart", "void"]);
}
