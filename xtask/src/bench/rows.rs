//! The rows of `cargo xtask bench fs`, and which of them are wanted. Every figure is a rate, so more is
//! better.

use clap::ValueEnum;
use clap::builder::PossibleValue;

/// What is done one after the other in one folder; each row belongs to one.
pub(crate) const PARTS: [&str; 6] = ["big", "small", "names", "sync", "unpack", "git"];

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    Write,
    ReadCold,
    ReadWarm,
    RandomCold,
    Create,
    Stat,
    StatThird,
    SmallWarm,
    SmallThird,
    SmallCold,
    Delete,
    Mkdir,
    Chmod,
    Rename,
    Append,
    Mail,
    UnpackTree,
    RemoveTree,
    UnpackAndSync,
    Clone,
    StatusWarm,
    StatusCold,
}

impl Row {
    /// The part it belongs to, and its title, which ends with the unit.
    const fn place(self) -> (&'static str, &'static str) {
        match self {
            Row::Write => ("big", "write and fsync, MiB/s"),
            Row::ReadCold => ("big", "read cold, MiB/s"),
            Row::ReadWarm => ("big", "read warm, MiB/s"),
            Row::RandomCold => ("big", "random 4 KiB reads cold, reads/s"),
            Row::Create => ("small", "create 4 KiB, files/s"),
            Row::Stat => ("small", "stat, files/s"),
            Row::StatThird => ("small", "stat, third pass, files/s"),
            Row::SmallWarm => ("small", "read 4 KiB warm, files/s"),
            Row::SmallThird => ("small", "read 4 KiB warm, third pass, files/s"),
            Row::SmallCold => ("small", "read 4 KiB cold, files/s"),
            Row::Delete => ("small", "delete, files/s"),
            Row::Mkdir => ("names", "mkdir, folders/s"),
            Row::Chmod => ("names", "chmod, files/s"),
            Row::Rename => ("names", "rename, files/s"),
            Row::Append => ("sync", "append 4 KiB and fsync, appends/s"),
            Row::Mail => ("sync", "create, write 4 KiB, fsync, rename, mails/s"),
            Row::UnpackTree => ("unpack", "unpack a tree, files/s"),
            Row::RemoveTree => ("unpack", "remove the tree, files/s"),
            Row::UnpackAndSync => ("unpack", "unpack a tree and sync, files/s"),
            Row::Clone => ("git", "git clone, files/s"),
            Row::StatusWarm => ("git", "git status warm, files/s"),
            Row::StatusCold => ("git", "git status cold, files/s"),
        }
    }

    /// The part it is measured in: one of [`PARTS`].
    pub(crate) fn part(self) -> &'static str {
        self.place().0
    }

    /// What it is called in a table.
    pub(crate) fn title(self) -> &'static str {
        self.place().1
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no row is hidden").get_name().to_owned()
    }
}

/// What `--only` takes: parts and rows.
pub(crate) fn names() -> Vec<PossibleValue> {
    let rows = Row::value_variants().iter().filter_map(Row::to_possible_value);
    PARTS.into_iter().map(PossibleValue::new).chain(rows).collect()
}

/// The rows that are wanted.
pub(crate) struct Choice(Vec<Row>);

impl Choice {
    /// Those named by themselves or by their part; all if nothing is named.
    pub(crate) fn of(named: &[String]) -> Choice {
        let wanted = |row: &Row| named.is_empty() || named.iter().any(|name| *name == row.name() || name == row.part());
        Choice(Row::value_variants().iter().copied().filter(wanted).collect())
    }

    /// Whether one of these is wanted.
    pub(crate) fn wants(&self, rows: &[Row]) -> bool {
        rows.iter().any(|row| self.0.contains(row))
    }

    /// Whether anything of this part is.
    pub(crate) fn wants_part(&self, part: &str) -> bool {
        self.0.iter().any(|row| row.part() == part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_name_or_by_part() {
        let choice = Choice::of(&["mail".to_owned(), "names".to_owned()]);
        assert!(choice.wants(&[Row::Append, Row::Mail]) && choice.wants(&[Row::Chmod]));
        assert!(!choice.wants(&[Row::Append, Row::Create]));
        assert!(choice.wants_part("sync") && choice.wants_part("names") && !choice.wants_part("small"));
        assert!(PARTS.iter().all(|part| Choice::of(&[]).wants_part(part)));
    }

    #[test]
    fn no_name_means_two_things() {
        let mut all: Vec<String> = names().iter().map(|name| name.get_name().to_owned()).collect();
        all.sort();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
        assert!(Row::value_variants().iter().all(|row| PARTS.contains(&row.part())));
    }
}
