//! Whole clusters under faults: one history everywhere, everything executed once, everybody
//! answered once the faults end. The checks are the world's own, at every step.

mod common;

use std::time::Duration;

use base::{Digest, ReplicaId, Seq, Signed, Time};
use bft::{Batch, Checkpoint, Commit, Event, Ignored, Message, Prepare, RefusedWhy, Reply, ReplyResult, Standing};
use bytes::Bytes;
use common::world::{Customer, Faults, Setup, World};
use common::{CLUSTER, Rng, replica_secret};

const LIMIT: Duration = Duration::from_secs(300);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_quiet_world() {
    let mut world = World::new(1, 4);
    world.add_customer(100);
    world.add_customer(100);
    world.settle(LIMIT);
    assert_eq!(world.history.len(), 200);
    let batches = world.status(0).last_executed.0;
    assert!(batches < 200, "requests that wait are batched: {batches} batches");
    assert!(world.status(0).low_water_mark.0 > 0);
}

#[test]
fn loss_duplication_reordering() {
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        world.faults = Faults { loss: seed % 4 * 10, duplication: 20, delay_ms: 40, ..Faults::default() };
        world.add_customer(30);
        world.add_customer(30);
        world.settle(LIMIT);
        assert_eq!(world.history.len(), 60, "seed {seed}");
    }
}

#[test]
fn crashes_at_every_effect_boundary() {
    let mut crashes = 0;
    for seed in 0..50 {
        let mut world = World::new(seed, if seed % 10 == 9 { 7 } else { 4 });
        let (loss, condense_permille) = (seed % 3 * 5, seed % 2 * 10);
        let down_ms = [50, 1000][seed as usize / 2 % 2];
        world.faults = Faults { loss, duplication: 5, delay_ms: 10, crash_permille: 8, condense_permille, down_ms };
        for _ in 0..3 {
            world.add_customer(25);
        }
        world.run_for(ms(1500));
        world.heal();
        world.settle(LIMIT);
        assert_eq!(world.history.len(), 75, "seed {seed}");
        crashes += world.crashes;
    }
    assert!(crashes > 400, "only {crashes} crashes");
}

#[test]
fn everybody_crashes_at_once() {
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        world.faults = Faults { loss: 10, delay_ms: 10, condense_permille: 5, ..Faults::default() };
        world.add_customer(60);
        world.add_customer(60);
        for _ in 0..4 {
            let time = ms(10 + world.rng.below(60));
            world.run_for(time);
            world.power_off();
            (0..4).for_each(|index| world.restart(index));
        }
        world.heal();
        world.settle(LIMIT);
        assert_eq!(world.history.len(), 120, "seed {seed}");
    }
}

#[test]
fn a_proposal_survives_a_night_without_power() {
    let mut world = World::new(3, 4);
    world.add_customer(5);
    // The primary's proposals are durable, and reach nobody.
    world.cut = (1..4).map(|to| (ReplicaId(0), ReplicaId(to))).collect();
    world.run_until(LIMIT, "proposals are made", |world| world.status(0).in_flight > 0);
    world.power_off();
    world.now = world.now.after(Duration::from_secs(8 * 3600));
    (0..4).for_each(|index| world.restart(index));
    world.heal();
    world.settle(LIMIT);
    // What nobody but the primary had is not accepted any more; it is asked for again, and its time is now.
    assert!(world.events.iter().any(|(_, event)| matches!(event, Event::Ignored(Ignored::TimeBehind))));
}

#[test]
fn clocks_set_back_do_not_wedge_the_group() {
    let mut world = World::new(4, 4);
    world.add_customer(3);
    world.settle(LIMIT);
    let last = world.history.last().unwrap().at;
    world.power_off();
    world.now = Time(world.now.0 - Duration::from_secs(24 * 3600).as_nanos() as u64);
    (0..4).for_each(|index| world.restart(index));
    world.add_customer(3);
    world.settle(LIMIT);
    assert_eq!(world.history.last().unwrap().at, last, "agreed time stands still, and does not go back");
    // And with replicas that were running when the clock was set back.
    world.now = Time(world.now.0 - Duration::from_secs(24 * 3600).as_nanos() as u64);
    world.add_customer(3);
    world.settle(LIMIT);
}

