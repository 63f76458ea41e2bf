//! Patches: what was written to a file and is not in its chunks yet, sealed.
//!
//! As a file's recipe they are the inode's own, deterministic, under a key for each file: replicas see how long
//! each is, and which are equal, but not where it goes.

use base::{Decode as _, DecodeError, Encode as _, Reader};
use bytes::Bytes;
use zeroize::Zeroizing;

use crate::Corrupt;
use crate::aead::{Cipher, TAG_LEN};
use crate::keys::VolumeKeys;
use crate::recipe::SIZE_MAX;

/// What sealing adds to a patch's bytes: where it goes, over what, and the tag.
pub const PATCH_OVERHEAD: usize = 16 + TAG_LEN;

/// Bytes to lay over a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Where they go.
    pub offset: u64,
    /// How long the file is that they are laid over: the recipe's, without any patches.
    pub under: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Patch {
    /// Seals it into the inode `file_tag`.
    #[must_use]
    pub fn seal(&self, keys: &VolumeKeys, file_tag: u64) -> Bytes {
        let mut buffer = Vec::with_capacity(self.bytes.len() + PATCH_OVERHEAD);
        (self.offset, self.under).encode(&mut buffer);
        buffer.extend_from_slice(&self.bytes);
        cipher(keys, file_tag).seal_in_place(&[], &mut buffer);
        buffer.into()
    }

    /// Opens one of the inode `file_tag`.
    ///
    /// # Errors
    /// If it was altered, is another file's, or goes where no file has bytes.
    pub fn open(keys: &VolumeKeys, file_tag: u64, sealed: &[u8]) -> Result<Patch, Corrupt> {
        let mut plain = Bytes::from(cipher(keys, file_tag).open(&[], sealed)?);
        let mut head = Reader::new(&plain);
        let (offset, under): (u64, u64) = <(u64, u64)>::decode(&mut head)?;
        let bytes = plain.split_off(16);
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > SIZE_MAX) || under > SIZE_MAX {
            return Err(Corrupt::Encoding(DecodeError::Invalid { what: "place of a patch" }));
        }
        Ok(Patch { offset, under, bytes })
    }
}

fn cipher(keys: &VolumeKeys, file_tag: u64) -> Cipher {
    Cipher::new(&Zeroizing::new(*blake3::keyed_hash(&keys.patches, &file_tag.to_le_bytes()).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_opens_in_its_file_alone() {
        let keys = VolumeKeys::new(&[1; 32]);
        let patch = Patch { offset: 5, under: 70, bytes: Bytes::from_static(b"written") };
        let sealed = patch.seal(&keys, 9);
        assert_eq!(sealed.len(), 7 + PATCH_OVERHEAD);
        assert_eq!(Patch::open(&keys, 9, &sealed), Ok(patch.clone()));
        assert_eq!(Patch::open(&keys, 8, &sealed), Err(Corrupt::Seal));
        assert_eq!(Patch::open(&VolumeKeys::new(&[2; 32]), 9, &sealed), Err(Corrupt::Seal));
        for at in 0..sealed.len() {
            let mut altered = sealed.to_vec();
            altered[at] ^= 1;
            assert_eq!(Patch::open(&keys, 9, &altered), Err(Corrupt::Seal));
            assert!(Patch::open(&keys, 9, &sealed[..at]).is_err());
        }
    }

    #[test]
    fn a_patch_ends_within_what_a_file_can_hold() {
        let keys = VolumeKeys::new(&[1; 32]);
        for (offset, under, good) in
            [(SIZE_MAX - 1, SIZE_MAX, true), (SIZE_MAX, 0, false), (u64::MAX, 0, false), (0, u64::MAX, false)]
        {
            let sealed = Patch { offset, under, bytes: Bytes::from_static(b"x") }.seal(&keys, 1);
            assert_eq!(Patch::open(&keys, 1, &sealed).is_ok(), good, "{offset} over {under}");
        }
        let short = cipher(&keys, 1).seal(&[], &[0; 15]);
        assert!(Patch::open(&keys, 1, &short).is_err());
    }
}
