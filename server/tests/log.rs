//! The vote log: what was synced survives every crash, and damage to it is never passed over.

use std::fs;
use std::path::{Path, PathBuf};

use base::{ClusterId, NodeId};
use proptest::prelude::*;
use server::folder::Identity;
use server::log::{Log, LogError, Opened};

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), node: NodeId(2) };
/// Length of a file's header, and of a record without its body; bytes.
const HEADER_LEN: usize = 64;
const FRAME_LEN: usize = 24;

fn open(folder: &Path) -> Result<Opened, LogError> {
    Log::open(folder, IDENTITY)
}

fn records(folder: &Path) -> Vec<Vec<u8>> {
    open(folder).unwrap().records
}

fn write(log: &mut Log, records: &[&[u8]]) {
    records.iter().for_each(|record| log.append(record));
    log.sync().unwrap();
}

/// What a crash at this moment would leave, in a folder of its own.
fn copy(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn segment(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("log-{number:08}"))
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// What was written to a segment, without the room after it.
fn written(file: &Path) -> Vec<u8> {
    let mut bytes = fs::read(file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used.next_multiple_of(8));
    bytes
}

/// Rewrites a header field and the header's checksum.
fn forge(file: &Path, offset: usize, value: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    bytes[offset..offset + value.len()].copy_from_slice(value);
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

/// A log of two synced groups, closed; and where its records start.
fn two_groups(folder: &Path) -> [usize; 4] {
    let mut log = open(folder).unwrap().log;
    write(&mut log, &[b"one", b"two in the first group"]);
    write(&mut log, &[b"", b"four"]);
    let second = HEADER_LEN + FRAME_LEN + 8;
    let third = second + FRAME_LEN + 24 + FRAME_LEN;
    [HEADER_LEN, second, third, third + FRAME_LEN]
}

#[test]
fn what_was_synced_is_there_again_and_what_was_not_is_not() {
    let temp = tempfile::tempdir().unwrap();
    let mut opened = open(temp.path()).unwrap();
    assert_eq!((opened.records.len(), opened.torn_bytes, opened.log.bytes_since_snapshot()), (0, 0, 0));
    write(&mut opened.log, &[b"one", b""]);
    opened.log.append(b"never synced");
    drop(opened);
    let mut opened = open(temp.path()).unwrap();
    assert_eq!((&opened.records[..], opened.torn_bytes), (&[b"one".to_vec(), vec![]][..], 0));
    assert!(opened.log.bytes_since_snapshot() >= (2 * FRAME_LEN + 3) as u64);
    write(&mut opened.log, &[&[9; 100_000]]);
    drop(opened);
    assert_eq!(records(temp.path()), [b"one".to_vec(), vec![], vec![9; 100_000]]);
}

#[test]
fn a_cut_at_any_byte_leaves_the_records_before_it() {
    let temp = tempfile::tempdir().unwrap();
    let starts = two_groups(temp.path());
    let all = records(temp.path());
    let file = segment(temp.path(), 1);
    let whole = written(&file);
    for cut in HEADER_LEN..whole.len() {
        fs::write(&file, &whole[..cut]).unwrap();
        let mut opened = open(temp.path()).unwrap();
        let ends = starts.iter().zip(&all).map(|(start, record)| start + FRAME_LEN + record.len().next_multiple_of(8));
        let count = ends.filter(|end| *end <= cut).count();
        assert_eq!(opened.records, all[..count], "cut at {cut}");
        assert!(opened.torn_bytes <= (FRAME_LEN + 24) as u64, "cut at {cut}");
        // It goes on from there.
        write(&mut opened.log, &[b"more"]);
        drop(opened);
        assert_eq!(records(temp.path()).len(), count + 1, "cut at {cut}");
    }
}

#[test]
fn any_flipped_bit_in_what_was_synced_is_rot_with_its_file_and_offset() {
    let temp = tempfile::tempdir().unwrap();
    let starts = two_groups(temp.path());
    let all = records(temp.path());
    let file = segment(temp.path(), 1);
    let whole = written(&file);
    let last_mark = whole.len() - FRAME_LEN;
    for place in 0..whole.len() {
        let mut bad = whole.clone();
        bad[place] ^= 1 << (place % 8);
        fs::write(&file, &bad).unwrap();
        match open(temp.path()) {
            Err(LogError::Rot { file: found, offset }) => {
                assert_eq!(found, file);
                let frame = starts.iter().rev().find(|start| **start <= place).copied().unwrap_or(0) as u64;
                assert!(offset == frame || offset > frame && offset <= place as u64, "byte {place}: {offset}");
            }
            Err(error) => panic!("byte {place}: {error}"),
            // Only what holds no record may be damaged without a word.
            Ok(opened) => {
                assert_eq!(opened.records, all, "byte {place}");
                assert!(place >= last_mark || bad[place] == 1 << (place % 8), "byte {place}");
                // A mark's last byte that is not zero is its kind.
                let torn = if place >= last_mark { 17..=FRAME_LEN as u64 } else { 0..=0 };
                assert!(torn.contains(&opened.torn_bytes), "byte {place}: {}", opened.torn_bytes);
            }
        }
    }
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let text = LogError::Rot { file, offset: 64 }.to_string();
    assert!(text.contains("log-00000001 is damaged at byte 64") && text.contains("promised"), "{text}");
}

#[test]
fn what_comes_before_damage_is_read_and_a_new_log_takes_its_place() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("log");
    let starts = two_groups(&folder);
    let (all, file) = (records(&folder), segment(&folder, 1));
    let whole = written(&file);
    for (index, start) in starts.iter().enumerate() {
        let mut bad = whole.clone();
        bad[start + 8] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert!(matches!(open(&folder), Err(LogError::Rot { .. })));
        assert_eq!(Log::readable(&folder, IDENTITY).unwrap(), all[..index]);
        assert_eq!(fs::read(&file).unwrap(), bad);
    }
    // What a crash while the new log was being written left.
    fs::create_dir(temp.path().join("log.new")).unwrap();
    fs::write(temp.path().join("log.new/snapshot-00000002"), "half").unwrap();
    let new = || [b"new".to_vec(), b"life".to_vec()].into_iter();
    let (opened, aside) = Log::replace(&folder, IDENTITY, new()).unwrap();
    assert_eq!(opened.records, new().collect::<Vec<_>>());
    assert_eq!(
        (aside.file_name().unwrap().to_str(), names(&aside)),
        (Some("log.damaged-1"), vec!["log-00000001".into()])
    );
    drop(opened);
    let (mut opened, _) = Log::replace(&folder, IDENTITY, new()).unwrap();
    write(&mut opened.log, &[b"more"]);
    drop(opened);
    assert_eq!(names(temp.path()), ["log", "log.damaged-1", "log.damaged-2"]);
    assert_eq!(records(&folder).len(), 3);
    // A crash just before the new log has its place.
    fs::rename(&folder, temp.path().join("log.new")).unwrap();
    assert_eq!(records(&folder).len(), 3);
    assert!(!temp.path().join("log.new").exists());
}

#[test]
fn a_refused_log_is_left_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let starts = two_groups(temp.path());
    let file = segment(temp.path(), 1);
    let mut bad = fs::read(&file).unwrap();
    bad[starts[0] + FRAME_LEN] ^= 1;
    fs::write(&file, &bad).unwrap();
    fs::write(temp.path().join("snapshot-00000002.tmp"), "half").unwrap();
    assert!(matches!(open(temp.path()), Err(LogError::Rot { .. })));
    assert_eq!(fs::read(&file).unwrap(), bad);
    assert_eq!(names(temp.path()), ["log-00000001", "snapshot-00000002.tmp"]);
}

