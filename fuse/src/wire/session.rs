//! A session: the readers of one mount, from INIT until the mount is gone.
//!
//! Each reader is a thread that waits in `read(2)`, where the kernel wakes exactly one of them per
//! request (`poll` would wake them all). It polls the request's operation once itself, so whatever
//! can be answered at once costs no hand-over; an operation that waits goes on as a tokio task.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
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

/// How often to look whether requests under way are answered.
const LEAVE_PAUSE: Duration = Duration::from_millis(2);

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
    device: Device,
    running: Arc<Running>,
    leaving: Arc<AtomicBool>,
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
        Session::begin(mounted, connection, filesystem, options, None).await
    }

    /// Goes on serving a connection that another process served before, which agreed on `agreed` with
    /// the kernel. What that one read and did not answer is sent again, by kernels from 6.9 on.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub async fn resume<F: Filesystem>(
        mounted: Mounted,
        connection: std::os::fd::OwnedFd,
        filesystem: Arc<F>,
        options: SessionOptions,
        agreed: Init,
    ) -> Result<Session, SessionError> {
        Session::begin(mounted, connection, filesystem, options, Some(agreed)).await
    }

    async fn begin<F: Filesystem>(
        mounted: Mounted,
        connection: std::os::fd::OwnedFd,
        filesystem: Arc<F>,
        options: SessionOptions,
        before: Option<Init>,
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
            leaving: Arc::default(),
            before: before.map_or_else(OnceLock::new, |agreed| OnceLock::from(answer(&agreed, &options))),
            end,
        });
        let (sender, handshake) = oneshot::channel();
        let first = server.clone();
        // Counted from here on, so that the last reader knows itself.
        server.readers.store(options.readers.max(1), Ordering::Relaxed);
        spawn("fuse-0", move || {
            let agreed = match before {
                Some(agreed) => first.take_over(agreed),
                None => first.handshake(&options),
            };
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
        let (notifier, device) = (server.notifier.clone(), server.device.clone());
        let (running, leaving) = (server.running.clone(), server.leaving.clone());
        Ok(Session { mounted: Arc::new(mounted), ended, notifier, kernel, device, running, leaving })
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

    /// Stops serving, for another process to go on: takes no more requests, and waits until those under
    /// way are answered, or for `limit`. Says whether they all are; what is not will be sent again to
    /// whoever is next. (Kernels before 6.9 can't: there requests are served until this process ends.)
    pub async fn leave(&self, limit: Duration) -> bool {
        let resent = self.kernel.capabilities & capability::HAS_RESEND != 0;
        self.leaving.store(resent, Ordering::Release);
        let start = std::time::Instant::now();
        loop {
            // First a pause: a reader may be between a request and taking note of it.
            tokio::time::sleep(LEAVE_PAUSE).await;
            let (done, late) = (self.running.count() == 0, start.elapsed() >= limit);
            if done || late {
                if resent {
                    self.device.mute();
                }
                return done;
            }
        }
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
    /// Requests are for the next process.
    leaving: Arc<AtomicBool>,
    /// What was answered to INIT, by whoever served before.
    before: OnceLock<InitAnswer>,
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

    /// Serves what another process served before.
    fn take_over(&self, agreed: Init) -> Result<Init, SessionError> {
        let started = self.runtime.block_on(self.filesystem.init(&agreed, self.notifier.clone()));
        started.map_err(SessionError::Refused)?;
        match self.notifier.resend() {
            Ok(()) => {}
            Err(errno) => {
                tracing::warn!(%errno, "requests that were not answered are lost; Linux 6.9 sends them again")
            }
        }
        Ok(agreed)
    }

    /// A reader: serves requests until the mount is gone. The last one to leave ends the session.
    fn read_requests(self: Arc<Self>) {
        let _inside = self.runtime.enter();
        let mut buffer = self.buffers.take();
        let end = loop {
            match self.device.receive(&self.buffers, &mut buffer) {
                // Not answered, it is sent to the next process.
                Ok(_) if self.leaving.load(Ordering::Acquire) => return,
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
            // Sent again: the one before us agreed, and did not come to say so.
            Ok(Operation::Init(_)) => self.device.answer(header.unique, self.before.get().ok_or(Errno::INVAL)),
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
    let agreed = Init { major: abi::MAJOR, minor, max_readahead, capabilities };
    (agreed, answer(&agreed, options))
}

/// The answer that says what was agreed on.
fn answer(agreed: &Init, options: &SessionOptions) -> InitAnswer {
    let Init { minor, max_readahead, capabilities, .. } = *agreed;
    InitAnswer { minor, max_readahead, capabilities, max_background: options.max_background }
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
        assert_ne!(answer.capabilities & capability::HAS_RESEND, 0);
        assert_eq!(answer.capabilities & (capability::POSIX_LOCKS | capability::FLOCK_LOCKS), 0);
        let old = Init { minor: 31, capabilities: capability::ASYNC_READ, ..kernel };
        let (agreed, answer) = agree(&old, &SessionOptions::default());
        assert_eq!((agreed.minor, answer.capabilities), (31, capability::ASYNC_READ));
    }
}
