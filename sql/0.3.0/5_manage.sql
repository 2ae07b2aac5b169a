-- The functions that people call. They run with the caller's rights.

CREATE OR REPLACE FUNCTION @extschema@.ner_index(
    "table" regclass, "column" name, key name[] DEFAULT NULL,
    mode text DEFAULT 'deferred', storage text DEFAULT 'halfvec'
)
RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    engine record;
    mentions regclass;
    table_name text;
    index_id integer;
    numbers smallint[];
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
        WHERE c.conrelid = "table" AND c.contype = 'p' AND NOT c.condeferrable;
        IF key IS NULL THEN
            RAISE EXCEPTION 'table % has no primary key', "table"
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = 'Add one, or name the columns of a unique constraint: key => ARRAY[''column''].';
        END IF;
    END IF;
    PERFORM ner_retriever.check_key_columns("table", key);
    -- The number of dimensions; an engine that cannot run is told here and not in the background.
    SELECT * INTO engine FROM ner_retriever.type_query('entity');
    SELECT c.relname || '_' || ner_index."column" || '_mentions' INTO table_name
    FROM pg_class AS c WHERE c.oid = "table";
    IF octet_length(table_name) > 63 THEN
        -- 11 characters of at most 4 bytes leave room for what makes the name unique.
        table_name := left(table_name, 11) || '_' || left(encode(sha256(convert_to(table_name, getdatabaseencoding())), 'hex'), 8)
            || '_mentions';
    END IF;
    mentions := ner_retriever.create_mentions("table", table_name::name, key, storage, engine.dims);
    SELECT array_agg(a.attnum ORDER BY u.n) INTO numbers FROM unnest(key) WITH ORDINALITY AS u (name, n)
    JOIN pg_attribute AS a ON a.attrelid = "table" AND a.attname = u.name;
    PERFORM ner_retriever.check_mentions("table", numbers, mentions, storage);
    INSERT INTO ner_retriever.managed_index (base, "column", key, mentions, mode, storage, dims, fingerprint)
    VALUES ("table", "column", key, mentions, mode, storage, engine.dims, engine.fingerprint)
    RETURNING id INTO index_id;
    PERFORM ner_retriever.share_mentions("table", "column", numbers, mentions);
    PERFORM ner_retriever.create_memory(index_id, false);
    PERFORM ner_retriever.follow_grants(ARRAY[index_id]);
    PERFORM ner_retriever.create_triggers(index_id);
    PERFORM ner_retriever.adopt(index_id);
    PERFORM ner_retriever.warn_of_publications("table", mentions);
    PERFORM ner_retriever.wake();
    RETURN mentions;
END
$$;

CREATE FUNCTION ner_retriever.warn_of_publications("table" regclass, mentions regclass)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    publications text;
BEGIN
    SELECT string_agg(quote_ident(pubname), ', ' ORDER BY pubname) INTO publications
    FROM pg_publication WHERE puballtables;
    IF publications IS NOT NULL THEN
        RAISE NOTICE 'table % is in publication % now', mentions, publications
            USING HINT = format('A subscription cannot go on without a table of that name: make the index on the subscriber, too: SELECT ner_index(%L, ...).', "table");
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.warn_of_publications(regclass, regclass) IS
'Says which publications have a new table because they have all';

