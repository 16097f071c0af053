// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Account} from "@openzeppelin/contracts/account/Account.sol";
import {ERC4337Utils} from "@openzeppelin/contracts/account/utils/ERC4337Utils.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {IEntryPoint, PackedUserOperation} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {Initializable} from "@openzeppelin/contracts/proxy/utils/Initializable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Bytes} from "@openzeppelin/contracts/utils/Bytes.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// A smart account (ERC-4337) that posts jobs, pays and hosts in one user operation. Its owner, an EOA fixed for good, may
/// do everything. A session key, which the owner grants and revokes, may sign user operations that call what its scope
/// lists, within its window and its limits.
///
/// A session can never: call this account or the entry point, send ETH to anything outside its scope, move a token other
/// than by approving it to a target of its scope, or pay more for gas than its ETH limit leaves.
///
/// Spending is counted when an operation is validated, and stays counted when its execution reverts. What is counted of ETH
/// is what the calls send plus, when no paymaster pays, the most the operation's gas may cost; of a token, what is approved.
/// So limits do not bound allowances that the owner leaves standing: a session may have a target of its scope use those. An
/// allowance that a session made outlives it. And a call's arguments are not looked at: a function that pays whom its
/// argument names (`PaymentEscrow.withdraw`, ERC-677's `transferAndCall` of a token without a limit) should be in nobody's
/// scope.
contract MarketAccount is Account, Initializable, EIP712, IERC1271 {
    using ERC4337Utils for PackedUserOperation;

    struct Call {
        address target;
        uint256 value;
        bytes data;
    }

    /// A function that a session may call. One slot.
    struct Scope {
        address target;
        bytes4 selector;
    }

    /// What a session may yet spend of a token (0 for ETH). One slot.
    struct Limit {
        address token;
        uint96 amount;
    }

    /// Good after `validAfter`, up to and including `validUntil`; there is none when `validUntil` is 0.
    struct Session {
        uint48 validAfter;
        uint48 validUntil;
        /// 1 to 16.
        Scope[] scope;
        /// At most 8, of different tokens. A token that has none may not be spent.
        Limit[] limits;
    }

    uint256 public constant SCOPE_MAX = 16;
    uint256 public constant LIMITS_MAX = 8;
    /// The bit above tells later entry points that a window counts blocks.
    uint48 private constant TIME_MAX = (1 << 47) - 1;
    /// Not in IERC20, but in USDC.
    bytes4 private constant INCREASE_ALLOWANCE = bytes4(keccak256("increaseAllowance(address,uint256)"));

    bytes32 private constant MESSAGE = keccak256("MarketAccountMessage(bytes32 hash)");

    IEntryPoint private immutable _entryPoint;

    address public owner;
    mapping(address key => Session) private _sessions;

    event OwnerSet(address indexed owner);
    /// Replaces the key's session, if it had one.
    event SessionGranted(address indexed key, Session session);
    event SessionRevoked(address indexed key);
    event SessionSpent(address indexed key, address indexed token, uint256 amount);

    error NoOwner();
    error NotAKey(address key);
    error WindowOutOfRange(uint48 validAfter, uint48 validUntil, uint48 max);
    error ScopeLengthOutOfRange(uint256 length, uint256 min, uint256 max);
    error LimitCountOutOfRange(uint256 count, uint256 min, uint256 max);
    error LimitRepeated(address token);
    error ScopeRefused(address target, bytes4 selector);
    error NoSession(address key);
    error NotForSessions(address key, bytes4 selector);
    error OutOfScope(address key, address target, bytes4 selector);
    error SpenderOutOfScope(address key, address token, address spender);
    error MalformedApproval(address key, address token, uint256 length);
    error OverLimit(address key, address token, uint256 amount, uint256 left);

    /// The owner, directly or by an operation or a batch that the owner signed. A session's operations come by the entry
    /// point too, but only as `execute` and `executeBatch`, and never with a call of this account.
    modifier onlyForOwner() {
        if (msg.sender != owner) _checkEntryPointOrSelf();
        _;
    }

    constructor(IEntryPoint entryPoint_) EIP712("Fabstir MarketAccount", "1") {
        _entryPoint = entryPoint_;
        _disableInitializers();
    }

    /// @notice Gives the account its owner, once.
    function initialize(address owner_) external initializer {
        if (owner_ == address(0)) revert NoOwner();
        owner = owner_;
        emit OwnerSet(owner_);
    }

    /// @notice Makes one call. If it reverts, so does this, with the same data.
    function execute(address target, uint256 value, bytes calldata data) external onlyForOwner {
        _call(target, value, data);
    }

    /// @notice Makes the calls in order. If one reverts, so does this, with the same data, and none is made.
    function executeBatch(Call[] calldata calls) external onlyForOwner {
        for (uint256 i = 0; i < calls.length; i++) {
            _call(calls[i].target, calls[i].value, calls[i].data);
        }
    }

    /// @notice Lets `key` sign user operations as `session` says; replaces the key's session, if it had one.
    /// @param session Of its scope, a target with a limit is a token, of which only `approve` may be listed; and `approve` is
    /// listed of nothing else. No target is this account or the entry point, no selector one that moves a token directly.
    function grantSession(address key, Session calldata session) external onlyForOwner {
        if (key == address(0) || key == owner) revert NotAKey(key);
        if (session.validUntil <= session.validAfter || session.validUntil > TIME_MAX) {
            revert WindowOutOfRange(session.validAfter, session.validUntil, TIME_MAX);
        }
        uint256 length = session.scope.length;
        if (length == 0 || length > SCOPE_MAX) revert ScopeLengthOutOfRange(length, 1, SCOPE_MAX);
        uint256 count = session.limits.length;
        if (count > LIMITS_MAX) revert LimitCountOutOfRange(count, 0, LIMITS_MAX);

        delete _sessions[key];
        Session storage stored = _sessions[key];
        (stored.validAfter, stored.validUntil) = (session.validAfter, session.validUntil);
        for (uint256 i = 0; i < count; i++) {
            Limit calldata limit = session.limits[i];
            (, bool known) = _limitOf(stored, limit.token);
            if (known) revert LimitRepeated(limit.token);
            stored.limits.push(limit);
        }
        for (uint256 i = 0; i < length; i++) {
            Scope calldata scope = session.scope[i];
            _checkScope(stored, scope.target, scope.selector);
            stored.scope.push(scope);
        }
        emit SessionGranted(key, session);
    }

    /// @notice Ends a session. Allowances that it made stay, and an operation validated earlier in the same bundle still runs.
    function revokeSession(address key) external onlyForOwner {
        if (_sessions[key].validUntil == 0) revert NoSession(key);
        delete _sessions[key];
        emit SessionRevoked(key);
    }

    /// @notice A key's session, with what its limits leave; all zero when there is none.
    function getSession(address key) external view returns (Session memory) {
        return _sessions[key];
    }

    /// @notice Whether the owner signed `hash` for this account (ERC-1271), such as the request for the tokens of its job.
    /// What the owner signs is the EIP-712 message `MarketAccountMessage(bytes32 hash)` in the domain of this account, so that
    /// no signature made for another account, or for the owner itself, is good here.
    function isValidSignature(bytes32 hash, bytes calldata signature) external view override returns (bytes4) {
        bytes32 message = _hashTypedDataV4(keccak256(abi.encode(MESSAGE, hash)));
        return _rawSignatureValidation(message, signature) ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }

    /// @notice The one contract that may bring user operations, and that keeps what they leave of their gas: the owner gets
    /// that with its `withdrawTo`.
    function entryPoint() public view override returns (IEntryPoint) {
        return _entryPoint;
    }

    /// Says whose operation this is by the 65 bytes of ECDSA signature over its hash; reverts if it is of a session that may
    /// not do this. The entry point checks the window: validation must not read the clock.
    function _validateUserOp(PackedUserOperation calldata op, bytes32 opHash, bytes calldata signature)
        internal
        override
        returns (uint256)
    {
        bytes32 signed = _signableUserOpHash(op, opHash);
        if (_rawSignatureValidation(signed, signature)) return ERC4337Utils.SIG_VALIDATION_SUCCESS;
        // A signature that nobody can have made recovers to address 0, which has no session.
        // slither-disable-next-line unused-return
        (address key,,) = ECDSA.tryRecoverCalldata(signed, signature);
        Session storage session = _sessions[key];
        if (session.validUntil == 0) return ERC4337Utils.SIG_VALIDATION_FAILED;
        _spend(key, session, op);
        return ERC4337Utils.packValidationData(
            true, session.validAfter, session.validUntil, ERC4337Utils.ValidationRange.TIMESTAMP
        );
    }

    /// Whether the owner signed.
    function _rawSignatureValidation(bytes32 hash, bytes calldata signature) internal view override returns (bool) {
        // What is left out says why a signature is malformed.
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(hash, signature);
        // Who signs nothing is address 0, which is the owner of the implementation.
        return failure == ECDSA.RecoverError.NoError && signer == owner;
    }

    /// Checks every call of a session's operation and counts what the operation may cost.
    function _spend(address key, Session storage session, PackedUserOperation calldata op) private {
        Call[] memory calls = _callsOf(key, op.callData);
        uint256 eth = op.paymaster() == address(0) ? _gasCostMax(op) : 0;
        for (uint256 i = 0; i < calls.length; i++) {
            _checkCall(key, session, calls[i].target, calls[i].data);
            eth += calls[i].value;
        }
        _charge(key, session, address(0), eth);
    }

    function _checkCall(address key, Session storage session, address target, bytes memory data) private {
        bytes4 selector = bytes4(data);
        if (data.length < 4 || !_inScope(session, target, selector)) revert OutOfScope(key, target, selector);
        if (selector != IERC20.approve.selector) return;
        if (data.length != 68) revert MalformedApproval(key, target, data.length);
        (address spender, uint256 amount) = abi.decode(Bytes.slice(data, 4), (address, uint256));
        if (!_isTarget(session, spender)) revert SpenderOutOfScope(key, target, spender);
        _charge(key, session, target, amount);
    }

    function _charge(address key, Session storage session, address token, uint256 amount) private {
        if (amount == 0) return;
        (uint256 index, bool known) = _limitOf(session, token);
        uint96 left = known ? session.limits[index].amount : 0;
        if (amount > left) revert OverLimit(key, token, amount, left);
        session.limits[index].amount = left - uint96(amount);
        emit SessionSpent(key, token, amount);
    }

    function _call(address target, uint256 value, bytes calldata data) private {
        if (!LowLevelCall.callNoReturn(target, value, data)) LowLevelCall.bubbleRevert();
    }

    function _checkScope(Session storage session, address target, bytes4 selector) private view {
        (, bool isToken) = _limitOf(session, target);
        if (
            target == address(this) || target == address(_entryPoint)
                || isToken != (selector == IERC20.approve.selector) || selector == IERC20.transfer.selector
                || selector == IERC20.transferFrom.selector || selector == INCREASE_ALLOWANCE
        ) revert ScopeRefused(target, selector);
    }

    function _inScope(Session storage session, address target, bytes4 selector) private view returns (bool) {
        uint256 length = session.scope.length;
        for (uint256 i = 0; i < length; i++) {
            Scope storage scope = session.scope[i];
            if (scope.target == target && scope.selector == selector) return true;
        }
        return false;
    }

    function _isTarget(Session storage session, address target) private view returns (bool) {
        uint256 length = session.scope.length;
        for (uint256 i = 0; i < length; i++) {
            if (session.scope[i].target == target) return true;
        }
        return false;
    }

    function _limitOf(Session storage session, address token) private view returns (uint256 index, bool known) {
        uint256 count = session.limits.length;
        while (index < count && session.limits[index].token != token) index++;
        known = index < count;
    }

    /// The calls that an operation makes by `execute` or `executeBatch`.
    function _callsOf(address key, bytes calldata callData) private pure returns (Call[] memory calls) {
        bytes4 selector = bytes4(callData);
        if (selector == MarketAccount.executeBatch.selector) return abi.decode(callData[4:], (Call[]));
        if (selector != MarketAccount.execute.selector) revert NotForSessions(key, selector);
        calls = new Call[](1);
        (calls[0].target, calls[0].value, calls[0].data) = abi.decode(callData[4:], (address, uint256, bytes));
    }

    /// What the entry point sets aside, which is the most it takes. Without a paymaster the last two are 0, save with one at
    /// address 0, for which v0.7 has the account pay.
    function _gasCostMax(PackedUserOperation calldata op) private pure returns (uint256) {
        uint256 gas = op.preVerificationGas + op.verificationGasLimit() + op.callGasLimit()
            + op.paymasterVerificationGasLimit() + op.paymasterPostOpGasLimit();
        return gas * op.maxFeePerGas();
    }
}
