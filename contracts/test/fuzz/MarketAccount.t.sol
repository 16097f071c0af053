// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Account} from "@openzeppelin/contracts/account/Account.sol";
import {IEntryPoint, PackedUserOperation} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {BaseAccountIntegration} from "../../src/BaseAccountIntegration.sol";
import {MarketAccount} from "../../src/MarketAccount.sol";
import {Fuzz} from "../lib/Fuzz.sol";
import {TestPaymaster, UserOps} from "../lib/UserOps.sol";
import {Vm} from "../lib/Vm.sol";

/// Where accounts spend, and which takes all that it can get.
contract Shop {
    error Refused(bytes what);

    /// Tells apart any two series of sales.
    bytes32 public sold;

    function buy(bool refuse, bytes calldata what) external payable {
        if (refuse) revert Refused(what);
        sold = keccak256(abi.encode(sold, msg.sender, msg.value, what));
    }

    function take(IERC20 token, address from, uint256 amount) external {
        token.transferFrom(from, address(this), amount);
    }
}

contract MarketAccountFuzz is Fuzz {
    using UserOps for PackedUserOperation;

    uint256 private constant OWNER_KEY = 0xA11CE;
    uint256 private constant SESSION_KEY = 0x5E55;
    uint256 private constant OTHER_SESSION_KEY = 0x5E56;
    uint256 private constant STRANGER_KEY = 0xBAD;
    /// More than twenty grants allow.
    uint256 private constant FUNDS = 120 ether;
    uint256 private constant USD_FUNDS = 2000e6;
    uint48 private constant TIME_MAX = (1 << 47) - 1;
    uint256 private constant SECP256K1_N = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
    bytes4 private constant INCREASE_ALLOWANCE = 0x39509351;

    IEntryPoint private entryPoint;
    BaseAccountIntegration private factory;
    TestPaymaster private paymaster;
    Shop private shop;
    MarketAccount private wallet;
    address private walletOwner;
    address private key;
    address private otherKey;

    /// What the operation at hand may do, and what is spent if it may.
    struct Model {
        bool ok;
        uint256 eth;
        uint256 usd;
    }

    uint256 private seed;
    uint256 private grantedEth;
    uint256 private grantedUsd;

    function setUp() public override {
        super.setUp();
        entryPoint = UserOps.deployEntryPoint();
        factory = new BaseAccountIntegration(entryPoint);
        paymaster = new TestPaymaster();
        entryPoint.depositTo{value: 1000 ether}(address(paymaster));
        shop = new Shop();
        (walletOwner, key, otherKey) = (vm.addr(OWNER_KEY), vm.addr(SESSION_KEY), vm.addr(OTHER_SESSION_KEY));
        wallet = MarketAccount(payable(factory.createAccount(walletOwner, 0)));
        vm.deal(address(wallet), FUNDS);
        usd.transfer(address(wallet), USD_FUNDS);
        fab.transfer(address(wallet), 1e18);
    }

    /// The next value below `n`.
    function draw(uint256 n) private returns (uint256) {
        seed = uint256(keccak256(abi.encode(seed)));
        return seed % n;
    }

    function chance(uint256 oneIn) private returns (bool) {
        return draw(oneIn) == 0;
    }

    /// Somebody who may act as the account, or who may be thought to, or an ordinary account.
    function caller(uint8 pick, address other) private view returns (address) {
        if (pick % 8 < 2) return walletOwner;
        return [
            address(entryPoint),
            address(wallet),
            key,
            address(factory),
            address(factory.implementation()),
            account(other)
        ][pick % 8 - 2];
    }

    function mayAct(address who) private view returns (bool) {
        return who == walletOwner || who == address(entryPoint) || who == address(wallet);
    }

    function attempt(address who, bytes memory data) private returns (bool ok, bytes memory answer) {
        vm.prank(who);
        return address(wallet).call(data);
    }

    // What is the owner's.

    function testFuzz_initialize_gives_a_clone_its_one_owner(
        address who,
        address first,
        address second,
        bool nobody,
        bool ofImplementation
    ) public {
        (who, first, second) = (account(who), nobody ? address(0) : account(first), account(second));
        address clone = address(factory.implementation());
        if (!ofImplementation) clone = Clones.clone(clone);
        bool fits = !ofImplementation && !nobody;
        same(tries(who, clone, abi.encodeCall(wallet.initialize, (first))), fits);
        vm.assertEq(MarketAccount(payable(clone)).owner(), fits ? first : address(0));
        bool still = !ofImplementation && nobody;
        same(tries(who, clone, abi.encodeCall(wallet.initialize, (second))), still);
        address has = ofImplementation ? address(0) : fits ? first : second;
        vm.assertEq(MarketAccount(payable(clone)).owner(), has);
        same(tries(has, clone, abi.encodeCall(wallet.initialize, (who))), false);
        vm.assertEq(MarketAccount(payable(clone)).owner(), has);
    }

    function testFuzz_execute_is_the_owners_and_makes_exactly_the_call(
        uint8 pick,
        address other,
        uint256 value,
        bool refuse,
        bytes calldata what
    ) public {
        address who = caller(pick, other);
        value = bound(value, 0, 2 * FUNDS);
        bool fits = mayAct(who) && value <= FUNDS && !refuse;
        (bool ok, bytes memory answer) = attempt(
            who, abi.encodeCall(wallet.execute, (address(shop), value, abi.encodeCall(shop.buy, (refuse, what))))
        );
        same(ok, fits);
        if (!mayAct(who)) vm.assertEq(answer, abi.encodeWithSelector(Account.AccountUnauthorized.selector, who));
        else if (value > FUNDS || fits) vm.assertEq(answer, "");
        else vm.assertEq(answer, abi.encodeWithSelector(Shop.Refused.selector, what));
        assertSpent(fits ? value : 0);
        vm.assertEq(shop.sold(), fits ? keccak256(abi.encode(bytes32(0), wallet, value, what)) : bytes32(0));
    }

    function assertSpent(uint256 eth) private view {
        vm.assertEq(address(shop).balance, eth);
        vm.assertEq(address(wallet).balance, FUNDS - eth);
    }

    function testFuzz_executeBatch_is_the_owners_and_makes_all_calls_in_order_or_none(
        uint8 pick,
        address other,
        uint256 seed_
    ) public {
        seed = seed_;
        address who = caller(pick, other);
        MarketAccount.Call[] memory calls = new MarketAccount.Call[](draw(5));
        Model memory m = Model(mayAct(who), 0, 0);
        bytes32 sold;
        for (uint256 i = 0; i < calls.length; i++) {
            bool refuse = chance(8);
            bytes memory what = abi.encode(draw(1 << 255));
            uint256 value = draw(FUNDS / 2);
            calls[i] = MarketAccount.Call(address(shop), value, abi.encodeCall(shop.buy, (refuse, what)));
            m.ok = m.ok && !refuse;
            m.eth += value;
            sold = keccak256(abi.encode(sold, wallet, value, what));
        }
        m.ok = m.ok && m.eth <= FUNDS;
        (bool ok,) = attempt(who, abi.encodeCall(wallet.executeBatch, (calls)));
        same(ok, m.ok);
        assertSpent(m.ok ? m.eth : 0);
        vm.assertEq(shop.sold(), m.ok ? sold : bytes32(0));
    }

    /// Always some ETH, which no function takes: what has data finds none.
    function testFuzz_receive_takes_eth_from_anyone_and_nothing_else(address who, uint96 amount, bytes calldata data)
        public
    {
        who = account(who);
        amount = uint96(bound(amount, 1, type(uint96).max));
        vm.deal(who, amount);
        bool fits = data.length == 0;
        same(tries(who, address(wallet), amount, data), fits);
        vm.assertEq(address(wallet).balance, fits ? FUNDS + amount : FUNDS);
        same(tries(who, address(wallet), ""), true);
    }

    // Sessions.

    function testFuzz_grantSession_is_the_owners_and_within_the_rules(
        uint8 pick,
        address other,
        address someKey,
        uint256 seed_
    ) public {
        seed = seed_;
        address who = caller(pick, other);
        if (chance(16)) someKey = [address(0), walletOwner][draw(2)];
        else if (chance(2)) someKey = key;
        grant(key, anySpending());
        grant(otherKey, anySpending());
        bytes memory others = abi.encode(wallet.getSession(otherKey));
        vm.assume(someKey != otherKey);
        bytes memory before = abi.encode(wallet.getSession(someKey));
        MarketAccount.Session memory s = anySession();
        bool fits = mayAct(who) && grantable(someKey, s);
        vm.recordLogs();
        (bool ok,) = attempt(who, abi.encodeCall(wallet.grantSession, (someKey, s)));
        same(ok, fits);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        if (fits) {
            vm.assertEq(logs.length, 1);
            vm.assertEq(logs[0].topics[0], MarketAccount.SessionGranted.selector);
            vm.assertEq(logs[0].topics[1], bytes32(uint256(uint160(someKey))));
            vm.assertEq(logs[0].data, abi.encode(s));
        }
        vm.assertEq(abi.encode(wallet.getSession(someKey)), fits ? abi.encode(s) : before);
        vm.assertEq(abi.encode(wallet.getSession(otherKey)), others);
    }

    /// What may be granted.
    function grantable(address to, MarketAccount.Session memory s) private view returns (bool) {
        if (to == address(0) || to == walletOwner) return false;
        if (s.validAfter >= s.validUntil || s.validUntil >= 1 << 47) return false;
        if (s.scope.length < 1 || s.scope.length > 16 || s.limits.length > 8) return false;
        for (uint256 i = 0; i < s.limits.length; i++) {
            for (uint256 j = 0; j < i; j++) {
                if (s.limits[i].token == s.limits[j].token) return false;
            }
        }
        for (uint256 i = 0; i < s.scope.length; i++) {
            (address target, bytes4 selector) = (s.scope[i].target, s.scope[i].selector);
            if (target == address(wallet) || target == address(entryPoint)) return false;
            bool moves = selector == IERC20.transfer.selector || selector == IERC20.transferFrom.selector
                || selector == INCREASE_ALLOWANCE;
            if (moves) return false;
            bool limited = false;
            for (uint256 j = 0; j < s.limits.length; j++) {
                if (s.limits[j].token == target) limited = true;
            }
            if (limited != (selector == IERC20.approve.selector)) return false;
        }
        return true;
    }

    /// Often one that may be granted, and often nearly.
    function anySession() private returns (MarketAccount.Session memory s) {
        s.validAfter = uint48(chance(8) ? draw(1 << 48) : draw(1 << 46));
        s.validUntil = uint48((1 << 46) + draw(1 << 46));
        if (chance(8)) s.validUntil = uint48(TIME_MAX + draw(2));
        if (chance(8)) s.validUntil = uint48(s.validAfter + draw(2));
        s.limits = new MarketAccount.Limit[](chance(8) ? 8 + draw(2) : draw(4));
        for (uint256 i = 0; i < s.limits.length; i++) {
            s.limits[i].token = i < 3 ? [address(0), address(usd), address(fab)][i] : address(uint160(0x70000 + i));
            if (i != 0 && chance(24)) s.limits[i].token = s.limits[draw(i)].token;
            s.limits[i].amount = uint96(draw(1 << 96));
        }
        s.scope = new MarketAccount.Scope[](chance(8) ? [uint256(0), 16, 17][draw(3)] : 1 + draw(3));
        for (uint256 i = 0; i < s.scope.length; i++) {
            if (s.limits.length != 0 && chance(2)) {
                s.scope[i] = MarketAccount.Scope(s.limits[draw(s.limits.length)].token, IERC20.approve.selector);
            } else {
                s.scope[i] = MarketAccount.Scope(address(shop), bytes4(bytes32(draw(1 << 255))));
            }
            if (chance(24)) s.scope[i].target = anyTarget();
            if (chance(24)) s.scope[i].selector = anySelector();
        }
    }

    function anyTarget() private returns (address) {
        return [address(wallet), address(entryPoint), address(usd), address(fab), address(shop), address(0)][draw(6)];
    }

    function anySelector() private returns (bytes4) {
        return [
            IERC20.approve.selector,
            IERC20.transfer.selector,
            IERC20.transferFrom.selector,
            INCREASE_ALLOWANCE,
            Shop.buy.selector,
            bytes4(0)
        ][draw(6)];
    }

    function grant(address to, MarketAccount.Session memory s) private {
        vm.prank(walletOwner);
        wallet.grantSession(to, s);
    }

    function testFuzz_revokeSession_is_the_owners_and_ends_one_session(uint8 pick, address other, bool granted) public {
        address who = caller(pick, other);
        if (granted) grant(key, anySpending());
        grant(otherKey, anySpending());
        bytes memory before = abi.encode(wallet.getSession(key));
        bytes memory others = abi.encode(wallet.getSession(otherKey));
        bool fits = mayAct(who) && granted;
        vm.recordLogs();
        (bool ok,) = attempt(who, abi.encodeCall(wallet.revokeSession, (key)));
        same(ok, fits);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        if (fits) {
            vm.assertEq(logs.length, 1);
            vm.assertEq(logs[0].topics[0], MarketAccount.SessionRevoked.selector);
            vm.assertEq(logs[0].topics[1], bytes32(uint256(uint160(key))));
        }
        MarketAccount.Session memory none;
        vm.assertEq(abi.encode(wallet.getSession(key)), fits ? abi.encode(none) : before);
        vm.assertEq(abi.encode(wallet.getSession(otherKey)), others);
    }

    // Who signed.

    function anyKind(uint8 from) private pure returns (uint8) {
        return from < 128 ? from % 2 : from % 16;
    }

    /// By kind: 0 the owner's of `hash`, 1 the session's; then some that nobody may take for either.
    function signature(uint256 kind, bytes32 hash, bytes calldata junk) private pure returns (bytes memory) {
        if (kind == 2) return signed(STRANGER_KEY, hash);
        if (kind == 3) return signed(OWNER_KEY, ~hash);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(kind % 2 == 0 ? OWNER_KEY : SESSION_KEY, hash);
        if (kind < 2) return abi.encodePacked(r, s, v);
        // The same point signs this too.
        if (kind < 6) return abi.encodePacked(r, SECP256K1_N - uint256(s), uint8(55 - v));
        if (kind < 8) return abi.encodePacked(r, s, uint8(v - 27));
        if (kind < 10) return abi.encodePacked(r, s);
        if (kind < 12) return abi.encodePacked(r, s, v, junk, uint8(0));
        if (kind < 14) return new bytes(65);
        return junk;
    }

    function signed(uint256 by, bytes32 hash) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(by, hash);
        return abi.encodePacked(r, s, v);
    }

    /// With the owner's signature anything, with a session's what its scope lists.
    function testFuzz_validateUserOp_is_the_entry_points_and_says_who_signed(
        uint8 pick,
        address other,
        uint8 kind,
        bytes32 opHash,
        uint256 missing,
        uint48[2] memory window,
        bytes calldata junk
    ) public {
        address who = pick % 2 == 0 ? address(entryPoint) : caller(pick / 2, other);
        kind = anyKind(kind);
        missing = bound(missing, 0, 2 * FUNDS);
        MarketAccount.Session memory s = anySpending();
        s.validAfter = uint48(bound(window[0], 0, TIME_MAX - 1));
        s.validUntil = uint48(bound(window[1], s.validAfter + 1, TIME_MAX));
        s.limits[0].amount = type(uint96).max;
        grant(key, s);
        (bool ok, bytes memory answer) =
            attempt(who, abi.encodeCall(wallet.validateUserOp, (ofKind(kind, opHash, junk), opHash, missing)));
        bool fits = who == address(entryPoint);
        same(ok, fits);
        if (fits) vm.assertEq(abi.decode(answer, (uint256)), validation(kind, s));
        else vm.assertEq(answer, abi.encodeWithSelector(Account.AccountUnauthorized.selector, who));
        // What it cannot pay it does not, and the entry point refuses the operation.
        uint256 paid = fits && missing <= FUNDS ? missing : 0;
        vm.assertEq(entryPoint.balanceOf(address(wallet)), paid);
        vm.assertEq(address(wallet).balance, FUNDS - paid);
    }

    function ofKind(uint256 kind, bytes32 opHash, bytes calldata junk)
        private
        view
        returns (PackedUserOperation memory op)
    {
        op = UserOps.pack(entryPoint, address(wallet), abi.encodeCall(wallet.execute, (stranger, 1, "")));
        if (kind == 1) op.callData = buying();
        op.signature = signature(kind, opHash, junk);
    }

    function buying() private view returns (bytes memory) {
        return abi.encodeCall(wallet.execute, (address(shop), 1, abi.encodeCall(shop.buy, (false, ""))));
    }

    /// By definition: ERC-4337.
    function validation(uint256 kind, MarketAccount.Session memory s) private pure returns (uint256) {
        if (kind == 0) return 0;
        return kind == 1 ? uint256(s.validAfter) << 208 | uint256(s.validUntil) << 160 : 1;
    }

    function testFuzz_validateUserOp_is_heeded_by_the_entry_point_within_the_window(
        uint40[2] memory window,
        uint40 time,
        uint8 edge,
        bool byOwner
    ) public {
        MarketAccount.Session memory s = anySpending();
        s.validAfter = uint48(bound(window[0], 1, type(uint40).max - 2));
        s.validUntil = uint48(bound(window[1], s.validAfter + 1, type(uint40).max - 1));
        s.limits[0].amount = uint96(FUNDS);
        grant(key, s);
        uint256 now_ = edge % 4 == 0 ? time : (edge % 4 == 1 ? s.validAfter : s.validUntil) - 1 + edge / 4 % 3;
        vm.warp(now_);
        PackedUserOperation memory op = UserOps.pack(entryPoint, address(wallet), buying());
        op.sign(entryPoint, byOwner ? OWNER_KEY : SESSION_KEY);
        bool fits = byOwner || (s.validAfter < now_ && now_ <= s.validUntil);
        same(submits(op), fits);
        vm.assertEq(address(shop).balance, fits ? 1 : 0);
        same(submits(op), false);
        vm.assertEq(address(shop).balance, fits ? 1 : 0);
    }

    function submits(PackedUserOperation memory op) private returns (bool) {
        PackedUserOperation[] memory ops = new PackedUserOperation[](1);
        ops[0] = op;
        return tries(UserOps.BUNDLER, address(entryPoint), abi.encodeCall(entryPoint.handleOps, (ops, UserOps.BUNDLER)));
    }

    /// View, yet what the host takes for the renter's word.
    function testFuzz_isValidSignature_takes_what_the_owner_signed_for_this_account(
        uint8 kind,
        uint8 wrong,
        bytes32 hash,
        bytes calldata junk
    ) public {
        grant(key, anySpending());
        kind = anyKind(kind);
        wrong %= 8;
        bytes32 what =
            forAccount(wrong == 1 ? stranger : address(wallet), wrong == 2 ? block.chainid + 1 : block.chainid, hash);
        if (wrong == 3) what = hash;
        if (wrong == 4) what = forAccount(address(wallet), block.chainid, ~hash);
        bytes4 answer = wallet.isValidSignature(hash, signature(kind, what, junk));
        bool fits = kind == 0 && (wrong == 0 || wrong > 4);
        vm.assertTrue(answer == (fits ? bytes4(0x1626ba7e) : bytes4(0xffffffff)));
    }

    /// By definition: EIP-712.
    function forAccount(address who, uint256 chain, bytes32 hash) private pure returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Fabstir MarketAccount"),
                keccak256("1"),
                chain,
                who
            )
        );
        bytes32 message = keccak256(abi.encode(keccak256("MarketAccountMessage(bytes32 hash)"), hash));
        return keccak256(abi.encodePacked(hex"1901", domain, message));
    }

    // What a session spends.

    /// A session that may buy from the shop, have it take tokens, and approve USD to it: the first limit is of ETH.
    function anySpending() private returns (MarketAccount.Session memory s) {
        s.validUntil = uint48(block.timestamp + 1 + draw(2 days));
        s.scope = new MarketAccount.Scope[](3);
        s.scope[0] = MarketAccount.Scope(address(shop), Shop.buy.selector);
        s.scope[1] = MarketAccount.Scope(address(usd), IERC20.approve.selector);
        s.scope[2] = MarketAccount.Scope(address(shop), Shop.take.selector);
        s.limits = new MarketAccount.Limit[](2);
        s.limits[0] = MarketAccount.Limit(address(0), uint96(draw(6 ether)));
        s.limits[1] = MarketAccount.Limit(address(usd), uint96(draw(100e6)));
    }

    /// A call that a session of `anySpending` may make if its limits allow, which `m` says, or one that it may not.
    function anyCall(MarketAccount.Session memory s, Model memory m) private returns (MarketAccount.Call memory call) {
        uint256 kind = draw(32);
        uint256 amount = draw(20e6);
        // All that is left, or one more.
        if (chance(4) && s.limits[1].amount >= m.usd) amount = s.limits[1].amount - m.usd + draw(2);
        call.target = address(shop);
        if (kind < 12) {
            call.value = draw(1 ether);
            if (chance(4) && s.limits[0].amount >= m.eth) call.value = s.limits[0].amount - m.eth + draw(2);
            call.data = abi.encodeCall(shop.buy, (chance(8), ""));
            m.eth += call.value;
        } else if (kind < 24) {
            call.target = address(usd);
            call.data = abi.encodeCall(usd.approve, (address(shop), amount));
            m.usd += amount;
            m.ok = m.ok && m.usd <= s.limits[1].amount;
        } else if (kind < 28) {
            call.data = abi.encodeCall(shop.take, (usd, address(wallet), amount));
        } else {
            bool fits = false;
            if (kind == 28) {
                call.target = address(usd);
                call.data = abi.encodeCall(usd.approve, (stranger, draw(2)));
            } else if (kind == 29) {
                call.target = address(usd);
                call.data = abi.encodePacked(abi.encodeCall(usd.approve, (address(shop), 0)), uint8(0));
            } else if (kind == 30) {
                call.target = anyTarget();
                call.data = abi.encodeWithSelector(anySelector(), stranger, amount);
                fits = call.target == address(shop) && bytes4(call.data) == Shop.buy.selector;
            } else {
                call.value = draw(2) * 1 ether;
                call.data = chance(2) ? bytes("") : bytes(hex"000000");
            }
            m.ok = m.ok && fits;
        }
    }

    /// An unsigned operation, and what it may come to. Paid for by a paymaster, or with as much gas as it likes.
    function anyOperation(MarketAccount.Session memory s)
        private
        returns (PackedUserOperation memory op, Model memory m)
    {
        op = UserOps.pack(entryPoint, address(wallet), "");
        uint256[4] memory gas = [uint256(UserOps.VERIFICATION_GAS), chance(8) ? 10_000 : 500_000, draw(100_000), 0];
        op.accountGasLimits = bytes32(abi.encodePacked(uint128(gas[0]), uint128(gas[1])));
        op.preVerificationGas = gas[2];
        uint128 fee = uint128(draw([1 gwei, 1000 gwei][draw(2)]));
        op.gasFees = bytes32(abi.encodePacked(fee, fee));
        bool sponsored = chance(2);
        if (sponsored) op.sponsor(address(paymaster));
        m = Model(true, sponsored ? 0 : (gas[0] + gas[1] + gas[2]) * fee, 0);

        MarketAccount.Call[] memory calls = new MarketAccount.Call[](draw(4));
        for (uint256 i = 0; i < calls.length; i++) {
            calls[i] = anyCall(s, m);
        }
        if (chance(24)) {
            m.ok = false;
            op.callData = abi.encodeCall(wallet.grantSession, (key, s));
        } else if (calls.length == 1) {
            op.callData = abi.encodeCall(wallet.execute, (calls[0].target, calls[0].value, calls[0].data));
        } else {
            op.callData = abi.encodeCall(wallet.executeBatch, (calls));
        }
        m.ok = m.ok && m.eth <= s.limits[0].amount;
    }

    function testFuzz_validateUserOp_takes_of_a_session_what_its_limits_leave_and_counts_it(uint256 seed_) public {
        seed = seed_;
        MarketAccount.Session memory s = anySpending();
        grant(key, s);
        for (uint256 i = 0; i < 4; i++) {
            (PackedUserOperation memory op, Model memory m) = anyOperation(s);
            op.signature = signed(SESSION_KEY, bytes32(i));
            vm.recordLogs();
            (bool ok, bytes memory answer) =
                attempt(address(entryPoint), abi.encodeCall(wallet.validateUserOp, (op, bytes32(i), 0)));
            same(ok, m.ok);
            if (ok) {
                vm.assertEq(abi.decode(answer, (uint256)), uint256(s.validUntil) << 160);
                s.limits[0].amount -= uint96(m.eth);
                s.limits[1].amount -= uint96(m.usd);
                assertLogged(m.eth, m.usd);
            }
            vm.assertEq(abi.encode(wallet.getSession(key)), abi.encode(s));
        }
    }

    function assertLogged(uint256 eth, uint256 dollars) private {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; i++) {
            vm.assertEq(logs[i].topics[0], MarketAccount.SessionSpent.selector);
            vm.assertEq(logs[i].topics[1], bytes32(uint256(uint160(key))));
            uint256 amount = abi.decode(logs[i].data, (uint256));
            if (logs[i].topics[2] == 0) {
                eth -= amount;
            } else {
                vm.assertEq(logs[i].topics[2], bytes32(uint256(uint160(address(usd)))));
                dollars -= amount;
            }
        }
        vm.assertEq(eth, 0);
        vm.assertEq(dollars, 0);
    }

    /// Whatever two sessions and the shop do, and however often the owner grants and revokes: what has left the account and
    /// what may still leave it is at most what the grants allowed.
    function testFuzz_sessions_take_no_more_than_was_granted(uint256 seed_) public {
        seed = seed_;
        for (uint256 i = 0; i < 20; i++) {
            uint256 action = i == 0 ? 0 : draw(20);
            (uint256 by, address of_) = chance(4) ? (OTHER_SESSION_KEY, otherKey) : (SESSION_KEY, key);
            MarketAccount.Session memory s = wallet.getSession(of_);
            if (action < 3) {
                s = anySpending();
                grant(of_, s);
                grantedEth += s.limits[0].amount;
                grantedUsd += s.limits[1].amount;
            } else if (action == 3) {
                same(
                    tries(walletOwner, address(wallet), abi.encodeCall(wallet.revokeSession, (of_))), s.validUntil != 0
                );
            } else if (action == 4) {
                vm.warp(block.timestamp + draw(12 hours));
            } else if (action < 7) {
                uint256 most = usd.allowance(address(wallet), address(shop));
                bool fits = chance(2);
                uint256 amount = fits ? draw(most + 1) : most + 1;
                same(tries(stranger, address(shop), abi.encodeCall(shop.take, (usd, address(wallet), amount))), fits);
            } else {
                if (s.validUntil == 0) s = anySpending();
                (PackedUserOperation memory op, Model memory m) = anyOperation(s);
                op.sign(entryPoint, by);
                bool fits = m.ok && wallet.getSession(of_).validUntil != 0 && block.timestamp <= s.validUntil;
                same(submits(op), fits);
            }
            assertWithinGrants();
        }
    }

    function assertWithinGrants() private view {
        MarketAccount.Session memory a = wallet.getSession(key);
        MarketAccount.Session memory b = wallet.getSession(otherKey);
        uint256 ethLeft;
        uint256 usdLeft;
        if (a.validUntil != 0) (ethLeft, usdLeft) = (a.limits[0].amount, a.limits[1].amount);
        if (b.validUntil != 0) (ethLeft, usdLeft) = (ethLeft + b.limits[0].amount, usdLeft + b.limits[1].amount);
        uint256 ethGone = FUNDS - address(wallet).balance - entryPoint.balanceOf(address(wallet));
        uint256 usdGone = USD_FUNDS - usd.balanceOf(address(wallet));
        uint256 allowed = usd.allowance(address(wallet), address(shop));
        vm.assertTrue(ethGone + ethLeft <= grantedEth);
        vm.assertTrue(usdGone + allowed + usdLeft <= grantedUsd);
        vm.assertEq(usd.balanceOf(address(shop)), usdGone);
        vm.assertEq(usd.allowance(address(wallet), stranger), 0);
        vm.assertEq(fab.balanceOf(address(wallet)), 1e18);
        vm.assertEq(fab.allowance(address(wallet), address(shop)), 0);
        vm.assertEq(wallet.owner(), walletOwner);
    }
}
