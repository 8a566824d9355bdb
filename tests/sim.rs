//! The redo log and the leases in a simulated world: clients, a network, a host and its disk, all
//! of it drawn from one seed. `sim::world` says how a run goes, `sim::check` what is claimed.
//!
//! `P2PFS_SEEDS=N` runs more seeds, `P2PFS_SEED=N` one again, `P2PFS_TRACE=1` tells what goes on.

mod sim {
    pub(crate) mod apps;
    pub(crate) mod check;
    pub(crate) mod client;
    pub(crate) mod clock;
    pub(crate) mod copies;
    pub(crate) mod coverage;
    pub(crate) mod covered;
    pub(crate) mod dice;
    pub(crate) mod disk;
    pub(crate) mod host;
    pub(crate) mod model;
    pub(crate) mod net;
    pub(crate) mod posix;
    pub(crate) mod process;
    pub(crate) mod runs;
    pub(crate) mod scenarios;
    pub(crate) mod script;
    pub(crate) mod tree;
    pub(crate) mod world;
}
