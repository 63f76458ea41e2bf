//! The mount: Mangrove as a network filesystem.
//!
//! - [`wire`] speaks the kernel's FUSE protocol over `/dev/fuse` and knows nothing of Mangrove;
//! - `door` answers it with the client library; `translate` and `errno` have the words for both;
//! - `groups` finds out who asks, `listing` remembers half-read directories, `changes` when to forget
//!   them;
//! - `kept` is what the kernel may keep of an answer, `readdir` lists directories;
//! - `mount` ties them together: [`mount()`], [`Mount`], [`unmount`];
//! - `supervisor` keeps the kernel's connection in a small process of its own and starts the one that
//!   serves it again; `control` is what the two say to each other, `ledger` what must survive, and
//!   `takeover` what the door does with it.
//!
//! **Invariant:** nothing is decided here. Permissions are the replicas' business (the kernel checks
//! them too, to spare the way), durability the library's.

mod changes;
mod control;
mod door;
mod errno;
mod files;
mod groups;
mod kept;
mod ledger;
mod listing;
mod locks;
mod mount;
mod readdir;
mod supervisor;
mod takeover;
mod told;
mod translate;
pub mod wire;
mod xattrs;

/// The kind of our mounts, as `/proc/self/mountinfo` has it.
pub const KIND: &str = "fuse.mangrove";

pub use control::{ControlError, Supervised, Turn, Word};
pub use mount::{Mount, MountError, MountOptions, mount, serve, unmount};
pub use supervisor::{Event, Order, SuperviseError, Supervisor};
pub use wire::{UnmountError, check_mountpoint, clear_stale};
