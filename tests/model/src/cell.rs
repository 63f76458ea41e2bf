//! The smallest service that tells orders apart: it remembers what it was told, in order.

use base::{DecodeError, Digest, PublicKey, StateMachine, Time};

/// The operations done so far, one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell(Vec<u8>);

impl StateMachine for Cell {
    fn apply(&mut self, _at: Time, _who: &PublicKey, op: &[u8]) -> Vec<u8> {
        self.0.extend_from_slice(op);
        Vec::new()
    }

    fn admits(&self, _who: &PublicKey) -> bool {
        true
    }

    fn digest(&mut self) -> Digest {
        Digest::of(&self.0)
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        Box::new(core::iter::once(self.0.clone()))
    }

    fn restore(&self, partitions: &[Vec<u8>]) -> Result<Self, DecodeError> {
        Ok(Cell(partitions.concat()))
    }
}
