//! Whether two requests with one `request_id` are the same, without keeping the first: a hash with keys of this process.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::LazyLock,
};

use cloud_sandbox_proto::v1;
use prost::Message;

static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Of what is wanted of a sandbox.
pub(crate) fn of_acquire(request: &v1::AcquireSandboxRequest) -> u64 {
    let mut request = request.clone();
    let maps = [std::mem::take(&mut request.env), std::mem::take(&mut request.metadata)];
    hash(&request, &maps)
}

/// Of what is to be run.
pub(crate) fn of_execute(request: &v1::ExecuteRequest) -> u64 {
    let mut request = request.clone();
    let maps = [std::mem::take(&mut request.env)];
    hash(&request, &maps)
}

/// Maps are hashed in the order of their keys: their encoding has none.
fn hash(rest: &impl Message, maps: &[HashMap<String, String>]) -> u64 {
    let mut hasher = KEYS.build_hasher();
    rest.encode_to_vec().hash(&mut hasher);
    for map in maps {
        map.iter().collect::<BTreeMap<_, _>>().hash(&mut hasher);
    }
    hasher.finish()
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
    }
}
