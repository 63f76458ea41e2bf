//! `cargo xtask bench failover`: the primary dies under load, again and again.
//!
//! How long nobody gets an answer is one figure; that nothing acknowledged was lost, and nothing was
//! done twice, is checked with every operation: each client makes and removes its own attributes in
//! turn, and making what is there, or removing what is not, is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use meta::op::{XattrClass, XattrHow};
use meta::{Answer, Call, Denied, Ino, Op, Reply};
use parking_lot::Mutex;
use serde_json::json;

use crate::cluster::{CLIENTS, Cluster, LogPlace, REPLICAS};
use crate::link::{Ended, Session};
use crate::load::percentile;
use crate::table::{Style, Table};
use crate::work::{call, sealed_name};
use crate::{Outcome, positive};

/// How long a trial waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the trial looks how things are.
const LOOK: Duration = Duration::from_millis(50);

/// Kills the primary under load (`kill -9`), many times, with default timeouts.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// How often.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Users who keep asking meanwhile.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=CLIENTS as i64))]
    clients: u16,
    /// Requests that each of them has outstanding.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    outstanding: u16,
    /// Where the vote logs are.
    #[arg(long, value_enum, default_value = "disk")]
    log: LogPlace,
    /// Fail if the p99 of the gaps is longer.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    limit: Option<f64>,
}

/// An acknowledged operation.
#[derive(Clone, Copy)]
struct Acknowledged {
    client: usize,
    asked: Instant,
    at: Instant,
}

/// What the trials and the clients share.
#[derive(Default)]
struct Shared {
    over: AtomicBool,
    acknowledged: Mutex<Vec<Acknowledged>>,
}

/// What one trial showed.
struct Trial {
    /// The longest time in which nobody was answered.
    gap: Duration,
    /// The longest time in which one client was not.
    client_gap: Duration,
    /// View changes it took.
    views: u64,
}

/// Runs the trials. Gives whether all was well.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let mut cluster = Cluster::start(options.log).await?;
    let shared = Arc::new(Shared::default());
    let workers: Vec<_> = (0..usize::from(options.clients))
        .map(|client| {
            let (session, file) = (cluster.users[client].session(), cluster.files[client]);
            let slots = (0..u64::from(options.outstanding)).map(Slot::new).collect();
            tokio::spawn(Worker { client, session, file, slots, wrong: Vec::new(), shared: shared.clone() }.run())
        })
        .collect();
    let mut trials = Vec::new();
    for number in 0..options.trials {
        // Not always at the same moment of whatever comes around regularly.
        pause(Duration::from_millis(700 + u64::from(number) * 37 % 500)).await;
        let trial = one(&mut cluster, &shared, options.clients.into()).await?;
        let (gap, client_gap) = (trial.gap.as_secs_f64(), trial.client_gap.as_secs_f64());
        eprintln!("trial {}: {gap:.2} s, one client {client_gap:.2} s, {} view changes", number + 1, trial.views);
        trials.push(trial);
    }
    shared.over.store(true, Ordering::Relaxed);
    let mut wrong = Vec::new();
    for worker in workers {
        let worker = worker.await?;
        wrong.extend(check_end(&cluster, &worker).await?);
        wrong.extend(worker.wrong);
    }
    report(options, style, &trials, &wrong)
}

async fn pause(length: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + length).await;
}

/// Kills the primary, waits until all clients are served again, and brings it back.
async fn one(cluster: &mut Cluster, shared: &Shared, clients: usize) -> Outcome<Trial> {
    let (view, _) = settled(cluster).await?;
    let primary = (view % REPLICAS as u64) as usize;
    let level = shared.acknowledged.lock().len();
    let killed = Instant::now();
    cluster.kill(primary);
    let give_up = killed + PATIENCE;
    // Served again: each client has an answer to something that it asked after the kill.
    loop {
        pause(LOOK).await;
        let acknowledged = shared.acknowledged.lock();
        let late = acknowledged[level..].iter().filter(|one| one.asked > killed);
        let served: std::collections::BTreeSet<_> = late.map(|one| one.client).collect();
        if served.len() == clients {
            break;
        }
        if Instant::now() > give_up {
            return Err(format!("{} of {clients} clients served, {PATIENCE:?} after the kill", served.len()).into());
        }
    }
    pause(Duration::from_millis(500)).await;
    let (gap, client_gap) = gaps(&std::mem::take(&mut *shared.acknowledged.lock()), killed, clients);
    let before = cluster.status().await.into_iter().flatten().filter_map(|status| status.replica);
    let views = before.map(|replica| replica.view).max().unwrap_or(view).saturating_sub(view);
    cluster.launch(primary);
    cluster.ready([primary]);
    Ok(Trial { gap, client_gap, views })
}

