//! Writing so that a file is either the old one or the new one, whatever happens in between.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::failpoint;

/// Ending of every temporary name: `NAME.<process id>.tmp`.
pub const TEMPORARY: &str = ".tmp";

/// Writes `path` through a temporary file beside it: write, fsync, rename, fsync of the folder. On an error the
/// temporary is removed and an existing `path` is untouched. `scope` names the failpoints. A symbolic link is followed, and
/// a file marked read-only is refused, as a plain write would.
pub fn write_atomically(
    scope: &str,
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    write_checked(scope, path, write, |_| Ok(()))
}

/// [`write_atomically`], where `check` looks at the whole temporary file before it gets its name: if it fails, nothing is
/// left of the file, and its error is the answer.
pub fn write_checked(
    scope: &str,
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let (target, permissions) = replaceable(path)?;
    let temporary = temporary_name(&target);
    let cannot = |source| Error::output_file(path, "write", &source);
    let written = write_temporary(scope, &temporary, permissions, write).map_err(cannot);
    let result = written.and_then(|()| check(&temporary)).and_then(|()| {
        failpoint::hit(scope, "tmp_synced");
        fs::rename(&temporary, &target).map_err(cannot)?;
        failpoint::hit(scope, "renamed");
        sync_folder(folder_of(&target)).map_err(cannot)
    });
    if result.is_err() {
        // Gone already where the rename succeeded; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Fails where [`write_atomically`] cannot begin: what stands there is no file, or its folder takes no new one. For a command
/// that works long before it writes.
pub fn check_target(path: &Path) -> Result<()> {
    let (target, _) = replaceable(path)?;
    let temporary = temporary_name(&target);
    File::create(&temporary).map_err(|source| Error::output_file(path, "write", &source))?;
    remove(&temporary)
}

/// The file that a path leads to, with the permissions that it has if it is there.
fn replaceable(path: &Path) -> Result<(PathBuf, Option<fs::Permissions>)> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let Ok(metadata) = fs::metadata(&target) else { return Ok((target, None)) };
    if !metadata.is_file() {
        // A rename would put a file in the place of /dev/null.
        let found = if metadata.is_dir() { "a folder" } else { "a device or a pipe" };
        return Err(Error::usage(format!(
            "cannot write {}: it is {found}; give the name of a file",
            path.display()
        )));
    }
    match metadata.permissions() {
        permissions if permissions.readonly() => {
            Err(Error::output_file(path, "write", &io::ErrorKind::PermissionDenied.into()))
        }
        permissions => Ok((target, Some(permissions))),
    }
}

fn write_temporary(
    scope: &str,
    temporary: &Path,
    permissions: Option<fs::Permissions>,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = File::create(temporary)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    write(&mut file)?;
    failpoint::hit(scope, "tmp_written");
    file.sync_all()
}

/// [`write_atomically`] of bytes in memory.
pub fn write_bytes_atomically(scope: &str, path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(scope, path, |file| {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        file.write_all(head)?;
        failpoint::hit(scope, "tmp_half_written");
        file.write_all(tail)
    })
}

/// A file that is written over a while, under a temporary name until [`Self::commit`]; dropped before, it is removed.
#[derive(Debug)]
pub struct PendingFile {
    pub file: File,
    temporary: PathBuf,
    target: PathBuf,
    is_committed: bool,
}

impl PendingFile {
    pub fn create(target: &Path) -> Result<Self> {
        let temporary = temporary_name(target);
        let file = File::create(&temporary).map_err(|source| Error::output_file(target, "write", &source))?;
        Ok(Self { file, temporary, target: target.to_owned(), is_committed: false })
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes what was written durable under its own name. `scope` names the failpoints.
    pub fn commit(mut self, scope: &str) -> Result<()> {
        failpoint::hit(scope, "tmp_written");
        let commit = || {
            self.file.sync_all()?;
            failpoint::hit(scope, "tmp_synced");
            fs::rename(&self.temporary, &self.target)?;
            failpoint::hit(scope, "renamed");
            sync_folder(folder_of(&self.target))
        };
        commit().map_err(|source| Error::output_file(&self.target, "write", &source))?;
        self.is_committed = true;
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.is_committed {
            // What is left of it is removed by the next run as well.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn temporary_name(target: &Path) -> PathBuf {
    let mut name: OsString = target.as_os_str().to_owned();
    name.push(format!(".{}{TEMPORARY}", std::process::id()));
    PathBuf::from(name)
}

/// Removes what killed processes left of their atomic writes in a folder: `NAME.<digits>.tmp` where `is_ours(NAME)`.
pub fn remove_temporaries(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    let cannot = |source| Error::output_file(folder, "list", &source);
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let Ok(name) = entry.map_err(cannot)?.file_name().into_string() else { continue };
        let parts = name.strip_suffix(TEMPORARY).and_then(|name| name.rsplit_once('.'));
        if parts.is_some_and(|(name, process)| process.parse::<u32>().is_ok() && is_ours(name)) {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Removes a file that may be gone already.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::output_file(path, "remove", &source))
        }
        _ => Ok(()),
    }
}

/// The folder that a path is in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename durable. File systems that cannot sync a folder say so with EINVAL or "unsupported" (some network and
/// FUSE ones); they order renames themselves or not at all.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

/// Creates a folder with its parents.
pub fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|source| Error::output_file(folder, "create", &source))
}

