//! Tests of whole parts and of real things: the programs as a user runs them.
//!
//! The programs are started only through their command line. What cannot run on a machine says
//! SKIPPED and why; with `CI=true` that is a failure.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose set-up fails has nothing better to do than to panic"
)]

/// Another key than the one that wrote.
mod any_key;
/// Owners, ACLs, extended attributes, special files, errors.
mod attributes;
/// `auto`: keys that appear.
mod auto;
/// Two mounts and a process on the host.
mod beside;
/// `--help`, wrong usage, exit codes: what needs no daemon.
mod cli;
/// The NAT stays closed.
mod closed;
/// The network is cut: grace, signals, what was accepted.
mod cuts;
/// `doctor`, behind NATs and on a bare machine.
mod doctor;
/// How a mount ends: by hand, by signals, with the key away.
mod ending;
/// fsx on the mount.
mod fsx;
/// The key gates the mount: pulled, nothing can be read; back, it is mounted again.
mod gate;
/// A mountd that is killed.
mod guard;
/// The habits of git, SQLite, a compiler.
mod habits;
/// Hosts, clients, servers and strangers that do not keep to the protocol.
mod hostile;
/// What was accepted, and mountd is killed.
mod journal;
/// What is open when the host is killed or its machine restarted.
mod kept;
/// kill -9 of everything, at random moments.
mod kills;
/// Mounts of one key that share a registration.
mod loans;
/// File locks between clients, and with processes of the host.
mod locks;
/// Three programs with three state directories on loopback, and a kernel mount.
mod loopback;
/// The paths between the kinds of NAT, as a table.
mod matrix;
/// The lab of NATs itself, with plain sockets.
mod natlab;
/// Host, client and server behind NATs, in network namespaces.
mod netns;
/// What a host remembers: keys and shares over restarts, revocation, `-o wait`.
mod owner;
/// Every way to become a client: sticks, tickets, the local network, paper.
mod pairings;
/// Every kind of path: direct, relayed, moved under an open file (R18-R21).
mod paths;
/// A suite of others: POSIX, on the mount as on ext4.
mod pjdfstest;
/// The mount against a plain directory, by random operations.
mod posix_model;
/// Each way to be refused: its code, its hint, and nothing left behind.
mod refused;
/// The rendezvous goes on for ever.
mod rendezvous;
/// What could not be delivered when the key was pulled.
mod sealed;
/// Client and host in this process: sessions over real sockets.
mod session;
/// A file that the host cannot answer for.
mod stalled;
/// Server and host are killed under a mount that is used.
mod survives;
/// A tree of real-looking files through the mount and back.
mod tree;
/// Golden bytes of every settled message.
mod wire_golden;
/// What the tests above start, run and clean up.
mod world;
