//! Names, symbolic link targets and extended attributes, sealed.
//!
//! Deterministic, so that replicas keep a directory's names unique without being able to read them:
//! AES-256-GCM-SIV under the zero nonce, with a key for each directory (or file) and purpose. Within
//! one directory, equal names are equal; across directories nothing is. A sealed name is 16 bytes
//! longer than the name, which therefore shows its length.
//!
//! A name moved to another directory, by rename or link, is sealed anew under that directory's key.

use core::fmt;

use zeroize::Zeroizing;

use crate::Corrupt;
use crate::aead::{Cipher, TAG_LEN};
use crate::keys::VolumeKeys;

/// What sealing adds to anything here, bytes.
pub const SEAL_LEN: usize = TAG_LEN;

/// What a key is for; part of its derivation, so that nothing sealed for one purpose opens for
/// another.
#[derive(Clone, Copy)]
enum Purpose {
    Name = 1,
    Target = 2,
    XattrName = 3,
    XattrValue = 4,
}

fn cipher(keys: &VolumeKeys, purpose: Purpose, inode: u64) -> Cipher {
    let mut context = [purpose as u8; 9];
    context[1..].copy_from_slice(&inode.to_le_bytes());
    Cipher::new(&Zeroizing::new(*blake3::keyed_hash(&keys.names, &context).as_bytes()))
}

/// The key of one directory's names. Worth keeping while the directory is in use: it saves the
/// derivation on every name.
pub struct DirectoryKey(Cipher);

impl DirectoryKey {
    /// The key of the directory with inode number `directory`.
    #[must_use]
    pub fn new(keys: &VolumeKeys, directory: u64) -> DirectoryKey {
        DirectoryKey(cipher(keys, Purpose::Name, directory))
    }

    /// Seals a name in this directory.
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        self.0.seal(&[], plain)
    }

    /// Opens a name in this directory.
    ///
    /// # Errors
    /// If it is not one sealed under this directory's key.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Corrupt> {
        self.0.open(&[], sealed)
    }
}

impl fmt::Debug for DirectoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirectoryKey(..)")
    }
}

/// Seals a name in a directory; see [`DirectoryKey`] for many of them.
#[must_use]
pub fn seal_name(keys: &VolumeKeys, directory: u64, plain: &[u8]) -> Vec<u8> {
    DirectoryKey::new(keys, directory).seal(plain)
}

/// Opens a name in a directory.
///
/// # Errors
/// If it is not one sealed for this directory.
pub fn open_name(keys: &VolumeKeys, directory: u64, sealed: &[u8]) -> Result<Vec<u8>, Corrupt> {
    DirectoryKey::new(keys, directory).open(sealed)
}

/// Seals a symbolic link's target. One key for the whole volume, since the link's inode number is
/// not known before it is made: equal targets in a volume are equal sealed.
#[must_use]
pub fn seal_target(keys: &VolumeKeys, plain: &[u8]) -> Vec<u8> {
    cipher(keys, Purpose::Target, 0).seal(&[], plain)
}

/// Opens a symbolic link's target.
///
/// # Errors
/// If it is not one sealed for this volume.
pub fn open_target(keys: &VolumeKeys, sealed: &[u8]) -> Result<Vec<u8>, Corrupt> {
    cipher(keys, Purpose::Target, 0).open(&[], sealed)
}

/// Seals the name of an extended attribute of an inode.
#[must_use]
pub fn seal_xattr_name(keys: &VolumeKeys, inode: u64, plain: &[u8]) -> Vec<u8> {
    cipher(keys, Purpose::XattrName, inode).seal(&[], plain)
}

/// Opens the name of an extended attribute of an inode.
///
/// # Errors
/// If it is not one sealed for this inode.
pub fn open_xattr_name(keys: &VolumeKeys, inode: u64, sealed: &[u8]) -> Result<Vec<u8>, Corrupt> {
    cipher(keys, Purpose::XattrName, inode).open(&[], sealed)
}

/// Seals the value of the extended attribute called `name` (not sealed) of an inode; it opens under
/// that name only, so values cannot be swapped.
#[must_use]
pub fn seal_xattr_value(keys: &VolumeKeys, inode: u64, name: &[u8], value: &[u8]) -> Vec<u8> {
    cipher(keys, Purpose::XattrValue, inode).seal(name, value)
}

/// Opens the value of the extended attribute called `name` of an inode.
///
/// # Errors
/// If it is not one sealed for this inode and name.
pub fn open_xattr_value(keys: &VolumeKeys, inode: u64, name: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Corrupt> {
    cipher(keys, Purpose::XattrValue, inode).open(name, sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_and_place_is_its_own() {
        let keys = VolumeKeys::new(&[1; 32]);
        let sealed = [
            seal_name(&keys, 0, b"name"),
            seal_name(&keys, 1, b"name"),
            seal_name(&VolumeKeys::new(&[2; 32]), 0, b"name"),
            seal_target(&keys, b"name"),
            seal_xattr_name(&keys, 0, b"name"),
            seal_xattr_name(&keys, 1, b"name"),
            seal_xattr_value(&keys, 0, b"a", b"name"),
            seal_xattr_value(&keys, 0, b"b", b"name"),
            seal_xattr_value(&keys, 1, b"a", b"name"),
        ];
        for (index, one) in sealed.iter().enumerate() {
            assert_eq!(one.len(), 4 + SEAL_LEN);
            assert!(sealed[index + 1..].iter().all(|other| other != one), "{index}");
            let opened = [
                open_name(&keys, 0, one),
                open_name(&keys, 1, one),
                open_name(&VolumeKeys::new(&[2; 32]), 0, one),
                open_target(&keys, one),
                open_xattr_name(&keys, 0, one),
                open_xattr_name(&keys, 1, one),
                open_xattr_value(&keys, 0, b"a", one),
                open_xattr_value(&keys, 0, b"b", one),
                open_xattr_value(&keys, 1, b"a", one),
            ];
            for (opener, opened) in opened.into_iter().enumerate() {
                assert_eq!(opened, if opener == index { Ok(b"name".to_vec()) } else { Err(Corrupt::Seal) });
            }
        }
    }

    #[test]
    fn names_are_deterministic_and_tamper_proof() {
        let key = DirectoryKey::new(&VolumeKeys::new(&[1; 32]), 42);
        for len in [0, 1, 15, 16, 17, 255] {
            let name = vec![b'x'; len];
            let sealed = key.seal(&name);
            assert_eq!(sealed, key.seal(&name));
            assert_eq!(key.open(&sealed), Ok(name));
            for at in 0..sealed.len() {
                let mut altered = sealed.clone();
                altered[at] ^= 0x80;
                assert_eq!(key.open(&altered), Err(Corrupt::Seal));
                assert_eq!(key.open(&sealed[..at]), Err(Corrupt::Seal));
            }
        }
    }
}
