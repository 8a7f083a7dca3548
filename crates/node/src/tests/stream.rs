use std::time::Duration;

use cloud_sandbox_proto::v1::{
    ExecExited, ExecuteRequest, ExecuteStreamRequest, ExecuteStreamResponse, exec_event::Event, exec_output::Content,
};
use tokio::time::timeout;
use tonic::Streaming;

use super::harness::*;

impl World {
    pub(super) async fn stream(&self, request: ExecuteRequest) -> Result<Streaming<ExecuteStreamResponse>, Failure> {
        let request = ExecuteStreamRequest { request: Some(request) };
        let answer = self.exec().execute_stream(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    /// Whether no node is in the directory.
    pub(super) async fn no_nodes(&self) -> bool {
        use cloud_sandbox_storage::Directory;
        self.directory.nodes().await.unwrap().is_empty()
    }
}

async fn next(stream: &mut Streaming<ExecuteStreamResponse>) -> Option<Event> {
    stream.message().await.unwrap().map(|message| message.event.unwrap().event.unwrap())
}

async fn all(mut stream: Streaming<ExecuteStreamResponse>) -> (Vec<Event>, ExecExited) {
    let mut events = Vec::new();
    while let Some(event) = next(&mut stream).await {
        events.push(event);
    }
    match events.pop() {
        Some(Event::Exited(exited)) => (events, exited),
        last => panic!("the last event is {last:?}"),
    }
}

fn content(event: &Event) -> Content {
    match event {
        Event::Stdout(output) | Event::Stderr(output) => output.content.clone().unwrap(),
        event => panic!("no output: {event:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn events_begin_with_started_and_end_with_exited() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    let (events, exited) = all(world.stream(argv(id, &["both", "out", "err"])).await.unwrap()).await;
    assert!(matches!(&events[0], Event::Started(started) if started.execution_id.starts_with("ex")));
    assert!(events[1..].contains(&Event::Stdout(cloud_sandbox_proto::v1::ExecOutput {
        offset: 0,
        content: Some(Content::Text("out".into())),
    })));
    assert!(events[1..].iter().any(|event| matches!(event, Event::Stderr(_))));
    assert_eq!((exited.exit_code, exited.stdout_bytes, exited.stderr_bytes, exited.cpu_time_ms), (0, 3, 3, 1.5));
}

#[tokio::test(start_paused = true)]
async fn output_comes_while_the_process_runs() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    let mut stream = world.stream(argv(id, &["wait", "20000"])).await.unwrap();
    let first = timeout(Duration::from_secs(1), async { (next(&mut stream).await, next(&mut stream).await) });
    let (started, printed) = first.await.unwrap();
    assert!(matches!(started, Some(Event::Started(_))));
    assert_eq!(content(&printed.unwrap()), Content::Text("waiting\n".into()));
    let (rest, _) = all(stream).await;
    assert_eq!(content(&rest[0]), Content::Text("done\n".into()));
}

#[tokio::test(start_paused = true)]
async fn characters_are_whole_and_other_bytes_are_bytes() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    let request = argv(id, &["bytes", "61", "C3", "A9", "FF", "62", "E2", "82"]);
    let (events, _) = all(world.stream(request).await.unwrap()).await;
    let contents: Vec<_> = events[1..].iter().map(content).collect();
    let text = |text: &str| Content::Text(text.into());
    let data = |bytes: &[u8]| Content::Data(bytes.to_vec().into());
    assert_eq!(contents, [text("a"), text("é"), data(&[0xFF]), text("b"), data(&[0xE2, 0x82])]);
}

#[tokio::test(start_paused = true)]
async fn truncated_stream_stops_at_the_bound_and_says_so() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    let request = ExecuteRequest { max_output_bytes: 100_000, ..argv(id, &["flood", "300000"]) };
    let (events, exited) = all(world.stream(request).await.unwrap()).await;
    let mut sent = 0;
    for event in &events[1..] {
        let Event::Stdout(output) = event else { panic!("{event:?}") };
        assert_eq!(output.offset, sent);
        let Content::Text(text) = content(event) else { panic!() };
        assert!(text.len() <= 32 * 1024);
        sent += text.len() as u64;
    }
    assert_eq!((sent, exited.stdout_bytes, exited.stdout_truncated), (100_000, 300_000, true));
}

#[tokio::test(start_paused = true)]
async fn failed_start_is_the_status_of_the_call() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    world.script.missing.lock().unwrap().insert("nope");
    assert_eq!(world.stream(argv(id, &["nope"])).await.unwrap_err().reason, "PROGRAM_NOT_FOUND");
    assert_eq!(world.stream(argv(id, &[""])).await.unwrap_err().fields, ["argv"]);
}

#[tokio::test(start_paused = true)]
async fn dropped_stream_ends_an_execution_without_a_request_id_only() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    drop(world.stream(argv(id, &["wait", "20000"])).await.unwrap());
    world.settle().await;
    assert_eq!(world.script.running(), 0);

    let request = ExecuteRequest { request_id: "r1".into(), ..argv(id, &["wait", "20000"]) };
    drop(world.stream(request.clone()).await.unwrap());
    world.settle().await;
    assert_eq!(world.script.running(), 1);
    let (events, exited) = all(world.stream(request.clone()).await.unwrap()).await;
    let printed: Vec<_> = events[1..].iter().map(content).collect();
    assert_eq!(printed, [Content::Text("waiting\n".into()), Content::Text("done\n".into())]);
    assert_eq!(exited.exit_code, 0);
    assert_eq!(world.execute(request).await.unwrap().stdout, "waiting\ndone\n");
}

#[tokio::test(start_paused = true)]
async fn stream_ends_with_an_error_when_the_sandbox_does() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    let mut stream = world.stream(argv(id, &["wait", "20000"])).await.unwrap();
    next(&mut stream).await;
    world.release(id).await.unwrap();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without an error"),
            Err(status) => break status,
        }
    };
    let failure = Failure::of(&status);
    assert_eq!(failure.words(), ("NOT_FOUND", "SANDBOX_GONE"));
    assert!(failure.message.contains("released"));
}
