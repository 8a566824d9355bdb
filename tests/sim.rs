//! The redo log and the leases in a simulated world: clients, a network, a host and its disk, all of
//! it drawn from one seed. [`sim::world`] says how a run goes, [`sim::check`] what is claimed.
//!
//! `P2PFS_SEEDS=N` runs more seeds, `P2PFS_SEED=N` one again, `P2PFS_TRACE=1` tells what goes on.

mod sim {
    pub mod apps;
    pub mod check;
    pub mod client;
    pub mod clock;
    pub mod coverage;
    pub mod dice;
    pub mod disk;
    pub mod host;
    pub mod model;
    pub mod net;
    pub mod posix;
    pub mod runs;
    pub mod tree;
    pub mod world;
}
