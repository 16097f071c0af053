//! What the contracts keep is compared with what the logs told. Where an endpoint hides a log everywhere, a file lost one, or the
//! state is another, the node says so and is not ready; it leaves the job alone until the blocks are proven, and mends itself.

use anyhow::{Context, Result};
use fabstir::audit;
use fabstir::market::event::Level;
use fabstir::market::job::State;
use fabstir::market::types::{Address, B256, JobId, U256};
use fabstir::node::Node;
use fabstir::renter::Renter;
use fabstir::tasks::sweep::PART;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::faults::Proxy;
use crate::world::{WAIT_MAX, World, metric, nothing_left, peer, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_an_endpoint_hides_everywhere_is_found_and_mended() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    let (signer, rival) = (world.account("host").await?, world.account("rival").await?);
    world.register(&signer).await?;
    world.register(&rival).await?;
    let mut config = world.config("host", true, &proxy.url, &[])?;
    config.chain.sweep_seconds = 1;
    let host = Node::start(&config).await?;
    let renter = world.renter(&host).await?;
    let (_, first) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, first.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    assert_eq!(metric(&host, "sweep_differences").await?, 0);

    // The last log of a block, and so that of a claim. Nothing is posted that the host would claim.
    proxy.hide_logs_in("eth_getLogs");
    proxy.hide_logs_in("eth_getBlockReceipts");
    let (_, second) = world.ask(&renter, Address::ZERO, 3600).await?;
    world.chain.transact(&rival, &world.claim(second.job).await?, WAIT_MAX).await?;
    let difference = "its state is posted by the logs, claimed by the contract";
    until_ill(&host, &format!("job {}: {difference}", second.job)).await?;
    assert_eq!(metric(&host, "sweep_differences").await?, 1);
    until_job(&host, second.job, "in doubt", |job| {
        job.state == State::Posted && job.doubt.as_deref() == Some(difference)
    })
    .await?;

    proxy.pass();
    until_job(&host, second.job, "the rival's", |job| job.host() == Some(rival.address()) && job.doubt.is_none())
        .await?;
    until_well(&host).await?;
    assert_eq!(metric(&host, "sweep_differences").await?, 0);
    assert!(metric(&host, "corrected_blocks_total").await? > 0);
    assert_eq!(transactions(&host, second.job, "claim").await?, []);
    until("every block is proven", || async {
        Ok(host.store.coverage().await?.iter().all(|range| range.level == Level::Complete))
    })
    .await?;
    world.freeze(true).await?;
    let report = audit::run(&host.store, &world.chain, |_, _| ()).await?;
    assert_eq!(report.divergences, Vec::<String>::new());
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_posting_that_a_file_lost_is_found_and_mended() -> Result<()> {
    let world = World::new().await?;
    let (node, jobs) = observed(&world).await?;
    let [_, lost] = jobs[..] else { panic!("two jobs") };
    node.stop().await;
    let file = world.folder.path().join("node/node.sqlite");
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file)).await?;
    for statement in ["DELETE FROM log WHERE job = ?", "DELETE FROM job WHERE id = ?"] {
        assert!(sqlx::query(statement).bind(lost.0 as i64).execute(&pool).await?.rows_affected() > 0);
    }
    pool.close().await;

    let node = Node::start(&sweeping(&world)?).await?;
    until_job(&node, lost, "there again", |job| job.state == State::Posted && job.doubt.is_none()).await?;
    until_well(&node).await?;
    assert_eq!(metric(&node, "corrected_blocks_total").await?, 1);
    world.freeze(true).await?;
    assert_eq!(audit::run(&node.store, &world.chain, |_, _| ()).await?.divergences, Vec::<String>::new());
    node.stop().await;
    Ok(())
}

/// Of what no log told there is no mending. Once every block was proven again the logs are believed, and the alarm stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_no_log_accounts_for_is_told_and_the_logs_are_believed() -> Result<()> {
    let world = World::new().await?;
    let (node, jobs) = observed(&world).await?;
    node.stop().await;
    let node = Node::start(&sweeping(&world)?).await?;
    until_well(&node).await?;

    // Of the mapping in slot 1 the job's entry: the renter, and above it the amount.
    let [job, _] = jobs[..] else { panic!("two jobs") };
    let slot = alloy::primitives::keccak256([U256::from(job.0), U256::from(1)].map(B256::from).concat());
    let escrow = world.book.contracts.payment_escrow;
    let word = world.devnet.rpc("eth_getStorageAt", json!([escrow, slot, "latest"])).await?;
    let word: U256 = serde_json::from_value(word)?;
    let set = async |word: U256| world.devnet.rpc("anvil_setStorageAt", json!([escrow, slot, B256::from(word)])).await;
    set(word - (U256::from(1) << 160)).await?;
    until_ill(&node, &format!("job {job}: its escrowed amount is 1000000 by the logs, 999999 by the contract")).await?;
    until("the logs are believed", || async { Ok(node.store.doubts().await?.is_empty()) }).await?;
    assert_eq!(metric(&node, "sweep_differences").await?, 1);
    assert!(!node.health.is_well(PART));
    set(word).await?;
    until_well(&node).await?;
    assert_eq!(metric(&node, "corrected_blocks_total").await?, 0);
    node.stop().await;
    Ok(())
}

/// A node that has stored the postings of two jobs.
async fn observed(world: &World) -> Result<(Node, Vec<JobId>)> {
    let node = world.observer("node", None).await?;
    let renter = Renter::new(world.chain.clone(), peer(&node.p2p).await?, world.account("renter").await?);
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let posted = renter.post(&world.order(Address::ZERO, U256::from(1_000_000), 3600)).await?;
        until_job(&node, posted.job, "stored", |_| true).await?;
        jobs.push(posted.job);
    }
    Ok((node, jobs))
}

fn sweeping(world: &World) -> Result<fabstir::config::Config> {
    let mut config = world.config("node", false, &world.devnet.rpc_url, &[])?;
    config.chain.sweep_seconds = 1;
    Ok(config)
}

/// Waits until the node is not ready for such a difference.
async fn until_ill(node: &Node, what: &str) -> Result<()> {
    let told = || node.health.problems().iter().any(|problem| problem.part == PART && problem.reason.contains(what));
    until(what, || async { Ok(told()) }).await.with_context(|| format!("{:?}", node.health.problems()))
}

async fn until_well(node: &Node) -> Result<()> {
    until("a sweep finds nothing", || async {
        Ok(metric(node, "sweeps_total").await? > 0 && node.health.is_well(PART))
    })
    .await
    .with_context(|| format!("{:?}", node.health.problems()))
}
