// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// The forge cheatcodes that our tests and scripts use. Source: https://book.getfoundry.sh/cheatcodes/
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function warp(uint256) external;
    function roll(uint256) external;
    function setBlockhash(uint256, bytes32) external;
    function deal(address, uint256) external;
    function etch(address, bytes calldata) external;
    function prank(address) external;
    function startPrank(address) external;
    function stopPrank() external;
    function expectRevert(bytes calldata) external;
    function expectEmit(address) external;
    function assume(bool) external pure;
    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory);
    function sign(uint256, bytes32) external pure returns (uint8, bytes32, bytes32);
    function addr(uint256) external pure returns (address);
    function snapshotGasLastCall(string calldata, string calldata) external returns (uint256);
    function computeCreateAddress(address, uint256) external pure returns (address);
    function getNonce(address) external view returns (uint64);
    function assertEq(uint256, uint256) external pure;
    function assertEq(uint256, uint256, string calldata) external pure;
    function assertEq(address, address) external pure;
    function assertEq(bytes32, bytes32) external pure;
    function assertEq(bytes calldata, bytes calldata) external pure;
    function assertTrue(bool) external pure;
    function assertFalse(bool) external pure;

    // For scripts.
    function readCallers() external view returns (uint8, address, address);
    function startBroadcast() external;
    function stopBroadcast() external;
    function envString(string calldata) external view returns (string memory);
    function envOr(string calldata, uint256) external view returns (uint256);
    function envOr(string calldata, address) external view returns (address);
    function envOr(string calldata, bool) external view returns (bool);
    function envOr(string calldata, bytes32) external view returns (bytes32);
    function getCode(string calldata) external view returns (bytes memory);
    function toString(address) external pure returns (string memory);
    function toString(uint256) external pure returns (string memory);
    function writeFile(string calldata, string calldata) external;
}
