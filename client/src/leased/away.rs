//! While the replicas can't be reached.
//!
//! A request waits for a minute before it fails. Those that waited for their turn behind one fail with it, and
//! as long as none was answered the next ones ask first, where they hold up nobody: what is leased here is
//! worked on until the leases end, and no queue makes anybody wait for many minutes.

use std::time::Duration;

use meta::{Answer, Batch, Op};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Core, as_root};
use crate::backend::{Metadata, Unavailable};

/// From when on a request that fails says that others would, too. One that fails sooner has its own reason.
const LONG: Duration = Duration::from_secs(20);

/// The latest request that nobody answered, and when it was begun, if none was answered since.
#[derive(Default)]
pub(super) struct Away(Mutex<Option<(Instant, Unavailable)>>);

impl<M: Metadata> Core<M> {
    /// [`Metadata::batch`], taking note of how it ends.
    pub(super) async fn ask(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        let began = Instant::now();
        let answers = self.inner.batch(batch).await;
        let failed = answers.as_ref().err().filter(|_| began.elapsed() >= LONG);
        *self.away.0.lock() = failed.map(|why| (began, why.clone()));
        answers
    }

    /// For whoever waited for its turn since `began`.
    ///
    /// # Errors
    /// If the replicas were asked since, and have answered nobody.
    pub(super) fn failed_since(&self, began: Instant) -> Result<(), Unavailable> {
        match &*self.away.0.lock() {
            Some((failed, why)) if *failed >= began => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Returns at once if the latest request was answered, else when the next one is.
    ///
    /// # Errors
    /// If it is not.
    pub(super) async fn reach(&self) -> Result<(), Unavailable> {
        if self.away.0.lock().is_none() {
            return Ok(());
        }
        self.ask(Batch::new(vec![as_root(Op::VolumeList)])).await.map(drop)
    }
}
