//! A job is the fold of its facts; what we owe it is a pure function of the job.
//!
//! ```text
//! Posted ──claimed──► Claimed ──committed──► Committed ──completed──► Completed ──released──► Released
//!  │  ▲                  │ │                   │ │                     │    └─disputed─► Disputed ─┘
//!  │  └─────reopened─────┴─│─────reopened──────┘ │                     │                  │
//!  └───────refunded────────┴──────refunded───────┴──────refunded───────┴─────refunded─────┴──► Refunded
//! ```
//! `Claimed → Completed` without a commitment does not exist on the contract. A reorg is not a transition: the facts
//! that fell away are left out and the rest is folded again.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::{Commitment, Event, Terms};
use super::types::{Address, B256, BlockRef, Cid, JobId, U256, UnixSeconds};

/// One recorded happening of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A canonical contract event and the block that holds it.
    Chain { event: Event, block: BlockRef },
    /// The block after the one that holds the commitment: its hash draws the positions to open.
    Beacon(BlockRef),
    /// Something this node finished.
    Work(Work),
    /// The contracts say otherwise of it than its events, and how.
    Doubted(String),
}

impl Fact {
    /// Returns the number of the block that draws the positions to open, where this is a commitment.
    pub fn drawn_by(&self) -> Option<u64> {
        match self {
            Fact::Chain { event: Event::ResultCommitted { .. }, block } => Some(block.number + 1),
            _ => None,
        }
    }

    /// Returns whether a job begins with it.
    pub fn posts(&self) -> bool {
        matches!(self, Fact::Chain { event: Event::JobTerms { .. }, .. })
    }
}

/// Something this node finished for a job; recorded once it is durable.
///
/// A reorg can give a job's number to another order: `deal` is the [`Terms::deal`], and `order` the [`Terms::order`], of the one that it
/// was done for. Older files do not note them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "snake_case")]
pub enum Work {
    /// Policy said yes; the claim intent and the reservation were written in the same transaction.
    Chosen {
        at: UnixSeconds,
        reasons: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deal: Option<B256>,
    },
    /// What was chosen is not on the chain any more: should it come back it is judged anew.
    Withdrawn {
        at: UnixSeconds,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deal: Option<B256>,
    },
    /// The model ran. `transcript` is the content id of the token records.
    Inferred {
        at: UnixSeconds,
        commitment: Commitment,
        output: Cid,
        transcript: Cid,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        order: Option<B256>,
    },
    /// A proof for the positions drawn by `beacon`, verified here. `completion` is the content id of the call's proof bytes.
    Proved { at: UnixSeconds, beacon: B256, completion: Cid },
    /// The signed receipt was published.
    Announced {
        at: UnixSeconds,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deal: Option<B256>,
    },
    /// The chain did not take our claim, and why.
    ClaimFailed {
        at: UnixSeconds,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deal: Option<B256>,
    },
    /// We stopped working on it and say why.
    Abandoned {
        at: UnixSeconds,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deal: Option<B256>,
    },
    /// The operator has it taken up again: what was given up, and the choice of a job that is not claimed yet, counts no more.
    Retried {
        at: UnixSeconds,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deal: Option<B256>,
    },
}

impl Work {
    /// Returns when it was finished.
    pub fn at(&self) -> UnixSeconds {
        match self {
            Work::Chosen { at, .. }
            | Work::Withdrawn { at, .. }
            | Work::Inferred { at, .. }
            | Work::Proved { at, .. }
            | Work::Announced { at, .. }
            | Work::ClaimFailed { at, .. }
            | Work::Abandoned { at, .. }
            | Work::Retried { at, .. } => *at,
        }
    }

    /// Returns whether it was done for another order than the one of these terms, which had the job's number before a reorg.
    fn is_of_another(&self, terms: &Terms) -> bool {
        match self {
            Work::Chosen { deal, .. }
            | Work::Withdrawn { deal, .. }
            | Work::Announced { deal, .. }
            | Work::ClaimFailed { deal, .. }
            | Work::Abandoned { deal, .. }
            | Work::Retried { deal, .. } => deal.is_some_and(|deal| deal != terms.deal()),
            Work::Inferred { order, .. } => order.is_some_and(|order| order != terms.order()),
            // Bound to its order by the beacon of its commitment.
            Work::Proved { .. } => false,
        }
    }

    /// Returns the fact's name in a timeline.
    pub fn name(&self) -> &'static str {
        match self {
            Work::Chosen { .. } => "Chosen",
            Work::Withdrawn { .. } => "Withdrawn",
            Work::Inferred { .. } => "Inferred",
            Work::Proved { .. } => "Proved",
            Work::Announced { .. } => "Announced",
            Work::ClaimFailed { .. } => "ClaimFailed",
            Work::Abandoned { .. } => "Abandoned",
            Work::Retried { .. } => "Retried",
        }
    }
}

/// Where the chain says the job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Posted,
    Claimed {
        host: Address,
    },
    Committed {
        host: Address,
        commitment: Commitment,
    },
    Completed {
        host: Address,
        commitment: Commitment,
        output: String,
        release_at: UnixSeconds,
    },
    /// `release_at` is from when the payment may be asked for although the arbiter has not decided.
    Disputed {
        host: Address,
        commitment: Commitment,
        output: String,
        release_at: UnixSeconds,
    },
    Released {
        host: Address,
        commitment: Commitment,
        output: String,
        amount: U256,
    },
    Refunded {
        host: Option<Address>,
        amount: U256,
    },
}

impl State {
    /// Returns the state's name: `posted`, `claimed`, `committed`, `completed`, `disputed`, `released` or `refunded`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Posted => "posted",
            State::Claimed { .. } => "claimed",
            State::Committed { .. } => "committed",
            State::Completed { .. } => "completed",
            State::Disputed { .. } => "disputed",
            State::Released { .. } => "released",
            State::Refunded { .. } => "refunded",
        }
    }
}

/// One request on the marketplace, as far as the facts tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub terms: Terms,
    pub posted: BlockRef,
    /// The newest block that the state and the beacon rest on.
    pub rests_on: BlockRef,
    pub state: State,
    /// Token and amount that the escrow said it took for this job.
    pub escrowed: Option<(Address, U256)>,
    /// The controllers whose hosts gave it up: none of their hosts may claim it again.
    pub given_up_by: Vec<Address>,
    /// Net amount and fee, once the escrow paid out.
    pub escrow_released: Option<(U256, U256)>,
    pub beacon: Option<B256>,
    pub chosen: bool,
    /// The chain did not take our claim; where it did after all, the job is ours all the same.
    pub claim_failed: bool,
    pub inferred: Option<Inferred>,
    pub proved: Option<Proved>,
    pub announced: bool,
    pub abandoned: Option<String>,
    /// What the contracts say otherwise of it, while they do.
    pub doubt: Option<String>,
}

