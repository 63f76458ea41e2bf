//! `cargo xtask bench bft reads`: reads that one replica proves, beside the same reads ordered.
//!
//! Both are asked by the product's own session, for the attributes of files, in a closed loop. Somebody
//! else writes a little meanwhile, or nothing would be of lately.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use client::session::Session;
use meta::op::{AttrChange, SetTime};
use meta::{Answer, Ino, Op};
use proto::link::Identity;
use serde_json::json;

use crate::cluster::{CLIENTS, Cluster, LogPlace, user_key};
use crate::load::percentile;
use crate::table::{Style, Table};
use crate::work::call;
use crate::{Outcome, positive, usage};

/// Clients, and reads that each has outstanding.
const LOADS: [(usize, usize); 3] = [(1, 1), (4, 16), (16, 16)];

/// Reads proven by one replica, beside the same reads ordered.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// How long each load is measured.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 5.0)]
    seconds: f64,
    /// How old an answer may be.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 5.0)]
    age: f64,
    /// Changes a second by somebody else.
    #[arg(long, value_name = "PER-SECOND", value_parser = positive, default_value_t = 20.0)]
    writes: f64,
    /// Where the vote logs are.
    #[arg(long, value_enum, default_value = "disk")]
    log: LogPlace,
}

/// What one load came to.
struct Figures {
    /// Sorted.
    latencies: Vec<Duration>,
    elapsed: Duration,
    cpu: Duration,
    proven: u64,
}

impl Figures {
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    fn ms(&self, percent: usize) -> f64 {
        percentile(&self.latencies, percent).as_secs_f64() * 1e3
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len().max(1) as f64
    }
}

/// Runs all loads, each ordered and proven.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let cluster = Cluster::start(options.log).await?;
    let writing = tokio::spawn(write(session(&cluster, CLIENTS - 1)?, cluster.files[CLIENTS - 1], options.writes));
    let columns =
        ["reads", "clients", "outstanding", "reads/s", "p50 ms", "p99 ms", "CPU us/read", "proven", "of ordered"];
    let mut table = Table::new(style, &columns);
    for (clients, outstanding) in LOADS {
        let mut ordered = None;
        for age in [None, Some(Duration::from_secs_f64(options.age))] {
            let figures = measure(&cluster, clients, outstanding, options, age).await?;
            let count = figures.latencies.len().max(1) as f64;
            let (rate, share) = (figures.rate(), figures.proven as f64 / count);
            let ratio = ordered.map(|ordered: f64| rate / ordered);
            let what = if age.is_some() { "proven" } else { "ordered" };
            let cells = vec![
                what.to_owned(),
                clients.to_string(),
                (clients * outstanding).to_string(),
                format!("{rate:.0}"),
                format!("{:.2}", figures.ms(50)),
                format!("{:.2}", figures.ms(99)),
                format!("{:.0}", figures.cpu_us()),
                format!("{:.1} %", share * 100.0),
                ratio.map_or("1".to_owned(), |ratio| format!("{ratio:.1}")),
            ];
            let value = json!({
                "reads": what, "clients": clients, "outstanding": clients * outstanding, "reads_per_second": rate,
                "latency_ms_p50": figures.ms(50), "latency_ms_p99": figures.ms(99),
                "cpu_us_per_read": figures.cpu_us(), "proven": share, "of_ordered": ratio,
            });
            table.row(&cells, value);
            ordered = ordered.or(Some(rate));
        }
    }
    writing.abort();
    table.finish(&json!({ "age_seconds": options.age, "writes_per_second": options.writes }));
    Ok(true)
}

/// A session of a user, as the product has it.
fn session(cluster: &Cluster, user: usize) -> Outcome<Session> {
    let secret = user_key(user).secret();
    let identity = Identity::new(&secret)?;
    // Not one of those that `Principal::session` gives out.
    static NUMBERS: AtomicU64 = AtomicU64::new(1 << 32);
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    Ok(Session::open(&cluster.view, &identity, &secret, number, "bench")?)
}

/// Changes a file so many times a second.
async fn write(session: Session, file: Ino, rate: f64) {
    let mut every = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    loop {
        every.tick().await;
        let change = AttrChange { mtime: Some(SetTime::Now), ..AttrChange::default() };
        let _ = session.call(call(Op::SetAttr { ino: file, change })).await;
    }
}

async fn measure(
    cluster: &Cluster,
    clients: usize,
    outstanding: usize,
    options: &Options,
    age: Option<Duration>,
) -> Outcome<Figures> {
    let over = Arc::new(AtomicBool::new(false));
    let sessions = (0..clients).map(|user| session(cluster, user)).collect::<Outcome<Vec<_>>>()?;
    let warm = Instant::now() + Duration::from_secs(1);
    let mut tasks = Vec::new();
    for index in 0..clients * outstanding {
        let (session, file) = (sessions[index % clients].clone(), cluster.files[index % cluster.files.len()]);
        tasks.push(tokio::spawn(read(session, file, age, warm, over.clone())));
    }
    tokio::time::sleep_until(warm.into()).await;
    let before = (Instant::now(), cluster.usage().cpu + usage::own_cpu());
    tokio::time::sleep_until((warm + Duration::from_secs_f64(options.seconds)).into()).await;
    let (elapsed, cpu) = (before.0.elapsed(), (cluster.usage().cpu + usage::own_cpu()).saturating_sub(before.1));
    over.store(true, Ordering::Relaxed);
    let (mut latencies, mut proven) = (Vec::new(), 0);
    for task in tasks {
        let (mine, shown) = task.await??;
        latencies.extend(mine);
        proven += shown;
    }
    latencies.sort_unstable();
    Ok(Figures { latencies, elapsed, cpu, proven })
}

/// Reads until it is over; the latencies from `warm` on, and how many answers were proven.
async fn read(
    session: Session,
    file: Ino,
    age: Option<Duration>,
    warm: Instant,
    over: Arc<AtomicBool>,
) -> Outcome<(Vec<Duration>, u64)> {
    let (mut latencies, mut proven) = (Vec::new(), 0);
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let ask = call(Op::GetAttr { ino: file });
        let (answer, shown) = match age {
            None => (session.call(ask).await?.map_or_else(Answer::Denied, Answer::Done), false),
            Some(age) => {
                let read = session.read_within(ask, age).await?;
                (read.answer, matches!(read.source, client::Source::Proven { .. }))
            }
        };
        if !matches!(answer, Answer::Done(_)) {
            return Err(format!("a read was refused: {answer:?}").into());
        }
        if asked >= warm {
            latencies.push(asked.elapsed());
            proven += u64::from(shown);
        }
    }
    Ok((latencies, proven))
}
