// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {Fuzz} from "../lib/Fuzz.sol";
import {Picky} from "../lib/Tokens.sol";

contract PaymentEscrowFuzz is Fuzz {
    uint256 private constant JOB = 9;

    /// The marketplace, or an ordinary account.
    function caller(address seed, bool byMarketplace) private view returns (address) {
        return byMarketplace ? address(marketplace) : account(seed);
    }

    /// An escrow of `amount` wei in the given state.
    function inState(uint8 seed, uint96 amount) private returns (PaymentEscrow.State state) {
        state = PaymentEscrow.State(seed % 5);
        if (state == PaymentEscrow.State.None) return state;
        vm.deal(address(marketplace), amount);
        vm.startPrank(address(marketplace));
        escrow.create{value: amount}(JOB, renter, address(0), address(0), amount);
        if (state == PaymentEscrow.State.Released) escrow.release(JOB, host);
        if (state == PaymentEscrow.State.Refunded) escrow.refund(JOB);
        if (state == PaymentEscrow.State.Disputed) escrow.dispute(JOB, renter);
        vm.stopPrank();
    }

    function holds(PaymentEscrow.State state) private pure returns (bool) {
        return state == PaymentEscrow.State.Held || state == PaymentEscrow.State.Disputed;
    }

    function testFuzz_create_is_the_marketplaces_and_books_exactly_the_eth_that_came(
        address who,
        bool byMarketplace,
        uint96 amount,
        uint96 sent,
        bool exact,
        bool inEth,
        bool taken
    ) public {
        if (taken) inState(1, 1);
        who = caller(who, byMarketplace);
        uint256 due = inEth ? amount : 0;
        if (exact) sent = uint96(due);
        vm.deal(who, sent);
        bool fits = byMarketplace && sent == due && !taken;
        uint256 before = address(escrow).balance;
        bytes memory data =
            abi.encodeCall(escrow.create, (JOB, renter, host, inEth ? address(0) : address(usd), amount));
        same(tries(who, address(escrow), sent, data), fits);
        vm.assertEq(address(escrow).balance - before, fits ? sent : 0);
        if (!taken) vm.assertEq(escrow.getEscrow(JOB).amount, fits ? amount : 0);
    }

    function testFuzz_release_is_the_marketplaces_and_pays_every_wei_once(
        address who,
        bool byMarketplace,
        uint8 state,
        uint96 amount,
        uint16 feeBps
    ) public {
        vm.prank(owner);
        escrow.setFee(uint16(bound(feeBps, 0, 1000)));
        amount = uint96(bound(amount, 1, type(uint96).max));
        PaymentEscrow.State from = inState(state, amount);
        (uint256 hosts, uint256 treasurys) = (host.balance, treasury.balance);
        bool fits = byMarketplace && holds(from);
        bytes memory data = abi.encodeCall(escrow.release, (JOB, host));
        same(tries(caller(who, byMarketplace), address(escrow), data), fits);
        uint256 fee = uint256(amount) * escrow.feeBps() / 10_000;
        vm.assertEq(host.balance - hosts, fits ? amount - fee : 0);
        vm.assertEq(treasury.balance - treasurys, fits ? fee : 0);
        if (!fits) return;
        vm.assertEq(address(escrow).balance, 0);
        same(tries(address(marketplace), address(escrow), data), false);
        same(tries(address(marketplace), address(escrow), abi.encodeCall(escrow.refund, (JOB))), false);
    }

    function testFuzz_refund_is_the_marketplaces_and_pays_every_wei_once(
        address who,
        bool byMarketplace,
        uint8 state,
        uint96 amount
    ) public {
        amount = uint96(bound(amount, 1, type(uint96).max / 2));
        PaymentEscrow.State from = inState(state, amount);
        uint256 before = renter.balance;
        bool fits = byMarketplace && holds(from);
        bytes memory data = abi.encodeCall(escrow.refund, (JOB));
        same(tries(caller(who, byMarketplace), address(escrow), data), fits);
        vm.assertEq(renter.balance - before, fits ? amount : 0);
        if (!fits) return;
        vm.assertEq(address(escrow).balance, 0);
        same(tries(address(marketplace), address(escrow), data), false);
        same(tries(address(marketplace), address(escrow), abi.encodeCall(escrow.release, (JOB, host))), false);
    }

    function testFuzz_dispute_is_the_marketplaces_and_moves_nothing(
        address who,
        bool byMarketplace,
        uint8 state,
        uint96 amount
    ) public {
        amount = uint96(bound(amount, 1, type(uint96).max));
        PaymentEscrow.State from = inState(state, amount);
        uint256 before = address(escrow).balance;
        bool fits = byMarketplace && from == PaymentEscrow.State.Held;
        bytes memory data = abi.encodeCall(escrow.dispute, (JOB, renter));
        same(tries(caller(who, byMarketplace), address(escrow), data), fits);
        vm.assertEq(address(escrow).balance, before);
        assertEscrow(JOB, fits ? PaymentEscrow.State.Disputed : from);
    }

    function testFuzz_requestRefund_is_the_marketplaces_and_moves_nothing(
        address who,
        bool byMarketplace,
        uint96 amount
    ) public {
        inState(1, amount);
        bytes memory data = abi.encodeCall(escrow.requestRefund, (JOB));
        same(tries(caller(who, byMarketplace), address(escrow), data), byMarketplace);
        same(escrow.getEscrow(JOB).refundRequested, byMarketplace);
        vm.assertEq(address(escrow).balance, amount);
    }

    function testFuzz_withdraw_sends_the_callers_own_credit_once(
        address who,
        bool byPayee,
        address to,
        uint96 amount,
        bool inUsd
    ) public {
        (who, to) = (account(who), account(to));
        vm.assume(to.balance == 0 && to != address(escrow) && to != treasury);
        amount = uint96(bound(amount, 1, 1e12));
        address token = inUsd ? address(usd) : address(0);
        address payee = inUsd ? who : address(new Picky());
        if (inUsd) credit(payee, amount);
        else refuse(payee, amount);
        who = byPayee ? payee : account(address(uint160(who) ^ 1));
        bytes memory data = abi.encodeCall(escrow.withdraw, (token, to));
        same(tries(who, address(escrow), data), byPayee);
        vm.assertEq(inUsd ? usd.balanceOf(to) : to.balance, byPayee ? amount : 0);
        vm.assertEq(escrow.credits(token, payee), byPayee ? 0 : amount);
        same(tries(who, address(escrow), data), false);
    }

    /// Has the escrow credit `payee`, which takes no ETH.
    function refuse(address payee, uint96 amount) private {
        vm.deal(address(marketplace), amount);
        vm.startPrank(address(marketplace));
        escrow.create{value: amount}(JOB, payee, address(0), address(0), amount);
        escrow.refund(JOB);
        vm.stopPrank();
    }

    /// Has the escrow credit `payee`, because the tokens arrive too late.
    function credit(address payee, uint96 amount) private {
        vm.startPrank(address(marketplace));
        escrow.create(JOB, payee, address(0), address(usd), amount);
        escrow.refund(JOB);
        vm.stopPrank();
        usd.transfer(address(escrow), amount);
    }

    function testFuzz_setFee_is_the_owners_and_bounded(address who, bool byOwner, uint16 feeBps) public {
        who = oneOr(owner, who, byOwner);
        feeBps = uint16(bound(feeBps, 0, 2000));
        bool fits = byOwner && feeBps <= 1000;
        same(tries(who, address(escrow), abi.encodeCall(escrow.setFee, (feeBps))), fits);
        vm.assertEq(escrow.feeBps(), fits ? feeBps : FEE_BPS);
    }

    function testFuzz_transferOwnership_is_the_owners(address who, bool byOwner, address next) public {
        who = oneOr(owner, who, byOwner);
        next = account(next);
        same(tries(who, address(escrow), abi.encodeCall(escrow.transferOwnership, (next))), byOwner);
        vm.assertEq(escrow.owner(), byOwner ? next : owner);
    }

    function testFuzz_renounceOwnership_is_the_owners(address who, bool byOwner) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(escrow), abi.encodeCall(escrow.renounceOwnership, ())), byOwner);
        vm.assertEq(escrow.owner(), byOwner ? address(0) : owner);
    }
}
