//! What a journal must do, played through by each of its backends.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// Longer than any step takes, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("collimate-journal-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn read(&self) -> Vec<u8> {
        fs::read(self.0.join("log")).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A disk of a few pages, seen by the thread that made it and those that it
/// starts.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    /// Fails with the reason if this process may not mount. Where CI says that
    /// everything must be tested, that panics.
    pub(crate) fn new(kib: usize) -> Result<SmallDisk, String> {
        let made = SmallDisk::mount(kib);
        if let Err(why) = &made {
            // Who may have network namespaces may mount.
            assert!(!is_required("netns"), "a small disk is required: {why}");
        }
        made
    }

    fn mount(kib: usize) -> Result<SmallDisk, String> {
        // SAFETY: a call without memory; it changes what this thread's paths mean.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(format!("cannot have mounts of one's own: {}", io::Error::last_os_error()));
        }
        let folder = Folder::new();
        run(Command::new("mount").args(["--make-rprivate", "/"]))?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]).arg(&folder.0))?;
        let path = folder.0.clone();
        std::mem::forget(folder);
        Ok(SmallDisk(path))
    }

    /// Takes all space that is left, until [`SmallDisk::free`].
    pub(crate) fn fill(&self) {
        let file = fs::File::create(self.0.join("ballast")).unwrap();
        let mut at = 0;
        while let Ok(n @ 1..) = file.write_at(&[7; 4096], at) {
            at += n as u64;
        }
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }

    /// Nothing can be written at all.
    pub(crate) fn make_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
        let _ = fs::remove_dir(&self.0);
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{command:?}: {}", said.trim()))
}

/// Plays a scene with each backend that this machine has.
fn with_each(scene: impl Fn(JournalBackend)) {
    scene(JournalBackend::Thread);
    if has_ring() {
        scene(JournalBackend::Uring);
    }
}

fn has_ring() -> bool {
    let here = super::super::uring::Features::here().ring.is_ok();
    assert!(here || !is_required("uring"), "io_uring is required");
    here
}

/// Whether CI says that this must be tested.
fn is_required(what: &str) -> bool {
    std::env::var("COLLIMATE_TEST_REQUIRED").unwrap_or_default().split_whitespace().any(|word| word == what)
}

fn open(folder: &Path, backend: JournalBackend) -> (Journal, Vec<u8>) {
    Journal::open(folder, "log", backend, None).unwrap()
}

/// Waits by the descriptor until what is told ends with `last`.
fn until(journal: &mut Journal, last: &JournalEvent) -> Vec<JournalEvent> {
    let start = Instant::now();
    let mut told = Vec::new();
    loop {
        journal.poll(&mut |event| told.push(event));
        if told.contains(last) {
            return told;
        }
        assert!(start.elapsed() < PATIENCE, "{last:?} never came: {told:?}");
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let woken = poll(&mut [PollFd::from_borrowed_fd(journal.wait_fd(), PollFlags::IN)], Some(&patience));
        assert_ne!(woken, Ok(0), "nobody was woken for {last:?} after {told:?}");
    }
}

fn synced(tags: std::ops::RangeInclusive<u64>) -> Vec<JournalEvent> {
    tags.map(JournalEvent::Synced).collect()
}

#[test]
fn what_is_synced_is_in_the_file_in_order() {
    with_each(|backend| {
        let folder = Folder::new();
        let (mut journal, bytes) = open(&folder.0, backend);
        assert_eq!(bytes, b"");
        for i in 1..=100 {
            journal.append(vec![i as u8; i]);
            journal.sync(i as u64);
        }
        assert_eq!(until(&mut journal, &JournalEvent::Synced(100)), synced(1..=100));
        let expected: Vec<u8> = (1..=100).flat_map(|i| vec![i as u8; i]).collect();
        assert!(folder.read() == expected);
        assert!(journal.syncs() < 100, "what gathers while a sync is under way goes together");
        journal.append(b"never synced".to_vec());
        drop(journal);
        assert!(open(&folder.0, backend).1 == expected, "and it is read back, without what was never synced");
    });
}

