//! What each principal may have in the house: requests handed in and not answered.
//!
//! Who has too many is not read from until some are executed, so that its requests cost the others no
//! more than its share, not even a verification (Aardvark, NSDI'09 §4.1). Whatever is never answered,
//! as a repetition, a refused or a forged request is not, is forgiven with time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::PublicKey;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

/// Requests of a principal in the house: as many as the core keeps.
const IN_HOUSE_MAX: u32 = bft::PRINCIPAL_REQUESTS_MAX as u32;
/// Links that a principal may read by; with its sessions fewer than its connections, so that there are some left
/// for its commands.
const READ_LINKS_MAX: usize = 24;
/// How many are forgiven in a second.
const FORGIVEN_PER_SECOND: u32 = 128;
/// How often to see what is forgiven.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The budgets of all principals.
#[derive(Debug, Default)]
pub(crate) struct Budgets(Mutex<BTreeMap<PublicKey, Arc<Budget>>>);

/// A principal's budget.
#[derive(Debug)]
pub(crate) struct Budget {
    account: Mutex<Account>,
    freed: Notify,
    /// Held while a read of the principal is answered.
    pub(crate) reading: tokio::sync::Mutex<()>,
    /// A permit for each link that the principal may read by.
    pub(crate) read_links: Arc<Semaphore>,
}

#[derive(Debug)]
struct Account {
    in_house: u32,
    forgiven: Instant,
}

impl Budgets {
    /// The budget of a principal of the cluster; there are as many as principals.
    pub(crate) fn of(&self, principal: PublicKey) -> Arc<Budget> {
        let new = || {
            let account = Mutex::new(Account::new(Instant::now()));
            let read_links = Arc::new(Semaphore::new(READ_LINKS_MAX));
            Arc::new(Budget { account, freed: Notify::new(), reading: tokio::sync::Mutex::default(), read_links })
        };
        self.0.lock().entry(principal).or_insert_with(new).clone()
    }

    /// A request of this principal was executed.
    pub(crate) fn served(&self, principal: &PublicKey) {
        let budgets = self.0.lock();
        if let Some(budget) = budgets.get(principal) {
            budget.account.lock().served();
            budget.freed.notify_one();
        }
    }
}

impl Budget {
    /// Waits until the principal may hand in another request.
    pub(crate) async fn enter(&self) {
        while !self.account.lock().enter(Instant::now()) {
            let _ = tokio::time::timeout(LOOK_AGAIN, self.freed.notified()).await;
        }
    }
}

impl Account {
    fn new(now: Instant) -> Account {
        Account { in_house: 0, forgiven: now }
    }

    fn enter(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.forgiven);
        let forgiven = u32::try_from(passed.as_millis()).unwrap_or(u32::MAX).saturating_mul(FORGIVEN_PER_SECOND) / 1000;
        if forgiven > 0 {
            self.in_house = self.in_house.saturating_sub(forgiven);
            self.forgiven = now;
        }
        let enters = self.in_house < IN_HOUSE_MAX;
        self.in_house += u32::from(enters);
        enters
    }

    fn served(&mut self) {
        self.in_house = self.in_house.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_served_enters_at_the_rate_of_forgiveness() {
        let start = Instant::now();
        let mut account = Account::new(start);
        assert_eq!((0..1000).filter(|_| account.enter(start)).count(), IN_HOUSE_MAX as usize);
        account.served();
        assert!(account.enter(start) && !account.enter(start), "one is served, one enters");
        let later = |millis: u64| start + Duration::from_millis(millis);
        let entered = (0..10_000).filter(|millis| account.enter(later(*millis))).count();
        let forgiven = 10 * FORGIVEN_PER_SECOND as usize;
        assert!((forgiven * 9 / 10..=forgiven).contains(&entered), "{entered} in ten seconds");
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_served() {
        let (budgets, principal) = (Arc::new(Budgets::default()), base::SecretKey::from_seed(&[1; 32]).public());
        let budget = budgets.of(principal);
        for _ in 0..IN_HOUSE_MAX {
            budget.enter().await;
        }
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.enter().await }
        });
        budgets.served(&principal);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("goes on").expect("does not panic");
    }
}
