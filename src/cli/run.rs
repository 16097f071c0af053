//! `fabstir run` and `fabstir index`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Fault, Global, configuration, print_json};
use crate::chain::{Chain, Failure};
use crate::config::Config;
use crate::http::{Health, Metrics};
use crate::node::Node;
use crate::store::Store;
use crate::tasks::indexer::Indexer;
use crate::tasks::{Pass, Task};

#[derive(Debug, clap::Args)]
pub struct IndexArguments {
    /// Stop at the head of the chain, with every block proven that can be, instead of following it.
    #[arg(long)]
    once: bool,
    /// Stop at the head even if blocks are left to prove; the next run proves them.
    #[arg(long, requires = "once")]
    unproven: bool,
}

/// Runs the node until it is told to stop (SIGINT, SIGTERM) or a task breaks down.
pub async fn run(global: &Global) -> Result<()> {
    let config = configuration(global)?;
    connect(&config).await?;
    let mut node = Node::start(&config).await?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let role = node.host.map_or("observer".into(), |host| format!("host {host}"));
    let addresses: Vec<String> = node.p2p.listen_addresses().iter().map(ToString::to_string).collect();
    tracing::info!(role, http = %node.http_address(), peers = addresses.join(" "), "node started");
    // For other programs of this machine: where the node is, once it is there.
    let whereabouts =
        json!({ "http": node.http_address(), "p2p": addresses, "host": node.host, "pid": std::process::id() });
    let file = config.data_dir.join("node.json");
    std::fs::write(&file, whereabouts.to_string()).with_context(|| format!("write {}", file.display()))?;
    let failed = tokio::select! {
        _ = interrupt.recv() => false,
        _ = terminate.recv() => false,
        () = node.failed() => true,
    };
    tracing::info!("stopping: what is under way is taken up at the next start");
    let _ = std::fs::remove_file(&file);
    node.stop().await;
    if failed {
        bail!("a task broke down: see the log");
    }
    Ok(())
}

/// Connects and checks the endpoint; its failures have an exit code of their own.
pub async fn connect(config: &Config) -> Result<Chain> {
    let chain = Chain::unchecked(config.chain.endpoints(), config.chain.id, config.contracts.clone())?;
    if let Err(error) = chain.head().await {
        let fault = if Failure::is_other_chain(&error) { Fault::Usage } else { Fault::Endpoint };
        return Err(fault.of(error.context(format!("the endpoint {} does not answer", chain.name()))));
    }
    chain.check().await.map_err(|error| Fault::Usage.of(error))?;
    Ok(chain)
}

/// Follows the chain into the database and does nothing else.
pub async fn index(global: &Global, arguments: &IndexArguments) -> Result<()> {
    let config = configuration(global)?;
    let chain = connect(&config).await?;
    let marketplace = config.contracts.job_marketplace;
    let store = Store::open(&config.database(), config.chain.id, marketplace, Arc::new(chain.decoder())).await?;
    store.watch(&config.contracts.indexed()).await.map_err(|error| Fault::Usage.of(error))?;
    let metrics = Metrics::new();
    let mut indexer = Indexer::new(chain, store.clone(), Health::default(), metrics.clone(), config.chain.indexer());
    let bar = progress("blocks");
    let never = || tokio::sync::watch::channel(0).1;
    let mut heads = config.chain.ws_url.clone().map_or_else(never, Chain::wake_on_blocks);
    let follow = async {
        loop {
            heads.borrow_and_update();
            let passed = indexer.pass().await;
            let at = store.cursor().await?.map_or(0, |cursor| cursor.number);
            bar.set_length(metrics.head_block.get() as u64);
            bar.set_position(at);
            let at_head = at >= metrics.head_block.get() as u64;
            match passed {
                Ok(Pass::Again) if arguments.unproven && at_head => return anyhow::Ok(()),
                Ok(Pass::Again) => continue,
                Ok(Pass::Idle) if arguments.once => return anyhow::Ok(()),
                Ok(Pass::Idle) => {}
                Err(error) if arguments.once => return Err(Fault::Endpoint.of(error)),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "trying again"),
            }
            let poll = tokio::time::sleep(Duration::from_millis(config.chain.poll_ms));
            tokio::select! {
                Ok(()) = heads.changed() => {}
                () = poll => {}
            }
        }
    };
    tokio::select! {
        followed = follow => followed?,
        _ = tokio::signal::ctrl_c() => {}
    }
    bar.finish_and_clear();
    let (head, events) = store.journal_head().await?;
    let cursor = store.cursor().await?;
    store.close().await;
    let block = cursor.map(|cursor| cursor.number);
    if global.json {
        return print_json(&json!({ "block": block, "events": events, "journal_head": head }));
    }
    println!("{events} events up to block {}, journal head {head}", block.unwrap_or(0));
    Ok(())
}

/// Returns a progress bar on a terminal, and nothing elsewhere.
pub fn progress(what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:32} {pos}/{len} {msg} {per_sec} eta {eta}").expect("a valid constant");
    ProgressBar::new(0).with_style(style).with_message(what)
}
