//! `mangrove stat`: what is known of a file, without a mount.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use client::Attr;
use client::fs::{Filesystem, Options};
use serde_json::json;

use crate::args::{Access, Stat};
use crate::output::{print_table, say};
use crate::{config, mount};

pub(crate) async fn run(access: &Access, args: &Stat) -> anyhow::Result<ExitCode> {
    let (volume, path) = mount::volume_and(&args.what)?;
    let cluster = config::connect(access, "stat")?.looking_back(args.age.max_age);
    let session = cluster.session().clone();
    let volume = cluster.open_volume(volume).await?;
    let options = Options { max_age: args.age.max_age, ..Options::default() };
    let fs = Filesystem::open_volume(session.clone(), volume.blocks, volume.info, &volume.secret, options)?;
    let (attr, looked) = find(&fs, path).await.with_context(|| format!("cannot look at {}", path.display()))?;
    // The volume had to be found, too.
    let (reads, proven) = (looked + 1, session.read_counts().proven);
    print(path, &attr, Reads { proven, ordered: reads.saturating_sub(proven) }, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// How many reads it took, and how they were answered.
struct Reads {
    proven: u64,
    ordered: u64,
}

/// Follows a path from the root, and no link; says how often it looked.
async fn find<M, B>(fs: &Filesystem<M, B>, path: &Path) -> anyhow::Result<(Attr, u64)>
where
    M: client::backend::Metadata,
    B: client::backend::BlockStore,
{
    let caller = mount::owner();
    let (mut attr, mut looked) = (fs.getattr(&caller, fs.root()).await?, 1);
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                attr = fs.lookup(&caller, attr.ino, name.as_bytes()).await?;
                looked += 1;
            }
            Component::ParentDir | Component::Prefix(_) => bail!("say the path without `..`"),
        }
    }
    Ok((attr, looked))
}

fn print(path: &Path, attr: &Attr, reads: Reads, as_json: bool) -> anyhow::Result<()> {
    let kind = format!("{:?}", attr.kind).to_lowercase();
    if as_json {
        let (mtime, ctime) = (attr.mtime, attr.ctime);
        let seen = json!({
            "path": path.to_string_lossy(), "ino": attr.ino.0, "kind": kind, "mode": format!("{:04o}", attr.mode),
            "uid": attr.uid, "gid": attr.gid, "links": attr.nlink, "size": attr.size, "version": attr.version,
            "mtime": { "seconds": mtime.seconds, "nanos": mtime.nanos },
            "ctime": { "seconds": ctime.seconds, "nanos": ctime.nanos },
            "reads": { "proven": reads.proven, "ordered": reads.ordered },
        });
        say!("{}", serde_json::to_string_pretty(&seen)?);
        return Ok(());
    }
    let header = ["KIND", "MODE", "UID", "GID", "LINKS", "SIZE", "READS"];
    let cells = [
        kind,
        format!("{:04o}", attr.mode),
        attr.uid.to_string(),
        attr.gid.to_string(),
        attr.nlink.to_string(),
        attr.size.to_string(),
        format!("{} proven, {} ordered", reads.proven, reads.ordered),
    ];
    print_table(&[header.map(str::to_owned).to_vec(), cells.to_vec()]);
    Ok(())
}
