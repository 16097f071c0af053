//! Signing and putting bytes on the wire. Which nonce, when and whether again is the submitter's business; what a node
//! meant by its answer is decided here, in one function.

use std::time::Duration;

use alloy::consensus::{SignableTransaction, TxEip1559};
use alloy::eips::eip2718::Encodable2718;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy::providers::Provider;
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, bail, ensure};

use super::call::Call;
use super::follow::raw_log;
use super::{Chain, request};
use crate::market::event::RawLog;
use crate::market::types::BlockRef;

/// An account that can sign. Never prints its key.
#[derive(Clone)]
pub struct Signer(PrivateKeySigner);

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
    /// Another transaction with this nonce pays as much: bump.
    Underpriced,
    /// The account cannot pay for it.
    InsufficientFunds,
    /// Refused for another reason, in the node's words.
    Refused(String),
}

impl Signer {
    pub(super) fn new(key: PrivateKeySigner) -> Self {
        Self(key)
    }

    /// Returns the account's address.
    pub fn address(&self) -> Address {
        self.0.address()
    }

    /// Signs a 32-byte hash; 65 bytes `r ‖ s ‖ v`.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn sign_hash(&self, hash: B256) -> Result<Bytes> {
        Ok(self.0.sign_hash_sync(&hash).context("sign a hash")?.as_bytes().to_vec().into())
    }

    /// Signs a text as EIP-191 personal message; 65 bytes.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn sign_text(&self, text: &str) -> Result<Bytes> {
        Ok(self.0.sign_message_sync(text.as_bytes()).context("sign a text")?.as_bytes().to_vec().into())
    }

    /// Returns the signed EIP-1559 transaction and its hash. Nothing is sent.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn sign(&self, chain_id: u64, nonce: u64, gas: u64, fees: Fees, call: &Call) -> Result<(B256, Bytes)> {
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
        let signature = self.0.sign_hash_sync(&tx.signature_hash()).context("sign a transaction")?;
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

    /// Puts signed bytes on the wire.
    ///
    /// # Errors
    /// If the endpoint cannot be reached: the bytes may or may not have arrived, so send the same ones again.
    pub async fn send(&self, raw: &Bytes) -> Result<Sent> {
        match self.provider.send_raw_transaction(raw).await {
            // The watcher that comes back is dropped: receipts are polled by hash.
            Ok(_) => Ok(Sent::Accepted),
            Err(error) => match error.as_error_resp() {
                Some(answer) => Ok(classify(answer)),
                None => Err(error).with_context(|| format!("send a transaction to {}", self.endpoint)),
            },
        }
    }
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
        let (hash, raw) = signer.sign(self.id, nonce, gas, fees, call)?;
        match self.send(&raw).await.with_context(|| format!("send transaction {hash}, which may have arrived"))? {
            Sent::Accepted => {}
            refused => bail!("the node refused transaction {hash}: {refused:?}"),
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

/// Reads a node's refusal. Texts differ between geth, reth, anvil and providers in front of them; codes do not help.
fn classify(answer: &ErrorPayload) -> Sent {
    let text = answer.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["already known", "already imported", "known transaction", "alreadyknown"]) {
        Sent::Accepted
    } else if says(&["nonce too low", "nonce is too low", "oldnonce", "invalid nonce"]) {
        Sent::NonceUsed
    } else if says(&["underpriced", "fee too low", "max fee per gas less than block base fee"]) {
        Sent::Underpriced
    } else if says(&["insufficient funds", "insufficient balance"]) {
        Sent::InsufficientFunds
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
        assert_eq!(said("intrinsic gas too low"), Sent::Refused("intrinsic gas too low".into()));
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
