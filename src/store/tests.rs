//! The store on a real SQLite file, fed with made-up blocks whose logs say plainly what they mean.

use std::sync::Arc;

use alloy::primitives::keccak256;
use anyhow::bail;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::market::coverage::{Coverage, Proof, push};
use crate::market::event::{Commitment, Header, Level, Range, Terms};
use crate::market::job::{Duty, Fact, Next, Work};
use crate::market::policy::backtest::{Given, replay};
use crate::market::policy::{Limits, Load, Policy, Races, Served};
use crate::market::receipt::{Receipt, SignedReceipt};
use crate::market::types::{Bytes, Cid, ModelId};

const CHAIN: u64 = 31337;
pub(super) const MARKETPLACE: Address = Address::repeat_byte(0x33);
pub(super) const US: Address = Address::repeat_byte(0xaa);
pub(super) const RIVAL: Address = Address::repeat_byte(0xbb);
pub(super) const COMMITMENT: Commitment = Commitment {
    root: B256::repeat_byte(1),
    tokens: 3,
    result_hash: B256::repeat_byte(2),
    tokens_digest: B256::repeat_byte(3),
};

/// What a log says: the first byte which event, the second of which job.
type Says = [u8; 2];
pub(super) const TERMS: u8 = 0;
const CLAIMED: u8 = 1;
const CLAIMED_BY_RIVAL: u8 = 2;
const COMMITTED: u8 = 3;
const COMPLETED: u8 = 4;
const DUE: u8 = 5;
const RELEASED: u8 = 6;
const REFUNDED: u8 = 7;
const NOTED: u8 = 8;
const KINDS: u8 = 9;
/// Told of few jobs: not one of the kinds that histories are made of.
const LOCKED: u8 = 10;
const FEE: u8 = 11;
const RANKED: u8 = 12;
const REOPENED: u8 = 13;
/// As [`TERMS`], of another order.
const OTHER_TERMS: u8 = 14;
const NONSENSE: u8 = 0xff;

fn read(log: &RawLog) -> Result<Event> {
    let job = JobId(log.data[1].into());
    Ok(match log.data[0] {
        TERMS => Event::JobTerms { job, terms: terms(job) },
        OTHER_TERMS => Event::JobTerms { job, terms: Terms { seed: 2, ..terms(job) } },
        CLAIMED => Event::JobClaimed { job, host: US },
        CLAIMED_BY_RIVAL => Event::JobClaimed { job, host: RIVAL },
        COMMITTED => Event::ResultCommitted { job, host: US, commitment: COMMITMENT },
        COMPLETED => Event::JobCompleted { job, output: "out".into() },
        DUE => Event::ReleaseDue { job, at: UnixSeconds(0) },
        RELEASED => Event::PaymentReleased { job, host: US, amount: U256::from(97) },
        REFUNDED => Event::PaymentRefunded { job, renter: Address::ZERO, amount: U256::from(100) },
        LOCKED => Event::EscrowCreated { job, amount: U256::MAX, token: Address::ZERO },
        FEE => Event::Noted { name: "FeeChanged", job: None },
        REOPENED => Event::JobReopened { job, controller: RIVAL },
        RANKED => Event::ReputationUpdated { host: US, score: 1 },
        NOTED => Event::Noted { name: "JobPosted", job: Some(job) },
        other => bail!("no event {other}"),
    })
}

pub(super) fn terms(job: JobId) -> Terms {
    Terms {
        renter: Address::repeat_byte(job.0 as u8),
        model: "sha256:00".into(),
        input: "b".into(),
        max_tokens: 8,
        temperature_milli: 0,
        seed: 1,
        payment: U256::MAX,
        token: Address::ZERO,
        deadline: UnixSeconds(u64::MAX),
        requires_proof: true,
        min_gpu_memory: 0,
        min_reputation: 0,
        reserved_for: None,
        region: None,
    }
}

/// A block and the logs in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Block(pub(super) Header, pub(super) Vec<RawLog>);

/// Makes the block after `parent` that says `what`; another `salt` makes another block of it.
fn after(parent: Option<&Block>, salt: u8, what: &[Says]) -> Block {
    let (number, parent) = parent.map_or((100, B256::ZERO), |b| (b.0.block.number + 1, b.0.block.hash));
    let hash = keccak256([parent.as_slice(), &number.to_be_bytes(), &[salt], &what.concat()].concat());
    let block = BlockRef { number, hash };
    let log = |(index, says): (usize, &Says)| RawLog {
        block,
        index: index as u64,
        tx: keccak256([hash.as_slice(), &[index as u8]].concat()),
        address: MARKETPLACE,
        topics: vec![B256::repeat_byte(says[0])],
        data: says.to_vec().into(),
    };
    Block(Header { block, parent, time: UnixSeconds(number * 10) }, what.iter().enumerate().map(log).collect())
}

/// A chain of blocks after `parent`, each saying one entry of `what`.
pub(super) fn chain(parent: Option<&Block>, salt: u8, what: &[&[Says]]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for says in what {
        let block = after(blocks.last().or(parent), salt, says);
        blocks.push(block);
    }
    blocks
}

/// Has a reorg take all after `first` away and put one block in its place, which says `what`. Returns job 1 as it is then.
async fn turned(store: &Store, first: &Block, salt: u8, what: &[Says]) -> Job {
    store.rewind(first.0.block.number).await.unwrap();
    extend(store, &[after(Some(first), salt, what)]).await.unwrap();
    store.job(JobId(1)).await.unwrap().expect("posted")
}

pub(super) struct File(TempDir);

impl File {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }
    pub(super) async fn open_as(&self, chain_id: u64, marketplace: Address, decode: Decode) -> Result<Store> {
        Store::open(&self.0.path().join("fabstir.sqlite"), chain_id, marketplace, decode).await
    }
    async fn open(&self) -> Store {
        self.open_as(CHAIN, MARKETPLACE, Arc::new(read)).await.expect("opens")
    }
}

#[tokio::test]
async fn what_is_final_only_moves_forward_and_not_while_it_is_contradicted() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[], &[], &[], &[]]);
    extend(&store, &blocks[..3]).await.unwrap();
    let known = async || store.finality().await.unwrap().map(|finality| (finality.block, finality.violated));
    let at = |place: usize| blocks[place].0.block;
    for (given, expected) in [
        (at(3), None),
        (BlockRef { hash: B256::ZERO, ..at(1) }, None),
        (at(1), Some(at(1))),
        (at(0), Some(at(1))),
        (at(2), Some(at(2))),
    ] {
        store.set_final(given).await.unwrap();
        assert_eq!(known().await, expected.map(|block| (block, None)));
    }
    extend(&store, &blocks[3..]).await.unwrap();
    store.set_violated(Some("another chain")).await.unwrap();
    store.set_final(at(3)).await.unwrap();
    assert_eq!(known().await, Some((at(2), Some("another chain".into()))));
    store.set_violated(None).await.unwrap();
    store.set_final(at(3)).await.unwrap();
    assert_eq!(known().await, Some((at(3), None)));
}

#[tokio::test]
async fn a_ground_says_what_stands_on_a_block() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[], &[], &[], &[], &[]]);
    extend(&store, &blocks[..4]).await.unwrap();
    let at = |place: usize| blocks[place].0.block;
    let first = at(0).number;
    let known = async |number| {
        let Ground { level, head, safe, last_final, .. } = store.ground(number).await.unwrap();
        (level, head, safe, last_final)
    };
    assert_eq!(known(first).await, (Level::Complete, first + 3, 0, 0));
    assert_eq!(known(first + 9).await, (Level::Claimed, first + 3, 0, 0));
    store.set_safe(at(2)).await.unwrap();
    assert_eq!(known(first).await.2, 0, "nothing is final");
    store.set_final(at(1)).await.unwrap();
    assert_eq!(known(first).await, (Level::Complete, first + 3, first + 1, first + 1));
    for (given, safe) in [(at(4), 1), (at(3), 3), (at(2), 3), (BlockRef { hash: B256::ZERO, ..at(3) }, 3)] {
        store.set_safe(given).await.unwrap();
        assert_eq!(known(first).await.2, first + safe);
    }
    // What the chain took back is safe no more.
    store.rewind(first + 2).await.unwrap();
    assert_eq!(known(first).await, (Level::Complete, first + 2, first + 2, first + 1));
}

#[tokio::test]
async fn everything_that_follows_from_the_journal_is_derived_anew_the_same() {
    let (_file, store) = fresh().await;
    let says: Vec<Says> = (1..=60).flat_map(|job| [[TERMS, job], [CLAIMED, job], [NOTED, job]]).collect();
    let kept = chain(None, 0, &[&says, &[[COMMITTED, 3], [REFUNDED, 4]]]);
    extend(&store, &kept).await.unwrap();
    extend(&store, &chain(kept.last(), 1, &[&[[COMPLETED, 3]]])).await.unwrap();
    store.rewind(kept.last().expect("blocks").0.block.number).await.unwrap();
    let (before, head) = (projection(&store).await, store.journal_head().await.unwrap().0);
    let same = store.rederive(|_| ()).await.unwrap();
    assert_eq!(
        (same.logs, same.logs_changed, same.jobs, same.jobs_changed, same.journal_head),
        (182, 0, 60, vec![], head)
    );
    assert!(before == projection(&store).await);

    for tampering in [
        "UPDATE job SET payment = '1' WHERE id = 7",
        "DELETE FROM job WHERE id = 8",
        "INSERT INTO job SELECT 99, state, renter, host, model, input, max_tokens, token, payment, deadline,
         requires_proof, posted_block, tokens, output, paid FROM job WHERE id = 7",
        "UPDATE log SET (kind, job) = (NULL, NULL) WHERE job = 9 AND kind = 'JobClaimed'",
        "UPDATE log SET link = zeroblob(32) WHERE log_index = 5",
    ] {
        sqlx::query(sqlx::AssertSqlSafe(tampering)).execute(&store.writer).await.unwrap();
    }
    let mended = store.rederive(|_| ()).await.unwrap();
    assert_eq!((mended.logs_changed, mended.journal_head), (2, head));
    assert_eq!(mended.jobs_changed, [7, 8, 99].map(JobId));
    assert!(before == projection(&store).await);
}

/// The same blocks as an endpoint's word: only the headers that a claimed range has.
fn claimed(blocks: &[Block]) -> Range {
    let mut told = range(blocks);
    let last = blocks.len() - 1;
    let kept =
        |place: &usize| [0, last].contains(place) || !blocks[*place].1.is_empty() || !blocks[place - 1].1.is_empty();
    told.headers = (0..blocks.len()).filter(kept).map(|place| blocks[place].0).collect();
    told.coverage = vec![Coverage::of(blocks[0].0.block.number, blocks[last].0.block.number, Level::Claimed, None)];
    told
}

#[tokio::test]
async fn what_was_told_wrong_is_corrected_when_it_is_proven() {
    let truth = chain(
        None,
        0,
        &[&[[TERMS, 1]], &[], &[], &[[TERMS, 2], [CLAIMED, 1]], &[], &[[COMMITTED, 1]], &[], &[[TERMS, 3]], &[]],
    );
    let expected = never_saw_others(&truth).await;
    type Lie = fn(&mut Vec<Block>);
    let lies: [(Lie, usize); 6] = [
        (|_| (), 0),
        (|blocks| drop(blocks[3].1.pop()), 1),
        (|blocks| blocks[3].1.clear(), 1),
        (|blocks| blocks[7].1[0].data = vec![TERMS, 9].into(), 1),
        (|blocks| blocks[2].1 = vec![RawLog { block: blocks[2].0.block, ..blocks[7].1[0].clone() }], 1),
        // A block that never was, and its child.
        (
            |blocks| {
                blocks[3].0.block.hash = B256::repeat_byte(9);
                blocks[3].1.iter_mut().for_each(|log| log.block.hash = B256::repeat_byte(9));
                blocks[4].0.parent = B256::repeat_byte(9);
            },
            2,
        ),
    ];
    for (lie, corrected) in lies {
        let (_file, store) = fresh().await;
        let mut told = truth.clone();
        lie(&mut told);
        store.extend(&claimed(&told)).await.unwrap();
        assert!(!store.is_proven(103).await.unwrap());
        let mut found = 0;
        while let Some(next) = store.newest_claimed().await.unwrap() {
            let at = |number: u64| (number - 100) as usize;
            found += store.confirm(&range(&truth[at(next.from)..=at(next.to + 1).min(8)])).await.unwrap().len();
        }
        assert_eq!((found, store.conflicts().await.unwrap()), (corrected, vec![]));
        assert_eq!(store.coverage().await.unwrap(), [Coverage::of(100, 108, Level::Complete, None)]);
        let (cursor, time, head, _, logs, rows, jobs) = projection(&store).await;
        let (ecursor, etime, ehead, _, elogs, erows, ejobs) = expected.clone();
        assert_eq!((cursor, time, head, logs, rows, jobs), (ecursor, etime, ehead, elogs, erows, ejobs));
    }
}

#[tokio::test]
async fn a_census_is_of_one_block_and_names_what_is_missing() {
    let (_file, store) = fresh().await;
    assert_eq!(store.census(None).await.unwrap(), None);
    let says: Vec<&[Says]> = vec![&[[TERMS, 4]], &[[TERMS, 5], [CLAIMED, 4]], &[[REFUNDED, 5]], &[[TERMS, 9]], &[]];
    let blocks = chain(None, 0, &says);
    extend(&store, &blocks).await.unwrap();
    let census = store.census(Some((MARKETPLACE, US))).await.unwrap().unwrap();
    assert_eq!((census.at, census.newest), (blocks[4].0.block, JobId(9)));
    let live: Vec<Job> = store.live_jobs().await.unwrap().iter().map(|job| Job::clone(job)).collect();
    assert_eq!(census.jobs, live);
    assert_eq!(census.jobs.iter().map(|job| job.id.0).collect::<Vec<_>>(), [4, 9]);
    assert_eq!(census.missing, [8, 7, 6, 3, 2, 1].map(JobId));
    for (job, from) in [(9, 103), (8, 101), (5, 101), (4, 100), (3, 0)] {
        assert_eq!(store.posted_from(JobId(job)).await.unwrap(), from, "job {job}");
    }
}

