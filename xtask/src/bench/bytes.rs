//! `cargo xtask bench bytes`: what goes over the network when a large file changes a little.
//!
//! The mount that edits is on a host of its own, and so is one that has read the file and reads it again.
//! Counted from outside, at their cables: all Ethernet frames to and from the cluster, so requests,
//! replies, blocks (three copies), TLS, TCP and what goes on when nothing is done. What went to each node
//! is counted by the kernel, a connection at a time, without headers.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tests::janitor::when_all_is_over;
use tests::net::{Traffic, inside};
use tests::process::ANSWER;
use tests::random::noise;
use tests::work::write_big_file;
use tests::{Cluster, Net, run_ok};

const MIB: u64 = 1 << 20;
/// Copies of each block.
const COPIES: u64 = 3;
/// The first node's port; replicas are first.
const PORT: u64 = 16_000;
const REPLICAS: u64 = 4;
/// What is done is sent within five seconds; then the mounts are quiet.
const SETTLE: Duration = Duration::from_secs(8);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// MiB of the file that is edited.
    #[arg(long, default_value_t = 10)]
    size: u64,
    /// MiB of the log that is appended to.
    #[arg(long, default_value_t = 1024)]
    log: u64,
    /// Prints the table for a document.
    #[arg(long)]
    markdown: bool,
    /// Tests this `mangrove` instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where the data goes: six times the log.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What an edit took.
struct Row {
    what: String,
    file: u64,
    edit: Traffic,
    /// To the storage nodes and to the replicas.
    blocks: u64,
    names: u64,
    again: Traffic,
}

/// Measures everything and prints a table. Gives whether every edit sent at most a hundredth of the file a
/// copy.
///
/// # Errors
/// If this is not root, or the command does not build.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = tests::cannot_mount() {
        bail!("{why}");
    }
    ensure!(rustix::process::geteuid().is_root(), "only root can make network namespaces; run it as root");
    super::use_release(options.binary.as_deref())?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new().prefix("mangrove-bytes-").tempdir_in(parent)?;
    when_all_is_over(&format!("rm -rf --one-file-system '{}'", work.path().display()));
    let cluster = Cluster::start_in(work.path(), Some(Net::new(2)));
    let cache = (4 * options.log).to_string();
    let [writer, reader] = [0, 1].map(|client| cluster.mount_at(client, &["--cache-disk", &cache]));
    for mount in [&writer, &reader] {
        when_all_is_over(&format!("umount -l '{}'", mount.path().display()));
    }
    let bench = Bench { cluster: &cluster, writer: writer.path(), reader: reader.path() };
    let idle = bench.idle();
    let (size, log) = (options.size * MIB, options.log * MIB);
    let mut rows = Vec::new();
    write_big_file(&writer.path().join("file"), options.size, 1);
    rows.push(bench.row("one byte in the middle, in place", "file", size, |path| {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(b"!", size / 2)?;
        file.sync_all()
    })?);
    rows.push(bench.row("one byte inserted at the start, in place", "file", size, |path| {
        let new = with_a_byte_before(path)?;
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&new, 0)?;
        file.sync_all()
    })?);
    rows.push(bench.row("one byte inserted at the start, a new file renamed", "file", size, |path| {
        let (new, spare) = (with_a_byte_before(path)?, path.with_extension("new"));
        let mut file = File::create(&spare)?;
        file.write_all(&new)?;
        file.sync_all()?;
        fs::rename(&spare, path)?;
        File::open(path.parent().expect("a folder"))?.sync_all()
    })?);
    write_big_file(&writer.path().join("log"), options.log, 2);
    rows.push(bench.row("10 appends of 4 KiB, each synced", "log", log, |path| {
        let mut file = OpenOptions::new().append(true).open(path)?;
        (0..10).try_for_each(|index| {
            file.write_all(&noise(3, index * 4096, 4096))?;
            file.sync_all()
        })
    })?);
    writer.stop();
    reader.stop();
    print(&rows, idle, options.markdown);
    Ok(rows.iter().all(|row| row.blocks / COPIES <= row.file / 100))
}

fn with_a_byte_before(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut new = b"!".to_vec();
    File::open(path)?.read_to_end(&mut new)?;
    Ok(new)
}

