//! What programs do on a machine: write, make names, look, sync, and work under locks.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use base::Time;
use bytes::Bytes;
use client::backend::{LOCK_PAUSE, Metadata as _};
use client::leased::Leased;
use meta::{
    Answer, Call, Caller, Commit, Content, Denied, Form, Ino, LOCK_END, LockHow, LockKind, LockMode, LockRequest,
    Locked, NewInode, Op, Reply,
};

use super::brake::Point;
use super::journal::{FILE, Journal, Told, What, Who, name_of};
use super::line::{Desk, Line, Relied};
use super::plan::Work;
use crate::rng::Rng;

/// A directory, a file in it that anybody writes to, and one that is only written to under its lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) directory: Ino,
    pub(crate) file: Ino,
    pub(crate) counter: Ino,
}

/// A program.
pub(crate) struct Program {
    pub(crate) who: Who,
    pub(crate) life: usize,
    /// Sets its locks apart from those of the machine's others.
    pub(crate) owner: u64,
    pub(crate) leased: Leased<Line>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) journal: Arc<Mutex<Journal>>,
    pub(crate) rng: Rng,
    pub(crate) places: Arc<Vec<Place>>,
    pub(crate) work: Work,
    pub(crate) rounds: Option<u32>,
    pub(crate) think: u64,
    pub(crate) until: Time,
    /// How often, in a hundred, it works in this machine's own directory.
    pub(crate) at_home: u64,
    /// When it often works in the first one, and not at all before.
    pub(crate) visits: Option<(Time, Time)>,
}

/// Lets time pass as it does on the machine: nobody sleeps for that.
async fn pause(time: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + time).await;
}

/// A call by root.
pub(crate) fn call(op: Op) -> Call {
    Call { caller: Caller::default(), op }
}

/// A file's new content: of this size.
pub(crate) fn write(ino: Ino, size: u64) -> Op {
    let content =
        Content { size, allocated: size, root: None, sealed: Bytes::from_static(b"recipe"), patches: Vec::new() };
    Op::Commit(Commit { ino, base: None, content, form: Form::Whole, mtime: None, atime: None, opened: true })
}

/// A new file with a deed's number as its name.
pub(crate) fn make(parent: Ino, deed: u64) -> Op {
    let new = NewInode { kind: FILE, mode: 0o777, umask: 0, rdev: 0, target: Bytes::new() };
    Op::Create { parent, name: name_of(deed), new, exclusive: true }
}

/// A lock on all of a file, or the end of one.
pub(crate) fn lock(ino: Ino, owner: u64, mode: LockMode, how: LockHow) -> Op {
    Op::Lock(LockRequest { ino, kind: LockKind::Posix, owner, start: 0, end: LOCK_END, mode, pid: 1, how })
}

impl Program {
    fn journal<R>(&self, note: impl FnOnce(&mut Journal) -> R) -> R {
        note(&mut self.journal.lock().expect("nobody panics with it"))
    }

    fn now(&self) -> Time {
        self.journal(|journal| journal.now)
    }

    /// Works until it is time to end, and then until all is sent.
    pub(crate) async fn run(mut self) {
        let mut left = self.rounds;
        while self.now() < self.until && left != Some(0) {
            let think = self.rng.waiting(self.think);
            pause(Duration::from_nanos(think)).await;
            self.one().await;
            left = left.map(|left| left - 1);
        }
        // Whoever was cut off tries until it can be said what became of everything.
        for _ in 0..20 {
            if self.sync().await {
                return;
            }
            pause(Duration::from_secs(1)).await;
        }
    }

    async fn one(&mut self) {
        let place = self.place();
        match (self.work, self.rng.below(100)) {
            (Work::OneLock, _) => self.section(place).await,
            (Work::OneDirectory, _) | (Work::Mixed, 0..20) => {
                self.do_deed(What::Make(place.directory), None).await;
            }
            (Work::Mixed, 20..50) => {
                self.do_deed(What::Write(place.file), None).await;
            }
            (Work::Mixed, 50..72) => {
                self.look(place.file).await;
            }
            (Work::Mixed, 72..80) => self.look_up(place.directory).await,
            (Work::Mixed, 80..90) => self.section(place).await,
            (Work::Mixed, _) => {
                self.sync().await;
            }
        }
    }

    fn place(&mut self) -> Place {
        let (now, places) = (self.now(), self.places.clone());
        let home = places[self.who % places.len()];
        let other = if self.rng.percent(self.at_home) { home } else { self.rng.pick(&places) };
        match self.visits {
            Some((from, _)) if self.at_home > 0 && self.who > 0 && now < from => home,
            Some((_, to)) if self.at_home > 0 && now < to && self.rng.percent(15) => places[0],
            _ => other,
        }
    }

