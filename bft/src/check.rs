//! The door: every signature in a message is checked here, and that it comes from whom it claims.

use std::collections::BTreeSet;

use base::{Check, Forged, Quorums, ReplicaId, Signable, Signed, Verifier, View};

use crate::message::{Checkpoint, Message, PrePrepare, Prepare};
use crate::params::Context;
use crate::record::StableProof;
use crate::rejoin::Rejoin;
use crate::request::{ClientRequest, Request};
use crate::view_change::{NewView, Prepared, ViewChange};

impl Check for Message {
    type Context = Context;
    type From = ReplicaId;

    /// Votes must be signed by whom they come from. Proposals, requests, view changes and new views
    /// may be passed on: they are their signers', whoever carries them.
    fn check(&self, from: &ReplicaId, context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
        if usize::from(from.0) >= context.replicas.len() {
            return Err(Forged { what: "sender" });
        }
        match self {
            Message::Proposal(proposal) => {
                check_header(&proposal.header, context, verifier)?;
                check_requests(proposal.batch.requests(), context, verifier)
            }
            Message::Prepare(prepare) => check_vote(prepare, prepare.body.replica, *from, context, verifier),
            Message::Checkpoint(checkpoint) => {
                check_vote(checkpoint, checkpoint.body.replica, *from, context, verifier)
            }
            Message::Commit(_) | Message::Status(_) => Ok(()),
            Message::Committed(committed) => check_requests(committed.batch.requests(), context, verifier),
            Message::Forward(request) => check_request(request, context, verifier),
            Message::ViewChange(change) => check_view_change(change, context, verifier),
            Message::NewView(new_view) => check_new_view(new_view, context, verifier),
            Message::Rejoin(rejoin) => check_vote(rejoin, rejoin.body.replica, *from, context, verifier),
            Message::Welcome(welcome) => {
                let quorums = Quorums::of(context.replicas.len()).ok_or(Forged { what: "group" })?;
                let check = |rejoin: &Signed<Rejoin>| check_signer(rejoin, rejoin.body.replica, context, verifier);
                welcome.lives.iter().try_for_each(check)?;
                welcome.stable.iter().try_for_each(|proof| check_stable(proof, quorums, context, verifier))
            }
            // Parts are checked against digests that are trusted already, by who asked for them.
            Message::Ask(_) | Message::Head(_) | Message::Part(_) | Message::Gone(_) => Ok(()),
            Message::Stable(proof) => {
                let quorums = Quorums::of(context.replicas.len()).ok_or(Forged { what: "group" })?;
                check_stable(proof, quorums, context, verifier)
            }
            Message::Body(body) => check_requests(body.batch.requests(), context, verifier),
        }
    }
}

impl Check for ClientRequest {
    type Context = Context;
    /// Whoever carries it: a request is its signer's.
    type From = ();

    fn check(&self, _from: &(), context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
        check_request(&self.0, context, verifier)
    }
}

fn primary(view: View, context: &Context) -> ReplicaId {
    view.primary(context.replicas.len())
}

fn check_signer<M: Signable>(
    signed: &Signed<M>,
    signer: ReplicaId,
    context: &Context,
    verifier: &dyn Verifier,
) -> Result<(), Forged> {
    let key = context.replicas.get(usize::from(signer.0)).ok_or(Forged { what: M::DOMAIN })?;
    signed.check_by(key, &context.cluster, verifier)
}

fn check_vote<M: Signable>(
    signed: &Signed<M>,
    claimed: ReplicaId,
    from: ReplicaId,
    context: &Context,
    verifier: &dyn Verifier,
) -> Result<(), Forged> {
    if claimed != from {
        return Err(Forged { what: M::DOMAIN });
    }
    check_signer(signed, claimed, context, verifier)
}

fn check_header(header: &Signed<PrePrepare>, context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
    check_signer(header, primary(header.body.view, context), context, verifier)
}

fn check_request(request: &Signed<Request>, context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
    request.check_by(&request.body.client, &context.cluster, verifier)
}

fn check_requests(requests: &[Signed<Request>], context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
    requests.iter().try_for_each(|request| check_request(request, context, verifier))
}

/// A view change, and every certificate in it: what it says prepared did prepare, somewhere.
fn check_view_change(change: &Signed<ViewChange>, context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
    let forged = |what| Err(Forged { what });
    let ViewChange { view, ref stable, ref prepared, replica, .. } = change.body;
    let Some(quorums) = Quorums::of(context.replicas.len()) else { return forged("group") };
    // First: nobody else can make this one do all the work that follows.
    check_signer(change, replica, context, verifier)?;
    if let Some(proof) = stable {
        check_stable(proof, quorums, context, verifier)?;
    }
    let mut before = change.body.low_water_mark();
    for Prepared { header, prepares } in prepared {
        let PrePrepare { view: in_view, seq, .. } = header.body;
        if seq <= before || in_view >= view {
            return forged("prepared set");
        }
        before = seq;
        let (digest, primary) = (header.body.digest(), primary(in_view, context));
        let backups: BTreeSet<ReplicaId> = prepares.iter().map(|prepare| prepare.body.replica).collect();
        if backups.len() != prepares.len() || backups.len() < quorums.prepares() || backups.contains(&primary) {
            return forged("prepared certificate");
        }
        let same = |prepare: &Prepare| (prepare.view, prepare.seq, prepare.digest) == (in_view, seq, digest);
        if !prepares.iter().all(|prepare| same(&prepare.body)) {
            return forged("prepared certificate");
        }
        check_header(header, context, verifier)?;
        let check = |prepare: &Signed<Prepare>| check_signer(prepare, prepare.body.replica, context, verifier);
        prepares.iter().try_for_each(check)?;
    }
    Ok(())
}

fn check_stable(
    proof: &StableProof,
    quorums: Quorums,
    context: &Context,
    verifier: &dyn Verifier,
) -> Result<(), Forged> {
    let forged = Err(Forged { what: "stable checkpoint" });
    let signers: BTreeSet<ReplicaId> = proof.checkpoints.iter().map(|checkpoint| checkpoint.body.replica).collect();
    if signers.len() != proof.checkpoints.len() || signers.len() < quorums.strong() {
        return forged;
    }
    if !proof.checkpoints.iter().all(|vote| (vote.body.seq, vote.body.digest) == (proof.seq, proof.digest)) {
        return forged;
    }
    let check = |vote: &Signed<Checkpoint>| check_signer(vote, vote.body.replica, context, verifier);
    proof.checkpoints.iter().try_for_each(check)
}

/// A new view, and every pre-prepare in it. What it follows from is checked by the replica.
fn check_new_view(new_view: &Signed<NewView>, context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
    let NewView { view, ref view_changes, ref proposals } = new_view.body;
    let ordered = view_changes.is_sorted_by(|a, b| a.0 < b.0);
    let enough = Quorums::of(context.replicas.len()).is_some_and(|quorums| view_changes.len() >= quorums.strong());
    if !ordered || !enough || proposals.iter().any(|header| header.body.view != view) {
        return Err(Forged { what: "new view" });
    }
    check_signer(new_view, primary(view, context), context, verifier)?;
    proposals.iter().try_for_each(|header| check_header(header, context, verifier))
}
