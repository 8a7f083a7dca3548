//! gRPC health of the edge: every public service, and the edge as a whole, serve until the edge is draining.

use std::{collections::HashSet, pin::Pin};

use async_stream::try_stream;
use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

pub struct EdgeHealth {
    /// what can be asked for; the empty name is the edge as a whole
    names: HashSet<String>,
    draining: watch::Receiver<bool>,
}

impl EdgeHealth {
    pub fn server(names: HashSet<String>, draining: watch::Receiver<bool>) -> HealthServer<Self> {
        HealthServer::new(Self { names, draining })
    }

    fn known(&self, name: &str) -> Result<(), Status> {
        if name.is_empty() || self.names.contains(name) {
            Ok(())
        } else {
            Err(Status::not_found("no such service here"))
        }
    }
}

fn answer(draining: bool) -> HealthCheckResponse {
    let status = if draining { ServingStatus::NotServing } else { ServingStatus::Serving };
    HealthCheckResponse { status: status.into() }
}

#[async_trait]
impl Health for EdgeHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.known(&request.get_ref().service)?;
        Ok(Response::new(answer(*self.draining.borrow())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.known(&request.get_ref().service)?;
        let mut draining = self.draining.clone();
        let answers = try_stream! {
            loop {
                let now = *draining.borrow_and_update();
                yield answer(now);
                if draining.changed().await.is_err() {
                    break;
                }
            }
        };
        Ok(Response::new(Box::pin(answers)))
    }
}
