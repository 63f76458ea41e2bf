//! The group as stateright sees it: the honest replicas' states and all that they said.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use stateright::{Model, Property};

use crate::keys::N;
use crate::locals::Locals;
use crate::messages::{Input, Messages, RESTART, SUSPECT};
use crate::nets::{Nets, Rule};
use crate::setup::{Restarts, Setup};
use crate::steps;
use crate::traitor::{self, Tricks};

/// A state of the group: numbers of the replicas' states (a traitor has none: it may say anything
/// at any time), and the number of the set of all that was said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    locals: [u32; N],
    net: u32,
}

/// A step of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Action {
    who: u16,
    /// Which outcome of that replica's state.
    seen: u32,
    to: State,
}

/// What numbers stand for.
pub(crate) struct Numbers {
    pub(crate) messages: Messages,
    pub(crate) locals: Locals,
    pub(crate) nets: Nets,
    lies: HashMap<u32, Arc<[Input]>>,
    different_lies: HashSet<Arc<[Input]>>,
    tricks: Tricks,
    /// Whether some replica did not become again what it was.
    gone: bool,
    /// Outcomes of the steps of a replica in a state, with a set of all that was said.
    steps: HashMap<(u32, u32), Box<[u32]>>,
}

/// A group, and what may happen to it.
pub(crate) struct Space {
    setup: Setup,
    numbers: Mutex<Numbers>,
}

impl Space {
    /// The group of this setup.
    pub(crate) fn new(setup: Setup) -> Space {
        let numbers = Numbers {
            messages: Messages::default(),
            locals: Locals::new(setup.clone()),
            nets: Nets::default(),
            lies: HashMap::new(),
            different_lies: HashSet::new(),
            tricks: Tricks::default(),
            gone: false,
            steps: HashMap::new(),
        };
        Space { setup, numbers: Mutex::new(numbers) }
    }

    pub(crate) fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().expect("nothing panics with it")
    }

    fn holds(&self, state: &State, rule: Rule) -> bool {
        let numbers = self.numbers();
        let broken = || state.locals.iter().any(|local| *local != NOBODY && numbers.locals.is_broken(*local));
        numbers.nets.broken(state.net) != Some(rule) && (rule != Rule::Sound || !(broken() || numbers.gone))
    }
}

/// In place of a traitor's state.
const NOBODY: u32 = u32::MAX;

impl Numbers {
    /// All that the traitors can say. Different sets of what was said mostly allow for the same lies.
    fn lies(&mut self, setup: &Setup, net: u32) -> Arc<[Input]> {
        let Numbers { messages, locals, nets, lies, different_lies, tricks, .. } = self;
        let make = || {
            let new = traitor::lies(setup, nets.said(net), tricks, locals, messages).into();
            different_lies.get(&new).cloned().unwrap_or_else(|| {
                different_lies.insert(Arc::clone(&new));
                new
            })
        };
        Arc::clone(lies.entry(net).or_insert_with(make))
    }

    /// The steps of a replica, from scratch. Lies come first, so that where they serve as well as the
    /// truth there are fewer ways to say the same.
    fn steps(&mut self, setup: &Setup, local: u32, net: u32) -> Vec<steps::Step> {
        let lies = self.lies(setup, net);
        let said = [&*lies, self.nets.said(net)].concat();
        steps::of(local, &said, setup, &mut self.locals, &mut self.messages)
    }

    fn outcomes(&mut self, setup: &Setup, local: u32, net: u32) -> Box<[u32]> {
        if let Some(known) = self.steps.get(&(local, net)) {
            return known.clone();
        }
        let steps = self.steps(setup, local, net);
        if setup.restarts == Restarts::Always {
            let Numbers { messages, locals, .. } = self;
            self.gone |= !steps.iter().all(|step| steps::comes_back(step, locals, messages));
        }
        let outcomes: Box<[u32]> = steps.iter().map(|step| step.seen).collect();
        self.steps.insert((local, net), outcomes.clone());
        outcomes
    }

    fn grown(&mut self, net: u32, more: &[Input]) -> u32 {
        self.nets.grown(net, more, &self.messages, self.locals.choices())
    }
}

impl Model for Space {
    type Action = Action;
    type State = State;

    fn init_states(&self) -> Vec<State> {
        let mut numbers = self.numbers();
        let Numbers { messages, locals, nets, .. } = &mut *numbers;
        let mut state = State { locals: [NOBODY; N], net: 0 };
        let mut said = Vec::new();
        for me in self.setup.honest() {
            let outcome = locals.start(me, messages);
            state.locals[usize::from(me.0)] = outcome.next;
            said.extend(outcome.said);
        }
        state.net = nets.number(said, messages, locals.choices());
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut numbers = self.numbers();
        for who in self.setup.honest() {
            let local = state.locals[usize::from(who.0)];
            for seen in numbers.outcomes(&self.setup, local, state.net) {
                let outcome = numbers.locals.outcome(seen).clone();
                let mut to = State { net: numbers.grown(state.net, &outcome.said), ..state.clone() };
                to.locals[usize::from(who.0)] = outcome.next;
                if to != *state {
                    actions.push(Action { who: who.0, seen, to });
                }
            }
        }
    }

    fn next_state(&self, _last: &State, action: Action) -> Option<State> {
        Some(action.to)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("agreement", |space: &Space, state| space.holds(state, Rule::Agreement)),
            Property::always("validity", |space: &Space, state| space.holds(state, Rule::Validity)),
            Property::always("carried", |space: &Space, state| space.holds(state, Rule::Carried)),
            Property::always("one vote", |space: &Space, state| space.holds(state, Rule::OneVote)),
            Property::always("sound", |space: &Space, state| space.holds(state, Rule::Sound)),
        ]
    }
}

impl Space {
    /// A step in words: who, what was delivered to it, what it said.
    pub(crate) fn tell(&self, from: &State, action: &Action) -> Vec<String> {
        let mut numbers = self.numbers();
        let local = from.locals[usize::from(action.who)];
        let found = numbers.steps(&self.setup, local, from.net).into_iter().find(|step| step.seen == action.seen);
        let outcome = numbers.locals.outcome(action.seen).clone();
        let word = |input: Input| match input {
            SUSPECT => "its timer runs out".to_owned(),
            RESTART => "it restarts".to_owned(),
            message => {
                let sent = numbers.messages.get(message);
                format!("of {}: {}", sent.from, crate::words::of(&sent.message))
            }
        };
        let path = found.map(|step| step.path).unwrap_or_default();
        let heard = path.into_iter().map(|input| format!("replica {}   {}", action.who, word(input)));
        let says = |input: Input| format!("    says {}", crate::words::of(&numbers.messages.get(input).message));
        heard.chain(outcome.said.iter().map(|input| says(*input))).collect()
    }

    /// How often the core ran.
    pub(crate) fn runs(&self) -> u64 {
        self.numbers().locals.runs
    }
}
