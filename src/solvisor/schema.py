"""The schema of the database: the first one that counts, and every step since.

A new database is made by the same steps that bring an old one up to date, so the two cannot differ. Rules: a step is
frozen once released, as a database may stand at any of them, so lists of values are spelled out; the schema refuses
impossible rows, so a defect elsewhere stops here instead of reaching a user. This module holds no connection.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 3
"""The oldest version that can be brought up to date; earlier ones were never released."""

_FIRST_SCHEMA: Final = """
CREATE TABLE meta (
  name   TEXT PRIMARY KEY,
  value  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('hardened', 0);

CREATE TABLE batches (
  id          TEXT PRIMARY KEY,
  name        TEXT NOT NULL,
  user        TEXT,
  on_error    TEXT NOT NULL CHECK (on_error IN ('skip', 'fail')),
  max_jobs    INTEGER CHECK (max_jobs > 0),
  created_us  INTEGER NOT NULL,
  closed      INTEGER NOT NULL CHECK (closed IN (0, 1)),
  stopped     TEXT
) WITHOUT ROWID;

CREATE TABLE pauses (
  solver    TEXT UNIQUE,
  by        TEXT,
  since_us  INTEGER NOT NULL,
  note      TEXT
);

CREATE TABLE jobs (
  seq              INTEGER PRIMARY KEY,
  id               TEXT NOT NULL UNIQUE,
  state            TEXT NOT NULL CHECK (state IN ('queued', 'running', 'collecting', 'succeeded', 'failed', 'cancelled',
                                                  'rejected', 'skipped')),
  key              TEXT UNIQUE,
  name             TEXT NOT NULL,
  solver           TEXT NOT NULL,
  user             TEXT,
  project          TEXT,
  batch            TEXT REFERENCES batches (id),
  spec             BLOB NOT NULL,
  submitted_us     INTEGER NOT NULL,
  tries            INTEGER NOT NULL,
  interruptions    INTEGER NOT NULL,
  backoff_seconds  REAL NOT NULL,
  cancel           INTEGER NOT NULL CHECK (cancel IN (0, 1)),
  cause            TEXT CHECK (cause IN ('spawn', 'exit', 'signal', 'timeout', 'stalled', 'oom', 'check', 'server',
                                          'lost', 'unkillable', 'poison')),
  code             TEXT,
  message          TEXT,
  started_us       INTEGER,
  finished_us      INTEGER,
  manifest         BLOB,
  published        INTEGER NOT NULL CHECK (published IN (0, 1)),
  CHECK ((finished_us IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'rejected', 'skipped'))),
  CHECK ((cause IS NOT NULL) = (state = 'failed')),
  CHECK ((manifest IS NOT NULL) = (finished_us IS NOT NULL AND NOT published)),
  CHECK (finished_us IS NOT NULL OR NOT published)
);
CREATE INDEX jobs_live ON jobs (id) WHERE published = 0;
CREATE INDEX jobs_of_batch ON jobs (batch, seq) WHERE batch IS NOT NULL;
CREATE INDEX jobs_of_project ON jobs (project, seq) WHERE project IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished_us) WHERE finished_us IS NOT NULL;

CREATE TABLE attempts (
  job_id      TEXT NOT NULL REFERENCES jobs (id),
  n           INTEGER NOT NULL CHECK (n > 0),
  token       TEXT NOT NULL UNIQUE,
  host        TEXT NOT NULL,
  started_us  INTEGER NOT NULL,
  settings    BLOB NOT NULL,
  server      TEXT,
  port        INTEGER,
  argv        BLOB NOT NULL,
  pid         INTEGER,
  pid_start   INTEGER,
  boot_id     TEXT,
  facts       BLOB,
  cause       TEXT CHECK (cause IN ('spawn', 'exit', 'signal', 'timeout', 'stalled', 'oom', 'check', 'server',
                                     'lost', 'unkillable', 'poison')),
  code        TEXT,
  message     TEXT,
  PRIMARY KEY (job_id, n)
) WITHOUT ROWID;
"""

_STEPS: Final = {
    # What retention needs: the bytes that a result takes (NULL: not measured yet), and when its files were removed.
    4: """
ALTER TABLE jobs ADD COLUMN size_bytes INTEGER CHECK (size_bytes >= 0);
ALTER TABLE jobs ADD COLUMN removed_us INTEGER CHECK (removed_us IS NULL OR published);
CREATE INDEX jobs_kept ON jobs (finished_us, state, size_bytes) WHERE published = 1 AND removed_us IS NULL;
""",
    # Limits that people set, and the priority that a person gave a job (NULL: as asked).
    5: """
