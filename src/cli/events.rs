//! `fabstir events`: the canonical logs, decoded, and those to come.

use std::time::Duration;

use anyhow::{Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::history::{open, snapshot, utc};
use super::{Fault, Global, configuration, plain, say};
use crate::chain::Contracts;
use crate::market::event::Event;
use crate::market::types::{Address, JobId};
use crate::store::{EventFilter, EventRow, LogRow, News};

/// Events read at once, and shown first by `--follow`.
const PAGE: u32 = 1000;
const SHOWN_FIRST: u32 = 20;
/// How often a reader of our output is looked after while there is nothing to tell it.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct EventsArguments {
    /// Show the last ones, wait for more, and say when a reorg takes some away.
    #[arg(long, short)]
    follow: bool,
    /// Only events of this name, as JobClaimed; `undecoded`: logs that this program cannot read.
    #[arg(long, value_name = "NAME")]
    kind: Option<String>,
    /// Only events of this job.
    #[arg(long, value_name = "N")]
    job: Option<u64>,
    /// Only events of this contract: its name in the configuration, or its address.
    #[arg(long, value_name = "NAME|ADDRESS")]
    contract: Option<String>,
    /// Only events from this block on.
    #[arg(long, value_name = "BLOCK")]
    from: Option<u64>,
    /// Only events up to this block.
    #[arg(long, value_name = "BLOCK")]
    to: Option<u64>,
    /// Only the newest so many; with --follow, 20 to begin with.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// As of the end of this block.
    #[arg(long, value_name = "BLOCK", conflicts_with = "follow")]
    at_block: Option<u64>,
}

/// Runs `fabstir events`.
pub async fn events(global: &Global, arguments: &EventsArguments) -> Result<()> {
    let config = configuration(global)?;
    let contracts = config.contracts.clone();
    let address = arguments.contract.as_ref().map(|name| contract(&contracts, name)).transpose()?;
    let filter = EventFilter {
        kind: arguments.kind.clone(),
        job: arguments.job.map(JobId),
        address,
        from: arguments.from,
        to: arguments.to,
    };
    let show = |event: &EventRow| say(if global.json { as_json(event, &contracts)? } else { line(event) });
    let store = open(&config).await?;
    if !arguments.follow {
        let mut snapshot = snapshot(&store, arguments.at_block).await?;
        if let Some(limit) = arguments.limit {
            return snapshot.last_events(&filter, limit).await?.iter().try_for_each(show);
        }
        let mut place = None;
        loop {
            let page = snapshot.events(&filter, place, PAGE).await?;
            page.iter().try_for_each(show)?;
            let Some(last) = page.last() else { return Ok(()) };
            place = Some(last.row.log.place());
        }
    }
    let mut follower = store.follow(filter, arguments.limit.unwrap_or(SHOWN_FIRST)).await?;
    // One for the whole loop: another at each turn would miss a signal that comes while a turn's events are shown.
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let news = tokio::select! {
            news = follower.next() => news?,
            _ = interrupt.recv() => return Ok(()),
            () = reader_gone() => return Ok(()),
        };
        for news in &news {
            match news {
                News::Event(event) => show(event)?,
                News::Reorg { back_to } if global.json => say(json!({ "reorg": back_to }))?,
                News::Reorg { back_to } => say(format!("reorg: back to block {back_to}"))?,
            }
        }
    }
}

