//! What tells two replicas apart for a model checker (feature `fingerprint`, in no shipped build).
//!
//! Two replicas of one identity and one fingerprint answer every message alike, but for STATUS and
//! what is asked for: proposals, votes, view changes, new views, checkpoints, vouchers. So what is
//! left out here is what only pacing, catching up and fetching look at, and:
//! - whose prepares prove a certificate, and what else came once a place is prepared or committed:
//!   certificates count by what they are for, and a place is prepared, and committed, once;
//! - which of the requests known are proposed already: that follows from the places (a restart forgets
//!   it, and at worst proposes one twice, at another place);
//! - view changes for views below its own, which count for nothing any more;
//! - which view changes an entered view followed from: what they decided is its proposals;
//! - state, client table and images: they follow from the batches executed, all of which are retained
//!   as long as nothing is trimmed or fetched.

use core::hash::{Hash as _, Hasher};

use base::{Signed, StateMachine, View};

use crate::replica::Replica;
use crate::view_change::NewView;
use crate::views::Views;

impl<S: StateMachine> Replica<S> {
    /// Hashes all that this replica's answers depend on; see the module.
    pub fn fingerprint(&self, into: &mut impl Hasher) {
        // What is not named is pacing alone; whoever adds a field that is not names it here.
        let Replica {
            params,
            quorums,
            divergence,
            view,
            views,
            log,
            queue,
            last_executed,
            last_at,
            // Time stands still for the checker.
            pace: _,
            state: _,
            table: _,
            retained,
            vouchers,
            checkpoints,
            transfer,
            lives,
            rejoining,
            peers: _,
            pacing: _,
            counts: _,
            // For readers: nothing in agreement looks at them.
            marks: _,
            // When the primary is suspected is a step of its own to the checker.
            floor: _,
        } = self;
        (params.me, view, last_executed, last_at).hash(into);
        (divergence.is_some(), transfer.is_some(), rejoining.is_some()).hash(into);
        views.fingerprint(*view, into);
        log.fingerprint(into);
        queue.requests().for_each(|request| request.signature.hash(into));
        // Written out by `Debug`: small, and all of it counts.
        format!("{vouchers:?}{lives:?}").hash(into);
        for committed in retained.iter() {
            (committed.seq, committed.view, committed.digest()).hash(into);
        }
        checkpoints.stable.as_ref().map(|proof| (proof.seq, proof.digest)).hash(into);
        for replica in (0..quorums.n() as u16).map(base::ReplicaId) {
            for checkpoint in checkpoints.from(base::Seq(0), replica) {
                (replica, checkpoint.body.seq, checkpoint.body.digest).hash(into);
            }
        }
    }
}

impl Views {
    fn fingerprint(&self, view: View, into: &mut impl Hasher) {
        let Views { active, changes, shown, pending, failed: _, since, progress: _, entered: _, .. } = self;
        (active, since.is_some()).hash(into);
        for (replica, held) in changes.iter().filter(|(_, held)| held.change.body.view >= view) {
            (replica, held.digest).hash(into);
        }
        let signatures = |new_view: &Signed<NewView>| {
            let proposals = new_view.body.proposals.iter().map(|header| header.signature);
            (new_view.body.view, proposals.collect::<Vec<_>>())
        };
        shown.as_ref().map(|shown| signatures(&shown.new_view)).hash(into);
        for (primary, waiting) in pending {
            (primary, format!("{waiting:?}")).hash(into);
        }
    }
}
