//! Reading blocks and their logs in chain order, as far as they can be proven (`chain/prove.rs`).

use std::collections::HashMap;
use std::time::Duration;

use alloy::consensus::BlockHeader;
use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256};
use alloy::providers::{Provider, ProviderBuilder, WsConnect};
use alloy::rpc::types::{Block, Filter, Log};
use alloy::transports::TransportResult;
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::prove::HASH_DIFFERS;
use super::{Chain, decode, prove};
use crate::market::coverage::{self, Coverage};
use crate::market::event::{Header, Level, Range, RawLog};
use crate::market::job::{Fact, Job};
use crate::market::types::{BlockRef, JobId, UnixSeconds};

/// Headers asked for in one JSON-RPC batch.
const HEADERS_PER_BATCH: usize = 100;
/// Blocks whose receipts are asked for in one JSON-RPC batch: 100 logs are about 80 kB.
const RECEIPTS_PER_BATCH: usize = 10;
/// Blocks read at once when a job is looked up without a store.
const BLOCKS_PER_READ: u64 = 100;

impl Chain {
    /// Returns the newest header the endpoint knows.
    pub async fn head(&self) -> Result<Header> {
        let block = self.block(BlockNumberOrTag::Latest).await.context("read the newest block")?;
        block.context("the endpoint has no newest block")
    }

    /// Returns the newest header that the chain calls final, or `None` where it calls none so.
    pub async fn finalized(&self) -> Result<Option<Header>> {
        self.called(BlockNumberOrTag::Finalized).await.context("read the newest final block")
    }

    /// Returns the newest header that the chain calls safe, or `None` where it calls none so.
    pub async fn safe(&self) -> Result<Option<Header>> {
        self.called(BlockNumberOrTag::Safe).await.context("read the newest safe block")
    }

    async fn called(&self, tag: BlockNumberOrTag) -> Result<Option<Header>> {
        match self.block(tag).await {
            // An endpoint that does not know the word, or a chain that calls no block so.
            Err(error) if error.is_error_resp() => Ok(None),
            answered => Ok(answered?),
        }
    }

    /// Returns the header at `number`, or `None` past the endpoint's head.
    pub async fn header(&self, number: u64) -> Result<Option<Header>> {
        self.block(BlockNumberOrTag::Number(number)).await.with_context(|| format!("read block {number}"))
    }

    async fn block(&self, tag: BlockNumberOrTag) -> TransportResult<Option<Header>> {
        Ok(self.provider.get_block_by_number(tag).await?.map(|block| header(&block)))
    }

    /// Returns blocks `from..=to` with all logs of our contracts in them, in chain order. The headers link to each other; the
    /// caller checks that the first continues what it has.
    ///
    /// Which logs a block has is taken from its bloom and its receipts, both checked against its hash (`chain/prove.rs`), never from
    /// what the endpoint finds: a log that it leaves out is not missed. A block that cannot be proven, because the endpoint
    /// has no receipts of it or others than the header's, gets what the endpoint says, and the reason.
    ///
    /// # Errors
    /// If the endpoint fails, lacks a block, or its chain moved during the reading. Calling again is safe.
    pub async fn range(&self, from: u64, to: u64) -> Result<Range> {
        let what = || format!("read blocks {from}..={to} from {}", self.endpoint);
        let blocks = self.blocks(from..=to).await.with_context(what)?;
        for pair in blocks.windows(2) {
            let [parent, child] = [header(&pair[0]), header(&pair[1])];
            ensure!(
                child.parent == parent.block.hash,
                "the chain moved: block {} has another parent",
                child.block.number
            );
        }
        let ours = self.contracts.indexed();
        let mut range = Range::default();
        let may_have: Vec<&Block> =
            blocks.iter().filter(|block| !prove::excludes(&block.header.logs_bloom(), &ours)).collect();
        let mut batches = may_have.chunks(RECEIPTS_PER_BATCH);
        let mut receipts = HashMap::new();
        for block in &blocks {
            let header = header(block);
            if !prove::excludes(&block.header.logs_bloom(), &ours) && !receipts.contains_key(&header.block.hash) {
                // One batch at a time: receipts are much larger than what is kept of them.
                receipts = self.receipts(batches.next().unwrap_or_default()).await.with_context(what)?;
            }
            let receipts = receipts.remove(&header.block.hash);
            let (level, reason, logs) = match judged(&block.header, receipts, &ours) {
                Ok((level, logs)) => (level, None, logs),
                Err((level, reason)) => {
                    (level, Some(reason), self.claimed_logs(header.block, &ours).await.with_context(what)?)
                }
            };
            coverage::push(&mut range.coverage, Coverage::of_block(header.block.number, level, reason));
            range.headers.push(header);
            range.logs.extend(logs);
        }
        Ok(range)
    }