/// See [`Work::Inferred`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    pub commitment: Commitment,
    pub output: Cid,
    pub transcript: Cid,
}

/// See [`Work::Proved`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    pub beacon: B256,
    pub completion: Cid,
}

/// A fact that cannot follow the ones before it: the contract never emits such a sequence, so something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub job: JobId,
    pub state: &'static str,
    pub fact: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}: {} cannot follow {}", self.job, self.fact, self.state)
    }
}
impl std::error::Error for Conflict {}

/// A side effect we owe a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// Ask policy whether to claim it.
    Consider,
    Infer,
    Commit,
    Prove,
    Complete,
    /// Tell the chain that we do not do it, so that another host can.
    Fail,
    Announce,
    Release,
}

impl Duty {
    /// Returns the duty's name in leases, keys and logs.
    pub fn name(self) -> &'static str {
        match self {
            Duty::Consider => "consider",
            Duty::Infer => "infer",
            Duty::Commit => "commit",
            Duty::Prove => "prove",
            Duty::Complete => "complete",
            Duty::Fail => "fail",
            Duty::Announce => "announce",
            Duty::Release => "release",
        }
    }
}

/// How a job ended for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// We did it and were paid.
    Settled,
    /// The renter has the money back.
    Refunded,
    /// Another host took it, whatever becomes of it there; one that gives it up gives it back to all.
    Lost,
    /// The deadline passed with the money still locked: anyone may refund it.
    Expired,
    /// We gave it up.
    Abandoned,
}

/// What we owe a job now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing until the world moves; says for what we wait.
    Wait(&'static str),
    Do(Duty),
    Done(Outcome),
}

