//! Chores of the tree. `cargo run -p xtask -- schema` regenerates the control
//! messages from `schema/`; with `--check` it only compares.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- schema [--check]";
const SCHEMA: &str = "schema/control.fbs";
const GENERATED: &str = "src/wire/generated/control.rs";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["schema"] => write_schema(),
        ["schema", "--check"] => check_schema(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
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

/// Generates the code and writes it where the crate includes it.
fn write_schema() -> Result<String, String> {
    let path = root().join(GENERATED);
    fs::write(&path, generate()?).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(format!("{GENERATED} written"))
}

/// Compares what is committed with what the schema gives.
fn check_schema() -> Result<String, String> {
    let path = root().join(GENERATED);
    let committed = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if committed != generate()? {
        return Err(format!("{GENERATED} does not match {SCHEMA}: run `cargo run -p xtask -- schema` and commit it"));
    }
    Ok(format!("{GENERATED} is current"))
}

/// The Rust code of the schema, laid out by a library so that it does not
/// depend on the machine's rustfmt.
fn generate() -> Result<String, String> {
    // The generated comments quote the path as given: it must be relative.
    std::env::set_current_dir(root()).map_err(|e| format!("cannot enter {}: {e}", root().display()))?;
    let declarations = planus_translation::translate_files(&[SCHEMA])
        .ok_or_else(|| format!("{SCHEMA} is not a valid schema; the lines above say where"))?;
    let code = planus_codegen::generate_rust(&declarations, false).map_err(|e| format!("{SCHEMA}: {e}"))?;
    let tree = syn::parse_file(&code).map_err(|e| format!("planus gave code that does not parse: {e}"))?;
    Ok(format!(
        "// Generated from {SCHEMA} by `cargo run -p xtask -- schema`; not to be edited.\n{}",
        prettyplease::unparse(&tree)
    ))
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}
