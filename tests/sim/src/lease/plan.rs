//! What chance decides of a run with leases, beyond what it decides of any run.

use core::time::Duration;

use super::brake::Point;
use super::{Row, TIME_LAGS, TIME_LIES};
use crate::net::Weather;
use crate::plan::{ClientPlan, Fault, Machine, Plan};
use crate::rng::Rng;

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// Lives of one machine's mount, each with a session of its own.
const LIVES_MAX: usize = 3;
/// When programs begin, after the start.
pub(crate) const BEGIN: u64 = 4 * S;

/// A machine with a mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachinePlan {
    /// Whose it is.
    pub(crate) principal: usize,
    /// Its number as a holder.
    pub(crate) number: u64,
    /// The session of its first life.
    pub(crate) client: usize,
    /// How many it may have.
    pub(crate) lives: usize,
    /// How much too fast its clock is, in millionths.
    pub(crate) rate: i64,
    pub(crate) programs: usize,
}

/// What programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A bit of everything.
    Mixed,
    /// Names in one directory, one after the other.
    OneDirectory,
    /// One lock, again and again.
    OneLock,
}

/// Something that happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It reaches no replica any more.
    Cut,
    /// It reaches them again.
    Mend,
    /// Its process stands still, when it comes to this point the so-manieth time, for so long.
    Stop(Point, u32, u64),
    /// Its process is killed there; a new one starts after so long, if at all.
    Kill(Point, u32, Option<u64>),
    /// The same at once.
    KillNow(Option<u64>),
    /// Most replicas' clocks are set ahead by an hour.
    LeapAll,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct LeasePlan {
    pub(crate) control: bool,
    pub(crate) machines: Vec<MachinePlan>,
    pub(crate) directories: usize,
    pub(crate) work: Work,
    /// How often each program does it, if not until the end.
    pub(crate) rounds: Option<u32>,
    /// Mean pause of a program, ns.
    pub(crate) think: u64,
    /// How often, in a hundred, programs work in their machine's own directory.
    pub(crate) at_home: u64,
    /// When, ns after the start, they often work in the first machine's, and not at all before.
    pub(crate) visits: Option<(u64, u64)>,
    /// No program begins anything after this, ns after the start.
    pub(crate) until: u64,
    pub(crate) acts: Vec<(u64, usize, Act)>,
    /// How many lying mounts there are, and in which way they lie.
    pub(crate) hostile: Option<(usize, u64)>,
    /// Clocks are worse than anybody assumes: only what replicas accept is judged.
    pub(crate) beyond: bool,
    /// Clocks of machines stand still while their processes do.
    pub(crate) stands: bool,
    /// The first primary holds time back.
    pub(crate) held: bool,
    /// How often processes get the word, ns.
    pub(crate) quantum: u64,
    /// How long an operation may take at most, ns.
    pub(crate) wait_max: Option<u64>,
}

/// The plans of a seed.
pub(crate) fn draw(seed: u64, row: Row, control: bool) -> (Plan, LeasePlan) {
    let mut rng = Rng::new(seed ^ 0x1ea5_e5ee);
    let mut plan = cluster(seed, &mut rng);
    let mut lease = LeasePlan {
        control,
        machines: Vec::new(),
        directories: 3,
        work: Work::Mixed,
        rounds: None,
        think: rng.pick(&[200, 600, 2000]) * MS,
        at_home: if control || rng.percent(75) { 97 } else { 0 },
        visits: None,
        until: 110 * S,
        acts: Vec::new(),
        hostile: None,
        beyond: false,
        stands: false,
        held: false,
        quantum: rng.pick(&[5, 10, 20]) * MS,
        wait_max: None,
    };
    if lease.at_home == 0 {
        lease.directories = rng.between(1, 4) as usize;
    }
    let mut machines = 3;
    match row {
        Row::Clocks => clocks(&mut rng, &mut plan, &mut lease),
        Row::Time => lying_time(&mut rng, &mut plan, &mut lease),
        Row::Lag => lagging(&mut rng, &mut plan, &mut lease),
        Row::Stopped => stopped(seed, &mut rng, &mut plan, &mut lease),
        Row::Hostile => {
            machines = 2;
            lease.hostile = Some((rng.between(1, 2) as usize, seed));
            lease.wait_max = Some(65 * S);
            lease.think = rng.pick(&[300, 1000]) * MS;
            lease.until = 90 * S;
            plan.weather.loss = 0;
        }
        Row::Crowd => machines = crowd(seed, &mut rng, &mut plan, &mut lease),
        Row::Crashed => crashed(&mut rng, &mut plan, &mut lease),
    }
    plan.calm = if row == Row::Crowd { BEGIN } else { lease.until };
    let lives = if row == Row::Crowd { 1 } else { LIVES_MAX };
    for machine in 0..machines {
        let rate = match (row, lease.beyond) {
            // From half to twice the true rate.
            (Row::Clocks, true) if rng.percent(50) => rng.below(500_000) as i64 - 500_000,
            (Row::Clocks, true) => rng.below(1_000_000) as i64,
            _ => rng.below(19_000) as i64 - 9_500,
        };
        // What its term leaves after the margin lasts longer than the term itself below two thirds.
        let slow = [-500_000, -400_000, -300_000, -100_000][seed as usize % 4];
        let rate = if row == Row::Clocks && control && machine == 0 { slow } else { rate };
        lease.machines.push(MachinePlan {
            principal: if row == Row::Crowd { machine % 16 } else { rng.below(3) as usize },
            number: machine as u64 + 1,
            client: 1 + machine * lives,
            lives,
            rate,
            programs: if row == Row::Crowd { 1 } else { rng.between(1, 2) as usize },
        });
    }
    plan.clients = sessions(&lease);
    (plan, lease)
}

