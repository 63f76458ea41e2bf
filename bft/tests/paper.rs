//! One test for each claim of the paper (Castro & Liskov, OSDI'99 §4; TOCS'02 §4), quoted.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use base::{Digest, Quorums, ReplicaId, Seq, Signed, Time, To};
use bft::{Event, Evidence, Ignored, Message, PRINCIPAL_REQUESTS_MAX, Record, RefusedWhy, ReplyResult, SlotState};
use common::bench::{Bench, NOW, checkpoint, commit, committed, prepare, proposal, proposal_of, request, status};
use common::{CLUSTER, Rng, params, replica_secret};

/// "The algorithm provides safety if all non-faulty replicas agree on the sequence numbers of
/// requests that commit locally"; at most floor((n-1)/3) replicas are faulty. The sizes: with f = 1,
/// two prepares and three commits; with f = 2, four and five.
#[test]
fn quorum_sizes() {
    for n in [4, 7] {
        let quorums = Quorums::of(n).unwrap();
        let mut bench = Bench::new(n, 1);
        let proposal = proposal(1, 1);
        let digest = proposal.header.body.digest();
        let accepted = bench.hear(0, Message::Proposal(proposal));
        assert_eq!((accepted.prepares(), accepted.commits()), (1, 0));
        // Its own prepare is one of the 2f.
        for other in 2..quorums.prepares() {
            assert_eq!(bench.hear(other, prepare(other, 1, digest)).commits(), 0);
        }
        let other = quorums.prepares();
        assert_eq!(bench.hear(other, prepare(other, 1, digest)).commits(), 1, "prepared by 2f prepares, n = {n}");
        // Its own commit is one of the 2f + 1.
        for other in 2..quorums.strong() {
            assert!(bench.hear(other, commit(1, digest)).executed().is_empty());
        }
        let last = bench.hear(quorums.strong(), commit(1, digest));
        assert_eq!(last.executed(), [Seq(1)], "committed by 2f + 1 commits, n = {n}");
    }
}

/// "If prepared(m, v, n, i) is true then prepared(m', v, n, j) is false for any non-faulty replica j
/// (including i = j) and any m' such that D(m') != D(m)": whatever a primary and one accomplice
/// send, and in whichever order it arrives.
#[test]
fn no_two_digests_prepare_at_one_place() {
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        // Replica 3 is faulty, too: f = 1 is exceeded for liveness, not by the votes of 1 and 2.
        let proposals: Vec<_> =
            (0..3u64).map(|k| proposal_of(1, Time(NOW.0 + k), vec![request(0, 1 + k, b"\x01op")])).collect();
        let mut benches = [Bench::new(4, 1), Bench::new(4, 2)];
        let mut committed = BTreeSet::new();
        let mut prepared: Vec<BTreeSet<Digest>> = vec![BTreeSet::new(); 2];
        let mut wire: Vec<(usize, usize, Message)> = Vec::new();
        for to in 0..2 {
            wire.extend(proposals.iter().map(|proposal| (to, 0, Message::Proposal(proposal.clone()))));
            // The primary's commits to everything; it has no prepares to give.
            wire.extend(proposals.iter().map(|proposal| (to, 0, commit(1, proposal.header.body.digest()))));
        }
        while !wire.is_empty() {
            let (to, from, message) = wire.swap_remove(rng.below(wire.len() as u64) as usize);
            let out = benches[to].hear(from, message);
            for send in out.send {
                if let Message::Commit(commit) = &send.message {
                    prepared[to].insert(commit.digest);
                }
                wire.push((1 - to, to + 1, send.message));
            }
            committed.extend(benches[to].replica.state().history.iter().map(|entry| (entry.at, entry.op.clone())));
        }
        assert!(prepared.iter().all(|digests| digests.len() <= 1), "one digest a replica");
        let all: BTreeSet<_> = prepared.iter().flatten().collect();
        assert!(all.len() <= 1 && committed.len() <= 1, "seed {seed}: {all:?}");
    }
}

