//! What a policy would have earned: jobs of the past, one by one in the order of their posting, judged as they were posted.
//!
//! A replay knows how a job ended, not how it would have. What is assumed stands in [`ASSUMED`], for whoever reads the figures.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::super::breaker::expected;
use super::super::event::Level;
use super::super::gate::Ground;
use super::super::job::{Job, State};
use super::super::types::{self, Address, ModelId, U256, UnixSeconds};
use super::{Circumstances, Load, Outlook, Policy, Races, Served, Standing, Turn};

/// What a replay assumes.
pub const ASSUMED: [&str; 8] = [
    "every job is judged in the block that posted it, proven and as deep as the gate asks, with its prompt at hand",
    "the host is registered, its stake and reputation suffice and the breaker is closed",
    "a job that this host claimed is won; one that nobody ever claimed is won; any other with the chance given above",
    "a job that was paid to any host, or that nobody ever claimed, is done in time and paid when it is won",
    "a job that was claimed and refunded earns nothing and costs all its gas; no stake is lost",
    "a job that is not at its end counts neither as income nor as cost",
    "a job that is taken holds its slot as long as policy reckons, whether it is won or lost",
    "gas is as configured, at the price given above; what the proof costs to compute is not counted",
];

const HOUR: u64 = 3600;
const MILLION: u64 = 1_000_000;

/// A job as it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastJob {
    pub job: Job,
    pub posted_at: UnixSeconds,
    /// Whether a host ever claimed it.
    pub claimed: bool,
}

impl PastJob {
    /// Returns the fee that the escrow took of it, in hundredths of a percent, once it was paid.
    pub fn fee_bps(&self) -> Option<u16> {
        let (net, fee) = self.job.escrow_released?;
        let whole = net.checked_add(fee).filter(|whole| !whole.is_zero())?;
        u16::try_from(fee.saturating_mul(U256::from(10_000)).div_ceil(whole)).ok()
    }
}

/// What a replay takes from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    pub races: Races,
    /// Wei for a unit of gas.
    pub gas_price: U256,
    /// The escrow's fee where a job's own is not known, in hundredths of a percent.
    pub fee_bps: u16,
    /// Time of the newest block: what has no end by then is open.
    pub now: UnixSeconds,
}

