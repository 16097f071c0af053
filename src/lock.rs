//! One process at a time works with a folder of data: the account has one sender then, and the database one that follows the chain.
//!
//! The lock is the operating system's (`flock`): it ends with the process, however that ends, and holds between containers that
//! share the folder; between machines that share it only as far as their file system has such locks. Never looks at what else lies in
//! the folder, and never says who has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

/// How long it is waited for: whoever only looks whether it is taken has it for a moment, and whoever was killed until its memory is
/// freed.
const WAIT_MAX: Duration = Duration::from_secs(1);
const TRY_EVERY: Duration = Duration::from_millis(20);

/// The right to work with a folder of data, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the right to work with `data_dir`, which is made where there is none. Returns `None` while another has it.
    ///
    /// # Errors
    /// If there can be no such file, or the file system has no locks.
    pub async fn take(data_dir: &Path) -> Result<Option<Lock>> {
        std::fs::create_dir_all(data_dir).with_context(|| format!("create folder {}", data_dir.display()))?;
        let began = Instant::now();
        loop {
            let file = open(data_dir, true)?.context("it is made where there is none")?;
            match file.try_lock() {
                Ok(()) => return Ok(Some(Lock { _file: file })),
                Err(TryLockError::WouldBlock) if began.elapsed() > WAIT_MAX => return Ok(None),
                Err(TryLockError::WouldBlock) => sleep(TRY_EVERY).await,
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", data_dir.display()));
                }
            }
        }
    }

    /// Returns whether somebody works with `data_dir`.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn is_taken(data_dir: &Path) -> Result<bool> {
        let Some(file) = open(data_dir, false)? else { return Ok(false) };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", data_dir.display())),
        }
    }
}

fn open(data_dir: &Path, create: bool) -> Result<Option<File>> {
    let path = data_dir.join("lock");
    match OpenOptions::new().read(true).write(create).create(create).truncate(false).open(&path) {
        Err(error) if !create && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).with_context(|| format!("open {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_has_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        assert!(!Lock::is_taken(&data)?, "nobody was ever there");
        let first = Lock::take(&data).await?.context("it is free")?;
        assert!(Lock::is_taken(&data)?);
        assert!(Lock::take(&data).await?.is_none());
        drop(first);
        assert!(!Lock::is_taken(&data)?);
        // Who looks is gone soon.
        let looks = open(&data, false)?.context("it is there")?;
        looks.lock_shared()?;
        let goes = async {
            sleep(WAIT_MAX / 5).await;
            drop(looks);
        };
        assert!(tokio::join!(Lock::take(&data), goes).0?.is_some());
        Ok(())
    }
}
