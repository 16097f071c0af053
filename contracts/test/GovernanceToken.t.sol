// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {World} from "./lib/World.sol";

contract GovernanceTokenTest is World {
    function test_the_supply_is_fixed_and_the_holders() public view {
        vm.assertEq(fab.totalSupply(), 1_000_000_000e18);
        vm.assertEq(fab.balanceOf(address(this)), fab.totalSupply() - 2 * registry.MIN_STAKE());
        vm.assertEq(fab.decimals(), 18);
    }

    function test_votes_follow_delegation() public {
        fab.transfer(stranger, 5);
        vm.prank(stranger);
        fab.delegate(renter);
        vm.assertEq(fab.getVotes(renter), 5);
    }

    function test_a_permit_stands_for_an_approval() public {
        address signer = vm.addr(7);
        bytes32 kind = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 permit = keccak256(abi.encode(kind, signer, address(registry), 9, 0, block.timestamp));
        bytes32 message = keccak256(abi.encodePacked(hex"1901", fab.DOMAIN_SEPARATOR(), permit));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(7, message);
        fab.permit(signer, address(registry), 9, block.timestamp, v, r, s);
        vm.assertEq(fab.allowance(signer, address(registry)), 9);
        vm.assertEq(fab.nonces(signer), 1);
    }
}
