//! Disks rot and fill up; reads stay right and the cause is told.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tests::cluster::{NODES, set};
use tests::mount::SmallDisk;
use tests::random::noise;
use tests::work::{check_big_file, write_big_file};
use tests::{Cluster, needs_mount, one_at_a_time, tree};

const SETTLE: Duration = Duration::from_secs(60);
/// What a storage node leaves free on its disk, in MiB.
const RESERVE_MIB: u64 = 64;
const ENOSPC: i32 = 28;

/// Flips a bit in every 4 KiB of every block file of a node that is not running.
fn rot(data: &Path) -> usize {
    let mut flipped = 0;
    for (path, entry) in tree::read(data) {
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(data.join(&path)).expect("open");
        for page in 2..entry.size / 4096 {
            let (at, mut byte) = (page * 4096 + 1234, [0]);
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
            flipped += 1;
        }
    }
    flipped
}

#[test]
fn rot_on_one_node_is_read_around_and_reported() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    write_big_file(&mount.path().join("big"), 24, 31);
    mount.stop();
    cluster.stop_nodes([4]);
    let flipped = rot(&cluster.node_data(4));
    assert!(flipped > 1000, "only {flipped} bits of blocks to flip below {}", cluster.node_data(4).display());
    cluster.start_nodes([4]);

    let mount = cluster.mount_uncached("again");
    check_big_file(&mount.path().join("big"), 24, 31, 300);
    let whole = fs::read(mount.path().join("big")).expect("read");
    assert!(whole == noise(31, 0, 24 << 20), "every byte is right");
    let corrupt = |node: &tests::status::Node| node.storage.as_ref().map_or(0, |storage| storage.corrupt_blocks);
    let status = cluster.wait_status("the rot is reported", SETTLE, |status| corrupt(status.node(4)) > 0);
    assert!((5..NODES).all(|node| corrupt(status.node(node)) == 0), "and nobody else is blamed: {status:?}");
    mount.stop();
    cluster.stop_nodes(0..NODES);
}

/// Gives these nodes little room: a disk of their own if this is root, else a limit.
fn little_room(cluster: &Cluster, nodes: impl IntoIterator<Item = usize>, mib: u64) -> Vec<SmallDisk> {
    let root = rustix::process::geteuid().is_root();
    let limit = |node| {
        if root {
            return Some(SmallDisk::new(&cluster.node_data(node), RESERVE_MIB + mib));
        }
        set(&cluster.node_config(node), "capacity_bytes", &(mib << 20).to_string());
        None
    };
    nodes.into_iter().filter_map(limit).collect()
}

#[test]
fn a_full_disk_on_one_node_stops_nobody() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::configure();
    let _disk = little_room(&cluster, [6], 16);
    cluster.start_all();
    let mount = cluster.mount("mnt");
    write_big_file(&mount.path().join("big"), 60, 41);
    let status = cluster.wait_status("the full node says so", SETTLE, |status| {
        status.node(6).storage.as_ref().is_some_and(|storage| storage.refused_puts > 0)
    });
    assert_eq!((status.replicas_up(), status.storage_up()), (4, 4), "and goes on");
    mount.stop();
    let mount = cluster.mount_uncached("again");
    check_big_file(&mount.path().join("big"), 60, 41, 200);
    fs::remove_file(mount.path().join("big")).expect("deleting works");
    mount.stop();
    cluster.stop_nodes(0..NODES);
}

#[test]
fn full_everywhere_is_enospc_and_deleting_works() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::configure();
    let _disks = little_room(&cluster, 4..NODES, 24);
    cluster.start_all();
    let mount = cluster.mount("mnt");
    write_big_file(&mount.path().join("kept"), 4, 51);

    let error = fill(&mount.path().join("too much")).expect_err("500 MiB do not fit");
    assert_eq!(error.raw_os_error(), Some(ENOSPC), "{error}");
    check_big_file(&mount.path().join("kept"), 4, 51, 20);
    fs::remove_file(mount.path().join("too much")).expect("deleting works when full");
    fs::rename(mount.path().join("kept"), mount.path().join("kept still")).expect("and so does renaming");
    mount.stop();

    let mount = cluster.mount_uncached("again");
    check_big_file(&mount.path().join("kept still"), 4, 51, 20);
    fs::remove_file(mount.path().join("kept still")).expect("and deleting the rest");
    assert_eq!(fs::read_dir(mount.path()).expect("readdir").count(), 0);
    mount.stop();
    cluster.stop_nodes(0..NODES);
}

/// Writes until the disks are full.
fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for mib in 0..500 {
        file.write_all(&noise(61, mib << 20, 1 << 20))?;
        if mib % 8 == 7 {
            file.sync_data()?;
        }
    }
    file.sync_all()
}