/// A backup accepts a pre-prepare if "d is the digest for m".
#[test]
fn the_batch_must_be_the_one_that_was_signed() {
    let mut bench = Bench::new(4, 1);
    let mut other = proposal(1, 1);
    other.batch = proposal(1, 2).batch;
    let out = bench.hear(0, Message::Proposal(other));
    assert_eq!((out.ignored(), out.prepares()), (Some(Ignored::WrongBatch), 0));
    assert_eq!(bench.hear(0, Message::Proposal(proposal(1, 1))).prepares(), 1, "the right one is still accepted");
}

/// ... if "it is in view v".
#[test]
fn another_view_is_ignored() {
    let mut bench = Bench::new(4, 1);
    let mut header = proposal(1, 1).header.body;
    header.view = base::View(4);
    let proposal = bft::Proposal { header: Signed::new(header, &replica_secret(0), &CLUSTER), ..proposal(1, 1) };
    assert_eq!(bench.hear(0, Message::Proposal(proposal)).ignored(), Some(Ignored::OtherView));
}

/// ... if "it has not accepted a pre-prepare message for view v and sequence number n containing a
/// different digest"; and two that the primary signed are proof against it.
#[test]
fn equivocation_is_refused_and_proven() {
    let mut bench = Bench::new(4, 1);
    let (first, second) = (proposal(1, 1), proposal(1, 2));
    assert_eq!(bench.hear(0, Message::Proposal(first.clone())).prepares(), 1);
    assert_eq!(bench.hear(0, Message::Proposal(first.clone())).ignored(), Some(Ignored::Duplicate));
    // Passed on by another backup: it is the primary's signature that counts.
    let out = bench.hear(2, Message::Proposal(second.clone()));
    assert!(out.persist.is_empty() && out.send.is_empty());
    let evidence = Evidence::TwoProposals(Box::new([first.header, second.header]));
    assert_eq!(out.events, [Event::Misbehaved { who: ReplicaId(0), evidence }]);
    assert_eq!(bench.status().misbehaved.get(&ReplicaId(0)), Some(&1));
    // The same batch at another time is another proposal.
    let later = proposal_of(1, Time(NOW.0 + 1), vec![request(0, 1, b"\x01op")]);
    assert!(matches!(bench.hear(0, Message::Proposal(later)).events[..], [Event::Misbehaved { .. }]));
}

/// Likewise for a backup's prepares.
#[test]
fn two_prepares_are_proof_too() {
    let mut bench = Bench::new(4, 1);
    bench.hear(2, prepare(2, 1, Digest([1; 32])));
    assert_eq!(bench.hear(2, prepare(2, 1, Digest([1; 32]))).ignored(), Some(Ignored::Duplicate));
    let out = bench.hear(2, prepare(2, 1, Digest([2; 32])));
    assert!(matches!(&out.events[..], [Event::Misbehaved { who: ReplicaId(2), evidence: Evidence::TwoPrepares(_) }]));
}

/// ... if "the sequence number in the pre-prepare message is between a low water mark, h, and a
/// high water mark, H"; this "prevents a faulty primary from exhausting the space of sequence
/// numbers by selecting a very large one". h < n <= h + L.
#[test]
fn water_marks() {
    let mut bench = Bench::new(4, 1);
    let high = bench.status().high_water_mark.0;
    assert_eq!((bench.status().low_water_mark, high), (Seq(0), 16));
    for (seq, ignored) in [
        (0, Some(Ignored::Stale)),
        (1, None),
        (high, None),
        (high + 1, Some(Ignored::OutOfWindow)),
        (u64::MAX, Some(Ignored::OutOfWindow)),
    ] {
        assert_eq!(bench.hear(0, Message::Proposal(proposal(seq, seq))).ignored(), ignored, "proposal {seq}");
        assert_eq!(bench.hear(2, prepare(2, seq, Digest([0; 32]))).ignored(), ignored, "prepare {seq}");
        assert_eq!(bench.hear(2, commit(seq, Digest([0; 32]))).ignored(), ignored, "commit {seq}");
    }
    // The primary, too, stays between them: 16 places and no more, however many wait.
    let mut params = params(4, 0);
    params.in_flight_max = 16;
    params.batch_requests_max = 1;
    let mut primary = Bench::with(params);
    let proposed: usize = (1..40).map(|t| primary.request(request(0, t, b"\x01")).proposals().len()).sum();
    assert_eq!(proposed, 16);
}

