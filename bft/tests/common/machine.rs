//! The replicated service of the tests: it remembers every operation, in order.

use base::{Decode, DecodeError, Digest, Encode, PublicKey, StateMachine, Time};
use bytes::Bytes;

use super::client_secret;

/// One executed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Time,
    pub who: PublicKey,
    pub op: Bytes,
}
base::canonical_struct!(Entry { at, who, op });

/// A history. The first 60 test clients are known to it.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub history: imbl::Vector<Entry>,
    pub chain: Digest,
    /// What a broken machine's digest is spoilt with.
    pub rot: u8,
}

/// Entries in a partition of the snapshot.
const PARTITION: usize = 16;

impl StateMachine for Machine {
    /// Answers with the operation's place in the history and the operation; the operation's first
    /// byte says how long the answer is, in units of 32 bytes.
    fn apply(&mut self, at: Time, who: &PublicKey, op: &[u8]) -> Vec<u8> {
        let place = self.history.len() as u64;
        let entry = Entry { at, who: *who, op: Bytes::copy_from_slice(op) };
        self.chain = Digest::of_parts(&[&self.chain.0, &entry.to_bytes()]);
        self.history.push_back(entry);
        answer(place, op)
    }

    fn admits(&self, who: &PublicKey) -> bool {
        (0..60).any(|index| *who == known(index))
    }

    fn digest(&mut self) -> Digest {
        Digest::of_parts(&[&self.chain.0, &[self.rot]])
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        let count = self.history.len().div_ceil(PARTITION);
        Box::new((0..count).map(move |index| {
            let entries = self.history.iter().skip(index * PARTITION).take(PARTITION);
            entries.cloned().collect::<Vec<_>>().to_bytes()
        }))
    }

    fn restore(&self, partitions: &[Vec<u8>]) -> Result<Self, DecodeError> {
        let mut machine = Machine { rot: self.rot, ..Machine::default() };
        for partition in partitions {
            for entry in Vec::<Entry>::from_bytes(partition)? {
                machine.apply(entry.at, &entry.who, &entry.op);
            }
        }
        Ok(machine)
    }
}

fn known(index: usize) -> PublicKey {
    static KEYS: std::sync::OnceLock<Vec<PublicKey>> = std::sync::OnceLock::new();
    KEYS.get_or_init(|| (0..60).map(|index| client_secret(index).public()).collect())[index]
}

pub fn answer(place: u64, op: &[u8]) -> Vec<u8> {
    let mut answer = place.to_bytes();
    answer.extend_from_slice(op);
    let units = op.first().map_or(0, |units| usize::from(*units));
    answer.resize(answer.len().max(units * 32), 7);
    answer
}

pub fn place_of(answer: &[u8]) -> u64 {
    u64::from_bytes(&answer[..8]).expect("eight bytes")
}
