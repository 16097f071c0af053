//! `fabstir jobs`, `fabstir job`, `fabstir status` and `fabstir receipts`: what the database says, now or as of a block.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Fault, Global, Ready, configuration, plain, print_json, readiness, say};
use crate::config::Config;
use crate::market::job::Work;
use crate::market::types::{Address, B256, JobId, UnixSeconds};
use crate::store::{Entry, JobFilter, JobRow, NotStored, Snapshot, Store};

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
    /// As of the end of this block.
    #[arg(long, value_name = "BLOCK")]
    at_block: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct JobArguments {
    /// The job's number.
    job: u64,
    /// As of the end of this block; our own work and transactions as of its time.
    #[arg(long, value_name = "BLOCK")]
    at_block: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct StatusArguments {
    /// As of the end of this block.
    #[arg(long, value_name = "BLOCK")]
    at_block: Option<u64>,
}

/// Returns the configured database's file, which must exist.
pub fn existing(config: &Config) -> Result<PathBuf> {
    let path = config.database();
    ensure!(
        path.exists(),
        Fault::Usage.of(anyhow::anyhow!("there is no database at {}: `fabstir index` makes one", path.display()))
    );
    Ok(path)
}

/// Opens the configured database, which must exist; the endpoint is not asked.
///
/// # Errors
/// As [`Store::open`]; and if a node runs whose file would be migrated.
pub async fn open(config: &Config) -> Result<Store> {
    super::refuse_to_migrate(config).await?;
    open_alone(config).await
}

/// As [`open`], for who holds the lock: no node runs.
pub async fn open_alone(config: &Config) -> Result<Store> {
    let path = existing(config)?;
    Store::open(&path, config.chain.id, config.contracts.job_marketplace, Arc::new(config.contracts.decoder())).await
}

/// Returns the stored chain as of a block, or the newest; one that is not stored is the user's error.
pub async fn snapshot(store: &Store, at: Option<u64>) -> Result<Snapshot> {
    store.snapshot(at).await.map_err(|error| if error.is::<NotStored>() { Fault::Usage.of(error) } else { error })
}

/// Runs `fabstir jobs`.
pub async fn jobs(global: &Global, arguments: &JobsArguments) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let filter = JobFilter { state: arguments.state.clone(), host: arguments.host, limit: arguments.limit };
    let jobs = match arguments.at_block {
        None => store.jobs(&filter).await?,
        at => snapshot(&store, at).await?.jobs(&filter).await?,
    };
    if global.json {
        return print_json(&jobs);
    }
    say(format!("{:>6}  {:<9}  {:<42}  {:>24}  {:>6}  MODEL", "JOB", "STATE", "HOST", "PAYMENT", "TOKENS"))?;
    for job in jobs {
        let host = job.host.map_or("-".into(), |host| host.to_string());
        let tokens = job.tokens.map_or("-".into(), |tokens| tokens.to_string());
        let model = plain(&short(&job.model));
        let (state, payment) = (job.state, job.payment);
        say(format!("{:>6}  {state:<9}  {host:<42}  {payment:>24}  {tokens:>6}  {model}", job.id))?;
    }
    Ok(())
}

/// Runs `fabstir job`.
pub async fn job(global: &Global, arguments: &JobArguments) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let id = JobId(arguments.job);
    let (job, timeline) = match arguments.at_block {
        None => (store.job(id).await?, store.timeline(id).await?),
        at => {
            let mut snapshot = snapshot(&store, at).await?;
            (snapshot.job(id).await?, snapshot.timeline(id).await?)
        }
    };
    let job = job.with_context(|| match arguments.at_block {
        None => format!("job {id} is not in the database"),
        Some(block) => format!("job {id} is not in the database as of block {block}"),
    })?;
    let row = JobRow::of(&job);
    if global.json {
        return print_json(&json!({ "job": row, "terms": job.terms, "timeline": timeline.entries }));
    }
    say(format!("job {id}: {}", row.state))?;
    say(format!("  renter   {}", row.renter))?;
    say(format!("  model    {}\n  input    {}", plain(&row.model), plain(&job.terms.input)))?;
    say(format!("  payment  {} of token {}\n  deadline {}", row.payment, row.token, utc(row.deadline)))?;
    timeline.entries.iter().try_for_each(print_entry)
}