/// Prepared takes "2f prepares from different backups that match the pre-prepare": not the
/// primary's, not another digest's, not one backup's twice.
#[test]
fn only_matching_prepares_of_distinct_backups_count() {
    let mut bench = Bench::new(4, 1);
    let proposal = proposal(1, 1);
    let digest = proposal.header.body.digest();
    bench.hear(0, Message::Proposal(proposal));
    assert_eq!(bench.hear(0, prepare(0, 1, digest)).ignored(), Some(Ignored::PrepareByPrimary));
    assert_eq!(bench.hear(2, prepare(2, 1, Digest([9; 32]))).commits(), 0);
    assert_eq!(bench.hear(3, prepare(3, 1, digest)).commits(), 1);
}

/// Committed-local takes prepared, and "2f+1 commits (possibly including its own) from different
/// replicas that match the pre-prepare".
#[test]
fn only_matching_commits_of_distinct_replicas_count() {
    let mut bench = Bench::new(4, 1);
    let proposal = proposal(1, 1);
    let digest = proposal.header.body.digest();
    for other in [0, 2, 3] {
        bench.hear(other, commit(1, if other == 0 { Digest([9; 32]) } else { digest }));
    }
    assert_eq!(bench.hear(2, commit(1, digest)).ignored(), Some(Ignored::Duplicate));
    assert_eq!(bench.hear(2, commit(1, Digest([3; 32]))).ignored(), Some(Ignored::Contradiction));
    bench.hear(0, Message::Proposal(proposal));
    assert!(bench.replica.state().history.is_empty(), "commits without a prepared certificate execute nothing");
    let out = bench.hear(2, prepare(2, 1, digest));
    assert_eq!(out.executed(), [Seq(1)], "with it they do: its own and those of 2 and 3");
}

/// Commits and prepares "may arrive before the pre-prepare": they are kept, and count when it comes.
#[test]
fn early_messages_are_kept() {
    let mut bench = Bench::new(4, 1);
    let proposal = proposal(1, 1);
    let digest = proposal.header.body.digest();
    for other in [2, 3] {
        assert_eq!(bench.hear(other, prepare(other, 1, digest)).ignored(), None);
        assert_eq!(bench.hear(other, commit(1, digest)).ignored(), None);
    }
    let out = bench.hear(0, Message::Proposal(proposal));
    assert_eq!((out.prepares(), out.commits(), out.executed()), (1, 1, vec![Seq(1)]));
}

/// "Each replica i executes the operation requested by m after committed-local(m, v, n, i) is true
/// and i's state reflects the sequential execution of all requests with lower sequence numbers."
#[test]
fn execution_is_in_order() {
    let mut bench = Bench::new(4, 1);
    let proposals: Vec<_> = (1..=3).map(|seq| proposal(seq, seq)).collect();
    for index in [2, 1] {
        let events = bench.commit(&proposals[index]);
        assert!(!events.iter().any(|event| matches!(event, Event::Executed { .. })));
    }
    let events = bench.commit(&proposals[0]);
    let executed = events.into_iter().filter_map(|event| match event {
        Event::Executed { seq, requests } => Some((seq.0, requests)),
        _ => None,
    });
    assert_eq!(executed.collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 1)]);
}

/// A vote is said only once it is durable: effects carry the record beside the message.
#[test]
fn what_is_said_is_written_first() {
    let mut bench = Bench::new(4, 1);
    let proposal = proposal(1, 1);
    let digest = proposal.header.body.digest();
    let out = bench.hear(0, Message::Proposal(proposal.clone()));
    assert_eq!(out.persist, [Record::Proposed(proposal)]);
    let out = bench.hear(2, prepare(2, 1, digest));
    assert!(matches!(&out.persist[..], [Record::Prepared(certificate)] if certificate.prepares.len() == 2));
}

