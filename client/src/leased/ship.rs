//! Sending the log.

use meta::{Answer, Denied, is_about_orphan};

use super::Core;
use super::local::Part;
use crate::backend::{Metadata, Unavailable};

impl<M: Metadata> Core<M> {
    /// Returns when replicas have all that was in the log when it was called. Parts are sent one after the
    /// other; one whose answer was lost is sent again, and applied once.
    ///
    /// # Errors
    /// If replicas can't be reached. The log is kept.
    pub(super) async fn ship(&self) -> Result<(), Unavailable> {
        let target = self.local.lock().logged();
        let _one = self.shipping.lock().await;
        loop {
            let part = {
                let mut local = self.local.lock();
                if local.shipped() >= target { None } else { local.next_part(&self.me) }
            };
            let Some(Part { batch, epoch, ready }) = part else { return Ok(()) };
            let count = batch.calls.len();
            // Data down before the name goes up.
            let stored = ready.iter().map(|(index, ready)| async move { (*index, ready().await) });
            let failed: Vec<_> = futures::future::join_all(stored).await;
            let failed: Vec<_> =
                failed.into_iter().filter_map(|(index, stored)| Some((index, stored.err()?))).collect();
            if let Some((_, why)) = failed.first() {
                let indices: Vec<usize> = failed.iter().map(|(index, _)| *index).collect();
                if self.local.lock().withdraw_dead(epoch, &indices) {
                    continue;
                }
                return Err(why.clone());
            }
            self.local.lock().note_sent(epoch, count);
            let harmless: Vec<bool> = batch.calls.iter().map(|call| is_about_orphan(&call.op)).collect();
            let answers = self.inner.batch(batch).await?;
            let whole = answers.iter().all(|answer| matches!(answer, Answer::Denied(Denied::Fenced | Denied::Applied)));
            let refused = answers.iter().enumerate().find_map(|(index, answer)| match answer {
                Answer::Denied(why) if whole || !harmless.get(index).is_some_and(|harmless| *harmless) => Some(*why),
                _ => None,
            });
            let mut local = self.local.lock();
            match refused {
                None | Some(Denied::Applied) => local.end_part(epoch, count),
                Some(why) if local.has_epoch(epoch) => {
                    tracing::error!(?why, "replicas refuse what was done under a lease");
                    local.lose(self.cluster);
                }
                Some(_) => {}
            }
        }
    }
}
