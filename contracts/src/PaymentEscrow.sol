// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// Holds every job's money from the transaction that posts the job to the one that ends it. Only the marketplace moves it,
/// each job's exactly once, and only to the job's renter, or to its host and the treasury. There is no other way out; the
/// owner sets the fee of jobs to come, and nothing else.
///
/// A payee that cannot be paid (a contract that reverts, an account the token refuses) is credited instead and withdraws
/// later, so that nobody can hold up anybody else's money. The amounts held plus the credits equal the balance, per token.
contract PaymentEscrow is Ownable {
    /// New states go after these: the numbers are on the wire.
    enum State {
        None,
        Held,
        Released,
        Refunded,
        /// Held, while a dispute about the job is open.
        Disputed
    }

    /// Two slots. `token` is 0 for ETH; `amount` is in wei or the token's smallest unit.
    struct Escrow {
        address renter;
        uint96 amount;
        address token;
        State state;
        /// The fee when the job was posted, in hundredths of a percent.
        uint16 feeBps;
        /// Whether the renter asked the host to agree to a refund.
        bool refundRequested;
    }

    uint256 public constant FEE_MAX_BPS = 1000;
    /// Enough for a smart account's `receive`; a payee that wants more withdraws.
    uint256 private constant PAY_GAS_MAX = 50_000;
    /// Several times what a transfer of USDC takes; a token that wants more has its payee withdraw.
    uint256 private constant TOKEN_GAS_MAX = 300_000;

    address public immutable marketplace;
    address public immutable treasury;
    /// Share of a payment that goes to the treasury at its release, in hundredths of a percent, for jobs posted from now on.
    uint16 public feeBps;

    mapping(uint256 jobId => Escrow) private _escrows;
    /// What a payee may withdraw of a token (0 for ETH).
    mapping(address token => mapping(address payee => uint256)) public credits;

    /// `host` is the one that the job is reserved for, 0 when any host may take it.
    event EscrowCreated(
        bytes32 indexed jobId, address indexed renter, address indexed host, uint256 amount, address token
    );
    event EscrowReleased(bytes32 indexed jobId, uint256 amount, uint256 fee);
    event EscrowRefunded(bytes32 indexed jobId);
    event EscrowDisputed(bytes32 indexed jobId, address disputer);
    event DisputeResolved(bytes32 indexed jobId, address winner);
    event RefundRequested(bytes32 indexed jobId);
    /// Paying `payee` failed, so it may `withdraw` this amount.
    event PaymentCredited(address indexed payee, address indexed token, uint256 amount);
    event CreditWithdrawn(address indexed payee, address indexed token, address to, uint256 amount);
    event FeeChanged(uint16 feeBps);

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

    constructor(address owner, address marketplace_, address treasury_, uint16 feeBps_) Ownable(owner) {
        if (treasury_ == address(0)) revert NoTreasury();
        // Deployed after this one; a deployment is checked as a whole (script/lib/Inspection.sol).
        // slither-disable-next-line missing-zero-check
        marketplace = marketplace_;
        treasury = treasury_;
        _setFee(feeBps_);
    }

    /// @notice Books `amount` of `token` for the job. ETH comes with this call; of a token, the marketplace has just moved
    /// `amount` here and checked that it arrived.
    function create(uint256 jobId, address renter, address reservedFor, address token, uint96 amount)
        external
        payable
        onlyMarketplace
    {
        uint256 due = token == address(0) ? amount : 0;
        if (msg.value != due) revert AmountMismatch(jobId, due, msg.value);
        if (_escrows[jobId].state != State.None) revert AlreadyHeld(jobId);
        _escrows[jobId] = Escrow(renter, amount, token, State.Held, feeBps, false);
        emit EscrowCreated(bytes32(jobId), renter, reservedFor, amount, token);
    }

    /// @notice Pays the job's money to `host`, less the fee, which goes to the treasury.
    /// @return net What the host got, or was credited.
    function release(uint256 jobId, address host) external onlyMarketplace returns (uint256 net) {
        Escrow storage escrow = _end(jobId, State.Released, host);
        uint256 fee = uint256(escrow.amount) * escrow.feeBps / 10_000;
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
        renter = _escrows[jobId].renter;
        Escrow storage escrow = _end(jobId, State.Refunded, renter);
        amount = escrow.amount;
        emit EscrowRefunded(bytes32(jobId));
        _pay(escrow.token, renter, amount);
    }

    /// @notice Notes that `disputer` disputes the job's payment; it stays here.
    function dispute(uint256 jobId, address disputer) external onlyMarketplace {
        Escrow storage escrow = _escrows[jobId];
        if (escrow.state != State.Held) revert NotHeld(jobId, escrow.state);
        escrow.state = State.Disputed;
        emit EscrowDisputed(bytes32(jobId), disputer);
    }

    /// @notice Notes that the renter asks for a refund, which takes the host's consent.
    function requestRefund(uint256 jobId) external onlyMarketplace {
        _escrows[jobId].refundRequested = true;
        emit RefundRequested(bytes32(jobId));
    }

    /// @notice Sends all the caller's credit of `token` (0 for ETH) to `to`.
    function withdraw(address token, address to) external {
        uint256 amount = credits[token][msg.sender];
        if (amount == 0) revert NoCredit(msg.sender, token);
        credits[token][msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, token, to, amount);
        if (!_send(token, to, amount, gasleft())) revert TransferFailed(to, amount);
    }

    /// @notice Sets the fee of jobs posted from now on, at most 1000 hundredths of a percent.
    function setFee(uint16 feeBps_) external onlyOwner {
        _setFee(feeBps_);
    }

    /// @notice What is stored of a job's money; `state` is None when there is no such job.
    function getEscrow(uint256 jobId) external view returns (Escrow memory) {
        return _escrows[jobId];
    }

    function _setFee(uint16 feeBps_) private {
        if (feeBps_ > FEE_MAX_BPS) revert FeeTooHigh(feeBps_, FEE_MAX_BPS);
        feeBps = feeBps_;
        emit FeeChanged(feeBps_);
    }

    function _end(uint256 jobId, State end, address winner) private returns (Escrow storage escrow) {
        escrow = _escrows[jobId];
        State state = escrow.state;
        if (state == State.Disputed) emit DisputeResolved(bytes32(jobId), winner);
        else if (state != State.Held) revert NotHeld(jobId, state);
        escrow.state = end;
    }

    function _pay(address token, address to, uint256 amount) private {
        uint256 gasMax = token == address(0) ? PAY_GAS_MAX : TOKEN_GAS_MAX;
        if (amount == 0 || _send(token, to, amount, gasMax)) return;
        credits[token][to] += amount;
        emit PaymentCredited(to, token, amount);
    }

    function _send(address token, address to, uint256 amount, uint256 gasMax) private returns (bool sent) {
        // Not Solidity's `call`, which would copy whatever is returned at our caller's expense.
        if (token == address(0)) {
            assembly ("memory-safe") {
                sent := call(gasMax, to, amount, 0, 0, 0, 0)
            }
            return sent;
        }
        bytes memory transfer = abi.encodeCall(IERC20.transfer, (to, amount));
        assembly ("memory-safe") {
            sent := call(gasMax, token, 0, add(transfer, 32), mload(transfer), 0, 32)
            // A token says true, or nothing at all (USDT); but where there is no code, nothing means nothing.
            if sent {
                let saysTrue := and(gt(returndatasize(), 31), eq(mload(0), 1))
                let saysNothing := and(iszero(returndatasize()), gt(extcodesize(token), 0))
                sent := or(saysTrue, saysNothing)
            }
        }
    }
}
