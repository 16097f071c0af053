//! From logs to events: past this border there are no ABI words. Nothing is guessed: what does not decode stays raw.

use alloy::primitives::{B256, U256};
use alloy::sol_types::SolEventInterface;
use anyhow::{Context, Result, bail};

use super::Contracts;
use super::abi::JobMarketplace::{self as marketplace, JobMarketplaceEvents};
use super::abi::NodeRegistry::NodeRegistryEvents;
use super::abi::PaymentEscrow::PaymentEscrowEvents;
use super::abi::ProofSystem::ProofSystemEvents;
use crate::market::event::{Commitment, Event, RawLog, Terms};
use crate::market::types::{JobId, UnixSeconds};

/// Reads the event in a log of one of `contracts`.
///
/// # Errors
/// If the log is another contract's, its event is unknown, or a value does not fit what it stands for.
pub fn event(contracts: &Contracts, log: &RawLog) -> Result<Event> {
    decoded(contracts, log).with_context(|| format!("log {} of block {}", log.index, log.block.number))
}

fn decoded(contracts: &Contracts, log: &RawLog) -> Result<Event> {
    let RawLog { address, topics, data, .. } = log;
    if *address == contracts.job_marketplace {
        from_marketplace(JobMarketplaceEvents::decode_raw_log(topics, data)?)
    } else if *address == contracts.proof_system {
        from_proof_system(ProofSystemEvents::decode_raw_log(topics, data)?)
    } else if *address == contracts.payment_escrow {
        from_escrow(PaymentEscrowEvents::decode_raw_log(topics, data)?)
    } else if *address == contracts.node_registry {
        from_registry(NodeRegistryEvents::decode_raw_log(topics, data)?)
    } else {
        bail!("contract {address} is none of ours")
    }
}

fn from_marketplace(event: JobMarketplaceEvents) -> Result<Event> {
    use JobMarketplaceEvents as E;
    Ok(match event {
        E::JobTerms(e) => Event::JobTerms { job: job_id(e.jobId)?, terms: terms(e)? },
        E::JobClaimed(e) => Event::JobClaimed { job: job_id(e.jobId)?, host: e.host },
        E::JobCompleted(e) => Event::JobCompleted { job: job_id(e.jobId)?, output: e.resultCID },
        E::JobReleaseDue(e) => Event::ReleaseDue { job: job_id(e.jobId)?, at: UnixSeconds(e.releaseAt) },
        E::PaymentReleased(e) => Event::PaymentReleased { job: job_id(e.jobId)?, host: e.node, amount: e.amount },
        E::PaymentRefunded(e) => Event::PaymentRefunded { job: job_id(e.jobId)?, renter: e.client, amount: e.amount },
        E::JobCreated(e) => noted("JobCreated", e.jobId)?,
        E::JobPosted(e) => noted("JobPosted", e.jobId)?,
        E::JobCancelled(e) => noted("JobCancelled", e.jobId)?,
        E::JobExpired(e) => noted("JobExpired", e.jobId)?,
        E::JobFailed(e) => noted("JobFailed", e.jobId)?,
        E::TokenAllowed(_) => Event::Noted { name: "TokenAllowed", job: None },
        E::OwnershipTransferred(_) => Event::Noted { name: "OwnershipTransferred", job: None },
    })
}

fn from_proof_system(event: ProofSystemEvents) -> Result<Event> {
    use ProofSystemEvents as E;
    Ok(match event {
        E::ResultCommitted(e) => Event::ResultCommitted {
            job: job_id(e.jobId)?,
            host: e.host,
            commitment: Commitment {
                root: e.root,
                tokens: e.nTokens,
                result_hash: e.resultHash,
                tokens_digest: e.tokensDigest,
            },
        },
        E::BeaconPinned(e) => Event::BeaconPinned { job: job_id(e.jobId)?, beacon: e.beacon },
        E::ProofSubmitted(e) => noted("ProofSubmitted", e.jobId)?,
        E::ProofVerified(e) => noted("ProofVerified", e.jobId)?,
        E::CircuitRegistered(_) => Event::Noted { name: "CircuitRegistered", job: None },
        E::OwnershipTransferred(_) => Event::Noted { name: "OwnershipTransferred", job: None },
    })
}

fn from_escrow(event: PaymentEscrowEvents) -> Result<Event> {
    use PaymentEscrowEvents as E;
    Ok(match event {
        E::EscrowReleased(e) => Event::EscrowReleased { job: job_word(e.jobId)?, net: e.amount, fee: e.fee },
        E::EscrowCreated(e) => Event::Noted { name: "EscrowCreated", job: Some(job_word(e.jobId)?) },
        E::EscrowRefunded(e) => Event::Noted { name: "EscrowRefunded", job: Some(job_word(e.jobId)?) },
        E::PaymentCredited(_) => Event::Noted { name: "PaymentCredited", job: None },
        E::CreditWithdrawn(_) => Event::Noted { name: "CreditWithdrawn", job: None },
    })
}

fn from_registry(event: NodeRegistryEvents) -> Result<Event> {
    use NodeRegistryEvents as E;
    Ok(match event {
        E::NodeRegistered(e) => Event::HostRegistered { host: e.operator, stake: e.stakedAmount, metadata: e.metadata },
        E::NodeUnregistered(e) => Event::HostUnregistered { host: e.operator },
        E::StakeAdded(e) => Event::StakeAdded { host: e.operator, amount: e.additionalAmount },
        E::MetadataUpdated(e) => Event::MetadataUpdated { host: e.operator, metadata: e.newMetadata },
    })
}

