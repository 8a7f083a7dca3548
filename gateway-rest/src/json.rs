//! JSON as the contracts' clients see it: proto field names, 64-bit integers as numbers, enums as lower-case words.
//!
//! Invariant: whatever [`write`] prints, [`read`] understands.

pub mod read;
pub mod scalar;
pub mod write;

use std::borrow::Cow;

use prost_reflect::EnumDescriptor;

/// The value's name without the enum's own name before it, in lower case: `running` for `SESSION_STATE_RUNNING`.
pub fn word(kind: &EnumDescriptor, value: &str) -> String {
    value.strip_prefix(&prefix(kind)).unwrap_or(value).to_ascii_lowercase()
}

/// All words of an enum, in the order of the contract.
pub fn words(kind: &EnumDescriptor) -> Vec<String> {
    kind.values().map(|value| word(kind, value.name())).collect()
}

/// The number that a word or full name stands for.
pub fn number(kind: &EnumDescriptor, text: &str) -> Option<i32> {
    let named = kind.get_value_by_name(text);
    let value = named.or_else(|| kind.values().find(|value| word(kind, value.name()) == text));
    value.map(|value| value.number())
}

/// `SANDBOX_STATE_` for `SandboxState`.
fn prefix(kind: &EnumDescriptor) -> String {
    let mut prefix = String::new();
    for (at, c) in kind.name().char_indices() {
        if at > 0 && c.is_ascii_uppercase() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    prefix.push('_');
    prefix
}

/// What a value must be, in words that follow "must be".
fn expected(kind: &prost_reflect::Kind) -> Cow<'static, str> {
    use prost_reflect::Kind;
    match kind {
        Kind::Double | Kind::Float => "a number".into(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a 32-bit integer".into(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a 64-bit integer".into(),
        Kind::Uint32 | Kind::Fixed32 => "an integer from 0 to 4294967295".into(),
        Kind::Uint64 | Kind::Fixed64 => "an integer from 0 to 18446744073709551615".into(),
        Kind::Bool => "true or false".into(),
        Kind::String => "a string".into(),
        Kind::Bytes => "a string in base64".into(),
        Kind::Message(_) => "an object".into(),
        Kind::Enum(kind) => format!("one of {}", words(kind).join(", ")).into(),
    }
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::DESCRIPTOR_SET;
    use prost_reflect::DescriptorPool;

    use super::*;

    #[test]
    fn every_value_of_every_enum_is_read_in_both_spellings() {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        for kind in pool.all_enums().filter(|kind| kind.package_name().starts_with("cloud_sandbox")) {
            for value in kind.values() {
                assert_eq!(number(&kind, value.name()), Some(value.number()));
                let word = word(&kind, value.name());
                assert_eq!(number(&kind, &word), Some(value.number()), "{word}");
                assert!(!word.contains(&prefix(&kind).to_ascii_lowercase()), "{word} keeps its prefix");
            }
            assert_eq!(number(&kind, "no_such_word"), None);
        }
    }
}
