//! What the filesystem tells the kernel unasked: that something it caches has changed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::abi::notification;
use super::device::Device;

/// Invalidates what the kernel caches of this mount. Cheap to clone.
///
/// The kernel may wait, inside these calls, for pages and directories that requests under way hold
/// locked. They therefore run on tokio's blocking threads, and **must not be awaited while holding
/// a lock that a method of the filesystem may want**, nor inside the answer to a request about the
/// same inode.
#[derive(Clone, Debug)]
pub struct Notifier {
    device: Device,
}

impl Notifier {
    pub(crate) fn new(device: Device) -> Notifier {
        Notifier { device }
    }

    /// Drops the attributes of `inode`, and its cached pages from `offset` on for `length` bytes
    /// (0: to the end; a negative `offset`: none). Nothing cached, or no mount any more, is success.
    ///
    /// # Errors
    /// What the kernel says; EINVAL for a range that makes no sense.
    pub async fn inval_inode(&self, inode: u64, offset: i64, length: i64) -> Result<(), Errno> {
        let mut body = Vec::with_capacity(24);
        body.extend_from_slice(&inode.to_ne_bytes());
        body.extend_from_slice(&offset.to_ne_bytes());
        body.extend_from_slice(&length.to_ne_bytes());
        self.send(notification::INVAL_INODE, body, Vec::new()).await
    }

    /// Drops the name `name` in `parent`, so that it is looked up again; `expire_only` keeps what is
    /// mounted or open beneath it. Nothing cached, or no mount any more, is success.
    ///
    /// # Errors
    /// What the kernel says; ENAMETOOLONG for a name that cannot be one.
    pub async fn inval_entry(&self, parent: u64, name: &OsStr, expire_only: bool) -> Result<(), Errno> {
        let flags = if expire_only { notification::EXPIRE_ONLY } else { 0 };
        let mut body = Vec::with_capacity(16);
        body.extend_from_slice(&parent.to_ne_bytes());
        body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        body.extend_from_slice(&flags.to_ne_bytes());
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        self.send(notification::INVAL_ENTRY, body, name).await
    }

    async fn send(&self, code: i32, body: Vec<u8>, name: Vec<u8>) -> Result<(), Errno> {
        let device = self.device.clone();
        let sent = tokio::task::spawn_blocking(move || device.notify(code, &body, &name)).await;
        match sent {
            Ok(Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED)) => Ok(()),
            Ok(Err(errno)) => Err(errno),
            Err(_) => Err(Errno::CANCELED),
        }
    }
}