#[tokio::test]
async fn blocks_in_doubt_are_proven_again() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[[TERMS, 1]], &[], &[[CLAIMED, 1]], &[], &[]]);
    let mut told = range(&blocks);
    let of = |from, to, level, reason: Option<&str>| Coverage::of(from, to, level, reason.map(Into::into));
    use Level::{Claimed, Complete, Linked};
    told.coverage = vec![
        of(100, 101, Complete, None),
        of(102, 102, Linked, Some("no receipts")),
        of(103, 103, Complete, None),
        of(104, 104, Claimed, Some("another hash")),
    ];
    store.extend(&told).await.unwrap();
    assert_eq!(store.newest_claimed().await.unwrap(), None);
    assert_eq!(store.doubt(103, Linked).await.unwrap(), 1);
    assert_eq!(store.newest_claimed().await.unwrap(), Some(of(104, 104, Claimed, None)));
    assert_eq!(store.doubt(101, Linked).await.unwrap(), 2);
    let coverage = async || store.coverage().await.unwrap();
    assert_eq!(
        coverage().await,
        [
            of(100, 101, Complete, None),
            of(102, 102, Claimed, None),
            of(103, 103, Complete, None),
            of(104, 104, Claimed, None)
        ]
    );
    assert_eq!(store.doubt(101, Complete).await.unwrap(), 4);
    assert_eq!(coverage().await, [of(100, 100, Complete, None), of(101, 104, Claimed, None)]);
    assert_eq!(store.doubt(105, Complete).await.unwrap(), 0);
    while let Some(next) = store.newest_claimed().await.unwrap() {
        let at = |number: u64| (number - 100) as usize;
        let proven = range(&blocks[at(next.from)..=at(next.to + 1).min(4)]);
        assert_eq!(store.confirm(&proven).await.unwrap(), []);
    }
    assert_eq!(coverage().await, [of(100, 104, Complete, None)]);
}

#[tokio::test]
async fn a_contract_that_is_new_to_a_file_has_its_blocks_read_again() {
    let (file, store) = fresh().await;
    let [first, second] = [MARKETPLACE, Address::repeat_byte(0x44)];
    let blocks = chain(None, 0, &[&[[TERMS, 1]], &[], &[]]);
    store.watch(&[first]).await.unwrap();
    extend(&store, &blocks).await.unwrap();
    store.watch(&[first]).await.unwrap();
    assert_eq!(store.newest_claimed().await.unwrap(), None);
    store.watch(&[first, second]).await.unwrap();
    assert_eq!(store.coverage().await.unwrap(), [Coverage::of(100, 102, Level::Claimed, None)]);
    store.confirm(&range(&blocks)).await.unwrap();
    store.watch(&[second, first]).await.unwrap();
    assert_eq!(store.newest_claimed().await.unwrap(), None, "told once");
    store.close().await;
    let store = file.open().await;
    let error = store.watch(&[first]).await.unwrap_err().to_string();
    assert!(error.contains(&second.to_string()) && error.contains("data_dir"), "{error}");
    // A file older than the list.
    sqlx::query("DELETE FROM watched").execute(&store.writer).await.unwrap();
    store.watch(&[first, second]).await.unwrap();
    assert_eq!(store.newest_claimed().await.unwrap(), None);
}

#[tokio::test]
async fn a_job_in_doubt_is_nobodys_to_work_on() {
    let (file, store) = fresh().await;
    extend(&store, &chain(None, 0, &[&[[TERMS, 1], [TERMS, 2]], &[[CLAIMED, 1]]])).await.unwrap();
    let next = async |store: &Store, job: u64| store.job(JobId(job)).await.unwrap().unwrap().next(US, UnixSeconds(0));
    assert_eq!(next(&store, 1).await, Next::Do(Duty::Infer));
    let doubts = [(JobId(1), "its state is claimed by the logs, posted by the contract".to_owned())].into();
    store.set_doubts(&doubts).await.unwrap();
    assert_eq!(store.doubts().await.unwrap(), doubts);
    assert!(matches!(next(&store, 1).await, Next::Wait(_)));
    assert_eq!(next(&store, 2).await, Next::Do(Duty::Consider));
    store.close().await;
    let store = file.open().await;
    assert!(matches!(next(&store, 1).await, Next::Wait(_)), "kept over a restart");
    store.set_doubts(&Default::default()).await.unwrap();
    assert_eq!(next(&store, 1).await, Next::Do(Duty::Infer));
}

#[tokio::test]
async fn a_job_whose_logs_contradict_each_other_stops_no_other() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[[TERMS, 1], [TERMS, 2]], &[[COMPLETED, 1], [CLAIMED, 2]], &[[TERMS, 3]]]);
    extend(&store, &blocks).await.unwrap();
    let rows = async || {
        let rows = store.jobs(&JobFilter { limit: 9, ..JobFilter::default() }).await.unwrap();
        rows.iter().map(|row| (row.id.0, row.state.clone())).collect::<Vec<_>>()
    };
    assert_eq!(rows().await, [(3, "posted".into()), (2, "claimed".into())]);
    let found = store.conflicts().await.unwrap();
    assert!(
        matches!(&found[..], [(JobId(1), what)] if what == "job 1: JobCompleted cannot follow posted"),
        "{found:?}"
    );
    assert!(store.job(JobId(1)).await.is_err());
    assert_eq!(store.live_jobs().await.unwrap().len(), 2);
    assert_eq!(store.rederive(|_| ()).await.unwrap().jobs_changed, []);
    assert_eq!(store.conflicts().await.unwrap(), found);
    store.rewind(blocks[0].0.block.number).await.unwrap();
    assert_eq!((rows().await.len(), store.conflicts().await.unwrap()), (2, vec![]));
}

#[tokio::test]
async fn a_final_header_without_logs_is_dropped_and_its_proof_stays_known() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[], &[], &[[TERMS, 1]], &[], &[], &[], &[]]);
    extend(&store, &blocks).await.unwrap();
    store.set_final(blocks[5].0.block).await.unwrap();
    let kept: Vec<u64> = store.blocks(0, 1000).await.unwrap().iter().map(|header| header.block.number).collect();
    assert_eq!(kept, [100, 102, 103, 105, 106]);
    assert_eq!(store.coverage().await.unwrap(), [Coverage::of(100, 106, Level::Complete, None)]);
    store.rewind(105).await.unwrap();
    assert_eq!(store.coverage().await.unwrap(), [Coverage::of(100, 105, Level::Complete, None)]);
}

pub(super) async fn fresh() -> (File, Store) {
    let file = File::new();
    let store = file.open().await;
    (file, store)
}

pub(super) async fn extend(store: &Store, blocks: &[Block]) -> Result<Extended> {
    store.extend(&range(blocks)).await
}

/// The blocks as an endpoint whose every word was proven gives them.
pub(super) fn range(blocks: &[Block]) -> Range {
    let mut coverage = Vec::new();
    for Block(header, logs) in blocks {
        let level = if logs.is_empty() { Level::Absent } else { Level::Complete };
        push(&mut coverage, Coverage::of_block(header.block.number, level, None));
    }
    Range {
        headers: blocks.iter().map(|block| block.0).collect(),
        coverage,
        logs: blocks.iter().flat_map(|block| block.1.clone()).collect(),
    }
}

/// Everything that follows from the chain.
type Projection =
    (Option<BlockRef>, UnixSeconds, (B256, u64), Vec<crate::market::event::Header>, Vec<LogRow>, Vec<JobRow>, Vec<Job>);

async fn projection(store: &Store) -> Projection {
    let jobs = store.jobs(&JobFilter { limit: 1000, ..JobFilter::default() }).await.unwrap();
    let mut folded = Vec::new();
    for row in &jobs {
        let job = store.job(row.id).await.unwrap().expect("a row has a job");
        assert_eq!(JobRow::of(&job).state, row.state);
        folded.push(job);
    }
    (
        store.cursor().await.unwrap(),
        store.time().await.unwrap(),
        store.journal_head().await.unwrap(),
        store.blocks(0, 10_000).await.unwrap(),
        store.logs(0, 10_000).await.unwrap(),
        jobs,
        folded,
    )
}

/// What a store holds that saw these blocks and no others.
async fn never_saw_others(blocks: &[Block]) -> Projection {
    let (_file, store) = fresh().await;
    extend(&store, blocks).await.unwrap();
    projection(&store).await
}

#[tokio::test]
async fn logs_jobs_and_cursor_move_together() {
    let (_file, store) = fresh().await;
    assert_eq!((store.cursor().await.unwrap(), store.first_block().await.unwrap()), (None, None));
    let mut changes = store.changes();
    let blocks = chain(None, 0, &[&[[NOTED, 1], [TERMS, 1]], &[], &[[CLAIMED, 1], [TERMS, 2]]]);
    let extended = extend(&store, &blocks).await.unwrap();
    assert_eq!(extended.jobs, [JobId(1), JobId(2)].into());
    assert_eq!((extended.logs, extended.undecoded), (4, vec![]));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();

    assert_eq!(store.cursor().await.unwrap(), Some(blocks[2].0.block));
    assert_eq!(store.time().await.unwrap(), blocks[2].0.time);
    assert_eq!(store.canonical_hash(101).await.unwrap(), Some(blocks[1].0.block.hash));
    let (_, _, (head, count), headers, logs, rows, _) = projection(&store).await;
    let told: Vec<RawLog> = blocks.iter().flat_map(|block| block.1.clone()).collect();
    assert_eq!(logs.iter().map(|row| row.log.clone()).collect::<Vec<_>>(), told);
    assert_eq!((head, count), (told.iter().fold(B256::ZERO, |head, log| log.link(head, CHAIN)), 4));
    assert_eq!(headers.len(), 3);
    let states: Vec<_> = rows.iter().map(|row| (row.id.0, row.state.as_str(), row.host, row.payment)).collect();
    assert_eq!(states, [(2, "posted", None, U256::MAX), (1, "claimed", Some(US), U256::MAX)]);

    assert_eq!(store.extend(&range(&[])).await.unwrap(), Extended::default());
    assert!(!changes.has_changed().unwrap());
}

#[tokio::test]
async fn what_does_not_continue_the_chain_is_refused_and_nothing_is_stored() {
    let (_file, store) = fresh().await;
    let base = chain(None, 0, &[&[[TERMS, 1]], &[[CLAIMED, 1]]]);
    extend(&store, &base).await.unwrap();
    let before = projection(&store).await;
    let next = chain(base.last(), 0, &[&[[TERMS, 2]], &[[TERMS, 3]]]);
    let change = |change: &dyn Fn(&mut Vec<Block>)| {
        let mut blocks = next.clone();
        change(&mut blocks);
        blocks
    };
    let cases = [
        ("does not follow", change(&|b| b[0].0.parent = B256::ZERO)),
        ("does not follow", change(&|b| b[1].0.parent = B256::ZERO)),
        ("does not follow", change(&|b| drop(b.remove(0)))),
        ("does not follow", base.clone()),
        ("in none of the blocks", change(&|b| b[1].1[0].block.number += 1)),
        ("in none of the blocks", change(&|b| b[1].1[0].block.number = 0)),
        ("in none of the blocks", change(&|b| b[1].1[0].block.hash = B256::ZERO)),
        ("out of order", change(&|b| b[1].1 = [b[1].1.clone(), b[1].1.clone()].concat())),
        ("out of order", change(&|b| b[0].1 = [b[1].1.clone(), b[0].1.clone()].concat())),
        ("store logs from block 102", change(&|b| b[1].1[0].topics = vec![B256::ZERO; 5])),
    ];
    for (says, blocks) in cases {
        let error = format!("{:#}", extend(&store, &blocks).await.expect_err(says));
        assert!(error.contains(says), "{error}");
        assert_eq!(projection(&store).await, before, "{says}");
    }
    // Headers may only be left out where nothing is proven.
    let mut sparse = range(&chain(base.last(), 0, &[&[[TERMS, 2]], &[], &[[TERMS, 3]]]));
    sparse.headers.remove(1);
    let error = store.extend(&sparse).await.unwrap_err().to_string();
    assert!(error.contains("does not follow"), "{error}");
    let error = store.extend(&Range { coverage: vec![], ..range(&next) }).await.unwrap_err().to_string();
    assert!(error.contains("what is proven is not told"), "{error}");
    let error = store.extend(&Range { logs: next[0].1.clone(), ..range(&[]) }).await.unwrap_err().to_string();
    assert!(error.contains("1 logs without a block"), "{error}");
    let error = store.rewind(99).await.unwrap_err().to_string();
    assert!(error.contains("rewind to unknown block 99"), "{error}");
    extend(&store, &next).await.expect("the store is still usable");
}

#[tokio::test]
async fn a_rewind_leaves_what_a_store_holds_that_never_saw_the_fork() {
    let (_file, store) = fresh().await;
    let a = chain(None, 0, &[&[[TERMS, 1]], &[[TERMS, 2], [CLAIMED_BY_RIVAL, 2]]]);
    let b = chain(a.last(), 0, &[&[[CLAIMED, 1], [TERMS, 3]], &[[COMMITTED, 1], [REFUNDED, 2]], &[[NOTED, 1]]]);
    let other = chain(a.last(), 1, &[&[[CLAIMED_BY_RIVAL, 1]], &[], &[[TERMS, 3], [CLAIMED, 3]]]);
    extend(&store, &a).await.unwrap();
    extend(&store, &b).await.unwrap();

    let to = a.last().unwrap().0.block.number;
    assert_eq!(store.rewind(to).await.unwrap(), 3);
    assert_eq!(projection(&store).await, never_saw_others(&a).await);
    assert_eq!(store.rewind(to).await.unwrap(), 0, "nothing lies above");
    extend(&store, &other).await.unwrap();
    assert_eq!(projection(&store).await, never_saw_others(&[a.clone(), other].concat()).await);
    store.rewind(to).await.unwrap();
    extend(&store, &b).await.unwrap();
    assert_eq!(projection(&store).await, never_saw_others(&[a, b].concat()).await, "an orphan taken back");

    let canonical = |entry: &Entry| matches!(entry, Entry::Event { canonical: true, .. });
    let timeline = store.timeline(JobId(1)).await.unwrap();
    assert_eq!(timeline.entries.len(), 5, "the orphaned claim stays as a trail");
    assert_eq!(timeline.entries.iter().filter(|entry| canonical(entry)).count(), 4);
}

