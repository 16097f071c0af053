//! An operator asks why a job is not claimed, what another policy would have earned, and how fast the model is; and sees what the
//! running host left.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use fabstir::market::types::{Address, Cid, U256};
use fabstir::node::Node;
use serde_json::Value;

use crate::world::{QUESTION, World, python, root, until};

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_is_explained_and_another_policy_replayed() -> Result<()> {
    let world = World::new().await?;
    let (node, config) = world.host("host").await?;
    let cheap = world.renter(&node).await?.post(&world.order(Address::ZERO, U256::from(7), 3600)).await?.job;
    until("the job is told as declined", || async {
        let told = reqwest::get(format!("http://{}/declined", node.http_address())).await?.json::<Value>().await?;
        Ok(told[0]["job"] == cheap.0 && told[0]["rule"] == "price" && told[0]["detail"].is_string())
    })
    .await?;
    node.stop().await;
    // Had the prompt been delivered, and the price been right.
    std::fs::create_dir_all(config.content())?;
    let content = fabstir::content::Content::open(&config.content())?;
    assert_eq!(content.put(QUESTION.as_bytes())?, Cid::of(QUESTION.as_bytes()));
    let path = |name: &str| world.folder.path().join(name).display().to_string();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
        let file = path("host.toml");
        command.args([&["-c", &file], arguments].concat()).current_dir(root());
        let output = command.env("FABSTIR_PYTHON", python()).output().context("run fabstir")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok::<String, anyhow::Error>(String::from_utf8(output.stdout)?)
    };
    let json =
        |arguments: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&run(&[&["--json"], arguments].concat())?)?) };

    let explained = json(&["explain", "1"])?;
    let refused = |explained: &Value| -> Vec<String> {
        let rules = explained["rules"].as_array().cloned().unwrap_or_default();
        let no = rules.iter().filter(|rule| rule["passed"] == false);
        no.filter_map(|rule| rule["rule"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(refused(&explained), ["price"], "{explained:#}");
    assert_eq!((&explained["claims"], &explained["refusal"]), (&false.into(), &"price".into()));

    let told = run(&["explain", "1"])?;
    assert!(told.contains("NO  price") && told.ends_with("it would not be claimed: price\n"), "{told}");

    std::fs::write(path("new.toml"), "price_per_1k = { eth = \"100\" }\n")?;
    let replayed = json(&["backtest", "--policy", &path("new.toml"), "--gas-price", "3"])?;
    assert_eq!(replayed["today"]["tally"]["declined"]["price"], 1, "{replayed:#}");
    let new = &replayed["new"]["tally"];
    assert_eq!((&new["judged"], &new["taken"], &new["open"]), (&1.into(), &1.into(), &1.into()));

    let told = run(&["backtest", "--policy", &path("new.toml"), "--from", "1", "--to", "99999"])?;
    assert!(told.contains("profit, ETH") && told.contains("declined: price") && told.contains("--gas-price"), "{told}");

    let measured = json(&["bench", "model"])?;
    let model = &measured["models"][0];
    assert_eq!((&model["model"], &model["slots"]), (&world.model.to_string().into(), &2.into()));
    for figure in [&model["prefill_tokens_per_second"], &model["decode"][1]["tokens_per_second"]] {
        assert!(figure.as_f64() > Some(0.0), "{measured:#}");
    }
    let explained = json(&["explain", "1"])?;
    let rules = explained["rules"].as_array().context("rules")?;
    let deadline = rules.iter().find(|rule| rule["rule"] == "deadline").context("a rule")?;
    assert!(deadline["detail"].as_str().is_some_and(|detail| detail.contains("as measured")), "{deadline}");
    // A node starts with what was measured.
    Node::start(&config).await?.stop().await;
    Ok(())
}
