//! A call from its caller to the sandbox's node, one function for each shape that calls have.

use std::sync::Arc;

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, error::reason};
use cloud_sandbox_node_client::{Answer, NodeApi, Nodes, failure, lost, within};
use cloud_sandbox_rpc::{CallContext, Dial, to_status};
use cloud_sandbox_storage::{Directory, SandboxEntry};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    about::{About, Repeat},
    input::{Input, first, input},
    measure::Measure,
    output::{Events, Source},
};

/// Relays calls to the nodes of a directory.
#[derive(Clone)]
pub(crate) struct Relay {
    nodes: Nodes,
}

impl Relay {
    pub(crate) fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Self {
        Self { nodes: Nodes::new(directory, dial) }
    }

    /// One message, one answer.
    pub(crate) async fn unary<C: NodeApi, Q: About + Clone, R>(
        &self,
        request: Request<Q>,
        call: impl Fn(C, Request<Q>) -> Answer<R>,
    ) -> Result<Response<R>, Status> {
        let mut measure = Measure::start(request.get_ref().begins());
        let context = CallContext::of(&request);
        let result = async {
            let entry = self.locate(Principal::of(&request)?, request.get_ref()).await?;
            self.ask(&context, &entry, request.into_inner(), call).await
        };
        let result = result.await;
        measure.ended(&result);
        result.map(Response::new).map_err(to_status)
    }

    /// One message, many answers.
    pub(crate) async fn server_stream<C: NodeApi, Q: About + Clone, R: Send + 'static>(
        &self,
        request: Request<Q>,
        call: impl Fn(C, Request<Q>) -> Answer<Streaming<R>>,
    ) -> Result<Response<Events<R>>, Status> {
        let measure = Measure::start(request.get_ref().begins());
        let context = CallContext::of(&request);
        let repeat = request.get_ref().repeat();
        let opened = async {
            let entry = self.locate(Principal::of(&request)?, request.get_ref()).await?;
            let stream = self.ask(&context, &entry, request.into_inner(), call).await?;
            Ok((self.source(entry, repeat, &context, None), stream))
        };
        answered(opened.await, measure)
    }

    /// Many messages, one answer.
    pub(crate) async fn client_stream<C: NodeApi, Q: About, R>(
        &self,
        request: Request<Streaming<Q>>,
        call: impl FnOnce(C, Request<Input<Q>>) -> Answer<R>,
    ) -> Result<Response<R>, Status> {
        self.gather(request, call).await.map(Response::new).map_err(to_status)
    }

    async fn gather<C: NodeApi, Q: About, R>(
        &self,
        request: Request<Streaming<Q>>,
        call: impl FnOnce(C, Request<Input<Q>>) -> Answer<R>,
    ) -> Result<R> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let mut rest = request.into_inner();
        let first = first(&context, &mut rest).await?;
        let entry = self.locate(&principal, &first).await?;
        let repeat = first.repeat();
        let client = self.nodes.client(&entry.node_address)?;
        // dropped when this ends, in whatever way
        let (_alive, ended) = oneshot::channel();
        let (broke, broken) = oneshot::channel();
        let outbound = context.outbound(input(first, rest, Some(broke), ended));
        let answer = tokio::select! {
            answer = within(&context, call(client, outbound)) => answer?,
            Ok(error) = broken => return Err(error),
        };
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.failed(&entry, repeat, &status).await),
        }
    }

    /// Many messages, many answers.
    pub(crate) async fn both_streams<C: NodeApi, Q: About, R: Send + 'static>(
        &self,
        request: Request<Streaming<Q>>,
        call: impl FnOnce(C, Request<Input<Q>>) -> Answer<Streaming<R>>,
    ) -> Result<Response<Events<R>>, Status> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request).map_err(to_status)?.clone();
        let mut rest = request.into_inner();
        let first = first(&context, &mut rest).await.map_err(to_status)?;
        let measure = Measure::start(first.begins());
        let opened = async {
            let entry = self.locate(&principal, &first).await?;
            let repeat = first.repeat();
            let client = self.nodes.client(&entry.node_address)?;
            let (alive, ended) = oneshot::channel();
            let outbound = context.outbound(input(first, rest, None, ended));
            match within(&context, call(client, outbound)).await? {
                Ok(answer) => Ok((self.source(entry, repeat, &context, Some(alive)), answer.into_inner())),
                Err(status) => Err(self.failed(&entry, repeat, &status).await),
            }
        };
        answered(opened.await, measure)
    }

    /// Where the sandbox is that `message` is about, if `principal` may say that.
    async fn locate(&self, principal: &Principal, message: &impl About) -> Result<SandboxEntry> {
        let id = message.sandbox_id()?;
        if principal.grant.as_ref().is_some_and(|grant| !message.is_granted(grant)) {
            let message = "the token is for another file, or for something else to be done with it";
            return Err(Error::new(ErrorKind::PermissionDenied, reason::ROLE_DENIED, message));
        }
        self.nodes.locate(principal, id).await
    }

    /// Asks the node, and once more where that is safe and the connection broke.
    async fn ask<C: NodeApi, Q: About + Clone, R>(
        &self,
        context: &CallContext,
        entry: &SandboxEntry,
        mut message: Q,
        call: impl Fn(C, Request<Q>) -> Answer<R>,
    ) -> Result<R> {
        let repeat = message.repeat();
        let mut again = (repeat == Repeat::Safe).then(|| message.clone());
        loop {
            let client = self.nodes.client(&entry.node_address)?;
            let status = match within(context, call(client, context.outbound(message))).await? {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            match again.take() {
                Some(repeated) if lost(&status) => message = repeated,
                _ => return Err(self.failed(entry, repeat, &status).await),
            }
        }
    }

    /// What the failure of a call means to its caller.
    pub(crate) async fn failed(&self, entry: &SandboxEntry, repeat: Repeat, status: &Status) -> Error {
        match repeat {
            Repeat::Unknown(what) if lost(status) => {
                let message = format!("the node did not answer; {what}");
                Error::new(ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN, message).with_cause(failure(status))
            }
            _ => self.nodes.failed(entry, status).await,
        }
    }

    fn source(
        &self,
        entry: SandboxEntry,
        repeat: Repeat,
        context: &CallContext,
        alive: Option<oneshot::Sender<()>>,
    ) -> Source {
        let deadline = context.remaining().map(|left| Instant::now() + left);
        Source { relay: self.clone(), entry, deadline, repeat, _alive: alive }
    }
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
