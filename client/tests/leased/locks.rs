//! Locks and appending, between mounts with leases, without them, and some of each.

use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::ClusterId;
use client::fs::{FileLock, Filesystem, FsError, Handle, LockWait, OpenFlags, Options, Result};
use client::leased::{Leased, SinceBoot};
use meta::{Attr, Denied, Ino, LOCK_END, LockKind, LockMode};

use super::world::{Fs, ROOT, SECRET, World, close, create, denied, noise, read_all, read_file, until, write_file};

const NEVER: Duration = Duration::from_secs(3600);

fn all(owner: u64) -> FileLock {
    let (kind, mode) = (LockKind::Posix, LockMode::Exclusive);
    FileLock { kind, owner, start: 0, end: LOCK_END, mode, pid: 1 }
}

async fn try_lock(fs: &Fs, handle: Handle, lock: FileLock) -> Result<Attr> {
    fs.lock(handle, lock, LockWait::No, pending(), NEVER).await
}

async fn wait_lock(fs: &Fs, handle: Handle, lock: FileLock) -> Result<Attr> {
    fs.lock(handle, lock, LockWait::Yes, pending(), NEVER).await
}

/// A mount without leases.
fn ordered(world: &World) -> Fs {
    let (stores, volume) = (world.stores.clone(), world.volume.clone());
    Filesystem::open_volume(world.names(false), stores, volume, &SECRET, Options::default()).expect("mounted")
}

/// A mount on a machine with this clock.
fn mount_by(world: &World, leased: bool, clock: SinceBoot) -> Fs {
    let (replicas, cluster) = (world.replicas.clone(), ClusterId([1; 16]));
    let me = (replicas.key, 77);
    let names = Leased::with_clock(replicas, cluster, me, leased.then_some(world.volume.root), clock);
    Filesystem::open_volume(names, world.stores.clone(), world.volume.clone(), &SECRET, Options::default())
        .expect("mounted")
}

/// A clock, and by how many seconds it is ahead.
fn late_clock() -> (Arc<AtomicU64>, SinceBoot) {
    let late = Arc::new(AtomicU64::new(0));
    let (ahead, began) = (late.clone(), Instant::now());
    (late, Arc::new(move || began.elapsed() + Duration::from_secs(ahead.load(Ordering::SeqCst))))
}

async fn open(fs: &Fs, ino: Ino) -> Handle {
    fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle
}

