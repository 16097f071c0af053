// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// Takes 1 % of every transfer.
contract FeeToken is ERC20 {
    constructor(address holder) ERC20("Fee", "FEE") {
        _mint(holder, 1e24);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0)) super._update(to, address(0), value / 100);
    }
}

/// Like USDC: some accounts cannot receive it.
contract BlockingToken is ERC20 {
    error Blocked(address account);

    mapping(address => bool) public isBlocked;

    constructor(address holder) ERC20("Blocking", "BLK") {
        _mint(holder, 1e24);
    }

    function setBlocked(address account, bool blocked) external {
        isBlocked[account] = blocked;
    }

    function _update(address from, address to, uint256 value) internal override {
        if (isBlocked[to]) revert Blocked(to);
        super._update(from, to, value);
    }
}

/// An account that takes ETH only when told to.
contract Picky {
    error NotNow();

    bool public willing;

    function setWilling(bool willing_) external {
        willing = willing_;
    }

    receive() external payable {
        if (!willing) revert NotNow();
    }
}

/// Tells both ends of a transfer of it, as ERC-777 does.
contract HookToken is ERC20 {
    constructor(address holder) ERC20("Hook", "HOOK") {
        _mint(holder, 1e24);
    }

    function _update(address from, address to, uint256 value) internal override {
        _tell(from);
        super._update(from, to, value);
        _tell(to);
    }

    function _tell(address who) private {
        if (who.code.length == 0) return;
        // Whoever does not listen is not told.
        (bool told,) = who.call(abi.encodeCall(Reenterer.tokensMoved, ()));
        told;
    }
}

/// What a `RudeToken` does on `transfer`, in the ways that tokens in use do.
enum Manner {
    Normal,
    /// Moves the tokens and returns nothing, like USDT.
    Silent,
    /// Moves nothing and says so.
    SaysNo,
    Reverts,
    /// Reverts with a megabyte.
    RevertsAtLength,
    /// Moves the tokens and returns 64 kB that begin with true, which the gas of a payment affords.
    AnswersAtLength,
    BurnsGas
}

/// Moves tokens in as it should, and out as it was told to.
contract RudeToken is ERC20 {
    error Rude();

    Manner public manner;

    constructor(address holder) ERC20("Rude", "RUDE") {
        _mint(holder, 1e24);
    }

    function setManner(Manner manner_) external {
        manner = manner_;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        if (manner == Manner.SaysNo) return false;
        if (manner == Manner.Reverts) revert Rude();
        if (manner == Manner.RevertsAtLength) {
            assembly ("memory-safe") {
                revert(0x80, 0x100000)
            }
        }
        if (manner == Manner.BurnsGas) {
            assembly ("memory-safe") {
                invalid()
            }
        }
        _transfer(msg.sender, to, value);
        if (manner == Manner.Silent) {
            assembly ("memory-safe") {
                return(0, 0)
            }
        }
        if (manner == Manner.AnswersAtLength) {
            assembly ("memory-safe") {
                mstore(0x80, 1)
                return(0x80, 0x10000)
            }
        }
        return true;
    }
}

/// An account that uses up all the gas it is paid with.
contract GasBurner {
    receive() external payable {
        while (true) {}
    }
}

/// An account that answers a payment with as much data as its gas buys.
contract Babbler {
    receive() external payable {
        assembly ("memory-safe") {
            // Memory is paid for in words, and by the square of them: 4,000 words are within 50,000 gas.
            return(0, mul(4000, 32))
        }
    }
}

/// An account that, whenever it is paid, calls where it was told to, once, and notes how that ended.
contract Reenterer {
    /// One slot, so that noting costs little. `answer` is never 0: a first write costs more than later ones.
    struct Note {
        uint64 calls;
        uint64 refusals;
        bytes4 answer;
    }

    address private target;
    bytes private data;
    bool private busy;
    Note public note = Note(0, 0, 0xffffffff);

    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
        note = Note(0, 0, 0xffffffff);
    }

    receive() external payable {
        strike();
    }

    function tokensMoved() external {
        strike();
    }

    function strike() private {
        if (target == address(0) || busy) return;
        busy = true;
        (bool ok, bytes memory answer) = target.call(data);
        busy = false;
        Note memory past = note;
        note =
            Note(past.calls + 1, past.refusals + (ok ? 0 : 1), ok || answer.length < 4 ? past.answer : bytes4(answer));
    }
}
