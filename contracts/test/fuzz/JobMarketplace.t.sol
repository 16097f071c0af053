// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {Fuzz} from "../lib/Fuzz.sol";

contract JobMarketplaceFuzz is Fuzz {
    // Posting.

    function testFuzz_postJob_takes_exactly_the_payment_for_terms_in_range(
        address who,
        uint96 payment,
        uint96 sent,
        bool exact,
        uint256[4] memory terms
    ) public {
        who = account(who);
        if (exact) sent = payment;
        JobMarketplace.JobDetails memory d = details();
        JobMarketplace.JobRequirements memory r = requirements();
        d.maxTokens = bound(terms[0], 0, (1 << 20) + 1);
        d.temperature = bound(terms[1], 0, 2001);
        r.minReputationScore = bound(terms[2], 0, 1001);
        r.maxTimeToComplete = bound(terms[3], 29, 7 days + 1);
        bool fits = payment != 0 && sent == payment && d.maxTokens != 0 && d.maxTokens <= 1 << 20
            && d.temperature <= 2000 && r.minReputationScore <= 1000 && r.maxTimeToComplete >= 30
            && r.maxTimeToComplete <= 7 days;
        vm.deal(who, sent);
        same(tries(who, address(marketplace), sent, abi.encodeCall(marketplace.postJob, (d, r, payment))), fits);
        vm.assertEq(who.balance, fits ? 0 : sent);
        vm.assertEq(address(escrow).balance, fits ? payment : 0);
        vm.assertEq(marketplace.jobCount(), fits ? 1 : 0);
        if (!fits) return;
        JobMarketplace.Job memory job = marketplace.getJob(1);
        vm.assertEq(job.renter, who);
        vm.assertEq(job.deadline, block.timestamp + r.maxTimeToComplete);
        vm.assertEq(job.maxTokens, d.maxTokens);
        vm.assertEq(job.temperature, d.temperature);
        vm.assertEq(job.minReputation, r.minReputationScore);
    }

    function testFuzz_postJobWithToken_takes_exactly_the_payment_of_an_allowed_token(
        address who,
        uint256 payment,
        uint256 approved,
        bool allowed
    ) public {
        who = account(who);
        payment = bound(payment, 0, 2e6);
        approved = bound(approved, 0, 2e6);
        vm.prank(owner);
        marketplace.allowToken(address(usd), allowed);
        usd.transfer(who, 1e6);
        vm.prank(who);
        usd.approve(address(marketplace), approved);
        bool fits = allowed && payment != 0 && payment <= approved && payment <= 1e6;
        bytes memory data =
            abi.encodeCall(marketplace.postJobWithToken, (details(), requirements(), address(usd), payment));
        same(tries(who, address(marketplace), data), fits);
        vm.assertEq(usd.balanceOf(who), fits ? 1e6 - payment : 1e6);
        vm.assertEq(usd.balanceOf(address(escrow)), fits ? payment : 0);
        if (fits) vm.assertEq(escrow.getEscrow(1).renter, who);
    }

    function testFuzz_postJobs_takes_exactly_the_sum_of_each_token(
        uint96[5] memory payments,
        bool[5] memory inUsd,
        uint8 count,
        int8 off
    ) public {
        JobMarketplace.Posting[] memory postings = new JobMarketplace.Posting[](count % 6);
        uint256 eth = 0;
        uint256 dollars = 0;
        for (uint256 i = 0; i < postings.length; i++) {
            uint256 payment = bound(payments[i], 1, 1e12);
            address token = inUsd[i] ? address(usd) : address(0);
            postings[i] = JobMarketplace.Posting(details(), requirements(), token, payment, address(0));
            if (inUsd[i]) dollars += payment;
            else eth += payment;
        }
        usd.transfer(renter, dollars);
        vm.prank(renter);
        usd.approve(address(marketplace), dollars);
        uint256 sent = uint256(int256(eth) + off) > 1 ether ? eth : uint256(int256(eth) + off);
        bool fits = sent == eth;
        same(tries(renter, address(marketplace), sent, abi.encodeCall(marketplace.postJobs, (postings))), fits);
        vm.assertEq(marketplace.jobCount(), fits ? postings.length : 0);
        vm.assertEq(address(escrow).balance, fits ? eth : 0);
        vm.assertEq(usd.balanceOf(address(escrow)), fits ? dollars : 0);
        vm.assertEq(renter.balance, fits ? 100 ether - eth : 100 ether);
    }

    // The host's side.

    function testFuzz_claimJob_is_for_active_hosts_in_time_for_a_job_that_is_theirs_to_take(
        address who,
        uint8 pick,
        uint8 status,
        bool reserved,
        uint32 later
    ) public {
        address[3] memory some = [host, rival, account(who)];
        who = some[pick % 3];
        uint256 jobId = reserved ? postReserved(rival) : inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = job.status == JobMarketplace.JobStatus.Posted && block.timestamp < job.deadline
            && (who == rival || (who == host && !reserved));
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.claimJob, (jobId))), fits);
        if (fits) {
            assertStatus(jobId, JobMarketplace.JobStatus.Claimed);
            vm.assertEq(marketplace.getJob(jobId).host, who);
            vm.assertEq(registry.getNode(who).openJobs, 1);
        } else {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
        }
    }

    function testFuzz_claimExactly_is_a_claim_of_the_order_that_it_names(
        address who,
        uint8 pick,
        uint8 status,
        uint32 seed,
        bool right,
        uint32 later
    ) public {
        address[3] memory some = [host, rival, account(who)];
        who = some[pick % 3];
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        JobMarketplace.JobDetails memory d = details();
        if (!right) d.seed = seed;
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = job.status == JobMarketplace.JobStatus.Posted && block.timestamp < job.deadline
            && (who == host || who == rival) && d.seed == details().seed;
        bytes32 deal = keccak256(abi.encode(renter, order(d), address(0), PRICE, true));
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.claimExactly, (jobId, deal))), fits);
        if (fits) {
            assertStatus(jobId, JobMarketplace.JobStatus.Claimed);
            vm.assertEq(marketplace.getJob(jobId).host, who);
            vm.assertEq(registry.getNode(who).openJobs, 1);
        } else {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
        }
    }

    function testFuzz_completeJob_is_for_its_host_in_time_with_the_committed_result(
        address who,
        bool byHost,
        string memory cid,
        bool right,
        uint32 later
    ) public {
        who = oneOr(host, who, byHost);
        if (right) cid = CID;
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = who == host && block.timestamp < marketplace.getJob(jobId).deadline
            && keccak256(bytes(cid)) == keccak256(bytes(CID));
        bytes memory data = abi.encodeCall(marketplace.completeJob, (jobId, cid, proof));
        same(tries(who, address(marketplace), data), fits);
        assertStatus(jobId, fits ? JobMarketplace.JobStatus.Completed : JobMarketplace.JobStatus.Claimed);
        same(proofSystem.commitmentOf(jobId).proven, fits);
        vm.assertEq(marketplace.getJob(jobId).releaseAt, fits ? block.timestamp + WINDOW : 0);
    }

    function testFuzz_completeJobs_completes_each_of_the_hosts_jobs_once(
        address who,
        bool byHost,
        uint8[3] memory picks,
        uint8 count,
        bool cut
    ) public {
        who = oneOr(host, who, byHost);
        uint256[] memory jobIds = new uint256[](count % 4);
        string[] memory cids = new string[](cut && jobIds.length != 0 ? jobIds.length - 1 : jobIds.length);
        bool fits = cids.length == jobIds.length && (who == host || jobIds.length == 0);
        JobMarketplace.JobRequirements memory r = requirements();
        r.requiresProof = false;
        for (uint256 i = 0; i < 3; i++) {
            claim(post(details(), r));
            commit(i + 1, 5);
        }
        for (uint256 i = 0; i < jobIds.length; i++) {
            jobIds[i] = 1 + picks[i] % 3;
            if (i < cids.length) cids[i] = CID;
            for (uint256 j = 0; j < i; j++) {
                if (jobIds[j] == jobIds[i]) fits = false;
            }
        }
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.completeJobs, (jobIds, cids, ""))), fits);
        uint256 done = 0;
        for (uint256 i = 1; i <= 3; i++) {
            if (marketplace.getJob(i).status == JobMarketplace.JobStatus.Completed) done++;
        }
        vm.assertEq(done, fits ? jobIds.length : 0);
    }

    function testFuzz_failJob_reopens_the_hosts_claimed_job_in_time(
        address who,
        bool byHost,
        uint8 status,
        uint8 reasonBytes,
        uint32 later
    ) public {
        who = oneOr(host, who, byHost);
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = who == host && job.status == JobMarketplace.JobStatus.Claimed && block.timestamp < job.deadline
            && reasonBytes != 0 && reasonBytes <= 128;
        bytes memory data = abi.encodeCall(marketplace.failJob, (jobId, string(new bytes(reasonBytes))));
        same(tries(who, address(marketplace), data), fits);
        same(marketplace.gaveUp(jobId, host), fits);
        if (!fits) {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
            return;
        }
        assertStatus(jobId, JobMarketplace.JobStatus.Posted);
        vm.assertEq(address(escrow).balance, PRICE);
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }

    function testFuzz_failExactly_gives_up_the_order_that_it_names(
        address who,
        bool byHost,
        uint8 status,
        uint8 reasonBytes,
        uint32 seed,
        bool right,
        uint32 later
    ) public {
        who = oneOr(host, who, byHost);
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        JobMarketplace.JobDetails memory d = details();
        if (!right) d.seed = seed;
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = who == host && job.status == JobMarketplace.JobStatus.Claimed && block.timestamp < job.deadline
            && reasonBytes != 0 && reasonBytes <= 128 && d.seed == details().seed;
        bytes32 deal = keccak256(abi.encode(renter, order(d), address(0), PRICE, true));
        bytes memory data = abi.encodeCall(marketplace.failExactly, (jobId, deal, string(new bytes(reasonBytes))));
        same(tries(who, address(marketplace), data), fits);
        same(marketplace.gaveUp(jobId, host), fits);
        if (fits) assertStatus(jobId, JobMarketplace.JobStatus.Posted);
        else vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
    }

    // Money.

    function testFuzz_releasePayment_pays_the_host_and_the_treasury_when_due(
        address who,
        uint8 status,
        uint96 payment,
        uint32 later
    ) public {
        who = account(who);
        JobMarketplace.JobStatus from = anyStatus(status);
        uint256 amount = bound(payment, 1, usd.totalSupply());
        uint256 jobId = inStateUsd(from, amount);
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.warp(block.timestamp + bound(later, 0, 8 days));
        bool open = from == JobMarketplace.JobStatus.Completed || from == JobMarketplace.JobStatus.Disputed;
        bool fits = open && block.timestamp >= job.releaseAt;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.releasePayment, (jobId))), fits);
        if (!fits) {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
            return;
        }
        vm.assertEq(usd.balanceOf(host), amount - feeOf(amount));
        vm.assertEq(usd.balanceOf(treasury), feeOf(amount));
        vm.assertEq(usd.balanceOf(address(escrow)), 0);
        vm.assertEq(usd.balanceOf(who), 0);
    }

    /// As `inState`, for a job of tokens that was not released.
    function inStateUsd(JobMarketplace.JobStatus status, uint256 amount) private returns (uint256 jobId) {
        if (status == JobMarketplace.JobStatus.Released || status == JobMarketplace.JobStatus.Refunded) {
            return inState(status);
        }
        jobId = postUsd(amount);
        if (status == JobMarketplace.JobStatus.Posted) return jobId;
        claim(jobId);
        if (status == JobMarketplace.JobStatus.Claimed) return jobId;
        commit(jobId, 5);
        complete(jobId);
        if (status == JobMarketplace.JobStatus.Disputed) dispute(jobId);
    }

    function testFuzz_releasePayments_pays_each_job_that_is_due_once(
        address who,
        uint8[6] memory states,
        uint8[8] memory picks,
        uint32 later
    ) public {
        for (uint256 i = 0; i < 6; i++) {
            inState(anyStatus(states[i]));
        }
        vm.warp(block.timestamp + bound(later, 0, 8 days));
        uint256[] memory jobIds = new uint256[](8);
        bool[7] memory due;
        uint256 count = 0;
        for (uint256 i = 0; i < 8; i++) {
            jobIds[i] = 1 + picks[i] % 6;
            JobMarketplace.Job memory job = marketplace.getJob(jobIds[i]);
            bool open =
                job.status == JobMarketplace.JobStatus.Completed || job.status == JobMarketplace.JobStatus.Disputed;
            if (!open || block.timestamp < job.releaseAt || due[jobIds[i]]) continue;
            due[jobIds[i]] = true;
            count++;
        }
        uint256 before = host.balance;
        bytes memory data = abi.encodeCall(marketplace.releasePayments, (jobIds));
        same(tries(account(who), address(marketplace), data), count != 0);
        vm.assertEq(host.balance - before, count * (PRICE - feeOf(PRICE)));
        for (uint256 jobId = 1; jobId <= 6; jobId++) {
            if (due[jobId]) assertStatus(jobId, JobMarketplace.JobStatus.Released);
        }
    }

    function testFuzz_expireJob_refunds_what_was_not_completed_in_time(address who, uint8 status, uint32 later) public {
        JobMarketplace.JobStatus from = anyStatus(status);
        uint256 jobId = inState(from);
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        uint256 before = renter.balance;
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = from <= JobMarketplace.JobStatus.Claimed && block.timestamp >= job.deadline;
        same(tries(account(who), address(marketplace), abi.encodeCall(marketplace.expireJob, (jobId))), fits);
        vm.assertEq(renter.balance - before, fits ? PRICE : 0);
        bool missed = fits && from == JobMarketplace.JobStatus.Claimed;
        vm.assertEq(fab.balanceOf(treasury), missed ? registry.JOB_STAKE() : 0);
        vm.assertEq(marketplace.breaker().missed, missed ? 1 : 0);
        if (!fits) vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
    }

    function testFuzz_cancelJob_refunds_the_renter_before_a_claim(address who, bool byRenter, uint8 status) public {
        who = oneOr(renter, who, byRenter);
        JobMarketplace.JobStatus from = anyStatus(status);
        uint256 jobId = inState(from);
        uint256 before = renter.balance;
        bool fits = who == renter && from == JobMarketplace.JobStatus.Posted;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.cancelJob, (jobId))), fits);
        vm.assertEq(renter.balance - before, fits ? PRICE : 0);
        assertStatus(jobId, fits ? JobMarketplace.JobStatus.Refunded : from);
    }

    function isOpen(JobMarketplace.JobStatus status) private pure returns (bool) {
        return status == JobMarketplace.JobStatus.Claimed || status == JobMarketplace.JobStatus.Completed
            || status == JobMarketplace.JobStatus.Disputed;
    }

    function testFuzz_requestRefund_is_the_renters_while_the_job_is_open(address who, bool byRenter, uint8 status)
        public
    {
        who = oneOr(renter, who, byRenter);
        JobMarketplace.JobStatus from = anyStatus(status);
        uint256 jobId = inState(from);
        bool fits = who == renter && isOpen(from);
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.requestRefund, (jobId))), fits);
        same(escrow.getEscrow(jobId).refundRequested, fits);
        assertStatus(jobId, from);
    }

    function testFuzz_agreeRefund_is_the_hosts_once_it_was_asked(address who, bool byHost, uint8 status, bool requested)
        public
    {
        who = oneOr(host, who, byHost);
        JobMarketplace.JobStatus from = anyStatus(status);
        uint256 jobId = inState(from);
        if (requested && isOpen(from)) {
            vm.prank(renter);
            marketplace.requestRefund(jobId);
        }
        uint256 before = renter.balance;
        bool fits = who == host && isOpen(from) && requested;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.agreeRefund, (jobId))), fits);
        vm.assertEq(renter.balance - before, fits ? PRICE : 0);
        assertStatus(jobId, fits ? JobMarketplace.JobStatus.Refunded : from);
        vm.assertEq(registry.getNode(host).openJobs, isOpen(from) && !fits ? 1 : 0);
    }

    // Disputes.

    function testFuzz_disputeJob_is_the_renters_within_the_window(
        address who,
        bool byRenter,
        uint8 status,
        bytes32 evidence,
        uint32 later
    ) public {
        who = oneOr(renter, who, byRenter);
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.warp(block.timestamp + bound(later, 0, 2 * WINDOW));
        bool fits = who == renter && job.status == JobMarketplace.JobStatus.Completed && block.timestamp < job.releaseAt;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.disputeJob, (jobId, evidence))), fits);
        if (fits) {
            assertEscrow(jobId, PaymentEscrow.State.Disputed);
            vm.assertEq(marketplace.getJob(jobId).releaseAt, block.timestamp + 7 days);
        } else {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
        }
    }

    function testFuzz_addEvidence_is_anybodys_while_a_job_is_disputed(address who, uint8 status, bytes32 evidence)
        public
    {
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        bool fits = job.status == JobMarketplace.JobStatus.Disputed;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.addEvidence, (jobId, evidence))), fits);
        vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(job));
    }

    function testFuzz_challengeJob_is_the_proof_systems(address who, bool bySystem, address disputer) public {
        who = bySystem ? address(proofSystem) : account(who);
        uint256 jobId = completed();
        bytes memory data = abi.encodeCall(marketplace.challengeJob, (jobId, disputer, "evidence"));
        same(tries(who, address(marketplace), data), bySystem);
        assertStatus(jobId, bySystem ? JobMarketplace.JobStatus.Disputed : JobMarketplace.JobStatus.Completed);
    }

    function testFuzz_resolveDispute_is_the_arbiters_and_ends_with_every_wei_paid_out(
        address who,
        bool byArbiter,
        uint8 status,
        bool favorClient,
        bool challenged,
        uint96 bond
    ) public {
        who = oneOr(arbiter, who, byArbiter);
        JobMarketplace.JobStatus from = anyStatus(status);
        if (from == JobMarketplace.JobStatus.Disputed && challenged) from = JobMarketplace.JobStatus.Completed;
        else challenged = false;
        uint256 jobId = inState(from);
        if (challenged) {
            vm.prank(owner);
            proofSystem.setChallengeBond(uint96(bound(bond, 0, 1e26)));
            challenge(stranger, jobId);
        }
        bool fits = byArbiter && (challenged || from == JobMarketplace.JobStatus.Disputed);
        uint256 money = renter.balance + host.balance + treasury.balance + address(escrow).balance;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.resolveDispute, (jobId, favorClient))), fits);
        vm.assertEq(renter.balance + host.balance + treasury.balance + address(escrow).balance, money);
        if (!fits) return;
        assertStatus(jobId, favorClient ? JobMarketplace.JobStatus.Refunded : JobMarketplace.JobStatus.Released);
        vm.assertEq(renter.balance, favorClient ? 100 ether : 100 ether - PRICE);
        vm.assertEq(address(escrow).balance, 0);
        vm.assertEq(fab.balanceOf(address(proofSystem)), 0);
        uint256 forfeited = favorClient && challenged ? registry.JOB_STAKE() : 0;
        vm.assertEq(registry.getNode(host).stake, registry.MIN_STAKE() - forfeited);
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }

    // The owner's and the guardians' side.

    function testFuzz_allowToken_is_the_owners_and_for_contracts(
        address who,
        bool byOwner,
        address token,
        bool known,
        bool allowed
    ) public {
        who = oneOr(owner, who, byOwner);
        token = known ? address(fab) : account(token);
        bytes memory data = abi.encodeCall(marketplace.allowToken, (token, allowed));
        same(tries(who, address(marketplace), data), byOwner && known);
        same(marketplace.tokenAllowed(token), byOwner && known && allowed);
    }

    function testFuzz_setArbiter_is_the_owners(address who, bool byOwner, address next) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.setArbiter, (next))), byOwner);
        vm.assertEq(marketplace.arbiter(), byOwner ? next : arbiter);
    }

    function testFuzz_retire_is_the_owners_once(address who, bool byOwner, address to, bool known) public {
        who = oneOr(owner, who, byOwner);
        to = known ? address(registry) : account(to);
        bool fits = byOwner && known;
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.retire, (to))), fits);
        vm.assertEq(marketplace.successor(), fits ? to : address(0));
        same(tries(owner, address(marketplace), abi.encodeCall(marketplace.retire, (address(escrow)))), !fits);
    }

    function testFuzz_pause_is_a_guardians_once_in_17_days(
        address who,
        bool byGuardian,
        uint8 reasonBytes,
        uint32 later
    ) public {
        who = oneOr(guardian, who, byGuardian);
        bytes memory data = abi.encodeCall(marketplace.pause, (string(new bytes(reasonBytes))));
        bool fits = byGuardian && reasonBytes <= 128;
        same(tries(who, address(marketplace), data), fits);
        vm.assertEq(marketplace.breakerLevel(), fits ? 2 : 0);
        uint256 passed = bound(later, 0, 40 days);
        vm.warp(block.timestamp + passed);
        vm.assertEq(marketplace.breakerLevel(), fits && passed < 3 days ? 2 : 0);
        same(tries(who, address(marketplace), data), fits && passed >= 17 days);
    }

    function testFuzz_unpause_is_the_owners(address who, bool byOwner, uint32 later) public {
        who = oneOr(owner, who, byOwner);
        vm.prank(guardian);
        marketplace.pause("exploit");
        vm.warp(block.timestamp + bound(later, 0, 3 days - 1));
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.unpause, ())), byOwner);
        vm.assertEq(marketplace.breakerLevel(), byOwner ? 0 : 2);
    }

    function testFuzz_setGuardian_is_the_owners(address who, bool byOwner, address next, bool allowed) public {
        who = oneOr(owner, who, byOwner);
        next = account(next);
        bytes memory data = abi.encodeCall(marketplace.setGuardian, (next, allowed));
        same(tries(who, address(marketplace), data), byOwner);
        same(marketplace.isGuardian(next), byOwner && allowed);
    }

    function testFuzz_setBreakerThresholds_is_the_owners_and_in_order(
        address who,
        bool byOwner,
        uint32 level1,
        uint32 level2
    ) public {
        who = oneOr(owner, who, byOwner);
        bool fits = byOwner && level1 != 0 && level1 <= level2;
        bytes memory data = abi.encodeCall(marketplace.setBreakerThresholds, (level1, level2));
        same(tries(who, address(marketplace), data), fits);
        vm.assertEq(marketplace.missesForLevel1(), fits ? level1 : 10);
        vm.assertEq(marketplace.missesForLevel2(), fits ? level2 : 30);
    }

    function testFuzz_transferOwnership_is_the_owners(address who, bool byOwner, address next) public {
        who = oneOr(owner, who, byOwner);
        next = account(next);
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.transferOwnership, (next))), byOwner);
        vm.assertEq(marketplace.owner(), byOwner ? next : owner);
    }

    function testFuzz_renounceOwnership_is_the_owners(address who, bool byOwner) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(marketplace), abi.encodeCall(marketplace.renounceOwnership, ())), byOwner);
        vm.assertEq(marketplace.owner(), byOwner ? address(0) : owner);
    }
}
