//! Messages to JSON. Fields without presence are printed also when they hold their default, so that documents keep
//! their shape; messages and oneof members that are not set are left out.

use std::collections::BTreeMap;

use base64::{display::Base64Display, prelude::BASE64_STANDARD};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, SerializeOptions, Value};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A message, printed.
pub struct Message<'a>(pub &'a DynamicMessage);

/// One field of a message, printed.
pub struct Field<'a>(pub &'a DynamicMessage, pub &'a FieldDescriptor);

impl Serialize for Message<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = self.0.descriptor();
        // well-known types have forms of their own, timestamps for one
        if kind.package_name() == "google.protobuf" {
            return self.0.serialize_with_options(serializer, &SerializeOptions::new());
        }
        let mut map = serializer.serialize_map(None)?;
        for field in kind.fields() {
            if self.0.has_field(&field) || !field.supports_presence() {
                map.serialize_entry(field.name(), &Field(self.0, &field))?;
            }
        }
        map.end()
    }
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (value, kind) = (self.0.get_field(self.1), self.1.kind());
        match (value.as_ref(), &kind) {
            (Value::List(values), kind) => serializer.collect_seq(values.iter().map(|value| One { value, kind })),
            (Value::Map(values), Kind::Message(entry)) => {
                let kind = entry.map_entry_value_field().kind();
                // in order: the same message is always the same text
                let sorted: BTreeMap<_, _> =
                    values.iter().map(|(key, value)| (text_of(key), One { value, kind: &kind })).collect();
                serializer.collect_map(sorted)
            }
            (value, kind) => One { value, kind }.serialize(serializer),
        }
    }
}

fn text_of(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

struct One<'a> {
    value: &'a Value,
    kind: &'a Kind,
}

impl Serialize for One<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.value, self.kind) {
            (Value::Bool(value), _) => serializer.serialize_bool(*value),
            (Value::I32(value), _) => serializer.serialize_i32(*value),
            (Value::I64(value), _) => serializer.serialize_i64(*value),
            (Value::U32(value), _) => serializer.serialize_u32(*value),
            (Value::U64(value), _) => serializer.serialize_u64(*value),
            (Value::F32(value), _) if value.is_finite() => serializer.serialize_f32(*value),
            (Value::F64(value), _) if value.is_finite() => serializer.serialize_f64(*value),
            (Value::F32(value), _) => serializer.serialize_str(beyond_numbers(f64::from(*value))),
            (Value::F64(value), _) => serializer.serialize_str(beyond_numbers(*value)),
            (Value::String(value), _) => serializer.serialize_str(value),
            (Value::Bytes(value), _) => serializer.collect_str(&Base64Display::new(value, &BASE64_STANDARD)),
            (Value::EnumNumber(number), Kind::Enum(kind)) => match kind.get_value(*number) {
                Some(value) => serializer.serialize_str(&super::word(kind, value.name())),
                None => serializer.serialize_i32(*number),
            },
            (Value::EnumNumber(number), _) => serializer.serialize_i32(*number),
            (Value::Message(message), _) => Message(message).serialize(serializer),
            // lists and maps are values of fields, never of elements
            (Value::List(_) | Value::Map(_), _) => serializer.serialize_unit(),
        }
    }
}

/// How JSON writes what its numbers cannot (ProtoJSON).
fn beyond_numbers(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::{DESCRIPTOR_SET, v1};
    use prost_reflect::DescriptorPool;
    use serde_json::json;

    use super::*;

    fn printed(kind: &str, message: &impl prost::Message) -> serde_json::Value {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        let kind = pool.get_message_by_name(&format!("cloud_sandbox.v1.{kind}")).unwrap();
        let message = DynamicMessage::decode(kind, message.encode_to_vec().as_slice()).unwrap();
        serde_json::to_value(Message(&message)).unwrap()
    }

    #[test]
    fn defaults_are_printed_and_unset_messages_are_not() {
        let printed = printed("Sandbox", &v1::Sandbox { sandbox_id: "s".into(), ..Default::default() });
        let shape = json!({
            "sandbox_id": "s", "template": "", "state": "unspecified", "user_id": "", "node_id": "", "metadata": {},
            "runtime": ""
        });
        assert_eq!(printed, shape);
    }

    #[test]
    fn enums_are_words_numbers_are_numbers_times_are_rfc_3339() {
        let mut sandbox = v1::Sandbox { state: v1::SandboxState::Acquired.into(), ..Default::default() };
        sandbox.limits = Some(v1::ResourceLimits { memory_bytes: u64::MAX, ..Default::default() });
        sandbox.create_time = Some(prost_reflect::prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 });
        sandbox.metadata.insert("b".into(), "2".into());
        sandbox.metadata.insert("a".into(), "1".into());
        let printed = printed("Sandbox", &sandbox);
        assert_eq!(printed["state"], "acquired");
        assert_eq!(printed["limits"]["memory_bytes"], u64::MAX);
        assert_eq!(printed["create_time"], "2023-11-14T22:13:20.005Z");
        assert_eq!(printed["metadata"].to_string(), r#"{"a":"1","b":"2"}"#);
    }

    #[test]
    fn bytes_are_base64_and_only_the_set_oneof_member_is_printed() {
        let body = Some(v1::read_file_response::Body::Data(vec![0xff].into()));
        let printed = printed("ReadFileResponse", &v1::ReadFileResponse { body, ..Default::default() });
        assert_eq!(printed, json!({"data": "/w==", "entries": [], "next_page_token": ""}));
    }
}
