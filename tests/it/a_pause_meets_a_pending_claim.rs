//! A guardian pauses the market while the host's claim waits for its block: the claim is lost, nothing is posted or claimed
//! while the pause lasts, what was claimed before is finished and paid, and the pause ends by itself.

use anyhow::{Context, Result};
use fabstir::market::job::State;
use fabstir::market::types::{Address, U256};
use serde_json::json;

use crate::world::{World, done_once, inferences, nothing_left, transactions, until, until_job};

const THREE_DAYS: u64 = 3 * 24 * 3600;

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_meets_a_pending_claim() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let contracts = world.chain.contracts();

    world.freeze(true).await?;
    let (_, before) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, before.job, "committed", |job| matches!(job.state, State::Committed { .. })).await?;
    world.freeze(false).await?;
    let ((offer, posted), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(1))?;
    until("our claim waits for its block", || async { Ok(world.waiting().await? == 1) }).await?;
    // Pays more, so it comes first in the block of the claim.
    let pause = contracts.pause("claims do not settle".into());
    let fees = world.chain.fees().await?;
    let tx = json!([{
        "from": fabstir::devnet::DEPLOYER, "to": pause.to, "data": pause.data,
        "maxFeePerGas": U256::from(8 * fees.fee_cap), "maxPriorityFeePerGas": U256::from(8 * fees.tip_cap.max(1)),
    }]);
    world.devnet.rpc("eth_sendTransaction", tx).await?;
    world.mine_waiting(2).await?;
    until("our claim is known to have failed", || async {
        Ok(matches!(&transactions(&host, posted.job, "claim").await?[..], [tx] if tx.state == "reverted"))
    })
    .await?;
    let job = host.store.job(posted.job).await?.context("stored")?;
    assert_eq!(job.state, State::Posted);
    let refusal = world.chain.refusal(host.host.context("a host")?, &world.claim(posted.job).await?).await?;
    assert!(refusal.as_ref().is_some_and(|why| why.contains("Stopped")), "{refusal:?}");

    world.freeze(true).await?;
    world.flow();
    let order = world.order(Address::ZERO, offer.quote.price, 3600);
    let refused = format!("{:#}", renter.post(&order).await.expect_err("posted while paused"));
    assert!(refused.contains("Stopped"), "{refused}");
    until_job(&host, before.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, before.job).await?;
    assert_eq!(inferences(&host, posted.job).await?, 0);

    world.devnet.rpc("evm_increaseTime", json!([THREE_DAYS])).await?;
    world.mine().await?;
    assert_eq!(renter.refund(posted.job).await?, offer.quote.price);
    let (_, after) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, after.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, after.job).await?;
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}
