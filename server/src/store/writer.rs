//! The two threads behind a put: one appends and syncs, one enters in the index and answers.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use base::BlockId;
use bytes::Bytes;
use parking_lot::Mutex;

use super::append::{Active, Scratch};
use super::segment::{Location, record_len};
use super::segments::Position;
use super::{BLOCK_BYTES_MAX, Done, Put, PutOutcome, Shared};
use crate::folder::durable;

/// A group is written once it has this many bytes, though more may wait.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// Groups that are synced and wait to be entered in the index.
const SETTLE_QUEUE_MAX: usize = 4;

/// Starts the threads; they end when the sender of `puts` is dropped.
pub(super) fn start(shared: &Arc<Shared>, puts: Receiver<Put>) -> io::Result<Vec<JoinHandle<()>>> {
    let (settle, to_settle) = mpsc::sync_channel(SETTLE_QUEUE_MAX);
    let settling = Arc::new(Mutex::new(BTreeSet::new()));
    let settler = Settler { shared: shared.clone(), settling: settling.clone(), unsynced_bytes: 0, last: None };
    let writer = Writer { shared: shared.clone(), settling, settle, active: None, scratch: Scratch::default() };
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    Ok(vec![
        named("store-writer").spawn(move || writer.run(&puts))?,
        named("store-settler").spawn(move || settler.run(&to_settle))?,
    ])
}

/// What has become of one block of a group so far.
#[derive(Clone, Copy)]
enum Verdict {
    /// It needs no writing.
    Final(PutOutcome),
    /// It is written with the group.
    Placed,
    /// The same block is written with the group for an earlier put.
    Shares,
}

/// A synced group on its way to the index.
struct Settle {
    placed: Vec<(BlockId, Location)>,
    /// All before it is durable.
    upto: Option<(Position, u64)>,
    answers: Vec<(Done, Vec<PutOutcome>)>,
}

/// What is to be appended at once.
#[derive(Default)]
pub(super) struct Group {
    /// The blocks and their places, at first from the group's start.
    pub(super) placed: Vec<(BlockId, Location)>,
    pub(super) bodies: Vec<Bytes>,
    ids: BTreeSet<BlockId>,
    /// The length of all their records.
    pub(super) bytes: u64,
}

/// Why a group was not written.
enum Unwritten {
    Full,
    Failed(String),
}

struct Writer {
    shared: Arc<Shared>,
    /// Blocks that are durable and not in the index yet.
    settling: Arc<Mutex<BTreeSet<BlockId>>>,
    settle: SyncSender<Settle>,
    active: Option<Active>,
    scratch: Scratch,
}

impl Writer {
    fn run(mut self, puts: &Receiver<Put>) {
        while let Ok(first) = puts.recv() {
            let mut bytes = put_bytes(&first);
            let mut waiting = vec![first];
            while bytes < GROUP_BYTES_MAX {
                let Ok(put) = puts.try_recv() else { break };
                bytes += put_bytes(&put);
                waiting.push(put);
            }
            let settle = self.store(waiting);
            if let Err(unsent) = self.settle.send(settle) {
                self.shared.fail("the thread that keeps the index has ended".to_owned());
                for (done, outcomes) in unsent.0.answers {
                    done(vec![PutOutcome::Failed; outcomes.len()]);
                }
            }
        }
    }

    /// Writes and syncs what is new in these puts, and says what became of each block.
    fn store(&mut self, puts: Vec<Put>) -> Settle {
        let mut group = Group::default();
        let mut room = self.shared.room();
        let mut verdicts = Vec::with_capacity(puts.len());
        for put in &puts {
            let judged = put.blocks.iter().map(|block| self.judge(block, &mut group, &mut room));
            verdicts.push(judged.collect::<Vec<_>>());
        }
        let written = if group.placed.is_empty() { Ok(()) } else { self.write(&mut group, room) };
        if let Err(Unwritten::Failed(cause)) = &written {
            self.shared.fail(cause.clone());
        }
        if group.placed.is_empty() || written.is_err() {
            group.placed.clear();
        }
        let answers = puts.into_iter().zip(verdicts).map(|(put, verdicts)| {
            let outcomes = verdicts.into_iter().map(|verdict| outcome(verdict, &written));
            (put.done, outcomes.collect::<Vec<_>>())
        });
        let answers: Vec<_> = answers.collect();
        self.count(&answers);
        self.settling.lock().extend(group.placed.iter().map(|(id, _)| *id));
        let upto = self.active.as_ref().filter(|_| !group.placed.is_empty());
        let upto = upto.map(|active| (Position { segment: active.number, offset: active.end }, active.salt));
        Settle { placed: group.placed, upto, answers }
    }

