//! Files between the replicas' answer and a handle, and inodes that lost their last name.
//!
//! Names are always removed so that the inode is kept for this mount. It is let go in the background
//! once it is not open here and nothing that began before can still open it: an open may have been
//! answered before the removal and be heard of after it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meta::{Answer, Call, Caller, Denied, Ino, Op};

use super::Shared;
use super::error::{FsError, Result};
use super::file::OpenFile;
use crate::backend::{BlockStore, Metadata};

/// How many inodes are let go in one request at most.
const RELEASES_MAX: usize = 128;
/// How long to gather inodes for one request.
const GATHER: Duration = Duration::from_millis(50);

/// What is being opened, and which inodes without a name are not open here.
#[derive(Default)]
pub(super) struct Opening {
    /// Counts the opens and creations that began.
    next: u64,
    /// Those under way.
    begun: BTreeSet<u64>,
    /// Inodes to let go when nothing that began before is under way, unless they are open then; and
    /// for whom.
    lost: VecDeque<(u64, Ino, Caller, Instant)>,
    /// Inodes that were lost and not opened since, until they are let go: here, too, somebody may have found
    /// the name just before.
    lingering: HashSet<Ino>,
    /// Inodes that are let go: they can't be opened any more.
    releasing: HashSet<Ino>,
    /// Those of them that are gone, to be forgotten when nothing that began before is under way.
    released: VecDeque<(u64, Ino)>,
    /// Both, as far as replicas were not told yet, by when they are to be.
    queue: BTreeMap<(Instant, Ino), Caller>,
    /// A task works on the queue.
    draining: bool,
}

impl Opening {
    fn is_past(&self, moment: u64) -> bool {
        self.begun.first().is_none_or(|oldest| *oldest >= moment)
    }

    /// Takes note of an inode that lost its last name and is not open here, to be let go at that time or
    /// later.
    pub(super) fn lose(&mut self, ino: Ino, caller: &Caller, at: Instant) {
        self.lost.push_back((self.next, ino, caller.clone(), at));
    }

    /// What took the last names off these was lost, so they have them still. (One that has none is let go by
    /// replicas, after an hour.)
    pub(super) fn find(&mut self, found: impl Fn(Ino) -> bool) {
        self.lost.retain(|(_, ino, ..)| !found(*ino));
        self.lingering.retain(|ino| !found(*ino));
        self.releasing.retain(|ino| !found(*ino));
        self.released.retain(|(_, ino)| !found(*ino));
        self.queue.retain(|(_, ino), _| !found(*ino));
    }

    /// Whether an inode that is being opened lost its last name meanwhile.
    ///
    /// # Errors
    /// `Denied(Stale)` if it is let go.
    pub(super) fn is_lost(&self, ino: Ino) -> Result<bool> {
        if self.releasing.contains(&ino) {
            return Err(FsError::Denied(Denied::Stale));
        }
        Ok(self.lingering.contains(&ino) || self.lost.iter().any(|(_, lost, ..)| *lost == ino))
    }

    /// Whether one that is due is let go now. Not if it was opened since, or may be: whoever opens it first
    /// lets go of it, or it is due again when that one has ended.
    fn is_let_go(&mut self, ino: Ino, caller: &Caller, is_open: bool) -> bool {
        if self.lingering.remove(&ino) {
            match () {
                () if is_open => {}
                () if !self.begun.is_empty() => self.lose(ino, caller, Instant::now()),
                () => drop(self.releasing.insert(ino)),
            }
        }
        self.releasing.contains(&ino)
    }
}

/// How an orphan is let go whose last handle was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LettingGo {
    /// It is not: somebody opened it again.
    Opened,
    /// Once nothing that began before can still open it.
    Later,
    /// At once, by [`Shared::let_go`].
    Now,
}

/// Held from before replicas are asked to open or make a file until it is attached.
pub(super) struct Ticket<M: Metadata, B: BlockStore> {
    shared: Arc<Shared<M, B>>,
    number: u64,
}

impl<M: Metadata, B: BlockStore> Drop for Ticket<M, B> {
    fn drop(&mut self) {
        self.shared.opening.lock().begun.remove(&self.number);
        self.shared.settle_lost();
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// To be called before replicas are asked to open or make a file.
    pub(super) fn begin_open(self: &Arc<Self>) -> Ticket<M, B> {
        let mut opening = self.opening.lock();
        let number = opening.next;
        opening.next += 1;
        opening.begun.insert(number);
        Ticket { shared: self.clone(), number }
    }

    /// Lets go of what can't be opened here any more.
    pub(super) fn settle_lost(self: &Arc<Self>) {
        let opening = &mut *self.opening.lock();
        while let Some((moment, ino)) = opening.released.front().copied()
            && opening.is_past(moment)
        {
            opening.released.pop_front();
            opening.releasing.remove(&ino);
        }
        while opening.lost.front().is_some_and(|(moment, ..)| opening.is_past(*moment)) {
            let (_, ino, caller, at) = opening.lost.pop_front().expect("looked at just now");
            // The last handle of one that is open lets go of it.
            if !self.is_open(ino) {
                match at > Instant::now() {
                    true => opening.lingering.insert(ino),
                    false => opening.releasing.insert(ino),
                };
                opening.queue.insert((at, ino), caller);
            }
        }
        if !opening.queue.is_empty()
            && !opening.draining
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            opening.draining = true;
            runtime.spawn(self.clone().release_queued());
        }
    }

