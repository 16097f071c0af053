//! The calls a host or a renter makes, ready to be signed. Encoding only; nothing is sent here.

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::SolCall;

use super::Contracts;
use super::abi::{Erc20, JobMarketplace, NodeRegistry, ProofSystem};
use crate::market::event::Commitment;
use crate::market::types::{Cid, JobId, ModelId};

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
}

impl Contracts {
    /// Takes the job for the sender.
    pub fn claim(&self, job: JobId) -> Call {
        call(self.job_marketplace, JobMarketplace::claimJobCall { jobId: number(job) })
    }

    /// Binds the sender to a result before the positions to open are drawn.
    pub fn commit(&self, job: JobId, commitment: &Commitment) -> Call {
        call(
            self.proof_system,
            ProofSystem::commitResultCall {
                jobId: number(job),
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

    /// Pays the host of a completed job after its challenge window.
    pub fn release(&self, job: JobId) -> Call {
        call(self.job_marketplace, JobMarketplace::releasePaymentCall { jobId: number(job) })
    }

    /// Gives the renter the money back after the deadline.
    pub fn expire(&self, job: JobId) -> Call {
        call(self.job_marketplace, JobMarketplace::expireJobCall { jobId: number(job) })
    }

    /// Registers the sender as a host; the registry must be allowed to move the stake.
    pub fn register(&self, metadata: String) -> Call {
        call(self.node_registry, NodeRegistry::registerNodeCall { metadata })
    }

    /// Posts a job and locks its payment; for a token, the marketplace must be allowed to move it.
    pub fn post(&self, order: &Order) -> Call {
        let details = JobMarketplace::JobDetails {
            modelId: order.model.to_string(),
            prompt: order.input.to_string(),
            maxTokens: U256::from(order.max_tokens),
            temperature: U256::from(order.temperature_milli),
            seed: order.seed,
            resultFormat: "text".into(),
        };
        let requirements = JobMarketplace::JobRequirements {
            minGPUMemory: U256::ZERO,
            minReputationScore: U256::ZERO,
            maxTimeToComplete: U256::from(order.seconds),
            requiresProof: order.requires_proof,
        };
        let (token, payment) = (order.token, order.payment);
        if token.is_zero() {
            let post = JobMarketplace::postJobCall { details, requirements, payment };
            return Call { value: payment, ..call(self.job_marketplace, post) };
        }
        call(self.job_marketplace, JobMarketplace::postJobWithTokenCall { details, requirements, token, payment })
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
