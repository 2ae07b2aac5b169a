-- Comparing a table with the memory of its index: what is missing, stale or orphaned is one query, whatever no
-- trigger has told of. In slices of the key's order, so that it can stop and go on, and neither moves rows
-- between two slices nor sorts a large table.

-- parameter names the key that bounds the slice: its columns as text[]. Operators of one name compare rows, which
-- an index follows; those of several are taken one after the other.
CREATE FUNCTION ner_retriever.bound(
    base oid, key_numbers smallint[], of_memory boolean, parameter text, upper boolean
)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    k record;
    columns text[];
    bounds text[];
    operators text[];
    condition text;
BEGIN
    FOR k IN SELECT * FROM ner_retriever.key_columns(base, key_numbers, NULL) ORDER BY "position" DESC LOOP
        columns := CASE WHEN of_memory THEN format('t.k%s', k."position") ELSE format('t.%I', k.base_column) END || columns;
        bounds := format('((%s)[%s])::%s', parameter, k."position", k.type) || bounds;
        operators := CASE WHEN upper THEN k.not_greater ELSE k.greater END || operators;
        condition := CASE WHEN condition IS NULL THEN format('%s %s %s', columns[1], operators[1], bounds[1])
            ELSE format('(%1$s %2$s %3$s OR %1$s %4$s %3$s AND %5$s)', columns[1],
                CASE WHEN upper THEN k.less ELSE k.greater END, bounds[1], k.equality, condition) END;
    END LOOP;
    IF (SELECT count(DISTINCT o) FROM unnest(operators) AS o) = 1 THEN
        condition := format('ROW(%s) %s ROW(%s)', array_to_string(columns, ', '), operators[1], array_to_string(bounds, ', '));
    END IF;
    RETURN condition;
END
$$;
COMMENT ON FUNCTION ner_retriever.bound(oid, smallint[], boolean, text, boolean) IS
'A condition that a key comes after another, or up to it';

-- $1 and $2 are keys: after the first, up to the second. Rows whose last attempt with this very text has failed
-- are no difference.
CREATE FUNCTION ner_retriever.difference_statement(
    index_id integer, newest boolean, lower boolean DEFAULT false, upper boolean DEFAULT false
)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    k record;
    base_bounds text;
    memory_bounds text;
BEGIN
    PERFORM ner_retriever.check_key(index_id);
    SELECT m.base, m.key_numbers, CASE WHEN newest THEN coalesce(m.next_memory, m.memory) ELSE m.memory END AS memory, a.attname
    INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_attribute AS a ON a.attrelid = m.base AND a.attnum = m.column_number AND NOT a.attisdropped
    WHERE m.id = index_id;
    SELECT string_agg(format('t.%I AS k%s', base_column, "position"), ', ' ORDER BY "position") AS base_keys,
           string_agg(format('t.k%s', "position"), ', ' ORDER BY "position") AS memory_keys,
           string_agg(format('b.k%1$s %2$s m.k%1$s', "position", equality), ' AND ' ORDER BY "position") AS same_key,
           string_agg(format('pg_catalog.format(''%%s'', coalesce(b.k%1$s, m.k%1$s))', "position"), ', ' ORDER BY "position") AS texts,
           string_agg(format('coalesce(b.k%1$s, m.k%1$s) USING %2$s', "position", less), ', ' ORDER BY "position") AS in_order,
           string_agg(format('t.%I IS NOT NULL', base_column), ' AND ') AS has_key
    INTO k FROM ner_retriever.key_columns(i.base, i.key_numbers, NULL);
    base_bounds := concat_ws(' AND ', k.has_key,
        CASE WHEN lower THEN ner_retriever.bound(i.base, i.key_numbers, false, '$1', false) END,
        CASE WHEN upper THEN ner_retriever.bound(i.base, i.key_numbers, false, '$2', true) END);
    memory_bounds := concat_ws(' AND ', 'true',
        CASE WHEN lower THEN ner_retriever.bound(i.base, i.key_numbers, true, '$1', false) END,
        CASE WHEN upper THEN ner_retriever.bound(i.base, i.key_numbers, true, '$2', true) END);
    RETURN format(
        'SELECT d.* FROM (SELECT ARRAY[%1$s] AS key, b.hash, b.hash IS NOT NULL AND m.text_hash IS NULL AS is_missing,'
        ' b.hash IS NOT NULL AND m.text_hash IS NOT NULL AS is_stale, b.hash IS NULL AS is_orphaned'
        ' FROM (SELECT %2$s, %3$s AS hash FROM %4$s AS t WHERE %5$s) AS b'
        ' FULL JOIN (SELECT %6$s, t.text_hash FROM %7$s AS t WHERE %8$s) AS m ON %9$s'
        ' WHERE b.hash IS DISTINCT FROM m.text_hash ORDER BY %10$s) AS d'
        ' WHERE NOT EXISTS (SELECT FROM ner_retriever.failed_row AS f WHERE f.index_id = %11$s'
        ' AND f.key_hash = hash_array_extended(d.key, 0) AND f.text_hash = d.hash)',
        k.texts, k.base_keys, ner_retriever.hash_expression('t', i.attname), ner_retriever.own_rows(i.base), base_bounds,
        k.memory_keys, ner_retriever.name_of(i.memory), memory_bounds, k.same_key, k.in_order, index_id);