/// "Replicas discard requests whose timestamp is lower than the timestamp in the last reply they
/// sent to the client to guarantee exactly-once semantics": here, by the timestamps executed.
#[test]
fn at_most_once_also_after_a_restart() {
    let mut bench = Bench::new(4, 1);
    bench.commit(&proposal_of(1, NOW, vec![request(0, 5, b"\x01a"), request(0, 5, b"\x01a")]));
    bench.commit(&proposal_of(2, NOW, vec![request(0, 5, b"\x01a"), request(0, 4, b"\x01b")]));
    let ops = |bench: &Bench| bench.replica.state().history.iter().map(|e| e.op.to_vec()).collect::<Vec<_>>();
    assert_eq!(ops(&bench), [b"\x01a", b"\x01b"], "a lower timestamp is another request, not an old one");
    bench.restart(params(4, 1));
    assert_eq!(ops(&bench), [b"\x01a", b"\x01b"]);
    bench.commit(&proposal_of(3, NOW, vec![request(0, 5, b"\x01a"), request(0, 4, b"\x01b"), request(0, 6, b"\x01c")]));
    assert_eq!(ops(&bench), [b"\x01a", b"\x01b", b"\x01c"]);
}

/// "If the request has already been processed, the replicas simply re-send the reply."
#[test]
fn a_repeated_request_gets_the_cached_reply_in_full() {
    let mut bench = Bench::new(4, 1);
    let long = request(0, 7, b"\x20long");
    let replies: Vec<_> = bench.commit(&proposal_of(1, NOW, vec![long.clone()]));
    let digest = replies.iter().find_map(|event| match event {
        Event::Reply { reply, .. } => Some(reply.result.clone()),
        _ => None,
    });
    let Some(ReplyResult::DigestOnly(digest)) = digest else { panic!("7 mod 4 is not this replica: {digest:?}") };
    for restarted in [false, true] {
        if restarted {
            bench.restart(params(4, 1));
        }
        let out = bench.request(long.clone());
        let [reply] = &out.replies()[..] else { panic!("{:?}", out.events) };
        let ReplyResult::Full(bytes) = &reply.result else { panic!("{reply:?}") };
        assert_eq!((Digest::of(bytes), reply.seq, reply.timestamp), (digest, Seq(1), 7));
        assert!(out.send.is_empty() && out.persist.is_empty(), "and nothing is ordered again");
    }
}

/// The empty operation opens a session: it is remembered, and the service does not see it.
#[test]
fn the_empty_operation_is_not_applied() {
    let mut bench = Bench::new(4, 1);
    let events = bench.commit(&proposal_of(1, NOW, vec![request(0, 5, b"")]));
    assert!(events.contains(&Event::Executed { seq: Seq(1), requests: 1 }));
    assert!(bench.replica.state().history.is_empty());
    let again = bench.request(request(0, 5, b"other")).replies();
    assert_eq!(again[0].result, ReplyResult::Full(bytes::Bytes::new()));
}

/// A timestamp below everything that is remembered is refused, before and at execution.
#[test]
fn a_forgotten_timestamp_is_stale() {
    let mut bench = Bench::new(4, 1);
    for seq in 1..=9u64 {
        bench.commit(&proposal_of(seq, NOW, (1..=8).map(|k| request(0, seq * 100 + k, b"\x01")).collect()));
        // Checkpoints of the others, so that the window moves.
        if seq == 8 || seq == 4 {
            let own = bench.disk.iter().rev().find_map(|record| match record {
                Record::Checkpoint(checkpoint) => Some(checkpoint.body.digest),
                _ => None,
            });
            (2..4).for_each(|other| drop(bench.hear(other, checkpoint(other, seq, own.unwrap()))));
        }
    }
    assert_eq!(bench.replica.state().history.len(), 72);
    let stale = bench.request(request(0, 108, b"\x01"));
    assert_eq!(stale.replies()[0].result, ReplyResult::Refused(RefusedWhy::Stale { floor: 108 }));
    let events = bench.commit(&proposal_of(10, NOW, vec![request(0, 50, b"\x01")]));
    assert!(events.contains(&Event::Executed { seq: Seq(10), requests: 0 }));
    assert_eq!(bench.replica.state().history.len(), 72);
}

