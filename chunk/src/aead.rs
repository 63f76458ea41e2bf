//! The one AEAD everything here is sealed with: AES-256-GCM-SIV (RFC 8452) under the zero nonce.
//!
//! A nonce that never changes is what makes sealing deterministic, and the SIV construction is what
//! makes that safe: its tag, which is also the counter's start, depends on the whole message, so two
//! messages under one key tell only whether they are equal. Determinism is wanted everywhere here:
//! equal chunks must be equal blocks, and equal names in a directory must collide.

use aes_gcm_siv::{AeadInOut, Aes256GcmSiv, KeyInit, Nonce};

use crate::Corrupt;

/// What sealing adds, bytes: the tag.
pub(crate) const TAG_LEN: usize = 16;

/// The cipher under one key.
pub(crate) struct Cipher(Aes256GcmSiv);

impl Cipher {
    pub(crate) fn new(key: &[u8; 32]) -> Cipher {
        Cipher(Aes256GcmSiv::new(key.into()))
    }

    /// Seals `buffer` where it is, adding [`TAG_LEN`] bytes.
    pub(crate) fn seal_in_place(&self, associated: &[u8], buffer: &mut Vec<u8>) {
        let sealed = self.0.encrypt_in_place(&Nonce::default(), associated, buffer);
        assert!(sealed.is_ok(), "AES-GCM-SIV refuses only what is longer than 2^36 bytes");
    }

    /// Opens `buffer` where it is, taking [`TAG_LEN`] bytes off.
    pub(crate) fn open_in_place(&self, associated: &[u8], buffer: &mut Vec<u8>) -> Result<(), Corrupt> {
        self.0.decrypt_in_place(&Nonce::default(), associated, buffer).map_err(|_| Corrupt::Seal)
    }

    pub(crate) fn seal(&self, associated: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(plain.len() + TAG_LEN);
        buffer.extend_from_slice(plain);
        self.seal_in_place(associated, &mut buffer);
        buffer
    }

    pub(crate) fn open(&self, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Corrupt> {
        let mut buffer = sealed.to_vec();
        self.open_in_place(associated, &mut buffer)?;
        Ok(buffer)
    }
}
