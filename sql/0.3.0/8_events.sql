-- Follows what happens to the tables.

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

CREATE FUNCTION ner_retriever.request_pass(index_id integer)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO ner_retriever.pending (index_id) SELECT i.id FROM ner_retriever.managed_index AS i
    WHERE i.id = request_pass.index_id AND i.mode <> 'manual';
    PERFORM ner_retriever.wake();
END
$$;
COMMENT ON FUNCTION ner_retriever.request_pass(integer) IS
'Has a table compared with the memory of its index';

CREATE FUNCTION ner_retriever.is_plain(relation oid)
RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = relation AND t.tgfoid <> 'ner_retriever.keep_local()'::regprocedure)
    AND NOT EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = relation AND (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL))
    AND NOT EXISTS (SELECT FROM pg_rewrite AS r WHERE r.ev_class = relation)
    AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conrelid = relation AND c.contype NOT IN ('p', 'n'))
    AND NOT EXISTS (SELECT FROM pg_attrdef AS d WHERE d.adrelid = relation)
    AND NOT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = relation AND p.polname <> 'readers_of_the_text')
    AND NOT EXISTS (SELECT FROM pg_statistic_ext AS s WHERE s.stxrelid = relation)
    AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE relation IN (h.inhrelid, h.inhparent));
COMMENT ON FUNCTION ner_retriever.is_plain(oid) IS
'Whether a table of the extension''s has nothing that runs code of its owner''s';

-- Names follow numbers.
CREATE FUNCTION ner_retriever.follow_names(index_id integer)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE ner_retriever.managed_index AS m SET "column" = q."column", key = q.key
    FROM (
        SELECT i.id, coalesce(
            (SELECT a.attname FROM pg_attribute AS a
             WHERE a.attrelid = i.base AND a.attnum = i.column_number AND NOT a.attisdropped), i."column") AS "column",
            coalesce(
            (SELECT array_agg(a.attname ORDER BY u.n) FROM unnest(i.key_numbers) WITH ORDINALITY AS u (number, n)
             JOIN pg_attribute AS a ON a.attrelid = i.base AND a.attnum = u.number AND NOT a.attisdropped
             HAVING count(*) = cardinality(i.key_numbers)), i.key) AS key
        FROM ner_retriever.managed_index AS i WHERE i.id = follow_names.index_id
    ) AS q
    WHERE m.id = q.id AND (m."column", m.key) IS DISTINCT FROM (q."column", q.key);
END;
COMMENT ON FUNCTION ner_retriever.follow_names(integer) IS
'Follows columns that have been renamed';

-- Only what runs no code of the old owner's with the rights of the new one.
CREATE FUNCTION ner_retriever.follow_owner(index_id integer)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT ner_retriever.name_of(c.oid) AS name, pg_get_userbyid(b.relowner) AS owner
        FROM ner_retriever.managed_index AS i
        JOIN pg_class AS b ON b.oid = i.base
        JOIN pg_class AS c ON c.oid IN (i.mentions, i.next_mentions, i.memory, i.next_memory) AND c.relowner <> b.relowner
        WHERE i.id = index_id AND ner_retriever.is_plain(c.oid)
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', t.name, t.owner);
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.follow_owner(integer) IS
'Gives the tables of an index to the owner of its table';

CREATE FUNCTION ner_retriever.after_alter()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    altered oid[];
    i record;
BEGIN
    -- In a dump the catalogue is still empty, or the tables are; in between what is said here does no harm.
    SELECT array_agg(DISTINCT q.relation) INTO altered
    FROM (SELECT coalesce(g.tgrelid, x.indrelid, d.objid) AS relation
          FROM pg_event_trigger_ddl_commands() AS d
          LEFT JOIN pg_trigger AS g ON d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
          LEFT JOIN pg_index AS x ON d.classid = 'pg_class'::regclass AND x.indexrelid = d.objid
          WHERE d.classid IN ('pg_class'::regclass, 'pg_trigger'::regclass)
          UNION ALL
          -- Keys of a type whose labels have changed are written in another way.
          SELECT m.base FROM pg_event_trigger_ddl_commands() AS d
          JOIN pg_attribute AS a ON d.classid = 'pg_type'::regclass AND a.atttypid = d.objid
          JOIN ner_retriever.managed_index AS m ON m.base = a.attrelid) AS q;
    FOR i IN SELECT * FROM ner_retriever.indexes_of(altered) LOOP
        BEGIN
            PERFORM ner_retriever.follow_names(i.id);
        EXCEPTION WHEN serialization_failure THEN
            -- A worker has changed the row after this transaction began, and follows the names itself.
            NULL;
        END;
        -- Only what happens to the table itself: whoever gives mentions away has done so on purpose.
        PERFORM ner_retriever.follow_owner(i.id) WHERE i.base::oid = ANY (altered);
        PERFORM ner_retriever.adopt(i.id);
        PERFORM ner_retriever.request_pass(i.id)
        WHERE i.base::oid = ANY (altered) OR EXISTS (
            SELECT FROM unnest(altered) AS r (relation) CROSS JOIN LATERAL pg_partition_ancestors(r.relation) AS a WHERE a.relid = i.base);
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_alter() IS
'Follows what is renamed or given away, and has tables compared that have changed';

