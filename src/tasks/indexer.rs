//! Follows the chain into the store: extend while the next block continues ours, rewind to the fork when it does not. Beside each new
//! block it reads the nonce of the host's account, for whoever signs.
//!
//! Never decides anything about a job.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::sync::watch;

use super::{LONG_PASS_MAX, NonceRead, Pass, Task};
use crate::chain::{Chain, Reach};
use crate::http::{Health, Kind, Metrics};
use crate::market::coverage::Coverage;
use crate::market::event::{Header, Range};
use crate::market::types::{Address, BlockRef};
use crate::store::{Correction, Finality, Store};

pub use super::INDEXER as PART;

/// At the head of the chain, how long a block that was stored is let be before it is noted what is final.
const BREATH: Duration = Duration::from_millis(25);
/// How long a block waits at most for the nonce that is read beside it.
const NONCE_MAX: Duration = Duration::from_millis(500);
/// The most blocks whose logs are asked for at once on an endpoint's word.
const CLAIMED_BLOCKS_MAX: u64 = 10_000;

/// Stretches that are tried again at once.
const DOUBTS_AT_ONCE: usize = 10;

/// Which blocks are proven before they are stored; all others are stored on an endpoint's word first and proven afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prove {
    /// Those above the final block.
    #[default]
    Live,
    All,
}

/// What the configuration says of following the chain.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Nothing of ours lies before this block.
    pub start_block: u64,
    pub prove: Prove,
    /// How deep a block lies that is final where the endpoint calls none so; 0: none is.
    pub finality_depth: u64,
    /// The most blocks whose receipts are read in one step.
    pub blocks_per_step: u64,
    /// How long blocks that could not be proven are let be before that is tried again.
    pub doubt_again: Duration,
}

/// The task's edges.
pub struct Indexer {
    /// All endpoints.
    pool: Chain,
    /// The one of the present step.
    chain: Chain,
    reach: Reach,
    /// Ranges with blocks that could not be proven, to be tried again now, and when the next are.
    doubts: Vec<Coverage>,
    doubt_again: Instant,
    store: Store,
    health: Health,
    metrics: Metrics,
    /// How many times code was seen to be replaced.
    replaced: usize,
    settings: Settings,
    /// Whose nonce is read with each new block, and who is told.
    account: Option<(Address, watch::Sender<NonceRead>)>,
}

impl Task for Indexer {
    const NAME: &'static str = "indexer";
    const HURRIES: bool = true;

    /// Takes one step towards the head: a rewind, or an extension of at most `blocks_per_step` blocks; at the head, proves as many
    /// of those that are not yet.
    ///
    /// # Errors
    /// If the endpoint or the store fails, the chain moved meanwhile, or facts conflict. Nothing is half-done.
    async fn pass(&mut self) -> Result<Pass> {
        let stepped = self.step().await;
        match &stepped {
            Ok(_) => self.tell_replaced().await?,
            Err(error) => self.health.ill(PART, format!("{error:#}")),
        }
        stepped
    }

    fn pass_max(&self) -> Duration {
        LONG_PASS_MAX
    }
}

impl Indexer {
    /// Returns the task, which has not begun.
    pub fn new(chain: Chain, store: Store, health: Health, metrics: Metrics, settings: Settings) -> Self {
        let reach = Reach::new(CLAIMED_BLOCKS_MAX);
        let doubt_again = Instant::now() + settings.doubt_again;
        let (doubts, account) = (Vec::new(), None);
        let (pool, replaced) = (chain.clone(), 0);
        Self { pool, chain, reach, doubts, doubt_again, store, health, metrics, replaced, settings, account }
    }

    /// Has the nonce of `account` read beside each new block at the head. Returns what was read last: of no older block than the newest
    /// that is stored, unless the node is catching up.
    pub fn read_nonce_of(&mut self, account: Address) -> watch::Receiver<NonceRead> {
        let (told, read) = watch::channel(None);
        self.account = Some((account, told));
        read
    }

