//! `passthrough SOURCE MOUNTPOINT`: mounts a real directory through this crate's FUSE layer.
//!
//! The yardstick for benchmarks: what FUSE itself costs, without anything of Mangrove behind it.

mod filesystem;
mod inodes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use filesystem::Passthrough;
use fuse::wire::{MountOptions, Mounted, Session, SessionOptions, Unmount};
use tokio::signal::unix::{SignalKind, signal};

/// System calls block the readers, so there are more of them than a filesystem that awaits needs.
const READERS: usize = 8;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [source, mountpoint] = arguments.as_slice() else {
        eprintln!("usage: passthrough SOURCE MOUNTPOINT");
        return ExitCode::from(2);
    };
    match run(source, mountpoint).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("passthrough: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(source: &std::path::Path, mountpoint: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let filesystem = Arc::new(Passthrough::new(source)?);
    let options = MountOptions {
        subtype: "passthrough".into(),
        source: "passthrough".into(),
        allow_other: rustix::process::geteuid().is_root(),
        ..MountOptions::default()
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mounted, connection) = Mounted::mount(mountpoint, &options)?;
    let served = SessionOptions { readers: READERS, ..SessionOptions::default() };
    let session = Session::start(mounted, connection, filesystem, served).await?;
    println!("mounted at {}", session.mountpoint().display());
    tokio::select! {
        _ = session.ended() => return Ok(()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    session.unmount(Unmount::Clean).await?;
    session.ended().await;
    Ok(())
}
