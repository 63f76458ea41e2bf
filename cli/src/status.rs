//! `mangrove status`: every node, every mount.

use std::collections::BTreeMap;
use std::process::ExitCode;

use client::status::{Heard, ask_all};
use proto::link::Identity;
use proto::view::Role;
use proto::wire::{Count, NodeStatus};
use serde_json::{Value, json};

use crate::args::{Access, Status};
use crate::config;
use crate::output::{duration, print_table, say, size};

pub(crate) async fn run(access: &Access, args: &Status) -> anyhow::Result<ExitCode> {
    let (view, key) = config::load(access)?;
    let identity = Identity::new(&key.secret())?;
    loop {
        let heard = ask_all(&view, &identity).await?;
        if args.json {
            say!("{}", serde_json::to_string_pretty(&to_json(&view.cluster.to_string(), &heard))?);
        } else {
            if args.watch {
                print!("\x1b[2J\x1b[H");
            }
            print(&view.cluster.to_string(), &heard);
        }
        if !args.watch {
            let silent = heard.iter().filter(|heard| heard.status.is_err()).count();
            return Ok(if silent == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) });
        }
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
}

fn print(cluster: &str, heard: &[Heard]) {
    let up = |role| {
        let all = heard.iter().filter(|heard| heard.node.role == role);
        let up = all.clone().filter(|heard| heard.status.is_ok()).count();
        format!("{up} of {}", all.count())
    };
    say!("cluster {cluster}: {} replicas up, {} storage nodes up", up(Role::Replica), up(Role::Storage));
    say!("");
    let mut rows = vec![header(&["REPLICA", "ADDRESS", "STATE", "EXECUTED", "INODES", "LOG", "UP"])];
    rows.extend(heard.iter().filter(|heard| heard.node.role == Role::Replica).map(replica_row));
    print_table(&rows);
    say!("");
    let mut rows = vec![header(&["STORAGE", "ADDRESS", "STATE", "BLOCKS", "USED", "FREE", "CORRUPT", "UP"])];
    rows.extend(heard.iter().filter(|heard| heard.node.role == Role::Storage).map(storage_row));
    print_table(&rows);
    say!("");
    let sessions = sessions(heard);
    if sessions.is_empty() {
        say!("no mounts");
    } else {
        let mut rows = vec![header(&["SESSION", "USER", "REPLICAS", "SINCE"])];
        for ((label, user), (replicas, seconds)) in sessions {
            let user = user.chars().take(8).collect();
            rows.push(vec![label, user, replicas.to_string(), duration(seconds)]);
        }
        print_table(&rows);
    }
}

fn header(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn replica_row(heard: &Heard) -> Vec<String> {
    let mut row = vec![format!("node-{}", heard.node.id), heard.node.address.to_string()];
    match &heard.status {
        Ok(NodeStatus { replica: Some(replica), uptime_seconds, .. }) => {
            let mut state = if replica.primary { "primary".to_owned() } else { "backup".to_owned() };
            if replica.state != "normal" {
                state = replica.state.clone();
            }
            if let Some(seq) = replica.behind {
                state = format!("behind (needs {seq})");
            }
            row.extend([state, replica.last_executed.to_string(), replica.inodes.to_string()]);
            row.extend([size(replica.log_bytes), duration(*uptime_seconds)]);
        }
        Ok(_) => row.push("answers as something else".to_owned()),
        Err(why) => row.push(format!("down: {why}")),
    }
    row
}

fn storage_row(heard: &Heard) -> Vec<String> {
    let mut row = vec![format!("node-{}", heard.node.id), heard.node.address.to_string()];
    match &heard.status {
        Ok(NodeStatus { storage: Some(storage), uptime_seconds, .. }) => {
            row.push(if storage.full { "full".to_owned() } else { "ok".to_owned() });
            row.extend([storage.blocks.to_string(), size(storage.used_bytes), size(storage.free_bytes)]);
            row.extend([storage.corrupt_blocks.to_string(), duration(*uptime_seconds)]);
        }
        Ok(_) => row.push("answers as something else".to_owned()),
        Err(why) => row.push(format!("down: {why}")),
    }
    row
}

/// Sessions by (label, user): how many replicas see each, and for how long.
fn sessions(heard: &[Heard]) -> BTreeMap<(String, String), (usize, u64)> {
    let mut sessions = BTreeMap::new();
    for status in heard.iter().filter_map(|heard| heard.status.as_ref().ok()) {
        for session in &status.sessions {
            let entry = sessions.entry((session.label.clone(), session.principal.clone())).or_insert((0, 0));
            *entry = (entry.0 + 1, entry.1.max(session.connected_seconds));
        }
    }
    sessions
}

fn counts(counts: &[Count]) -> Value {
    counts.iter().map(|count| (count.what.clone(), json!(count.count))).collect::<serde_json::Map<_, _>>().into()
}

fn to_json(cluster: &str, heard: &[Heard]) -> Value {
    let nodes = heard.iter().map(|heard| {
        let mut node = json!({
            "node": heard.node.id.0,
            "address": heard.node.address.to_string(),
            "role": match heard.node.role { Role::Replica => "replica", Role::Storage => "storage" },
            "domain": heard.node.domain,
            "up": heard.status.is_ok(),
        });
        match &heard.status {
            Err(why) => node["error"] = json!(why),
            Ok(status) => {
                node["version"] = json!(status.version);
                node["uptime_seconds"] = json!(status.uptime_seconds);
                node["dropped"] = counts(&status.dropped);
                if let Some(replica) = &status.replica {
                    node["replica"] = json!({
                        "view": replica.view, "primary": replica.primary, "state": replica.state,
                        "last_executed": replica.last_executed, "low_water_mark": replica.low_water_mark,
                        "high_water_mark": replica.high_water_mark, "pending_requests": replica.pending_requests,
                        "behind": replica.behind, "inodes": replica.inodes, "log_bytes": replica.log_bytes,
                        "marked": replica.marked, "reads": counts(&replica.reads),
                        "ignored": counts(&replica.ignored), "misbehaved": counts(&replica.misbehaved),
                    });
                }
                if let Some(storage) = &status.storage {
                    node["storage"] = json!({
                        "blocks": storage.blocks, "used_bytes": storage.used_bytes, "full": storage.full,
                        "capacity_bytes": storage.capacity_bytes, "free_bytes": storage.free_bytes,
                        "corrupt_blocks": storage.corrupt_blocks, "refused_puts": storage.refused_puts,
                    });
                }
            }
        }
        node
    });
    let sessions = sessions(heard).into_iter().map(|((label, user), (replicas, seconds))| {
        json!({ "label": label, "user": user, "replicas": replicas, "connected_seconds": seconds })
    });
    json!({ "cluster": cluster, "nodes": nodes.collect::<Vec<_>>(), "sessions": sessions.collect::<Vec<_>>() })
}
