//! The local block cache: sealed blocks in memory and, if wanted, on disk, and opened ones in
//! memory. All bounded; losing any of it costs time and nothing else.
//!
//! Concurrent requests for one block share one fetch. What the disk gives back is hashed before it
//! is believed, and a disk that is full or broken only makes the cache smaller.

mod disk;
mod unused;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::Arc;

use base::BlockId;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::backend::{BlockError, BlockStore};
use disk::DiskCache;
pub use unused::remove_unused_caches;

/// How much the cache may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Sealed blocks in memory, bytes.
    pub memory_bytes: u64,
    /// Opened chunks in memory, bytes.
    pub opened_bytes: u64,
    /// Sealed blocks on disk; `None`: none.
    pub disk: Option<DiskOptions>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        CacheOptions { memory_bytes: 128 << 20, opened_bytes: 64 << 20, disk: None }
    }
}

/// The part of the cache that lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Where. The folder is made if it is missing; two mounts must not share one.
    pub dir: PathBuf,
    /// How much it may hold, bytes.
    pub bytes: u64,
}

impl DiskOptions {
    /// A cache of the usual size, 1 GiB, in `dir`.
    #[must_use]
    pub fn in_dir(dir: impl Into<PathBuf>) -> DiskOptions {
        DiskOptions { dir: dir.into(), bytes: 1 << 30 }
    }
}

/// How often each part of the cache had what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Found in memory, sealed.
    pub memory_hits: u64,
    /// Found on disk.
    pub disk_hits: u64,
    /// Fetched from the store.
    pub fetches: u64,
}

/// A bounded cache of sealed blocks before a [`BlockStore`].
#[derive(Debug)]
pub struct BlockCache<B> {
    store: Arc<B>,
    memory: Mutex<Lru<BlockId, Bytes>>,
    disk: Option<Arc<DiskCache>>,
    flights: SingleFlight<BlockId, Result<Bytes, BlockError>>,
    counts: Mutex<CacheCounts>,
}

impl<B: BlockStore> BlockCache<B> {
    /// A cache before `store`. A disk folder that can't be used is reported and done without.
    #[must_use]
    pub fn new(store: Arc<B>, options: &CacheOptions) -> BlockCache<B> {
        let disk = options.disk.as_ref().and_then(|disk| {
            DiskCache::open(disk)
                .map(Arc::new)
                .inspect_err(|error| {
                    tracing::warn!(%error, dir = %disk.dir.display(), "no block cache on disk");
                })
                .ok()
        });
        BlockCache {
            store,
            memory: Mutex::new(Lru::new(options.memory_bytes)),
            disk,
            flights: SingleFlight::default(),
            counts: Mutex::default(),
        }
    }

    /// The store behind the cache.
    #[must_use]
    pub fn store(&self) -> &Arc<B> {
        &self.store
    }

    /// How often each part had what was asked for.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        *self.counts.lock()
    }

    /// The sealed block `id`, from the nearest place that has it.
    ///
    /// # Errors
    /// As [`BlockStore::get`]. Everybody who waits for the same fetch gets the same error.
    pub async fn get(&self, id: BlockId) -> Result<Bytes, BlockError> {
        if let Some(bytes) = self.memory.lock().get(&id) {
            self.counts.lock().memory_hits += 1;
            return Ok(bytes);
        }
        self.flights.run(id, || self.fetch(id)).await
    }

    /// Keeps a sealed block in memory; for blocks that were just written.
    pub fn keep(&self, id: BlockId, sealed: Bytes) {
        let cost = sealed.len() as u64;
        self.memory.lock().insert(id, sealed, cost);
    }

    async fn fetch(&self, id: BlockId) -> Result<Bytes, BlockError> {
        if let Some(disk) = &self.disk
            && let Some(bytes) = disk.clone().get(id).await
        {
            self.counts.lock().disk_hits += 1;
            self.keep(id, bytes.clone());
            return Ok(bytes);
        }
        let bytes = self.store.get(id).await?;
        self.counts.lock().fetches += 1;
        self.keep(id, bytes.clone());
        if let Some(disk) = &self.disk {
            disk.clone().put(id, bytes.clone());
        }
        Ok(bytes)
    }
}

/// Runs one future a key at a time; whoever asks for a key that is under way gets its result.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, V> {
    flights: Mutex<HashMap<K, Arc<OnceCell<V>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        SingleFlight { flights: Mutex::default() }
    }
}

impl<K: Eq + Hash + Copy, V: Clone> SingleFlight<K, V> {
    /// The result for `key`: of the run under way, else of `run`. If whoever runs is cancelled,
    /// one of those that wait runs its own.
    pub(crate) async fn run<F: Future<Output = V>>(&self, key: K, run: impl FnOnce() -> F) -> V {
        let flight = self.flights.lock().entry(key).or_default().clone();
        let value = flight.get_or_init(run).await.clone();
        let mut flights = self.flights.lock();
        if flights.get(&key).is_some_and(|found| Arc::ptr_eq(found, &flight)) {
            flights.remove(&key);
        }
        value
    }
}

