//! The plan of a run: everything that chance decides beforehand, drawn from one seed.
//!
//! Each seed draws which kinds of faults there are at all, and then how bad they are (swarm
//! testing): a world in which everything goes wrong at once never gets far enough to be interesting.
//! The faults come in the first part of a run; then they stop (the *calm*, GST in the literature),
//! and what is left to do must get done.

use core::time::Duration;

use crate::byz::Behaviour;
use crate::core_can::CORE;
use crate::net::Weather;
use crate::rng::Rng;
use crate::setting::Setting;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// Which state machine is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// The cheap one.
    Journal,
    /// The shipped one.
    Namespace,
}

/// How the core is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) checkpoint_interval: u64,
    pub(crate) window: u64,
    pub(crate) in_flight_max: u64,
    pub(crate) batch_requests_max: usize,
    pub(crate) status_interval: Duration,
    pub(crate) retained_bytes_max: usize,
}

/// How disks are. Times in ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskPlan {
    /// Least and most time of a sync.
    pub(crate) sync: (u64, u64),
    /// Chance of a sync that takes a hundred times as long, in millionths.
    pub(crate) stall: u64,
    /// Records after which a snapshot is made.
    pub(crate) snapshot_after: usize,
}

/// A client's session and its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) principal: usize,
    pub(crate) session: u64,
    pub(crate) requests: u64,
    /// Mean time between requests, ns.
    pub(crate) think: u64,
    /// Most requests at a time.
    pub(crate) depth: usize,
    pub(crate) retransmit: Duration,
    pub(crate) clock: i64,
}

/// Something that goes wrong at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A node crashes, for so long.
    Crash { node: usize, down: u64 },
    /// Power is lost everywhere, for up to so long.
    PowerLoss { down: u64 },
    /// Links are cut.
    Cut(Cut),
    /// All links are mended.
    Mend,
    /// A clock is set, by so many ns.
    Jump { node: usize, by: i64 },
    /// All clocks are set alike.
    JumpAll { by: i64 },
    /// A process stands still for so long.
    Pause { node: usize, time: u64 },
    /// A disk's record is found damaged at the next start; the node is lost until it is replaced.
    Rot { node: usize },
}

/// Which links are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// One node from everybody.
    Isolate { node: usize },
    /// Two sides, by the bits of `mask`; clients are on sides, too.
    Halves { mask: u64 },
    /// One direction of one link.
    OneWay { from: usize, to: usize },
    /// A node hears nobody, but is heard.
    Deaf { node: usize },
    /// A node is heard by nobody, but hears.
    Mute { node: usize },
    /// Two halves that one node alone can reach.
    Bridge { node: usize, mask: u64 },
    /// Every node hears its neighbours only.
    Ring,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) n: usize,
    pub(crate) machine: Machine,
    pub(crate) tuning: Tuning,
    pub(crate) weather: Weather,
    /// How far apart ends are at most, ns.
    pub(crate) far: u64,
    /// And how far at least, ns.
    pub(crate) near: u64,
    pub(crate) disk: DiskPlan,
    /// Chance of a crash between any two effects, in millionths.
    pub(crate) crash: u64,
    /// Longest time down after such a crash.
    pub(crate) down: u64,
    /// Each node's clock: ns off, millionths fast.
    pub(crate) clocks: Vec<(i64, i64)>,
    pub(crate) clients: Vec<ClientPlan>,
    /// When, after the start, ns.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// When the faults stop, ns after the start.
    pub(crate) calm: u64,
    /// Who lies, and how.
    pub(crate) liars: Vec<usize>,
    pub(crate) behaviour: Option<&'static Behaviour>,
    /// Whether there are more liars than can be tolerated: something must break.
    pub(crate) control: bool,
    /// What difficulty does not go away.
    pub(crate) setting: Option<Setting>,
    /// Whether somebody outside of the world has requests to make.
    pub(crate) outside: bool,
}

