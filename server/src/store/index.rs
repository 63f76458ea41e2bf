//! What the store asks of an index, and the index in memory.
//!
//! An index holds nothing that can't be rebuilt from the segments, so its failures are answered by
//! a rebuild and never by a loss.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::RwLock;

/// An index failed; what it holds is to be rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It said so.
    #[error("the index failed: {0}")]
    Failed(String),
    /// It panicked.
    #[error("the index panicked: {0}")]
    Panicked(String),
}

/// One change to an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// An ordered map of small keys to small values.
///
/// A crash may lose any changes since the last [`Index::sync`], but none before it.
pub trait Index: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`IndexError`]
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;

    /// Makes all these changes, or none.
    ///
    /// # Errors
    /// [`IndexError`]
    fn apply(&self, ops: &[Op]) -> Result<(), IndexError>;

    /// Up to `limit` entries with `low <= key < high`, ascending.
    ///
    /// # Errors
    /// [`IndexError`]
    fn range(&self, low: &[u8], high: &[u8], limit: usize) -> Result<Vec<Entry>, IndexError>;

    /// Makes every change so far durable.
    ///
    /// # Errors
    /// [`IndexError`]
    fn sync(&self) -> Result<(), IndexError>;
}

/// An index in memory: for tests, for the simulator, and for a node whose disk has failed its index.
#[derive(Debug, Default)]
pub struct MemIndex {
    entries: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Index for MemIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.entries.read().get(key).cloned())
    }

    fn apply(&self, ops: &[Op]) -> Result<(), IndexError> {
        let mut entries = self.entries.write();
        for op in ops {
            match op {
                Op::Put { key, value } => entries.insert(key.clone(), value.clone()),
                Op::Delete { key } => entries.remove(key),
            };
        }
        Ok(())
    }

    fn range(&self, low: &[u8], high: &[u8], limit: usize) -> Result<Vec<Entry>, IndexError> {
        if low >= high {
            return Ok(Vec::new());
        }
        let entries = self.entries.read();
        let range = entries.range::<[u8], _>((Bound::Included(low), Bound::Excluded(high)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn sync(&self) -> Result<(), IndexError> {
        Ok(())
    }
}
