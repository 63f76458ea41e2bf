//! Nodes die in the middle of things, and nothing that was promised is missing.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::cluster::NODES;
use tests::random::noise;
use tests::work::CHORE;
use tests::{Cluster, Process, Up, needs_mount, one_at_a_time, run_ok, tree, wait_until};

/// A backup: the primary of the first view is node 0.
const BACKUP: usize = 2;
const STORAGE: usize = 5;
const SETTLE: Duration = Duration::from_secs(60);
/// Longer than a client waits for replicas.
const PATIENCE: Duration = Duration::from_secs(120);

fn count_files(root: &Path) -> usize {
    let Ok(list) = fs::read_dir(root) else { return 0 };
    list.flatten().map(|item| if item.path().is_dir() { count_files(&item.path()) } else { 1 }).sum()
}

#[test]
fn a_copy_goes_on_when_a_backup_and_a_storage_node_are_killed() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    let source = cluster.outside().join("source");
    fs::create_dir(&source).expect("mkdir");
    tree::make(&source, &tree::plan(700, 21));
    let want = tree::read(&source);

    let (target, log) = (mount.path().join("copy"), cluster.outside().join("cp.log"));
    let mut copy = Process::start("cp", Command::new("cp").arg("-a").arg(&source).arg(&target), &log);
    wait_until("a fifth of the files are copied", CHORE, || (count_files(&target) >= 140).then_some(()));
    assert!(copy.is_running(), "the copy is still going on");
    cluster.kill_nodes([BACKUP, STORAGE]);
    let status = copy.wait_end(CHORE);
    assert!(status.success(), "cp ended with {status}:\n{}", copy.log());
    tree::assert_same(&want, &tree::read(&target));

    let now = cluster.status();
    assert_eq!((now.replicas_up(), now.storage_up()), (3, 3), "status shows who is down");
    cluster.start_nodes([BACKUP, STORAGE]);
    let level = fs::write(mount.path().join("after"), "they are back").map(|()| cluster.status().executed(0));
    let level = level.expect("write");
    cluster.wait_status("the backup catches up, or says that the log no longer reaches back", SETTLE, |status| {
        let behind = status.node(BACKUP).replica.as_ref().is_some_and(|replica| replica.behind.is_some());
        (status.executed(BACKUP) >= level || behind) && status.storage_up() == 4
    });

    // A new mount has nothing cached: every byte comes from the nodes.
    mount.stop();
    let mount = cluster.mount_uncached("again");
    tree::assert_same(&want, &tree::read(&mount.path().join("copy")));
    mount.stop();
}

/// The primary dies in the middle of a copy, and then its successor: each time another takes over.
#[test]
fn a_copy_goes_on_when_one_primary_after_the_other_is_killed() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    let source = cluster.outside().join("source");
    fs::create_dir(&source).expect("mkdir");
    tree::make(&source, &tree::plan(400, 22));
    let want = tree::read(&source);
    for primary in 0..2 {
        let (target, log) = (mount.path().join(format!("copy-{primary}")), cluster.outside().join("cp.log"));
        let mut copy = Process::start("cp", Command::new("cp").arg("-a").arg(&source).arg(&target), &log);
        wait_until("a fifth of the files are copied", CHORE, || (count_files(&target) >= 80).then_some(()));
        assert!(copy.is_running(), "the copy is still going on");
        cluster.kill_nodes([primary]);
        let status = copy.wait_end(CHORE);
        assert!(status.success(), "cp ended with {status}:\n{}", copy.log());
        tree::assert_same(&want, &tree::read(&target));
        let view = cluster.status().node(3).replica.as_ref().map(|replica| replica.view);
        assert_eq!(view, Some(primary as u64 + 1), "the next replica is the primary");
        cluster.start_nodes([primary]);
        let level = cluster.status().executed(3);
        cluster.wait_status("it catches up, and is in the view of the others", SETTLE, |status| {
            let replica = status.node(primary).replica.as_ref();
            replica.is_some_and(|replica| replica.view > primary as u64 && replica.state == "normal")
                && status.executed(primary) >= level
        });
    }
    mount.stop();
    let mount = cluster.mount_uncached("again");
    tree::assert_same(&want, &tree::read(&mount.path().join("copy-1")));
    mount.stop();
}

