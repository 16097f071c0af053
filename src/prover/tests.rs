//! The real EZKL. `FABSTIR_PYTHON` names the interpreter; otherwise `.fabstir/venv/bin/python` of this repository.

use alloy::primitives::keccak256;

use super::*;
use crate::market::{
    commitment::{Statement, Tree, opens, tokens_digest},
    select::{SCORE_SPAN, rank, select},
    types::{Address, JobId},
};

/// A prover on keys that every test of this machine shares: whoever comes first derives them.
fn prover() -> Prover {
    prover_in(std::env::temp_dir().join("fabstir-test-keys"))
}

fn prover_in(dir: PathBuf) -> Prover {
    let python = std::env::var_os("FABSTIR_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".fabstir/venv/bin/python"), PathBuf::from);
    Prover::new(Config { python, dir, concurrency: 2, timeout: Duration::from_secs(300) })
}

/// Logits that look like a model's: a few candidates stand out. The same for the same `seed`.
fn logits(seed: u64, spread: f32) -> Vec<f32> {
    let noise = |i: u64| {
        let hash = keccak256([seed.to_be_bytes(), i.to_be_bytes()].concat());
        hash[..12].iter().map(|&byte| f32::from(byte) / 255.0 - 0.5).sum::<f32>()
    };
    (0..40).map(|i| spread * noise(i)).collect()
}

fn records(count: u16) -> Vec<Record> {
    (0..count).map(|i| select(&logits(i.into(), 4.0), 800, i * 577 % 4096, 8)).collect()
}

/// A witness that holds, over seven tokens.
fn honest() -> (Statement, Vec<Opening>, Witness) {
    let tokens = 7u32;
    let mut statement = Statement {
        chain_id: 31337,
        proof_system: Address::repeat_byte(1),
        circuit: MANIFEST.circuit_id(),
        job: JobId(3),
        host: Address::repeat_byte(4),
        model: "sha256:05".into(),
        prompt: "blob6".into(),
        seed: 7,
        temperature_milli: 800,
        max_tokens: 9,
        root: B256::ZERO,
        tokens,
        tokens_digest: B256::ZERO,
        result: "blob13".into(),
    };
    let draw = |t| crate::market::select::draw(7, JobId(3), t, 800);
    let records: Vec<Record> = (0..tokens).map(|t| select(&logits(t.into(), 4.0), 800, draw(t), 8)).collect();
    statement.root = Tree::of(&records.iter().map(Record::digest).collect::<Vec<_>>()).unwrap().root();
    statement.tokens_digest = tokens_digest(&records.iter().map(Record::token).collect::<Vec<_>>());
    let openings = statement.open(B256::repeat_byte(9), MANIFEST.spots, &records).unwrap();
    let witness = Witness::of(statement.context(), &openings);
    (statement, openings, witness)
}

#[tokio::test]
async fn the_environment_is_the_one_the_circuit_needs() {
    assert_eq!(prover().check_environment().await.unwrap(), "23.0.5");
}

#[tokio::test]
async fn a_missing_interpreter_says_how_to_install_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut prover = prover_in(dir.path().join("keys"));
    prover.config.python = "/nowhere/python".into();
    for error in [prover.check_environment().await.unwrap_err(), prover.prove(&honest().2).await.unwrap_err()] {
        let Failure::Environment(reason) = &error else { panic!("{error}") };
        assert!(reason.contains("pip install ezkl==23.0.5") && reason.contains("/nowhere/python"), "{reason}");
    }
}

#[tokio::test]
async fn an_interpreter_without_ezkl_says_how_to_install_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut prover = prover_in(dir.path().join("keys"));
    let bare = Command::new(&prover.config.python).args(["-m", "venv", "--without-pip"]).arg(dir.path()).status().await;
    assert!(bare.unwrap().success());
    prover.config.python = dir.path().join("bin/python");
    let error = prover.ensure_keys().await.unwrap_err();
    assert!(matches!(&error, Failure::Environment(reason) if reason.contains("No module named 'ezkl'")), "{error}");
    assert!(error.to_string().contains("pip install ezkl==23.0.5"), "{error}");
}