    /// Decides what to do with one block, and adds it to the group if it is to be written.
    fn judge(&self, (id, body): &(BlockId, Bytes), group: &mut Group, room: &mut u64) -> Verdict {
        let unfit = id.kind != BlockId::BLAKE3 || body.len() > BLOCK_BYTES_MAX;
        if unfit || self.shared.fatal.lock().is_some() {
            return Verdict::Final(PutOutcome::Failed);
        }
        if group.ids.contains(id) {
            return Verdict::Shares;
        }
        // In this order: a block leaves `settling` after it has come into the index.
        if self.settling.lock().contains(id) {
            return Verdict::Final(PutOutcome::Had);
        }
        match self.shared.catalog.locate(id, &self.shared.segments) {
            Ok(Some(_)) => return Verdict::Final(PutOutcome::Had),
            Ok(None) => {}
            Err(_) => return Verdict::Final(PutOutcome::Failed),
        }
        let Some(left) = room.checked_sub(record_len(body.len())) else {
            return Verdict::Final(PutOutcome::Full);
        };
        *room = left;
        let location = Location { segment: 0, offset: group.bytes, length: body.len() as u32 };
        group.bytes += location.record_len();
        group.ids.insert(*id);
        group.placed.push((*id, location));
        group.bodies.push(body.clone());
        Verdict::Placed
    }

    /// Appends the group and syncs it; beside it there is `room`. If there is none for it, nothing of it stays.
    fn write(&mut self, group: &mut Group, room: u64) -> Result<(), Unwritten> {
        let mut active = match self.active.take().filter(|active| active.end < self.shared.tuning.segment_bytes) {
            Some(active) => active,
            None => self.next_segment()?,
        };
        let plan = active.plan(group.bytes, self.shared.tuning.direct_bytes, room);
        for (_, location) in &mut group.placed {
            location.segment = active.number;
            location.offset += plan.start;
        }
        if let Err(error) = active.append(group, plan, &mut self.scratch) {
            if is_full(&error) && active.file.set_len(active.end).is_ok() {
                self.active = Some(active);
                return Err(Unwritten::Full);
            }
            return Err(Unwritten::Failed(format!("cannot write {}: {error}", active.path.display())));
        }
        durable::sync_data(&active.file, &active.path).map_err(|error| {
            // Delayed allocation may find the disk full only now; what is there is not known either way.
            Unwritten::Failed(format!("cannot sync {}: {error}", active.path.display()))
        })?;
        self.shared.segments.add_used((plan.end - active.end) as i64);
        active.end = plan.end;
        self.shared.segments.set_synced(Position { segment: active.number, offset: active.end });
        self.shared.counts.groups.fetch_add(1, Ordering::Relaxed);
        self.active = Some(active);
        Ok(())
    }

    /// The last segment if it can be appended to, else a new one.
    fn next_segment(&self) -> Result<Active, Unwritten> {
        let segments = &self.shared.segments;
        let failed = |error: io::Error| {
            if is_full(&error) { Unwritten::Full } else { Unwritten::Failed(format!("cannot make a segment: {error}")) }
        };
        if let Some(last) = segments.last()
            && let Some(active) = Active::open(&last).map_err(failed)?
            && active.end < self.shared.tuning.segment_bytes
        {
            return Ok(active);
        }
        let new = segments.create().map_err(failed)?;
        Ok(Active::open(&new).map_err(failed)?.expect("a new segment has its header"))
    }

    fn count(&self, answers: &[(Done, Vec<PutOutcome>)]) {
        let counts = &self.shared.counts;
        for outcome in answers.iter().flat_map(|(_, outcomes)| outcomes) {
            let count = match outcome {
                PutOutcome::Stored => &counts.stored,
                PutOutcome::Had => &counts.had,
                PutOutcome::Full => &counts.refused,
                PutOutcome::Failed => &counts.failed,
            };
            count.fetch_add(1, Ordering::Relaxed);
            match outcome {
                PutOutcome::Stored => self.shared.full.store(false, Ordering::Relaxed),
                PutOutcome::Full => self.shared.full.store(true, Ordering::Relaxed),
                PutOutcome::Had | PutOutcome::Failed => {}
            }
        }
    }
}

struct Settler {
    shared: Arc<Shared>,
    settling: Arc<Mutex<BTreeSet<BlockId>>>,
    /// Bytes entered since the index was last synced.
    unsynced_bytes: u64,
    last: Option<(Position, u64)>,
}

impl Settler {
    fn run(mut self, to_settle: &Receiver<Settle>) {
        while let Ok(settle) = to_settle.recv() {
            let entered = self.enter(&settle);
            for (done, mut outcomes) in settle.answers {
                if !entered {
                    outcomes.fill(PutOutcome::Failed);
                }
                done(outcomes);
            }
            if self.unsynced_bytes >= self.shared.tuning.checkpoint_bytes {
                self.checkpoint();
            }
        }
        self.checkpoint();
    }

    /// Enters a group's blocks in the index. False if that can't be done, and the store has failed.
    fn enter(&mut self, settle: &Settle) -> bool {
        let segments = &self.shared.segments;
        for (id, location) in &settle.placed {
            if let Err(error) = self.shared.catalog.insert(id, location, segments) {
                self.shared.fail(format!("the index can't be kept: {error}"));
                return false;
            }
            self.settling.lock().remove(id);
            self.unsynced_bytes += location.record_len();
        }
        self.last = settle.upto.or(self.last);
        true
    }

