//! What is short and synced is with replicas before it is in blocks; and nobody can tell.

use client::backend::BlockError;
use client::fs::{Filesystem, FsError, Handle, OpenFlags, Options, SetAttr};
use meta::{Commit, Content, Form, Ino, Op};

use super::world::{Fs, ROOT, SECRET, World, close, create, noise, read_all, read_file, write_all, write_file};

/// How many patches replicas have of a file.
fn patches(world: &World, ino: Ino) -> usize {
    world.replicas.state().content(ino).expect("a file").patches.len()
}

async fn reopen(fs: &Fs, ino: Ino, handle: Handle) -> Handle {
    fs.release(handle).await.expect("released");
    fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_write_that_is_synced_waits_for_no_store() {
    let world = World::new();
    let one = world.mount();
    let long = noise(1, 30_000);
    let file = create(&one, "file").await;
    write_all(&one, file.handle, 0, &long).await;
    one.fsync(file.handle).await.expect("synced");
    assert_eq!(patches(&world, file.attr.ino), 0, "so much goes into blocks");

    *world.stores.fail.lock() = Some(BlockError::Unavailable("switched off".into()));
    let mut expected = long;
    for (at, len) in [(10_000, 5_000), (29_000, 3_000), (12_000, 1)] {
        write_all(&one, file.handle, at, &noise(at, len)).await;
        expected.resize(expected.len().max(at as usize + len), 0);
        expected[at as usize..at as usize + len].copy_from_slice(&noise(at, len));
        one.fsync(file.handle).await.expect("synced");
    }
    assert_eq!(patches(&world, file.attr.ino), 3);
    let lines = create(&one, "lines").await;
    write_all(&one, lines.handle, 0, b"a line\n").await;
    one.fsync(lines.handle).await.expect("synced");
    assert!(read_all(&one, file.handle).await == expected);
    assert!(world.read_afresh("lines").await == b"a line\n", "of which there is no block");

    // What can't be folded stays where it is.
    one.fold().await;
    assert_eq!((patches(&world, file.attr.ino), patches(&world, lines.attr.ino)), (3, 1));
    *world.stores.fail.lock() = None;
    write_all(&one, lines.handle, 7, b"another\n").await;
    one.fsync(lines.handle).await.expect("synced");
    let before = one.getattr(&ROOT, lines.attr.ino).await.expect("there");
    close(&one, lines.handle).await;
    one.fold().await;
    let after = one.getattr(&ROOT, lines.attr.ino).await.expect("there");
    assert_eq!(patches(&world, lines.attr.ino), 0);
    assert_eq!((before.mtime, before.ctime, before.size), (after.mtime, after.ctime, after.size));
    assert!(world.read_afresh("lines").await == b"a line\nanother\n");
    assert!(world.read_afresh("file").await == expected);
    close(&one, file.handle).await;
    assert_eq!(one.dirty_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_anew_is_cut_with_its_patches() {
    for round in 0..8u64 {
        let (cramped, len) = (round % 2 == 1, [10, 10, 2_000, 30_000][round as usize / 2]);
        let world = World::new();
        let fs = if cramped { world.cramped_mount() } else { world.mount() };
        let mut expected = noise(2, 40_000);
        let ino = write_file(&fs, "file", &expected).await.ino;
        let handle = fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle;
        let patch = round * 700;
        write_all(&fs, handle, patch, &noise(round, 500)).await;
        expected[patch as usize..patch as usize + 500].copy_from_slice(&noise(round, 500));
        fs.fsync(handle).await.expect("synced");
        assert_eq!(patches(&world, ino), 1);
        // Nobody has looked at what it holds when the rest of its chunks is written.
        let handle = reopen(&fs, ino, handle).await;
        let at = patch as usize + 200;
        write_all(&fs, handle, at as u64, &noise(round + 10, len)).await;
        expected[at..at + len].copy_from_slice(&noise(round + 10, len));
        fs.flush(handle).await.expect("flushed");
        fs.sync_names().await.expect("sent");
        assert_eq!(patches(&world, ino), 0);
        assert!(world.read_afresh("file").await == expected, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wrote_meanwhile_merges_with_patches_and_folds_nothing_away() {
    let world = World::new();
    let (stores, volume) = (world.stores.clone(), world.volume.clone());
    let two =
        Filesystem::open_volume(world.names(false), stores, volume, &SECRET, Options::default()).expect("mounted");
    let mut expected = noise(3, 30_000);
    let ino = write_file(&two, "file", &expected).await.ino;
    let theirs = two.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle;
    write_all(&two, theirs, 20_000, &noise(4, 1_000)).await;
    expected[20_000..21_000].copy_from_slice(&noise(4, 1_000));

    let one = world.mount();
    create(&one, "so that it has a lease").await;
    let ours = one.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle;
    for at in [100, 9_000, 20_990] {
        write_all(&one, ours, at, &noise(at, 50)).await;
        one.fsync(ours).await.expect("synced");
        if at < 20_000 {
            expected[at as usize..at as usize + 50].copy_from_slice(&noise(at, 50));
        } else {
            // They commit later, and wrote the first ten of these.
            expected[21_000..21_040].copy_from_slice(&noise(at, 50)[10..]);
        }
    }
    let patched = patches(&world, ino);
    two.flush(theirs).await.expect("merged");
    assert_eq!((patched > 0, patches(&world, ino)), (true, 0));
    assert!(world.read_afresh("file").await == expected);
    // What was patched before is theirs by now.
    one.fold().await;
    assert!(world.read_afresh("file").await == expected);
    write_all(&one, ours, 5, b"x").await;
    expected[5] = b'x';
    close(&one, ours).await;
    close(&two, theirs).await;
    assert!(read_file(&one, "file").await == expected);
    assert!(world.read_afresh("file").await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fold_that_fails_takes_nothing_from_what_is_sent_later() {
    let world = World::new();
    let fs = world.mount();
    let expected = noise(5, 30_000);
    let file = create(&fs, "file").await;
    fs.fsync(file.handle).await.expect("synced");
    // Its blocks are named by a commit that is not sent yet, and can't be stored.
    *world.stores.fail.lock() = Some(BlockError::Unavailable("switched off".into()));
    write_all(&fs, file.handle, 0, &expected).await;
    fs.flush(file.handle).await.expect("flushed");
    write_all(&fs, file.handle, 0, &expected[..100]).await;
    assert!(fs.fsync(file.handle).await.is_err());
    fs.fold().await;
    assert!(read_all(&fs, file.handle).await == expected);
    *world.stores.fail.lock() = None;
    fs.fsync(file.handle).await.expect("synced");
    assert!(world.read_afresh("file").await == expected);
    fs.fold().await;
    assert!(world.read_afresh("file").await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_who_lies_about_patches_harms_his_file_alone() {
    let keys = chunk::VolumeKeys::new(&SECRET);
    for (offset, under, size) in [(5, 0, 10), (0, 20, 10), (u64::MAX >> 2, 0, 10), (0, 4, 10)] {
        let world = World::new();
        let ordered = Filesystem::open_volume(
            world.names(false),
            world.stores.clone(),
            world.volume.clone(),
            &SECRET,
            Options::default(),
        )
        .expect("mounted");
        let ino = write_file(&ordered, "file", b"").await.ino;
        let base = Some(world.replicas.state().known(ino).expect("there").content_version);
        let patch = chunk::Patch { offset, under, bytes: vec![1; 10].into() };
        let content = Content { size, patches: vec![patch.seal(&keys, ino.0)], ..Content::default() };
        let (form, mtime, atime) = (Form::Patch { over: 0 }, None, None);
        let _ = world.replicas.ask(Op::Commit(Commit { ino, base, content, form, mtime, atime, opened: true }));

        let fs = world.mount();
        create(&fs, "so that it has a lease").await;
        let handle = fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle;
        assert!(matches!(fs.read(handle, 0, 100).await, Err(FsError::Corrupt(_))), "{offset} over {under}");
        write_all(&fs, handle, 2, b"x").await;
        assert!(fs.fsync(handle).await.is_err());
        assert!(fs.flush(handle).await.is_err());
        // It can be made anew.
        fs.setattr(&ROOT, ino, &SetAttr { size: Some(0), ..SetAttr::default() }, Some(handle)).await.expect("cut");
        let _ = fs.flush(handle).await;
        let _ = fs.release(handle).await;
        assert_eq!(read_file(&fs, "so that it has a lease").await, b"");
    }
}
