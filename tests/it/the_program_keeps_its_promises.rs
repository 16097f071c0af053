//! The program as people and scripts meet it: exit codes, texts, JSON, the demonstration.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use fabstir::chain::call;
use fabstir::lock::Lock;
use fabstir::market::types::{Address, U256};
use fabstir::node::Node;
use fabstir::renter::Renter;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::world::{World, peer, python, root, until, until_job};

fn fabstir(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    command.args(arguments).current_dir(root()).env("FABSTIR_PYTHON", python());
    command.output().context("run fabstir")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_demonstration_shows_a_job_from_post_to_payment() -> Result<()> {
    let output = fabstir(&["demo", "--json"])?;
    ensure!(output.status.success(), "{}", stderr(&output));
    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let states: Vec<&str> =
        shown["jobs"].as_array().context("jobs")?.iter().filter_map(|job| job["state"].as_str()).collect();
    assert_eq!(states, ["refunded", "released", "released"]);
    assert_eq!(shown["jobs"][1]["proof_verified"], true);
    assert_eq!(shown["jobs"][2]["proof_verified"], true);
    assert_eq!(shown["receipts_verified"], 2);
    assert_eq!(shown["audit"]["divergences"], 0);
    assert!(shown["audit"]["events"].as_u64() > Some(30), "{shown}");
    Ok(())
}

#[test]
fn what_the_user_got_wrong_is_named_and_exits_with_2() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).map(|()| path.display().to_string())
    };
    let missing = fabstir(&["config", "check", "-c", "/nowhere.toml"])?;
    assert_eq!(code(&missing), Some(2));
    assert!(stderr(&missing).contains("/nowhere.toml"), "{}", stderr(&missing));
    let unknown = fabstir(&["config", "check", "-c", &file("a.toml", "colour = 1")?])?;
    assert_eq!(code(&unknown), Some(2));
    assert!(stderr(&unknown).contains("colour"), "{}", stderr(&unknown));
    assert_eq!(code(&fabstir(&["jobs", "--state", "lost"])?), Some(2));
    assert_eq!(code(&fabstir(&["nonsense"])?), Some(2));
    let help = fabstir(&["--help"])?;
    assert_eq!(code(&help), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("fabstir demo"));
    assert!(String::from_utf8_lossy(&fabstir(&["completions", "bash"])?.stdout).contains("_fabstir"));
    Ok(())
}

#[tokio::test]
async fn no_command_changes_the_format_of_the_file_of_a_node_that_runs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (config, data) = (folder.path().join("node.toml"), folder.path().join("data"));
    // The example of a node that is no host.
    let example = include_str!("../../config.example.toml");
    let observer = example.split("# Leave this section out").next().context("a first part")?;
    std::fs::write(&config, observer)?;
    // As a program left it that did not know the last migration.
    std::fs::create_dir(&data)?;
    let options = SqliteConnectOptions::new().filename(data.join("node.sqlite")).create_if_missing(true);
    let (pool, migrations) = (SqlitePool::connect_with(options).await?, sqlx::migrate!());
    let versions: Vec<i64> = migrations.iter().map(|migration| migration.version).collect();
    migrations.run_to(versions[versions.len() - 2], &pool).await?;
    let format =
        async || sqlx::query_scalar::<_, i64>("SELECT max(version) FROM _sqlx_migrations").fetch_one(&pool).await;
    let older = format().await?;
    let status = || fabstir(&["status", "-c", &config.display().to_string()]);
    let lock = Lock::take(&data).await?.context("it is free")?;
    for arguments in [&["status"][..], &["pause"]] {
        let refused = fabstir(&[arguments, &["-c", &config.display().to_string()]].concat())?;
        assert_eq!(code(&refused), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("restart the node first"), "{}", stderr(&refused));
    }
    // These would work with the data themselves.
    for arguments in [&["index", "--once"][..], &["rederive"], &["audit", "--repair"]] {
        let refused = fabstir(&[arguments, &["-c", &config.display().to_string()]].concat())?;
        assert_eq!(code(&refused), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("the node runs"), "{}", stderr(&refused));
    }
    assert_eq!(format().await?, older);
    drop(lock);
    // It holds the lock itself, and no node runs.
    let migrated = fabstir(&["rederive", "-c", &config.display().to_string()])?;
    assert_eq!(code(&migrated), Some(0), "{}", stderr(&migrated));
    assert!(format().await? > older);
    let _lock = Lock::take(&data).await?.context("it is free")?;
    assert_eq!(code(&status()?), Some(0), "of the same format it is opened beside the node");
    Ok(())
}

