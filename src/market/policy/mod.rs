//! Whether a job is worth claiming: a list of small named rules, each answering with its numbers.
//!
//! Never looks anything up: what a rule needs is handed in. [`Policy::decide`] stops at the first refusal and writes nothing down;
//! [`Policy::judge`] asks every rule and keeps what each says.

pub mod backtest;
mod limits;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use alloy::primitives::Keccak256;
use serde::{Deserialize, Serialize};

use super::breaker::expected;
use super::event::Terms;
use super::gate::{Gate, Ground};
use super::job::Job;
use super::types::{Address, BlockRef, JobId, ModelId, U256, UnixSeconds};
use rules::{Case, RULES, Say};

pub use limits::{Gas, Limits, Worth, token};

/// Most tokens that a chat template puts around a prompt.
const TEMPLATE_TOKENS_MAX: u64 = 64;

/// What this host sells and under which limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The account that would claim.
    pub host: Address,
    pub models: BTreeMap<ModelId, Served>,
    /// Smallest acceptable net price of 1000 output tokens, by payment token (zero address: ETH), in its smallest unit.
    pub price_per_1k: BTreeMap<Address, U256>,
    /// The escrow's fee of new jobs in hundredths of a percent: what quotes reckon with.
    pub fee_bps: u16,
    /// Speed this host counts on where a model was not calibrated, in output tokens per second of one job; at least 1.
    pub tokens_per_second: u32,
    /// Seconds kept free before a deadline for commitment, proof and three transactions.
    pub margin_seconds: u64,
    /// Whether this node can make the proof a job requires.
    pub proves: bool,
    /// What is asked of the blocks that a posted job rests on.
    pub gate: Gate,
    pub limits: Limits,
}

/// A model this host serves, and its room on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// The most output tokens one job may ask for.
    pub max_tokens: u32,
    /// Jobs computed at once.
    pub slots: u32,
    /// Jobs taken beyond those: they wait for a slot.
    pub queue: u32,
    /// Tokens that the key-value cache of one slot holds: prompt and output of one job together.
    pub context_tokens: u32,
    /// As measured; `None` where it was not.
    pub speed: Option<Speed>,
}

/// How fast a model runs with all its slots busy, in tokens per 1000 seconds of all of them together; at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    pub prefill: u64,
    pub decode: u64,
}

/// What `fabstir bench model` measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub models: Vec<Measured>,
}

/// The speed of one model on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    pub model: ModelId,
    pub name: String,
    pub threads: u32,
    pub gpu_layers: u32,
    pub slots: u32,
    pub measured_at: UnixSeconds,
    /// Tokens per second of one prompt.
    pub prefill_tokens_per_second: f64,
    /// By rising number of sequences computed at once, the last with all slots.
    pub decode: Vec<Decode>,
}

/// The speed of so many sequences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    pub sequences: u32,
    /// Of all of them together.
    pub tokens_per_second: f64,
}

impl Calibration {
    /// Returns the speed of a model as it is loaded now, or `None` where it was measured otherwise or not at all.
    pub fn speed(&self, model: ModelId, threads: u32, gpu_layers: u32, slots: u32) -> Option<Speed> {
        let asked = (model, threads, gpu_layers, slots);
        let same = |of: &&Measured| (of.model, of.threads, of.gpu_layers, of.slots) == asked;
        let measured = self.models.iter().find(same)?;
        let full = measured.decode.iter().find(|decode| decode.sequences == slots)?;
        let per_1000_s = |speed: f64| Some((speed * 1000.0) as u64).filter(|speed| *speed > 0);
        Some(Speed {
            prefill: per_1000_s(measured.prefill_tokens_per_second)?,
            decode: per_1000_s(full.tokens_per_second)?,
        })
    }
}

/// What the rules look at beside the job's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Time of the newest block we know.
    pub now: UnixSeconds,
    pub input_held: bool,
    /// The block that posted it, and the newest it rests on: another one where a host gave it up.
    pub grounds: [Ground; 2],
    pub load: Load,
    /// The newest block after the outlook's in which the contracts told of something that the outlook holds.
    pub changed: Option<u64>,
    pub turn: Turn,
    /// `None` before the contracts were first asked: the rules that need it refuse.
    pub outlook: Option<Outlook>,
}

