//! Many runs, each of its own seed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::coverage::Coverage;
use super::world::{Config, World};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs so many seeds, or the one that is asked for.
fn run_seeds(test: &str, seeds: u64, config: Config) {
    let seeds_for_all = seeds;
    let seeds = number("P2PFS_SEEDS").unwrap_or(seeds);
    let range = number("P2PFS_SEED").map_or(0..seeds, |seed| seed..seed + 1);
    let (mut ops, mut steps, mut counts) = (0, 0, Coverage::default());
    let runs = range.end - range.start;
    for seed in range {
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(seed, config);
            world.run();
            world
        }));
        match run {
            Ok(world) => {
                ops += world.ops;
                steps += world.steps;
                counts.add(&world.counts);
            }
            Err(_) if number("P2PFS_GO_ON").is_some() => eprintln!("seed {seed} failed"),
            Err(cause) => {
                eprintln!("P2PFS_SEED={seed} cargo test --release -p p2pfs --test sim -- {test}");
                resume_unwind(cause);
            }
        }
    }
    if runs >= seeds_for_all {
        let missing = counts.missing(super::covered::expected(test));
        assert!(missing.is_empty(), "{test}: not met any more: {missing:?}");
    }
    println!("{test}: {runs} seeds, {ops} operations, {steps} steps\n{}", counts.table());
}

/// So many operations, over as many runs as it takes: `P2PFS_OPS=10000000`.
#[test]
#[ignore = "runs for minutes"]
fn many_operations() {
    let wanted = number("P2PFS_OPS").unwrap_or(1_000_000);
    let each = |config: Config| wanted / 2 / config.ops;
    run_seeds("one_client_loses_nothing", each(Config::alone()), Config::alone());
    run_seeds("clients_agree_under_leases", each(Config::calm()), Config::calm());
}

/// Seeds at which something was wrong once, in a core or in what the simulated host does. Each is a
/// whole run; where the fault is understood well enough there is a scenario as well.
#[test]
fn regression_seeds_that_failed_once() {
    let seeds = [
        (60_597, Config::calm()),
        (18_495, Config::alone()),
        (18_495, Config::leased()),
        // a process undid what a crash made come again; and took the name of it
        (1546, Config::watched()),
        (6641, Config::watched()),
        // a job that waited for the redo of another session became part of its own session's
        (19_584, Config::watched()),
        // a copy of a copy of what was never made, or is gone
        (68_500, Config::alone()),
        (75_346, Config::alone()),
    ];
    for (seed, config) in seeds {
        println!("seed {seed} of {config:?}");
        World::new(seed, config).run();
    }
}

#[test]
fn one_client_loses_nothing() {
    run_seeds("one_client_loses_nothing", 20_000, Config::alone());
}

#[test]
fn clients_agree_under_leases() {
    run_seeds("clients_agree_under_leases", 20_000, Config::calm());
}

#[test]
fn clients_agree_again_after_faults() {
    run_seeds("clients_agree_again_after_faults", 40_000, Config::leased());
}

#[test]
fn clients_and_processes_keep_what_both_have_changed() {
    run_seeds("clients_and_processes_keep_what_both_have_changed", 10_000, Config::watched());
}
