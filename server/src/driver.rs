//! The driver: runs the core, and keeps its contract with the disk and the world.
//!
//! Two threads. The *core* thread alone owns the replica: it takes what waits, one input after the
//! other, and hands the effects on. The *voice* thread makes records durable (one sync for all that
//! waits: group commit) and only then sends and replies. So the core thinks while the disk syncs,
//! and nothing is spoken that is not written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use base::{Effects, Encode as _, Protocol as _, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::budget::Budgets;
use crate::clock::Clock;
use crate::log::{Finished, Log};
use crate::peers::Peers;
use crate::reads::Shelf;
use crate::sessions::Sessions;
use crate::teller::Teller;

/// The core that a replica runs.
pub(crate) type Core = bft::Replica<meta::State>;

/// Inputs taken at a time.
const TAKE_MAX: usize = 256;
/// Effects on their way to the disk; the core waits when the disk lags further.
const VOICE_QUEUE_MAX: usize = 64;
/// How often users are told again that others want what they have leases on.
const RECALL_AGAIN: Duration = Duration::from_millis(250);
/// The log may grow this much, bytes, before a snapshot replaces it.
const SNAPSHOT_AFTER: u64 = 64 << 20;

/// What operators see of the core.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) status: bft::ReplicaStatus,
    pub(crate) inodes: u64,
}

/// A running core.
pub(crate) struct Driver {
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) log_bytes: Arc<AtomicU64>,
    stop: mpsc::Sender<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// What a driver is started with.
pub(crate) struct Parts {
    pub(crate) core: Core,
    pub(crate) log: Log,
    pub(crate) peers: Peers,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) peer_inputs: mpsc::Receiver<bft::Input>,
    pub(crate) client_inputs: mpsc::Receiver<bft::Input>,
    /// Where the states lie that reads are proven from.
    pub(crate) shelf: watch::Sender<Shelf>,
    /// Told once, with the cause, if the node can't go on.
    pub(crate) fatal: mpsc::Sender<String>,
}

enum Work {
    Effects(Effects<Core>),
    Snapshot(Box<bft::Condensed<meta::State>>),
}

impl Driver {
    /// Starts both threads. Must be called within a tokio runtime.
    pub(crate) fn start(parts: Parts, name: &str) -> std::io::Result<Driver> {
        let seen = Arc::new(Mutex::new(see(&parts.core)));
        let (stop, stopped) = mpsc::channel(1);
        let (work, to_do) = std_mpsc::sync_channel(VOICE_QUEUE_MAX);
        let log_bytes = Arc::new(AtomicU64::new(parts.log.bytes_since_snapshot()));
        let snapshotting = Arc::new(AtomicBool::new(false));
        let voice = Voice {
            log: parts.log,
            peers: parts.peers,
            sessions: parts.sessions.clone(),
            budgets: parts.budgets,
            fatal: parts.fatal,
            log_bytes: log_bytes.clone(),
            snapshotting: snapshotting.clone(),
            teller: Teller::default(),
        };
        let thinking = Thinking {
            core: parts.core,
            clock: Clock::default(),
            work,
            seen: seen.clone(),
            log_bytes: log_bytes.clone(),
            snapshotting,
            shelf: parts.shelf,
            sessions: parts.sessions,
            recalled: Vec::new(),
            recalled_at: Instant::now(),
        };
        let runtime = tokio::runtime::Handle::current();
        let spawn = |role: &str| std::thread::Builder::new().name(format!("{name}-{role}"));
        let threads = vec![
            spawn("voice").spawn(move || voice.run(&to_do))?,
            spawn("core").spawn(move || {
                runtime.block_on(thinking.run(parts.peer_inputs, parts.client_inputs, stopped));
            })?,
        ];
        Ok(Driver { seen, log_bytes, stop, threads })
    }

