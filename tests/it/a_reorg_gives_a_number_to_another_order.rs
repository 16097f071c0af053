//! Two renters post, and a reorg mines them the other way round, so that a job's number means another order: what the host signed for
//! the one comes to nothing at the other, which the host judges anew, does and is paid for.

use anyhow::{Context, Result, ensure};
use fabstir::audit;
use fabstir::chain::call::{self, Order};
use fabstir::chain::{Fees, Signer};
use fabstir::content::Content;
use fabstir::market::job::{Job, State};
use fabstir::market::types::{Address, Bytes, Cid, JobId, U256, UnixSeconds};
use fabstir::node::Node;
use serde_json::json;

use crate::world::{QUESTION, Tx, WAIT_MAX, World, nothing_left, transactions, until, until_job};

const JOB: JobId = JobId(1);
const ANSWER: &str = "The capital of France is Paris.";

/// A chain that stands still, a host, and two renters' signed posts.
struct Stage {
    world: World,
    host: Node,
    content: Content,
    /// The whole answer, and two tokens of it in a token; each as ordered and as posted.
    long: (Order, Bytes),
    short: (Order, Bytes),
}

impl Stage {
    async fn new() -> Result<Stage> {
        let world = World::new().await?;
        let (host, config) = world.host("host").await?;
        // As if the renters had delivered it.
        let content = Content::open(&config.content())?;
        content.put(QUESTION.as_bytes())?;
        let [one, two] = [world.account("one").await?, world.account("two").await?];
        let long = world.order(Address::ZERO, U256::from(10_000_001), 3600);
        let long = Order { requires_proof: false, ..long };
        let short = Order { max_tokens: 2, token: world.usd(), payment: U256::from(1_000_003), ..long.clone() };
        let approve = call::approve(world.usd(), world.book.contracts.job_marketplace, short.payment);
        world.chain.transact(&two, &approve, WAIT_MAX).await?;
        world.freeze(false).await?;
        let long = (long.clone(), post(&world, &one, &long).await?);
        let short = (short.clone(), post(&world, &two, &short).await?);
        world.caught_up(&host.store).await?;
        Ok(Stage { world, host, content, long, short })
    }

    /// Mines a block with these bytes. What else waits comes with them.
    async fn mine(&self, raws: &[&Bytes]) -> Result<Vec<bool>> {
        for raw in raws {
            // It may wait there already.
            let _ = self.world.devnet.rpc("eth_sendRawTransaction", json!([raw])).await;
        }
        self.world.mine().await?;
        self.did(raws).await
    }

    /// Takes all blocks from `number` on away and makes that one anew, of these bytes in that order, before the host can take any of
    /// its own back.
    async fn mine_anew(&self, number: u64, raws: &[&Bytes]) -> Result<Vec<bool>> {
        let depth = self.world.chain.head().await?.block.number - number + 1;
        let block: Vec<(&Bytes, u64)> = raws.iter().map(|raw| (*raw, 0)).collect();
        self.world.devnet.rpc("anvil_reorg", json!([depth, block])).await?;
        self.did(raws).await
    }

    /// Returns of each of these bytes, all mined, whether it did what it asks.
    async fn did(&self, raws: &[&Bytes]) -> Result<Vec<bool>> {
        let mut done = Vec::new();
        for hash in raws.iter().map(alloy::primitives::keccak256) {
            let receipt = self.world.devnet.rpc("eth_getTransactionReceipt", json!([hash])).await?;
            ensure!(receipt.is_object(), "{hash} was not mined");
            done.push(receipt["status"] == "0x1");
        }
        Ok(done)
    }

    /// The bytes of the newest transaction of a kind that the host signed for the job.
    async fn signed(&self, kind: &str) -> Result<Bytes> {
        let signed = self.newest(kind).await?;
        let hash = signed.hashes.last().context("signed")?;
        let raw = self.world.devnet.rpc("eth_getRawTransactionByHash", json!([hash])).await?;
        serde_json::from_value(raw).with_context(|| format!("the chain has no {kind}"))
    }

    /// The bytes of all that the host sent for the job, in the order of their nonces.
    async fn all_signed(&self) -> Result<Vec<Bytes>> {
        let mut all = Vec::new();
        for kind in ["claim", "commit", "complete", "fail"] {
            all.extend(transactions(&self.host, JOB, kind).await?.into_iter().filter(|tx| tx.nonce.is_some()));
        }
        all.sort_by_key(|tx| tx.nonce);
        let mut raws = Vec::new();
        for hash in all.iter().flat_map(|tx| &tx.hashes) {
            let raw = self.world.devnet.rpc("eth_getRawTransactionByHash", json!([hash])).await?;
            raws.extend(serde_json::from_value::<Option<Bytes>>(raw)?);
        }
        Ok(raws)
    }

