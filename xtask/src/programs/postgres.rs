//! PostgreSQL with its data folder on a mount, under pgbench: killed and recovered, then with its mount.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::tests::process::{Process, START, run};
use ::tests::wait::poll;
use ::tests::work::CHORE;
use ::tests::{run_ok, wait_until};
use anyhow::{Context as _, ensure};

use super::{Place, shell};
use crate::steps::Steps;

/// How many connections pgbench has.
const CLIENTS: u64 = 4;

/// A database and what it must hold.
struct Bench {
    /// The folder of PostgreSQL's own programs.
    programs: PathBuf,
    /// Where its socket and log are; not on the mount.
    outside: PathBuf,
    server: Option<Process>,
    /// Transactions that pgbench was told are committed.
    told: u64,
    /// The most that may be, with those that nobody was told of.
    most: u64,
}

pub(super) fn postgresql(steps: &mut Steps, place: &mut Place, seconds: u64) {
    let mut bench = None;
    steps.run("PostgreSQL: initdb, pgbench -i", || {
        bench = Some(Bench::new(place)?);
        let bench = bench.as_mut().expect("just made");
        bench.first_start(place, if seconds > 5 { 5 } else { 1 })
    });
    let Some(mut bench) = bench else { return };
    steps.run("PostgreSQL: pgbench", || {
        let note = bench.pgbench(seconds, |_| ())?;
        bench.check()?;
        Ok(note)
    });
    for _ in 0..2 {
        steps.run("PostgreSQL: killed under pgbench, recovers", || {
            bench.pgbench(seconds, Bench::kill)?;
            bench.start(&place.mnt());
            bench.check()
        });
    }
    for _ in 0..2 {
        steps.run("PostgreSQL: its mount is killed under pgbench, both recover", || {
            bench.pgbench(seconds, |_| place.kill())?;
            bench.kill();
            place.again();
            bench.start(&place.mnt());
            bench.check()
        });
    }
    steps.run("PostgreSQL stops, all checksums are right", || {
        bench.server.take().context("it runs")?.stop();
        let data = data(&place.mnt());
        run_ok(bench.as_user("pg_checksums").args(["--check", "-D"]).arg(data), CHORE);
        Ok(String::new())
    });
}

fn data(mnt: &Path) -> PathBuf {
    mnt.join("postgres/data")
}

impl Bench {
    fn new(place: &Place) -> anyhow::Result<Bench> {
        ensure!(rustix::process::geteuid().is_root(), "it runs as the user postgres, on a mount of root's");
        let versions = shell(Path::new("/"), "ls -d /usr/lib/postgresql/*/bin | sort -V");
        let programs = versions.lines().last().context("no /usr/lib/postgresql/*/bin")?.into();
        let outside = place.cluster.outside().join("postgres");
        fs::create_dir(&outside)?;
        // Its user must be able to come here; the keys are another folder's.
        fs::set_permissions(place.cluster.path(), fs::Permissions::from_mode(0o700))?;
        for dir in [place.cluster.outside(), place.cluster.outside().parent().expect("it is in one")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        }
        shell(&outside, "chown postgres .");
        Ok(Bench { programs, outside, server: None, told: 0, most: 0 })
    }

    /// A program of PostgreSQL's, run by its user.
    fn as_user(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL", "--"]);
        command.arg(self.programs.join(program)).current_dir(&self.outside);
        command.env("PGHOST", &self.outside).env("PGDATABASE", "postgres").env("PGUSER", "postgres");
        command
    }

    fn first_start(&mut self, place: &Place, scale: u32) -> anyhow::Result<String> {
        let dir = place.mnt().join("postgres");
        fs::create_dir(&dir)?;
        shell(&dir, "chown postgres . && chmod 700 .");
        run_ok(self.as_user("initdb").args(["--data-checksums", "-D"]).arg(data(&place.mnt())), CHORE);
        self.start(&place.mnt());
        run_ok(self.as_user("pgbench").args(["-i", "-s", &scale.to_string()]), CHORE);
        Ok(format!("scale {scale}"))
    }

    /// Starts the server, which recovers if it was killed, and waits until it answers.
    fn start(&mut self, mnt: &Path) {
        let mut command = self.as_user("postgres");
        command.arg("-D").arg(data(mnt)).arg("-k").arg(&self.outside).args(["-c", "listen_addresses="]);
        let log = self.outside.join("server.log");
        let ready = |server: &mut Process| {
            let answers = || run(&mut self.as_user("pg_isready"), START).status.success();
            poll(CHORE, || (!server.is_running() || answers()).then(|| server.is_running())) == Some(true)
        };
        // It does not start while backends of the one that was killed are still there.
        let started = poll(START, || {
            let mut server = Process::start("postgres", &mut command, &log);
            ready(&mut server).then_some(server)
        });
        self.server = Some(started.unwrap_or_else(|| panic!("{}", fs::read_to_string(&log).unwrap_or_default())));
    }

    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// Runs pgbench for so long, does something after half of it, and counts.
    fn pgbench(&mut self, seconds: u64, meanwhile: impl FnOnce(&mut Bench)) -> anyhow::Result<String> {
        let mut command = self.as_user("pgbench");
        // -n: it would empty the table of what was done.
        command.args(["-n", "-c", &CLIENTS.to_string(), "-j", "2", "-T", &seconds.to_string()]);
        let mut process = Process::start("pgbench", &mut command, &self.outside.join("pgbench.log"));
        std::thread::sleep(Duration::from_secs(seconds).mul_f64(0.5));
        meanwhile(self);
        process.wait_end(CHORE);
        let log = process.log();
        let number =
            |words: &str| log.lines().find_map(|line| line.strip_prefix(words)?.trim().split(' ').next()?.parse().ok());
        let done: f64 = number("number of transactions actually processed:").with_context(|| log.clone())?;
        self.told += done as u64;
        self.most += done as u64 + CLIENTS;
        let rate: Option<f64> = number("tps =");
        Ok(format!("{done} transactions, {:.0} a second", rate.unwrap_or(0.0)))
    }

    /// Whether the tables agree with each other and with what was promised, and every index with its table.
    fn check(&self) -> anyhow::Result<String> {
        let sum = |what: &str, table: &str| format!("(SELECT coalesce({what}, 0) FROM pgbench_{table})");
        let sums = [
            sum("sum(abalance)", "accounts"),
            sum("sum(bbalance)", "branches"),
            sum("sum(tbalance)", "tellers"),
            sum("sum(delta)", "history"),
            sum("count(*)", "history"),
        ];
        let sums = format!("SELECT {}", sums.join(", "));
        let answer = wait_until("it answers", START, || {
            let done = run(self.as_user("psql").args(["-AtX", "-c", &sums]), CHORE);
            done.status.success().then_some(done.stdout)
        });
        let numbers: Vec<i64> = answer.trim().split('|').flat_map(str::parse).collect();
        let [accounts, branches, tellers, history, count] = numbers[..] else { anyhow::bail!("sums: {answer}") };
        ensure!([branches, tellers, history] == [accounts; 3], "the balances differ: {answer}");
        let count = u64::try_from(count)?;
        let promised = self.told..=self.most;
        ensure!(promised.contains(&count), "{count} transactions are there; {} to {}", self.told, self.most);
        run_ok(self.as_user("pg_amcheck").args(["--heapallindexed", "--install-missing", "postgres"]), CHORE);
        Ok(format!("{} transactions were committed, {count} are there", self.told))
    }
}
