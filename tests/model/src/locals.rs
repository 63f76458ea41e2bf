//! States of single replicas, each once, by number, and how each reacts to each input.
//!
//! The shipped core runs here, and only here: once for each state and input, whatever the rest of
//! the group did meanwhile. Its reaction is remembered.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use base::{Digest, Effects, Protocol as _, ReplicaId, Seq, Signed, Time, Verified};
use bft::{
    Batch, Committed, Context, Event, Input as CoreInput, Message, NewView, Record, Replica, Standing, ViewChange,
};

use crate::cell::Cell;
use crate::keys::{N, Symbolic};
use crate::messages::{Input, Messages, RESTART, SUSPECT};
use crate::print::{self, Print};
use crate::setup::{EARLIER, NOW, Restarts, Setup};

type Core = Replica<Cell>;

/// A replica at one moment.
struct Local {
    me: ReplicaId,
    /// `None`: it stopped, by an assertion or because its own records did not restore it.
    core: Option<Core>,
    /// What it persisted so far.
    records: Arc<Vec<Record>>,
    /// The print of what these records restore.
    restored: Print,
    view: u64,
}

/// What an input comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Nothing.
    Same,
    /// It leads out of bounds, and is not followed.
    Beyond,
    /// The replica is in another state, and nobody can know.
    Silent(u32),
    /// Something was said or made durable: see [`Locals::outcome`].
    Seen(u32),
}

/// A state after something was said or made durable, and what was said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    /// The state, before a restart if there is one after every step.
    pub(crate) awake: u32,
    /// The state after that.
    pub(crate) next: u32,
    pub(crate) said: Vec<Input>,
}

/// All states of replicas met so far.
pub(crate) struct Locals {
    setup: Setup,
    context: Context,
    choices: std::collections::BTreeMap<(Seq, Digest), (Time, Batch)>,
    list: Vec<Local>,
    numbers: HashMap<(ReplicaId, Print, Print), u32>,
    /// By state and input; shorter rows where nothing was asked yet.
    reactions: Vec<Vec<Option<Reaction>>>,
    outcomes: Vec<Outcome>,
    /// How often the core ran.
    pub(crate) runs: u64,
}

