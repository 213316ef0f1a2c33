//! `phalanx chat`: talk to a model through the API, as any other client would.

use std::io::BufRead as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::client::{Client, ClientOptions};
use crate::terminal::{is_interactive, say, say_answer, say_json, say_part};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Say this, print the answer and end; otherwise turns are read from standard input.
    prompt: Option<String>,
    /// Which model [default: the first that is served].
    #[arg(long)]
    model: Option<String>,
    /// What to tell the model before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// At most so many tokens an answer.
    #[arg(long, default_value_t = 512)]
    max_tokens: u32,
    /// 0 is the same answer every time.
    #[arg(long)]
    temperature: Option<f32>,
    #[command(flatten)]
    client: ClientOptions,
    /// Print each answer as JSON when it is whole.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let client = options.client.client()?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => first_model(&client).await?,
    };
    let mut chat = Chat { client, model, messages: Vec::new(), options };
    chat.begin();
    if let Some(prompt) = chat.options.prompt.clone() {
        chat.turn(&prompt).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let asks = is_interactive();
    if asks {
        say(format!("Talking to {}. /new begins anew, /exit ends (so does Ctrl-D).", chat.model))?;
    }
    loop {
        if asks {
            say_part("\n> ")?;
        }
        let Some(line) = read_line().await? else { break };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/new" => chat.begin(),
            // A refused turn must not end the conversation of a person; a script wants to know.
            text => match chat.turn(text).await {
                Err(error) if asks => eprintln!("{error:#}"),
                other => other?,
            },
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn first_model(client: &Client) -> anyhow::Result<String> {
    let models: Value = client.get("/v1/models").await?;
    let first = models["data"][0]["id"].as_str();
    Ok(first.context("no model is served yet: has a provider joined? (phalanx status)")?.to_owned())
}

/// One line of standard input, without holding up the runtime.
async fn read_line() -> anyhow::Result<Option<String>> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|count| (count > 0).then_some(line))
    });
    Ok(read.await??)
}

struct Chat {
    client: Client,
    model: String,
    messages: Vec<Value>,
    options: Options,
}

impl Chat {
    fn begin(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.options.system {
            self.messages.push(json!({"role": "system", "content": system}));
        }
    }

    async fn turn(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let answer = self.answer().await;
        match answer {
            Ok(answer) => {
                if self.options.json {
                    say_json(&json!({"model": self.model, "answer": answer}))?;
                }
                self.messages.push(json!({"role": "assistant", "content": answer}));
            }
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    async fn answer(&self) -> anyhow::Result<String> {
        let mut body = json!({
            "model": self.model,
            "messages": self.messages,
            "max_tokens": self.options.max_tokens,
            "stream": true,
        });
        if let Some(temperature) = self.options.temperature {
            body["temperature"] = json!(temperature);
        }
        let mut bytes = self.client.stream("/v1/chat/completions", &body).await?.bytes_stream();
        let mut answer = String::new();
        let mut pending = Vec::new();
        while let Some(part) = bytes.next().await {
            pending.extend_from_slice(&part.context("the stream broke off")?);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let Some(event) = line.strip_prefix(b"data:") else { continue };
                if event.trim_ascii() == b"[DONE]" {
                    if !self.options.json {
                        say("")?;
                    }
                    return Ok(answer);
                }
                let event: Value = serde_json::from_slice(event).context("an event that is not JSON")?;
                if let Some(message) = event["error"]["message"].as_str() {
                    say("")?;
                    bail!("{message}");
                }
                if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
                    if !self.options.json {
                        say_answer(text)?;
                    }
                    answer.push_str(text);
                }
            }
        }
        bail!("the stream ended before the answer did")
    }
}
