//! The machine's clock as a core sees it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base::Time;
use parking_lot::Mutex;

/// The wall clock, never running backwards and never standing still: when it was set back, time here
/// goes on at half its pace until the wall clock has caught up. So timers run out, if late, whatever
/// somebody does to the clock.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Mutex<(Time, Instant)>,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { last: Mutex::new((Time::ZERO, Instant::now())) }
    }
}

impl Clock {
    /// The time now: at least as late as any time said before.
    pub(crate) fn now(&self) -> Time {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.after(Time(u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX)), Instant::now())
    }

    fn after(&self, wall: Time, instant: Instant) -> Time {
        let mut last = self.last.lock();
        let least = last.0.after(instant.saturating_duration_since(last.1) / 2);
        *last = (wall.max(least), instant);
        last.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_goes_on_when_the_clock_was_set_back() {
        let (clock, start) = (Clock::default(), Instant::now());
        let second = |n: u64| Time(n * 1_000_000_000);
        let at = |n: u64| start + Duration::from_secs(n);
        assert_eq!(clock.after(second(1000), at(0)), second(1000));
        assert_eq!(clock.after(second(1010), at(10)), second(1010), "the wall clock");
        assert_eq!(clock.after(second(920), at(20)), second(1015), "set back by 100 s: half the pace");
        assert_eq!(clock.after(second(940), at(40)), second(1025));
        assert_eq!(clock.after(second(1140), at(240)), second(1140), "until it has caught up");
        assert_eq!(clock.after(second(1141), at(239)), second(1141), "instants that come out of order do no harm");
    }
}
