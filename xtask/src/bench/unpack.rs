//! A source tree, unpacked by tar.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::process::Command;

use ::tests::tree::{PlannedFile, plan};
use anyhow::ensure;

use super::rows::Row;
use super::run::{Run, succeed, sync_all};

/// Unpacks it and removes it; then unpacks it again and waits until it is safe.
pub(crate) fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let count = run.sizes.tree;
    if run.wants(&[Row::UnpackTree, Row::RemoveTree]) {
        let root = run.folder("tree")?;
        run.time(Row::UnpackTree, count, || untar(&run.inputs.tar, &root))?;
        check(&root, count)?;
        run.time(Row::RemoveTree, count, || fs::remove_dir_all(&root))?;
    }
    if run.wants(&[Row::UnpackAndSync]) {
        let root = run.folder("synced-tree")?;
        run.settle()?;
        run.time(Row::UnpackAndSync, count, || {
            untar(&run.inputs.tar, &root)?;
            sync_all(&root)
        })?;
        check(&root, count)?;
        fs::remove_dir_all(&root)?;
    }
    Ok(())
}

fn untar(tar: &Path, folder: &Path) -> io::Result<()> {
    succeed(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(folder)).map_err(io::Error::other)
}

fn check(root: &Path, count: usize) -> anyhow::Result<()> {
    for planned in planned(count).iter().step_by(97) {
        ensure!(fs::read(root.join(&planned.path))? == planned.content(), "{} differs", planned.path.display());
    }
    Ok(())
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
}