/// Waits until all replicas are in one view, normal, and about level; gives the view and how far
/// they are.
pub(crate) async fn settled(cluster: &Cluster) -> Outcome<(u64, u64)> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let status: Vec<_> = cluster.status().await.into_iter().flatten().filter_map(|one| one.replica).collect();
        let furthest = status.iter().map(|replica| replica.last_executed).max().unwrap_or(0);
        let view = status.iter().map(|replica| replica.view).max().unwrap_or(0);
        let good = status.iter().filter(|replica| {
            replica.state == "normal" && replica.view == view && replica.last_executed + 64 >= furthest
        });
        if good.count() == REPLICAS {
            return Ok((view, furthest));
        }
        if Instant::now() > give_up {
            let seen: Vec<_> =
                status.iter().map(|one| (one.replica, one.view, &one.state, one.last_executed)).collect();
            return Err(format!("the replicas are not level after {PATIENCE:?}: {seen:?}").into());
        }
        pause(LOOK).await;
    }
}

/// The longest time after the kill without an answer to anybody, and to one of the clients.
fn gaps(acknowledged: &[Acknowledged], killed: Instant, clients: usize) -> (Duration, Duration) {
    let longest = |times: &mut dyn Iterator<Item = Instant>| {
        let mut last = killed;
        let gaps = times.filter(|at| *at > killed).map(|at| at - std::mem::replace(&mut last, at));
        gaps.max().unwrap_or_default()
    };
    let mut in_time: Vec<_> = acknowledged.to_vec();
    in_time.sort_by_key(|one| one.at);
    let all = longest(&mut in_time.iter().map(|one| one.at));
    let each =
        (0..clients).map(|client| longest(&mut in_time.iter().filter(|one| one.client == client).map(|one| one.at)));
    (all, each.max().unwrap_or_default())
}

/// An attribute that one client makes and removes in turn.
struct Slot {
    name: u64,
    /// Steps acknowledged; the next is this one: even makes it, odd removes it.
    done: u64,
}

impl Slot {
    fn new(name: u64) -> Slot {
        Slot { name, done: 0 }
    }

    fn step(&self, ino: Ino) -> Call {
        let (class, name) = (XattrClass::User, sealed_name(self.name));
        call(if self.done.is_multiple_of(2) {
            Op::SetXattr { ino, class, name, value: value(self.done), how: XattrHow::Create }
        } else {
            Op::RemoveXattr { ino, class, name }
        })
    }
}

/// The value that a step gives its attribute.
fn value(step: u64) -> Bytes {
    Bytes::from(step.to_be_bytes().to_vec())
}

/// One client.
struct Worker {
    client: usize,
    session: Session,
    file: Ino,
    slots: Vec<Slot>,
    wrong: Vec<String>,
    shared: Arc<Shared>,
}

impl Worker {
    async fn run(mut self) -> Worker {
        // By ticket: which slot, and when it was asked.
        let mut outstanding: BTreeMap<u64, (usize, Instant)> = BTreeMap::new();
        let mut idle: Vec<usize> = (0..self.slots.len()).collect();
        let mut ended = Vec::new();
        loop {
            let over = self.shared.over.load(Ordering::Relaxed);
            while !over && self.session.can_submit() {
                let Some(slot) = idle.pop() else { break };
                let ticket = self.session.submit(vec![self.slots[slot].step(self.file)]);
                outstanding.insert(ticket, (slot, Instant::now()));
            }
            if over && outstanding.is_empty() {
                return self;
            }
            self.session.wait(Instant::now() + LOOK, &mut ended).await;
            let at = Instant::now();
            for ended in ended.drain(..) {
                let (ticket, wrong) = match ended {
                    Ended::Answered { ticket, answers } => (ticket, self.judge(&answers)),
                    Ended::Failed { ticket, why } => (ticket, Some(why)),
                };
                let Some((slot, asked)) = outstanding.remove(&ticket) else { continue };
                if let Some(wrong) = wrong {
                    // What became of the attribute nobody knows: the slot is not used again.
                    self.wrong.push(format!("client {}, step {}: {wrong}", self.client, self.slots[slot].done));
                    continue;
                }
                self.slots[slot].done += 1;
                idle.push(slot);
                self.shared.acknowledged.lock().push(Acknowledged { client: self.client, asked, at });
            }
        }
    }

