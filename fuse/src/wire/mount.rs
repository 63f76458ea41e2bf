//! Mounting and unmounting: directly as root, through `fusermount3` for everybody else.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::abi;
use super::helper::{self, HelperError};
use super::mountpoint::{DeviceId, check_mountpoint, mounted_at, resolve};

const DEVICE: &str = "/dev/fuse";

/// How long a forgotten mount may take to go when its owner is dropped.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The type shown in the mount table is `fuse.` and this.
    pub subtype: String,
    /// The source shown in the mount table.
    pub source: String,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// The kernel checks permissions by mode, uid and gid before it asks.
    pub default_permissions: bool,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Device nodes work (only as root).
    pub devices: bool,
    /// Programs run with the ids of their files, where those have set-id bits (only as root).
    pub set_ids: bool,
    /// Programs may be run from here.
    pub programs: bool,
    /// Reading changes access times, as far as the filesystem keeps them.
    pub access_times: bool,
    /// Mount through this program, even as root, instead of `fusermount3` from the PATH.
    pub helper: Option<PathBuf>,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            subtype: "mangrove".into(),
            source: "mangrove".into(),
            allow_other: false,
            default_permissions: true,
            read_only: false,
            devices: false,
            set_ids: false,
            programs: true,
            access_times: true,
            helper: None,
        }
    }
}

/// Why a mount is refused, and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum MountError {
    #[error("the mountpoint {} does not exist; create it with `mkdir -p {}`", path.display(), path.display())]
    Missing { path: PathBuf },
    #[error("the mountpoint {} is not a directory; name an empty directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("the mountpoint {} is not empty; name an empty directory, its files would be hidden", path.display())]
    NotEmpty { path: PathBuf },
    #[error(
        "{} is already mounted (type {kind}); unmount it with `umount {}` or name another directory",
        path.display(), path.display()
    )]
    AlreadyMounted { path: PathBuf, kind: String },
    #[error(
        "a mount whose process has died is still at {} (\"Transport endpoint is not connected\"); \
         clear it with `fusermount3 -u -z {}` or, as root, `umount -l {}`",
        path.display(), path.display(), path.display()
    )]
    Stale { path: PathBuf },
    #[error("cannot look at the mountpoint {}: {source}", path.display())]
    Inaccessible { path: PathBuf, source: std::io::Error },
    #[error("{DEVICE} is missing; load the kernel module with `modprobe fuse`, or give the container this device")]
    DeviceMissing,
    #[error("may not open {DEVICE}; give this user read and write permission on it (it is usually mode 0666)")]
    DeviceDenied,
    #[error("not permitted to mount, though running as root; a container needs the capability SYS_ADMIN and {DEVICE}")]
    NotPermitted,
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error("the kernel refused the mount at {}: {errno}", path.display())]
    Kernel { path: PathBuf, errno: Errno },
}

/// Why an unmount is refused, and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum UnmountError {
    #[error("nothing is mounted at {}", path.display())]
    NotMounted { path: PathBuf },
    #[error(
        "{} is in use; close the programs that use it (`fuser -vm {}` lists them) or unmount lazily",
        path.display(), path.display()
    )]
    Busy { path: PathBuf },
    #[error("only root or the user who mounted {} may unmount it", path.display())]
    NotPermitted { path: PathBuf },
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error("the kernel refused to unmount {}: {errno}", path.display())]
    Kernel { path: PathBuf, errno: Errno },
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Refuse if it is in use.
    Clean,
    /// Take it out of sight now; it ends when its last user has gone.
    Lazy,
}

/// A mount of ours. Dropping it unmounts it, lazily.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    device_id: Option<DeviceId>,
    helper: Option<PathBuf>,
    gone: AtomicBool,
}

impl Mounted {
    /// Mounts at `path` and returns the mount with the connection that must now be served.
    ///
    /// # Errors
    /// Every [`MountError`]; nothing is mounted then.
    pub fn mount(path: &Path, options: &MountOptions) -> Result<(Mounted, OwnedFd), MountError> {
        let mountpoint = check_mountpoint(path)?;
        if !Path::new(DEVICE).exists() {
            return Err(MountError::DeviceMissing);
        }
        let connection = if rustix::process::geteuid().is_root() && options.helper.is_none() {
            mount_directly(&mountpoint, options)?
        } else {
            helper::mount(&mountpoint, &helper_options(options), options.helper.as_deref())?
        };
        let device_id = mounted_at(&mountpoint).map(|mount| mount.device);
        Ok((
            Mounted { mountpoint, device_id, helper: options.helper.clone(), gone: AtomicBool::new(false) },
            connection,
        ))
    }

    /// A mount that another process made, and will unmount.
    pub(crate) fn of_another(mountpoint: &Path) -> Mounted {
        Mounted { mountpoint: mountpoint.into(), device_id: None, helper: None, gone: AtomicBool::new(true) }
    }

    /// Where, absolute and resolved.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts. Waits for what the kernel still has to write back, so it **must not be called
    /// where it keeps the filesystem's methods from running**.
    ///
    /// # Errors
    /// [`UnmountError`]; the mount is still there then.
    pub fn unmount(&self, how: Unmount) -> Result<(), UnmountError> {
        if self.is_there() {
            unmount_with(&self.mountpoint, how, self.helper.as_deref())?;
        }
        self.set_gone();
        Ok(())
    }

