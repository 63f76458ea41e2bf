//! The filesystems that are compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use tests::{Mount, Up};

use super::peer::{MountedPeer, Peer};

/// Those that are always there, in the order of the report's columns; then come the peers.
pub(crate) const NAMES: [&str; 3] = ["plain", "passthrough", "mangrove"];

/// A running filesystem to measure.
pub(crate) enum Target {
    /// A folder.
    Plain(PathBuf),
    /// The passthrough example: every request goes through the kernel's FUSE and our thin layer to a
    /// folder. What FUSE itself costs.
    Passthrough {
        /// The program that does it.
        program: PathBuf,
        /// What is passed through.
        source: PathBuf,
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// The running mount, but for moments.
        mount: Option<Mount>,
    },
    /// `mangrove up`.
    Mangrove(Box<Up>),
    /// Another filesystem, which somebody has mounted.
    Peer(MountedPeer),
}

impl Target {
    /// Starts one of [`NAMES`] with its data in a new folder below `dir`.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) fn start(name: &str, dir: &Path, passthrough: &Path) -> anyhow::Result<Target> {
        let folder = |name: &str| -> anyhow::Result<PathBuf> {
            let path = dir.join(name);
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
            fs::create_dir(&path).with_context(|| path.display().to_string())?;
            Ok(path)
        };
        match name {
            "plain" => Ok(Target::Plain(folder("plain")?)),
            "passthrough" => {
                let (source, mountpoint) = (folder("passthrough-source")?, folder("passthrough")?);
                let program = passthrough.to_owned();
                let mut target = Target::Passthrough { program, source, mountpoint, mount: None };
                target.mount();
                Ok(target)
            }
            _ => Ok(Target::Mangrove(Box::new(Up::start_in(dir)))),
        }
    }

    /// Starts with a new folder on a peer.
    ///
    /// # Errors
    /// If there can be none.
    pub(crate) fn peer(peer: &Peer) -> anyhow::Result<Target> {
        Ok(Target::Peer(peer.start()?))
    }

    /// The folder to work in.
    pub(crate) fn root(&self) -> PathBuf {
        match self {
            Target::Plain(path) => path.clone(),
            Target::Passthrough { mountpoint, .. } => mountpoint.clone(),
            Target::Mangrove(up) => up.mountpoint(),
            Target::Peer(peer) => peer.root(),
        }
    }

    fn mount(&mut self) {
        if let Target::Passthrough { program, source, mountpoint, mount } = self {
            let mut command = Command::new(&*program);
            let log = source.with_extension("log");
            command.arg(&*source).arg(&*mountpoint);
            *mount = Some(Mount::start_quiet("passthrough", &mut command, mountpoint, &log));
        }
    }

    /// Makes everything cold that can be made so: unmounts, forgets the local cache, mounts again,
    /// and as root has the kernel drop its caches.
    ///
    /// # Errors
    /// If a peer does not come back.
    pub(crate) fn cool(&mut self) -> anyhow::Result<()> {
        match self {
            Target::Plain(_) => {}
            Target::Passthrough { mount, .. } => {
                mount.take().into_iter().for_each(Mount::stop);
                self.mount();
            }
            Target::Mangrove(up) => {
                up.stop();
                up.forget_cache();
                up.again();
            }
            Target::Peer(peer) => peer.remount()?,
        }
        drop_caches();
        Ok(())
    }

    /// Stops it.
    pub(crate) fn stop(self) {
        match self {
            Target::Plain(path) => drop(fs::remove_dir_all(path)),
            Target::Passthrough { mount, .. } => mount.into_iter().for_each(Mount::stop),
            Target::Mangrove(mut up) => up.stop(),
            Target::Peer(peer) => drop(peer),
        }
    }
}

fn drop_caches() {
    rustix::fs::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        eprintln!("not root: the kernel's caches stay warm, and so do \"cold\" figures of the plain folder");
    }
}

/// The kind of filesystem a folder is on.
pub(crate) fn disk_name(path: &Path) -> String {
    let magic = rustix::fs::statfs(path).map(|found| found.f_type as u64).unwrap_or(0);
    match magic {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        other => format!("filesystem {other:#x}"),
    }
}
