//! The account's books against the chain: does what it has, of ETH and of each token it dealt in, follow to the smallest unit from what
//! came and went?
//!
//! Reads state at past blocks, so it takes an endpoint that keeps it; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use alloy::primitives::I256;
use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::chain::{Chain, Paid};
use crate::market::ledger::{
    Credit, Credited, Matched, Movement, Payment, Reconciled, Spent, Transfer, Why, mismatched, owed,
};
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
    /// In wei, or the token's smallest unit; negative: it went.
    pub amount: I256,
}

/// What the comparison found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// In wei.
    pub books: Reconciled,
    /// What the node did not sign.
    pub others: Vec<Other>,
    /// Where it lies, as far as it was looked for; empty when all is explained.
    pub unexplained: Vec<Unexplained>,
    /// Settled jobs of which the escrow paid out another sum than the payment.
    pub mismatched: Vec<String>,
    /// What the escrow credited the account of ETH and was not withdrawn, in wei.
    pub credited: U256,
    /// Each token in which the account was paid, or owed a payment, or paid for a job.
    pub tokens: Vec<CheckedToken>,
}

/// What the comparison found of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedToken {
    pub token: Address,
    /// In the token's smallest unit.
    pub books: Reconciled,
    /// What the token moved for other reasons than a job.
    pub others: Vec<Transfer>,
    /// As of [`Checked`].
    pub unexplained: Vec<Unexplained>,
    /// What the escrow credited the account, as the token refused it, and was not withdrawn.
    pub credited: U256,
    /// Payments and withdrawals that the token moved otherwise than the contracts say, or not at all.
    pub mismatched: Vec<String>,
}

impl Checked {
    /// Returns whether everything adds up.
    pub fn is_right(&self) -> bool {
        self.books.unexplained.is_zero() && self.mismatched.is_empty() && self.tokens.iter().all(CheckedToken::is_right)
    }
}

impl CheckedToken {
    /// Returns whether everything adds up.
    pub fn is_right(&self) -> bool {
        self.books.unexplained.is_zero() && self.mismatched.is_empty()
    }
}

/// Compares what `us` has at the newest block stored, of ETH and of each token, with what it had at the end of block `from`, or before
/// the first block in which the file knows that something of it came or went, and all that did since.
///
/// # Errors
/// If the store or the endpoint fails, it no longer has the state of those blocks, or it has another newest block than the store.
pub async fn check(store: &Store, chain: &Chain, us: Address, from: Option<u64>) -> Result<Checked> {
    let cursor = store.cursor().await?.context("nothing is indexed yet: there is nothing to compare")?;
    // One endpoint: what it tells is of one piece.
    let chain = chain.steady();
    let to = cursor.number;
    ensure!(
        from.is_none_or(|from| from <= to),
        "block {} is not stored yet: the newest is {to}",
        from.unwrap_or_default()
    );
    let spent = store.spent(us).await?;
    let mut by_token = BTreeMap::<Address, (Vec<Payment>, Vec<Credit>)>::new();
    for payment in store.payments(us).await? {
        by_token.entry(payment.token).or_default().0.push(payment);
    }
    for credit in store.credits(us).await? {
        by_token.entry(credit.token).or_default().1.push(credit);
    }
    let (in_eth, credits) = by_token.remove(&Address::ZERO).unwrap_or_default();
    // What it paid in ETH for jobs it posted is what those transactions sent.
    let paid = in_eth.iter().map(|payment| payment.movement).filter(|movement| movement.why != Why::Posted);
    let mut movements: Vec<Movement> = paid.chain(Credited::of(us, &in_eth, &credits).movements).collect();
    movements.extend(spent.iter().map(|tx| Movement { block: tx.block, why: Why::Gas, amount: tx.fee_wei }));
    let since = from.unwrap_or_else(|| before(movements.iter().map(|movement| movement.block), to));
    let unsettled = others(&chain, us, since, to, &spent).await?;
    // What the node signed and does not know the end of yet is its own all the same.
    let signed = store.signed_here(&unsettled.iter().map(|tx| tx.hash).collect::<Vec<_>>()).await?;
    let (ours, others): (Vec<Other>, Vec<Other>) = unsettled.into_iter().partition(|tx| signed.contains(&tx.hash));
    for (why, of) in [(Why::Gas, &ours), (Why::OtherGas, &others)] {
        for tx in of {
            movements.push(Movement { block: tx.block, why, amount: tx.fee_wei });
            movements.push(Movement { block: tx.block, why: Why::Sent, amount: tx.value });
        }
    }
    let (books, unexplained) = reconciled(&chain, us, Address::ZERO, since..=to, &movements).await?;
    let mut tokens = Vec::with_capacity(by_token.len());
    for (token, (payments, credits)) in by_token {
        tokens.push(check_token(&chain, us, token, from, to, &payments, &credits).await?);
    }
    let header = chain.header(to).await?;
    ensure!(
        header.is_some_and(|header| header.block.hash == cursor.hash),
        "{} has another block {to} than the database: try again once the node has caught up",
        chain.name(),
    );
    let (credited, mismatched) = (owed(&credits), mismatched(&store.accounts(us).await?));
    Ok(Checked { books, others, unexplained, mismatched, credited, tokens })
}

