//! Chores of the tree. `cargo xtask schema` regenerates the control
//! messages from `schema/`, `header` the C header from `ffi/src`, and `bindings`
//! those to C libraries from their installed headers; with `--check` they only
//! compare. `sim --seed S` plays one simulated run of the control store and says
//! what came of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod bindings;

const USAGE: &str = "usage: cargo xtask schema|header|bindings [--check] | sim --seed S";

/// A file that is made from others.
struct Generated {
    /// Where it is committed.
    path: &'static str,
    /// What it is made from.
    source: &'static str,
    /// The argument that makes it.
    command: &'static str,
    make: fn() -> Result<String, String>,
    /// A file of the system without which nothing can be compared.
    needs: Option<&'static str>,
}

const ALL: &[Generated] = &[
    Generated {
        path: "src/wire/generated/control.rs",
        source: SCHEMA,
        command: "schema",
        make: control_messages,
        needs: None,
    },
    Generated { path: "ffi/include/collimate.h", source: FFI, command: "header", make: header, needs: None },
    Generated {
        path: bindings::OFI.path,
        source: "the headers of libfabric-dev 1.17",
        command: "bindings",
        make: || bindings::OFI.make(),
        needs: Some(bindings::OFI.header),
    },
    Generated {
        path: bindings::VERBS.path,
        source: "the headers of libibverbs-dev 44",
        command: "bindings",
        make: || bindings::VERBS.make(),
        needs: Some(bindings::VERBS.header),
    },
];

const SCHEMA: &str = "schema/control.fbs";
const FFI: &str = "ffi/src";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["sim", "--seed", seed] = arguments[..] {
        return tell(simulate(seed));
    }
    let chosen = |command| ALL.iter().filter(move |g| g.command == command).peekable();
    let (mut chosen, act): (_, fn(&Generated) -> Result<String, String>) = match arguments[..] {
        [command] => (chosen(command), Generated::write),
        [command, "--check"] => (chosen(command), Generated::check),
        _ => (chosen(""), Generated::check),
    };
    if chosen.peek().is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let codes: Vec<ExitCode> = chosen.map(act).map(tell).collect();
    codes.into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// Prints what came of a chore.
fn tell(outcome: Result<String, String>) -> ExitCode {
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("xtask: {line}");
            ExitCode::FAILURE
        }
    }
}

impl Generated {
    /// Makes it and writes it where it belongs.
    fn write(&self) -> Result<String, String> {
        let path = root().join(self.path);
        fs::write(&path, (self.make)()?).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(format!("{} written", self.path))
    }

    /// Compares what is committed with what would be made.
    fn check(&self) -> Result<String, String> {
        let Generated { path, source, command, make, needs } = self;
        if let Some(missing) = needs.filter(|file| !Path::new(file).exists()) {
            return Ok(format!("{path} was not compared: {missing} is missing"));
        }
        let full = root().join(path);
        let committed = fs::read_to_string(&full).map_err(|e| format!("cannot read {}: {e}", full.display()))?;
        if committed != make()? {
            return Err(format!("{path} does not match {source}: run `cargo xtask {command}` and commit it"));
        }
        Ok(format!("{path} is current"))
    }
}

/// The C header of the functions in `ffi/src`, in the order of its files.
fn header() -> Result<String, String> {
    let ffi = root().join("ffi");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml"))?;
    let files = ["status", "runtime", "task", "value"].map(|name| ffi.join("src").join(name).with_extension("rs"));
    let builder = files.iter().fold(cbindgen::Builder::new().with_config(config), |b, file| b.with_src(file));
    let mut text = Vec::new();
    builder.generate().map_err(|e| format!("{FFI}: {e}"))?.write(&mut text);
    let text = String::from_utf8(text).map_err(|e| format!("{FFI}: {e}"))?;
    // What Rust calls safety, C programmers know as what is asked of them.
    Ok(text.replace(" * # Safety\n", " * The caller makes sure:\n"))
}

/// The Rust code of the schema, laid out by a library so that it does not
/// depend on the machine's rustfmt.
fn control_messages() -> Result<String, String> {
    // The generated comments quote the path as given: it must be relative.
    std::env::set_current_dir(root()).map_err(|e| format!("cannot enter {}: {e}", root().display()))?;
    let declarations = planus_translation::translate_files(&[SCHEMA])
        .ok_or_else(|| format!("{SCHEMA} is not a valid schema; the lines above say where"))?;
    let code = planus_codegen::generate_rust(&declarations, false).map_err(|e| format!("{SCHEMA}: {e}"))?;
    let tree = syn::parse_file(&code).map_err(|e| format!("planus gave code that does not parse: {e}"))?;
    Ok(format!(
        "// Generated from {SCHEMA} by `cargo xtask schema`; not to be edited.\n{}",
        prettyplease::unparse(&tree)
    ))
}

/// Plays one seed, as the tests do.
fn simulate(seed: &str) -> Result<String, String> {
    let seed: u64 = seed.parse().map_err(|_| format!("{seed} is no seed: a number from 0"))?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let words = ["test", "--quiet", "--locked", "--profile", "sim", "--lib", "--"];
    let status = Command::new(cargo)
        .current_dir(root())
        .args(words)
        .args(["--exact", "sim::gcs::tests::replay", "--nocapture"])
        .env("COLLIMATE_SIM_SEED", seed.to_string())
        .status()
        .map_err(|e| format!("cannot start cargo: {e}"))?;
    if status.success() { Ok(format!("seed {seed}: nothing found")) } else { Err(format!("seed {seed}: see above")) }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_generated_is_current() {
        for generated in ALL {
            generated.check().unwrap();
        }
    }
}
