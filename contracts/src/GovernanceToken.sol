// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

/// FAB: what hosts stake and governance votes with. 18 decimals. The supply is fixed; nobody can mint or burn.
contract GovernanceToken is ERC20, ERC20Permit, ERC20Votes {
    uint256 public constant SUPPLY = 1_000_000_000e18;

    /// Mints the whole supply to `holder`.
    constructor(address holder) ERC20("Fabstir", "FAB") ERC20Permit("Fabstir") {
        _mint(holder, SUPPLY);
    }

    /// @notice The permit nonce of `owner`.
    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }

    /// @notice Votes are counted by time, not by block: a voting period is as long on every chain. Source: ERC-6372.
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    /// @notice See `clock`.
    // forge-lint: disable-next-line(mixed-case-function)
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    function _update(address from, address to, uint256 value) internal override(ERC20, ERC20Votes) {
        super._update(from, to, value);
    }
}
