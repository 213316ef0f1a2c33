//! What machines say of which one takes a model from the other, one value of each.

use wire::link::{Manifest, ManifestFile, TransferMessage};

/// All of it, by name.
pub(crate) fn messages() -> Vec<(&'static str, TransferMessage<'static>)> {
    use TransferMessage::{Data, Get, Offer, Preparing, Refused, Want};
    vec![
        ("transfer_want", Want("acme/small")),
        ("transfer_preparing", Preparing(40)),
        ("transfer_offer", Offer { root: [7; 32], bytes: 65_536 }),
        ("transfer_get", Get { file: 1, first: 2, count: 64 }),
        ("transfer_data", Data(b"xyz")),
        ("transfer_refused", Refused("it is not here")),
    ]
}

/// A model of two files.
pub(crate) fn manifest() -> Manifest {
    let file =
        |path: &str, bytes: u64, pieces: Vec<[u8; 32]>| ManifestFile { path: path.to_owned(), bytes, pieces };
    let files = vec![
        file("1_Pooling/config.json", 0, Vec::new()),
        file("model.safetensors", 65_537, vec![[1; 32], [2; 32]]),
    ];
    Manifest { piece_bytes: 65_536, files }
}
