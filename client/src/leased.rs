//! Leases: a volume's namespace at this machine's speed.
//!
//! [`Leased`] stands between a mounted volume and its session. What it has leases on it does to its own copy
//! of the replicas' state machine, at once, and logs; the log is sent in the background, in order, many
//! operations under one signature, and before [`Metadata::sync`] returns. Everything else is ordered, after
//! the log. When others want something, what was written to it is sent and the lease given back; whoever
//! does not get its leases renewed in time stops using them before replicas give them to anybody else, and
//! if they did, what was not sent is lost: the end of the log, and never something in the middle.
//!
//! Where to look: `local` is the copy and its log, `local/loss` their end; `ship` sends the log; `hold` asks for
//! leases and `cede` gives them back; `elsewhere` looks at what is not held here; `away` is for when nobody
//! answers; this file decides between them.

mod away;
mod cede;
mod clock;
mod elsewhere;
mod hold;
mod local;
mod owned;
mod past;
mod ship;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, PublicKey, Time};
use meta::{Answer, Batch, Call, Content, Denied, Ino, Op, is_about_orphan, is_change, is_of_snapshot};
use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock};
use tokio::time::Instant;

use crate::backend::{Flush, Forget, Metadata, Patience, Ready, TakeLoss, Unavailable};
pub use clock::SinceBoot;
use clock::since_boot;
use elsewhere::Looked;
use local::{Local, Step};
use owned::is_lock_and_look;

/// How often the background looks whether there is something to send.
const TICK: Duration = Duration::from_millis(500);
/// After how long what was done here is sent though nobody asked for it.
const WRITE_BACK: Duration = Duration::from_secs(5);
/// How many operations may wait to be sent before they are sent.
const LOG_MAX: usize = 32768;
/// And how many may wait before whoever does more waits for them.
const LOG_BRAKE: usize = 2 * LOG_MAX;
/// How often replicas are asked at most what others want.
const HEED_PAUSE: Duration = Duration::from_millis(20);
/// How long not to ask for a lease again that was refused: because of others, or of what it is on.
const REFUSED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// How often one operation may fetch and ask for leases before it is ordered.
const TRIES: usize = 4;

/// A namespace behind leases. Cheap to clone; ends when the last clone is dropped.
#[derive(Clone)]
pub struct Leased<M: Metadata> {
    core: Arc<Core<M>>,
    _background: Arc<Background<M>>,
}

struct Background<M: Metadata> {
    task: tokio::task::AbortHandle,
    core: Arc<Core<M>>,
}

impl<M: Metadata> Drop for Background<M> {
    /// Gives back what was not given back, if there is time for it.
    fn drop(&mut self) {
        self.task.abort();
        if self.core.local.lock().has_leases()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let core = self.core.clone();
            runtime.spawn(async move { core.close().await });
        }
    }
}

struct Core<M> {
    inner: M,
    cluster: ClusterId,
    me: (PublicKey, u64),
    takes_leases: bool,
    local: Mutex<Local>,
    /// Shared by what is done here; held alone by whoever needs replicas to know everything.
    gate: RwLock<()>,
    /// Held by whoever sends the log.
    shipping: tokio::sync::Mutex<()>,
    away: away::Away,
    past: past::Past,
    flush: Mutex<Option<Flush>>,
    /// How what others remember of this client's own is forgotten, and the generation of when that was done last.
    forget: Mutex<Option<Forget>>,
    forgotten: tokio::sync::Mutex<u64>,
    /// The log is long.
    pressed: Notify,
}

impl<M: Metadata> core::fmt::Debug for Leased<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Leased").field("holder", &self.core.me.1).finish_non_exhaustive()
    }
}

impl<M: Metadata> Leased<M> {
    /// The namespace that `inner` reaches, for the user with this key, of the volume with this root. `holder`
    /// sets this client apart from the user's others: whoever had it before is fenced. Must be called on a
    /// tokio runtime.
    pub fn new(inner: M, cluster: ClusterId, user: PublicKey, holder: u64, root: Ino) -> Leased<M> {
        Leased::with_clock(inner, cluster, (user, holder), Some(root), Arc::new(since_boot))
    }

