//! What operators and auditors read from a database: past blocks, events as they come, SQL, and files that anyone can check.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use fabstir::market::types::{Address, U256};
use fabstir::node::Node;
use fabstir::renter::Renter;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

use crate::world::{WAIT_MAX, World, peer, root, until_job};

/// A database with one job that was posted and one that was taken back.
async fn indexed() -> Result<(World, Node, Renter)> {
    let world = World::new().await?;
    let node = Node::start(&world.config("node", false, &world.devnet.rpc_url, &[])?).await?;
    let renter = Renter::new(world.chain.clone(), peer(&node.p2p).await?, world.account("renter").await?);
    let kept = renter.post(&world.order(Address::ZERO, U256::from(1_000_000), 3600)).await?;
    let back = renter.post(&world.order(Address::ZERO, U256::from(2_000_000), 3600)).await?;
    renter.cancel(back.job).await?;
    until_job(&node, kept.job, "posted", |_| true).await?;
    until_job(&node, back.job, "refunded", |job| job.state.name() == "refunded").await?;
    Ok((world, node, renter))
}

/// The program, on the database of `indexed`.
fn program(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    command.arg("-c").arg(world.folder.path().join("node.toml")).args(arguments).current_dir(root());
    command
}

fn run(world: &World, arguments: &[&str]) -> Result<Output> {
    program(world, arguments).output().context("run fabstir")
}

