//! The words every room shares.
//!
//! Nothing here knows a protocol: ids and time, quorum sizes as types, the canonical encoding that
//! is signed and stored, keys and [`Verified`] messages, the Merkle trie that digests a state, and
//! the two traits every core is written against ([`Protocol`] and [`StateMachine`]).
//!
//! **Invariant:** this crate has no clock, no randomness, no disk and no network.

pub mod codec;
pub mod hash;
pub mod id;
pub mod keys;
pub mod merkle;
pub mod protocol;
pub mod quorum;
pub mod time;
pub mod verdict;

pub use codec::{Decode, DecodeError, Encode, Reader};
pub use hash::{BlockId, Digest};
pub use id::{ClusterId, NodeId, ReplicaId, Seq, View};
pub use keys::{Check, Forged, PublicKey, SecretKey, Signable, Signature, Signed, Verified, signed_bytes};
pub use protocol::{Effects, Protocol, Send, StateMachine, To};
pub use quorum::Quorums;
pub use time::Time;
pub use verdict::{Claim, Cofactored, Verifier};
