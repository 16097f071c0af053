//! What a host offers and what a renter asks: the messages of the market's negotiation and of a token stream.
//!
//! The words only: never how they travel (that is `p2p`) and never who is allowed to say them. A host binds its peer
//! identity to its account by signing [`peer_statement`], a renter asks for a job's tokens by signing
//! [`stream_statement`]; both are personal messages. Source: EIP-191, <https://eips.ethereum.org/EIPS/eip-191>.
//! Unknown fields are ignored, so that these messages can grow.

use alloy::primitives::Signature;
use alloy::sol_types::SolStruct;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::types::{Address, B256, Bytes, Cid, JobId, ModelId, U256, UnixSeconds};

/// The version of the token stream this node speaks.
pub const STREAM_VERSION: &str = "1.0.0";

/// What a renter asks of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Who are you, and what do you serve?
    Capabilities,
    /// What would this job cost?
    Quote {
        model: ModelId,
        /// Bytes of the prompt, as UTF-8.
        input_bytes: u64,
        /// The most tokens the renter wants.
        max_tokens: u32,
        /// The payment token; zero means ETH.
        token: Address,
    },
    /// Keep this prompt, so that a job can name it by content id.
    Prompt { text: String },
}

/// What a host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Response {
    Capabilities(Capabilities),
    Quote(Quote),
    /// The prompt is kept and has this content id.
    Stored {
        cid: Cid,
    },
    /// No, and why; in words for a person.
    Refused {
        reason: String,
    },
}

/// A host's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The staked account.
    pub host: Address,
    pub chain_id: u64,
    pub models: Vec<ModelOffer>,
    /// Names of the place where the host is, for jobs that ask for one: see [`serves_region`]. Hosts of older versions tell none.
    #[serde(default)]
    pub regions: Vec<String>,
    /// The host's signature (65 bytes) of [`peer_statement`].
    pub peer_proof: Bytes,
}

/// A model and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOffer {
    pub id: ModelId,
    /// For a person; never an identity.
    pub name: String,
    /// Prompt and output together, in tokens.
    pub context_tokens: u32,
    /// One entry for each payment token the host takes.
    pub prices: Vec<Price>,
}

/// A price in the smallest unit of one payment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Zero means ETH, priced in wei.
    pub token: Address,
    pub per_1k_tokens: U256,
}

/// A price for one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// The whole job, in the smallest unit of `token`.
    pub price: U256,
    pub token: Address,
    pub valid_until: UnixSeconds,
    /// Whether the result comes with a proof.
    pub proof: bool,
    pub estimated_seconds: u64,
}

/// The first message of a token stream: a renter asks for the tokens of its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInit {
    /// [`STREAM_VERSION`].
    pub version: String,
    pub job: JobId,
    /// The first output position wanted, from 0: not 0 when resuming.
    pub from_index: u32,
    /// The renter's signature of [`stream_statement`]: 65 bytes of a key's, or what the renter's contract takes (ERC-1271).
    pub signature: Bytes,
}

/// What a host sends down a token stream: tokens in order, then one `End` or `Error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamMessage {
    Token {
        /// Output position, from 0.
        index: u32,
        /// The text this token adds: empty while a character is incomplete.
        content: String,
        /// Vocabulary id.
        token: u32,
    },
    End {
        /// Output tokens of the whole job, those before `from_index` included.
        tokens: u32,
        output: Cid,
        /// The host's signed receipt.
        receipt: serde_json::Value,
    },
    Error {
        reason: String,
    },
}

impl Capabilities {
    /// Checks that the account `host` has vouched for `peer` on this chain and registry.
    ///
    /// `peer` is the base58 text of the peer identity that sent these capabilities.
    ///
    /// # Errors
    /// If the chain differs, or the proof is not `host`'s signature of [`peer_statement`].
    pub fn verify(&self, peer: &str, chain_id: u64, registry: Address) -> Result<()> {
        ensure!(self.chain_id == chain_id, "peer {peer} serves chain {}, not {chain_id}", self.chain_id);
        let statement = peer_statement(peer, self.host, chain_id, registry);
        let signer = signer(&self.peer_proof, &statement).with_context(|| format!("peer proof of {peer}"))?;
        ensure!(signer == self.host, "peer proof of {peer} is signed by {signer}, not by host {}", self.host);
        Ok(())
    }
}

