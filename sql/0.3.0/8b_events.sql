-- Follows what else happens to the tables.

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
