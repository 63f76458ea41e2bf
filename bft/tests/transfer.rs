//! State transfer: whoever lacks what nobody retains fetches a checkpoint, in parts, from anybody.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Digest, ReplicaId, Time};
use bft::{Content, Event, Message, Record, Snapshot, Standing};
use bytes::Bytes;
use common::bench::Bench;
use common::world::{Customer, Faults, Setup, World};
use common::{Rng, params};

const LIMIT: Duration = Duration::from_secs(120);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn forgetful() -> Setup {
    Setup { tweak: |params| params.retained_bytes_max = 0, ..Setup::default() }
}

/// A world in which replica 2 was away for longer than its peers' logs reach back.
fn left_behind(seed: u64, count: usize) -> World {
    let mut world = World::with(seed, 4, forgetful());
    world.add_customer(12);
    world.settle(LIMIT);
    world.crash(2);
    world.add_customer(count);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    // Level, so that there is one checkpoint to fetch.
    world.run_until(LIMIT, "the others are level", |world| {
        let at = |index| (world.status(index).last_executed, world.status(index).low_water_mark);
        at(0) == at(1) && at(1) == at(3)
    });
    world
}

fn transfers(world: &World, who: u16) -> Vec<u64> {
    let parts = |(at, event): &(ReplicaId, Event)| match event {
        Event::Transferred { parts, .. } if at.0 == who => Some(*parts),
        _ => None,
    };
    world.events.iter().filter_map(parts).collect()
}

#[test]
fn what_nobody_retains_is_fetched() {
    for seed in 0..6 {
        let mut world = left_behind(seed, 700);
        world.restart(2);
        world.run_until(LIMIT, "it knows", |world| {
            world.events.iter().any(|(who, event)| who.0 == 2 && matches!(event, Event::Behind { .. }))
        });
        world.settle(LIMIT);
        assert_eq!(world.status(2).behind, None);
        assert_eq!(transfers(&world, 2).len(), 1);
        assert!(transfers(&world, 2)[0] > 4, "in parts");
        // It counts again: the others alone are too few.
        world.crash(3);
        world.add_customer(20);
        world.run_until(LIMIT, "work is done with its vote", |world| world.customers.iter().all(Customer::is_done));
        // And has what it fetched after a crash, condensed or not.
        for condensed in [true, false] {
            if condensed {
                world.condense(2);
            }
            let before = world.status(2).last_executed;
            world.crash(2);
            world.restart(2);
            assert_eq!(world.status(2).last_executed, before);
        }
        world.restart(3);
        world.settle(LIMIT);
    }
}

#[test]
fn only_what_differs_is_fetched() {
    // The same hundred operations more, on a state of 12 and on one of 1,500.
    let parts = |before: usize| {
        let mut world = World::with(3, 4, forgetful());
        world.add_customer(before);
        world.settle(LIMIT);
        world.crash(2);
        world.add_customer(100);
        world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
        world.restart(2);
        world.settle(LIMIT);
        transfers(&world, 2).iter().sum::<u64>()
    };
    assert!(parts(1500) < 200, "of some 1,700 rows and 100 digests of parts: {}", parts(1500));
}

#[test]
fn a_transfer_goes_on_while_the_others_do() {
    for seed in 0..6 {
        let mut world = left_behind(seed, 600);
        world.faults = Faults { loss: 5, duplication: 5, delay_ms: 30, ..Faults::default() };
        world.add_customer(400);
        world.restart(2);
        world.run_for(ms(300 + 100 * seed));
        world.heal();
        world.settle(LIMIT);
        assert!(!transfers(&world, 2).is_empty());
    }
}

#[test]
fn crashes_in_the_middle_of_a_transfer() {
    for seed in 0..12 {
        let mut world = left_behind(seed, 300);
        world.faults =
            Faults { delay_ms: 20, crash_permille: 15, condense_permille: 10, down_ms: 200, ..Faults::default() };
        world.restart(2);
        world.add_customer(60);
        world.run_for(ms(3000));
        world.heal();
        world.settle(LIMIT);
    }
}

