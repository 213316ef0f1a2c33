//! A link that breaks under a running answer while both of its ends live on.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::api::{Api, coordinator, parsed, provider, text_of, turn};

/// Passes connections on to `to` until it is told to cut those that are open.
async fn link(to: String) -> (String, Arc<watch::Sender<u64>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let cut = Arc::new(watch::Sender::new(0));
    let cutting = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cut = cutting.subscribe();
            let to = to.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = cut.changed() => {}
                }
            });
        }
    });
    (address, cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_survives_the_loss_of_its_machines_link_on_the_same_machine() {
    // Time enough for a busy test machine to shake hands again.
    let coordinator = coordinator(&["--set", "requests.patience_us=30000000"]);
    let api = Api::of(&coordinator);
    let (address, cut) = link(api.url.trim_start_matches("http://").to_owned()).await;
    let _provider = provider(&address, coordinator.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    // So long that a busy machine, too, still computes when the link is cut.
    let mut body = turn("Tell me a long story.", 3000);
    body["ignore_eos"] = true.into();
    let undisturbed =
        api.post("/v1/chat/completions", &body).await.json::<serde_json::Value>().await.unwrap();
    body["stream"] = true.into();
    let mut bytes = api.post("/v1/chat/completions", &body).await.bytes_stream();
    let mut text = Vec::new();
    let mut cuts = 0;
    while let Some(part) = bytes.next().await {
        text.extend_from_slice(&part.unwrap());
        let pieces = text.windows(5).filter(|five| five == b"data:").count();
        if cuts < 3 && pieces > 10 * (cuts + 1) {
            cuts += 1;
            cut.send_modify(|count| *count += 1);
        }
    }
    let (events, done) = parsed(&text);
    assert!(done && cuts > 0);
    let expected = undisturbed["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text_of(&events), expected);
    let metrics = api.http.get(format!("{}/metrics", api.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("phalanx_attempts_total{kind=\"returned\"}"), "{metrics}");
    assert!(!metrics.contains("phalanx_attempts_total{kind=\"moved\"}"), "{metrics}");
}
