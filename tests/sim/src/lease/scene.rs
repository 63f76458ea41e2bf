//! A run: a simulated cluster, machines with mounts, what happens to them, and the judge.

mod others;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use base::{Decode as _, PublicKey, Time};
use client::backend::OUTSTANDING_MAX;
use meta::{Answers, Batch, Chunking, Ino, NewInode, Op, Redundancy, Reply, VolumeSpec};

use super::Figures;
use super::brake::Point;
use super::hostile::{Hostile, marked};
use super::journal::{FILE, Journal};
use super::line::Ask;
use super::machine::Machine;
use super::plan::{Act, LeasePlan, Work};
use super::program::{Place, Program, call};
use crate::check::{Invariant, Violation};
use crate::clock::START;
use crate::keys::known_principals;
use crate::machine::{Namespace, Service};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::world::World;

const S: u64 = 1_000_000_000;
/// How often lying mounts get the word, ns.
const HOSTILE_TICK: u64 = 300_000_000;
/// How long programs may take to end.
const END_WITHIN: u64 = 240 * S;

/// What was asked for whom.
enum Asker {
    Machine(usize, usize, Ask),
    Hostile(usize),
}

/// Everything.
pub(crate) struct Scene {
    plan: LeasePlan,
    world: World<Namespace>,
    rng: Rng,
    machines: Vec<Machine>,
    hostile: Vec<Hostile>,
    journal: Arc<Mutex<Journal>>,
    /// How much of the history was looked at.
    read: usize,
    root: Ino,
    places: Arc<Vec<Place>>,
    /// Requests under way, by session and ticket; and those that wait until there are fewer.
    asked: BTreeMap<(usize, u64), Asker>,
    waiting: BTreeMap<usize, VecDeque<(usize, Ask)>>,
    /// What happens when a process stops at a point.
    stops: BTreeMap<usize, VecDeque<Act>>,
    /// When processes come back.
    back: BTreeSet<(Time, usize)>,
    /// Who was asked to give something back, as each replica said last.
    recalls: Vec<(Vec<(PublicKey, u64)>, Time)>,
    figures: Figures,
    /// What happens, in order.
    acts: VecDeque<(Time, usize, Act)>,
}

/// Runs a plan to its end; gives what was wrong, the hash of the world, and figures.
pub(crate) fn play(world: Plan, plan: LeasePlan, aloud: bool) -> (Option<Violation>, World<Namespace>, Figures) {
    let mut scene = Scene::new(world, plan, aloud);
    scene.found();
    scene.act();
    let journal = scene.journal.clone();
    let mut journal = journal.lock().expect("nobody panics with it");
    journal.finish();
    scene.figures.sum_up(&journal, &scene.plan);
    if let (None, Some(unfair)) = (&journal.violation, scene.figures.is_unfair(&scene.plan)) {
        journal.violation = Some(Violation { invariant: Invariant::Leases, what: unfair });
    }
    scene.world.conclude();
    let violation = scene.world.checks.violation.take().or(journal.violation.take());
    let Scene { world, figures, .. } = scene;
    (violation, world, figures)
}

impl Scene {
    fn new(world: Plan, plan: LeasePlan, aloud: bool) -> Scene {
        let mut rng = Rng::new(world.seed ^ 0x5ce_4e11);
        let machines: Vec<_> = plan.machines.iter().map(|machine| Machine::new(*machine, START)).collect();
        let mut journal = Journal::new(<Namespace as Service>::genesis(&known_principals()), START);
        journal.wait_max = plan.wait_max;
        journal.honest = machines.len();
        journal.judges_looks = !plan.beyond;
        journal.times_locks = plan.work == Work::OneLock;
        let (count, seed) = plan.hostile.unwrap_or_default();
        let first = 1 + machines.iter().map(|machine| machine.plan.lives).sum::<usize>();
        let hostile =
            (0..count).map(|index| Hostile::new(machines.len() + index, index, first + index, seed)).collect();
        let mut acts: Vec<_> = plan.acts.iter().map(|(at, who, act)| (Time(START.0 + at), *who, *act)).collect();
        acts.sort_by_key(|(at, ..)| *at);
        let nodes = world.n;
        let mut world: World<Namespace> = World::new(world, aloud);
        world.open = true;
        world.nodes[0].clock.stands = plan.held;
        Scene {
            plan,
            world,
            rng: rng.fork(),
            machines,
            hostile,
            journal: Arc::new(Mutex::new(journal)),
            read: 0,
            root: Ino(0),
            places: Arc::default(),
            asked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            stops: BTreeMap::new(),
            back: BTreeSet::new(),
            recalls: vec![(Vec::new(), START); nodes],
            figures: Figures::default(),
            acts: acts.into(),
        }
    }

