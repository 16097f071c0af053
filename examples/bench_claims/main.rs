//! Measures a host from a job's log to its claim and on to its completion: the released program as a child process, on a real chain
//! that makes a block a second, with a real model and jobs that ask for one token and no proof.
//!
//! `make bench-claims` runs it; `ARGS` goes to it. Progress goes to standard error, and last one JSON object on one line to standard
//! output:
//!
//! - `claim_p50_ms`, `claim_p99_ms`: from the moment the node was handed an answer that tells of the job to the one when the chain had
//!   accepted its claim, of jobs posted at `--rate` a second; both are seen by an endpoint in between, which only takes note
//! - `calls_before_claim`: requests of the node, for anything but to send, that came between the two, a job
//! - `burst_s`: of as many jobs posted in one block, from the first answer that tells of one to the acceptance of the last claim
//! - `jobs_per_hour`: from the first posting at that rate to the last completion
//! - `restart_p50_s`, `restart_p99_s`, `restart_mb`: from the start of the process on a file of `--restart-jobs` jobs to the answer of
//!   `/readyz` that claims are made; left out with `--restarts 0`
//! - `policy_us`: one decision on the whole chain of rules, without words (`bench_policy` says more); of this build of the rules
//! - `field_shape_claim_p50_ms`: the same latency on the same chain of the shape that others have: look every 100 ms, one transaction
//!   at a time, wait for its receipt; of the jobs that it came to within `--field-seconds`
//! - `rivals_double_claims`: three hosts of this program take turns at jobs posted at `--rate` (`host.policy.turn_seconds = 2`); jobs of
//!   which the chain has more claims than they were open to claim, which must be none
//! - `rivals_claims`: how many of the jobs each of the three claimed
//! - `rivals_reverted_gas`: the gas of their transactions that came to nothing, of all the gas of their claims, 0 to 1, from the
//!   receipts: those that were mined and refused, and empty ones that took the nonce of a claim that was in vain; both are in the
//!   divisor as well
//! - `rivals_reverted_gas_without_turns`: the same of three that race, over a fifth of the jobs
//! - `fees_stuck`: two jobs a second are posted to one host, and for `--spike-seconds` each block's base fee is twenty times as high as
//!   before, from one block to the next; its transactions that are not settled 90 s after that, of those it owed before the spike's
//!   end and those it has owed for more than a minute (`fabstir tx list`)
//! - `fees_above_ceiling`: its mined transactions that paid or offered more than `host.fee_cap_max_wei`, fifty times the usual base fee
//! - `fees_completed` of `fees_posted`: jobs completed on chain by then; the last are posted 60 s after the spike
//! - `fees_bumps`: attempts beyond the first of all its transactions

mod between;
mod fees;
mod field;
#[path = "../bench_index/market.rs"]
#[allow(dead_code)]
mod market;
mod mined;
mod node;
mod place;
#[path = "../bench_policy.rs"]
#[allow(dead_code)]
mod policy;
#[path = "../bench_index/process.rs"]
#[allow(dead_code)]
mod process;
mod restart;
mod rivals;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;

use between::{Between, Times};
use node::Host;
use place::Place;
use process::rounded;

/// Seconds that a rival waits for each that comes before it: two blocks.
const TURN_SECONDS: u64 = 2;

#[derive(Debug, Parser)]
struct Arguments {
    /// Jobs of each part.
    #[arg(long, default_value_t = 1000)]
    jobs: u64,
    /// Jobs posted in a second.
    #[arg(long, default_value_t = 20)]
    rate: u64,
    /// How long the field's shape is measured.
    #[arg(long, default_value_t = 60)]
    field_seconds: u64,
    /// How often the program is started on a large file.
    #[arg(long, default_value_t = 20)]
    restarts: usize,
    /// Events of that file; about ten to a job.
    #[arg(long, default_value_t = 1_000_000)]
    restart_events: u64,
    /// How long the base fee is twenty times as high.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    spike_seconds: u64,
    /// Measure these parts alone; the others' figures are null.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The program; default: `release/fabstir` in the target folder.
    #[arg(long, value_name = "FILE")]
    fabstir: Option<PathBuf>,
    /// Where the databases go, on a disk; default: `bench` in the target folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the databases and logs where they are.
    #[arg(long)]
    keep: bool,
    /// The contracts' folder, built.
    #[arg(long, default_value = "contracts", value_name = "DIR")]
    contracts: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Rate,
    Burst,
    Field,
    Restart,
    Policy,
    Rivals,
    Fees,
}

