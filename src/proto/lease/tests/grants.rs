//! One rule at a time.

use std::time::{Duration, Instant};

use crate::id::{HostRun, LeaseId, RequestId, Seq};
use crate::limits::{LEASE_BATCH_MAX, LEASE_RECALL, LEASE_TERM, LEASES_MAX};
use crate::proto::PeerMisbehaved;
use crate::proto::lease::grantor::{Grantor, Output, Standing, Use, User};
use crate::proto::lease::holder::{self, Holder};
use crate::wire::lease::{Claim, Lease, LeaseKind, LeaseRequest, Notice, Version};

use super::world::{node, session, version};

/// A grantor with two sessions that renew.
fn grantor(now: Instant) -> Grantor<u32> {
    let mut grantor = Grantor::new(HostRun(1), [], now);
    for client in [1, 2] {
        grantor.handle_connected(session(client), now);
        for request in
            [LeaseRequest::ReclaimDone { next: LeaseId(1) }, LeaseRequest::Renew { number: 1 }]
        {
            grantor.handle_request(session(client), request, now).unwrap();
        }
    }
    drain(&mut grantor);
    grantor
}

fn drain(grantor: &mut Grantor<u32>) -> Vec<Output<u32>> {
    std::iter::from_fn(|| grantor.poll_output()).collect()
}

fn said(client: usize, notice: Notice) -> Output<u32> {
    Output::Send { session: session(client), notice }
}

fn user(client: usize) -> User {
    User::Session(session(client))
}

/// A holder with a connection and a term; `lease` of node 1 is held.
fn holder(now: Instant, kind: LeaseKind) -> Holder {
    let mut holder = Holder::new(now);
    holder.handle_connected(now);
    let run = Notice::Run { run: HostRun(1), term_ms: 30_000, standing: true };
    holder.handle_notice(run, now).unwrap();
    holder.handle_notice(Notice::Renewed { number: 1 }, now).unwrap();
    holder.handle_lease(lease(1, kind), version(0), now).unwrap();
    outputs(&mut holder);
    holder
}

fn lease(id: u64, kind: LeaseKind) -> Lease {
    Lease { id: LeaseId(id), node: node(1), kind }
}

fn outputs(holder: &mut Holder) -> Vec<holder::Output> {
    std::iter::from_fn(|| holder.poll_output()).collect()
}

fn returned(id: u64, keep: Option<LeaseKind>) -> holder::Output {
    holder::Output::Send(LeaseRequest::Return { lease: LeaseId(id), keep })
}

#[test]
fn the_host_is_told_which_numbers_were_used_before_anything_is_asked_of_it() {
    let now = Instant::now();
    let mut holder = Holder::new(now);
    holder.handle_connected(now);
    let request = holder.acquire(node(1), LeaseKind::Shared, now);
    assert_eq!(outputs(&mut holder), [], "the host has not said who it is");
    let run = Notice::Run { run: HostRun(1), term_ms: 30_000, standing: true };
    holder.handle_notice(run, now).unwrap();
    let (node, kind) = (node(1), LeaseKind::Shared);
    let sent = [
        LeaseRequest::ReclaimDone { next: LeaseId(1) },
        LeaseRequest::Renew { number: 1 },
        LeaseRequest::Acquire { request, node, kind },
    ];
    assert_eq!(outputs(&mut holder), sent.map(holder::Output::Send));
}

#[test]
fn a_lease_is_not_used_before_a_renewal_is_answered() {
    let now = Instant::now();
    let mut holder = Holder::new(now);
    holder.handle_connected(now);
    let run = Notice::Run { run: HostRun(1), term_ms: 30_000, standing: true };
    holder.handle_notice(run, now).unwrap();
    holder.handle_lease(lease(1, LeaseKind::Exclusive), version(0), now).unwrap();
    assert_eq!(holder.may_read(node(1), now), None);
    holder.handle_notice(Notice::Renewed { number: 1 }, now).unwrap();
    assert_eq!(holder.may_write(node(1), now), Some(LeaseId(1)));
}