/// Seldom the truth.
fn liar(me: ReplicaId) -> impl FnMut(&mut Rng, ReplicaId, Message) -> Option<Message> {
    move |rng, _, message| {
        let digest = Digest([rng.below(3) as u8; 32]);
        let secret = replica_secret(usize::from(me.0));
        match message {
            _ if rng.percent(20) => None,
            other if rng.percent(20) => Some(other),
            Message::Prepare(prepare) => {
                let seq = Seq(prepare.body.seq.0 + rng.below(3));
                Some(Message::Prepare(Signed::new(Prepare { digest, seq, ..prepare.body }, &secret, &CLUSTER)))
            }
            Message::Commit(commit) => Some(Message::Commit(Commit { digest, ..commit })),
            Message::Checkpoint(checkpoint) => {
                let lie = Checkpoint { digest, ..checkpoint.body };
                Some(Message::Checkpoint(Signed::new(lie, &secret, &CLUSTER)))
            }
            Message::Committed(mut committed) => {
                committed.seq = Seq(committed.seq.0 + rng.below(3));
                committed.batch = Batch::new(Vec::new());
                Some(Message::Committed(committed))
            }
            Message::Status(mut status) => {
                let extremes = [Seq(0), Seq(status.last_executed.0 + rng.below(9)), Seq(u64::MAX)];
                let mut pick = || extremes[rng.below(3) as usize];
                (status.last_executed, status.low_water_mark, status.oldest_retained) = (pick(), pick(), pick());
                status.round = rng.below(2);
                Some(Message::Status(status))
            }
            other => Some(other),
        }
    }
}

fn lying_replies(rng: &mut Rng, reply: Reply) -> Option<Reply> {
    let lies = [
        ReplyResult::Full(Bytes::from_static(b"a lie")),
        ReplyResult::DigestOnly(Digest([1; 32])),
        ReplyResult::Refused(RefusedWhy::UnknownPrincipal),
        ReplyResult::Refused(RefusedWhy::Stale { floor: u64::MAX }),
        ReplyResult::Refused(RefusedWhy::Overloaded),
    ];
    let view = base::View(rng.below(4));
    Some(Reply { result: lies[rng.below(5) as usize].clone(), view, ..reply })
}

#[test]
fn a_byzantine_backup() {
    for seed in 0..20 {
        let mut world = World::new(seed, if seed % 5 == 4 { 7 } else { 4 });
        for liars in 1..=(world.n - 1) / 3 {
            let me = ReplicaId(liars as u16 + 1);
            world.tampers.insert(me, Box::new(liar(me)));
            world.tamper_replies.insert(me, Box::new(lying_replies));
        }
        world.faults =
            Faults { loss: 5, duplication: 5, delay_ms: 10, crash_permille: 2, down_ms: 200, condense_permille: 2 };
        world.add_customer(30);
        world.add_customer(30);
        world.run_for(ms(800));
        world.heal();
        world.settle(LIMIT);
        assert!(world.customers.iter().all(|customer| customer.failed.is_empty()), "seed {seed}");
    }
}

#[test]
fn a_primary_that_says_everybody_something_else() {
    let mut accused = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        let two_faced = move |rng: &mut Rng, to: ReplicaId, message: Message| match message {
            Message::Proposal(mut proposal)
                if proposal.header.body.view.primary(4) == ReplicaId(0) && rng.percent(50) =>
            {
                let mut header = proposal.header.body;
                if rng.percent(50) {
                    header.at = Time(header.at.0 + u64::from(to.0));
                } else {
                    proposal.batch = Batch::new(Vec::new());
                    header.batch = proposal.batch.digest();
                }
                proposal.header = Signed::new(header, &replica_secret(0), &CLUSTER);
                Some(Message::Proposal(proposal))
            }
            other => Some(other),
        };
        world.tampers.insert(ReplicaId(0), Box::new(two_faced));
        world.faults = Faults { duplication: 30, delay_ms: 10, crash_permille: 2, down_ms: 100, ..Faults::default() };
        world.add_customer(30);
        world.settle(LIMIT);
        let misbehaved = |(_, event): &(_, Event)| matches!(event, Event::Misbehaved { who: ReplicaId(0), .. });
        accused += usize::from(world.events.iter().any(misbehaved));
    }
    assert!(accused > 12, "caught in {accused} runs");
}