/// A cluster with which little goes wrong yet.
fn cluster(seed: u64, rng: &mut Rng) -> Plan {
    let mut plan = Plan::of(seed);
    plan.n = if rng.percent(90) { 4 } else { 7 };
    plan.machine = Machine::Namespace;
    plan.outside = true;
    plan.control = false;
    plan.tuning.status_interval = Duration::from_millis(500);
    plan.tuning.checkpoint_interval = plan.tuning.checkpoint_interval.max(16);
    plan.tuning.window = plan.tuning.checkpoint_interval * 4;
    plan.tuning.batch_requests_max = 256;
    plan.tuning.in_flight_max = plan.tuning.in_flight_max.max(2);
    plan.disk.stall = 0;
    plan.crash = 0;
    plan.far = plan.far.min(5 * MS);
    plan.weather = Weather { jitter: plan.weather.jitter, loss: plan.weather.loss.min(20_000), ..Weather::FAIR };
    let small = |rng: &mut Rng| (rng.below(100 * MS) as i64 - 50 * MS as i64, rng.below(200) as i64 - 100);
    plan.clocks = (0..plan.n).map(|_| small(rng)).collect();
    plan.faults.clear();
    plan
}

/// The founder's session, those of each machine's lives, and those of lying mounts.
fn sessions(lease: &LeasePlan) -> Vec<ClientPlan> {
    let session = |principal: usize, session: u64| ClientPlan {
        principal,
        session,
        requests: 0,
        think: 1000 * S,
        depth: 1,
        retransmit: client::backend::RETRANSMIT,
        clock: 0,
    };
    let machines = lease.machines.iter();
    let lives = machines.flat_map(|machine| (0..machine.lives).map(move |_| machine.principal));
    // Whoever lies has a key of its own.
    let hostile = (0..lease.hostile.map_or(0, |(count, _)| count)).map(|index| 8 + index);
    let principals = core::iter::once(0).chain(lives).chain(hostile);
    (1..).zip(principals).map(|(number, principal)| session(principal, number)).collect()
}

/// Now and then replicas crash and links are cut; not too much, for mounts must get somewhere.
fn some_faults(rng: &mut Rng, plan: &mut Plan, until: u64) {
    if rng.percent(50) {
        return;
    }
    for _ in 0..rng.between(1, 3) {
        let (at, node) = (BEGIN + rng.below(until - BEGIN), rng.below(plan.n as u64) as usize);
        let fault = match rng.below(3) {
            0 => Fault::Crash { node, down: rng.pick(&[S, 5 * S]) },
            1 => Fault::Pause { node, time: rng.below(8 * S) },
            _ => Fault::PowerLoss { down: 2 * S },
        };
        plan.faults.push((at, fault));
    }
    plan.faults.sort_by_key(|(at, _)| *at);
}

fn clocks(rng: &mut Rng, plan: &mut Plan, lease: &mut LeasePlan) {
    lease.beyond = !lease.control && rng.percent(50);
    let wild = |rng: &mut Rng| {
        let rate = if rng.percent(50) { rng.below(500_000) as i64 - 500_000 } else { rng.below(1_000_000) as i64 };
        (rng.below(7200 * S) as i64 - 3600 * S as i64, rate)
    };
    let f = (plan.n - 1) / 3;
    let many = if lease.beyond { plan.n } else { f };
    let first = rng.below(plan.n as u64) as usize;
    for index in 0..many {
        let node = (first + index) % plan.n;
        let (offset, rate) = wild(rng);
        // Those who agree on time must have some in common, or there is no progress.
        plan.clocks[node] = (if lease.beyond { offset / 3600 } else { offset }, rate);
        if rng.percent(50) {
            let by = wild(rng).0;
            plan.faults.push((BEGIN + rng.below(lease.until - BEGIN), Fault::Jump { node, by }));
        }
    }
    if lease.beyond && rng.percent(50) {
        let by = rng.below(240 * S) as i64 - 120 * S as i64;
        plan.faults.push((BEGIN + rng.below(lease.until - BEGIN), Fault::JumpAll { by }));
    }
    plan.faults.sort_by_key(|(at, _)| *at);
    cuts(rng, lease);
}

