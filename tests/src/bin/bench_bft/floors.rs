//! `cargo xtask bench bft floors`: a short run that fails when an operation has become dearer.
//!
//! What is compared is processor time, in a unit that is measured in the same run: the verification of
//! one signature alone. Rates say more about the machine and who else is on it, and so do seconds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base::{ClusterId, Cofactored, Encode, SecretKey, Signable, Signed};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::{Cluster, LogPlace};
use crate::load::{self, Load};
use crate::table::{self, Style, Table};
use crate::{Outcome, positive, usage};

/// What a figure may be above what was recorded.
const SLACK: f64 = 0.30;
/// Verifications that a core is measured by: half a second, as processor time is told in steps of 10 ms.
const YARDSTICK: u32 = 10_000;
/// A figure that is too high is measured again so often: a machine has bad moments.
const TRIES: usize = 3;

/// Measures briefly and fails if an operation costs 30 % more processor time than was recorded.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// The file of floors; the project's own without it.
    #[arg(long, value_name = "FILE", default_value_os_t = own_file(), hide_default_value = true)]
    file: PathBuf,
    /// How long each load is measured.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 5.0)]
    seconds: f64,
    /// Write what was measured into the file, and fail never. On a quiet machine.
    #[arg(long)]
    record: bool,
}

fn own_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/bin/bench_bft/floors.json")
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    floors: Vec<Floor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Floor {
    name: String,
    clients: usize,
    outstanding: usize,
    payload: usize,
    operations: usize,
    /// What an operation costs, in verifications of a signature; by how the programs were compiled.
    verifications: BTreeMap<String, f64>,
}

impl Floor {
    fn load(&self, seconds: f64) -> Load {
        Load {
            clients: self.clients,
            sessions: 1,
            outstanding: self.outstanding,
            payload: self.payload,
            operations: self.operations,
            rate: None,
            warmup: Duration::from_secs(1),
            length: Duration::from_secs_f64(seconds),
        }
    }

    /// What an operation may cost, in verifications.
    fn most(&self) -> Outcome<f64> {
        let recorded = self.verifications.get(profile());
        let recorded = recorded.ok_or_else(|| format!("no floor of {} for a {} build", self.name, profile()))?;
        Ok(recorded * (1.0 + SLACK))
    }
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

#[derive(Clone)]
struct Note(u64);

impl Encode for Note {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Signable for Note {
    const DOMAIN: &'static str = "bench-note";
}

/// The processor time of one verification of one signature while every core verifies.
///
/// One thread alone would not do: two hardware threads of a core, and cores that share a budget of heat,
/// are each slower when both work, as both do under the load that is measured.
fn yardstick() -> Duration {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let (key, cluster) = (SecretKey::from_seed(&[42; 32]), ClusterId([0; 16]));
    let signed: Vec<_> = (0..16).map(|number| Signed::new(Note(number), &key, &cluster)).collect();
    let public = key.public();
    let verify = || {
        let good = signed.iter().cycle().take(YARDSTICK as usize);
        assert!(good.into_iter().all(|note| note.check_by(&public, &cluster, &Cofactored).is_ok()), "all are good");
    };
    let before = usage::own_cpu();
    std::thread::scope(|threads| (0..cores).for_each(|_| drop(threads.spawn(verify))));
    usage::own_cpu().saturating_sub(before) / (YARDSTICK * cores)
}

/// A load's figures, and the unit: a verification's time, measured right before it and right after.
async fn measure(cluster: &Cluster, load: Load) -> Outcome<(load::Figures, Duration)> {
    let before = yardstick();
    let figures = load::run(cluster, load).await?;
    Ok((figures, (before + yardstick()) / 2))
}

/// What an operation cost, in verifications.
fn cost(figures: &load::Figures, unit: Duration) -> f64 {
    1.0 / figures.per_cpu_second() / unit.as_secs_f64()
}

/// Gives whether no operation costs more than it may.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", options.file.display());
    let text = std::fs::read_to_string(&options.file).map_err(|error| said(&error))?;
    let mut file: File = serde_json::from_str(&text).map_err(|error| said(&error))?;
    let header: Vec<_> = ["load", "verifications", "may be", "us each"].into_iter().chain(table::COLUMNS).collect();
    let mut table = Table::new(style, &header);
    let cluster = Cluster::start(LogPlace::Disk).await?;
    let mut well = true;
    for floor in &mut file.floors {
        let (mut figures, mut unit) = measure(&cluster, floor.load(options.seconds)).await?;
        if options.record {
            floor.verifications.insert(profile().to_owned(), (cost(&figures, unit) * 100.0).round() / 100.0);
        }
        let most = floor.most()?;
        for _ in 1..TRIES {
            if cost(&figures, unit) <= most {
                break;
            }
            (figures, unit) = measure(&cluster, floor.load(options.seconds)).await?;
        }
        let cost = cost(&figures, unit);
        let mut cells = vec![
            floor.name.clone(),
            format!("{:.2}", cost),
            format!("{most:.2}"),
            format!("{:.1}", unit.as_secs_f64() * 1e6),
        ];
        cells.extend(table::cells(&figures));
        let mut value = table::value(&figures);
        value["name"] = json!(floor.name);
        value["verification_us"] = json!(unit.as_secs_f64() * 1e6);
        value["verifications"] = json!(cost);
        value["may_be"] = json!(most);
        table.row(&cells, value);
        if cost > most {
            eprintln!("error: {} costs more than it may, {TRIES} times", floor.name);
            well = false;
        }
    }
    if options.record {
        std::fs::write(&options.file, serde_json::to_string_pretty(&file)? + "\n").map_err(|error| said(&error))?;
    }
    table.finish(&json!({ "slack": SLACK, "profile": profile() }));
    Ok(well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_file_is_one() {
        let text = std::fs::read_to_string(own_file()).expect("it is there");
        let file: File = serde_json::from_str(&text).expect("it says what it should");
        assert!(file.floors.iter().all(|floor| floor.most().is_ok_and(|most| most > 0.0) && floor.outstanding <= 16));
    }
}
