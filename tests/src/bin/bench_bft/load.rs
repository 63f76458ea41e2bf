//! Clients that offer load, and what came of it.
//!
//! *Closed loop*: each session always has so many requests outstanding. *Open loop*: requests are
//! due at fixed times whatever the cluster does, and their latency counts from when they were due,
//! so that a stall is charged to every request that it delayed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meta::{Answer, Ino};

use crate::Outcome;
use crate::cluster::Cluster;
use crate::link::{Ended, Session};
use crate::usage;
use crate::work::operation;

/// How long clients wait, when the time is up, for what they asked before.
const DRAIN: Duration = Duration::from_secs(5);

/// What is offered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Users, each with connections of its own.
    pub(crate) clients: usize,
    /// Sessions of each user.
    pub(crate) sessions: usize,
    /// Requests that a session has outstanding; in an open loop, at most.
    pub(crate) outstanding: usize,
    /// Bytes that an operation carries.
    pub(crate) payload: usize,
    /// Operations under one signature.
    pub(crate) operations: usize,
    /// Open loop: operations a second by all together.
    pub(crate) rate: Option<f64>,
    /// Not measured.
    pub(crate) warmup: Duration,
    /// Measured.
    pub(crate) length: Duration,
}

impl Load {
    /// Requests outstanding, all together.
    pub(crate) fn in_flight(&self) -> usize {
        self.clients * self.sessions * self.outstanding
    }
}

/// When the requests of one session are due.
#[derive(Clone, Copy)]
struct Schedule {
    first: Instant,
    every: Duration,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Since the load began.
    pub(crate) at: Duration,
    pub(crate) latency: Duration,
}

/// What one session saw.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) done: Vec<Done>,
    /// Answers that were refusals of an operation, and requests that came to nothing. The load asks
    /// for nothing that could be refused, so each is a fault.
    pub(crate) wrong: Vec<String>,
    /// Replies that said that a replica is overloaded.
    pub(crate) refused: u64,
    /// Requests that nobody answered in time.
    pub(crate) unanswered: u64,
    /// Open loop: requests that were due and never sent.
    pub(crate) unsent: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.done.extend(other.done);
        self.wrong.extend(other.wrong);
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
    }
}

/// What a load came to, within the time measured.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) load: Load,
    pub(crate) elapsed: Duration,
    pub(crate) replicas_cpu: Duration,
    pub(crate) clients_cpu: Duration,
    /// Sorted.
    pub(crate) latencies: Vec<Duration>,
    /// Places in the order that were used.
    pub(crate) batches: Option<u64>,
    /// The most memory of any one replica, KiB.
    pub(crate) peak_kib: u64,
    /// View changes, from here on of the whole load, warm-up included.
    pub(crate) views: u64,
    /// Replies that said "overloaded".
    pub(crate) refused: u64,
    pub(crate) unanswered: u64,
    pub(crate) unsent: u64,
}

impl Figures {
    pub(crate) fn requests(&self) -> usize {
        self.latencies.len()
    }

