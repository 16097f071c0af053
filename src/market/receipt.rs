//! A host's signed statement of a result: what it ran, for whom, and what came out.
//!
//! Signed as EIP-712 typed data with the host's on-chain key, so anyone who reads the chain can check it.
//! Source: <https://eips.ethereum.org/EIPS/eip-712>.

use alloy::primitives::Signature;
use alloy::sol_types::{Eip712Domain, SolStruct};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::event::Terms;
use super::job::{Inferred, Job};
use super::types::{Address, B256, Bytes, Cid, JobId, U256};

/// Largest accepted serialised receipt, in bytes.
pub const RECEIPT_BYTES_MAX: usize = 4096;

/// What a host states about one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub chain_id: u64,
    pub marketplace: Address,
    pub job: JobId,
    pub host: Address,
    /// Text of the model id, as in the job's terms.
    pub model: String,
    /// Text of the prompt's content id, as in the job's terms.
    pub input: String,
    pub output: Cid,
    pub tokens: u32,
    pub root: B256,
    pub tokens_digest: B256,
}

/// A receipt and the host's 65-byte signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    pub receipt: Receipt,
    pub signature: Bytes,
}

mod typed {
    alloy::sol! {
        struct Receipt {
            uint256 job;
            address host;
            string model;
            string input;
            string output;
            uint32 tokens;
            bytes32 root;
            bytes32 tokensDigest;
        }
    }
}

impl Receipt {
    /// Returns the receipt of what `host` inferred for the job `terms` belong to.
    pub fn new(chain_id: u64, marketplace: Address, host: Address, job: JobId, terms: &Terms, done: &Inferred) -> Self {
        Receipt {
            chain_id,
            marketplace,
            job,
            host,
            model: terms.model.clone(),
            input: terms.input.clone(),
            output: done.output,
            tokens: done.commitment.tokens,
            root: done.commitment.root,
            tokens_digest: done.commitment.tokens_digest,
        }
    }

    /// Returns the EIP-712 hash that the host signs.
    pub fn signing_hash(&self) -> B256 {
        let domain = Eip712Domain::new(
            Some("Fabstir".into()),
            Some("1".into()),
            Some(U256::from(self.chain_id)),
            Some(self.marketplace),
            None,
        );
        typed::Receipt {
            job: U256::from(self.job.0),
            host: self.host,
            model: self.model.clone(),
            input: self.input.clone(),
            output: self.output.to_string(),
            tokens: self.tokens,
            root: self.root,
            tokensDigest: self.tokens_digest,
        }
        .eip712_signing_hash(&domain)
    }
}

impl SignedReceipt {
    /// Reads a receipt from a peer and checks that its host signed it.
    ///
    /// # Errors
    /// If the bytes are too long, not a receipt, or signed by another key. What the chain says is not looked at:
    /// see [`SignedReceipt::agrees_with`].
    pub fn read(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() <= RECEIPT_BYTES_MAX, "a receipt of {} bytes, at most {RECEIPT_BYTES_MAX}", bytes.len());
        let signed: SignedReceipt = serde_json::from_slice(bytes).context("not a receipt")?;
        signed.verify()?;
        Ok(signed)
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// If the signature is malformed or another key's.
    pub fn verify(&self) -> Result<()> {
        let signature = Signature::try_from(self.signature.as_ref()).context("malformed signature")?;
        // The curve accepts `(r, -s)` too, and readers accept other spellings of `v`: only one form is a receipt.
        ensure!(
            signature.normalize_s().is_none() && signature.as_bytes()[..] == self.signature[..],
            "signature is not in canonical form: r, s in the lower half of the order, v 27 or 28"
        );
        let signer = signature
            .recover_address_from_prehash(&self.receipt.signing_hash())
            .context("signature recovers no key")?;
        ensure!(signer == self.receipt.host, "signed by {signer}, not by the host {}", self.receipt.host);
        Ok(())
    }

