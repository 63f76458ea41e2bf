//! Typed tables: ordered, persistent rows that feed one Merkle trie.
//!
//! A table notes which keys changed and brings the trie up to date only when a digest is asked
//! for. Cloning shares every row, so a checkpoint costs nothing until the state moves on.

use core::ops::{Deref, DerefMut, RangeBounds};
use std::sync::Arc;

use base::merkle::Trie;
use base::{Decode, DecodeError, Digest, Encode, Reader};
use imbl::{OrdMap, OrdSet};

/// A partition of a snapshot is closed once it is this long, bytes; one more row may exceed it.
pub(crate) const PARTITION_LEN: usize = 160 * 1024;

/// What can be the key of a [`Table`].
pub(crate) trait Key: Ord + Clone + Encode + Decode {}
impl<T: Ord + Clone + Encode + Decode> Key for T {}

/// What can be the value of a [`Table`].
pub(crate) trait Value: Clone + Encode + Decode {}
impl<T: Clone + Encode + Decode> Value for T {}

/// Rows of one kind, in key order.
#[derive(Clone)]
pub(crate) struct Table<K, V> {
    tag: u8,
    rows: OrdMap<K, V>,
    dirty: OrdSet<K>,
}

/// What the state does with every table, whatever its rows are.
pub(crate) trait Rows {
    /// Brings `trie` up to date with the rows that changed since the last time.
    fn settle(&mut self, trie: &mut Trie);

    /// Forgets which rows changed.
    fn forget_changes(&mut self);

    /// The rows as partitions: the table's tag, then keys and values to the end.
    fn partitions(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_>;

    /// Adds the rows of one partition, whose tag was read already.
    ///
    /// # Errors
    /// If there are none, or the bytes are not rows in ascending order after those present.
    fn load(&mut self, input: &mut Reader<'_>) -> Result<(), DecodeError>;

    /// The value of the row with this key, encoded, if there is one.
    fn value(&self, key: &[u8]) -> Option<Vec<u8>>;

    /// Sets or removes the row with this key.
    ///
    /// # Errors
    /// If the bytes are no key or no value.
    fn patch(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), DecodeError>;
}

impl<K: Key, V: Value> Table<K, V> {
    /// The empty table; `tag` sets its rows apart from those of other tables.
    pub(crate) fn new(tag: u8) -> Self {
        Table { tag, rows: OrdMap::new(), dirty: OrdSet::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.range(range)
    }

    /// The name under which the trie keeps the row at `key`.
    pub(crate) fn row_name(&self, key: &K) -> Vec<u8> {
        row_name(self.tag, key)
    }

    /// The row at `key`, to be changed.
    pub(crate) fn change(&mut self, key: &K) -> Option<&mut V> {
        let value = self.rows.get_mut(key)?;
        self.dirty.insert(key.clone());
        Some(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.dirty.insert(key.clone());
        self.rows.insert(key, value)
    }

    /// Inserts a row unless there is one with this key.
    pub(crate) fn add(&mut self, key: &K, value: &V) {
        if !self.rows.contains_key(key) {
            self.insert(key.clone(), value.clone());
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.rows.remove(key)?;
        self.dirty.insert(key.clone());
        Some(value)
    }
}

/// The name under which the trie keeps a row.
pub(crate) fn row_name<K: Encode>(tag: u8, key: &K) -> Vec<u8> {
    let mut bytes = vec![tag];
    key.encode(&mut bytes);
    bytes
}

impl<K: Key, V: Value> Rows for Table<K, V> {
    fn settle(&mut self, trie: &mut Trie) {
        for key in core::mem::take(&mut self.dirty).iter() {
            let name = row_name(self.tag, key);
            match self.rows.get(key) {
                Some(value) => trie.insert(&name, Digest::of_encoded(value)),
                None => trie.remove(&name),
            }
        }
    }

    fn forget_changes(&mut self) {
        self.dirty = OrdSet::new();
    }

    fn partitions(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        let mut rows = self.rows.iter().peekable();
        Box::new(core::iter::from_fn(move || {
            rows.peek()?;
            let mut partition = vec![self.tag];
            while partition.len() < PARTITION_LEN {
                let Some((key, value)) = rows.next() else { break };
                key.encode(&mut partition);
                value.encode(&mut partition);
            }
            Some(partition)
        }))
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<(), DecodeError> {
        if input.is_empty() {
            return Err(DecodeError::Invalid { what: "partition without rows" });
        }
        let mut last = self.rows.get_max().map(|(key, _)| key.clone());
        while !input.is_empty() {
            let (key, value) = (K::decode(input)?, V::decode(input)?);
            if last.is_some_and(|last| last >= key) {
                return Err(DecodeError::Invalid { what: "ascending rows" });
            }
            last = Some(key.clone());
            self.insert(key, value);
        }
        Ok(())
    }

    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.rows.get(&K::from_bytes(key).ok()?).map(Encode::to_bytes)
    }

    fn patch(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), DecodeError> {
        let key = K::from_bytes(key)?;
        match value {
            Some(value) => drop(self.insert(key, V::from_bytes(value)?)),
            None => drop(self.remove(&key)),
        }
        Ok(())
    }
}

/// A value that clones by reference and is copied only when a shared one is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Shared(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T: Encode> Encode for Shared<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl<T: Decode> Decode for Shared<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Shared::new(T::decode(input)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Table<u64, Vec<u8>> {
        let mut table = Table::new(7);
        for (key, value) in rows {
            table.insert(key, value);
        }
        table
    }

    #[test]
    fn the_trie_follows_every_change() {
        let (mut moved, mut trie) = (table([(1, vec![1]), (2, vec![2]), (3, vec![3])]), Trie::new());
        moved.settle(&mut trie);
        moved.change(&2).unwrap().push(9);
        assert_eq!(moved.remove(&3), Some(vec![3]));
        assert_eq!(moved.remove(&4), None);
        moved.insert(5, vec![]);
        moved.insert(6, vec![]);
        moved.remove(&6);
        moved.settle(&mut trie);

        let mut fresh = Trie::new();
        table([(1, vec![1]), (2, vec![2, 9]), (5, vec![])]).settle(&mut fresh);
        assert_eq!(trie.root(), fresh.root());
        assert_eq!(trie.len(), 3);
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut first = table([(1, vec![1])]);
        let second = first.clone();
        first.change(&1).unwrap().push(2);
        assert_eq!(second.get(&1), Some(&vec![1]));
        let mut shared = Shared::new(vec![1]);
        let kept = shared.clone();
        shared.push(2);
        assert_eq!((kept.len(), shared.len()), (1, 2));
    }

    #[test]
    fn partitions_are_bounded_and_load_back() {
        let big = table((0..40).map(|key| (key, vec![key as u8; 20_000])));
        let partitions: Vec<_> = big.partitions().collect();
        assert!(partitions.len() > 3);
        assert!(partitions.iter().all(|partition| partition.len() <= PARTITION_LEN + 20_012));
        let mut loaded = table([]);
        for partition in &partitions {
            loaded.load(&mut Reader::new(&partition[1..])).unwrap();
        }
        assert!(loaded.iter().eq(big.iter()));
        assert!(loaded.load(&mut Reader::new(&partitions[0][1..])).is_err(), "rows again");
        assert!(table([]).load(&mut Reader::new(&[])).is_err(), "no rows");
    }
}
