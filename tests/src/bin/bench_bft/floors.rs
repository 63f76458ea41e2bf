//! `cargo xtask bench bft floors`: a short run that fails when an operation has become dearer.
//!
//! Only work in a second of processor time is compared, since rates say more about the machine and
//! who else is on it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::{Cluster, LogPlace};
use crate::load::{self, Load};
use crate::table::{self, Style, Table};
use crate::{Outcome, positive};

/// What a figure may be below its floor.
const SLACK: f64 = 0.30;
/// A figure below its floor is measured again so often: a machine has bad moments.
const TRIES: usize = 3;

/// Measures briefly and fails if an operation costs 30 % more than the file of floors says.
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
    per_cpu_second: u64,
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

    fn least(&self) -> f64 {
        self.per_cpu_second as f64 * (1.0 - SLACK)
    }
}

/// Gives whether all figures are above their floors.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", options.file.display());
    let text = std::fs::read_to_string(&options.file).map_err(|error| said(&error))?;
    let mut file: File = serde_json::from_str(&text).map_err(|error| said(&error))?;
    let header: Vec<_> = ["load", "floor", "fails below"].into_iter().chain(table::COLUMNS).collect();
    let mut table = Table::new(style, &header);
    let cluster = Cluster::start(LogPlace::Disk).await?;
    let mut well = true;
    for floor in &mut file.floors {
        let mut figures = load::run(&cluster, floor.load(options.seconds)).await?;
        for _ in 1..TRIES {
            if options.record || figures.per_cpu_second() >= floor.least() {
                break;
            }
            figures = load::run(&cluster, floor.load(options.seconds)).await?;
        }
        let mut cells = vec![floor.name.clone(), floor.per_cpu_second.to_string(), format!("{:.0}", floor.least())];
        cells.extend(table::cells(&figures));
        let mut value = table::value(&figures);
        value["name"] = json!(floor.name);
        value["floor_per_cpu_second"] = json!(floor.per_cpu_second);
        value["fails_below"] = json!(floor.least());
        table.row(&cells, value);
        if options.record {
            floor.per_cpu_second = figures.per_cpu_second() as u64;
        } else if figures.per_cpu_second() < floor.least() {
            eprintln!("error: {} costs more than it may: below the floor {TRIES} times", floor.name);
            well = false;
        }
    }
    if options.record {
        std::fs::write(&options.file, serde_json::to_string_pretty(&file)? + "\n").map_err(|error| said(&error))?;
    }
    table.finish(&json!({ "slack": SLACK }));
    Ok(well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_file_is_one() {
        let text = std::fs::read_to_string(own_file()).expect("it is there");
        let file: File = serde_json::from_str(&text).expect("it says what it should");
        assert!(file.floors.iter().all(|floor| floor.least() > 0.0 && floor.outstanding <= 16));
    }
}
