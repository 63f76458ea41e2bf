//! A link to one node: questions with tickets, answers in any order.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::MESSAGE_MAX;
use proto::link::{Dialled, Dialler};
use proto::pipe::{self, Frame};
use proto::wire::consensus_client::ConsensusClient;
use proto::wire::{BlockAnswer, BlockAsk, ReadAnswer, ReadAsk, block_answer, block_ask, read_answer};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Questions waiting to be sent.
const QUEUE_MAX: usize = 64;
/// How many of them are sent together at most.
const TOGETHER_MAX: usize = 16;
/// After a failed connection, how long questions fail at once before the next try.
const REST: Duration = Duration::from_millis(500);
/// How long a link may owe answers and give none until it is given up; longer than anybody waits for one.
const SILENT_MAX: Duration = Duration::from_secs(24);
/// For how long a node that did not answer, or lied, is asked last.
const SHUNNED: Duration = Duration::from_secs(30);

/// What is asked over a link, and how it is written on the wire.
pub(crate) trait Service: Debug + Send + 'static {
    type Ask: Debug + Send;
    type Answer: Debug + Send;
    /// What opens a link.
    type Dial: Debug + Clone + Send + 'static;
    /// Where questions go.
    type Asks: Send + 'static;
    /// Where answers come from.
    type Answers: Send + 'static;

    /// Opens a link, if there is somebody.
    fn open(dial: &Self::Dial) -> impl Future<Output = Option<(Self::Asks, Self::Answers)>> + Send;

    /// Sends questions with their tickets; false if the link is broken.
    fn send(asks: &mut Self::Asks, questions: Vec<(u64, Self::Ask)>) -> impl Future<Output = bool> + Send;

    /// The next answer, and to which ticket; none if the link is at its end.
    fn next(answers: &mut Self::Answers) -> impl Future<Output = Option<(u64, Option<Self::Answer>)>> + Send;
}

/// Blocks of a storage node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockService;

impl Service for BlockService {
    type Answer = (block_answer::Answer, Vec<Bytes>);
    type Answers = pipe::Reader<ReadHalf<Dialled>>;
    /// A question, and the blocks that go with it.
    type Ask = (block_ask::Ask, Vec<Bytes>);
    type Asks = pipe::Writer<WriteHalf<Dialled>>;
    type Dial = Dialler;

    async fn open(dial: &Dialler) -> Option<(Self::Asks, Self::Answers)> {
        match dial.connect().await {
            Ok(link) => {
                let (answers, asks) = pipe::split(link);
                Some((asks, answers))
            }
            Err(error) => {
                tracing::debug!(?dial, %error, "no link to a storage node");
                None
            }
        }
    }

    async fn send(asks: &mut Self::Asks, questions: Vec<(u64, Self::Ask)>) -> bool {
        let frame = |(ticket, (ask, bodies))| Frame { head: BlockAsk { ticket, ask: Some(ask) }, bodies };
        asks.send(questions.into_iter().map(frame)).await.is_ok()
    }

    async fn next(answers: &mut Self::Answers) -> Option<(u64, Option<Self::Answer>)> {
        let Frame { head: BlockAnswer { ticket, answer }, bodies } = answers.next().await.ok()??;
        Some((ticket, answer.map(|answer| (answer, bodies))))
    }
}

/// Proven reads of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadService;

impl Service for ReadService {
    type Answer = read_answer::Answer;
    type Answers = Streaming<ReadAnswer>;
    /// Its ticket is set when it is sent.
    type Ask = ReadAsk;
    type Asks = mpsc::Sender<ReadAsk>;
    type Dial = Channel;

    async fn open(dial: &Channel) -> Option<(Self::Asks, Self::Answers)> {
        let (asks, outgoing) = mpsc::channel(4);
        let mut client = ConsensusClient::new(dial.clone()).max_decoding_message_size(MESSAGE_MAX);
        let answers = client.read(ReceiverStream::new(outgoing)).await.ok()?;
        Some((asks, answers.into_inner()))
    }

