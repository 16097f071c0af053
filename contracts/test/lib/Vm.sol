// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// The forge cheatcodes that our tests and scripts use. Source: https://book.getfoundry.sh/cheatcodes/
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    /// As `eth_getLogs` answers.
    struct ChainLog {
        address emitter;
        bytes32[] topics;
        bytes data;
        bytes32 blockHash;
        uint64 blockNumber;
        bytes32 transactionHash;
        uint64 transactionIndex;
        uint256 logIndex;
        bool removed;
    }

    function warp(uint256) external;
    function roll(uint256) external;
    function chainId(uint256) external;
    function setBlockhash(uint256, bytes32) external;
    function deal(address, uint256) external;
    function etch(address, bytes calldata) external;
    function mockCall(address, bytes calldata, bytes calldata) external;
    function prank(address) external;
    function startPrank(address) external;
    function stopPrank() external;
    function expectRevert(bytes calldata) external;
    function expectPartialRevert(bytes4) external;
    function expectEmit(address) external;
    function pauseGasMetering() external;
    function assume(bool) external pure;
    function snapshotState() external returns (uint256);
    function revertToState(uint256) external returns (bool);
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
    function assertEq(address, address, string calldata) external pure;
    function assertEq(bytes32, bytes32, string calldata) external pure;
    function assertEq(bytes calldata, bytes calldata, string calldata) external pure;
    function assertTrue(bool) external pure;
    function assertTrue(bool, string calldata) external pure;
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
    function envOr(string calldata, string calldata) external view returns (string memory);
    // forge-lint: disable-next-line(mixed-case-function)
    function eth_getLogs(uint256, uint256, address, bytes32[] calldata) external returns (ChainLog[] memory);
    function getCode(string calldata) external view returns (bytes memory);
    function toString(address) external pure returns (string memory);
    function toString(uint256) external pure returns (string memory);
    function toString(bytes32) external pure returns (string memory);
    function keyExistsJson(string calldata, string calldata) external pure returns (bool);
    function parseJson(string calldata, string calldata) external pure returns (bytes memory);
    function parseJsonAddress(string calldata, string calldata) external pure returns (address);
    function parseJsonBytes(string calldata, string calldata) external pure returns (bytes memory);
    function parseJsonKeys(string calldata, string calldata) external pure returns (string[] memory);
    function parseJsonString(string calldata, string calldata) external pure returns (string memory);
    function parseJsonUint(string calldata, string calldata) external pure returns (uint256);
    function indexOf(string calldata, string calldata) external pure returns (uint256);
    function split(string calldata, string calldata) external pure returns (string[] memory);
    function readFile(string calldata) external view returns (string memory);
    function writeFile(string calldata, string calldata) external;
}
