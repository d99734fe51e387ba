//! `collimate bench` and `collimate info` as their user runs them.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

#[test]
fn latency_has_every_path() {
    let lines = bench(&["latency", "--json", "--quick"]);
    let paths: BTreeSet<_> = lines.iter().map(|l| (text(l, "metric"), text(l, "path"))).collect();
    let mut expected = vec![
        ("task_round_trip", "in_worker"),
        ("fork_join", "in_worker"),
        ("task_round_trip", "cross_process"),
        ("task_round_trip", "tcp"),
        ("start", "cross_process"),
    ];
    if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        expected.push(("task_round_trip", "cross_worker"));
    }
    let expected: BTreeSet<_> = expected.into_iter().map(|(m, p)| (m.to_string(), p.to_string())).collect();
    assert_eq!(paths, expected);
    for line in &lines {
        assert!(number(line, "p50_ns") > 0.0 && number(line, "p99_ns") > 0.0, "{line}");
        assert!(number(&line["reference"], "p50_ns") > 0.0, "{line}");
    }
    let epoll = lines.iter().find(|l| l["path"] == "tcp" && l["variant"] == "epoll").expect("a line for epoll");
    assert!(text(&epoll["reference"], "name").contains("epoll"), "{epoll}");
}

#[test]
fn throughput_compares_jobs() {
    let lines = bench(&["throughput", "--json", "--quick"]);
    let rates: Vec<_> = lines.iter().filter(|l| l["metric"] == "tasks").collect();
    assert!(rates.iter().all(|l| number(l, "per_s") > 0.0 && number(&l["reference"], "per_s") > 0.0), "{rates:?}");
    let more = rates.iter().find(|l| l["variant"] == "oversubscribed").expect("a line for four ranks");
    assert_eq!((number(more, "ranks"), number(more, "workers")), (4.0, 2.0));
    let ratio = number(&more["reference"], "per_s") / number(more, "per_s");
    assert!((number(more, "ratio") / ratio - 1.0).abs() < 1e-6, "{more}");
    let idle = lines.iter().find(|l| l["metric"] == "idle").expect("a line for idling");
    assert!((0.0..=900.0).contains(&number(idle, "percent")), "{idle}");
}

#[test]
fn objects_are_put_and_read_in_place() {
    let lines = bench(&["store", "--json", "--quick"]);
    for metric in ["put", "get"] {
        let sizes: BTreeSet<_> =
            lines.iter().filter(|l| l["metric"] == metric).map(|l| number(l, "bytes") as u64).collect();
        assert!(sizes.contains(&8) && sizes.contains(&(1 << 20)), "{metric}: {sizes:?}");
    }
    for line in lines.iter().filter(|l| l["metric"] == "get") {
        let large = number(line, "bytes") > 4096.0;
        assert!(line["in_place"] == large || !large, "read from a copy: {line}");
    }
}

#[test]
fn broadcasts_are_compared_with_one_transfer() {
    let lines = bench(&["broadcast", "--json", "--quick"]);
    let target = lines.iter().find(|l| !l["target"].is_null()).expect("a line with the target");
    assert_eq!((number(target, "ranks"), number(target, "bytes")), (8.0, (1u64 << 30) as f64));
    assert!(number(target, "ratio") < 1.3, "{target}");
    let died = lines.iter().find(|l| text(l, "variant").contains("dies")).expect("a line with a death");
    assert!(number(died, "ratio") < 1.3, "{died}");
}

#[test]
fn a_write_is_compared_with_a_ring() {
    let lines = bench(&["control", "--json", "--quick", "--only", "control-latency"]);
    let target = lines.iter().find(|l| !l["target"].is_null()).expect("a line with the target");
    let (bound, ring) = (number(&target["target"], "p50_ns"), number(&target["reference"], "p50_ns"));
    assert!((bound - ring - 3000.0).abs() < 1.0, "three hops and 1 us each: {target}");
}

/// Needs the peers, or says how to get them.
#[test]
fn many_writes_are_compared_with_redis() {
    let out = run(&["bench", "control", "--json", "--quick", "--only", "control-rate"]);
    if !has("redis-server") {
        assert!(String::from_utf8_lossy(&out.stderr).contains("scripts/setup --peers"), "{out:?}");
        return;
    }
    assert!(out.status.success(), "{out:?}");
    let lines = records(&out);
    for under_way in ["64 under way", "512 under way"] {
        let those: Vec<_> = lines.iter().filter(|l| l["variant"] == under_way).collect();
        let best = those.iter().map(|l| number(&l["reference"], "per_s")).fold(0.0, f64::max);
        let judged: Vec<_> = those.iter().filter(|l| !l["target"].is_null()).collect();
        assert!(judged.len() == 1 && number(&judged[0]["reference"], "per_s") == best, "{those:?}");
    }
}

