//! One of two endpoints fails in the middle of a job, then the other: the host works on, says which failed, and does nothing twice.

use std::process::Command;

use anyhow::{Context, Result};
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::node::Node;
use serde_json::Value;

use crate::faults::Proxy;
use crate::world::{World, done_once, root, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_fails_and_another_takes_over() -> Result<()> {
    let world = World::new().await?;
    let (first, second) = (Proxy::start(&world.devnet.rpc_url).await?, Proxy::start(&world.devnet.rpc_url).await?);
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    let mut config = world.config("host", true, &first.url, &[])?;
    config.chain.rpc_urls.push(second.url.clone());
    let host = Node::start(&config).await?;
    let renter = world.renter(&host).await?;

    let (_, one) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, one.job, "claimed", |job| !matches!(job.state, State::Posted)).await?;
    first.refuse("*");
    let (_, two) = world.ask(&renter, Address::ZERO, 3600).await?;
    until_job(&host, two.job, "claimed", |job| !matches!(job.state, State::Posted)).await?;
    until("the second endpoint is in use", || async { Ok(host.chain.steady().name() == second.url) }).await?;
    first.pass();
    second.refuse("*");
    for job in [one.job, two.job] {
        until_job(&host, job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
        done_once(&host, job).await?;
    }
    let metrics = format!("http://{}/metrics", host.http_address());
    let failed = |url: &str| format!("fabstir_rpc_failures_total{{endpoint=\"{url}\"}} ");
    until("both failures are counted", || async {
        let text = reqwest::get(&metrics).await?.text().await?;
        let counted = |url: &str| text.lines().any(|line| line.starts_with(&failed(url)) && !line.ends_with(" 0"));
        Ok(counted(&first.url) && counted(&second.url))
    })
    .await?;
    host.stop().await;

    let mut doctor = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    let file = world.folder.path().join("host.toml");
    doctor.args(["--json", "doctor", "-c"]).arg(file).env("RPC_URLS", &second.url).current_dir(root());
    let found: Value = serde_json::from_slice(&tokio::task::spawn_blocking(move || doctor.output()).await??.stdout)?;
    let findings = found["findings"].as_array().context("findings")?;
    let endpoints: Vec<&Value> = findings.iter().filter(|finding| finding["what"] == "endpoint").collect();
    let [well, ill] = endpoints[..] else { panic!("{found:#}") };
    assert_eq!((&well["well"], &ill["well"]), (&true.into(), &false.into()), "{found:#}");
    let (well, ill) = (well["detail"].as_str().unwrap_or_default(), ill["detail"].as_str().unwrap_or_default());
    assert!(well.starts_with(&format!("{}: head at block ", first.url)), "{well}");
    assert!(well.ends_with(" ms, batches, block receipts") && well.contains("finalized "), "{well}");
    assert!(ill.contains(&format!("{}: HTTP 503", second.url)), "{ill}");
    let contracts = findings.iter().find(|finding| finding["what"] == "contracts").context("contracts")?;
    assert_eq!(contracts["well"], true, "{found:#}");
    Ok(())
}