#[test]
fn syncs_without_bytes_are_told_too() {
    with_each(|backend| {
        let folder = Folder::new();
        let (mut journal, _) = open(&folder.0, backend);
        journal.sync(1);
        assert_eq!(until(&mut journal, &JournalEvent::Synced(1)), synced(1..=1));
        journal.append(b"x".to_vec());
        journal.sync(2);
        journal.sync(3);
        assert_eq!(until(&mut journal, &JournalEvent::Synced(3)), synced(2..=3));
        journal.replace(Vec::new());
        journal.sync(4);
        assert_eq!(until(&mut journal, &JournalEvent::Synced(4)), synced(4..=4));
        assert_eq!(folder.read(), b"");
    });
}

#[test]
fn nothing_is_readable_when_there_is_nothing_to_tell() {
    with_each(|backend| {
        let folder = Folder::new();
        let (mut journal, _) = open(&folder.0, backend);
        for tag in 0..50 {
            journal.append(b"some".to_vec());
            journal.sync(tag);
            until(&mut journal, &JournalEvent::Synced(tag));
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let fd = PollFd::from_borrowed_fd(journal.wait_fd(), PollFlags::IN);
            assert_eq!(poll(&mut [fd], Some(&now)), Ok(0), "it would keep its waiter awake");
        }
    });
}

#[test]
fn a_reader_sees_the_old_content_or_the_new() {
    with_each(|backend| {
        let folder = Folder::new();
        let (mut journal, _) = open(&folder.0, backend);
        journal.replace(vec![0; 100_000]);
        journal.sync(0);
        until(&mut journal, &JournalEvent::Synced(0));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) {
                    let bytes = folder.read();
                    assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == bytes[0]));
                    reads += 1;
                }
                reads
            });
            for i in 1..=20 {
                journal.append(b"overtaken".to_vec());
                journal.replace(vec![i; 100_000]);
                journal.sync(u64::from(i));
                until(&mut journal, &JournalEvent::Synced(u64::from(i)));
            }
            stop.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
        journal.append(b"and more".to_vec());
        journal.sync(21);
        until(&mut journal, &JournalEvent::Synced(21));
        assert!(folder.read() == [&[20; 100_000][..], b"and more"].concat());
        let names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "the file and its lock: {names:?}");
    });
}

#[test]
fn two_cannot_have_the_same_journal() {
    with_each(|backend| {
        let folder = Folder::new();
        let first = open(&folder.0, backend);
        let error = Journal::open(&folder.0, "log", backend, None).err().unwrap();
        assert_eq!(error, JournalError::InUse(folder.0.clone()));
        assert!(error.to_string().contains(folder.0.to_str().unwrap()), "{error}");
        Journal::open(&folder.0, "another", backend, None).unwrap();
        drop(first);
        open(&folder.0, backend);
    });
}

#[test]
fn a_torn_end_is_cut_off_before_more_follows() {
    with_each(|backend| {
        let folder = Folder::new();
        fs::write(folder.0.join("log"), b"whole, to").unwrap();
        fs::write(folder.0.join("log.new"), b"left by a crash").unwrap();
        let (mut journal, bytes) = open(&folder.0, backend);
        assert_eq!(bytes, b"whole, to");
        assert!(!folder.0.join("log.new").exists());
        journal.truncate(7).unwrap();
        journal.append(b"and more".to_vec());
        journal.sync(1);
        until(&mut journal, &JournalEvent::Synced(1));
        assert_eq!(folder.read(), b"whole, and more");
    });
}

#[test]
fn marks_say_what_was_on_disk_before() {
    with_each(|backend| {
        let folder = Folder::new();
        let mark: Mark = |on_disk| format!("[{on_disk}]").into_bytes();
        let (mut journal, _) = Journal::open(&folder.0, "log", backend, Some(mark)).unwrap();
        for (tag, bytes) in [b"a", b"b"].into_iter().enumerate() {
            journal.append(bytes.to_vec());
            journal.sync(tag as u64);
            until(&mut journal, &JournalEvent::Synced(tag as u64));
        }
        assert_eq!(folder.read(), b"[0]a[4]b");
        journal.replace(b"anew".to_vec());
        journal.append(b", more".to_vec());
        journal.sync(2);
        until(&mut journal, &JournalEvent::Synced(2));
        journal.append(b".".to_vec());
        journal.sync(3);
        until(&mut journal, &JournalEvent::Synced(3));
        assert_eq!(folder.read(), b"anew, more[10].");
    });
}