struct Bench<'a> {
    cluster: &'a Cluster,
    writer: &'a Path,
    reader: &'a Path,
}

impl Bench<'_> {
    /// Has one mount edit a file that both have read, and the other read it again.
    fn row(
        &self,
        what: &str,
        name: &str,
        file: u64,
        edit: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> anyhow::Result<Row> {
        let [here, there] = [self.writer.join(name), self.reader.join(name)];
        sum(&here)?;
        sum(&there)?;
        wait(SETTLE);
        let (before, nodes) = (self.cluster.net().traffic(0), self.by_node()?);
        edit(&here).with_context(|| what.to_owned())?;
        wait(SETTLE);
        let edit = self.cluster.net().traffic(0).since(before);
        let (mut blocks, mut names) = (0, 0);
        for (node, sent) in self.by_node()? {
            let sent = sent - nodes.get(&node).unwrap_or(&0).min(&sent);
            if node < REPLICAS { names += sent } else { blocks += sent }
        }
        let before = self.cluster.net().traffic(1);
        let found = sum(&there)?;
        wait(SETTLE);
        let again = self.cluster.net().traffic(1).since(before);
        ensure!(found == sum(&here)?, "{what}: the mounts differ");
        println!("{what}: done");
        Ok(Row { what: what.to_owned(), file, edit, blocks, names, again })
    }

    /// What goes on in as much time when nothing is done.
    fn idle(&self) -> Traffic {
        wait(SETTLE);
        let before = self.cluster.net().traffic(0);
        wait(SETTLE);
        self.cluster.net().traffic(0).since(before)
    }

    /// Bytes that the editing host sent to each node, over all connections that are open.
    fn by_node(&self) -> anyhow::Result<BTreeMap<u64, u64>> {
        let mut command = Command::new("ss");
        let all = run_ok(&mut inside(self.cluster.net().client(0), command.args(["-tinHO"])), ANSWER);
        let mut nodes = BTreeMap::new();
        for line in all.lines() {
            let port = line.split_whitespace().nth(4).and_then(|peer| peer.rsplit(':').next()?.parse::<u64>().ok());
            let sent = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_sent:")?.parse::<u64>().ok());
            if let (Some(port @ PORT..), sent) = (port, sent) {
                *nodes.entry(port - PORT).or_insert(0) += sent.unwrap_or(0);
            }
        }
        ensure!(!nodes.is_empty(), "no connections: {all}");
        Ok(nodes)
    }
}

/// The hash of what a file holds, read to its end.
fn sum(path: &Path) -> anyhow::Result<String> {
    Ok(run_ok(Command::new("sha256sum").arg(path), Duration::from_secs(600))
        .split(' ')
        .next()
        .context("a sum")?
        .to_owned())
}

fn wait(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::sleep(left);
    }
}

fn print(rows: &[Row], idle: Traffic, markdown: bool) {
    let kib = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0);
    let share = |bytes: u64, file: u64| format!("{:.3} %", 100.0 * bytes as f64 / file as f64);
    let heads = [
        "edit",
        "file MiB",
        "sent KiB",
        "received KiB",
        "blocks KiB",
        "a copy KiB",
        "of the file",
        "names KiB",
        "read again, KiB",
        "of the file",
    ];
    let mut table = vec![heads.map(str::to_owned)];
    table.extend(rows.iter().map(|row| {
        let copy = row.blocks / COPIES;
        [
            row.what.clone(),
            (row.file / MIB).to_string(),
            kib(row.edit.sent),
            kib(row.edit.received),
            kib(row.blocks),
            kib(copy),
            share(copy, row.file),
            kib(row.names),
            kib(row.again.received),
            share(row.again.received, row.file),
        ]
    }));
    println!("\nsent, received: all frames at the cable of the mount that edits. blocks: to the four storage nodes,");
    println!("all three copies; a copy: a third of it. names: to the four replicas. read again: what the other mount");
    println!("received.");
    println!("Idle for as long: {} KiB sent, {} received.\n", kib(idle.sent), kib(idle.received));
    for (index, row) in table.iter().enumerate() {
        let line = row.join(" | ");
        println!("{}", if markdown { format!("| {line} |") } else { line });
        if index == 0 && markdown {
            println!("|---|{}", "--:|".repeat(row.len() - 1));
        }
    }
}