fn print_entry(entry: &Entry) -> Result<()> {
    let line = |time: &UnixSeconds, what: String| say(format!("  {}  {what}", utc(*time)));
    let note = |text: &String| say(format!("                                {}", plain(text)));
    match entry {
        Entry::Event { time, block, tx, name, proof, .. } => {
            let proof = proof.map_or("orphaned", |proof| proof.name());
            line(time, format!("chain  {name} in block {block} ({proof}), tx {}", short(&tx.to_string())))
        }
        Entry::Work { time, work } => {
            line(time, format!("node   {}", work.name()))?;
            match work {
                Work::Chosen { reasons, .. } => reasons.iter().try_for_each(note),
                Work::ClaimFailed { reason, .. } | Work::Abandoned { reason, .. } => note(reason),
                _ => Ok(()),
            }
        }
        Entry::Transaction { time, kind, state, nonce, gas_used, note, .. } => {
            let nonce = nonce.map_or(String::new(), |nonce| format!(", nonce {nonce}"));
            let gas = gas_used.map_or(String::new(), |gas| format!(", {gas} gas"));
            let note = note.as_ref().map_or(String::new(), |note| format!(": {}", plain(note)));
            line(time, format!("tx     {kind} {state}{nonce}{gas}{note}"))
        }
    }
}

/// Runs `fabstir status`: how far the database goes, what of it is proven, and what the node that runs says is wrong.
pub async fn status(global: &Global, arguments: &StatusArguments) -> Result<()> {
    let config = configuration(global)?;
    let store = open(&config).await?;
    let node = if arguments.at_block.is_none() { readiness(&config).await } else { None };
    let of_node = node.as_ref().map(|said| match said {
        Ok(ready) => json!(ready),
        Err(why) => json!({ "ready": null, "silent": why }),
    });
    if arguments.at_block.is_none() && store.cursor().await?.is_none() {
        let (none, holds): ([u8; 0], _) = ([], store.holds().await?);
        let nothing = json!({
            "block": null, "events": 0, "journal_head": B256::ZERO, "coverage": none, "final": null, "holds": holds,
            "node": of_node,
        });
        if global.json {
            return print_json(&nothing);
        }
        holds.iter().try_for_each(|hold| say(format!("NO CLAIMS: {}", super::control::told(hold))))?;
        say_of_node(node)?;
        return say("nothing is indexed yet");
    }
    let mut snapshot = snapshot(&store, arguments.at_block).await?;
    let (head, events) = snapshot.journal_head().await?;
    let coverage = snapshot.coverage().await?;
    let finality = snapshot.finality();
    let (doubts, conflicts, holds) = (store.doubts().await?, store.conflicts().await?, store.holds().await?);
    if global.json {
        let finality = finality.map(
            |(number, hash, violated)| json!({ "block": { "number": number, "hash": hash }, "violated": violated }),
        );
        return print_json(&json!({
            "block": snapshot.block, "events": events, "journal_head": head, "coverage": coverage, "final": finality,
            "doubts": doubts, "conflicts": conflicts, "holds": holds,
            "node": of_node,
        }));
    }
    say(format!("{events} events up to block {}, journal head {head}", snapshot.block))?;
    match finality {
        None => say("the chain has called no block final yet")?,
        Some((block, _, None)) => say(format!("final up to block {block}"))?,
        Some((_, _, Some(how))) => say(format!("FINALITY VIOLATED: {how}"))?,
    }
    for hold in holds {
        say(format!("NO CLAIMS: {}", super::control::told(&hold)))?;
    }
    say_of_node(node)?;
    for (job, what) in doubts {
        say(format!("IN DOUBT: job {job}: {what}"))?;
    }
    for (_, what) in conflicts {
        say(format!("CONFLICT: {what}"))?;
    }
    for range in coverage {
        let reason = range.reason.map_or(String::new(), |reason| format!(": {reason}"));
        say(format!("blocks {:>9} to {:>9}  {}{reason}", range.from, range.to, range.level.name()))?;
    }
    Ok(())
}

/// Says what the running node says is wrong: what keeps it from claiming now, and the rest.
fn say_of_node(node: Option<Result<Ready, String>>) -> Result<()> {
    match node {
        None => say("no node runs with this database"),
        Some(Err(why)) => say(format!("THE NODE DOES NOT ANSWER: {}", plain(&why))),
        Some(Ok(said)) => said
            .problems
            .iter()
            .try_for_each(|problem| say(format!("NOT READY: {}: {}", problem.part, plain(&problem.reason)))),
    }
}

/// Runs `fabstir rederive`: makes what follows from the journal anew, without asking anybody.
pub async fn rederive(global: &Global) -> Result<()> {
    let config = configuration(global)?;
    let _alone = super::alone(&config).await?;
    let store = open_alone(&config).await?;
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
    say(format!("{:>6}  {:<42}  {:>6}  OUTPUT", "JOB", "HOST", "TOKENS"))?;
    for kept in receipts {
        let receipt = kept.signed.receipt;
        let host = receipt.host.to_string();
        say(format!("{:>6}  {host:<42}  {:>6}  {}", receipt.job, receipt.tokens, receipt.output))?;
    }
    Ok(())
}

/// Returns a time as people read it, in UTC.
pub fn utc(time: UnixSeconds) -> String {
    i64::try_from(time.0)
        .ok()
        .and_then(|second| jiff::Timestamp::from_second(second).ok())
        .map_or_else(|| format!("{} s", time.0), |time| time.to_string())
}

fn short(text: &str) -> String {
    text.chars().take(18).collect()
}
