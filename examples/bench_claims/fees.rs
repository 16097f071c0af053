//! What becomes of a host's transactions when gas costs many times as much from one block to the next, and then no longer does.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy::primitives::U64;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mined;
use crate::node::Host;
use crate::place::Place;

/// Wei per gas that each block burns, and how much more those of the spike do.
const BASE_FEE: u64 = 1_000_000_000;
const SPIKE: u64 = 20;
/// The host's ceiling: it may outbid the spike.
const CEILING: u64 = 50 * BASE_FEE;
/// Jobs posted with each block, of one second.
const JOBS_PER_BLOCK: u64 = 2;
/// Blocks before the first jobs: for as long the host may go by the fees that it read at its start.
const BLOCKS_BEFORE_JOBS: u64 = 12;
/// Blocks before the spike, and from its end until the count.
const BLOCKS_BEFORE: u64 = 30;
const BLOCKS_AFTER: u64 = 90;
/// Blocks at the end without jobs: for what is under way.
const BLOCKS_WITHOUT_JOBS: u64 = 30;
/// A transaction is stuck that waits for longer.
const WAIT_SECONDS_MAX: u64 = 60;

/// How it went.
#[derive(Debug)]
pub struct Fees {
    pub stuck: usize,
    pub above_ceiling: usize,
    pub completed: u64,
    pub posted: u64,
    /// Replacements at a higher fee.
    pub bumps: usize,
}

/// Makes blocks with a base fee of our choice while jobs are posted, and counts in the end.
pub async fn measure(place: &Place, program: &Path, spike_seconds: u64) -> Result<Fees> {
    // The breaker would open at what the spike costs.
    let more = format!("fee_cap_max_wei = {CEILING}\n[host.breaker]\ngas_wei_per_hour = 0\n");
    let host = Host::start(place, program, "fees", &place.devnet.rpc_url, &more).await?;
    place.devnet.rpc("evm_setAutomine", json!([false])).await?;
    place.devnet.mine_every(0).await?;
    let (first, from) = (place.jobs_posted().await? + 1, place.chain.head().await?.block.number + 1);
    let spike = BLOCKS_BEFORE..BLOCKS_BEFORE + spike_seconds;
    let blocks = spike.end + BLOCKS_AFTER;
    let (began, mut ended) = (Instant::now(), 0);
    for block in 0..blocks {
        let fee = if spike.contains(&block) { SPIKE * BASE_FEE } else { BASE_FEE };
        if block == spike.start || block == spike.end {
            eprintln!("  block {block} of {blocks}: the base fee is {fee} wei");
            ended = now()?;
        }
        // After each block anvil reckons the next one's fee by itself.
        place.devnet.rpc("anvil_setNextBlockBaseFeePerGas", json!([U64::from(fee)])).await?;
        if (BLOCKS_BEFORE_JOBS..blocks - BLOCKS_WITHOUT_JOBS).contains(&block) {
            place.post(JOBS_PER_BLOCK).await?;
        }
        tokio::time::sleep_until((began + Duration::from_secs(block + 1)).into()).await;
        place.devnet.rpc("evm_mine", json!([])).await?;
    }

    let transactions = host.transactions(true).await?;
    let now = now()?;
    let open = |tx: &&Value| matches!(tx["state"].as_str(), Some("queued" | "signed" | "foreign"));
    let mut stuck = 0;
    for tx in transactions.iter().filter(open) {
        let owed = tx["at"].as_u64().with_context(|| format!("since when is transaction {tx} owed"))?;
        if owed < ended || now.saturating_sub(owed) > WAIT_SECONDS_MAX {
            eprintln!("  stuck: {tx}");
            stuck += 1;
        }
    }
    let attempts = |tx: &Value| tx["hashes"].as_array().map_or(0, Vec::len);
    let bumps = transactions.iter().map(|tx| attempts(tx).saturating_sub(1)).sum();

    let blocks = mined::blocks(place, from, &[host.account]).await?;
    let dear = blocks.iter().filter(|block| block.base_fee == SPIKE * BASE_FEE);
    let (dear_blocks, in_spike) = dear.fold((0, 0), |(blocks, txs), it| (blocks + 1, txs + it.transactions.len()));
    ensure!(dear_blocks == spike_seconds, "{dear_blocks} blocks have the spike's base fee, not {spike_seconds}");
    let mined = || blocks.iter().flat_map(|block| &block.transactions);
    let above_ceiling = mined().filter(|tx| tx.fee_cap > CEILING || tx.gas_price > CEILING).count();
    let posted = place.jobs_posted().await? + 1 - first;
    let completed = place.count_completed(first, posted).await?;
    let (all, dearest) = (mined().count(), mined().map(|tx| tx.gas_price).max().unwrap_or(0));
    eprintln!(
        "  {completed} of {posted} jobs completed; {all} transactions mined, {in_spike} of them in the spike, at up to {dearest} wei \
         per gas; {bumps} bumps, {stuck} stuck"
    );
    ensure!(completed > 0, "no job was completed: see run.log of the host `fees` (--keep leaves it)");
    host.stop().await?;
    Ok(Fees { stuck, above_ceiling, completed, posted, bumps })
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}
