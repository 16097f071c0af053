//! A database that says other than the chain is found out, whichever table was touched, and what differs is named; with one endpoint,
//! with two of which one lies, or with a bundle and none.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fabstir::audit::{self, Report, Source};
use fabstir::chain::{Bundle, Chain};
use fabstir::market::job::State;
use fabstir::market::types::{Address, U256};
use fabstir::renter::Renter;
use fabstir::store::Store;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::faults::Proxy;
use crate::world::{World, peer, until_job};

/// Each change of a database, and what the audit says of it.
const TAMPERINGS: &[(&str, &str)] = &[
    ("UPDATE job SET payment = '2000000'", "job 1: column payment"),
    ("UPDATE job SET payment = '01000000'", "job 1: a stored amount"),
    ("UPDATE job SET state = 'posted'", "job 1: column state"),
    ("UPDATE job SET renter = zeroblob(20)", "job 1: column renter"),
    ("UPDATE job SET model = 'x'", "job 1: column model"),
    ("UPDATE job SET input = 'x'", "job 1: column input"),
    ("UPDATE job SET max_tokens = 1", "job 1: column max_tokens"),
    ("UPDATE job SET token = randomblob(20)", "job 1: column token"),
    ("UPDATE job SET deadline = deadline + 1", "job 1: column deadline"),
    ("UPDATE job SET requires_proof = 0", "job 1: column requires_proof"),
    ("UPDATE job SET posted_block = posted_block - 1", "job 1: column posted_block"),
    ("UPDATE job SET paid = '1'", "job 1: column paid"),
    ("UPDATE job SET output = 'x'", "job 1: column output"),
    ("DELETE FROM job", "job 1: missing in the database"),
    ("UPDATE job SET id = 2", "job 2: in the database, not on the chain"),
    ("UPDATE log SET data = zeroblob(length(data)) WHERE seq = 9", "column data"),
    ("UPDATE log SET topics = zeroblob(32) WHERE seq = 9", "column topics"),
    ("UPDATE log SET address = zeroblob(20) WHERE seq = 9", "column address"),
    ("UPDATE log SET tx_hash = zeroblob(32) WHERE seq = 9", "column tx_hash"),
    ("UPDATE log SET kind = 'JobClaimed' WHERE kind = 'JobTerms'", "column kind or job"),
    ("UPDATE log SET job = 2 WHERE kind = 'JobTerms'", "column kind or job"),
    ("UPDATE log SET link = zeroblob(32) WHERE seq = 9", "the journal's link"),
    ("UPDATE log SET log_index = log_index + 100 WHERE seq = 9", "missing in the database"),
    ("DELETE FROM log WHERE seq = 9", "missing in the database"),
    (
        "INSERT INTO log SELECT 9999, block, log_index + 100, tx_hash, address, topics, data, kind, job, link
         FROM log WHERE seq = 9",
        "in the database, not on the chain",
    ),
    ("UPDATE block SET time = time + 1 WHERE number = 3", "block 3: column time"),
    ("UPDATE block SET parent = zeroblob(32) WHERE number = 3", "block 3: column parent"),
    ("UPDATE block SET hash = zeroblob(32) WHERE number = 3", "block 3: column hash"),
    ("UPDATE block SET canonical = 0 WHERE number = 3", "block 3: missing in the database"),
    ("UPDATE block SET number = 9999 WHERE number = 3", "block 9999: in the database, past the newest"),
    ("DELETE FROM coverage", "coverage: ends at block None"),
    ("UPDATE coverage SET last = last + 1", "coverage: ends at block"),
    ("UPDATE cursor SET hash = zeroblob(32)", "cursor: block"),
    ("UPDATE finality SET hash = zeroblob(32)", "finality: block 0 is not"),
    ("INSERT INTO conflict VALUES (1, 'job 1: made up')", "conflict 1: in the database, but its logs fold"),
    ("INSERT INTO work VALUES (1, 1, 'Announced', '{\"did\":\"abandoned\",\"at\":1,\"reason\":\"\"}', 1)", "work 1: its body"),
    (
        "INSERT INTO tx_intent (id, key, kind, target, data, signer, nonce, gas, state, at)
             VALUES (1, 'k', 'claim', zeroblob(20), x'', zeroblob(20), 0, 1, 'signed', 1);
         INSERT INTO tx_attempt (hash, intent, raw, fee_cap, tip_cap, signed_at) VALUES (zeroblob(32), 1, x'00', '1', '1', 1)",
        "tx_attempt 0x0000",
    ),
    ("INSERT INTO peer_receipt VALUES (1, zeroblob(20), '{}', 'p', 1, 1)", "peer_receipt of job 1"),
];

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
    world.caught_up(&node.store).await?;
    let honest = audit::run(&node.store, &world.chain, |_, _| ()).await?;
    assert_eq!(honest.divergences, Vec::<String>::new());
    assert!(honest.events > 5 && honest.jobs == 1 && honest.lies.is_empty(), "{honest:?}");
    assert_eq!((honest.journal_head, honest.events), node.store.journal_head().await?);

    let files = Files { folder: world.folder.path().into(), world: &world };
    let bundle = files.folder.join("chain.bundle");
    let head = node.store.cursor().await?.context("indexed")?;
    assert_eq!(world.chain.bundle(&bundle, world.book.block, head.number, |_| ()).await?, head);
    let from_bundle =
        || anyhow::Ok(Source::Bundle(Bundle::open(&bundle, world.chain.id(), world.book.contracts.clone())?));

    for (place, (tampering, named)) in TAMPERINGS.iter().enumerate() {
        let file = files.tampered(&format!("{place}"), tampering).await?;
        let store = world.read(&file).await?;
        for source in [Source::Chain(world.chain.clone()), from_bundle()?] {
            let from = matches!(source, Source::Bundle(_)).then_some(world.book.block);
            let report = source.audit(&store, from, None, |_, _| ()).await?;
            let found = |what: &&String| what.contains(named);
            report.divergences.iter().find(found).with_context(|| format!("{tampering}: {:#?}", report.divergences))?;
            if tampering.contains("UPDATE job") {
                assert_eq!(report.projection_root, honest.projection_root, "the root is computed from the logs");
            }
            if from.is_none() {
                assert_eq!(report.journal_head, honest.journal_head, "the head is computed from the chain");
            }
        }
        store.close().await;
    }

    repairs(&files, &world.chain, &honest).await?;
    knows_the_liar(&world, &node.store).await?;
    a_bent_bundle_is_refused(&world, &bundle)?;
    node.stop().await;
    Ok(())
}

