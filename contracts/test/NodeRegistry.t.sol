// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {NodeRegistry} from "../src/NodeRegistry.sol";
import {World} from "./lib/World.sol";

contract NodeRegistryTest is World {
    uint256 private constant STAKE = 1000e18;

    function test_registering_pulls_the_stake() public {
        fab.transfer(stranger, STAKE);
        vm.startPrank(stranger);
        fab.approve(address(registry), STAKE);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeRegistered(stranger, STAKE, "{}");
        registry.registerNode("{}");
        vm.assertEq(fab.balanceOf(stranger), 0);
        vm.assertEq(registry.getNode(stranger).stake, STAKE);
        vm.assertTrue(registry.isActive(stranger));
    }

    function test_registering_twice_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.AlreadyRegistered.selector, host));
        vm.prank(host);
        registry.registerNode("{}");
    }

    function test_metadata_has_1_to_2048_bytes() public {
        vm.startPrank(host);
        registry.updateMetadata(string(new bytes(2048)));
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.MetadataLengthOutOfRange.selector, 2049, 1, 2048));
        registry.updateMetadata(string(new bytes(2049)));
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.MetadataLengthOutOfRange.selector, 0, 1, 2048));
        registry.updateMetadata("");
    }

    function test_adding_stake() public {
        fab.transfer(host, 5);
        vm.startPrank(host);
        fab.approve(address(registry), 5);
        vm.expectEmit(address(registry));
        emit NodeRegistry.StakeAdded(host, 5);
        registry.addStake(5);
        vm.assertEq(registry.getNode(host).stake, STAKE + 5);
        uint256 room = type(uint128).max - STAKE - 5;
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.StakeOutOfRange.selector, 0, 1, room));
        registry.addStake(0);
    }

    function test_only_hosts_add_stake_update_and_unregister() public {
        bytes memory refusal = abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, stranger);
        vm.startPrank(stranger);
        vm.expectRevert(refusal);
        registry.addStake(1);
        vm.expectRevert(refusal);
        registry.updateMetadata("{}");
        vm.expectRevert(refusal);
        registry.unregisterNode();
    }

    function test_only_the_marketplace_opens_and_closes_jobs() public {
        bytes memory refusal = abi.encodeWithSelector(NodeRegistry.OnlyMarketplace.selector, stranger);
        vm.startPrank(stranger);
        vm.expectRevert(refusal);
        registry.jobOpened(host);
        vm.expectRevert(refusal);
        registry.jobClosed(host);
        vm.expectRevert(refusal);
        registry.jobForfeited(host, stranger, "");
    }

    function test_stake_goes_to_a_treasury() public {
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NoTreasury.selector));
        new NodeRegistry(owner, fab, address(marketplace), address(0), registry);
    }

    function test_the_stake_stays_while_a_job_is_open() public {
        uint256 jobId = post();
        claim(jobId);
        commit(jobId, 5);
        complete(jobId);
        unbond(host);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HasOpenJobs.selector, host, 1));
        vm.prank(host);
        registry.unregisterNode();
        release(jobId);
        vm.prank(host);
        registry.unregisterNode();
        vm.assertEq(fab.balanceOf(host), STAKE);
    }

    function test_a_missed_deadline_frees_the_host() public {
        uint256 jobId = post();
        claim(jobId);
        vm.warp(marketplace.getJob(jobId).deadline);
        marketplace.expireJob(jobId);
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }

    /// Old defect: `unregister` always reverted, or blocked registering again.
    function test_unregistering_returns_everything_and_registering_again_works() public {
        fab.transfer(host, 7);
        vm.startPrank(host);
        fab.approve(address(registry), type(uint256).max);
        registry.addStake(7);
        registry.startUnbonding();
        vm.warp(block.timestamp + registry.UNBONDING_TIME());
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeUnregistered(host, STAKE + 7);
        registry.unregisterNode();
        vm.assertFalse(registry.isActive(host));
        vm.assertEq(fab.balanceOf(host), STAKE + 7);
        registry.registerNode("{}");
        vm.assertTrue(registry.isActive(host));
        vm.assertEq(registry.getNode(host).stake, STAKE);
    }

    // Controllers.

    function registerUnder(address who, address controller) private {
        fab.transfer(who, STAKE);
        vm.startPrank(who);
        fab.approve(address(registry), STAKE);
        registry.registerControlledNode("{}", controller);
        vm.stopPrank();
    }

    function approve(address controller, address who, bool yes) private {
        vm.prank(controller);
        registry.approveHost(who, yes);
    }

    function test_a_host_answers_for_itself_or_under_an_account_that_agreed() public {
        vm.assertEq(registry.getNode(host).controller, host);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotApproved.selector, renter, stranger));
        vm.prank(stranger);
        registry.registerControlledNode("{}", renter);

        vm.expectEmit(address(registry));
        emit NodeRegistry.HostApproved(renter, stranger, true);
        approve(renter, stranger, true);
        fab.transfer(stranger, STAKE);
        vm.startPrank(stranger);
        fab.approve(address(registry), STAKE);
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeRegistered(stranger, STAKE, "{}");
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeController(stranger, renter, uint32(block.timestamp / 1 days));
        registry.registerControlledNode("{}", renter);
        vm.assertEq(registry.getNode(stranger).controller, renter);
    }

    function test_consent_taken_back_binds_the_next_registration_only() public {
        approve(renter, stranger, true);
        registerUnder(stranger, renter);
        vm.expectEmit(address(registry));
        emit NodeRegistry.HostApproved(renter, stranger, false);
        approve(renter, stranger, false);
        vm.assertTrue(registry.isActive(stranger));
        unbond(stranger);
        vm.startPrank(stranger);
        registry.unregisterNode();
        fab.approve(address(registry), STAKE);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotApproved.selector, renter, stranger));
        registry.registerControlledNode("{}", renter);
    }

    function test_consent_is_the_controllers_alone() public {
        approve(host, stranger, true);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotApproved.selector, rival, stranger));
        vm.prank(stranger);
        registry.registerControlledNode("{}", rival);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotApproved.selector, host, renter));
        vm.prank(renter);
        registry.registerControlledNode("{}", host);
    }

    // Registration limits.

    function hostNumber(uint256 i) private pure returns (address) {
        return address(uint160(0xF000 + i));
    }

    /// Old defect: the limit latched for ever.
    function test_the_limit_holds_within_a_window_and_re_opens_by_itself_at_its_border() public {
        uint256 border = (block.timestamp / 1 days + 1) * 1 days;
        uint32 window = uint32(block.timestamp / 1 days);
        for (uint256 i = 0; i < 6; i++) {
            approve(renter, hostNumber(i), true);
        }
        for (uint256 i = 0; i < 5; i++) {
            registerUnder(hostNumber(i), renter);
        }
        NodeRegistry.Registrations memory past = registry.registrationsOf(renter);
        vm.assertEq(past.window, window);
        vm.assertEq(past.count, 5);
        bytes memory refusal = abi.encodeWithSelector(NodeRegistry.TooManyRegistrations.selector, renter, 5);
        vm.prank(hostNumber(5));
        vm.expectRevert(refusal);
        registry.registerControlledNode("{}", renter);
        vm.warp(border - 1);
        vm.prank(hostNumber(5));
        vm.expectRevert(refusal);
        registry.registerControlledNode("{}", renter);

        vm.warp(border);
        registerUnder(hostNumber(5), renter);
        past = registry.registrationsOf(renter);
        vm.assertEq(past.window, window + 1);
        vm.assertEq(past.count, 1);
    }

    function test_a_controllers_limit_is_not_anybody_elses() public {
        vm.prank(owner);
        registry.setRegistrationsPerWindow(1);
        register(stranger);
        approve(stranger, renter, true);
        vm.prank(renter);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.TooManyRegistrations.selector, stranger, 1));
        registry.registerControlledNode("{}", stranger);
        register(renter);
        vm.assertTrue(registry.isActive(renter));
    }

    function test_registering_again_counts_in_its_own_window() public {
        vm.prank(owner);
        registry.setRegistrationsPerWindow(1);
        register(stranger);
        unbond(stranger);
        vm.startPrank(stranger);
        registry.unregisterNode();
        fab.approve(address(registry), STAKE);
        registry.registerNode("{}");
        vm.assertEq(registry.registrationsOf(stranger).count, 1);
        vm.assertEq(registry.registrationsOf(stranger).window, block.timestamp / 1 days);
    }

    function test_the_owner_sets_the_limit_and_it_is_never_0() public {
        vm.expectRevert(notOwner(stranger));
        vm.prank(stranger);
        registry.setRegistrationsPerWindow(9);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.LimitOutOfRange.selector, 0, 1));
        registry.setRegistrationsPerWindow(0);
        vm.expectEmit(address(registry));
        emit NodeRegistry.RegistrationsPerWindowChanged(9);
        registry.setRegistrationsPerWindow(9);
        vm.assertEq(registry.registrationsPerWindow(), 9);
    }

    // Leaving.

    function test_unbonding_stops_claims_at_once_and_returns_the_stake_at_its_end() public {
        uint256 end = block.timestamp + 14 days;
        vm.expectEmit(address(registry));
        emit NodeRegistry.UnbondingStarted(host, uint64(end));
        vm.prank(host);
        registry.startUnbonding();
        vm.assertEq(registry.getNode(host).unbondedAt, end);
        vm.assertFalse(registry.isActive(host));
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HostNotActive.selector, host));
        claim(jobId);

        vm.warp(end - 1);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotUnbonded.selector, host, end, end - 1));
        vm.prank(host);
        registry.unregisterNode();
        vm.warp(end);
        vm.prank(host);
        registry.unregisterNode();
        vm.assertEq(fab.balanceOf(host), STAKE);
        vm.assertEq(abi.encode(registry.getNode(host)), abi.encode(NodeRegistry.Node(0, 0, 0, address(0))));
    }

    function test_nobody_leaves_without_unbonding() public {
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotUnbonded.selector, host, 0, block.timestamp));
        vm.prank(host);
        registry.unregisterNode();
    }

    function test_unbonding_starts_once() public {
        vm.startPrank(host);
        registry.startUnbonding();
        uint256 end = registry.getNode(host).unbondedAt;
        vm.warp(block.timestamp + 1 days);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.AlreadyUnbonding.selector, host, end));
        registry.startUnbonding();
    }

    function test_a_host_that_stays_after_all_claims_again_and_unbonds_from_the_start() public {
        vm.startPrank(host);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotUnbonded.selector, host, 0, block.timestamp));
        registry.cancelUnbonding();
        registry.startUnbonding();
        vm.warp(block.timestamp + 13 days);
        vm.expectEmit(address(registry));
        emit NodeRegistry.UnbondingCancelled(host);
        registry.cancelUnbonding();
        vm.assertTrue(registry.isActive(host));
        registry.startUnbonding();
        vm.assertEq(registry.getNode(host).unbondedAt, block.timestamp + 14 days);
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotRegistered.selector, stranger));
        vm.prank(stranger);
        registry.cancelUnbonding();
    }

    function test_a_leaving_host_completes_what_it_claimed() public {
        uint256 jobId = committed();
        vm.prank(host);
        registry.startUnbonding();
        complete(jobId);
        release(jobId);
        vm.assertEq(host.balance, PRICE - feeOf(PRICE));
        vm.assertEq(registry.getNode(host).openJobs, 0);
    }
}
