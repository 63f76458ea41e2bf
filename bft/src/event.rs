//! What a replica tells its own node: answers for clients, progress, and what strangers did wrong.

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Digest, PublicKey, ReplicaId, Seq, Signed, View};

use crate::message::{Checkpoint, PrePrepare, Prepare};
use crate::record::Divergence;
use crate::request::Reply;
use crate::view_change::NewView;

/// Something a node should know, or pass on to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An answer for a client, if the node has a link to it.
    Reply {
        /// The principal.
        client: PublicKey,
        /// Which of its sessions.
        session: u64,
        /// The answer.
        reply: Reply,
    },
    /// A batch was executed.
    Executed {
        /// Its place in the order.
        seq: Seq,
        /// How many of its requests were executed here and now; the others were duplicates or refused.
        requests: usize,
    },
    /// A checkpoint became stable: the low water mark moved there.
    StableCheckpoint {
        /// The checkpoint's place.
        seq: Seq,
        /// Its digest.
        digest: Digest,
    },
    /// `2f + 1` replicas have signed the state here at a mark: reads can be proven from it.
    Marked {
        /// Its place.
        seq: Seq,
    },
    /// An input was ignored. Normal on a network that loses, repeats and reorders.
    Ignored(Ignored),
    /// A replica did what no correct replica does.
    Misbehaved {
        /// Which replica.
        who: ReplicaId,
        /// Signed statements, good for showing to others.
        evidence: Evidence,
    },
    /// A proposal's time is this far behind the clock. It is accepted all the same, for clocks are set back and
    /// everybody may have been down; but time catches up slowly, and nothing ends before it has (`pace`).
    TimeLags {
        /// The proposal's place.
        seq: Seq,
        /// How far behind.
        by: Duration,
    },
    /// What this replica lacks is retained by too few others: only a state transfer can help.
    Behind {
        /// How far this replica has got.
        last_executed: Seq,
        /// The first batch that others can still vouch for.
        oldest_retained: Seq,
    },
    /// A checkpoint was fetched from peers and is the state here now.
    Transferred {
        /// Its place.
        seq: Seq,
        /// Parts that were fetched: those that differed.
        parts: u64,
    },
    /// This replica, which had lost its log, votes again.
    Rejoined {
        /// The number of its life.
        life: u64,
    },
    /// The primary is suspected, here or by `f + 1` others: this replica votes no more in its view.
    LeftView {
        /// The view it asks for.
        asked_for: View,
    },
    /// A new view has begun.
    EnteredView {
        /// The view.
        view: View,
    },
    /// This replica's state is not that of `2f + 1` others: it no longer takes part.
    Diverged(Divergence),
}

/// Why an input was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// It is already known.
    Duplicate,
    /// It is about something long done.
    Stale,
    /// Its place is not between the water marks (`h < n <= h + L`).
    OutOfWindow,
    /// It belongs to another view.
    OtherView,
    /// It comes from this replica itself, or from one not in the group.
    NotAPeer,
    /// It is a prepare by the primary, whose proposal says it all.
    PrepareByPrimary,
    /// The batch is not the one that the header names.
    WrongBatch,
    /// The proposed time is before that of an earlier place, or after that of a later one.
    TimeNotMonotone,
    /// The proposed time is too far ahead of the clock.
    TimeAhead,
    /// The proposed time is too far behind the clock, and this replica has accepted none before.
    TimeBehind,
    /// The proposed time goes on too fast, or too much of it passes between two proposals at once.
    TimeTooFast,
    /// It says otherwise than what the sender said before, or than what was executed.
    Contradiction,
    /// Its place is not one at which checkpoints are taken.
    NotACheckpoint,
    /// A part of a checkpoint that is not what its digest says.
    WrongPart,
    /// The signing key is nobody's.
    UnknownPrincipal,
    /// There is no room for it.
    Overloaded,
    /// This replica's state diverged; it takes no part.
    Diverged,
    /// This replica, or the sender, lost its log, and this has to do with votes.
    Rejoining,
}

/// What a replica signed and no correct one signs: two statements of which it signs at most one, or
/// one that is wrong in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Two proposals for one place in one view.
    TwoProposals(Box<[Signed<PrePrepare>; 2]>),
    /// Two prepares for one place in one view.
    TwoPrepares(Box<[Signed<Prepare>; 2]>),
    /// Two states at one checkpoint.
    TwoCheckpoints(Box<[Signed<Checkpoint>; 2]>),
    /// A new view that does not follow from the view changes it names.
    BadNewView(Box<Signed<NewView>>),
}

/// Whether a replica takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It takes part.
    #[default]
    Normal,
    /// It has asked for its view and waits for it to begin. It executes, and votes in no view.
    ChangingView,
    /// It lost its log. It learns, and will vote when it can't vote twice.
    Rejoining,
    /// Its state is not that of `2f + 1` others. It votes, executes and answers no more.
    Diverged,
}

/// How a replica is doing, for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The view it is in.
    pub view: View,
    /// Whether it takes part.
    pub status: Standing,
    /// Everything up to here is executed.
    pub last_executed: Seq,
    /// The stable checkpoint (h).
    pub low_water_mark: Seq,
    /// The last place it accepts (h + L).
    pub high_water_mark: Seq,
    /// Requests known and not executed.
    pub pending: usize,
    /// Proposals known and not executed.
    pub in_flight: u64,
    /// The first batch that others can vouch for, if that is beyond what this replica needs next.
    pub behind: Option<Seq>,
    /// How many inputs were ignored, by reason.
    pub ignored: BTreeMap<Ignored, u64>,
    /// How often each replica was caught misbehaving.
    pub misbehaved: BTreeMap<ReplicaId, u64>,
}
