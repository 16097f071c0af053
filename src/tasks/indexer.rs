//! Follows the chain into the store: extend while the next block continues ours, rewind to the fork when it does not.
//!
//! Never decides anything about a job.

use anyhow::{Context, Result, ensure};

use super::{Pass, Task};
use crate::chain::Chain;
use crate::http::{Health, Kind, Metrics};
use crate::market::types::BlockRef;
use crate::store::{Finality, Store};

pub use super::INDEXER as PART;

/// The task's edges and limits.
pub struct Indexer {
    pub chain: Chain,
    pub store: Store,
    pub health: Health,
    pub metrics: Metrics,
    /// Nothing of ours lies before this block.
    pub start_block: u64,
    /// The most blocks of one step.
    pub blocks_per_step: u64,
}

impl Task for Indexer {
    const NAME: &'static str = "indexer";

    /// Takes one step towards the head: a rewind, or an extension of at most `blocks_per_step` blocks.
    ///
    /// # Errors
    /// If the endpoint or the store fails, the chain moved meanwhile, or facts conflict. Nothing is half-done.
    async fn pass(&mut self) -> Result<Pass> {
        let stepped = self.step().await;
        if let Err(error) = &stepped {
            self.health.ill(PART, format!("{error:#}"));
        }
        stepped
    }
}

impl Indexer {
    async fn step(&self) -> Result<Pass> {
        let head = self.chain.head().await?;
        self.metrics.head_block.set(head.block.number as i64);
        let cursor = self.store.cursor().await?;
        self.check_finality().await?;
        if let Some(cursor) = cursor
            && let Some(fork) = self.fork(cursor, head.block.number).await?
        {
            let jobs = self.store.rewind(fork).await?;
            self.metrics.reorgs.inc();
            tracing::warn!(from = cursor.number, to = fork, jobs, "the chain reorganised: rewound");
            return Ok(Pass::Again);
        }
        let from = cursor.map_or(self.start_block, |cursor| cursor.number + 1);
        let behind = (head.block.number + 1).saturating_sub(from);
        if behind == 0 {
            self.health.well(PART);
            return Ok(Pass::Idle);
        }
        let to = head.block.number.min(from + self.blocks_per_step - 1);
        let range = self.chain.range(from, to).await?;
        let extended = self.store.extend(&range).await?;
        for (header, proof) in range.headers.iter().zip(&range.proofs) {
            self.metrics.blocks.get_or_create(&Kind::of(proof.level.name())).inc();
            if let Some(reason) = &proof.reason {
                let (block, level) = (header.block.number, proof.level.name());
                tracing::warn!(block, level, reason, "which logs a block has is not proven: its jobs are not claimed");
            }
        }
        self.metrics.indexed_block.set(to as i64);
        self.metrics.logs.inc_by(extended.logs as u64);
        self.metrics.undecoded_logs.inc_by(extended.undecoded.len() as u64);
        for (tx, index) in &extended.undecoded {
            tracing::error!(%tx, index, "a log of our contracts could not be decoded: kept raw");
        }
        if to == head.block.number {
            if let Some(last) = self.chain.finalized().await? {
                self.store.set_final(last.block).await?;
            }
            self.health.well(PART);
        } else {
            self.health.ill(PART, format!("{} blocks behind", head.block.number - to));
        }
        Ok(Pass::Again)
    }

    /// Fails while an endpoint contradicts what the chain called final; one that has the final block again ends that.
    async fn check_finality(&self) -> Result<()> {
        let Some(Finality { block, violated: Some(how) }) = self.store.finality().await? else { return Ok(()) };
        let again = self.chain.header(block.number).await?;
        ensure!(again.is_some_and(|header| header.block == block), "{how}");
        tracing::warn!(block = block.number, "the endpoint has the final block again");
        self.store.set_violated(None).await
    }

    /// Returns the newest stored block that the endpoint still has, when it is not the cursor; `None` when nothing
    /// forked. An endpoint that is merely behind us agrees on what it has and is not a fork.
    async fn fork(&self, cursor: BlockRef, head: u64) -> Result<Option<u64>> {
        let mut number = cursor.number.min(head);
        let last = self.store.finality().await?.map(|finality| finality.block);
        while let Some(stored) = self.store.canonical_hash(number).await? {
            let header =
                self.chain.header(number).await?.with_context(|| format!("the endpoint lost block {number}"))?;
            if header.block.hash == stored {
                return Ok((number < cursor.number.min(head)).then_some(number));
            }
            if let Some(last) = last
                && number <= last.number
            {
                let how = format!(
                    "block {number} was final as {stored}, the endpoint has {}: nothing is claimed or sent",
                    header.block.hash
                );
                tracing::error!(block = number, "finality is violated: {how}");
                self.store.set_violated(Some(&how)).await?;
                anyhow::bail!("{how}");
            }
            ensure!(
                number > self.start_block,
                "the chain differs from the stored one down to block {number}: another chain"
            );
            number -= 1;
        }
        anyhow::bail!(
            "the chain differs from all stored blocks down to {number}: another chain, or a reorg past the first block stored"
        )
    }
}