END
$$;
COMMENT ON FUNCTION ner_retriever.difference_statement(integer, boolean, boolean, boolean) IS
'A query for the differences between a table and a memory of its index';

-- The key that ends the next slice: NULL in the last one.
CREATE FUNCTION ner_retriever.slice_statement(index_id integer, lower boolean)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format('SELECT ARRAY[%s] FROM %s AS t%s ORDER BY %s OFFSET $2 LIMIT 1',
            string_agg(format('pg_catalog.format(''%%s'', t.%I)', k.base_column), ', ' ORDER BY k."position"),
            ner_retriever.own_rows(i.base),
            CASE WHEN lower THEN ' WHERE ' || ner_retriever.bound(i.base, i.key_numbers, false, '$1', false) END,
            string_agg(format('t.%I USING %s', k.base_column, k.less), ', ' ORDER BY k."position"))
        FROM ner_retriever.managed_index AS i, ner_retriever.key_columns(i.base, i.key_numbers, NULL) AS k
        WHERE i.id = index_id GROUP BY i.base, i.key_numbers);
END
$$;
COMMENT ON FUNCTION ner_retriever.slice_statement(integer, boolean) IS
'A query for the key that is some rows after another';

-- Runs as the table's owner. Ends early after as many differences as the queue takes.
CREATE FUNCTION ner_retriever.compare_slice(
    index_id integer, after_key text[], slice_rows integer, max_found integer
)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Both sides are read in the order of their keys: a sort or a hash would be of the whole rest.
SET enable_seqscan = off
AS $$
DECLARE
    until_key text[];
    last_key text[];
    differences bigint;
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE NOWAIT',
        (SELECT ner_retriever.own_rows(i.base) FROM ner_retriever.managed_index AS i WHERE i.id = index_id));
    EXECUTE ner_retriever.slice_statement(index_id, after_key IS NOT NULL)
    INTO until_key USING after_key, slice_rows;
    EXECUTE format(
        'WITH d AS MATERIALIZED (%s LIMIT $3), enqueued AS (INSERT INTO ner_retriever.pending (index_id, backfill, key, text_hash)'
        ' SELECT %s, true, d.key, d.hash FROM d)'
        ' SELECT count(*), (array_agg(d.key))[count(*)] FROM d',
        ner_retriever.difference_statement(index_id, true, after_key IS NOT NULL, until_key IS NOT NULL), index_id)
    INTO differences, last_key USING after_key, until_key, max_found;
    IF differences = max_found THEN
        until_key := last_key;
    END IF;
    PERFORM ner_retriever.lock_index(index_id);
    UPDATE ner_retriever.managed_index
    SET pass_cursor = until_key, pass = CASE WHEN until_key IS NOT NULL THEN pass END WHERE id = index_id;
END
$$;
COMMENT ON FUNCTION ner_retriever.compare_slice(integer, text[], integer, integer) IS
'Enqueues the differences of some rows after a key, and keeps how far that is';

