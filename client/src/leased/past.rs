//! Snapshots at hand: the rows of one do not change, so what was fetched of it is looked at here.

use std::collections::HashMap;
use std::time::Duration;

use base::{ClusterId, PublicKey};
use meta::{Answer, Batch, Call, Content, Denied, Ino, Op, Reply, State, is_change, snapshot_of};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Core;
use super::walk::{Readers, Walk};
use crate::backend::{Metadata, Unavailable};

/// For how long a copy is looked at before replicas are asked whether there still is the snapshot.
const FRESH: Duration = Duration::from_secs(60);
/// For how long what is thrown away is looked at without asking again.
const FRESH_TRASH: Duration = Duration::from_secs(3);
/// How long a directory that could not be fetched is not fetched again.
const UNFETCHED: Duration = Duration::from_secs(10);
/// How many names all copies may hold, some hundred bytes each, before they are begun anew.
const COPIES_MAX: usize = 200_000;

/// What is at hand of snapshots.
#[derive(Default)]
pub(super) struct Past {
    copies: Mutex<Copies>,
    /// Held by whoever fetches.
    fetching: tokio::sync::Mutex<()>,
}

/// Copies of snapshots, as far as they were fetched.
#[derive(Default)]
struct Copies {
    all: HashMap<u64, Copy>,
    walk: Walk,
    /// What was fetched of the trash, and since when.
    trash: Option<(State, Instant)>,
    /// What was not fetched for whom, and when.
    refused: HashMap<(Ino, u32), Instant>,
}

struct Copy {
    state: State,
    /// When replicas last said that there is such a snapshot.
    confirmed: Instant,
    readers: Readers,
}

/// What a call about a snapshot takes.
enum Next {
    Answer(Box<Answer>),
    /// The names of a directory.
    Fetch(Ino),
    Ask,
}

impl Copies {
    fn next(&self, who: &PublicKey, call: &Call, number: u64) -> Next {
        let looked = match self.all.get(&number) {
            Some(copy) if copy.confirmed.elapsed() > FRESH => Err(None),
            Some(copy) => copy.state.look_at_past(who, call),
            None => Err(directory_of(&call.op).filter(|_| number != 0)),
        };
        match looked {
            Ok(answer) => Next::Answer(Box::new(answer)),
            Err(Some(directory)) if !self.is_refused(directory.in_snapshot(number), call) => Next::Fetch(directory),
            Err(_) => Next::Ask,
        }
    }

    fn is_refused(&self, directory: Ino, call: &Call) -> bool {
        let refused = self.refused.get(&(directory, call.caller.uid));
        refused.is_some_and(|refused| refused.elapsed() < UNFETCHED)
    }

    /// A directory of a snapshot is fetched now: which others are worth asking for with it.
    fn begin(&mut self, ino: Ino) -> Vec<Ino> {
        self.refused.retain(|_, refused| refused.elapsed() < UNFETCHED);
        let width = self.walk.begin();
        let copy = self.all.get(&ino.snapshot());
        copy.map_or_else(Vec::new, |copy| copy.state.unfetched_in_past(ino.now(), width))
    }

    /// Takes rows; those `first` of a directory begin a copy if there is none. Says whether the copy is the one that
    /// the rows before went to.
    fn learn(&mut self, cluster: ClusterId, number: u64, rows: &[meta::Row], whole: &[Ino], first: bool) -> bool {
        let held: usize = self.all.values().map(|copy| copy.state.counts().entries).sum();
        if first && held > COPIES_MAX {
            self.all.clear();
        }
        if !first && !self.all.contains_key(&number) {
            return false;
        }
        let new = || Copy { state: State::copy_of(cluster), confirmed: Instant::now(), readers: Readers::default() };
        let copy = self.all.entry(number).or_insert_with(new);
        copy.confirmed = Instant::now();
        if let Err(error) = copy.state.learn_past(rows, whole) {
            tracing::error!(%error, "replicas agree on rows that are none");
        }
        true
    }

