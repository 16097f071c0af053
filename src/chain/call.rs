//! The calls that hosts, renters and the contracts' officers make, ready to be signed. Encoding only; nothing is sent here.

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolCall;

use super::Contracts;
use super::abi::{Erc20, JobMarketplace, NodeRegistry, PaymentEscrow, ProofSystem, ReputationSystem};
use crate::market::event::{Commitment, Terms};
use crate::market::types::{Cid, JobId, ModelId, UnixSeconds};

/// A contract call and the ETH that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub to: Address,
    pub data: Bytes,
    /// In wei.
    pub value: U256,
}

/// What a renter asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub model: ModelId,
    pub input: Cid,
    /// At most this many output tokens.
    pub max_tokens: u32,
    /// In thousandths; 0 is greedy.
    pub temperature_milli: u32,
    pub seed: u32,
    pub requires_proof: bool,
    /// Seconds from posting to the deadline.
    pub seconds: u64,
    /// The zero address is ETH.
    pub token: Address,
    /// In the smallest unit of `token`.
    pub payment: U256,
    /// Where it is to be computed, see [`Terms::region`].
    pub region: Option<String>,
}

impl Contracts {
    /// Takes the job for the sender, if it is still the one that was judged: `deal` is its [`Terms::deal`].
    pub fn claim(&self, job: JobId, deal: B256) -> Call {
        call(self.job_marketplace, JobMarketplace::claimExactlyCall { jobId: number(job), deal })
    }

    /// Binds the sender to a result before the positions to open are drawn, if the job is still what the result was made for: `order`
    /// is its [`Terms::order`].
    pub fn commit(&self, job: JobId, order: B256, commitment: &Commitment) -> Call {
        call(
            self.proof_system,
            ProofSystem::commitExactlyCall {
                jobId: number(job),
                order,
                root: commitment.root,
                nTokens: commitment.tokens,
                resultHash: commitment.result_hash,
                tokensDigest: commitment.tokens_digest,
            },
        )
    }

    /// Hands in the result; `proof` is empty or made by [`crate::prover::completion`].
    pub fn complete(&self, job: JobId, output: &Cid, proof: Bytes) -> Call {
        let output = output.to_string();
        call(self.job_marketplace, JobMarketplace::completeJobCall { jobId: number(job), resultCID: output, proof })
    }

    /// Hands in several results with one proof of them all, which a circuit for so many jobs made.
    pub fn complete_all(&self, results: &[(JobId, Cid)], proof: Bytes) -> Call {
        let (jobs, outputs) = results.iter().map(|(job, output)| (number(*job), output.to_string())).unzip();
        call(self.job_marketplace, JobMarketplace::completeJobsCall { jobIds: jobs, resultCIDs: outputs, proof })
    }

    /// Pays the host of each of these jobs that is due.
    pub fn release_all(&self, jobs: &[JobId]) -> Call {
        let jobs = jobs.iter().map(|job| number(*job)).collect();
        call(self.job_marketplace, JobMarketplace::releasePaymentsCall { jobIds: jobs })
    }

    /// Pays the host of a completed job after its challenge window.
    pub fn release(&self, job: JobId) -> Call {
        call(self.job_marketplace, JobMarketplace::releasePaymentCall { jobId: number(job) })
    }

    /// Gives the renter the money back after the deadline.
    pub fn expire(&self, job: JobId) -> Call {
        call(self.job_marketplace, JobMarketplace::expireJobCall { jobId: number(job) })
    }

    /// Takes the sender's job back before any host claims it.
    pub fn cancel(&self, job: JobId) -> Call {
        call(self.job_marketplace, JobMarketplace::cancelJobCall { jobId: number(job) })
    }

    /// Gives the sender's claimed job up before its deadline, if it is still the one that is meant: `deal` is its [`Terms::deal`].
    /// `reason` is 1 to 128 bytes.
    pub fn fail(&self, job: JobId, deal: B256, reason: String) -> Call {
        call(self.job_marketplace, JobMarketplace::failExactlyCall { jobId: number(job), deal, reason })
    }

    /// Puts the sender's completed job before the arbiter, within its challenge window.
    pub fn dispute(&self, job: JobId, evidence: B256) -> Call {
        call(self.job_marketplace, JobMarketplace::disputeJobCall { jobId: number(job), evidenceHash: evidence })
    }

    /// Challenges the result of a completed job, for a bond in FAB that the proof system must be allowed to move.
    pub fn challenge(&self, job: JobId, evidence: B256) -> Call {
        call(self.proof_system, ProofSystem::challengeCall { jobId: number(job), evidenceHash: evidence })
    }

    /// Ends a dispute; only the arbiter may.
    pub fn resolve(&self, job: JobId, favor_renter: bool) -> Call {
        call(self.job_marketplace, JobMarketplace::resolveDisputeCall { jobId: number(job), favorClient: favor_renter })
    }

    /// Rates the host of a job that the sender paid for, 1 (worst) to 5. `feedback` is at most 256 bytes.
    pub fn rate(&self, job: JobId, rating: u8, feedback: String) -> Call {
        call(self.reputation_system, ReputationSystem::rateCall { jobId: number(job), rating, feedback })
    }

    /// Stops posts and claims for a while; only a guardian may.
    pub fn pause(&self, reason: String) -> Call {
        call(self.job_marketplace, JobMarketplace::pauseCall { reason })
    }

