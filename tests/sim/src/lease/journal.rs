//! What programs did and were told, and what became of it in the one history: the judge of leases.
//!
//! Everything that changes something bears a number of its own, so that it is known wherever it turns up.
//! Nothing here relies on what the state says of zones and holders, but for [`Journal::judge_belief`].

mod verdict;

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Decode as _, PublicKey, Time};
use meta::{Answer, Batch, By, Call, Ino, Kind, Op, Reply, SEAL_LEN, SealedName, State};

use crate::check::{Invariant, Violation};
use crate::machine::Entry;

/// Whose something is: a machine, or somebody who lies.
pub(crate) type Who = usize;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// This file's content: of the deed's number as its size.
    Write(Ino),
    /// A name in this directory: the deed's number.
    Make(Ino),
}

/// What a program was told of its deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing yet.
    Nothing,
    /// That it is done.
    Done,
    /// That it is not.
    Refused,
    /// That nobody knows.
    Unknown,
}

/// Something that changes something.
#[derive(Clone, Debug)]
pub(crate) struct Deed {
    pub(crate) who: Who,
    life: usize,
    what: What,
    begun: Time,
    told: (Told, Time),
    /// It was done under a lock, after the file was seen to hold this.
    under: Option<u64>,
    honest: bool,
}

/// What a program saw.
#[derive(Clone, Debug)]
struct Look {
    who: Who,
    life: usize,
    what: What,
    /// The size of a file, or whether the name is there.
    seen: u64,
    begun: Time,
    ended: Time,
}

/// A program waited until all was sent.
#[derive(Clone, Debug)]
struct Sync {
    who: Who,
    life: usize,
    begun: Time,
    ended: Time,
    well: bool,
}

/// What became of a deed.
#[derive(Clone, Copy, Debug)]
struct Effect {
    place: usize,
    /// The epoch of the log that it was in.
    epoch: Option<u64>,
}

/// Somebody used or changed something in a directory, as replicas see it.
#[derive(Clone, Copy, Debug)]
struct Touch {
    who: Who,
    place: usize,
    at: Time,
}

/// Everything that is known of a run.
pub(crate) struct Journal {
    pub(crate) now: Time,
    /// The state that follows from the history.
    pub(crate) model: State,
    places: usize,
    /// So many do not lie: the first ones.
    pub(crate) honest: usize,
    directories: BTreeMap<Ino, Vec<Touch>>,
    homes: BTreeMap<Ino, Ino>,
    root: Ino,
    deeds: Vec<Deed>,
    effects: BTreeMap<u64, Effect>,
    looks: Vec<Look>,
    syncs: Vec<Sync>,
    /// Which epochs were granted on what, and when last.
    grants: BTreeMap<(PublicKey, u64, u64, Ino), usize>,
    /// The epoch that each holder has.
    current: BTreeMap<(PublicKey, u64), u64>,
    /// How many parts of each holder's log were applied in an epoch.
    parts: BTreeMap<(PublicKey, u64, u64), u64>,
    /// When epochs began.
    epochs: BTreeMap<u64, Time>,
    /// Who made each request.
    marks: Vec<Who>,
    crashed: BTreeMap<(Who, usize), Time>,
    /// How agreed time is off, least and most, ns.
    pub(crate) off: Option<(i64, i64)>,
    /// Leases' ends that replicas have not seen yet: agreed, and when the lease was last renewed, truly.
    terms: BTreeMap<(PublicKey, u64), (Time, Time)>,
    /// By how much a lease was shorter than it is by agreed time, at most.
    pub(crate) shortened: Duration,
    /// How long operations took; or if that is all that programs are after, locks.
    pub(crate) waits: Vec<u64>,
    pub(crate) times_locks: bool,
    /// The same, all of a program's together.
    pub(crate) totals: BTreeMap<Who, u64>,
    pub(crate) wait_max: Option<u64>,
    /// Whether it is judged what processes may remember.
    pub(crate) judges_looks: bool,
    /// Looks that were older than they may be, where that is not judged.
    pub(crate) stale_looks: u64,
    pub(crate) violation: Option<Violation>,
}