    /// The connection has ended: somebody has unmounted it.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// The device's read-ahead follows what we can serve; the kernel's own default is 128 KiB. Only
    /// root may do this, and nothing depends on it.
    pub(crate) fn raise_readahead(&self) {
        if let Some(device_id) = &self.device_id {
            let path = format!("/sys/class/bdi/{device_id}/read_ahead_kb");
            if let Err(error) = std::fs::write(path, (abi::TRANSFER_BYTES_MAX / 1024).to_string()) {
                tracing::debug!(%error, "read-ahead keeps the kernel's default");
            }
        }
    }

    /// Whether the topmost mount here is still this one.
    fn is_there(&self) -> bool {
        !self.gone.load(Ordering::Acquire) && mounted_at(&self.mountpoint).map(|mount| mount.device) == self.device_id
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.is_there() {
            return;
        }
        // On a thread of its own and with a limit: the kernel may wait for answers that only the
        // thread we are on could give.
        let (mountpoint, helper) = (self.mountpoint.clone(), self.helper.clone());
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let result = unmount_with(&mountpoint, Unmount::Lazy, helper.as_deref());
            // Nobody listens any more if we were too late.
            let _ = done.send(result);
        });
        match wait.recv_timeout(DROP_TIMEOUT) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a mount was left behind"),
            Err(_) => tracing::warn!("unmounting takes long; leaving it to the kernel"),
        }
    }
}

/// Unmounts whatever is at `path`, as root or through `fusermount3`.
///
/// # Errors
/// [`UnmountError`]; the mount is still there then.
pub fn unmount(path: &Path, how: Unmount) -> Result<(), UnmountError> {
    unmount_with(path, how, None)
}

fn unmount_with(path: &Path, how: Unmount, helper: Option<&Path>) -> Result<(), UnmountError> {
    let path = resolve(path).unwrap_or_else(|_| path.into());
    if mounted_at(&path).is_none() {
        return Err(UnmountError::NotMounted { path });
    }
    if !rustix::process::geteuid().is_root() || helper.is_some() {
        return helper::unmount(&path, how, helper);
    }
    let flags = match how {
        Unmount::Clean => UnmountFlags::NOFOLLOW,
        Unmount::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(&path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(UnmountError::Busy { path }),
        Err(Errno::INVAL) => Err(UnmountError::NotMounted { path }),
        Err(Errno::PERM) => Err(UnmountError::NotPermitted { path }),
        Err(errno) => Err(UnmountError::Kernel { path, errno }),
    }
}

/// Opens the device and calls `mount(2)`.
fn mount_directly(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let connection = match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(connection) => connection,
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return Err(MountError::DeviceMissing),
        Err(Errno::ACCESS | Errno::PERM) => return Err(MountError::DeviceDenied),
        Err(errno) => return Err(MountError::Kernel { path: mountpoint.into(), errno }),
    };
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},max_read={}",
        connection.as_raw_fd(),
        abi::TRANSFER_BYTES_MAX
    );
    for (set, option) in permission_options(options) {
        if set {
            write!(data, ",{option}").expect("writing to a string cannot fail");
        }
    }
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NODEV, !options.devices);
    flags.set(MountFlags::NOSUID, !options.set_ids);
    flags.set(MountFlags::NOEXEC, !options.programs);
    flags.set(MountFlags::NOATIME, !options.access_times);
    let kind = format!("fuse.{}", options.subtype);
    let data = std::ffi::CString::new(data).expect("options are made here and hold no zero");
    match rustix::mount::mount(options.source.as_str(), mountpoint, kind.as_str(), flags, data.as_c_str()) {
        Ok(()) => Ok(connection),
        Err(Errno::PERM | Errno::ACCESS) => Err(MountError::NotPermitted),
        Err(Errno::NODEV) => Err(MountError::DeviceMissing),
        Err(errno) => Err(MountError::Kernel { path: mountpoint.into(), errno }),
    }
}

fn permission_options(options: &MountOptions) -> [(bool, &'static str); 2] {
    [(options.allow_other, "allow_other"), (options.default_permissions, "default_permissions")]
}

/// The same for `fusermount3 -o`.
fn helper_options(options: &MountOptions) -> String {
    // A comma would end the option.
    let escaped = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut line = format!(
        "fsname={},subtype={},max_read={},{}",
        escaped(&options.source),
        escaped(&options.subtype),
        abi::TRANSFER_BYTES_MAX,
        if options.read_only { "ro" } else { "rw" }
    );
    let restrictions = [(!options.programs, "noexec"), (!options.access_times, "noatime")];
    // Unless it is told so the helper lets nobody have these, and it listens to root only.
    let freedoms = [(options.devices, "dev"), (options.set_ids, "suid")];
    for (set, option) in permission_options(options).into_iter().chain(restrictions).chain(freedoms) {
        if set {
            write!(line, ",{option}").expect("writing to a string cannot fail");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helpers_options_say_the_same_as_the_kernels() {
        let options = MountOptions { source: "a,b".into(), allow_other: true, read_only: true, ..Default::default() };
        let line = helper_options(&options);
        assert_eq!(line, r"fsname=a\,b,subtype=mangrove,max_read=1048576,ro,allow_other,default_permissions");
    }

    #[test]
    fn unmounting_what_is_not_mounted_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = unmount(folder.path(), Unmount::Clean).unwrap_err();
        assert!(matches!(error, UnmountError::NotMounted { .. }), "{error}");
    }
}
