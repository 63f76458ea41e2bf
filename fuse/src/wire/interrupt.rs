//! FUSE_INTERRUPT: the caller of a running request has been signalled and would rather not wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Interrupts remembered for requests that have not been seen yet. Each reader can be at most one
/// request behind, so a handful would do; the rest is for interrupts that came after their answer.
const EARLY_MAX: usize = 64;

/// Tells a running operation that its caller was signalled. Cheap to clone; fires once.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    fired: AtomicBool,
    wake: Notify,
}

impl Interrupt {
    /// Whether the caller has been signalled.
    pub fn is_fired(&self) -> bool {
        self.0.fired.load(Ordering::Acquire)
    }

    /// Waits until the caller is signalled; for ever if that never happens.
    pub async fn fired(&self) {
        let woken = self.0.wake.notified();
        tokio::pin!(woken);
        // Registered before the flag is read, so that no wake-up falls between the two.
        woken.as_mut().enable();
        if !self.is_fired() {
            woken.await;
        }
    }

    pub(crate) fn fire(&self) {
        self.0.fired.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }
}

/// The requests that run, by `unique`.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<Requests>);

#[derive(Debug, Default)]
struct Requests {
    interrupts: HashMap<u64, Interrupt>,
    early: VecDeque<u64>,
}

impl Running {
    /// A request starts. Its interrupt may already be here: another reader can be faster.
    pub(crate) fn start(self: &Arc<Self>, unique: u64) -> Started {
        let interrupt = Interrupt::default();
        let mut requests = self.0.lock();
        if let Some(at) = requests.early.iter().position(|early| *early == unique) {
            requests.early.remove(at);
            interrupt.fire();
        }
        requests.interrupts.insert(unique, interrupt.clone());
        Started { running: self.clone(), unique, interrupt }
    }

    /// The kernel interrupts `unique`.
    pub(crate) fn interrupt(&self, unique: u64) {
        let mut requests = self.0.lock();
        match requests.interrupts.get(&unique) {
            Some(interrupt) => interrupt.fire(),
            None => {
                if requests.early.len() == EARLY_MAX {
                    requests.early.pop_front();
                }
                requests.early.push_back(unique);
            }
        }
    }

    /// Requests under way.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().interrupts.len()
    }
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Started {
    running: Arc<Running>,
    unique: u64,
    pub(crate) interrupt: Interrupt,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.running.0.lock().interrupts.remove(&self.unique);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interrupt_wakes_its_request_and_no_other() {
        let running = Arc::new(Running::default());
        let (one, two) = (running.start(2), running.start(4));
        let waiting = tokio::spawn({
            let interrupt = one.interrupt.clone();
            async move { interrupt.fired().await }
        });
        running.interrupt(2);
        waiting.await.unwrap();
        one.interrupt.fired().await;
        assert!(!two.interrupt.is_fired());
        assert_eq!(running.count(), 2);
        drop((one, two));
        assert_eq!(running.count(), 0);
    }

    #[test]
    fn an_early_interrupt_is_remembered_within_bounds() {
        let running = Arc::new(Running::default());
        running.interrupt(2);
        assert!(running.start(2).interrupt.is_fired());
        assert!(!running.start(2).interrupt.is_fired(), "an interrupt is used up by its request");
        (0..1000).for_each(|unique| running.interrupt(unique));
        assert_eq!(running.0.lock().early.len(), EARLY_MAX);
        assert!(running.start(999).interrupt.is_fired());
        assert!(!running.start(1).interrupt.is_fired());
    }
}
