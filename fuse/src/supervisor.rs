//! A mount that outlives the process that serves it.
//!
//! The supervisor mounts, keeps the kernel's connection and what the next process must know, and starts the
//! process that serves. When that one dies it starts another, which goes on with the same connection:
//! programs that use the mount wait a moment, and never see "Transport endpoint is not connected". It links
//! the same program, but does nothing that could fail for want of memory or a network.
//!
//! One client at a time has its turn. For a restart the next one is started first, and gets its turn when the
//! one before has left; if it can't, nothing has happened.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use crate::control::{Agreement, FromServer, Link, ToServer, pair};
use crate::ledger;
use crate::mount::unmount_patiently;
use crate::wire::{MountError, Mounted, Unmount, UnmountError};
use crate::{MountOptions, wire};

/// A process that lived for less than this failed quickly.
const QUICK: Duration = Duration::from_secs(10);
/// So many quick failures in a row, and nobody is started again.
const QUICK_MAX: u32 = 5;
/// How long to wait before starting again: after the second failure, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// What a supervisor is asked.
#[derive(Debug)]
pub enum Order {
    /// Unmount and end; said again: give up what is not written yet.
    Stop,
    /// Have the program that is on disk now go on.
    Restart(oneshot::Sender<Result<(), String>>),
}

/// What happens, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It can be used.
    Mounted(PathBuf),
    /// The process that served died; another is started.
    Died(String),
    /// Another process goes on.
    GoesOn,
    /// It is unmounted, and what is not written yet is being written.
    Writing,
}

/// Why a supervisor ended otherwise than it was asked to.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SuperviseError {
    #[error("cannot start the process that serves the mount: {0}")]
    Start(std::io::Error),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    #[error("the process that serves the mount ended before it could be used ({0})")]
    Died(ExitStatus),
    #[error(
        "the process that serves the mount died {QUICK_MAX} times within seconds ({0}); it is unmounted, and \
         nothing starts it again. What it said is above; mount again when the cause is mended"
    )]
    Crashes(ExitStatus),
    #[error("given up: what was not written yet is lost")]
    GivenUp,
    /// It has told its own error.
    #[error("the process that serves the mount failed ({0})")]
    Failed(ExitStatus),
}

/// The supervisor of one mount.
#[derive(Debug)]
pub struct Supervisor {
    mountpoint: PathBuf,
    how: wire::MountOptions,
    descriptors: Option<[OwnedFd; 2]>,
    mounted: Option<Arc<Mounted>>,
    agreed: Option<Agreement>,
    current: Option<Client>,
    /// Started to take the place of `current`.
    next: Option<Client>,
    asked: Option<oneshot::Sender<Result<(), String>>>,
    /// When to start another.
    again: Option<tokio::time::Instant>,
    quick: u32,
    announced: bool,
    /// The one before the current one died.
    lost: bool,
}

/// A process that serves, did, or will.
#[derive(Debug)]
struct Client {
    child: Child,
    link: Arc<Link>,
    inbox: mpsc::UnboundedReceiver<(FromServer, Vec<OwnedFd>)>,
    born: Instant,
    is_gone: bool,
    has_left: bool,
}

impl Client {
    fn start(mut command: Command) -> Result<Client, SuperviseError> {
        let (link, theirs) = pair().map_err(|errno| SuperviseError::Start(errno.into()))?;
        // A group of its own: Ctrl-C is for the supervisor, which then has it end in order.
        let child = command.stdin(Stdio::from(theirs)).process_group(0).kill_on_drop(true).spawn();
        let child = child.map_err(SuperviseError::Start)?;
        // It holds their end of the socket, which must close when the process ends.
        drop(command);
        let link = Arc::new(link);
        let inbox = link.listen().map_err(SuperviseError::Start)?;
        Ok(Client { child, link, inbox, born: Instant::now(), is_gone: false, has_left: false })
    }

    /// What it says, then how it ended.
    async fn news(&mut self) -> News {
        match self.inbox.recv().await {
            Some((message, _)) => News::Said(message),
            None => match self.child.wait().await {
                Ok(status) => News::Ended(status),
                Err(_) => News::Ended(ExitStatus::default()),
            },
        }
    }

    fn say(&self, message: &ToServer) {
        // If it is gone, that is heard of next.
        let _ = self.link.send(message, &[]);
    }
}

#[derive(Debug)]
enum News {
    Said(FromServer),
    Ended(ExitStatus),
}