    /// Checks the receipt against the job as the chain has it: same chain, contract, terms, host and commitment.
    ///
    /// # Errors
    /// Naming the first field that differs.
    pub fn agrees_with(&self, chain_id: u64, marketplace: Address, job: &Job) -> Result<()> {
        use super::job::State;
        let receipt = &self.receipt;
        ensure!(receipt.chain_id == chain_id, "chain {} is not {chain_id}", receipt.chain_id);
        ensure!(receipt.marketplace == marketplace, "marketplace {} is not {marketplace}", receipt.marketplace);
        ensure!(receipt.job == job.id, "job {} is not {}", receipt.job, job.id);
        ensure!(receipt.model == job.terms.model, "another model than the job's");
        ensure!(receipt.input == job.terms.input, "another input than the job's");
        ensure!(job.host() == Some(receipt.host), "{} does not hold the job", receipt.host);
        let (State::Committed { commitment, .. }
        | State::Completed { commitment, .. }
        | State::Disputed { commitment, .. }
        | State::Released { commitment, .. }) = &job.state
        else {
            anyhow::bail!("the job is {}: no result is committed", job.state.name());
        };
        ensure!(receipt.root == commitment.root, "another root than the committed one");
        ensure!(receipt.tokens == commitment.tokens, "{} tokens, {} committed", receipt.tokens, commitment.tokens);
        ensure!(receipt.tokens_digest == commitment.tokens_digest, "other tokens than the committed ones");
        ensure!(receipt.output.chain_hash() == commitment.result_hash, "another output than the committed one");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloy::signers::{SignerSync, local::PrivateKeySigner};

    use super::*;
    use crate::market::event::{Commitment, Event};
    use crate::market::job::Fact;
    use crate::market::types::{BlockRef, UnixSeconds};

    const MARKETPLACE: Address = Address::repeat_byte(0x33);
    const CHAIN: u64 = 31337;

    fn key(byte: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).expect("a key")
    }

    fn output() -> Cid {
        Cid::of(b"output")
    }

    fn commitment() -> Commitment {
        Commitment {
            root: B256::repeat_byte(1),
            tokens: 3,
            result_hash: output().chain_hash(),
            tokens_digest: B256::repeat_byte(2),
        }
    }

    fn terms() -> Terms {
        Terms {
            renter: Address::repeat_byte(9),
            model: "sha256:00".into(),
            input: Cid::of(b"prompt").to_string(),
            max_tokens: 8,
            temperature_milli: 0,
            seed: 1,
            payment: U256::from(100),
            token: Address::ZERO,
            deadline: UnixSeconds(1000),
            requires_proof: true,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: None,
            region: None,
        }
    }

    fn receipt() -> Receipt {
        let done = Inferred { commitment: commitment(), output: output(), transcript: Cid::of(b"transcript") };
        Receipt::new(CHAIN, MARKETPLACE, key(1).address(), JobId(7), &terms(), &done)
    }

    fn signed(receipt: Receipt, key: &PrivateKeySigner) -> SignedReceipt {
        let signature = key.sign_hash_sync(&receipt.signing_hash()).expect("signs");
        SignedReceipt { receipt, signature: signature.as_bytes().to_vec().into() }
    }

    type Change = fn(&mut Receipt);
    /// One change of each field, by its name.
    const CHANGES: [(&str, Change); 10] = [
        ("chain_id", |r| r.chain_id += 1),
        ("marketplace", |r| r.marketplace = Address::ZERO),
        ("job", |r| r.job.0 += 1),
        ("host", |r| r.host = Address::ZERO),
        ("model", |r| r.model.push('0')),
        ("input", |r| r.input.push('a')),
        ("output", |r| r.output = Cid::of(b"other")),
        ("tokens", |r| r.tokens += 1),
        ("root", |r| r.root = B256::ZERO),
        ("tokens_digest", |r| r.tokens_digest = B256::ZERO),
    ];

    #[test]
    fn a_receipt_travels_and_verifies() {
        let signed = signed(receipt(), &key(1));
        let bytes = serde_json::to_vec(&signed).unwrap();
        assert_eq!(SignedReceipt::read(&bytes).unwrap(), signed);
    }

    #[test]
    fn every_field_is_under_the_signature() {
        let written = serde_json::to_value(receipt()).unwrap();
        let mut fields: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        let mut changed: Vec<&str> = CHANGES.iter().map(|(field, _)| *field).collect();
        fields.sort();
        changed.sort();
        assert_eq!(changed, fields, "the table names every field");
        for (field, change) in CHANGES {
            let mut altered = signed(receipt(), &key(1));
            change(&mut altered.receipt);
            let error = altered.verify().expect_err(field).to_string();
            assert!(error.contains("signed by"), "{field}: {error}");
        }
    }