/// A map bounded by the cost of its values, that forgets the least recently used first.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    values: HashMap<K, Entry<V>>,
    order: BTreeMap<u64, K>,
    cost: u64,
    cost_max: u64,
    tick: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    cost: u64,
    tick: u64,
}

impl<K: Eq + Hash + Copy, V: Clone> Lru<K, V> {
    pub(crate) fn new(cost_max: u64) -> Lru<K, V> {
        Lru { values: HashMap::new(), order: BTreeMap::new(), cost: 0, cost_max, tick: 0 }
    }

    /// The value of `key`, which is now the most recently used.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.values.get_mut(key)?;
        self.tick += 1;
        self.order.remove(&entry.tick);
        self.order.insert(self.tick, *key);
        entry.tick = self.tick;
        Some(entry.value.clone())
    }

    /// Adds a value, for which others may have to go. One that alone costs too much is not added.
    pub(crate) fn insert(&mut self, key: K, value: V, cost: u64) {
        self.remove(&key);
        if cost > self.cost_max {
            return;
        }
        self.tick += 1;
        self.order.insert(self.tick, key);
        self.values.insert(key, Entry { value, cost, tick: self.tick });
        self.cost += cost;
        while self.cost > self.cost_max {
            let (_, oldest) = self.order.first_key_value().expect("something costs something");
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(entry) = self.values.remove(key) {
            self.order.remove(&entry.tick);
            self.cost -= entry.cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::backend::StoreSpace;

    #[derive(Debug, Default)]
    struct Shelf {
        blocks: Mutex<HashMap<BlockId, Bytes>>,
        gets: AtomicUsize,
        gate: Option<tokio::sync::Semaphore>,
    }

    impl Shelf {
        fn add(&self, bytes: impl Into<Bytes>) -> BlockId {
            let bytes = bytes.into();
            let id = BlockId::blake3(blake3::hash(&bytes).into());
            self.blocks.lock().insert(id, bytes);
            id
        }
    }

    impl BlockStore for Shelf {
        async fn put(&self, blocks: Vec<(BlockId, Bytes)>) -> Result<(), BlockError> {
            self.blocks.lock().extend(blocks);
            Ok(())
        }
        async fn get(&self, id: BlockId) -> Result<Bytes, BlockError> {
            self.gets.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.acquire().await.expect("open").forget();
            }
            self.blocks.lock().get(&id).cloned().ok_or(BlockError::Missing(id))
        }
        async fn space(&self) -> Option<StoreSpace> {
            None
        }
    }

    fn on_disk(dir: &std::path::Path, bytes: u64) -> CacheOptions {
        let disk = Some(DiskOptions { dir: dir.to_owned(), bytes });
        CacheOptions { memory_bytes: 0, opened_bytes: 0, disk }
    }

    async fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::task::yield_now().await;
        }
    }

    fn files(dir: &std::path::Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).expect("readable").flatten() {
            if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
        }
        found
    }

    #[tokio::test]
    async fn memory_holds_the_recently_used_within_its_bound() {
        let shelf = Arc::new(Shelf::default());
        let ids: Vec<_> = (0..4u8).map(|byte| shelf.add(vec![byte; 100])).collect();
        let options = CacheOptions { memory_bytes: 350, opened_bytes: 0, disk: None };
        let cache = BlockCache::new(shelf.clone(), &options);
        for id in [0, 1, 2, 0, 3, 0, 1] {
            assert_eq!(cache.get(ids[id]).await.expect("there")[0], id as u8);
        }
        assert_eq!(cache.counts(), CacheCounts { memory_hits: 2, disk_hits: 0, fetches: 5 }, "1 went for 3");
        assert!(cache.memory.lock().cost <= 350);
    }

    #[tokio::test]
    async fn concurrent_gets_share_one_fetch_and_its_error() {
        let gate = Some(tokio::sync::Semaphore::new(0));
        let shelf = Arc::new(Shelf { gate, ..Shelf::default() });
        let (id, missing) = (shelf.add("block"), BlockId::blake3([9; 32]));
        let cache = Arc::new(BlockCache::new(shelf.clone(), &CacheOptions::default()));
        for id in [id, missing] {
            let before = shelf.gets.load(Ordering::SeqCst);
            let readers: Vec<_> = (0..10)
                .map(|_| (cache.clone(), id))
                .map(|(c, id)| tokio::spawn(async move { c.get(id).await }))
                .collect();
            until(|| cache.flights.flights.lock().get(&id).is_some_and(|flight| Arc::strong_count(flight) == 11)).await;
            shelf.gate.as_ref().expect("set").add_permits(1);
            for reader in readers {
                let expected = shelf.blocks.lock().get(&id).cloned().ok_or(BlockError::Missing(id));
                assert_eq!(reader.await.expect("no panic"), expected);
            }
            assert_eq!(shelf.gets.load(Ordering::SeqCst), before + 1);
        }
        assert!(cache.flights.flights.lock().is_empty());
    }

    fn size_of(dir: &std::path::Path) -> u64 {
        files(dir).iter().map(|file| file.metadata().expect("there").len()).sum()
    }

    #[tokio::test]
    async fn disk_outlives_the_process_is_hash_checked_and_bounded() {
        let dir = tempfile::tempdir().expect("a folder");
        let shelf = Arc::new(Shelf::default());
        let ids: Vec<_> = (0..40u8).map(|byte| shelf.add(vec![byte; 1000])).collect();
        let open = || BlockCache::new(shelf.clone(), &on_disk(dir.path(), 20_000));
        let cache = open();
        for &id in &ids[..10] {
            cache.get(id).await.expect("there");
        }
        until(|| cache.disk.as_ref().expect("open").is_idle()).await;
        drop(cache);

        let cache = open();
        for (byte, &id) in ids[..10].iter().enumerate() {
            assert_eq!(cache.get(id).await.expect("there"), vec![byte as u8; 1000]);
        }
        assert_eq!(cache.counts(), CacheCounts { memory_hits: 0, disk_hits: 10, fetches: 0 });
        for file in files(dir.path()) {
            let mut bytes = std::fs::read(&file).expect("read");
            bytes.iter_mut().skip(500).step_by(700).for_each(|byte| *byte ^= 1);
            std::fs::write(file, bytes).expect("written");
        }
        assert_eq!(cache.get(ids[0]).await.expect("there"), vec![0; 1000], "a flipped bit is fetched again");
        assert_eq!(cache.counts().fetches, 1);
        for &id in &ids {
            cache.get(id).await.expect("there");
            until(|| cache.disk.as_ref().expect("open").is_idle()).await;
            assert!(size_of(dir.path()) <= 20_000);
        }
        let before = cache.counts();
        for &id in &ids[25..] {
            cache.get(id).await.expect("there");
        }
        assert_eq!(cache.counts().fetches, before.fetches, "the newest are there");
    }

    #[tokio::test]
    async fn what_is_torn_on_disk_is_left_out_and_what_is_used_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let shelf = Arc::new(Shelf::default());
        let ids: Vec<_> = (0..100u8).map(|byte| shelf.add(vec![byte; 1000])).collect();
        std::fs::create_dir(dir.path().join("0f")).expect("made");
        std::fs::write(dir.path().join("0f/01-0f"), "a block of an older release").expect("written");
        let open = || BlockCache::new(shelf.clone(), &on_disk(dir.path(), 20_000));
        let cache = open();
        assert_eq!(size_of(dir.path()), 0);
        for &id in &ids[..3] {
            cache.get(id).await.expect("there");
            until(|| cache.disk.as_ref().expect("open").is_idle()).await;
        }
        drop(cache);
        let newest = files(dir.path()).into_iter().max().expect("a file");
        let mut bytes = std::fs::read(&newest).expect("read");
        bytes.truncate(bytes.len() - 1);
        std::fs::write(&newest, bytes).expect("written");

        let cache = open();
        for &id in &ids[..3] {
            cache.get(id).await.expect("there");
        }
        assert_eq!(cache.counts(), CacheCounts { memory_hits: 0, disk_hits: 2, fetches: 1 });
        // One is asked for again and again while all the others pass.
        for &id in &ids {
            cache.get(id).await.expect("there");
            until(|| cache.disk.as_ref().expect("open").is_idle()).await;
            cache.get(ids[0]).await.expect("there");
            until(|| cache.disk.as_ref().expect("open").is_idle()).await;
        }
        assert_eq!(cache.counts().fetches, 98, "each once");
    }

    #[tokio::test]
    async fn a_broken_disk_only_makes_the_cache_smaller() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        std::fs::write(&file, "in the way").expect("written");
        let shelf = Arc::new(Shelf::default());
        let id = shelf.add("block");
        let cache = BlockCache::new(shelf.clone(), &on_disk(&file, 250));
        assert_eq!(cache.get(id).await.expect("there"), "block");

        let gone = dir.path().join("gone");
        let cache = BlockCache::new(shelf, &on_disk(&gone, 250));
        std::fs::remove_dir_all(&gone).expect("removed");
        std::fs::write(&gone, "in the way").expect("written");
        assert_eq!(cache.get(id).await.expect("there"), "block");
        until(|| cache.disk.as_ref().expect("open").is_idle()).await;
        assert_eq!(cache.get(id).await.expect("there"), "block");
    }
}
