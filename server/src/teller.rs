//! What the operator of a replica is told, in its log, of what the core goes through: what he can act upon, and no
//! more of it than he can read, whoever sends it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bft::{Event, Ignored};

/// How often the operator is told that clocks differ, while they do.
const CLOCKS_AGAIN: Duration = Duration::from_secs(60);

/// What was told already.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    liars: BTreeSet<base::ReplicaId>,
    clocks_told: Option<Instant>,
}

impl Teller {
    /// Tells about an event if it is worth telling.
    pub(crate) fn tell(&mut self, now: Instant, event: Event) {
        match event {
            Event::Misbehaved { who, evidence } => {
                // The first lie in full; a liar does not get to fill the disk with its name.
                if self.liars.insert(who) {
                    tracing::warn!(?who, ?evidence, "a replica lied; `status` counts what follows");
                }
            }
            Event::LeftView { asked_for } => tracing::info!(view = asked_for.0, "asks for a new view"),
            Event::EnteredView { view } => tracing::info!(view = view.0, "a new view has begun"),
            Event::Behind { last_executed, oldest_retained } => {
                tracing::info!(%last_executed, %oldest_retained, "fell behind; a checkpoint will be fetched");
            }
            Event::Transferred { seq, parts } => tracing::info!(%seq, parts, "fetched a checkpoint from peers"),
            Event::Rejoined { life } => tracing::info!(life, "this replica votes again"),
            Event::Diverged(divergence) => tracing::error!(?divergence, "this replica's state is not the others'"),
            other => match about_clocks(&other) {
                Some(what) if self.is_time_for_clocks(now) => {
                    tracing::warn!(?other, "{what}: check the clocks (NTP) of this node and of the primary");
                }
                _ => tracing::trace!(?other, "core event"),
            },
        }
    }

    fn is_time_for_clocks(&mut self, now: Instant) -> bool {
        let due = self.clocks_told.is_none_or(|told| now.duration_since(told) >= CLOCKS_AGAIN);
        if due {
            self.clocks_told = Some(now);
        }
        due
    }
}

/// What an event says about clocks, if it does.
fn about_clocks(event: &Event) -> Option<&'static str> {
    match event {
        Event::TimeLags { .. } => Some("the time that the primary proposes is far behind this clock"),
        Event::Ignored(Ignored::TimeBehind) => Some("a proposal was refused, its time is far behind this clock"),
        Event::Ignored(Ignored::TimeAhead) => Some("a proposal was refused, its time is far ahead of this clock"),
        Event::Ignored(Ignored::TimeTooFast) => Some("a proposal was refused, its time leaps"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_told_of_once_a_minute() {
        let (mut teller, now) = (Teller::default(), Instant::now());
        let told: Vec<u64> =
            (0..200).filter(|second| teller.is_time_for_clocks(now + Duration::from_secs(*second))).collect();
        assert_eq!(told, [0, 60, 120, 180]);
    }

    #[test]
    fn refused_times_are_about_clocks_and_what_a_network_does_is_not() {
        for why in [Ignored::TimeBehind, Ignored::TimeAhead, Ignored::TimeTooFast] {
            assert!(about_clocks(&Event::Ignored(why)).is_some());
        }
        for why in [Ignored::Duplicate, Ignored::Stale, Ignored::OtherView] {
            assert_eq!(about_clocks(&Event::Ignored(why)), None);
        }
    }
}