-- The next slice of a comparison that is under way. What nobody waits for takes a fifth of a worker's time.
CREATE FUNCTION ner_retriever.compare_some(index_id integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    s record;
    began timestamptz := clock_timestamp();
    most CONSTANT integer := 4096;
BEGIN
    SELECT m.*, c.relowner AS owner INTO i
    FROM ner_retriever.managed_index AS m JOIN pg_class AS c ON c.oid = m.base
    WHERE m.id = index_id AND m.pass IS NOT NULL AND coalesce(m.pass_not_before, '-infinity') <= clock_timestamp();
    IF NOT FOUND OR NOT ner_retriever.take_turn(index_id) OR (SELECT count(*) >= most FROM (
        SELECT FROM ner_retriever.pending AS p WHERE p.index_id = compare_some.index_id AND p.backfill LIMIT most) AS q)
    THEN
        RETURN 0;
    END IF;
    PERFORM ner_retriever.check_row_security(i.base);
    PERFORM ner_retriever.execute_as(i.owner, format('SELECT ner_retriever.compare_slice(%s, %L, %s, %s)',
        index_id, i.pass_cursor, CASE WHEN i.state = 'filling' THEN most ELSE 20000 END, most));
    SELECT m.pass, m.pass_cursor INTO s FROM ner_retriever.managed_index AS m WHERE m.id = index_id;
    IF s.pass IS NULL THEN
        UPDATE ner_retriever.managed_index SET reconciled_at = clock_timestamp() WHERE id = index_id;
        PERFORM ner_retriever.execute_as(i.owner, format('SELECT ner_retriever.forget_failed(%s)', index_id));
    ELSIF s.pass = 'periodic' THEN
        UPDATE ner_retriever.managed_index
        SET pass_not_before = clock_timestamp() + 4 * (clock_timestamp() - began) WHERE id = index_id;
    END IF;
    PERFORM ner_retriever.unpause(index_id);
    RETURN 1;
END
$$;
COMMENT ON FUNCTION ner_retriever.compare_some(integer) IS
'One slice of a comparison. Returns whether there was one to do';

-- Failed rows whose rows have gone without notice.
CREATE FUNCTION ner_retriever.forget_failed(index_id integer)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f record;
BEGIN
    FOR f IN SELECT r.key, r.key_hash FROM ner_retriever.failed_row AS r WHERE r.index_id = forget_failed.index_id LIMIT 10000 LOOP
        IF ner_retriever.has_row(index_id, f.key) <= 0 THEN
            DELETE FROM ner_retriever.failed_row AS r WHERE r.index_id = forget_failed.index_id AND r.key_hash = f.key_hash;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.forget_failed(integer) IS
'Forgets failed rows that are no rows any more';

-- The mentions of 0.2.0, which had no memory: a row whose mentions stand in its text was embedded as it is. So was,
-- where every change was seen, a row without mentions; partitioned tables and heirs had changes that were not.
CREATE FUNCTION ner_retriever.remember_mentions(index_id integer)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    k record;
BEGIN
    SELECT m.base, m.key_numbers, m.mentions, m.memory, a.attname,
           c.relkind = 'r' AND NOT c.relispartition AND NOT c.relhassubclass
           AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = m.base) AND m.state <> 'new' AS saw_all
    INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_class AS c ON c.oid = m.base
    JOIN pg_attribute AS a ON a.attrelid = m.base AND a.attnum = m.column_number AND NOT a.attisdropped
    WHERE m.id = index_id;
    SELECT string_agg(format('k%s', "position"), ', ' ORDER BY "position") AS own,
           string_agg(format('t.%I', base_column), ', ' ORDER BY "position") AS base,
           string_agg(format('s.%I %s t.%I', mention_column, equality, base_column), ' AND ' ORDER BY "position") AS same_row,
           string_agg(format('%I', mention_column), ', ' ORDER BY "position") AS mention_columns,
           string_agg(format('s.%I', mention_column), ', ' ORDER BY "position") AS mentioned,
           string_agg(format('pg_catalog.format(''%%s'', t.%I)', base_column), ', ' ORDER BY "position") AS texts
    INTO k FROM ner_retriever.key_columns(i.base, i.key_numbers, i.mentions);
    EXECUTE format(
        'INSERT INTO %1$s (%2$s, text_hash) SELECT %3$s, %4$s FROM %5$s AS t'
        ' LEFT JOIN (SELECT %6$s, true AS has_mentions FROM %7$s AS s GROUP BY %6$s) AS h ON %8$s'
        ' WHERE (h.has_mentions OR %9$L) AND NOT EXISTS (SELECT FROM %7$s AS s WHERE %10$s'
        ' AND s.mention IS DISTINCT FROM substr(t.%11$I::text, s.start_char + 1, s.end_char - s.start_char))'
        ' AND NOT EXISTS (SELECT FROM ner_retriever.pending AS p WHERE p.index_id = %12$s'
        ' AND p.key_hash = hash_array_extended(ARRAY[%13$s], 0))',
        ner_retriever.name_of(i.memory), k.own, k.base, ner_retriever.hash_expression('t', i.attname),
        ner_retriever.own_rows(i.base), k.mentioned, ner_retriever.name_of(i.mentions), replace(k.same_row, 's.', 'h.'),
        i.saw_all, k.same_row, i.attname, index_id, k.texts);
    -- Of rows that are gone: the memory says so, that the comparison removes them.
    EXECUTE format(
        'INSERT INTO %1$s (%2$s, text_hash) SELECT DISTINCT %3$s, ''\x00''::bytea FROM %4$s AS s'
        ' WHERE NOT EXISTS (SELECT FROM %5$s AS t WHERE %6$s)',
        ner_retriever.name_of(i.memory), k.own, k.mentioned, ner_retriever.name_of(i.mentions),
        ner_retriever.own_rows(i.base), k.same_row);
END
$$;
COMMENT ON FUNCTION ner_retriever.remember_mentions(integer) IS
'Makes the memory of mentions that were embedded before there was one';
