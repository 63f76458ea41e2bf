//! A volume's keys, all grown from one secret, and that secret sealed for a user.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::Corrupt;
use crate::aead::Cipher;

/// The keys of a volume: one for each purpose, derived from the volume's secret with BLAKE3's key
/// derivation and a context string for each, so that none tells anything about another.
///
/// Wiped from memory when dropped; prints nothing secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct VolumeKeys {
    /// Seeds the gear table: where chunks are cut.
    pub(crate) gear: [u8; 32],
    /// The convergence secret of chunks: what makes their keys unguessable.
    pub(crate) convergence: [u8; 32],
    /// The convergence secret of recipe blocks. Another than that of chunks, so that no file's
    /// content can be made to look like a recipe.
    pub(crate) recipe_blocks: [u8; 32],
    /// Seals what an inode itself holds of its recipe.
    pub(crate) recipes: [u8; 32],
    /// Seals what was written and is not in chunks yet.
    pub(crate) patches: [u8; 32],
    /// Seals names, symbolic link targets and extended attributes.
    pub(crate) names: [u8; 32],
}

impl VolumeKeys {
    /// The keys of the volume with this secret: 32 bytes from a good source of randomness.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> VolumeKeys {
        VolumeKeys {
            gear: blake3::derive_key("mangrove 1 chunk boundaries", secret),
            convergence: blake3::derive_key("mangrove 1 chunk convergence secret", secret),
            recipe_blocks: blake3::derive_key("mangrove 1 recipe block convergence secret", secret),
            recipes: blake3::derive_key("mangrove 1 inline recipes", secret),
            patches: blake3::derive_key("mangrove 1 patches", secret),
            names: blake3::derive_key("mangrove 1 names", secret),
        }
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKeys(..)")
    }
}

/// A volume's secret sealed for the user whose key was grown from `user_seed`: 48 bytes that only
/// the holder of the seed can open.
#[must_use]
pub fn wrap_secret(user_seed: &[u8; 32], volume_secret: &[u8; 32]) -> Vec<u8> {
    wrapping_cipher(user_seed).seal(&[], volume_secret)
}

/// Opens what [`wrap_secret`] sealed.
///
/// # Errors
/// If the bytes were altered, or sealed for somebody else.
pub fn unwrap_secret(user_seed: &[u8; 32], sealed: &[u8]) -> Result<Zeroizing<[u8; 32]>, Corrupt> {
    let plain = Zeroizing::new(wrapping_cipher(user_seed).open(&[], sealed)?);
    let secret = <[u8; 32]>::try_from(plain.as_slice());
    secret.map(Zeroizing::new).map_err(|_| Corrupt::Length { what: "volume secret", len: plain.len() })
}

fn wrapping_cipher(user_seed: &[u8; 32]) -> Cipher {
    Cipher::new(&Zeroizing::new(blake3::derive_key("mangrove 1 volume secret for a user", user_seed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_distinct_and_not_printed() {
        let keys = VolumeKeys::new(&[7; 32]);
        let mut all =
            [keys.gear, keys.convergence, keys.recipe_blocks, keys.recipes, keys.patches, keys.names, [7; 32]];
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(format!("{keys:?}"), "VolumeKeys(..)");
    }

    #[test]
    fn a_secret_opens_for_its_user_only() {
        let sealed = wrap_secret(&[1; 32], &[9; 32]);
        assert_eq!(sealed.len(), 48);
        assert_eq!(unwrap_secret(&[1; 32], &sealed).as_deref(), Ok(&[9; 32]));
        assert_eq!(unwrap_secret(&[2; 32], &sealed), Err(Corrupt::Seal));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(unwrap_secret(&[1; 32], &altered), Err(Corrupt::Seal));
            assert_eq!(unwrap_secret(&[1; 32], &sealed[..at]), Err(Corrupt::Seal));
        }
        let other = wrapping_cipher(&[1; 32]).seal(&[], b"not 32 bytes");
        assert_eq!(unwrap_secret(&[1; 32], &other), Err(Corrupt::Length { what: "volume secret", len: 12 }));
    }
}
