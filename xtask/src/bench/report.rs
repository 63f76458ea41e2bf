//! Figures as a table, with ratios.

use serde_json::{Value, json};

use super::target::NAMES;
use super::work::Sizes;

/// All figures of a run.
pub(crate) struct Report {
    disk: String,
    sizes: Sizes,
    /// What, and for each of [`NAMES`] the rates of all rounds; in the order measured.
    rows: Vec<(&'static str, [Vec<f64>; 3])>,
}

impl Report {
    /// No figures yet. `disk` is the kind of filesystem below all.
    pub(crate) fn new(disk: &str, sizes: Sizes) -> Report {
        Report { disk: disk.to_owned(), sizes, rows: Vec::new() }
    }

    /// Adds a figure of one round.
    pub(crate) fn add(&mut self, what: &'static str, target: &str, rate: f64) {
        let Some(column) = NAMES.iter().position(|name| *name == target) else { return };
        let row = self.rows.iter().position(|(name, _)| *name == what).unwrap_or_else(|| {
            self.rows.push((what, [const { Vec::new() }; 3]));
            self.rows.len() - 1
        });
        self.rows[row].1[column].push(rate);
    }

    fn header(&self) -> [String; 6] {
        let plain = if self.disk.is_empty() { "plain" } else { &self.disk };
        ["", plain, "passthrough", "mangrove", &format!("of {plain}"), "of passthrough"].map(str::to_owned)
    }

    fn cells(what: &str, columns: &[Vec<f64>; 3]) -> [String; 6] {
        let [plain, passthrough, mangrove] = columns.each_ref().map(|rates| median(rates));
        let number = |value: Option<f64>| value.map_or("-".to_owned(), written);
        let share = |of: Option<f64>| match (mangrove, of) {
            (Some(mangrove), Some(of)) => format!("{:.2}", mangrove / of),
            _ => "-".to_owned(),
        };
        [what.to_owned(), number(plain), number(passthrough), number(mangrove), share(plain), share(passthrough)]
    }

    fn table(&self) -> Vec<[String; 6]> {
        let rows = self.rows.iter().map(|(what, columns)| Report::cells(what, columns));
        std::iter::once(self.header()).chain(rows).collect()
    }

    fn legend(&self) -> String {
        let Sizes { big_mib, files, tree } = self.sizes;
        format!(
            "A file of {big_mib} MiB, {files} files of 4 KiB (no fsync), a tree of {tree} files; everything on one {}. \
             Ratios: mangrove to the other; more is better.",
            self.disk
        )
    }

    /// For a terminal.
    pub(crate) fn plain(&self) -> String {
        let table = self.table();
        let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..6).map(width).collect();
        let line = |row: &[String; 6]| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(i, (cell, w))| if i == 0 { format!("{cell:w$}") } else { format!("{cell:>w$}") });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        format!("{}\n\n{}", self.legend(), table.iter().map(line).collect::<String>())
    }

    /// For docs/results.md.
    pub(crate) fn markdown(&self) -> String {
        let mut lines: Vec<_> = self.table().iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
        lines.insert(1, "|---|--:|--:|--:|--:|--:|\n".to_owned());
        format!("{}\n\n{}", self.legend(), lines.concat())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let rates = |columns: &[Vec<f64>; 3]| {
            let named = NAMES.iter().zip(columns).filter(|(_, rates)| !rates.is_empty());
            named.map(|(name, rates)| ((*name).to_owned(), json!(rates))).collect::<serde_json::Map<_, _>>()
        };
        let rows = self.rows.iter().map(|(what, columns)| ((*what).to_owned(), Value::Object(rates(columns))));
        let rows = rows.collect::<serde_json::Map<_, _>>();
        let Sizes { big_mib, files, tree } = self.sizes;
        json!({ "disk": self.disk, "big_mib": big_mib, "files": files, "tree": tree, "rates": rows })
    }
}

fn written(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_medians_and_ratios() {
        let mut report = Report::new("ext4", Sizes { big_mib: 1, files: 2, tree: 3 });
        for (target, rate) in [("plain", 100.0), ("plain", 400.0), ("plain", 200.0), ("mangrove", 50.0)] {
            report.add("stat, files/s", target, rate);
        }
        assert!(report.plain().ends_with("stat, files/s   200            -        50     0.25               -\n"));
        assert!(report.markdown().contains("| stat, files/s | 200 | - | 50 | 0.25 | - |"));
        assert_eq!(report.json()["rates"]["stat, files/s"]["mangrove"], json!([50.0]));
    }
}
