//! Bad input is refused at start with its cause and a way out, and nothing is written.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tests::cluster::{NODES, set, setting};
use tests::process::ANSWER;
use tests::random::noise;
use tests::{Cluster, Up, mangrove, needs_mount, one_at_a_time, run_ok, run_refused, tree};

/// Runs node `node`, which must refuse with these words and leave `untouched` as it was.
#[track_caller]
fn node_refuses(cluster: &Cluster, node: usize, untouched: &Path, words: &[&str]) {
    let before = tree::read(untouched);
    run_refused(&mut cluster.node_command(node), words);
    tree::assert_same(&before, &tree::read(untouched));
}

#[test]
fn a_duplicate_key_in_the_settings() {
    let cluster = Cluster::configure();
    let mut file = OpenOptions::new().append(true).open(cluster.node_config(0)).expect("open");
    file.write_all(b"\nid = 0\n").expect("write");
    node_refuses(&cluster, 0, &cluster.path(), &["node.toml", "duplicate key"]);
}

#[test]
fn two_nodes_with_one_key() {
    let cluster = Cluster::configure();
    let path = cluster.path().join("cluster.toml");
    let text = fs::read_to_string(&path).expect("read");
    let keys: Vec<_> = text.lines().filter(|line| line.starts_with("key = ")).collect();
    fs::write(&path, text.replace(keys[1], keys[0])).expect("write");
    node_refuses(&cluster, 0, &cluster.path(), &["cluster.toml", "have the same key", "needs its own"]);
    let mut status = cluster.admin();
    run_refused(status.arg("status"), &["cluster.toml", "have the same key"]);
}

#[test]
fn an_unknown_setting_and_a_newer_format() {
    let cluster = Cluster::configure();
    set(&cluster.node_config(0), "colour", "\"green\"");
    node_refuses(&cluster, 0, &cluster.path(), &["node.toml", "colour"]);
    set(&cluster.node_config(1), "format", "99");
    node_refuses(&cluster, 1, &cluster.path(), &["node.toml", "99", "newer"]);
    set(&cluster.path().join("cluster.toml"), "format", "99");
    node_refuses(&cluster, 2, &cluster.path(), &["cluster.toml", "99", "newer"]);
}

#[test]
fn a_node_with_another_nodes_key() {
    let cluster = Cluster::configure();
    let key = |node: usize| cluster.node_dir(node).join(setting(&cluster.node_config(node), "key"));
    fs::copy(key(2), key(1)).expect("copy");
    node_refuses(&cluster, 1, &cluster.path(), &["key", "node 1's own key"]);
    fs::write(key(3), "not a key\n").expect("write");
    node_refuses(&cluster, 3, &cluster.path(), &["not a mangrove key file"]);
    fs::set_permissions(key(4), fs::Permissions::from_mode(0o644)).expect("chmod");
    node_refuses(&cluster, 4, &cluster.path(), &["can be read by others", "chmod 600"]);
}

#[test]
fn a_user_whom_the_cluster_does_not_know() {
    needs_mount!();
    let _turn = one_at_a_time();
    let (mut cluster, other) = (Cluster::start(), Cluster::configure());
    let mountpoint = cluster.outside().join("mnt");
    fs::create_dir(&mountpoint).expect("mkdir");
    let mut mount = mangrove(cluster.outside());
    mount.arg("--cluster").arg(cluster.path().join("cluster.toml"));
    mount.arg("--key").arg(other.path().join("admin.key")).arg("mount").arg(&mountpoint);
    run_refused(&mut mount, &["is not a user of this cluster", "admin.key"]);
    assert!(!tests::mount::is_mounted(&mountpoint));
    cluster.stop_nodes(0..NODES);
}