/// Machines are cut off for a while, others want what they have.
fn cuts(rng: &mut Rng, lease: &mut LeasePlan) {
    let mut at = BEGIN + rng.between(if lease.control { 30 } else { 5 }, 40) * S;
    let other = rng.below(3) as usize;
    for machine in [0, other] {
        let time = if lease.control { 80 * S } else { rng.between(5, 90) * S };
        if lease.visits.is_none() {
            let from = at + rng.below(if lease.control { 10 } else { 30 }) * S;
            lease.visits = Some((from, at + time + 10 * S));
        }
        lease.acts.push((at, machine, Act::Cut));
        lease.acts.push((at + time, machine, Act::Mend));
        at += time + rng.between(2, 10) * S;
    }
    lease.until = lease.until.max(at);
}

fn lying_time(rng: &mut Rng, plan: &mut Plan, lease: &mut LeasePlan) {
    cuts(rng, lease);
    if lease.control {
        let at = lease.acts[0].0 + 5 * S;
        lease.acts.push((at, 0, Act::LeapAll));
        return;
    }
    let behaviour = &TIME_LIES[rng.below(TIME_LIES.len() as u64) as usize];
    plan.behaviour = Some(behaviour);
    plan.liars = behaviour.liars(rng, plan.n, (plan.n - 1) / 3);
}

/// The first primary holds agreed time back, while others want what one mount has; sooner or later it is replaced,
/// or lets go.
fn lagging(rng: &mut Rng, plan: &mut Plan, lease: &mut LeasePlan) {
    lease.at_home = 97;
    lease.think = 200 * MS;
    if rng.percent(70) {
        // It stands still for as long as a lease lasts, goes on, so late, and is then right again.
        let (from, by) = (rng.between(2, 10) * S, rng.between(60, 90) * S);
        let to = from + by + rng.between(20, 40) * S;
        lease.until = to + 30 * S;
        lease.visits = Some((to - rng.between(2, 10) * S, lease.until));
        lease.held = true;
        let jump = |by| Fault::Jump { node: 0, by };
        plan.faults = vec![(from, jump(-(by as i64))), (to, jump(by as i64))];
        return;
    }
    lease.until = 80 * S;
    lease.visits = Some((BEGIN + rng.between(26, 34) * S, lease.until));
    let behaviour = &TIME_LAGS[rng.below(TIME_LAGS.len() as u64) as usize];
    plan.behaviour = Some(behaviour);
    plan.liars = behaviour.liars(rng, plan.n, 1);
}

fn stopped(seed: u64, rng: &mut Rng, plan: &mut Plan, lease: &mut LeasePlan) {
    let points = Point::all();
    // Each point in turn.
    let point = points[(seed % points.len() as u64) as usize];
    let time = rng.between(62, 100) * S;
    let spare = rng.below(4) as u32;
    let at = BEGIN + rng.between(if lease.control { 30 } else { 1 }, 36) * S;
    lease.acts.push((at, 0, Act::Stop(point, spare, time)));
    lease.until = at + time + 30 * S;
    lease.visits = Some((at, lease.until));
    if lease.control {
        lease.stands = true;
        lease.acts[0].2 = Act::Stop(Point::AfterOp, 2, time);
        return;
    }
    some_faults(rng, plan, lease.until);
}

fn crashed(rng: &mut Rng, plan: &mut Plan, lease: &mut LeasePlan) {
    let points = Point::all();
    let back = |rng: &mut Rng| match rng.below(4) {
        0 => None,
        1 => Some(10 * MS),
        _ => Some(rng.below(80) * S),
    };
    for machine in 0..2 {
        for _ in 0..rng.between(1, 2) {
            let at = BEGIN + rng.between(1, 60) * S;
            let back = back(rng);
            let act = match rng.percent(70) {
                true => Act::Kill(rng.pick(&points), rng.below(4) as u32, back),
                false => Act::KillNow(back),
            };
            lease.acts.push((at, machine, act));
        }
    }
    lease.until = 100 * S;
    lease.visits = Some((BEGIN + 8 * S, lease.until));
    some_faults(rng, plan, lease.until);
}

/// Many who want one thing.
fn crowd(seed: u64, rng: &mut Rng, plan: &mut Plan, lease: &mut LeasePlan) -> usize {
    lease.work = if seed.is_multiple_of(2) { Work::OneDirectory } else { Work::OneLock };
    lease.directories = 1;
    lease.think = 20 * MS;
    lease.rounds = Some(if lease.work == Work::OneLock { 3 } else { 10 });
    lease.until = 240 * S;
    lease.quantum = 10 * MS;
    plan.weather = Weather::FAIR;
    plan.far = 0;
    plan.n = 4;
    plan.clocks.truncate(4);
    match lease.work {
        // As many as may wait for one file's locks, beside the one that has them.
        Work::OneLock => rng.pick(&[20, 40, meta::FILE_WAITERS_MAX + 1]),
        // Most runs have fewer, which take a tenth of the time.
        _ if seed % 50 == 48 => 1000,
        _ => rng.pick(&[20, 50, 100]),
    }
}
