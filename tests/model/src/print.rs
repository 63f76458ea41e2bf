//! What tells two states of the core apart: 128 bits of a hash over what its answers depend on.

use core::hash::Hasher as _;
use std::collections::hash_map::DefaultHasher;

use bft::Replica;

use crate::cell::Cell;

/// See above.
pub(crate) type Print = u128;

/// The print of a core.
pub(crate) fn of(core: &Replica<Cell>) -> Print {
    let mut both = Both([DefaultHasher::new(), DefaultHasher::new()]);
    both.0[1].write_u8(1);
    core.fingerprint(&mut both);
    let [high, low] = both.0.map(|hasher| u128::from(hasher.finish()));
    high << 64 | low
}

/// Two hashers that begin differently.
struct Both([DefaultHasher; 2]);

impl core::hash::Hasher for Both {
    fn write(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|hasher| hasher.write(bytes));
    }

    fn finish(&self) -> u64 {
        self.0[0].finish()
    }
}
