//! The block store: what was answered is durable, nothing wrong is ever read, and an index is only
//! an index. Most of it runs over both kinds of index.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use base::{BlockId, ClusterId, NodeId};
use bytes::Bytes;
use proptest::prelude::*;
use server::folder::Identity;
use server::store::{BLOCK_BYTES_MAX, Index, IndexKind, MemIndex, Op, PutOutcome, SledIndex, Stats, Store};
use server::store::{StoreError, StoreOptions, Tuning};

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), node: NodeId(6) };
const KINDS: [IndexKind; 2] = [IndexKind::Sled, IndexKind::Memory];
const HEADER_LEN: u64 = 64;

/// Small segments and frequent checkpoints, so that tests see many of both; and groups of both kinds, written
/// through the kernel's memory and past it.
fn tuning(index: IndexKind) -> Tuning {
    Tuning { segment_bytes: 16 << 10, checkpoint_bytes: 24 << 10, direct_bytes: 4 << 10, index }
}

fn open_as(folder: &Path, kind: IndexKind) -> Result<Store, StoreError> {
    Store::open_tuned(folder, IDENTITY, StoreOptions::default(), tuning(kind))
}

fn open(folder: &Path, kind: IndexKind) -> Store {
    open_as(folder, kind).unwrap()
}

/// A block of `length` bytes that is all its own.
fn block(seed: u32, length: usize) -> (BlockId, Bytes) {
    let mut body = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut body);
    (BlockId::blake3(*blake3::hash(&body).as_bytes()), body.into())
}

fn blocks(seeds: std::ops::Range<u32>) -> Vec<(BlockId, Bytes)> {
    seeds.map(|seed| block(seed, (seed as usize * 211) % 3000)).collect()
}

fn put(store: &Store, blocks: &[(BlockId, Bytes)]) -> Vec<PutOutcome> {
    let (done, outcomes) = mpsc::channel();
    store.put(blocks.to_vec(), Box::new(move |answer| done.send(answer).unwrap()));
    outcomes.recv().unwrap()
}

#[track_caller]
fn assert_all_there(store: &Store, blocks: &[(BlockId, Bytes)]) {
    let ids: Vec<_> = blocks.iter().map(|(id, _)| *id).collect();
    assert!(store.has(&ids).iter().all(|has| *has), "{:?}", store.stats());
    for (id, body) in blocks {
        assert_eq!(store.get(id).unwrap().as_ref(), Some(body), "{id}");
    }
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_into(&path, &target);
        } else if fs::copy(&path, &target).is_err() {
            // The index tidies up after itself while it is copied.
            assert!(!path.exists());
        }
    }
}

/// What killing the process at this moment would leave.
fn killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_into(folder, copy.path());
    copy
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn on_disk(folder: &Path) -> u64 {
    segments(folder).iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

fn edit(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// Where a body is in the segments.
fn find(folder: &Path, body: &[u8]) -> (PathBuf, usize) {
    for path in segments(folder) {
        let bytes = fs::read(&path).unwrap();
        if let Some(place) = bytes.windows(body.len()).step_by(64).position(|window| window == body) {
            return (path, place * 64);
        }
    }
    panic!("the body is in no segment");
}

#[test]
fn a_block_is_stored_once_and_read_back() {
    for kind in KINDS {
        let temp = tempfile::tempdir().unwrap();
        let store = open(temp.path(), kind);
        let (all, absent) = (blocks(0..40), block(1000, 10));
        for some in all.chunks(10) {
            assert_eq!(put(&store, some), [PutOutcome::Stored; 10]);
        }
        assert_all_there(&store, &all);
        assert_eq!((store.has(&[absent.0]), store.get(&absent.0).unwrap()), (vec![false], None));
        let used = store.space().used;
        assert_eq!(put(&store, &all), vec![PutOutcome::Had; 40]);
        assert_eq!(store.space().used, used, "a block that is there costs no write");
        let twice = [absent.clone(), absent.clone(), all[3].clone()];
        assert_eq!(put(&store, &twice), [PutOutcome::Stored, PutOutcome::Had, PutOutcome::Had]);
        assert_eq!(put(&store, &[]), []);
        assert_eq!(store.space().used, on_disk(temp.path()));
        let Stats { blocks, stored, had, .. } = store.stats();
        assert_eq!((blocks, stored, had), (41, 41, 42));
        assert!(segments(temp.path()).len() > 2, "the test is to see several segments");
    }
}

#[test]
fn what_can_not_be_a_block_is_not_stored() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path(), IndexKind::Memory);
    let (good, long) = (block(1, 10), block(2, BLOCK_BYTES_MAX + 1));
    let unknown = (BlockId { kind: 9, ..block(3, 10).0 }, block(3, 10).1);
    assert_eq!(put(&store, &[long, good, unknown]), [PutOutcome::Failed, PutOutcome::Stored, PutOutcome::Failed]);
    let longest = block(4, BLOCK_BYTES_MAX);
    assert_eq!(put(&store, std::slice::from_ref(&longest)), [PutOutcome::Stored]);
    assert_all_there(&store, &[longest]);
}

