//! A part of a trie that proves what its rows are: the rows asked for, and digests for all the rest.
//!
//! Whoever trusts the root needs to trust nobody else: the digest of a part is computed from what is
//! in it, so a part with the right digest shows the trie as it is. A name is *shown present* by its
//! row, and *shown absent* by an empty place, or by another leaf, where its row would have to be.

use bytes::Bytes;

use super::{DEPTH_MAX, FAN_OUT, Node, Trie, slot};
use crate::codec::{Decode, DecodeError, Encode, Reader};
use crate::hash::Digest;

/// Most nodes of a part, on decoding. One row among a million takes about 80.
const NODES_MAX: usize = 2048;
/// Longest name of a row in a part, bytes.
const NAME_MAX: usize = 1024;
/// Longest value of a row in a part, bytes.
const VALUE_MAX: usize = 128 * 1024;

/// A part of a trie, as somebody tells it: nothing of it is proven before [`Part::proven`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part(Option<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// What nobody asked for.
    Folded(Digest),
    /// A leaf where a row that was asked for would have to be: there is no such row.
    Leaf { key: Digest, value: Digest },
    /// A row that was asked for.
    Row { name: Bytes, value: Bytes },
    /// What is between.
    Fork(Box<[Option<Piece>; FAN_OUT]>),
}

/// A part of the trie that has a trusted root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven(Part);

/// The part does not say whether there is such a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proof does not show this row")]
pub struct NotShown;

impl Trie {
    /// The part that shows the rows with these names, or that they are not there. `value_of` gives
    /// the value of a row of this trie.
    #[must_use]
    pub fn part<'a>(
        &self,
        names: impl IntoIterator<Item = &'a [u8]>,
        value_of: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Part {
        let mut keys: Vec<Digest> = names.into_iter().map(Digest::of).collect();
        keys.sort_unstable();
        keys.dedup();
        Part(self.root.as_deref().map(|root| root.piece(&keys, 0, &value_of)))
    }
}

impl Node {
    /// This node, with the rows that have one of these keys: all of them lead here.
    fn piece(&self, keys: &[Digest], depth: usize, value_of: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Piece {
        match self {
            _ if keys.is_empty() => Piece::Folded(self.digest()),
            Node::Leaf { key, name, value } => match value_of(name).filter(|_| keys.contains(key)) {
                Some(value) => Piece::Row { name: Bytes::copy_from_slice(name), value: value.into() },
                None => Piece::Leaf { key: *key, value: *value },
            },
            Node::Fork { children, .. } => {
                let mut keys = keys;
                let mut pieces: [Option<Piece>; FAN_OUT] = Default::default();
                for (index, (child, piece)) in children.iter().zip(&mut pieces).enumerate() {
                    // Keys are in order, so those that go on to one child stand together.
                    let (here, rest) = keys.split_at(keys.partition_point(|key| slot(key, depth) <= index));
                    *piece = child.as_deref().map(|child| child.piece(here, depth + 1, value_of));
                    keys = rest;
                }
                Piece::Fork(Box::new(pieces))
            }
        }
    }
}

impl Part {
    /// The part, if it is one of the trie with this root.
    #[must_use]
    pub fn proven(self, root: &Digest) -> Option<Proven> {
        let digest = self.0.as_ref().map_or(Trie::new().root(), Piece::digest);
        (digest == *root).then_some(Proven(self))
    }
}

impl Proven {
    /// The value of the row with this name, or `None`: there is no such row.
    ///
    /// # Errors
    /// [`NotShown`] if the part does not say.
    pub fn get(&self, name: &[u8]) -> Result<Option<&Bytes>, NotShown> {
        let key = Digest::of(name);
        let Some(mut piece) = self.0.0.as_ref() else { return Ok(None) };
        for depth in 0..=DEPTH_MAX {
            match piece {
                Piece::Folded(_) => return Err(NotShown),
                Piece::Row { name: there, value } => return Ok((there == name).then_some(value)),
                Piece::Leaf { key: there, .. } => return if *there == key { Err(NotShown) } else { Ok(None) },
                Piece::Fork(_) if depth == DEPTH_MAX => break,
                Piece::Fork(children) => match &children[slot(&key, depth)] {
                    Some(child) => piece = child,
                    None => return Ok(None),
                },
            }
        }
        Err(NotShown)
    }

