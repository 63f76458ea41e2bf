//! A session: the readers of one mount, from INIT until the mount is gone.
//!
//! Each reader is a thread that waits in `read(2)`, where the kernel wakes exactly one of them per
//! request (`poll` would wake them all). It polls the request's operation once itself, so whatever
//! can be answered at once costs no hand-over; an operation that waits goes on as a tokio task.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::abi::{self, capability};
use super::device::{Buffers, Device};
use super::dispatch::{Call, task};
use super::filesystem::Filesystem;
use super::interrupt::Running;
use super::mount::{Mounted, Unmount, UnmountError};
use super::notify::Notifier;
use super::parse;
use super::reply::InitAnswer;
use super::request::{Init, Operation};

/// How long operations under way may take to end after the mount has gone.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads that read requests and run each operation until it first waits.
    pub readers: usize,
    /// What to ask the kernel for; see [`abi::capability`].
    pub capabilities: u64,
    /// Requests of the kernel's own (read-ahead, write-back) that may be under way at once.
    pub max_background: u16,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        SessionOptions { readers: cores.clamp(4, 16), capabilities: capability::DEFAULT, max_background: 64 }
    }
}

/// Why a session does not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SessionError {
    #[error(
        "the kernel speaks FUSE {major}.{minor}; {}.{} or a later {}.x is needed (Linux 5.4)",
        abi::MAJOR,
        abi::MINOR_MIN,
        abi::MAJOR
    )]
    Version { major: u32, minor: u32 },
    #[error("the mount went away before it was ready: {0}")]
    Gone(Errno),
    #[error("the kernel's first message is not what it should be; is the descriptor a fresh /dev/fuse?")]
    Handshake,
    #[error("the filesystem refused to start: {0}")]
    Refused(Errno),
    #[error("cannot start a reader thread: {0}")]
    Thread(std::io::Error),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Unmounted, by us or by somebody else.
    Unmounted,
    /// Reading the device failed.
    Failed(Errno),
}

/// A mount that is being served. Dropping it unmounts.
#[derive(Debug)]
pub struct Session {
    mounted: Arc<Mounted>,
    ended: watch::Receiver<Option<End>>,
    notifier: Notifier,
    kernel: Init,
}

impl Session {
    /// Starts serving `connection`, the other end of `mounted`, and returns when the mount is ready.
    /// Operations that wait run on the current tokio runtime.
    ///
    /// # Errors
    /// [`SessionError`]; the mount is gone then.
    pub async fn start<F: Filesystem>(
        mounted: Mounted,
        connection: std::os::fd::OwnedFd,
        filesystem: Arc<F>,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        let device = Device::new(connection);
        let (end, ended) = watch::channel(None);
        let server = Arc::new(Server {
            notifier: Notifier::new(device.clone()),
            device,
            filesystem,
            running: Arc::default(),
            buffers: Arc::default(),
            runtime: Handle::current(),
            readers: AtomicUsize::new(0),
            end,
        });
        let (sender, handshake) = oneshot::channel();
        let first = server.clone();
        // Counted from here on, so that the last reader knows itself.
        server.readers.store(options.readers.max(1), Ordering::Relaxed);
        spawn("fuse-0", move || {
            let agreed = first.handshake(&options);
            let failed = agreed.is_err();
            if sender.send(agreed).is_ok() && !failed {
                first.read_requests();
            }
        })?;
        let kernel = handshake.await.map_err(|_| SessionError::Handshake)??;
        for number in 1..options.readers {
            let reader = server.clone();
            spawn(&format!("fuse-{number}"), move || reader.read_requests())?;
        }
        mounted.raise_readahead();
        tracing::info!(minor = kernel.minor, capabilities = kernel.capabilities, "mounted");
        Ok(Session { mounted: Arc::new(mounted), ended, notifier: server.notifier.clone(), kernel })
    }

    /// Where it is mounted, absolute and resolved.
    pub fn mountpoint(&self) -> &std::path::Path {
        self.mounted.mountpoint()
    }

    /// What the two sides agreed on.
    pub fn kernel(&self) -> &Init {
        &self.kernel
    }

    /// Invalidates what the kernel caches.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Waits until the mount is gone, for whatever reason, and the filesystem's `destroy` has run.
    pub async fn ended(&self) -> End {
        let mut ended = self.ended.clone();
        let end = match ended.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Unmounted),
            // The runtime that was to report has been shut down.
            Err(_) => End::Unmounted,
        };
        self.mounted.set_gone();
        end
    }

    /// Unmounts. After `Clean` the session is about to end; after `Lazy` the mount is out of sight,
    /// and the session ends when nobody uses it any more. [`Session::ended`] waits for either.
    ///
    /// # Errors
    /// With [`UnmountError`] nothing has changed.
    pub async fn unmount(&self, how: Unmount) -> Result<(), UnmountError> {
        let mounted = self.mounted.clone();
        // Elsewhere: the kernel waits for answers to what it still writes back.
        let unmounted = tokio::task::spawn_blocking(move || mounted.unmount(how)).await;
        // It was either done, or cancelled because the runtime is going away, and us with it.
        unmounted.unwrap_or(Ok(()))
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), SessionError> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop).map_err(SessionError::Thread)
}

/// What the readers share.
struct Server<F> {
    device: Device,
    filesystem: Arc<F>,
    running: Arc<Running>,
    buffers: Arc<Buffers>,
    notifier: Notifier,
    runtime: Handle,
    readers: AtomicUsize,
    end: watch::Sender<Option<End>>,
}

