//! Signing and putting bytes on the wire. Which nonce, when and whether again is the submitter's business; what a node
//! meant by its answer is decided here, in one function.

use std::collections::BTreeMap;
use std::time::Duration;

use alloy::consensus::{SignableTransaction, TxEip1559};
use alloy::eips::eip2718::Encodable2718;
use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, eip191_hash_message, keccak256};
use alloy::providers::Provider;
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::signers::SignerSync;
use alloy::signers::local::{PrivateKeySigner, Secp256k1Signer};
use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;

use super::call::Call;
use super::follow::raw_log;
use super::{Chain, Costs, abi, request};
use crate::market::event::RawLog;
use crate::market::types::BlockRef;

/// Requests that transactions are parted into, and the fewest transactions that are worth one.
const REQUESTS: usize = 8;
const PER_REQUEST_MIN: usize = 3;
/// Requests that are under way before a further one waits for an answer, and how long it waits at most: a node that is near answers
/// the first ones sooner that way, and one that is far loses little.
const AT_ONCE: usize = 2;
const NEXT_AFTER: Duration = Duration::from_millis(1);

/// An account that can sign. Never prints its key.
#[derive(Clone)]
pub struct Signer {
    address: Address,
    key: Key,
}

/// Who has an account's key.
#[derive(Clone)]
enum Key {
    Ours(Secp256k1Signer),
    /// Somebody else, who is asked for each signature.
    #[cfg(any(feature = "aws", feature = "gcp"))]
    Theirs(std::sync::Arc<dyn alloy::signers::Signer + Send + Sync>),
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.address())
    }
}

/// EIP-1559 fee caps, in wei per gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    pub fee_cap: u128,
    pub tip_cap: u128,
}

impl Fees {
    /// Returns fees a node accepts as a replacement: both caps 12.5 % higher, rounded up; geth asks for 10 %.
    pub fn bumped(self) -> Self {
        let up = |fee: u128| fee.saturating_add(fee.div_ceil(8).max(1));
        Self { fee_cap: up(self.fee_cap), tip_cap: up(self.tip_cap) }
    }
}

/// What a node said to our bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It has them, now or already.
    Accepted,
    /// The nonce is used: one of our attempts was mined, or somebody else signs with our key. Look for receipts.
    NonceUsed,
    /// An earlier nonce is missing there: send that first, then this again.
    NonceAhead,
    /// It asks for a higher fee, or another transaction with this nonce pays as much: bump.
    Underpriced,
    /// The account cannot pay for it.
    InsufficientFunds,
    /// It has no room, or too many of ours wait there: send it again later.
    Full,
    /// Refused for another reason, in the node's words.
    Refused(String),
}

impl Signer {
    pub(super) fn new(key: PrivateKeySigner) -> Self {
        Self { address: key.address(), key: Key::Ours(key.into_secp256k1()) }
    }

    #[cfg(any(feature = "aws", feature = "gcp"))]
    pub(super) fn of_a_keeper(keeper: impl alloy::signers::Signer + Send + Sync + 'static) -> Self {
        Self { address: keeper.address(), key: Key::Theirs(std::sync::Arc::new(keeper)) }
    }

    async fn signature(&self, hash: B256) -> alloy::signers::Result<Signature> {
        match &self.key {
            Key::Ours(key) => key.sign_hash_sync(&hash),
            #[cfg(any(feature = "aws", feature = "gcp"))]
            Key::Theirs(keeper) => keeper.sign_hash(&hash).await,
        }
    }

    /// Returns the account's address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Signs a 32-byte hash; 65 bytes `r ‖ s ‖ v`.
    ///
    /// # Errors
    /// If the key cannot sign, or who keeps it does not answer.
    pub async fn sign_hash(&self, hash: B256) -> Result<Bytes> {
        Ok(self.signature(hash).await.context("sign a hash")?.as_bytes().to_vec().into())
    }

    /// Signs a text as EIP-191 personal message; 65 bytes.
    ///
    /// # Errors
    /// If the key cannot sign, or who keeps it does not answer.
    pub async fn sign_text(&self, text: &str) -> Result<Bytes> {
        let hash = eip191_hash_message(text);
        Ok(self.signature(hash).await.context("sign a text")?.as_bytes().to_vec().into())
    }

