//! The folder of the control store: what a rank finds of an earlier run of the
//! job there, before any log is read.
//!
//! ```text
//! DIR/layout               how the job is laid out, written by rank 0
//! DIR/rank-R/lock          held as long as the rank lives
//! DIR/rank-R/life          how often the rank was started on this folder
//! DIR/rank-R/quorum        what a member of the quorum must not forget
//! DIR/rank-R/shard-S.log   the log of a replica
//! DIR/rank-R/*.lock        that nobody else writes to the file of that name
//! ```

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::DiskError;
use crate::base::Rank;
use crate::sys::{JournalBackend, lock_file};

/// The form of everything in the folder.
const FORMAT: u32 = 1;

/// Lives of a rank on one folder.
pub const LIVES_MAX: u32 = 1_000_000;

/// How a rank uses its folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskOptions {
    /// How the files are written.
    pub backend: JournalBackend,
    /// A damaged log is used up to the damage, and the rest dropped.
    pub truncate_damaged: bool,
}

/// A rank's part of the folder. Nobody else has it as long as this is there.
#[derive(Debug)]
pub struct Home {
    pub(super) dir: PathBuf,
    pub(super) options: DiskOptions,
    root: PathBuf,
    rank: Rank,
    life: u32,
    found_layout: bool,
    _lock: File,
}

/// What must be the same in all runs of a job on one folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// How many ranks the job has.
    pub ranks: u32,
    /// How many replicas a chain should have.
    pub replicas: u32,
    /// How many shards there are.
    pub shards: u32,
    /// The members of the configuration quorum.
    pub quorum: Vec<Rank>,
}

impl Home {
    /// Takes a rank's part of the folder, which is made if it is not there, and
    /// begins another life in it. Waits for the disk.
    pub fn open(root: &Path, rank: Rank, options: DiskOptions) -> Result<Home, DiskError> {
        let dir = root.join(format!("rank-{}", rank.0));
        make_dir(&dir)?;
        let lock = lock_file(&dir.join("lock"))?;
        let mut home = Home { dir, options, root: root.to_path_buf(), rank, life: 0, found_layout: false, _lock: lock };
        home.found_layout = home.root.join("layout").exists();
        home.life = home.next_life()?;
        Ok(home)
    }

    /// Which life of the rank on this folder this is, from 1. Rank 0's is the
    /// job's.
    pub fn life(&self) -> u32 {
        self.life
    }

    /// Whether the layout was there. Where rank 0 finds none, no earlier run has
    /// got so far as to keep anything.
    pub fn found_layout(&self) -> bool {
        self.found_layout
    }

    /// Refuses another layout than that of the first run, which rank 0 writes.
    /// Where the hosts have a folder each, only rank 0's host knows it.
    pub fn check_layout(&self, layout: &Layout) -> Result<(), DiskError> {
        let path = self.root.join("layout");
        let asked = layout.to_text();
        match fs::read_to_string(&path) {
            Ok(found) if found == asked => Ok(()),
            Ok(found) => Err(DiskError::Layout { path, found, asked }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.rank != Rank(0) {
                    return Ok(());
                }
                if self.holds_something()? {
                    let dir = self.dir.clone();
                    return Err(DiskError::Missing { path, beside: dir, then: "put it back" });
                }
                write_new(&self.root, "layout", asked.as_bytes())
            }
            Err(error) => Err(DiskError::io("read", &path, &error)),
        }
    }

    fn next_life(&self) -> Result<u32, DiskError> {
        let path = self.dir.join("life");
        let last = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| DiskError::Life { path: path.clone(), found: shown(&text) })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.holds_something()? {
                    let then = "write into it a number greater than that of any earlier start";
                    return Err(DiskError::Missing { path, beside: self.dir.clone(), then });
                }
                // Rank 0 writes the layout, and has begun a life before that.
                if self.rank == Rank(0) && self.found_layout {
                    let then = "put back the folder that it was in, with all that was there";
                    return Err(DiskError::Missing { path, beside: self.root.clone(), then });
                }
                0
            }
            Err(error) => return Err(DiskError::io("read", &path, &error)),
        };
        if last >= u64::from(LIVES_MAX) {
            return Err(DiskError::Lives { path, count: last });
        }
        let life = last as u32 + 1;
        write_new(&self.dir, "life", format!("{life}\n").as_bytes())?;
        Ok(life)
    }

    /// Whether an earlier life has left a log or a promise.
    fn holds_something(&self) -> Result<bool, DiskError> {
        let list = || -> io::Result<bool> {
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if (name.ends_with(".log") || name == "quorum") && entry.metadata()?.len() > 0 {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        list().map_err(|error| DiskError::io("list", &self.dir, &error))
    }
}

impl Layout {
    /// As it stands in the file, and in errors.
    pub(super) fn to_text(&self) -> String {
        let Layout { ranks, replicas, shards, quorum } = self;
        let mut text = format!("format {FORMAT}\nranks {ranks}\nreplicas {replicas}\nshards {shards}\nquorum");
        for rank in quorum {
            // Writing to a string cannot fail.
            let _ = write!(text, " {}", rank.0);
        }
        text.push('\n');
        text
    }
}

/// Makes a folder and those above it, for good.
fn make_dir(dir: &Path) -> Result<(), DiskError> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(above)?;
    match fs::create_dir(dir) {
        Ok(()) => sync_dir(above),
        // Another rank was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(DiskError::io("make", dir, &error)),
    }
}

/// Gives a file this content, at once or not at all, and on disk.
fn write_new(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
    let (path, temp) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temp)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&temp, &path)
    };
    write().map_err(|error| DiskError::io("write", &path, &error))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| DiskError::io("sync", dir, &error))
}

/// What stands in a file, for an error.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}