/// "If the replica is not the primary, it relays the request to the primary."
#[test]
fn a_backup_passes_requests_on() {
    let mut bench = Bench::new(4, 2);
    let signed = request(0, 1, b"\x01");
    let forward = base::Send { to: To::One(ReplicaId(0)), message: Message::Forward(signed.clone()) };
    assert_eq!(bench.request(signed.clone()).send, std::slice::from_ref(&forward));
    assert_eq!(bench.request(signed.clone()).ignored(), Some(Ignored::Duplicate));
    bench.now = bench.now.after(Duration::from_millis(60));
    assert_eq!(bench.request(signed.clone()).send, [forward], "again, when the client insists");
    let mut primary = Bench::new(4, 0);
    assert_eq!(primary.hear(2, Message::Forward(signed.clone())).proposals().len(), 1);
    assert_eq!(primary.hear(3, Message::Forward(signed.clone())).ignored(), Some(Ignored::Duplicate));
    assert_eq!(bench.hear(3, Message::Forward(signed)).ignored(), Some(Ignored::Duplicate));
}

/// "The primary buffers the requests" while too many are in flight; the backlog is the next batch.
/// Two are in flight however small; more only of a backlog that fills a batch.
#[test]
fn batches_grow_with_the_backlog() {
    let mut params = params(4, 0);
    params.batch_requests_max = 20;
    let mut primary = Bench::with(params);
    let sizes = |times: core::ops::RangeInclusive<u64>, primary: &mut Bench| {
        let proposed: Vec<_> = times.flat_map(|t| primary.request(request(0, t, b"\x01")).proposals()).collect();
        (proposed.iter().map(|proposal| proposal.batch.requests().len()).collect::<Vec<_>>(), proposed)
    };
    let (first, mut proposed) = sizes(1..=2, &mut primary);
    assert_eq!(first, [1, 1]);
    let (more, others) = sizes(3..=60, &mut primary);
    assert_eq!(more, [20, 20], "four in flight, and none small after the second");
    proposed.extend(others);
    for (seq, proposal) in (1..=3).zip(&proposed) {
        let digest = proposal.header.body.digest();
        for other in [1, 2] {
            primary.hear(other, prepare(other, seq, digest));
        }
        primary.hear(1, commit(seq, digest));
        let out = primary.hear(2, commit(seq, digest));
        assert_eq!(out.executed(), [Seq(seq)]);
        let sizes: Vec<_> = out.proposals().iter().map(|proposal| proposal.batch.requests().len()).collect();
        assert_eq!(sizes, if seq == 3 { vec![18] } else { vec![] }, "all that waited, when one is in flight");
    }
}

/// Requests that can't be served are refused before they are ordered, each with its reason.
#[test]
fn refusals() {
    let mut primary = Bench::new(4, 0);
    let out = primary.request(request(77, 1, b"\x01"));
    assert_eq!(out.replies()[0].result, ReplyResult::Refused(RefusedWhy::UnknownPrincipal));
    assert_eq!(primary.hear(1, Message::Forward(request(77, 1, b"\x01"))).ignored(), Some(Ignored::UnknownPrincipal));
    let refused = (1..=PRINCIPAL_REQUESTS_MAX as u64 + 1).find_map(|t| {
        let replies = primary.request(request(0, t, b"\x01")).replies();
        replies.first().map(|reply| (t, reply.result.clone()))
    });
    let overloaded = ReplyResult::Refused(RefusedWhy::Overloaded);
    assert_eq!(refused, Some((PRINCIPAL_REQUESTS_MAX as u64 + 1, overloaded)));
    assert!(primary.request(request(1, 1, b"\x01")).replies().is_empty(), "others are served");
}

/// A request of nobody that a faulty primary orders all the same is executed by nobody.
#[test]
fn a_stranger_smuggled_into_a_batch_executes_nothing() {
    let mut bench = Bench::new(4, 1);
    let events = bench.commit(&proposal_of(1, NOW, vec![request(77, 1, b"\x01"), request(0, 1, b"\x01")]));
    assert!(events.contains(&Event::Executed { seq: Seq(1), requests: 1 }));
    assert_eq!(bench.replica.state().history.len(), 1);
}

