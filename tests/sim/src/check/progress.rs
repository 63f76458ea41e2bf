//! I6, progress: once the faults have stopped, everything asked for is done within a bounded time
//! and a bounded number of view changes.

use core::time::Duration;

use base::{ReplicaId, Time, View};

use super::Verdict;

/// When the faults stopped, and where everybody was.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stopped: Option<(Time, View)>,
    views_allowed: u64,
}

impl Progress {
    /// The faults stop now; the highest view of a correct replica is `view`. So many may follow.
    pub(crate) fn faults_stop(&mut self, now: Time, view: View, views_allowed: u64) {
        self.stopped = Some((now, view));
        self.views_allowed = views_allowed;
    }

    /// How long ago the faults stopped.
    pub(crate) fn calm_for(&self, now: Time) -> Option<Duration> {
        self.stopped.map(|(at, _)| now.since(at))
    }

    /// Something did not happen in time.
    pub(crate) fn stuck(&self, now: Time, what: String) -> Verdict {
        let calm = self.calm_for(now).unwrap_or_default();
        Err(format!("{:.1} s after the faults stopped: {what}", calm.as_secs_f64()))
    }

    /// The view of a correct replica.
    pub(crate) fn view(&self, who: ReplicaId, view: View) -> Verdict {
        let Some((_, before)) = self.stopped else { return Ok(()) };
        let passed = view.0.saturating_sub(before.0);
        if passed <= self.views_allowed {
            return Ok(());
        }
        Err(format!("{who:?} went through {passed} views after the faults stopped, {} allowed", self.views_allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_view_changes_are_caught() {
        let mut progress = Progress::default();
        assert!(progress.view(ReplicaId(0), View(90)).is_ok());
        progress.faults_stop(Time(1_000_000_000), View(90), 9);
        assert!(progress.view(ReplicaId(0), View(99)).is_ok());
        assert!(progress.view(ReplicaId(0), View(100)).is_err());
        let stuck = progress.stuck(Time(3_500_000_000), "nothing".into());
        assert_eq!(stuck, Err("2.5 s after the faults stopped: nothing".into()));
    }
}
