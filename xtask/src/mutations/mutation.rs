//! A seeded bug as a file: what it is, why it matters, and text that takes the place of other text.
//!
//! Text and not line numbers, so that a bug survives edits elsewhere in the file:
//!
//! ```text
//! why: One line: what goes wrong in the world, and which part of the paper says so.
//! scenarios: faults twins
//! file: bft/src/log.rs
//! ---- old
//! exact lines, found once in that file
//! ---- new
//! what stands there instead
//! ---- end
//! ```
//!
//! A file may replace in several places, each with its `old`, `new` and `end`; `file:` holds until
//! the next one. Paths are relative to the root of the project.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::copy::Tree;

/// How a mutation's file name ends.
const ENDING: &str = "mutation";

/// A seeded bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mutation {
    /// The file's name without its ending.
    pub(crate) name: String,
    /// Why it matters.
    pub(crate) why: String,
    /// In which scenarios of the simulator it is looked for.
    pub(crate) scenarios: Vec<String>,
    edits: Vec<Edit>,
}

/// Text that takes the place of other text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Edit {
    file: PathBuf,
    old: String,
    new: String,
}

/// Where a reader of a file is.
enum At {
    Outside,
    Old(Edit),
    New(Edit),
}

impl Mutation {
    /// All mutations of a folder, by name.
    ///
    /// # Errors
    /// If the folder can't be read, or a file in it is none.
    pub(crate) fn all(folder: &Path) -> anyhow::Result<Vec<Mutation>> {
        let list = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut mutations = Vec::new();
        for item in list {
            let path = item?.path();
            if path.extension().is_some_and(|ending| ending == ENDING) {
                let text = std::fs::read_to_string(&path)?;
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                mutations.push(Mutation::parse(&name, &text).with_context(|| format!("{}", path.display()))?);
            }
        }
        mutations.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(!mutations.is_empty(), "{} holds no mutations", folder.display());
        Ok(mutations)
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Mutation> {
        let mut mutation =
            Mutation { name: name.to_owned(), why: String::new(), scenarios: Vec::new(), edits: Vec::new() };
        let (mut file, mut at) = (PathBuf::new(), At::Outside);
        for (index, line) in text.lines().enumerate() {
            at = match (at, line) {
                (At::Outside, "---- old") => At::Old(Edit { file: file.clone(), ..Edit::default() }),
                (At::Old(edit), "---- new") => At::New(edit),
                (At::New(edit), "---- end") => {
                    mutation.edits.push(edit);
                    At::Outside
                }
                (_, "---- old" | "---- new" | "---- end") => bail!("line {}: {line} is out of place", index + 1),
                (At::Old(edit), _) => At::Old(Edit { old: edit.old + line + "\n", ..edit }),
                (At::New(edit), _) => At::New(Edit { new: edit.new + line + "\n", ..edit }),
                (At::Outside, _) => {
                    mutation.head(line, &mut file).with_context(|| format!("line {}", index + 1))?;
                    At::Outside
                }
            };
        }
        ensure!(matches!(at, At::Outside), "the last replacement has no end");
        ensure!(!mutation.edits.is_empty(), "nothing is replaced");
        ensure!(!mutation.why.is_empty() && !mutation.scenarios.is_empty(), "`why:` or `scenarios:` is missing");
        Ok(mutation)
    }

    fn head(&mut self, line: &str, file: &mut PathBuf) -> anyhow::Result<()> {
        match line.split_once(": ") {
            Some(("why", why)) => self.why = why.to_owned(),
            Some(("scenarios", names)) => self.scenarios = names.split_whitespace().map(str::to_owned).collect(),
            Some(("file", path)) => *file = PathBuf::from(path),
            _ if line.trim().is_empty() => {}
            _ => bail!("neither why, scenarios nor file: {line}"),
        }
        Ok(())
    }

    /// The project with this bug in it.
    ///
    /// # Errors
    /// If the text to be replaced is not there exactly once.
    pub(crate) fn applied_to(&self, tree: &Tree) -> anyhow::Result<Tree> {
        let mut tree = tree.clone();
        for Edit { file, old, new } in &self.edits {
            let fits = || format!("this mutation no longer fits: mend it ({})", self.name);
            let Some(content) = tree.get_mut(file) else { bail!("{}: there is no {}", fits(), file.display()) };
            let text = std::str::from_utf8(content).with_context(fits)?;
            let count = text.matches(old.as_str()).count();
            ensure!(count == 1, "{}: found {count} times in {}:\n{old}", fits(), file.display());
            *content = text.replacen(old.as_str(), new, 1).into_bytes();
        }
        Ok(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "why: It breaks.\nscenarios: faults twins\nfile: a.rs\n---- old\n  two\n---- new\n  2\n---- end\n";

    fn tree(text: &str) -> Tree {
        Tree::from([(PathBuf::from("a.rs"), text.as_bytes().to_vec())])
    }

    #[test]
    fn text_is_replaced_where_it_is_found_once() {
        let mutation = Mutation::parse("m", TEXT).unwrap();
        assert_eq!(mutation.scenarios, ["faults", "twins"]);
        assert_eq!(mutation.applied_to(&tree("one\n  two\nthree\n")).unwrap(), tree("one\n  2\nthree\n"));
        for wrong in ["one\nthree\n", "  two\n  two\n"] {
            let error = mutation.applied_to(&tree(wrong)).unwrap_err().to_string();
            assert!(error.contains("no longer fits: mend it"), "{error}");
        }
    }

    #[test]
    fn half_a_file_is_refused() {
        for end in ["---- end\n", "---- new\n  2\n---- end\n", "scenarios: faults twins\n"] {
            let cut = TEXT.replacen(end, "", 1);
            assert!(Mutation::parse("m", &cut).is_err(), "{cut}");
        }
    }

    #[test]
    fn every_mutation_fits() {
        let tree = super::super::copy::read(&crate::root(), &super::super::CRATES).unwrap();
        for mutation in Mutation::all(&crate::root().join(super::super::FOLDER)).unwrap() {
            mutation.applied_to(&tree).unwrap();
        }
    }
}