/// What is printed, in this order.
#[derive(Debug, Default, Serialize)]
struct Report {
    claim_p50_ms: Option<f64>,
    claim_p99_ms: Option<f64>,
    jobs_per_hour: Option<f64>,
    restart_p99_s: Option<f64>,
    policy_us: Option<f64>,
    field_shape_claim_p50_ms: Option<f64>,
    field_shape_claimed: Option<usize>,
    calls_before_claim: Option<f64>,
    burst_s: Option<f64>,
    restart_p50_s: Option<f64>,
    restart_mb: Option<f64>,
    restart_jobs: Option<u64>,
    rivals_double_claims: Option<usize>,
    rivals_reverted_gas: Option<f64>,
    rivals_claims: Option<Vec<usize>>,
    rivals_reverted_gas_without_turns: Option<f64>,
    fees_stuck: Option<usize>,
    fees_above_ceiling: Option<usize>,
    fees_completed: Option<u64>,
    fees_posted: Option<u64>,
    fees_bumps: Option<usize>,
    jobs: u64,
    rate: u64,
    load_before: Option<f64>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let target = std::env::current_exe()?.ancestors().nth(3).context("a target folder")?.to_owned();
    let program = std::path::absolute(arguments.fabstir.clone().unwrap_or(target.join("release/fabstir")))?;
    ensure!(program.is_file(), "{} is not there: cargo build --release --bin fabstir", program.display());
    let within = std::path::absolute(arguments.dir.clone().unwrap_or(target.join("bench")))?;
    std::fs::create_dir_all(&within)?;
    let mut folder = tempfile::Builder::new().prefix("claims-").tempdir_in(&within)?;
    folder.disable_cleanup(arguments.keep);
    let load = std::fs::read_to_string("/proc/loadavg")?.split(' ').next().and_then(|load| load.parse().ok());
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let (jobs, rate) = (arguments.jobs, arguments.rate);
    let mut report = Report { jobs, rate, load_before: load, ..Report::default() };

