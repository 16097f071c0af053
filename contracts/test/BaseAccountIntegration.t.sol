// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Account} from "@openzeppelin/contracts/account/Account.sol";
import {IEntryPoint, PackedUserOperation} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {Initializable} from "@openzeppelin/contracts/proxy/utils/Initializable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {BaseAccountIntegration} from "../src/BaseAccountIntegration.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {MarketAccount} from "../src/MarketAccount.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {TestPaymaster, UserOps} from "./lib/UserOps.sol";
import {Vm} from "./lib/Vm.sol";
import {World} from "./lib/World.sol";

contract BaseAccountIntegrationTest is World {
    using UserOps for PackedUserOperation;

    uint256 private constant OWNER_KEY = 0xA11CE;
    uint256 private constant SESSION_KEY = 0x5E55;
    uint256 private constant STRANGER_KEY = 0xBAD;
    bytes32 private constant SALT = "salt";
    uint256 private constant FUNDS = 10 ether;
    uint96 private constant ETH_LIMIT = 3 ether;
    uint96 private constant USD_LIMIT = 20e6;
    bytes4 private constant INCREASE_ALLOWANCE = 0x39509351;
    bytes4 private constant PANIC = 0x4e487b71;

    IEntryPoint private entryPoint;
    BaseAccountIntegration private factory;
    /// Funded, and not deployed before `deployed` or a first operation.
    MarketAccount private account;
    address private accountOwner;
    address private sessionKey;

    /// The session, as the logs of the operations so far say it.
    MarketAccount.Session private folded;

    /// The entry point's.
    event UserOperationEvent(
        bytes32 indexed userOpHash,
        address indexed sender,
        address indexed paymaster,
        uint256 nonce,
        bool success,
        uint256 actualGasCost,
        uint256 actualGasUsed
    );

    function setUp() public override {
        super.setUp();
        entryPoint = UserOps.deployEntryPoint();
        factory = new BaseAccountIntegration(entryPoint);
        (accountOwner, sessionKey) = (vm.addr(OWNER_KEY), vm.addr(SESSION_KEY));
        account = MarketAccount(payable(factory.accountOf(accountOwner, SALT)));
        vm.deal(address(account), FUNDS);
        usd.transfer(address(account), 100e6);
        fab.transfer(address(account), registry.MIN_STAKE());
    }

    // What the owner signs for the account.

    function test_the_owner_signs_for_one_account_on_one_chain() public {
        deployed();
        MarketAccount other = MarketAccount(payable(factory.createAccount(accountOwner, "other")));
        bytes32 hash = keccak256("the tokens of my job");
        bytes memory signed = signature(OWNER_KEY, bound(account, hash));
        vm.assertTrue(account.isValidSignature(hash, signed) == account.isValidSignature.selector);
        vm.assertTrue(account.isValidSignature(keccak256("another"), signed) == 0xffffffff);
        vm.assertTrue(other.isValidSignature(hash, signed) == 0xffffffff);
        // What the owner signed for itself is nothing the account said.
        vm.assertTrue(account.isValidSignature(hash, signature(OWNER_KEY, hash)) == 0xffffffff);
        vm.assertTrue(account.isValidSignature(hash, signature(STRANGER_KEY, bound(account, hash))) == 0xffffffff);
        vm.assertTrue(account.isValidSignature(hash, "") == 0xffffffff);
        vm.chainId(block.chainid + 1);
        vm.assertTrue(account.isValidSignature(hash, signed) == 0xffffffff);
    }

    /// By definition: EIP-712.
    function bound(MarketAccount to, bytes32 hash) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Fabstir MarketAccount"),
                keccak256("1"),
                block.chainid,
                to
            )
        );
        bytes32 message = keccak256(abi.encode(keccak256("MarketAccountMessage(bytes32 hash)"), hash));
        return keccak256(abi.encodePacked(hex"1901", domain, message));
    }

    // What the owner does in one operation.

    function test_a_first_operation_deploys_the_account_and_posts_its_job() public {
        vm.assertEq(address(account).code.length, 0);
        PackedUserOperation memory op = packed(postCall(PRICE));
        op.initCode = abi.encodePacked(factory, abi.encodeCall(factory.createAccount, (accountOwner, SALT)));
        op.sign(entryPoint, OWNER_KEY);
        vm.expectEmit(address(factory));
        emit BaseAccountIntegration.AccountCreated(address(account), accountOwner, SALT);
        op.submit(entryPoint);
        vm.assertEq(account.owner(), accountOwner);
        vm.assertEq(marketplace.getJob(1).renter, address(account));
        vm.assertEq(address(escrow).balance, PRICE);
    }

    function test_one_operation_approves_a_token_and_posts_with_it() public {
        deployed();
        run(OWNER_KEY, batch(approveUsd(5e6), postUsdCall(5e6)));
        vm.assertEq(marketplace.getJob(1).renter, address(account));
        vm.assertEq(usd.balanceOf(address(escrow)), 5e6);
    }

    function test_one_operation_approves_the_stake_and_registers_a_host() public {
        deployed();
        uint256 stake = registry.MIN_STAKE();
        run(
            OWNER_KEY,
            batch(
                MarketAccount.Call(address(fab), 0, abi.encodeCall(fab.approve, (address(registry), stake))),
                MarketAccount.Call(address(registry), 0, abi.encodeCall(registry.registerNode, ("{}")))
            )
        );
        vm.assertTrue(registry.isActive(address(account)));
    }

    function test_a_batch_with_a_failing_call_leaves_nothing_done() public {
        deployed();
        MarketAccount.Call[] memory calls = new MarketAccount.Call[](2);
        (calls[0], calls[1]) = (approveUsd(5e6), postUsdCall(5e6));
        calls[1].data = abi.encodeCall(marketplace.claimJob, (9));
        bytes memory inner = abi.encodeWithSelector(JobMarketplace.UnknownJob.selector, 9);
        vm.expectRevert(inner);
        vm.prank(accountOwner);
        account.executeBatch(calls);

        runFailing(OWNER_KEY, batch(calls[0], calls[1]));
        vm.assertEq(usd.allowance(address(account), address(marketplace)), 0);
    }

    function test_a_refused_call_is_refused_with_its_own_reason() public {
        deployed();
        vm.startPrank(accountOwner);
        vm.expectRevert(abi.encodeWithSelector(JobMarketplace.UnknownJob.selector, 9));
        account.execute(address(marketplace), 0, abi.encodeCall(marketplace.claimJob, (9)));
    }

    function test_a_refund_goes_to_the_account() public {
        deployed();
        run(OWNER_KEY, one(postCall(PRICE)));
        uint256 before = address(account).balance;
        vm.warp(marketplace.getJob(1).deadline);
        marketplace.expireJob(1);
        vm.assertEq(address(account).balance, before + PRICE);
        vm.assertEq(escrow.credits(address(0), address(account)), 0);
    }

    function test_the_owner_takes_back_what_operations_left_of_their_gas() public {
        deployed();
        run(OWNER_KEY, one(postCall(PRICE)));
        uint256 left = entryPoint.balanceOf(address(account));
        vm.assertTrue(left != 0);
        vm.prank(accountOwner);
        account.execute(address(entryPoint), 0, abi.encodeCall(entryPoint.withdrawTo, (payable(stranger), left)));
        vm.assertEq(stranger.balance, left);
    }

    // Who may do what.

    function test_only_the_owner_and_the_entry_point_act_as_the_account() public {
        deployed();
        MarketAccount.Call[] memory calls = new MarketAccount.Call[](0);
        address[4] memory others = [stranger, sessionKey, address(factory), owner];
        for (uint256 i = 0; i < others.length; i++) {
            bytes memory refusal = abi.encodeWithSelector(Account.AccountUnauthorized.selector, others[i]);
            vm.startPrank(others[i]);
            vm.expectRevert(refusal);
            account.execute(others[i], 1, "");
            vm.expectRevert(refusal);
            account.executeBatch(calls);
            vm.expectRevert(refusal);
            account.grantSession(others[i], session());
            vm.expectRevert(refusal);
            account.revokeSession(others[i]);
            vm.stopPrank();
        }
        vm.prank(accountOwner);
        account.execute(stranger, 1, "");
        vm.prank(address(entryPoint));
        account.execute(stranger, 1, "");
        vm.assertEq(stranger.balance, 2);
    }

    function test_only_the_entry_point_has_operations_validated() public {
        deployed();
        PackedUserOperation memory op = packed(postCall(PRICE));
        op.sign(entryPoint, OWNER_KEY);
        bytes32 opHash = op.hash(entryPoint);
        vm.expectRevert(abi.encodeWithSelector(Account.AccountUnauthorized.selector, accountOwner));
        vm.prank(accountOwner);
        account.validateUserOp(op, opHash, 1 ether);
    }

    function test_an_operation_signed_by_nobody_known_is_refused() public {
        deployed();
        PackedUserOperation memory op = packed(postCall(PRICE));
        refused(op, STRANGER_KEY, "AA24 signature error");
        op.signature = "short";
        vm.expectRevert(abi.encodeWithSelector(IEntryPoint.FailedOp.selector, 0, "AA24 signature error"));
        op.submit(entryPoint);
        op.sign(entryPoint, OWNER_KEY);
        op.callData = one(postCall(PRICE + 1));
        vm.expectRevert(abi.encodeWithSelector(IEntryPoint.FailedOp.selector, 0, "AA24 signature error"));
        op.submit(entryPoint);
    }

    function test_an_operation_is_not_replayed() public {
        deployed();
        grant(session());
        uint256[2] memory keys = [OWNER_KEY, SESSION_KEY];
        for (uint256 i = 0; i < keys.length; i++) {
            PackedUserOperation memory op = packed(postCall(PRICE));
            op.sign(entryPoint, keys[i]);
            op.submit(entryPoint);
            vm.expectRevert(abi.encodeWithSelector(IEntryPoint.FailedOp.selector, 0, "AA25 invalid account nonce"));
            op.submit(entryPoint);
        }
    }

    function test_an_account_gets_its_owner_once() public {
        deployed();
        vm.expectRevert(abi.encodeWithSelector(Initializable.InvalidInitialization.selector));
        account.initialize(stranger);
    }

    function test_an_account_has_an_owner() public {
        vm.expectRevert(abi.encodeWithSelector(MarketAccount.NoOwner.selector));
        factory.createAccount(address(0), SALT);
    }

    function test_the_implementation_is_nobodys() public {
        MarketAccount implementation = factory.implementation();
        vm.expectRevert(abi.encodeWithSelector(Initializable.InvalidInitialization.selector));
        implementation.initialize(stranger);
        vm.deal(address(implementation), FUNDS);
        PackedUserOperation memory op = packed(postCall(PRICE));
        op.sender = address(implementation);
        op.signature = new bytes(65);
        vm.expectRevert(abi.encodeWithSelector(IEntryPoint.FailedOp.selector, 0, "AA24 signature error"));
        op.submit(entryPoint);
    }

    // What a session does.

    function test_a_session_posts_within_its_limits_and_is_counted() public {
        deployed();
        grant(session());
        run(SESSION_KEY, one(postCall(PRICE)));
        run(SESSION_KEY, batch(approveUsd(5e6), postUsdCall(5e6)));
        vm.assertEq(marketplace.getJob(1).renter, address(account));
        vm.assertEq(marketplace.getJob(2).renter, address(account));
        vm.assertEq(limitLeft(0), ETH_LIMIT - PRICE - 2 * UserOps.COST_MAX);
        vm.assertEq(limitLeft(1), USD_LIMIT - 5e6);
    }

    function test_the_owner_grants_and_revokes_by_operation() public {
        deployed();
        MarketAccount.Call memory granting =
            MarketAccount.Call(address(account), 0, abi.encodeCall(account.grantSession, (sessionKey, session())));
        run(OWNER_KEY, batch(granting, postCall(PRICE)));
        vm.assertEq(abi.encode(account.getSession(sessionKey)), abi.encode(session()));
        run(OWNER_KEY, abi.encodeCall(account.revokeSession, (sessionKey)));
        run(OWNER_KEY, abi.encodeCall(account.grantSession, (sessionKey, session())));
        run(SESSION_KEY, one(postCall(PRICE)));
        vm.assertEq(marketplace.jobCount(), 2);
    }

    function test_a_session_is_refused_what_is_out_of_scope() public {
        deployed();
        grant(session());
        MarketAccount.Call memory call = postCall(PRICE);
        call.target = address(registry);
        refusedAsOutOfScope(call);
        call = postCall(PRICE);
        call.data = abi.encodeCall(marketplace.releasePayment, (1));
        refusedAsOutOfScope(call);
        refusedAsOutOfScope(MarketAccount.Call(address(usd), 0, abi.encodeCall(usd.transfer, (sessionKey, 1))));
        refusedAsOutOfScope(MarketAccount.Call(sessionKey, 1 ether, ""));
        refusedAsOutOfScope(MarketAccount.Call(address(marketplace), 1 ether, ""));
    }

    /// Any call but the listed ones, wherever in a batch it is.
    function testFuzz_a_session_is_refused_what_is_out_of_scope(
        address target,
        bytes4 selector,
        bool known,
        bool first,
        bytes calldata rest
    ) public {
        deployed();
        grant(session());
        MarketAccount.Scope[] memory scope = session().scope;
        if (known) target = scope[rest.length % scope.length].target;
        for (uint256 i = 0; i < scope.length; i++) {
            vm.assume(target != scope[i].target || selector != scope[i].selector);
        }
        MarketAccount.Call memory call = MarketAccount.Call(target, 0, abi.encodePacked(selector, rest));
        bytes memory callData = first ? batch(call, postCall(PRICE)) : batch(postCall(PRICE), call);
        refusedInside(callData, abi.encodeWithSelector(MarketAccount.OutOfScope.selector, sessionKey, target, selector));
    }

    /// A selector cut short must not read as one that ends in zeros.
    function test_a_session_is_refused_a_call_without_a_selector() public {
        deployed();
        MarketAccount.Session memory s = session();
        s.scope[3] = MarketAccount.Scope(stranger, 0);
        grant(s);
        refusedAsOutOfScope(MarketAccount.Call(stranger, 0, ""));
        refusedAsOutOfScope(MarketAccount.Call(stranger, 0, hex"000000"));
    }

    function test_a_session_does_nothing_but_execute() public {
        deployed();
        grant(session());
        MarketAccount.Session memory wider = session();
        wider.limits[0].amount = type(uint96).max;
        bytes[4] memory calls = [
            abi.encodeCall(account.grantSession, (sessionKey, wider)),
            abi.encodeCall(account.revokeSession, (sessionKey)),
            abi.encodeCall(account.initialize, (sessionKey)),
            bytes("")
        ];
        for (uint256 i = 0; i < calls.length; i++) {
            bytes4 selector = bytes4(calls[i]);
            refusedInside(calls[i], abi.encodeWithSelector(MarketAccount.NotForSessions.selector, sessionKey, selector));
        }
    }

    function test_a_session_cannot_grant_itself_more() public {
        deployed();
        grant(session());
        MarketAccount.Session memory wider = session();
        wider.validUntil += 1 days;
        MarketAccount.Call memory call =
            MarketAccount.Call(address(account), 0, abi.encodeCall(account.grantSession, (sessionKey, wider)));
        refusedAsOutOfScope(call);
        call.data = one(call);
        refusedAsOutOfScope(call);
    }

    function test_a_session_is_refused_eth_over_its_limit() public {
        deployed();
        grant(session());
        uint256 most = ETH_LIMIT - UserOps.COST_MAX;
        refusedAsOverLimit(one(postCall(most + 1)), address(0), ETH_LIMIT + 1, ETH_LIMIT);
        run(SESSION_KEY, one(postCall(most)));
        vm.assertEq(limitLeft(0), 0);
    }

    function test_a_session_is_refused_eth_over_its_limit_in_sum() public {
        deployed();
        grant(session());
        uint256 spent = 2 ether + UserOps.COST_MAX;
        refusedAsOverLimit(batch(postCall(2 ether), postCall(2 ether)), address(0), spent + 2 ether, ETH_LIMIT);
        run(SESSION_KEY, one(postCall(2 ether)));
        refusedAsOverLimit(one(postCall(2 ether)), address(0), spent, ETH_LIMIT - spent);
    }

    /// The sum must not wrap round to a small one.
    function test_a_session_is_refused_a_sum_that_overflows() public {
        deployed();
        grant(session());
        refusedInside(batch(postCall(type(uint256).max), postCall(2)), abi.encodeWithSelector(PANIC, 0x11));
    }

    function test_a_session_is_refused_tokens_over_its_limit() public {
        deployed();
        grant(session());
        refusedAsOverLimit(one(approveUsd(USD_LIMIT + 1)), address(usd), USD_LIMIT + 1, USD_LIMIT);
        refusedAsOverLimit(one(approveUsd(type(uint256).max)), address(usd), type(uint256).max, USD_LIMIT);
        refusedAsOverLimit(batch(approveUsd(15e6), approveUsd(6e6)), address(usd), 6e6, 5e6);
        run(SESSION_KEY, one(approveUsd(15e6)));
        refusedAsOverLimit(one(approveUsd(6e6)), address(usd), 6e6, 5e6);
        run(SESSION_KEY, one(approveUsd(5e6)));
        vm.assertEq(limitLeft(1), 0);
    }

    function test_a_session_is_refused_gas_over_its_limit() public {
        deployed();
        grant(session());
        PackedUserOperation memory op = packed(postCall(PRICE));
        uint128 fee = 2_000 gwei;
        op.gasFees = bytes32(abi.encodePacked(fee, fee));
        uint256 cost = UserOps.COST_MAX / UserOps.FEE * fee + PRICE;
        refusedInside(op, overLimit(address(0), cost, ETH_LIMIT));
    }

    function test_a_session_without_eth_acts_where_a_paymaster_pays() public {
        deployed();
        MarketAccount.Session memory s = session();
        s.limits[0].token = address(fab);
        grant(s);
        bytes memory callData = batch(approveUsd(5e6), postUsdCall(5e6));
        refusedAsOverLimit(callData, address(0), UserOps.COST_MAX, 0);

        TestPaymaster paymaster = new TestPaymaster();
        entryPoint.depositTo{value: 1 ether}(address(paymaster));
        PackedUserOperation memory op = UserOps.pack(entryPoint, address(account), callData);
        op.sponsor(address(paymaster));
        op.sign(entryPoint, SESSION_KEY);
        op.submit(entryPoint);
        vm.assertEq(marketplace.getJob(1).renter, address(account));
        vm.assertEq(address(account).balance, FUNDS);
    }

    /// An earlier entry point takes address 0 for no paymaster.
    function test_a_paymaster_at_address_0_pays_nothing() public {
        deployed();
        grant(session());
        PackedUserOperation memory op = packed(postCall(PRICE));
        op.sponsor(address(0));
        op.signature = signature(SESSION_KEY, "hash");
        vm.prank(address(entryPoint));
        account.validateUserOp(op, "hash", 0);
        uint256 paymasterCost = 2 * uint256(UserOps.PAYMASTER_GAS) * UserOps.FEE;
        vm.assertEq(limitLeft(0), ETH_LIMIT - PRICE - UserOps.COST_MAX - paymasterCost);
    }

    /// Else a session could spend for ever what it makes fail.
    function test_what_a_failed_operation_would_have_spent_stays_counted() public {
        deployed();
        grant(session());
        MarketAccount.Call memory failing = postCall(PRICE);
        failing.value = PRICE - 1;
        runFailing(SESSION_KEY, batch(approveUsd(5e6), failing));
        vm.assertEq(limitLeft(0), ETH_LIMIT - failing.value - UserOps.COST_MAX);
        vm.assertEq(limitLeft(1), USD_LIMIT - 5e6);
        vm.assertEq(usd.allowance(address(account), address(marketplace)), 0);
    }

    function test_a_session_approves_only_what_is_in_its_scope() public {
        deployed();
        grant(session());
        MarketAccount.Call memory call = approveUsd(1);
        call.data = abi.encodeCall(usd.approve, (sessionKey, 1));
        refusedInside(
            one(call),
            abi.encodeWithSelector(MarketAccount.SpenderOutOfScope.selector, sessionKey, address(usd), sessionKey)
        );
    }

    function test_a_session_is_refused_malformed_approvals() public {
        deployed();
        grant(session());
        MarketAccount.Call memory call = approveUsd(1);
        bytes memory whole = call.data;
        call.data = abi.encodePacked(whole, bytes1(0));
        refusedInside(
            one(call),
            abi.encodeWithSelector(MarketAccount.MalformedApproval.selector, sessionKey, address(usd), whole.length + 1)
        );
        call.data = abi.encodePacked(IERC20.approve.selector);
        refusedInside(
            one(call), abi.encodeWithSelector(MarketAccount.MalformedApproval.selector, sessionKey, address(usd), 4)
        );
        // An address with a bit beyond its 20 bytes.
        call.data = abi.encodePacked(IERC20.approve.selector, uint256(1 << 160), uint256(1));
        refusedInside(one(call), "");
    }

    function test_a_session_is_refused_malformed_calldata() public {
        deployed();
        grant(session());
        bytes memory whole = one(postCall(PRICE));
        refusedInside(abi.encodePacked(MarketAccount.execute.selector), "");
        refusedInside(abi.encodePacked(MarketAccount.executeBatch.selector, uint256(1 << 200)), "");
        refusedInside(
            abi.encodePacked(MarketAccount.executeBatch.selector, uint256(32), uint256(1 << 60)),
            abi.encodeWithSelector(PANIC, 0x41)
        );
        bytes memory cut = new bytes(whole.length - 32);
        for (uint256 i = 0; i < cut.length; i++) {
            cut[i] = whole[i];
        }
        refusedInside(cut, "");
        refusedInside(
            hex"b61d27", abi.encodeWithSelector(MarketAccount.NotForSessions.selector, sessionKey, bytes4(hex"b61d27"))
        );
    }

    function test_a_session_is_good_in_its_window() public {
        deployed();
        MarketAccount.Session memory s = session();
        (s.validAfter, s.validUntil) = (uint48(block.timestamp + 100), uint48(block.timestamp + 200));
        grant(s);
        PackedUserOperation memory op = packed(postCall(PRICE));
        refused(op, SESSION_KEY, "AA22 expired or not due");
        vm.warp(s.validAfter);
        refused(op, SESSION_KEY, "AA22 expired or not due");
        vm.warp(s.validUntil + 1);
        refused(op, SESSION_KEY, "AA22 expired or not due");
        vm.warp(s.validAfter + 1);
        run(SESSION_KEY, one(postCall(PRICE)));
        vm.warp(s.validUntil);
        run(SESSION_KEY, one(postCall(PRICE)));
    }

    function test_a_revoked_session_is_refused() public {
        deployed();
        grant(session());
        vm.startPrank(accountOwner);
        account.revokeSession(sessionKey);
        vm.expectRevert(abi.encodeWithSelector(MarketAccount.NoSession.selector, sessionKey));
        account.revokeSession(sessionKey);
        vm.stopPrank();
        refused(packed(postCall(PRICE)), SESSION_KEY, "AA24 signature error");
    }

    /// Nothing of the earlier session may be left.
    function test_a_new_grant_replaces_the_session() public {
        deployed();
        grant(session());
        MarketAccount.Session memory narrow = session();
        narrow.scope = new MarketAccount.Scope[](1);
        narrow.scope[0] = MarketAccount.Scope(address(registry), registry.registerNode.selector);
        narrow.limits = new MarketAccount.Limit[](0);
        grant(narrow);
        vm.assertEq(abi.encode(account.getSession(sessionKey)), abi.encode(narrow));
        refusedAsOutOfScope(postCall(PRICE));
    }

    function test_a_session_of_one_account_is_none_of_another() public {
        deployed();
        grant(session());
        address other = factory.createAccount(stranger, SALT);
        vm.deal(other, FUNDS);
        PackedUserOperation memory op = packed(postCall(PRICE));
        op.sender = other;
        refused(op, SESSION_KEY, "AA24 signature error");
    }

    // What is refused when it is granted.

    function test_a_session_has_a_key_of_its_own() public {
        deployed();
        refusedGrant(address(0), session(), abi.encodeWithSelector(MarketAccount.NotAKey.selector, address(0)));
        refusedGrant(accountOwner, session(), abi.encodeWithSelector(MarketAccount.NotAKey.selector, accountOwner));
    }

    function test_a_session_ends() public {
        deployed();
        uint48 max = (1 << 47) - 1;
        uint48[2][4] memory windows = [[uint48(0), 0], [uint48(7), 7], [uint48(8), 7], [uint48(0), max + 1]];
        for (uint256 i = 0; i < windows.length; i++) {
            MarketAccount.Session memory s = session();
            (s.validAfter, s.validUntil) = (windows[i][0], windows[i][1]);
            bytes memory refusal =
                abi.encodeWithSelector(MarketAccount.WindowOutOfRange.selector, s.validAfter, s.validUntil, max);
            refusedGrant(sessionKey, s, refusal);
        }
    }

    function test_a_session_has_bounds() public {
        deployed();
        MarketAccount.Session memory s = session();
        s.scope = new MarketAccount.Scope[](0);
        refusedGrant(sessionKey, s, abi.encodeWithSelector(MarketAccount.ScopeLengthOutOfRange.selector, 0, 1, 16));
        s.scope = new MarketAccount.Scope[](17);
        refusedGrant(sessionKey, s, abi.encodeWithSelector(MarketAccount.ScopeLengthOutOfRange.selector, 17, 1, 16));
        s = session();
        s.limits = new MarketAccount.Limit[](9);
        refusedGrant(sessionKey, s, abi.encodeWithSelector(MarketAccount.LimitCountOutOfRange.selector, 9, 0, 8));
        s.limits = new MarketAccount.Limit[](2);
        refusedGrant(sessionKey, s, abi.encodeWithSelector(MarketAccount.LimitRepeated.selector, address(0)));
    }

    function test_no_scope_reaches_the_account_the_entry_point_or_a_token_but_to_approve() public {
        deployed();
        MarketAccount.Scope[8] memory scopes = [
            MarketAccount.Scope(address(account), account.grantSession.selector),
            MarketAccount.Scope(address(account), account.execute.selector),
            MarketAccount.Scope(address(entryPoint), entryPoint.withdrawTo.selector),
            MarketAccount.Scope(address(usd), IERC20.transfer.selector),
            MarketAccount.Scope(address(usd), INCREASE_ALLOWANCE),
            MarketAccount.Scope(address(fab), IERC20.transfer.selector),
            MarketAccount.Scope(address(fab), IERC20.transferFrom.selector),
            MarketAccount.Scope(address(fab), INCREASE_ALLOWANCE)
        ];
        for (uint256 i = 0; i < scopes.length; i++) {
            refusedScope(scopes[i]);
        }
        refusedScope(MarketAccount.Scope(address(usd), fab.permit.selector));
        // FAB has no limit in this session.
        refusedScope(MarketAccount.Scope(address(fab), IERC20.approve.selector));
    }

    // No hidden state.

    function test_the_logs_rebuild_a_session() public {
        deployed();
        bytes memory granting = abi.encodeCall(account.grantSession, (sessionKey, session()));
        run(OWNER_KEY, granting);
        run(SESSION_KEY, one(postCall(PRICE)));
        run(SESSION_KEY, batch(approveUsd(5e6), postUsdCall(5e6)));
        vm.assertTrue(limitLeft(0) != ETH_LIMIT);
        vm.assertEq(abi.encode(account.getSession(sessionKey)), abi.encode(folded));
        run(OWNER_KEY, abi.encodeCall(account.revokeSession, (sessionKey)));
        vm.assertEq(abi.encode(account.getSession(sessionKey)), abi.encode(folded));
        run(OWNER_KEY, granting);
        vm.assertEq(abi.encode(account.getSession(sessionKey)), abi.encode(folded));
    }

    function test_the_logs_say_whose_an_account_is() public {
        vm.expectEmit(address(account));
        emit MarketAccount.OwnerSet(accountOwner);
        deployed();
    }

    function fold(Vm.Log[] memory logs) private {
        for (uint256 i = 0; i < logs.length; i++) {
            if (logs[i].emitter != address(account)) continue;
            bytes32 kind = logs[i].topics[0];
            if (kind == MarketAccount.SessionRevoked.selector) {
                delete folded;
            } else if (kind == MarketAccount.SessionGranted.selector) {
                foldGrant(abi.decode(logs[i].data, (MarketAccount.Session)));
            } else if (kind == MarketAccount.SessionSpent.selector) {
                foldSpending(address(uint160(uint256(logs[i].topics[2]))), abi.decode(logs[i].data, (uint256)));
            }
        }
    }

    function foldGrant(MarketAccount.Session memory s) private {
        delete folded;
        (folded.validAfter, folded.validUntil) = (s.validAfter, s.validUntil);
        for (uint256 i = 0; i < s.scope.length; i++) {
            folded.scope.push(s.scope[i]);
        }
        for (uint256 i = 0; i < s.limits.length; i++) {
            folded.limits.push(s.limits[i]);
        }
    }

    function foldSpending(address token, uint256 amount) private {
        for (uint256 i = 0; i < folded.limits.length; i++) {
            if (folded.limits[i].token == token) folded.limits[i].amount -= uint96(amount);
        }
    }

    // What operations are made of.

    function deployed() private {
        factory.createAccount(accountOwner, SALT);
    }

    /// A renter's: posts with ETH or USDC, cancels.
    function session() private view returns (MarketAccount.Session memory s) {
        s.validUntil = uint48(block.timestamp + 1 days);
        s.scope = new MarketAccount.Scope[](4);
        s.scope[0] = MarketAccount.Scope(address(marketplace), marketplace.postJob.selector);
        s.scope[1] = MarketAccount.Scope(address(marketplace), marketplace.postJobWithToken.selector);
        s.scope[2] = MarketAccount.Scope(address(usd), IERC20.approve.selector);
        s.scope[3] = MarketAccount.Scope(address(marketplace), marketplace.cancelJob.selector);
        s.limits = new MarketAccount.Limit[](2);
        s.limits[0] = MarketAccount.Limit(address(0), ETH_LIMIT);
        s.limits[1] = MarketAccount.Limit(address(usd), USD_LIMIT);
    }

    function grant(MarketAccount.Session memory s) private {
        vm.prank(accountOwner);
        account.grantSession(sessionKey, s);
    }

    function limitLeft(uint256 index) private view returns (uint256) {
        return account.getSession(sessionKey).limits[index].amount;
    }

    function postCall(uint256 payment) private view returns (MarketAccount.Call memory) {
        bytes memory data = abi.encodeCall(marketplace.postJob, (details(), requirements(), payment));
        return MarketAccount.Call(address(marketplace), payment, data);
    }

    function postUsdCall(uint256 payment) private view returns (MarketAccount.Call memory) {
        bytes memory data =
            abi.encodeCall(marketplace.postJobWithToken, (details(), requirements(), address(usd), payment));
        return MarketAccount.Call(address(marketplace), 0, data);
    }

    function approveUsd(uint256 amount) private view returns (MarketAccount.Call memory) {
        return MarketAccount.Call(address(usd), 0, abi.encodeCall(usd.approve, (address(marketplace), amount)));
    }

    function one(MarketAccount.Call memory call) private view returns (bytes memory) {
        return abi.encodeCall(account.execute, (call.target, call.value, call.data));
    }

    function batch(MarketAccount.Call memory a, MarketAccount.Call memory b) private view returns (bytes memory) {
        MarketAccount.Call[] memory calls = new MarketAccount.Call[](2);
        (calls[0], calls[1]) = (a, b);
        return abi.encodeCall(account.executeBatch, (calls));
    }

    function packed(MarketAccount.Call memory call) private view returns (PackedUserOperation memory) {
        return UserOps.pack(entryPoint, address(account), one(call));
    }

    function signature(uint256 key, bytes32 hash) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, hash);
        return abi.encodePacked(r, s, v);
    }

    // Submitting, and what comes of it.

    function run(uint256 key, bytes memory callData) private {
        submit(key, callData, true);
    }

    /// Submits an operation that is valid and whose execution reverts.
    function runFailing(uint256 key, bytes memory callData) private {
        submit(key, callData, false);
    }

    function submit(uint256 key, bytes memory callData, bool succeeds) private {
        PackedUserOperation memory op = UserOps.pack(entryPoint, address(account), callData);
        op.sign(entryPoint, key);
        vm.recordLogs();
        op.submit(entryPoint);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        vm.assertTrue(succeeded(logs) == succeeds);
        fold(logs);
    }

    function succeeded(Vm.Log[] memory logs) private pure returns (bool success) {
        Vm.Log memory last = logs[logs.length - 1];
        vm.assertEq(last.topics[0], UserOperationEvent.selector);
        (, success,,) = abi.decode(last.data, (uint256, bool, uint256, uint256));
    }

    function refused(PackedUserOperation memory op, uint256 key, string memory reason) private {
        op.sign(entryPoint, key);
        vm.expectRevert(abi.encodeWithSelector(IEntryPoint.FailedOp.selector, 0, reason));
        op.submit(entryPoint);
    }

    function refusedInside(PackedUserOperation memory op, bytes memory refusal) private {
        op.sign(entryPoint, SESSION_KEY);
        vm.expectRevert(abi.encodeWithSelector(IEntryPoint.FailedOpWithRevert.selector, 0, "AA23 reverted", refusal));
        op.submit(entryPoint);
    }

    function refusedInside(bytes memory callData, bytes memory refusal) private {
        refusedInside(UserOps.pack(entryPoint, address(account), callData), refusal);
    }

    function refusedAsOutOfScope(MarketAccount.Call memory call) private {
        bytes memory refusal =
            abi.encodeWithSelector(MarketAccount.OutOfScope.selector, sessionKey, call.target, bytes4(call.data));
        refusedInside(one(call), refusal);
        refusedInside(batch(postCall(PRICE), call), refusal);
    }

    function refusedAsOverLimit(bytes memory callData, address token, uint256 amount, uint256 left) private {
        refusedInside(callData, overLimit(token, amount, left));
    }

    function overLimit(address token, uint256 amount, uint256 left) private view returns (bytes memory) {
        return abi.encodeWithSelector(MarketAccount.OverLimit.selector, sessionKey, token, amount, left);
    }

    function refusedScope(MarketAccount.Scope memory scope) private {
        MarketAccount.Session memory s = session();
        s.scope[3] = scope;
        refusedGrant(
            sessionKey, s, abi.encodeWithSelector(MarketAccount.ScopeRefused.selector, scope.target, scope.selector)
        );
    }

    function refusedGrant(address key, MarketAccount.Session memory s, bytes memory refusal) private {
        vm.expectRevert(refusal);
        vm.prank(accountOwner);
        account.grantSession(key, s);
    }
}
