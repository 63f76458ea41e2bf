//! Locks and appending, between the programs of two mounts of one volume.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tests::process::run;
use tests::{Cluster, needs_mount, needs_program, one_at_a_time, run_ok};

/// The longest that anything here may take.
const LONG: Duration = Duration::from_secs(120);

/// Counts in a file, each time under a lock.
const COUNT: &str = "
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
lock = fcntl.lockf if sys.argv[2] == 'fcntl' else fcntl.flock
for _ in range(int(sys.argv[3])):
    lock(fd, fcntl.LOCK_EX)
    text = os.pread(fd, 100, 0)
    os.pwrite(fd, b'%d' % (int(text or b'0') + 1), 0)
    lock(fd, fcntl.LOCK_UN)
";

/// Does what it is told, a word at a time, and says when it is done, or why not.
const OBEY: &str = "
import errno, fcntl, os, signal, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
def interrupted(*_): raise InterruptedError()
signal.signal(signal.SIGALRM, interrupted)
for line in sys.stdin:
    word, *more = line.split()
    try:
        if word == 'lock': fcntl.lockf(fd, fcntl.LOCK_EX, *map(int, more))
        elif word == 'try': fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, *map(int, more))
        elif word == 'share': fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, *map(int, more))
        elif word == 'unlock': fcntl.lockf(fd, fcntl.LOCK_UN, *map(int, more))
        elif word == 'flock': fcntl.flock(fd, fcntl.LOCK_EX)
        elif word == 'tryflock': fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif word == 'ofd':
            fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
        elif word == 'alarm': signal.setitimer(signal.ITIMER_REAL, 0.3)
        elif word == 'write': os.pwrite(fd, more[0].encode(), 0)
        elif word == 'read': print(os.pread(fd, 100, 0).decode(), flush=True); continue
        elif word == 'reopen': os.close(fd); fd = os.open(sys.argv[1], os.O_RDWR)
        elif word == 'get':
            asked = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _, start, len, pid = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, asked))
            words = {fcntl.F_RDLCK: 'shared', fcntl.F_WRLCK: 'exclusive', fcntl.F_UNLCK: 'none'}
            print(words[kind], start, len, flush=True)
            continue
        print('done', flush=True)
    except InterruptedError: print('EINTR', flush=True)
    except OSError as error: print(errno.errorcode[error.errno], flush=True)
";

/// Appends lines, as long as they are numbered.
const APPEND: &str = "
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for index in range(int(sys.argv[3])):
    line = b'%s %d %s\\n' % (sys.argv[2].encode(), index, b'x' * (index * 37 % 500))
    assert os.write(fd, line) == len(line)
