//! The replica: what it holds, and which handler an input goes to.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Effects, Protocol, Quorums, ReplicaId, Seq, StateMachine, Time, Verified, View};

use crate::archive::{Retained, Vouchers};
use crate::catchup::{Pacing, Peers};
use crate::checkpoint::Checkpoints;
use crate::event::{Event, Evidence, Ignored, ReplicaStatus, Standing};
use crate::floor::Floor;
use crate::log::Log;
use crate::mark::Marks;
use crate::message::Message;
use crate::pace::Pace;
use crate::params::Params;
use crate::queue::Queue;
use crate::record::{Divergence, Record};
use crate::rejoin::{Lives, Rejoining};
use crate::request::ClientRequest;
use crate::restore::Corrupt;
use crate::table::Table;
use crate::transfer::Transfer;
use crate::views::Views;

/// What the world hands to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message of another replica, checked, over an authenticated link.
    Peer {
        /// Whose link it came over.
        from: ReplicaId,
        /// The message.
        message: Verified<Message>,
    },
    /// A client's request, checked, over whichever link.
    Client(Verified<ClientRequest>),
}

/// One of `3f + 1` replicas of the state machine `S`.
///
/// Drive it as [`Protocol`] says. It asks to be woken at once after [`Protocol::restore`]: it then
/// tells the others where it stands, and they send what it lacks.
#[derive(Clone, Debug)]
pub struct Replica<S> {
    pub(crate) params: Arc<Params>,
    pub(crate) quorums: Quorums,
    /// Set once this replica's state is not the others'.
    pub(crate) divergence: Option<Divergence>,
    /// The view it is in, or asks for.
    pub(crate) view: View,
    pub(crate) views: Views,
    pub(crate) log: Log,
    pub(crate) floor: Floor,
    pub(crate) queue: Queue,
    /// Everything up to here is executed.
    pub(crate) last_executed: Seq,
    /// The agreed time of the last executed batch.
    pub(crate) last_at: Time,
    pub(crate) pace: Pace,
    pub(crate) state: S,
    pub(crate) table: Table,
    pub(crate) retained: Retained,
    pub(crate) vouchers: Vouchers,
    pub(crate) checkpoints: Checkpoints<S>,
    pub(crate) marks: Marks<S>,
    pub(crate) transfer: Option<Transfer<S>>,
    pub(crate) lives: Lives,
    pub(crate) rejoining: Option<Rejoining>,
    pub(crate) peers: Peers,
    pub(crate) pacing: Pacing,
    pub(crate) counts: Counts,
}

/// How often strangers were wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ignored: BTreeMap<Ignored, u64>,
    pub(crate) misbehaved: BTreeMap<ReplicaId, u64>,
}

impl<S: StateMachine> Protocol for Replica<S> {
    type Corrupt = Corrupt;
    type Event = Event;
    type Input = Input;
    type Message = Message;
    /// The parameters, and the state machine before its first operation.
    type Params = (Params, S);
    type Record = Record;

    fn restore((params, genesis): (Params, S), records: Vec<Record>) -> Result<Self, Corrupt> {
        crate::restore::restore(params, genesis, records)
    }

    fn handle(&mut self, now: Time, input: Input, fx: &mut Effects<Self>) {
        if self.divergence.is_some() {
            return self.ignore(Ignored::Diverged, fx);
        }
        match input {
            Input::Client(_) if self.is_mute() => self.ignore(Ignored::Rejoining, fx),
            Input::Client(request) => self.on_request(now, request.into_inner().0, None, fx),
            Input::Peer { from, message } => self.on_message(now, from, message.into_inner(), fx),
        }
        self.set_view_timer(now);
        self.hasten(now);
    }

    fn deadline(&self) -> Option<Time> {
        let wake = self.view_deadline().map_or(self.pacing.wake, |at| at.min(self.pacing.wake));
        self.divergence.is_none().then_some(wake)
    }

    fn on_deadline(&mut self, now: Time, fx: &mut Effects<Self>) {
        if self.divergence.is_some() {
            return;
        }
        if self.view_deadline().is_some_and(|at| at <= now) {
            self.on_view_timeout(now, fx);
        }
        if self.pacing.wake <= now {
            self.on_status_due(now, fx);
        }
        self.set_view_timer(now);
        self.hasten(now);
    }
}

