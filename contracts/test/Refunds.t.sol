// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {World} from "./lib/World.sol";

/// The ways in which a job ends without payment, or begins anew, other than by a dispute.
contract RefundsTest is World {
    uint256 private constant STAKE = 1000e18;

    function fail(uint256 jobId) private {
        vm.prank(host);
        marketplace.failJob(jobId, "out of memory");
    }

    function requestRefund(uint256 jobId) private {
        vm.prank(renter);
        marketplace.requestRefund(jobId);
    }

    function agreeRefund(uint256 jobId) private {
        vm.prank(host);
        marketplace.agreeRefund(jobId);
    }

    /// Registers `who` under the host's account.
    function registerSibling(address who) private {
        fab.transfer(who, STAKE);
        vm.prank(host);
        registry.approveHost(who, true);
        vm.startPrank(who);
        fab.approve(address(registry), STAKE);
        registry.registerControlledNode("{}", host);
        vm.stopPrank();
    }

    // Giving up.

    function test_a_job_given_up_is_open_again_for_hosts_of_other_controllers() public {
        registerSibling(stranger);
        uint256 jobId = post();
        claim(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(jobId, host, "out of memory");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobReopened(jobId, host);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -20, 480);
        fail(jobId);

        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Posted);
        assertEscrow(jobId, PaymentEscrow.State.Held);
        vm.assertEq(job.host, address(0));
        vm.assertTrue(marketplace.gaveUp(jobId, host));
        vm.assertEq(registry.getNode(host).openJobs, 0);
        vm.assertEq(registry.getNode(host).stake, STAKE);

        bytes memory refusal = abi.encodeWithSelector(JobMarketplace.ControllerGaveUp.selector, jobId, host);
        vm.expectRevert(refusal);
        claim(jobId);
        vm.expectRevert(refusal);
        claimAs(stranger, jobId);
        claimAs(rival, jobId);
        vm.assertEq(marketplace.getJob(jobId).host, rival);
        // The bar is of this job only.
        claimAs(stranger, post());
    }

    function test_the_next_host_commits_anew_and_is_paid() public {
        uint256 jobId = committed();
        proofSystem.pinBeacon(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.CommitmentDiscarded(jobId);
        fail(jobId);
        vm.assertEq(proofSystem.commitmentOf(jobId).nTokens, 0);
        vm.assertEq(proofSystem.pinnedBeacon(jobId), bytes32(0));
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.NotCommitted.selector, jobId));
        proofSystem.beaconOf(jobId);

        claimAs(rival, jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ResultNotCommitted.selector, jobId));
        vm.prank(rival);
        marketplace.completeJob(jobId, CID, "");
        host = rival;
        commit(jobId, 7);
        complete(jobId);
        release(jobId);
        vm.assertEq(rival.balance, PRICE - feeOf(PRICE));
    }

    function test_a_reserved_job_given_up_is_refunded() public {
        uint256 jobId = postReserved(host);
        claim(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(jobId, host, "out of memory");
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowRefunded(bytes32(jobId));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentRefunded(jobId, renter, PRICE);
        fail(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Refunded);
        vm.assertEq(renter.balance, 100 ether);
        vm.assertFalse(marketplace.gaveUp(jobId, host));
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }

    function test_a_job_given_up_after_a_refund_was_requested_is_refunded() public {
        uint256 jobId = committed();
        requestRefund(jobId);
        fail(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Refunded);
        vm.assertEq(renter.balance, 100 ether);
        vm.assertEq(reputation.scoreOf(host), 480);
    }

    function test_giving_up_is_the_hosts_before_the_deadline_with_a_reason() public {
        uint256 jobId = post();
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Posted, JobMarketplace.JobStatus.Claimed));
        fail(jobId);
        claim(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotHost.selector, jobId, host, rival));
        vm.prank(rival);
        marketplace.failJob(jobId, "no");
        bytes4 selector = JobMarketplace.TextLengthOutOfRange.selector;
        vm.expectRevert(abi.encodeWithSelector(selector, "reason", 0, 1, 128));
        vm.prank(host);
        marketplace.failJob(jobId, "");
        vm.expectRevert(abi.encodeWithSelector(selector, "reason", 129, 1, 128));
        vm.prank(host);
        marketplace.failJob(jobId, string(new bytes(129)));
        uint256 deadline = marketplace.getJob(jobId).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobId, deadline, deadline));
        fail(jobId);
        vm.warp(deadline - 1);
        fail(jobId);
    }

    function test_a_reopened_job_that_nobody_takes_is_refunded_without_anybodys_loss() public {
        uint256 jobId = committed();
        fail(jobId);
        vm.warp(marketplace.getJob(jobId).deadline);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobExpired(jobId);
        marketplace.expireJob(jobId);
        vm.assertEq(renter.balance, 100 ether);
        vm.assertEq(registry.getNode(host).stake, STAKE);
    }

    function test_a_renter_cancels_a_job_that_was_given_up() public {
        uint256 jobId = committed();
        fail(jobId);
        vm.prank(renter);
        marketplace.cancelJob(jobId);
        vm.assertEq(renter.balance, 100 ether);
    }

    // Missing.

    function test_a_missed_job_says_so_and_costs_reputation() public {
        uint256 jobId = committed();
        vm.warp(marketplace.getJob(jobId).deadline);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(jobId, host, "deadline passed");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DeadlineMissed(jobId, host);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeSlashed(host, 10e18, "deadline missed");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -50, 450);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowRefunded(bytes32(jobId));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentRefunded(jobId, renter, PRICE);
        marketplace.expireJob(jobId);
        assertEscrow(jobId, PaymentEscrow.State.Refunded);
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Refunded, JobMarketplace.JobStatus.Claimed));
        marketplace.expireJob(jobId);
    }

    // Refunds that both agree on.

    function test_a_claimed_job_is_refunded_when_both_agree_and_costs_the_host_nothing() public {
        uint256 jobId = committed();
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.RefundRequested(bytes32(jobId));
        requestRefund(jobId);
        vm.assertTrue(escrow.getEscrow(jobId).refundRequested);
        assertStatus(jobId, JobMarketplace.JobStatus.Claimed);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.RefundAgreed(jobId, host);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowRefunded(bytes32(jobId));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentRefunded(jobId, renter, PRICE);
        agreeRefund(jobId);
        assertUntouched(jobId);
    }

    function test_a_completed_job_is_refunded_when_both_agree() public {
        uint256 jobId = completed();
        requestRefund(jobId);
        agreeRefund(jobId);
        assertUntouched(jobId);
    }

    function test_a_disputed_job_is_refunded_when_both_agree() public {
        uint256 jobId = completed();
        requestRefund(jobId);
        dispute(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.RefundAgreed(jobId, host);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.DisputeResolved(bytes32(jobId), renter);
        agreeRefund(jobId);
        assertUntouched(jobId);
    }

    function test_a_host_that_agrees_concedes_an_open_challenge() public {
        uint256 jobId = completed();
        challenge(stranger, jobId);
        requestRefund(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ChallengeResolved(jobId, true, stranger);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeSlashed(host, 10e18, "challenge lost");
        agreeRefund(jobId);
        vm.assertEq(renter.balance, 100 ether);
        vm.assertEq(fab.balanceOf(stranger), 105e18);
        vm.assertEq(fab.balanceOf(treasury), 5e18);
        vm.assertEq(registry.getNode(host).stake, STAKE - 10e18);
        vm.assertEq(registry.getNode(host).openJobs, 0);
        vm.assertEq(reputation.scoreOf(host), 500);
    }

    function assertUntouched(uint256 jobId) private view {
        assertStatus(jobId, JobMarketplace.JobStatus.Refunded);
        assertEscrow(jobId, PaymentEscrow.State.Refunded);
        vm.assertEq(renter.balance, 100 ether);
        vm.assertEq(registry.getNode(host).stake, STAKE);
        vm.assertEq(registry.getNode(host).openJobs, 0);
        vm.assertEq(reputation.scoreOf(host), 500);
    }

    function test_agreeing_takes_a_request_and_the_host() public {
        uint256 jobId = committed();
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.RefundNotRequested.selector, jobId));
        agreeRefund(jobId);
        requestRefund(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotHost.selector, jobId, host, renter));
        vm.prank(renter);
        marketplace.agreeRefund(jobId);
    }

    function test_only_the_renter_requests() public {
        uint256 jobId = committed();
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotRenter.selector, jobId, renter, host));
        vm.prank(host);
        marketplace.requestRefund(jobId);
    }

    function test_a_request_and_an_agreement_come_between_claim_and_end() public {
        JobMarketplace.JobStatus claimed = JobMarketplace.JobStatus.Claimed;
        uint256 posted = post();
        vm.expectRevert(wrongStatus(posted, JobMarketplace.JobStatus.Posted, claimed));
        requestRefund(posted);
        uint256 released = completed();
        requestRefund(released);
        release(released);
        vm.expectRevert(wrongStatus(released, JobMarketplace.JobStatus.Released, claimed));
        requestRefund(released);
        vm.expectRevert(wrongStatus(released, JobMarketplace.JobStatus.Released, claimed));
        agreeRefund(released);
        uint256 refunded = committed();
        requestRefund(refunded);
        agreeRefund(refunded);
        vm.expectRevert(wrongStatus(refunded, JobMarketplace.JobStatus.Refunded, claimed));
        requestRefund(refunded);
        vm.expectRevert(wrongStatus(refunded, JobMarketplace.JobStatus.Refunded, claimed));
        agreeRefund(refunded);
    }

    function test_a_request_alone_stops_nothing() public {
        uint256 jobId = committed();
        requestRefund(jobId);
        complete(jobId);
        release(jobId);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
    }
}
