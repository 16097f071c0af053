// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// A token with USDC's 6 decimals, for chains of our own. Worth nothing.
contract TestUsd is ERC20 {
    constructor(address holder) ERC20("Test USD", "tUSD") {
        _mint(holder, 1_000_000_000e6);
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
