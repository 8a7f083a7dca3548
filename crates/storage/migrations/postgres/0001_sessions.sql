-- Times are milliseconds since 1970. `request_id` is NULL for sessions made without one, and NULLs never collide.
-- Ids are compared by their bytes, whatever the database's language: pages follow their order.
CREATE TABLE sessions (
    id                  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant              TEXT COLLATE "C" NOT NULL,
    user_id             TEXT COLLATE "C" NOT NULL,
    state               TEXT   NOT NULL,
    sandbox_id          TEXT,
    template            TEXT   NOT NULL,
    metadata            JSONB  NOT NULL,
    failure             TEXT   NOT NULL,
    request_id          TEXT COLLATE "C",
    request_fingerprint TEXT   NOT NULL,
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL,
    version             BIGINT NOT NULL,
    UNIQUE (tenant, user_id, request_id)
);

CREATE INDEX sessions_by_tenant ON sessions (tenant, id);
CREATE INDEX sessions_by_user ON sessions (tenant, user_id, id);
-- what the reconciler looks for: sessions on their way for too long
CREATE INDEX sessions_by_state ON sessions (state, updated_at);