#[test]
fn the_holder_stops_a_little_before_its_term_is_over() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Exclusive);
    holder.accepted(LeaseId(1), Seq(1));
    let early = now + LEASE_TERM - LEASE_TERM / 128;
    assert!(holder.may_write(node(1), early - Duration::from_millis(1)).is_some());
    assert_eq!(holder.may_write(node(1), early), None);
    assert_eq!(holder.may_read(node(1), early), None);
    holder.handle_timeout(early);
    let (lease, node) = (LeaseId(1), node(1));
    let lost = [holder::Output::Drop { node }, holder::Output::Lost { lease, node }];
    assert_eq!(outputs(&mut holder)[..2], lost);
}

#[test]
fn a_lease_that_is_recalled_before_it_arrives_is_given_back_and_never_used() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Shared);
    let recall = Notice::Recall { lease: LeaseId(7), keep: Some(LeaseKind::Shared) };
    holder.handle_notice(recall, now).unwrap();
    assert_eq!(outputs(&mut holder), [returned(7, None)]);
    let late = Lease { id: LeaseId(7), node: node(2), kind: LeaseKind::Exclusive };
    holder.handle_lease(late, version(0), now).unwrap();
    assert_eq!(holder.may_read(node(2), now), None);
    assert_eq!(outputs(&mut holder), [returned(7, None)]);
    // and one that was voided before it arrived
    holder.handle_notice(Notice::Void { upto: LeaseId(9) }, now).unwrap();
    holder.handle_lease(Lease { id: LeaseId(8), ..late }, version(0), now).unwrap();
    assert_eq!(holder.may_read(node(2), now), None);
}

#[test]
fn a_recalled_lease_is_flushed_then_drained_then_dropped_then_returned() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Exclusive);
    holder.accepted(LeaseId(1), Seq(1));
    holder.handle_notice(Notice::Recall { lease: LeaseId(1), keep: None }, now).unwrap();
    let (lease, node) = (LeaseId(1), node(1));
    assert_eq!(outputs(&mut holder), [holder::Output::Flush { lease, node }]);
    assert_eq!(holder.may_write(node, now), None);
    assert_eq!(holder.may_flush(node, now), Some(lease));
    holder.accepted(lease, Seq(2));
    holder.handle_flushed(lease, now);
    assert_eq!(holder.may_flush(node, now), None);
    holder.handle_applied(Seq(1), None, now);
    assert_eq!(outputs(&mut holder), [], "an entry is still on the way");
    holder.handle_applied(Seq(2), None, now);
    assert_eq!(outputs(&mut holder), [holder::Output::Drop { node }, returned(1, None)]);
}

#[test]
fn a_reader_elsewhere_leaves_a_writer_a_lease_to_read() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Exclusive);
    let keep = Some(LeaseKind::Shared);
    holder.handle_notice(Notice::Recall { lease: LeaseId(1), keep }, now).unwrap();
    holder.handle_flushed(LeaseId(1), now);
    assert_eq!(outputs(&mut holder).last(), Some(&returned(1, keep)));
    assert_eq!(holder.may_read(node(1), now), Some(LeaseId(1)));
    assert_eq!(holder.may_write(node(1), now), None);
    // the number never permits more again, though an older answer says so
    holder.handle_lease(lease(1, LeaseKind::Exclusive), version(0), now).unwrap();
    assert_eq!(holder.may_write(node(1), now), None);
}

#[test]
fn what_was_returned_without_proof_of_arrival_is_returned_again() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Shared);
    holder.release(LeaseId(1), now);
    outputs(&mut holder);
    holder.handle_lost(now);
    holder.handle_connected(now);
    let run = Notice::Run { run: HostRun(1), term_ms: 30_000, standing: true };
    holder.handle_notice(run.clone(), now).unwrap();
    assert!(outputs(&mut holder).contains(&returned(1, None)));
    holder.handle_notice(Notice::Renewed { number: 2 }, now).unwrap();
    holder.handle_lost(now);
    holder.handle_connected(now);
    holder.handle_notice(run, now).unwrap();
    assert!(!outputs(&mut holder).contains(&returned(1, None)));
}