#[test]
fn two_nodes_on_one_folder() {
    let mut cluster = Cluster::configure();
    cluster.start_nodes([0]);
    let data = cluster.node_data(0);
    set(&cluster.node_config(1), "data", &format!("{data:?}"));
    node_refuses(&cluster, 1, &cluster.node_dir(1), &["data folder", "belongs to node 0", "own folder"]);
    let spare = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    set(&cluster.node_config(0), "listen", &format!("\"{spare}\""));
    run_refused(&mut cluster.node_command(0), &["data folder", "in use", "pid"]);
    assert!(cluster.node(0).is_running(), "the first node goes on");
    cluster.stop_nodes([0]);
}

#[test]
fn a_busy_port() {
    let cluster = Cluster::configure();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("an address").to_string();
    set(&cluster.node_config(0), "listen", &format!("\"{address}\""));
    node_refuses(&cluster, 0, &cluster.path(), &["cannot listen on", &address, "another process"]);
}

#[test]
fn a_data_folder_of_another_cluster_or_of_a_newer_version() {
    let (mut cluster, other) = (Cluster::configure(), Cluster::configure());
    cluster.start_nodes([0, 4]);
    cluster.stop_nodes([0, 4]);
    for node in [0, 4] {
        set(&other.node_config(node), "data", &format!("{:?}", cluster.node_data(node)));
        node_refuses(&other, node, &cluster.path(), &["data folder", "belongs to", "own folder"]);
        let file = cluster.node_data(node).join("NODE");
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, text.replacen("mangrove-node 1", "mangrove-node 99", 1)).expect("write");
        node_refuses(&cluster, node, &cluster.path(), &["newer version", "99"]);
    }
}

#[test]
fn a_data_folder_that_is_something_else() {
    let cluster = Cluster::configure();
    let data = cluster.node_data(0);
    fs::create_dir_all(&data).expect("mkdir");
    fs::write(data.join("thesis.txt"), "precious").expect("write");
    node_refuses(&cluster, 0, &cluster.path(), &["not empty", "thesis.txt"]);
}

/// `mangrove up` on `mountpoint` with new data must refuse, and leave no data folder.
#[track_caller]
fn up_refuses(home: &Path, mountpoint: &Path, words: &[&str]) {
    let data = home.join("new-data");
    run_refused(mangrove(home).arg("up").arg(mountpoint).arg("--data").arg(&data), words);
    assert!(!data.exists(), "it refused, and wrote {}", data.display());
}

#[test]
fn a_mountpoint_that_cannot_be_one() {
    needs_mount!();
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| home.path().join(name);
    up_refuses(home.path(), &path("nowhere/at/all"), &["nowhere/at/all", "does not exist"]);
    fs::create_dir(path("full")).expect("mkdir");
    fs::write(path("full/file"), "precious").expect("write");
    up_refuses(home.path(), &path("full"), &["full", "not empty"]);
    fs::write(path("file"), "precious").expect("write");
    up_refuses(home.path(), &path("file"), &["file", "not a directory"]);
    assert_eq!(fs::read_to_string(path("full/file")).expect("read"), "precious");
}

#[test]
fn a_mountpoint_of_mount_that_is_missing_and_a_volume_that_is_not_there() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mountpoint = cluster.outside().join("mnt");
    run_refused(cluster.admin().arg("mount").arg(&mountpoint), &["does not exist", "mkdir -p"]);
    fs::create_dir(&mountpoint).expect("mkdir");
    run_refused(cluster.admin().args(["mount", "attic"]).arg(&mountpoint), &["no volume", "attic", "volume list"]);
    run_refused(cluster.admin().args(["volume", "create", "main"]), &["main"]);
    run_refused(cluster.admin().arg("umount").arg(&mountpoint), &["nothing is mounted"]);
    assert!(!tests::mount::is_mounted(&mountpoint));
    cluster.stop_nodes(0..NODES);
}

