// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IEntryPoint} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {BaseAccountIntegration} from "../src/BaseAccountIntegration.sol";
import {Governance} from "../src/Governance.sol";
import {GovernanceToken} from "../src/GovernanceToken.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {Vm} from "../test/lib/Vm.sol";
import {TestUsd} from "./TestUsd.sol";
import {Suite} from "./lib/AddressBook.sol";
import {Settings} from "./lib/Configuration.sol";
import {History} from "./lib/History.sol";
import {Inspection} from "./lib/Inspection.sol";

/// Deploys the suite, wires it, hands it to the timelock, checks it as `Check` does, and writes the address book (JSON) to
/// the path in ADDRESS_BOOK. The settings are `Configuration`'s.
///
/// The script runs before it is broadcast: what it writes and has checked is where the contracts will be. `Check` reads
/// them from the chain.
contract Deploy is Inspection, History {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    /// The one that is on every public chain, as its makers publish it.
    string private constant ENTRY_POINT = "node_modules/@account-abstraction/contracts/artifacts/EntryPoint.json";

    error VerifierNotBuilt(string artifact, string remedy);
    error VerifierNotDeployed(uint256 codeBytes, uint256 codeBytesMax);

    function run() external {
        string memory book = vm.envString("ADDRESS_BOOK");
        (, address deployer,) = vm.readCallers();
        uint256 startBlock = block.number;
        Settings memory settings = _settings(deployer);
        TimelockController kept = settings.predecessor.timelock;
        Vm.Log[] memory past =
            address(kept) == address(0) ? new Vm.Log[](0) : _rolesOnChain(kept, settings.timelockBlock);
        vm.recordLogs();
        vm.startBroadcast();
        Suite memory suite = _deploy(settings, deployer);
        vm.stopBroadcast();
        _inspect(suite, settings, _joined(past, vm.getRecordedLogs()));
        vm.writeFile(book, _written(suite, startBlock));
    }

    /// Deploys with resolved settings. The deployer owns what it must configure, until `_handOver`.
    function _deploy(Settings memory settings, address deployer) internal returns (Suite memory suite) {
        Suite memory past = settings.predecessor;
        if (address(past.timelock) == address(0)) {
            _deployGovernance(suite, settings, deployer);
        } else {
            (suite.token, suite.timelock, suite.governance) = (past.token, past.timelock, past.governance);
        }
        _deployCore(suite, settings, deployer);
        _deployRest(suite, settings, deployer);
        _configure(suite, settings);
        _handOver(suite);
    }

    /// The timelock has no admin but itself from the start, and governance alone proposes.
    function _deployGovernance(Suite memory suite, Settings memory settings, address deployer) private {
        suite.token = new GovernanceToken(settings.fabHolder);
        address[] memory proposers = new address[](1);
        proposers[0] = vm.computeCreateAddress(deployer, vm.getNonce(deployer) + 1);
        // Executor 0: anyone may execute what has waited.
        suite.timelock = new TimelockController(2 days, proposers, new address[](1), address(0));
        suite.governance = new Governance(suite.token, suite.timelock);
    }

    function _deployCore(Suite memory suite, Settings memory settings, address deployer) private {
        Suite memory past = settings.predecessor;
        address treasury = _treasury(settings, suite);
        address owner = address(suite.timelock);
        // The marketplace knows the other four, they know it: it comes fifth from here.
        address marketplace = vm.computeCreateAddress(deployer, vm.getNonce(deployer) + 4);
        suite.registry = new NodeRegistry(owner, suite.token, marketplace, treasury, past.registry);
        suite.escrow = new PaymentEscrow(owner, marketplace, treasury, uint16(settings.feeBps));
        suite.proofSystem = new ProofSystem(deployer, JobMarketplace(marketplace), suite.token, treasury);
        suite.reputation = new ReputationSystem(owner, JobMarketplace(marketplace), past.reputation);
        suite.marketplace = new JobMarketplace(
            deployer, suite.registry, suite.escrow, suite.proofSystem, suite.reputation, settings.challengeWindow
        );
    }

    /// What the core does not know of, and no nonce above depends on.
    function _deployRest(Suite memory suite, Settings memory settings, address deployer) private {
        suite.accounts = settings.predecessor.accounts;
        suite.entryPoint = settings.predecessor.entryPoint;
        if (address(suite.accounts) == address(0)) {
            suite.entryPoint = settings.withEntryPoint ? _deployEntryPoint() : settings.entryPoint;
            suite.accounts = new BaseAccountIntegration(IEntryPoint(suite.entryPoint));
        }
        if (settings.withVerifier) suite.verifier = _deployVerifier(settings.verifierArtifact);
        suite.usd = settings.withTestUsd ? address(new TestUsd(deployer)) : settings.usd;
    }

    function _deployEntryPoint() private returns (address entryPoint) {
        bytes memory code = vm.getCode(ENTRY_POINT);
        assembly ("memory-safe") {
            entryPoint := create(0, add(code, 32), mload(code))
        }
    }

    function _deployVerifier(string memory artifact) private returns (address verifier) {
        bytes memory code;
        try vm.getCode(artifact) returns (bytes memory found) {
            code = found;
        } catch {
            revert VerifierNotBuilt(
                artifact, "write generated/SelectV1J1S2K8.sol with the prover's set-up, then npm run build"
            );
        }
        assembly ("memory-safe") {
            verifier := create(0, add(code, 32), mload(code))
        }
        // EIP-170.
        if (verifier == address(0)) revert VerifierNotDeployed(code.length, 24_576);
    }

    function _configure(Suite memory suite, Settings memory settings) private {
        suite.marketplace.allowToken(address(suite.token), true);
        if (suite.usd != address(0)) suite.marketplace.allowToken(suite.usd, true);
        suite.marketplace.setArbiter(settings.arbiter);
        suite.marketplace.setGuardian(settings.guardian, true);
        if (!settings.withVerifier) return;
        suite.proofSystem.registerCircuit(CIRCUIT_ID, _testCircuit(suite.verifier, settings.manifest));
    }

    /// From here on only a passed and queued proposal changes anything.
    function _handOver(Suite memory suite) private {
        suite.proofSystem.transferOwnership(address(suite.timelock));
        suite.marketplace.transferOwnership(address(suite.timelock));
    }
}
