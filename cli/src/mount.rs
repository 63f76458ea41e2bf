//! Serving a mounted volume, and `mangrove umount`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use client::blocks::Blocks;
use client::cache::{CacheOptions, DiskOptions};
use client::connect::DEFAULT_VOLUME;
use client::fs::{Filesystem, Options};
use client::leased::Leased;
use client::session::Session;
use client::{Caller, Cluster};
use fuse::{Supervised, Word};

use crate::args::{Access, Lost, Mount, Umount, Using};
use crate::cluster::Stop;
use crate::config;
use crate::output::say;

/// How long operations under way may take before the next process gets them.
const LEAVE_MAX: Duration = Duration::from_secs(20);
/// How long an unmount may take to be heard of.
const GONE_MAX: Duration = Duration::from_secs(10);
/// When a cache that no mount uses is removed.
const CACHE_UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// A mounted volume.
pub(crate) struct Mounted {
    mount: fuse::Mount,
    fs: Arc<Filesystem<Leased<Session>, Blocks>>,
}

/// Serves a mount that the supervisor made, from where the process before stopped.
pub(crate) async fn serve(access: &Access, args: &Mount) -> anyhow::Result<ExitCode> {
    // Heard and not heeded: the supervisor is told to stop, and has us end in order.
    let _deaf = Stop::listen()?;
    let mut supervised = Supervised::by_stdin()?;
    let (volume, mountpoint) = volume_and(&args.what)?;
    let options = crate::options::parse(&args.options)?.fuse();
    let cluster = config::connect(access, &label(mountpoint))?;
    let volume = cluster.open_volume(volume).await?;
    let Some(turn) = supervised.turn().await? else { return Ok(ExitCode::SUCCESS) };
    let fs = open(&cluster, volume, mountpoint, &args.using)?;
    let mount = fuse::serve(fs.clone(), mountpoint, options, turn).await?;
    let mounted = Mounted { mount, fs };
    supervised.serving();
    loop {
        let word = tokio::select! {
            () = mounted.ended() => {
                supervised.gone();
                break;
            }
            word = supervised.word() => word,
        };
        match word {
            Word::Leave => match mounted.leave().await {
                Ok(synced) => {
                    supervised.left(synced);
                    // Nothing is to be tidied up: the next process has it all by now.
                    std::process::exit(0);
                }
                Err(error) => supervised.stays(error.to_string()),
            },
            Word::Close { detached } => {
                if !detached {
                    let _ = tokio::time::timeout(GONE_MAX, mounted.ended()).await;
                }
                break;
            }
            Word::Alone => {
                tracing::warn!("nobody supervises this mount any more: it is unmounted");
                fuse::unmount(mountpoint, true)?;
                let _ = tokio::time::timeout(GONE_MAX, mounted.ended()).await;
                break;
            }
        }
    }
    mounted.fs.close().await.context("what was still unwritten could not be written")?;
    Ok(ExitCode::SUCCESS)
}

/// A volume, the default one if it is not named, and a path.
pub(crate) fn volume_and(what: &[PathBuf]) -> anyhow::Result<(&str, &Path)> {
    match what {
        [volume, path] => Ok((volume.to_str().context("a volume's name is plain text")?, path)),
        [path] => Ok((DEFAULT_VOLUME, path)),
        _ => unreachable!("clap takes one or two"),
    }
}

/// What operators see of a mount.
pub(crate) fn label(mountpoint: &Path) -> String {
    let host = rustix::system::uname();
    let absolute = std::path::absolute(mountpoint).unwrap_or_else(|_| mountpoint.into());
    let mut label = format!("mount {} on {}", absolute.display(), host.nodename().to_string_lossy());
    label.truncate((0..=200).rev().find(|end| label.is_char_boundary(*end)).unwrap_or(0));
    label
}

/// Whoever runs this command, as the owner of what it makes.
pub(crate) fn owner() -> Caller {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    Caller { uid: uid.as_raw(), gid: gid.as_raw(), groups: Vec::new() }
}

/// Opens a volume and mounts it.
pub(crate) async fn mount(
    cluster: &Cluster,
    volume: &str,
    mountpoint: &Path,
    using: &Using,
) -> anyhow::Result<Mounted> {
    let volume = cluster.open_volume(volume).await?;
    let fs = open(cluster, volume, mountpoint, using)?;
    let mount = fuse::mount(fs.clone(), mountpoint, fuse::MountOptions::default()).await?;
    Ok(Mounted { mount, fs })
}

