//! The trash through the command and two mounts, as its users meet it.

use std::fs;
use std::io::ErrorKind;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::process::{ANSWER, run};
use tests::work::CHORE;
use tests::{Cluster, Mount, needs_mount, one_at_a_time, run_ok, tree, wait_until};

fn trash(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = cluster.admin();
    command.args(["volume", "trash"]).args(words);
    command
}

fn sync(mount: &std::path::Path) {
    run_ok(Command::new("sync").arg("-f").arg(mount), CHORE);
}

/// Waits until what was just made is old enough to be kept.
fn age() {
    let (made, old) = (Instant::now(), Duration::from_secs(11));
    wait_until("what was made is old enough to be kept", CHORE, || (made.elapsed() > old).then_some(()));
}

#[test]
fn a_tree_that_was_removed_is_copied_and_moved_out_of_the_trash() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    let source = cluster.outside().join("source");
    fs::create_dir(&source).expect("mkdir");
    tree::make(&source, &tree::plan(150, 1));
    // Of two names of one file only the last is kept.
    fs::remove_file(source.join("a hard link")).expect("removed");
    let want = tree::read(&source);
    run_ok(Command::new("cp").arg("-a").arg(&source).arg(one.path().join("tree")), CHORE);
    fs::write(one.path().join("note"), "first").expect("written");
    sync(one.path());
    age();

    run_ok(Command::new("rm").arg("-r").arg(one.path().join("tree")), CHORE);
    fs::write(one.path().join("new"), "second").expect("written");
    fs::rename(one.path().join("new"), one.path().join("note")).expect("replaced");
    sync(one.path());
    for mount in [&one, &two] {
        let bin = mount.path().join(".mangrove/trash");
        tree::assert_same(&want, &tree::read(&bin.join("tree")));
        assert_eq!(fs::read_to_string(bin.join("note")).expect("there"), "first");
        let refused = fs::write(bin.join("note"), "x").expect_err("nobody writes there");
        assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
        let names = fs::read_dir(mount.path()).expect("listed").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["note"], "it is not listed");
    }
    let copy = cluster.outside().join("copy");
    run_ok(Command::new("cp").arg("-a").arg(two.path().join(".mangrove/trash/tree")).arg(&copy), CHORE);
    tree::assert_same(&want, &tree::read(&copy));
    let back = two.path().join("back");
    run_ok(Command::new("mv").arg(two.path().join(".mangrove/trash/tree")).arg(&back), CHORE);
    tree::assert_same(&want, &tree::read(&one.path().join("back")));
    fs::write(one.path().join("back/new"), "as in any other").expect("written");
    assert_eq!(fs::read_to_string(back.join("new")).expect("there"), "as in any other");
    // Not by a path: `mv` must be refused what would replace something.
    fs::rename(two.path().join(".mangrove/trash/note"), two.path().join("note")).expect_err("it is taken");

    // What is removed there is gone.
    let rest = |mount: &Mount| fs::read_dir(mount.path().join(".mangrove/trash")).expect("listed").count();
    assert_eq!(rest(&one), 2, "the note, and the way to what was thrown away from the tree");
    fs::remove_file(one.path().join(".mangrove/trash/note")).expect("removed");
    run_ok(Command::new("rm").arg("-r").arg(one.path().join("back")), CHORE);
    sync(one.path());
    run_ok(Command::new("rm").arg("-r").arg(one.path().join(".mangrove/trash/back")), CHORE);
    assert_eq!(rest(&one), 0);
    one.stop();
    two.stop();
}

#[test]
fn administrators_say_what_is_kept() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mount = cluster.mount("mount");
    for name in ["one", "two", "three"] {
        fs::write(mount.path().join(name), "text").expect("written");
    }
    sync(mount.path());
    age();
    let remove = |name: &str| {
        fs::remove_file(mount.path().join(name)).expect("removed");
        sync(mount.path());
    };
    let bin = || {
        let all = fs::read_dir(mount.path().join(".mangrove/trash")).expect("listed");
        all.map(|entry| entry.expect("an entry").file_name()).collect::<Vec<_>>()
    };
    let listed = run_ok(cluster.admin().args(["volume", "list", "--json"]), ANSWER);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["trash_seconds"], 86_400);
    remove("one");
    assert_eq!(bin(), ["one"]);
    run_ok(&mut trash(&cluster, &["empty", "main"]), ANSWER);
    assert_eq!(bin(), [""; 0]);
    run_ok(&mut trash(&cluster, &["keep", "main", "3s"]), ANSWER);
    remove("two");
    wait_until("what was removed goes by itself", CHORE, || bin().is_empty().then_some(()));
    run_ok(&mut trash(&cluster, &["keep", "main", "off"]), ANSWER);
    remove("three");
    assert_eq!(bin(), [""; 0]);
    let table = run_ok(cluster.admin().args(["volume", "list"]), ANSWER);
    assert!(table.contains("off"), "{table}");
    for wrong in ["3", "0d", "x", "-1d", "36601d", "99999999999999999999w"] {
        let refused = run(&mut trash(&cluster, &["keep", "main", wrong]), ANSWER);
        assert!(!refused.status.success(), "{wrong}: {refused:?}");
    }
    let none = run(&mut trash(&cluster, &["empty", "nowhere"]), ANSWER);
    assert!(!none.status.success() && none.stderr.contains("nowhere"), "{none:?}");
    mount.stop();
}
