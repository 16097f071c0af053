//! The endpoint is gone for a minute in the middle of a job: the host says so, gives nothing up and repeats nothing.

use std::time::Duration;

use anyhow::Result;
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::node::Node;
use fabstir::tasks::indexer;

use crate::faults::Proxy;
use crate::world::{World, done_once, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn rpc_gone_for_a_minute() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    let (host, _) = world.host_at("host", &proxy.url).await?;
    let renter = world.renter(&host).await?;
    world.freeze(false).await?;
    let ((_, first), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(1))?;
    world.mine_waiting(1).await?;
    // The first job's commitment waits for its block. From here on the host signs a second claim and cannot send it.
    until("the commitment is sent", || async { Ok(world.waiting().await? == 1) }).await?;
    proxy.refuse("eth_sendRawTransaction");
    let ((_, second), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(2))?;
    until("the second claim is signed", || async {
        Ok(transactions(&host, second.job, "claim").await?.iter().any(|tx| tx.state == "signed"))
    })
    .await?;
    until_job(&host, first.job, "committed", |job| matches!(job.state, State::Committed { .. })).await?;
    // The host learns what to prove of the first job, and then nothing more.
    proxy.refuse("eth_call");
    world.mine().await?;
    until_job(&host, first.job, "drawn", |job| job.beacon.is_some()).await?;
    proxy.refuse("*");
    world.flow();
    let back = tokio::time::Instant::now() + Duration::from_secs(60);
    until("the host says what is missing", || async { Ok(said(&host).is_some()) }).await?;
    assert_eq!(readyz(&host).await?.0, 503);
    tokio::time::sleep_until(back).await;
    let (status, text) = readyz(&host).await?;
    assert_eq!(status, 503);
    assert!(text.contains(r#"{"part":"indexer","reason":"read the newest block"#), "{text}");

    proxy.pass();
    until("the host is ready", || async { Ok(readyz(&host).await?.0 == 200) }).await?;
    for job in [first.job, second.job] {
        until_job(&host, job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
        done_once(&host, job).await?;
    }
    host.stop().await;
    Ok(())
}

/// Why the indexer is not well, if it is not.
fn said(host: &Node) -> Option<String> {
    host.health.problems().into_iter().find(|problem| problem.part == indexer::PART).map(|problem| problem.reason)
}

async fn readyz(host: &Node) -> Result<(u16, String)> {
    let answer = reqwest::get(format!("http://{}/readyz", host.http_address())).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}
