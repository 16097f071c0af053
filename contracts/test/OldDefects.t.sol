// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IGovernor} from "@openzeppelin/contracts/governance/IGovernor.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {CircuitBreaker} from "../src/CircuitBreaker.sol";
import {Governance} from "../src/Governance.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {TestVerifier} from "./lib/TestVerifier.sol";
import {World} from "./lib/World.sol";

/// The defects of the marketplaces that came before, each by its name: that it cannot happen here is shown by trying it.
contract OldDefectsTest is World {
    uint256 private constant STAKE = 1000e18;

    /// Calls as `who` and says whether that worked.
    function tries(address who, address to, bytes memory data) private returns (bool ok) {
        vm.prank(who);
        (ok,) = to.call(data);
    }

    function refuses(address who, address to, bytes memory data) private {
        vm.assertFalse(tries(who, to, data));
    }

    /// There completing paid the host, and so did releasing.
    function test_paid_twice() public {
        uint256 jobId = completed();
        vm.assertEq(host.balance, 0);
        release(jobId);
        uint256 net = PRICE - feeOf(PRICE);
        vm.assertEq(host.balance, net);
        refuses(host, address(marketplace), abi.encodeCall(marketplace.releasePayment, (jobId)));
        refuses(host, address(marketplace), abi.encodeCall(marketplace.releasePayments, (single(jobId))));
        refuses(host, address(marketplace), abi.encodeCall(marketplace.completeJob, (jobId, CID, "")));
        refuses(host, address(marketplace), abi.encodeCall(marketplace.agreeRefund, (jobId)));
        refuses(renter, address(marketplace), abi.encodeCall(marketplace.expireJob, (jobId)));
        refuses(renter, address(marketplace), abi.encodeCall(marketplace.cancelJob, (jobId)));
        refuses(renter, address(marketplace), abi.encodeCall(marketplace.disputeJob, (jobId, "evidence")));
        refuses(arbiter, address(marketplace), abi.encodeCall(marketplace.resolveDispute, (jobId, true)));
        refuses(host, address(escrow), abi.encodeCall(escrow.withdraw, (address(0), host)));
        vm.assertEq(host.balance, net);
        vm.assertEq(host.balance + treasury.balance, PRICE);
        vm.assertEq(renter.balance, 100 ether - PRICE);
    }

    /// There the host of a token job was sent the same number of wei, out of other people's ETH.
    function test_token_job_paid_in_wei() public {
        post(); // somebody else's ETH is in the escrow
        uint256 jobId = postUsd(5e6);
        claim(jobId);
        commit(jobId, 5);
        complete(jobId);
        release(jobId);
        vm.assertEq(usd.balanceOf(host), 5e6 - feeOf(5e6));
        vm.assertEq(usd.balanceOf(treasury), feeOf(5e6));
        vm.assertEq(host.balance, 0);
        vm.assertEq(treasury.balance, 0);
        vm.assertEq(address(escrow).balance, PRICE);
    }

    /// There nothing led out of a token job that no host took.
    function test_usdc_stuck_for_ever_when_unclaimed() public {
        uint256 expired = postUsd(5e6);
        uint256 cancelled = postUsd(7e6);
        vm.prank(renter);
        marketplace.cancelJob(cancelled);
        vm.assertEq(usd.balanceOf(renter), 7e6);
        vm.warp(marketplace.getJob(expired).deadline);
        vm.prank(stranger);
        marketplace.expireJob(expired);
        vm.assertEq(usd.balanceOf(renter), 12e6);
        vm.assertEq(usd.balanceOf(address(escrow)), 0);
    }

    /// There no job had an escrow, and whatever asked for one reverted.
    function test_escrow_never_created_so_refunds_and_disputes_unreachable() public {
        uint256 jobId = post();
        assertEscrow(jobId, PaymentEscrow.State.Held);
        vm.assertEq(escrow.getEscrow(jobId).amount, PRICE);
        claim(jobId);
        vm.prank(renter);
        marketplace.requestRefund(jobId);
        vm.prank(host);
        marketplace.agreeRefund(jobId);
        vm.assertEq(renter.balance, 100 ether);

        jobId = completed();
        dispute(jobId);
        assertEscrow(jobId, PaymentEscrow.State.Disputed);
        resolve(jobId, true);
        vm.assertEq(renter.balance, 100 ether);
    }

    /// There a claim named the host, and nobody asked the host.
    function test_anyone_may_claim_for_anyone() public {
        uint256 jobId = post();
        // No function of the marketplace takes the name of another host.
        refuses(stranger, address(marketplace), abi.encodeWithSignature("claimJob(uint256,address)", jobId, host));
        refuses(stranger, address(marketplace), abi.encodeCall(marketplace.claimJob, (jobId)));
        refuses(stranger, address(registry), abi.encodeCall(registry.jobOpened, (host)));
        vm.assertEq(registry.getNode(host).openJobs, 0);
        claim(jobId);
        vm.assertEq(marketplace.getJob(jobId).host, host);
    }

    /// There the addresses that the contracts trust were set by whoever called first. Here they are fixed when deployed.
    function test_setters_that_the_first_caller_wins() public {
        address[5] memory contracts = all();
        string[8] memory setters = [
            "setMarketplace(address)",
            "setJobMarketplace(address)",
            "setReputationSystem(address)",
            "setNodeRegistry(address)",
            "setProofSystem(address)",
            "setEscrow(address)",
            "setPaymentEscrow(address)",
            "initialize(address)"
        ];
        for (uint256 i = 0; i < contracts.length; i++) {
            for (uint256 j = 0; j < setters.length; j++) {
                refuses(stranger, contracts[i], abi.encodeWithSignature(setters[j], stranger));
                refuses(owner, contracts[i], abi.encodeWithSignature(setters[j], stranger));
            }
            refuses(stranger, contracts[i], abi.encodeWithSignature("transferOwnership(address)", stranger));
        }
        refuses(stranger, address(marketplace), abi.encodeCall(marketplace.setArbiter, (stranger)));
        refuses(stranger, address(marketplace), abi.encodeCall(marketplace.setGuardian, (stranger, true)));
        vm.assertEq(registry.marketplace(), address(marketplace));
        vm.assertEq(escrow.marketplace(), address(marketplace));
        vm.assertEq(address(proofSystem.marketplace()), address(marketplace));
        vm.assertEq(address(reputation.marketplace()), address(marketplace));
        vm.assertEq(address(marketplace.registry()), address(registry));
        vm.assertEq(address(marketplace.escrow()), address(escrow));
        vm.assertEq(address(marketplace.proofSystem()), address(proofSystem));
        vm.assertEq(address(marketplace.reputation()), address(reputation));
    }

    function all() private view returns (address[5] memory) {
        return [address(marketplace), address(registry), address(escrow), address(proofSystem), address(reputation)];
    }

    function test_unregister_always_reverts_or_blocks_reregistering() public {
        for (uint256 round = 0; round < 3; round++) {
            unbond(host);
            vm.startPrank(host);
            registry.unregisterNode();
            vm.assertEq(fab.balanceOf(host), STAKE);
            vm.assertFalse(registry.isActive(host));
            fab.approve(address(registry), STAKE);
            registry.registerNode("{}");
            vm.stopPrank();
            vm.assertTrue(registry.isActive(host));
        }
        release(completed());
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
    }

    /// Everything that the owner may do, done by the owner as greedily as it can, while there is FAB at stake and in a
    /// bond, and ETH and USD in jobs.
    function test_owner_can_withdraw_every_stake() public {
        uint256 ethJob = completed();
        uint256 usdJob = postUsd(5e6);
        claimAs(rival, usdJob);
        challenge(stranger, ethJob);
        bytes[] memory calls = ownersCalls();
        for (uint256 i = 0; i < calls.length; i++) {
            for (uint256 j = 0; j < 5; j++) {
                tries(owner, all()[j], calls[i]);
            }
        }
        // Each was understood somewhere: the effects of all of them are there.
        vm.assertEq(marketplace.arbiter(), owner);
        vm.assertEq(marketplace.successor(), address(fab));
        vm.assertEq(marketplace.missesForLevel1(), 1);
        vm.assertTrue(marketplace.isGuardian(owner));
        vm.assertTrue(marketplace.tokenAllowed(address(fab)));
        vm.assertEq(escrow.feeBps(), 1000);
        vm.assertEq(proofSystem.challengeBond(), 0);
        vm.assertEq(reputation.scoreOf(host), 0);
        vm.assertEq(reputation.incentiveThreshold(), 1000);
        vm.assertEq(registry.registrationsPerWindow(), 7);
        vm.assertEq(registry.getNode(host).stake, 10e18); // what its job has at risk
        vm.assertTrue(address(registry.successor()) != address(0));
        vm.assertFalse(proofSystem.circuitOf(CIRCUIT).active);

        // Nor as the arbiter, into whose hands the dispute is given.
        vm.startPrank(owner);
        marketplace.resolveDispute(ethJob, false);
        vm.expectRevert(wrongStatus(usdJob, JobMarketplace.JobStatus.Claimed, JobMarketplace.JobStatus.Disputed));
        marketplace.resolveDispute(usdJob, true);
        vm.stopPrank();
        vm.warp(marketplace.getJob(usdJob).deadline);
        vm.prank(owner);
        marketplace.expireJob(usdJob);

        vm.assertEq(fab.balanceOf(owner), 0);
        vm.assertEq(usd.balanceOf(owner), 0);
        vm.assertEq(owner.balance, 0);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
        vm.assertEq(usd.balanceOf(renter), 5e6);
        // The hosts' FAB is with them or, slashed, in the treasury, which the owner cannot choose.
        vm.assertEq(fab.balanceOf(treasury) + fab.balanceOf(address(registry)), 2 * STAKE + 50e18);
        vm.assertEq(fab.balanceOf(host), 50e18);
    }

    /// A call of every function that is the owner's, and of those that the owner of the old contracts took the stakes with.
    function ownersCalls() private returns (bytes[] memory calls) {
        NodeRegistry next = new NodeRegistry(owner, fab, address(marketplace), treasury, registry);
        ProofSystem.Circuit memory off = circuit();
        off.active = false;
        calls = new bytes[](26);
        calls[0] = abi.encodeCall(marketplace.setArbiter, (owner));
        calls[1] = abi.encodeCall(marketplace.allowToken, (address(fab), true));
        calls[2] = abi.encodeCall(marketplace.setGuardian, (owner, true));
        calls[3] = abi.encodeCall(marketplace.setBreakerThresholds, (1, 1));
        calls[4] = abi.encodeCall(marketplace.unpause, ());
        calls[5] = abi.encodeCall(marketplace.retire, (address(fab)));
        calls[6] = abi.encodeCall(registry.retire, (next));
        calls[7] = abi.encodeCall(registry.slash, (host, STAKE - 10e18, "greed"));
        calls[8] = abi.encodeCall(registry.slash, (rival, STAKE, "greed"));
        calls[9] = abi.encodeCall(registry.setRegistrationsPerWindow, (7));
        calls[10] = abi.encodeCall(escrow.setFee, (1000));
        calls[11] = abi.encodeCall(proofSystem.setChallengeBond, (0));
        calls[12] = abi.encodeCall(proofSystem.registerCircuit, (CIRCUIT, off));
        calls[13] = abi.encodeCall(reputation.slash, (host, 1000, "greed"));
        calls[14] = abi.encodeCall(reputation.setIncentiveThreshold, (1000));
        // What belongs to others, which the owner may try as well.
        calls[15] = abi.encodeCall(registry.jobForfeited, (host, owner, "greed"));
        calls[16] = abi.encodeCall(registry.moveStake, ("{}"));
        calls[17] = abi.encodeCall(registry.acceptStake, (owner, owner, uint128(STAKE), "{}"));
        calls[18] = abi.encodeCall(registry.unregisterNode, ());
        calls[19] = abi.encodeCall(escrow.release, (1, owner));
        calls[20] = abi.encodeCall(escrow.refund, (1));
        calls[21] = abi.encodeCall(proofSystem.settle, (1, ProofSystem.Verdict.Rejected, owner));
        calls[22] = abi.encodeCall(escrow.withdraw, (address(0), owner));
        calls[23] = abi.encodeWithSignature("emergencyWithdraw()");
        calls[24] = abi.encodeWithSignature("withdraw()");
        calls[25] = abi.encodeWithSignature("withdraw(uint256)", STAKE);
    }

    /// There a controller that had once registered its most could never register again.
    function test_registration_limit_that_latches_for_ever() public {
        vm.prank(owner);
        registry.setRegistrationsPerWindow(2);
        for (uint256 day = 0; day < 5; day++) {
            for (uint256 i = 0; i < 3; i++) {
                address node = address(uint160(0xF000 + 3 * day + i));
                vm.prank(renter);
                registry.approveHost(node, true);
                fab.transfer(node, STAKE);
                vm.prank(node);
                fab.approve(address(registry), STAKE);
                bool ok =
                    tries(node, address(registry), abi.encodeCall(registry.registerControlledNode, ("{}", renter)));
                vm.assertEq(ok ? 1 : 0, i < 2 ? uint256(1) : 0);
            }
            vm.warp((block.timestamp / 1 days + 1) * 1 days);
        }
    }

    function test_failed_job_leaves_no_event() public {
        uint256 given = committed();
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(given, host, "no");
        vm.prank(host);
        marketplace.failJob(given, "no");
        uint256 missed = committed();
        vm.warp(marketplace.getJob(missed).deadline);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(missed, host, "deadline passed");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.DeadlineMissed(missed, host);
        marketplace.expireJob(missed);
    }

    /// There a host whose time was over lost its job to another without a word on the log.
    function test_take_over_without_an_event() public {
        uint256 jobId = committed();
        refuses(rival, address(marketplace), abi.encodeCall(marketplace.claimJob, (jobId)));
        vm.warp(marketplace.getJob(jobId).deadline);
        refuses(rival, address(marketplace), abi.encodeCall(marketplace.claimJob, (jobId)));
        vm.assertEq(marketplace.getJob(jobId).host, host);

        // The only way from one host to another, and all of it is on the log.
        jobId = committed();
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobFailed(jobId, host, "no");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobReopened(jobId, host);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.CommitmentDiscarded(jobId);
        vm.prank(host);
        marketplace.failJob(jobId, "no");
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.JobClaimed(jobId, rival);
        claimAs(rival, jobId);
    }

    function test_a_pause_that_does_not_stop_claims() public {
        uint256 jobId = post();
        vm.prank(guardian);
        marketplace.pause("exploit");
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.Stopped.selector, 2));
        claim(jobId);
        assertStatus(jobId, JobMarketplace.JobStatus.Posted);
    }

    /// There a second way to hand a result in asked nobody when, and paid nobody.
    function test_submit_result_without_deadline_or_payment() public {
        uint256 jobId = committed();
        refuses(host, address(marketplace), abi.encodeWithSignature("submitResult(uint256,string)", jobId, CID));
        refuses(
            host, address(marketplace), abi.encodeWithSignature("submitResult(uint256,string,bytes)", jobId, CID, "")
        );
        bytes memory proof = prove(jobId);
        uint256 deadline = marketplace.getJob(jobId).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.DeadlinePassed.selector, jobId, deadline, deadline));
        vm.prank(host);
        marketplace.completeJob(jobId, CID, proof);
        vm.warp(deadline - 1);
        complete(jobId);
        release(jobId);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
    }

    function test_a_proof_ignored_on_completion() public {
        uint256 jobId = committed();
        bytes memory right = prove(jobId);
        bytes memory broken = prove(jobId);
        broken[broken.length - 1] ^= 0x01;
        bytes[3] memory proofs = [bytes(""), "anything", broken];
        for (uint256 i = 0; i < proofs.length; i++) {
            refuses(host, address(marketplace), abi.encodeCall(marketplace.completeJob, (jobId, CID, proofs[i])));
        }
        verifier.set(TestVerifier.Answer.Refuse);
        refuses(host, address(marketplace), abi.encodeCall(marketplace.completeJob, (jobId, CID, right)));
        assertStatus(jobId, JobMarketplace.JobStatus.Claimed);
        verifier.set(TestVerifier.Answer.Accept);
        complete(jobId);
        vm.assertTrue(proofSystem.commitmentOf(jobId).proven);
    }

    /// There the proof system decoded nine values of a job where the marketplace returned six. Here it is the real
    /// marketplace that is asked, and its own type that is decoded.
    function test_submit_proof_that_cannot_work_with_the_real_marketplace() public {
        uint256 jobId = committed();
        vm.assertEq(address(proofSystem.marketplace()), address(marketplace));
        bytes memory proof = prove(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ProofSubmitted(jobId, host, keccak256(proof), block.timestamp);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ProofVerified(jobId, address(verifier), true);
        complete(jobId);
    }

    /// There anybody's one call changed anything.
    function test_governance_by_one_call_with_no_tokens_and_no_timelock() public {
        address[] memory executors = new address[](1); // 0: anybody executes what is due
        TimelockController timelock = new TimelockController(2 days, new address[](0), executors, address(this));
        Governance governance = new Governance(fab, timelock);
        vm.assertEq(bytes(governance.CLOCK_MODE()), "mode=timestamp"); // what follows counts seconds
        timelock.grantRole(timelock.PROPOSER_ROLE(), address(governance));
        timelock.renounceRole(timelock.DEFAULT_ADMIN_ROLE(), address(this));
        vm.prank(owner);
        escrow.transferOwnership(address(timelock));
        (address[] memory to, uint256[] memory values, bytes[] memory calls) =
            (new address[](1), new uint256[](1), new bytes[](1));
        (to[0], calls[0]) = (address(escrow), abi.encodeCall(escrow.setFee, (1000)));

        // One call, without tokens, past the governor, past the timelock.
        refuses(stranger, address(escrow), calls[0]);
        refuses(owner, address(escrow), calls[0]);
        vm.expectRevert(
            abi.encodeWithSelector(IGovernor.GovernorInsufficientProposerVotes.selector, stranger, 0, 1_000_000e18)
        );
        vm.prank(stranger);
        governance.propose(to, values, calls, "fee");
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControl.AccessControlUnauthorizedAccount.selector, stranger, timelock.PROPOSER_ROLE()
            )
        );
        vm.prank(stranger);
        timelock.schedule(to[0], 0, calls[0], 0, 0, 2 days);
        refuses(stranger, address(timelock), abi.encodeCall(timelock.execute, (to[0], 0, calls[0], 0, 0)));

        // With tokens: a day, seven to vote, two in the timelock, and not a second less.
        bytes32 description = keccak256("fee");
        bytes memory queue = abi.encodeCall(governance.queue, (to, values, calls, description));
        bytes memory execute = abi.encodeCall(governance.execute, (to, values, calls, description));
        fab.transfer(stranger, 50_000_000e18);
        vm.prank(stranger);
        fab.delegate(stranger);
        vm.warp(block.timestamp + 1);
        vm.prank(stranger);
        uint256 proposal = governance.propose(to, values, calls, "fee");
        bytes memory vote = abi.encodeCall(governance.castVote, (proposal, 1));
        vm.warp(block.timestamp + 1 days);
        refuses(stranger, address(governance), vote);
        vm.warp(block.timestamp + 1);
        vm.assertTrue(tries(stranger, address(governance), vote));
        vm.warp(block.timestamp + 7 days - 1);
        refuses(stranger, address(governance), queue);
        vm.warp(block.timestamp + 1);
        refuses(stranger, address(governance), execute);
        vm.assertTrue(tries(renter, address(governance), queue));
        vm.warp(block.timestamp + 2 days - 1);
        refuses(stranger, address(governance), execute);
        vm.assertEq(escrow.feeBps(), FEE_BPS);
        vm.warp(block.timestamp + 1);
        vm.assertTrue(tries(renter, address(governance), execute));
        vm.assertEq(escrow.feeBps(), 1000);
    }

    /// There the fee was taken from the payment, and once more from what was left or from the next one.
    function test_fee_booked_twice() public {
        uint256 jobId = completed();
        release(jobId);
        uint256 fee = feeOf(PRICE);
        vm.assertEq(treasury.balance, fee);
        vm.assertEq(host.balance, PRICE - fee);
        release(completed());
        vm.assertEq(treasury.balance, 2 * fee);
        vm.assertEq(escrow.credits(address(0), treasury), 0);
        vm.assertEq(address(escrow).balance, 0);
        // None of a refund.
        uint256 before = renter.balance;
        vm.startPrank(renter);
        marketplace.cancelJob(marketplace.postJob{value: PRICE}(details(), requirements(), PRICE));
        vm.stopPrank();
        vm.assertEq(renter.balance, before);
        vm.assertEq(treasury.balance, 2 * fee);
    }

    /// There nothing ever called the function that let scores sink.
    function test_decay_never_reached() public {
        vm.startPrank(address(marketplace));
        for (uint256 i = 0; i < 20; i++) {
            reputation.jobEnded(host, ReputationSystem.Outcome.Paid);
        }
        vm.stopPrank();
        vm.assertTrue(reputation.isIncentivized(host));
        vm.warp(block.timestamp + 7 days);
        // Nobody called anything, and it shows: in the score, in the incentive, and in what the host may claim.
        vm.assertEq(reputation.scoreOf(host), 690);
        vm.assertFalse(reputation.isIncentivized(host));
        JobMarketplace.JobRequirements memory r = requirements();
        r.minReputationScore = 691;
        uint256 jobId = post(details(), r);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ReputationTooLow.selector, jobId, 690, 691));
        claim(jobId);
        vm.warp(block.timestamp + 1000 days);
        vm.assertEq(reputation.scoreOf(host), 500);
    }
}
