//! Whether two requests with one `request_id` are the same, without keeping the first: a hash that later processes of the
//! node compute alike, so that it holds for what a journal tells.

use std::collections::{BTreeMap, HashMap};

use cloud_sandbox_model::NetworkMode;
use cloud_sandbox_proto::v1;
use prost::Message;
use sha2::{Digest, Sha256};

/// Of what is wanted of a sandbox.
pub(crate) fn of_acquire(request: &v1::AcquireSandboxRequest) -> u64 {
    let mut request = request.clone();
    let maps = [std::mem::take(&mut request.env), std::mem::take(&mut request.metadata)];
    // a policy that is not given, or has no mode, is `none`
    let is_none = |network: &v1::NetworkPolicy| NetworkMode::from_number(network.mode) == Some(NetworkMode::None);
    request.network = request.network.filter(|network| !is_none(network));
    let hash = hash(&request, &maps);
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Of what is to be run. Where does not count: a session that was resumed in another sandbox remembers its ids.
pub(crate) fn of_execute(request: &v1::ExecuteRequest) -> Vec<u8> {
    let mut request = request.clone();
    request.sandbox_id.clear();
    request.session_id.clear();
    let maps = [std::mem::take(&mut request.env)];
    hash(&request, &maps)[..16].to_vec()
}

/// Maps are hashed in the order of their keys: their encoding has none.
fn hash(rest: &impl Message, maps: &[HashMap<String, String>]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&rest.encode_to_vec());
    for map in maps {
        for (name, value) in map.iter().collect::<BTreeMap<_, _>>() {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(&(map.len() as u64).to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&str, &str)]) -> v1::ExecuteRequest {
        let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        v1::ExecuteRequest { code: Some("1".into()), env, ..Default::default() }
    }

    #[test]
    fn order_of_a_map_makes_no_difference_and_everything_else_does() {
        let pairs = [("A", "1"), ("B", "2"), ("C", "3"), ("D", "4")];
        let backwards: Vec<_> = pairs.into_iter().rev().collect();
        assert_eq!(of_execute(&request(&pairs)), of_execute(&request(&backwards)));
        assert_ne!(of_execute(&request(&pairs)), of_execute(&request(&pairs[1..])));
        let other = v1::ExecuteRequest { timeout_ms: 1, ..request(&pairs) };
        assert_ne!(of_execute(&request(&pairs)), of_execute(&other));
        let other = v1::ExecuteRequest { tag: "t".into(), ..request(&pairs) };
        assert_ne!(of_execute(&request(&pairs)), of_execute(&other));
    }

    #[test]
    fn sandbox_makes_no_difference_to_what_is_run() {
        let there = v1::ExecuteRequest { sandbox_id: "sb1".into(), ..request(&[]) };
        assert_eq!(of_execute(&there), of_execute(&request(&[])));
    }

    #[test]
    fn network_that_is_not_given_is_none_and_any_other_counts() {
        let with = |mode| {
            let network = Some(v1::NetworkPolicy { mode, ..Default::default() });
            of_acquire(&v1::AcquireSandboxRequest { network, ..Default::default() })
        };
        let plain = of_acquire(&v1::AcquireSandboxRequest::default());
        assert_eq!([with(0), with(v1::NetworkMode::None.into())], [plain, plain]);
        assert_ne!(with(99), plain);
    }

    #[test]
    fn hash_stays_what_it_was_because_journals_keep_it() {
        let hash: String = of_execute(&request(&[("A", "1")])).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, "2552438f0a6a21d80d5d3d88158a4948");
    }
}