/// Waits until nobody can read our output any more.
async fn reader_gone() {
    let stdout = std::io::stdout();
    loop {
        let mut output = [PollFd::new(&stdout, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut output, Some(&now)).is_ok() && output[0].revents().contains(PollFlags::ERR) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn contract(contracts: &Contracts, name: &str) -> Result<Address> {
    let named = contracts.named();
    if let Some((_, address)) = named.iter().find(|(known, _)| *known == name) {
        return Ok(*address);
    }
    name.parse().map_err(|_| {
        let known: Vec<&str> = named.iter().map(|(known, _)| *known).collect();
        Fault::Usage.of(anyhow!("{name:?} is no address and none of the contracts {}", known.join(", ")))
    })
}

/// Returns the JSON line of an event.
fn as_json(event: &EventRow, contracts: &Contracts) -> Result<String> {
    let EventRow { row: LogRow { log, kind, job, link }, time, event, proof } = event;
    let contract = contracts.named().into_iter().find(|(_, address)| *address == log.address).map(|(name, _)| name);
    let hex = |bytes: &[u8]| alloy::hex::encode_prefixed(bytes);
    let fields = event.as_ref().map_or(Ok(Value::Null), serde_json::to_value)?;
    Ok(json!({
        "block": log.block.number, "log_index": log.index, "time": time, "kind": kind, "job": job, "contract": contract,
        "address": log.address, "tx_hash": log.tx, "block_hash": log.block.hash, "topics": hex(&log.topics.concat()),
        "data": hex(&log.data), "link": link, "proof": proof, "fields": fields,
    })
    .to_string())
}

/// Returns the line of an event for people.
fn line(event: &EventRow) -> String {
    let EventRow { row: LogRow { log, kind, job, .. }, time, event, .. } = event;
    let job = job.map_or("-".into(), |job| job.to_string());
    let tx: String = log.tx.to_string().chars().take(10).collect();
    let says = event.as_ref().map_or(String::new(), says);
    let kind = kind.as_deref().unwrap_or("undecoded");
    let line = format!(
        "{:>9} {:>4}  {}  {kind:<18} {job:>6}  {tx}  {}",
        log.block.number,
        log.index,
        utc(*time),
        plain(&says)
    );
    line.trim_end().to_owned()
}

/// Returns what an amount is counted in, in its smallest part.
pub fn unit(token: Address) -> String {
    if token.is_zero() { "ETH".into() } else { token.to_string() }
}

/// Returns what an event says besides its name and job, as far as it fits a line.
fn says(event: &Event) -> String {
    match event {
        Event::JobTerms { terms, .. } => format!(
            "pays {} of {}, at most {} tokens until {}, renter {}",
            terms.payment,
            unit(terms.token),
            terms.max_tokens,
            utc(terms.deadline),
            terms.renter
        ),
        Event::JobClaimed { host, .. } | Event::HostUnregistered { host } => format!("host {host}"),
        Event::JobReopened { controller, .. } => format!("given up by {controller}"),
        Event::ResultCommitted { host, commitment, .. } => {
            format!("host {host}, {} tokens, root {}", commitment.tokens, commitment.root)
        }
        Event::BeaconPinned { beacon, .. } => format!("beacon {beacon}"),
        Event::JobCompleted { output, .. } => format!("output {output}"),
        Event::JobDisputed { disputer, .. } => format!("by {disputer}"),
        Event::ReleaseDue { at, .. } => format!("from {}", utc(*at)),
        Event::PaymentReleased { host, amount, .. } => format!("{amount} to host {host}"),
        Event::PaymentRefunded { renter, amount, .. } => format!("{amount} to renter {renter}"),
        Event::EscrowCreated { amount, token, .. } => format!("{amount} of {}", unit(*token)),
        Event::EscrowReleased { net, fee, .. } => format!("{net} and {fee} fee"),
        Event::PaymentCredited { payee, token, amount } => format!("{amount} of {} to {payee}", unit(*token)),
        Event::CreditWithdrawn { payee, token, to, amount } => {
            format!("{amount} of {} of {payee} to {to}", unit(*token))
        }
        Event::HostRegistered { host, stake, .. } => format!("host {host}, stake {stake}"),
        Event::StakeAdded { host, amount } => format!("host {host}, {amount} more"),
        Event::HostSlashed { host, amount } => format!("host {host}, {amount} less"),
        Event::MetadataUpdated { host, metadata } => {
            format!("host {host}, {}", metadata.chars().take(60).collect::<String>())
        }
        Event::ReputationUpdated { host, score } => format!("host {host}, score {score}"),
        Event::Noted { .. } => String::new(),
    }
}