#[test]
fn many_writes_to_disk_are_compared_with_etcd() {
    let out = run(&["bench", "control", "--json", "--quick", "--only", "control-durable"]);
    if !has("etcd") {
        assert!(String::from_utf8_lossy(&out.stderr).contains("scripts/setup --peers"), "{out:?}");
        return;
    }
    assert!(out.status.success(), "{out:?}");
    let lines = records(&out);
    for members in ["three members", "one member"] {
        let is_of = |line: &&Value| text(&line["reference"], "name").contains(members);
        assert!(lines.iter().filter(is_of).any(|l| !l["target"].is_null()), "{members}: {out:?}");
    }
}

/// One job of those that `control-kill` starts.
#[test]
fn no_acknowledged_write_is_lost_with_a_rank() {
    let me = env!("CARGO_BIN_EXE_collimate");
    let ranks = ["run", "-n", "3", "--workers", "1", "--gcs-shards", "3", "--", me];
    let out = run(&[&ranks[..], &["bench", "control", "--quick", "--stage", "control-kill"]].concat());
    let places: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    assert_eq!(places.len(), 3, "{out:?}");
    assert!(places.iter().all(|place| number(place, "writes") > 0.0 && number(place, "pause_ns") > 0.0), "{places:?}");
}

/// Ranks that a launcher gave are used, and what does not fit them is named.
#[test]
fn given_ranks_are_used() {
    let me = env!("CARGO_BIN_EXE_collimate");
    for (ranks, path) in [("1", "in_worker"), ("2", "cross_process")] {
        let out = run(&["run", "-n", ranks, "--workers", "1", "--", me, "bench", "latency", "--json", "--quick"]);
        let lines = records(&out);
        assert!(lines.iter().any(|l| l["path"] == path), "{ranks} ranks: {out:?}");
        assert!(lines.iter().all(|l| number(l, "ranks").to_string() == ranks), "{lines:?}");
        let notes = String::from_utf8_lossy(&out.stderr);
        assert!(notes.contains("tcp-epoll left out"), "{notes}");
    }
}

#[test]
fn a_table_is_the_default() {
    let out = run(&["bench", "store", "--quick"]);
    let text = String::from_utf8(out.stdout).expect("a table of text");
    assert!(out.status.success() && text.lines().next().is_some_and(|l| l.contains("reference")), "{text}");
    assert!(text.lines().count() > 10, "{text}");
}

#[test]
fn info_says_what_there_is() {
    let out = run(&["info", "--json"]);
    assert!(out.status.success(), "{out:?}");
    let info: Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let fabrics: Vec<_> = info["fabrics"].as_array().unwrap().iter().map(|f| text(f, "name")).collect();
    assert_eq!(fabrics, ["shm", "rdma", "ofi", "uring", "epoll"]);
    assert!(["rdma", "ofi", "uring", "epoll"].contains(&text(&info["to_other_hosts"], "fabric").as_str()), "{info}");
    assert!(info["cores"].as_array().is_some_and(|c| !c.is_empty()), "{info}");
    assert!(info["config"]["COLLIMATE_FABRIC"] == "auto", "{info}");
    let words = String::from_utf8(run(&["info"]).stdout).unwrap();
    assert!(words.contains("COLLIMATE_STORE") && words.contains("io_uring"), "{words}");
}

#[test]
fn info_names_a_setting_that_cannot_be() {
    let out = command(&["info"]).env("COLLIMATE_WORKERS", "0").output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("COLLIMATE_WORKERS"), "{out:?}");
}

#[test]
fn wrong_usage_ends_with_status_2() {
    for arguments in [
        &["bench"][..],
        &["bench", "speed"],
        &["bench", "latency", "--fast"],
        &["bench", "latency", "--stage", "tasks"],
        &["bench", "latency", "--only", "store"],
        &["info", "all"],
        &["benchmark"],
    ] {
        let out = run(arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {out:?}");
        assert_eq!(String::from_utf8_lossy(&out.stderr).lines().count(), 1, "{arguments:?}: {out:?}");
    }
}

/// The lines of `collimate bench`, each with what every line has.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let out = run(&[&["bench"], arguments].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    records(&out)
}

fn records(out: &Output) -> Vec<Value> {
    let lines: Vec<Value> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    for line in &lines {
        let paths = ["in_worker", "cross_worker", "cross_process", "tcp", "simulated"];
        assert!(paths.contains(&text(line, "path").as_str()), "{line}");
        assert!(!text(&line["reference"], "name").is_empty(), "{line}");
        let ratio = number(line, "ratio");
        assert!(ratio.is_finite() && ratio >= 0.0, "{line}");
    }
    lines
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary of this package")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
    command.args(arguments);
    for name in [
        "WORKERS",
        "FABRIC",
        "STORE",
        "STACK",
        "RESOURCES",
        "LOG",
        "PORT",
        "INTERFACE",
        "GCS_REPLICAS",
        "GCS_SHARDS",
        "GCS_DIR",
    ] {
        command.env_remove(format!("COLLIMATE_{name}"));
    }
    command
}

/// Whether a program is in the path.
fn has(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}")).to_string()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}
