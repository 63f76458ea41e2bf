//! Digests and block ids.

use core::fmt;

use sha2::{Digest as _, Sha256};

use crate::codec::{Decode, DecodeError, Encode, Reader};

/// A SHA-256 digest: of a request, a batch, a state. Small inputs, where SHA-256 in hardware is
/// the fastest hash there is; bulk data is named by [`BlockId`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of `value`'s canonical encoding.
    #[must_use]
    pub fn of_encoded<T: Encode + ?Sized>(value: &T) -> Digest {
        Digest::of(&value.to_bytes())
    }

    /// The digest of several byte strings, one after the other. The caller sees to it that the
    /// boundaries are unambiguous (fixed lengths, or lengths among the parts).
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Digest {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Digest(hasher.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Encode for Digest {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for Digest {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Digest(<[u8; 32]>::decode(input)?))
    }
}

/// A block's name: which hash, and the hash of the stored (sealed) bytes.
///
/// The only kind so far is BLAKE3 ([`BlockId::BLAKE3`]); the kind byte is what lets that change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    /// Which hash function; see [`BlockId::BLAKE3`].
    pub kind: u8,
    /// The hash itself.
    pub hash: [u8; 32],
}

impl BlockId {
    /// `kind` of a block named by its BLAKE3 hash.
    pub const BLAKE3: u8 = 1;
    /// Length of the canonical encoding, bytes.
    pub const ENCODED_LEN: usize = 33;

    /// The id of a block with this BLAKE3 hash.
    #[must_use]
    pub fn blake3(hash: [u8; 32]) -> BlockId {
        BlockId { kind: BlockId::BLAKE3, hash }
    }

    /// The id as the 33 bytes it is on the wire and in an index.
    #[must_use]
    pub fn to_array(self) -> [u8; BlockId::ENCODED_LEN] {
        let mut array = [self.kind; BlockId::ENCODED_LEN];
        array[1..].copy_from_slice(&self.hash);
        array
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}-", self.kind)?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hash[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Encode for BlockId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.kind.encode(out);
        self.hash.encode(out);
    }
}

impl Decode for BlockId {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = u8::decode(input)?;
        if kind != BlockId::BLAKE3 {
            return Err(DecodeError::Tag { what: "block id kind", tag: u64::from(kind) });
        }
        Ok(BlockId { kind, hash: <[u8; 32]>::decode(input)? })
    }
}
