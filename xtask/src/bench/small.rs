//! Many files of 4 KiB, by one thread.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ::tests::random::noise;
use anyhow::ensure;

use super::rows::Row;
use super::run::Run;

const SMALL_FILE: usize = 4096;
const FILES_PER_DIR: usize = 100;

/// Files made, looked at, read and deleted. The first looks come first, so that a later one helps none of
/// them.
pub(crate) fn files(run: &mut Run<'_>) -> anyhow::Result<()> {
    let count = run.sizes.files;
    let root = run.folder("small")?;
    let paths = paths_in(&root, "file", count)?;
    let contents = contents(count);
    let stat_all = || paths.iter().try_for_each(|path| fs::metadata(path).map(drop));
    let read_all = || paths.iter().map(fs::read).collect::<io::Result<Vec<_>>>();
    run.time(Row::Create, count, || write_all(&paths, &contents))?;
    if run.wants(&[Row::Stat, Row::StatThird]) {
        run.time(Row::Stat, count, stat_all)?;
    }
    if run.wants(&[Row::SmallWarm, Row::SmallThird]) {
        run.time(Row::SmallWarm, count, read_all)?;
    }
    if run.wants(&[Row::StatThird]) {
        stat_all()?;
        run.time(Row::StatThird, count, stat_all)?;
    }
    if run.wants(&[Row::SmallThird]) {
        read_all()?;
        let found = run.time(Row::SmallThird, count, read_all)?;
        ensure!(found == contents, "what was read again is not what was written");
    }
    if run.wants(&[Row::SmallCold, Row::Delete]) {
        run.cool()?;
        let found = run.time(Row::SmallCold, count, read_all)?;
        ensure!(found == contents, "what was read is not what was written");
    }
    run.time(Row::Delete, count, || paths.iter().try_for_each(fs::remove_file))?;
    Ok(fs::remove_dir_all(&root)?)
}

/// Names and modes: folders made, files that are there given another mode and other names. Nothing else is
/// going on when each begins.
pub(crate) fn names(run: &mut Run<'_>) -> anyhow::Result<()> {
    let count = run.sizes.files;
    let root = run.folder("names")?;
    if run.wants(&[Row::Mkdir]) {
        let folders = paths_in(&root, "folder", count)?;
        run.settle()?;
        run.time(Row::Mkdir, count, || folders.iter().try_for_each(fs::create_dir))?;
        ensure!(folders.iter().all(|path| path.is_dir()), "a folder is missing");
    }
    if run.wants(&[Row::Chmod, Row::Rename]) {
        let [old, new] = [paths_in(&root, "old", count)?, paths_in(&root, "new", count)?];
        let contents = contents(count);
        write_all(&old, &contents)?;
        run.settle()?;
        let private = fs::Permissions::from_mode(0o600);
        run.time(Row::Chmod, count, || old.iter().try_for_each(|path| fs::set_permissions(path, private.clone())))?;
        run.settle()?;
        run.time(Row::Rename, count, || old.iter().zip(&new).try_for_each(|(old, new)| fs::rename(old, new)))?;
        for (path, content) in new.iter().zip(&contents) {
            let mode = fs::metadata(path)?.permissions().mode() & 0o777;
            ensure!(mode == 0o600 && fs::read(path)? == *content, "{} differs", path.display());
        }
    }
    Ok(fs::remove_dir_all(&root)?)
}

/// Paths of so many files, a hundred to a folder; the folders are made.
fn paths_in(root: &Path, name: &str, count: usize) -> io::Result<Vec<PathBuf>> {
    let folder = |index: usize| root.join(format!("dir-{:03}", index / FILES_PER_DIR));
    (0..count).step_by(FILES_PER_DIR).try_for_each(|index| fs::create_dir_all(folder(index)))?;
    Ok((0..count).map(|index| folder(index).join(format!("{name}-{index:06}"))).collect())
}

fn contents(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|index| noise(index as u64, 0, SMALL_FILE)).collect()
}

fn write_all(paths: &[PathBuf], contents: &[Vec<u8>]) -> io::Result<()> {
    paths.iter().zip(contents).try_for_each(|(path, content)| fs::write(path, content))
}
