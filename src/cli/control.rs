//! `fabstir pause`, `drain`, `resume`, `jobs retry` and `jobs abandon`: what an operator has a running node do, or leave.
//!
//! Each writes a row beside the node, which sees it at its next look; none needs the node to run, and none asks the chain.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use super::history::{existing, open};
use super::{Fault, Global, configuration, plain, print_json, say};
use crate::config::Config;
use crate::lock::Lock;
use crate::market::job::{Job, Next, Outcome};
use crate::market::types::{Address, JobId};
use crate::store::{Hold, HoldKind, Store};

/// Between two looks whether something is owed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct PauseArguments {
    /// Why, for those who ask for the status later.
    #[arg(long, value_name = "TEXT", default_value = "by the operator")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub struct DrainArguments {
    /// Why, for those who ask for the status later.
    #[arg(long, value_name = "TEXT", default_value = "by the operator")]
    reason: String,
    /// Wait until nothing is owed: no job of ours is open, no transaction waits.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Subcommand)]
pub enum JobCommand {
    /// Take up a job again that was given up or keeps failing: attempts start over.
    Retry {
        /// The job's number.
        job: u64,
    },
    /// Give a job up: nothing more is done for it.
    Abandon {
        /// The job's number.
        job: u64,
        /// Why, for its history.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Returns the account of the configured host.
pub async fn account(global: &Global, config: &Config) -> Result<Address> {
    let missing = || Fault::Usage.of(anyhow!("{} has no [host] section", global.config.display()));
    let host = config.host.as_ref().ok_or_else(missing)?;
    Ok(host.account().await.map_err(|error| Fault::Usage.of(error))?.address())
}

/// Runs `fabstir pause`.
pub async fn pause(global: &Global, arguments: &PauseArguments) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    hold(global, &store, HoldKind::Paused, &arguments.reason, None).await?;
    store.close().await;
    Ok(())
}

/// Holds claiming back, and says so; of `us`, where it is known, also what is still owed.
async fn hold(global: &Global, store: &Store, kind: HoldKind, reason: &str, us: Option<Address>) -> Result<()> {
    let new = store.hold(kind, reason).await?;
    let holds = store.holds().await?;
    let owed = match us {
        Some(us) => Some(owed(store, us).await?),
        None => None,
    };
    if global.json {
        let mut told = json!({ "new": new, "holds": holds });
        if let Some(owed) = &owed {
            told["owed"] = owed.count().into();
            told["jobs"] = owed.jobs.iter().map(|(id, state)| json!({ "job": id, "is": state })).collect();
            told["transactions"] = owed.transactions.into();
        }
        return print_json(&told);
    }
    let held = holds.iter().find(|hold| hold.kind == kind).context("it was just written")?;
    match new {
        false => say(format!("already {}: `fabstir resume` lifts it", plain(&held.to_string())))?,
        true => say(format!(
            "{}: no job is claimed until `fabstir resume`; what was claimed is finished",
            plain(&held.to_string())
        ))?,
    }
    let Some(Owed { jobs, transactions }) = owed else { return Ok(()) };
    jobs.iter().try_for_each(|(id, state)| say(format!("  owed: job {id} is {state}")))?;
    match (jobs.len(), transactions) {
        (0, 0) => say("nothing is owed: the node may be stopped"),
        (_, 0) => Ok(()),
        (_, open) => say(format!("  {open} transactions are open: `fabstir tx list` lists them")),
    }
}

/// Runs `fabstir resume`.
pub async fn resume(global: &Global) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    if let Some(how) = store.finality().await?.and_then(|finality| finality.violated) {
        let error = anyhow!("nothing is claimed or sent while the chain contradicts what it called final: {how}");
        return Err(Fault::Finality.of(error));
    }
    let lifted = store.resume().await?;
    store.close().await;
    if global.json {
        return print_json(&json!({ "lifted": lifted }));
    }
    match &lifted[..] {
        [] => say("nothing was held; the breaker counts from here"),
        lifted => lifted.iter().try_for_each(|hold| say(format!("lifted: {}", told(hold)))),
    }
}

/// Returns a hold with its time, for people.
pub fn told(hold: &Hold) -> String {
    format!("{} (since {})", plain(&hold.to_string()), super::history::utc(hold.at))
}

/// Runs `fabstir drain`.
pub async fn drain(global: &Global, arguments: &DrainArguments) -> Result<()> {
    let config = configuration(global)?;
    existing(&config)?;
    let store = open(&config).await?;
    if arguments.wait {
        let us = account(global, &config).await?;
        store.hold(HoldKind::Draining, &arguments.reason).await?;
        wait(&store, &config.data_dir, us).await?;
        match global.json {
            true => print_json(&json!({ "owed": 0 }))?,
            false => say("nothing is owed: the node may be stopped")?,
        }
    } else {
        // Who keeps the key may be out of reach; that must not keep the host from being held back.
        let us = account(global, &config).await;
        let us = us.inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "what is owed is not known"));
        hold(global, &store, HoldKind::Draining, &arguments.reason, us.ok()).await?;
    }
    store.close().await;
    Ok(())
}

