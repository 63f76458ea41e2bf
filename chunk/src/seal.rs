//! A chunk sealed: compressed if that helps, encrypted under a key made of its own content.
//!
//! Convergent encryption (FARSITE, OSDI'02): whoever has the same chunk makes the same block, so it
//! is stored once though nobody but its owners can read it. Bare convergent encryption lets anybody
//! confirm a guess at content (and so learn the rest of a mostly known file) by sealing the guess
//! and asking for the block; mixing in a *convergence secret* (Tahoe-LAFS) leaves that power to
//! those who share the secret, which are the readers of the volume.
//!
//! A sealed chunk is `AEAD(kind || body)`: `kind` 0 is the chunk itself, 1 the chunk as a zstd frame.
//! The key is a keyed hash of the plaintext, so that a key is ever used for one message, and the
//! fixed nonce is safe. (Two releases of zstd may compress one chunk differently: two messages under
//! one key, which AES-GCM-SIV stands; all it tells is that they differ.)

use core::cell::RefCell;
use core::fmt;

use base::{BlockId, Decode, DecodeError, Encode, Reader};
use bytes::Bytes;
use zeroize::Zeroizing;
use zstd::bulk::{Compressor, Decompressor};

use crate::Corrupt;
use crate::aead::{Cipher, TAG_LEN};
use crate::keys::VolumeKeys;

/// The longest chunk, bytes: 1 MiB.
pub const CHUNK_MAX: u32 = 1 << 20;
/// The longest block, bytes: a chunk of [`CHUNK_MAX`] and what sealing adds, rounded up.
pub const BLOCK_MAX: usize = CHUNK_MAX as usize + 64;

/// What sealing adds to a chunk that is not compressed, bytes: its kind and the tag.
const OVERHEAD: usize = 1 + TAG_LEN;
const _: () = assert!(CHUNK_MAX as usize + OVERHEAD <= BLOCK_MAX);

const KIND_RAW: u8 = 0;
const KIND_ZSTD: u8 = 1;
const ZSTD_LEVEL: i32 = 1;
/// Compression that saves less than a twentieth is not worth undoing on every read.
const WORTHWHILE: usize = 20;

/// What it takes to read a chunk: where it is, the key, and how long it is.
///
/// Whoever knows this can read the chunk: it is only ever stored sealed. `Debug` hides the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRef {
    /// The block's name: the hash of its sealed bytes.
    pub block: BlockId,
    /// The key it is sealed under.
    pub key: [u8; 32],
    /// The chunk's length before sealing, bytes: 1 to [`CHUNK_MAX`].
    pub len: u32,
}

impl Encode for ChunkRef {
    fn encode(&self, out: &mut Vec<u8>) {
        self.block.encode(out);
        self.key.encode(out);
        self.len.encode(out);
    }
}

impl Decode for ChunkRef {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (block, key, len) = Decode::decode(input)?;
        if !(1..=CHUNK_MAX).contains(&len) {
            return Err(DecodeError::Invalid { what: "chunk length" });
        }
        Ok(ChunkRef { block, key, len })
    }
}

impl fmt::Debug for ChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkRef({:?}, {} bytes)", self.block, self.len)
    }
}

/// A chunk made into a block.
#[derive(Clone, Debug)]
pub struct SealedChunk {
    /// How to find and open it.
    pub reference: ChunkRef,
    /// The block.
    pub block: Bytes,
}

/// Seals a chunk of 1 to [`CHUNK_MAX`] bytes. The same chunk under the same keys gives the same
/// block.
///
/// # Panics
/// If the chunk is empty or too long.
#[must_use]
pub fn seal(keys: &VolumeKeys, plain: &[u8]) -> SealedChunk {
    seal_under(&keys.convergence, plain, true)
}

