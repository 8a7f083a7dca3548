//! JSON to messages, in one pass, with the field at fault by name.
//!
//! The parser goes straight into typed fields: what a field does not take is refused before it is kept, so a body costs
//! memory in proportion to its size, and the depth of a value is bounded by the contracts (and by `serde_json`).

use std::{cell::RefCell, collections::HashMap, fmt};

use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use super::{expected, scalar};

/// The longest field path that an error repeats, in bytes.
const NAMED_MAX: usize = 256;

/// Reads an object into `message`. Fields that it has already stay unless the object sets them.
pub fn into_message(message: &mut DynamicMessage, json: &[u8]) -> Result<(), Error> {
    let path = Path::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let result = MessageSeed { message, path: &path }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    result.map_err(|error| path.refusal(&error))
}

/// Reads a value of `field`, which is not of kind message, into `message`.
pub fn into_field(message: &mut DynamicMessage, field: &FieldDescriptor, json: &[u8]) -> Result<(), Error> {
    let path = Path::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let result = path.within(field.name(), || {
        let value = FieldSeed { field, path: &path }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    });
    if let Some(value) = result.map_err(|error| path.refusal(&error))? {
        message.set_field(field, value);
    }
    Ok(())
}

/// Where the parser is. A failure leaves it where it happened.
#[derive(Default)]
struct Path {
    parts: RefCell<Vec<String>>,
}

impl Path {
    fn within<T, E>(&self, part: impl Into<String>, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.parts.borrow_mut().push(part.into());
        let value = read()?;
        self.parts.borrow_mut().pop();
        Ok(value)
    }

    fn refusal(&self, error: &serde_json::Error) -> Error {
        let mut field = self.parts.borrow().join(".");
        // it may be a name that the caller made up
        field.truncate(field.floor_char_boundary(NAMED_MAX));
        let text = error.to_string();
        if error.classify() != Category::Data {
            let message = format!("the body is not valid JSON: {text}");
            return Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message);
        }
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        let rule = match text.split_once(", expected ") {
            Some((_, expected)) => format!("must be {expected}"),
            None => text.to_owned(),
        };
        if field.is_empty() {
            let message = format!("the body {rule}");
            return Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message);
        }
        Error::invalid(field, rule)
    }
}

struct MessageSeed<'a> {
    message: &'a mut DynamicMessage,
    path: &'a Path,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let kind = self.message.descriptor();
        if kind.package_name() == "google.protobuf" {
            *self.message = DynamicMessage::deserialize(kind, deserializer)?;
            return Ok(());
        }
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let kind = self.message.descriptor();
        let mut given: Vec<FieldDescriptor> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = self.path.within(name.as_str(), || {
                let field = kind.get_field_by_name(&name).or_else(|| kind.get_field_by_json_name(&name));
                let field = field.ok_or_else(|| A::Error::custom("is not a field of this request"))?;
                let value = map.next_value_seed(FieldSeed { field: &field, path: self.path })?;
                if value.is_some() {
                    refuse_second(&given, &field).map_err(A::Error::custom)?;
                }
                Ok(value.map(|value| (field, value)))
            })?;
            if let Some((field, value)) = value {
                self.message.set_field(&field, value);
                given.push(field);
            }
        }
        Ok(())
    }
}

/// Refuses a field that is given a second time, and the second member of a oneof.
fn refuse_second(given: &[FieldDescriptor], field: &FieldDescriptor) -> Result<(), String> {
    if given.contains(field) {
        return Err("is given more than once".to_owned());
    }
    let Some(group) = field.containing_oneof() else { return Ok(()) };
    match given.iter().find(|other| other.containing_oneof().as_ref() == Some(&group)) {
        Some(other) => Err(format!("excludes {}: give one of them", other.name())),
        None => Ok(()),
    }
}

struct FieldSeed<'a> {
    field: &'a FieldDescriptor,
    path: &'a Path,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&expected(&self.field.kind()))
    }

    // null is the same as not given
    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        let kind = self.field.kind();
        let value = match kind.as_message() {
            Some(entry) if self.field.is_map() => deserializer.deserialize_map(Entries { entry, path: self.path })?,
            _ if self.field.is_list() => deserializer.deserialize_seq(Elements { kind: &kind, path: self.path })?,
            _ => One { kind: &kind, path: self.path }.deserialize(deserializer)?,
        };
        Ok(Some(value))
    }
}

struct Elements<'a> {
    kind: &'a Kind,
    path: &'a Path,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        let element = || One { kind: self.kind, path: self.path };
        while let Some(value) = self.path.within(values.len().to_string(), || sequence.next_element_seed(element()))? {
            values.push(value);
        }
        Ok(Value::List(values))
    }
}

struct Entries<'a> {
    entry: &'a MessageDescriptor,
    path: &'a Path,
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (key_kind, kind) = (self.entry.map_entry_key_field().kind(), self.entry.map_entry_value_field().kind());
        let mut values = HashMap::new();
        while let Some(key) = map.next_key::<String>()? {
            self.path.within(key.as_str(), || {
                let value = map.next_value_seed(One { kind: &kind, path: self.path })?;
                let key = scalar::from_text(&key_kind, &key).ok().and_then(Value::into_map_key);
                let key: MapKey = key.ok_or_else(|| A::Error::custom("is not a key of this map"))?;
                match values.insert(key, value) {
                    Some(_) => Err(A::Error::custom("is given more than once")),
                    None => Ok(()),
                }
            })?;
        }
        Ok(Value::Map(values))
    }
}

