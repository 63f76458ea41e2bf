//! The trace of a run: a hash over everything that happened, and, if somebody reads along, a line each.

use base::{Digest, Time};
use bft::Message;

use crate::clock::START;

/// What happened, in order.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    aloud: bool,
}

impl Trace {
    /// Nothing happened yet. `aloud`: every event is printed.
    pub(crate) fn new(aloud: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, aloud }
    }

    /// Something happened, which these numbers tell from all else that might have.
    pub(crate) fn note(&mut self, now: Time, what: &[u64], text: impl FnOnce() -> String) {
        self.mix(now.0);
        what.iter().for_each(|number| self.mix(*number));
        if self.aloud {
            println!("{:>12.6}  {}", now.since(START).as_secs_f64(), text());
        }
    }

    /// The hash of all so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, number: u64) {
        let mixed = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = mixed ^ (mixed >> 29);
    }
}

/// A message in three numbers.
pub(crate) fn numbers(message: &Message) -> [u64; 3] {
    match message {
        Message::Proposal(proposal) => {
            let header = proposal.header.body;
            [1, header.view.0 << 32 | header.seq.0, start(header.batch)]
        }
        Message::Prepare(prepare) => [2, prepare.body.view.0 << 32 | prepare.body.seq.0, start(prepare.body.digest)],
        Message::Commit(commit) => [3, commit.view.0 << 32 | commit.seq.0, start(commit.digest)],
        Message::Checkpoint(checkpoint) => [4, checkpoint.body.seq.0, start(checkpoint.body.digest)],
        Message::Status(status) => [5, status.round << 32 | status.last_executed.0, status.low_water_mark.0],
        Message::Committed(committed) => [6, committed.seq.0, start(committed.batch.digest())],
        Message::Forward(request) => [7, request.body.session, request.body.timestamp],
        Message::ViewChange(change) => [8, change.body.view.0, u64::from(change.body.replica.0)],
        Message::NewView(new_view) => [9, new_view.body.view.0, 0],
        #[allow(unreachable_patterns, reason = "the core is learning new messages")]
        _ => [10, 0, 0],
    }
}

/// A message in a few words.
pub(crate) fn words(message: &Message) -> String {
    match message {
        Message::Proposal(proposal) => {
            let header = proposal.header.body;
            let requests = proposal.batch.requests().len();
            format!("pre-prepare {:?} {:?} {:?} of {requests}", header.view, header.seq, header.digest())
        }
        Message::Prepare(vote) => format!("prepare {:?} {:?} {:?}", vote.body.view, vote.body.seq, vote.body.digest),
        Message::Commit(vote) => format!("commit {:?} {:?} {:?}", vote.view, vote.seq, vote.digest),
        Message::Checkpoint(vote) => format!("checkpoint {:?} {:?}", vote.body.seq, vote.body.digest),
        Message::Status(status) => format!(
            "status {:?} executed {:?} stable {:?} beyond {:?}",
            status.view, status.last_executed, status.low_water_mark, status.slots
        ),
        Message::Committed(committed) => format!("committed {:?} {:?}", committed.seq, committed.digest()),
        Message::Forward(request) => format!("forward {}/{}", request.body.session, request.body.timestamp),
        Message::ViewChange(change) => format!("view-change {:?}", change.body.view),
        Message::NewView(new_view) => format!("new-view {:?}", new_view.body.view),
        #[allow(unreachable_patterns, reason = "the core is learning new messages")]
        other => format!("{other:?}"),
    }
}

fn start(digest: Digest) -> u64 {
    u64::from_le_bytes(digest.0[..8].try_into().expect("eight bytes"))
}