/// Non-determinism (TOCS'02 §4.6): the primary picks the time, backups accept what is sensible.
#[test]
fn agreed_time_is_monotone_and_near_the_clock() {
    let bound = Duration::from_secs(10);
    let at = |seq, at| Message::Proposal(proposal_of(seq, at, vec![request(0, seq, b"\x01")]));
    let mut bench = Bench::new(4, 1);
    let ahead = bench.now.after(bound).after(Duration::from_nanos(1));
    assert_eq!(bench.hear(0, at(1, ahead)).ignored(), Some(Ignored::TimeAhead));
    assert_eq!(bench.hear(0, at(1, bench.now.after(bound))).ignored(), None);
    assert_eq!(bench.hear(0, at(2, bench.now)).ignored(), Some(Ignored::TimeNotMonotone), "before place 1");
    assert_eq!(bench.hear(0, at(4, bench.now.after(bound))).ignored(), None, "as late as place 1");
    // Far behind: refused by who has nothing else to judge by.
    let mut late = Bench::new(4, 1);
    late.now = late.now.after(Duration::from_secs(3600));
    assert_eq!(late.hear(0, at(1, NOW)).ignored(), Some(Ignored::TimeBehind));
    // Accepted later, for clocks are set back; but said aloud.
    let mut late = Bench::new(4, 1);
    assert_eq!(late.hear(0, at(1, NOW)).prepares(), 1);
    late.now = late.now.after(Duration::from_secs(3600));
    let out = late.hear(0, at(2, NOW));
    assert_eq!(out.prepares(), 1);
    assert!(matches!(out.events[..], [Event::TimeLags { seq: Seq(2), .. }]));
    // A later place came first: an earlier one can't have a later time.
    let mut bench = Bench::new(4, 1);
    bench.hear(0, at(5, NOW));
    assert_eq!(bench.hear(0, at(4, Time(NOW.0 + 1))).ignored(), Some(Ignored::TimeNotMonotone));
    assert_eq!(bench.hear(0, at(4, NOW)).ignored(), None);
}

/// What was held back must not be let go at once: leases that are in use would end.
#[test]
fn agreed_time_catches_up_slowly() {
    let seconds = Duration::from_secs;
    let at = |seq, at| Message::Proposal(proposal_of(seq, at, vec![request(0, seq, b"\x01")]));
    let mut bench = Bench::new(4, 1);
    assert_eq!(bench.hear(0, at(1, NOW)).prepares(), 1);
    bench.now = NOW.after(seconds(60));
    assert_eq!(bench.hear(0, at(2, NOW)).prepares(), 1, "held back by a minute");
    bench.now = NOW.after(seconds(61));
    assert_eq!(bench.hear(0, at(3, NOW.after(seconds(61)))).ignored(), Some(Ignored::TimeTooFast));
    assert_eq!(bench.hear(0, at(3, NOW.after(seconds(11)))).prepares(), 1, "the bound, and as much as has passed");
    assert_eq!(
        bench.hear(0, at(4, NOW.after(seconds(13)))).ignored(),
        Some(Ignored::TimeTooFast),
        "there is one bound"
    );
    bench.now = NOW.after(seconds(71));
    assert_eq!(bench.hear(0, at(4, NOW.after(seconds(22)))).prepares(), 1, "a tenth faster than the clock");
    // Nor from one place to the next, in whichever order they come.
    let mut bench = Bench::new(4, 1);
    assert_eq!(bench.hear(0, at(2, NOW)).prepares(), 1);
    let late = Time(NOW.0 - seconds(11).as_nanos() as u64);
    assert_eq!(bench.hear(0, at(1, late)).ignored(), Some(Ignored::TimeTooFast));
}

/// Commits four batches, up to the first checkpoint; its digest.
fn to_checkpoint(bench: &mut Bench) -> Digest {
    (1..=4).for_each(|seq| drop(bench.commit(&proposal(seq, seq))));
    let own = bench.disk.iter().find_map(|record| match record {
        Record::Checkpoint(checkpoint) => Some(checkpoint.body),
        _ => None,
    });
    let own = own.expect("a checkpoint every K = 4 places");
    assert_eq!(own.seq, Seq(4));
    own.digest
}

