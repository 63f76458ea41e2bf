//! `mangrove volume snapshot`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use client::fs::utc;
use client::{Cluster, ConnectError, Denied, Snapshot};
use serde_json::json;

use crate::args::{Access, SnapshotCommand, SnapshotDelete, SnapshotList, SnapshotTake};
use crate::config;
use crate::output::{print_table, say};

/// After so long a command says what it waits for.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) async fn run(access: &Access, command: SnapshotCommand) -> anyhow::Result<ExitCode> {
    let cluster = config::connect(access, "volume snapshot")?;
    match command {
        SnapshotCommand::Take(args) => take(&cluster, &args).await?,
        SnapshotCommand::List(args) => list(&cluster, &args).await?,
        SnapshotCommand::Delete(args) => delete(&cluster, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn take(cluster: &Cluster, SnapshotTake { volume, name, json }: &SnapshotTake) -> anyhow::Result<()> {
    let name = name.clone().unwrap_or_else(|| utc(SystemTime::now()));
    let taking = cluster.take_snapshot(volume, &name);
    tokio::pin!(taking);
    let taken = match tokio::time::timeout(PATIENCE, &mut taking).await {
        Ok(taken) => taken,
        Err(_) => {
            eprintln!("mangrove: waiting for the mounts of {volume} to send what they have");
            taking.await
        }
    };
    let taken = match taken {
        Ok(taken) => taken,
        Err(ConnectError::Denied { why: Denied::Exists, .. }) => {
            bail!("volume {volume} has a snapshot {name:?} already; `mangrove volume snapshot list {volume}` shows all")
        }
        Err(ConnectError::Denied { why: Denied::Invalid, .. }) => {
            bail!("{name:?} can't be a snapshot's name: 1 to 64 letters, digits, and any of ._-:+, no dot first")
        }
        Err(ConnectError::Denied { why: Denied::Quota, .. }) => bail!(
            "volume {volume} has as many snapshots as it can; `mangrove volume snapshot delete {volume} NAME` \
             makes room"
        ),
        Err(error) => return Err(explained(error)),
    };
    if *json {
        say!("{}", serde_json::to_string_pretty(&shown(&taken))?);
    } else {
        say!("took snapshot {name} of volume {volume}; its mounts have it in .mangrove/snapshots/{name}");
    }
    Ok(())
}

async fn list(cluster: &Cluster, SnapshotList { volume, json }: &SnapshotList) -> anyhow::Result<()> {
    let all = cluster.snapshots(volume).await?;
    if *json {
        say!("{}", serde_json::to_string_pretty(&all.iter().map(shown).collect::<Vec<_>>())?);
        return Ok(());
    }
    let mut rows = vec![vec!["SNAPSHOT".to_owned(), "TAKEN".to_owned()]];
    rows.extend(all.iter().map(|snapshot| vec![snapshot.name.clone(), taken_at(snapshot)]));
    print_table(&rows);
    Ok(())
}

async fn delete(cluster: &Cluster, SnapshotDelete { volume, name }: &SnapshotDelete) -> anyhow::Result<()> {
    match cluster.delete_snapshot(volume, name).await {
        Ok(()) => say!("deleted snapshot {name} of volume {volume}"),
        Err(ConnectError::Denied { why: Denied::NotFound, .. }) => {
            bail!("volume {volume} has no snapshot {name:?}; `mangrove volume snapshot list {volume}` shows all")
        }
        Err(error) => return Err(explained(error)),
    }
    Ok(())
}

fn explained(error: ConnectError) -> anyhow::Error {
    match error {
        ConnectError::Denied { why: Denied::NotGranted, .. } => {
            anyhow::anyhow!("only administrators take and delete snapshots; --key FILE names another key")
        }
        error => error.into(),
    }
}

fn taken_at(snapshot: &Snapshot) -> String {
    utc(SystemTime::UNIX_EPOCH + Duration::from_secs(snapshot.taken.seconds.max(0) as u64))
}

fn shown(snapshot: &Snapshot) -> serde_json::Value {
    json!({ "name": snapshot.name, "number": snapshot.number, "taken": taken_at(snapshot) })
}
