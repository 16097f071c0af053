//! Keys on disk: the encrypted keystore a host or renter signs with; and keys that a cloud keeps, which signs with them. A key never
//! leaves this room but inside a [`Signer`].
//!
//! Format: Web3 secret storage version 3, so that other Ethereum tools read it.

use std::path::Path;

use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::Signer;

/// Who keeps the key of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// An encrypted file on this machine.
    #[default]
    Keystore,
    /// AWS KMS, by the key's id, alias or ARN; credentials and region come from the environment, as of any AWS program.
    Aws(String),
    /// Google Cloud KMS; credentials come from the environment, as of any Google Cloud program.
    Gcp(GcpKey),
}

/// A version of a key in Google Cloud KMS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcpKey {
    pub project: String,
    pub location: String,
    pub ring: String,
    pub key: String,
    pub version: u64,
}

/// Returns the account of a key that a cloud keeps. It must be one for ECDSA over secp256k1.
///
/// # Errors
/// If the cloud does not answer or refuses, or this program was built without it.
pub async fn remote(keeper: &Keeper) -> Result<Signer> {
    match keeper {
        Keeper::Keystore => bail!("a keystore is opened, not asked"),
        Keeper::Aws(id) => aws(id).await.with_context(|| format!("host.signer: the key {id} of AWS KMS")),
        Keeper::Gcp(key) => {
            gcp(key).await.with_context(|| format!("host.signer: the key {} of Google Cloud KMS", key.key))
        }
    }
}

#[cfg(feature = "aws")]
async fn aws(id: &str) -> Result<Signer> {
    use alloy::signers::aws::{AwsSigner, aws_sdk_kms::Client};
    let config = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    Ok(Signer::of_a_keeper(AwsSigner::new(Client::new(&config), id.to_owned(), None).await?))
}

#[cfg(not(feature = "aws"))]
async fn aws(_: &str) -> Result<Signer> {
    bail!("this program was built without it: build it with `cargo build --features aws`")
}

#[cfg(feature = "gcp")]
async fn gcp(key: &GcpKey) -> Result<Signer> {
    use alloy::signers::gcp::gcloud_sdk::GoogleApi;
    use alloy::signers::gcp::gcloud_sdk::google::cloud::kms::v1::key_management_service_client::KeyManagementServiceClient;
    use alloy::signers::gcp::{GcpKeyRingRef, GcpSigner, KeySpecifier};
    let ring = GcpKeyRingRef::new(&key.project, &key.location, &key.ring);
    let client =
        GoogleApi::from_function(KeyManagementServiceClient::new, "https://cloudkms.googleapis.com", None).await?;
    let keeper = GcpSigner::new(client, KeySpecifier::new(ring, &key.key, key.version), None).await?;
    Ok(Signer::of_a_keeper(keeper))
}

#[cfg(not(feature = "gcp"))]
async fn gcp(_: &GcpKey) -> Result<Signer> {
    bail!("this program was built without it: build it with `cargo build --features gcp`")
}

/// Makes a new random key and writes it, encrypted, to `keystore`, which must not exist. Returns its signer.
///
/// # Errors
/// If the file exists, the password is empty, or the disk refuses.
pub fn create(keystore: &Path, password: &str) -> Result<Signer> {
    write(keystore, password, PrivateKeySigner::random())
}

/// As [`create`], with a given 32-byte key in hex.
///
/// # Errors
/// As [`create`], and if the text is not a key.
pub fn import(keystore: &Path, password: &str, key_hex: &str) -> Result<Signer> {
    let signer = key_hex.trim().parse().ok().context("not a private key: 64 hex digits are expected")?;
    write(keystore, password, signer)
}

fn write(keystore: &Path, password: &str, signer: PrivateKeySigner) -> Result<Signer> {
    ensure!(!password.is_empty(), "the password is empty");
    ensure!(!keystore.exists(), "{} exists: a key is never overwritten", keystore.display());
    let folder = keystore.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("create folder {}", folder.display()))?;
    let name = keystore.file_name().and_then(|name| name.to_str()).context("the keystore needs a file name")?;
    // Made in a folder of its own that nobody else may enter, then linked to its place: the link fails where one exists.
    let scratch = tempfile::tempdir_in(folder).with_context(|| format!("write to folder {}", folder.display()))?;
    let written = scratch.path().join(name);
    let mut random = rand::thread_rng();
    PrivateKeySigner::encrypt_keystore(scratch.path(), &mut random, signer.to_bytes(), password, Some(name))
        .with_context(|| format!("write keystore {}", keystore.display()))?;
    private(&written)?;
    std::fs::hard_link(&written, keystore).with_context(|| format!("put keystore {} in place", keystore.display()))?;
    Ok(Signer::new(signer))
}

