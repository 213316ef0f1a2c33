//! The model inside the program: it answers with no file and no network.

use model::kit::Kit;

use crate::files::FileBytes;
use crate::load::{Found, Layout};

/// The name under which the bundled model is served, unless told otherwise.
pub const NAME: &str = "phalanx-bundled";

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../../models/bundled/", $name))
    };
}

/// The bundled model's files.
pub(crate) fn files() -> Found {
    let kit = Kit {
        config: file!("config.json").to_vec(),
        generation_config: Some(file!("generation_config.json").to_vec()),
        tokenizer: file!("tokenizer.json").to_vec(),
        tokenizer_config: Some(file!("tokenizer_config.json").to_vec()),
        chat_template: None,
        pooling: None,
    };
    let weights = FileBytes::Bundled(file!("model.safetensors"));
    let files = vec![("model.safetensors".to_owned(), weights)];
    Found { kit, layout: Layout::Safetensors { index: None }, files }
}
