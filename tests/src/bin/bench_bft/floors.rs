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
/// Verifications that are measured.
const YARDSTICK: u32 = 4000;
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

/// The processor time of one verification of one signature.
fn yardstick() -> Duration {
    let (key, cluster) = (SecretKey::from_seed(&[42; 32]), ClusterId([0; 16]));
    let signed: Vec<_> = (0..16).map(|number| Signed::new(Note(number), &key, &cluster)).collect();
    let public = key.public();
    let before = usage::own_cpu();
    let good = signed.iter().cycle().take(YARDSTICK as usize);
    assert!(good.into_iter().all(|note| note.check_by(&public, &cluster, &Cofactored).is_ok()), "all are good");
    usage::own_cpu().saturating_sub(before) / YARDSTICK
}

/// Gives whether no operation costs more than it may.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", options.file.display());
    let text = std::fs::read_to_string(&options.file).map_err(|error| said(&error))?;
    let mut file: File = serde_json::from_str(&text).map_err(|error| said(&error))?;
    let header: Vec<_> = ["load", "verifications", "may be"].into_iter().chain(table::COLUMNS).collect();
    let mut table = Table::new(style, &header);
    let yardstick = yardstick();
    let cost = |figures: &load::Figures| 1.0 / figures.per_cpu_second() / yardstick.as_secs_f64();
    let cluster = Cluster::start(LogPlace::Disk).await?;
    let mut well = true;
    for floor in &mut file.floors {
        let mut figures = load::run(&cluster, floor.load(options.seconds)).await?;
        if options.record {
            floor.verifications.insert(profile().to_owned(), (cost(&figures) * 100.0).round() / 100.0);
        }
        let most = floor.most()?;
        for _ in 1..TRIES {
            if cost(&figures) <= most {
                break;
            }
            figures = load::run(&cluster, floor.load(options.seconds)).await?;
        }
        let mut cells = vec![floor.name.clone(), format!("{:.2}", cost(&figures)), format!("{most:.2}")];
        cells.extend(table::cells(&figures));
        let mut value = table::value(&figures);
        value["name"] = json!(floor.name);
        value["verifications"] = json!(cost(&figures));
        value["may_be"] = json!(most);
        table.row(&cells, value);
        if cost(&figures) > most {
            eprintln!("error: {} costs more than it may, {TRIES} times", floor.name);
            well = false;
        }
    }
    if options.record {
        std::fs::write(&options.file, serde_json::to_string_pretty(&file)? + "\n").map_err(|error| said(&error))?;
    }
    table.note(&format!(
        "the unit: one verification, {:.1} us of processor time in this run",
        yardstick.as_secs_f64() * 1e6
    ));
    table.finish(&json!({ "slack": SLACK, "profile": profile(), "verification_us": yardstick.as_secs_f64() * 1e6 }));
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