    /// Stops both threads; what was persisted stays, what was not said is not said.
    pub(crate) fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn see(core: &Core) -> Seen {
    Seen { status: core.status(), inodes: core.state().counts().inodes as u64 }
}

/// The core's own thread.
struct Thinking {
    core: Core,
    clock: Clock,
    work: std_mpsc::SyncSender<Work>,
    seen: Arc<Mutex<Seen>>,
    log_bytes: Arc<AtomicU64>,
    snapshotting: Arc<AtomicBool>,
    shelf: watch::Sender<Shelf>,
    sessions: Arc<Sessions>,
    /// Holders of leases that were told that others want them, and when.
    recalled: Vec<(base::PublicKey, u64)>,
    recalled_at: Instant,
}

impl Thinking {
    async fn run(
        mut self,
        mut peers: mpsc::Receiver<bft::Input>,
        mut clients: mpsc::Receiver<bft::Input>,
        mut stopped: mpsc::Receiver<()>,
    ) {
        let mut inputs = Vec::with_capacity(TAKE_MAX);
        loop {
            let mut waited = false;
            let wait = self.core.deadline().map_or(Duration::from_secs(3600), |at| at.since(self.clock.now()));
            tokio::select! {
                biased;
                _ = stopped.recv() => return,
                first = peers.recv() => match first { Some(first) => inputs.push(first), None => return },
                first = clients.recv() => match first { Some(first) => inputs.push(first), None => return },
                () = tokio::time::sleep(wait) => waited = true,
            }
            // Replicas first: no client delays agreement.
            for waiting in [&mut peers, &mut clients] {
                while inputs.len() < TAKE_MAX
                    && let Ok(input) = waiting.try_recv()
                {
                    inputs.push(input);
                }
            }
            if !self.step(&mut inputs, waited) {
                return;
            }
        }
    }

    /// Hands the core what came, and its effects to the voice. `waited`: its deadline has come, by a
    /// clock that nobody sets, whatever the wall clock says. False if the voice is gone.
    fn step(&mut self, inputs: &mut Vec<bft::Input>, waited: bool) -> bool {
        let mut fx = Effects::new();
        for input in inputs.drain(..) {
            self.core.handle(self.clock.now(), input, &mut fx);
        }
        let now = self.clock.now();
        if let Some(at) = self.core.deadline().filter(|at: &Time| *at <= now || waited) {
            self.core.on_deadline(now.max(at), &mut fx);
        }
        *self.seen.lock() = see(&self.core);
        self.lay_out();
        self.recall();
        if !fx.is_empty() && self.work.send(Work::Effects(fx)).is_err() {
            return false;
        }
        let due = self.log_bytes.load(Ordering::Relaxed) > SNAPSHOT_AFTER;
        if due && !self.snapshotting.swap(true, Ordering::Relaxed) {
            return self.work.send(Work::Snapshot(Box::new(self.core.condense()))).is_ok();
        }
        true
    }
}

impl Thinking {
    /// Tells users that others want what they have leases on: at once, and now and then until they give it
    /// back. It says no more than anybody could find out, so it need not be durable before.
    fn recall(&mut self) {
        let wanted: Vec<_> = self.core.state().recalled().copied().collect();
        let again = self.recalled_at.elapsed() >= RECALL_AGAIN;
        if wanted.is_empty() || (wanted == self.recalled && !again) {
            self.recalled = wanted;
            return;
        }
        wanted.iter().for_each(|(user, _)| self.sessions.recall(*user));
        (self.recalled, self.recalled_at) = (wanted, Instant::now());
    }

