\echo Use "ALTER EXTENSION ner_retriever UPDATE TO '0.2.0'" to load this file. \quit

-- What is managed, what waits and what failed: three tables whose rows belong to the owners of the
-- indexed tables (row-level security), and the views that people read.

-- Nothing that somebody else has created may take part in what follows.
SET LOCAL search_path = pg_catalog, pg_temp;

DROP FUNCTION @extschema@.ner_engine_status();
CREATE FUNCTION @extschema@.ner_engine_status(
    OUT state text,
    OUT pid integer,
    OUT model text,
    OUT head text,
    OUT fingerprint text,
    OUT device text,
    OUT block integer,
    OUT dimensions integer,
    OUT uptime interval,
    OUT requests bigint,
    OUT tokens bigint,
    OUT batches bigint,
    OUT merged_requests bigint,
    OUT queue_depth bigint,
    OUT resident_bytes bigint,
    OUT dtype text
)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL SAFE COST 1000 ROWS 1
AS 'MODULE_PATHNAME', 'ner_engine_status_wrapper';
COMMENT ON FUNCTION @extschema@.ner_engine_status() IS
'What the engine is doing (stopped, idle, loading or ready) and has done since its start; never starts it';

CREATE SCHEMA ner_retriever;
GRANT USAGE ON SCHEMA ner_retriever TO PUBLIC;
COMMENT ON SCHEMA ner_retriever IS 'What ner_retriever knows of its managed indexes';

CREATE FUNCTION ner_retriever.owns(relation oid)
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN pg_catalog.pg_has_role(
    current_user,
    (SELECT relowner FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) relation),
    'USAGE');
COMMENT ON FUNCTION ner_retriever.owns(oid) IS
'Whether the current role owns a relation; NULL if there is none';

CREATE TABLE ner_retriever.managed_index (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    base regclass NOT NULL,
    -- Its name now: an event trigger follows ALTER TABLE ... RENAME COLUMN.
    "column" name NOT NULL,
    mentions regclass NOT NULL UNIQUE,
    mode text NOT NULL CHECK (mode IN ('deferred', 'immediate', 'manual')),
    storage text NOT NULL CHECK (storage IN ('halfvec', 'vector')),
    dims integer NOT NULL CHECK (dims > 0),
    -- Of the model and head that made the mentions; one for the whole table.
    fingerprint text NOT NULL,
    -- Rows still have to be enqueued, embedded, indexed; or all of that is done.
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'filling', 'ready')),
    rows_total bigint NOT NULL DEFAULT 0,
    -- The table that ner_reindex fills, to take the place of mentions.
    next_mentions regclass UNIQUE,
    next_fingerprint text,
    next_dims integer,
    -- Why nothing is done at present: the engine cannot run, or is another model's.
    paused_until timestamptz,
    pauses integer NOT NULL DEFAULT 0,
    last_error text,
    last_error_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (base, "column")
);

