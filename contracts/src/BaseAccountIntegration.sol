// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IEntryPoint} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {MarketAccount} from "./MarketAccount.sol";

/// Makes smart accounts, each at an address known before: a user operation that names this factory in its `initCode` deploys
/// its sender and acts as it at once. No owner, no storage, so it needs no stake with the entry point (ERC-7562).
contract BaseAccountIntegration {
    /// What every account is a clone of.
    MarketAccount public immutable implementation;

    event AccountCreated(address indexed account, address indexed owner, bytes32 salt);

    constructor(IEntryPoint entryPoint) {
        implementation = new MarketAccount(entryPoint);
    }

    /// @notice Deploys the account of `owner` and `salt`, unless it is there, and returns it. Anyone may call.
    function createAccount(address owner, bytes32 salt) external returns (address account) {
        account = accountOf(owner, salt);
        if (account.code.length != 0) return account;
        emit AccountCreated(account, owner, salt);
        account = Clones.cloneDeterministic(address(implementation), _create2Salt(owner, salt));
        MarketAccount(payable(account)).initialize(owner);
    }

    /// @notice The address of the account of `owner` and `salt`, deployed or not.
    function accountOf(address owner, bytes32 salt) public view returns (address) {
        return Clones.predictDeterministicAddress(address(implementation), _create2Salt(owner, salt));
    }

    /// Of the owner too: an account's address says whose it is, so nobody can be first to take it.
    function _create2Salt(address owner, bytes32 salt) private pure returns (bytes32) {
        return keccak256(abi.encode(owner, salt));
    }
}
