//! Every key in memory, since each request asks for one. Keys are made by people: a hundred thousand take 30 MB.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use base::KeyId;

use crate::KeyInfo;

/// All keys, in the order in which they were made.
#[derive(Default)]
pub(super) struct KeyTable {
    keys: Vec<KeyInfo>,
    by_hash: HashMap<[u8; 32], usize>,
    by_id: HashMap<KeyId, usize>,
}

impl KeyTable {
    pub(super) fn insert(&mut self, key: KeyInfo, hash: [u8; 32]) {
        let place = self.keys.len();
        self.by_hash.insert(hash, place);
        self.by_id.insert(key.id, place);
        self.keys.push(key);
    }

    pub(super) fn list(&self) -> Vec<KeyInfo> {
        self.keys.clone()
    }

    pub(super) fn has(&self, id: KeyId, hash: &[u8; 32]) -> bool {
        self.by_id.contains_key(&id) || self.by_hash.contains_key(hash)
    }

    /// A table look-up takes a time that depends on the hash's bits, not on the secret's: nothing about a secret is
    /// learnt from guesses at SHA-256.
    pub(super) fn by_hash(&self, hash: &[u8; 32]) -> Option<KeyInfo> {
        self.by_hash.get(hash).map(|place| self.keys[*place].clone())
    }

    pub(super) fn by_id(&self, id: KeyId) -> Option<&KeyInfo> {
        self.by_id.get(&id).map(|place| &self.keys[*place])
    }

    pub(super) fn revoke(&mut self, id: KeyId, unix: u64) {
        if let Some(place) = self.by_id.get(&id) {
            self.keys[*place].revoked_unix.get_or_insert(unix);
        }
    }
}

/// Reads the table. Nothing panics while it is held for writing, so a poisoned lock holds a whole table too.
pub(super) fn read(keys: &RwLock<KeyTable>) -> RwLockReadGuard<'_, KeyTable> {
    keys.read().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the table.
pub(super) fn write(keys: &RwLock<KeyTable>) -> RwLockWriteGuard<'_, KeyTable> {
    keys.write().unwrap_or_else(PoisonError::into_inner)
}