/// Power fails while a fetched state is being written: what is there of it is left out.
#[test]
fn a_torn_installation_is_as_if_it_had_not_begun() {
    let mut world = left_behind(5, 300);
    world.restart(2);
    world.settle(LIMIT);
    let whole = world.disks[2].clone();
    let begin = whole.iter().rposition(|record| matches!(record, Record::Snapshot(Snapshot::Begin { .. })));
    let begin = begin.expect("it was installed");
    assert!(begin > 0, "in the middle of the log");
    let pieces = whole[begin..].iter().take_while(|record| matches!(record, Record::Snapshot(_))).count();
    let restored = |disk: Vec<Record>| {
        let mut bench = Bench { disk, ..Bench::new(4, 2) };
        bench.restart(params(4, 2));
        bench.status().last_executed
    };
    let (before, after) = (restored(whole[..begin].to_vec()), restored(whole.clone()));
    assert!(before < after, "{before:?} {after:?}");
    for cut in [1, pieces / 2, pieces - 1] {
        let torn = &whole[..begin + cut];
        assert_eq!(restored(torn.to_vec()), before, "nothing of it counts");
        assert_eq!(restored([torn, &whole[begin..]].concat()), after, "it was fetched again, behind what is left");
    }
}

/// Every wrong answer costs that answer; the rest comes from the others.
#[test]
fn a_lying_donor_is_passed_over() {
    type Lie = fn(&mut Rng, Message) -> Option<Message>;
    let lies: [(&str, Lie); 6] = [
        ("says nothing", |_, message| match message {
            Message::Head(_) | Message::Part(_) | Message::Gone(_) => None,
            other => Some(other),
        }),
        ("has nothing", |_, message| match message {
            Message::Head(head) => Some(Message::Gone(head.seq)),
            Message::Part(part) => Some(Message::Gone(part.seq)),
            other => Some(other),
        }),
        ("another head", |_, message| match message {
            Message::Head(mut head) => {
                head.at = Time(head.at.0 + 1);
                Some(Message::Head(head))
            }
            other => Some(other),
        }),
        ("spoilt rows", |rng, message| match message {
            Message::Part(mut part) => {
                match &mut part.content {
                    Content::Rows(rows) if !rows.is_empty() => {
                        let row = usize::try_from(rng.below(rows.len() as u64)).unwrap();
                        rows[row].1 = Bytes::from_static(b"spoilt");
                    }
                    Content::Rows(rows) => rows.push((Bytes::from_static(b"invented"), Bytes::new())),
                    Content::Fork(children) => children[3] = Some(Digest([3; 32])),
                }
                Some(Message::Part(part))
            }
            other => Some(other),
        }),
        ("rows left out", |_, message| match message {
            Message::Part(mut part) => {
                match &mut part.content {
                    Content::Rows(rows) => drop(rows.pop()),
                    Content::Fork(children) => children[5] = None,
                }
                Some(Message::Part(part))
            }
            other => Some(other),
        }),
        ("another part", |_, message| match message {
            Message::Part(mut part) => {
                part.name.at = part.name.at.child(1);
                Some(Message::Part(part))
            }
            other => Some(other),
        }),
    ];
    for (what, lie) in lies {
        let mut world = left_behind(9, 500);
        let tamper =
            move |rng: &mut Rng, to: ReplicaId, message| if to.0 == 2 { lie(rng, message) } else { Some(message) };
        world.tampers.insert(ReplicaId(0), Box::new(tamper));
        world.restart(2);
        world.run_until(ms(20_000), what, |world| world.status(2).last_executed == world.status(1).last_executed);
        assert_eq!(world.status(2).status, Standing::Normal, "{what}");
        assert_eq!(transfers(&world, 2).len(), 1, "{what}");
    }
}

/// At most once, also across a transfer: the client table comes with the state.
#[test]
fn what_was_executed_before_a_transfer_is_not_executed_again() {
    let mut world = left_behind(4, 200);
    world.restart(2);
    world.settle(LIMIT);
    let answers: BTreeMap<_, _> = world.customers[1].done.iter().cloned().collect();
    assert_eq!(answers.len(), 200);
    // (The world itself panics when an operation is executed twice, or a history has a gap.)
    world.crash(0);
    world.add_customer(50);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
}