#[derive(Debug)]
enum Happened {
    Ordered(Order),
    Current(News),
    Next(News),
    StartAgain,
}

impl Supervisor {
    /// A supervisor that will mount at `mountpoint`, absolute and checked.
    #[must_use]
    pub fn new(mountpoint: PathBuf, options: &MountOptions) -> Supervisor {
        Supervisor {
            mountpoint,
            how: options.wire(),
            descriptors: None,
            mounted: None,
            agreed: None,
            current: None,
            next: None,
            asked: None,
            again: None,
            quick: 0,
            announced: false,
            lost: false,
        }
    }

    /// Mounts, and has it served by what `command` makes until it is unmounted or an order says to stop.
    ///
    /// # Errors
    /// [`SuperviseError`]; it is not mounted any more then.
    pub async fn run(
        mut self,
        command: impl Fn() -> Command,
        mut orders: mpsc::Receiver<Order>,
        tell: impl Fn(Event),
    ) -> Result<(), SuperviseError> {
        self.current = Some(Client::start(command())?);
        loop {
            match self.happens(&mut orders).await {
                Happened::Ordered(Order::Stop) => return self.stop(&mut orders, &tell).await,
                Happened::Ordered(Order::Restart(answer)) => self.restart(command(), answer),
                Happened::Current(News::Said(message)) => self.on_current(message, &tell).await?,
                Happened::Current(News::Ended(status)) => {
                    if self.on_end(status, &tell).await? {
                        return Ok(());
                    }
                }
                Happened::Next(News::Said(message)) => self.on_next(&message),
                Happened::Next(News::Ended(status)) => {
                    self.next = None;
                    self.answer(Err(format!("the new process ended ({status}); the one before goes on")));
                }
                Happened::StartAgain => {
                    self.again = None;
                    self.current = Some(Client::start(command())?);
                }
            }
        }
    }