#[test]
fn a_thread_that_ends_takes_nothing_along() {
    with_each(|backend| {
        let folder = Folder::new();
        let (mut journal, _) = open(&folder.0, backend);
        let mut expected = Vec::new();
        for tag in 0..30 {
            let bytes = vec![tag as u8; 200_000];
            expected.extend_from_slice(&bytes);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    journal.append(bytes);
                    journal.sync(tag);
                });
            });
            assert_eq!(until(&mut journal, &JournalEvent::Synced(tag)), [JournalEvent::Synced(tag)]);
        }
        assert!(folder.read() == expected);
    });
}

#[test]
fn a_full_disk_is_told_and_has_lost_nothing_when_there_is_space() {
    with_each(|backend| {
        let disk = match SmallDisk::new(1024) {
            Ok(disk) => disk,
            Err(why) => return eprintln!("left out: {why}"),
        };
        let (mut journal, _) = Journal::open(&disk.0, "log", backend, None).unwrap();
        let mut expected = vec![1; 10_000];
        journal.append(expected.clone());
        journal.sync(1);
        assert_eq!(until(&mut journal, &JournalEvent::Synced(1)), synced(1..=1));
        disk.fill();
        // Of these some fit into the last page.
        journal.append(vec![2; 100_000]);
        journal.sync(2);
        assert_eq!(until(&mut journal, &JournalEvent::Full), [JournalEvent::Full]);
        assert!(fs::read(disk.0.join("log")).unwrap() == expected, "nothing torn is left");
        journal.append(vec![3; 10]);
        journal.sync(3);
        disk.free();
        let told = until(&mut journal, &JournalEvent::Space);
        assert_eq!(told, [JournalEvent::Synced(2), JournalEvent::Synced(3), JournalEvent::Space]);
        expected.extend([&[2; 100_000][..], &[3; 10]].concat());
        assert!(fs::read(disk.0.join("log")).unwrap() == expected);

        disk.fill();
        journal.replace(vec![4; 200_000]);
        journal.sync(4);
        until(&mut journal, &JournalEvent::Full);
        assert!(fs::read(disk.0.join("log")).unwrap() == expected, "the old content is untouched");
        assert!(!disk.0.join("log.new").exists());
        journal.append(vec![5; 10]);
        journal.sync(5);
        disk.free();
        until(&mut journal, &JournalEvent::Space);
        assert!(fs::read(disk.0.join("log")).unwrap() == [&[4; 200_000][..], &[5; 10]].concat());

        // One that is given up while it waits for space ends at once.
        disk.fill();
        journal.append(vec![6; 100_000]);
        journal.sync(6);
        until(&mut journal, &JournalEvent::Full);
        let start = Instant::now();
        drop(journal);
        assert!(start.elapsed() < DROP_PATIENCE);
    });
}

#[test]
fn a_disk_that_fails_is_told_once_and_written_no_more() {
    with_each(|backend| {
        let folder = Folder::new();
        let (mut journal, _) = open(&folder.0, backend);
        fs::remove_dir_all(&folder.0).unwrap();
        journal.replace(b"nowhere to go".to_vec());
        journal.sync(1);
        let path = folder.0.join("log");
        let error = JournalError::Io { doing: "open anew", path: path.clone(), cause: Errno::NOENT };
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        let failed = JournalEvent::Failed(error);
        assert_eq!(until(&mut journal, &failed), [failed]);
        journal.sync(2);
        std::thread::sleep(Duration::from_millis(20));
        journal.poll(&mut |event| panic!("{event:?}"));
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    let folder = Folder::new();
    fs::write(folder.0.join("file"), b"").unwrap();
    let error = Journal::open(&folder.0.join("file"), "log", JournalBackend::Auto, None).err().unwrap().to_string();
    assert!(error.contains("file/log") && error.contains("Not a directory"), "{error}");
    fs::create_dir(folder.0.join("log")).unwrap();
    let error = Journal::open(&folder.0, "log", JournalBackend::Auto, None).err().unwrap().to_string();
    assert!(error.contains("Is a directory"), "{error}");
}