#[tokio::test]
async fn another_beacon_asks_for_another_proof() {
    let (_file, store) = fresh().await;
    let a = chain(None, 0, &[&[[TERMS, 1], [CLAIMED, 1]], &[[COMMITTED, 1]]]);
    extend(&store, &a).await.unwrap();
    let (job, at) = (JobId(1), UnixSeconds(0));
    let next = || async { store.job(job).await.unwrap().unwrap().next(US, at) };
    let (output, transcript) = (Cid::of(b"o"), Cid::of(b"t"));
    store.record(job, &Work::Inferred { at, commitment: COMMITMENT, output, transcript, order: None }).await.unwrap();
    assert_eq!(next().await, Next::Wait("the block after the commitment"));

    let block = after(a.last(), 0, &[]);
    extend(&store, std::slice::from_ref(&block)).await.unwrap();
    assert_eq!(next().await, Next::Do(Duty::Prove));
    let (beacon, completion) = (block.0.block.hash, Cid::of(b"p"));
    store.record(job, &Work::Proved { at, beacon, completion }).await.unwrap();
    assert_eq!(next().await, Next::Do(Duty::Complete));

    store.rewind(101).await.unwrap();
    assert_eq!(next().await, Next::Wait("the block after the commitment"));
    extend(&store, &[after(a.last(), 1, &[])]).await.unwrap();
    assert_eq!(next().await, Next::Do(Duty::Prove));
    store.rewind(100).await.unwrap();
    assert_eq!(next().await, Next::Do(Duty::Commit), "the inference cannot be un-run");
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_kept_raw() {
    let (file, store) = fresh().await;
    let a = chain(None, 0, &[&[[TERMS, 1]]]);
    let b = chain(a.last(), 0, &[&[[CLAIMED, 1], [NONSENSE, 1]]]);
    extend(&store, &a).await.unwrap();
    let extended = extend(&store, &b).await.unwrap();
    assert_eq!(extended.undecoded, [(b[0].1[1].tx, 1)]);
    let row = store.logs(101, 101).await.unwrap().pop().unwrap();
    assert_eq!((row.kind, row.job, &row.log), (None, None, &b[0].1[1]));
    assert_eq!(store.journal_head().await.unwrap().1, 3, "it is part of the journal");
    let kinds: Vec<Option<String>> =
        sqlx::query_scalar("SELECT kind FROM log ORDER BY seq").fetch_all(&store.readers).await.unwrap();
    assert_eq!(kinds, [Some("JobTerms".into()), Some("JobClaimed".into()), None]);
    store.rewind(100).await.unwrap();
    store.close().await;

    // A later program can read it when its block comes back.
    let wiser = |log: &RawLog| match log.data[0] {
        NONSENSE => Ok(Event::ResultCommitted { job: JobId(1), host: US, commitment: COMMITMENT }),
        _ => read(log),
    };
    let store = file.open_as(CHAIN, MARKETPLACE, Arc::new(wiser)).await.unwrap();
    assert_eq!(extend(&store, &b).await.unwrap().undecoded, []);
    assert_eq!(store.job(JobId(1)).await.unwrap().unwrap().state.name(), "committed");
}

#[tokio::test]
async fn a_file_belongs_to_one_marketplace_on_one_chain() {
    let (file, store) = fresh().await;
    store.close().await;
    for (chain_id, marketplace) in [(1, MARKETPLACE), (CHAIN, Address::ZERO)] {
        let error = file.open_as(chain_id, marketplace, Arc::new(read)).await.map(drop).unwrap_err();
        let error = format!("{error:#}");
        let file = format!("belongs to chain {CHAIN}, marketplace {MARKETPLACE}");
        let config = format!("names chain {chain_id}, marketplace {marketplace}");
        assert!(error.contains(&file) && error.contains(&config) && error.contains("use another data_dir"), "{error}");
    }
    file.open().await;
}

#[tokio::test]
async fn a_file_that_is_none_of_ours_is_named() {
    let file = File::new();
    std::fs::write(file.0.path().join("fabstir.sqlite"), [7; 4096]).unwrap();
    let error = format!("{:#}", file.open_as(CHAIN, MARKETPLACE, Arc::new(read)).await.map(drop).unwrap_err());
    assert!(error.contains("fabstir.sqlite") && error.contains("not a database"), "{error}");
    let file = File::new();
    let store = file.open().await;
    let newer = "INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, 1, x'00', 0)";
    sqlx::query(newer).execute(&store.writer).await.unwrap();
    store.close().await;
    let error = format!("{:#}", file.open_as(CHAIN, MARKETPLACE, Arc::new(read)).await.map(drop).unwrap_err());
    assert!(error.contains("fabstir.sqlite") && error.contains("9999"), "{error}");
}

/// Each migration is one transaction, so a process that dies while it migrates leaves a file of one of these formats.
#[tokio::test]
async fn a_file_is_migrated_from_wherever_that_stopped() {
    let migrations = sqlx::migrate!();
    let tables = async |store: &Store| {
        sqlx::query_as::<_, (String, Option<String>)>("SELECT name, sql FROM sqlite_master ORDER BY name")
            .fetch_all(&store.readers)
            .await
            .unwrap()
    };
    let (_file, fresh) = fresh().await;
    let expected = tables(&fresh).await;
    let newest = migrations.iter().map(|migration| migration.version).max().expect("there are some");
    for stopped in migrations.iter().map(|migration| migration.version) {
        let file = File::new();
        let options =
            SqliteConnectOptions::new().filename(file.0.path().join("fabstir.sqlite")).create_if_missing(true);
        let old = SqlitePool::connect_with(options).await.unwrap();
        migrations.run_to(stopped, &old).await.unwrap();
        for row in [
            "INSERT INTO tx_intent (id, key, job, kind, target, data, signer, nonce, gas, state, at)
             VALUES (4, 'claim:1', 1, 'claim', zeroblob(20), x'', ?, 7, 100, 'signed', 1)",
            "INSERT INTO tx_attempt (hash, intent, raw, fee_cap, tip_cap, signed_at)
             SELECT zeroblob(32), 4, x'01', '9', '1', 1 WHERE length(?) = 20",
        ] {
            sqlx::query(row).bind(US.as_slice()).execute(&old).await.unwrap();
        }
        old.close().await;
        let path = file.0.path().join("fabstir.sqlite");
        assert_eq!(Store::is_older(&path).await.unwrap(), stopped < newest, "format {stopped}");
        let store = file.open().await;
        assert!(!Store::is_older(&path).await.unwrap(), "it was migrated");
        assert!(tables(&store).await == expected, "from format {stopped}");
        let kept = store.signed_intents(US).await.unwrap();
        assert_eq!((kept.len(), kept[0].nonce, kept[0].attempts.len()), (1, Some(7), 1), "from format {stopped}");
    }
}

fn intent(key: &str, job: u64) -> Intent {
    Intent {
        key: key.into(),
        job: Some(JobId(job)),
        kind: "claim",
        target: MARKETPLACE,
        data: Bytes::from_static(b"call"),
        signer: US,
        gas: Some(100),
        cost_max: None,
    }
}

fn owed(job: u64, duty: Duty) -> Owed {
    let deal = terms(JobId(job)).deal();
    Owed { job: JobId(job), deal, duty }
}

fn chosen() -> Work {
    Work::Chosen { at: UnixSeconds(1), reasons: vec!["price: fine".into()], deal: None }
}

pub(super) async fn choose(store: &Store, job: u64, slots: u32) -> bool {
    let choice = Choice { job: JobId(job), work: chosen(), claim: intent(&format!("claim:{job}"), job) };
    store.choose(&[choice], slots).await.unwrap() == [JobId(job)]
}

/// Every intent that is not finished.
pub(super) async fn open_intents(store: &Store) -> Vec<OpenIntent> {
    let open = [store.signed_intents(US).await.unwrap(), store.ready(US, 100, true).await.unwrap().intents].concat();
    assert_eq!(open.len() as u64, store.open_intents(US).await.unwrap());
    open
}

async fn states(store: &Store, job: u64, kind: &str) -> Vec<IntentState> {
    store.intents_of(&[JobId(job)]).await.unwrap().remove(&(JobId(job), kind.to_owned())).unwrap_or_default()
}

pub(super) async fn sign(store: &Store, intent: i64, nonce: u64, attempt: Attempt) -> Result<()> {
    store.sign(&[Signed { intent, nonce, gas: 100, attempt }]).await
}

#[tokio::test]
async fn a_choice_takes_a_slot_once() {
    let (_file, store) = fresh().await;
    extend(&store, &chain(None, 0, &[&[[TERMS, 1], [TERMS, 2], [TERMS, 3]]])).await.unwrap();
    assert!(!choose(&store, 1, 0).await, "no slot");
    assert!(choose(&store, 1, 2).await);
    assert!(!choose(&store, 1, 2).await, "its claim is under way");
    assert!(choose(&store, 2, 2).await);
    assert!(!choose(&store, 3, 2).await, "full");
    assert_eq!(store.reservations().await.unwrap(), [JobId(1), JobId(2)].into());
    assert_eq!(open_intents(&store).await.len(), 2);
    assert!(!store.job(JobId(3)).await.unwrap().unwrap().chosen);
    assert_eq!(store.timeline(JobId(1)).await.unwrap().entries.len(), 3, "event, choice, transaction");

    store.free(&[JobId(1)]).await.unwrap();
    store.free(&[JobId(1)]).await.unwrap();
    assert_eq!(states(&store, 1, "claim").await, [IntentState::Dropped]);
    assert!(choose(&store, 3, 2).await, "the slot is free");
    assert!(store.adopt(JobId(1)).await.unwrap(), "what the chain gave us is ours even past the slots");
    assert!(!store.adopt(JobId(1)).await.unwrap());
    assert_eq!(store.reservations().await.unwrap(), [JobId(1), JobId(2), JobId(3)].into());

    store.withdraw(JobId(1)).await.unwrap();
    assert!(!store.job(JobId(1)).await.unwrap().unwrap().chosen);
    assert!(choose(&store, 1, 3).await, "as if it had never been chosen");
    assert_eq!(states(&store, 1, "claim").await, [IntentState::Queued], "the first claim is history");
    assert_eq!(store.transactions(Some(JobId(1))).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_hold_takes_back_what_is_not_signed_and_nothing_is_chosen_under_it() {
    let (_file, store) = fresh().await;
    extend(&store, &chain(None, 0, &[&[[TERMS, 1], [TERMS, 2], [TERMS, 3]]])).await.unwrap();
    assert!(choose(&store, 1, 9).await);
    sign(&store, open_intents(&store).await[0].id, 0, attempt(1)).await.unwrap();
    assert!(choose(&store, 2, 9).await);
    assert_eq!(store.withdraw_queued(UnixSeconds(1)).await.unwrap(), [], "it was queued later");
    assert!(store.hold(HoldKind::Draining, "a new disk").await.unwrap());
    assert_eq!(store.reservations().await.unwrap(), [JobId(1)].into(), "its claim is signed");
    assert_eq!(states(&store, 2, "claim").await, [IntentState::Dropped]);
    let chosen = async |job| store.live_jobs().await.unwrap().iter().any(|live| live.id == JobId(job) && live.chosen);
    assert!(chosen(1).await && !chosen(2).await);
    assert!(!choose(&store, 2, 9).await && !choose(&store, 3, 9).await);
    assert_eq!(store.resume().await.unwrap().len(), 1);
    assert!(choose(&store, 2, 9).await, "judged anew");
    assert_eq!(store.withdraw_queued(UnixSeconds(clock().0 + 1)).await.unwrap(), [JobId(2)]);
    assert!(!chosen(2).await && chosen(1).await);
}

#[tokio::test]
async fn what_came_to_nothing_makes_room_for_its_key() {
    let (_file, store) = fresh().await;
    let again = intent("commit:1:1", 1);
    assert_eq!(store.queue(&[again.clone(), again.clone()]).await.unwrap(), 1);
    let first = open_intents(&store).await[0].id;
    store.drop_intent(first, "refused").await.unwrap();
    assert_eq!(store.queue(std::slice::from_ref(&again)).await.unwrap(), 1);
    assert_eq!(store.queue(&[again]).await.unwrap(), 0, "it is under way");
    let second = open_intents(&store).await;
    assert_eq!((second.len(), second[0].id > first), (1, true));
    assert_eq!(store.transactions(Some(JobId(1))).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_did_nothing_in_a_final_block_is_settled_without_its_header() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[[TERMS, 1]], &[], &[], &[], &[]]);
    extend(&store, &blocks).await.unwrap();
    let (gone, kept) = (blocks[2].0.block, blocks[3].0.block);
    store.queue(&[intent("a", 1), intent("b", 2)]).await.unwrap();
    for (nonce, intent) in open_intents(&store).await.into_iter().enumerate() {
        sign(&store, intent.id, nonce as u64, attempt(nonce as u8 + 1)).await.unwrap();
    }
    let outcome = |byte, block| TxOutcome {
        hash: B256::repeat_byte(byte),
        block,
        success: false,
        gas_used: 1,
        gas_price: U256::from(1),
        l1_fee: U256::ZERO,
    };
    assert_eq!(store.settle(&[outcome(1, kept)], &[]).await.unwrap(), 1);
    store.set_final(blocks[4].0.block).await.unwrap();
    assert_eq!(store.canonical_hash(gone.number).await.unwrap(), None, "a header without use is dropped");
    assert_eq!(store.canonical_hash(kept.number).await.unwrap(), Some(kept.hash), "a transaction of ours is in it");
    assert_eq!(store.settle(&[outcome(2, gone)], &[]).await.unwrap(), 0, "nobody vouches for it");
    let elsewhere = BlockRef { hash: B256::ZERO, ..gone };
    assert_eq!(store.settle(&[outcome(2, gone)], &[elsewhere]).await.unwrap(), 0);
    let ahead = BlockRef { number: blocks[4].0.block.number + 1, hash: B256::ZERO };
    assert_eq!(store.settle(&[outcome(2, ahead)], &[ahead]).await.unwrap(), 0, "not final");
    assert_eq!(store.settle(&[outcome(2, gone)], &[gone]).await.unwrap(), 1);
    assert_eq!(states(&store, 2, "claim").await, [IntentState::Reverted]);
}

#[tokio::test]
async fn a_freed_job_is_still_asked_for_its_money() {
    let (_file, store) = fresh().await;
    assert!(choose(&store, 1, 1).await);
    store.queue(&[Intent { kind: "release", ..intent("release:1:0", 1) }]).await.unwrap();
    store.free(&[JobId(1)]).await.unwrap();
    assert_eq!(store.reservations().await.unwrap(), [].into());
    assert_eq!(states(&store, 1, "claim").await, [IntentState::Dropped]);
    assert_eq!(states(&store, 1, "release").await, [IntentState::Queued]);
}

pub(super) fn attempt(byte: u8) -> Attempt {
    let raw = Bytes::from(vec![byte; 3]);
    Attempt {
        hash: B256::repeat_byte(byte),
        raw,
        fee_cap: u128::MAX,
        tip_cap: 1,
        signed_at: 5,
        sent: false,
        cancels: false,
    }
}

#[tokio::test]
async fn a_nonce_belongs_to_one_intent_for_ever() {
    let (_file, store) = fresh().await;
    assert_eq!(store.queue(&[intent("a", 1)]).await.unwrap(), 1);
    assert_eq!(store.queue(&[intent("a", 1), intent("b", 1)]).await.unwrap(), 1, "the same key is the same intent");
    let ids: Vec<i64> = open_intents(&store).await.iter().map(|intent| intent.id).collect();
    let [a, b] = ids[..] else { panic!("two intents, got {ids:?}") };
    let ready = async |signer, window, claims| {
        let Ready { intents, in_flight, next_nonce } = store.ready(signer, window, claims).await.unwrap();
        (intents.iter().map(|intent| intent.id).collect::<Vec<_>>(), in_flight, next_nonce)
    };
    assert_eq!(ready(US, 2, true).await, (vec![a, b], 0, 0));
    assert_eq!(ready(US, 1, true).await, (vec![a], 0, 0));
    sign(&store, a, 4, attempt(1)).await.unwrap();
    assert_eq!(ready(US, 2, true).await, (vec![b], 1, 5));
    assert_eq!(ready(US, 1, true).await.0, Vec::<i64>::new(), "the window is full");
    assert_eq!(ready(US, 2, false).await.0, Vec::<i64>::new(), "they are claims");
    assert_eq!(ready(RIVAL, 2, true).await.0, Vec::<i64>::new());

    let error = format!("{:#}", sign(&store, b, 4, attempt(2)).await.unwrap_err());
    assert!(error.contains("give nonce 4 to intent 2") && error.contains("UNIQUE"), "{error}");
    let error = format!("{:#}", sign(&store, a, 5, attempt(2)).await.unwrap_err());
    assert!(error.contains("a signed transaction keeps its nonce"), "{error}");
    sign(&store, a, 4, attempt(2)).await.expect("a replacement");
    sign(&store, b, 5, attempt(2)).await.expect_err("the same bytes are not two transactions");
    store.mark_sent(&[B256::repeat_byte(2)]).await.unwrap();

    let open = open_intents(&store).await;
    assert_eq!(open.iter().map(|i| (i.id, i.nonce)).collect::<Vec<_>>(), [(a, Some(4)), (b, None)]);
    assert_eq!(open[0].attempts, [attempt(1), Attempt { sent: true, ..attempt(2) }]);
    store.drop_intent(a, "too late").await.unwrap();
    store.drop_intent(b, "refused").await.unwrap();
    let states = states(&store, 1, "claim").await;
    assert_eq!(states, [IntentState::Signed, IntentState::Dropped], "what is signed is not dropped");
    let error = sign(&store, b, 6, attempt(3)).await.unwrap_err().to_string();
    assert!(error.contains("is finished") && error.contains("intent 2"), "{error}");
}

#[tokio::test]
async fn an_outcome_lives_and_dies_with_its_block() {
    let (_file, store) = fresh().await;
    let a = chain(None, 0, &[&[], &[]]);
    extend(&store, &a[..1]).await.unwrap();
    store.queue(&[intent("a", 1)]).await.unwrap();
    let id = open_intents(&store).await[0].id;
    sign(&store, id, 0, attempt(1)).await.unwrap();
    sign(&store, id, 0, attempt(2)).await.unwrap();
    let (hash, gas_price) = (B256::repeat_byte(2), U256::from(7));
    let outcome =
        TxOutcome { hash, block: a[1].0.block, success: true, gas_used: 10, gas_price, l1_fee: U256::from(5) };
    let state = || async { states(&store, 1, "claim").await[0] };
    let settle = async |outcome: &TxOutcome| Ok::<_, anyhow::Error>(store.settle(&[*outcome], &[]).await? == 1);

    assert!(!settle(&outcome).await.unwrap(), "the block is not stored yet");
    assert_eq!(state().await, IntentState::Signed);
    extend(&store, &a[1..]).await.unwrap();
    let elsewhere = BlockRef { hash: B256::ZERO, ..a[1].0.block };
    assert!(!settle(&TxOutcome { block: elsewhere, ..outcome }).await.unwrap(), "a block of a fork");
    assert!(settle(&TxOutcome { hash: B256::ZERO, ..outcome }).await.is_err(), "bytes we never signed");
    assert!(settle(&outcome).await.unwrap());
    assert_eq!(state().await, IntentState::Mined);
    assert_eq!(open_intents(&store).await, []);
    let listed = store.transactions(None).await.unwrap();
    let [Entry::Transaction { fee_wei, hashes, nonce, .. }] = &listed[..] else { panic!("one line, got {listed:?}") };
    assert_eq!((fee_wei, nonce, hashes.len()), (&Some(U256::from(75)), &Some(0), 2));

    store.rewind(100).await.unwrap();
    assert_eq!(state().await, IntentState::Signed);
    assert_eq!(open_intents(&store).await[0].nonce, Some(0), "the same bytes are sent again");
    assert!(!settle(&outcome).await.unwrap());
    let again = after(a.first(), 1, &[]);
    extend(&store, std::slice::from_ref(&again)).await.unwrap();
    let failed = TxOutcome { block: again.0.block, success: false, ..outcome };
    assert!(settle(&failed).await.unwrap());
    assert_eq!(state().await, IntentState::Reverted);
    assert!(settle(&failed).await.unwrap(), "told twice");
    assert_eq!(state().await, IntentState::Reverted);
}

#[tokio::test]
async fn open_transactions_are_those_that_may_still_be_mined() {
    let (_file, store) = fresh().await;
    let ids = async |open| store.tx_rows(open).await.unwrap().iter().map(|row| row.id).collect::<Vec<_>>();
    store.queue(&["a", "b", "c", "d"].map(|key| intent(key, 1))).await.unwrap();
    assert_eq!(ids(true).await, [1, 2, 3, 4]);
    sign(&store, 1, 0, attempt(1)).await.unwrap();
    sign(&store, 2, 1, attempt(2)).await.unwrap();
    store.lose_nonce(2, "another program with the key took its nonce").await.unwrap();
    store.drop_intent(3, "too late").await.unwrap();
    assert_eq!(ids(true).await, [1, 4], "one is signed, one queued");
    assert_eq!(ids(false).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_lease_is_one_workers_and_backs_off() {
    let (file, store) = fresh().await;
    assert!(store.lease(owed(1, Duty::Infer), 3600).await.unwrap());
    assert!(!store.lease(owed(1, Duty::Infer), 3600).await.unwrap(), "held");
    assert!(store.lease(owed(1, Duty::Prove), 3600).await.unwrap(), "another duty");
    assert!(store.lease(owed(2, Duty::Infer), 3600).await.unwrap(), "another job");
    store.release(owed(1, Duty::Infer), None).await.unwrap();
    assert!(store.lease(owed(1, Duty::Infer), 3600).await.unwrap(), "given back");
    store.release(owed(1, Duty::Infer), None).await.unwrap();
    assert_eq!(store.release(owed(1, Duty::Infer), Some("not held")).await.unwrap(), 0);

    let mut backs_off = Vec::new();
    for attempts in 1..=8 {
        assert!(store.lease(owed(1, Duty::Infer), 3600).await.unwrap());
        let before = clock().0;
        assert_eq!(store.release(owed(1, Duty::Infer), Some("no memory")).await.unwrap(), attempts);
        let (wait, error): (i64, String) =
            sqlx::query_as("SELECT not_before, last_error FROM lease WHERE duty = 'infer' AND job = 1")
                .fetch_one(&store.readers)
                .await
                .unwrap();
        assert_eq!(error, "no memory");
        backs_off.push(wait as u64 - before);
        // The first wait is a second, which may be over by now; the clock is moved on rather than waited for.
        assert!(attempts == 1 || !store.lease(owed(1, Duty::Infer), 3600).await.unwrap(), "too early");
        sqlx::query("UPDATE lease SET not_before = 0 WHERE job = 1").execute(&store.writer).await.unwrap();
    }
    for (wait, doubled) in backs_off.iter().zip([1, 2, 4, 8, 16, 32, 64, 64]) {
        assert!((doubled..=doubled + 1).contains(wait), "{backs_off:?}");
    }

    store.close().await;
    let store = file.open().await;
    assert!(!store.lease(owed(1, Duty::Prove), 3600).await.unwrap(), "a lease outlives its process");
    assert_eq!(store.free_leases().await.unwrap(), 2);
    assert_eq!(store.free_leases().await.unwrap(), 0);
    assert!(store.lease(owed(1, Duty::Prove), 3600).await.unwrap());
}

#[tokio::test]
async fn attempts_count_for_the_order_that_they_were_made_for() {
    let (_file, store) = fresh().await;
    let first = owed(1, Duty::Infer);
    let second = Owed { deal: B256::repeat_byte(2), ..first };
    let leased = async || store.leased(Duty::Infer).await.unwrap().into_iter().collect::<Vec<_>>();
    // The clock is moved rather than waited for.
    let wait_for = async |seconds: i64| {
        let moved = sqlx::query("UPDATE lease SET not_before = ?").bind(clock().0 as i64 + seconds);
        moved.execute(&store.writer).await.unwrap();
    };
    for attempts in 1..=2 {
        wait_for(0).await;
        assert!(store.lease(first, 3600).await.unwrap());
        assert_eq!(leased().await, [(JobId(1), None)], "whoever has the number");
        assert!(!store.lease(second, 3600).await.unwrap(), "a worker is at it");
        assert_eq!(store.release(first, Some("no memory")).await.unwrap(), attempts);
    }
    wait_for(60).await;
    assert_eq!(leased().await, [(JobId(1), Some(first.deal))]);
    assert!(!store.lease(first, 3600).await.unwrap(), "it backs off");
    assert!(store.lease(second, 3600).await.unwrap(), "the other does not");
    // What comes late of the first is not told of the second.
    assert_eq!(store.release(first, Some("late")).await.unwrap(), 0);
    store.release(first, None).await.unwrap();
    store.put_back(first).await.unwrap();
    assert_eq!(leased().await, [(JobId(1), None)]);
    let error = sqlx::query_scalar::<_, Option<String>>("SELECT last_error FROM lease");
    assert_eq!(error.fetch_one(&store.readers).await.unwrap(), None);
    assert_eq!(store.release(second, Some("no disk")).await.unwrap(), 1);
    // What an older file counted is anyone's.
    sqlx::query("UPDATE lease SET deal = NULL, attempts = 2, not_before = 0").execute(&store.writer).await.unwrap();
    assert!(store.lease(first, 3600).await.unwrap());
    assert_eq!(store.release(first, Some("no memory")).await.unwrap(), 3);
}

#[tokio::test]
async fn a_choice_is_taken_back_and_a_job_taken_up_again_for_its_own_order() {
    let (_file, store) = fresh().await;
    let first = after(None, 0, &[]);
    extend(&store, std::slice::from_ref(&first)).await.unwrap();
    let turn = async |salt: u8, order: u8| turned(&store, &first, salt, &[[order, 1]]).await;
    let choose = async |job: &Job| {
        let work = Work::Chosen { at: UnixSeconds(1), reasons: Vec::new(), deal: Some(job.terms.deal()) };
        let choice = Choice { job: job.id, work, claim: intent("claim:1", 1) };
        !store.choose(&[choice], 1).await.unwrap().is_empty()
    };
    let is_chosen = async || store.job(JobId(1)).await.unwrap().expect("posted").chosen;
    // Both were chosen, the first before the second: with the postings both choices are gone.
    assert!(choose(&turn(1, TERMS).await).await);
    store.free(&[JobId(1)]).await.unwrap();
    assert!(choose(&turn(2, OTHER_TERMS).await).await);
    store.rewind(first.0.block.number).await.unwrap();
    store.withdraw(JobId(1)).await.unwrap();
    for (salt, order) in [(3, TERMS), (4, OTHER_TERMS)] {
        assert!(!turn(salt, order).await.chosen, "chain {salt}");
    }
    // The newest choice is the one whose claim is queued.
    assert!(choose(&turn(5, TERMS).await).await);
    turn(6, OTHER_TERMS).await;
    assert_eq!(store.withdraw_queued(UnixSeconds(u64::MAX)).await.unwrap(), [JobId(1)]);
    let newest = store.timeline(JobId(1)).await.unwrap().entries.into_iter().rev().find_map(|entry| match entry {
        Entry::Work { work: Work::Withdrawn { deal, .. }, .. } => Some(deal),
        _ => None,
    });
    assert_eq!(newest, Some(Some(terms(JobId(1)).deal())));

    // Both are given up, and one is taken up again.
    for (salt, order) in [(7, TERMS), (8, OTHER_TERMS)] {
        let job = turn(salt, order).await;
        store.lease(Owed::to(&job, Duty::Infer), 3600).await.unwrap();
        store.release(Owed::to(&job, Duty::Infer), Some("no disk")).await.unwrap();
        store.abandon(&job, "no disk").await.unwrap();
    }
    let other = turn(9, OTHER_TERMS).await;
    let ours = turn(10, TERMS).await;
    assert_eq!((store.failing(&ours).await.unwrap().len(), store.failing(&other).await.unwrap().len()), (0, 1));
    store.retry(&ours).await.unwrap();
    assert_eq!(store.failing(&other).await.unwrap().len(), 1, "its attempts count still");
    assert!(!is_chosen().await);
    assert_eq!(store.job(JobId(1)).await.unwrap().expect("posted").abandoned, None);
    assert!(turn(11, OTHER_TERMS).await.abandoned.is_some());
}

#[tokio::test]
async fn what_was_refused_before_a_job_was_claimed_counts_for_another_order() {
    let (_file, store) = fresh().await;
    let queue = async |kind: &'static str, key: &str| {
        store.queue(&[Intent { kind, ..intent(key, 1) }]).await.unwrap();
        let open = open_intents(&store).await;
        open.iter().find(|intent| intent.key == key).expect("it is queued").id
    };
    let refused = async |kind: &'static str, key: &str| {
        let id = queue(kind, key).await;
        store.drop_intent(id, "the contract would refuse").await.unwrap();
    };
    refused("claim", "claim:1").await;
    refused("commit", "commit:1:0").await;
    refused("commit", "commit:1:1").await;
    assert_eq!(states(&store, 1, "commit").await, [IntentState::Dropped; 2]);
    queue("commit", "commit:1:2").await;
    refused("claim", "claim:1").await;
    assert_eq!(states(&store, 1, "claim").await, [IntentState::Dropped]);
    assert_eq!(states(&store, 1, "commit").await, [IntentState::Queued], "it is under way, whatever it is for");
    let id = open_intents(&store).await[0].id;
    store.drop_intent(id, "the contract would refuse").await.unwrap();
    assert_eq!(states(&store, 1, "commit").await, []);
    refused("commit", "commit:1:0").await;
    assert_eq!(states(&store, 1, "commit").await, [IntentState::Dropped]);
    assert_eq!(store.transactions(Some(JobId(1))).await.unwrap().len(), 6, "all are history");
}

#[tokio::test]
async fn one_of_many_gets_the_lease() {
    let (_file, store) = fresh().await;
    let tries = (0..8).map(|_| store.lease(owed(1, Duty::Infer), 3600));
    let taken = futures::future::try_join_all(tries).await.unwrap();
    assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 1);
}

#[tokio::test]
async fn a_reopened_file_has_everything() {
    let (file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[[TERMS, 1], [CLAIMED, 1]], &[[COMMITTED, 1], [COMPLETED, 1], [DUE, 1]]]);
    extend(&store, &blocks).await.unwrap();
    assert!(choose(&store, 1, 1).await);
    let id = open_intents(&store).await[0].id;
    sign(&store, id, 3, attempt(1)).await.unwrap();
    let (at, output, transcript) = (UnixSeconds(2), Cid::of(b"o"), Cid::of(b"t"));
    store
        .record(JobId(1), &Work::Inferred { at, commitment: COMMITMENT, output, transcript, order: None })
        .await
        .unwrap();
    let mut kept = peer_receipt("first");
    store.keep_receipt(&kept).await.unwrap();
    kept.peer = "second".into();
    store.keep_receipt(&kept).await.unwrap();
    let (before, intents) = (projection(&store).await, open_intents(&store).await);
    let timeline = store.timeline(JobId(1)).await.unwrap();
    drop(store);

    let store = file.open().await;
    assert_eq!(projection(&store).await, before);
    assert_eq!(open_intents(&store).await, intents);
    assert_eq!(store.reservations().await.unwrap(), [JobId(1)].into());
    assert_eq!(store.timeline(JobId(1)).await.unwrap(), timeline);
    assert_eq!(store.peer_receipts().await.unwrap(), [kept]);
    extend(&store, &chain(blocks.last(), 0, &[&[[RELEASED, 1]]])).await.unwrap();
    assert_eq!(store.live_jobs().await.unwrap(), []);
    assert_eq!(store.unannounced_jobs(US).await.unwrap().len(), 1);
    store.record(JobId(1), &Work::Announced { at, deal: None }).await.unwrap();
    assert_eq!(store.unannounced_jobs(US).await.unwrap(), []);
}

