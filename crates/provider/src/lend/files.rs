//! Which of a model's files are given, and what they hash to, piece by piece: found out once for each content.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use engine::ModelSource;
use wire::link::{MANIFEST_BYTES_MAX, MANIFEST_FILES_MAX, Manifest, ManifestFile, is_plain_path};

use crate::stock::MODEL_FILES_BESIDE;

/// Manifests that are kept, in the provider's data folder.
const FOLDER: &str = "manifests";
/// How many: the oldest are forgotten.
const KEPT_MAX: usize = 64;
/// Entries of a model's folder that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// A model's files, small ones first.
pub(super) struct Lendable {
    files: Vec<(String, PathBuf, Metadata)>,
}

impl Lendable {
    /// The files of a model.
    ///
    /// # Errors
    /// It has none that could be given, in words.
    pub(super) fn find(source: &ModelSource) -> Result<Self, String> {
        let ModelSource::Folder(path) = source else {
            return Err("it is part of the program, and everybody has it".to_owned());
        };
        let (folder, one) = match path.is_file() {
            true => {
                (path.parent().unwrap_or(Path::new(".")), path.file_name().and_then(|name| name.to_str()))
            }
            false => (path.as_path(), None),
        };
        let names = match one {
            Some(one) => parts_of(one, names_in(folder)),
            None => wanted(folder),
        };
        let mut files = Vec::new();
        for name in names.into_iter().filter(|name| is_plain_path(name)).take(MANIFEST_FILES_MAX) {
            // Of what a link points at: the Hugging Face cache's snapshots are links.
            let path = folder.join(&name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => files.push((name, path, metadata)),
                _ => {}
            }
        }
        files.sort_by(|a, b| (a.2.len(), &a.0).cmp(&(b.2.len(), &b.0)));
        if files.is_empty() { Err("its files are not there any more".to_owned()) } else { Ok(Self { files }) }
    }

    pub(super) fn path_of(&self, name: &str) -> Option<PathBuf> {
        self.files.iter().find(|(of, ..)| of == name).map(|(_, path, _)| path.clone())
    }

    /// The manifest: kept in `folder` from an earlier time where no file has changed since, else made. `watch` is told
    /// after each piece how far that is, and how long the piece took; it says whether to go on.
    ///
    /// # Errors
    /// A file cannot be read, or it is ended.
    pub(super) fn manifest(
        &self,
        folder: &Path,
        watch: &mut dyn FnMut(u8, Duration) -> bool,
    ) -> Result<Vec<u8>, String> {
        let kept = folder.join(FOLDER).join(self.key());
        let fits = |manifest: &Manifest| {
            manifest.files.len() == self.files.len()
                && manifest
                    .files
                    .iter()
                    .zip(&self.files)
                    .all(|(of, (name, _, metadata))| of.path == *name && of.bytes == metadata.len())
        };
        if let Ok(bytes) = fs::read(&kept)
            && bytes.len() <= MANIFEST_BYTES_MAX
            && Manifest::decode(&bytes).is_ok_and(|manifest| fits(&manifest))
        {
            return Ok(bytes);
        }
        let all: u64 = self.files.iter().map(|(.., metadata)| metadata.len()).sum();
        let piece_bytes = Manifest::piece_bytes_for(all);
        let (mut files, mut read) = (Vec::new(), 0u64);
        let mut piece = vec![0; piece_bytes as usize];
        for (name, path, metadata) in &self.files {
            let gone = |error: io::Error| format!("{name} cannot be read: {error}");
            let mut file = File::open(path).map_err(gone)?;
            let (bytes, mut pieces) = (metadata.len(), Vec::new());
            let mut left = bytes;
            while left > 0 {
                let began = Instant::now();
                let now = left.min(u64::from(piece_bytes)) as usize;
                file.read_exact(&mut piece[..now]).map_err(gone)?;
                pieces.push(trust::sha256(&piece[..now]));
                (left, read) = (left - now as u64, read + now as u64);
                if !watch((read * 100 / all.max(1)) as u8, began.elapsed()) {
                    return Err("it is leaving".to_owned());
                }
            }
            files.push(ManifestFile { path: name.clone(), bytes, pieces });
        }
        let bytes = Manifest { piece_bytes, files }.encode();
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err("it is too large to be given".to_owned());
        }
        keep(&folder.join(FOLDER), &kept, &bytes);
        Ok(bytes)
    }

    /// A name for these files as they are now.
    fn key(&self) -> String {
        let since = |metadata: &Metadata| {
            let at = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            at.unwrap_or_default().as_nanos()
        };
        let mut text = String::new();
        for (name, path, metadata) in &self.files {
            text.push_str(&format!("{name} {} {} {}\n", path.display(), metadata.len(), since(metadata)));
        }
        trust::hex(&trust::sha256(text.as_bytes()))
    }
}

