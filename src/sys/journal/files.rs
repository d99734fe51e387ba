//! The files of a journal, and plain calls on them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::{Fault, JournalError, failed, lock_file};

/// What a new file is opened with.
pub(super) const TEMP_FLAGS: OFlags = OFlags::RDWR.union(OFlags::CREATE).union(OFlags::TRUNC).union(OFlags::CLOEXEC);
/// Who may read and write it: its owner.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Where a journal is. As long as there is one, nobody else may write there.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) dir: File,
    /// Within `dir`: the file, and the one that is to replace it.
    pub(super) name: CString,
    pub(super) temp: CString,
    _lock: File,
}

impl Place {
    pub(super) fn open(dir: &Path, name: &str) -> Result<Place, JournalError> {
        let path = dir.join(name);
        // Before the lock: where that is and the file is not, the file was lost.
        let made = File::options().create(true).truncate(false).write(true).open(&path);
        made.map_err(|error| failed("open", &path, &error))?;
        let lock = lock_file(&dir.join(format!("{name}.lock")))?;
        let c_name = |name: &Path| CString::new(name.as_os_str().as_bytes());
        let invalid = |_| JournalError::Io { doing: "name", path: path.clone(), cause: Errno::INVAL };
        let place = Place {
            dir: File::open(dir).map_err(|error| failed("open", dir, &error))?,
            name: c_name(Path::new(name)).map_err(invalid)?,
            temp: c_name(Path::new(&format!("{name}.new"))).map_err(invalid)?,
            path,
            _lock: lock,
        };
        // An earlier process may have ended while it wrote one.
        place.remove_temp();
        Ok(place)
    }

    /// The file as it is, or a new one that is there for good.
    pub(super) fn open_current(&self) -> Result<File, JournalError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = openat(&self.dir, &self.name, flags, FILE_MODE);
        let file = file.map_err(|cause| JournalError::Io { doing: "open", path: self.path.clone(), cause })?;
        self.dir.sync_all().map_err(|error| failed("sync the directory of", &self.path, &error))?;
        Ok(File::from(file))
    }

    /// Drops the end of the file, for good.
    pub(super) fn truncate(&self, to: u64) -> Result<(), JournalError> {
        let cut = || {
            let file = File::options().write(true).open(&self.path)?;
            file.set_len(to)?;
            file.sync_all()
        };
        cut().map_err(|error| failed("truncate", &self.path, &error))
    }

    /// Writes to a file and has it on disk.
    pub(super) fn append(&self, file: &File, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let written = file.write_all_at(bytes, at).map_err(|error| fault("write", &error));
        let synced = written.and_then(|()| file.sync_data().map_err(|error| fault("sync", &error)));
        if synced.is_err() {
            self.undo_append(file, at);
        }
        synced
    }

    /// Gives the file other content. Returns it anew.
    pub(super) fn replace(&self, bytes: &[u8]) -> Result<File, Fault> {
        let replaced = self.write_temp(bytes);
        if replaced.is_err() {
            self.remove_temp();
        }
        replaced
    }

    fn write_temp(&self, bytes: &[u8]) -> Result<File, Fault> {
        let call = |doing| move |cause| Fault { doing, cause };
        let file = File::from(openat(&self.dir, &self.temp, TEMP_FLAGS, FILE_MODE).map_err(call("open anew"))?);
        file.write_all_at(bytes, 0).map_err(|error| fault("write anew", &error))?;
        file.sync_all().map_err(|error| fault("sync anew", &error))?;
        renameat(&self.dir, &self.temp, &self.dir, &self.name).map_err(call("replace"))?;
        self.dir.sync_all().map_err(|error| fault("sync the directory of", &error))?;
        Ok(file)
    }

    /// What was partly written is no part of the file, and takes no space. If
    /// this cannot be done, the next write goes to the same place.
    pub(super) fn undo_append(&self, file: &File, at: u64) {
        let _ = file.set_len(at);
    }

    pub(super) fn remove_temp(&self) {
        // Mostly there is none.
        let _ = unlinkat(&self.dir, &self.temp, AtFlags::empty());
    }
}

fn fault(doing: &'static str, error: &io::Error) -> Fault {
    // Without a number: a write that wrote nothing.
    Fault { doing, cause: Errno::from_io_error(error).unwrap_or(Errno::IO) }
}