impl Locals {
    pub(crate) fn new(setup: Setup) -> Locals {
        Locals {
            context: setup.params(ReplicaId(0)).context(),
            choices: setup.choices(),
            setup,
            list: Vec::new(),
            numbers: HashMap::new(),
            reactions: Vec::new(),
            outcomes: Vec::new(),
            runs: 0,
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn choices(&self) -> &std::collections::BTreeMap<(Seq, Digest), (Time, Batch)> {
        &self.choices
    }

    pub(crate) fn outcome(&self, seen: u32) -> &Outcome {
        &self.outcomes[seen as usize]
    }

    /// Whether a correct replica enters this new view, made of these view changes.
    pub(crate) fn enters(&self, new_view: &Signed<NewView>, changes: &[&Signed<ViewChange>]) -> bool {
        let from = new_view.body.view.primary(N);
        let me = self.setup.honest().find(|me| *me != from).expect("somebody is honest");
        let Ok(mut core) = Core::restore((self.setup.params(me), Cell::default()), Vec::new()) else { return false };
        let changes = changes.iter().map(|change| Message::ViewChange((*change).clone()));
        for message in core::iter::once(Message::NewView(new_view.clone())).chain(changes) {
            let Ok(message) = Verified::check(message, &from, &self.context, &Symbolic) else { return false };
            core.handle(NOW, CoreInput::Peer { from, message }, &mut Effects::new());
        }
        let status = core.status();
        status.view == new_view.body.view && status.status == Standing::Normal
    }

    /// Whether it stopped by its own fault.
    pub(crate) fn is_broken(&self, local: u32) -> bool {
        self.list[local as usize].core.is_none()
    }

    /// A replica that has just started for the first time.
    pub(crate) fn start(&mut self, me: ReplicaId, messages: &mut Messages) -> Outcome {
        let nothing = Local { me, core: None, records: Arc::default(), restored: 0, view: 0 };
        let step = self.run(&nothing, RESTART, messages).expect("it starts");
        self.admit(me, step, messages)
    }

    /// What an input comes to in a state.
    pub(crate) fn react(&mut self, local: u32, input: Input, messages: &mut Messages) -> Reaction {
        let row = &mut self.reactions[local as usize];
        if row.len() <= input as usize {
            row.resize(input as usize + 1, None);
        }
        if let Some(reaction) = row[input as usize] {
            return reaction;
        }
        let reaction = self.compute(local, input, messages);
        self.reactions[local as usize][input as usize] = Some(reaction);
        reaction
    }

    fn compute(&mut self, local: u32, input: Input, messages: &mut Messages) -> Reaction {
        let before = &self.list[local as usize];
        let (me, view) = (before.me, before.view);
        let idle = before.core.is_none()
            || (input == SUSPECT && view + 1 >= self.setup.views)
            || (input > RESTART && (messages.get(input).from == me || messages.get(input).verified.is_none()));
        if idle {
            return Reaction::Same;
        }
        self.runs += 1;
        let Some(step) = self.run(before, input, messages) else { return Reaction::Same };
        if step.core.as_ref().is_some_and(|core| core.status().view.0 >= self.setup.views) {
            return Reaction::Beyond;
        }
        let persisted = !step.persisted.is_empty();
        let mut outcome = self.admit(me, step, messages);
        match outcome.next {
            next if next == local && outcome.said.is_empty() => Reaction::Same,
            next if outcome.said.is_empty() && !persisted && input != RESTART => Reaction::Silent(next),
            next => {
                let again = match self.setup.restarts {
                    Restarts::Always if input != RESTART => self.react(next, RESTART, messages),
                    _ => Reaction::Same,
                };
                if let Reaction::Seen(again) = again {
                    let again = &self.outcomes[again as usize];
                    outcome.next = again.next;
                    outcome.said.extend(&again.said);
                    outcome.said.sort_unstable();
                    outcome.said.dedup();
                }
                self.outcomes.push(outcome);
                Reaction::Seen(u32::try_from(self.outcomes.len() - 1).expect("fewer outcomes"))
            }
        }
    }

    /// Runs the core; `None` if the input means nothing to it.
    fn run(&self, before: &Local, input: Input, messages: &Messages) -> Option<Step> {
        let mut fx = Effects::new();
        let core = match input {
            RESTART => {
                let records = before.records.to_vec();
                let restore = || Core::restore((self.setup.params(before.me), Cell::default()), records).ok();
                let restored = catch_unwind(AssertUnwindSafe(restore)).ok().flatten();
                restored.and_then(|mut core| {
                    let start = || {
                        core.on_deadline(NOW, &mut fx);
                        for request in self.setup.requests_at(before.me) {
                            let request = Verified::check(request, &(), &self.context, &Symbolic);
                            core.handle(NOW, CoreInput::Client(request.expect("signed")), &mut fx);
                        }
                        core
                    };
                    catch_unwind(AssertUnwindSafe(start)).ok()
                })
            }
            SUSPECT => {
                let core = before.core.as_ref()?;
                core.deadline().filter(|at| *at <= NOW)?;
                survive(core, |core| core.on_deadline(NOW, &mut fx))
            }
            message => {
                let sent = messages.get(message);
                let message = sent.verified.clone().expect("only what passes the door is delivered");
                let input = CoreInput::Peer { from: sent.from, message };
                survive(before.core.as_ref()?, |core| core.handle(NOW, input, &mut fx))
            }
        };
        // Checked by every build with debug assertions.
        let ignored = fx.persist.is_empty() && fx.send.is_empty() && matches!(&fx.events[..], [Event::Ignored(_)]);
        if ignored && !cfg!(debug_assertions) {
            return None;
        }
        let records = if fx.persist.is_empty() {
            before.records.clone()
        } else {
            Arc::new(before.records.iter().cloned().chain(fx.persist.iter().cloned()).collect())
        };
        let restored = if fx.persist.is_empty() && before.core.is_some() { Some(before.restored) } else { None };
        let sent = fx.send.into_iter().map(|send| send.message).collect();
        let mut step = Step { core, records, restored, sent, persisted: fx.persist };
        step.core.iter_mut().for_each(|core| self.rewind(before.me, core));
        if ignored && let (Some(earlier), Some(later)) = (&before.core, &step.core) {
            assert_eq!(print::of(earlier), print::of(later), "what is ignored changes nothing");
        }
        Some(step)
    }

    /// Sets all timers that run back to when they have run out: the clock is read once more, and was
    /// earlier. The input itself is ignored.
    fn rewind(&self, me: ReplicaId, core: &mut Core) {
        let message = Verified::check(Message::Gone(Seq(0)), &me, &self.context, &Symbolic).expect("nothing to check");
        core.handle(EARLIER, CoreInput::Peer { from: me, message }, &mut Effects::new());
    }

    /// Gives the new state its number, and what was said its numbers.
    fn admit(&mut self, me: ReplicaId, step: Step, messages: &mut Messages) -> Outcome {
        let mut said: Vec<Input> = Vec::new();
        for message in step.sent.into_iter().filter(|message| self.is_within(message)) {
            said.push(messages.number(me, message, &self.context));
        }
        let voucher = self.setup.vouchers.then(|| self.context.clone());
        for record in &step.persisted {
            let (committed, by_votes) = match record {
                Record::Committed(place) => {
                    let chosen = self.choices.get(&(place.seq, place.digest));
                    let (at, batch) = chosen.cloned().unwrap_or((NOW, Batch::null()));
                    (Committed { seq: place.seq, view: place.view, at, batch }, true)
                }
                Record::Learned(committed) => (committed.clone(), false),
                _ => continue,
            };
            if committed.seq.0 <= self.setup.places {
                said.push(messages.executed(me, committed, by_votes, voucher.as_ref()));
            }
        }
        said.sort_unstable();
        said.dedup();
        let restored = step.restored.unwrap_or_else(|| self.restored(me, &step.records));
        let print = step.core.as_ref().map_or(0, print::of);
        let next = u32::try_from(self.list.len()).expect("fewer states");
        let next = *self.numbers.entry((me, print, restored)).or_insert(next);
        if next as usize == self.list.len() {
            let view = step.core.as_ref().map_or(0, |core| core.status().view.0);
            self.list.push(Local { me, core: step.core, records: step.records, restored, view });
            self.reactions.push(Vec::new());
        }
        Outcome { awake: next, next, said }
    }

    /// The print of what these records restore, if that can matter.
    fn restored(&self, me: ReplicaId, records: &[Record]) -> Print {
        if self.setup.restarts == Restarts::Never {
            return 0;
        }
        let restore = || Core::restore((self.setup.params(me), Cell::default()), records.to_vec()).ok();
        catch_unwind(AssertUnwindSafe(restore)).ok().flatten().map_or(0, |core| print::of(&core))
    }

    /// Whether a message is one of those that are followed.
    fn is_within(&self, message: &Message) -> bool {
        let Setup { views, places, .. } = self.setup;
        let near = |view: base::View, seq: Seq| view.0 < views && seq.0 <= places;
        match message {
            Message::Proposal(proposal) => near(proposal.header.body.view, proposal.header.body.seq),
            Message::Prepare(prepare) => near(prepare.body.view, prepare.body.seq),
            Message::Commit(commit) => near(commit.view, commit.seq),
            Message::ViewChange(change) => change.body.view.0 < views,
            Message::NewView(new_view) => new_view.body.view.0 < views,
            Message::Checkpoint(checkpoint) => self.setup.checkpoints && checkpoint.body.seq.0 < places,
            _ => false,
        }
    }
}

/// What a run of the core gave.
struct Step {
    core: Option<Core>,
    records: Arc<Vec<Record>>,
    /// The print of what the records restore, if they did not change.
    restored: Option<Print>,
    sent: Vec<Message>,
    persisted: Vec<Record>,
}

/// A copy of the core after `act`; `None` if an assertion failed.
fn survive(core: &Core, act: impl FnOnce(&mut Core)) -> Option<Core> {
    let mut core = core.clone();
    catch_unwind(AssertUnwindSafe(move || {
        act(&mut core);
        core
    }))
    .ok()
}
