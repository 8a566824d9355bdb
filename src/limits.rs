//! Every bound on what comes from outside, with its reason.

use std::time::Duration;

/// File data in one call or entry, bytes: the largest request that the kernel makes (1 MiB).
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// A header of a file frame, bytes: a directory page is the largest.
pub const HEADER_BYTES_MAX: usize = 256 << 10;
/// A control message between a daemon and the server, bytes.
pub const CONTROL_BYTES_MAX: usize = 16 << 10;
/// A message of a registration that branches from another one's connection, bytes: wrapped it is a
/// control message.
pub const BRANCH_BYTES_MAX: usize = CONTROL_BYTES_MAX - 16;
/// Registrations that branch from one connection: mounts of one key on one machine.
pub const BRANCHES_MAX: usize = 16;
/// A name in a directory, bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// A symlink's target, bytes (`PATH_MAX` without its NUL).
pub const TARGET_BYTES_MAX: usize = 4095;
/// Entries in one directory page: at about 200 bytes each, well inside a header.
pub const DIR_PAGE_ENTRIES_MAX: usize = 1024;
/// An extended attribute's value, bytes (`XATTR_SIZE_MAX`).
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Nodes forgotten in one call.
pub const FORGET_NODES_MAX: usize = 4096;
/// A share's, host's or key's name, bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Shares of one host.
pub const SHARES_MAX: usize = 64;
/// Calls of one session under way at once; equals the streams that the host allows.
pub const CALLS_IN_FLIGHT_MAX: usize = 512;
/// Lanes of one connection that carry small calls: a lost packet holds up those of its lane only.
pub const CALL_LANES: usize = 4;
/// Redo-log entries of one session that are not yet applied.
pub const LOG_ENTRIES_UNAPPLIED_MAX: usize = 1024;
/// Write data of one session that is not yet applied, bytes: twice what 1 Gbit/s holds in 100 ms.
pub const LOG_BYTES_UNAPPLIED_MAX: usize = 32 << 20;
/// Acknowledgements that wait for a client to read them; it sends no more entries until then. Two
/// for each entry that it may have under way.
pub const ACKS_UNSENT_MAX: usize = 2 * LOG_ENTRIES_UNAPPLIED_MAX;
/// Redo-log entries of one session that are not yet on the host's disk: two seconds of creations
/// beyond what the host lets gather before it syncs.
pub const LOG_ENTRIES_UNSTABLE_MAX: usize = 8192;
/// Write data of one session that is not yet on the host's disk, bytes; kept by the client.
pub const LOG_BYTES_UNSTABLE_MAX: usize = 64 << 20;
/// Predecessors that an entry may name: a rename has two nodes, two names and two directories.
pub const LOG_AFTER_MAX: usize = 8;
/// Groups of the user who made a change (`NGROUPS_MAX` is 65,536; NFS's `AUTH_SYS` carries 16).
pub const CALLER_GROUPS_MAX: usize = 64;
/// Leases of one session: at about 100 bytes each.
pub const LEASES_MAX: usize = 65_536;
/// Locks of one session.
pub const LOCKS_MAX: usize = 4096;
/// Notices that wait for a client to read them; it asks for no more locks until then.
pub const NOTICES_UNSENT_MAX: usize = 2 * LOCKS_MAX;
/// Leases or locks in one message.
pub const LEASE_BATCH_MAX: usize = 256;
/// Open files of one session.
pub const HANDLES_MAX: usize = 65_536;
/// Matches of one key that a host looks for a path of at once: its mounts, and what they left
/// behind; a server may say more.
pub const PATHLESS_PER_KEY_MAX: usize = 16;
/// Matches of one key that a host keeps while no session is connected over them: all its sessions
/// may be away and come back at once.
pub const MATCHES_PER_KEY_MAX: usize = 2 * SESSIONS_PER_KEY_MAX;
/// Connections of one match that have not identified themselves yet: one that dies leaves another.
pub const KNOCKS_MAX: usize = 4;
/// Connections of one key that have not identified themselves yet: all its sessions may come back
/// at once.
pub const KNOCKS_PER_KEY_MAX: usize = 2 * SESSIONS_PER_KEY_MAX;
/// Connections of one host that have not identified themselves yet, at [`KNOCK_BYTES_MAX`] each.
pub const KNOCKS_TOTAL_MAX: usize = 4 * SESSIONS_MAX;
/// Matches and moves that the network side was told of and has not looked at yet.
pub const COMMANDS_WAITING_MAX: usize = 64;
/// What a connection may send before it is approved, bytes: request 21, and the first calls behind
/// it.
pub const KNOCK_BYTES_MAX: u32 = 64 << 10;
/// Sessions of one host.
pub const SESSIONS_MAX: usize = 256;
/// Sessions of one key with one host: its mounts, and what killed ones left for a while.
pub const SESSIONS_PER_KEY_MAX: usize = 64;
/// A passphrase or password, bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;
/// Argon2id's memory that a key's file or a ticket may ask for, KiB: four times what is written.
pub const STRETCH_MEMORY_KIB_MAX: u32 = 256 << 10;
/// Argon2id's passes that a key's file or a ticket may ask for.
pub const STRETCH_PASSES_MAX: u32 = 16;
/// Argon2id's lanes that a key's file or a ticket may ask for.
pub const STRETCH_LANES_MAX: u32 = 16;
/// A ticket as text, bytes: eight servers with long names fit.
pub const TICKET_BYTES_MAX: usize = 8 << 10;
/// A recovery code, bytes before they are text: the longest host name of a server fits.
pub const RECOVERY_BYTES_MAX: usize = 400;
/// A message while pairing over the local network, bytes.
pub const PAIRING_BYTES_MAX: usize = 8 << 10;
/// Keys that a host records.
pub const KEYS_MAX: usize = 1024;
/// Addresses that a peer may name as candidates.
pub const CANDIDATES_MAX: usize = 16;
/// What a client shows of its device, and the names that it says with it, bytes each: all
/// identifiers of a machine, and the longest name of a host (RFC 1035).
pub const SHOWN_BYTES_MAX: usize = 512;
/// Sealed routing information, bytes, and with it [`FIRST_FLIGHT_BYTES_MAX`].
pub const SEALED_BYTES_MAX: usize = 4096;
/// The key of a file, wrapped for a host, bytes: with the longest name of a share.
pub const WRAPPED_BYTES_MAX: usize = 256;
/// Clients that a host names at once whose changes may not all have arrived.
pub const ABSENT_MAX: usize = 32;
/// QUIC's first datagram, bytes: RFC 9000 wants 1200 at least, and Ethernet takes 1472.
pub const FIRST_FLIGHT_BYTES_MAX: usize = 1472;
/// Hosts and clients that a server holds.
pub const SERVER_PEERS_MAX: usize = 65_536;
/// Of those, how many may come from one IPv4 address or one IPv6 network of 64 bits: a large office
/// behind one NAT.
pub const SERVER_PEERS_PER_ADDRESS_MAX: usize = 1024;
/// Of those, how many may come from the IPv6 networks of one site (48 bits).
pub const SERVER_PEERS_PER_SITE_MAX: usize = 4096;
/// Of those, how many may have one key: four times the sessions that it may have with a host, for
/// what broken connections leave behind for a minute.
pub const SERVER_PEERS_PER_KEY_MAX: usize = 4 * SESSIONS_PER_KEY_MAX;
/// Blinded MACs that one host may register: one for each recorded key.
pub const INDICES_MAX: usize = KEYS_MAX;
/// Blinded MACs of one host's key at a server: those that it has given up a moment ago too.
pub const SERVER_INDICES_PER_KEY_MAX: usize = 2 * INDICES_MAX;
/// Blinded MACs that a server holds: about 100 MB.
pub const SERVER_INDICES_MAX: usize = 1 << 20;
/// Of those, how many may come from one IPv4 address or one IPv6 network of 64 bits: 64 hosts with
/// all the keys that they can have, a thousand with what a large household has.
pub const SERVER_INDICES_PER_ADDRESS_MAX: usize = SERVER_INDICES_MAX / 16;
/// Of those, how many may come from the IPv6 networks of one site (48 bits).
pub const SERVER_INDICES_PER_SITE_MAX: usize = SERVER_INDICES_MAX / 4;
/// Clients that a host was asked about and has not answered for; it is asked about the next ones
/// then.
pub const ASKS_UNANSWERED_MAX: usize = 32;

