//! What it takes to have a Docker Engine pull an image, for whoever asks one.

use std::{collections::HashMap, time::Duration};

use bollard::{Docker, auth::DockerCredentials, models::CreateImageInfo};
use cloud_sandbox_model::template::Credentials;

/// How long an engine may say nothing while it pulls or exports: unpacking a large layer on a slow disk is silent.
pub const SILENT_FOR: Duration = Duration::from_secs(600);

/// The image with a tag or digest: without one the daemon would pull every tag that there is. A colon before the last slash
/// is a port's.
#[must_use]
pub fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or_default();
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// Who asks, as the client has it.
#[must_use]
pub fn credentials(credentials: &Credentials) -> DockerCredentials {
    DockerCredentials {
        username: Some(credentials.username.clone()),
        password: Some(credentials.password.clone()),
        ..DockerCredentials::default()
    }
}

/// A client whose credentials the daemon can read. That reads base64 as it is in addresses, and the client writes it as it is
/// elsewhere: what it cannot read, it takes for no credentials at all.
#[must_use]
pub fn with_registry_auth(client: Docker) -> Docker {
    client.with_request_modifier(|mut request| {
        let header = "X-Registry-Auth";
        let told = request.headers().get(header).and_then(|value| value.to_str().ok());
        let told = told.map(|value| value.replace('+', "-").replace('/', "_"));
        if let Some(value) = told.and_then(|value| http::HeaderValue::from_str(&value).ok()) {
            request.headers_mut().insert(header, value);
        }
        request
    })
}

/// How far each layer has come. A layer is downloaded and then unpacked: half of the way each.
#[derive(Default)]
pub struct Layers(HashMap<String, (u64, u64)>);

impl Layers {
    /// Takes in what the daemon says. Bytes that are done, and that there are.
    pub fn take(&mut self, info: &CreateImageInfo) -> (u64, u64) {
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        if let (Some(id), Some(status)) = (&info.id, info.status.as_deref()) {
            let (current, total) =
                info.progress_detail.as_ref().map_or((0, 0), |detail| (number(detail.current), number(detail.total)));
            let layer = self.0.entry(id.clone()).or_default();
            match status {
                "Downloading" => *layer = (current, total * 2),
                "Download complete" => layer.0 = layer.0.max(layer.1 / 2),
                "Extracting" => *layer = (total + current, total * 2),
                "Pull complete" => layer.0 = layer.1,
                _ => {}
            }
        }
        self.0.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1))
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest_and_ports_are_no_tags() {
        for (image, whole) in [
            ("python", "python:latest"),
            ("python:3", "python:3"),
            ("python:3.11-slim", "python:3.11-slim"),
            ("localhost:5000/python", "localhost:5000/python:latest"),
            ("registry:5000/a/b", "registry:5000/a/b:latest"),
            ("registry:5000/a/b:1", "registry:5000/a/b:1"),
            ("a@sha256:00", "a@sha256:00"),
            ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
        ] {
            assert_eq!(with_tag(image), whole);
        }
    }

    #[test]
    fn layers_are_downloaded_and_unpacked() {
        let mut layers = Layers::default();
        let mut take = |id: &str, status: &str, current, total| {
            layers.take(&CreateImageInfo {
                id: Some(id.into()),
                status: Some(status.into()),
                progress_detail: Some(ProgressDetail { current: Some(current), total: Some(total) }),
                ..CreateImageInfo::default()
            })
        };
        assert_eq!(take("a", "Downloading", 50, 100), (50, 200));
        assert_eq!(take("b", "Downloading", 10, 50), (60, 300));
        assert_eq!(take("a", "Download complete", 0, 0), (110, 300));
        assert_eq!(take("a", "Extracting", 20, 100), (130, 300));
        assert_eq!(take("a", "Pull complete", 0, 0), (210, 300));
    }
}
