//! The shape that others have, for comparison: look every 100 ms, one transaction at a time, wait for its receipt.

use std::time::{Duration, Instant};

use alloy::primitives::{U64, U256, keccak256};
use anyhow::{Context, Result};
use fabstir::chain::call::Call;
use serde_json::json;

use crate::place::Place;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Claims jobs that are posted at `rate` a second for as long as `limit`, and returns the milliseconds from a job's log to its claim.
pub async fn claim(place: &Place, rate: u64, limit: Duration) -> Result<Vec<f64>> {
    let signer = place.host("field").await?;
    let from = place.chain.head().await?.block.number + 1;
    let posting = place.post_at(rate * limit.as_secs(), rate);
    let claiming = async {
        let (mut latencies, mut seen) = (Vec::new(), std::collections::BTreeMap::<u64, Instant>::new());
        let (mut next, until) = (from, Instant::now() + limit);
        let contract = place.book.contracts.job_marketplace;
        let mut last = place.jobs_posted().await?;
        while Instant::now() < until {
            let head = place.chain.head().await?.block;
            if head.number >= next {
                let filter =
                    json!([{ "fromBlock": U64::from(next), "toBlock": U64::from(head.number), "address": contract }]);
                place.devnet.rpc("eth_getLogs", filter).await?;
                let posted = place.chain.jobs_posted(head).await?;
                (last + 1..=posted).for_each(|job| _ = seen.insert(job, Instant::now()));
                (last, next) = (posted, head.number + 1);
            }
            let Some((job, told)) = seen.pop_first() else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            let data = [&keccak256("claimJob(uint256)")[..4], &U256::from(job).to_be_bytes::<32>()].concat();
            let call = Call { to: contract, data: data.into(), value: U256::ZERO };
            let gas = 300_000;
            let (pulse, nonce) = tokio::try_join!(place.chain.pulse(), place.chain.nonce(signer.address()))?;
            let (hash, raw) = signer.sign(place.chain.id(), nonce, gas, pulse.fees, &call).await?;
            place.chain.send(&[raw]).await?.first().context("no answer")?;
            latencies.push(told.elapsed().as_secs_f64() * 1e3);
            while place.chain.ended(&[hash]).await?.is_empty() && Instant::now() < until {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        anyhow::Ok(latencies)
    };
    let (posted, latencies) = tokio::join!(posting, claiming);
    posted?;
    let latencies = latencies?;
    eprintln!("  the field's shape came to {} of {} jobs", latencies.len(), rate * limit.as_secs());
    Ok(latencies)
}
