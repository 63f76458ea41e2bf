//! View changes: a group whose primary fails goes on, with one history.

mod common;

use std::time::Duration;

use base::{Digest, ReplicaId, Seq, Signed, Time, Verified, View};
use bft::{
    ClientRequest, Event, Evidence, Input, Message, NewView, PrePrepare, Prepared, Record, Request, SlotState,
    Standing, ViewChange,
};
use bytes::Bytes;
use common::bench::{self, Bench, Out};
use common::world::{Customer, Faults, World};
use common::{CLUSTER, Rng, Trusting, client_secret, params, replica_secret};

const LIMIT: Duration = Duration::from_secs(120);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn all_done(world: &World) -> bool {
    world.customers.iter().all(Customer::is_done)
}

#[test]
fn the_next_primary_takes_over_from_a_dead_one() {
    for (n, dead) in [(4, 1), (7, 1), (7, 2), (10, 3)] {
        for seed in 0..3 {
            let mut world = World::new(seed, n);
            (0..3).for_each(|_| {
                world.add_customer(200);
            });
            world.run_for(ms(20 + seed * 7));
            (0..dead).for_each(|index| world.crash(index));
            let start = world.now;
            world.run_until(LIMIT, "the others go on", all_done);
            // 400 ms for the first, twice that for the next, and 800 again.
            let took = world.now.since(start);
            assert!(took < ms(4000), "n = {n}, {dead} dead primaries, seed {seed}: {took:?}");
            assert_eq!(world.status(n - 1).view, View(dead as u64));
            (0..dead).for_each(|index| world.restart(index));
            world.settle(LIMIT);
            world.run_until(LIMIT, "all are in one view", |world| (0..n).all(|i| in_view(world, i, dead as u64)));
        }
    }
}

fn in_view(world: &World, index: usize, view: u64) -> bool {
    let status = world.status(index);
    status.view == View(view) && status.status == Standing::Normal
}

#[test]
fn primaries_that_crash_all_the_time() {
    let mut views = 0;
    for seed in 0..30 {
        let mut world = World::new(seed, if seed % 4 == 0 { 7 } else { 4 });
        world.faults =
            Faults { loss: 3, duplication: 5, delay_ms: 20, crash_permille: 4, condense_permille: 10, down_ms: 1500 };
        (0..3).for_each(|_| {
            world.add_customer(40);
        });
        world.run_for(Duration::from_secs(8));
        world.heal();
        world.settle(LIMIT);
        views += world.status(0).view.0;
    }
    assert!(views > 30, "the world is rough enough for view changes: {views}");
}

#[test]
fn everybody_crashes_again_and_again() {
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        world.faults = Faults { loss: 2, delay_ms: 10, condense_permille: 5, ..Faults::default() };
        (0..2).for_each(|_| {
            world.add_customer(60);
        });
        for round in 0..6 {
            let who = (seed as usize + round) % 4;
            world.run_for(ms(100 + 50 * (seed % 9)));
            world.crash(who);
            world.run_for(ms(700));
            world.power_off();
            (0..4).for_each(|index| world.restart(index));
        }
        world.heal();
        world.settle(LIMIT);
    }
}

#[test]
fn a_missing_link_is_no_cause_for_a_view_change() {
    for (from, to) in [(0, 2), (2, 0)] {
        let mut world = World::new(3, 4);
        world.cut.insert((ReplicaId(from), ReplicaId(to)));
        world.add_customer(60);
        world.run_until(LIMIT, "work is done", all_done);
        world.run_for(ms(3000));
        assert!((0..4).all(|index| world.status(index).view == View(0)), "cut from {from} to {to}");
    }
}

#[test]
fn nothing_to_do_is_no_cause_for_a_view_change() {
    let mut world = World::new(3, 4);
    world.add_customer(5);
    world.settle(LIMIT);
    world.crash(0);
    world.run_for(Duration::from_secs(60));
    assert!((1..4).all(|index| world.status(index).view == View(0)));
}

/// A replica that suspects the primary alone gives up its vote; the others come along in the end.
#[test]
fn a_replica_alone_in_limbo_is_joined() {
    let mut world = World::new(4, 4);
    for other in [0, 1, 3] {
        world.cut.insert((ReplicaId(other), ReplicaId(2)));
    }
    world.add_customer(40);
    world.run_until(LIMIT, "the others do the work", all_done);
    // A client asks it to do something: the others do it, and it does not hear of that.
    let (client, session, timestamp) = (client_secret(1).public(), 1, world.now.0);
    let body = Request { client, session, timestamp, op: Bytes::from_static(b"op") };
    let request = ClientRequest(Signed::new(body, &client_secret(1), &CLUSTER));
    let request = Verified::check(request, &(), &params(4, 2).context(), &Trusting).expect("it is signed");
    world.handle(ReplicaId(2), Input::Client(request));
    world.run_until(LIMIT, "it suspects the primary", |world| world.status(2).status == Standing::ChangingView);
    world.cut.clear();
    world.run_until(LIMIT, "all are together again", |world| {
        (0..4).all(|index| world.status(index).status == Standing::Normal && world.status(index).view > View(0))
    });
    world.settle(LIMIT);
}

