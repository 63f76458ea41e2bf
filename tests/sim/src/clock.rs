//! A replica's clock: off by something, fast or slow, and set by people.
//!
//! What its core sees is that clock as the node's driver hands it on: never running backwards while
//! the process lives (`server/src/clock.rs`).

use base::Time;

use crate::core_can::CORE;

/// When worlds begin.
pub(crate) const START: Time = Time(1_700_000_000_000_000_000);

/// A clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// How far ahead, ns.
    pub(crate) offset: i64,
    /// How much too fast, in millionths.
    pub(crate) rate: i64,
    /// The latest time said since the process started, and when.
    last: u64,
    said_at: u64,
    /// It stands still where others would go on slowly: its driver lies to its core.
    pub(crate) stands: bool,
}

impl Clock {
    /// A clock that is off by `offset` ns and `rate` millionths.
    pub(crate) fn new(offset: i64, rate: i64) -> Clock {
        Clock { offset, rate, last: 0, said_at: 0, stands: false }
    }

    /// What a process on this machine takes the time to be.
    pub(crate) fn read(&mut self, now: Time) -> Time {
        let elapsed = now.0.saturating_sub(START.0) as i64;
        let wall = now.0.saturating_add_signed(self.offset + elapsed / 1_000_000 * self.rate);
        let went_on = if CORE.steady_clock && !self.stands { now.0.saturating_sub(self.said_at) / 2 } else { 0 };
        let least = if self.last == 0 { 0 } else { self.last + went_on };
        (self.last, self.said_at) = (wall.max(least), now.0);
        Time(self.last)
    }

    /// Somebody sets the clock, by `by` ns.
    pub(crate) fn jump(&mut self, by: i64) {
        self.offset = self.offset.saturating_add(by);
    }

    /// The process ends; the next one has not said any time yet.
    pub(crate) fn forget(&mut self) {
        self.last = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_runs_backwards_in_a_process() {
        let mut clock = Clock::new(5, 100);
        assert_eq!(clock.read(START), Time(START.0 + 5));
        assert_eq!(clock.read(Time(START.0 + 1_000_000)), Time(START.0 + 1_000_105));
        clock.jump(-1_000);
        assert_eq!(clock.read(Time(START.0 + 1_000_000)), Time(START.0 + 1_000_105));
        clock.forget();
        assert_eq!(clock.read(Time(START.0 + 1_000_000)), Time(START.0 + 999_105));
    }
}