#[test]
fn a_closed_store_is_read_again_without_a_scan() {
    for kind in KINDS {
        let temp = tempfile::tempdir().unwrap();
        let (first, second) = (blocks(0..40), blocks(40..60));
        let store = open(temp.path(), kind);
        put(&store, &first);
        store.close();
        store.close();
        assert_eq!(put(&store, &second), vec![PutOutcome::Failed; 20]);
        assert!(matches!(store.get(&first[0].0), Err(StoreError::Closed)));
        // Closed is closed, though somebody still holds it.
        let store = open(temp.path(), kind);
        assert_all_there(&store, &first);
        let stats = store.stats();
        assert_eq!(stats.blocks, 40);
        assert_eq!(
            (stats.replayed, stats.index_in_memory),
            if kind == IndexKind::Sled { (0, false) } else { (40, true) }
        );
        put(&store, &second);
        drop(store);
        let store = open(temp.path(), kind);
        assert_all_there(&store, &first);
        assert_all_there(&store, &second);
        assert!(!store.stats().index_rebuilt);
    }
}

#[test]
fn a_killed_store_has_all_that_it_answered() {
    for kind in KINDS {
        let temp = tempfile::tempdir().unwrap();
        let store = open(temp.path(), kind);
        for round in 0..6 {
            put(&store, &blocks(round * 10..round * 10 + 10));
            let crashed = killed(temp.path());
            let reopened = open(crashed.path(), kind);
            assert_all_there(&reopened, &blocks(0..round * 10 + 10));
            assert_eq!(reopened.stats().blocks, u64::from(round) * 10 + 10);
            assert_eq!(reopened.stats().torn_bytes, 0);
        }
    }
}

#[test]
fn a_torn_tail_is_cut_at_any_byte_and_costs_nothing_before_it() {
    for direct_bytes in [u64::MAX, 1] {
        let temp = tempfile::tempdir().unwrap();
        let tuning = Tuning { direct_bytes, ..Tuning::default() };
        let (synced, torn) = (blocks(1..9), blocks(9..11));
        let store = Store::open_tuned(temp.path(), IDENTITY, StoreOptions::default(), tuning).unwrap();
        put(&store, &synced);
        let file = segments(temp.path()).remove(0);
        let before = fs::metadata(&file).unwrap().len();
        put(&store, &torn);
        let crashed = killed(temp.path());
        let file = segments(crashed.path()).remove(0);
        let whole = fs::read(&file).unwrap();
        for cut in (before as usize..whole.len()).step_by(97) {
            for kind in KINDS {
                cut_and_put_again(crashed.path(), &whole[..cut], kind, &synced, &torn);
            }
        }
    }
}

