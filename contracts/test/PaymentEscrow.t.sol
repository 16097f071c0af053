// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {BlockingToken, Picky} from "./lib/Tokens.sol";
import {World} from "./lib/World.sol";

contract PaymentEscrowTest is World {
    function test_only_the_marketplace_moves_money() public {
        uint256 jobId = post();
        bytes memory refusal = abi.encodeWithSelector(PaymentEscrow.OnlyMarketplace.selector, owner);
        vm.startPrank(owner);
        vm.expectRevert(refusal);
        escrow.create(jobId, renter, address(0), address(0), 0);
        vm.expectRevert(refusal);
        escrow.release(jobId, owner);
        vm.expectRevert(refusal);
        escrow.refund(jobId);
        vm.expectRevert(refusal);
        escrow.dispute(jobId, owner);
        vm.expectRevert(refusal);
        escrow.requestRefund(jobId);
    }

    function test_the_fee_has_a_bound_and_a_treasury() public {
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.FeeTooHigh.selector, 1001, 1000));
        new PaymentEscrow(owner, address(marketplace), treasury, 1001);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.NoTreasury.selector));
        new PaymentEscrow(owner, address(marketplace), address(0), 0);
    }

    function test_the_eth_sent_is_the_eth_booked() public {
        vm.deal(address(marketplace), 1 ether);
        vm.startPrank(address(marketplace));
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.AmountMismatch.selector, 9, 2, 1));
        escrow.create{value: 1}(9, renter, address(0), address(0), 2);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.AmountMismatch.selector, 9, 0, 1));
        escrow.create{value: 1}(9, renter, address(0), address(usd), 1);
    }

    function test_one_escrow_per_job() public {
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.AlreadyHeld.selector, jobId));
        vm.prank(address(marketplace));
        escrow.create(jobId, renter, address(0), address(0), 0);
    }

    function test_money_leaves_once() public {
        uint256 jobId = completed();
        release(jobId);
        bytes memory refusal =
            abi.encodeWithSelector(PaymentEscrow.NotHeld.selector, jobId, PaymentEscrow.State.Released);
        vm.startPrank(address(marketplace));
        vm.expectRevert(refusal);
        escrow.release(jobId, host);
        vm.expectRevert(refusal);
        escrow.refund(jobId);
    }

    /// Old defect: the fee was booked twice.
    function testFuzz_the_fee_is_booked_once(uint96 amount) public {
        amount = uint96(bound(amount, 1, type(uint96).max));
        vm.deal(address(marketplace), amount);
        vm.startPrank(address(marketplace));
        escrow.create{value: amount}(9, renter, address(0), address(0), amount);
        uint256 fee = uint256(amount) * FEE_BPS / 10_000;
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.EscrowReleased(bytes32(uint256(9)), amount - fee, fee);
        vm.assertEq(escrow.release(9, host), amount - fee);
        vm.assertEq(host.balance, amount - fee);
        vm.assertEq(treasury.balance, fee);
        vm.assertEq(address(escrow).balance, 0);
    }

    function test_a_payee_that_refuses_eth_is_credited_and_blocks_nobody() public {
        address picky = address(new Picky());
        host = picky;
        register(picky);
        uint256 jobId = completed();
        uint256 net = PRICE - PRICE * FEE_BPS / 10_000;
        vm.warp(marketplace.getJob(jobId).releaseAt);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.PaymentCredited(picky, address(0), net);
        marketplace.releasePayment(jobId);
        vm.assertEq(treasury.balance, PRICE - net);
        vm.assertEq(escrow.credits(address(0), picky), net);

        vm.startPrank(picky);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.TransferFailed.selector, picky, net));
        escrow.withdraw(address(0), picky);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.CreditWithdrawn(picky, address(0), stranger, net);
        escrow.withdraw(address(0), stranger);
        vm.assertEq(stranger.balance, net);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.NoCredit.selector, picky, address(0)));
        escrow.withdraw(address(0), stranger);
    }

    function test_a_payee_the_token_refuses_is_credited_and_blocks_nobody() public {
        BlockingToken token = new BlockingToken(address(escrow));
        token.setBlocked(host, true);
        vm.startPrank(address(marketplace));
        escrow.create(9, renter, address(0), address(token), 10_000);
        escrow.release(9, host);
        vm.stopPrank();
        vm.assertEq(token.balanceOf(treasury), FEE_BPS);
        vm.assertEq(escrow.credits(address(token), host), 10_000 - FEE_BPS);
        token.setBlocked(host, false);
        vm.prank(host);
        escrow.withdraw(address(token), host);
        vm.assertEq(token.balanceOf(host), 10_000 - FEE_BPS);
    }

    function test_a_renter_that_refuses_eth_is_credited_the_refund() public {
        renter = address(new Picky());
        vm.deal(renter, PRICE);
        uint256 jobId = post();
        vm.prank(renter);
        marketplace.cancelJob(jobId);
        vm.assertEq(escrow.credits(address(0), renter), PRICE);
        Picky(payable(renter)).setWilling(true);
        vm.prank(renter);
        escrow.withdraw(address(0), renter);
        vm.assertEq(renter.balance, PRICE);
    }

    function test_the_owner_sets_the_fee_of_jobs_to_come_only() public {
        uint256 before = completed();
        vm.expectRevert(notOwner(stranger));
        vm.prank(stranger);
        escrow.setFee(0);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.FeeChanged(1000);
        vm.prank(owner);
        escrow.setFee(1000);
        uint256 later = completed();
        vm.assertEq(escrow.getEscrow(before).feeBps, FEE_BPS);
        vm.assertEq(escrow.getEscrow(later).feeBps, 1000);
        vm.prank(owner);
        escrow.setFee(0);
        release(before);
        vm.assertEq(treasury.balance, feeOf(PRICE));
        release(later);
        vm.assertEq(treasury.balance, feeOf(PRICE) + PRICE / 10);
        uint256 free = completed();
        release(free);
        vm.assertEq(treasury.balance, feeOf(PRICE) + PRICE / 10);
        vm.assertEq(host.balance, 3 * PRICE - feeOf(PRICE) - PRICE / 10);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.FeeTooHigh.selector, 1001, 1000));
        vm.prank(owner);
        escrow.setFee(1001);
    }

    function test_what_is_stored_of_a_job_s_money() public {
        vm.assertEq(
            abi.encode(escrow.getEscrow(1)),
            abi.encode(PaymentEscrow.Escrow(address(0), 0, address(0), PaymentEscrow.State.None, 0, false))
        );
        uint256 jobId = postUsd(5e6);
        vm.assertEq(
            abi.encode(escrow.getEscrow(jobId)),
            abi.encode(PaymentEscrow.Escrow(renter, 5e6, address(usd), PaymentEscrow.State.Held, FEE_BPS, false))
        );
    }

    function notHeld(uint256 jobId, PaymentEscrow.State state) private pure returns (bytes memory) {
        return abi.encodeWithSelector(PaymentEscrow.NotHeld.selector, jobId, state);
    }

    function test_only_money_that_is_held_is_disputed_or_moved() public {
        vm.startPrank(address(marketplace));
        vm.expectRevert(notHeld(9, PaymentEscrow.State.None));
        escrow.dispute(9, renter);
        vm.expectRevert(notHeld(9, PaymentEscrow.State.None));
        escrow.release(9, host);
        vm.expectRevert(notHeld(9, PaymentEscrow.State.None));
        escrow.refund(9);
        vm.stopPrank();
        uint256 jobId = post();
        vm.startPrank(address(marketplace));
        escrow.dispute(jobId, renter);
        vm.expectRevert(notHeld(jobId, PaymentEscrow.State.Disputed));
        escrow.dispute(jobId, renter);
        escrow.refund(jobId);
        vm.expectRevert(notHeld(jobId, PaymentEscrow.State.Refunded));
        escrow.dispute(jobId, renter);
        vm.expectRevert(notHeld(jobId, PaymentEscrow.State.Refunded));
        escrow.release(jobId, host);
    }

    function test_the_winner_of_a_dispute_is_on_the_log() public {
        uint256 won = post();
        uint256 lost = post();
        vm.startPrank(address(marketplace));
        escrow.dispute(won, renter);
        escrow.dispute(lost, renter);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.DisputeResolved(bytes32(won), host);
        escrow.release(won, host);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.DisputeResolved(bytes32(lost), renter);
        escrow.refund(lost);
        assertEscrow(won, PaymentEscrow.State.Released);
        assertEscrow(lost, PaymentEscrow.State.Refunded);
    }
}
