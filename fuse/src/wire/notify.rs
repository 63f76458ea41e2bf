//! What the filesystem tells the kernel unasked: that something it caches has changed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::abi::notification;
use super::device::Device;

/// Invalidates what the kernel caches of this mount. Cheap to clone.
///
/// The kernel may wait, inside these calls, for pages and directories that requests under way hold
/// locked. What may wait runs on tokio's blocking threads, and **must not be awaited while holding a
/// lock that a method of the filesystem may want**, nor inside the answer to a request about the
/// same inode.
#[derive(Clone, Debug)]
pub struct Notifier {
    device: Device,
}

impl Notifier {
    pub(crate) fn new(device: Device) -> Notifier {
        Notifier { device }
    }

    /// Drops the attributes of `inode` only. The kernel waits for nothing in this, so it may be called
    /// from anywhere.
    ///
    /// # Errors
    /// What the kernel says. Nothing cached, or no mount any more, is success.
    pub fn inval_attributes(&self, inode: u64) -> Result<(), Errno> {
        ignore_gone(self.device.notify(notification::INVAL_INODE, &range(inode, -1, 0), &[]))
    }

    /// Drops the attributes of `inode`, and its cached pages from `offset` on for `length` bytes
    /// (0: to the end; a negative `offset`: none). Nothing cached, or no mount any more, is success.
    ///
    /// # Errors
    /// What the kernel says; EINVAL for a range that makes no sense.
    pub async fn inval_inode(&self, inode: u64, offset: i64, length: i64) -> Result<(), Errno> {
        self.send(notification::INVAL_INODE, range(inode, offset, length), Vec::new()).await
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

    /// Has the kernel look up every name again that it was told of before. It waits for nothing in this. An
    /// answer that is under way meanwhile counts as told before if its request was.
    ///
    /// # Errors
    /// EINVAL if the kernel can't (before Linux 6.16).
    pub fn expire_names(&self) -> Result<(), Errno> {
        ignore_gone(self.device.notify(notification::INC_EPOCH, &[], &[]))
    }

    /// Has the kernel send again what another process read from this connection and did not answer.
    ///
    /// # Errors
    /// EINVAL from a kernel before 6.9, where it waits for ever.
    pub(crate) fn resend(&self) -> Result<(), Errno> {
        ignore_gone(self.device.notify(notification::RESEND, &[], &[]))
    }

    async fn send(&self, code: i32, body: Vec<u8>, name: Vec<u8>) -> Result<(), Errno> {
        let device = self.device.clone();
        let sent = tokio::task::spawn_blocking(move || device.notify(code, &body, &name)).await;
        sent.map_or(Err(Errno::CANCELED), ignore_gone)
    }
}

fn range(inode: u64, offset: i64, length: i64) -> Vec<u8> {
    [inode.to_ne_bytes(), offset.to_ne_bytes(), length.to_ne_bytes()].concat()
}

fn ignore_gone(sent: Result<(), Errno>) -> Result<(), Errno> {
    match sent {
        Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
        sent => sent,
    }
}
