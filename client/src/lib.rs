//! The library: everything an application needs of a cluster.
//!
//! - [`connect`]: a user's connection to a cluster, and the volumes in it;
//! - [`session`]: requests to the replicas, batched, signed, answered by f+1 of them;
//! - [`leased`]: what this client has leases on, done here and sent later;
//! - `proofs`: reads that one replica answers, with proof;
//! - [`blocks`]: blocks to and from storage nodes: placed, hash-checked, hedged;
//! - [`fs`]: a volume as a POSIX filesystem, for doors; [`cache`]: blocks kept at hand;
//! - [`backend`]: what `fs` needs of the two above, as traits;
//! - [`status`]: what nodes say about themselves.

pub mod backend;
pub mod blocks;
pub mod cache;
pub mod connect;
mod exchange;
pub mod fs;
pub mod leased;
mod proofs;
pub mod session;
pub mod status;

pub use connect::{Cluster, ConnectError, Volume};
pub use meta::{Attr, Caller, Redundancy};
pub use proofs::{Read, ReadCounts, Source};
