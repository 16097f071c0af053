//! Golden logs of every event, and what is none.

use alloy::json_abi::JsonAbi;
use alloy::primitives::{Address, B256, Bytes, I256, b256, hex, keccak256};
use alloy::sol_types::{SolCall, SolEvent};
use proptest::prelude::*;

use super::super::Also;
use super::super::abi::{
    BaseAccountIntegration as accounts, Erc1967 as proxies, Governance as votes, JobMarketplace as jobs,
    NodeRegistry as registry, PaymentEscrow as escrow, ProofSystem as proofs, ReputationSystem as scores,
    TimelockController as delays,
};
use super::*;
use crate::chain::call::Order;
use crate::market::types::{BlockRef, Cid, ModelId};

const CONTRACTS: Contracts = Contracts {
    governance_token: Address::repeat_byte(1),
    node_registry: Address::repeat_byte(2),
    payment_escrow: Address::repeat_byte(3),
    job_marketplace: Address::repeat_byte(4),
    proof_system: Address::repeat_byte(5),
    reputation_system: Address::repeat_byte(6),
    governance: Address::repeat_byte(7),
    timelock: Address::repeat_byte(8),
    account_factory: Address::repeat_byte(9),
    also: Vec::new(),
};
const HOST: Address = Address::repeat_byte(0xaa);
const RENTER: Address = Address::repeat_byte(0xbb);
const JOB: JobId = JobId(7);

fn raw(address: Address, topics: Vec<B256>, data: Bytes) -> RawLog {
    let block = BlockRef { number: 12, hash: B256::repeat_byte(12) };
    RawLog { block, index: 3, tx: B256::repeat_byte(9), address, topics, data }
}

fn log(address: Address, event: impl SolEvent) -> RawLog {
    let encoded = event.encode_log_data();
    raw(address, encoded.topics().to_vec(), encoded.data)
}

fn read(log: &RawLog) -> Result<Event> {
    event(&CONTRACTS, log)
}

fn details() -> jobs::JobDetails {
    jobs::JobDetails {
        modelId: "m".into(),
        prompt: "p".into(),
        maxTokens: U256::from(64),
        temperature: U256::from(700),
        seed: 42,
        resultFormat: "text".into(),
    }
}

fn requirements() -> jobs::JobRequirements {
    jobs::JobRequirements {
        minGPUMemory: U256::from(24),
        minReputationScore: U256::from(1),
        maxTimeToComplete: U256::from(600),
        requiresProof: true,
    }
}

fn job_terms() -> jobs::JobTerms {
    jobs::JobTerms {
        jobId: U256::from(7),
        renter: RENTER,
        token: Address::ZERO,
        payment: U256::from(100),
        deadline: 1_700_000_000,
        reservedFor: HOST,
        details: details(),
        requirements: requirements(),
    }
}

fn folded_terms() -> Terms {
    Terms {
        renter: RENTER,
        model: "m".into(),
        input: "p".into(),
        max_tokens: 64,
        temperature_milli: 700,
        seed: 42,
        payment: U256::from(100),
        token: Address::ZERO,
        deadline: UnixSeconds(1_700_000_000),
        requires_proof: true,
        min_gpu_memory: 24,
        min_reputation: 1,
        reserved_for: Some(HOST),
        region: None,
    }
}

fn noted(name: &'static str, job: Option<JobId>) -> Event {
    Event::Noted { name, job }
}

/// Every event: the signature hosts and renters rely on, a log of it, and what it says.
fn goldens() -> Vec<(&'static str, RawLog, Event)> {
    [spoken_goldens(), noted_goldens()].concat()
}

