//! A Merkle trie over keyed values: the digest of a state, and of every part of it.
//!
//! A persistent 16-way trie by the bits of a key's SHA-256. Cloning shares everything; an update
//! copies the path it changes, and digests are computed when asked for, once a node. The root
//! depends on the set of (name, value) pairs alone, not on the order of updates.
//!
//! Every part of the trie can be checked by itself against the digest above it: so a state can be
//! fetched in parts, from whoever has it, and only where it differs ([`Prefix`], [`Branch`]). And a few
//! rows can be shown to somebody who has nothing but the root ([`Part`]).

mod part;

use std::sync::{Arc, OnceLock};

use crate::codec::{Decode, DecodeError, Encode, Reader};
use crate::hash::Digest;

pub use part::{NotShown, Part, Proven};

/// Children of a fork.
pub const FAN_OUT: usize = 16;
const DEPTH_MAX: usize = 64;

/// A persistent map from keys to value digests, with a digest of its own.
#[derive(Clone, Debug, Default)]
pub struct Trie {
    root: Option<Arc<Node>>,
    len: usize,
}

#[derive(Debug)]
enum Node {
    Leaf { key: Digest, name: Arc<[u8]>, value: Digest },
    Fork { children: [Option<Arc<Node>>; FAN_OUT], len: usize, digest: OnceLock<Digest> },
}

/// A path from the root: the first hexadecimal digits of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Vec<u8>);

/// What is at the end of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The digest of it all.
    pub digest: Digest,
    /// How many names.
    pub len: usize,
    /// The digests of its children, if it is a fork.
    pub children: Option<[Option<Digest>; FAN_OUT]>,
}

impl Prefix {
    /// The path on to a child.
    ///
    /// # Panics
    /// If the path is as long as a key, or there is no such child.
    #[must_use]
    pub fn child(&self, index: usize) -> Prefix {
        assert!(index < FAN_OUT && self.0.len() < DEPTH_MAX, "a path within a key");
        let mut digits = self.0.clone();
        digits.push(index as u8);
        Prefix(digits)
    }

    /// Whether there is no way on: a path this long leads to one key only.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() >= DEPTH_MAX - 1
    }

    fn is_of(&self, key: &Digest) -> bool {
        self.0.iter().enumerate().all(|(depth, digit)| slot(key, depth) == usize::from(*digit))
    }
}

impl Encode for Prefix {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for Prefix {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let digits: Vec<u8> = input.seq_max("path", DEPTH_MAX - 1)?;
        if digits.iter().any(|digit| usize::from(*digit) >= FAN_OUT) {
            return Err(DecodeError::Invalid { what: "path" });
        }
        Ok(Prefix(digits))
    }
}

impl Trie {
    /// The empty trie.
    #[must_use]
    pub fn new() -> Trie {
        Trie::default()
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Binds `name` to `value`.
    pub fn insert(&mut self, name: &[u8], value: Digest) {
        let (root, added) = insert(self.root.take(), Digest::of(name), name, value, 0);
        self.root = Some(root);
        self.len += usize::from(added);
    }

    /// Forgets `name`; nothing happens if it is not there.
    pub fn remove(&mut self, name: &[u8]) {
        let Some(root) = self.root.take() else { return };
        let (root, removed) = remove(root, &Digest::of(name), 0);
        self.root = root;
        self.len -= usize::from(removed);
    }

    /// What is at the end of this path, if anything is.
    #[must_use]
    pub fn branch(&self, at: &Prefix) -> Option<Branch> {
        let node = self.node(at)?;
        let children = match node {
            Node::Leaf { .. } => None,
            Node::Fork { children, .. } => Some(children.each_ref().map(|child| Some(child.as_deref()?.digest()))),
        };
        Some(Branch { digest: node.digest(), len: node.len(), children })
    }

    /// The names whose keys start with this path, in the order of their keys.
    #[must_use]
    pub fn names(&self, at: &Prefix) -> Vec<Arc<[u8]>> {
        let mut names = Vec::new();
        if let Some(node) = self.node(at) {
            node.collect(&mut names);
        }
        names
    }

    /// The node at the end of a path: there, or a leaf before it that the path leads on to.
    fn node(&self, at: &Prefix) -> Option<&Node> {
        let mut node = self.root.as_deref()?;
        for digit in &at.0 {
            match node {
                Node::Leaf { key, .. } => return at.is_of(key).then_some(node),
                Node::Fork { children, .. } => node = children[usize::from(*digit)].as_deref()?,
            }
        }
        Some(node)
    }

    /// The digest of what is at the end of this path in a trie that has just these names there;
    /// `None` if there are none, or one does not belong there.
    #[must_use]
    pub fn digest_of<'a>(at: &Prefix, pairs: impl Iterator<Item = (&'a [u8], Digest)>) -> Option<Digest> {
        let mut node = None;
        for (name, value) in pairs {
            let key = Digest::of(name);
            if !at.is_of(&key) {
                return None;
            }
            node = Some(insert(node, key, name, value, at.0.len()).0);
        }
        node.map(|node| node.digest())
    }

    /// The digest of a fork with these children.
    #[must_use]
    pub fn digest_of_fork(children: &[Option<Digest>; FAN_OUT]) -> Digest {
        let mut bytes = Vec::with_capacity(1 + FAN_OUT * 33);
        bytes.push(b'F');
        for (index, child) in children.iter().enumerate() {
            if let Some(child) = child {
                bytes.push(index as u8);
                bytes.extend_from_slice(&child.0);
            }
        }
        Digest::of(&bytes)
    }

    /// The digest of all pairs; of nothing, the zero digest.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root.as_deref().map_or(Digest([0; 32]), Node::digest)
    }
}

