-- Making, changing and dropping managed indexes. All of it runs with the caller's rights.

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
    SELECT i.id, i.base, i."column", i.mentions, i.mode, i.storage, i.dims, i.fingerprint
    INTO found.id, found.base, found."column", found.mentions, found.mode, found.storage, found.dims,
         found.fingerprint
    FROM ner_retriever.readable_index AS i
    WHERE i.base = find."table" AND i."column" = columns[1];
END
$$;
COMMENT ON FUNCTION ner_retriever.find(regclass, name) IS
'The managed index of a table that the current role may read, or an error';

CREATE FUNCTION ner_retriever.check_owner("table" regclass)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT ner_retriever.owns("table") THEN
        RAISE EXCEPTION 'must be owner of table %', "table"
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.check_owner(regclass) IS
'An error unless the current role owns a table';

CREATE FUNCTION ner_retriever.check_table("table" regclass, "column" name)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c record;
    category "char";
BEGIN
    SELECT relkind, relpersistence INTO c FROM pg_class WHERE oid = "table";
    IF c.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', "table"
            USING ERRCODE = 'wrong_object_type',
                  HINT = CASE c.relkind
                      WHEN 'v' THEN 'Index the table that the view reads.'
                      WHEN 'm' THEN 'Index the table that the materialized view reads.'
                      WHEN 'f' THEN 'Foreign rows change without notice: copy them into a table, or index them where they are.'
                      ELSE 'Name a table.'
                  END;
    END IF;
    PERFORM ner_retriever.check_owner("table");
    PERFORM ner_retriever.check_row_security("table");
    IF c.relpersistence = 't' THEN
        RAISE EXCEPTION 'table % is temporary', "table"
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'No other process can read it: store the result of ner_entity_embeddings in a temporary table instead.';
    END IF;
    SELECT t.typcategory INTO category
    FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = "table" AND a.attname = "column" AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'column % of table % does not exist', quote_ident("column"), "table"
            USING ERRCODE = 'undefined_column';
    ELSIF category <> 'S' THEN
        RAISE EXCEPTION 'column % of table % does not hold text', quote_ident("column"), "table"
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'Index a column of type text, varchar or char; a generated column can make one of others.';
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.check_table(regclass, name) IS
'An error that says what to do unless the current role can index a column';

CREATE FUNCTION ner_retriever.create_mentions(
    "table" regclass, table_name name, key name[], storage text, dims integer
)
RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target text;
    base text;
    columns text;
    names text;
    base_names text;
    persistence text;
BEGIN
    SELECT format('%I.%I', n.nspname, table_name), format('%I.%I', n.nspname, c.relname),
           CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' ELSE '' END
    INTO target, base, persistence
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = "table";
    IF to_regclass(target) IS NOT NULL THEN
        RAISE EXCEPTION 'relation % already exists', target
            USING ERRCODE = 'duplicate_table',
                  HINT = 'It holds mentions of an earlier index, or is yours: drop or rename it.';
    END IF;
    SELECT
        string_agg(format('%I %s%s NOT NULL, ', q.own, q.type, q.collation), '' ORDER BY q.n),
        string_agg(quote_ident(q.own), ', ' ORDER BY q.n),
        string_agg(quote_ident(q.name), ', ' ORDER BY q.n)
    INTO columns, names, base_names
    FROM (
        SELECT u.n, u.name, format_type(a.atttypid, a.atttypmod) AS type,
               -- Columns of ours have these names.
               CASE WHEN u.name IN ('mention', 'start_char', 'end_char', 'score', 'embedding', 'fingerprint')
                    THEN ('key_' || u.name)::name ELSE u.name END AS own,
               CASE WHEN a.attcollation <> t.typcollation
                    THEN format(' COLLATE %I.%I', s.nspname, o.collname) ELSE '' END AS collation
        FROM unnest(key) WITH ORDINALITY AS u (name, n)
        JOIN pg_attribute AS a ON a.attrelid = "table" AND a.attname = u.name
        JOIN pg_type AS t ON t.oid = a.atttypid
        LEFT JOIN pg_collation AS o ON o.oid = a.attcollation
        LEFT JOIN pg_namespace AS s ON s.oid = o.collnamespace
    ) AS q;
    EXECUTE format(
        'CREATE %8$s TABLE %1$s (%2$s mention text NOT NULL, start_char integer NOT NULL,'
        ' end_char integer NOT NULL, score real NOT NULL, embedding %3$s(%4$s) NOT NULL,'
        ' fingerprint text NOT NULL, PRIMARY KEY (%5$s, start_char, end_char),'
        ' FOREIGN KEY (%5$s) REFERENCES %6$s (%7$s) ON UPDATE CASCADE ON DELETE CASCADE)',
        target, columns, ner_retriever.vector_type(storage::name), dims, names, base, base_names, persistence);
    RETURN to_regclass(target);
