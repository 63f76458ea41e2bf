//! A replica that lost its disk comes back, and never says two things of one place.

mod common;

use std::time::Duration;

use base::{ReplicaId, View};
use bft::{Event, Ignored, Message, Record, Standing};
use common::bench::{self, Bench};
use common::params;
use common::world::{Customer, Faults, World};

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