#[tokio::test]
async fn results_of_jobs_that_others_were_paid_for_hide_none_of_ours() {
    let (_file, store) = fresh().await;
    let (others, ours) = (1..=12, 13);
    let of = |says: u8, jobs: std::ops::RangeInclusive<u8>| jobs.map(|job| [says, job]).collect::<Vec<_>>();
    let blocks = [
        of(TERMS, 1..=ours),
        [of(CLAIMED_BY_RIVAL, others.clone()), vec![[CLAIMED, ours]]].concat(),
        vec![[COMMITTED, ours]],
        vec![[COMPLETED, ours]],
        of(RELEASED, ours..=ours),
    ];
    let blocks: Vec<&[Says]> = blocks.iter().map(Vec::as_slice).collect();
    extend(&store, &chain(None, 0, &blocks)).await.unwrap();
    // As if they had been completed by the rival, whose events the made-up logs do not have.
    sqlx::query("UPDATE job SET state = 'released' WHERE id <= 12").execute(&store.writer).await.unwrap();
    for job in 1..=ours {
        let (at, output, transcript) = (UnixSeconds(1), Cid::of(b"o"), Cid::of(b"t"));
        let inferred = Work::Inferred { at, commitment: COMMITMENT, output, transcript, order: None };
        store.record(JobId(job.into()), &inferred).await.unwrap();
    }
    let owed = store.unannounced_jobs(US).await.unwrap();
    assert_eq!(owed.iter().map(|job| job.id.0).collect::<Vec<_>>(), [13]);
}

