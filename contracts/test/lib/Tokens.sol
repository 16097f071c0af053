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
