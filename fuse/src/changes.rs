//! Counting what is changed through the mount.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many operations that change something have ended.
#[derive(Debug, Default)]
pub(crate) struct Changes(AtomicU64);

impl Changes {
    /// The count now. What was asked for at one count and answered at another may be from before a
    /// change.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Begins a change; it is counted when the guard goes, however it ended: one that failed may have
    /// been made all the same.
    pub(crate) fn begin(&self) -> Change<'_> {
        Change(&self.0)
    }
}

/// A change under way.
pub(crate) struct Change<'a>(&'a AtomicU64);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_it_ends() {
        let changes = Changes::default();
        let change = changes.begin();
        assert_eq!(changes.now(), 0);
        drop(change);
        assert_eq!(changes.now(), 1);
    }
}
