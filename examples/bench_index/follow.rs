//! How soon a block's rows are there, and what waiting for blocks costs: the program follows the chain while it grows.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::providers::{Provider, ProviderBuilder, WsConnect};
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::time::MissedTickBehavior;

use crate::market::Market;
use crate::process::{Program, cpu_s, peak_mb, rounded};

const BLOCK_EVERY: Duration = Duration::from_millis(500);
/// Blocks that are not measured, while subscriptions and connections come up.
const WARM_UP: usize = 4;
/// A block that is not stored by then will not be.
const STORED_WITHIN: Duration = Duration::from_secs(30);
/// How often the cursor is read.
const LOOK_EVERY: Duration = Duration::from_micros(500);
const IDLE_AFTER: Duration = Duration::from_secs(3);
const IDLE_FOR: Duration = Duration::from_secs(20);

/// What was seen.
#[derive(Debug, Serialize)]
pub struct Followed {
    /// From the moment a subscriber hears of a block to the one where another connection reads its rows.
    pub row_latency_p50_ms: f64,
    pub row_latency_p99_ms: f64,
    /// The chain's answer to one `eth_getBlockByNumber`, while it has nothing else to do.
    pub block_call_p50_ms: f64,
    pub block_call_p99_ms: f64,
    pub blocks_followed: usize,
    /// Of one core, without new blocks.
    pub idle_cpu_percent: f64,
    pub peak_mb_following: f64,
}

/// Moments at which block numbers were first seen.
type Seen = Arc<Mutex<Vec<(u64, Instant)>>>;

/// Follows the chain with the program, whose database is at `database`, while blocks are made for `seconds`.
pub async fn follow(
    program: &Program,
    market: &mut Market,
    config: &Path,
    database: &Path,
    seconds: u64,
) -> Result<Followed> {
    let mut child = program.bare().start(config, &["index"])?;
    let followed = watch(market, database, seconds, child.id()).await;
    kill_process(Pid::from_child(&child), Signal::INT)?;
    child.wait()?;
    followed
}

async fn watch(market: &mut Market, database: &Path, seconds: u64, pid: u32) -> Result<Followed> {
    let stored = Seen::default();
    let reader = SqliteConnectOptions::new().filename(database).read_only(true).connect().await?;
    let looking = tokio::task::spawn_blocking({
        let (runtime, stored) = (tokio::runtime::Handle::current(), stored.clone());
        move || runtime.block_on(look(reader, stored))
    });
    until(&stored, market.head()).await?;

    let announced = Seen::default();
    let url = market.devnet.rpc_url.replacen("http", "ws", 1);
    let provider = ProviderBuilder::new().connect_ws(WsConnect::new(url)).await?;
    let mut heads = provider.subscribe_blocks().await?.into_stream();
    let listening = tokio::spawn({
        let announced = announced.clone();
        async move {
            while let Some(head) = heads.next().await {
                note(&announced, head.number);
            }
        }
    });
    market.rest = BLOCK_EVERY / 2;
    let mut beat = tokio::time::interval(BLOCK_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut made, mut calls) = (Vec::new(), Vec::new());
    for number in 0..WARM_UP + (seconds as f64 / BLOCK_EVERY.as_secs_f64()) as usize {
        beat.tick().await;
        market.block(20 + 10 * (number as u64 % 5), false).await?;
        let call = market.block_call().await?;
        if number >= WARM_UP {
            made.push(market.head());
            calls.push(call);
        }
    }
    // Afterwards, so that a slow program does not slow the blocks down.
    let mut rows = Vec::new();
    for number in made {
        let (there, heard) = (until(&stored, number).await?, until(&announced, number).await?);
        rows.push(there.saturating_duration_since(heard));
    }
    market.rest = Duration::ZERO;
    listening.abort();
    drop(provider);
    // Its end is the end of the reading.
    drop(stored);
    looking.await??;

    tokio::time::sleep(IDLE_AFTER).await;
    let (before, began) = (cpu_s(pid)?, Instant::now());
    tokio::time::sleep(IDLE_FOR).await;
    let idle = (cpu_s(pid)? - before) / began.elapsed().as_secs_f64();
    Ok(Followed {
        row_latency_p50_ms: percentile(&mut rows, 50),
        row_latency_p99_ms: percentile(&mut rows, 99),
        block_call_p50_ms: percentile(&mut calls, 50),
        block_call_p99_ms: percentile(&mut calls, 99),
        blocks_followed: rows.len(),
        idle_cpu_percent: rounded(100.0 * idle, 2),
        peak_mb_following: rounded(peak_mb(pid).context("the program ended")?, 1),
    })
}

/// Reads the cursor over and over, until nobody else wants to know.
async fn look(mut reader: SqliteConnection, stored: Seen) -> Result<()> {
    while Arc::strong_count(&stored) > 1 {
        let number = sqlx::query_scalar::<_, i64>("SELECT number FROM cursor").fetch_optional(&mut reader).await?;
        note(&stored, number.unwrap_or(0) as u64);
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn note(seen: &Seen, number: u64) {
    let now = Instant::now();
    let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if seen.last().is_none_or(|(last, _)| *last < number) {
        seen.push((number, now));
    }
}

/// Waits until the block was seen and returns when.
async fn until(seen: &Seen, number: u64) -> Result<Instant> {
    let began = Instant::now();
    while began.elapsed() < STORED_WITHIN {
        let first = {
            let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            seen.iter().find(|(at, _)| *at >= number).map(|(_, moment)| *moment)
        };
        match first {
            Some(moment) => return Ok(moment),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    bail!("block {number} is not seen within {STORED_WITHIN:?}")
}

/// Returns the nearest-rank percentile in milliseconds.
fn percentile(durations: &mut [Duration], percent: usize) -> f64 {
    durations.sort_unstable();
    let rank = (durations.len() * percent).div_ceil(100).saturating_sub(1);
    durations.get(rank).map_or(f64::NAN, |duration| rounded(duration.as_secs_f64() * 1e3, 2))
}
