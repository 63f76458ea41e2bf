//! What the kernel may believe while this mount has leases: nobody is asked twice, and nobody is told what
//! others have changed.
//!
//! Without `/dev/fuse`, or as a user without `fusermount3`, these tests say so and do nothing.

mod cluster;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::backend::{Flush, Forget, Metadata, Ready, Unavailable};
use client::fs::{Filesystem, OpenFlags, SetAttr};
use client::leased::Leased;
use cluster::{Cluster, blocking, unmount};
use fuse::{Mount, MountOptions};
use meta::{Answer, AttrChange, Batch, Call, Caller, Ino, RenameHow};
use tempfile::TempDir;

/// Names with leases; counts how often the filesystem asks for any.
#[derive(Clone)]
struct Counting {
    names: Leased<Cluster>,
    calls: Arc<AtomicU64>,
}

impl Metadata for Counting {
    async fn batch(&self, batch: Batch) -> Result<Vec<Answer>, Unavailable> {
        self.names.batch(batch).await
    }

    async fn calls(&self, calls: Vec<Call>) -> Result<Vec<Answer>, Unavailable> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.names.calls(calls).await
    }

    async fn calls_after(&self, calls: Vec<Call>, ready: Ready) -> Result<Vec<Answer>, Unavailable> {
        self.names.calls_after(calls, ready).await
    }

    fn keeps(&self, ino: Ino) -> bool {
        self.names.keeps(ino)
    }

    fn generation(&self) -> u64 {
        self.names.generation()
    }

    fn lasts(&self, ino: Ino, generation: u64) -> Duration {
        self.names.lasts(ino, generation)
    }

    fn before_sharing(&self, forget: Forget) {
        self.names.before_sharing(forget);
    }

    async fn sync(&self) -> Result<(), Unavailable> {
        self.names.sync().await
    }

    fn before_ceding(&self, flush: Flush) {
        self.names.before_ceding(flush);
    }

    async fn close(&self) {
        self.names.close().await;
    }
}

struct World {
    calls: Arc<AtomicU64>,
    mount: Mount,
    mountpoint: TempDir,
    other: Arc<Filesystem<Leased<Cluster>, Cluster>>,
    me: Caller,
}

impl World {
    /// A mount that may believe only what its leases cover, and another client.
    async fn new() -> Option<World> {
        let cluster = Cluster::new();
        let calls = Arc::<AtomicU64>::default();
        let names = Counting { names: cluster.leased(1), calls: calls.clone() };
        let options = MountOptions { ttl: Duration::ZERO, ..MountOptions::default() };
        let (mount, mountpoint) = cluster::mounted(cluster.open_with(names), options).await?;
        let other = cluster.open_with(cluster.leased(2));
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Some(World { calls, mount, mountpoint, other, me: Caller { uid, gid, groups: Vec::new() } })
    }

    fn path(&self) -> PathBuf {
        self.mountpoint.path().to_path_buf()
    }

    /// Makes a directory in the mount with a file in it; whoever looks at the directory by its number asks
    /// for nothing else.
    async fn directory(&self, name: &str) -> (PathBuf, Ino) {
        let path = self.path().join(name);
        blocking(move || {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "one").unwrap();
            // Replicas have heard of it; the kernel knows all there is to know.
            fs::File::open(&path).unwrap().sync_all().unwrap();
            assert_eq!(look(&path), ("one".into(), 0o644, false));
            let ino = fs::metadata(&path).unwrap().ino();
            (path, Ino(ino))
        })
        .await
    }

    async fn chmod(&self, ino: Ino, mode: u16) {
        let attrs = AttrChange { mode: Some(mode), ..AttrChange::default() };
        self.other.setattr(&self.me, ino, &SetAttr { size: None, attrs }, None).await.unwrap();
    }
}

