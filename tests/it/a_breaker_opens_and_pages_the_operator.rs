//! A host spends more on gas than its limit: it claims no more, finishes what it has, tells its operator once, and goes on only when
//! it is told to.

use anyhow::{Context, Result};
use fabstir::config::Config;
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::node::Node;
use fabstir::store::HoldKind;
use serde_json::Value;

use crate::world::{World, done_once, metric, nothing_left, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_and_pages_the_operator() -> Result<()> {
    let world = World::new().await?;
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    world.config("host", true, &world.devnet.rpc_url, &[])?;
    let (file, pages) = (world.folder.path().join("host.toml"), world.folder.path().join("pages"));
    let pager =
        format!("page_command = [\"sh\", \"-c\", \"cat >> {0}; echo >> {0}\"]\n[[host.models]]", pages.display());
    let text = std::fs::read_to_string(&file)?.replace("[[host.models]]", &pager);
    // The first transaction passes it.
    std::fs::write(&file, text + "[host.breaker]\ngas_wei_per_hour = 1\n")?;
    let host = Node::start(&Config::load(&file)?).await?;
    let renter = world.renter(&host).await?;

    let (offer, first) = world.ask(&renter, Address::ZERO, 3600).await?;
    let open = async || Ok(host.store.holds().await?.iter().any(|hold| hold.kind == HoldKind::Breaker && hold.told));
    until("the breaker is open and the operator told", open).await?;
    let second = renter.post(&world.order(Address::ZERO, offer.quote.price, 3600)).await?;
    until_job(&host, first.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, first.job).await?;
    assert_eq!(transactions(&host, second.job, "claim").await?, [], "it claimed while the breaker was open");
    assert_eq!(metric(&host, "claims_held").await?, 1);
    let ready = reqwest::get(format!("http://{}/readyz", host.http_address())).await?;
    assert_eq!(ready.status().as_u16(), 503);
    let why = ready.text().await?;
    assert!(why.contains("the breaker is open") && why.contains("wei for gas within an hour, the limit is 1"), "{why}");
    let told = std::fs::read_to_string(&pages)?;
    assert_eq!(told.lines().count(), 1, "{told}");
    let page: Value = serde_json::from_str(&told)?;
    assert_eq!((&page["event"], &page["host"]), (&"breaker_open".into(), &serde_json::json!(signer.address())));

    assert_eq!(host.store.resume().await?.first().context("one")?.kind, HoldKind::Breaker);
    until_job(&host, second.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    until("it opened again", open).await?;
    assert_eq!(std::fs::read_to_string(&pages)?.lines().count(), 2);
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}