#[test]
fn an_answer_to_nothing_is_the_hosts_fault() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Shared);
    let unasked = Err(PeerMisbehaved::Unasked);
    let request = RequestId(1);
    assert_eq!(holder.handle_notice(Notice::Refused { request }, now), unasked);
    assert_eq!(holder.handle_notice(Notice::Renewed { number: 99 }, now), unasked);
    holder.handle_lost(now);
    holder.handle_connected(now);
    assert_eq!(holder.handle_notice(Notice::Working, now), unasked, "before Run");
}

#[test]
fn a_session_is_never_kept_waiting_by_its_own_lease() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    grantor.offer(session(1), node(1), LeaseKind::Exclusive, now).unwrap();
    grantor.wants(user(2), &[(node(1), Use::Change)], 1, now);
    let recall = Notice::Recall { lease: LeaseId(1), keep: None };
    assert_eq!(drain(&mut grantor), [said(1, recall)]);
    grantor.wants(user(1), &[(node(1), Use::Change)], 2, now);
    assert_eq!(drain(&mut grantor), [Output::Go(2)]);
    let back = LeaseRequest::Return { lease: LeaseId(1), keep: None };
    grantor.handle_request(session(1), back, now).unwrap();
    assert_eq!(drain(&mut grantor)[0], Output::Go(1));
}

#[test]
fn nothing_is_leased_that_somebody_else_changes_or_waits_to_change() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    let change = [(node(1), Use::Change)];
    grantor.wants(user(2), &change, 1, now);
    assert_eq!(grantor.offer(session(1), node(1), LeaseKind::Shared, now), None);
    grantor.finished(user(2), &change, now);
    assert!(grantor.offer(session(1), node(1), LeaseKind::Shared, now).is_some());
    grantor.wants(user(2), &change, 2, now);
    assert_eq!(grantor.state_of(node(1)), "recalling");
    assert_eq!(grantor.offer(session(1), node(1), LeaseKind::Shared, now), None);
    let request = RequestId(1);
    let (of, kind) = (node(1), LeaseKind::Shared);
    let acquire = LeaseRequest::Acquire { request, node: of, kind };
    drain(&mut grantor);
    grantor.handle_request(session(1), acquire, now).unwrap();
    assert_eq!(drain(&mut grantor), [said(1, Notice::Refused { request })]);
}

#[test]
fn what_was_read_while_it_was_changed_brings_no_lease() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    let (read, change) = ([(node(1), Use::Read)], [(node(1), Use::Change)]);
    grantor.wants(user(1), &read, 1, now);
    grantor.wants(user(2), &change, 2, now);
    grantor.finished(user(2), &change, now);
    assert_eq!(grantor.offer(session(1), node(1), LeaseKind::Shared, now), None);
    grantor.finished(user(1), &read, now);
    grantor.wants(user(1), &read, 3, now);
    assert!(grantor.offer(session(1), node(1), LeaseKind::Shared, now).is_some());
}

#[test]
fn what_changed_since_the_driver_looked_is_not_granted() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    let acquire = |request| LeaseRequest::Acquire {
        request: RequestId(request),
        node: node(1),
        kind: LeaseKind::Shared,
    };
    grantor.handle_request(session(1), acquire(1), now).unwrap();
    assert_eq!(drain(&mut grantor), [Output::Watch { node: node(1) }]);
    grantor.handle_changed(node(1), now);
    grantor.handle_request(session(1), acquire(2), now).unwrap();
    let refused = said(1, Notice::Refused { request: RequestId(1) });
    assert_eq!(drain(&mut grantor), [refused, Output::Watch { node: node(1) }]);
    grantor.handle_watched(node(1), Some(version(1)), now);
    assert_eq!(drain(&mut grantor), [], "that was the first look");
    grantor.handle_watched(node(1), Some(version(2)), now);
    let (lease, version) = (lease(1, LeaseKind::Shared), version(2));
    let granted = Notice::Granted { request: RequestId(2), lease, version };
    assert_eq!(drain(&mut grantor), [said(1, granted)]);
}