    /// The rows that are shown present: names and values.
    #[must_use]
    pub fn rows(&self) -> Vec<(&Bytes, &Bytes)> {
        let mut rows = Vec::new();
        if let Some(piece) = &self.0.0 {
            piece.collect(&mut rows);
        }
        rows
    }
}

impl Piece {
    fn digest(&self) -> Digest {
        match self {
            Piece::Folded(digest) => *digest,
            Piece::Leaf { key, value } => Node::digest_of_leaf(key, value),
            Piece::Row { name, value } => Node::digest_of_leaf(&Digest::of(name), &Digest::of(value)),
            Piece::Fork(children) => {
                Trie::digest_of_fork(&children.each_ref().map(|child| child.as_ref().map(Piece::digest)))
            }
        }
    }

    fn collect<'a>(&'a self, rows: &mut Vec<(&'a Bytes, &'a Bytes)>) {
        match self {
            Piece::Folded(_) | Piece::Leaf { .. } => {}
            Piece::Row { name, value } => rows.push((name, value)),
            Piece::Fork(children) => children.iter().flatten().for_each(|child| child.collect(rows)),
        }
    }

    /// `left`: how many more nodes may come; `depth`: how far from the root this one is.
    fn decode(input: &mut Reader<'_>, depth: usize, left: &mut usize) -> Result<Piece, DecodeError> {
        *left = left.checked_sub(1).ok_or(DecodeError::Invalid { what: "part of a trie: too many nodes" })?;
        match u8::decode(input)? {
            0 => Ok(Piece::Folded(Digest::decode(input)?)),
            1 => Ok(Piece::Leaf { key: Digest::decode(input)?, value: Digest::decode(input)? }),
            2 => {
                let name = Bytes::copy_from_slice(input.bytes_max("name of a row", NAME_MAX)?);
                let value = Bytes::copy_from_slice(input.bytes_max("value of a row", VALUE_MAX)?);
                Ok(Piece::Row { name, value })
            }
            3 if depth < DEPTH_MAX => {
                let present = u16::decode(input)?;
                if present == 0 {
                    return Err(DecodeError::Invalid { what: "part of a trie: a fork to nowhere" });
                }
                let mut children: [Option<Piece>; FAN_OUT] = Default::default();
                for (index, child) in children.iter_mut().enumerate() {
                    if present & (1 << index) != 0 {
                        *child = Some(Piece::decode(input, depth + 1, left)?);
                    }
                }
                Ok(Piece::Fork(Box::new(children)))
            }
            tag => Err(DecodeError::Tag { what: "part of a trie", tag: u64::from(tag) }),
        }
    }
}

impl Encode for Piece {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Piece::Folded(digest) => {
                out.push(0);
                digest.encode(out);
            }
            Piece::Leaf { key, value } => {
                out.push(1);
                (key, value).encode(out);
            }
            Piece::Row { name, value } => {
                out.push(2);
                (name, value).encode(out);
            }
            Piece::Fork(children) => {
                out.push(3);
                let present = children.iter().enumerate().filter(|(_, child)| child.is_some());
                present.fold(0u16, |bits, (index, _)| bits | 1 << index).encode(out);
                children.iter().flatten().for_each(|child| child.encode(out));
            }
        }
    }
}

