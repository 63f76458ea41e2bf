//! The filesystem tests once more, with leases: what programs see is the same.

/// Whether mounts have leases.
const LEASED: bool = true;

#[path = "../filesystem/copies.rs"]
mod copies;
mod leases;
mod locks;
mod losses;
#[path = "../filesystem/model.rs"]
mod model;
#[path = "../filesystem/names.rs"]
mod names;
mod patches;
mod readers;
#[path = "../filesystem/shapes.rs"]
mod shapes;
#[path = "../filesystem/sharing.rs"]
mod sharing;
#[path = "../filesystem/snapshots.rs"]
mod snapshots;
#[path = "../filesystem/trash.rs"]
mod trash;
#[path = "../filesystem/world.rs"]
mod world;
