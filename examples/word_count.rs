//! Counts the words of all text files below a directory.
//!
//! Shows: map tasks that read files wherever they run, a tree of merge tasks
//! that take refs, and errors as values: a file that cannot be read fails its
//! own task, and the driver gets the reason through every merge above it.
//!
//! ```text
//! cargo build --release --example word_count
//! mpirun -n 2 target/release/examples/word_count docs
//! collimate run -n 2 -- target/release/examples/word_count docs
//! ```
//!
//! Every rank must see the directory under the same path. A word is a run of
//! letters and digits, in lower case. Bytes that are not UTF-8 count as the
//! replacement character U+FFFD, which is no letter: they separate words and are
//! otherwise ignored. Links to directories are not followed. The output does not
//! depend on the number of ranks or on the size of a chunk.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Parser;
use collimate::{Options, Ref};

/// How many of the most frequent words are printed.
const TOP: usize = 20;

/// Counts the words of all text files below a directory.
#[derive(Parser)]
struct Cli {
    /// Directory to search, with all that is below it
    directory: PathBuf,
    /// Larger files are counted in chunks of this many bytes
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    chunk_bytes: u64,
}

/// Words and how often each occurs, sorted by word.
type Counts = Vec<(String, u64)>;

/// Counts the words of the file at `path` that lie in the pieces which begin
/// from `start` up to `end`; the error names the file.
#[collimate::task]
fn count(path: String, start: u64, end: u64) -> Result<Counts, String> {
    let pieces = File::open(&path).and_then(|file| read_pieces(BufReader::new(file), start, end));
    let bytes = pieces.map_err(|error| format!("cannot read {path}: {error}"))?;
    Ok(count_words(&String::from_utf8_lossy(&bytes)))
}

/// Adds up two sorted counts.
#[collimate::task]
fn merge(left: Counts, right: Counts) -> Counts {
    let mut merged = Counts::with_capacity(left.len().max(right.len()));
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some((word, _)), Some((other, _))) = (left.peek(), right.peek()) {
        let order = word.cmp(other);
        let from_left = order.is_le().then(|| left.next()).flatten();
        let from_right = order.is_ge().then(|| right.next()).flatten();
        let both = from_left.into_iter().chain(from_right);
        merged.extend(both.reduce(|(word, count), (_, more)| (word, count + more)));
    }
    merged.extend(left.chain(right));
    merged
}

#[collimate::main]
fn main() -> Result<(), Box<dyn Error>> {
    let Cli { directory, chunk_bytes } = Cli::parse();
    let mut files = Vec::new();
    list_files(&directory, &mut files)?;
    files.sort();

    let mut counts: Vec<Ref<Counts>> = Vec::new();
    for (path, bytes) in &files {
        for start in (0..*bytes).step_by(usize::try_from(chunk_bytes)?) {
            let end = start.saturating_add(chunk_bytes);
            counts.push(count::spawn_with(Options::new().spread(), path.clone(), start, end));
        }
    }
    let counts = match merge_all(counts) {
        Some(counts) => counts.get()?,
        None => Counts::new(),
    };

    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let different = counts.len();
    for (word, count) in most_frequent(counts) {
        println!("{count:>10} {word}");
    }
    println!("{total} words, {different} different, in {} files", files.len());
    Ok(())
}

/// Merges neighbours until one is left; none when there was none.
fn merge_all(mut counts: Vec<Ref<Counts>>) -> Option<Ref<Counts>> {
    while counts.len() > 1 {
        let mut level = counts.into_iter();
        let mut merged = Vec::new();
        while let Some(left) = level.next() {
            merged.push(match level.next() {
                Some(right) => merge::spawn(left, right),
                None => left,
            });
        }
        counts = merged;
    }
    counts.pop()
}

