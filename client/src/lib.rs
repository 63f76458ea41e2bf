//! The library: everything an application needs of a cluster.
//!
//! - `connect`: a user's connection to a cluster, and the volumes in it;
//! - `session`: requests to the replicas, batched, signed, answered by f+1 of them;
//! - [`leased`]: what this client has leases on, done here and sent later;
//! - `proofs`: reads that one replica answers, with proof;
//! - `blocks`: blocks to and from storage nodes: placed, hash-checked, hedged;
//! - `fs`: a volume as a POSIX filesystem, for doors; `cache`: blocks kept at hand;
//! - [`backend`]: what `fs` needs of the two above, as traits;
//! - `status`: what nodes say about themselves.
//!
//! Without the feature `cluster` there are only [`backend`] and [`leased`].

pub mod backend;
#[cfg(feature = "cluster")]
pub mod blocks;
#[cfg(feature = "cluster")]
pub mod cache;
#[cfg(feature = "cluster")]
pub mod connect;
#[cfg(feature = "cluster")]
mod exchange;
#[cfg(feature = "cluster")]
pub mod fs;
pub mod leased;
#[cfg(feature = "cluster")]
mod proofs;
#[cfg(feature = "cluster")]
pub mod session;
#[cfg(feature = "cluster")]
pub mod status;

#[cfg(feature = "cluster")]
pub use connect::{Cluster, ConnectError, Volume};
pub use meta::{Attr, Caller, Denied, Redundancy, Snapshot};
#[cfg(feature = "cluster")]
pub use proofs::{Read, ReadCounts, Source};
