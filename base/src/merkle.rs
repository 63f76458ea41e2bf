//! A Merkle trie over keyed values: the digest of a state, and of every part of it.
//!
//! A persistent 16-way trie by the bits of a key's SHA-256. Cloning shares everything; an update
//! copies the path it changes, and digests are computed when asked for, once a node. The root
//! depends on the set of (key, value) pairs alone, not on the order of updates.

use std::sync::{Arc, OnceLock};

use crate::hash::Digest;

const FAN_OUT: usize = 16;
const DEPTH_MAX: usize = 64;

/// A persistent map from keys to value digests, with a digest of its own.
#[derive(Clone, Debug, Default)]
pub struct Trie {
    root: Option<Arc<Node>>,
    len: usize,
}

#[derive(Debug)]
enum Node {
    Leaf { key: Digest, value: Digest },
    Fork { children: [Option<Arc<Node>>; FAN_OUT], digest: OnceLock<Digest> },
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

    /// Binds the key with digest `key` to `value`.
    pub fn insert(&mut self, key: Digest, value: Digest) {
        let (root, added) = insert(self.root.take(), key, value, 0);
        self.root = Some(root);
        self.len += usize::from(added);
    }

    /// Forgets `key`; nothing happens if it is not there.
    pub fn remove(&mut self, key: &Digest) {
        let Some(root) = self.root.take() else { return };
        let (root, removed) = remove(root, key, 0);
        self.root = root;
        self.len -= usize::from(removed);
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
    Arc::new(Node::Fork { children, digest: OnceLock::new() })
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

fn insert(node: Option<Arc<Node>>, key: Digest, value: Digest, depth: usize) -> (Arc<Node>, bool) {
    assert!(depth <= DEPTH_MAX, "two keys with one SHA-256 digest");
    let Some(node) = node else {
        return (Arc::new(Node::Leaf { key, value }), true);
    };
    match &*node {
        Node::Leaf { key: other, .. } if *other == key => (Arc::new(Node::Leaf { key, value }), false),
        Node::Leaf { key: other, .. } => {
            let mut children: [Option<Arc<Node>>; FAN_OUT] = Default::default();
            let at = slot(other, depth);
            children[at] = Some(node.clone());
            insert(Some(fork(children)), key, value, depth)
        }
        Node::Fork { .. } => {
            let mut children = children_of(node);
            let child = &mut children[slot(&key, depth)];
            let (new, added) = insert(child.take(), key, value, depth + 1);
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
    fn digest(&self) -> Digest {
        match self {
            Node::Leaf { key, value } => Digest::of_parts(&[b"L", &key.0, &value.0]),
            Node::Fork { children, digest } => *digest.get_or_init(|| {
                let mut bytes = Vec::with_capacity(1 + FAN_OUT * 33);
                bytes.push(b'F');
                for (index, child) in children.iter().enumerate() {
                    if let Some(child) = child {
                        bytes.push(index as u8);
                        bytes.extend_from_slice(&child.digest().0);
                    }
                }
                Digest::of(&bytes)
            }),
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
            trie.insert(Digest::of(&[*key]), Digest::of(&[*value]));
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
                    Some(value) => { trie.insert(Digest::of(&[key]), Digest::of(&[value])); model.insert(key, value); }
                    None => { trie.remove(&Digest::of(&[key])); model.remove(&key); }
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
}
