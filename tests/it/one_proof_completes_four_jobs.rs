//! One proof of a circuit for four jobs completes four jobs in one transaction, and nothing but those four; beside it, what
//! each step of a job costs in gas, alone and per job in a batch. `make gas` prints the figures.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alloy::primitives::keccak256;
use alloy::sol_types::SolCall;
use anyhow::{Context, Result, ensure};
use fabstir::chain::call::{Call, Circuit, Order};
use fabstir::chain::{Mined, Signer};
use fabstir::devnet::DEPLOYER;
use fabstir::market::commitment::{Opening, Statement, Tree, tokens_digest};
use fabstir::market::event::{Commitment, Event, Terms};
use fabstir::market::select::{self, Record};
use fabstir::market::types::{Address, B256, Bytes, Cid, JobId, U256, UnixSeconds};
use fabstir::prover::{self, Proof, Prover, Witness};
use serde_json::{Value, json};

use crate::world::{WAIT_MAX, World, python, root, until};

alloy::sol! { function verifyProof(bytes proof, uint256[] instances) external returns (bool); }

const TOKENS: u32 = 9;
const SEED: u32 = 7;
const TEMPERATURE: u32 = 800;
const SPOTS: u32 = 2;
const CANDIDATES: u16 = 8;
const JOBS: usize = 4;
/// The circuit's rows as a power of two: four jobs need 6100.
const LOGROWS: u32 = 13;

#[tokio::test(flavor = "multi_thread")]
async fn one_proof_completes_four_jobs() -> Result<()> {
    let world = World::new().await?;
    let host = world.account("host").await?;
    world.register(&host).await?;
    let renter = world.account("renter").await?;
    let bench = Bench { world, host, renter };
    let single = bench.single().await?;
    let batch = bench.batch().await?;
    let figures = json!({ "single": single, "per_job_of_4": batch });
    for step in ["post", "proof", "complete", "release"] {
        let (alone, of_four) = (figures["single"][step].as_u64(), figures["per_job_of_4"][step].as_u64());
        assert!(of_four.is_some() && of_four < alone, "{step} is no cheaper in a batch: {figures}");
    }
    if let Some(file) = std::env::var_os("GAS_JSON") {
        std::fs::write(file, format!("{figures}\n"))?;
    }
    Ok(())
}

/// A chain with one host and one renter, driven by hand: what a node decides is not looked at here.
struct Bench {
    world: World,
    host: Signer,
    renter: Signer,
}

/// A job whose result is committed.
struct Work {
    job: JobId,
    output: Cid,
    statement: Statement,
    records: Vec<Record>,
    /// The block of the commitment.
    block: u64,
}

impl Bench {
    /// Returns the gas of each step of one job.
    async fn single(&self) -> Result<Value> {
        let contracts = self.world.chain.contracts();
        let posted = self.send(&self.renter, &contracts.post(&self.order())).await?;
        let job = self.posted(&posted)?[0];
        let claimed = self.send(&self.host, &contracts.claim(job, self.terms().deal())).await?;
        let (work, committed) = self.commit(job).await?;
        let keys =
            prover::Config { python: python(), dir: root().join(".fabstir/prover"), concurrency: 1, timeout: WAIT_MAX };
        let prover = Prover::new(keys);
        let circuit = prover.manifest().circuit_id();
        let (statement, openings) = self.open(&work, circuit).await?;
        let proof = prover.prove(&Witness::of(statement.context(), &openings)).await?;
        let verifier = self.world.book.verifier.context("deployed with a verifier")?;
        let verified = self.verification(verifier, &proof).await?;
        let paths: Vec<B256> = openings.into_iter().flat_map(|opening| opening.path).collect();
        let complete = contracts.complete(job, &work.output, prover::completion(circuit, &proof, &paths));
        let completed = self.send(&self.host, &complete).await?;
        let released = self.release(&contracts.release(job)).await?;
        Ok(json!({
            "post": posted.gas_used, "claim": claimed.gas_used, "commit": committed.gas_used, "proof": verified,
            "complete": completed.gas_used, "release": released.gas_used,
        }))
    }