    fn confirm(&mut self, number: u64, answer: &Answer) {
        match (answer, self.all.get_mut(&number)) {
            (Answer::Denied(Denied::Stale), _) => drop(self.all.remove(&number)),
            (Answer::Done(_), Some(copy)) => copy.confirmed = Instant::now(),
            _ => {}
        }
    }
}

fn directory_of(op: &Op) -> Option<Ino> {
    match op {
        Op::Lookup { parent: ino, .. } | Op::ReadDir { ino, .. } => Some(ino.now()),
        _ => None,
    }
}

/// What is thrown away may be thrown away by others, too: a copy is dropped soon.
impl Copies {
    fn look_into_trash(&mut self, who: &PublicKey, call: &Call) -> Option<Answer> {
        self.trash = self.trash.take().filter(|(_, since)| since.elapsed() < FRESH_TRASH);
        self.trash.as_ref().and_then(|(copy, _)| copy.look_into_trash(who, call))
    }

    /// Takes rows; says after which cookie there are more.
    fn learn_trash(&mut self, cluster: ClusterId, fetched: Option<Answer>) -> Option<u64> {
        let Some(Answer::Done(Reply::Rows { rows, next, .. })) = fetched else { return None };
        let too_big = |copy: &State| copy.counts().entries > COPIES_MAX;
        self.trash = self.trash.take().filter(|(copy, _)| !too_big(copy));
        let (copy, _) = self.trash.get_or_insert_with(|| (State::copy_of(cluster), Instant::now()));
        if let Err(error) = copy.learn_past(&rows, &[]) {
            tracing::error!(%error, "replicas agree on rows that are none");
        }
        next
    }
}

impl Past {
    /// Takes note of changes that throw something away, or take it back, or end it.
    pub(super) fn note_changes(&self, calls: &[Call]) {
        for op in calls.iter().map(|call| &call.op).filter(|op| is_change(op) || matches!(op, Op::Purge { .. })) {
            match (&mut self.copies.lock().trash, op) {
                (Some((copy, _)), Op::Purge { ino }) => copy.forget_thrown(*ino),
                (trash, _) => *trash = None,
            }
        }
    }

    /// A file of a snapshot is read from its beginning: those that are worth fetching ahead.
    pub(super) fn ahead_of(&self, ino: Ino) -> Vec<(Ino, Content)> {
        let mut copies = self.copies.lock();
        let copy = copies.all.get_mut(&ino.snapshot());
        copy.map_or_else(Vec::new, |copy| copy.readers.read(&copy.state, ino.now()))
    }
}

impl<M: Metadata> Core<M> {
    /// Drops copies of snapshots that are not there any more.
    fn note_listed(&self, op: &Op, answer: Option<&Answer>) {
        if let (Op::SnapshotList { .. }, Some(Answer::Done(Reply::Snapshots(all)))) = (op, answer) {
            self.past.copies.lock().all.retain(|number, _| all.iter().any(|snapshot| snapshot.number == *number));
        }
    }

    /// Does calls of which at least one is about snapshots.
    pub(super) async fn look_back(&self, calls: Vec<Call>) -> Result<Vec<Answer>, Unavailable> {
        match <[Call; 1]>::try_from(calls) {
            Ok([call]) if matches!(call.op, Op::SnapshotList { .. }) => {
                let answers = self.ask(Batch::new(vec![call.clone()])).await?;
                self.note_listed(&call.op, answers.first());
                Ok(answers)
            }
            Ok([call]) => Ok(vec![self.look_at_past(call).await?]),
            Err(calls) => self.inner.calls(calls).await,
        }
    }

