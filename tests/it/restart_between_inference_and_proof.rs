//! The host dies after its commitment, before the chain drew what to prove: the next process proves, and runs no model.

use anyhow::Result;
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::node::Node;

use crate::world::{World, done_once, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn restart_between_inference_and_proof() -> Result<()> {
    let world = World::new().await?;
    let (host, config) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    // Each transaction has its block and no other comes: there is none after the commitment.
    world.freeze(true).await?;
    let (_, posted) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, posted.job, "committed", |job| matches!(job.state, State::Committed { .. })).await?;
    drop(host);

    let host = Node::start(&config).await?;
    let second = world.observer("second", Some(&host.p2p)).await?;
    let job = until_job(&host, posted.job, "known", |_| true).await?;
    assert!(job.inferred.is_some() && job.proved.is_none() && job.beacon.is_none());
    // One block draws the positions; the contract knows them one block later.
    world.mine().await?;
    until_job(&host, posted.job, "proved", |job| job.proved.is_some()).await?;
    world.flow();
    until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, posted.job).await?;
    until("the receipt is at the second node", || async { Ok(second.store.peer_receipts().await?.len() == 1) }).await?;
    host.stop().await;
    second.stop().await;
    Ok(())
}
