//! The header that every file of a node's log and block store starts with.
//!
//! ```text
//!  0  magic     8 B        what kind of file
//!  8  format    u32        its layout; a program refuses what is newer than itself
//! 12  cluster   16 B
//! 28  node      u32
//! 32  number    u64        which file of its kind
//! 40  first     u64        of a log segment: the counter of its first record
//! 48  salt      u64        drawn for each file
//! 56  zero      4 B
//! 60  crc32c    u32        of the 60 bytes before
//! ```
//!
//! Integers are little-endian. This layout is the same in every format, so that an old program can
//! tell that a file is newer.
//!
//! The salt goes into the checksum of every record in the file. So bytes that a stranger chose (the
//! body of a block, say) never look like a record of this file, wherever a scan comes upon them.

use std::hash::{BuildHasher as _, RandomState};

use base::{ClusterId, NodeId};

use super::Identity;

/// Length of the header, bytes.
pub(crate) const HEADER_LEN: usize = 64;

/// A file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) identity: Identity,
    pub(crate) number: u64,
    pub(crate) first: u64,
    pub(crate) salt: u64,
}

/// Why bytes are not a header that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// They are not what was written.
    Damaged,
    /// The file's format is newer than the program.
    Newer { format: u32 },
    /// The file is another node's.
    Foreign { found: Identity },
}

impl FileHeader {
    /// The header of a new file.
    pub(crate) fn new(identity: Identity, number: u64, first: u64) -> FileHeader {
        FileHeader { identity, number, first, salt: RandomState::new().hash_one(number) }
    }

    pub(crate) fn encode(&self, magic: &[u8; 8], format: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(magic);
        bytes[8..12].copy_from_slice(&format.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.identity.cluster.0);
        bytes[28..32].copy_from_slice(&self.identity.node.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.number.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the front of `bytes`, of the file `number` of `identity`.
    pub(crate) fn decode(
        bytes: &[u8],
        magic: &[u8; 8],
        format_known: u32,
        identity: Identity,
        number: u64,
    ) -> Result<FileHeader, BadHeader> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else { return Err(BadHeader::Damaged) };
        if bytes[0..8] != *magic || crc32c::crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return Err(BadHeader::Damaged);
        }
        let format = u32_at(bytes, 8);
        if format > format_known {
            return Err(BadHeader::Newer { format });
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&bytes[12..28]);
        let found = Identity { cluster: ClusterId(cluster), node: NodeId(u32_at(bytes, 28)) };
        let header = FileHeader {
            identity: found,
            number: u64_at(bytes, 32),
            first: u64_at(bytes, 40),
            salt: u64_at(bytes, 48),
        };
        match header {
            _ if found != identity => Err(BadHeader::Foreign { found }),
            _ if header.number != number => Err(BadHeader::Damaged),
            _ => Ok(header),
        }
    }
}

/// The little-endian `u32` at `offset`, which must be inside `bytes`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

/// The little-endian `u64` at `offset`, which must be inside `bytes`.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}
