//! Which files of a repository are the model: weights in one format, and what it takes to read and write its text.

use anyhow::bail;
use provider::stock::MODEL_FILES_BESIDE;

use super::hub::File;

const INDEX: &str = "model.safetensors.index.json";

/// The files to fetch, the small ones first.
pub(super) fn choose(name: &str, files: &[File], wanted: Option<&str>) -> anyhow::Result<Vec<File>> {
    let at_top = |file: &&File| !file.path.contains('/');
    let is_weights = |file: &&File| {
        let path = file.path.as_str();
        path.ends_with(".safetensors") && !path.starts_with("consolidated")
    };
    let weights: Vec<&File> = files.iter().filter(at_top).filter(is_weights).collect();
    let mut chosen: Vec<File> = if weights.is_empty() || wanted.is_some() {
        ggufs(name, files, wanted)?
    } else {
        let single = weights.iter().find(|file| file.path == "model.safetensors");
        let beside = |file: &&File| {
            let path = file.path.as_str();
            MODEL_FILES_BESIDE.contains(&path) || is_pooling(path)
        };
        let beside = files.iter().filter(beside).filter(|file| single.is_none() || file.path != INDEX);
        // One file wins over an index that was left beside it, as in transformers.
        let weights =
            weights.iter().copied().filter(|file| single.is_none_or(|single| single.path == file.path));
        beside.chain(weights).cloned().collect()
    };
    chosen.sort_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)));
    Ok(chosen)
}

/// Where sentence-transformers says how a model's rows become one vector, as in `1_Pooling/config.json`.
fn is_pooling(path: &str) -> bool {
    path.strip_suffix("_Pooling/config.json").is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
}

/// The one GGUF model that is meant, all its parts.
fn ggufs(name: &str, files: &[File], wanted: Option<&str>) -> anyhow::Result<Vec<File>> {
    let is_model = |file: &&File| {
        let base = base_of(&file.path);
        file.path.to_ascii_lowercase().ends_with(".gguf")
            && !base.starts_with("mmproj")
            && !base.starts_with("imatrix")
    };
    let all: Vec<&File> = files.iter().filter(is_model).collect();
    if all.is_empty() {
        let seen: Vec<&str> = files.iter().take(8).map(|file| file.path.as_str()).collect();
        bail!("{name} has no weights that Phalanx reads, safetensors or GGUF; it has {}", list(&seen));
    }
    let mut models: Vec<&str> = all.iter().map(|file| model_of(&file.path)).collect();
    models.sort_unstable();
    models.dedup();
    let exact = |model: &str| {
        wanted.is_some_and(|wanted| model_of(wanted) == model || base_of(model) == model_of(wanted))
    };
    let partly = |model: &str| {
        wanted.is_none_or(|wanted| model.to_ascii_lowercase().contains(&wanted.to_ascii_lowercase()))
    };
    let mut meant: Vec<&str> = models.iter().copied().filter(|model| exact(model)).collect();
    if meant.is_empty() {
        meant = models.iter().copied().filter(|model| partly(model)).collect();
    }
    match meant.as_slice() {
        [one] => Ok(all.into_iter().filter(|file| model_of(&file.path) == *one).cloned().collect()),
        [] => bail!("{name} has no GGUF file {:?}; it has {}", wanted.unwrap_or_default(), list(&models)),
        several => bail!("{name} has several GGUF models: say --file with one of {}", list(several)),
    }
}

fn list(names: &[&str]) -> String {
    let shown: Vec<&str> = names.iter().take(24).copied().collect();
    let more = if names.len() > shown.len() {
        format!(" and {} more", names.len() - shown.len())
    } else {
        String::new()
    };
    if shown.is_empty() { "no files".to_owned() } else { format!("{}{more}", shown.join(", ")) }
}

fn base_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A GGUF file's name without its ending and the number of its part.
fn model_of(path: &str) -> &str {
    let stem = path.strip_suffix(".gguf").or(path.strip_suffix(".GGUF")).unwrap_or(path);
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let part = stem.rsplit_once("-of-").filter(|(_, parts)| digits(parts));
    match part.and_then(|(rest, _)| rest.rsplit_once('-')) {
        Some((model, number)) if digits(number) => model,
        _ => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], wanted: Option<&str>) -> Result<Vec<String>, String> {
        let file = |path: &&str| File {
            path: (*path).to_owned(),
            size: path.len() as u64,
            sha256: None,
            blob: None,
        };
        let files: Vec<File> = files.iter().map(file).collect();
        let chosen = choose("a/b", &files, wanted).map_err(|error| error.to_string())?;
        let mut names: Vec<String> = chosen.into_iter().map(|file| file.path).collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn weights_come_in_one_format_with_what_reads_text() {
        let files = [
            ".gitattributes",
            "1_Pooling/config.json",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "x.gguf",
        ];
        let weights = [1, 2, 4, 5, 6, 9].map(|at| files[at].to_owned());
        assert_eq!(chosen(&files, None).unwrap(), weights);
        assert_eq!(chosen(&files, Some("x")).unwrap(), ["x.gguf"]);
        let single = [&files[..], &["model.safetensors"]].concat();
        assert_eq!(
            chosen(&single, None).unwrap(),
            ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
        );
    }

    #[test]
    fn one_gguf_model_is_meant_with_all_its_parts_or_the_choice_is_told() {
        let files =
            ["a-Q4_K_M.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf", "mmproj-a.gguf"];
        assert!(chosen(&files, None).unwrap_err().contains("say --file with one of a-Q4_K_M, a-Q8_0"));
        assert_eq!(chosen(&files, Some("q8_0")).unwrap(), [files[1], files[2]]);
        assert_eq!(chosen(&files, Some("a-Q4_K_M.gguf")).unwrap(), [files[0]]);
        assert!(chosen(&files, Some("Q2")).unwrap_err().contains("no GGUF file \"Q2\"; it has a-Q4_K_M"));
        assert_eq!(chosen(&files[..1], None).unwrap(), [files[0]]);
        let both = ["dir/a.gguf", "a.gguf", "aa.gguf"];
        assert_eq!(chosen(&both, Some("aa")).unwrap(), ["aa.gguf"]);
        assert!(chosen(&["README.md"], None).unwrap_err().contains("it has README.md"));
    }
}