fn spoken_goldens() -> Vec<(&'static str, RawLog, Event)> {
    let (job_id, word) = (U256::from(7), B256::with_last_byte(7));
    let (one, two) = (B256::repeat_byte(1), B256::repeat_byte(2));
    let amount = U256::from(97);
    let market = CONTRACTS.job_marketplace;
    let system = CONTRACTS.proof_system;
    let safe = CONTRACTS.payment_escrow;
    let (hosts, rank) = (CONTRACTS.node_registry, CONTRACTS.reputation_system);
    let (job, host) = (JOB, HOST);
    let text = || "because".to_owned();
    let circuit = proofs::Circuit {
        verifier: HOST,
        codehash: one,
        jobs: 1,
        spots: 2,
        candidates: 8,
        active: true,
        manifest: two,
    };
    let commitment = Commitment { root: one, tokens: 3, result_hash: two, tokens_digest: one };
    vec![
        (
            "JobTerms(uint256,address,address,uint256,uint64,address,(string,string,uint256,uint256,uint32,string),(uint256,uint256,uint256,bool))",
            log(market, job_terms()),
            Event::JobTerms { job, terms: folded_terms() },
        ),
        (
            "JobCreated(uint256,address,string,uint256)",
            log(market, jobs::JobCreated { jobId: job_id, renter: RENTER, modelId: text(), maxPrice: amount }),
            noted("JobCreated", Some(job)),
        ),
        (
            "JobPosted(uint256,address,uint256)",
            log(market, jobs::JobPosted { jobId: job_id, client: RENTER, payment: amount }),
            noted("JobPosted", Some(job)),
        ),
        (
            "JobClaimed(uint256,address)",
            log(market, jobs::JobClaimed { jobId: job_id, host }),
            Event::JobClaimed { job, host },
        ),
        (
            "JobCompleted(uint256,string)",
            log(market, jobs::JobCompleted { jobId: job_id, resultCID: text() }),
            Event::JobCompleted { job, output: text() },
        ),
        (
            "JobReleaseDue(uint256,uint64)",
            log(market, jobs::JobReleaseDue { jobId: job_id, releaseAt: 9 }),
            Event::ReleaseDue { job, at: UnixSeconds(9) },
        ),
        (
            "PaymentReleased(uint256,address,uint256)",
            log(market, jobs::PaymentReleased { jobId: job_id, node: host, amount }),
            Event::PaymentReleased { job, host, amount },
        ),
        (
            "PaymentRefunded(uint256,address,uint256)",
            log(market, jobs::PaymentRefunded { jobId: job_id, client: RENTER, amount }),
            Event::PaymentRefunded { job, renter: RENTER, amount },
        ),
        ("JobCancelled(uint256)", log(market, jobs::JobCancelled { jobId: job_id }), noted("JobCancelled", Some(job))),
        (
            "JobReopened(uint256,address)",
            log(market, jobs::JobReopened { jobId: job_id, controller: host }),
            Event::JobReopened { job, controller: host },
        ),
        (
            "JobDisputed(uint256,address,bytes32)",
            log(market, jobs::JobDisputed { jobId: job_id, disputer: RENTER, evidenceHash: one }),
            Event::JobDisputed { job, disputer: RENTER },
        ),
        (
            "NodeSlashed(address,uint256,string)",
            log(hosts, registry::NodeSlashed { node: host, amount, reason: text() }),
            Event::HostSlashed { host, amount },
        ),
        (
            "ReputationUpdated(address,int256,uint256)",
            log(rank, scores::ReputationUpdated { host, change: I256::MINUS_ONE, newScore: amount }),
            Event::ReputationUpdated { host, score: 97 },
        ),
        ("JobExpired(uint256)", log(market, jobs::JobExpired { jobId: job_id }), noted("JobExpired", Some(job))),
        (
            "JobFailed(uint256,address,string)",
            log(market, jobs::JobFailed { jobId: job_id, host, reason: text() }),
            noted("JobFailed", Some(job)),
        ),
        (
            "TokenAllowed(address,bool)",
            log(market, jobs::TokenAllowed { token: HOST, allowed: true }),
            noted("TokenAllowed", None),
        ),
        (
            "OwnershipTransferred(address,address)",
            log(market, jobs::OwnershipTransferred { previousOwner: HOST, newOwner: RENTER }),
            noted("OwnershipTransferred", None),
        ),
        (
            "ResultCommitted(uint256,address,bytes32,uint32,bytes32,bytes32)",
            log(
                system,
                proofs::ResultCommitted {
                    jobId: job_id,
                    host,
                    root: one,
                    nTokens: 3,
                    resultHash: two,
                    tokensDigest: one,
                },
            ),
            Event::ResultCommitted { job, host, commitment },
        ),
        (
            "BeaconPinned(uint256,bytes32)",
            log(system, proofs::BeaconPinned { jobId: job_id, beacon: one }),
            Event::BeaconPinned { job, beacon: one },
        ),
        (
            "ProofSubmitted(uint256,address,bytes32,uint256)",
            log(system, proofs::ProofSubmitted { jobId: job_id, prover: host, proofHash: one, timestamp: amount }),
            noted("ProofSubmitted", Some(job)),
        ),
        (
            "ProofVerified(uint256,address,bool)",
            log(system, proofs::ProofVerified { jobId: job_id, verifier: host, isValid: true }),
            noted("ProofVerified", Some(job)),
        ),
        (
            "CircuitRegistered(bytes32,(address,bytes32,uint16,uint16,uint16,bool,bytes32))",
            log(system, proofs::CircuitRegistered { circuitId: one, circuit }),
            noted("CircuitRegistered", None),
        ),
        (
            "OwnershipTransferred(address,address)",
            log(system, proofs::OwnershipTransferred { previousOwner: HOST, newOwner: RENTER }),
            noted("OwnershipTransferred", None),
        ),
        (
            "EscrowCreated(bytes32,address,address,uint256,address)",
            log(safe, escrow::EscrowCreated { jobId: word, renter: RENTER, host, amount, token: HOST }),
            Event::EscrowCreated { job, amount, token: HOST },
        ),
        (
            "EscrowReleased(bytes32,uint256,uint256)",
            log(safe, escrow::EscrowReleased { jobId: word, amount, fee: U256::from(3) }),
            Event::EscrowReleased { job, net: amount, fee: U256::from(3) },
        ),
        (
            "EscrowRefunded(bytes32)",
            log(safe, escrow::EscrowRefunded { jobId: word }),
            noted("EscrowRefunded", Some(job)),
        ),
        (
            "PaymentCredited(address,address,uint256)",
            log(safe, escrow::PaymentCredited { payee: HOST, token: HOST, amount }),
            Event::PaymentCredited { payee: HOST, token: HOST, amount },
        ),
        (
            "CreditWithdrawn(address,address,address,uint256)",
            log(safe, escrow::CreditWithdrawn { payee: HOST, token: HOST, to: RENTER, amount }),
            Event::CreditWithdrawn { payee: HOST, token: HOST, to: RENTER, amount },
        ),
        (
            "NodeRegistered(address,uint256,string)",
            log(hosts, registry::NodeRegistered { operator: host, stakedAmount: amount, metadata: text() }),
            Event::HostRegistered { host, stake: amount, metadata: text() },
        ),
        (
            "NodeUnregistered(address,uint256)",
            log(hosts, registry::NodeUnregistered { operator: host, returnedAmount: amount }),
            Event::HostUnregistered { host },
        ),
        (
            "StakeAdded(address,uint256)",
            log(hosts, registry::StakeAdded { operator: host, additionalAmount: amount }),
            Event::StakeAdded { host, amount },
        ),
        (
            "MetadataUpdated(address,string)",
            log(hosts, registry::MetadataUpdated { operator: host, newMetadata: text() }),
            Event::MetadataUpdated { host, metadata: text() },
        ),
    ]
}

