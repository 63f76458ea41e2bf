//! What one replica can do next, of all that was ever said to it.
//!
//! A step is a few deliveries that nobody notices (votes that don't make a quorum yet), and then one
//! thing that others do. Nothing is lost by that: until then nobody else depends on this replica's
//! state, and whatever was said can still be delivered later. For the same reason a delivery that
//! changes nothing about the thing done is not part of a step: it can come after it.

use std::collections::{BTreeSet, HashMap, HashSet};

use bft::Message;

use crate::locals::{Locals, Outcome, Reaction};
use crate::messages::{Input, Messages, RESTART, SUSPECT};
use crate::setup::{Restarts, Setup};

/// A step of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its outcome: see [`Locals::outcome`].
    pub(crate) seen: u32,
    /// What was delivered, and last what made it visible.
    pub(crate) path: Vec<Input>,
}

/// A state that nobody notices, on the way to a step.
struct Node {
    local: u32,
    depth: usize,
    /// From which nodes one delivery leads here, and which.
    from: Vec<(usize, Input)>,
}

/// All steps from a state, if these messages were said.
///
/// What is delivered in one step is all of one kind, votes or what changes views: no vote makes a
/// difference to what a view change brings about and the other way round, but for votes that came
/// before their view began; those may as well come after.
pub(crate) fn of(local: u32, said: &[Input], setup: &Setup, locals: &mut Locals, messages: &mut Messages) -> Vec<Step> {
    let is_of_views =
        |input: &Input| matches!(messages.get(*input).message, Message::ViewChange(_) | Message::NewView(_));
    let (mut views, votes): (Vec<Input>, Vec<Input>) = said.iter().copied().partition(is_of_views);
    views.push(SUSPECT);
    views.extend((setup.restarts == Restarts::Sometimes).then_some(RESTART));
    let families = if setup.mixed { vec![[votes, views].concat()] } else { vec![votes, views] };
    let mut steps: Vec<Step> = Vec::new();
    let mut known = HashSet::new();
    for family in families {
        for step in of_family(local, &family, locals, messages) {
            if known.insert(locals.outcome(step.seen).clone()) {
                steps.push(step);
            }
        }
    }
    steps
}

fn of_family(local: u32, inputs: &[Input], locals: &mut Locals, messages: &mut Messages) -> Vec<Step> {
    let mut nodes = vec![Node { local, depth: 0, from: Vec::new() }];
    let mut places = HashMap::from([(local, 0)]);
    let mut seen = Vec::new();
    let mut at = 0;
    while at < nodes.len() {
        let Node { local, depth, .. } = nodes[at];
        for &input in inputs {
            match locals.react(local, input, messages) {
                Reaction::Same | Reaction::Beyond => {}
                Reaction::Silent(next) => {
                    let new = nodes.len();
                    let place = *places.entry(next).or_insert(new);
                    if place == new {
                        nodes.push(Node { local: next, depth: depth + 1, from: Vec::new() });
                    }
                    if nodes[place].depth == depth + 1 {
                        nodes[place].from.push((at, input));
                    }
                }
                Reaction::Seen(outcome) => seen.push((at, input, outcome)),
            }
        }
        at += 1;
    }
    seen.retain(|&(at, input, outcome)| !can_wait(&nodes, at, input, outcome, locals, messages));
    seen.into_iter().map(|(at, input, seen)| Step { seen, path: path(&nodes, at, input) }).collect()
}

/// Whether the same comes of it if some last delivery before it comes after it, or never.
fn can_wait(nodes: &[Node], at: usize, input: Input, seen: u32, locals: &mut Locals, messages: &mut Messages) -> bool {
    nodes[at].from.iter().any(|&(before, delivery)| {
        let Reaction::Seen(without) = locals.react(nodes[before].local, input, messages) else { return false };
        if without == seen {
            return true;
        }
        let (without, with) = (locals.outcome(without).clone(), locals.outcome(seen).clone());
        match locals.react(without.next, delivery, messages) {
            _ if without == with => true,
            Reaction::Silent(next) => next == with.next && without.said == with.said,
            Reaction::Seen(then) => {
                let then = locals.outcome(then);
                let both: BTreeSet<_> = without.said.iter().chain(&then.said).collect();
                then.next == with.next && both.into_iter().eq(&with.said)
            }
            Reaction::Same | Reaction::Beyond => false,
        }
    })
}

fn path(nodes: &[Node], at: usize, last: Input) -> Vec<Input> {
    let (mut path, mut at) = (vec![last], at);
    while let Some((before, delivery)) = nodes[at].from.first() {
        path.push(*delivery);
        at = *before;
    }
    path.reverse();
    path
}

/// Whether a replica that restarted after a step becomes what it was before, by what it heard being
/// said to it again.
pub(crate) fn comes_back(step: &Step, locals: &mut Locals, messages: &mut Messages) -> bool {
    let Outcome { awake, next, .. } = *locals.outcome(step.seen);
    let again = step.path.iter().filter(|input| **input > RESTART).try_fold(next, |local, input| {
        match locals.react(local, *input, messages) {
            Reaction::Same => Some(local),
            Reaction::Silent(later) => Some(later),
            Reaction::Beyond | Reaction::Seen(_) => None,
        }
    });
    again == Some(awake)
}
