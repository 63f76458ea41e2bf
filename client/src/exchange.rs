//! A link to one node: questions with tickets, answers in any order.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::link::{Dialled, Dialler};
use proto::pipe::{self, Frame, Head, Reader};
use proto::wire::{BlockAnswer, BlockAsk, ReadAnswer, ReadAsk, block_answer, block_ask, read_answer};
use tokio::io::ReadHalf;
use tokio::sync::{mpsc, oneshot};

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
    /// A question on the wire.
    type Question: Head;
    /// An answer on the wire.
    type Reply: Head;

    /// Writes a question.
    fn question(ticket: u64, ask: Self::Ask) -> Frame<Self::Question>;

    /// Reads an answer, and to which ticket it is.
    fn answer(reply: Frame<Self::Reply>) -> (u64, Option<Self::Answer>);
}

/// Blocks of a storage node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockService;

impl Service for BlockService {
    type Answer = (block_answer::Answer, Vec<Bytes>);
    /// A question, and the blocks that go with it.
    type Ask = (block_ask::Ask, Vec<Bytes>);
    type Question = BlockAsk;
    type Reply = BlockAnswer;

    fn question(ticket: u64, (ask, bodies): Self::Ask) -> Frame<BlockAsk> {
        Frame { head: BlockAsk { ticket, ask: Some(ask) }, bodies }
    }

    fn answer(
        Frame { head: BlockAnswer { ticket, answer }, bodies }: Frame<BlockAnswer>,
    ) -> (u64, Option<Self::Answer>) {
        (ticket, answer.map(|answer| (answer, bodies)))
    }
}

/// Proven reads of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadService;

impl Service for ReadService {
    type Answer = read_answer::Answer;
    /// Its ticket is set when it is sent.
    type Ask = ReadAsk;
    type Question = ReadAsk;
    type Reply = ReadAnswer;

    fn question(ticket: u64, ask: ReadAsk) -> Frame<ReadAsk> {
        ReadAsk { ticket, ..ask }.into()
    }

    fn answer(Frame { head: ReadAnswer { ticket, answer }, .. }: Frame<ReadAnswer>) -> (u64, Option<Self::Answer>) {
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
    /// A link that `dial` opens.
    pub(crate) fn start(dial: Dialler) -> Exchange<S> {
        Exchange::start_with(dial, SILENT_MAX)
    }

    /// The same, given up when it owes answers for so long.
    fn start_with(dial: Dialler, silent_max: Duration) -> Exchange<S> {
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

async fn run<S: Service>(dial: Dialler, mut waiting: mpsc::Receiver<Question<S>>, silent_max: Duration) {
    let (mut ticket, mut questions) = (0, Vec::new());
    while waiting.recv_many(&mut questions, TOGETHER_MAX).await > 0 {
        let (answers, mut asks) = match dial.connect().await {
            Ok(link) => pipe::split(link),
            Err(error) => {
                tracing::debug!(?dial, %error, "no link to this node");
                // Fail what waits at once, so that its askers turn to another node.
                questions.clear();
                fail_for(REST, &mut waiting).await;
                continue;
            }
        };
        let pending = Arc::new(Mutex::new(Pending::<S>::default()));
        let mut reading = tokio::spawn(read::<S>(answers, pending.clone(), silent_max));
        loop {
            questions.retain(|question| !question.answer.is_closed());
            let mut sending = Vec::with_capacity(questions.len());
            for Question { ask, answer } in questions.drain(..) {
                ticket += 1;
                pending.lock().ask(ticket, answer);
                sending.push(S::question(ticket, ask));
            }
            tokio::select! {
                _ = &mut reading => break,
                sent = asks.send(sending) => if sent.is_err() { break },
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
async fn read<S: Service>(
    mut answers: Reader<ReadHalf<Dialled>>,
    pending: Arc<Mutex<Pending<S>>>,
    silent_max: Duration,
) {
    loop {
        let mut next = std::pin::pin!(answers.next());
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
        let reply = match next {
            Ok(Some(reply)) => reply,
            Ok(None) => return tracing::debug!("a node hung up"),
            Err(error) => return tracing::debug!(%error, "a link to a node ended"),
        };
        let (ticket, answer) = S::answer(reply);
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
