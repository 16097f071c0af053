// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ProofSystem} from "../../src/ProofSystem.sol";
import {Vm} from "../../test/lib/Vm.sol";
import {AddressBook, Suite} from "./AddressBook.sol";

/// What a deployment is made with. As read from the environment an account is 0 where none was named; `_resolved` fills in.
struct Settings {
    /// Gets the fees and the slashed stakes; 0 for the timelock.
    address treasury;
    address arbiter;
    address guardian;
    /// Gets the whole supply of FAB.
    address fabHolder;
    uint256 feeBps;
    uint256 challengeWindow;
    bool withVerifier;
    bool allowTestCircuit;
    /// Digest of the test circuit's manifest.
    bytes32 manifest;
    /// Artifact of the test circuit's verifier.
    string verifierArtifact;
    bool withTestUsd;
    /// The token with six decimals that may pay for jobs; 0 for none.
    address usd;
    address entryPoint;
    /// Whether to deploy an entry point for local use, instead.
    bool withEntryPoint;
    /// The suite that this one replaces, all zero when there is none. Its FAB, timelock and governance stay.
    Suite predecessor;
    /// Block from which the log of the predecessor's timelock is read.
    uint256 timelockBlock;
}

/// Reads the settings of a deployment from the environment and refuses what must not be deployed.
///
/// For every chain, with defaults: TREASURY (the timelock), ARBITER and GUARDIAN (the deployer on a local chain; to be named on
/// any other), FAB_HOLDER (the deployer), FEE_BPS (250), CHALLENGE_WINDOW (3600 seconds), USD (Circle's USDC on Base and Base
/// Sepolia, elsewhere the predecessor's or none), ENTRY_POINT (the ERC-4337 entry point v0.8), WITH_VERIFIER (true), CIRCUIT_MANIFEST (0),
/// PREDECESSOR (path of the address book of the suite to replace; none), and with it FROM_BLOCK (the book's: the block in which the timelock
/// was deployed, if a suite before made it).
/// For local chains: WITH_TEST_USD (false), WITH_ENTRY_POINT (false). For Base Sepolia: ALLOW_TEST_CIRCUIT (false).
abstract contract Configuration is AddressBook {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant LOCAL = 31337;
    uint256 internal constant BASE = 8453;
    uint256 internal constant BASE_SEPOLIA = 84532;
    /// Source: https://developers.circle.com/stablecoins/usdc-contract-addresses
    address internal constant USDC_BASE = 0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913;
    address internal constant USDC_BASE_SEPOLIA = 0x036CbD53842c5426634e7929541eC2318f3dCF7e;
    /// Source: https://github.com/eth-infinitism/account-abstraction/releases/tag/v0.8.0
    address internal constant ENTRY_POINT_V08 = 0x4337084D9E255Ff0702461CF8895CE9E3b5Ff108;
    /// EZKL's verifier of the circuit that the prover's set-up makes; `npm run build` compiles it.
    string internal constant VERIFIER = "out/SelectV1J1S2K8.sol/Halo2Verifier.json";
    bytes32 internal constant CIRCUIT_ID = keccak256("select-v1/J1S2K8");
    uint256 internal constant FEE_MAX_BPS = 1000;
    uint256 internal constant WINDOW_MAX = 30 days;

    error SettingMissing(string name, uint256 chainId, string remedy);
    error SettingRefused(string name, uint256 chainId, string why, string remedy);
    error SettingOutOfRange(string name, uint256 given, uint256 max);
    error NoCodeAt(string name, address where, uint256 chainId, string remedy);

    /// The settings from the environment, for a deployment by `deployer`.
    function _settings(address deployer) internal view returns (Settings memory) {
        Settings memory given;
        given.treasury = vm.envOr("TREASURY", address(0));
        given.arbiter = vm.envOr("ARBITER", address(0));
        given.guardian = vm.envOr("GUARDIAN", address(0));
        given.fabHolder = vm.envOr("FAB_HOLDER", address(0));
        given.feeBps = vm.envOr("FEE_BPS", uint256(250));
        given.challengeWindow = vm.envOr("CHALLENGE_WINDOW", uint256(3600));
        given.withVerifier = vm.envOr("WITH_VERIFIER", true);
        given.allowTestCircuit = vm.envOr("ALLOW_TEST_CIRCUIT", false);
        given.manifest = vm.envOr("CIRCUIT_MANIFEST", bytes32(0));
        given.verifierArtifact = VERIFIER;
        given.withTestUsd = vm.envOr("WITH_TEST_USD", false);
        given.usd = vm.envOr("USD", address(0));
        given.entryPoint = vm.envOr("ENTRY_POINT", ENTRY_POINT_V08);
        given.withEntryPoint = vm.envOr("WITH_ENTRY_POINT", false);
        string memory predecessor = vm.envOr("PREDECESSOR", string(""));
        if (bytes(predecessor).length != 0) {
            (given.predecessor, given.timelockBlock) = _read(vm.readFile(predecessor));
            given.timelockBlock = vm.envOr("FROM_BLOCK", given.timelockBlock);
        }
        return _resolved(given, deployer);
    }

    /// `given` with the defaults of this chain filled in. Reverts when it must not be deployed here.
    function _resolved(Settings memory given, address deployer) internal view returns (Settings memory) {
        bool local = block.chainid == LOCAL;
        if (given.arbiter == address(0)) given.arbiter = _localOnly("ARBITER", deployer);
        if (given.guardian == address(0)) given.guardian = _localOnly("GUARDIAN", deployer);
        if (given.fabHolder == address(0)) given.fabHolder = deployer;
        if (given.feeBps > FEE_MAX_BPS) revert SettingOutOfRange("FEE_BPS", given.feeBps, FEE_MAX_BPS);
        if (given.challengeWindow > WINDOW_MAX) {
            revert SettingOutOfRange("CHALLENGE_WINDOW", given.challengeWindow, WINDOW_MAX);
        }
        if (given.withTestUsd) _checkTestUsd(given);
        if (given.withEntryPoint && !local) {
            revert SettingRefused(
                "WITH_ENTRY_POINT",
                block.chainid,
                "public chains have one",
                "set WITH_ENTRY_POINT=false; ENTRY_POINT names it"
            );
        }
        if (given.withVerifier) _checkTestCircuit(given);
        if (given.usd == address(0)) given.usd = _usdc();
        if (given.usd == address(0) && !given.withTestUsd) given.usd = given.predecessor.usd;
        if (given.usd == address(0) && !local) {
            revert SettingMissing(
                "USD", block.chainid, "set USD to the token with six decimals that pays for jobs here"
            );
        }
        if (given.usd != address(0)) _checkCode("USD", given.usd, "set USD to the address of USDC on this chain");
        if (!local) {
            _checkCode(
                "ENTRY_POINT", given.entryPoint, "set ENTRY_POINT to the ERC-4337 entry point v0.8 on this chain"
            );
        }
        return given;
    }

    /// The circuit that our own set-up makes.
    function _testCircuit(address verifier, bytes32 manifest) internal view returns (ProofSystem.Circuit memory) {
        return ProofSystem.Circuit({
            verifier: verifier,
            codehash: verifier.codehash,
            jobs: 1,
            spots: 2,
            candidates: 8,
            active: true,
            manifest: manifest
        });
    }

    function _treasury(Settings memory settings, Suite memory suite) internal pure returns (address) {
        return settings.treasury == address(0) ? address(suite.timelock) : settings.treasury;
    }

    function _localOnly(string memory name, address deployer) private view returns (address) {
        if (block.chainid == LOCAL) return deployer;
        revert SettingMissing(
            name, block.chainid, string.concat("set ", name, " to the account: the deployer's is for local chains")
        );
    }

    function _checkTestUsd(Settings memory given) private view {
        string memory remedy = "set WITH_TEST_USD=false; USD names the token";
        if (block.chainid != LOCAL) {
            revert SettingRefused("WITH_TEST_USD", block.chainid, "the test token is worth nothing", remedy);
        }
        if (given.usd != address(0)) revert SettingRefused("WITH_TEST_USD", block.chainid, "USD is set too", remedy);
    }

    function _checkTestCircuit(Settings memory given) private view {
        if (block.chainid == LOCAL) return;
        string memory why = "whoever made the test circuit's SRS can forge its proofs";
        if (block.chainid != BASE_SEPOLIA) {
            revert SettingRefused(
                "WITH_VERIFIER", block.chainid, why, "set WITH_VERIFIER=false; circuits are registered by proposal"
            );
        }
        if (!given.allowTestCircuit) {
            revert SettingRefused(
                "WITH_VERIFIER",
                block.chainid,
                why,
                "set WITH_VERIFIER=false, or on this testnet ALLOW_TEST_CIRCUIT=true"
            );
        }
    }

    function _usdc() private view returns (address) {
        if (block.chainid == BASE) return USDC_BASE;
        return block.chainid == BASE_SEPOLIA ? USDC_BASE_SEPOLIA : address(0);
    }

    function _checkCode(string memory name, address where, string memory remedy) private view {
        if (where.code.length == 0) revert NoCodeAt(name, where, block.chainid, remedy);
    }
}
