//! Restarts: any prefix of what was persisted is a replica that contradicts nothing it said.

mod common;

use std::time::Duration;

use base::{Decode, Encode, Protocol, ReplicaId, Seq};
use bft::{BadParams, Corrupt, Message, Params, Record, Replica, SNAPSHOT_PIECE_MAX, Snapshot, Standing};
use common::bench::{Bench, commit, prepare, proposal, request};
use common::machine::Machine;
use common::world::{Faults, Node, World};
use common::{CLUSTER, params, replica_keys, replica_secret};

fn restore(me: usize, records: Vec<Record>) -> Result<Node, Corrupt> {
    Replica::restore((params(4, me), Machine::default()), records)
}

/// A world in which something happened, and the disk of one of its replicas.
fn busy_disk(seed: u64, me: usize) -> Vec<Record> {
    let mut world = World::new(seed, 4);
    world.faults = Faults { loss: 10, delay_ms: 10, ..Faults::default() };
    world.add_customer(60);
    world.run_for(Duration::from_millis(400));
    world.disks[me].clone()
}

#[test]
fn every_prefix_restores() {
    for me in 0..4 {
        let disk = busy_disk(11, me);
        assert!(disk.iter().any(|record| matches!(record, Record::Stable(_))), "{}", disk.len());
        for len in 0..=disk.len() {
            let node = restore(me, disk[..len].to_vec()).expect("a prefix");
            let executed = |record: &&Record| matches!(record, Record::Committed(_) | Record::Learned(_));
            let count = disk[..len].iter().filter(executed).count();
            assert_eq!(node.status().last_executed, Seq(count as u64));
        }
    }
}

#[test]
fn a_backup_prepares_nothing_else_after_a_restart() {
    let mut bench = Bench::new(4, 1);
    let (first, second) = (proposal(1, 1), proposal(1, 2));
    assert_eq!(bench.hear(0, Message::Proposal(first.clone())).prepares(), 1);
    bench.restart(params(4, 1));
    let out = bench.hear(0, Message::Proposal(second));
    assert_eq!((out.prepares(), out.persist.len()), (0, 0));
    // Having restarted, it says again what it had said.
    assert_eq!(bench.wake().prepares(), 1);
    let digest = first.header.body.digest();
    bench.hear(2, prepare(2, 1, digest));
    bench.restart(params(4, 1));
    let out = bench.wake();
    assert_eq!((out.prepares(), out.commits()), (1, 1));
}

#[test]
fn a_primary_uses_no_place_twice() {
    let mut bench = Bench::new(4, 0);
    let first = bench.request(request(0, 1, b"\x01")).proposals();
    bench.restart(params(4, 0));
    assert_eq!(bench.wake().proposals(), first, "it resumes what it had proposed");
    let second = bench.request(request(0, 2, b"\x01")).proposals();
    assert_eq!((first[0].header.body.seq, second[0].header.body.seq), (Seq(1), Seq(2)));
    assert!(second[0].header.body.at >= first[0].header.body.at);
}

#[test]
fn a_condensed_log_is_the_same_replica() {
    for me in 0..4 {
        let disk = busy_disk(12, me);
        for len in (0..=disk.len()).step_by(7) {
            let node = restore(me, disk[..len].to_vec()).unwrap();
            let condensed: Vec<Record> = node.condense().records().collect();
            let twin = restore(me, condensed.clone()).expect("its own records");
            assert_eq!(twin.status(), node.status());
            assert_eq!(twin.state().history, node.state().history);
            assert_eq!(twin.condense().records().collect::<Vec<_>>(), condensed, "votes, certificates, batches, table");
            // And it goes on from there just the same.
            let whole: Vec<_> = condensed.into_iter().chain(disk[len..].iter().cloned()).collect();
            let (whole, straight) = (restore(me, whole).unwrap(), restore(me, disk.clone()).unwrap());
            assert_eq!(whole.status(), straight.status());
            let records = |node: &Node| node.condense().records().collect::<Vec<_>>();
            assert_eq!(records(&whole), records(&straight));
        }
    }
}

#[test]
fn condensed_records_are_bounded() {
    let mut bench = Bench::new(4, 1);
    let op = vec![1; bft::REQUEST_OP_MAX];
    for seq in 1..=4u64 {
        let requests = (0..3).map(|k| request(0, seq * 10 + k, &op)).collect();
        bench.commit(&common::bench::proposal_of(seq, common::bench::NOW, requests));
    }
    let records: Vec<_> = bench.replica.condense().records().collect();
    let long = |record: &Record| record.to_bytes().len() > SNAPSHOT_PIECE_MAX + 1024;
    assert!(!records.iter().any(long));
    let pieces = records.iter().filter(|record| matches!(record, Record::Snapshot(Snapshot::State { .. })));
    assert!(pieces.count() >= 2, "a partition longer than a piece is cut");
    let encoded: Vec<_> = records.iter().map(Encode::to_bytes).collect();
    let decoded = encoded.iter().map(|bytes| Record::from_bytes(bytes).unwrap()).collect();
    assert_eq!(restore(1, decoded).unwrap().state().history, bench.replica.state().history);
}

