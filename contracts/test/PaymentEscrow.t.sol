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
        escrow.create(jobId, renter, address(0), 0);
        vm.expectRevert(refusal);
        escrow.release(jobId, owner);
        vm.expectRevert(refusal);
        escrow.refund(jobId);
    }

    function test_the_fee_has_a_bound_and_a_treasury() public {
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.FeeTooHigh.selector, 1001, 1000));
        new PaymentEscrow(address(marketplace), treasury, 1001);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.NoTreasury.selector));
        new PaymentEscrow(address(marketplace), address(0), 0);
    }

    function test_the_eth_sent_is_the_eth_booked() public {
        vm.deal(address(marketplace), 1 ether);
        vm.startPrank(address(marketplace));
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.AmountMismatch.selector, 9, 2, 1));
        escrow.create{value: 1}(9, renter, address(0), 2);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.AmountMismatch.selector, 9, 0, 1));
        escrow.create{value: 1}(9, renter, address(usd), 1);
    }

    function test_one_escrow_per_job() public {
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.AlreadyHeld.selector, jobId));
        vm.prank(address(marketplace));
        escrow.create(jobId, renter, address(0), 0);
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
        escrow.create{value: amount}(9, renter, address(0), amount);
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
        escrow.create(9, renter, address(token), 10_000);
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
}
