//! Mounting a volume.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::backend::{BlockStore, Metadata};

use crate::control::Turn;
use crate::door::Door;
use crate::ledger::Ledger;
use crate::takeover::{Inheritance, settle};
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
    /// Device nodes work (only as root).
    pub devices: bool,
    /// Set-id bits work (only as root).
    pub set_ids: bool,
    /// Programs may be run from here.
    pub programs: bool,
    /// Reading changes access times, as far as the cluster keeps them.
    pub access_times: bool,
    /// Which user and group everything is shown to belong to, if not its own.
    pub shown_as: (Option<u32>, Option<u32>),
    /// What the mount table calls its source.
    pub source: String,
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
            devices: false,
            set_ids: false,
            programs: true,
            access_times: true,
            shown_as: (None, None),
            source: "mangrove".into(),
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
    /// What the process before left.
    #[error("cannot read what the process before left: {0}")]
    Ledger(std::io::Error),
    /// The kernel and this program could not agree.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A volume that is mounted. Dropping it unmounts, but does not wait.
#[derive(Debug)]
pub struct Mount {
    session: Session,
    _settling: Option<Settling>,
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
    let (mounted, connection) = Mounted::mount(mountpoint, &options.wire())?;
    let door = Arc::new(Door::new(fs, &options, Inheritance::default(), None));
    let session = Session::start(mounted, connection, door, session_options());
    Ok(Mount { session: session.await?, _settling: None })
}

/// Serves a mount whose connection a supervisor has, from where the process before stopped.
///
/// # Errors
/// [`MountError`]; the supervisor still has the mount then.
pub async fn serve<M: Metadata, B: BlockStore>(
    fs: Arc<client::fs::Filesystem<M, B>>,
    mountpoint: &Path,
    options: MountOptions,
    turn: Turn,
) -> Result<Mount, MountError> {
    let Turn { connection, ledger, agreed, lost, tell } = turn;
    let (ledger, unsynced) = Ledger::open(ledger).map_err(MountError::Ledger)?;
    let ledger = Arc::new(ledger);
    if lost {
        tracing::warn!(inodes = unsynced.len(), "goes on after a crash; what was not synced may be lost");
    } else {
        ledger.synced(ledger.unsynced(None));
    }
    let unsynced = lost.then_some(unsynced);
    let inherited = Inheritance::new(Some(ledger.clone()), agreed.is_some(), unsynced);
    let door = Arc::new(Door::new(fs.clone(), &options, inherited, Some(tell)));
    let mounted = Mounted::of_another(mountpoint);
    let session = match agreed {
        None => Session::start(mounted, connection, door, session_options()).await?,
        Some(agreed) => Session::resume(mounted, connection, door, session_options(), agreed).await?,
    };
    let settling = Settling(tokio::spawn(settle(fs.clone(), ledger, fs.root().0)).abort_handle());
    Ok(Mount { session, _settling: Some(settling) })
}

/// The replicas clear set-id bits themselves. The kernel would ask for `security.capability`, which is
/// a round of agreement, at each write. They also take the umask off, because it is for the directory to say
/// whether that is done. The kernel judges before they do, by what it remembers: or its cache of names would
/// lead users through directories that are closed to them.
fn session_options() -> SessionOptions {
    let locks = capability::POSIX_LOCKS | capability::FLOCK_LOCKS;
    let lists = capability::POSIX_ACL | capability::DONT_MASK;
    // A listing can't say for how long its names are good, and would end what an answer about one of them said.
    let listings = capability::DO_READDIRPLUS | capability::READDIRPLUS_AUTO;
    let capabilities = (capability::DEFAULT & !listings) | capability::HANDLE_KILLPRIV_V2 | lists | locks;
    SessionOptions { capabilities, ..Default::default() }
}

impl MountOptions {
    /// How the kernel is to mount it.
    pub(crate) fn wire(&self) -> wire::MountOptions {
        wire::MountOptions {
            allow_other: self.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root()),
            read_only: self.read_only,
            devices: self.devices,
            set_ids: self.set_ids,
            programs: self.programs,
            access_times: self.access_times,
            source: self.source.clone(),
            ..wire::MountOptions::default()
        }
    }
}

/// Keeps the ledger for as long as the mount is served.
#[derive(Debug)]
struct Settling(tokio::task::AbortHandle);

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.abort();
    }
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

    /// What was agreed on with the kernel.
    pub fn agreed(&self) -> wire::request::Init {
        *self.session.kernel()
    }

    /// Stops serving, for the next process to go on. Says whether everything under way was answered within
    /// `limit`; the rest is the next one's.
    pub async fn leave(&self, limit: Duration) -> bool {
        self.session.leave(limit).await
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
        if !unmount_patiently(async |how| self.session.unmount(how).await).await? {
            self.ended().await;
        }
        Ok(())
    }
}

/// Unmounts, after a few seconds even though programs use it: then it is detached, and this says so.
pub(crate) async fn unmount_patiently(
    unmount: impl AsyncFn(Unmount) -> Result<(), UnmountError>,
) -> Result<bool, UnmountError> {
    let start = Instant::now();
    loop {
        match unmount(Unmount::Clean).await {
            Ok(()) => return Ok(false),
            Err(UnmountError::Busy { .. }) if start.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(BUSY_RETRY).await;
            }
            Err(UnmountError::Busy { .. }) => {
                tracing::warn!("programs still use the mount; it is detached from the tree of files");
                return unmount(Unmount::Lazy).await.map(|()| true);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Unmounts what is mounted at `path`; with `lazy`, even if it is in use or its process is dead.
///
/// # Errors
/// [`UnmountError`]; it is still mounted then.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), UnmountError> {
    wire::unmount(path, if lazy { Unmount::Lazy } else { Unmount::Clean })
}
