// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {ReputationSystem} from "../../src/ReputationSystem.sol";
import {Fuzz} from "../lib/Fuzz.sol";

contract ReputationSystemFuzz is Fuzz {
    /// The definition of a score's decay, step by step.
    function decayedStepwise(uint256 score, uint256 time) private pure returns (uint256) {
        for (; time >= 7 days && score > 500; time -= 7 days) {
            score = score < 510 ? 500 : score - 10;
        }
        return score;
    }

    function testFuzz_jobEnded_is_the_marketplaces_and_keeps_the_score_in_bounds(
        address who,
        bool byMarketplace,
        uint8[40] memory outcomes,
        uint32[40] memory waits
    ) public {
        who = byMarketplace ? address(marketplace) : account(who);
        int256[4] memory changes = [int256(10), -20, -50, -100];
        int256 score = 500;
        for (uint256 i = 0; i < 40; i++) {
            uint256 wait = bound(waits[i], 0, 21 days);
            vm.warp(block.timestamp + wait);
            // Nine in ten are paid, lest the upper bound be out of reach.
            uint256 outcome = outcomes[i] % 10 == 0 ? outcomes[i] % 4 : 0;
            bytes memory data = abi.encodeCall(reputation.jobEnded, (host, ReputationSystem.Outcome(outcome)));
            same(tries(who, address(reputation), data), byMarketplace);
            if (byMarketplace) {
                score = int256(decayedStepwise(uint256(score), i == 0 ? 0 : wait)) + changes[outcome];
                if (score < 0) score = 0;
                if (score > 1000) score = 1000;
            }
            vm.assertEq(reputation.scoreOf(host), uint256(score));
        }
    }

    function testFuzz_rate_is_the_renters_once_for_a_job_it_paid_for(
        address who,
        bool byRenter,
        uint8 status,
        uint8 rating,
        uint16 feedbackBytes
    ) public {
        who = oneOr(renter, who, byRenter);
        rating = rating % 8;
        feedbackBytes = uint16(bound(feedbackBytes, 0, 300));
        JobMarketplace.JobStatus from = anyStatus(status);
        uint256 jobId = inState(from);
        uint256 before = reputation.scoreOf(host);
        bool fits = who == renter && from == JobMarketplace.JobStatus.Released && rating >= 1 && rating <= 5
            && feedbackBytes <= 256;
        bytes memory data = abi.encodeCall(reputation.rate, (jobId, rating, string(new bytes(feedbackBytes))));
        same(tries(who, address(reputation), data), fits);
        vm.assertEq(reputation.ratingOf(jobId), fits ? rating : 0);
        vm.assertEq(reputation.scoreOf(host), fits ? before + uint256(rating) * 4 - 12 : before);
        same(tries(who, address(reputation), data), false);
    }

    function testFuzz_slash_is_the_owners_and_ends_at_0(
        address who,
        bool byOwner,
        address node,
        uint256 amount,
        uint8 reasonBytes
    ) public {
        who = oneOr(owner, who, byOwner);
        amount = bound(amount, 0, 1100);
        bool fits = byOwner && amount != 0 && amount <= 1000 && reasonBytes <= 128;
        bytes memory data = abi.encodeCall(reputation.slash, (node, amount, string(new bytes(reasonBytes))));
        same(tries(who, address(reputation), data), fits);
        vm.assertEq(reputation.scoreOf(node), !fits ? 500 : amount > 500 ? 0 : 500 - amount);
    }

    function testFuzz_setIncentiveThreshold_is_the_owners_and_decides(address who, bool byOwner, uint256 threshold)
        public
    {
        who = oneOr(owner, who, byOwner);
        threshold = bound(threshold, 0, 1100);
        bool fits = byOwner && threshold <= 1000;
        bytes memory data = abi.encodeCall(reputation.setIncentiveThreshold, (threshold));
        same(tries(who, address(reputation), data), fits);
        vm.assertEq(reputation.incentiveThreshold(), fits ? threshold : 700);
        same(reputation.isIncentivized(host), fits && threshold <= 500);
    }

    /// `decayed` is a view, but what it says is the heart of the system.
    function testFuzz_decay_goes_down_to_the_start_step_by_step(uint256 score, uint40 since, uint32 passed)
        public
        view
    {
        score = bound(score, 0, 1000);
        uint256 time = uint256(since) + passed;
        vm.assertEq(reputation.decayed(score, since, time), decayedStepwise(score, passed));
    }

    function testFuzz_transferOwnership_is_the_owners(address who, bool byOwner, address next) public {
        who = oneOr(owner, who, byOwner);
        next = account(next);
        same(tries(who, address(reputation), abi.encodeCall(reputation.transferOwnership, (next))), byOwner);
        vm.assertEq(reputation.owner(), byOwner ? next : owner);
    }

    function testFuzz_renounceOwnership_is_the_owners(address who, bool byOwner) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(reputation), abi.encodeCall(reputation.renounceOwnership, ())), byOwner);
        vm.assertEq(reputation.owner(), byOwner ? address(0) : owner);
    }
}