impl<S: StateMachine> Replica<S> {
    fn on_message(&mut self, now: Time, from: ReplicaId, message: Message, fx: &mut Effects<Self>) {
        if from == self.params.me || usize::from(from.0) >= self.quorums.n() {
            return self.ignore(Ignored::NotAPeer, fx);
        }
        let is_vote =
            matches!(message, Message::Proposal(_) | Message::Prepare(_) | Message::Commit(_) | Message::Forward(_));
        if is_vote && self.is_mute() {
            return self.ignore(Ignored::Rejoining, fx);
        }
        match message {
            Message::Proposal(proposal) => self.on_proposal(now, proposal, fx),
            Message::Prepare(prepare) => self.on_prepare(now, prepare, fx),
            Message::Commit(commit) => self.on_commit(now, from, commit, fx),
            Message::Checkpoint(checkpoint) => self.on_checkpoint(now, checkpoint, fx),
            Message::Status(status) => self.on_status(now, from, status, fx),
            Message::Committed(committed) => self.on_committed(now, from, committed, fx),
            Message::Forward(request) => self.on_request(now, request, Some(from), fx),
            Message::ViewChange(change) => self.on_view_change(now, change, fx),
            Message::NewView(new_view) => self.on_new_view(now, from, new_view, fx),
            Message::Ask(want) => self.on_ask(now, from, &want, fx),
            Message::Body(body) => self.on_body(now, body, fx),
            Message::Stable(proof) => self.on_stable(now, proof, fx),
            Message::Head(head) => self.on_head(now, from, head, fx),
            Message::Part(part) => self.on_part(now, from, part, fx),
            Message::Gone(seq) => self.on_gone(now, from, seq, fx),
            Message::Rejoin(rejoin) => self.on_rejoin(now, rejoin, fx),
            Message::Welcome(welcome) => self.on_welcome(now, from, welcome, fx),
            Message::Mark(mark) => self.on_mark(mark, fx),
        }
    }

    /// A replica that has done nothing yet.
    pub(crate) fn new(params: Params, genesis: S) -> Replica<S> {
        let quorums = params.quorums();
        Replica {
            quorums,
            divergence: None,
            view: View(0),
            views: Views::default(),
            log: Log::new(params.window),
            floor: Floor::default(),
            queue: Queue::default(),
            last_executed: Seq(0),
            last_at: Time::ZERO,
            pace: Pace::default(),
            state: genesis,
            table: Table::default(),
            retained: Retained::default(),
            vouchers: Vouchers::default(),
            checkpoints: Checkpoints::default(),
            marks: Marks::default(),
            transfer: None,
            lives: Lives::default(),
            rejoining: None,
            peers: Peers::default(),
            pacing: Pacing::default(),
            counts: Counts::default(),
            params: Arc::new(params),
        }
    }

    /// The replicated state, with everything executed so far.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// How the replica is doing.
    pub fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            view: self.view,
            status: match self.divergence {
                Some(_) => Standing::Diverged,
                None if self.is_mute() => Standing::Rejoining,
                None if !self.views.active => Standing::ChangingView,
                None => Standing::Normal,
            },
            last_executed: self.last_executed,
            low_water_mark: self.log.low(),
            high_water_mark: self.log.high(),
            pending: self.queue.len(),
            in_flight: self.in_flight(),
            behind: self.peers.behind,
            ignored: self.counts.ignored.clone(),
            misbehaved: self.counts.misbehaved.clone(),
        }
    }

    /// Whether this is the primary of the view it is in, or asks for.
    pub(crate) fn is_primary(&self) -> bool {
        self.params.is_primary(self.view)
    }

    /// This replica's state is not the others'.
    pub(crate) fn diverge(&mut self, divergence: Divergence, fx: &mut Effects<Self>) {
        fx.persist.push(Record::Diverged(divergence));
        fx.events.push(Event::Diverged(divergence));
        self.divergence = Some(divergence);
    }

    pub(crate) fn ignore(&mut self, why: Ignored, fx: &mut Effects<Self>) {
        *self.counts.ignored.entry(why).or_default() += 1;
        fx.events.push(Event::Ignored(why));
    }

    pub(crate) fn accuse(&mut self, who: ReplicaId, evidence: Evidence, fx: &mut Effects<Self>) {
        *self.counts.misbehaved.entry(who).or_default() += 1;
        fx.events.push(Event::Misbehaved { who, evidence });
    }
}
