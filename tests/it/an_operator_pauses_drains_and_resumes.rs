//! An operator holds a running host back with commands beside it, has it run dry, and sees its books add up to the wei.

use anyhow::{Context, Result, ensure};
use fabstir::chain::{call, key};
use fabstir::market::job::State;
use fabstir::market::types::{Address, U256};
use fabstir::node::Node;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::world::{WAIT_MAX, World, done_once, fabstir, nothing_left, told, transactions, until, until_job};

/// Runs a command that is refused with that exit code; returns what it says.
async fn refused(world: &World, arguments: &[&str], code: i32) -> Result<String> {
    let output = fabstir(world, arguments).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{arguments:?} ended with {}: {error}", output.status);
    Ok(error)
}

async fn not_ready(host: &Node) -> Result<String> {
    Ok(reqwest::get(format!("http://{}/readyz", host.http_address())).await?.text().await?)
}

/// The scheduler looks at every block, so many blocks later it has had its chances.
async fn let_blocks_pass(host: &Node, blocks: u64) -> Result<()> {
    let from = host.store.cursor().await?.context("a cursor")?.number;
    until("blocks pass", || async { Ok(host.store.cursor().await?.is_some_and(|at| at.number >= from + blocks)) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_pauses_drains_and_resumes() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let (offer, first) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, first.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;

    // As the program writes it of itself.
    let node = serde_json::json!({ "http": host.http_address() });
    std::fs::write(world.folder.path().join("host/node.json"), node.to_string())?;
    told(&world, &["pause", "--reason", "new disk"]).await?;
    until("the node saw it", || async { Ok(not_ready(&host).await?.contains("paused: new disk")) }).await?;
    let order = world.order(Address::ZERO, offer.quote.price, 3600);
    let second = renter.post(&order).await?;
    until_job(&host, second.job, "posted", |job| job.state == State::Posted).await?;
    let_blocks_pass(&host, 12).await?;
    assert_eq!(transactions(&host, second.job, "claim").await?, []);
    let status = told(&world, &["status"]).await?;
    assert!(status["holds"][0]["reason"] == "new disk");
    assert!(status["node"]["problems"].to_string().contains("paused: new disk"), "{status}");

    let id = second.job.to_string();
    told(&world, &["jobs", "abandon", &id, "--reason", "not this one"]).await?;
    let again = refused(&world, &["jobs", "abandon", &id, "--reason", "no"], 2).await?;
    assert!(again.contains("posted, given up (the operator gave it up: not this one)"), "{again}");
    let resumed = told(&world, &["resume"]).await?;
    assert_eq!(resumed["lifted"][0]["kind"], "paused");
    until("the node saw it", || async { Ok(!not_ready(&host).await?.contains("paused")) }).await?;
    let_blocks_pass(&host, 12).await?;
    assert_eq!(transactions(&host, second.job, "claim").await?, [], "it was given up");
    told(&world, &["jobs", "retry", &id]).await?;
    until_job(&host, second.job, "claimed", |job| job.host().is_some()).await?;

    let owed = told(&world, &["drain"]).await?;
    assert_eq!((&owed["jobs"][0]["job"], owed["owed"].as_u64() >= Some(1)), (&second.job.0.into(), true), "{owed}");
    assert_eq!(told(&world, &["drain", "--wait"]).await?["owed"], 0);
    let done = host.store.job(second.job).await?.context("stored")?;
    assert!(matches!(done.state, State::Released { .. }), "{:?}", done.state);
    done_once(&host, second.job).await?;
    let refusal =
        renter.discover(world.model, "again", 32, Address::ZERO, None, std::time::Duration::from_secs(2)).await;
    assert!(refusal.is_err() || refusal.is_ok_and(|offers| offers.is_empty()), "a host that drains makes no offers");
    for (arguments, says) in [
        (["jobs", "retry", "99"], "job 99 is not in the database"),
        (["jobs", "retry", &id], "released, paid: there is nothing to retry"),
        (["tx", "bump", "1"], "transaction 1 is mined: bump is for one that is signed"),
        (["tx", "cancel", "99"], "there is no transaction 99"),
    ] {
        let error = refused(&world, &arguments, 2).await?;
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
    assert_eq!(told(&world, &["tx", "list"]).await?, serde_json::json!([]));
    assert_eq!(told(&world, &["tx", "list", "--all"]).await?.as_array().context("a list")?.len(), 8);

    books_add_up(&world, &host).await?;
    nothing_left(&host).await?;
    host.stop().await;
    what_is_not_settled_is_no_strangers(&world).await
}

/// As a node leaves it that ended before it read its last receipt: the transaction is the node's, and the books say so.
async fn what_is_not_settled_is_no_strangers(world: &World) -> Result<()> {
    let checked = async || {
        let output = fabstir(world, &["ledger", "--check", "--json"]).await?;
        Ok::<_, anyhow::Error>(serde_json::from_slice::<Value>(&output.stdout)?["check"].clone())
    };
    let settled = checked().await?;
    let options = SqliteConnectOptions::new().filename(world.folder.path().join("host/node.sqlite"));
    let pool = SqlitePool::connect_with(options).await?;
    for statement in [
        "UPDATE tx_intent SET state = 'signed' WHERE nonce = (SELECT max(nonce) FROM tx_intent)",
        "DELETE FROM tx_receipt WHERE hash IN (SELECT hash FROM tx_attempt JOIN tx_intent ON tx_intent.id = intent
                                               WHERE state = 'signed')",
    ] {
        assert!(sqlx::query(statement).execute(&pool).await?.rows_affected() > 0, "{statement}");
    }
    assert_eq!(settled["others"].as_array().map(Vec::len), Some(1), "the gift");
    assert_eq!(checked().await?, settled);
    Ok(())
}

/// The ledger explains every wei of two jobs and of what the key did otherwise, and finds what came from nowhere.
async fn books_add_up(world: &World, host: &Node) -> Result<()> {
    let us = host.host.context("a host")?;
    let check = ["ledger", "--check", "--by", "job"];
    let right = told(world, &check).await?;
    assert_eq!((&right["check"]["books"]["unexplained"], &right["check"]["right"]), (&"0".into(), &true.into()));
    assert_eq!(right["total"]["income"][Address::ZERO.to_string()]["jobs"], 2);
    assert_eq!(right["kinds"]["claim"]["useful"]["transactions"], 2);
    assert_eq!(right["groups"].as_object().context("groups")?.len(), 2);

    let signer = key::open(&world.folder.path().join("host.json"), &world.folder.path().join("password"))?;
    let gift = call::Call { to: Address::repeat_byte(0x77), data: Default::default(), value: U256::from(12345) };
    let mined = world.chain.transact(&signer, &gift, WAIT_MAX).await?;
    let past = async |block: u64| {
        until("it is stored", || async { Ok(host.store.cursor().await?.is_some_and(|at| at.number >= block)) }).await
    };
    past(mined.block.number).await?;
    let other = told(world, &check).await?["check"].clone();
    assert_eq!((&other["books"]["unexplained"], &other["books"]["moved"]["sent"]), (&"0".into(), &"12345".into()));
    assert_eq!(other["others"][0]["hash"], serde_json::json!(mined.hash));

    let before = world.chain.balance(Address::ZERO, us).await?;
    world.devnet.fund(us, before + U256::from(7)).await?;
    world.mine().await?;
    past(world.chain.head().await?.block.number).await?;
    let output = fabstir(world, &[&check[..], &["--json"]].concat()).await?;
    assert_eq!(output.status.code(), Some(4));
    let wrong: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(wrong["check"]["books"]["unexplained"], "7");
    assert_eq!(wrong["check"]["unexplained"][0]["wei"], "7");
    let text = fabstir(world, &check).await?;
    assert!(String::from_utf8_lossy(&text.stdout).contains("UNEXPLAINED: 7 wei in block"));
    Ok(())
}
