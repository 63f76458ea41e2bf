//! Mounts that are gone when their guard is.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::process::{ANSWER, Process, START, cache_folder, mangrove, run_ok};
use crate::status::Status;
use crate::wait::{poll, wait_until};

/// Whether something is mounted on this folder.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = path.to_string_lossy().replace(' ', "\\040");
    table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
}

/// The newest child of a process, if it has one that is not dead.
#[must_use]
pub fn child_of(parent: u32) -> Option<Pid> {
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        rest.next().is_some_and(|state| state != "Z" && state != "X") && rest.next() == Some(&parent.to_string())
    };
    let all = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Pid::from_raw(all.filter(is_child).max()?)
}

/// A process that serves a mount: stopped, and unmounted come what may, when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    process: Process,
}

impl Mount {
    /// Starts `command`, which mounts on `path`, and waits until it says so.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command, path: &Path, log: &Path) -> Mount {
        let mut mount = Mount { path: path.to_owned(), process: Process::start(name, command, log) };
        mount.process.wait_for(&format!("mounted at {}", path.display()));
        assert!(is_mounted(path), "{name} says it mounted {}, and it is not", path.display());
        mount
    }

    /// Starts `command`, which mounts on `path` without a word, and waits until it has.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn start_quiet(name: &str, command: &mut Command, path: &Path, log: &Path) -> Mount {
        let mut mount = Mount { path: path.to_owned(), process: Process::start(name, command, log) };
        let mounted = poll(START, || (is_mounted(path) || !mount.process.is_running()).then(|| is_mounted(path)));
        assert_eq!(mounted, Some(true), "{name} did not mount {}:\n{}", path.display(), mount.process.log());
        mount
    }

    /// The folder it is mounted on.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that serves it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process that serves it just now, which the supervisor started; `None` between two of them.
    #[must_use]
    pub fn server(&self) -> Option<Pid> {
        child_of(self.process.id())
    }

    /// `kill -9` of the process that serves it: the supervisor starts another.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn kill_server(&self) {
        let server = wait_until("it is served", START, || self.server());
        kill_process(server, Signal::KILL).expect("it can be killed");
        wait_until("it is dead", START, || (self.server() != Some(server)).then_some(()));
    }

    /// `kill -9` of everything behind it, the supervisor first, so that nobody starts it again.
    pub fn kill(&mut self) {
        let server = self.server();
        self.process.kill();
        if let Some(server) = server {
            let _ = kill_process(server, Signal::KILL);
            wait_until("it is gone", START, || test_kill_process(server).is_err().then_some(()));
        }
    }

    /// Stops it cleanly.
    ///
    /// # Panics
    /// If it does not stop, or leaves the mount behind.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.stop();
        assert!(!is_mounted(&self.path), "{} is still mounted", self.path.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.process.is_running() {
            self.process.signal(rustix::process::Signal::TERM);
            let _ = poll(Duration::from_secs(10), || (!self.process.is_running()).then_some(()));
            self.process.kill();
        }
        if is_mounted(&self.path) {
            unmount_lazily(&self.path);
        }
    }
}

/// A small disk of its own: a tmpfs of this size mounted on `path`, which only root can make. Gone
/// when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Makes it on a folder, which is created if it is not there.
    ///
    /// # Panics
    /// If this is not root, or the mount fails.
    #[must_use]
    #[track_caller]
    pub fn new(path: &Path, mib: u64) -> SmallDisk {
        fs::create_dir_all(path).expect("mkdir");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=700"), "tmpfs"]).arg(path);
        run_ok(&mut command, ANSWER);
        SmallDisk(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount_lazily(&self.0);
    }
}

fn forget(cache: &Path) {
    match fs::remove_dir_all(cache) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{}: {error}", cache.display()),
    }
}

fn unmount_lazily(path: &Path) {
    if rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).is_err() {
        let mut command = Command::new("fusermount3");
        let _ = command.args(["-u", "-z"]).arg(path).stderr(Stdio::null()).status();
    }
}

/// `mangrove up`: an embedded cluster and its mount, in a temporary folder.
#[derive(Debug)]
pub struct Up {
    mount: Option<Mount>,
    profile: &'static str,
    dir: TempDir,
}

impl Up {
    /// Starts a new one.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    #[track_caller]
    pub fn start() -> Up {
        Up::start_in(&std::env::temp_dir())
    }

    /// Starts a new one whose data is somewhere below `parent`.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    #[track_caller]
    pub fn start_in(parent: &Path) -> Up {
        let dir = tempfile::Builder::new().prefix("mangrove-up-").tempdir_in(parent).expect("a temporary folder");
        fs::create_dir(dir.path().join("mnt")).expect("mkdir");
        let mut up = Up { mount: None, profile: "up", dir };
        up.again();
        up
    }

    /// Starts it again on the same data after [`Up::stop`] or [`Up::kill`].
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn again(&mut self) {
        let (path, log) = (self.mountpoint(), self.dir.path().join("up.log"));
        let mut command = mangrove(self.dir.path());
        command.arg("up").arg(&path).arg("--data").arg(self.dir.path().join("data"));
        self.mount = Some(Mount::start(self.profile, &mut command, &path, &log));
    }

    /// Stops it cleanly, as Ctrl-C does.
    ///
    /// # Panics
    /// If it does not stop, or leaves the mount behind.
    #[track_caller]
    pub fn stop(&mut self) {
        self.mount.take().expect("it is up").stop();
    }

    /// `kill -9`, and takes the dead mount away.
    ///
    /// # Panics
    /// If it was not up.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut mount = self.mount.take().expect("it is up");
        mount.process.kill();
    }

    /// Throws away the local cache, so that everything is read from the nodes. To be called while it
    /// is stopped.
    ///
    /// # Panics
    /// If it is up, or the cache can't be removed.
    #[track_caller]
    pub fn forget_cache(&mut self) {
        assert!(self.mount.is_none(), "it must be stopped first");
        forget(&cache_folder(self.dir.path()));
    }

    /// The folder it is mounted on.
    #[must_use]
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A folder beside the mount that is not on it.
    #[must_use]
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// What the command `status` says.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        Status::ask(&mut mangrove(self.dir.path()))
    }
}
