// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {Governance} from "../../src/Governance.sol";
import {World} from "./World.sol";

/// The world, owned by a real timelock under a real governance, with a voter who can pass what it likes.
abstract contract Governed is World {
    struct Proposal {
        address[] targets;
        uint256[] values;
        bytes[] calls;
        string text;
        uint256 id;
    }

    uint8 internal constant AGAINST = 0;
    uint8 internal constant FOR = 1;
    uint8 internal constant ABSTAIN = 2;

    TimelockController internal timelock;
    Governance internal governance;
    address internal voter = address(0x0E1);

    function setUp() public virtual override {
        super.setUp();
        address[] memory proposers = new address[](1);
        proposers[0] = vm.computeCreateAddress(address(this), vm.getNonce(address(this)) + 1);
        timelock = new TimelockController(2 days, proposers, new address[](1), address(0));
        governance = new Governance(fab, timelock);
        vm.assertEq(address(governance), proposers[0]);
        vm.startPrank(owner);
        marketplace.transferOwnership(address(timelock));
        registry.transferOwnership(address(timelock));
        escrow.transferOwnership(address(timelock));
        proofSystem.transferOwnership(address(timelock));
        reputation.transferOwnership(address(timelock));
        vm.stopPrank();
        owner = address(timelock);
        giveVotes(voter, 50_000_000e18);
    }

    /// Gives `who` tokens that it votes with, and lets a second pass so that they count.
    function giveVotes(address who, uint256 amount) internal {
        fab.transfer(who, amount);
        vm.prank(who);
        fab.delegate(who);
        vm.warp(block.timestamp + 1);
    }

    /// A proposal of one call, not yet proposed.
    function proposal(address target, bytes memory call) internal pure returns (Proposal memory p) {
        p.targets = new address[](1);
        p.values = new uint256[](1);
        p.calls = new bytes[](1);
        (p.targets[0], p.calls[0], p.text) = (target, call, "proposal");
    }

    function propose(Proposal memory p) internal {
        vm.prank(voter);
        p.id = governance.propose(p.targets, p.values, p.calls, p.text);
    }

    /// From the proposal until its voting begins.
    function awaitVoting(Proposal memory p) internal {
        vm.warp(governance.proposalSnapshot(p.id) + 1);
    }

    function vote(Proposal memory p, address who, uint8 support) internal {
        vm.prank(who);
        governance.castVote(p.id, support);
    }

    function awaitEnd(Proposal memory p) internal {
        vm.warp(governance.proposalDeadline(p.id) + 1);
    }

    function queue(Proposal memory p) internal {
        governance.queue(p.targets, p.values, p.calls, keccak256(bytes(p.text)));
    }

    function awaitExecution(Proposal memory p) internal {
        vm.warp(governance.proposalEta(p.id));
    }

    function execute(Proposal memory p) internal {
        governance.execute(p.targets, p.values, p.calls, keccak256(bytes(p.text)));
    }

    /// Everything up to the moment in which anyone may execute.
    function passVote(Proposal memory p) internal {
        propose(p);
        awaitVoting(p);
        vote(p, voter, FOR);
        awaitEnd(p);
        queue(p);
        awaitExecution(p);
    }
}
