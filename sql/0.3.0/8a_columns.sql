-- Follows what is dropped, and what is done to columns and partitions.

CREATE FUNCTION ner_retriever.after_drop()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    dropped oid[];
    i record;
BEGIN
    SELECT array_agg(objid) INTO dropped FROM pg_event_trigger_dropped_objects()
    WHERE classid = 'pg_class'::regclass AND objsubid = 0 AND object_type = 'table';
    IF dropped IS NOT NULL THEN
        BEGIN
            UPDATE ner_retriever.managed_index
            SET next_mentions = NULL, next_memory = NULL, next_fingerprint = NULL, next_dims = NULL, state = 'ready'
            WHERE next_mentions::oid = ANY (dropped) OR next_memory::oid = ANY (dropped);
            UPDATE ner_retriever.managed_index SET memory = NULL
            WHERE memory::oid = ANY (dropped) AND NOT (base::oid = ANY (dropped) OR mentions::oid = ANY (dropped));
            DELETE FROM ner_retriever.managed_index WHERE base::oid = ANY (dropped) OR mentions::oid = ANY (dropped);
        EXCEPTION WHEN serialization_failure THEN
            -- A worker has changed the row after this transaction began, and finds that the table is gone.
            PERFORM ner_retriever.wake();
        END;
    END IF;
    -- The column of the text alone: the mentions go with it, unless it is just changing its type.
    FOR i IN
        SELECT m.mentions FROM pg_event_trigger_dropped_objects() AS d
        JOIN ner_retriever.managed_index AS m ON m.base = d.objid AND m.column_number = d.objsubid
        WHERE d.object_type = 'table column' AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = m.mentions)
    LOOP
        EXECUTE format('DROP TABLE %s', ner_retriever.name_of(i.mentions));
    END LOOP;
    -- A partition has the row trigger of its table, and no other sign of whose it was.
    FOR i IN
        SELECT DISTINCT m.id FROM pg_event_trigger_dropped_objects() AS d
        JOIN ner_retriever.managed_index AS m ON d.address_names[3] = format('ner_retriever_%s_change', m.id)
        WHERE d.object_type = 'trigger'
    LOOP
        PERFORM ner_retriever.request_pass(i.id);
    END LOOP;
    FOR i IN
        SELECT m.base, m."column", m.key FROM ner_retriever.managed_index AS m
        WHERE EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS d
                      WHERE d.object_type IN ('table constraint', 'index', 'table column'))
          AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = m.base)
          AND ner_retriever.key_index(m.base, m.key_numbers) IS NULL
    LOOP
        RAISE WARNING 'table % is no longer indexed: its key (%) has no unique index any more', i.base,
            array_to_string(i.key, ', ')
            USING HINT = format('Make one, and it goes on; or call ner_drop_index(%L, %L).', i.base, i."column");
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_drop() IS
'Forgets managed indexes whose tables are gone, and says which ones cannot go on';

-- Whatever belongs to an index that is gone goes when it goes. What a worker has locked is left to it.
CREATE FUNCTION ner_retriever.forget_index()
RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    DELETE FROM ner_retriever.pending WHERE ctid = ANY (ARRAY(
        SELECT p.ctid FROM ner_retriever.pending AS p WHERE p.index_id = OLD.id FOR UPDATE SKIP LOCKED));
    DELETE FROM ner_retriever.failed_row WHERE index_id = OLD.id;
    FOR t IN
        SELECT ner_retriever.name_of(g.tgrelid) AS name, g.tgname FROM pg_trigger AS g
        WHERE g.tgfoid = 'ner_retriever.on_change()'::regprocedure AND g.tgparentid = 0
          AND g.tgname IN (SELECT format('ner_retriever_%s_%s', OLD.id, kind)
                           FROM unnest(ARRAY['change', 'statement', 'truncate', 'insert', 'update']) AS kind)
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', t.tgname, t.name);
    END LOOP;
    FOR t IN
        SELECT DISTINCT c.oid FROM pg_class AS c
        WHERE c.oid IN (OLD.next_mentions, OLD.memory, OLD.next_memory)
    LOOP
        IF ner_retriever.name_of(t.oid) IS NOT NULL THEN
            EXECUTE format('DROP TABLE IF EXISTS %s', ner_retriever.name_of(t.oid));
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ner_retriever.forget_index() IS
'Drops what is left of a managed index';
CREATE TRIGGER forget_index AFTER DELETE ON ner_retriever.managed_index
    FOR EACH ROW EXECUTE FUNCTION ner_retriever.forget_index();

