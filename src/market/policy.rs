//! Whether a job is worth claiming: a list of small named rules, each answering with its numbers.
//!
//! Never looks anything up: what a rule needs is handed in.

use std::collections::BTreeMap;

use serde::Serialize;

use super::gate::{Gate, Ground};
use super::job::Job;
use super::types::{Address, Cid, ModelId, U256, UnixSeconds};

/// What this host sells and under which limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The account that would claim.
    pub host: Address,
    /// By model: the most output tokens one job may ask for.
    pub models: BTreeMap<ModelId, u32>,
    /// Smallest acceptable net price of 1000 output tokens, by payment token (zero address: ETH), in its smallest unit.
    pub price_per_1k: BTreeMap<Address, U256>,
    /// The escrow's fee of new jobs in hundredths of a percent: what quotes reckon with.
    pub fee_bps: u16,
    /// What a job puts at risk of the host's stake, in FAB's smallest unit.
    pub job_stake: U256,
    /// Speed this host counts on, in output tokens per second; at least 1.
    pub tokens_per_second: u32,
    /// Seconds kept free before a deadline for commitment, proof and three transactions.
    pub margin_seconds: u64,
    /// Whether this node can make the proof a job requires.
    pub proves: bool,
    /// What is asked of the blocks that a posted job rests on.
    pub gate: Gate,
}

/// What the rules look at beside the job's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Time of the newest block we know.
    pub now: UnixSeconds,
    /// What the escrow contract says it holds for this job, in the job's token.
    pub escrowed: U256,
    /// The fee that it will take of that, in hundredths of a percent.
    pub fee_bps: u16,
    /// Left out while it has not been asked for: its rules do not answer then.
    pub standing: Option<Standing>,
    pub input_held: bool,
    /// The block that posted it, and the newest it rests on: another one where a host gave it up.
    pub grounds: [Ground; 2],
    pub slots_free: u32,
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
        let terms = &job.terms;
        let mut findings = Vec::new();
        let mut rule = |rule, passed, detail| findings.push(Finding { rule, passed, detail });

        let tokens_max = terms.model.parse::<ModelId>().ok().and_then(|model| self.models.get(&model).copied());
        rule(
            "model",
            tokens_max.is_some(),
            format!("{} {}", terms.model, if tokens_max.is_some() { "held" } else { "not held" }),
        );
        let limit = tokens_max.unwrap_or(0);
        rule("length", terms.max_tokens <= limit, format!("{} tokens asked, at most {limit} served", terms.max_tokens));

        rule(
            "reserved",
            terms.reserved_for.is_none_or(|host| host == self.host),
            terms.reserved_for.map_or("for any host".into(), |host| format!("for {host}")),
        );

        let net = net_of_fee(terms.payment, at.fee_bps);
        let asked = self.price(terms.token, terms.max_tokens);
        rule(
            "price",
            asked.is_some_and(|asked| net >= asked),
            match asked {
                Some(asked) => format!("pays {net} after the fee, asked {asked}, token {}", terms.token),
                None => format!("no price is set for token {}", terms.token),
            },
        );
        rule("escrow", at.escrowed == terms.payment, format!("the escrow holds {} of {}", at.escrowed, terms.payment));

        let left = terms.deadline.0.saturating_sub(at.now.0);
        let needed = self.seconds_for(terms.max_tokens);
        rule("deadline", left >= needed, format!("{left} s left, {needed} s needed"));
        rule(
            "proof",
            self.proves || !terms.requires_proof,
            format!("required {}, able {}", terms.requires_proof, self.proves),
        );
        rule(
            "input",
            terms.input.parse::<Cid>().is_ok() && at.input_held,
            format!("{} {}", terms.input, if at.input_held { "held" } else { "not held" }),
        );
        let refusal = at.grounds.iter().find_map(|ground| self.gate.refusal(ground));
        rule("block", refusal.is_none(), refusal.unwrap_or_else(|| at.grounds[1].to_string()));
        rule("capacity", at.slots_free > 0, format!("{} slots free", at.slots_free));
        if let Some(standing) = at.standing {
            let needed = self.job_stake.saturating_mul(U256::from(standing.open_jobs) + U256::from(1));
            rule(
                "stake",
                standing.active && standing.stake >= needed,
                format!(
                    "{} at stake, {needed} needed with {} open jobs, active {}",
                    standing.stake, standing.open_jobs, standing.active
                ),
            );
            rule(
                "reputation",
                standing.reputation >= terms.min_reputation,
                format!("{} of {} asked", standing.reputation, terms.min_reputation),
            );
            let level = standing.breaker_level;
            rule("breaker", level < 2, format!("the marketplace is at level {level}"));
        }
        Verdict { findings }
    }

    /// Returns the smallest net price of `tokens` output tokens in `token`, or `None` when no price is set for it.
    pub fn price(&self, token: Address, tokens: u32) -> Option<U256> {
        let per_1k = self.price_per_1k.get(&token)?;
        Some(per_1k.saturating_mul(U256::from(tokens)).div_ceil(U256::from(1000)))
    }

    /// Returns the payment whose net amount after the fee is at least `net`; out of reach when the fee takes all of it.
    pub fn gross(&self, net: U256) -> U256 {
        let kept = 10_000_u16.saturating_sub(self.fee_bps);
        if kept == 0 { U256::MAX } else { net.saturating_mul(U256::from(10_000)).div_ceil(U256::from(kept)) }
    }

    /// Returns the seconds a job of `tokens` output tokens needs, the margin for proof and transactions included.
    pub fn seconds_for(&self, tokens: u32) -> u64 {
        self.margin_seconds.saturating_add(u64::from(tokens.div_ceil(self.tokens_per_second.max(1))))
    }
}

