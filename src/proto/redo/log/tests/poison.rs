//! What fails, and what it takes along.

use super::*;

#[test]
fn a_failed_accepted_entry_takes_along_what_comes_after_it_and_nothing_else() {
    let mut client = Client::up();
    let temporary = client.accept(create("T"));
    let data = client.accept(write(NodeRef::MadeBy(Seq(temporary))));
    let over = client.accept(rename("T", "F"));
    let stat = client.wait(set_attr(NodeRef::MadeBy(Seq(temporary))));
    let other = client.accept(write(node(77)));
    client.ack(temporary, made(5));
    client.ack(data, refused(Errno::from_number(28)));
    assert_eq!(client.aside(), [data, over]);
    let enospc = Errno::from_number(28);
    let ok = made(5).map_err(|refused| refused.errno);
    let eio = Err(Errno::EIO);
    assert_eq!(client.told, [(1, ok), (data, Err(enospc)), (over, eio), (stat, eio)]);
    let reason = Reason::SetAside { because: Seq(data) };
    let set_aside = Refused { errno: Errno::EIO, reason };
    assert!(client.rest.contains(&Output::Aside { seq: Seq(over), refused: set_aside }));
    client.ack(over, after_failed(data));
    client.ack(stat, after_failed(data));
    client.done([other]);
    assert_eq!(client.told.len(), 5, "nobody is told twice");
    assert_eq!(client.aside(), [data, over]);

    let unrelated = client.accept(write(node(78)));
    let file = client.accept(write(node(5)));
    let named = client.wait(create("F"));
    assert_eq!(client.aside(), [data, over, file], "its data and its names are closed");
    assert!(client.told.contains(&(named, eio)));
    assert_eq!(client.mutation(unrelated), write(node(78)));
    assert_eq!(client.mutation(file), Mutation::Nothing);
    assert_eq!(client.mutation(named), Mutation::Nothing);
}

#[test]
fn what_is_settled_can_be_changed_again_after_what_was_good() {
    let mut client = Client::up();
    let good = client.accept(write(node(5)));
    let bad = client.accept(write(node(5)));
    let worse = client.accept(write(node(5)));
    client.done([good]);
    client.ack(bad, refused(Errno::EIO));
    client.log.settle_aside(Seq(bad)).unwrap();
    let closed = client.accept(write(node(5)));
    assert_eq!(client.aside(), [worse, closed]);
    let kept = client.log.settle_aside(Seq(worse)).unwrap();
    assert_eq!(kept.change.mutation, write(node(5)));
    client.log.settle_aside(Seq(closed)).unwrap();
    assert_eq!(client.log.settle_aside(Seq(closed)), None);
    let free = client.accept(write(node(5)));
    assert_eq!(client.after(free), [good], "not after what the host has set aside");
    assert!(client.aside().is_empty());
}

#[test]
fn a_file_whose_creation_was_set_aside_closes_what_is_in_it() {
    let mut client = Client::up();
    let parent = NodeId::ROOT.into();
    let premade = Some(node(9));
    let dir = client.accept(Mutation::Mkdir { parent, name: name("d"), mode: 0, premade });
    client.ack(dir, refused(Errno::EACCES));
    let inside = client.accept(create_in(node(9), "x"));
    assert_eq!(client.aside(), [dir, inside]);
    client.stable_after_done(inside);
    assert_eq!(client.aside(), [dir, inside], "until somebody settles it");
    client.log.settle_aside(Seq(dir));
    client.log.settle_aside(Seq(inside));
    assert_eq!(client.log.aside().count(), 0);
}

#[test]
fn a_directory_whose_mode_could_not_be_changed_still_takes_files() {
    let mut client = Client::up();
    let mode = client.accept(set_attr(node(9)));
    client.ack(mode, refused(Errno::EPERM));
    let inside = client.accept(create_in(node(9), "x"));
    assert_eq!(client.aside(), [mode]);
    assert!(client.after(inside).is_empty());
}

#[test]
fn a_failed_awaited_entry_holds_up_nothing() {
    let mut client = Client::up();
    let first = client.accept(write(node(5)));
    let failed = client.wait(write(node(5)));
    let later = client.accept(write(node(5)));
    client.done([first]);
    client.ack(failed, refused(Errno::EFBIG));
    assert_eq!(client.told.last(), Some(&(failed, Err(Errno::EFBIG))));
    assert!(client.aside().is_empty());
    client.done([later]);
    client.lose();
    client.takes();
    client.connect(OTHER, false, 0);
    assert_eq!(client.mutation(failed), Mutation::Nothing, "it does not happen later");
    assert_eq!(client.after(failed), [first]);
    assert_eq!(client.after(later), [failed], "so that the order stays");
}

#[test]
fn regression_what_comes_after_a_stable_entry_without_an_answer_says_so() {
    let mut client = Client::up();
    let unheard = client.accept(write(node(5)));
    let before = client.accept(write(node(5)));
    client.lose();
    client.takes();
    let (applied, stable) = (Seq(unheard), Seq(unheard));
    let cursor = Cursor { epoch: EPOCH, known: true, applied, stable, ahead: Vec::new() };
    client.connect_at(&cursor).unwrap();
    assert_eq!(client.after(before), [unheard]);
    let later = client.accept(set_attr(node(5)));
    assert_eq!(client.after(later), [before]);
    client.ack(unheard, refused(Errno::EIO));
    assert_eq!(client.aside(), [unheard, before, later], "it had failed");
}

#[test]
fn data_that_is_redone_does_not_flood_the_host() {
    let mut client = Client::up();
    let half = LOG_BYTES_UNAPPLIED_MAX / 2;
    for each in 1..=4 {
        let change = Change::new(write(node(each)));
        client.log.append(change, 0, half, Promise::Accepted);
        client.drain();
        client.done([each]);
    }
    client.lose();
    client.takes();
    client.connect(OTHER, false, 0);
    assert_eq!(client.takes().len(), 2);
    client.done([1]);
    assert_eq!(client.takes().len(), 1);
}
