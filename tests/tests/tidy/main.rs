//! The house rules as a test. Each rule is a function from sources to complaints, and each has a
//! test at the end that shows it complaining about a made-up offence.
//!
//! The tables below are the rules' only settings: change them in the same commit as what they
//! describe.

mod graph;
mod rules;
mod source;

use source::Source;

/// Our crates, each with what it may import of ours, and what it is. A crate may import less.
const CRATES: &[(&str, &[&str], &str)] = &[
    ("base", &[], "the words every room shares"),
    ("bft", &["base"], "core: PBFT"),
    ("meta", &["base"], "core: the replicated namespace"),
    ("chunk", &["base"], "core: cut, compress, seal, recipes"),
    ("dht", &["base"], "core: ring placement and maintenance"),
    ("proto", &["base", "bft", "meta", "dht"], "the wire"),
    ("server", &["base", "bft", "meta", "dht", "proto"], "process: a node"),
    ("client", &["base", "bft", "meta", "chunk", "dht", "proto"], "library: everything an application needs"),
    ("fuse", &["base", "meta", "client"], "door: the mount"),
    ("mangrove", &["base", "proto", "client", "server", "fuse"], "the command"),
    ("tests", ANY, "harness, end-to-end tests, these rules"),
    ("sim", &["base", "bft", "meta", "client"], "whole clusters in one thread, from one seed"),
    ("model", &["base", "bft"], "the consensus core under a model checker"),
    ("xtask", ANY, "cargo xtask"),
];
/// May import every crate of ours.
const ANY: &[&str] = &["*"];

/// Crates that must not be reachable from another by any path of imports: the code that could open
/// a block is not in a node.
const NEVER_REACHES: &[(&str, &str)] = &[("server", "chunk"), ("server", "entangle")];

/// The pure rooms: no clock, no chance, no disk, no threads.
const CORES: &[&str] = &["base", "bft", "meta", "chunk", "dht"];

/// Crates that are not at the root, and why.
const NESTED: &[(&str, &str)] = &[
    ("tests/sim", "a harness like its parent, of the cores and of what a mount does with leases"),
    ("tests/model", "a harness like its parent, of one core alone"),
];

/// What the folders at the root are.
const ROOT_FOLDERS: &[(&str, &str)] = &[
    (".cargo", "the `cargo xtask` alias"),
    (".ci", "what a fresh machine runs"),
    ("base", "crate: the words every room shares"),
    ("bft", "crate: core"),
    ("chunk", "crate: core"),
    ("cli", "crate: the `mangrove` command"),
    ("client", "crate: the library"),
    ("dht", "crate: core"),
    ("docs", "decisions, papers, results"),
    ("fuse", "crate: door"),
    ("jepsen", "clusters on several hosts while everything goes wrong"),
    ("meta", "crate: core"),
    ("proto", "crate: the wire"),
    ("server", "crate: a node"),
    ("tests", "crate: harness and end-to-end tests"),
    ("xtask", "crate: cargo xtask"),
];

/// What is over the size limits today: `path` in lines, or `path::function` in lines. A ratchet:
/// numbers only go down, and a row goes when its room is small enough.
const OVERSIZED: &[(&str, usize)] = &[];

/// The only file of the tests that may sleep.
const SLEEPER: &str = "tests/src/wait.rs";

/// Fails with every complaint on a line of its own.
#[track_caller]
fn assert_tidy(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n\n{}\n", complaints.join("\n"));
}

fn check_each(rule: impl Fn(&Source) -> Vec<String>) {
    assert_tidy(Source::all_rust().iter().flat_map(rule).collect());
}

#[test]
fn imports_follow_the_graph() {
    assert_tidy(graph::wrong_imports(&graph::workspace(), CRATES));
}

#[test]
fn a_node_cannot_open_a_block() {
    assert_tidy(graph::forbidden_paths(&graph::workspace(), NEVER_REACHES));
}

#[test]
fn cores_link_no_clock_no_chance_and_no_disk() {
    assert_tidy(graph::impure_dependencies(&graph::workspace(), CORES));
}

#[test]
fn cores_are_pure() {
    check_each(|source| if source.is_in_core(CORES) { rules::impure(source) } else { Vec::new() });
}

#[test]
fn nothing_is_left_undone() {
    check_each(rules::undone);
}

#[test]
fn signatures_are_verified_in_one_place() {
    check_each(|source| rules::own_verification(source, "base/src/verdict.rs"));
}

#[test]
fn tests_wait_for_conditions() {
    check_each(|source| rules::sleeping_tests(source, SLEEPER));
}

#[test]
fn every_file_says_what_it_is_for() {
    check_each(rules::undocumented);
}

#[test]
fn rooms_are_small() {
    assert_tidy(rules::ratchet(&rules::sizes(&Source::all_rust()), OVERSIZED));
}

#[test]
fn lines_fit_the_page() {
    check_each(rules::wide_lines);
}

#[test]
fn nothing_depends_on_one_machine() {
    assert_tidy(Source::all_text().iter().flat_map(rules::machine_paths).collect());
}

#[test]
fn the_root_is_the_map() {
    let members = graph::workspace();
    let members: Vec<&str> = members.iter().map(|member| member.folder.as_str()).collect();
    assert_tidy(rules::unknown_folders(&source::tracked_files(), &members, ROOT_FOLDERS, NESTED));
}