#[test]
fn a_replica_that_was_away_catches_up() {
    let mut world = World::new(5, 4);
    world.crash(2);
    world.add_customer(400);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    let last = world.status(0).last_executed;
    assert!(last.0 > 80, "{last:?}");
    world.restart(2);
    let start = world.now;
    world.run_until(LIMIT, "it has caught up", |world| world.status(2).last_executed == last);
    assert!(
        world.now.since(start) < ms(500),
        "at the pace of the network, not of a timer: {:?}",
        world.now.since(start)
    );
    world.settle(LIMIT);
    world.run_until(LIMIT, "its checkpoint is stable too", |world| {
        world.status(2).low_water_mark == world.status(0).low_water_mark
    });
}

#[test]
fn a_diverged_replica_says_so_and_stops() {
    let mut world = World::with(7, 4, Setup { rotten: Some(3), ..Setup::default() });
    world.add_customer(60);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    world.run_until(LIMIT, "it knows", |world| world.status(3).status == Standing::Diverged);
    let diverged = |(who, event): &(ReplicaId, Event)| who.0 == 3 && matches!(event, Event::Diverged(_));
    assert_eq!(world.events.iter().filter(|event| diverged(event)).count(), 1);
    for condensed in [false, true] {
        if condensed {
            world.condense(3);
        }
        world.crash(3);
        world.restart(3);
        assert_eq!(world.status(3).status, Standing::Diverged, "also after a restart");
    }
    let before = world.events.len();
    world.add_customer(20);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    let its = world.events[before..].iter().filter(|(who, _)| who.0 == 3);
    assert!(its.into_iter().all(|(_, event)| *event == Event::Ignored(Ignored::Diverged)));
}

#[test]
fn an_overloaded_group_serves_everybody_in_the_end() {
    let mut world = World::new(8, 4);
    for session in 0..30 {
        world.add_session(0, session, 20);
    }
    world.add_session(1, 1, 5);
    world.settle(LIMIT);
    assert_eq!(world.history.len(), 605);
    let overloaded = |event: &Event| match event {
        Event::Reply { reply, .. } => reply.result == ReplyResult::Refused(RefusedWhy::Overloaded),
        _ => false,
    };
    assert!(world.events.iter().any(|(_, event)| overloaded(event)), "it was");
    assert!(world.customers.iter().all(|customer| customer.failed.is_empty()));
}

#[test]
fn more_sessions_than_are_remembered() {
    let mut world = World::new(9, 4);
    world.faults = Faults { loss: 5, duplication: 20, delay_ms: 20, ..Faults::default() };
    for session in 0..90 {
        world.add_session(0, session, 4);
        if session % 45 == 44 {
            world.settle(LIMIT);
        }
    }
    assert_eq!(world.history.len(), 360);
    assert!(world.customers.iter().all(|customer| customer.failed.is_empty()));
}

#[test]
fn more_sessions_at_once_than_are_remembered() {
    let mut world = World::new(9, 4);
    world.faults = Faults { loss: 20, duplication: 20, delay_ms: 20, ..Faults::default() };
    for session in 0..120 {
        world.add_session(0, session, 4);
    }
    // A session may be forgotten before its client has the reply. Then the client is told that
    // nobody remembers; it is never executed twice, which the world checks.
    world.settle(LIMIT);
    let done: usize = world.customers.iter().map(|customer| customer.done.len()).sum();
    let failed: Vec<_> = world.customers.iter().flat_map(|customer| &customer.failed).collect();
    assert_eq!(done + failed.len(), 480);
    assert!(failed.iter().all(|why| matches!(why, RefusedWhy::Stale { .. })));
}

#[test]
fn an_unknown_principal_is_refused() {
    let mut world = World::new(10, 4);
    let stranger = world.add_session(77, 1, 2);
    world.run_until(LIMIT, "it is refused", |world| world.customers[stranger].is_done());
    assert_eq!(world.customers[stranger].failed, [RefusedWhy::UnknownPrincipal; 2]);
    assert!(world.history.is_empty());
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let mut world = World::new(seed, 4);
        world.faults =
            Faults { loss: 10, duplication: 10, delay_ms: 20, crash_permille: 5, down_ms: 100, ..world.faults };
        world.add_customer(20);
        world.run_for(ms(500));
        (world.now, world.history.clone(), world.events.clone(), world.disks.clone())
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}
