//! The throughput floor (Aardvark, NSDI'09 §4.2): a primary that executes something before every
//! timeout, and as little as it can, is replaced, too.
//!
//! Judged is only a primary that lets requests wait which backups know of, one window (a view timeout)
//! after the other. It is too slow if in a window it left the agreement idle for most of the time, or
//! did less than half of the best that was done in a window of this view and the last few, and a
//! little more is asked for with every window. Whoever is replaced for it and was not the cause gets
//! twice the grace before the next: where the whole group is slow, it changes views ever more seldom.

use core::time::Duration;
use std::collections::VecDeque;

use base::{StateMachine, Time};

use crate::replica::Replica;

/// Windows that a view has at least before it is judged.
const GRACE_MIN: u32 = 2;
/// And at most.
const GRACE_MAX: u32 = 64;
/// Of the best throughput before, what is asked for at first: a half.
const SHARE: (u64, u64) = (1, 2);
/// What more is asked for in every window, percent.
const RISE: u64 = 1;
/// An agreement that is idle for more than this is waiting for its primary, percent.
const IDLE_MAX: u32 = 80;
/// A request this long counts twice.
const REQUEST_BYTES: usize = 2048;
/// Windows in a row that are too slow before anything follows from it.
const SLOW_WINDOWS: u32 = 2;
/// A request that waits for this part of a timeout is waiting.
const AGED: u32 = 4;

/// What a backup knows of its primary's throughput.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    /// Since when requests have been waiting, in this window.
    since: Option<Time>,
    /// Whether a request was waiting since the last STATUS.
    waited: bool,
    /// What was done in this window, in requests.
    done: u64,
    idle: Duration,
    looked: Option<(Time, bool)>,
    /// Windows judged in this view, and how many of the last ones were too slow.
    windows: u32,
    slow: u32,
    grace: u32,
    /// Most that was done a second in a window: of this view, and of those before.
    best: u64,
    before: VecDeque<u64>,
}

impl Default for Floor {
    fn default() -> Self {
        Floor {
            since: None,
            waited: false,
            done: 0,
            idle: Duration::ZERO,
            looked: None,
            windows: 0,
            slow: 0,
            grace: GRACE_MIN,
            best: 0,
            before: VecDeque::new(),
        }
    }
}

impl Floor {
    /// After anything happened: whether places are being agreed on.
    pub(crate) fn look(&mut self, now: Time, busy: bool, window: Duration) {
        if let Some((then, false)) = self.looked {
            // Not all of it, if it is long: it may be this replica that stood still.
            self.idle += now.since(then).min(window / 2);
        }
        self.looked = Some((now, busy));
    }

    /// A batch was executed. Long requests count for more: they take longer.
    pub(crate) fn note(&mut self, requests: usize, bytes: usize) {
        self.done += (requests + bytes / REQUEST_BYTES) as u64;
    }

    /// A request was executed that was known for this long.
    pub(crate) fn waited(&mut self, waited: Duration, window: Duration) {
        self.waited |= waited >= window / AGED;
    }

    /// A view began; `views` are remembered.
    pub(crate) fn enter(&mut self, views: usize) {
        self.before.push_back(core::mem::take(&mut self.best));
        while self.before.len() > views {
            self.before.pop_front();
        }
        (self.windows, self.slow, self.since) = (0, 0, None);
    }

    /// Nobody is judged for this window.
    fn excuse(&mut self) {
        (self.since, self.waited) = (None, false);
    }

    /// At every STATUS: whether the primary has been too slow.
    fn is_too_slow(&mut self, now: Time, waiting: bool, window: Duration) -> bool {
        let waiting = core::mem::take(&mut self.waited) || waiting;
        let Some(since) = self.since.filter(|since| waiting && *since <= now) else {
            if !waiting {
                self.grace = (self.grace - 1).max(GRACE_MIN);
                self.slow = 0;
            }
            self.since = waiting.then_some(now);
            (self.done, self.idle) = (0, Duration::ZERO);
            return false;
        };
        let passed = now.since(since);
        if passed < window {
            return false;
        }
        if passed > window * 2 {
            // No STATUS for so long: it is this replica that stood still.
            self.excuse();
            return false;
        }
        let rate = self.done * 1000 / (passed.as_millis() as u64).max(1);
        let best = self.before.iter().copied().fold(self.best, u64::max);
        let asked = best * SHARE.0 / SHARE.1 * (100 + RISE * u64::from(self.windows)) / 100;
        let slow = self.idle > passed * IDLE_MAX / 100 || rate < asked;
        self.best = self.best.max(rate);
        self.windows = self.windows.saturating_add(1);
        (self.since, self.done, self.idle) = (Some(now), 0, Duration::ZERO);
        self.slow = if slow { self.slow + 1 } else { 0 };
        if self.slow < SLOW_WINDOWS || self.windows < self.grace {
            return false;
        }
        self.grace = (self.grace * 2).min(GRACE_MAX);
        true
    }
}

