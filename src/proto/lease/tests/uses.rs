use crate::id::{HandleId, NodeId, Seq};
use crate::proto::lease::grantor::Use;
use crate::proto::lease::uses::{reads, uses};
use crate::proto::redo::execute::Seen;
use crate::wire::call::Call;
use crate::wire::log::{Mutation, NodeRef, Occupant, RenameMode};
use crate::wire::name::Name;

use super::world::node;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn rename() -> Mutation {
    Mutation::Rename {
        parent: node(1).into(),
        name: name("a"),
        occupant: Occupant::Any,
        new_parent: node(2).into(),
        new_name: name("b"),
        new_occupant: Occupant::Any,
        mode: RenameMode::Replace,
    }
}

#[test]
fn a_rename_changes_both_directories_and_whoever_moves_or_is_replaced() {
    let seen = Seen { name: Some(node(3)), new_name: Some(node(4)), ..Seen::default() };
    let changed: Vec<(NodeId, Use)> = (1..=4).map(|n| (node(n), Use::Change)).collect();
    assert_eq!(uses(&rename(), &seen), changed);
}

#[test]
fn an_unlink_changes_the_number_of_links_of_who_is_there() {
    let mutation = Mutation::Unlink {
        parent: node(1).into(),
        name: name("a"),
        occupant: Occupant::Node(node(2).into()),
    };
    let changed = vec![(node(1), Use::Change), (node(2), Use::Change)];
    assert_eq!(uses(&mutation, &Seen::default()), changed);
}

#[test]
fn a_copy_within_a_file_counts_as_a_change_of_it() {
    let copy = |source: u64, node_: u64| Mutation::CopyRange {
        source: node(source).into(),
        source_handle: None,
        source_offset: 0,
        node: node(node_).into(),
        handle: None,
        offset: 0,
        len: 1,
    };
    assert_eq!(uses(&copy(1, 1), &Seen::default()), [(node(1), Use::Change)]);
    let both = [(node(1), Use::Read), (node(2), Use::Change)];
    assert_eq!(uses(&copy(1, 2), &Seen::default()), both);
}

#[test]
fn what_is_not_there_yet_is_leased_to_nobody() {
    let mutation =
        Mutation::Write { node: NodeRef::MadeBy(Seq(3)), handle: Some(HandleId(1)), offset: 0 };
    assert_eq!(uses(&mutation, &Seen::default()), []);
    assert_eq!(uses(&Mutation::Nothing, &Seen::default()), []);
}

#[test]
fn a_lookup_reads_the_directory_and_what_it_finds() {
    let call = Call::Lookup { parent: node(1), name: name("a") };
    let read = [(node(1), Use::Read), (node(2), Use::Read)];
    assert_eq!(reads(&call, None, Some(node(2))), read);
    assert_eq!(reads(&Call::StatFs, None, None), []);
}
