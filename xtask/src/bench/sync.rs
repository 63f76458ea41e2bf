//! What waits for the disk, or the cluster, each time: a log, and mail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use ::tests::random::noise;
use anyhow::ensure;

use super::rows::Row;
use super::run::Run;

const LEN: usize = 4096;

/// Measures both.
pub(crate) fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let count = run.sizes.syncs;
    let root = run.folder("sync")?;
    let contents: Vec<Vec<u8>> = (0..count).map(|index| noise(index as u64, 0, LEN)).collect();
    if run.wants(&[Row::Append]) {
        let log = root.join("log");
        run.time(Row::Append, count, || append(&log, &contents))?;
        ensure!(fs::read(&log)? == contents.concat(), "the log is not what was appended");
    }
    if run.wants(&[Row::Mail]) {
        fs::create_dir(root.join("tmp"))?;
        fs::create_dir(root.join("new"))?;
        run.settle()?;
        run.time(Row::Mail, count, || {
            contents.iter().enumerate().try_for_each(|(index, mail)| deliver(&root, index, mail))
        })?;
        ensure!(fs::read_dir(root.join("tmp"))?.next().is_none(), "a mail was left behind");
        for (index, mail) in contents.iter().enumerate() {
            ensure!(fs::read(root.join(format!("new/{index}")))? == *mail, "mail {index} differs");
        }
    }
    Ok(fs::remove_dir_all(&root)?)
}

fn append(log: &Path, contents: &[Vec<u8>]) -> io::Result<()> {
    let mut log = OpenOptions::new().append(true).create_new(true).open(log)?;
    contents.iter().try_for_each(|content| {
        log.write_all(content)?;
        log.sync_all()
    })
}

/// As a mail server does: written aside, made safe, and only then put where it is looked for.
fn deliver(root: &Path, index: usize, mail: &[u8]) -> io::Result<()> {
    let aside = root.join(format!("tmp/{index}"));
    let mut file = File::create_new(&aside)?;
    file.write_all(mail)?;
    file.sync_all()?;
    drop(file);
    fs::rename(aside, root.join(format!("new/{index}")))
}
