//! Driving the conflict copies, and what is claimed of them.

use std::collections::BTreeMap;

use p2pfs::id::{NodeId, Seq};
use p2pfs::proto::redo::copies::Output;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, NodeRef};
use p2pfs::wire::name::Name;

use super::client::{Change, Client};
use super::posix::{Body, Kind, WORD, id};
use super::world::World;

impl World {
    /// An entry was set aside.
    pub(crate) fn gather(&mut self, client: usize, seq: Seq) {
        let side = &self.clients[client];
        let now = side.clock.at(self.now);
        let Some(aside) = side.log.aside().find(|aside| aside.seq == seq).cloned() else { return };
        let paths = side.paths();
        let path = |node: NodeRef| match node {
            NodeRef::Node(NodeId::ROOT) => Some(Vec::new()),
            NodeRef::Node(node) => paths.get(&side.current(node)).cloned(),
            NodeRef::MadeBy(seq) => match &side.accepted.get(&seq.0)?.mutation {
                Mutation::Create { premade: Some(node), .. }
                | Mutation::Mkdir { premade: Some(node), .. } => {
                    paths.get(&side.current(*node)).cloned()
                }
                _ => None,
            },
        };
        let mut copies = side.copies.clone();
        copies.handle_aside(&aside, path, now);
        self.clients[client].copies = copies;
    }

    pub(crate) fn do_for_copies(&mut self, client: usize, output: Output<Body>) {
        let now = self.clients[client].clock.at(self.now);
        match output {
            Output::Append { step, change, body, bytes } => {
                self.model.contest_names(&change.mutation);
                let side = &mut self.clients[client];
                let (mutation, busy) = (change.mutation.clone(), Vec::new());
                let seq = side.log.append_copy(change, body.clone(), bytes);
                side.copies.handle_appended(step, seq);
                side.waiting
                    .insert(seq.0, Change { app: None, mutation, body, busy, at: self.now });
            }
            Output::Find { step, parent, name } => {
                let side = &mut self.clients[client];
                let found = if side.connected && self.host.process.is_some() {
                    let disk = self.host.disk.borrow();
                    let found = disk.now.lookup(side.current(parent), &name);
                    Ok(found.map(|node| (node, disk.now.nodes[&node].kind == Kind::Dir)))
                } else {
                    Err(Errno::ETIMEDOUT)
                };
                side.copies.handle_found(step, found, now);
            }
            Output::Made { path, settled } => {
                self.note(|| format!("client {client}: copied to {path:?}"));
                self.coverage("copies", "any", "made");
                for seq in settled {
                    self.settle(client, seq);
                }
            }
            Output::Dropped { seq } => {
                self.coverage("copies", "any", "dropped");
                self.settle(client, seq);
            }
        }
    }

    fn settle(&mut self, client: usize, seq: Seq) {
        let side = &mut self.clients[client];
        side.log.settle_aside(seq).expect("it was aside");
        side.settled.insert(seq.0);
    }

    /// What was accepted and then refused is in a file, or still aside. What its own client has
    /// overwritten or cut off since, and was refused with it, need not be.
    pub(crate) fn check_kept(&self) {
        let disk = self.host.disk.borrow();
        let there: std::collections::BTreeSet<u64> =
            disk.now.nodes.values().flat_map(|node| node.data.iter().copied()).collect();
        for (number, side) in self.clients.iter().enumerate() {
            let mut files: BTreeMap<NodeId, Vec<u64>> = BTreeMap::new();
            for seq in side.asides.keys() {
                let Some(change) = side.accepted.get(seq) else { continue };
                match &change.mutation {
                    Mutation::Write { node, offset, .. } => {
                        let file = files.entry(self.model.own(id(node))).or_default();
                        let (at, words) = ((offset / WORD) as usize, &change.body);
                        file.resize(file.len().max(at + words.len()), 0);
                        file[at..at + words.len()].copy_from_slice(words);
                    }
                    Mutation::SetAttr { node, change, .. } => {
                        let file = files.entry(self.model.own(id(node))).or_default();
                        let size = change.size.map_or(file.len(), |size| (size / WORD) as usize);
                        file.resize(size, 0);
                    }
                    _ => {}
                }
            }
            // what was awaited, and told, may have cut off or overwritten more
            let told = side.asides.keys().filter_map(|seq| side.told.get(seq));
            for node in told.flat_map(super::model::nodes) {
                files.remove(&self.model.own(node));
            }
            let aside: Vec<u64> = side.log.aside().flat_map(|aside| aside.body.clone()).collect();
            for (node, word) in
                files.iter().flat_map(|(node, file)| file.iter().map(move |w| (node, w)))
            {
                assert!(
                    *word == 0 || there.contains(word) || aside.contains(word),
                    "client {number} was told that {word} is written to {node:?}, and it is lost"
                );
            }
        }
    }
}

impl Client {
    /// Where everything is, as applications believe.
    fn paths(&self) -> BTreeMap<NodeId, Vec<Name>> {
        let mut paths = BTreeMap::from([(NodeId::ROOT, Vec::new())]);
        let mut left = vec![NodeId::ROOT];
        while let Some(dir) = left.pop() {
            let names = self.view.nodes.get(&dir).into_iter().flat_map(|dir| &dir.names);
            for (name, &child) in names {
                if !paths.contains_key(&child) {
                    let mut path = paths[&dir].clone();
                    path.push(name.clone());
                    paths.insert(child, path);
                    left.push(child);
                }
            }
        }
        paths
    }
}
