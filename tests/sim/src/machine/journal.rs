//! A cheap service: a few cells to add to, and a chain over everything that was done.

use base::merkle::Trie;
use base::{Decode as _, DecodeError, Digest, Encode as _, PublicKey, StateMachine, Time};
use bytes::Bytes;

use super::Service;
use crate::rng::Rng;

const CELLS: usize = 16;
/// Where an operation's cell, addend and length of answer are; its number comes before.
const CELL: usize = 8;
const ADDEND: usize = 9;
const UNITS: usize = 10;
const OP_MIN: usize = 11;

/// Cells, and who may add to them.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    principals: std::rc::Rc<[PublicKey]>,
    cells: [u64; CELLS],
    done: u64,
    /// Cells changed since their digests were taken, a bit each.
    changed: u32,
    tree: Trie,
}

/// The row that counts operations; before it are the cells.
const DONE: u8 = CELLS as u8;

impl Service for Journal {
    fn genesis(principals: &[PublicKey]) -> Journal {
        Journal { principals: principals.into(), cells: [0; CELLS], done: 0, changed: u32::MAX, tree: Trie::new() }
    }

    fn operation(rng: &mut Rng, number: u64) -> Bytes {
        let mut op = number.to_bytes();
        op.push(rng.below(CELLS as u64) as u8);
        op.push(rng.below(256) as u8);
        // Now and then an answer too long to be sent by every replica, or a long operation.
        op.push(if rng.percent(10) { rng.between(8, 40) as u8 } else { 0 });
        let padding = if rng.percent(2) { rng.below(20_000) } else { rng.below(40) };
        op.resize(op.len() + padding as usize, 7);
        op.into()
    }
}

impl StateMachine for Journal {
    /// Answers with the cell's new value and how many operations there were; the answer's length is
    /// the operation's choice, in units of 32 bytes.
    fn apply(&mut self, at: Time, _who: &PublicKey, op: &[u8]) -> Vec<u8> {
        let Some(OP_MIN) = op.get(..OP_MIN).map(<[u8]>::len) else { return b"too short".to_vec() };
        let index = usize::from(op[CELL]) % CELLS;
        self.changed |= 1 << index;
        let cell = &mut self.cells[index];
        *cell = cell.wrapping_mul(31).wrapping_add(u64::from(op[ADDEND])).wrapping_add(at.0 >> 30);
        self.done += 1;
        let mut answer = (*cell, self.done).to_bytes();
        answer.resize(answer.len().max(usize::from(op[UNITS]) * 32), 7);
        answer
    }

    fn admits(&self, who: &PublicKey) -> bool {
        self.principals.contains(who)
    }

    fn digest(&mut self) -> Digest {
        self.settle();
        self.tree.root()
    }

    fn tree(&mut self) -> Option<&Trie> {
        self.settle();
        Some(&self.tree)
    }

    fn row(&self, name: &[u8]) -> Option<Vec<u8>> {
        match name {
            [DONE] => Some(self.done.to_bytes()),
            [cell] => self.cells.get(usize::from(*cell)).map(|value| value.to_bytes()),
            _ => None,
        }
    }

    fn patch(&mut self, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), DecodeError> {
        for (name, value) in rows {
            // Rows are always there; they are only ever replaced.
            let Some(value) = value else { continue };
            let row = match name.as_slice() {
                [DONE] => Some(&mut self.done),
                [cell] => self.cells.get_mut(usize::from(*cell)),
                _ => None,
            };
            *row.ok_or(DecodeError::Invalid { what: "row of a journal" })? = u64::from_bytes(value)?;
        }
        self.changed = u32::MAX;
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        let halves = self.cells.chunks(CELLS / 2).map(|half| (half.to_vec(), self.done).to_bytes());
        Box::new(halves)
    }

    fn restore(&self, partitions: &[Vec<u8>]) -> Result<Self, DecodeError> {
        let mut restored = self.clone();
        let mut cells = Vec::new();
        for partition in partitions {
            let (half, done) = <(Vec<u64>, u64)>::from_bytes(partition)?;
            cells.extend(half);
            restored.done = done;
        }
        restored.changed = u32::MAX;
        restored.cells = cells.try_into().map_err(|_| DecodeError::Invalid { what: "journal" })?;
        Ok(restored)
    }
}

impl Journal {
    /// Brings the digests up to date.
    fn settle(&mut self) {
        for cell in (0..DONE).filter(|cell| self.changed >> cell & 1 == 1) {
            self.tree.insert(&[cell], Digest::of_encoded(&self.cells[usize::from(cell)]));
        }
        self.tree.insert(&[DONE], Digest::of_encoded(&self.done));
        self.changed = 0;
    }
}