/// Opens the block of a chunk. The caller has compared the block's hash with its name, as everybody
/// does who takes a block from somebody else; here the seal is checked.
///
/// # Errors
/// If it is not that chunk's block. Never gives or buys memory for more than `reference.len` bytes,
/// whatever a compressed block claims to hold.
pub fn open(reference: &ChunkRef, block: &[u8]) -> Result<Bytes, Corrupt> {
    let buffer = open_seal(reference, block)?;
    match buffer[0] {
        KIND_RAW => raw(reference, buffer),
        KIND_ZSTD => decompress(&buffer[1..], reference.len),
        kind => Err(Corrupt::Kind { kind }),
    }
}

/// As [`seal`] with another convergence secret, compressed or not.
pub(crate) fn seal_under(convergence: &[u8; 32], plain: &[u8], may_compress: bool) -> SealedChunk {
    let len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    assert!((1..=CHUNK_MAX).contains(&len), "a chunk of {} bytes", plain.len());
    let key = Zeroizing::new(*blake3::keyed_hash(convergence, plain).as_bytes());
    let mut buffer = Vec::with_capacity(plain.len() + OVERHEAD);
    if !(may_compress && compress(plain, &mut buffer)) {
        buffer.push(KIND_RAW);
        buffer.extend_from_slice(plain);
    }
    Cipher::new(&key).seal_in_place(&[], &mut buffer);
    let block = BlockId::blake3(*blake3::hash(&buffer).as_bytes());
    SealedChunk { reference: ChunkRef { block, key: *key, len }, block: buffer.into() }
}

/// As [`open`], for what was sealed uncompressed: takes no more memory than the block itself.
pub(crate) fn open_raw(reference: &ChunkRef, block: &[u8]) -> Result<Bytes, Corrupt> {
    let buffer = open_seal(reference, block)?;
    match buffer[0] {
        KIND_RAW => raw(reference, buffer),
        kind => Err(Corrupt::Kind { kind }),
    }
}

/// The opened block, kind first; it has at least that byte.
fn open_seal(reference: &ChunkRef, block: &[u8]) -> Result<Vec<u8>, Corrupt> {
    if block.len() < OVERHEAD || block.len() > BLOCK_MAX {
        return Err(Corrupt::Length { what: "block", len: block.len() });
    }
    let mut buffer = block.to_vec();
    Cipher::new(&reference.key).open_in_place(&[], &mut buffer)?;
    Ok(buffer)
}

fn raw(reference: &ChunkRef, buffer: Vec<u8>) -> Result<Bytes, Corrupt> {
    let chunk = Bytes::from(buffer).slice(1..);
    if chunk.len() != reference.len as usize {
        return Err(Corrupt::Length { what: "chunk", len: chunk.len() });
    }
    Ok(chunk)
}

thread_local! {
    // Setting a context up takes longer than compressing a small file. Keeping one is a cache and no
    // state: what it compressed before does not influence what it compresses next.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = RefCell::new(Compressor::new(ZSTD_LEVEL).ok());
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = RefCell::new(Decompressor::new().ok());
}

/// Fills the empty `buffer` with kind and compressed chunk; leaves it empty and says false if that
/// would not save enough.
fn compress(plain: &[u8], buffer: &mut Vec<u8>) -> bool {
    let worthwhile = plain.len() - plain.len().div_ceil(WORTHWHILE);
    buffer.resize(1 + worthwhile, KIND_ZSTD);
    // With no more room than is worthwhile, zstd gives up by itself.
    let compressed =
        COMPRESSOR.with_borrow_mut(|compressor| compressor.as_mut()?.compress_to_buffer(plain, &mut buffer[1..]).ok());
    match compressed {
        Some(len) => {
            buffer.truncate(1 + len);
            buffer.shrink_to(len + OVERHEAD);
        }
        None => buffer.clear(),
    }
    compressed.is_some()
}

