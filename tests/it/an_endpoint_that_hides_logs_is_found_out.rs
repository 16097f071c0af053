//! An endpoint leaves logs out, at HTTP 200 and in valid JSON. Where it still has the receipts nothing is missed; where it lies
//! about them too the block is known not to be proven, and no money is risked on it.

use anyhow::{Context, Result};
use fabstir::audit;
use fabstir::market::event::Level;
use fabstir::market::job::State;
use fabstir::market::types::Address;

use crate::faults::Proxy;
use crate::world::{World, nothing_left, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_hides_logs_is_found_out() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    proxy.hide_logs_in("eth_getLogs");
    let (host, _) = world.host_at("host", &proxy.url).await?;
    let renter = world.renter(&host).await?;
    let (_, first) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, first.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    assert!(host.store.coverage().await?.iter().all(|range| range.level == Level::Complete));

    proxy.hide_logs_in("eth_getBlockReceipts");
    let (_, second) = world.ask(&renter, Address::ZERO, 3600).await?;
    let posted = second.mined.block.number;
    until("the block of the job is stored", || async {
        Ok(host.store.cursor().await?.is_some_and(|cursor| cursor.number >= posted))
    })
    .await?;
    assert!(!host.store.is_proven(posted).await?);
    let range = host.store.coverage().await?.into_iter().find(|range| (range.from..=range.to).contains(&posted));
    let range = range.context("covered")?;
    assert_eq!(range.level, Level::Linked);
    assert!(range.reason.as_ref().is_some_and(|why| why.contains("receipts' root")), "{range:?}");
    until("the job is declined for its block", || async {
        let metrics = reqwest::get(format!("http://{}/metrics", host.http_address())).await?.text().await?;
        Ok(metrics.lines().any(|line| line.contains("jobs_declined") && line.contains("\"block\"")))
    })
    .await?;
    assert_eq!(transactions(&host, second.job, "claim").await?, []);

    // The auditor asks elsewhere, proves every block and names the first that the database lacks a log of.
    let report = audit::run(&host.store, &world.chain, |_, _| ()).await?;
    assert_eq!((report.proven, report.unproven), (report.blocks, None));
    let found = report.divergences.first().context("found nothing")?;
    assert!(found.contains(&format!("block {posted}")) && found.contains("missing in the database"), "{found}");
    proxy.pass();
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}

/// One header that is not its hash's is the endpoint's word alone; what follows it in the same answer is proven all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_bent_header_spoils_no_other_block() -> Result<()> {
    let world = World::new().await?;
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    let head = world.chain.head().await?.block.number;
    let logs = world.chain.range(world.book.block, head).await?.logs;
    let bent = logs.last().context("the registration")?.block.number;
    world.register(&world.account("rival").await?).await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    proxy.bend_header(bent);
    let node = fabstir::node::Node::start(&world.config("node", false, &proxy.url, &[])?).await?;
    let head = world.chain.head().await?.block.number;
    until("the node is at the head", || async {
        Ok(node.store.cursor().await?.is_some_and(|cursor| cursor.number >= head))
    })
    .await?;
    let spoilt: Vec<_> =
        node.store.coverage().await?.into_iter().filter(|range| range.level != Level::Complete).collect();
    let [range] = &spoilt[..] else { panic!("{spoilt:?}") };
    assert_eq!((range.from, range.to, range.level), (bent, bent, Level::Claimed));
    assert!(range.reason.as_ref().is_some_and(|why| why.contains("hash")), "{range:?}");
    node.stop().await;
    Ok(())
}
