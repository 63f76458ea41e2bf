//! I7, bounds: what a replica keeps and says is bounded, whatever it is sent.

use base::ReplicaId;
use bft::{PRINCIPAL_REQUESTS_MAX, QUEUE_REQUESTS_MAX, ReplicaStatus, WINDOW_MAX};

use super::Verdict;
use crate::keys::KNOWN_MAX;

/// Most events of a run: somebody who never comes to rest has a thousand times as many as others.
const EVENTS_MAX: u64 = 20_000_000;

/// The limits that hold for every replica.
#[derive(Debug)]
pub(crate) struct Bounds {
    pending_max: usize,
}

impl Bounds {
    /// The limits.
    pub(crate) fn new() -> Bounds {
        Bounds { pending_max: QUEUE_REQUESTS_MAX.min(KNOWN_MAX * PRINCIPAL_REQUESTS_MAX) }
    }

    /// What a replica says of itself.
    pub(crate) fn status(&self, who: ReplicaId, status: &ReplicaStatus) -> Verdict {
        if status.pending > self.pending_max {
            return Err(format!("{who:?} keeps {} requests, {} allowed", status.pending, self.pending_max));
        }
        let window = status.high_water_mark.0.saturating_sub(status.low_water_mark.0);
        // One that is behind knows of proposals up to the high water mark, however far that is.
        let ahead = status.high_water_mark.0.saturating_sub(status.last_executed.0);
        if window > WINDOW_MAX || status.in_flight > ahead {
            return Err(format!("{who:?} has {} in flight, in a window of {window}", status.in_flight));
        }
        Ok(())
    }

    /// What happened in a run so far.
    pub(crate) fn events(events: u64) -> Verdict {
        if events <= EVENTS_MAX { Ok(()) } else { Err(format!("{events} events, and no end")) }
    }

    /// Messages that a replica sent, and how many are allowed for what was done meanwhile.
    pub(crate) fn traffic(&self, who: ReplicaId, sent: u64, allowed: u64) -> Verdict {
        if sent <= allowed { Ok(()) } else { Err(format!("{who:?} sent {sent} messages, {allowed} allowed")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_caught() {
        let bounds = Bounds::new();
        assert!(bounds.traffic(ReplicaId(0), 10, 10).is_ok());
        assert!(bounds.traffic(ReplicaId(0), 11, 10).is_err());
        assert!(Bounds::events(EVENTS_MAX).is_ok() && Bounds::events(EVENTS_MAX + 1).is_err());
    }
}