fn net_of_fee(payment: U256, fee_bps: u16) -> U256 {
    // Past 2^242 the product saturates and the fee comes out too low: the escrow holds real balances, far under that.
    payment.saturating_sub(payment.saturating_mul(U256::from(fee_bps)) / U256::from(10_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::event::{Level, Terms};
    use crate::market::gate::Gates;
    use crate::market::job::Fact;
    use crate::market::types::{B256, BlockRef, JobId};

    fn policy() -> Policy {
        Policy {
            host: Address::repeat_byte(8),
            models: [(ModelId([1; 32]), 64)].into(),
            price_per_1k: [(Address::ZERO, U256::from(1000))].into(),
            fee_bps: 250,
            job_stake: U256::from(10),
            tokens_per_second: 10,
            margin_seconds: 30,
            proves: true,
            gate: Gates::default().claim,
        }
    }

    fn job(change: impl FnOnce(&mut Terms)) -> Job {
        let mut terms = Terms {
            renter: Address::repeat_byte(9),
            model: ModelId([1; 32]).to_string(),
            input: Cid::of(b"hi").to_string(),
            max_tokens: 40,
            temperature_milli: 0,
            seed: 1,
            payment: U256::from(100),
            token: Address::ZERO,
            deadline: UnixSeconds(1100),
            requires_proof: true,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: None,
            region: None,
        };
        change(&mut terms);
        let posted = Fact::Chain {
            event: crate::market::event::Event::JobTerms { job: JobId(1), terms },
            block: BlockRef { number: 1, hash: B256::ZERO },
        };
        Job::fold(JobId(1), [&posted]).unwrap().unwrap()
    }

    const SOUND: Standing = Standing {
        stake: U256::from_limbs([1000, 0, 0, 0]),
        open_jobs: 99,
        active: true,
        reputation: 500,
        breaker_level: 1,
    };
    const PROVEN: Ground = Ground { number: 1, level: Level::Complete, head: 1, safe: 0, last_final: 0 };
    const FINE: Circumstances = Circumstances {
        now: UnixSeconds(1000),
        escrowed: U256::from_limbs([100, 0, 0, 0]),
        fee_bps: 250,
        standing: Some(SOUND),
        input_held: true,
        grounds: [PROVEN; 2],
        slots_free: 1,
    };

    #[test]
    fn each_rule_refuses_what_it_guards() {
        assert!(policy().judge(&job(|_| ()), &FINE).claims());
        let refused = |change: &dyn Fn(&mut Terms), at: Circumstances| {
            let verdict = policy().judge(&job(|terms| change(terms)), &at);
            verdict.refusal().map(|finding| finding.rule).unwrap_or("none").to_owned()
        };
        let same = |_: &mut Terms| ();
        assert_eq!(refused(&|t| t.model = "gpt-4".into(), FINE), "model");
        assert_eq!(refused(&|t| t.max_tokens = 65, FINE), "length");
        assert_eq!(
            refused(&|t| t.payment = U256::from(40), Circumstances { escrowed: U256::from(40), ..FINE }),
            "price"
        );
        assert_eq!(refused(&|t| t.token = Address::repeat_byte(7), FINE), "price");
        assert_eq!(refused(&same, Circumstances { escrowed: U256::from(99), ..FINE }), "escrow");
        assert_eq!(refused(&same, Circumstances { now: UnixSeconds(1067), ..FINE }), "deadline");
        assert_eq!(refused(&same, Circumstances { input_held: false, ..FINE }), "input");
        assert_eq!(refused(&same, Circumstances { slots_free: 0, ..FINE }), "capacity");
        let unproven = Ground { level: Level::Linked, ..PROVEN };
        assert_eq!(refused(&same, Circumstances { grounds: [unproven, PROVEN], ..FINE }), "block");
        assert_eq!(refused(&same, Circumstances { grounds: [PROVEN, unproven], ..FINE }), "block");
        assert_eq!(refused(&|t| t.reserved_for = Some(Address::repeat_byte(9)), FINE), "reserved");
        assert_eq!(refused(&|t| t.reserved_for = Some(Address::repeat_byte(8)), FINE), "none");
        assert_eq!(refused(&same, Circumstances { fee_bps: 6100, ..FINE }), "price");
        let stands = |standing: Standing| Circumstances { standing: Some(standing), ..FINE };
        assert_eq!(refused(&same, stands(Standing { open_jobs: 100, ..SOUND })), "stake");
        assert_eq!(refused(&same, stands(Standing { active: false, ..SOUND })), "stake");
        assert_eq!(refused(&|t| t.min_reputation = 500, FINE), "none");
        assert_eq!(refused(&|t| t.min_reputation = 501, FINE), "reputation");
        assert_eq!(refused(&same, stands(Standing { breaker_level: 2, ..SOUND })), "breaker");
        assert_eq!(refused(&|t| t.min_reputation = 501, Circumstances { standing: None, ..FINE }), "none");
        let cannot = Policy { proves: false, ..policy() };
        assert_eq!(cannot.judge(&job(|_| ()), &FINE).refusal().unwrap().rule, "proof");
    }

    /// The fee is read from a contract, prices from a file: no value of either may wrap into a price that looks good.
    #[test]
    fn no_price_wraps_around() {
        for fee_bps in [9_999, 10_000, u16::MAX] {
            let host = Policy { fee_bps, ..policy() };
            assert!(host.gross(U256::from(1000)) >= U256::from(10_000_000));
            assert!(!host.judge(&job(|_| ()), &Circumstances { fee_bps, ..FINE }).claims(), "fee {fee_bps}");
        }
        let dear = Policy { price_per_1k: [(Address::ZERO, U256::MAX)].into(), ..policy() };
        assert_eq!(dear.judge(&job(|_| ()), &FINE).refusal().unwrap().rule, "price");
        assert!(dear.gross(U256::MAX) > U256::MAX / U256::from(10_000));
        assert_eq!(Policy { margin_seconds: u64::MAX, ..policy() }.seconds_for(1), u64::MAX);
    }

    #[test]
    fn a_gross_price_covers_its_net_price_and_no_more_than_needed() {
        for net in [1u64, 40, 977, 1_000_003] {
            let gross = policy().gross(U256::from(net));
            assert!(net_of_fee(gross, 250) >= U256::from(net), "net {net}");
            assert!(net_of_fee(gross - U256::from(2), 250) < U256::from(net), "net {net}");
        }
    }
}