/// Whatever the chain proves is put right, and nothing else is touched.
async fn repairs(files: &Files<'_>, chain: &Chain, honest: &Report) -> Result<()> {
    let chosen = [
        "job SET payment = '2",
        "DELETE FROM job",
        "SET data",
        "DELETE FROM log",
        "INSERT INTO log",
        "SET time",
        "conflict",
    ];
    for part in chosen {
        let (tampering, _) = TAMPERINGS.iter().find(|(sql, _)| sql.contains(part)).context(part)?;
        let file = files.tampered("repaired", tampering).await?;
        let store = files.open(&file).await?;
        Source::Chain(chain.clone()).repair(&store, None, None, |_, _| ()).await?;
        let report = audit::run(&store, chain, |_, _| ()).await?;
        assert_eq!(&report, honest, "{tampering}");
        store.close().await;
    }
    Ok(())
}

/// Of two endpoints the one that lies is named, and the database is held against the other's proofs.
async fn knows_the_liar(world: &World, store: &Store) -> Result<()> {
    let proxy = Proxy::start(&world.devnet.rpc_url).await?;
    let liar = Chain::connect(&proxy.url, world.chain.id(), world.book.contracts.clone()).await?;
    let both = async || Source::Both(liar.clone(), world.chain.clone()).audit(store, None, None, |_, _| ()).await;
    assert_eq!(both().await?.lies, Vec::<String>::new());
    for (method, says) in [("eth_getLogs", "leaves log"), ("eth_getBlockReceipts", "lies: the receipts' root")] {
        proxy.hide_logs_in(method);
        let report = both().await?;
        proxy.pass();
        assert_eq!((report.divergences, report.proven), (vec![], report.blocks));
        assert!(!report.lies.is_empty(), "{method}");
        for lie in &report.lies {
            assert!(lie.contains(&proxy.url) && lie.contains(says) && !lie.contains(&world.devnet.rpc_url), "{lie}");
        }
    }
    Ok(())
}

/// Nothing of a bundle is believed that its hashes do not prove.
fn a_bent_bundle_is_refused(world: &World, bundle: &Path) -> Result<()> {
    let text = std::fs::read_to_string(bundle)?;
    let bent = world.folder.path().join("bent.bundle");
    let lines: Vec<&str> = text.lines().collect();
    let with_logs = lines.iter().position(|line| line.contains(r#""topics""#)).context("a block with logs")?;
    let without = |gone: usize| {
        let kept = lines.iter().enumerate().filter(|(place, _)| *place != gone).map(|(_, line)| format!("{line}\n"));
        kept.collect::<String>()
    };
    for (content, says) in [
        (text.replacen(r#""data":"0x0"#, r#""data":"0x1"#, 1), "receipts' root"),
        (text.replacen(r#""stateRoot":"0x"#, r#""stateRoot":"0x00"#, 1).replacen("0x00", "0x", 0), "line of block"),
        (text.replacen(r#""gasUsed":"0x"#, r#""gasUsed":"0x1"#, 1), "hash is"),
        (without(with_logs), "where"),
        (without(lines.len() - 1), "has no end"),
    ] {
        std::fs::write(&bent, content)?;
        let mut bundle = Bundle::open(&bent, world.chain.id(), world.book.contracts.clone())?;
        let error = format!("{:#}", bundle.range(bundle.blocks().1).expect_err(says));
        assert!(error.contains(says), "{says}: {error}");
    }
    Ok(())
}

/// Copies of the node's database.
struct Files<'a> {
    folder: PathBuf,
    world: &'a World,
}

impl Files<'_> {
    /// Makes a copy and changes it.
    async fn tampered(&self, name: &str, sql: &'static str) -> Result<PathBuf> {
        let file = self.folder.join(format!("{name}.sqlite"));
        let _ = std::fs::remove_file(&file);
        let original = SqliteConnectOptions::new().filename(self.folder.join("node/node.sqlite")).read_only(true);
        let original = SqlitePool::connect_with(original).await?;
        let copy = file.to_str().context("a plain path")?;
        sqlx::query("VACUUM INTO ?").bind(copy).execute(&original).await?;
        original.close().await;
        let copy = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file)).await?;
        sqlx::raw_sql(sql).execute(&copy).await.with_context(|| sql)?;
        copy.close().await;
        Ok(file)
    }

    async fn open(&self, file: &Path) -> Result<Store> {
        let (chain, contracts) = (self.world.chain.id(), self.world.book.contracts.clone());
        Store::open(file, chain, contracts.job_marketplace, std::sync::Arc::new(contracts.decoder())).await
    }
}