/// Between probes to the same candidate while punching.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// How long a round of punching lasts before it pauses.
pub const PUNCH_ROUND: Duration = Duration::from_secs(3);
/// How often an established path is probed, to keep the NAT's mapping (R6) and to notice its death.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Between STUN requests and registrations while a session is in use (R2, R20).
pub const RENDEZVOUS_INTERVAL: Duration = Duration::from_secs(5);
/// Between STUN requests and registrations of an idle host.
pub const RENDEZVOUS_IDLE_INTERVAL: Duration = Duration::from_secs(20);
/// A STUN transaction's first retransmission (RFC 8489, 6.2.1, with a shorter RTO for a nearby
/// server).
pub const STUN_RTO: Duration = Duration::from_millis(250);
/// QUIC's idle timeout: a host that is silent for so long has lost the connection, and the grace
/// begins. Two keep-alives fit.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// How long a QUIC handshake may take before it is tried again.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long after a host began its clients wait for what others do again that it forgot: as long as
/// those need to find it, and for some megabytes over a slow link.
pub const REDO_WAIT: Duration = Duration::from_secs(15);
/// How long a host keeps a session without a connection.
pub const SESSION_LINGER: Duration = Duration::from_secs(120);
/// How long a lease lasts from the sending of its renewal.
pub const LEASE_TERM: Duration = Duration::from_secs(30);
/// How long a holder may take to give a lease back while it still renews; then it is let lapse.
pub const LEASE_RECALL: Duration = Duration::from_secs(20);
/// How long a host keeps the record of a session that nobody resumes.
pub const SESSION_RECORD: Duration = Duration::from_secs(30 * 24 * 3600);
/// Kernel buffers of the UDP socket, bytes: 50 ms at 1 Gbit/s.
pub const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// Datagrams that are relayed over the connection to the server in one message, bytes: ten of
/// [`MTU_MAX`], and the message keeps [`CONTROL_BYTES_MAX`].
pub const RELAYED_BYTES_MAX: usize = 15_000;
/// How long a relayed match is kept that nobody binds to any more.
pub const RELAY_LIFE: Duration = Duration::from_secs(60);
/// Relayed matches of one key at once, as a client: its mounts, and what they left behind.
pub const RELAYS_PER_CLIENT_MAX: usize = 16;
/// Bytes that a key may send through a relay in one second, after [`RELAY_BURST_BYTES`]: 1 Gbit/s.
pub const RELAY_BYTES_PER_SECOND: u64 = 125_000_000;
/// Bytes that a key may send through a relay at once.
pub const RELAY_BURST_BYTES: u64 = 1 << 30;
/// Frames that wait for a TCP path or the connection to the server; more are dropped.
pub const FRAMES_QUEUED_MAX: usize = 64;
/// The largest UDP payload that a path is asked to carry, bytes.
pub const MTU_MAX: u16 = 1400;