-- The indexes of a table, of the tables that it is a partition of, and those whose own tables these are.
CREATE FUNCTION ner_retriever.indexes_of(relations oid[])
RETURNS SETOF ner_retriever.managed_index
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT i.* FROM ner_retriever.managed_index AS i
    WHERE ARRAY[i.base, i.mentions, i.next_mentions, i.memory, i.next_memory]::oid[] && relations
       OR i.base IN (SELECT a.relid FROM unnest(relations) AS r (relation) CROSS JOIN LATERAL pg_partition_ancestors(r.relation) AS a);
END;
COMMENT ON FUNCTION ner_retriever.indexes_of(oid[]) IS
'The managed indexes that a change of relations may concern';

CREATE FUNCTION ner_retriever.with_heirs(relation oid)
RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH RECURSIVE heirs (relation) AS (
        SELECT with_heirs.relation
        UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN heirs AS h ON i.inhparent = h.relation)
    SELECT h.relation FROM heirs AS h;
END;
COMMENT ON FUNCTION ner_retriever.with_heirs(oid) IS
'A table, its partitions and the tables that inherit from it';

-- PostgreSQL changes or drops no column that a policy names, and changes the type of none that a table depends
-- on: both make way, and after_column_change makes them again. Called by the library as such a statement begins.
CREATE FUNCTION ner_retriever.before_column_change(relation oid)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT g.mentions::oid AS mentions FROM ner_retriever.managed_index AS i
        CROSS JOIN LATERAL (VALUES (i.mentions), (i.next_mentions)) AS g (mentions)
        WHERE i.base IN (SELECT h FROM ner_retriever.with_heirs(relation) AS h)
          AND EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = g.mentions AND p.polname = 'readers_of_the_text')
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS readers_of_the_text ON %s', ner_retriever.name_of(t.mentions));
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.before_column_change(oid) IS
'Takes away the policies that would keep a column from being changed';

CREATE FUNCTION ner_retriever.before_type_change(relation oid)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT g.mentions::oid AS mentions, i.base::oid AS base FROM ner_retriever.managed_index AS i
        CROSS JOIN LATERAL (VALUES (i.mentions), (i.next_mentions)) AS g (mentions)
        WHERE g.mentions IS NOT NULL AND i.base IN (SELECT h FROM ner_retriever.with_heirs(relation) AS h)
    LOOP
        PERFORM ner_retriever.forget_dependency(t.mentions, t.base);
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.before_type_change(oid) IS
'Takes away the dependencies that would keep a column from changing its type';

-- A key that has another type has it among the mentions and in the memory, too. The vector index is built again
-- in the background: nobody's ALTER TABLE waits for that.
CREATE FUNCTION ner_retriever.after_column_change(relation oid)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    t record;
    changed boolean;
