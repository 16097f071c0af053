// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {World} from "./lib/World.sol";

/// Disputes, by the renter or by whoever puts up a bond, and who has what at their end, to the wei.
contract DisputesTest is World {
    uint256 private constant STAKE = 1000e18;
    uint256 private constant JOB_STAKE = 10e18;
    uint256 private constant BOND = 100e18;

    address private challenger = address(0xE1);

    // Opening.

    function test_a_dispute_holds_the_payment_and_says_until_when() public {
        uint256 jobId = completed();
        uint64 until = uint64(block.timestamp + 7 days);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobDisputed(jobId, renter, "evidence");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobReleaseDue(jobId, until);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowDisputed(bytes32(jobId), renter);
        dispute(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Disputed);
        assertEscrow(jobId, PaymentEscrow.State.Disputed);
        vm.assertEq(marketplace.getJob(jobId).releaseAt, until);
        vm.warp(until - 1);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ReleaseNotDue.selector, jobId, until, until - 1));
        marketplace.releasePayment(jobId);
    }

    function test_a_dispute_comes_within_the_challenge_window() public {
        uint256 first = completed();
        uint256 second = completed();
        uint256 end = marketplace.getJob(first).releaseAt;
        vm.warp(end - 1);
        dispute(first);
        vm.warp(end);
        bytes memory refusal = abi.encodeWithSelector(JobMarketplace.DisputeTooLate.selector, second, end, end);
        vm.expectRevert(refusal);
        dispute(second);
        fab.transfer(challenger, BOND);
        vm.startPrank(challenger);
        fab.approve(address(proofSystem), BOND);
        vm.expectRevert(refusal);
        proofSystem.challenge(second, "evidence");
        vm.assertEq(fab.balanceOf(challenger), BOND);
        vm.assertEq(proofSystem.challengeOf(second).challenger, address(0));
    }

    function test_a_dispute_is_the_renters_about_a_completed_job_once() public {
        uint256 jobId = committed();
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Claimed, JobMarketplace.JobStatus.Completed));
        dispute(jobId);
        complete(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotRenter.selector, jobId, renter, host));
        vm.prank(host);
        marketplace.disputeJob(jobId, "evidence");
        dispute(jobId);
        bytes memory refusal = wrongStatus(jobId, JobMarketplace.JobStatus.Disputed, JobMarketplace.JobStatus.Completed);
        vm.expectRevert(refusal);
        dispute(jobId);
        vm.expectRevert(refusal);
        vm.prank(challenger);
        proofSystem.challenge(jobId, "evidence");
    }

    /// A host that challenges itself first silences nobody.
    function test_anyone_adds_evidence_to_a_disputed_job_and_nothing_else_changes() public {
        uint256 jobId = completed();
        bytes memory refusal = wrongStatus(jobId, JobMarketplace.JobStatus.Completed, JobMarketplace.JobStatus.Disputed);
        vm.expectRevert(refusal);
        marketplace.addEvidence(jobId, "mine");
        fab.transfer(challenger, BOND);
        vm.startPrank(challenger);
        fab.approve(address(proofSystem), BOND);
        proofSystem.challenge(jobId, "evidence");
        vm.stopPrank();
        bytes memory before = abi.encode(marketplace.getJob(jobId), escrow.getEscrow(jobId));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.EvidenceAdded(jobId, renter, "mine");
        vm.prank(renter);
        marketplace.addEvidence(jobId, "mine");
        vm.assertEq(abi.encode(marketplace.getJob(jobId), escrow.getEscrow(jobId)), before);
    }

    function test_only_the_proof_system_challenges_for_others() public {
        uint256 jobId = completed();
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.OnlyProofSystem.selector, owner));
        vm.prank(owner);
        marketplace.challengeJob(jobId, challenger, "evidence");
    }

    function test_a_challenge_puts_up_the_bond() public {
        uint256 jobId = completed();
        fab.transfer(challenger, BOND);
        vm.startPrank(challenger);
        fab.approve(address(proofSystem), BOND);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ProofChallenged(jobId, challenger, "evidence");
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ChallengeBonded(jobId, uint96(BOND));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobDisputed(jobId, challenger, "evidence");
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowDisputed(bytes32(jobId), challenger);
        proofSystem.challenge(jobId, "evidence");
        vm.assertEq(fab.balanceOf(address(proofSystem)), BOND);
        vm.assertEq(fab.balanceOf(challenger), 0);
        vm.assertEq(proofSystem.challengeOf(jobId).challenger, challenger);
        vm.assertEq(proofSystem.challengeOf(jobId).bond, BOND);
    }

    function test_no_bond_no_challenge() public {
        uint256 jobId = completed();
        vm.expectPartialRevert(bytes4(keccak256("ERC20InsufficientAllowance(address,uint256,uint256)")));
        vm.prank(challenger);
        proofSystem.challenge(jobId, "evidence");
        assertStatus(jobId, JobMarketplace.JobStatus.Completed);
    }

    // Deciding.

    function test_only_the_arbiter_decides_and_only_disputes() public {
        uint256 jobId = completed();
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Completed, JobMarketplace.JobStatus.Disputed));
        resolve(jobId, true);
        dispute(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotArbiter.selector, owner));
        vm.prank(owner);
        marketplace.resolveDispute(jobId, true);
        resolve(jobId, true);
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Refunded, JobMarketplace.JobStatus.Disputed));
        resolve(jobId, false);
    }

    function test_the_owner_sets_the_arbiter_and_0_is_nobody() public {
        uint256 jobId = completed();
        dispute(jobId);
        vm.expectRevert(notOwner(arbiter));
        vm.prank(arbiter);
        marketplace.setArbiter(arbiter);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.ArbiterChanged(address(0));
        vm.prank(owner);
        marketplace.setArbiter(address(0));
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotArbiter.selector, arbiter));
        resolve(jobId, true);
        vm.prank(owner);
        marketplace.setArbiter(stranger);
        vm.prank(stranger);
        marketplace.resolveDispute(jobId, true);
        assertStatus(jobId, JobMarketplace.JobStatus.Refunded);
    }

    function test_for_the_renter_the_payment_goes_back_and_the_host_loses_reputation_only() public {
        uint256 jobId = completed();
        dispute(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DisputeResolved(jobId, true);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -100, 400);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.DisputeResolved(bytes32(jobId), renter);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowRefunded(bytes32(jobId));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentRefunded(jobId, renter, PRICE);
        resolve(jobId, true);
        assertEnd(jobId, JobMarketplace.JobStatus.Refunded, STAKE);
        assertFab(0, 0, 0);
        vm.assertEq(renter.balance, 100 ether);
    }

    function test_for_the_host_it_is_paid_as_though_nobody_had_disputed() public {
        uint256 jobId = completed();
        dispute(jobId);
        uint256 fee = feeOf(PRICE);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DisputeResolved(jobId, false);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, 10, 510);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.DisputeResolved(bytes32(jobId), host);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowReleased(bytes32(jobId), PRICE - fee, fee);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentReleased(jobId, host, PRICE - fee);
        resolve(jobId, false);
        assertEnd(jobId, JobMarketplace.JobStatus.Released, STAKE);
        assertFab(0, 0, 0);
        vm.assertEq(host.balance, PRICE - fee);
        vm.assertEq(treasury.balance, fee);
    }

    function test_a_challenge_upheld_wins_the_bond_back_and_half_of_the_hosts_stake_in_the_job() public {
        uint256 jobId = completed();
        challenge(challenger, jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DisputeResolved(jobId, true);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ChallengeResolved(jobId, true, challenger);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeSlashed(host, JOB_STAKE, "challenge lost");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -100, 400);
        resolve(jobId, true);
        assertEnd(jobId, JobMarketplace.JobStatus.Refunded, STAKE - JOB_STAKE);
        assertFab(BOND + JOB_STAKE / 2, 0, JOB_STAKE / 2);
        vm.assertEq(renter.balance, 100 ether);
    }

    function test_a_challenge_rejected_costs_the_bond_half_of_it_for_the_host() public {
        uint256 jobId = completed();
        challenge(challenger, jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ChallengeResolved(jobId, false, host);
        resolve(jobId, false);
        assertEnd(jobId, JobMarketplace.JobStatus.Released, STAKE);
        assertFab(0, BOND / 2, BOND / 2);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
    }

    function test_an_odd_bond_is_not_lost_to_rounding() public {
        vm.prank(owner);
        proofSystem.setChallengeBond(7);
        uint256 jobId = completed();
        challenge(challenger, jobId);
        resolve(jobId, false);
        assertFab(0, 3, 4);
    }

    function test_a_dispute_nobody_decides_ends_as_though_there_had_been_none() public {
        uint256 jobId = completed();
        challenge(challenger, jobId);
        vm.warp(marketplace.getJob(jobId).releaseAt);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DisputeLapsed(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ChallengeResolved(jobId, false, challenger);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.DisputeResolved(bytes32(jobId), host);
        vm.prank(stranger);
        marketplace.releasePayment(jobId);
        assertEnd(jobId, JobMarketplace.JobStatus.Released, STAKE);
        assertFab(BOND, 0, 0);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
        vm.assertEq(reputation.scoreOf(host), 510);
    }

    function test_a_late_arbiter_still_decides_as_long_as_nobody_released() public {
        uint256 jobId = completed();
        dispute(jobId);
        vm.warp(marketplace.getJob(jobId).releaseAt + 1 days);
        resolve(jobId, true);
        vm.assertEq(renter.balance, 100 ether);
    }

    /// What does not depend on who won.
    function assertEnd(uint256 jobId, JobMarketplace.JobStatus status, uint256 stake) private view {
        assertStatus(jobId, status);
        vm.assertEq(registry.getNode(host).stake, stake);
        vm.assertEq(registry.getNode(host).openJobs, 0);
        vm.assertEq(proofSystem.challengeOf(jobId).challenger, address(0));
        vm.assertEq(fab.balanceOf(address(proofSystem)), 0);
        vm.assertEq(fab.balanceOf(address(registry)), STAKE + stake);
        vm.assertEq(address(escrow).balance, 0);
    }

    function assertFab(uint256 challengers, uint256 hosts, uint256 treasurys) private view {
        vm.assertEq(fab.balanceOf(challenger), challengers);
        vm.assertEq(fab.balanceOf(host), hosts);
        vm.assertEq(fab.balanceOf(treasury), treasurys);
    }

    // The bond.

    function test_a_new_bond_does_not_touch_open_challenges() public {
        uint256 jobId = completed();
        challenge(challenger, jobId);
        vm.expectRevert(notOwner(stranger));
        vm.prank(stranger);
        proofSystem.setChallengeBond(1);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ChallengeBondChanged(1);
        vm.prank(owner);
        proofSystem.setChallengeBond(1);
        vm.assertEq(proofSystem.challengeOf(jobId).bond, BOND);
        uint256 second = completed();
        challenge(stranger, second);
        vm.assertEq(proofSystem.challengeOf(second).bond, 1);
        resolve(jobId, true);
        resolve(second, true);
        vm.assertEq(fab.balanceOf(challenger), BOND + JOB_STAKE / 2);
        vm.assertEq(fab.balanceOf(stranger), 1 + JOB_STAKE / 2);
        vm.assertEq(fab.balanceOf(address(proofSystem)), 0);
    }

    function test_a_challenge_without_bond_is_possible_where_the_owner_wants_it() public {
        vm.prank(owner);
        proofSystem.setChallengeBond(0);
        uint256 jobId = completed();
        vm.prank(challenger);
        proofSystem.challenge(jobId, "evidence");
        resolve(jobId, false);
        vm.assertEq(fab.balanceOf(challenger), 0);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
    }

    function test_only_the_marketplace_settles_and_without_a_challenge_there_is_nothing_to_settle() public {
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.OnlyMarketplace.selector, owner));
        vm.prank(owner);
        proofSystem.settle(1, ProofSystem.Verdict.Upheld, owner);
        vm.prank(address(marketplace));
        vm.assertEq(proofSystem.settle(1, ProofSystem.Verdict.Upheld, host), address(0));
    }

    function test_bonds_have_a_treasury() public {
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.NoTreasury.selector));
        new ProofSystem(owner, marketplace, fab, address(0));
    }
}
