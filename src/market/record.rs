//! What the contracts keep of a job and of a host, beside what the logs tell of them: where the two differ, logs were missed or
//! made up, or told something else than they seem to.

use alloy::primitives::keccak256;

use super::event::Event;
use super::job::{Job, State};
use super::types::{Address, B256, U256, UnixSeconds};

/// What the contracts keep of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// One of the names of [`State::name`].
    pub state: &'static str,
    pub renter: Address,
    /// Once it was claimed.
    pub host: Option<Address>,
    pub deadline: UnixSeconds,
    /// Once it was completed.
    pub release_at: UnixSeconds,
    /// `keccak256` of the model's and of the input's text.
    pub model_hash: B256,
    pub input_hash: B256,
    /// Root of what was committed to; zero when nothing was.
    pub root: B256,
    /// What the escrow holds, in the smallest unit of `token`; 0 once it was paid out.
    pub escrowed: U256,
    pub token: Address,
}

/// What the registry keeps of a host, and what the logs tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registration {
    /// In FAB's smallest unit; 0 of one that is not registered.
    pub stake: U256,
    /// Jobs that it claimed and that have not ended on chain.
    pub open_jobs: u64,
}

impl Record {
    /// Returns whether the job has not reached its end.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, "released" | "refunded")
    }

    /// Returns the first thing that `job`, which has not ended, has otherwise, or `None` when both say the same.
    pub fn difference(&self, job: &Job) -> Option<String> {
        let terms = &job.terms;
        let (mut root, mut release_at) = (self.root, self.release_at);
        match &job.state {
            State::Committed { commitment, .. } => root = commitment.root,
            State::Completed { release_at: at, .. } | State::Disputed { release_at: at, .. } => release_at = *at,
            _ => {}
        }
        let host = |host: Option<Address>| host.map_or("nobody".into(), |host| host.to_string());
        first_difference([
            ("state", job.state.name().into(), self.state.into()),
            ("host", host(job.host()), host(self.host)),
            ("root", root.to_string(), self.root.to_string()),
            ("release time", release_at.0.to_string(), self.release_at.0.to_string()),
            ("escrowed amount", terms.payment.to_string(), self.escrowed.to_string()),
            ("token", terms.token.to_string(), self.token.to_string()),
            ("renter", terms.renter.to_string(), self.renter.to_string()),
            ("deadline", terms.deadline.0.to_string(), self.deadline.0.to_string()),
            ("hash of the model's name", keccak256(&terms.model).to_string(), self.model_hash.to_string()),
            ("hash of the input's name", keccak256(&terms.input).to_string(), self.input_hash.to_string()),
        ])
    }
}

impl Registration {
    /// Returns what `events`, those of one host in order, and its jobs that have not ended tell of it.
    pub fn of<'a>(host: Address, events: impl IntoIterator<Item = &'a Event>, jobs: &[Job]) -> Self {
        let mut stake = U256::ZERO;
        for event in events {
            match event {
                Event::HostRegistered { stake: whole, .. } => stake = *whole,
                Event::StakeAdded { amount, .. } => stake = stake.saturating_add(*amount),
                Event::HostSlashed { amount, .. } => stake = stake.saturating_sub(*amount),
                Event::HostUnregistered { .. } | Event::Noted { name: "StakeMoved", .. } => stake = U256::ZERO,
                _ => {}
            }
        }
        Self { stake, open_jobs: jobs.iter().filter(|job| job.host() == Some(host)).count() as u64 }
    }

    /// Returns the first thing that the registry has otherwise, or `None` when both say the same.
    pub fn difference(&self, registry: &Registration) -> Option<String> {
        first_difference([
            ("stake", self.stake.to_string(), registry.stake.to_string()),
            ("number of open jobs", self.open_jobs.to_string(), registry.open_jobs.to_string()),
        ])
    }
}

