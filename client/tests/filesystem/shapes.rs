//! How files lie in blocks: holes, huge offsets, what is cut anew, what goes over the network.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use client::fs::{Fallocate, FsError, OpenFlags, Seek, SetAttr};

use super::world::{ROOT, World, close, create, denied, noise, read_all, read_file, write_all, write_file};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_grown_in_steps_is_cut_as_if_written_at_once() {
    let world = World::new();
    let fs = world.mount();
    let bytes = noise(1, 300_000);
    write_file(&fs, "at once", &bytes).await;
    let blocks = world.stores.ids();

    for (name, step) in [("in steps", 7_001), ("in long steps", 40_000)] {
        let opened = create(&fs, name).await;
        for (index, part) in bytes.chunks(step).enumerate() {
            write_all(&fs, opened.handle, (index * step) as u64, part).await;
            fs.fsync(opened.handle).await.expect("synced");
        }
        close(&fs, opened.handle).await;
        fs.fold().await;
        assert!(world.read_afresh(name).await == bytes);
    }
    let cramped = world.cramped_mount();
    write_file(&cramped, "cramped", &bytes).await;
    assert!(world.read_afresh("cramped").await == bytes);

    // Steps leave blocks behind that are in no file any more; the last state adds none.
    let before = world.stores.ids();
    write_file(&fs, "again", &bytes).await;
    assert_eq!(world.stores.ids(), before);
    assert!(before.is_superset(&blocks));
    let same = ["at once", "in steps", "in long steps", "cramped"].map(|name| (name, recipe_blocks(&world, name)));
    for (name, recipe) in &same {
        assert_eq!(*recipe, same[0].1, "{name}");
    }
}

