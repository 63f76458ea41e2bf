//! What is measured. Every figure is a rate, so more is better; what is read is compared with what
//! was written outside the timed part.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ::tests::random::noise;
use ::tests::tree::{PlannedFile, plan};
use anyhow::{Context as _, ensure};

use super::target::Target;

const MIB: usize = 1 << 20;
const SMALL_FILE: usize = 4096;
const SMALL_FILES_PER_DIR: usize = 100;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// MiB of the big file.
    pub(crate) big_mib: usize,
    /// Small files.
    pub(crate) files: usize,
    /// Files of the tree.
    pub(crate) tree: usize,
}

/// Rates by name; the name ends with the unit.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// A part of the measurement.
pub(crate) type Part = fn(&mut Target, Sizes, &Path) -> anyhow::Result<Figures>;

fn timed<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Duration)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}

fn rate(amount: usize, time: Duration) -> f64 {
    amount as f64 / time.as_secs_f64()
}

/// One big file: written and fsynced, read cold, read again.
pub(crate) fn big(target: &mut Target, sizes: Sizes, _: &Path) -> anyhow::Result<Figures> {
    let data: Vec<u8> = (0..sizes.big_mib).flat_map(|mib| noise(1, (mib * MIB) as u64, MIB)).collect();
    let path = target.root().join("big");
    let write = || {
        let mut file = File::create(&path)?;
        data.chunks(MIB).try_for_each(|chunk| file.write_all(chunk))?;
        file.sync_all()
    };
    let ((), wrote) = timed(write)?;
    target.cool();
    let (len, cold) = timed(|| read_through(&path, |_| ()))?;
    let (_, warm) = timed(|| read_through(&path, |_| ()))?;
    let (mut at, mut same) = (0, len == data.len());
    read_through(&path, |bytes| {
        same &= data.get(at..at + bytes.len()) == Some(bytes);
        at += bytes.len();
    })?;
    ensure!(same, "what was read is not what was written");
    fs::remove_file(&path)?;
    Ok(vec![
        ("write and fsync, MiB/s", rate(sizes.big_mib, wrote)),
        ("read cold, MiB/s", rate(sizes.big_mib, cold)),
        ("read warm, MiB/s", rate(sizes.big_mib, warm)),
    ])
}

/// Reads a file from end to end, a MiB at a time.
fn read_through(path: &Path, mut see: impl FnMut(&[u8])) -> io::Result<usize> {
    let (mut file, mut buffer, mut total) = (File::open(path)?, vec![0; MIB], 0);
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(total);
        }
        see(&buffer[..len]);
        total += len;
    }
}

/// Many files of 4 KiB, by one thread.
pub(crate) fn small(target: &mut Target, sizes: Sizes, _: &Path) -> anyhow::Result<Figures> {
    let root = target.root().join("small");
    let path = |index: usize| root.join(format!("dir-{:03}/file-{index:06}", index / SMALL_FILES_PER_DIR));
    let paths: Vec<PathBuf> = (0..sizes.files).map(path).collect();
    let contents: Vec<Vec<u8>> = (0..sizes.files).map(|index| noise(index as u64, 0, SMALL_FILE)).collect();
    fs::create_dir(&root)?;
    for index in (0..sizes.files).step_by(SMALL_FILES_PER_DIR) {
        fs::create_dir(path(index).parent().expect("a file is in a folder"))?;
    }
    let create = || paths.iter().zip(&contents).try_for_each(|(path, content)| fs::write(path, content));
    let ((), created) = timed(create)?;
    let ((), stated) = timed(|| paths.iter().try_for_each(|path| fs::metadata(path).map(drop)))?;
    let read_all = || paths.iter().map(fs::read).collect::<io::Result<Vec<_>>>();
    let (_, warm) = timed(read_all)?;
    target.cool();
    let (found, cold) = timed(read_all)?;
    ensure!(found == contents, "what was read is not what was written");
    let ((), deleted) = timed(|| paths.iter().try_for_each(fs::remove_file))?;
    fs::remove_dir_all(&root)?;
    Ok(vec![
        ("create 4 KiB, files/s", rate(sizes.files, created)),
        ("stat, files/s", rate(sizes.files, stated)),
        ("read 4 KiB warm, files/s", rate(sizes.files, warm)),
        ("read 4 KiB cold, files/s", rate(sizes.files, cold)),
        ("delete, files/s", rate(sizes.files, deleted)),
    ])
}

/// A source tree unpacked by tar.
pub(crate) fn unpack(target: &mut Target, sizes: Sizes, tar: &Path) -> anyhow::Result<Figures> {
    let root = target.root().join("tree");
    fs::create_dir(&root)?;
    let mut command = Command::new("tar");
    command.arg("-xf").arg(tar).arg("-C").arg(&root);
    let (status, unpacked) = timed(|| command.status()).context("tar")?;
    ensure!(status.success(), "tar ended with {status}");
    for planned in planned(sizes.tree).iter().step_by(97) {
        ensure!(fs::read(root.join(&planned.path))? == planned.content(), "{} differs", planned.path.display());
    }
    let ((), removed) = timed(|| fs::remove_dir_all(&root))?;
    Ok(vec![
        ("unpack a tree, files/s", rate(sizes.tree, unpacked)),
        ("remove the tree, files/s", rate(sizes.tree, removed)),
    ])
}

fn planned(files: usize) -> Vec<PlannedFile> {
    plan(files, 77)
}

/// Writes the tree as a tar (ustar), the same bytes every time.
pub(crate) fn write_tar(path: &Path, files: usize) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for planned in planned(files) {
        let content = planned.content();
        out.write_all(&tar_header(&planned))?;
        out.write_all(&content)?;
        out.write_all(&[0; 512][..content.len().next_multiple_of(512) - content.len()])?;
    }
    out.write_all(&[0; 1024])?;
    out.flush()
}

/// POSIX.1-1988 ustar: name, mode, uid, gid, size, mtime, checksum, type, link, magic.
fn tar_header(planned: &PlannedFile) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, planned.path.to_str().expect("planned names are ASCII"));
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", planned.size));
    put(136, &format!("{:011o}\0", 1_500_000_000));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_unpacks_what_was_planned() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let tar = dir.path().join("tree.tar");
        write_tar(&tar, 60).expect("write");
        let status = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(dir.path()).status().expect("tar runs");
        assert!(status.success());
        for planned in planned(60) {
            assert_eq!(fs::read(dir.path().join(&planned.path)).expect("read"), planned.content());
        }
    }

    #[test]
    fn the_measurement_runs_on_a_plain_folder() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let tar = dir.path().join("tree.tar");
        write_tar(&tar, 30).expect("write");
        let sizes = Sizes { big_mib: 1, files: 10, tree: 30 };
        for part in [small as Part, unpack] {
            let mut target = Target::start("plain", dir.path()).expect("a folder");
            let figures = part(&mut target, sizes, &tar).expect("it runs");
            assert!(figures.iter().all(|(_, rate)| rate.is_finite() && *rate > 0.0), "{figures:?}");
            target.stop();
        }
    }
}
