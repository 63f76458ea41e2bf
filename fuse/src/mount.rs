//! Mounting a volume.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::backend::{BlockStore, Metadata};

use crate::door::Door;
use crate::wire::abi::capability;
use crate::wire::{self, End, Mounted, Notifier, Session, SessionError, SessionOptions, Unmount, UnmountError};

/// How long an unmount waits for programs that still use the mount.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// How a volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether others than who mounts may use it; by default, if root mounts.
    pub allow_other: Option<bool>,
    /// Nothing can be changed.
    pub read_only: bool,
    /// For how long attributes may be used without asking the cluster where this mount has no lease, by whoever
    /// has the file open; names are asked for every time, and bring the attributes with them.
    pub ttl: Duration,
    /// How long an operation may go on after its caller was interrupted; then it ends with EINTR.
    pub interrupt_grace: Duration,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            allow_other: None,
            read_only: false,
            ttl: Duration::from_secs(1),
            interrupt_grace: Duration::from_secs(1),
        }
    }
}

/// Why a volume could not be mounted, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint, the rights, or the helper program.
    #[error(transparent)]
    Mount(#[from] wire::MountError),
    /// The kernel and this program could not agree.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A volume that is mounted. Dropping it unmounts, but does not wait.
#[derive(Debug)]
pub struct Mount {
    session: Session,
}

/// Mounts `fs` at `mountpoint` and returns when it can be used.
///
/// # Errors
/// [`MountError`]; nothing is mounted then.
pub async fn mount<M: Metadata, B: BlockStore>(
    fs: Arc<client::fs::Filesystem<M, B>>,
    mountpoint: &Path,
    options: MountOptions,
) -> Result<Mount, MountError> {
    let how = wire::MountOptions {
        allow_other: options.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root()),
        read_only: options.read_only,
        ..wire::MountOptions::default()
    };
    let (mounted, connection) = Mounted::mount(mountpoint, &how)?;
    // The replicas clear set-id bits themselves. The kernel would ask for `security.capability`,
    // which is a round of agreement, at each write.
    let locks = capability::POSIX_LOCKS | capability::FLOCK_LOCKS;
    let capabilities = capability::DEFAULT | capability::HANDLE_KILLPRIV_V2 | locks;
    let door = Arc::new(Door::new(fs, options.ttl, options.interrupt_grace));
    let session = Session::start(mounted, connection, door, SessionOptions { capabilities, ..Default::default() });
    Ok(Mount { session: session.await? })
}

impl Mount {
    /// Where it is mounted, absolute and resolved.
    pub fn mountpoint(&self) -> &Path {
        self.session.mountpoint()
    }

    /// Tells the kernel what has changed elsewhere. The root's inode number is
    /// [`wire::abi::ROOT`] there.
    pub fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// Waits until it is unmounted, by whomever, and everything written is committed as far as it
    /// can be.
    pub async fn ended(&self) -> End {
        self.session.ended().await
    }

    /// Unmounts. When it returns everything written is committed, as far as it can be.
    ///
    /// Where programs still use the mount after a few seconds, it is taken out of their sight and
    /// left to them: then what they have open works for as long as this process lives, and the
    /// filesystem's `sync_all` commits what they have written so far.
    ///
    /// # Errors
    /// [`UnmountError`]: it is still mounted.
    pub async fn unmount(&self) -> Result<(), UnmountError> {
        let start = Instant::now();
        loop {
            match self.session.unmount(Unmount::Clean).await {
                Ok(()) => break,
                Err(UnmountError::Busy { .. }) if start.elapsed() < BUSY_TIMEOUT => {
                    tokio::time::sleep(BUSY_RETRY).await;
                }
                Err(UnmountError::Busy { .. }) => {
                    tracing::warn!("programs still use the mount; it is detached from the tree of files");
                    return self.session.unmount(Unmount::Lazy).await;
                }
                Err(error) => return Err(error),
            }
        }
        self.ended().await;
        Ok(())
    }
}

/// Unmounts what is mounted at `path`; with `lazy`, even if it is in use or its process is dead.
///
/// # Errors
/// [`UnmountError`]; it is still mounted then.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), UnmountError> {
    wire::unmount(path, if lazy { Unmount::Lazy } else { Unmount::Clean })
}
