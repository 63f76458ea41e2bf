//! A replica that lost its disk comes back, and never says two things of one place.

mod common;

use std::time::Duration;

use base::{ReplicaId, Seq, Signed, View};
use bft::{Event, Ignored, Message, Record, Rejoin, Standing, ViewChange, Welcome};
use common::bench::{self, Bench, Out};
use common::world::{Customer, Faults, World};
use common::{CLUSTER, params, replica_secret};

const LIMIT: Duration = Duration::from_secs(300);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn all_done(world: &World) -> bool {
    world.customers.iter().all(Customer::is_done)
}

fn rejoined(world: &World, who: u16) -> bool {
    world.events.iter().any(|(at, event)| at.0 == who && matches!(event, Event::Rejoined { .. }))
}

// (The world checks at every step that no replica says two things of one place in one view, over all
// its lives.)
#[test]
fn a_replica_without_its_disk_votes_again() {
    for (n, seed) in [(4, 1), (4, 2), (4, 3), (7, 4)] {
        let mut world = World::new(seed, n);
        world.add_customer(60);
        world.run_for(ms(40 + 10 * seed));
        world.crash(2);
        world.wipe(2);
        assert_eq!(world.status(2).status, Standing::Rejoining);
        world.run_until(LIMIT, "it is back", |world| world.status(2).status == Standing::Normal);
        assert!(rejoined(&world, 2));
        world.settle(LIMIT);
        // Its vote counts: without it the others are too few.
        let f = (n - 1) / 3;
        (0..f).for_each(|index| world.crash(n - 1 - index));
        world.add_customer(20);
        world.run_until(LIMIT, "work is done with its vote", all_done);
        for condensed in [false, true] {
            if condensed {
                world.condense(2);
            }
            world.crash(2);
            world.restart(2);
            assert_ne!(world.status(2).status, Standing::Rejoining, "once is enough");
        }
        world.heal();
        world.settle(LIMIT);
    }
}

/// Of a damaged log the state is kept, and no vote.
#[test]
fn a_replica_with_a_damaged_log_keeps_its_stable_checkpoint() {
    for (seed, condensed) in [(1, false), (2, true), (3, false), (4, true)] {
        let mut world = World::new(seed, 4);
        world.add_customer(200);
        world.run_until(LIMIT, "there is a checkpoint", |world| world.status(2).low_water_mark > Seq(30));
        if condensed {
            world.condense(2);
        }
        let (stable, records) = (world.status(2).low_water_mark, world.disks[2].len());
        world.crash(2);
        let damaged = if condensed { records - 1 } else { records };
        assert_eq!(world.rot(2, damaged), Some(stable));
        let status = world.status(2);
        assert_eq!((status.status, status.last_executed, status.low_water_mark), (Standing::Rejoining, stable, stable));
        assert!(world.node(2).condense().records().all(|record| !matches!(
            record,
            Record::Proposed(_) | Record::Prepared(_) | Record::Committed(_) | Record::Checkpoint(_)
        )));
        // In the middle of all that.
        world.crash(2);
        world.restart(2);
        world.run_until(LIMIT, "it is back", |world| world.status(2).status == Standing::Normal);
        assert!(rejoined(&world, 2));
        world.settle(LIMIT);
        // A snapshot that is damaged is worth nothing.
        world.condense(2);
        world.crash(2);
        assert_eq!(world.rot(2, 3), None);
        world.run_until(LIMIT, "it is back again", |world| world.status(2).status == Standing::Normal);
        world.settle(LIMIT);
    }
}

#[test]
fn one_after_the_other_loses_its_disk() {
    for seed in 0..4 {
        let mut world = World::new(seed, 4);
        world.faults = Faults { loss: 2, duplication: 2, delay_ms: 10, ..Faults::default() };
        for round in 0..6 {
            world.add_customer(30);
            world.run_for(ms(30 + 17 * seed));
            let who = (round + seed as usize) % 4;
            world.crash(who);
            world.run_for(ms(100 * (seed + 1)));
            world.wipe(who);
            world.run_until(LIMIT, "it is back", |world| world.status(who).status != Standing::Rejoining);
        }
        world.heal();
        world.settle(LIMIT);
    }
}

#[test]
fn disks_are_lost_while_views_change_and_everybody_crashes() {
    for seed in 0..12 {
        let mut world = World::new(seed, 4);
        world.faults =
            Faults { loss: 2, duplication: 5, delay_ms: 20, crash_permille: 2, condense_permille: 10, down_ms: 800 };
        world.add_customer(60);
        world.add_customer(60);
        for round in 0..3 {
            world.run_for(ms(900 + 100 * seed));
            let who = (round + seed as usize) % 4;
            // At most one is away at a time, mute or lost: f of them.
            let before = world.faults;
            world.heal();
            world.crash(who);
            world.wipe(who);
            world.run_until(LIMIT, "it is back", |world| {
                world.replicas[who].as_ref().is_some_and(|replica| replica.status().status != Standing::Rejoining)
            });
            world.faults = before;
        }
        world.heal();
        world.settle(LIMIT);
    }
}

