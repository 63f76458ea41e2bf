//! Files that lose their last name while they are opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use client::backend::{Metadata, Unavailable};
use client::fs::{Filesystem, OpenFlags, Opened, Result};
use meta::{Answer, Batch, Op};
use tokio::sync::watch;

use super::world::{ROOT, Replicas, SECRET, Stores, World, options, until, write_file};

type ParkedFs = Filesystem<Arc<Parking>, Arc<Stores>>;

/// Replicas whose answers to opening and making files wait at a gate, once they are applied.
struct Parking {
    replicas: Arc<Replicas>,
    gate: watch::Sender<bool>,
    parked: AtomicBool,
}

impl Metadata for Parking {
    async fn batch(&self, batch: Batch) -> std::result::Result<Vec<Answer>, Unavailable> {
        let parks = batch.calls.iter().any(|call| matches!(call.op, Op::Open { .. } | Op::Create { .. }));
        let answers = self.replicas.batch(batch).await;
        if parks {
            self.parked.store(true, Ordering::SeqCst);
            self.gate.subscribe().wait_for(|open| *open).await.expect("the sender lives");
        }
        answers
    }
}

fn parked_mount(world: &World) -> (Arc<ParkedFs>, Arc<Parking>) {
    let (gate, parked) = (watch::channel(false).0, AtomicBool::new(false));
    let parking = Arc::new(Parking { replicas: world.replicas.clone(), gate, parked });
    let (volume, stores) = (world.volume.clone(), world.stores.clone());
    let fs = Filesystem::open_volume(parking.clone(), stores, volume, &SECRET, options());
    (Arc::new(fs.expect("mounted")), parking)
}

/// Starts to open a file, one way or another.
async fn open(fs: &ParkedFs, ino: meta::Ino, way: &str) -> Result<Opened> {
    let flags = OpenFlags::writing();
    match way {
        "open" => fs.open(&ROOT, ino, flags).await,
        "truncate" => fs.open(&ROOT, ino, OpenFlags { truncate: true, ..flags }).await,
        _ => fs.create(&ROOT, fs.root(), way.as_bytes(), 0o644, flags, false).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_unlinked_while_it_is_opened_is_open() {
    // "file" is there, and opened by making it; "new" is not.
    for (way, name, expected) in [
        ("open", "file", &b"01234567 and more"[..]),
        ("truncate", "file", &b"\0\0\0\0\0\0\0\0 and more"[..]),
        ("file", "file", &b"01234567 and more"[..]),
        ("new", "new", &b"\0\0\0\0\0\0\0\0 and more"[..]),
    ] {
        let world = World::new();
        let ino = write_file(&world.mount(), "file", b"01234567").await.ino;
        let (fs, parking) = parked_mount(&world);
        let opening = tokio::spawn({
            let fs = fs.clone();
            async move { open(&fs, ino, way).await }
        });
        until(|| parking.parked.load(Ordering::SeqCst)).await;
        fs.unlink(&ROOT, fs.root(), name.as_bytes()).await.expect("removed");
        // What nobody opens goes meanwhile, or with the last that began before.
        write_file(&world.mount(), "other", b"other").await;
        fs.unlink(&ROOT, fs.root(), b"other").await.expect("removed");
        parking.gate.send_replace(true);
        let opened = opening.await.expect("no panic").expect(way);
        assert_eq!(opened.attr.nlink, 0, "{way}");
        until(|| world.replicas.state().counts().orphans == 1).await;

        fs.write(opened.handle, 8, Bytes::from_static(b" and more")).await.expect("written");
        fs.fsync(opened.handle).await.expect(way);
        assert_eq!(fs.read(opened.handle, 0, 100).await.expect("read"), expected, "{way}");
        assert_eq!(fs.getattr(&ROOT, opened.attr.ino).await.expect("there").nlink, 0);
        fs.flush(opened.handle).await.expect("flushed");
        fs.release(opened.handle).await.expect("released");
        let left = if name == "file" { 1 } else { 2 };
        until(|| world.replicas.state().counts().inodes == left).await;
        assert_eq!(world.replicas.state().counts().orphans, 0);
        assert!(world.replicas.state().audit().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_unlinked_while_an_open_is_given_up_goes() {
    let world = World::new();
    let ino = write_file(&world.mount(), "file", b"content").await.ino;
    let (fs, parking) = parked_mount(&world);
    {
        let root = ROOT;
        let opening = fs.open(&root, ino, OpenFlags::reading());
        tokio::pin!(opening);
        tokio::select! {
            biased;
            _ = &mut opening => panic!("the answer is parked"),
            () = until(|| parking.parked.load(Ordering::SeqCst)) => {}
        }
        fs.unlink(&ROOT, fs.root(), b"file").await.expect("removed");
        assert_eq!(world.replicas.state().counts().orphans, 1);
    }
    until(|| world.replicas.state().counts().inodes == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_removals_are_let_go_in_few_requests() {
    let world = World::new();
    let fs = world.mount();
    for index in 0..300 {
        let name = index.to_string();
        fs.mknod(&ROOT, fs.root(), name.as_bytes(), meta::Kind::File, 0o644, 0).await.expect("made");
    }
    let before = world.replicas.requests.load(Ordering::SeqCst);
    for index in 0..300 {
        fs.unlink(&ROOT, fs.root(), index.to_string().as_bytes()).await.expect("removed");
    }
    until(|| world.replicas.state().counts().inodes == 1).await;
    let requests = world.replicas.requests.load(Ordering::SeqCst) - before;
    assert!(requests < 300 + 100, "{requests}");
}
