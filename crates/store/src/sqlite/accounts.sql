-- What a key may do, as JSON: a new term needs no new column.
ALTER TABLE keys ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';

-- Prices at the time of the reservation, in micro-units for a million tokens, so that a change of prices changes nothing
-- that is under way.
ALTER TABLE reservations ADD COLUMN prompt_price INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reservations ADD COLUMN generated_price INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN charged_micros INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN charged_micros INTEGER NOT NULL DEFAULT 0;

-- Sums over the ledger for each key and model, changed in the transaction that changes it.
CREATE TABLE key_usage (
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    account TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    charged_micros INTEGER NOT NULL,
    PRIMARY KEY (key, model)
) WITHOUT ROWID;

INSERT INTO key_usage SELECT key, model, min(account), count(*), sum(prompt_tokens), sum(generated_tokens), 0
    FROM ledger GROUP BY key, model;

-- What operators did, only ever appended to.
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    at_unix_us INTEGER NOT NULL,
    by_key TEXT NOT NULL,
    act TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);