#[test]
fn pages_of_an_unsynced_group_may_be_written_in_any_order() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = open(temp.path()).unwrap().log;
    write(&mut log, &[b"promised"]);
    let file = segment(temp.path(), 1);
    let before = written(&file).len();
    write(&mut log, &[&[1; 5000], &[2; 5000], &[3; 5000]]);
    drop(log);
    // A power cut: the group's mark and its second page never reached the disk.
    let mut bytes = written(&file);
    bytes.truncate(bytes.len() - FRAME_LEN);
    bytes[before + 4096..before + 8192].fill(0);
    fs::write(&file, &bytes).unwrap();
    let opened = open(temp.path()).unwrap();
    assert_eq!(opened.records, [b"promised".to_vec()]);
    assert_eq!(opened.torn_bytes as usize, bytes.len() - before);
}

#[test]
fn room_after_what_was_written_is_no_part_of_it() {
    let temp = tempfile::tempdir().unwrap();
    let file = segment(temp.path(), 1);
    let mut log = open(temp.path()).unwrap().log;
    let length = || fs::metadata(&file).unwrap().len();
    let before = length();
    write(&mut log, &[b"one"]);
    let room = length();
    assert!(room > before + 100_000, "{room}");
    for _ in 0..100 {
        write(&mut log, &[&[7; 1000], &[0; 16]]);
    }
    assert_eq!(length(), room, "no sync changed the length");
    let bytes = log.bytes_since_snapshot();
    drop(log);
    let mut opened = open(temp.path()).unwrap();
    assert_eq!((opened.records.len(), opened.torn_bytes), (201, 0));
    assert!(opened.log.bytes_since_snapshot() >= bytes);
    assert!(opened.log.bytes_since_snapshot() < bytes + 10_000, "room is not what was appended");
    write(&mut opened.log, &[&[8; 3 << 20]]);
    write(&mut opened.log, &[b"more"]);
    drop(opened);
    assert_eq!(records(temp.path()).len(), 203);
    // What a torn write left of itself in the room, behind a page that is missing.
    let end = written(&file).len();
    let mut bytes = fs::read(&file).unwrap();
    assert!(bytes.len() > end + 9000);
    bytes[end + 5000..end + 9000].fill(3);
    fs::write(&file, &bytes).unwrap();
    let opened = open(temp.path()).unwrap();
    assert_eq!((opened.records.len(), opened.torn_bytes), (203, 9000));
    drop(opened);
    assert!(written(&file).len() <= end + FRAME_LEN, "it is cut off, so that nothing of it is found later");
}

