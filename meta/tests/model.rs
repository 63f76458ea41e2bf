//! The namespace beside a model of it that is too simple to be wrong: a tree of maps, links counted
//! by looking, loops found by searching. Root asks, so that only the rules of names matter.

mod common;

use std::collections::BTreeMap;

use common::*;
use meta::*;
use proptest::prelude::*;

type Id = usize;

/// Nodes by number; a directory is a map from names to numbers. Node 0 is the root.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<Id, Option<BTreeMap<String, Id>>>,
    made: Id,
}

impl Model {
    fn new() -> Model {
        Model { nodes: [(0, Some(BTreeMap::new()))].into(), made: 1 }
    }

    fn entries(&mut self, node: Id) -> Result<&mut BTreeMap<String, Id>, Denied> {
        self.nodes.get_mut(&node).and_then(Option::as_mut).ok_or(Denied::NotDirectory)
    }

    fn is_directory(&self, node: Id) -> bool {
        self.nodes[&node].is_some()
    }

    /// All nodes at or below one.
    fn below(&self, node: Id) -> Vec<Id> {
        let children = self.nodes[&node].iter().flat_map(BTreeMap::values);
        [vec![node], children.flat_map(|child| self.below(*child)).collect()].concat()
    }

    fn nlink(&self, node: Id) -> usize {
        match &self.nodes[&node] {
            Some(entries) => 2 + entries.values().filter(|child| self.is_directory(**child)).count(),
            None => self.nodes.values().flatten().flat_map(BTreeMap::values).filter(|child| **child == node).count(),
        }
    }

    /// What can't be reached from the root is gone.
    fn forget_unreachable(&mut self) {
        let reachable = self.below(0);
        self.nodes.retain(|node, _| reachable.contains(node));
    }

    fn create(&mut self, dir: Id, name: &str, directory: bool) -> Result<Id, Denied> {
        let node = self.made;
        let entries = self.entries(dir)?;
        if entries.contains_key(name) {
            return Err(Denied::Exists);
        }
        entries.insert(name.into(), node);
        self.nodes.insert(node, directory.then(BTreeMap::new));
        self.made += 1;
        Ok(node)
    }

    fn link(&mut self, node: Id, dir: Id, name: &str) -> Result<(), Denied> {
        if self.entries(dir)?.contains_key(name) {
            return Err(Denied::Exists);
        }
        if self.is_directory(node) {
            return Err(Denied::NotPermitted);
        }
        self.entries(dir)?.insert(name.into(), node);
        Ok(())
    }

    fn remove(&mut self, dir: Id, name: &str, directory: bool) -> Result<(), Denied> {
        let node = *self.entries(dir)?.get(name).ok_or(Denied::NotFound)?;
        match (directory, &self.nodes[&node]) {
            (false, Some(_)) => return Err(Denied::IsDirectory),
            (true, None) => return Err(Denied::NotDirectory),
            (true, Some(entries)) if !entries.is_empty() => return Err(Denied::NotEmpty),
            _ => {}
        }
        self.entries(dir)?.remove(name);
        self.forget_unreachable();
        Ok(())
    }

    fn rename(&mut self, from: (Id, &str), to: (Id, &str), how: RenameHow) -> Result<(), Denied> {
        self.entries(from.0)?;
        self.entries(to.0)?;
        let source = *self.entries(from.0)?.get(from.1).ok_or(Denied::NotFound)?;
        let target = self.entries(to.0)?.get(to.1).copied();
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(Denied::Exists),
            (RenameHow::Exchange, None) => return Err(Denied::NotFound),
            (_, Some(target)) if target == source => return Ok(()),
            _ => {}
        }
        let exchange = how == RenameHow::Exchange;
        let into_itself = self.below(source).contains(&to.0);
        let swallowed = exchange && target.is_some_and(|target| self.below(target).contains(&from.0));
        if into_itself || swallowed {
            return Err(Denied::Invalid);
        }
        if let (false, Some(target)) = (exchange, target) {
            match (&self.nodes[&source], &self.nodes[&target]) {
                (Some(_), None) => return Err(Denied::NotDirectory),
                (None, Some(_)) => return Err(Denied::IsDirectory),
                (Some(_), Some(entries)) if !entries.is_empty() => return Err(Denied::NotEmpty),
                _ => {}
            }
        }
        self.entries(from.0)?.remove(from.1);
        self.entries(to.0)?.insert(to.1.into(), source);
        if let (true, Some(target)) = (exchange, target) {
            self.entries(from.0)?.insert(from.1.into(), target);
        }
        self.forget_unreachable();
        Ok(())
    }
}

