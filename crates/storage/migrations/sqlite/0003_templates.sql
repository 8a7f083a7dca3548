-- Which state of all templates this is. Begun with the time in milliseconds, and never behind it: nodes outlive a database
-- that is made anew, and heed a higher one only. Whoever changes a template writes this row first.
CREATE TABLE template_revision (
    one      INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL
) STRICT;

INSERT INTO template_revision (one, revision) VALUES (1, 1000 * CAST(strftime('%s', 'now') AS INTEGER));

-- The last version of a name that was given. It outlives the templates: no version is given twice.
CREATE TABLE template_names (
    name         TEXT    NOT NULL PRIMARY KEY,
    last_version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- `template` is JSON, with the password of its source; `bytes` is its length.
CREATE TABLE templates (
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    template   TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    tenant     TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    request_id TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, version),
    UNIQUE (tenant, user_id, request_id)
) STRICT, WITHOUT ROWID;
