//! The events of an execution, read off its record as it grows.

use cloud_sandbox_proto::v1::{ExecEvent, ExecStarted, exec_event::Event};
use futures::Stream;
use tonic::Status;

use super::{Caller, pieces::Pieces};

/// What is copied out of the record at once: the record is locked meanwhile.
const READ_MAX: usize = 256 * 1024;

/// The events from the first to the last. Reading slowly holds nobody up. Dropped, it is a caller who hung up.
pub(crate) fn events(caller: Caller) -> impl Stream<Item = Result<ExecEvent, Status>> + Send + 'static {
    async_stream::stream! {
        let mut capture = caller.execution.capture.subscribe();
        yield Ok(event(Event::Started(ExecStarted { execution_id: caller.execution.id.to_string() })));
        let (mut stdout, mut stderr) = (Reader::default(), Reader::default());
        loop {
            let (out, err, more, end) = {
                let capture = capture.borrow_and_update();
                let out = capture.stdout.from(stdout.read, READ_MAX).to_vec();
                let err = capture.stderr.from(stderr.read, READ_MAX).to_vec();
                let rest = |all: usize, read: usize, now: &[u8]| all > read + now.len();
                let more = rest(capture.stdout.len(), stdout.read, &out) || rest(capture.stderr.len(), stderr.read, &err);
                let end = capture.end.clone().map(|end| end.map(|exit| capture.exited(&exit)));
                (out, err, more, end)
            };
            let last = end.is_some() && !more;
            for piece in stdout.take(&out, last) {
                yield Ok(event(Event::Stdout(piece)));
            }
            for piece in stderr.take(&err, last) {
                yield Ok(event(Event::Stderr(piece)));
            }
            match end {
                Some(end) if last => {
                    yield end.map(|exited| event(Event::Exited(exited)));
                    return;
                }
                _ if more => {}
                // the sender is in `caller`, so this ends with a change only
                _ => drop(capture.changed().await),
            }
        }
    }
}

#[derive(Default)]
struct Reader {
    pieces: Pieces,
    read: usize,
}

impl Reader {
    fn take(&mut self, bytes: &[u8], last: bool) -> Vec<cloud_sandbox_proto::v1::ExecOutput> {
        self.read += bytes.len();
        self.pieces.push(bytes, last)
    }
}

pub(crate) fn event(event: Event) -> ExecEvent {
    ExecEvent { event: Some(event) }
}