/// Opens a store whose only segment has just these bytes: `synced` is there, what there is of `torn` is sound, and
/// all of it can be put again.
fn cut_and_put_again(
    crashed: &Path,
    segment: &[u8],
    kind: IndexKind,
    synced: &[(BlockId, Bytes)],
    torn: &[(BlockId, Bytes)],
) {
    let again = killed(crashed);
    fs::write(again.path().join("segments/00000001.seg"), segment).unwrap();
    let store = open(again.path(), kind);
    assert_all_there(&store, synced);
    let kept = torn.iter().filter(|(id, body)| store.get(id).unwrap().inspect(|got| assert_eq!(got, body)).is_some());
    let stats = store.stats();
    assert_eq!(stats.blocks as usize, synced.len() + kept.count(), "cut at {}", segment.len());
    assert_eq!(store.space().used, segment.len() as u64 - stats.torn_bytes);
    assert_eq!(store.space().used, on_disk(again.path()));
    put(&store, torn);
    assert_all_there(&store, torn);
}

#[test]
fn groups_of_many_bytes_are_written_past_the_page_cache_and_those_of_few_through_it() {
    use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
    let temp = tempfile::tempdir().unwrap();
    let aligned = |len: usize| (len as u64).next_multiple_of(4096);
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    if fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(direct)
        .open(temp.path().join("x"))
        .is_err()
    {
        eprintln!("skipped: the filesystem of {} opens no file past the page cache", temp.path().display());
        return;
    }
    let tuning = Tuning { direct_bytes: 100 << 10, index: IndexKind::Memory, ..Tuning::default() };
    let open =
        || Store::open_tuned(temp.path().join("s").as_path(), IDENTITY, StoreOptions::default(), tuning).unwrap();
    let store = open();
    // Few bytes, many, many, few: the second and third begin and end where the disk's blocks do.
    let groups = [1000, 150 << 10, 9 << 20, 2000].map(|length| block(length as u32, length.min(BLOCK_BYTES_MAX)));
    let mut ends = Vec::new();
    for group in &groups {
        put(&store, std::slice::from_ref(group));
        ends.push(on_disk(&temp.path().join("s")));
    }
    assert!(ends[0] % 4096 != 0 && ends[1] % 4096 == 0 && ends[2] % 4096 == 0 && ends[3] % 4096 != 0, "{ends:?}");
    assert_eq!(ends[1], aligned(64 + (150 << 10)) + 4096, "padding before it, and behind it");
    assert_all_there(&store, &groups);
    assert_eq!(store.space().used, ends[3]);
    drop(store);
    let store = open();
    let stats = store.stats();
    assert_eq!((stats.blocks, stats.damaged_bytes, stats.torn_bytes), (4, 0, 0));
    assert_all_there(&store, &groups);
    // Padding is no more to be trusted than anything else.
    drop(store);
    let file = fs::File::options().write(true).open(&segments(&temp.path().join("s"))[0]).unwrap();
    file.write_all_at(&[0xff; 16], ends[0]).unwrap();
    let store = open();
    assert!(store.stats().damaged_bytes > 0);
    assert_all_there(&store, &groups);
}

#[test]
fn a_hole_in_the_tail_does_not_take_what_follows_it() {
    for kind in KINDS {
        let temp = tempfile::tempdir().unwrap();
        let store = open(temp.path(), kind);
        let all = [block(1, 900), block(2, 900), block(3, 900)];
        put(&store, &all);
        let crashed = killed(temp.path());
        let (file, place) = find(crashed.path(), &all[0].1);
        edit(&file, |bytes| bytes[place - 64] ^= 1);
        let (_, place) = find(crashed.path(), &all[1].1);
        edit(&file, |bytes| bytes[place + 5] ^= 1);
        let store = open(crashed.path(), kind);
        assert_all_there(&store, &all[2..]);
        assert_eq!((store.has(&[all[0].0, all[1].0]), store.stats().blocks), (vec![false, false], 1));
        assert!(store.stats().damaged_bytes > 1800);
        // The one whose header was sound is known by name; both are mended by a put.
        assert_eq!(store.damaged(None, 10), [all[1].0]);
        assert_eq!(put(&store, &all), [PutOutcome::Stored, PutOutcome::Stored, PutOutcome::Had]);
        assert_all_there(&store, &all);
        assert_eq!(store.stats().damaged, 0);
    }
}