    /// Makes block `number` anew of a post, of these bytes of the host, and of the other post. Returns what of the host's did what it
    /// asks.
    async fn mine_between(&self, number: u64, first: &Bytes, ours: &[Bytes], last: &Bytes) -> Result<Vec<Bytes>> {
        let raws: Vec<&Bytes> = [first].into_iter().chain(ours).chain([last]).collect();
        let mined = self.mine_anew(number, &raws).await?;
        assert_eq!((mined.first(), mined.last()), (Some(&true), Some(&true)), "both are posted");
        Ok(ours.iter().zip(&mined[1..]).filter(|(_, done)| **done).map(|(raw, _)| raw.clone()).collect())
    }

    /// Has the host, which holds the job, give it up, and waits until the chain knows.
    async fn give_up(&self) -> Result<()> {
        let held = |job: &Job| matches!(job.state, State::Claimed { .. } | State::Committed { .. });
        let job = until_job(&self.host, JOB, "ours", held).await?;
        self.host.store.abandon(&job, "no disk").await?;
        until("it is given up on chain", || async {
            self.world.mine().await?;
            Ok(self.newest("fail").await.is_ok_and(|tx| tx.state == "mined"))
        })
        .await
    }

    async fn newest(&self, kind: &str) -> Result<Tx> {
        transactions(&self.host, JOB, kind).await?.pop().with_context(|| format!("no {kind}"))
    }

    /// Waits until the host's newest transaction of a kind waits for a block, and mines one.
    async fn mine_next(&self, kind: &str, count: usize) -> Result<()> {
        until(&format!("{count} of {kind} were signed"), || async {
            Ok(transactions(&self.host, JOB, kind).await?.iter().filter(|tx| tx.nonce.is_some()).count() == count)
        })
        .await?;
        self.world.mine_waiting(1).await
    }

    /// Lets time flow until both jobs are paid, and holds what was handed in against what was ordered.
    async fn ends_well(self, long_first: bool) -> Result<()> {
        self.world.flow();
        let paid = |job: &Job| matches!(job.state, State::Released { .. });
        for number in [JOB, JobId(JOB.0 + 1)] {
            let job = until_job(&self.host, number, "paid", paid).await?;
            let State::Released { output, .. } = &job.state else { unreachable!("paid") };
            let text = self.content.get(&output.parse::<Cid>()?)?.context("the output is kept")?;
            let of_long = job.terms.max_tokens == self.long.0.max_tokens;
            assert_eq!(text == ANSWER.as_bytes(), of_long, "job {number}: {:?}", String::from_utf8_lossy(&text));
            assert!(ANSWER.as_bytes().starts_with(&text) && !text.is_empty());
            assert_eq!(of_long == (number == JOB), long_first);
        }
        nothing_left(&self.host).await?;
        self.world.freeze(true).await?;
        self.world.caught_up(&self.host.store).await?;
        let report = audit::run(&self.host.store, &self.world.chain, |_, _| ()).await?;
        assert_eq!(report.divergences, Vec::<String>::new());
        self.host.stop().await;
        Ok(())
    }
}

