//! `mangrove volume create` and `mangrove volume list`.

use std::process::ExitCode;

use serde_json::json;

use crate::args::{Access, VolumeCreate, VolumeList};
use crate::output::{print_table, say};
use crate::{config, mount};

pub(crate) async fn create(access: &Access, args: &VolumeCreate) -> anyhow::Result<ExitCode> {
    config::connect(access, "volume create")?.create_volume(&args.name, mount::owner()).await?;
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
                })
            })
            .collect();
        say!("{}", serde_json::to_string_pretty(&volumes)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![vec!["VOLUME".to_owned(), "REDUNDANCY".to_owned()]];
    rows.extend(volumes.iter().map(|volume| vec![volume.spec.name.clone(), redundancy(volume.spec.redundancy)]));
    print_table(&rows);
    Ok(ExitCode::SUCCESS)
}

fn redundancy(redundancy: client::Redundancy) -> String {
    let client::Redundancy::Replicate(copies) = redundancy;
    format!("replicate={copies}")
}
