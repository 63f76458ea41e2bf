//! `cargo xtask bench bft attacks`: the same load while somebody misbehaves, beside the load alone.
//!
//! Every attack gets a cluster of its own, with default timeouts. Attackers' processor time is not
//! counted, but they run on the same machine: rates suffer from that too, so the work in a second of
//! the others' processor time is shown beside them.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::cluster::{ATTACKER, CLIENTS, Cluster, LogPlace, REPLICAS};
use crate::load::{self, Figures, Load};
use crate::table::{self, Style, Table};
use crate::{Outcome, positive};

/// 0.9 of the view timeout: as slow as a primary may be that nobody suspects.
const SLOW_MS: u64 = 900;
/// How much of what the cluster can take is offered to overload it.
const OVERLOAD: f64 = 4.0;
/// The primary of a new cluster.
const PRIMARY: usize = 0;
/// The replica that is taken away.
const VICTIM: usize = REPLICAS - 1;
const _: () = assert!(VICTIM != PRIMARY);

/// Who misbehaves, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// One backup is stopped (SIGSTOP): its links stay open, it says nothing.
    Silent,
    /// All that the primary sends to replicas comes 0.9 s late: 0.9 of the view timeout.
    Slow,
    /// One user sends all replicas new signed requests, as many as they take.
    Flood,
    /// One user sends all replicas requests with wrong signatures, as many as they take.
    Forge,
    /// One backup sends the others votes and reports, as many as they take.
    Babble,
    /// f backups are killed.
    Crash,
    /// Honest users ask four times as much as the cluster can take, open loop.
    Overload,
}

impl Attack {
    fn name(self) -> &'static str {
        match self {
            Attack::Silent => "one silent backup",
            Attack::Slow => "primary 0.9 s slow",
            Attack::Flood => "one flooding client",
            Attack::Forge => "one forging client",
            Attack::Babble => "one flooding replica",
            Attack::Crash => "f backups crashed",
            Attack::Overload => "4 x saturation",
        }
    }
}

/// Measures the same load without and with somebody who misbehaves.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Which attacks; all without it.
    #[arg(long, value_enum, value_delimiter = ',')]
    attack: Vec<Attack>,
    /// Users, each with 16 requests of 512 B outstanding.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=CLIENTS as i64))]
    clients: u16,
    /// Where the vote logs are.
    #[arg(long, value_enum, default_value = "disk")]
    log: LogPlace,
    /// How long each is measured.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 10.0)]
    seconds: f64,
    /// How long each runs before that, under attack.
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 3.0)]
    warmup: f64,
    /// Fail if less than this part of the peak is left under one of the attacks.
    #[arg(long, value_name = "PART", value_parser = positive)]
    least: Option<f64>,
}

impl Options {
    fn load(&self) -> Load {
        let [warmup, length] = [self.warmup, self.seconds].map(Duration::from_secs_f64);
        let clients = self.clients.into();
        Load { clients, sessions: 1, outstanding: 16, payload: 512, operations: 1, rate: None, warmup, length }
    }
}

/// What an attack came to.
struct Suffered {
    figures: Figures,
    /// Messages a second that the attacker got rid of.
    hostile_rate: f64,
}

/// Measures the peak and then every attack. Gives whether enough was left each time.
pub(crate) async fn run(options: &Options, style: Style) -> Outcome<bool> {
    let about = ["attack", "of peak, ops/s", "of peak, ops/CPU-s", "hostile msgs/s", "unsent"];
    let header: Vec<_> = about.into_iter().chain(table::COLUMNS).collect();
    let mut table = Table::new(style, &header);
    let peak = Cluster::start(options.log).await?;
    let peak = load::run(&peak, options.load()).await?;
    let mut enough = true;
    let mut row = |name: &str, suffered: &Suffered| {
        let figures = &suffered.figures;
        let part = figures.rate() / peak.rate();
        let cpu_part = figures.per_cpu_second() / peak.per_cpu_second();
        let mut cells = vec![name.to_owned(), format!("{part:.2}"), format!("{cpu_part:.2}")];
        cells.extend([format!("{:.0}", suffered.hostile_rate), figures.unsent.to_string()]);
        cells.extend(table::cells(figures));
        let mut value = table::value(figures);
        value["attack"] = json!(name);
        value["of_peak"] = json!(part);
        value["of_peak_per_cpu_second"] = json!(cpu_part);
        value["hostile_messages_per_second"] = json!(suffered.hostile_rate);
        table.row(&cells, value);
        part
    };
    row("none", &Suffered { figures: peak.clone(), hostile_rate: 0.0 });
    let attacks = if options.attack.is_empty() { Attack::value_variants() } else { &options.attack };
    for attack in attacks {
        let suffered = suffer(*attack, options, &peak).await?;
        enough &= row(attack.name(), &suffered) >= options.least.unwrap_or(0.0);
    }
    table.note("refusals: replies that said \"overloaded\"; unsent: requests that clients still held at the end");
    table.finish(&json!({ "log": options.log.name(), "slow_ms": SLOW_MS, "overload": OVERLOAD }));
    if !enough {
        eprintln!("error: too little of the peak is left under an attack");
    }
    Ok(enough)
}

async fn suffer(attack: Attack, options: &Options, peak: &Figures) -> Outcome<Suffered> {
    let mut cluster = Cluster::configure(options.log)?;
    let mut load = options.load();
    if attack == Attack::Slow {
        let peers: Vec<_> = (0..REPLICAS).filter(|node| *node != PRIMARY).collect();
        let to: Vec<_> = peers.iter().map(|peer| cluster.view.nodes[*peer].address.to_string()).collect();
        let by = SLOW_MS.to_string();
        let when = cluster.go_file().display().to_string();
        let relays = ["delay", "--by-ms", &by, "--when", &when].into_iter().chain(to.iter().map(String::as_str));
        let said = cluster.attack(relays.map(str::to_owned), "relays ").await?;
        let addresses = said.split_whitespace().map(str::parse::<SocketAddr>).collect::<Result<Vec<_>, _>>()?;
        let redirected: Vec<_> = peers.into_iter().zip(addresses).collect();
        cluster.redirect(PRIMARY, &redirected)?;
    }
    cluster.run().await?;
    let file = cluster.files[ATTACKER].0.to_string();
    let view = cluster.view_file().display().to_string();
    match attack {
        Attack::Slow => cluster.unleash()?,
        Attack::Silent => cluster.freeze(VICTIM),
        Attack::Crash => cluster.kill(VICTIM),
        Attack::Flood => drop(cluster.attack(["flood".to_owned(), view, file], "sent ").await?),
        Attack::Forge => drop(cluster.attack(["forge".to_owned(), view, file], "sent ").await?),
        Attack::Babble => {
            cluster.kill(VICTIM);
            let whose = VICTIM.to_string();
            drop(cluster.attack(["babble".to_owned(), view, whose], "sent ").await?);
        }
        Attack::Overload => {
            // More sessions, so that the clients' own windows are not what holds them back.
            load.sessions = 32;
            load.rate = Some(OVERLOAD * peak.rate());
        }
    }
    let (began, before) = (std::time::Instant::now(), cluster.hostile_messages());
    let figures = load::run(&cluster, load).await?;
    let hostile = cluster.hostile_messages().saturating_sub(before);
    Ok(Suffered { figures, hostile_rate: hostile as f64 / began.elapsed().as_secs_f64() })
}