async fn count_under_lock(fs: &Fs, ino: Ino, owner: u64, rounds: usize) {
    let handle = open(fs, ino).await;
    for _ in 0..rounds {
        wait_lock(fs, handle, all(owner)).await.expect("locked");
        let text = read_all(fs, handle).await;
        let count: usize = String::from_utf8(text).expect("digits").parse().expect("digits");
        fs.write(handle, 0, format!("{:06}", count + 1).into()).await.expect("written");
        fs.unlock(handle, all(owner)).await.expect("unlocked");
    }
    close(fs, handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_the_lock_sees_what_was_written_under_it() {
    let world = World::new();
    let mounts = [world.mount(), world.mount(), ordered(&world)].map(Arc::new);
    let ino = write_file(&mounts[0], "count", b"000000").await.ino;
    let counting = (0..6u64).map(|owner| {
        let fs = mounts[owner as usize % 3].clone();
        tokio::spawn(async move { count_under_lock(&fs, ino, owner, 20).await })
    });
    for counted in futures::future::join_all(counting).await {
        counted.expect("no panic");
    }
    assert_eq!(world.read_afresh("count").await, b"000120");
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_lease_locks_ask_nobody() {
    let world = World::new();
    let fs = world.mount();
    let ino = write_file(&fs, "file", b"x").await.ino;
    let handle = open(&fs, ino).await;
    let before = world.replicas.requests.load(Ordering::SeqCst);
    for owner in 0..500 {
        try_lock(&fs, handle, all(owner)).await.expect("locked");
        assert_eq!(denied(try_lock(&fs, handle, all(owner + 1)).await), Denied::Locked);
        fs.unlock(handle, all(owner)).await.expect("unlocked");
    }
    let asked = world.replicas.requests.load(Ordering::SeqCst) - before;
    assert!(asked <= 5, "{asked} requests for 500 locks");
    // And yet others see what is locked.
    try_lock(&fs, handle, all(1)).await.expect("locked");
    let other = world.mount();
    let there = open(&other, ino).await;
    assert_eq!(denied(try_lock(&other, there, all(1)).await), Denied::Locked);
    let seen = other.get_lock(there, all(1)).await.expect("asked").expect("locked");
    assert_eq!((seen.mode, seen.start, seen.end, seen.pid), (LockMode::Exclusive, 0, LOCK_END, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_with_the_lock_or_an_interrupt_and_leaves_nothing_behind() {
    let world = World::new();
    let (one, two) = (Arc::new(world.mount()), Arc::new(world.mount()));
    let ino = write_file(&one, "file", b"x").await.ino;
    let (here, there) = (open(&one, ino).await, open(&two, ino).await);
    try_lock(&one, here, all(1)).await.expect("locked");
    let interrupted = two.lock(there, all(1), LockWait::Yes, ready(()), NEVER).await;
    assert_eq!(interrupted, Err(FsError::Interrupted));
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { wait_lock(&two, there, all(2)).await }
    });
    one.unlock(here, all(1)).await.expect("unlocked");
    waiting.await.expect("no panic").expect("locked");
    // A handle that goes takes with it what was locked for it; a process only its own.
    two.close_locks(there, 1).await.expect("nothing to do");
    assert_eq!(denied(try_lock(&one, here, all(1)).await), Denied::Locked);
    two.close_locks(there, 2).await.expect("unlocked");
    try_lock(&one, here, all(1)).await.expect("locked");
    one.release(here).await.expect("released");
    try_lock(&two, there, all(2)).await.expect("locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_wait_for_each_other_are_told_apart() {
    let world = World::new();
    let (one, two) = (Arc::new(world.mount()), Arc::new(world.mount()));
    let inos = [write_file(&one, "a", b"a").await.ino, write_file(&one, "b", b"b").await.ino];
    let (here, there) = (
        [open(&one, inos[0]).await, open(&one, inos[1]).await],
        [open(&two, inos[0]).await, open(&two, inos[1]).await],
    );
    try_lock(&one, here[0], all(1)).await.expect("locked");
    try_lock(&two, there[1], all(1)).await.expect("locked");
    let first = async {
        let done = wait_lock(&one, here[1], all(1)).await;
        one.unlock(here[0], all(1)).await.expect("unlocked");
        done.map(drop)
    };
    let second = async {
        let done = wait_lock(&two, there[0], all(1)).await;
        two.unlock(there[1], all(1)).await.expect("unlocked");
        done.map(drop)
    };
    let done = tokio::join!(first, second);
    assert!(matches!(done, (Ok(()), Err(FsError::Deadlock)) | (Err(FsError::Deadlock), Ok(()))), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_its_locks_writes_nothing_until_it_closes() {
    for leased in [true, false] {
        let world = World::new();
        let one = if leased { world.mount() } else { ordered(&world) };
        let ino = write_file(&one, "file", b"before").await.ino;
        let handle = open(&one, ino).await;
        try_lock(&one, handle, all(1)).await.expect("locked");
        fs_write(&one, handle, b"mine!!").await.expect("written");
        // It is silent; somebody else takes the lock, writes, and gives it back.
        world.replicas.pass(Duration::from_secs(100));
        others_write(&world, ino).await;

        if leased {
            // This machine's clock did not go on with agreed time, so it has to ask to know.
            assert!(one.sync_names().await.is_err(), "the lock itself was never sent");
        }
        assert_eq!(denied(one.flush(handle).await), Denied::Fenced, "leases: {leased}");
        assert_eq!(denied(fs_write(&one, handle, b"again").await), Denied::Fenced);
        assert_eq!(denied(one.read(handle, 0, 6).await), Denied::Fenced, "what it had to itself is older than theirs");
        assert_eq!(denied(one.unlock(handle, all(1)).await), Denied::Fenced);
        assert_eq!(denied(try_lock(&one, handle, all(1)).await), Denied::Fenced);
        let _ = one.release(handle).await;
        assert_eq!(read_file(&one, "file").await, b"theirs");
        let handle = open(&one, ino).await;
        try_lock(&one, handle, all(1)).await.expect("locked");
        fs_write(&one, handle, b"anew!!").await.expect("written");
        close(&one, handle).await;
        assert_eq!(world.read_afresh("file").await, b"anew!!");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_under_a_lock_is_told_if_it_is_lost() {
    for leased in [true, false] {
        let world = World::new();
        let (late, clock) = late_clock();
        let one = mount_by(&world, leased, clock);
        let ino = write_file(&one, "file", b"before").await.ino;
        let handle = open(&one, ino).await;
        try_lock(&one, handle, all(1)).await.expect("locked");
        one.sync_names().await.expect("sent");
        assert_eq!(one.read(handle, 0, 6).await.expect("locked").as_ref(), b"before");
        // It stands still with its lock; somebody else takes that, writes, and gives it back.
        world.replicas.pass(Duration::from_secs(100));
        others_write(&world, ino).await;
        late.store(100, Ordering::SeqCst);
        assert_eq!(denied(one.read(handle, 0, 6).await), Denied::Fenced, "leases: {leased}");
        let other = open(&one, ino).await;
        assert_eq!(one.read(other, 0, 6).await.expect("has no locks").as_ref(), b"theirs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_was_lost_before_its_answer_was_read_is_none() {
    for leased in [true, false] {
        let world = World::new();
        let (late, clock) = late_clock();
        let one = Arc::new(mount_by(&world, leased, clock));
        let inos = [write_file(&one, "file", b"before").await.ino, write_file(&one, "other", b"").await.ino];
        one.sync_all().await.expect("synced");
        // Two who work there, so that nobody has a lease.
        let two = ordered(&world);
        two.lookup(&ROOT, two.root(), b"file").await.expect("found");
        let [handle, other] = [open(&one, inos[0]).await, open(&one, inos[1]).await];
        try_lock(&one, other, all(1)).await.expect("locked");
        world.replicas.held_answers.store(1, Ordering::SeqCst);
        let asking = one.clone();
        let asked = tokio::spawn(async move { try_lock(&asking, handle, all(2)).await });
        until(|| world.replicas.held_answers.load(Ordering::SeqCst) == 0).await;
        // It stands still, and others have the lock. When it goes on it hears first that all is over.
        world.replicas.pass(Duration::from_secs(100));
        others_write(&world, inos[0]).await;
        late.store(100, Ordering::SeqCst);
        assert_eq!(denied(one.need_locks(other).await), Denied::Fenced, "leases: {leased}");
        world.replicas.answering.send_replace(true);
        assert_eq!(denied(asked.await.expect("no panic")), Denied::Fenced, "leases: {leased}");
    }
}

/// Somebody else takes the lock on a file, writes to it, and gives the lock back.
async fn others_write(world: &World, ino: Ino) {
    let two = ordered(world);
    let there = open(&two, ino).await;
    try_lock(&two, there, all(1)).await.expect("locked");
    fs_write(&two, there, b"theirs").await.expect("written");
    two.unlock(there, all(1)).await.expect("unlocked");
}

async fn fs_write(fs: &Fs, handle: Handle, bytes: &'static [u8]) -> Result<u32> {
    fs.write(handle, 0, bytes.into()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_mounts_append_stands_one_after_the_other() {
    let world = World::new();
    let mounts = [world.mount(), world.mount(), ordered(&world)].map(Arc::new);
    let ino = write_file(&mounts[0], "log", b"").await.ino;
    let appending = (0..6u64).map(|who| {
        let fs = mounts[who as usize % 3].clone();
        tokio::spawn(async move {
            let flags = OpenFlags { append: true, ..OpenFlags::writing() };
            let handle = fs.open(&ROOT, ino, flags).await.expect("opened").handle;
            for index in 0..15 {
                let line = [&[who as u8, index][..], &noise(who, 700)].concat();
                fs.write(handle, 0, line.into()).await.expect("appended");
            }
            close(&fs, handle).await;
        })
    });
    for appended in futures::future::join_all(appending).await {
        appended.expect("no panic");
    }
    let log = world.read_afresh("log").await;
    assert_eq!(log.len(), 6 * 15 * 702);
    let mut next = [0; 6];
    for line in log.chunks(702) {
        let who = usize::from(line[0]);
        assert_eq!(line[1], next[who], "in order");
        assert!(line[2..] == noise(who as u64, 700), "whole");
        next[who] += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_end_gives_locks_back() {
    let world = World::new();
    for leased in [true, false] {
        let fs = if leased { world.mount() } else { ordered(&world) };
        let ino = create(&fs, "file").await.attr.ino;
        let handle = open(&fs, ino).await;
        try_lock(&fs, handle, all(1)).await.expect("locked");
        fs.close().await.expect("closed");
        let next = world.mount();
        let there = open(&next, ino).await;
        try_lock(&next, there, all(1)).await.expect("nobody has it");
        next.close().await.expect("closed");
    }
}
