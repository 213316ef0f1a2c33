//! What tokens cost, by model: kept in the store, looked at from memory.

use std::collections::BTreeMap;

use base::ModelName;
use parking_lot::RwLock;
use store::{Price, Store, StoreError};
use wire::admin::PriceList;

/// The setting that holds them, as JSON.
const PRICES: &str = "prices";

/// The prices of all models.
#[derive(Default)]
pub(crate) struct Prices {
    by_model: RwLock<BTreeMap<ModelName, Price>>,
    /// One change at a time: each writes them all.
    changing: tokio::sync::Mutex<()>,
}

impl Prices {
    /// Reads what was kept.
    pub(crate) async fn remember(&self, store: &dyn Store) -> Result<(), StoreError> {
        let Some(text) = store.setting(PRICES).await? else { return Ok(()) };
        match serde_json::from_str::<PriceList>(&text) {
            Ok(list) => *self.by_model.write() = list.prices,
            Err(error) => {
                tracing::error!(%error, "the prices that were kept cannot be read: all cost nothing")
            }
        }
        Ok(())
    }

    pub(crate) fn of(&self, model: &ModelName) -> Price {
        self.by_model.read().get(model).copied().unwrap_or_default()
    }

    pub(crate) fn list(&self) -> PriceList {
        PriceList { prices: self.by_model.read().clone() }
    }

    /// Sets one from the next request on.
    pub(crate) async fn set(
        &self,
        store: &dyn Store,
        model: ModelName,
        price: Price,
    ) -> Result<(), StoreError> {
        let _one = self.changing.lock().await;
        let mut list = self.list();
        list.prices.insert(model, price);
        let text = serde_json::to_string(&list).expect("names are JSON keys");
        store.put_setting(PRICES, Some(&text)).await?;
        *self.by_model.write() = list.prices;
        Ok(())
    }
}
