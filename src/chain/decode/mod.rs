//! From logs to events: past this border there are no ABI words. Nothing is guessed: what does not decode stays raw.

use alloy::primitives::U256;
use alloy::sol_types::SolEventInterface;
use anyhow::{Context, Result, ensure};

use super::abi::BaseAccountIntegration::BaseAccountIntegrationEvents;
use super::abi::Erc1967::Erc1967Events;
use super::abi::Governance::GovernanceEvents;
use super::abi::JobMarketplace::{self as marketplace, JobMarketplaceEvents};
use super::abi::NodeRegistry::NodeRegistryEvents;
use super::abi::PaymentEscrow::PaymentEscrowEvents;
use super::abi::ProofSystem::ProofSystemEvents;
use super::abi::ReputationSystem::ReputationSystemEvents;
use super::abi::TimelockController::TimelockControllerEvents;
use super::{Abi, Contracts, Role};
use crate::market::event::{Commitment, Event, RawLog, Terms};
use crate::market::types::{JobId, UnixSeconds};

/// Reads the event in a log of one of `contracts`, as what is spoken at its address in its block.
///
/// # Errors
/// If the log is another contract's, its event is unknown, or a value does not fit what it stands for.
pub fn event(contracts: &Contracts, log: &RawLog) -> Result<Event> {
    decoded(contracts, log).with_context(|| format!("log {} of block {}", log.index, log.block.number))
}

fn decoded(contracts: &Contracts, log: &RawLog) -> Result<Event> {
    let RawLog { block, address, topics, data, .. } = log;
    let spoken = contracts.spoken(*address, block.number);
    let (role, abi) = spoken.with_context(|| format!("contract {address} is none of ours in that block"))?;
    // Whatever else it speaks, and from whenever on.
    if topics.first().is_some_and(|topic| Erc1967Events::SELECTORS.contains(topic)) {
        return Ok(from_proxy(&Erc1967Events::decode_raw_log(topics, data)?));
    }
    ensure!(abi == Abi::V1, "what contract {address} speaks in that block is not known");
    match role {
        Role::JobMarketplace => from_marketplace(JobMarketplaceEvents::decode_raw_log(topics, data)?),
        Role::ProofSystem => from_proof_system(ProofSystemEvents::decode_raw_log(topics, data)?),
        Role::PaymentEscrow => from_escrow(PaymentEscrowEvents::decode_raw_log(topics, data)?),
        Role::NodeRegistry => from_registry(NodeRegistryEvents::decode_raw_log(topics, data)?),
        Role::ReputationSystem => from_reputation(ReputationSystemEvents::decode_raw_log(topics, data)?),
        Role::Governance => Ok(from_governance(&GovernanceEvents::decode_raw_log(topics, data)?)),
        Role::Timelock => Ok(from_timelock(&TimelockControllerEvents::decode_raw_log(topics, data)?)),
        Role::AccountFactory => Ok(from_accounts(&BaseAccountIntegrationEvents::decode_raw_log(topics, data)?)),
    }
}

/// Reads an event: those that say something by their own arms, the others by their names, with their job or without.
macro_rules! read {
    ($event:expr, $kind:ident { $($says:ident($e:ident) => $what:expr),* } jobs { $($job:ident),* } others { $($other:ident),* }) => {
        Ok(match $event {
            $($kind::$says($e) => $what,)*
            $($kind::$job(e) => Event::Noted { name: stringify!($job), job: Some(job_id(e.jobId)?) },)*
            $($kind::$other(_) => Event::Noted { name: stringify!($other), job: None },)*
        })
    };
}

fn from_marketplace(event: JobMarketplaceEvents) -> Result<Event> {
    use JobMarketplaceEvents as E;
    read!(event, E {
        JobTerms(e) => Event::JobTerms { job: job_id(e.jobId)?, terms: terms(e)? },
        JobClaimed(e) => Event::JobClaimed { job: job_id(e.jobId)?, host: e.host },
        JobReopened(e) => Event::JobReopened { job: job_id(e.jobId)?, controller: e.controller },
        JobCompleted(e) => Event::JobCompleted { job: job_id(e.jobId)?, output: e.resultCID },
        JobDisputed(e) => Event::JobDisputed { job: job_id(e.jobId)?, disputer: e.disputer },
        JobReleaseDue(e) => Event::ReleaseDue { job: job_id(e.jobId)?, at: UnixSeconds(e.releaseAt) },
        PaymentReleased(e) => Event::PaymentReleased { job: job_id(e.jobId)?, host: e.node, amount: e.amount },
        PaymentRefunded(e) => Event::PaymentRefunded { job: job_id(e.jobId)?, renter: e.client, amount: e.amount }
    } jobs {
        JobCreated, JobPosted, JobCancelled, JobExpired, JobFailed, DeadlineMissed, RefundAgreed, EvidenceAdded,
        DisputeResolved, DisputeLapsed
    } others {
        TokenAllowed, ArbiterChanged, Retired, EmergencyPause, EmergencyUnpause, CircuitBreakerTriggered, GuardianSet,
        BreakerThresholdsChanged, OwnershipTransferred
    })
}