/// One value that is neither list nor map.
struct One<'a> {
    kind: &'a Kind,
    path: &'a Path,
}

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Kind::Message(kind) = self.kind else { return deserializer.deserialize_any(self) };
        let mut message = DynamicMessage::new(kind.clone());
        MessageSeed { message: &mut message, path: self.path }.deserialize(deserializer)?;
        Ok(Value::Message(message))
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&expected(self.kind))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        match self.kind {
            Kind::Bool => Ok(Value::Bool(value)),
            _ => Err(E::invalid_type(serde::de::Unexpected::Bool(value), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        scalar::from_integer(self.kind, value.into()).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        scalar::from_integer(self.kind, value.into()).map_err(E::custom)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        scalar::from_float(self.kind, value).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        match self.kind {
            // true and false are words of JSON itself
            Kind::Bool => Err(E::invalid_type(serde::de::Unexpected::Str(""), &self)),
            kind => scalar::from_text(kind, value).map_err(E::custom),
        }
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        match self.kind {
            Kind::String => Ok(Value::String(value)),
            _ => self.visit_str(&value),
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::DESCRIPTOR_SET;
    use prost_reflect::DescriptorPool;

    use super::*;

    fn read(kind: &str, json: &str) -> Result<DynamicMessage, Error> {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        let mut message = DynamicMessage::new(pool.get_message_by_name(&format!("cloud_sandbox.v1.{kind}")).unwrap());
        into_message(&mut message, json.as_bytes()).map(|()| message)
    }

    #[track_caller]
    fn refused(kind: &str, json: &str, field: &str, rule: &str) {
        let error = read(kind, json).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        match error.violations() {
            [violation] => assert_eq!((violation.field.as_str(), violation.rule.as_str()), (field, rule)),
            other => panic!("{other:?}: {error}"),
        }
    }

    #[test]
    fn fields_are_read_in_both_spellings_and_null_is_not_given() {
        let message =
            read("ExecuteRequest", r#"{"sandboxId":"s","timeout_ms":5,"argv":["a"],"env":{"K":"v"},"cwd":null}"#);
        let message = message.unwrap();
        assert_eq!(message.get_field_by_name("sandbox_id").unwrap().as_str(), Some("s"));
        assert_eq!(message.get_field_by_name("timeout_ms").unwrap().as_u32(), Some(5));
        assert_eq!(message.get_field_by_name("argv").unwrap().as_list().unwrap().len(), 1);
        assert_eq!(message.get_field_by_name("env").unwrap().as_map().unwrap().len(), 1);
    }

    #[test]
    fn field_at_fault_is_named() {
        refused("ExecuteRequest", r#"{"colour":1}"#, "colour", "is not a field of this request");
        refused("ExecuteRequest", r#"{"code":1}"#, "code", "must be a string");
        refused("ExecuteRequest", r#"{"code":["a"]}"#, "code", "must be a string");
        refused("ExecuteRequest", r#"{"argv":"a"}"#, "argv", "must be an array");
        refused("ExecuteRequest", r#"{"argv":["a",null]}"#, "argv.1", "must be a string");
        refused("ExecuteRequest", r#"{"env":{"A":{}}}"#, "env.A", "must be a string");
        refused("ExecuteRequest", r#"{"timeout_ms":-1}"#, "timeout_ms", "must be an integer from 0 to 4294967295");
        refused("ExecuteRequest", r#"{"code":"a","code":"b"}"#, "code", "is given more than once");
        refused("ExecuteRequest", r#"{"env":{"A":"1","A":"2"}}"#, "env.A", "is given more than once");
        refused(
            "AcquireSandboxRequest",
            r#"{"limits":{"pids":"x"}}"#,
            "limits.pids",
            "must be an integer from 0 to 4294967295",
        );
        refused("AcquireSandboxRequest", r#"{"limits":{"cores":1}}"#, "limits.cores", "is not a field of this request");
        refused("IssueTokenRequest", r#"{"role":"king"}"#, "role", "must be one of unspecified, user, admin");
        refused("DeleteFileRequest", r#"{"recursive":"true"}"#, "recursive", "must be true or false");
    }

    #[test]
    fn second_member_of_a_oneof_is_refused() {
        refused("WriteFileRequest", r#"{"content":"a","data":"YQ=="}"#, "data", "excludes content: give one of them");
        assert!(read("WriteFileRequest", r#"{"content":"a","data":null}"#).is_ok());
    }

    #[test]
    fn what_is_no_json_object_is_refused_without_a_field() {
        for json in ["", "{", "[]", "1", "{} x", r#"{"code":"a"} {}"#, "\u{0}", r#"{"code":"\ud800"}"#] {
            let error = read("ExecuteRequest", json).unwrap_err();
            assert!(error.message().starts_with("the body "), "{json}: {error}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_early() {
        for deep in ["[".repeat(1_000_000), format!("{{\"env\":{}", "{\"a\":".repeat(500_000))] {
            assert!(read("ExecuteRequest", &deep).is_err());
        }
    }
}
