// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {CircuitBreaker} from "../../src/CircuitBreaker.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {ReputationSystem} from "../../src/ReputationSystem.sol";
import {Books} from "./Books.sol";
import {Vm} from "./Vm.sol";

/// What an indexer knows that sees the suite's logs, in order, and the number and time of the block of each, and nothing
/// else: it never calls the suite. A log that it does not know is an error, so that no event is added without it.
contract Fold {
    /// Who says when a block begins.
    address private immutable clock;
    address private immutable escrow;
    address private immutable proofSystem;
    address private immutable reputation;
    address private immutable marketplace;

    uint256 private number;
    uint256 private time;

    mapping(address owned => address) public ownerOf;
    mapping(address contract_ => address) public successorOf;

    // By registry, of which there are two.
    mapping(address registry => bool) private isRegistry;
    mapping(address registry => mapping(address host => NodeRegistry.Node)) private nodes;
    mapping(address registry => mapping(address controller => NodeRegistry.Registrations)) private registrations;
    mapping(address registry => mapping(address controller => mapping(address host => bool))) public approved;
    mapping(address registry => uint256) public registrationsPerWindow;

    uint256 public jobCount;
    address public arbiter;
    mapping(address token => bool) public tokenAllowed;
    mapping(uint256 jobId => JobMarketplace.Job) private jobs;
    mapping(uint256 jobId => mapping(address controller => bool)) public gaveUp;
    /// Which registry the marketplace tells of its jobs.
    address private immutable registry;

    CircuitBreaker.Breaker private breaker_;
    /// Whether the last log was a guardian's pause, of which the next one says the level.
    bool private pausing;
    uint256 public missesForLevel1;
    uint256 public missesForLevel2;
    mapping(address account => bool) public isGuardian;

    uint256 public feeBps;
    mapping(uint256 jobId => PaymentEscrow.Escrow) private escrows;
    mapping(address token => mapping(address payee => uint256)) public credits;

    uint256 public challengeBond;
    mapping(bytes32 circuitId => ProofSystem.Circuit) private circuits;
    mapping(uint256 jobId => ProofSystem.Commitment) private commitments;
    mapping(uint256 jobId => bytes32) public pinnedBeacon;
    mapping(uint256 jobId => ProofSystem.Challenge) private challenges;

    uint256 public incentiveThreshold;
    mapping(address host => ReputationSystem.Record) private records;
    mapping(uint256 jobId => uint256) public ratingOf;

    error UnknownLog(address emitter, bytes32 kind);

    constructor(
        address clock_,
        address[2] memory registries,
        address escrow_,
        address proofSystem_,
        address reputation_,
        address marketplace_
    ) {
        (clock, registry) = (clock_, registries[0]);
        (isRegistry[registries[0]], isRegistry[registries[1]]) = (true, true);
        (escrow, proofSystem, reputation, marketplace) = (escrow_, proofSystem_, reputation_, marketplace_);
    }

    /// Folds the next logs.
    function take(Vm.Log[] calldata logs) external {
        for (uint256 i = 0; i < logs.length; i++) {
            address from = logs[i].emitter;
            bytes32[] memory topics = logs[i].topics;
            bytes memory data = logs[i].data;
            if (from == clock) takeClock(topics[0], data);
            else if (!isRegistry[from] && !isOther(from)) continue;
            else if (topics[0] == Ownable.OwnershipTransferred.selector) ownerOf[from] = account(topics[2]);
            else if (from == marketplace) takeMarketplace(topics, data);
            else if (from == escrow) takeEscrow(topics, data);
            else if (from == proofSystem) takeProofSystem(topics, data);
            else if (from == reputation) takeReputation(topics, data);
            else takeRegistry(from, topics, data);
        }
    }

    // What the getters must answer.

    function getNode(address of_, address host) external view returns (NodeRegistry.Node memory) {
        return nodes[of_][host];
    }

    function isActive(address of_, address host) external view returns (bool) {
        NodeRegistry.Node storage node = nodes[of_][host];
        return node.stake >= 1000e18 && node.unbondedAt == 0;
    }

    function registrationsOf(address of_, address who) external view returns (NodeRegistry.Registrations memory) {
        return registrations[of_][who];
    }

    function getJob(uint256 jobId) external view returns (JobMarketplace.Job memory) {
        return jobs[jobId];
    }

    function breaker() external view returns (CircuitBreaker.Breaker memory) {
        return breaker_;
    }

    function breakerLevel(uint256 at_) external view returns (uint256) {
        if (at_ < breaker_.pausedUntil) return 2;
        return at_ < breaker_.levelUntil ? breaker_.level : 0;
    }

    function getEscrow(uint256 jobId) external view returns (PaymentEscrow.Escrow memory) {
        return escrows[jobId];
    }

    function circuitOf(bytes32 circuitId) external view returns (ProofSystem.Circuit memory) {
        return circuits[circuitId];
    }

    function commitmentOf(uint256 jobId) external view returns (ProofSystem.Commitment memory) {
        return commitments[jobId];
    }

    function challengeOf(uint256 jobId) external view returns (ProofSystem.Challenge memory) {
        return challenges[jobId];
    }

    function recordOf(address host) external view returns (ReputationSystem.Record memory) {
        return records[host];
    }

    function scoreOf(address host, uint256 at_) external view returns (uint256) {
        ReputationSystem.Record memory record = records[host];
        if (record.updatedAt == 0) return 500;
        uint256 loss = 10 * ((at_ - record.updatedAt) / 7 days);
        return record.score <= 500 ? record.score : record.score < 500 + loss ? 500 : record.score - loss;
    }

    // What each log says.

    function takeClock(bytes32 kind, bytes memory data) private {
        if (kind == Books.NewBlock.selector) (number, time) = abi.decode(data, (uint256, uint256));
    }

    function takeMarketplace(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        bool wasPausing = pausing;
        pausing = false;
        if (takeBreaker(kind, topics, data, wasPausing)) return;
        if (kind == JobMarketplace.TokenAllowed.selector) {
            tokenAllowed[account(topics[1])] = abi.decode(data, (bool));
        } else if (kind == JobMarketplace.ArbiterChanged.selector) {
            arbiter = account(topics[1]);
        } else if (kind == JobMarketplace.Retired.selector) {
            successorOf[marketplace] = account(topics[1]);
        } else {
            takeJob(uint256(topics[1]), topics, data);
        }
    }

    function takeJob(uint256 jobId, bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        JobMarketplace.Job storage job = jobs[jobId];
        if (kind == JobMarketplace.JobTerms.selector) {
            jobCount++;
            job.renter = account(topics[2]);
            takeTerms(job, data);
        } else if (kind == JobMarketplace.JobClaimed.selector) {
            job.host = account(topics[2]);
            job.status = JobMarketplace.JobStatus.Claimed;
            nodes[registry][job.host].openJobs++;
        } else if (kind == JobMarketplace.JobCompleted.selector) {
            job.status = JobMarketplace.JobStatus.Completed;
        } else if (kind == JobMarketplace.JobDisputed.selector) {
            job.status = JobMarketplace.JobStatus.Disputed;
        } else if (kind == JobMarketplace.JobReleaseDue.selector) {
            job.releaseAt = uint40(abi.decode(data, (uint64)));
        } else if (kind == JobMarketplace.PaymentReleased.selector) {
            job.status = JobMarketplace.JobStatus.Released;
            nodes[registry][job.host].openJobs--;
            countJob(false);
        } else if (kind == JobMarketplace.PaymentRefunded.selector) {
            job.status = JobMarketplace.JobStatus.Refunded;
        } else if (kind == JobMarketplace.JobReopened.selector) {
            job.status = JobMarketplace.JobStatus.Posted;
            job.host = address(0);
            gaveUp[jobId][account(topics[2])] = true;
        } else if (kind == JobMarketplace.DeadlineMissed.selector) {
            countJob(true);
        } else if (kind == JobMarketplace.JobFailed.selector || kind == JobMarketplace.RefundAgreed.selector) {
            nodes[registry][job.host].openJobs--;
        } else if (kind == JobMarketplace.DisputeResolved.selector) {
            if (abi.decode(data, (bool))) nodes[registry][job.host].openJobs--;
        } else if (!saysNothingNew(kind)) {
            revert UnknownLog(marketplace, kind);
        }
    }

    /// What other logs of the same transaction say too.
    function saysNothingNew(bytes32 kind) private pure returns (bool) {
        return kind == JobMarketplace.JobCreated.selector || kind == JobMarketplace.JobPosted.selector
            || kind == JobMarketplace.JobCancelled.selector || kind == JobMarketplace.JobExpired.selector
            || kind == JobMarketplace.DisputeLapsed.selector || kind == JobMarketplace.EvidenceAdded.selector;
    }

    function takeTerms(JobMarketplace.Job storage job, bytes memory data) private {
        (
            ,,
            uint64 deadline,
            address reservedFor,
            JobMarketplace.JobDetails memory d,
            JobMarketplace.JobRequirements memory r
        ) = abi.decode(
            data, (address, uint256, uint64, address, JobMarketplace.JobDetails, JobMarketplace.JobRequirements)
        );
        job.deadline = uint40(deadline);
        job.host = reservedFor;
        job.reserved = reservedFor != address(0);
        job.requiresProof = r.requiresProof;
        job.minReputation = uint16(r.minReputationScore);
        job.temperature = uint16(d.temperature);
        job.seed = d.seed;
        job.maxTokens = uint24(d.maxTokens);
        job.modelHash = keccak256(bytes(d.modelId));
        job.promptHash = keccak256(bytes(d.prompt));
    }

    function takeBreaker(bytes32 kind, bytes32[] memory topics, bytes memory data, bool wasPausing)
        private
        returns (bool)
    {
        if (kind == CircuitBreaker.EmergencyPause.selector) {
            breaker_.pausedUntil = uint40(time + 3 days);
            breaker_.pauseAllowedFrom = uint40(time + 17 days);
            pausing = true;
        } else if (kind == CircuitBreaker.CircuitBreakerTriggered.selector) {
            if (wasPausing) return true;
            (, uint256 level) = abi.decode(data, (string, uint256));
            (breaker_.level, breaker_.levelUntil) = (uint8(level), uint40(time + 1 hours));
        } else if (kind == CircuitBreaker.EmergencyUnpause.selector) {
            breaker_ = CircuitBreaker.Breaker(0, 0, 0, 0, 0, 0, breaker_.pauseAllowedFrom);
        } else if (kind == CircuitBreaker.GuardianSet.selector) {
            isGuardian[account(topics[1])] = abi.decode(data, (bool));
        } else if (kind == CircuitBreaker.BreakerThresholdsChanged.selector) {
            (missesForLevel1, missesForLevel2) = abi.decode(data, (uint256, uint256));
        } else {
            return false;
        }
        return true;
    }

    /// A job was paid or missed.
    function countJob(bool missed) private {
        if (time >= uint256(breaker_.windowStart) + 1 hours) {
            (breaker_.windowStart, breaker_.ended, breaker_.missed) = (uint40(time), 0, 0);
        }
        breaker_.ended++;
        if (missed) breaker_.missed++;
    }

    function takeEscrow(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        if (kind == PaymentEscrow.FeeChanged.selector) {
            feeBps = abi.decode(data, (uint256));
            return;
        }
        PaymentEscrow.Escrow storage e = escrows[uint256(topics[1])];
        if (kind == PaymentEscrow.EscrowCreated.selector) {
            (uint256 amount, address token) = abi.decode(data, (uint256, address));
            escrows[uint256(topics[1])] = PaymentEscrow.Escrow(
                account(topics[2]), uint96(amount), token, PaymentEscrow.State.Held, uint16(feeBps), false
            );
        } else if (kind == PaymentEscrow.EscrowReleased.selector) {
            e.state = PaymentEscrow.State.Released;
        } else if (kind == PaymentEscrow.EscrowRefunded.selector) {
            e.state = PaymentEscrow.State.Refunded;
        } else if (kind == PaymentEscrow.EscrowDisputed.selector) {
            e.state = PaymentEscrow.State.Disputed;
        } else if (kind == PaymentEscrow.RefundRequested.selector) {
            e.refundRequested = true;
        } else if (kind == PaymentEscrow.PaymentCredited.selector) {
            credits[account(topics[2])][account(topics[1])] += abi.decode(data, (uint256));
        } else if (kind == PaymentEscrow.CreditWithdrawn.selector) {
            (, uint256 amount) = abi.decode(data, (address, uint256));
            credits[account(topics[2])][account(topics[1])] -= amount;
        } else if (kind != PaymentEscrow.DisputeResolved.selector) {
            revert UnknownLog(escrow, kind);
        }
    }

    function takeProofSystem(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        if (kind == ProofSystem.ChallengeBondChanged.selector) {
            challengeBond = abi.decode(data, (uint256));
        } else if (kind == ProofSystem.CircuitRegistered.selector) {
            circuits[topics[1]] = abi.decode(data, (ProofSystem.Circuit));
        } else if (kind == ProofSystem.ResultCommitted.selector) {
            (bytes32 root, uint32 nTokens, bytes32 resultHash, bytes32 tokensDigest) =
                abi.decode(data, (bytes32, uint32, bytes32, bytes32));
            commitments[uint256(topics[1])] =
                ProofSystem.Commitment(root, resultHash, tokensDigest, uint64(number), nTokens, false);
        } else if (kind == ProofSystem.CommitmentDiscarded.selector) {
            delete commitments[uint256(topics[1])];
            delete pinnedBeacon[uint256(topics[1])];
        } else if (kind == ProofSystem.BeaconPinned.selector) {
            pinnedBeacon[uint256(topics[1])] = abi.decode(data, (bytes32));
        } else if (kind == ProofSystem.ProofVerified.selector) {
            commitments[uint256(topics[1])].proven = abi.decode(data, (bool));
        } else if (kind == ProofSystem.ProofChallenged.selector) {
            challenges[uint256(topics[1])].challenger = account(topics[2]);
        } else if (kind == ProofSystem.ChallengeBonded.selector) {
            challenges[uint256(topics[1])].bond = abi.decode(data, (uint96));
        } else if (kind == ProofSystem.ChallengeResolved.selector) {
            delete challenges[uint256(topics[1])];
        } else if (
            kind != ProofSystem.ProofSubmitted.selector && kind != ProofSystem.BatchVerificationCompleted.selector
        ) {
            revert UnknownLog(proofSystem, kind);
        }
    }

    function takeReputation(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        if (kind == ReputationSystem.ReputationUpdated.selector) {
            (, uint256 score) = abi.decode(data, (int256, uint256));
            records[account(topics[1])] = ReputationSystem.Record(uint16(score), uint40(time));
        } else if (kind == ReputationSystem.JobRated.selector) {
            ratingOf[uint256(topics[1])] = abi.decode(data, (uint256));
        } else if (kind == ReputationSystem.IncentiveThresholdChanged.selector) {
            incentiveThreshold = abi.decode(data, (uint256));
        } else if (
            kind != ReputationSystem.QualityReported.selector && kind != ReputationSystem.ReputationSlashed.selector
        ) {
            revert UnknownLog(reputation, kind);
        }
    }

    function takeRegistry(address of_, bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        if (kind == NodeRegistry.RegistrationsPerWindowChanged.selector) {
            registrationsPerWindow[of_] = abi.decode(data, (uint256));
            return;
        }
        address who = account(topics[1]);
        NodeRegistry.Node storage node = nodes[of_][who];
        if (kind == NodeRegistry.NodeRegistered.selector) {
            (uint256 stake,) = abi.decode(data, (uint256, string));
            node.stake = uint128(stake);
        } else if (kind == NodeRegistry.NodeController.selector) {
            node.controller = account(topics[2]);
            countRegistration(registrations[of_][node.controller], abi.decode(data, (uint32)));
        } else if (kind == NodeRegistry.StakeAdded.selector) {
            node.stake += uint128(abi.decode(data, (uint256)));
        } else if (kind == NodeRegistry.NodeSlashed.selector) {
            (uint256 amount,) = abi.decode(data, (uint256, string));
            node.stake -= uint128(amount);
        } else if (kind == NodeRegistry.UnbondingStarted.selector) {
            node.unbondedAt = uint40(abi.decode(data, (uint64)));
        } else if (kind == NodeRegistry.UnbondingCancelled.selector) {
            node.unbondedAt = 0;
        } else if (kind == NodeRegistry.NodeUnregistered.selector || kind == NodeRegistry.StakeMoved.selector) {
            delete nodes[of_][who];
        } else if (kind == NodeRegistry.HostApproved.selector) {
            approved[of_][who][account(topics[2])] = abi.decode(data, (bool));
        } else if (kind == NodeRegistry.Retired.selector) {
            successorOf[of_] = who;
        } else if (kind != NodeRegistry.MetadataUpdated.selector) {
            revert UnknownLog(of_, kind);
        }
    }

    /// Hosts that moved here (window 0) do not count against the limit.
    function countRegistration(NodeRegistry.Registrations storage past, uint32 window) private {
        if (window == 0) return;
        past.count = past.window == window ? past.count + 1 : 1;
        past.window = window;
    }

    function isOther(address from) private view returns (bool) {
        return from == marketplace || from == escrow || from == proofSystem || from == reputation;
    }

    function account(bytes32 topic) private pure returns (address) {
        return address(uint160(uint256(topic)));
    }
}
