//! The deadline passes while the host proves: it submits nothing, the renter has all its money back, the host is slashed.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use fabstir::market::job::{Next, Outcome, State};
use fabstir::market::types::{Address, U256};
use fabstir::node::Node;
use serde_json::json;

use crate::world::{World, inferences, nothing_left, python, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn deadline_passes_while_proving() -> Result<()> {
    let world = World::new().await?;
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    let mut config = world.config("host", true, &world.devnet.rpc_url, &[])?;
    let [slow, proving, go] = ["slow-python", "proving", "go"].map(|name| world.folder.path().join(name));
    let script = format!(
        "#!/bin/sh\nrequest=$(cat)\ncase $request in *'\"op\":\"prove\"'*) touch {proving:?}\n\
         until [ -e {go:?} ]; do sleep 0.1; done;; esac\nprintf %s \"$request\" | {:?} \"$@\"\n",
        python()
    );
    std::fs::write(&slow, script)?;
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755))?;
    config.prover.python = slow;
    let host = Node::start(&config).await?;
    let renter = world.renter(&host).await?;

    world.freeze(true).await?;
    let (offer, posted) = world.ask(&renter, Address::ZERO, 60).await?;
    until_job(&host, posted.job, "committed", |job| matches!(job.state, State::Committed { .. })).await?;
    world.mine().await?;
    until("it proves", || async { Ok(proving.exists()) }).await?;
    world.devnet.rpc("evm_increaseTime", json!([60])).await?;
    world.mine().await?;
    let us = signer.address();
    until("the deadline has passed for the host", || async {
        let job = host.store.job(posted.job).await?.expect("stored");
        Ok(job.next(us, host.store.time().await?) == Next::Done(Outcome::Expired))
    })
    .await?;
    std::fs::write(&go, "")?;
    until_job(&host, posted.job, "proved all the same", |job| job.proved.is_some()).await?;
    nothing_left(&host).await?;

    let (before, fab) = (world.chain.standing(us).await?, world.book.contracts.governance_token);
    let treasury = world.chain.balance(fab, world.book.contracts.timelock).await?;
    assert_eq!(renter.refund(posted.job).await?, offer.quote.price);
    let job = until_job(&host, posted.job, "refunded", |job| matches!(job.state, State::Refunded { .. })).await?;
    assert_eq!(job.state, State::Refunded { host: Some(us), amount: offer.quote.price });
    assert_eq!(world.chain.escrowed(posted.job).await?.amount, U256::ZERO);
    assert_eq!(transactions(&host, posted.job, "complete").await?, []);
    assert_eq!(inferences(&host, posted.job).await?, 1);
    // The host pays for it: a hundredth of its stake, and 50 points.
    let (after, slashed) = (world.chain.standing(us).await?, world.chain.job_stake().await?);
    assert_eq!((after.stake, after.open_jobs, after.active), (before.stake - slashed, before.open_jobs - 1, false));
    assert_eq!(after.reputation, before.reputation - 50);
    assert_eq!(world.chain.balance(fab, world.book.contracts.timelock).await?, treasury + slashed);
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}
