//! Two hosts claim one job and the other's claim is mined first: ours costs its gas and nothing else.

use anyhow::Result;
use fabstir::chain::{Fees, Sent};
use fabstir::market::job::{Next, Outcome, State};
use fabstir::market::types::Address;

use crate::world::{World, done_once, inferences, nothing_left, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn claim_lost_to_a_rival() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let rival = world.account("rival").await?;
    world.register(&rival).await?;

    world.freeze(false).await?;
    let ((_, posted), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(1))?;
    until("our claim waits for its block", || async { Ok(world.waiting().await? == 1) }).await?;
    let claim = world.claim(posted.job).await?;
    let Fees { fee_cap, tip_cap } = world.chain.fees().await?;
    let fees = Fees { fee_cap: 4 * fee_cap, tip_cap: 4 * tip_cap.max(1) };
    let gas = 300_000;
    let nonce = world.chain.nonce(rival.address()).await?;
    let (_, raw) = rival.sign(world.chain.id(), nonce, gas, fees, &claim).await?;
    assert_eq!(world.chain.send(&[raw]).await?, [Sent::Accepted]);
    world.mine_waiting(2).await?;

    let job = until_job(&host, posted.job, "the rival's", |job| job.host() == Some(rival.address())).await?;
    let now = host.store.time().await?;
    assert_eq!(job.next(host.host.expect("a host"), now), Next::Done(Outcome::Lost));
    nothing_left(&host).await?;
    until("our claim is known to have failed", || async {
        Ok(matches!(&transactions(&host, posted.job, "claim").await?[..], [tx] if tx.state == "reverted"))
    })
    .await?;
    assert_eq!(inferences(&host, posted.job).await?, 0);

    world.flow();
    let (_, next) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, next.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, next.job).await?;
    host.stop().await;
    Ok(())
}
