// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {BaseAccountIntegration} from "../src/BaseAccountIntegration.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Deploy} from "../script/Deploy.s.sol";
import {Suite} from "../script/lib/AddressBook.sol";
import {Settings} from "../script/lib/Configuration.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {Governed} from "./lib/Governed.sol";
import {Picky} from "./lib/Tokens.sol";

/// MIGRATION.md, rehearsed: a suite in use is replaced by a second one that the deployment script made, by a proposal that is
/// voted on and waits. What everybody has is compared before and after, to the wei.
contract MigrationTest is Governed, Deploy {
    uint256 private constant STAKE = 1000e18;
    uint256 private constant JOB_STAKE = 10e18;
    uint256 private constant BOND = 100e18;

    /// The old suite's jobs that have not ended when it retires.
    struct Open {
        uint256 posted;
        uint256 postedUsd;
        uint256 reserved;
        uint256 claimed;
        uint256 claimedUsd;
        uint256 asked;
        uint256 committed;
        uint256 completed;
        uint256 completedUsd;
        uint256 disputed;
        uint256 challenged;
        uint256 lapsing;
    }

    address private busy = host;
    address private weak = address(0x0C3);
    address private leaving = address(0x0C4);
    address private controlled = address(0x0C5);
    address private good = address(0x0C6);
    address private picky;
    address private pickyRenter;
    address private controller = address(0x0F1);
    address private challenger = address(0x0F2);

    Suite private next;
    Settings private settings;
    Open private jobs;
    address[] private hosts;
    address[] private people;
    /// What an account's worth must have grown by, in the end.
    mapping(address token => mapping(address who => uint256)) private due;
    mapping(address token => mapping(address who => uint256)) private past;
    mapping(address host => uint256) private stakes;

    function setUp() public override {
        vm.recordLogs();
        super.setUp();
        picky = address(new Picky());
        pickyRenter = address(new Picky());
        hosts = [busy, rival, weak, leaving, controlled, good, picky];
        people = [renter, pickyRenter, treasury, challenger, controller, busy, rival, weak, leaving];
        people.push(controlled);
        people.push(good);
        people.push(picky);
        vm.deal(pickyRenter, 10 ether);
        fab.transfer(challenger, 2 * BOND);
        vm.prank(challenger);
        fab.approve(address(proofSystem), type(uint256).max);
        register(weak);
        register(leaving);
        register(good);
        register(picky);
        registerControlled();
        live();
    }

    function registerControlled() private {
        vm.prank(controller);
        registry.approveHost(controlled, true);
        fab.transfer(controlled, STAKE);
        vm.startPrank(controlled);
        fab.approve(address(registry), STAKE);
        registry.registerControlledNode("{}", controller);
        vm.stopPrank();
    }

    /// Weeks of business: payments, ratings, a missed job, a job given up, credits that nobody has withdrawn yet.
    function live() private {
        for (uint256 i = 0; i < 6; i++) {
            uint256 jobId = pay(good, postEth(renter, 0.1 ether + i, address(0)));
            vm.prank(renter);
            reputation.rate(jobId, 5, "");
        }
        uint256 bad = pay(leaving, postUsd(5_000_001));
        vm.prank(renter);
        reputation.rate(bad, 1, "slow");
        pay(picky, postEth(renter, 3, picky));
        pay(picky, postEth(renter, 0.3 ether, picky));
        uint256 missed = postEth(renter, 0.2 ether, address(0));
        claimedBy(weak, missed);
        uint256 givenUp = postUsd(9);
        claimedBy(controlled, givenUp);
        vm.prank(controlled);
        marketplace.failJob(givenUp, "no memory");
        vm.prank(renter);
        marketplace.cancelJob(givenUp);
        uint256 refused = postEth(pickyRenter, 0.7 ether, address(0));
        vm.prank(pickyRenter);
        marketplace.cancelJob(refused);
        vm.warp(block.timestamp + TIME);
        marketplace.expireJob(missed);
        vm.warp(block.timestamp + 8 days);
        vm.assertEq(reputation.scoreOf(good), 598);
        vm.assertEq(reputation.scoreOf(leaving), 500);
        vm.assertEq(reputation.scoreOf(weak), 450);
        vm.assertEq(reputation.scoreOf(controlled), 480);
        vm.assertFalse(registry.isActive(weak));
        vm.assertEq(escrow.credits(address(0), pickyRenter), 0.7 ether);
        vm.assertEq(escrow.credits(address(0), picky), 3 + 0.2925 ether);
    }

    function postEth(address from, uint256 amount, address reservedFor) private returns (uint256) {
        JobMarketplace.Posting[] memory postings = new JobMarketplace.Posting[](1);
        postings[0] = JobMarketplace.Posting(details(), requirements(), address(0), amount, reservedFor);
        vm.prank(from);
        return marketplace.postJobs{value: amount}(postings);
    }

    /// As `claimAs`, for what the host of the moment does next.
    function claimedBy(address who, uint256 jobId) private returns (uint256) {
        host = who;
        claim(jobId);
        return jobId;
    }

    function commitAs(address who, uint256 jobId) private returns (uint256) {
        claimedBy(who, jobId);
        commit(jobId, 5);
        return jobId;
    }

    function completeAs(address who, uint256 jobId) private returns (uint256) {
        commitAs(who, jobId);
        complete(jobId);
        return jobId;
    }

    function pay(address who, uint256 jobId) private returns (uint256) {
        completeAs(who, jobId);
        release(jobId);
        return jobId;
    }

    /// A job in every state that is not an end.
    function open() private {
        jobs.posted = postEth(renter, 1.000000000000000001 ether, address(0));
        jobs.postedUsd = postUsd(1_000_003);
        jobs.reserved = postEth(pickyRenter, 0.9 ether, rival);
        jobs.claimed = claimedBy(busy, postEth(renter, 0.11 ether, address(0)));
        jobs.claimedUsd = claimedBy(rival, postUsd(77));
        jobs.asked = claimedBy(rival, postEth(renter, 0.13 ether, address(0)));
        jobs.committed = commitAs(busy, postEth(renter, 0.17 ether + 39, address(0)));
        jobs.completed = completeAs(good, postEth(renter, 0.19 ether + 1, address(0)));
        jobs.completedUsd = completeAs(controlled, postUsd(7_777_777));
        jobs.disputed = completeAs(rival, postUsd(31_000_001));
        jobs.challenged = completeAs(busy, postEth(renter, 0.23 ether, address(0)));
        jobs.lapsing = completeAs(good, postEth(renter, 0.29 ether, address(0)));
        vm.prank(renter);
        marketplace.disputeJob(jobs.disputed, "evidence");
        vm.startPrank(challenger);
        proofSystem.challenge(jobs.challenged, "evidence");
        proofSystem.challenge(jobs.lapsing, "evidence");
        vm.stopPrank();
        vm.prank(leaving);
        registry.startUnbonding();
    }

    function deployNext() private {
        Settings memory s;
        (s.treasury, s.arbiter, s.guardian) = (treasury, arbiter, guardian);
        (s.feeBps, s.challengeWindow) = (FEE_BPS, WINDOW);
        (s.withVerifier, s.verifierArtifact) = (true, "out/TestVerifier.sol/TestVerifier.json");
        s.entryPoint = ENTRY_POINT_V08;
        s.predecessor = oldSuite();
        settings = _resolved(s, address(this));
        vm.assertEq(settings.usd, address(usd));
        next = _deploy(settings, address(this));
    }

    function oldSuite() private view returns (Suite memory) {
        return Suite(
            fab,
            timelock,
            governance,
            registry,
            escrow,
            proofSystem,
            reputation,
            marketplace,
            BaseAccountIntegration(address(0)),
            address(0),
            address(verifier),
            address(usd)
        );
    }

    function retirement() private view returns (Proposal memory p) {
        p.targets = new address[](2);
        p.values = new uint256[](2);
        p.calls = new bytes[](2);
        (p.targets[0], p.targets[1]) = (address(marketplace), address(registry));
        p.calls[0] = abi.encodeCall(marketplace.retire, (address(next.marketplace)));
        p.calls[1] = abi.encodeCall(registry.retire, (next.registry));
        p.text = "replace the first suite";
    }

    /// What `who` has of `token`, or may withdraw.
    function worth(address token, address who) private view returns (uint256) {
        uint256 balance = token == address(0) ? who.balance : usd.balanceOf(who);
        return token == address(fab) ? fab.balanceOf(who) : balance + escrow.credits(token, who);
    }

    function remember() private {
        for (uint256 i = 0; i < people.length; i++) {
            past[address(0)][people[i]] = worth(address(0), people[i]);
            past[address(usd)][people[i]] = worth(address(usd), people[i]);
            past[address(fab)][people[i]] = worth(address(fab), people[i]);
        }
        for (uint256 i = 0; i < hosts.length; i++) {
            stakes[hosts[i]] = registry.getNode(hosts[i]).stake;
        }
    }

    /// Notes that the job's money is its host's, less the fee.
    function owePayment(uint256 jobId, address payee) private {
        PaymentEscrow.Escrow memory e = escrow.getEscrow(jobId);
        uint256 fee = uint256(e.amount) * FEE_BPS / 10_000;
        due[e.token][payee] += e.amount - fee;
        due[e.token][treasury] += fee;
    }

    function oweRefund(uint256 jobId) private {
        PaymentEscrow.Escrow memory e = escrow.getEscrow(jobId);
        due[e.token][e.renter] += e.amount;
    }

    function assertWorth(address token) private view {
        for (uint256 i = 0; i < people.length; i++) {
            vm.assertEq(worth(token, people[i]), past[token][people[i]] + due[token][people[i]]);
        }
    }

    /// The sum of everybody's, the escrow's and the contracts' holdings.
    function total(address token) private view returns (uint256 sum) {
        for (uint256 i = 0; i < people.length; i++) {
            sum += token == address(0) ? people[i].balance : IERC20(token).balanceOf(people[i]);
        }
        address[4] memory contracts = [address(escrow), address(registry), address(proofSystem), address(next.registry)];
        for (uint256 i = 0; i < contracts.length; i++) {
            sum += token == address(0) ? contracts[i].balance : IERC20(token).balanceOf(contracts[i]);
        }
    }

    /// Proposes, votes, waits, and executes with a job in every state.
    function retire() private {
        deployNext();
        Proposal memory p = retirement();
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        awaitEnd(p);
        queue(p);
        vm.warp(governance.proposalEta(p.id) - 5 minutes);
        open();
        remember();
        awaitExecution(p);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.Retired(address(next.marketplace));
        vm.expectEmit(address(registry));
        emit NodeRegistry.Retired(address(next.registry));
        vm.prank(stranger);
        execute(p);
    }

    /// Ends every job by the old suite's rules, each in another way.
    function endAll() private {
        // What was posted may still be claimed, and is paid.
        completeAs(good, jobs.posted);
        owePayment(jobs.posted, good);
        oweRefund(jobs.reserved);
        vm.prank(pickyRenter);
        marketplace.cancelJob(jobs.reserved);
        oweRefund(jobs.asked);
        vm.prank(renter);
        marketplace.requestRefund(jobs.asked);
        vm.prank(rival);
        marketplace.agreeRefund(jobs.asked);
        vm.prank(rival);
        marketplace.failJob(jobs.claimedUsd, "retired");
        host = busy;
        complete(jobs.committed);
        owePayment(jobs.committed, busy);
        oweRefund(jobs.disputed);
        oweRefund(jobs.challenged);
        vm.startPrank(arbiter);
        marketplace.resolveDispute(jobs.disputed, true);
        marketplace.resolveDispute(jobs.challenged, true);
        vm.stopPrank();
        // The rest is anybody's to end.
        vm.startPrank(stranger);
        vm.warp(block.timestamp + 1 hours);
        oweRefund(jobs.postedUsd);
        marketplace.expireJob(jobs.postedUsd);
        oweRefund(jobs.claimedUsd);
        marketplace.expireJob(jobs.claimedUsd);
        oweRefund(jobs.claimed);
        marketplace.expireJob(jobs.claimed);
        owePayment(jobs.completed, good);
        owePayment(jobs.completedUsd, controlled);
        uint256[] memory ids = new uint256[](4);
        (ids[0], ids[1], ids[2], ids[3]) = (jobs.posted, jobs.committed, jobs.completed, jobs.completedUsd);
        vm.assertEq(marketplace.releasePayments(ids), 4);
        vm.warp(marketplace.getJob(jobs.lapsing).releaseAt);
        owePayment(jobs.lapsing, good);
        marketplace.releasePayment(jobs.lapsing);
        vm.stopPrank();
        // Two stakes of a job were lost, one of them to the challenger by half; both bonds are back.
        stakes[busy] -= 2 * JOB_STAKE;
        due[address(fab)][treasury] = JOB_STAKE + JOB_STAKE / 2;
        due[address(fab)][challenger] = 2 * BOND + JOB_STAKE / 2;
    }

    function moveAll() private {
        for (uint256 i = 0; i < hosts.length; i++) {
            address who = hosts[i];
            address answers = registry.getNode(who).controller;
            vm.expectEmit(address(registry));
            emit NodeRegistry.StakeMoved(who, address(next.registry), stakes[who]);
            vm.prank(who);
            registry.moveStake("{\"moved\":true}");
            vm.assertEq(registry.getNode(who).controller, address(0));
            vm.assertEq(next.registry.getNode(who).stake, stakes[who]);
            vm.assertEq(next.registry.getNode(who).controller, answers);
        }
    }

    /// From here on the world's helpers act on the new suite.
    function switchOver() private {
        (registry, escrow, proofSystem) = (next.registry, next.escrow, next.proofSystem);
        (reputation, marketplace) = (next.reputation, next.marketplace);
    }

    function test_the_new_suite_passes_inspection_before_the_vote() public {
        deployNext();
        _inspect(next, settings, vm.getRecordedLogs());
    }

    function test_every_job_is_open_in_its_state_when_the_suite_retires() public {
        retire();
        assertStatus(jobs.posted, JobMarketplace.JobStatus.Posted);
        assertStatus(jobs.postedUsd, JobMarketplace.JobStatus.Posted);
        assertStatus(jobs.reserved, JobMarketplace.JobStatus.Posted);
        assertStatus(jobs.claimed, JobMarketplace.JobStatus.Claimed);
        assertStatus(jobs.claimedUsd, JobMarketplace.JobStatus.Claimed);
        assertStatus(jobs.asked, JobMarketplace.JobStatus.Claimed);
        assertStatus(jobs.committed, JobMarketplace.JobStatus.Claimed);
        vm.assertEq(proofSystem.commitmentOf(jobs.committed).nTokens, 5);
        assertStatus(jobs.completed, JobMarketplace.JobStatus.Completed);
        assertStatus(jobs.completedUsd, JobMarketplace.JobStatus.Completed);
        assertStatus(jobs.disputed, JobMarketplace.JobStatus.Disputed);
        assertStatus(jobs.challenged, JobMarketplace.JobStatus.Disputed);
        assertStatus(jobs.lapsing, JobMarketplace.JobStatus.Disputed);
        vm.assertEq(proofSystem.challengeOf(jobs.challenged).challenger, challenger);
        vm.assertTrue(registry.getNode(leaving).unbondedAt > block.timestamp);
        vm.assertEq(registry.getNode(weak).stake, STAKE - JOB_STAKE);
        vm.assertEq(registry.getNode(busy).openJobs, 3);
        vm.assertEq(fab.balanceOf(address(proofSystem)), 2 * BOND);
    }

    function test_nothing_is_lost() public {
        retire();
        (uint256 eth, uint256 usdSum, uint256 fabSum) = (total(address(0)), total(address(usd)), total(address(fab)));
        endAll();
        moveAll();
        assertWorth(address(0));
        assertWorth(address(usd));
        assertWorth(address(fab));
        vm.assertEq(total(address(0)), eth);
        vm.assertEq(total(address(usd)), usdSum);
        vm.assertEq(total(address(fab)), fabSum);
        // The old suite has nothing but what was credited; the new one the stakes.
        uint256 owed = escrow.credits(address(0), picky) + escrow.credits(address(0), pickyRenter);
        vm.assertEq(owed, 3 + 0.2925 ether + 0.7 ether + 0.9 ether);
        vm.assertEq(address(escrow).balance, owed);
        vm.assertEq(usd.balanceOf(address(escrow)), 0);
        vm.assertEq(fab.balanceOf(address(registry)), 0);
        vm.assertEq(fab.balanceOf(address(proofSystem)), 0);
        vm.assertEq(fab.balanceOf(address(next.registry)), 7 * STAKE - 3 * JOB_STAKE);
        vm.assertEq(address(marketplace).balance, 0);
    }

    function test_credits_stay_withdrawable() public {
        retire();
        endAll();
        vm.prank(picky);
        escrow.withdraw(address(0), stranger);
        vm.assertEq(stranger.balance, 3 + 0.2925 ether);
        Picky(payable(pickyRenter)).setWilling(true);
        uint256 before = pickyRenter.balance;
        vm.prank(pickyRenter);
        escrow.withdraw(address(0), pickyRenter);
        vm.assertEq(pickyRenter.balance - before, 1.6 ether);
        vm.assertEq(address(escrow).balance, 0);
    }

    function test_the_old_suite_takes_no_job_and_no_host() public {
        retire();
        bytes memory retired = abi.encodeWithSelector(JobMarketplace.IsRetired.selector, address(next.marketplace));
        vm.expectRevert(retired);
        post();
        vm.expectRevert(retired);
        postEth(renter, 1, address(0));
        usd.transfer(renter, 5);
        vm.startPrank(renter);
        usd.approve(address(marketplace), 5);
        vm.expectRevert(retired);
        marketplace.postJobWithToken(details(), requirements(), address(usd), 5);
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.IsRetired.selector, address(next.registry)));
        vm.prank(stranger);
        registry.registerNode("{}");
    }

    function test_a_host_moves_when_its_last_job_has_ended() public {
        retire();
        vm.prank(picky);
        registry.moveStake("{}");
        vm.assertTrue(next.registry.isActive(picky));
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HasOpenJobs.selector, busy, 3));
        vm.prank(busy);
        registry.moveStake("{}");
        endAll();
        vm.prank(busy);
        registry.moveStake("{}");
        vm.assertEq(next.registry.getNode(busy).stake, STAKE - 2 * JOB_STAKE);
    }

    function test_nobody_moves_anothers_stake() public {
        retire();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, stranger));
        vm.prank(stranger);
        registry.moveStake("{}");
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.OnlyPredecessor.selector, stranger));
        vm.prank(stranger);
        next.registry.acceptStake(stranger, stranger, 1, "{}");
    }

    function test_no_host_moves_before_the_suite_retires() public {
        deployNext();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRetired.selector));
        vm.prank(good);
        registry.moveStake("{}");
    }

    /// A host need not follow.
    function test_a_host_leaves_the_old_suite_with_its_stake() public {
        retire();
        uint256 unbondedAt = registry.getNode(leaving).unbondedAt;
        vm.warp(unbondedAt);
        vm.prank(leaving);
        registry.unregisterNode();
        vm.assertEq(fab.balanceOf(leaving), STAKE);
    }

    /// Its two stakes are two: it takes the old one home instead of moving it.
    function test_a_host_that_registered_anew_keeps_its_old_stake() public {
        retire();
        fab.transfer(picky, STAKE);
        vm.startPrank(picky);
        fab.approve(address(next.registry), STAKE);
        next.registry.registerNode("{}");
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.AlreadyRegistered.selector, picky));
        registry.moveStake("{}");
        registry.startUnbonding();
        vm.warp(block.timestamp + 14 days);
        registry.unregisterNode();
        vm.stopPrank();
        vm.assertEq(fab.balanceOf(picky), STAKE);
        vm.assertEq(next.registry.getNode(picky).stake, STAKE);
    }

    function test_scores_go_on_where_they_were() public {
        retire();
        endAll();
        moveAll();
        vm.assertEq(reputation.scoreOf(leaving), 500);
        vm.assertEq(reputation.scoreOf(weak), 450);
        vm.assertEq(reputation.scoreOf(controlled), 490);
        // 500 and six jobs rated 5, less the two weeks before and during the vote, and the three jobs that ended since.
        vm.assertEq(reputation.scoreOf(good), 500 + 6 * 18 - 20 + 30);
        for (uint256 later = 0; later < 3; later++) {
            for (uint256 i = 0; i < hosts.length; i++) {
                vm.assertEq(next.reputation.scoreOf(hosts[i]), reputation.scoreOf(hosts[i]));
                vm.assertEq(
                    keccak256(abi.encode(next.reputation.recordOf(hosts[i]))),
                    keccak256(abi.encode(reputation.recordOf(hosts[i])))
                );
            }
            vm.warp(block.timestamp + 7 days);
        }
        vm.assertEq(reputation.scoreOf(good), 618 - 30);
        vm.assertEq(next.reputation.scoreOf(stranger), 500);
    }

    function test_a_moved_host_earns_in_the_new_suite() public {
        retire();
        endAll();
        moveAll();
        uint256 score = reputation.scoreOf(good);
        ReputationSystem old = reputation;
        switchOver();
        JobMarketplace.JobRequirements memory r = requirements();
        r.minReputationScore = score;
        uint256 jobId = post(details(), r);
        vm.assertEq(jobId, 1);
        host = controlled;
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.ReputationTooLow.selector, jobId, 490, score));
        claim(jobId);
        uint256 before = good.balance;
        completeAs(good, jobId);
        release(jobId);
        vm.assertEq(good.balance - before, 0.975 ether);
        vm.assertEq(address(escrow).balance, 0);
        vm.assertEq(reputation.scoreOf(good), score + 10);
        vm.assertEq(old.scoreOf(good), score);
        vm.prank(renter);
        reputation.rate(jobId, 4, "as ever");
        vm.assertEq(reputation.scoreOf(good), score + 14);
    }

    function test_a_host_below_the_minimum_stays_inactive_until_it_adds_stake() public {
        retire();
        endAll();
        moveAll();
        switchOver();
        uint256 jobId = post();
        host = weak;
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HostNotActive.selector, weak));
        claim(jobId);
        fab.transfer(weak, JOB_STAKE);
        vm.startPrank(weak);
        fab.approve(address(registry), JOB_STAKE);
        registry.addStake(JOB_STAKE);
        vm.stopPrank();
        claim(jobId);
    }

    /// One proposal, both or neither.
    function test_a_registry_that_names_no_predecessor_retires_nothing() public {
        deployNext();
        next.registry = new NodeRegistry(owner, fab, address(next.marketplace), treasury, NodeRegistry(address(0)));
        Proposal memory p = retirement();
        passVote(p);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotASuccessor.selector, address(next.registry)));
        execute(p);
        vm.assertEq(marketplace.successor(), address(0));
        post();
    }

    function test_a_suite_retires_once() public {
        retire();
        Proposal memory p = proposal(address(registry), abi.encodeCall(registry.retire, (next.registry)));
        passVote(p);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.IsRetired.selector, address(next.registry)));
        execute(p);
        p = proposal(address(marketplace), abi.encodeCall(marketplace.retire, (address(escrow))));
        passVote(p);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.IsRetired.selector, address(next.marketplace)));
        execute(p);
    }
}
