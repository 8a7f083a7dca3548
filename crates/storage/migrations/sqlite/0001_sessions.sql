-- Times are milliseconds since 1970. `request_id` is NULL for sessions made without one, and NULLs never collide.
CREATE TABLE sessions (
    id                  TEXT    NOT NULL PRIMARY KEY,
    tenant              TEXT    NOT NULL,
    user_id             TEXT    NOT NULL,
    state               TEXT    NOT NULL,
    sandbox_id          TEXT,
    template            TEXT    NOT NULL,
    metadata            TEXT    NOT NULL,
    failure             TEXT    NOT NULL,
    request_id          TEXT,
    request_fingerprint TEXT    NOT NULL,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    version             INTEGER NOT NULL,
    UNIQUE (tenant, user_id, request_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_tenant ON sessions (tenant, id);
-- what the reconciler looks for: sessions on their way for too long
CREATE INDEX sessions_by_state ON sessions (state, updated_at);