/// Whose turn a job is: of hosts that all claim at once all but one pay for nothing, so those who run this program may take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// How many hosts come before this one, for this job.
    pub before: u32,
    /// Since it could be claimed.
    pub waited_seconds: u64,
}

impl Turn {
    /// Returns how many of `hosts` come before `us` for a job that can be claimed since `block`: an order that everybody finds alike and
    /// nobody can choose, another one for each job.
    pub fn before(us: Address, hosts: &[Address], job: JobId, block: BlockRef) -> u32 {
        let rank = |host: Address| {
            let mut hasher = Keccak256::new();
            hasher.update(job.0.to_be_bytes());
            hasher.update(block.hash);
            hasher.update(host);
            hasher.finalize()
        };
        let ours = rank(us);
        hosts.iter().filter(|host| **host != us && rank(**host) < ours).count() as u32
    }
}

/// What this node has taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Jobs that hold a slot of the model.
    pub slots_taken: u32,
    /// Output tokens that these may still ask of it.
    pub queued_tokens: u64,
    /// Jobs of any model that are ours on chain and have not ended there.
    pub held: u32,
    /// Jobs of any model that we chose and that are not claimed yet.
    pub pending_claims: u32,
    /// Jobs of any model that we chose within an hour.
    pub chosen_last_hour: u32,
}

/// What was read of the contracts, the chain and our own history some time ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    pub standing: Standing,
    /// The escrow's fee in hundredths of a percent.
    pub fee_bps: u16,
    /// What a job puts at risk of the host's stake, in FAB's smallest unit.
    pub job_stake: U256,
    /// What a unit of gas costs, in wei.
    pub gas_price: U256,
    /// Since the contracts were asked.
    pub age_seconds: u64,
    /// The newest block then.
    pub block: u64,
    pub races: Races,
}

/// How our last claims went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Races {
    pub won: u32,
    pub lost: u32,
}

impl Races {
    /// Returns how many claims were decided.
    pub fn decided(&self) -> u32 {
        self.won.saturating_add(self.lost)
    }
}

/// What the contracts say of this host and of the market now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// In FAB's smallest unit.
    pub stake: U256,
    /// Jobs this host claimed that have not ended on chain.
    pub open_jobs: u32,
    /// Registered with its stake whole, and not leaving.
    pub active: bool,
    /// 0 to 1000.
    pub reputation: u64,
    /// 0, 1 (no new jobs) or 2 (and no claims).
    pub breaker_level: u64,
    /// Who answers for the host: itself, unless another account registered it.
    pub controller: Address,
}

/// One rule's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub rule: &'static str,
    pub passed: bool,
    /// The numbers it compared.
    pub detail: String,
}

/// Policy's answer with its reasons, one finding a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Returns whether every rule passed.
    pub fn claims(&self) -> bool {
        self.findings.iter().all(|finding| finding.passed)
    }

    /// Returns the first rule that refused.
    pub fn refusal(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| !finding.passed)
    }

    /// Returns one line a rule: `rule: detail`.
    pub fn lines(&self) -> Vec<String> {
        self.findings.iter().map(|finding| format!("{}: {}", finding.rule, finding.detail)).collect()
    }
}

impl Policy {
    /// Returns the verdict on `job`. Every rule answers, also after a refusal, so that an operator sees them all.
    pub fn judge(&self, job: &Job, at: &Circumstances) -> Verdict {
        let case = Case::new(self, job, at);
        let answer = |(name, rule): &(&'static str, rules::Rule)| {
            let mut say = Say::aloud();
            let passed = rule(&case, &mut say);
            Finding { rule: name, passed, detail: say.said() }
        };
        Verdict { findings: RULES.iter().map(answer).collect() }
    }

    /// Decides on `job` as [`Policy::judge`] does, and writes nothing down.
    ///
    /// # Errors
    /// The name of the first rule that refuses.
    pub fn decide(&self, job: &Job, at: &Circumstances) -> Result<(), &'static str> {
        let case = Case::new(self, job, at);
        let refuses = |(_, rule): &&(&'static str, rules::Rule)| !rule(&case, &mut Say::default());
        RULES.iter().find(refuses).map_or(Ok(()), |(name, _)| Err(name))
    }

