// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {
    Babbler,
    BlockingToken,
    FeeToken,
    GasBurner,
    HookToken,
    Manner,
    Picky,
    Reenterer,
    RudeToken
} from "./lib/Tokens.sol";
import {World} from "./lib/World.sol";

/// Tokens and accounts that mean harm, or are merely odd: none of them gets more than its own, or keeps anybody else from
/// theirs.
contract HostileTokensTest is World {
    uint256 private constant AMOUNT = 10_000;
    uint256 private constant NET = AMOUNT - 250;

    function allow(address token) private {
        vm.prank(owner);
        marketplace.allowToken(token, true);
    }

    function postToken(ERC20 token, uint256 amount) private returns (uint256 jobId) {
        token.transfer(renter, amount);
        vm.startPrank(renter);
        token.approve(address(marketplace), amount);
        jobId = marketplace.postJobWithToken(details(), requirements(), address(token), amount);
        vm.stopPrank();
    }

    function completedToken(ERC20 token, uint256 amount) private returns (uint256 jobId) {
        jobId = postToken(token, amount);
        claim(jobId);
        commit(jobId, 5);
        complete(jobId);
    }

    // Re-entering.

    /// Every call that moves money or changes a job's state, about `jobId`.
    function moneyCalls(uint256 jobId) private view returns (bytes[] memory calls) {
        string[] memory cids = new string[](1);
        cids[0] = CID;
        calls = new bytes[](17);
        calls[0] = abi.encodeCall(marketplace.releasePayment, (jobId));
        calls[1] = abi.encodeCall(marketplace.releasePayments, (single(jobId)));
        calls[2] = abi.encodeCall(marketplace.cancelJob, (jobId));
        calls[3] = abi.encodeCall(marketplace.expireJob, (jobId));
        calls[4] = abi.encodeCall(marketplace.failJob, (jobId, "no"));
        calls[5] = abi.encodeCall(marketplace.requestRefund, (jobId));
        calls[6] = abi.encodeCall(marketplace.agreeRefund, (jobId));
        calls[7] = abi.encodeCall(marketplace.disputeJob, (jobId, "evidence"));
        calls[8] = abi.encodeCall(marketplace.resolveDispute, (jobId, true));
        calls[9] = abi.encodeCall(marketplace.claimJob, (jobId));
        calls[10] = abi.encodeCall(marketplace.completeJob, (jobId, CID, ""));
        calls[11] = abi.encodeCall(marketplace.completeJobs, (single(jobId), cids, ""));
        calls[12] = abi.encodeCall(marketplace.postJobs, (new JobMarketplace.Posting[](0)));
        calls[13] = abi.encodeCall(marketplace.claimExactly, (jobId, "deal"));
        calls[14] = abi.encodeCall(marketplace.failExactly, (jobId, "deal", "no"));
        // These two are too long to be sent with the gas of a payment in ETH: they come with tokens only.
        calls[15] = abi.encodeCall(marketplace.postJob, (details(), requirements(), 0));
        calls[16] = abi.encodeCall(marketplace.postJobWithToken, (details(), requirements(), address(usd), 1));
    }

    uint256 private constant SHORT_CALLS = 15;

    /// That `who` called back just once and met the guard.
    function assertRefused(Reenterer who) private view {
        (uint64 calls, uint64 refusals, bytes4 answer) = who.note();
        vm.assertEq(calls, 1);
        vm.assertEq(refusals, 1);
        vm.assertEq(bytes32(answer), bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector));
    }

    function test_a_host_that_re_enters_on_its_payment_is_refused_and_paid_once() public {
        Reenterer attacker = new Reenterer();
        host = address(attacker);
        register(host);
        uint256 other = completed();
        for (uint256 i = 0; i < SHORT_CALLS; i++) {
            uint256 jobId = completed();
            attacker.arm(address(marketplace), moneyCalls(i % 2 == 0 ? jobId : other)[i]);
            uint256 before = host.balance;
            release(jobId);
            assertRefused(attacker);
            vm.assertEq(host.balance - before, PRICE - feeOf(PRICE));
        }
        vm.assertEq(address(escrow).balance, PRICE);
        assertStatus(other, JobMarketplace.JobStatus.Completed);
    }

    function test_a_host_that_re_enters_on_a_batch_of_payments_is_refused_and_paid_once_each() public {
        Reenterer attacker = new Reenterer();
        host = address(attacker);
        register(host);
        uint256[] memory jobIds = new uint256[](3);
        for (uint256 i = 0; i < 3; i++) {
            jobIds[i] = completed();
        }
        attacker.arm(address(marketplace), moneyCalls(jobIds[2])[0]);
        vm.warp(block.timestamp + WINDOW);
        vm.assertEq(marketplace.releasePayments(jobIds), 3);
        (uint64 calls, uint64 refusals,) = attacker.note();
        vm.assertEq(calls, 3);
        vm.assertEq(refusals, 3);
        vm.assertEq(host.balance, 3 * (PRICE - feeOf(PRICE)));
        vm.assertEq(address(escrow).balance, 0);
    }

    /// The ways in which a renter gets its money back.
    function refund(uint256 way) private returns (uint256 jobId) {
        if (way == 0) {
            jobId = post();
            vm.prank(renter);
            marketplace.cancelJob(jobId);
        } else if (way == 1) {
            jobId = post();
            vm.warp(marketplace.getJob(jobId).deadline);
            marketplace.expireJob(jobId);
        } else if (way == 2) {
            jobId = postReserved(host);
            claim(jobId);
            vm.prank(host);
            marketplace.failJob(jobId, "no");
        } else if (way == 3) {
            jobId = committed();
            vm.prank(renter);
            marketplace.requestRefund(jobId);
            vm.prank(host);
            marketplace.agreeRefund(jobId);
        } else {
            jobId = completed();
            dispute(jobId);
            resolve(jobId, true);
        }
    }

    function test_a_renter_that_re_enters_on_its_refund_is_refused_and_refunded_once() public {
        Reenterer attacker = new Reenterer();
        renter = address(attacker);
        vm.deal(renter, 10 ether);
        uint256 other = post(); // there is something else to steal
        for (uint256 way = 0; way < 5; way++) {
            for (uint256 i = 0; i < SHORT_CALLS; i++) {
                attacker.arm(address(marketplace), moneyCalls(i % 2 == 0 ? marketplace.jobCount() + 1 : other)[i]);
                uint256 jobId = refund(way);
                assertRefused(attacker);
                assertStatus(jobId, JobMarketplace.JobStatus.Refunded);
                vm.assertEq(renter.balance, 9 ether);
            }
        }
        vm.assertEq(address(escrow).balance, PRICE);
        vm.assertEq(marketplace.breaker().missed, 0);
    }

    function test_a_payee_that_re_enters_on_a_withdrawal_gets_its_credit_once() public {
        Reenterer attacker = new Reenterer();
        address payee = address(attacker);
        uint256 other = post();
        // A job whose payment the escrow could not deliver: the tokens come late.
        vm.startPrank(address(marketplace));
        escrow.create(99, payee, address(0), address(usd), uint96(AMOUNT));
        escrow.refund(99);
        vm.stopPrank();
        vm.assertEq(escrow.credits(address(usd), payee), AMOUNT);
        usd.transfer(address(escrow), 2 * AMOUNT);
        vm.startPrank(payee);
        escrow.withdraw(address(usd), payee);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.NoCredit.selector, payee, address(usd)));
        escrow.withdraw(address(usd), payee);
        vm.stopPrank();
        vm.assertEq(usd.balanceOf(payee), AMOUNT);
        assertEscrow(other, PaymentEscrow.State.Held);
    }

    function test_an_eth_credit_is_withdrawn_once_whoever_re_enters() public {
        Picky picky = new Picky();
        renter = address(picky);
        vm.deal(renter, 2 ether);
        uint256 jobId = post();
        vm.prank(renter);
        marketplace.cancelJob(jobId);
        vm.assertEq(escrow.credits(address(0), renter), PRICE);
        address victim = address(0xE9);
        vm.deal(victim, PRICE);
        vm.prank(victim);
        marketplace.postJob{value: PRICE}(details(), requirements(), PRICE);

        // The credit goes to an account that withdraws again when it is paid, and has a job cancelled.
        Reenterer accomplice = new Reenterer();
        accomplice.arm(address(escrow), abi.encodeCall(escrow.withdraw, (address(0), address(accomplice))));
        vm.prank(renter);
        escrow.withdraw(address(0), address(accomplice));
        (uint64 calls, uint64 refusals, bytes4 answer) = accomplice.note();
        vm.assertEq(calls, 1);
        vm.assertEq(refusals, 1);
        vm.assertEq(bytes32(answer), bytes32(PaymentEscrow.NoCredit.selector));
        vm.assertEq(address(accomplice).balance, PRICE);
        vm.assertEq(address(escrow).balance, PRICE);
    }

    function test_a_token_with_hooks_lets_nobody_in_on_the_way_in_or_out() public {
        HookToken token = new HookToken(address(this));
        allow(address(token));
        Reenterer attacker = new Reenterer();
        renter = address(attacker);
        vm.deal(renter, PRICE);
        uint256 other = post();
        for (uint256 i = 0; i < 17; i++) {
            token.transfer(renter, AMOUNT);
            vm.startPrank(renter);
            token.approve(address(marketplace), AMOUNT);
            attacker.arm(address(marketplace), moneyCalls(other)[i]);
            uint256 jobId = marketplace.postJobWithToken(details(), requirements(), address(token), AMOUNT);
            assertRefused(attacker);
            vm.assertEq(token.balanceOf(address(escrow)), AMOUNT);
            attacker.arm(address(marketplace), moneyCalls(jobId)[i]);
            marketplace.cancelJob(jobId);
            assertRefused(attacker);
            vm.stopPrank();
            vm.assertEq(token.balanceOf(renter), (i + 1) * AMOUNT);
            vm.assertEq(token.balanceOf(address(escrow)), 0);
        }
        assertStatus(other, JobMarketplace.JobStatus.Posted);
    }

    function test_a_host_that_re_enters_from_a_token_s_hook_is_refused_and_paid_once() public {
        HookToken token = new HookToken(address(this));
        allow(address(token));
        Reenterer attacker = new Reenterer();
        host = address(attacker);
        register(host);
        for (uint256 i = 0; i < 17; i++) {
            uint256 jobId = completedToken(token, AMOUNT);
            uint256 before = token.balanceOf(host);
            attacker.arm(address(marketplace), moneyCalls(jobId)[i]);
            release(jobId);
            assertRefused(attacker);
            vm.assertEq(token.balanceOf(host) - before, NET);
            vm.assertEq(token.balanceOf(address(escrow)), 0);
        }
    }

    function test_a_hook_cannot_make_up_for_a_payment_with_the_escrows_own_tokens() public {
        HookToken token = new HookToken(address(this));
        allow(address(token));
        Reenterer attacker = new Reenterer();
        renter = address(attacker);
        // The attacker has a credit in the token that it could withdraw to the escrow while it pays.
        vm.startPrank(address(marketplace));
        escrow.create(99, renter, address(0), address(token), uint96(AMOUNT));
        escrow.refund(99);
        vm.stopPrank();
        token.transfer(address(escrow), AMOUNT);
        token.transfer(renter, AMOUNT);
        attacker.arm(address(escrow), abi.encodeCall(escrow.withdraw, (address(token), stranger)));
        vm.startPrank(renter);
        token.approve(address(marketplace), AMOUNT);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, AMOUNT, 0));
        marketplace.postJobWithToken(details(), requirements(), address(token), AMOUNT);
        vm.stopPrank();
        vm.assertEq(token.balanceOf(address(escrow)), AMOUNT);
        vm.assertEq(token.balanceOf(stranger), 0);
    }

    // Odd tokens.

    function test_a_token_that_takes_a_fee_is_refused_on_the_way_in() public {
        FeeToken token = new FeeToken(renter);
        allow(address(token));
        vm.startPrank(renter);
        token.approve(address(marketplace), AMOUNT);
        bytes memory refusal = abi.encodeWithSelector(JobMarketplace.PaymentMismatch.selector, AMOUNT, 9900);
        vm.expectRevert(refusal);
        marketplace.postJobWithToken(details(), requirements(), address(token), AMOUNT);
        vm.expectRevert(refusal);
        marketplace.postJobs(posting(address(token), AMOUNT, address(0)));
        vm.assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_a_token_that_returns_nothing_pays() public {
        RudeToken token = new RudeToken(address(this));
        allow(address(token));
        uint256 jobId = completedToken(token, AMOUNT);
        token.setManner(Manner.Silent);
        release(jobId);
        assertPaid(token);
    }

    function test_a_token_that_returns_more_than_it_should_is_paid_in_or_credited_at_no_great_cost() public {
        RudeToken token = new RudeToken(address(this));
        allow(address(token));
        uint256 jobId = completedToken(token, AMOUNT);
        token.setManner(Manner.AnswersAtLength);
        release(jobId);
        assertPaid(token);
    }

    function assertPaid(RudeToken token) private view {
        vm.assertEq(token.balanceOf(host), NET);
        vm.assertEq(token.balanceOf(treasury), AMOUNT - NET);
        vm.assertEq(token.balanceOf(address(escrow)), 0);
        vm.assertEq(escrow.credits(address(token), host), 0);
    }

    function test_a_token_that_does_not_pay_is_credited_and_withdrawn_when_it_does() public {
        Manner[3] memory manners = [Manner.SaysNo, Manner.Reverts, Manner.RevertsAtLength];
        for (uint256 i = 0; i < manners.length; i++) {
            RudeToken token = new RudeToken(address(this));
            allow(address(token));
            uint256 jobId = completedToken(token, AMOUNT);
            token.setManner(manners[i]);
            vm.warp(marketplace.getJob(jobId).releaseAt);
            vm.expectEmit(address(escrow));
            emit PaymentEscrow.PaymentCredited(host, address(token), NET);
            vm.expectEmit(address(escrow));
            emit PaymentEscrow.PaymentCredited(treasury, address(token), AMOUNT - NET);
            marketplace.releasePayment(jobId);
            assertStatus(jobId, JobMarketplace.JobStatus.Released);
            vm.startPrank(host);
            vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.TransferFailed.selector, host, NET));
            escrow.withdraw(address(token), host);
            token.setManner(Manner.Normal);
            escrow.withdraw(address(token), host);
            vm.stopPrank();
            vm.prank(treasury);
            escrow.withdraw(address(token), treasury);
            assertPaid(token);
        }
    }

    function test_a_token_that_burns_all_gas_holds_up_nobody() public {
        RudeToken token = new RudeToken(address(this));
        allow(address(token));
        uint256 completed_ = completedToken(token, AMOUNT);
        uint256 posted = postToken(token, AMOUNT);
        uint256 due = marketplace.getJob(completed_).releaseAt;
        token.setManner(Manner.BurnsGas);
        vm.prank(renter);
        marketplace.cancelJob{gas: 1_000_000}(posted);
        vm.assertEq(escrow.credits(address(token), renter), AMOUNT);
        vm.warp(due);
        marketplace.releasePayment{gas: 1_500_000}(completed_);
        vm.assertEq(escrow.credits(address(token), host), NET);
        vm.assertEq(escrow.credits(address(token), treasury), AMOUNT - NET);
        vm.assertEq(registry.getNode(host).openJobs, 0);
        token.setManner(Manner.Normal);
        vm.prank(host);
        escrow.withdraw(address(token), host);
        vm.assertEq(token.balanceOf(host), NET);
    }

    function test_a_token_that_does_not_let_itself_be_taken_posts_no_job() public {
        RudeToken token = new RudeToken(address(this));
        allow(address(token));
        vm.prank(renter);
        vm.expectPartialRevert(bytes4(keccak256("ERC20InsufficientAllowance(address,uint256,uint256)")));
        marketplace.postJobWithToken(details(), requirements(), address(token), AMOUNT);
        SaysNoToken no = new SaysNoToken();
        allow(address(no));
        vm.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(no)));
        vm.prank(renter);
        marketplace.postJobWithToken(details(), requirements(), address(no), AMOUNT);
        vm.assertEq(marketplace.jobCount(), 0);
    }

    function test_whom_a_token_blocks_is_credited_and_withdraws_to_another_account() public {
        BlockingToken token = new BlockingToken(address(this));
        allow(address(token));
        uint256 first = completedToken(token, AMOUNT);
        uint256 second = postToken(token, AMOUNT);
        token.setBlocked(host, true);
        token.setBlocked(renter, true);
        token.setBlocked(treasury, true);
        release(first);
        marketplace.expireJob(second);
        vm.assertEq(escrow.credits(address(token), host), NET);
        vm.assertEq(escrow.credits(address(token), treasury), AMOUNT - NET);
        vm.assertEq(escrow.credits(address(token), renter), AMOUNT);
        vm.prank(host);
        escrow.withdraw(address(token), address(0xE1));
        vm.prank(renter);
        escrow.withdraw(address(token), address(0xE2));
        vm.prank(treasury);
        escrow.withdraw(address(token), address(0xE3));
        vm.assertEq(token.balanceOf(address(0xE1)), NET);
        vm.assertEq(token.balanceOf(address(0xE2)), AMOUNT);
        vm.assertEq(token.balanceOf(address(0xE3)), AMOUNT - NET);
        vm.assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_a_token_that_vanishes_leaves_credits_and_blocks_no_job() public {
        RudeToken token = new RudeToken(address(this));
        allow(address(token));
        uint256 jobId = completedToken(token, AMOUNT);
        vm.etch(address(token), "");
        release(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Released);
        vm.assertEq(escrow.credits(address(token), host), NET);
        vm.expectRevert(abi.encodeWithSelector(PaymentEscrow.TransferFailed.selector, host, NET));
        vm.prank(host);
        escrow.withdraw(address(token), host);
    }

    // Odd payees.

    /// Pays a job of `payee` in a batch with one of the rival's, and says what that cost.
    function paidBeside(address payee) private returns (uint256 gas) {
        uint256[] memory jobIds = new uint256[](2);
        host = payee;
        register(payee);
        jobIds[0] = completed();
        host = rival;
        jobIds[1] = completed();
        vm.warp(marketplace.getJob(jobIds[1]).releaseAt);
        (uint256 rivals, uint256 treasurys) = (rival.balance, treasury.balance);
        gas = gasleft();
        vm.assertEq(marketplace.releasePayments(jobIds), 2);
        gas -= gasleft();
        vm.assertEq(rival.balance - rivals, PRICE - feeOf(PRICE));
        vm.assertEq(treasury.balance - treasurys, 2 * feeOf(PRICE));
    }

    function assertCredited(address payee) private {
        uint256 net = PRICE - feeOf(PRICE);
        vm.assertEq(payee.balance, 0);
        vm.assertEq(escrow.credits(address(0), payee), net);
        vm.assertEq(address(escrow).balance, net);
        vm.prank(payee);
        escrow.withdraw(address(0), stranger);
        vm.assertEq(stranger.balance, net);
    }

    function test_a_payee_that_reverts_blocks_nobody() public {
        address payee = address(new Picky());
        paidBeside(payee);
        assertCredited(payee);
    }

    function test_a_payee_that_burns_all_gas_blocks_nobody_and_costs_little() public {
        address payee = address(new GasBurner());
        vm.assertTrue(paidBeside(payee) < 500_000);
        assertCredited(payee);
    }

    function test_a_payee_that_answers_with_a_flood_is_paid_and_its_answer_not_copied() public {
        address payee = address(new Babbler());
        Picky plain = new Picky();
        plain.setWilling(true);
        paidBeside(address(new Babbler())); // so that the two that are compared find the same things warm
        uint256 gas = paidBeside(address(plain));
        // What the payee did with its own gas and no more: copying the answer would cost as much again.
        vm.assertTrue(paidBeside(payee) < gas + 55_000);
        vm.assertEq(payee.balance, PRICE - feeOf(PRICE));
        vm.assertEq(address(escrow).balance, 0);
    }

    function test_a_treasury_that_reverts_or_burns_all_gas_blocks_nobody() public {
        address[2] memory code = [address(new Picky()), address(new GasBurner())];
        for (uint256 i = 0; i < 2; i++) {
            vm.etch(treasury, code[i].code);
            uint256 before = host.balance;
            release(completed());
            vm.assertEq(host.balance - before, PRICE - feeOf(PRICE));
            vm.assertEq(escrow.credits(address(0), treasury), (i + 1) * feeOf(PRICE));
        }
    }

    function test_a_renter_that_burns_all_gas_cannot_keep_its_host_claimed_or_unpunished() public {
        renter = address(new GasBurner());
        vm.deal(renter, PRICE);
        uint256 jobId = committed();
        vm.warp(marketplace.getJob(jobId).deadline);
        marketplace.expireJob{gas: 500_000}(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Refunded);
        vm.assertEq(escrow.credits(address(0), renter), PRICE);
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }

    /// Whoever pays out cannot, by sending too little gas, have a payee credited that would have taken the money.
    function testFuzz_too_little_gas_credits_nobody(uint256 gas) public {
        address payee = address(new Saver());
        host = payee;
        register(payee);
        uint256 jobId = completed();
        vm.warp(marketplace.getJob(jobId).releaseAt);
        gas = bound(gas, 30_000, 400_000);
        try marketplace.releasePayment{gas: gas}(jobId) {
            vm.assertEq(payee.balance, PRICE - feeOf(PRICE));
        } catch {
            assertStatus(jobId, JobMarketplace.JobStatus.Completed);
        }
        vm.assertEq(escrow.credits(address(0), payee), 0);
    }
}

/// An account that notes what it was paid, as smart accounts do: within the gas a payment comes with.
contract Saver {
    uint256 public total;

    receive() external payable {
        total += msg.value;
    }
}

/// A token that refuses to be taken without reverting.
contract SaysNoToken {
    function balanceOf(address) external pure returns (uint256) {
        return 0;
    }

    function transferFrom(address, address, uint256) external pure returns (bool) {
        return false;
    }
}