/// "Each replica collects checkpoint messages in its log until it has 2f+1 of them for sequence
/// number n with the same digest d signed by different replicas (including possibly its own such
/// message). These 2f+1 messages are the proof of correctness for the checkpoint."
#[test]
fn a_checkpoint_is_stable_with_2f_plus_1() {
    let mut bench = Bench::new(4, 1);
    let digest = to_checkpoint(&mut bench);
    assert!(bench.hear(2, checkpoint(2, 4, digest)).events.is_empty());
    assert_eq!(bench.hear(2, checkpoint(2, 4, digest)).ignored(), Some(Ignored::Duplicate));
    assert!(bench.hear(0, checkpoint(0, 4, Digest([9; 32]))).events.is_empty());
    assert_eq!(bench.status().low_water_mark, Seq(0));
    let out = bench.hear(3, checkpoint(3, 4, digest));
    assert_eq!(out.events, [Event::StableCheckpoint { seq: Seq(4), digest }]);
    assert!(matches!(&out.persist[..], [Record::Stable(proof)] if proof.checkpoints.len() == 3));
    let status = bench.status();
    assert_eq!((status.low_water_mark, status.high_water_mark), (Seq(4), Seq(20)), "h is the last stable checkpoint");
    assert_eq!(bench.hear(2, checkpoint(2, 5, digest)).ignored(), Some(Ignored::NotACheckpoint));
}

/// Not without the own state: `2f + 1` others may prove a checkpoint that is not reached here yet.
#[test]
fn a_checkpoint_is_stable_only_once_reached() {
    let mut ahead = Bench::new(4, 2);
    let digest = to_checkpoint(&mut ahead);
    let mut bench = Bench::new(4, 1);
    for other in [0, 2, 3] {
        assert!(bench.hear(other, checkpoint(other, 4, digest)).events.is_empty());
    }
    assert_eq!(bench.status().low_water_mark, Seq(0));
    assert_eq!(to_checkpoint(&mut bench), digest, "the digest depends on what was executed alone");
    assert_eq!(bench.status().low_water_mark, Seq(4));
}

/// "The replica discards all pre-prepare, prepare, and commit messages with sequence number less
/// than or equal to n from its log; it also discards all earlier checkpoints."
#[test]
fn a_stable_checkpoint_truncates_the_log() {
    let mut bench = Bench::new(4, 1);
    let votes = |bench: &Bench| {
        let records = bench.replica.condense();
        let votes = records.records().filter(|record| matches!(record, Record::Proposed(_) | Record::Prepared(_)));
        votes.count()
    };
    let digest = to_checkpoint(&mut bench);
    bench.commit(&proposal(5, 5));
    assert_eq!(votes(&bench), 10);
    bench.hear(2, checkpoint(2, 4, digest));
    bench.hear(3, checkpoint(3, 4, digest));
    assert_eq!(votes(&bench), 2, "place 5 is left");
    assert_eq!(bench.hear(0, Message::Proposal(proposal(4, 4))).ignored(), Some(Ignored::Stale));
    assert_eq!(bench.hear(2, checkpoint(2, 4, digest)).ignored(), Some(Ignored::Duplicate));
}

/// A checkpoint that `2f + 1` others contradict: this replica's state is wrong.
#[test]
fn a_contradicted_checkpoint_is_divergence() {
    let mut bench = Bench::new(4, 1);
    let mine = to_checkpoint(&mut bench);
    let theirs = Digest([5; 32]);
    bench.hear(0, checkpoint(0, 4, theirs));
    assert!(bench.hear(2, checkpoint(2, 4, theirs)).events.is_empty(), "two may be wrong");
    let out = bench.hear(3, checkpoint(3, 4, theirs));
    let divergence = bft::Divergence { seq: Seq(4), mine, theirs };
    assert_eq!(out.events, [Event::Diverged(divergence)]);
    assert_eq!(out.persist, [Record::Diverged(divergence)]);
    let out = bench.hear(0, Message::Proposal(proposal(5, 5)));
    assert_eq!((out.prepares(), out.ignored()), (0, Some(Ignored::Diverged)));
}

