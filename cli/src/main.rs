//! The `mangrove` command: arguments, progress, exit codes. What it does, the rooms do.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done.

mod args;
mod cluster;
mod config;
mod helper;
mod mount;
mod options;
mod output;
mod snapshot;
mod stat;
mod status;
mod supervise;
mod up;
mod volume;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, ClusterCommand, Command, NodeCommand, Role, VolumeCommand};

fn main() -> ExitCode {
    let args = match helper::translated(std::env::args_os()) {
        Ok(Some(line)) => Args::parse_from(line),
        Ok(None) => Args::parse(),
        Err(error) => {
            eprintln!("mount.mangrove: {error}");
            return ExitCode::from(1);
        }
    };
    start_log(args.verbose);
    if let Command::Mount(mount) = &args.command
        && mount.role != Some(Role::Server)
    {
        // A small process: what serves the mount is another.
        return supervise::run(args.access, args.verbose, mount.clone()).unwrap_or_else(|error| failed(&error));
    }
    take_descriptors();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let done = runtime.block_on(run(args));
    // Tasks that still wait for a peer must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match done {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let access = args.access;
    match args.command {
        Command::Up(up) => up::run(up).await,
        Command::Cluster(ClusterCommand::New(new)) => cluster::new(&new),
        Command::Node(NodeCommand::Run(run)) => cluster::run_node(&run).await,
        Command::Volume(VolumeCommand::Create(create)) => volume::create(&access, &create).await,
        Command::Volume(VolumeCommand::List(list)) => volume::list(&access, &list).await,
        Command::Volume(VolumeCommand::Snapshot(command)) => snapshot::run(&access, command).await,
        Command::Volume(VolumeCommand::Trash(command)) => volume::trash(&access, command).await,
        Command::Mount(mount) => mount::serve(&access, &mount).await,
        Command::Stat(stat) => stat::run(&access, &stat).await,
        Command::Umount(umount) => mount::umount(&umount),
        Command::Status(status) => status::run(&access, &status).await,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // Typed errors tell their whole story themselves; a repeated cause is only noise.
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    eprintln!("mangrove: {message}");
    ExitCode::from(1)
}

/// Open files that a process wants to be able to have: a node with all the links that it admits would use up the
/// 1,024 that are usual, and a log that can't be opened stops a replica. Not all that it may have: that is a billion
/// on some machines, and there are programs that close each by its number when they start.
const DESCRIPTORS: u64 = 1 << 16;

/// Takes so many file descriptors, or as many as it may.
fn take_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if current.is_some_and(|current| current < wanted)
        && let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

/// One worker a core, and at least four: a node's tasks must not starve each other on small machines.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| cores.get().max(4))
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "warn,h2=error,rustls=error",
        1 => "info,h2=warn",
        2 => "debug,h2=info,hyper_util=info,tonic=info,rustls=info,tower=info,sled=info",
        _ => "trace,h2=info,hyper_util=info,sled=info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MANGROVE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
