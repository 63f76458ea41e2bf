//! A link to one node: questions with tickets, answers in any order.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proto::MESSAGE_MAX;
use proto::wire::blocks_client::BlocksClient;
use proto::wire::consensus_client::ConsensusClient;
use proto::wire::{BlockAnswer, BlockAsk, ReadAnswer, ReadAsk, block_answer, block_ask, read_answer};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Questions waiting to be sent.
const QUEUE_MAX: usize = 64;
/// After a failed connection, how long questions fail at once before the next try.
const REST: Duration = Duration::from_millis(500);
/// For how long a node that did not answer, or lied, is asked last.
const SHUNNED: Duration = Duration::from_secs(30);

/// What is asked over a link, and how it is written on the wire.
pub(crate) trait Service: Debug + Send + 'static {
    type Ask: Debug + Send;
    type Answer: Debug + Send;
    type Up: Send + 'static;
    type Down: Send + 'static;

    /// Opens the stream.
    fn open(channel: Channel, asks: mpsc::Receiver<Self::Up>) -> impl Future<Output = Opened<Self::Down>> + Send;

    fn up(ticket: u64, ask: Self::Ask) -> Self::Up;

    fn down(down: Self::Down) -> (u64, Option<Self::Answer>);
}

type Opened<T> = Result<Streaming<T>, Status>;

/// Blocks of a storage node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockService;

impl Service for BlockService {
    type Answer = block_answer::Answer;
    type Ask = block_ask::Ask;
    type Down = BlockAnswer;
    type Up = BlockAsk;

    async fn open(channel: Channel, asks: mpsc::Receiver<BlockAsk>) -> Opened<BlockAnswer> {
        let client = BlocksClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let answers = client.max_encoding_message_size(MESSAGE_MAX).exchange(ReceiverStream::new(asks)).await?;
        Ok(answers.into_inner())
    }

    fn up(ticket: u64, ask: Self::Ask) -> BlockAsk {
        BlockAsk { ticket, ask: Some(ask) }
    }

    fn down(BlockAnswer { ticket, answer }: BlockAnswer) -> (u64, Option<Self::Answer>) {
        (ticket, answer)
    }
}

/// Proven reads of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadService;

impl Service for ReadService {
    type Answer = read_answer::Answer;
    /// Its ticket is set when it is sent.
    type Ask = ReadAsk;
    type Down = ReadAnswer;
    type Up = ReadAsk;

    async fn open(channel: Channel, asks: mpsc::Receiver<ReadAsk>) -> Opened<ReadAnswer> {
        let mut client = ConsensusClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        Ok(client.read(ReceiverStream::new(asks)).await?.into_inner())
    }

    fn up(ticket: u64, ask: ReadAsk) -> ReadAsk {
        ReadAsk { ticket, ..ask }
    }

    fn down(ReadAnswer { ticket, answer }: ReadAnswer) -> (u64, Option<Self::Answer>) {
        (ticket, answer)
    }
}

/// A link to one node. Connects when first asked, and again after a loss.
#[derive(Clone, Debug)]
pub(crate) struct Exchange<S: Service> {
    questions: mpsc::Sender<Question<S>>,
    /// Until when the node is asked only if nobody else is left, because it was silent or lied.
    resting: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
struct Question<S: Service> {
    ask: S::Ask,
    answer: oneshot::Sender<S::Answer>,
}

/// The node did not answer: it is down, or the link broke.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent;

impl<S: Service> Exchange<S> {
    /// A link over `channel`.
    pub(crate) fn start(channel: Channel) -> Exchange<S> {
        let (questions, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(channel, waiting));
        Exchange { questions, resting: Arc::default() }
    }

    /// Asks, and waits for the answer at most `patience`.
    pub(crate) async fn ask(&self, ask: S::Ask, patience: Duration) -> Result<S::Answer, Silent> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(Question { ask, answer }).await.map_err(|_| Silent)?;
            answered.await.map_err(|_| Silent)
        };
        let answer = tokio::time::timeout(patience, asked).await.map_err(|_| Silent).flatten();
        *self.resting.lock() = answer.is_err().then(|| Instant::now() + SHUNNED);
        answer
    }

    /// The node lied: it is asked last for a while.
    pub(crate) fn rest(&self) {
        *self.resting.lock() = Some(Instant::now() + SHUNNED);
    }

    /// Whether the node was silent, or lied, lately.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.lock().is_some_and(|until| Instant::now() < until)
    }
}

type Pending<S> = Arc<Mutex<BTreeMap<u64, oneshot::Sender<<S as Service>::Answer>>>>;

async fn run<S: Service>(channel: Channel, mut waiting: mpsc::Receiver<Question<S>>) {
    let mut ticket = 0;
    while let Some(first) = waiting.recv().await {
        let (asks, outgoing) = mpsc::channel(4);
        let Ok(answers) = S::open(channel.clone(), outgoing).await else {
            // Fail what waits at once, so that its askers turn to another node.
            drop(first);
            fail_for(REST, &mut waiting).await;
            continue;
        };
        let pending = Pending::<S>::default();
        let mut reading = tokio::spawn(read::<S>(answers, pending.clone()));
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
            let sent = asks.send(S::up(ticket, question.ask));
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
async fn read<S: Service>(mut answers: Streaming<S::Down>, pending: Pending<S>) {
    while let Ok(Some(down)) = answers.message().await {
        let (ticket, answer) = S::down(down);
        let asker = pending.lock().remove(&ticket);
        if let (Some(asker), Some(answer)) = (asker, answer) {
            let _ = asker.send(answer);
        }
    }
}

/// Drops all questions that come within `rest`.
async fn fail_for<S: Service>(rest: Duration, waiting: &mut mpsc::Receiver<Question<S>>) {
    let until = tokio::time::Instant::now() + rest;
    while let Ok(Some(question)) = tokio::time::timeout_at(until, waiting.recv()).await {
        drop(question);
    }
}
