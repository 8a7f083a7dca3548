use std::time::Duration;

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::v1::{
    ExecAttach, ExecCloseStdin, ExecExited, ExecRequest, ExecResponse, ExecStart, ExecuteRequest, TerminalSize,
    exec_event::Event, exec_output::Content, exec_request::Input,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::harness::*;

pub(super) struct Talk {
    input: mpsc::Sender<ExecRequest>,
    output: Streaming<ExecResponse>,
}

impl Talk {
    async fn begin(world: &World, first: Input) -> Result<Self, Failure> {
        let (input, queue) = mpsc::channel(16);
        let talk = |output| Self { input: input.clone(), output };
        input.send(message(first)).await.unwrap();
        let answer = world.exec().exec(ReceiverStream::new(queue)).await;
        answer.map(|answer| talk(answer.into_inner())).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn start(world: &World, request: ExecuteRequest, terminal: Option<TerminalSize>) -> Self {
        let start = ExecStart { request: Some(request), terminal, detached: false };
        let mut talk = Self::begin(world, Input::Start(start)).await.unwrap();
        assert!(matches!(talk.next().await.unwrap(), Event::Started(_)));
        talk
    }

    pub(super) async fn send(&self, input: Input) {
        self.input.send(message(input)).await.unwrap();
    }

    async fn next(&mut self) -> Result<Event, Status> {
        self.output.message().await.map(|message| message.unwrap().event.unwrap().event.unwrap())
    }

    pub(super) async fn text(&mut self) -> String {
        match self.next().await.unwrap() {
            Event::Stdout(output) => match output.content.unwrap() {
                Content::Text(text) => text,
                Content::Data(data) => panic!("{data:?}"),
            },
            event => panic!("{event:?}"),
        }
    }

    async fn exited(&mut self) -> ExecExited {
        match self.next().await.unwrap() {
            Event::Exited(exited) => exited,
            event => panic!("{event:?}"),
        }
    }

    /// The error that a message ends the stream with.
    async fn refusal(mut self, input: Input) -> Failure {
        self.send(input).await;
        Failure::of(&self.next().await.unwrap_err())
    }
}

fn message(input: Input) -> ExecRequest {
    ExecRequest { input: Some(input) }
}

async fn world() -> (World, SandboxId) {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    (world, id)
}

const SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

#[tokio::test(start_paused = true)]
async fn input_is_answered_until_it_ends() {
    let (world, id) = world().await;
    let mut talk = Talk::start(&world, argv(id, &["cat"]), None).await;
    for text in ["a", "é"] {
        talk.send(Input::Stdin(text.into())).await;
        assert_eq!(talk.text().await, text);
    }
    talk.send(Input::CloseStdin(ExecCloseStdin {})).await;
    let exited = talk.exited().await;
    assert_eq!((exited.exit_code, exited.stdout_bytes), (0, 3));
    assert!(talk.output.message().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn end_of_the_request_stream_means_nothing() {
    let (world, id) = world().await;
    let mut talk = Talk::start(&world, argv(id, &["wait", "5000"]), None).await;
    talk.input = mpsc::channel(1).0;
    assert_eq!(talk.text().await, "waiting\n");
    assert_eq!(talk.text().await, "done\n");
    assert_eq!(talk.exited().await.exit_code, 0);
}

#[tokio::test(start_paused = true)]
async fn terminal_is_resized_and_signals_are_sent() {
    let (world, id) = world().await;
    let mut talk = Talk::start(&world, argv(id, &["cat"]), Some(SIZE)).await;
    assert_eq!(world.script.last_start().terminal.unwrap().cols, 80);
    talk.send(Input::Resize(TerminalSize { rows: 50, cols: 100 })).await;
    assert_eq!(talk.text().await, "50x100");
    talk.send(Input::Signal("SIGINT".into())).await;
    let exited = talk.exited().await;
    assert_eq!((exited.exit_code, exited.signal.as_str()), (130, "SIGINT"));
    assert_eq!(world.script.signals.lock().unwrap().as_slice(), [2]);
}

#[tokio::test(start_paused = true)]
async fn wrong_messages_end_the_stream_and_the_process() {
    let (world, id) = world().await;
    let cases = [
        (Input::Signal("SIGNONSENSE".into()), "INVALID_ARGUMENT", "signal"),
        (Input::Stdin(vec![0; 64 * 1024 + 1].into()), "INVALID_ARGUMENT", "stdin"),
        (Input::Start(ExecStart::default()), "INVALID_ARGUMENT", "start"),
        (Input::Resize(TerminalSize { rows: 0, cols: 1 }), "INVALID_ARGUMENT", "resize.rows"),
    ];
    for (input, kind, field) in cases {
        let failure = Talk::start(&world, argv(id, &["cat"]), Some(SIZE)).await.refusal(input).await;
        assert_eq!((failure.kind, failure.fields), (kind, vec![field.to_owned()]));
    }
    let failure = Talk::start(&world, argv(id, &["cat"]), None).await.refusal(Input::Resize(SIZE)).await;
    assert_eq!(failure.kind, "FAILED_PRECONDITION");
    world.settle().await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn wrong_beginnings_are_refused() {
    let (world, id) = world().await;
    let failure = Talk::begin(&world, Input::Stdin("a".into())).await.err().unwrap();
    assert_eq!(failure.fields, ["start"]);
    let request = ExecuteRequest { max_output_bytes: 1, output_strategy: 2, ..argv(id, &["cat"]) };
    let start = ExecStart { request: Some(request), terminal: None, detached: false };
    let failure = Talk::begin(&world, Input::Start(start)).await.err().unwrap();
    assert_eq!(failure.fields, ["max_output_bytes", "output_strategy"]);
    let terminal = Some(TerminalSize { rows: 1, cols: 1001 });
    let start = ExecStart { request: Some(argv(id, &["cat"])), terminal, detached: false };
    let failure = Talk::begin(&world, Input::Start(start)).await.err().unwrap();
    assert_eq!(failure.fields, ["start.terminal.cols"]);
}

#[tokio::test(start_paused = true)]
async fn dropped_stream_ends_the_process() {
    let (world, id) = world().await;
    let talk = Talk::start(&world, argv(id, &["wait", "30000"]), None).await;
    assert_eq!(world.script.running(), 1);
    drop(talk);
    world.settle().await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn timeout_holds_also_for_a_process_that_does_not_die() {
    let (world, id) = world().await;
    let request = |words| ExecuteRequest { timeout_ms: 1000, ..argv(id, words) };
    let mut talk = Talk::start(&world, request(&["wait", "30000"]), None).await;
    talk.text().await;
    let exited = talk.exited().await;
    assert!(exited.timed_out && exited.exit_code == 137);

    let began = Instant::now();
    let mut talk = Talk::start(&world, request(&["stubborn"]), None).await;
    let exited = talk.exited().await;
    assert!(exited.timed_out && exited.signal == "SIGKILL");
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(talk);
    world.settle().await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn interactive_execution_ends_with_its_sandbox() {
    let (world, id) = world().await;
    let mut talk = Talk::start(&world, argv(id, &["cat"]), None).await;
    world.release(id).await.unwrap();
    assert_eq!(Failure::of(&talk.next().await.unwrap_err()).reason, "SANDBOX_GONE");
}

#[tokio::test(start_paused = true)]
async fn paused_sandbox_starts_nothing() {
    let (world, id) = world().await;
    world.pause(id).await.unwrap();
    let start = ExecStart { request: Some(argv(id, &["cat"])), terminal: None, detached: false };
    assert_eq!(Talk::begin(&world, Input::Start(start)).await.err().unwrap().reason, "SANDBOX_PAUSED");
}

#[tokio::test(start_paused = true)]
async fn detached_or_named_execution_outlives_its_stream() {
    let (world, id) = world().await;
    let detached = ExecStart { request: Some(argv(id, &["wait", "5000"])), terminal: None, detached: true };
    let named = ExecuteRequest { request_id: "r1".into(), ..argv(id, &["wait", "5000"]) };
    let named = ExecStart { request: Some(named), terminal: None, detached: false };
    for start in [detached, named] {
        let mut talk = Talk::begin(&world, Input::Start(start)).await.unwrap();
        let Event::Started(started) = talk.next().await.unwrap() else { panic!() };
        drop(talk);
        world.settle().await;
        assert_eq!(world.script.running(), 1);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(world.execution(id, &started.execution_id).await.unwrap().stdout_bytes, 13);
    }
}

#[tokio::test(start_paused = true)]
async fn named_execution_is_joined_by_its_repeat() {
    let (world, id) = world().await;
    let request = ExecuteRequest { request_id: "r1".into(), ..argv(id, &["cat"]) };
    let mut first = Talk::start(&world, request.clone(), None).await;
    first.send(Input::Stdin("a".into())).await;
    assert_eq!(first.text().await, "a");
    let mut second = Talk::start(&world, request, None).await;
    assert_eq!(second.text().await, "a");
    second.send(Input::Stdin("b".into())).await;
    assert_eq!((first.text().await, second.text().await), ("b".to_owned(), "b".to_owned()));
    assert_eq!(world.script.starts.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_who_attaches_reads_from_an_offset_writes_and_leaves_it_running() {
    let (world, id) = world().await;
    let request = ExecuteRequest { stdin: "abc".into(), stdin_open: true, ..argv(id, &["cat"]) };
    let execution_id = world.begin(request).await.unwrap().execution_id;
    let attach = |stdout_offset| {
        let attach = ExecAttach {
            sandbox_id: id.to_string(),
            execution_id: execution_id.clone(),
            stdout_offset,
            stderr_offset: 0,
            ..Default::default()
        };
        Input::Attach(attach)
    };
    let mut talk = Talk::begin(&world, attach(1)).await.unwrap();
    assert!(matches!(talk.next().await.unwrap(), Event::Started(_)));
    assert_eq!(talk.text().await, "bc");
    talk.send(Input::Stdin("d".into())).await;
    assert_eq!(talk.text().await, "d");
    drop(talk);
    world.settle().await;
    let mut talk = Talk::begin(&world, attach(4)).await.unwrap();
    assert!(matches!(talk.next().await.unwrap(), Event::Started(_)));
    talk.send(Input::CloseStdin(ExecCloseStdin {})).await;
    assert_eq!(talk.exited().await.stdout_bytes, 4);
}

#[tokio::test(start_paused = true)]
async fn signal_overtakes_input_that_nobody_reads() {
    let (world, id) = world().await;
    let mut talk = Talk::start(&world, argv(id, &["wait", "60000"]), None).await;
    talk.text().await;
    // more than fits between here and the process
    for _ in 0..200 {
        if talk.input.try_send(message(Input::Stdin(vec![b'x'; 64 * 1024].into()))).is_err() {
            break;
        }
        world.settle().await;
    }
    // the queue to the node takes messages only as the node reads them: one is read ahead
    let name = {
        let request =
            cloud_sandbox_proto::v1::ListExecutionsRequest { sandbox_id: id.to_string(), ..Default::default() };
        world.list(request).await.unwrap().executions.remove(0).execution_id
    };
    let request = cloud_sandbox_proto::v1::SignalExecutionRequest {
        sandbox_id: id.to_string(),
        execution_id: name,
        signal: "SIGTERM".into(),
        ..Default::default()
    };
    world.exec().signal_execution(request).await.unwrap();
    assert_eq!(talk.exited().await.signal, "SIGTERM");
}

#[tokio::test(start_paused = true)]
async fn terminal_is_given_in_one_place() {
    let (world, id) = world().await;
    let request = ExecuteRequest { terminal: Some(SIZE), ..argv(id, &["cat"]) };
    let start = ExecStart { request: Some(request.clone()), terminal: Some(SIZE), detached: false };
    assert_eq!(Talk::begin(&world, Input::Start(start)).await.err().unwrap().fields, ["start.terminal"]);
    let mut talk = Talk::start(&world, request, None).await;
    talk.send(Input::Resize(TerminalSize { rows: 5, cols: 6 })).await;
    assert_eq!(talk.text().await, "5x6");
}

#[tokio::test(start_paused = true)]
async fn input_after_its_end_is_refused() {
    let (world, id) = world().await;
    let talk = Talk::start(&world, argv(id, &["wait", "60000"]), None).await;
    talk.send(Input::CloseStdin(ExecCloseStdin {})).await;
    let mut talk = talk;
    talk.text().await;
    assert_eq!(talk.refusal(Input::Stdin("a".into())).await.words(), ("FAILED_PRECONDITION", "STDIN_CLOSED"));
}