    /// Returns the signed EIP-1559 transaction and its hash. Nothing is sent.
    ///
    /// # Errors
    /// If the key cannot sign, or who keeps it does not answer.
    pub async fn sign(&self, chain_id: u64, nonce: u64, gas: u64, fees: Fees, call: &Call) -> Result<(B256, Bytes)> {
        let tx = TxEip1559 {
            chain_id,
            nonce,
            gas_limit: gas,
            max_fee_per_gas: fees.fee_cap,
            max_priority_fee_per_gas: fees.tip_cap,
            to: TxKind::Call(call.to),
            value: call.value,
            access_list: Default::default(),
            input: call.data.clone(),
        };
        let signature = self.signature(tx.signature_hash()).await.context("sign a transaction")?;
        let raw: Bytes = tx.into_signed(signature).encoded_2718().into();
        Ok((keccak256(&raw), raw))
    }
}

impl Chain {
    /// Returns fees for a transaction to be mined soon: twice the current base fee plus a tip.
    pub async fn fees(&self) -> Result<Fees> {
        let fees = self.provider.estimate_eip1559_fees().await.context("estimate fees")?;
        Ok(Fees { fee_cap: fees.max_fee_per_gas, tip_cap: fees.max_priority_fee_per_gas })
    }

    /// Returns the account's next nonce as mined blocks have it.
    pub async fn nonce(&self, account: Address) -> Result<u64> {
        self.provider.get_transaction_count(account).await.with_context(|| format!("read the nonce of {account}"))
    }

    /// Returns a gas limit for the call: the node's estimate and a quarter more.
    ///
    /// # Errors
    /// If the endpoint fails or the call would revert.
    pub async fn gas(&self, from: Address, call: &Call) -> Result<u64> {
        let request = request(from, call.to, call.data.clone(), call.value);
        let gas = self.provider.estimate_gas(request).await.context("estimate gas")?;
        Ok(gas.saturating_add(gas / 4))
    }

    /// Puts signed bytes on the wire, given in the order of their nonces, with a few requests that overlap: each of them
    /// waits for fewer that way. Those that overtook what they follow, where the node does not keep such, are sent once more.
    /// Says of each what the node said of it.
    ///
    /// # Errors
    /// If no endpoint can be reached: the bytes may or may not have arrived, so send the same ones again.
    pub async fn send(&self, raw: &[Bytes]) -> Result<Vec<Sent>> {
        let per_request = raw.len().div_ceil(REQUESTS).max(PER_REQUEST_MIN);
        let (mut asked, mut answered) = (FuturesUnordered::new(), BTreeMap::new());
        for (place, raw) in raw.chunks(per_request).enumerate() {
            if asked.len() >= AT_ONCE
                && let Ok(Some(answer)) =
                    tokio::time::timeout(NEXT_AFTER, asked.try_next()).await.map(Result::transpose)
            {
                answered.extend([answer?]);
            }
            asked.push(async move { anyhow::Ok((place, self.send_in_order(raw).await?)) });
        }
        while let Some(answer) = asked.try_next().await? {
            answered.extend([answer]);
        }
        let mut said = answered.into_values().collect::<Vec<_>>().concat();
        let ahead: Vec<usize> = (0..raw.len()).filter(|place| said[*place] == Sent::NonceAhead).collect();
        if raw.len() > per_request && !ahead.is_empty() {
            let again: Vec<Bytes> = ahead.iter().map(|place| raw[*place].clone()).collect();
            for (place, now) in ahead.into_iter().zip(self.send_in_order(&again).await?) {
                said[place] = now;
            }
        }
        Ok(said)
    }

    async fn send_in_order(&self, raw: &[Bytes]) -> Result<Vec<Sent>> {
        let what = || format!("send transactions to {}", self.endpoint);
        if let [raw] = raw {
            return match self.provider.send_raw_transaction(raw).await {
                // The watcher that comes back is dropped: receipts are polled by hash.
                Ok(_) => Ok(vec![Sent::Accepted]),
                Err(error) => match error.as_error_resp() {
                    Some(answer) => Ok(vec![classify(answer)]),
                    None => Err(error).with_context(what),
                },
            };
        }
        let mut batch = self.client.new_batch();
        let calls = raw.iter().map(|raw| batch.add_call::<_, B256>("eth_sendRawTransaction", &(raw,)));
        let calls = calls.collect::<Result<Vec<_>, _>>()?;
        batch.send().await.with_context(what)?;
        let mut said = Vec::with_capacity(raw.len());
        for call in calls {
            said.push(match call.await {
                Ok(_) => Sent::Accepted,
                Err(error) => match error.as_error_resp() {
                    Some(answer) => classify(answer),
                    None => return Err(error).with_context(what),
                },
            });
        }
        Ok(said)
    }