/// Held while a run writes into a folder; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes `folder/.engine.lock`, or says that another process holds it. A file system without locks grants it.
    pub fn take(folder: &Path) -> Result<Self> {
        create_folder(folder)?;
        let path = folder.join(".engine.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| Error::output_file(&path, "create", &source))?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Err(Error::usage(format!(
                "{}: another engine writes into this folder (it holds .engine.lock); wait for it, stop it, or choose \
                 another --output",
                folder.display()
            ))),
            Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(Self { _file: file }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_bytes_atomically("test", &path, b"old").unwrap();
        let error = write_atomically("test", &path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let message = error.unwrap_err().message;
        assert!(message.contains("cannot write") && message.contains("free some space"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_file_that_fails_its_check_never_gets_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_bytes_atomically("test", &path, b"old").unwrap();
        let write = |file: &mut File| file.write_all(b"new");
        let refuse = |found: &Path| {
            assert_eq!(fs::read(found).unwrap(), b"new");
            Err(Error::failed("no good"))
        };
        assert_eq!(write_checked("test", &path, write, refuse).unwrap_err().message, "no good");
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"old".to_vec(), vec!["a".into()]));
        write_checked("test", &path, write, |_| Ok(())).unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"new".to_vec(), vec!["a".into()]));
    }

    #[test]
    fn a_read_only_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_bytes_atomically("test", &path, b"old").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        let message = write_bytes_atomically("test", &path, b"new").unwrap_err().message;
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        // A device that the test may lose: a link to it, since a link is followed.
        let (device, sub) = (folder.path().join("null"), folder.path().join("sub"));
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        fs::create_dir(&sub).unwrap();
        for (path, found) in [(&device, "a device or a pipe"), (&sub, "a folder")] {
            for result in [check_target(path), write_bytes_atomically("test", path, b"new")] {
                let error = result.unwrap_err();
                assert!(error.message.contains(found) && error.exit_code() == 2, "{error}");
            }
        }
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let missing = check_target(&folder.path().join("no/a")).unwrap_err().message;
        assert!(missing.contains("create it first"), "{missing}");
        check_target(&folder.path().join("a")).unwrap();
        assert!(names(folder.path()).iter().all(|name| !name.starts_with('a')), "a probe leaves nothing");
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_bytes_atomically("test", &link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::take(folder.path()).unwrap();
        let message = FolderLock::take(folder.path()).unwrap_err().message;
        assert!(message.contains("another engine"), "{message}");
        drop(held);
        FolderLock::take(folder.path()).unwrap();
    }
}