    /// Returns the gas of each step of four jobs, divided by four; claims and commitments are a transaction each.
    async fn batch(&self) -> Result<Value> {
        let contracts = self.world.chain.contracts();
        let order = (self.order(), Some(self.host.address()));
        let posted = self.send(&self.renter, &contracts.post_all(&vec![order; JOBS])).await?;
        let jobs = self.posted(&posted)?;
        ensure!(jobs.len() == JOBS, "{jobs:?} were posted");
        let stranger =
            self.world.chain.refusal(self.renter.address(), &contracts.claim(jobs[0], self.terms().deal())).await?;
        ensure!(stranger.as_ref().is_some_and(|why| why.contains("ReservedFor")), "{stranger:?}");
        let (mut works, mut claims, mut commits) = (Vec::new(), 0, 0);
        for &job in &jobs {
            claims += self.send(&self.host, &contracts.claim(job, self.terms().deal())).await?.gas_used;
            let (work, committed) = self.commit(job).await?;
            commits += committed.gas_used;
            works.push(work);
        }
        let prover = BatchProver::build().await?;
        let (circuit, verifier) = self.register(&prover).await?;
        let (mut contexts, mut openings) = (Vec::new(), Vec::new());
        for work in &works {
            let (statement, opened) = self.open(work, circuit).await?;
            contexts.push(statement.context());
            openings.extend(opened);
        }
        let proof = prover.prove(&contexts, &openings).await?;
        let verified = self.verification(verifier, &proof).await?;
        let paths: Vec<B256> = openings.iter().flat_map(|opening| opening.path.clone()).collect();
        let results: Vec<(JobId, Cid)> = works.iter().map(|work| (work.job, work.output)).collect();
        self.each_wrong_batch_is_refused(circuit, &results, &proof, &paths).await?;
        let complete = contracts.complete_all(&results, prover::completion(circuit, &proof, &paths));
        let completed = self.send(&self.host, &complete).await?;
        let released = self.release(&contracts.release_all(&jobs)).await?;
        let each = |gas: u64| gas / JOBS as u64;
        Ok(json!({
            "post": each(posted.gas_used), "claim": each(claims), "commit": each(commits), "proof": each(verified),
            "complete": each(completed.gas_used), "release": each(released.gas_used),
        }))
    }

    async fn each_wrong_batch_is_refused(
        &self,
        circuit: B256,
        results: &[(JobId, Cid)],
        proof: &Proof,
        paths: &[B256],
    ) -> Result<()> {
        let contracts = self.world.chain.contracts();
        let refused = async |results: &[(JobId, Cid)], proof: &Proof, paths: &[B256], why: &str| {
            let call = contracts.complete_all(results, prover::completion(circuit, proof, paths));
            let said = self.world.chain.refusal(self.host.address(), &call).await?;
            ensure!(said.as_ref().is_some_and(|said| said.contains(why)), "expected {why}, got {said:?}");
            anyhow::Ok(())
        };
        let mut swapped = results.to_vec();
        swapped.swap(0, 3);
        refused(&swapped, proof, paths, "ContextMismatch").await?;
        refused(&results[..3], proof, paths, "JobCountMismatch").await?;
        let mut twice = results.to_vec();
        twice[1] = twice[0];
        refused(&twice, proof, paths, "WrongStatus").await?;
        let (unused, last) = (2, proof.instances.len() - 1);
        for instance in unused..=last {
            let mut bent = proof.clone();
            bent.instances[instance] ^= U256::from(1);
            // The errors come last, two for each record.
            let of_errors = instance > last - 2 * JOBS * SPOTS as usize;
            refused(results, &bent, paths, if of_errors { "RuleViolated" } else { "Mismatch" }).await?;
        }
        for digest in 0..unused {
            let mut bent = proof.clone();
            bent.instances[digest] ^= U256::from(1);
            refused(results, &bent, paths, "ProofRejected").await?;
        }
        let mut bent = proof.clone();
        bent.bytes[100] ^= 1;
        refused(results, &bent, paths, "ProofRejected").await?;
        let mut crossed = paths.to_vec();
        crossed.swap(0, paths.len() - 1);
        refused(results, proof, &crossed, "RootMismatch").await?;
        refused(results, proof, &paths[..paths.len() - 1], "PathCountMismatch").await
    }

    fn order(&self) -> Order {
        let order = self.world.order(Address::ZERO, U256::from(1_000_000), 3600);
        Order { temperature_milli: TEMPERATURE, seed: SEED, ..order }
    }

    fn terms(&self) -> Terms {
        self.order().terms(self.renter.address(), UnixSeconds(0))
    }

