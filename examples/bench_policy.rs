//! Measures what a decision costs: the whole chain of rules over jobs that pass every one, with and without what they say.
//!
//! `make bench-policy ARGS=[DECISIONS]` prints one JSON object; times are in microseconds a decision. Asked of a decision is 20.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fabstir::market::event::{Event, Level, Terms};
use fabstir::market::gate::{Gates, Ground};
use fabstir::market::job::{Fact, Job};
use fabstir::market::policy::{
    Circumstances, Limits, Load, Outlook, Policy, Races, Served, Speed, Standing, Turn, Worth,
};
use fabstir::market::types::{Address, B256, BlockRef, Cid, JobId, ModelId, U256, UnixSeconds};

const USD: Address = Address::repeat_byte(6);
const MODELS: u8 = 16;
const RENTERS: u8 = 200;

fn main() -> Result<()> {
    let decisions: u32 = std::env::args().nth(1).map_or(Ok(200_000), |text| text.parse()).context("DECISIONS")?;
    let (policy, at) = (policy(), circumstances());
    let jobs: Vec<Job> = (0..=u8::MAX).map(job).collect::<Result<_>>()?;
    for job in &jobs {
        let verdict = policy.judge(job, &at);
        ensure!(verdict.claims(), "a job is refused: {:?}", verdict.refusal());
    }
    let timed = |decide: &dyn Fn(&Job)| {
        let mut times: Vec<f64> = Vec::with_capacity(decisions as usize);
        for job in jobs.iter().cycle().take(decisions as usize) {
            let started = Instant::now();
            decide(job);
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        serde_json::json!({ "p50": at(0.5), "p99": at(0.99), "mean": times.iter().sum::<f64>() / times.len() as f64 })
    };
    let decided = timed(&|job| {
        let _ = black_box(policy.decide(black_box(job), &at));
    });
    let explained = timed(&|job| {
        black_box(policy.judge(black_box(job), &at));
    });
    println!("{}", serde_json::json!({ "decisions": decisions, "decide_us": decided, "judge_us": explained }));
    Ok(())
}

/// Returns the mean microseconds of a decision.
pub fn decision_us(decisions: u32) -> Result<f64> {
    let (policy, at) = (policy(), circumstances());
    let jobs: Vec<Job> = (0..=u8::MAX).map(job).collect::<Result<_>>()?;
    let started = Instant::now();
    for job in jobs.iter().cycle().take(decisions as usize) {
        let _ = black_box(policy.decide(black_box(job), &at));
    }
    Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(decisions))
}

/// A policy with every list and every comparison in use.
fn policy() -> Policy {
    let speed = Some(Speed { prefill: 100_000_000, decode: 10_000_000 });
    let served = Served { max_tokens: 1024, slots: 8, queue: 0, context_tokens: 4096, speed };
    let address = |byte| Address::repeat_byte(byte);
    let limits = Limits {
        renters: (0..RENTERS).map(address).collect(),
        renters_denied: (RENTERS..=u8::MAX).map(address).collect(),
        tokens: [Address::ZERO, USD].into(),
        regions: vec!["eu".into(), "eu-west".into()],
        gpu_memory_gb: Some(24),
        value_at_risk_per_hour_max: Some(U256::MAX),
        win_percent_min: 10,
        margin_percent_min: Some(10),
        token_value: [(USD, Worth { units: U256::from(1), wei: U256::from(400_000_000u64) })].into(),
        machine_hour_wei: U256::from(1_000_000_000u64),
        ..Limits::default()
    };
    Policy {
        host: Address::repeat_byte(0xaa),
        models: (0..MODELS).map(|model| (ModelId([model; 32]), served)).collect(),
        price_per_1k: [(Address::ZERO, U256::from(1)), (USD, U256::from(2000))].into(),
        fee_bps: 250,
        tokens_per_second: 10,
        margin_seconds: 30,
        proves: true,
        gate: Gates::default().claim,
        limits,
    }
}

fn circumstances() -> Circumstances {
    let ground = Ground { number: 1_000, level: Level::Complete, head: 1_001, safe: 900, last_final: 800, time: None };
    let standing = Standing {
        stake: U256::MAX,
        open_jobs: 9,
        active: true,
        reputation: 500,
        breaker_level: 0,
        controller: Address::repeat_byte(0xaa),
    };
    let outlook = Outlook {
        standing,
        fee_bps: 250,
        job_stake: U256::from(1u64 << 63),
        gas_price: U256::from(1_000_000),
        age_seconds: 1,
        block: 1_001,
        races: Races { won: 60, lost: 40 },
    };
    let load = Load { slots_taken: 3, queued_tokens: 3_000, held: 5, pending_claims: 1, chosen_last_hour: 40 };
    let now = UnixSeconds(1_800_000_000);
    Circumstances {
        now,
        input_held: true,
        grounds: [ground; 2],
        load,
        changed: None,
        turn: Turn::default(),
        outlook: Some(outlook),
    }
}

fn job(which: u8) -> Result<Job> {
    let id = JobId(u64::from(which) + 1);
    let (token, payment) =
        if which.is_multiple_of(2) { (USD, 100_000_000_u64) } else { (Address::ZERO, 1_000_000_000_000_000_000) };
    let terms = Terms {
        renter: Address::repeat_byte(which % RENTERS),
        model: ModelId([which % MODELS; 32]).to_string(),
        input: Cid::of(&[which; 900]).to_string(),
        max_tokens: 512,
        temperature_milli: 700,
        seed: 1,
        payment: U256::from(payment),
        token,
        deadline: UnixSeconds(1_800_000_600),
        requires_proof: true,
        min_gpu_memory: 16,
        min_reputation: 100,
        reserved_for: None,
        region: Some("eu".into()),
    };
    let block = BlockRef { number: 1_000, hash: B256::ZERO };
    let escrow = Event::EscrowCreated { job: id, amount: terms.payment, token };
    let facts = [Event::JobTerms { job: id, terms }, escrow].map(|event| Fact::Chain { event, block });
    Job::fold(id, &facts)?.context("a posted job")
}
