-- The functions that people call. They run with the caller's rights.

CREATE FUNCTION @extschema@.ner_index(
    "table" regclass, "column" name, key name[] DEFAULT NULL,
    mode text DEFAULT 'deferred', storage text DEFAULT 'halfvec'
)
RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    engine record;
    mentions regclass;
    nullable name;
    table_name text;
    index_id integer;
BEGIN
    IF mode IS NULL OR mode NOT IN ('deferred', 'immediate', 'manual') THEN
        RAISE EXCEPTION 'unknown mode "%"', mode USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Modes are deferred, immediate and manual.';
    END IF;
    IF storage IS NULL OR storage NOT IN ('halfvec', 'vector') THEN
        RAISE EXCEPTION 'unknown storage "%"', storage USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Storages are halfvec and vector.';
    END IF;
    IF "table" IS NULL OR "column" IS NULL THEN
        RAISE EXCEPTION 'table and column must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM ner_retriever.check_table("table", "column");
    IF EXISTS (SELECT FROM ner_retriever.managed_index AS i
               WHERE i.base = "table" AND i."column" = ner_index."column") THEN
        RAISE EXCEPTION 'column % of table % already has a managed index', quote_ident("column"), "table"
            USING ERRCODE = 'duplicate_object',
                  HINT = format('Call ner_drop_index(%L, %L) first, or ner_reindex.', "table", "column");
    END IF;
    IF key IS NULL THEN
        SELECT array_agg(a.attname ORDER BY u.n) INTO key
        FROM pg_constraint AS c
        CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY AS u (number, n)
        JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = u.number
        WHERE c.conrelid = "table" AND c.contype = 'p';
        IF key IS NULL THEN
            RAISE EXCEPTION 'table % has no primary key', "table"
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = 'Add one, or name the columns of a unique constraint: key => ARRAY[''column''].';
        END IF;
    END IF;
    -- The number of dimensions; an engine that cannot run is told here and not in the background.
    SELECT * INTO engine FROM ner_retriever.type_query('entity');
    SELECT c.relname || '_' || ner_index."column" || '_mentions' INTO table_name
    FROM pg_class AS c WHERE c.oid = "table";
    IF octet_length(table_name) > 63 THEN
        -- 11 characters of at most 4 bytes leave room for what makes the name unique.
        table_name := left(table_name, 11) || '_' || left(md5(table_name), 8) || '_mentions';
    END IF;
    SELECT min(a.attname) INTO nullable
    FROM pg_attribute AS a WHERE a.attrelid = "table" AND a.attname = ANY (key) AND NOT a.attnotnull;
    IF nullable IS NOT NULL THEN
        RAISE EXCEPTION 'column % of the key may be NULL', quote_ident(nullable)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('Rows without a key cannot be found again: ALTER TABLE %s ALTER COLUMN %I SET NOT NULL.',
                      "table", nullable);
    END IF;
    mentions := ner_retriever.create_mentions("table", table_name::name, key, storage, engine.dims);
    PERFORM ner_retriever.check_mentions("table", mentions, storage);
    INSERT INTO ner_retriever.managed_index (base, "column", mentions, mode, storage, dims, fingerprint)
    VALUES ("table", "column", mentions, mode, storage, engine.dims, engine.fingerprint)
    RETURNING id INTO index_id;
    PERFORM ner_retriever.share_mentions("table", "column", mentions);
    PERFORM ner_retriever.create_triggers(index_id);
    PERFORM ner_retriever.adopt(index_id);
    PERFORM ner_retriever.wake();
    RETURN mentions;
END
$$;
COMMENT ON FUNCTION @extschema@.ner_index(regclass, name, name[], text, text) IS
'Keeps a text column searchable by entity type from now on; ner_search searches it. Returns the table of its mentions';

