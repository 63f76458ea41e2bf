//! Giving leases back.

use std::time::Duration;

use meta::{Batch, Op};

use super::owned::Owned;
use super::{Core, as_root};
use crate::backend::{Metadata, Unavailable};

/// How long files are committed at most before what others want is given back.
const FLUSH_MAX: Duration = Duration::from_secs(10);

impl<M: Metadata> Core<M> {
    /// Sends everything and gives everything back.
    pub(super) async fn close(&self) {
        let _alone = self.gate.write().await;
        if self.ship().await.is_err() {
            // Whoever syncs is told; it is tried again for as long as there is somebody to try.
            return;
        }
        self.local.lock().end_generation();
        self.forget().await;
        let by = self.local.lock().by(&self.me, None);
        if by.is_some() {
            // If it fails others wait until the lease runs out.
            let _ = self.ask(Batch { calls: vec![as_root(Op::Release)], by }).await;
        }
        let mut local = self.local.lock();
        // Given back, not lost.
        local.owned = Owned::default();
        local.give_up(self.cluster);
    }

    /// Gives back what others want: first what was written to it is sent.
    pub(super) async fn heed(&self) -> Result<(), Unavailable> {
        let wanted = self.lease(Op::Renew).await?;
        if wanted.is_empty() {
            self.local.lock().end_ceding();
            return Ok(());
        }
        tracing::debug!(directories = wanted.len(), "others want what is leased here");
        self.ship().await?;
        // What is written to where others look, too, is ordered, and may wait for the same ones to give it back.
        let held = wanted.iter().any(|directory| self.local.lock().copy.is_held_by(*directory, &self.me));
        if held {
            self.flush().await;
        }
        {
            let _alone = self.gate.write().await;
            self.local.lock().give_back(&wanted, &self.me);
        }
        self.forget().await;
        // What was written meanwhile.
        if held {
            self.flush().await;
        }
        self.ship().await?;
        if let Err(unknown) = self.lease(Op::Cede { directories: wanted }).await {
            // It may be done yet, and must not take anything away that is granted after it.
            let _alone = self.gate.write().await;
            self.ship().await?;
            self.local.lock().give_up(self.cluster);
            return Err(unknown);
        }
        self.local.lock().end_ceding();
        Ok(())
    }

    /// Has everybody forget what others may change from now on, if there is such.
    pub(super) async fn forget(&self) {
        let mut forgotten = self.forgotten.lock().await;
        let generation = self.local.lock().ended;
        let forget = self.forget.lock().clone();
        if *forgotten != generation
            && let Some(forget) = forget
        {
            forget().await;
            *forgotten = generation;
        }
    }

    /// Commits what was written. Not for ever: what is in somebody else's zone may have to wait until this
    /// client gives back what that one wants.
    async fn flush(&self) {
        let flush = self.flush.lock().clone();
        if let Some(flush) = flush
            && tokio::time::timeout(FLUSH_MAX, flush()).await.is_err()
        {
            tracing::warn!("not everything written was committed before a lease is given back");
        }
    }
}