CREATE TABLE ner_retriever.pending (
    index_id integer NOT NULL,
    backfill boolean NOT NULL DEFAULT false,
    id bigint GENERATED ALWAYS AS IDENTITY,
    key text[] NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    -- What users just changed goes before the backfill; one index serves this order, and no
    -- constraint makes one writer wait for another: a row that changes often is here often.
    PRIMARY KEY (index_id, backfill, id)
) WITH (
    -- A queue is all dead rows: the usual share of the table would be reached too late.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

CREATE TABLE ner_retriever.failed_row (
    index_id integer NOT NULL,
    key text[] NOT NULL,
    attempts integer NOT NULL,
    sqlstate text NOT NULL,
    message text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (index_id, key)
);

-- A managed index is its owner's. The worker is a superuser's process and sees all of them; what it
-- does to users' tables it does with their owner's rights.
ALTER TABLE ner_retriever.managed_index ENABLE ROW LEVEL SECURITY;
ALTER TABLE ner_retriever.pending ENABLE ROW LEVEL SECURITY;
ALTER TABLE ner_retriever.failed_row ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON ner_retriever.managed_index
    USING (ner_retriever.owns(base))
    WITH CHECK (ner_retriever.owns(base) AND ner_retriever.owns(mentions)
        AND (next_mentions IS NULL OR ner_retriever.owns(next_mentions)));
CREATE POLICY owner ON ner_retriever.pending
    USING (index_id IN (SELECT id FROM ner_retriever.managed_index));
CREATE POLICY owner ON ner_retriever.failed_row
    USING (index_id IN (SELECT id FROM ner_retriever.managed_index));
-- What the functions below write with the rights of an owner, and no more: a forged number, counter
-- or name of one's own index would be everybody's trouble in the worker and the event triggers.
GRANT SELECT, INSERT (base, "column", mentions, mode, storage, dims, fingerprint),
    UPDATE (state, next_mentions, next_fingerprint, next_dims, paused_until, pauses, last_error,
        last_error_at)
    ON ner_retriever.managed_index TO PUBLIC;
GRANT SELECT, INSERT (index_id, backfill, key), DELETE ON ner_retriever.pending TO PUBLIC;
GRANT SELECT, DELETE ON ner_retriever.failed_row TO PUBLIC;
-- For pg_dump --enable-row-security by the owner of a database: it needs nothing of a sequence but this.
GRANT SELECT ON SEQUENCE ner_retriever.managed_index_id_seq, ner_retriever.pending_id_seq TO PUBLIC;

-- A dump restores them; the mention tables are ordinary tables of their owners.
SELECT pg_catalog.pg_extension_config_dump('ner_retriever.managed_index', '');
SELECT pg_catalog.pg_extension_config_dump('ner_retriever.managed_index_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('ner_retriever.pending', '');
SELECT pg_catalog.pg_extension_config_dump('ner_retriever.pending_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('ner_retriever.failed_row', '');

-- Views check their owner's rights on tables, so that the policies above do not apply in them; what
-- a role may see is what their conditions say.
CREATE VIEW ner_retriever.readable_index WITH (security_barrier) AS
SELECT id, base, "column", mentions, mode, storage, dims, fingerprint
FROM ner_retriever.managed_index
WHERE pg_catalog.has_table_privilege(base, 'SELECT');
COMMENT ON VIEW ner_retriever.readable_index IS
'Managed indexes of the tables that the current role may read, without what has to be counted';

CREATE VIEW ner_retriever.indexes WITH (security_barrier) AS
SELECT
    i.id, i.base AS "table", i."column", i.mode, i.storage, i.mentions,
    CASE
        WHEN i.paused_until > pg_catalog.now() THEN 'paused'
        WHEN i.next_mentions IS NOT NULL THEN 'reindexing'
        WHEN i.state <> 'ready' THEN 'filling'
        WHEN w.rows_waiting > 0 THEN 'working'
        ELSE 'ready'
    END AS state,
    CASE
        WHEN i.state = 'new' THEN 0
        ELSE GREATEST(i.rows_total - w.rows_backfill - f.rows_failed, 0)
    END AS rows_done,
    CASE WHEN i.state = 'new' THEN NULL ELSE i.rows_total END AS rows_total,
    w.rows_waiting, f.rows_failed,
    i.fingerprint,
    -- Unknown while no engine has a model.
    (SELECT i.fingerprint <> e.fingerprint FROM @extschema@.ner_engine_status() AS e) AS stale,
    i.dims, i.last_error, i.last_error_at, i.created_at
FROM ner_retriever.managed_index AS i
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(DISTINCT p.key) AS rows_waiting,
           pg_catalog.count(DISTINCT p.key) FILTER (WHERE p.backfill) AS rows_backfill
    FROM ner_retriever.pending AS p WHERE p.index_id = i.id
) AS w
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS rows_failed
    FROM ner_retriever.failed_row AS r WHERE r.index_id = i.id
) AS f
WHERE pg_catalog.has_table_privilege(i.base, 'SELECT');
COMMENT ON VIEW ner_retriever.indexes IS
'Managed indexes of the tables that the current role may read: what they are doing and how far';

CREATE VIEW ner_retriever.queue WITH (security_barrier) AS
SELECT
    i.base AS "table", i."column", pg_catalog.count(p.id) AS depth,
    pg_catalog.now() - pg_catalog.min(p.enqueued_at) AS oldest,
    pg_catalog.count(p.id) FILTER (WHERE p.attempts > 0) AS retrying
FROM ner_retriever.managed_index AS i
LEFT JOIN ner_retriever.pending AS p ON p.index_id = i.id
WHERE pg_catalog.has_table_privilege(i.base, 'SELECT')
GROUP BY i.id, i.base, i."column";
COMMENT ON VIEW ner_retriever.queue IS
'Changes that wait to be embedded, by index';

CREATE VIEW ner_retriever.failed WITH (security_barrier) AS
SELECT i.base AS "table", i."column", f.key, f.attempts, f.sqlstate, f.message, f.failed_at
FROM ner_retriever.failed_row AS f
JOIN ner_retriever.managed_index AS i ON i.id = f.index_id
WHERE ner_retriever.owns(i.base);
COMMENT ON VIEW ner_retriever.failed IS
'Rows of the current role''s tables that could not be embedded; ner_retry_failed tries again';

CREATE VIEW ner_retriever.engine AS SELECT * FROM @extschema@.ner_engine_status();
COMMENT ON VIEW ner_retriever.engine IS 'What the engine is doing, from ner_engine_status()';

GRANT SELECT ON ner_retriever.readable_index, ner_retriever.indexes, ner_retriever.queue, ner_retriever.failed,
    ner_retriever.engine TO PUBLIC;
