//! A call from its caller to the sandbox's node, one function for each shape that calls have.

use std::sync::Arc;

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, SessionId, error::reason};
use cloud_sandbox_node_client::{Answer, NodeApi, Nodes, failure, lost, within};
use cloud_sandbox_rpc::{CallContext, Dial, Upstream, to_status};
use cloud_sandbox_storage::Directory;
use tokio::{sync::oneshot, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    about::{About, Repeat},
    input::{Input, Rest, first},
    measure::Measure,
    output::{Events, Source},
    place::{Memory, Place, Places},
    sessions::Sessions,
};

/// Relays calls to the nodes of a directory.
#[derive(Clone)]
pub(crate) struct Relay {
    places: Places,
}

/// Who calls, and what came with the call.
struct Caller {
    principal: Principal,
    context: CallContext,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Result<Self> {
        Ok(Self { principal: Principal::of(request)?.clone(), context: CallContext::of(request) })
    }
}

impl Relay {
    pub(crate) fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, session: Upstream) -> Self {
        Self { places: Places { nodes: Nodes::new(directory, dial), sessions: Sessions::new(session) } }
    }

    /// One message, one answer.
    pub(crate) async fn unary<C: NodeApi, Q: About, R>(
        &self,
        request: Request<Q>,
        call: impl Fn(C, Request<Q>) -> Answer<R>,
    ) -> Result<Response<R>, Status> {
        let mut measure = Measure::start(request.get_ref().begins());
        let result = async {
            let caller = Caller::of(&request)?;
            self.ask(&caller, request.into_inner(), call).await.map(|(_, answer)| answer)
        };
        let result = result.await;
        measure.ended(&result);
        result.map(Response::new).map_err(to_status)
    }

    /// One message, many answers.
    pub(crate) async fn server_stream<C: NodeApi, Q: About, R: Send + 'static>(
        &self,
        request: Request<Q>,
        call: impl Fn(C, Request<Q>) -> Answer<Streaming<R>>,
    ) -> Result<Response<Events<R>>, Status> {
        let measure = Measure::start(request.get_ref().begins());
        let repeat = request.get_ref().repeat();
        let opened = async {
            let caller = Caller::of(&request)?;
            let (place, stream) = self.ask(&caller, request.into_inner(), call).await?;
            Ok((self.source(place, repeat, &caller.context, None), stream))
        };
        answered(opened.await, measure)
    }

    /// Many messages, one answer.
    pub(crate) async fn client_stream<C: NodeApi, Q: About, R>(
        &self,
        request: Request<Streaming<Q>>,
        call: impl Fn(C, Request<Input<Q>>) -> Answer<R>,
    ) -> Result<Response<R>, Status> {
        self.gather(request, call).await.map(Response::new).map_err(to_status)
    }

    async fn gather<C: NodeApi, Q: About, R>(
        &self,
        request: Request<Streaming<Q>>,
        call: impl Fn(C, Request<Input<Q>>) -> Answer<R>,
    ) -> Result<R> {
        let caller = Caller::of(&request)?;
        let mut rest = request.into_inner();
        let first = first(&caller.context, &mut rest).await?;
        let mut flow = self.flow(&caller, first, rest).await?;
        loop {
            let client = self.client(&flow.place)?;
            // dropped when this ends, in whatever way
            let (_alive, ended) = oneshot::channel();
            let (broke, broken) = oneshot::channel();
            let outbound = caller.context.outbound(flow.input(Some(broke), ended));
            let answer = tokio::select! {
                answer = within(&caller.context, call(client, outbound)) => answer?,
                Ok(error) = broken => return Err(error),
            };
            match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => flow = self.flow_again(&caller, flow, &status).await?,
            }
        }
    }

    /// Many messages, many answers.
    pub(crate) async fn both_streams<C: NodeApi, Q: About, R: Send + 'static>(
        &self,
        request: Request<Streaming<Q>>,
        call: impl Fn(C, Request<Input<Q>>) -> Answer<Streaming<R>>,
    ) -> Result<Response<Events<R>>, Status> {
        let caller = Caller::of(&request).map_err(to_status)?;
        let mut rest = request.into_inner();
        let first = first(&caller.context, &mut rest).await.map_err(to_status)?;
        let measure = Measure::start(first.begins());
        let opened = async {
            let mut flow = self.flow(&caller, first, rest).await?;
            loop {
                let client = self.client(&flow.place)?;
                let (alive, ended) = oneshot::channel();
                let outbound = caller.context.outbound(flow.input(None, ended));
                match within(&caller.context, call(client, outbound)).await? {
                    Ok(answer) => {
                        let source = self.source(flow.place, flow.repeat, &caller.context, Some(alive));
                        return Ok((source, answer.into_inner()));
                    }
                    Err(status) => flow = self.flow_again(&caller, flow, &status).await?,
                }
            }
        };
        answered(opened.await, measure)
    }

    /// Asks the node, and once more where that is safe: when the connection broke, and when the session that was named
    /// has another sandbox by now.
    async fn ask<C: NodeApi, Q: About, R>(
        &self,
        caller: &Caller,
        mut message: Q,
        call: impl Fn(C, Request<Q>) -> Answer<R>,
    ) -> Result<(Place, R)> {
        let Caller { principal, context } = caller;
        let mut place = self.places.find(principal, context, &mut message, Memory::WillDo).await?;
        let repeat = message.repeat();
        let (mut when_lost, mut when_moved) = (repeat == Repeat::Safe, place.is_of_a_session());
        loop {
            let client = self.client(&place)?;
            let again = (when_lost || when_moved).then(|| message.clone());
            let status = match within(context, call(client, context.outbound(message))).await? {
                Ok(answer) => return Ok((place, answer.into_inner())),
                Err(status) => status,
            };
            if when_lost
                && lost(&status)
                && let Some(again) = again
            {
                (message, when_lost) = (again, false);
                continue;
            }
            let error = self.failed(&place, repeat, &status).await;
            let Some((mut again, id)) = again.zip(place.outdated(&error, repeat).filter(|_| when_moved)) else {
                return Err(error);
            };
            place = self.places.find_again(principal, context, id, &mut again).await?;
            (message, when_moved) = (again, false);
        }
    }

    /// The beginning of a call whose caller goes on to send. The session manager is asked about its session: what has
    /// begun to flow cannot be made to flow again.
    async fn flow<Q: About>(&self, caller: &Caller, mut first: Q, rest: Streaming<Q>) -> Result<Flow<Q>> {
        let Caller { principal, context } = caller;
        let place = self.places.find(principal, context, &mut first, Memory::WillNotDo).await?;
        let repeat = first.repeat();
        Ok(Flow { place, repeat, first, rest: Rest::new(rest), is_second: false })
    }

    /// The same once more, after a node's refusal, for a session that has another sandbox by now.
    async fn flow_again<Q: About>(&self, caller: &Caller, flow: Flow<Q>, status: &Status) -> Result<Flow<Q>> {
        let error = self.failed(&flow.place, flow.repeat, status).await;
        let Some(id) = flow.place.outdated(&error, flow.repeat).filter(|_| !flow.is_second) else { return Err(error) };
        let Some(rest) = flow.rest.take_back() else { return Err(moved(id).with_cause(error)) };
        let mut first = flow.first;
        let place = self.places.find_again(&caller.principal, &caller.context, id, &mut first).await?;
        Ok(Flow { place, repeat: flow.repeat, first, rest, is_second: true })
    }

    fn client<C: NodeApi>(&self, place: &Place) -> Result<C> {
        let client = self.places.nodes.client(&place.entry.node_address);
        client.inspect_err(|_| self.places.doubt(place))
    }

    /// What the failure of a call means to its caller.
    pub(crate) async fn failed(&self, place: &Place, repeat: Repeat, status: &Status) -> Error {
        let error = match repeat {
            Repeat::Unknown(what) if lost(status) => {
                let message = format!("the node did not answer; {what}");
                Error::new(ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN, message).with_cause(failure(status))
            }
            _ => self.places.nodes.failed(&place.entry, status).await,
        };
        if lost(status) || place.outdated(&error, repeat).is_some() || error.reason() == reason::NODE_UNREACHABLE {
            self.places.doubt(place);
        }
        error
    }

    fn source(
        &self,
        place: Place,
        repeat: Repeat,
        context: &CallContext,
        alive: Option<oneshot::Sender<()>>,
    ) -> Source {
        let deadline = context.remaining().map(|left| Instant::now() + left);
        Source { relay: self.clone(), place, deadline, repeat, _alive: alive }
    }
}