/// How many bytes, chunks and holes aside, and the root of the recipe's tree.
fn recipe_blocks(world: &World, name: &str) -> (u64, Option<base::BlockId>) {
    let keys = chunk::VolumeKeys::new(&super::world::SECRET);
    let sealed = chunk::name::seal_name(&keys, world.root().0, name.as_bytes());
    let name = meta::SealedName::new(sealed).expect("a name");
    let meta::Reply::Attr(attr) = world.replicas.ask(meta::Op::Lookup { parent: world.root(), name }) else {
        panic!("no attributes")
    };
    match world.replicas.ask(meta::Op::Open { ino: attr.ino, mask: 4 }) {
        meta::Reply::Opened { content, .. } => (content.allocated, content.root),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_change_to_a_long_file_moves_few_blocks() {
    let world = World::new();
    let fs = world.mount();
    let mut bytes = noise(2, 6_000_000);
    let attr = write_file(&fs, "long", &bytes).await;
    assert!(world.stores.ids().len() > 400, "many chunks, and a tree of recipe blocks");

    let opened = fs.open(&ROOT, attr.ino, OpenFlags::writing()).await.expect("opened");
    for at in [0, 3_000_000, 5_999_990] {
        let before = (world.stores.ids().len(), world.stores.puts.load(Ordering::SeqCst));
        bytes[at..at + 10].fill(7);
        fs.write(opened.handle, at as u64, vec![7; 10].into()).await.expect("written");
        fs.fsync(opened.handle).await.expect("synced");
        fs.fold().await;
        let new = (world.stores.ids().len() - before.0, world.stores.puts.load(Ordering::SeqCst) - before.1);
        assert!(new.0 >= 2 && new.1 <= 9, "{new:?} blocks put for ten bytes at {at}");
    }
    close(&fs, opened.handle).await;
    assert!(world.read_afresh("long").await == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_beyond_four_gibibytes() {
    let world = World::new();
    let fs = world.mount();
    let opened = create(&fs, "huge").await;
    let far = 5 * (1 << 30) + 123;
    fs.write(opened.handle, 0, Bytes::from_static(b"start")).await.expect("written");
    fs.write(opened.handle, far, Bytes::from_static(b"end")).await.expect("written");
    close(&fs, opened.handle).await;

    let fs = world.mount();
    let opened = fs.open(&ROOT, opened.attr.ino, OpenFlags::writing()).await.expect("opened");
    assert_eq!((opened.attr.size, opened.attr.allocated), (far + 3, 8));
    assert_eq!(fs.read(opened.handle, far - 2, 100).await, Ok(Bytes::from_static(b"\0\0end")));
    assert_eq!(fs.read(opened.handle, (1 << 32) - 2, 4).await, Ok(Bytes::from_static(b"\0\0\0\0")));
    assert_eq!(fs.read(opened.handle, far + 3, 4).await, Ok(Bytes::new()));
    assert_eq!(fs.seek(opened.handle, 5, Seek::Data).await, Ok(far));
    assert_eq!(fs.seek(opened.handle, 0, Seek::Hole).await, Ok(5));
    assert_eq!(fs.seek(opened.handle, far, Seek::Hole).await, Ok(far + 3));
    assert_eq!(fs.seek(opened.handle, far + 3, Seek::Data).await, Err(FsError::NoSuchOffset));

    let most = i64::MAX as u64;
    assert_eq!(fs.write(opened.handle, most, Bytes::from_static(b"x")).await, Err(FsError::TooBig));
    assert_eq!(fs.write(opened.handle, u64::MAX, Bytes::from_static(b"x")).await, Err(FsError::TooBig));
    assert_eq!(fs.fallocate(opened.handle, Fallocate::Allocate, most, 1).await, Err(FsError::TooBig));
    fs.fallocate(opened.handle, Fallocate::PunchHole, 1, 1 << 62).await.expect("punched");
    fs.fsync(opened.handle).await.expect("synced");
    let attr = fs.getattr(&ROOT, opened.attr.ino).await.expect("there");
    assert_eq!((attr.size, attr.allocated), (far + 3, 1));
    let size = Some(most);
    fs.setattr(&ROOT, attr.ino, &SetAttr { size, ..SetAttr::default() }, None).await.expect("extended");
    assert_eq!(fs.getattr(&ROOT, attr.ino).await.expect("there").size, most);
    close(&fs, opened.handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_take_no_room() {
    let world = World::new();
    let fs = world.mount();
    let attr = write_file(&fs, "zeros", &vec![0; 200_000]).await;
    assert_eq!((attr.size, attr.allocated), (200_000, 0));
    assert!(world.stores.ids().is_empty());
    let opened = fs.open(&ROOT, attr.ino, OpenFlags::reading()).await.expect("opened");
    assert_eq!(fs.seek(opened.handle, 0, Seek::Data).await, Err(FsError::NoSuchOffset));
    assert!(read_all(&fs, opened.handle).await == vec![0; 200_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_reads_are_fetched_ahead_and_hot_chunks_opened_once() {
    let world = World::new();
    let bytes = noise(3, 2_000_000);
    write_file(&world.mount(), "file", &bytes).await;
    let fs = world.mount();
    let ino = fs.lookup(&ROOT, fs.root(), b"file").await.expect("there").ino;
    let handle = fs.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened").handle;
    let blocks = world.stores.ids().len();
    for at in (0..200_000).step_by(4096) {
        let expected = &bytes[at..at + 4096];
        assert!(fs.read(handle, at as u64, 4096).await.expect("read") == expected);
    }
    // 200 kB are a tenth of the file; with what is fetched ahead it is more.
    super::world::until(|| world.stores.gets.load(Ordering::SeqCst) > blocks / 5).await;
    assert!(read_all(&fs, handle).await == bytes);
    assert_eq!(world.stores.gets.load(Ordering::SeqCst), blocks, "each block was fetched once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_do_what_they_were_opened_for() {
    let world = World::new();
    let fs = world.mount();
    let attr = write_file(&fs, "file", b"hello").await;
    let reader = fs.open(&ROOT, attr.ino, OpenFlags::reading()).await.expect("opened").handle;
    assert_eq!(fs.write(reader, 0, Bytes::from_static(b"x")).await, Err(FsError::BadHandle));
    assert_eq!(fs.fallocate(reader, Fallocate::Allocate, 0, 1).await, Err(FsError::BadHandle));
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let writer = fs.open(&ROOT, attr.ino, flags).await.expect("opened").handle;
    assert_eq!(fs.read(writer, 0, 1).await, Err(FsError::BadHandle));
    assert_eq!(fs.fallocate(writer, Fallocate::Allocate, 0, 0).await, Err(FsError::Invalid));
    assert_eq!(Fallocate::from_mode(0x08), Err(FsError::NotSupported));
    let nothing = OpenFlags::default();
    assert_eq!(fs.open(&ROOT, attr.ino, nothing).await, Err(FsError::Invalid));
    fs.release(reader).await.expect("released");
    assert_eq!(fs.read(reader, 0, 1).await, Err(FsError::BadHandle));
    assert_eq!(fs.release(reader).await, Err(FsError::BadHandle));

    let stranger = meta::Caller { uid: 7, gid: 7, groups: Vec::new() };
    assert_eq!(denied(fs.open(&stranger, attr.ino, OpenFlags::writing()).await), meta::Denied::Access);
    let shrink = SetAttr { size: Some(0), ..SetAttr::default() };
    assert_eq!(denied(fs.setattr(&stranger, attr.ino, &shrink, None).await), meta::Denied::Access);
    assert_eq!(read_file(&fs, "file").await, b"hello");
}
