//! Jobs and transactions against a chain of chance: the store is driven as the tasks drive it, one step at a time, while a model of
//! the chain posts, mines, forgets, reorganises, and the process dies. After each step the file must not contradict itself or the
//! chain, and once the world is calm every job of ours is paid and nothing is left open.
//!
//! A job that a reorg takes away comes back under its number, as the renters' transactions wait to be mined again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use alloy::primitives::keccak256;
use anyhow::bail;
use proptest::prelude::*;

use super::tests::{Block, COMMITMENT, File, MARKETPLACE, RIVAL, US, range, terms};
use super::*;
use crate::market::event::{Header, Terms};
use crate::market::job::{Duty, Next, Outcome, State, Work, in_vain};
use crate::market::types::{Bytes, Cid};

/// One step of the world or of a task.
#[derive(Debug, Clone)]
enum Step {
    /// A renter posts a job, which lasts long or a few blocks.
    Post {
        long: bool,
    },
    /// A rival claims a job before us, a renter takes the money of an expired one back.
    Rival(u8),
    Refund(u8),
    Mine,
    /// The nodes forget what waits to be mined.
    Forget,
    /// The newest blocks go; our transactions in them wait again, or are lost, and what others sent may come in another order.
    Reorg {
        blocks: usize,
        lost: bool,
        swapped: bool,
    },
    Crash,
    Index,
    Schedule,
    Work,
    /// An inference or a proof fails.
    Fail,
    /// The operator has a job taken up again.
    Retry(u8),
    Prepare,
    Sign,
    /// Signed bytes reach the chain; noted or cut off before.
    Send {
        noted: bool,
    },
    Settle,
    /// The oldest is offered more; claims in vain are cancelled.
    Bump,
    /// The operator cancels the oldest claim.
    Cancel,
    /// Each task takes a turn.
    Turn,
}

/// `PROPTEST_CASES` where it is set: a longer search than each run of the tests makes.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(|long| Step::Post { long }),
        1 => (1..4_u8).prop_map(Step::Rival),
        1 => (1..4_u8).prop_map(Step::Refund),
        6 => Just(Step::Mine),
        1 => Just(Step::Forget),
        3 => (1..5_usize, any::<bool>(), any::<bool>())
            .prop_map(|(blocks, lost, swapped)| Step::Reorg { blocks, lost, swapped }),
        1 => Just(Step::Crash),
        1 => Just(Step::Index),
        1 => Just(Step::Schedule),
        1 => Just(Step::Work),
        2 => Just(Step::Fail),
        1 => (1..4_u8).prop_map(Step::Retry),
        1 => Just(Step::Prepare),
        1 => Just(Step::Sign),
        2 => any::<bool>().prop_map(|noted| Step::Send { noted }),
        1 => Just(Step::Settle),
        1 => Just(Step::Bump),
        1 => Just(Step::Cancel),
        8 => Just(Step::Turn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn whatever_happens_each_job_is_done_once_and_the_file_agrees_with_the_chain(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut model = Model::new().await;
            for step in &steps {
                model.take(step).await;
                model.check().await;
            }
            model.calm_down().await;
        });
    }
}

/// What chance seldom comes to: the same duty of both orders that have a number in turn fails, until one is given up and taken up again.
#[tokio::test]
async fn orders_that_have_a_number_in_turn_fail_and_are_taken_up_again_each_for_itself() {
    let mut model = Model::new().await;
    let (swapped, lost) = (true, false);
    let turned = [Step::Reorg { blocks: 9, lost, swapped }, Step::Mine, Step::Mine, Step::Mine, Step::Index];
    let of_third = |model: &Model| {
        let orders = model.orders.iter().filter(|(of, _)| of.0 == JobId(3));
        let mut noted: Vec<_> = orders.map(|(_, it)| (it.given_up, it.attempts.values().sum::<u32>())).collect();
        noted.sort();
        noted
    };
    // The first two are given up; then it is the turn of the third, which has another number in each chain.
    let posts =
        [Step::Post { long: true }, Step::Post { long: false }, Step::Mine, Step::Turn, Step::Mine, Step::Index];
    let given_up = vec![Step::Fail; 2 * ATTEMPTS_MAX];
    for (steps, expected) in [
        ([&posts[..], &given_up, &[Step::Fail, Step::Fail]].concat(), vec![(false, 2)]),
        ([&turned[..], &[Step::Fail]].concat(), vec![(false, 0), (false, 1)]),
        (vec![Step::Fail, Step::Fail], vec![(false, 0), (true, 3)]),
        (turned.to_vec(), vec![(false, 0), (true, 3)]),
        (vec![Step::Fail, Step::Fail], vec![(false, 2), (true, 0)]),
        (turned.to_vec(), vec![(false, 2), (true, 0)]),
        (vec![Step::Retry(3)], vec![(false, 0), (false, 2)]),
    ] {
        for step in &steps {
            model.take(step).await;
            model.check().await;
        }
        assert_eq!(of_third(&model), expected, "after {steps:?}");
    }
    model.calm_down().await;
}

