//! Reads that one replica proves, between real processes.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::process::{ANSWER, Finished, run};
use tests::{Cluster, needs_mount, one_at_a_time, run_ok, wait_until};

const SETTLE: Duration = Duration::from_secs(60);

/// What `stat` says of a path, and how many of its reads were proven and ordered.
fn stat(cluster: &Cluster, path: &str, age: &str) -> (Value, u64, u64) {
    let said = run_ok(cluster.admin().args(["stat", path, "--json", "--max-age", age]), ANSWER);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let count = |what: &str| said["reads"][what].as_u64().expect("a number");
    let (proven, ordered) = (count("proven"), count("ordered"));
    (said, proven, ordered)
}

/// Waits until all that `stat` reads is proven.
fn all_proven(cluster: &Cluster, path: &str, age: &str) -> Value {
    let look = || Some(stat(cluster, path, age)).filter(|(_, proven, ordered)| *proven > 0 && *ordered == 0);
    wait_until("reads are proven", SETTLE, look).0
}

#[test]
fn what_was_agreed_lately_is_proven_by_one_replica() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::start();
    let root = all_proven(&cluster, "/", "60s");
    assert_eq!((root["kind"].as_str(), root["mode"].as_str()), (Some("directory"), Some("0755")));
    let (ordered, proven, _) = stat(&cluster, "/", "0ms");
    assert_eq!(proven, 0, "nothing is that new");
    assert_eq!(ordered["version"], root["version"]);
    let Finished { stderr, status, .. } = run(cluster.admin().args(["stat", "/nobody", "--max-age", "60s"]), ANSWER);
    assert!(!status.success() && stderr.contains("nobody"), "{stderr}");
    // While more than f are down nothing can be agreed on, and what was is proven all the same.
    cluster.kill_nodes([0, 3]);
    let (again, proven, ordered) = stat(&cluster, "/", "600s");
    assert!(proven > 0 && ordered == 0, "{proven} proven, {ordered} ordered");
    assert_eq!(again["version"], root["version"]);
}

#[test]
fn a_mount_that_may_look_back_sees_its_own_changes_at_once() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let (looking_back, other) = (cluster.mount_aged("back", "5s"), cluster.mount("other"));
    for round in 0..20 {
        let name = format!("file-{round}");
        let own = looking_back.path().join(&name);
        fs::write(&own, vec![7; round]).expect("write");
        assert_eq!(fs::metadata(&own).expect("its own file").len(), round as u64);
        fs::rename(&own, own.with_extension("moved")).expect("rename");
        assert!(!own.exists() && own.with_extension("moved").exists());
    }
    // What another does is seen within the age, and the kernel's second.
    fs::write(other.path().join("theirs"), b"theirs").expect("write");
    let (theirs, began) = (looking_back.path().join("theirs"), Instant::now());
    wait_until("what another wrote is seen", SETTLE, || theirs.exists().then_some(()));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(fs::read(&theirs).expect("read"), b"theirs");
    let answered = |status: &tests::Status| (0..4).map(|node| status.node(node).proven_reads()).sum::<u64>();
    cluster.wait_status("reads were proven to the mount", SETTLE, |status| {
        let _ = fs::metadata(looking_back.path().join("file-3.moved"));
        answered(status) > 0
    });
}