    /// The same without leases: everything is ordered. `holder` is whose locks are.
    pub fn ordered(inner: M, cluster: ClusterId, user: PublicKey, holder: u64) -> Leased<M> {
        Leased::with_clock(inner, cluster, (user, holder), None, Arc::new(since_boot))
    }

    /// Either, `root` or none, on a machine with this clock.
    pub fn with_clock(
        inner: M,
        cluster: ClusterId,
        me: (PublicKey, u64),
        root: Option<Ino>,
        clock: SinceBoot,
    ) -> Leased<M> {
        let core = Arc::new(Core {
            inner,
            cluster,
            me,
            takes_leases: root.is_some(),
            local: Mutex::new(Local::new(cluster, root, clock)),
            gate: RwLock::default(),
            shipping: tokio::sync::Mutex::default(),
            away: away::Away::default(),
            past: past::Past::default(),
            flush: Mutex::default(),
            forget: Mutex::default(),
            forgotten: tokio::sync::Mutex::default(),
            pressed: Notify::new(),
        });
        let task = tokio::spawn(background(Arc::downgrade(&core))).abort_handle();
        let background = Arc::new(Background { task, core: core.clone() });
        Leased { core, _background: background }
    }
}

impl<M: Metadata> Leased<M> {
    async fn do_calls(&self, calls: Vec<Call>) -> Result<Vec<Answer>, Unavailable> {
        let without = !self.core.takes_leases && !self.core.local.lock().concerns_locks(&calls);
        if calls.iter().any(|call| is_of_snapshot(&call.op) || matches!(call.op, Op::SnapshotList { .. })) {
            return self.core.look_back(calls).await;
        }
        if without {
            return self.core.inner.calls(calls).await;
        }
        let answers = self.core.apply_shared(&calls, None).await;
        if answers.len() == calls.len() {
            self.core.brake().await;
            return Ok(answers);
        }
        self.core.work_off(calls, answers).await
    }
}

impl<M: Metadata> Metadata for Leased<M> {
    async fn batch(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        self.calls(batch.calls).await
    }

    async fn calls(&self, calls: Vec<Call>) -> Result<Vec<Answer>, Unavailable> {
        let changes = self.core.past.changes(&calls);
        let done = self.do_calls(calls).await;
        // Who looked meanwhile may have seen what was before.
        self.core.past.note_changes(&changes);
        done
    }

    async fn calls_after(&self, calls: Vec<Call>, ready: Ready) -> Result<Vec<Answer>, Unavailable> {
        self.core.past.changes(&calls);
        let answers = self.core.apply_shared(&calls, Some(&ready)).await;
        if answers.len() == calls.len() {
            self.core.brake().await;
            return Ok(answers);
        }
        ready.stored().await?;
        self.core.work_off(calls, answers).await
    }

    async fn read(&self, call: Call, max_age: Duration) -> Result<Answer, Unavailable> {
        if is_of_snapshot(&call.op) {
            return self.core.look_at_past(call).await;
        }
        if !self.core.takes_leases || !self.core.local.lock().has_leases() {
            return self.core.inner.read(call, max_age).await;
        }
        let mut answers = self.calls(vec![call]).await?;
        answers.pop().ok_or_else(|| Unavailable("the replicas answered nothing".into()))
    }

    fn keeps(&self, ino: Ino) -> bool {
        self.core.local.lock().keeps(ino, &self.core.me)
    }

    fn time_of(&self, ino: Ino) -> Option<Time> {
        let mut local = self.core.local.lock();
        local.keeps(ino, &self.core.me).then(|| local.now())
    }

    fn kept_for(&self, ino: Ino) -> Option<Duration> {
        self.core.local.lock().kept_for(ino, &self.core.me)
    }

    fn ahead_of(&self, ino: Ino) -> Vec<(Ino, Content)> {
        match ino.snapshot() {
            0 => self.core.local.lock().ahead_of(ino),
            _ => self.core.past.ahead_of(ino),
        }
    }

    fn generation(&self) -> u64 {
        self.core.local.lock().generation()
    }

    fn lasts(&self, ino: Ino, generation: u64) -> Duration {
        self.core.local.lock().lasts(ino, generation, &self.core.me)
    }

    fn before_sharing(&self, forget: Forget) {
        *self.core.forget.lock() = Some(forget);
    }

