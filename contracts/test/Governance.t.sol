// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IGovernor} from "@openzeppelin/contracts/governance/IGovernor.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {CircuitBreaker} from "../src/CircuitBreaker.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {Governed} from "./lib/Governed.sol";
import {Vm} from "./lib/Vm.sol";

contract GovernanceTest is Governed {
    uint256 private constant THRESHOLD = 1_000_000e18;
    uint256 private constant QUORUM = 40_000_000e18;

    /// A call that only the owner may make, and the event that shows it was made.
    struct Power {
        address target;
        bytes call;
        bytes32 shownBy;
    }

    /// A call that its caller may not make, and what answers it.
    struct Refusal {
        address target;
        bytes call;
        bytes why;
    }

    address private whale = address(0x0E2);
    NodeRegistry private nextRegistry;

    function setUp() public override {
        super.setUp();
        nextRegistry = new NodeRegistry(owner, fab, address(marketplace), treasury, registry);
        giveVotes(whale, 300_000_000e18);
    }

    function setFee(uint16 feeBps) private view returns (Proposal memory) {
        return proposal(address(escrow), abi.encodeCall(PaymentEscrow.setFee, (feeBps)));
    }

    function assertState(Proposal memory p, IGovernor.ProposalState need) private view {
        vm.assertEq(uint256(governance.state(p.id)), uint256(need));
    }

    function expectState(Proposal memory p, IGovernor.ProposalState need) private {
        vm.expectRevert(unexpectedState(p, need));
    }

    /// What the governor answers when the proposal is not in state `need`.
    function unexpectedState(Proposal memory p, IGovernor.ProposalState need) private view returns (bytes memory) {
        return abi.encodeWithSelector(
            IGovernor.GovernorUnexpectedProposalState.selector,
            p.id,
            governance.state(p.id),
            bytes32(uint256(1) << uint8(need))
        );
    }

    // Proposing.

    function expectTooFewVotes(address who, uint256 votes) private {
        Proposal memory p = setFee(1);
        vm.expectRevert(
            abi.encodeWithSelector(IGovernor.GovernorInsufficientProposerVotes.selector, who, votes, THRESHOLD)
        );
        vm.prank(who);
        governance.propose(p.targets, p.values, p.calls, p.text);
    }

    /// Old defect: governance by one call with no tokens and no timelock.
    function test_without_tokens_nobody_governs() public {
        expectTooFewVotes(stranger, 0);
        Proposal memory p = setFee(1);
        p.id = governance.getProposalId(p.targets, p.values, p.calls, keccak256(bytes(p.text)));
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorNonexistentProposal.selector, p.id));
        vm.prank(stranger);
        execute(p);
        vm.assertEq(escrow.feeBps(), FEE_BPS);
    }

    function test_proposing_takes_the_threshold_delegated() public {
        fab.transfer(stranger, THRESHOLD);
        vm.warp(block.timestamp + 1);
        // Held, but not delegated.
        expectTooFewVotes(stranger, 0);
        vm.prank(stranger);
        fab.delegate(stranger);
        // Delegated in this second.
        expectTooFewVotes(stranger, 0);
        vm.warp(block.timestamp + 1);
        Proposal memory p = setFee(1);
        vm.prank(stranger);
        p.id = governance.propose(p.targets, p.values, p.calls, p.text);
        assertState(p, IGovernor.ProposalState.Pending);
    }

    /// What a wallet reads before it offers to propose is what `propose` refuses by, also after a vote has changed it.
    function test_the_threshold_that_is_read_is_the_one_that_holds() public {
        vm.assertEq(governance.proposalThreshold(), THRESHOLD);
        Proposal memory p =
            proposal(address(governance), abi.encodeCall(governance.setProposalThreshold, (50_000_000e18 + 1)));
        passVote(p);
        execute(p);
        vm.assertEq(governance.proposalThreshold(), 50_000_000e18 + 1);
        p = setFee(1);
        vm.expectRevert(
            abi.encodeWithSelector(
                IGovernor.GovernorInsufficientProposerVotes.selector, voter, 50_000_000e18, 50_000_000e18 + 1
            )
        );
        propose(p);
    }

    function test_one_wei_below_the_threshold_is_refused() public {
        giveVotes(stranger, THRESHOLD - 1);
        expectTooFewVotes(stranger, THRESHOLD - 1);
    }

    function test_the_proposer_cancels_before_voting_and_nobody_else() public {
        Proposal memory p = setFee(1);
        propose(p);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorUnableToCancel.selector, p.id, whale));
        vm.prank(whale);
        governance.cancel(p.targets, p.values, p.calls, keccak256(bytes(p.text)));
        vm.prank(voter);
        governance.cancel(p.targets, p.values, p.calls, keccak256(bytes(p.text)));
        assertState(p, IGovernor.ProposalState.Canceled);
        awaitVoting(p);
        expectState(p, IGovernor.ProposalState.Active);
        vote(p, whale, FOR);
    }

    function test_once_voting_began_the_proposer_cannot_cancel() public {
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorUnableToCancel.selector, p.id, voter));
        vm.prank(voter);
        governance.cancel(p.targets, p.values, p.calls, keccak256(bytes(p.text)));
    }

    // Time: a day, seven, and two.

    function test_voting_begins_a_day_after_the_proposal() public {
        Proposal memory p = setFee(1);
        uint256 start = block.timestamp;
        propose(p);
        vm.warp(start + 1 days);
        expectState(p, IGovernor.ProposalState.Active);
        vote(p, voter, FOR);
        vm.warp(start + 1 days + 1);
        vote(p, voter, FOR);
        assertState(p, IGovernor.ProposalState.Active);
    }

    function test_voting_lasts_seven_days() public {
        Proposal memory p = setFee(1);
        uint256 start = block.timestamp;
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        vm.warp(start + 8 days);
        vote(p, whale, FOR);
        expectState(p, IGovernor.ProposalState.Succeeded);
        queue(p);
        vm.warp(start + 8 days + 1);
        fab.delegate(address(this));
        expectState(p, IGovernor.ProposalState.Active);
        vote(p, address(this), AGAINST);
        assertState(p, IGovernor.ProposalState.Succeeded);
    }

    function test_a_passed_proposal_waits_two_days() public {
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        awaitEnd(p);
        expectState(p, IGovernor.ProposalState.Queued);
        execute(p);
        uint256 queuedAt = block.timestamp;
        queue(p);
        vm.warp(queuedAt + 2 days - 1);
        bytes32 salt = bytes20(address(governance)) ^ keccak256(bytes(p.text));
        vm.expectRevert(
            abi.encodeWithSelector(
                TimelockController.TimelockUnexpectedOperationState.selector,
                timelock.hashOperationBatch(p.targets, p.values, p.calls, 0, salt),
                bytes32(uint256(1) << uint8(TimelockController.OperationState.Ready))
            )
        );
        execute(p);
        vm.assertEq(escrow.feeBps(), FEE_BPS);
        vm.warp(queuedAt + 2 days);
        execute(p);
        vm.assertEq(escrow.feeBps(), 1);
    }

    /// Every proposal says so, and none goes past the timelock, though it has passed and waited as long elsewhere.
    function test_every_proposal_needs_queuing() public {
        Proposal memory p = setFee(1);
        propose(p);
        vm.assertTrue(governance.proposalNeedsQueuing(p.id));
        awaitVoting(p);
        vote(p, voter, FOR);
        awaitEnd(p);
        vm.warp(block.timestamp + 30 days);
        expectState(p, IGovernor.ProposalState.Queued);
        execute(p);
        vm.assertTrue(governance.proposalNeedsQueuing(p.id));
        queue(p);
        assertState(p, IGovernor.ProposalState.Queued);
        vm.assertEq(governance.proposalEta(p.id), block.timestamp + 2 days);
    }

    function test_anyone_executes_what_has_waited_and_only_once() public {
        Proposal memory p = setFee(1);
        passVote(p);
        vm.startPrank(stranger);
        vm.expectEmit(address(escrow));
        emit PaymentEscrow.FeeChanged(1);
        execute(p);
        assertState(p, IGovernor.ProposalState.Executed);
        expectState(p, IGovernor.ProposalState.Queued);
        execute(p);
    }

    // Counting.

    function test_a_quorum_of_4_percent_passes() public {
        vm.assertEq(governance.quorum(block.timestamp - 1), QUORUM);
        giveVotes(stranger, QUORUM);
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, stranger, FOR);
        awaitEnd(p);
        assertState(p, IGovernor.ProposalState.Succeeded);
    }

    function test_one_wei_below_the_quorum_fails() public {
        giveVotes(stranger, QUORUM - 1);
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, stranger, FOR);
        awaitEnd(p);
        assertState(p, IGovernor.ProposalState.Defeated);
        expectState(p, IGovernor.ProposalState.Succeeded);
        queue(p);
        expectState(p, IGovernor.ProposalState.Queued);
        execute(p);
    }

    function test_abstaining_counts_for_the_quorum_only() public {
        giveVotes(stranger, QUORUM - 1);
        giveVotes(renter, 1);
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, stranger, ABSTAIN);
        vote(p, renter, FOR);
        awaitEnd(p);
        assertState(p, IGovernor.ProposalState.Succeeded);
    }

    function test_a_majority_against_defeats() public {
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        vote(p, whale, AGAINST);
        awaitEnd(p);
        assertState(p, IGovernor.ProposalState.Defeated);
    }

    function test_a_tie_defeats() public {
        giveVotes(stranger, fab.getVotes(voter));
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        vote(p, stranger, AGAINST);
        awaitEnd(p);
        assertState(p, IGovernor.ProposalState.Defeated);
    }

    function test_tokens_bought_after_the_snapshot_do_not_vote() public {
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        giveVotes(stranger, 500_000_000e18);
        vm.assertEq(fab.getVotes(stranger), 500_000_000e18);
        vote(p, stranger, FOR);
        (uint256 against, uint256 inFavour, uint256 abstained) = governance.proposalVotes(p.id);
        vm.assertEq(against + inFavour + abstained, 0);
        awaitEnd(p);
        assertState(p, IGovernor.ProposalState.Defeated);
    }

    function test_tokens_that_voted_do_not_vote_again_elsewhere() public {
        Proposal memory p = setFee(1);
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorAlreadyCastVote.selector, voter));
        vote(p, voter, FOR);
        vm.startPrank(voter);
        fab.transfer(stranger, fab.balanceOf(voter));
        vm.stopPrank();
        vm.prank(stranger);
        fab.delegate(stranger);
        vm.warp(block.timestamp + 1);
        vote(p, stranger, FOR);
        (, uint256 inFavour,) = governance.proposalVotes(p.id);
        vm.assertEq(inFavour, 50_000_000e18);
    }

    // Who may change what.

    function powers() private view returns (Power[] memory all) {
        all = new Power[](24);
        uint256 n = 0;
        address target = address(marketplace);
        all[n++] = Power(target, abi.encodeCall(marketplace.unpause, ()), CircuitBreaker.EmergencyUnpause.selector);
        all[n++] = Power(
            target, abi.encodeCall(marketplace.setGuardian, (stranger, true)), CircuitBreaker.GuardianSet.selector
        );
        all[n++] = Power(
            target,
            abi.encodeCall(marketplace.setBreakerThresholds, (1, 2)),
            CircuitBreaker.BreakerThresholdsChanged.selector
        );
        all[n++] = Power(
            target, abi.encodeCall(marketplace.allowToken, (address(fab), true)), JobMarketplace.TokenAllowed.selector
        );
        all[n++] =
            Power(target, abi.encodeCall(marketplace.setArbiter, (stranger)), JobMarketplace.ArbiterChanged.selector);
        all[n++] = Power(target, abi.encodeCall(marketplace.retire, (address(escrow))), JobMarketplace.Retired.selector);
        target = address(registry);
        all[n++] = Power(target, abi.encodeCall(registry.slash, (host, 1, "why")), NodeRegistry.NodeSlashed.selector);
        all[n++] = Power(
            target,
            abi.encodeCall(registry.setRegistrationsPerWindow, (9)),
            NodeRegistry.RegistrationsPerWindowChanged.selector
        );
        all[n++] = Power(target, abi.encodeCall(registry.retire, (nextRegistry)), NodeRegistry.Retired.selector);
        all[n++] = Power(address(escrow), abi.encodeCall(escrow.setFee, (1)), PaymentEscrow.FeeChanged.selector);
        target = address(proofSystem);
        all[n++] = Power(
            target,
            abi.encodeCall(proofSystem.registerCircuit, ("another", circuit())),
            ProofSystem.CircuitRegistered.selector
        );
        all[n++] =
            Power(target, abi.encodeCall(proofSystem.setChallengeBond, (1)), ProofSystem.ChallengeBondChanged.selector);
        target = address(reputation);
        all[n++] = Power(
            target, abi.encodeCall(reputation.slash, (host, 1, "why")), ReputationSystem.ReputationSlashed.selector
        );
        all[n++] = Power(
            target,
            abi.encodeCall(reputation.setIncentiveThreshold, (1)),
            ReputationSystem.IncentiveThresholdChanged.selector
        );
        address[5] memory owned = suite();
        for (uint256 i = 0; i < owned.length; i++) {
            all[n++] = Power(
                owned[i], abi.encodeCall(Ownable.transferOwnership, (stranger)), Ownable.OwnershipTransferred.selector
            );
            all[n++] =
                Power(owned[i], abi.encodeCall(Ownable.renounceOwnership, ()), Ownable.OwnershipTransferred.selector);
        }
        vm.assertEq(n, all.length);
    }

    function suite() private view returns (address[5] memory) {
        return [address(marketplace), address(registry), address(escrow), address(proofSystem), address(reputation)];
    }

    function test_each_power_is_exercised_by_a_proposal() public {
        Power[] memory all = powers();
        for (uint256 i = 0; i < all.length; i++) {
            uint256 before = vm.snapshotState();
            Proposal memory p = proposal(all[i].target, all[i].call);
            passVote(p);
            vm.recordLogs();
            vm.prank(stranger);
            execute(p);
            vm.assertEq(count(all[i].target, all[i].shownBy), 1);
            vm.revertToState(before);
        }
    }

    /// How many events of a kind `emitter` has emitted since the recording began.
    function count(address emitter, bytes32 kind) private returns (uint256 n) {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; i++) {
            if (logs[i].emitter == emitter && logs[i].topics[0] == kind) n++;
        }
    }

    function test_no_account_has_a_power_of_its_own() public {
        address[9] memory accounts =
            [address(this), guardian, arbiter, whale, voter, host, renter, treasury, address(governance)];
        Power[] memory all = powers();
        for (uint256 i = 0; i < all.length; i++) {
            for (uint256 j = 0; j < accounts.length; j++) {
                bytes memory why = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, accounts[j]);
                assertRefused(accounts[j], Refusal(all[i].target, all[i].call, why));
            }
        }
    }

    function assertRefused(address who, Refusal memory refusal) private {
        vm.prank(who);
        (bool done, bytes memory why) = refusal.target.call(refusal.call);
        vm.assertFalse(done);
        vm.assertEq(why, refusal.why);
    }

    /// What hosts, renters and the rest of the suite may call, by name: everything else that changes state is a power.
    function open(uint256 which) private pure returns (string memory) {
        return [
            " pause postJob postJobWithToken postJobs claimJob claimExactly completeJob completeJobs failJob failExactly releasePayment releasePayments"
            " expireJob cancelJob requestRefund agreeRefund disputeJob addEvidence challengeJob resolveDispute ",
            " registerNode registerControlledNode approveHost addStake updateMetadata startUnbonding cancelUnbonding"
            " unregisterNode moveStake acceptStake jobOpened jobClosed jobForfeited ",
            " create release refund dispute requestRefund withdraw ",
            " commitResult commitExactly pinBeacon submit discard challenge settle ",
            " jobEnded rate "
        ][which];
    }

    /// Fails when a function is added to a contract that neither list here names.
    function test_no_function_is_left_out() public view {
        string[5] memory names = ["JobMarketplace", "NodeRegistry", "PaymentEscrow", "ProofSystem", "ReputationSystem"];
        address[5] memory targets = suite();
        Power[] memory all = powers();
        uint256 owned = 0;
        for (uint256 i = 0; i < names.length; i++) {
            string memory json = vm.readFile(string.concat("out/", names[i], ".sol/", names[i], ".json"));
            string[] memory signatures = vm.parseJsonKeys(json, ".methodIdentifiers");
            string memory changing = changingFunctions(json);
            for (uint256 j = 0; j < signatures.length; j++) {
                string memory name = vm.split(signatures[j], "(")[0];
                if (!hasWord(changing, name) || hasWord(open(i), name)) continue;
                vm.assertTrue(isPower(all, targets[i], bytes4(keccak256(bytes(signatures[j])))), signatures[j]);
                owned++;
            }
        }
        vm.assertEq(owned, all.length);
    }

    /// The names of the functions in an artifact that are neither `view` nor `pure`.
    function changingFunctions(string memory json) private view returns (string memory names) {
        names = " ";
        string memory entry = ".abi[0]";
        for (uint256 i = 0; vm.keyExistsJson(json, entry); entry = string.concat(".abi[", vm.toString(++i), "]")) {
            string memory kind = string.concat(entry, ".stateMutability");
            if (!vm.keyExistsJson(json, kind) || !vm.keyExistsJson(json, string.concat(entry, ".name"))) continue;
            bytes32 mutability = keccak256(bytes(vm.parseJsonString(json, kind)));
            if (mutability == keccak256("view") || mutability == keccak256("pure")) continue;
            names = string.concat(names, vm.parseJsonString(json, string.concat(entry, ".name")), " ");
        }
    }

    function hasWord(string memory words, string memory word) private pure returns (bool) {
        return vm.indexOf(words, string.concat(" ", word, " ")) != type(uint256).max;
    }

    function isPower(Power[] memory all, address target, bytes4 selector) private pure returns (bool) {
        for (uint256 i = 0; i < all.length; i++) {
            if (all[i].target == target && bytes4(all[i].call) == selector) return true;
        }
        return false;
    }

    /// What is neither the owner's nor everybody's.
    function refusals(address who) private view returns (Refusal[] memory all) {
        all = new Refusal[](13);
        bytes memory why = abi.encodeWithSelector(NodeRegistry.OnlyMarketplace.selector, who);
        all[0] = Refusal(address(registry), abi.encodeCall(registry.jobOpened, (host)), why);
        all[1] = Refusal(address(registry), abi.encodeCall(registry.jobClosed, (host)), why);
        all[2] = Refusal(address(registry), abi.encodeCall(registry.jobForfeited, (host, who, "")), why);
        all[3] = Refusal(address(escrow), abi.encodeCall(escrow.create, (9, who, who, address(0), 0)), why);
        all[4] = Refusal(address(escrow), abi.encodeCall(escrow.release, (1, who)), why);
        all[5] = Refusal(address(escrow), abi.encodeCall(escrow.refund, (1)), why);
        all[6] = Refusal(address(escrow), abi.encodeCall(escrow.dispute, (1, who)), why);
        all[7] = Refusal(address(escrow), abi.encodeCall(escrow.requestRefund, (1)), why);
        all[8] = Refusal(address(proofSystem), abi.encodeCall(proofSystem.submit, (single(1), "")), why);
        all[9] = Refusal(address(proofSystem), abi.encodeCall(proofSystem.discard, (1)), why);
        all[10] = Refusal(
            address(proofSystem), abi.encodeCall(proofSystem.settle, (1, ProofSystem.Verdict.Upheld, who)), why
        );
        all[11] = Refusal(
            address(reputation), abi.encodeCall(reputation.jobEnded, (who, ReputationSystem.Outcome.Paid)), why
        );
        all[12] = Refusal(
            address(registry),
            abi.encodeCall(registry.acceptStake, (who, who, 1, "{}")),
            abi.encodeWithSelector(NodeRegistry.OnlyPredecessor.selector, who)
        );
    }

    /// What the timelock and the governor answer.
    function governanceRefusals(address who) private view returns (Refusal[] memory all) {
        all = new Refusal[](10);
        address lock = address(timelock);
        bytes memory fee = abi.encodeCall(escrow.setFee, (1));
        bytes32 role = timelock.PROPOSER_ROLE();
        bytes memory why = abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, who, role);
        all[0] = Refusal(lock, abi.encodeCall(timelock.schedule, (address(escrow), 0, fee, 0, 0, 2 days)), why);
        why = abi.encodeWithSelector(
            IAccessControl.AccessControlUnauthorizedAccount.selector, who, timelock.CANCELLER_ROLE()
        );
        all[1] = Refusal(lock, abi.encodeCall(timelock.cancel, (0)), why);
        why = abi.encodeWithSelector(
            IAccessControl.AccessControlUnauthorizedAccount.selector, who, timelock.DEFAULT_ADMIN_ROLE()
        );
        all[2] = Refusal(lock, abi.encodeCall(timelock.grantRole, (role, who)), why);
        why = abi.encodeWithSelector(TimelockController.TimelockUnauthorizedCaller.selector, who);
        all[3] = Refusal(lock, abi.encodeCall(timelock.updateDelay, (0)), why);
        why = abi.encodeWithSelector(IGovernor.GovernorOnlyExecutor.selector, who);
        address governor = address(governance);
        all[4] = Refusal(governor, abi.encodeCall(governance.setVotingDelay, (0)), why);
        all[5] = Refusal(governor, abi.encodeCall(governance.setVotingPeriod, (1)), why);
        all[6] = Refusal(governor, abi.encodeCall(governance.setProposalThreshold, (0)), why);
        all[7] = Refusal(governor, abi.encodeCall(governance.updateQuorumNumerator, (0)), why);
        all[8] = Refusal(governor, abi.encodeCall(governance.updateTimelock, (timelock)), why);
        all[9] = Refusal(governor, abi.encodeCall(governance.relay, (address(escrow), 0, fee)), why);
    }

    function test_the_guardian_has_no_other_right() public {
        assertNoRight(guardian);
        bytes memory why = abi.encodeWithSelector(JobMarketplace.NotArbiter.selector, guardian);
        assertRefused(
            guardian, Refusal(address(marketplace), abi.encodeCall(marketplace.resolveDispute, (1, true)), why)
        );
        expectTooFewVotes(guardian, 0);
    }

    function test_the_arbiter_only_arbitrates() public {
        assertNoRight(arbiter);
        bytes memory why = abi.encodeWithSelector(CircuitBreaker.NotGuardian.selector, arbiter);
        assertRefused(arbiter, Refusal(address(marketplace), abi.encodeCall(marketplace.pause, ("")), why));
    }

    function test_a_whale_and_the_deployer_have_no_right() public {
        assertNoRight(whale);
        assertNoRight(address(this));
    }

    /// With a completed job and a queued proposal at hand: there is something to take.
    function assertNoRight(address who) private {
        Proposal memory p = setFee(1);
        p.text = string.concat("beside ", vm.toString(who));
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        awaitEnd(p);
        queue(p);
        completed();
        Power[] memory owned = powers();
        for (uint256 i = 0; i < owned.length; i++) {
            bytes memory why = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, who);
            assertRefused(who, Refusal(owned[i].target, owned[i].call, why));
        }
        Refusal[] memory others = refusals(who);
        for (uint256 i = 0; i < others.length; i++) {
            assertRefused(who, others[i]);
        }
        others = governanceRefusals(who);
        for (uint256 i = 0; i < others.length; i++) {
            assertRefused(who, others[i]);
        }
        bytes memory whyNot = abi.encodeWithSelector(JobMarketplace.OnlyProofSystem.selector, who);
        bytes memory call = abi.encodeCall(marketplace.challengeJob, (1, who, 0));
        assertRefused(who, Refusal(address(marketplace), call, whyNot));
        call = abi.encodeCall(governance.execute, (p.targets, p.values, p.calls, keccak256(bytes(p.text))));
        vm.prank(who);
        (bool done,) = address(governance).call(call);
        vm.assertFalse(done);
    }

    function test_the_timelock_is_its_only_admin() public view {
        bytes32 admin = timelock.DEFAULT_ADMIN_ROLE();
        vm.assertTrue(timelock.hasRole(admin, address(timelock)));
        address[6] memory others = [address(this), guardian, arbiter, voter, address(governance), address(0)];
        for (uint256 i = 0; i < others.length; i++) {
            vm.assertFalse(timelock.hasRole(admin, others[i]));
        }
    }

    function test_governance_changes_itself_only_by_a_proposal() public {
        Proposal memory p = proposal(address(governance), abi.encodeCall(governance.setVotingPeriod, (3 days)));
        passVote(p);
        execute(p);
        vm.assertEq(governance.votingPeriod(), 3 days);
        p = proposal(address(timelock), abi.encodeCall(timelock.updateDelay, (3 days)));
        passVote(p);
        execute(p);
        vm.assertEq(timelock.getMinDelay(), 3 days);
    }

    /// By default the timelock is the treasury.
    function test_the_timelock_spends_only_by_a_proposal() public {
        vm.deal(renter, 3 ether);
        vm.prank(renter);
        (bool taken,) = address(timelock).call{value: 3 ether}("");
        vm.assertTrue(taken);
        fab.transfer(address(timelock), 7);
        Proposal memory p = proposal(address(fab), abi.encodeCall(fab.transfer, (stranger, 5)));
        passVote(p);
        execute(p);
        p = proposal(stranger, "");
        p.values[0] = 2 ether;
        passVote(p);
        execute(p);
        vm.assertEq(fab.balanceOf(stranger), 5);
        vm.assertEq(fab.balanceOf(address(timelock)), 2);
        vm.assertEq(stranger.balance, 2 ether);
        vm.assertEq(address(timelock).balance, 1 ether);
    }

    // The guardian's pause.

    function test_a_pause_stops_posts_and_claims_and_nothing_else() public {
        uint256 posted = post();
        uint256 other = post();
        uint256 claimed = post();
        claim(claimed);
        uint256 done = completed();
        vm.prank(guardian);
        marketplace.pause("key leaked");
        bytes memory stopped = abi.encodeWithSelector(CircuitBreaker.Stopped.selector, 2);
        vm.expectRevert(stopped);
        post();
        vm.expectRevert(stopped);
        claim(posted);
        vm.prank(renter);
        marketplace.cancelJob(other);
        commit(claimed, 5);
        complete(claimed);
        release(done);
        release(claimed);
        marketplace.expireJob(posted);
        vm.assertEq(renter.balance, 98 ether);
        vm.assertEq(host.balance, 1.95 ether);
        vm.assertEq(treasury.balance, 0.05 ether);
    }

    function test_a_pause_ends_by_itself_after_three_days() public {
        uint256 start = block.timestamp;
        vm.prank(guardian);
        marketplace.pause("");
        vm.warp(start + 3 days - 1);
        vm.expectRevert(abi.encodeWithSelector(CircuitBreaker.Stopped.selector, 2));
        post();
        vm.warp(start + 3 days);
        claim(post());
    }

    /// A vote takes longer than a pause: what ends one was queued before.
    function test_governance_ends_a_pause() public {
        Proposal memory p = proposal(address(marketplace), abi.encodeCall(marketplace.unpause, ()));
        passVote(p);
        vm.prank(guardian);
        marketplace.pause("");
        vm.assertEq(marketplace.breakerLevel(), 2);
        vm.expectEmit(address(marketplace));
        emit CircuitBreaker.EmergencyUnpause(address(timelock));
        execute(p);
        vm.assertEq(marketplace.breakerLevel(), 0);
        claim(post());
    }

    /// Proposed when the pause begins, the guardian's removal is executed before the guardian may pause again.
    function test_governance_removes_a_guardian_before_its_next_pause() public {
        uint256 start = block.timestamp;
        vm.prank(guardian);
        marketplace.pause("");
        Proposal memory p = proposal(address(marketplace), abi.encodeCall(marketplace.setGuardian, (guardian, false)));
        passVote(p);
        bytes memory tooSoon =
            abi.encodeWithSelector(CircuitBreaker.PauseTooSoon.selector, start + 17 days, block.timestamp);
        assertRefused(guardian, Refusal(address(marketplace), abi.encodeCall(marketplace.pause, ("")), tooSoon));
        execute(p);
        vm.warp(start + 17 days);
        bytes memory why = abi.encodeWithSelector(CircuitBreaker.NotGuardian.selector, guardian);
        assertRefused(guardian, Refusal(address(marketplace), abi.encodeCall(marketplace.pause, ("")), why));
    }

    /// A host that is voted on cannot leave first.
    function test_a_host_is_slashed_by_a_proposal_though_it_starts_to_leave() public {
        Proposal memory p = proposal(address(registry), abi.encodeCall(registry.slash, (host, 1000e18, "fraud")));
        propose(p);
        vm.prank(host);
        registry.startUnbonding();
        awaitVoting(p);
        vote(p, voter, FOR);
        awaitEnd(p);
        queue(p);
        awaitExecution(p);
        vm.expectRevert(
            abi.encodeWithSelector(
                NodeRegistry.NotUnbonded.selector, host, registry.getNode(host).unbondedAt, block.timestamp
            )
        );
        vm.prank(host);
        registry.unregisterNode();
        execute(p);
        vm.assertEq(registry.getNode(host).stake, 0);
        vm.assertEq(fab.balanceOf(treasury), 1000e18);
    }
}