/// Waits until nothing is owed, and shows how much still is.
///
/// # Errors
/// If no node runs, or the host no longer drains: then what is owed never becomes less.
async fn wait(store: &Store, data_dir: &Path, us: Address) -> Result<()> {
    let bar = super::run::progress("done of what is owed");
    let mut most = 0;
    loop {
        let owed = owed(store, us).await?.count();
        if !store.holds().await?.iter().any(|hold| hold.kind == HoldKind::Draining) {
            bail!(
                "the host drains no more, `fabstir resume` lifted it: it claims again, and {owed} jobs and transactions are open"
            );
        }
        if owed == 0 {
            bar.finish_and_clear();
            return Ok(());
        }
        if !Lock::is_taken(data_dir)? {
            bail!(
                "{owed} jobs and transactions are open, and no node runs that would finish them: start it, then drain"
            );
        }
        most = most.max(owed);
        bar.set_length(most);
        bar.set_position(most - owed);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a host has to see to before it may be stopped.
#[derive(Debug, PartialEq, Eq)]
struct Owed {
    /// Each with where it is.
    jobs: Vec<(JobId, String)>,
    /// How many are queued or signed.
    transactions: u64,
}

impl Owed {
    fn count(&self) -> u64 {
        self.jobs.len() as u64 + self.transactions
    }
}

/// Returns which jobs of ours are open, and how many transactions.
async fn owed(store: &Store, us: Address) -> Result<Owed> {
    let now = store.time().await?;
    let jobs = store.live_jobs().await?;
    let open = jobs.iter().filter(|job| {
        let hoped = job.host().is_none() && job.chosen;
        (hoped || job.host() == Some(us)) && !matches!(job.next(us, now), Next::Done(_))
    });
    let jobs = open.map(|job| (job.id, describe(job, job.next(us, now)))).collect();
    Ok(Owed { jobs, transactions: store.open_intents(us).await? })
}

/// Runs `fabstir jobs retry` and `fabstir jobs abandon`.
pub async fn job(global: &Global, command: &JobCommand) -> Result<()> {
    let config = configuration(global)?;
    existing(&config)?;
    let us = account(global, &config).await?;
    let store = open(&config).await?;
    let id = JobId(match command {
        JobCommand::Retry { job } | JobCommand::Abandon { job, .. } => *job,
    });
    let missing = || Fault::Usage.of(anyhow!("job {id} is not in the database: `fabstir jobs` lists those that are"));
    let job = store.job(id).await?.ok_or_else(missing)?;
    let next = job.next(us, store.time().await?);
    let state = describe(&job, next);
    let done = match command {
        JobCommand::Retry { .. } => {
            let failing = store.failing(&job).await?;
            let failed = !failing.is_empty();
            match next {
                Next::Done(Outcome::Abandoned) => {}
                Next::Do(_) | Next::Wait(_) if failed || job.abandoned.is_some() => {}
                _ => return Err(Fault::Usage.of(anyhow!("job {id} is {state}: there is nothing to retry"))),
            }
            store.retry(&job).await?;
            for (duty, error) in &failing {
                if !global.json {
                    say(format!("{duty} had failed: {}", plain(error)))?;
                }
            }
            "retried"
        }
        JobCommand::Abandon { reason, .. } => {
            let too_late = matches!(job.state.name(), "completed" | "disputed");
            if too_late || matches!(next, Next::Done(_)) {
                return Err(Fault::Usage.of(anyhow!("job {id} is {state}: there is nothing to give up")));
            }
            store.abandon(&job, reason).await?;
            "abandoned"
        }
    };
    store.close().await;
    if global.json {
        return print_json(&json!({ "job": id, "did": done, "was": state }));
    }
    say(format!("job {id} is {done}; it was {state}"))
}

/// Returns where a job is, and what it waits for, in words.
fn describe(job: &Job, next: Next) -> String {
    let name = job.state.name();
    match next {
        Next::Do(duty) => format!("{name}, to {}", duty.name()),
        Next::Wait(what) => format!("{name}, waiting for {what}"),
        Next::Done(Outcome::Abandoned) => match &job.abandoned {
            Some(reason) => format!("{name}, given up ({})", plain(reason)),
            None => format!("{name}, and cannot be opened from this database"),
        },
        Next::Done(outcome) => {
            let how = match outcome {
                Outcome::Settled => "paid",
                Outcome::Refunded => "over, the renter has the money back",
                Outcome::Lost => "another host's",
                _ => "past its deadline",
            };
            format!("{name}, {how}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::Intent;

    #[tokio::test]
    async fn a_drain_waits_for_a_node_that_lives_and_while_it_holds() -> Result<()> {
        let (folder, us) = (tempfile::tempdir()?, Address::repeat_byte(1));
        let read = |_: &crate::market::event::RawLog| bail!("no log is read here");
        let store = Store::open(&folder.path().join("node.sqlite"), 1, Address::ZERO, Arc::new(read)).await?;
        let owed = Intent {
            key: "release:1".into(),
            job: Some(JobId(1)),
            kind: "release",
            target: Address::ZERO,
            data: Default::default(),
            signer: us,
            gas: None,
            cost_max: None,
        };
        store.queue(&[owed]).await?;
        store.hold(HoldKind::Draining, "a test").await?;
        let refused = async || format!("{:#}", wait(&store, folder.path(), us).await.expect_err("it never ends"));
        assert!(refused().await.contains("1 jobs and transactions are open, and no node runs"));
        let _node = Lock::take(folder.path()).await?.context("it is free")?;
        store.lift(HoldKind::Draining).await?;
        assert!(refused().await.contains("drains no more"));
        store.hold(HoldKind::Draining, "a test").await?;
        let (waited, dropped) = tokio::join!(wait(&store, folder.path(), us), store.drop_intent(1, "done"));
        dropped?;
        waited
    }
}
