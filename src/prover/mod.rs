//! Proofs of the decode step, made and checked by EZKL: one short-lived Python process per operation.
//!
//! A proof says that the opened records follow the sampling rule of `market::select` and belong to one context. It says
//! nothing about where the logits came from; a proof is not "verified inference".
//!
//! Never talks to a chain or the network, never keeps a proof, never retries: a pass that fails is run again by whoever
//! asked. The processes get no environment of ours, so no keys, and no network where the system lets us take it away.
//!
//! Source: EZKL, <https://docs.ezkl.xyz>; the circuit is `select-v1/circuit.py`.

mod process;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use alloy::sol_types::SolValue;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::{OnceCell, Semaphore},
};

use crate::market::{
    commitment::{self, Opening},
    poseidon::ORDER,
    select::{DRAW_BITS, Record},
    types::{B256, Bytes, U256},
};
use process::{Limits, Stopped};

const WORKER: &str = include_str!("select-v1/worker.py");
const CIRCUIT: &str = include_str!("select-v1/circuit.py");
const SRS: &[u8] = include_bytes!("select-v1/kzg11.srs");
const REQUIREMENTS: &str = include_str!("select-v1/requirements.txt");
static MANIFEST: LazyLock<Manifest> =
    LazyLock::new(|| serde_json::from_str(include_str!("select-v1/manifest.json")).expect("embedded, and tested"));

/// A process that uses no processor time for this long waits for ever.
const STALL: Duration = Duration::from_secs(30);

/// Where and how to prove.
#[derive(Debug, Clone)]
pub struct Config {
    /// An interpreter that has the packages of `select-v1/requirements.txt`.
    pub python: PathBuf,
    /// Keeps the derived keys, about 20 MB; made when missing. Nodes on one machine may share it.
    pub dir: PathBuf,
    /// Operations at a time, at least 1. Each uses its share of the processors and about 100 MB.
    pub concurrency: usize,
    /// An operation that takes longer is killed. A proof takes about 2 seconds of two processors.
    pub timeout: Duration,
}

/// What is known of the circuit before anything is derived: its shape, and the hashes of what must come out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name and profile; see [`Manifest::circuit_id`].
    pub circuit: String,
    /// The version of EZKL that gives these hashes.
    pub ezkl: String,
    /// Jobs per proof.
    pub jobs: u32,
    /// Opened positions per job.
    pub spots: u32,
    /// Candidates per record.
    pub candidates: u32,
    /// Base-2 logarithm of the circuit's rows.
    pub logrows: u32,
    /// Whether the SRS is our own: then its maker can forge, and the circuit must not guard real money.
    pub test_only: bool,
    /// Address space one operation may take, in MiB.
    pub memory_mb: u64,
    /// By file name, in hex.
    pub sha256: BTreeMap<String, String>,
}

impl Manifest {
    /// Returns the circuit's id on chain: `keccak256` of its name.
    pub fn circuit_id(&self) -> B256 {
        alloy::primitives::keccak256(&self.circuit)
    }
}

/// What is to be proved of one job: the openings a beacon demanded, in order of the spots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// [`commitment::Statement::context`].
    pub context: U256,
    /// One for each record, `0..4096`.
    pub draws: Vec<u16>,
    pub records: Vec<Record>,
}

impl Witness {
    /// Returns the witness of `openings` under `context`.
    pub fn of(context: U256, openings: &[Opening]) -> Self {
        let (draws, records) = openings.iter().map(|opening| (opening.draw, opening.record.clone())).unzip();
        Self { context, draws, records }
    }
}

/// A proof and the numbers it is about, as the verifier contract takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// About 4 kB; two proofs of one witness differ.
    pub bytes: Vec<u8>,
    /// See [`commitment::instances`].
    pub instances: Vec<U256>,
}

/// Why there is no answer; callers branch on what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No proof exists for what was asked: retrying gives the same.
    Refused(String),
    /// The process was killed, ran out of memory or broke: nothing is left behind, and trying again is safe.
    Interrupted(String),
    /// This machine cannot prove until an operator acts: Python, EZKL or the keys are missing or others.
    Environment(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "there is no proof of this: {reason}"),
            Self::Interrupted(reason) => write!(f, "the EZKL process was interrupted: {reason}"),
            Self::Environment(reason) => write!(f, "this machine cannot prove: {reason}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Makes and checks proofs of one circuit.
#[derive(Debug)]
pub struct Prover {
    config: Config,
    manifest: Manifest,
    turns: Semaphore,
    /// Set when the derived keys are known to be the manifest's.
    keys: OnceCell<PathBuf>,
    /// The command words that take the network away, none where that is not allowed.
    no_network: OnceCell<&'static [&'static str]>,
}

