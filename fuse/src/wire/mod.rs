//! A thin layer over `/dev/fuse`: the kernel's protocol, spoken directly.
//!
//! A filesystem implements [`Filesystem`]; [`Mounted::mount`] mounts it and [`Session::start`]
//! serves it. Own code, because the usual crates drop what a network filesystem needs:
//! interrupts of requests under way, and writes whose data is not copied.
//!
//! - `abi`, `parse`, `request`, `reply`: numbers, bytes to operations, answers to bytes
//! - `device`: whole messages in and out, and the buffers they are read into
//! - `mountpoint`, `mount`, `helper`: check, mount and unmount, with errors that say what to do
//! - `session`, `dispatch`, `interrupt`: readers, tasks, and who is told to hurry
//! - `notify`: what the filesystem tells the kernel unasked
//!
//! **Invariant:** no unsafe code, and nothing of Mangrove: this layer could serve any filesystem.

pub mod abi;
mod device;
mod dispatch;
mod filesystem;
mod helper;
mod interrupt;
mod mount;
mod mountpoint;
mod notify;
pub mod parse;
mod reply;
pub mod request;
mod session;

pub use filesystem::{Errno, Filesystem, Request};
pub use helper::HelperError;
pub use interrupt::Interrupt;
pub use mount::{MountError, MountOptions, Mounted, Unmount, UnmountError, unmount};
pub use mountpoint::{MountInfo, check_mountpoint, clear_stale, mounted_at, mounts};
pub use notify::Notifier;
pub use reply::{
    Attributes, AttributesFor, Created, Data, DirectoryEntries, Entry, IoctlResult, LockFound, Offset, Opened, Ready,
    Statistics, Target, Written, Xattr,
};
pub use session::{End, Session, SessionError, SessionOptions};
