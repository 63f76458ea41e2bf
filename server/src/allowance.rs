//! What a replica may ask of another by its messages: so many in a second, whatever they are.
//!
//! A replica proves who it is, so what it costs can be held against it, over all its links (Aardvark,
//! NSDI'09 §4.1). One that is beyond its allowance is not read from until it is back within it; the
//! others are read from meanwhile. Honest replicas stay far below it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Messages of a replica in a second. Agreement at full speed takes about one in ten of them.
const MESSAGES_PER_SECOND: u32 = 16_384;
/// Messages of a burst: a view change, a transfer.
const BURST: u32 = 16_384;
/// What a forged or unreadable message counts as: much may have been verified before one signature in
/// it turned out bad.
const BAD_COSTS: u32 = 512;

/// The allowance of one replica; shared by all its links.
#[derive(Clone, Debug)]
pub(crate) struct Allowance(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    /// Messages that it may still send now; below zero after bad ones.
    left: i64,
    filled: Instant,
}

impl Allowance {
    pub(crate) fn new() -> Allowance {
        Allowance(Arc::new(Mutex::new(Account { left: i64::from(BURST), filled: Instant::now() })))
    }

    /// Waits until another message may be looked at; gives whether it had to wait.
    pub(crate) async fn enter(&self) -> bool {
        let mut waited = false;
        loop {
            let wait = self.0.lock().enter(Instant::now());
            let Some(wait) = wait else { return waited };
            waited = true;
            tokio::time::sleep(wait).await;
        }
    }

    /// A message turned out to be a bad one.
    pub(crate) fn charge_bad(&self) {
        self.0.lock().left -= i64::from(BAD_COSTS);
    }
}

impl Account {
    /// Takes one message off; or gives how long to wait before asking again.
    fn enter(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.filled);
        let earned = passed.as_micros() * u128::from(MESSAGES_PER_SECOND) / 1_000_000;
        if earned > 0 {
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(earned).min(i64::from(BURST));
            self.filled = now;
        }
        if self.left > 0 {
            self.left -= 1;
            return None;
        }
        // For a batch of them, so that the wait is longer than a timer is exact.
        let missing = u64::try_from(1 - self.left).unwrap_or(1).saturating_add(64);
        Some(Duration::from_micros((missing * 1_000_000 / u64::from(MESSAGES_PER_SECOND)).min(1_000_000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn enter(account: &mut Account, now: Instant, times: u32) -> u32 {
        (0..times).filter(|_| account.enter(now).is_none()).count() as u32
    }

    #[test]
    fn a_flood_gets_its_rate_and_no_more() {
        let start = Instant::now();
        let mut account = Account { left: i64::from(BURST), filled: start };
        assert_eq!(enter(&mut account, start, 10 * BURST), BURST);
        let got: u32 = (1..=100).map(|step| enter(&mut account, start + SECOND * step / 100, 100_000)).sum();
        assert!(got.abs_diff(MESSAGES_PER_SECOND) <= 100, "{got} in a second");
        assert_eq!(enter(&mut account, start + SECOND * 100, 10 * BURST), BURST, "it saves up one burst at most");
    }

    #[test]
    fn bad_messages_cost_time() {
        let allowance = Allowance::new();
        let start = Instant::now();
        for _ in 0..64 {
            allowance.charge_bad();
        }
        let mut account = allowance.0.lock();
        let wait = account.enter(start).expect("64 of them are beyond a burst");
        let debt = 64 * BAD_COSTS - BURST;
        assert!(wait <= SECOND && account.enter(start + SECOND * (debt / MESSAGES_PER_SECOND) / 2).is_some());
        assert!(account.enter(start + SECOND * (debt / MESSAGES_PER_SECOND + 1)).is_none());
    }
}
