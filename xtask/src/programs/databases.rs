//! SQLite on a mount that is killed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::tests::process::Process;
use ::tests::work::{self, CHORE};
use ::tests::{run_ok, wait_until};
use anyhow::ensure;

use super::Place;
use crate::steps::Steps;

/// Two writers in both journal modes; then a writer whose mount is killed.
pub(super) fn sqlite(steps: &mut Steps, place: &mut Place, transactions: usize) {
    steps.run("SQLite: two writers, rollback journal and WAL", || {
        work::sqlite_database(&place.mnt(), transactions);
        Ok(format!("{} transactions each", 2 * transactions))
    });
    for journal in ["delete", "wal"] {
        steps.run(&format!("SQLite ({journal}): its mount is killed"), || killed(place, journal));
    }
}

/// Every row that a writer was told is committed is there after the mount is back, and all is whole. The
/// writer syncs as for EXTRA: with less SQLite promises nothing about the last transaction of a rollback
/// journal, which is done when the journal's name is gone.
fn killed(place: &mut Place, journal: &str) -> anyhow::Result<String> {
    let database = place.mnt().join(format!("killed-{journal}.db"));
    let made = ask(&database, &format!("PRAGMA journal_mode={journal}; CREATE TABLE t(n INTEGER PRIMARY KEY, b);"));
    ensure!(made.trim() == journal, "journal mode {made}");
    let insert = |n: usize| format!("INSERT INTO t VALUES({n}, randomblob(2000)); SELECT {n};");
    let script = place.cluster.outside().join("insert.sql");
    std::fs::write(&script, format!("PRAGMA synchronous=EXTRA;{}", (1..5_000).map(insert).collect::<String>()))?;
    let log = place.cluster.outside().join("insert.log");
    // Line by line, so that what it says is what it was told.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "sqlite3", "-batch", "-bail"]).arg(&database).arg(format!(".read '{}'", script.display()));
    let mut writer = Process::start("sqlite3", &mut command, &log);
    wait_until("some rows are committed", Duration::from_secs(60), || {
        (writer.log().lines().count() > 50).then_some(())
    });
    place.kill();
    let status = writer.wait_end(CHORE);
    ensure!(!status.success(), "the writer was done before the mount was killed");
    place.again();
    let told = writer.log().lines().filter_map(|line| line.parse::<usize>().ok()).max().unwrap_or(0);
    let answer = ask(&database, "PRAGMA integrity_check; SELECT count(*) FROM t; SELECT max(n) FROM t;");
    let words: Vec<_> = answer.lines().collect();
    ensure!(words.first() == Some(&"ok"), "{answer}");
    let (count, last): (usize, usize) = (words[1].parse()?, words[2].parse()?);
    ensure!(
        count == last && (told..=told + 1).contains(&last),
        "{told} rows were committed, {count} are there: {last}"
    );
    Ok(format!("{told} rows were committed, {count} are there"))
}

fn ask(database: &Path, script: &str) -> String {
    run_ok(Command::new("sqlite3").args(["-batch", "-bail"]).arg(database).arg(script), CHORE)
}
