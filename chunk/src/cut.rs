//! Where a file is cut into chunks.
//!
//! FastCDC (Xia et al., ATC'16; two bytes at a time, TPDS'20) with normalised chunking of level 2,
//! its authors' choice. A boundary is where a rolling *gear* hash of the last 64 bytes has certain
//! bits zero. The gear table is not the published one: its 256 numbers are drawn from a secret of
//! the volume. With a public table the lengths of chunks identify known content (attacks on Borg,
//! restic, Tarsnap and others, 2025); exclusive-or with one secret number, which the `fastcdc` crate
//! offers, leaves the differences within the table public.
//!
//! The beginning of a file is cut finer than what is behind it, so that a small edit of a file of some
//! megabytes sends less than a hundredth of it, and large files still have few chunks. Where a chunk
//! begins decides, not how long the file is: a file that grows is cut as if it had been written at once.

use core::fmt;

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use zeroize::{Zeroize, Zeroizing};

use crate::keys::VolumeKeys;
use crate::seal::CHUNK_MAX;

/// How many average chunks of a file's beginning are cut finer, and how much.
const FINE_CHUNKS: u64 = 256;
const FINER: u32 = 4;

/// How a volume's files are cut, bytes: powers of two, `min <= average <= max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    min: u32,
    average: u32,
    max: u32,
}

impl Sizes {
    /// Checked sizes. `min` is 64 to `average`, `average` 256 to `max`, `max` 1024 to [`CHUNK_MAX`];
    /// all are powers of two (the `fastcdc` crate checks nothing in release builds, and silently
    /// cuts elsewhere with other sizes).
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn new(min: u32, average: u32, max: u32) -> Result<Sizes, BadSizes> {
        let sizes = [("min", min, 64), ("average", average, 256), ("max", max, 1024)];
        for (which, bytes, least) in sizes {
            if !bytes.is_power_of_two() {
                return Err(BadSizes::NotPowerOfTwo { which, bytes });
            }
            if bytes < least || bytes > CHUNK_MAX {
                return Err(BadSizes::OutOfRange { which, bytes, least, most: CHUNK_MAX });
            }
        }
        if min > average || average > max {
            return Err(BadSizes::OutOfOrder { min, average, max });
        }
        Ok(Sizes { min, average, max })
    }

    /// The sizes to which the beginning of a file is cut: a quarter, where that is allowed.
    fn finer(self) -> Sizes {
        let (min, average) = ((self.min / FINER).max(64), (self.average / FINER).max(256));
        Sizes { min, average, max: (self.max / FINER).max(1024) }
    }

    /// No chunk but a file's last is shorter.
    #[must_use]
    pub fn min(self) -> u32 {
        self.min
    }

    /// Around what chunks measure. (Of random data with the default sizes the mean is about a fifth
    /// above this, since no boundary is looked for in the first `min` bytes.)
    #[must_use]
    pub fn average(self) -> u32 {
        self.average
    }

    /// No chunk is longer.
    #[must_use]
    pub fn max(self) -> u32 {
        self.max
    }
}

impl Default for Sizes {
    /// 16 KiB, 64 KiB, 256 KiB.
    fn default() -> Sizes {
        Sizes { min: 16 << 10, average: 64 << 10, max: 256 << 10 }
    }
}

/// Why three numbers are not chunk sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSizes {
    /// One is no power of two.
    #[error("the {which} chunk size is {bytes} bytes; it must be a power of two")]
    NotPowerOfTwo {
        /// Which.
        which: &'static str,
        /// What it is.
        bytes: u32,
    },
    /// One is too small or too large.
    #[error("the {which} chunk size is {bytes} bytes; it must be {least} to {most}")]
    OutOfRange {
        /// Which.
        which: &'static str,
        /// What it is.
        bytes: u32,
        /// The smallest it may be.
        least: u32,
        /// The largest it may be.
        most: u32,
    },
    /// They are not ascending.
    #[error("chunk sizes must be min <= average <= max; they are {min}, {average}, {max}")]
    OutOfOrder {
        /// The smallest chunk.
        min: u32,
        /// The average chunk.
        average: u32,
        /// The largest chunk.
        max: u32,
    },
}

/// The gear table and its double: 256 numbers, and the same shifted left by one.
struct Gear {
    table: [u64; 256],
    table_shifted: [u64; 256],
}

/// Cuts files into chunks, the same way for everybody who has the volume's keys.
pub struct Cutter {
    /// For the beginning of a file, and for the rest.
    fine: Class,
    coarse: Class,
    gear: Box<Gear>,
}

/// Sizes, and what is looked for to cut to them.
struct Class {
    sizes: Sizes,
    /// Few bits match by chance below the average size, more above it: (strict, loose).
    masks: (u64, u64),
}

impl Class {
    fn new(sizes: Sizes) -> Class {
        Class { sizes, masks: select_masks(sizes.average as usize, Normalization::Level2) }
    }
}