impl Plan {
    /// The plan of a seed: faults, and no liars.
    pub(crate) fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let n = if rng.percent(85) { 4 } else { 7 };
        let machine = if rng.percent(75) { Machine::Journal } else { Machine::Namespace };
        let calm = rng.between(3, 45) * S;
        let mut plan = Plan {
            seed,
            n,
            machine,
            tuning: tuning(&mut rng),
            weather: weather(&mut rng),
            far: rng.pick(&[0, 200 * US, 5 * MS, 60 * MS]),
            near: 0,
            disk: disk(&mut rng),
            crash: 0,
            down: 0,
            clocks: vec![(0, 0); n],
            clients: clients(&mut rng, calm),
            faults: Vec::new(),
            calm,
            liars: Vec::new(),
            behaviour: None,
            control: false,
            setting: None,
            outside: false,
        };
        if rng.percent(40) {
            plan.crash = rng.pick(&[50, 300, 1500]);
            plan.down = rng.pick(&[50 * MS, S, 8 * S]);
        }
        plan.draw_clocks(&mut rng);
        plan.draw_faults(&mut rng);
        plan
    }

    /// The plan of a seed in which replicas or clients behave in one way: less goes wrong otherwise.
    pub(crate) fn with_liars(seed: u64, behaviour: &'static Behaviour, control: bool) -> Plan {
        let mut plan = Plan::of(seed);
        let mut rng = Rng::new(seed ^ 0xb12a_7713);
        plan.behaviour = Some(behaviour);
        plan.control = control;
        plan.calm = plan.calm.min(12 * S);
        plan.weather.loss = plan.weather.loss.min(20_000);
        plan.weather.tail = plan.weather.tail.min(20_000);
        plan.faults.retain(|(at, fault)| {
            let harmless = matches!(fault, Fault::Cut(_) | Fault::Mend | Fault::Crash { .. } | Fault::Pause { .. });
            harmless && *at < plan.calm
        });
        plan.crash = plan.crash.min(100);
        plan.far = plan.far.min(5 * MS);
        for client in &mut plan.clients {
            client.think = client.think.min(plan.calm / (client.requests + 1));
        }
        if behaviour.has_rejoiner() {
            plan.n = 7;
            plan.clocks = vec![(0, 0); 7];
            plan.tuning.retained_bytes_max = 0;
            plan.faults = vec![(plan.calm / 3, Fault::Rot { node: 6 })];
        }
        if behaviour.needs_a_partner() {
            plan.n = 7;
            plan.clocks = vec![(0, 0); 7];
        }
        let f = (plan.n - 1) / 3;
        plan.liars = behaviour.liars(&mut rng, plan.n, f + usize::from(control));
        if behaviour.needs_a_turn() {
            // The first primary is away while there is something to do.
            for part in 0..3 {
                let at = plan.calm * (1 + 3 * part) / 10;
                plan.faults.push((at, Fault::Cut(Cut::Isolate { node: 0 })));
                plan.faults.push((at + plan.calm * 2 / 10, Fault::Mend));
            }
            plan.faults.sort_by_key(|(at, _)| *at);
        }
        plan
    }

    fn draw_clocks(&mut self, rng: &mut Rng) {
        if rng.percent(60) {
            // Well within the bound on agreed time, which is 10 s.
            for clock in &mut self.clocks {
                let off = rng.between(0, 6 * S) as i64 - 3 * S as i64;
                let rate = rng.between(0, 400) as i64 - 200;
                *clock = (off, rate);
            }
        }
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let n = self.n as u64;
        let mut add = |rng: &mut Rng, chance: u64, most: u64, draw: &mut dyn FnMut(&mut Rng) -> Fault| {
            if rng.percent(chance) {
                for _ in 0..rng.between(1, most) {
                    let at = rng.below(self.calm);
                    self.faults.push((at, draw(rng)));
                }
            }
        };
        let node = |rng: &mut Rng| rng.below(n) as usize;
        let down = |rng: &mut Rng| rng.pick(&[100 * MS, S, 5 * S]);
        add(rng, 40, 6, &mut |rng| Fault::Crash { node: node(rng), down: down(rng) });
        add(rng, 20, 3, &mut |rng| Fault::PowerLoss { down: down(rng) });
        add(rng, 40, 8, &mut |rng| Fault::Cut(cut(rng, n)));
        add(rng, 60, 8, &mut |_| Fault::Mend);
        // What jumps ahead is set right, that is back, when the faults stop.
        let (ahead, back, all) = match (CORE.steady_clock, CORE.view_change) {
            (true, true) => (4000 * S, 90_000 * S, 4000 * S),
            (true, false) => (3 * S, 90_000 * S, 4000 * S),
            (false, _) => (3 * S, S, 2 * S),
        };
        add(rng, 20, 3, &mut |rng| Fault::Jump { node: node(rng), by: rng.below(ahead) as i64 });
        add(rng, 15, 2, &mut |rng| Fault::Jump { node: node(rng), by: -(rng.below(back) as i64) });
        add(rng, 10, 2, &mut |rng| Fault::JumpAll { by: rng.below(all) as i64 - all as i64 / 2 });
        add(rng, 25, 5, &mut |rng| Fault::Pause { node: node(rng), time: rng.below(8 * S) });
        if rng.percent(12) {
            // No more nodes than may be faulty, and each once: the core helps nobody back twice a
            // minute. Without a view change, not the primary.
            let first = if CORE.view_change { rng.below(n) } else { rng.between(1, n - 1) };
            let count = rng.between(1, (n - 1) / 3);
            for lost in 0..count {
                let node = ((first + lost) % n) as usize;
                self.faults.push((rng.below(self.calm), Fault::Rot { node }));
            }
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// The kinds of faults in it, for counting.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = vec![if self.n == 4 { "4 replicas" } else { "7 replicas" }];
        kinds.push(if self.machine == Machine::Journal { "journal" } else { "namespace" });
        let mut note = |is: bool, kind| {
            if is {
                kinds.push(kind);
            }
        };
        let any = |is: fn(&Fault) -> bool| self.faults.iter().any(|(_, fault)| is(fault));
        note(self.weather.loss > 0, "loss");
        note(self.weather.duplication > 0, "duplication");
        note(self.weather.tail > 0, "long tails");
        note(self.far > MS, "far apart");
        note(self.disk.stall > 0, "disk stalls");
        note(self.disk.snapshot_after < 1000, "snapshots");
        note(self.crash > 0, "crashes between effects");
        note(any(|fault| matches!(fault, Fault::Crash { .. })), "crashes");
        note(any(|fault| matches!(fault, Fault::PowerLoss { .. })), "power losses");
        note(
            any(|fault| matches!(fault, Fault::Cut(Cut::OneWay { .. } | Cut::Deaf { .. } | Cut::Mute { .. }))),
            "one-way cuts",
        );
        note(any(|fault| matches!(fault, Fault::Cut(Cut::Isolate { .. } | Cut::Halves { .. }))), "partitions");
        note(any(|fault| matches!(fault, Fault::Cut(Cut::Bridge { .. } | Cut::Ring))), "bridges and rings");
        note(any(|fault| matches!(fault, Fault::Jump { .. } | Fault::JumpAll { .. })), "clock jumps");
        note(self.clocks.iter().any(|clock| *clock != (0, 0)), "clocks off");
        note(any(|fault| matches!(fault, Fault::Pause { .. })), "pauses");
        note(any(|fault| matches!(fault, Fault::Rot { .. })), "a disk lost");
        kinds
    }
}