// What a log says, of which job, and how many blocks the job lasts.
type Says = [u8; 3];
const TERMS: u8 = 0;
const CLAIMED: u8 = 1;
const CLAIMED_BY_RIVAL: u8 = 2;
const COMMITTED: u8 = 3;
const COMPLETED: u8 = 4;
const DUE: u8 = 5;
const RELEASED: u8 = 6;
const REFUNDED: u8 = 7;
const REOPENED: u8 = 8;

const SECONDS_PER_BLOCK: u64 = 10;
const LONG: u8 = 255;
const SHORT: u8 = 12;
/// Blocks from the result to the payment.
const WINDOW: u64 = 2;
const SLOTS: u32 = 3;
const SIGNED_MAX: usize = 4;
const ATTEMPTS_MAX: usize = 3;

fn read(log: &RawLog) -> Result<Event> {
    let (job, number) = (JobId(log.data[1].into()), log.block.number);
    let time = |blocks: u64| UnixSeconds((number + blocks) * SECONDS_PER_BLOCK);
    Ok(match log.data[0] {
        TERMS => {
            // How long it may take is part of what is asked, so that a reorg can give a job's number to another order.
            let (deadline, max_tokens) = (time(log.data[2].into()), log.data[2].into());
            Event::JobTerms { job, terms: Terms { deadline, max_tokens, ..terms(job) } }
        }
        CLAIMED => Event::JobClaimed { job, host: US },
        CLAIMED_BY_RIVAL => Event::JobClaimed { job, host: RIVAL },
        COMMITTED => Event::ResultCommitted { job, host: US, commitment: COMMITMENT },
        COMPLETED => Event::JobCompleted { job, output: "out".into() },
        DUE => Event::ReleaseDue { job, at: time(WINDOW) },
        RELEASED => Event::PaymentReleased { job, host: US, amount: U256::from(97) },
        REFUNDED => Event::PaymentRefunded { job, renter: Address::ZERO, amount: U256::from(100) },
        REOPENED => Event::JobReopened { job, controller: US },
        other => bail!("no event {other}"),
    })
}

/// Where the contract has a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Posted,
    Claimed,
    ClaimedByRival,
    Committed,
    Completed { due: u64 },
    Released,
    Refunded,
}

#[derive(Debug, Clone, Default)]
struct Contract {
    /// Deadline in block numbers, and place.
    jobs: BTreeMap<u8, (u64, Place)>,
    /// Of our account.
    nonce: u64,
}

impl Contract {
    /// Makes a call in block `number`. Returns what its logs say, or `None` where the contract refuses.
    fn call(&mut self, number: u64, kind: &str, job: u8) -> Option<Vec<Says>> {
        let (deadline, place) = self.jobs.get_mut(&job)?;
        let open = number < *deadline;
        let (then, says) = match (kind, *place) {
            ("claim", Place::Posted) if open => (Place::Claimed, vec![CLAIMED]),
            ("rival", Place::Posted) if open => (Place::ClaimedByRival, vec![CLAIMED_BY_RIVAL]),
            ("commit", Place::Claimed) if open => (Place::Committed, vec![COMMITTED]),
            ("complete", Place::Committed) if open => (Place::Completed { due: number + WINDOW }, vec![COMPLETED, DUE]),
            ("fail", Place::Claimed | Place::Committed) if open => (Place::Posted, vec![REOPENED]),
            ("release", Place::Completed { due }) if number >= due => (Place::Released, vec![RELEASED]),
            ("refund", Place::Posted | Place::Claimed | Place::ClaimedByRival | Place::Committed) if !open => {
                (Place::Refunded, vec![REFUNDED])
            }
            _ => return None,
        };
        *place = then;
        Some(says.into_iter().map(|what| [what, job, 0]).collect())
    }
}

/// A block of the model with our transactions in it, and the contract after it.
#[derive(Debug, Clone)]
struct Mined {
    block: Block,
    ours: Vec<(B256, bool)>,
    others: Vec<Other>,
    after: Contract,
}

/// What others send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Post { lasts: u8 },
    Rival(u8),
    Refund(u8),
}

/// What bytes of ours do.
#[derive(Debug, Clone)]
struct Meaning {
    intent: i64,
    nonce: u64,
    kind: String,
    job: u8,
    cancels: bool,
}