#[test]
fn a_damaged_block_is_never_read_and_the_next_put_mends_it() {
    for kind in KINDS {
        let temp = tempfile::tempdir().unwrap();
        let all = blocks(1..30);
        let store = open(temp.path(), kind);
        all.chunks(10).for_each(|some| drop(put(&store, some)));
        drop(store);
        let store = open(temp.path(), kind);
        let victim = all[4].clone();
        let (file, place) = find(temp.path(), &victim.1);
        edit(&file, |bytes| bytes[place + 17] ^= 0x20);
        assert_eq!(store.has(&[victim.0]), [true], "nobody has looked yet");
        let error = store.get(&victim.0).unwrap_err();
        assert!(
            matches!(&error, StoreError::Corrupt { id, file: found, offset } if *id == victim.0
            && *found == file && *offset == place as u64 - 64),
            "{error}"
        );
        assert!(error.to_string().contains("is damaged") && error.to_string().contains("the next put"), "{error}");
        assert_eq!((store.has(&[victim.0]), store.get(&victim.0).unwrap()), (vec![false], None));
        assert_eq!((store.stats().corrupt, store.stats().damaged, store.stats().blocks), (1, 1, 28));
        // It is remembered, and the rest is not touched. (An index in memory has to look again.)
        drop(store);
        let store = open(temp.path(), kind);
        if kind == IndexKind::Memory {
            assert!(store.get(&victim.0).is_err());
        }
        assert!(!store.stats().index_rebuilt);
        assert_eq!((store.damaged(None, 9), store.damaged(Some(&victim.0), 9)), (vec![victim.0], vec![]));
        assert_eq!(put(&store, std::slice::from_ref(&victim)), [PutOutcome::Stored]);
        assert_all_there(&store, &all);
        assert_eq!((store.stats().damaged, store.stats().blocks), (0, 29));
        drop(store);
        let store = open(temp.path(), kind);
        assert_all_there(&store, &all);
        assert_eq!((store.stats().damaged, store.stats().blocks), (0, 29));
    }
}

#[test]
fn an_index_that_is_gone_or_nonsense_is_rebuilt() {
    type Ruin = fn(&Path);
    let ruins: [(&str, Ruin, bool); 5] = [
        ("removed", |index| fs::remove_dir_all(index).unwrap(), false),
        (
            "a file",
            |index| {
                fs::remove_dir_all(index).unwrap();
                fs::write(index, "not a folder").unwrap();
            },
            true,
        ),
        ("emptied", |index| edit(&index.join("db"), |bytes| bytes.fill(0)), true),
        ("noise", |index| edit(&index.join("db"), |bytes| bytes.fill(0xa5)), true),
        ("cut", |index| edit(&index.join("db"), |bytes| bytes.truncate(bytes.len() / 2)), true),
    ];
    let temp = tempfile::tempdir().unwrap();
    let all = blocks(0..60);
    let store = open(temp.path(), IndexKind::Sled);
    put(&store, &all);
    store.close();
    for (name, ruin, may_fail) in ruins {
        let ruined = killed(temp.path());
        ruin(&ruined.path().join("index"));
        let store = open(ruined.path(), IndexKind::Sled);
        assert_all_there(&store, &all);
        let stats = store.stats();
        assert_eq!((stats.blocks, stats.index_in_memory), (60, false), "{name}");
        assert!(may_fail || !stats.index_rebuilt, "{name}");
        // Moved aside once, it is sound from then on.
        drop(store);
        let store = open(ruined.path(), IndexKind::Sled);
        assert_eq!((store.stats().replayed, store.stats().index_rebuilt), (0, false), "{name}");
        assert_all_there(&store, &all);
    }
}

#[test]
fn an_index_of_other_segments_is_rebuilt() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (temp, seeds) in [(&one, 0..50), (&other, 50..100)] {
        put(&open(temp.path(), IndexKind::Sled), &blocks(seeds));
    }
    fs::remove_dir_all(one.path().join("index")).unwrap();
    copy_into(&other.path().join("index"), &one.path().join("index"));
    let store = open(one.path(), IndexKind::Sled);
    assert!(store.stats().index_rebuilt && one.path().join("index.bad").exists());
    assert_all_there(&store, &blocks(0..50));
    assert_eq!(store.stats().blocks, 50);
}