/// One liar that asks for ever higher views moves nobody.
#[test]
fn one_replica_cannot_change_the_view() {
    for seed in 0..10 {
        let mut world = World::new(seed, 4);
        let mut asked = 0;
        let storm = move |rng: &mut Rng, _: ReplicaId, message: Message| {
            asked += 1 + rng.below(1 << 20);
            let body =
                ViewChange { view: View(asked), stable: None, prepared: Vec::new(), replica: ReplicaId(3), life: 0 };
            let asks = rng.percent(30);
            Some(if asks { Message::ViewChange(Signed::new(body, &replica_secret(3), &CLUSTER)) } else { message })
        };
        world.tampers.insert(ReplicaId(3), Box::new(storm));
        world.add_customer(60);
        world.run_until(LIMIT, "work is done", all_done);
        assert!((0..3).all(|index| world.status(index).view.0 <= 1), "joined at most as one alone in limbo is");
    }
}

/// One that asks once, for a view far away, costs the group one view change in a while, not endless ones.
#[test]
fn a_view_change_that_nobody_follows_is_joined_once_in_a_while() {
    let mut world = World::new(1, 4);
    let mut asked = std::collections::BTreeSet::new();
    let once = move |_: &mut Rng, to: ReplicaId, message: Message| {
        let body = ViewChange { view: View(1 << 40), stable: None, prepared: vec![], replica: ReplicaId(3), life: 0 };
        Some(if asked.insert(to) {
            Message::ViewChange(Signed::new(body, &replica_secret(3), &CLUSTER))
        } else {
            message
        })
    };
    world.tampers.insert(ReplicaId(3), Box::new(once));
    // Sixteen timeouts of 400 ms are 6.4 s.
    for _ in 0..25 {
        world.add_customer(3);
        world.run_for(ms(1000));
    }
    world.run_until(LIMIT, "work is done", all_done);
    let views = (0..3).map(|index| world.status(index).view.0).max().expect("three of them");
    assert!((1..=4).contains(&views), "in 25 s: {views}");
}

fn sign_change(view: u64, who: u16, prepared: Vec<Prepared>) -> Signed<ViewChange> {
    let body = ViewChange { view: View(view), stable: None, prepared, replica: ReplicaId(who), life: 0 };
    Signed::new(body, &replica_secret(usize::from(who)), &CLUSTER)
}

fn certificate(seq: u64, timestamp: u64) -> Prepared {
    let header = bench::proposal(seq, timestamp).header;
    let prepares = [2, 3].map(|who| match bench::prepare(who, seq, header.body.digest()) {
        Message::Prepare(prepare) => prepare,
        _ => unreachable!(),
    });
    Prepared { header, prepares: prepares.to_vec() }
}

fn new_view(changes: &[Signed<ViewChange>], places: &[(u64, Time, Digest)]) -> Message {
    let view = changes[0].body.view;
    let secret = replica_secret(usize::from(view.primary(4).0));
    let header = |&(seq, at, batch): &(u64, Time, Digest)| {
        Signed::new(PrePrepare { view, seq: Seq(seq), at, batch }, &secret, &CLUSTER)
    };
    let view_changes = changes.iter().map(|change| (change.body.replica, change.body.digest())).collect();
    let body = NewView { view, view_changes, proposals: places.iter().map(header).collect() };
    Message::NewView(Signed::new(body, &secret, &CLUSTER))
}

fn entered(out: &Out) -> bool {
    out.events.iter().any(|event| matches!(event, Event::EnteredView { .. }))
}

/// "The backups check that O is correct by performing a similar computation" (OSDI'99 §4.4).
#[test]
fn a_new_view_must_follow_from_its_view_changes() {
    let at = certificate(2, 7).header.body.at;
    let prepared = certificate(2, 7).header.body.batch;
    let null = bft::Batch::null().digest();
    let changes = [sign_change(1, 0, vec![]), sign_change(1, 1, vec![certificate(2, 7)]), sign_change(1, 2, vec![])];
    let good: &[_] = &[(1, Time::ZERO, null), (2, at, prepared)];
    let wrong: [&[(u64, Time, Digest)]; 5] = [
        &[],
        &[(1, Time::ZERO, null)],
        &[(1, Time::ZERO, null), (2, Time::ZERO, null)],
        &[(1, Time::ZERO, null), (2, Time(at.0 + 1), prepared)],
        &[(1, Time::ZERO, null), (2, at, prepared), (3, Time::ZERO, null)],
    ];
    let hear = |bench: &mut Bench, places: &[(u64, Time, Digest)], of: &[Signed<ViewChange>]| {
        of.iter().for_each(|change| {
            bench.hear(usize::from(change.body.replica.0), Message::ViewChange(change.clone()));
        });
        bench.hear(1, new_view(of, places))
    };
    for places in wrong {
        let mut bench = Bench::new(4, 3);
        let out = hear(&mut bench, places, &changes);
        let accused =
            |event: &Event| matches!(event, Event::Misbehaved { who: ReplicaId(1), evidence: Evidence::BadNewView(_) });
        assert!(!entered(&out) && out.events.iter().any(accused), "{places:?}: {out:?}");
        assert_eq!(bench.status().view, View(2), "and the view is given up");
    }
    let mut bench = Bench::new(4, 3);
    let out = hear(&mut bench, good, &changes);
    assert!(entered(&out), "{out:?}");
    assert_eq!(out.prepares(), 1, "for the null request; the other's batch is not here");
    let asks = |out: &Out| out.send.iter().any(|send| matches!(send.message, Message::Ask(_)));
    assert!(asks(&out));
    let body = bft::Body { seq: Seq(2), batch: bench::proposal(2, 7).batch };
    assert_eq!(bench.hear(2, Message::Body(body)).prepares(), 1, "once its batch is here it is voted for");
}

