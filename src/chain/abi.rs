//! The contracts' words, generated from `abi/`.

use alloy::sol;
use alloy::sol_types::SolInterface;

/// Each contract in a module of its own: their ABIs name each other's types.
macro_rules! contract {
    ($module:ident, $name:ident, $path:literal) => {
        // The generated functions take as many arguments as the contracts' do.
        #[allow(clippy::too_many_arguments)]
        mod $module {
            alloy::sol!(
                #[sol(all_derives)]
                $name,
                $path
            );
        }
        pub use $module::$name;
    };
}
contract!(registry, NodeRegistry, "abi/NodeRegistry.json");
contract!(escrow, PaymentEscrow, "abi/PaymentEscrow.json");
contract!(marketplace, JobMarketplace, "abi/JobMarketplace.json");
contract!(proof_system, ProofSystem, "abi/ProofSystem.json");
contract!(reputation, ReputationSystem, "abi/ReputationSystem.json");
contract!(governance, Governance, "abi/Governance.json");
contract!(accounts, BaseAccountIntegration, "abi/BaseAccountIntegration.json");
contract!(timelock, TimelockController, "abi/TimelockController.json");

sol! {
    /// What a proxy logs of itself. Source: ERC-1967, <https://eips.ethereum.org/EIPS/eip-1967>.
    #[derive(Debug)]
    interface Erc1967 {
        event Upgraded(address indexed implementation);
        event BeaconUpgraded(address indexed beacon);
        event AdminChanged(address previousAdmin, address newAdmin);
    }

    interface Erc1271 {
        function isValidSignature(bytes32 hash, bytes signature) external view returns (bytes4);
    }

    interface Erc20 {
        event Transfer(address indexed from, address indexed to, uint256 value);
        function balanceOf(address account) external view returns (uint256);
        function allowance(address owner, address spender) external view returns (uint256);
        function approve(address spender, uint256 amount) external returns (bool);
        function transfer(address to, uint256 amount) external returns (bool);
    }
}

/// The escrow's states while it holds a job's money: held, disputed.
pub const ESCROW_HOLDS: [u8; 2] = [1, 4];

/// Returns a contract's reason to revert in words: one of our contracts' errors with its values, or what the endpoint said.
pub fn reason(refusal: &alloy::rpc::json_rpc::ErrorPayload) -> String {
    let Some(data): Option<alloy::primitives::Bytes> = refusal.as_revert_data() else {
        return refusal.message.to_string();
    };
    macro_rules! first_of {
        ($($errors:ty),*) => {$(
            if let Ok(error) = <$errors>::abi_decode(&data) {
                return format!("{error:?}");
            }
        )*};
    }
    first_of!(
        JobMarketplace::JobMarketplaceErrors,
        ProofSystem::ProofSystemErrors,
        PaymentEscrow::PaymentEscrowErrors,
        NodeRegistry::NodeRegistryErrors,
        ReputationSystem::ReputationSystemErrors
    );
    format!("{} ({data})", refusal.message)
}
