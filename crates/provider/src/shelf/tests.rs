//! Models in folders, in caches, in parts, damaged, and not there any more.

use std::fs;

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/fixtures/tiny");

fn copy(which: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(Path::new(FIXTURES).join(which)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn looker(folders: &[&Path]) -> Looker {
    let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
    Looker::new(Places { given: Vec::new(), folders, kv: KvFormat::Auto, fetch_into: None })
}

fn names(shelf: &Shelf) -> Vec<&str> {
    shelf.models.iter().map(|model| model.facts.name.as_str()).collect()
}

#[test]
fn models_are_found_in_folders_organisations_and_caches_and_described_by_their_headers() {
    let home = tempfile::tempdir().unwrap();
    let (named, cache) = (home.path().join("models"), home.path().join("hub"));
    copy("llama-f32", &named.join("plain"));
    copy("qwen3-f32", &named.join("acme/small"));
    copy("llama-f16-llama3-rope", &named.join("half"));
    // Hidden ones are under way; deeper ones are not looked for.
    copy("llama-f32", &named.join(".pulling/acme--late"));
    copy("llama-f32", &named.join("a/b/c"));
    fs::write(named.join("notes.txt"), "no model").unwrap();
    let cached = cache.join("models--org--cached--one");
    copy("llama-bf16-tied", &cached.join("snapshots/abc123"));
    copy("llama-f32", &cached.join("snapshots/old"));
    fs::create_dir_all(cached.join("refs")).unwrap();
    fs::write(cached.join("refs/main"), "abc123\n").unwrap();
    // Another repository without a reference, and one whose reference leads elsewhere.
    copy("llama-f32", &cache.join("models--solo/snapshots/only"));
    let sly = cache.join("models--sly--sly");
    copy("llama-f32", &sly.join("snapshots/real"));
    fs::create_dir_all(sly.join("refs")).unwrap();
    fs::write(sly.join("refs/main"), "../../../models/plain").unwrap();

    let shelf = looker(&[&named, &cache]).look();
    assert_eq!(names(&shelf), ["acme/small", "half", "org/cached--one", "plain", "sly/sly", "solo"]);
    assert_eq!(shelf.broken, []);
    let of = |name: &str| shelf.find(&ModelName::new(name)).unwrap();
    assert!(matches!(&of("sly/sly").source, ModelSource::Folder(path) if path.ends_with("snapshots/real")));
    let plain = &of("plain").facts;
    assert_eq!((plain.memory_bytes, plain.grain), (plain.disk_bytes, 1));
    assert_eq!(plain.memory_bytes.0, plain.parameters * 4);
    assert!(plain.config.contains("llama"));
    // 16-bit floats are held as 32-bit ones, bfloat16 as it is.
    assert_eq!(of("half").facts.memory_bytes.0, of("half").facts.disk_bytes.0 * 2);
    assert_eq!(of("org/cached--one").facts.memory_bytes.0, of("org/cached--one").facts.parameters * 2);
    assert!(of("plain").kv_bytes_per_token.0 > 0);
    // A folder that is a model itself is called by its name.
    assert_eq!(names(&looker(&[&named.join("plain")]).look()), ["plain"]);
}

#[test]
fn damage_is_told_and_a_change_is_seen_while_what_stays_is_not_read_again() {
    let home = tempfile::tempdir().unwrap();
    copy("llama-f32", &home.path().join("whole"));
    copy("llama-f32", &home.path().join("cut"));
    copy("llama-f32", &home.path().join("bare"));
    fs::remove_file(home.path().join("bare/model.safetensors")).unwrap();
    let weights = home.path().join("cut/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let mut looker = looker(&[home.path()]);
    let shelf = looker.look();
    assert_eq!(names(&shelf), ["whole"]);
    let told: Vec<String> = shelf.broken.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|text| text.starts_with("cut") && text.contains("fetch it again")), "{told:?}");
    assert!(told.iter().any(|text| text.starts_with("bare") && text.contains("neither")), "{told:?}");
    assert_eq!(looker.look(), shelf);

    fs::write(home.path().join("next"), &bytes).unwrap();
    fs::rename(home.path().join("next"), &weights).unwrap();
    fs::remove_dir_all(home.path().join("whole")).unwrap();
    assert_eq!(names(&looker.look()), ["cut"]);
    fs::remove_dir_all(home.path().join("cut")).unwrap();
    assert_eq!(names(&looker.look()), [""; 0]);
}

#[test]
fn gguf_files_are_models_of_their_own_and_parts_are_one() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"GGUF, it claims").unwrap();
    };
    file("lone.gguf");
    file("repo/Model-Q4_0.gguf");
    file("repo/Model-Q8_0.gguf");
    file("single/Anything.gguf");
    file("split/Big-00001-of-00002.gguf");
    file("split/Big-00002-of-00002.gguf");
    file("split/mmproj-Big.gguf");
    let mut found = Vec::new();
    scan::candidates(home.path(), &mut found);
    let mut names: Vec<&str> = found.iter().map(|candidate| candidate.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["lone", "repo/Model-Q4_0", "repo/Model-Q8_0", "single", "split"]);
    // None of them is one, and each is told.
    assert_eq!(looker(&[home.path()]).look().broken.len(), 5);
}

#[test]
fn of_two_with_one_name_the_first_folder_counts_and_given_ones_come_before() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy("llama-f32", &a.path().join("one"));
    copy("qwen3-f32", &b.path().join("one"));
    let name = ModelName::new("one");
    let shelf = looker(&[a.path(), b.path()]).look();
    assert!(
        matches!(&shelf.find(&name).unwrap().source, ModelSource::Folder(path) if path.starts_with(a.path()))
    );
    let given = vec![(name.clone(), ModelSource::Bundled)];
    let folders = vec![a.path().to_owned(), b.path().join("missing")];
    let shelf = Looker::new(Places { given, folders, kv: KvFormat::Auto, fetch_into: None }).look();
    assert_eq!(shelf.find(&name).unwrap().source, ModelSource::Bundled);
    assert_eq!(shelf.models.len(), 1);
}

#[test]
fn the_cache_is_where_the_hub_libraries_variables_say() {
    let of = |set: &[(&str, &str)]| {
        hugging_face_cache(|name| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
        })
    };
    let home = ("HOME", "/home/u");
    assert_eq!(of(&[home]), Some("/home/u/.cache/huggingface/hub".into()));
    assert_eq!(of(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
    assert_eq!(of(&[home, ("HF_HOME", "/hf")]), Some("/hf/hub".into()));
    assert_eq!(of(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
    assert_eq!(of(&[home, ("HF_HUB_CACHE", "")]), Some("/home/u/.cache/huggingface/hub".into()));
    assert_eq!(of(&[]), None);
}
