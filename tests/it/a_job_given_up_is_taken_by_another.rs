//! Another host claims a job in the block that posts it, commits to a result and gives the job up: ours, which had seen it
//! lost, takes it, commits anew and is paid.

use anyhow::{Context, Result};
use fabstir::chain::Fees;
use fabstir::market::event::Commitment;
use fabstir::market::job::{Next, Outcome, State};
use fabstir::market::types::{Address, B256, JobId, UnixSeconds};

use crate::world::{QUESTION, WAIT_MAX, World, done_once, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_given_up_is_taken_by_another() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let us = host.host.context("a host")?;
    let renter = world.renter(&host).await?;
    let rival = world.account("rival").await?;
    world.register(&rival).await?;
    let contracts = world.chain.contracts();
    let offers = renter.discover(world.model, QUESTION, 32, Address::ZERO, None, WAIT_MAX).await?;
    let offer = offers.first().context("no host was found")?;
    renter.deliver(offer, QUESTION).await?;

    world.freeze(false).await?;
    let order = world.order(Address::ZERO, offer.quote.price, 3600);
    let terms = order.terms(renter.signer.address(), UnixSeconds(0));
    let claim = contracts.claim(JobId(1), terms.deal());
    let rivals_claim = async {
        until("the job waits for its block", || async { Ok(world.waiting().await? == 1) }).await?;
        // Pays less, so it comes after the job in the same block.
        let fees = Fees { fee_cap: world.chain.fees().await?.fee_cap, tip_cap: 0 };
        let nonce = world.chain.nonce(rival.address()).await?;
        let (_, raw) = rival.sign(world.chain.id(), nonce, 300_000, fees, &claim).await?;
        world.chain.send(&[raw]).await?;
        world.mine_waiting(2).await
    };
    let (posted, ()) = tokio::try_join!(renter.post(&order), rivals_claim)?;
    let lost = until_job(&host, posted.job, "the rival's", |job| job.host() == Some(rival.address())).await?;
    assert_eq!(lost.next(us, host.store.time().await?), Next::Done(Outcome::Lost));

    world.freeze(true).await?;
    let word = B256::repeat_byte(1);
    let commitment = Commitment { root: word, tokens: 1, result_hash: word, tokens_digest: word };
    world.chain.transact(&rival, &contracts.commit(posted.job, terms.order(), &commitment), WAIT_MAX).await?;
    world.chain.transact(&rival, &contracts.fail(posted.job, terms.deal(), "out of memory".into()), WAIT_MAX).await?;
    world.flow();
    until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { host, .. } if host == us)).await?;
    done_once(&host, posted.job).await?;
    host.stop().await;
    Ok(())
}
