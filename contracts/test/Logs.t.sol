// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {NodeRegistry} from "../src/NodeRegistry.sol";
import {Fold} from "./lib/Fold.sol";
import {Handler} from "./lib/Handler.sol";

/// No state is hidden: what every getter answers can be rebuilt from the logs alone, from the constructors' on.
contract LogsTest is Handler {
    uint256 private constant ACTIONS = 500;

    Fold private fold;
    address[] private everyone;

    function setUp() public override {
        vm.pauseGasMetering();
        vm.recordLogs();
        super.setUp();
        fold = new Fold(
            address(this),
            [address(registry), address(next)],
            address(escrow),
            address(proofSystem),
            address(reputation),
            address(marketplace)
        );
        everyone = accounts;
        everyone.push(treasury);
        everyone.push(stranger);
        everyone.push(address(0));
    }

    function test_the_logs_of_the_constructors_rebuild_every_getter() public {
        rebuild();
        vm.assertEq(fold.missesForLevel1(), 10);
        vm.assertEq(fold.missesForLevel2(), 30);
        vm.assertEq(fold.feeBps(), FEE_BPS);
        vm.assertEq(fold.challengeBond(), 100e18);
        vm.assertEq(fold.incentiveThreshold(), 700);
        vm.assertEq(fold.registrationsPerWindow(address(registry)), 5);
        vm.assertEq(fold.ownerOf(address(marketplace)), owner);
    }

    function test_the_logs_rebuild_every_getter_1() public {
        run(1);
        vm.assertTrue(jobCount > 10 && paid.length != 0, "a run does something");
    }

    function test_the_logs_rebuild_every_getter_2() public {
        run(2);
        vm.assertTrue(jobCount > 10 && paid.length != 0, "a run does something");
    }

    function test_the_logs_rebuild_every_getter_3() public {
        run(3);
        vm.assertTrue(jobCount > 10 && paid.length != 0, "a run does something");
    }

    function test_the_logs_rebuild_every_getter_4() public {
        run(4);
        vm.assertTrue(jobCount > 10 && paid.length != 0, "a run does something");
    }

    /// forge-config: default.fuzz.runs = 16
    /// forge-config: long.fuzz.runs = 500
    function testFuzz_the_logs_rebuild_every_getter(uint256 seed) public {
        run(seed);
    }

    /// Forge records what refused calls logged, though a chain keeps nothing of them: that must not be folded.
    function calling() internal override {
        if (address(fold) != address(0)) fold.take(vm.getRecordedLogs());
    }

    function called(bool ok) internal override {
        if (!ok) vm.getRecordedLogs();
    }

    function run(uint256 seed) private {
        vm.pauseGasMetering();
        this.tighten();
        for (uint256 i = 0; i < ACTIONS; i++) {
            this.act(uint256(keccak256(abi.encode(seed, i))));
            if (i % 100 == 0) rebuild();
        }
        rebuild();
        // What getters answer changes with time, too.
        for (uint256 week = 1; week < 60; week *= 3) {
            vm.warp(block.timestamp + week * 7 days);
            compareHosts();
            compareBreaker();
        }
    }

    function rebuild() private {
        fold.take(vm.getRecordedLogs());
        compareOwned();
        compareJobs();
        compareHosts();
        compareRegistry(registry);
        compareRegistry(next);
        compareMoney();
        compareBreaker();
        compareCircuits();
    }

    function compareOwned() private view {
        for (uint256 i = 0; i < suite.length; i++) {
            vm.assertEq(NodeRegistry(suite[i]).owner(), fold.ownerOf(suite[i]), "owner");
        }
        vm.assertEq(marketplace.successor(), fold.successorOf(address(marketplace)), "successor");
        vm.assertEq(marketplace.arbiter(), fold.arbiter(), "arbiter");
        vm.assertEq(reputation.incentiveThreshold(), fold.incentiveThreshold(), "incentiveThreshold");
    }

    function compareJobs() private view {
        vm.assertEq(marketplace.jobCount(), fold.jobCount(), "jobCount");
        for (uint256 jobId = 1; jobId <= jobCount; jobId++) {
            vm.assertEq(abi.encode(marketplace.getJob(jobId)), abi.encode(fold.getJob(jobId)), "getJob");
            vm.assertEq(abi.encode(escrow.getEscrow(jobId)), abi.encode(fold.getEscrow(jobId)), "getEscrow");
            vm.assertEq(
                abi.encode(proofSystem.commitmentOf(jobId)), abi.encode(fold.commitmentOf(jobId)), "commitmentOf"
            );
            vm.assertEq(abi.encode(proofSystem.challengeOf(jobId)), abi.encode(fold.challengeOf(jobId)), "challengeOf");
            vm.assertEq(proofSystem.pinnedBeacon(jobId), fold.pinnedBeacon(jobId), "pinnedBeacon");
            vm.assertEq(reputation.ratingOf(jobId), fold.ratingOf(jobId), "ratingOf");
            for (uint256 a = 0; a < accounts.length; a++) {
                vm.assertTrue(marketplace.gaveUp(jobId, accounts[a]) == fold.gaveUp(jobId, accounts[a]), "gaveUp");
            }
        }
    }

    function compareHosts() private view {
        for (uint256 a = 0; a < everyone.length; a++) {
            address host_ = everyone[a];
            vm.assertTrue(registry.isActive(host_) == fold.isActive(address(registry), host_), "isActive");
            vm.assertTrue(next.isActive(host_) == fold.isActive(address(next), host_), "isActive");
            vm.assertEq(abi.encode(reputation.recordOf(host_)), abi.encode(fold.recordOf(host_)), "recordOf");
            uint256 score = fold.scoreOf(host_, block.timestamp);
            vm.assertEq(reputation.scoreOf(host_), score, "scoreOf");
            vm.assertTrue(reputation.isIncentivized(host_) == (score >= fold.incentiveThreshold()), "isIncentivized");
        }
    }

    function compareRegistry(NodeRegistry of_) private view {
        address id = address(of_);
        vm.assertEq(address(of_.successor()), fold.successorOf(id), "successor");
        vm.assertEq(of_.registrationsPerWindow(), fold.registrationsPerWindow(id), "registrationsPerWindow");
        for (uint256 a = 0; a < everyone.length; a++) {
            address who = everyone[a];
            vm.assertEq(abi.encode(of_.getNode(who)), abi.encode(fold.getNode(id, who)), "getNode");
            vm.assertEq(
                abi.encode(of_.registrationsOf(who)), abi.encode(fold.registrationsOf(id, who)), "registrationsOf"
            );
            for (uint256 b = 0; b < everyone.length; b++) {
                vm.assertTrue(of_.approved(who, everyone[b]) == fold.approved(id, who, everyone[b]), "approved");
            }
        }
    }

    function compareMoney() private view {
        vm.assertEq(escrow.feeBps(), fold.feeBps(), "feeBps");
        vm.assertEq(proofSystem.challengeBond(), fold.challengeBond(), "challengeBond");
        address[3] memory tokens = [address(0), address(usd), address(fab)];
        for (uint256 t = 0; t < tokens.length; t++) {
            vm.assertTrue(marketplace.tokenAllowed(tokens[t]) == fold.tokenAllowed(tokens[t]), "tokenAllowed");
            for (uint256 a = 0; a < everyone.length; a++) {
                vm.assertEq(escrow.credits(tokens[t], everyone[a]), fold.credits(tokens[t], everyone[a]), "credits");
            }
        }
    }

    function compareBreaker() private view {
        vm.assertEq(abi.encode(marketplace.breaker()), abi.encode(fold.breaker()), "breaker");
        vm.assertEq(marketplace.breakerLevel(), fold.breakerLevel(block.timestamp), "breakerLevel");
        vm.assertEq(marketplace.missesForLevel1(), fold.missesForLevel1(), "missesForLevel1");
        vm.assertEq(marketplace.missesForLevel2(), fold.missesForLevel2(), "missesForLevel2");
        for (uint256 a = 0; a < everyone.length; a++) {
            vm.assertTrue(marketplace.isGuardian(everyone[a]) == fold.isGuardian(everyone[a]), "isGuardian");
        }
        for (uint256 g = 0; g < guardians.length; g++) {
            vm.assertTrue(marketplace.isGuardian(guardians[g]) == fold.isGuardian(guardians[g]), "isGuardian");
        }
    }

    function compareCircuits() private view {
        bytes32[3] memory ids = [CIRCUIT, CIRCUIT2, bytes32(0)];
        for (uint256 i = 0; i < ids.length; i++) {
            vm.assertEq(abi.encode(proofSystem.circuitOf(ids[i])), abi.encode(fold.circuitOf(ids[i])), "circuitOf");
        }
    }
}
