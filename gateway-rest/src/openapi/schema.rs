//! JSON Schemas (2020-12, as OpenAPI 3.1 takes them) of messages and enums, in the shapes that [`crate::json`] reads
//! and prints.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value as ProtoValue};
use serde_json::{Map, Value, json};

use super::comments::Comments;
use crate::json;

/// `google.api.FieldBehavior.REQUIRED`.
const REQUIRED: i32 = 2;

/// The schemas that are referred to so far.
pub struct Schemas<'a> {
    comments: &'a Comments,
    done: Map<String, Value>,
}

impl<'a> Schemas<'a> {
    pub fn new(comments: &'a Comments) -> Self {
        Self { comments, done: Map::new() }
    }

    pub fn finish(self) -> Map<String, Value> {
        self.done
    }

    /// A reference to the message's schema.
    pub fn reference(&mut self, message: &MessageDescriptor) -> Value {
        let name = message.name().to_owned();
        if !self.done.contains_key(&name) {
            // first, so that a message that holds itself ends here
            self.done.insert(name.clone(), Value::Null);
            let schema = self.object(message, &[]);
            self.done.insert(name.clone(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    /// The message without fields that come from elsewhere.
    pub fn without(&mut self, message: &MessageDescriptor, left_out: &[&str]) -> Value {
        self.object(message, left_out)
    }

    fn object(&mut self, message: &MessageDescriptor, left_out: &[&str]) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in message.fields().filter(|field| !left_out.contains(&field.name())) {
            let mut schema = self.of_field(&field);
            let mut text = self.comments.text(message.parent_file().name(), field.path());
            if let Some(group) = field.containing_oneof() {
                let others: Vec<_> =
                    group.fields().filter(|f| *f != field).map(|f| format!("`{}`", f.name())).collect();
                text = format!("{text} Excludes {}.", others.join(", "));
            }
            schema["description"] = text.into();
            if is_required(&field) {
                required.push(field.name().to_owned());
            }
            properties.insert(field.name().to_owned(), schema);
        }
        let mut schema = json!({
            "type": "object",
            "description": self.comments.text(message.parent_file().name(), message.path()),
            "properties": properties,
        });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        schema
    }

    /// The schema of a field's value.
    pub fn of_field(&mut self, field: &FieldDescriptor) -> Value {
        let kind = field.kind();
        match kind.as_message() {
            Some(entry) if field.is_map() => {
                let values = self.of_kind(&entry.map_entry_value_field().kind());
                json!({"type": "object", "additionalProperties": values})
            }
            _ if field.is_list() => json!({"type": "array", "items": self.of_kind(&kind)}),
            _ => self.of_kind(&kind),
        }
    }

    fn of_kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Float => json!({"type": "number", "format": "float"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({"type": "integer", "format": "int64"}),
            Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "integer", "minimum": 0, "format": "uint64"}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Enum(kind) => self.words(kind),
            Kind::Message(kind) => match kind.full_name() {
                "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
                "google.protobuf.Duration" => json!({"type": "string"}),
                _ => self.reference(kind),
            },
        }
    }

    fn words(&mut self, kind: &EnumDescriptor) -> Value {
        let name = kind.name().to_owned();
        if !self.done.contains_key(&name) {
            let file = kind.parent_file();
            let meanings = kind.values().map(|value| {
                let meaning = self.comments.text(file.name(), value.path());
                format!("- `{}`: {meaning}", json::word(kind, value.name()))
            });
            let meanings: Vec<_> = meanings.collect();
            let text = format!("{}\n\n{}", self.comments.text(file.name(), kind.path()), meanings.join("\n"));
            let schema = json!({"type": "string", "enum": json::words(kind), "description": text});
            self.done.insert(name.clone(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }
}

/// Whether the contract says that the field must be given.
pub fn is_required(field: &FieldDescriptor) -> bool {
    let pool = field.parent_pool();
    let Some(behavior) = pool.get_extension_by_name("google.api.field_behavior") else { return false };
    let options = field.options();
    let value = options.get_extension(&behavior);
    value.as_list().is_some_and(|list| list.iter().any(|value| *value == ProtoValue::EnumNumber(REQUIRED)))
}

/// The schema of the error envelope.
pub fn error() -> Value {
    json!({
        "type": "object",
        "description": "A failed call (AIP-193).",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["code", "status", "message", "details"],
            "properties": {
                "code": {"type": "integer", "description": "The HTTP status."},
                "status": {"type": "string", "description": "The gRPC status by name.", "examples": ["NOT_FOUND"]},
                "message": {"type": "string", "description": "What went wrong, for people."},
                "details": {
                    "type": "array",
                    "description": "What went wrong, for programs: always one google.rpc.ErrorInfo with a stable \
                        reason; google.rpc.BadRequest names the fields at fault; google.rpc.RetryInfo says when to \
                        come back.",
                    "items": {
                        "type": "object",
                        "required": ["@type"],
                        "properties": {"@type": {"type": "string"}},
                        "additionalProperties": true,
                    },
                },
            },
        }},
    })
}
