//! What earlier processes of this node prepared of templates that were deleted while it was away: found when the list of
//! the control plane is there, and dropped by keepers, as if they had just left it.

use std::sync::Arc;

use cloud_sandbox_model::{RuntimeName, error::chain};
use cloud_sandbox_runtime::RuntimeError;
use tokio::time::sleep_until;

use super::keeper::Backoff;
use crate::node::Shared;

/// Looks for them, for each runtime as soon as that is there, until there are none.
pub(super) fn begin(node: &Arc<Shared>) {
    for family in node.runtimes.families() {
        node.tasks.spawn(look(Arc::clone(node), family.parse().expect("families are names of runtimes")));
    }
}

async fn look(node: Arc<Shared>, runtime: RuntimeName) {
    tokio::select! {
        () = node.stop.cancelled() => {}
        () = drop_all(&node, &runtime) => {}
    }
}

async fn drop_all(node: &Arc<Shared>, runtime: &RuntimeName) {
    let mut again = Backoff::new();
    loop {
        match drop_some(node, runtime).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::debug!(%runtime, error, "what is left of deleted templates cannot be looked for yet");
            }
        }
        again.put_off();
        sleep_until(again.at).await;
    }
}

/// Has those dropped that are there, and says how many that is.
async fn drop_some(node: &Arc<Shared>, name: &RuntimeName) -> Result<usize, RuntimeError> {
    let runtime = node.runtimes.usable(node, name).await?;
    let prepared = runtime.prepared_templates().await?;
    let mut state = node.templates.state();
    let left = prepared.into_iter().filter(|reference| state.drop_leftover(node, reference, name.family()));
    Ok(left.count())
}
