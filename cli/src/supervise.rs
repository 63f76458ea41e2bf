//! `mangrove mount`: the small process that keeps a mount, in the foreground or behind it, and starts the one
//! that serves it.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use fuse::{Event, Order, SuperviseError, Supervisor};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::args::{Access, Mount, Role, Using};
use crate::mount::volume_and;
use crate::output::say;
use crate::{config, options};

/// How long whoever asks for a restart waits for it.
const RESTART_MAX: Duration = Duration::from_secs(180);
/// What the first line of a mount that is ready begins with.
const READY: &str = "mounted at ";

pub(crate) fn run(mut access: Access, verbose: u8, mut args: Mount) -> anyhow::Result<ExitCode> {
    if let Some(mountpoint) = &args.restart {
        return restart(mountpoint);
    }
    let asked = options::parse(&args.options)?;
    asked.settle(&mut access, &mut args.using)?;
    let (volume, mountpoint) = volume_and(&args.what)?;
    let mountpoint = std::path::absolute(mountpoint).context("the mountpoint is no path")?;
    fuse::clear_stale(&mountpoint, fuse::KIND)?;
    fuse::check_mountpoint(&mountpoint)?;
    let line = |role: &str| -> anyhow::Result<Vec<OsString>> {
        let mut line = arguments(&access, verbose, &args.using)?;
        line.extend(["--role".into(), role.into(), "-o".into(), asked.to_list().into()]);
        line.extend([volume.into(), mountpoint.clone().into()]);
        Ok(line)
    };
    if args.background && args.role.is_none() {
        return in_background(&line("daemon")?, &mountpoint);
    }
    let is_daemon = args.role == Some(Role::Daemon);
    if is_daemon {
        // It can't be the leader of a group: it was started for this, in the group of who started it.
        let _ = rustix::process::setsid();
        std::env::set_current_dir("/").context("cannot leave the current folder")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let supervisor = Supervisor::new(mountpoint.clone(), &asked.fuse());
    let outcome = runtime.block_on(supervise(supervisor, &mountpoint, &line("server")?, is_daemon));
    // A restart that nobody answers, or a helper that hangs, must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // It has told its own story.
        Err(SuperviseError::Failed(status)) => {
            Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        Err(error) => Err(error.into()),
    }
}

/// A line of arguments that says the same wherever it is read: paths are absolute.
fn arguments(access: &Access, verbose: u8, using: &Using) -> anyhow::Result<Vec<OsString>> {
    let mut line: Vec<OsString> = (0..verbose).map(|_| "-v".into()).collect();
    for (flag, path) in [("--cluster", &access.cluster), ("--key", &access.key)] {
        if let Some(path) = path {
            line.extend([flag.into(), std::path::absolute(path)?.into()]);
        }
    }
    line.push("mount".into());
    let cache = &using.cache;
    line.extend(["--cache-memory".into(), cache.cache_memory.to_string().into()]);
    line.extend(["--cache-disk".into(), cache.cache_disk.to_string().into()]);
    if let Some(folder) = &cache.cache_dir {
        line.extend(["--cache-dir".into(), std::path::absolute(folder)?.into()]);
    }
    line.extend(["--lost-size".into(), using.lost.lost_size.to_string().into()]);
    if let Some(folder) = &using.lost.lost_dir {
        line.extend(["--lost-dir".into(), std::path::absolute(folder)?.into()]);
    }
    if let Some(age) = using.age.max_age {
        line.extend(["--max-age".into(), format!("{}ms", age.as_millis()).into()]);
    }
    if using.ordered {
        line.push("--ordered".into());
    }
    Ok(line)
}

/// The program that is installed now, where this one was started from.
fn program(started_as: &Path) -> &Path {
    // A program that was removed can still be run for as long as it runs.
    if started_as.exists() { started_as } else { Path::new("/proc/self/exe") }
}

/// Keeps the mount until it is unmounted or somebody asks to stop.
async fn supervise(
    supervisor: Supervisor,
    mountpoint: &Path,
    line: &[OsString],
    is_daemon: bool,
) -> Result<(), SuperviseError> {
    let exe = std::env::current_exe().map_err(SuperviseError::Start)?;
    let (orders, inbox) = mpsc::channel(8);
    for (kind, restarts) in [
        (SignalKind::interrupt(), false),
        (SignalKind::terminate(), false),
        // In the foreground it says that the terminal was closed.
        (SignalKind::hangup(), is_daemon),
    ] {
        let mut signals = signal(kind).map_err(SuperviseError::Start)?;
        let orders = orders.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let order = if restarts { Order::Restart(oneshot::channel().0) } else { Order::Stop };
                if orders.send(order).await.is_err() {
                    return;
                }
            }
        });
    }
    let socket = socket(mountpoint).ok();
    if let Some(path) = &socket {
        match listen(path) {
            Ok(listener) => drop(tokio::spawn(answer(listener, orders.clone()))),
            Err(error) => tracing::warn!(%error, socket = %path.display(), "it can't be asked to restart"),
        }
    }
    let command = || {
        let mut command = tokio::process::Command::new(program(&exe));
        command.args(line);
        command
    };
    let tell = |event| match event {
        Event::Mounted(path) => {
            let how = if is_daemon { "`umount` ends it" } else { "Ctrl-C unmounts" };
            say!("{READY}{}; {how}", path.display());
        }
        Event::Died(status) => {
            eprintln!("mangrove: the process that serves the mount died ({status}); starting another")
        }
        Event::GoesOn => eprintln!("mangrove: another process goes on serving the mount"),
        Event::Writing => eprintln!("writing out what is not written yet; Ctrl-C again gives it up ..."),
    };
    let outcome = supervisor.run(command, inbox, tell).await;
    if let Some(path) = socket {
        let _ = std::fs::remove_file(path);
    }
    outcome
}

