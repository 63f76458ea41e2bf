//! What leases change: when replicas hear of something.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::backend::BlockError;
use client::fs::{FsError, OpenFlags, SetAttr};
use meta::{AttrChange, Denied, RenameHow};

use super::world::{Fs, ROOT, World, close, create, noise, options, read_all, read_file, until, write_all, write_file};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_mount_alone_asks_replicas_next_to_nothing() {
    let world = World::new();
    let fs = world.mount();
    fs.mkdir(&ROOT, fs.root(), b"first", 0o755).await.expect("made");
    let before = world.replicas.requests.load(Ordering::SeqCst);
    let directory = fs.mkdir(&ROOT, fs.root(), b"d", 0o755).await.expect("made").ino;
    for index in 0..500 {
        let name = format!("f{index}");
        let made = create(&fs, &name).await;
        write_all(&fs, made.handle, 0, &noise(index, 3_000)).await;
        fs.flush(made.handle).await.expect("flushed");
        fs.release(made.handle).await.expect("released");
        let (from, to) = ((fs.root(), name.as_bytes()), (directory, name.as_bytes()));
        fs.rename(&ROOT, from, to, RenameHow::Replace).await.expect("renamed");
    }
    let asked = world.replicas.requests.load(Ordering::SeqCst) - before;
    assert!(asked <= 20, "{asked} requests for 500 files");
    fs.sync_all().await.expect("sent");
    let there = world.mount();
    assert_eq!(there.getattr(&ROOT, directory).await.expect("there").size, 500);
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mount_sees_at_once_what_was_never_synced() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    for round in 0..20u64 {
        let name = format!("f{round}");
        let made = create(&one, &name).await;
        write_all(&one, made.handle, 0, &noise(round, 40_000)).await;
        one.flush(made.handle).await.expect("flushed");
        one.release(made.handle).await.expect("released");
        assert!(read_file(&two, &name).await == noise(round, 40_000));
        two.unlink(&ROOT, two.root(), name.as_bytes()).await.expect("removed");
        assert!(one.lookup(&ROOT, one.root(), name.as_bytes()).await.is_err(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_elsewhere_waits_for_nothing_that_is_not_sent() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    let own = one.mkdir(&ROOT, one.root(), b"own", 0o755).await.expect("made").ino;
    // The root is everybody's from here on.
    two.mkdir(&ROOT, two.root(), b"theirs", 0o755).await.expect("made");
    world.stores.open.send_replace(false);
    let flags = OpenFlags::writing();
    let made = one.create(&ROOT, own, b"file", 0o644, flags, true).await.expect("it is this mount's alone");
    write_all(&one, made.handle, 0, &noise(1, 30_000)).await;
    one.flush(made.handle).await.expect("flushed");
    let looked = async {
        one.lookup(&ROOT, one.root(), b"theirs").await.expect("there");
        let listed = one.readdir(&ROOT, one.root(), 0, 10).await.expect("listed").entries;
        listed.into_iter().map(|entry| (entry.name, entry.attr.size)).collect::<Vec<_>>()
    };
    let looked = tokio::time::timeout(Duration::from_secs(20), looked).await.expect("nothing to wait for");
    // What is known here of its own directory is newer than what replicas know.
    assert_eq!(looked, [(b"own".to_vec(), 1), (b"theirs".to_vec(), 0)]);
    assert_eq!(two.getattr(&ROOT, two.root()).await.expect("there").size, 2);
    world.stores.open.send_replace(true);
    one.unlink(&ROOT, own, b"file").await.expect("removed");
    one.rmdir(&ROOT, one.root(), b"own").await.expect("removed");
    assert!(one.getattr(&ROOT, own).await.is_err() && two.getattr(&ROOT, own).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_synced_is_there_after_a_crash_and_what_was_not_is_missing_from_the_end() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "synced", &noise(1, 30_000)).await;
    for index in 0..5 {
        let made = create(&fs, &format!("later{index}")).await;
        write_all(&fs, made.handle, 0, &noise(index, 5_000)).await;
        fs.flush(made.handle).await.expect("flushed");
        fs.release(made.handle).await.expect("released");
    }
    // What replicas have is what a crash leaves.
    let left = world.replicas.state().counts();
    assert_eq!(left.inodes, 2, "the root and the one that was synced");
    std::mem::forget(fs);
    world.replicas.pass(Duration::from_secs(100));
    let next = world.mount();
    assert!(read_file(&next, "synced").await == noise(1, 30_000));
    write_file(&next, "next", b"mine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_nodes_are_told_by_fsync_and_nothing_is_named_that_is_not_stored() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "first", b"small").await;
    *world.stores.fail.lock() = Some(BlockError::Full);
    let made = create(&fs, "file").await;
    write_all(&fs, made.handle, 0, &noise(1, 60_000)).await;
    fs.flush(made.handle).await.expect("only written here");
    assert_eq!(fs.fsync(made.handle).await, Err(FsError::NoSpace));
    assert_eq!(fs.sync_names().await, Err(FsError::NoSpace));
    *world.stores.fail.lock() = None;
    fs.fsync(made.handle).await.expect("there is room again");
    close(&fs, made.handle).await;
    assert!(world.read_afresh("file").await == noise(1, 60_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_what_can_not_be_stored_lets_the_rest_through() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "first", b"small").await;
    let old = write_file(&fs, "old", b"there for longer").await.ino;
    fs.sync_names().await.expect("replicas know of it");
    *world.stores.fail.lock() = Some(BlockError::Full);
    let made = create(&fs, "file").await;
    let old = fs.open(&ROOT, old, OpenFlags::writing()).await.expect("opened");
    for opened in [made.handle, old.handle] {
        write_all(&fs, opened, 0, &noise(opened.0, 60_000)).await;
        fs.flush(opened).await.expect("only written here");
        fs.release(opened).await.expect("released");
    }
    fs.mkdir(&ROOT, fs.root(), b"later", 0o755).await.expect("made");
    assert_eq!(fs.sync_names().await, Err(FsError::NoSpace));
    fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    assert_eq!(fs.sync_names().await, Err(FsError::NoSpace));
    fs.unlink(&ROOT, fs.root(), b"old").await.expect("removed");
    while fs.sync_names().await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.replicas.state().counts().inodes, 3, "the root, what was there, and what came later");
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_soon_is_never_sent() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "first", b"small").await;
    let before = world.stores.ids();
    let write = async |name: &str, seed: u64| {
        let made = create(&fs, name).await;
        write_all(&fs, made.handle, 0, &noise(seed, 60_000)).await;
        fs.flush(made.handle).await.expect("only written here");
        fs.release(made.handle).await.expect("released");
    };
    for round in 0..50 {
        write("draft", round).await;
        fs.rename(&ROOT, (fs.root(), b"draft"), (fs.root(), b"saved"), RenameHow::Replace).await.expect("renamed");
    }
    write("lock", 50).await;
    fs.unlink(&ROOT, fs.root(), b"lock").await.expect("removed");
    assert_eq!(world.stores.ids(), before, "nobody waits for any of it");

    // Files without a name are let go in the background.
    for _ in 0..100 {
        tokio::time::advance(Duration::from_millis(5)).await;
    }
    fs.sync_names().await.expect("synced");
    assert!(world.read_afresh("saved").await == noise(49, 60_000));
    let sent = world.stores.ids().len() - before.len();
    assert!(sent <= 60, "one version, and not 50: {sent} blocks");
    assert_eq!(fs.dirty_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_do_nothing_twice() {
    let world = World::new();
    let fs = world.mount_with(options());
    write_file(&fs, "first", b"small").await;
    for index in 0..10 {
        create(&fs, &format!("f{index}")).await;
        world.replicas.lose_answers.store(1, Ordering::SeqCst);
        assert!(fs.sync_names().await.is_err(), "the answer was lost");
        create(&fs, &format!("g{index}")).await;
        fs.sync_names().await.expect("sent again, and done once");
    }
    assert_eq!(world.replicas.state().counts().inodes, 22);
    assert_eq!(fs.getattr(&ROOT, fs.root()).await.expect("there").size, 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_cut_off_is_told_and_goes_on() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "first", b"small").await;
    create(&fs, "lost").await;
    // Somebody else waited the lease out.
    world.replicas.pass(Duration::from_secs(100));
    let other = world.replicas.ask(meta::Op::GetAttr { ino: world.root() });
    assert!(matches!(other, meta::Reply::Attr(_)));
    let told = fs.sync_names().await;
    assert!(matches!(&told, Err(FsError::Unavailable(why)) if why.contains("lost")), "{told:?}");
    fs.sync_names().await.expect("told once");
    write_file(&fs, "next", b"goes on").await;
    assert!(fs.lookup(&ROOT, fs.root(), b"lost").await.is_err());
    assert!(world.read_afresh("next").await == b"goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_change_whose_answer_was_lost_is_not_forgotten() {
    let world = World::new();
    let (fs, other) = (world.mount(), world.mount());
    // Both used the root, so it is open: what they do there is ordered.
    write_file(&fs, "a", b"a").await;
    write_file(&other, "b", b"b").await;
    for index in 0..5 {
        world.replicas.lose_answers.store(1, Ordering::SeqCst);
        let name = format!("d{index}");
        // What was lost may be the answer to this, or to asking for a lease before it.
        assert!(fs.mkdir(&ROOT, fs.root(), name.as_bytes(), 0o755).await.is_err(), "nobody knows");
        if let Ok(made) = fs.lookup(&ROOT, fs.root(), name.as_bytes()).await {
            fs.mkdir(&ROOT, made.ino, b"in it", 0o755).await.expect("made");
        }
    }
    fs.sync_all().await.expect("sent");
    let names = |listed: client::fs::Entries| listed.entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    let here = names(fs.readdir(&ROOT, fs.root(), 0, 100).await.expect("listed"));
    assert_eq!(here, names(other.readdir(&ROOT, other.root(), 0, 100).await.expect("listed")));
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

/// Takes turns by making a directory, which only one can; counts in a file meanwhile.
async fn count_in_turns(fs: &Fs, place: &str, rounds: usize) {
    let home = fs.lookup(&ROOT, fs.root(), place.as_bytes()).await.expect("there").ino;
    for _ in 0..rounds {
        while denied_or_done(fs.mkdir(&ROOT, home, b"lock", 0o755).await) == Some(Denied::Exists) {
            tokio::task::yield_now().await;
        }
        let flags = OpenFlags::writing();
        let file = fs.create(&ROOT, home, b"count", 0o644, flags, false).await.expect("opened").handle;
        let text = read_all(fs, file).await;
        let count: usize = String::from_utf8(text).expect("digits").trim().parse().unwrap_or(0);
        fs.write(file, 0, format!("{:06}", count + 1).into()).await.expect("written");
        fs.flush(file).await.expect("flushed");
        fs.release(file).await.expect("released");
        fs.rmdir(&ROOT, home, b"lock").await.expect("mine");
    }
}

fn denied_or_done<T: std::fmt::Debug>(result: Result<T, FsError>) -> Option<Denied> {
    match result {
        Ok(_) => None,
        Err(FsError::Denied(why)) => Some(why),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_makes_the_lock_is_alone() {
    let world = World::new();
    let mounts: Vec<Arc<Fs>> = (0..3).map(|_| Arc::new(world.mount())).collect();
    for place in ["one", "two"] {
        mounts[0].mkdir(&ROOT, mounts[0].root(), place.as_bytes(), 0o755).await.expect("made");
    }
    let counting = mounts.iter().cycle().take(9).enumerate().map(|(index, fs)| {
        let (fs, place) = (fs.clone(), if index % 2 == 0 { "one" } else { "two" });
        tokio::spawn(async move { count_in_turns(&fs, place, 30).await })
    });
    for counted in futures::future::join_all(counting).await {
        counted.expect("no panic");
    }
    for fs in &mounts {
        fs.sync_all().await.expect("sent");
    }
    let fresh = world.mount();
    for (place, expected) in [("one", "000150"), ("two", "000120")] {
        let home = fresh.lookup(&ROOT, fresh.root(), place.as_bytes()).await.expect("there").ino;
        let ino = fresh.lookup(&ROOT, home, b"count").await.expect("there").ino;
        let file = fresh.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened").handle;
        assert_eq!(String::from_utf8(read_all(&fresh, file).await).expect("digits"), expected);
    }
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_made_without_a_name_and_named_later_ask_replicas_next_to_nothing() {
    let world = World::new();
    let fs = world.mount();
    create(&fs, "first").await;
    let before = world.replicas.requests.load(Ordering::SeqCst);
    for index in 0..200u64 {
        let made = fs.create_unnamed(&ROOT, fs.root(), 0o600, OpenFlags::writing()).await.expect("made");
        write_all(&fs, made.handle, 0, &noise(index, 3_000)).await;
        fs.flush(made.handle).await.expect("flushed");
        if index % 2 == 0 {
            fs.link(&ROOT, made.attr.ino, fs.root(), format!("f{index}").as_bytes()).await.expect("linked");
        }
        fs.release(made.handle).await.expect("released");
    }
    let asked = world.replicas.requests.load(Ordering::SeqCst) - before;
    assert!(asked <= 10, "{asked} requests for 200 files");
    fs.sync_all().await.expect("sent");
    assert!(read_file(&world.mount(), "f198").await == noise(198, 3_000));
    let counts = world.replicas.state().counts();
    assert_eq!((counts.inodes, counts.orphans), (102, 0));
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn while_nobody_answers_nobody_waits_for_the_others_minutes() {
    let world = World::new();
    let (fs, other) = (world.mount(), world.mount());
    write_file(&fs, "a", b"a").await;
    write_file(&other, "b", b"b").await;
    let own = fs.mkdir(&ROOT, fs.root(), b"own", 0o755).await.expect("made").ino;
    fs.mkdir(&ROOT, own, b"mine", 0o755).await.expect("made");

    world.replicas.away.store(60, Ordering::SeqCst);
    let began = tokio::time::Instant::now();
    let (shared, count) = (fs.root(), 20);
    let tries = (0..count).map(|index| {
        let (fs, name) = (&fs, format!("d{index}"));
        async move { fs.mkdir(&ROOT, shared, name.as_bytes(), 0o755).await }
    });
    assert!(futures::future::join_all(tries).await.iter().all(Result::is_err));
    let waited = began.elapsed().as_secs();
    assert!((60..=130).contains(&waited), "{count} waited {waited} s together");

    // While the next ones ask, what is leased goes on.
    let began = tokio::time::Instant::now();
    let blocked = async { fs.mkdir(&ROOT, shared, b"later", 0o755).await };
    let here = async { fs.mkdir(&ROOT, own, b"still", 0o755).await.map(|_| began.elapsed().as_secs()) };
    let (blocked, here) = tokio::join!(blocked, here);
    assert!(blocked.is_err());
    assert_eq!(here, Ok(0), "it asked nobody");

    world.replicas.away.store(0, Ordering::SeqCst);
    fs.mkdir(&ROOT, fs.root(), b"back", 0o755).await.expect("answered again");
    fs.sync_names().await.expect("sent");
    assert!(other.lookup(&ROOT, other.root(), b"back").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_programs_see_of_a_file_they_write_is_what_it_keeps() {
    for len in [100, 30_000] {
        let world = World::new();
        let fs = world.mount();
        let file = create(&fs, &format!("file {len}")).await;
        let ino = file.attr.ino;
        write_all(&fs, file.handle, 0, &noise(1, len)).await;
        let seen = fs.getattr(&ROOT, ino).await.expect("there");
        assert!(seen.mtime > file.attr.mtime && seen.ctime == seen.mtime);
        fs.fsync(file.handle).await.expect("synced");
        close(&fs, file.handle).await;
        let kept = fs.getattr(&ROOT, ino).await.expect("there");
        assert_eq!((seen.mtime, seen.ctime, seen.size), (kept.mtime, kept.ctime, kept.size));

        // What is done between writing and committing is later.
        let handle = fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle;
        write_all(&fs, handle, 0, b"again").await;
        let written = fs.getattr(&ROOT, ino).await.expect("there");
        let change = SetAttr { size: None, attrs: AttrChange { mode: Some(0o600), ..AttrChange::default() } };
        let changed = fs.setattr(&ROOT, ino, &change, None).await.expect("changed");
        assert!(changed.ctime > written.ctime && changed.mtime == written.mtime);
        close(&fs, handle).await;
        fs.sync_all().await.expect("synced");
        let kept = world.mount().getattr(&ROOT, ino).await.expect("there");
        assert_eq!((kept.mtime, kept.ctime), (written.mtime, changed.ctime));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_walks_through_a_tree_asks_for_many_directories_at_a_time() {
    let world = World::new();
    let fs = world.mount();
    for outer in 0..10 {
        let outer = fs.mkdir(&ROOT, fs.root(), format!("o{outer}").as_bytes(), 0o755).await.expect("made").ino;
        for inner in 0..20 {
            let inner = fs.mkdir(&ROOT, outer, format!("i{inner}").as_bytes(), 0o755).await.expect("made").ino;
            fs.mkdir(&ROOT, inner, b"leaf", 0o755).await.expect("made");
        }
    }
    fs.close().await.expect("closed");

    // One path takes a request for each of its directories, and one for the lease.
    let fs = world.mount();
    let before = world.replicas.requests.load(Ordering::SeqCst);
    let asked = || world.replicas.requests.load(Ordering::SeqCst) - before;
    look(&fs, 4, 7).await;
    let first = asked();
    assert!(first <= 6, "{first} requests for one path");
    for (outer, inner) in (0..10).flat_map(|outer| (0..20).map(move |inner| (outer, inner))) {
        look(&fs, outer, inner).await;
    }
    let all = asked() - first;
    assert!(all <= 30, "{all} requests for 200 directories");
}

async fn look(fs: &Fs, outer: u32, inner: u32) {
    let outer = fs.lookup(&ROOT, fs.root(), format!("o{outer}").as_bytes()).await.expect("there").ino;
    let inner = fs.lookup(&ROOT, outer, format!("i{inner}").as_bytes()).await.expect("there").ino;
    fs.lookup(&ROOT, inner, b"leaf").await.expect("there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_small_files_in_order_finds_the_next_ones_at_hand() {
    let world = World::new();
    let fs = world.mount();
    for index in 0..100 {
        write_file(&fs, &format!("f{index:02}"), &noise(index, 3_000)).await;
    }
    fs.close().await.expect("closed");
    let gets = || world.stores.gets.load(Ordering::SeqCst);
    let started = gets();

    let fs = world.mount();
    for index in [40, 3, 77, 12, 60, 31] {
        assert!(read_file(&fs, &format!("f{index:02}")).await == noise(index, 3_000));
    }
    let six = gets() - started;
    assert!(six <= 12, "{six} blocks, and nobody reads in order");
    let fs = world.mount();
    let started = gets();
    for index in 0..10 {
        assert!(read_file(&fs, &format!("f{index:02}")).await == noise(index, 3_000));
    }
    // The tenth is read, and so many are on their way or here.
    until(|| gets() - started >= six * 6).await;
    for index in 10..100 {
        assert!(read_file(&fs, &format!("f{index:02}")).await == noise(index, 3_000));
    }
    assert_eq!(gets() - started, world.stores.ids().len(), "each block once");
}