    /// Sends all that the escrow owes the sender of `token` (the zero address: ETH) to `to`.
    pub fn withdraw(&self, token: Address, to: Address) -> Call {
        call(self.payment_escrow, PaymentEscrow::withdrawCall { token, to })
    }

    /// Adds to the sender's stake; the registry must be allowed to move the amount.
    pub fn add_stake(&self, amount: U256) -> Call {
        call(self.node_registry, NodeRegistry::addStakeCall { amount })
    }

    /// Replaces what the sender, a host, says of itself.
    pub fn update_metadata(&self, metadata: String) -> Call {
        call(self.node_registry, NodeRegistry::updateMetadataCall { metadata })
    }

    /// Starts to end the sender's registration.
    pub fn start_unbonding(&self) -> Call {
        call(self.node_registry, NodeRegistry::startUnbondingCall {})
    }

    /// Keeps the sender's registration after all.
    pub fn cancel_unbonding(&self) -> Call {
        call(self.node_registry, NodeRegistry::cancelUnbondingCall {})
    }

    /// Ends the sender's registration after its unbonding, and returns the stake.
    pub fn unregister(&self) -> Call {
        call(self.node_registry, NodeRegistry::unregisterNodeCall {})
    }

    /// Registers the sender as a host; the registry must be allowed to move the stake.
    pub fn register(&self, metadata: String) -> Call {
        call(self.node_registry, NodeRegistry::registerNodeCall { metadata })
    }

    /// Posts several jobs, or one that only the host of its `reserved_for` may claim.
    pub fn post_all(&self, orders: &[(Order, Option<Address>)]) -> Call {
        let posting = |(order, reserved_for): &(Order, Option<Address>)| JobMarketplace::Posting {
            details: order.details(),
            requirements: order.requirements(),
            token: order.token,
            payment: order.payment,
            reservedFor: reserved_for.unwrap_or_default(),
        };
        let in_eth = orders.iter().filter(|(order, _)| order.token.is_zero());
        let value = in_eth.map(|(order, _)| order.payment).sum();
        let postings = orders.iter().map(posting).collect();
        Call { value, ..call(self.job_marketplace, JobMarketplace::postJobsCall { postings }) }
    }

    /// Lets proofs of a circuit be accepted; only the owner may.
    pub fn register_circuit(&self, id: B256, circuit: Circuit) -> Call {
        let circuit = ProofSystem::Circuit {
            verifier: circuit.verifier,
            codehash: circuit.codehash,
            jobs: circuit.jobs,
            spots: circuit.spots,
            candidates: circuit.candidates,
            active: true,
            manifest: circuit.manifest,
        };
        call(self.proof_system, ProofSystem::registerCircuitCall { circuitId: id, circuit })
    }

    /// Posts a job and locks its payment; for a token, the marketplace must be allowed to move it.
    pub fn post(&self, order: &Order) -> Call {
        let (details, requirements) = (order.details(), order.requirements());
        let (token, payment) = (order.token, order.payment);
        if token.is_zero() {
            let post = JobMarketplace::postJobCall { details, requirements, payment };
            return Call { value: payment, ..call(self.job_marketplace, post) };
        }
        call(self.job_marketplace, JobMarketplace::postJobWithTokenCall { details, requirements, token, payment })
    }
}

/// A circuit as governance registers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circuit {
    pub verifier: Address,
    /// Of the verifier's code.
    pub codehash: B256,
    /// Jobs per proof.
    pub jobs: u16,
    /// Positions opened per job.
    pub spots: u16,
    /// Candidates per record.
    pub candidates: u16,
    /// SHA-256 of the circuit's manifest.
    pub manifest: B256,
}

impl Order {
    /// Returns the terms of the job that it is once `renter` has posted it, for any host, in a block of that time.
    pub fn terms(&self, renter: Address, time: UnixSeconds) -> Terms {
        Terms {
            renter,
            model: self.model.to_string(),
            input: self.input.to_string(),
            max_tokens: self.max_tokens,
            temperature_milli: self.temperature_milli,
            seed: self.seed,
            payment: self.payment,
            token: self.token,
            deadline: UnixSeconds(time.0 + self.seconds),
            requires_proof: self.requires_proof,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: None,
            region: self.region.clone(),
        }
    }

    fn details(&self) -> JobMarketplace::JobDetails {
        JobMarketplace::JobDetails {
            modelId: self.model.to_string(),
            prompt: self.input.to_string(),
            maxTokens: U256::from(self.max_tokens),
            temperature: U256::from(self.temperature_milli),
            seed: self.seed,
            resultFormat: self.region.as_ref().map_or("text".into(), |region| format!("text; region={region}")),
        }
    }

    fn requirements(&self) -> JobMarketplace::JobRequirements {
        JobMarketplace::JobRequirements {
            minGPUMemory: U256::ZERO,
            minReputationScore: U256::ZERO,
            maxTimeToComplete: U256::from(self.seconds),
            requiresProof: self.requires_proof,
        }
    }
}

/// Allows `spender` to move `amount` of the sender's `token`.
pub fn approve(token: Address, spender: Address, amount: U256) -> Call {
    call(token, Erc20::approveCall { spender, amount })
}

/// Moves `amount` of the sender's `token`.
pub fn transfer(token: Address, to: Address, amount: U256) -> Call {
    call(token, Erc20::transferCall { to, amount })
}

fn number(job: JobId) -> U256 {
    U256::from(job.0)
}

fn call(to: Address, call: impl SolCall) -> Call {
    Call { to, data: call.abi_encode().into(), value: U256::ZERO }
}
