//! What comes after what, and what it is called.

use super::*;

#[test]
fn an_editors_save_keeps_its_order_whatever_is_known_of_the_names() {
    let mut client = Client::up();
    let temporary = client.accept(create("T"));
    let data = client.accept(write(NodeRef::MadeBy(Seq(temporary))));
    let over = client.accept(rename("T", "F"));
    let again = client.accept(create("T"));
    assert_eq!(client.after(data), [temporary]);
    assert_eq!(client.after(over), [temporary, data]);
    assert_eq!(client.after(again), [over]);
    client.accept(write(NodeRef::MadeBy(Seq(temporary))));
    let gone = client.accept(unlink("F"));
    assert_eq!(client.after(gone), [over, 5], "the name and the data of who has it now");
}

#[test]
fn different_files_do_not_wait_for_each_other() {
    let mut client = Client::up();
    for text in ["a", "b", "c"] {
        let seq = client.accept(create(text));
        assert!(client.after(seq).is_empty());
        let seq = client.accept(write(node(seq)));
        assert!(client.after(seq).is_empty());
    }
}

#[test]
fn a_node_has_one_place_in_the_order_by_whatever_name_it_is_called() {
    let mut client = Client::up();
    let maker = client.wait(create("a"));
    client.ack(maker, made(5));
    let by_identity = client.accept(write(node(5)));
    let by_maker = client.accept(write(NodeRef::MadeBy(Seq(maker))));
    assert_eq!(client.after(by_identity), [maker]);
    assert_eq!(client.after(by_maker), [by_identity]);
    assert_eq!(client.mutation(by_identity), write(NodeRef::MadeBy(Seq(maker))));
    assert_eq!(client.log.last_of(node(5)), Some(Seq(by_maker)));

    client.stable(maker);
    let later = client.accept(write(NodeRef::MadeBy(Seq(maker))));
    assert_eq!(client.after(later), [by_maker]);
    assert_eq!(client.mutation(later), write(node(5)), "its creation is stable");
    client.done([by_identity, by_maker, later]);
    client.stable(later);
    assert_eq!(client.log.last_of(node(5)), None);
}

#[test]
fn what_names_a_maker_that_is_stable_by_now_is_shipped_with_the_identity() {
    let mut client = Client::up();
    let maker = client.wait(create("a"));
    client.ack(maker, made(5));
    let data = client.accept(write(node(5)));
    client.stable(maker);
    client.lose();
    client.takes();
    client.connect(OTHER, false, 0);
    assert_eq!(client.mutation(data), write(node(5)));
    assert!(client.after(data).is_empty());
}

#[test]
fn a_premade_node_is_known_before_the_host_answers() {
    let mut client = Client::up();
    let premade = Some(node(9));
    let parent = NodeId::ROOT.into();
    let mkdir = Mutation::Mkdir { parent, name: name("d"), mode: 0, premade };
    let maker = client.accept(mkdir);
    let inside = client.accept(create_in(node(9), "x"));
    assert_eq!(client.after(inside), [maker]);
    assert_eq!(client.mutation(inside), create_in(NodeRef::MadeBy(Seq(maker)), "x"));
    client.ack(maker, made(10));
    let remade = Output::Remade { seq: Seq(maker), old: node(9), new: node(10) };
    assert_eq!(client.rest, [remade], "the host had to take another one");
    client.ack(inside, made(11));
    client.stable(inside);
    let later = client.accept(create_in(node(9), "y"));
    assert_eq!(client.mutation(later), create_in(node(10), "y"));
}

#[test]
fn a_link_and_an_open_of_what_is_there_lead_to_the_same_node() {
    let mut client = Client::up();
    let data = client.accept(write(node(5)));
    let link =
        Mutation::Link { node: node(5).into(), parent: NodeId::ROOT.into(), name: name("b") };
    let link = client.accept(link);
    assert_eq!(client.after(link), [data]);
    let linked = client.accept(write(NodeRef::MadeBy(Seq(link))));
    assert_eq!(client.after(linked), [link]);
    assert_eq!(client.mutation(linked), write(node(5)));

    let opened = client.wait(create("a"));
    client.ack(opened, made(5));
    let through = client.accept(write(NodeRef::MadeBy(Seq(opened))));
    let both = [linked, opened];
    assert_eq!(client.after(through), both, "the two knew nothing of each other");
    assert_eq!(client.mutation(through), write(node(5)), "it was there before");
}

#[test]
fn a_directory_goes_after_everything_in_it_however_much_that_is() {
    let mut client = Client::up();
    let dir = client.accept(Mutation::Mkdir {
        parent: NodeId::ROOT.into(),
        name: name("d"),
        mode: 0,
        premade: Some(node(9)),
    });
    let inside: Vec<u64> =
        (0..30).map(|each| client.accept(create_in(node(9), &each.to_string()))).collect();
    let gone = client.accept(rmdir("d", node(9)));
    let mut reached: BTreeSet<u64> = client.after(gone).into_iter().collect();
    for knot in (inside[29] + 1..gone).rev() {
        assert_eq!(client.mutation(knot), Mutation::Nothing);
        assert!(reached.contains(&knot));
        reached.extend(client.after(knot));
    }
    assert!(client.shipped.iter().all(|entry| entry.after.len() <= LOG_AFTER_MAX));
    assert!(inside.iter().all(|seq| reached.contains(seq)));
    assert!(reached.contains(&dir));
    assert_eq!(client.told, []);
    client.done(1..=gone);
    assert_eq!(client.told.len(), 32, "nobody hears of knots");
    let late = client.accept(create_in(node(9), "late"));
    assert!(client.after(late).contains(&gone));
}

#[test]
fn applied_entries_are_named_until_they_are_stable() {
    let mut client = Client::up();
    client.accept(write(node(5)));
    client.done([1]);
    client.accept(write(node(5)));
    assert_eq!(client.after(2), [1]);
    client.done([2]);
    client.stable(2);
    client.accept(write(node(5)));
    assert!(client.after(3).is_empty());
}

/// Whether a directory would come to lie within itself depends on every such move before.
#[test]
fn regression_what_moves_into_another_directory_comes_after_all_such_moves() {
    let mut client = Client::up();
    let [outer, inner, other] = [5, 6, 7].map(|number| NodeRef::from(node(number)));
    let root = NodeRef::from(NodeId::ROOT);
    let across = |from, to, name: &str| {
        let mut mutation = rename(name, name);
        if let Mutation::Rename { parent, new_parent, .. } = &mut mutation {
            (*parent, *new_parent) = (from, to);
        }
        mutation
    };
    let out = client.accept(across(outer, root, "inner"));
    let within = client.accept(rename("x", "y"));
    let below = client.accept(across(root, inner, "outer"));
    assert!(client.after(within).is_empty(), "it stays in its directory");
    assert_eq!(client.after(below), [out]);
    client.done([out, within, below]);
    client.stable(below);
    let later = client.accept(across(other, inner, "a"));
    assert!(client.after(later).is_empty());
}