fn first_difference<const N: usize>(compared: [(&str, String, String); N]) -> Option<String> {
    let (what, told, kept) = compared.into_iter().find(|(_, told, kept)| told != kept)?;
    Some(format!("its {what} is {told} by the logs, {kept} by the contract"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::event::{Commitment, Terms};
    use crate::market::job::Fact;
    use crate::market::types::{BlockRef, JobId};

    const ID: JobId = JobId(7);
    const HOST: Address = Address::repeat_byte(0xaa);
    const RENTER: Address = Address::repeat_byte(0xbb);
    const COMMITMENT: Commitment =
        Commitment { root: B256::repeat_byte(1), tokens: 3, result_hash: B256::ZERO, tokens_digest: B256::ZERO };

    fn told(events: &[Event]) -> Job {
        let terms = Terms {
            renter: RENTER,
            model: "m".into(),
            input: "i".into(),
            max_tokens: 8,
            temperature_milli: 0,
            seed: 1,
            payment: U256::from(100),
            token: Address::ZERO,
            deadline: UnixSeconds(1000),
            requires_proof: true,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: Some(HOST),
            region: None,
        };
        let block = BlockRef { number: 5, hash: B256::ZERO };
        let events = [&[Event::JobTerms { job: ID, terms }], events].concat();
        let facts: Vec<Fact> = events.into_iter().map(|event| Fact::Chain { event, block }).collect();
        Job::fold(ID, &facts).expect("no conflict").expect("posted")
    }

    fn way() -> [Event; 5] {
        let (job, host) = (ID, HOST);
        [
            Event::JobClaimed { job, host },
            Event::ResultCommitted { job, host, commitment: COMMITMENT },
            Event::JobCompleted { job, output: "o".into() },
            Event::ReleaseDue { job, at: UnixSeconds(2000) },
            Event::JobDisputed { job, disputer: RENTER },
        ]
    }

    /// What the contracts have after so many events.
    fn kept(events: usize) -> Record {
        let states = ["posted", "claimed", "committed", "", "completed", "disputed"];
        Record {
            state: states[events],
            renter: RENTER,
            host: (events > 0).then_some(HOST),
            deadline: UnixSeconds(1000),
            release_at: UnixSeconds(if events > 3 { 2000 } else { 0 }),
            model_hash: keccak256("m"),
            input_hash: keccak256("i"),
            root: if events > 1 { COMMITMENT.root } else { B256::ZERO },
            escrowed: U256::from(100),
            token: Address::ZERO,
        }
    }

    #[test]
    fn logs_and_contracts_agree_at_every_state() {
        for events in [0, 1, 2, 4, 5] {
            assert_eq!(kept(events).difference(&told(&way()[..events])), None, "after {events} events");
            assert!(kept(events).is_live());
        }
    }

    #[test]
    fn what_one_log_more_or_less_changes_is_named() {
        for (known, real, what) in [
            (0, 1, "state is posted by the logs, claimed by the contract"),
            (1, 0, "state is claimed by the logs, posted by the contract"),
            (1, 2, "state is claimed by the logs, committed by the contract"),
            (2, 4, "state is committed by the logs, completed by the contract"),
            (4, 5, "state is completed by the logs, disputed by the contract"),
        ] {
            assert_eq!(kept(real).difference(&told(&way()[..known])), Some(format!("its {what}")));
        }
    }

    #[test]
    fn each_thing_that_is_otherwise_is_named() {
        let other = Address::repeat_byte(0xcc);
        type Change = fn(&mut Record);
        let changes: [(usize, Change, &str); 9] = [
            (1, |r| r.host = Some(Address::repeat_byte(0xcc)), "host"),
            (2, |r| r.root = B256::ZERO, "root"),
            (4, |r| r.release_at.0 += 1, "release time"),
            (0, |r| r.escrowed = U256::ZERO, "escrowed amount"),
            (0, |r| r.token = Address::repeat_byte(0xcc), "token"),
            (0, |r| r.renter = Address::repeat_byte(0xcc), "renter"),
            (0, |r| r.deadline.0 -= 1, "deadline"),
            (0, |r| r.model_hash = B256::ZERO, "hash of the model's name"),
            (0, |r| r.input_hash = B256::ZERO, "hash of the input's name"),
        ];
        for (events, change, what) in changes {
            let mut record = kept(events);
            change(&mut record);
            let difference = record.difference(&told(&way()[..events])).expect(what);
            assert!(difference.starts_with(&format!("its {what} is ")), "{difference}");
        }
        let moved = Record { host: Some(other), ..kept(1) }.difference(&told(&way()[..1]));
        assert_eq!(moved, Some(format!("its host is {HOST} by the logs, {other} by the contract")));
    }

    #[test]
    fn a_stake_is_the_fold_of_its_events() {
        let registered =
            |stake: u64| Event::HostRegistered { host: HOST, stake: U256::from(stake), metadata: "{}".into() };
        let added = |amount: u64| Event::StakeAdded { host: HOST, amount: U256::from(amount) };
        let slashed = |amount: u64| Event::HostSlashed { host: HOST, amount: U256::from(amount) };
        let moved = Event::Noted { name: "StakeMoved", job: None };
        for (events, stake) in [
            (vec![], 0u64),
            (vec![registered(1000)], 1000),
            (vec![registered(1000), slashed(10), added(25)], 1015),
            (vec![registered(1000), slashed(2000)], 0),
            (vec![registered(1000), Event::HostUnregistered { host: HOST }], 0),
            (vec![registered(1000), moved, registered(900)], 900),
        ] {
            let told = Registration::of(HOST, &events, &[]);
            assert_eq!(told, Registration { stake: U256::from(stake), open_jobs: 0 }, "{events:?}");
        }
        let jobs = [told(&way()[..1]), told(&[]), told(&way())];
        let told = Registration::of(HOST, &[registered(1000)], &jobs);
        assert_eq!(told.open_jobs, 2);
        assert_eq!(told.difference(&told), None);
        let registry = Registration { open_jobs: 3, ..told };
        let difference = told.difference(&registry);
        assert_eq!(difference.as_deref(), Some("its number of open jobs is 2 by the logs, 3 by the contract"));
    }
}