#[tokio::test]
async fn an_honest_transcript_is_proved_and_nothing_else_verifies() {
    let prover = prover();
    let (statement, openings, witness) = honest();
    let proof = prover.prove(&witness).await.unwrap();
    assert!(prover.verify(&proof).await.unwrap());
    assert_eq!(proof.instances.len(), 11);
    for (opening, instance) in openings.iter().zip(&proof.instances[2..]) {
        let digest = B256::from(*instance);
        assert!(opens(statement.root, statement.tokens, opening.position, digest, &opening.path));
    }

    for instance in 0..proof.instances.len() {
        let mut bent = proof.clone();
        bent.instances[instance] ^= U256::from(1);
        assert!(!prover.verify(&bent).await.unwrap(), "instance {instance}");
    }
    let bends: [fn(&mut Proof); 6] = [
        |proof| proof.bytes[100] ^= 1,
        |proof| proof.bytes.clear(),
        |proof| proof.bytes.truncate(1000),
        |proof| proof.instances[2] += ORDER,
        |proof| _ = proof.instances.pop(),
        |proof| proof.instances.push(U256::ZERO),
    ];
    for (number, bend) in bends.iter().enumerate() {
        let mut bent = proof.clone();
        bend(&mut bent);
        assert!(!prover.verify(&bent).await.unwrap(), "bend {number}");
    }

    let paths: Vec<B256> = openings.iter().flat_map(|opening| opening.path.clone()).collect();
    let bytes = completion(statement.circuit, &proof, &paths);
    type Completion = (B256, Bytes, Vec<U256>, Vec<B256>);
    let decoded = Completion::abi_decode_params(&bytes).unwrap();
    assert_eq!(decoded, (statement.circuit, proof.bytes.into(), proof.instances, paths));
}

