//! Two clients of one share, and nothing by chance.

use p2pfs::id::NodeId;
use p2pfs::wire::lease::LeaseKind;
use p2pfs::wire::log::Mutation;

use crate::sim::apps::name;
use crate::sim::net::Call;
use crate::sim::script::{ROOT, copy, create, write};
use crate::sim::world::{Config, World};

/// Both are connected, and know nothing.
struct Shared {
    world: World,
}

impl Shared {
    fn new() -> Self {
        Self::with(1)
    }

    fn with(seed: u64) -> Self {
        let config = Config { ops: 0, ..Config::calm() };
        let mut shared = Self { world: World::new(seed, config) };
        shared.until(|world| world.clients.iter().all(|client| client.connected));
        shared
    }

    fn until(&mut self, so: impl Fn(&World) -> bool) {
        for _ in 0..10_000 {
            if so(&self.world) {
                return;
            }
            self.world.step();
        }
        panic!("it never comes to that");
    }

    /// An application waits until it is told.
    fn ask(&mut self, client: usize, mutation: Mutation, body: &[u64]) {
        let nodes = crate::sim::model::nodes(&mutation);
        self.world.submit_awaited(client, 0, mutation, body.to_vec(), nodes);
        self.until(|world| world.clients[client].waiting.is_empty());
    }

    fn create(&mut self, client: usize, text: &str) -> NodeId {
        let create = create(&mut self.world, text);
        self.ask(client, create, &[]);
        let disk = self.world.host.disk.borrow();
        disk.now.lookup(ROOT, &name(text)).expect("it was created")
    }

    /// A client has a lease, and has read the node under it.
    fn lease(&mut self, client: usize, node: NodeId, kind: LeaseKind) {
        self.world.acquire(client, 0, node, kind);
        self.until(|world| world.clients[client].known.contains(&node));
    }
}

/// Rule 15. A client copies on the host what it has read before somebody else changed it, into a
/// file that it has leased. If it takes what it has read for what was copied, it answers from its
/// cache what never was in the file. (Found at seed 60597 of `clients_agree_under_leases`.)
#[test]
fn regression_what_was_copied_is_not_guessed_from_what_is_no_longer_leased() {
    let mut shared = Shared::new();
    let source = shared.create(0, "source");
    shared.ask(0, write(source, 0, &[]), &[1, 2]);
    // sees the file along with its directory, without a lease on it
    shared.lease(1, ROOT, LeaseKind::Shared);
    assert_eq!(shared.world.clients[1].view.nodes[&source].data, [1, 2]);
    shared.ask(0, write(source, 0, &[]), &[8, 8]);
    let copied = shared.create(1, "copied");
    shared.lease(1, copied, LeaseKind::Exclusive);
    shared.ask(1, copy(source, copied, 2), &[]);
    let client = &shared.world.clients[1];
    assert!(!client.known.contains(&copied) || client.view.nodes[&copied].data == [8, 8]);
    shared.world.heal();
}

/// Two clients write one file, and the second one is told that its data is on the disk. If the
/// first one's write is not stable by then, or only the host knows and forgets it in a crash, it is
/// done again, on top of that.
#[test]
fn what_one_client_was_told_is_on_the_disk_is_not_undone_by_what_another_does_again() {
    // either is the first to come back
    for seed in 0..50 {
        let mut shared = Shared::with(seed);
        let file = shared.create(0, "file");
        shared.ask(0, write(file, 0, &[]), &[1]);
        shared.ask(1, write(file, 0, &[]), &[2]);
        let connection = shared.world.clients[0].connection.expect("it is connected");
        shared.world.cut(connection);
        let upto = shared.world.clients[1].log.last();
        shared.world.call(1, 0, Call::Sync { node: file, upto });
        shared.until(|world| world.clients[1].calls.is_empty());
        assert!(!shared.world.fsynced.is_empty());
        shared.world.crash_host_after(usize::MAX, true);
        shared.world.heal();
        assert_eq!(shared.world.host.disk.borrow().now.nodes[&file].data, [2], "seed {seed}");
    }
}