/// The name of a deed that makes one.
pub(crate) fn name_of(deed: u64) -> SealedName {
    let mut bytes = format!("m{deed}").into_bytes();
    bytes.extend_from_slice(&[0xee; SEAL_LEN]);
    SealedName::new(bytes).expect("a name's length")
}

fn deed_of(name: &SealedName) -> Option<u64> {
    let bytes = name.as_bytes().strip_prefix(b"m")?;
    core::str::from_utf8(bytes.get(..bytes.len() - SEAL_LEN)?).ok()?.parse().ok()
}

impl Journal {
    pub(crate) fn new(model: State, now: Time) -> Journal {
        Journal {
            now,
            model,
            places: 0,
            honest: 0,
            directories: BTreeMap::new(),
            homes: BTreeMap::new(),
            root: Ino(0),
            deeds: Vec::new(),
            effects: BTreeMap::new(),
            looks: Vec::new(),
            syncs: Vec::new(),
            grants: BTreeMap::new(),
            current: BTreeMap::new(),
            parts: BTreeMap::new(),
            epochs: BTreeMap::new(),
            marks: Vec::new(),
            crashed: BTreeMap::new(),
            off: None,
            terms: BTreeMap::new(),
            shortened: Duration::ZERO,
            waits: Vec::new(),
            times_locks: false,
            totals: BTreeMap::new(),
            wait_max: None,
            judges_looks: true,
            stale_looks: 0,
            violation: None,
        }
    }

    pub(crate) fn found(&mut self, root: Ino, directories: &[(Ino, Vec<Ino>)]) {
        self.root = root;
        for (directory, files) in directories {
            self.directories.insert(*directory, Vec::new());
            self.homes.extend(files.iter().map(|file| (*file, *directory)));
        }
    }

    fn blame(&mut self, invariant: Invariant, what: String) {
        let first = || Violation { invariant, what };
        self.violation.get_or_insert_with(first);
    }

    /// A request is about to be made: gives the mark by which it is known.
    pub(crate) fn mark(&mut self, who: Who) -> u32 {
        self.marks.push(who);
        MARK + self.marks.len() as u32 - 1
    }

    /// A program begins to do something; gives the deed's number.
    pub(crate) fn begin(&mut self, who: Who, life: usize, what: What, under: Option<u64>, honest: bool) -> u64 {
        let told = (Told::Nothing, self.now);
        self.deeds.push(Deed { who, life, what, begun: self.now, told, under, honest });
        self.deeds.len() as u64
    }

    /// It was told what became of it.
    pub(crate) fn end(&mut self, deed: u64, told: Told) {
        let now = self.now;
        let done = &mut self.deeds[deed as usize - 1];
        done.told = (told, now);
        let (who, begun) = (done.who, done.begun);
        self.waited(who, begun, false);
    }

    /// Somebody waited since then for an answer, or for a lock.
    pub(crate) fn waited(&mut self, who: Who, since: Time, lock: bool) {
        if lock != self.times_locks {
            return;
        }
        let waited = self.now.0 - since.0;
        self.waits.push(waited);
        *self.totals.entry(who).or_default() += waited;
        if self.wait_max.is_some_and(|most| waited > most) {
            self.blame(Invariant::Leases, format!("an operation took {:.3} s", waited as f64 / 1e9));
        }
    }

    /// A program saw something that it began to look for then.
    pub(crate) fn looked(&mut self, who: Who, life: usize, what: What, begun: Time, seen: u64) {
        self.looks.push(Look { who, life, what, seen, begun, ended: self.now });
        self.waited(who, begun, false);
    }

    /// A program waited, from then on, until all was sent; or was told that it is not, and will not be.
    pub(crate) fn synced(&mut self, who: Who, life: usize, begun: Time, well: bool) {
        self.syncs.push(Sync { who, life, begun, ended: self.now, well });
    }

    pub(crate) fn crashed(&mut self, who: Who, life: usize) {
        self.crashed.insert((who, life), self.now);
    }

    /// The latest name made in a directory, for looking it up.
    pub(crate) fn some_name(&self, directory: Ino, pick: u64) -> Option<u64> {
        let made: Vec<u64> =
            (1..).zip(&self.deeds).filter(|(_, deed)| deed.what == What::Make(directory)).map(|(n, _)| n).collect();
        (!made.is_empty()).then(|| made[made.len().saturating_sub(1 + pick as usize % 8)])
    }

