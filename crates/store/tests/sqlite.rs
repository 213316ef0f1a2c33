//! What the embedded store promises about its file: no room, damage, strangers, neighbours, and a disk that comes back.

use std::path::Path;
use std::sync::Arc;

use base::{AccountId, Bytes, KeyId, RequestId};
use store::{
    OpenError, Outcome, Price, Reservation, Settlement, SqliteOptions, SqliteStore, Store, StoreError,
};

const ACCOUNT: AccountId = AccountId(0xacc);

fn reservation(request: u128) -> Reservation {
    Reservation {
        request: RequestId(request),
        account: ACCOUNT,
        key: KeyId(7),
        model: "phalanx-mini".into(),
        prompt_tokens: 100,
        max_tokens: 50,
        price: Price::default(),
        at_unix_us: 1_000,
    }
}

fn settlement(request: u128) -> Settlement {
    Settlement {
        request: RequestId(request),
        prompt_tokens: 100,
        generated_tokens: 20,
        outcome: Outcome::Completed,
        at_unix_us: 2_000,
        evidence: String::new(),
        named: None,
    }
}

async fn open(file: &Path, size_max: Option<Bytes>) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(&SqliteOptions { file: file.to_owned(), size_max }, 1).await
}

/// The message, and those of all its causes.
fn whole_message(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The error of a store that must not open.
async fn refused(file: &Path) -> (OpenError, String) {
    match open(file, None).await {
        Ok(_) => panic!("{} opened", file.display()),
        Err(error) => {
            let message = whole_message(&error);
            assert!(message.contains(&file.display().to_string()), "the file is named: {message}");
            (error, message)
        }
    }
}

#[tokio::test]
async fn a_full_store_refuses_by_name_loses_nothing_and_goes_on_when_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = open(&file, Some(Bytes(256 << 10))).await.unwrap();
    store.reserve(reservation(1)).await.unwrap();
    // Fill it: large settings first, then ever smaller ones, until there is no page left.
    let mut kept = Vec::new();
    for size in [64 << 10, 4 << 10, 64] {
        for at in 0.. {
            let name = format!("{size}-{at}");
            match store.put_setting(&name, Some(&"x".repeat(size))).await {
                Ok(()) => kept.push(name),
                Err(error) => {
                    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
                    let message = error.to_string();
                    assert!(
                        message.contains("store.sqlite") && message.contains("free some disk space"),
                        "{message}"
                    );
                    break;
                }
            }
        }
    }
    let mut made = 0u32;
    let full = loop {
        match store.reserve(reservation(1_000 + u128::from(made))).await {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 10_000, "it fills up");
    };
    assert!(matches!(full, StoreError::Full(_)), "{full:?}");
    // A settlement in a full store: an error now, but it is kept, and must not be asked for again.
    let mut failed = 0u64;
    for at in 0..u128::from(made) {
        match store.settle(settlement(1_000 + at)).await {
            Ok(_) => {}
            Err(StoreError::Full(_)) => failed += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    let again = store.settle(settlement(1_000)).await;
    assert!(matches!(again, Err(StoreError::NotReserved { .. })), "{again:?}");
    // Reading still works, and so does writing once there is room.
    assert!(store.usage(ACCOUNT).await.unwrap().reserved_tokens >= 150 * failed);
    for name in kept.iter().take(4) {
        store.put_setting(name, None).await.unwrap();
    }
    store.reserve(reservation(2)).await.unwrap();
    store.settle(settlement(2)).await.unwrap();
    store.settle(settlement(1)).await.unwrap();
    let usage = store.usage(ACCOUNT).await.unwrap();
    assert_eq!((usage.requests, usage.reserved_tokens), (u64::from(made) + 2, 0), "{failed} failed at first");
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_limit_that_is_raised_takes_effect_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let large = "x".repeat(200 << 10);
    let store = open(&file, Some(Bytes(128 << 10))).await.unwrap();
    assert!(matches!(store.put_setting("large", Some(&large)).await, Err(StoreError::Full(_))));
    store.close().await.unwrap();
    let store = open(&file, Some(Bytes(1 << 20))).await.unwrap();
    store.put_setting("large", Some(&large)).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = open(&file, None).await.unwrap();
    for request in 0..200 {
        store.reserve(reservation(request)).await.unwrap();
        store.settle(settlement(request)).await.unwrap();
    }
    store.close().await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    let damages: [(&str, Vec<u8>); 4] = [
        ("overwritten pages", {
            let mut bytes = whole.clone();
            bytes[3 * 4096..].fill(0xa5);
            bytes
        }),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("another header", [&[0u8; 100], &whole[100..]].concat()),
        ("no database at all", b"hello, this is a letter to my aunt".repeat(200)),
    ];
    for (what, bytes) in damages {
        std::fs::write(&file, bytes).unwrap();
        let (error, message) = refused(&file).await;
        assert!(matches!(error, OpenError::Store(StoreError::Corrupt(_))), "{what}: {message}");
        assert!(message.contains("restore it from a backup"), "{what}: {message}");
    }
    std::fs::write(&file, whole).unwrap();
    assert_eq!(open(&file, None).await.unwrap().usage(ACCOUNT).await.unwrap().requests, 200);
}

#[tokio::test]
async fn any_single_damaged_byte_is_survived_or_refused_but_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = open(&file, None).await.unwrap();
    store.reserve(reservation(1)).await.unwrap();
    store.settle(settlement(1)).await.unwrap();
    store.close().await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut rng = base::Rng::new(11);
    for _ in 0..100 {
        let mut bytes = whole.clone();
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
        std::fs::write(&file, bytes).unwrap();
        if let Ok(store) = open(&file, None).await {
            let _ = store.reserve(reservation(2)).await;
            let _ = store.ledger(0, 10).await;
            store.close().await.unwrap();
        }
        let _ = std::fs::remove_file(folder.path().join("store.sqlite-wal"));
        let _ = std::fs::remove_file(folder.path().join("store.sqlite-shm"));
    }
}

#[tokio::test]
async fn another_programs_database_and_a_newer_schema_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("photos.sqlite");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE photos (name TEXT)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    let (error, message) = refused(&foreign).await;
    assert!(matches!(error, OpenError::NotOurs { .. }), "{message}");
    assert_eq!(std::fs::read(&foreign).unwrap(), before);

    let newer = folder.path().join("newer.sqlite");
    open(&newer, None).await.unwrap().close().await.unwrap();
    rusqlite::Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let (error, message) = refused(&newer).await;
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{message}");
}

