//! A copy of what the simulator, or the model checker, is built from, with or without a bug. The work
//! tree is read, never written: whatever interrupts a run, the project stays as it is, and the next
//! run lays out anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Files by path, relative to the root of the project.
pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Every mutation is built once and run for seconds, so that what depends on it is compiled in a hurry.
const HASTE: &str = "\n[profile.release.package.bft]\nopt-level = 1\n[profile.release.package.sim]\nopt-level = 1\n";

/// Reads these crates, the last of which is the program, and a workspace for them alone.
///
/// # Errors
/// If something can't be read, or the workspace's members are not where they were.
pub(crate) fn read(root: &Path, crates: &[&str]) -> anyhow::Result<Tree> {
    let mut tree = Tree::new();
    for folder in crates {
        read_folder(root, Path::new(folder), &mut tree)?;
    }
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("the workspace's Cargo.toml")?;
    tree.insert("Cargo.toml".into(), (narrowed(&manifest, crates)? + HASTE).into_bytes());
    let lock = std::fs::read(root.join("Cargo.lock")).context("Cargo.lock")?;
    tree.insert("Cargo.lock".into(), lock);
    Ok(tree)
}

fn read_folder(root: &Path, folder: &Path, tree: &mut Tree) -> anyhow::Result<()> {
    let list = std::fs::read_dir(root.join(folder)).with_context(|| format!("cannot read {}", folder.display()))?;
    for item in list {
        let item = item?;
        let path = folder.join(item.file_name());
        if item.file_type()?.is_dir() {
            if item.file_name() != "target" {
                read_folder(root, &path, tree)?;
            }
        } else {
            let content = std::fs::read(item.path()).with_context(|| format!("cannot read {}", path.display()))?;
            tree.insert(path, content);
        }
    }
    Ok(())
}

/// The workspace with these crates as its only members.
fn narrowed(manifest: &str, crates: &[&str]) -> anyhow::Result<String> {
    let quoted = |names: &[&str]| names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    let manifest = with_list(manifest, "\nmembers = [", &quoted(crates))?;
    with_list(&manifest, "\ndefault-members = [", &quoted(&crates[crates.len() - 1..]))
}

fn with_list(manifest: &str, key: &str, names: &str) -> anyhow::Result<String> {
    let parts = manifest.split_once(key).and_then(|(before, after)| Some((before, after.split_once(']')?.1)));
    let Some((before, after)) = parts else { bail!("the workspace's Cargo.toml has no {}", key.trim()) };
    Ok(format!("{before}{key}{names}]{after}"))
}

/// Makes a folder hold this and nothing else, but for its lock file. What is the same already stays as
/// it is, so that cargo builds only what changed.
///
/// # Errors
/// If something can't be written.
pub(crate) fn lay_out(tree: &Tree, folder: &Path) -> anyhow::Result<()> {
    let mut there = Tree::new();
    std::fs::create_dir_all(folder)?;
    read_folder(folder, Path::new(""), &mut there)?;
    for gone in there.keys().filter(|path| !tree.contains_key(*path)) {
        std::fs::remove_file(folder.join(gone))?;
    }
    for (path, content) in tree {
        let is_lock = path == Path::new("Cargo.lock");
        if there.get(path).is_some_and(|old| old == content || is_lock) {
            continue;
        }
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().expect("it is in the folder"))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Builds a program of a copy; gives where it is.
///
/// # Errors
/// With the compiler's words, if it does not build.
pub(crate) fn build(folder: &Path, target: &Path, program: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "--package", program, "--bin", program]).current_dir(folder);
    cargo.env("CARGO_TARGET_DIR", target).env_remove("CARGO_MANIFEST_DIR");
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_INCREMENTAL", "true");
    let output = cargo.output().context("cargo build")?;
    if !output.status.success() {
        bail!("it does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(target.join("release").join(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_narrowed() {
        let manifest = "[workspace]\nmembers = [\n  \"base\", \"cli\",\n]\ndefault-members = [\"cli\"]\n[x]\n";
        let narrow = narrowed(manifest, &["base", "bft", "meta", "tests/sim"]).unwrap();
        let members = "members = [\"base\", \"bft\", \"meta\", \"tests/sim\"]";
        assert_eq!(narrow, format!("[workspace]\n{members}\ndefault-members = [\"tests/sim\"]\n[x]\n"));
        assert!(narrowed("[workspace]\n", &["base"]).is_err());
    }

    #[test]
    fn a_folder_becomes_what_is_laid_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| (PathBuf::from(name), text.as_bytes().to_vec());
        let first = Tree::from([file("a/b.rs", "1"), file("a/c.rs", "2")]);
        let second = Tree::from([file("a/b.rs", "3"), file("d.rs", "4")]);
        for tree in [first, second] {
            lay_out(&tree, folder.path()).unwrap();
            let mut there = Tree::new();
            read_folder(folder.path(), Path::new(""), &mut there).unwrap();
            assert_eq!(there, tree);
        }
    }
}