    /// The next operation of the history was executed, for the first time, now.
    pub(crate) fn applied(&mut self, entry: &Entry) {
        let place = self.places;
        self.places += 1;
        let off = entry.at.0 as i64 - self.now.0 as i64;
        self.off = Some(self.off.map_or((off, off), |(least, most)| (least.min(off), most.max(off))));
        self.note_terms(entry.at);
        let Ok(batch) = Batch::from_bytes(&entry.op) else { return };
        let answers = self.model.apply_batch(entry.at, &entry.who, &batch);
        let who = batch.calls.first().and_then(|call| self.who_of(call));
        if let (Some(by), Some(Answer::Done(_))) = (&batch.by, answers.first()) {
            self.terms.insert((entry.who, by.holder), (entry.at.after(meta::LEASE_TERM), self.now));
        }
        self.judge_part(&entry.who, &batch, &answers);
        for (call, answer) in batch.calls.iter().zip(&answers) {
            let Answer::Done(reply) = answer else { continue };
            self.judge_epoch(&entry.who, batch.by.as_ref());
            if let (Op::Hold { holder, .. } | Op::Enroll { holder, .. }, Reply::Held { epoch, .. }) = (&call.op, reply)
            {
                self.current.insert((entry.who, *holder), *epoch);
            }
            if let (Op::Hold { holder, ino, .. }, Reply::Held { epoch, .. }) = (&call.op, reply) {
                self.grants.insert((entry.who, *holder, *epoch, *ino), place);
                self.epochs.entry(*epoch).or_insert(self.now);
            }
            let Some(who) = who else { continue };
            self.judge_call(who, &entry.who, batch.by.as_ref(), call, reply, place);
        }
    }

    /// Nothing is done in the name of a holder by an epoch that it does not have any more, or never had.
    fn judge_epoch(&mut self, key: &PublicKey, by: Option<&By>) {
        let Some(by) = by else { return };
        if self.current.get(&(*key, by.holder)) != Some(&by.epoch) {
            let what =
                format!("a stale write was accepted: of holder {} by epoch {}, which is over", by.holder, by.epoch);
            self.blame(Invariant::Leases, what);
        }
    }

    /// A part of a log is applied after the one before it, once, and up to what is refused.
    fn judge_part(&mut self, key: &PublicKey, batch: &Batch, answers: &[Answer]) {
        let Some((by, log)) = batch.by.as_ref().and_then(|by| Some((by, by.log.as_ref()?))) else { return };
        let is_done = |answer: &Answer| matches!(answer, Answer::Done(_));
        if !answers.iter().any(is_done) {
            return;
        }
        let expected = self.parts.entry((*key, by.holder, by.epoch)).or_default();
        let in_order = log.part == *expected;
        *expected = log.part + 1;
        if !in_order {
            self.blame(Invariant::Leases, format!("part {} of a log was applied out of its order", log.part));
        }
        if answers.iter().skip_while(|answer| is_done(answer)).any(is_done) {
            self.blame(Invariant::Leases, "a log was applied past what was refused of it".to_owned());
        }
    }

    /// Leases that are over by agreed time now: how long were they truly?
    fn note_terms(&mut self, at: Time) {
        let now = self.now;
        let mut shortened = self.shortened;
        self.terms.retain(|_, (until, since)| {
            let over = *until < at;
            if over {
                shortened = shortened.max(meta::LEASE_TERM.saturating_sub(now.since(*since)));
            }
            !over
        });
        self.shortened = shortened;
    }

    fn who_of(&self, call: &Call) -> Option<Who> {
        let mark = call.caller.groups.iter().find(|group| **group >= MARK)?;
        self.marks.get((mark - MARK) as usize).copied()
    }

    fn home_of(&self, op: &Op) -> Option<Ino> {
        let ino = match op {
            Op::Create { parent, .. } | Op::Lookup { parent, .. } => *parent,
            Op::GetAttr { ino } => *ino,
            Op::Commit(commit) => commit.ino,
            Op::Lock(request) => request.ino,
            _ => return None,
        };
        if self.directories.contains_key(&ino) { Some(ino) } else { self.homes.get(&ino).copied() }
    }