    fn posted(&self, mined: &Mined) -> Result<Vec<JobId>> {
        let decode = self.world.chain.decoder();
        let events: Vec<Event> = mined.logs.iter().map(decode).collect::<Result<_>>()?;
        let posted = events.into_iter().filter_map(|event| match event {
            Event::JobTerms { job, .. } => Some(job),
            _ => None,
        });
        Ok(posted.collect())
    }

    async fn send(&self, signer: &Signer, call: &Call) -> Result<Mined> {
        self.world.chain.transact(signer, call, WAIT_MAX).await
    }

    /// Waits until the challenge window is over.
    async fn release(&self, call: &Call) -> Result<Mined> {
        until("the payment is due", || async {
            Ok(self.world.chain.refusal(self.renter.address(), call).await?.is_none())
        })
        .await?;
        self.send(&self.renter, call).await
    }

    /// Commits the host to a transcript of its own making.
    async fn commit(&self, job: JobId) -> Result<(Work, Mined)> {
        let order = self.order();
        let record = |position: u32| {
            let draw = select::draw(SEED, job, position, TEMPERATURE);
            let logits: Vec<f32> = (0..40).map(|id: u32| ((id * 7 + position * 13) % 29) as f32 / 4.0).collect();
            select::select(&logits, TEMPERATURE, draw, CANDIDATES.into())
        };
        let records: Vec<Record> = (0..TOKENS).map(record).collect();
        let output = Cid::of(format!("the output of job {job}").as_bytes());
        let digests: Vec<B256> = records.iter().map(Record::digest).collect();
        let tokens: Vec<u32> = records.iter().map(Record::token).collect();
        let commitment = Commitment {
            root: Tree::of(&digests)?.root(),
            tokens: TOKENS,
            result_hash: output.chain_hash(),
            tokens_digest: tokens_digest(&tokens),
        };
        let committed =
            self.send(&self.host, &self.world.chain.contracts().commit(job, self.terms().order(), &commitment)).await?;
        let statement = Statement {
            chain_id: self.world.chain.id(),
            proof_system: self.world.chain.contracts().proof_system,
            circuit: B256::ZERO,
            job,
            host: self.host.address(),
            model: order.model.to_string(),
            prompt: order.input.to_string(),
            seed: SEED,
            temperature_milli: TEMPERATURE,
            max_tokens: order.max_tokens,
            root: commitment.root,
            tokens: TOKENS,
            tokens_digest: commitment.tokens_digest,
            result: output.to_string(),
        };
        Ok((Work { job, output, statement, records, block: committed.block.number }, committed))
    }

    /// Opens what the block after the commitment draws.
    async fn open(&self, work: &Work, circuit: B256) -> Result<(Statement, Vec<Opening>)> {
        until("the drawing block is buried", || async {
            Ok(self.world.chain.head().await?.block.number > work.block + 1)
        })
        .await?;
        let beacon = self.world.chain.header(work.block + 1).await?.context("the drawing block")?.block.hash;
        let statement = Statement { circuit, ..work.statement.clone() };
        assert_eq!(statement.context(), self.world.chain.context(work.job, circuit).await?);
        let openings = statement.open(beacon, SPOTS, &work.records)?;
        Ok((statement, openings))
    }

    /// Returns the gas of a transaction that does nothing but verify the proof.
    async fn verification(&self, verifier: Address, proof: &Proof) -> Result<u64> {
        let call = verifyProofCall { proof: proof.bytes.clone().into(), instances: proof.instances.clone() };
        let call = Call { to: verifier, data: call.abi_encode().into(), value: U256::ZERO };
        Ok(self.send(&self.host, &call).await?.gas_used)
    }

    /// Deploys the circuit's verifier and has the owner register it.
    async fn register(&self, prover: &BatchProver) -> Result<(B256, Address)> {
        let code = prover.compile().await?;
        let deploy = json!([{ "from": DEPLOYER, "data": code }]);
        let hash = self.world.devnet.rpc("eth_sendTransaction", deploy).await?;
        let receipt = async || self.world.devnet.rpc("eth_getTransactionReceipt", json!([hash])).await;
        until("the verifier is deployed", || async { Ok(!receipt().await?.is_null()) }).await?;
        let verifier: Address = serde_json::from_value(receipt().await?["contractAddress"].clone())?;
        let code: Bytes =
            serde_json::from_value(self.world.devnet.rpc("eth_getCode", json!([verifier, "latest"])).await?)?;
        let circuit = Circuit {
            verifier,
            codehash: keccak256(&code),
            jobs: JOBS as u16,
            spots: SPOTS as u16,
            candidates: CANDIDATES,
            manifest: B256::ZERO,
        };
        let id = keccak256("select-v1/J4S2K8");
        self.world.as_owner(&self.world.chain.contracts().register_circuit(id, circuit)).await?;
        Ok((id, verifier))
    }
}