/// The events that only people read: of their data nothing but the job is looked at.
fn noted_goldens() -> Vec<(&'static str, RawLog, Event)> {
    let (job_id, word, job) = (U256::from(7), B256::with_last_byte(7), JOB);
    let (market, system) = (CONTRACTS.job_marketplace, CONTRACTS.proof_system);
    let (safe, hosts, rank) = (CONTRACTS.payment_escrow, CONTRACTS.node_registry, CONTRACTS.reputation_system);
    let (dao, delay) = (CONTRACTS.governance, CONTRACTS.timelock);
    vec![
        (
            "DeadlineMissed(uint256,address)",
            log(market, jobs::DeadlineMissed { jobId: job_id, ..Default::default() }),
            noted("DeadlineMissed", Some(job)),
        ),
        (
            "EvidenceAdded(uint256,address,bytes32)",
            log(market, jobs::EvidenceAdded { jobId: job_id, ..Default::default() }),
            noted("EvidenceAdded", Some(job)),
        ),
        (
            "RefundAgreed(uint256,address)",
            log(market, jobs::RefundAgreed { jobId: job_id, ..Default::default() }),
            noted("RefundAgreed", Some(job)),
        ),
        (
            "DisputeResolved(uint256,bool)",
            log(market, jobs::DisputeResolved { jobId: job_id, ..Default::default() }),
            noted("DisputeResolved", Some(job)),
        ),
        (
            "DisputeLapsed(uint256)",
            log(market, jobs::DisputeLapsed { jobId: job_id }),
            noted("DisputeLapsed", Some(job)),
        ),
        ("ArbiterChanged(address)", log(market, jobs::ArbiterChanged::default()), noted("ArbiterChanged", None)),
        ("Retired(address)", log(market, jobs::Retired::default()), noted("Retired", None)),
        ("EmergencyPause(address,string)", log(market, jobs::EmergencyPause::default()), noted("EmergencyPause", None)),
        ("EmergencyUnpause(address)", log(market, jobs::EmergencyUnpause::default()), noted("EmergencyUnpause", None)),
        (
            "CircuitBreakerTriggered(string,uint256)",
            log(market, jobs::CircuitBreakerTriggered::default()),
            noted("CircuitBreakerTriggered", None),
        ),
        ("GuardianSet(address,bool)", log(market, jobs::GuardianSet::default()), noted("GuardianSet", None)),
        (
            "BreakerThresholdsChanged(uint32,uint32)",
            log(market, jobs::BreakerThresholdsChanged::default()),
            noted("BreakerThresholdsChanged", None),
        ),
        (
            "CommitmentDiscarded(uint256)",
            log(system, proofs::CommitmentDiscarded { jobId: job_id }),
            noted("CommitmentDiscarded", Some(job)),
        ),
        (
            "ProofChallenged(uint256,address,bytes32)",
            log(system, proofs::ProofChallenged { jobId: job_id, ..Default::default() }),
            noted("ProofChallenged", Some(job)),
        ),
        (
            "ChallengeBonded(uint256,uint96)",
            log(system, proofs::ChallengeBonded { jobId: job_id, ..Default::default() }),
            noted("ChallengeBonded", Some(job)),
        ),
        (
            "ChallengeResolved(uint256,bool,address)",
            log(system, proofs::ChallengeResolved { jobId: job_id, ..Default::default() }),
            noted("ChallengeResolved", Some(job)),
        ),
        (
            "BatchVerificationCompleted(uint256[],bool[],uint256)",
            log(system, proofs::BatchVerificationCompleted::default()),
            noted("BatchVerificationCompleted", None),
        ),
        (
            "ChallengeBondChanged(uint96)",
            log(system, proofs::ChallengeBondChanged::default()),
            noted("ChallengeBondChanged", None),
        ),
        (
            "EscrowDisputed(bytes32,address)",
            log(safe, escrow::EscrowDisputed { jobId: word, ..Default::default() }),
            noted("EscrowDisputed", Some(job)),
        ),
        (
            "DisputeResolved(bytes32,address)",
            log(safe, escrow::DisputeResolved { jobId: word, ..Default::default() }),
            noted("DisputeResolved", Some(job)),
        ),
        (
            "RefundRequested(bytes32)",
            log(safe, escrow::RefundRequested { jobId: word }),
            noted("RefundRequested", Some(job)),
        ),
        ("FeeChanged(uint16)", log(safe, escrow::FeeChanged::default()), noted("FeeChanged", None)),
        (
            "OwnershipTransferred(address,address)",
            log(safe, escrow::OwnershipTransferred::default()),
            noted("OwnershipTransferred", None),
        ),
        (
            "NodeController(address,address,uint32)",
            log(hosts, registry::NodeController::default()),
            noted("NodeController", None),
        ),
        (
            "UnbondingStarted(address,uint64)",
            log(hosts, registry::UnbondingStarted::default()),
            noted("UnbondingStarted", None),
        ),
        (
            "UnbondingCancelled(address)",
            log(hosts, registry::UnbondingCancelled::default()),
            noted("UnbondingCancelled", None),
        ),
        (
            "HostApproved(address,address,bool)",
            log(hosts, registry::HostApproved::default()),
            noted("HostApproved", None),
        ),
        (
            "RegistrationsPerWindowChanged(uint32)",
            log(hosts, registry::RegistrationsPerWindowChanged::default()),
            noted("RegistrationsPerWindowChanged", None),
        ),
        ("Retired(address)", log(hosts, registry::Retired::default()), noted("Retired", None)),
        ("StakeMoved(address,address,uint256)", log(hosts, registry::StakeMoved::default()), noted("StakeMoved", None)),
        (
            "OwnershipTransferred(address,address)",
            log(hosts, registry::OwnershipTransferred::default()),
            noted("OwnershipTransferred", None),
        ),
        (
            "JobRated(uint256,uint8)",
            log(rank, scores::JobRated { jobId: job_id, ..Default::default() }),
            noted("JobRated", Some(job)),
        ),
        (
            "QualityReported(address,address,uint8,string)",
            log(rank, scores::QualityReported::default()),
            noted("QualityReported", None),
        ),
        (
            "ReputationSlashed(address,uint256,string)",
            log(rank, scores::ReputationSlashed::default()),
            noted("ReputationSlashed", None),
        ),
        (
            "IncentiveThresholdChanged(uint256)",
            log(rank, scores::IncentiveThresholdChanged::default()),
            noted("IncentiveThresholdChanged", None),
        ),
        (
            "OwnershipTransferred(address,address)",
            log(rank, scores::OwnershipTransferred::default()),
            noted("OwnershipTransferred", None),
        ),
        ("EIP712DomainChanged()", log(dao, votes::EIP712DomainChanged), noted("EIP712DomainChanged", None)),
        ("ProposalCanceled(uint256)", log(dao, votes::ProposalCanceled::default()), noted("ProposalCanceled", None)),
        (
            "ProposalCreated(uint256,address,address[],uint256[],string[],bytes[],uint256,uint256,string)",
            log(dao, votes::ProposalCreated::default()),
            noted("ProposalCreated", None),
        ),
        ("ProposalExecuted(uint256)", log(dao, votes::ProposalExecuted::default()), noted("ProposalExecuted", None)),
        ("ProposalQueued(uint256,uint256)", log(dao, votes::ProposalQueued::default()), noted("ProposalQueued", None)),
        (
            "ProposalThresholdSet(uint256,uint256)",
            log(dao, votes::ProposalThresholdSet::default()),
            noted("ProposalThresholdSet", None),
        ),
        (
            "QuorumNumeratorUpdated(uint256,uint256)",
            log(dao, votes::QuorumNumeratorUpdated::default()),
            noted("QuorumNumeratorUpdated", None),
        ),
        ("TimelockChange(address,address)", log(dao, votes::TimelockChange::default()), noted("TimelockChange", None)),
        (
            "VoteCast(address,uint256,uint8,uint256,string)",
            log(dao, votes::VoteCast::default()),
            noted("VoteCast", None),
        ),
        (
            "VoteCastWithParams(address,uint256,uint8,uint256,string,bytes)",
            log(dao, votes::VoteCastWithParams::default()),
            noted("VoteCastWithParams", None),
        ),
        ("VotingDelaySet(uint256,uint256)", log(dao, votes::VotingDelaySet::default()), noted("VotingDelaySet", None)),
        (
            "VotingPeriodSet(uint256,uint256)",
            log(dao, votes::VotingPeriodSet::default()),
            noted("VotingPeriodSet", None),
        ),
        (
            "AccountCreated(address,address,bytes32)",
            log(CONTRACTS.account_factory, accounts::AccountCreated::default()),
            noted("AccountCreated", None),
        ),
        (
            "CallExecuted(bytes32,uint256,address,uint256,bytes)",
            log(delay, delays::CallExecuted::default()),
            noted("CallExecuted", None),
        ),
        ("CallSalt(bytes32,bytes32)", log(delay, delays::CallSalt::default()), noted("CallSalt", None)),
        (
            "CallScheduled(bytes32,uint256,address,uint256,bytes,bytes32,uint256)",
            log(delay, delays::CallScheduled::default()),
            noted("CallScheduled", None),
        ),
        ("Cancelled(bytes32)", log(delay, delays::Cancelled::default()), noted("Cancelled", None)),
        (
            "MinDelayChange(uint256,uint256)",
            log(delay, delays::MinDelayChange::default()),
            noted("MinDelayChange", None),
        ),
        (
            "RoleAdminChanged(bytes32,bytes32,bytes32)",
            log(delay, delays::RoleAdminChanged::default()),
            noted("RoleAdminChanged", None),
        ),
        (
            "RoleGranted(bytes32,address,address)",
            log(delay, delays::RoleGranted::default()),
            noted("RoleGranted", None),
        ),
        (
            "RoleRevoked(bytes32,address,address)",
            log(delay, delays::RoleRevoked::default()),
            noted("RoleRevoked", None),
        ),
    ]
}