os.close(fd)
";

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).args(arguments);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A program that obeys, on a file.
struct Obedient {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Obedient {
    fn on(path: &Path) -> Obedient {
        let mut command = python(OBEY, &[text(path)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let (orders, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Obedient { child, orders, answers: BufReader::new(answers) }
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("it listens");
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim().to_owned()
    }

    #[track_caller]
    fn does(&mut self, order: &str, answer: &str) {
        self.tell(order);
        assert_eq!(self.hear(), answer, "{order}");
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_counter_under_a_lock_counts_everything() {
    needs_mount!();
    needs_program!("python3");
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mounts = [cluster.mount("one"), cluster.mount("two"), cluster.mount_with("three", &["--ordered"])];
    for how in ["fcntl", "flock"] {
        fs::write(mounts[0].path().join(how), "0").expect("written");
        std::thread::scope(|scope| {
            for mount in mounts.iter().chain(&mounts[..2]) {
                let path = mount.path().join(how);
                scope.spawn(move || run_ok(&mut python(COUNT, &[text(&path), how, "12"]), LONG));
            }
        });
        for mount in &mounts {
            assert_eq!(fs::read_to_string(mount.path().join(how)).expect("read"), "60", "{how}");
        }
    }
    mounts.into_iter().for_each(tests::Mount::stop);
}

#[test]
fn locks_hold_between_mounts_and_whoever_waits_is_woken() {
    needs_mount!();
    needs_program!("python3");
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    fs::write(one.path().join("file"), "first").expect("written");
    let (mut here, mut there) = (Obedient::on(&one.path().join("file")), Obedient::on(&two.path().join("file")));
    here.does("lock 4 2", "done");
    there.does("get", "exclusive 2 4");
    there.does("try", "EAGAIN");
    there.does("try 2 0", "done");
    here.does("get", "exclusive 0 2");
    there.does("unlock", "done");
    here.does("unlock", "done");
    there.does("get", "none 0 0");

    // Woken by an unlock, and sees what was written under the lock.
    there.does("read", "first");
    here.does("lock", "done");
    there.tell("lock");
    here.does("write second", "done");
    here.does("unlock", "done");
    assert_eq!(there.hear(), "done");
    there.does("read", "second");

    // By a signal.
    here.does("alarm", "done");
    here.does("lock", "EINTR");

    // By the end of the process that has it.
    here.tell("lock");
    drop(there);
    assert_eq!(here.hear(), "done");
    here.does("unlock", "done");

    // `flock` and OFD locks go with the open file.
    let mut there = Obedient::on(&two.path().join("file"));
    there.does("flock", "done");
    here.does("tryflock", "EAGAIN");
    here.does("try", "done");
    here.does("unlock", "done");
    there.does("reopen", "done");
    here.does("tryflock", "done");
    there.does("ofd", "done");
    here.does("try", "EAGAIN");
    there.does("reopen", "done");
    here.does("try", "done");
    drop((here, there));
    one.stop();
    two.stop();
}

#[test]
fn the_locks_of_a_mount_that_was_killed_are_had_after_a_minute() {
    needs_mount!();
    needs_program!("python3");
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (mut one, two) = (cluster.mount_with("one", &["--ordered"]), cluster.mount("two"));
    fs::write(one.path().join("file"), "first").expect("written");
    let (mut here, mut there) = (Obedient::on(&one.path().join("file")), Obedient::on(&two.path().join("file")));
    here.does("lock", "done");
    there.does("try", "EAGAIN");
    let began = Instant::now();
    there.tell("lock");
    one.process().kill();
    assert_eq!(there.hear(), "done");
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(30) && waited < Duration::from_secs(85), "{waited:?}");
    drop((here, there));
    drop(one);
    two.stop();
}

#[test]
fn what_two_mounts_append_stands_one_after_the_other() {
    needs_mount!();
    needs_program!("python3");
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mounts = [cluster.mount("one"), cluster.mount("two"), cluster.mount_with("three", &["--ordered"])];
    fs::write(mounts[0].path().join("log"), "").expect("written");
    std::thread::scope(|scope| {
        for (index, mount) in mounts.iter().chain(&mounts[..2]).enumerate() {
            let path = mount.path().join("log");
            scope.spawn(move || run_ok(&mut python(APPEND, &[text(&path), &format!("w{index}"), "15"]), LONG));
        }
    });
    for mount in &mounts {
        let all = fs::read_to_string(mount.path().join("log")).expect("read");
        let mut next = [0usize; 5];
        for line in all.lines() {
            let mut words = line.split(' ');
            let who: usize = words.next().and_then(|word| word.strip_prefix('w')?.parse().ok()).expect("not torn");
            assert_eq!(words.next(), Some(next[who].to_string().as_str()), "in order: {line}");
            assert_eq!(words.next().map(str::len), Some(next[who] * 37 % 500), "whole: {line}");
            next[who] += 1;
        }
        assert_eq!(next, [15; 5], "no line is lost");
    }
    mounts.into_iter().for_each(tests::Mount::stop);
}

#[test]
fn sqlite_is_written_from_two_mounts() {
    needs_mount!();
    needs_program!("sqlite3");
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    let sqlite = |dir: &Path, script: &str| {
        let mut command = Command::new("sqlite3");
        command.args(["-bail", "-cmd", ".timeout 60000"]).arg(dir.join("base")).arg(script);
        command
    };
    run_ok(&mut sqlite(one.path(), "CREATE TABLE t (who TEXT, n INTEGER);"), LONG);
    std::thread::scope(|scope| {
        for (who, mount) in [("one", &one), ("two", &two)] {
            let insert = |n| format!("BEGIN IMMEDIATE; INSERT INTO t VALUES ('{who}', {n}); COMMIT;");
            let script: String = (0..12).map(insert).collect();
            let mut command = sqlite(mount.path(), &script);
            scope.spawn(move || run_ok(&mut command, LONG));
        }
    });
    for mount in [&one, &two] {
        let done = run(&mut sqlite(mount.path(), "PRAGMA integrity_check; SELECT count(*), sum(n) FROM t;"), LONG);
        assert_eq!(done.stdout, "ok\n24|132\n", "{}", done.stderr);
    }
    one.stop();
    two.stop();
}
