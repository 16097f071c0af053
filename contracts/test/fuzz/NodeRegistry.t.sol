// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {Fuzz} from "../lib/Fuzz.sol";

contract NodeRegistryFuzz is Fuzz {
    uint256 private constant STAKE = 1000e18;
    uint256 private constant JOB_STAKE = 10e18;

    function fund(address who, uint256 amount) private {
        fab.transfer(who, amount);
        vm.prank(who);
        fab.approve(address(registry), amount);
    }

    function openJobs(uint256 count) private {
        vm.startPrank(address(marketplace));
        for (uint256 i = 0; i < count; i++) {
            registry.jobOpened(host);
        }
        vm.stopPrank();
    }

    function retired() private returns (NodeRegistry next) {
        next = new NodeRegistry(owner, fab, address(marketplace), treasury, registry);
        vm.prank(owner);
        registry.retire(next);
    }

    function testFuzz_registerNode_takes_the_stake_of_whoever_is_not_registered(
        address who,
        bool again,
        uint16 metadataBytes,
        uint256 balance
    ) public {
        who = oneOr(host, who, again);
        metadataBytes = uint16(bound(metadataBytes, 0, 2100));
        balance = bound(balance, 0, 2 * STAKE);
        fund(who, balance);
        bool fits = !again && metadataBytes != 0 && metadataBytes <= 2048 && balance >= STAKE;
        bytes memory data = abi.encodeCall(registry.registerNode, (string(new bytes(metadataBytes))));
        same(tries(who, address(registry), data), fits);
        vm.assertEq(fab.balanceOf(who), fits ? balance - STAKE : balance);
        same(registry.isActive(who), fits || again);
        if (fits) vm.assertEq(registry.getNode(who).controller, who);
    }

    function testFuzz_registerControlledNode_takes_the_controllers_consent(
        address who,
        address controller,
        bool agreed,
        address other
    ) public {
        (who, controller, other) = (account(who), account(controller), account(other));
        vm.assume(other != controller);
        vm.prank(agreed ? controller : other);
        registry.approveHost(who, true);
        fund(who, STAKE);
        bytes memory data = abi.encodeCall(registry.registerControlledNode, ("{}", controller));
        same(tries(who, address(registry), data), agreed);
        vm.assertEq(registry.getNode(who).controller, agreed ? controller : address(0));
        vm.assertEq(registry.registrationsOf(controller).count, agreed ? 1 : 0);
    }

    function testFuzz_approveHost_speaks_for_its_sender_only(address who, address other, address node, bool yes)
        public
    {
        (who, other) = (account(who), account(other));
        vm.assume(who != other);
        same(tries(who, address(registry), abi.encodeCall(registry.approveHost, (node, yes))), true);
        same(registry.approved(who, node), yes);
        same(registry.approved(other, node), false);
    }

    function testFuzz_addStake_adds_exactly_what_a_host_pays(address who, bool byHost, uint128 amount, uint128 balance)
        public
    {
        who = oneOr(host, who, byHost);
        uint256 paid = bound(amount, 0, 1e24);
        uint256 has = bound(balance, 0, 1e24);
        fund(who, has);
        bool fits = byHost && paid != 0 && paid <= has;
        same(tries(who, address(registry), abi.encodeCall(registry.addStake, (paid))), fits);
        vm.assertEq(registry.getNode(host).stake, fits ? STAKE + paid : STAKE);
        vm.assertEq(fab.balanceOf(address(registry)), 2 * STAKE + (fits ? paid : 0));
    }

    function testFuzz_updateMetadata_is_a_hosts_with_1_to_2048_bytes(address who, bool byHost, uint16 bytes_) public {
        who = oneOr(host, who, byHost);
        bytes_ = uint16(bound(bytes_, 0, 2100));
        bytes memory data = abi.encodeCall(registry.updateMetadata, (string(new bytes(bytes_))));
        same(tries(who, address(registry), data), byHost && bytes_ != 0 && bytes_ <= 2048);
    }

    function testFuzz_startUnbonding_is_a_hosts_once(address who, bool byHost, uint32 later) public {
        who = oneOr(host, who, byHost);
        vm.warp(block.timestamp + later);
        bytes memory data = abi.encodeCall(registry.startUnbonding, ());
        same(tries(who, address(registry), data), byHost);
        vm.assertEq(registry.getNode(who).unbondedAt, byHost ? block.timestamp + 14 days : 0);
        same(tries(who, address(registry), data), false);
        same(registry.isActive(host), !byHost);
    }

    function testFuzz_cancelUnbonding_is_a_hosts_that_is_leaving(address who, bool byHost, bool leaving, uint32 later)
        public
    {
        who = oneOr(host, who, byHost);
        if (leaving) {
            vm.prank(host);
            registry.startUnbonding();
        }
        vm.warp(block.timestamp + later);
        bool fits = byHost && leaving;
        same(tries(who, address(registry), abi.encodeCall(registry.cancelUnbonding, ())), fits);
        same(registry.isActive(host), !leaving || fits);
    }

    function testFuzz_unregisterNode_returns_the_stake_after_unbonding_when_no_job_is_open(
        address who,
        bool byHost,
        bool leaving,
        uint32 later,
        uint128 more,
        uint8 jobs
    ) public {
        who = oneOr(host, who, byHost);
        uint256 extra = bound(more, 1, 1e24);
        fund(host, extra);
        vm.prank(host);
        registry.addStake(extra);
        openJobs(jobs % 3);
        if (leaving) {
            vm.prank(host);
            registry.startUnbonding();
        }
        uint256 passed = bound(later, 0, 28 days);
        vm.warp(block.timestamp + passed);
        bool fits = byHost && leaving && passed >= 14 days && jobs % 3 == 0;
        same(tries(who, address(registry), abi.encodeCall(registry.unregisterNode, ())), fits);
        vm.assertEq(fab.balanceOf(host), fits ? STAKE + extra : 0);
        vm.assertEq(registry.getNode(host).stake, fits ? 0 : STAKE + extra);
    }

    function testFuzz_moveStake_moves_all_of_it_once_retired_when_no_job_is_open(
        address who,
        bool byHost,
        bool retires,
        uint8 jobs,
        uint128 more
    ) public {
        who = oneOr(host, who, byHost);
        uint256 extra = bound(more, 1, 1e24);
        fund(host, extra);
        vm.prank(host);
        registry.addStake(extra);
        openJobs(jobs % 3);
        NodeRegistry next = retires ? retired() : NodeRegistry(address(0));
        bool fits = byHost && retires && jobs % 3 == 0;
        same(tries(who, address(registry), abi.encodeCall(registry.moveStake, ("{}"))), fits);
        vm.assertEq(registry.getNode(host).stake, fits ? 0 : STAKE + extra);
        vm.assertEq(fab.balanceOf(address(registry)), fits ? STAKE : 2 * STAKE + extra);
        if (!fits) return;
        vm.assertEq(next.getNode(host).stake, STAKE + extra);
        vm.assertEq(fab.balanceOf(address(next)), STAKE + extra);
    }

    function testFuzz_acceptStake_is_the_predecessors(address who, bool byPredecessor, address node, uint128 amount)
        public
    {
        NodeRegistry next = retired();
        who = byPredecessor ? address(registry) : account(who);
        node = account(node);
        amount = uint128(bound(amount, 0, 2 * STAKE));
        vm.prank(address(registry));
        fab.approve(address(next), amount);
        bytes memory data = abi.encodeCall(next.acceptStake, (node, node, amount, "{}"));
        same(tries(who, address(next), data), byPredecessor);
        vm.assertEq(next.getNode(node).stake, byPredecessor ? amount : 0);
        vm.assertEq(fab.balanceOf(address(next)), byPredecessor ? amount : 0);
    }

    function testFuzz_jobOpened_is_the_marketplaces_for_what_the_stake_is_good_for(
        address who,
        bool byMarketplace,
        address node,
        bool known,
        uint8 jobs
    ) public {
        who = byMarketplace ? address(marketplace) : account(who);
        node = oneOr(host, node, known);
        uint256 had = bound(jobs, 98, 100);
        openJobs(had);
        bool fits = byMarketplace && node == host && had < STAKE / JOB_STAKE;
        same(tries(who, address(registry), abi.encodeCall(registry.jobOpened, (node))), fits);
        vm.assertEq(registry.getNode(host).openJobs, fits ? had + 1 : had);
    }

    function testFuzz_jobClosed_is_the_marketplaces_and_never_more_than_were_opened(
        address who,
        bool byMarketplace,
        uint8 jobs
    ) public {
        who = byMarketplace ? address(marketplace) : account(who);
        openJobs(jobs % 3);
        bool fits = byMarketplace && jobs % 3 != 0;
        same(tries(who, address(registry), abi.encodeCall(registry.jobClosed, (host))), fits);
        vm.assertEq(registry.getNode(host).openJobs, fits ? jobs % 3 - 1 : jobs % 3);
        vm.assertEq(registry.getNode(host).stake, STAKE);
    }

    function testFuzz_jobForfeited_takes_one_job_stake_and_gives_half_to_whom_it_is_told(
        address who,
        bool byMarketplace,
        address reward,
        bool nobody,
        uint8 jobs
    ) public {
        who = byMarketplace ? address(marketplace) : account(who);
        reward = nobody ? address(0) : account(reward);
        vm.assume(reward != address(registry) && reward != treasury && reward != address(this));
        openJobs(jobs % 3);
        bool fits = byMarketplace && jobs % 3 != 0;
        same(tries(who, address(registry), abi.encodeCall(registry.jobForfeited, (host, reward, "why"))), fits);
        vm.assertEq(registry.getNode(host).stake, fits ? STAKE - JOB_STAKE : STAKE);
        uint256 share = fits && !nobody ? JOB_STAKE / 2 : 0;
        if (!nobody) vm.assertEq(fab.balanceOf(reward), share);
        vm.assertEq(fab.balanceOf(treasury), fits ? JOB_STAKE - share : 0);
    }

    function testFuzz_slash_is_the_owners_and_takes_the_free_stake_at_most(
        address who,
        bool byOwner,
        uint8 jobs,
        uint256 amount,
        uint8 reasonBytes
    ) public {
        who = oneOr(owner, who, byOwner);
        openJobs(jobs % 101);
        amount = bound(amount, 0, 2 * STAKE);
        uint256 free = STAKE - uint256(jobs % 101) * JOB_STAKE;
        bool fits = byOwner && amount != 0 && amount <= free && reasonBytes <= 128;
        bytes memory data = abi.encodeCall(registry.slash, (host, amount, string(new bytes(reasonBytes))));
        same(tries(who, address(registry), data), fits);
        vm.assertEq(registry.getNode(host).stake, fits ? STAKE - amount : STAKE);
        vm.assertEq(fab.balanceOf(treasury), fits ? amount : 0);
    }

    function testFuzz_setRegistrationsPerWindow_is_the_owners_and_holds(address who, bool byOwner, uint32 limit)
        public
    {
        who = oneOr(owner, who, byOwner);
        limit = uint32(bound(limit, 0, 6));
        bool fits = byOwner && limit != 0;
        same(tries(who, address(registry), abi.encodeCall(registry.setRegistrationsPerWindow, (limit))), fits);
        uint256 holds = fits ? limit : 5;
        vm.assertEq(registry.registrationsPerWindow(), holds);
        for (uint256 i = 0; i < 6; i++) {
            address node = address(uint160(0xF0000 + i));
            vm.prank(stranger);
            registry.approveHost(node, true);
            fund(node, STAKE);
            bytes memory data = abi.encodeCall(registry.registerControlledNode, ("{}", stranger));
            same(tries(node, address(registry), data), i < holds);
        }
    }

    function testFuzz_retire_is_the_owners_once_for_a_registry_that_follows_it(
        address who,
        bool byOwner,
        bool follows,
        address other
    ) public {
        who = oneOr(owner, who, byOwner);
        NodeRegistry before = follows ? registry : NodeRegistry(account(other));
        NodeRegistry next = new NodeRegistry(owner, fab, address(marketplace), treasury, before);
        bool fits = byOwner && follows;
        bytes memory data = abi.encodeCall(registry.retire, (next));
        same(tries(who, address(registry), data), fits);
        vm.assertEq(address(registry.successor()), fits ? address(next) : address(0));
        if (fits) same(tries(who, address(registry), data), false);
    }

    function testFuzz_transferOwnership_is_the_owners(address who, bool byOwner, address next) public {
        who = oneOr(owner, who, byOwner);
        next = account(next);
        same(tries(who, address(registry), abi.encodeCall(registry.transferOwnership, (next))), byOwner);
        vm.assertEq(registry.owner(), byOwner ? next : owner);
    }

    function testFuzz_renounceOwnership_is_the_owners(address who, bool byOwner) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(registry), abi.encodeCall(registry.renounceOwnership, ())), byOwner);
        vm.assertEq(registry.owner(), byOwner ? address(0) : owner);
    }
}
