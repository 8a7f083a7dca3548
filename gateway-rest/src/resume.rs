//! Event streams that are taken up where they broke off: every server-sent event of an execution that is attached to
//! carries in its `id` where the outputs go on after it, and a browser that connects again sends the last one back
//! (HTML, "Server-sent events", section 9.2).

use cloud_sandbox_model::error::Error;
use cloud_sandbox_proto::v1::{ExecEvent, OutputStream, exec_event::Event, exec_output::Content};
use http::HeaderMap;
use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use crate::routes::Binding;

const LAST_EVENT_ID: &str = "last-event-id";
const STDOUT: &str = "stdout_offset";
const STDERR: &str = "stderr_offset";
const EVENT: &str = "cloud_sandbox.v1.ExecEvent";

/// How far a stream has come in either output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    stdout: u64,
    stderr: u64,
}

impl Position {
    /// Where the stream that `message` asks for begins: after the event that the caller saw last, where it says so.
    /// `None` where a stream cannot be taken up again.
    pub fn begin(binding: &Binding, message: &mut DynamicMessage, headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let shown = binding.response_body.as_ref().map(|field| field.kind());
        let is_event = matches!(&shown, Some(Kind::Message(kind)) if kind.full_name() == EVENT);
        let input = message.descriptor();
        let (Some(stdout), Some(stderr)) = (input.get_field_by_name(STDOUT), input.get_field_by_name(STDERR)) else {
            return Ok(None);
        };
        if !is_event {
            return Ok(None);
        }
        if let Some(id) = headers.get(LAST_EVENT_ID) {
            let position = id.to_str().ok().and_then(Self::parse);
            let position = position.ok_or_else(|| Error::invalid(LAST_EVENT_ID, "must be the id of an event"))?;
            message.set_field(&stdout, Value::U64(position.stdout));
            message.set_field(&stderr, Value::U64(position.stderr));
        }
        let given = |field| message.get_field(field).as_u64().unwrap_or_default();
        Ok(Some(Self { stdout: given(&stdout), stderr: given(&stderr) }))
    }

    fn parse(id: &str) -> Option<Self> {
        let (stdout, stderr) = id.split_once('-')?;
        Some(Self { stdout: stdout.parse().ok()?, stderr: stderr.parse().ok()? })
    }

    /// The id of the last event that [`Self::pass`] was told of.
    pub fn id(self) -> String {
        format!("{}-{}", self.stdout, self.stderr)
    }

    /// Goes past an event.
    pub fn pass(&mut self, event: &ExecEvent) {
        let (stream, end) = match &event.event {
            Some(Event::Stdout(output)) => (OutputStream::Stdout, output.offset + length(output.content.as_ref())),
            Some(Event::Stderr(output)) => (OutputStream::Stderr, output.offset + length(output.content.as_ref())),
            Some(Event::Gap(gap)) => (gap.stream(), gap.offset + gap.length),
            _ => return,
        };
        match stream {
            OutputStream::Stderr => self.stderr = end,
            _ => self.stdout = end,
        }
    }
}

fn length(content: Option<&Content>) -> u64 {
    match content {
        Some(Content::Text(text)) => text.len() as u64,
        Some(Content::Data(data)) => data.len() as u64,
        None => 0,
    }
}

/// The event in a message of the stream.
pub fn event(binding: &Binding, message: &DynamicMessage) -> Option<ExecEvent> {
    message.get_field(binding.response_body.as_ref()?).as_message()?.transcode_to().ok()
}