BEGIN
    FOR i IN
        SELECT m.*, c.relowner AS owner FROM ner_retriever.managed_index AS m JOIN pg_class AS c ON c.oid = m.base
        WHERE m.base IN (SELECT h FROM ner_retriever.with_heirs(relation) AS h)
    LOOP
        FOR t IN SELECT * FROM ner_retriever.key_type_changes(i.id) LOOP
            changed := true;
            FOR t IN
                SELECT format('DROP INDEX %s', ner_retriever.name_of(x.indexrelid)) AS statement
                FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid JOIN pg_am AS a ON a.oid = c.relam
                WHERE x.indrelid IN (i.mentions, i.next_mentions) AND a.amname = 'hnsw'
            LOOP
                EXECUTE t.statement;
            END LOOP;
        END LOOP;
        BEGIN
            FOR t IN SELECT * FROM ner_retriever.key_type_changes(i.id) LOOP
                PERFORM ner_retriever.execute_as(i.owner, t.conversion);
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            -- Keys that cannot be converted so: all rows are embedded again.
            FOR t IN SELECT * FROM ner_retriever.key_type_changes(i.id) LOOP
                PERFORM ner_retriever.execute_as(i.owner, format('DELETE FROM %s', t.name));
                PERFORM ner_retriever.execute_as(i.owner, t.replacement);
            END LOOP;
        END;
        IF changed THEN
            INSERT INTO ner_retriever.pending (index_id) VALUES (i.id);
            PERFORM ner_retriever.wake();
        END IF;
        FOR t IN
            SELECT g.mentions FROM (VALUES (i.mentions), (i.next_mentions)) AS g (mentions)
            JOIN pg_class AS c ON c.oid = g.mentions
            WHERE NOT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = g.mentions AND p.polname = 'readers_of_the_text')
        LOOP
            PERFORM ner_retriever.create_policy(i.base, i."column", i.key_numbers, t.mentions);
        END LOOP;
        PERFORM ner_retriever.adopt(i.id);
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_column_change(oid) IS
'Makes again what before_column_change and before_type_change took away, for the columns as they are now';

CREATE FUNCTION ner_retriever.key_type_changes(
    index_id integer, OUT name text, OUT conversion text, OUT replacement text
)
RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT ner_retriever.name_of(g.relation),
           format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING format(''%%s'', %2$I)::%3$s',
               ner_retriever.name_of(g.relation), o.attname, d.type || d.collation),
           format('ALTER TABLE %s DROP COLUMN %I, ADD COLUMN %2$I %s NOT NULL',
               ner_retriever.name_of(g.relation), o.attname, d.type || d.collation)
    FROM ner_retriever.managed_index AS i
    CROSS JOIN LATERAL (VALUES (i.mentions), (i.memory), (i.next_mentions), (i.next_memory)) AS g (relation)
    CROSS JOIN LATERAL ner_retriever.column_definitions(i.base, i.key) AS d
    JOIN pg_attribute AS b ON b.attrelid = i.base AND b.attname = i.key[d.n]
    JOIN LATERAL (SELECT a.attname, a.atttypid, a.atttypmod, a.attcollation, row_number() OVER (ORDER BY a.attnum) AS n FROM pg_attribute AS a
                  WHERE a.attrelid = g.relation AND a.attnum > 0 AND NOT a.attisdropped) AS o ON o.n = d.n
    WHERE i.id = key_type_changes.index_id AND g.relation IS NOT NULL
      AND (o.atttypid, o.atttypmod, o.attcollation) IS DISTINCT FROM (b.atttypid, b.atttypmod, b.attcollation);
END;
COMMENT ON FUNCTION ner_retriever.key_type_changes(integer) IS
'Statements that give the key''s columns of an index the types that they have in the table';

CREATE FUNCTION ner_retriever.after_tree_change(relation oid)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
BEGIN
    FOR i IN SELECT m.id FROM ner_retriever.indexes_of(ARRAY[relation]) AS m WHERE m.mode <> 'manual' LOOP
        PERFORM ner_retriever.create_triggers(i.id);
        PERFORM ner_retriever.adopt(i.id);
        PERFORM ner_retriever.request_pass(i.id);
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_tree_change(oid) IS
'Has a table compared, and its new partitions tell of changes';

-- Reading what a statement is takes the library.
CREATE FUNCTION ner_retriever.around_alter()
RETURNS event_trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'ner_around_alter';
COMMENT ON FUNCTION ner_retriever.around_alter() IS
'Calls the functions above for the statements that they are for';