#[test]
fn an_index_that_has_lost_entries_is_found_out_by_counting() {
    let temp = tempfile::tempdir().unwrap();
    let all = blocks(0..50);
    put(&open(temp.path(), IndexKind::Sled), &all);
    let index = SledIndex::open(&temp.path().join("index")).unwrap();
    let lost = [b"b".as_slice(), &all[7].0.to_array()].concat();
    index.apply(&[Op::Delete { key: lost }]).unwrap();
    index.sync().unwrap();
    drop(index);
    let store = open(temp.path(), IndexKind::Sled);
    assert!(store.stats().index_rebuilt);
    assert_all_there(&store, &all);
}

#[test]
fn an_index_that_is_still_locked_is_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let all = blocks(0..50);
    put(&open(temp.path(), IndexKind::Sled), &all);
    let db = fs::File::open(temp.path().join("index/db")).unwrap();
    db.lock().unwrap();
    let (opened, opening) = mpsc::channel();
    let folder = temp.path().to_owned();
    let opener = std::thread::spawn(move || opened.send(open(&folder, IndexKind::Sled)).is_ok());
    assert!(opening.recv_timeout(std::time::Duration::from_millis(200)).is_err(), "somebody has it open");
    db.unlock().unwrap();
    let store = opening.recv().unwrap();
    assert!(opener.join().unwrap());
    assert!(!store.stats().index_rebuilt && !temp.path().join("index.bad").exists());
    assert_all_there(&store, &all);
}

#[test]
fn flipped_bytes_in_the_index_lose_no_block() {
    let temp = tempfile::tempdir().unwrap();
    let all = blocks(0..150);
    let store = open(temp.path(), IndexKind::Sled);
    all.chunks(10).for_each(|some| drop(put(&store, some)));
    store.close();
    let db = temp.path().join("index/db");
    // Zeros are sled's padding; damage there is seldom noticed and never matters.
    let bytes = fs::read(&db).unwrap();
    let places: Vec<_> = (0..bytes.len()).filter(|place| bytes[*place] != 0).collect();
    let mut rebuilt = 0;
    for round in 0..20 {
        let damaged = killed(temp.path());
        edit(&damaged.path().join("index/db"), |bytes| {
            for flip in 0..1 << (round % 10) {
                bytes[places[(round * 7919 + flip * 104_729) % places.len()]] ^= 1 << (round % 8);
            }
        });
        let store = open(damaged.path(), IndexKind::Sled);
        assert_all_there(&store, &all);
        assert_eq!(store.stats().blocks, 150);
        let stats = store.stats();
        // sled may also go back to an older state; then more of the segments is read again.
        rebuilt += u32::from(stats.index_rebuilt || stats.replayed > 0);
    }
    assert!(rebuilt > 0, "no flip hit anything that mattered");
}

#[test]
fn a_lost_segment_costs_its_own_blocks_only() {
    for kind in KINDS {
        let temp = tempfile::tempdir().unwrap();
        let store = open(temp.path(), kind);
        let all = blocks(1..60);
        all.chunks(8).for_each(|some| drop(put(&store, some)));
        store.close();
        let lost = segments(temp.path()).remove(1);
        let bytes = fs::read(&lost).unwrap();
        let gone = |body: &Bytes| bytes.windows(body.len()).step_by(64).any(|window| window == &body[..]);
        let (gone, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, body)| gone(body));
        fs::remove_file(&lost).unwrap();
        let store = open(temp.path(), kind);
        assert_all_there(&store, &left);
        assert!(!gone.is_empty() && gone.iter().all(|(id, _)| store.get(id).unwrap().is_none()));
        assert!(put(&store, &gone).iter().all(|outcome| *outcome == PutOutcome::Stored));
        assert_all_there(&store, &gone);
    }
}