    async fn step(&mut self) -> Result<Pass> {
        // All of one step is asked of one endpoint: two may be on different branches, or at different heads.
        self.chain = self.pool.steady();
        let head = self.chain.head().await?;
        self.metrics.head_block.set(head.block.number as i64);
        let cursor = self.store.cursor().await?;
        self.check_finality().await?;
        if let Some(cursor) = cursor
            && head.parent != cursor.hash
            && let Some(fork) = self.fork(cursor, head.block.number).await?
        {
            self.tell_nonce(None);
            let jobs = self.store.rewind(fork).await?;
            self.metrics.reorgs.inc();
            tracing::warn!(from = cursor.number, to = fork, jobs, "the chain reorganised: rewound");
            return Ok(Pass::Again);
        }
        let from = cursor.map_or(self.settings.start_block, |cursor| cursor.number + 1);
        if from > head.block.number {
            self.health.well(PART);
            return self.confirm().await;
        }
        let last = self.last_final(head.block.number).await?;
        let began = Instant::now();
        let range = match last {
            // What is proven in one step needs no detour.
            Some(last)
                if self.settings.prove == Prove::Live && from + self.settings.blocks_per_step <= last.block.number =>
            {
                self.claimed(from, last.block.number).await?
            }
            _ => {
                let to = head.block.number.min(from + self.settings.blocks_per_step - 1);
                let (range, ()) = tokio::join!(self.proven(from, to), self.read_nonce(head.block.number, to));
                range?
            }
        };
        let read = began.elapsed();
        let extended = self.store.extend(&range).await?;
        let (blocks, logs, stored) = (range.headers.len(), extended.logs, began.elapsed() - read);
        tracing::debug!(from, blocks, logs, ?read, ?stored, "followed the chain");
        self.note(&range);
        self.metrics.logs.inc_by(extended.logs as u64);
        self.metrics.undecoded_logs.inc_by(extended.undecoded.len() as u64);
        for (tx, index) in &extended.undecoded {
            tracing::error!(%tx, index, "a log of our contracts could not be decoded: kept raw");
        }
        let at = range.headers.last().map_or(from, |header| header.block.number);
        self.metrics.indexed_block.set(at as i64);
        if at == head.block.number {
            // Whoever claims for this block writes first: there is one writer.
            self.health.well(PART);
            tokio::time::sleep(BREATH).await;
        }
        if let Some(last) = last {
            self.store.set_final(last.block).await?;
        }
        if at == head.block.number {
            if let Some(safe) = self.chain.safe().await? {
                self.store.set_safe(safe.block).await?;
            }
            if extended.logs > 0 {
                self.store.tidy().await?;
            }
        } else {
            self.health.ill(PART, format!("{} blocks behind", head.block.number - at));
        }
        Ok(Pass::Again)
    }

    /// Reads the nonce at the newest block, where that is the last of those that are being read: whoever signs for it has no time to
    /// ask. What cannot be read now is asked for then.
    async fn read_nonce(&self, head: u64, to: u64) {
        let Some((account, _)) = self.account.as_ref().filter(|_| to == head) else { return };
        let read = tokio::time::timeout(NONCE_MAX, self.chain.nonce_at(*account, head)).await;
        let read = read.unwrap_or_else(|late| Err(late.into()));
        let read =
            read.inspect_err(|error| tracing::debug!(head, error = format!("{error:#}"), "no nonce with the block"));
        self.tell_nonce(read.ok());
    }

    fn tell_nonce(&self, nonce: Option<u64>) {
        if let Some((_, told)) = &self.account {
            told.send_replace(nonce.map(|nonce| (nonce, Instant::now())));
        }
    }

    /// Reads final blocks from `from` on at the endpoint's word, as many as it gives in one answer.
    async fn claimed(&mut self, from: u64, last: u64) -> Result<Range> {
        loop {
            let to = last.min(from + self.reach.blocks() - 1);
            let (blocks, asked) = (to - from + 1, Instant::now());
            let error = match self.chain.claimed(from, to).await {
                Ok(range) => {
                    self.reach.answered(blocks, range.logs.len(), asked.elapsed());
                    return Ok(range);
                }
                Err(error) => error,
            };
            let text = format!("{error:#}");
            if !self.reach.refused(blocks, &text) {
                // It gives none at all: what it has receipts of needs none.
                let to = last.min(from + self.settings.blocks_per_step - 1);
                return self.proven(from, to).await.map_err(|_| error);
            }
            tracing::info!(blocks, next = self.reach.blocks(), text, "the endpoint gives no logs of so many blocks");
        }
    }

    /// Returns the newest final block: as the chain says, or by depth where it says nothing.
    async fn last_final(&self, head: u64) -> Result<Option<Header>> {
        match self.chain.finalized().await? {
            Some(last) => Ok(Some(last)),
            None if self.settings.finality_depth > 0 && head >= self.settings.finality_depth => {
                self.chain.header(head - self.settings.finality_depth).await
            }
            None => Ok(None),
        }
    }

    /// Reads some of the blocks again that are stored on an endpoint's word, newest first and those with logs before all others,
    /// and proves them; and now and then those that could not be proven.
    async fn confirm(&mut self) -> Result<Pass> {
        let claimed = self.store.newest_claimed().await?;
        let (next, claimed) = match claimed {
            Some(next) => (next, true),
            None => match self.next_doubt().await? {
                Some(next) => (next, false),
                None => return Ok(Pass::Idle),
            },
        };
        let from = next.from.max((next.to + 1).saturating_sub(self.settings.blocks_per_step));
        // And the block after, whose hash a commitment may wait for.
        let newest = self.store.cursor().await?.map_or(next.to, |cursor| cursor.number);
        let range = self.proven(from, newest.min(next.to + 1)).await?;
        for correction in self.store.confirm(&range).await? {
            self.metrics.corrected_blocks.inc();
            let Correction { block, logs_before, logs } = correction;
            tracing::error!(
                block = block.number,
                logs_before,
                logs,
                "an endpoint had told other logs of a block than are proven: corrected"
            );
        }
        if claimed {
            self.note(&range);
            return Ok(Pass::Again);
        }
        if range.coverage.iter().all(|range| range.level.is_proven()) {
            tracing::info!(from, to = next.to, "blocks that could not be proven are now");
            // What hindered it is over, and perhaps for others too.
            self.doubt_again = Instant::now();
            if from > next.from {
                self.doubts.push(Coverage { to: from - 1, ..next });
            }
        }
        let more = !self.doubts.is_empty() || self.doubt_again <= Instant::now();
        Ok(if more { Pass::Again } else { Pass::Idle })
    }