    async fn happens(&mut self, orders: &mut mpsc::Receiver<Order>) -> Happened {
        let again = self.again;
        let start_again = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => Happened::Ordered(order.unwrap_or(Order::Stop)),
            news = news_of(&mut self.current) => Happened::Current(news),
            news = news_of(&mut self.next) => Happened::Next(news),
            () = start_again => Happened::StartAgain,
        }
    }

    fn answer(&mut self, outcome: Result<(), String>) {
        if let Some(asked) = self.asked.take() {
            // Whoever asked may have gone.
            let _ = asked.send(outcome);
        }
    }

    /// Starts the process that is to go on.
    fn restart(&mut self, command: Command, answer: oneshot::Sender<Result<(), String>>) {
        let why_not = match (&self.next, self.announced && self.current.is_some()) {
            (Some(_), _) => Some("it is being restarted already".to_owned()),
            (None, false) => Some("it is not being served yet; ask again when it is".to_owned()),
            (None, true) => None,
        };
        if let Some(why_not) = why_not {
            let _ = answer.send(Err(why_not));
            return;
        }
        match Client::start(command) {
            Ok(client) => (self.next, self.asked) = (Some(client), Some(answer)),
            Err(error) => drop(answer.send(Err(error.to_string()))),
        }
    }

    async fn on_current(&mut self, message: FromServer, tell: &impl Fn(Event)) -> Result<(), SuperviseError> {
        match message {
            FromServer::Ready => self.give_turn().await?,
            FromServer::Agreed(agreed) => self.agreed = Some(agreed),
            FromServer::Serving => {
                self.lost = false;
                if let (false, Some(mounted)) = (self.announced, &self.mounted) {
                    self.announced = true;
                    mounted.raise_readahead();
                    tell(Event::Mounted(self.mountpoint.clone()));
                } else {
                    tell(Event::GoesOn);
                }
                self.answer(Ok(()));
            }
            FromServer::Left { synced } => {
                self.lost |= !synced;
                if let Some(current) = &mut self.current {
                    current.has_left = true;
                }
            }
            FromServer::Stays { why } => {
                // Dropped, it is killed: it has not begun.
                self.next = None;
                self.answer(Err(format!("the process that serves it goes on: {why}")));
            }
            FromServer::Gone => {
                if let Some(current) = &mut self.current {
                    current.is_gone = true;
                }
            }
        }
        Ok(())
    }

    fn on_next(&mut self, message: &FromServer) {
        if let (FromServer::Ready, Some(current)) = (message, &self.current) {
            current.say(&ToServer::Leave);
        }
    }

    /// Gives the current process its turn; mounts first if that is not done yet.
    async fn give_turn(&mut self) -> Result<(), SuperviseError> {
        if self.descriptors.is_none() {
            let (mountpoint, how) = (self.mountpoint.clone(), self.how.clone());
            let mounting = tokio::task::spawn_blocking(move || Mounted::mount(&mountpoint, &how));
            let (mounted, connection) = mounting.await.expect("mounting does not panic")?;
            let ledger = ledger::create().map_err(|errno| SuperviseError::Start(errno.into()))?;
            (self.mounted, self.descriptors) = (Some(Arc::new(mounted)), Some([connection, ledger]));
        }
        if let (Some([connection, ledger]), Some(current)) = (&self.descriptors, &self.current) {
            let turn = ToServer::Turn { agreed: self.agreed, lost: self.lost };
            // If it is gone, that is heard of next.
            let _ = current.link.send(&turn, &[connection.as_fd(), ledger.as_fd()]);
        }
        Ok(())
    }

    /// The current process ended. Says whether that is the end.
    async fn on_end(&mut self, status: ExitStatus, tell: &impl Fn(Event)) -> Result<bool, SuperviseError> {
        let Some(ended) = self.current.take() else { return Ok(true) };
        if ended.is_gone {
            return if status.success() { Ok(true) } else { Err(SuperviseError::Failed(status)) };
        }
        if self.agreed.is_none() {
            // With an exit code it has told why.
            let told = status.code().is_some();
            return Err(if told { SuperviseError::Failed(status) } else { SuperviseError::Died(status) });
        }
        if ended.has_left {
            // Only now: while it lived it could still take requests from the kernel, and drop them.
            self.current = self.next.take();
            match self.current {
                Some(_) => self.give_turn().await?,
                // The next one died meanwhile.
                None => self.again = Some(tokio::time::Instant::now()),
            }
            return Ok(false);
        }
        self.lost = true;
        tell(Event::Died(status.to_string()));
        self.quick = if ended.born.elapsed() < QUICK { self.quick + 1 } else { 1 };
        if self.quick >= QUICK_MAX {
            if let Some(mounted) = self.mounted.clone() {
                unmount(mounted, Unmount::Lazy).await?;
            }
            return Err(SuperviseError::Crashes(status));
        }
        if let Some(next) = self.next.take() {
            // It was to go on anyway, and may have said so already.
            drop(next);
            self.answer(Err(format!("the process that served it died meanwhile ({status}); another one goes on")));
        }
        let pause = if self.quick == 1 { Duration::ZERO } else { (PAUSE.0 * (1 << self.quick)).min(PAUSE.1) };
        self.again = Some(tokio::time::Instant::now() + pause);
        Ok(false)
    }

    /// Unmounts, and has everything written out.
    async fn stop(mut self, orders: &mut mpsc::Receiver<Order>, tell: &impl Fn(Event)) -> Result<(), SuperviseError> {
        self.next = None;
        let Some(mounted) = self.mounted.clone() else { return Ok(()) };
        let Some(mut current) = self.current.take().filter(|_| self.announced) else {
            return Ok(unmount(mounted, Unmount::Lazy).await?);
        };
        let done = async {
            let detached = unmount_patiently(async |how| unmount(mounted.clone(), how).await).await;
            let still_used = *detached.as_ref().unwrap_or(&true);
            current.say(&ToServer::Close { detached: still_used });
            loop {
                if let News::Ended(status) = current.news().await {
                    detached?;
                    return if status.success() { Ok(()) } else { Err(SuperviseError::Failed(status)) };
                }
            }
        };
        let asked_again = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            tell(Event::Writing);
            while let Some(Order::Restart(_)) = orders.recv().await {}
        };
        tokio::select! {
            done = done => done,
            () = asked_again => Err(SuperviseError::GivenUp),
        }
    }
}

async fn news_of(client: &mut Option<Client>) -> News {
    match client {
        Some(client) => client.news().await,
        None => std::future::pending().await,
    }
}

/// Elsewhere: the kernel waits for answers to what it still writes back.
async fn unmount(mounted: Arc<Mounted>, how: Unmount) -> Result<(), UnmountError> {
    let unmounted = tokio::task::spawn_blocking(move || mounted.unmount(how)).await;
    unmounted.unwrap_or(Ok(()))
}
