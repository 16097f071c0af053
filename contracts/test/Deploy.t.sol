// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {Deploy} from "../script/Deploy.s.sol";
import {TestUsd} from "../script/TestUsd.sol";
import {Suite} from "../script/lib/AddressBook.sol";
import {AddressBook} from "../script/lib/AddressBook.sol";
import {Configuration, Settings} from "../script/lib/Configuration.sol";
import {Inspection} from "../script/lib/Inspection.sol";
import {IEntryPoint} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {BaseAccountIntegration} from "../src/BaseAccountIntegration.sol";
import {Governance} from "../src/Governance.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {ReputationSystem} from "../src/ReputationSystem.sol";
import {Test} from "./lib/Test.sol";
import {TestVerifier} from "./lib/TestVerifier.sol";

/// The deployment script's own parts, run here: what it deploys passes its inspection, what it must not is refused, and each
/// part tampered with is named.
contract DeployTest is Deploy, Test {
    address private constant ARBITER = address(0xA1);
    address private constant GUARDIAN = address(0xA2);
    address private constant HOLDER = address(0xA3);
    address private constant THIEF = address(0xBAD);

    Settings private settings;
    Suite private suite;

    function setUp() public {
        vm.chainId(LOCAL);
        vm.warp(1_800_000_000);
        settings = given();
        vm.recordLogs();
        suite = _deploy(settings, address(this));
    }

    function given() private view returns (Settings memory s) {
        s.arbiter = ARBITER;
        s.guardian = GUARDIAN;
        s.fabHolder = HOLDER;
        s.feeBps = 250;
        s.challengeWindow = 3600;
        s.withVerifier = true;
        s.manifest = keccak256("manifest");
        s.verifierArtifact = "out/TestVerifier.sol/TestVerifier.json";
        s.withTestUsd = true;
        s.entryPoint = ENTRY_POINT_V08;
        return _resolved(s, address(this));
    }

    // Both are called from outside, so that a refusal is one call's.

    function inspect() external {
        _inspect(suite, settings, vm.getRecordedLogs());
    }

    function resolve(Settings calldata s) external view returns (Settings memory) {
        return _resolved(s, address(this));
    }

    function expectWrong(string memory part, string memory have, string memory need) private {
        vm.expectRevert(abi.encodeWithSelector(WrongPart.selector, part, have, need));
        this.inspect();
    }

    function expectWrong(string memory part, address have, address need) private {
        expectWrong(part, vm.toString(have), vm.toString(need));
    }

    /// Acts as governance could.
    modifier asOwner() {
        vm.startPrank(address(suite.timelock));
        _;
        vm.stopPrank();
    }

    function test_a_fresh_deployment_passes() public {
        this.inspect();
        vm.assertEq(suite.token.balanceOf(HOLDER), suite.token.SUPPLY());
        vm.assertEq(suite.escrow.treasury(), address(suite.timelock));
    }

    function test_the_deployer_has_no_role() public view {
        TimelockController timelock = suite.timelock;
        vm.assertFalse(timelock.hasRole(timelock.DEFAULT_ADMIN_ROLE(), address(this)));
        vm.assertFalse(timelock.hasRole(timelock.PROPOSER_ROLE(), address(this)));
        vm.assertFalse(timelock.hasRole(timelock.CANCELLER_ROLE(), address(this)));
        vm.assertFalse(timelock.hasRole(timelock.EXECUTOR_ROLE(), address(this)));
    }

    function test_a_successor_keeps_token_timelock_and_governance() public {
        Suite memory first = suite;
        settings.predecessor = first;
        suite = _deploy(settings, address(this));
        vm.assertEq(address(suite.timelock), address(first.timelock));
        vm.assertEq(address(suite.token), address(first.token));
        vm.assertEq(address(suite.registry.predecessor()), address(first.registry));
        vm.assertEq(address(suite.reputation.predecessor()), address(first.reputation));
        this.inspect();
    }

    function test_a_suite_without_verifier_and_usd_passes() public {
        settings.withVerifier = false;
        settings.withTestUsd = false;
        suite = _deploy(settings, address(this));
        vm.assertEq(suite.verifier, address(0));
        vm.assertEq(suite.usd, address(0));
        this.inspect();
    }

    // What the inspection finds.

    function test_a_contract_that_the_deployer_kept_is_found() public {
        vm.prank(address(suite.timelock));
        suite.escrow.transferOwnership(address(this));
        expectWrong("payment escrow's owner", address(this), address(suite.timelock));
    }

    /// The last first, for the inspection ends at the first that is wrong.
    function test_each_owner_is_checked() public asOwner {
        suite.marketplace.transferOwnership(THIEF);
        expectWrong("job marketplace's owner", THIEF, address(suite.timelock));
        suite.reputation.transferOwnership(THIEF);
        expectWrong("reputation system's owner", THIEF, address(suite.timelock));
        suite.proofSystem.transferOwnership(THIEF);
        expectWrong("proof system's owner", THIEF, address(suite.timelock));
        suite.escrow.transferOwnership(THIEF);
        expectWrong("payment escrow's owner", THIEF, address(suite.timelock));
        suite.registry.transferOwnership(THIEF);
        expectWrong("node registry's owner", THIEF, address(suite.timelock));
    }

    /// Makes `where` answer THIEF to `getter`.
    function expectMiswired(string memory part, address where, string memory getter, address need) private {
        vm.mockCall(where, abi.encodeWithSignature(getter), abi.encode(THIEF));
        expectWrong(part, THIEF, need);
    }

    /// The last first.
    function test_each_wire_is_checked() public {
        address marketplace = address(suite.marketplace);
        (address registry, address escrow) = (address(suite.registry), address(suite.escrow));
        (address proofs, address reputation) = (address(suite.proofSystem), address(suite.reputation));
        (address fab, address timelock) = (address(suite.token), address(suite.timelock));
        expectMiswired("job marketplace's successor", marketplace, "successor()", address(0));
        expectMiswired("node registry's successor", registry, "successor()", address(0));
        expectMiswired("reputation system's predecessor", reputation, "predecessor()", address(0));
        expectMiswired("node registry's predecessor", registry, "predecessor()", address(0));
        expectMiswired("proof system's treasury", proofs, "treasury()", timelock);
        expectMiswired("payment escrow's treasury", escrow, "treasury()", timelock);
        expectMiswired("node registry's treasury", registry, "treasury()", timelock);
        expectMiswired("proof system's token", proofs, "token()", fab);
        expectMiswired("node registry's token", registry, "token()", fab);
        expectMiswired("job marketplace's reputation", marketplace, "reputation()", reputation);
        expectMiswired("job marketplace's proof system", marketplace, "proofSystem()", proofs);
        expectMiswired("job marketplace's escrow", marketplace, "escrow()", escrow);
        expectMiswired("job marketplace's registry", marketplace, "registry()", registry);
        expectMiswired("reputation system's marketplace", reputation, "marketplace()", marketplace);
        expectMiswired("proof system's marketplace", proofs, "marketplace()", marketplace);
        expectMiswired("payment escrow's marketplace", escrow, "marketplace()", marketplace);
        expectMiswired("node registry's marketplace", registry, "marketplace()", marketplace);
    }

    function test_an_admin_besides_the_timelock_is_found() public {
        bytes32 role = suite.timelock.DEFAULT_ADMIN_ROLE();
        vm.prank(address(suite.timelock));
        suite.timelock.grantRole(role, THIEF);
        expectWrong("timelock's admin", THIEF, address(suite.timelock));
    }

    function test_a_second_proposer_is_found() public {
        bytes32 role = suite.timelock.PROPOSER_ROLE();
        vm.prank(address(suite.timelock));
        suite.timelock.grantRole(role, THIEF);
        expectWrong("timelock's proposer", THIEF, address(suite.governance));
    }

    function test_a_second_canceller_is_found() public {
        bytes32 role = suite.timelock.CANCELLER_ROLE();
        vm.prank(address(suite.timelock));
        suite.timelock.grantRole(role, THIEF);
        expectWrong("timelock's canceller", THIEF, address(suite.governance));
    }

    function test_a_role_taken_back_is_no_fault() public {
        bytes32 role = suite.timelock.PROPOSER_ROLE();
        vm.startPrank(address(suite.timelock));
        suite.timelock.grantRole(role, THIEF);
        suite.timelock.revokeRole(role, THIEF);
        vm.stopPrank();
        this.inspect();
    }

    function test_governance_that_cannot_propose_is_found() public {
        bytes32 role = suite.timelock.PROPOSER_ROLE();
        vm.prank(address(suite.timelock));
        suite.timelock.revokeRole(role, address(suite.governance));
        expectWrong("governance proposes", "no", "yes");
    }

    function test_a_closed_executor_is_found() public {
        bytes32 role = suite.timelock.EXECUTOR_ROLE();
        vm.prank(address(suite.timelock));
        suite.timelock.revokeRole(role, address(0));
        expectWrong("anyone executes", "no", "yes");
    }

    function test_a_short_delay_is_found() public asOwner {
        suite.timelock.updateDelay(1 days);
        expectWrong("timelock's delay", "86400", "172800");
    }

    function test_a_log_without_its_beginning_is_refused() public {
        vm.getRecordedLogs();
        expectWrong("log has the timelock's first event", "no", "yes");
    }

    function test_a_wrong_fee_is_found() public asOwner {
        suite.escrow.setFee(251);
        expectWrong("fee", "251", "250");
    }

    function test_a_wrong_window_is_found() public {
        settings.challengeWindow = 7200;
        expectWrong("challenge window", "3600", "7200");
    }

    function test_each_other_parameter_is_checked() public {
        vm.startPrank(address(suite.timelock));
        suite.marketplace.setBreakerThresholds(10, 31);
        expectWrong("misses for level 2", "31", "30");
        suite.marketplace.setBreakerThresholds(9, 30);
        expectWrong("misses for level 1", "9", "10");
        suite.reputation.setIncentiveThreshold(1);
        expectWrong("incentive threshold", "1", "700");
        suite.registry.setRegistrationsPerWindow(6);
        expectWrong("registrations per window", "6", "5");
        suite.proofSystem.setChallengeBond(1);
        expectWrong("challenge bond", "1", "100000000000000000000");
    }

    /// Only a proposal changes these, so they are made to answer wrongly.
    function test_governance_parameters_are_checked() public {
        address governance = address(suite.governance);
        vm.mockCall(governance, abi.encodeWithSignature("quorumNumerator()"), abi.encode(3));
        expectWrong("quorum", "3", "4");
        vm.mockCall(governance, abi.encodeCall(suite.governance.proposalThreshold, ()), abi.encode(1));
        expectWrong("proposal threshold", "1", "1000000000000000000000000");
        vm.mockCall(governance, abi.encodeCall(suite.governance.votingPeriod, ()), abi.encode(1 days));
        expectWrong("voting period", "86400", "604800");
        vm.mockCall(governance, abi.encodeCall(suite.governance.votingDelay, ()), abi.encode(0));
        expectWrong("voting delay", "0", "86400");
        vm.mockCall(governance, abi.encodeCall(suite.governance.timelock, ()), abi.encode(THIEF));
        expectWrong("governance's timelock", THIEF, address(suite.timelock));
        vm.mockCall(governance, abi.encodeCall(suite.governance.token, ()), abi.encode(suite.usd));
        expectWrong("governance's token", suite.usd, address(suite.token));
    }

    function test_a_missing_guardian_is_found() public asOwner {
        suite.marketplace.setGuardian(GUARDIAN, false);
        expectWrong(string.concat("guardian ", vm.toString(GUARDIAN)), "no", "yes");
    }

    function test_a_second_guardian_is_found() public asOwner {
        suite.marketplace.setGuardian(THIEF, true);
        expectWrong("guardian", THIEF, GUARDIAN);
    }

    function test_a_wrong_arbiter_is_found() public asOwner {
        suite.marketplace.setArbiter(THIEF);
        expectWrong("arbiter", THIEF, ARBITER);
    }

    function test_a_token_that_may_not_pay_is_found() public asOwner {
        suite.marketplace.allowToken(suite.usd, false);
        expectWrong("usd may pay", "no", "yes");
    }

    function test_a_token_that_should_not_pay_is_found() public {
        address worthless = address(new TestUsd(THIEF));
        vm.prank(address(suite.timelock));
        suite.marketplace.allowToken(worthless, true);
        expectWrong("allowed token", worthless, suite.usd);
    }

    function test_a_missing_circuit_is_found() public {
        settings.withVerifier = false;
        suite = _deploy(settings, address(this));
        settings.withVerifier = true;
        expectWrong("verifier is deployed", "no", "yes");
        suite.verifier = address(new TestVerifier());
        expectWrong("circuit's verifier", address(0), suite.verifier);
    }

    function test_a_circuit_switched_off_is_found() public asOwner {
        ProofSystem.Circuit memory circuit = suite.proofSystem.circuitOf(CIRCUIT_ID);
        circuit.active = false;
        suite.proofSystem.registerCircuit(CIRCUIT_ID, circuit);
        expectWrong("circuit is active", "no", "yes");
    }

    function test_a_second_circuit_is_found() public asOwner {
        bytes32 id = keccak256("forgeable");
        suite.proofSystem.registerCircuit(id, suite.proofSystem.circuitOf(CIRCUIT_ID));
        expectWrong("active circuit", vm.toString(id), vm.toString(CIRCUIT_ID));
    }

    function test_another_manifest_is_found() public {
        settings.manifest = keccak256("another");
        expectWrong("circuit's manifest", vm.toString(keccak256("manifest")), vm.toString(keccak256("another")));
    }

    function test_foreign_code_is_found() public {
        bytes memory code = address(suite.escrow).code;
        // One bit outside the immutables.
        code[100] ^= 0x01;
        vm.etch(address(suite.escrow), code);
        string memory have =
            string.concat(vm.toString(code.length), " other bytes at ", vm.toString(address(suite.escrow)));
        expectWrong("payment escrow's code", have, "out/PaymentEscrow.sol/PaymentEscrow.json");
    }

    function test_no_code_is_found() public {
        suite.reputation = ReputationSystem(THIEF);
        expectWrong(
            "reputation system's code",
            string.concat("none at ", vm.toString(THIEF)),
            "out/ReputationSystem.sol/ReputationSystem.json"
        );
    }

    function test_another_verifier_is_found() public {
        vm.etch(suite.verifier, hex"60016000f3");
        expectWrong(
            "verifier's code",
            string.concat("5 other bytes at ", vm.toString(suite.verifier)),
            "out/TestVerifier.sol/TestVerifier.json"
        );
    }

    /// Its code is right; what is wrong is an immutable, which the code's comparison leaves out.
    function test_a_registry_of_another_marketplace_is_found() public {
        address timelock = address(suite.timelock);
        suite.registry = new NodeRegistry(timelock, suite.token, THIEF, timelock, NodeRegistry(address(0)));
        expectWrong("node registry's marketplace", THIEF, address(suite.marketplace));
    }

    function test_a_registry_the_marketplace_does_not_know_is_found() public {
        address right = address(suite.registry);
        suite.registry = new NodeRegistry(
            address(suite.timelock),
            suite.token,
            address(suite.marketplace),
            address(suite.timelock),
            NodeRegistry(address(0))
        );
        expectWrong("job marketplace's registry", right, address(suite.registry));
    }

    function test_another_treasury_is_found() public {
        suite.escrow = new PaymentEscrow(address(suite.timelock), address(suite.marketplace), THIEF, 250);
        expectWrong("job marketplace's escrow", address(suite.marketplace.escrow()), address(suite.escrow));
        suite.escrow = suite.marketplace.escrow();
        settings.treasury = THIEF;
        expectWrong("node registry's treasury", address(suite.timelock), THIEF);
    }

    function test_another_predecessor_is_found() public {
        settings.predecessor = suite;
        expectWrong("node registry's predecessor", address(0), address(suite.registry));
    }

    function test_a_retired_suite_is_found() public asOwner {
        suite.marketplace.retire(address(suite.escrow));
        expectWrong("job marketplace's successor", address(suite.escrow), address(0));
    }

    function test_a_foreign_governance_is_found() public {
        address right = address(suite.governance);
        suite.governance = new Governance(suite.token, suite.timelock);
        vm.assertTrue(address(suite.governance) != right);
        expectWrong("governance proposes", "no", "yes");
    }

    function test_a_paused_suite_is_found() public {
        vm.prank(GUARDIAN);
        suite.marketplace.pause("");
        expectWrong("breaker level", "2", "0");
    }

    function test_smart_accounts_of_a_foreign_entry_point_are_found() public {
        address right = suite.entryPoint;
        suite.accounts = new BaseAccountIntegration(IEntryPoint(THIEF));
        expectWrong("smart account's entry point", THIEF, right);
    }

    function test_another_entry_point_than_configured_is_found() public {
        suite.accounts = new BaseAccountIntegration(IEntryPoint(THIEF));
        suite.entryPoint = THIEF;
        expectWrong("entry point", THIEF, ENTRY_POINT_V08);
    }

    function test_a_foreign_account_factory_is_found() public {
        suite.accounts = BaseAccountIntegration(address(suite.marketplace));
        string memory found = string.concat(
            vm.toString(address(suite.marketplace).code.length),
            " other bytes at ",
            vm.toString(address(suite.marketplace))
        );
        expectWrong("account factory's code", found, "out/BaseAccountIntegration.sol/BaseAccountIntegration.json");
    }

    function test_a_local_chain_gets_an_entry_point() public {
        settings.withEntryPoint = true;
        suite = _deploy(settings, address(this));
        vm.assertTrue(suite.entryPoint.code.length > 0);
        vm.assertTrue(suite.entryPoint != ENTRY_POINT_V08);
        this.inspect();
    }

    // The address book.

    function test_the_address_book_reads_as_written() public view {
        string memory book = _written(suite, 17);
        (Suite memory found, uint256 startBlock) = _read(book);
        vm.assertEq(startBlock, 17);
        vm.assertEq(keccak256(abi.encode(found)), keccak256(abi.encode(suite)));
        vm.assertEq(vm.parseJsonKeys(book, ".").length, 14);
        vm.assertEq(vm.parseJsonAddress(book, ".node_registry"), address(suite.registry));
    }

    function test_an_address_book_without_verifier_and_usd_reads_as_written() public {
        (suite.verifier, suite.usd) = (address(0), address(0));
        (Suite memory found,) = _read(_written(suite, 0));
        vm.assertEq(keccak256(abi.encode(found)), keccak256(abi.encode(suite)));
    }

    function read(string calldata book) external view returns (Suite memory found) {
        (found,) = _read(book);
    }

    function test_an_address_book_of_another_chain_is_refused() public {
        string memory book = _written(suite, 0);
        vm.chainId(BASE);
        vm.expectRevert(abi.encodeWithSelector(AddressBook.WrongChain.selector, BASE, LOCAL));
        this.read(book);
    }

    // What a public chain must not get.

    /// Settings that are right on `chainId`, where USDC and the entry point are.
    function publicChain(uint256 chainId) private returns (Settings memory s) {
        vm.chainId(chainId);
        vm.etch(USDC_BASE, suite.usd.code);
        vm.etch(USDC_BASE_SEPOLIA, suite.usd.code);
        vm.etch(ENTRY_POINT_V08, hex"00");
        s.arbiter = ARBITER;
        s.guardian = GUARDIAN;
        s.feeBps = 250;
        s.entryPoint = ENTRY_POINT_V08;
    }

    function expectMissing(Settings memory s, string memory name, string memory remedy) private {
        vm.expectRevert(abi.encodeWithSelector(Configuration.SettingMissing.selector, name, block.chainid, remedy));
        this.resolve(s);
    }

    function expectRefused(Settings memory s, string memory name, string memory why, string memory remedy) private {
        vm.expectRevert(abi.encodeWithSelector(Configuration.SettingRefused.selector, name, block.chainid, why, remedy));
        this.resolve(s);
    }

    function test_base_gets_its_usdc_and_no_circuit_of_ours() public {
        Settings memory s = publicChain(BASE);
        settings = this.resolve(s);
        vm.assertEq(settings.usd, USDC_BASE);
        vm.assertEq(settings.fabHolder, address(this));
        suite = _deploy(settings, address(this));
        this.inspect();
        vm.assertTrue(suite.marketplace.tokenAllowed(USDC_BASE));
    }

    function test_base_sepolia_gets_its_usdc_and_the_test_circuit_if_told_to() public {
        Settings memory s = publicChain(BASE_SEPOLIA);
        s.withVerifier = true;
        s.allowTestCircuit = true;
        s.verifierArtifact = settings.verifierArtifact;
        settings = this.resolve(s);
        vm.assertEq(settings.usd, USDC_BASE_SEPOLIA);
        suite = _deploy(settings, address(this));
        this.inspect();
        vm.assertEq(suite.proofSystem.circuitOf(CIRCUIT_ID).verifier, suite.verifier);
    }

    function test_the_test_circuit_is_refused_on_base_whatever_is_allowed() public {
        Settings memory s = publicChain(BASE);
        s.withVerifier = true;
        s.allowTestCircuit = true;
        expectRefused(
            s,
            "WITH_VERIFIER",
            "whoever made the test circuit's SRS can forge its proofs",
            "set WITH_VERIFIER=false; circuits are registered by proposal"
        );
    }

    function test_the_test_circuit_is_refused_on_base_sepolia_unless_told_to() public {
        Settings memory s = publicChain(BASE_SEPOLIA);
        s.withVerifier = true;
        expectRefused(
            s,
            "WITH_VERIFIER",
            "whoever made the test circuit's SRS can forge its proofs",
            "set WITH_VERIFIER=false, or on this testnet ALLOW_TEST_CIRCUIT=true"
        );
    }

    function test_the_test_token_is_refused_on_public_chains() public {
        Settings memory s = publicChain(BASE_SEPOLIA);
        s.withTestUsd = true;
        string memory remedy = "set WITH_TEST_USD=false; USD names the token";
        expectRefused(s, "WITH_TEST_USD", "the test token is worth nothing", remedy);
        vm.chainId(LOCAL);
        s.usd = USDC_BASE;
        expectRefused(s, "WITH_TEST_USD", "USD is set too", remedy);
    }

    function test_an_entry_point_of_ones_own_is_refused_on_public_chains() public {
        Settings memory s = publicChain(BASE);
        s.withEntryPoint = true;
        string memory remedy = "set WITH_ENTRY_POINT=false; ENTRY_POINT names it";
        expectRefused(s, "WITH_ENTRY_POINT", "public chains have one", remedy);
    }

    function test_arbiter_and_guardian_are_named_on_public_chains() public {
        Settings memory s = publicChain(BASE);
        s.arbiter = address(0);
        expectMissing(s, "ARBITER", "set ARBITER to the account: the deployer's is for local chains");
        s = publicChain(BASE);
        s.guardian = address(0);
        expectMissing(s, "GUARDIAN", "set GUARDIAN to the account: the deployer's is for local chains");
        vm.chainId(LOCAL);
        vm.assertEq(this.resolve(s).guardian, address(this));
    }

    function test_usdc_is_there() public {
        Settings memory s = publicChain(BASE);
        vm.etch(USDC_BASE, "");
        string memory remedy = "set USD to the address of USDC on this chain";
        vm.expectRevert(abi.encodeWithSelector(Configuration.NoCodeAt.selector, "USD", USDC_BASE, BASE, remedy));
        this.resolve(s);
        vm.chainId(10);
        expectMissing(s, "USD", "set USD to the token with six decimals that pays for jobs here");
    }

    function test_a_token_without_six_decimals_is_found() public {
        Settings memory s = publicChain(BASE);
        s.usd = address(suite.token);
        settings = this.resolve(s);
        suite = _deploy(settings, address(this));
        expectWrong("usd's decimals", "18", "6");
    }

    function test_the_entry_point_is_there() public {
        Settings memory s = publicChain(BASE);
        s.entryPoint = THIEF;
        string memory remedy = "set ENTRY_POINT to the ERC-4337 entry point v0.8 on this chain";
        vm.expectRevert(abi.encodeWithSelector(Configuration.NoCodeAt.selector, "ENTRY_POINT", THIEF, BASE, remedy));
        this.resolve(s);
    }

    /// A fee of 65786 would be 250 in the 16 bits that the escrow takes.
    function test_a_fee_and_a_window_have_their_range() public {
        Settings memory s = publicChain(BASE);
        s.feeBps = 65_786;
        vm.expectRevert(abi.encodeWithSelector(Configuration.SettingOutOfRange.selector, "FEE_BPS", 65_786, 1000));
        this.resolve(s);
        (s.feeBps, s.challengeWindow) = (1000, 30 days);
        this.resolve(s);
        s.challengeWindow++;
        vm.expectRevert(
            abi.encodeWithSelector(
                Configuration.SettingOutOfRange.selector, "CHALLENGE_WINDOW", s.challengeWindow, 30 days
            )
        );
        this.resolve(s);
    }

    /// Said in `Configuration` because a script checks them before it deploys.
    function test_the_ranges_are_the_contracts() public view {
        vm.assertEq(FEE_MAX_BPS, suite.escrow.FEE_MAX_BPS());
        vm.assertEq(WINDOW_MAX, suite.marketplace.MAX_CHALLENGE_WINDOW());
    }

    function verify(string calldata artifact) external {
        settings.verifierArtifact = artifact;
        _deploy(settings, address(this));
    }

    function test_a_verifier_that_is_not_built_is_said_to_be() public {
        vm.expectRevert(
            abi.encodeWithSelector(
                VerifierNotBuilt.selector,
                "out/None.sol/None.json",
                "write generated/SelectV1J1S2K8.sol with the prover's set-up, then npm run build"
            )
        );
        this.verify("out/None.sol/None.json");
    }
}
