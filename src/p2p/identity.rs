//! This node's peer identity: an ed25519 key kept in a file only its owner can read.
//!
//! It names the node to its peers and signs nothing on chain. The file holds the protobuf form other libp2p
//! implementations read. Source: <https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md#keys>.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, anyhow, ensure};
use libp2p::identity::{KeyType, Keypair};

/// The most bytes an identity file can have: larger ones are not read.
const FILE_MAX_BYTES: u64 = 4096;

/// Returns the key in `path`; where there is no such file it is made, readable by its owner only (mode 0600).
///
/// # Errors
/// If the file cannot be read or made, others may read it, or it holds no ed25519 key. An existing file is never
/// replaced.
pub fn load_or_create(path: &Path) -> Result<Keypair> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return create(path),
        result => result.with_context(|| format!("read the peer identity {}", path.display()))?,
    };
    let mode = metadata.permissions().mode() & 0o777;
    let name = path.display();
    ensure!(metadata.is_file(), "the peer identity {name} is not a file");
    ensure!(mode & 0o077 == 0, "others may read the peer identity {name} (mode {mode:o}): run chmod 600 {name}");
    ensure!(metadata.len() <= FILE_MAX_BYTES, "the peer identity {name} has {} bytes: not a key", metadata.len());
    let bytes = fs::read(path).with_context(|| format!("read the peer identity {name}"))?;
    let key = Keypair::from_protobuf_encoding(&bytes).map_err(|error| {
        anyhow!("the peer identity {name} holds no libp2p key ({error}): restore it or move it away")
    })?;
    ensure!(
        key.key_type() == KeyType::Ed25519,
        "the peer identity {name} is a {:?} key, not an ed25519 one",
        key.key_type()
    );
    Ok(key)
}

/// Writes a new key beside `path` and moves it there whole, so that a crash leaves no half file.
fn create(path: &Path) -> Result<Keypair> {
    let key = Keypair::generate_ed25519();
    let bytes = key.to_protobuf_encoding().context("encode a new peer identity")?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("make the peer identity {}", path.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_survives_a_restart_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.key");
        let first = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = load_or_create(&path).unwrap();
        assert_eq!(first.public().to_peer_id(), second.public().to_peer_id());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_wrong_identity_file_is_explained_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.key");
        let error = |path: &Path| format!("{:#}", load_or_create(path).unwrap_err());

        fs::write(&path, "not a key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(error(&path).contains("run chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(error(&path).contains("holds no libp2p key"));
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
        fs::write(&path, vec![0; 5000]).unwrap();
        assert!(error(&path).contains("5000 bytes"));
        assert!(error(Path::new("/dev/null/peer.key")).contains("the peer identity /dev/null/peer.key"));
        assert!(error(folder.path()).contains("is not a file"));
    }
}