    /// Tries a call on the newest block's state, without sending it. Returns a gas limit for it, the node's estimate and a quarter
    /// more, or the contract's reason why it would refuse.
    ///
    /// # Errors
    /// If the endpoint fails: then nothing is known about the call.
    pub async fn rehearse(&self, from: Address, call: &Call) -> Result<Result<u64, String>> {
        let request = request(from, call.to, call.data.clone(), call.value);
        match self.provider.estimate_gas(request).await {
            Ok(gas) => Ok(Ok(gas.saturating_add(gas / 4))),
            Err(error) => match error.as_error_resp() {
                Some(refusal) => Ok(Err(abi::reason(refusal))),
                None => Err(error).context("try a call"),
            },
        }
    }

    /// Returns what a sender must know of the newest block, from one endpoint.
    pub async fn pulse(&self) -> Result<Pulse> {
        let chain = self.steady();
        let head = async {
            let head = chain.provider.get_block_by_number(BlockNumberOrTag::Latest).await?;
            head.map(|head| head.header.base_fee_per_gas.unwrap_or(0).into()).context("there is no newest block")
        };
        let (base_fee, fees) = tokio::try_join!(head, chain.fees())?;
        Ok(Pulse { base_fee, fees })
    }

    /// Returns the account's next nonce at the newest block that the chain calls final.
    pub async fn final_nonce(&self, account: Address) -> Result<u64> {
        let nonce = self.provider.get_transaction_count(account).block_id(BlockId::finalized()).await;
        nonce.with_context(|| format!("read the final nonce of {account}"))
    }

    /// Returns what became of those of the transactions that are in a block, with few requests to one endpoint.
    pub async fn ended(&self, hashes: &[B256]) -> Result<Vec<Ended>> {
        const PER_BATCH: usize = 100;
        let what = "read the receipts of our transactions";
        let mut ended = Vec::new();
        for hashes in hashes.chunks(PER_BATCH) {
            let mut batch = self.client.new_batch();
            let calls =
                hashes.iter().map(|hash| batch.add_call::<_, Option<Costs>>("eth_getTransactionReceipt", &(hash,)));
            let calls = calls.collect::<Result<Vec<_>, _>>()?;
            batch.send().await.context(what)?;
            for (hash, call) in hashes.iter().zip(calls) {
                let Some(costs) = call.await.context(what)? else { continue };
                let (Some(number), Some(block)) = (costs.block_number, costs.block_hash) else { continue };
                ended.push(Ended {
                    hash: *hash,
                    block: BlockRef { number: number.to(), hash: block },
                    success: !costs.status.is_zero(),
                    gas_used: costs.gas_used.saturating_to(),
                    gas_price: costs.effective_gas_price,
                    l1_fee: costs.l1_fee.unwrap_or_default(),
                });
            }
        }
        Ok(ended)
    }
}

/// What became of a transaction that is in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub hash: B256,
    pub block: BlockRef,
    pub success: bool,
    pub gas_used: u64,
    /// Wei per gas that was paid.
    pub gas_price: U256,
    /// Wei that a rollup took for the chain below it.
    pub l1_fee: U256,
}

/// What a sender must know of the newest block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// Wei per gas that the block burned.
    pub base_fee: u128,
    /// For a transaction to be mined soon.
    pub fees: Fees,
}

/// A transaction that is in a block.
#[derive(Debug, Clone)]
pub struct Mined {
    pub hash: B256,
    pub block: BlockRef,
    pub gas_used: u64,
    /// Wei paid for gas.
    pub fee_wei: U256,
    pub logs: Vec<RawLog>,
}

