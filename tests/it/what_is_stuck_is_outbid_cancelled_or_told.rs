//! A claim that waits in vain for its block: a rise of the base fee is outbid at the claim's own nonce; the operator takes a claim
//! back, and its nonce with it; another program with the host's key takes the nonce, which is told once the block is final, or uses the
//! key in the very block of a job, which the claim knows without asking.

use std::time::Duration;

use anyhow::{Context, Result};
use fabstir::chain::call::Call;
use fabstir::chain::{Mined, Signer};
use fabstir::market::job::State;
use fabstir::market::types::{Address, Bytes, JobId, U256};
use fabstir::node::Node;
use fabstir::renter::{Posted, Renter};
use fabstir::store::{OrderKind, Ordered};
use serde_json::{Value, json};

use crate::faults::{Proxy, Reply, When};
use crate::world::{Tx, WAIT_MAX, World, nothing_left, transactions, until, until_job};

/// A job whose claim waits for a block that nobody makes.
async fn waiting_claim(world: &World, host: &Node) -> Result<Posted> {
    let renter = world.renter(host).await?;
    world.freeze(false).await?;
    let ((_, posted), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(1))?;
    until("our claim waits for its block", || async { Ok(world.waiting().await? == 1) }).await?;
    Ok(posted)
}

/// A host that reaches the chain through a proxy, and whose key another program has, too.
struct Shared {
    world: World,
    proxy: Proxy,
    signer: Signer,
    host: Node,
    renter: Renter,
}

async fn shared_key() -> Result<Shared> {
    let world = World::new().await?;
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    let host = Node::start(&world.config("host", true, &proxy.url, &[])?).await?;
    let renter = world.renter(&host).await?;
    Ok(Shared { world, proxy, signer, host, renter })
}

/// Has the other program send something, and waits for its block.
async fn other_sends(world: &World, signer: &Signer) -> Result<Mined> {
    let call = Call { to: Address::repeat_byte(9), data: Bytes::new(), value: U256::from(1) };
    world.chain.transact(signer, &call, WAIT_MAX).await
}

async fn claim(host: &Node, job: JobId) -> Result<Tx> {
    transactions(host, job, "claim").await?.pop().context("a claim")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rise_of_the_base_fee_is_outbid_at_the_same_nonce() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let posted = waiting_claim(&world, &host).await?;
    let fees = world.chain.fees().await?;
    world.devnet.rpc("anvil_setNextBlockBaseFeePerGas", json!([U256::from(20 * fees.fee_cap)])).await?;
    world.mine().await?;
    let before = claim(&host, posted.job).await?;
    assert_eq!((before.state.as_str(), before.hashes.len()), ("signed", 1), "the fee does not reach");
    until("more is offered", || async { Ok(claim(&host, posted.job).await?.hashes.len() > 1) }).await?;
    world.freeze(true).await?;
    world.flow();
    until("the claim is mined", || async { Ok(claim(&host, posted.job).await?.state == "mined") }).await?;
    assert_eq!(claim(&host, posted.job).await?.nonce, before.nonce);
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_takes_a_claim_back_with_its_nonce() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let account = host.host.context("a host")?;
    let posted = waiting_claim(&world, &host).await?;
    let signed = host.store.signed_intents(account).await?;
    assert_eq!(host.store.order_tx(signed[0].id, OrderKind::Cancel).await?, Ordered::Noted);
    until("other bytes have the nonce", || async { Ok(claim(&host, posted.job).await?.hashes.len() == 2) }).await?;
    world.freeze(true).await?;
    world.flow();
    until("it is cancelled", || async { Ok(claim(&host, posted.job).await?.state == "cancelled") }).await?;
    assert_eq!(claim(&host, posted.job).await?.nonce, signed[0].nonce);
    nothing_left(&host).await?;
    let job = host.store.job(posted.job).await?.context("stored")?;
    assert_eq!(job.host(), None, "nobody has it");
    assert_eq!(host.store.tx_orders().await?, []);
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_with_the_key_is_told_of_once_its_block_is_final() -> Result<()> {
    let Shared { world, proxy, signer, host, renter } = shared_key().await?;
    proxy.refuse("eth_sendRawTransaction");
    let (_, posted) = world.ask(&renter, Address::ZERO, 3600).await?;
    let signed = || async { Ok(transactions(&host, posted.job, "claim").await?.iter().any(|tx| tx.state == "signed")) };
    until("the claim is signed", signed).await?;
    let nonce = claim(&host, posted.job).await?.nonce.context("a nonce")?;
    other_sends(&world, &signer).await?;
    assert_eq!(world.chain.nonce(signer.address()).await?, nonce + 1);
    proxy.pass();
    world.devnet.rpc("anvil_mine", json!([U256::from(70)])).await?;
    until("it is told", || async { Ok(claim(&host, posted.job).await?.state == "foreign") }).await?;
    nothing_left(&host).await?;
    // The next one has the next nonce.
    let (_, next) = world.ask(&renter, Address::ZERO, 3600).await?;
    until("the next claim is mined", || async {
        Ok(matches!(&transactions(&host, next.job, "claim").await?[..], [tx] if tx.state == "mined"))
    })
    .await?;
    assert_eq!(claim(&host, next.job).await?.nonce, Some(nonce + 1));
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_uses_the_key_in_the_block_of_a_job() -> Result<()> {
    let Shared { world, proxy, signer, host, renter } = shared_key().await?;
    // The host reads its nonce with each block; and where that is refused or comes late, before it signs.
    let refused = Reply::Status(503, "the endpoint has no time");
    for (which, reply) in [("latest", refused), ("0x", refused), ("0x", Reply::Late(Duration::from_secs(2)))] {
        until("the node is ready", || async { Ok(host.health.problems().is_empty()) }).await?;
        world.freeze(false).await?;
        world.caught_up(&host.store).await?;
        let others = world.chain.nonce(signer.address()).await?;
        let met = proxy.met();
        proxy.request(When::Always, move |calls| {
            let of_those = |call: &Value| {
                let at = call["params"][1].as_str().unwrap_or("latest");
                call["method"] == "eth_getTransactionCount" && at.starts_with(which)
            };
            calls.iter().any(of_those).then_some(reply)
        });
        let both = async { tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), other_sends(&world, &signer)) };
        let (((_, posted), _), ()) = tokio::try_join!(both, world.mine_waiting(2))?;
        until("our claim waits for its block", || async { Ok(world.waiting().await? == 1) }).await?;
        let sent = claim(&host, posted.job).await?;
        assert_eq!((sent.nonce, sent.state.as_str()), (Some(others + 1), "signed"));
        assert_eq!(proxy.met() > met, which != "latest", "only the nonce at a block is asked for");
        proxy.pass();
        world.freeze(true).await?;
        world.flow();
        until_job(&host, posted.job, "is paid", |job| matches!(job.state, State::Released { .. })).await?;
        nothing_left(&host).await?;
        assert!(
            matches!(&transactions(&host, posted.job, "claim").await?[..], [tx] if tx.state == "mined" && tx.hashes.len() == 1)
        );
    }
    host.stop().await;
    Ok(())
}
