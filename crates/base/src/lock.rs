//! A file whose lock says that a directory is in use.

use std::fs::{File, TryLockError};
use std::io;

/// A lock on a file, given back when it is dropped and when its process ends, however that ends.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Takes the lock of an open file. `ResourceBusy`: somebody else has it.
    pub fn take(file: File) -> io::Result<Self> {
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that another thread is starting right now has inherited the descriptor,
        // and would hold the lock until it executes its program.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let path = std::env::temp_dir().join(crate::id::uuid());
        let open = || File::create(&path).unwrap();
        let file = open();
        // As a child has it that was forked and has not executed its program yet.
        let inherited = file.try_clone().unwrap();
        let lock = FileLock::take(file).unwrap();
        assert_eq!(FileLock::take(open()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(lock);
        FileLock::take(open()).unwrap();
        drop(inherited);
        std::fs::remove_file(&path).unwrap();
    }
}