impl Given {
    /// Returns the chance to win a job that others claim too, in millionths: as of our own claims, even where there were none.
    pub fn chance(&self) -> u64 {
        let Races { won, .. } = self.races;
        match self.races.decided() {
            0 => MILLION / 2,
            decided => u64::from(won) * MILLION / u64::from(decided),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    pub judged: u64,
    /// Claimed, and of those: paid to some host in truth, never claimed by any, claimed and refunded, not at an end.
    pub taken: u64,
    pub paid: u64,
    pub unclaimed: u64,
    pub refunded: u64,
    pub open: u64,
    /// Jobs won by expectation, in millionths.
    pub won_millionths: u64,
    /// By the first rule that refused.
    pub declined: BTreeMap<&'static str, u64>,
    pub income: BTreeMap<Address, Income>,
    #[serde(serialize_with = "types::decimal")]
    pub gas_wei: U256,
    #[serde(serialize_with = "types::decimal")]
    pub compute_wei: U256,
    /// Of the tokens that have a value.
    #[serde(serialize_with = "types::decimal")]
    pub income_wei: U256,
}

/// Expected income in one token, net of the escrow's fee, in its smallest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Income {
    #[serde(serialize_with = "types::decimal")]
    pub net: U256,
    /// What part of it is of jobs that nobody ever claimed.
    #[serde(serialize_with = "types::decimal")]
    pub of_unclaimed: U256,
}

impl Tally {
    /// Returns income less gas and computing in wei, with its sign.
    pub fn profit(&self) -> String {
        let cost = self.gas_wei.saturating_add(self.compute_wei);
        match self.income_wei.checked_sub(cost) {
            Some(profit) => profit.to_string(),
            None => format!("-{}", cost - self.income_wei),
        }
    }
}

/// A slot in use.
struct Busy {
    model: ModelId,
    tokens: u64,
    until: u64,
}

/// Replays `jobs`, which are in the order of their posting, under `policy`.
pub fn replay(policy: &Policy, jobs: &[PastJob], given: &Given) -> Tally {
    let mut tally = Tally::default();
    let (mut busy, mut chosen) = (Vec::<Busy>::new(), VecDeque::<u64>::new());
    for past in jobs {
        let now = past.posted_at.0;
        busy.retain(|busy| busy.until > now);
        chosen.retain(|at| at.saturating_add(HOUR) > now);
        tally.judged += 1;
        // As it was when it was posted.
        let job = Job { given_up_by: Vec::new(), ..past.job.clone() };
        let model = job.terms.model.parse().ok();
        let at = circumstances(policy, past, load(model, &busy, &chosen), given);
        if let Err(rule) = policy.decide(&job, &at) {
            *tally.declined.entry(rule).or_default() += 1;
            continue;
        }
        let Some((model, served)) = model.and_then(|model| Some((model, policy.models.get(&model)?))) else { continue };
        let prompt_tokens = prompt_tokens(policy, &job);
        let until = now.saturating_add(policy.seconds_for(served, prompt_tokens, job.terms.max_tokens));
        busy.push(Busy { model, tokens: job.terms.max_tokens.into(), until });
        chosen.push_back(now);
        tally.take(policy, past, (model, served), given);
    }
    tally
}

impl Tally {
    /// Books a job that the policy takes.
    fn take(&mut self, policy: &Policy, past: &PastJob, (model, served): (ModelId, &Served), given: &Given) {
        self.taken += 1;
        let (job, terms) = (&past.job, &past.job.terms);
        let overdue = given.now >= terms.deadline;
        let earns = match &job.state {
            State::Released { .. } => {
                self.paid += 1;
                true
            }
            State::Refunded { .. } | State::Posted if !past.claimed && (overdue || job.state != State::Posted) => {
                self.unclaimed += 1;
                true
            }
            State::Refunded { .. } => {
                self.refunded += 1;
                false
            }
            _ => {
                self.open += 1;
                return;
            }
        };
        let sure = !past.claimed || job.host() == Some(policy.host) || terms.reserved_for == Some(policy.host);
        let chance = if sure { MILLION } else { given.chance() };
        let share = |of: U256, millionths: u64| of.saturating_mul(U256::from(millionths)) / U256::from(MILLION);
        let (gas, rest) = (policy.limits.gas, MILLION - chance);
        let wei = |gas: u64| given.gas_price.saturating_mul(U256::from(gas));
        self.won_millionths += chance;
        let spent = share(wei(gas.won(terms.requires_proof)), chance).saturating_add(share(wei(gas.lost_claim), rest));
        self.gas_wei = self.gas_wei.saturating_add(spent);
        let tokens = tokens(job).unwrap_or(terms.max_tokens);
        let compute = policy.compute_cost(model, served, prompt_tokens(policy, job), tokens);
        self.compute_wei = self.compute_wei.saturating_add(share(compute, chance));
        if !earns {
            return;
        }
        let net = job.escrow_released.map_or_else(|| expected(terms.payment, given.fee_bps), |(net, _)| net);
        let net = share(net, chance);
        let income = self.income.entry(terms.token).or_default();
        income.net = income.net.saturating_add(net);
        if !past.claimed {
            income.of_unclaimed = income.of_unclaimed.saturating_add(net);
        }
        self.income_wei = self.income_wei.saturating_add(policy.limits.wei(terms.token, net).unwrap_or_default());
    }
}

fn tokens(job: &Job) -> Option<u32> {
    match &job.state {
        State::Released { commitment, .. } => Some(commitment.tokens),
        _ => None,
    }
}

fn prompt_tokens(policy: &Policy, job: &Job) -> u64 {
    policy.prompt_tokens(job.terms.input.parse().map_or(0, |input: types::Cid| input.length))
}

fn load(model: Option<ModelId>, busy: &[Busy], chosen: &VecDeque<u64>) -> Load {
    let of_model = busy.iter().filter(|busy| Some(busy.model) == model);
    let (slots_taken, queued_tokens) =
        of_model.fold((0, 0u64), |(slots, tokens), busy| (slots + 1, tokens.saturating_add(busy.tokens)));
    Load { slots_taken, queued_tokens, held: 0, pending_claims: 0, chosen_last_hour: chosen.len() as u32 }
}

fn circumstances(policy: &Policy, past: &PastJob, load: Load, given: &Given) -> Circumstances {
    let standing = Standing {
        stake: U256::MAX,
        open_jobs: 0,
        active: true,
        reputation: u64::MAX,
        breaker_level: 0,
        controller: policy.host,
    };
    let (Given { races, gas_price, .. }, number) = (*given, past.job.posted.number);
    let fee_bps = past.fee_bps().unwrap_or(given.fee_bps);
    let ground =
        Ground { number, level: Level::Complete, head: u64::MAX - 1, safe: number, last_final: number, time: None };
    let outlook = Outlook { standing, fee_bps, job_stake: JOB_STAKE, gas_price, age_seconds: 0, block: number, races };
    Circumstances {
        now: past.posted_at,
        input_held: true,
        grounds: [ground; 2],
        load,
        changed: None,
        turn: Turn::default(),
        outlook: Some(outlook),
    }
}

/// What a claim puts at risk. Source: `JOB_STAKE` in `contracts/src/NodeRegistry.sol`, 10 FAB.
const JOB_STAKE: U256 = U256::from_limbs([10_000_000_000_000_000_000, 0, 0, 0]);
