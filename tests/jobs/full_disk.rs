//! The control store on a disk that fills up and gets space again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use collimate::{ControlStore, Table};

use crate::Scenario;
use crate::harness::{Job, SCENARIO, Test, is_required, test};

pub const SCENARIOS: &[Scenario] = &[("control full disk", fills_up), ("control space again", is_all_there)];

/// Where the small disk is, in a job's own view of the file system.
const DISK: &str = "/mnt";

/// Records before the disk is full, and with it.
const BEFORE: u64 = 20;

pub fn tests() -> Vec<Test> {
    let mount = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    let may_mount = mount.is_ok_and(|status| status.success());
    // Who may have network namespaces may mount.
    assert!(may_mount || !is_required("netns"), "a job cannot have a small disk of its own");
    let full = || {
        let done = on_small_disk(3).run().succeeded();
        assert!(done.stdout.contains("all there"), "{done:#?}");
    };
    if may_mount { vec![test("control_disk_is_full_and_has_space_again", full)] } else { Vec::new() }
}

/// The two scenarios one after the other, with the control store on a disk of
/// two megabytes that only they see.
fn on_small_disk(ranks: u32) -> Job {
    let script = "mount -t tmpfs -o size=2m tmpfs $COLLIMATE_GCS_DIR && \
                  $0 run -n $RANKS -- $1 && \
                  COLLIMATE_TEST_SCENARIO='control space again' exec $0 run -n $RANKS -- $1";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_collimate")]);
    command.arg(std::env::current_exe().unwrap());
    let job = Job::new(command, format!("{ranks} ranks on a small disk"));
    job.env("RANKS", ranks.to_string()).env("COLLIMATE_GCS_DIR", DISK).env(SCENARIO, "control full disk")
}

/// While the disk is full, writes wait and then fail with the cause, and reads go
/// on; with space again, what waits is done.
#[collimate::main]
fn fills_up() -> Result<(), Box<dyn std::error::Error>> {
    let store = ControlStore::of_job()?;
    let put = |n: u64| store.put(Table::Lineage, &n.to_be_bytes(), &[n as u8; 8000]);
    for n in 0..BEFORE {
        put(n).wait()?;
    }
    let ballast = Path::new(DISK).join("ballast");
    let mut file = File::create(&ballast)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    let failed = put(BEFORE).wait().expect_err("no space for it").to_string();
    assert!(failed.contains("the disk of rank") && failed.contains("is full"), "{failed}");
    for n in 0..BEFORE {
        assert!(store.get(Table::Lineage, &n.to_be_bytes()).wait()?.is_some(), "record {n} while the disk is full");
    }
    let waits = put(BEFORE + 1);
    drop(file);
    fs::remove_file(&ballast)?;
    waits.wait()?;
    Ok(())
}

/// The next job finds all that was done.
#[collimate::main]
fn is_all_there() -> Result<(), Box<dyn std::error::Error>> {
    let store = ControlStore::of_job()?;
    for n in (0..BEFORE).chain([BEFORE + 1]) {
        let record = store.get(Table::Lineage, &n.to_be_bytes()).wait()?;
        assert!(record.is_some_and(|record| record.value.to_vec() == [n as u8; 8000]), "record {n}");
    }
    println!("all there");
    Ok(())
}