    fn checkpoint(&mut self) {
        let Some((upto, salt)) = self.last.take() else { return };
        self.unsynced_bytes = 0;
        if let Err(error) = self.shared.catalog.checkpoint(upto, salt, &self.shared.segments) {
            tracing::warn!(%error, "the index was not synced; the next start reads more of the segments");
        }
    }
}

fn put_bytes(put: &Put) -> u64 {
    put.blocks.iter().map(|(_, body)| body.len() as u64).sum()
}

fn outcome(verdict: Verdict, written: &Result<(), Unwritten>) -> PutOutcome {
    match (verdict, written) {
        (Verdict::Final(outcome), _) => outcome,
        (Verdict::Placed, Ok(())) => PutOutcome::Stored,
        (Verdict::Shares, Ok(())) => PutOutcome::Had,
        (_, Err(Unwritten::Full)) => PutOutcome::Full,
        (_, Err(Unwritten::Failed(_))) => PutOutcome::Failed,
    }
}

/// Whether an error says that there is no room (on the disk, in the quota, in a file).
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    [FileTooLarge, QuotaExceeded, StorageFull].contains(&error.kind())
}

#[cfg(test)]
pub(super) mod tests {
    use base::{ClusterId, NodeId};

    use super::*;
    use crate::folder::Identity;
    use crate::folder::durable::faults;
    use crate::store::{IndexKind, Store, StoreOptions, Tuning};

    /// Unmounts when dropped.
    struct Mounted<'a>(&'a std::path::Path);

    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    /// A group of `count` blocks of 10 kB.
    pub(in crate::store) fn group(seed: u8, count: u8) -> Group {
        let mut group = Group::default();
        for number in 0..count {
            let body = Bytes::from([seed, number].repeat(5000));
            let id = BlockId::blake3(*blake3::hash(&body).as_bytes());
            let location = Location { segment: 0, offset: group.bytes, length: body.len() as u32 };
            group.bytes += location.record_len();
            group.placed.push((id, location));
            group.bodies.push(body);
        }
        group
    }

    #[test]
    fn a_write_that_finds_the_disk_full_leaves_nothing_of_its_group() {
        let temp = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("none", temp.path(), "tmpfs", flags, c"size=1m") {
            eprintln!("skipped: mounting a small disk needs root ({error})");
            return;
        }
        let _mounted = Mounted(temp.path());
        let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
        let folder = temp.path().join("blocks");
        let tuning = Tuning { index: IndexKind::Memory, ..Tuning::default() };
        let store = Store::open_tuned(&folder, identity, StoreOptions::default(), tuning).unwrap();
        let (settle, _settled) = mpsc::sync_channel(1);
        let (shared, settling) = (store.shared.clone(), Arc::default());
        let mut writer = Writer { shared, settling, settle, active: None, scratch: Scratch::default() };
        let on_disk = || std::fs::metadata(store.shared.segments.path_of(1)).unwrap().len();

        assert!(writer.write(&mut group(1, 20), 0).is_ok());
        let before = on_disk();
        assert!(matches!(writer.write(&mut group(2, 200), 0), Err(Unwritten::Full)));
        assert_eq!((on_disk(), store.space().used), (before, before));
        assert!(writer.write(&mut group(3, 20), 0).is_ok());
        drop(store);
        drop(writer);
        let store = Store::open_tuned(&folder, identity, StoreOptions::default(), tuning).unwrap();
        let stats = store.stats();
        assert_eq!((stats.blocks, stats.damaged_bytes, stats.torn_bytes), (40, 0, 0));
    }

    #[test]
    fn a_failed_sync_is_final() {
        let temp = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId([1; 16]), node: NodeId(1) };
        let block = |seed: u8| {
            let body = Bytes::from(vec![seed; 1000]);
            (BlockId::blake3(*blake3::hash(&body).as_bytes()), body)
        };
        let store = Store::open(temp.path(), identity, StoreOptions::default()).unwrap();
        let put = |store: &Store, seeds: &[u8]| {
            let (done, outcomes) = mpsc::channel();
            let blocks = seeds.iter().map(|seed| block(*seed)).collect();
            store.put(blocks, Box::new(move |answer| done.send(answer).unwrap()));
            outcomes.recv().unwrap()
        };
        assert_eq!(put(&store, &[1]), [PutOutcome::Stored]);
        faults::fail_syncs(temp.path());
        assert_eq!(put(&store, &[2, 2]), [PutOutcome::Failed; 2]);
        assert!(store.fatal().is_some_and(|cause| cause.contains("cannot sync") && cause.contains("00000001.seg")));
        // The kernel has forgotten; the store has not.
        faults::forgive_syncs(temp.path());
        assert_eq!(put(&store, &[2, 3, 1]), [PutOutcome::Failed; 3]);
        assert_eq!(store.has(&[block(1).0, block(2).0]), [true, false]);
        assert_eq!(store.get(&block(1).0).unwrap(), Some(block(1).1));
        drop(store);
        let store = Store::open(temp.path(), identity, StoreOptions::default()).unwrap();
        assert_eq!((store.has(&[block(1).0]), store.fatal()), (vec![true], None));
        assert!(put(&store, &[2, 3]).iter().all(|outcome| *outcome != PutOutcome::Failed));
    }
}