    /// Lays the state at a new certified mark on the shelf.
    fn lay_out(&mut self) {
        let (marked, before) = (self.core.marked(), self.shelf.borrow().marked);
        if marked == before {
            return;
        }
        let new = if marked.certified == before.certified { None } else { self.core.certified() };
        self.shelf.send_modify(|shelf| {
            shelf.marked = marked;
            shelf.certified = new.map(Arc::new).or(shelf.certified.take());
        });
    }
}

/// Whether others build on this record, so that it must be durable before anything is said. That a
/// batch was executed is known to 2f+1 replicas that hold its certificate; a replica that forgets
/// it learns it again.
fn is_promise(record: &bft::Record) -> bool {
    !matches!(record, bft::Record::Committed(_) | bft::Record::Learned(_))
}

/// The thread that writes, then speaks.
struct Voice {
    log: Log,
    peers: Peers,
    sessions: Arc<Sessions>,
    budgets: Arc<Budgets>,
    fatal: mpsc::Sender<String>,
    log_bytes: Arc<AtomicU64>,
    snapshotting: Arc<AtomicBool>,
    /// Whom it has told of.
    teller: Teller,
}

impl Voice {
    fn run(mut self, to_do: &std_mpsc::Receiver<Work>) {
        let (finish, finished) = std_mpsc::channel::<Result<Finished, String>>();
        while let Ok(first) = to_do.recv() {
            let waiting: Vec<Work> = std::iter::once(first).chain(to_do.try_iter()).collect();
            if let Err(cause) = self.carry_out(waiting, &finish) {
                tracing::error!(%cause, "this replica stops: its log can't be written");
                let _ = self.fatal.blocking_send(cause);
                return;
            }
            for snapshot in finished.try_iter() {
                self.retire(snapshot);
            }
            self.log_bytes.store(self.log.bytes_since_snapshot(), Ordering::Relaxed);
        }
        let _ = self.log.sync();
    }

    /// Writes all records, syncs once, and then speaks.
    fn carry_out(
        &mut self,
        waiting: Vec<Work>,
        finish: &std_mpsc::Sender<Result<Finished, String>>,
    ) -> Result<(), String> {
        let mut promised = false;
        let mut speak = Vec::new();
        for work in waiting {
            match work {
                Work::Effects(fx) => {
                    for record in &fx.persist {
                        self.log.append(&record.to_bytes());
                        promised |= is_promise(record);
                    }
                    speak.push((fx.send, fx.events));
                }
                Work::Snapshot(condensed) => self.snapshot(*condensed, finish.clone())?,
            }
        }
        if promised {
            self.log.sync().map_err(|error| format!("cannot sync the log: {error}"))?;
        }
        for (send, events) in speak {
            for send in send {
                self.peers.send(send.to, &Bytes::from(send.message.to_bytes()));
            }
            events.into_iter().for_each(|event| self.tell(event));
        }
        Ok(())
    }

    /// Starts writing a snapshot; records from here on go to a new segment.
    fn snapshot(
        &mut self,
        condensed: bft::Condensed<meta::State>,
        finish: std_mpsc::Sender<Result<Finished, String>>,
    ) -> Result<(), String> {
        let mut writer = self.log.begin_snapshot().map_err(|error| format!("cannot start a snapshot: {error}"))?;
        std::thread::spawn(move || {
            let written = condensed.records().try_for_each(|record| writer.append(&record.to_bytes()));
            let result = written.and_then(|()| writer.finish());
            let _ = finish.send(result.map_err(|error| error.to_string()));
        });
        Ok(())
    }

    fn retire(&mut self, snapshot: Result<Finished, String>) {
        self.snapshotting.store(false, Ordering::Relaxed);
        match snapshot.and_then(|done| self.log.retire(done).map_err(|error| error.to_string())) {
            Ok(()) => tracing::info!("a snapshot has replaced the older log"),
            Err(cause) => tracing::warn!(%cause, "no snapshot was made; the log stays as long as it is"),
        }
    }

    fn tell(&mut self, event: bft::Event) {
        match event {
            bft::Event::Reply { client, session, reply } => {
                if !matches!(reply.result, bft::ReplyResult::Refused(_)) {
                    self.budgets.served(&client);
                }
                self.sessions.send(client, session, Bytes::from(reply.to_bytes()));
            }
            event => self.teller.tell(Instant::now(), event),
        }
    }
}