#[tokio::test]
async fn a_receipt_is_owed_for_the_order_that_has_the_number_now() {
    let (_file, store) = fresh().await;
    let first = after(None, 0, &[]);
    extend(&store, std::slice::from_ref(&first)).await.unwrap();
    let at = UnixSeconds(1);
    for (salt, (order, owed, tell)) in
        [(TERMS, true, false), (OTHER_TERMS, true, true), (TERMS, true, true), (OTHER_TERMS, false, false)]
            .into_iter()
            .enumerate()
    {
        let life: [&[Says]; 4] = [&[[order, 1], [CLAIMED, 1]], &[[COMMITTED, 1]], &[[COMPLETED, 1]], &[[RELEASED, 1]]];
        extend(&store, &chain(Some(&first), salt as u8, &life)).await.unwrap();
        let job = store.job(JobId(1)).await.unwrap().expect("posted");
        if job.inferred.is_none() {
            let (output, transcript, order) = (Cid::of(b"o"), Cid::of(b"t"), Some(job.terms.order()));
            let inferred = Work::Inferred { at, commitment: COMMITMENT, output, transcript, order };
            store.record(job.id, &inferred).await.unwrap();
        }
        assert_eq!(store.unannounced_jobs(US).await.unwrap().len(), usize::from(owed), "chain {salt}");
        if tell {
            store.record(job.id, &Work::Announced { at, deal: Some(job.terms.deal()) }).await.unwrap();
            assert_eq!(store.unannounced_jobs(US).await.unwrap(), [], "chain {salt}");
        }
        if salt < 3 {
            store.rewind(first.0.block.number).await.unwrap();
        }
    }
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM unannounced").fetch_one(&store.readers).await.unwrap();
    assert_eq!(left, 0, "nor is it looked at again");
}

fn peer_receipt(peer: &str) -> PeerReceipt {
    let done =
        crate::market::job::Inferred { commitment: COMMITMENT, output: Cid::of(b"o"), transcript: Cid::of(b"t") };
    let receipt = Receipt::new(CHAIN, MARKETPLACE, RIVAL, JobId(1), &terms(JobId(1)), &done);
    let signed = SignedReceipt { receipt, signature: Bytes::from_static(&[1; 65]) };
    PeerReceipt { signed, peer: peer.into(), agreed: true }
}

#[tokio::test]
async fn the_database_refuses_impossible_rows() {
    let (_file, store) = fresh().await;
    let job = |state: &str, host: &str| {
        format!(
            "INSERT INTO job (id, state, renter, host, model, input, max_tokens, token, payment, deadline, requires_proof,
             posted_block) VALUES (1, '{state}', zeroblob(20), {host}, '', '', 1, zeroblob(20), '1', 1, 1, 1)"
        )
    };
    let intent = |state: &str, nonce: &str| {
        format!(
            "INSERT INTO tx_intent (key, kind, target, data, signer, nonce, state, at)
             VALUES ('k', 'claim', zeroblob(20), x'', zeroblob(20), {nonce}, '{state}', 1)"
        )
    };
    let (host, none) = ("zeroblob(20)", "NULL");
    let held = ["claimed", "committed", "completed", "disputed", "released"];
    let refused = [job("posted", host), job("lost", none), job("claimed", "zeroblob(19)")]
        .into_iter()
        .chain(held.map(|state| job(state, none)))
        .chain(["signed", "mined", "reverted", "cancelled", "foreign"].map(|state| intent(state, none)))
        .chain(["queued", "dropped"].map(|state| intent(state, "1")))
        .chain(["INSERT INTO reservation VALUES ('one', 1)".into()]);
    for statement in refused {
        let done = sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&store.writer).await;
        assert!(done.is_err(), "{statement}");
    }
    let taken = [("posted", none), ("refunded", none), ("refunded", host)].map(|(state, host)| job(state, host));
    for statement in taken.into_iter().chain(held.map(|state| job(state, host))) {
        sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&store.writer).await.expect(&statement);
        sqlx::query("DELETE FROM job").execute(&store.writer).await.unwrap();
    }
}

#[tokio::test]
async fn the_past_is_told_as_a_store_holds_it_that_saw_no_more() {
    let (_file, store) = fresh().await;
    let kept = chain(
        None,
        0,
        &[&[[TERMS, 1]], &[[TERMS, 2], [CLAIMED, 1]], &[[COMMITTED, 1]], &[[COMPLETED, 1], [DUE, 1], [REFUNDED, 2]]],
    );
    extend(&store, &kept).await.unwrap();
    extend(&store, &chain(kept.last(), 1, &[&[[RELEASED, 1]]])).await.unwrap();
    store.rewind(103).await.unwrap();
    extend(&store, &chain(kept.last(), 2, &[&[[TERMS, 3], [NONSENSE, 1]], &[]])).await.unwrap();
    store.set_final(kept[2].0.block).await.unwrap();

    let all = JobFilter { limit: 9, ..JobFilter::default() };
    for (place, number) in (100..=103).enumerate() {
        let (.., head, _, logs, jobs, _) = never_saw_others(&kept[..=place]).await;
        let mut then = store.snapshot(Some(number)).await.unwrap();
        assert_eq!((then.first, then.block, then.journal_head().await.unwrap()), (100, number, head));
        assert_eq!(then.jobs(&all).await.unwrap(), jobs);
        let events = then.events(&EventFilter::default(), None, 99).await.unwrap();
        assert_eq!(events.iter().map(|event| event.row.clone()).collect::<Vec<_>>(), logs);
        assert_eq!(then.coverage().await.unwrap(), [Coverage::of(100, number, Level::Complete, None)]);
        assert_eq!(then.finality().map(|(block, ..)| block), Some(number.min(102)));
        let told = then.timeline(JobId(1)).await.unwrap().entries;
        assert_eq!(told.len(), logs.iter().filter(|log| log.job == Some(JobId(1))).count());
    }
    assert!(store.snapshot(Some(101)).await.unwrap().job(JobId(2)).await.unwrap().is_some());
    assert_eq!(store.snapshot(Some(100)).await.unwrap().job(JobId(2)).await.unwrap(), None);
    let claimed = JobFilter { state: Some("claimed".into()), host: Some(US), limit: 1 };
    assert_eq!(store.snapshot(Some(101)).await.unwrap().jobs(&claimed).await.unwrap()[0].id, JobId(1));

    for block in [99, 106] {
        let error = store.snapshot(Some(block)).await.map(drop).unwrap_err().to_string();
        assert_eq!(error, format!("block {block} is not stored: the database has blocks 100 to 105"));
    }
    assert!(fresh().await.1.snapshot(None).await.map(drop).unwrap_err().is::<NotStored>());
    let proofs: Vec<_> = store.timeline(JobId(1)).await.unwrap().entries.iter().map(proof).collect();
    let (complete, last) = (Some(Proof::Complete), Some(Proof::Final));
    assert_eq!(proofs, [last, last, last, complete, complete, None]);
}

fn proof(entry: &Entry) -> Option<Proof> {
    if let Entry::Event { proof, .. } = entry { *proof } else { panic!("{entry:?}") }
}

#[tokio::test]
async fn our_own_part_of_the_past_is_told_by_the_time_of_the_block() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[[TERMS, 1]], &[], &[], &[], &[[CLAIMED, 1]], &[]]);
    extend(&store, &blocks).await.unwrap();
    store.set_final(blocks[5].0.block).await.unwrap();
    assert_eq!(store.canonical_hash(102).await.unwrap(), None, "its header was dropped");
    let at = |number: u64| UnixSeconds(number * 10);
    for work in [
        Work::Chosen { at: at(101), reasons: vec![], deal: None },
        Work::Abandoned { at: at(103), reason: "".into(), deal: None },
    ] {
        store.record(JobId(1), &work).await.unwrap();
    }
    store.queue(&[intent("claim:1", 1)]).await.unwrap();
    let id = open_intents(&store).await[0].id;
    sign(&store, id, 3, attempt(1)).await.unwrap();
    for statement in [
        "UPDATE tx_intent SET (at, state) = (1010, 'mined')",
        "UPDATE tx_attempt SET signed_at = 1020",
        "INSERT INTO tx_receipt SELECT hash, zeroblob(32), 104, 1, 21000, '7', '0' FROM tx_attempt",
    ] {
        sqlx::query(statement).execute(&store.writer).await.unwrap();
    }
    for (number, works, expected) in [
        (100, 0, None),
        (101, 1, Some(("queued", None, 0, None))),
        (102, 1, Some(("signed", Some(3), 1, None))),
        (103, 2, Some(("signed", Some(3), 1, None))),
        (104, 2, Some(("mined", Some(3), 1, Some(21000)))),
    ] {
        let mut then = store.snapshot(Some(number)).await.unwrap();
        let told = then.timeline(JobId(1)).await.unwrap().entries;
        let work = told.iter().filter(|entry| matches!(entry, Entry::Work { .. })).count();
        let tx = told.iter().find_map(|entry| match entry {
            Entry::Transaction { state, nonce, hashes, gas_used, .. } => {
                Some((state.as_str(), *nonce, hashes.len(), *gas_used))
            }
            _ => None,
        });
        assert_eq!((work, tx), (works, expected), "at block {number}");
    }
}