CREATE FUNCTION @extschema@.ner_drop_index("table" regclass, "column" name DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    -- Its triggers depend on it, and an event trigger clears the catalogue.
    EXECUTE format('DROP TABLE %s', i.mentions);
END
$$;
COMMENT ON FUNCTION @extschema@.ner_drop_index(regclass, name) IS
'Drops a managed index with all its mentions';

CREATE FUNCTION @extschema@.ner_refresh(
    "table" regclass, filter text DEFAULT NULL, "column" name DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql
-- Keys are written as the triggers write them; the search_path stays the caller's, for the condition.
SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET timezone = 'UTC'
SET extra_float_digits = 1 SET bytea_output = 'hex'
AS $$
DECLARE
    statement text;
    rows_enqueued bigint;
BEGIN
    statement := ner_retriever.refresh_statement("table", filter, "column");
    EXECUTE statement;
    GET DIAGNOSTICS rows_enqueued = ROW_COUNT;
    PERFORM ner_retriever.wake();
    RETURN rows_enqueued;
END
$$;
COMMENT ON FUNCTION @extschema@.ner_refresh(regclass, text, name) IS
'Enqueues rows of a table to be embedded anew: all, or those that satisfy a condition. Returns their number';

CREATE FUNCTION ner_retriever.refresh_statement("table" regclass, filter text, "column" name)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    PERFORM ner_retriever.check_row_security("table");
    RETURN (SELECT enqueue_all FROM ner_retriever.statements(i.id))
        || coalesce(' WHERE (' || filter || ')', '');
END
$$;
COMMENT ON FUNCTION ner_retriever.refresh_statement(regclass, text, name) IS
'What ner_refresh runs';

CREATE FUNCTION @extschema@.ner_retry_failed("table" regclass, "column" name DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
    retried bigint;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    WITH failed AS (DELETE FROM ner_retriever.failed_row WHERE index_id = i.id RETURNING key)
    INSERT INTO ner_retriever.pending (index_id, key) SELECT i.id, key FROM failed;
    GET DIAGNOSTICS retried = ROW_COUNT;
    PERFORM ner_retriever.wake();
    RETURN retried;
END
$$;
COMMENT ON FUNCTION @extschema@.ner_retry_failed(regclass, name) IS
'Enqueues the failed rows of a managed index once more. Returns their number';

CREATE FUNCTION @extschema@.ner_reindex("table" regclass, "column" name DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
    engine record;
    started regclass;
    name text;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    SELECT * INTO engine FROM ner_retriever.type_query('entity');
    SELECT next_mentions INTO started FROM ner_retriever.managed_index WHERE id = i.id FOR UPDATE;
    IF started IS NOT NULL THEN
        -- Begun before, perhaps for another model.
        UPDATE ner_retriever.managed_index
        SET next_mentions = NULL, next_fingerprint = NULL, next_dims = NULL WHERE id = i.id;
        EXECUTE format('DROP TABLE %s', started);
    END IF;
    -- It is renamed when it takes the old one's place.
    name := 'ner_retriever_' || i.id || '_' || left(md5(random()::text), 8);
    started := ner_retriever.create_mentions(
        "table", name::name,
        (SELECT array_agg(base_column ORDER BY "position")
         FROM ner_retriever.key_columns(i.base, i.mentions)),
        i.storage, engine.dims);
    PERFORM ner_retriever.share_mentions("table", i."column", started);
    UPDATE ner_retriever.managed_index
    SET next_mentions = started, next_fingerprint = engine.fingerprint, next_dims = engine.dims,
        state = 'new', paused_until = NULL, pauses = 0, last_error = NULL, last_error_at = NULL
    WHERE id = i.id;
    PERFORM ner_retriever.adopt(i.id);
    PERFORM ner_retriever.wake();
END
$$;
COMMENT ON FUNCTION @extschema@.ner_reindex(regclass, name) IS
'Embeds all rows of a managed index anew with the present model, in the background, into a table that then takes the place of the old one';

CREATE FUNCTION @extschema@.ner_wait(
    "table" regclass, timeout interval DEFAULT '1 hour', "column" name DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
    deadline timestamptz := clock_timestamp() + timeout;
    progress record;
BEGIN
    i := ner_retriever.find("table", "column");
    -- Of this transaction: nobody else sees it before the end. (xmin is the last 32 bits of a number.)
    IF EXISTS (SELECT FROM (SELECT xmin FROM ner_retriever.managed_index WHERE id = i.id UNION ALL
                            SELECT xmin FROM ner_retriever.pending WHERE index_id = i.id) AS written
               WHERE xmin = pg_current_xact_id_if_assigned()::xid) THEN
        RAISE EXCEPTION 'this transaction has changes of table % that cannot be indexed before it commits', "table"
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Call ner_wait after COMMIT.';
    END IF;
    LOOP
        SELECT state, rows_waiting, last_error INTO progress
        FROM ner_retriever.indexes WHERE id = i.id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the managed index of table % was dropped', "table"
                USING ERRCODE = 'undefined_object';
        ELSIF progress.state = 'ready' AND progress.rows_waiting = 0 THEN
            RETURN true;
        ELSIF clock_timestamp() >= deadline THEN
            RAISE NOTICE 'table % is still being indexed (%), % rows wait%', "table", progress.state,
                progress.rows_waiting, coalesce('; last error: ' || progress.last_error, '');
            RETURN false;
        END IF;
        PERFORM ner_retriever.start_worker();
        -- Counting a long queue takes time from those who empty it.
        PERFORM pg_sleep(least(0.02 + progress.rows_waiting / 1000.0, 1));
    END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.ner_wait(regclass, interval, name) IS
'Waits until a managed index has all committed changes; false if that takes longer than the timeout';