#[test]
fn a_damaged_segment_header_hides_nothing_from_a_sound_index() {
    let temp = tempfile::tempdir().unwrap();
    let (all, more) = (blocks(1..60), blocks(60..70));
    let store = open(temp.path(), IndexKind::Sled);
    put(&store, &all);
    store.close();
    let count = segments(temp.path()).len();
    segments(temp.path()).iter().for_each(|path| edit(path, |bytes| bytes[50] ^= 1));
    let store = open(temp.path(), IndexKind::Sled);
    assert_all_there(&store, &all);
    put(&store, &more);
    assert_eq!(segments(temp.path()).len(), count + 1, "what can't be scanned is not appended to");
    let crashed = killed(temp.path());
    let store = open(crashed.path(), IndexKind::Sled);
    assert_all_there(&store, &all);
    assert_all_there(&store, &more);
}

#[test]
fn newer_segments_another_nodes_and_a_second_open_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path(), IndexKind::Memory);
    put(&store, &blocks(0..5));
    assert!(matches!(open_as(temp.path(), IndexKind::Memory), Err(StoreError::InUse { .. })));
    store.close();
    let file = segments(temp.path()).remove(0);
    let other = Identity { node: NodeId(1), ..IDENTITY };
    let error = Store::open(temp.path(), other, StoreOptions::default()).map(drop).unwrap_err().to_string();
    assert!(error.contains("belongs to node 6 of cluster 0707") && error.contains("this is node 1"), "{error}");
    edit(&file, |bytes| {
        bytes[8] = 4;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    });
    let before = fs::read(&file).unwrap();
    let error = open_as(temp.path(), IndexKind::Memory).map(drop).unwrap_err().to_string();
    assert!(error.contains("newer version (format 4; this program knows 1)"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_store_at_its_capacity_refuses_puts_and_goes_on_reading() {
    let temp = tempfile::tempdir().unwrap();
    let capacity = 20 * 1088 + HEADER_LEN;
    let options = StoreOptions { capacity_bytes: Some(capacity), reserve_bytes: 0 };
    let store = Store::open(temp.path(), IDENTITY, options).unwrap();
    let all: Vec<_> = (0..25).map(|seed| block(seed, 1000)).collect();
    let outcomes = put(&store, &all);
    let (stored, full) = (&outcomes[..20], &outcomes[20..]);
    assert!(stored.iter().all(|outcome| *outcome == PutOutcome::Stored), "{outcomes:?}");
    assert!(full.iter().all(|outcome| *outcome == PutOutcome::Full), "{outcomes:?}");
    assert_all_there(&store, &all[..20]);
    assert_eq!((store.space().capacity, store.space().used, store.space().free), (capacity, capacity, 0));
    assert!(store.stats().full && store.stats().refused == 5 && store.fatal().is_none());
    drop(store);
    let options = StoreOptions { capacity_bytes: Some(2 * capacity), ..options };
    let store = Store::open(temp.path(), IDENTITY, options).unwrap();
    assert_eq!(put(&store, &all[20..]), [PutOutcome::Stored; 5]);
    assert!(!store.stats().full);
}

/// A small filesystem of its own, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let mounted = rustix::mount::mount("none", folder.path(), "tmpfs", flags, data.as_c_str());
        mounted.inspect_err(|error| eprintln!("skipped: mounting a small disk needs root ({error})")).ok()?;
        Some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_refuses_puts_only_until_there_is_room() {
    for kind in KINDS {
        let Some(disk) = SmallDisk::new("8m") else { return };
        let folder = disk.0.path().join("blocks");
        let ballast = disk.0.path().join("ballast");
        fs::write(&ballast, vec![1; 3 << 20]).unwrap();
        let store = open(&folder, kind);
        let all: Vec<_> = (0..400).map(|seed| block(seed, 30_000)).collect();
        let mut stored = Vec::new();
        for some in all.chunks(7) {
            let outcomes = put(&store, some);
            stored.extend(
                some.iter().zip(outcomes).filter(|(_, outcome)| *outcome == PutOutcome::Stored).map(|(b, _)| b.clone()),
            );
        }
        assert!(!stored.is_empty() && stored.len() < 200 && store.stats().full, "{} stored", stored.len());
        assert_eq!((store.fatal(), store.space().used), (None, on_disk(&folder)));
        assert_all_there(&store, &stored);
        // Restarted on the full disk, it reads, refuses, and does not fail.
        drop(store);
        let store = open(&folder, kind);
        assert_all_there(&store, &stored);
        let rest: &Vec<_> = &(1000..1030).map(|seed| block(seed, 30_000)).collect();
        assert!(put(&store, rest).contains(&PutOutcome::Full));
        fs::remove_file(&ballast).unwrap();
        let outcomes = put(&store, rest);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, PutOutcome::Stored | PutOutcome::Had)), "{outcomes:?}");
        assert!(!store.stats().full);
        assert_all_there(&store, rest);
        drop(store);
        let store = open(&folder, kind);
        assert_all_there(&store, &stored);
        assert_all_there(&store, rest);
        assert_eq!(store.stats().damaged_bytes, 0, "a record cut short by a full disk has left nothing");
    }
}

