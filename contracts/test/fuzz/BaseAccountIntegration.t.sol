// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IEntryPoint} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {BaseAccountIntegration} from "../../src/BaseAccountIntegration.sol";
import {MarketAccount} from "../../src/MarketAccount.sol";
import {Fuzz} from "../lib/Fuzz.sol";
import {UserOps} from "../lib/UserOps.sol";
import {Vm} from "../lib/Vm.sol";

contract BaseAccountIntegrationFuzz is Fuzz {
    IEntryPoint private entryPoint;
    BaseAccountIntegration private factory;

    function setUp() public override {
        super.setUp();
        entryPoint = UserOps.deployEntryPoint();
        factory = new BaseAccountIntegration(entryPoint);
    }

    /// By anyone, and though somebody sent ETH ahead.
    function testFuzz_createAccount_makes_it_once_where_it_said_for_whom_it_said(
        address who,
        address someone,
        bytes32 salt,
        bool nobody,
        uint96 funds
    ) public {
        (who, someone) = (account(who), nobody ? address(0) : account(someone));
        address predicted = factory.accountOf(someone, salt);
        vm.deal(predicted, funds);
        assertCreates(who, someone, salt, !nobody);
        vm.assertEq(predicted.balance, funds);
        if (nobody) {
            vm.assertEq(predicted.code.length, 0);
            return;
        }
        vm.assertEq(MarketAccount(payable(predicted)).owner(), someone);
        vm.assertEq(address(MarketAccount(payable(predicted)).entryPoint()), address(entryPoint));
        bytes32 codehash = predicted.codehash;
        assertCreates(someone, someone, salt, false);
        vm.assertEq(predicted.codehash, codehash);
        vm.assertEq(MarketAccount(payable(predicted)).owner(), someone);
        vm.assertTrue(factory.accountOf(someone, ~salt) != predicted);
        vm.assertTrue(factory.accountOf(address(~uint160(someone)), salt) != predicted);
    }

    /// That the call makes the account, which the factory logs, or that it makes none and returns the one that is there.
    function assertCreates(address who, address someone, bytes32 salt, bool makes) private {
        address predicted = factory.accountOf(someone, salt);
        vm.recordLogs();
        vm.prank(who);
        (bool ok, bytes memory answer) = address(factory).call(abi.encodeCall(factory.createAccount, (someone, salt)));
        Vm.Log[] memory logs = vm.getRecordedLogs();
        same(ok, someone != address(0));
        if (!ok) {
            vm.assertEq(answer, abi.encodeWithSelector(MarketAccount.NoOwner.selector));
            return;
        }
        vm.assertEq(abi.decode(answer, (address)), predicted);
        uint256 created = 0;
        for (uint256 i = 0; i < logs.length; i++) {
            if (logs[i].emitter != address(factory)) continue;
            vm.assertEq(logs[i].topics[0], BaseAccountIntegration.AccountCreated.selector);
            vm.assertEq(logs[i].topics[1], bytes32(uint256(uint160(predicted))));
            vm.assertEq(logs[i].topics[2], bytes32(uint256(uint160(someone))));
            vm.assertEq(logs[i].data, abi.encode(salt));
            created++;
        }
        vm.assertEq(created, makes ? 1 : 0);
    }
}