/// So many storage nodes are away that too few copies can be made: writing waits for them, as it does for
/// replicas, and nobody is told of an error that is over in a moment.
#[test]
fn what_is_synced_waits_for_storage_nodes_that_come_back() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    cluster.kill_nodes([STORAGE, STORAGE + 1]);
    let path = mount.path().join("file");
    let writer = std::thread::spawn({
        let path = path.clone();
        move || {
            let mut file = File::create(path)?;
            file.write_all(&noise(7, 0, 200_000))?;
            file.sync_all()
        }
    });
    let since = Instant::now();
    let tried = || (writer.is_finished() || since.elapsed() > Duration::from_secs(3)).then(|| writer.is_finished());
    assert!(!wait_until("it was tried", SETTLE, tried), "it waits");
    cluster.start_nodes([STORAGE, STORAGE + 1]);
    writer.join().expect("it writes").expect("synced");
    mount.stop();
    let mount = cluster.mount_uncached("again");
    assert!(fs::read(mount.path().join("file")).expect("there") == noise(7, 0, 200_000));
    mount.stop();
}

/// A replica's data folder is gone: it comes back, catches up, and its vote counts again.
#[test]
fn a_replica_whose_folder_was_deleted_votes_again() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    let durable = write_durably(mount.path(), 30);
    cluster.kill_nodes([BACKUP]);
    fs::remove_dir_all(cluster.node_data(BACKUP)).expect("delete its folder");
    cluster.start_nodes([BACKUP]);
    let state = |status: &tests::Status| status.node(BACKUP).replica.as_ref().map(|replica| replica.state.clone());
    assert_ne!(state(&cluster.status()).as_deref(), Some("normal"), "it must not vote at once");
    cluster.wait_status("it votes again", PATIENCE, |status| state(status).as_deref() == Some("normal"));
    // The others are too few without it.
    let other = BACKUP + 1;
    cluster.kill_nodes([other]);
    let folder = mount.path().join("more");
    fs::create_dir(&folder).expect("mkdir");
    let more = write_durably(&folder, 10);
    cluster.start_nodes([other]);
    drop(mount);
    let mount = cluster.mount_uncached("again");
    assert_all_there(mount.path(), &durable);
    assert_all_there(&mount.path().join("more"), &more);
    // And again, now that it has a second life behind it.
    cluster.kill_nodes([BACKUP]);
    cluster.start_nodes([BACKUP]);
    assert_eq!(state(&cluster.status()).as_deref(), Some("normal"));
    drop(mount);
}

/// Flips a bit in the middle of a replica's vote log.
fn damage_log(data: &Path) {
    let files = fs::read_dir(data.join("log")).expect("its log").map(|entry| entry.expect("entry").path());
    let segments = files.filter(|path| path.to_string_lossy().contains("log-"));
    let longest = segments.max_by_key(|path| fs::metadata(path).map_or(0, |found| found.len())).expect("a segment");
    let mut bytes = fs::read(&longest).expect("read");
    // Behind it is room.
    let middle = bytes.iter().rposition(|byte| *byte != 0).expect("something was written") / 2;
    bytes[middle] ^= 4;
    fs::write(&longest, bytes).expect("write");
}

/// A bit of a replica's log rots: it takes what it can still read and fetches the rest, and its vote
/// counts again.
#[test]
fn a_replica_with_a_damaged_log_is_mended_by_the_others() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    let durable = write_durably(mount.path(), 30);
    cluster.kill_nodes([BACKUP]);
    damage_log(&cluster.node_data(BACKUP));
    cluster.start_nodes([BACKUP]);
    let state = |status: &tests::Status| status.node(BACKUP).replica.as_ref().map(|replica| replica.state.clone());
    assert_ne!(state(&cluster.status()).as_deref(), Some("normal"), "it must not vote at once");
    assert!(cluster.node_data(BACKUP).join("log.damaged-1").is_dir(), "the damaged log is kept");
    cluster.wait_status("it votes again", PATIENCE, |status| state(status).as_deref() == Some("normal"));
    cluster.kill_nodes([BACKUP + 1]);
    let folder = mount.path().join("more");
    fs::create_dir(&folder).expect("mkdir");
    let more = write_durably(&folder, 10);
    drop(mount);
    let mount = cluster.mount_uncached("again");
    assert_all_there(mount.path(), &durable);
    assert_all_there(&mount.path().join("more"), &more);
    drop(mount);
}

