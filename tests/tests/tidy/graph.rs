//! Who imports whom, as `cargo metadata` tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// One crate of the workspace.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// Its folder, from the root.
    pub(crate) folder: String,
    /// What its manifest names, ours and others', for building, running and testing alike.
    pub(crate) dependencies: Vec<String>,
    /// The same without what only its tests use.
    pub(crate) linked: Vec<String>,
}

/// What a core may not link, by name.
const IMPURE: &[&str] =
    &["tokio", "futures", "tonic", "sled", "rustix", "libc", "getrandom", "rand", "tracing", "tempfile", "parking_lot"];

/// The crates of the workspace.
pub(crate) fn workspace() -> Vec<Member> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(super::source::root()).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let root = json["workspace_root"].as_str().expect("the workspace has a root");
    json["packages"].as_array().expect("a list of packages").iter().map(|package| member(root, package)).collect()
}

fn member(root: &str, package: &Value) -> Member {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let manifest = text(&package["manifest_path"]);
    let inside = manifest.strip_prefix(root).and_then(|path| path.strip_suffix("/Cargo.toml"));
    let folder = inside.expect("a member is in the workspace").trim_start_matches('/').to_owned();
    let list = package["dependencies"].as_array().expect("a list of dependencies");
    let linked = list.iter().filter(|dependency| dependency["kind"] != "dev");
    Member {
        name: text(&package["name"]),
        folder,
        dependencies: list.iter().map(|dependency| text(&dependency["name"])).collect(),
        linked: linked.map(|dependency| text(&dependency["name"])).collect(),
    }
}

/// Imports that the table does not allow, and crates it does not know.
pub(crate) fn wrong_imports(members: &[Member], table: &[(&str, &[&str], &str)]) -> Vec<String> {
    let ours: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let mut complaints = Vec::new();
    for member in members {
        let Some((_, allowed, _)) = table.iter().find(|(name, ..)| *name == member.name) else {
            complaints.push(format!(
                "{}/Cargo.toml: {} is not in the table CRATES of tests/tests/tidy/main.rs; \
                 add a row that says what it may import",
                member.folder, member.name
            ));
            continue;
        };
        for import in member.dependencies.iter().filter(|import| ours.contains(import.as_str())) {
            if !allowed.contains(&"*") && !allowed.contains(&import.as_str()) {
                complaints.push(format!(
                    "{}/Cargo.toml: {} may not import {import}, only {allowed:?}; \
                     move what is shared down, or pass it in",
                    member.folder, member.name
                ));
            }
        }
    }
    let gone = table.iter().filter(|(name, ..)| !ours.contains(name));
    complaints.extend(gone.map(|(name, ..)| format!("there is no crate {name}; take its row out of CRATES")));
    complaints
}

/// Paths of imports from one crate to another that must not be. Only our own crates can lie on
/// such a path, since no other crate imports ours.
pub(crate) fn forbidden_paths(members: &[Member], never: &[(&str, &str)]) -> Vec<String> {
    let imports: BTreeMap<&str, &Member> = members.iter().map(|member| (member.name.as_str(), member)).collect();
    let mut complaints = Vec::new();
    for (from, to) in never {
        let mut paths = vec![vec![*from]];
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop() {
            let last = path[path.len() - 1];
            if last == *to {
                complaints.push(format!("{}: {from} must not reach {to}; cut one of these imports", path.join(" -> ")));
            }
            for next in imports.get(last).iter().flat_map(|member| &member.linked) {
                if seen.insert(next.as_str()) {
                    paths.push([path.as_slice(), &[next.as_str()]].concat());
                }
            }
        }
    }
    complaints
}

/// Crates for clocks, chance, disks and threads that a core links.
pub(crate) fn impure_dependencies(members: &[Member], cores: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    for core in members.iter().filter(|member| cores.contains(&member.name.as_str())) {
        for name in core.linked.iter().filter(|name| IMPURE.contains(&name.as_str())) {
            complaints.push(format!("{}/Cargo.toml: a core must not link {name}; let the driver do it", core.folder));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up(name: &str, linked: &[&str]) -> Member {
        let linked: Vec<_> = linked.iter().map(|&import| import.to_owned()).collect();
        Member { name: name.to_owned(), folder: name.to_owned(), dependencies: linked.clone(), linked }
    }

    #[test]
    fn a_wrong_import_is_seen() {
        let members = [made_up("base", &["bytes"]), made_up("bft", &["base"]), made_up("meta", &["base", "bft"])];
        let table: &[(&str, &[&str], &str)] = &[("base", &[], ""), ("bft", &["base"], ""), ("meta", &["base"], "")];
        let complaints = wrong_imports(&members, table);
        assert!(complaints.len() == 1 && complaints[0].contains("meta may not import bft"), "{complaints:?}");
        assert_eq!(wrong_imports(&members[..2], table).len(), 1, "a row without a crate");
        assert_eq!(wrong_imports(&members[..2], &table[..1]).len(), 1, "a crate without a row");
    }

    #[test]
    fn a_detour_to_a_forbidden_crate_is_seen() {
        let members = [made_up("server", &["proto"]), made_up("proto", &["chunk"]), made_up("chunk", &[])];
        let complaints = forbidden_paths(&members, &[("server", "chunk")]);
        assert!(complaints.len() == 1 && complaints[0].starts_with("server -> proto -> chunk"), "{complaints:?}");
        assert_eq!(forbidden_paths(&members, &[("chunk", "server")]), Vec::<String>::new());
    }

    #[test]
    fn an_impure_core_is_seen() {
        let members = [made_up("bft", &["base", "tokio"]), made_up("server", &["tokio"])];
        assert_eq!(impure_dependencies(&members, &["bft"]).len(), 1);
    }
}
