//! How fast agreed time may go on, as one replica judges it by its own clock.
//!
//! Agreed time may fall behind: everybody may have been down since it was proposed, and clocks are set
//! back. What must not happen is that it catches up at once. Whoever holds a lease counts its term by a
//! clock of his own from when he asked, and replicas count it by agreed time; a lying primary that holds
//! time back for a minute, and lets it go then, would end leases that are in use.
//!
//! So a replica accepts no time beyond its *ceiling*: [`Params::clock_bound`](crate::Params::clock_bound)
//! after the last time it accepted, and from there on a tenth faster than its clock. Of any two quorums
//! one correct replica is in both, so over any while agreed time goes on by at most that bound and 1.1
//! times the while. Each correct primary keeps half of the bound away from its own ceiling, so that
//! others accept what it proposes; and the one with the lowest is accepted by all.
//!
//! A replica that has accepted nothing since it was started has no ceiling. It accepts what is near its
//! clock; and what is far behind only when as many views as there are replicas came to nothing, for then
//! clocks, and not a primary, are what is wrong.

use core::time::Duration;

use base::Time;

/// What a replica knows of how late agreed time may be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// `None`: nothing was accepted since the start.
    ceiling: Option<Ceiling>,
}

/// The latest time that was acceptable, and when it was, by the own clock.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    latest: Time,
    when: Time,
}

impl Pace {
    /// Whether there is nothing to judge by.
    pub(crate) fn is_blank(&self) -> bool {
        self.ceiling.is_none()
    }

    /// The latest time that is acceptable now.
    pub(crate) fn latest(&self, now: Time) -> Time {
        let Some(Ceiling { latest, when }) = self.ceiling else { return Time(u64::MAX) };
        let since = now.since(when);
        latest.after(since + since / 10)
    }

    /// The latest time to propose: clocks and messages are not all equally fast, and others must accept it.
    pub(crate) fn proposable(&self, now: Time, bound: Duration) -> Time {
        Time(self.latest(now).0.saturating_sub(u64::try_from((bound / 2).as_nanos()).unwrap_or(u64::MAX)))
    }

    /// A time was accepted, before it was agreed on.
    pub(crate) fn accept(&mut self, now: Time, at: Time, bound: Duration) {
        self.ceiling = Some(Ceiling { latest: self.latest(now).min(at.after(bound)).max(at), when: now });
    }

    /// A time was agreed on, by others perhaps.
    pub(crate) fn learn(&mut self, now: Time, at: Time) {
        if at > self.latest(now) {
            self.ceiling = Some(Ceiling { latest: at, when: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Time {
        Time(1_000_000_000_000).after(Duration::from_secs(seconds))
    }

    #[test]
    fn time_that_was_held_back_catches_up_by_a_tenth() {
        let mut pace = Pace::default();
        assert_eq!(pace.latest(at(0)), Time(u64::MAX), "nothing to judge by");
        pace.accept(at(0), at(0), BOUND);
        assert_eq!(pace.latest(at(0)), at(10));
        // Held back for 100 s.
        (1..=100).for_each(|second| pace.accept(at(second), at(0), BOUND));
        assert_eq!(pace.latest(at(100)), at(10));
        assert_eq!(pace.latest(at(200)), at(120));
    }

    #[test]
    fn the_bound_is_there_once_and_comes_back_slowly() {
        let mut pace = Pace::default();
        pace.accept(at(0), at(0), BOUND);
        (0..20).for_each(|_| pace.accept(at(0), pace.latest(at(0)), BOUND));
        assert_eq!(pace.latest(at(0)), at(10));
        pace.accept(at(50), at(50), BOUND);
        assert_eq!(pace.latest(at(50)), at(60), "never more than the bound ahead");
    }

    #[test]
    fn what_others_agreed_on_is_no_reason_to_accept_more() {
        let mut pace = Pace::default();
        pace.accept(at(0), at(0), BOUND);
        pace.learn(at(0), at(500));
        assert_eq!(pace.latest(at(0)), at(500));
        pace.learn(at(1), at(400));
        assert!(pace.latest(at(1)) > at(501) && pace.latest(at(1)) < at(502));
    }
}
