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
    executed: BTreeMap<Seq, Digest>,
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
            _ => return Ok(()),
        };
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
    use bft::Commit;

    use super::*;

    #[test]
    fn two_digests_for_a_place_are_caught() {
        let mut agreement = Agreement::default();
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        assert!(agreement.executed(Seq(1), one).is_ok() && agreement.executed(Seq(2), other).is_ok());
        assert!(agreement.executed(Seq(1), other).is_err());
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
    fn a_state_from_nowhere_is_caught() {
        let agreement = Agreement::default();
        let mut tape = Tape::default();
        assert!(agreement.state(ReplicaId(0), 0, Digest::default(), &tape).is_ok());
        assert!(agreement.state(ReplicaId(0), 1, Digest([1; 32]), &tape).is_err());
        tape.conflict = Some(0);
        assert!(agreement.state(ReplicaId(0), 0, Digest::default(), &tape).is_err());
    }
}
