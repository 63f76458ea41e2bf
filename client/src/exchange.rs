//! A link to one storage node: questions with tickets, answers in any order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proto::MESSAGE_MAX;
use proto::wire::block_answer::Answer;
use proto::wire::block_ask::Ask;
use proto::wire::blocks_client::BlocksClient;
use proto::wire::{BlockAnswer, BlockAsk};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Questions waiting to be sent.
const QUEUE_MAX: usize = 64;
/// After a failed connection, how long questions fail at once before the next try.
const REST: Duration = Duration::from_millis(500);
/// For how long a node that did not answer is asked last.
const SHUNNED: Duration = Duration::from_secs(30);

/// A link to one storage node. Connects when first asked, and again after a loss.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    questions: mpsc::Sender<Question>,
    /// Until when the node is asked only if nobody else is left, because it was silent.
    resting: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
struct Question {
    ask: Ask,
    answer: oneshot::Sender<Answer>,
}

/// The node did not answer: it is down, or the link broke.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent;

impl Exchange {
    /// A link over `channel`.
    pub(crate) fn start(channel: Channel) -> Exchange {
        let (questions, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(channel, waiting));
        Exchange { questions, resting: Arc::default() }
    }

    /// Asks, and waits for the answer at most `patience`.
    pub(crate) async fn ask(&self, ask: Ask, patience: Duration) -> Result<Answer, Silent> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(Question { ask, answer }).await.map_err(|_| Silent)?;
            answered.await.map_err(|_| Silent)
        };
        let answer = tokio::time::timeout(patience, asked).await.map_err(|_| Silent).flatten();
        *self.resting.lock() = answer.is_err().then(|| Instant::now() + SHUNNED);
        answer
    }

    /// Whether the node was silent lately.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.lock().is_some_and(|until| Instant::now() < until)
    }
}

type Pending = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Answer>>>>;

async fn run(channel: Channel, mut waiting: mpsc::Receiver<Question>) {
    let mut ticket = 0;
    while let Some(first) = waiting.recv().await {
        let (asks, outgoing) = mpsc::channel(4);
        let mut client = BlocksClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let Ok(answers) = client.exchange(ReceiverStream::new(outgoing)).await else {
            // Fail what waits at once, so that its askers turn to another node.
            drop(first);
            fail_for(REST, &mut waiting).await;
            continue;
        };
        let pending = Pending::default();
        let mut reading = tokio::spawn(read(answers.into_inner(), pending.clone()));
        let mut next = Some(first);
        loop {
            let question = match next.take() {
                Some(question) => question,
                None => tokio::select! {
                    _ = &mut reading => break,
                    question = waiting.recv() => match question {
                        Some(question) => question,
                        None => return,
                    },
                },
            };
            if question.answer.is_closed() {
                continue;
            }
            ticket += 1;
            {
                let mut open = pending.lock();
                open.retain(|_, asker| !asker.is_closed());
                open.insert(ticket, question.answer);
            }
            let sent = asks.send(BlockAsk { ticket, ask: Some(question.ask) });
            tokio::select! {
                _ = &mut reading => break,
                sent = sent => if sent.is_err() { break },
            }
        }
        reading.abort();
        // Dropping the senders tells their askers that no answer will come.
        pending.lock().clear();
    }
}

/// Hands answers to their askers until the link ends.
async fn read(mut answers: tonic::Streaming<BlockAnswer>, pending: Pending) {
    while let Ok(Some(BlockAnswer { ticket, answer })) = answers.message().await {
        let asker = pending.lock().remove(&ticket);
        if let (Some(asker), Some(answer)) = (asker, answer) {
            let _ = asker.send(answer);
        }
    }
}

/// Drops all questions that come within `rest`.
async fn fail_for(rest: Duration, waiting: &mut mpsc::Receiver<Question>) {
    let until = tokio::time::Instant::now() + rest;
    while let Ok(Some(question)) = tokio::time::timeout_at(until, waiting.recv()).await {
        drop(question);
    }
}
