-- How the key of an indexed table is called there, among its mentions and in its memory. Names come from the
-- catalogues each time, so that renames need no care.

CREATE VIEW ner_retriever.readable_index WITH (security_barrier) AS
SELECT id, base, "column", column_number, key_numbers, mentions, memory, next_mentions, next_memory, mode, storage,
       dims, fingerprint
FROM ner_retriever.managed_index
WHERE pg_catalog.has_table_privilege(base, 'SELECT');
COMMENT ON VIEW ner_retriever.readable_index IS
'Managed indexes of the tables that the current role may read, without what has to be counted';
GRANT SELECT ON ner_retriever.readable_index TO PUBLIC;

-- A table and what is in it for an index: a partitioned table with its whole tree; of a table with children
-- that inherit from it, which have keys of their own, its own rows.
CREATE FUNCTION ner_retriever.own_rows(relation oid)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (SELECT format(CASE WHEN c.relkind = 'p' THEN '%I.%I' ELSE 'ONLY %I.%I' END, n.nspname, c.relname)
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation);
COMMENT ON FUNCTION ner_retriever.own_rows(oid) IS
'What stands after FROM for the rows of an indexed table';

CREATE FUNCTION ner_retriever.name_of(relation oid)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation);
COMMENT ON FUNCTION ner_retriever.name_of(oid) IS
'A relation with its schema, quoted';

-- Rows that are hidden from their own table's owner would look as if they were gone.
CREATE FUNCTION ner_retriever.hides_rows(base oid)
RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT FROM pg_class AS c JOIN pg_roles AS r ON r.oid = c.relowner
    WHERE c.oid = base AND c.relrowsecurity AND c.relforcerowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls);
COMMENT ON FUNCTION ner_retriever.hides_rows(oid) IS
'Whether policies hide rows of a table from its owner';

CREATE OR REPLACE FUNCTION ner_retriever.check_row_security("table" regclass)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF ner_retriever.hides_rows("table") THEN
        RAISE EXCEPTION 'row-level security of table % is forced on its owner', "table"
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('The owner has to read all rows to index them: ALTER TABLE %s NO FORCE ROW LEVEL SECURITY.', "table");
    END IF;
END
$$;

-- The unique index that makes a key of the columns: it has the operators that compare them. None while a
-- restore has not loaded all rows yet: it makes indexes last, and those of partitioned tables valid last.
CREATE FUNCTION ner_retriever.key_index(base oid, key_numbers smallint[])
RETURNS oid
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT x.indexrelid FROM pg_index AS x
    WHERE x.indrelid = key_index.base AND x.indisunique AND x.indimmediate AND x.indisvalid
      AND x.indpred IS NULL AND x.indexprs IS NULL
      AND x.indnkeyatts = cardinality(key_index.key_numbers)
      AND (x.indkey::smallint[])[0:x.indnkeyatts - 1] @> key_index.key_numbers
      AND (x.indkey::smallint[])[0:x.indnkeyatts - 1] <@ key_index.key_numbers
    ORDER BY x.indisprimary DESC, x.indexrelid LIMIT 1;
END;
COMMENT ON FUNCTION ner_retriever.key_index(oid, smallint[]) IS
'The unique index of a table on these columns, NULL if there is none';

CREATE FUNCTION ner_retriever.operator_of(family oid, type oid, strategy integer)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
        FROM pg_amop AS p JOIN pg_operator AS o ON o.oid = p.amopopr JOIN pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE p.amopfamily = family AND p.amoplefttype = type AND p.amoprighttype = type AND p.amopstrategy = strategy);
COMMENT ON FUNCTION ner_retriever.operator_of(oid, oid, integer) IS
'An operator of a btree family: 1 <, 2 <=, 3 =, 5 >';

