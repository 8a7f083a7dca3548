-- `details` is what no query asks for, in JSON. `due_at` is when somebody should look at the session next, NULL for never;
-- sessions of before are looked at at once.
ALTER TABLE sessions ADD COLUMN details TEXT NOT NULL DEFAULT '{}';
ALTER TABLE sessions ADD COLUMN due_at INTEGER DEFAULT 0;
DROP INDEX sessions_by_state;
CREATE INDEX sessions_by_due_time ON sessions (due_at) WHERE due_at IS NOT NULL;

-- `folder` is the checkpoint that the manifest lies with in the workspace store: another one's after a fork. `packs` is a
-- JSON list of the checkpoints whose packs it needs, itself among them while it is being written.
CREATE TABLE checkpoints (
    id           TEXT    NOT NULL PRIMARY KEY,
    session_id   TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    complete     INTEGER NOT NULL,
    folder       TEXT    NOT NULL,
    digest       TEXT    NOT NULL,
    parent_id    TEXT,
    packs        TEXT    NOT NULL,
    files        INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    created_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX checkpoints_by_session ON checkpoints (session_id, id);

CREATE TABLE session_events (
    session_id TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    sequence   INTEGER NOT NULL,
    happened_at INTEGER NOT NULL,
    kind       TEXT    NOT NULL,
    message    TEXT    NOT NULL,
    PRIMARY KEY (session_id, sequence)
) STRICT, WITHOUT ROWID;
