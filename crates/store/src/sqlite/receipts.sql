-- What a receipt says beyond the numbers, as the coordinator wrote it; and a way to one request's row.
ALTER TABLE ledger ADD COLUMN evidence TEXT NOT NULL DEFAULT '';
CREATE INDEX ledger_request ON ledger (request);

-- A caller's own name for a request (its idempotency key) and what it asked under that name, both as hashes: a retry after
-- a restart is not charged again.
ALTER TABLE ledger ADD COLUMN named TEXT NOT NULL DEFAULT '';
CREATE INDEX ledger_named ON ledger (named) WHERE named <> '';