-- Mentions go with the text's column, the memory with the mentions. Dumps do not keep such
-- dependencies, so they are added where they are missing.
CREATE FUNCTION ner_retriever.adopt(index_id integer)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    d record;
BEGIN
    FOR d IN
        SELECT 'pg_class'::regclass AS class, g.mentions::oid AS object,
               'pg_class'::regclass AS referenced_class, i.base::oid AS referenced, i.column_number::integer AS number
        FROM ner_retriever.managed_index AS i
        CROSS JOIN LATERAL (VALUES (i.mentions), (i.next_mentions)) AS g (mentions)
        WHERE i.id = adopt.index_id AND g.mentions IS NOT NULL AND i.column_number IS NOT NULL
        UNION ALL
        SELECT 'pg_class'::regclass, g.memory::oid, 'pg_class'::regclass, g.mentions::oid, 0
        FROM ner_retriever.managed_index AS i
        CROSS JOIN LATERAL (VALUES (i.mentions, i.memory), (i.next_mentions, i.next_memory)) AS g (mentions, memory)
        WHERE i.id = adopt.index_id AND g.mentions IS NOT NULL AND g.memory IS NOT NULL
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_depend AS p
            WHERE p.classid = d.class AND p.objid = d.object AND p.objsubid = 0
              AND p.refclassid = d.referenced_class AND p.refobjid = d.referenced
              AND p.refobjsubid = d.number AND p.deptype = 'a')
        THEN
            PERFORM ner_retriever.depend_on(d.class, d.object, d.referenced_class, d.referenced, d.number, true);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.adopt(integer) IS
'Ties what belongs to a managed index to its table';

-- Which table a GRANT is for, its event does not say: all of the grantor's are looked at. Who was given the right because of the
-- table loses it with the table's; rights that somebody has given by hand stay, and show nothing by themselves.
CREATE FUNCTION ner_retriever.follow_grants(index_ids integer[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
-- Whoever changes a table of mentions just now has no other GRANT wait for long.
SET lock_timeout = '100ms'
AS $$
DECLARE
    g record;
BEGIN
    FOR g IN
        WITH tables AS (
            SELECT i.id, i.readers, b.relacl, b.relowner, m.oid AS mentions, m.relacl AS acl
            FROM ner_retriever.managed_index AS i
            JOIN pg_class AS b ON b.oid = i.base
            JOIN pg_class AS m ON m.oid IN (i.mentions, i.next_mentions) AND m.relowner = b.relowner
            WHERE i.id = ANY (index_ids)
        )
        SELECT t.id, t.mentions::regclass AS mentions, r.name, true AS gains
        FROM tables AS t CROSS JOIN LATERAL ner_retriever.readers(t.relacl) AS r (name)
        WHERE r.name <> pg_get_userbyid(t.relowner) AND r.name NOT IN (SELECT ner_retriever.readers(t.acl))
        UNION
        SELECT t.id, t.mentions::regclass, r.name, false
        FROM tables AS t CROSS JOIN LATERAL ner_retriever.readers(t.acl) AS r (name)
        WHERE r.name = ANY (t.readers) AND r.name NOT IN (SELECT ner_retriever.readers(t.relacl))
    LOOP
        BEGIN
            EXECUTE format(CASE WHEN g.gains THEN 'GRANT SELECT ON %s TO %s' ELSE 'REVOKE SELECT ON %s FROM %s' END,
                ner_retriever.name_of(g.mentions), CASE g.name WHEN 'public' THEN 'PUBLIC' ELSE quote_ident(g.name) END);
            UPDATE ner_retriever.managed_index AS i
            SET readers = array_remove(i.readers, g.name) || CASE WHEN g.gains THEN ARRAY[g.name] ELSE '{}' END
            WHERE i.id = g.id;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'the readers of % are not all those of its table: %', g.mentions, SQLERRM;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.follow_grants(integer[]) IS
'Has the readers of indexed tables be those who may search them';

CREATE FUNCTION ner_retriever.after_grant()
RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = on
AS $$
BEGIN
    -- Those of the grantor: nobody's GRANT waits for somebody else's tables.
    PERFORM ner_retriever.follow_grants(ARRAY(SELECT i.id FROM ner_retriever.managed_index AS i));
END
$$;
COMMENT ON FUNCTION ner_retriever.after_grant() IS
'Follows who may read an indexed table';

CREATE EVENT TRIGGER ner_retriever_before_alter ON ddl_command_start
    WHEN tag IN ('ALTER TABLE') EXECUTE FUNCTION ner_retriever.around_alter();
CREATE EVENT TRIGGER ner_retriever_after_column_change ON ddl_command_end
    WHEN tag IN ('ALTER TABLE', 'CREATE TABLE') EXECUTE FUNCTION ner_retriever.around_alter();
CREATE EVENT TRIGGER ner_retriever_after_drop ON sql_drop EXECUTE FUNCTION ner_retriever.after_drop();
CREATE EVENT TRIGGER ner_retriever_after_alter ON ddl_command_end
    WHEN tag IN ('ALTER TABLE', 'CREATE TRIGGER', 'CREATE TABLE', 'CREATE INDEX', 'ALTER TYPE', 'ALTER DOMAIN')
    EXECUTE FUNCTION ner_retriever.after_alter();
CREATE EVENT TRIGGER ner_retriever_after_grant ON ddl_command_end
    WHEN tag IN ('GRANT', 'REVOKE', 'DROP OWNED') EXECUTE FUNCTION ner_retriever.after_grant();
-- Whoever loads as a replica changes tables, too.
ALTER EVENT TRIGGER ner_retriever_before_alter ENABLE ALWAYS;
ALTER EVENT TRIGGER ner_retriever_after_column_change ENABLE ALWAYS;
ALTER EVENT TRIGGER ner_retriever_after_drop ENABLE ALWAYS;
ALTER EVENT TRIGGER ner_retriever_after_alter ENABLE ALWAYS;
ALTER EVENT TRIGGER ner_retriever_after_grant ENABLE ALWAYS;
