//! Deterministic chance: the same seed gives the same files on every machine.

/// A SplitMix64 generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of numbers that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. (The bias is below 2^-32 for the bounds used here.)
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Fills `bytes` with noise that neither compresses nor repeats.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The `len` bytes at `offset` of the endless noise that belongs to `seed`; any range can be had
/// without making what is before it.
#[must_use]
pub fn noise(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let (first, skip) = (offset / 8, (offset % 8) as usize);
    // SplitMix64's state after n steps is the seed plus n times the increment.
    let mut random = Random(seed.wrapping_add(first.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut bytes = vec![0; skip + len];
    random.fill(&mut bytes);
    bytes.drain(..skip);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_whichever_range_is_asked_for() {
        let whole = noise(7, 0, 1000);
        for (offset, len) in [(0, 8), (1, 7), (13, 100), (992, 8), (995, 5)] {
            assert_eq!(noise(7, offset as u64, len), whole[offset..offset + len], "{offset}+{len}");
        }
        assert_ne!(noise(8, 0, 1000), whole);
    }
}