    /// Returns the smallest net price of `tokens` output tokens in `token`, or `None` when no price is set for it.
    pub fn price(&self, token: Address, tokens: u32) -> Option<U256> {
        let per_1k = self.price_per_1k.get(&token)?;
        Some(per_1k.saturating_mul(U256::from(tokens)).div_ceil(U256::from(1000)))
    }

    /// Returns whether payments in `token` are taken at all.
    pub fn takes(&self, token: Address) -> bool {
        self.limits.tokens.is_empty() || self.limits.tokens.contains(&token)
    }

    /// Returns the most that a claim or a release of a job may cost, in wei: what the job brings, where a margin is asked
    /// ([`Limits::margin_percent_min`]) and it pays in ETH. What else a job of ours owes has no such limit: stake stands for it.
    pub fn ceiling(&self, terms: &Terms) -> Option<U256> {
        let compared = self.limits.margin_percent_min.is_some() && terms.token.is_zero();
        compared.then(|| expected(terms.payment, self.fee_bps))
    }

    /// Returns the payment whose net amount after the fee is at least `net`; out of reach when the fee takes all of it.
    pub fn gross(&self, net: U256) -> U256 {
        let kept = 10_000_u16.saturating_sub(self.fee_bps);
        if kept == 0 { U256::MAX } else { net.saturating_mul(U256::from(10_000)).div_ceil(U256::from(kept)) }
    }

    /// Returns how many tokens a prompt of so many bytes has at most, with the chat template around it.
    pub fn prompt_tokens(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.limits.prompt_bytes_per_token.max(1).into()).saturating_add(TEMPLATE_TOKENS_MAX)
    }

    /// Returns the seconds a job of a model needs once it has a slot, the margin for proof and transactions included: beside as many
    /// others as the model has slots where it was calibrated.
    pub fn seconds_for(&self, served: &Served, prompt_tokens: u64, tokens: u32) -> u64 {
        let compute = match served.speed {
            None => tokens.div_ceil(self.tokens_per_second.max(1)).into(),
            Some(speed) => {
                let alone = millis(prompt_tokens, speed.prefill).saturating_add(millis(tokens.into(), speed.decode));
                alone.saturating_mul(served.slots.max(1).into()).div_ceil(1000)
            }
        };
        self.margin_seconds.saturating_add(compute)
    }

    /// Returns the seconds until a slot of the model is free: none while one is.
    fn queue_seconds(&self, served: &Served, load: &Load) -> u64 {
        if load.slots_taken < served.slots {
            return 0;
        }
        let all = u64::from(self.tokens_per_second.max(1)) * u64::from(served.slots.max(1)) * 1000;
        millis(load.queued_tokens, served.speed.map_or(all, |speed| speed.decode)).div_ceil(1000)
    }

    /// Returns what a job costs to compute, in wei: its share of the machine's hours where the model was calibrated and an hour has a
    /// price, else by the model's rate.
    fn compute_cost(&self, model: ModelId, served: &Served, prompt_tokens: u64, tokens: u32) -> U256 {
        let limits = &self.limits;
        match served.speed {
            Some(speed) if !limits.machine_hour_wei.is_zero() => {
                let thousandths =
                    millis(prompt_tokens, speed.prefill).saturating_add(millis(tokens.into(), speed.decode));
                limits.machine_hour_wei.saturating_mul(U256::from(thousandths)).div_ceil(U256::from(3_600_000))
            }
            _ => {
                let rate = limits.compute_per_1k_wei.get(&model).copied();
                rate.unwrap_or_default().saturating_mul(U256::from(tokens)).div_ceil(U256::from(1000))
            }
        }
    }
}

/// Returns the thousandths of a second that so many tokens take at so many tokens per 1000 seconds.
fn millis(tokens: u64, per_1000_s: u64) -> u64 {
    tokens.saturating_mul(1_000_000).div_ceil(per_1000_s.max(1))
}
