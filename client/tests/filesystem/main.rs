//! The filesystem over in-process twins of the replicas and the storage nodes.

/// Whether mounts have leases.
const LEASED: bool = false;

mod copies;
mod durability;
mod model;
mod names;
mod opening;
mod shapes;
mod sharing;
mod snapshots;
mod trash;
mod world;
