//! What flush and fsync promise, bounds on memory, and failures on the way down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use client::backend::BlockError;
use client::fs::{Filesystem, FsError, OpenFlags, Options, SetAttr};
use meta::{AttrChange, Chunking, SetTime, Timestamp};

use super::world::{
    Fs, ROOT, World, close, cramped, create, denied, noise, read_all, read_file, until, write_all, write_file,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_put_is_told_once_and_nothing_is_lost() {
    let world = World::new();
    let fs = world.mount();
    for (seed, error) in [(1, BlockError::Full), (2, BlockError::Unavailable("none answers".into()))] {
        let bytes = noise(seed, 100_000);
        let opened = create(&fs, "file").await;
        write_all(&fs, opened.handle, 0, &bytes).await;
        *world.stores.fail.lock() = Some(error.clone());
        let expected = FsError::from(error);
        assert_eq!(fs.fsync(opened.handle).await, Err(expected.clone()));
        assert_eq!(fs.flush(opened.handle).await, Err(expected));
        *world.stores.fail.lock() = None;
        // The flushes told it; this write is not told again.
        fs.write(opened.handle, 100_000, Bytes::from_static(b"more")).await.expect("written");
        assert!(read_all(&fs, opened.handle).await == [&bytes[..], b"more"].concat());
        fs.fsync(opened.handle).await.expect("synced");
        assert!(world.read_afresh("file").await == [&bytes[..], b"more"].concat());
        fs.release(opened.handle).await.expect("released");
        fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    }
    assert_eq!(fs.dirty_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_fails_in_the_background_is_told_by_the_next_write_once() {
    let world = World::new();
    let options = Options { stage_bytes: 50_000, write_back: Duration::from_millis(10), ..Options::default() };
    let fs = world.mount_with(options);
    let bytes = noise(2, 400_000);
    let opened = create(&fs, "file").await;
    *world.stores.fail.lock() = Some(BlockError::Full);
    fs.write(opened.handle, 0, Bytes::copy_from_slice(&bytes[..60_000])).await.expect("written");
    until(|| world.stores.failures.load(Ordering::SeqCst) > 0).await;
    let mut told = 0;
    while told == 0 {
        let again = Bytes::copy_from_slice(&bytes[..60_000]);
        match fs.write(opened.handle, 0, again).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => {
                assert_eq!(error, FsError::NoSpace);
                told += 1;
            }
        }
    }
    *world.stores.fail.lock() = None;
    // A put that was under way when it was told may have failed since; fsync goes over all of them.
    fs.fsync(opened.handle).await.expect("synced");
    write_all(&fs, opened.handle, 60_000, &bytes[60_000..]).await;
    close(&fs, opened.handle).await;
    assert!(world.read_afresh("file").await == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cluster_refuses_writers_and_deleting_works() {
    let world = World::new();
    let fs = world.mount_with(Options { write_back: Duration::from_millis(10), ..cramped() });
    let bytes = noise(3, 500_000);
    write_file(&fs, "old", &bytes[..10_000]).await;
    *world.stores.fail.lock() = Some(BlockError::Full);
    let opened = create(&fs, "new").await;
    let mut refused = false;
    for (index, part) in bytes.chunks(10_000).enumerate() {
        refused |= fs.write(opened.handle, index as u64 * 10_000, Bytes::copy_from_slice(part)).await.is_err();
    }
    assert!(refused, "ten times more than may be dirty was not taken in");
    assert!(fs.dirty_bytes() < 300_000);
    assert_eq!(fs.flush(opened.handle).await, Err(FsError::NoSpace));
    fs.unlink(&ROOT, fs.root(), b"old").await.expect("removed");
    fs.unlink(&ROOT, fs.root(), b"new").await.expect("removed");
    fs.release(opened.handle).await.expect("released");
    // The same goes for what was closed before it was removed, by this mount or another.
    let other = world.mount();
    for remover in [&fs, &other] {
        until(|| fs.dirty_bytes() == 0).await;
        let opened = create(&fs, "closed").await;
        fs.write(opened.handle, 0, Bytes::copy_from_slice(&bytes[..30_000])).await.expect("written");
        assert_eq!(fs.release(opened.handle).await, Err(FsError::NoSpace));
        assert!(fs.dirty_bytes() > 0);
        remover.unlink(&ROOT, fs.root(), b"closed").await.expect("removed");
    }
    // What can not be reached any more takes no room, once puts under way have ended.
    until(|| fs.dirty_bytes() == 0 && world.replicas.state().counts().inodes == 1).await;
    assert!(world.replicas.state().audit().is_ok());

    *world.stores.fail.lock() = None;
    write_file(&fs, "after", &bytes).await;
    assert!(world.read_afresh("after").await == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_wait_for_slow_nodes_in_bounded_memory() {
    let world = World::new();
    let most = 400_000;
    let options = Options { dirty_bytes_max: most, stage_bytes: 50_000, ..Options::default() };
    let fs = Arc::new(world.mount_with(options));
    let bytes = noise(4, 3_000_000);
    world.stores.open.send_replace(false);
    let opened = create(&fs, "file").await;
    let writer = {
        let (fs, bytes) = (fs.clone(), bytes.clone());
        tokio::spawn(async move { write_all(&fs, opened.handle, 0, &bytes).await })
    };
    until(|| fs.dirty_bytes() >= most).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        // One write and one batch may be counted beyond it.
        assert!(fs.dirty_bytes() < 3 * most, "{}", fs.dirty_bytes());
    }
    assert!(!writer.is_finished());
    // What is written can be read though it is nowhere but here.
    assert!(fs.read(opened.handle, 0, 100_000).await.expect("read") == bytes[..100_000]);
    world.stores.open.send_replace(true);
    writer.await.expect("written");
    fs.fsync(opened.handle).await.expect("synced");
    assert_eq!(fs.dirty_bytes(), 0);
    assert!(world.read_afresh("file").await == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_covers_what_was_written_before_it_and_others_write_on() {
    let world = World::new();
    let fs = Arc::new(world.mount());
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, &[1; 50_000]).await;
    world.stores.open.send_replace(false);
    let sync = tokio::spawn({
        let fs = fs.clone();
        async move { fs.fsync(opened.handle).await }
    });
    // The overlay is empty once all of it is sealed; what is written now is for the next fsync.
    until(|| fs.dirty_bytes() > 0 && fs.dirty_bytes() < 40_000).await;
    write_all(&fs, opened.handle, 20_000, &[2; 50_000]).await;
    assert!(!sync.is_finished(), "the nodes have not answered");
    world.stores.open.send_replace(true);
    sync.await.expect("no panic").expect("synced");
    assert!(world.read_afresh("file").await == [1; 50_000]);
    let expected = [&[1; 20_000][..], &[2; 50_000][..]].concat();
    assert!(read_all(&fs, opened.handle).await == expected);
    assert_eq!(fs.getattr(&ROOT, opened.attr.ino).await.expect("there").size, 70_000);
    fs.fsync(opened.handle).await.expect("synced");
    assert!(world.read_afresh("file").await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_of_what_did_not_change_asks_nobody() {
    let world = World::new();
    let fs = world.mount();
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, b"hello").await;
    fs.fsync(opened.handle).await.expect("synced");
    let requests = world.replicas.requests.load(Ordering::SeqCst);
    fs.fsync(opened.handle).await.expect("synced");
    close(&fs, opened.handle).await;
    assert_eq!(world.replicas.requests.load(Ordering::SeqCst), requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_does_not_write_twice() {
    let world = World::new();
    let fs = world.mount();
    let flags = OpenFlags { append: true, ..OpenFlags::writing() };
    let opened = fs.create(&ROOT, fs.root(), b"log", 0o644, flags, false).await.expect("created");
    fs.write(opened.handle, 0, vec![9; 9_000].into()).await.expect("written");
    let mut expected = vec![9; 9_000];
    // The answer to the lock; to the commit, which is tried again, once after the holder had to be made known
    // anew; and to giving the lock back.
    let lost = [(0, false, false), (2, true, true), (1, true, true), (2, true, false)];
    for (round, (spared, written, done)) in lost.into_iter().enumerate() {
        world.replicas.spare_answers.store(spared, Ordering::SeqCst);
        world.replicas.lose_answers.store(1, Ordering::SeqCst);
        let bytes = vec![round as u8; 9_000];
        let told = fs.write(opened.handle, 0, bytes.clone().into()).await;
        assert_eq!(told.is_ok(), done, "{round}: {told:?}");
        if written {
            expected.extend(bytes);
        }
        assert!(world.read_afresh("log").await == expected, "{round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_flush_goes_on() {
    let world = World::new();
    let fs = world.mount();
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, &noise(5, 50_000)).await;
    world.stores.open.send_replace(false);
    {
        let flush = fs.flush(opened.handle);
        tokio::pin!(flush);
        tokio::select! {
            biased;
            _ = &mut flush => panic!("the nodes have not answered"),
            () = until(|| world.stores.are_asked_to_put()) => {}
        }
    }
    world.stores.open.send_replace(true);
    fs.flush(opened.handle).await.expect("flushed");
    assert!(world.read_afresh("file").await == noise(5, 50_000));
    fs.release(opened.handle).await.expect("released");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_flushed_at_close_is_kept_for_later() {
    let world = World::new();
    let fs = world.mount();
    let bytes = noise(6, 50_000);
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, &bytes).await;
    *world.stores.fail.lock() = Some(BlockError::Full);
    assert_eq!(fs.flush(opened.handle).await, Err(FsError::NoSpace));
    assert_eq!(fs.release(opened.handle).await, Err(FsError::NoSpace));
    let reader = fs.open(&ROOT, opened.attr.ino, OpenFlags::reading()).await.expect("opened");
    assert_eq!(reader.attr.size, 50_000);
    assert!(read_all(&fs, reader.handle).await == bytes, "still seen here");
    fs.flush(reader.handle).await.expect("a reader is not told");
    assert_eq!(fs.release(reader.handle).await, Err(FsError::NoSpace));
    assert_eq!(fs.sync_all().await, Err(FsError::NoSpace));
    *world.stores.fail.lock() = None;
    fs.sync_all().await.expect("synced");
    assert!(world.read_afresh("file").await == bytes);
    assert_eq!(fs.dirty_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_an_error_of_flush_and_truncating_helps() {
    let world = World::with(Chunking { min: 4 << 10, average: 8 << 10, max: 16 << 10 }, 50_000);
    let fs = world.mount();
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, &noise(7, 60_000)).await;
    assert_eq!(denied(fs.flush(opened.handle).await), meta::Denied::Quota);
    let size = Some(40_000);
    let change = SetAttr { size, ..SetAttr::default() };
    fs.setattr(&ROOT, opened.attr.ino, &change, Some(opened.handle)).await.expect("shorter");
    close(&fs, opened.handle).await;
    assert!(world.read_afresh("file").await == noise(7, 60_000)[..40_000]);
    let space = fs.statfs(&ROOT).await.expect("asked");
    assert!(space.blocks_free <= 10_000 / 4096 + 1 && space.blocks >= space.blocks_free);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_set_on_a_dirty_file_stay() {
    let world = World::new();
    let fs = world.mount();
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, b"hello").await;
    let shown = fs.getattr(&ROOT, opened.attr.ino).await.expect("there");
    assert!(shown.mtime > opened.attr.mtime && shown.size == 5, "a write shows");
    let mtime = Timestamp { seconds: -5, nanos: 7 };
    let attrs = AttrChange { mtime: Some(SetTime::At(mtime)), ..AttrChange::default() };
    let change = SetAttr { size: None, attrs };
    assert_eq!(fs.setattr(&ROOT, opened.attr.ino, &change, None).await.expect("set").mtime, mtime);
    let requests = world.replicas.requests.load(Ordering::SeqCst);
    close(&fs, opened.handle).await;
    assert_eq!(world.replicas.requests.load(Ordering::SeqCst), requests, "content went with the time");
    assert_eq!(fs.getattr(&ROOT, opened.attr.ino).await.expect("there").mtime, mtime);
    assert_eq!(read_file(&world.mount(), "file").await, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_write_their_own_ranges_and_sync() {
    const TASKS: usize = 12;
    const STRIDE: usize = 3_001;
    const ROUNDS: usize = 20;
    let world = World::new();
    for fs in [world.mount(), world.cramped_mount()] {
        let fs: Arc<Fs> = Arc::new(fs);
        let opened = create(&fs, "file").await;
        let tasks = (0..TASKS).map(|task| {
            let fs = fs.clone();
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let at = ((round * TASKS + task) * STRIDE) as u64;
                    let bytes = noise((round * TASKS + task) as u64, STRIDE);
                    fs.write(opened.handle, at, bytes.clone().into()).await.expect("written");
                    if (round + task) % 5 == 0 {
                        fs.fsync(opened.handle).await.expect("synced");
                    }
                    assert!(fs.read(opened.handle, at, STRIDE as u32).await.expect("read") == bytes);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no panic");
        }
        close(&fs, opened.handle).await;
        let expected: Vec<u8> = (0..TASKS * ROUNDS).flat_map(|index| noise(index as u64, STRIDE)).collect();
        assert!(world.read_afresh("file").await == expected);
        assert_eq!(fs.dirty_bytes(), 0);
        fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_block_is_an_error_and_not_other_bytes() {
    let world = World::new();
    write_file(&world.mount(), "file", &noise(8, 50_000)).await;
    let other = [9; 32];
    let (stores, volume) = (world.stores.clone(), world.volume.clone());
    let wrong = Filesystem::open_volume(world.replicas.clone(), stores, volume, &other, Options::default());
    let wrong = wrong.expect("mounted");
    let entries = wrong.readdir(&ROOT, wrong.root(), 0, 100).await.expect("listed");
    assert!(entries.end && entries.entries.is_empty(), "names of another secret do not open");

    let fs = world.mount();
    let ino = fs.lookup(&ROOT, fs.root(), b"file").await.expect("there").ino;
    let handle = wrong.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened").handle;
    assert!(matches!(wrong.read(handle, 0, 10).await, Err(FsError::Corrupt(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_flushes_is_written_back() {
    let world = World::new();
    let fs = world.mount_with(Options { write_back: Duration::from_millis(20), ..Options::default() });
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, &noise(9, 50_000)).await;
    let size = || async { world.mount().lookup(&ROOT, world.root(), b"file").await.expect("there").size };
    while size().await == 0 {
        tokio::task::yield_now().await;
    }
    assert!(world.read_afresh("file").await == noise(9, 50_000));

    // What could not be committed at close is tried again without anybody asking.
    *world.stores.fail.lock() = Some(BlockError::Full);
    write_all(&fs, opened.handle, 50_000, &noise(10, 10_000)).await;
    assert_eq!(fs.release(opened.handle).await, Err(FsError::NoSpace));
    *world.stores.fail.lock() = None;
    while size().await == 50_000 {
        tokio::task::yield_now().await;
    }
    assert!(world.read_afresh("file").await == [noise(9, 50_000), noise(10, 10_000)].concat());
}
