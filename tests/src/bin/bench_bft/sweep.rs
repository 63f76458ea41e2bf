//! The plain measurement: loads of several shapes on a cluster that nobody attacks.

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cluster::{CLIENTS, Cluster, LogPlace};
use crate::load::{self, Load};
use crate::table::{self, Style, Table};
use crate::{Outcome, positive, usage};

/// What to offer. Without any of the first six, a standard series is measured.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Users, each with a key and connections of its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=CLIENTS as i64))]
    clients: Option<u16>,
    /// Sessions of each user. A session has at most 16 requests outstanding: for more, open more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=60))]
    sessions: Option<u16>,
    /// Requests that each session keeps outstanding (in an open loop: at most).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    outstanding: Option<u16>,
    /// Bytes that an operation carries: 0 is a SetAttr, up to 512 a Commit, more a SetXattr.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(..=65536))]
    payload: Vec<u32>,
    /// Operations in a request, under one signature.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    operations: Vec<u16>,
    /// Open loop: operations a second, all clients together, sent when they are due whatever the
    /// cluster does. Latency counts from then. Without it the loop is closed.
    #[arg(long, value_name = "PER-SECOND", value_delimiter = ',', value_parser = positive)]
    rate: Vec<f64>,
    /// Where the vote logs are.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "disk")]
    log: Vec<LogPlace>,
    /// How long each load is measured.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 5.0)]
    seconds: f64,
    /// How long each load runs before that.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 1.0)]
    warmup: f64,
}

impl Options {
    /// Whether a load is described, in place of the standard series.
    fn is_chosen(&self) -> bool {
        let given = self.clients.is_some() || self.sessions.is_some() || self.outstanding.is_some();
        given || !(self.payload.is_empty() && self.operations.is_empty() && self.rate.is_empty())
    }

    fn load(&self, clients: usize, outstanding: usize, payload: usize, operations: usize) -> Load {
        let [warmup, length] = [self.warmup, self.seconds].map(Duration::from_secs_f64);
        Load { clients, sessions: 1, outstanding, payload, operations, rate: None, warmup, length }
    }

    fn chosen(&self) -> Vec<Load> {
        let number = |given: Option<u16>, otherwise| given.map_or(otherwise, usize::from);
        let or = |given: Vec<usize>, otherwise| if given.is_empty() { vec![otherwise] } else { given };
        let payloads = or(self.payload.iter().map(|bytes| *bytes as usize).collect(), 512);
        let operations = or(self.operations.iter().map(|count| usize::from(*count)).collect(), 1);
        let rates: Vec<_> =
            if self.rate.is_empty() { vec![None] } else { self.rate.iter().copied().map(Some).collect() };
        let mut loads = Vec::new();
        for payload in payloads {
            for operations in &operations {
                for rate in &rates {
                    let load = self.load(number(self.clients, 16), number(self.outstanding, 16), payload, *operations);
                    loads.push(Load { sessions: number(self.sessions, 1), rate: *rate, ..load });
                }
            }
        }
        loads
    }

    /// One lone request; more and more of them; other sizes; many operations a request. Open loops
    /// follow when the peak is known.
    fn standard(&self) -> Vec<Load> {
        let shapes = [(1, 1, 512, 1), (4, 1, 512, 1), (4, 16, 512, 1), (16, 16, 512, 1), (64, 16, 512, 1)];
        let sizes = [(16, 16, 0, 1), (16, 16, 128, 1), (16, 16, 1024, 1), (16, 16, 4096, 1)];
        let many = [(1, 1, 0, 64), (16, 4, 0, 64), (16, 4, 512, 64)];
        let all = shapes.into_iter().chain(sizes).chain(many);
        all.map(|(clients, outstanding, payload, operations)| self.load(clients, outstanding, payload, operations))
            .collect()
    }
}

/// Of the standard series: whose rate in a closed loop is the peak, parts of which the open loops
/// offer.
const PEAK: (usize, usize, usize, usize) = (16, 16, 512, 1);
const PARTS_OF_PEAK: [f64; 2] = [0.5, 0.8];

/// Measures all loads on a new cluster for each place of the logs.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<()> {
    let about = ["log", "clients", "outstanding", "offered/s", "payload B", "ops/request"];
    let header: Vec<_> = about.into_iter().chain(table::COLUMNS).collect();
    let mut table = Table::new(style, &header);
    let (mut syncs, mut notes) = (Vec::new(), Vec::new());
    for place in &options.log {
        let cluster = Cluster::start(*place).await?;
        let chosen = options.is_chosen();
        let mut loads = VecDeque::from(if chosen { options.chosen() } else { options.standard() });
        while let Some(load) = loads.pop_front() {
            let figures = load::run(&cluster, load).await?;
            let shape = (load.clients, load.outstanding, load.payload, load.operations);
            if !chosen && shape == PEAK && load.rate.is_none() {
                let rates = PARTS_OF_PEAK.map(|part| part * figures.rate());
                loads.extend(rates.map(|rate| Load { rate: Some(rate), ..load }));
            }
            let mut cells = vec![
                place.name().to_owned(),
                load.clients.to_string(),
                load.in_flight().to_string(),
                load.rate.map_or("closed".to_owned(), |rate| format!("{rate:.0}")),
                load.payload.to_string(),
                load.operations.to_string(),
            ];
            cells.extend(table::cells(&figures));
            let mut value = table::value(&figures);
            value["log"] = json!(place.name());
            table.row(&cells, value);
        }
        let sync = usage::fdatasync_p50(cluster.folder())?;
        notes.push(format!(
            "one fdatasync of a 1 KiB append where the logs are ({}), p50: {:.3} ms",
            place.name(),
            sync.as_secs_f64() * 1e3
        ));
        syncs.push(json!({ "log": place.name(), "fdatasync_ms_p50": sync.as_secs_f64() * 1e3 }));
    }
    notes.iter().for_each(|note| table.note(note));
    table.finish(&json!({ "replicas": crate::cluster::REPLICAS, "fdatasync": syncs }));
    Ok(())
}