    /// Returns blocks `from..=to` with the logs of our contracts that the endpoint finds in them: fast, and nothing but its word.
    /// Only for blocks that are final.
    ///
    /// # Errors
    /// If the endpoint fails, lacks a block, or contradicts itself. Calling again is safe.
    pub async fn claimed(&self, from: u64, to: u64) -> Result<Range> {
        let what = || format!("read the logs of blocks {from}..={to} from {}", self.endpoint);
        let filter = Filter::new().from_block(from).to_block(to).address(self.contracts.indexed());
        let logs = self.provider.get_logs(&filter).await.with_context(what)?;
        let mut logs = logs.into_iter().map(raw_log).collect::<Result<Vec<_>>>().with_context(what)?;
        logs.sort_by_key(RawLog::place);
        let with_logs = logs.iter().flat_map(|log| [log.block.number, log.block.number + 1]);
        let mut wanted: Vec<u64> = with_logs.chain([from, to]).filter(|number| (from..=to).contains(number)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let headers: Vec<Header> = self.blocks(wanted).await.with_context(what)?.iter().map(header).collect();
        for log in &logs {
            let at = headers.binary_search_by_key(&log.block.number, |header| header.block.number);
            ensure!(
                at.is_ok_and(|at| headers[at].block == log.block),
                "{}: a log is of block {} ({}), which is not there",
                what(),
                log.block.number,
                log.block.hash
            );
        }
        Ok(Range { headers, coverage: vec![Coverage::of(from, to, Level::Claimed, None)], logs })
    }

    /// Returns what the endpoint says that our contracts logged in a block.
    async fn claimed_logs(&self, block: BlockRef, ours: &[Address]) -> Result<Vec<RawLog>> {
        let filter = Filter::new().at_block_hash(block.hash).address(ours.to_vec());
        let logs = self.provider.get_logs(&filter).await?;
        let mut logs = logs.into_iter().map(raw_log).collect::<Result<Vec<_>>>()?;
        logs.sort_by_key(RawLog::place);
        ensure!(
            logs.iter().all(|log| log.block == block),
            "the chain moved: logs of block {} are of another",
            block.number
        );
        Ok(logs)
    }

    /// Returns all receipts of each block, by its hash, or why the endpoint gives none.
    ///
    /// # Errors
    /// If the endpoint does not answer.
    async fn receipts(&self, blocks: &[&Block]) -> Result<HashMap<B256, Result<Vec<prove::Receipt>>>> {
        let mut batch = self.client.new_batch();
        let calls = blocks
            .iter()
            .map(|block| {
                let hash = block.header.hash;
                let call = batch.add_call::<_, Option<Vec<prove::Receipt>>>("eth_getBlockReceipts", &(hash,))?;
                Ok((hash, call))
            })
            .collect::<TransportResult<Vec<_>>>()?;
        batch.send().await?;
        let mut receipts = HashMap::with_capacity(blocks.len());
        for (block, call) in calls {
            let answer = match call.await {
                Ok(Some(all)) => Ok(all),
                Ok(None) => Err(anyhow::anyhow!("the endpoint has no receipts of the block")),
                Err(error) if error.is_error_resp() || error.is_deser_error() => {
                    Err(anyhow::Error::new(error).context("read the block's receipts"))
                }
                Err(error) => return Err(error.into()),
            };
            receipts.insert(block, answer);
        }
        Ok(receipts)
    }

    /// Returns blocks `from..=to` with all that proves which logs they have, for a bundle.
    ///
    /// # Errors
    /// If the endpoint fails, lacks a block, or has no receipts of one that may have logs of ours.
    pub(super) async fn evidence(&self, from: u64, to: u64) -> Result<Vec<Evidence>> {
        let blocks = self.blocks(from..=to).await?;
        let ours = self.contracts.indexed();
        let may_have: Vec<&Block> =
            blocks.iter().filter(|block| !prove::excludes(&block.header.logs_bloom(), &ours)).collect();
        let mut receipts = HashMap::new();
        for blocks in may_have.chunks(RECEIPTS_PER_BATCH) {
            receipts.extend(self.receipts(blocks).await?);
        }
        let evidence = |block: Block| {
            let receipts = receipts.remove(&block.header.hash).transpose();
            let receipts = receipts.with_context(|| format!("block {}", block.header.number))?;
            Ok(Evidence { header: block.header, receipts })
        };
        blocks.into_iter().map(evidence).collect()
    }

    /// Returns the blocks of those numbers.
    async fn blocks(&self, numbers: impl IntoIterator<Item = u64>) -> Result<Vec<Block>> {
        let numbers: Vec<u64> = numbers.into_iter().collect();
        let mut blocks: Vec<Block> = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(HEADERS_PER_BATCH) {
            let mut batch = self.client.new_batch();
            let calls = numbers
                .iter()
                .map(|number| {
                    let number = BlockNumberOrTag::Number(*number);
                    batch.add_call::<_, Option<Block>>("eth_getBlockByNumber", &(number, false))
                })
                .collect::<Result<Vec<_>, _>>()?;
            batch.send().await?;
            for (number, call) in numbers.iter().zip(calls) {
                let block = call.await?.with_context(|| format!("the endpoint lacks block {number}"))?;
                ensure!(block.header.number == *number, "asked for block {number}, got {}", block.header.number);
                blocks.push(block);
            }
        }
        Ok(blocks)
    }

    /// Watches for new blocks over WebSocket and wakes the returned receiver at each. Only a wake-up: it reconnects by
    /// itself, may miss blocks, and polling stays the truth.
    pub fn wake_on_blocks(endpoint: String) -> watch::Receiver<u64> {
        let (wake, receiver) = watch::channel(0);
        let name = super::shown(&endpoint);
        tokio::spawn(async move {
            while !wake.is_closed() {
                if let Err(error) = forward_heads(&endpoint, &wake).await {
                    tracing::debug!(endpoint = name, error = format!("{error:#}"), "block subscription ended");
                }
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
        receiver
    }

    /// Returns `job` as the logs of blocks `from..` to the head tell it, or `None` when it is not posted there.
    ///
    /// # Errors
    /// If the endpoint fails or the logs contradict each other.
    pub async fn job(&self, id: JobId, from: u64) -> Result<Option<Job>> {
        let head = self.head().await?.block.number;
        let mut facts = Vec::new();
        let mut next = from;
        while next <= head {
            let last = head.min(next + BLOCKS_PER_READ - 1);
            for log in self.range(next, last).await?.logs {
                if let Ok(event) = decode::event(&self.contracts, &log)
                    && event.job() == Some(id)
                {
                    facts.push(Fact::Chain { event, block: log.block });
                }
            }
            next = last + 1;
        }
        Ok(Job::fold(id, &facts)?)
    }
}

async fn forward_heads(endpoint: &str, wake: &watch::Sender<u64>) -> Result<()> {
    let provider = ProviderBuilder::new().connect_ws(WsConnect::new(endpoint)).await?;
    let mut heads = provider.subscribe_blocks().await?.into_stream();
    while let Some(head) = heads.next().await {
        wake.send(head.number()).ok().context("nobody waits for blocks any more")?;
    }
    bail!("the subscription closed")
}

fn header(block: &Block) -> Header {
    told(&block.header)
}

/// Returns of a header what we keep.
pub(super) fn told(header: &alloy::rpc::types::Header) -> Header {
    Header {
        block: BlockRef { number: header.number(), hash: header.hash },
        parent: header.parent_hash(),
        time: UnixSeconds(header.timestamp()),
    }
}

/// A block's header, and its receipts where its bloom does not leave our contracts out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Evidence {
    pub header: alloy::rpc::types::Header,
    pub receipts: Option<Vec<prove::Receipt>>,
}

/// Returns how much is proven of a block and its logs, or why not more.
pub(super) fn judged(
    header: &alloy::rpc::types::Header,
    receipts: Option<Result<Vec<prove::Receipt>>>,
    ours: &[Address],
) -> Result<(Level, Vec<RawLog>), (Level, String)> {
    let computed = header.inner.hash_slow();
    if computed != header.hash {
        return Err((Level::Claimed, format!("{HASH_DIFFERS} {computed}, the endpoint says {}", header.hash)));
    }
    if prove::excludes(&header.logs_bloom(), ours) {
        return Ok((Level::Absent, Vec::new()));
    }
    let linked = |error: anyhow::Error| (Level::Linked, format!("{error:#}"));
    let receipts = receipts.context("its receipts are missing").and_then(|receipts| receipts).map_err(linked)?;
    let logs = prove::logs(told(header).block, header.receipts_root(), &receipts, ours).map_err(linked)?;
    Ok((Level::Complete, logs))
}

pub(super) fn raw_log(log: Log) -> Result<RawLog> {
    ensure!(!log.removed, "the endpoint sent a removed log");
    Ok(RawLog {
        block: BlockRef {
            number: log.block_number.context("a log without block number")?,
            hash: log.block_hash.context("a log without block hash")?,
        },
        index: log.log_index.context("a log without index")?,
        tx: log.transaction_hash.context("a log without transaction")?,
        address: log.address(),
        topics: log.topics().to_vec(),
        data: log.data().data.clone(),
    })
}
