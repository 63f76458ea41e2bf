//! A mount that lies: it holds keys of its own, keeps no copy, and asks for whatever it likes, without end.

use base::{Decode as _, Encode as _, Time};
use meta::{Answer, Answers, Batch, By, Call, Denied, Ino, Log, Op, Reply};

use super::journal::{Journal, What, Who};
use super::program::{Place, call, make, write};
use crate::rng::Rng;

/// How it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Takes everything, works on, and gives nothing back.
    Ignores,
    /// Takes every directory, as many holders.
    Hoards,
    /// Says epochs that are over.
    OldEpochs,
    /// Leaves parts of its log out.
    Holes,
    /// Logs what its own copy should have refused, and what is not its own.
    Refused,
    /// Uses the numbers of others.
    Forges,
    /// Takes, gives back and begins anew, as fast as it can.
    Loops,
    /// All of that.
    Mixed,
}

const HABITS: [Habit; 8] = [
    Habit::Ignores,
    Habit::Hoards,
    Habit::OldEpochs,
    Habit::Holes,
    Habit::Refused,
    Habit::Forges,
    Habit::Loops,
    Habit::Mixed,
];

/// How many holders it is at a time at most.
const NUMBERS: u64 = 8;

/// One of the holders that it is.
#[derive(Clone, Copy, Debug, Default)]
struct Face {
    epoch: u64,
    parts: u64,
    before: u64,
}

/// A lying mount.
pub(crate) struct Hostile {
    pub(crate) who: Who,
    pub(crate) client: usize,
    habit: Habit,
    rng: Rng,
    faces: Vec<Face>,
    /// What was asked and not answered yet, by ticket: as which holder, and whether it was a part of a log.
    asked: Vec<(u64, usize, bool)>,
}

impl Hostile {
    pub(crate) fn new(who: Who, index: usize, client: usize, seed: u64) -> Hostile {
        Hostile {
            who,
            client,
            habit: HABITS[(seed as usize + index) % HABITS.len()],
            rng: Rng::new(seed ^ 0xbad0_0000 ^ index as u64),
            faces: vec![Face::default(); NUMBERS as usize + 1],
            asked: Vec::new(),
        }
    }

    /// How much it waits for.
    pub(crate) fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// Thinks of a request; `None`: of nothing just now.
    pub(crate) fn think(&mut self, journal: &mut Journal, root: Ino, places: &[Place]) -> Option<(usize, Batch)> {
        let habit = match self.habit {
            Habit::Mixed => HABITS[self.rng.below(HABITS.len() as u64 - 1) as usize],
            habit => habit,
        };
        let face = match habit {
            Habit::Ignores | Habit::OldEpochs | Habit::Holes | Habit::Refused => 1,
            Habit::Hoards | Habit::Loops | Habit::Mixed => self.rng.between(1, NUMBERS) as usize,
            // The numbers of the honest ones begin at 1.
            Habit::Forges => self.rng.between(1, 3) as usize,
        };
        let place = self.rng.pick(places);
        let known = self.faces[face];
        // Whoever does not know what it has begins anew.
        let forgot = known.epoch == 0 && known.before > 0;
        let fresh = self.rng.percent(if habit == Habit::Loops || forgot { 30 } else { 1 });
        let instead = if fresh { known.before.max(known.epoch) } else { 0 };
        // A part after the other, as an honest one sends them.
        let sending = self.asked.iter().any(|(_, asked, logged)| *asked == face && *logged);
        let target = match habit {
            Habit::Hoards => self.rng.pick(places).directory,
            _ if self.rng.percent(60) => root,
            _ => place.directory,
        };
        let shared = self.rng.percent(40);
        let hold = Op::Hold { holder: face as u64, ino: target, instead, shared };
        let by = |epoch, log| Some(By { holder: face as u64, epoch, log });
        let alone = |op: Op, by: Option<By>| Some((face, Batch { calls: vec![call(op)], by }));
        let roll = self.rng.below(100);
        if known.epoch == 0 && habit != Habit::Forges {
            return alone(hold, None);
        }
        match (habit, roll) {
            (Habit::Loops, 0..30) => alone(Op::Release, by(known.epoch, None)),
            (Habit::Loops, 30..60) => {
                let directories = places.iter().map(|place| place.directory).chain([root]).collect();
                alone(Op::Cede { directories }, by(known.epoch, None))
            }
            (Habit::Loops | Habit::Hoards, 60..90) => alone(hold, by(known.epoch, None).filter(|_| !fresh)),
            (Habit::Forges, 0..20) => alone(hold, by(self.rng.below(60), None)),
            (Habit::Forges, 20..60) => {
                let directories = places.iter().map(|place| place.directory).collect();
                let op = self.rng.pick(&[0, 1, 2]);
                let op = [Op::Renew, Op::Release, Op::Cede { directories }][op].clone();
                alone(op, by(self.rng.below(60), None))
            }
            (Habit::Ignores | Habit::Hoards | Habit::Mixed, _) if sending => alone(Op::Renew, by(known.epoch, None)),
            (_, 0..15) => alone(Op::Renew, by(known.epoch, None)),
            (Habit::Ignores | Habit::Hoards, 15..20) => alone(hold, by(known.epoch, None)),
            _ => {
                let epoch = match habit {
                    Habit::OldEpochs if known.before > 0 => known.before,
                    Habit::OldEpochs => known.epoch.saturating_sub(1),
                    Habit::Forges => self.rng.below(60),
                    _ => known.epoch,
                };
                let part = match habit {
                    Habit::Holes => known.parts + self.rng.below(3),
                    Habit::OldEpochs | Habit::Forges => self.rng.below(4),
                    _ => known.parts,
                };
                let calls = self.calls(habit, journal, root, place);
                let stamp = if self.rng.percent(20) { Time(self.rng.next()) } else { journal.now };
                let log = Log { part, stamps: vec![stamp; calls.len()] };
                Some((face, Batch { calls, by: by(epoch, Some(log)) }))
            }
        }
    }