    fn journal<R>(&self, note: impl FnOnce(&mut Journal) -> R) -> R {
        note(&mut self.journal.lock().expect("nobody panics with it"))
    }

    fn is_violated(&self) -> bool {
        self.world.checks.violation.is_some() || self.journal(|journal| journal.violation.is_some())
    }

    /// Makes the volume, before anybody mounts it.
    fn found(&mut self) {
        let spec = VolumeSpec {
            name: "home".into(),
            quota_bytes: 0,
            quota_inodes: 0,
            redundancy: Redundancy::Replicate(3),
            chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
            secrets: [].into(),
            root_mode: 0o777,
            trash: 30,
        };
        let Some(Reply::Volume(volume)) = self.order(Op::VolumeCreate(spec)) else { return };
        self.root = volume.root;
        let mut places = Vec::new();
        for index in 0..self.plan.directories as u64 {
            let mut make = |parent, number, kind| {
                let new = NewInode { kind, mode: 0o777, umask: 0, rdev: 0, target: bytes::Bytes::new() };
                let name = super::journal::name_of(u64::MAX - number);
                match self.order(Op::Create { parent, name, new, exclusive: true }) {
                    Some(Reply::Created { attr, .. }) => attr.ino,
                    _ => Ino(0),
                }
            };
            let directory = make(volume.root, index, meta::Kind::Directory);
            let (file, counter) = (make(directory, 100, FILE), make(directory, 101, FILE));
            places.push(Place { directory, file, counter });
        }
        let tree: Vec<_> = places.iter().map(|place| (place.directory, vec![place.file, place.counter])).collect();
        self.journal(|journal| journal.found(volume.root, &tree));
        self.places = Arc::new(places);
    }

    /// One operation of the founder's.
    fn order(&mut self, op: Op) -> Option<Reply> {
        let mark = self.journal(|journal| journal.mark(usize::MAX));
        let ticket = self.world.ask(0, marked(&Batch::new(vec![call(op)]), mark));
        while !self.is_violated() {
            self.world.turn();
            self.read_tape();
            if let Some(index) = self.world.told.iter().position(|told| (told.0, told.1) == (0, ticket)) {
                let (_, _, result) = self.world.told.remove(index);
                return Answers::from_bytes(&result?).ok()?.pop()?.into_result().ok();
            }
        }
        None
    }

    /// Hands what was executed for the first time to the judge.
    fn read_tape(&mut self) {
        let tape = self.world.tape.clone();
        let tape = tape.borrow();
        let now = self.world.now;
        let mut journal = self.journal.lock().expect("nobody panics with it");
        journal.now = now;
        for entry in &tape.entries[self.read..] {
            journal.applied(entry);
        }
        self.read = tape.entries.len();
    }

    /// Everything that happens once there is a volume.
    fn act(&mut self) {
        if self.is_violated() {
            return;
        }
        (0..self.machines.len()).for_each(|machine| self.start(machine));
        let mut now = self.world.now;
        let (until, mut hostile_at) = (Time(START.0 + self.plan.until), now);
        while !self.is_violated() && !self.world.over {
            now = Time(now.0 + self.plan.quantum);
            while self.world.next_at() <= now && !self.is_violated() && !self.world.over {
                self.world.turn();
                self.read_tape();
                self.hand_out();
            }
            self.world.now = self.world.now.max(now);
            self.journal(|journal| journal.now = now);
            self.happen(now);
            (0..self.machines.len()).for_each(|machine| self.drive(machine));
            self.believe();
            self.recall(now);
            if now >= hostile_at && now < until {
                self.lie();
                hostile_at = Time(now.0 + HOSTILE_TICK);
            }
            let early = self.plan.rounds.is_some() && self.machines.iter().all(Machine::is_idle);
            if self.world.open && (now > until || early) {
                self.wind_up(now, until);
            }
        }
    }