#[test]
fn a_snapshot_replaces_what_came_before_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = open(temp.path()).unwrap().log;
    write(&mut log, &[b"a", b"b"]);
    log.append(b"c, synced by the snapshot");
    let before = log.bytes_since_snapshot();
    let mut writer = log.begin_snapshot().unwrap();
    assert!(before > 0 && log.bytes_since_snapshot() == 0);
    // The writer works elsewhere while the log goes on.
    let writing = std::thread::spawn(move || {
        writer.append(b"a+b").unwrap();
        writer.append(b"+c").unwrap();
        writer.finish().unwrap()
    });
    write(&mut log, &[b"d"]);
    let finished = writing.join().unwrap();
    write(&mut log, &[b"e"]);
    let expected = [b"a+b".to_vec(), b"+c".to_vec(), b"d".to_vec(), b"e".to_vec()];
    // A crash before what it replaces is deleted: the snapshot counts, and the rest goes.
    let crashed = copy(temp.path());
    assert_eq!(names(crashed.path()), ["log-00000001", "log-00000002", "snapshot-00000002"]);
    assert_eq!(records(crashed.path()), expected);
    assert_eq!(names(crashed.path()), ["log-00000002", "snapshot-00000002"]);
    log.retire(finished).unwrap();
    assert_eq!(names(temp.path()), ["log-00000002", "snapshot-00000002"]);
    drop(log);
    assert_eq!(records(temp.path()), expected);
}

