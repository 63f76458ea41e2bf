//! Snapshots through the command and two mounts, as their users meet them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use tests::process::{ANSWER, run};
use tests::work::CHORE;
use tests::{Cluster, needs_mount, one_at_a_time, run_ok, tree};

fn snapshot(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = cluster.admin();
    command.args(["volume", "snapshot"]).args(words);
    command
}

fn restore(from: &Path, to: &Path) {
    run_ok(Command::new("cp").arg("-a").arg(from).arg(to), CHORE);
}

#[test]
fn a_tree_is_restored_from_a_snapshot_after_all_of_it_is_gone() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    let source = cluster.outside().join("source");
    fs::create_dir(&source).expect("mkdir");
    tree::make(&source, &tree::plan(300, 1));
    let want = tree::read(&source);
    restore(&source, &one.path().join("tree"));
    fs::write(two.path().join("note"), "of the other mount").expect("written");

    // Nothing of it was synced.
    let taken = run_ok(&mut snapshot(&cluster, &["take", "main", "before", "--json"]), CHORE);
    let taken: serde_json::Value = serde_json::from_str(&taken).expect("JSON");
    assert_eq!(taken["name"], "before");
    fs::remove_dir_all(one.path().join("tree")).expect("removed");
    fs::write(two.path().join("note"), "changed").expect("written");
    for mount in [&one, &two] {
        let before = mount.path().join(".mangrove/snapshots/before");
        tree::assert_same(&want, &tree::read(&before.join("tree")));
        assert_eq!(fs::read_to_string(before.join("note")).expect("there"), "of the other mount");
        let refused = fs::write(before.join("note"), "x").expect_err("nobody writes there");
        assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
        let names = fs::read_dir(mount.path()).expect("listed").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["note"]);
    }
    restore(&one.path().join(".mangrove/snapshots/before/tree"), &two.path().join("restored"));
    tree::assert_same(&want, &tree::read(&one.path().join("restored")));

    run_ok(&mut snapshot(&cluster, &["take", "main"]), CHORE);
    let again = run(&mut snapshot(&cluster, &["take", "main", "before"]), ANSWER);
    assert!(!again.status.success() && again.stderr.contains("already"), "{again:?}");
    let wrong = run(&mut snapshot(&cluster, &["take", "main", "../before"]), ANSWER);
    assert!(!wrong.status.success() && wrong.stderr.contains("name"), "{wrong:?}");
    let listed = run_ok(&mut snapshot(&cluster, &["list", "main", "--json"]), ANSWER);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
    assert!(listed.len() == 2 && listed[0]["name"] == "before", "{listed:?}");
    run_ok(&mut snapshot(&cluster, &["delete", "main", "before"]), ANSWER);
    let gone = run(&mut snapshot(&cluster, &["delete", "main", "before"]), ANSWER);
    assert!(!gone.status.success() && gone.stderr.contains("no snapshot"), "{gone:?}");
    let names = fs::read_dir(two.path().join(".mangrove/snapshots")).expect("listed");
    assert_eq!(names.count(), 1);
    one.stop();
    two.stop();
}
