// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {World} from "./lib/World.sol";

/// What a host has at stake: for how many jobs it is good, who gets it when the host fails, and how it moves to the
/// registry that follows.
contract StakeTest is World {
    uint256 private constant STAKE = 1000e18;
    uint256 private constant JOB_STAKE = 10e18;

    function addStake(address who, uint256 amount) private {
        fab.transfer(who, amount);
        vm.startPrank(who);
        fab.approve(address(registry), amount);
        registry.addStake(amount);
        vm.stopPrank();
    }

    // Capacity.

    function test_the_stake_is_good_for_one_job_per_job_stake() public {
        vm.startPrank(address(marketplace));
        for (uint256 i = 0; i < STAKE / JOB_STAKE; i++) {
            vm.assertEq(registry.jobOpened(host), host);
        }
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.StakeTooSmall.selector, host, STAKE, STAKE + JOB_STAKE));
        registry.jobOpened(host);
        registry.jobClosed(host);
        registry.jobOpened(host);
        vm.assertEq(registry.getNode(host).openJobs, STAKE / JOB_STAKE);
        vm.stopPrank();

        addStake(host, JOB_STAKE - 1);
        uint256 jobId = post();
        vm.expectRevert(
            abi.encodeWithSelector(NodeRegistry.StakeTooSmall.selector, host, STAKE + JOB_STAKE - 1, STAKE + JOB_STAKE)
        );
        claim(jobId);
        addStake(host, 1);
        claim(jobId);
    }

    function test_a_host_below_the_least_stake_claims_again_once_it_adds_some() public {
        vm.prank(owner);
        registry.slash(host, 1, "fraud");
        vm.assertFalse(registry.isActive(host));
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HostNotActive.selector, host));
        claim(jobId);
        addStake(host, 1);
        vm.assertTrue(registry.isActive(host));
        claim(jobId);
    }

    function test_more_stake_than_fits_is_refused() public {
        uint256 room = type(uint128).max - STAKE;
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.StakeOutOfRange.selector, room + 1, 1, room));
        vm.prank(host);
        registry.addStake(room + 1);
    }

    // Forfeiture.

    function test_a_missed_job_costs_the_job_stake_which_goes_to_the_treasury() public {
        uint256 jobId = post();
        claim(jobId);
        vm.warp(marketplace.getJob(jobId).deadline);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeSlashed(host, JOB_STAKE, "deadline missed");
        vm.prank(stranger);
        marketplace.expireJob(jobId);
        vm.assertEq(registry.getNode(host).stake, STAKE - JOB_STAKE);
        vm.assertEq(registry.getNode(host).openJobs, 0);
        vm.assertEq(fab.balanceOf(treasury), JOB_STAKE);
        vm.assertEq(fab.balanceOf(stranger), 0);
        vm.assertEq(fab.balanceOf(address(registry)), 2 * STAKE - JOB_STAKE);
    }

    function test_who_showed_the_fault_has_half_of_the_job_stake() public {
        vm.startPrank(address(marketplace));
        registry.jobOpened(host);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeSlashed(host, JOB_STAKE, "challenge lost");
        registry.jobForfeited(host, stranger, "challenge lost");
        vm.assertEq(fab.balanceOf(stranger), JOB_STAKE / 2);
        vm.assertEq(fab.balanceOf(treasury), JOB_STAKE / 2);
        vm.assertEq(registry.getNode(host).stake, STAKE - JOB_STAKE);
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }

    function test_a_host_can_lose_every_job_it_may_claim() public {
        vm.startPrank(address(marketplace));
        for (uint256 i = 0; i < 100; i++) {
            registry.jobOpened(host);
        }
        for (uint256 i = 0; i < 100; i++) {
            registry.jobForfeited(host, address(0), "");
        }
        vm.assertEq(registry.getNode(host).stake, 0);
        vm.assertEq(fab.balanceOf(treasury), STAKE);
    }

    // Slashing.

    function test_the_owner_slashes_what_no_open_job_has_at_risk_and_the_treasury_gets_it() public {
        claim(post());
        claim(post());
        uint256 free = STAKE - 2 * JOB_STAKE;
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.StakeOutOfRange.selector, free + 1, 1, free));
        registry.slash(host, free + 1, "fraud");
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.StakeOutOfRange.selector, 0, 1, free));
        registry.slash(host, 0, "fraud");
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeSlashed(host, free, "fraud");
        registry.slash(host, free, "fraud");
        vm.assertEq(registry.getNode(host).stake, 2 * JOB_STAKE);
        vm.assertEq(fab.balanceOf(treasury), free);
        vm.assertEq(fab.balanceOf(owner), 0);
    }

    function test_slashing_is_the_owners_with_a_short_reason_and_of_hosts_only() public {
        vm.expectRevert(notOwner(stranger));
        vm.prank(stranger);
        registry.slash(host, 1, "fraud");
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, stranger));
        registry.slash(stranger, 1, "fraud");
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.ReasonTooLong.selector, 129, 128));
        registry.slash(host, 1, string(new bytes(129)));
        registry.slash(host, 1, string(new bytes(128)));
    }

    function test_a_leaving_host_is_slashed_until_it_is_gone() public {
        unbond(host);
        vm.prank(owner);
        registry.slash(host, 400e18, "fraud");
        vm.prank(host);
        registry.unregisterNode();
        vm.assertEq(fab.balanceOf(host), 600e18);
    }

    // The registry that follows.

    function retired() private returns (NodeRegistry next) {
        next = new NodeRegistry(owner, fab, address(marketplace), treasury, registry);
        vm.expectEmit(address(registry));
        emit NodeRegistry.Retired(address(next));
        vm.prank(owner);
        registry.retire(next);
    }

    function test_retiring_is_the_owners_once_and_for_a_successor_that_knows_it() public {
        NodeRegistry next = new NodeRegistry(owner, fab, address(marketplace), treasury, registry);
        NodeRegistry alien = new NodeRegistry(owner, fab, address(marketplace), treasury, NodeRegistry(stranger));
        vm.expectRevert(notOwner(stranger));
        vm.prank(stranger);
        registry.retire(next);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotASuccessor.selector, stranger));
        registry.retire(NodeRegistry(stranger));
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotASuccessor.selector, address(alien)));
        registry.retire(alien);
        registry.retire(next);
        vm.assertEq(address(registry.successor()), address(next));
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.IsRetired.selector, address(next)));
        registry.retire(next);
    }

    function test_a_retired_registry_takes_no_new_hosts_and_its_hosts_go_on() public {
        NodeRegistry next = retired();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.IsRetired.selector, address(next)));
        vm.prank(stranger);
        registry.registerNode("{}");
        uint256 jobId = completed();
        release(jobId);
        addStake(host, 1);
        unbond(host);
        vm.prank(host);
        registry.unregisterNode();
        vm.assertEq(fab.balanceOf(host), STAKE + 1);
    }

    function test_a_host_moves_its_whole_stake_and_its_controller_without_unbonding() public {
        NodeRegistry next = retired();
        addStake(host, 7);
        vm.expectEmit(address(registry));
        emit NodeRegistry.StakeMoved(host, address(next), STAKE + 7);
        vm.expectEmit(address(next));
        emit NodeRegistry.NodeRegistered(host, STAKE + 7, "{moved}");
        vm.expectEmit(address(next));
        emit NodeRegistry.NodeController(host, host, 0);
        vm.prank(host);
        registry.moveStake("{moved}");
        vm.assertEq(registry.getNode(host).controller, address(0));
        vm.assertEq(abi.encode(next.getNode(host)), abi.encode(NodeRegistry.Node(uint128(STAKE + 7), 0, 0, host)));
        vm.assertEq(fab.balanceOf(address(next)), STAKE + 7);
        vm.assertEq(fab.balanceOf(address(registry)), STAKE);
        vm.assertEq(fab.allowance(address(registry), address(next)), 0);
        vm.assertEq(next.registrationsOf(host).count, 0);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, host));
        vm.prank(host);
        registry.moveStake("{moved}");
    }

    function test_a_slashed_or_leaving_host_moves_what_it_has() public {
        NodeRegistry next = retired();
        vm.prank(owner);
        registry.slash(host, STAKE, "fraud");
        vm.startPrank(host);
        registry.startUnbonding();
        registry.moveStake("{}");
        vm.assertEq(abi.encode(next.getNode(host)), abi.encode(NodeRegistry.Node(0, 0, 0, host)));
        vm.assertFalse(next.isActive(host));
    }

    function test_stake_moves_only_from_a_retired_registry_without_open_jobs_to_a_place_that_is_free() public {
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRetired.selector));
        vm.prank(host);
        registry.moveStake("{}");
        uint256 jobId = completed();
        NodeRegistry next = retired();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HasOpenJobs.selector, host, 1));
        vm.prank(host);
        registry.moveStake("{}");
        release(jobId);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.MetadataLengthOutOfRange.selector, 0, 1, 2048));
        vm.prank(host);
        registry.moveStake("");
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, stranger));
        vm.prank(stranger);
        registry.moveStake("{}");

        fab.transfer(host, STAKE);
        vm.startPrank(host);
        fab.approve(address(next), STAKE);
        next.registerNode("{}");
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.AlreadyRegistered.selector, host));
        registry.moveStake("{}");
    }

    function test_only_the_predecessor_brings_hosts() public {
        NodeRegistry next = retired();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.OnlyPredecessor.selector, owner));
        vm.prank(owner);
        next.acceptStake(host, host, 1, "{}");
        // Without a predecessor nobody does: no caller is the zero address but one that a test makes up.
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.OnlyPredecessor.selector, stranger));
        vm.prank(stranger);
        registry.acceptStake(stranger, stranger, 1, "{}");
    }

    function test_a_marketplace_retires_once_and_its_jobs_end_by_the_same_rules() public {
        uint256 jobId = committed();
        vm.expectRevert(notOwner(stranger));
        vm.prank(stranger);
        marketplace.retire(address(escrow));
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.NotASuccessor.selector, stranger));
        marketplace.retire(stranger);
        vm.expectEmit(address(marketplace));
        emit JobMarketplace.Retired(address(escrow));
        marketplace.retire(address(escrow));
        vm.assertEq(marketplace.successor(), address(escrow));
        bytes memory refusal = abi.encodeWithSelector(JobMarketplace.IsRetired.selector, address(escrow));
        vm.expectRevert(refusal);
        marketplace.retire(address(registry));
        vm.stopPrank();

        vm.startPrank(renter);
        vm.expectRevert(refusal);
        marketplace.postJob{value: PRICE}(details(), requirements(), PRICE);
        vm.expectRevert(refusal);
        marketplace.postJobWithToken(details(), requirements(), address(usd), 1);
        vm.expectRevert(refusal);
        marketplace.postJobs{value: PRICE}(posting(address(0), PRICE, address(0)));
        vm.stopPrank();
        complete(jobId);
        release(jobId);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
    }
}
