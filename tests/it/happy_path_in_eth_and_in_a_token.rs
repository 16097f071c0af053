//! A renter finds a host, pays in ETH and in a token, gets its answer, and everyone's books agree.

use anyhow::Result;
use fabstir::audit;
use fabstir::market::job::State;
use fabstir::market::types::{Address, U256};

use crate::world::{WAIT_MAX, World, nothing_left, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn happy_path_in_eth_and_in_a_token() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let second = world.observer("second", Some(&host.p2p)).await?;
    let renter = world.renter(&host).await?;
    for token in [Address::ZERO, world.usd()] {
        let account = host.host.expect("a host");
        let before = world.chain.balance(token, account).await?;
        let (offer, posted) = world.ask(&renter, token, 3600).await?;
        let mut streamed = String::new();
        let answer = renter.stream(&offer, posted.job, WAIT_MAX, |text| streamed.push_str(text)).await?;
        assert_eq!(streamed, "The capital of France is Paris.");
        let job = until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
        renter.verify(&answer, &job)?;

        let (net, fee) = job.escrow_released.expect("the escrow paid");
        assert_eq!(net + fee, offer.quote.price);
        assert_eq!(fee, offer.quote.price * U256::from(250) / U256::from(10_000));
        if !token.is_zero() {
            assert_eq!(world.chain.balance(token, account).await? - before, net);
        }
        assert_eq!(world.chain.escrowed(posted.job).await?.amount, U256::ZERO);
    }
    until("two receipts at the second node", || async { Ok(second.store.peer_receipts().await?.len() == 2) }).await?;
    for node in [&host, &second] {
        let report = audit::run(&node.store, &world.chain, |_, _| ()).await?;
        assert_eq!(report.divergences, Vec::<String>::new());
        assert_eq!(report.jobs, 2);
    }
    nothing_left(&host).await?;
    host.stop().await;
    second.stop().await;
    Ok(())
}