fn json_of(world: &World, arguments: &[&str]) -> Result<Value> {
    let output = run(world, &[arguments, &["--json"]].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_checked_by_anyone() -> Result<()> {
    let (world, node, _renter) = indexed().await?;
    node.stop().await;
    let dir = |format: &str| world.folder.path().join(format).display().to_string();
    let status = json_of(&world, &["status"])?;
    for format in ["parquet", "csv", "jsonl"] {
        let manifest = json_of(&world, &["export", "--format", format, "--out", &dir(format)])?;
        assert_eq!((&manifest["journal_head"], &manifest["events"]), (&status["journal_head"], &status["events"]));
        assert_eq!(checked(&dir(format))?, (Some(0), String::new()));
        let again = run(&world, &["export", "--format", format, "--out", &dir(format)])?;
        assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
    }
    assert_eq!(checked("/nowhere")?.0, Some(2));

    type Tampering = fn(&mut Vec<String>);
    let tamperings: [(&str, Tampering, &str); 6] = [
        ("events", |lines| lines.swap(2, 3), "row 3: its check"),
        ("events", |lines| drop(lines.remove(4)), "row 5: its check"),
        ("events", |lines| drop(lines.pop()), "missing: the manifest"),
        ("jobs", |lines| lines[1] = lines[1].replace("2000000", "2000001"), "row 2: its check"),
        ("jobs", |lines| lines.push(lines[0].clone()), "row 3: the manifest tells of 2 rows only"),
        ("blocks", |lines| lines[0].push('x'), "row 1: "),
    ];
    for (format, heads) in [("csv", 1), ("jsonl", 0)] {
        for (table, tamper, says) in tamperings {
            let name = format!("{table}.{format}");
            tampered(
                &Path::new(&dir(format)).join(&name),
                |text| {
                    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                    let mut rows = lines.split_off(heads);
                    tamper(&mut rows);
                    lines.append(&mut rows);
                    lines.join("\n") + "\n"
                },
                || {
                    let (code, said) = checked(&dir(format))?;
                    ensure!(code == Some(4) && said.contains(&name) && said.contains(says), "{name}, {says}: {said}");
                    Ok(())
                },
            )?;
        }
    }
    for (from, to, says) in [("31337", "31338", "its digest is"), ("{", "", "is no manifest")] {
        tampered(
            &Path::new(&dir("csv")).join("manifest.json"),
            |text| text.replacen(from, to, 1),
            || {
                let (code, said) = checked(&dir("csv"))?;
                ensure!(code == Some(4) && said.contains("manifest.json") && said.contains(says), "{said}");
                Ok(())
            },
        )?;
    }
    let file = Path::new(&dir("parquet")).join("events.parquet");
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    let (code, said) = checked(&dir("parquet"))?;
    assert!(code == Some(4) && said.contains("events.parquet"), "{said}");
    Ok(())
}

/// Runs `fabstir verify-export` with nothing but the folder.
fn checked(dir: &str) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    let output = command.args(["verify-export", dir]).current_dir("/").output()?;
    Ok((output.status.code(), stderr(&output)))
}

/// Changes a file for as long as `look` looks.
fn tampered(file: &Path, tamper: impl Fn(&str) -> String, look: impl Fn() -> Result<()>) -> Result<()> {
    let whole = std::fs::read_to_string(file)?;
    std::fs::write(file, tamper(&whole))?;
    look()?;
    Ok(std::fs::write(file, whole)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_and_any_question_are_answered() -> Result<()> {
    let (world, node, _renter) = indexed().await?;
    node.stop().await;
    let events = run(&world, &["events", "--job", "2", "--json"])?;
    let events: Vec<Value> =
        String::from_utf8(events.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |kind: &str| events.iter().find(|event| event["kind"] == kind).with_context(|| format!("no {kind}"));
    assert_eq!(of("JobTerms")?["fields"]["payment"], "2000000");
    assert_eq!(
        (&of("JobTerms")?["contract"], &of("JobTerms")?["proof"]),
        (&json!("job_marketplace"), &json!("complete"))
    );
    let refunded = of("PaymentRefunded")?["block"].as_u64().context("a block")?;
    let before = (refunded - 1).to_string();

    let job = json_of(&world, &["job", "2", "--at-block", &before])?;
    assert_eq!(job["job"]["state"], "posted");
    let timeline = job["timeline"].as_array().context("a timeline")?;
    assert!(timeline.iter().all(|entry| entry["proof"] == "complete" && entry["name"] != "PaymentRefunded"), "{job}");
    let states =
        |jobs: Value| jobs.as_array().map(|jobs| jobs.iter().map(|job| job["state"].clone()).collect::<Vec<_>>());
    assert_eq!(states(json_of(&world, &["jobs", "--at-block", &before])?), Some(vec![json!("posted"); 2]));
    assert_eq!(states(json_of(&world, &["jobs"])?), Some(vec![json!("refunded"), json!("posted")]));
    let (then, now) = (json_of(&world, &["status", "--at-block", &before])?, json_of(&world, &["status"])?);
    assert!(then["block"] == refunded - 1 && then["events"].as_u64() < now["events"].as_u64(), "{then} {now}");
    let text = String::from_utf8(run(&world, &["job", "2"])?.stdout)?;
    assert!(text.contains(&format!("PaymentRefunded in block {refunded} (complete)")), "{text}");
    for command in [&["jobs"][..], &["job", "2"], &["status"], &["events"]] {
        let outside = run(&world, &[command, &["--at-block", "999999"]].concat())?;
        assert_eq!(outside.status.code(), Some(2));
        assert!(
            stderr(&outside).contains("block 999999 is not stored: the database has blocks"),
            "{}",
            stderr(&outside)
        );
    }
    let of_escrow =
        run(&world, &["events", "--contract", "payment_escrow", "--kind", "escrowcreated", "--limit", "1"])?;
    let line = String::from_utf8(of_escrow.stdout)?;
    assert!(line.lines().count() == 1 && line.contains("EscrowCreated") && line.contains(" 2 "), "{line}");
    assert_eq!(run(&world, &["events", "--contract", "shop"])?.status.code(), Some(2));

    let answer =
        json_of(&world, &["sql", "SELECT kind, tx_hash AS tx FROM event WHERE job = 2 ORDER BY block, log_index"])?;
    assert_eq!(answer[0], json!({ "kind": events[0]["kind"], "tx": events[0]["tx_hash"] }));
    let table = run(&world, &["sql", "SELECT id, state FROM job ORDER BY id", "--limit", "1"])?;
    assert_eq!(String::from_utf8(table.stdout.clone())?, "ID  STATE\n 1  posted\n");
    assert!(stderr(&table).contains("more than 1 rows"), "{}", stderr(&table));
    let writes = run(&world, &["sql", "UPDATE job SET state = 'posted'"])?;
    assert_eq!(writes.status.code(), Some(2));
    assert!(stderr(&writes).contains("UPDATE is refused"), "{}", stderr(&writes));
    let schema = String::from_utf8(run(&world, &["sql", "--schema"])?.stdout)?;
    assert!(schema.contains("CREATE VIEW event") && schema.contains("-- For people and their queries"), "{schema}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_sees_what_comes_and_what_a_reorg_takes_away() -> Result<()> {
    let (world, node, renter) = indexed().await?;
    let follow = |arguments: &[&str]| {
        let command = program(&world, &[&["events", "--follow"], arguments].concat());
        tokio::process::Command::from(command).stdout(Stdio::piped()).kill_on_drop(true).spawn()
    };
    let mut child = follow(&["--json", "--kind", "JobTerms"])?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    assert_eq!(next(&mut lines).await?["job"], 1);
    assert_eq!(next(&mut lines).await?["job"], 2);

    world.freeze(true).await?;
    renter.post(&world.order(Address::ZERO, U256::from(3_000_000), 3600)).await?;
    let told = next(&mut lines).await?;
    assert_eq!((&told["job"], &told["fields"]["payment"]), (&json!(3), &json!("3000000")));
    world.devnet.rpc("anvil_reorg", json!([1, []])).await?;
    let back_to = told["block"].as_u64().context("a block")? - 1;
    assert_eq!(next(&mut lines).await?, json!({ "reorg": back_to }));
    renter.post(&world.order(Address::ZERO, U256::from(4_000_000), 3600)).await?;
    assert_eq!(next(&mut lines).await?["job"], 3);
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).context("it runs")?;
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    assert_eq!(tokio::time::timeout(WAIT_MAX, child.wait()).await??.code(), Some(0));

    // A reader that goes away is no failure, whether or not there is more to tell.
    let mut child = follow(&[])?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    assert!(lines.next_line().await?.is_some());
    drop(lines);
    assert_eq!(tokio::time::timeout(WAIT_MAX, child.wait()).await??.code(), Some(0));
    node.stop().await;
    Ok(())
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<Value> {
    let line = tokio::time::timeout(WAIT_MAX, lines.next_line()).await.context("nothing came")??;
    Ok(serde_json::from_str(&line.context("it ended")?)?)
}
