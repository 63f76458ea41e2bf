//! What waits for a link: bounded in number and in bytes. Sending never waits; what is too much is dropped, for
//! whoever is to have it asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Messages taken at a time.
const TOGETHER_MAX: usize = 256;

/// Where messages are pushed.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    messages: mpsc::Sender<Bytes>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// Where they are taken.
#[derive(Debug)]
pub(crate) struct Waiting {
    messages: mpsc::Receiver<Bytes>,
    /// Of all that was pushed and is not sent.
    bytes: Arc<AtomicUsize>,
    /// Of what was taken last.
    under_way: usize,
}

/// A queue of so many messages, and so many bytes with those that were taken and are not sent.
pub(crate) fn queue(messages_max: usize, bytes_max: usize) -> (Queue, Waiting) {
    let (sender, messages) = mpsc::channel(messages_max);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { messages: sender, bytes: bytes.clone(), bytes_max }, Waiting { messages, bytes, under_way: 0 })
}

impl Queue {
    /// Queues a message, or drops it.
    pub(crate) fn push(&self, message: &Bytes) {
        // Counted before it can be taken, so that the count never falls below zero.
        let before = self.bytes.fetch_add(message.len(), Ordering::Relaxed);
        if before + message.len() > self.bytes_max || self.messages.try_send(message.clone()).is_err() {
            self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        }
    }
}

impl Waiting {
    /// Takes what waits; what was taken before is sent. Gives how many: none only when nobody pushes any more.
    /// Cancel-safe.
    pub(crate) async fn take(&mut self, batch: &mut Vec<Bytes>) -> usize {
        self.release();
        let count = self.messages.recv_many(batch, TOGETHER_MAX).await;
        self.under_way = batch.iter().map(Bytes::len).sum();
        count
    }

    /// Forgets what waits.
    pub(crate) fn forget(&mut self) {
        self.release();
        while let Ok(message) = self.messages.try_recv() {
            self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        }
    }

    /// Whether nobody pushes any more, and all was taken.
    pub(crate) fn is_over(&self) -> bool {
        self.messages.is_closed() && self.messages.is_empty()
    }

    fn release(&mut self) {
        self.bytes.fetch_sub(core::mem::take(&mut self.under_way), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many messages wait; an error if there are none though somebody may push some.
    async fn taken(waiting: &mut Waiting) -> Result<usize, tokio::time::error::Elapsed> {
        let mut batch = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), waiting.take(&mut batch)).await
    }

    #[tokio::test]
    async fn what_is_too_much_is_dropped_until_something_is_sent() {
        let (queue, mut waiting) = queue(10, 1000);
        let push = |count: usize, len: usize| (0..count).for_each(|_| queue.push(&Bytes::from(vec![0; len])));
        push(20, 1);
        assert_eq!(taken(&mut waiting).await, Ok(10), "so many messages");
        // What is being sent counts until the next is taken.
        push(20, 300);
        assert_eq!(taken(&mut waiting).await, Ok(3), "so many bytes");
        push(20, 300);
        push(1, 100);
        assert_eq!(taken(&mut waiting).await, Ok(1), "what is being sent counts");
        push(20, 300);
        assert_eq!(taken(&mut waiting).await, Ok(3), "and no more when it is");
        push(1, 10);
        waiting.forget();
        push(20, 1000);
        assert_eq!(taken(&mut waiting).await, Ok(1), "nor what was forgotten");
        drop(queue);
        assert_eq!(taken(&mut waiting).await, Ok(0));
        assert!(waiting.is_over());
    }
}
