//! The namespace: names, links, renames, listings, what is unlinked but open, extended attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use client::fs::{FsError, OpenFlags};
use meta::{Caller, Denied, Kind, RenameHow, XattrHow};

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
