//! What hosts' transactions cost, read from the chain's blocks and receipts.

use std::collections::HashMap;

use alloy::primitives::{U64, keccak256};
use anyhow::{Context, Result};
use fabstir::market::types::{Address, B256, Bytes};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::between::CLAIMS;
use crate::place::Place;

/// A block with the transactions of some accounts.
pub struct Block {
    /// Wei per gas.
    pub base_fee: u64,
    pub transactions: Vec<Mined>,
}

/// A transaction that is in a block.
pub struct Mined {
    pub does: Does,
    pub success: bool,
    pub gas: u64,
    /// Wei per gas that was paid.
    pub gas_price: u64,
    /// The most wei per gas that were offered.
    pub fee_cap: u64,
}

/// What a transaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    Claim,
    /// An empty one to oneself, in the place of one that would be in vain.
    Nothing,
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    base_fee_per_gas: U64,
    transactions: Vec<Transaction>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transaction {
    hash: B256,
    from: Address,
    to: Option<Address>,
    input: Bytes,
    max_fee_per_gas: Option<U64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    status: U64,
    gas_used: U64,
    effective_gas_price: U64,
}

/// Returns the blocks from `from` to the newest, each with what the accounts sent.
pub async fn blocks(place: &Place, from: u64, accounts: &[Address]) -> Result<Vec<Block>> {
    let head = place.chain.head().await?.block.number;
    let mut blocks = Vec::new();
    for number in from..=head {
        let header: Header = read(place, "eth_getBlockByNumber", json!([U64::from(number), true])).await?;
        let receipts: Vec<Receipt> = read(place, "eth_getBlockReceipts", json!([U64::from(number)])).await?;
        let receipts: HashMap<B256, Receipt> = receipts.into_iter().map(|it| (it.transaction_hash, it)).collect();
        let ours = header.transactions.iter().filter(|tx| accounts.contains(&tx.from));
        let transactions = ours.map(|tx| {
            let receipt = receipts.get(&tx.hash).with_context(|| format!("transaction {} has no receipt", tx.hash))?;
            Ok(Mined {
                does: does(tx),
                success: receipt.status.to::<u64>() == 1,
                gas: receipt.gas_used.to(),
                gas_price: receipt.effective_gas_price.to(),
                fee_cap: tx.max_fee_per_gas.context("a transaction without a fee cap")?.to(),
            })
        });
        let transactions = transactions.collect::<Result<_>>()?;
        blocks.push(Block { base_fee: header.base_fee_per_gas.to(), transactions });
    }
    Ok(blocks)
}

fn does(tx: &Transaction) -> Does {
    if CLAIMS.iter().any(|claim| tx.input.starts_with(&keccak256(claim)[..4])) {
        Does::Claim
    } else if tx.input.is_empty() && tx.to == Some(tx.from) {
        Does::Nothing
    } else {
        Does::Other
    }
}

async fn read<T: DeserializeOwned>(place: &Place, method: &str, params: serde_json::Value) -> Result<T> {
    let what = || format!("{method} {params}");
    let answer = place.devnet.rpc(method, params.clone()).await.with_context(what)?;
    serde_json::from_value(answer).with_context(what)
}
