//! When a host must claim no more: too much went wrong since the operator last looked, or what it sees now is not to be relied on.
//!
//! Claims stop and nothing else: what was claimed is finished, because that is what the stake answers for. Never looks anything up:
//! what happened and what is seen is handed in.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::types::{Address, JobId, U256, UnixSeconds};

/// Where the breaker opens, and below what nothing is claimed; 0 switches a limit off.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// So many failures within `seconds` open it.
    pub failures: u32,
    pub seconds: u64,
    /// More wei than this for gas within an hour opens it.
    pub gas_wei_per_hour: u64,
    /// It opens when of the last `drift_jobs` jobs in one token more than this share of the expected income did not come.
    pub drift_percent: u32,
    pub drift_jobs: u32,
    /// Nothing is claimed while the account has less.
    pub min_balance_wei: u64,
    /// Nothing is claimed while the newest block is older. Absent: as the node decides by its chain.
    pub head_age_seconds: Option<u64>,
    /// Of several endpoints so many must be within `quorum_blocks` of the best; 0: more than half of those that answer.
    pub quorum: usize,
    pub quorum_blocks: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failures: 5,
            seconds: 3600,
            gas_wei_per_hour: 100_000_000_000_000_000,
            drift_percent: 50,
            drift_jobs: 10,
            min_balance_wei: 1_000_000_000_000_000,
            head_age_seconds: None,
            quorum: 0,
            quorum_blocks: 10,
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// We claimed the job, and its deadline passed.
    Expired,
    /// We claimed the job, completed it, and the renter got the money back.
    Refunded,
    /// We claimed the job and gave it up.
    Abandoned,
    /// A transaction of ours was mined and refused, and not because a rival was faster.
    Reverted,
}

/// A failure of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub fault: Fault,
    /// `None` for a transaction that concerns none.
    pub job: Option<JobId>,
    pub at: UnixSeconds,
}

/// A job we claimed that came to its end, in the smallest unit of `token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub token: Address,
    /// What it was to bring, fee taken.
    pub expected: U256,
    /// What it brought.
    pub real: U256,
}

/// What happened since the operator last resumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub failures: Vec<Failure>,
    /// Wei paid for gas within the last hour.
    pub gas_wei: U256,
    /// Newest first.
    pub ended: Vec<Ended>,
}

/// Which limit was passed, with the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tripped {
    /// Jobs, or transactions of none, each with the worst that happened to it.
    Failures {
        within: u64,
        found: Vec<Failure>,
    },
    Gas {
        spent: U256,
        limit: u64,
    },
    Drift {
        token: Address,
        jobs: usize,
        expected: U256,
        real: U256,
        limit_percent: u32,
    },
}

impl fmt::Display for Tripped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tripped::Failures { within, found } => {
                write!(f, "{} failures within {within} s:", found.len())?;
                found.iter().try_for_each(|failure| {
                    let what = format!("{:?}", failure.fault).to_lowercase();
                    match failure.job {
                        Some(job) => write!(f, " job {job} {what}"),
                        None => write!(f, " a transaction {what}"),
                    }
                })
            }
            Tripped::Gas { spent, limit } => write!(f, "{spent} wei for gas within an hour, the limit is {limit}"),
            Tripped::Drift { token, jobs, expected, real, limit_percent } => write!(
                f,
                "the last {jobs} jobs brought {real} of the {expected} they were to bring in token {token}, the limit is a drift \
                 of {limit_percent} %"
            ),
        }
    }
}

/// What is seen of the world now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Seconds since the newest block stored was made, by the wall clock; `None`: there is none.
    pub head_age: Option<u64>,
    /// What the account has for gas, in wei; `None`: not known.
    pub balance: Option<U256>,
    /// Of each endpoint that answers, how many blocks it is behind the best.
    pub lags: Vec<u64>,
    /// How many endpoints there are.
    pub endpoints: usize,
}

