// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Vm} from "../test/lib/Vm.sol";
import {Suite} from "./lib/AddressBook.sol";
import {Settings} from "./lib/Configuration.sol";
import {History} from "./lib/History.sol";
import {Inspection} from "./lib/Inspection.sol";

/// Reads the address book at ADDRESS_BOOK and checks that the contracts on the chain are what this checkout deploys with the
/// environment's settings (`Configuration`). Sends nothing.
///
///     ADDRESS_BOOK=addresses.json npm run check-deployment -- --rpc-url URL --sender DEPLOYER
contract Check is Inspection, History {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    function run() external {
        (Suite memory suite, uint256 startBlock) = _read(vm.readFile(vm.envString("ADDRESS_BOOK")));
        (, address deployer,) = vm.readCallers();
        Settings memory settings = _settings(deployer);
        bool kept = address(settings.predecessor.timelock) != address(0);
        uint256 timelockBlock = kept ? settings.timelockBlock : startBlock;
        _inspect(suite, settings, _historyOnChain(suite, startBlock, timelockBlock));
    }
}