CREATE OR REPLACE FUNCTION @extschema@.ner_refresh(
    "table" regclass, filter text DEFAULT NULL, "column" name DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql
-- Keys are written as the triggers write them; the search_path stays the caller's, for the condition.
SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET timezone = 'UTC'
SET extra_float_digits = 1 SET bytea_output = 'hex'
AS $$
DECLARE
    index_number integer := (ner_retriever.find("table", "column")).id;
    rows_enqueued bigint;
BEGIN
    IF filter IS NULL THEN
        -- However large the table is: comparing it finds what has changed, and what is no row any more.
        rows_enqueued := ner_retriever.count_rows("table");
        PERFORM @extschema@.ner_retry_failed("table", "column");
        INSERT INTO ner_retriever.pending (index_id) VALUES (index_number);
    ELSE
        EXECUTE ner_retriever.refresh_statement("table", filter, "column");
        GET DIAGNOSTICS rows_enqueued = ROW_COUNT;
    END IF;
    PERFORM ner_retriever.wake();
    RETURN rows_enqueued;
END
$$;
COMMENT ON FUNCTION @extschema@.ner_refresh(regclass, text, name) IS
'Enqueues rows of a table, all or those that satisfy a condition: what has changed is embedded. Returns their number';

CREATE FUNCTION ner_retriever.count_rows("table" regclass)
RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_counted bigint;
BEGIN
    PERFORM ner_retriever.check_owner("table");
    PERFORM ner_retriever.check_row_security("table");
    EXECUTE format('SELECT count(*) FROM %s', ner_retriever.own_rows("table")) INTO rows_counted;
    RETURN rows_counted;
END
$$;
COMMENT ON FUNCTION ner_retriever.count_rows(regclass) IS
'The number of rows that an index of a table has to have';

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
    PERFORM ner_retriever.check_key(i.id);
    -- The condition sees the table under its own name, and ends before what follows it.
    RETURN (
        SELECT format('INSERT INTO ner_retriever.pending (index_id, key) SELECT %s, ARRAY[%s] FROM %s AS %I%s',
            i.id, string_agg(format('pg_catalog.format(''%%s'', %I.%I)', c.relname, k.base_column), ', ' ORDER BY k."position"),
            ner_retriever.own_rows(i.base), c.relname, E' WHERE (' || filter || E'\n)')
        FROM pg_class AS c, ner_retriever.key_columns(i.base, i.key_numbers, i.mentions) AS k
        WHERE c.oid = i.base GROUP BY c.relname);
END
$$;
COMMENT ON FUNCTION ner_retriever.refresh_statement(regclass, text, name) IS
'What ner_refresh runs';

CREATE OR REPLACE FUNCTION @extschema@.ner_reindex("table" regclass, "column" name DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
    engine record;
    started record;
    next regclass;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    PERFORM ner_retriever.check_key(i.id);
    PERFORM ner_retriever.check_dependants(i.mentions);
    SELECT * INTO engine FROM ner_retriever.type_query('entity');
    SELECT next_mentions, next_memory INTO started FROM ner_retriever.managed_index WHERE id = i.id FOR UPDATE;
    IF started.next_mentions IS NOT NULL THEN
        -- Begun before, perhaps for another model.
        UPDATE ner_retriever.managed_index
        SET next_mentions = NULL, next_memory = NULL, next_fingerprint = NULL, next_dims = NULL WHERE id = i.id;
        EXECUTE format('DROP TABLE %s', started.next_mentions);
    END IF;
    -- It is renamed when it takes the old one's place.
    next := ner_retriever.create_mentions(
        "table", format('ner_retriever_%s_%s', i.id, left(replace(gen_random_uuid()::text, '-', ''), 8))::name,
        (SELECT m.key FROM ner_retriever.managed_index AS m WHERE m.id = i.id), i.storage, engine.dims);
    PERFORM ner_retriever.share_mentions("table", i."column", i.key_numbers, next);
    PERFORM ner_retriever.take_grants(i.mentions, next);
    UPDATE ner_retriever.managed_index
    SET next_mentions = next, next_memory = NULL, next_fingerprint = engine.fingerprint, next_dims = engine.dims,
        state = 'new', paused_until = NULL, pauses = 0, last_error = NULL, last_error_at = NULL
    WHERE id = i.id;
    PERFORM ner_retriever.create_memory(i.id, true);
    PERFORM ner_retriever.follow_grants(ARRAY[i.id]);
    PERFORM ner_retriever.adopt(i.id);
    PERFORM ner_retriever.warn_of_publications("table", next);
    PERFORM ner_retriever.wake();
END
$$;

-- The table of the old mentions is dropped in the end: what would keep it is told at once.
CREATE FUNCTION ner_retriever.check_dependants(mentions regclass)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    dependants text;
BEGIN
    SELECT string_agg(DISTINCT pg_describe_object(q.classid, q.objid, 0), ', ') INTO dependants
    FROM (
        -- A rule's view stands for it.
        SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END AS classid,
               coalesce(r.ev_class, d.objid) AS objid
        FROM pg_depend AS d LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        WHERE d.deptype = 'n' AND (
            d.refclassid = 'pg_class'::regclass AND d.refobjid = check_dependants.mentions
            OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (
                SELECT u.type FROM pg_type AS t CROSS JOIN LATERAL (VALUES (t.oid), (t.typarray)) AS u (type)
                WHERE t.typrelid = check_dependants.mentions)
            OR d.refclassid = 'pg_constraint'::regclass AND d.refobjid IN (
                SELECT k.oid FROM pg_constraint AS k WHERE k.conrelid = check_dependants.mentions))
    ) AS q
    WHERE NOT (q.classid = 'pg_class'::regclass AND q.objid = check_dependants.mentions)
      AND NOT (q.classid = 'pg_policy'::regclass AND EXISTS (
          SELECT FROM pg_policy AS p WHERE p.oid = q.objid AND p.polrelid = check_dependants.mentions))
      AND NOT (q.classid = 'pg_constraint'::regclass AND EXISTS (
          SELECT FROM pg_constraint AS k WHERE k.oid = q.objid AND k.conrelid = check_dependants.mentions));
    IF dependants IS NOT NULL THEN
        RAISE EXCEPTION 'cannot make the mentions in table % anew because other objects depend on it', mentions
            USING ERRCODE = 'dependent_objects_still_exist', DETAIL = dependants || '.',
                  HINT = 'Drop them first, and make them again when ner_wait says that the index is ready.';
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.check_dependants(regclass) IS
'An error that names what depends on a table of mentions';

CREATE FUNCTION ner_retriever.take_grants(old regclass, new regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g record;
BEGIN
    FOR g IN
        SELECT format('GRANT %s%s ON %s TO %s%s', a.privilege_type, a.columns, ner_retriever.name_of(new),
                   CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                   CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) AS statement
        FROM (
            SELECT x.privilege_type, '' AS columns, x.grantee, x.is_grantable, c.relowner
            FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS x WHERE c.oid = old
            UNION ALL
            SELECT x.privilege_type, format(' (%I)', t.attname), x.grantee, x.is_grantable, c.relowner
            FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid AND NOT t.attisdropped
            CROSS JOIN LATERAL aclexplode(t.attacl) AS x WHERE c.oid = old
              AND EXISTS (SELECT FROM pg_attribute AS w WHERE w.attrelid = new AND w.attname = t.attname)
        ) AS a
        WHERE a.grantee <> a.relowner
    LOOP
        EXECUTE g.statement;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.take_grants(regclass, regclass) IS
'Gives those who have rights on a table the same rights on another';

CREATE OR REPLACE FUNCTION @extschema@.ner_wait(
    "table" regclass, timeout interval DEFAULT '1 hour', "column" name DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
    deadline timestamptz := clock_timestamp() + timeout;
    progress record;
    has_slot boolean;
BEGIN
    i := ner_retriever.find("table", "column");
    -- Of this transaction: nobody else sees it before the end. (xmin is the last 32 bits of a number.)
    IF ner_retriever.has_uncommitted_changes(i.id) OR EXISTS (
        SELECT FROM (SELECT xmin FROM ner_retriever.managed_index WHERE id = i.id UNION ALL
                     SELECT xmin FROM ner_retriever.pending WHERE index_id = i.id) AS written
        WHERE xmin = pg_current_xact_id_if_assigned()::xid) THEN
        RAISE EXCEPTION 'this transaction has changes of table % that cannot be indexed before it commits', "table"
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Call ner_wait after COMMIT.';
    END IF;
    LOOP
        SELECT * INTO progress FROM ner_retriever.progress(i.id);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the managed index of table % was dropped', "table"
                USING ERRCODE = 'undefined_object';
        ELSIF progress.state = 'ready' THEN
            RETURN true;
        ELSIF clock_timestamp() >= deadline THEN
            RAISE NOTICE 'table % is still being indexed (%), % rows wait%', "table", progress.state,
                progress.rows_waiting, coalesce('; last error: ' || progress.last_error,
                    CASE WHEN NOT has_slot THEN '; no background worker slot is free, see max_worker_processes' END, '');
            RETURN false;
        END IF;
        has_slot := ner_retriever.start_worker();
        -- Counting a long queue takes time from those who empty it.
        PERFORM pg_sleep(least(0.02 + progress.rows_waiting / 1000.0, 1));
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.ner_retry_failed("table" regclass, "column" name DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
    retried bigint;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    WITH failed AS (DELETE FROM ner_retriever.failed_row WHERE index_id = i.id RETURNING key, text_hash)
    INSERT INTO ner_retriever.pending (index_id, key, text_hash) SELECT i.id, key, text_hash FROM failed;
    GET DIAGNOSTICS retried = ROW_COUNT;
    PERFORM ner_retriever.wake();
    RETURN retried;
END
$$;

-- One snapshot of both sides; whatever was missed, and for whatever reason, is in the difference.
CREATE FUNCTION @extschema@.ner_check(
    "table" regclass, "column" name DEFAULT NULL, OUT missing bigint, OUT stale bigint, OUT orphaned bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i ner_retriever.managed_index;
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_owner("table");
    PERFORM ner_retriever.check_row_security("table");
    PERFORM ner_retriever.check_key(i.id);
    EXECUTE format(
        'SELECT count(*) FILTER (WHERE q.is_missing), count(*) FILTER (WHERE q.is_stale), count(*) FILTER (WHERE q.is_orphaned)'
        ' FROM (%s) AS q', ner_retriever.difference_statement(i.id, false))
    INTO missing, stale, orphaned;
END
$$;
COMMENT ON FUNCTION @extschema@.ner_check(regclass, name) IS
'How many rows of a table a managed index lacks, has with a text that has changed, and has although they are gone: 0, 0, 0 when all is well';
