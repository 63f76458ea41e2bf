//! `mangrove volume create`, `mangrove volume list` and `mangrove volume trash`.

use std::process::ExitCode;

use anyhow::bail;
use client::{ConnectError, Denied};
use serde_json::json;

use crate::args::{Access, TrashCommand, VolumeCreate, VolumeList};
use crate::output::{duration, print_table, say};
use crate::{config, mount};

pub(crate) async fn create(access: &Access, args: &VolumeCreate) -> anyhow::Result<ExitCode> {
    config::connect(access, "volume create")?.create_volume(&args.name, mount::owner(), args.trash).await?;
    say!("made volume {}", args.name);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(access: &Access, args: &VolumeList) -> anyhow::Result<ExitCode> {
    let volumes = config::connect(access, "volume list")?.volumes().await?;
    if args.json {
        let volumes: Vec<_> = volumes
            .iter()
            .map(|volume| {
                let spec = &volume.spec;
                json!({
                    "id": volume.id.0, "name": spec.name, "redundancy": redundancy(spec.redundancy),
                    "quota_bytes": spec.quota_bytes, "quota_inodes": spec.quota_inodes,
                    "trash_seconds": spec.trash,
                })
            })
            .collect();
        say!("{}", serde_json::to_string_pretty(&volumes)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![vec!["VOLUME".to_owned(), "REDUNDANCY".to_owned(), "TRASH".to_owned()]];
    rows.extend(volumes.iter().map(|volume| {
        let spec = &volume.spec;
        vec![spec.name.clone(), redundancy(spec.redundancy), kept(spec.trash)]
    }));
    print_table(&rows);
    Ok(ExitCode::SUCCESS)
}

fn redundancy(redundancy: client::Redundancy) -> String {
    let client::Redundancy::Replicate(copies) = redundancy;
    format!("replicate={copies}")
}

fn kept(seconds: u32) -> String {
    if seconds == 0 { "off".to_owned() } else { duration(seconds.into()) }
}

pub(crate) async fn trash(access: &Access, command: TrashCommand) -> anyhow::Result<ExitCode> {
    let cluster = config::connect(access, "volume trash")?;
    let done = match &command {
        TrashCommand::Keep(args) => cluster.keep_trash(&args.volume, args.time).await,
        TrashCommand::Empty(args) => cluster.empty_trash(&args.volume).await,
    };
    match (done, command) {
        (Ok(()), TrashCommand::Keep(args)) if args.time == 0 => {
            say!("what is removed in volume {} is gone at once, and what was in its trash, too", args.volume);
        }
        (Ok(()), TrashCommand::Keep(args)) => {
            say!("what is removed in volume {} is kept for {}", args.volume, kept(args.time));
        }
        (Ok(()), TrashCommand::Empty(args)) => say!("emptied the trash of volume {}", args.volume),
        (Err(ConnectError::Denied { why: Denied::NotGranted, .. }), _) => {
            bail!("only administrators may; --key FILE names another key")
        }
        (Err(error), _) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}