    pub(super) async fn look_at_past(&self, call: Call) -> Result<Answer, Unavailable> {
        let number = snapshot_of(&call.op);
        if number == Ino::TRASH {
            return self.look_into_trash(call).await;
        }
        let next = || self.past.copies.lock().next(&self.me.0, &call, number);
        let mut fetching = None;
        // Whoever waited for what another fetched may find it there; whoever fetched, too.
        for _ in 0..3 {
            match next() {
                Next::Answer(answer) => return Ok(*answer),
                Next::Fetch(_) if fetching.is_none() => fetching = Some(self.past.fetching.lock().await),
                Next::Fetch(directory) => {
                    if !self.fetch_past(&call, directory.in_snapshot(number)).await? {
                        break;
                    }
                }
                Next::Ask => break,
            }
        }
        drop(fetching);
        let mut answers = self.ask(Batch::new(vec![call])).await?;
        let answer = answers.pop().ok_or_else(|| Unavailable("the replicas answered nothing".into()))?;
        self.past.copies.lock().confirm(number, &answer);
        Ok(answer)
    }

    /// Looks at what was thrown away: what was here, too, and is not sent yet.
    async fn look_into_trash(&self, call: Call) -> Result<Answer, Unavailable> {
        self.ship().await?;
        if let Some(answer) = self.past.copies.lock().look_into_trash(&self.me.0, &call) {
            return Ok(answer);
        }
        let fetch = |ino, cookie| {
            let op = Op::Fetch { ino, cookie, also: Vec::new() };
            Call { caller: call.caller.clone(), op }
        };
        let listed = match call.op {
            Op::ReadDir { ino, cookie, .. } => Some((ino, cookie)),
            _ => None,
        };
        // Whoever lists something looks at what is there.
        let calls = [call.clone()].into_iter().chain(listed.map(|(ino, cookie)| fetch(ino, cookie)));
        let mut answers = self.ask(Batch::new(calls.collect())).await?.into_iter();
        let answer = answers.next().ok_or_else(|| Unavailable("the replicas answered nothing".into()))?;
        let (Some((ino, _)), Answer::Done(Reply::Entries { entries, .. })) = (listed, &answer) else {
            return Ok(answer);
        };
        let last = entries.last().map_or(0, |entry| entry.cookie);
        let mut next = self.past.copies.lock().learn_trash(self.cluster, answers.next());
        while let Some(cookie) = next.filter(|next| *next < last) {
            let more = self.ask(Batch::new(vec![fetch(ino, cookie)])).await?.pop();
            next = self.past.copies.lock().learn_trash(self.cluster, more);
        }
        Ok(answer)
    }

    /// Fetches a directory of a snapshot; says whether it could.
    async fn fetch_past(&self, call: &Call, ino: Ino) -> Result<bool, Unavailable> {
        let mut cookie = 0;
        let also = self.past.copies.lock().begin(ino);
        loop {
            let op = Op::Fetch { ino, cookie, also: also.clone() };
            let mut done = self.ask(Batch::new(vec![Call { caller: call.caller.clone(), op }])).await?;
            let Some(Answer::Done(Reply::Rows { rows, whole, next })) = done.pop() else {
                // It may not be for this caller to list: then what is looked for there is asked for.
                self.past.copies.lock().refused.insert((ino, call.caller.uid), Instant::now());
                return Ok(false);
            };
            let mut copies = self.past.copies.lock();
            if !copies.learn(self.cluster, ino.snapshot(), &rows, &whole, cookie == 0) {
                return Ok(false);
            }
            match next {
                Some(next) => cookie = next,
                None => {
                    copies.walk.end();
                    return Ok(true);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_follow_others_go_where_those_went_or_nowhere() {
        let (mut copies, cluster) = (Copies::default(), ClusterId([1; 16]));
        assert!(copies.learn(cluster, 7, &[], &[], true));
        assert!(copies.learn(cluster, 7, &[], &[Ino(1)], false));
        copies.confirm(7, &Answer::Denied(Denied::ReadOnly));
        assert!(copies.all.contains_key(&7));
        copies.confirm(7, &Answer::Denied(Denied::Stale));
        // Its first rows are gone: with the last a directory would seem to be complete.
        assert!(!copies.learn(cluster, 7, &[], &[Ino(1)], false));
        assert!(copies.all.is_empty());
    }
}
