-- The SQL that reads an indexed table and writes its mentions. The library runs it with the rights
-- of the table's owner; names come from the catalogues each time, so that renames need no care.

CREATE FUNCTION ner_retriever.vector_type(typename name)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (SELECT format('%I.%I', n.nspname, typename)
        FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname = 'vector');
COMMENT ON FUNCTION ner_retriever.vector_type(name) IS
'A type of pgvector with its schema';

-- The foreign key is what says which column of the mentions is which key column of the table: it
-- follows renames and dumps.
CREATE FUNCTION ner_retriever.key_columns(
    base oid, mentions oid,
    OUT "position" integer, OUT base_column name, OUT mention_column name,
    OUT type text, OUT equality text, OUT builtin boolean
)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT u.n::integer, b.attname, m.attname, format_type(b.atttypid, b.atttypmod),
           format('OPERATOR(%I.%s)', s.nspname, o.oprname),
           -- Of PostgreSQL's own types or a domain over one; others are made by users.
           coalesce(nullif(t.typbasetype, 0), t.oid) < 16384::oid
    FROM pg_constraint AS c
    CROSS JOIN LATERAL unnest(c.confkey, c.conkey, c.conpfeqop)
        WITH ORDINALITY AS u (base_number, mention_number, operator, n)
    JOIN pg_attribute AS b ON b.attrelid = c.confrelid AND b.attnum = u.base_number
    JOIN pg_attribute AS m ON m.attrelid = c.conrelid AND m.attnum = u.mention_number
    JOIN pg_type AS t ON t.oid = b.atttypid
    JOIN pg_operator AS o ON o.oid = u.operator
    JOIN pg_namespace AS s ON s.oid = o.oprnamespace
    WHERE c.contype = 'f' AND c.conparentid = 0
      AND c.conrelid = key_columns.mentions AND c.confrelid = key_columns.base
    ORDER BY u.n;
END;
COMMENT ON FUNCTION ner_retriever.key_columns(oid, oid) IS
'How the key of an indexed table is called there and among its mentions';

-- The owner may do with the table of the mentions as with any other. Whoever searches runs no more of
-- the owner's than whoever reads a table: a column of another type would bring its conversions.
CREATE FUNCTION ner_retriever.check_mentions(base oid, mentions oid, storage text)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    converted regtype;
BEGIN
    SELECT p.castsource INTO converted
    FROM ner_retriever.key_columns(check_mentions.base, check_mentions.mentions) AS k
    JOIN pg_attribute AS b ON b.attrelid = check_mentions.base AND b.attname = k.base_column
    JOIN pg_cast AS p ON p.castsource = b.atttypid
    WHERE NOT k.builtin AND p.castcontext = 'i' AND p.castfunc <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'type % of the key has an implicit conversion', converted
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Comparing keys could call it: make it a cast AS ASSIGNMENT, or use another key.';
    END IF;
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = check_mentions.mentions AND c.relkind = 'r')
       AND NOT EXISTS (
           SELECT FROM (VALUES ('mention', 'text'), ('start_char', 'int4'), ('end_char', 'int4'),
                               ('embedding', ner_retriever.vector_type(storage::name))) AS v (name, type)
           LEFT JOIN pg_attribute AS a ON a.attrelid = check_mentions.mentions
               AND a.attname = v.name AND NOT a.attisdropped
           WHERE a.atttypid IS DISTINCT FROM to_regtype(v.type)::oid)
       AND EXISTS (SELECT FROM ner_retriever.key_columns(check_mentions.base, check_mentions.mentions))
       AND NOT EXISTS (
           SELECT FROM ner_retriever.key_columns(check_mentions.base, check_mentions.mentions) AS k
           JOIN pg_attribute AS b ON b.attrelid = check_mentions.base AND b.attname = k.base_column
           JOIN pg_attribute AS m ON m.attrelid = check_mentions.mentions AND m.attname = k.mention_column
           WHERE b.atttypid <> m.atttypid)
    THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'table % is not as ner_index made it', mentions::regclass
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = format('Its owner can make it anew: SELECT ner_drop_index(%L), and ner_index again.',
                  base::regclass);
