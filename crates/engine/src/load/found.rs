//! Where a model's files are: a folder in the Hugging Face layout, or GGUF.

use std::io;
use std::path::{Path, PathBuf};

use model::checkpoint::{CheckpointError, ShardIndex};
use model::gguf::{self, GgufFile};
use model::kit::Kit;

use super::{LoadError, LoadOptions};
use crate::files::{self, FileBytes};

pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Where sentence-transformers puts its pooling, where nothing else is said.
const POOLING: &str = "1_Pooling";
const SINGLE: &str = "model.safetensors";
/// More parts than any model is split into.
const PARTS_MAX: u32 = 10_000;

/// A model's kit and its files of weights, in their order.
pub(crate) struct Found {
    pub(crate) kit: Kit,
    pub(crate) layout: Layout,
    pub(crate) files: Vec<(String, FileBytes)>,
}

/// What the files of weights are.
pub(crate) enum Layout {
    /// One file, or those of an index.
    Safetensors {
        /// Where there is one.
        index: Option<Vec<u8>>,
    },
    /// One file, or its parts.
    Gguf,
}

/// Finds the model at `path`; without options no tokenizer is read.
pub(super) fn find(path: &Path, options: Option<&LoadOptions>) -> Result<Found, LoadError> {
    if path.is_file() {
        return read_gguf(path);
    }
    if !path.join("config.json").exists()
        && let Some(file) = only_gguf(path)
    {
        return read_gguf(&file);
    }
    read_folder(path, options)
}

/// Reads the kit of a model whose weights are elsewhere: a folder in the Hugging Face layout, or a GGUF file.
///
/// # Errors
/// A file that is needed cannot be read.
pub fn load_kit(path: &Path) -> Result<Kit, LoadError> {
    if path.is_file() {
        return Ok(read_gguf(path)?.kit);
    }
    Ok(Kit { tokenizer: read(&path.join("tokenizer.json"))?, ..texts(path)? })
}

/// A kit's files but the tokenizer.
fn texts(folder: &Path) -> Result<Kit, LoadError> {
    let optional = |name: &str| read_optional(&folder.join(name));
    Ok(Kit {
        config: read(&folder.join("config.json"))?,
        generation_config: optional("generation_config.json")?,
        tokenizer: Vec::new(),
        tokenizer_config: optional("tokenizer_config.json")?,
        chat_template: optional("chat_template.jinja")?,
        pooling: pooling(folder)?,
    })
}

/// What sentence-transformers' files in `folder` say of embeddings, in words of the kit; nothing where there are none.
fn pooling(folder: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let json = |path: PathBuf| -> Result<serde_json::Value, LoadError> {
        let Some(text) = read_optional(&path)? else { return Ok(serde_json::Value::Null) };
        serde_json::from_slice(&text).map_err(|error| LoadError::File { path, source: error.into() })
    };
    let modules = json(folder.join("modules.json"))?;
    let is_pooling = |module: &&serde_json::Value| {
        module["type"].as_str().is_some_and(|kind| kind.rsplit('.').next() == Some("Pooling"))
    };
    let module = modules.as_array().and_then(|modules| modules.iter().find(is_pooling));
    let place = module.and_then(|module| module["path"].as_str()).unwrap_or(POOLING);
    // A name of a folder in this one, and no way out of it.
    let inside = Path::new(place).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let pooling =
        if inside { json(folder.join(place).join("config.json"))? } else { serde_json::Value::Null };
    if modules.is_null() && pooling.is_null() {
        return Ok(None);
    }
    let said = serde_json::json!({"modules": modules, "pooling": pooling});
    Ok(Some(serde_json::to_vec(&said).expect("it was JSON")))
}

fn read_folder(folder: &Path, options: Option<&LoadOptions>) -> Result<Found, LoadError> {
    let needed = |name: &str| read(&folder.join(name));
    let optional = |name: &str| read_optional(&folder.join(name));
    let tokenizer = match options {
        None => Vec::new(),
        Some(options) => match optional("tokenizer.json")? {
            Some(tokenizer) => tokenizer,
            None if options.tokenizer_needed => needed("tokenizer.json")?,
            None => Vec::new(),
        },
    };
    let kit = Kit { tokenizer, ..texts(folder)? };
    // One file wins over an index that was left beside it, as in transformers.
    let single = folder.join(SINGLE).exists();
    let index = if single { None } else { optional(INDEX)? };
    let names = match &index {
        None if !single => return Err(LoadError::NoWeights { path: folder.to_owned() }),
        None => vec![SINGLE.to_owned()],
        Some(index) => {
            let index = ShardIndex::parse(INDEX, index).map_err(|source| damaged(folder, source))?;
            let mut names: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
            names.sort_unstable();
            names
        }
    };
    let open = |name: String| open(&folder.join(&name)).map(|bytes| (name, bytes));
    let files = names.into_iter().map(open).collect::<Result<_, LoadError>>()?;
    Ok(Found { kit, layout: Layout::Safetensors { index }, files })
}

/// The one GGUF model of a folder: one file, or the parts of one.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let mut models: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")))
        .filter(|path| part_of(path).is_none_or(|part| part.number == 1))
        .collect();
    if models.len() == 1 { models.pop() } else { None }
}

/// What the name of a part says: `NAME-00002-of-00005.gguf`.
struct Part {
    stem: String,
    number: u32,
    parts: u32,
}

fn part_of(path: &Path) -> Option<Part> {
    let rest = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, parts) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    let (number, parts) = (digits(number)?, digits(parts)?);
    (1..=PARTS_MAX).contains(&parts).then(|| Part { stem: stem.to_owned(), number, parts })
}

fn read_gguf(path: &Path) -> Result<Found, LoadError> {
    let paths: Vec<PathBuf> = match part_of(path) {
        None => vec![path.to_owned()],
        Some(Part { stem, parts, .. }) => (1..=parts)
            .map(|number| path.with_file_name(format!("{stem}-{number:05}-of-{parts:05}.gguf")))
            .collect(),
    };
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        open(path).map(|bytes| (name, bytes))
    };
    let files: Vec<(String, FileBytes)> = paths.iter().map(named).collect::<Result<_, _>>()?;
    let (name, bytes) = &files[0];
    let kit = GgufFile::parse(name, bytes.as_slice())
        .and_then(|file| gguf::kit(&file))
        .map_err(|source| damaged(path, source))?;
    Ok(Found { kit, layout: Layout::Gguf, files })
}

fn damaged(place: &Path, source: CheckpointError) -> LoadError {
    LoadError::Checkpoint { folder: place.display().to_string(), source: Box::new(source) }
}

fn open(path: &Path) -> Result<FileBytes, LoadError> {
    files::regular(path)
        .and_then(|_| FileBytes::open(path))
        .map_err(|source| LoadError::File { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    files::read(path).map_err(|source| LoadError::File { path: path.to_owned(), source })
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match files::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::File { path: path.to_owned(), source }),
    }
}