impl Prover {
    /// Returns a prover; nothing is run or written yet.
    pub fn new(config: Config) -> Self {
        let turns = Semaphore::new(config.concurrency.max(1));
        Self { config, manifest: MANIFEST.clone(), turns, keys: OnceCell::new(), no_network: OnceCell::new() }
    }

    /// Returns what is known of the circuit.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the version of EZKL that is installed; `fabstir doctor` asks.
    ///
    /// # Errors
    /// [`Failure::Environment`] with the commands that install it if it is missing or another version.
    pub async fn check_environment(&self) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            ezkl: String,
        }
        let Answer { ezkl } = self.call(json!({"op": "version"})).await?;
        let wanted = &self.manifest.ezkl;
        if ezkl != *wanted {
            return Err(self.environment(format!("EZKL is {ezkl}, the circuit needs {wanted}")));
        }
        Ok(ezkl)
    }

    /// Derives the circuit, its keys and its verifier if they are not there yet, and checks them against the manifest.
    ///
    /// Takes a few seconds once; a directory that is damaged is derived again. [`Prover::prove`], [`Prover::verify`] and
    /// [`Prover::export_verifier`] do it by themselves.
    ///
    /// # Errors
    /// [`Failure::Environment`] if what comes out is not the manifest's, or the directory cannot be written.
    pub async fn ensure_keys(&self) -> Result<&Manifest, Failure> {
        self.keys().await?;
        Ok(&self.manifest)
    }

    /// Writes the Solidity source of the circuit's verifier, contract `Halo2Verifier`, to the file `to`.
    ///
    /// # Errors
    /// As [`Prover::ensure_keys`], and [`Failure::Environment`] if `to` cannot be written.
    pub async fn export_verifier(&self, to: &Path) -> Result<(), Failure> {
        let from = self.keys().await?.join("Verifier.sol");
        tokio::fs::copy(from, to).await.map_err(|error| unusable("write", to, error))?;
        Ok(())
    }

    /// Proves `witness` and checks the proof; a proof that is returned is one the contract accepts.
    ///
    /// # Errors
    /// [`Failure::Refused`] within a second if a record breaks the rule or the witness has another shape than the
    /// circuit; otherwise as the variants say. Dropping the future kills the process.
    pub async fn prove(&self, witness: &Witness) -> Result<Proof, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            proof: Bytes,
            instances: Vec<B256>,
        }
        self.check_shape(witness)?;
        let dir = self.keys().await?;
        let Answer { proof, instances } =
            self.call(json!({"op": "prove", "dir": dir, "input": input(witness)})).await?;
        let instances: Vec<U256> = instances.iter().map(|instance| U256::from_be_bytes(instance.0)).collect();
        if instances != commitment::instances(witness.context, &witness.draws, &witness.records) {
            return Err(Failure::Refused("the proof's instances are not those the contract expects".into()));
        }
        Ok(Proof { bytes: proof.into(), instances })
    }

    /// Returns whether the verifier contract would accept `proof`, and with it that no error instance is set.
    ///
    /// # Errors
    /// [`Failure::Interrupted`] or [`Failure::Environment`]; a bad proof is `false`.
    pub async fn verify(&self, proof: &Proof) -> Result<bool, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            valid: bool,
        }
        let records = (self.manifest.jobs * self.manifest.spots) as usize;
        let count = 2 + self.manifest.jobs as usize + 4 * records;
        let canonical = proof.instances.iter().all(|instance| *instance < ORDER);
        if proof.instances.len() != count
            || !canonical
            || proof.instances[count - 2 * records..].iter().any(|e| !e.is_zero())
        {
            return Ok(false);
        }
        let dir = self.keys().await?;
        let instances: Vec<String> = proof.instances.iter().map(hex).collect();
        let request = json!({
            "op": "verify", "dir": dir, "proof": alloy::hex::encode(&proof.bytes), "instances": instances,
        });
        Ok(self.call::<Answer>(request).await?.valid)
    }

    fn check_shape(&self, witness: &Witness) -> Result<(), Failure> {
        let records = (self.manifest.jobs * self.manifest.spots) as usize;
        let candidates = self.manifest.candidates as usize;
        let checks = [
            (witness.context < ORDER, "the context is not a field element".to_string()),
            (
                witness.records.len() == records && witness.draws.len() == records,
                format!(
                    "it has {} records and {} draws, the circuit {records}",
                    witness.records.len(),
                    witness.draws.len()
                ),
            ),
            (witness.draws.iter().all(|draw| draw >> DRAW_BITS == 0), format!("a draw has more than {DRAW_BITS} bits")),
            (
                witness.records.iter().all(|r| r.ids.len() == candidates && r.scores.len() == candidates),
                format!("a record has not {candidates} candidates"),
            ),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, reason)) => Err(Failure::Refused(reason)),
            None => Ok(()),
        }
    }

    async fn keys(&self) -> Result<&PathBuf, Failure> {
        self.keys.get_or_try_init(|| self.derive()).await
    }

    /// Returns the directory of the keys, after making it if need be; one process at a time.
    async fn derive(&self) -> Result<PathBuf, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            sha256: BTreeMap<String, String>,
        }
        self.check_environment().await?;
        let home = &self.config.dir;
        let _lock = lock(home.clone()).await?;
        // Named by what must come out, so that two versions of the node do not fight over it.
        let name = self.manifest.circuit.replace('/', "-");
        let dir = home.join(format!("{name}-{}", &self.manifest.sha256["vk.key"][..16]));
        if dir.exists() {
            match self.call(json!({"op": "hashes", "dir": dir})).await {
                Ok(Answer { sha256 }) if self.difference(&sha256).is_none() => return Ok(dir),
                Err(Failure::Environment(reason)) => return Err(Failure::Environment(reason)),
                _damaged => tracing::warn!(dir = %dir.display(), "the proving keys are damaged; deriving them again"),
            }
            fs::remove_dir_all(&dir).map_err(|error| unusable("remove", &dir, error))?;
        }
        let building = home.join("building");
        // What a derivation that was cut off has left; nobody else holds the lock.
        fs::remove_dir_all(&building).ok();
        fs::create_dir(&building).map_err(|error| unusable("make", &building, error))?;
        let srs = format!("kzg{}.srs", self.manifest.logrows);
        for (file, content) in [("circuit.py", CIRCUIT.as_bytes()), (&srs, SRS)] {
            let file = building.join(file);
            fs::write(&file, content).map_err(|error| unusable("write", &file, error))?;
        }
        let Manifest { jobs, spots, candidates, logrows, .. } = &self.manifest;
        let request = json!({
            "op": "build", "dir": building,
            "jobs": jobs, "spots": spots, "candidates": candidates, "logrows": logrows,
        });
        let Answer { sha256 } = self.call(request).await?;
        if let Some(file) = self.difference(&sha256) {
            let (found, wanted) = (sha256.get(&file), &self.manifest.sha256[&file]);
            return Err(self.environment(format!(
                "the derived {file} has the SHA-256 {found:?}, the manifest says {wanted}: other versions of the packages?"
            )));
        }
        fs::rename(&building, &dir).map_err(|error| unusable("rename into", &dir, error))?;
        Ok(dir)
    }

    /// Returns the first file whose hash is not the manifest's.
    fn difference(&self, sha256: &BTreeMap<String, String>) -> Option<String> {
        self.manifest
            .sha256
            .iter()
            .find(|&(file, wanted)| sha256.get(file) != Some(wanted))
            .map(|(file, _)| file.clone())
    }

    /// Runs one operation of `worker.py`, when it is its turn, and returns its answer.
    async fn call<T: DeserializeOwned>(&self, mut request: Value) -> Result<T, Failure> {
        let _turn = self.turns.acquire().await.expect("never closed");
        let temp = std::env::temp_dir();
        let scratch = tempfile::tempdir_in(&temp).map_err(|error| unusable("make a directory in", &temp, error))?;
        request["scratch"] = json!(scratch.path());
        request["memory_mb"] = json!(self.manifest.memory_mb);
        let no_network = self.no_network.get_or_init(|| self.probe()).await;
        let command = self.command(no_network, WORKER, scratch.path());
        let limits = Limits { wall: self.config.timeout, stall: STALL };
        let output =
            process::run(command, request.to_string().into_bytes(), limits).await.map_err(|stopped| match stopped {
                Stopped::NotStarted(error) => self.environment(format!("{}: {error}", self.config.python.display())),
                Stopped::Killed(reason) => Failure::Interrupted(reason),
            })?;
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = said.lines().rev().take(3).collect();
            Failure::Interrupted(format!("it ended with {} and without an answer: {last:?}", output.status))
        })?;
        let number = |name: &str| answer[name].as_u64();
        let (cpu_ms, memory_peak_mb) = (number("cpu_ms"), number("memory_peak_mb"));
        tracing::debug!(op = %request["op"], cpu_ms, memory_peak_mb, "EZKL operation ended");
        let error = || answer["error"].as_str().unwrap_or("no reason given").to_string();
        match answer["kind"].as_str() {
            None => T::deserialize(&answer).map_err(|error| Failure::Interrupted(format!("its answer: {error}"))),
            Some("refused") => Err(Failure::Refused(error())),
            Some("environment") => Err(self.environment(error())),
            Some(_) => Err(Failure::Interrupted(error())),
        }
    }

    /// Returns the words before a command that take its network away, if any work here.
    async fn probe(&self) -> &'static [&'static str] {
        const WAYS: [&[&str]; 2] = [&["unshare", "--net"], &["unshare", "--net", "--map-root-user"]];
        for way in WAYS {
            let limits = Limits { wall: STALL, stall: STALL };
            let trial = process::run(self.command(way, "", &std::env::temp_dir()), Vec::new(), limits).await;
            if trial.is_ok_and(|output| output.status.success()) {
                return way;
            }
        }
        &[]
    }

    /// Returns the command that runs `script`, with an environment of its own.
    fn command(&self, no_network: &[&str], script: &str, home: &Path) -> Command {
        let mut words = no_network.iter().map(Path::new).chain([self.config.python.as_path()]);
        let mut command = Command::new(words.next().expect("there is an interpreter"));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (processors / self.config.concurrency.max(1)).max(1).to_string();
        command.args(words).args(["-I", "-B", "-c", script]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home).env("TMPDIR", home);
        command.env("RAYON_NUM_THREADS", threads).env("OPENBLAS_NUM_THREADS", "1").env("MALLOC_ARENA_MAX", "2");
        // Where the network stays: EZKL tries to fetch a compiler that nothing here needs.
        command.env("HTTPS_PROXY", "http://127.0.0.1:9").env("HTTP_PROXY", "http://127.0.0.1:9");
        command
    }

    fn environment(&self, what: String) -> Failure {
        let packages = REQUIREMENTS.split_whitespace().collect::<Vec<_>>().join(" ");
        Failure::Environment(format!(
            "{what}. Install EZKL with `python3 -m venv DIR && DIR/bin/pip install {packages}` and configure \
             DIR/bin/python as the prover's interpreter (now {})",
            self.config.python.display()
        ))
    }
}