    /// Programs end by themselves; then mounts give everything back.
    fn wind_up(&mut self, now: Time, until: Time) {
        let back = self.back.is_empty() && self.machines.iter().all(|machine| machine.frozen.is_none());
        let ended = back && self.machines.iter().all(Machine::is_idle);
        if ended && self.machines.iter().all(|machine| machine.closing || machine.process.is_none()) {
            self.machines.iter_mut().for_each(Machine::kill);
            self.hostile.clear();
            let gone = self.machines.iter().map(|machine| (machine.plan.client, machine.plan.lives));
            for client in gone.flat_map(|(first, count)| first..first + count).collect::<Vec<_>>() {
                self.world.clients[client].gone = true;
            }
            self.world.open = false;
        } else if ended {
            for machine in self.machines.iter_mut().filter(|machine| machine.process.is_some()) {
                machine.closing = true;
                let leased = machine.process.as_ref().expect("just seen").leased.clone();
                machine.spawn(async move { client::backend::Metadata::close(&leased).await });
            }
        } else if now > until && now.since(until).as_nanos() as u64 > END_WITHIN {
            let idle: Vec<_> = self.machines.iter().map(Machine::is_idle).collect();
            self.world.checks.stuck(now, format!("programs have not ended; those of machines that have: {idle:?}"));
        }
    }

    /// Starts a machine's process and its programs.
    fn start(&mut self, index: usize) {
        let now = self.world.now;
        let machine = &mut self.machines[index];
        machine.tick(now, false);
        machine.start(self.root);
        self.figures.starts += 1;
        for owner in 0..machine.plan.programs as u64 {
            let process = machine.process.as_ref().expect("just started");
            let program = Program {
                who: index,
                life: machine.life,
                owner: owner + 1,
                leased: process.leased.clone(),
                desk: process.desk.clone(),
                journal: self.journal.clone(),
                rng: self.rng.fork(),
                places: self.places.clone(),
                work: self.plan.work,
                rounds: self.plan.rounds,
                think: self.plan.think,
                until: Time(START.0 + self.plan.until),
                at_home: self.plan.at_home,
                visits: self.plan.visits.map(|(from, to)| (Time(START.0 + from), Time(START.0 + to))),
            };
            machine.spawn(program.run());
        }
    }

    /// Gives a process the word, and takes what it wants sent.
    fn drive(&mut self, index: usize) {
        let (now, stands) = (self.world.now, self.plan.stands);
        let machine = &mut self.machines[index];
        machine.tick(now, stands);
        machine.drive();
        let Some(process) = &machine.process else { return };
        let (stopped, life) = (process.desk.brake.has_stopped(), machine.life);
        let asks: Vec<Ask> = process.desk.asks.lock().expect("nobody panics with it").drain(..).collect();
        let client = machine.client();
        self.waiting.entry(client).or_default().extend(asks.into_iter().map(|ask| (life, ask)));
        self.send(index, client);
        if stopped {
            self.stopped(index);
        }
    }

    /// Sends what waits, as far as a session may.
    fn send(&mut self, index: usize, client: usize) {
        while let Some((life, ask)) = self.waiting.get_mut(&client).and_then(VecDeque::pop_front) {
            if ask.answer.is_closed() {
                continue;
            }
            let under_way = self.asked.range((client, 0)..=(client, u64::MAX)).count();
            if under_way >= OUTSTANDING_MAX || !self.world.clients[client].session.can_submit() {
                self.waiting.get_mut(&client).expect("just taken from").push_front((life, ask));
                return;
            }
            let mark = self.journal(|journal| journal.mark(index));
            let ticket = self.world.ask(client, marked(&ask.batch, mark));
            let kind = ask.kind;
            self.world.trace.note(self.world.now, &[60, index as u64, kind as u64], || {
                format!("m{index} asks {kind:?} {:?}", ask.batch)
            });
            self.asked.insert((client, ticket), Asker::Machine(index, life, ask));
        }
    }

