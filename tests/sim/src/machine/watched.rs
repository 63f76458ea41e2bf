//! A state machine with a tape: what any correct replica applies is noted on one tape, and must be
//! what the tape already says if another was there before.
//!
//! So agreement is seen where it matters, at the service, and no checker depends on how a replica
//! came by its state: by votes, by vouchers, from its disk or by a state transfer.

use std::cell::RefCell;
use std::rc::Rc;

use base::merkle::Trie;
use base::{Decode, DecodeError, Digest, Encode as _, PublicKey, StateMachine, Time};
use bytes::Bytes;

/// One operation as applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The agreed time.
    pub(crate) at: Time,
    /// Who signed it.
    pub(crate) who: PublicKey,
    /// The operation.
    pub(crate) op: Bytes,
    /// The digest of the answer.
    pub(crate) answer: Digest,
    /// The digest of everything up to here.
    pub(crate) chain: Digest,
}

/// The one history.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    /// What was applied, in order.
    pub(crate) entries: Vec<Entry>,
    /// A place where somebody applied something else.
    pub(crate) conflict: Option<u64>,
}

/// The name of the row that says how much was applied; no machine has one of that name.
const ROW: &[u8] = b"watched";

/// A state machine that is watched.
#[derive(Clone)]
pub(crate) struct Watched<S> {
    /// The machine itself.
    pub(crate) inner: S,
    /// How many operations it applied in all its life, whoever applied them for it.
    pub(crate) applied: u64,
    /// The digest of them all.
    pub(crate) chain: Digest,
    /// What the digest is spoilt with, for a machine that is not deterministic.
    pub(crate) rot: u8,
    /// The machine's tree, and a row of our own.
    tree: Trie,
    /// Where it is noted; nobody watches a liar.
    tape: Option<Rc<RefCell<Tape>>>,
}

impl<S> Watched<S> {
    /// Nothing was applied yet.
    pub(crate) fn new(inner: S, tape: Option<Rc<RefCell<Tape>>>, rot: u8) -> Watched<S> {
        Watched { inner, applied: 0, chain: Digest::default(), rot, tree: Trie::new(), tape }
    }

    fn own_row(&self) -> Vec<u8> {
        (self.applied, self.chain, self.rot).to_bytes()
    }

    fn note(&self, entry: impl FnOnce() -> Entry, chain: Digest) {
        let Some(tape) = &self.tape else { return };
        let mut tape = tape.borrow_mut();
        let place = self.applied as usize;
        match tape.entries.get(place) {
            Some(first) if first.chain == chain => {}
            None if place == tape.entries.len() => tape.entries.push(entry()),
            _ => tape.conflict = tape.conflict.or(Some(self.applied)),
        }
    }
}

impl<S: StateMachine> StateMachine for Watched<S> {
    fn apply(&mut self, at: Time, who: &PublicKey, op: &[u8]) -> Vec<u8> {
        let mut answer = self.inner.apply(at, who, op);
        if self.rot > 0 {
            answer.push(self.rot);
        }
        let digest = Digest::of(&answer);
        let chain = Digest::of_parts(&[&self.chain.0, &digest.0, &at.0.to_le_bytes(), who.as_array(), op]);
        self.note(|| Entry { at, who: *who, op: Bytes::copy_from_slice(op), answer: digest, chain }, chain);
        self.applied += 1;
        self.chain = chain;
        answer
    }

    fn admits(&self, who: &PublicKey) -> bool {
        self.inner.admits(who)
    }

    fn digest(&mut self) -> Digest {
        self.tree().expect("every machine here has a tree").root()
    }

    fn tree(&mut self) -> Option<&Trie> {
        self.tree = self.inner.tree()?.clone();
        self.tree.insert(ROW, Digest::of(&self.own_row()));
        Some(&self.tree)
    }

    fn row(&self, name: &[u8]) -> Option<Vec<u8>> {
        if name == ROW { Some(self.own_row()) } else { self.inner.row(name) }
    }

    fn patch(&mut self, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), DecodeError> {
        let (own, others): (Vec<_>, Vec<_>) = rows.iter().cloned().partition(|(name, _)| name == ROW);
        if let Some((_, Some(value))) = own.last() {
            (self.applied, self.chain, self.rot) = Decode::from_bytes(value)?;
        }
        self.inner.patch(&others)
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        let first = (self.applied, self.chain).to_bytes();
        Box::new(core::iter::once(first).chain(self.inner.snapshot()))
    }

    fn restore(&self, partitions: &[Vec<u8>]) -> Result<Self, DecodeError> {
        let (first, rest) = partitions.split_first().ok_or(DecodeError::Invalid { what: "snapshot" })?;
        let (applied, chain) = <(u64, Digest)>::from_bytes(first)?;
        let inner = self.inner.restore(rest)?;
        Ok(Watched { inner, applied, chain, rot: self.rot, tree: Trie::new(), tape: self.tape.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::known_principals;
    use crate::machine::{Journal, Service as _};
    use crate::rng::Rng;

    #[test]
    fn a_second_history_shows_on_the_tape() {
        let tape = Rc::new(RefCell::new(Tape::default()));
        let principals = known_principals();
        let genesis = Watched::new(Journal::genesis(&principals), Some(tape.clone()), 0);
        let ops: Vec<_> = (0..3).map(|number| Journal::operation(&mut Rng::new(number), number)).collect();
        let (mut one, mut other) = (genesis.clone(), genesis);
        let answer = one.apply(Time(1), &principals[0], &ops[0]);
        assert_eq!(other.apply(Time(1), &principals[0], &ops[0]), answer);
        one.apply(Time(2), &principals[0], &ops[1]);
        assert_eq!((tape.borrow().entries.len(), tape.borrow().conflict), (2, None));
        let partitions: Vec<_> = one.snapshot().collect();
        assert_eq!(other.restore(&partitions).unwrap().digest(), one.digest());
        let names = one.tree().unwrap().names(&base::merkle::Prefix::default());
        let rows: Vec<_> = names.iter().map(|name| (name.to_vec(), one.row(name))).collect();
        let mut patched = other.clone();
        patched.patch(&rows).unwrap();
        assert_eq!((patched.digest(), patched.applied), (one.digest(), 2));
        other.apply(Time(2), &principals[0], &ops[2]);
        assert_eq!(tape.borrow().conflict, Some(1));
    }
}
