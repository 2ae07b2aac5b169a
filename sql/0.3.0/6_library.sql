-- What the library does on changes and in the background.

-- Called for every row: it takes the session's settings as they are, and the library those that it needs.
CREATE OR REPLACE FUNCTION ner_retriever.on_change()
RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'ner_on_change';
ALTER FUNCTION ner_retriever.on_change() RESET ALL;
COMMENT ON FUNCTION ner_retriever.on_change() IS
'Tells a managed index of changed rows when the transaction commits; only its own triggers have an effect';

CREATE FUNCTION ner_retriever.has_uncommitted_changes(index_id integer)
RETURNS boolean
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'ner_has_uncommitted_changes_wrapper';
COMMENT ON FUNCTION ner_retriever.has_uncommitted_changes(integer) IS
'Whether this transaction has changed rows of a managed index that it will tell of when it commits';

CREATE FUNCTION ner_retriever.progress(
    index_id integer, OUT state text, OUT rows_waiting bigint, OUT last_error text
)
RETURNS SETOF record
LANGUAGE c STRICT ROWS 1
AS 'MODULE_PATHNAME', 'ner_progress_wrapper';
COMMENT ON FUNCTION ner_retriever.progress(integer) IS
'How far a managed index is now, whatever snapshot the transaction has';

-- What a trigger has to know of its index. A partition may have its columns in another order than its table.
CREATE FUNCTION ner_retriever.trigger_columns(
    index_id integer, relation oid, OUT owner oid, OUT key_numbers smallint[], OUT text_number smallint, OUT virtual boolean,
    OUT is_whole boolean
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
BEGIN
    SELECT m.base, m.key_numbers, m.column_number, c.relowner INTO i
    FROM ner_retriever.managed_index AS m JOIN pg_class AS c ON c.oid = m.base
    WHERE m.id = index_id
      AND (m.base = relation OR m.base IN (SELECT a.relid FROM pg_partition_ancestors(relation) AS a));
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT array_agg(p.attnum ORDER BY u.n) INTO key_numbers
    FROM unnest(i.key_numbers) WITH ORDINALITY AS u (number, n)
    JOIN pg_attribute AS b ON b.attrelid = i.base AND b.attnum = u.number
    JOIN pg_attribute AS p ON p.attrelid = relation AND p.attname = b.attname AND NOT p.attisdropped;
    SELECT p.attnum, p.attgenerated::text = 'v' INTO text_number, virtual
    FROM pg_attribute AS b JOIN pg_attribute AS p ON p.attrelid = relation AND p.attname = b.attname AND NOT p.attisdropped
    WHERE b.attrelid = i.base AND b.attnum = i.column_number;
    -- A key that has lost a column names no row.
    IF cardinality(key_numbers) = cardinality(i.key_numbers) THEN
        owner := i.relowner;
        is_whole := i.base = relation;
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.trigger_columns(integer, oid, OUT oid, OUT smallint[], OUT smallint, OUT boolean, OUT boolean) IS
'The columns of a table or partition that an index depends on; NULL if it is not the index''s';

CREATE FUNCTION ner_retriever.enqueue(index_id integer, keys text[], width integer)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- Taking a part of an array by its number would read the array from its start each time.
    INSERT INTO ner_retriever.pending (index_id, key)
    SELECT enqueue.index_id, ARRAY[u.part] FROM unnest(keys) AS u (part) WHERE width = 1
    UNION ALL
    SELECT enqueue.index_id, array_agg(u.part ORDER BY u.n)
    FROM unnest(keys) WITH ORDINALITY AS u (part, n) WHERE width > 1 GROUP BY (u.n - 1) / width
    UNION ALL SELECT enqueue.index_id, NULL WHERE keys IS NULL;
END;
COMMENT ON FUNCTION ner_retriever.enqueue(integer, text[], integer) IS
'Has rows looked at, whose keys stand one after the other; all rows without keys';

-- What follows is for the worker alone.

CREATE FUNCTION ner_retriever.count_as(owner oid, statement text)
RETURNS bigint
LANGUAGE c STRICT
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex' SET row_security = on
AS 'MODULE_PATHNAME', 'ner_count_as_wrapper';
COMMENT ON FUNCTION ner_retriever.count_as(oid, text) IS
'Runs a query with the rights of a role, which it cannot leave. Returns its first value';

CREATE FUNCTION ner_retriever.forget_dependency(object oid, referenced oid)
RETURNS void
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'ner_forget_dependency_wrapper';
COMMENT ON FUNCTION ner_retriever.forget_dependency(oid, oid) IS
'Has a table no longer dropped together with a column of another';

CREATE FUNCTION ner_retriever.target(index_id integer, OUT owner oid, OUT width integer, OUT is_whole boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT c.relowner, cardinality(i.key_numbers), i.memory IS NOT NULL AND NOT ner_retriever.hides_rows(i.base)
        AND ner_retriever.key_index(i.base, i.key_numbers) IS NOT NULL AND EXISTS (
            SELECT FROM pg_index AS x WHERE x.indrelid = i.memory AND x.indisprimary AND x.indisvalid)
    FROM ner_retriever.managed_index AS i
    JOIN pg_class AS c ON c.oid = i.base WHERE i.id = target.index_id;
END;
COMMENT ON FUNCTION ner_retriever.target(integer) IS
'The owner of an index''s table, the width of its key, and whether the index has all that it needs';

-- Names are in the database's encoding, which the library does not convert.
CREATE FUNCTION ner_retriever.run_statement(statement text, has_value boolean, OUT value bigint, OUT processed bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF has_value THEN
        EXECUTE statement INTO value;
    ELSE
        EXECUTE statement;
    END IF;
    GET DIAGNOSTICS processed = ROW_COUNT;
END
$$;
COMMENT ON FUNCTION ner_retriever.run_statement(text, boolean) IS
'Runs a statement; the first value of a query that gives a number, and the number of rows';

CREATE FUNCTION ner_retriever.start_worker()
RETURNS boolean
LANGUAGE c
AS 'MODULE_PATHNAME', 'ner_start_worker_wrapper';
COMMENT ON FUNCTION ner_retriever.start_worker() IS
'Has a worker look at the queue now; false if no background worker slot is free';

-- A table that is empty has nothing to compare. While others use the mentions they are left to a worker.
CREATE FUNCTION ner_retriever.forget_all(index_id integer)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tables text;
BEGIN
    SELECT string_agg(ner_retriever.name_of(g.relation), ', ') INTO tables
    FROM ner_retriever.managed_index AS i
    CROSS JOIN LATERAL (VALUES (i.mentions), (i.next_mentions), (i.memory), (i.next_memory)) AS g (relation)
    WHERE i.id = index_id AND g.relation IS NOT NULL;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', tables);
    EXECUTE format('TRUNCATE %s', tables);
    RETURN true;
EXCEPTION WHEN lock_not_available OR feature_not_supported THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION ner_retriever.forget_all(integer) IS
'Empties a managed index whose table has been truncated; false if that is left to a worker';
