-- Which state of all templates this is. Begun with the time in milliseconds, and never behind it: nodes outlive a database
-- that is made anew, and heed a higher one only. Whoever changes a template writes this row first, and so locks out others.
CREATE TABLE template_revision (
    one      BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    revision BIGINT NOT NULL
);

INSERT INTO template_revision (one, revision) VALUES (1, CAST(1000 * EXTRACT(EPOCH FROM now()) AS BIGINT));

-- The last version of a name that was given. It outlives the templates: no version is given twice.
CREATE TABLE template_names (
    name         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    last_version BIGINT NOT NULL
);

-- `template` is JSON, with the password of its source; `bytes` is its length.
CREATE TABLE templates (
    name       TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    template   TEXT   NOT NULL,
    bytes      BIGINT NOT NULL,
    tenant     TEXT COLLATE "C" NOT NULL,
    user_id    TEXT COLLATE "C" NOT NULL,
    request_id TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    PRIMARY KEY (name, version),
    UNIQUE (tenant, user_id, request_id)
);
