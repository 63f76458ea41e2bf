//! I5, at most once: no operation is applied twice, and one name stands for one operation.

use std::collections::{BTreeMap, BTreeSet};

use base::{Digest, Seq};

use super::Verdict;
use super::answers::Name;

/// What was applied.
#[derive(Debug, Default)]
pub(crate) struct Once {
    names: BTreeMap<Digest, Name>,
    applied: BTreeSet<Digest>,
    names_used: BTreeSet<Name>,
    /// How many requests of a batch were executed, as the first correct replica says.
    counts: BTreeMap<Seq, usize>,
}

impl Once {
    /// An operation was signed under this name.
    pub(crate) fn named(&mut self, op: Digest, name: Name) {
        self.names.entry(op).or_insert(name);
    }

    /// The next operation of the history.
    pub(crate) fn applied(&mut self, op: Digest) -> Verdict {
        if !self.applied.insert(op) {
            return Err(format!("operation {op:?} was applied twice"));
        }
        match self.names.get(&op) {
            Some(name) if !self.names_used.insert(*name) => {
                Err(format!("two operations were applied as request {} of session {}", name.2, name.1))
            }
            _ => Ok(()),
        }
    }

    /// A correct replica executed so many requests of a batch.
    pub(crate) fn executed(&mut self, seq: Seq, requests: usize) -> Verdict {
        let first = *self.counts.entry(seq).or_insert(requests);
        if first == requests {
            return Ok(());
        }
        Err(format!("{requests} requests of {seq:?} were executed here, {first} there"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::known_principals;

    #[test]
    fn a_second_execution_is_caught() {
        let mut once = Once::default();
        let name = (known_principals()[0], 1, 1);
        let (op, other) = (Digest([1; 32]), Digest([2; 32]));
        once.named(op, name);
        assert!(once.applied(op).is_ok());
        assert!(once.applied(op).is_err());
        once.named(other, name);
        assert!(once.applied(other).is_err(), "another operation under the same name");
        assert!(once.executed(Seq(1), 3).is_ok() && once.executed(Seq(1), 3).is_ok());
        assert!(once.executed(Seq(1), 2).is_err());
    }
}
