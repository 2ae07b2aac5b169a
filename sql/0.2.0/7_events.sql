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
    UPDATE ner_retriever.managed_index
    SET next_mentions = NULL, next_fingerprint = NULL, next_dims = NULL, state = 'ready'
    WHERE next_mentions::oid = ANY (dropped);
    FOR i IN
        DELETE FROM ner_retriever.managed_index
        WHERE base::oid = ANY (dropped) OR mentions::oid = ANY (dropped) RETURNING *
    LOOP
        DELETE FROM ner_retriever.pending WHERE index_id = i.id;
        DELETE FROM ner_retriever.failed_row WHERE index_id = i.id;
        IF i.next_mentions IS NOT NULL AND EXISTS (SELECT FROM pg_class WHERE oid = i.next_mentions) THEN
            EXECUTE format('DROP TABLE %s', i.next_mentions);
        END IF;
    END LOOP;
    FOR i IN
        SELECT m.base, m."column" FROM pg_event_trigger_dropped_objects() AS d
        JOIN pg_class AS c ON c.relname = d.address_names[2]
        JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = d.address_names[1]
        JOIN ner_retriever.managed_index AS m ON m.mentions = c.oid
        WHERE d.classid = 'pg_constraint'::regclass
          AND NOT EXISTS (SELECT FROM ner_retriever.key_columns(m.base, m.mentions))
    LOOP
        RAISE WARNING 'table % is no longer indexed: the foreign key of its mentions is gone', i.base
            USING HINT = format('Call ner_drop_index(%L, %L) and ner_index again.', i.base, i."column");
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_drop() IS
'Forgets managed indexes whose tables are gone, and says which ones cannot go on';

CREATE FUNCTION ner_retriever.after_alter()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    altered oid[];
BEGIN
    SELECT array_agg(coalesce(t.tgrelid, d.objid)) INTO altered
    FROM pg_event_trigger_ddl_commands() AS d
    LEFT JOIN pg_trigger AS t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
    WHERE d.classid IN ('pg_class'::regclass, 'pg_trigger'::regclass);
    UPDATE ner_retriever.managed_index AS i SET "column" = a.attname
    FROM pg_depend AS d
    JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE i.base::oid = ANY (altered)
      AND d.classid = 'pg_class'::regclass AND d.objid = i.mentions
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.base AND d.refobjsubid > 0
      AND d.deptype = 'a' AND i."column" <> a.attname;
    -- The last that a dump brings are foreign keys of mentions, and triggers.
    PERFORM ner_retriever.adopt(i.id), ner_retriever.wake()
    FROM ner_retriever.managed_index AS i
    WHERE ARRAY[i.base, i.mentions, i.next_mentions]::oid[] && altered;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_alter() IS
'Follows a column that is renamed, and welcomes what a dump has brought';

-- Which table a GRANT is for, its event does not say: all are looked at whose owner the grantor may act for.
CREATE FUNCTION ner_retriever.after_grant()
RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Whoever changes a table of mentions just now has no other GRANT wait for long.
SET lock_timeout = '100ms'
AS $$
DECLARE
    g record;
BEGIN
    FOR g IN
        SELECT DISTINCT i.mentions,
               format('GRANT SELECT ON %I.%I TO %s', n.nspname, m.relname, CASE a.grantee
                   WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS statement
        FROM ner_retriever.managed_index AS i
        JOIN pg_class AS b ON b.oid = i.base
        JOIN pg_class AS m ON m.oid IN (i.mentions, i.next_mentions) AND m.relowner = b.relowner
        JOIN pg_namespace AS n ON n.oid = m.relnamespace
        CROSS JOIN LATERAL aclexplode(b.relacl) AS a
        WHERE a.privilege_type = 'SELECT' AND a.grantee <> b.relowner
          AND pg_has_role(current_user, b.relowner, 'USAGE')
          AND NOT EXISTS (SELECT FROM aclexplode(m.relacl) AS h
                          WHERE h.grantee = a.grantee AND h.privilege_type = 'SELECT')
    LOOP
        BEGIN
            EXECUTE g.statement;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'not all readers got the right to search %: %', g.mentions, SQLERRM;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.after_grant() IS
'Gives new readers of an indexed table the right to search it';

CREATE EVENT TRIGGER ner_retriever_after_drop ON sql_drop EXECUTE FUNCTION ner_retriever.after_drop();
CREATE EVENT TRIGGER ner_retriever_after_alter ON ddl_command_end
    WHEN tag IN ('ALTER TABLE', 'CREATE TRIGGER') EXECUTE FUNCTION ner_retriever.after_alter();
CREATE EVENT TRIGGER ner_retriever_after_grant ON ddl_command_end
    WHEN tag IN ('GRANT') EXECUTE FUNCTION ner_retriever.after_grant();
