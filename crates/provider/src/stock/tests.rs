//! Folders as they are found: what counts, what goes, what stays.

use std::fs;

use super::*;

const KIB: u64 = 1 << 10;

struct Folder {
    stock: Stock,
    _folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { stock: Stock::new(folder.path().join("models")), _folder: folder }
    }

    /// A model that was fetched, last used so many seconds after 1970.
    fn fetched(&self, name: &str, kib: u64, used_s: u64) {
        self.put(&self.stock.folder.join(name), kib, used_s);
    }

    fn put(&self, place: &Path, kib: u64, used_s: u64) {
        fs::create_dir_all(place).unwrap();
        fs::write(place.join("model.gguf"), vec![7; (kib * KIB) as usize]).unwrap();
        let file = Entry { path: "model.gguf".to_owned(), size: kib * KIB, sha256: None, blob: None };
        Manifest { revision: "1".to_owned(), files: vec![file] }.write(place).unwrap();
        let manifest = File::options().write(true).open(place.join(manifest::FILE)).unwrap();
        manifest.set_modified(UNIX_EPOCH + Duration::from_secs(used_s)).unwrap();
    }

    fn names(&self) -> Vec<String> {
        self.stock.models().into_iter().map(|of| of.name).collect()
    }

    /// Makes room for a model of so much within a budget of so much; what went.
    fn room(&self, kib: u64, budget_kib: u64) -> Result<Vec<String>, NoRoom> {
        let bytes = Bytes(kib * KIB);
        let wanted = Wanted { name: "new/model", whole: bytes, to_write: bytes };
        let gone = self.stock.make_room(wanted, Some(Bytes(budget_kib * KIB)))?;
        Ok(gone.into_iter().map(|of| of.name).collect())
    }
}

/// What a manifest of one file takes on the disk besides.
const SLACK: u64 = 2;

#[test]
fn the_least_recently_used_goes_and_a_hold_both_keeps_and_counts_as_use() {
    let folder = Folder::new();
    for (name, used_s) in [("acme/a", 1_000), ("acme/b", 2_000), ("gpt", 3_000)] {
        folder.fetched(name, 40, used_s);
    }
    assert_eq!(folder.names(), ["acme/a", "acme/b", "gpt"]);
    assert_eq!(folder.room(40, 170).unwrap(), [""; 0]);
    // It was the oldest, and is in use.
    let hold = Stock::hold_at(&folder.stock.folder.join("acme/a/model.gguf"), "a test").unwrap();
    assert_eq!(folder.stock.models()[0].held_by, [format!("a test (process {})", std::process::id())]);
    assert_eq!(folder.room(40, 130).unwrap(), ["acme/b"]);
    // It is held no more, and was used now.
    drop(hold);
    assert_eq!(folder.room(40, 90).unwrap(), ["gpt"]);
    assert_eq!(folder.names(), ["acme/a"]);
    assert_eq!(folder.room(40, 50).unwrap(), ["acme/a"]);
    assert!(!folder.stock.folder.join("acme").exists() && !folder.stock.folder.join(GOING).exists());
}

#[test]
fn what_is_somebodys_own_neither_goes_nor_counts() {
    let folder = Folder::new();
    let at = |name: &str| folder.stock.folder.join(name);
    fs::create_dir_all(at("me/mine")).unwrap();
    fs::write(at("me/mine/model.gguf"), vec![1; 50 << 10]).unwrap();
    folder.fetched("acme/tuned", 40, 1);
    fs::write(at("acme/tuned/adapter.bin"), b"of their own").unwrap();
    folder.fetched("acme/linked", 40, 2);
    std::os::unix::fs::symlink(at("me/mine/model.gguf"), at("acme/linked/more.gguf")).unwrap();
    folder.fetched("acme/plain", 40, 3);
    std::os::unix::fs::symlink(at("acme/plain"), at("alias")).unwrap();
    let own: Vec<_> = folder.stock.models().into_iter().filter(|of| of.state == State::Own).collect();
    assert_eq!(
        own.iter().map(|of| of.name.as_str()).collect::<Vec<_>>(),
        ["acme/linked", "acme/tuned", "me/mine"]
    );
    assert_eq!(folder.room(40, 40 + SLACK).unwrap(), ["acme/plain"]);
    assert!(at("acme/tuned/adapter.bin").is_file() && at("me/mine/model.gguf").is_file());
    for name in ["me/mine", "acme/tuned"] {
        let error = folder.stock.remove(name).unwrap_err().to_string();
        assert!(error.contains("delete") && error.contains("yourself"), "{error}");
    }
    assert!(folder.stock.remove("acme/none").unwrap_err().to_string().contains("models list"));
}