#[tokio::test]
async fn who_follows_hears_what_comes_and_what_a_reorg_takes_away() {
    let (_file, store) = fresh().await;
    let a = chain(None, 0, &[&[[TERMS, 1]], &[], &[[TERMS, 2], [CLAIMED, 1]]]);
    extend(&store, &a).await.unwrap();
    let mut all = store.follow(EventFilter::default(), 2).await.unwrap();
    let claims = EventFilter { kind: Some("jobclaimed".into()), ..EventFilter::default() };
    let mut claims = store.follow(claims, 20).await.unwrap();
    assert_eq!(heard(&mut all).await, ["102 JobTerms 2", "102 JobClaimed 1"]);
    assert_eq!(heard(&mut claims).await, ["102 JobClaimed 1"]);

    let b = chain(a.last(), 0, &[&[], &[[CLAIMED, 2]], &[[TERMS, 3]]]);
    extend(&store, &b).await.unwrap();
    assert_eq!(heard(&mut all).await, ["104 JobClaimed 2", "105 JobTerms 3"]);
    assert_eq!(heard(&mut claims).await, ["104 JobClaimed 2"]);

    // A reorg that takes nothing a reader of claims was told is none for it.
    store.rewind(104).await.unwrap();
    let c = chain(b.get(1), 1, &[&[[TERMS, 4]], &[[CLAIMED, 4]]]);
    extend(&store, &c).await.unwrap();
    assert_eq!(heard(&mut claims).await, ["106 JobClaimed 4"]);
    assert_eq!(heard(&mut all).await, ["reorg 104", "105 JobTerms 4", "106 JobClaimed 4"]);

    // What comes instead may lie in blocks that held nothing.
    store.rewind(102).await.unwrap();
    extend(&store, &chain(a.last(), 1, &[&[[CLAIMED_BY_RIVAL, 2]], &[]])).await.unwrap();
    for follower in [&mut all, &mut claims] {
        assert_eq!(heard(follower).await, ["reorg 102", "103 JobClaimed 2"]);
    }
    store.rewind(100).await.unwrap();
    assert_eq!(heard(&mut claims).await, ["reorg 101"]);
    extend(&store, &chain(a.first(), 1, &[&[[CLAIMED, 1]]])).await.unwrap();
    assert_eq!(heard(&mut claims).await, ["101 JobClaimed 1"]);
    assert_eq!(heard(&mut all).await, ["reorg 100", "101 JobClaimed 1"]);
}

async fn heard(follower: &mut Follower) -> Vec<String> {
    let say = |news: &News| match news {
        News::Reorg { back_to } => format!("reorg {back_to}"),
        News::Event(event) => {
            let LogRow { log, kind, job, .. } = &event.row;
            format!("{} {} {}", log.block.number, kind.as_deref().unwrap_or("?"), job.map_or(0, |job| job.0))
        }
    };
    follower.next().await.unwrap().iter().map(say).collect()
}

