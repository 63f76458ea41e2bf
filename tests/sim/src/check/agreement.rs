//! I1, agreement: one digest a place, one history, and no correct replica contradicts itself.

use std::collections::BTreeMap;

use base::{Digest, ReplicaId, Seq, View};
use bft::Message;

use super::Verdict;
use crate::machine::Tape;

/// What was said and executed so far.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    said: BTreeMap<(ReplicaId, &'static str, View, Seq), Digest>,
    /// The highest view that a replica asked for: what it prepared below is told.
    asked: BTreeMap<ReplicaId, View>,
    executed: BTreeMap<Seq, Digest>,
    /// In which view that was first known as committed.
    committed_in: BTreeMap<Seq, View>,
    stable: BTreeMap<Seq, Digest>,
}

impl Agreement {
    /// A correct replica says one thing of a place in a view, whatever happened in between.
    pub(crate) fn said(&mut self, who: ReplicaId, message: &Message) -> Verdict {
        let (kind, view, seq, digest) = match message {
            Message::Proposal(proposal) => {
                let header = proposal.header.body;
                ("proposal", header.view, header.seq, header.digest())
            }
            Message::Prepare(prepare) => ("prepare", prepare.body.view, prepare.body.seq, prepare.body.digest),
            Message::Commit(commit) => ("commit", commit.view, commit.seq, commit.digest),
            Message::Checkpoint(checkpoint) => ("checkpoint", View(0), checkpoint.body.seq, checkpoint.body.digest),
            Message::Committed(committed) => ("committed", View(0), committed.seq, committed.digest()),
            Message::ViewChange(change) if change.body.replica == who => {
                let asked = self.asked.entry(who).or_default();
                *asked = change.body.view.max(*asked);
                return Ok(());
            }
            Message::Rejoin(_) => {
                // Nothing that it said in its earlier life counts.
                self.asked.remove(&who);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let left = matches!(kind, "prepare" | "commit") && self.asked.get(&who).is_some_and(|asked| view < *asked);
        if left {
            return Err(format!("{who:?} said {kind} {view:?} {seq:?} after it had asked for {:?}", self.asked[&who]));
        }
        let since = self.committed_in.get(&seq).filter(|since| kind == "commit" && **since <= view);
        if since.is_some() && self.executed.get(&seq).is_some_and(|executed| *executed != digest) {
            return Err(format!(
                "{who:?} commits {digest:?} in {view:?} at {seq:?}, where another was committed before"
            ));
        }
        let earlier = *self.said.entry((who, kind, view, seq)).or_insert(digest);
        if earlier == digest {
            return Ok(());
        }
        Err(format!("{who:?} said {kind} {view:?} {seq:?} of {earlier:?}, and of {digest:?}"))
    }

    /// A correct replica executes what was agreed on for a place.
    pub(crate) fn executed(&mut self, seq: Seq, digest: Digest) -> Verdict {
        same("executed", seq, *self.executed.entry(seq).or_insert(digest), digest)
    }

    /// It committed there in this view: nothing else can prepare there from then on.
    pub(crate) fn committed(&mut self, seq: Seq, view: View) {
        let first = self.committed_in.entry(seq).or_insert(view);
        *first = view.min(*first);
    }

    /// A checkpoint is stable at a correct replica.
    pub(crate) fn stable(&mut self, seq: Seq, digest: Digest) -> Verdict {
        same("stable", seq, *self.stable.entry(seq).or_insert(digest), digest)
    }

    /// A correct replica's history is a prefix of the one on the tape.
    pub(crate) fn state(&self, who: ReplicaId, applied: u64, chain: Digest, tape: &Tape) -> Verdict {
        if let Some(place) = tape.conflict {
            return Err(format!("{who:?} applied something else than others did at place {place} of the history"));
        }
        let expected = match applied.checked_sub(1) {
            None => Some(Digest::default()),
            Some(last) => tape.entries.get(last as usize).map(|entry| entry.chain),
        };
        match expected {
            Some(expected) if expected == chain => Ok(()),
            Some(_) => Err(format!("{who:?} has another history of {applied} operations than the others")),
            None => Err(format!("{who:?} has {applied} operations; nobody applied more than {}", tape.entries.len())),
        }
    }
}

fn same(what: &str, seq: Seq, first: Digest, digest: Digest) -> Verdict {
    if first == digest { Ok(()) } else { Err(format!("{what} at {seq:?}: {first:?} here, {digest:?} there")) }
}

#[cfg(test)]
mod tests {
    use base::{Signature, Signed};
    use bft::{Commit, ViewChange};

    use super::*;

    #[test]
    fn two_digests_for_a_place_are_caught() {
        let mut agreement = Agreement::default();
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        assert!(agreement.executed(Seq(1), one).is_ok() && agreement.executed(Seq(2), other).is_ok());
        assert!(agreement.executed(Seq(1), other).is_err());
        agreement.committed(Seq(1), View(2));
        let commit = |view, digest| Message::Commit(Commit { view: View(view), seq: Seq(1), digest });
        assert!(agreement.said(ReplicaId(0), &commit(1, other)).is_ok(), "in a view before");
        assert!(agreement.said(ReplicaId(0), &commit(3, one)).is_ok());
        assert!(agreement.said(ReplicaId(1), &commit(3, other)).is_err());
        assert!(agreement.stable(Seq(4), one).is_ok());
        assert!(agreement.stable(Seq(4), other).is_err());
    }

    #[test]
    fn a_second_vote_is_caught() {
        let mut agreement = Agreement::default();
        let commit =
            |view, digest| Message::Commit(Commit { view: View(view), seq: Seq(3), digest: Digest([digest; 32]) });
        assert!(agreement.said(ReplicaId(1), &commit(0, 1)).is_ok());
        assert!(agreement.said(ReplicaId(1), &commit(0, 1)).is_ok());
        assert!(agreement.said(ReplicaId(2), &commit(0, 2)).is_ok());
        assert!(agreement.said(ReplicaId(1), &commit(1, 2)).is_ok());
        assert!(agreement.said(ReplicaId(1), &commit(0, 2)).is_err());
    }

    #[test]
    fn a_vote_in_a_view_that_was_left_is_caught() {
        let mut agreement = Agreement::default();
        let who = ReplicaId(1);
        let commit = |view| Message::Commit(Commit { view: View(view), seq: Seq(3), digest: Digest::default() });
        let change = ViewChange { view: View(2), stable: None, prepared: Vec::new(), replica: who, life: 0 };
        let signed = Signed { body: change, signature: Signature([0; 64]) };
        assert!(agreement.said(who, &commit(1)).is_ok());
        assert!(agreement.said(who, &Message::ViewChange(signed)).is_ok());
        assert!(agreement.said(who, &commit(1)).is_err());
        assert!(agreement.said(who, &commit(2)).is_ok());
        assert!(agreement.said(ReplicaId(2), &commit(1)).is_ok());
    }

    #[test]
    fn a_state_from_nowhere_is_caught() {
        let agreement = Agreement::default();
        let mut tape = Tape::default();
        assert!(agreement.state(ReplicaId(0), 0, Digest::default(), &tape).is_ok());
        assert!(agreement.state(ReplicaId(0), 1, Digest([1; 32]), &tape).is_err());
        tape.conflict = Some(0);
        assert!(agreement.state(ReplicaId(0), 0, Digest::default(), &tape).is_err());
    }
}
