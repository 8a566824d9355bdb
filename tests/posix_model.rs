//! The mount against a plain directory of the same file system: the same operations have the same
//! results, the same errors, and leave the same tree (D1).
//!
//! `P2PFS_MODEL_CASES=N` makes the run longer, `P2PFS_MODEL_SEED=N` repeats one. What a run has
//! found is kept below, shrunk, by name.

mod operation;
mod side;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::world::{Home, need_mount, need_root};
use operation::Operation;
use side::Side;

/// Sequences of one run.
const CASES: u32 = 48;
/// Where they begin.
const SEED: u64 = 1;
/// Operations of one sequence.
const OPERATIONS: usize = 80;

/// Where sequences are carried out: each in directories of its own.
struct Bench {
    home: Home,
    plain: PathBuf,
    cases: AtomicU32,
}

/// A sequence. What the host's file system has allocated without being written, it shows as data or
/// as holes as it likes: either such space or holes are looked at.
#[derive(Clone, Debug)]
struct Case {
    seeks: bool,
    operations: Vec<Operation>,
}

impl Bench {
    fn new() -> Self {
        let home = Home::on_loopback();
        home.mount("timeout=20,cache=8M");
        let plain = home.world.directory("plain");
        Self { home, plain, cases: AtomicU32::new(0) }
    }

    /// Carries a sequence out on both sides; tells the first difference.
    fn run(&self, case: &Case) -> Result<(), String> {
        let name = format!("case{}", self.cases.fetch_add(1, Ordering::Relaxed));
        let mut mount = Side::new(self.home.mountpoint.join(&name));
        let mut plain = Side::new(self.plain.join(&name));
        for (at, operation) in case.operations.iter().enumerate() {
            if operation.is_skipped(case.seeks) {
                continue;
            }
            let (here, there) = (mount.carry_out(operation), plain.carry_out(operation));
            if here != there {
                return Err(format!("{at}: {operation:?}: {here:?}, on the disk {there:?}"));
            }
        }
        let expected = plain.tree();
        let shown = mount.tree();
        if shown != expected {
            return Err(format!("the mount shows {shown:#?}, the disk has {expected:#?}"));
        }
        drop(mount);
        let host = Side::at(self.home.disk.join(&name)).tree();
        if host != expected {
            return Err(format!("the host has {host:#?}, the disk has {expected:#?}"));
        }
        fs::remove_dir_all(self.home.mountpoint.join(&name)).map_err(|error| error.to_string())
    }
}

#[test]
fn the_mount_does_what_the_disk_does() {
    need_mount!();
    need_root!();
    let bench = Bench::new();
    let longer = number("P2PFS_MODEL_CASES");
    let cases = longer.map_or(CASES, |cases| cases as u32);
    // always the same ones, but for the longer runs that look for new ones
    let chosen = number("P2PFS_MODEL_SEED").or_else(|| longer.is_none().then_some(SEED));
    let seed = chosen.unwrap_or_else(by_the_clock);
    let config =
        Config { cases, max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let sequences = (any::<bool>(), vec(operation::any_operation(), 1..OPERATIONS))
        .prop_map(|(seeks, operations)| Case { seeks, operations });
    let result = TestRunner::new_with_rng(config, rng)
        .run(&sequences, |case| bench.run(&case).map_err(TestCaseError::fail));
    match result {
        Ok(()) => bench.home.unmount(),
        Err(TestError::Fail(why, case)) => {
            panic!("P2PFS_MODEL_SEED={seed}: {why}\nafter {case:#?}")
        }
        Err(error) => panic!("P2PFS_MODEL_SEED={seed}: {error}"),
    }
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn by_the_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::from(now.subsec_nanos())
}