    if wanted(Part::Policy) {
        report.policy_us = Some(rounded(policy::decision_us(20_000)?, 2));
    }
    if wanted(Part::Rate) || wanted(Part::Burst) || wanted(Part::Field) {
        let place = Place::open(&arguments.contracts, folder.path()).await?;
        if wanted(Part::Rate) {
            at_rate(&place, &program, jobs, rate, &mut report).await?;
        }
        if wanted(Part::Burst) {
            burst(&place, &program, jobs, &mut report).await?;
        }
        if wanted(Part::Field) {
            let limit = Duration::from_secs(arguments.field_seconds);
            let latencies = field::claim(&place, rate, limit).await?;
            report.field_shape_claim_p50_ms = quantile(&latencies, 0.5);
            report.field_shape_claimed = Some(latencies.len());
        }
    }
    if wanted(Part::Rivals) {
        rivals(&arguments, &program, folder.path(), &mut report).await?;
    }
    if wanted(Part::Fees) {
        let place = Place::open(&arguments.contracts, &folder.path().join("fees")).await?;
        let found = fees::measure(&place, &program, arguments.spike_seconds).await?;
        (report.fees_stuck, report.fees_above_ceiling) = (Some(found.stuck), Some(found.above_ceiling));
        (report.fees_completed, report.fees_posted) = (Some(found.completed), Some(found.posted));
        report.fees_bumps = Some(found.bumps);
    }
    if wanted(Part::Restart) && arguments.restarts > 0 {
        let found = restart::measure(&arguments, &program, folder.path()).await?;
        report.restart_p50_s = quantile(&found.seconds, 0.5);
        report.restart_p99_s = quantile(&found.seconds, 0.99);
        (report.restart_mb, report.restart_jobs) = (Some(found.peak_mb), Some(found.jobs));
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Posts jobs at a rate to one host.
async fn at_rate(place: &Place, program: &Path, jobs: u64, rate: u64, report: &mut Report) -> Result<()> {
    let between = Between::start(&place.devnet.rpc_url).await?;
    let host = Host::start(place, program, "rate", &between.url, "").await?;
    between.forget();
    let first = place.jobs_posted().await? + 1;
    let began = Instant::now();
    place.post_at(jobs, rate).await?;
    let times = claimed(&between, first, jobs, "at a rate").await?;
    let latencies = latencies(&times, first, jobs);
    report.claim_p50_ms = quantile(&latencies, 0.5);
    report.claim_p99_ms = quantile(&latencies, 0.99);
    report.calls_before_claim = Some(rounded(times.asked_between() as f64 / jobs as f64, 3));
    eprintln!("  claims: p50 {:?} ms, p99 {:?} ms", report.claim_p50_ms, report.claim_p99_ms);
    place.completed(first, jobs).await?;
    let took = began.elapsed().as_secs_f64();
    report.jobs_per_hour = Some((jobs as f64 / took * 3600.0).round());
    eprintln!("  {jobs} jobs from post to completion in {took:.1} s");
    host.stop().await
}

/// Posts all jobs in one block.
async fn burst(place: &Place, program: &Path, jobs: u64, report: &mut Report) -> Result<()> {
    let between = Between::start(&place.devnet.rpc_url).await?;
    let host = Host::start(place, program, "burst", &between.url, "").await?;
    between.forget();
    let first = place.jobs_posted().await? + 1;
    place.post_at_once(jobs).await?;
    let times = claimed(&between, first, jobs, "in one block").await?;
    let told = times.told.values().min().context("no job was told")?;
    let last = times.claimed.values().max().context("no claim")?;
    report.burst_s = Some(rounded(last.duration_since(*told).as_secs_f64(), 3));
    eprintln!("  {jobs} jobs of one block claimed in {:?} s", report.burst_s);
    host.kill().await
}

/// Lets three hosts take turns, and then, on another chain and for fewer jobs, race.
async fn rivals(arguments: &Arguments, program: &Path, folder: &Path, report: &mut Report) -> Result<()> {
    // Who is registered counts for the turns: none may be there but the three.
    let place = Place::open(&arguments.contracts, &folder.join("rivals")).await?;
    let turns = rivals::compete(&place, program, TURN_SECONDS, arguments.jobs, arguments.rate).await?;
    drop(place);
    let place = Place::open(&arguments.contracts, &folder.join("race")).await?;
    let race = rivals::compete(&place, program, 0, arguments.jobs.div_ceil(5), arguments.rate).await?;
    (report.rivals_double_claims, report.rivals_claims) = (Some(turns.double_claims), Some(turns.claims));
    report.rivals_reverted_gas = Some(turns.reverted_gas);
    report.rivals_reverted_gas_without_turns = Some(race.reverted_gas);
    Ok(())
}

/// Waits until every job is claimed.
async fn claimed(between: &Between, first: u64, jobs: u64, how: &str) -> Result<Times> {
    let give_up = Instant::now() + Duration::from_secs(300);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let times = between.times()?;
        let done = (first..first + jobs).filter(|job| times.claimed.contains_key(job)).count() as u64;
        if done == jobs {
            return Ok(times);
        }
        ensure!(Instant::now() < give_up, "{done} of {jobs} jobs posted {how} are claimed after five minutes");
    }
}

/// Returns the milliseconds from the node's knowledge of each job to its claim.
fn latencies(times: &Times, first: u64, jobs: u64) -> Vec<f64> {
    let latency = |job| Some(times.claimed.get(&job)?.duration_since(*times.told.get(&job)?).as_secs_f64() * 1e3);
    (first..first + jobs).filter_map(latency).collect()
}

fn quantile(figures: &[f64], share: f64) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(place).map(|figure| rounded(*figure, 3))
}