fn from_proof_system(event: ProofSystemEvents) -> Result<Event> {
    use ProofSystemEvents as E;
    read!(event, E {
        ResultCommitted(e) => Event::ResultCommitted {
            job: job_id(e.jobId)?,
            host: e.host,
            commitment: Commitment {
                root: e.root,
                tokens: e.nTokens,
                result_hash: e.resultHash,
                tokens_digest: e.tokensDigest,
            },
        },
        BeaconPinned(e) => Event::BeaconPinned { job: job_id(e.jobId)?, beacon: e.beacon }
    } jobs {
        CommitmentDiscarded, ProofSubmitted, ProofVerified, ProofChallenged, ChallengeBonded, ChallengeResolved
    } others {
        BatchVerificationCompleted, ChallengeBondChanged, CircuitRegistered, OwnershipTransferred
    })
}

fn from_escrow(event: PaymentEscrowEvents) -> Result<Event> {
    use PaymentEscrowEvents as E;
    read!(event, E {
        EscrowCreated(e) => Event::EscrowCreated { job: job_id(e.jobId)?, amount: e.amount, token: e.token },
        EscrowReleased(e) => Event::EscrowReleased { job: job_id(e.jobId)?, net: e.amount, fee: e.fee },
        PaymentCredited(e) => Event::PaymentCredited { payee: e.payee, token: e.token, amount: e.amount },
        CreditWithdrawn(e) => {
            Event::CreditWithdrawn { payee: e.payee, token: e.token, to: e.to, amount: e.amount }
        }
    } jobs {
        EscrowRefunded, EscrowDisputed, DisputeResolved, RefundRequested
    } others {
        FeeChanged, OwnershipTransferred
    })
}

fn from_registry(event: NodeRegistryEvents) -> Result<Event> {
    use NodeRegistryEvents as E;
    read!(event, E {
        NodeRegistered(e) => Event::HostRegistered { host: e.operator, stake: e.stakedAmount, metadata: e.metadata },
        NodeUnregistered(e) => Event::HostUnregistered { host: e.operator },
        StakeAdded(e) => Event::StakeAdded { host: e.operator, amount: e.additionalAmount },
        NodeSlashed(e) => Event::HostSlashed { host: e.node, amount: e.amount },
        MetadataUpdated(e) => Event::MetadataUpdated { host: e.operator, metadata: e.newMetadata }
    } jobs {} others {
        NodeController, UnbondingStarted, UnbondingCancelled, HostApproved, RegistrationsPerWindowChanged, Retired,
        StakeMoved, OwnershipTransferred
    })
}

fn from_reputation(event: ReputationSystemEvents) -> Result<Event> {
    use ReputationSystemEvents as E;
    read!(event, E {
        ReputationUpdated(e) => Event::ReputationUpdated { host: e.host, score: e.newScore.saturating_to() }
    } jobs { JobRated } others {
        QualityReported, ReputationSlashed, IncentiveThresholdChanged, OwnershipTransferred
    })
}

/// The names of events that only people read.
macro_rules! name {
    ($event:expr, $kind:ident { $($name:ident),* }) => {
        Event::Noted { name: match $event { $($kind::$name(_) => stringify!($name)),* }, job: None }
    };
}

fn from_governance(event: &GovernanceEvents) -> Event {
    use GovernanceEvents as E;
    name!(
        event,
        E {
            EIP712DomainChanged,
            ProposalCanceled,
            ProposalCreated,
            ProposalExecuted,
            ProposalQueued,
            ProposalThresholdSet,
            QuorumNumeratorUpdated,
            TimelockChange,
            VoteCast,
            VoteCastWithParams,
            VotingDelaySet,
            VotingPeriodSet
        }
    )
}

fn from_timelock(event: &TimelockControllerEvents) -> Event {
    use TimelockControllerEvents as E;
    name!(
        event,
        E {
            CallExecuted,
            CallSalt,
            CallScheduled,
            Cancelled,
            MinDelayChange,
            RoleAdminChanged,
            RoleGranted,
            RoleRevoked
        }
    )
}

fn from_accounts(event: &BaseAccountIntegrationEvents) -> Event {
    use BaseAccountIntegrationEvents as E;
    name!(event, E { AccountCreated })
}

fn from_proxy(event: &Erc1967Events) -> Event {
    use Erc1967Events as E;
    name!(event, E { Upgraded, BeaconUpgraded, AdminChanged })
}

/// The contract has no word for a region: a renter writes it into the result's format, as in `text; region=eu-west`.
fn region(format: &str) -> Option<String> {
    let named = format.split(';').find_map(|part| part.trim().strip_prefix("region="))?;
    Some(named.trim().to_owned()).filter(|name| !name.is_empty())
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
        reserved_for: (!e.reservedFor.is_zero()).then_some(e.reservedFor),
        region: region(&e.details.resultFormat),
    })
}

/// Some contracts write a job's number as `uint256`, others as `bytes32`. SQLite's integers end at 2^63; the contract
/// counts jobs up from 1 and never comes near.
fn job_id(word: impl Into<U256>) -> Result<JobId> {
    let word = word.into();
    let id: u64 =
        word.try_into().ok().filter(|id| *id > 0 && *id < 1 << 62).with_context(|| format!("job id {word}"))?;
    Ok(JobId(id))
}

#[cfg(test)]
mod tests;