/// Where the supervisor of a mount listens.
fn socket(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    Ok(config::runtime_folder()?.join(format!("{}.sock", name(mountpoint))))
}

/// A short name for a mountpoint, which may be longer than a socket's path can be.
fn name(mountpoint: &Path) -> String {
    let digest = base::Digest::of_parts(&[mountpoint.as_os_str().as_encoded_bytes()]);
    let number = digest.0.split_first_chunk::<8>().expect("a digest is longer").0;
    format!("mount-{:016x}", u64::from_le_bytes(*number))
}

fn listen(path: &Path) -> std::io::Result<UnixListener> {
    // Whoever had it is gone: nothing was mounted here.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Restarts for whoever connects, and says how it went.
async fn answer(listener: UnixListener, orders: mpsc::Sender<Order>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (sender, outcome) = oneshot::channel();
        if orders.send(Order::Restart(sender)).await.is_err() {
            return;
        }
        tokio::spawn(async move {
            let outcome = outcome.await.unwrap_or_else(|_| Err("it is being unmounted".to_owned()));
            let text = outcome.err().map_or("restarted".to_owned(), |why| format!("not restarted: {why}"));
            let _ = stream.write_all(text.as_bytes()).await;
        });
    }
}

/// `mangrove mount --restart`.
fn restart(mountpoint: &Path) -> anyhow::Result<ExitCode> {
    let mountpoint = std::path::absolute(mountpoint).context("the mountpoint is no path")?;
    let nobody =
        || format!("nobody supervises a mount at {} as this user; `mount` lists what is there", mountpoint.display());
    let mut stream = UnixStream::connect(socket(&mountpoint)?).with_context(nobody)?;
    stream.set_read_timeout(Some(RESTART_MAX))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("the supervisor does not answer")?;
    if text != "restarted" {
        bail!("{}", if text.is_empty() { "the supervisor ended" } else { &text });
    }
    say!("{text} {}", mountpoint.display());
    Ok(ExitCode::SUCCESS)
}

/// Starts the supervisor in the background, and returns when the mount can be used or can't be had.
fn in_background(line: &[OsString], mountpoint: &Path) -> anyhow::Result<ExitCode> {
    let path = config::runtime_folder()?.join(format!("{}.log", name(mountpoint)));
    let log = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut daemon = command.spawn().context("cannot start in the background")?;
    let mut first = String::new();
    if let Some(stdout) = daemon.stdout.take() {
        BufReader::new(stdout).read_line(&mut first).context("cannot hear from the background")?;
    }
    if first.starts_with(READY) {
        say!("{}; its log is {}", first.trim_end(), path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let status = daemon.wait()?;
    let said = std::fs::read(&path).unwrap_or_default();
    let _ = std::io::stderr().write_all(&said);
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1)))
}