/// A volume as files.
fn open(
    cluster: &Cluster,
    volume: client::connect::Volume,
    mountpoint: &Path,
    Using { cache, lost, age, ordered }: &Using,
) -> anyhow::Result<Arc<Filesystem<Leased<Session>, Blocks>>> {
    // One folder a mount: two must not share one.
    let absolute = std::path::absolute(mountpoint)?;
    let name: String = absolute.to_string_lossy().replace('/', "-").chars().take(200).collect();
    let folder = match &cache.cache_dir {
        Some(folder) => folder.clone(),
        None => config::cache_folder()?.join(cluster.view().cluster.to_string()).join(name),
    };
    let options = Options {
        cache: CacheOptions {
            memory_bytes: cache.cache_memory << 20,
            disk: (cache.cache_disk > 0).then_some(DiskOptions { dir: folder, bytes: cache.cache_disk << 20 }),
            ..CacheOptions::default()
        },
        max_age: age.max_age,
        lost: lost_folder(lost),
        lost_bytes_max: lost.lost_size.saturating_mul(1 << 20),
        ..Options::default()
    };
    let (id, user, session) = (cluster.view().cluster, cluster.user(), cluster.session().clone());
    let holder = holder(&absolute, &volume.info.spec.name);
    let names = match ordered {
        true => Leased::ordered(session, id, user, holder),
        false => Leased::new(session, id, user, holder, volume.info.root),
    };
    let fs = Filesystem::open_volume(names, volume.blocks, volume.info, &volume.secret, options)?;
    if cache.cache_dir.is_none() {
        // Not before this mount's own cache is in use: it may be an old one.
        remove_unused_caches(config::cache_folder()?);
    }
    Ok(Arc::new(fs))
}

/// Removes the caches of mounts that were long ago, in the background.
fn remove_unused_caches(within: PathBuf) {
    tokio::task::spawn_blocking(move || match client::cache::remove_unused_caches(&within, CACHE_UNUSED) {
        Ok(0) | Err(_) => {}
        Ok(count) => tracing::info!(count, "caches that no mount has used for 30 days are removed"),
    });
}

/// Where what is lost is kept. A mount is not refused for want of it.
fn lost_folder(lost: &Lost) -> Option<PathBuf> {
    let folder = lost.lost_dir.clone().map_or_else(config::lost_folder, Ok);
    folder.inspect_err(|error| tracing::warn!(%error, "what this mount loses can't be kept; name --lost-dir")).ok()
}

/// The number by which replicas know the leases of this mount: the same for whoever mounts the volume here
/// next, which so takes over from one that crashed.
fn holder(mountpoint: &Path, volume: &str) -> u64 {
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let host = rustix::system::uname();
    let parts = [machine.as_slice(), host.nodename().to_bytes(), mountpoint.as_os_str().as_bytes(), volume.as_bytes()];
    let digest = base::Digest::of_parts(&parts);
    let (number, _) = digest.0.split_first_chunk::<8>().expect("a digest is longer");
    u64::from_le_bytes(*number)
}

impl Mounted {
    /// Finishes for the next process, which gets what is not answered. Says whether all that was written is
    /// safe.
    ///
    /// # Errors
    /// If it is not before anything else has happened: this process goes on serving then.
    async fn leave(&self) -> anyhow::Result<bool> {
        let locked = self.fs.locked_files();
        if locked > 0 {
            bail!("programs have locks on {locked} files, which would be lost; let them finish first");
        }
        self.fs.sync_all().await.context("what was written could not be stored")?;
        if !self.mount.leave(LEAVE_MAX).await {
            tracing::warn!("operations are still under way; the next process begins them again");
        }
        let synced = self.fs.sync_all().await.is_ok();
        self.fs.keep_lost().await;
        // The next process tells who is to be told.
        Ok(synced && !self.fs.is_any_untold())
    }

    /// Waits until somebody else has unmounted it.
    pub(crate) async fn ended(&self) {
        self.mount.ended().await;
    }

    /// Unmounts, then writes out what is still unwritten.
    ///
    /// # Errors
    /// If either fails; what could be written is written in any case, unless somebody asks to stop
    /// once more.
    pub(crate) async fn close(self, stop: &mut Stop) -> anyhow::Result<()> {
        let closed = async {
            let unmounted = self.mount.unmount().await;
            self.fs.close().await.context("what was still unwritten could not be written")?;
            Ok(unmounted?)
        };
        let long = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            eprintln!("writing out what is not written yet; Ctrl-C again gives it up ...");
            stop.asked().await;
        };
        tokio::select! {
            closed = closed => closed,
            () = long => bail!("given up: what was not written yet is lost"),
        }
    }
}

pub(crate) fn umount(args: &Umount) -> anyhow::Result<ExitCode> {
    fuse::unmount(&args.mountpoint, args.lazy)?;
    say!("unmounted {}", args.mountpoint.display());
    Ok(ExitCode::SUCCESS)
}