#[test]
fn who_does_not_give_back_is_not_renewed_and_loses_everything_at_the_end_of_its_term() {
    let mut now = Instant::now();
    let mut grantor = grantor(now);
    grantor.offer(session(1), node(1), LeaseKind::Exclusive, now).unwrap();
    grantor.wants(user(2), &[(node(1), Use::Read)], 1, now);
    drain(&mut grantor);
    for number in 2..7 {
        now += Duration::from_secs(8);
        grantor.handle_request(session(1), LeaseRequest::Renew { number }, now).unwrap();
    }
    // two of them came before the recall had lasted too long
    let over = now - Duration::from_secs(24) + LEASE_TERM;
    assert!(LEASE_RECALL < Duration::from_secs(24));
    let renewed = drain(&mut grantor);
    assert_eq!(renewed, [2, 3].map(|number| said(1, Notice::Renewed { number })));
    grantor.handle_timeout(over - Duration::from_millis(1));
    assert_eq!(drain(&mut grantor), []);
    grantor.handle_timeout(over);
    assert_eq!(drain(&mut grantor), [said(1, Notice::Void { upto: LeaseId(2) }), Output::Go(1)]);
}

#[test]
fn what_was_accepted_before_the_lapse_is_good_until_somebody_else_changes_the_object() {
    let mut now = Instant::now();
    let mut grantor = grantor(now);
    grantor.offer(session(1), node(1), LeaseKind::Exclusive, now).unwrap();
    grantor.offer(session(1), node(2), LeaseKind::Exclusive, now).unwrap();
    grantor.offer(session(1), node(3), LeaseKind::Exclusive, now).unwrap();
    now += LEASE_TERM;
    grantor.wants(user(2), &[(node(1), Use::Read)], 1, now);
    grantor.wants(user(2), &[(node(2), Use::Change)], 2, now);
    grantor.handle_changed(node(3), now);
    let standing = |lease, of| grantor.standing(session(1), LeaseId(lease), node(of));
    assert_eq!(standing(1, 1), Standing::Good);
    assert_eq!(standing(2, 2), Standing::Overtaken);
    assert_eq!(standing(3, 3), Standing::Overtaken);
    assert_eq!(standing(1, 2), Standing::Overtaken, "of another object");
    assert_eq!(standing(9, 1), Standing::Overtaken, "never given");
}

#[test]
fn ends_of_leases_are_said_again_until_they_are_confirmed() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    grantor.offer(session(1), node(1), LeaseKind::Shared, now).unwrap();
    grantor.offer(session(1), node(2), LeaseKind::Shared, now).unwrap();
    grantor.handle_changed(node(1), now);
    let changed = said(1, Notice::Changed { lease: LeaseId(1), node: node(1) });
    let said_again = |grantor: &mut Grantor<u32>| {
        drain(grantor);
        grantor.handle_lost(session(1), now);
        grantor.handle_connected(session(1), now);
        drain(grantor)
    };
    assert!(said_again(&mut grantor).contains(&changed));
    let confirmed = LeaseRequest::Return { lease: LeaseId(1), keep: None };
    grantor.handle_request(session(1), confirmed, now).unwrap();
    assert!(!said_again(&mut grantor).contains(&changed));
    grantor.handle_overflow(now);
    let run = |standing| Notice::Run { run: HostRun(1), term_ms: 30_000, standing };
    assert_eq!(said_again(&mut grantor)[0], said(1, run(false)));
    let confirmed = LeaseRequest::Return { lease: LeaseId(3), keep: None };
    grantor.handle_request(session(1), confirmed, now).unwrap();
    assert_eq!(said_again(&mut grantor), [said(1, run(true))]);
}

