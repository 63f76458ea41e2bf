//! One big file: written and fsynced, read cold, read again, read here and there.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ::tests::random::{Random, noise};
use anyhow::ensure;

use super::rows::Row;
use super::run::Run;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// Measures it. What is read is compared with what was written outside the timed part, here and in the
/// other parts.
pub(crate) fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let mib = run.sizes.big_mib;
    let data: Vec<u8> = (0..mib).flat_map(|mib| noise(1, (mib * MIB) as u64, MIB)).collect();
    let folder = run.folder("big")?;
    let path = folder.join("file");
    run.time(Row::Write, mib, || {
        let mut file = File::create(&path)?;
        data.chunks(MIB).try_for_each(|chunk| file.write_all(chunk))?;
        file.sync_all()
    })?;
    if run.wants(&[Row::ReadCold, Row::ReadWarm]) {
        run.cool()?;
        let len = run.time(Row::ReadCold, mib, || read_through(&path, |_| ()))?;
        run.time(Row::ReadWarm, mib, || read_through(&path, |_| ()))?;
        let (mut at, mut same) = (0, len == data.len());
        read_through(&path, |bytes| {
            same &= data.get(at..at + bytes.len()) == Some(bytes);
            at += bytes.len();
        })?;
        ensure!(same, "what was read is not what was written");
    }
    if run.wants(&[Row::RandomCold]) {
        run.cool()?;
        let mut random = Random::new(2);
        let pages: Vec<usize> =
            (0..run.sizes.reads).map(|_| random.below((data.len() / PAGE) as u64) as usize).collect();
        let found = run.time(Row::RandomCold, pages.len(), || read_pages(&path, &pages))?;
        let same = pages.iter().zip(&found).all(|(page, found)| data[page * PAGE..][..PAGE] == found[..]);
        ensure!(same, "what was read here and there is not what was written");
    }
    Ok(fs::remove_dir_all(&folder)?)
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

/// Reads these pages of a file, one after the other.
fn read_pages(path: &Path, pages: &[usize]) -> io::Result<Vec<[u8; PAGE]>> {
    let file = File::open(path)?;
    let read = |page: &usize| {
        let mut bytes = [0; PAGE];
        file.read_exact_at(&mut bytes, (page * PAGE) as u64).map(|()| bytes)
    };
    pages.iter().map(read).collect()
}