impl Job {
    /// Folds the facts of job `id`, chain facts in chain order. Returns `None` while its terms are not among them.
    ///
    /// A chain fact told again changes nothing. Work facts never conflict: an inference cannot be un-run, and the newest
    /// of a kind counts.
    ///
    /// # Errors
    /// [`Conflict`] when a chain fact cannot follow the ones before it.
    pub fn fold<'a>(id: JobId, facts: impl IntoIterator<Item = &'a Fact>) -> Result<Option<Job>, Conflict> {
        let mut job: Option<Job> = None;
        let mut told: Vec<&Fact> = Vec::new();
        let mut early = Vec::new();
        for fact in facts {
            if let Fact::Chain { .. } = fact {
                if told.contains(&fact) {
                    continue;
                }
                told.push(fact);
            }
            match (&mut job, fact) {
                (Some(job), fact) => job.apply(fact)?,
                (None, Fact::Chain { event: Event::JobTerms { terms, .. }, block }) => {
                    let posted = job.insert(Job::posted(id, terms.clone(), *block));
                    early.drain(..).try_for_each(|fact| posted.apply_early(fact))?;
                }
                (None, fact) => early.push(fact),
            }
        }
        Ok(job)
    }

    /// Applies what came next, as if it had been folded with the rest: what the chain tells of later blocks, or what was done here.
    ///
    /// # Errors
    /// [`Conflict`] when it cannot follow: then the job is to be folded from all facts.
    pub fn follow(&mut self, news: &[Fact]) -> Result<(), Conflict> {
        for (place, fact) in news.iter().enumerate() {
            let again = matches!(fact, Fact::Chain { .. }) && news[..place].contains(fact);
            if !again {
                self.apply(fact)?;
            }
        }
        Ok(())
    }

    fn posted(id: JobId, terms: Terms, posted: BlockRef) -> Job {
        Job {
            id,
            terms,
            posted,
            rests_on: posted,
            state: State::Posted,
            escrowed: None,
            given_up_by: Vec::new(),
            escrow_released: None,
            beacon: None,
            chosen: false,
            claim_failed: false,
            inferred: None,
            proved: None,
            announced: false,
            abandoned: None,
            doubt: None,
        }
    }

    fn apply(&mut self, fact: &Fact) -> Result<(), Conflict> {
        match fact {
            Fact::Work(work) => self.apply_work(work),
            Fact::Doubted(what) => self.doubt = Some(what.clone()),
            Fact::Beacon(block) => {
                self.beacon = Some(block.hash);
                if self.terms.requires_proof {
                    self.rests_on = *block;
                }
            }
            Fact::Chain { event: Event::Noted { .. }, .. } => {}
            Fact::Chain { event, block } => {
                self.apply_event(event)?;
                self.rests_on = *block;
            }
        }
        Ok(())
    }

    fn apply_work(&mut self, work: &Work) {
        if work.is_of_another(&self.terms) {
            return;
        }
        match work.clone() {
            Work::Chosen { .. } => (self.chosen, self.claim_failed) = (true, false),
            Work::Withdrawn { .. } => (self.chosen, self.claim_failed) = (false, false),
            Work::Inferred { commitment, output, transcript, .. } => {
                self.inferred = Some(Inferred { commitment, output, transcript });
            }
            Work::Proved { beacon, completion, .. } => self.proved = Some(Proved { beacon, completion }),
            Work::Announced { .. } => self.announced = true,
            Work::ClaimFailed { .. } => self.claim_failed = self.chosen,
            Work::Abandoned { reason, .. } => self.abandoned = Some(reason),
            Work::Retried { .. } => (self.abandoned, self.chosen, self.claim_failed) = (None, false, false),
        }
    }

    /// Applies a fact that came before the job's terms: of the chain's, only remarks and the escrow's may.
    fn apply_early(&mut self, fact: &Fact) -> Result<(), Conflict> {
        match fact {
            Fact::Chain { event, .. } if !matches!(event, Event::Noted { .. } | Event::EscrowCreated { .. }) => {
                Err(Conflict { job: self.id, state: "no terms", fact: event.name().into() })
            }
            fact => self.apply(fact),
        }
    }

    fn apply_event(&mut self, event: &Event) -> Result<(), Conflict> {
        match (&mut self.state, event) {
            (State::Posted, Event::JobClaimed { host, .. }) => self.state = State::Claimed { host: *host },
            (State::Posted, Event::EscrowCreated { token, amount, .. }) if self.escrowed.is_none() => {
                self.escrowed = Some((*token, *amount));
            }
            (State::Claimed { .. } | State::Committed { .. }, Event::JobReopened { controller, .. }) => {
                self.given_up_by.push(*controller);
                // The contract forgets the commitment, and with it the positions that were drawn.
                (self.state, self.beacon) = (State::Posted, None);
            }
            (State::Claimed { host: claimer }, Event::ResultCommitted { host, commitment, .. }) if claimer == host => {
                self.state = State::Committed { host: *host, commitment: *commitment };
            }
            (State::Committed { host, commitment }, Event::JobCompleted { output, .. }) => {
                self.state = State::Completed {
                    host: *host,
                    commitment: *commitment,
                    output: output.clone(),
                    release_at: UnixSeconds(u64::MAX),
                };
            }
            (State::Completed { host, commitment, output, release_at }, Event::JobDisputed { .. }) => {
                self.state = State::Disputed {
                    host: *host,
                    commitment: *commitment,
                    output: output.clone(),
                    release_at: *release_at,
                };
            }
            (
                State::Completed { release_at, .. } | State::Disputed { release_at, .. },
                Event::ReleaseDue { at, .. },
            ) => *release_at = *at,
            (
                State::Completed { host, commitment, output, .. } | State::Disputed { host, commitment, output, .. },
                Event::PaymentReleased { amount, .. },
            ) => {
                self.state =
                    State::Released { host: *host, commitment: *commitment, output: output.clone(), amount: *amount };
            }
            (
                State::Completed { .. } | State::Disputed { .. } | State::Released { .. },
                Event::EscrowReleased { net, fee, .. },
            ) => self.escrow_released = Some((*net, *fee)),
            (State::Posted, Event::PaymentRefunded { amount, .. }) => {
                self.state = State::Refunded { host: None, amount: *amount };
            }
            (
                State::Claimed { host }
                | State::Committed { host, .. }
                | State::Completed { host, .. }
                | State::Disputed { host, .. },
                Event::PaymentRefunded { amount, .. },
            ) => self.state = State::Refunded { host: Some(*host), amount: *amount },
            // Anyone may pin the beacon of a commitment at any later time, also when nobody needs it any more.
            (
                State::Committed { .. }
                | State::Completed { .. }
                | State::Disputed { .. }
                | State::Released { .. }
                | State::Refunded { host: Some(_), .. },
                Event::BeaconPinned { beacon, .. },
            ) => self.beacon = Some(*beacon),
            (state, event) => {
                return Err(Conflict { job: self.id, state: state.name(), fact: event.name().into() });
            }
        }
        Ok(())
    }

    /// Returns the host that holds or held the job on chain.
    pub fn host(&self) -> Option<Address> {
        match &self.state {
            State::Posted => None,
            State::Claimed { host }
            | State::Committed { host, .. }
            | State::Completed { host, .. }
            | State::Disputed { host, .. }
            | State::Released { host, .. } => Some(*host),
            State::Refunded { host, .. } => *host,
        }
    }

    /// Returns what the host `us` owes this job at `now`, the time of the newest block we know.
    ///
    /// A canonical claim by `us` makes the job ours, whether or not we remember having chosen it.
    pub fn next(&self, us: Address, now: UnixSeconds) -> Next {
        let expired = now >= self.terms.deadline;
        let untold = self.inferred.is_some() && !self.announced;
        match &self.state {
            // Something was missed or made up: what follows from it is not to be acted on.
            _ if self.doubt.is_some() => Next::Wait("what its events and the contracts both say"),
            _ if self.host().is_some_and(|host| host != us) => Next::Done(Outcome::Lost),
            State::Refunded { .. } => Next::Done(Outcome::Refunded),
            State::Released { .. } if untold => Next::Do(Duty::Announce),
            State::Released { .. } => Next::Done(Outcome::Settled),
            // Before the receipt: without a peer to take it, it would be owed for ever and the money never asked for.
            State::Completed { release_at, .. } | State::Disputed { release_at, .. } if now >= *release_at => {
                Next::Do(Duty::Release)
            }
            State::Completed { .. } | State::Disputed { .. } if untold => Next::Do(Duty::Announce),
            State::Completed { .. } => Next::Wait("the challenge window"),
            State::Disputed { .. } => Next::Wait("the arbiter"),
            _ if expired => Next::Done(Outcome::Expired),
            State::Claimed { .. } | State::Committed { .. } if self.abandoned.is_some() => Next::Do(Duty::Fail),
            _ if self.abandoned.is_some() => Next::Done(Outcome::Abandoned),
            State::Posted if self.claim_failed => Next::Done(Outcome::Lost),
            State::Posted if self.chosen => Next::Wait("our claim"),
            State::Posted => Next::Do(Duty::Consider),
            State::Claimed { .. } if self.inferred.is_none() => Next::Do(Duty::Infer),
            State::Claimed { .. } => Next::Do(Duty::Commit),
            State::Committed { commitment, .. } => self.next_committed(commitment),
        }
    }

    fn next_committed(&self, commitment: &Commitment) -> Next {
        if self.inferred.as_ref().is_none_or(|inferred| inferred.commitment != *commitment) {
            // The chain holds a commitment whose transcript this file does not, or one to another order's result, which a reorg
            // brought in: it cannot be opened from here, and until it is given up stake stands for it.
            return Next::Do(Duty::Fail);
        }
        match (self.beacon, &self.proved) {
            _ if !self.terms.requires_proof => Next::Do(Duty::Complete),
            (None, _) => Next::Wait("the block after the commitment"),
            (Some(beacon), Some(proved)) if proved.beacon == beacon => Next::Do(Duty::Complete),
            (Some(_), _) => Next::Do(Duty::Prove),
        }
    }
}