#[derive(Default)]
struct World {
    blocks: Vec<Mined>,
    /// Every block there ever was.
    ever: HashMap<B256, Mined>,
    salt: u8,
    others: Vec<Other>,
    pool: BTreeMap<u64, B256>,
    signed: HashMap<B256, Meaning>,
}

impl World {
    fn head(&self) -> &Mined {
        self.blocks.last().expect("there is a first block")
    }

    fn at(&self, number: u64) -> Option<&Mined> {
        self.blocks.iter().find(|mined| mined.block.0.block.number == number)
    }

    fn mine(&mut self) {
        let parent = self.blocks.last().map(|mined| mined.block.0);
        let (number, parent) = parent.map_or((100, B256::ZERO), |parent| (parent.block.number + 1, parent.block.hash));
        let mut contract = self.blocks.last().map(|mined| mined.after.clone()).unwrap_or_default();
        let (mut says, mut ours) = (Vec::<Says>::new(), Vec::new());
        let others = std::mem::take(&mut self.others);
        for other in &others {
            match *other {
                Other::Post { lasts } => {
                    let job = contract.jobs.len() as u8 + 1;
                    contract.jobs.insert(job, (number + u64::from(lasts), Place::Posted));
                    says.push([TERMS, job, lasts]);
                }
                Other::Rival(job) => says.extend(contract.call(number, "rival", job).unwrap_or_default()),
                Other::Refund(job) => says.extend(contract.call(number, "refund", job).unwrap_or_default()),
            }
        }
        self.pool.retain(|nonce, _| *nonce >= contract.nonce);
        while let Some(hash) = self.pool.remove(&contract.nonce) {
            contract.nonce += 1;
            let Meaning { kind, job, cancels, .. } = &self.signed[&hash];
            let told = if *cancels { Some(Vec::new()) } else { contract.call(number, kind, *job) };
            ours.push((hash, told.is_some()));
            says.extend(told.unwrap_or_default());
        }
        let text = [parent.as_slice(), &number.to_be_bytes(), &[self.salt], &says.concat()].concat();
        let block = BlockRef { number, hash: keccak256(text) };
        let log = |(index, says): (usize, &Says)| RawLog {
            block,
            index: index as u64,
            tx: keccak256([block.hash.as_slice(), &[index as u8]].concat()),
            address: MARKETPLACE,
            topics: vec![B256::repeat_byte(says[0])],
            data: says.to_vec().into(),
        };
        let header = Header { block, parent, time: UnixSeconds(number * SECONDS_PER_BLOCK) };
        let block = Block(header, says.iter().enumerate().map(log).collect());
        let mined = Mined { block, ours, others, after: contract };
        self.ever.insert(mined.block.0.block.hash, mined.clone());
        self.blocks.push(mined);
    }

    fn reorg(&mut self, blocks: usize, lost: bool, swapped: bool) {
        // What the first jobs were posted in stays.
        let kept = self.blocks.len().saturating_sub(blocks).max(2);
        let gone = self.blocks.split_off(kept);
        let mut again: Vec<Other> = gone.iter().flat_map(|mined| mined.others.clone()).collect();
        if swapped {
            again.reverse();
        }
        again.append(&mut self.others);
        self.others = again;
        for (hash, _) in gone.into_iter().flat_map(|mined| mined.ours) {
            let nonce = self.signed[&hash].nonce;
            self.pool.entry(nonce).or_insert(hash);
        }
        if lost {
            self.pool.clear();
        }
        self.salt = self.salt.wrapping_add(1);
    }

    /// Takes bytes as a node does: later bytes of a nonce are those that pay more.
    fn send(&mut self, hash: B256) {
        let nonce = self.signed[&hash].nonce;
        if nonce >= self.head().after.nonce {
            self.pool.insert(nonce, hash);
        }
    }

    /// What became of our bytes on the canonical chain.
    fn receipt(&self, hash: B256) -> Option<TxOutcome> {
        let mined = self.blocks.iter().find(|mined| mined.ours.iter().any(|ours| ours.0 == hash))?;
        let success = mined.ours.contains(&(hash, true));
        let (block, gas_price) = (mined.block.0.block, U256::from(1));
        Some(TxOutcome { hash, block, success, gas_used: 1, gas_price, l1_fee: U256::ZERO })
    }
}

/// A row of `tx_intent`.
#[derive(Debug)]
struct IntentRow {
    id: i64,
    job: Option<i64>,
    kind: String,
    state: String,
    nonce: Option<u64>,
}