/// "In view v+1 ... the one with the highest view number" (OSDI'99 §4.4).
#[test]
fn what_prepared_last_is_proposed_again() {
    let mut bench = Bench::new(4, 2);
    let (old, new) = (bench::proposal(1, 7), bench::proposal(1, 9));
    let mut header = new.header.body;
    header.view = View(1);
    let header = Signed::new(header, &replica_secret(1), &CLUSTER);
    let prepares = [0u16, 3].map(|who| {
        let (digest, replica) = (header.body.digest(), ReplicaId(who));
        let body = bft::Prepare { view: View(1), seq: Seq(1), digest, replica };
        Signed::new(body, &replica_secret(usize::from(who)), &CLUSTER)
    });
    let later = Prepared { header, prepares: prepares.to_vec() };
    // A liar shows what it prepared in view 1 although view 2 is the first that this replica sees.
    bench.hear(0, Message::ViewChange(sign_change(2, 0, vec![certificate(1, 7)])));
    let out = bench.hear(1, Message::ViewChange(sign_change(2, 1, vec![later])));
    assert!(entered(&out), "f + 1 ask: it joins, is the primary, and has 2f + 1: {out:?}");
    let sent = out.send.iter().find_map(|send| match &send.message {
        Message::NewView(new_view) => Some(new_view.body.proposals.clone()),
        _ => None,
    });
    let sent = sent.expect("it says so");
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].body.batch, new.batch.digest());
    assert_ne!(sent[0].body.batch, old.batch.digest());
}

/// What was said in limbo and in a new view is still known after a crash.
#[test]
fn a_view_survives_a_restart() {
    let mut bench = Bench::new(4, 3);
    let proposal = bench::proposal(1, 7);
    bench.hear(0, Message::Proposal(proposal.clone()));
    let digest = proposal.header.body.digest();
    let out = [1, 2].map(|who| bench.hear(who, bench::prepare(who, 1, digest)));
    assert_eq!(out[0].commits() + out[1].commits(), 1);
    bench.hear(1, Message::ViewChange(sign_change(1, 1, vec![])));
    let out = bench.hear(2, Message::ViewChange(sign_change(1, 2, vec![])));
    let own = |out: &Out| {
        out.send.iter().find_map(|send| match &send.message {
            Message::ViewChange(change) => Some(change.clone()),
            _ => None,
        })
    };
    let change = own(&out).expect("it joined");
    assert_eq!(change.body.prepared.len(), 1);
    for condensed in [false, true] {
        let mut bench = Bench { disk: bench.disk.clone(), ..Bench::new(4, 3) };
        bench.restart(params(4, 3));
        if condensed {
            bench.disk = bench.replica.condense().records().collect();
            bench.restart(params(4, 3));
        }
        assert_eq!((bench.status().view, bench.status().status), (View(1), Standing::ChangingView));
        assert_eq!(own(&bench.wake()).as_ref(), Some(&change), "it asks for the same again");
        assert_eq!(bench.hear(0, bench::commit(1, digest)).executed(), [], "and votes in no view it left");

        let changes = [sign_change(1, 1, vec![]), sign_change(1, 2, vec![]), change.clone()];
        // Its own it has itself.
        changes[..2].iter().for_each(|change| {
            bench.hear(usize::from(change.body.replica.0), Message::ViewChange(change.clone()));
        });
        let header = proposal.header.body;
        let out = bench.hear(1, new_view(&changes, &[(1, header.at, header.batch)]));
        assert!(entered(&out), "{out:?}");
        assert_eq!(out.prepares(), 1);
        for again in [false, true] {
            bench.restart(params(4, 3));
            assert_eq!((bench.status().view, bench.status().status), (View(1), Standing::Normal));
            let records: Vec<Record> = bench.replica.condense().records().collect();
            assert!(records.iter().any(|record| matches!(record, Record::Entered(_))));
            if !again {
                bench.disk = records;
            }
        }
        let state = bench.wake().send.iter().find_map(|send| match &send.message {
            Message::Status(status) => Some(status.slots.clone()),
            _ => None,
        });
        assert_eq!(state, Some(vec![SlotState::Proposed]), "accepted in the new view");
    }
}
