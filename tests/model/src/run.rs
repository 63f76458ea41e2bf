//! A check: stateright walks the space breadth first, and what comes of it.

use std::time::{Duration, Instant};

use stateright::{Checker as _, HasDiscoveries, Model as _};

use crate::setup::Setup;
use crate::space::Space;

/// When to stop before all is seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Steps from the beginning.
    pub depth: Option<usize>,
    /// How long.
    pub time: Option<Duration>,
    /// How many states, about.
    pub states: Option<usize>,
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Different states of the group.
    pub states: u64,
    /// Most steps from the beginning.
    pub depth: usize,
    /// Whether every state was seen.
    pub exhaustive: bool,
    /// How long it took.
    pub took: Duration,
    /// How often the core ran; its other reactions were known.
    pub runs: u64,
    /// The rule that is broken, and the shortest way there, a line a step.
    pub broken: Option<(&'static str, Vec<String>)>,
}

/// Checks a setup.
#[must_use]
pub fn check(setup: Setup, limits: Limits) -> Outcome {
    let began = Instant::now();
    let mut builder = Space::new(setup).checker().finish_when(HasDiscoveries::Any);
    if let Some(depth) = limits.depth {
        builder = builder.target_max_depth(depth);
    }
    if let Some(time) = limits.time {
        builder = builder.timeout(time);
    }
    if let Some(states) = limits.states {
        builder = builder.target_state_count(states);
    }
    let checker = builder.spawn_bfs().join();
    // The checker stops at a limit as if it were done.
    let stopped = limits.depth.is_some_and(|depth| checker.max_depth() >= depth)
        || limits.time.is_some_and(|time| began.elapsed() >= time)
        || limits.states.is_some_and(|states| checker.state_count() >= states);
    let space = checker.model();
    // The gravest first: properties are listed in that order.
    let mut discoveries = checker.discoveries();
    let gravest = space.properties().into_iter().map(|property| property.name);
    let discovery = gravest.into_iter().find_map(|name| discoveries.remove_entry(name));
    let broken = discovery.map(|(rule, path)| {
        let steps = path.into_vec();
        let told = steps.iter().filter_map(|(state, action)| action.as_ref().map(|action| space.tell(state, action)));
        (rule, told.flatten().collect())
    });
    Outcome {
        states: checker.unique_state_count() as u64,
        depth: checker.max_depth(),
        exhaustive: broken.is_none() && !stopped,
        took: began.elapsed(),
        runs: space.runs(),
        broken,
    }
}
