//! Messages, each once, by number. What was said stays said: the network is a set that only grows,
//! so that repeating, reordering and delaying are free, and to lose a message is not to deliver it.

use std::collections::HashMap;

use base::{Digest, Encode as _, ReplicaId, Seq, Verified, View};
use bft::{Context, Message};

use crate::keys::Symbolic;

/// Something done to a replica: a message's number, or one of the two below.
pub(crate) type Input = u32;
/// The replica's timer runs out.
pub(crate) const SUSPECT: Input = 0;
/// The replica stops and starts from its records.
pub(crate) const RESTART: Input = 1;

/// What a message commits its sender to; the properties are about these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Proposed { view: View, seq: Seq, digest: Digest },
    Prepared { view: View, seq: Seq, digest: Digest },
    Committed { view: View, seq: Seq, digest: Digest },
    Left { to: View, low: Seq, prepared: Vec<(Seq, View, Digest)> },
    Began { view: View, proposals: Vec<(Seq, Digest)> },
    Checkpoint { seq: Seq, digest: Digest },
    Executed { view: View, seq: Seq, digest: Digest, by_votes: bool },
    Other,
}

/// A message and its sender.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) from: ReplicaId,
    pub(crate) message: Message,
    pub(crate) said: Said,
    /// As it passed the door; `None` if it does not pass, or is not delivered in this check.
    pub(crate) verified: Option<Verified<Message>>,
}

/// All messages met so far.
#[derive(Default)]
pub(crate) struct Messages {
    list: Vec<Sent>,
    numbers: HashMap<(ReplicaId, Vec<u8>), Input>,
}

impl Messages {
    pub(crate) fn get(&self, input: Input) -> &Sent {
        &self.list[(input - RESTART - 1) as usize]
    }

    /// The number of a message; a new one goes through the door.
    pub(crate) fn number(&mut self, from: ReplicaId, message: Message, context: &Context) -> Input {
        self.number_as(from, message, None, Some(context))
    }

    /// The number of the word that a replica executed something: for the properties, and a voucher if
    /// it may be delivered.
    pub(crate) fn executed(
        &mut self,
        from: ReplicaId,
        committed: bft::Committed,
        by_votes: bool,
        context: Option<&Context>,
    ) -> Input {
        let (view, seq, digest) = (committed.view, committed.seq, committed.digest());
        let said = Said::Executed { view, seq, digest, by_votes };
        self.number_as(from, Message::Committed(committed), Some(said), context)
    }

    fn number_as(&mut self, from: ReplicaId, message: Message, said: Option<Said>, context: Option<&Context>) -> Input {
        let mut name = message.to_bytes();
        name.push(u8::from(matches!(said, Some(Said::Executed { by_votes: true, .. }))));
        let next = Input::try_from(self.list.len()).expect("fewer messages") + RESTART + 1;
        *self.numbers.entry((from, name)).or_insert_with(|| {
            let admit = |context| Verified::check(message.clone(), &from, context, &Symbolic).ok();
            let verified = context.and_then(admit);
            let said = said.unwrap_or_else(|| meaning(&message));
            self.list.push(Sent { from, message, said, verified });
            next
        })
    }
}

fn meaning(message: &Message) -> Said {
    match message {
        Message::Proposal(proposal) => {
            let header = &proposal.header.body;
            Said::Proposed { view: header.view, seq: header.seq, digest: header.digest() }
        }
        Message::Prepare(prepare) => {
            Said::Prepared { view: prepare.body.view, seq: prepare.body.seq, digest: prepare.body.digest }
        }
        Message::Commit(commit) => Said::Committed { view: commit.view, seq: commit.seq, digest: commit.digest },
        Message::ViewChange(change) => Said::Left {
            to: change.body.view,
            low: change.body.low_water_mark(),
            prepared: change
                .body
                .prepared
                .iter()
                .map(|prepared| &prepared.header.body)
                .map(|header| (header.seq, header.view, header.digest()))
                .collect(),
        },
        Message::NewView(new_view) => Said::Began {
            view: new_view.body.view,
            proposals: new_view.body.proposals.iter().map(|header| (header.body.seq, header.body.digest())).collect(),
        },
        Message::Checkpoint(checkpoint) => {
            Said::Checkpoint { seq: checkpoint.body.seq, digest: checkpoint.body.digest }
        }
        _ => Said::Other,
    }
}
