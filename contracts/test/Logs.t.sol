// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {Picky} from "./lib/Tokens.sol";
import {Vm} from "./lib/Vm.sol";
import {World} from "./lib/World.sol";

/// No state is hidden: what every getter answers can be rebuilt from the logs alone.
contract LogsTest is World {
    mapping(uint256 jobId => JobMarketplace.Job) private jobs;
    mapping(uint256 jobId => PaymentEscrow.Escrow) private escrows;
    mapping(uint256 jobId => ProofSystem.Commitment) private commitments;
    mapping(uint256 jobId => bytes32) private beacons;
    mapping(address host => NodeRegistry.Node) private nodes;
    mapping(bytes32 circuitId => ProofSystem.Circuit) private circuits;
    mapping(address token => mapping(address payee => uint256)) private credits;
    mapping(address token => bool) private allowed;
    uint256 private jobCount;

    function setUp() public override {
        vm.recordLogs();
        super.setUp();
    }

    function test_the_logs_rebuild_every_getter() public {
        address picky = address(new Picky());
        register(picky);
        everyTransition(picky);
        foldAll();

        vm.assertEq(marketplace.jobCount(), jobCount);
        for (uint256 jobId = 1; jobId <= jobCount; jobId++) {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(jobs[jobId]));
            vm.assertEq(abi.encode(escrow.getEscrow(jobId)), abi.encode(escrows[jobId]));
            vm.assertEq(abi.encode(proofSystem.commitmentOf(jobId)), abi.encode(commitments[jobId]));
            vm.assertEq(proofSystem.pinnedBeacon(jobId), beacons[jobId]);
        }
        address[3] memory hosts = [host, rival, picky];
        for (uint256 i = 0; i < hosts.length; i++) {
            vm.assertEq(abi.encode(registry.getNode(hosts[i])), abi.encode(nodes[hosts[i]]));
            vm.assertEq(escrow.credits(address(0), hosts[i]), credits[address(0)][hosts[i]]);
        }
        vm.assertEq(abi.encode(proofSystem.circuitOf(CIRCUIT)), abi.encode(circuits[CIRCUIT]));
        vm.assertEq(uint256(marketplace.tokenAllowed(address(usd)) ? 1 : 0), allowed[address(usd)] ? 1 : 0);
        vm.assertTrue(credits[address(0)][picky] != 0);
    }

    function everyTransition(address picky) private {
        post(); // stays posted
        claim(post()); // stays claimed
        proofSystem.pinBeacon(committed()); // stays committed
        uint256 released = completed();
        completed(); // stays completed
        uint256 cancelled = postUsd(5e6);
        vm.prank(renter);
        marketplace.cancelJob(cancelled);
        uint256 expired = post();
        uint256 failed = committed();
        address before = host;
        host = picky;
        uint256 credited = completed();
        host = before;
        release(released);
        release(credited);
        marketplace.expireJob(expired);
        marketplace.expireJob(failed);
        fab.transfer(host, 3);
        vm.startPrank(host);
        fab.approve(address(registry), 3);
        registry.addStake(3);
        vm.stopPrank();
        vm.prank(rival);
        registry.unregisterNode();
    }

    function foldAll() private {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; i++) {
            address from = logs[i].emitter;
            bytes32[] memory topics = logs[i].topics;
            if (from == address(marketplace)) foldMarketplace(topics, logs[i].data);
            else if (from == address(escrow)) foldEscrow(topics, logs[i].data);
            else if (from == address(proofSystem)) foldProofSystem(topics, logs[i].data);
            else if (from == address(registry)) foldRegistry(topics, logs[i].data);
        }
    }

    function foldMarketplace(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        if (kind == JobMarketplace.TokenAllowed.selector) {
            allowed[account(topics[1])] = abi.decode(data, (bool));
            return;
        }
        JobMarketplace.Job storage job = jobs[uint256(topics[1])];
        if (kind == JobMarketplace.JobPosted.selector) {
            jobCount++;
            job.renter = account(topics[2]);
        } else if (kind == JobMarketplace.JobTerms.selector) {
            foldTerms(job, data);
        } else if (kind == JobMarketplace.JobClaimed.selector) {
            job.host = account(topics[2]);
            job.status = JobMarketplace.JobStatus.Claimed;
            nodes[job.host].openJobs++;
        } else if (kind == JobMarketplace.JobCompleted.selector) {
            job.status = JobMarketplace.JobStatus.Completed;
        } else if (kind == JobMarketplace.JobReleaseDue.selector) {
            job.releaseAt = uint40(abi.decode(data, (uint64)));
        } else if (kind == JobMarketplace.PaymentReleased.selector) {
            job.status = JobMarketplace.JobStatus.Released;
            nodes[job.host].openJobs--;
        } else if (kind == JobMarketplace.JobFailed.selector) {
            nodes[account(topics[2])].openJobs--;
        } else if (kind == JobMarketplace.PaymentRefunded.selector) {
            job.status = JobMarketplace.JobStatus.Refunded;
        }
    }

    function foldTerms(JobMarketplace.Job storage job, bytes memory data) private {
        (,, uint64 deadline, JobMarketplace.JobDetails memory d, JobMarketplace.JobRequirements memory r) =
            abi.decode(data, (address, uint256, uint64, JobMarketplace.JobDetails, JobMarketplace.JobRequirements));
        job.deadline = uint40(deadline);
        job.requiresProof = r.requiresProof;
        job.temperature = uint16(d.temperature);
        job.seed = d.seed;
        job.maxTokens = uint24(d.maxTokens);
        job.modelHash = keccak256(bytes(d.modelId));
        job.promptHash = keccak256(bytes(d.prompt));
    }

    function foldEscrow(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        PaymentEscrow.Escrow storage e = escrows[uint256(topics[1])];
        if (kind == PaymentEscrow.EscrowCreated.selector) {
            (uint256 amount, address token) = abi.decode(data, (uint256, address));
            escrows[uint256(topics[1])] =
                PaymentEscrow.Escrow(account(topics[2]), uint96(amount), token, PaymentEscrow.State.Held);
        } else if (kind == PaymentEscrow.EscrowReleased.selector) {
            e.state = PaymentEscrow.State.Released;
        } else if (kind == PaymentEscrow.EscrowRefunded.selector) {
            e.state = PaymentEscrow.State.Refunded;
        } else if (kind == PaymentEscrow.PaymentCredited.selector) {
            credits[account(topics[2])][account(topics[1])] += abi.decode(data, (uint256));
        }
    }

    function foldProofSystem(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        if (kind == ProofSystem.CircuitRegistered.selector) {
            circuits[topics[1]] = abi.decode(data, (ProofSystem.Circuit));
        } else if (kind == ProofSystem.ResultCommitted.selector) {
            (bytes32 root, uint32 nTokens, bytes32 resultHash, bytes32 tokensDigest) =
                abi.decode(data, (bytes32, uint32, bytes32, bytes32));
            // A log also says its block; the recorder of these tests does not keep it.
            uint64 atBlock = proofSystem.commitmentOf(uint256(topics[1])).atBlock;
            commitments[uint256(topics[1])] =
                ProofSystem.Commitment(root, resultHash, tokensDigest, atBlock, nTokens, false);
        } else if (kind == ProofSystem.BeaconPinned.selector) {
            beacons[uint256(topics[1])] = abi.decode(data, (bytes32));
        } else if (kind == ProofSystem.ProofVerified.selector) {
            commitments[uint256(topics[1])].proven = abi.decode(data, (bool));
        }
    }

    function foldRegistry(bytes32[] memory topics, bytes memory data) private {
        bytes32 kind = topics[0];
        NodeRegistry.Node storage n = nodes[account(topics[1])];
        if (kind == NodeRegistry.NodeRegistered.selector) {
            (uint256 stake,) = abi.decode(data, (uint256, string));
            n.stake = uint128(stake);
        } else if (kind == NodeRegistry.StakeAdded.selector) {
            n.stake += uint128(abi.decode(data, (uint256)));
        } else if (kind == NodeRegistry.NodeUnregistered.selector) {
            delete nodes[account(topics[1])];
        }
    }

    function account(bytes32 topic) private pure returns (address) {
        return address(uint160(uint256(topic)));
    }
}