#[test]
fn a_crash_while_a_snapshot_is_written_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = open(temp.path()).unwrap().log;
    write(&mut log, &[b"a"]);
    let mut writer = log.begin_snapshot().unwrap();
    write(&mut log, &[b"b"]);
    writer.append(&[0; 2 << 20]).unwrap();
    let crashed = copy(temp.path());
    assert!(names(crashed.path()).contains(&"snapshot-00000002.tmp".to_owned()));
    assert_eq!(records(crashed.path()), [b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(names(crashed.path()), ["log-00000001", "log-00000002"]);
    // Given up while running, it leaves nothing, and the next one replaces both segments.
    drop(writer);
    assert_eq!(names(temp.path()), ["log-00000001", "log-00000002"]);
    let mut writer = log.begin_snapshot().unwrap();
    writer.append(b"a+b").unwrap();
    let finished = writer.finish().unwrap();
    log.retire(finished).unwrap();
    assert_eq!(names(temp.path()), ["log-00000003", "snapshot-00000003"]);
    drop(log);
    assert_eq!(records(temp.path()), [b"a+b".to_vec()]);
}

#[test]
fn damage_before_the_last_segment_is_rot_whatever_its_shape() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = open(temp.path()).unwrap().log;
    write(&mut log, &[b"a", b"b"]);
    drop(log.begin_snapshot().unwrap());
    write(&mut log, &[b"c"]);
    let mut writer = log.begin_snapshot().unwrap();
    writer.append(b"a+b+c").unwrap();
    let with_snapshot = copy(temp.path());
    let finished = writer.finish().unwrap();
    log.retire(finished).unwrap();

    let first = segment(with_snapshot.path(), 1);
    let good = written(&first);
    for cut in HEADER_LEN..good.len() - FRAME_LEN {
        fs::write(&first, &good[..cut]).unwrap();
        let error = open(with_snapshot.path()).map(drop).unwrap_err();
        let LogError::Rot { file, offset } = error else { panic!("cut at {cut}: {error}") };
        let start = (cut - HEADER_LEN) / (FRAME_LEN + 8) * (FRAME_LEN + 8) + HEADER_LEN;
        assert_eq!((file, offset), (first.clone(), start as u64), "cut at {cut}");
    }
    fs::remove_file(&first).unwrap();
    let error = open(with_snapshot.path()).map(drop).unwrap_err();
    assert!(matches!(&error, LogError::Missing { file } if *file == first), "{error}");
    fs::write(&first, &good).unwrap();
    assert_eq!(records(with_snapshot.path()).len(), 3);

    let snapshot = temp.path().join("snapshot-00000003");
    let good = fs::read(&snapshot).unwrap();
    drop(log);
    for cut in 0..good.len() {
        fs::write(&snapshot, &good[..cut]).unwrap();
        let error = open(temp.path()).map(drop).unwrap_err();
        assert!(matches!(&error, LogError::Rot { file, .. } if *file == snapshot), "cut at {cut}: {error}");
    }
    fs::write(&snapshot, &good).unwrap();
    fs::remove_file(segment(temp.path(), 3)).unwrap();
    assert!(matches!(open(temp.path()), Err(LogError::Missing { .. })));
}

#[test]
fn a_newer_log_and_another_nodes_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    two_groups(temp.path());
    let file = segment(temp.path(), 1);
    let other = Identity { node: NodeId(5), ..IDENTITY };
    let error = Log::open(temp.path(), other).map(drop).unwrap_err().to_string();
    assert!(error.contains("belongs to node 2 of cluster 0707") && error.contains("this is node 5"), "{error}");
    forge(&file, 8, &9u32.to_le_bytes());
    let error = open(temp.path()).map(drop).unwrap_err().to_string();
    assert!(error.contains("newer version (format 9; this program knows 1)"), "{error}");
    forge(&file, 8, &1u32.to_le_bytes());
    assert_eq!(records(temp.path()).len(), 4);
}

#[test]
fn two_opens_of_one_log_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let opened = open(temp.path()).unwrap();
    assert!(matches!(open(temp.path()), Err(LogError::InUse { .. })));
    drop(opened);
    open(temp.path()).unwrap();
}

