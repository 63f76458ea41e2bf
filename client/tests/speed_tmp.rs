#[path = "filesystem/world.rs"]
#[allow(dead_code)]
mod world;
use std::time::Instant;
use world::*;
use bytes::Bytes;
use client::fs::*;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speed() {
    let world = World::with(meta::Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 }, 0);
    let fs = world.mount();
    let opened = create(&fs, "big").await;
    let block = Bytes::from(noise(1, 1 << 20));
    let n = 512u64;
    let t = Instant::now();
    let mut peak = 0;
    for i in 0..n {
        let mut b = block.to_vec();
        b[..8].copy_from_slice(&i.to_le_bytes());
        for j in 0..16 { b[j * 65536 + 100..j * 65536 + 108].copy_from_slice(&(i * 16 + j as u64).to_le_bytes()); }
        let b = Bytes::from(b);
        for j in 0..8usize { fs.write(opened.handle, (i << 20) + (j << 17) as u64, Bytes::copy_from_slice(&b[j << 17..(j + 1) << 17])).await.unwrap(); }
        peak = peak.max(fs.dirty_bytes());
    }
    let w = t.elapsed();
    fs.fsync(opened.handle).await.unwrap();
    println!("write {n} MiB: {:?}, with fsync {:?}; peak dirty {} MiB", w, t.elapsed(), peak >> 20);
    let t = Instant::now();
    for i in 0..50u64 { fs.write(opened.handle, i * 10_000_000, Bytes::from_static(&[1; 4096])).await.unwrap(); fs.fsync(opened.handle).await.unwrap(); }
    println!("50 random 4 KiB write+fsync: {:?}", t.elapsed());
    let t = Instant::now();
    for i in 0..2000u64 { fs.write(opened.handle, (i * 7_919_321) % (n << 20), Bytes::from_static(&[2; 4096])).await.unwrap(); }
    fs.fsync(opened.handle).await.unwrap();
    println!("2000 random 4 KiB writes, one fsync: {:?}", t.elapsed());
    close(&fs, opened.handle).await;
    let fs = world.mount();
    let h = fs.open(&ROOT, opened.attr.ino, OpenFlags::reading()).await.unwrap().handle;
    let t = Instant::now();
    let mut at = 0; loop { let b = fs.read(h, at, 1 << 17).await.unwrap(); if b.is_empty() { break; } at += b.len() as u64; }
    println!("read {} MiB: {:?}", at >> 20, t.elapsed());
    let t = Instant::now();
    for i in 0..5000u64 { fs.read(h, (i * 4096) % (8 << 20), 4096).await.unwrap(); }
    println!("5000 hot 4 KiB reads: {:?}", t.elapsed());
    let t = Instant::now();
    for i in 0..2000u64 { write_file(&fs, &format!("f{i}"), &block[i as usize..i as usize + 4096]).await; }
    println!("2000 small files: {:?}", t.elapsed());
    let o = create(&fs, "bytes").await;
    let t = Instant::now();
    for i in 0..1_000_000u64 { fs.write(o.handle, i, Bytes::from_static(b"x")).await.unwrap(); }
    println!("1M one-byte appends: {:?}", t.elapsed());
    fs.fsync(o.handle).await.unwrap();
    println!("... fsync {:?}", t.elapsed());
}