    /// One call; `None` if nobody knows what became of it.
    async fn call(&self, op: Op) -> Option<Result<Reply, Denied>> {
        self.desk.brake.pass(Point::BeforeOp).await;
        let answers = self.leased.calls(vec![call(op)]).await;
        answers.ok()?.pop().map(Answer::into_result)
    }

    /// Does something that changes something. Gives whether it was told that it is done.
    async fn do_deed(&self, what: What, under: Option<u64>) -> bool {
        let deed = self.journal(|journal| journal.begin(self.who, self.life, what, under, true));
        let op = match what {
            What::Write(file) => write(file, deed),
            What::Make(directory) => make(directory, deed),
        };
        let told = match self.call(op).await {
            Some(Ok(_)) => Told::Done,
            Some(Err(_)) => Told::Refused,
            None => Told::Unknown,
        };
        self.journal(|journal| journal.end(deed, told));
        self.desk.brake.pass(Point::AfterOp).await;
        told == Told::Done
    }

    /// The size of a file.
    async fn look(&self, file: Ino) -> Option<u64> {
        let begun = self.now();
        let Some(Ok(Reply::Attr(attr))) = self.call(Op::GetAttr { ino: file }).await else { return None };
        self.journal(|journal| journal.looked(self.who, self.life, What::Write(file), begun, attr.size));
        Some(attr.size)
    }

    async fn look_up(&mut self, directory: Ino) {
        let (begun, pick) = (self.now(), self.rng.next());
        let Some(deed) = self.journal(|journal| journal.some_name(directory, pick)) else { return };
        let there = match self.call(Op::Lookup { parent: directory, name: name_of(deed) }).await {
            Some(Ok(_)) => 1,
            Some(Err(Denied::NotFound)) => 0,
            _ => return,
        };
        self.journal(|journal| journal.looked(self.who, self.life, What::Make(directory), begun, deed << 1 | there));
    }

    /// Waits until all is sent. Gives whether it is.
    async fn sync(&self) -> bool {
        self.desk.brake.pass(Point::BeforeSync).await;
        let begun = self.now();
        let well = self.leased.sync().await.is_ok();
        self.journal(|journal| journal.synced(self.who, self.life, begun, well));
        well
    }

    /// Counts on under a lock: sees what is there, and writes what follows on it.
    async fn section(&mut self, place: Place) {
        let (file, begun) = (place.counter, self.now());
        if !self.lock(file).await {
            return self.lose(file).await;
        }
        self.relied(|relied| relied.begin(file, self.owner));
        self.journal(|journal| journal.waited(self.who, begun, true));
        self.desk.brake.pass(Point::Locked).await;
        if let Some(seen) = self.look(file).await {
            let work = self.rng.below(20_000_000);
            pause(Duration::from_nanos(work)).await;
            let turn = self.relied(|relied| relied.turn(file));
            let _turn = turn.lock().await;
            if self.relied(|relied| relied.holds(file, self.owner)) {
                self.do_deed(What::Write(file), Some(seen)).await;
            }
        }
        self.unlock(file).await;
        self.relied(|relied| relied.end(file, self.owner));
    }

    fn relied<R>(&self, what: impl FnOnce(&mut Relied) -> R) -> R {
        what(&mut self.desk.relied.lock().expect("nobody panics with it"))
    }

    /// Locks on a file are lost: nothing more is done here that relies on them.
    async fn lose(&self, file: Ino) {
        let turn = self.relied(|relied| relied.turn(file));
        let _turn = turn.lock().await;
        self.relied(|relied| relied.lose(file));
        self.leased.forget_lost(file);
    }

    /// Gives a lock back, unless it is lost.
    async fn unlock(&self, file: Ino) {
        let unlock = lock(file, self.owner, LockMode::Unlock, LockHow::Try);
        for _ in 0..20 {
            if !self.relied(|relied| relied.holds(file, self.owner)) {
                return;
            }
            match self.call(unlock.clone()).await {
                Some(Ok(_)) => return,
                Some(Err(_)) => return self.lose(file).await,
                None => pause(Duration::from_secs(1)).await,
            }
        }
    }

    /// Waits for a lock as `client::fs` does. Gives whether it was granted.
    async fn lock(&self, file: Ino) -> bool {
        let mut between = LOCK_PAUSE.0;
        loop {
            match self.call(lock(file, self.owner, LockMode::Exclusive, LockHow::Wait)).await {
                Some(Ok(Reply::Locked(Locked::Granted))) => return true,
                Some(Ok(Reply::Locked(Locked::Waiting { .. }))) => {}
                _ => return false,
            }
            pause(between).await;
            between = (between * 2).min(LOCK_PAUSE.1);
        }
    }
}