#[tokio::test]
async fn a_second_coordinator_in_the_same_folder_is_refused_until_the_first_has_closed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = open(&file, None).await.unwrap();
    let (error, message) = refused(&file).await;
    assert!(matches!(error, OpenError::InUse { .. }), "{message}");
    store.close().await.unwrap();
    open(&file, None).await.unwrap();
}

#[tokio::test]
async fn a_database_tool_that_holds_the_file_is_named_as_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = open(&file, None).await.unwrap();
    let tool = rusqlite::Connection::open(&file).unwrap();
    tool.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.reserve(reservation(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error:?}");
    assert!(error.to_string().contains("end that process"), "{error}");
    tool.execute_batch("ROLLBACK").unwrap();
    store.reserve(reservation(1)).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn the_files_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("deep").join("store.sqlite");
    let store = open(&file, None).await.unwrap();
    store.reserve(reservation(1)).await.unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(file.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        seen += 1;
    }
    assert!(seen >= 3, "database, log and lock");
    assert_eq!(store.file(), file);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("file");
    std::fs::write(&in_the_way, b"").unwrap();
    let (error, message) = refused(&in_the_way.join("store.sqlite")).await;
    assert!(matches!(error, OpenError::Io { .. }), "{message}");
    let (error, message) = refused(folder.path()).await;
    assert!(matches!(error, OpenError::Io { .. } | OpenError::Store(_)), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_once_share_one_write_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = Arc::new(open(&file, None).await.unwrap());
    store.reserve(reservation(0)).await.unwrap();
    let log = folder.path().join("store.sqlite-wal");
    // A frame of the log is one page written by one transaction: as many transactions as requests would write at
    // least two pages each.
    let frames = || std::fs::metadata(&log).unwrap().len() / 4120;
    let before = frames();
    let callers: Vec<_> = (1..=400)
        .map(|request| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.reserve(reservation(request)).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let written = frames() - before;
    assert!(written < 400, "{written} pages for 400 reservations");
    assert_eq!(store.usage(ACCOUNT).await.unwrap().reserved_tokens, 401 * 150);
}

#[tokio::test]
async fn requests_left_open_are_counted_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let store = open(&file, None).await.unwrap();
    assert_eq!(store.lost(), 0);
    for request in 0..3 {
        store.reserve(reservation(request)).await.unwrap();
    }
    store.settle(settlement(1)).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(open(&file, None).await.unwrap().lost(), 2);
}