    /// Hands answers to those who wait for them.
    fn hand_out(&mut self) {
        for (client, ticket, result) in core::mem::take(&mut self.world.told) {
            match self.asked.remove(&(client, ticket)) {
                Some(Asker::Hostile(index)) => {
                    if let Some(hostile) = self.hostile.get_mut(index) {
                        hostile.told(ticket, result);
                    }
                }
                Some(Asker::Machine(index, life, ask)) if self.machines[index].life == life => {
                    let Some(process) = &self.machines[index].process else { continue };
                    // It may stop with the answer at hand, and look at it when it goes on.
                    let stops = process.desk.brake.is_at(Point::Answered(ask.kind));
                    let answers = result.and_then(|bytes| Answers::from_bytes(&bytes).ok());
                    let refused = || client::backend::Unavailable("the replicas refused the request".into());
                    let _ = ask.answer.send(answers.ok_or_else(refused));
                    if stops {
                        process.desk.brake.has_stopped();
                        self.stopped(index);
                    } else {
                        self.drive(index);
                    }
                }
                _ => {}
            }
        }
    }

    /// What happens at a moment.
    fn happen(&mut self, now: Time) {
        while let Some((_, index, act)) = self.acts.pop_front_if(|(at, ..)| *at <= now) {
            let text = format!("m{index} {act:?}");
            self.world.trace.note(now, &[61, index as u64], || text);
            match act {
                Act::Cut | Act::Mend => self.cut(index, act == Act::Cut),
                Act::LeapAll => {
                    for node in self.world.nodes.iter_mut().skip(1) {
                        node.clock.jump(3600 * S as i64);
                    }
                }
                Act::KillNow(back) => self.kill(index, back),
                Act::Stop(point, spare, _) | Act::Kill(point, spare, _) => {
                    if let Some(process) = &self.machines[index].process {
                        process.desk.brake.set(point, spare);
                        self.stops.entry(index).or_default().push_back(act);
                    }
                }
            }
        }
        while let Some((at, index)) = self.back.pop_first() {
            if at > now {
                self.back.insert((at, index));
                break;
            }
            self.start(index);
        }
        for index in 0..self.machines.len() {
            if self.machines[index].frozen.is_some_and(|until| until <= now) {
                self.thaw(index);
            }
        }
    }

    fn cut(&mut self, index: usize, cut: bool) {
        let machine = &self.machines[index].plan;
        let (nodes, first) = (self.world.nodes.len(), self.world.end_of(machine.client));
        for end in first..first + machine.lives {
            for node in 0..nodes {
                if cut {
                    self.world.net.cut(end, node);
                    self.world.net.cut(node, end);
                } else {
                    self.world.net.mend(end, node);
                    self.world.net.mend(node, end);
                }
            }
        }
    }

    /// A process has come to the point where something was to happen to it.
    fn stopped(&mut self, index: usize) {
        let Some(act) = self.stops.get_mut(&index).and_then(VecDeque::pop_front) else { return };
        let now = self.world.now;
        self.world.trace.note(now, &[62, index as u64], || format!("m{index} is there: {act:?}"));
        match act {
            Act::Stop(_, _, time) => {
                let until = Time(now.0 + time);
                let machine = &mut self.machines[index];
                machine.frozen = Some(until);
                let client = machine.client();
                self.world.clients[client].paused = until;
                self.figures.stops += 1;
            }
            Act::Kill(_, _, back) => self.kill(index, back),
            _ => {}
        }
    }

    fn thaw(&mut self, index: usize) {
        let (now, stands) = (self.world.now, self.plan.stands);
        let machine = &mut self.machines[index];
        machine.tick(now, stands);
        machine.frozen = None;
        if let Some(process) = &machine.process {
            process.desk.brake.release();
        }
        self.world.trace.note(now, &[63, index as u64], || format!("m{index} goes on"));
    }

    fn kill(&mut self, index: usize, back: Option<u64>) {
        let machine = &mut self.machines[index];
        if machine.process.is_none() || machine.closing {
            return;
        }
        let (life, client) = (machine.life, machine.client());
        machine.kill();
        self.world.clients[client].gone = true;
        self.waiting.remove(&client);
        self.stops.remove(&index);
        self.figures.kills += 1;
        self.journal(|journal| journal.crashed(index, life));
        let machine = &mut self.machines[index];
        if let Some(back) = back.filter(|_| life + 1 < machine.plan.lives) {
            machine.life += 1;
            self.back.insert((Time(self.world.now.0 + back), index));
        }
    }
}
