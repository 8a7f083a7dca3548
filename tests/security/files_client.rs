//! How attacks call the file API about the attacker's sandbox.

use serde_json::{Value, json};

use crate::target::Walled;

impl Walled {
    /// Calls the file API about the attacker's sandbox. It must answer, and never with a fault of its own.
    pub fn files(&self, method: &str, path: &str, query: &[(&str, &str)]) -> (u16, Value) {
        let url = format!("/api/v1/files{path}");
        let request = self.api.request(method, &url).query(&[("sandbox_id", self.id())]).query(query);
        self.send(request)
    }

    /// The same with a body.
    pub fn files_with(&self, method: &str, path: &str, mut body: Value) -> (u16, Value) {
        body["sandbox_id"] = self.id().into();
        self.send(self.api.request(method, &format!("/api/v1/files{path}")).json(&body))
    }

    /// Reads a file by the API.
    pub fn read(&self, path: &str) -> (u16, Value) {
        self.files("GET", "", &[("path", path)])
    }

    /// Writes a file by the API.
    pub fn write(&self, path: &str, content: &str) -> (u16, Value) {
        self.files_with("PUT", "", json!({"path": path, "content": content}))
    }

    /// Sends a request and reads its answer to the end.
    pub fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let (status, answer): (u16, Value) = self.promptly(async {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let bytes = answer.bytes().await.unwrap();
            (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into()))
        });
        assert!(status < 500, "a fault of the server: {status} {answer}");
        (status, answer)
    }
}