#[tokio::test]
async fn what_breaks_the_rule_is_refused_at_once() {
    let prover = prover();
    prover.ensure_keys().await.unwrap();
    type Spoil = fn(&mut Witness);
    let cases: [(Spoil, &str); 10] = [
        (|w| w.records[1].rank = (w.records[1].rank + 1) % 8, "the rank of record 1"),
        (|w| w.draws[0] = 4095 - w.draws[0], "the rank of record 0"),
        (|w| w.records[0].scores.swap(1, 2), "the order of record 0"),
        // Each of the next three would make EZKL wait for ever if it were asked for a proof.
        (|w| w.records[0].scores[7] = w.records[0].scores[0] - SCORE_SPAN - 1, "not within -7808..=0"),
        (|w| w.records[1].scores[1] = w.records[1].scores[0] + 5, "not within -7808..=0"),
        (|w| w.records[0].scores[7] = i64::MIN, "no witness"),
        (|w| _ = w.records.pop(), "1 records and 2 draws"),
        (|w| w.draws[0] = 4096, "more than 12 bits"),
        (|w| _ = w.records[0].ids.pop(), "has not 8 candidates"),
        (|w| w.context = ORDER, "not a field element"),
    ];
    for (number, (spoil, complaint)) in cases.iter().enumerate() {
        let mut witness = honest().2;
        spoil(&mut witness);
        let started = std::time::Instant::now();
        let error = prover.prove(&witness).await.unwrap_err();
        assert!(matches!(&error, Failure::Refused(reason) if reason.contains(complaint)), "case {number}: {error}");
        // Far below the 30 s after which a hung process is killed.
        assert!(started.elapsed() < Duration::from_secs(10), "case {number} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn the_sampler_and_the_circuit_agree_bit_for_bit() {
    let prover = prover();
    let mut witnesses = Vec::new();
    for seed in 0..120u64 {
        // Narrow spreads make ties (more so with few steps), wide ones and cold temperatures reach the floor.
        let spread = [0.001, 0.02, 1.0, 6.0, 40.0][seed as usize % 5];
        let temperature = [0, 50, 700, 1000, 2500][seed as usize / 5 % 5];
        let draws = [0, 1].map(|i| match seed % 7 {
            0 => [0, 4095][i],
            _ => u16::from_be_bytes([keccak256(seed.to_be_bytes())[i], keccak256(seed.to_be_bytes())[8 + i]]) % 4096,
        });
        let record = |i: usize| select(&logits(2 * seed + i as u64, spread), temperature, draws[i], 8);
        witnesses.push(Witness { context: U256::from(seed), draws: draws.into(), records: vec![record(0), record(1)] });
    }
    // Draws at the very edge between two ranks: the smallest that picks the second, and the one below.
    for record in records(20) {
        let edge = (1..4096).find(|&draw| rank(&record.scores, draw) > 0).unwrap_or(4095);
        let draws = vec![edge - 1, edge];
        let picked = |&draw: &u16| Record { rank: rank(&record.scores, draw), ..record.clone() };
        witnesses.push(Witness { context: U256::ZERO, records: draws.iter().map(picked).collect(), draws });
    }
    let all = witnesses.iter().flat_map(|witness| &witness.records);
    assert!(all.clone().any(|r| r.scores[7] == r.scores[0] - SCORE_SPAN), "no record reaches the floor");
    assert!(all.clone().any(|r| r.scores[0] == r.scores[1]), "no record has a tie");
    assert!(all.clone().any(|r| r.rank > 3), "no record picks a low rank");

    // A false one last, so that a check that accepts everything fails here.
    let mut wrong = honest().2;
    wrong.records[0].rank = (wrong.records[0].rank + 1) % 8;
    witnesses.push(wrong);
    #[derive(Deserialize)]
    struct Answer {
        refused: Vec<Option<String>>,
    }
    let inputs: Vec<_> = witnesses.iter().map(input).collect();
    let dir = prover.keys().await.unwrap();
    let Answer { refused } = prover.call(json!({"op": "check", "dir": dir, "inputs": inputs})).await.unwrap();
    for (witness, reason) in witnesses.iter().zip(&refused).take(witnesses.len() - 1) {
        assert_eq!(*reason, None, "{witness:?}");
    }
    assert!(refused[witnesses.len() - 1].as_ref().unwrap().contains("rank of record 0"));
}

#[tokio::test]
async fn keys_are_derived_once_and_again_when_damaged() {
    let home = tempfile::tempdir().unwrap();
    let (one, other) = (prover_in(home.path().into()), prover_in(home.path().into()));
    let (first, second) = tokio::join!(one.keys(), other.keys());
    let dir = first.unwrap();
    assert_eq!(dir, second.unwrap());
    let key = dir.join("pk.key");
    let written = fs::metadata(&key).unwrap().modified().unwrap();

    let restarted = prover_in(home.path().into());
    restarted.ensure_keys().await.unwrap();
    assert_eq!(fs::metadata(&key).unwrap().modified().unwrap(), written, "derived again without need");

    fs::write(&key, b"torn").unwrap();
    fs::create_dir(home.path().join("building")).unwrap();
    let restarted = prover_in(home.path().into());
    restarted.ensure_keys().await.unwrap();
    assert!(fs::metadata(&key).unwrap().len() > 1 << 20);

    let source = home.path().join("Verifier.sol");
    restarted.export_verifier(&source).await.unwrap();
    assert!(fs::read_to_string(&source).unwrap().contains("contract Halo2Verifier"));
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "the keys, the lock and the source: {left:?}");
}

#[tokio::test]
async fn other_keys_than_the_manifests_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut prover = prover_in(home.path().into());
    prover.manifest.sha256.insert("vk.key".into(), "0".repeat(64));
    let error = prover.prove(&honest().2).await.unwrap_err();
    assert!(matches!(&error, Failure::Environment(reason) if reason.contains("the derived vk.key")), "{error}");
    assert!(error.to_string().contains("pip install"));
}

#[tokio::test]
async fn too_little_memory_or_time_is_an_interruption() {
    let mut prover = prover();
    prover.ensure_keys().await.unwrap();
    prover.manifest.memory_mb = 120;
    let error = prover.prove(&honest().2).await.unwrap_err();
    assert!(matches!(error, Failure::Interrupted(_)), "{error}");
    prover.manifest.memory_mb = MANIFEST.memory_mb;
    prover.config.timeout = Duration::from_millis(50);
    let error = prover.prove(&honest().2).await.unwrap_err();
    assert!(matches!(&error, Failure::Interrupted(reason) if reason.contains("not done after 50ms")), "{error}");
}

#[test]
fn the_manifest_describes_what_is_embedded() {
    use sha2::{Digest, Sha256};
    let Manifest { jobs, spots, candidates, .. } = &*MANIFEST;
    assert_eq!(MANIFEST.circuit, format!("select-v1/J{jobs}S{spots}K{candidates}"));
    assert_eq!(alloy::hex::encode(Sha256::digest(SRS)), MANIFEST.sha256["kzg11.srs"]);
    assert!(REQUIREMENTS.contains(&format!("ezkl=={}", MANIFEST.ezkl)));
    assert!(MANIFEST.test_only, "an SRS of our own making");
}