#[test]
fn a_restarted_host_waits_for_those_who_may_hold_leases() {
    let now = Instant::now();
    let mut grantor: Grantor<u32> = Grantor::new(HostRun(2), [session(1)], now);
    grantor.handle_connected(session(2), now);
    grantor.wants(user(2), &[(node(1), Use::Read)], 1, now);
    assert!(grantor.is_reclaiming(session(1)));
    grantor.handle_connected(session(1), now);
    drain(&mut grantor);
    let lease = lease(5, LeaseKind::Exclusive);
    let claim = Claim { lease, version: Version::default(), lapsed: false };
    let reclaim = LeaseRequest::Reclaim { claims: vec![claim] };
    grantor.handle_request(session(1), reclaim, now).unwrap();
    assert_eq!(drain(&mut grantor), [Output::Compare { session: session(1), claim }]);
    let done = LeaseRequest::ReclaimDone { next: LeaseId(6) };
    grantor.handle_request(session(1), done, now).unwrap();
    grantor.handle_redone(session(1), now);
    assert!(grantor.is_reclaiming(session(1)), "the claim is still compared");
    grantor.handle_compared(session(1), LeaseId(5), true, now);
    assert!(!grantor.is_reclaiming(session(1)) && !grantor.is_in_grace());
    let held = Notice::Reclaimed { lease: LeaseId(5), held: true };
    let recall = Notice::Recall { lease: LeaseId(5), keep: Some(LeaseKind::Shared) };
    assert_eq!(drain(&mut grantor), [said(1, held), said(1, recall)]);
    assert_eq!(grantor.standing(session(1), LeaseId(5), node(1)), Standing::Good);
}

#[test]
fn a_restarted_host_waits_a_term_for_the_absent_and_six_for_the_slow() {
    let now = Instant::now();
    for (slow, terms) in [(false, 1), (true, 6)] {
        let mut grantor: Grantor<u32> = Grantor::new(HostRun(2), [session(1)], now);
        if slow {
            grantor.handle_connected(session(1), now);
        }
        grantor.wants(user(2), &[(node(1), Use::Read)], 1, now);
        grantor.handle_timeout(now + LEASE_TERM * terms - Duration::from_millis(1));
        assert!(!drain(&mut grantor).contains(&Output::Go(1)));
        for term in 1..=terms {
            grantor.handle_timeout(now + LEASE_TERM * term);
        }
        assert!(drain(&mut grantor).contains(&Output::Go(1)));
    }
}

/// A claim of a lease that had lapsed may not exclude whoever was given one since.
#[test]
fn regression_a_lapsed_claim_stands_for_its_entries_only() {
    let now = Instant::now();
    let mut grantor: Grantor<u32> = Grantor::new(HostRun(2), [session(1), session(2)], now);
    let claims =
        [(1, LeaseId(5), LeaseKind::Exclusive, true), (2, LeaseId(9), LeaseKind::Shared, false)];
    for (client, id, kind, lapsed) in claims {
        grantor.handle_connected(session(client), now);
        let lease = Lease { id, node: node(1), kind };
        let claim = Claim { lease, version: Version::default(), lapsed };
        let reclaim = LeaseRequest::Reclaim { claims: vec![claim] };
        grantor.handle_request(session(client), reclaim, now).unwrap();
        grantor.handle_compared(session(client), id, true, now);
    }
    let reclaimed = |client, lease, held| said(client, Notice::Reclaimed { lease, held });
    let told = drain(&mut grantor);
    assert!(told.contains(&reclaimed(1, LeaseId(5), false)));
    assert!(told.contains(&reclaimed(2, LeaseId(9), true)));
    assert_eq!(grantor.standing(session(1), LeaseId(5), node(1)), Standing::Good);
}

