//! `cargo xtask bench bft`: how many operations four replicas agree on, how fast, at what cost.
//!
//! Four real replicas on loopback: mutual TLS, signatures verified by each, every vote synced to
//! its log. Closed loop: each client has one operation outstanding. Beside it, in the same run, one
//! `fdatasync` of a 1 KiB append on the same disk, since an operation waits for three of them.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{ClusterId, NodeId};
use client::session::Session;
use meta::op::{AttrChange, SetTime};
use meta::{Call, Caller, Chunking, Op, Redundancy, Reply, VolumeSpec};
use proto::keyfile::KeyFile;
use proto::link::Identity;
use proto::view::{ClusterView, Node as Member, Principal, Role};
use server::{Node, NodeConfig};

const REPLICAS: u8 = 4;
const CLIENTS_MAX: u8 = 64;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut seconds = 5;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                seconds = args.next().and_then(|text| text.parse().ok()).ok_or("--seconds takes a number")?
            }
            _ => return Err(format!("unknown argument {arg}; usage: bench_bft [--seconds N]").into()),
        }
    }
    // In the build folder: on the project's disk, and not among its files.
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let dir = tempfile::Builder::new().prefix("bench-bft-").tempdir_in(target)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    runtime.block_on(run(dir.path(), Duration::from_secs(seconds)))
}

async fn run(dir: &Path, length: Duration) -> Outcome<()> {
    let sync = fdatasync_p50(dir)?;
    let view = view()?;
    let mut nodes = Vec::new();
    for (index, member) in view.nodes.iter().enumerate() {
        let config = NodeConfig {
            view: view.clone(),
            id: member.id,
            secret: node_key(index as u8).secret(),
            data: dir.join(format!("node-{index}")),
            listen: member.address,
            capacity_bytes: None,
            first_start: None,
        };
        nodes.push(Node::start(config).await?);
    }
    let root = make_volume(&view).await?;
    println!("| clients | operations/s | p50 ms | p99 ms | CPU us/operation | operations/CPU-s |");
    println!("|---|---|---|---|---|---|");
    for clients in [1, 8, CLIENTS_MAX] {
        measure(&view, root, clients, Duration::from_millis(500)).await?;
        let figures = measure(&view, root, clients, length).await?;
        println!("{}", figures.row(clients));
    }
    println!();
    println!("one fdatasync of a 1 KiB append, p50: {:.3} ms", sync.as_secs_f64() * 1e3);
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

/// The median of 200 synced appends.
fn fdatasync_p50(dir: &Path) -> Outcome<Duration> {
    let mut file = std::fs::File::create(dir.join("sync-probe"))?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        file.write_all(&[7; 1024])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn node_key(index: u8) -> KeyFile {
    KeyFile::from_seed([index + 1; 32])
}

fn client_key(index: u8) -> KeyFile {
    KeyFile::from_seed([index + 100; 32])
}

/// Four replicas on free ports, and users; no storage node, since only names are agreed on here.
fn view() -> Outcome<ClusterView> {
    let held: Vec<_> = (0..REPLICAS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut nodes = Vec::new();
    for (index, listener) in held.iter().enumerate() {
        nodes.push(Member {
            id: NodeId(index as u32),
            key: node_key(index as u8).secret().public(),
            address: listener.local_addr()?,
            role: Role::Replica,
            domain: format!("node-{index}"),
        });
    }
    let user = |index: u8| Principal {
        name: format!("client-{index}"),
        key: client_key(index).secret().public(),
        uids: None,
        admin: true,
    };
    Ok(ClusterView { cluster: ClusterId([5; 16]), nodes, principals: (0..CLIENTS_MAX).map(user).collect() })
}

fn session(view: &ClusterView, index: u8, number: u64) -> Outcome<Session> {
    let secret = client_key(index).secret();
    Ok(Session::open(view, &Identity::new(&secret)?, &secret, number, "bench")?)
}

async fn make_volume(view: &ClusterView) -> Outcome<meta::Ino> {
    let spec = VolumeSpec {
        name: "bench".into(),
        quota_bytes: 0,
        quota_inodes: 0,
        redundancy: Redundancy::Replicate(1),
        chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
        secrets: std::collections::BTreeMap::new(),
        root_mode: 0o777,
    };
    let call = Call { caller: Caller::default(), op: Op::VolumeCreate(spec) };
    match session(view, 0, 1)?.call(call).await? {
        Ok(Reply::Volume(volume)) => Ok(volume.root),
        other => Err(format!("no volume: {other:?}").into()),
    }
}

struct Figures {
    elapsed: Duration,
    cpu: Duration,
    latencies: Vec<Duration>,
}

impl Figures {
    fn row(mut self, clients: u8) -> String {
        self.latencies.sort_unstable();
        let count = self.latencies.len();
        let at = |percent: usize| self.latencies[(count * percent / 100).min(count - 1)].as_secs_f64() * 1e3;
        let (rate, cpu) = (count as f64 / self.elapsed.as_secs_f64(), self.cpu.as_secs_f64());
        format!(
            "| {clients} | {rate:.0} | {:.2} | {:.2} | {:.0} | {:.0} |",
            at(50),
            at(99),
            cpu * 1e6 / count as f64,
            count as f64 / cpu
        )
    }
}

async fn measure(view: &ClusterView, root: meta::Ino, clients: u8, length: Duration) -> Outcome<Figures> {
    static SESSIONS: AtomicU64 = AtomicU64::new(2);
    let mut tasks = Vec::new();
    let (started, cpu) = (Instant::now(), cpu_time());
    for index in 0..clients {
        let session = session(view, index, SESSIONS.fetch_add(1, Ordering::Relaxed))?;
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            while started.elapsed() < length {
                let change = AttrChange { mtime: Some(SetTime::Now), ..AttrChange::default() };
                let call = Call { caller: Caller::default(), op: Op::SetAttr { ino: root, change } };
                let asked = Instant::now();
                match session.call(call).await {
                    Ok(Ok(_)) => latencies.push(asked.elapsed()),
                    other => return Err(format!("{other:?}")),
                }
            }
            Ok(latencies)
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok(Figures { elapsed: started.elapsed(), cpu: cpu_time().saturating_sub(cpu), latencies })
}

/// User and system time of this process: all replicas and all clients.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // Linux reports 100 ticks a second to user space on every architecture we build for.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
