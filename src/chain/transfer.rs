//! What an account had of a token at past blocks, and what the token says that came and went.
//!
//! Source: ERC-20, <https://eips.ethereum.org/EIPS/eip-20>.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Instant;

use alloy::eips::BlockId;
use alloy::primitives::{Address, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::{SolCall, SolEvent};
use anyhow::{Context, Result, ensure};

use super::abi::Erc20;
use super::follow::raw_log;
use super::{Chain, Reach, request};
use crate::market::event::RawLog;
use crate::market::ledger::Transfer;

/// The most blocks asked for at once.
const BLOCKS_MAX: u64 = 100_000;

impl Chain {
    /// Returns how much of `token` (the zero address: ETH) `owner` had at the end of block `number`.
    ///
    /// # Errors
    /// If the endpoint fails or has no state of that block any more.
    pub async fn balance_at(&self, token: Address, owner: Address, number: u64) -> Result<U256> {
        let at = BlockId::number(number);
        if token.is_zero() {
            let asked = self.provider.get_balance(owner).block_id(at).await;
            return asked
                .with_context(|| format!("read the balance of {owner} at block {number} from {}", self.endpoint));
        }
        let what = || format!("read the balance of {owner} in token {token} at block {number} from {}", self.endpoint);
        let call = Erc20::balanceOfCall { account: owner }.abi_encode();
        let asked = self.provider.call(request(Address::ZERO, token, call.into(), U256::ZERO)).block(at);
        let answer = asked.await.with_context(what)?;
        // Before there was a contract nobody had anything.
        if answer.is_empty() {
            return Ok(U256::ZERO);
        }
        Erc20::balanceOfCall::abi_decode_returns(&answer).with_context(what)
    }

    /// Returns the transfers of `token` from or to `owner` in those blocks that the endpoint finds, in chain order. Only for blocks
    /// that are there. Asks for as many blocks at once as the endpoint gives.
    ///
    /// # Errors
    /// If the endpoint fails, gives no logs of even one block, or sends what was not asked for. Calling again is safe.
    pub async fn transfers(
        &self,
        token: Address,
        owner: Address,
        blocks: RangeInclusive<u64>,
    ) -> Result<Vec<Transfer>> {
        let (mut next, last) = blocks.into_inner();
        let mut reach = Reach::new(BLOCKS_MAX);
        let mut transfers = Vec::new();
        while next <= last {
            let to = last.min(next + reach.blocks() - 1);
            let (blocks, asked) = (to - next + 1, Instant::now());
            match self.transfers_between(token, owner, next, to).await {
                Ok(found) => {
                    reach.answered(blocks, found.len(), asked.elapsed());
                    transfers.extend(found);
                    next = to + 1;
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if !reach.refused(blocks, &text) {
                        return Err(error);
                    }
                    tracing::info!(blocks, next = reach.blocks(), text, "the endpoint gives no logs of so many blocks");
                }
            }
        }
        Ok(transfers)
    }

    async fn transfers_between(&self, token: Address, owner: Address, from: u64, to: u64) -> Result<Vec<Transfer>> {
        let what = || format!("read the transfers of token {token} in blocks {from}..={to} from {}", self.endpoint);
        let all =
            Filter::new().from_block(from).to_block(to).address(token).event_signature(Erc20::Transfer::SIGNATURE_HASH);
        let word = owner.into_word();
        let mut found = BTreeMap::new();
        // The second question finds those that go from the account to itself again.
        for filter in [all.clone().topic1(word), all.topic2(word)] {
            for log in self.provider.get_logs(&filter).await.with_context(what)? {
                let log = raw_log(log).with_context(what)?;
                let transfer = transfer(&log).with_context(what)?;
                let asked = log.address == token
                    && (from..=to).contains(&transfer.block)
                    && [transfer.from, transfer.to].contains(&owner);
                ensure!(asked, "{}: got a log of {} in block {}: {transfer:?}", what(), log.address, log.block.number);
                found.insert(log.place(), transfer);
            }
        }
        Ok(found.into_values().collect())
    }
}

fn transfer(log: &RawLog) -> Result<Transfer> {
    let Erc20::Transfer { from, to, value } = Erc20::Transfer::decode_raw_log(log.topics.iter().copied(), &log.data)
        .with_context(|| format!("read log {} of block {} as a Transfer", log.index, log.block.number))?;
    Ok(Transfer { block: log.block.number, tx: log.tx, from, to, amount: value })
}