    /// Operations a second.
    pub(crate) fn rate(&self) -> f64 {
        (self.requests() * self.load.operations) as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn cpu(&self) -> Duration {
        self.replicas_cpu + self.clients_cpu
    }

    /// Operations in a second of processor time, of replicas and clients together.
    pub(crate) fn per_cpu_second(&self) -> f64 {
        (self.requests() * self.load.operations) as f64 / self.cpu().as_secs_f64().max(1e-9)
    }

    /// Requests in a batch, on average.
    pub(crate) fn batch(&self) -> Option<f64> {
        self.batches.filter(|batches| *batches > 0).map(|batches| self.requests() as f64 / batches as f64)
    }

    /// The latency that `percent` of the requests don't exceed.
    pub(crate) fn latency(&self, percent: usize) -> Duration {
        percentile(&self.latencies, percent)
    }
}

/// The value that `percent` of `sorted` don't exceed; zero if there is none.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Offers a load and measures what comes of it.
pub(crate) async fn run(cluster: &Cluster, load: Load) -> Outcome<Figures> {
    let view = progress(cluster).await.view;
    let began = Instant::now();
    let tasks = start(cluster, load, began, began + load.warmup + load.length);
    tokio::time::sleep_until((began + load.warmup).into()).await;
    cluster.forget_peaks();
    let before = (Instant::now(), cluster.usage().cpu, usage::own_cpu(), progress(cluster).await);
    tokio::time::sleep_until((began + load.warmup + load.length).into()).await;
    let (end, used, own) = (Instant::now(), cluster.usage(), usage::own_cpu());
    let after = progress(cluster).await;
    // Replicas that are slow to say how far they are say it of another moment.
    let exact = before.3.took.max(after.took) < load.length / 20;
    let mut tally = Tally::default();
    for task in tasks {
        tally.add(task.await?);
    }
    if let Some(first) = tally.wrong.first() {
        return Err(format!("{} requests went wrong; the first: {first}", tally.wrong.len()).into());
    }
    let measured = before.0 - began..end - began;
    let inside = tally.done.iter().filter(|done| measured.contains(&done.at));
    let mut latencies: Vec<_> = inside.map(|done| done.latency).collect();
    latencies.sort_unstable();
    Ok(Figures {
        load,
        elapsed: end - before.0,
        replicas_cpu: used.cpu.saturating_sub(before.1),
        clients_cpu: own.saturating_sub(before.2),
        latencies,
        batches: Some(after.executed.saturating_sub(before.3.executed)).filter(|batches| exact && *batches > 0),
        peak_kib: used.peak_kib,
        views: after.view.saturating_sub(view),
        refused: tally.refused,
        unanswered: tally.unanswered,
        unsent: tally.unsent,
    })
}

/// Starts the clients, one task a session.
pub(crate) fn start(
    cluster: &Cluster,
    load: Load,
    began: Instant,
    until: Instant,
) -> Vec<tokio::task::JoinHandle<Tally>> {
    let count = load.clients * load.sessions;
    let every = load.rate.map(|rate| Duration::from_secs_f64((count * load.operations) as f64 / rate));
    let mut tasks = Vec::new();
    for index in 0..count {
        let user = index % load.clients;
        let schedule = every.map(|every| Schedule { first: began + every * index as u32 / count as u32, every });
        let (session, file) = (cluster.users[user].session(), cluster.files[user]);
        tasks.push(tokio::spawn(Client { session, file, load, schedule, began, until }.run()));
    }
    tasks
}

struct Progress {
    executed: u64,
    view: u64,
    took: Duration,
}

/// How far the replica is that got farthest.
async fn progress(cluster: &Cluster) -> Progress {
    let asked = Instant::now();
    let replicas = cluster.status().await.into_iter().flatten().filter_map(|status| status.replica);
    let start = Progress { executed: 0, view: 0, took: asked.elapsed() };
    replicas.fold(start, |most, replica| Progress {
        executed: most.executed.max(replica.last_executed),
        view: most.view.max(replica.view),
        ..most
    })
}

/// One session's part of a load.
struct Client {
    session: Session,
    file: Ino,
    load: Load,
    schedule: Option<Schedule>,
    began: Instant,
    until: Instant,
}

impl Client {
    async fn run(mut self) -> Tally {
        let mut tally = Tally::default();
        // By ticket: when it was due.
        let mut outstanding: BTreeMap<u64, Instant> = BTreeMap::new();
        let (mut sent, mut ended) = (0, Vec::new());
        loop {
            let now = Instant::now();
            let over = now >= self.until;
            while !over && outstanding.len() < self.load.outstanding && self.session.can_submit() {
                let due = self.due(sent).unwrap_or(now);
                if due > now {
                    break;
                }
                let first = sent * self.load.operations as u64;
                let calls = (0..self.load.operations as u64)
                    .map(|index| operation(self.file, self.load.payload, first + index))
                    .collect();
                outstanding.insert(self.session.submit(calls), due);
                sent += 1;
            }
            if over && (outstanding.is_empty() || now >= self.until + DRAIN) {
                break;
            }
            let limit = if over { self.until + DRAIN } else { self.until };
            // What is due and can't be sent yet waits for an answer, not for the clock.
            let full = outstanding.len() >= self.load.outstanding || !self.session.can_submit();
            let wake = if full || over { limit } else { self.due(sent).map_or(limit, |due| due.min(limit)) };
            tally.refused += self.session.wait(wake, &mut ended).await;
            let now = Instant::now();
            for ended in ended.drain(..) {
                self.note(ended, now, &mut outstanding, &mut tally);
            }
        }
        tally.unanswered = outstanding.len() as u64;
        tally.unsent = self.due_by_end().saturating_sub(sent);
        tally
    }

    /// When a request is due; `None`: as soon as it can be sent.
    fn due(&self, number: u64) -> Option<Instant> {
        self.schedule.map(|schedule| schedule.first + schedule.every.mul_f64(number as f64))
    }

    /// How many requests were due before the end; 0 in a closed loop.
    fn due_by_end(&self) -> u64 {
        self.schedule.map_or(0, |schedule| {
            (self.until.saturating_duration_since(schedule.first).as_secs_f64() / schedule.every.as_secs_f64()) as u64
        })
    }

    fn note(&self, ended: Ended, now: Instant, outstanding: &mut BTreeMap<u64, Instant>, tally: &mut Tally) {
        match ended {
            Ended::Answered { ticket, answers } => {
                let Some(due) = outstanding.remove(&ticket) else { return };
                tally.done.push(Done { at: now - self.began, latency: now - due });
                let denied = answers.iter().find(|answer| matches!(answer, Answer::Denied(_)));
                tally.wrong.extend(denied.map(|denied| format!("{denied:?}")));
                if answers.len() != self.load.operations {
                    tally.wrong.push(format!("{} answers to {} operations", answers.len(), self.load.operations));
                }
            }
            Ended::Failed { ticket, why } => {
                outstanding.remove(&ticket);
                tally.wrong.push(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted: Vec<_> = (1..=50).map(Duration::from_millis).collect();
        let at = |percent| percentile(&sorted, percent).as_millis();
        assert_eq!((at(0), at(50), at(99), at(100)), (1, 26, 50, 50));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