#[test]
fn a_key_is_made_once_and_never_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("password"), "secret\n")?;
    let make = || fabstir(&["key", "new", "--keystore", &path("key.json"), "--password-file", &path("password")]);
    let open = make()?;
    assert!(!open.status.success() && stderr(&open).contains("chmod 600"), "{}", stderr(&open));
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path("password"), std::fs::Permissions::from_mode(0o600))?;
    let made = make()?;
    ensure!(made.status.success(), "{}", stderr(&made));
    let again = make()?;
    assert_eq!(code(&again), Some(2));
    assert!(stderr(&again).contains("never overwritten"), "{}", stderr(&again));
    let shown = fabstir(&["key", "address", "--keystore", &path("key.json"), "--password-file", &path("password")])?;
    assert_eq!(shown.stdout, made.stdout);
    String::from_utf8(made.stdout)?.trim().parse::<Address>()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reads_and_an_auditor_checks() -> Result<()> {
    let world = World::new().await?;
    let config = world.config("node", false, &world.devnet.rpc_url, &[])?;
    let node = Node::start(&config).await?;
    let renter = Renter::new(world.chain.clone(), peer(&node.p2p).await?, world.account("renter").await?);
    let posted = renter.post(&world.order(Address::ZERO, U256::from(1_000_000), 3600)).await?;
    until_job(&node, posted.job, "posted", |_| true).await?;
    until("ready", || async { Ok(node.health.problems().is_empty()) }).await?;
    promtool_accepts(&reqwest::get(format!("http://{}/metrics", node.http_address())).await?.text().await?)?;
    node.stop().await;
    let file = world.folder.path().join("node.toml").display().to_string();
    let run = |arguments: &[&str]| fabstir(&[&["-c", &file], arguments].concat());
    world.freeze(true).await?;

    let indexed: Value = serde_json::from_slice(&run(&["index", "--once", "--json"])?.stdout)?;
    let jobs: Value = serde_json::from_slice(&run(&["jobs", "--json", "--state", "posted"])?.stdout)?;
    assert_eq!(jobs[0]["payment"], "1000000");
    let job: Value = serde_json::from_slice(&run(&["job", "1", "--json"])?.stdout)?;
    assert_eq!(job["timeline"][0]["name"], "JobCreated");
    let audit = run(&["audit", "--json"])?;
    assert_eq!(code(&audit), Some(0), "{}", stderr(&audit));
    let report: Value = serde_json::from_slice(&audit.stdout)?;
    assert_eq!((&report["journal_head"], &report["events"]), (&indexed["journal_head"], &indexed["events"]));

    let gone = run(&["audit", "--rpc", "http://127.0.0.1:9"])?;
    assert_eq!(code(&gone), Some(3), "{}", stderr(&gone));
    tamper(&world.folder.path().join("node/node.sqlite")).await?;
    let different = run(&["audit"])?;
    assert_eq!(code(&different), Some(4));
    assert!(stderr(&different).contains("job 1: column payment"), "{}", stderr(&different));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_comes_tops_up_and_leaves_with_its_stake() -> Result<()> {
    let world = World::new().await?;
    let host = world.account("host").await?.address();
    world.config("host", true, &world.devnet.rpc_url, &[])?;
    let file = world.folder.path().join("host.toml").display().to_string();
    let run = |arguments: &[&str]| fabstir(&[&["-c", &file, "--json"], arguments].concat());
    let json = |arguments: &[&str]| -> Result<Value> {
        let output = run(arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let fab = world.book.contracts.governance_token;
    let stake = world.chain.balance(fab, host).await?;
    json(&["register"])?;
    assert!(stderr(&run(&["register"])?).contains("registered already"));
    let said: Value = serde_json::from_str(json(&["metadata"])?["metadata"].as_str().context("text")?)?;
    assert_eq!(said["models"][0]["id"], world.model.to_string());
    assert_eq!(said["circuits"], serde_json::json!(["select-v1/J1S2K8"]));
    assert!(said["price_per_1k"][Address::ZERO.to_string()].is_string() && said["peer"].is_string(), "{said}");

    let poor = run(&["stake", "add", "5"])?;
    assert!(stderr(&poor).contains("needs 5 FAB"), "{}", stderr(&poor));
    assert_eq!(code(&run(&["stake", "add", "much"])?), Some(2));
    let five = U256::from(5) * U256::from(10).pow(U256::from(18));
    world.devnet.send(&call::transfer(fab, host, five)).await?;
    assert_eq!(json(&["stake", "add", "5"])?["stake"], (stake + five).to_string());
    assert_eq!(json(&["stake", "leave"])?["active"], false);
    assert_eq!(json(&["stake", "stay"])?["active"], true);
    json(&["stake", "leave"])?;
    let early = run(&["stake", "withdraw"])?;
    assert!(stderr(&early).contains("NotUnbonded"), "{}", stderr(&early));
    world.devnet.rpc("evm_increaseTime", serde_json::json!([14 * 24 * 3600])).await?;
    world.mine().await?;
    assert_eq!(json(&["stake", "withdraw"])?["stake"], "0");
    assert_eq!(world.chain.balance(fab, host).await?, stake + five);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_takes_a_job_back_and_is_told_what_it_may_not() -> Result<()> {
    let world = World::new().await?;
    let node = Node::start(&world.config("node", false, &world.devnet.rpc_url, &[])?).await?;
    let renter = Renter::new(world.chain.clone(), peer(&node.p2p).await?, world.account("renter").await?);
    let job = renter.post(&world.order(Address::ZERO, U256::from(1_000_000), 3600)).await?.job.to_string();
    let path = |name: &str| world.folder.path().join(name).display().to_string();
    let (file, keystore, password) = (path("node.toml"), path("renter.json"), path("password"));
    let run = |command: &str, rest: &[&str]| {
        let common = ["-c", &file, "--json", command, &job, "--keystore", &keystore, "--password-file", &password];
        fabstir(&[&common, rest].concat())
    };
    let early = run("dispute", &["--evidence", &file])?;
    assert!(stderr(&early).contains("WrongStatus"), "{}", stderr(&early));
    assert!(stderr(&run("rate", &["5"])?).contains("NotPaid"));
    assert_eq!(code(&run("rate", &["6"])?), Some(2));
    assert_eq!(code(&run("dispute", &["--evidence", "/nowhere"])?), Some(2));
    let cancelled: Value = serde_json::from_slice(&run("cancel", &[])?.stdout)?;
    assert_eq!(cancelled["refunded"], "1000000");
    assert!(stderr(&run("cancel", &[])?).contains("WrongStatus"));
    node.stop().await;
    Ok(())
}

async fn tamper(file: &Path) -> Result<()> {
    let pool = sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(file)).await?;
    sqlx::query("UPDATE job SET payment = '7'").execute(&pool).await?;
    pool.close().await;
    Ok(())
}

/// Prometheus' own checker; where it is not installed the check says that it is skipped.
fn promtool_accepts(metrics: &str) -> Result<()> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else {
        eprintln!("skipped: promtool is not installed (Debian: prometheus)");
        return Ok(());
    };
    promtool.stdin.take().context("promtool's input")?.write_all(metrics.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    Ok(())
}