/// Adds path and length of every file below `directory`.
fn list_files(directory: &Path, files: &mut Vec<(String, u64)>) -> Result<(), String> {
    let in_directory = |error| format!("cannot list {}: {error}", directory.display());
    for entry in fs::read_dir(directory).map_err(in_directory)? {
        let entry = entry.map_err(in_directory)?;
        let path = entry.path();
        let in_file = |error| format!("cannot examine {}: {error}", path.display());
        if entry.file_type().map_err(in_file)?.is_dir() {
            list_files(&path, files)?;
            continue;
        }
        let metadata = fs::metadata(&path).map_err(in_file)?;
        if metadata.is_file() {
            let name = path.to_str().ok_or_else(|| format!("the name {} is not UTF-8: rename it", path.display()))?;
            files.push((name.to_owned(), metadata.len()));
        }
    }
    Ok(())
}

/// Reads the pieces of `file` that begin from `start` up to `end`, where a piece
/// is what lies between two bytes of white space. So a chunk's bounds may fall
/// anywhere, within a word or within a character: each piece is read whole and
/// by exactly one chunk.
fn read_pieces(mut file: impl BufRead + Seek, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut position = start;
    if start > 0 {
        // The piece under way at `start`, if any, belongs to the chunk before;
        // it is empty when the byte before `start` is white space.
        file.seek(SeekFrom::Start(start - 1))?;
        position = start - 1 + skip_piece(&mut file)?;
    }
    let mut bytes = Vec::new();
    while position < end {
        let before = bytes.len();
        let ended = read_piece(&mut file, &mut bytes)?;
        position += (bytes.len() - before) as u64;
        if !ended {
            break;
        }
    }
    Ok(bytes)
}

fn skip_piece(file: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = Vec::new();
    read_piece(file, &mut skipped)?;
    Ok(skipped.len() as u64)
}

/// Appends all up to and with the next white space; false at the end of the file.
fn read_piece(file: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let buffer = match file.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        let space = buffer.iter().position(u8::is_ascii_whitespace);
        let taken = space.map_or(buffer.len(), |space| space + 1);
        let at_end = buffer.is_empty();
        bytes.extend_from_slice(&buffer[..taken]);
        file.consume(taken);
        if space.is_some() || at_end {
            return Ok(space.is_some());
        }
    }
}

fn count_words(text: &str) -> Counts {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    let mut counts: Counts = counts.into_iter().collect();
    counts.sort_unstable();
    counts
}

/// The most frequent first; words that are equally frequent by alphabet.
fn most_frequent(mut counts: Counts) -> Counts {
    counts.sort_unstable_by(|(a, count_a), (b, count_b)| (Reverse(count_a), a).cmp(&(Reverse(count_b), b)));
    counts.truncate(TOP);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn any_chunk_size_counts_every_word_once() {
        let text = "Ein Käse, ein Brot\n\n  zwei\tKäse ünd x".as_bytes();
        let whole = count_words(&String::from_utf8_lossy(text));
        assert_eq!(whole.iter().map(|(_, count)| count).sum::<u64>(), 8);
        for chunk in 1..=text.len() + 3 {
            let parts = (0..text.len()).step_by(chunk).map(|start| {
                let bytes = read_pieces(Cursor::new(text), start as u64, (start + chunk) as u64).unwrap();
                count_words(&String::from_utf8_lossy(&bytes))
            });
            assert_eq!(parts.fold(Counts::new(), merge), whole, "chunks of {chunk} bytes");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_separate_words() {
        let counts = count_words(&String::from_utf8_lossy(b"one\xfftwo One"));
        assert_eq!(counts, [("one".to_owned(), 2), ("two".to_owned(), 1)]);
    }

    #[test]
    fn ties_are_printed_by_alphabet() {
        let top = most_frequent(count_words("b a c c"));
        assert_eq!(top.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
    }

    #[test]
    fn missing_directory_is_named() {
        let error = list_files(Path::new("/no/such/directory"), &mut Vec::new()).unwrap_err();
        assert!(error.starts_with("cannot list /no/such/directory: "), "{error}");
    }
}
