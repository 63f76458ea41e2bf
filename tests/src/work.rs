//! Chores that users give a filesystem, each checking its own result. The end-to-end tests run
//! them small and `cargo xtask accept` runs them large.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::{Process, run_ok};
use crate::random::{Random, noise};
use crate::tree;

/// How long any one chore may take.
pub const CHORE: Duration = Duration::from_secs(1800);
const MIB: u64 = 1 << 20;

/// A `git` that reads no configuration but its own.
#[must_use]
pub fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    for key in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(key);
    }
    command.args(["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]);
    command.args(["-c", "safe.directory=*", "-c", "init.defaultBranch=main", "-c", "gc.auto=0"]);
    command
}

/// Makes a repository of `files` files in `dir`, commits twice, repacks, clones it and checks both.
///
/// # Panics
/// If git finds anything wrong, or the clone differs.
pub fn git_repository(dir: &Path, files: usize) {
    let (origin, clone) = (dir.join("origin"), dir.join("clone"));
    fs::create_dir_all(&origin).expect("mkdir");
    run_ok(git(&origin).args(["init", "--quiet"]), CHORE);
    tree::make(&origin, &tree::plan(files, 11));
    for message in ["first", "second"] {
        fs::write(origin.join("note.txt"), message).expect("write");
        run_ok(git(&origin).args(["add", "--all"]), CHORE);
        run_ok(git(&origin).args(["commit", "--quiet", "--message", message]), CHORE);
    }
    run_ok(git(&origin).args(["repack", "-a", "-d", "--quiet"]), CHORE);
    run_ok(git(dir).args(["clone", "--quiet", "--no-local", "origin", "clone"]), CHORE);
    for repository in [&origin, &clone] {
        run_ok(git(repository).args(["fsck", "--full", "--strict"]), CHORE);
        assert_eq!(run_ok(git(repository).args(["status", "--porcelain"]), CHORE), "", "a clean work tree");
        assert_eq!(run_ok(git(repository).args(["log", "--format=%s"]), CHORE), "second\nfirst\n");
    }
    let first = &tree::plan(files, 11)[0];
    assert_eq!(fs::read(clone.join(&first.path)).expect("read"), first.content(), "a cloned file");
}

fn sqlite(database: &Path, script: &str) -> Command {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "-cmd", ".timeout 60000"]).arg(database).arg(script);
    command
}

/// Two writers put `transactions` transactions of 20 rows each into one SQLite database, in each
/// of the two journal modes; then its integrity is checked and the rows are counted.
///
/// # Panics
/// If a writer fails, a row is missing or the database is damaged.
pub fn sqlite_database(dir: &Path, transactions: usize) {
    for journal in ["delete", "wal"] {
        let database = dir.join(format!("{journal}.db"));
        let table = format!("PRAGMA journal_mode={journal}; CREATE TABLE t(writer, n, noise BLOB);");
        assert_eq!(run_ok(&mut sqlite(&database, &table), CHORE), format!("{journal}\n"), "the journal mode took");
        let insert = |writer: usize| {
            let one = format!(
                "BEGIN IMMEDIATE; WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<20) \
                 INSERT INTO t SELECT {writer}, n, randomblob(300) FROM c; COMMIT;"
            );
            format!("PRAGMA synchronous=FULL; {}", one.repeat(transactions))
        };
        let mut writers: Vec<_> = (0..2)
            .map(|writer| {
                let log = dir.join(format!("{journal}-{writer}.log"));
                Process::start(format!("writer {writer}"), &mut sqlite(&database, &insert(writer)), &log)
            })
            .collect();
        for writer in &mut writers {
            let status = writer.wait_end(CHORE);
            assert!(status.success(), "a SQLite writer ended with {status}:\n{}", writer.log());
        }
        check_sqlite(&database, 2 * transactions * 20);
    }
}

/// Checks a database that [`sqlite_database`] made: whole, and of so many rows.
///
/// # Panics
/// If it is not.
#[track_caller]
pub fn check_sqlite(database: &Path, rows: usize) {
    let answer = run_ok(&mut sqlite(database, "PRAGMA integrity_check; SELECT count(*) FROM t;"), CHORE);
    assert_eq!(answer, format!("ok\n{rows}\n"), "{}", database.display());
}

/// Writes `mib` MiB of noise to a file and has it made durable.
///
/// # Panics
/// If that fails.
pub fn write_big_file(path: &Path, mib: u64, seed: u64) {
    let mut file = File::create(path).expect("create");
    for index in 0..mib {
        file.write_all(&noise(seed, index * MIB, MIB as usize)).expect("write");
    }
    file.sync_all().expect("fsync");
    assert_eq!(file.metadata().expect("stat").len(), mib * MIB, "its size");
}

/// Reads `ranges` random ranges of a file that [`write_big_file`] made, and its two ends.
///
/// # Panics
/// If a byte is wrong.
pub fn check_big_file(path: &Path, mib: u64, seed: u64, ranges: usize) {
    let file = File::open(path).expect("open");
    let (size, mut random) = (mib * MIB, Random::new(seed ^ 1));
    assert_eq!(file.metadata().expect("stat").len(), size, "its size");
    let check = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).unwrap_or_else(|error| panic!("{len} bytes at {offset}: {error}"));
        assert!(bytes == noise(seed, offset, len), "wrong bytes among the {len} at {offset}");
    };
    check(0, 1);
    check(size - 1, 1);
    for _ in 0..ranges {
        let log_len = random.below(21);
        let len = 1 + random.below(1 << log_len) as usize;
        check(random.below(size - len as u64), len);
    }
}

/// Overwrites random ranges in the middle of a big file and checks them and what is around them.
///
/// # Panics
/// If a byte is wrong.
pub fn overwrite_big_file(path: &Path, mib: u64, seed: u64, ranges: usize) {
    let mut random = Random::new(seed ^ 2);
    for _ in 0..ranges {
        let len = 1 + random.below(200_000) as usize;
        let offset = 100 + random.below(mib * MIB - len as u64 - 200);
        let mut file = File::options().read(true).write(true).open(path).expect("open");
        let mut want = vec![0; len + 200];
        file.read_exact_at(&mut want, offset - 100).expect("read");
        let new = noise(random.next_u64(), 0, len);
        want[100..100 + len].copy_from_slice(&new);
        file.seek(SeekFrom::Start(offset)).expect("seek");
        file.write_all(&new).expect("write");
        file.sync_data().expect("fdatasync");
        drop(file);
        let mut found = vec![0; len + 200];
        let mut again = File::open(path).expect("open");
        again.seek(SeekFrom::Start(offset - 100)).expect("seek");
        again.read_exact(&mut found).expect("read");
        assert!(found == want, "wrong bytes around the {len} written at {offset}");
    }
}

/// Has fio write `mib` MiB in random order by two jobs and verify each block's crc32c.
///
/// # Panics
/// If fio finds a wrong block.
pub fn fio_verify(dir: &Path, mib: u64) {
    let mut command = Command::new("fio");
    command.args([
        "--name=verify",
        "--numjobs=2",
        "--group_reporting",
        "--ioengine=psync",
        "--bssplit=4k/60:13k/20:128k/20",
    ]);
    command.args(["--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=256"]);
    command.arg(format!("--size={}m", mib / 2)).arg(format!("--directory={}", dir.display()));
    run_ok(command.current_dir(std::env::temp_dir()), CHORE);
}
