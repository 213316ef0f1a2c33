-- What operators want. The spec is JSON: a new field needs no new column.
CREATE TABLE deployments (
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    spec TEXT NOT NULL
) WITHOUT ROWID;

-- What happened to deployments, deleted ones included: the last lines of each.
CREATE TABLE deployment_events (
    sequence INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    at_unix_us INTEGER NOT NULL,
    what TEXT NOT NULL
);
CREATE INDEX deployment_events_of ON deployment_events (name, sequence);

-- Where instances were placed, under which epoch, as JSON: what a coordinator that starts again takes on.
CREATE TABLE placements (
    instance TEXT PRIMARY KEY,
    record TEXT NOT NULL
) WITHOUT ROWID;

-- Calls that came with an idempotency key, and what they were answered.
CREATE TABLE deployment_calls (
    sequence INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    answer TEXT NOT NULL
);