CREATE TABLE limits (
  name      TEXT PRIMARY KEY,
  value     INTEGER NOT NULL CHECK (value >= 0),
  by        TEXT,
  since_us  INTEGER NOT NULL,
  note      TEXT
) WITHOUT ROWID;
ALTER TABLE jobs ADD COLUMN priority INTEGER;
""",
    # How busy it was: sums over minutes, later over hours; and when a daemon was there to make them. The time of day is
    # what a row is called by, so one that was set lets two minutes share a row.
    6: """
CREATE TABLE lives (
  began_us  INTEGER PRIMARY KEY,
  seen_us   INTEGER NOT NULL CHECK (seen_us >= began_us)
);
CREATE TABLE usage (
  span_seconds  INTEGER NOT NULL CHECK (span_seconds IN (60, 3600)),
  start_us      INTEGER NOT NULL,
  sums          BLOB NOT NULL,
  PRIMARY KEY (span_seconds, start_us)
) WITHOUT ROWID;
""",
    # What pages of jobs need, so that the few are found among a million. Each holds little and is written rarely.
    7: """
CREATE INDEX jobs_of_user ON jobs (user, seq) WHERE user IS NOT NULL;
CREATE INDEX jobs_ended_badly ON jobs (seq, state, cause) WHERE finished_us IS NOT NULL AND state <> 'succeeded';
DROP INDEX jobs_live;
CREATE INDEX jobs_live ON jobs (seq, id) WHERE published = 0;
""",
    # The table of its solver, which attempts by the thousand share, stands once; what was never read is gone. Settings
    # that cannot be read stay as they are: their job is set aside.
    8: """
CREATE TABLE solver_tables (
  id    INTEGER PRIMARY KEY,
  body  BLOB NOT NULL
);
ALTER TABLE attempts ADD COLUMN solver_table INTEGER REFERENCES solver_tables (id);
INSERT INTO solver_tables (body)
SELECT DISTINCT CAST(json_extract(CAST(settings AS TEXT), '$.table') AS BLOB) FROM attempts
WHERE iif(json_valid(CAST(settings AS TEXT)), json_type(CAST(settings AS TEXT), '$.table'), '') = 'object';
UPDATE attempts SET
  solver_table = (SELECT id FROM solver_tables
                  WHERE body = CAST(json_extract(CAST(settings AS TEXT), '$.table') AS BLOB)),
  settings = CAST(json_set(CAST(settings AS TEXT), '$.table', json('{}')) AS BLOB)
WHERE iif(json_valid(CAST(settings AS TEXT)), json_type(CAST(settings AS TEXT), '$.table'), '') = 'object';
DELETE FROM meta WHERE name = 'hardened';
""",
    # What a job costs. Rows that grow and shrink again leave holes, so the bytes of manifests stand apart, and few at a
    # time. Tries are in the order of their jobs, so one page has those that run. Tokens are random, so an index of them
    # is written all over, and nobody asked it; nor are jobs without a key in one. A list after IN becomes a tree for
    # each row that is checked, which took longer than to write it. What may be long stands last.
    9: """
CREATE TABLE manifests (
  seq   INTEGER PRIMARY KEY REFERENCES jobs (seq),
  body  BLOB NOT NULL
);
INSERT INTO manifests SELECT seq, manifest FROM jobs WHERE manifest IS NOT NULL;

CREATE TABLE new_attempts (
  job           INTEGER NOT NULL REFERENCES jobs (seq),
  n             INTEGER NOT NULL CHECK (n > 0),
  token         TEXT NOT NULL,
  host          TEXT NOT NULL,
  started_us    INTEGER NOT NULL,
  server        TEXT,
  port          INTEGER,
  pid           INTEGER,
  pid_start     INTEGER,
  boot_id       TEXT,
  cause         TEXT CHECK (cause = 'spawn' OR cause = 'exit' OR cause = 'signal' OR cause = 'timeout' OR
                            cause = 'stalled' OR cause = 'oom' OR cause = 'check' OR cause = 'server' OR
                            cause = 'lost' OR cause = 'unkillable' OR cause = 'poison'),
  code          TEXT,
  message       TEXT,
  solver_table  INTEGER REFERENCES solver_tables (id),
  settings      BLOB NOT NULL,
  facts         BLOB,
  argv          BLOB NOT NULL,
  PRIMARY KEY (job, n)
) WITHOUT ROWID;
INSERT INTO new_attempts
SELECT seq, n, token, host, attempts.started_us, server, port, pid, pid_start, boot_id, attempts.cause, attempts.code,
       attempts.message, solver_table, settings, facts, argv