impl<S: StateMachine> Replica<S> {
    /// Whether the primary of this view has been too slow while requests waited.
    pub(crate) fn is_below_floor(&mut self, now: Time) -> bool {
        let window = self.params.view_timeout;
        let aged = self.queue.oldest().is_some_and(|since| now.since(since) >= window / AGED);
        if self.is_primary() || self.is_lagging() {
            self.floor.excuse();
            return false;
        }
        self.floor.is_too_slow(now, aged, window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(1);

    fn at(tenths: u64) -> Time {
        Time(1_000_000_000_000 + tenths * 100_000_000)
    }

    /// Half a minute in which `rate` requests a second are executed and the agreement is idle for so
    /// many tenths of every second: after how many seconds the primary is too slow.
    fn judge(floor: &mut Floor, from: u64, rate: impl Fn(u64) -> usize, idle: u64) -> Option<u64> {
        for tenth in 0..300 {
            let now = at(from + tenth);
            floor.look(now, tenth % 10 >= idle, WINDOW);
            floor.note(rate(tenth / 10) / 10, 0);
            if tenth % 5 == 0 && floor.is_too_slow(now, true, WINDOW) {
                return Some(tenth / 10);
            }
        }
        None
    }

    #[test]
    fn a_primary_that_keeps_its_pace_stays() {
        let mut floor = Floor::default();
        assert_eq!(judge(&mut floor, 0, |_| 1000, 3), None);
        assert_eq!(judge(&mut Floor::default(), 0, |second| 800 + (second as usize % 3) * 200, 3), None);
    }

    #[test]
    fn one_that_idles_is_replaced_after_its_grace_and_later_every_time() {
        let mut floor = Floor::default();
        let mut seconds = Vec::new();
        for view in 0..4 {
            seconds.push(judge(&mut floor, view * 1000, |_| 1000, 9));
            floor.enter(4);
        }
        assert_eq!(seconds, [Some(2), Some(4), Some(8), Some(16)]);
        for quiet in 0..30 {
            floor.is_too_slow(at(9000 + 5 * quiet), false, WINDOW);
        }
        assert_eq!(judge(&mut floor, 10_000, |_| 1000, 9), Some(2), "when nothing waits for long, all is forgiven");
    }

    #[test]
    fn one_that_slows_down_is_replaced_though_it_looks_busy() {
        let mut floor = Floor::default();
        assert_eq!(judge(&mut floor, 0, |second| if second < 10 { 1000 } else { 300 }, 0), Some(12));
        floor.enter(4);
        assert_eq!(judge(&mut floor, 1000, |_| 300, 0), Some(4), "what the view before did counts");
        for _ in 0..5 {
            floor.enter(4);
        }
        assert_eq!(judge(&mut floor, 2000, |_| 300, 0), None, "and is forgotten after a while");
    }

    #[test]
    fn one_bad_window_is_nobodys_fault_and_nor_is_a_stall_here() {
        let mut floor = Floor::default();
        assert_eq!(judge(&mut floor, 0, |second| if second == 10 { 0 } else { 1000 }, 0), None);
        floor.look(at(340), false, WINDOW);
        assert!(!floor.is_too_slow(at(340), true, WINDOW), "nothing was heard for four seconds");
        assert_eq!(judge(&mut floor, 340, |_| 1000, 0), None);
    }

    #[test]
    fn long_requests_count_for_more() {
        let (mut short, mut long) = (Floor::default(), Floor::default());
        short.note(64, 64 * 600);
        long.note(4, 4 * 128 * 1024);
        assert!(long.done * 3 > short.done, "{} and {}", long.done, short.done);
    }

    #[test]
    fn nothing_is_asked_where_nothing_waits() {
        let mut floor = Floor::default();
        for tenth in 0..300 {
            floor.look(at(tenth), false, WINDOW);
            assert!(!floor.is_too_slow(at(tenth), tenth % 20 > 12, WINDOW), "a gap in every two seconds");
        }
    }
}
