//! `fabstir explain`, `fabstir backtest` and `fabstir bench`: why a job is claimed or not, what another policy would have earned, and
//! how fast the models are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Subcommand;
use futures::future::try_join_all;
use serde_json::json;

use super::{Fault, Global, alone, configuration, decimal, history, plain, print_json, say};
use crate::chain::Chain;
use crate::config::{Config, HostConfig, ModelConfig, PolicyFile};
use crate::content::Content;
use crate::engine::{self, Engine, Request};
use crate::market::job::{Job, Work};
use crate::market::policy::backtest::{self, ASSUMED, Given, PastJob, Tally};
use crate::market::policy::{Calibration, Decode, Measured, Policy, Verdict};
use crate::market::types::{Address, Cid, JobId, U256};
use crate::node;
use crate::store::{Entry, Store, clock};
use crate::tasks::{Sight, survey};

#[derive(Debug, clap::Args)]
pub struct ExplainArguments {
    /// The job's number.
    job: u64,
}

#[derive(Debug, clap::Args)]
pub struct BacktestArguments {
    /// The policy to try, as TOML: `price_per_1k`, `policy`, `tokens_per_second`, `margin_seconds` as in [host].
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// First block in which a job was posted; the first stored by default.
    #[arg(long, value_name = "BLOCK", default_value_t = 0)]
    from: u64,
    /// Last block; the newest stored by default.
    #[arg(long, value_name = "BLOCK", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Price of gas in wei; what our transactions paid by default.
    #[arg(long, value_name = "WEI")]
    gas_price: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure how fast each configured model is, for deadlines and costs; writes calibration.json into data_dir.
    Model,
}

fn host_of(config: &Config) -> Result<&HostConfig> {
    config.host.as_ref().ok_or_else(|| Fault::Usage.of(anyhow!("only a host has a policy: [host] is missing")))
}

/// Returns the policy of `host` without loading a model; a slot's context is taken to be as configured.
fn policy_of(config: &Config, host: &HostConfig, us: Address, fee_bps: u16) -> Result<Policy> {
    let calibration = node::calibration(config)?;
    let mut models = BTreeMap::new();
    for model in &host.models {
        let id = engine::model_id(&model.path)?;
        models.insert(id, node::served(&calibration, id, model.context_tokens, model));
    }
    Ok(node::policy(host, us, models, fee_bps))
}

