//! A user's day on a mount: real processes, a real kernel, real programs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::process::ANSWER;
use tests::work::{self, CHORE};
use tests::{Cluster, Up, needs_mount, needs_program, one_at_a_time, posix, run_ok, tree, wait_until};

const BIG_FILE_MIB: u64 = 300;
const SETTLE: Duration = Duration::from_secs(10);

fn copy(from: &Path, to: &Path) {
    run_ok(Command::new("cp").arg("-a").arg(from).arg(to), CHORE);
}

#[test]
fn a_copied_tree_is_the_same_after_a_restart() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut up = Up::start();
    let source = up.outside().join("source");
    fs::create_dir(&source).expect("mkdir");
    tree::make(&source, &tree::plan(1_500, 1));
    let want = tree::read(&source);

    copy(&source, &up.mountpoint().join("copy"));
    tree::assert_same(&want, &tree::read(&up.mountpoint().join("copy")));
    up.stop();
    assert_eq!(fs::read_dir(up.mountpoint()).expect("readdir").count(), 0, "nothing lies under the mount");
    up.forget_cache();
    up.again();
    tree::assert_same(&want, &tree::read(&up.mountpoint().join("copy")));

    fs::remove_dir_all(up.mountpoint().join("copy")).expect("remove it all");
    assert_eq!(fs::read_dir(up.mountpoint()).expect("readdir").count(), 0, "all was removed");
}

#[test]
fn up_shows_its_nodes_and_its_mount() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut up = Up::start();
    let status = up.status();
    assert_eq!((status.replicas_up(), status.storage_up()), (4, 4));
    let mountpoint = up.mountpoint().display().to_string();
    let shown = status.sessions.iter().find(|session| session.label.contains(&mountpoint));
    assert_eq!(shown.map(|session| session.replicas), Some(4), "the session of {mountpoint}: {status:?}");
    up.stop();
}

#[test]
fn programs_find_the_semantics_they_rely_on() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut up = Up::start();
    posix::check_all(&up.mountpoint());
    fs::remove_dir_all(up.mountpoint().join("check-00")).expect("remove");
    up.stop();
}

#[test]
fn git_keeps_a_repository_there() {
    needs_mount!();
    needs_program!("git");
    let _turn = one_at_a_time();
    let mut up = Up::start();
    work::git_repository(&up.mountpoint(), 100);
    up.stop();
    up.again();
    run_ok(work::git(&up.mountpoint().join("clone")).args(["fsck", "--full", "--strict"]), CHORE);
    up.stop();
}

#[test]
fn sqlite_keeps_a_database_there() {
    needs_mount!();
    needs_program!("sqlite3");
    let _turn = one_at_a_time();
    let mut up = Up::start();
    work::sqlite_database(&up.mountpoint(), 25);
    up.stop();
    up.again();
    for journal in ["delete", "wal"] {
        work::check_sqlite(&up.mountpoint().join(format!("{journal}.db")), 2 * 25 * 20);
    }
    up.stop();
}

#[test]
fn a_big_file_reads_back_at_every_place() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut up = Up::start();
    let path = up.mountpoint().join("big");
    work::write_big_file(&path, BIG_FILE_MIB, 5);
    work::check_big_file(&path, BIG_FILE_MIB, 5, 100);
    up.stop();
    up.forget_cache();
    up.again();
    work::check_big_file(&path, BIG_FILE_MIB, 5, 200);
    work::overwrite_big_file(&path, BIG_FILE_MIB, 5, 10);
    up.stop();
}

#[test]
fn fio_finds_every_block_as_it_wrote_it() {
    needs_mount!();
    needs_program!("fio");
    let _turn = one_at_a_time();
    let mut up = Up::start();
    work::fio_verify(&up.mountpoint(), 32);
    up.stop();
}

#[test]
fn two_mounts_of_one_cluster_see_each_others_files() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let (here, there) = (cluster.mount("here"), cluster.mount("there"));
    for (round, (writer, reader)) in [(&here, &there), (&there, &here)].into_iter().enumerate() {
        let name = format!("from-{round}");
        assert!(!reader.path().join(&name).exists(), "and the reader may remember that it was not there");
        fs::write(writer.path().join(&name), format!("round {round}")).expect("write");
        assert_eq!(fs::read_to_string(reader.path().join(&name)).expect("read"), format!("round {round}"));
        fs::write(writer.path().join(&name), "changed, and longer than before").expect("write");
        let changed = fs::read_to_string(reader.path().join(&name)).expect("read");
        assert_eq!(changed, "changed, and longer than before", "what was closed there is seen here on open");
        let renamed = format!("{name}-renamed");
        fs::rename(reader.path().join(&name), reader.path().join(&renamed)).expect("rename");
        // Another mount may remember a name for a second.
        wait_until("the other mount sees the new name", SETTLE, || writer.path().join(&renamed).exists().then_some(()));
        wait_until("and forgets the old one", SETTLE, || (!writer.path().join(&name).exists()).then_some(()));
    }
    let names = |mount: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(mount).expect("readdir").map(|item| item.expect("item").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(here.path()), ["from-0-renamed", "from-1-renamed"]);
    assert_eq!(names(here.path()), names(there.path()));

    run_ok(cluster.admin().arg("umount").arg(here.path()), ANSWER);
    assert!(!tests::mount::is_mounted(here.path()), "umount unmounts");
    there.stop();
    drop(here);
    cluster.stop_nodes(0..tests::cluster::NODES);
}