#[tokio::test]
async fn sql_reads_and_nothing_else() {
    let (file, store) = fresh().await;
    extend(&store, &chain(None, 0, &[&[[TERMS, 1]], &[[CLAIMED, 1]]])).await.unwrap();
    let path = file.0.path().join("fabstir.sqlite");
    let ask = async |text: &str| select(&path, text, 2, Duration::from_secs(30)).await;
    let answer =
        ask("-- with a comment;\nSELECT kind, log_index, NULL AS x, topics, 1.5 FROM log ORDER BY 1;").await.unwrap();
    assert_eq!((&answer.columns[..3], answer.cut), (&["kind", "log_index", "x"].map(String::from)[..], false));
    let first = serde_json::to_string(&answer.rows[0]).unwrap();
    assert_eq!(first, format!("[\"JobClaimed\",0,null,\"0x{}\",1.5]", "01".repeat(32)));
    assert!(ask("VALUES (';'), (2), ('a''b')").await.unwrap().cut);
    assert_eq!(ask("SELECT 1 WHERE 0").await.unwrap().columns, ["1"]);

    let other = file.0.path().join("other.sqlite");
    let attach = format!("ATTACH '{}' AS other", other.display());
    let vacuum = format!("VACUUM INTO '{}'", other.display());
    let refused = [
        ("DELETE FROM log", "DELETE is refused"),
        ("with x as (select 1) DELETE FROM log", "the statement writes"),
        ("/* */ PRAGMA query_only = 0", "PRAGMA is refused"),
        (&attach, "ATTACH is refused"),
        (&vacuum, "VACUUM is refused"),
        ("(SELECT 1)", "( is refused"),
        ("SELECT 1; DELETE FROM log", "more than one"),
        ("SELECT ']' AS [;]; -- ;\n;x", "more than one"),
        (" ; ", "no statement"),
        ("SELECT nowhere", "no such column"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT writefile('x', 'y')", "no such function"),
    ];
    for (text, says) in refused {
        let error = format!("{:#}", ask(text).await.expect_err(text));
        assert!(error.contains(says), "{text}: {error}");
    }
    assert!(ask(&format!("EXPLAIN {attach}")).await.is_ok() && !other.exists());
    let endless = "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let error = select(&path, endless, 1, Duration::ZERO).await.unwrap_err().to_string();
    assert_eq!(error, "it took longer than 0 s: stopped");
    assert_eq!(store.journal_head().await.unwrap().1, 2);

    let schema = schema(&path).await.unwrap();
    for said in [
        "-- The journal: every log",
        "CREATE TABLE \"log\"",
        "CREATE VIEW event",
        "-- The newest block the chain called safe",
    ] {
        assert!(schema.contains(said), "{said}: {schema}");
    }
}

/// One step of a chain that moves.
#[derive(Debug, Clone)]
enum Step {
    /// Blocks, each with logs; a log names a job and asks for an event, of which the next possible one is taken.
    Extend(u8, Vec<Vec<Says>>),
    /// Blocks to drop.
    Rewind(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let log = (0..KINDS, 1..4u8).prop_map(|(kind, job)| [kind, job]);
    let blocks = prop::collection::vec(prop::collection::vec(log, 0..4), 1..4);
    prop_oneof![
        2 => (0..2u8, blocks).prop_map(|(salt, blocks)| Step::Extend(salt, blocks)),
        1 => (1..6usize).prop_map(Step::Rewind),
    ]
}

/// Returns the first event from `wish` on that may follow what the blocks say of its job.
fn possible(blocks: &[Block], said: &[Says], wish: Says) -> Says {
    let mut facts: Vec<Fact> = Vec::new();
    let so_far = after(blocks.last(), 0, said);
    for log in blocks.iter().chain([&so_far]).flat_map(|block| &block.1).filter(|log| log.data[1] == wish[1]) {
        facts.push(Fact::Chain { event: read(log).expect("we wrote it"), block: log.block });
    }
    let may_follow = |says: &Says| {
        let log = after(Some(&so_far), 0, &[*says]).1.remove(0);
        let next = Fact::Chain { event: read(&log).expect("we wrote it"), block: log.block };
        let all: Vec<Fact> = facts.iter().cloned().chain([next]).collect();
        // Terms come first on the contract; without them the fold does not look at the rest.
        (says[0] == TERMS || facts.iter().any(|fact| matches!(fact, Fact::Chain { event: Event::JobTerms { .. }, .. })))
            && Job::fold(JobId(wish[1].into()), &all).is_ok()
    };
    (0..KINDS).map(|k| [(wish[0] + k) % KINDS, wish[1]]).find(may_follow).expect("a note may always follow")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn only_the_canonical_chain_counts(steps in prop::collection::vec(step(), 1..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (_file, store) = fresh().await;
            let mut canonical = chain(None, 0, &[&[[TERMS, 1]]]);
            extend(&store, &canonical).await.unwrap();
            for step in steps {
                match step {
                    Step::Extend(salt, wishes) => {
                        let known = canonical.len();
                        for wishes in wishes {
                            let mut said = Vec::new();
                            for wish in wishes {
                                said.push(possible(&canonical, &said, wish));
                            }
                            canonical.push(after(canonical.last(), salt, &said));
                        }
                        extend(&store, &canonical[known..]).await.unwrap();
                    }
                    Step::Rewind(blocks) => {
                        canonical.truncate(canonical.len().saturating_sub(blocks).max(1));
                        store.rewind(canonical.last().unwrap().0.block.number).await.unwrap();
                    }
                }
            }
            assert_eq!(projection(&store).await, never_saw_others(&canonical).await);
        });
    }
}

#[tokio::test]
async fn a_hold_keeps_its_first_reason_and_only_resuming_lifts_all() {
    let (file, store) = fresh().await;
    assert!(store.hold(HoldKind::Paused, "dinner").await.unwrap());
    // A command beside the node has a handle of its own.
    let beside = file.open().await;
    assert!(!beside.hold(HoldKind::Paused, "another").await.unwrap(), "held already");
    assert!(beside.hold(HoldKind::Breaker, "5 failures").await.unwrap());
    let told: Vec<String> = store.holds().await.unwrap().iter().map(ToString::to_string).collect();
    assert!(
        told.contains(&"paused: dinner".into()) && told.contains(&"the breaker is open: 5 failures".into()),
        "{told:?}"
    );
    store.told(HoldKind::Breaker).await.unwrap();
    let held = beside.holds().await.unwrap();
    assert_eq!(held.iter().filter(|hold| hold.told).map(|hold| hold.kind).collect::<Vec<_>>(), [HoldKind::Breaker]);
    assert!(store.lift(HoldKind::Paused).await.unwrap());
    assert!(!store.lift(HoldKind::Draining).await.unwrap());
    assert_eq!(beside.resume().await.unwrap().len(), 1);
    assert_eq!(store.holds().await.unwrap(), []);
    assert_eq!(store.resume().await.unwrap(), [], "nothing was held");
}

#[tokio::test]
async fn an_order_is_noted_once_and_only_where_it_applies() {
    let (_file, store) = fresh().await;
    for key in ["a", "b", "c"] {
        store.queue(&[intent(key, 1)]).await.unwrap();
    }
    let ids: Vec<i64> = open_intents(&store).await.iter().map(|intent| intent.id).collect();
    let [queued, signed, dropped] = ids[..] else { panic!("three, got {ids:?}") };
    sign(&store, signed, 0, attempt(1)).await.unwrap();
    store.drop_intent(dropped, "refused").await.unwrap();
    let orders = [
        (signed, OrderKind::Bump, Ordered::Noted),
        (signed, OrderKind::Bump, Ordered::Noted),
        (signed, OrderKind::Rebroadcast, Ordered::Noted),
        (queued, OrderKind::Cancel, Ordered::Noted),
        (queued, OrderKind::Bump, Ordered::Unfit("queued".into())),
        (dropped, OrderKind::Cancel, Ordered::Unfit("dropped".into())),
        (99, OrderKind::Cancel, Ordered::Unknown),
    ];
    for (intent, what, expected) in orders {
        assert_eq!(store.order_tx(intent, what).await.unwrap(), expected, "{what:?} of {intent}");
    }
    let waiting = async || {
        let mut orders: Vec<_> = store.tx_orders().await.unwrap().iter().map(|it| (it.intent, it.what)).collect();
        orders.sort_unstable();
        orders
    };
    let all = [(queued, OrderKind::Cancel), (signed, OrderKind::Bump), (signed, OrderKind::Rebroadcast)];
    let mut expected = all.to_vec();
    expected.sort_unstable();
    assert_eq!(waiting().await, expected);
    store.taken_tx_order(signed, OrderKind::Bump).await.unwrap();
    assert_eq!(waiting().await.len(), 2);
}

#[tokio::test]
async fn a_job_that_is_retried_starts_over_and_keeps_its_history() {
    let (_file, store) = fresh().await;
    extend(&store, &chain(None, 0, &[&[[TERMS, 1]]])).await.unwrap();
    let choose = async |key: &str| {
        let choice = Choice { job: JobId(1), work: chosen(), claim: intent(key, 1) };
        !store.choose(&[choice], 1).await.unwrap().is_empty()
    };
    assert!(choose("claim:1").await);
    let id = open_intents(&store).await[0].id;
    store.drop_intent(id, "refused").await.unwrap();
    let job = store.job(JobId(1)).await.unwrap().expect("posted");
    store.abandon(&job, "the disk is full").await.unwrap();
    store.lease(owed(1, Duty::Infer), 3600).await.unwrap();
    store.release(owed(1, Duty::Infer), Some("no model")).await.unwrap();
    assert_eq!(store.failing(&job).await.unwrap(), [("infer".into(), "no model".into())]);
    let next = async || store.job(JobId(1)).await.unwrap().expect("posted").next(US, UnixSeconds(0));
    assert_eq!(next().await, Next::Done(crate::market::job::Outcome::Abandoned));
    assert_eq!(
        store.job(JobId(1)).await.unwrap().unwrap().abandoned.unwrap(),
        "the operator gave it up: the disk is full"
    );
    store.retry(&job).await.unwrap();
    assert_eq!(next().await, Next::Do(Duty::Consider));
    assert_eq!(states(&store, 1, "claim").await, []);
    assert_eq!(store.failing(&job).await.unwrap(), []);
    assert!(store.lease(owed(1, Duty::Infer), 3600).await.unwrap(), "no back-off");
    assert!(choose("claim:1").await, "under the same key");
    assert_eq!(states(&store, 1, "claim").await, [IntentState::Queued]);
    assert_eq!(store.transactions(Some(JobId(1))).await.unwrap().len(), 2, "the first is history");
    let mut wrong = Vec::new();
    store.check(&mut |what| wrong.push(what)).await.unwrap();
    assert_eq!(wrong, Vec::<String>::new());
}

/// Signs the one open intent of `kind` and settles it in `block`.
async fn mine(store: &Store, key: &str, job: u64, kind: &'static str, block: BlockRef, success: bool) {
    store.queue(&[Intent { kind, ..intent(key, job) }]).await.unwrap();
    let id = open_intents(store).await[0].id;
    let nonce = store.ready(US, 100, true).await.unwrap().next_nonce;
    let bytes = attempt(nonce as u8 + 1);
    sign(store, id, nonce, bytes.clone()).await.unwrap();
    let (gas_price, l1_fee) = (U256::from(7), U256::from(1));
    let outcome = TxOutcome { hash: bytes.hash, block, success, gas_used: 10, gas_price, l1_fee };
    assert_eq!(store.settle(&[outcome], &[]).await.unwrap(), 1);
}

#[tokio::test]
async fn the_breaker_is_told_what_went_wrong_since_the_operator_resumed() {
    use crate::market::breaker::Fault;
    let (_file, store) = fresh().await;
    let blocks = chain(
        None,
        0,
        &[
            &[[TERMS, 1], [TERMS, 2], [TERMS, 3], [TERMS, 4], [TERMS, 5]],
            &[
                [CLAIMED, 1],
                [CLAIMED_BY_RIVAL, 2],
                [CLAIMED, 3],
                [CLAIMED, 4],
                [COMMITTED, 4],
                [COMPLETED, 4],
                [RELEASED, 4],
            ],
            &[[REFUNDED, 1]],
            &[],
        ],
    );
    extend(&store, &blocks).await.unwrap();
    let block = |place: usize| blocks[place].0.block;
    mine(&store, "claim:1", 1, "claim", block(1), true).await;
    mine(&store, "claim:2", 2, "claim", block(1), false).await;
    mine(&store, "claim:3", 3, "claim", block(1), true).await;
    mine(&store, "claim:5", 5, "claim", block(2), false).await;
    mine(&store, "commit:3", 3, "commit", block(2), false).await;
    let at = store.time().await.unwrap();
    for (job, reason) in [(2, "the claim was refused"), (3, "the model failed"), (4, "the operator gave it up: tired")]
    {
        store.record(JobId(job), &Work::Abandoned { at, reason: reason.into(), deal: None }).await.unwrap();
    }
    let since = UnixSeconds(0);
    let history = store.breaker_history(US, since, 300, 10).await.unwrap();
    let mut found: Vec<_> = history.failures.iter().map(|it| (it.job.expect("a job").0, it.fault)).collect();
    found.sort_unstable();
    // Of job 2 the race was lost; nobody has job 5, so its claim was refused for another reason.
    let expected = [(1, Fault::Refunded), (3, Fault::Abandoned), (3, Fault::Reverted), (5, Fault::Reverted)];
    assert_eq!(found, expected);
    assert_eq!(history.gas_wei, U256::from(5 * 71));
    let real: Vec<U256> = history.ended.iter().map(|ended| ended.real).collect();
    assert_eq!(real, [U256::ZERO, U256::from(97)], "job 4 was paid, and then job 1 was not");

    // A job of ours that we gave back, and another host has.
    let reopened = after(blocks.last(), 0, &[[TERMS, 7], [CLAIMED_BY_RIVAL, 7]]);
    extend(&store, std::slice::from_ref(&reopened)).await.unwrap();
    mine(&store, "claim:7", 7, "claim", reopened.0.block, true).await;
    store.record(JobId(7), &Work::Abandoned { at, reason: "the model failed".into(), deal: None }).await.unwrap();
    let history = store.breaker_history(US, since, 300, 10).await.unwrap();
    assert_eq!(history.ended.iter().map(|ended| ended.real).collect::<Vec<_>>(), [0, 0, 97].map(U256::from));
    assert!(history.failures.iter().any(|it| (it.job, it.fault) == (Some(JobId(7)), Fault::Abandoned)));
    let now = store.time().await.unwrap();
    sqlx::query("UPDATE job SET deadline = ? WHERE id = 3").bind(now.0 as i64).execute(&store.writer).await.unwrap();
    let history = store.breaker_history(US, since, 300, 10).await.unwrap();
    let expired = crate::market::breaker::Failure { fault: Fault::Expired, job: Some(JobId(3)), at: now };
    assert!(history.failures.contains(&expired), "{history:?}");
    assert_eq!(history.ended.len(), 4);
    assert!(!store.breaker_history(US, now, 300, 10).await.unwrap().failures.contains(&expired), "too long ago");

    store.resume().await.unwrap();
    let history = store.breaker_history(US, since, 300, 10).await.unwrap();
    assert_eq!(history, crate::market::breaker::History::default(), "what was before counts no more");
    let again = after(Some(&reopened), 0, &[[TERMS, 6]]);
    extend(&store, std::slice::from_ref(&again)).await.unwrap();
    mine(&store, "complete:3", 3, "complete", again.0.block, false).await;
    let history = store.breaker_history(US, since, 300, 10).await.unwrap();
    assert_eq!(history.failures.iter().map(|it| it.fault).collect::<Vec<_>>(), [Fault::Reverted]);
    assert_eq!(history.gas_wei, U256::from(71));
    assert_eq!(store.breaker_history(RIVAL, since, 300, 10).await.unwrap().gas_wei, U256::ZERO, "not its gas");
}

#[tokio::test]
async fn a_failure_counts_until_the_job_is_taken_up_again_for_the_order_that_failed() {
    let (_file, store) = fresh().await;
    let first = after(None, 0, &[]);
    extend(&store, std::slice::from_ref(&first)).await.unwrap();
    let turn = async |salt: u8, order: u8| turned(&store, &first, salt, &[[order, 1], [CLAIMED, 1]]).await;
    let failures = async || store.breaker_history(US, UnixSeconds(0), 300, 10).await.unwrap().failures.len();
    for (salt, order) in [(1, TERMS), (2, OTHER_TERMS)] {
        let (at, deal) = (store.time().await.unwrap(), Some(turn(salt, order).await.terms.deal()));
        store.record(JobId(1), &Work::Abandoned { at, reason: "the model failed".into(), deal }).await.unwrap();
    }
    assert_eq!(failures().await, 2);
    store.retry(&turn(3, TERMS).await).await.unwrap();
    assert_eq!(failures().await, 1, "the other failed here all the same");
    store.retry(&turn(4, OTHER_TERMS).await).await.unwrap();
    assert_eq!(failures().await, 0);
}

#[tokio::test]
async fn a_race_that_was_lost_stays_lost_when_the_winner_gives_the_job_back() {
    use crate::market::breaker::Fault;
    use crate::market::ledger::{By, Fate, Ledger};
    let (_file, store) = fresh().await;
    let won: &[Says] = &[[CLAIMED_BY_RIVAL, 1], [CLAIMED, 2], [COMMITTED, 2], [COMPLETED, 2]];
    let given_back: &[Says] = &[[REOPENED, 1], [RELEASED, 2], [CLAIMED_BY_RIVAL, 3]];
    let blocks = chain(None, 0, &[&[[TERMS, 1], [TERMS, 2], [TERMS, 3]], won, given_back, &[]]);
    extend(&store, &blocks).await.unwrap();
    let block = |place: usize| blocks[place].0.block;
    mine(&store, "claim:1", 1, "claim", block(1), false).await;
    mine(&store, "release:2", 2, "release", block(2), false).await;
    // Of what came before a rival, or after it gave the job back, it is not the cause.
    mine(&store, "claim:3", 3, "claim", block(1), false).await;
    mine(&store, "claim:1:again", 1, "claim", block(3), false).await;
    let failures = async || {
        let history = store.breaker_history(US, UnixSeconds(0), 300, 10).await.unwrap();
        history.failures.iter().map(|it| (it.job.expect("a job").0, it.fault, it.at.0)).collect::<Vec<_>>()
    };
    assert_eq!(failures().await, [(3, Fault::Reverted, 1010), (1, Fault::Reverted, 1030)]);
    let (jobs, spent) = (store.accounts(US).await.unwrap(), store.spent(US).await.unwrap());
    let ledger = Ledger::of(US, UnixSeconds(0), &jobs, &spent, By::Job);
    let claims = &ledger.kinds["claim"];
    assert_eq!([Fate::LostRace, Fate::Reverted].map(|fate| claims[&fate].transactions), [1, 2]);
    store.rewind(block(0).number).await.unwrap();
    extend(&store, &[after(blocks.first(), 1, &[])]).await.unwrap();
    assert_eq!(failures().await, [], "nothing of it happened");
}

#[tokio::test]
async fn a_job_that_the_arbiter_refunds_after_its_deadline_is_a_failure_of_that_day() {
    use crate::market::breaker::{Failure, Fault};
    let (_file, store) = fresh().await;
    let done: &[Says] = &[[CLAIMED, 1], [COMMITTED, 1], [COMPLETED, 1], [CLAIMED, 2]];
    extend(&store, &chain(None, 0, &[&[[TERMS, 1], [TERMS, 2]], done, &[], &[[REFUNDED, 1], [REFUNDED, 2]]]))
        .await
        .unwrap();
    // Blocks are ten seconds apart, the last is of second 1030.
    sqlx::query("UPDATE job SET deadline = 1015").execute(&store.writer).await.unwrap();
    let failures = async |since| store.breaker_history(US, UnixSeconds(since), 300, 10).await.unwrap().failures;
    let failed = |job, fault, at| Failure { fault, job: Some(JobId(job)), at: UnixSeconds(at) };
    let refunded = failed(1, Fault::Refunded, 1030);
    assert_eq!(failures(1020).await, [refunded], "nobody completed the other, which ended at its deadline");
    assert_eq!(failures(1010).await, [refunded, failed(2, Fault::Expired, 1015)]);
    assert_eq!(failures(1030).await, []);
    store.resume().await.unwrap();
    assert_eq!(failures(1010).await, [], "the operator has seen it");
}

#[tokio::test]
async fn the_jobs_that_ended_last_are_not_those_of_the_latest_deadlines() {
    let (_file, store) = fresh().await;
    let paid: &[Says] = &[[CLAIMED, 1], [COMMITTED, 1], [COMPLETED, 1], [RELEASED, 1], [CLAIMED, 2], [CLAIMED, 3]];
    let blocks = chain(None, 0, &[&[[TERMS, 1], [TERMS, 2], [TERMS, 3]], paid, &[], &[[REFUNDED, 2]]]);
    extend(&store, &blocks).await.unwrap();
    sqlx::query("UPDATE job SET deadline = 1020 WHERE id <> 1").execute(&store.writer).await.unwrap();
    let brought = async |since, jobs_max| {
        let history = store.breaker_history(US, UnixSeconds(since), 300, jobs_max).await.unwrap();
        history.ended.iter().map(|ended| u64::try_from(ended.real).expect("small")).collect::<Vec<_>>()
    };
    // Job 1 was paid long before its deadline, then job 3 met its own, then job 2 was refunded.
    assert_eq!(brought(0, 10).await, [0, 0, 97]);
    assert_eq!(brought(0, 1).await, [0], "the last one");
    mine(&store, "claim:3", 3, "claim", blocks[1].0.block, true).await;
    assert_eq!(brought(1030, 1).await, [0], "also where it ended long ago");
}

#[tokio::test]
async fn the_ledger_has_every_mined_transaction_and_what_the_escrow_paid() {
    use crate::market::ledger::{By, Fate, Ledger, Movement, Payment, Why};
    let (_file, store) = fresh().await;
    let paid = [[TERMS, 1], [CLAIMED, 1], [COMMITTED, 1], [COMPLETED, 1], [RELEASED, 1]];
    let blocks = chain(None, 0, &[&paid, &[[TERMS, 2], [CLAIMED_BY_RIVAL, 2]]]);
    extend(&store, &blocks).await.unwrap();
    mine(&store, "claim:1", 1, "claim", blocks[0].0.block, true).await;
    mine(&store, "claim:2", 2, "claim", blocks[1].0.block, false).await;
    store.queue(&[intent("claim:9", 1)]).await.unwrap();
    let id = open_intents(&store).await[0].id;
    sign(&store, id, 2, attempt(9)).await.unwrap();
    let hashes = [1, 9, 77].map(B256::repeat_byte);
    assert_eq!(store.signed_here(&hashes).await.unwrap(), hashes[..2].iter().copied().collect(), "settled or not");
    let (jobs, spent) = (store.accounts(US).await.unwrap(), store.spent(US).await.unwrap());
    assert_eq!(jobs.iter().map(|job| job.id.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        spent.iter().map(|tx| (tx.nonce, tx.fee_wei)).collect::<Vec<_>>(),
        [(0, U256::from(71)), (1, U256::from(71))]
    );
    let ledger = Ledger::of(US, UnixSeconds(0), &jobs, &spent, By::Job);
    assert_eq!(ledger.total.gas[&Fate::LostRace].wei, U256::from(71));
    assert_eq!(ledger.total.gas[&Fate::Useful].wei, U256::from(71));
    let movement = Movement { block: blocks[0].0.block.number, why: Why::Income, amount: U256::from(97) };
    let income = Payment { job: JobId(1), token: Address::ZERO, tx: blocks[0].1[4].tx, movement };
    assert_eq!(store.payments(US).await.unwrap(), [income]);
    let renter = terms(JobId(2)).renter;
    let posted = Movement { block: blocks[1].0.block.number, why: Why::Posted, amount: U256::MAX };
    let of_renter = Payment { job: JobId(2), token: Address::ZERO, tx: blocks[1].1[0].tx, movement: posted };
    assert_eq!(store.payments(renter).await.unwrap(), [of_renter]);
    store.rewind(blocks[0].0.block.number).await.unwrap();
    assert_eq!(store.spent(US).await.unwrap().len(), 1, "what a reorganisation took away was not paid");
    assert_eq!((store.payments(US).await.unwrap(), store.payments(renter).await.unwrap()), (vec![income], vec![]));
}

#[tokio::test]
async fn what_the_escrow_took_is_folded_and_falls_away_with_its_block() {
    let (_file, store) = fresh().await;
    let blocks = chain(None, 0, &[&[[LOCKED, 1], [TERMS, 1], [TERMS, 2]], &[[LOCKED, 2]]]);
    extend(&store, &blocks).await.unwrap();
    let escrowed = async |job| store.job(JobId(job)).await.unwrap().unwrap().escrowed;
    assert_eq!(escrowed(1).await, Some((Address::ZERO, U256::MAX)), "the escrow may speak first");
    assert_eq!(escrowed(2).await, Some((Address::ZERO, U256::MAX)));
    store.rewind(blocks[0].0.block.number).await.unwrap();
    assert_eq!((escrowed(1).await.is_some(), escrowed(2).await), (true, None));
}

#[tokio::test]
async fn the_load_is_what_was_chosen_and_not_freed() {
    let (_file, store) = fresh().await;
    extend(&store, &chain(None, 0, &[&[[TERMS, 1], [TERMS, 2], [TERMS, 3]], &[[CLAIMED, 1]]])).await.unwrap();
    let model = terms(JobId(1)).model;
    let load = async |model: &str, now| store.scene(US, 0, UnixSeconds(now), [model], []).await.unwrap().loads[model];
    assert_eq!(load(&model, 1).await, Load { held: 1, ..Load::default() });
    for job in 1..=3u8 {
        assert!(choose(&store, job.into(), 9).await);
    }
    // Chosen in second 1: within an hour until second 3601.
    let all = Load { slots_taken: 3, queued_tokens: 24, held: 1, pending_claims: 2, chosen_last_hour: 3 };
    assert_eq!(load(&model, 3600).await, all);
    assert_eq!(load(&model, 3601).await, Load { chosen_last_hour: 0, ..all });
    assert_eq!(load("other", 1).await, Load { slots_taken: 0, queued_tokens: 0, ..all });
    let (at, output, transcript) = (UnixSeconds(2), Cid::of(b"o"), Cid::of(b"t"));
    store
        .record(JobId(1), &Work::Inferred { at, commitment: COMMITMENT, output, transcript, order: None })
        .await
        .unwrap();
    store.free(&[JobId(2)]).await.unwrap();
    let left = Load { slots_taken: 2, queued_tokens: 8, held: 1, pending_claims: 1, chosen_last_hour: 3 };
    assert_eq!(load(&model, 1).await, left);
}

#[tokio::test]
async fn races_are_won_by_what_was_mined_and_lost_to_others() {
    let (_file, store) = fresh().await;
    let says: Vec<Says> = (1..=6).map(|job| [TERMS, job]).collect();
    let mut blocks = chain(None, 0, &[&says, &[[CLAIMED, 1], [CLAIMED_BY_RIVAL, 2], [CLAIMED_BY_RIVAL, 3]]]);
    extend(&store, &blocks).await.unwrap();
    let mined_in = blocks.pop().expect("two blocks").0.block;
    for job in 1..=6u8 {
        store.queue(&[intent(&format!("claim:{job}"), job.into())]).await.unwrap();
    }
    let races = async |claims| store.races(US, claims).await.unwrap();
    assert_eq!(races(100).await, Races::default(), "none is decided");
    let open = open_intents(&store).await;
    for (place, success) in [(0, true), (1, false)] {
        let attempt = attempt(place as u8 + 1);
        sign(&store, open[place].id, place as u64, attempt.clone()).await.unwrap();
        let gas_price = U256::from(10 * (place + 1));
        let l1_fee = U256::ZERO;
        let outcome = TxOutcome { hash: attempt.hash, block: mined_in, success, gas_used: 1, gas_price, l1_fee };
        assert_eq!(store.settle(&[outcome], &[]).await.unwrap(), 1);
    }
    // Dropped since a rival has the job, and since nobody wants it any more; two are still open.
    store.drop_intent(open[2].id, "claimed").await.unwrap();
    store.drop_intent(open[3].id, "expired").await.unwrap();
    assert_eq!(races(100).await, Races { won: 1, lost: 2 });
    assert_eq!(races(2).await, Races { won: 0, lost: 1 }, "the newest two of those that ended");
    assert_eq!(store.races(RIVAL, 100).await.unwrap(), Races::default());
    assert_eq!(store.gas_price_paid().await.unwrap(), Some(U256::from(15)));
}

#[tokio::test]
async fn the_past_is_told_by_block_with_who_ever_claimed() {
    let (_file, store) = fresh().await;
    let blocks = chain(
        None,
        0,
        &[&[[TERMS, 1], [TERMS, 2]], &[[CLAIMED_BY_RIVAL, 1], [TERMS, 3]], &[[REFUNDED, 1], [REFUNDED, 2]]],
    );
    extend(&store, &blocks).await.unwrap();
    let first = blocks[0].0.block.number;
    let told = async |from, to| {
        let past = store.past_jobs(from, to).await.unwrap();
        past.iter()
            .map(|past| (past.job.id.0, past.posted_at.0, past.claimed, past.job.state.name()))
            .collect::<Vec<_>>()
    };
    let (one, two) = ((1, first * 10, true, "refunded"), (2, first * 10, false, "refunded"));
    let three = (3, first * 10 + 10, false, "posted");
    assert_eq!(told(0, u64::MAX).await, [one, two, three]);
    assert_eq!(told(first, first).await, [one, two]);
    assert_eq!(told(first + 1, first + 1).await, [three]);
    assert_eq!(told(first + 2, u64::MAX).await, []);
    assert_eq!(store.gas_price_paid().await.unwrap(), None);
}

#[tokio::test]
async fn a_change_of_what_holds_for_a_host_is_told_until_it_was_looked_at() {
    let (_file, store) = fresh().await;
    let mut blocks = chain(None, 0, &[&[[TERMS, 1]], &[[FEE, 0]], &[[TERMS, 2]], &[[RANKED, 0]]]);
    // The host's address in the first indexed word, as the registry and the reputation system log it.
    blocks[3].1[0].topics.push(US.into_word());
    extend(&store, &blocks).await.unwrap();
    let first = blocks[0].0.block.number;
    let scene = async |host, since| store.scene(host, since, UnixSeconds(0), [], []).await.unwrap();
    let changed = async |host, since| scene(host, since).await.changed;
    // A reputation is told whole: nothing is to be asked again.
    let score = async |host, since| scene(host, since).await.score;
    assert_eq!((score(US, first).await, score(US, first + 3).await, score(RIVAL, first).await), (Some(1), None, None));
    assert_eq!(changed(US, first).await, Some(first + 1));
    assert_eq!(changed(RIVAL, first).await, Some(first + 1), "of others only what holds for all");
    assert_eq!(changed(RIVAL, first + 1).await, None);
    assert_eq!(changed(US, u64::MAX).await, None);
    store.rewind(first + 2).await.unwrap();
    assert_eq!(changed(US, first).await, Some(first + 1));
}

#[tokio::test]
async fn a_database_is_replayed_under_two_policies() {
    let (file, model, price) = (File::new(), ModelId([1; 32]), U256::from(1_000_000));
    let decode = move |log: &RawLog| {
        Ok(match read(log)? {
            Event::JobTerms { job, terms } => {
                let (model, input) = (model.to_string(), Cid::of(b"hi").to_string());
                let payment = price * U256::from(job.0);
                Event::JobTerms { job, terms: Terms { model, input, payment, deadline: UnixSeconds(1300), ..terms } }
            }
            Event::EscrowCreated { job, token, .. } => {
                Event::EscrowCreated { job, token, amount: price * U256::from(job.0) }
            }
            other => other,
        })
    };
    let store = file.open_as(CHAIN, MARKETPLACE, Arc::new(decode)).await.unwrap();
    // Ours and paid; a rival's and refunded; nobody's and refunded; nobody's and over its deadline by the last block; without escrow.
    let posted = |job| [[TERMS, job], [LOCKED, job]];
    let blocks = chain(
        None,
        0,
        &[
            &[posted(1), posted(2), posted(3)].concat(),
            &[
                [CLAIMED, 1],
                [CLAIMED_BY_RIVAL, 2],
                [COMMITTED, 1],
                [COMPLETED, 1],
                [RELEASED, 1],
                [REFUNDED, 2],
                [REFUNDED, 3],
            ],
            &[&posted(4)[..], &[[TERMS, 5]]].concat(),
        ],
    );
    extend(&store, &blocks).await.unwrap();
    let policy = |per_1k: u64| Policy {
        host: US,
        models: [(model, Served { max_tokens: 64, slots: 2, queue: 0, context_tokens: 512, speed: None })].into(),
        price_per_1k: [(Address::ZERO, U256::from(per_1k))].into(),
        fee_bps: 0,
        tokens_per_second: 1,
        margin_seconds: 10,
        proves: true,
        gate: crate::market::gate::Gates::default().claim,
        limits: Limits::default(),
    };
    let races = store.races(US, 9).await.unwrap();
    let given = Given { races, gas_price: U256::ZERO, fee_bps: 0, now: UnixSeconds(1300) };
    let past = store.past_jobs(0, u64::MAX).await.unwrap();
    let cheap = replay(&policy(1), &past, &given);
    // Each holds one of two slots for 18 seconds: the third finds none.
    assert_eq!((cheap.judged, cheap.taken), (5, 3), "{cheap:?}");
    assert_eq!((cheap.declined["capacity"], cheap.declined["escrow"]), (1, 1));
    assert_eq!((cheap.paid, cheap.refunded, cheap.unclaimed, cheap.open), (1, 1, 1, 0));
    assert_eq!(cheap.income_wei, price + price * U256::from(4), "of the first, and of the fourth, which nobody took");
    // 8 tokens are asked 2.4 million: the third and the fourth pay that.
    let dear = replay(&policy(300_000_000), &past, &given);
    assert_eq!((dear.taken, dear.declined["price"], dear.unclaimed), (2, 2, 2));
    assert_eq!(dear.income_wei, price * U256::from(3 + 4));
    let early = store.past_jobs(0, blocks[0].0.block.number).await.unwrap();
    assert_eq!(replay(&policy(1), &early, &given).judged, 3);
}

#[tokio::test]
async fn a_nonce_that_nobody_took_is_found() {
    let (_file, store) = fresh().await;
    store.queue(&[intent("a", 1), intent("b", 1), intent("c", 1)]).await.unwrap();
    let ids: Vec<i64> = open_intents(&store).await.iter().map(|intent| intent.id).collect();
    assert_eq!(store.nonce_gaps(US, 3).await.unwrap(), [0; 0], "nothing is signed");
    for (place, nonce) in [(0, 5), (1, 6), (2, 8)] {
        sign(&store, ids[place], nonce, attempt(nonce as u8)).await.unwrap();
    }
    assert_eq!(store.nonce_gaps(US, 3).await.unwrap(), [3, 4, 7]);
    assert_eq!(store.nonce_gaps(US, 5).await.unwrap(), [7]);
    assert_eq!(store.nonce_gaps(US, 9).await.unwrap(), [0; 0]);
    assert_eq!(store.nonce_gaps(RIVAL, 0).await.unwrap(), [0; 0]);
}

#[tokio::test]
async fn live_jobs_are_those_that_a_fresh_look_finds_whatever_happened() {
    let (file, store) = fresh().await;
    let look = async |store: &Store| -> Vec<Job> {
        store.live_jobs().await.unwrap().iter().map(|job| Job::clone(job)).collect()
    };
    // A handle of its own has nothing folded yet.
    let same = async |what: &str| {
        let anew = look(&file.open().await).await;
        assert_eq!(look(&store).await, anew, "{what}");
        anew
    };
    assert_eq!(same("nothing").await, []);
    let blocks = chain(
        None,
        0,
        &[&[[TERMS, 1], [TERMS, 2]], &[[CLAIMED, 1]], &[[COMMITTED, 1]], &[], &[[COMPLETED, 1], [DUE, 1]]],
    );
    for (block, what) in blocks.iter().zip(["posted", "claimed", "committed", "the positions drawn", "completed"]) {
        extend(&store, std::slice::from_ref(block)).await.unwrap();
        let jobs = same(what).await;
        assert_eq!(jobs.len(), 2);
        assert_eq!(jobs[0].beacon.is_some(), ["the positions drawn", "completed"].contains(&what), "{what}");
    }
    assert!(choose(&store, 2, 9).await);
    assert!(same("chosen").await[1].chosen);
    store.record(JobId(2), &Work::Abandoned { at: UnixSeconds(1), reason: "late".into(), deal: None }).await.unwrap();
    same("abandoned").await;
    store.set_doubts(&[(JobId(1), "why".to_owned())].into()).await.unwrap();
    assert!(same("in doubt").await[0].doubt.is_some());
    store.set_doubts(&Default::default()).await.unwrap();
    store.rewind(blocks[1].0.block.number).await.unwrap();
    same("rewound").await;
    // Another process.
    let other = file.open().await;
    other.retry(&other.job(JobId(2)).await.unwrap().expect("posted")).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!same("retried by another").await[1].chosen);
    extend(&store, &chain(Some(&blocks[1]), 1, &[&[[COMMITTED, 1], [COMPLETED, 1], [RELEASED, 1]]])).await.unwrap();
    assert_eq!(same("paid").await.len(), 1);
    let mut last = chain(Some(&blocks[1]), 1, &[&[[COMMITTED, 1], [COMPLETED, 1], [RELEASED, 1]]]).pop();
    let whats: [(&str, &[&[Says]]); 6] = [
        ("several blocks at once", &[&[[TERMS, 3], [TERMS, 4]], &[[CLAIMED, 3], [CLAIMED, 4]], &[[COMMITTED, 3]], &[]]),
        ("drawn and completed in one block", &[&[[COMMITTED, 4]]]),
        ("as above", &[&[[COMPLETED, 4], [DUE, 4]]]),
        ("what contradicts itself", &[&[[COMPLETED, 2]]]),
        ("given back", &[&[[REOPENED, 3], [CLAIMED_BY_RIVAL, 3]]]),
        ("ended", &[&[[RELEASED, 4]]]),
    ];
    for (what, says) in whats {
        let blocks = chain(last.as_ref(), 1, says);
        extend(&store, &blocks).await.unwrap();
        same(what).await;
        last = blocks.into_iter().next_back();
    }
}