    fn judge(&self, answers: &[Answer]) -> Option<String> {
        (answers != [Answer::Done(Reply::Unit)]).then(|| format!("lost or done twice: {answers:?}"))
    }
}

/// Reads every attribute of one client from the cluster, and says which are not as acknowledged.
async fn check_end(cluster: &Cluster, worker: &Worker) -> Outcome<Vec<String>> {
    let mut wrong = Vec::new();
    let mut session = cluster.users[worker.client].session();
    for slot in &worker.slots {
        let (class, name) = (XattrClass::User, sealed_name(slot.name));
        let answers = session.ask(vec![call(Op::GetXattr { ino: worker.file, class, name })]).await?;
        let there = !slot.done.is_multiple_of(2);
        let want = match there {
            true => Answer::Done(Reply::Value(value(slot.done - 1))),
            false => Answer::Denied(Denied::NoAttribute),
        };
        if answers != [want] {
            wrong.push(format!("client {} has {answers:?} after step {}", worker.client, slot.done));
        }
    }
    Ok(wrong)
}

fn report(options: &Options, style: Style, trials: &[Trial], wrong: &[String]) -> Outcome<bool> {
    let header = ["time without an answer", "trials", "p50 s", "p99 s", "max s", "lost or done twice"];
    let mut table = Table::new(style, &header);
    let mut p99s = Vec::new();
    for (name, pick) in [
        ("to anybody", (|trial| trial.gap) as fn(&Trial) -> Duration),
        ("to the unluckiest client", |trial| trial.client_gap),
    ] {
        let mut gaps: Vec<_> = trials.iter().map(pick).collect();
        gaps.sort_unstable();
        let seconds = |percent| percentile(&gaps, percent).as_secs_f64();
        let cells = [50, 99, 100].map(|percent| format!("{:.2}", seconds(percent)));
        let mut row = vec![name.to_owned(), trials.len().to_string()];
        row.extend(cells);
        row.push(wrong.len().to_string());
        let all: Vec<_> = trials.iter().map(|trial| pick(trial).as_secs_f64()).collect();
        table.row(
            &row,
            json!({ "what": name, "p50_s": seconds(50), "p99_s": seconds(99), "max_s": seconds(100),
            "trials_s": all }),
        );
        p99s.push(seconds(99));
    }
    let changes: Vec<_> = trials.iter().map(|trial| trial.views).collect();
    let most = changes.iter().max().copied().unwrap_or(0);
    table.note(&format!("view changes a trial: {most} at most"));
    table.finish(&json!({ "trials": trials.len(), "log": options.log.name(), "clients": options.clients,
        "outstanding": options.outstanding, "view_changes": changes, "wrong": wrong }));
    wrong.iter().take(10).for_each(|wrong| eprintln!("error: {wrong}"));
    let slow = options.limit.is_some_and(|limit| p99s[0] > limit);
    if slow {
        eprintln!("error: the p99 without any answer is {:.2} s, over the limit", p99s[0]);
    }
    Ok(wrong.is_empty() && !slow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_from_the_kill() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let one = |client, ms| Acknowledged { client, asked: at(0), at: at(ms) };
        // Client 1 is heard before client 0, and what was before the kill does not count.
        let acknowledged = [one(0, 100), one(1, 2000), one(0, 900), one(0, 2500), one(1, 2600)];
        let (all, each) = gaps(&acknowledged, at(500), 2);
        assert_eq!((all.as_millis(), each.as_millis()), (1100, 1600));
    }
}