    /// Returns blocks that could not be proven before, when it is time to try them again: of each of the newest stretches the end.
    async fn next_doubt(&mut self) -> Result<Option<Coverage>> {
        if self.doubts.is_empty() && self.doubt_again <= Instant::now() {
            self.doubt_again = Instant::now() + self.settings.doubt_again;
            let mut doubts = self.store.coverage().await?;
            doubts.retain(|range| !range.level.is_proven());
            self.doubts = doubts.split_off(doubts.len().saturating_sub(DOUBTS_AT_ONCE));
        }
        Ok(self.doubts.pop())
    }

    /// Reads blocks and proves them; where this endpoint does not, at each other one that does.
    async fn proven(&self, from: u64, to: u64) -> Result<Range> {
        let whole = |range: &Range| range.coverage.iter().all(|range| range.level.is_proven());
        let range = self.chain.range(from, to).await?;
        if whole(&range) {
            return Ok(range);
        }
        for other in self.pool.each().into_iter().filter(|other| other.name() != self.chain.name()) {
            match other.range(from, to).await {
                Ok(better) if whole(&better) && better.headers == range.headers => {
                    let reason = range.coverage.iter().find_map(|range| range.reason.as_deref());
                    tracing::error!(
                        from,
                        to,
                        endpoint = self.chain.name(),
                        reason,
                        by = other.name(),
                        "proven elsewhere"
                    );
                    return Ok(better);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(error = format!("{error:#}"), "no better proof there"),
            }
        }
        Ok(range)
    }

    /// Raises the alarm where a contract's code was replaced.
    async fn tell_replaced(&mut self) -> Result<()> {
        let replaced = self.store.replaced_code().await?;
        self.metrics.upgraded_contracts.set(replaced.len() as i64);
        for (block, contract, event) in replaced.iter().skip(self.replaced) {
            tracing::error!(block, %contract, event, "a contract's code was replaced, or may be: its logs may mean something else");
        }
        self.replaced = replaced.len();
        Ok(())
    }

    /// Counts what is proven and says what is not.
    fn note(&self, range: &Range) {
        for Coverage { from, to, level, reason } in &range.coverage {
            self.metrics.blocks.get_or_create(&Kind::of(level.name())).inc_by(to - from + 1);
            if let Some(reason) = reason {
                let level = level.name();
                tracing::warn!(
                    from,
                    to,
                    level,
                    reason,
                    "which logs a block has is not proven: its jobs are not claimed"
                );
            }
        }
    }

    /// Fails while an endpoint contradicts what the chain called final; one that has the final block again ends that.
    async fn check_finality(&self) -> Result<()> {
        let Some(Finality { block, violated: Some(how), .. }) = self.store.finality().await? else { return Ok(()) };
        let again = self.chain.header(block.number).await?;
        ensure!(again.is_some_and(|header| header.block == block), "{how}");
        tracing::warn!(block = block.number, "the endpoint has the final block again");
        self.store.set_violated(None).await
    }

    /// Returns the newest stored block that the endpoint still has, when it is not the cursor; `None` when nothing
    /// forked. An endpoint that is merely behind us agrees on what it has and is not a fork.
    async fn fork(&self, cursor: BlockRef, head: u64) -> Result<Option<u64>> {
        let mut number = cursor.number.min(head);
        let shorter = head < cursor.number;
        let last = self.store.finality().await?.map(|finality| finality.block);
        while let Some(stored) = self.store.canonical_hash(number).await? {
            let header =
                self.chain.header(number).await?.with_context(|| format!("the endpoint lost block {number}"))?;
            if header.block.hash == stored {
                return Ok((number < cursor.number.min(head)).then_some(number));
            }
            ensure!(
                !shorter,
                "the endpoint is {} blocks behind and has another block {number}: waiting until its chain is as long as ours",
                cursor.number - head
            );
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
                number > self.settings.start_block,
                "the chain differs from the stored one down to block {number}: another chain"
            );
            number -= 1;
        }
        anyhow::bail!(
            "the chain differs from all stored blocks down to {number}: another chain, or a reorg past the first block stored"
        )
    }
}