impl<F: Filesystem> Server<F> {
    /// The first message is INIT: answers it, and starts the filesystem.
    fn handshake(&self, options: &SessionOptions) -> Result<Init, SessionError> {
        let mut buffer = self.buffers.take();
        loop {
            let message = match self.device.receive(&self.buffers, &mut buffer) {
                Ok(message) => message,
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(errno) => return Err(SessionError::Gone(errno)),
            };
            let header = parse::header(&message).map_err(|_| SessionError::Handshake)?;
            let Ok(Operation::Init(kernel)) = parse::operation(&header, &message) else {
                return Err(SessionError::Handshake);
            };
            if kernel.major > abi::MAJOR {
                // It will ask again in our version.
                let ours = InitAnswer { minor: abi::MINOR, max_readahead: 0, capabilities: 0, max_background: 0 };
                self.device.answer(header.unique, Ok(&ours));
                continue;
            }
            if kernel.major < abi::MAJOR || kernel.minor < abi::MINOR_MIN {
                self.device.answer::<()>(header.unique, Err(Errno::PROTO));
                return Err(SessionError::Version { major: kernel.major, minor: kernel.minor });
            }
            let (agreed, answer) = agree(&kernel, options);
            if let Err(errno) = self.runtime.block_on(self.filesystem.init(&agreed, self.notifier.clone())) {
                self.device.answer::<()>(header.unique, Err(errno));
                return Err(SessionError::Refused(errno));
            }
            self.device.answer(header.unique, Ok(&answer));
            return Ok(agreed);
        }
    }

    /// A reader: serves requests until the mount is gone. The last one to leave ends the session.
    fn read_requests(self: Arc<Self>) {
        let _inside = self.runtime.enter();
        let mut buffer = self.buffers.take();
        let end = loop {
            match self.device.receive(&self.buffers, &mut buffer) {
                Ok(message) => self.serve(message),
                // NOENT: the request was taken back while we read it.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => break End::Unmounted,
                Err(errno) => {
                    tracing::error!(%errno, "reading the device failed");
                    break End::Failed(errno);
                }
            }
        };
        if self.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            let server = self.clone();
            self.runtime.spawn(async move { server.finish(end).await });
        }
    }

    fn serve(self: &Arc<Self>, message: Bytes) {
        let header = match parse::header(&message) {
            Ok(header) => header,
            // Without a header there is nobody to answer.
            Err(error) => return tracing::warn!(%error, length = message.len(), "dropped a message"),
        };
        match parse::operation(&header, &message) {
            Ok(Operation::Forget { lookups }) => {
                lookups.into_iter().for_each(|(inode, count)| self.filesystem.forget(inode, count));
            }
            Ok(Operation::Interrupt { unique }) => self.running.interrupt(unique),
            Ok(Operation::NotifyReply) => {}
            Ok(Operation::Destroy) => self.device.answer(header.unique, Ok(&())),
            Ok(Operation::Init(_)) => self.device.answer::<()>(header.unique, Err(Errno::INVAL)),
            Ok(operation) => {
                let call = Call::new(&header, self.filesystem.clone(), self.device.clone(), &self.running);
                // The arguments are slices of the message and keep it; nothing else should.
                drop(message);
                self.run(task(call, operation));
            }
            Err(error) => {
                tracing::warn!(%error, opcode = header.opcode, "a malformed request");
                self.device.answer::<()>(header.unique, Err(Errno::IO));
            }
        }
    }

    /// Polls once; what is not done then goes to tokio, which polls again.
    fn run(&self, mut task: super::dispatch::Task) {
        let mut context = Context::from_waker(Waker::noop());
        // A panicking method is answered EIO when its call is dropped, and must not take the reader.
        match std::panic::catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut context))) {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => drop(self.runtime.spawn(task)),
            Err(_) => tracing::error!("an operation panicked; answered EIO"),
        }
    }

    /// The mount is gone: lets operations under way end, then the filesystem.
    async fn finish(&self, end: End) {
        let drained = async {
            while self.running.count() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!(count = self.running.count(), "operations still run after the unmount");
        }
        self.filesystem.destroy().await;
        self.end.send_replace(Some(end));
    }
}

/// What both sides can do, and the answer that says so.
fn agree(kernel: &Init, options: &SessionOptions) -> (Init, InitAnswer) {
    let mut capabilities = kernel.capabilities & options.capabilities;
    if capabilities >> 32 != 0 {
        capabilities |= capability::INIT_EXT;
    }
    let minor = kernel.minor.min(abi::MINOR);
    let max_readahead = abi::TRANSFER_BYTES_MAX as u32;
    let answer = InitAnswer { minor, max_readahead, capabilities, max_background: options.max_background };
    (Init { major: abi::MAJOR, minor, max_readahead, capabilities }, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_what_both_can() {
        let kernel = Init { major: 7, minor: 45, max_readahead: 131_072, capabilities: u64::MAX };
        let (agreed, answer) = agree(&kernel, &SessionOptions::default());
        assert_eq!(agreed.minor, abi::MINOR);
        assert_eq!(answer.capabilities, capability::DEFAULT | capability::INIT_EXT);
        assert_eq!(answer.capabilities & (capability::POSIX_LOCKS | capability::FLOCK_LOCKS), 0);
        let old = Init { minor: 31, capabilities: capability::ASYNC_READ, ..kernel };
        let (agreed, answer) = agree(&old, &SessionOptions::default());
        assert_eq!((agreed.minor, answer.capabilities), (31, capability::ASYNC_READ));
    }
}