-- The key's columns are the first of a table of mentions, in this order, whatever they are called there; those
-- of a memory are k1, k2, ...
CREATE FUNCTION ner_retriever.key_columns(
    base oid, key_numbers smallint[], mentions oid,
    OUT "position" integer, OUT base_column name, OUT mention_column name, OUT type text,
    OUT less text, OUT not_greater text, OUT equality text, OUT greater text, OUT builtin boolean
)
RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT u.n::integer, b.attname, m.attname, format_type(b.atttypid, b.atttypmod),
           ner_retriever.operator_of(o.opcfamily, o.opcintype, 1), ner_retriever.operator_of(o.opcfamily, o.opcintype, 2),
           ner_retriever.operator_of(o.opcfamily, o.opcintype, 3), ner_retriever.operator_of(o.opcfamily, o.opcintype, 5),
           -- Of PostgreSQL's own types or a domain over one; others are made by users.
           coalesce(nullif(t.typbasetype, 0), t.oid) < 16384::oid
    FROM unnest(key_columns.key_numbers) WITH ORDINALITY AS u (number, n)
    JOIN pg_attribute AS b ON b.attrelid = key_columns.base AND b.attnum = u.number AND NOT b.attisdropped
    JOIN pg_type AS t ON t.oid = b.atttypid
    JOIN pg_index AS x ON x.indexrelid = ner_retriever.key_index(key_columns.base, key_columns.key_numbers)
    -- Both vectors count from 0.
    JOIN pg_opclass AS o ON o.oid = (x.indclass::oid[])[array_position(x.indkey::smallint[], u.number)]
    LEFT JOIN (SELECT a.attname, row_number() OVER (ORDER BY a.attnum) AS n FROM pg_attribute AS a
               WHERE a.attrelid = key_columns.mentions AND a.attnum > 0 AND NOT a.attisdropped) AS m ON m.n = u.n
    ORDER BY u.n;
END;
COMMENT ON FUNCTION ner_retriever.key_columns(oid, smallint[], oid) IS
'How the key of an indexed table is called there and among its mentions, and how it is compared; no row without a key';

CREATE FUNCTION ner_retriever.check_key(index_id integer)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
BEGIN
    SELECT m.base, m."column", m.key_numbers INTO i FROM ner_retriever.readable_index AS m WHERE m.id = index_id;
    IF ner_retriever.key_index(i.base, i.key_numbers) IS NULL THEN
        RAISE EXCEPTION 'table % has no unique index on its key (%) any more', i.base, (
            SELECT string_agg(a.attname, ', ') FROM pg_attribute AS a
            WHERE a.attrelid = i.base AND a.attnum = ANY (i.key_numbers))
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('Make one, and the index goes on; or call ner_drop_index(%L, %L).', i.base, i."column");
    END IF;
END
$$;
COMMENT ON FUNCTION ner_retriever.check_key(integer) IS
'An error that says what to do unless the key of an indexed table is one';

-- The owner may do with the table of the mentions as with any other. Whoever searches runs no more of
-- the owner's than whoever reads a table: a column of another type would bring its conversions.
CREATE FUNCTION ner_retriever.check_mentions(base oid, key_numbers smallint[], mentions oid, storage text)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    converted regtype;
BEGIN
    SELECT p.castsource INTO converted
    FROM ner_retriever.key_columns(check_mentions.base, check_mentions.key_numbers, check_mentions.mentions) AS k
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
       AND EXISTS (SELECT FROM ner_retriever.key_columns(check_mentions.base, check_mentions.key_numbers, check_mentions.mentions))
       AND NOT EXISTS (
           SELECT FROM ner_retriever.key_columns(check_mentions.base, check_mentions.key_numbers, check_mentions.mentions) AS k
           JOIN pg_attribute AS b ON b.attrelid = check_mentions.base AND b.attname = k.base_column
           LEFT JOIN pg_attribute AS m ON m.attrelid = check_mentions.mentions AND m.attname = k.mention_column
           WHERE b.atttypid IS DISTINCT FROM m.atttypid)
    THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'table % is not as ner_index made it', mentions::regclass
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = format('Its owner can make it anew: SELECT ner_drop_index(%L), and ner_index again.',
                  base::regclass);
END
$$;
COMMENT ON FUNCTION ner_retriever.check_mentions(oid, smallint[], oid, text) IS
'An error unless a table of mentions has the columns that it was made with';

-- $1 of the statements holds the keys of all rows one after the other.
CREATE FUNCTION ner_retriever.key_part(row_number text, "position" integer, width integer)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN format('($1)[(%s - 1) * %s + %s]', row_number, width, "position");
COMMENT ON FUNCTION ner_retriever.key_part(text, integer, integer) IS
'A column of a key among the keys of many rows';

-- 16 bytes of SHA-256 tell texts apart, also those that are made to be alike. Of the text as the database
-- has it, which never fails to be converted. A row without a text has no mentions either.
CREATE FUNCTION ner_retriever.hash_expression(alias text, "column" name)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN format('CASE WHEN %1$s.%2$I IS NULL THEN ''''::bytea ELSE'
    ' substr(sha256(convert_to(%1$s.%2$I::text, %3$L)), 1, 16) END', alias, "column", getdatabaseencoding());
COMMENT ON FUNCTION ner_retriever.hash_expression(text, name) IS
'What a memory keeps of a text';