/// What the file holds, its mode, and whether there is another.
fn look(directory: &Path) -> (String, u32, bool) {
    let content = fs::read_to_string(directory.join("file")).unwrap_or_default();
    let mode = fs::metadata(directory.join("file")).map_or(0, |found| found.mode() & 0o777);
    (content, mode, fs::exists(directory.join("other")).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lease_covers_is_asked_for_once() {
    let Some(world) = World::new().await else { return };
    let (path, calls) = (world.path(), world.calls.clone());
    let stat_all = move || {
        let before = calls.load(Ordering::SeqCst);
        for index in 0..100 {
            assert_eq!(fs::metadata(path.join(format!("kept/f{index}"))).unwrap().len(), 4);
            assert!(!fs::exists(path.join(format!("kept/g{index}"))).unwrap());
        }
        calls.load(Ordering::SeqCst) - before
    };
    let (path, twice) = (world.path(), stat_all.clone());
    let asked = blocking(move || {
        fs::create_dir(path.join("kept")).unwrap();
        (0..100).for_each(|index| fs::write(path.join(format!("kept/f{index}")), "four").unwrap());
        [twice(), twice()]
    })
    .await;
    assert_eq!(asked[1], 0, "asked {} at first", asked[0]);
    // What another directory has to do with the other client costs looks at this one, until what is around both
    // is quiet (two seconds).
    let (_, ino) = world.directory("shared").await;
    world.chmod(world.other.lookup(&world.me, ino, b"file").await.unwrap().ino, 0o600).await;
    blocking(move || {
        assert!(stat_all() > 0, "the names were not forgotten");
        let began = Instant::now();
        while stat_all() > 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "it is never this mount's again");
        }
    })
    .await;
    unmount(world.mount).await;
}

