//! `fabstir jobs`, `fabstir job` and `fabstir receipts`: what the database says.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Fault, Global, configuration, print_json};
use crate::config::Config;
use crate::market::types::{Address, JobId, UnixSeconds};
use crate::store::{Entry, Finality, JobFilter, Store};

const STATES: [&str; 7] = ["posted", "claimed", "committed", "completed", "disputed", "released", "refunded"];

#[derive(Debug, clap::Args)]
pub struct JobsArguments {
    /// Only jobs in this state.
    #[arg(long, value_parser = STATES)]
    state: Option<String>,
    /// Only jobs of this host.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<Address>,
    /// At most this many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

#[derive(Debug, clap::Args)]
pub struct JobArguments {
    /// The job's number.
    job: u64,
}

/// Opens the configured database, which must exist; the endpoint is not asked.
pub async fn open(config: &Config) -> Result<Store> {
    let path = config.database();
    ensure!(
        path.exists(),
        Fault::Usage.of(anyhow::anyhow!("there is no database at {}: `fabstir index` makes one", path.display()))
    );
    Store::open(&path, config.chain.id, config.contracts.job_marketplace, Arc::new(config.contracts.decoder())).await
}

/// Runs `fabstir jobs`.
pub async fn jobs(global: &Global, arguments: &JobsArguments) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let filter = JobFilter { state: arguments.state.clone(), host: arguments.host, limit: arguments.limit };
    let jobs = store.jobs(&filter).await?;
    if global.json {
        return print_json(&jobs);
    }
    println!("{:>6}  {:<9}  {:<42}  {:>24}  {:>6}  MODEL", "JOB", "STATE", "HOST", "PAYMENT", "TOKENS");
    for job in jobs {
        let host = job.host.map_or("-".into(), |host| host.to_string());
        let tokens = job.tokens.map_or("-".into(), |tokens| tokens.to_string());
        println!(
            "{:>6}  {:<9}  {host:<42}  {:>24}  {tokens:>6}  {}",
            job.id,
            job.state,
            job.payment,
            short(&job.model)
        );
    }
    Ok(())
}

/// Runs `fabstir job`.
pub async fn job(global: &Global, arguments: &JobArguments) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let id = JobId(arguments.job);
    let job = store.job(id).await?.with_context(|| format!("job {id} is not in the database"))?;
    let row = crate::store::JobRow::of(&job);
    let timeline = store.timeline(id).await?;
    if global.json {
        return print_json(&json!({ "job": row, "terms": job.terms, "timeline": timeline.entries }));
    }
    println!("job {id}: {}", row.state);
    println!("  renter   {}\n  model    {}\n  input    {}", row.renter, row.model, job.terms.input);
    println!("  payment  {} of token {}\n  deadline {}", row.payment, row.token, utc(row.deadline));
    for entry in &timeline.entries {
        print_entry(entry);
    }
    Ok(())
}

fn print_entry(entry: &Entry) {
    let line = |time: &UnixSeconds, what: String| println!("  {}  {what}", utc(*time));
    match entry {
        Entry::Event { time, block, tx, name, canonical } => {
            let orphan = if *canonical { "" } else { "  (orphaned)" };
            line(time, format!("chain  {name} in block {block}, tx {}{orphan}", short(&tx.to_string())));
        }
        Entry::Work { time, work } => {
            line(time, format!("node   {}", work.name()));
            if let crate::market::job::Work::Chosen { reasons, .. } = work {
                reasons.iter().for_each(|reason| println!("                                {reason}"));
            }
            if let crate::market::job::Work::Abandoned { reason, .. } = work {
                println!("                                {reason}");
            }
        }
        Entry::Transaction { time, kind, state, nonce, gas_used, note, .. } => {
            let nonce = nonce.map_or(String::new(), |nonce| format!(", nonce {nonce}"));
            let gas = gas_used.map_or(String::new(), |gas| format!(", {gas} gas"));
            let note = note.as_ref().map_or(String::new(), |note| format!(": {note}"));
            line(time, format!("tx     {kind} {state}{nonce}{gas}{note}"));
        }
    }
}

/// Runs `fabstir status`: how far the database goes, and what of it is proven.
pub async fn status(global: &Global) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let (cursor, coverage) = (store.cursor().await?, store.coverage().await?);
    let (head, events) = store.journal_head().await?;
    let (finality, doubts) = (store.finality().await?, store.doubts().await?);
    if global.json {
        return print_json(&json!({
            "block": cursor.map(|cursor| cursor.number), "events": events, "journal_head": head, "coverage": coverage,
            "final": finality, "doubts": doubts,
        }));
    }
    let Some(cursor) = cursor else {
        println!("nothing is indexed yet");
        return Ok(());
    };
    println!("{events} events up to block {}, journal head {head}", cursor.number);
    match finality {
        None => println!("the chain has called no block final yet"),
        Some(Finality { block, safe, violated: None }) => {
            println!("final up to block {}, safe up to block {safe}", block.number);
        }
        Some(Finality { violated: Some(how), .. }) => println!("FINALITY VIOLATED: {how}"),
    }
    for (job, what) in doubts {
        println!("IN DOUBT: job {job}: {what}");
    }
    for range in coverage {
        let reason = range.reason.map_or(String::new(), |reason| format!(": {reason}"));
        println!("blocks {:>9} to {:>9}  {}{reason}", range.from, range.to, range.level.name());
    }
    Ok(())
}

/// Runs `fabstir rederive`: makes what follows from the journal anew, without asking anybody.
pub async fn rederive(global: &Global) -> Result<()> {
    let config = configuration(global)?;
    super::refuse_while_running(&config)?;
    let store = open(&config).await?;
    let bar = super::run::progress("logs");
    let (_, logs) = store.journal_head().await?;
    bar.set_length(logs);
    let done = store.rederive(|done| bar.set_position(done)).await?;
    bar.finish_and_clear();
    store.close().await;
    if global.json {
        return print_json(&done);
    }
    println!("{} logs and {} jobs derived anew, journal head {}", done.logs, done.jobs, done.journal_head);
    match (done.logs_changed, &done.jobs_changed[..]) {
        (0, []) => println!("nothing was otherwise"),
        (logs, jobs) => {
            let jobs: Vec<String> = jobs.iter().map(ToString::to_string).collect();
            println!("changed: {logs} logs, jobs {}", if jobs.is_empty() { "none".into() } else { jobs.join(", ") });
        }
    }
    Ok(())
}

/// Runs `fabstir receipts`.
pub async fn receipts(global: &Global) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let receipts = store.peer_receipts().await?;
    if global.json {
        let receipts: Vec<_> = receipts
            .iter()
            .map(|kept| json!({ "receipt": kept.signed, "peer": kept.peer, "agreed": kept.agreed }))
            .collect();
        return print_json(&receipts);
    }
    println!("{:>6}  {:<42}  {:>6}  OUTPUT", "JOB", "HOST", "TOKENS");
    for kept in receipts {
        let receipt = kept.signed.receipt;
        println!("{:>6}  {:<42}  {:>6}  {}", receipt.job, receipt.host.to_string(), receipt.tokens, receipt.output);
    }
    Ok(())
}

/// Returns a time as people read it, in UTC.
fn utc(time: UnixSeconds) -> String {
    i64::try_from(time.0)
        .ok()
        .and_then(|second| jiff::Timestamp::from_second(second).ok())
        .map_or_else(|| format!("{} s", time.0), |time| time.to_string())
}

fn short(text: &str) -> String {
    text.chars().take(18).collect()
}
