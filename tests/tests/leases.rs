//! Two mounts of one volume, each a process with leases of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tests::{Cluster, needs_mount, one_at_a_time, wait_until};

/// The longest that somebody waits for a turn.
const TURN: Duration = Duration::from_secs(60);

/// Counts in a file, taking turns by a directory that only one can make.
fn count_in_turns(dir: &Path, rounds: usize) {
    for _ in 0..rounds {
        wait_until("the lock is free", TURN, || match fs::create_dir(dir.join("lock")) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
            Err(error) => panic!("{error}"),
            Ok(()) => Some(()),
        });
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("count"));
        let mut text = String::new();
        file.as_mut().expect("opened").read_to_string(&mut text).expect("read");
        drop(file);
        let count: usize = text.parse().unwrap_or(0);
        fs::write(dir.join("count"), (count + 1).to_string()).expect("written");
        fs::remove_dir(dir.join("lock")).expect("mine");
    }
}

#[test]
fn two_mounts_take_turns() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    for place in ["a", "b"] {
        fs::create_dir(one.path().join(place)).expect("mkdir");
    }
    std::thread::scope(|scope| {
        for (index, mount) in [&one, &two, &one, &two].into_iter().enumerate() {
            let dir = mount.path().join(if index < 2 { "a" } else { "b" });
            scope.spawn(move || count_in_turns(&dir, 25));
        }
    });
    for mount in [&one, &two] {
        for place in ["a", "b"] {
            assert_eq!(fs::read_to_string(mount.path().join(place).join("count")).expect("read"), "50");
        }
    }
    // Each alone in a directory of its own, beside the other.
    let own = |mount: &Path, name: &str| {
        let dir = mount.join(name);
        fs::create_dir(&dir).expect("mkdir");
        (0..200).for_each(|index| fs::write(dir.join(format!("f{index}")), name).expect("written"));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| own(one.path(), "ones"));
        scope.spawn(|| own(two.path(), "twos"));
    });
    for (mount, name) in [(&two, "ones"), (&one, "twos")] {
        let listed = fs::read_dir(mount.path().join(name)).expect("listed");
        let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).expect("read");
        let all: Vec<_> = listed.map(|entry| read(entry.expect("an entry"))).collect();
        assert_eq!((all.len(), all.iter().all(|text| text == name)), (200, true));
    }
    one.stop();
    two.stop();
}

#[test]
fn a_mount_that_was_killed_goes_on_at_once_and_has_what_was_synced() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mut mount = cluster.mount("mount");
    let dir = mount.path().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    for index in 0..100 {
        fs::write(dir.join(format!("synced{index}")), format!("content {index}")).expect("written");
    }
    File::open(&dir).and_then(|dir| dir.sync_all()).expect("synced");
    (0..100).for_each(|index| fs::write(dir.join(format!("later{index:03}")), "x").expect("written"));
    mount.kill();
    drop(mount);

    let mount = cluster.mount("mount");
    let began = Instant::now();
    for index in 0..100 {
        let text = fs::read_to_string(dir.join(format!("synced{index}"))).expect("what was synced is there");
        assert_eq!(text, format!("content {index}"));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "nobody waits for the lease of who it was: {began:?}");
    let names = fs::read_dir(&dir).expect("listed").map(|entry| entry.expect("an entry").file_name());
    let mut later: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("later")).collect();
    later.sort();
    for (index, name) in later.iter().enumerate() {
        assert_eq!(*name, *format!("later{index:03}"), "what is lost is the end");
    }
    mount.stop();
}

#[test]
fn a_mount_that_stood_still_for_too_long_is_cut_off_and_says_so() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let kept = cluster.outside().join("kept");
    let option = format!("lost-dir={}", kept.display());
    let (still, other) = (cluster.mount_with("still", &["-o", &option]), cluster.mount("other"));
    let mut file = File::create(still.path().join("before")).expect("created");
    file.write_all(b"synced").expect("written");
    file.sync_all().expect("synced");
    let mut unsent = File::create(still.path().join("unsent")).expect("created");
    unsent.write_all(b"never seen").expect("written");
    fs::create_dir(still.path().join("dir")).expect("made");
    fs::write(still.path().join("dir/closed"), "nor this").expect("written");
    let server = still.server().expect("it is served");
    kill_process(server, Signal::STOP).expect("stopped");

    let began = Instant::now();
    assert_eq!(fs::read_to_string(other.path().join("before")).expect("its lease runs out"), "synced");
    assert!(began.elapsed() < Duration::from_secs(85), "{began:?}");
    fs::write(other.path().join("meanwhile"), "by the other").expect("written");
    let listed = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).expect("listed").map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let now = listed(other.path());
    kill_process(server, Signal::CONT).expect("continued");
    assert!(unsent.sync_all().is_err(), "what was not sent is lost, and whoever asks is told");
    // It has something yet that was not sent, and there is no such file.
    assert_eq!(unsent.sync_all().map_err(|error| error.kind()), Err(std::io::ErrorKind::StaleNetworkFileHandle));
    file.sync_all().expect("nothing of this one is lost");
    let root = File::open(still.path()).expect("opened");
    assert!(root.sync_all().is_err(), "names were lost, too");
    root.sync_all().expect("told once");
    assert_eq!(listed(still.path()), now);
    assert_eq!(fs::read_to_string(still.path().join("meanwhile")).expect("read"), "by the other");
    fs::write(still.path().join("after"), "goes on").expect("written");
    assert_eq!(fs::read_to_string(other.path().join("after")).expect("read"), "goes on");
    drop((file, unsent));
    still.stop();
    other.stop();

    let folders: Vec<_> = fs::read_dir(&kept).expect("listed").map(|entry| entry.unwrap().path()).collect();
    let [folder] = folders.as_slice() else { panic!("one loss, one folder: {folders:?}") };
    let read = |path: &str| fs::read_to_string(folder.join(path)).expect("kept");
    assert_eq!((read("files/unsent"), read("files/dir/closed")), ("never seen".into(), "nor this".into()));
    let text = read("what-was-lost.txt");
    assert!(text.contains("made the file unsent") && text.contains("made the directory dir"), "{text}");
}