impl Encode for Part {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for Part {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if !bool::decode(input)? {
            return Ok(Part(None));
        }
        Ok(Part(Some(Piece::decode(input, 0, &mut NODES_MAX.clone())?)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    type Rows = BTreeMap<u16, Vec<u8>>;

    fn trie_of(rows: &Rows) -> Trie {
        let mut trie = Trie::new();
        rows.iter().for_each(|(name, value)| trie.insert(&name.to_be_bytes(), Digest::of(value)));
        trie
    }

    fn part_of(rows: &Rows, names: &BTreeSet<u16>) -> Part {
        let names: Vec<_> = names.iter().map(|name| name.to_be_bytes()).collect();
        let value_of = |name: &[u8]| rows.get(&u16::from_be_bytes(name.try_into().ok()?)).cloned();
        trie_of(rows).part(names.iter().map(|name| name.as_slice()), value_of)
    }

    fn rows() -> impl Strategy<Value = Rows> {
        proptest::collection::btree_map(0u16..400, proptest::collection::vec(any::<u8>(), 0..4), 0..200)
    }

    fn names() -> impl Strategy<Value = BTreeSet<u16>> {
        proptest::collection::btree_set(0u16..400, 0..6)
    }

    proptest! {
        #[test]
        fn a_part_shows_what_was_asked_for_and_nothing_wrong(rows in rows(), names in names()) {
            let part = part_of(&rows, &names);
            prop_assert_eq!(&Part::from_bytes(&part.to_bytes()).unwrap(), &part);
            let proven = part.proven(&trie_of(&rows).root()).expect("it is a part of this trie");
            for name in 0..400u16 {
                match proven.get(&name.to_be_bytes()) {
                    Ok(shown) => prop_assert_eq!(shown.map(|value| value.to_vec()), rows.get(&name).cloned()),
                    Err(NotShown) => prop_assert!(!names.contains(&name), "{} was asked for", name),
                }
            }
            prop_assert_eq!(proven.rows().len(), names.iter().filter(|name| rows.contains_key(name)).count());
        }

        #[test]
        fn a_part_of_another_trie_is_refused(rows in rows(), other in rows(), names in names()) {
            let same = rows == other;
            prop_assert_eq!(part_of(&rows, &names).proven(&trie_of(&other).root()).is_some(), same);
        }

        /// Whatever one bit is turned over: the bytes are no part, or not of this trie.
        #[test]
        fn any_tampering_is_refused(rows in rows(), names in names(), place: prop::sample::Index, bit in 0u8..8) {
            let part = part_of(&rows, &names);
            let mut bytes = part.to_bytes();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(tampered) = Part::from_bytes(&bytes) {
                prop_assert_ne!(&tampered, &part);
                prop_assert_eq!(tampered.proven(&trie_of(&rows).root()), None);
            }
        }

        #[test]
        fn any_bytes_are_a_part_or_an_error(bytes: Vec<u8>) {
            if let Ok(part) = Part::from_bytes(&bytes) {
                prop_assert_eq!(part.to_bytes(), bytes);
            }
        }
    }

    /// What a liar may do without changing the digest: fold, or leave a value out. It shows less then.
    #[test]
    fn what_is_folded_is_not_shown() {
        let rows: Rows = (0..300).map(|name| (name, vec![name as u8])).collect();
        let root = trie_of(&rows).root();
        let name = 7u16.to_be_bytes();
        let folded = Part(Some(Piece::Folded(root))).proven(&root).expect("the root is its own part");
        assert_eq!(folded.get(&name), Err(NotShown));
        let hidden = trie_of(&rows).part([name.as_slice()], |_| None).proven(&root).expect("the same trie");
        assert_eq!(hidden.get(&name), Err(NotShown), "a leaf without its value is not an absent row");
        assert_eq!(Part(None).proven(&root), None, "nor is the trie empty");
        assert_eq!(Part(None).proven(&Trie::new().root()).expect("empty").get(&name), Ok(None));
    }

    #[test]
    fn a_part_is_bounded_on_decoding() {
        let mut deep = vec![1];
        for _ in 0..DEPTH_MAX + 1 {
            deep.extend_from_slice(&[3, 1, 0]);
        }
        deep.push(0);
        deep.extend_from_slice(&[0; 32]);
        assert!(Part::from_bytes(&deep).is_err(), "deeper than a key is long");
        let full: Rows = (0..u16::MAX).step_by(2).map(|name| (name, vec![1])).collect();
        let all = full.keys().copied().collect();
        assert!(Part::from_bytes(&part_of(&full, &all).to_bytes()).is_err(), "more nodes than fit");
    }
}
