//! Three lies and one truth reach a node by gossip; its neighbour hears only the truth.

use anyhow::{Context, Result};
use fabstir::chain::Signer;
use fabstir::market::event::Commitment;
use fabstir::market::job::{Inferred, State};
use fabstir::market::receipt::{Receipt, SignedReceipt};
use fabstir::market::types::{Address, B256, Cid, U256, UnixSeconds};
use fabstir::p2p::Inbound;
use fabstir::renter::Renter;

use crate::world::{WAIT_MAX, World, peer, peer_with_inbound, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn forged_receipt_is_dropped_and_not_forwarded() -> Result<()> {
    let world = World::new().await?;
    let host = world.account("host").await?;
    world.register(&host).await?;
    let middle = world.observer("middle", None).await?;
    let renter = Renter::new(world.chain.clone(), peer(&middle.p2p).await?, world.account("renter").await?);

    let order = world.order(Address::ZERO, U256::from(1_000_000), 3600);
    let (posted, terms) = (renter.post(&order).await?, order.terms(renter.signer.address(), UnixSeconds(0)));
    let output = Cid::of(b"the output");
    let digest = B256::repeat_byte(2);
    let commitment =
        Commitment { root: B256::repeat_byte(1), tokens: 3, result_hash: output.chain_hash(), tokens_digest: digest };
    let contracts = world.chain.contracts();
    world.chain.transact(&host, &contracts.claim(posted.job, terms.deal()), WAIT_MAX).await?;
    world.chain.transact(&host, &contracts.commit(posted.job, terms.order(), &commitment), WAIT_MAX).await?;
    let job = until_job(&middle, posted.job, "committed", |job| matches!(job.state, State::Committed { .. })).await?;

    let done = Inferred { commitment, output, transcript: output };
    let truth = Receipt::new(world.chain.id(), contracts.job_marketplace, host.address(), job.id, &job.terms, &done);
    let thief = world.account("thief").await?;
    let lies = [
        signed(&truth, &thief).await?,
        signed(&Receipt { host: thief.address(), ..truth.clone() }, &thief).await?,
        signed(&Receipt { tokens: 4, ..truth.clone() }, &host).await?,
    ];

    let forger = peer(&middle.p2p).await?;
    let (neighbour, mut heard) = peer_with_inbound(&middle.p2p).await?;
    until("all take receipts", || async {
        Ok(middle.p2p.receipt_peers().len() >= 2
            && !forger.receipt_peers().is_empty()
            && !neighbour.receipt_peers().is_empty())
    })
    .await?;
    for receipt in lies.iter().chain([&signed(&truth, &host).await?]) {
        assert!(forger.publish_receipt(serde_json::to_vec(receipt)?).await?, "somebody takes receipts");
    }
    until("the lies were judged", || async {
        let metrics = reqwest::get(format!("http://{}/metrics", middle.http_address())).await?.text().await?;
        Ok(metrics.contains("fabstir_receipts_total{kind=\"reject\"} 3")
            && metrics.contains("fabstir_receipts_total{kind=\"accept\"} 1"))
    })
    .await?;
    let first = tokio::time::timeout(WAIT_MAX, heard.recv()).await?.context("the neighbour's node stopped")?;
    let Inbound::Receipt { bytes, .. } = first else { anyhow::bail!("the neighbour heard {first:?}") };
    assert_eq!(SignedReceipt::read(&bytes)?, signed(&truth, &host).await?);
    assert!(heard.try_recv().is_err(), "the neighbour heard nothing else");
    let kept = middle.store.peer_receipts().await?;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].signed.receipt, truth);
    middle.stop().await;
    Ok(())
}

async fn signed(receipt: &Receipt, signer: &Signer) -> Result<SignedReceipt> {
    Ok(SignedReceipt { receipt: receipt.clone(), signature: signer.sign_hash(receipt.signing_hash()).await? })
}
