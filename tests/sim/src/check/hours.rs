//! Agreed time, a part of I2: it never runs backwards, and is never further ahead of the fastest correct
//! clock than backups accept. What waits for a time to pass relies on it.

use core::time::Duration;

use base::Time;

use super::Verdict;

/// How far ahead of its clock a backup accepts a proposal's time, by default.
const AHEAD_MAX: Duration = Duration::from_secs(10);

/// What the clocks said, and the operations.
#[derive(Debug, Default)]
pub(crate) struct Hours {
    latest: Time,
    last: Time,
}

impl Hours {
    /// A correct replica took a step at this time by its clock.
    pub(crate) fn read(&mut self, clock: Time) {
        self.latest = self.latest.max(clock);
    }

    /// The next operation of the history was applied as of this time.
    pub(crate) fn applied(&mut self, at: Time) -> Verdict {
        let last = core::mem::replace(&mut self.last, at);
        if at < last {
            return Err(format!("an operation was applied as of {at:?}, after one as of {last:?}"));
        }
        if at > self.latest.after(AHEAD_MAX) {
            return Err(format!("an operation was applied as of {at:?}, when no correct clock said {:?}", self.latest));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_swings_is_caught() {
        let second = |seconds: u64| Time(seconds * 1_000_000_000);
        let mut hours = Hours::default();
        hours.read(second(100));
        assert!(hours.applied(second(90)).is_ok() && hours.applied(second(109)).is_ok());
        assert!(hours.applied(second(108)).is_err(), "backwards");
        assert!(hours.applied(second(111)).is_err(), "ahead");
        hours.read(second(200));
        assert!(hours.applied(second(111)).is_ok());
    }
}
