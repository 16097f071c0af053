// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {GovernanceToken} from "../src/GovernanceToken.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {Vm} from "../test/lib/Vm.sol";
import {TestUsd} from "./TestUsd.sol";

/// Deploys the suite, wires it, and writes the address book (JSON) to the path in ADDRESS_BOOK.
///
/// From the environment, with defaults: OWNER (the deployer), TREASURY (the deployer), FEE_BPS (250), CHALLENGE_WINDOW
/// (3600 seconds), WITH_VERIFIER (true), CIRCUIT_MANIFEST (0: digest of the circuit's manifest), WITH_TEST_USD (false).
/// The verifier comes from generated/SelectV1J1S2K8.sol, which the prover's set-up writes and `npm run build` compiles.
contract Deploy {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    string private constant VERIFIER = "out/SelectV1J1S2K8.sol/Halo2Verifier.json";

    struct Suite {
        GovernanceToken token;
        NodeRegistry registry;
        PaymentEscrow escrow;
        ProofSystem proofSystem;
        JobMarketplace marketplace;
        address verifier;
        address usd;
    }

    error VerifierNotBuilt(string artifact, string remedy);
    error VerifierNotDeployed(uint256 codeBytes, uint256 codeBytesMax);
    error WiredWrong(string what, address have, address need);

    function run() external {
        string memory book = vm.envString("ADDRESS_BOOK");
        (, address deployer,) = vm.readCallers();
        uint256 startBlock = block.number;
        vm.startBroadcast();
        Suite memory suite = _deploy(deployer);
        _configure(suite, deployer);
        vm.stopBroadcast();
        _verify(suite);
        vm.writeFile(book, _json(suite, startBlock));
    }

    function _deploy(address deployer) private returns (Suite memory suite) {
        suite.token = new GovernanceToken(deployer);
        // The marketplace knows the other three, they know it: it comes fourth from here.
        address marketplace = vm.computeCreateAddress(deployer, vm.getNonce(deployer) + 3);
        suite.registry = new NodeRegistry(suite.token, marketplace);
        suite.escrow = new PaymentEscrow(marketplace, vm.envOr("TREASURY", deployer), vm.envOr("FEE_BPS", uint256(250)));
        suite.proofSystem = new ProofSystem(deployer, JobMarketplace(marketplace));
        suite.marketplace = new JobMarketplace(
            deployer, suite.registry, suite.escrow, suite.proofSystem, vm.envOr("CHALLENGE_WINDOW", uint256(3600))
        );
        if (vm.envOr("WITH_VERIFIER", true)) suite.verifier = _deployVerifier();
        if (vm.envOr("WITH_TEST_USD", false)) suite.usd = address(new TestUsd(deployer));
    }

    function _deployVerifier() private returns (address verifier) {
        bytes memory code;
        try vm.getCode(VERIFIER) returns (bytes memory found) {
            code = found;
        } catch {
            revert VerifierNotBuilt(
                VERIFIER, "write generated/SelectV1J1S2K8.sol with the prover's set-up, then npm run build"
            );
        }
        assembly ("memory-safe") {
            verifier := create(0, add(code, 32), mload(code))
        }
        // EIP-170.
        if (verifier == address(0)) revert VerifierNotDeployed(code.length, 24_576);
    }

    function _configure(Suite memory suite, address deployer) private {
        suite.marketplace.allowToken(address(suite.token), true);
        if (suite.usd != address(0)) suite.marketplace.allowToken(suite.usd, true);
        if (suite.verifier != address(0)) {
            suite.proofSystem
                .registerCircuit(
                    keccak256("select-v1/J1S2K8"),
                    ProofSystem.Circuit({
                        verifier: suite.verifier,
                        codehash: suite.verifier.codehash,
                        spots: 2,
                        candidates: 8,
                        active: true,
                        manifest: vm.envOr("CIRCUIT_MANIFEST", bytes32(0))
                    })
                );
        }
        address owner = vm.envOr("OWNER", deployer);
        if (owner != deployer) {
            suite.marketplace.transferOwnership(owner);
            suite.proofSystem.transferOwnership(owner);
        }
    }

    function _verify(Suite memory suite) private view {
        address marketplace = address(suite.marketplace);
        _same("registry's marketplace", suite.registry.marketplace(), marketplace);
        _same("registry's token", address(suite.registry.token()), address(suite.token));
        _same("escrow's marketplace", suite.escrow.marketplace(), marketplace);
        _same("proof system's marketplace", address(suite.proofSystem.marketplace()), marketplace);
        _same("marketplace's registry", address(suite.marketplace.registry()), address(suite.registry));
        _same("marketplace's escrow", address(suite.marketplace.escrow()), address(suite.escrow));
        _same("marketplace's proof system", address(suite.marketplace.proofSystem()), address(suite.proofSystem));
        address verifier = suite.proofSystem.circuitOf(keccak256("select-v1/J1S2K8")).verifier;
        _same("circuit's verifier", verifier, suite.verifier);
    }

    function _same(string memory what, address have, address need) private pure {
        if (have != need) revert WiredWrong(what, have, need);
    }

    function _json(Suite memory suite, uint256 startBlock) private view returns (string memory) {
        string memory chain = string.concat('{\n  "chain_id": ', vm.toString(block.chainid), ',\n  "block": ');
        string memory core = string.concat(
            _entry("governance_token", address(suite.token)),
            _entry("node_registry", address(suite.registry)),
            _entry("payment_escrow", address(suite.escrow)),
            _entry("job_marketplace", address(suite.marketplace)),
            _entry("proof_system", address(suite.proofSystem))
        );
        string memory rest = string.concat(_entry("verifier", suite.verifier), _entry("usd", suite.usd));
        return string.concat(chain, vm.toString(startBlock), core, rest, "\n}\n");
    }

    function _entry(string memory name, address where) private pure returns (string memory) {
        string memory value = where == address(0) ? "null" : string.concat('"', vm.toString(where), '"');
        return string.concat(',\n  "', name, '": ', value);
    }
}
