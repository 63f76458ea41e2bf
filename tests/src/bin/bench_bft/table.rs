//! Figures as a table, for eyes, for Markdown and for programs.

use serde_json::{Value, json};

use crate::load::Figures;
use crate::work::operation_name;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Markdown,
    Json,
}

/// Of the first column, which says what was measured.
const FIRST_WIDTH: usize = 24;

/// Rows under a header, printed as they come, so that a long run shows how far it is.
pub(crate) struct Table {
    style: Style,
    header: Vec<&'static str>,
    widths: Vec<usize>,
    rows: Vec<Value>,
}

impl Table {
    pub(crate) fn new(style: Style, header: &[&'static str]) -> Table {
        let mut widths: Vec<_> = header.iter().map(|title| title.len().max(7)).collect();
        widths[0] = widths[0].max(FIRST_WIDTH);
        let table = Table { style, header: header.to_vec(), widths, rows: Vec::new() };
        let titles: Vec<_> = header.iter().map(ToString::to_string).collect();
        table.print(&titles);
        if style == Style::Markdown {
            println!("|---{}|", "|--:".repeat(header.len() - 1));
        }
        table
    }

    /// Adds a row; `json` is what programs get of it.
    pub(crate) fn row(&mut self, cells: &[String], json: Value) {
        assert_eq!(cells.len(), self.header.len(), "a cell for each column");
        self.print(cells);
        self.rows.push(json);
    }

    fn print(&self, cells: &[String]) {
        match self.style {
            Style::Json => {}
            Style::Markdown => println!("| {} |", cells.join(" | ")),
            Style::Plain => {
                let padded = cells.iter().zip(&self.widths).enumerate();
                let line: Vec<_> = padded
                    .map(
                        |(index, (cell, width))| {
                            if index == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                        },
                    )
                    .collect();
                println!("{}", line.join("  ").trim_end());
            }
        }
    }

    /// A line below the table.
    pub(crate) fn note(&self, text: &str) {
        if self.style != Style::Json {
            println!("\n{text}");
        }
    }

    /// What programs get: the rows, once all are there.
    pub(crate) fn finish(self, about: &Value) {
        if self.style == Style::Json {
            println!("{:#}", json!({ "about": about, "rows": self.rows }));
        }
    }
}

/// The columns of [`cells`].
pub(crate) const COLUMNS: [&str; 10] = [
    "operations/s",
    "p50 ms",
    "p99 ms",
    "CPU us/op",
    "of it clients",
    "ops/CPU-s",
    "requests/batch",
    "peak MiB",
    "refusals",
    "views",
];

/// The figures of one load.
pub(crate) fn cells(figures: &Figures) -> Vec<String> {
    let operations = (figures.requests() * figures.load.operations).max(1) as f64;
    let ms = |percent| format!("{:.2}", figures.latency(percent).as_secs_f64() * 1e3);
    vec![
        format!("{:.0}", figures.rate()),
        ms(50),
        ms(99),
        format!("{:.1}", figures.cpu().as_secs_f64() * 1e6 / operations),
        format!("{:.1}", figures.clients_cpu.as_secs_f64() * 1e6 / operations),
        format!("{:.0}", figures.per_cpu_second()),
        figures.batch().map_or("-".to_owned(), |batch| format!("{batch:.1}")),
        format!("{}", figures.peak_kib >> 10),
        figures.refused.to_string(),
        figures.views.to_string(),
    ]
}

/// The same for programs.
pub(crate) fn value(figures: &Figures) -> Value {
    let load = &figures.load;
    json!({
        "clients": load.clients,
        "sessions_per_client": load.sessions,
        "outstanding_per_session": load.outstanding,
        "payload_bytes": load.payload,
        "operation": operation_name(load.payload),
        "operations_per_request": load.operations,
        "offered_per_second": load.rate,
        "seconds": figures.elapsed.as_secs_f64(),
        "operations_per_second": figures.rate(),
        "operations_per_cpu_second": figures.per_cpu_second(),
        "latency_ms_p50": figures.latency(50).as_secs_f64() * 1e3,
        "latency_ms_p99": figures.latency(99).as_secs_f64() * 1e3,
        "replicas_cpu_seconds": figures.replicas_cpu.as_secs_f64(),
        "clients_cpu_seconds": figures.clients_cpu.as_secs_f64(),
        "requests_per_batch": figures.batch(),
        "peak_kib_of_a_replica": figures.peak_kib,
        "overloaded_replies": figures.refused,
        "unanswered_requests": figures.unanswered,
        "unsent_requests": figures.unsent,
        "view_changes": figures.views,
    })
}