impl Cutter {
    /// Cuts to these sizes, at boundaries only this volume's keys tell.
    #[must_use]
    pub fn new(sizes: Sizes, keys: &VolumeKeys) -> Cutter {
        let mut bytes = Zeroizing::new([0u8; 256 * 8]);
        blake3::Hasher::new_keyed(&keys.gear).finalize_xof().fill(&mut *bytes);
        let mut gear = Box::new(Gear { table: [0; 256], table_shifted: [0; 256] });
        for (index, bytes) in bytes.as_chunks::<8>().0.iter().enumerate() {
            gear.table[index] = u64::from_le_bytes(*bytes);
            gear.table_shifted[index] = gear.table[index] << 1;
        }
        Cutter { fine: Class::new(sizes.finer()), coarse: Class::new(sizes), gear }
    }

    /// The sizes it cuts to, but for the beginning of a file.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.coarse.sizes
    }

    /// The sizes of a chunk that begins at this offset in a file.
    #[must_use]
    pub fn sizes_at(&self, offset: u64) -> Sizes {
        self.class_at(offset).sizes
    }

    fn class_at(&self, offset: u64) -> &Class {
        let fine = FINE_CHUNKS * u64::from(self.coarse.sizes.average);
        if offset < fine { &self.fine } else { &self.coarse }
    }

    /// The length of the first chunk of `bytes`, which are at `offset` in their file. `last` says that
    /// no more bytes follow; else the answer is 0 when it depends on bytes that are not there yet (no
    /// boundary found, and fewer than [`Sizes::max`] of them). Of no bytes, 0.
    #[must_use]
    pub fn cut(&self, offset: u64, bytes: &[u8], last: bool) -> usize {
        let Class { sizes: Sizes { min, average, max }, masks: (strict, loose) } = *self.class_at(offset);
        let (_, len) = cut_gear(
            bytes,
            min as usize,
            average as usize,
            max as usize,
            strict,
            loose,
            strict << 1,
            loose << 1,
            &self.gear.table,
            &self.gear.table_shifted,
        );
        // What is shorter than all there is ends at a boundary, whatever follows.
        let decided = last || len < bytes.len() || len == max as usize;
        if decided { len } else { 0 }
    }

    /// All chunks of a file that is `bytes`.
    pub fn chunks<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = bytes;
        core::iter::from_fn(move || {
            let offset = bytes.len() - rest.len();
            let (chunk, tail) = rest.split_at(self.cut(offset as u64, rest, true));
            rest = tail;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.gear.table.zeroize();
        self.gear.table_shifted.zeroize();
    }
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cutter").field("sizes", &self.coarse.sizes).finish_non_exhaustive()
    }
}

/// Whether all bytes are zero: such chunks are holes. As fast as comparing memory.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // All bytes are zero if the first is and each equals the next.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Sizes::new(16384, 65536, 262_144), Ok(Sizes::default()));
        assert!(Sizes::new(64, 256, 1024).is_ok());
        assert!(Sizes::new(CHUNK_MAX, CHUNK_MAX, CHUNK_MAX).is_ok());
        let not_power = BadSizes::NotPowerOfTwo { which: "average", bytes: 65537 };
        assert_eq!(Sizes::new(16384, 65537, 262_144), Err(not_power));
        assert_eq!(Sizes::new(0, 256, 1024), Err(BadSizes::NotPowerOfTwo { which: "min", bytes: 0 }));
        assert!(matches!(Sizes::new(32, 256, 1024), Err(BadSizes::OutOfRange { which: "min", .. })));
        assert!(matches!(Sizes::new(64, 128, 1024), Err(BadSizes::OutOfRange { which: "average", .. })));
        assert!(matches!(Sizes::new(64, 256, 512), Err(BadSizes::OutOfRange { which: "max", .. })));
        assert!(matches!(Sizes::new(64, 256, 2 << 20), Err(BadSizes::OutOfRange { which: "max", .. })));
        assert!(matches!(Sizes::new(512, 256, 1024), Err(BadSizes::OutOfOrder { .. })));
        assert!(matches!(Sizes::new(64, 2048, 1024), Err(BadSizes::OutOfOrder { .. })));
    }

    #[test]
    fn zero_is_zero() {
        for len in [0, 1, 7, 64, 4096, 65537] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes), "{len}");
            for at in [0, len / 2, len.saturating_sub(1)] {
                if at < len {
                    bytes[at] = 1;
                    assert!(!is_zero(&bytes), "{len} {at}");
                    bytes[at] = 0;
                }
            }
        }
        assert!(!is_zero(&[7; 100]));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let cutter = Cutter::new(Sizes::default(), &VolumeKeys::new(&[1; 32]));
        assert!(!format!("{cutter:?}").contains(&cutter.gear.table[0].to_string()));
    }
}
