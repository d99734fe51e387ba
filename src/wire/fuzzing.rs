//! What the fuzz target of this folder calls, and its corpus as a test for any
//! toolchain.

use super::{Argument, Message, Outcome};

/// Verifies one message and reads everything that it then offers.
pub fn message(input: &[u8]) {
    match Message::parse(input) {
        Ok(Message::Spawn(spawn)) => {
            let declared = spawn.arguments.len();
            let read = spawn.arguments.inspect(|argument| {
                if let Argument::Inline { bytes, align } = argument {
                    assert!(align.is_power_of_two() && bytes.len() <= input.len());
                }
            });
            assert_eq!(read.count(), declared, "an argument that was let through is lost");
        }
        Ok(Message::Result(result)) => {
            if let Outcome::Inline { bytes, align } = result.outcome {
                assert!(align.is_power_of_two() && bytes.len() <= input.len());
            }
        }
        Ok(Message::Release(release)) => assert!(release.count > 0),
        Ok(Message::StealRequest(request)) => assert!(request.want > 0),
        Ok(other) => assert!(!format!("{other:?}").is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_corpus_holds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/message");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() >= 10, "{} files", files.len());
        for file in files {
            println!("{}", file.display());
            super::message(&std::fs::read(file).unwrap());
        }
    }
}