fn decompress(frame: &[u8], len: u32) -> Result<Bytes, Corrupt> {
    let mut chunk = vec![0; len as usize];
    let decompressed = DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.as_mut()?.decompress_to_buffer(frame, &mut chunk[..]).ok());
    if decompressed != Some(chunk.len()) {
        return Err(Corrupt::Decompression { len });
    }
    Ok(chunk.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block that opens, with this kind and body, as a lying writer who knows the key can make.
    fn forged(len: u32, kind: u8, body: &[u8]) -> (ChunkRef, Vec<u8>) {
        let reference = ChunkRef { block: BlockId::blake3([0; 32]), key: [3; 32], len };
        let block = Cipher::new(&reference.key).seal(&[], &[&[kind], body].concat());
        (reference, block)
    }

    #[test]
    fn a_decompression_bomb_is_bounded() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(bomb.len() < 8192);
        for len in [1, 4096, CHUNK_MAX] {
            let (reference, block) = forged(len, KIND_ZSTD, &bomb);
            assert_eq!(open(&reference, &block), Err(Corrupt::Decompression { len }));
        }
    }

    #[test]
    fn a_chunk_of_another_length_is_refused() {
        let frame = zstd::bulk::compress(&[7; 1000], 1).unwrap();
        let (reference, block) = forged(1000, KIND_ZSTD, &frame);
        assert_eq!(open(&reference, &block).as_deref(), Ok(&[7; 1000][..]));
        for len in [999, 1001] {
            let (reference, block) = forged(len, KIND_ZSTD, &frame);
            assert_eq!(open(&reference, &block), Err(Corrupt::Decompression { len }));
            let (reference, block) = forged(len, KIND_RAW, &[7; 1000]);
            assert_eq!(open(&reference, &block), Err(Corrupt::Length { what: "chunk", len: 1000 }));
        }
        let (reference, block) = forged(1000, 9, &[7; 1000]);
        assert_eq!(open(&reference, &block), Err(Corrupt::Kind { kind: 9 }));
        let (reference, block) = forged(1000, KIND_ZSTD, &frame[..frame.len() - 1]);
        assert_eq!(open(&reference, &block), Err(Corrupt::Decompression { len: 1000 }));
    }

    #[test]
    fn compressed_recipe_blocks_are_refused() {
        let frame = zstd::bulk::compress(&[7; 1000], 1).unwrap();
        let (reference, block) = forged(1000, KIND_ZSTD, &frame);
        assert_eq!(open_raw(&reference, &block), Err(Corrupt::Kind { kind: KIND_ZSTD }));
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        let (reference, _) = forged(1, KIND_RAW, &[0]);
        for len in [0, OVERHEAD - 1, BLOCK_MAX + 1] {
            assert_eq!(open(&reference, &vec![0; len]), Err(Corrupt::Length { what: "block", len }));
        }
        assert_eq!(open(&reference, &[0; OVERHEAD]), Err(Corrupt::Seal));
        for len in [0, CHUNK_MAX + 1, u32::MAX] {
            let bytes = ChunkRef { len, ..reference }.to_bytes();
            assert_eq!(ChunkRef::from_bytes(&bytes), Err(DecodeError::Invalid { what: "chunk length" }));
        }
    }

    #[test]
    fn a_block_is_compressed_only_if_that_saves_a_twentieth() {
        let keys = VolumeKeys::new(&[1; 32]);
        let mut noise = vec![0; 10_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(seal(&keys, &noise).block.len(), 10_000 + OVERHEAD);
        noise[..300].fill(0);
        assert_eq!(seal(&keys, &noise).block.len(), 10_000 + OVERHEAD, "3 % is not worth it");
        noise[..2000].fill(0);
        assert!(seal(&keys, &noise).block.len() < 8200);
    }

    #[test]
    fn a_used_context_compresses_like_a_new_one() {
        let keys = VolumeKeys::new(&[1; 32]);
        let text = b"the quick brown fox ".repeat(500);
        let used = {
            let _ = seal(&keys, &b"something else before ".repeat(900));
            seal(&keys, &text)
        };
        COMPRESSOR.set(Compressor::new(ZSTD_LEVEL).ok());
        assert_eq!(used.block, seal(&keys, &text).block);
    }

    #[test]
    fn no_key_is_printed() {
        let (reference, _) = forged(5, KIND_RAW, &[0; 5]);
        assert_eq!(format!("{reference:?}"), "ChunkRef(000000000000, 5 bytes)");
    }
}
