//! What the contracts keep of jobs and hosts, read at one block by its hash: a picture of one moment, whichever endpoint gives it.

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolCall;
use anyhow::{Context, Result};

use super::abi::{self, JobMarketplace, NodeRegistry, PaymentEscrow, ProofSystem};
use super::{Chain, request};
use crate::market::record::{Record, Registration};
use crate::market::types::{BlockRef, JobId, UnixSeconds};

/// Calls in one JSON-RPC batch.
const CALLS_PER_BATCH: usize = 100;

impl Chain {
    /// Returns how many jobs were posted up to block `at`, which is also the id of the newest.
    ///
    /// # Errors
    /// If the endpoint fails or has no state of that block.
    pub async fn jobs_posted(&self, at: BlockRef) -> Result<u64> {
        let count = self.read_at(at, self.contracts.job_marketplace, [JobMarketplace::jobCountCall {}]).await?;
        Ok(count.first().context("one answer")?.saturating_to())
    }

    /// Returns what the contracts keep of each of `jobs`, which were posted by then, at block `at`.
    ///
    /// # Errors
    /// As [`Chain::jobs_posted`], or if one was not posted.
    pub async fn records(&self, jobs: &[JobId], at: BlockRef) -> Result<Vec<Record>> {
        let contracts = &self.contracts;
        let ids = || jobs.iter().map(|job| U256::from(job.0));
        let stored = self
            .read_at(at, contracts.job_marketplace, ids().map(|id| JobMarketplace::getJobCall { jobId: id }))
            .await?;
        let escrows =
            self.read_at(at, contracts.payment_escrow, ids().map(|id| PaymentEscrow::getEscrowCall { jobId: id }));
        let escrows = escrows.await?;
        let commitments =
            self.read_at(at, contracts.proof_system, ids().map(|id| ProofSystem::commitmentOfCall { jobId: id }));
        let commitments = commitments.await?;
        let all = stored.into_iter().zip(escrows).zip(commitments);
        let record =
            |((job, escrow), commitment): ((JobMarketplace::Job, PaymentEscrow::Escrow), ProofSystem::Commitment)| {
                let state = match (job.status, commitment.nTokens) {
                    (0, _) => "posted",
                    (1, 0) => "claimed",
                    (1, _) => "committed",
                    (2, _) => "completed",
                    (3, _) => "released",
                    (4, _) => "refunded",
                    (5, _) => "disputed",
                    (other, _) => {
                        anyhow::bail!("the contract has a job in state {other}, which this program does not know")
                    }
                };
                let held = abi::ESCROW_HOLDS.contains(&escrow.state);
                Ok(Record {
                    state,
                    renter: job.renter,
                    host: (job.status != 0 && !job.host.is_zero()).then_some(job.host),
                    deadline: UnixSeconds(job.deadline.to()),
                    release_at: UnixSeconds(job.releaseAt.to()),
                    model_hash: job.modelHash,
                    input_hash: job.promptHash,
                    root: if commitment.nTokens == 0 { B256::ZERO } else { commitment.root },
                    escrowed: if held { escrow.amount.to() } else { U256::ZERO },
                    token: escrow.token,
                })
            };
        all.map(record).collect()
    }

    /// Returns what the registry keeps of `host` at block `at`.
    ///
    /// # Errors
    /// As [`Chain::jobs_posted`].
    pub async fn registration(&self, host: Address, at: BlockRef) -> Result<Registration> {
        let node = self.read_at(at, self.contracts.node_registry, [NodeRegistry::getNodeCall { host }]).await?;
        let node = node.first().context("one answer")?;
        Ok(Registration { stake: U256::from(node.stake), open_jobs: node.openJobs.into() })
    }

    /// Makes calls to one contract against the state of one block.
    async fn read_at<C: SolCall>(
        &self,
        at: BlockRef,
        to: Address,
        calls: impl IntoIterator<Item = C>,
    ) -> Result<Vec<C::Return>> {
        let what = || format!("read the state of {to} at block {} ({}) from {}", at.number, at.hash, self.endpoint);
        let data: Vec<Bytes> = calls.into_iter().map(|call| call.abi_encode().into()).collect();
        let mut returned = Vec::with_capacity(data.len());
        for data in data.chunks(CALLS_PER_BATCH) {
            let mut batch = self.client.new_batch();
            let call = |data: &Bytes| {
                let request = request(Address::ZERO, to, data.clone(), U256::ZERO);
                batch.add_call::<_, Bytes>("eth_call", &(request, BlockId::hash(at.hash)))
            };
            let answers = data.iter().map(call).collect::<Result<Vec<_>, _>>()?;
            batch.send().await.with_context(what)?;
            for answer in answers {
                returned.push(C::abi_decode_returns(&answer.await.with_context(what)?).with_context(what)?);
            }
        }
        Ok(returned)
    }
}
