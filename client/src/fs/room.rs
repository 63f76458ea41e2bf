//! Keeping the bound on what is written and not yet durable, and what happens in the background.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use meta::{Caller, Ino, Op};
use tokio::time::MissedTickBehavior;

use super::Shared;
use super::error::Result;
use super::file::{OpenFile, Pipeline};
use super::stage::Order;
use crate::backend::{BlockStore, Metadata};

/// How often the background looks for work: as often as it may write back, but within these.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_secs(5);
/// How often orphans are renewed; they are kept for an hour.
const RENEWAL: Duration = Duration::from_secs(600);
/// A run is long, and can be sealed before it is asked for, from this many bytes on.
const LONG_RUN: u64 = 1 << 20;

/// Commits what has been dirty for long, tries again what failed, and keeps orphans alive; until
/// the volume is unmounted.
pub(super) async fn background<M: Metadata, B: BlockStore>(shared: Weak<Shared<M, B>>) {
    let Some(write_back) = shared.upgrade().map(|shared| shared.options.write_back) else { return };
    let mut ticks = tokio::time::interval(write_back.clamp(TICK_MIN, TICK_MAX));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed = Instant::now();
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.forget_closed();
        shared.write_back();
        let folding = shared.clone();
        tokio::spawn(async move { folding.fold_old().await });
        if renewed.elapsed() >= RENEWAL {
            renewed = Instant::now();
            tokio::spawn(async move { shared.keep_orphans().await });
        }
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Waits until more may be written: seals what is not sealed, then waits for the storage nodes.
    ///
    /// # Errors
    /// If there is no room and none is coming: the nodes are full or out of reach. Trying again is
    /// started at the same time.
    pub(super) async fn make_room(self: &Arc<Self>) -> Result<()> {
        let most = self.options.dirty_bytes_max;
        if self.budget.used() < most {
            return Ok(());
        }
        // The first in the queue makes room for all.
        let _relief = self.relief.lock().await;
        loop {
            let changed = self.budget.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.budget.used() < most {
                return Ok(());
            }
            let (largest, unsealed) = self.unsealed();
            let moving = self.outbox.is_moving();
            match largest {
                Some(file) if !moving || unsealed * 2 >= most => self.stage_all(&file).await?,
                _ if moving => changed.await,
                _ => {
                    let failure = self.outbox.failure();
                    self.outbox.retry();
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// The file with the most data that is not sealed, and how much all files have.
    fn unsealed(&self) -> (Option<Arc<OpenFile>>, u64) {
        let charge = |file: Arc<OpenFile>| {
            let mut state = file.state.lock();
            if !state.is_dirty() && !state.sealing {
                // Replicas have it as patches, and so has the content.
                state.unload(&self.budget);
            }
            let charge = state.overlay.charge();
            drop(state);
            (charge > 0).then_some((charge, file))
        };
        let charges: Vec<_> = self.open_files().into_iter().filter_map(charge).collect();
        let total = charges.iter().map(|(charge, _)| charge).sum();
        (charges.into_iter().max_by_key(|(charge, _)| *charge).map(|(_, file)| file), total)
    }

    async fn stage_all(self: &Arc<Self>, file: &Arc<OpenFile>) -> Result<()> {
        let mut pipeline = file.pipeline.lock().await;
        self.stage_now(file, &mut pipeline).await
    }

    /// Seals everything that was written to a file so far.
    pub(super) async fn stage_now(self: &Arc<Self>, file: &Arc<OpenFile>, pipeline: &mut Pipeline) -> Result<()> {
        let (_sealing, dirty, seq) = self.begin_staging(file).await?;
        if dirty.is_empty() {
            return Ok(());
        }
        let order = Order { dirty: &dirty, seq, runs: dirty.runs(), keep_tails: false };
        self.stage(file, pipeline, order).await
    }

    /// Starts to seal long runs of data in the background, if a file has much that is not sealed.
    pub(super) fn stage_in_background(self: &Arc<Self>, file: &Arc<OpenFile>) {
        {
            let mut state = file.state.lock();
            if state.staging || state.overlay.charge() < state.stage_at {
                return;
            }
            state.staging = true;
        }
        let (shared, file) = (self.clone(), file.clone());
        tokio::spawn(async move { while shared.stage_long_runs(&file).await {} });
    }

    /// Seals the long runs there are; says whether to look for more at once.
    async fn stage_long_runs(self: &Arc<Self>, file: &Arc<OpenFile>) -> bool {
        let mut pipeline = file.pipeline.lock().await;
        let long = LONG_RUN.min(self.options.stage_bytes);
        let before = file.state.lock().overlay.charge();
        let staged = match self.begin_staging(file).await {
            Err(error) => Err(error),
            Ok((_sealing, dirty, seq)) => match dirty.long_runs(long) {
                none if none.is_empty() => Ok(()),
                runs => {
                    let order = Order { dirty: &dirty, seq, runs, keep_tails: true };
                    self.stage(file, &mut pipeline, order).await
                }
            },
        };

        let mut state = file.state.lock();
        let progress = staged.is_ok() && state.overlay.charge() < before;
        if let Err(error) = staged {
            state.error = Some(error);
        }
        let least = if progress { 0 } else { state.overlay.charge() };
        state.stage_at = least + self.options.stage_bytes;
        state.staging = state.overlay.charge() >= state.stage_at;
        state.staging
    }

    /// Starts to commit what was changed long ago, and what is left of closed files.
    pub(super) fn write_back(self: &Arc<Self>) {
        let files: Vec<_> = self.files.lock().values().cloned().collect();
        for (file, handles) in files {
            let due = {
                let state = file.state.lock();
                let old = state.dirty_since.is_some_and(|since| since.elapsed() >= self.options.write_back);
                state.is_dirty() && state.committing.is_none() && (old || handles == 0)
            };
            if due {
                let shared = self.clone();
                tokio::spawn(async move { shared.write_back_file(&file, handles).await });
            }
        }
    }

    async fn write_back_file(self: &Arc<Self>, file: &Arc<OpenFile>, handles: usize) {
        let committed =
            if handles == 0 { self.settle_closed(file).await } else { self.commit(file, Vec::new()).await.map(drop) };
        if let Err(error) = committed {
            tracing::warn!(ino = file.ino.0, %error, "written data is not committed yet");
            file.state.lock().error = Some(error);
        }
    }

    async fn keep_orphans(&self) {
        let open: Vec<_> = self.handles.lock().values().cloned().collect();
        for open in open {
            if open.file.state.lock().orphan {
                self.log_orphan(&open.caller, open.file.ino, Op::KeepOrphan { ino: open.file.ino }).await;
            }
        }
    }

    /// Failing costs no more than an hour's worth of space, or a file that nobody can find.
    async fn log_orphan(&self, caller: &Caller, ino: Ino, op: Op) {
        if let Err(error) = self.call_unit(caller, op).await {
            tracing::warn!(ino = ino.0, %error, "an inode without a name");
        }
    }
}
