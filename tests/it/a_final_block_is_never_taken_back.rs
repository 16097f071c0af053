//! The endpoint suddenly has another chain, also where ours was final: nothing is rewound, claimed or sent, the node is not
//! ready and the audit exits with 5, until the endpoint has the final block again.

use anyhow::{Context, Result};
use fabstir::devnet::Devnet;
use fabstir::market::job::State;
use fabstir::market::types::{Address, U256};
use serde_json::json;

use crate::faults::Proxy;
use crate::world::{World, done_once, nothing_left, root, transactions, until, until_job};

/// More than anvil keeps unfinal, which is 64.
const BLOCKS: &str = "0x64";

#[tokio::test(flavor = "multi_thread")]
async fn a_final_block_is_never_taken_back() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    let (host, _) = world.host_at("host", &proxy.url).await?;
    let renter = world.renter(&host).await?;
    world.devnet.rpc("anvil_mine", json!([BLOCKS])).await?;
    let first = world.chain.head().await?.block.number - 70;
    until("a block is final", || async {
        Ok(host.store.finality().await?.is_some_and(|finality| finality.block.number >= first))
    })
    .await?;
    let last = host.store.finality().await?.context("final")?.block;

    let other = Devnet::start(&root().join("contracts")).await?;
    other.rpc("anvil_mine", json!(["0x400"])).await?;
    proxy.turn_to(&other.rpc_url);
    until("it is noticed", || async {
        Ok(host.store.finality().await?.is_some_and(|finality| finality.violated.is_some()))
    })
    .await?;
    let (cursor, events) = (host.store.cursor().await?.context("a cursor")?, host.store.journal_head().await?);
    assert!(cursor.number > last.number, "nothing was rewound");
    let problems = format!("{:?}", host.health.problems());
    assert!(problems.contains("was final"), "{problems}");

    // What the renter posts meanwhile on the true chain is neither seen nor claimed.
    let posted = renter.post(&world.order(Address::ZERO, U256::from(1_000_000), 3600)).await?;
    let audit = std::process::Command::new(env!("CARGO_BIN_EXE_fabstir"))
        .args([
            "-c",
            &world.folder.path().join("host.toml").display().to_string(),
            "audit",
            "--rpc",
            &world.devnet.rpc_url,
        ])
        .output()?;
    assert_eq!(audit.status.code(), Some(5), "{}", String::from_utf8_lossy(&audit.stderr));
    assert_eq!(host.store.journal_head().await?, events);
    assert_eq!(transactions(&host, posted.job, "claim").await?, []);

    proxy.turn_to(&world.devnet.rpc_url);
    let (_, after) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, after.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    assert_eq!(host.store.finality().await?.context("final")?.violated, None);
    done_once(&host, after.job).await?;
    nothing_left(&host).await?;
    host.stop().await;
    Ok(())
}
