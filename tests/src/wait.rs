//! Waiting for a condition: the only place in the tests that sleeps.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Polls `condition` until it gives a value, or gives up after `limit`.
pub fn poll<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Polls `condition` until it gives a value.
///
/// # Panics
/// If `limit` passes first; the message names `what`.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Option<T>) -> T {
    match poll(limit, condition) {
        Some(value) => value,
        None => panic!("waited {limit:?} in vain until {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_the_condition_and_no_longer_than_the_limit() {
        let mut calls = 0;
        let third = poll(Duration::from_secs(60), || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(third, Some(3));
        assert_eq!(poll(Duration::ZERO, || None::<u8>), None);
    }
}
