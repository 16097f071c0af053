//! Content-addressed bytes on this machine's disk: prompts, transcripts, outputs and proofs, by digest.
//!
//! Never knows what the bytes mean. What it returns always matches the id that was asked for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::market::types::Cid;

/// Largest object accepted, in bytes.
pub const OBJECT_BYTES_MAX: usize = 64 << 20;

/// A folder of objects named by their content ids.
#[derive(Debug, Clone)]
pub struct Content {
    folder: PathBuf,
}

impl Content {
    /// Opens the folder, creating it where it is missing.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("create content folder {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Stores `bytes` and returns their content id once they are on disk. Storing the same bytes again is free.
    ///
    /// # Errors
    /// If the bytes are more than [`OBJECT_BYTES_MAX`] or the disk refuses them; nothing is half-written.
    pub fn put(&self, bytes: &[u8]) -> Result<Cid> {
        ensure!(bytes.len() <= OBJECT_BYTES_MAX, "an object of {} bytes, at most {OBJECT_BYTES_MAX}", bytes.len());
        let cid = Cid::of(bytes);
        let path = self.path(&cid);
        if path.exists() {
            return Ok(cid);
        }
        let folder = path.parent().expect("objects lie in a subfolder");
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut file, bytes).with_context(|| format!("write object {cid}"))?;
        file.as_file().sync_all()?;
        file.persist(&path).with_context(|| format!("name object {cid}"))?;
        std::fs::File::open(folder)?.sync_all()?;
        Ok(cid)
    }

    /// Returns whether an object of that id is here.
    pub fn has(&self, cid: &Cid) -> bool {
        self.path(cid).exists()
    }

    /// Returns the bytes of `cid`, or `None` when they are not here.
    ///
    /// # Errors
    /// If the disk fails or the stored bytes no longer match their id.
    pub fn get(&self, cid: &Cid) -> Result<Option<Vec<u8>>> {
        let path = self.path(cid);
        match std::fs::read(&path) {
            Ok(bytes) => {
                ensure!(
                    Cid::of(&bytes) == *cid,
                    "object {} does not match its id: the file is damaged",
                    path.display()
                );
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read object {}", path.display())),
        }
    }

    fn path(&self, cid: &Cid) -> PathBuf {
        let name = cid.to_string();
        self.folder.join(&name[8..10]).join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let content = Content::open(folder.path()).unwrap();
        let cid = content.put(b"hello").unwrap();
        assert_eq!(content.put(b"hello").unwrap(), cid);
        assert_eq!(content.get(&cid).unwrap().unwrap(), b"hello");
        assert_eq!(content.get(&Cid::of(b"other")).unwrap(), None);
        std::fs::write(content.path(&cid), b"hellO").unwrap();
        assert!(content.get(&cid).unwrap_err().to_string().contains("damaged"));
    }
}
