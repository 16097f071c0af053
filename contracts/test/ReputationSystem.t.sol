// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {World} from "./lib/World.sol";

contract ReputationSystemTest is World {
    function ended(ReputationSystem.Outcome outcome) private {
        ended(reputation, outcome);
    }

    function ended(ReputationSystem system, ReputationSystem.Outcome outcome) private {
        vm.prank(address(marketplace));
        system.jobEnded(host, outcome);
    }

    /// Raises the host's score by 10, `times` over.
    function paid(uint256 times) private {
        for (uint256 i = 0; i < times; i++) {
            ended(ReputationSystem.Outcome.Paid);
        }
    }

    // Outcomes.

    function test_a_host_starts_in_the_middle_and_nothing_is_stored_of_it() public view {
        vm.assertEq(reputation.scoreOf(host), 500);
        vm.assertEq(reputation.recordOf(host).updatedAt, 0);
    }

    function test_each_outcome_changes_the_score_and_says_so() public {
        int256[4] memory changes = [int256(10), -20, -50, -100];
        uint256 score = 500;
        for (uint256 i = 0; i < 4; i++) {
            score = uint256(int256(score) + changes[i]);
            vm.expectEmit(address(reputation));
            emit ReputationSystem.ReputationUpdated(host, changes[i], score);
            ended(ReputationSystem.Outcome(i));
            vm.assertEq(reputation.scoreOf(host), score);
            vm.assertEq(reputation.recordOf(host).score, score);
            vm.assertEq(reputation.recordOf(host).updatedAt, block.timestamp);
        }
        vm.assertEq(reputation.scoreOf(rival), 500);
    }

    function test_the_outcomes_come_from_the_marketplace_alone() public {
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.OnlyMarketplace.selector, owner));
        vm.prank(owner);
        reputation.jobEnded(host, ReputationSystem.Outcome.Paid);
    }

    function test_a_score_is_never_below_0_nor_above_1000() public {
        vm.startPrank(owner);
        reputation.slash(host, 495, "fraud");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -5, 0);
        reputation.slash(host, 6, "fraud");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, 0, 0);
        reputation.slash(host, 1, "fraud");
        vm.stopPrank();
        paid(100);
        vm.assertEq(reputation.scoreOf(host), 1000);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, 0, 1000);
        paid(1);
        vm.prank(owner);
        reputation.slash(host, 4, "fraud");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, 4, 1000);
        paid(1);
    }

    // Ratings.

    function test_the_renter_rates_a_paid_job_once() public {
        uint256 jobId = completed();
        release(jobId);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.QualityReported(host, renter, 5, "fine");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.JobRated(jobId, 5);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, 8, 518);
        vm.prank(renter);
        reputation.rate(jobId, 5, "fine");
        vm.assertEq(reputation.ratingOf(jobId), 5);
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.AlreadyRated.selector, jobId, 5));
        vm.prank(renter);
        reputation.rate(jobId, 1, "not so fine");
    }

    function test_a_rating_is_worth_four_points_a_step_from_the_middle() public {
        uint256[5] memory scores = [uint256(502), 506, 510, 514, 518];
        for (uint8 rating = 1; rating <= 5; rating++) {
            uint256 jobId = completed();
            release(jobId);
            vm.prank(renter);
            reputation.rate(jobId, rating, "");
            vm.assertEq(reputation.scoreOf(host), scores[rating - 1]);
            uint256 above = scores[rating - 1] - 500;
            vm.prank(owner);
            reputation.slash(host, above, "back to the start");
        }
    }

    function test_only_the_renter_rates_and_only_what_it_paid_for() public {
        uint256 jobId = completed();
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.NotRenter.selector, jobId, renter, host));
        vm.prank(host);
        reputation.rate(jobId, 5, "");
        bytes4 notPaid = ReputationSystem.NotPaid.selector;
        vm.expectRevert(abi.encodeWithSelector(notPaid, jobId, JobMarketplace.JobStatus.Completed));
        vm.prank(renter);
        reputation.rate(jobId, 5, "");
        dispute(jobId);
        resolve(jobId, true);
        vm.expectRevert(abi.encodeWithSelector(notPaid, jobId, JobMarketplace.JobStatus.Refunded));
        vm.prank(renter);
        reputation.rate(jobId, 1, "");
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.UnknownJob.selector, 9));
        vm.prank(renter);
        reputation.rate(9, 1, "");
    }

    function test_a_rating_is_1_to_5_with_256_bytes_of_feedback() public {
        uint256 jobId = completed();
        release(jobId);
        vm.startPrank(renter);
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.RatingOutOfRange.selector, 0, 1, 5));
        reputation.rate(jobId, 0, "");
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.RatingOutOfRange.selector, 6, 1, 5));
        reputation.rate(jobId, 6, "");
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.TextTooLong.selector, 257, 256));
        reputation.rate(jobId, 3, string(new bytes(257)));
        reputation.rate(jobId, 3, string(new bytes(256)));
    }

    // Decay.

    function test_decay_is_reached_exactly_at_the_borders_of_its_periods_and_stops_at_the_start() public {
        paid(3);
        uint256 since = block.timestamp;
        uint256[5] memory scores = [uint256(530), 520, 510, 500, 500];
        for (uint256 period = 0; period < 5; period++) {
            vm.warp(since + period * 7 days);
            vm.assertEq(reputation.scoreOf(host), scores[period]);
            vm.warp(since + (period + 1) * 7 days - 1);
            vm.assertEq(reputation.scoreOf(host), scores[period]);
        }
    }

    function test_a_rest_of_less_than_a_step_decays_to_the_start_not_below() public {
        paid(1);
        vm.prank(owner);
        reputation.slash(host, 5, "5 above the start");
        vm.warp(block.timestamp + 7 days);
        vm.assertEq(reputation.scoreOf(host), 500);
        vm.warp(block.timestamp + 1000 days);
        vm.assertEq(reputation.scoreOf(host), 500);
    }

    function test_a_score_below_the_start_stays() public {
        ended(ReputationSystem.Outcome.Missed);
        vm.warp(block.timestamp + 1000 days);
        vm.assertEq(reputation.scoreOf(host), 450);
    }

    function test_what_decayed_is_on_the_log_before_the_next_change() public {
        paid(3);
        vm.warp(block.timestamp + 14 days);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -20, 510);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, 10, 520);
        paid(1);
        vm.assertEq(reputation.recordOf(host).score, 520);
        vm.assertEq(reputation.recordOf(host).updatedAt, block.timestamp);
        vm.warp(block.timestamp + 7 days - 1);
        vm.assertEq(reputation.scoreOf(host), 520);
    }

    // Incentives and slashing.

    function test_the_incentive_threshold_is_the_owners_and_decides() public {
        vm.assertEq(reputation.incentiveThreshold(), 700);
        paid(19);
        vm.assertFalse(reputation.isIncentivized(host));
        paid(1);
        vm.assertTrue(reputation.isIncentivized(host));
        vm.warp(block.timestamp + 7 days);
        vm.assertFalse(reputation.isIncentivized(host));
        vm.expectRevert(notOwner(host));
        vm.prank(host);
        reputation.setIncentiveThreshold(690);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.ScoreOutOfRange.selector, 1001, 1000));
        reputation.setIncentiveThreshold(1001);
        vm.expectEmit(address(reputation));
        emit ReputationSystem.IncentiveThresholdChanged(690);
        reputation.setIncentiveThreshold(690);
        vm.assertTrue(reputation.isIncentivized(host));
        reputation.setIncentiveThreshold(1000);
        vm.assertFalse(reputation.isIncentivized(host));
    }

    function test_the_owner_slashes_1_to_1000_with_a_short_reason() public {
        vm.expectRevert(notOwner(renter));
        vm.prank(renter);
        reputation.slash(host, 1, "fraud");
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.ScoreOutOfRange.selector, 0, 1000));
        reputation.slash(host, 0, "fraud");
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.ScoreOutOfRange.selector, 1001, 1000));
        reputation.slash(host, 1001, "fraud");
        vm.expectRevert(abi.encodeWithSelector(ReputationSystem.TextTooLong.selector, 129, 128));
        reputation.slash(host, 1, string(new bytes(129)));
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationSlashed(host, 120, "fraud");
        vm.expectEmit(address(reputation));
        emit ReputationSystem.ReputationUpdated(host, -120, 380);
        reputation.slash(host, 120, "fraud");
    }

    // The system before.

    function test_a_successor_reads_the_scores_it_does_not_know_from_its_predecessor() public {
        paid(10);
        ReputationSystem next = new ReputationSystem(owner, marketplace, reputation);
        vm.assertEq(next.scoreOf(host), 600);
        vm.assertEq(next.recordOf(host).updatedAt, block.timestamp);
        vm.assertEq(next.scoreOf(rival), 500);
        vm.assertEq(next.recordOf(rival).updatedAt, 0);

        vm.warp(block.timestamp + 7 days);
        vm.assertEq(next.scoreOf(host), 590);
        vm.expectEmit(address(next));
        emit ReputationSystem.ReputationUpdated(host, -10, 590);
        vm.expectEmit(address(next));
        emit ReputationSystem.ReputationUpdated(host, 10, 600);
        ended(next, ReputationSystem.Outcome.Paid);
        paid(20);
        vm.assertEq(next.scoreOf(host), 600);

        ReputationSystem third = new ReputationSystem(owner, marketplace, next);
        vm.assertEq(third.scoreOf(host), 600);
    }

    function test_a_score_of_0_is_known_and_not_read_from_the_predecessor() public {
        paid(10);
        ReputationSystem next = new ReputationSystem(owner, marketplace, reputation);
        vm.prank(owner);
        next.slash(host, 1000, "fraud");
        vm.assertEq(next.scoreOf(host), 0);
        vm.expectEmit(address(next));
        emit ReputationSystem.ReputationUpdated(host, 10, 10);
        ended(next, ReputationSystem.Outcome.Paid);
    }
}