/// Keeps the manifest of a model that was taken from others: who asks for it next need not wait until it was read.
pub(crate) fn keep_manifest(folder: &Path, source: &ModelSource, manifest: &[u8]) {
    if let Ok(found) = Lendable::find(source) {
        keep(&folder.join(FOLDER), &folder.join(FOLDER).join(found.key()), manifest);
    }
}

/// By rename; a folder that cannot be written costs the next a while, nothing else.
fn keep(folder: &Path, path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("tmp");
    let kept = fs::create_dir_all(folder)
        .and_then(|()| fs::write(&beside, bytes))
        .and_then(|()| fs::rename(&beside, path));
    if let Err(error) = kept {
        tracing::debug!(%error, "a manifest is not kept");
    }
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut all: Vec<_> =
        entries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    all.sort();
    let more = all.len().saturating_sub(KEPT_MAX);
    for (_, path) in &all[..more] {
        let _ = fs::remove_file(path);
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).take(ENTRIES_MAX);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The files of a folder that are the model: safetensors and what goes with them, or GGUF.
fn wanted(folder: &Path) -> Vec<String> {
    let names = names_in(folder);
    let is_gguf = |name: &String| name.to_ascii_lowercase().ends_with(".gguf");
    if !names.iter().any(|name| name == "config.json") {
        return names.into_iter().filter(|name| is_gguf(name) && !name.starts_with("mmproj")).collect();
    }
    let is_weights = |name: &str| name.ends_with(".safetensors") && !name.starts_with("consolidated");
    // One file wins over an index that was left beside it.
    let single = names.iter().any(|name| name == "model.safetensors");
    let of_single = |name: &str| !is_weights(name) || name == "model.safetensors";
    let is_wanted = |name: &String| {
        let name = name.as_str();
        (MODEL_FILES_BESIDE.contains(&name) || is_weights(name))
            && (!single || (of_single(name) && name != "model.safetensors.index.json"))
    };
    // Where sentence-transformers says how rows become one vector.
    let pooling =
        names.iter().filter(|name| name.ends_with("_Pooling")).map(|name| format!("{name}/config.json"));
    let pooling: Vec<String> = pooling.collect();
    names.into_iter().filter(is_wanted).chain(pooling).collect()
}

/// A GGUF file and its other parts: `NAME-00001-of-00003.gguf`.
fn parts_of(one: &str, names: Vec<String>) -> Vec<String> {
    let split = |name: &str| {
        let stem = name.strip_suffix(".gguf").or_else(|| name.strip_suffix(".GGUF"))?;
        let (rest, parts) = stem.rsplit_once("-of-")?;
        let (model, part) = rest.rsplit_once('-')?;
        let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (number(parts) && number(part)).then(|| (model.to_owned(), parts.to_owned()))
    };
    match split(one) {
        None => vec![one.to_owned()],
        Some(of) => names.into_iter().filter(|name| split(name).as_ref() == Some(&of)).collect(),
    }
}
