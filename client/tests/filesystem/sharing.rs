//! Two mounts of one volume.

use bytes::Bytes;
use client::fs::{FsError, OpenFlags, Options, SetAttr};
use meta::{Denied, RenameHow};

use super::world::{ROOT, World, close, create, denied, noise, read_all, read_file, until, write_all, write_file};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_after_a_close_sees_what_was_written() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    let attr = write_file(&one, "file", &noise(1, 50_000)).await;
    let held = two.open(&ROOT, attr.ino, OpenFlags::reading()).await.expect("opened").handle;
    assert!(read_all(&two, held).await == noise(1, 50_000));
    for round in 2..5 {
        let bytes = noise(round, 30_000 * round as usize);
        write_file(&one, "file", &bytes).await;
        let size = Some(bytes.len() as u64);
        one.setattr(&ROOT, attr.ino, &SetAttr { size, ..SetAttr::default() }, None).await.expect("set");
        assert!(read_file(&two, "file").await == bytes);
        // A handle that was open all the while follows once it is known that there is news.
        assert_eq!(two.getattr(&ROOT, attr.ino).await.expect("there").size, bytes.len() as u64);
        assert!(read_all(&two, held).await == bytes);
    }
    one.unlink(&ROOT, one.root(), b"file").await.expect("removed");
    until(|| world.replicas.state().counts().inodes == 1).await;
    assert_eq!(denied(world.mount().getattr(&ROOT, attr.ino).await), Denied::Stale);
    // Whoever has it open reads on: the kernel asks for its attributes before.
    let gone = two.getattr(&ROOT, attr.ino).await.expect("open");
    assert_eq!((gone.nlink, gone.size), (0, 120_000));
    assert!(read_all(&two, held).await == noise(4, 120_000), "as it was");
    two.release(held).await.expect("released");
    assert_eq!(denied(two.getattr(&ROOT, attr.ino).await), Denied::Stale);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_different_parts_both_prevail() {
    let world = World::new();
    for (one, two) in [(world.mount(), world.mount()), (world.cramped_mount(), world.cramped_mount())] {
        let mut expected = noise(0, 200_000);
        let attr = write_file(&one, "file", &expected).await;
        let first = one.open(&ROOT, attr.ino, OpenFlags::writing()).await.expect("opened").handle;
        let second = two.open(&ROOT, attr.ino, OpenFlags::writing()).await.expect("opened").handle;
        for index in 0..40usize {
            // Every chunk has bytes of both; sizes are no multiple of anything.
            let (at, len) = (index * 5_100, if index % 4 < 2 { 777 } else { 5_000 });
            let bytes = noise(index as u64 + 1, len);
            let (fs, handle) = if index % 2 == 0 { (&one, first) } else { (&two, second) };
            fs.write(handle, at as u64, bytes.clone().into()).await.expect("written");
            if expected.len() < at + len {
                expected.resize(at + len, 0);
            }
            expected[at..at + len].copy_from_slice(&bytes);
            if index % 7 == 0 {
                fs.fsync(handle).await.expect("synced");
            }
        }
        close(&one, first).await;
        close(&two, second).await;
        assert!(world.read_afresh("file").await == expected);
        assert_eq!((one.dirty_bytes(), two.dirty_bytes()), (0, 0));
        one.unlink(&ROOT, one.root(), b"file").await.expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncation_and_a_write_meet() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    let before = noise(1, 100_000);
    for (size, at, expected_len) in [(30_000u64, 10_000u64, 30_000usize), (30_000, 60_000, 61_000), (0, 5_000, 6_000)] {
        let attr = write_file(&one, "file", &before).await;
        let writer = two.open(&ROOT, attr.ino, OpenFlags::writing()).await.expect("opened").handle;
        two.write(writer, at, vec![7; 1_000].into()).await.expect("written");
        // The truncation is committed first; what the writer wrote comes on top.
        one.setattr(&ROOT, attr.ino, &SetAttr { size: Some(size), ..SetAttr::default() }, None).await.expect("cut");
        close(&two, writer).await;
        let mut expected = before[..size as usize].to_vec();
        expected.resize(expected_len, 0);
        expected[at as usize..at as usize + 1_000].fill(7);
        assert!(world.read_afresh("file").await == expected, "cut to {size}, written at {at}");

        // The other way round: the truncation is merged into what was written.
        let attr = write_file(&one, "other", &before).await;
        let cutter = one.open(&ROOT, attr.ino, OpenFlags::writing()).await.expect("opened").handle;
        let change = SetAttr { size: Some(size), ..SetAttr::default() };
        one.setattr(&ROOT, attr.ino, &change, Some(cutter)).await.expect("cut");
        let writer = two.open(&ROOT, attr.ino, OpenFlags::writing()).await.expect("opened").handle;
        two.write(writer, 0, vec![8; 1_000].into()).await.expect("written");
        two.write(writer, 150_000, vec![9; 10].into()).await.expect("written");
        close(&two, writer).await;
        close(&one, cutter).await;
        let mut expected = [&[8; 1_000][..], &before[1_000..]].concat();
        expected.truncate(size as usize);
        assert!(world.read_afresh("other").await == expected, "cut to {size} last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_others_removed_takes_no_more_writes() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    let opened = create(&one, "file").await;
    two.unlink(&ROOT, two.root(), b"file").await.expect("removed");
    until(|| world.replicas.state().counts().inodes == 1).await;
    one.write(opened.handle, 0, Bytes::from_static(b"lost")).await.expect("written");
    assert_eq!(denied(one.flush(opened.handle).await), Denied::Stale);
    assert_eq!(denied(one.release(opened.handle).await), Denied::Stale);
    one.sync_all().await.expect("nothing is left to sync");
    assert_eq!(one.dirty_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_to_truncate_drops_what_was_not_committed() {
    let world = World::new();
    let fs = world.cramped_mount();
    let opened = create(&fs, "file").await;
    write_all(&fs, opened.handle, 0, &noise(1, 100_000)).await;
    let flags = OpenFlags { truncate: true, ..OpenFlags::writing() };
    let again = fs.open(&ROOT, opened.attr.ino, flags).await.expect("opened");
    assert_eq!(again.attr.size, 0);
    assert_eq!(fs.read(opened.handle, 0, 10).await, Ok(Bytes::new()));
    fs.write(again.handle, 3, Bytes::from_static(b"new")).await.expect("written");
    close(&fs, opened.handle).await;
    close(&fs, again.handle).await;
    assert_eq!(world.read_afresh("file").await, b"\0\0\0new");
    until(|| fs.dirty_bytes() == 0).await;
    let needs_write = OpenFlags { truncate: true, ..OpenFlags::reading() };
    assert_eq!(fs.open(&ROOT, opened.attr.ino, needs_write).await, Err(FsError::Invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creator_writes_to_a_file_nobody_may_write_to() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    let user = meta::Caller { uid: 1000, gid: 1000, groups: Vec::new() };
    let flags = OpenFlags::writing();
    let opened = one.create(&user, one.root(), b"readonly", 0o444, flags, true).await.expect("created");
    one.write(opened.handle, 0, Bytes::from_static(b"object")).await.expect("written");
    close(&one, opened.handle).await;
    assert_eq!(denied(two.open(&user, opened.attr.ino, flags).await), Denied::Access);
    assert_eq!(read_file(&two, "readonly").await, b"object");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creator_merges_into_a_file_nobody_may_write_to() {
    let world = World::new();
    let (one, two) = (world.mount(), world.mount());
    let user = meta::Caller { uid: 1000, gid: 1000, groups: Vec::new() };
    let flags = OpenFlags::writing();
    let first = one.create(&user, one.root(), b"object", 0o444, flags, true).await.expect("created");
    one.write(first.handle, 0, Bytes::from_static(b"first")).await.expect("written");
    one.fsync(first.handle).await.expect("synced");
    let second = two.open(&ROOT, first.attr.ino, flags).await.expect("opened");
    two.write(second.handle, 5, Bytes::from_static(b", second")).await.expect("written");
    close(&two, second.handle).await;
    one.write(first.handle, 0, Bytes::from_static(b"FIRST")).await.expect("written");
    close(&one, first.handle).await;
    assert_eq!(world.read_afresh("object").await, b"FIRST, second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_takes_set_id_bits_away_at_once() {
    let world = World::new();
    let fs = world.mount();
    let (alice, bob) = (user(1000), user(1001));
    let ino = fs.create(&alice, fs.root(), b"tool", 0o6777, OpenFlags::writing(), true).await.expect("made").attr.ino;
    for (writer, left) in [(&ROOT, 0o6777), (&bob, 0o777)] {
        let handle = fs.open(writer, ino, OpenFlags::writing()).await.expect("opened").handle;
        assert_eq!(fs.getattr(&ROOT, ino).await.expect("there").mode, 0o6777, "opening alone changes nothing");
        fs.write(handle, 0, Bytes::from_static(b"x")).await.expect("written");
        assert_eq!(fs.getattr(&ROOT, ino).await.expect("there").mode, left, "before it is committed");
        close(&fs, handle).await;
        assert_eq!(fs.getattr(&ROOT, ino).await.expect("there").mode, left, "and after");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_id_bits_given_after_a_write_stay() {
    let world = World::new();
    let fs = world.mount();
    let alice = user(1000);
    let opened = fs.create(&alice, fs.root(), b"tool", 0o600, OpenFlags::writing(), true).await.expect("made");
    fs.write(opened.handle, 0, Bytes::from_static(b"#!")).await.expect("written");
    let attrs = meta::AttrChange { mode: Some(0o6755), ..meta::AttrChange::default() };
    let change = client::fs::SetAttr { size: None, attrs };
    let changed = fs.setattr(&alice, opened.attr.ino, &change, Some(opened.handle)).await.expect("changed");
    assert_eq!((changed.mode, changed.size), (0o6755, 2));
    close(&fs, opened.handle).await;
    assert_eq!(fs.getattr(&ROOT, opened.attr.ino).await.expect("there").mode, 0o6755, "closing writes nothing more");
}

fn user(id: u32) -> meta::Caller {
    meta::Caller { uid: id, gid: id, groups: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_just_before_others_replaced_it_can_be_opened() {
    let world = World::new();
    let (one, two) = (world.mount_with(Options::default()), world.mount());
    let old = write_file(&one, "file", b"old").await.ino;
    write_file(&one, "next", b"new").await;
    assert_eq!(two.lookup(&ROOT, two.root(), b"file").await.expect("there").ino, old);
    let (from, to): ((_, &[u8]), (_, &[u8])) = ((one.root(), b"next"), (one.root(), b"file"));
    one.rename(&ROOT, from, to, RenameHow::Replace).await.expect("renamed");
    one.sync_names().await.expect("sent");
    let found = two.open(&ROOT, old, OpenFlags::writing()).await.expect("it is kept for a while").handle;
    assert_eq!(read_all(&two, found).await, b"old");
    two.write(found, 0, Bytes::from_static(b"never seen")).await.expect("written");
    // It is the other mount's to let go.
    two.release(found).await.expect("released");
    assert_eq!(world.replicas.state().counts().orphans, 1);
    assert_eq!(read_file(&two, "file").await, b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_just_before_it_was_replaced_here_can_be_opened() {
    let world = World::new();
    let linger = std::time::Duration::from_millis(300);
    let fs = world.mount_with(Options { linger, ..Options::default() });
    for (round, opened_soon) in [true, false].into_iter().enumerate() {
        let old = write_file(&fs, "file", b"old").await.ino;
        write_file(&fs, "next", b"new").await;
        let (from, to): ((_, &[u8]), (_, &[u8])) = ((fs.root(), b"next"), (fs.root(), b"file"));
        fs.rename(&ROOT, from, to, RenameHow::Replace).await.expect("renamed");
        if opened_soon {
            let found = fs.open(&ROOT, old, OpenFlags::reading()).await.expect("it is kept for a while").handle;
            tokio::time::timeout(2 * linger, std::future::pending::<()>()).await.expect_err("it was only waited");
            assert_eq!(read_all(&fs, found).await, b"old", "and for as long as it is open");
            fs.release(found).await.expect("released");
        }
        let gone = async || {
            fs.sync_names().await.expect("sent");
            world.replicas.state().counts() == meta::Counts { inodes: 2, entries: 1, ..world.replicas.state().counts() }
        };
        let began = std::time::Instant::now();
        while !gone().await {
            assert!(began.elapsed().as_secs() < 20, "round {round}: it is never let go");
            tokio::task::yield_now().await;
        }
        assert!(fs.open(&ROOT, old, OpenFlags::reading()).await.is_err());
        assert_eq!(world.replicas.state().counts().orphans, 0);
        fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    }
}
