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
    }

    function test_the_stake_stays_while_a_job_is_open() public {
        uint256 jobId = post();
        claim(jobId);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.HasOpenJobs.selector, host, 1));
        vm.prank(host);
        registry.unregisterNode();
        commit(jobId, 5);
        complete(jobId);
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
        vm.expectEmit(address(registry));
        emit NodeRegistry.NodeUnregistered(host, STAKE + 7);
        registry.unregisterNode();
        vm.assertFalse(registry.isActive(host));
        vm.assertEq(fab.balanceOf(host), STAKE + 7);
        registry.registerNode("{}");
        vm.assertTrue(registry.isActive(host));
        vm.assertEq(registry.getNode(host).stake, STAKE);
    }
}
