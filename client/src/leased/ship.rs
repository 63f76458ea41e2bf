//! Sending the log.

use meta::{Answer, Denied, is_about_orphan};

use tokio::time::Instant;

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
        let began = Instant::now();
        let _one = self.shipping.lock().await;
        self.failed_since(began)?;
        loop {
            let part = {
                let mut local = self.local.lock();
                local.withdraw_removed(false);
                if local.shipped() >= target { None } else { local.next_part(&self.me) }
            };
            let Some(Part { batch, epoch, ready }) = part else { return Ok(()) };
            let count = batch.calls.len();
            // Data down before the name goes up.
            let stored = ready.iter().map(|ready| ready.stored());
            if let Some(why) = futures::future::join_all(stored).await.into_iter().find_map(Result::err) {
                if self.local.lock().withdraw_removed(true) {
                    continue;
                }
                return Err(why);
            }
            self.local.lock().note_sent(epoch, count);
            let harmless: Vec<bool> = batch.calls.iter().map(|call| is_about_orphan(&call.op)).collect();
            let answers = self.ask(batch).await?;
            let whole = answers.iter().all(|answer| matches!(answer, Answer::Denied(Denied::Fenced | Denied::Applied)));
            let refused = answers.iter().enumerate().find_map(|(index, answer)| match answer {
                Answer::Denied(why) if whole || !harmless.get(index).is_some_and(|harmless| *harmless) => {
                    Some((if whole { 0 } else { index }, *why))
                }
                _ => None,
            });
            let mut local = self.local.lock();
            match refused {
                None | Some((_, Denied::Applied)) => local.end_part(epoch, count),
                Some((done, why)) if local.has_epoch(epoch) => {
                    tracing::error!(?why, "replicas refuse what was done under a lease");
                    local.end_of_part(done);
                    local.lose(self.cluster);
                }
                Some(_) => {}
            }
        }
    }
}
