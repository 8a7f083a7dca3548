//! Network policies as messages.

use cloud_sandbox_model::{
    Result,
    network::{NetworkMode, NetworkPolicy},
};
use cloud_sandbox_proto::v1;

/// Reads a policy that callers call `field`; one that is not given is the default. The error names every broken rule.
pub fn network_policy(field: &str, message: Option<&v1::NetworkPolicy>) -> Result<NetworkPolicy> {
    let Some(v1::NetworkPolicy { mode, allow, deny }) = message else { return Ok(NetworkPolicy::default()) };
    NetworkPolicy::parse(field, NetworkMode::from_number(*mode), allow, deny)
}

/// A policy as the contract has it.
#[must_use]
pub fn network_message(policy: &NetworkPolicy) -> v1::NetworkPolicy {
    v1::NetworkPolicy { mode: policy.mode().number(), allow: policy.allow(), deny: policy.deny() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_the_numbers_of_the_contract() {
        for mode in NetworkMode::ALL {
            let message = v1::NetworkMode::try_from(mode.number()).unwrap();
            assert_eq!(message.as_str_name().to_lowercase(), format!("network_mode_{mode}"));
        }
    }
}