fn tuning(rng: &mut Rng) -> Tuning {
    let checkpoint_interval = rng.pick(&[2, 4, 8, 16, 128]);
    let window = checkpoint_interval * rng.between(2, 4);
    Tuning {
        checkpoint_interval,
        window,
        in_flight_max: rng.between(1, 6).min(window),
        batch_requests_max: rng.pick(&[1, 3, 256]),
        status_interval: Duration::from_millis(rng.pick(&[50, 200, 500])),
        retained_bytes_max: if CORE.state_transfer && rng.percent(40) { 0 } else { 64 << 20 },
    }
}

fn weather(rng: &mut Rng) -> Weather {
    let mut weather = Weather { delay: rng.pick(&[50 * US, 500 * US]), ..Weather::FAIR };
    weather.jitter = rng.pick(&[100 * US, MS, 20 * MS]);
    if rng.percent(50) {
        weather.loss = rng.pick(&[1_000, 20_000, 100_000, 250_000]);
    }
    if rng.percent(40) {
        weather.duplication = rng.pick(&[5_000, 50_000, 300_000]);
    }
    if rng.percent(30) {
        (weather.tail, weather.tail_max) = (rng.pick(&[1_000, 20_000, 100_000]), rng.pick(&[200 * MS, 2 * S, 15 * S]));
    }
    weather
}

fn disk(rng: &mut Rng) -> DiskPlan {
    DiskPlan {
        sync: rng.pick(&[(50 * US, 200 * US), (MS, 4 * MS), (5 * MS, 30 * MS)]),
        stall: if rng.percent(25) { rng.pick(&[1_000, 10_000]) } else { 0 },
        snapshot_after: rng.pick(&[30, 200, 1_000_000]),
    }
}

fn clients(rng: &mut Rng, calm: u64) -> Vec<ClientPlan> {
    let (principals, count) = (rng.between(1, 4), rng.between(1, 6));
    let total = rng.between(40, 200);
    let think = rng.pick(&[MS, calm / (total / count + 1), 2 * calm / (total / count + 1)]);
    let client = |session: u64, rng: &mut Rng| ClientPlan {
        principal: rng.below(principals) as usize,
        session: session + 1,
        requests: total / count + 3,
        think,
        depth: rng.pick(&[1, 2, 12]),
        retransmit: Duration::from_millis(rng.pick(&[100, 300, 1000])),
        clock: rng.between(0, 20 * S) as i64 - 10 * S as i64,
    };
    (0..count).map(|session| client(session, rng)).collect()
}

fn cut(rng: &mut Rng, n: u64) -> Cut {
    let node = rng.below(n) as usize;
    let mask = rng.next();
    match rng.below(7) {
        0 => Cut::Isolate { node },
        1 => Cut::Halves { mask },
        2 => Cut::OneWay { from: node, to: (node + rng.between(1, n - 1) as usize) % n as usize },
        3 => Cut::Deaf { node },
        4 => Cut::Mute { node },
        5 => Cut::Bridge { node, mask },
        _ => Cut::Ring,
    }
}
