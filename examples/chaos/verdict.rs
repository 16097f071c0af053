//! What must hold once nothing moves any more, from the chain and from the hosts' files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use fabstir::engine::{self, Engine};
use fabstir::market::types::{B256, Cid, JobId, U256};
use serde_json::Value;
use sqlx::{Row, SqlitePool};

use crate::facts::Fate;
use crate::host::{Host, SLOTS};
use crate::market::Market;

/// A claimed job that had this long to its deadline must be done or given up, whatever happens; in seconds.
pub const ENOUGH_SECONDS: u64 = 300;
/// Candidates of each record, as the circuit has it.
const CANDIDATES: usize = 8;

/// A job as it was ordered.
#[derive(Debug, Clone)]
pub struct Ordered {
    pub prompt: String,
    pub max_tokens: u32,
    pub seed: u32,
    pub deadline_seconds: u64,
}

/// What was found wrong.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Claims of ours that came to nothing, although there was time.
    pub lost: u64,
    /// Runs, claims and completions beyond the first.
    pub duplicated: u64,
    /// Nonces without a settled transaction of ours.
    pub nonce_gaps: u64,
    pub wei_off: U256,
    /// Outputs that the model does not give to what was ordered.
    pub outputs_wrong: u64,
    /// Each in words; what the numbers above do not count is here alone.
    pub wrong: Vec<String>,
}

impl Verdict {
    fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// Judges the jobs by what the chain says of them.
    pub async fn judge_jobs(
        &mut self,
        market: &Market,
        hosts: &[Host],
        fates: &BTreeMap<u64, Fate>,
        orders: &HashMap<B256, Ordered>,
    ) -> Result<()> {
        let config = engine::Config {
            path: market.model_file.clone(),
            slots: 1,
            context_tokens: 512,
            threads: 1,
            gpu_layers: 0,
            candidates: CANDIDATES,
            queue_max: 0,
        };
        let engine = Engine::load(config)?;
        for (&job, fate) in fates {
            if !fate.is_over() {
                self.wrong(format!("job {job} has not ended: {fate:?}"));
            }
            if fate.claims > 1 + fate.reopened || fate.completed.len() > 1 {
                self.duplicated += 1;
                self.wrong(format!("job {job} was claimed or completed twice: {fate:?}"));
            }
            let Some(ordered) = orders.get(&fate.posted_by) else {
                self.wrong(format!("job {job} was posted by {}, which this run did not send", fate.posted_by));
                continue;
            };
            let Some((host, claimed_in)) = fate.claimed else { continue };
            let Some(host) = hosts.iter().find(|it| it.address == host) else {
                self.wrong(format!("job {job} was claimed by {host}, who is no host of this run"));
                continue;
            };
            let Some(output) = fate.completed.first() else {
                let had = self.had(market, fate, claimed_in, ordered).await?;
                if had >= ENOUGH_SECONDS {
                    self.lost += 1;
                    self.wrong(format!("job {job}: {} had {had} s and neither did it nor gave it up", host.name));
                }
                continue;
            };
            if let Err(error) = same_output(&engine, host, job, ordered, output, fate.committed).await {
                self.outputs_wrong += 1;
                self.wrong(format!("job {job} of {}: {error:#}", host.name));
            }
        }
        Ok(())
    }

    /// Returns how long a host had from the block of its claim, in seconds.
    async fn had(&self, market: &Market, fate: &Fate, claimed_in: u64, ordered: &Ordered) -> Result<u64> {
        let posted_in = market.block_of(fate.posted_by).await?.context("a job without a posting")?;
        let (posted, claimed) = (market.time_of(posted_in).await?, market.time_of(claimed_in).await?);
        Ok((posted + ordered.deadline_seconds).saturating_sub(claimed))
    }

    /// Judges a host's file against the chain.
    pub async fn judge_host(&mut self, market: &Market, host: &Host, fates: &BTreeMap<u64, Fate>) -> Result<()> {
        let database = host.database().await?.with_context(|| format!("{} has no database", host.name))?;
        self.judge_runs(host, fates, &database).await?;
        self.judge_nonces(market, host, &database).await?;
        for row in sqlx::query("PRAGMA integrity_check").fetch_all(&database).await? {
            let said: String = row.get(0);
            if said != "ok" {
                self.wrong(format!("{}: integrity_check: {said}", host.name));
            }
        }
        let live: Vec<String> = sqlx::query_scalar(
            "SELECT key || ' ' || tx_intent.state FROM tx_intent LEFT JOIN job ON job.id = tx_intent.job
             WHERE tx_intent.state IN ('queued', 'signed') AND (deadline IS NULL OR deadline < ?)",
        )
        .bind(market.time().await? as i64)
        .fetch_all(&database)
        .await?;
        for intent in live {
            self.wrong(format!("{}: {intent} past its deadline", host.name));
        }
        let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM reservation").fetch_one(&database).await?;
        if kept > 0 {
            self.wrong(format!("{}: {kept} slots are still reserved", host.name));
        }
        database.close().await;
        Ok(())
    }

