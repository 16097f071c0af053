//! The block with our claim is replaced by an empty one: the same signed claim goes out again, and the job is done once.

use anyhow::Result;
use fabstir::audit;
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::store::Entry;
use serde_json::json;

use crate::world::{World, done_once, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn reorg_takes_the_claim_away_and_gives_it_back() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    world.freeze(false).await?;
    let ((_, posted), ()) = tokio::try_join!(world.ask(&renter, Address::ZERO, 3600), world.mine_waiting(1))?;
    world.mine_waiting(1).await?;
    until_job(&host, posted.job, "ours and inferred", |job| {
        matches!(job.state, State::Claimed { .. }) && job.inferred.is_some()
    })
    .await?;
    let claim = async || anyhow::Ok(transactions(&host, posted.job, "claim").await?[0].clone());
    until("the claim is mined", || async { Ok(claim().await?.state == "mined") }).await?;
    let before = claim().await?;

    world.devnet.rpc("anvil_reorg", json!([1, []])).await?;
    until_job(&host, posted.job, "posted again", |job| job.state == State::Posted).await?;
    let after = claim().await?;
    assert_eq!((after.state.as_str(), after.nonce, &after.hashes), ("signed", before.nonce, &before.hashes));
    assert_eq!(claims(&host.store.timeline(posted.job).await?.entries), [false]);

    world.flow();
    until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    done_once(&host, posted.job).await?;
    assert_eq!(claim().await?, before);
    assert_eq!(claims(&host.store.timeline(posted.job).await?.entries), [false, true]);
    let report = audit::run(&host.store, &world.chain, |_, _| ()).await?;
    assert_eq!(report.divergences, Vec::<String>::new());
    host.stop().await;
    Ok(())
}

/// Of each claim of a timeline, whether it stands; those that do not come first.
fn claims(entries: &[Entry]) -> Vec<bool> {
    let mut claims: Vec<bool> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Event { name, canonical, .. } if name == "JobClaimed" => Some(*canonical),
            _ => None,
        })
        .collect();
    claims.sort();
    claims
}