#[test]
fn a_reserve_is_left_free() {
    let Some(disk) = SmallDisk::new("8m") else { return };
    let options = StoreOptions { capacity_bytes: None, reserve_bytes: 4 << 20 };
    let tuning = Tuning { index: IndexKind::Memory, ..Tuning::default() };
    let store = Store::open_tuned(&disk.0.path().join("blocks"), IDENTITY, options, tuning).unwrap();
    let all: Vec<_> = (0..300).map(|seed| block(seed, 30_000)).collect();
    all.chunks(10).for_each(|some| drop(put(&store, some)));
    let left = rustix::fs::statvfs(disk.0.path()).unwrap();
    assert!(left.f_bavail * left.f_frsize >= 4 << 20);
    assert!(store.stats().stored > 100 && store.stats().full && store.space().free < 32_000, "{:?}", store.space());
}

#[test]
fn puts_from_many_threads_share_syncs_and_all_are_answered() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path(), IndexKind::Sled);
    let all = blocks(0..200);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, all) = (&store, &all);
            scope.spawn(move || {
                // Every block is put by two threads, in different orders and company.
                for some in all[thread % 4 * 50..][..50].chunks(1 + thread) {
                    let outcomes = put(store, some);
                    assert!(outcomes.iter().all(|outcome| matches!(outcome, PutOutcome::Stored | PutOutcome::Had)));
                    for (id, body) in some {
                        assert_eq!(store.get(id).unwrap().as_ref(), Some(body));
                    }
                }
            });
        }
    });
    assert_all_there(&store, &all);
    let stats = store.stats();
    assert_eq!((stats.stored, stats.had, stats.blocks), (200, 200, 200));
    let (done, answers) = mpsc::channel();
    for one in blocks(200..300) {
        let done = done.clone();
        store.put(vec![one], Box::new(move |outcomes| done.send(outcomes).unwrap()));
    }
    assert!(answers.iter().take(100).all(|outcomes| outcomes == [PutOutcome::Stored]));
    assert!(store.stats().groups - stats.groups < 100, "puts that wait share a sync");
}