    /// One run for each claim: a job that was claimed again after a reorg is not run again.
    async fn judge_runs(&mut self, host: &Host, fates: &BTreeMap<u64, Fate>, database: &SqlitePool) -> Result<()> {
        let rows = sqlx::query(
            "SELECT job, count(*), count(DISTINCT body ->> '$.output') FROM work WHERE did = 'Inferred' GROUP BY job",
        )
        .fetch_all(database)
        .await?;
        let runs: HashMap<i64, (i64, i64)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        for (job, (times, outputs)) in &runs {
            if times > outputs {
                self.duplicated += (times - outputs) as u64;
                self.wrong(format!("{}: the model ran {times} times for job {job}", host.name));
            }
        }
        for (job, fate) in fates {
            let done = !fate.completed.is_empty() && fate.claimed.is_some_and(|(by, _)| by == host.address);
            if done && !runs.contains_key(&(*job as i64)) {
                self.wrong(format!("{}: job {job} was completed without a run", host.name));
            }
        }
        Ok(())
    }

    async fn judge_nonces(&mut self, market: &Market, host: &Host, database: &SqlitePool) -> Result<()> {
        let rows = sqlx::query(
            "SELECT nonce, state, lower(hex(hash)) FROM tx_intent LEFT JOIN tx_attempt ON intent = tx_intent.id
             WHERE nonce IS NOT NULL AND signer = ?",
        )
        .bind(host.address.as_slice())
        .fetch_all(database)
        .await?;
        let mut ours: HashMap<u64, (String, HashSet<String>)> = HashMap::new();
        for row in &rows {
            let entry = ours.entry(row.get::<i64, _>(0) as u64).or_insert_with(|| (row.get(1), HashSet::new()));
            entry.1.extend(row.get::<Option<String>, _>(2));
        }
        let onchain = market.transactions(&[host.address]).await?;
        let next = market.nonce(host.address, "latest").await?;
        let most = ours.keys().max().map_or(next, |nonce| next.max(nonce + 1));
        for nonce in host.first_nonce..most {
            let found = onchain.get(&(host.address, nonce));
            let known = ours.get(&nonce);
            let right = match (found, known) {
                (Some((hash, success)), Some((state, attempts))) => {
                    let is_ours = attempts.contains(&format!("{hash:x}"));
                    is_ours
                        && match state.as_str() {
                            "mined" => *success,
                            "reverted" => !*success,
                            state => state == "cancelled",
                        }
                }
                _ => false,
            };
            if !right {
                self.nonce_gaps += 1;
                self.wrong(format!(
                    "{}: nonce {nonce}: the chain has {found:?}, the file {:?}",
                    host.name,
                    known.map(|it| &it.0)
                ));
            }
        }
        Ok(())
    }

    /// Judges a host's books, its projection, and both against a file made of the chain alone.
    pub async fn judge_books(&mut self, market: &Market, host: &Host, fates: &BTreeMap<u64, Fate>) -> Result<()> {
        let url = &market.devnet.rpc_url;
        let (code, ledger, said) = host.ask(url, &["ledger", "--check"]).await?;
        if code != Some(0) {
            self.wrong(format!("{}: ledger --check ends with {code:?}: {ledger} {said}", host.name));
        }
        let unexplained = ledger["check"]["books"]["unexplained"].as_str().unwrap_or("no answer");
        match U256::from_str(unexplained.trim_start_matches('-')) {
            Ok(wei) => self.wei_off += wei,
            Err(_) => self.wrong(format!("{}: the ledger says {unexplained}", host.name)),
        }
        let paid = fates.values().filter_map(|fate| fate.released).filter(|(to, _)| *to == host.address);
        let paid: U256 = paid.map(|(_, wei)| wei).sum();
        let income = &ledger["total"]["income"];
        let net = income.as_object().and_then(|income| income.values().next()).map(|income| income["net"].clone());
        let net = net.as_ref().and_then(Value::as_str).map_or(Ok(U256::ZERO), U256::from_str)?;
        if net != paid {
            self.wei_off += net.abs_diff(paid);
            self.wrong(format!("{}: the ledger has {net} wei of income, the chain paid {paid}", host.name));
        }
        let (code, audit, said) = host.ask(url, &["audit"]).await?;
        if code != Some(0) {
            self.wrong(format!("{}: audit ends with {code:?}: {audit} {said}", host.name));
        }
        let (_, again, said) = host.ask(url, &["rederive"]).await?;
        if again["logs_changed"] != 0 || again["jobs_changed"].as_array().is_none_or(|jobs| !jobs.is_empty()) {
            self.wrong(format!("{}: rederive changed something: {again} {said}", host.name));
        }
        Ok(())
    }