impl StreamInit {
    /// Returns the account that signed this request to `peer` (base58 text) on `chain_id`.
    ///
    /// # Errors
    /// If the signature is no key's. Whether the account is the job's renter is for the caller to check.
    pub fn signer(&self, peer: &str, chain_id: u64) -> Result<Address> {
        signer(&self.signature, &stream_statement(self.job, peer, chain_id))
            .with_context(|| format!("request for the tokens of job {}", self.job))
    }
}

alloy::sol! {
    /// What the owner of a smart account signs for it.
    struct MarketAccountMessage {
        bytes32 hash;
    }
}

/// Returns what the owner of the smart account `account` signs so that the account says `hash`.
///
/// Source: EIP-712, <https://eips.ethereum.org/EIPS/eip-712>; the domain is that of `contracts/src/MarketAccount.sol`.
pub fn account_hash(account: Address, chain_id: u64, hash: B256) -> B256 {
    let domain = alloy::sol_types::eip712_domain! {
        name: "Fabstir MarketAccount",
        version: "1",
        chain_id: chain_id,
        verifying_contract: account,
    };
    MarketAccountMessage { hash }.eip712_signing_hash(&domain)
}

/// Returns whether a host that calls its place by the names `regions` takes a job that asks for `asked`, or for no region.
pub fn serves_region(regions: &[String], asked: Option<&str>) -> bool {
    asked.is_none_or(|asked| regions.iter().any(|region| region.eq_ignore_ascii_case(asked)))
}

/// Returns the text a host signs to say that `peer` (base58 text) acts for it.
pub fn peer_statement(peer: &str, host: Address, chain_id: u64, registry: Address) -> String {
    format!("Fabstir: this peer acts for this host.\npeer {peer}\nhost {host}\nchain {chain_id}\nregistry {registry}")
}

/// Returns the hash of [`stream_statement`] that is signed: a key's by EIP-191, a contract's by ERC-1271.
pub fn stream_hash(job: JobId, peer: &str, chain_id: u64) -> B256 {
    alloy::primitives::eip191_hash_message(stream_statement(job, peer, chain_id))
}

/// Returns the text a renter signs to receive the tokens of `job` from `peer` (base58 text).
pub fn stream_statement(job: JobId, peer: &str, chain_id: u64) -> String {
    format!("Fabstir: stream the tokens of my job.\njob {job}\npeer {peer}\nchain {chain_id}")
}

fn signer(signature: &[u8], statement: &str) -> Result<Address> {
    let signature = Signature::from_raw(signature).context("not a 65-byte signature")?;
    signature.recover_address_from_msg(statement).context("no account can have made this signature")
}

#[cfg(test)]
mod tests {
    use alloy::signers::{SignerSync, local::PrivateKeySigner};

    use super::*;

    const PEER: &str = "12D3KooWExample";
    const REGISTRY: Address = Address::repeat_byte(7);

    fn signed(key: &PrivateKeySigner, text: &str) -> Bytes {
        key.sign_message_sync(text.as_bytes()).unwrap().as_bytes().into()
    }

    #[test]
    fn a_host_vouches_for_one_peer_on_one_chain_and_registry() {
        let (host, rival) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let statement = peer_statement(PEER, host.address(), 31337, REGISTRY);
        let peer_proof = signed(&host, &statement);
        let caps = Capabilities { host: host.address(), chain_id: 31337, models: vec![], regions: vec![], peer_proof };
        caps.verify(PEER, 31337, REGISTRY).unwrap();
        assert!(caps.verify("12D3KooWOther", 31337, REGISTRY).is_err());
        assert!(caps.verify(PEER, 1, REGISTRY).unwrap_err().to_string().contains("serves chain 31337, not 1"));
        assert!(caps.verify(PEER, 31337, Address::ZERO).is_err());
        let stolen = Capabilities { peer_proof: signed(&rival, &statement), ..caps.clone() };
        assert!(stolen.verify(PEER, 31337, REGISTRY).unwrap_err().to_string().contains("not by host"));
        let empty = Capabilities { peer_proof: Bytes::new(), ..caps };
        assert!(format!("{:#}", empty.verify(PEER, 31337, REGISTRY).unwrap_err()).contains("65-byte"));
    }