#[test]
fn records_that_do_not_add_up_are_refused() {
    let disk = busy_disk(13, 1);
    let index_of = |wanted: fn(&Record) -> bool| disk.iter().position(wanted).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<Record>)| {
        let mut disk = disk.clone();
        change(&mut disk);
        matches!(restore(1, disk), Err(Corrupt::Record { .. }))
    };
    let committed = index_of(|record| matches!(record, Record::Committed(_)));
    let prepared = index_of(|record| matches!(record, Record::Prepared(_)));
    let checkpoint = index_of(|record| matches!(record, Record::Checkpoint(_)));
    assert!(!refused(&|_| ()));
    assert!(refused(&|disk| drop(disk.remove(0))), "a proposal is missing");
    assert!(refused(&|disk| drop(disk.remove(committed))), "an execution is missing");
    assert!(refused(&|disk| disk.insert(committed, disk[committed].clone())), "an execution is twice");
    assert!(refused(&|disk| disk.insert(prepared, disk[prepared].clone())), "a certificate is twice");
    assert!(refused(&|disk| disk.insert(1, disk[0].clone())), "a proposal is twice");
    let other = |disk: &mut Vec<Record>| {
        let Record::Checkpoint(own) = &mut disk[checkpoint] else { panic!("a checkpoint") };
        own.body.digest = base::Digest([7; 32]);
    };
    assert!(refused(&other), "executing again gives another state");
    let mut condensed: Vec<_> = restore(1, disk.clone()).unwrap().condense().records().collect();
    let end = condensed.iter().position(|record| matches!(record, Record::Snapshot(Snapshot::End { .. }))).unwrap();
    for cut in 1..=end {
        assert!(matches!(restore(1, condensed[..cut].to_vec()), Err(Corrupt::Record { .. })), "half a snapshot");
    }
    for at in 0..end {
        let mut tampered = condensed.clone();
        match &mut tampered[at] {
            Record::Snapshot(Snapshot::Begin { at, .. }) => at.0 += 1,
            Record::Snapshot(Snapshot::Principal { floor, .. } | Snapshot::Session { floor, .. }) => *floor += 1,
            Record::Snapshot(Snapshot::Executed { timestamp, .. }) => *timestamp -= 1_000_000,
            _ => continue,
        }
        assert!(matches!(restore(1, tampered), Err(Corrupt::Record { .. })), "piece {at} is covered by the digest");
    }
    condensed[end] = Record::Snapshot(Snapshot::End { digest: base::Digest([0; 32]) });
    assert!(matches!(restore(1, condensed), Err(Corrupt::Record { .. })), "a snapshot of another state");
}

#[test]
fn bad_parameters_are_refused() {
    let new = |me, keys: Vec<_>, secret| Params::new(CLUSTER, ReplicaId(me), keys, replica_secret(secret));
    assert!(new(0, replica_keys(4), 0).is_ok());
    assert!(matches!(new(0, replica_keys(5), 0), Err(BadParams::GroupSize { n: 5 })));
    assert!(matches!(new(0, Vec::new(), 0), Err(BadParams::GroupSize { n: 0 })));
    assert!(matches!(new(0, replica_keys(103), 0), Err(BadParams::GroupSize { n: 103 })));
    assert!(matches!(new(4, replica_keys(4), 0), Err(BadParams::NotAMember { .. })));
    assert!(matches!(new(1, replica_keys(4), 0), Err(BadParams::WrongKey { .. })));
    let mut keys = replica_keys(4);
    keys[3] = keys[1];
    assert!(matches!(new(0, keys, 0), Err(BadParams::DuplicateKey { .. })));
    let mut params = params(4, 0);
    params.window = params.checkpoint_interval;
    let refused = Replica::restore((params, Machine::default()), Vec::new());
    assert!(matches!(refused, Err(Corrupt::Params(BadParams::OutOfRange { what: "checkpoint_interval" }))));
}

#[test]
fn a_restarted_replica_asks_at_once() {
    let bench = Bench::new(4, 1);
    let node = restore(1, bench.disk).unwrap();
    assert_eq!(node.deadline(), Some(base::Time::ZERO));
    assert_eq!(node.status().status, Standing::Normal);
}

#[test]
fn commits_count_again_after_a_restart() {
    let mut bench = Bench::new(4, 1);
    let proposal = proposal(1, 1);
    let digest = proposal.header.body.digest();
    bench.hear(0, Message::Proposal(proposal));
    bench.hear(2, prepare(2, 1, digest));
    bench.hear(2, commit(1, digest));
    bench.restart(params(4, 1));
    assert!(bench.hear(0, commit(1, digest)).executed().is_empty(), "those heard before are forgotten");
    assert_eq!(bench.hear(2, commit(1, digest)).executed(), [Seq(1)]);
}