#[test]
fn a_mute_replica_says_nothing_that_counts() {
    let mut bench = Bench::new(4, 2);
    bench.disk = vec![Record::Life { replica: ReplicaId(2), life: 77 }];
    bench.restart(params(4, 2));
    let out = bench.wake();
    let asks = out.send.iter().any(|send| matches!(&send.message, Message::Rejoin(rejoin) if rejoin.body.life == 77));
    assert!(asks, "{out:?}");
    let proposal = bench::proposal(1, 1);
    let digest = proposal.header.body.digest();
    for message in [Message::Proposal(proposal), bench::prepare(1, 1, digest), bench::commit(1, digest)] {
        let from = usize::from(matches!(message, Message::Prepare(_)));
        let out = bench.hear(from, message);
        assert_eq!((out.ignored(), out.send.len()), (Some(Ignored::Rejoining), 0));
    }
    assert_eq!(bench.request(bench::request(0, 1, b"op")).ignored(), Some(Ignored::Rejoining));
    assert_eq!(bench.status().view, View(0));
}

fn mute(me: usize, life: u64) -> Bench {
    let mut bench = Bench::new(4, me);
    bench.disk = vec![Record::Life { replica: ReplicaId(me as u16), life }];
    bench.restart(params(4, me));
    bench.wake();
    bench
}

fn signed_life(who: u16, life: u64) -> Signed<Rejoin> {
    Signed::new(Rejoin { life, replica: ReplicaId(who) }, &replica_secret(usize::from(who)), &CLUSTER)
}

fn welcome(life: u64, lives: Vec<Signed<Rejoin>>) -> Message {
    Message::Welcome(Welcome { life, stable: None, lives })
}

fn life_said(out: &Out) -> Option<u64> {
    out.send.iter().find_map(|send| match &send.message {
        Message::Rejoin(rejoin) => Some(rejoin.body.life),
        _ => None,
    })
}

/// A liar can't make a replica begin one life after the other: a later life is one it signed itself.
#[test]
fn a_later_life_must_be_shown() {
    let mut bench = mute(2, 77);
    for claimed in [78, 1 << 40, u64::MAX] {
        let out = bench.hear(0, welcome(claimed, vec![]));
        assert_eq!((out.ignored(), life_said(&out), out.persist.len()), (Some(Ignored::Stale), None, 0));
    }
    let out = bench.hear(0, welcome(90, vec![signed_life(2, 90)]));
    assert_eq!(life_said(&out), Some(91), "its clock was set back since");
    assert!(out.persist.contains(&Record::Life { replica: ReplicaId(2), life: 91 }));
}

/// What a replica knew of others' lives is taught again before it votes, and outlives a restart.
#[test]
fn lives_are_taught_again() {
    let mut bench = mute(2, 77);
    bench.hear(0, welcome(77, vec![signed_life(3, 50)]));
    for condensed in [false, true] {
        if condensed {
            bench.disk = bench.replica.condense().records().collect();
        }
        bench.restart(params(4, 2));
        let old = bench.hear(1, Message::ViewChange(change(1, 3, 49)));
        assert_eq!(old.ignored(), Some(Ignored::Rejoining), "a view change of a life that is over");
    }
}

/// Nor does a replica believe in a life of its own that is over.
#[test]
fn a_replica_has_nothing_of_its_own_earlier_lives() {
    let mut bench = mute(2, 77);
    let out = bench.hear(0, Message::ViewChange(change(1, 2, 0)));
    assert_eq!(out.ignored(), Some(Ignored::Rejoining));
}

/// Each life costs everybody a synced record: not more than one a second.
#[test]
fn lives_are_limited() {
    let mut bench = Bench::new(4, 1);
    let records = |out: &Out| out.persist.len();
    assert_eq!(records(&bench.hear(3, Message::Rejoin(signed_life(3, 5)))), 1);
    assert_eq!(bench.hear(3, Message::Rejoin(signed_life(3, 6))).ignored(), Some(Ignored::Overloaded));
    assert_eq!(records(&bench.hear(3, Message::Rejoin(signed_life(3, 5)))), 0, "known, and welcome");
    bench.now = bench.now.after(ms(1001));
    assert_eq!(records(&bench.hear(3, Message::Rejoin(signed_life(3, 7)))), 1);
}

fn change(view: u64, who: u16, life: u64) -> Signed<ViewChange> {
    let body = ViewChange { view: View(view), stable: None, prepared: vec![], replica: ReplicaId(who), life };
    Signed::new(body, &replica_secret(usize::from(who)), &CLUSTER)
}