/// Returns whether a call for `job`, where the chain has it and it has not ended, can only cost: the claim of a job that another has,
/// that nobody can do any more, that we gave up, or that a reorg took away or gave to another order; the result of such another
/// order; and the giving up of a job that was taken up again.
pub fn in_vain(kind: &str, job: Option<&Job>, us: Address, now: UnixSeconds) -> bool {
    match (kind, job) {
        ("claim", None) => true,
        ("claim", Some(job)) => {
            let ours = job.chosen && job.abandoned.is_none();
            (job.state == State::Posted && !ours)
                || job.host().is_some_and(|host| host != us)
                || job.terms.deadline <= now
        }
        ("commit" | "complete", Some(job)) => job.inferred.is_none(),
        ("fail", Some(job)) => job.next(us, now) != Next::Do(Duty::Fail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: JobId = JobId(7);
    const US: Address = Address::repeat_byte(0xaa);
    const RIVAL: Address = Address::repeat_byte(0xbb);
    const DEADLINE: u64 = 1000;
    const RELEASE_AT: u64 = 2000;
    const LAPSES_AT: u64 = 2500;
    const BEACON: B256 = B256::repeat_byte(0xbe);
    const DRAWS: BlockRef = BlockRef { number: 6, hash: BEACON };
    const COMMITMENT: Commitment = Commitment {
        root: B256::repeat_byte(1),
        tokens: 3,
        result_hash: B256::repeat_byte(2),
        tokens_digest: B256::repeat_byte(3),
    };

    fn chain(event: Event) -> Fact {
        Fact::Chain { event, block: BlockRef { number: 5, hash: B256::repeat_byte(5) } }
    }

    fn posted_with(requires_proof: bool) -> Fact {
        let terms = Terms {
            renter: Address::repeat_byte(9),
            model: "sha256:".into(),
            input: "b".into(),
            max_tokens: 8,
            temperature_milli: 0,
            seed: 1,
            payment: U256::from(100),
            token: Address::ZERO,
            deadline: UnixSeconds(DEADLINE),
            requires_proof,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: None,
            region: None,
        };
        chain(Event::JobTerms { job: ID, terms })
    }
    fn posted() -> Fact {
        posted_with(true)
    }
    fn locked() -> Fact {
        chain(Event::EscrowCreated { job: ID, amount: U256::from(100), token: Address::ZERO })
    }
    fn claimed(host: Address) -> Fact {
        chain(Event::JobClaimed { job: ID, host })
    }
    fn committed_to(host: Address, commitment: Commitment) -> Fact {
        chain(Event::ResultCommitted { job: ID, host, commitment })
    }
    fn committed() -> Fact {
        committed_to(US, COMMITMENT)
    }
    fn pinned() -> Fact {
        chain(Event::BeaconPinned { job: ID, beacon: BEACON })
    }
    fn completed() -> Fact {
        chain(Event::JobCompleted { job: ID, output: "out".into() })
    }
    fn due() -> Fact {
        chain(Event::ReleaseDue { job: ID, at: UnixSeconds(RELEASE_AT) })
    }
    fn escrow() -> Fact {
        chain(Event::EscrowReleased { job: ID, net: U256::from(97), fee: U256::from(3) })
    }
    fn released() -> Fact {
        chain(Event::PaymentReleased { job: ID, host: US, amount: U256::from(97) })
    }
    fn refunded() -> Fact {
        chain(Event::PaymentRefunded { job: ID, renter: Address::repeat_byte(9), amount: U256::from(100) })
    }
    fn reopened_by(controller: Address) -> Fact {
        chain(Event::JobReopened { job: ID, controller })
    }
    fn reopened() -> Fact {
        reopened_by(RIVAL)
    }
    fn disputed() -> Fact {
        chain(Event::JobDisputed { job: ID, disputer: Address::repeat_byte(9) })
    }
    fn due_later() -> Fact {
        chain(Event::ReleaseDue { job: ID, at: UnixSeconds(LAPSES_AT) })
    }
    fn noted() -> Fact {
        chain(Event::Noted { name: "JobPosted", job: Some(ID) })
    }

    fn chosen() -> Fact {
        Fact::Work(Work::Chosen { at: UnixSeconds(1), reasons: Vec::new(), deal: None })
    }
    fn inferred_as(commitment: Commitment) -> Fact {
        inferred_of(None, commitment)
    }
    fn inferred_of(order: Option<B256>, commitment: Commitment) -> Fact {
        let (output, transcript) = (Cid::of(b"output"), Cid::of(b"transcript"));
        Fact::Work(Work::Inferred { at: UnixSeconds(2), commitment, output, transcript, order })
    }
    fn inferred() -> Fact {
        inferred_as(COMMITMENT)
    }
    fn proved(beacon: B256) -> Fact {
        Fact::Work(Work::Proved { at: UnixSeconds(3), beacon, completion: Cid::of(b"proof") })
    }
    fn announced() -> Fact {
        Fact::Work(Work::Announced { at: UnixSeconds(4), deal: None })
    }
    fn claim_failed() -> Fact {
        Fact::Work(Work::ClaimFailed { at: UnixSeconds(5), reason: "reverted".into(), deal: None })
    }
    fn abandoned() -> Fact {
        Fact::Work(Work::Abandoned { at: UnixSeconds(5), reason: "the model failed".into(), deal: None })
    }

    fn job(facts: &[Fact]) -> Job {
        Job::fold(ID, facts).expect("no conflict").expect("posted")
    }

    #[track_caller]
    fn owes(facts: &[Fact], now: u64, next: Next) {
        let job = job(facts);
        assert_eq!(job.next(US, UnixSeconds(now)), next, "{} at {now}, facts {facts:#?}", job.state.name());
    }

    const EARLY: u64 = DEADLINE - 1;
    use Duty::*;
    use Next::{Do, Done, Wait};
    use Outcome::*;

    #[test]
    fn a_posted_job_is_considered_until_chosen_given_up_or_expired() {
        owes(&[posted()], EARLY, Do(Consider));
        owes(&[posted()], DEADLINE, Done(Expired));
        owes(&[posted(), chosen()], EARLY, Wait("our claim"));
        owes(&[posted(), chosen()], DEADLINE, Done(Expired));
        owes(&[posted(), chosen(), abandoned()], EARLY, Done(Abandoned));
        owes(&[posted(), refunded()], EARLY, Done(Refunded));
    }

    #[test]
    fn a_retried_job_is_taken_up_where_it_was_left() {
        let retried = || Fact::Work(Work::Retried { at: UnixSeconds(6), deal: None });
        owes(&[posted(), chosen(), abandoned(), retried()], EARLY, Do(Consider));
        owes(&[posted(), chosen(), abandoned(), retried(), chosen()], EARLY, Wait("our claim"));
        owes(&[posted(), claimed(US), chosen(), abandoned(), retried()], EARLY, Do(Infer));
        owes(&[posted(), claimed(US), inferred(), abandoned(), retried()], EARLY, Do(Commit));
        owes(&[posted(), claimed(US), abandoned(), retried(), abandoned()], EARLY, Do(Fail));
        owes(&[posted(), claimed(US), abandoned(), retried()], DEADLINE, Done(Expired));
        owes(&[posted(), claimed(RIVAL), abandoned(), retried()], EARLY, Done(Lost));
    }

    #[test]
    fn a_claim_by_us_makes_it_ours_whatever_we_remember() {
        owes(&[posted(), claimed(US), chosen()], EARLY, Do(Infer));
        owes(&[posted(), claimed(US)], EARLY, Do(Infer));
        owes(&[posted(), claimed(US), inferred()], EARLY, Do(Commit));
        owes(&[posted(), claimed(US), abandoned()], EARLY, Do(Fail));
        owes(&[posted(), claimed(US), abandoned()], DEADLINE, Done(Expired));
        owes(&[posted(), chosen(), claim_failed()], EARLY, Done(Lost));
        owes(&[posted(), chosen(), claim_failed(), claimed(US)], EARLY, Do(Infer));
        owes(&[posted(), claimed(US), inferred()], DEADLINE, Done(Expired));
        owes(&[posted(), claimed(US), refunded()], DEADLINE, Done(Refunded));
    }

    #[test]
    fn nothing_is_done_for_a_job_in_doubt() {
        let way = [posted(), claimed(US), committed(), Fact::Beacon(DRAWS), completed(), due(), released()];
        for known in 1..=way.len() {
            for work in [vec![], vec![chosen(), inferred()], vec![chosen(), inferred(), proved(BEACON)]] {
                let doubted = Fact::Doubted("its state is posted by the logs, claimed by the contract".into());
                let facts = [&way[..known], &work, &[doubted]].concat();
                for now in [EARLY, DEADLINE, LAPSES_AT] {
                    owes(&facts, now, Wait("what its events and the contracts both say"));
                }
            }
        }
    }

    #[test]
    fn a_rivals_job_is_lost_at_every_state() {
        let mut facts = vec![posted(), claimed(RIVAL)];
        for next in [committed_to(RIVAL, COMMITMENT), completed(), due(), escrow(), released()] {
            owes(&[facts.as_slice(), &[chosen(), inferred()]].concat(), EARLY, Done(Lost));
            owes(&facts, RELEASE_AT, Done(Lost));
            facts.push(next);
        }
        owes(&facts, RELEASE_AT, Done(Lost));
        owes(&[posted(), claimed(RIVAL), refunded()], DEADLINE, Done(Lost));
    }

    #[test]
    fn a_commitment_is_proved_for_the_beacon_of_the_canonical_chain() {
        let beacon = Fact::Beacon(DRAWS);
        let moved = B256::repeat_byte(0x22);
        let elsewhere = Fact::Beacon(BlockRef { hash: moved, ..DRAWS });
        let base = [posted(), claimed(US), committed()];
        let with = |facts: &[Fact]| [base.as_slice(), facts].concat();
        owes(&with(&[inferred()]), EARLY, Wait("the block after the commitment"));
        owes(&with(&[beacon.clone(), inferred()]), EARLY, Do(Prove));
        owes(&with(&[pinned(), inferred()]), EARLY, Do(Prove));
        owes(&with(&[beacon.clone(), inferred(), proved(BEACON)]), EARLY, Do(Complete));
        owes(&with(&[elsewhere.clone(), inferred(), proved(BEACON)]), EARLY, Do(Prove));
        owes(&with(&[elsewhere.clone(), inferred(), proved(BEACON), proved(moved)]), EARLY, Do(Complete));
        owes(&with(&[inferred(), proved(BEACON)]), EARLY, Wait("the block after the commitment"));
        owes(&with(&[beacon.clone(), inferred(), proved(BEACON)]), DEADLINE, Done(Expired));
        owes(&with(&[beacon, inferred(), abandoned()]), EARLY, Do(Fail));
        owes(&with(&[inferred(), refunded()]), DEADLINE, Done(Refunded));
    }

    #[test]
    fn a_commitment_that_is_not_ours_to_open_is_given_up() {
        let other = Commitment { root: B256::repeat_byte(0x77), ..COMMITMENT };
        let base = [posted(), claimed(US), committed(), Fact::Beacon(DRAWS)];
        owes(&base, EARLY, Do(Fail));
        owes(&base, DEADLINE, Done(Expired));
        owes(&[base.as_slice(), &[inferred_as(other)]].concat(), EARLY, Do(Fail));
        owes(&[base.as_slice(), &[inferred_as(other), inferred()]].concat(), EARLY, Do(Prove));
    }

    #[test]
    fn a_result_counts_only_for_the_order_it_was_made_for() {
        let Fact::Chain { event: Event::JobTerms { mut terms, .. }, .. } = posted() else { unreachable!("posted") };
        let (order, base) = (terms.order(), [posted(), claimed(US)]);
        let with = |order| [base.as_slice(), &[inferred_of(Some(order), COMMITMENT)]].concat();
        owes(&with(order), EARLY, Do(Commit));
        terms.renter = Address::repeat_byte(8);
        terms.deadline = UnixSeconds(DEADLINE + 1);
        assert_eq!(terms.order(), order, "whose it is and until when changes no result");
        let changes: [fn(&mut Terms); 5] = [
            |terms| terms.model.push('0'),
            |terms| terms.input.push('0'),
            |terms| terms.max_tokens += 1,
            |terms| terms.temperature_milli += 1,
            |terms| terms.seed += 1,
        ];
        for change in changes {
            let mut other = terms.clone();
            change(&mut other);
            owes(&with(other.order()), EARLY, Do(Infer));
            let committed = [with(other.order()), vec![committed()]].concat();
            owes(&committed, EARLY, Do(Fail));
            owes(
                &[committed, vec![inferred_of(Some(order), COMMITMENT)]].concat(),
                EARLY,
                Wait("the block after the commitment"),
            );
        }
    }

    #[test]
    fn a_job_without_proof_waits_for_no_beacon() {
        let base = [posted_with(false), claimed(US), committed()];
        owes(&[base.as_slice(), &[inferred()]].concat(), EARLY, Do(Complete));
        owes(&[base.as_slice(), &[Fact::Beacon(DRAWS), inferred()]].concat(), EARLY, Do(Complete));
        owes(&base, EARLY, Do(Fail));
        owes(&[base.as_slice(), &[inferred()]].concat(), DEADLINE, Done(Expired));
    }

    #[test]
    fn a_completed_job_is_paid_even_when_no_peer_takes_the_receipt() {
        let base = [posted(), claimed(US), committed(), completed(), due()];
        let with = |facts: &[Fact]| [base.as_slice(), facts].concat();
        owes(&with(&[inferred()]), RELEASE_AT - 1, Do(Announce));
        owes(&with(&[inferred(), announced()]), RELEASE_AT - 1, Wait("the challenge window"));
        owes(&base, RELEASE_AT - 1, Wait("the challenge window"));
        owes(&with(&[inferred()]), RELEASE_AT, Do(Release));
        owes(&with(&[inferred(), announced()]), RELEASE_AT, Do(Release));
        owes(&with(&[abandoned()]), RELEASE_AT, Do(Release));
        owes(&base[..4], u64::MAX - 1, Wait("the challenge window"));
        owes(&with(&[escrow(), released(), inferred()]), RELEASE_AT, Do(Announce));
        owes(&with(&[escrow(), released(), inferred(), announced()]), RELEASE_AT, Done(Settled));
        owes(&with(&[escrow(), released()]), RELEASE_AT, Done(Settled));
    }

    #[test]
    fn what_can_only_cost_is_in_vain_and_nothing_else() {
        let Fact::Chain { event: Event::JobTerms { terms, .. }, .. } = posted() else { panic!("terms") };
        let other = chain(Event::JobTerms { job: ID, terms: Terms { input: "other".into(), ..terms.clone() } });
        let at = UnixSeconds(EARLY);
        let chosen = Fact::Work(Work::Chosen { at, reasons: Vec::new(), deal: Some(terms.deal()) });
        let (output, transcript, order) = (Cid::of(b"o"), Cid::of(b"t"), Some(terms.order()));
        let inferred = Fact::Work(Work::Inferred { at, commitment: COMMITMENT, output, transcript, order });
        let given_up = Fact::Work(Work::Abandoned { at, reason: "no disk".into(), deal: Some(terms.deal()) });
        let again = Fact::Work(Work::Retried { at, deal: Some(terms.deal()) });
        let in_vain = |kind, facts: &[&Fact]| {
            let facts: Vec<Fact> = facts.iter().copied().cloned().collect();
            super::in_vain(kind, Job::fold(ID, &facts).expect("no conflict").as_ref(), US, at)
        };
        let (posted, ours, theirs) = (&posted(), &claimed(US), &claimed(RIVAL));

        assert!(in_vain("claim", &[]), "a reorg took the posting");
        assert!(!in_vain("claim", &[posted, &chosen]));
        assert!(super::in_vain("claim", Some(&job(&[posted.clone(), chosen.clone()])), US, UnixSeconds(DEADLINE)));
        assert!(in_vain("claim", &[&other, &chosen]), "another order has the number");
        assert!(in_vain("claim", &[posted, &chosen, &given_up]));
        assert!(in_vain("claim", &[posted, theirs, &chosen]));
        assert!(!in_vain("claim", &[posted, ours, &chosen]), "it is on chain: leave it");
        for kind in ["commit", "complete"] {
            assert!(!in_vain(kind, &[posted, ours, &chosen, &inferred]));
            assert!(in_vain(kind, &[&other, ours, &chosen, &inferred]), "{kind}");
            assert!(!in_vain(kind, &[]), "nothing is known of it");
        }
        assert!(!in_vain("fail", &[posted, ours, &given_up]));
        assert!(in_vain("fail", &[&other, ours, &given_up]), "another order has the number");
        assert!(in_vain("fail", &[posted, ours, &given_up, &again]), "taken up again");
        for kind in ["release", "fill"] {
            assert!(!in_vain(kind, &[]) && !in_vain(kind, &[posted]), "{kind}: it is our money, or our nonce");
        }
    }

    #[test]
    fn a_choice_holds_for_what_was_judged_and_until_it_is_withdrawn() {
        let chose = |deal| Fact::Work(Work::Chosen { at: UnixSeconds(1), reasons: Vec::new(), deal });
        let Fact::Chain { event: Event::JobTerms { terms, .. }, .. } = posted() else { panic!("terms") };
        let ours = chose(Some(terms.deal()));
        let failed_of = |deal| Fact::Work(Work::ClaimFailed { at: UnixSeconds(2), reason: String::new(), deal });
        let failed = failed_of(Some(terms.deal()));
        let withdrawn = Fact::Work(Work::Withdrawn { at: UnixSeconds(3), deal: None });
        owes(&[posted(), ours.clone()], EARLY, Wait("our claim"));
        owes(&[posted(), chose(Some(B256::ZERO))], EARLY, Do(Consider));
        owes(&[posted(), chose(Some(B256::ZERO)), failed.clone()], EARLY, Do(Consider));
        owes(&[posted(), ours.clone(), failed.clone()], EARLY, Done(Lost));
        owes(&[posted(), ours.clone(), failed_of(None)], EARLY, Done(Lost));
        owes(&[posted(), ours.clone(), failed_of(Some(B256::ZERO))], EARLY, Wait("our claim"));
        owes(&[posted(), ours.clone(), failed.clone(), withdrawn.clone()], EARLY, Do(Consider));
        owes(&[posted(), ours.clone(), failed, withdrawn, ours], EARLY, Wait("our claim"));
        let later = Terms { deadline: UnixSeconds(DEADLINE + 1), ..terms.clone() };
        assert_eq!(later.deal(), terms.deal(), "the block decides that");
        let cheaper = Terms { payment: U256::from(1), ..terms.clone() };
        assert_ne!(cheaper.deal(), terms.deal());
    }

    #[test]
    fn what_was_given_up_or_told_of_another_order_counts_for_nothing() {
        let Fact::Chain { event: Event::JobTerms { terms, .. }, .. } = posted() else { panic!("terms") };
        let [ours, others] = [Some(terms.deal()), Some(Terms { seed: 2, ..terms }.deal())];
        let given_up = |deal| Fact::Work(Work::Abandoned { at: UnixSeconds(5), reason: "no disk".into(), deal });
        owes(&[posted(), given_up(ours)], EARLY, Done(Abandoned));
        owes(&[posted(), given_up(others)], EARLY, Do(Consider));
        owes(&[posted(), claimed(US), given_up(ours)], EARLY, Do(Fail));
        owes(&[posted(), claimed(US), given_up(others)], EARLY, Do(Infer));
        owes(&[posted(), claimed(US), given_up(ours), given_up(others)], EARLY, Do(Fail));
        assert_eq!(job(&[posted(), given_up(others)]).abandoned, None, "nor does its reason");
        let told = |deal| Fact::Work(Work::Announced { at: UnixSeconds(4), deal });
        let paid = [posted(), claimed(US), committed(), completed(), due(), released(), inferred()];
        let with = |told| [paid.as_slice(), &[told]].concat();
        owes(&with(told(ours)), RELEASE_AT, Done(Settled));
        owes(&with(told(others)), RELEASE_AT, Do(Announce));
        owes(&[with(told(others)), vec![told(ours)]].concat(), RELEASE_AT, Done(Settled));
    }

    #[test]
    fn what_was_taken_back_or_taken_up_again_of_another_order_counts_for_nothing() {
        let Fact::Chain { event: Event::JobTerms { terms, .. }, .. } = posted() else { panic!("terms") };
        let [ours, others] = [Some(terms.deal()), Some(Terms { seed: 2, ..terms }.deal())];
        fn withdrawn(deal: Option<B256>) -> Fact {
            Fact::Work(Work::Withdrawn { at: UnixSeconds(6), deal })
        }
        fn retried(deal: Option<B256>) -> Fact {
            Fact::Work(Work::Retried { at: UnixSeconds(6), deal })
        }
        for undone in [withdrawn as fn(Option<B256>) -> Fact, retried] {
            owes(&[posted(), chosen(), undone(others)], EARLY, Wait("our claim"));
            owes(&[posted(), chosen(), claim_failed(), undone(others)], EARLY, Done(Lost));
            for deal in [ours, None] {
                owes(&[posted(), chosen(), undone(deal)], EARLY, Do(Consider));
                owes(&[posted(), chosen(), claim_failed(), undone(deal)], EARLY, Do(Consider));
            }
        }
        owes(&[posted(), claimed(US), abandoned(), retried(others)], EARLY, Do(Fail));
        owes(&[posted(), claimed(US), abandoned(), retried(ours)], EARLY, Do(Infer));
        owes(&[posted(), claimed(US), abandoned(), withdrawn(ours)], EARLY, Do(Fail));
    }

    #[test]
    fn notes_of_older_files_name_no_order_and_count() {
        for (note, name) in [
            (r#"{"did":"announced","at":1}"#, "Announced"),
            (r#"{"did":"withdrawn","at":1}"#, "Withdrawn"),
            (r#"{"did":"retried","at":1}"#, "Retried"),
            (r#"{"did":"claim_failed","at":1,"reason":"no"}"#, "ClaimFailed"),
            (r#"{"did":"abandoned","at":1,"reason":"no"}"#, "Abandoned"),
        ] {
            let work: Work = serde_json::from_str(note).expect("a note");
            assert_eq!((work.name(), serde_json::to_string(&work).expect("JSON").as_str()), (name, note));
            let Fact::Chain { event: Event::JobTerms { terms, .. }, .. } = posted() else { panic!("terms") };
            assert!(!work.is_of_another(&terms));
        }
    }

    #[test]
    fn a_job_given_up_is_open_again() {
        let given_up = [posted(), claimed(RIVAL), committed_to(RIVAL, COMMITMENT), pinned(), reopened()];
        owes(&given_up, EARLY, Do(Consider));
        owes(&[given_up.as_slice(), &[chosen()]].concat(), EARLY, Wait("our claim"));
        assert_eq!((job(&given_up).host(), job(&given_up).beacon), (None, None));
        let ours = [given_up.as_slice(), &[claimed(US), committed(), inferred(), chosen()]].concat();
        owes(&ours, EARLY, Wait("the block after the commitment"));
        owes(&[posted(), claimed(US), reopened(), abandoned()], EARLY, Done(Abandoned));
        owes(&[given_up.as_slice(), &[refunded()]].concat(), DEADLINE, Done(Refunded));
        // Twice in one block, by two hosts: that is not one fact told twice.
        let other = Address::repeat_byte(0xcc);
        owes(&[given_up.as_slice(), &[claimed(other), reopened_by(other)]].concat(), EARLY, Do(Consider));
    }

    #[test]
    fn a_disputed_payment_waits_for_the_arbiter_or_lapses() {
        let base = [posted(), claimed(US), committed(), completed(), due(), disputed(), due_later(), inferred()];
        let with = |facts: &[Fact]| [base.as_slice(), facts].concat();
        owes(&base, RELEASE_AT, Do(Announce));
        owes(&with(&[announced()]), RELEASE_AT, Wait("the arbiter"));
        owes(&with(&[announced()]), LAPSES_AT, Do(Release));
        owes(&base, LAPSES_AT, Do(Release));
        owes(&with(&[escrow(), released(), announced()]), RELEASE_AT, Done(Settled));
        owes(&with(&[refunded()]), RELEASE_AT, Done(Refunded));
        assert_eq!(job(&with(&[refunded()])).host(), Some(US));
        // The host may agree to a refund of what it completed, dispute or not.
        owes(&[posted(), claimed(US), committed(), completed(), due(), refunded()], RELEASE_AT, Done(Refunded));
    }

    #[test]
    fn each_fact_leaves_its_mark() {
        let all = job(&[
            posted(),
            locked(),
            noted(),
            claimed(US),
            committed(),
            completed(),
            due(),
            escrow(),
            released(),
            pinned(),
        ]);
        assert_eq!(all.escrow_released, Some((U256::from(97), U256::from(3))));
        assert_eq!(all.beacon, Some(BEACON));
        assert_eq!(all.escrowed, Some((Address::ZERO, U256::from(100))));
        assert_eq!(job(&[locked(), posted()]).escrowed, all.escrowed, "the escrow may speak first");
        assert_eq!(job(&[posted()]).escrowed, None);
        assert_eq!(job(&[posted(), claimed(RIVAL), reopened()]).given_up_by, [RIVAL]);
        assert_eq!(
            all.state,
            State::Released { host: US, commitment: COMMITMENT, output: "out".into(), amount: U256::from(97) }
        );
        let (host, amount) = (Some(US), U256::from(100));
        assert_eq!(job(&[posted(), claimed(US), refunded()]).state, State::Refunded { host, amount });
        assert_eq!(Job::fold(ID, &[noted(), claimed(US)]), Ok(None));
    }

    #[test]
    fn a_job_rests_on_the_block_of_its_newest_event() {
        let at = |number: u64, fact: Fact| match fact {
            Fact::Chain { event, .. } => Fact::Chain { event, block: BlockRef { number, hash: B256::ZERO } },
            Fact::Beacon(block) => Fact::Beacon(BlockRef { number, ..block }),
            work => work,
        };
        let rests = |facts: &[Fact]| job(facts).rests_on.number;
        let committed = [at(1, posted()), at(2, claimed(US)), at(3, committed())];
        let with = |facts: &[Fact]| [committed.as_slice(), facts].concat();
        assert_eq!([rests(&committed[..1]), rests(&committed[..2]), rests(&committed)], [1, 2, 3]);
        assert_eq!(rests(&with(&[at(4, Fact::Beacon(DRAWS))])), 4);
        assert_eq!(rests(&with(&[at(4, Fact::Beacon(DRAWS)), at(9, pinned())])), 9);
        assert_eq!(rests(&with(&[at(4, Fact::Beacon(DRAWS)), at(8, reopened())])), 8);
        assert_eq!(rests(&with(&[at(4, Fact::Beacon(DRAWS)), at(7, completed()), at(9, noted())])), 7);
        let unproven = [at(1, posted_with(false)), at(2, claimed(US)), at(3, super::tests::committed())];
        assert_eq!(rests(&[unproven.as_slice(), &[at(4, Fact::Beacon(DRAWS)), inferred()]].concat()), 3);
    }

    #[test]
    fn anyone_may_pin_a_beacon_late() {
        let base = [posted(), claimed(US), committed()];
        for after in [vec![completed()], vec![completed(), due(), released()], vec![refunded()]] {
            job(&[base.as_slice(), &after, &[pinned()]].concat());
        }
    }

    #[test]
    fn what_the_contract_never_emits_is_a_conflict() {
        let conflict = |facts: &[Fact]| Job::fold(ID, facts).unwrap_err().to_string();
        assert_eq!(conflict(&[claimed(US), posted()]), "job 7: JobClaimed cannot follow no terms");
        assert_eq!(conflict(&[posted(), posted_with(false)]), "job 7: JobTerms cannot follow posted");
        assert_eq!(conflict(&[posted(), committed()]), "job 7: ResultCommitted cannot follow posted");
        assert_eq!(conflict(&[posted(), pinned()]), "job 7: BeaconPinned cannot follow posted");
        assert_eq!(conflict(&[posted(), claimed(US), locked()]), "job 7: EscrowCreated cannot follow claimed");
        let more = chain(Event::EscrowCreated { job: ID, amount: U256::from(101), token: Address::ZERO });
        assert_eq!(conflict(&[posted(), locked(), more]), "job 7: EscrowCreated cannot follow posted");
        assert_eq!(conflict(&[posted(), escrow()]), "job 7: EscrowReleased cannot follow posted");
        assert_eq!(conflict(&[posted(), refunded(), escrow()]), "job 7: EscrowReleased cannot follow refunded");
        assert_eq!(conflict(&[posted(), claimed(US), claimed(RIVAL)]), "job 7: JobClaimed cannot follow claimed");
        assert_eq!(conflict(&[posted(), claimed(RIVAL), committed()]), "job 7: ResultCommitted cannot follow claimed");
        assert_eq!(conflict(&[posted(), claimed(US), completed()]), "job 7: JobCompleted cannot follow claimed");
        assert_eq!(conflict(&[posted(), reopened()]), "job 7: JobReopened cannot follow posted");
        assert_eq!(conflict(&[posted(), claimed(US), disputed()]), "job 7: JobDisputed cannot follow claimed");
        let twice = [posted(), claimed(US), committed(), completed(), reopened()];
        assert_eq!(conflict(&twice), "job 7: JobReopened cannot follow completed");
        let paid = [posted(), claimed(US), committed(), completed(), released(), refunded()];
        assert_eq!(conflict(&paid), "job 7: PaymentRefunded cannot follow released");
    }

    fn any_work() -> impl Strategy<Value = Fact> {
        let other = Commitment { tokens: 4, ..COMMITMENT };
        prop::sample::select(vec![
            chosen(),
            inferred(),
            inferred_as(other),
            proved(BEACON),
            proved(B256::ZERO),
            announced(),
            claim_failed(),
            abandoned(),
        ])
    }

    fn any_fact() -> impl Strategy<Value = Fact> {
        let of_chain = prop::sample::select(vec![
            posted(),
            posted_with(false),
            locked(),
            claimed(US),
            claimed(RIVAL),
            committed(),
            committed_to(RIVAL, COMMITMENT),
            pinned(),
            completed(),
            due(),
            escrow(),
            released(),
            refunded(),
            reopened(),
            disputed(),
            due_later(),
            noted(),
            Fact::Beacon(DRAWS),
        ]);
        prop_oneof![3 => of_chain, 1 => any_work()]
    }

    /// The chain facts of one job as the contract may emit them, up to an end or short of it.
    fn history() -> impl Strategy<Value = Vec<Fact>> {
        let ways = (any::<bool>(), any::<bool>(), any::<bool>());
        let ends = (prop::sample::select(vec![US, RIVAL]), any::<bool>(), 0..5usize, ways);
        (ends, 0..14usize, prop::collection::vec(0..14usize, 0..3)).prop_map(
            |((host, proof, stages, (refund, given_up, dispute)), kept, remarks)| {
                let commit = [committed_to(host, COMMITMENT), Fact::Beacon(DRAWS)];
                // Told once, a fact tells nothing again: the one who gave it up is not the one who claims it next.
                let first = Address::repeat_byte(0xcc);
                let lost = [claimed(first), committed_to(first, COMMITMENT), reopened_by(first)];
                let post = [&[posted_with(proof), locked()][..], if given_up { &lost } else { &[] }].concat();
                let dispute_facts = [disputed(), due_later()];
                let disputing = if dispute { &dispute_facts[..] } else { &[] };
                let complete = [&[completed(), due()][..], disputing].concat();
                let pay = [escrow(), released(), pinned()];
                let stage = [&post[..], &[claimed(host)], &commit, &complete, &pay];
                let mut facts = stage[..=stages].concat();
                if refund && stages < 4 {
                    facts.push(refunded());
                }
                remarks.into_iter().for_each(|place| facts.insert(place.min(facts.len()), noted()));
                facts.truncate(kept.max(1));
                facts
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_makes_the_fold_panic(facts in prop::collection::vec(any_fact(), 0..14), now in 0..3000u64) {
            if let Ok(Some(job)) = Job::fold(ID, &facts) {
                job.next(US, UnixSeconds(now));
            }
        }

        #[test]
        fn a_chain_fact_told_again_changes_nothing(
            facts in prop::collection::vec(any_fact(), 1..14), which in any::<prop::sample::Index>(), later in 0..14usize,
        ) {
            let which = which.index(facts.len());
            prop_assume!(matches!(facts[which], Fact::Chain { .. }));
            let mut again = facts.clone();
            again.insert((which + 1 + later).min(facts.len()), facts[which].clone());
            prop_assert_eq!(Job::fold(ID, &again), Job::fold(ID, &facts));
        }

        #[test]
        fn work_recorded_twice_changes_nothing(
            history in history(), work in prop::collection::vec(any_work(), 1..5), which in any::<prop::sample::Index>(),
        ) {
            let mut twice = work.clone();
            let which = which.index(work.len());
            twice.insert(which, work[which].clone());
            prop_assert_eq!(Job::fold(ID, &[history.clone(), twice].concat()), Job::fold(ID, &[history, work].concat()));
        }

        #[test]
        fn an_end_is_final_while_the_chain_grows(
            history in history(), work in prop::collection::vec(any_work(), 0..5), now in 0..3000u64, wait in 0..3000u64,
        ) {
            let fold = |known: usize| {
                let facts = [&history[..known], &work].concat();
                Job::fold(ID, &facts).expect("no prefix conflicts")
            };
            let next = |known: usize, now| Some(fold(known)?.next(US, UnixSeconds(now)));
            for known in 0..=history.len() {
                let end = next(known, now);
                // Whoever has it may give it up until it is completed; and a claim that failed here may have been taken there.
                let open = fold(known).is_some_and(|job| {
                    matches!(job.state, State::Posted | State::Claimed { .. } | State::Committed { .. })
                });
                if !open && let Some(Done(Settled | Refunded | Lost)) = end {
                    for longer in known..=history.len() {
                        prop_assert_eq!(next(longer, now + wait), end);
                    }
                }
            }
        }

        #[test]
        fn a_rewind_leaves_no_conflict_with_our_work(
            history in history(), keep in 0..10usize, work in prop::collection::vec(any_work(), 0..5),
        ) {
            let kept = &history[..keep.min(history.len())];
            let job = Job::fold(ID, &[kept, &work].concat()).expect("what is left of a history is one");
            let chain_only = Job::fold(ID, kept).expect("what is left of a history is one");
            prop_assert_eq!(job.map(|job| job.state), chain_only.map(|job| job.state));
        }
    }
}
