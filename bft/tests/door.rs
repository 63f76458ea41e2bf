//! The door: nothing forged and nothing tampered with gets a `Verified`.

mod common;

use base::{Check, ClusterId, Digest, ReplicaId, Seq, Signed, Strict, Time, Verified, View};
use bft::{ClientRequest, Committed, Context, HeldCheckpoint, Message, NewView, Proposal, Status, ViewChange};
use common::bench::{NOW, checkpoint, commit, committed, prepare, proposal, request};
use common::{CLUSTER, client_secret, params, replica_secret};

fn context() -> Context {
    params(4, 0).context()
}

fn admitted(from: u16, message: &Message) -> bool {
    Verified::check(message.clone(), &ReplicaId(from), &context(), &Strict).is_ok()
}

#[test]
fn votes_come_from_their_signers() {
    let votes = [prepare(2, 1, Digest([1; 32])), checkpoint(2, 4, Digest([1; 32])), view_change(2)];
    for vote in &votes {
        assert!(admitted(2, vote));
        assert!(!admitted(1, vote), "passed on by another: {vote:?}");
    }
    assert!(!admitted(4, &commit(1, Digest([1; 32]))), "nobody outside the group is heard");
}

#[test]
fn a_tampered_vote_is_forged() {
    let Message::Prepare(mut vote) = prepare(2, 1, Digest([1; 32])) else { unreachable!() };
    vote.body.seq = Seq(2);
    assert!(!admitted(2, &Message::Prepare(vote.clone())));
    vote.body.seq = Seq(1);
    vote.body.view = View(1);
    assert!(!admitted(2, &Message::Prepare(vote.clone())));
    vote.body.view = View(0);
    assert!(admitted(2, &Message::Prepare(vote.clone())));
    vote.body.replica = ReplicaId(1);
    assert!(!admitted(1, &Message::Prepare(vote)), "a vote in another's name");
    let Message::Checkpoint(mut vote) = checkpoint(2, 4, Digest([1; 32])) else { unreachable!() };
    vote.body.digest = Digest([2; 32]);
    assert!(!admitted(2, &Message::Checkpoint(vote)));
}

#[test]
fn a_proposal_is_its_primarys_whoever_passes_it_on() {
    let good = proposal(1, 1);
    assert!(admitted(0, &Message::Proposal(good.clone())));
    assert!(admitted(3, &Message::Proposal(good.clone())));
    let mut later = good.clone();
    later.header.body.at = Time(NOW.0 + 1);
    assert!(!admitted(0, &Message::Proposal(later)), "the time is signed");
    let by_backup = Signed::new(good.header.body, &replica_secret(1), &CLUSTER);
    assert!(!admitted(1, &Message::Proposal(Proposal { header: by_backup, ..good.clone() })));
    let mut next_view = good.header.body;
    next_view.view = View(1);
    let signed = |who| Signed::new(next_view, &replica_secret(who), &CLUSTER);
    assert!(
        !admitted(0, &Message::Proposal(Proposal { header: signed(0), ..good.clone() })),
        "r1 is primary of view 1"
    );
    assert!(admitted(1, &Message::Proposal(Proposal { header: signed(1), ..good })));
}

#[test]
fn every_request_in_a_message_is_its_clients() {
    let mut forged = request(0, 1, b"mine");
    forged.body.op = bytes::Bytes::from_static(b"yours");
    let batch = bft::Batch::new(vec![request(0, 2, b"fine"), forged.clone()]);
    let mut header = proposal(1, 1).header.body;
    header.batch = batch.digest();
    let header = Signed::new(header, &replica_secret(0), &CLUSTER);
    assert!(!admitted(0, &Message::Proposal(Proposal { header, batch: batch.clone() })), "a primary can't invent one");
    let voucher = Committed { seq: Seq(1), view: View(0), at: NOW, batch };
    assert!(!admitted(0, &Message::Committed(voucher)));
    assert!(admitted(0, &committed(&proposal(1, 1))));
    assert!(!admitted(2, &Message::Forward(forged.clone())));
    assert!(admitted(2, &Message::Forward(request(0, 1, b"mine"))));
    let check = |request: Signed<bft::Request>| ClientRequest(request).check(&(), &context(), &Strict);
    assert!(check(request(0, 1, b"mine")).is_ok());
    assert!(check(forged).is_err());
    let mut stolen = request(0, 1, b"mine");
    stolen.body.client = client_secret(1).public();
    assert!(check(stolen).is_err(), "in another's name");
}

#[test]
fn nothing_signed_means_anything_in_another_cluster() {
    let elsewhere = Context { cluster: ClusterId([9; 16]), ..context() };
    let messages = [
        Message::Proposal(proposal(1, 1)),
        prepare(2, 1, Digest([1; 32])),
        checkpoint(2, 4, Digest([1; 32])),
        Message::Forward(request(0, 1, b"mine")),
        view_change(2),
    ];
    for message in messages {
        let from = ReplicaId(if matches!(message, Message::Proposal(_)) { 0 } else { 2 });
        assert!(Verified::check(message.clone(), &from, &context(), &Strict).is_ok());
        assert!(Verified::check(message, &from, &elsewhere, &Strict).is_err());
    }
}

fn change(who: usize) -> Signed<ViewChange> {
    let body = ViewChange {
        view: View(1),
        low_water_mark: Seq(0),
        checkpoints: Vec::new(),
        prepared: Vec::new(),
        pre_prepared: Vec::new(),
        replica: ReplicaId(who as u16),
    };
    Signed::new(body, &replica_secret(who), &CLUSTER)
}

fn view_change(who: usize) -> Message {
    Message::ViewChange(change(who))
}

#[test]
fn a_new_view_is_its_primarys_and_every_view_change_in_it_its_signers() {
    let new_view = |signer, view_changes| {
        let checkpoint = HeldCheckpoint { seq: Seq(0), digest: Digest([0; 32]) };
        let body = NewView { view: View(1), view_changes, checkpoint, chosen: Vec::new() };
        Message::NewView(Signed::new(body, &replica_secret(signer), &CLUSTER))
    };
    assert!(admitted(1, &new_view(1, vec![change(0), change(2), change(3)])));
    assert!(!admitted(2, &new_view(2, vec![change(0), change(2), change(3)])), "r1 is primary of view 1");
    let mut forged = change(3);
    forged.body.low_water_mark = Seq(4);
    assert!(!admitted(1, &new_view(1, vec![change(0), change(2), forged])));
}

#[test]
fn what_the_link_proves_needs_no_signature() {
    let status = Status {
        round: 0,
        view: View(0),
        last_executed: Seq(0),
        low_water_mark: Seq(0),
        oldest_retained: Seq(1),
        slots: Vec::new(),
    };
    assert!(admitted(3, &Message::Status(status)));
    assert!(admitted(3, &commit(1, Digest([1; 32]))));
}

#[test]
fn what_is_not_spoken_yet_is_ignored() {
    let mut bench = common::bench::Bench::new(4, 1);
    assert_eq!(bench.hear(2, view_change(2)).ignored(), Some(bft::Ignored::Unsupported));
}
