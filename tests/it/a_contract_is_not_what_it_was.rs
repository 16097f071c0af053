//! A contract says that its code was replaced: an alarm, also after a restart. Another registry is named to a node that runs for long:
//! its blocks are read again for that one's logs.

use alloy::primitives::{Bytes, hex};
use anyhow::{Context, Result, ensure};
use fabstir::audit;
use fabstir::chain::call::Call;
use fabstir::chain::{Abi, Also, Chain, Role};
use fabstir::devnet;
use fabstir::market::event::Level;
use fabstir::market::types::{Address, U256};
use fabstir::node::Node;
use serde_json::json;

use crate::world::{World, deploy, metric, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_that_says_its_code_was_replaced_raises_an_alarm() -> Result<()> {
    let world = World::new().await?;
    let config = world.config("node", false, &world.devnet.rpc_url, &[])?;
    let node = Node::start(&config).await?;
    until("the node stored a block", || async { Ok(node.store.cursor().await?.is_some()) }).await?;
    assert_eq!(metric(&node, "upgraded_contracts").await?, 0);

    // PUSH20 and PUSH32 the two topics, PUSH0 twice for no data, LOG2.
    let upgraded = hex!("bc7cd75a20ee27fd9adebab32041f755214dbc6bffa90cc0225b39da2e5c2d3b");
    let code = [&[0x73][..], &[0xaa; 20], &[0x7f], &upgraded, &[0x5f, 0x5f, 0xa2]].concat();
    let factory = world.book.contracts.account_factory;
    world.devnet.rpc("anvil_setCode", json!([factory, Bytes::from(code)])).await?;
    world.devnet.send(&Call { to: factory, data: Bytes::new(), value: U256::ZERO }).await?;
    until("it is told", || async { Ok(metric(&node, "upgraded_contracts").await? == 1) }).await?;
    let [(block, contract, event)] = &node.store.replaced_code().await?[..] else { panic!("one") };
    assert_eq!((*contract, event.as_str()), (factory, "Upgraded"));
    assert!(node.store.is_proven(*block).await?);
    assert_eq!(metric(&node, "undecoded_logs_total").await?, 0);
    node.stop().await;
    let node = Node::start(&config).await?;
    until("it is told again", || async { Ok(metric(&node, "upgraded_contracts").await? == 1) }).await?;
    node.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_named_later_is_read_from_its_beginning() -> Result<()> {
    let world = World::new().await?;
    let registry = deploy(&world.devnet.rpc_url).await?.node_registry;
    let mut config = world.config("node", false, &world.devnet.rpc_url, &[])?;
    let node = Node::start(&config).await?;
    let head = world.chain.head().await?.block.number;
    until_proven(&node, head).await?;
    assert_eq!(logs_of(&node, registry).await?, 0);
    node.stop().await;

    let also = Also { role: Role::NodeRegistry, address: registry, from: 0, to: u64::MAX, abi: Abi::V1 };
    let before = std::mem::replace(&mut config.contracts.also, vec![also]);
    let node = Node::start(&config).await?;
    until("its logs are there", || async { Ok(logs_of(&node, registry).await? > 0) }).await?;
    until_proven(&node, head).await?;
    world.freeze(true).await?;
    let chain = Chain::connect(&world.devnet.rpc_url, devnet::CHAIN_ID, config.contracts.clone()).await?;
    let report = audit::run(&node.store, &chain, |_, _| ()).await?;
    assert_eq!(report.divergences, Vec::<String>::new());
    assert_eq!(metric(&node, "undecoded_logs_total").await?, 0);
    node.stop().await;

    config.contracts.also = before;
    let error = Node::start(&config).await.err().context("started")?;
    ensure!(format!("{error:#}").contains(&registry.to_string()), "{error:#}");
    Ok(())
}

/// How many canonical logs of a contract the node has.
async fn logs_of(node: &Node, contract: Address) -> Result<usize> {
    let head = node.store.cursor().await?.context("a cursor")?.number;
    Ok(node.store.logs(0, head).await?.iter().filter(|row| row.log.address == contract).count())
}

async fn until_proven(node: &Node, head: u64) -> Result<()> {
    until("every block is proven", || async {
        let coverage = node.store.coverage().await?;
        let there = coverage.last().is_some_and(|range| range.to >= head);
        Ok(there && coverage.iter().all(|range| range.level == Level::Complete))
    })
    .await
}
