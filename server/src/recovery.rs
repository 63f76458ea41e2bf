//! From a replica's log to its core: as it was, or, where the log was lost or damaged, in a new life.
//!
//! A replica that forgets a vote may contradict it. So one whose log is empty though it is not new, or
//! damaged where it was synced, begins a *new life*: it is mute until it can't contradict anything that
//! its earlier self can have said (ADR 8). Of a damaged log it keeps what can be read of the state, so
//! that only what has changed since is fetched from the others; its votes it does not keep (ADR 12).

use std::io;

use base::{Decode as _, Encode as _, Protocol as _, ReplicaId};

use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::driver::Core;
use crate::folder::Folder;
use crate::log::{Log, LogError, Opened};
use crate::node::NodeError;

/// The log and the core that its records restore.
///
/// # Errors
/// If the log can't be read or written, or its records contradict each other.
pub(crate) fn open(
    config: &NodeConfig,
    folder: &Folder,
    params: bft::Params,
    me: ReplicaId,
) -> Result<(Log, Core), NodeError> {
    let path = folder.path().join("log");
    let opened = match Log::open(&path, folder.identity()) {
        Err(damage @ (LogError::Rot { .. } | LogError::Missing { .. })) => {
            repair(config, folder, params.clone(), me, &damage)
        }
        opened => opened,
    };
    let mut opened = opened?;
    begin_life(config, folder, &mut opened, me)?;
    if opened.torn_bytes > 0 {
        tracing::info!(bytes = opened.torn_bytes, "cut a torn tail off the log: the last write was never synced");
    }
    let records = |cause: String| NodeError::Records { path: folder.path().into(), cause };
    let decoded = decode(&opened.records).map_err(|error| records(error.to_string()))?;
    let core = bft::Replica::restore((params, genesis(config)), decoded).map_err(|error| records(error.to_string()))?;
    Ok((opened.log, core))
}

fn decode(records: &[Vec<u8>]) -> Result<Vec<bft::Record>, base::DecodeError> {
    records.iter().map(|bytes| bft::Record::from_bytes(bytes)).collect()
}

/// Puts in the place of a damaged log one that begins a new life.
fn repair(
    config: &NodeConfig,
    folder: &Folder,
    params: bft::Params,
    replica: ReplicaId,
    damage: &LogError,
) -> Result<Opened, LogError> {
    let (path, identity) = (folder.path().join("log"), folder.identity());
    let life = new_life();
    let readable = decode(&Log::readable(&path, identity)?).ok();
    let damaged = readable.and_then(|records| bft::Replica::restore((params, genesis(config)), records).ok());
    let salvaged = damaged.and_then(|damaged| damaged.salvage(life));
    let (opened, aside) = match &salvaged {
        Some(salvaged) => Log::replace(&path, identity, salvaged.records().map(|record| record.to_bytes()))?,
        None => {
            let begins = bft::Record::Life { replica, life }.to_bytes();
            Log::replace(&path, identity, core::iter::once(begins))?
        }
    };
    tracing::error!(
        life,
        checkpoint = salvaged.as_ref().map(|salvaged| salvaged.seq().0),
        damaged = %aside.display(),
        "{damage}; the others have the rest: this replica fetches it, and votes again when it can't contradict \
         itself. The damaged log is kept; never put it back, and look after the disk"
    );
    Ok(opened)
}

/// An empty log is a new replica's, or was lost; which, the log says from now on.
fn begin_life(config: &NodeConfig, folder: &Folder, opened: &mut Opened, replica: ReplicaId) -> Result<(), NodeError> {
    if opened.records.is_empty() {
        let is_first = config.first_start.as_ref().is_none_or(|file| file.exists());
        let life = if is_first { 0 } else { new_life() };
        if !is_first {
            tracing::warn!(life, "this replica's log is lost: it will vote again when it can't contradict itself");
        }
        let record = bft::Record::Life { replica, life }.to_bytes();
        opened.log.append(&record);
        let log = folder.path().join("log");
        opened.log.sync().map_err(|source| LogError::Io { action: "write to", file: log, source })?;
        opened.records.push(record);
    }
    if let Some(file) = &config.first_start
        && let Err(source) = std::fs::remove_file(file)
        && source.kind() != io::ErrorKind::NotFound
    {
        return Err(NodeError::FirstStart { file: file.clone(), source });
    }
    Ok(())
}

/// Lives are numbered by the clock: peers correct a clock that was set back.
fn new_life() -> u64 {
    Clock::default().now().0.max(1)
}

fn genesis(config: &NodeConfig) -> meta::State {
    let principals = config.view.principals.iter().map(|principal| {
        let uids = principal.uids.map_or(meta::Uids::Any, |[first, last]| meta::Uids::Range { first, last });
        (principal.key, meta::Grant { uids, admin: principal.admin })
    });
    meta::State::genesis(meta::Genesis { cluster: config.view.cluster, principals: principals.collect() })
}
