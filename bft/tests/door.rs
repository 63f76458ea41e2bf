//! The door: nothing forged and nothing tampered with gets a `Verified`.

mod common;

use base::{Check, ClusterId, Cofactored, Digest, ReplicaId, Seq, Signed, Time, Verified, View};
use bft::{ClientRequest, Committed, Context, Message, NewView, Prepared, Proposal, StableProof, Status, ViewChange};
use common::bench::{NOW, checkpoint, commit, committed, prepare, proposal, request};
use common::{CLUSTER, client_secret, params, replica_secret};

fn context() -> Context {
    params(4, 0).context()
}

fn admitted(from: u16, message: &Message) -> bool {
    Verified::check(message.clone(), &ReplicaId(from), &context(), &Cofactored).is_ok()
}

#[test]
fn votes_come_from_their_signers() {
    let votes = [prepare(2, 1, Digest([1; 32])), checkpoint(2, 4, Digest([1; 32]))];
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
    let check = |request: Signed<bft::Request>| ClientRequest(request).check(&(), &context(), &Cofactored);
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
        assert!(Verified::check(message.clone(), &from, &context(), &Cofactored).is_ok());
        assert!(Verified::check(message, &from, &elsewhere, &Cofactored).is_err());
    }
}

fn signed_change(body: ViewChange) -> Signed<ViewChange> {
    let who = usize::from(body.replica.0);
    Signed::new(body, &replica_secret(who), &CLUSTER)
}

fn change(who: usize) -> Signed<ViewChange> {
    signed_change(ViewChange {
        view: View(1),
        stable: None,
        prepared: Vec::new(),
        replica: ReplicaId(who as u16),
        life: 0,
    })
}

fn view_change(who: usize) -> Message {
    Message::ViewChange(change(who))
}

fn certificate(seq: u64, backups: &[usize]) -> Prepared {
    let header = proposal(seq, seq).header;
    let prepares = backups.iter().map(|who| {
        let Message::Prepare(prepare) = prepare(*who, seq, header.body.digest()) else { unreachable!() };
        prepare
    });
    Prepared { prepares: prepares.collect(), header }
}

#[test]
fn a_view_change_is_its_signers_and_proves_what_it_says() {
    let with = |prepared: Vec<Prepared>| {
        let body = ViewChange { view: View(1), stable: None, prepared, replica: ReplicaId(2), life: 0 };
        admitted(3, &Message::ViewChange(signed_change(body)))
    };
    assert!(with(vec![]) && with(vec![certificate(1, &[1, 2]), certificate(3, &[2, 3])]), "whoever passes it on");
    assert!(!with(vec![certificate(3, &[1, 2]), certificate(1, &[1, 2])]), "in order");
    assert!(!with(vec![certificate(1, &[1])]), "2f prepares");
    assert!(!with(vec![certificate(1, &[1, 1])]), "of distinct backups");
    assert!(!with(vec![certificate(1, &[0, 1])]), "the primary is none");
    let mut mixed = certificate(1, &[1, 2]);
    mixed.prepares[1] = certificate(2, &[2]).prepares.remove(0);
    assert!(!with(vec![mixed]), "for one place");
    let mut invented = certificate(1, &[1, 2]);
    invented.prepares[1].signature = invented.prepares[0].signature;
    assert!(!with(vec![invented]), "signed");
    let mut other_header = certificate(1, &[1, 2]);
    other_header.header = proposal(1, 9).header;
    assert!(!with(vec![other_header]), "for the proposal shown");
    let mut by_backup = certificate(1, &[1, 2]);
    by_backup.header = Signed::new(by_backup.header.body, &replica_secret(3), &CLUSTER);
    assert!(!with(vec![by_backup]), "which its primary made");

    let stable = |signers: &[usize]| {
        let vote = |who: &usize| match checkpoint(*who, 4, Digest([1; 32])) {
            Message::Checkpoint(vote) => vote,
            _ => unreachable!(),
        };
        let proof =
            StableProof { seq: Seq(4), digest: Digest([1; 32]), checkpoints: signers.iter().map(vote).collect() };
        let body = ViewChange { view: View(1), stable: Some(proof), prepared: vec![], replica: ReplicaId(2), life: 0 };
        admitted(2, &Message::ViewChange(signed_change(body)))
    };
    assert!(stable(&[0, 1, 3]));
    assert!(!stable(&[0, 1]) && !stable(&[0, 1, 1]), "2f + 1 checkpoints of distinct replicas");
}

#[test]
fn a_new_view_is_its_primarys_and_so_is_all_it_proposes() {
    let new_view = |signer, order: &[u16], header_of| {
        let view_changes = order.iter().map(|who| (ReplicaId(*who), Digest([0; 32]))).collect();
        let mut header = proposal(1, 1).header.body;
        header.view = View(1);
        let proposals = vec![Signed::new(header, &replica_secret(header_of), &CLUSTER)];
        let body = NewView { view: View(1), view_changes, proposals };
        Message::NewView(Signed::new(body, &replica_secret(signer), &CLUSTER))
    };
    assert!(admitted(1, &new_view(1, &[0, 2, 3], 1)) && admitted(3, &new_view(1, &[0, 2, 3], 1)));
    assert!(!admitted(2, &new_view(2, &[0, 2, 3], 1)), "r1 is primary of view 1");
    assert!(!admitted(1, &new_view(1, &[0, 2, 3], 2)));
    assert!(!admitted(1, &new_view(1, &[0, 2], 1)), "2f + 1 view changes");
    assert!(
        !admitted(1, &new_view(1, &[0, 2, 2], 1)) && !admitted(1, &new_view(1, &[2, 0, 3], 1)),
        "each once, in order"
    );
}

#[test]
fn what_the_link_proves_needs_no_signature() {
    let status = Status {
        round: 0,
        view: View(0),
        active: true,
        rejoins: None,
        last_executed: Seq(0),
        low_water_mark: Seq(0),
        oldest_retained: Seq(1),
        slots: Vec::new(),
    };
    assert!(admitted(3, &Message::Status(status)));
    assert!(admitted(3, &commit(1, Digest([1; 32]))));
}
