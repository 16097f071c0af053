// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {CircuitBreaker} from "../src/CircuitBreaker.sol";
import {World} from "./lib/World.sol";

/// The breaker, tripped by jobs that real hosts of the marketplace miss.
contract CircuitBreakerTest is World {
    bytes private stopped1 = abi.encodeWithSelector(CircuitBreaker.Stopped.selector, 1);
    bytes private stopped2 = abi.encodeWithSelector(CircuitBreaker.Stopped.selector, 2);

    /// Posts and claims `count` jobs and lets their deadline come. They are the last ones posted.
    function overdue(uint256 count) private returns (uint256 first) {
        first = marketplace.jobCount() + 1;
        for (uint256 i = 0; i < count; i++) {
            claim(post());
        }
        vm.warp(marketplace.getJob(first).deadline);
    }

    function expire(uint256 first, uint256 count) private {
        for (uint256 i = 0; i < count; i++) {
            marketplace.expireJob(first + i);
        }
    }

    function assertLevel(uint256 level) private view {
        vm.assertEq(marketplace.breakerLevel(), level);
    }

    // The level that missed jobs raise.

    function test_ten_missed_jobs_in_an_hour_stop_posts_and_thirty_stop_claims() public {
        uint256 first = overdue(31);
        uint256 open = post();
        expire(first, 9);
        assertLevel(0);
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.CircuitBreakerTriggered("deadlines missed", 1);
        marketplace.expireJob(first + 9);
        assertLevel(1);
        assertPostsStopped(stopped1);
        claimAs(rival, open);

        host = rival;
        expire(first + 10, 19);
        assertLevel(1);
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.CircuitBreakerTriggered("deadlines missed", 2);
        marketplace.expireJob(first + 29);
        assertLevel(2);
        assertPostsStopped(stopped2);
        CircuitBreaker.Breaker memory b = marketplace.breaker();
        vm.assertEq(b.ended, 30);
        vm.assertEq(b.missed, 30);
        vm.assertEq(b.level, 2);
        vm.assertEq(b.levelUntil, block.timestamp + 1 hours);
        // What was claimed goes on.
        commit(open, 5);
        complete(open);
        release(open);
        vm.assertEq(rival.balance, PRICE - feeOf(PRICE));
    }

    function assertPostsStopped(bytes memory refusal) private {
        vm.startPrank(renter);
        vm.expectRevert(refusal);
        marketplace.postJob{value: PRICE}(details(), requirements(), PRICE);
        vm.expectRevert(refusal);
        marketplace.postJobWithToken(details(), requirements(), address(usd), 1);
        vm.expectRevert(refusal);
        marketplace.postJobs{value: PRICE}(posting(address(0), PRICE, address(0)));
        vm.stopPrank();
    }

    function test_at_level_2_nothing_is_claimed() public {
        vm.prank(owner);
        marketplace.setBreakerThresholds(1, 2);
        uint256 first = overdue(2);
        uint256 open = post();
        marketplace.expireJob(first);
        assertLevel(1);
        marketplace.expireJob(first + 1);
        assertLevel(2);
        vm.expectRevert(stopped2);
        claimAs(rival, open);
        vm.prank(renter);
        marketplace.cancelJob(open);
        vm.assertEq(renter.balance, 100 ether);
    }

    function test_the_level_falls_by_itself_an_hour_later() public {
        expire(overdue(10), 10);
        uint256 end = block.timestamp + 1 hours;
        vm.warp(end - 1);
        assertLevel(1);
        assertPostsStopped(stopped1);
        vm.warp(end);
        assertLevel(0);
        post();
    }

    function test_more_missed_jobs_do_not_prolong_a_level_that_holds() public {
        uint256 first = overdue(12);
        expire(first, 10);
        uint256 end = block.timestamp + 1 hours;
        vm.warp(end - 1);
        expire(first + 10, 1);
        vm.assertEq(marketplace.breaker().levelUntil, end);
        vm.warp(end);
        assertLevel(0);
        expire(first + 11, 1); // the first of a new window
        assertLevel(0);
    }

    function test_a_higher_level_holds_its_own_hour_and_a_lower_one_does_not_lower_or_prolong_it() public {
        vm.prank(owner);
        marketplace.setBreakerThresholds(1, 2);
        uint256 first = overdue(4);
        uint256 start = block.timestamp;
        marketplace.expireJob(first);
        vm.assertEq(marketplace.breaker().levelUntil, start + 1 hours);
        vm.warp(start + 10 minutes);
        marketplace.expireJob(first + 1);
        assertLevel(2);
        vm.assertEq(marketplace.breaker().levelUntil, start + 70 minutes);
        vm.warp(start + 61 minutes);
        marketplace.expireJob(first + 2); // a new window: on its own good for level 1
        assertLevel(2);
        vm.assertEq(marketplace.breaker().levelUntil, start + 70 minutes);
        vm.assertEq(marketplace.breaker().missed, 1);
        vm.warp(start + 70 minutes);
        assertLevel(0);
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.CircuitBreakerTriggered("deadlines missed", 2);
        marketplace.expireJob(first + 3);
        assertLevel(2);
    }

    function test_the_count_begins_again_when_its_window_is_over() public {
        uint256 first = overdue(12);
        uint256 start = block.timestamp;
        expire(first, 9);
        vm.assertEq(marketplace.breaker().windowStart, start);
        vm.warp(start + 1 hours);
        expire(first + 9, 3);
        assertLevel(0);
        vm.assertEq(marketplace.breaker().windowStart, start + 1 hours);
        vm.assertEq(marketplace.breaker().missed, 3);
    }

    function test_the_count_goes_on_to_the_last_second_of_its_window() public {
        uint256 first = overdue(10);
        uint256 start = block.timestamp;
        expire(first, 9);
        vm.warp(start + 1 hours - 1);
        marketplace.expireJob(first + 9);
        assertLevel(1);
    }

    function test_missed_jobs_that_are_less_than_half_of_those_that_ended_stop_nothing() public {
        vm.prank(owner);
        marketplace.setBreakerThresholds(1, 30);
        uint256 first = overdue(3);
        uint256[] memory paid = new uint256[](4);
        host = rival;
        for (uint256 i = 0; i < 4; i++) {
            paid[i] = completed();
        }
        vm.warp(block.timestamp + WINDOW);
        for (uint256 i = 0; i < 4; i++) {
            marketplace.releasePayment(paid[i]);
        }
        expire(first, 2); // 2 of 6, then 3 of 7
        assertLevel(0);
        marketplace.expireJob(first + 2);
        assertLevel(0);
        CircuitBreaker.Breaker memory b = marketplace.breaker();
        vm.assertEq(b.ended, 7);
        vm.assertEq(b.missed, 3);
    }

    function test_half_is_enough() public {
        vm.prank(owner);
        marketplace.setBreakerThresholds(1, 30);
        uint256 first = overdue(1);
        host = rival;
        release(completed());
        marketplace.expireJob(first);
        assertLevel(1);
    }

    function test_jobs_that_nobody_claimed_or_that_were_given_back_are_not_counted() public {
        uint256 unclaimed = post();
        uint256 refunded = committed();
        uint256 failed = committed();
        uint256 lost = completed();
        vm.prank(renter);
        marketplace.requestRefund(refunded);
        vm.startPrank(host);
        marketplace.agreeRefund(refunded);
        marketplace.failJob(failed, "no");
        vm.stopPrank();
        dispute(lost);
        resolve(lost, true);
        vm.warp(marketplace.getJob(unclaimed).deadline);
        marketplace.expireJob(unclaimed);
        vm.assertEq(marketplace.breaker().ended, 0);
    }

    function test_the_owner_sets_the_thresholds_in_order() public {
        vm.expectRevert(notOwner(guardian));
        vm.prank(guardian);
        marketplace.setBreakerThresholds(1, 1);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.ThresholdsOutOfOrder.selector, 0, 5));
        marketplace.setBreakerThresholds(0, 5);
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.ThresholdsOutOfOrder.selector, 6, 5));
        marketplace.setBreakerThresholds(6, 5);
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.BreakerThresholdsChanged(5, 5);
        marketplace.setBreakerThresholds(5, 5);
        vm.assertEq(marketplace.missesForLevel1(), 5);
        vm.assertEq(marketplace.missesForLevel2(), 5);
    }

    // The guardian's pause.

    function pause() private {
        vm.prank(guardian);
        marketplace.pause("exploit");
    }

    function test_a_pause_stops_posts_and_claims_and_nothing_else() public {
        uint256 open = post();
        uint256 toExpire = post();
        uint256 toMiss = committed();
        uint256 toFail = committed();
        uint256 toRefund = committed();
        uint256 toComplete = committed();
        uint256 toRelease = completed();
        uint256 toResolve = completed();
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.EmergencyPause(guardian, "exploit");
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.CircuitBreakerTriggered("exploit", 2);
        pause();
        assertLevel(2);
        assertPostsStopped(stopped2);
        vm.expectRevert(stopped2);
        claim(open);

        complete(toComplete);
        vm.prank(host);
        marketplace.failJob(toFail, "no");
        vm.prank(renter);
        marketplace.requestRefund(toRefund);
        vm.prank(host);
        marketplace.agreeRefund(toRefund);
        dispute(toResolve);
        resolve(toResolve, false);
        vm.prank(renter);
        marketplace.cancelJob(open);
        vm.warp(marketplace.getJob(toMiss).deadline);
        marketplace.expireJob(toMiss);
        marketplace.expireJob(toExpire);
        marketplace.expireJob(toFail);
        vm.warp(marketplace.getJob(toRelease).releaseAt);
        marketplace.releasePayments(single(toRelease));
        release(toComplete);
        assertLevel(2);
        vm.assertEq(address(escrow).balance, 0);
        vm.assertEq(host.balance, 3 * (PRICE - feeOf(PRICE)));
    }

    function test_a_pause_ends_by_itself() public {
        pause();
        uint256 end = block.timestamp + 3 days;
        vm.assertEq(marketplace.breaker().pausedUntil, end);
        vm.warp(end - 1);
        assertLevel(2);
        assertPostsStopped(stopped2);
        vm.warp(end);
        assertLevel(0);
        claim(post());
    }

    function test_no_guardian_pauses_again_before_two_weeks_without_a_pause() public {
        vm.prank(owner);
        marketplace.setGuardian(stranger, true);
        pause();
        uint256 from = block.timestamp + 17 days;
        vm.warp(from - 1);
        bytes memory refusal = abi.encodeWithSelector(CircuitBreaker.PauseTooSoon.selector, from, from - 1);
        vm.expectRevert(refusal);
        pause();
        vm.expectRevert(refusal);
        vm.prank(stranger);
        marketplace.pause("again");
        vm.warp(from);
        vm.prank(stranger);
        marketplace.pause("again");
        assertLevel(2);
    }

    function test_only_guardians_pause_and_say_why_in_128_bytes() public {
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.NotGuardian.selector, owner));
        vm.prank(owner);
        marketplace.pause("exploit");
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.PauseReasonTooLong.selector, 129, 128));
        vm.prank(guardian);
        marketplace.pause(string(new bytes(129)));
    }

    function test_the_owner_names_guardians() public {
        vm.expectRevert(notOwner(guardian));
        vm.prank(guardian);
        marketplace.setGuardian(stranger, true);
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.GuardianSet(guardian, false);
        vm.prank(owner);
        marketplace.setGuardian(guardian, false);
        vm.assertFalse(marketplace.isGuardian(guardian));
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.NotGuardian.selector, guardian));
        pause();
    }

    function test_the_owner_lowers_the_level_whoever_raised_it() public {
        expire(overdue(10), 10);
        pause();
        vm.expectRevert(notOwner(guardian));
        vm.prank(guardian);
        marketplace.unpause();
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.EmergencyUnpause(owner);
        vm.prank(owner);
        marketplace.unpause();
        assertLevel(0);
        // What was missed before counts no more: the next miss alone does not raise the level again.
        CircuitBreaker.Breaker memory state = marketplace.breaker();
        vm.assertEq(uint256(state.missed) + state.ended, 0);
        claimAs(rival, post());
        uint256 from = block.timestamp + 17 days;
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.PauseTooSoon.selector, from, block.timestamp));
        pause();
    }
}
