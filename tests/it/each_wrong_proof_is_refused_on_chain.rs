//! A proof is good for one job, one host and one transcript: bent, borrowed or stolen, the chain refuses it.

use anyhow::{Context, Result};
use fabstir::content::Content;
use fabstir::market::job::{Job, State};
use fabstir::market::types::{Address, Bytes, U256};
use fabstir::node::Node;

use crate::world::{WAIT_MAX, World, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_proof_is_refused_on_chain() -> Result<()> {
    let world = World::new().await?;
    let (host, config) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let contracts = world.chain.contracts();
    let us = host.host.context("a host")?;
    // A job too cheap for our host, for a thief who copies what our host does.
    let thief = world.account("thief").await?;
    world.register(&thief).await?;
    let cheap = renter.post(&world.order(Address::ZERO, U256::from(1), 3600)).await?.job;
    world.chain.transact(&thief, &world.claim(cheap).await?, WAIT_MAX).await?;

    let (_, first) = world.ask(&renter, Address::ZERO, 3600).await?;
    let (_, second) = world.ask(&renter, Address::ZERO, 3600).await?;
    let committed = |job: &Job| matches!(job.state, State::Committed { .. });
    until_job(&host, first.job, "committed", |job| !matches!(job.state, State::Posted | State::Claimed { .. })).await?;
    let second_job = until_job(&host, second.job, "committed", committed).await?;
    // Stop the chain: what the host sends now stays in the pool, while calls see the newest state.
    world.freeze(false).await?;
    let copied = second_job.inferred.as_ref().context("inferred")?.commitment;
    let commit = contracts.commit(cheap, second_job.terms.order(), &copied);
    let gas = world.chain.gas(thief.address(), &commit).await?;
    let (fees, nonce) = (world.chain.fees().await?, world.chain.nonce(thief.address()).await?);
    world.chain.send(&[thief.sign(world.chain.id(), nonce, gas, fees, &commit).await?.1]).await?;
    for _ in 0..3 {
        world.mine().await?;
    }

    let proved = until_job(&host, second.job, "proved", |job| job.proved.is_some()).await?;
    let content = Content::open(&config.content())?;
    let completion =
        content.get(&proved.proved.as_ref().context("proved")?.completion)?.context("the proof is stored")?;
    let output = proved.inferred.as_ref().context("inferred")?.output;
    let refusal = async |job, from: Address, proof: &[u8]| {
        let call = contracts.complete(job, &output, Bytes::copy_from_slice(proof));
        world.chain.refusal(from, &call).await
    };

    assert_eq!(refusal(second.job, us, &completion).await?, None, "the true proof is accepted");
    let stolen = refusal(second.job, thief.address(), &completion).await?.context("accepted from another account")?;
    assert!(stolen.contains("NotHost"), "{stolen}");
    let borrowed = refusal(cheap, thief.address(), &completion).await?.context("accepted for another job and host")?;
    assert!(borrowed.contains("ContextMismatch"), "{borrowed}");
    let empty = refusal(second.job, us, &[]).await?.context("accepted without a proof")?;
    assert!(empty.contains("ProofRequired"), "{empty}");
    // Each part of the call: circuit id, EZKL proof, every public instance, every Merkle sibling.
    let mut tried = 0;
    for at in (31..completion.len()).step_by(32) {
        let mut bent = completion.clone();
        bent[at] ^= 1;
        let said = refusal(second.job, us, &bent).await?;
        assert!(said.is_some(), "byte {at} of {} may be flipped", completion.len());
        tried += 1;
    }
    assert!(tried > 140, "{tried} words tried");
    finish(&world, host).await
}

/// Time flows again and the honest job is paid.
async fn finish(world: &World, host: Node) -> Result<()> {
    world.freeze(true).await?;
    world.flow();
    let jobs = host.store.live_jobs().await?;
    for job in jobs.iter().filter(|job| job.host() == host.host) {
        until_job(&host, job.id, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    }
    crate::world::nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}
