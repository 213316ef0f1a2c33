//! What a group is held to before it takes requests (G8): the choices of one machine that computes the model alone, kept
//! beside the machine's identity for later lives.

use std::path::{Path, PathBuf};

use base::Bytes;
use engine::group::Golden;
use engine::{Engine, LoadOptions, LoadedModel};

use crate::assignment::sized_for;
use crate::config::ModelConfig;

/// Logits that one self-test may take, in numbers: 32 MB.
const LOGITS_MAX: usize = 8 << 20;

/// A model of so many bytes is loaded whole once, by rank 0, for its reference.
const WHOLE_BYTES_MAX: Bytes = Bytes(256 << 20);

/// All of a small model on this machine, where nothing is kept of its choices: what [`check`] takes for `alone`.
pub(super) fn whole(
    model: &ModelConfig,
    loaded: &LoadedModel,
    context: u32,
    (folder, weights_sha256): (&Path, &str),
) -> Option<Engine> {
    let free = engine::machine::memory().map_or(Bytes::ZERO, |memory| memory.available);
    let bytes = loaded.weight_bytes();
    if bytes > WHOLE_BYTES_MAX || free.0 / 4 < bytes.0 || file(folder, weights_sha256).exists() {
        return None;
    }
    let whole = engine::load(&model.source, &LoadOptions::default()).ok()?;
    let config = sized_for(&model.engine, (context, 1), whole.kv_bytes_per_token(model.engine.kv));
    Engine::start(model.name.clone(), whole, config).ok()
}

/// Positions of a self-test: several steps of a prompt for all but the widest vocabularies.
fn length(engine: &Engine, vocabulary: usize) -> usize {
    let context = engine.load_now().context.0 as usize;
    (LOGITS_MAX / vocabulary.max(1)).clamp(32, 768).min(context.saturating_sub(1)).max(1)
}

/// Where the reference of these weights is kept.
fn file(folder: &Path, weights_sha256: &str) -> PathBuf {
    folder.join(format!("reference-{}.json", weights_sha256.get(..32).unwrap_or("unknown")))
}

/// What the group `engine` is to be held to: computed by `alone`, or kept from a former time.
///
/// # Errors
/// `alone` cannot compute it.
fn known(
    alone: Option<&Engine>,
    folder: &Path,
    weights_sha256: &str,
    vocabulary: usize,
) -> Result<Option<Golden>, String> {
    let path = file(folder, weights_sha256);
    let kept = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Golden>(&bytes).ok());
    let (Some(alone), None) = (alone, &kept) else { return Ok(kept) };
    let prompt = Golden::prompt(vocabulary, length(alone, vocabulary));
    let golden = Golden::record(alone, &prompt).map_err(|e| e.to_string())?;
    // A folder that cannot be written costs the next life some time, nothing else.
    if let Ok(bytes) = serde_json::to_vec(&golden) {
        let _ = std::fs::write(&path, bytes);
    }
    Ok(Some(golden))
}

/// Holds a group's engine to its reference; where there is none, to itself: the same choices twice.
///
/// # Errors
/// It chooses otherwise: it computes something else than the model.
pub(super) fn check(
    group: &Engine,
    alone: Option<&Engine>,
    folder: &Path,
    weights_sha256: &str,
    vocabulary: usize,
) -> Result<(), String> {
    let golden = match known(alone, folder, weights_sha256, vocabulary)? {
        Some(mut golden) => {
            // Kept at a longer context: what comes first does not depend on what comes after it.
            let most = length(group, vocabulary);
            golden.prompt.truncate(most);
            golden.choices.truncate(most);
            golden.leads.truncate(most);
            golden
        }
        None => {
            tracing::warn!(
                "no machine of this provider computed this model alone: the group is only held to repeat itself"
            );
            let prompt = Golden::prompt(vocabulary, length(group, vocabulary));
            Golden::record(group, &prompt).map_err(|e| e.to_string())?
        }
    };
    let ties = golden.check(group).map_err(|e| e.to_string())?;
    tracing::info!(positions = golden.prompt.len(), ties, "the group's self-test passed");
    Ok(())
}
