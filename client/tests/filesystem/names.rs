//! The namespace: names, links, renames, listings, what is unlinked but open, extended attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use client::fs::{FsError, OpenFlags};
use meta::{Caller, Chunking, Denied, Kind, RenameHow, XattrHow};

use super::world::{ROOT, World, close, create, denied, noise, read_all, read_file, until, write_all, write_file};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_lives_while_it_is_open() {
    let world = World::new();
    let fs = world.cramped_mount();
    let bytes = noise(1, 100_000);
    let opened = create(&fs, "file").await;
    let (ino, handle) = (opened.attr.ino, opened.handle);
    write_all(&fs, handle, 0, &bytes[..50_000]).await;
    fs.fsync(handle).await.expect("synced");
    fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
    assert_eq!(denied(fs.lookup(&ROOT, fs.root(), b"file").await), Denied::NotFound);
    write_all(&fs, handle, 50_000, &bytes[50_000..]).await;
    fs.fsync(handle).await.expect("synced");
    assert!(read_all(&fs, handle).await == bytes);
    let attr = fs.getattr(&ROOT, ino).await.expect("there");
    assert_eq!((attr.nlink, attr.size), (0, 100_000));
    assert_eq!(world.replicas.state().counts().orphans, 1);

    // A second handle keeps it; with the last it goes, dirty or not.
    let second = fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle;
    close(&fs, handle).await;
    assert_eq!(world.replicas.state().counts().orphans, 1);
    fs.write(second, 0, Bytes::from_static(b"never seen")).await.expect("written");
    fs.release(second).await.expect("released");
    let counts = world.replicas.state().counts();
    assert_eq!((counts.orphans, counts.inodes), (0, 1));
    until(|| fs.dirty_bytes() == 0).await;
    assert!(world.replicas.state().audit().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_renamed_over_lives_while_it_is_open() {
    let world = World::new();
    let fs = world.mount();
    write_file(&fs, "old", b"old").await;
    write_file(&fs, "new", b"new").await;
    let old = fs.lookup(&ROOT, fs.root(), b"old").await.expect("there").ino;
    let handle = fs.open(&ROOT, old, OpenFlags::reading()).await.expect("opened").handle;
    let (new, replaced): ((_, &[u8]), (_, &[u8])) = ((fs.root(), b"new"), (fs.root(), b"old"));
    assert_eq!(denied(fs.rename(&ROOT, new, replaced, RenameHow::NoReplace).await), Denied::Exists);
    fs.rename(&ROOT, new, replaced, RenameHow::Replace).await.expect("renamed");
    assert_eq!(read_all(&fs, handle).await, b"old");
    assert_eq!(read_file(&fs, "old").await, b"new");
    fs.release(handle).await.expect("released");
    fs.sync_names().await.expect("sent");
    assert_eq!(world.replicas.state().counts().inodes, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlinking_beside_an_open_file_leaves_no_orphans() {
    let world = World::new();
    let (fs, other) = (world.mount(), world.mount());
    let open = create(&fs, "open").await;
    for name in ["known", "listed", "stale hint", "two names"] {
        write_file(&other, name, b"x").await;
    }
    fs.lookup(&ROOT, fs.root(), b"known").await.expect("there");
    fs.readdir(&ROOT, fs.root(), 0, 2).await.expect("listed");
    let moved = fs.lookup(&ROOT, fs.root(), b"stale hint").await.expect("there");
    other.unlink(&ROOT, fs.root(), b"stale hint").await.expect("removed");
    write_file(&other, "stale hint", b"another file").await;
    let two = fs.lookup(&ROOT, fs.root(), b"two names").await.expect("there");
    fs.link(&ROOT, two.ino, fs.root(), b"second name").await.expect("linked");
    for name in ["known", "listed", "stale hint", "two names"] {
        fs.unlink(&ROOT, fs.root(), name.as_bytes()).await.expect("removed");
    }
    until(|| world.replicas.state().counts().orphans == 0).await;
    assert_eq!(world.replicas.state().counts().inodes, 3, "the root, the open one, the second name");
    assert_eq!(fs.getattr(&ROOT, two.ino).await.expect("there").nlink, 1);
    assert_ne!(moved.ino, open.attr.ino);
    close(&fs, open.handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_of_five_levels_moves_as_one() {
    let world = World::new();
    let fs = world.mount();
    let mut path = vec![fs.root()];
    for name in ["a", "b", "c", "d", "e"] {
        let parent = *path.last().expect("never empty");
        path.push(fs.mkdir(&ROOT, parent, name.as_bytes(), 0o755).await.expect("made").ino);
    }
    let new = OpenFlags::writing();
    let opened = fs.create(&ROOT, path[5], b"file", 0o600, new, true).await.expect("created");
    fs.write(opened.handle, 0, Bytes::from_static(b"deep")).await.expect("written");
    let top = fs.mkdir(&ROOT, fs.root(), b"top", 0o755).await.expect("made").ino;
    fs.rename(&ROOT, (path[2], b"c"), (top, b"moved"), RenameHow::Replace).await.expect("renamed");
    assert_eq!(
        denied(fs.rename(&ROOT, (fs.root(), b"top"), (path[5], b"x"), RenameHow::Replace).await),
        Denied::Invalid
    );
    assert_eq!(fs.parent(&ROOT, path[3]).await.expect("there").ino, top);
    assert_eq!(fs.parent(&ROOT, fs.root()).await.expect("there").ino, fs.root());
    close(&fs, opened.handle).await;

    let fs = world.mount();
    let mut at = top;
    for name in ["moved", "d", "e", "file"] {
        at = fs.lookup(&ROOT, at, name.as_bytes()).await.expect("there").ino;
    }
    let handle = fs.open(&ROOT, at, OpenFlags::reading()).await.expect("opened").handle;
    assert_eq!(read_all(&fs, handle).await, b"deep");
    assert_eq!(denied(fs.lookup(&ROOT, path[2], b"c").await), Denied::NotFound);
    assert_eq!(denied(fs.rmdir(&ROOT, fs.root(), b"top").await), Denied::NotEmpty);
    assert_eq!(fs.getattr(&ROOT, path[2]).await.expect("there").nlink, 2);
    fs.rename(&ROOT, (fs.root(), b"a"), (fs.root(), b"top"), RenameHow::Exchange).await.expect("swapped");
    assert_eq!(fs.lookup(&ROOT, fs.root(), b"a").await.expect("there").ino, top);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_listing_while_names_come_and_go() {
    let world = World::new();
    let fs = Arc::new(world.mount());
    let names: Vec<String> = (0..2000).map(|index| format!("name-{index:04}")).collect();
    let makers = names.chunks(500).map(|names| {
        let (fs, names) = (fs.clone(), names.to_vec());
        tokio::spawn(async move {
            for name in names {
                fs.mknod(&ROOT, fs.root(), name.as_bytes(), Kind::File, 0o644, 0).await.expect("made");
            }
        })
    });
    for maker in makers.collect::<Vec<_>>() {
        maker.await.expect("no panic");
    }
    let (mut seen, mut cookie, mut page) = (BTreeMap::new(), 0, 0);
    loop {
        let listed = fs.readdir(&ROOT, fs.root(), cookie, 300).await.expect("listed");
        for entry in &listed.entries {
            assert!(entry.cookie > cookie);
            cookie = entry.cookie;
            *seen.entry(String::from_utf8(entry.name.clone()).expect("ours")).or_insert(0) += 1;
            assert_eq!(entry.attr.kind, Kind::File);
        }
        if listed.end {
            break;
        }
        // Remove one name that was listed and one that may not have been; add one.
        for name in [&names[page * 100], &names[1999 - page * 100]] {
            fs.unlink(&ROOT, fs.root(), name.as_bytes()).await.expect("removed");
        }
        let new = format!("new-{page}");
        fs.mknod(&ROOT, fs.root(), new.as_bytes(), Kind::Fifo, 0o644, 0).await.ok();
        fs.unlink(&ROOT, fs.root(), new.as_bytes()).await.ok();
        page += 1;
    }
    assert!(page >= 5 && seen.values().all(|count| *count == 1));
    let removed = |name: &String| (0..page).any(|page| *name == names[page * 100] || *name == names[1999 - page * 100]);
    for name in names.iter().filter(|name| !removed(name)) {
        assert!(seen.contains_key(name), "{name} was there all the while");
    }
    assert_eq!(denied(fs.readdir(&Caller { uid: 9, ..ROOT }, meta::Ino(999_999), 0, 1).await), Denied::Stale);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_targets_at_their_limits() {
    let world = World::new();
    let fs = world.mount();
    let root = fs.root();
    let longest = vec![b'n'; 255];
    fs.mkdir(&ROOT, root, &longest, 0o755).await.expect("made");
    assert_eq!(fs.lookup(&ROOT, root, &longest).await.expect("there").kind, Kind::Directory);
    let raw = [0xff, 0xfe, b'\n', 1];
    fs.mkdir(&ROOT, root, &raw, 0o755).await.expect("names are bytes");
    assert_eq!(fs.mkdir(&ROOT, root, &[b'n'; 256], 0o755).await, Err(FsError::NameTooLong));
    for bad in [&b"a/b"[..], b".", b"..", b"a\0b"] {
        assert_eq!(fs.mkdir(&ROOT, root, bad, 0o755).await, Err(FsError::Invalid));
    }
    assert_eq!(denied(fs.lookup(&ROOT, root, b"").await), Denied::NotFound);

    let target = vec![b't'; 4095];
    let link = fs.symlink(&ROOT, root, b"link", &target).await.expect("made");
    assert_eq!(link.size, 4095);
    assert_eq!(fs.readlink(&ROOT, link.ino).await.as_deref(), Ok(&target[..]));
    assert_eq!(fs.symlink(&ROOT, root, b"l", &[b't'; 4096]).await, Err(FsError::NameTooLong));
    assert_eq!(denied(fs.symlink(&ROOT, root, b"l", b"").await), Denied::NotFound);
    assert_eq!(denied(fs.readlink(&ROOT, root).await), Denied::Invalid);
    let names = fs.readdir(&ROOT, root, 0, 10).await.expect("listed").entries;
    assert_eq!(names.into_iter().map(|entry| entry.name).collect::<Vec<_>>(), [&longest[..], &raw, b"link"]);
    fs.access(&ROOT, root, 7).await.expect("root may");
    assert_eq!(fs.statfs(&ROOT).await.expect("asked").name_max, 255);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_attributes() {
    let world = World::new();
    let fs = world.mount();
    let ino = write_file(&fs, "file", b"x").await.ino;
    let value = noise(1, 65_536);
    fs.setxattr(&ROOT, ino, b"user.big", &value, XattrHow::Create).await.expect("set");
    fs.setxattr(&ROOT, ino, b"security.capability", b"", XattrHow::Set).await.expect("set");
    fs.setxattr(&ROOT, ino, b"trusted.a.b", b"1", XattrHow::Set).await.expect("set");
    assert_eq!(fs.getxattr(&ROOT, ino, b"user.big").await, Ok(value));
    assert_eq!(fs.getxattr(&ROOT, ino, b"security.capability").await, Ok(Vec::new()));
    assert_eq!(denied(fs.setxattr(&ROOT, ino, b"user.big", b"", XattrHow::Create).await), Denied::Exists);
    assert_eq!(denied(fs.getxattr(&ROOT, ino, b"user.none").await), Denied::NoAttribute);
    let mut names = fs.listxattr(&ROOT, ino).await.expect("listed");
    names.sort();
    assert_eq!(names, [&b"security.capability"[..], b"trusted.a.b", b"user.big"]);
    fs.removexattr(&ROOT, ino, b"user.big").await.expect("removed");
    assert_eq!(denied(fs.removexattr(&ROOT, ino, b"user.big").await), Denied::NoAttribute);

    assert_eq!(fs.getxattr(&ROOT, ino, b"other.x").await, Err(FsError::NotSupported));
    assert_eq!(fs.getxattr(&ROOT, ino, b"user.").await, Err(FsError::Invalid));
    let long = [&b"user."[..], &[b'x'; 251]].concat();
    assert_eq!(fs.getxattr(&ROOT, ino, &long).await, Err(FsError::NameTooLong));
    let too_long = vec![0; 65_537];
    assert_eq!(fs.setxattr(&ROOT, ino, b"user.x", &too_long, XattrHow::Set).await, Err(FsError::ValueTooLong));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_a_name_goes_when_it_is_closed_unless_it_got_one() {
    let world = World::new();
    let (fs, other) = (world.mount(), world.mount());
    let bytes = noise(1, 30_000);
    for name in [None, Some(&b"first"[..]), Some(b"second")] {
        let opened = fs.create_unnamed(&ROOT, fs.root(), 0o640, OpenFlags::writing()).await.expect("made");
        assert_eq!((opened.attr.nlink, opened.attr.mode), (0, 0o640));
        write_all(&fs, opened.handle, 0, &bytes).await;
        let ino = opened.attr.ino;
        if name == Some(b"first") {
            // Named while something is not committed, and after.
            let linked = fs.link(&ROOT, ino, fs.root(), b"first").await.expect("linked");
            assert_eq!((linked.nlink, linked.size), (1, 30_000));
        }
        fs.flush(opened.handle).await.expect("flushed");
        if name == Some(b"second") {
            assert_eq!(fs.getattr(&ROOT, ino).await.expect("there").nlink, 0);
            fs.link(&ROOT, ino, fs.root(), b"second").await.expect("linked");
        }
        assert!(read_all(&fs, opened.handle).await == bytes);
        fs.release(opened.handle).await.expect("released");
        fs.sync_names().await.expect("sent");
        match name {
            None => assert_eq!(denied(other.getattr(&ROOT, ino).await), Denied::Stale),
            Some(name) => assert!(read_file(&other, std::str::from_utf8(name).expect("a name")).await == bytes),
        }
    }
    assert_eq!(world.replicas.state().counts().orphans, 0);
    assert_eq!(world.replicas.state().counts().inodes, 3);
    assert_eq!(world.replicas.state().audit(), Ok(()));
    let reading = fs.create_unnamed(&ROOT, fs.root(), 0o640, OpenFlags::reading()).await;
    assert_eq!(reading, Err(FsError::Invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_while_it_gets_its_first_name_is_kept_with_all_that_was_written() {
    let world = World::new();
    let fs = Arc::new(world.mount());
    for round in 0..50u64 {
        let opened = fs.create_unnamed(&ROOT, fs.root(), 0o600, OpenFlags::writing()).await.expect("made");
        let name = format!("f{round}");
        write_all(&fs, opened.handle, 0, &noise(round, 5_000)).await;
        let (linking, linked) = (fs.clone(), name.clone());
        let linking =
            tokio::spawn(async move { linking.link(&ROOT, opened.attr.ino, linking.root(), linked.as_bytes()).await });
        for _ in 0..round % 7 {
            tokio::task::yield_now().await;
        }
        // Not flushed, as if it was written through a mapping.
        fs.release(opened.handle).await.expect("released");
        if linking.await.expect("no panic").is_ok() {
            fs.sync_all().await.expect("sent");
            assert!(read_file(&world.mount(), &name).await == noise(round, 5_000), "round {round}");
        }
    }
    until(|| world.replicas.state().counts().orphans == 0).await;
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_let_go_gets_no_name_any_more() {
    let world = World::with(Chunking { min: 4 << 10, average: 8 << 10, max: 16 << 10 }, 0);
    let fs = Arc::new(world.mount());
    let opened = fs.create_unnamed(&ROOT, fs.root(), 0o600, OpenFlags::writing()).await.expect("made");
    // So much that a commit waits for its blocks.
    write_all(&fs, opened.handle, 0, &noise(1, 2_000_000)).await;
    world.stores.open.send_replace(false);
    let syncing = fs.clone();
    let syncing = tokio::spawn(async move { syncing.fsync(opened.handle).await });
    until(|| world.stores.open.receiver_count() > 0).await;
    // The last close waits for that commit, to drop what is not committed.
    let mut closing = std::pin::pin!(fs.release(opened.handle));
    assert!(futures::poll!(&mut closing).is_pending());
    assert_eq!(denied(fs.link(&ROOT, opened.attr.ino, fs.root(), b"late").await), Denied::NotFound);
    world.stores.open.send_replace(true);
    closing.await.expect("released");
    let _ = syncing.await.expect("no panic");
    fs.sync_all().await.expect("sent");
    assert_eq!(denied(fs.lookup(&ROOT, fs.root(), b"late").await), Denied::NotFound);
    assert_eq!(world.replicas.state().counts().orphans, 0);
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

/// An access list as programs give it: its entries, each what it is of, what that may, and its id.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entry =
        |(tag, may, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat();
    [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
}

const NONE: u32 = u32::MAX;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_lists_decide_here_as_they_do_elsewhere() {
    const ACCESS: &[u8] = b"system.posix_acl_access";
    const DEFAULT: &[u8] = b"system.posix_acl_default";
    let world = World::new();
    let (fs, other) = (world.mount(), world.mount());
    let (alice, bob) = (Caller { uid: 1, gid: 1, groups: vec![] }, Caller { uid: 2, gid: 2, groups: vec![] });
    let directory = fs.mkdir(&alice, fs.root(), b"d", 0o700).await.expect("made").ino;
    assert_eq!(denied(fs.lookup(&bob, directory, b"f").await), Denied::Access);
    let bob_in = list(&[(1, 7, NONE), (2, 5, 2), (4, 0, NONE), (16, 7, NONE), (32, 0, NONE)]);
    for name in [ACCESS, DEFAULT] {
        assert_eq!(denied(fs.setxattr(&bob, directory, name, &bob_in, XattrHow::Set).await), Denied::NotPermitted);
        assert_eq!(denied(fs.getxattr(&bob, directory, name).await), Denied::NoAttribute);
        fs.setxattr(&alice, directory, name, &bob_in, XattrHow::Set).await.expect("set");
        assert_eq!(fs.getxattr(&bob, directory, name).await, Ok(bob_in.clone()));
    }
    assert_eq!(fs.getattr(&alice, directory).await.expect("there").mode, 0o770);
    let masked = client::fs::NewMode { mode: 0o666, umask: 0o027 };
    let made = fs.create(&alice, directory, b"f", masked, OpenFlags::writing(), true).await.expect("made");
    assert_eq!(made.attr.mode, 0o660, "the directory says what is given");
    write_all(&fs, made.handle, 0, b"for Bob").await;
    close(&fs, made.handle).await;
    assert_eq!(fs.listxattr(&bob, made.attr.ino).await, Ok(vec![ACCESS.to_vec()]));
    assert_eq!(fs.listxattr(&bob, directory).await.expect("listed").len(), 2);
    for fs in [&fs, &other] {
        let found = fs.lookup(&bob, directory, b"f").await.expect("there");
        let opened = fs.open(&bob, found.ino, OpenFlags::reading()).await.expect("allowed");
        assert_eq!(fs.read(opened.handle, 0, 100).await.expect("read"), &b"for Bob"[..]);
        fs.release(opened.handle).await.expect("released");
        assert_eq!(denied(fs.open(&bob, found.ino, OpenFlags::writing()).await), Denied::Access);
        assert_eq!(denied(fs.mkdir(&bob, directory, b"x", 0o700).await), Denied::Access);
    }
    // Away with it: by no bytes, or by its name.
    other.setxattr(&alice, directory, DEFAULT, b"", XattrHow::Set).await.expect("gone");
    assert_eq!(denied(other.removexattr(&alice, directory, DEFAULT).await), Denied::NoAttribute);
    other.removexattr(&alice, directory, ACCESS).await.expect("gone");
    for fs in [&other, &fs] {
        assert_eq!(denied(fs.lookup(&bob, directory, b"f").await), Denied::Access);
        assert_eq!(fs.listxattr(&alice, directory).await, Ok(vec![]));
    }
    let many: Vec<_> = (0..40).map(|id| (2, 7, id)).collect();
    let many = list(&[&[(1, 7, NONE)], &many[..], &[(4, 0, NONE), (16, 7, NONE), (32, 0, NONE)]].concat());
    assert_eq!(denied(fs.setxattr(&alice, directory, ACCESS, &many, XattrHow::Set).await), Denied::AttributesFull);
    assert_eq!(fs.setxattr(&alice, directory, ACCESS, b"nonsense", XattrHow::Set).await, Err(FsError::NotSupported));
    assert_eq!(world.replicas.state().audit(), Ok(()));
}
