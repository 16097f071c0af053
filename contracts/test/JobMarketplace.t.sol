// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {FeeToken} from "./lib/Tokens.sol";
import {World} from "./lib/World.sol";

contract JobMarketplaceTest is World {
    function test_posting_emits_the_whole_job_and_locks_the_payment() public {
        JobMarketplace.JobDetails memory d = details();
        JobMarketplace.JobRequirements memory r = requirements();
        uint64 deadline = uint64(block.timestamp + TIME);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobCreated(1, renter, d.modelId, PRICE);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobPosted(1, renter, PRICE);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobTerms(1, renter, address(0), PRICE, deadline, address(0), d, r);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowCreated(bytes32(uint256(1)), renter, address(0), PRICE, address(0));
        uint256 jobId = post(d, r);

        vm.assertEq(jobId, 1);
        vm.assertEq(address(escrow).balance, PRICE);
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.assertEq(job.renter, renter);
        vm.assertEq(job.deadline, deadline);
        vm.assertEq(job.host, address(0));
        vm.assertEq(uint256(job.status), uint256(JobMarketplace.JobStatus.Posted));
        vm.assertTrue(job.requiresProof);
        vm.assertEq(job.temperature, d.temperature);
        vm.assertEq(job.seed, d.seed);
        vm.assertEq(job.maxTokens, d.maxTokens);
        vm.assertEq(job.modelHash, keccak256(bytes(d.modelId)));
        vm.assertEq(job.promptHash, keccak256(bytes(d.prompt)));
    }

    function testFuzz_any_terms_in_range_are_stored(uint96 payment, uint24 maxTokens, uint16 temperature, uint32 seed)
        public
    {
        payment = uint96(bound(payment, 1, type(uint96).max));
        JobMarketplace.JobDetails memory d = details();
        d.maxTokens = bound(maxTokens, 1, 1 << 20);
        d.temperature = bound(temperature, 0, 2000);
        d.seed = seed;
        vm.deal(renter, payment);
        vm.prank(renter);
        uint256 jobId = marketplace.postJob{value: payment}(d, requirements(), payment);
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.assertEq(job.maxTokens, d.maxTokens);
        vm.assertEq(job.temperature, d.temperature);
        vm.assertEq(job.seed, seed);
        vm.assertEq(escrow.getEscrow(jobId).amount, payment);
        vm.assertEq(address(escrow).balance, payment);
    }

    function refusesDetails(JobMarketplace.JobDetails memory d, bytes memory refusal) private {
        vm.deal(renter, PRICE);
        vm.expectRevert(refusal);
        vm.prank(renter);
        marketplace.postJob{value: PRICE}(d, requirements(), PRICE);
    }

    function test_texts_are_bounded() public {
        bytes4 selector = JobMarketplace.TextLengthOutOfRange.selector;
        JobMarketplace.JobDetails memory d = details();
        d.modelId = "";
        refusesDetails(d, abi.encodeWithSelector(selector, "modelId", 0, 1, 128));
        d = details();
        d.prompt = string(new bytes(129));
        refusesDetails(d, abi.encodeWithSelector(selector, "prompt", 129, 1, 128));
        d = details();
        d.resultFormat = string(new bytes(129));
        refusesDetails(d, abi.encodeWithSelector(selector, "resultFormat", 129, 0, 128));
    }

    function test_max_tokens_are_1_to_2_to_the_20() public {
        bytes4 selector = JobMarketplace.MaxTokensOutOfRange.selector;
        JobMarketplace.JobDetails memory d = details();
        d.maxTokens = 0;
        refusesDetails(d, abi.encodeWithSelector(selector, 0, 1, 1 << 20));
        d.maxTokens = (1 << 20) + 1;
        refusesDetails(d, abi.encodeWithSelector(selector, (1 << 20) + 1, 1, 1 << 20));
    }

    function test_temperature_is_at_most_2000() public {
        JobMarketplace.JobDetails memory d = details();
        d.temperature = 2001;
        refusesDetails(d, abi.encodeWithSelector(JobMarketplace.TemperatureTooHigh.selector, 2001, 2000));
    }

    function test_time_to_complete_is_30_seconds_to_7_days() public {
        bytes4 selector = JobMarketplace.TimeToCompleteOutOfRange.selector;
        JobMarketplace.JobRequirements memory r = requirements();
        vm.startPrank(renter);
        r.maxTimeToComplete = 29;
        vm.expectRevert(abi.encodeWithSelector(selector, 29, 30, 7 days));
        marketplace.postJob{value: PRICE}(details(), r, PRICE);
        r.maxTimeToComplete = type(uint256).max;
        vm.expectRevert(abi.encodeWithSelector(selector, type(uint256).max, 30, 7 days));
        marketplace.postJob{value: PRICE}(details(), r, PRICE);
    }

    function test_payment_is_not_zero_and_fits() public {
        bytes4 selector = JobMarketplace.PaymentOutOfRange.selector;
        vm.startPrank(renter);
        vm.expectRevert(abi.encodeWithSelector(selector, 0, 1, type(uint96).max));
        marketplace.postJob(details(), requirements(), 0);
        uint256 tooMuch = uint256(type(uint96).max) + 1;
        vm.expectRevert(abi.encodeWithSelector(selector, tooMuch, 1, type(uint96).max));
        marketplace.postJobWithToken(details(), requirements(), address(usd), tooMuch);
    }

    function test_the_eth_sent_is_the_payment() public {
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, 2, 1));
        vm.prank(renter);
        marketplace.postJob{value: 1}(details(), requirements(), 2);
    }

    function test_only_allowed_tokens_pay() public {
        bytes memory refusal = abi.encodeWithSelector(JobMarketplace.TokenNotAllowed.selector, address(usd));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.TokenAllowed(address(usd), false);
        vm.prank(owner);
        marketplace.allowToken(address(usd), false);
        vm.expectRevert(refusal);
        vm.prank(renter);
        marketplace.postJobWithToken(details(), requirements(), address(usd), 1);
    }

    function test_only_the_owner_allows_tokens_and_only_contracts() public {
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, stranger));
        vm.prank(stranger);
        marketplace.allowToken(address(usd), true);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotAToken.selector, address(0)));
        vm.prank(owner);
        marketplace.allowToken(address(0), true);
    }

    function test_a_token_that_takes_a_fee_is_refused() public {
        FeeToken token = new FeeToken(renter);
        vm.prank(owner);
        marketplace.allowToken(address(token), true);
        vm.startPrank(renter);
        token.approve(address(marketplace), 1000);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, 1000, 990));
        marketplace.postJobWithToken(details(), requirements(), address(token), 1000);
    }

    function test_the_challenge_window_is_bounded() public {
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ChallengeWindowTooLong.selector, 30 days + 1, 30 days));
        new JobMarketplace(owner, registry, escrow, proofSystem, reputation, 30 days + 1);
    }

    function test_an_unknown_job_is_named() public {
        bytes memory refusal = abi.encodeWithSelector(JobMarketplace.UnknownJob.selector, 7);
        vm.expectRevert(refusal);
        marketplace.getJob(7);
        vm.expectRevert(refusal);
        marketplace.expireJob(7);
        vm.expectRevert(refusal);
        marketplace.claimJob(7);
        vm.expectRevert(refusal);
        marketplace.claimExactly(7, 0);
        vm.expectRevert(refusal);
        marketplace.failExactly(7, 0, "no");
        vm.expectRevert(refusal);
        marketplace.dealOf(7);
    }

    /// Old defect: anyone could claim for anyone. A claim is its sender's.
    function test_a_claim_is_the_senders() public {
        uint256 jobId = post();
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobClaimed(jobId, host);
        claim(jobId);
        vm.assertEq(marketplace.getJob(jobId).host, host);
        vm.assertEq(registry.getNode(host).openJobs, 1);
    }

    function test_a_job_is_claimed_once() public {
        uint256 jobId = post();
        claim(jobId);
        vm.expectRevert(
            abi.encodeWithSelector(
                JobMarketplace.WrongStatus.selector,
                jobId,
                JobMarketplace.JobStatus.Claimed,
                JobMarketplace.JobStatus.Posted
            )
        );
        vm.prank(rival);
        marketplace.claimJob(jobId);
    }

    // Calls that name the order.

    function deal(JobMarketplace.Posting memory p, address who) private pure returns (bytes32) {
        return keccak256(abi.encode(who, order(p.details), p.token, p.payment, p.requirements.requiresProof));
    }

    function postBy(address who, JobMarketplace.Posting memory p) private returns (uint256) {
        JobMarketplace.Posting[] memory postings = new JobMarketplace.Posting[](1);
        postings[0] = p;
        if (p.token != address(0)) usd.transfer(who, p.payment);
        vm.startPrank(who);
        usd.approve(address(marketplace), p.payment);
        uint256 value = p.token == address(0) ? p.payment : 0;
        vm.deal(who, value);
        uint256 jobId = marketplace.postJobs{value: value}(postings);
        vm.stopPrank();
        return jobId;
    }

    function test_an_exact_claim_takes_the_order_that_was_judged() public {
        JobMarketplace.Posting[2] memory both =
            [posting(address(0), PRICE, address(0))[0], posting(address(usd), 5e6, host)[0]];
        for (uint256 i = 0; i < both.length; i++) {
            uint256 jobId = postBy(renter, both[i]);
            vm.assertEq(marketplace.dealOf(jobId), deal(both[i], renter));
            vm.expectEmit(address(marketplace));
            emit JobMarketplace.JobClaimed(jobId, host);
            vm.prank(host);
            marketplace.claimExactly(jobId, deal(both[i], renter));
            vm.assertEq(marketplace.getJob(jobId).host, host);
            vm.assertEq(registry.getNode(host).openJobs, i + 1);
            vm.assertEq(marketplace.dealOf(jobId), deal(both[i], renter));
        }
    }

    /// One of the orders that differ from the one that is meant in one part of the deal each, and who posts it.
    function another(uint256 part) private view returns (JobMarketplace.Posting memory p, address who) {
        p = posting(address(0), 5e6, address(0))[0];
        if (part == 1) p.details.modelId = "sha256:other";
        if (part == 2) p.details.prompt = "blake3-other";
        if (part == 3) p.details.maxTokens++;
        if (part == 4) p.details.temperature++;
        if (part == 5) p.details.seed++;
        if (part == 6) p.token = address(usd);
        if (part == 7) p.payment--;
        if (part == 8) p.requirements.requiresProof = false;
        who = part == 0 ? stranger : renter;
    }

    function assertOrderDiffers(uint256 jobId, bytes32 there, bytes memory call) private {
        bytes memory before = abi.encode(marketplace.getJob(jobId), registry.getNode(host));
        vm.prank(host);
        (bool done, bytes memory why) = address(marketplace).call(call);
        vm.assertFalse(done);
        vm.assertEq(why, abi.encodeWithSelector(JobMarketplace.OrderDiffers.selector, jobId, there));
        vm.assertEq(abi.encode(marketplace.getJob(jobId), registry.getNode(host)), before);
    }

    /// A reorg gave the number to another order: each part of the deal matters.
    function test_an_exact_call_for_another_order_is_refused_and_changes_nothing() public {
        bytes32 ours = deal(posting(address(0), 5e6, address(0))[0], renter);
        for (uint256 part = 0; part < 9; part++) {
            (JobMarketplace.Posting memory other, address who) = another(part);
            uint256 jobId = postBy(who, other);
            bytes32 there = deal(other, who);
            vm.assertEq(marketplace.dealOf(jobId), there);
            assertOrderDiffers(jobId, there, abi.encodeCall(marketplace.claimExactly, (jobId, ours)));
            claim(jobId);
            assertOrderDiffers(jobId, there, abi.encodeCall(marketplace.failExactly, (jobId, ours, "no memory")));
            vm.assertEq(reputation.scoreOf(host), 500);
        }
    }

    function test_an_exact_call_gives_up_the_order_that_was_meant() public {
        JobMarketplace.Posting memory p = posting(address(usd), 5e6, address(0))[0];
        uint256 jobId = postBy(renter, p);
        claim(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(jobId, host, "no memory");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobReopened(jobId, host);
        vm.prank(host);
        marketplace.failExactly(jobId, deal(p, renter), "no memory");
        assertStatus(jobId, JobMarketplace.JobStatus.Posted);
        vm.assertTrue(marketplace.gaveUp(jobId, host));
        vm.assertEq(registry.getNode(host).openJobs, 0);
        vm.assertEq(reputation.scoreOf(host), 480);
    }

    function test_what_moves_with_the_block_or_is_checked_anyway_is_no_part_of_the_deal() public {
        JobMarketplace.Posting memory p = posting(address(0), PRICE, address(0))[0];
        bytes32 judged = deal(p, renter);
        p.requirements.maxTimeToComplete++;
        p.requirements.minGPUMemory++;
        p.requirements.minReputationScore++;
        p.details.resultFormat = "region=eu";
        p.reservedFor = host;
        vm.warp(block.timestamp + 1);
        vm.assertEq(marketplace.dealOf(postBy(renter, p)), judged);
    }

    function testFuzz_the_deal_is_the_digest_of_its_parts(
        address who,
        string[2] memory texts,
        uint256[4] memory numbers,
        uint32 seed,
        bool inUsd,
        bool requiresProof
    ) public {
        vm.assume(uint160(who) > 1 << 20 && who.code.length == 0 && who != address(marketplace));
        for (uint256 i = 0; i < texts.length; i++) {
            vm.assume(bytes(texts[i]).length != 0 && bytes(texts[i]).length <= 128);
        }
        JobMarketplace.Posting memory p = posting(inUsd ? address(usd) : address(0), 0, address(0))[0];
        (p.details.modelId, p.details.prompt) = (texts[0], texts[1]);
        p.details.maxTokens = bound(numbers[0], 1, 1 << 20);
        p.details.temperature = bound(numbers[1], 0, 2000);
        p.details.seed = seed;
        p.payment = bound(numbers[2], 1, inUsd ? 1e12 : type(uint96).max);
        p.requirements.requiresProof = requiresProof;
        uint256 jobId = postBy(who, p);
        vm.assertEq(marketplace.dealOf(jobId), deal(p, who));
        vm.prank(host);
        marketplace.claimExactly(jobId, deal(p, who));
        vm.assertEq(marketplace.getJob(jobId).host, host);
    }

    function testFuzz_only_active_hosts_claim(address who) public {
        vm.assume(who != host && who != rival);
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HostNotActive.selector, who));
        vm.prank(who);
        marketplace.claimJob(jobId);
    }

    function testFuzz_a_claim_comes_before_the_deadline(uint32 late) public {
        uint256 jobId = post();
        uint256 deadline = marketplace.getJob(jobId).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobId, deadline, deadline));
        claim(jobId);
        vm.warp(deadline + late);
        vm.expectRevert(
            abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobId, deadline, deadline + late)
        );
        claim(jobId);
        vm.warp(deadline - 1);
        claim(jobId);
    }

    function test_completing_starts_the_challenge_window() public {
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobCompleted(jobId, CID);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobReleaseDue(jobId, uint64(block.timestamp + WINDOW));
        vm.prank(host);
        marketplace.completeJob(jobId, CID, proof);
        vm.assertEq(marketplace.getJob(jobId).releaseAt, block.timestamp + WINDOW);
    }

    function testFuzz_only_the_claimer_completes(address who) public {
        vm.assume(who != host);
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotHost.selector, jobId, host, who));
        vm.prank(who);
        marketplace.completeJob(jobId, CID, proof);
    }

    /// Old defect: results were taken without a deadline.
    function testFuzz_completing_comes_before_the_deadline(uint32 late) public {
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        uint256 deadline = marketplace.getJob(jobId).deadline;
        vm.startPrank(host);
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobId, deadline, deadline));
        marketplace.completeJob(jobId, CID, proof);
        vm.warp(deadline + late);
        vm.expectRevert(
            abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobId, deadline, deadline + late)
        );
        marketplace.completeJob(jobId, CID, proof);
        vm.warp(deadline - 1);
        marketplace.completeJob(jobId, CID, proof);
    }

    function test_a_result_is_committed_before() public {
        uint256 jobId = post();
        claim(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ResultNotCommitted.selector, jobId));
        vm.prank(host);
        marketplace.completeJob(jobId, CID, "x");
    }

    function testFuzz_the_result_is_the_one_committed(string calldata other) public {
        bytes32 given = keccak256(bytes(other));
        bytes32 committedTo = keccak256(bytes(CID));
        vm.assume(given != committedTo && bytes(other).length > 0 && bytes(other).length <= 128);
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ResultMismatch.selector, jobId, committedTo, given));
        vm.prank(host);
        marketplace.completeJob(jobId, other, proof);
    }

    /// Old defect: the proof was ignored on completion.
    function test_a_required_proof_is_required() public {
        uint256 jobId = committed();
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ProofRequired.selector, jobId));
        vm.prank(host);
        marketplace.completeJob(jobId, CID, "");
    }

    function test_without_requirement_no_proof_is_fine_but_a_commitment_is_needed() public {
        JobMarketplace.JobRequirements memory r = requirements();
        r.requiresProof = false;
        uint256 jobId = post(details(), r);
        claim(jobId);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ResultNotCommitted.selector, jobId));
        vm.prank(host);
        marketplace.completeJob(jobId, CID, "");
        commit(jobId, 5);
        vm.prank(host);
        marketplace.completeJob(jobId, CID, "");
        vm.assertFalse(proofSystem.commitmentOf(jobId).proven);
    }

    function testFuzz_the_host_is_paid_after_the_window(uint96 amount) public {
        amount = uint96(bound(amount, 1, usd.totalSupply()));
        uint256 jobId = postUsd(amount);
        claim(jobId);
        commit(jobId, 5);
        complete(jobId);
        uint256 due = marketplace.getJob(jobId).releaseAt;
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ReleaseNotDue.selector, jobId, due, block.timestamp));
        marketplace.releasePayment(jobId);
        vm.warp(due);
        uint256 fee = uint256(amount) * FEE_BPS / 10_000;
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentReleased(jobId, host, amount - fee);
        marketplace.releasePayment(jobId);
        vm.assertEq(usd.balanceOf(host), amount - fee);
        vm.assertEq(usd.balanceOf(treasury), fee);
        vm.assertEq(usd.balanceOf(address(escrow)), 0);
        vm.assertEq(host.balance, 0);
    }

    /// Old defect: paid on completion, and again on release.
    function test_nobody_is_paid_twice() public {
        uint256 jobId = completed();
        vm.assertEq(host.balance, 0);
        release(jobId);
        uint256 paid = host.balance;
        JobMarketplace.JobStatus released = JobMarketplace.JobStatus.Released;
        vm.expectRevert(
            abi.encodeWithSelector(
                JobMarketplace.WrongStatus.selector, jobId, released, JobMarketplace.JobStatus.Completed
            )
        );
        marketplace.releasePayment(jobId);
        vm.expectRevert(
            abi.encodeWithSelector(
                JobMarketplace.WrongStatus.selector, jobId, released, JobMarketplace.JobStatus.Claimed
            )
        );
        marketplace.expireJob(jobId);
        vm.assertEq(host.balance, paid);
    }

    /// Old defect: tokens stayed for ever when nobody claimed.
    function test_an_unclaimed_token_job_is_refunded_in_full_by_anyone() public {
        uint256 jobId = postUsd(5e6);
        uint256 deadline = marketplace.getJob(jobId).deadline;
        vm.expectRevert(
            abi.encodeWithSelector(JobMarketplace.DeadlineNotReached.selector, jobId, deadline, block.timestamp)
        );
        marketplace.expireJob(jobId);
        vm.warp(deadline);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobExpired(jobId);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowRefunded(bytes32(jobId));
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.PaymentRefunded(jobId, renter, 5e6);
        vm.prank(stranger);
        marketplace.expireJob(jobId);
        vm.assertEq(usd.balanceOf(renter), 5e6);
    }

    /// Old defect: a failed job left no event.
    function test_a_claimed_and_missed_job_says_so_and_is_refunded() public {
        uint256 jobId = committed();
        vm.warp(marketplace.getJob(jobId).deadline);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(jobId, host, "deadline passed");
        marketplace.expireJob(jobId);
        vm.assertEq(renter.balance, 100 ether);
        vm.assertEq(uint256(marketplace.getJob(jobId).status), uint256(JobMarketplace.JobStatus.Refunded));
    }

    function test_a_renter_cancels_before_a_claim_only() public {
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotRenter.selector, jobId, renter, stranger));
        vm.prank(stranger);
        marketplace.cancelJob(jobId);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobCancelled(jobId);
        vm.prank(renter);
        marketplace.cancelJob(jobId);
        vm.assertEq(renter.balance, 100 ether);

        jobId = post();
        claim(jobId);
        vm.expectRevert(
            abi.encodeWithSelector(
                JobMarketplace.WrongStatus.selector,
                jobId,
                JobMarketplace.JobStatus.Claimed,
                JobMarketplace.JobStatus.Posted
            )
        );
        vm.prank(renter);
        marketplace.cancelJob(jobId);
    }
}
