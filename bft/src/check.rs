//! The door: every signature in a message is checked here, and that it comes from whom it claims.

use std::collections::BTreeSet;

use base::{Check, Claim, Forged, Quorums, ReplicaId, Signable, Signed, Verifier, View};

use crate::message::{Message, PrePrepare, Prepare};
use crate::params::Context;
use crate::record::StableProof;
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
        let mut claims = Claims::new(context)?;
        match self {
            Message::Proposal(proposal) => {
                claims.header(&proposal.header)?;
                if *from != claims.primary(proposal.header.body.view) {
                    // Passed on: nobody but the primary can make this one do the work that follows.
                    claims.check(verifier)?;
                }
                claims.requests(proposal.batch.requests());
            }
            Message::Prepare(prepare) => claims.vote(prepare, prepare.body.replica, *from)?,
            Message::Checkpoint(checkpoint) => claims.vote(checkpoint, checkpoint.body.replica, *from)?,
            Message::Mark(mark) => claims.vote(mark, mark.body.replica, *from)?,
            Message::Commit(_) | Message::Status(_) => {}
            Message::Committed(committed) => claims.requests(committed.batch.requests()),
            Message::Forward(request) => claims.request(request),
            Message::ViewChange(change) => {
                // First: nobody else can make this one do all the work that follows.
                claims.signer(change, change.body.replica)?;
                claims.check(verifier)?;
                claims.view_change(&change.body)?;
            }
            Message::NewView(new_view) => claims.new_view(new_view)?,
            Message::Rejoin(rejoin) => claims.vote(rejoin, rejoin.body.replica, *from)?,
            Message::Welcome(welcome) => {
                welcome.lives.iter().try_for_each(|rejoin| claims.signer(rejoin, rejoin.body.replica))?;
                welcome.stable.iter().try_for_each(|proof| claims.stable(proof))?;
            }
            // Parts are checked against digests that are trusted already, by who asked for them.
            Message::Ask(_) | Message::Head(_) | Message::Part(_) | Message::Gone(_) => {}
            Message::Stable(proof) => claims.stable(proof)?,
            Message::Body(body) => claims.requests(body.batch.requests()),
        }
        claims.check(verifier)
    }
}

impl Check for ClientRequest {
    type Context = Context;
    /// Whoever carries it: a request is its signer's.
    type From = ();

    fn check(&self, _from: &(), context: &Context, verifier: &dyn Verifier) -> Result<(), Forged> {
        self.0.check_by(&self.0.body.client, &context.cluster, verifier)
    }
}

/// What a message says that somebody signed, gathered to be verified in one go.
struct Claims<'a> {
    context: &'a Context,
    quorums: Quorums,
    claims: Vec<Claim>,
}

impl<'a> Claims<'a> {
    fn new(context: &'a Context) -> Result<Self, Forged> {
        let quorums = Quorums::of(context.replicas.len()).ok_or(Forged { what: "group" })?;
        Ok(Claims { context, quorums, claims: Vec::new() })
    }

    /// Verifies what was gathered.
    fn check(&mut self, verifier: &dyn Verifier) -> Result<(), Forged> {
        let claims = core::mem::take(&mut self.claims);
        if verifier.verify_all(&claims.iter().collect::<Vec<_>>()) { Ok(()) } else { Err(Forged { what: "signature" }) }
    }

    fn primary(&self, view: View) -> ReplicaId {
        view.primary(self.context.replicas.len())
    }

    fn signer<M: Signable>(&mut self, signed: &Signed<M>, signer: ReplicaId) -> Result<(), Forged> {
        let key = self.context.replicas.get(usize::from(signer.0)).ok_or(Forged { what: M::DOMAIN })?;
        self.claims.push(signed.claim(key, &self.context.cluster));
        Ok(())
    }

    fn vote<M: Signable>(&mut self, signed: &Signed<M>, claimed: ReplicaId, from: ReplicaId) -> Result<(), Forged> {
        if claimed != from {
            return Err(Forged { what: M::DOMAIN });
        }
        self.signer(signed, claimed)
    }

    fn header(&mut self, header: &Signed<PrePrepare>) -> Result<(), Forged> {
        self.signer(header, self.primary(header.body.view))
    }

    fn request(&mut self, request: &Signed<Request>) {
        self.claims.push(request.claim(&request.body.client, &self.context.cluster));
    }

    fn requests(&mut self, requests: &[Signed<Request>]) {
        self.claims.reserve(requests.len());
        requests.iter().for_each(|request| self.request(request));
    }

    /// Every certificate in a view change: what it says prepared did prepare, somewhere.
    fn view_change(&mut self, change: &ViewChange) -> Result<(), Forged> {
        let forged = |what| Err(Forged { what });
        if let Some(proof) = &change.stable {
            self.stable(proof)?;
        }
        let mut before = change.low_water_mark();
        for Prepared { header, prepares } in &change.prepared {
            let PrePrepare { view: in_view, seq, .. } = header.body;
            if seq <= before || in_view >= change.view {
                return forged("prepared set");
            }
            before = seq;
            let (digest, primary) = (header.body.digest(), self.primary(in_view));
            let backups: BTreeSet<ReplicaId> = prepares.iter().map(|prepare| prepare.body.replica).collect();
            if backups.len() != prepares.len() || backups.len() < self.quorums.prepares() || backups.contains(&primary)
            {
                return forged("prepared certificate");
            }
            let same = |prepare: &Prepare| (prepare.view, prepare.seq, prepare.digest) == (in_view, seq, digest);
            if !prepares.iter().all(|prepare| same(&prepare.body)) {
                return forged("prepared certificate");
            }
            self.header(header)?;
            prepares.iter().try_for_each(|prepare| self.signer(prepare, prepare.body.replica))?;
        }
        Ok(())
    }

    fn stable(&mut self, proof: &StableProof) -> Result<(), Forged> {
        let forged = Err(Forged { what: "stable checkpoint" });
        let signers: BTreeSet<ReplicaId> = proof.checkpoints.iter().map(|checkpoint| checkpoint.body.replica).collect();
        if signers.len() != proof.checkpoints.len() || signers.len() < self.quorums.strong() {
            return forged;
        }
        if !proof.checkpoints.iter().all(|vote| (vote.body.seq, vote.body.digest) == (proof.seq, proof.digest)) {
            return forged;
        }
        proof.checkpoints.iter().try_for_each(|vote| self.signer(vote, vote.body.replica))
    }

    /// A new view, and every pre-prepare in it. What it follows from is checked by the replica.
    fn new_view(&mut self, new_view: &Signed<NewView>) -> Result<(), Forged> {
        let NewView { view, ref view_changes, ref proposals } = new_view.body;
        let ordered = view_changes.is_sorted_by(|a, b| a.0 < b.0);
        let enough = view_changes.len() >= self.quorums.strong();
        if !ordered || !enough || proposals.iter().any(|header| header.body.view != view) {
            return Err(Forged { what: "new view" });
        }
        self.signer(new_view, self.primary(view))?;
        proposals.iter().try_for_each(|header| self.header(header))
    }
}
