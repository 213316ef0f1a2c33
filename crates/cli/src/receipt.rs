//! `phalanx receipt`: what a request used, signed; and whether a receipt holds, without asking anybody.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use wire::receipt::{AttemptUsage, Receipt, ReceiptKey, VERSION};

use crate::client::ClientOptions;
use crate::terminal::{say, say_json};

/// A receipt is a kilobyte or two; more is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Print a request's receipt as JSON.
    Show(Show),
    /// Print the public key that this coordinator signs receipts with.
    Key(Key),
    /// Check a receipt's signatures and sums. Nobody is asked: it works without a network.
    Verify(Verify),
}

#[derive(clap::Args)]
pub(crate) struct Show {
    /// A request's identity, as in the `x-request-id` header of its answer, or an answer's id.
    request: String,
    /// Which of its answer's choices, or vectors, counted from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    index: u32,
    #[command(flatten)]
    client: ClientOptions,
}

#[derive(clap::Args)]
pub(crate) struct Key {
    #[command(flatten)]
    client: ClientOptions,
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// The receipt, as JSON; `-` reads it from standard input.
    file: String,
    /// The coordinator's public key, as `phalanx receipt key` printed it [default: the one that the receipt names].
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

pub(crate) async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Show(Show { request, index, client }) => {
            let path = format!("/v1/receipts/{request}?index={index}");
            let receipt: Receipt = client.client()?.get(&path).await?;
            say_json(&receipt)?;
        }
        Verb::Key(Key { client }) => {
            let key: ReceiptKey = client.client()?.get("/v1/receipts/key").await?;
            say(key.signing_key)?;
        }
        Verb::Verify(Verify { file, key }) => {
            let receipt = read(&file)?;
            for line in check(&receipt, key.as_deref()).context("the receipt does not hold")? {
                say(line)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &str) -> anyhow::Result<Receipt> {
    let mut text = String::new();
    let read = if file == "-" {
        std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("opening {file}"))?;
        opened.take(FILE_BYTES_MAX).read_to_string(&mut text)
    };
    read.with_context(|| format!("reading {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("{file} is no receipt"))
}

/// What a receipt proves, a line each.
///
/// # Errors
/// A signature, a key, an identity or a sum does not hold: the message says which.
fn check(receipt: &Receipt, pinned: Option<&str>) -> anyhow::Result<Vec<String>> {
    let found = receipt.version;
    ensure!(found == VERSION, "it is of version {found}, and this Phalanx reads version {VERSION}");
    if let Some(pinned) = pinned.filter(|pinned| pinned.trim() != receipt.signing_key) {
        bail!("it is signed with the key {}, and not with {}", receipt.signing_key, pinned.trim());
    }
    let key = bytes(&receipt.signing_key).context("the coordinator's key")?;
    let signature = bytes(&receipt.signature).context("the coordinator's signature")?;
    trust::verify(&key, &receipt.statement(), &signature).context("the coordinator's signature")?;
    let mut lines = vec![format!(
        "{}: {}, {} prompt and {} answer tokens of {}, {} micro-units",
        receipt.request,
        receipt.outcome,
        receipt.prompt_tokens,
        receipt.generated_tokens,
        receipt.model,
        receipt.charged_micros
    )];
    lines.push(match pinned {
        Some(_) => "signed by the coordinator that was named".to_owned(),
        None => format!(
            "signed with the key {}: compare it with what `phalanx receipt key` prints",
            receipt.signing_key
        ),
    });
    let mut given = 0;
    for served in &receipt.served {
        ensure!(
            served.first_index == given && served.prompt_tokens == receipt.prompt_tokens,
            "{} goes on after {} tokens of another prompt or answer, and not after {given}",
            served.attempt,
            served.first_index
        );
        given = given.saturating_add(served.generated_tokens);
        lines.push(machines_half(receipt, served)?);
    }
    let charged = receipt.generated_tokens;
    ensure!(given == charged, "its machines gave {given} tokens, and {charged} are charged");
    let cost = receipt.price.of(receipt.prompt_tokens, receipt.generated_tokens);
    ensure!(
        cost == receipt.charged_micros,
        "{cost} micro-units by its prices, and not {}",
        receipt.charged_micros
    );
    Ok(lines)
}

fn machines_half(receipt: &Receipt, served: &AttemptUsage) -> anyhow::Result<String> {
    let (machine, tokens) = (served.machine, served.generated_tokens);
    let key = bytes(&served.signing_key).with_context(|| format!("the key of {machine}"))?;
    ensure!(trust::machine_of(&key) == machine, "{machine} has another key than the one that is named");
    let Some(signature) = &served.signature else {
        return Ok(format!("{machine} gave {tokens} tokens, and was gone before it could sign for them"));
    };
    let signature = bytes(signature).with_context(|| format!("the signature of {machine}"))?;
    trust::verify(&key, &served.statement(receipt.request, &receipt.model), &signature)
        .with_context(|| format!("the signature of {machine}"))?;
    Ok(format!("{machine} signed for {tokens} tokens"))
}

fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    BASE64.decode(text).context("it is no base64")
}

#[cfg(test)]
mod tests {
    use base::{AccountId, AttemptId, KeyId, RequestId};
    use serde_json::{Value, json};
    use trust::MachineKeys;
    use wire::admin::Price;

    use super::*;

    /// Two machines served it: the first was lost, the second signed.
    fn receipt(coordinator: &MachineKeys) -> Receipt {
        let (lost, last) = (MachineKeys::generate(), MachineKeys::generate());
        let (request, model) = (RequestId(5), "tiny".into());
        let served = |keys: &MachineKeys, attempt, first_index, generated_tokens| AttemptUsage {
            attempt: AttemptId(attempt),
            machine: keys.machine(),
            signing_key: BASE64.encode(keys.signing_key()),
            prompt_tokens: 10,
            first_index,
            generated_tokens,
            signature: None,
        };
        let mut second = served(&last, 2, 3, 4);
        second.signature = Some(BASE64.encode(last.sign(&second.statement(request, &model))));
        let mut receipt = Receipt {
            version: VERSION,
            sequence: 9,
            request,
            account: AccountId(1),
            key: KeyId(2),
            model,
            prompt_tokens: 10,
            generated_tokens: 7,
            refunded_tokens: 43,
            price: Price { prompt_micros: 1_000_000, generated_micros: 2_000_000 },
            charged_micros: 24,
            outcome: "completed".to_owned(),
            reserved_unix_us: 1_000,
            settled_unix_us: 2_000,
            served: vec![served(&lost, 1, 0, 3), second],
            signing_key: BASE64.encode(coordinator.signing_key()),
            signature: String::new(),
        };
        receipt.signature = BASE64.encode(coordinator.sign(&receipt.statement()));
        receipt
    }

    #[test]
    fn a_receipt_holds_against_the_key_that_is_pinned_and_no_other() {
        let coordinator = MachineKeys::generate();
        let receipt = receipt(&coordinator);
        let lines = check(&receipt, Some(&receipt.signing_key)).unwrap();
        assert!(lines.iter().any(|line| line.contains("gone before")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("signed for 4 tokens")), "{lines:?}");
        let other = BASE64.encode(MachineKeys::generate().signing_key());
        assert!(check(&receipt, Some(&other)).is_err());
    }

    /// Every leaf of a JSON value, changed: a number by one, a text by its first character.
    fn leaves(value: &Value, at: &mut Vec<String>, out: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    at.push(name.clone());
                    leaves(field, at, out);
                    at.pop();
                }
            }
            Value::Array(items) => {
                for (n, item) in items.iter().enumerate() {
                    at.push(n.to_string());
                    leaves(item, at, out);
                    at.pop();
                }
            }
            Value::Number(number) => {
                out.push((format!("/{}", at.join("/")), json!(number.as_u64().unwrap() + 1)));
            }
            Value::String(text) => {
                // The last character of an identity is a digit of it; of base64 it may be padding.
                let swap = |c: char| if c == 'a' { 'b' } else { 'a' };
                let middle = text.len() / 2;
                let changed = text.char_indices().map(|(n, c)| if n == middle { swap(c) } else { c });
                out.push((format!("/{}", at.join("/")), json!(changed.collect::<String>())));
            }
            _ => {}
        }
    }

    #[test]
    fn a_receipt_that_is_changed_anywhere_does_not_hold() {
        let coordinator = MachineKeys::generate();
        let whole = serde_json::to_value(receipt(&coordinator)).unwrap();
        let mut changes = Vec::new();
        leaves(&whole, &mut Vec::new(), &mut changes);
        assert!(changes.len() > 25, "{changes:?}");
        for (at, changed) in changes {
            let mut tampered = whole.clone();
            *tampered.pointer_mut(&at).unwrap() = changed;
            let holds = serde_json::from_value::<Receipt>(tampered).is_ok_and(|r| check(&r, None).is_ok());
            assert!(!holds, "{at} was changed and nobody saw it");
        }
        let mut tampered = whole.clone();
        tampered["served"].as_array_mut().unwrap().pop();
        assert!(check(&serde_json::from_value(tampered).unwrap(), None).is_err());
        let mut tampered = whole;
        tampered["note"] = "paid".into();
        assert!(serde_json::from_value::<Receipt>(tampered).is_err());
    }

    #[test]
    fn a_coordinator_cannot_sign_in_a_machines_name() {
        let coordinator = MachineKeys::generate();
        let mut receipt = receipt(&coordinator);
        let signed = |receipt: &mut Receipt| {
            receipt.signature = BASE64.encode(coordinator.sign(&receipt.statement()));
            check(receipt, None).is_ok()
        };
        assert!(signed(&mut receipt));
        // More tokens than the machine signed for, with sums that fit.
        receipt.served[1].generated_tokens += 5;
        receipt.generated_tokens += 5;
        receipt.charged_micros += 10;
        assert!(!signed(&mut receipt));
    }
}
