//! Sets of what honest replicas said, each once, by number; and the properties, all of which are
//! about what was said, so that each set is judged once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::{Digest, ReplicaId, Seq, Time};
use bft::Batch;

use crate::messages::{Input, Messages, Said};

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// No two honest replicas execute different batches at one place.
    Agreement,
    /// What is executed is what a client asked for, or the null request.
    Validity,
    /// What is executed at a place prepares there in every later view, if anything does; in one view
    /// only one thing prepares at a place.
    Carried,
    /// No honest replica votes twice and differently, restarted or not; none votes in a view that it
    /// left; what it says it prepared is what it voted to commit.
    OneVote,
    /// The core's own assertions hold, its records restore it, and it is never at odds with the others'
    /// checkpoints.
    Sound,
}

/// All sets met so far.
#[derive(Default)]
pub(crate) struct Nets {
    list: Vec<Net>,
    numbers: HashMap<Arc<[Input]>, u32>,
}

struct Net {
    said: Arc<[Input]>,
    /// The first rule broken in it.
    broken: Option<Rule>,
}

impl Nets {
    pub(crate) fn said(&self, net: u32) -> &[Input] {
        &self.list[net as usize].said
    }

    pub(crate) fn broken(&self, net: u32) -> Option<Rule> {
        self.list[net as usize].broken
    }

    /// The number of a set.
    pub(crate) fn number(
        &mut self,
        mut said: Vec<Input>,
        messages: &Messages,
        choices: &BTreeMap<(Seq, Digest), (Time, Batch)>,
    ) -> u32 {
        said.sort_unstable();
        said.dedup();
        let said: Arc<[Input]> = said.into();
        if let Some(number) = self.numbers.get(&said) {
            return *number;
        }
        let number = u32::try_from(self.list.len()).expect("fewer sets");
        let broken = judge(&said, messages, choices);
        self.numbers.insert(said.clone(), number);
        self.list.push(Net { said, broken });
        number
    }

    /// A set with more said.
    pub(crate) fn grown(
        &mut self,
        net: u32,
        more: &[Input],
        messages: &Messages,
        choices: &BTreeMap<(Seq, Digest), (Time, Batch)>,
    ) -> u32 {
        let said = self.said(net);
        if more.iter().all(|input| said.binary_search(input).is_ok()) {
            return net;
        }
        let all = said.iter().chain(more).copied().collect();
        self.number(all, messages, choices)
    }
}

fn judge(said: &[Input], messages: &Messages, choices: &BTreeMap<(Seq, Digest), (Time, Batch)>) -> Option<Rule> {
    let all: Vec<_> = said.iter().map(|input| messages.get(*input)).map(|sent| (sent.from, &sent.said)).collect();
    let unknown = |said: &Said| match said {
        Said::Executed { seq, digest, .. } => !choices.contains_key(&(*seq, *digest)),
        _ => false,
    };
    if all.iter().any(|(_, said)| unknown(said)) {
        return Some(Rule::Validity);
    }
    all.iter().flat_map(|one| all.iter().map(move |other| (one, other))).find_map(|(one, other)| conflict(one, other))
}

/// The rule that two statements break together.
fn conflict((by, one): &(ReplicaId, &Said), (other_by, other): &(ReplicaId, &Said)) -> Option<Rule> {
    use Said::{Began, Checkpoint, Committed, Executed, Left, Prepared, Proposed};
    let same = by == other_by;
    match (one, other) {
        (Executed { seq: s, digest: d, .. }, Executed { seq, digest, .. }) => {
            (s == seq && d != digest).then_some(Rule::Agreement)
        }
        (
            Executed { view: v, seq: s, digest: d, by_votes: true } | Committed { view: v, seq: s, digest: d },
            Committed { view, seq, digest },
        ) if s == seq && d != digest => {
            let (executed, at_once) = (matches!(one, Executed { .. }), v == view);
            let twice = same && at_once && !executed;
            let wrong = at_once || (executed && view > v);
            if twice { Some(Rule::OneVote) } else { wrong.then_some(Rule::Carried) }
        }
        (Proposed { view: v, seq: s, digest: d }, Proposed { view, seq, digest })
        | (Prepared { view: v, seq: s, digest: d }, Prepared { view, seq, digest }) => {
            (same && (v, s) == (view, seq) && d != digest).then_some(Rule::OneVote)
        }
        (Checkpoint { seq: s, digest: d }, Checkpoint { seq, digest }) => {
            (s == seq && d != digest).then_some(if same { Rule::OneVote } else { Rule::Agreement })
        }
        (Began { view: v, proposals: p }, Began { view, proposals }) => {
            (same && v == view && p != proposals).then_some(Rule::OneVote)
        }
        (Began { view: v, proposals }, Proposed { view, seq, digest }) => {
            let other = proposals.iter().any(|(place, chosen)| place == seq && chosen != digest);
            (same && v == view && other).then_some(Rule::OneVote)
        }
        (Left { to: v, prepared: p, .. }, Left { to, prepared, .. }) => {
            (same && v == to && p != prepared).then_some(Rule::OneVote)
        }
        (Left { to, low, prepared }, Committed { view, seq, digest }) => {
            let says = |(place, in_view, what): &(Seq, base::View, Digest)| {
                place == seq && (in_view > view || (in_view == view && what == digest))
            };
            let silent = view < to && seq > low && !prepared.iter().any(says);
            (same && silent).then_some(Rule::OneVote)
        }
        _ => None,
    }
}