FROM jobs CROSS JOIN attempts ON job_id = id ORDER BY seq;
DROP TABLE attempts;
ALTER TABLE new_attempts RENAME TO attempts;

CREATE TABLE new_jobs (
  seq              INTEGER PRIMARY KEY,
  id               TEXT NOT NULL UNIQUE,
  state            TEXT NOT NULL CHECK (state = 'queued' OR state = 'running' OR state = 'collecting' OR
                                        state = 'succeeded' OR state = 'failed' OR state = 'cancelled' OR
                                        state = 'rejected' OR state = 'skipped'),
  published        INTEGER NOT NULL CHECK (published IN (0, 1)),
  tries            INTEGER NOT NULL,
  interruptions    INTEGER NOT NULL,
  backoff_seconds  REAL NOT NULL,
  cancel           INTEGER NOT NULL CHECK (cancel IN (0, 1)),
  priority         INTEGER,
  submitted_us     INTEGER NOT NULL,
  started_us       INTEGER,
  finished_us      INTEGER,
  removed_us       INTEGER,
  size_bytes       INTEGER CHECK (size_bytes >= 0),
  cause            TEXT CHECK (cause = 'spawn' OR cause = 'exit' OR cause = 'signal' OR cause = 'timeout' OR
                               cause = 'stalled' OR cause = 'oom' OR cause = 'check' OR cause = 'server' OR
                               cause = 'lost' OR cause = 'unkillable' OR cause = 'poison'),
  code             TEXT,
  key              TEXT,
  name             TEXT NOT NULL,
  solver           TEXT NOT NULL,
  user             TEXT,
  project          TEXT,
  batch            TEXT REFERENCES batches (id),
  message          TEXT,
  spec             BLOB NOT NULL,
  CHECK ((finished_us IS NULL) = (state = 'queued' OR state = 'running' OR state = 'collecting')),
  CHECK ((cause IS NOT NULL) = (state = 'failed')),
  CHECK (finished_us IS NOT NULL OR NOT published),
  CHECK (removed_us IS NULL OR published)
);
INSERT INTO new_jobs
SELECT seq, id, state, published, tries, interruptions, backoff_seconds, cancel, priority, submitted_us, started_us,
       finished_us, removed_us, size_bytes, cause, code, key, name, solver, user, project, batch, message, spec
FROM jobs;
DROP TABLE jobs;
ALTER TABLE new_jobs RENAME TO jobs;
CREATE UNIQUE INDEX jobs_of_key ON jobs (key) WHERE key IS NOT NULL;
CREATE INDEX jobs_live ON jobs (seq, id) WHERE published = 0;
CREATE INDEX jobs_of_batch ON jobs (batch, seq) WHERE batch IS NOT NULL;
CREATE INDEX jobs_of_project ON jobs (project, seq) WHERE project IS NOT NULL;
CREATE INDEX jobs_of_user ON jobs (user, seq) WHERE user IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished_us) WHERE finished_us IS NOT NULL;
CREATE INDEX jobs_kept ON jobs (finished_us, state, size_bytes) WHERE published = 1 AND removed_us IS NULL;
CREATE INDEX jobs_ended_badly ON jobs (seq, state, cause) WHERE finished_us IS NOT NULL AND state <> 'succeeded';
CREATE TRIGGER jobs_published AFTER UPDATE OF published ON jobs WHEN new.published
BEGIN
  DELETE FROM manifests WHERE seq = new.seq;
END;
""",
}

VERSION: Final = max(_STEPS)
"""What ``PRAGMA user_version`` of a database says that this program can use."""


def script(version: int) -> str:
    """SQL that brings a database from ``version`` (0: there is nothing yet) to ``VERSION``, in one transaction."""
    steps = [] if version else [_FIRST_SCHEMA]
    steps += [step for to, step in sorted(_STEPS.items()) if to > version]
    return f"BEGIN IMMEDIATE; {''.join(steps)} PRAGMA user_version = {VERSION}; COMMIT"
