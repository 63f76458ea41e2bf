//! Snapshots in the tree.

use std::future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::backend::Metadata as _;
use client::fs::{FileLock, LockWait, OpenFlags, SetAttr};
use meta::{
    Answer, AttrChange, Call, Denied, Kind, LOCK_END, LockKind, LockMode, Op, RenameHow, Reply, Snapshot, XattrHow,
};

use super::world::{ROOT, World, close, content, create, denied, find, list, noise, read_all, write_all, write_file};

async fn ask(world: &World, op: Op) -> Reply {
    // What mounts have not sent yet is waited for.
    let mut answers = world.replicas.calls(vec![Call { caller: ROOT, op }]).await.expect("answered");
    match answers.pop() {
        Some(Answer::Done(reply)) => reply,
        other => panic!("{other:?}"),
    }
}

async fn take(world: &World, name: &str) -> Snapshot {
    match ask(world, Op::SnapshotTake { volume: world.volume.id, name: name.into() }).await {
        Reply::Snapshots(mut taken) => taken.remove(0),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_the_tree_as_it_was_with_what_nobody_synced() {
    let world = World::new();
    let fs = world.mount();
    let dir = fs.mkdir(&ROOT, fs.root(), b"dir", 0o755).await.expect("made").ino;
    let long = write_file(&fs, "long", &noise(1, 60_000)).await.ino;
    fs.rename(&ROOT, (fs.root(), b"long"), (dir, b"long"), RenameHow::Replace).await.expect("moved");
    fs.setxattr(&ROOT, long, b"user.note", b"before", XattrHow::Set).await.expect("set");
    fs.symlink(&ROOT, dir, b"link", b"to nowhere").await.expect("made");
    let short = create(&fs, "short").await;
    write_all(&fs, short.handle, 0, b"synced, ").await;
    fs.fsync(short.handle).await.expect("synced");
    write_all(&fs, short.handle, 8, b"and not").await;
    close(&fs, short.handle).await;
    let empty = world.mount();
    assert_eq!(list(&empty, find(&empty, ".mangrove/snapshots").await).await, [""; 0]);

    let then = take(&world, "then").await;
    let opened = fs.open(&ROOT, long, OpenFlags::writing()).await.expect("opened").handle;
    write_all(&fs, opened, 30_000, b"after").await;
    close(&fs, opened).await;
    fs.setxattr(&ROOT, long, b"user.note", b"after", XattrHow::Set).await.expect("set");
    fs.unlink(&ROOT, fs.root(), b"short").await.expect("removed");
    fs.rename(&ROOT, (fs.root(), b"dir"), (fs.root(), b"moved"), RenameHow::Replace).await.expect("moved");
    write_file(&fs, "new", b"new").await;
    let mode = AttrChange { mode: Some(0o700), ..AttrChange::default() };
    fs.setattr(&ROOT, dir, &SetAttr { size: None, attrs: mode }, None).await.expect("changed");

    for fs in [&fs, &world.mount()] {
        assert_eq!(list(fs, fs.root()).await, ["moved", "new"], "the past is not listed");
        let (top, all) = (find(fs, ".mangrove").await, find(fs, ".mangrove/snapshots").await);
        let root = find(fs, ".mangrove/snapshots/then").await;
        assert_eq!(root, world.root().in_snapshot(then.number));
        assert_eq!(
            (list(fs, top).await, list(fs, all).await),
            (vec!["snapshots".into(), "trash".into()], vec!["then".into()])
        );
        assert_eq!(list(fs, root).await, ["dir", "short"]);
        let before = ".mangrove/snapshots/then/dir";
        assert_eq!(list(fs, find(fs, before).await).await, ["link", "long"]);
        assert_eq!(fs.getattr(&ROOT, find(fs, before).await).await.expect("there").mode, 0o755);
        assert!(content(fs, ".mangrove/snapshots/then/dir/long").await == noise(1, 60_000));
        assert_eq!(content(fs, ".mangrove/snapshots/then/short").await, b"synced, and not");
        let was = find(fs, ".mangrove/snapshots/then/dir/long").await;
        assert_eq!(fs.getxattr(&ROOT, was, b"user.note").await.expect("there"), b"before");
        assert_eq!(fs.listxattr(&ROOT, was).await.expect("listed"), [b"user.note".to_vec()]);
        let link = find(fs, ".mangrove/snapshots/then/dir/link").await;
        assert_eq!(fs.readlink(&ROOT, link).await.expect("read"), b"to nowhere");
        for (child, parent) in [(root, all), (all, top), (top, fs.root()), (find(fs, before).await, root)] {
            assert_eq!(fs.parent(&ROOT, child).await.expect("there").ino, parent);
        }
        for ino in [top, all, root] {
            let attr = fs.getattr(&ROOT, ino).await.expect("there");
            assert!(attr.kind == Kind::Directory && attr.ino == ino);
            fs.access(&ROOT, ino, 5).await.expect("may");
            assert_eq!(fs.listxattr(&ROOT, ino).await.expect("listed"), [b""; 0]);
        }
        assert!(content(fs, "moved/long").await[30_000..30_005] == *b"after");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_to_a_snapshot_and_everybody_may_copy_from_it() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "file", &noise(1, 60_000)).await;
    take(&world, "then").await;
    fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    let all = find(&fs, ".mangrove/snapshots").await;
    let (root, file) = (find(&fs, ".mangrove/snapshots/then").await, find(&fs, ".mangrove/snapshots/then/file").await);
    for parent in [root, all] {
        assert_eq!(denied(fs.mkdir(&ROOT, parent, b"new", 0o755).await), Denied::ReadOnly);
        assert_eq!(denied(fs.unlink(&ROOT, parent, b"then").await), Denied::ReadOnly);
        let into = fs.rename(&ROOT, (fs.root(), b"x"), (parent, b"y"), RenameHow::Replace).await;
        assert_eq!(denied(into), Denied::ReadOnly);
    }
    assert_eq!(denied(fs.mkdir(&ROOT, fs.root(), b".mangrove", 0o755).await), Denied::ReadOnly);
    assert_eq!(denied(fs.rmdir(&ROOT, fs.root(), b".mangrove").await), Denied::ReadOnly);
    assert_eq!(denied(fs.open(&ROOT, file, OpenFlags::writing()).await), Denied::ReadOnly);
    let empty = OpenFlags { truncate: true, ..OpenFlags::writing() };
    assert_eq!(denied(fs.open(&ROOT, file, empty).await), Denied::ReadOnly);
    let size = SetAttr { size: Some(1), ..SetAttr::default() };
    assert_eq!(denied(fs.setattr(&ROOT, file, &size, None).await), Denied::ReadOnly);
    assert_eq!(denied(fs.setxattr(&ROOT, file, b"user.x", b"", XattrHow::Set).await), Denied::ReadOnly);
    assert_eq!(denied(fs.lookup(&ROOT, all, b"other").await), Denied::NotFound);

    let from = fs.open(&ROOT, file, OpenFlags::reading()).await.expect("opened").handle;
    let lock = FileLock { kind: LockKind::Posix, owner: 1, start: 0, end: LOCK_END, mode: LockMode::Shared, pid: 1 };
    fs.lock(from, lock, LockWait::No, future::pending(), Duration::ZERO).await.expect("nobody else writes it");
    let to = create(&fs, "restored").await.handle;
    let puts = world.stores.puts.load(Ordering::SeqCst);
    assert_eq!(fs.copy((from, 0), (to, 0), 60_000).await.expect("copied"), 60_000);
    close(&fs, to).await;
    fs.release(from).await.expect("released");
    fs.sync_all().await.expect("synced");
    let put = world.stores.puts.load(Ordering::SeqCst) - puts;
    assert!(content(&fs, "restored").await == noise(1, 60_000));
    assert!(put <= 1, "{put} blocks were put for what is there");

    ask(&world, Op::SnapshotDelete { volume: world.volume.id, name: "then".into() }).await;
    // Who looked at it just now may look on for a minute.
    let other = world.mount();
    assert_eq!(denied(other.lookup(&ROOT, all, b"then").await), Denied::NotFound);
    assert_eq!(denied(other.getattr(&ROOT, file).await), Denied::Stale);
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_anew_leads_to_the_new_snapshot() {
    let world = World::new();
    let fs = world.mount();
    for round in 0..3 {
        write_file(&fs, "file", &noise(round, 3_000)).await;
        take(&world, "daily").await;
        let list = find(&fs, ".mangrove/snapshots").await;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while content(&fs, ".mangrove/snapshots/daily/file").await != noise(round, 3_000) {
            assert!(std::time::Instant::now() < deadline, "round {round}: an old snapshot");
            tokio::task::yield_now().await;
        }
        let root = find(&fs, ".mangrove/snapshots/daily").await;
        for ino in [list, root] {
            assert_eq!(fs.lasts(ino, fs.generation()), Duration::ZERO, "what leads there is looked up each time");
        }
        ask(&world, Op::SnapshotDelete { volume: world.volume.id, name: "daily".into() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_looked_at_in_a_snapshot_is_at_hand() {
    let world = World::new();
    let fs = world.mount();
    let dir = fs.mkdir(&ROOT, fs.root(), b"dir", 0o755).await.expect("made").ino;
    for index in 0..20 {
        let name = format!("f{index}");
        write_file(&fs, &name, b"content").await;
        let (from, to) = ((fs.root(), name.as_bytes()), (dir, name.as_bytes()));
        fs.rename(&ROOT, from, to, RenameHow::Replace).await.expect("moved");
    }
    take(&world, "then").await;
    let root = find(&fs, ".mangrove/snapshots/then/dir").await;
    fs.lookup(&ROOT, root, b"f0").await.expect("there");
    let before = world.replicas.requests.load(Ordering::SeqCst);
    assert_eq!(list(&fs, root).await.len(), 20);
    for index in 0..20 {
        let ino = fs.lookup(&ROOT, root, format!("f{index}").as_bytes()).await.expect("there").ino;
        fs.getattr(&ROOT, ino).await.expect("there");
        assert_eq!(denied(fs.getxattr(&ROOT, ino, b"security.selinux").await), Denied::NoAttribute);
        assert_eq!(denied(fs.getxattr(&ROOT, ino, b"system.posix_acl_access").await), Denied::NoAttribute);
        assert_eq!(fs.listxattr(&ROOT, ino).await.expect("listed"), [b""; 0]);
        let opened = fs.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened").handle;
        assert_eq!(read_all(&fs, opened).await, b"content");
        fs.release(opened).await.expect("released");
    }
    assert_eq!(world.replicas.requests.load(Ordering::SeqCst), before, "all that came with the first name");
}
