//! Figures of matplotlib, which the host has and the image of the tests has not.

use crate::{contexts::run, harness::Server, wire::wires};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn figures_arrive_by_themselves() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let code = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);";
        let answer = run(&wire, &sandbox, "default", code).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), 1, "{answer}");
        assert!(results[0]["png"].as_str().unwrap().starts_with("iVBORw0KGgo"), "a PNG: {answer}");
    }
}
