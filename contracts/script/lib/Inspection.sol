// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {CircuitBreaker} from "../../src/CircuitBreaker.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Vm} from "../../test/lib/Vm.sol";
import {Suite} from "./AddressBook.sol";
import {Configuration, Settings} from "./Configuration.sol";

/// Reads a deployment back from the chain, part by part, and prints a line for each; the first part that is not as it should
/// be ends it. What a mapping cannot list (who holds a role, which tokens and circuits are allowed) comes from the log.
abstract contract Inspection is Configuration {
    /// Where an immutable stands in an artifact's code. In the order of the names, as JSON objects are decoded.
    struct Place {
        uint256 length;
        uint256 start;
    }

    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    address private constant CONSOLE = 0x000000000000000000636F6e736F6c652e6c6f67;
    uint256 private constant TIMELOCK_DELAY = 2 days;
    uint256 private constant VOTING_DELAY = 1 days;
    uint256 private constant VOTING_PERIOD = 7 days;
    uint256 private constant PROPOSAL_THRESHOLD = 1_000_000e18;
    uint256 private constant QUORUM_PERCENT = 4;
    uint256 private constant SUPPLY = 1_000_000_000e18;
    uint256 private constant CHALLENGE_BOND = 100e18;
    uint256 private constant REGISTRATIONS_PER_WINDOW = 5;
    uint256 private constant INCENTIVE_THRESHOLD = 700;
    uint256 private constant MISSES_FOR_LEVEL_1 = 10;
    uint256 private constant MISSES_FOR_LEVEL_2 = 30;

    error WrongPart(string part, string have, string need);

    /// Checks the suite that was deployed with `settings`, none of which governance has changed since.
    /// @param history The suite's log: at least its role, guardian, token and circuit events, from its first block on.
    function _inspect(Suite memory suite, Settings memory settings, Vm.Log[] memory history) internal view {
        _inspectCode(suite, settings);
        _inspectWiring(suite, settings);
        _inspectOwners(suite);
        _inspectTimelock(suite);
        _inspectGovernance(suite);
        _inspectParameters(suite, settings);
        _inspectPowers(suite, settings);
        _inspectHistory(suite, settings, history);
    }

    function _inspectCode(Suite memory suite, Settings memory settings) private view {
        _code("governance token", address(suite.token), "out/GovernanceToken.sol/GovernanceToken.json");
        _code("timelock", address(suite.timelock), "out/TimelockController.sol/TimelockController.json");
        _code("governance", address(suite.governance), "out/Governance.sol/Governance.json");
        _code("node registry", address(suite.registry), "out/NodeRegistry.sol/NodeRegistry.json");
        _code("payment escrow", address(suite.escrow), "out/PaymentEscrow.sol/PaymentEscrow.json");
        _code("proof system", address(suite.proofSystem), "out/ProofSystem.sol/ProofSystem.json");
        _code("reputation system", address(suite.reputation), "out/ReputationSystem.sol/ReputationSystem.json");
        _code("job marketplace", address(suite.marketplace), "out/JobMarketplace.sol/JobMarketplace.json");
        _code("account factory", address(suite.accounts), "out/BaseAccountIntegration.sol/BaseAccountIntegration.json");
        _code("smart account", address(suite.accounts.implementation()), "out/MarketAccount.sol/MarketAccount.json");
        _same("verifier is deployed", suite.verifier != address(0), settings.withVerifier);
        if (settings.withVerifier) _code("verifier", suite.verifier, settings.verifierArtifact);
        if (settings.withTestUsd) {
            _code("test usd", suite.usd, "out/TestUsd.sol/TestUsd.json");
        } else {
            _same("usd", suite.usd, settings.usd);
        }
        if (suite.usd != address(0)) _same("usd's decimals", IERC20Metadata(suite.usd).decimals(), 6);
    }

    function _inspectWiring(Suite memory suite, Settings memory settings) private view {
        address marketplace = address(suite.marketplace);
        address treasury = _treasury(settings, suite);
        _same("node registry's marketplace", suite.registry.marketplace(), marketplace);
        _same("payment escrow's marketplace", suite.escrow.marketplace(), marketplace);
        _same("proof system's marketplace", address(suite.proofSystem.marketplace()), marketplace);
        _same("reputation system's marketplace", address(suite.reputation.marketplace()), marketplace);
        _same("job marketplace's registry", address(suite.marketplace.registry()), address(suite.registry));
        _same("job marketplace's escrow", address(suite.marketplace.escrow()), address(suite.escrow));
        _same("job marketplace's proof system", address(suite.marketplace.proofSystem()), address(suite.proofSystem));
        _same("job marketplace's reputation", address(suite.marketplace.reputation()), address(suite.reputation));
        _same("node registry's token", address(suite.registry.token()), address(suite.token));
        _same("proof system's token", address(suite.proofSystem.token()), address(suite.token));
        _same("node registry's treasury", suite.registry.treasury(), treasury);
        _same("payment escrow's treasury", suite.escrow.treasury(), treasury);
        _same("proof system's treasury", suite.proofSystem.treasury(), treasury);
        address entryPoint = address(suite.accounts.implementation().entryPoint());
        _same("smart account's entry point", entryPoint, suite.entryPoint);
        if (!settings.withEntryPoint) _same("entry point", suite.entryPoint, settings.entryPoint);
        Suite memory past = settings.predecessor;
        _same("node registry's predecessor", address(suite.registry.predecessor()), address(past.registry));
        _same("reputation system's predecessor", address(suite.reputation.predecessor()), address(past.reputation));
        _same("node registry's successor", address(suite.registry.successor()), address(0));
        _same("job marketplace's successor", suite.marketplace.successor(), address(0));
    }

    function _inspectOwners(Suite memory suite) private view {
        address timelock = address(suite.timelock);
        _same("node registry's owner", suite.registry.owner(), timelock);
        _same("payment escrow's owner", suite.escrow.owner(), timelock);
        _same("proof system's owner", suite.proofSystem.owner(), timelock);
        _same("reputation system's owner", suite.reputation.owner(), timelock);
        _same("job marketplace's owner", suite.marketplace.owner(), timelock);
    }

    function _inspectTimelock(Suite memory suite) private view {
        TimelockController timelock = suite.timelock;
        address governance = address(suite.governance);
        _same("timelock's delay", timelock.getMinDelay(), TIMELOCK_DELAY);
        _same("governance proposes", timelock.hasRole(timelock.PROPOSER_ROLE(), governance), true);
        _same("governance cancels", timelock.hasRole(timelock.CANCELLER_ROLE(), governance), true);
        _same("anyone executes", timelock.hasRole(timelock.EXECUTOR_ROLE(), address(0)), true);
        _same("timelock is its own admin", timelock.hasRole(timelock.DEFAULT_ADMIN_ROLE(), address(timelock)), true);
    }

    function _inspectGovernance(Suite memory suite) private view {
        _same("governance's token", address(suite.governance.token()), address(suite.token));
        _same("governance's timelock", suite.governance.timelock(), address(suite.timelock));
        _same("voting delay", suite.governance.votingDelay(), VOTING_DELAY);
        _same("voting period", suite.governance.votingPeriod(), VOTING_PERIOD);
        _same("proposal threshold", suite.governance.proposalThreshold(), PROPOSAL_THRESHOLD);
        _same("quorum", suite.governance.quorumNumerator(), QUORUM_PERCENT);
        _same("quorum's denominator", suite.governance.quorumDenominator(), 100);
        _same("governance's clock", suite.governance.CLOCK_MODE(), "mode=timestamp");
        _same("supply of FAB", suite.token.totalSupply(), SUPPLY);
    }

    function _inspectParameters(Suite memory suite, Settings memory settings) private view {
        _same("fee", suite.escrow.feeBps(), settings.feeBps);
        _same("challenge window", suite.marketplace.challengeWindow(), settings.challengeWindow);
        _same("challenge bond", suite.proofSystem.challengeBond(), CHALLENGE_BOND);
        _same("registrations per window", suite.registry.registrationsPerWindow(), REGISTRATIONS_PER_WINDOW);
        _same("incentive threshold", suite.reputation.incentiveThreshold(), INCENTIVE_THRESHOLD);
        _same("misses for level 1", suite.marketplace.missesForLevel1(), MISSES_FOR_LEVEL_1);
        _same("misses for level 2", suite.marketplace.missesForLevel2(), MISSES_FOR_LEVEL_2);
        _same("breaker level", suite.marketplace.breakerLevel(), 0);
    }

    function _inspectPowers(Suite memory suite, Settings memory settings) private view {
        _same("arbiter", suite.marketplace.arbiter(), settings.arbiter);
        _same(
            string.concat("guardian ", vm.toString(settings.guardian)),
            suite.marketplace.isGuardian(settings.guardian),
            true
        );
        _same("FAB may pay", suite.marketplace.tokenAllowed(address(suite.token)), true);
        if (suite.usd != address(0)) _same("usd may pay", suite.marketplace.tokenAllowed(suite.usd), true);
        if (!settings.withVerifier) return;
        ProofSystem.Circuit memory have = suite.proofSystem.circuitOf(CIRCUIT_ID);
        ProofSystem.Circuit memory need = _testCircuit(suite.verifier, settings.manifest);
        _same("circuit's verifier", have.verifier, need.verifier);
        _same("circuit's codehash", have.codehash, need.codehash);
        _same("circuit's manifest", have.manifest, need.manifest);
        _same("circuit is active", have.active, true);
        _same("circuit", keccak256(abi.encode(have)), keccak256(abi.encode(need)));
    }

    /// Nobody and nothing else has a right. That the log is whole shows in the timelock's first event, which its constructor
    /// emits.
    function _inspectHistory(Suite memory suite, Settings memory settings, Vm.Log[] memory history) private view {
        bool whole = false;
        for (uint256 i = 0; i < history.length; i++) {
            Vm.Log memory log = history[i];
            if (log.topics.length < 2) continue;
            bytes32 kind = log.topics[0];
            address subject = address(uint160(uint256(log.topics[1])));
            if (log.emitter == address(suite.timelock) && kind == IAccessControl.RoleGranted.selector) {
                address account = address(uint160(uint256(log.topics[2])));
                whole = whole || (log.topics[1] == 0 && account == address(suite.timelock));
                _checkRole(suite, log.topics[1], account);
            } else if (log.emitter == address(suite.marketplace) && kind == CircuitBreaker.GuardianSet.selector) {
                if (suite.marketplace.isGuardian(subject)) _equal("guardian", subject, settings.guardian);
            } else if (log.emitter == address(suite.marketplace) && kind == JobMarketplace.TokenAllowed.selector) {
                bool ours = subject == address(suite.token) || subject == suite.usd;
                if (!ours && suite.marketplace.tokenAllowed(subject)) _equal("allowed token", subject, suite.usd);
            } else if (log.emitter == address(suite.proofSystem) && kind == ProofSystem.CircuitRegistered.selector) {
                _checkCircuit(suite, settings, log.topics[1]);
            }
        }
        _same("log has the timelock's first event", whole, true);
        _print("ok  no other role, guardian, token or circuit in the log");
    }

    function _checkRole(Suite memory suite, bytes32 role, address account) private view {
        TimelockController timelock = suite.timelock;
        if (!timelock.hasRole(role, account)) return;
        if (role == timelock.DEFAULT_ADMIN_ROLE()) _equal("timelock's admin", account, address(timelock));
        else if (role == timelock.EXECUTOR_ROLE()) _equal("timelock's executor", account, address(0));
        else if (role == timelock.PROPOSER_ROLE()) _equal("timelock's proposer", account, address(suite.governance));
        else _equal("timelock's canceller", account, address(suite.governance));
    }

    function _checkCircuit(Suite memory suite, Settings memory settings, bytes32 circuitId) private view {
        if (settings.withVerifier && circuitId == CIRCUIT_ID) return;
        if (!suite.proofSystem.circuitOf(circuitId).active) return;
        string memory need = settings.withVerifier ? vm.toString(CIRCUIT_ID) : "none";
        revert WrongPart("active circuit", vm.toString(circuitId), need);
    }

    /// Checks that the code at `where` is the artifact's, but for the immutables, which are checked by their getters.
    function _code(string memory name, address where, string memory artifact) private view {
        bytes memory have = where.code;
        string memory part = string.concat(name, "'s code");
        if (have.length == 0) revert WrongPart(part, string.concat("none at ", vm.toString(where)), artifact);
        string memory json = vm.readFile(artifact);
        bytes memory need = vm.parseJsonBytes(json, ".deployedBytecode.object");
        if (have.length == need.length) _mask(have, json);
        if (keccak256(have) != keccak256(need)) {
            string memory found = string.concat(vm.toString(have.length), " other bytes at ", vm.toString(where));
            revert WrongPart(part, found, artifact);
        }
        _print(string.concat("ok  ", part, ": ", vm.toString(where)));
    }

    /// Sets the immutables in `code` to 0, as they are in the artifact.
    function _mask(bytes memory code, string memory json) private pure {
        string memory path = ".deployedBytecode.immutableReferences";
        if (!vm.keyExistsJson(json, path)) return;
        string[] memory ids = vm.parseJsonKeys(json, path);
        for (uint256 i = 0; i < ids.length; i++) {
            bytes memory found = vm.parseJson(json, string.concat(path, "['", ids[i], "']"));
            Place[] memory places = abi.decode(found, (Place[]));
            for (uint256 j = 0; j < places.length; j++) {
                for (uint256 k = 0; k < places[j].length; k++) {
                    code[places[j].start + k] = 0;
                }
            }
        }
    }

    function _same(string memory part, address have, address need) private view {
        _equal(part, have, need);
        _print(string.concat("ok  ", part, ": ", vm.toString(have)));
    }

    function _same(string memory part, uint256 have, uint256 need) private view {
        _same(part, vm.toString(have), vm.toString(need));
    }

    function _same(string memory part, bytes32 have, bytes32 need) private view {
        _same(part, vm.toString(have), vm.toString(need));
    }

    function _same(string memory part, bool have, bool need) private view {
        _same(part, have ? "yes" : "no", need ? "yes" : "no");
    }

    function _same(string memory part, string memory have, string memory need) private view {
        if (keccak256(bytes(have)) != keccak256(bytes(need))) revert WrongPart(part, have, need);
        _print(string.concat("ok  ", part, ": ", have));
    }

    function _equal(string memory part, address have, address need) private pure {
        if (have != need) revert WrongPart(part, vm.toString(have), vm.toString(need));
    }

    function _print(string memory line) private view {
        (bool printed,) = CONSOLE.staticcall(abi.encodeWithSignature("log(string)", line));
        printed;
    }
}