    async fn sync(&self) -> Result<(), Unavailable> {
        let losses = self.core.local.lock().losses();
        self.core.ship().await?;
        self.core.local.lock().tell_lost(losses)
    }

    fn has_lost_locks(&self, ino: Ino) -> bool {
        self.core.local.lock().owned.is_lost(ino)
    }

    async fn keeps_locks(&self, ino: Ino) -> Result<bool, Unavailable> {
        if !self.core.local.lock().knows_locks() {
            self.core.renew().await?;
        }
        Ok(!self.has_lost_locks(ino))
    }

    fn forget_lost(&self, ino: Ino) {
        self.core.local.lock().owned.forget_lost(ino);
    }

    async fn settle(&self) -> Result<(), Unavailable> {
        self.core.ship().await
    }

    fn before_losing(&self, take: TakeLoss) {
        self.core.local.lock().taker = Some(take);
    }

    fn forget_content(&self, ino: Ino) {
        self.core.local.lock().forget_content(ino);
    }

    fn before_ceding(&self, flush: Flush) {
        *self.core.flush.lock() = Some(flush);
    }

    async fn close(&self) {
        self.core.close().await;
    }
}

fn as_root(op: Op) -> Call {
    Call { caller: meta::Caller::default(), op }
}

impl<M: Metadata> Core<M> {
    /// Does as many of the calls here as can be.
    async fn apply_shared(&self, calls: &[Call], ready: Option<&Ready>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(calls.len());
        let _shared = self.gate.read().await;
        self.apply(calls, &mut answers, ready);
        answers
    }

    /// Waits while so much is unsent that a crash would lose too much, and memory fill up.
    async fn brake(&self) {
        if self.local.lock().log_len() >= LOG_BRAKE {
            // What fails is tried again in the background, and told by whoever syncs.
            let _ = self.ship().await;
        }
    }

    /// Does as many of the calls here as can be, from the first that has no answer on.
    fn apply(&self, calls: &[Call], answers: &mut Vec<Answer>, ready: Option<&Ready>) {
        let mut local = self.local.lock();
        while let Some(call) = calls.get(answers.len())
            && let Some(answer) = local.apply(call, &self.me, ready)
        {
            answers.push(answer);
        }
        if local.log_len() >= LOG_MAX {
            self.pressed.notify_one();
        }
    }

    /// Does the calls that are left, here or at the replicas. Goes on even if the caller stops waiting: what
    /// replicas did must be known here.
    async fn work_off(self: &Arc<Self>, calls: Vec<Call>, answers: Vec<Answer>) -> Result<Vec<Answer>, Unavailable> {
        let core = self.clone();
        let worked = tokio::spawn(async move { core.work(&calls, answers).await });
        worked.await.map_err(|failure| Unavailable(failure.to_string()))?
    }

    async fn work(&self, calls: &[Call], mut answers: Vec<Answer>) -> Result<Vec<Answer>, Unavailable> {
        let (began, mut patience, mut tries) = (Instant::now(), Patience::new(), TRIES);
        while answers.len() < calls.len() {
            if let Some(call) = calls.get(answers.len()) {
                let step = self.local.lock().step(call, &self.me, tries > 0);
                let looked = if step == Step::Order { self.look(call).await? } else { Looked::InOrder };
                match looked {
                    Looked::Answer(answer) => {
                        answers.push(*answer);
                        tries = TRIES;
                        continue;
                    }
                    Looked::Leased => {
                        patience.wait().await?;
                        continue;
                    }
                    // What can be sent before others have to wait is.
                    Looked::InOrder if step != Step::Renew => self.ship().await?,
                    Looked::InOrder => {}
                }
            }
            self.reach().await?;
            let alone = self.gate.write().await;
            self.failed_since(began)?;
            self.apply(calls, &mut answers, None);
            let Some(call) = calls.get(answers.len()) else { break };
            let step = self.local.lock().step(call, &self.me, tries > 0);
            if step != Step::Renew {
                self.ship().await?;
            }
            match step {
                Step::Renew => {
                    tries -= 1;
                    self.renew().await?;
                }
                Step::Fetch(directory) => {
                    tries -= 1;
                    self.fetch(call, directory).await?;
                }
                Step::Hold(directory, kind) => {
                    tries -= 1;
                    if self.hold(call, Some((directory, kind))).await? {
                        drop(alone);
                        patience.wait().await?;
                    }
                }
                Step::Enroll => {
                    tries -= 1;
                    self.hold(call, None).await?;
                }
                Step::Order => {
                    let done = answers.len();
                    self.order(calls, &mut answers).await?;
                    tries = TRIES;
                    if answers.len() == done {
                        drop(alone);
                        patience.wait().await?;
                    }
                }
            }
        }
        Ok(answers)
    }

