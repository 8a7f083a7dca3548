//! Images, put into a registry by the same client that fetches them.

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    manifest::{IMAGE_CONFIG_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE},
    secrets::RegistryAuth,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{PASSWORD, RegistryServer, USER};

/// An image that was put there.
pub struct Pushed {
    /// its whole name: `127.0.0.1:PORT/NAME:latest`
    pub image: String,
    pub manifest: String,
    pub config: String,
    pub layers: Vec<String>,
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// This machine's architecture as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The configuration of an image for this machine.
pub fn here() -> Value {
    json!({
        "os": "linux",
        "architecture": architecture(),
        "config": { "Env": ["PATH=/bin"], "WorkingDir": "/app", "User": "ada" },
        "rootfs": { "type": "layers", "diff_ids": [] },
    })
}

pub struct Pusher {
    client: Client,
    pub reference: Reference,
}

impl Pusher {
    pub async fn new(server: &RegistryServer, name: &str) -> Self {
        // what the crate does by itself when it fetches
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let client = Client::try_from(config).unwrap();
        let reference: Reference = format!("{}/{name}:latest", server.host()).parse().unwrap();
        let auth = RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned());
        client.store_auth_if_needed(reference.resolve_registry(), &auth).await;
        // the token of a registry that asks is for one kind of call
        client.auth(&reference, &auth, oci_client::RegistryOperation::Push).await.unwrap();
        Self { client, reference }
    }

    pub async fn blob(&self, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.client.push_blob(&self.reference, bytes.to_vec(), &digest).await.unwrap();
        json!({ "mediaType": IMAGE_LAYER_MEDIA_TYPE, "digest": digest, "size": bytes.len() })
    }

    /// Puts a manifest there, whatever it says; returns its digest.
    pub async fn manifest(&self, manifest: &Value) -> String {
        let kind = manifest["mediaType"].as_str().unwrap().parse().unwrap();
        let text = manifest.to_string().into_bytes();
        let digest = digest(&text);
        self.client.push_manifest_raw(&self.reference, text, kind).await.unwrap();
        digest
    }
}

/// A manifest of an image.
pub fn manifest(config: &Value, layers: &[Value]) -> Value {
    let mut config = config.clone();
    config["mediaType"] = IMAGE_CONFIG_MEDIA_TYPE.into();
    json!({ "schemaVersion": 2, "mediaType": OCI_IMAGE_MEDIA_TYPE, "config": config, "layers": layers })
}

/// Puts an image there as `NAME:latest`.
pub async fn push(server: &RegistryServer, name: &str, layers: Vec<Vec<u8>>, config: &Value) -> Pushed {
    let pusher = Pusher::new(server, name).await;
    let mut config = config.clone();
    if !config["rootfs"].is_null() {
        // of the plain layers; a daemon compares them
        config["rootfs"]["diff_ids"] = layers.iter().map(|layer| digest(layer)).collect();
    }
    let config = pusher.blob(config.to_string().as_bytes()).await;
    let mut blobs = Vec::new();
    for layer in &layers {
        blobs.push(pusher.blob(layer).await);
    }
    let text = |blob: &Value| blob["digest"].as_str().unwrap().to_owned();
    Pushed {
        image: pusher.reference.whole(),
        manifest: pusher.manifest(&manifest(&config, &blobs)).await,
        config: text(&config),
        layers: blobs.iter().map(text).collect(),
    }
}