#[test]
fn more_claims_than_agreed_and_numbers_without_end_are_the_clients_fault() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    let claim =
        Claim { lease: lease(1, LeaseKind::Shared), version: Version::default(), lapsed: false };
    let claims = vec![claim; LEASE_BATCH_MAX + 1];
    let reclaim = LeaseRequest::Reclaim { claims };
    let result = grantor.handle_request(session(1), reclaim, now);
    assert_eq!(result, Err(PeerMisbehaved::TooMany));
    let done = LeaseRequest::ReclaimDone { next: LeaseId(u64::MAX) };
    let result = grantor.handle_request(session(1), done, now);
    assert_eq!(result, Err(PeerMisbehaved::Sequence));
    let premake = LeaseRequest::Premake { files: 1, directories: 1 };
    let result = grantor.handle_request(session(1), premake, now);
    assert_eq!(result, Err(PeerMisbehaved::Unasked));
    // of a session that nobody knows
    let renew = LeaseRequest::Renew { number: 1 };
    grantor.handle_request(session(7), renew, now).unwrap();
    grantor.handle_lost(session(7), now);
    grantor.forget(session(7), now);
    assert_eq!(grantor.standing(session(7), LeaseId(1), node(1)), Standing::Overtaken);
}

#[test]
fn two_changes_of_two_objects_in_opposite_order_do_not_block_each_other() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    grantor.offer(session(1), node(1), LeaseKind::Shared, now).unwrap();
    grantor.offer(session(2), node(2), LeaseKind::Shared, now).unwrap();
    grantor.wants(user(1), &[(node(1), Use::Change), (node(2), Use::Change)], 1, now);
    grantor.wants(user(2), &[(node(2), Use::Change), (node(1), Use::Change)], 2, now);
    for client in [1, 2] {
        let back = LeaseRequest::Return { lease: LeaseId(1), keep: None };
        grantor.handle_request(session(client), back, now).unwrap();
    }
    let went = drain(&mut grantor);
    assert!(went.contains(&Output::Go(1)) && went.contains(&Output::Go(2)));
}

#[test]
fn a_session_has_no_more_leases_than_agreed_and_gives_back_what_is_too_much() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    let mut holder = holder(now, LeaseKind::Shared);
    for number in 1..=LEASES_MAX as u64 {
        let lease = grantor.offer(session(1), node(number), LeaseKind::Shared, now).unwrap();
        holder.handle_lease(lease, version(0), now).unwrap();
    }
    assert_eq!(grantor.offer(session(1), node(0), LeaseKind::Shared, now), None);
    assert_eq!(holder.len(), LEASES_MAX);
    assert_eq!(outputs(&mut holder), []);
    let id = LEASES_MAX as u64 + 1;
    let more = Lease { id: LeaseId(id), node: node(0), kind: LeaseKind::Shared };
    holder.handle_lease(more, version(0), now).unwrap();
    assert_eq!(holder.len(), LEASES_MAX);
    assert_eq!(outputs(&mut holder)[0], returned(id, None));
}

#[test]
fn all_leases_end_when_the_machine_sleeps() {
    let now = Instant::now();
    let mut holder = holder(now, LeaseKind::Exclusive);
    holder.accepted(LeaseId(1), Seq(1));
    holder.handle_suspend(now);
    let (lease, node) = (LeaseId(1), node(1));
    let lost = [holder::Output::Drop { node }, holder::Output::Lost { lease, node }];
    assert_eq!(outputs(&mut holder), lost);
    assert_eq!(holder.may_read(node, now), None);
    holder.handle_applied(Seq(1), None, now);
    assert_eq!(outputs(&mut holder), [returned(1, None)], "its entries counted on it");
}

/// Otherwise two sessions could claim what excludes each other after a restart of the host.
#[test]
fn regression_what_a_holder_may_still_believe_in_keeps_others_from_leases_not_from_uses() {
    let now = Instant::now();
    let mut grantor = grantor(now);
    grantor.offer(session(1), node(1), LeaseKind::Shared, now).unwrap();
    grantor.handle_overflow(now);
    grantor.wants(user(2), &[(node(1), Use::Read)], 1, now);
    assert!(drain(&mut grantor).contains(&Output::Go(1)));
    assert_eq!(grantor.offer(session(2), node(1), LeaseKind::Exclusive, now), None);
    let confirmed = LeaseRequest::Return { lease: LeaseId(2), keep: None };
    grantor.handle_request(session(1), confirmed, now).unwrap();
    assert!(grantor.offer(session(2), node(1), LeaseKind::Exclusive, now).is_some());
}
