//! What in a folder looks like a model: by names and lengths, nothing is opened. Bounded in depth and number.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use base::ModelName;
use engine::ModelSource;

/// `FOLDER/ORGANISATION/MODEL`, and no deeper.
const DEPTH_MAX: usize = 2;
/// Entries of one folder that are looked at: a cache of models has hundreds.
const ENTRIES_MAX: usize = 10_000;
/// Models that are looked at in all.
const CANDIDATES_MAX: usize = 2_000;
/// The longest name of a model.
const NAME_BYTES_MAX: usize = 128;

/// Something that looks like a model.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) name: ModelName,
    pub(super) source: ModelSource,
    pub(super) path: PathBuf,
}

impl Candidate {
    pub(super) fn given(name: &ModelName, source: &ModelSource) -> Self {
        let path = match source {
            ModelSource::Bundled => PathBuf::from("bundled"),
            ModelSource::Folder(path) => path.clone(),
        };
        Self { name: name.clone(), source: source.clone(), path }
    }
}

/// Names, lengths and times of a model's files: what it takes to know that nothing changed.
pub(super) type Fingerprint = Vec<(PathBuf, u64, Duration)>;

/// The fingerprint of what is there now; empty where nothing can be said.
pub(super) fn fingerprint(candidate: &Candidate) -> Fingerprint {
    let folder = match &candidate.source {
        // It never changes.
        ModelSource::Bundled => return vec![(PathBuf::new(), 0, Duration::ZERO)],
        ModelSource::Folder(path) if path.is_dir() => path.clone(),
        // A GGUF file's other parts lie beside it.
        ModelSource::Folder(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
    };
    let stamp = |path: PathBuf| {
        // Of what a link points at: the cache's snapshots are links.
        let metadata = fs::metadata(&path).ok()?;
        Some((path, metadata.len(), modified(&metadata)))
    };
    let mut stamps: Fingerprint =
        entries(&folder).into_iter().filter(|path| path.is_file()).filter_map(stamp).collect();
    stamps.sort();
    stamps
}

fn modified(metadata: &Metadata) -> Duration {
    metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default()
}

/// Appends what looks like models in `root`: a model itself, a folder of models, of organisations' models, or a Hugging
/// Face cache.
pub(super) fn candidates(root: &Path, found: &mut Vec<Candidate>) {
    let own = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if root.join("config.json").is_file() {
        return push(&own, root, found);
    }
    below(root, "", DEPTH_MAX, found);
}

fn below(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<Candidate>) {
    for path in entries(folder) {
        if found.len() >= CANDIDATES_MAX {
            return;
        }
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        // Hidden: downloads under way, locks.
        if name.starts_with('.') || !path.is_dir() {
            continue;
        }
        if let Some(of) = name.strip_prefix("models--") {
            if let Some(snapshot) = snapshot(&path) {
                models_in(&snapshot, &of.replacen("--", "/", 1), found);
            }
            continue;
        }
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        if !models_in(&path, &name, found) && depth > 1 {
            below(&path, &name, depth - 1, found);
        }
    }
    if prefix.is_empty() {
        ggufs(folder, "", found);
    }
}

/// Appends the models whose files lie in `folder` itself; whether there are any.
fn models_in(folder: &Path, name: &str, found: &mut Vec<Candidate>) -> bool {
    if folder.join("config.json").is_file() {
        push(name, folder, found);
        return true;
    }
    let before = found.len();
    let files = first_parts(folder);
    match files.as_slice() {
        [] => {}
        [file] if !name.is_empty() => push(name, file, found),
        _ => ggufs(folder, name, found),
    }
    found.len() > before
}

/// Appends each GGUF file of `folder` as a model of its own.
fn ggufs(folder: &Path, prefix: &str, found: &mut Vec<Candidate>) {
    for file in first_parts(folder) {
        let Some(stem) = file.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let stem = split_part(stem).map_or(stem, |(stem, _)| stem);
        let name = if prefix.is_empty() { stem.to_owned() } else { format!("{prefix}/{stem}") };
        push(&name, &file, found);
    }
}

/// The GGUF files of a folder; of those in parts, the first.
fn first_parts(folder: &Path) -> Vec<PathBuf> {
    let is_model = |path: &PathBuf| {
        let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        // The eyes of models that see lie beside them.
        named && !stem.starts_with("mmproj") && split_part(stem).is_none_or(|(_, part)| part == 1)
    };
    entries(folder).into_iter().filter(|path| is_model(path) && path.is_file()).collect()
}

/// `NAME-00002-of-00005`: the name, and the part's number.
fn split_part(stem: &str) -> Option<(&str, u32)> {
    let (rest, parts) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
    number(parts)?;
    Some((name, number(part)?))
}

/// The snapshot of a cached repository that its main branch points at; else the one that came last.
fn snapshot(repository: &Path) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    let main = fs::read_to_string(repository.join("refs").join("main")).unwrap_or_default();
    let main = main.trim();
    // A revision, not a way out of the cache.
    if !main.is_empty() && main.chars().all(|c| c.is_ascii_alphanumeric()) {
        let path = snapshots.join(main);
        if path.is_dir() {
            return Some(path);
        }
    }
    let all = entries(&snapshots).into_iter().filter(|path| path.is_dir());
    all.max_by_key(|path| fs::metadata(path).map(|of| modified(&of)).unwrap_or_default())
}

fn push(name: &str, path: &Path, found: &mut Vec<Candidate>) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
        tracing::debug!(path = %path.display(), "a model whose name requests could not say");
        return;
    }
    if found.len() < CANDIDATES_MAX {
        let (source, path) = (ModelSource::Folder(path.to_owned()), path.to_owned());
        found.push(Candidate { name: ModelName::new(name), source, path });
    }
}

/// What is in a folder, sorted; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).take(ENTRIES_MAX);
    let mut entries: Vec<PathBuf> = read.map(|entry| entry.path()).collect();
    entries.sort();
    entries
}