END
$$;
COMMENT ON FUNCTION ner_retriever.create_mentions(regclass, name, name[], text, integer) IS
'The table for the mentions of an indexed table';

-- A mention is readable for whoever may read its text: the policy reads the row as the caller, with
-- the privileges and policies that hold for the caller there.
CREATE FUNCTION ner_retriever.share_mentions("table" regclass, "column" name, mentions regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target text;
    base text;
    same_row text;
    reader record;
    owner name;
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname), pg_get_userbyid(c.relowner) INTO base, owner
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = "table";
    SELECT format('%I.%I', n.nspname, c.relname) INTO target
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = mentions;
    SELECT string_agg(format('b.%I %s %s.%I', base_column, equality, target, mention_column), ' AND ')
    INTO same_row FROM ner_retriever.key_columns("table", mentions);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format(
        'CREATE POLICY readers_of_the_text ON %s FOR SELECT USING (EXISTS ('
        'SELECT FROM %s AS b WHERE %s AND b.%I IS NOT NULL))', target, base, same_row, "column");
    FOR reader IN
        SELECT DISTINCT a.grantee FROM pg_class AS c, aclexplode(c.relacl) AS a
        WHERE c.oid = "table" AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO %s', target, CASE reader.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(reader.grantee)) END);
    END LOOP;
    EXECUTE format('ALTER TABLE %s OWNER TO %I', target, owner);
END
$$;
COMMENT ON FUNCTION ner_retriever.share_mentions(regclass, name, regclass) IS
'Gives the readers of a table the right to search it';

CREATE FUNCTION ner_retriever.create_triggers(index_id integer)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    prefix text;
    changed text;
BEGIN
    SELECT m.mode, m."column", m.mentions, m.base, c.relkind,
           format('%I.%I', n.nspname, c.relname) AS name
    INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_class AS c ON c.oid = m.base
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE m.id = index_id;
    IF i.mode = 'manual' THEN
        RETURN;
    END IF;
    prefix := 'ner_retriever_' || index_id;
    IF i.relkind = 'p' THEN
        -- Statements may name a partition; only row triggers are inherited by all of them.
        SELECT string_agg(format('OLD.%1$I IS DISTINCT FROM NEW.%1$I', name), ' OR ') INTO changed
        FROM (SELECT base_column AS name FROM ner_retriever.key_columns(i.base, i.mentions)
              UNION ALL SELECT i."column") AS q;
        EXECUTE format(
            'CREATE TRIGGER %I AFTER INSERT ON %s FOR EACH ROW WHEN (NEW.%I IS NOT NULL)'
            ' EXECUTE FUNCTION ner_retriever.on_change(%L, %L)',
            prefix || '_insert', i.name, i."column", index_id, i.mode);
        EXECUTE format(
            'CREATE TRIGGER %I AFTER UPDATE ON %s FOR EACH ROW WHEN (%s)'
            ' EXECUTE FUNCTION ner_retriever.on_change(%L, %L)',
            prefix || '_update', i.name, changed, index_id, i.mode);
    ELSE
        EXECUTE format(
            'CREATE TRIGGER %I AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ner_retriever.on_change(%L, %L)',
            prefix || '_insert', i.name, index_id, i.mode);
        EXECUTE format(
            'CREATE TRIGGER %I AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ner_retriever.on_change(%L, %L)',
            prefix || '_update', i.name, index_id, i.mode);
    END IF;
    EXECUTE format(
        'CREATE TRIGGER %I AFTER TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION ner_retriever.on_change(%L, %L)',
        prefix || '_truncate', i.name, index_id, i.mode);
END
$$;
COMMENT ON FUNCTION ner_retriever.create_triggers(integer) IS
'The triggers that tell a managed index of changes';