/// The circuit for four jobs, with keys of its own: nothing but this test uses it, so it has no manifest.
struct BatchProver {
    dir: PathBuf,
}

impl BatchProver {
    async fn build() -> Result<BatchProver> {
        let dir = root().join(".fabstir/prover/J4S2K8");
        if !dir.join("Verifier.sol").exists() {
            std::fs::create_dir_all(&dir)?;
            std::fs::copy(worker("circuit.py"), dir.join("circuit.py"))?;
            let srs = dir.join(format!("kzg{LOGROWS}.srs"));
            let script = format!("import ezkl; ezkl.gen_srs({srs:?}, {LOGROWS})");
            run(Command::new(python()).args(["-I", "-c", &script]), String::new()).await?;
            let build = json!({
                "op": "build", "dir": dir, "jobs": JOBS, "spots": SPOTS, "candidates": CANDIDATES, "logrows": LOGROWS,
            });
            call(build).await?;
        }
        Ok(BatchProver { dir })
    }

    async fn prove(&self, contexts: &[U256], openings: &[Opening]) -> Result<Proof> {
        let scratch = tempfile::tempdir()?;
        let words = |numbers: Vec<U256>| numbers.iter().map(|n| format!("{:x}", B256::from(*n))).collect::<Vec<_>>();
        let draws = openings.iter().map(|opening| U256::from(opening.draw)).collect();
        let records = openings.iter().map(|opening| words(opening.record.elements().collect()));
        let input: Vec<Vec<String>> = [words(contexts.to_vec()), words(draws)].into_iter().chain(records).collect();
        let answer = call(json!({ "op": "prove", "dir": self.dir, "scratch": scratch.path(), "input": input })).await?;
        let bytes: Bytes = serde_json::from_value(answer["proof"].clone())?;
        let instances: Vec<B256> = serde_json::from_value(answer["instances"].clone())?;
        let instances = instances.into_iter().map(|word| U256::from_be_bytes(word.0)).collect();
        Ok(Proof { bytes: bytes.to_vec(), instances })
    }

    /// Returns the verifier's creation code, compiled as `contracts/foundry.toml` says of verifiers.
    async fn compile(&self) -> Result<String> {
        let source = std::fs::read_to_string(self.dir.join("Verifier.sol"))?;
        let input = json!({
            "language": "Solidity", "sources": { "Verifier.sol": { "content": source } },
            "settings": {
                "optimizer": { "enabled": true, "runs": 1 }, "evmVersion": "cancun",
                "metadata": { "bytecodeHash": "none", "appendCBOR": false },
                "outputSelection": { "*": { "Halo2Verifier": ["evm.bytecode.object"] } },
            },
        });
        let solc = root().join("contracts/tools/solc");
        let output: Value =
            serde_json::from_str(&run(Command::new(solc).arg("--standard-json"), input.to_string()).await?)?;
        let code = &output["contracts"]["Verifier.sol"]["Halo2Verifier"]["evm"]["bytecode"]["object"];
        Ok(format!("0x{}", code.as_str().with_context(|| format!("solc: {}", output["errors"]))?))
    }
}

fn worker(file: &str) -> PathBuf {
    Path::new(root()).join("src/prover/select-v1").join(file)
}

async fn call(request: Value) -> Result<Value> {
    let mut command = Command::new(python());
    command.args(["-I", "-B"]).arg(worker("worker.py"));
    let answer: Value = serde_json::from_str(&run(&mut command, request.to_string()).await?)?;
    ensure!(answer["error"].is_null(), "{answer}");
    Ok(answer)
}

async fn run(command: &mut Command, input: String) -> Result<String> {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    let output = tokio::task::spawn_blocking(move || {
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        child.wait_with_output()
    })
    .await??;
    ensure!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
