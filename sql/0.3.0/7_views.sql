-- What people and ner_wait read.

-- Rows are known by the memory. It is counted as its owner, exactly up to some millions of rows.
CREATE FUNCTION ner_retriever.rows_known(memory oid)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c record;
BEGIN
    SELECT m.relowner, pg_relation_size(m.oid) AS bytes, m.reltuples INTO c
    FROM pg_class AS m JOIN ner_retriever.managed_index AS i ON m.oid IN (i.memory, i.next_memory)
    WHERE m.oid = rows_known.memory;
    IF NOT FOUND THEN
        RETURN 0;
    ELSIF c.bytes > 512 * 1024 * 1024 AND c.reltuples > 0 THEN
        RETURN c.reltuples::bigint;
    END IF;
    RETURN ner_retriever.count_as(c.relowner,
        format('SELECT count(*) FROM %s WHERE text_hash IS NOT NULL', ner_retriever.name_of(rows_known.memory)));
END
$$;
COMMENT ON FUNCTION ner_retriever.rows_known(oid) IS
'The number of rows that an index has';

CREATE VIEW ner_retriever.state WITH (security_barrier) AS
SELECT
    i.id,
    CASE
        -- now() stands still inside ner_wait.
        WHEN i.paused_until > pg_catalog.clock_timestamp() THEN 'paused'
        WHEN i.next_mentions IS NOT NULL THEN 'reindexing'
        WHEN i.state <> 'ready' THEN 'filling'
        WHEN w.changes > 0 OR i.pass = 'requested' OR NOT ner_retriever.is_known_place() THEN 'working'
        ELSE 'ready'
    END AS state,
    w.rows_waiting, w.rows_backfill, f.rows_failed,
    -- Of an index that works again it is past.
    CASE WHEN i.pauses > 0 THEN i.last_error END AS last_error
FROM ner_retriever.managed_index AS i
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS changes, pg_catalog.count(DISTINCT p.key_hash) AS rows_waiting,
           pg_catalog.count(*) FILTER (WHERE p.backfill) AS rows_backfill
    FROM ner_retriever.pending AS p WHERE p.index_id = i.id
) AS w
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS rows_failed
    FROM ner_retriever.failed_row AS r WHERE r.index_id = i.id
) AS f
WHERE pg_catalog.has_table_privilege(i.base, 'SELECT');
COMMENT ON VIEW ner_retriever.state IS
'What managed indexes of the tables that the current role may read are doing';

-- Stable: it reads with the snapshot of whoever calls it.
CREATE FUNCTION ner_retriever.progress_now(
    index_id integer, OUT state text, OUT rows_waiting bigint, OUT last_error bytea
)
RETURNS SETOF record
LANGUAGE sql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT s.state, s.rows_waiting, convert_to(s.last_error, getdatabaseencoding()) FROM ner_retriever.state AS s WHERE s.id = progress_now.index_id;
END;
COMMENT ON FUNCTION ner_retriever.progress_now(integer) IS
'What an index is doing, by the snapshot of the calling statement';

CREATE VIEW ner_retriever.indexes WITH (security_barrier) AS
SELECT
    i.id, i.base AS "table", i."column", i.mode, i.storage, i.mentions, s.state,
    k.rows_known AS rows_done,
    CASE
        WHEN i.state = 'new' THEN NULL
        WHEN i.state = 'filling' THEN GREATEST(i.rows_total, k.rows_known)
        ELSE k.rows_known + s.rows_failed
    END AS rows_total,
    s.rows_waiting, s.rows_failed,
    i.fingerprint,
    -- Unknown while no engine has a model.
    (SELECT i.fingerprint <> e.fingerprint FROM @extschema@.ner_engine_status() AS e) AS stale,
    i.dims, s.last_error, CASE WHEN i.pauses > 0 THEN i.last_error_at END AS last_error_at, i.created_at, i.reconciled_at
FROM ner_retriever.managed_index AS i
JOIN ner_retriever.state AS s ON s.id = i.id
CROSS JOIN LATERAL (SELECT CASE WHEN i.state = 'new' THEN 0
    ELSE ner_retriever.rows_known(COALESCE(i.next_memory, i.memory)) END AS rows_known) AS k;
COMMENT ON VIEW ner_retriever.indexes IS
'Managed indexes of the tables that the current role may read: what they are doing and how far';

CREATE VIEW ner_retriever.queue WITH (security_barrier) AS
SELECT
    i.base AS "table", i."column", pg_catalog.count(DISTINCT p.key_hash) AS depth,
    pg_catalog.now() - pg_catalog.min(p.enqueued_at) AS oldest,
    pg_catalog.count(p.id) FILTER (WHERE p.attempts > 0) AS retrying
FROM ner_retriever.managed_index AS i
LEFT JOIN ner_retriever.pending AS p ON p.index_id = i.id
WHERE pg_catalog.has_table_privilege(i.base, 'SELECT')
GROUP BY i.id, i.base, i."column";
COMMENT ON VIEW ner_retriever.queue IS
'Rows that wait to be embedded, by index';

CREATE VIEW ner_retriever.failed WITH (security_barrier) AS
SELECT i.base AS "table", i."column", f.key, f.attempts, f.sqlstate, f.message, f.failed_at
FROM ner_retriever.failed_row AS f
JOIN ner_retriever.managed_index AS i ON i.id = f.index_id
WHERE ner_retriever.owns(i.base);
COMMENT ON VIEW ner_retriever.failed IS
'Rows of the current role''s tables that could not be embedded; ner_retry_failed tries again';

GRANT SELECT ON ner_retriever.state, ner_retriever.indexes, ner_retriever.queue, ner_retriever.failed TO PUBLIC;
