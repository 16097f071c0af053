//! A database that says other than the chain is found out, whichever table was touched, and the first difference named.

use anyhow::{Context, Result};
use fabstir::audit;
use fabstir::market::job::State;
use fabstir::market::types::{Address, U256};
use fabstir::renter::Renter;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::world::{World, peer, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn audit_finds_a_tampered_row() -> Result<()> {
    let world = World::new().await?;
    let node = world.observer("node", None).await?;
    let renter = Renter::new(world.chain.clone(), peer(&node.p2p).await?, world.account("renter").await?);
    let posted = renter.post(&world.order(Address::ZERO, U256::from(1_000_000), 60)).await?;
    world.devnet.rpc("evm_increaseTime", serde_json::json!([61])).await?;
    world.mine().await?;
    renter.refund(posted.job).await?;
    until_job(&node, posted.job, "refunded", |job| matches!(job.state, State::Refunded { .. })).await?;
    world.freeze(true).await?;

    let audit = async || audit::run(&node.store, &world.chain, |_, _| ()).await;
    let honest = audit().await?;
    assert_eq!(honest.divergences, Vec::<String>::new());
    assert!(honest.events > 5 && honest.jobs == 1, "{honest:?}");
    assert_eq!((honest.journal_head, honest.events), node.store.journal_head().await?);

    let file = world.folder.path().join("node/node.sqlite");
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file)).await?;
    for (table, tamper, undo, named) in [
        ("job", "UPDATE job SET payment = '2000000'", "UPDATE job SET payment = '1000000'", "column payment"),
        ("job", "UPDATE job SET state = 'posted'", "UPDATE job SET state = 'refunded'", "column state"),
        ("log", "UPDATE log SET data = zeroblob(length(data)) WHERE seq = 9", "", "with other content"),
        ("log", "DELETE FROM log WHERE seq = 9", "", "block"),
        (
            "block",
            "UPDATE block SET time = time + 1 WHERE number = 3",
            "UPDATE block SET time = time - 1 WHERE number = 3",
            "block 3",
        ),
    ] {
        sqlx::query("CREATE TABLE kept AS SELECT * FROM log").execute(&pool).await?;
        sqlx::query(tamper).execute(&pool).await.with_context(|| format!("tamper with {table}"))?;
        let report = audit().await?;
        let first = report.divergences.first().with_context(|| format!("{tamper}: not found"))?;
        assert!(first.contains(named), "{tamper}: {first}");
        assert_eq!(report.journal_head, honest.journal_head, "the head is computed from the chain");
        sqlx::query(if undo.is_empty() { "INSERT OR REPLACE INTO log SELECT * FROM kept" } else { undo })
            .execute(&pool)
            .await?;
        sqlx::query("DROP TABLE kept").execute(&pool).await?;
        assert_eq!(audit().await?.divergences, Vec::<String>::new(), "{tamper}: undone");
    }
    pool.close().await;
    node.stop().await;
    Ok(())
}
