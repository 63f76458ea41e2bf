//! The mount: Mangrove as a network filesystem.
//!
//! - [`wire`] speaks the kernel's FUSE protocol over `/dev/fuse` and knows nothing of Mangrove;
//! - `door` answers it with the client library; `translate` and `errno` have the words for both;
//! - `groups` finds out who asks, `listing` remembers half-read directories, `changes` when to forget
//!   them;
//! - `mount` ties them together: [`mount()`], [`Mount`], [`unmount`].
//!
//! **Invariant:** nothing is decided here. Permissions are the replicas' business (the kernel checks
//! them too, to spare the way), durability the library's.

mod changes;
mod door;
mod errno;
mod groups;
mod listing;
mod locks;
mod mount;
mod told;
mod translate;
pub mod wire;

/// The kind of our mounts, as `/proc/self/mountinfo` has it.
pub const KIND: &str = "fuse.mangrove";

pub use mount::{Mount, MountError, MountOptions, mount, unmount};
pub use wire::{UnmountError, check_mountpoint, clear_stale};
