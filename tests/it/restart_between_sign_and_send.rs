//! The host signs its claim, cannot send it and dies: the next process sends those bytes and signs no others.

use anyhow::Result;
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::node::Node;

use crate::faults::Proxy;
use crate::world::{World, done_once, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn restart_between_sign_and_send() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    let (host, config) = world.host_at("host", &proxy.url).await?;
    let renter = world.renter(&host).await?;
    let account = host.host.expect("a host");
    let nonce = world.chain.nonce(account).await?;
    proxy.refuse("eth_sendRawTransaction");
    let (_, posted) = world.ask(&renter, Address::ZERO, 3600).await?;
    until("the claim is signed", || async {
        Ok(transactions(&host, posted.job, "claim").await?.iter().any(|tx| tx.state == "signed"))
    })
    .await?;
    let open = host.store.signed_intents(account).await?;
    assert!(matches!(&open[0].attempts[..], [attempt] if !attempt.sent), "{open:#?}");
    let before = transactions(&host, posted.job, "claim").await?;
    drop(host);
    assert_eq!(world.chain.nonce(account).await?, nonce);
    assert_eq!(world.chain.receipt(before[0].hashes[0]).await?.map(|_| ()), None);

    proxy.pass();
    let host = Node::start(&config).await?;
    until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, posted.job).await?;
    let after = transactions(&host, posted.job, "claim").await?;
    assert_eq!((after[0].nonce, &after[0].hashes), (Some(nonce), &before[0].hashes));
    host.stop().await;
    Ok(())
}