/// Signs a post that comes before anything of the host's in a block.
async fn post(world: &World, renter: &Signer, order: &Order) -> Result<Bytes> {
    let Fees { fee_cap, tip_cap } = world.chain.fees().await?;
    let fees = Fees { fee_cap: 8 * fee_cap, tip_cap: 8 * tip_cap.max(1) };
    let nonce = world.chain.nonce(renter.address()).await?;
    Ok(renter.sign(world.chain.id(), nonce, 500_000, fees, &world.chain.contracts().post(order)).await?.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorg_gives_a_number_to_another_order() -> Result<()> {
    let stage = Stage::new().await?;
    let first = stage.world.chain.head().await?.block.number + 1;
    assert_eq!(stage.mine(&[&stage.long.1]).await?, [true]);
    stage.mine_next("claim", 1).await?;
    stage.mine_next("commit", 1).await?;
    until_job(&stage.host, JOB, "committed", |job| matches!(job.state, State::Committed { .. })).await?;
    let (claim, commit) = (stage.signed("claim").await?, stage.signed("commit").await?);

    let mined = stage.mine_anew(first, &[&stage.short.1, &claim, &commit, &stage.long.1]).await?;
    assert_eq!(mined, [true, false, false, true], "what was signed for the one order came to something at the other");
    until_job(&stage.host, JOB, "the other order", |job| job.terms.max_tokens == 2).await?;
    stage.mine_next("claim", 2).await?;
    let job = until_job(&stage.host, JOB, "ours", |job| matches!(job.state, State::Claimed { .. })).await?;
    assert_ne!(job.inferred.map(|inferred| inferred.output), Some(Cid::of(ANSWER.as_bytes())), "the other order's");
    until("both claims have ended", || async {
        let claims = transactions(&stage.host, JOB, "claim").await?;
        Ok(claims.iter().map(|tx| tx.state.as_str()).eq(["reverted", "mined"]))
    })
    .await?;
    stage.ends_well(false).await
}

/// And another reorg turns them back: the claim of the first order holds again, and what was signed for the second, which has later
/// nonces, meets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_goes_to_another_order_and_back() -> Result<()> {
    let stage = Stage::new().await?;
    let first = stage.world.chain.head().await?.block.number + 1;
    assert_eq!(stage.mine(&[&stage.long.1]).await?, [true]);
    stage.mine_next("claim", 1).await?;
    until("the claim is mined", || async { Ok(stage.newest("claim").await?.state == "mined") }).await?;
    let claim = stage.signed("claim").await?;
    assert_eq!(stage.mine_anew(first, &[&stage.short.1, &claim]).await?, [true, false]);
    stage.mine_next("claim", 2).await?;
    until("the result is to be handed in", || async {
        stage.world.mine().await?;
        Ok(stage.newest("complete").await.is_ok_and(|tx| tx.nonce.is_some()))
    })
    .await?;
    let of_short = [stage.signed("claim").await?, stage.signed("commit").await?, stage.signed("complete").await?];

    let done = stage.mine_between(first, &stage.long.1, &stage.all_signed().await?, &stage.short.1).await?;
    assert!(done.contains(&claim) && !of_short.iter().any(|raw| done.contains(raw)), "{done:?}");
    until_job(&stage.host, JOB, "ours", |job| job.terms.max_tokens != 2 && job.host() == stage.host.host).await?;
    stage.ends_well(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_done_whose_number_was_one_that_was_given_up() -> Result<()> {
    let stage = Stage::new().await?;
    let first = stage.world.chain.head().await?.block.number + 1;
    assert_eq!(stage.mine(&[&stage.long.1]).await?, [true]);
    stage.mine_next("claim", 1).await?;
    stage.give_up().await?;

    let done = stage.mine_between(first, &stage.short.1, &stage.all_signed().await?, &stage.long.1).await?;
    assert_eq!(done, Vec::<Bytes>::new(), "what was signed for the one order came to something at the other");
    let job = until_job(&stage.host, JOB, "the other order", |job| job.terms.max_tokens == 2).await?;
    assert_eq!(job.abandoned, None);
    gave_up_once_in_vain(&stage).await?;
    stage.ends_well(false).await
}

/// A reorg turns it back to an order that the host holds by then: what gave the other up, which has a later nonce, meets it.
#[tokio::test(flavor = "multi_thread")]
async fn giving_one_order_up_gives_up_no_other() -> Result<()> {
    let stage = Stage::new().await?;
    let first = stage.world.chain.head().await?.block.number + 1;
    assert_eq!(stage.mine(&[&stage.short.1]).await?, [true]);
    stage.mine_next("claim", 1).await?;
    until("the claim is mined", || async { Ok(stage.newest("claim").await?.state == "mined") }).await?;
    let claim = stage.signed("claim").await?;
    assert_eq!(stage.mine_anew(first, &[&stage.long.1, &claim]).await?, [true, false]);
    stage.mine_next("claim", 2).await?;
    until_job(&stage.host, JOB, "the other order", |job| job.terms.max_tokens != 2 && job.host().is_some()).await?;
    stage.give_up().await?;
    let (ours, given_up) = (stage.all_signed().await?, stage.signed("fail").await?);
    assert_eq!((ours.first(), ours.last()), (Some(&claim), Some(&given_up)), "in this order");

    let done = stage.mine_between(first, &stage.short.1, &ours, &stage.long.1).await?;
    assert!(done.contains(&claim) && !done.contains(&given_up), "{done:?}");
    until_job(&stage.host, JOB, "ours", |job| job.terms.max_tokens == 2 && job.host() == stage.host.host).await?;
    gave_up_once_in_vain(&stage).await?;
    stage.ends_well(false).await
}

/// The job was given up once, for another order.
async fn gave_up_once_in_vain(stage: &Stage) -> Result<()> {
    until("that it is given up came to nothing", || async {
        let given_up = transactions(&stage.host, JOB, "fail").await?;
        Ok(given_up.iter().map(|tx| tx.state.as_str()).eq(["reverted"]))
    })
    .await
}

/// What a claim names is the contract's digest of the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_names_what_the_contract_has() -> Result<()> {
    let world = World::new().await?;
    let renter = world.account("renter").await?;
    let contracts = world.chain.contracts();
    let odd = Order {
        max_tokens: (1 << 20) - 1,
        temperature_milli: 1999,
        seed: u32::MAX - 2,
        ..world.order(Address::ZERO, U256::from(987_654_321_000_000_007_u64), 31)
    };
    let in_token = Order { token: world.usd(), payment: U256::from(7), requires_proof: false, seed: 0, ..odd.clone() };
    let approve = call::approve(world.usd(), contracts.job_marketplace, in_token.payment);
    world.chain.transact(&renter, &approve, WAIT_MAX).await?;
    for (number, order) in [odd, in_token].iter().enumerate() {
        world.chain.transact(&renter, &contracts.post(order), WAIT_MAX).await?;
        let deal = order.terms(renter.address(), UnixSeconds(0)).deal();
        assert_eq!(world.deal(JobId(1 + number as u64)).await?, deal, "{order:?}");
    }
    Ok(())
}
