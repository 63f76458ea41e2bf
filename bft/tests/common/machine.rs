//! The replicated service of the tests: it remembers every operation, in order.

use base::merkle::Trie;
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
    pub tree: Trie,
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
        self.push(Entry { at, who: *who, op: Bytes::copy_from_slice(op) });
        answer(place, op)
    }

    fn admits(&self, who: &PublicKey) -> bool {
        (0..60).any(|index| *who == known(index))
    }

    fn digest(&mut self) -> Digest {
        self.tree.root()
    }

    fn tree(&mut self) -> Option<&Trie> {
        Some(&self.tree)
    }

    fn row(&self, name: &[u8]) -> Option<Vec<u8>> {
        self.history.get(usize::try_from(place_of(name)).ok()?).map(Encode::to_bytes)
    }

    /// Places are only ever added, at the end in the end, and meanwhile anywhere.
    fn patch(&mut self, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), DecodeError> {
        for (name, value) in rows {
            let place = usize::try_from(u64::from_bytes(name)?).expect("a place");
            let Some(value) = value else {
                self.tree.remove(name);
                continue;
            };
            let nothing = Entry { at: Time::ZERO, who: known(0), op: Bytes::new() };
            while self.history.len() <= place {
                self.history.push_back(nothing.clone());
            }
            self.history.set(place, Entry::from_bytes(value)?);
            self.tree.insert(name, Digest::of(value));
        }
        Ok(())
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

impl Machine {
    fn push(&mut self, entry: Entry) {
        let name = (self.history.len() as u64).to_bytes();
        let mut value = entry.to_bytes();
        // A broken machine's digests are its own.
        value.extend(core::iter::repeat_n(0, usize::from(self.rot)));
        self.tree.insert(&name, Digest::of(&value));
        self.history.push_back(entry);
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