/// Two checkpoints of one place are proof against their signer.
#[test]
fn two_checkpoints_are_proof() {
    let mut bench = Bench::new(4, 1);
    bench.hear(2, checkpoint(2, 4, Digest([1; 32])));
    let out = bench.hear(2, checkpoint(2, 4, Digest([2; 32])));
    assert!(matches!(&out.events[..], [Event::Misbehaved { evidence: Evidence::TwoCheckpoints(_), .. }]));
}

/// State transfer's rule, for batches: what `f + 1` replicas say, one correct replica says.
#[test]
fn a_committed_batch_is_believed_from_f_plus_1() {
    let mut bench = Bench::new(4, 1);
    let (truth, lie) = (proposal(1, 1), proposal(1, 2));
    assert!(bench.hear(2, committed(&lie)).executed().is_empty());
    assert_eq!(bench.hear(2, committed(&lie)).ignored(), Some(Ignored::Duplicate));
    assert_eq!(bench.hear(2, committed(&truth)).ignored(), Some(Ignored::Contradiction));
    assert!(bench.hear(0, committed(&truth)).executed().is_empty());
    let out = bench.hear(3, committed(&truth));
    assert_eq!(out.executed(), [Seq(1)]);
    assert!(matches!(&out.persist[..], [Record::Learned(_)]));
    assert_eq!(bench.hear(3, committed(&truth)).ignored(), Some(Ignored::Stale));
    assert_eq!(bench.hear(3, committed(&proposal(34, 1))).ignored(), Some(Ignored::OutOfWindow));
    // Its proposal, coming late, is still voted for: others may lack this vote.
    assert_eq!(bench.hear(0, Message::Proposal(lie)).ignored(), Some(Ignored::Contradiction));
    assert_eq!(bench.hear(0, Message::Proposal(truth)).prepares(), 1);
}

/// The order in which places were learned does not matter, nor do those not needed next.
#[test]
fn vouchers_are_executed_in_order() {
    let mut bench = Bench::new(4, 1);
    for from in [2, 3] {
        assert!(bench.hear(from, committed(&proposal(2, 2))).executed().is_empty());
    }
    bench.hear(2, committed(&proposal(1, 1)));
    assert_eq!(bench.hear(3, committed(&proposal(1, 1))).executed(), [Seq(1), Seq(2)]);
}

/// STATUS is answered with what the other lacks, not at once and again (libbyz: "DoS guard disabled").
#[test]
fn answers_to_status_are_bounded() {
    let mut bench = Bench::new(4, 1);
    for seq in 1..=3 {
        bench.commit(&proposal(seq, seq));
    }
    bench.hear(0, Message::Proposal(proposal(4, 4)));
    let kinds = |out: &common::bench::Out| {
        let kind = |message: &Message| match message {
            Message::Committed(_) => 'V',
            Message::Prepare(_) => 'p',
            Message::Commit(_) => 'c',
            Message::Status(_) => 's',
            Message::Proposal(_) => 'P',
            _ => '?',
        };
        out.send.iter().map(|send| kind(&send.message)).collect::<String>()
    };
    let slots = [SlotState::Prepared, SlotState::Proposed, SlotState::Empty];
    let first = bench.hear(3, status(0, 1, &slots));
    assert_eq!(kinds(&first), "sVVcpcp", "vouchers for 2 and 3, and votes as far as they are lacking");
    assert!(first.send.iter().all(|send| send.to == To::One(ReplicaId(3))));
    for _ in 0..10 {
        assert_eq!(kinds(&bench.hear(3, status(0, 1, &slots))), "", "not at once again");
    }
    bench.now = bench.now.after(Duration::from_millis(30));
    assert_eq!(
        kinds(&bench.hear(3, status(1, 1, &slots))),
        "sVVcpcpP".replace("pP", "Pp"),
        "and who insists gets the proposal"
    );
    assert_eq!(kinds(&bench.hear(3, status(2, 3, &[]))), "", "progress is being made");
    let extremes = status(0, u64::MAX, &[]);
    assert_eq!(kinds(&bench.hear(2, extremes)), "s");
}