    async fn send(asks: &mut Self::Asks, questions: Vec<(u64, ReadAsk)>) -> bool {
        for (ticket, ask) in questions {
            if asks.send(ReadAsk { ticket, ..ask }).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn next(answers: &mut Self::Answers) -> Option<(u64, Option<Self::Answer>)> {
        let ReadAnswer { ticket, answer } = answers.message().await.ok()??;
        Some((ticket, answer))
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
    /// A link that `dial` opens.
    pub(crate) fn start(dial: S::Dial) -> Exchange<S> {
        Exchange::start_with(dial, SILENT_MAX)
    }

    /// The same, given up when it owes answers for so long.
    fn start_with(dial: S::Dial, silent_max: Duration) -> Exchange<S> {
        let (questions, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(dial, waiting, silent_max));
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

/// What was asked on a link and not answered.
#[derive(Debug)]
struct Pending<S: Service> {
    askers: BTreeMap<u64, oneshot::Sender<S::Answer>>,
    /// Since when it owes an answer, and has given none.
    owing: Option<Instant>,
    /// Whether it ever gave one.
    answered: bool,
}

impl<S: Service> Default for Pending<S> {
    fn default() -> Pending<S> {
        Pending { askers: BTreeMap::new(), owing: None, answered: false }
    }
}

impl<S: Service> Pending<S> {
    fn ask(&mut self, ticket: u64, asker: oneshot::Sender<S::Answer>) {
        self.askers.retain(|_, asker| !asker.is_closed());
        self.askers.insert(ticket, asker);
        self.owing.get_or_insert_with(Instant::now);
    }

    fn answer(&mut self, ticket: u64, answer: Option<S::Answer>) {
        if let (Some(asker), Some(answer)) = (self.askers.remove(&ticket), answer) {
            let _ = asker.send(answer);
        }
        self.answered = true;
        self.owing = (!self.askers.is_empty()).then(Instant::now);
    }
}

async fn run<S: Service>(dial: S::Dial, mut waiting: mpsc::Receiver<Question<S>>, silent_max: Duration) {
    let (mut ticket, mut questions) = (0, Vec::new());
    while waiting.recv_many(&mut questions, TOGETHER_MAX).await > 0 {
        let Some((mut asks, answers)) = S::open(&dial).await else {
            // Fail what waits at once, so that its askers turn to another node.
            questions.clear();
            fail_for(REST, &mut waiting).await;
            continue;
        };
        let pending = Arc::new(Mutex::new(Pending::<S>::default()));
        let mut reading = tokio::spawn(read::<S>(answers, pending.clone(), silent_max));
        loop {
            questions.retain(|question| !question.answer.is_closed());
            let mut sending = Vec::with_capacity(questions.len());
            for Question { ask, answer } in questions.drain(..) {
                ticket += 1;
                pending.lock().ask(ticket, answer);
                sending.push((ticket, ask));
            }
            tokio::select! {
                _ = &mut reading => break,
                sent = S::send(&mut asks, sending) => if !sent { break },
            }
            tokio::select! {
                _ = &mut reading => break,
                came = waiting.recv_many(&mut questions, TOGETHER_MAX) => if came == 0 {
                    reading.abort();
                    return;
                },
            }
        }
        reading.abort();
        // Dropping the senders tells their askers that no answer will come.
        let Pending { answered, .. } = std::mem::take(&mut *pending.lock());
        if !answered {
            // Whoever hangs up at once is as good as nobody.
            questions.clear();
            fail_for(REST, &mut waiting).await;
        }
    }
}

/// Hands answers to their askers until the link ends, or is silent for too long: a process that stands still has a
/// kernel that keeps its links.
async fn read<S: Service>(mut answers: S::Answers, pending: Arc<Mutex<Pending<S>>>, silent_max: Duration) {
    loop {
        let mut next = std::pin::pin!(S::next(&mut answers));
        let next = loop {
            tokio::select! {
                next = &mut next => break next,
                () = tokio::time::sleep(silent_max / 4) => {
                    if pending.lock().owing.is_some_and(|since| since.elapsed() > silent_max) {
                        return;
                    }
                }
            }
        };
        let Some((ticket, answer)) = next else { return };
        pending.lock().answer(ticket, answer);
    }
}

/// Drops all questions that come within `rest`.
async fn fail_for<S: Service>(rest: Duration, waiting: &mut mpsc::Receiver<Question<S>>) {
    let until = tokio::time::Instant::now() + rest;
    while let Ok(Some(question)) = tokio::time::timeout_at(until, waiting.recv()).await {
        drop(question);
    }
}

#[cfg(test)]
mod tests;
