//! Who writes to a file, and when it was written to last.

use std::time::SystemTime;

use base::Time;
use meta::{Caller, Timestamp};

use super::outbox::Budget;

/// When a file was last written to here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Touched {
    Never,
    /// By the agreed clock: its commit says so.
    Agreed(Time),
    /// By this machine's clock, for display: what counts is the agreed time of the commit.
    Estimated(Timestamp),
}

impl Touched {
    pub(super) fn estimated() -> Touched {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Touched::Estimated(Timestamp { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() })
    }
}

/// Who writes, and when.
pub(super) struct Writing<'a> {
    pub(super) caller: &'a Caller,
    /// The agreed time, if it is known and nobody else writes.
    pub(super) agreed: Option<Time>,
    pub(super) budget: &'a Budget,
}
