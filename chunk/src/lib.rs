//! Between a file's bytes and the blocks that are stored: cut, compress, seal, recipes.
//!
//! - [`Cutter`] cuts where the content says (LBFS, SOSP'01; FastCDC, ATC'16), so that an edit changes
//!   the chunks around it and no others.
//! - [`seal`] compresses a chunk if that helps and encrypts it under a key made of its own content
//!   and a secret of the volume (convergent encryption, FARSITE OSDI'02, with Tahoe-LAFS's
//!   convergence secret): equal chunks of a volume are equal blocks, stored once, and nobody without
//!   the secret can even confirm a guess.
//! - A [`Recipe`] lists a file's chunks and holes. [`seal_recipe`] seals it, as a tree of blocks when
//!   it is long; [`RecipeReader`] reads it back.
//! - A [`Patch`] is what was written to a file since, short, and not in chunks yet.
//! - [`name`] seals names, symbolic link targets and extended attributes.
//!
//! Words: a *chunk* is cut, a *sealed chunk* is encrypted, a *block* is what is stored; it is named
//! by the BLAKE3 hash of its sealed bytes.
//!
//! What the nodes that store it all still learn: how long each sealed block and name is, which are
//! equal within a volume (names: within a directory), and when they are written. The lengths of
//! chunks tell something about content; a keyed gear table keeps outsiders from computing them for
//! a guess, but who can have chosen bytes stored can learn about the table from the lengths.
//!
//! **Invariant:** pure. No input/output, no clock, no randomness; `server` never links this crate.

mod aead;
mod cut;
mod keys;
pub mod name;
mod patch;
mod recipe;
mod seal;
mod tree;

pub use cut::{BadSizes, Cutter, Sizes, is_zero};
pub use keys::{VolumeKeys, unwrap_secret, wrap_secret};
pub use patch::{PATCH_OVERHEAD, Patch};
pub use recipe::{Extent, Recipe, SIZE_MAX};
pub use seal::{BLOCK_MAX, CHUNK_MAX, ChunkRef, SealedChunk, open, seal};
pub use tree::{DEPTH_MAX, RECIPE_MAX, RecipeReader, SealedRecipe, seal_recipe};

use base::DecodeError;

/// Why sealed bytes are not what they should be: altered, of another volume or file, or made by a
/// writer who lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The authentication tag does not fit.
    #[error("the seal is broken: the bytes were altered, or sealed under another key")]
    Seal,
    /// A length that this cannot have.
    #[error("{what} of {len} bytes")]
    Length {
        /// What it would be.
        what: &'static str,
        /// The length it has.
        len: usize,
    },
    /// The kind byte of an opened chunk means nothing.
    #[error("unknown kind of sealed chunk {kind}")]
    Kind {
        /// The byte found.
        kind: u8,
    },
    /// A compressed chunk that does not decompress to as many bytes as its reference says.
    #[error("does not decompress to {len} bytes")]
    Decompression {
        /// The length it should have.
        len: u32,
    },
    /// A recipe that is not canonically encoded.
    #[error("a malformed recipe: {0}")]
    Encoding(#[from] DecodeError),
    /// A recipe whose parts contradict each other.
    #[error("an impossible recipe: {why}")]
    Recipe {
        /// What is wrong with it.
        why: &'static str,
    },
}