#[test]
fn every_event_is_read_as_what_it_says() {
    for (signature, log, says) in goldens() {
        assert_eq!(log.topics[0], keccak256(signature), "{signature}");
        assert_eq!(read(&log).expect(signature), says);
        assert_eq!(says.name(), signature.split('(').next().unwrap(), "the name on the contract");
    }
}

#[test]
fn jobs_are_folded_from_what_is_not_only_noted() {
    for (_, _, event) in goldens() {
        let speaks = event.job().is_some() && !matches!(event, Event::Noted { .. });
        assert_eq!(speaks, Event::OF_JOBS.contains(&event.name()), "{}", event.name());
    }
}

#[test]
fn no_event_of_the_abis_falls_through() {
    let goldens = goldens();
    let abis = [
        (CONTRACTS.job_marketplace, include_str!("../../../abi/JobMarketplace.json")),
        (CONTRACTS.proof_system, include_str!("../../../abi/ProofSystem.json")),
        (CONTRACTS.payment_escrow, include_str!("../../../abi/PaymentEscrow.json")),
        (CONTRACTS.node_registry, include_str!("../../../abi/NodeRegistry.json")),
        (CONTRACTS.reputation_system, include_str!("../../../abi/ReputationSystem.json")),
        (CONTRACTS.governance, include_str!("../../../abi/Governance.json")),
        (CONTRACTS.timelock, include_str!("../../../abi/TimelockController.json")),
        (CONTRACTS.account_factory, include_str!("../../../abi/BaseAccountIntegration.json")),
    ];
    let mut events = 0;
    for (address, json) in abis {
        for event in serde_json::from_str::<JsonAbi>(json).expect("an ABI").events() {
            let signature = event.signature();
            let tested = goldens.iter().any(|(text, log, _)| *text == signature && log.address == address);
            assert!(tested, "{signature} of {address} has no golden log: decode it and add one");
            events += 1;
        }
    }
    assert_eq!(events, goldens.len(), "a golden log of an event that no ABI has");
}

