// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {CircuitBreaker} from "../../src/CircuitBreaker.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Vm} from "../../test/lib/Vm.sol";
import {Suite} from "./AddressBook.sol";

/// Fetches from the chain the events that give a right, in ranges of at most LOG_RANGE (10 000) blocks, since providers cap
/// them.
abstract contract History {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    /// What `Inspection` wants to see of a suite whose deployment began at `startBlock`, its timelock's at `timelockBlock`.
    function _historyOnChain(Suite memory suite, uint256 startBlock, uint256 timelockBlock)
        internal
        returns (Vm.Log[] memory logs)
    {
        address marketplace = address(suite.marketplace);
        logs = _rolesOnChain(suite.timelock, timelockBlock);
        logs = _joined(logs, _fetch(marketplace, CircuitBreaker.GuardianSet.selector, startBlock));
        logs = _joined(logs, _fetch(marketplace, JobMarketplace.TokenAllowed.selector, startBlock));
        address proofSystem = address(suite.proofSystem);
        logs = _joined(logs, _fetch(proofSystem, ProofSystem.CircuitRegistered.selector, startBlock));
    }

    function _rolesOnChain(TimelockController timelock, uint256 from) internal returns (Vm.Log[] memory) {
        return _fetch(address(timelock), IAccessControl.RoleGranted.selector, from);
    }

    function _joined(Vm.Log[] memory a, Vm.Log[] memory b) internal pure returns (Vm.Log[] memory all) {
        all = new Vm.Log[](a.length + b.length);
        for (uint256 i = 0; i < a.length; i++) {
            all[i] = a[i];
        }
        for (uint256 i = 0; i < b.length; i++) {
            all[a.length + i] = b[i];
        }
    }

    function _fetch(address emitter, bytes32 kind, uint256 from) private returns (Vm.Log[] memory all) {
        uint256 range = vm.envOr("LOG_RANGE", uint256(10_000));
        bytes32[] memory topics = new bytes32[](1);
        topics[0] = kind;
        for (; from <= block.number; from += range) {
            uint256 to = from + range - 1;
            Vm.ChainLog[] memory part = vm.eth_getLogs(from, to < block.number ? to : block.number, emitter, topics);
            Vm.Log[] memory logs = new Vm.Log[](part.length);
            for (uint256 i = 0; i < part.length; i++) {
                logs[i] = Vm.Log(part[i].topics, part[i].data, part[i].emitter);
            }
            all = _joined(all, logs);
        }
    }
}