/// Runs `fabstir explain`: asks every rule about a stored job, as things are now.
pub async fn explain(global: &Global, arguments: &ExplainArguments) -> Result<()> {
    let config = configuration(global)?;
    let host = host_of(&config)?;
    let us = host.account().await.map_err(|error| Fault::Usage.of(error))?.address();
    let (store, id) = (history::open(&config).await?, JobId(arguments.job));
    let job = store.job(id).await?.with_context(|| format!("job {id} is not in the database"))?;
    let chain = Chain::unchecked(config.chain.endpoints(), config.chain.id, config.contracts.clone())?;
    let (outlook, unasked) = match survey::look(&chain, &store, us).await {
        Ok(outlook) => (Some(outlook), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let policy = policy_of(&config, host, us, outlook.map_or(0, |outlook| outlook.fee_bps))?;
    let input: Option<Cid> = job.terms.input.parse().ok();
    let content = Content::open(&config.content())?;
    let held = input.is_some_and(|input| content.has(&input));
    let now = store.time().await?;
    let at = Sight::of(&store, us, now, outlook, &[&job]).await?.circumstances(&job, held);
    let verdict = policy.judge(&job, &at);
    let then = reasons_then(&store, id).await?;
    if global.json {
        return print_json(&json!({
            "job": id, "state": job.state.name(), "host": job.host(), "doubt": job.doubt, "us": us,
            "block": at.grounds[0].head, "time": at.now, "claims": verdict.claims(),
            "refusal": verdict.refusal().map(|finding| finding.rule), "rules": verdict.findings,
            "endpoint": unasked, "chosen_then": then,
        }));
    }
    print_verdict(&job, &verdict, at.grounds[0].head)?;
    if let Some(error) = unasked {
        say(format!("the contracts could not be asked, so what rests on them is not known: {error}"))?;
    }
    if let Some(reasons) = then {
        say("this node chose it, and said then:")?;
        reasons.iter().try_for_each(|reason| say(format!("  {}", plain(reason))))?;
    }
    Ok(())
}

/// Returns what this node said when it chose a job, or `None` if it did not.
async fn reasons_then(store: &Store, job: JobId) -> Result<Option<Vec<String>>> {
    let entries = store.timeline(job).await?.entries;
    Ok(entries.into_iter().find_map(|entry| match entry {
        Entry::Work { work: Work::Chosen { reasons, .. }, .. } => Some(reasons),
        _ => None,
    }))
}

fn print_verdict(job: &Job, verdict: &Verdict, head: u64) -> Result<()> {
    let with = job.host().map_or(String::new(), |host| format!(", with host {host}"));
    say(format!("job {}: {}{with}; what policy says of it as of block {head}", job.id, job.state.name()))?;
    if let Some(doubt) = &job.doubt {
        say(format!("  it is in doubt and let alone: {doubt}"))?;
    }
    for finding in &verdict.findings {
        let mark = if finding.passed { "ok  " } else { "NO  " };
        say(format!("  {mark}{:<11} {}", finding.rule, plain(&finding.detail)))?;
    }
    let open = job.state.name() == "posted";
    say(match (verdict.refusal(), open) {
        (None, true) => "it would be claimed".into(),
        (None, false) => "it is not open; were it as it was posted, it would be claimed now".into(),
        (Some(refusal), _) => format!("it would not be claimed: {}", refusal.rule),
    })
}

/// Runs `fabstir backtest`: the past under today's policy and under another.
pub async fn backtest(global: &Global, arguments: &BacktestArguments) -> Result<()> {
    let config = configuration(global)?;
    let today = host_of(&config)?;
    let new = PolicyFile::load(&arguments.policy).map_err(|error| Fault::Usage.of(error))?.over(today);
    let us = today.account().await.map_err(|error| Fault::Usage.of(error))?.address();
    let store = history::open(&config).await?;
    let jobs = store.past_jobs(arguments.from, arguments.to).await?;
    let gas_price = match arguments.gas_price {
        Some(wei) => Some(U256::from(wei)),
        None => store.gas_price_paid().await?,
    };
    let fee_bps = jobs.iter().rev().find_map(PastJob::fee_bps);
    let given = Given {
        races: store.races(us, u32::MAX).await?,
        gas_price: gas_price.unwrap_or_default(),
        fee_bps: fee_bps.unwrap_or_default(),
        now: store.time().await?,
    };
    let tally =
        |host| Ok::<_, anyhow::Error>(backtest::replay(&policy_of(&config, host, us, given.fee_bps)?, &jobs, &given));
    let (before, after) = (tally(today)?, tally(&new)?);
    if global.json {
        let column = |tally: &Tally| json!({ "tally": tally, "profit_wei": tally.profit() });
        return print_json(&json!({
            "jobs": jobs.len(), "today": column(&before), "new": column(&after), "assumed": ASSUMED,
            "chance_millionths": given.chance(), "races": given.races, "gas_price": given.gas_price.to_string(),
            "gas_price_known": gas_price.is_some(), "fee_bps": given.fee_bps, "fee_known": fee_bps.is_some(),
        }));
    }
    let name = arguments.policy.file_name().map_or("new".into(), |name| name.to_string_lossy().into_owned());
    print_tallies(&before, &after, &name)?;
    let races = given.races;
    let from_claims = if races.decided() == 0 { "no claim was decided yet, so a half" } else { "of our own claims" };
    let from_gas =
        if gas_price.is_none() { ": none of ours was mined, so gas counts nothing; see --gas-price" } else { "" };
    let from_fee = if fee_bps.is_none() { ": no job was paid yet" } else { "" };
    say("Given:")?;
    say(format!(
        "  {} of {} claims won: a chance of {} % ({from_claims})",
        races.won,
        races.decided(),
        given.chance() / 10_000
    ))?;
    say(format!("  gas at {} wei{from_gas}", given.gas_price))?;
    say(format!(
        "  an escrow fee of {} hundredths of a percent where a job's own is not known{from_fee}",
        given.fee_bps
    ))?;
    say("Assumed:")?;
    ASSUMED.iter().try_for_each(|line| say(format!("  {line}")))
}

fn print_tallies(today: &Tally, new: &Tally, name: &str) -> Result<()> {
    let row = |what: &str, of: &dyn Fn(&Tally) -> String| say(format!("{what:<34}{:>28}{:>28}", of(today), of(new)));
    let wei = |amount: U256| decimal(amount, 18);
    say(format!("{:<34}{:>28}{:>28}", "", "today", plain(name)))?;
    row("jobs judged", &|t| t.judged.to_string())?;
    row("claimed", &|t| t.taken.to_string())?;
    row("  won, by expectation", &|t| format!("{:.1}", t.won_millionths as f64 / 1e6))?;
    row("  paid to some host in truth", &|t| t.paid.to_string())?;
    row("  never claimed by any", &|t| t.unclaimed.to_string())?;
    row("  claimed and refunded", &|t| t.refunded.to_string())?;
    row("  not at an end: not counted", &|t| t.open.to_string())?;
    let mut tokens: Vec<Address> = today.income.keys().chain(new.income.keys()).copied().collect();
    tokens.sort();
    tokens.dedup();
    for token in tokens {
        let income = |tally: &Tally| tally.income.get(&token).copied().unwrap_or_default();
        // Other tokens' decimals are not known here.
        let shown = |amount: U256| if token.is_zero() { decimal(amount, 18) } else { amount.to_string() };
        if token.is_zero() {
            row("income, ETH", &|t| shown(income(t).net))?;
        } else {
            say(format!("income, smallest units of {token}"))?;
            row("", &|t| shown(income(t).net))?;
        }
        row("  of jobs never claimed by any", &|t| shown(income(t).of_unclaimed))?;
    }
    row("income of valued tokens, ETH", &|t| wei(t.income_wei))?;
    row("gas, ETH", &|t| wei(t.gas_wei))?;
    row("computing, ETH", &|t| wei(t.compute_wei))?;
    row("profit, ETH", &|t| match t.profit().strip_prefix('-') {
        Some(loss) => format!("-{}", wei(loss.parse().unwrap_or_default())),
        None => wei(t.profit().parse().unwrap_or_default()),
    })?;
    let mut rules: Vec<&str> = today.declined.keys().chain(new.declined.keys()).copied().collect();
    rules.sort_unstable();
    rules.dedup();
    for rule in rules {
        row(&format!("declined: {rule}"), &|t| t.declined.get(rule).copied().unwrap_or_default().to_string())?;
    }
    Ok(())
}

/// Runs `fabstir bench`.
pub async fn bench(global: &Global, command: &BenchCommand) -> Result<()> {
    let BenchCommand::Model = command;
    let config = configuration(global)?;
    let host = host_of(&config)?;
    // Beside a node that computes, the figures would be too low, and the node too slow for its deadlines.
    let _alone = alone(&config).await?;
    let candidates = node::prover(&config).manifest().candidates as usize;
    let mut calibration = Calibration::default();
    for model in &host.models {
        let loaded = node::engine_config(model, candidates);
        let engine = tokio::task::spawn_blocking(move || Engine::load(loaded)).await.context("load a model")??;
        let measured = measure(&engine, model, node::engine_config(model, candidates).threads).await?;
        if !global.json {
            print_measured(&measured)?;
        }
        calibration.models.push(measured);
    }
    let file = config.calibration();
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("create folder {}", config.data_dir.display()))?;
    let written = file.with_extension("json.new");
    std::fs::write(&written, serde_json::to_vec_pretty(&calibration)?)
        .and_then(|()| std::fs::rename(&written, &file))
        .with_context(|| format!("write {}", file.display()))?;
    if global.json {
        return print_json(&calibration);
    }
    say(format!("written to {}: a node that starts uses it", file.display()))
}

fn print_measured(measured: &Measured) -> Result<()> {
    say(format!(
        "{} ({}), {} threads, {} layers on a GPU",
        plain(&measured.name),
        measured.model,
        measured.threads,
        measured.gpu_layers
    ))?;
    say(format!("  prompt                {:>10.1} tokens/s", measured.prefill_tokens_per_second))?;
    measured.decode.iter().try_for_each(|Decode { sequences, tokens_per_second }| {
        say(format!("  output, {sequences:>3} at once {tokens_per_second:>11.1} tokens/s of all together"))
    })
}

/// Longest prompt and output that are measured, in tokens.
const PROMPT_TOKENS: u32 = 256;
const OUTPUT_TOKENS: u32 = 64;
/// Each figure is of at least so long.
const MEASURED_FOR: Duration = Duration::from_secs(1);

async fn measure(engine: &Engine, model: &ModelConfig, threads: u32) -> Result<Measured> {
    let prefill_tokens_per_second = prefill(engine).await.context("measure the prompt")?;
    let slots = model.slots as u32;
    let mut counts: Vec<u32> = (0..).map(|power| 1 << power).take_while(|count| *count < slots).collect();
    counts.push(slots);
    let mut decode = Vec::new();
    for sequences in counts {
        let tokens_per_second =
            generate(engine, sequences).await.with_context(|| format!("measure {sequences} at once"))?;
        decode.push(Decode { sequences, tokens_per_second });
    }
    let (id, name) = (engine.model().id, engine.model().name.clone());
    let gpu_layers = model.gpu_layers;
    Ok(Measured {
        model: id,
        name,
        threads,
        gpu_layers,
        slots,
        measured_at: clock(),
        prefill_tokens_per_second,
        decode,
    })
}

/// Returns the tokens of a prompt that are computed in a second.
async fn prefill(engine: &Engine) -> Result<f64> {
    let room = PROMPT_TOKENS.min(engine.model().context_tokens / 2);
    let (mut tokens, mut taken, mut rounds) = (0u64, Duration::ZERO, 0u32);
    while taken < MEASURED_FOR {
        // No two begin alike.
        let mut prompt = rounds.to_string();
        while engine.count_prompt_tokens(&format!("{prompt} and more"))? <= room {
            prompt += " and more";
        }
        let started = Instant::now();
        let generation = engine.submit(request(prompt, rounds, 1))?;
        let of_prompt = generation.prompt_tokens;
        generation.finish().await?;
        // The first one also warms caches: it does not count.
        if rounds > 0 {
            (tokens, taken) = (tokens + u64::from(of_prompt), taken + started.elapsed());
        }
        rounds += 1;
    }
    Ok(tokens as f64 / taken.as_secs_f64())
}

/// Returns the output tokens that so many sequences at once make in a second, their short prompts counted as waiting.
async fn generate(engine: &Engine, sequences: u32) -> Result<f64> {
    let (mut tokens, mut taken, mut seed) = (0u64, Duration::ZERO, 0u32);
    while taken < MEASURED_FOR {
        let started = Instant::now();
        let mut running = Vec::new();
        for _ in 0..sequences {
            seed += 1;
            let prompt = format!("Tell me a long story about the number {seed}.");
            let room = engine.model().context_tokens.saturating_sub(engine.count_prompt_tokens(&prompt)?);
            ensure!(
                room > 0,
                "context_tokens = {} has no room for a prompt of one line",
                engine.model().context_tokens
            );
            running.push(engine.submit(request(prompt, seed, OUTPUT_TOKENS.min(room)))?.finish());
        }
        let outputs = try_join_all(running).await?;
        tokens += outputs.iter().map(|output| output.records.len() as u64).sum::<u64>();
        taken += started.elapsed();
    }
    Ok(tokens as f64 / taken.as_secs_f64())
}

fn request(prompt: String, seed: u32, max_tokens: u32) -> Request {
    Request { job: JobId(u64::from(seed) + 1), prompt, max_tokens, temperature_milli: 1000, seed }
}
