//! From an operation to the filesystem's method and back to an answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::device::Device;
use super::filesystem::{Filesystem, Request};
use super::interrupt::{Running, Started};
use super::reply::{Answer, Copied, DirectoryEntries, Extended, Written};
use super::request::{Header, Operation, Read};

/// An operation under way. It has answered when it is done.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request on its way to an answer. Dropped without one, it answers EIO: a caller never hangs
/// because a method panicked or the runtime is shutting down.
pub(crate) struct Call<F> {
    filesystem: Arc<F>,
    request: Request,
    inode: u64,
    device: Device,
    answered: bool,
    _started: Started,
}

impl<F: Filesystem> Call<F> {
    pub(crate) fn new(header: &Header, filesystem: Arc<F>, device: Device, running: &Arc<Running>) -> Call<F> {
        let started = running.start(header.unique);
        let request = Request {
            unique: header.unique,
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            until_answered: OnceLock::new(),
            interrupt: started.interrupt.clone(),
        };
        Call { filesystem, request, inode: header.inode, device, answered: false, _started: started }
    }

    pub(crate) fn answer<A: Answer>(mut self, result: Result<A, Errno>) {
        self.answered = true;
        self.device.answer(self.request.unique, result.as_ref().map_err(|errno| *errno));
    }

    async fn list(self, read: Read, with_attributes: bool) {
        let mut entries = DirectoryEntries::new(read.size as usize, with_attributes);
        let (request, inode) = (&self.request, self.inode);
        let result = if with_attributes {
            self.filesystem.readdirplus(request, inode, read, &mut entries).await
        } else {
            self.filesystem.readdir(request, inode, read, &mut entries).await
        };
        // Entries already counted as lookups must reach the kernel; the error comes again at the next offset.
        let result = if entries.is_empty() { result } else { Ok(()) };
        self.answer(result.map(|()| entries));
    }
}

impl<F> Drop for Call<F> {
    fn drop(&mut self) {
        if !self.answered {
            self.device.answer::<()>(self.request.unique, Err(Errno::IO));
        }
    }
}

/// Calls one method and sends what it returns.
macro_rules! task {
    ($call:ident, $method:ident($($argument:expr),*)) => {
        Box::pin(async move {
            let result = $call.filesystem.$method(&$call.request, $call.inode $(, $argument)*).await;
            $call.answer(result);
        })
    };
}

/// The task that answers `call`. `Forget`, `Interrupt`, `Init`, `Destroy` and `NotifyReply` are the
/// session's own and never come here.
pub(crate) fn task<F: Filesystem>(call: Call<F>, operation: Operation) -> Task {
    match operation {
        Operation::Lookup { name } => task!(call, lookup(&name)),
        Operation::GetAttr { handle } => task!(call, getattr(handle)),
        Operation::StatX { handle } => Box::pin(async move {
            let result = call.filesystem.getattr(&call.request, call.inode, handle).await;
            call.answer(result.map(Extended));
        }),
        Operation::SetAttr(set) => task!(call, setattr(set)),
        Operation::ReadLink => task!(call, readlink()),
        Operation::Symlink { name, target } => task!(call, symlink(&name, &target)),
        Operation::MkNod { name, mode, device } => task!(call, mknod(&name, mode, device)),
        Operation::MkDir { name, mode } => task!(call, mkdir(&name, mode)),
        Operation::Unlink { name } => task!(call, unlink(&name)),
        Operation::RmDir { name } => task!(call, rmdir(&name)),
        Operation::Rename(rename) => task!(call, rename(rename)),
        Operation::Link { from, name } => Box::pin(async move {
            let result = call.filesystem.link(&call.request, from, call.inode, &name).await;
            call.answer(result);
        }),
        Operation::Open(open) => task!(call, open(open)),
        Operation::Create { name, mode, open } => task!(call, create(&name, mode, open)),
        Operation::TmpFile { mode, open } => task!(call, tmpfile(mode, open)),
        Operation::Read(read) => task!(call, read(read)),
        Operation::Write(write) => task!(call, write(write)),
        Operation::Flush { handle, lock_owner } => task!(call, flush(handle, lock_owner)),
        Operation::Release(release) => task!(call, release(release)),
        Operation::GetLock(lock) => task!(call, getlk(lock)),
        Operation::SetLock { lock, wait } => task!(call, setlk(lock, wait)),
        Operation::Fsync { handle, data_only } => task!(call, fsync(handle, data_only)),
        Operation::OpenDir(open) => task!(call, opendir(open)),
        Operation::ReadDir(read) => Box::pin(call.list(read, false)),
        Operation::ReadDirPlus(read) => Box::pin(call.list(read, true)),
        Operation::ReleaseDir(release) => task!(call, releasedir(release)),
        Operation::FsyncDir { handle, data_only } => task!(call, fsyncdir(handle, data_only)),
        Operation::StatFs => task!(call, statfs()),
        Operation::SetXattr { name, value, flags } => task!(call, setxattr(&name, &value, flags)),
        Operation::GetXattr { name, size } => task!(call, getxattr(&name, size)),
        Operation::ListXattr { size } => task!(call, listxattr(size)),
        Operation::RemoveXattr { name } => task!(call, removexattr(&name)),
        Operation::Access { mask } => task!(call, access(mask)),
        Operation::Fallocate(fallocate) => task!(call, fallocate(fallocate)),
        Operation::LSeek { handle, offset, whence } => task!(call, lseek(handle, offset, whence)),
        Operation::CopyFileRange { copy, wide } => Box::pin(async move {
            let result = call.filesystem.copy_file_range(&call.request, call.inode, copy).await;
            match wide {
                true => call.answer(result.map(|Written(bytes)| Copied(u64::from(bytes)))),
                false => call.answer(result),
            }
        }),
        Operation::Ioctl(ioctl) => task!(call, ioctl(ioctl)),
        Operation::Poll { handle, events } => task!(call, poll(handle, events)),
        Operation::Forget { .. }
        | Operation::Interrupt { .. }
        | Operation::Init(_)
        | Operation::Destroy
        | Operation::NotifyReply
        | Operation::Unsupported => Box::pin(async move { call.answer::<()>(Err(Errno::NOSYS)) }),
    }
}
