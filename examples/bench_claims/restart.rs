//! How long a host takes from its start until it makes claims, on a large file.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fabstir::chain::Chain;
use fabstir::devnet::CHAIN_ID;

use crate::market::Market;
use crate::process::{Program, peak_mb, rounded};
use crate::{Arguments, node, place};

/// What was found.
pub struct Restarts {
    /// Seconds of each start.
    pub seconds: Vec<f64>,
    pub peak_mb: f64,
    pub jobs: u64,
}

/// Indexes a long chain, then starts a host on the file again and again.
pub async fn measure(arguments: &Arguments, program: &Path, folder: &Path) -> Result<Restarts> {
    eprintln!("a chain of {} events", arguments.restart_events);
    let mut market = Market::open(&arguments.contracts, 1).await?;
    market.grow_to(arguments.restart_events).await?;
    let (devnet, book) = (&market.devnet, &market.book);
    let chain = Chain::connect(&devnet.rpc_url, CHAIN_ID, book.contracts.clone()).await?;
    place::host(devnet, &chain, book, folder, "restart").await?;
    let jobs = chain.jobs_posted(chain.head().await?.block).await?;
    let url = &devnet.rpc_url;
    let config = node::write(folder, "restart", url, url, book, "")?;
    let index = Program { path: program.to_owned(), prefix: Vec::new(), logs: folder.to_owned() };
    let indexed = tokio::task::block_in_place(|| index.measure(&config, &["index", "--once", "--json"]))?.1;
    eprintln!("  indexed: {indexed}");
    let (mut seconds, mut peak) = (Vec::new(), 0.0f64);
    for run in 0..arguments.restarts {
        let mut child = node::spawn(program, &config, &folder.join("restart"))?;
        let took = node::ready(&mut child, &folder.join("restart")).await?;
        peak = peak.max(peak_mb(child.id().context("a process")?).context("its memory")?);
        child.kill().await?;
        seconds.push(took.as_secs_f64());
        eprintln!("  start {run}: ready after {:.2} s", took.as_secs_f64());
    }
    ensure!(!seconds.is_empty(), "no start was measured");
    Ok(Restarts { seconds, peak_mb: rounded(peak, 1), jobs })
}