impl Limits {
    /// Returns which limit the past passed, if any: the breaker opens.
    pub fn judge(&self, history: &History, now: UnixSeconds) -> Option<Tripped> {
        self.too_many_failures(history, now).or_else(|| self.too_much_gas(history)).or_else(|| self.drift(history))
    }

    fn too_many_failures(&self, history: &History, now: UnixSeconds) -> Option<Tripped> {
        let recent = history.failures.iter().filter(|failure| now.0.saturating_sub(failure.at.0) < self.seconds);
        // What befalls one job counts once: a reverted transaction is often why a job expires.
        let mut jobs: BTreeMap<JobId, Failure> = BTreeMap::new();
        let mut found: Vec<Failure> = Vec::new();
        for failure in recent {
            match failure.job {
                None => found.push(*failure),
                Some(job) => {
                    let worst = jobs.entry(job).or_insert(*failure);
                    *worst = if failure.fault < worst.fault { *failure } else { *worst };
                }
            }
        }
        found.extend(jobs.into_values());
        (self.failures > 0 && found.len() >= self.failures as usize)
            .then_some(Tripped::Failures { within: self.seconds, found })
    }

    fn too_much_gas(&self, history: &History) -> Option<Tripped> {
        let limit = self.gas_wei_per_hour;
        (limit > 0 && history.gas_wei > U256::from(limit)).then_some(Tripped::Gas { spent: history.gas_wei, limit })
    }

    fn drift(&self, history: &History) -> Option<Tripped> {
        let (jobs, limit_percent) = (self.drift_jobs as usize, self.drift_percent);
        if jobs == 0 || limit_percent == 0 {
            return None;
        }
        let mut tokens: BTreeMap<Address, Vec<&Ended>> = BTreeMap::new();
        for ended in &history.ended {
            let of_token = tokens.entry(ended.token).or_default();
            if of_token.len() < jobs {
                of_token.push(ended);
            }
        }
        let full = tokens.into_iter().filter(|(_, ended)| ended.len() == jobs);
        full.filter_map(|(token, ended)| {
            let sum = |of: fn(&Ended) -> U256| ended.iter().fold(U256::ZERO, |sum, job| sum.saturating_add(of(job)));
            let (expected, real) = (sum(|job| job.expected), sum(|job| job.real));
            // A hundredth first: payments are bounded only by the token.
            let drifted = expected.saturating_sub(real) > expected / U256::from(100) * U256::from(limit_percent);
            drifted.then_some(Tripped::Drift { token, jobs, expected, real, limit_percent })
        })
        .next()
    }

    /// Returns why nothing is to be claimed as things are seen now; empty when it may be. Nothing of it lasts longer than its cause.
    pub fn refusals(&self, seen: &Seen) -> Vec<String> {
        let mut refusals = Vec::new();
        match (self.head_age_seconds.unwrap_or(0), seen.head_age) {
            (0, _) => {}
            (_, None) => refusals.push("no block is stored yet".into()),
            (limit, Some(age)) if age > limit => {
                refusals.push(format!("the newest block is {age} s old, the limit is {limit} s"));
            }
            _ => {}
        }
        match (self.min_balance_wei, seen.balance) {
            (0, _) => {}
            (_, None) => refusals.push("what the account has for gas is not known".into()),
            (limit, Some(balance)) if balance < U256::from(limit) => {
                refusals.push(format!("the account has {balance} wei for gas, the limit is {limit}: fund it"));
            }
            _ => {}
        }
        let agree = seen.lags.iter().filter(|lag| **lag <= self.quorum_blocks).count();
        let needed = if self.quorum == 0 { seen.lags.len() / 2 + 1 } else { self.quorum.min(seen.endpoints) };
        if seen.endpoints > 1 && agree < needed {
            refusals.push(format!(
                "{agree} of {} endpoints are within {} blocks of the best, {needed} are needed",
                seen.endpoints, self.quorum_blocks
            ));
        }
        refusals
    }
}