    #[test]
    fn another_keys_signature_names_both() {
        let error = signed(receipt(), &key(2)).verify().unwrap_err().to_string();
        assert!(
            error.contains(&key(2).address().to_string()) && error.contains(&key(1).address().to_string()),
            "{error}"
        );
    }

    #[test]
    fn a_signature_has_one_form() {
        let good = signed(receipt(), &key(1));
        let parsed = Signature::try_from(good.signature.as_ref()).unwrap();
        // secp256k1's order, SEC 2 section 2.4.1.
        let order =
            U256::from_be_bytes(alloy::hex!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));
        let high = Signature::new(parsed.r(), order - parsed.s(), !parsed.v());
        assert_eq!(high.recover_address_from_prehash(&good.receipt.signing_hash()).unwrap(), good.receipt.host);
        let mut low_v = good.signature.to_vec();
        low_v[64] -= 27;
        for other in [high.as_bytes().to_vec(), low_v] {
            let error = SignedReceipt { signature: other.into(), ..good.clone() }.verify().unwrap_err().to_string();
            assert!(error.contains("not in canonical form"), "{error}");
        }
    }

    #[test]
    fn malformed_bytes_are_errors() {
        let good = signed(receipt(), &key(1));
        for length in [0, 1, 64, 66, 200] {
            let mut signature = good.signature.to_vec();
            signature.resize(length, 0);
            SignedReceipt { signature: signature.into(), ..good.clone() }.verify().expect_err("a wrong length");
        }
        SignedReceipt { signature: vec![0; 65].into(), ..good.clone() }.verify().expect_err("zeros");
        SignedReceipt { signature: vec![0xff; 65].into(), ..good.clone() }.verify().expect_err("ones");

        let mut long = serde_json::to_vec(&good).unwrap();
        long.resize(RECEIPT_BYTES_MAX, b' ');
        SignedReceipt::read(&long).expect("the largest allowed");
        long.push(b' ');
        assert!(SignedReceipt::read(&long).unwrap_err().to_string().contains("4097 bytes, at most 4096"));
        assert!(SignedReceipt::read(b"{}").is_err());
        let mut extra = serde_json::to_value(&good).unwrap();
        extra["receipt"]["note"] = "x".into();
        assert!(SignedReceipt::read(extra.to_string().as_bytes()).is_err(), "an unsigned field");
    }

    #[test]
    fn a_receipt_is_held_against_the_chain() {
        let host = key(1).address();
        let at = |event| Fact::Chain { event, block: BlockRef { number: 1, hash: B256::ZERO } };
        let (job, output) = (JobId(7), output().to_string());
        let facts = [
            at(Event::JobTerms { job, terms: terms() }),
            at(Event::JobClaimed { job, host }),
            at(Event::ResultCommitted { job, host, commitment: commitment() }),
            at(Event::JobCompleted { job, output }),
            at(Event::PaymentReleased { job, host, amount: U256::from(97) }),
        ];
        let good = signed(receipt(), &key(1));
        for known in 3..=facts.len() {
            let job = Job::fold(job, &facts[..known]).unwrap().unwrap();
            good.agrees_with(CHAIN, MARKETPLACE, &job).unwrap();
            for (field, change) in CHANGES {
                let mut other = good.clone();
                change(&mut other.receipt);
                let error = other.agrees_with(CHAIN, MARKETPLACE, &job).expect_err(field).to_string();
                let says = match field {
                    "chain_id" => "chain 31338 is not 31337",
                    "host" => "does not hold the job",
                    "tokens" => "4 tokens, 3 committed",
                    "tokens_digest" => "other tokens than",
                    field => field,
                };
                assert!(error.contains(says), "{field}: {error}");
            }
        }
        for (known, says) in [(1, "does not hold the job"), (2, "the job is claimed: no result is committed")] {
            let job = Job::fold(job, &facts[..known]).unwrap().unwrap();
            let error = good.agrees_with(CHAIN, MARKETPLACE, &job).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