    /// A call was done at this place: whoever did it may have, and nobody else was in between.
    fn judge_call(&mut self, who: Who, key: &PublicKey, by: Option<&By>, call: &Call, reply: &Reply, place: usize) {
        let Some(home) = self.home_of(&call.op) else { return };
        let number = match (&call.op, reply) {
            (Op::Commit(commit), _) => Some(commit.content.size),
            (Op::Create { name, .. }, Reply::Created { fresh: true, .. }) => deed_of(name),
            _ => None,
        };
        let logged = by.filter(|by| by.log.is_some());
        let touches = self.directories.get(&home).expect("it is one of them");
        let others = || touches.iter().rev().filter(|touch| touch.who != who);
        let mut wrong = None;
        if let Some(by) = logged {
            let grant = |ino| self.grants.get(&(*key, by.holder, by.epoch, ino)).copied();
            match grant(home).max(grant(self.root)) {
                None => wrong = Some("without ever having had a lease on it".to_owned()),
                // Whoever lies may use what has become its own since, without having asked for the rows.
                Some(since) if who < self.honest && others().any(|touch| touch.place > since) => {
                    wrong = Some("though somebody else used it since the lease was granted".to_owned());
                }
                Some(_) => {}
            }
            // Between doing it there and telling replicas nobody else may have used the directory.
            let done = number.and_then(|number| self.deeds.get((number as usize).wrapping_sub(1)));
            if let Some(Deed { told: (Told::Done, at), .. }) = done
                && others().any(|touch| touch.at > *at)
            {
                wrong = Some("though somebody else used it since that was done".to_owned());
            }
        }
        let at = self.now;
        self.directories.get_mut(&home).expect("it is one of them").push(Touch { who, place, at });
        if let Some(wrong) = wrong {
            self.blame(
                Invariant::Leases,
                format!("a stale write was accepted: {who} changed {home:?} by its log, {wrong}"),
            );
        }
        let Some(number) = number else { return };
        let known = self.deeds.get((number as usize).wrapping_sub(1)).is_some_and(|deed| deed.who == who);
        if !known {
            self.blame(Invariant::Authority, format!("{who} changed {home:?} by deed {number}, which is not its own"));
        }
        let effect = Effect { place, epoch: logged.map(|by| by.epoch) };
        if self.effects.insert(number, effect).is_some() {
            self.blame(Invariant::Once, format!("deed {number} was done twice"));
        }
    }

    /// Who would use a lease on this directory now: nobody but the one whom replicas say holds it, or those of
    /// whom they say that they share it.
    pub(crate) fn judge_belief(
        &mut self,
        directory: Ino,
        believers: &[(Who, (PublicKey, u64))],
        sharers: &[(Who, (PublicKey, u64))],
    ) {
        if let [(one, _), (other, _), ..] = believers {
            return self
                .blame(Invariant::Leases, format!("{one} and {other} both believe that they hold {directory:?}"));
        }
        let alone = believers.iter().map(|(who, me)| (who, self.model.is_held_by(directory, me)));
        let shared = sharers.iter().map(|(who, me)| (who, self.model.is_read_by(directory, me)));
        let wrong = alone.chain(shared).find(|(_, right)| !right).map(|(who, _)| *who);
        if let Some(who) = wrong {
            self.blame(
                Invariant::Leases,
                format!("{who} believes that it has a lease on {directory:?}, replicas know better"),
            );
        }
    }

    fn numbered(&self) -> impl Iterator<Item = (u64, &Deed)> {
        (1..).zip(&self.deeds)
    }

    /// How many deeds there were, and how many had an effect.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.deeds.len() as u64, self.effects.len() as u64)
    }

    /// How many deeds programs were told were done, and are lost.
    pub(crate) fn lost(&self) -> u64 {
        let lost = |(number, deed): &(u64, &Deed)| {
            deed.honest && deed.told.0 == Told::Done && !self.effects.contains_key(number)
        };
        self.numbered().filter(lost).count() as u64
    }
}

/// The first group that is none, but a request's mark.
const MARK: u32 = 1 << 20;

/// The kind of the inodes that programs write to.
pub(crate) const FILE: Kind = Kind::File;