/// A call whose caller goes on to send.
struct Flow<Q> {
    place: Place,
    repeat: Repeat,
    first: Q,
    rest: Rest<Q>,
    is_second: bool,
}

impl<Q: About> Flow<Q> {
    fn input(&self, broken: Option<oneshot::Sender<Error>>, ended: oneshot::Receiver<()>) -> Input<Q> {
        Input::new(self.first.clone(), self.rest.clone(), broken, ended)
    }
}

/// The error of a call whose session moved when more than its first message was on the way.
fn moved(id: SessionId) -> Error {
    let message = format!("session {id} came to another sandbox, and nothing of the call was done; make it again");
    Error::new(ErrorKind::Aborted, reason::SESSION_STATE, message)
}

/// A stream as the answer, measured to its end.
fn answered<R: Send + 'static>(
    opened: Result<(Source, Streaming<R>)>,
    mut measure: Measure,
) -> Result<Response<Events<R>>, Status> {
    if opened.is_err() {
        measure.ended(&opened);
    }
    let (source, stream) = opened.map_err(to_status)?;
    Ok(Response::new(source.messages(stream, measure)))
}

/// A service whose every method is relayed to the same method of the same service at a node. The service has a field
/// `relay`.
macro_rules! relayed {
    (
        $trait:path, $service:ident, $client:ident;
        unary { $($unary:ident($uq:ident) -> $ur:ident;)* }
        server_stream { $($server:ident($sq:ident) -> $sr:ident as $stream:ident;)* }
        client_stream { $($gather:ident($gq:ident) -> $gr:ident;)* }
        both_streams { $($both:ident($bq:ident) -> $br:ident as $events:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl $trait for $service {
            $(
                async fn $unary(&self, request: Request<$uq>) -> Result<Response<$ur>, Status> {
                    let call = |mut node: $client, request| -> Answer<_> {
                        Box::pin(async move { node.$unary(request).await })
                    };
                    self.relay.unary(request, call).await
                }
            )*
            $(
                type $stream = Events<$sr>;

                async fn $server(&self, request: Request<$sq>) -> Result<Response<Self::$stream>, Status> {
                    let call = |mut node: $client, request| -> Answer<_> {
                        Box::pin(async move { node.$server(request).await })
                    };
                    self.relay.server_stream(request, call).await
                }
            )*
            $(
                async fn $gather(&self, request: Request<Streaming<$gq>>) -> Result<Response<$gr>, Status> {
                    let call = |mut node: $client, request| -> Answer<_> {
                        Box::pin(async move { node.$gather(request).await })
                    };
                    self.relay.client_stream(request, call).await
                }
            )*
            $(
                type $events = Events<$br>;

                async fn $both(&self, request: Request<Streaming<$bq>>) -> Result<Response<Self::$events>, Status> {
                    let call = |mut node: $client, request| -> Answer<_> {
                        Box::pin(async move { node.$both(request).await })
                    };
                    self.relay.both_streams(request, call).await
                }
            )*
        }
    };
}
pub(crate) use relayed;