END
$$;
COMMENT ON FUNCTION ner_retriever.check_mentions(oid, oid, text) IS
'An error unless a table of mentions has the columns that it was made with';

-- Policies would hide rows from their own table's owner, and the rows would never be indexed.
CREATE FUNCTION ner_retriever.check_row_security("table" regclass)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_class AS c JOIN pg_roles AS r ON r.oid = c.relowner
        WHERE c.oid = "table" AND c.relrowsecurity AND c.relforcerowsecurity
          AND NOT r.rolsuper AND NOT r.rolbypassrls)
    THEN
        RAISE EXCEPTION 'row-level security of table % is forced on its owner', "table"
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('The owner has to read all rows to index them: ALTER TABLE %s NO FORCE ROW LEVEL SECURITY.', "table");
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.check_row_security(regclass) IS
'An error if policies hide rows of a table from its owner';

-- $1 of the statements holds the keys of all rows one after the other.
CREATE FUNCTION ner_retriever.key_part(row_number text, "position" integer, width bigint)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN format('($1)[(%s - 1) * %s + %s]', row_number, width, "position");
COMMENT ON FUNCTION ner_retriever.key_part(text, integer, bigint) IS
'A column of a key among the keys of many rows';

CREATE FUNCTION ner_retriever.statements(
    index_id integer,
    OUT base oid, OUT owner oid, OUT key_names text[],
    OUT read text, OUT lock text, OUT enqueue_inserted text, OUT enqueue_updated text,
    OUT enqueue_all text, OUT keys_inserted text, OUT keys_updated text
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    k record;
    table_name text;
    width bigint;
    rows_of_keys text;
BEGIN
    SELECT m.base, m.mentions, m."column", c.relowner, n.nspname, c.relname INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_class AS c ON c.oid = m.base
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE m.id = index_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    table_name := format('%I.%I', i.nspname, i.relname);
    SELECT count(*) INTO width FROM ner_retriever.key_columns(i.base, i.mentions);
    SELECT
        array_agg(base_column::text ORDER BY "position") AS names,
        -- Not a cast, which may be a function of whoever made the type: ner_refresh runs this as its
        -- caller, who may be a superuser.
        string_agg(format('pg_catalog.format(''%%s'', r.%I)', base_column), ', ' ORDER BY "position")
            AS texts,
        string_agg(
            format('b.%I %s ((%s)::%s)', base_column, equality,
                   ner_retriever.key_part('n.i', "position", width), type),
            ' AND ' ORDER BY "position") AS of_row,
        string_agg(format('o.%1$I::text = r.%1$I::text', base_column),
            ' AND ' ORDER BY "position") AS unchanged
    INTO k
    FROM ner_retriever.key_columns(i.base, i.mentions);
    IF k.names IS NULL THEN
        RAISE EXCEPTION 'the foreign key of table % to table % is gone', i.mentions, i.base
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('Call ner_drop_index(%L, %L) and ner_index again.', i.base, i."column");
    END IF;
    rows_of_keys := format('generate_series(1, cardinality($1) / %s) AS n (i)', width);
    base := i.base;
    owner := i.relowner;
    key_names := k.names;
    read := format(
        'SELECT n.i, convert_to(b.%I::text, ''UTF8'') FROM %s JOIN %s AS b ON %s',
        i."column", rows_of_keys, table_name, k.of_row);
    -- Rows that a transaction is changing are left to the next try: nobody waits for the worker, and
    -- it waits for nobody. $2 holds the texts that were embedded.
    lock := format(
        'SELECT n.i, convert_to(b.%1$I::text, ''UTF8'') IS NOT DISTINCT FROM ($2)[n.i]'
        ' FROM %2$s JOIN %3$s AS b ON %4$s FOR NO KEY UPDATE OF b SKIP LOCKED',
        i."column", rows_of_keys, table_name, k.of_row);
    keys_inserted := format(
        'SELECT ARRAY[%s] AS key FROM new_rows AS r WHERE r.%I IS NOT NULL', k.texts, i."column");
    keys_updated := format(
        'SELECT ARRAY[%1$s] AS key FROM new_rows AS r WHERE NOT EXISTS (SELECT FROM old_rows AS o'
        ' WHERE %2$s AND o.%3$I::text COLLATE "C" IS NOT DISTINCT FROM r.%3$I::text COLLATE "C")',
        k.texts, k.unchanged, i."column");
    enqueue_inserted := format(
        'INSERT INTO ner_retriever.pending (index_id, key) SELECT %s, k.key FROM (%s) AS k',
        index_id, keys_inserted);
    enqueue_updated := format(
        'INSERT INTO ner_retriever.pending (index_id, key) SELECT %s, k.key FROM (%s) AS k',
        index_id, keys_updated);
    enqueue_all := format(
        'INSERT INTO ner_retriever.pending (index_id, backfill, key)'
        ' SELECT %s, true, ARRAY[%s] FROM %s AS r', index_id, k.texts, table_name);
END
$$;
COMMENT ON FUNCTION ner_retriever.statements(integer) IS
'How a managed index reads its table; no row if there is no such index';

CREATE FUNCTION ner_retriever.write_statements(
    index_id integer,
    OUT mentions oid, OUT fingerprint text, OUT dims integer, OUT remove text, OUT add text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
    k record;
    width bigint;
BEGIN
    FOR t IN
        SELECT m.base, m.storage, g.*, format('%I.%I', n.nspname, c.relname) AS table_name,
               c.relowner AS owner, b.relowner AS base_owner
        FROM ner_retriever.managed_index AS m
        CROSS JOIN LATERAL (
            VALUES (m.mentions, m.fingerprint, m.dims),
                   (m.next_mentions, m.next_fingerprint, m.next_dims)
        ) AS g (mentions, fingerprint, dims)
        JOIN pg_class AS b ON b.oid = m.base
        JOIN pg_class AS c ON c.oid = g.mentions
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE m.id = index_id
    LOOP
        -- Its triggers run with the rights of the table's owner: they must be of nobody else.
        IF t.owner <> t.base_owner THEN
            RAISE EXCEPTION 'table % does not belong to the owner of table %',
                t.mentions::regclass, t.base
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = format('Look at its triggers, then: ALTER TABLE %s OWNER TO %I.',
                          t.mentions::regclass, pg_get_userbyid(t.base_owner));
        END IF;
        SELECT count(*) INTO width FROM ner_retriever.key_columns(t.base, t.mentions);
        SELECT
            string_agg(format('%I', mention_column), ', ' ORDER BY "position") AS names,
            string_agg(
                format('(%s)::%s', ner_retriever.key_part('u.doc', "position", width), type),
                ', ' ORDER BY "position") AS values,
            string_agg(
                format('m.%I %s ((%s)::%s)', mention_column, equality,
                       ner_retriever.key_part('n.i', "position", width), type),
                ' AND ' ORDER BY "position") AS of_row
        INTO k
        FROM ner_retriever.key_columns(t.base, t.mentions);
        mentions := t.mentions;
        fingerprint := t.fingerprint;
        dims := t.dims;
        remove := format(
            'DELETE FROM %s AS m USING unnest($2) AS n (i) WHERE %s',
            t.table_name, k.of_row);
        -- $6 holds all vectors one after the other: an array of reals needs no conversion to text.
        add := format(
            'INSERT INTO %1$s (%2$s, mention, start_char, end_char, score, embedding, fingerprint)'
            ' SELECT %3$s, convert_from(u.mention, ''UTF8''), u.start_char, u.end_char, u.score,'
            ' ((($7)[(u.n - 1) * %4$s + 1 : u.n * %4$s])::%5$s)::%6$s, %7$L'
            ' FROM unnest($2::integer[], $3::bytea[], $4::integer[], $5::integer[], $6::real[])'
            ' WITH ORDINALITY AS u (doc, mention, start_char, end_char, score, n)',
            t.table_name, k.names, k.values, t.dims, ner_retriever.vector_type('vector'),
            ner_retriever.vector_type(t.storage::name), t.fingerprint);
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.write_statements(integer) IS
'How a managed index replaces the mentions of rows: its table, and the one that takes its place';