/// Fewer copies than the volume promises must not be acknowledged as if they were all.
#[test]
fn a_view_with_too_few_storage_nodes() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let (view, mountpoint) = (cluster.path().join("cluster.toml"), cluster.outside().join("mnt"));
    fs::create_dir(&mountpoint).expect("mkdir");
    let text = fs::read_to_string(&view).expect("read");
    let last_two = text.match_indices("[[node]]").nth(6).expect("eight nodes").0;
    let others = text.find("[[principal]]").expect("a user");
    let short = cluster.outside().join("short.toml");
    fs::write(&short, [&text[..last_two], &text[others..]].concat()).expect("write");
    let mut mount = mangrove(cluster.outside());
    mount.arg("--cluster").arg(&short).arg("--key").arg(cluster.path().join("admin.key"));
    run_refused(mount.arg("mount").arg(&mountpoint), &["3 copies", "2 storage nodes", "cluster.toml"]);
    cluster.stop_nodes(0..NODES);
}

#[test]
fn a_mountpoint_that_is_taken() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut up = Up::start();
    up_refuses(up.outside(), &up.mountpoint(), &["already mounted", "umount"]);
    let (other, data) = (up.outside().join("other"), up.outside().join("data"));
    fs::create_dir(&other).expect("mkdir");
    let mut second = mangrove(up.outside());
    run_refused(second.arg("up").arg(&other).arg("--data").arg(&data), &["running already", "process"]);
    fs::write(up.mountpoint().join("file"), "still works").expect("write");
    up.stop();
    for entry in find(&data, "NODE") {
        let text = fs::read_to_string(&entry).expect("read");
        fs::write(&entry, text.replacen("mangrove-node 1", "mangrove-node 99", 1)).expect("write");
    }
    let read = || {
        let mut found = tree::read(&data);
        found.remove(Path::new("up.lock"));
        found
    };
    let before = read();
    let mut newer = mangrove(up.outside());
    run_refused(newer.arg("up").arg(up.mountpoint()).arg("--data").arg(&data), &["newer version", "99"]);
    tree::assert_same(&before, &read());
    assert!(!tests::mount::is_mounted(&up.mountpoint()));
}

/// Every file of this name below `dir`; there must be one.
fn find(dir: &Path, name: &str) -> Vec<PathBuf> {
    let found: Vec<_> = tree::read(dir).into_keys().filter(|path| path.ends_with(name)).collect();
    assert!(!found.is_empty(), "no {name} below {}", dir.display());
    found.into_iter().map(|path| dir.join(path)).collect()
}

#[test]
fn a_stranger_who_talks_nonsense() {
    needs_mount!();
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let mount = cluster.mount("mnt");
    let config = fs::read_to_string(cluster.path().join("cluster.toml")).expect("read");
    let addresses = config.lines().filter_map(|line| line.strip_prefix("address = "));
    let addresses: Vec<_> = addresses.map(|address| address.trim_matches('"').to_owned()).collect();
    assert_eq!(addresses.len(), NODES);
    for (index, address) in addresses.iter().cycle().take(10 * NODES).enumerate() {
        let mut stream = TcpStream::connect(address).expect("a node listens");
        let mut nonsense = noise(index as u64, 0, 100_000);
        if index % 2 == 0 {
            // A TLS record that claims to be longer than any may be.
            nonsense[..5].copy_from_slice(&[22, 3, 1, 0xff, 0xff]);
        }
        let _ = stream.write_all(&nonsense);
    }
    let status = cluster.status();
    assert_eq!((status.replicas_up(), status.storage_up()), (4, 4), "all nodes go on");
    fs::write(mount.path().join("file"), "still works").expect("write");
    mount.stop();
    cluster.stop_nodes(0..NODES);
}

#[test]
fn a_command_line_that_means_nothing() {
    let home = tempfile::tempdir().expect("a temporary folder");
    run_refused(mangrove(home.path()).arg("frobnicate"), &["frobnicate", "usage"]);
    run_refused(mangrove(home.path()).arg("mount"), &["usage"]);
    let help = run_ok(mangrove(home.path()).arg("--help"), ANSWER);
    for command in ["up", "cluster", "node", "mount", "umount", "status"] {
        assert!(help.contains(command), "--help names {command}");
    }
    run_refused(mangrove(home.path()).arg("status"), &["cluster"]);
    assert_eq!(fs::read_dir(home.path()).expect("readdir").count(), 0, "nothing was written");
}