    /// Begins to let go of an orphan whose last handle was closed: from here on nobody opens it or gives it a
    /// name.
    pub(super) fn begin_letting_go(&self, ino: Ino, caller: &Caller) -> LettingGo {
        let mut opening = self.opening.lock();
        if self.is_open(ino) {
            return LettingGo::Opened;
        }
        opening.lingering.remove(&ino);
        if !opening.begun.is_empty() {
            opening.lose(ino, caller, Instant::now());
            return LettingGo::Later;
        }
        opening.releasing.insert(ino);
        LettingGo::Now
    }

    /// Lets go of an orphan, which was begun.
    ///
    /// # Errors
    /// Why replicas may still keep it; they do for an hour.
    pub(super) async fn let_go(self: &Arc<Self>, ino: Ino, caller: &Caller) -> Result<()> {
        let released = self.call_unit(caller, Op::ReleaseOrphan { ino }).await;
        self.note_released(&[ino]);
        released
    }

    /// The file, if it is open here, with one more handle until it is [`Shared::unpin`]ned.
    ///
    /// # Errors
    /// `Denied(NotFound)` if it has no name and is let go: what was written to it is, too.
    pub(super) fn pin(&self, ino: Ino) -> Result<Option<Arc<OpenFile>>> {
        let opening = self.opening.lock();
        let mut files = self.files.lock();
        let going = match files.get_mut(&ino) {
            Some((file, handles)) if *handles > 0 => {
                *handles += 1;
                return Ok(Some(file.clone()));
            }
            Some((file, _)) => file.state.lock().orphan,
            None => false,
        };
        if going || opening.is_lost(ino) != Ok(false) { Err(FsError::Denied(Denied::NotFound)) } else { Ok(None) }
    }

    pub(super) fn is_open(&self, ino: Ino) -> bool {
        self.files.lock().get(&ino).is_some_and(|(_, handles)| *handles > 0)
    }

    /// An open that began before this moment may have been answered while they were there.
    fn note_released(self: &Arc<Self>, inos: &[Ino]) {
        {
            let opening = &mut *self.opening.lock();
            let moment = opening.next;
            opening.released.extend(inos.iter().map(|ino| (moment, *ino)));
        }
        self.settle_lost();
    }

    /// Tells replicas what is let go, many inodes at a time, until there are no more.
    async fn release_queued(self: Arc<Self>) {
        loop {
            let first = self.opening.lock().queue.keys().next().map(|(at, _)| *at);
            if let Some(first) = first {
                tokio::time::sleep_until((first + GATHER).into()).await;
            }
            let batch: Vec<(Ino, Caller)> = {
                let opening = &mut *self.opening.lock();
                let now = Instant::now();
                let due = opening.queue.range(..=(now, Ino(u64::MAX))).take(RELEASES_MAX).map(|(key, _)| *key);
                let due: Vec<_> = due.collect();
                opening.draining = !opening.queue.is_empty();
                let mut batch = Vec::new();
                for key in due {
                    let Some(caller) = opening.queue.remove(&key) else { continue };
                    if opening.is_let_go(key.1, &caller, self.is_open(key.1)) {
                        batch.push((key.1, caller));
                    }
                }
                batch
            };
            if batch.is_empty() {
                // One that is due sooner may have come meanwhile.
                self.settle_lost();
                if self.opening.lock().draining {
                    continue;
                }
                return;
            }
            let (inos, calls): (Vec<Ino>, Vec<Call>) =
                batch.into_iter().map(|(ino, caller)| (ino, Call { caller, op: Op::ReleaseOrphan { ino } })).unzip();
            // Failing costs no more than an hour's worth of space.
            match self.calls(calls).await {
                Ok(answers) => {
                    let refused = answers.iter().filter(|answer| matches!(answer, Answer::Denied(_))).count();
                    tracing::debug!(inodes = inos.len(), refused, "let go of inodes without a name");
                }
                Err(error) => tracing::warn!(inodes = inos.len(), %error, "inodes without a name"),
            }
            self.note_released(&inos);
        }
    }
}
