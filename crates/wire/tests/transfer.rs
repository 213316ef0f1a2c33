//! What a machine that takes a model must survive: cut, changed and hostile messages and manifests.

use proptest::prelude::*;
use wire::link::{Manifest, ManifestFile, TransferMessage, is_placeable, is_plain_path};

fn manifest(paths: &[&str]) -> Manifest {
    let file = |path: &&str| ManifestFile { path: (*path).to_owned(), bytes: 3, pieces: vec![[9; 32]] };
    Manifest { piece_bytes: 65_536, files: paths.iter().map(file).collect() }
}

fn refusal(manifest: &Manifest) -> String {
    Manifest::decode(&manifest.encode()).expect_err("a refusal").to_string()
}

#[test]
fn paths_that_lead_elsewhere_or_hide_are_refused_and_plain_ones_taken() {
    for path in [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../x",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        ".phalanx-pull.json",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        "a/b/c/d",
        "trailing.",
        "trailing ",
        " leading",
        "NUL\u{7f}",
        "\u{202e}txt",
    ] {
        assert!(!is_plain_path(path), "{path:?}");
        assert!(refusal(&manifest(&[path])).contains("is refused"), "{path:?}");
    }
    let long = "x".repeat(256);
    assert!(!is_plain_path(&long));
    for path in
        ["config.json", "1_Pooling/config.json", "model-00001-of-00002.safetensors", "A b (1)+c,d=e@f.gguf"]
    {
        assert!(is_plain_path(path), "{path:?}");
        assert_eq!(Manifest::decode(&manifest(&[path]).encode()), Ok(manifest(&[path])));
    }
}

#[test]
fn two_files_in_one_place_are_refused_on_disks_of_any_kind() {
    for paths in [["a", "a"], ["model.bin", "MODEL.bin"], ["a", "a/b"], ["a/b", "A"], ["a/b/c", "a/b"]] {
        assert!(refusal(&manifest(&paths)).contains("another file has its place"), "{paths:?}");
    }
    assert!(Manifest::decode(&manifest(&["a/b", "a-b", "ab", "a/c"]).encode()).is_ok());
}

#[test]
fn names_of_models_that_no_folder_of_models_could_hold_are_refused() {
    for name in [
        "",
        "/",
        "a/",
        "/a",
        "../a",
        "a/..",
        ".a",
        "a/b/c",
        "models--a--b",
        "x/models--a",
        "a b",
        "a:b",
        "a\\b",
    ] {
        assert!(!is_placeable(name), "{name:?}");
    }
    assert!(!is_placeable(&"x".repeat(129)));
    for name in ["alpha", "Qwen/Qwen3-8B", "org_1/model.v2", "a--b"] {
        assert!(is_placeable(name), "{name:?}");
    }
}

#[test]
fn counts_that_nobody_sent_the_bytes_for_allocate_nothing() {
    // 4096 files are claimed; a file of 2^64 - 1 bytes; more pieces than a model may have.
    let head = |piece: u32, files: u32| {
        let mut bytes = 1u16.to_le_bytes().to_vec();
        bytes.extend_from_slice(&piece.to_le_bytes());
        bytes.extend_from_slice(&files.to_le_bytes());
        bytes
    };
    assert!(Manifest::decode(&head(65_536, 4_096)).is_err());
    for wrong in [head(65_536, 4_097), head(65_536, 0), head(65_535, 1), head(1 << 25, 1), head(0, 1)] {
        assert!(Manifest::decode(&wrong).is_err());
    }
    for bytes in [u64::MAX, 1 << 40, 65_536 * ((1 << 21) + 1)] {
        let mut huge = head(65_536, 1);
        huge.extend_from_slice(&1u16.to_le_bytes());
        huge.push(b'a');
        huge.extend_from_slice(&bytes.to_le_bytes());
        assert!(Manifest::decode(&huge).is_err(), "{bytes}");
    }
}

#[test]
fn every_piece_has_its_length_and_their_sum_is_the_file() {
    for bytes in [0u64, 1, 65_535, 65_536, 65_537, 200_000] {
        let pieces = bytes.div_ceil(65_536) as usize;
        let file = ManifestFile { path: "a".to_owned(), bytes, pieces: vec![[0; 32]; pieces] };
        let manifest = Manifest { piece_bytes: 65_536, files: vec![file] };
        let lengths: Vec<usize> = (0..pieces).map(|piece| manifest.piece_len(0, piece)).collect();
        assert_eq!(lengths.iter().sum::<usize>() as u64, bytes);
        assert!(lengths.iter().all(|length| *length > 0));
        assert_eq!((manifest.piece_len(0, pieces), manifest.piece_len(1, 0)), (0, 0));
    }
    for bytes in [0, 1 << 30, 1 << 40, 1 << 44] {
        let piece = u64::from(Manifest::piece_bytes_for(bytes));
        assert!(bytes.div_ceil(piece) <= wire::link::MANIFEST_PIECES_MAX, "{bytes}");
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = TransferMessage::decode(&bytes).map(|message| assert_eq!(message.encode(), bytes));
        let _ = Manifest::decode(&bytes).map(|manifest| assert_eq!(manifest.encode(), bytes));
    }

    #[test]
    fn a_manifest_that_was_cut_or_grew_is_none(cut in 0usize..100, more in 1usize..9) {
        let whole = manifest(&["config.json", "model.safetensors"]).encode();
        prop_assert!(Manifest::decode(&whole[..cut.min(whole.len() - 1)]).is_err());
        let grown: Vec<u8> = whole.iter().copied().chain(std::iter::repeat_n(0, more)).collect();
        prop_assert!(Manifest::decode(&grown).is_err());
    }
}