/// Writes files and has each made durable, until told that all nodes are dead.
fn write_durably(dir: &Path, files: usize) -> Vec<(String, Vec<u8>)> {
    let mut durable = Vec::new();
    for index in 0..files {
        let name = format!("durable-{index:03}");
        let content = noise(index as u64, 0, 1 + index * 3_000);
        let mut file = File::create(dir.join(&name)).expect("create");
        file.write_all(&content).expect("write");
        file.sync_all().expect("fsync");
        durable.push((name, content));
    }
    File::open(dir).expect("open the folder").sync_all().expect("fsync of a folder");
    durable
}

#[track_caller]
fn assert_all_there(dir: &Path, durable: &[(String, Vec<u8>)]) {
    for (name, content) in durable {
        let found = fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}, which was fsynced: {error}"));
        assert!(found == *content, "{name}, which was fsynced, is not what was written");
    }
}

#[test]
fn what_fsync_promised_survives_the_death_of_all_nodes() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mut mount = cluster.mount("mnt");
    let durable = write_durably(mount.path(), 60);
    let mut open = File::create(mount.path().join("in flight")).expect("create");
    open.write_all(&noise(99, 0, 3_000_000)).expect("write");
    cluster.kill_nodes(0..NODES);
    mount.kill();
    drop((open, mount));

    for round in 0..2 {
        cluster.start_nodes(0..NODES);
        let mount = cluster.mount_uncached(&format!("again-{round}"));
        assert_all_there(mount.path(), &durable);
        let more = format!("written in round {round}");
        fs::write(mount.path().join("more"), &more).expect("it takes writes again");
        assert_eq!(fs::read_to_string(mount.path().join("more")).expect("read"), more);
        drop(mount);
        cluster.kill_nodes(0..NODES);
    }
}

#[test]
fn what_fsync_promised_survives_the_death_of_up() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut up = Up::start();
    let durable = write_durably(&up.mountpoint(), 40);
    up.kill();
    up.forget_cache();
    up.again();
    assert_all_there(&up.mountpoint(), &durable);
    up.stop();
}

#[test]
fn programs_go_on_when_killed_nodes_return_one_by_one() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    let mut durable = Vec::new();
    for round in 0..3 {
        let dir = mount.path().join(format!("round-{round}"));
        fs::create_dir(&dir).expect("mkdir");
        let (backup, storage) = (1 + round, 4 + round);
        cluster.kill_nodes([backup, storage]);
        durable.push((dir.clone(), write_durably(&dir, 10)));
        cluster.start_nodes([backup, storage]);
        let level = cluster.status().executed(0);
        cluster.wait_status("the backup catches up", SETTLE, |status| status.executed(backup) >= level);
    }
    durable.iter().for_each(|(dir, files)| assert_all_there(dir, files));
    run_ok(Command::new("rm").arg("-r").arg(mount.path().join("round-0")), CHORE);
    mount.stop();
}

#[test]
fn a_mount_without_a_cluster_gives_up_with_a_reason() {
    needs_mount!();
    let cluster = Cluster::configure();
    let mountpoint = cluster.outside().join("mnt");
    fs::create_dir(&mountpoint).expect("mkdir");
    let log = cluster.outside().join("mnt.log");
    let mut process = Process::start("mount", cluster.admin().arg("mount").arg(&mountpoint), &log);
    let status = process.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", process.log());
    assert!(process.log().contains("does not answer"), "it says what is wrong:\n{}", process.log());
    assert!(!tests::mount::is_mounted(&mountpoint));
}