    /// Holds each host's projection against one made from the first block by a node that saw none of this.
    pub async fn judge_genesis(&mut self, market: &Market, hosts: &[Host], fresh: &Host) -> Result<()> {
        let url = &market.devnet.rpc_url;
        let (code, indexed, said) = fresh.ask(url, &["index", "--once"]).await?;
        ensure!(code == Some(0), "index from the first block ends with {code:?}: {indexed} {said}");
        let (_, genesis, _) = fresh.ask(url, &["audit"]).await?;
        for host in hosts {
            let (_, own, _) = host.ask(url, &["audit"]).await?;
            for what in ["journal_head", "projection_root"] {
                if own[what] != genesis[what] || !own[what].is_string() {
                    let (own, genesis) = (&own[what], &genesis[what]);
                    self.wrong(format!("{}: {what} is {own}, from the first block {genesis}", host.name));
                }
            }
        }
        Ok(())
    }
}

/// A host's reservations as they were last seen.
#[derive(Debug, Default)]
pub struct Slots {
    /// The job and when it was reserved.
    taken: HashSet<(i64, i64)>,
    /// The newest work then.
    work: i64,
}

impl Slots {
    /// Returns what is wrong where a job was chosen with all slots taken, or where there are more than slots without a claim of this
    /// host: only what the chain once said to be its own is taken on whatever there is room for.
    pub async fn look(&mut self, database: &SqlitePool) -> Result<Option<String>> {
        let rows = sqlx::query(
            "SELECT job, at, EXISTS (SELECT 1 FROM log WHERE log.job = reservation.job AND kind = 'JobClaimed'),
                    EXISTS (SELECT 1 FROM work WHERE work.job = reservation.job AND did = 'Chosen' AND seq > ?),
                    (SELECT max(seq) FROM work)
             FROM reservation",
        )
        .bind(self.work)
        .fetch_all(database)
        .await?;
        let taken: HashSet<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let unclaimed = rows.iter().filter(|row| !row.get::<bool, _>(2)).count();
        let chosen: HashSet<(i64, i64)> =
            rows.iter().filter(|row| row.get(3)).map(|row| (row.get(0), row.get(1))).collect();
        let stayed = taken.intersection(&self.taken).filter(|row| !chosen.contains(row)).count();
        let full = !chosen.is_empty() && stayed + chosen.len() > SLOTS;
        let wrong = (full || unclaimed > SLOTS).then(|| {
            format!(
                "{} of {SLOTS} slots are taken, {stayed} for longer, {} chosen now, {unclaimed} never claimed",
                taken.len(),
                chosen.len()
            )
        });
        self.work = rows.first().and_then(|row| row.get(4)).unwrap_or(self.work);
        self.taken = taken;
        Ok(wrong)
    }
}

/// Fails unless the chain has the output that the model gives to this order, and the host still has its bytes.
async fn same_output(
    engine: &Engine,
    host: &Host,
    job: u64,
    ordered: &Ordered,
    output: &str,
    committed: Option<B256>,
) -> Result<()> {
    let output = Cid::from_str(output)?;
    ensure!(committed == Some(output.chain_hash()), "it committed to {committed:?} and handed in {output}");
    let bytes = host.content.get(&output)?.with_context(|| format!("its output {output} is gone"))?;
    let request = engine::Request {
        job: JobId(job),
        prompt: ordered.prompt.clone(),
        max_tokens: ordered.max_tokens,
        temperature_milli: crate::TEMPERATURE_MILLI,
        seed: ordered.seed,
    };
    let mut generation = engine.submit(request)?;
    let mut text = String::new();
    while let engine::Event::Step(step) = generation.next().await? {
        text.push_str(&step.text);
    }
    let handed_in = String::from_utf8_lossy(&bytes);
    ensure!(Cid::of(text.as_bytes()) == output, "it handed in {handed_in:?}, the model says {text:?}");
    Ok(())
}