fn slot(key: &Digest, depth: usize) -> usize {
    let byte = key.0[depth / 2];
    usize::from(if depth.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
}

fn fork(children: [Option<Arc<Node>>; FAN_OUT]) -> Arc<Node> {
    let len = children.iter().flatten().map(|child| child.len()).sum();
    Arc::new(Node::Fork { children, len, digest: OnceLock::new() })
}

/// The children of a node about to be changed: moved out if nobody shares it, else copied.
fn children_of(node: Arc<Node>) -> [Option<Arc<Node>>; FAN_OUT] {
    match Arc::try_unwrap(node) {
        Ok(Node::Fork { children, .. }) => children,
        Ok(Node::Leaf { .. }) => unreachable!("asked only of forks"),
        Err(shared) => match &*shared {
            Node::Fork { children, .. } => children.clone(),
            Node::Leaf { .. } => unreachable!("asked only of forks"),
        },
    }
}

fn insert(node: Option<Arc<Node>>, key: Digest, name: &[u8], value: Digest, depth: usize) -> (Arc<Node>, bool) {
    assert!(depth <= DEPTH_MAX, "two keys with one SHA-256 digest");
    let Some(node) = node else {
        return (Arc::new(Node::Leaf { key, name: name.into(), value }), true);
    };
    match &*node {
        Node::Leaf { key: other, name, .. } if *other == key => {
            (Arc::new(Node::Leaf { key, name: name.clone(), value }), false)
        }
        Node::Leaf { key: other, .. } => {
            let mut children: [Option<Arc<Node>>; FAN_OUT] = Default::default();
            let at = slot(other, depth);
            children[at] = Some(node.clone());
            insert(Some(fork(children)), key, name, value, depth)
        }
        Node::Fork { .. } => {
            let mut children = children_of(node);
            let child = &mut children[slot(&key, depth)];
            let (new, added) = insert(child.take(), key, name, value, depth + 1);
            *child = Some(new);
            (fork(children), added)
        }
    }
}

fn remove(node: Arc<Node>, key: &Digest, depth: usize) -> (Option<Arc<Node>>, bool) {
    match &*node {
        Node::Leaf { key: other, .. } if other == key => (None, true),
        Node::Leaf { .. } => (Some(node), false),
        Node::Fork { children, .. } => {
            let at = slot(key, depth);
            if children[at].is_none() {
                return (Some(node), false);
            }
            let mut children = children_of(node);
            let child = children[at].take().expect("just seen");
            let (new, removed) = remove(child, key, depth + 1);
            children[at] = new;
            (collapse(children), removed)
        }
    }
}

/// A fork with one leaf below it is that leaf, so that the shape depends on the keys alone.
fn collapse(children: [Option<Arc<Node>>; FAN_OUT]) -> Option<Arc<Node>> {
    let mut present = children.iter().flatten();
    match (present.next(), present.next()) {
        (None, _) => None,
        (Some(only), None) if matches!(**only, Node::Leaf { .. }) => Some(only.clone()),
        _ => Some(fork(children)),
    }
}

impl Node {
    fn digest_of_leaf(key: &Digest, value: &Digest) -> Digest {
        Digest::of_parts(&[b"L", &key.0, &value.0])
    }

    fn digest(&self) -> Digest {
        match self {
            Node::Leaf { key, value, .. } => Node::digest_of_leaf(key, value),
            Node::Fork { children, digest, .. } => *digest.get_or_init(|| {
                Trie::digest_of_fork(&children.each_ref().map(|child| Some(child.as_deref()?.digest())))
            }),
        }
    }

    fn len(&self) -> usize {
        match self {
            Node::Leaf { .. } => 1,
            Node::Fork { len, .. } => *len,
        }
    }

    fn collect(&self, names: &mut Vec<Arc<[u8]>>) {
        match self {
            Node::Leaf { name, .. } => names.push(name.clone()),
            Node::Fork { children, .. } => children.iter().flatten().for_each(|child| child.collect(names)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn trie_of(pairs: &BTreeMap<u8, u8>, backwards: bool) -> Trie {
        let mut trie = Trie::new();
        let mut pairs: Vec<_> = pairs.iter().collect();
        if backwards {
            pairs.reverse();
        }
        for (key, value) in pairs {
            trie.insert(&[*key], Digest::of(&[*value]));
        }
        trie
    }

    proptest! {
        #[test]
        fn the_root_names_the_set(steps in proptest::collection::vec((any::<u8>(), any::<Option<u8>>()), 0..80)) {
            let (mut trie, mut model) = (Trie::new(), BTreeMap::new());
            for (key, value) in steps {
                let before = (trie.clone(), trie.root());
                match value {
                    Some(value) => { trie.insert(&[key], Digest::of(&[value])); model.insert(key, value); }
                    None => { trie.remove(&[key]); model.remove(&key); }
                }
                prop_assert_eq!(before.0.root(), before.1, "a clone does not see later updates");
                prop_assert_eq!(trie.len(), model.len());
            }
            prop_assert_eq!(trie.root(), trie_of(&model, false).root());
            prop_assert_eq!(trie.root(), trie_of(&model, true).root());
        }

        #[test]
        fn different_sets_have_different_roots(a: BTreeMap<u8, u8>, b: BTreeMap<u8, u8>) {
            prop_assert_eq!(trie_of(&a, false).root() == trie_of(&b, false).root(), a == b);
        }
    }

    /// Copies `from` over `to` part by part, as a peer does that believes nothing but the root.
    fn copy(from: &Trie, to: &mut Trie, values: &BTreeMap<u8, u8>) -> usize {
        let (mut todo, mut asked) = (vec![(Prefix::default(), from.root())], 0);
        while let Some((at, digest)) = todo.pop() {
            if to.branch(&at).is_some_and(|branch| branch.digest == digest) {
                continue;
            }
            asked += 1;
            let branch = from.branch(&at).expect("what its digest names is there");
            if let Some(children) = branch.children.filter(|_| branch.len > 3) {
                assert_eq!(Trie::digest_of_fork(&children), digest);
                for (index, child) in children.into_iter().enumerate() {
                    match child {
                        Some(child) => todo.push((at.child(index), child)),
                        None => to.names(&at.child(index)).iter().for_each(|name| to.remove(name)),
                    }
                }
            } else {
                let names = from.names(&at);
                let pairs = || names.iter().map(|name| (&**name, Digest::of(&[values[&name[0]]])));
                assert_eq!(Trie::digest_of(&at, pairs()), Some(digest));
                to.names(&at).iter().for_each(|name| to.remove(name));
                pairs().for_each(|(name, value)| to.insert(name, value));
            }
        }
        asked
    }

    proptest! {
        #[test]
        fn a_part_is_checked_by_itself_and_only_differences_are_asked_for(
            a in proptest::collection::btree_map(any::<u8>(), any::<u8>(), 1..120),
            b: BTreeMap<u8, u8>,
        ) {
            let (from, mut to) = (trie_of(&a, false), trie_of(&b, false));
            copy(&from, &mut to, &a);
            prop_assert_eq!(to.root(), from.root());
            prop_assert_eq!(to.len(), a.len());
            prop_assert_eq!(copy(&from, &mut to, &a), 0, "nothing is asked for twice");
        }
    }
}
