//! Copies by reference: what is sent for them, what they see, and that what they name is kept.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use client::backend::BlockError;
use client::fs::{FsError, OpenFlags, Seek, SetAttr};
use meta::Chunking;

use super::world::{Fs, ROOT, World, close, create, noise, read_all, read_file, write_all, write_file};

/// How many blocks were put and asked for.
fn moved(world: &World) -> (usize, usize) {
    (world.stores.puts.load(Ordering::SeqCst), world.stores.gets.load(Ordering::SeqCst))
}

async fn open(fs: &Fs, name: &str) -> client::fs::Handle {
    let ino = fs.lookup(&ROOT, fs.root(), name.as_bytes()).await.expect("there").ino;
    fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_file_is_copied_without_a_block() {
    let world = World::with(Chunking { min: 4 << 10, average: 8 << 10, max: 16 << 10 }, 0);
    let bytes = noise(1, 8_000_000);
    write_file(&world.mount(), "file", &bytes).await;
    // One that knows nothing of the file's blocks.
    let fs = world.mount();
    let (source, copy) = (open(&fs, "file").await, create(&fs, "copy").await.handle);
    let tree = {
        // To know where the chunks are takes the file's recipe, which is in a few blocks of its own.
        fs.seek(source, 0, Seek::Hole).await.expect("read");
        moved(&world)
    };
    assert_eq!(fs.copy((source, 0), (copy, 0), u64::MAX).await, Ok(8_000_000));
    fs.fsync(copy).await.expect("synced");
    let after = moved(&world);
    assert_eq!(after.1, tree.1, "nothing is read");
    assert!(after.0 - tree.0 <= 20, "{} blocks put, of which 1000 are chunks", after.0 - tree.0);
    assert!(read_all(&fs, copy).await == bytes);
    // A part of it, that begins and ends within chunks.
    let part = create(&fs, "part").await.handle;
    let before = moved(&world);
    assert_eq!(fs.copy((source, 1_000_001), (part, 77), 5_000_000).await, Ok(5_000_000));
    fs.fsync(part).await.expect("synced");
    let after = moved(&world);
    assert!(after.0 - before.0 <= 20 && after.1 - before.1 <= 4, "{before:?} {after:?}");
    close(&fs, part).await;
    let expected = [vec![0; 77], bytes[1_000_001..6_000_001].to_vec()].concat();
    assert!(world.read_afresh("part").await == expected);
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sealed_yet_is_copied_as_it_is() {
    let world = World::new();
    for fs in [world.mount(), world.cramped_mount()] {
        let (source, copy) = (create(&fs, "file").await.handle, create(&fs, "copy").await.handle);
        let mut bytes = noise(2, 700_000);
        write_all(&fs, source, 0, &bytes).await;
        assert_eq!(fs.copy((source, 0), (copy, 0), 700_000).await, Ok(700_000));
        // Neither sees what is written to the other from now on.
        let old = bytes.clone();
        bytes[100_000..100_010].fill(1);
        fs.write(source, 100_000, Bytes::from(vec![1; 10])).await.expect("written");
        assert!(read_all(&fs, copy).await == old && read_all(&fs, source).await == bytes);
        let mut other = old;
        other[300_000..300_007].fill(2);
        fs.write(copy, 300_000, Bytes::from(vec![2; 7])).await.expect("written");
        // A little that is in memory only, over what is sealed.
        fs.fsync(source).await.expect("synced");
        fs.write(source, 5_000, Bytes::from(vec![3; 5_000])).await.expect("written");
        bytes[5_000..10_000].fill(3);
        assert_eq!(fs.copy((source, 4_999), (copy, 600_001), 5_002).await, Ok(5_002));
        other[600_001..605_003].copy_from_slice(&bytes[4_999..10_001]);
        assert!(read_all(&fs, copy).await == other && read_all(&fs, source).await == bytes);
        close(&fs, source).await;
        close(&fs, copy).await;
        assert!(world.read_afresh("copy").await == other && world.read_afresh("file").await == bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_not_committed_before_what_it_shares_is_stored() {
    // So few blocks that a commit under a lease waits for none, and so many that it does.
    for len in [40_000, 400_000, 1_000_000] {
        copied_while_nothing_is_stored(len).await;
    }
}

async fn copied_while_nothing_is_stored(len: usize) {
    let world = World::new();
    let fs = world.mount();
    let (source, copy) = (create(&fs, "file").await, create(&fs, "copy").await.handle);
    fs.fsync(copy).await.expect("synced");
    *world.stores.fail.lock() = Some(BlockError::Unavailable("switched off".into()));
    let bytes = noise(3, len);
    write_all(&fs, source.handle, 0, &bytes).await;
    assert_eq!(fs.copy((source.handle, 0), (copy, 0), len as u64).await, Ok(len as u64));
    // Whoever gives the source up does not give up what the copy shares.
    let change = SetAttr { size: Some(0), ..SetAttr::default() };
    fs.setattr(&ROOT, source.attr.ino, &change, Some(source.handle)).await.expect("cut");
    fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    let _ = fs.release(source.handle).await;
    assert!(matches!(fs.fsync(copy).await, Err(FsError::Unavailable(_))));
    assert!(read_all(&fs, copy).await == bytes);
    let space = world.replicas.state().space(world.volume.id).expect("there");
    assert_eq!(space.used_bytes, 0, "replicas were told of it");
    // A few blocks are waited for once somebody asks for the lease: nobody else sees the file before.
    if !crate::LEASED || len >= 400_000 {
        assert_eq!(world.mount().lookup(&ROOT, world.root(), b"copy").await.expect("there").size, 0);
    }
    *world.stores.fail.lock() = None;
    fs.fsync(copy).await.expect("synced");
    assert!(world.read_afresh("copy").await == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_follow_the_manual() {
    let world = World::new();
    let fs = world.mount();
    let bytes = noise(4, 50_000);
    write_file(&fs, "file", &bytes).await;
    let file = open(&fs, "file").await;
    let copy = |from: u64, to: u64, len: u64| fs.copy((file, from), (file, to), len);
    assert_eq!(copy(50_000, 0, 10).await, Ok(0), "at the end");
    assert_eq!(copy(1 << 40, 0, 10).await, Ok(0), "beyond it");
    assert_eq!(copy(u64::MAX, 0, u64::MAX).await, Ok(0));
    assert_eq!(copy(0, 10, 0).await, Ok(0));
    assert_eq!(copy(49_990, 60_000, 100).await, Ok(10), "as much as there is");
    assert_eq!(copy(0, 100, 101).await, Err(FsError::Invalid), "they overlap");
    assert_eq!(copy(100, 0, 101).await, Err(FsError::Invalid));
    assert_eq!(copy(0, 100, 100).await, Ok(100), "they touch");
    assert_eq!(copy(0, u64::MAX - 5, 100).await, Err(FsError::TooBig));
    let mut expected = bytes.clone();
    expected.resize(60_000, 0);
    expected.extend_from_slice(&bytes[49_990..]);
    expected.copy_within(0..100, 100);
    assert!(read_all(&fs, file).await == expected);

    let ino = fs.lookup(&ROOT, fs.root(), b"file").await.expect("there").ino;
    let append = OpenFlags { append: true, ..OpenFlags::writing() };
    let append = fs.open(&ROOT, ino, append).await.expect("opened").handle;
    let read = fs.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened").handle;
    let write = fs.open(&ROOT, ino, OpenFlags { read: false, ..OpenFlags::writing() }).await.expect("opened").handle;
    for (from, to) in [(file, append), (file, read), (write, file)] {
        assert_eq!(fs.copy((from, 0), (to, 1_000), 10).await, Err(FsError::BadHandle));
    }
    assert_eq!(fs.copy((append, 0), (write, 1_000), 10).await, Ok(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_stay_holes() {
    let world = World::new();
    let fs = world.mount();
    let (source, copy) = (create(&fs, "file").await.handle, create(&fs, "copy").await);
    fs.write(source, 5 << 30, Bytes::from_static(b"end")).await.expect("written");
    write_all(&fs, copy.handle, 0, &noise(5, 10_000)).await;
    fs.fsync(copy.handle).await.expect("synced");
    assert_eq!(fs.copy((source, 0), (copy.handle, 4_000), u64::MAX).await, Ok((5 << 30) + 3));
    fs.fsync(copy.handle).await.expect("synced");
    let attr = fs.getattr(&ROOT, copy.attr.ino).await.expect("there");
    assert_eq!((attr.size, attr.allocated), ((5 << 30) + 4_003, 4_003));
    assert_eq!(fs.seek(copy.handle, 0, Seek::Hole).await, Ok(4_000));
    assert_eq!(fs.seek(copy.handle, 4_000, Seek::Data).await, Ok((5 << 30) + 4_000));
    assert_eq!(&fs.read(copy.handle, (5 << 30) + 3_999, 100).await.expect("read")[..], b"\0end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_laid_over_what_others_committed_meanwhile() {
    let world = World::new();
    let (fs, other) = (world.mount(), world.mount());
    let (bytes, theirs) = (noise(6, 40_000), noise(7, 100_000));
    write_file(&fs, "file", &bytes).await;
    write_file(&fs, "copy", &noise(8, 100_000)).await;
    let (source, copy) = (open(&fs, "file").await, open(&fs, "copy").await);
    assert_eq!(fs.copy((source, 0), (copy, 30_000), 40_000).await, Ok(40_000));
    write_file(&other, "copy", &theirs).await;
    close(&fs, copy).await;
    let mut expected = theirs;
    if !crate::LEASED {
        expected[30_000..70_000].copy_from_slice(&bytes);
    }
    // With a lease it was committed before others came at the file at all.
    assert!(read_file(&other, "copy").await == expected);
}
