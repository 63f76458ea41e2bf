//! `cargo xtask bench bft`: how many operations four replicas agree on, how fast, at what cost.
//!
//! Four real replicas (`mangrove node run`, a process each) on loopback: mutual TLS, requests
//! signed with ed25519 and verified by each, every vote in its log before it is sent. The clients
//! are tasks of this process; processor time of both sides counts. [`load`] offers work, [`sweep`]
//! measures it, [`attacks`] measures it again while somebody misbehaves, [`failover`] kills primaries
//! meanwhile; [`restart`] measures starts; [`reads`] sets proven reads beside ordered ones; [`floors`] is
//! the short run that guards what was reached.

mod attacks;
mod cluster;
mod failover;
mod floors;
mod hostile;
mod link;
mod load;
mod reads;
mod restart;
mod sweep;
mod table;
mod usage;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use table::Style;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How many operations four replicas agree on, how fast, at what cost.
///
/// Everything, a few minutes:          cargo xtask bench bft --log disk,memory
/// One load, closed loop:              cargo xtask bench bft --clients 16 --payload 512
/// Open loop, latency under 3000/s:    cargo xtask bench bft --rate 3000
/// Under attack, in a few minutes:     cargo xtask bench bft attacks
/// One primary killed after another:   cargo xtask bench failover
/// Reads proven by one replica:        cargo xtask bench bft reads
/// How long a start takes:             cargo xtask bench restart
/// Has it become dearer?               cargo xtask bench bft floors
/// For docs/results.md:                cargo xtask bench bft --markdown
#[derive(Parser)]
#[command(name = "cargo xtask bench bft", bin_name = "cargo xtask bench bft", verbatim_doc_comment)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    sweep: sweep::Options,
    /// Print a Markdown table.
    #[arg(long, global = true, conflicts_with = "json")]
    markdown: bool,
    /// Print JSON, at the end.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    Attacks(attacks::Options),
    Floors(floors::Options),
    Failover(failover::Options),
    Reads(reads::Options),
    Restart(restart::Options),
    /// What the attackers' processes run.
    #[command(hide = true, subcommand)]
    Hostile(hostile::Hostile),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let style = match (arguments.markdown, arguments.json) {
        (true, _) => Style::Markdown,
        (_, true) => Style::Json,
        _ => Style::Plain,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error),
    };
    match runtime.block_on(run(&arguments, style)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => complain(error.as_ref()),
    }
}

/// Gives whether all was well.
async fn run(arguments: &Arguments, style: Style) -> Outcome<bool> {
    match &arguments.what {
        None => sweep::run(&arguments.sweep, style).await.map(|()| true),
        Some(What::Attacks(options)) => attacks::run(options, style).await,
        Some(What::Floors(options)) => floors::run(options, style).await,
        Some(What::Hostile(hostile)) => hostile::run(hostile).await.map(|()| true),
        Some(What::Failover(options)) => failover::run(options, style).await,
        Some(What::Reads(options)) => reads::run(options, style).await,
        Some(What::Restart(options)) => restart::run(options, style).await,
    }
}

/// A number on the command line that makes sense as a length, a rate or a part.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && (1e-3..1e9).contains(number));
    number.ok_or_else(|| "must be a number above zero".to_owned())
}

fn complain(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
