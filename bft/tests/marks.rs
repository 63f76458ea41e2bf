//! Marks, and reads proven from them: who can be shown what, and what a liar can't show.

mod common;

use std::time::Duration;

use base::{Cofactored, Decode as _, Digest, Encode as _, Forged, ReplicaId, Seq, Signed};
use bft::{Certified, Checkpoint, Event, Ignored, Mark, Message, ReadProof};
use common::bench::Bench;
use common::machine::{Entry, Machine};
use common::world::{Customer, Setup, World};
use common::{CLUSTER, params, replica_secret};

const LIMIT: Duration = Duration::from_secs(60);

/// A world in which work was done for a few seconds of agreed time.
fn busy(seed: u64, setup: Setup) -> World {
    let mut world = World::with(seed, 4, setup);
    for _ in 0..6 {
        world.add_customer(5);
        world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
        world.run_for(Duration::from_millis(700));
    }
    world
}

fn certified(world: &World, replica: usize) -> Option<Certified<Machine>> {
    world.node(replica).clone().certified()
}

fn name(place: u64) -> Vec<u8> {
    place.to_bytes()
}

fn proof(world: &World) -> ReadProof {
    certified(world, 0).expect("it has one").prove(&[name(1), name(7_000)])
}

fn verify(proof: ReadProof) -> Result<bft::ProvenRows, Forged> {
    proof.verify(&params(4, 0).context(), &Cofactored)
}

#[test]
fn replicas_find_the_same_marks_and_any_of_them_proves() {
    for seed in 0..4 {
        let world = busy(seed, Setup::default());
        let seqs: Vec<_> = (0..4).map(|replica| certified(&world, replica).expect("it has one").seq()).collect();
        assert!(seqs.iter().all(|seq| *seq == seqs[0]), "{seqs:?}");
        let last = world.status(0).last_executed;
        assert!(seqs[0].0 + 8 >= last.0, "{:?} is of lately: {last:?}", seqs[0]);
        for replica in 0..4 {
            let bytes = certified(&world, replica).expect("it has one").prove(&[name(1), name(7_000)]).to_bytes();
            let proven = verify(ReadProof::from_bytes(&bytes).expect("what was encoded")).expect("a good proof");
            assert!(proven.at <= world.now && world.now.since(proven.at) < Duration::from_secs(3));
            let shown = proven.rows.get(&name(1)).expect("it is shown").expect("it is there");
            assert_eq!(Entry::from_bytes(shown).as_ref(), Ok(&world.history[1]));
            assert_eq!(proven.rows.get(&name(7_000)), Ok(None));
            assert!(proven.rows.get(&name(2)).is_err(), "nobody asked for it");
        }
    }
}

#[test]
fn a_checkpoint_is_not_needed() {
    let mut world = World::with(9, 4, Setup { tweak: |params| params.checkpoint_interval = 15, ..Setup::default() });
    world.add_customer(1);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    world.run_for(Duration::from_millis(200));
    assert!(world.stable.is_empty());
    let before = certified(&world, 1).expect("the first batch is the first of its span").seq();
    // After a rest, one batch is enough for reads to be of lately again.
    world.run_for(Duration::from_secs(20));
    assert_eq!(certified(&world, 1).expect("still").seq(), before, "nothing happened");
    world.add_customer(1);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    world.run_for(Duration::from_millis(200));
    let after = certified(&world, 1).expect("it has one");
    assert!(after.seq() > before && world.now.since(after.at()) < Duration::from_secs(1));
}

