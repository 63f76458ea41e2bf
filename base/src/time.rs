//! Time as an argument.
//!
//! A core never asks what time it is; its driver says so with every input. The simulator's clock
//! and the machine's are the same type.

use core::time::Duration;

use crate::codec::{Decode, DecodeError, Encode, Reader};

/// Nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The epoch itself: earlier than every real time.
    pub const ZERO: Time = Time(0);

    /// `self + by`, saturating at the end of time (the year 2554).
    #[must_use]
    pub fn after(self, by: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds and the nanoseconds beyond them, as `stat` reports them.
    #[must_use]
    pub fn parts(self) -> (u64, u32) {
        (self.0 / 1_000_000_000, (self.0 % 1_000_000_000) as u32)
    }

    /// The time with these `stat` parts; saturates like [`Time::after`].
    #[must_use]
    pub fn from_parts(seconds: u64, nanos: u32) -> Time {
        Time(seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(nanos)))
    }
}

impl Encode for Time {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for Time {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Time(u64::decode(input)?))
    }
}