async fn check_token(
    chain: &Chain,
    us: Address,
    token: Address,
    from: Option<u64>,
    to: u64,
    payments: &[Payment],
    credits: &[Credit],
) -> Result<CheckedToken> {
    let credited = owed(credits);
    let first = payments.iter().map(|payment| payment.movement.block).chain(credits.iter().map(|credit| credit.block));
    let from = from.unwrap_or_else(|| before(first, to));
    let blocks = from + 1..=to;
    let payments: Vec<Payment> =
        payments.iter().filter(|payment| blocks.contains(&payment.movement.block)).copied().collect();
    let credits: Vec<Credit> = credits.iter().filter(|credit| blocks.contains(&credit.block)).copied().collect();
    let transfers = chain.transfers(token, us, blocks).await?;
    let matched = Matched::of(us, chain.contracts().payment_escrow, &payments, &credits, &transfers);
    let Matched { movements, others, mismatched } = matched;
    let (books, unexplained) = reconciled(chain, us, token, from..=to, &movements).await?;
    Ok(CheckedToken { token, books, others, unexplained, credited, mismatched })
}

/// Returns the block before the first in which something moved; `newest` where nothing did.
fn before(moved_in: impl IntoIterator<Item = u64>, newest: u64) -> u64 {
    moved_in.into_iter().min().map_or(newest, |block| block.saturating_sub(1).min(newest))
}

/// Compares what `us` has of `token` (the zero address: ETH) at both ends of `blocks`, and finds where movements are missing.
async fn reconciled(
    chain: &Chain,
    us: Address,
    token: Address,
    blocks: RangeInclusive<u64>,
    movements: &[Movement],
) -> Result<(Reconciled, Vec<Unexplained>)> {
    let (from, to) = blocks.into_inner();
    let mut balances = Balances { chain, us, token, known: BTreeMap::new() };
    let (opening, closing) = (balances.at(from).await?, balances.at(to).await?);
    let books = Reconciled::of(from, to, opening, movements, closing);
    let unexplained = balances.unexplained(&books, movements).await?;
    Ok((books, unexplained))
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

/// What the account had of one token, as far as it was asked for.
struct Balances<'a> {
    chain: &'a Chain,
    us: Address,
    token: Address,
    known: BTreeMap<u64, U256>,
}

impl Balances<'_> {
    async fn at(&mut self, block: u64) -> Result<U256> {
        if let Some(known) = self.known.get(&block) {
            return Ok(*known);
        }
        let balance = self.chain.balance_at(self.token, self.us, block).await?;
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
            found.push(Unexplained { block: high, amount: self.between(low, high, movements).await? });
            from = high;
        }
        Ok(found)
    }

    async fn between(&mut self, from: u64, to: u64, movements: &[Movement]) -> Result<I256> {
        let (opening, closing) = (self.at(from).await?, self.at(to).await?);
        Ok(Reconciled::of(from, to, opening, movements, closing).unexplained)
    }
}
