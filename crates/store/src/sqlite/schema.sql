-- Identities are text as Phalanx shows them, so that a person with a database tool can read the file.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE keys (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    admin INTEGER NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    ends_with TEXT NOT NULL,
    created_unix INTEGER NOT NULL,
    revoked_unix INTEGER
);

-- What is open now. It stays as small as the number of requests in flight, so that a group of reservations touches a
-- few pages that are always in memory.
CREATE TABLE reservations (
    request TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    max_tokens INTEGER NOT NULL,
    reserved_unix_us INTEGER NOT NULL
) WITHOUT ROWID;

-- What was settled, only ever appended to. prompt + generated + refunded is what was reserved.
CREATE TABLE ledger (
    sequence INTEGER PRIMARY KEY,
    request TEXT NOT NULL,
    account TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    refunded_tokens INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    reserved_unix_us INTEGER NOT NULL,
    settled_unix_us INTEGER NOT NULL
);

-- Sums over both, changed in the transaction that changes them.
CREATE TABLE usage (
    account TEXT PRIMARY KEY,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    refunded_tokens INTEGER NOT NULL,
    reserved_tokens INTEGER NOT NULL
) WITHOUT ROWID;