/// Opens a keystore with the password in `password_file` (its first line).
///
/// # Errors
/// If a file is missing, readable by others, or the password is wrong.
pub fn open(keystore: &Path, password_file: &Path) -> Result<Signer> {
    let password = password(password_file)?;
    check_private(keystore)?;
    let signer = PrivateKeySigner::decrypt_keystore(keystore, password).with_context(|| {
        format!("open keystore {} with the password in {}", keystore.display(), password_file.display())
    })?;
    Ok(Signer::new(signer))
}

/// Reads the first line of a password file that only its owner may read.
///
/// # Errors
/// If the file is missing, empty, or others may read it.
pub fn password(file: &Path) -> Result<String> {
    check_private(file)?;
    let text = std::fs::read_to_string(file).with_context(|| format!("read password file {}", file.display()))?;
    let password = text.lines().next().unwrap_or_default().to_owned();
    ensure!(!password.is_empty(), "password file {} is empty", file.display());
    Ok(password)
}

fn check_private(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let about = std::fs::metadata(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let mode = about.permissions().mode() & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "{} may be read by others (mode {mode:o}): run chmod 600 {}",
        file.display(),
        file.display()
    );
    Ok(())
}

fn private(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// The first account of anvil's and hardhat's test mnemonic: public, never to be used with money.
    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

    fn folder() -> (TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (keystore, password) = (folder.path().join("keys/host.json"), folder.path().join("password"));
        write_private(&password, "correct horse\nand a second line\n");
        (folder, keystore, password)
    }

    fn write_private(file: &Path, text: &str) {
        fs::write(file, text).unwrap();
        mode(file, 0o600);
    }

    fn mode(file: &Path, mode: u32) {
        fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
    }

    fn error<T>(done: Result<T>) -> String {
        format!("{:#}", done.map(drop).unwrap_err())
    }

    #[test]
    fn a_key_is_written_once_and_opened_again() {
        let (_folder, keystore, password) = folder();
        let made = create(&keystore, "correct horse").unwrap();
        assert_eq!(fs::metadata(&keystore).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(&keystore, &password).unwrap().address(), made.address());
        assert_eq!(format!("{made:?}"), format!("Signer({})", made.address()), "never the key");

        let before = fs::read(&keystore).unwrap();
        for again in [error(create(&keystore, "x")), error(import(&keystore, "x", KEY))] {
            assert!(again.contains("host.json exists: a key is never overwritten"), "{again}");
        }
        assert_eq!(fs::read(&keystore).unwrap(), before);
    }

    #[test]
    fn a_given_key_is_that_accounts() {
        let (_folder, keystore, password) = folder();
        assert_eq!(import(&keystore, "correct horse", &format!(" {KEY}\n")).unwrap().address().to_string(), ADDRESS);
        assert_eq!(open(&keystore, &password).unwrap().address().to_string(), ADDRESS);
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&keystore).unwrap()).unwrap();
        assert_eq!(json["version"], 3);
        assert!(!json.to_string().contains(&KEY[2..]));
        fs::remove_file(&keystore).unwrap();
        for text in ["", "12", "not a key", &"0".repeat(64), &KEY[..65]] {
            let told = error(import(&keystore, "correct horse", text));
            assert!(told.contains("not a private key: 64 hex digits"), "{told}");
            assert!(text.is_empty() || !told.contains(text) || text.len() < 10, "the text is not repeated: {told}");
        }
        assert!(error(create(&keystore, "")).contains("the password is empty"));
        assert!(!keystore.exists());
    }

    #[test]
    fn a_wrong_password_says_which_files_do_not_fit() {
        let (_folder, keystore, password) = folder();
        create(&keystore, "correct horse").unwrap();
        write_private(&password, "wrong\n");
        let told = error(open(&keystore, &password));
        assert!(told.contains("open keystore") && told.contains("host.json") && told.contains("/password"), "{told}");
        assert!(!told.contains("wrong"), "{told}");
        write_private(&password, "\ncorrect horse");
        assert!(error(open(&keystore, &password)).contains("password is empty"));
        fs::remove_file(&password).unwrap();
        assert!(error(open(&keystore, &password)).contains("password cannot be read"));
    }

    #[test]
    fn what_others_may_read_is_refused_with_the_remedy() {
        let (_folder, keystore, password) = folder();
        create(&keystore, "correct horse").unwrap();
        for (file, bits) in [(&keystore, 0o644), (&keystore, 0o640), (&password, 0o604), (&password, 0o620)] {
            mode(file, bits);
            let told = error(open(&keystore, &password));
            let says =
                format!("{} may be read by others (mode {bits:o}): run chmod 600 {}", file.display(), file.display());
            assert!(told.contains(&says), "{told}");
            mode(file, 0o600);
        }
        open(&keystore, &password).expect("private again");
        fs::write(&keystore, "{}").unwrap();
        assert!(error(open(&keystore, &password)).contains("open keystore"));
    }
}
