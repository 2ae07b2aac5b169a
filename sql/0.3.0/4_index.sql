-- What a managed index is made of.

CREATE FUNCTION ner_retriever.find(
    "table" regclass, "column" name, OUT found ner_retriever.managed_index
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    columns name[];
BEGIN
    SELECT array_agg(i."column" ORDER BY i."column") INTO columns
    FROM ner_retriever.readable_index AS i
    WHERE i.base = find."table" AND (find."column" IS NULL OR i."column" = find."column");
    IF columns IS NULL THEN
        -- A table that may not be read has no row in the view; its error is that of reading it.
        IF NOT has_table_privilege("table", 'SELECT') THEN
            RAISE EXCEPTION 'permission denied for table %', "table"
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        RAISE EXCEPTION 'table % has no managed index%', "table", ' on column ' || quote_ident("column")
            USING ERRCODE = 'undefined_object',
                  HINT = format('Its owner can make one: SELECT ner_index(%L, ''column'').', "table");
    ELSIF cardinality(columns) > 1 THEN
        RAISE EXCEPTION 'table % has managed indexes on several columns: %',
            "table", array_to_string(columns, ', ')
            USING ERRCODE = 'ambiguous_parameter',
                  HINT = format('Name one: "column" => %L.', columns[1]);
    END IF;
    SELECT i.id, i.base, i."column", i.key_numbers, i.mentions, i.memory, i.next_mentions, i.next_memory, i.mode,
           i.storage, i.dims, i.fingerprint
    INTO found.id, found.base, found."column", found.key_numbers, found.mentions, found.memory, found.next_mentions,
         found.next_memory, found.mode, found.storage, found.dims, found.fingerprint
    FROM ner_retriever.readable_index AS i
    WHERE i.base = find."table" AND i."column" = columns[1];
END
$$;
COMMENT ON FUNCTION ner_retriever.find(regclass, name) IS
'The managed index of a table that the current role may read, or an error';

CREATE FUNCTION ner_retriever.check_key_columns("table" regclass, key name[])
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing name;
    nullable name;
    numbers smallint[];
BEGIN
    SELECT min(u.name) INTO missing FROM unnest(key) AS u (name)
    WHERE NOT EXISTS (SELECT FROM pg_attribute AS a
                      WHERE a.attrelid = "table" AND a.attname = u.name AND a.attnum > 0 AND NOT a.attisdropped);
    IF missing IS NOT NULL OR cardinality(key) = 0 THEN
        RAISE EXCEPTION 'column % of table % does not exist', quote_ident(missing), "table"
            USING ERRCODE = 'undefined_column';
    END IF;
    SELECT min(a.attname) INTO nullable
    FROM pg_attribute AS a WHERE a.attrelid = "table" AND a.attname = ANY (key) AND NOT a.attnotnull;
    IF nullable IS NOT NULL THEN
        RAISE EXCEPTION 'column % of the key may be NULL', quote_ident(nullable)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('Rows without a key cannot be found again: ALTER TABLE %s ALTER COLUMN %I SET NOT NULL.',
                      "table", nullable);
    END IF;
    SELECT array_agg(a.attnum) INTO numbers FROM pg_attribute AS a WHERE a.attrelid = "table" AND a.attname = ANY (key);
    IF ner_retriever.key_index("table", numbers) IS NULL THEN
        RAISE EXCEPTION 'there is no unique constraint matching given keys for referenced table %', "table"
            USING ERRCODE = 'invalid_foreign_key',
                  HINT = 'Name the columns of a primary key, or of a unique constraint that is not deferrable.';
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.check_key_columns(regclass, name[]) IS
'An error that says what to do unless columns are the key of a table';

-- The key has an index of its own: it may be as long as the table's takes, and nothing else fits beside it.
-- Two servers that replicate to each other number their mentions apart from the keys.
CREATE FUNCTION ner_retriever.create_mentions(
    "table" regclass, table_name name, key name[], storage text, dims integer
)
RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target text;
    columns text;
    names text;
    persistence text;
BEGIN
    SELECT format('%I.%I', n.nspname, table_name), CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' ELSE '' END
    INTO target, persistence
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = "table";
    IF to_regclass(target) IS NOT NULL THEN
        RAISE EXCEPTION 'relation % already exists', target
            USING ERRCODE = 'duplicate_table',
                  HINT = 'It holds mentions of an earlier index, or is yours: drop or rename it.';
    END IF;
    SELECT
        string_agg(format('%I %s%s NOT NULL, ', q.own, q.type, q.collation), '' ORDER BY q.n),
        string_agg(quote_ident(q.own), ', ' ORDER BY q.n)
    INTO columns, names
    FROM ner_retriever.column_definitions("table", key) AS q;
    EXECUTE format(
        'CREATE %s TABLE %s (%s mention text NOT NULL, start_char integer NOT NULL,'
        ' end_char integer NOT NULL, score real NOT NULL, embedding %s(%s) NOT NULL,'
        ' fingerprint text NOT NULL, mention_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)',
        persistence, target, columns, ner_retriever.vector_type(storage::name), dims);
    EXECUTE format('CREATE INDEX ON %s (%s)', target, names);
    PERFORM ner_retriever.keep_local(target);
    RETURN to_regclass(target);
END
$$;
COMMENT ON FUNCTION ner_retriever.create_mentions(regclass, name, name[], text, integer) IS
'The table for the mentions of an indexed table';

CREATE FUNCTION ner_retriever.column_definitions(
    "table" regclass, key name[], OUT n integer, OUT own name, OUT type text, OUT collation text
)
RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT u.n::integer,
           -- Columns of ours have these names.
           CASE WHEN u.name IN ('mention', 'start_char', 'end_char', 'score', 'embedding', 'fingerprint', 'mention_id')
                THEN ('key_' || u.name)::name ELSE u.name END,
           format_type(a.atttypid, a.atttypmod),
           CASE WHEN a.attcollation <> t.typcollation
                THEN format(' COLLATE %I.%I', s.nspname, o.collname) ELSE '' END
    FROM unnest(column_definitions.key) WITH ORDINALITY AS u (name, n)
    JOIN pg_attribute AS a ON a.attrelid = column_definitions."table" AND a.attname = u.name
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_collation AS o ON o.oid = a.attcollation
    LEFT JOIN pg_namespace AS s ON s.oid = o.collnamespace;
END;
COMMENT ON FUNCTION ner_retriever.column_definitions(regclass, name[]) IS
'The columns of a key, for another table';

CREATE FUNCTION ner_retriever.keep_local(target text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER ner_retriever_keep_local BEFORE INSERT OR UPDATE OR DELETE ON %s'
        ' FOR EACH ROW EXECUTE FUNCTION ner_retriever.keep_local()', target);
    EXECUTE format('ALTER TABLE %s ENABLE REPLICA TRIGGER ner_retriever_keep_local', target);
END
$$;
COMMENT ON FUNCTION ner_retriever.keep_local(text) IS
'Keeps what a subscription applies out of a table';

-- It stands in the extension's schema, where owners of tables cannot make one; nobody need look at it. Anyone
-- may have the memory made that an index lacks, and no other.
CREATE FUNCTION ner_retriever.create_memory(index_id integer, next boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    target text;
    columns text;
    names text;
BEGIN
    SELECT m.base, m.key, pg_get_userbyid(c.relowner) AS owner INTO i
    FROM ner_retriever.managed_index AS m JOIN pg_class AS c ON c.oid = m.base
    WHERE m.id = index_id AND CASE WHEN next THEN m.next_mentions IS NOT NULL AND m.next_memory IS NULL
                                   ELSE m.memory IS NULL END;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    target := format('ner_retriever.memory_%s_%s', index_id, left(replace(gen_random_uuid()::text, '-', ''), 8));
    SELECT string_agg(format('k%s %s%s NOT NULL, ', q.n, q.type, q.collation), '' ORDER BY q.n),
           string_agg(format('k%s', q.n), ', ' ORDER BY q.n)
    INTO columns, names
    FROM ner_retriever.column_definitions(i.base, i.key) AS q;
    EXECUTE format('CREATE TABLE %s (%s text_hash bytea, PRIMARY KEY (%s))', target, columns, names);
    EXECUTE format('CREATE INDEX ON %s (text_hash)', target);
    EXECUTE format('COMMENT ON TABLE %s IS %L', target, 'What ner_retriever has embedded of the rows of ' || i.base::text);
    PERFORM ner_retriever.keep_local(target);
    EXECUTE format('ALTER TABLE %s OWNER TO %I', target, i.owner);
    IF next THEN
        UPDATE ner_retriever.managed_index SET next_memory = target::regclass WHERE id = index_id;
    ELSE
        UPDATE ner_retriever.managed_index SET memory = target::regclass WHERE id = index_id;
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.create_memory(integer, boolean) IS
'Makes the table for what was embedded of the rows of an indexed table, if the index has none';

-- A mention is readable for whoever may read its text: the policy reads the row as the caller, with
-- the privileges and policies that hold for the caller there. A mention whose row is gone is not.
CREATE FUNCTION ner_retriever.create_policy("table" regclass, "column" name, key_numbers smallint[], mentions regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target text := ner_retriever.name_of(mentions);
    same_row text;
BEGIN
    SELECT string_agg(format('b.%I %s %s.%I', base_column, equality, target, mention_column), ' AND ')
    INTO same_row FROM ner_retriever.key_columns("table", key_numbers, mentions);
    IF same_row IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE POLICY readers_of_the_text ON %s FOR SELECT USING (EXISTS ('
        'SELECT FROM %s AS b WHERE %s AND b.%I IS NOT NULL))',
        target, ner_retriever.own_rows("table"), same_row, "column");
END
$$;
COMMENT ON FUNCTION ner_retriever.create_policy(regclass, name, smallint[], regclass) IS
'Shows mentions to the readers of their texts';

CREATE FUNCTION ner_retriever.readers(acl aclitem[])
RETURNS SETOF name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE a.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(a.grantee) END
    FROM aclexplode(acl) AS a WHERE a.privilege_type = 'SELECT';
END;
COMMENT ON FUNCTION ner_retriever.readers(aclitem[]) IS
'The roles that have been given SELECT; public for all';

CREATE FUNCTION ner_retriever.share_mentions("table" regclass, "column" name, key_numbers smallint[], mentions regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target text := ner_retriever.name_of(mentions);
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    PERFORM ner_retriever.create_policy("table", "column", key_numbers, mentions);
    EXECUTE format('ALTER TABLE %s OWNER TO %I', target,
        (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = "table"));
END
$$;
COMMENT ON FUNCTION ner_retriever.share_mentions(regclass, name, smallint[], regclass) IS
'Makes a table of mentions its table''s owner''s, and shows each mention to the readers of its text';

-- The table and, if it is partitioned, all that is below it. Row triggers of a partitioned table are those of
-- its partitions too; those for statements are not.
CREATE FUNCTION ner_retriever.tree(base oid)
RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT base UNION SELECT t.relid::oid FROM pg_partition_tree(base) AS t;
END;
COMMENT ON FUNCTION ner_retriever.tree(oid) IS
'A table with its partitions, of all levels';

-- Rows tell of themselves, whatever the statement names; they do so in the apply processes of subscriptions
-- and in loads with session_replication_role = replica, too. Makes what is missing, so that it is called
-- again after the tree has changed.
CREATE FUNCTION ner_retriever.create_triggers(index_id integer)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    t record;
BEGIN
    SELECT m.mode, m.base INTO i FROM ner_retriever.managed_index AS m WHERE m.id = index_id;
    FOR t IN
        SELECT ner_retriever.name_of(r.relation) AS name, format('ner_retriever_%s_%s', index_id, e.kind) AS trigger, e.events
        FROM ner_retriever.tree(i.base) AS r (relation)
        JOIN pg_class AS c ON c.oid = r.relation AND c.relkind IN ('r', 'p')
        CROSS JOIN (VALUES ('change', 'INSERT OR UPDATE OR DELETE', 'ROW'),
                           ('statement', 'INSERT OR UPDATE OR DELETE', 'STATEMENT'),
                           ('truncate', 'TRUNCATE', 'STATEMENT')) AS v (kind, event, level)
        CROSS JOIN LATERAL (SELECT v.kind, format('%s ON %s FOR EACH %s', v.event, ner_retriever.name_of(r.relation), v.level) AS events) AS e
        WHERE i.mode <> 'manual'
          AND (v.kind <> 'change' OR r.relation = i.base)
          -- What a statement has changed is embedded at its end.
          AND (v.kind <> 'statement' OR i.mode = 'immediate')
          AND NOT EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = r.relation
                          AND g.tgname = format('ner_retriever_%s_%s', index_id, e.kind))
    LOOP
        -- An event trigger may have been here meanwhile.
        CONTINUE WHEN EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = to_regclass(t.name) AND g.tgname = t.trigger);
        EXECUTE format('CREATE TRIGGER %I AFTER %s EXECUTE FUNCTION ner_retriever.on_change(%L, %L)',
            t.trigger, t.events, index_id, i.mode);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.name, t.trigger);
    END LOOP;
    -- Of partitions that have been detached.
    FOR t IN
        SELECT ner_retriever.name_of(g.tgrelid) AS name, g.tgname AS trigger FROM pg_trigger AS g
        WHERE g.tgname IN (format('ner_retriever_%s_statement', index_id), format('ner_retriever_%s_truncate', index_id))
          AND g.tgfoid = 'ner_retriever.on_change()'::regprocedure
          AND g.tgrelid NOT IN (SELECT r.relation FROM ner_retriever.tree(i.base) AS r (relation))
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', t.trigger, t.name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.create_triggers(integer) IS
'The triggers that tell a managed index of changes';