/// The names in a directory, in order.
fn list(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_directory_is_listed_once() {
    let Some(world) = World::new().await else { return };
    let (path, calls) = (world.path().join("kept"), world.calls.clone());
    blocking(move || {
        fs::create_dir(&path).unwrap();
        let expected: Vec<_> = (100..800).map(|index| format!("f{index}")).collect();
        expected.iter().for_each(|name| fs::write(path.join(name), "four").unwrap());
        assert_eq!(list(&path), expected);
        assert_eq!(list(&path), expected);
        let before = calls.load(Ordering::SeqCst);
        assert_eq!(list(&path), expected);
        assert_eq!(calls.load(Ordering::SeqCst), before, "asked again");
        // What is changed here is seen, in a directory that is open, too.
        fs::remove_file(path.join("f100")).unwrap();
        assert_eq!(list(&path), expected[1..]);
        fs::rename(path.join("f101"), path.join("g")).unwrap();
        fs::create_dir(path.join("h")).unwrap();
        assert_eq!(list(&path).len(), expected.len());
        assert!(list(&path).ends_with(&["g".into(), "h".into()]));
    })
    .await;
    unmount(world.mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_shows_what_others_changed() {
    let Some(world) = World::new().await else { return };
    let (path, ino) = world.directory("shared").await;
    let mut expected = vec!["file".to_owned()];
    for round in 0..8 {
        let seen = path.clone();
        let lists = blocking(move || [list(&seen), list(&seen), list(&seen)]).await;
        assert!(lists.iter().all(|list| *list == expected), "round {round}: {lists:?}");
        let name = format!("made{round}");
        match round % 3 {
            2 => {
                world.other.unlink(&world.me, ino, expected[1].as_bytes()).await.unwrap();
                expected.remove(1);
            }
            _ => {
                let mode = OpenFlags::writing();
                let made = world.other.create(&world.me, ino, name.as_bytes(), 0o644, mode, true).await.unwrap();
                world.other.release(made.handle).await.unwrap();
                expected.push(name);
            }
        }
    }
    let seen = path.clone();
    assert_eq!(blocking(move || list(&seen)).await, expected);
    unmount(world.mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_is_seen_at_once() {
    let Some(world) = World::new().await else { return };
    for round in 0..12 {
        let (path, ino) = world.directory(&format!("d{round}")).await;
        let file = world.other.lookup(&world.me, ino, b"file").await.unwrap().ino;
        let expected = match round % 4 {
            0 => {
                world.chmod(file, 0o600).await;
                ("one".into(), 0o600, false)
            }
            1 => {
                world.other.unlink(&world.me, ino, b"file").await.unwrap();
                (String::new(), 0, false)
            }
            2 => {
                world.other.mkdir(&world.me, ino, b"other", 0o755).await.unwrap();
                ("one".into(), 0o644, true)
            }
            _ => {
                let opened = world.other.open(&world.me, file, OpenFlags::writing()).await.unwrap();
                world.other.write(opened.handle, 3, b", two".as_slice().into()).await.unwrap();
                world.other.flush(opened.handle).await.unwrap();
                world.other.release(opened.handle).await.unwrap();
                ("one, two".into(), 0o644, false)
            }
        };
        assert_eq!(blocking(move || look(&path)).await, expected, "round {round}");
    }
    unmount(world.mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_under_way_while_a_lease_is_given_back_do_not_outlive_it() {
    let Some(world) = World::new().await else { return };
    for round in 0..30 {
        let (path, ino) = world.directory(&format!("d{round}")).await;
        let stop = Arc::new(AtomicBool::new(false));
        let lookers: Vec<_> = (0..2)
            .map(|_| {
                let (path, stop) = (path.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // Forgotten names and attributes are asked for over and over.
                        let _ = (look(&path), fs::read_dir(&path).unwrap().count());
                    }
                })
            })
            .collect();
        let file = world.other.lookup(&world.me, ino, b"file").await.unwrap().ino;
        world.chmod(file, 0o600).await;
        world.other.mkdir(&world.me, ino, b"other", 0o755).await.unwrap();
        let seen = blocking(move || look(&path)).await;
        stop.store(true, Ordering::Relaxed);
        blocking(move || lookers.into_iter().for_each(|looker| looker.join().unwrap())).await;
        assert_eq!(seen, ("one".into(), 0o600, true), "round {round}");
    }
    unmount(world.mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved_out_of_a_lease_is_not_believed_any_more() {
    let Some(world) = World::new().await else { return };
    let (_, open) = world.directory("open").await;
    // The other client has been there: nobody has a lease on it for a while.
    world.other.mkdir(&world.me, open, b"theirs", 0o755).await.unwrap();
    let (from, ino) = world.directory("kept").await;
    let to = world.path().join("open/moved");
    let there = to.clone();
    blocking(move || fs::rename(from, there).unwrap()).await;
    let file = world.other.lookup(&world.me, ino, b"file").await.unwrap().ino;
    world.chmod(file, 0o640).await;
    assert_eq!(blocking(move || look(&to)).await, ("one".into(), 0o640, false));
    unmount(world.mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_a_leased_directory_is_known_until_others_move_it() {
    let Some(world) = World::new().await else { return };
    let (path, _) = world.directory("own").await;
    let root = world.other.root();
    // The root is everybody's from here on.
    world.other.mkdir(&world.me, root, b"theirs", 0o755).await.unwrap();
    let (calls, own) = (world.calls.clone(), path.clone());
    let asked = blocking(move || {
        let look = || {
            let before = calls.load(Ordering::SeqCst);
            assert_eq!(fs::metadata(own.join("file")).unwrap().len(), 3);
            calls.load(Ordering::SeqCst) - before
        };
        [look(), look(), look()]
    })
    .await;
    // Who may pass the root is asked: in these tests nothing is believed that no lease covers.
    assert_eq!(asked[2], 1, "asked {asked:?}");
    world.other.rename(&world.me, (root, b"own"), (root, b"moved"), RenameHow::Replace).await.unwrap();
    let there = world.path().join("moved/file");
    let found = blocking(move || (fs::exists(path.join("file")).unwrap(), fs::exists(there).unwrap())).await;
    assert_eq!(found, (false, true));
    unmount(world.mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_leads_to_what_others_gave_it_though_the_old_file_is_still_there() {
    let cluster = Cluster::new();
    let options = MountOptions::default();
    let Some((first, at)) = cluster::mounted(cluster.open(), options.clone()).await else { return };
    let Some((second, there)) = cluster::mounted(cluster.open(), options).await else { return };
    let (one, two) = (at.path().to_path_buf(), there.path().to_path_buf());
    blocking(move || {
        for round in 0..10 {
            // As editors save: the old file becomes the backup.
            fs::write(one.join("text"), format!("old {round}")).unwrap();
            assert_eq!(fs::read_to_string(two.join("text")).unwrap(), format!("old {round}"));
            fs::rename(one.join("text"), one.join("text~")).unwrap();
            fs::write(one.join("text"), format!("new {round}")).unwrap();
            assert_eq!(fs::read_to_string(two.join("text")).unwrap(), format!("new {round}"));
            fs::remove_file(one.join("text")).unwrap();
            fs::create_dir(two.join("text")).unwrap();
            fs::remove_dir(one.join("text")).unwrap();
        }
    })
    .await;
    unmount(first).await;
    unmount(second).await;
}