fn terms(e: marketplace::JobTerms) -> Result<Terms> {
    Ok(Terms {
        renter: e.renter,
        model: e.details.modelId,
        input: e.details.prompt,
        max_tokens: e.details.maxTokens.try_into().context("maxTokens")?,
        temperature_milli: e.details.temperature.try_into().context("temperature")?,
        seed: e.details.seed,
        payment: e.payment,
        token: e.token,
        deadline: UnixSeconds(e.deadline),
        requires_proof: e.requirements.requiresProof,
        min_gpu_memory: e.requirements.minGPUMemory.saturating_to(),
        min_reputation: e.requirements.minReputationScore.saturating_to(),
    })
}

fn noted(name: &'static str, job: U256) -> Result<Event> {
    Ok(Event::Noted { name, job: Some(job_id(job)?) })
}

fn job_word(word: B256) -> Result<JobId> {
    job_id(word.into())
}

/// SQLite's integers end at 2^63; the contract counts jobs up from 1 and never comes near.
fn job_id(word: U256) -> Result<JobId> {
    let id: u64 =
        word.try_into().ok().filter(|id| *id > 0 && *id < 1 << 62).with_context(|| format!("job id {word}"))?;
    Ok(JobId(id))
}

#[cfg(test)]
mod tests {
    use alloy::json_abi::JsonAbi;
    use alloy::primitives::{Address, Bytes, b256, hex, keccak256};
    use alloy::sol_types::SolEvent;
    use proptest::prelude::*;

    use super::super::abi::{
        JobMarketplace as jobs, NodeRegistry as registry, PaymentEscrow as escrow, ProofSystem as proofs,
    };
    use super::*;
    use crate::market::types::BlockRef;

    const CONTRACTS: Contracts = Contracts {
        governance_token: Address::repeat_byte(1),
        node_registry: Address::repeat_byte(2),
        payment_escrow: Address::repeat_byte(3),
        job_marketplace: Address::repeat_byte(4),
        proof_system: Address::repeat_byte(5),
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
        }
    }

    fn noted(name: &'static str, job: Option<JobId>) -> Event {
        Event::Noted { name, job }
    }

    /// Every event: the signature hosts and renters rely on, a log of it, and what it says.
    fn goldens() -> Vec<(&'static str, RawLog, Event)> {
        let (job_id, word) = (U256::from(7), B256::with_last_byte(7));
        let (one, two) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let amount = U256::from(97);
        let market = CONTRACTS.job_marketplace;
        let system = CONTRACTS.proof_system;
        let safe = CONTRACTS.payment_escrow;
        let hosts = CONTRACTS.node_registry;
        let (job, host) = (JOB, HOST);
        let text = || "because".to_owned();
        let circuit =
            proofs::Circuit { verifier: HOST, codehash: one, spots: 2, candidates: 8, active: true, manifest: two };
        let commitment = Commitment { root: one, tokens: 3, result_hash: two, tokens_digest: one };
        vec![
            (
                "JobTerms(uint256,address,address,uint256,uint64,(string,string,uint256,uint256,uint32,string),(uint256,uint256,uint256,bool))",
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
            (
                "JobCancelled(uint256)",
                log(market, jobs::JobCancelled { jobId: job_id }),
                noted("JobCancelled", Some(job)),
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
                "CircuitRegistered(bytes32,(address,bytes32,uint16,uint16,bool,bytes32))",
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
                noted("EscrowCreated", Some(job)),
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
                noted("PaymentCredited", None),
            ),
            (
                "CreditWithdrawn(address,address,address,uint256)",
                log(safe, escrow::CreditWithdrawn { payee: HOST, token: HOST, to: RENTER, amount }),
                noted("CreditWithdrawn", None),
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

    #[test]
    fn every_event_is_read_as_what_it_says() {
        for (signature, log, says) in goldens() {
            assert_eq!(log.topics[0], keccak256(signature), "{signature}");
            assert_eq!(read(&log).expect(signature), says);
            assert_eq!(says.name(), signature.split('(').next().unwrap(), "the name on the contract");
        }
    }

    #[test]
    fn no_event_of_the_abis_falls_through() {
        let goldens = goldens();
        let abis = [
            (CONTRACTS.job_marketplace, include_str!("../../abi/JobMarketplace.json")),
            (CONTRACTS.proof_system, include_str!("../../abi/ProofSystem.json")),
            (CONTRACTS.payment_escrow, include_str!("../../abi/PaymentEscrow.json")),
            (CONTRACTS.node_registry, include_str!("../../abi/NodeRegistry.json")),
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

        let terms = b256!("07ca9bd40642833ad68a5133ae68d3b71dec9becfa688699c28df536cc588d6c");
        let data = hex!(
            "0000000000000000000000000000000000000000000000000000000000000000"
            "0000000000000000000000000000000000000000000000000000000000000064"
            "000000000000000000000000000000000000000000000000000000006553f100"
            "0000000000000000000000000000000000000000000000000000000000000100"
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
}
