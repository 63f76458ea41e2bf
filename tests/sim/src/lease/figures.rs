//! What a run with leases came to, in numbers.

use super::journal::Journal;
use super::plan::{LeasePlan, Work};

/// Nobody may wait more than this many times as long as the median.
const UNFAIR: u64 = 10;

/// Counts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Processes started.
    pub starts: u64,
    /// Processes that stood still.
    pub stops: u64,
    /// Processes killed.
    pub kills: u64,
    /// How often a mount was found to believe that it holds a directory.
    pub beliefs: u64,
    /// And that it shares one.
    pub shared: u64,
    /// Things done that change something, and how many of them the history has.
    pub deeds: (u64, u64),
    /// Things that a program was told were done and that are lost: the ends of logs.
    pub lost: u64,
    /// Looks at what was old, where clocks are worse than is assumed.
    pub stale_looks: u64,
    /// By how much a lease was shorter than its term at most, ns.
    pub shortened: u64,
    /// How far agreed time was from true time, behind and ahead, ns.
    pub off: (i64, i64),
    /// How long each operation (or lock) took, ns.
    pub waits: Vec<u64>,
    /// The same for all of each program's together.
    pub totals: Vec<u64>,
}

impl Figures {
    pub(super) fn sum_up(&mut self, journal: &Journal, _plan: &LeasePlan) {
        self.deeds = journal.counts();
        self.lost = journal.lost();
        self.stale_looks = journal.stale_looks;
        self.shortened = journal.shortened.as_nanos() as u64;
        self.off = journal.off.unwrap_or_default();
        self.waits.clone_from(&journal.waits);
        self.waits.sort_unstable();
        self.totals = journal.totals.values().copied().collect();
        self.totals.sort_unstable();
    }

    /// Of many who want one thing, nobody waits much longer than the others.
    pub(super) fn is_unfair(&self, plan: &LeasePlan) -> Option<String> {
        let (times, what) = match plan.work {
            Work::Mixed => return None,
            Work::OneDirectory => (&self.totals, "all of a program's operations"),
            Work::OneLock => (&self.waits, "a lock"),
        };
        let (median, most) = (*times.get(times.len() / 2)?, *times.last()?);
        let unfair = most > UNFAIR * median;
        unfair.then(|| {
            format!("{what} took {:.3} s at the median and {:.3} s at most", median as f64 / 1e9, most as f64 / 1e9)
        })
    }
}