struct Model {
    file: File,
    store: Store,
    world: World,
    /// The nonce that each intent was ever seen with.
    nonces: HashMap<i64, u64>,
    /// What the process remembers: at which block a call was refused.
    refused: HashMap<JobId, BlockRef>,
    /// What was noted of each order that ever had a job's number.
    orders: HashMap<(JobId, B256), Noted>,
}

/// What was noted of an order, whichever has the number.
#[derive(Debug, Clone, Default)]
struct Noted {
    chosen: bool,
    given_up: bool,
    /// Failed ones of a duty, since another order had a lease for it.
    attempts: HashMap<Duty, u32>,
}

impl Model {
    async fn new() -> Self {
        let file = File::new();
        let store = open(&file).await;
        let mut world = World::default();
        world.mine();
        world.others = vec![Other::Post { lasts: LONG }, Other::Post { lasts: SHORT }];
        world.mine();
        Self { file, store, world, nonces: HashMap::new(), refused: HashMap::new(), orders: HashMap::new() }
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Post { long } => self.world.others.push(Other::Post { lasts: if long { LONG } else { SHORT } }),
            Step::Rival(job) => self.world.others.push(Other::Rival(job)),
            Step::Refund(job) => self.world.others.push(Other::Refund(job)),
            Step::Mine => self.world.mine(),
            Step::Forget => self.world.pool.clear(),
            Step::Reorg { blocks, lost, swapped } => self.world.reorg(blocks, lost, swapped),
            Step::Crash => {
                self.store.close().await;
                self.store = open(&self.file).await;
                self.store.free_leases().await.unwrap();
                self.refused.clear();
            }
            Step::Index => self.index().await,
            Step::Schedule => self.schedule().await,
            Step::Work => self.work().await,
            Step::Fail => self.fail().await,
            Step::Retry(job) => self.retry(JobId(job.into())).await,
            Step::Prepare => self.prepare().await,
            Step::Sign => self.sign().await,
            Step::Send { noted } => self.send(noted).await,
            Step::Settle => self.settle().await,
            Step::Bump => self.replace(false).await,
            Step::Cancel => self.replace(true).await,
            Step::Turn => self.turn().await,
        }
    }

    async fn turn(&mut self) {
        self.index().await;
        self.schedule().await;
        self.work().await;
        self.prepare().await;
        self.sign().await;
        self.send(true).await;
        self.settle().await;
    }

    /// As the indexer: back to the fork, if the chain is as long as ours, then on to the head.
    async fn index(&mut self) {
        let cursor = self.store.cursor().await.unwrap();
        if let Some(cursor) = cursor {
            let mut number = cursor.number;
            if number > self.world.head().block.0.block.number {
                return;
            }
            while self.store.canonical_hash(number).await.unwrap()
                != self.world.at(number).map(|mined| mined.block.0.block.hash)
            {
                number -= 1;
            }
            if number < cursor.number {
                self.store.rewind(number).await.unwrap();
            }
        }
        let known = self.store.cursor().await.unwrap().map_or(0, |cursor| cursor.number);
        let new: Vec<Block> =
            self.world.blocks.iter().map(|mined| mined.block.clone()).filter(|b| b.0.block.number > known).collect();
        for blocks in new.chunks(3) {
            assert_eq!(self.store.extend(&range(blocks)).await.unwrap().undecoded, []);
        }
    }

    fn of(&mut self, job: &Job) -> &mut Noted {
        self.orders.entry((job.id, job.terms.deal())).or_default()
    }

    async fn withdraw(&mut self, job: JobId) {
        self.store.withdraw(job).await.unwrap();
        self.orders.iter_mut().filter(|(of, _)| of.0 == job).for_each(|(_, noted)| noted.chosen = false);
    }

    async fn abandon(&mut self, job: &Job) {
        let (at, reason, deal) = (self.store.time().await.unwrap(), "refused".into(), Some(job.terms.deal()));
        self.store.record(job.id, &Work::Abandoned { at, reason, deal }).await.unwrap();
        self.store.free(&[job.id]).await.unwrap();
        self.of(job).given_up = true;
    }

    async fn is_caught_up(&self) -> bool {
        self.store.cursor().await.unwrap() == Some(self.world.head().block.0.block)
    }

    /// As the scheduler.
    async fn schedule(&mut self) {
        let (store, jobs) = (self.store.clone(), self.store.live_jobs().await.unwrap());
        let now = store.time().await.unwrap();
        let mut reserved = store.reservations().await.unwrap();
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        let claims = store.intents_of(&ids).await.unwrap();
        let mut kept = BTreeSet::new();
        for job in &jobs {
            let ended = matches!(job.next(US, now), Next::Done(_));
            let ours = !ended && matches!(job.state, State::Claimed { .. } | State::Committed { .. });
            let hoped = job.state == State::Posted && job.chosen && !job.claim_failed;
            let states = claims.get(&(job.id, "claim".to_owned()));
            let failed = hoped && states.is_some_and(|states| IntentState::claim_is_over(states));
            if failed && !ended {
                let (reason, deal) = ("refused".into(), Some(job.terms.deal()));
                store.record(job.id, &Work::ClaimFailed { at: now, reason, deal }).await.unwrap();
            }
            if ours || (!ended && job.state == State::Posted && job.chosen && !failed) {
                kept.insert(job.id);
            }
            if kept.contains(&job.id) && !reserved.contains(&job.id) {
                assert!(store.adopt(job.id).await.unwrap());
                reserved.insert(job.id);
            }
        }
        for job in reserved.difference(&kept) {
            match store.job(*job).await.unwrap() {
                Some(_) => store.free(&[*job]).await.unwrap(),
                None => self.withdraw(*job).await,
            }
        }
        let choices: Vec<Choice> = jobs
            .iter()
            // The marketplace refuses a job to a host that gave it up.
            .filter(|job| job.next(US, now) == Next::Do(Duty::Consider) && job.given_up_by.is_empty())
            .map(|job| Choice {
                job: job.id,
                work: Work::Chosen { at: now, reasons: Vec::new(), deal: Some(job.terms.deal()) },
                claim: intent(format!("claim:{}", job.id), job.id, "claim"),
            })
            .collect();
        if !choices.is_empty() {
            let chosen = store.choose(&choices, SLOTS).await.unwrap();
            for job in jobs.iter().filter(|job| chosen.contains(&job.id)) {
                self.of(job).chosen = true;
            }
        }
        self.check_slots().await;
    }

    /// A slot is of a job that we hope for or that is ours, and each of these has one.
    async fn check_slots(&self) {
        let now = self.store.time().await.unwrap();
        let holds = |job: &&Arc<Job>| {
            let hoped = job.state == State::Posted && job.chosen && !job.claim_failed && job.abandoned.is_none();
            let waits = hoped && job.terms.deadline > now;
            let ours = matches!(job.state, State::Claimed { .. } | State::Committed { .. })
                && !matches!(job.next(US, now), Next::Done(_));
            waits || ours
        };
        let jobs = self.store.live_jobs().await.unwrap();
        let expected: BTreeSet<JobId> = jobs.iter().filter(holds).map(|job| job.id).collect();
        assert_eq!(self.store.reservations().await.unwrap(), expected, "{jobs:#?}");
    }

    /// As worker, prover and announcer.
    async fn work(&mut self) {
        let at = self.store.time().await.unwrap();
        let mut jobs = self.store.live_jobs().await.unwrap();
        jobs.extend(self.store.unannounced_jobs(US).await.unwrap().into_iter().map(Arc::new));
        for job in jobs {
            let Next::Do(duty) = job.next(US, at) else { continue };
            // At times there is no peer to take it.
            if duty == Duty::Announce && self.world.blocks.len().is_multiple_of(2) {
                continue;
            }
            let work = match duty {
                Duty::Infer => {
                    let (output, transcript) = (Cid::of(b"o"), Cid::of(b"t"));
                    Work::Inferred { at, commitment: COMMITMENT, output, transcript, order: Some(job.terms.order()) }
                }
                Duty::Prove => {
                    let beacon = job.beacon.expect("the duty follows from it");
                    Work::Proved { at, beacon, completion: Cid::of(b"p") }
                }
                Duty::Announce => Work::Announced { at, deal: Some(job.terms.deal()) },
                _ => continue,
            };
            self.lease(&job, duty).await;
            self.store.record(job.id, &work).await.unwrap();
            self.store.release(Owed::to(&job, duty), None).await.unwrap();
            self.of(&job).attempts.remove(&duty);
        }
    }

    /// Takes a lease, which starts over where another order had it.
    async fn lease(&mut self, job: &Job, duty: Duty) {
        assert!(self.store.lease(Owed::to(job, duty), 3600).await.unwrap());
        let others = self.orders.iter_mut().filter(|(of, _)| of.0 == job.id && of.1 != job.terms.deal());
        others.for_each(|(_, noted)| _ = noted.attempts.remove(&duty));
    }

    /// As a worker or prover whose first job fails: the attempts so far are those of this order, and the last gives it up.
    async fn fail(&mut self) {
        let at = self.store.time().await.unwrap();
        for job in self.store.live_jobs().await.unwrap() {
            let Next::Do(duty @ (Duty::Infer | Duty::Prove)) = job.next(US, at) else { continue };
            self.lease(&job, duty).await;
            let attempts = self.store.release(Owed::to(&job, duty), Some("no memory")).await.unwrap();
            let noted = self.of(&job).attempts.entry(duty).or_default();
            *noted += 1;
            assert_eq!(attempts, *noted, "{} of {job:#?}", duty.name());
            // The clock is moved on rather than waited for.
            sqlx::query("UPDATE lease SET not_before = 0").execute(&self.store.writer).await.unwrap();
            if attempts as usize >= ATTEMPTS_MAX {
                self.abandon(&job).await;
            }
            return;
        }
    }

    /// As `fabstir jobs retry`.
    async fn retry(&mut self, job: JobId) {
        let now = self.store.time().await.unwrap();
        let Some(job) = self.store.job(job).await.unwrap() else { return };
        let failed = !self.store.failing(&job).await.unwrap().is_empty();
        match job.next(US, now) {
            Next::Done(Outcome::Abandoned) => {}
            Next::Do(_) | Next::Wait(_) if failed || job.abandoned.is_some() => {}
            _ => return,
        }
        self.store.retry(&job).await.unwrap();
        *self.of(&job) = Noted::default();
    }

    /// As what queues and tries calls.
    async fn prepare(&mut self) {
        let (store, cursor) = (self.store.clone(), self.store.cursor().await.unwrap());
        let now = store.time().await.unwrap();
        let mut intents = Vec::new();
        for job in store.live_jobs().await.unwrap() {
            let Next::Do(duty @ (Duty::Commit | Duty::Complete | Duty::Fail | Duty::Release)) = job.next(US, now)
            else {
                continue;
            };
            if self.refused.get(&job.id).copied().is_some_and(|at| Some(at) == cursor) {
                continue;
            }
            let earlier = store.intents_of(&[job.id]).await.unwrap();
            let earlier = earlier.get(&(job.id, duty.name().to_owned())).cloned().unwrap_or_default();
            if !earlier.iter().all(|state| state.came_to_nothing()) {
                continue;
            }
            if earlier.len() >= ATTEMPTS_MAX && !matches!(duty, Duty::Release | Duty::Fail) {
                self.abandon(&job).await;
                continue;
            }
            intents.push(intent(format!("{}:{}:{}", duty.name(), job.id, earlier.len()), job.id, duty.name()));
        }
        store.queue(&intents).await.unwrap();
        for tried in store.untried_intents(US, 100).await.unwrap() {
            let (job, next) = (tried.job.expect("of a job"), self.world.head().block.0.block.number + 1);
            match self.world.head().after.clone().call(next, &tried.kind, job.0 as u8) {
                Some(_) => store.set_gas(tried.id, 100).await.unwrap(),
                None => {
                    self.refused.extend(cursor.map(|at| (job, at)));
                    store.drop_intent(tried.id, "refused").await.unwrap();
                }
            }
        }
    }

    /// As the submitter: nonces, bytes, all of it durable.
    async fn sign(&mut self) {
        let ready = self.store.ready(US, SIGNED_MAX, true).await.unwrap();
        let first = ready.next_nonce.max(self.world.head().after.nonce);
        let mut signed = Vec::new();
        for (nonce, intent) in (first..).zip(ready.intents) {
            signed.push(self.bytes(&intent, nonce, false));
        }
        if !signed.is_empty() {
            self.store.sign(&signed).await.unwrap();
        }
    }

    fn bytes(&mut self, intent: &OpenIntent, nonce: u64, cancels: bool) -> Signed {
        let nth = intent.attempts.len();
        let raw = Bytes::from(format!("{}, nonce {nonce}, attempt {nth}", intent.key).into_bytes());
        let (hash, job) = (keccak256(&raw), intent.job.map_or(0, |job| job.0 as u8));
        let says = Meaning { intent: intent.id, nonce, kind: intent.kind.clone(), job, cancels };
        self.world.signed.insert(hash, says);
        let (fee_cap, tip_cap) = (1 + nth as u128, 1);
        let attempt = Attempt { hash, raw, fee_cap, tip_cap, signed_at: clock().0, sent: false, cancels };
        Signed { intent: intent.id, nonce, gas: 100, attempt }
    }

    /// Puts the newest bytes of each on the wire.
    async fn send(&mut self, noted: bool) {
        let signed = self.store.signed_intents(US).await.unwrap();
        let newest: Vec<B256> = signed.iter().filter_map(|it| it.attempts.last()).map(|it| it.hash).collect();
        newest.iter().for_each(|hash| self.world.send(*hash));
        if noted && !newest.is_empty() {
            self.store.mark_sent(&newest).await.unwrap();
        }
    }

    async fn settle(&mut self) {
        let signed = self.store.signed_intents(US).await.unwrap();
        let hashes = signed.iter().flat_map(|intent| intent.attempts.iter().map(|attempt| attempt.hash));
        let outcomes: Vec<TxOutcome> = hashes.filter_map(|hash| self.world.receipt(hash)).collect();
        self.store.settle(&outcomes, &[]).await.unwrap();
    }

    /// Offers more for the oldest nonce, and cancels claims that are in vain; or the oldest claim, for the operator.
    async fn replace(&mut self, order: bool) {
        let (now, jobs) = (self.store.time().await.unwrap(), self.store.live_jobs().await.unwrap());
        let (mut bytes, mut oldest) = (Vec::new(), true);
        for intent in self.store.signed_intents(US).await.unwrap() {
            let (nonce, last) = (intent.nonce.unwrap(), intent.attempts.last().unwrap());
            if nonce < self.world.head().after.nonce {
                continue;
            }
            let job = jobs.iter().find(|job| Some(job.id) == intent.job);
            let in_vain = in_vain(&intent.kind, job.map(|job| &**job), US, now);
            let first = (!order || intent.kind == "claim") && std::mem::take(&mut oldest);
            let cancels = last.cancels || in_vain || (order && first);
            if let Some(id) = intent.job.filter(|_| in_vain && intent.kind == "claim" && !last.cancels)
                && self.store.job(id).await.unwrap().is_none()
            {
                self.withdraw(id).await;
            }
            if cancels != last.cancels || (first && !order) {
                bytes.push(self.bytes(&intent, nonce, cancels));
            }
        }
        if !bytes.is_empty() {
            self.store.sign(&bytes).await.unwrap();
        }
    }

    async fn rows(&self) -> Vec<IntentRow> {
        let rows = sqlx::query("SELECT id, job, kind, state, nonce FROM tx_intent ORDER BY id");
        let rows = rows.fetch_all(&self.store.readers).await.unwrap();
        let row = |row: &SqliteRow| IntentRow {
            id: row.get(0),
            job: row.get(1),
            kind: row.get(2),
            state: row.get(3),
            nonce: row.get::<Option<i64>, _>(4).map(|nonce| nonce as u64),
        };
        rows.iter().map(row).collect()
    }

    /// What holds after every step.
    async fn check(&mut self) {
        let rows = self.rows().await;
        let mut nonces: Vec<u64> = rows.iter().filter_map(|row| row.nonce).collect();
        nonces.sort();
        assert_eq!(nonces, (0..nonces.len() as u64).collect::<Vec<_>>(), "one nonce each, and no gap: {rows:#?}");
        for row in &rows {
            if let Some(nonce) = row.nonce {
                assert_eq!(*self.nonces.entry(row.id).or_insert(nonce), nonce, "it keeps its nonce: {row:?}");
            }
        }
        for bytes in self.world.signed.values() {
            assert_eq!(self.nonces.get(&bytes.intent), Some(&bytes.nonce), "what was signed is in the file: {bytes:?}");
        }
        let mut live = HashSet::new();
        for row in rows.iter().filter(|row| ["queued", "signed"].contains(&&*row.state)) {
            assert!(live.insert((row.job, &row.kind)), "two at once for one end: {rows:#?}");
        }
        self.check_outcomes(&rows).await;
        self.check_kept().await;
        if self.is_caught_up().await {
            self.check_jobs().await;
        }
    }

    /// What is kept in memory is what the file folds to, and each row is what the journal folds to.
    async fn check_kept(&self) {
        let now = self.store.time().await.unwrap();
        let kept = self.store.live_now().await.unwrap();
        assert_eq!(kept.0, now);
        for job in kept.1 {
            assert_eq!(Some(&*job), self.store.job(job.id).await.unwrap().as_ref());
        }
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM job").fetch_all(&self.store.readers).await.unwrap();
        let mut tx = self.store.writer.begin().await.unwrap();
        let ids: Vec<JobId> = ids.into_iter().map(|id| JobId(id as u64)).collect();
        assert_eq!(self.store.project(&mut tx, &ids).await.unwrap().1, []);
    }

    /// What is settled stands in a block that the file calls canonical, as the chain says; and nothing else is.
    async fn check_outcomes(&self, rows: &[IntentRow]) {
        let receipts: Vec<(i64, Vec<u8>, Vec<u8>, bool)> =
            sqlx::query_as("SELECT intent, hash, block_hash, success FROM tx_receipt JOIN tx_attempt USING (hash)")
                .fetch_all(&self.store.readers)
                .await
                .unwrap();
        for row in rows {
            let told: Vec<_> = receipts.iter().filter(|receipt| receipt.0 == row.id).collect();
            if !["mined", "reverted", "cancelled"].contains(&&*row.state) {
                assert!(told.is_empty(), "{row:?} has a receipt");
                continue;
            }
            let [(_, hash, block, success)] = told[..] else { panic!("{row:?} has {} receipts", told.len()) };
            let (hash, mined) = (B256::from_slice(hash), &self.world.ever[&B256::from_slice(block)]);
            assert!(mined.ours.contains(&(hash, *success)), "{row:?}");
            let number = mined.block.0.block.number;
            assert_eq!(self.store.canonical_hash(number).await.unwrap(), Some(mined.block.0.block.hash), "{row:?}");
            let expected = match (self.world.signed[&hash].cancels, success) {
                (true, _) => "cancelled",
                (false, true) => "mined",
                (false, false) => "reverted",
            };
            assert_eq!(row.state, expected, "{row:?}");
        }
    }

    /// At the head of the chain the jobs are where the contract has them, and one that is ours has an owner: something is owed or
    /// waited for, or it has ended for a reason.
    async fn check_jobs(&self) {
        let now = self.store.time().await.unwrap();
        for (id, (_, place)) in &self.world.head().after.jobs {
            let job = self.store.job(JobId((*id).into())).await.unwrap().expect("it is posted");
            let expected = match place {
                Place::Posted => "posted",
                Place::Claimed | Place::ClaimedByRival => "claimed",
                Place::Committed => "committed",
                Place::Completed { .. } => "completed",
                Place::Released => "released",
                Place::Refunded => "refunded",
            };
            assert_eq!(job.state.name(), expected, "{job:#?}");
            let noted = self.orders.get(&(job.id, job.terms.deal())).cloned().unwrap_or_default();
            assert_eq!((job.chosen, job.abandoned.is_some()), (noted.chosen, noted.given_up), "{job:#?}");
            let next = job.next(US, now);
            if let Place::Claimed | Place::Committed = place {
                let owned = matches!(next, Next::Do(_) | Next::Wait(_) | Next::Done(Outcome::Expired));
                assert!(owned, "ours, and nobody cares: {next:?} {job:#?}");
            }
        }
    }

    /// The world does nothing more but mine: all of ours is paid, and nothing is left.
    async fn calm_down(&mut self) {
        let (mut before, mut quiet) = (String::new(), 0);
        for _ in 0..40 {
            self.turn().await;
            // Of a chain shorter than the file nothing is known yet.
            let caught_up = self.is_caught_up().await;
            self.replace(false).await;
            self.world.mine();
            self.check().await;
            let now = format!("{:?} {:?}", self.world.head().after, self.rows().await);
            quiet = if now == before && caught_up { quiet + 1 } else { 0 };
            before = now;
            // Longer than anything is waited for.
            if quiet > WINDOW + 2 {
                break;
            }
        }
        let rows = self.rows().await;
        assert_eq!(self.store.open_intents(US).await.unwrap(), 0, "left open: {rows:#?}");
        assert_eq!(self.store.reservations().await.unwrap(), [].into());
        let contract = &self.world.head().after;
        for (id, (deadline, place)) in &contract.jobs {
            let expired = *deadline <= self.world.head().block.0.block.number;
            let ended = match place {
                Place::Claimed | Place::Committed => expired,
                Place::Completed { .. } => false,
                _ => true,
            };
            assert!(ended, "job {id} is ours and not paid: {place:?} {rows:#?}");
            let done = |kind: &str| {
                rows.iter()
                    .filter(|row| row.job == Some((*id).into()) && row.kind == kind && row.state == "mined")
                    .count()
            };
            if *place == Place::Released {
                let job = self.store.job(JobId((*id).into())).await.unwrap().expect("it is posted");
                assert!(job.announced, "nobody has the receipt of job {id}: {job:#?}");
                let each = ["claim", "commit", "complete", "release"].map(done);
                assert_eq!(each, [1; 4], "job {id}: {rows:#?}");
            }
        }
        assert_eq!(contract.nonce, rows.iter().filter(|row| row.nonce.is_some()).count() as u64);
    }
}

async fn open(file: &File) -> Store {
    file.open_as(31337, MARKETPLACE, Arc::new(read)).await.unwrap()
}

fn intent(key: String, job: JobId, kind: &'static str) -> Intent {
    // A claim needs no try.
    let gas = (kind == "claim").then_some(100);
    Intent { key, job: Some(job), kind, target: MARKETPLACE, data: Bytes::new(), signer: US, gas, cost_max: None }
}