#[test]
fn a_stranger_cannot_write_a_record_that_is_found_in_anothers_body() {
    let temp = tempfile::tempdir().unwrap();
    two_groups(temp.path());
    // A copy of a whole log as one record's body: marks and all.
    let inner = written(&segment(temp.path(), 1));
    let outer = tempfile::tempdir().unwrap();
    let mut log = open(outer.path()).unwrap().log;
    write(&mut log, &[b"promised"]);
    let file = segment(outer.path(), 1);
    let synced = written(&file).len();
    write(&mut log, &[&inner]);
    drop(log);
    // Torn inside its header: the marks in its body must not make it look promised.
    let mut bytes = written(&file);
    bytes.truncate(bytes.len() - FRAME_LEN);
    bytes[synced] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert_eq!(records(outer.path()), [b"promised".to_vec()]);
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Sync,
    /// Snapshot; whether it is finished, and retired.
    Snapshot {
        finish: bool,
        retire: bool,
    },
    Reopen,
    /// Sync, and crash with this share of the group written (and this much of it damaged).
    TornSync {
        keep: u16,
        flip: Option<u16>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0usize..64, Just(5000)].prop_map(Step::Append),
        3 => Just(Step::Sync),
        1 => any::<(bool, bool)>().prop_map(|(finish, retire)| Step::Snapshot { finish, retire }),
        1 => Just(Step::Reopen),
        2 => (any::<u16>(), any::<Option<u16>>()).prop_map(|(keep, flip)| Step::TornSync { keep, flip }),
    ]
}

/// The log beside what it should hold.
struct Model {
    folder: tempfile::TempDir,
    log: Option<Log>,
    /// What was synced (or read back, which is the same).
    durable: Vec<Vec<u8>>,
    pending: Vec<Vec<u8>>,
    appended: u8,
}

impl Model {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append(length) => {
                self.appended = self.appended.wrapping_add(1);
                self.pending.push(vec![self.appended; length]);
                let record = vec![self.appended; length];
                self.log().append(&record);
            }
            Step::Sync => {
                self.log().sync().unwrap();
                self.durable.append(&mut self.pending);
            }
            Step::Snapshot { finish, retire } => {
                let mut writer = self.log().begin_snapshot().unwrap();
                self.durable.append(&mut self.pending);
                self.durable.iter().for_each(|record| writer.append(record).unwrap());
                if finish {
                    let finished = writer.finish().unwrap();
                    if retire {
                        self.log().retire(finished).unwrap();
                    }
                }
            }
            Step::Reopen => {
                self.pending.clear();
                self.reopen(|_| ());
            }
            Step::TornSync { keep, flip } => self.torn_sync(keep, flip),
        }
    }

    fn torn_sync(&mut self, keep: u16, flip: Option<u16>) {
        let last = names(self.folder.path()).into_iter().filter(|name| name.starts_with("log-")).max().unwrap();
        let file = self.folder.path().join(last);
        let before = written(&file).len();
        self.log().sync().unwrap();
        let mut bytes = written(&file);
        // The mark is only there once the sync has returned.
        let group = (bytes.len() - before).saturating_sub(FRAME_LEN);
        bytes.truncate(before + group * usize::from(keep) / usize::from(u16::MAX));
        let written = bytes.len() - before;
        if let Some(flip) = flip.filter(|_| written > 0) {
            bytes[before + usize::from(flip) % written] ^= 0x10;
        }
        let pending = std::mem::take(&mut self.pending);
        let durable = self.durable.len();
        self.reopen(|folder| fs::write(folder.join(file.file_name().unwrap()), &bytes).unwrap());
        // What was synced is there; of the torn group, a run from its start.
        let torn: Vec<_> = self.durable.drain(durable..).collect();
        assert_eq!(torn, pending[..torn.len()]);
        self.durable.extend(torn);
    }

    /// Opens what a crash leaves; takes over what follows the durable records, for the caller to check.
    fn reopen(&mut self, damage: impl Fn(&Path)) {
        self.log = None;
        damage(self.folder.path());
        let opened = open(self.folder.path()).unwrap();
        assert_eq!(opened.records[..self.durable.len()], self.durable);
        self.durable = opened.records;
        self.log = Some(opened.log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_run_with_crashes_keeps_what_was_synced(steps in proptest::collection::vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let log = open(folder.path()).unwrap().log;
        let mut model = Model { folder, log: Some(log), durable: vec![], pending: vec![], appended: 0 };
        for step in &steps {
            model.step(step);
        }
        model.pending.clear();
        let expected = model.durable.clone();
        model.reopen(|_| ());
        prop_assert_eq!(model.durable, expected);
    }
}
