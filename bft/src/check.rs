//! The door: every signature in a message is checked here, and that it comes from whom it claims.

use base::{Check, Forged, ReplicaId, Signable, Signed, Verifier, View};

use crate::message::{Message, PrePrepare};
use crate::params::Context;
use crate::request::{ClientRequest, Request};
use crate::view_change::{NewView, ViewChange};

impl Check for Message {
    type Context = Context;
    type From = ReplicaId;

    /// Votes must be signed by whom they come from. Proposals and requests may be passed on: a
    /// proposal is its primary's and a request its client's, whoever carries it.
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
            Message::ViewChange(change) => check_vote(change, change.body.replica, *from, context, verifier),
            Message::NewView(new_view) => check_new_view(new_view, *from, context, verifier),
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

fn check_new_view(
    new_view: &Signed<NewView>,
    from: ReplicaId,
    context: &Context,
    verifier: &dyn Verifier,
) -> Result<(), Forged> {
    check_vote(new_view, primary(new_view.body.view, context), from, context, verifier)?;
    let check = |change: &Signed<ViewChange>| check_signer(change, change.body.replica, context, verifier);
    new_view.body.view_changes.iter().try_for_each(check)
}
