// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {FeeToken} from "./lib/Tokens.sol";
import {World} from "./lib/World.sol";

/// Several jobs in one call, and what only such a call can ask for: a reserved host; and the least reputation of one.
contract BatchesTest is World {
    // Posting.

    /// `count` postings of 1, 2, 3... wei.
    function ethPostings(uint256 count) private pure returns (JobMarketplace.Posting[] memory postings) {
        postings = new JobMarketplace.Posting[](count);
        for (uint256 i = 0; i < count; i++) {
            postings[i] = JobMarketplace.Posting(details(), requirements(), address(0), i + 1, address(0));
        }
    }

    function mixed() private returns (JobMarketplace.Posting[] memory postings) {
        usd.transfer(renter, 12e6);
        vm.prank(renter);
        usd.approve(address(marketplace), 12e6);
        postings = ethPostings(4);
        (postings[1].token, postings[1].payment) = (address(usd), 5e6);
        (postings[3].token, postings[3].payment, postings[3].reservedFor) = (address(usd), 7e6, host);
    }

    function test_a_batch_is_the_jobs_it_names_each_with_its_own_escrow() public {
        JobMarketplace.Posting[] memory postings = mixed();
        post();
        uint64 deadline = uint64(block.timestamp + TIME);
        for (uint256 i = 0; i < 4; i++) {
            JobMarketplace.Posting memory p = postings[i];
            vm.expectEmit(address(marketplace));
            emit JobMarketplace.JobCreated(2 + i, renter, p.details.modelId, p.payment);
            vm.expectEmit(address(marketplace));
            emit JobMarketplace.JobPosted(2 + i, renter, p.payment);
            vm.expectEmit(address(marketplace));
            emit JobMarketplace.JobTerms(
                2 + i, renter, p.token, p.payment, deadline, p.reservedFor, p.details, p.requirements
            );
            vm.expectEmit(address(escrow));
            emit PaymentEscrow.EscrowCreated(bytes32(2 + i), renter, p.reservedFor, p.payment, p.token);
        }
        vm.prank(renter);
        vm.assertEq(marketplace.postJobs{value: 4}(postings), 2);
        vm.assertEq(marketplace.jobCount(), 5);
        vm.assertEq(address(escrow).balance, PRICE + 4);
        vm.assertEq(usd.balanceOf(address(escrow)), 12e6);
        vm.assertEq(renter.balance, 100 ether - PRICE - 4);
        vm.assertTrue(marketplace.getJob(5).reserved);
        vm.assertEq(marketplace.getJob(5).host, host);
        vm.assertFalse(marketplace.getJob(4).reserved);
    }

    function test_the_eth_of_a_batch_is_the_sum_of_its_payments_in_eth() public {
        JobMarketplace.Posting[] memory postings = mixed();
        vm.startPrank(renter);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, 4, 3));
        marketplace.postJobs{value: 3}(postings);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, 1, 0));
        marketplace.postJobs(postings);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, 4, 5));
        marketplace.postJobs{value: 5}(postings);
        vm.assertEq(marketplace.jobCount(), 0);
        vm.assertEq(usd.balanceOf(renter), 12e6);
    }

    function test_an_empty_batch_posts_nothing_and_takes_no_eth() public {
        JobMarketplace.Posting[] memory postings = new JobMarketplace.Posting[](0);
        vm.startPrank(renter);
        vm.assertEq(marketplace.postJobs(postings), 1);
        vm.assertEq(marketplace.jobCount(), 0);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, 0, 1));
        marketplace.postJobs{value: 1}(postings);
    }

    function test_one_bad_job_of_a_batch_refuses_it_whole() public {
        JobMarketplace.Posting[] memory postings = ethPostings(3);
        postings[2].details.maxTokens = 0;
        vm.startPrank(renter);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.MaxTokensOutOfRange.selector, 0, 1, 1 << 20));
        marketplace.postJobs{value: 6}(postings);
        postings = ethPostings(3);
        FeeToken token = new FeeToken(renter);
        postings[2].token = address(token);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.TokenNotAllowed.selector, address(token)));
        marketplace.postJobs{value: 3}(postings);
        vm.assertEq(marketplace.jobCount(), 0);
    }

    function test_no_token_at_the_zero_address_stands_for_eth() public {
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.TokenNotAllowed.selector, address(0)));
        vm.prank(renter);
        marketplace.postJobWithToken(details(), requirements(), address(0), 1);
    }

    // Reserved jobs and reputation.

    function test_a_reserved_job_is_claimed_by_its_host_only() public {
        uint256 jobId = postReserved(host);
        vm.assertEq(marketplace.getJob(jobId).host, host);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ReservedFor.selector, jobId, host));
        claimAs(rival, jobId);
        claim(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Claimed);
    }

    function test_a_reserved_host_has_no_say_before_it_claims() public {
        uint256 jobId = postReserved(host);
        vm.startPrank(host);
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Posted, JobMarketplace.JobStatus.Claimed));
        marketplace.failJob(jobId, "no");
        vm.expectRevert(wrongStatus(jobId, JobMarketplace.JobStatus.Posted, JobMarketplace.JobStatus.Claimed));
        marketplace.agreeRefund(jobId);
        vm.stopPrank();
        vm.warp(marketplace.getJob(jobId).deadline);
        marketplace.expireJob(jobId);
        vm.assertEq(registry.getNode(host).stake, registry.MIN_STAKE());
        vm.assertEq(reputation.scoreOf(host), 500);
        vm.assertEq(renter.balance, 100 ether);
    }

    function test_a_claim_takes_the_reputation_that_the_job_asks_for() public {
        JobMarketplace.JobRequirements memory r = requirements();
        r.minReputationScore = 501;
        uint256 jobId = post(details(), r);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ReputationTooLow.selector, jobId, 500, 501));
        claim(jobId);
        vm.prank(address(marketplace));
        reputation.jobEnded(rival, ReputationSystem.Outcome.Paid);
        claimAs(rival, jobId);
        r.minReputationScore = 500;
        claim(post(details(), r));
    }

    function test_the_reputation_asked_for_is_at_most_1000() public {
        JobMarketplace.JobRequirements memory r = requirements();
        r.minReputationScore = 1001;
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.MinReputationTooHigh.selector, 1001, 1000));
        vm.prank(renter);
        marketplace.postJob{value: PRICE}(details(), r, PRICE);
        r.minReputationScore = 1000;
        vm.assertEq(marketplace.getJob(post(details(), r)).minReputation, 1000);
    }

    // Completing.

    /// Two committed jobs that take no proof.
    function unproven() private returns (uint256[] memory jobIds, string[] memory cids) {
        JobMarketplace.JobRequirements memory r = requirements();
        r.requiresProof = false;
        (jobIds, cids) = (new uint256[](2), new string[](2));
        for (uint256 i = 0; i < 2; i++) {
            jobIds[i] = post(details(), r);
            claim(jobIds[i]);
            commit(jobIds[i], 5);
            cids[i] = CID;
        }
    }

    function test_jobs_that_take_no_proof_are_completed_together_without_one() public {
        (uint256[] memory jobIds, string[] memory cids) = unproven();
        for (uint256 i = 0; i < 2; i++) {
            vm.expectEmit(address(marketplace));
            emit JobMarketplace.JobCompleted(jobIds[i], CID);
            vm.expectEmit(address(marketplace));
            emit JobMarketplace.JobReleaseDue(jobIds[i], uint64(block.timestamp + WINDOW));
        }
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids, "");
        assertStatus(jobIds[0], JobMarketplace.JobStatus.Completed);
        assertStatus(jobIds[1], JobMarketplace.JobStatus.Completed);
    }

    function test_a_batch_is_completed_whole_or_not_at_all() public {
        (uint256[] memory jobIds, string[] memory cids) = unproven();
        vm.startPrank(host);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.LengthMismatch.selector, 2, 1));
        marketplace.completeJobs(jobIds, new string[](1), "");
        cids[1] = "other";
        vm.expectRevert(
            abi.encodeWithSelector(
                JobMarketplace.ResultMismatch.selector, jobIds[1], keccak256(bytes(CID)), keccak256("other")
            )
        );
        marketplace.completeJobs(jobIds, cids, "");
        cids[1] = "";
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.TextLengthOutOfRange.selector, "resultCID", 0, 1, 128));
        marketplace.completeJobs(jobIds, cids, "");
        assertStatus(jobIds[0], JobMarketplace.JobStatus.Claimed);
    }

    function test_a_job_is_completed_once_in_a_batch() public {
        (uint256[] memory jobIds, string[] memory cids) = unproven();
        jobIds[1] = jobIds[0];
        vm.expectRevert(wrongStatus(jobIds[0], JobMarketplace.JobStatus.Completed, JobMarketplace.JobStatus.Claimed));
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids, "");
    }

    function test_a_batch_has_no_place_for_somebody_elses_job_or_a_late_or_unproven_one() public {
        (uint256[] memory jobIds, string[] memory cids) = unproven();
        uint256 mine = jobIds[1];
        jobIds[1] = post();
        claimAs(rival, jobIds[1]);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotHost.selector, jobIds[1], rival, host));
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids, "");
        jobIds[1] = committed();
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ProofRequired.selector, jobIds[1]));
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids, "");
        jobIds[1] = mine;
        uint256 deadline = marketplace.getJob(jobIds[0]).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobIds[0], deadline, deadline));
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids, "");
    }

    // Releasing.

    function test_a_batch_pays_what_is_due_and_leaves_the_rest() public {
        uint256[] memory jobIds = new uint256[](6);
        jobIds[0] = completed();
        jobIds[1] = committed(); // claimed
        jobIds[2] = completed();
        jobIds[3] = completed();
        dispute(jobIds[3]); // not yet lapsed
        uint256 due = block.timestamp + WINDOW;
        vm.warp(due - 1);
        jobIds[4] = post();
        jobIds[5] = jobIds[0]; // twice
        bytes memory nothing = abi.encodeWithSelector(JobMarketplace.NothingDue.selector);
        vm.expectRevert(nothing);
        marketplace.releasePayments(jobIds);

        vm.warp(due);
        uint256 net = PRICE - feeOf(PRICE);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentReleased(jobIds[0], host, net);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentReleased(jobIds[2], host, net);
        vm.prank(stranger);
        vm.assertEq(marketplace.releasePayments(jobIds), 2);
        vm.assertEq(host.balance, 2 * net);
        vm.assertEq(treasury.balance, 2 * feeOf(PRICE));
        vm.expectRevert(nothing);
        marketplace.releasePayments(jobIds);

        vm.warp(marketplace.getJob(jobIds[3]).releaseAt);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DisputeLapsed(jobIds[3]);
        vm.assertEq(marketplace.releasePayments(jobIds), 1);
        vm.assertEq(host.balance, 3 * net);
    }

    function test_nothing_and_an_unknown_job_are_refused() public {
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NothingDue.selector));
        marketplace.releasePayments(new uint256[](0));
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.UnknownJob.selector, 9));
        marketplace.releasePayments(single(9));
    }
}
