//! What a coordinator needs before it can let anybody in: a first key, and the token with which machines join.

use base::{AccountId, KeyId, Rng};
use store::{JOIN_TOKEN, KeyInfo, KeyTerms, Store, StoreError};
use trust::MachineKeys;
use wire::admin::CreatedKey;

use crate::clock::unix_s;

/// What a coordinator begins with. Not `Debug`: it holds secrets.
#[derive(Clone)]
pub struct Bootstrap {
    /// The first key, where there was none: an admin key. The only time that its secret is seen.
    pub first_key: Option<CreatedKey>,
    /// The token with which machines join; the same at every start.
    pub join_token: String,
}

/// Creates what is missing: the first key, the join token.
///
/// # Errors
/// The store fails.
pub async fn bootstrap(store: &dyn Store) -> Result<Bootstrap, StoreError> {
    let first_key = if store.keys().await?.is_empty() {
        Some(create_key(store, "first".to_owned(), None, true, KeyTerms::default()).await?)
    } else {
        None
    };
    let join_token = match store.setting(JOIN_TOKEN).await? {
        Some(token) => token,
        None => {
            let token = trust::new_join_token();
            store.put_setting(JOIN_TOKEN, Some(&token)).await?;
            token.to_string()
        }
    };
    Ok(Bootstrap { first_key, join_token })
}

/// The setting that holds the keys that receipts are signed with, in hexadecimal.
const RECEIPT_KEYS: &str = "receipt_keys";

/// What receipts are signed with: made at the first start, the same at every later one.
pub(crate) async fn receipt_keys(store: &dyn Store) -> Result<MachineKeys, StoreError> {
    if let Some(kept) = store.setting(RECEIPT_KEYS).await? {
        let bytes = trust::Zeroizing::new(trust::unhex(&kept).unwrap_or_default());
        match MachineKeys::from_secret_bytes(&bytes) {
            Ok(keys) => return Ok(keys),
            Err(error) => tracing::error!(
                %error,
                "the keys that receipts are signed with cannot be read: new ones are made, and earlier receipts are \
                 signed anew with them; restore the store from a backup to keep the old ones"
            ),
        }
    }
    let keys = MachineKeys::generate();
    let kept = trust::Zeroizing::new(trust::hex(&keys.to_secret_bytes()));
    store.put_setting(RECEIPT_KEYS, Some(&kept)).await?;
    Ok(keys)
}

/// Creates a key: for a new account where none is named.
///
/// # Errors
/// The store fails.
pub async fn create_key(
    store: &dyn Store,
    name: String,
    account: Option<AccountId>,
    admin: bool,
    terms: KeyTerms,
) -> Result<CreatedKey, StoreError> {
    let mut rng = Rng::new(u64::from_le_bytes(trust::random_bytes()));
    let (secret, hash) = trust::new_api_key();
    let key = KeyInfo {
        id: KeyId::random(&mut rng),
        account: account.unwrap_or_else(|| AccountId::random(&mut rng)),
        name,
        admin,
        created_unix: unix_s(),
        revoked_unix: None,
        terms,
        ends_with: secret.chars().skip(secret.chars().count().saturating_sub(4)).collect(),
    };
    store.create_key(key.clone(), hash).await?;
    Ok(CreatedKey { secret: secret.to_string(), key })
}
