//! Figures as a table, with ratios.

use serde_json::{Value, json};

use super::rows::Row;
use super::run::Sizes;
use super::target::NAMES;

/// What the ratios are of.
const OURS: &str = NAMES[2];
/// The rates of all rounds, by column.
type Rates = Vec<Vec<f64>>;

/// All figures of a run.
pub(crate) struct Report {
    disk: String,
    sizes: Sizes,
    columns: Vec<String>,
    /// In the order measured.
    rows: Vec<(Row, Rates)>,
}

impl Report {
    /// No figures yet. `disk` is the kind of filesystem below all.
    pub(crate) fn new(disk: &str, sizes: Sizes, columns: Vec<String>) -> Report {
        Report { disk: disk.to_owned(), sizes, columns, rows: Vec::new() }
    }

    /// Adds a figure of one round.
    pub(crate) fn add(&mut self, row: Row, target: &str, rate: f64) {
        let Some(column) = self.columns.iter().position(|name| name == target) else { return };
        let place = self.rows.iter().position(|(other, _)| *other == row).unwrap_or_else(|| {
            self.rows.push((row, vec![Vec::new(); self.columns.len()]));
            self.rows.len() - 1
        });
        self.rows[place].1[column].push(rate);
    }

    /// A column's name in the table; that of the plain folder is its disk's.
    fn shown<'a>(&'a self, column: &'a str) -> &'a str {
        if column == NAMES[0] && !self.disk.is_empty() { &self.disk } else { column }
    }

    fn header(&self) -> Vec<String> {
        let shown = self.columns.iter().map(|column| self.shown(column).to_owned());
        let others = self.columns.iter().filter(|column| *column != OURS);
        let ratios = others.map(|column| format!("of {}", self.shown(column)));
        std::iter::once(String::new()).chain(shown).chain(ratios).collect()
    }

    /// Our median to those of the others.
    fn ratios(&self, ours: &Rates, others: &Rates) -> Vec<String> {
        let is_ours = |column: &String| column == OURS;
        let ours = self.columns.iter().position(is_ours).and_then(|column| median(&ours[column]));
        let others = self.columns.iter().zip(others).filter(|(column, _)| !is_ours(column));
        let share = |rates: &Vec<f64>| match (ours, median(rates)) {
            (Some(ours), Some(other)) => format!("{:.2}", ours / other),
            _ => "-".to_owned(),
        };
        others.map(|(_, rates)| share(rates)).collect()
    }

    fn line(&self, row: Row, rates: &Rates) -> Vec<String> {
        let numbers = rates.iter().map(|rates| median(rates).map_or("-".to_owned(), written));
        std::iter::once(row.title().to_owned()).chain(numbers).chain(self.ratios(rates, rates)).collect()
    }

    /// What a user waits who wants the tree to be safe with us, and does not care with the others.
    fn safe_to_unsafe(&self) -> Option<Vec<String>> {
        let rates = |wanted: Row| self.rows.iter().find_map(|(row, rates)| (*row == wanted).then_some(rates));
        let (ours, others) = (rates(Row::UnpackAndSync)?, rates(Row::UnpackTree)?);
        let dashes = self.columns.iter().map(|_| "-".to_owned());
        let title = std::iter::once("unpack and sync, to the others' unpack".to_owned());
        Some(title.chain(dashes).chain(self.ratios(ours, others)).collect())
    }

    fn table(&self) -> Vec<Vec<String>> {
        let mut table = vec![self.header()];
        for (row, rates) in &self.rows {
            table.push(self.line(*row, rates));
            if *row == Row::UnpackAndSync {
                table.extend(self.safe_to_unsafe());
            }
        }
        table
    }

    fn legend(&self) -> String {
        let Sizes { big_mib, reads, files, syncs, tree, git_files, git_commits } = self.sizes;
        format!(
            "A file of {big_mib} MiB and {reads} random reads of it, {files} files of 4 KiB (no fsync), {syncs} \
             appends and mails, a tree of {tree} files, a git repository of {git_files} files and {git_commits} \
             commits; everything on one {}. Ratios: mangrove to the other; more is better.",
            self.disk
        )
    }

    /// For a terminal.
    pub(crate) fn plain(&self) -> String {
        let table = self.table();
        let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..table[0].len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(i, (cell, w))| if i == 0 { format!("{cell:w$}") } else { format!("{cell:>w$}") });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        format!("{}\n\n{}", self.legend(), table.iter().map(line).collect::<String>())
    }

    /// For docs/results.md.
    pub(crate) fn markdown(&self) -> String {
        let mut lines: Vec<_> = self.table().iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
        lines.insert(1, format!("|---|{}\n", "--:|".repeat(self.header().len() - 1)));
        format!("{}\n\n{}", self.legend(), lines.concat())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let rates = |rates: &Rates| {
            let named = self.columns.iter().zip(rates).filter(|(_, rates)| !rates.is_empty());
            named.map(|(name, rates)| (name.clone(), json!(rates))).collect::<serde_json::Map<_, _>>()
        };
        let rows = self.rows.iter().map(|(row, columns)| (row.title().to_owned(), Value::Object(rates(columns))));
        let rows = rows.collect::<serde_json::Map<_, _>>();
        let Sizes { big_mib, reads, files, syncs, tree, git_files, git_commits } = self.sizes;
        json!({
            "disk": self.disk, "big_mib": big_mib, "reads": reads, "files": files, "syncs": syncs, "tree": tree,
            "git_files": git_files, "git_commits": git_commits, "rates": rows,
        })
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

    const SIZES: Sizes = Sizes { big_mib: 1, reads: 1, files: 2, syncs: 1, tree: 3, git_files: 1, git_commits: 1 };

    #[test]
    fn a_report_shows_medians_and_ratios() {
        let mut report = Report::new("ext4", SIZES, NAMES.map(str::to_owned).to_vec());
        for (target, rate) in [("plain", 100.0), ("plain", 400.0), ("plain", 200.0), ("mangrove", 50.0)] {
            report.add(Row::Stat, target, rate);
        }
        assert!(report.plain().ends_with("stat, files/s   200            -        50     0.25               -\n"));
        assert!(report.markdown().contains("| stat, files/s | 200 | - | 50 | 0.25 | - |"));
        assert_eq!(report.json()["rates"]["stat, files/s"]["mangrove"], json!([50.0]));
    }

    #[test]
    fn peers_are_columns_beside_the_others() {
        let columns = ["plain", "mangrove", "other"].map(str::to_owned).to_vec();
        let mut report = Report::new("ext4", SIZES, columns);
        for (row, target, rate) in [
            (Row::UnpackTree, "plain", 100.0),
            (Row::UnpackTree, "mangrove", 80.0),
            (Row::UnpackTree, "other", 40.0),
            (Row::UnpackAndSync, "mangrove", 60.0),
            (Row::UnpackAndSync, "other", 30.0),
        ] {
            report.add(row, target, rate);
        }
        let table = report.markdown();
        assert!(table.contains("|  | ext4 | mangrove | other | of ext4 | of other |\n|---|--:|--:|--:|--:|--:|\n"));
        assert!(table.contains("| unpack a tree, files/s | 100 | 80 | 40 | 0.80 | 2.00 |"), "{table}");
        assert!(table.contains("| unpack a tree and sync, files/s | - | 60 | 30 | - | 2.00 |"), "{table}");
        assert!(table.ends_with("| unpack and sync, to the others' unpack | - | - | - | 0.60 | 1.50 |\n"), "{table}");
        assert_eq!(report.json()["rates"]["unpack a tree, files/s"]["other"], json!([40.0]));
    }
}
