//! The account's books against the chain: does what it has follow to the wei from what came and went?
//!
//! Reads state at past blocks, so it takes an endpoint that keeps it; changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::I256;
use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::chain::{Chain, Paid};
use crate::market::ledger::{Movement, Reconciled, Spent, Why, mismatched};
use crate::market::types::{Address, B256, U256};
use crate::store::Store;

/// The most transactions that are looked for on chain because the file does not have them, and the most blocks named in which
/// something else came or went.
const LOOKED_FOR_MAX: usize = 1000;
const UNEXPLAINED_MAX: usize = 20;

/// A transaction of the account of which the node's file does not know that it was mined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Other {
    pub block: u64,
    pub nonce: u64,
    pub hash: B256,
    #[serde(serialize_with = "crate::market::types::decimal")]
    pub fee_wei: U256,
    #[serde(serialize_with = "crate::market::types::decimal")]
    pub value: U256,
}

/// A block in which more or less came than the books explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexplained {
    pub block: u64,
    /// In wei; negative: it went.
    pub wei: I256,
}

/// What the comparison found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub books: Reconciled,
    /// What the node did not sign.
    pub others: Vec<Other>,
    /// Where it lies, as far as it was looked for; empty when all is explained.
    pub unexplained: Vec<Unexplained>,
    /// Settled jobs of which the escrow paid out another sum than the payment.
    pub mismatched: Vec<String>,
}

impl Checked {
    /// Returns whether everything adds up.
    pub fn is_right(&self) -> bool {
        self.books.unexplained.is_zero() && self.mismatched.is_empty()
    }
}

/// Compares the ETH of `us` at the newest block stored with what it had at the end of block `from`, or before the first block in which
/// the file knows that something came or went, and all that did since.
///
/// # Errors
/// If the store or the endpoint fails, it no longer has the state of those blocks, or it has another newest block than the store.
pub async fn check(store: &Store, chain: &Chain, us: Address, from: Option<u64>) -> Result<Checked> {
    let cursor = store.cursor().await?.context("nothing is indexed yet: there is nothing to compare")?;
    // One endpoint: what it tells is of one piece.
    let chain = chain.steady();
    let spent = store.spent(us).await?;
    let mut movements = store.escrow_movements(us).await?;
    movements.extend(spent.iter().map(|tx| Movement { block: tx.block, why: Why::Gas, amount: tx.fee_wei }));
    let first = movements.iter().map(|movement| movement.block).min();
    let from = from.unwrap_or_else(|| first.map_or(cursor.number, |block| block.saturating_sub(1)));
    ensure!(from <= cursor.number, "block {from} is not stored yet: the newest is {}", cursor.number);
    let unsettled = others(&chain, us, from, cursor.number, &spent).await?;
    // What the node signed and does not know the end of yet is its own all the same.
    let signed = store.signed_here(&unsettled.iter().map(|tx| tx.hash).collect::<Vec<_>>()).await?;
    let (ours, others): (Vec<Other>, Vec<Other>) = unsettled.into_iter().partition(|tx| signed.contains(&tx.hash));
    for (why, of) in [(Why::Gas, &ours), (Why::OtherGas, &others)] {
        for tx in of {
            movements.push(Movement { block: tx.block, why, amount: tx.fee_wei });
            movements.push(Movement { block: tx.block, why: Why::Sent, amount: tx.value });
        }
    }
    let mut balances = Balances { chain: &chain, us, known: BTreeMap::new() };
    let (opening, closing) = (balances.at(from).await?, balances.at(cursor.number).await?);
    let header = chain.header(cursor.number).await?;
    ensure!(
        header.is_some_and(|header| header.block.hash == cursor.hash),
        "{} has another block {} than the database: try again once the node has caught up",
        chain.name(),
        cursor.number
    );
    let books = Reconciled::of(from, cursor.number, opening, &movements, closing);
    let unexplained = balances.unexplained(&books, &movements).await?;
    Ok(Checked { books, others, unexplained, mismatched: mismatched(&store.accounts(us).await?) })
}

/// Returns the transactions of `us` in blocks `from + 1..=to` of which the file does not know that they were mined.
async fn others(chain: &Chain, us: Address, from: u64, to: u64, spent: &[Spent]) -> Result<Vec<Other>> {
    let known: BTreeSet<u64> = spent.iter().map(|tx| tx.nonce).collect();
    let (first, next) = (chain.nonce_at(us, from).await?, chain.nonce_at(us, to).await?);
    let unknown: Vec<u64> = (first..next).filter(|nonce| !known.contains(nonce)).collect();
    ensure!(
        unknown.len() <= LOOKED_FOR_MAX,
        "{us} sent {} transactions since block {from} that the database does not have, at most {LOOKED_FOR_MAX} are looked for: \
         compare from a later block",
        unknown.len()
    );
    let mut others = Vec::with_capacity(unknown.len());
    let mut before = from;
    for nonce in unknown {
        // The first block after which the account has sent more than `nonce`; nonces are used in order.
        let (mut low, mut high) = (before, to);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match chain.nonce_at(us, middle).await? > nonce {
                true => high = middle,
                false => low = middle,
            }
        }
        // Of several in one block, `low` is the block before it for all.
        before = low;
        let paid = chain.paid(us, high, nonce).await?;
        let Paid { hash, fee_wei, value } = paid.with_context(|| {
            format!("block {high} has no transaction {nonce} of {us}, although it was sent by then")
        })?;
        others.push(Other { block: high, nonce, hash, fee_wei, value });
    }
    Ok(others)
}

/// What the account had, as far as it was asked for.
struct Balances<'a> {
    chain: &'a Chain,
    us: Address,
    known: BTreeMap<u64, U256>,
}

impl Balances<'_> {
    async fn at(&mut self, block: u64) -> Result<U256> {
        if let Some(known) = self.known.get(&block) {
            return Ok(*known);
        }
        let balance = self.chain.balance_at(Address::ZERO, self.us, block).await?;
        self.known.insert(block, balance);
        Ok(balance)
    }

    /// Finds blocks in which something came or went that the books do not explain: halves the stretch in which it must have. Two
    /// that cancel each other out may be missed, and so explain each other.
    async fn unexplained(&mut self, books: &Reconciled, movements: &[Movement]) -> Result<Vec<Unexplained>> {
        let mut found: Vec<Unexplained> = Vec::new();
        let mut from = books.from;
        while from < books.to && found.len() < UNEXPLAINED_MAX {
            let rest = self.between(from, books.to, movements).await?;
            if rest.is_zero() {
                break;
            }
            let (mut low, mut high) = (from, books.to);
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                match self.between(from, middle, movements).await?.is_zero() {
                    true => low = middle,
                    false => high = middle,
                }
            }
            found.push(Unexplained { block: high, wei: self.between(low, high, movements).await? });
            from = high;
        }
        Ok(found)
    }

    async fn between(&mut self, from: u64, to: u64, movements: &[Movement]) -> Result<I256> {
        let (opening, closing) = (self.at(from).await?, self.at(to).await?);
        Ok(Reconciled::of(from, to, opening, movements, closing).unexplained)
    }
}