#[test]
fn a_block_that_holds_records_is_no_records() {
    for kind in KINDS {
        let (temp, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inner = blocks(0..5);
        put(&open(temp.path(), kind), &inner);
        // The end of a segment as a block's body, at the same place in its own segment; and the header
        // before it damaged.
        let body = Bytes::from(fs::read(segments(temp.path()).remove(0)).unwrap().split_off(128));
        let outer = (BlockId::blake3(*blake3::hash(&body).as_bytes()), body);
        put(&open(other.path(), kind), std::slice::from_ref(&outer));
        let crashed = killed(other.path());
        fs::remove_dir_all(crashed.path().join("index")).ok();
        edit(&segments(crashed.path())[0], |bytes| bytes[64] ^= 1);
        let store = open(crashed.path(), kind);
        assert_eq!(store.stats().blocks, 0);
        assert!(inner.iter().all(|(id, _)| store.has(&[*id]) == [false]));
    }
}

#[test]
fn every_index_is_the_same_ordered_map() {
    let temp = tempfile::tempdir().unwrap();
    let indices: [Box<dyn Index>; 2] = [Box::new(SledIndex::open(temp.path()).unwrap()), Box::new(MemIndex::default())];
    let key = |number: u8| vec![number / 8, number];
    let mut model = BTreeMap::new();
    for round in 0..100u8 {
        let (number, other) = (round.wrapping_mul(37) % 50, round.wrapping_mul(11) % 50);
        let ops = [Op::Put { key: key(number), value: vec![round; 5] }, Op::Delete { key: key(other) }];
        let ops = if round % 3 == 0 { &ops[..1] } else { &ops[..] };
        for op in ops {
            match op {
                Op::Put { key, value } => model.insert(key.clone(), value.clone()),
                Op::Delete { key } => model.remove(key),
            };
        }
        let expected: Vec<_> = model.range(key(9)..key(40)).take(7).map(|(k, v)| (k.clone(), v.clone())).collect();
        for index in &indices {
            index.apply(ops).unwrap();
            assert_eq!(index.get(&key(number)).unwrap(), model.get(&key(number)).cloned());
            assert_eq!(index.range(&key(9), &key(40), 7).unwrap(), expected);
            assert_eq!(index.range(&key(40), &key(9), 7).unwrap(), []);
            index.sync().unwrap();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u16>),
    Close,
    Kill,
    /// Kill, and flip a bit somewhere in the segments.
    Flip(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => proptest::collection::vec(0u16..60, 0..12).prop_map(Step::Put),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => any::<u32>().prop_map(Step::Flip),
    ]
}

/// Runs the steps; `lost` counts blocks that a flip may have cost.
fn run(kind: IndexKind, steps: &[Step]) {
    let mut temp = tempfile::tempdir().unwrap();
    let mut store = open(temp.path(), kind);
    let (mut stored, mut flips) = (BTreeMap::new(), 0);
    for step in steps {
        match step {
            Step::Put(seeds) => {
                let some: Vec<_> = seeds.iter().map(|seed| block(u32::from(*seed), usize::from(*seed) * 97)).collect();
                let outcomes = put(&store, &some);
                assert!(outcomes.iter().all(|outcome| matches!(outcome, PutOutcome::Stored | PutOutcome::Had)));
                stored.extend(some);
            }
            Step::Close => {
                store.close();
                store = open(temp.path(), kind);
            }
            Step::Kill | Step::Flip(_) => {
                let crashed = killed(temp.path());
                if let (Step::Flip(place), files @ [_, ..]) = (step, &segments(crashed.path())[..]) {
                    edit(&files[*place as usize % files.len()], |bytes| {
                        let place = *place as usize / 7 % bytes.len();
                        bytes[place] ^= 4;
                    });
                    flips += 1;
                }
                drop(store);
                temp = crashed;
                store = open(temp.path(), kind);
            }
        }
        // Whatever happened, nothing wrong is read, and only flips cost anything.
        let mut gone = Vec::new();
        for (id, body) in &stored {
            match store.get(id) {
                Ok(Some(got)) => assert_eq!(got, body),
                Ok(None) => gone.push((*id, body.clone())),
                Err(StoreError::Corrupt { .. }) => gone.push((*id, body.clone())),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(gone.is_empty() || flips > 0, "lost without a flip: {gone:?}");
        assert!(put(&store, &gone).iter().all(|outcome| *outcome == PutOutcome::Stored));
        assert_eq!(store.stats().blocks as usize, stored.len());
        flips = 0;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_run_reads_what_was_put_in_sled(steps in proptest::collection::vec(step(), 1..12)) {
        run(IndexKind::Sled, &steps);
    }

    #[test]
    fn any_run_reads_what_was_put_in_memory(steps in proptest::collection::vec(step(), 1..24)) {
        run(IndexKind::Memory, &steps);
    }
}
