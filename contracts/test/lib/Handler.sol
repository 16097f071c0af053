// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TestUsd} from "../../script/TestUsd.sol";
import {GovernanceToken} from "../../src/GovernanceToken.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Test} from "./Test.sol";
import {Picky} from "./Tokens.sol";

/// What accounts may do in any order, as the fuzzer picks it: four accounts, each of which posts and hosts, two of which
/// take ETH only at times. Every action is one that must succeed or is skipped.
contract Handler is Test {
    GovernanceToken private immutable fab;
    TestUsd private immutable usd;
    NodeRegistry private immutable registry;
    PaymentEscrow private immutable escrow;
    JobMarketplace private immutable marketplace;
    ProofSystem private immutable proofSystem;

    uint256 public constant ACCOUNTS = 4;
    address[] public accounts;
    /// What each account was given of a token.
    uint256 public constant ETH_GIVEN = 1e24;
    uint256 public constant USD_GIVEN = 1e14;

    constructor(
        GovernanceToken fab_,
        TestUsd usd_,
        NodeRegistry registry_,
        PaymentEscrow escrow_,
        JobMarketplace marketplace_,
        ProofSystem proofSystem_
    ) {
        (fab, usd, registry, escrow) = (fab_, usd_, registry_, escrow_);
        (marketplace, proofSystem) = (marketplace_, proofSystem_);
        for (uint256 i = 0; i < ACCOUNTS; i++) {
            address account = i < 2 ? address(new Picky()) : address(uint160(0xACC0 + i));
            accounts.push(account);
            vm.deal(account, ETH_GIVEN);
            vm.startPrank(account);
            fab.approve(address(registry), type(uint256).max);
            usd.approve(address(marketplace), type(uint256).max);
            vm.stopPrank();
        }
    }

    modifier as_(uint256 who) {
        vm.startPrank(accounts[who % ACCOUNTS]);
        _;
        vm.stopPrank();
    }

    function postEth(uint256 who, uint256 amount, bool requiresProof) external as_(who) {
        amount = bound(amount, 1, 1e20);
        (JobMarketplace.JobDetails memory d, JobMarketplace.JobRequirements memory r) = terms(amount, requiresProof);
        marketplace.postJob{value: amount}(d, r, amount);
    }

    function postUsd(uint256 who, uint256 amount) external as_(who) {
        amount = bound(amount, 1, 1e10);
        (JobMarketplace.JobDetails memory d, JobMarketplace.JobRequirements memory r) = terms(amount, false);
        marketplace.postJobWithToken(d, r, address(usd), amount);
    }

    function registerOrUnregister(uint256 who) external as_(who) {
        address account = accounts[who % ACCOUNTS];
        if (!registry.isActive(account)) registry.registerNode("{}");
        else if (registry.getNode(account).openJobs == 0) registry.unregisterNode();
    }

    function claim(uint256 who, uint256 pick) external as_(who) {
        (uint256 jobId, bool found) = find(pick, JobMarketplace.JobStatus.Posted);
        if (!found || block.timestamp >= marketplace.getJob(jobId).deadline) return;
        if (registry.isActive(accounts[who % ACCOUNTS])) marketplace.claimJob(jobId);
    }

    /// Commits to a claimed job's result and, unless it takes a proof, completes it.
    function complete(uint256 pick) external {
        (uint256 jobId, bool found) = find(pick, JobMarketplace.JobStatus.Claimed);
        if (!found) return;
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        if (block.timestamp >= job.deadline) return;
        vm.startPrank(job.host);
        if (proofSystem.commitmentOf(jobId).nTokens == 0) {
            proofSystem.commitResult(jobId, "root", 1, keccak256("r"), "tokens");
        }
        if (!job.requiresProof) marketplace.completeJob(jobId, "r", "");
        vm.stopPrank();
    }

    /// Waits for the challenge window's end if it must, so that payments are as likely as refunds.
    function release(uint256 pick) external {
        (uint256 jobId, bool found) = find(pick, JobMarketplace.JobStatus.Completed);
        if (!found) return;
        uint256 releaseAt = marketplace.getJob(jobId).releaseAt;
        if (block.timestamp < releaseAt) vm.warp(releaseAt);
        marketplace.releasePayment(jobId);
    }

    function expire(uint256 pick, bool claimed) external {
        (uint256 jobId, bool found) =
            find(pick, claimed ? JobMarketplace.JobStatus.Claimed : JobMarketplace.JobStatus.Posted);
        if (found && block.timestamp >= marketplace.getJob(jobId).deadline) marketplace.expireJob(jobId);
    }

    /// One time in four, lest few jobs live to be claimed.
    function cancel(uint256 pick) external {
        if (pick % 4 != 0) return;
        (uint256 jobId, bool found) = find(pick, JobMarketplace.JobStatus.Posted);
        if (!found) return;
        vm.prank(marketplace.getJob(jobId).renter);
        marketplace.cancelJob(jobId);
    }

    function withdraw(uint256 who) external as_(who) {
        address account = accounts[who % ACCOUNTS];
        bool willing = who % ACCOUNTS >= 2 || Picky(payable(account)).willing();
        if (willing && escrow.credits(address(0), account) != 0) escrow.withdraw(address(0), account);
    }

    function setWilling(uint256 who, bool willing) external {
        Picky(payable(accounts[who % 2])).setWilling(willing);
    }

    function wait(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 1, 5 minutes));
    }

    /// Ends every job, the way its state allows, with no help from its renter or host.
    function endAll() external {
        vm.warp(block.timestamp + 60 days);
        for (uint256 jobId = 1; jobId <= marketplace.jobCount(); jobId++) {
            JobMarketplace.JobStatus status = marketplace.getJob(jobId).status;
            if (status == JobMarketplace.JobStatus.Completed) marketplace.releasePayment(jobId);
            else if (status < JobMarketplace.JobStatus.Completed) marketplace.expireJob(jobId);
        }
    }

    /// The first job in `status` from a random one on.
    function find(uint256 pick, JobMarketplace.JobStatus status) private view returns (uint256, bool) {
        uint256 count = marketplace.jobCount();
        for (uint256 i = 0; i < count; i++) {
            uint256 jobId = 1 + (pick % count + i) % count;
            if (marketplace.getJob(jobId).status == status) return (jobId, true);
        }
        return (0, false);
    }

    function terms(uint256 number, bool requiresProof)
        private
        pure
        returns (JobMarketplace.JobDetails memory, JobMarketplace.JobRequirements memory)
    {
        return (
            JobMarketplace.JobDetails("sha256:1", "blake3-prompt", 1 + number % 100, 0, 1, ""),
            JobMarketplace.JobRequirements(0, 0, 30 + number % 1000, requiresProof)
        );
    }
}
