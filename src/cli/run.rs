//! `fabstir run` and `fabstir index`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::notify::Notify;
use super::{Fault, Global, alone, configuration, print_json};
use crate::chain::{Chain, Failure};
use crate::config::Config;
use crate::http::{Health, Metrics};
use crate::node::{Left, Node};
use crate::store::Store;
use crate::tasks::indexer::Indexer;
use crate::tasks::{Pass, Task, breaker};

#[derive(Debug, clap::Args)]
pub struct IndexArguments {
    /// Stop at the head of the chain, with every block proven that can be, instead of following it.
    #[arg(long)]
    once: bool,
    /// Stop at the head even if blocks are left to prove; the next run proves them.
    #[arg(long, requires = "once")]
    unproven: bool,
}

/// How long a node takes to end when nothing is under way any more.
const STOP_MAX: Duration = Duration::from_secs(15);

/// Runs the node until it is told to stop (SIGINT, SIGTERM) or a task breaks down. Told so, it finishes what is under way within
/// `host.shutdown_seconds`; told again, it stops at once.
pub async fn run(global: &Global) -> Result<()> {
    let config = configuration(global)?;
    let mut notify = Notify::from_environment().map_err(|error| Fault::Usage.of(error))?;
    connect(&config).await?;
    let mut node = Node::start(&config).await?;
    let mut told = Told { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    let role = node.host.map_or("observer".into(), |host| format!("host {host}"));
    let addresses: Vec<String> = node.p2p.listen_addresses().iter().map(ToString::to_string).collect();
    tracing::info!(role, http = %node.http_address(), peers = addresses.join(" "), "node started");
    // For other programs of this machine: where the node is, once it is there.
    let whereabouts =
        json!({ "http": node.http_address(), "p2p": addresses, "host": node.host, "pid": std::process::id() });
    let file = config.node_file();
    std::fs::write(&file, whereabouts.to_string()).with_context(|| format!("write {}", file.display()))?;
    let mut beat = tokio::time::interval(notify.beat_every());
    let failed = loop {
        tokio::select! {
            () = told.stopped() => break None,
            failed = node.failed() => break Some(failed),
            _ = beat.tick() => tell(&node, &mut notify).await,
        }
    };
    if failed.is_none() {
        let limit = Duration::from_secs(config.host.as_ref().map_or(0, |host| host.shutdown_seconds));
        match finish(&node, &mut notify, limit, &mut told).await {
            Ok(left) if left == Left::default() => tracing::info!("everything under way has ended"),
            Ok(left) => tracing::warn!(left.leases, left.unsent, "left for the next start: {left}"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "what is left is not known"),
        }
    }
    notify.stopping(STOP_MAX);
    let _ = std::fs::remove_file(&file);
    node.stop().await;
    match failed {
        None => Ok(()),
        Some(reason) => bail!("a task broke down: {reason}"),
    }
}

/// How a process is told to stop.
struct Told {
    interrupt: Signal,
    terminate: Signal,
}

impl Told {
    async fn stopped(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Lets what is under way end, for at most `limit` and until told again. Returns what is left.
async fn finish(node: &Node, notify: &mut Notify, limit: Duration, told: &mut Told) -> Result<Left> {
    notify.stopping(limit + STOP_MAX);
    tracing::info!(seconds = limit.as_secs(), "stopping: nothing further is taken; what is under way may end");
    let mut beat = tokio::time::interval(notify.beat_every());
    let beats = async {
        loop {
            beat.tick().await;
            tell(node, notify).await;
        }
    };
    tokio::select! {
        finished = tokio::time::timeout(limit, node.finish()) => finished.unwrap_or(Ok(()))?,
        () = told.stopped() => {}
        () = beats => {}
    }
    node.left().await
}

/// Tells the service manager how the node does.
async fn tell(node: &Node, notify: &mut Notify) {
    let (problems, overdue) = (node.health.problems(), node.health.overdue());
    let block = node.store.cursor().await.ok().flatten().map_or(0, |cursor| cursor.number);
    let jobs = node.store.reservations().await.map_or(0, |jobs| jobs.len());
    let mut status = format!("block {block}, {jobs} jobs");
    for problem in &problems {
        status += &format!("; {}: {}", problem.part, problem.reason);
    }
    notify.beat(status, is_up(&node.health), !overdue.is_empty());
}

/// Returns whether the service manager may take the node for started. One that is not ready (`/readyz`) may be so for days, and across
/// restarts: paused, without money for gas, without an endpoint. To start it again would mend nothing.
fn is_up(health: &Health) -> bool {
    health.has_started(breaker::PART)
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
    let _alone = alone(&config).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_held_has_started_once_every_other_part_has_reported() {
        let health = Health::default();
        ["indexer", "survey", breaker::PART].into_iter().for_each(|part| health.expect(part, Duration::from_secs(60)));
        assert!(!is_up(&health));
        health.ill(breaker::PART, "paused: new disk");
        health.well("indexer");
        assert!(!is_up(&health), "one part has not reported");
        health.ill("survey", "no answer");
        assert!(is_up(&health) && !health.problems().is_empty(), "up, and not ready");
    }
}
