//! `cargo xtask bench restart`: how long a replica takes to start again, by how much it has to read.
//!
//! A start reads the newest snapshot of the log, which stands for the whole state, and executes what
//! the log has gained since. So both are varied: files in the namespace, and operations since.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::Outcome;
use crate::cluster::{CLIENTS, Cluster, LogPlace, REPLICAS};
use crate::failover;
use crate::link::Session;
use crate::table::{Style, Table};
use crate::work::{self, operation};

/// The replica that is restarted; a backup in the first view.
const RESTARTED: usize = REPLICAS - 1;
const PAYLOAD: usize = 512;
/// Requests that each client has outstanding meanwhile.
const OUTSTANDING: usize = 16;

/// Kills a replica (`kill -9`) and measures how long it takes to be back.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Files in the namespace.
    #[arg(long, value_delimiter = ',', default_value = "0,20000,100000")]
    files: Vec<usize>,
    /// Operations of 512 B, one a request, that the log gains before the kill.
    #[arg(long, value_delimiter = ',', default_value = "0,5000,20000")]
    operations: Vec<u64>,
    /// Where the vote logs are.
    #[arg(long, value_enum, default_value = "disk")]
    log: LogPlace,
}

/// Measures each number of files with each number of operations.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let header = ["files", "operations since", "log MiB", "ready ms", "level ms"];
    let mut table = Table::new(style, &header);
    for files in &options.files {
        let mut cluster = Cluster::start(options.log).await?;
        if *files > 0 {
            work::make_volume(&mut cluster.users[0].session(), "more", *files).await?;
        }
        // A first restart: what the log holds by now is read, and counted for nobody.
        restart(&mut cluster).await?;
        for operations in &options.operations {
            change(&cluster, *operations).await?;
            let log = bytes(&cluster.data(RESTARTED).join("log"))?;
            let (ready, level) = restart(&mut cluster).await?;
            let mib = log as f64 / f64::from(1 << 20);
            let [ready, level] = [ready, level].map(|took| took.as_secs_f64() * 1000.0);
            let cells = [
                files.to_string(),
                operations.to_string(),
                format!("{mib:.1}"),
                format!("{ready:.0}"),
                format!("{level:.0}"),
            ];
            let value = json!({
                "files": files, "operations": operations, "log_mib": mib, "ready_ms": ready, "level_ms": level
            });
            table.row(&cells, value);
        }
    }
    table.note(
        "ready: from the start of the process until it serves; level: until it votes and is as far as the others",
    );
    table.finish(&json!({ "log": options.log.name(), "payload": PAYLOAD }));
    Ok(true)
}

/// Kills the replica and starts it; how long until it is ready, and until it is level.
async fn restart(cluster: &mut Cluster) -> Outcome<(Duration, Duration)> {
    failover::settled(cluster).await?;
    cluster.kill(RESTARTED);
    let began = Instant::now();
    cluster.launch(RESTARTED);
    cluster.ready([RESTARTED]);
    let ready = began.elapsed();
    failover::settled(cluster).await?;
    Ok((ready, began.elapsed()))
}

/// So many operations, by all clients together.
async fn change(cluster: &Cluster, operations: u64) -> Outcome<()> {
    let each = operations.div_ceil(CLIENTS as u64);
    let clients = (0..CLIENTS).map(|client| (cluster.users[client].session(), cluster.files[client]));
    let tasks: Vec<_> = clients.map(|(session, file)| tokio::spawn(ask(session, file, each))).collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn ask(mut session: Session, file: meta::Ino, count: u64) -> Outcome<()> {
    let (mut asked, mut answered, mut ended) = (0, 0, Vec::new());
    while answered < count {
        while asked < count && asked - answered < OUTSTANDING as u64 && session.can_submit() {
            session.submit(vec![operation(file, PAYLOAD, asked)]);
            asked += 1;
        }
        session.wait(Instant::now() + Duration::from_secs(1), &mut ended).await;
        answered += ended.drain(..).count() as u64;
    }
    Ok(())
}

/// What the files in a folder add up to.
fn bytes(folder: &Path) -> Outcome<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}
