//! A host that asks for three blocks claims a posted job when the third is there, and commits when the third is there from its claim
//! on; one that asks for finality claims when the chain calls the block final. What it saw stands in its reasons.

use anyhow::{Context, Result};
use fabstir::market::event::Level;
use fabstir::market::gate::{Depth, Gate};
use fabstir::market::job::{State, Work};
use fabstir::market::types::Address;
use fabstir::node::Node;
use fabstir::renter::Renter;
use fabstir::store::Entry;
use serde_json::json;

use crate::world::{World, done_once, peer, until, until_job};

/// More than anvil keeps unfinal, which is 64.
const BLOCKS: &str = "0x64";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_waits_for_the_depth_it_asks() -> Result<()> {
    let world = World::new().await?;
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    let mut config = world.config("host", true, &world.devnet.rpc_url, &[])?;
    let gates = &mut config.host.as_mut().context("a host")?.gate;
    (gates.claim.depth, gates.commit.depth) = (Depth::Blocks(3), Depth::Blocks(3));
    let host = Node::start(&config).await?;
    let renter = world.renter(&host).await?;

    world.freeze(false).await?;
    let ((_, posted), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(1))?;
    let block = posted.mined.block.number;
    for seen in [block, block + 1] {
        until_at(&host, seen).await?;
        world.mine().await?;
    }
    world.mine_waiting(1).await?;
    assert_eq!(world.chain.head().await?.block.number, block + 3, "the claim waits for the third block");
    let reason = reason(&host, posted.job).await?;
    assert_eq!(reason, format!("block: block {block} has 3 confirmations, complete"));
    until_job(&host, posted.job, "inferred", |job| job.inferred.is_some()).await?;
    for seen in [block + 3, block + 4] {
        until_at(&host, seen).await?;
        world.mine().await?;
    }
    world.mine_waiting(1).await?;
    let committed =
        until_job(&host, posted.job, "committed", |job| matches!(job.state, State::Committed { .. })).await?;
    assert!(committed.rests_on.number >= block + 6, "the commitment waits for the third block after the claim");
    world.flow();
    until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, posted.job).await?;
    host.stop().await;

    config.host.as_mut().context("a host")?.gate.claim = Gate { depth: Depth::Final, proof: Level::Complete };
    let host = Node::start(&config).await?;
    let renter = Renter::new(world.chain.clone(), peer(&host.p2p).await?, world.account("another renter").await?);
    let (_, posted) = world.ask(&renter, Address::ZERO, 36_000).await?;
    let block = posted.mined.block.number;
    until("the job waits for its block", || async {
        let metrics = reqwest::get(format!("http://{}/metrics", host.http_address())).await?.text().await?;
        Ok(metrics.lines().any(|line| line.contains("jobs_declined") && line.contains("\"block\"")))
    })
    .await?;
    world.devnet.rpc("anvil_mine", json!([BLOCKS])).await?;
    until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    let reason = self::reason(&host, posted.job).await?;
    assert!(reason.starts_with(&format!("block: block {block} has ")) && reason.contains(", final, "), "{reason}");
    host.stop().await;
    Ok(())
}

async fn until_at(host: &Node, number: u64) -> Result<()> {
    let stored = || async { Ok(host.store.cursor().await?.is_some_and(|cursor| cursor.number >= number)) };
    until("the block is stored", stored).await
}

/// What the host noted of the block when it chose the job.
async fn reason(host: &Node, job: fabstir::market::types::JobId) -> Result<String> {
    let chosen = host.store.timeline(job).await?.entries.into_iter().find_map(|entry| match entry {
        Entry::Work { work: Work::Chosen { reasons, .. }, .. } => Some(reasons),
        _ => None,
    });
    chosen.context("not chosen")?.into_iter().find(|reason| reason.starts_with("block:")).context("no such rule")
}