    #[test]
    fn a_stream_request_names_its_signer_only_for_its_own_job_and_peer() {
        let renter = PrivateKeySigner::random();
        let signature = signed(&renter, &stream_statement(JobId(3), PEER, 31337));
        let init = StreamInit { version: STREAM_VERSION.into(), job: JobId(3), from_index: 0, signature };
        assert_eq!(init.signer(PEER, 31337).unwrap(), renter.address());
        assert_ne!(init.signer("12D3KooWOther", 31337).ok(), Some(renter.address()));
        let other = StreamInit { job: JobId(4), ..init };
        assert_ne!(other.signer(PEER, 31337).ok(), Some(renter.address()));
    }

    #[test]
    fn an_accounts_owner_signs_for_one_account_and_chain() {
        let hash = stream_hash(JobId(3), PEER, 31337);
        let message = account_hash(REGISTRY, 31337, hash);
        // Written down from outside: `cast` over the definition of EIP-712.
        assert_eq!(
            message,
            alloy::primitives::b256!("55c6a268fd941d799e42843d73d123bc02d8379eb581b70c3a2d625c2aec8540")
        );
        assert_ne!(message, account_hash(REGISTRY, 1, hash));
        assert_ne!(message, account_hash(Address::ZERO, 31337, hash));
        assert_ne!(message, account_hash(REGISTRY, 31337, stream_hash(JobId(4), PEER, 31337)));
    }

    #[test]
    fn a_host_takes_jobs_of_the_regions_that_it_tells() {
        let here = ["eu-west".to_owned(), "EU".to_owned()];
        for (asked, takes) in
            [(None, true), (Some("eu"), true), (Some("EU-West"), true), (Some("us"), false), (Some("eu-"), false)]
        {
            assert_eq!(serves_region(&here, asked), takes, "{asked:?}");
        }
        assert!(serves_region(&[], None));
        assert!(!serves_region(&[], Some("eu")));
    }

    #[test]
    fn a_host_of_an_older_version_tells_no_region_and_one_of_an_older_version_reads_over_it() {
        #[derive(Deserialize)]
        struct Older {
            host: Address,
            models: Vec<ModelOffer>,
        }
        let older = format!(r#"{{"host":"{REGISTRY}","chain_id":31337,"models":[],"peer_proof":"0x"}}"#);
        let told: Capabilities = serde_json::from_str(&older).unwrap();
        assert_eq!(told.regions, [""; 0]);
        let newer = Capabilities { regions: vec!["eu".into()], ..told };
        let read: Older = serde_json::from_str(&serde_json::to_string(&newer).unwrap()).unwrap();
        assert_eq!((read.host, read.models), (REGISTRY, vec![]));
    }

    #[test]
    fn messages_have_the_json_form_other_implementations_write() {
        let quote: Request = serde_json::from_str(&format!(
            r#"{{"type":"quote","model":"{}","input_bytes":5,"max_tokens":9,"token":"{}","later":true}}"#,
            ModelId([1; 32]),
            Address::ZERO
        ))
        .unwrap();
        assert!(matches!(quote, Request::Quote { input_bytes: 5, max_tokens: 9, .. }));
        assert_eq!(serde_json::to_string(&Request::Capabilities).unwrap(), r#"{"type":"capabilities"}"#);
        let token = StreamMessage::Token { index: 1, content: "hi".into(), token: 42 };
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(text, r#"{"type":"token","index":1,"content":"hi","token":42}"#);
        let price = U256::from(10).pow(U256::from(18));
        let quote =
            Quote { price, token: Address::ZERO, valid_until: UnixSeconds(1), proof: true, estimated_seconds: 2 };
        let response = Response::Quote(quote);
        let text = serde_json::to_string(&response).unwrap();
        assert_eq!(serde_json::from_str::<Response>(&text).unwrap(), response);
    }
}