    /// Has replicas do the calls that can't be done here, up to the first that somebody's lease is in the
    /// way of.
    async fn order(&self, calls: &[Call], answers: &mut Vec<Answer>) -> Result<(), Unavailable> {
        let (by, run) = {
            let local = self.local.lock();
            let rest = &calls[answers.len()..];
            let here = |call: &Call| matches!(local.step(call, &self.me, true), Step::Order);
            let count = rest.iter().take_while(|call| here(call)).count().max(1);
            (local.by(&self.me, None), rest[..count].to_vec())
        };
        // One that waits for somebody must not be overtaken by those after it.
        let run = match () {
            () if run.iter().all(|call| is_about_orphan(&call.op)) => run,
            () if run.iter().all(|call| matches!(call.op, Op::Restore { .. })) => run,
            () if is_lock_and_look(&run) => run[..2].to_vec(),
            () => run[..1].to_vec(),
        };
        if matches!(run[0].op, Op::Rename { .. } | Op::Link { .. } | Op::Restore { .. }) {
            // It may take something out of what is held here, with all below it.
            self.local.lock().end_generation();
        }
        self.forget().await;
        let asked_as = by.as_ref().map(|by| by.epoch);
        let done = self.ask(Batch { calls: run.clone(), by }).await;
        let mut local = self.local.lock();
        let done = match done {
            Ok(done) => done,
            Err(unknown) => {
                // Without a copy only a lock can be what nobody knows.
                let unknown_here = |op: &Op| is_change(op) && self.takes_leases || matches!(op, Op::Lock(_));
                if run.iter().any(|call| unknown_here(&call.op)) {
                    local.give_up(self.cluster);
                }
                return Err(unknown);
            }
        };
        if local.is_over(&done) {
            local.lose(self.cluster);
            return Ok(());
        }
        // What was locked in the name of leases that ended before the answer came is locked no more.
        let ended = asked_as.is_some_and(|epoch| !local.has_epoch(epoch));
        // What was done after one that waits is asked once more, and refused then.
        let mut waits = false;
        for (call, answer) in run.iter().zip(done) {
            let answer = if ended && matches!(call.op, Op::Lock(_)) { Answer::Denied(Denied::Fenced) } else { answer };
            waits |= answer == Answer::Denied(Denied::Leased);
            if waits && !matches!(answer, Answer::Done(_)) {
                continue;
            }
            local.owned.note(&call.op, &answer, &self.me);
            local.doubt(&call.op, &self.me);
            local.note_restored(&call.op, &answer);
            if !waits {
                answers.push(answer);
            }
        }
        Ok(())
    }
}

/// Sends the log now and then, and gives back what others want, for as long as anybody uses the volume.
async fn background<M: Metadata>(core: std::sync::Weak<Core<M>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let Some(core) = core.upgrade() else { return };
        let heed = tokio::select! {
            biased; // What happens must not hang on chance.
            _ = ticks.tick() => core.local.lock().is_asked(),
            () = core.pressed.notified() => false,
            () = core.inner.recalled() => core.local.lock().has_leases(),
        };
        core.local.lock().note_expiry();
        core.forget().await;
        let worked = async {
            if heed {
                if let Err(error) = core.heed().await {
                    core.local.lock().note_asked();
                    return Err(error);
                }
                tokio::time::sleep(HEED_PAUSE).await;
            }
            if core.local.lock().is_too_big() {
                core.close().await;
            }
            let renew = {
                let mut local = core.local.lock();
                local.is_short_of_inos(&core.me) || local.is_fading()
            };
            if renew {
                core.renew().await?;
            }
            if core.local.lock().is_due(WRITE_BACK, LOG_MAX) { core.ship().await } else { Ok(()) }
        };
        if let Err(error) = worked.await {
            tracing::warn!(%error, "what was done here is not sent yet");
        }
    }
}
