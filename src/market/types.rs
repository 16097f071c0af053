//! The vocabulary shared by every room: ids, amounts, times and content ids, parsed once at the border.

use std::{fmt, str::FromStr};

pub use alloy::primitives::{Address, B256, Bytes, U256};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The marketplace's number of a job; the contract counts from 1, so 0 names no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Seconds since 1970-01-01 UTC: the unit of `block.timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

/// A block by height and hash: a height alone does not survive a reorg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockRef {
    pub number: u64,
    pub hash: B256,
}

/// The identity of a model: the SHA-256 of its GGUF file, so that two quantisations of one model differ.
///
/// Written `sha256:` and 64 lower-case hex digits; this text is the `modelId` on chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub [u8; 32]);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", alloy::hex::encode(self.0))
    }
}

impl FromStr for ModelId {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let digits = text
            .strip_prefix("sha256:")
            .with_context(|| format!("model id {text:?} does not start with \"sha256:\""))?;
        let bytes = alloy::hex::decode(digits).with_context(|| format!("model id {text:?}"))?;
        let digest = bytes
            .try_into()
            .map_err(|_| anyhow::anyhow!("model id {text:?} is not 64 hex digits after \"sha256:\""))?;
        Ok(Self(digest))
    }
}

/// A content id: BLAKE3 digest and length of some bytes, in the form of an S5 blob identifier.
///
/// Text form: multibase `b` (base32, lower case, no padding) of `5b 82 1e ‖ digest ‖ length`, the length little-endian
/// without trailing zero bytes.
/// Source: S5 blob identifiers, <https://docs.sfive.net/spec/blobs.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid {
    pub digest: [u8; 32],
    pub length: u64,
}

const CID_MAGIC: [u8; 3] = [0x5b, 0x82, 0x1e];

impl Cid {
    /// Returns the content id of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { digest: *blake3::hash(bytes).as_bytes(), length: bytes.len() as u64 }
    }

    /// Returns `keccak256` of the text form: how contracts refer to a content id.
    pub fn chain_hash(&self) -> B256 {
        alloy::primitives::keccak256(self.to_string())
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.length.to_le_bytes();
        let used = 8 - (self.length.leading_zeros() / 8) as usize;
        let mut bytes = CID_MAGIC.to_vec();
        bytes.extend(self.digest);
        bytes.extend(&length[..used]);
        write!(f, "b{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Cid {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let body = text.strip_prefix('b').with_context(|| format!("content id {text:?} does not start with 'b'"))?;
        let bytes = data_encoding::BASE32_NOPAD
            .decode(body.to_ascii_uppercase().as_bytes())
            .with_context(|| format!("content id {text:?} is not base32"))?;
        ensure!(bytes.len() >= 35 && bytes.len() <= 43, "content id {text:?} has {} bytes, not 35 to 43", bytes.len());
        let (magic, rest) = bytes.split_at(3);
        ensure!(magic == CID_MAGIC, "content id {text:?} is not an S5 blob identifier (BLAKE3)");
        let (digest, tail) = rest.split_at(32);
        let mut length = [0; 8];
        length[..tail.len()].copy_from_slice(tail);
        let cid = Self { digest: digest.try_into().expect("split at 32"), length: u64::from_le_bytes(length) };
        if cid.to_string() != text {
            bail!("content id {text:?} is not in canonical form, which is {cid}");
        }
        Ok(cid)
    }
}

/// Writes an amount as decimal text: it passes the integers most readers of JSON keep.
///
/// # Errors
/// As the serializer fails.
pub fn decimal<S: serde::Serializer>(amount: &U256, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

/// As [`decimal`], and nothing as null.
///
/// # Errors
/// As the serializer fails.
pub fn decimal_or_null<S: serde::Serializer>(amount: &Option<U256>, serializer: S) -> Result<S::Ok, S::Error> {
    match amount {
        Some(amount) => serializer.collect_str(amount),
        None => serializer.serialize_none(),
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(ModelId, Cid);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cid_is_an_s5_blob_identifier() {
        // 5b821e ‖ digest ‖ size, as S5's own tools print it.
        let text = "blobb53pfycyq6lwes6ogtnjpmhsc75nucnizzye34dyu2cmnz7s7n6mnbu";
        let cid: Cid = text.parse().unwrap();
        assert_eq!(cid.to_string(), text);
        assert_eq!(alloy::hex::encode(&cid.digest[..4]), "ede5c0b1");
        assert!("blobb53pf".parse::<Cid>().unwrap_err().to_string().contains("not 35 to 43"));
    }

    #[test]
    fn cids_and_model_ids_round_trip() {
        for bytes in [&b""[..], b"a", &[7; 300]] {
            let cid = Cid::of(bytes);
            assert_eq!(cid.to_string().parse::<Cid>().unwrap(), cid);
        }
        let model = ModelId([0xab; 32]);
        assert_eq!(model.to_string().parse::<ModelId>().unwrap(), model);
        assert!("sha256:ab".parse::<ModelId>().is_err());
    }
}