/// Returns what `JobMarketplace.completeJob` takes as `proof`:
/// `abi.encode(bytes32 circuit, bytes proof, uint256[] instances, bytes32[] paths)`.
///
/// `paths` are the openings' siblings, spot after spot.
pub fn completion(circuit: B256, proof: &Proof, paths: &[B256]) -> Bytes {
    (circuit, Bytes::copy_from_slice(&proof.bytes), proof.instances.clone(), paths.to_vec()).abi_encode_params().into()
}

/// Returns the circuit's input tensors: context, draws, then the records.
fn input(witness: &Witness) -> Vec<Vec<String>> {
    let draws = witness.draws.iter().map(|&draw| hex(&U256::from(draw))).collect();
    let records = witness.records.iter().map(|record| record.elements().map(|element| hex(&element)).collect());
    [vec![hex(&witness.context)], draws].into_iter().chain(records).collect()
}

fn hex(number: &U256) -> String {
    alloy::hex::encode(number.to_be_bytes::<32>())
}

/// Waits until no other process derives keys in `dir`; the lock is let go when the file is dropped.
async fn lock(dir: PathBuf) -> Result<fs::File, Failure> {
    let wait = move || {
        fs::create_dir_all(&dir).map_err(|error| unusable("make", &dir, error))?;
        let path = dir.join("lock");
        let file = fs::File::create(&path).map_err(|error| unusable("write", &path, error))?;
        file.lock().map_err(|error| unusable("lock", &path, error))?;
        Ok(file)
    };
    tokio::task::spawn_blocking(wait).await.map_err(|error| Failure::Interrupted(error.to_string()))?
}

fn unusable(verb: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::Environment(format!("{verb} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