/// Nodes are chosen among those that are there, by an index modulo their number.
#[derive(Clone, Debug)]
enum Step {
    Create(usize, u8, bool),
    Link(usize, usize, u8),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename(usize, u8, usize, u8, RenameHow),
    Write(usize, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (node, name) = (0usize..64, 0u8..4);
    let how = prop_oneof![
        3 => Just(RenameHow::Replace),
        1 => Just(RenameHow::NoReplace),
        2 => Just(RenameHow::Exchange)
    ];
    prop_oneof![
        6 => (node.clone(), name.clone(), any::<bool>()).prop_map(|(dir, name, dirs)| Step::Create(dir, name, dirs)),
        2 => (node.clone(), node.clone(), name.clone()).prop_map(|(node, dir, name)| Step::Link(node, dir, name)),
        2 => (node.clone(), name.clone()).prop_map(|(dir, name)| Step::Unlink(dir, name)),
        2 => (node.clone(), name.clone()).prop_map(|(dir, name)| Step::Rmdir(dir, name)),
        8 => (node.clone(), name.clone(), node.clone(), name, how)
            .prop_map(|(from, name, to, to_name, how)| Step::Rename(from, name, to, to_name, how)),
        1 => (node, any::<u16>()).prop_map(|(node, size)| Step::Write(node, size)),
    ]
}

/// The model, the world, and which inode stands for which node.
struct Pair {
    model: Model,
    world: World,
    inos: BTreeMap<Id, Ino>,
    sizes: BTreeMap<Id, u64>,
}

impl Pair {
    fn new() -> Pair {
        let world = World::new();
        Pair { model: Model::new(), inos: [(0, world.root)].into(), sizes: BTreeMap::new(), world }
    }

    fn node(&self, index: usize) -> (Id, Ino) {
        let node = *self.model.nodes.keys().nth(index % self.model.nodes.len()).unwrap();
        (node, self.inos[&node])
    }

    fn step(&mut self, step: &Step) -> (Result<(), Denied>, Result<(), Denied>) {
        let root = user(0);
        let text = |name: &u8| format!("name{name}");
        match step {
            Step::Create(dir, name, directory) => {
                let ((dir, ino), name) = (self.node(*dir), text(name));
                let kind = if *directory { Kind::Directory } else { Kind::File };
                let made = self.world.create(&root, ino, &name, new(kind, 0));
                let expected = self.model.create(dir, &name, *directory);
                if let (Ok(node), Ok(attr)) = (expected, &made) {
                    self.inos.insert(node, attr.ino);
                }
                (expected.map(drop), made.map(drop))
            }
            Step::Link(node, dir, name) => {
                let ((node, ino), (dir, dir_ino), name) = (self.node(*node), self.node(*dir), text(name));
                let linked = self.world.link(&root, ino, dir_ino, &name);
                (self.model.link(node, dir, &name), linked.map(drop))
            }
            Step::Unlink(dir, name) => {
                let ((dir, ino), name) = (self.node(*dir), text(name));
                (self.model.remove(dir, &name, false), self.world.unlink(&root, ino, &name, false).map(drop))
            }
            Step::Rmdir(dir, name) => {
                let ((dir, ino), name) = (self.node(*dir), text(name));
                (self.model.remove(dir, &name, true), self.world.rmdir(&root, ino, &name).map(drop))
            }
            Step::Rename(from, from_name, to, to_name, how) => {
                let ((from, from_ino), (to, to_ino)) = (self.node(*from), self.node(*to));
                let (from_name, to_name) = (text(from_name), text(to_name));
                let moved = self.world.rename(&root, (from_ino, &from_name), (to_ino, &to_name), *how);
                (self.model.rename((from, &from_name), (to, &to_name), *how), moved.map(drop))
            }
            Step::Write(node, size) => {
                let ((node, ino), size) = (self.node(*node), u64::from(*size));
                let written = self.world.write(&root, ino, content(size, size), false);
                if self.model.is_directory(node) {
                    return (Err(Denied::IsDirectory), written.map(drop));
                }
                self.sizes.insert(node, size);
                (Ok(()), written.map(drop))
            }
        }
    }

    /// Everything the model knows, asked of the world.
    fn compare(&mut self) {
        let nodes: Vec<Id> = self.model.nodes.keys().copied().collect();
        for node in nodes.iter().copied() {
            let attr = self.world.attr(self.inos[&node]);
            assert_eq!(attr.nlink as usize, self.model.nlink(node));
            assert_eq!(attr.kind == Kind::Directory, self.model.is_directory(node));
            let Some(entries) = self.model.nodes[&node].clone() else { continue };
            assert_eq!(attr.size as usize, entries.len());
            let expected: BTreeMap<_, _> = entries.iter().map(|(text, child)| (name(text), self.inos[child])).collect();
            let listed = self.world.list(attr.ino, 3);
            assert_eq!(listed.len(), expected.len());
            for entry in listed {
                assert_eq!(expected.get(&entry.name), Some(&entry.attr.ino));
                assert_eq!(entry.attr, self.world.attr(entry.attr.ino));
            }
        }
        let counts = self.world.state.counts();
        assert_eq!((counts.inodes, counts.orphans), (nodes.len(), 0));
        let bytes = nodes.iter().filter_map(|node| self.sizes.get(node)).sum();
        let expected = Space { used_bytes: bytes, used_inodes: nodes.len() as u64, ..Space::default() };
        assert_eq!(self.world.space(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_namespace_is_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        for step in &steps {
            let (expected, found) = pair.step(step);
            prop_assert_eq!(found, expected, "{:?}", step);
        }
        pair.compare();
    }
}