/// Returns what a payment brings once the fee, in hundredths of a percent, is taken.
pub fn expected(payment: U256, fee_bps: u16) -> U256 {
    let (share, whole) = (U256::from(fee_bps.min(10_000)), U256::from(10_000));
    let fee = payment.checked_mul(share).map_or_else(|| payment / whole * share, |parts| parts / whole);
    payment - fee
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_000_000);
    const TOKEN: Address = Address::repeat_byte(7);

    fn failed(fault: Fault, job: u64, ago: u64) -> Failure {
        Failure { fault, job: Some(JobId(job)), at: UnixSeconds(NOW.0 - ago) }
    }

    fn ended(expected: u64, real: u64) -> Ended {
        Ended { token: TOKEN, expected: U256::from(expected), real: U256::from(real) }
    }

    fn judged(limits: &Limits, history: &History) -> Option<String> {
        limits.judge(history, NOW).map(|tripped| tripped.to_string())
    }

    #[test]
    fn what_befalls_one_job_counts_once_and_only_what_is_recent() {
        let limits = Limits { failures: 3, seconds: 60, ..Limits::default() };
        let failures = vec![failed(Fault::Reverted, 1, 5), failed(Fault::Expired, 1, 1), failed(Fault::Expired, 2, 60)];
        let mut history = History { failures, ..History::default() };
        history.failures.push(failed(Fault::Abandoned, 3, 59));
        assert_eq!(judged(&limits, &history), None);
        history.failures.push(Failure { job: None, ..failed(Fault::Reverted, 0, 0) });
        let told = judged(&limits, &history).expect("three");
        assert_eq!(told, "3 failures within 60 s: a transaction reverted job 1 expired job 3 abandoned");
        assert_eq!(judged(&Limits { failures: 0, ..limits }, &history), None, "switched off");
    }

    #[test]
    fn gas_is_bounded_by_the_hour() {
        let limits = Limits { gas_wei_per_hour: 100, ..Limits::default() };
        let spent = |wei: u64| History { gas_wei: U256::from(wei), ..History::default() };
        assert_eq!(judged(&limits, &spent(100)), None);
        assert_eq!(judged(&limits, &spent(101)).expect("open"), "101 wei for gas within an hour, the limit is 100");
        assert_eq!(judged(&Limits { gas_wei_per_hour: 0, ..limits }, &spent(u64::MAX)), None, "switched off");
    }

    #[test]
    fn drift_is_judged_on_enough_of_the_newest_jobs_of_one_token() {
        let limits = Limits { drift_jobs: 3, drift_percent: 50, ..Limits::default() };
        let of = |ended: Vec<Ended>| History { ended, ..History::default() };
        assert_eq!(judged(&limits, &of(vec![ended(100, 0), ended(100, 0)])), None, "too few to judge");
        let other = Ended { token: Address::ZERO, ..ended(100, 0) };
        assert_eq!(judged(&limits, &of(vec![ended(100, 0), ended(100, 0), other])), None, "one is of another token");
        assert_eq!(judged(&limits, &of(vec![ended(100, 50), ended(100, 100), ended(100, 0)])), None, "half came");
        let tripped = of(vec![ended(100, 100), ended(100, 0), ended(100, 0), ended(100, 100), ended(100, 100)]);
        let told = judged(&limits, &tripped).expect("open");
        assert!(told.starts_with("the last 3 jobs brought 100 of the 300"), "{told}");
    }

    #[test]
    fn nothing_is_claimed_on_a_stale_head_with_little_money_or_without_a_quorum() {
        let limits = Limits { head_age_seconds: Some(60), min_balance_wei: 10, ..Limits::default() };
        let well = Seen { head_age: Some(60), balance: Some(U256::from(10)), lags: vec![0, 0, 99], endpoints: 4 };
        let refused = |seen: Seen| limits.refusals(&seen).join("; ");
        assert_eq!(refused(well.clone()), "");
        assert!(refused(Seen { head_age: Some(61), ..well.clone() }).contains("61 s old, the limit is 60 s"));
        assert_eq!(refused(Seen { head_age: None, ..well.clone() }), "no block is stored yet");
        assert!(refused(Seen { balance: Some(U256::from(9)), ..well.clone() }).contains("9 wei for gas"));
        assert!(refused(Seen { balance: None, ..well.clone() }).contains("not known"));
        assert!(refused(Seen { lags: vec![0, 11], ..well.clone() }).contains("1 of 4 endpoints"));
        assert!(refused(Seen { lags: vec![], ..well.clone() }).contains("0 of 4"), "none answers");
        assert_eq!(refused(Seen { lags: vec![0], ..well.clone() }), "", "of those that answer");
        assert_eq!(refused(Seen { lags: vec![99], endpoints: 1, ..well.clone() }), "", "one alone has no quorum");
        let strict = Limits { quorum: 2, ..limits.clone() };
        assert!(!strict.refusals(&Seen { lags: vec![0], ..well }).is_empty(), "so many must answer");
        let off = Limits { head_age_seconds: Some(0), min_balance_wei: 0, ..Limits::default() };
        assert_eq!(off.refusals(&Seen::default()), Vec::<String>::new());
    }

    fn history() -> impl Strategy<Value = History> {
        let fault = prop::sample::select(vec![Fault::Expired, Fault::Refunded, Fault::Abandoned, Fault::Reverted]);
        let failure = (fault, prop::option::of(1..6u64), 0..200u64).prop_map(|(fault, job, ago)| Failure {
            fault,
            job: job.map(JobId),
            at: UnixSeconds(NOW.0 - ago),
        });
        let ended = (0..2u8, any::<u64>(), any::<u64>()).prop_map(|(token, expected, share)| Ended {
            token: Address::repeat_byte(token),
            expected: U256::from(expected),
            real: U256::from(share.min(expected)),
        });
        let parts = (prop::collection::vec(failure, 0..12), any::<u64>(), prop::collection::vec(ended, 0..12));
        parts.prop_map(|(failures, gas, ended)| History { failures, gas_wei: U256::from(gas), ended })
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (0..6u32, 1..200u64, any::<u64>(), 0..101u32, 0..5u32).prop_map(
            |(failures, seconds, gas_wei_per_hour, drift_percent, drift_jobs)| Limits {
                failures,
                seconds,
                gas_wei_per_hour,
                drift_percent,
                drift_jobs,
                ..Limits::default()
            },
        )
    }

    proptest! {
        #[test]
        fn an_open_breaker_stays_open_when_more_goes_wrong(limits in limits(), history in history(), job in 1..9u64) {
            let worse = |more: History| limits.judge(&more, NOW).is_some();
            if limits.judge(&history, NOW).is_some() {
                let mut failed_again = history.clone();
                failed_again.failures.push(failed(Fault::Expired, job, 0));
                prop_assert!(worse(failed_again));
                let mut dearer = history.clone();
                dearer.gas_wei += U256::from(1);
                prop_assert!(worse(dearer));
            }
        }

        #[test]
        fn the_order_of_failures_does_not_matter(limits in limits(), history in history()) {
            let mut turned = history.clone();
            turned.failures.reverse();
            prop_assert_eq!(limits.judge(&history, NOW).is_some(), limits.judge(&turned, NOW).is_some());
        }

        #[test]
        fn a_host_whose_jobs_all_pay_never_drifts(limits in limits(), mut history in history()) {
            history.ended.iter_mut().for_each(|ended| ended.real = ended.expected);
            let tripped = limits.judge(&history, NOW);
            prop_assert!(!matches!(tripped, Some(Tripped::Drift { .. })), "{:?}", tripped);
        }

        #[test]
        fn what_is_expected_is_never_more_than_the_payment(payment in any::<[u64; 4]>(), fee in any::<u16>()) {
            let payment = U256::from_limbs(payment);
            prop_assert!(expected(payment, fee) <= payment);
        }
    }
}