#[test]
fn what_is_fetched_counts_whole_and_stays_and_what_was_left_off_goes() {
    let folder = Folder::new();
    let under_way = folder.stock.under_way();
    folder.put(&under_way.join("acme--left"), 30, 1);
    folder.put(&under_way.join("acme--now"), 20, 2);
    fs::write(under_way.join("acme--now/model.gguf"), b"the first bytes").unwrap();
    let lock = File::create(under_way.join("acme--now.lock")).unwrap();
    lock.try_lock().unwrap();
    let states: Vec<_> = folder.stock.models().into_iter().map(|of| (of.state, of.bytes.0)).collect();
    assert_eq!(states, [(State::LeftOff, 30 * KIB), (State::UnderWay, 20 * KIB)]);
    let error = folder.room(50, 60).unwrap_err().to_string();
    assert!(error.contains("acme/now (20.0 KiB) is being fetched"), "{error}");
    assert!(error.contains("60.0 KiB") && error.contains("models budget"), "{error}");
    assert_eq!(folder.room(40, 60).unwrap(), ["acme/left"]);
    let error = folder.stock.remove("acme/now").unwrap_err().to_string();
    assert!(error.contains("being fetched"), "{error}");
    drop(lock);
    assert_eq!(folder.stock.remove("acme/now").unwrap().bytes, Bytes(15));
}

#[test]
fn nothing_goes_where_it_would_not_be_enough_and_a_budget_is_kept_in_the_folder() {
    let folder = Folder::new();
    folder.fetched("acme/a", 40, 1);
    folder.fetched("acme/b", 40, 2);
    let _hold = folder.stock.hold("acme/b", "a provider").unwrap();
    let error = folder.room(40, 70).unwrap_err().to_string();
    assert!(error.contains("held by a provider (process"), "{error}");
    assert_eq!(folder.names(), ["acme/a", "acme/b"]);
    let wanted = Wanted { name: "c", whole: Bytes(KIB), to_write: Bytes(KIB) };
    assert_eq!(folder.stock.make_room(wanted, None).unwrap(), []);
    folder.stock.set_budget(Some(Bytes(60 * KIB))).unwrap();
    assert_eq!(folder.stock.budget().unwrap(), Some(Bytes(60 * KIB)));
    assert_eq!(folder.stock.make_room(wanted, None).unwrap()[0].name, "acme/a");
    folder.stock.set_budget(None).unwrap();
    assert_eq!(folder.stock.budget().unwrap(), None);
    // A disk has no room for everything, and without a budget it is not made.
    let wanted = Wanted { name: "c", whole: Bytes(1 << 60), to_write: Bytes(1 << 60) };
    let error = folder.stock.make_room(wanted, None).unwrap_err().to_string();
    assert!(error.contains("--dir") && error.contains("models budget"), "{error}");
    fs::write(folder.stock.folder.join(BUDGET), "many").unwrap();
    assert!(folder.stock.budget().is_err());
}

#[test]
fn a_removal_that_was_cut_short_is_finished_by_the_next() {
    let folder = Folder::new();
    let left = folder.stock.folder.join(GOING).join("acme--old.1.0");
    folder.put(&left, 10, 1);
    assert_eq!(folder.room(1, 100).unwrap(), [""; 0]);
    assert!(!left.exists());
}
