//! Processes with captured output that do not outlive the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{poll, wait_until};

/// How long a process may take to say that it is ready.
pub const START: Duration = Duration::from_secs(60);
/// How long a process may take to stop cleanly.
pub const STOP: Duration = Duration::from_secs(60);
/// How long a command that should refuse or answer may take.
pub const ANSWER: Duration = Duration::from_secs(60);

/// Whether a program of this name is on the path.
#[must_use]
pub fn on_path(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

/// The folder of the profile this program was built in, `target/debug` say.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let dir = exe.parent().expect("a program is in a folder");
    let inner = dir.ends_with("deps") || dir.ends_with("examples");
    if inner { dir.parent().expect("deps is in the profile's folder").to_owned() } else { dir.to_owned() }
}

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Chooses the `mangrove` program to test, before its first use.
///
/// # Panics
/// If another was chosen or used before.
pub fn use_mangrove(path: &Path) {
    let path = fs::canonicalize(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(BINARY.get_or_init(|| path.clone()), &path, "one program is tested at a time");
}

/// The `mangrove` program under test: the one chosen by [`use_mangrove`], else `MANGROVE_BIN`,
/// else the one beside this program, brought up to date first.
pub fn mangrove_binary() -> &'static Path {
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("MANGROVE_BIN") {
            return fs::canonicalize(&path).unwrap_or_else(|error| panic!("MANGROVE_BIN {path:?}: {error}"));
        }
        let dir = profile_dir();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "mangrove"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the workspace"));
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "building the mangrove command failed");
        dir.join("mangrove")
    })
}

/// A `mangrove` command whose idea of the user's folders is `home`, so that nothing of the user's
/// own is read or changed.
#[must_use]
pub fn mangrove(home: &Path) -> Command {
    let mut command = Command::new(mangrove_binary());
    command.env("HOME", home).env("XDG_CONFIG_HOME", home.join(".config"));
    command.env("XDG_DATA_HOME", home.join(".local/share")).env("XDG_CACHE_HOME", cache_folder(home));
    command.env("XDG_RUNTIME_DIR", home).env("XDG_STATE_HOME", home.join(".local/state"));
    command.env_remove("MANGROVE_CLUSTER").env_remove("MANGROVE_KEY").stdin(Stdio::null());
    command
}

/// Where a command with this `home` keeps its local cache.
#[must_use]
pub fn cache_folder(home: &Path) -> PathBuf {
    home.join(".cache")
}

/// What a finished command said.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot start or is not done within `limit`.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let Some(status) = poll(limit, || child.try_wait().expect("a child can be waited for")) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} was not done in {limit:?}; it said:\n{}{}", lossy(&out), lossy(&err));
    };
    Finished { status, stdout: lossy(&out), stderr: lossy(&err) }
}

/// Runs a command that must succeed, and gives its standard output.
///
/// # Panics
/// If it fails or takes longer than `limit`.
#[track_caller]
pub fn run_ok(command: &mut Command, limit: Duration) -> String {
    let done = run(command, limit);
    assert!(done.status.success(), "{command:?}: {}\n{}{}", done.status, done.stdout, done.stderr);
    done.stdout
}

/// Runs a command that must refuse: exit code 1 or 2, a message that holds every one of `words`
/// (in any case), and no panic. Gives the message.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn run_refused(command: &mut Command, words: &[&str]) -> String {
    let done = run(command, ANSWER);
    let code = done.status.code();
    assert!(matches!(code, Some(1 | 2)), "{command:?}: {}\n{}{}", done.status, done.stdout, done.stderr);
    assert!(!done.stderr.contains("panicked"), "{command:?} panicked:\n{}", done.stderr);
    let message = done.stderr.to_lowercase();
    for word in words {
        assert!(message.contains(&word.to_lowercase()), "{command:?}: no {word:?} in its message:\n{}", done.stderr);
    }
    done.stderr
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// A long-running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both its outputs go to `log`, which starts anew.
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn start(name: impl AsRef<OsStr>, command: &mut Command, log: &Path) -> Process {
        let name = name.as_ref().to_string_lossy().into_owned();
        // An earlier run's words must not be mistaken for this one's: the log starts anew.
        let file = File::create(log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let copy = file.try_clone().expect("a file handle can be copied");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        Process { name, child, log: log.to_owned() }
    }

    /// Waits until it has printed `words`.
    ///
    /// # Panics
    /// If it ends first or takes longer than [`START`].
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) {
        let what = format!("{} prints {words:?}", self.name);
        let mut ended = None;
        let seen = poll(START, || {
            if self.log().contains(words) {
                return Some(true);
            }
            ended = self.child.try_wait().expect("a child can be waited for");
            ended.map(|_| false)
        }) == Some(true);
        let state = ended.map_or("is still running".to_owned(), |status| format!("ended with {status}"));
        assert!(seen, "{what}: in vain; it {state} and said:\n{}", self.log());
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        lossy(&self.log)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop (SIGTERM).
    ///
    /// # Panics
    /// If it has not stopped within [`STOP`], or ends with anything but 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_end(STOP);
        let signal = status.signal();
        assert!(status.success(), "{} stopped with {status} (signal {signal:?}):\n{}", self.name, self.log());
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it has not within `limit`.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait_until(&what, limit, || self.child.try_wait().expect("a child can be waited for"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().count().saturating_sub(40);
            eprintln!("--- last lines of {}:", self.name);
            log.lines().skip(tail).for_each(|line| eprintln!("{line}"));
        }
        self.kill();
    }
}
