//! Runs the programs of these tests, with the libraries and the launcher as they
//! are in the tree now.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program alone, or several of it by our launcher.
pub fn launched(program: &[&OsStr], ranks: u32) -> Command {
    let mut command = match ranks {
        1 => Command::new(program[0]),
        _ => {
            let mut command = Command::new(built().join("collimate"));
            command.args(["run", "-n", &ranks.to_string(), "--"]).arg(program[0]);
            command
        }
    };
    command.args(&program[1..]);
    for name in ["PMI_FD", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "COLLIMATE_LAUNCH_FD", "COLLIMATE_PORT"] {
        command.env_remove(name);
    }
    command
}

/// The folder with the C libraries and the `collimate` command, as they are in
/// the tree now.
pub fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // target/<profile>/deps/<this test>
        let me = std::env::current_exe().unwrap();
        let folder = me.ancestors().nth(2).unwrap().to_path_buf();
        let profile = match folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(package()).args(["build", "--locked", "--quiet", "--profile", profile]);
        cargo.args(["-p", "collimate", "-p", "collimate-c", "--lib", "--bins", "--target-dir"]);
        let output = cargo.arg(folder.parent().unwrap()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

/// The folder of this package.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Status, output and errors of a command, which must end in time.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{command:?} has not ended: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}
