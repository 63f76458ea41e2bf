//! Counting what was dropped, and why.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use proto::wire;

/// Counters by reason. Reasons are literals of this program, so there are few.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    /// Counts one more.
    pub(crate) fn add(&self, what: &'static str) {
        *self.0.lock().entry(what).or_default() += 1;
    }

    /// All counters, as the wire has them.
    pub(crate) fn to_wire(&self) -> Vec<wire::Count> {
        self.0.lock().iter().map(|(what, count)| wire::Count { what: (*what).to_owned(), count: *count }).collect()
    }
}
