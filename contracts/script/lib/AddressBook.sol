// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {BaseAccountIntegration} from "../../src/BaseAccountIntegration.sol";
import {Governance} from "../../src/Governance.sol";
import {GovernanceToken} from "../../src/GovernanceToken.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {ReputationSystem} from "../../src/ReputationSystem.sol";
import {Vm} from "../../test/lib/Vm.sol";

/// The contracts of one deployment, and the entry point its smart accounts take operations from. `verifier` and `usd` are 0
/// where there is none.
struct Suite {
    GovernanceToken token;
    TimelockController timelock;
    Governance governance;
    NodeRegistry registry;
    PaymentEscrow escrow;
    ProofSystem proofSystem;
    ReputationSystem reputation;
    JobMarketplace marketplace;
    BaseAccountIntegration accounts;
    address entryPoint;
    address verifier;
    address usd;
}

/// The file that says where a deployment put its contracts: JSON, one address a line, null where there is none. The node
/// reads it too.
abstract contract AddressBook {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    error WrongChain(uint256 chainId, uint256 bookChainId);

    /// The book of `suite`, whose deployment began in block `startBlock`.
    function _written(Suite memory suite, uint256 startBlock) internal view returns (string memory) {
        string memory chain = string.concat('{\n  "chain_id": ', vm.toString(block.chainid), ',\n  "block": ');
        string memory core = string.concat(
            _entry("governance_token", address(suite.token)),
            _entry("node_registry", address(suite.registry)),
            _entry("payment_escrow", address(suite.escrow)),
            _entry("job_marketplace", address(suite.marketplace)),
            _entry("proof_system", address(suite.proofSystem)),
            _entry("reputation_system", address(suite.reputation))
        );
        string memory rest = string.concat(
            _entry("governance", address(suite.governance)),
            _entry("timelock", address(suite.timelock)),
            _entry("account_factory", address(suite.accounts)),
            _entry("entry_point", suite.entryPoint),
            _entry("verifier", suite.verifier),
            _entry("usd", suite.usd)
        );
        return string.concat(chain, vm.toString(startBlock), core, rest, "\n}\n");
    }

    /// The suite of a book and the block in which its deployment began.
    function _read(string memory book) internal view returns (Suite memory suite, uint256 startBlock) {
        uint256 chainId = vm.parseJsonUint(book, ".chain_id");
        if (chainId != block.chainid) revert WrongChain(block.chainid, chainId);
        suite.token = GovernanceToken(vm.parseJsonAddress(book, ".governance_token"));
        suite.registry = NodeRegistry(vm.parseJsonAddress(book, ".node_registry"));
        suite.escrow = PaymentEscrow(vm.parseJsonAddress(book, ".payment_escrow"));
        suite.marketplace = JobMarketplace(vm.parseJsonAddress(book, ".job_marketplace"));
        suite.proofSystem = ProofSystem(vm.parseJsonAddress(book, ".proof_system"));
        suite.reputation = ReputationSystem(vm.parseJsonAddress(book, ".reputation_system"));
        suite.governance = Governance(payable(vm.parseJsonAddress(book, ".governance")));
        suite.timelock = TimelockController(payable(vm.parseJsonAddress(book, ".timelock")));
        suite.accounts = BaseAccountIntegration(vm.parseJsonAddress(book, ".account_factory"));
        suite.entryPoint = vm.parseJsonAddress(book, ".entry_point");
        // A null is read as 0.
        suite.verifier = abi.decode(vm.parseJson(book, ".verifier"), (address));
        suite.usd = abi.decode(vm.parseJson(book, ".usd"), (address));
        startBlock = vm.parseJsonUint(book, ".block");
    }

    function _entry(string memory name, address where) private pure returns (string memory) {
        string memory value = where == address(0) ? "null" : string.concat('"', vm.toString(where), '"');
        return string.concat(',\n  "', name, '": ', value);
    }
}