    fn calls(&mut self, habit: Habit, journal: &mut Journal, root: Ino, place: Place) -> Vec<Call> {
        let (who, count) = (self.who, self.rng.between(1, 4));
        let mut one = |rng: &mut Rng| match (habit, rng.below(10)) {
            (Habit::Refused, 0) => Op::GetAttr { ino: place.file },
            (Habit::Refused, 1) => make(root, 1),
            (Habit::Refused, 2) => Op::Rmdir { parent: root, name: super::journal::name_of(u64::MAX) },
            (_, 0..6) => write(place.file, journal.begin(who, 0, What::Write(place.file), None, false)),
            _ => make(place.directory, journal.begin(who, 0, What::Make(place.directory), None, false)),
        };
        (0..count).map(|_| call(one(&mut self.rng))).collect()
    }

    /// A request was made.
    pub(crate) fn asked(&mut self, ticket: u64, face: usize, batch: &Batch) {
        self.asked.push((ticket, face, batch.by.as_ref().is_some_and(|by| by.log.is_some())));
    }

    /// It was answered.
    pub(crate) fn told(&mut self, ticket: u64, result: Option<Vec<u8>>) {
        let Some(index) = self.asked.iter().position(|(asked, ..)| *asked == ticket) else { return };
        let (_, face, logged) = self.asked.remove(index);
        let answers = result.and_then(|bytes| Answers::from_bytes(&bytes).ok()).unwrap_or_default();
        let face = &mut self.faces[face];
        let done = answers.iter().all(|answer| matches!(answer, Answer::Done(_)));
        match answers.first() {
            Some(Answer::Done(Reply::Held { epoch, .. })) if *epoch != face.epoch => {
                *face = Face { epoch: *epoch, parts: 0, before: face.epoch };
            }
            Some(Answer::Done(Reply::Taken { epoch })) => face.before = *epoch,
            Some(Answer::Denied(Denied::Fenced)) if face.epoch > 0 => {
                *face = Face { epoch: 0, parts: 0, before: face.epoch };
            }
            _ if logged && done => face.parts += 1,
            _ if logged => *face = Face { epoch: 0, parts: 0, before: face.epoch },
            _ => {}
        }
    }
}

/// A request's bytes, which nobody else asks for: the mark is a group that nobody is in.
pub(crate) fn marked(batch: &Batch, mark: u32) -> bytes::Bytes {
    let mut batch = batch.clone();
    if let Some(first) = batch.calls.first_mut() {
        first.caller.groups.push(mark);
    }
    batch.to_bytes().into()
}
