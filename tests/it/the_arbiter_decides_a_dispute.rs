//! A completed job is disputed: its payment waits for the arbiter, who pays the host, refunds the renter, or takes the
//! host's stake for a challenger who put up a bond. The host's node follows each way, and claims no more on a broken stake.

use anyhow::{Context, Result};
use fabstir::chain::{call, key};
use fabstir::market::job::{Job, Next, Outcome, State};
use fabstir::market::types::{Address, B256, U256};
use fabstir::node::Node;
use fabstir::renter::{Offer, Posted, Renter};

use crate::world::{WAIT_MAX, World, nothing_left, transactions, until, until_job};

const EVIDENCE: B256 = B256::repeat_byte(0xe0);

#[tokio::test(flavor = "multi_thread")]
async fn the_arbiter_decides_a_dispute() -> Result<()> {
    let world = World::with_window(600).await?;
    let (host, _) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let (usd, us) = (world.usd(), host.host.context("a host")?);
    let money = async |account| world.chain.balance(usd, account).await;
    let (host_had, renter_had) = (money(us).await?, money(renter.signer.address()).await?);

    let (offer, paid) = disputed(&world, &host, &renter).await?;
    world.devnet.send(&world.chain.contracts().resolve(paid.job, false)).await?;
    let job = until_job(&host, paid.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    let (net, fee) = job.escrow_released.context("the escrow paid")?;
    assert_eq!((net + fee, money(us).await?), (offer.quote.price, host_had + net));

    let (offer, refunded) = disputed(&world, &host, &renter).await?;
    world.devnet.send(&world.chain.contracts().resolve(refunded.job, true)).await?;
    let job = until_job(&host, refunded.job, "refunded", |job| matches!(job.state, State::Refunded { .. })).await?;
    assert_eq!(job.state, State::Refunded { host: Some(us), amount: offer.quote.price });
    assert_eq!(job.next(us, host.store.time().await?), Next::Done(Outcome::Refunded));
    assert_eq!(money(renter.signer.address()).await?, renter_had - net - fee);
    let standing = world.chain.standing(us).await?;
    assert_eq!(
        (standing.stake, standing.open_jobs),
        (world.chain.stake_min().await?, 0),
        "a renter's dispute slashes nobody"
    );
    assert_eq!(standing.reputation, 500 + 10 - 100);

    challenge_takes_stake(&world, &host, &renter).await?;
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}

/// Has a job done and its result disputed by the renter.
async fn disputed(world: &World, host: &Node, renter: &Renter) -> Result<(Offer, Posted)> {
    let (offer, posted) = completed(world, host, renter).await?;
    let dispute = world.chain.contracts().dispute(posted.job, EVIDENCE);
    world.chain.transact(&renter.signer, &dispute, WAIT_MAX).await?;
    waits_for_the_arbiter(host, &posted).await?;
    assert_eq!(world.chain.escrowed(posted.job).await?.amount, offer.quote.price);
    Ok((offer, posted))
}

async fn completed(world: &World, host: &Node, renter: &Renter) -> Result<(Offer, Posted)> {
    let (offer, posted) = world.ask(renter, world.usd(), 3600).await?;
    until_job(host, posted.job, "completed", |job| matches!(job.state, State::Completed { .. })).await?;
    Ok((offer, posted))
}

async fn waits_for_the_arbiter(host: &Node, posted: &Posted) -> Result<Job> {
    let us = host.host.context("a host")?;
    let job = until_job(host, posted.job, "disputed", |job| {
        matches!(job.state, State::Disputed { .. }) && (job.announced || job.inferred.is_none())
    });
    let job = job.await?;
    assert_eq!(job.next(us, host.store.time().await?), Next::Wait("the arbiter"));
    Ok(job)
}

async fn challenge_takes_stake(world: &World, host: &Node, renter: &Renter) -> Result<()> {
    let (contracts, us) = (world.chain.contracts(), host.host.context("a host")?);
    let fab = contracts.governance_token;
    let challenger = world.account("challenger").await?;
    let had = world.chain.balance(fab, challenger.address()).await?;
    let (_, posted) = completed(world, host, renter).await?;
    world.chain.transact(&challenger, &call::approve(fab, contracts.proof_system, had), WAIT_MAX).await?;
    world.chain.transact(&challenger, &contracts.challenge(posted.job, EVIDENCE), WAIT_MAX).await?;
    waits_for_the_arbiter(host, &posted).await?;
    assert!(world.chain.balance(fab, challenger.address()).await? < had, "a bond is put up");
    world.devnet.send(&contracts.resolve(posted.job, true)).await?;
    until_job(host, posted.job, "refunded", |job| matches!(job.state, State::Refunded { .. })).await?;
    let stake = world.chain.job_stake().await?;
    assert_eq!(world.chain.balance(fab, challenger.address()).await?, had + stake / U256::from(2));
    let standing = world.chain.standing(us).await?;
    assert_eq!((standing.stake, standing.active), (world.chain.stake_min().await? - stake, false));

    // On a stake that is not whole the host claims nothing, and again when it is.
    let next = renter.post(&world.order(Address::ZERO, U256::from(10_u64.pow(15)), 3600)).await?.job;
    until("the job is declined for its stake", || async {
        let metrics = reqwest::get(format!("http://{}/metrics", host.http_address())).await?.text().await?;
        Ok(metrics.lines().any(|line| line.contains("jobs_declined") && line.contains("\"stake\"")))
    })
    .await?;
    assert_eq!(transactions(host, next, "claim").await?, []);
    let signer = key::open(&world.folder.path().join("host.json"), &world.folder.path().join("password"))?;
    world.devnet.send(&call::transfer(fab, us, stake)).await?;
    world.chain.transact(&signer, &call::approve(fab, contracts.node_registry, stake), WAIT_MAX).await?;
    world.chain.transact(&signer, &contracts.add_stake(stake), WAIT_MAX).await?;
    until_job(host, next, "completed", |job| matches!(job.state, State::Completed { .. })).await?;
    Ok(())
}
