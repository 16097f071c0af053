// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// Holds every job's money from the transaction that posts the job to the one that ends it. Only the marketplace moves it,
/// each job's exactly once, and only to the job's renter, or to its host and the treasury. No owner, no other way out.
///
/// A payee that cannot be paid (a contract that reverts, an account the token refuses) is credited instead and withdraws
/// later, so that nobody can hold up anybody else's money. The amounts held plus the credits equal the balance, per token.
contract PaymentEscrow {
    using SafeERC20 for IERC20;

    enum State {
        None,
        Held,
        Released,
        Refunded
    }

    /// Two slots. `token` is 0 for ETH; `amount` is in wei or the token's smallest unit.
    struct Escrow {
        address renter;
        uint96 amount;
        address token;
        State state;
    }

    uint256 public constant FEE_MAX_BPS = 1000;
    /// Enough for a smart account's `receive`; a payee that wants more withdraws.
    uint256 private constant PAY_GAS_MAX = 50_000;

    address public immutable marketplace;
    address public immutable treasury;
    /// Share of each released payment that goes to the treasury, in hundredths of a percent.
    uint256 public immutable feeBps;

    mapping(uint256 jobId => Escrow) private _escrows;
    /// What a payee may withdraw of a token (0 for ETH).
    mapping(address token => mapping(address payee => uint256)) public credits;

    event EscrowCreated(
        bytes32 indexed jobId, address indexed renter, address indexed host, uint256 amount, address token
    );
    event EscrowReleased(bytes32 indexed jobId, uint256 amount, uint256 fee);
    event EscrowRefunded(bytes32 indexed jobId);
    /// Paying `payee` failed, so it may `withdraw` this amount.
    event PaymentCredited(address indexed payee, address indexed token, uint256 amount);
    event CreditWithdrawn(address indexed payee, address indexed token, address to, uint256 amount);

    error OnlyMarketplace(address caller);
    error FeeTooHigh(uint256 feeBps, uint256 max);
    error NoTreasury();
    error AmountMismatch(uint256 jobId, uint256 amount, uint256 sent);
    error NotHeld(uint256 jobId, State state);
    error AlreadyHeld(uint256 jobId);
    error NoCredit(address payee, address token);
    error TransferFailed(address to, uint256 amount);

    modifier onlyMarketplace() {
        if (msg.sender != marketplace) revert OnlyMarketplace(msg.sender);
        _;
    }

    constructor(address marketplace_, address treasury_, uint256 feeBps_) {
        if (treasury_ == address(0)) revert NoTreasury();
        if (feeBps_ > FEE_MAX_BPS) revert FeeTooHigh(feeBps_, FEE_MAX_BPS);
        marketplace = marketplace_;
        treasury = treasury_;
        feeBps = feeBps_;
    }

    /// @notice Books `amount` of `token` for the job. ETH comes with this call; of a token, the marketplace has just moved
    /// `amount` here and checked that it arrived.
    function create(uint256 jobId, address renter, address token, uint96 amount) external payable onlyMarketplace {
        uint256 due = token == address(0) ? amount : 0;
        if (msg.value != due) revert AmountMismatch(jobId, due, msg.value);
        if (_escrows[jobId].state != State.None) revert AlreadyHeld(jobId);
        _escrows[jobId] = Escrow(renter, amount, token, State.Held);
        emit EscrowCreated(bytes32(jobId), renter, address(0), amount, token);
    }

    /// @notice Pays the job's money to `host`, less the fee, which goes to the treasury.
    /// @return net What the host got, or was credited.
    function release(uint256 jobId, address host) external onlyMarketplace returns (uint256 net) {
        Escrow storage escrow = _end(jobId, State.Released);
        uint256 fee = uint256(escrow.amount) * feeBps / 10_000;
        net = escrow.amount - fee;
        emit EscrowReleased(bytes32(jobId), net, fee);
        address token = escrow.token;
        _pay(token, host, net);
        _pay(token, treasury, fee);
    }

    /// @notice Pays the job's money, all of it, back to its renter.
    /// @return renter Who got it.
    /// @return amount What the renter got, or was credited.
    function refund(uint256 jobId) external onlyMarketplace returns (address renter, uint256 amount) {
        Escrow storage escrow = _end(jobId, State.Refunded);
        (renter, amount) = (escrow.renter, escrow.amount);
        emit EscrowRefunded(bytes32(jobId));
        _pay(escrow.token, renter, amount);
    }

    /// @notice Sends all the caller's credit of `token` (0 for ETH) to `to`.
    function withdraw(address token, address to) external {
        uint256 amount = credits[token][msg.sender];
        if (amount == 0) revert NoCredit(msg.sender, token);
        credits[token][msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, token, to, amount);
        if (!_send(token, to, amount, gasleft())) revert TransferFailed(to, amount);
    }

    /// @notice What is stored of a job's money; `state` is None when there is no such job.
    function getEscrow(uint256 jobId) external view returns (Escrow memory) {
        return _escrows[jobId];
    }

    function _end(uint256 jobId, State end) private returns (Escrow storage escrow) {
        escrow = _escrows[jobId];
        if (escrow.state != State.Held) revert NotHeld(jobId, escrow.state);
        escrow.state = end;
    }

    function _pay(address token, address to, uint256 amount) private {
        if (amount == 0 || _send(token, to, amount, PAY_GAS_MAX)) return;
        credits[token][to] += amount;
        emit PaymentCredited(to, token, amount);
    }

    function _send(address token, address to, uint256 amount, uint256 gasMax) private returns (bool sent) {
        if (token != address(0)) return IERC20(token).trySafeTransfer(to, amount);
        // Not `call`, which would copy whatever the payee returns at our caller's expense.
        assembly ("memory-safe") {
            sent := call(gasMax, to, amount, 0, 0, 0, 0)
        }
    }
}
