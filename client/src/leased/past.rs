//! Snapshots at hand: the rows of one do not change, so what was fetched of it is looked at here.

use std::collections::HashMap;
use std::time::Duration;

use base::{ClusterId, PublicKey};
use meta::{Answer, Batch, Call, Caller, Content, Denied, Ino, Op, Reply, State, snapshot_of};
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
    /// What was fetched of the trash, since when, and for whom.
    trash: Option<(State, Instant, Caller)>,
    /// What was not fetched for whom, and when.
    refused: HashMap<(Ino, u32), Instant>,
}

struct Copy {
    state: State,
    /// When replicas last said that there is such a snapshot.
    confirmed: Instant,
    readers: Readers,
}

/// What a call does to the trash.
pub(super) enum Change {
    Ends(Ino),
    /// It may throw something away, or take it back.
    Any,
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
        self.trash = self.trash.take().filter(|(_, since, _)| since.elapsed() < FRESH_TRASH);
        let own = self.trash.as_ref().filter(|(.., caller)| *caller == call.caller);
        own.and_then(|(copy, ..)| copy.look_into_trash(who, call))
    }

    /// Takes rows; says after which cookie there are more.
    fn learn_trash(&mut self, cluster: ClusterId, caller: &Caller, fetched: Option<Answer>) -> Option<u64> {
        let Some(Answer::Done(Reply::Rows { rows, next, .. })) = fetched else { return None };
        let too_big = |copy: &State| copy.counts().entries > COPIES_MAX;
        self.trash = self.trash.take().filter(|(copy, _, of)| of == caller && !too_big(copy));
        let new = || (State::copy_of(cluster), Instant::now(), caller.clone());
        let (copy, ..) = self.trash.get_or_insert_with(new);
        if let Err(error) = copy.learn_thrown(&rows) {
            tracing::error!(%error, "replicas agree on rows that are none");
        }
        next
    }
}

impl Past {
    /// What calls do to the trash; takes note of it.
    pub(super) fn changes(&self, calls: &[Call]) -> Vec<Change> {
        let change = |call: &Call| match call.op {
            Op::Purge { ino } => Some(Change::Ends(ino)),
            Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. } | Op::Restore { .. } => Some(Change::Any),
            _ => None,
        };
        let changes: Vec<_> = calls.iter().filter_map(change).collect();
        self.note_changes(&changes);
        changes
    }

    /// Takes note of what is done to the trash, before and after it is.
    pub(super) fn note_changes(&self, changes: &[Change]) {
        for change in changes {
            match (&mut self.copies.lock().trash, change) {
                (Some((copy, ..)), Change::Ends(ino)) => copy.forget_thrown(*ino),
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
        let mut next = self.past.copies.lock().learn_trash(self.cluster, &call.caller, answers.next());
        while let Some(cookie) = next.filter(|next| *next < last) {
            let more = self.ask(Batch::new(vec![fetch(ino, cookie)])).await?.pop();
            next = self.past.copies.lock().learn_trash(self.cluster, &call.caller, more);
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
