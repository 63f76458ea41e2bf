//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Storage for people who do not fully trust the machines that store their data.
#[derive(Debug, Parser)]
#[command(
    name = "mangrove",
    version,
    about,
    max_term_width = 100,
    after_help = "Start here:  mangrove up ~/mangrove\n  \
                  runs a small cluster on this machine and mounts it; Ctrl-C stops it, and the same\n  \
                  command brings the files back."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) access: Access,
    /// Say more: -v status changes, -vv decisions, -vvv every message (or set MANGROVE_LOG).
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster, and who is asking.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Access {
    /// The cluster's view. Default: the cluster that `mangrove up` started last.
    #[arg(long, global = true, value_name = "FILE", env = "MANGROVE_CLUSTER")]
    pub(crate) cluster: Option<PathBuf>,
    /// Your secret key. Default: the admin key beside the view.
    #[arg(long, global = true, value_name = "FILE", env = "MANGROVE_KEY")]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster in this process and mount it.
    Up(Up),
    /// Make a cluster of separate processes.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Run a node of a cluster.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Make and list volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Mount a volume; stays in the foreground until Ctrl-C, unless told otherwise.
    Mount(Mount),
    /// Show what is known of a file, without mounting its volume.
    Stat(Stat),
    /// Unmount.
    Umount(Umount),
    /// Show every node and every mount.
    Status(Status),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Up {
    /// Where to mount; made if it is missing.
    #[arg(required_unless_present = "no_mount")]
    pub(crate) mountpoint: Option<PathBuf>,
    /// Where the cluster lives. Default: ~/.local/share/mangrove.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Replicas of the namespace: 3f+1 of them tolerate f liars. Only for a new cluster.
    #[arg(long, default_value_t = 4)]
    pub(crate) replicas: usize,
    /// Storage nodes. Only for a new cluster.
    #[arg(long, default_value_t = 4)]
    pub(crate) nodes: usize,
    /// Run the cluster without mounting it.
    #[arg(long, conflicts_with = "mountpoint")]
    pub(crate) no_mount: bool,
    #[command(flatten)]
    pub(crate) using: Using,
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub(crate) struct Age {
    /// Names, attributes and links may be as they were this long ago (5s, 500ms): one replica can then
    /// prove them, and nothing need be agreed on. Default: they are of now.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub(crate) max_age: Option<Duration>,
}

pub(crate) fn parse_age(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        _ => return Err("say a whole number and ms, s or min: 5s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "say a whole number and ms, s or min: 5s".to_owned())?;
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

/// How a mount uses this machine and the cluster.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Using {
    #[command(flatten)]
    pub(crate) cache: Cache,
    #[command(flatten)]
    pub(crate) lost: Lost,
    #[command(flatten)]
    pub(crate) age: Age,
    /// Have every operation agreed on before it returns, and take no leases. Otherwise what nobody else uses
    /// is changed here at once and sent within seconds, or by fsync and sync; other mounts see it at once in
    /// any case.
    #[arg(long)]
    pub(crate) ordered: bool,
}

/// The mount's local cache.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Cache {
    /// Memory for blocks at hand, MiB.
    #[arg(long, default_value_t = 128, value_name = "MIB")]
    pub(crate) cache_memory: u64,
    /// Disk for blocks at hand, MiB; 0 for none.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub(crate) cache_disk: u64,
    /// The folder for them, used by one mount at a time. Default: one below ~/.cache/mangrove, removed when no
    /// mount has used it for 30 days and another is made.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
}

/// What becomes of what a mount loses because it was cut off for over a minute while others wanted the same.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Lost {
    /// The folder that gets a folder for each such loss: what was done, in words, and the content of the files
    /// that were written. Default: ~/.local/state/mangrove/lost; for root /var/lib/mangrove/lost.
    #[arg(long, value_name = "DIR")]
    pub(crate) lost_dir: Option<PathBuf>,
    /// How much content is kept there at most, with what was kept before and is not removed yet, MiB. The list
    /// says what was left out. Nothing is removed but by you.
    #[arg(long, default_value_t = 10240, value_name = "MIB")]
    pub(crate) lost_size: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Write keys and settings for separate processes into a new folder.
    New(ClusterNew),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterNew {
    /// The folder to make: cluster.toml, admin.key and node-N/node.toml for each node.
    pub(crate) dir: PathBuf,
    /// Replicas of the namespace: 3f+1 of them tolerate f liars.
    #[arg(long, default_value_t = 4)]
    pub(crate) replicas: usize,
    /// Storage nodes.
    #[arg(long, default_value_t = 4)]
    pub(crate) nodes: usize,
    /// The address that all nodes listen on; edit cluster.toml for more hosts.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// The first node's port; the others follow. Default: free ports of this machine.
    #[arg(long)]
    pub(crate) base_port: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run one node; stays in the foreground until Ctrl-C.
    Run(NodeRun),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NodeRun {
    /// The node's node.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume.
    Create(VolumeCreate),
    /// List volumes.
    List(VolumeList),
    /// Keep a volume as it is now; list and delete what is kept.
    ///
    /// A snapshot takes no time and no space of its own: what changes afterwards is kept as it was. Mounts have
    /// them, read-only, in `.mangrove/snapshots` of their root directory, which is not listed there.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Say for how long what is removed is kept, and end what is.
    ///
    /// What is removed or replaced is found in `.mangrove/trash` of every mount, by the path that it had, until its
    /// time is up: `mv` gives it back, `rm` ends it. It counts in the volume's quota, and goes, the oldest first,
    /// where that would be exceeded.
    #[command(subcommand)]
    Trash(TrashCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrashCommand {
    /// Say for how long a volume's trash keeps things, those that are in it, too.
    Keep(TrashKeep),
    /// End all that is in a volume's trash now.
    Empty(TrashEmpty),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TrashKeep {
    /// Of which volume.
    pub(crate) volume: String,
    /// For how long: a whole number and s, min, h, d or w; `off`: nothing is kept.
    #[arg(value_parser = parse_kept)]
    pub(crate) time: u32,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TrashEmpty {
    /// Of which volume.
    pub(crate) volume: String,
}

/// Seconds; none for `off`.
pub(crate) fn parse_kept(text: &str) -> Result<u32, String> {
    let wrong = || "say a whole number and s, min, h, d or w, at most 100 years: 7d; or off".to_owned();
    if text == "off" {
        return Ok(0);
    }
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let kept = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)).ok_or_else(wrong)?;
    let longest = 100 * 366 * 86_400;
    if (1..=longest).contains(&kept) { u32::try_from(kept).map_err(|_| wrong()) } else { Err(wrong()) }
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot, with all that programs have written and closed on any mount.
    Take(SnapshotTake),
    /// List a volume's snapshots, the latest last.
    List(SnapshotList),
    /// Delete a snapshot.
    Delete(SnapshotDelete),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SnapshotTake {
    /// Of which volume.
    pub(crate) volume: String,
    /// Its name: 1 to 64 letters, digits, and any of `._-:+`, no dot first [default: the time in UTC]
    pub(crate) name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SnapshotList {
    /// Of which volume.
    pub(crate) volume: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SnapshotDelete {
    /// Of which volume.
    pub(crate) volume: String,
    /// Which.
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumeCreate {
    /// Its name: 1 to 64 letters, digits, dots, dashes and underscores.
    pub(crate) name: String,
    /// For how long its trash keeps what is removed: a whole number and s, min, h, d or w; or `off`.
    #[arg(long, value_name = "TIME", value_parser = parse_kept, default_value = "1d")]
    pub(crate) trash: u32,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumeList {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, ClapArgs)]
#[command(override_usage = "mangrove mount [OPTIONS] [VOLUME] MOUNTPOINT\n       \
                      mangrove mount --restart MOUNTPOINT")]
pub(crate) struct Mount {
    /// [VOLUME] MOUNTPOINT: what to mount (default: main) and where.
    #[arg(num_args = 1..=2, required_unless_present = "restart", value_names = ["VOLUME", "MOUNTPOINT"])]
    pub(crate) what: Vec<PathBuf>,
    /// Mount options as mount(8) has them, with commas: ro, noexec, nodev, nosuid, noatime, allow_other, uid=N,
    /// gid=N, cache-size=SIZE, cache-dir=DIR, lost-dir=DIR, lost-size=SIZE, writeback=off, cluster=FILE, key=FILE ...
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Return when it is mounted; `umount` ends it.
    #[arg(long)]
    pub(crate) background: bool,
    /// Stay until Ctrl-C or an unmount: the default.
    #[arg(long, conflicts_with = "background")]
    pub(crate) foreground: bool,
    /// Have what is mounted at MOUNTPOINT go on with the program that is installed now; programs that use it
    /// wait for a moment.
    #[arg(long, value_name = "MOUNTPOINT", conflicts_with_all = ["what", "options", "background", "foreground"])]
    pub(crate) restart: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) using: Using,
    /// What this process is to its own kind: the one that serves, or the one in the background.
    #[arg(long, hide = true)]
    pub(crate) role: Option<Role>,
}

/// The processes behind one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Serves what its supervisor mounts.
    Server,
    /// Supervises in the background.
    Daemon,
}

#[derive(Debug, ClapArgs)]
#[command(override_usage = "mangrove stat [OPTIONS] [VOLUME] PATH")]
pub(crate) struct Stat {
    /// [VOLUME] PATH: the volume (default: main) and a path from its root.
    #[arg(num_args = 1..=2, required = true, value_names = ["VOLUME", "PATH"])]
    pub(crate) what: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) age: Age,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Umount {
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Unmount even while files are open there.
    #[arg(long)]
    pub(crate) lazy: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Status {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every two seconds.
    #[arg(long, conflicts_with = "json")]
    pub(crate) watch: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_whole_numbers_with_a_unit() {
        assert_eq!(parse_age("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_age("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_age("2min"), Ok(Duration::from_secs(120)));
        assert!(
            ["", "5", "s", "-1s", "1.5s", "5 s", "99999999999999999999s"].iter().all(|text| parse_age(text).is_err())
        );
    }
}