#[test]
fn whatever_is_changed_in_a_proof_is_refused() {
    let world = busy(3, Setup::default());
    let good = proof(&world);
    assert!(verify(good.clone()).is_ok());
    let refused = |what: &str, change: &dyn Fn(&mut ReadProof)| {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(verify(bad).is_err(), "{what}");
    };
    refused("another time", &|proof| proof.head.at.0 += 1);
    refused("another place", &|proof| proof.head.seq.0 += 1);
    refused("another state", &|proof| proof.head.state = Digest([7; 32]));
    refused("another table", &|proof| proof.head.table = Digest([7; 32]));
    refused("nobody", &|proof| proof.signers.clear());
    refused("2f signers", &|proof| proof.signers.truncate(2));
    refused("one twice", &|proof| {
        proof.signers.truncate(2);
        proof.signers.push(proof.signers[0]);
    });
    refused("one twice beside enough", &|proof| proof.signers.push(proof.signers[0]));
    refused("in another's name", &|proof| proof.signers[0].0 = ReplicaId(9));
    refused("names exchanged", &|proof| {
        let first = proof.signers[0].0;
        proof.signers[0].0 = proof.signers[1].0;
        proof.signers[1].0 = first;
    });
    let old = certified(&busy(4, Setup::default()), 0).expect("it has one").prove(&[name(1)]);
    refused("rows of another state", &|proof| proof.part = old.part.clone());
    let bytes = good.to_bytes();
    for place in 0..bytes.len() {
        let mut spoilt = bytes.clone();
        spoilt[place] ^= 1 << (place % 8);
        assert!(ReadProof::from_bytes(&spoilt).ok().and_then(|proof| verify(proof).ok()).is_none(), "byte {place}");
    }
}

/// What replicas sign at a checkpoint is another statement, though of the same numbers.
#[test]
fn checkpoints_are_no_marks() {
    let good = proof(&busy(3, Setup::default()));
    let (seq, digest) = (good.head.seq, good.head.digest());
    let signers = (0..3).map(|index| {
        let replica = ReplicaId(index as u16);
        (replica, Signed::new(Checkpoint { seq, digest, replica }, &replica_secret(index), &CLUSTER).signature)
    });
    assert!(verify(ReadProof { signers: signers.collect(), ..good }).is_err());
}

#[test]
fn a_state_that_the_others_do_not_have_is_never_certified() {
    let tweak = |params: &mut bft::Params| params.checkpoint_interval = 15;
    let mut world = World::with(5, 4, Setup { rotten: Some(3), tweak });
    for _ in 0..2 {
        world.add_customer(4);
        world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
        world.run_for(Duration::from_secs(2));
    }
    let seq = |replica: usize| certified(&world, replica).map(|certified| certified.seq());
    // At the first batch, which executes nothing, their states were still alike.
    assert_eq!(seq(3), Some(Seq(1)));
    assert!((0..3).all(|replica| seq(replica) > Some(Seq(4))));
}

#[test]
fn a_replica_that_was_down_proves_again_after_the_next_mark() {
    let mut world = busy(6, Setup::default());
    world.crash(2);
    world.restart(2);
    assert!(certified(&world, 2).is_none(), "marks are not durable");
    world.run_for(Duration::from_secs(2));
    world.add_customer(3);
    world.run_until(LIMIT, "work is done", |world| world.customers.iter().all(Customer::is_done));
    world.run_for(Duration::from_millis(200));
    assert!(certified(&world, 2).is_some());
}

#[test]
fn marks_of_liars_are_few_and_count_for_nothing() {
    let mut bench = Bench::new(4, 0);
    let mark = |from: usize, seq: u64| {
        let body = Mark { seq: Seq(seq), digest: Digest([1; 32]), replica: ReplicaId(from as u16) };
        Message::Mark(Signed::new(body, &replica_secret(from), &CLUSTER))
    };
    for seq in 1..100 {
        for from in 1..4 {
            let out = bench.hear(from, mark(from, seq));
            assert!(out.send.is_empty() && !out.events.iter().any(|event| matches!(event, Event::Marked { .. })));
        }
    }
    assert_eq!(bench.replica.marked().certified, None);
    assert_eq!(bench.hear(1, mark(1, 99)).ignored(), Some(Ignored::Stale));
    assert_eq!(bench.hear(1, mark(1, 50)).ignored(), Some(Ignored::Stale));
}