/// As the chain has them, written down from outside (`cast keccak`, `cast abi-encode`).
#[test]
fn logs_as_the_chain_has_them() {
    let job = b256!("0000000000000000000000000000000000000000000000000000000000000007");
    let host = b256!("000000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    let renter = b256!("000000000000000000000000bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb");
    let market = CONTRACTS.job_marketplace;

    let claimed = b256!("ba70defbfa7d3f9e9b6dc1f54957246fe91ba0a9e2a22af5d57d760d91c5bbfe");
    let log = raw(market, vec![claimed, job, host], Bytes::new());
    assert_eq!(read(&log).unwrap(), Event::JobClaimed { job: JOB, host: HOST });

    let completed = b256!("080714acc27e4104af24a8f8ef423633b2dfd61685662f7db998624db4dd3385");
    let data = hex!(
        "0000000000000000000000000000000000000000000000000000000000000020"
        "0000000000000000000000000000000000000000000000000000000000000004"
        "6261667900000000000000000000000000000000000000000000000000000000"
    );
    let log = raw(market, vec![completed, job], data.into());
    assert_eq!(read(&log).unwrap(), Event::JobCompleted { job: JOB, output: "bafy".into() });

    let released = b256!("1679e83f1a5c78898f99c2ad78c3681c0209a5d388b6cc90177b405b9269684a");
    let data = hex!(
        "0000000000000000000000000000000000000000000000000000000000000061"
        "0000000000000000000000000000000000000000000000000000000000000003"
    );
    let log = raw(CONTRACTS.payment_escrow, vec![released, job], data.into());
    let says = Event::EscrowReleased { job: JOB, net: U256::from(97), fee: U256::from(3) };
    assert_eq!(read(&log).unwrap(), says);

    let terms = b256!("0b4f731251a60ad1d3376b64bb8a4da52ac0097a62d4d9718b83fa3f06b0b221");
    let data = hex!(
        "0000000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000064"
        "000000000000000000000000000000000000000000000000000000006553f100"
        "000000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "0000000000000000000000000000000000000000000000000000000000000120"
        "0000000000000000000000000000000000000000000000000000000000000018"
        "0000000000000000000000000000000000000000000000000000000000000001"
        "0000000000000000000000000000000000000000000000000000000000000258"
        "0000000000000000000000000000000000000000000000000000000000000001"
        "00000000000000000000000000000000000000000000000000000000000000c0"
        "0000000000000000000000000000000000000000000000000000000000000100"
        "0000000000000000000000000000000000000000000000000000000000000040"
        "00000000000000000000000000000000000000000000000000000000000002bc"
        "000000000000000000000000000000000000000000000000000000000000002a"
        "0000000000000000000000000000000000000000000000000000000000000140"
        "0000000000000000000000000000000000000000000000000000000000000001"
        "6d00000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000001"
        "7000000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000004"
        "7465787400000000000000000000000000000000000000000000000000000000"
    );
    let log = raw(market, vec![terms, job, renter], data.into());
    assert_eq!(read(&log).unwrap(), Event::JobTerms { job: JOB, terms: folded_terms() });
}

/// Of a proxy, also written down from outside; and in every contract's voice.
#[test]
fn a_proxy_says_that_its_code_was_replaced() {
    let word = b256!("000000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    let upgraded = b256!("bc7cd75a20ee27fd9adebab32041f755214dbc6bffa90cc0225b39da2e5c2d3b");
    let beacon = b256!("1cf3b03a6cf19fa2baba4df148e9dcabedea7f8a5c07840e207e5c089be95d3e");
    let admin = b256!("7e644d79422f17c01e4894b5f4f588d331ebfa28653d42ae832dc59e38c9798f");
    let both = Bytes::from([word, word].concat());
    for address in CONTRACTS.indexed() {
        for (topics, data, name) in [
            (vec![upgraded, word], Bytes::new(), "Upgraded"),
            (vec![beacon, word], Bytes::new(), "BeaconUpgraded"),
            (vec![admin], both.clone(), "AdminChanged"),
        ] {
            let says = read(&raw(address, topics, data)).unwrap();
            assert_eq!(says, noted(name, None));
            assert!(says.replaces_code(), "{name}");
        }
        read(&raw(address, vec![upgraded], Bytes::new())).expect_err("without the implementation");
    }
    assert!(!goldens().iter().any(|(_, _, event)| event.replaces_code()));
}

/// The same address, before and after its code was replaced: each log is read as what was spoken there in its block.
#[test]
fn what_is_spoken_depends_on_the_block() {
    let [proxy, registry] = [Address::repeat_byte(0x77), CONTRACTS.node_registry];
    let spoke = |role, address, from, to, abi| Also { role, address, from, to, abi };
    let contracts = Contracts {
        also: vec![
            spoke(Role::Timelock, proxy, 10, 99, Abi::V1),
            spoke(Role::NodeRegistry, proxy, 100, 199, Abi::V1),
            spoke(Role::NodeRegistry, proxy, 200, u64::MAX, Abi::Unknown),
            spoke(Role::NodeRegistry, registry, 150, u64::MAX, Abi::Unknown),
        ],
        ..CONTRACTS
    };
    contracts.check().expect("no contradiction");
    let upgraded = || log(proxy, proxies::Upgraded { implementation: HOST });
    let delay = || log(proxy, delays::MinDelayChange { oldDuration: U256::ZERO, newDuration: U256::from(1) });
    let added = |address| log(address, registry::StakeAdded { operator: HOST, additionalAmount: U256::from(5) });
    let at = |number: u64, log: RawLog| {
        let block = BlockRef { number, ..log.block };
        event(&contracts, &RawLog { block, ..log }).map_err(|error| format!("{error:#}"))
    };
    let stake = Event::StakeAdded { host: HOST, amount: U256::from(5) };
    assert_eq!(at(99, delay()), Ok(noted("MinDelayChange", None)));
    assert!(at(99, added(proxy)).is_err());
    assert_eq!(at(99, upgraded()), Ok(noted("Upgraded", None)));
    assert_eq!(at(100, added(proxy)), Ok(stake.clone()));
    assert!(at(100, delay()).is_err());
    assert_eq!(at(199, upgraded()), Ok(noted("Upgraded", None)));
    assert!(at(200, added(proxy)).unwrap_err().contains("is not known"));
    assert_eq!(at(200, upgraded()), Ok(noted("Upgraded", None)), "it can be replaced again");
    assert!(at(9, delay()).unwrap_err().contains("none of ours in that block"));
    assert_eq!(at(149, added(registry)), Ok(stake));
    assert!(at(150, added(registry)).unwrap_err().contains("is not known"));
    let indexed = contracts.indexed();
    assert_eq!((indexed.len(), indexed.contains(&proxy)), (9, true));
}

#[test]
fn a_second_suite_in_one_history_is_refused() {
    let other = Address::repeat_byte(0x77);
    let also = |role, address, from, to| Also { role, address, from, to, abi: Abi::V1 };
    let error = |also: Vec<Also>| match (Contracts { also, ..CONTRACTS }).check() {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    };
    for role in [Role::JobMarketplace, Role::PaymentEscrow, Role::ProofSystem, Role::ReputationSystem] {
        let said = error(vec![also(role, other, 0, 9)]);
        assert!(said.contains(&format!("contracts.also[0]: a second {role:?}")) && said.contains("data_dir"), "{said}");
    }
    for role in [Role::NodeRegistry, Role::Governance, Role::Timelock, Role::AccountFactory] {
        assert_eq!(error(vec![also(role, other, 0, 9)]), "");
    }
    // The suite's own at another time.
    assert_eq!(error(vec![also(Role::JobMarketplace, CONTRACTS.job_marketplace, 0, 9)]), "");
    let said = error(vec![also(Role::NodeRegistry, CONTRACTS.timelock, 0, 9)]);
    assert!(said.contains("is the Timelock of this suite, and no NodeRegistry"), "{said}");
    assert!(error(vec![also(Role::Timelock, other, 9, 8)]).contains("from = 9 is after to = 8"));
    let said = error(vec![also(Role::Timelock, other, 0, 9), also(Role::Governance, other, 9, 12)]);
    assert!(said.contains("contracts.also[1]: blocks 9 to 12") && said.contains("contracts.also[0]"), "{said}");
}

#[test]
fn what_is_not_ours_or_not_whole_is_an_error_that_names_the_log() {
    for (signature, good, _) in goldens() {
        let refused = |log: RawLog, why: &str| {
            let error = format!("{:#}", read(&log).expect_err(&format!("{signature}: {why}")));
            assert!(error.contains("log 3 of block 12"), "{error}");
        };
        refused(RawLog { address: Address::repeat_byte(0x99), ..good.clone() }, "a foreign contract");
        refused(RawLog { address: CONTRACTS.governance_token, ..good.clone() }, "a contract that is not indexed");
        refused(RawLog { topics: vec![], ..good.clone() }, "no topic");
        refused(RawLog { topics: good.topics[..good.topics.len() - 1].to_vec(), ..good.clone() }, "a topic less");
        let mut topics = good.topics.clone();
        topics[0] = keccak256("Unknown()");
        refused(RawLog { topics, ..good.clone() }, "an unknown event");
        if !good.data.is_empty() {
            // The padding of a last string may be cut; half of it may not.
            for length in [0, 31.min(good.data.len() - 1), good.data.len() / 2] {
                refused(RawLog { data: good.data.slice(..length), ..good.clone() }, "cut data");
            }
        }
    }
}

#[test]
fn numbers_that_do_not_fit_are_errors() {
    let market = CONTRACTS.job_marketplace;
    for id in [U256::ZERO, U256::from(1_u64 << 62), U256::from(u64::MAX), U256::MAX] {
        let error = format!("{:#}", read(&log(market, jobs::JobClaimed { jobId: id, host: HOST })).unwrap_err());
        assert!(error.contains(&format!("log 3 of block 12: job id {id}")), "{error}");
        let word = B256::from(id);
        read(&log(CONTRACTS.payment_escrow, escrow::EscrowRefunded { jobId: word })).expect_err("as a word");
    }
    let mut large = job_terms();
    large.details.maxTokens = U256::from(1_u64 << 32);
    assert!(format!("{:#}", read(&log(market, large)).unwrap_err()).contains("maxTokens"));
    let mut large = job_terms();
    large.details.temperature = U256::MAX;
    assert!(format!("{:#}", read(&log(market, large)).unwrap_err()).contains("temperature"));
    let mut large = job_terms();
    large.requirements.minGPUMemory = U256::MAX;
    let Event::JobTerms { terms, .. } = read(&log(market, large)).unwrap() else { panic!("terms") };
    assert_eq!(terms.min_gpu_memory, u64::MAX);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        which in any::<prop::sample::Index>(), topics in prop::collection::vec(any::<[u8; 32]>(), 0..5),
        data in prop::collection::vec(any::<u8>(), 0..400), known in any::<bool>(),
    ) {
        let goldens = goldens();
        let (_, golden, _) = &goldens[which.index(goldens.len())];
        let mut topics: Vec<B256> = topics.into_iter().map(B256::from).collect();
        if known && !topics.is_empty() {
            topics[0] = golden.topics[0];
        }
        let _ = read(&raw(golden.address, topics, data.into()));
    }

    #[test]
    fn no_changed_byte_makes_it_panic(
        which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let goldens = goldens();
        let (_, golden, _) = &goldens[which.index(goldens.len())];
        prop_assume!(!golden.data.is_empty());
        let mut data = golden.data.to_vec();
        data[place.index(golden.data.len())] = byte;
        let _ = read(&RawLog { data: data.into(), ..golden.clone() });
    }
}

#[test]
fn a_renter_names_a_region_in_the_results_format() {
    for (format, region) in [
        ("text", None),
        ("", None),
        ("text; region=eu-west", Some("eu-west")),
        ("region= eu ;json", Some("eu")),
        ("region=", None),
        ("text region=eu", None),
    ] {
        assert_eq!(super::region(format).as_deref(), region, "{format:?}");
    }
}

#[test]
fn a_region_that_is_ordered_is_the_one_that_is_read() {
    for region in [None, Some("eu-west".to_owned()), Some("日本".to_owned())] {
        let order = Order {
            model: ModelId([1; 32]),
            input: Cid::of(b"p"),
            max_tokens: 1,
            temperature_milli: 0,
            seed: 1,
            requires_proof: true,
            seconds: 60,
            token: Address::ZERO,
            payment: U256::from(1),
            region: region.clone(),
        };
        let posted = jobs::postJobCall::abi_decode(&CONTRACTS.post(&order).data).expect("a post");
        let posted = terms(jobs::JobTerms { details: posted.details, ..job_terms() }).expect("terms");
        assert_eq!((&posted.region, &order.terms(RENTER, UnixSeconds(0)).region), (&region, &region));
    }
}