impl Chain {
    /// Signs a call, sends it and waits at most `limit` for its block: for one-off commands of a person. A node's own
    /// transactions go through the submitter, which survives restarts; this does not.
    ///
    /// # Errors
    /// If the contract would refuse it (nothing was sent), the endpoint fails, or it was not mined in time: then the
    /// error names its hash, and it may still be mined.
    pub async fn transact(&self, signer: &Signer, call: &Call, limit: Duration) -> Result<Mined> {
        let from = signer.address();
        if let Some(reason) = self.refusal(from, call).await? {
            bail!("the contract refuses: {reason}");
        }
        let (gas, fees, nonce) = (self.gas(from, call).await?, self.fees().await?, self.nonce(from).await?);
        let (hash, raw) = signer.sign(self.id, nonce, gas, fees, call).await?;
        let said =
            self.send(&[raw]).await.with_context(|| format!("send transaction {hash}, which may have arrived"))?;
        if let Some(refused) = said.into_iter().find(|said| *said != Sent::Accepted) {
            bail!("the node refused transaction {hash}: {refused:?}");
        }
        let mined = async {
            loop {
                if let Some(receipt) = self.receipt(hash).await?
                    && let (Some(number), Some(block)) = (receipt.block_number, receipt.block_hash)
                {
                    ensure!(receipt.status(), "transaction {hash} was reverted in block {number}");
                    let logs = receipt.logs().iter().cloned().map(raw_log).collect::<Result<_>>()?;
                    let fee_wei = U256::from(receipt.gas_used) * U256::from(receipt.effective_gas_price);
                    let block = BlockRef { number, hash: block };
                    return Ok(Mined { hash, block, gas_used: receipt.gas_used, fee_wei, logs });
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let late = || format!("transaction {hash} was sent and is not mined after {} s", limit.as_secs());
        tokio::time::timeout(limit, mined).await.with_context(late)?
    }
}

/// Reads a node's refusal. Texts differ between geth, op-geth, reth, erigon, nethermind, anvil and providers in front of them; codes
/// do not help. What no text tells is for a person.
fn classify(answer: &ErrorPayload) -> Sent {
    let text = answer.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["already known", "already imported", "known transaction", "alreadyknown"]) {
        Sent::Accepted
    } else if says(&["nonce too low", "nonce is too low", "oldnonce", "invalid nonce", "nonce has already been used"]) {
        Sent::NonceUsed
    } else if says(&["nonce too high", "gapped-nonce", "too distant from current"]) {
        Sent::NonceAhead
    } else if says(&[
        "underpriced",
        "fee too low",
        "less than block base fee",
        "lower than the block base fee",
        "below the block base fee",
        "could not replace",
    ]) {
        Sent::Underpriced
    } else if says(&["insufficient funds", "insufficient balance"]) {
        Sent::InsufficientFunds
    } else if says(&["pool is full", "limit reached", "limit exceeded"]) {
        Sent::Full
    } else {
        Sent::Refused(answer.message.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_is_understood() {
        let said =
            |message: &str| classify(&ErrorPayload { code: -32000, message: message.to_owned().into(), data: None });
        // geth
        assert_eq!(said("already known"), Sent::Accepted);
        assert_eq!(said("nonce too low: next nonce 7, tx nonce 3"), Sent::NonceUsed);
        assert_eq!(said("replacement transaction underpriced"), Sent::Underpriced);
        assert_eq!(
            said("insufficient funds for gas * price + value: balance 0, tx cost 21000"),
            Sent::InsufficientFunds
        );
        // anvil
        assert_eq!(said("transaction already imported"), Sent::Accepted);
        assert_eq!(said("nonce too low"), Sent::NonceUsed);
        assert_eq!(said("Insufficient funds for gas * price + value"), Sent::InsufficientFunds);
        assert_eq!(said("max fee per gas less than block base fee"), Sent::Underpriced);
        assert_eq!(said("Nonce too high"), Sent::NonceAhead);
        // geth, and op-geth for an account that has too many
        assert_eq!(
            said("future transaction tries to replace pending"),
            Sent::Refused("future transaction tries to replace pending".into())
        );
        assert_eq!(said("transaction underpriced: tip needed 1, tip permitted 0"), Sent::Underpriced);
        assert_eq!(
            said("max fee per gas less than block base fee: address 0x, maxFeePerGas: 1, baseFee: 7"),
            Sent::Underpriced
        );
        assert_eq!(said("txpool is full"), Sent::Full);
        assert_eq!(said("in-flight transaction limit reached for delegated accounts"), Sent::Full);
        assert_eq!(said("nonce too high"), Sent::NonceAhead);
        assert_eq!(said("gapped-nonce tx from delegated accounts"), Sent::NonceAhead);
        assert_eq!(said("account limit exceeded"), Sent::Full);
        // besu
        assert_eq!(said("Transaction nonce is too distant from current sender nonce"), Sent::NonceAhead);
        // what no later try would change
        for refused in
            ["intrinsic gas too low", "exceeds block gas limit", "invalid sender", "tx fee exceeds the configured cap"]
        {
            assert_eq!(said(refused), Sent::Refused(refused.into()));
        }
    }

    #[test]
    fn a_bump_is_at_least_an_eighth() {
        let fees = Fees { fee_cap: 1001, tip_cap: 0 }.bumped();
        assert_eq!(fees, Fees { fee_cap: 1127, tip_cap: 1 });
        // An endpoint's answer may be anything.
        let all = Fees { fee_cap: u128::MAX, tip_cap: u128::MAX };
        assert_eq!(all.bumped(), all);
    }
}
